//! `pagelease lab --random SEED`, and `pagelease lab merge`: random histories where there are too many to explore, a shard a
//! process; one line of JSON a design and scenario, so that the shards' files concatenate.

use std::fs::File;
use std::io::{self, BufReader, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pagelease_lab::catalogue;
use pagelease_lab::sample::{self, Line, Plan, Shard};

use super::bad;

/// What to sample.
#[derive(clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// Sample random histories instead of exploring all: of the scenarios that are too large to explore, unless --scenario
    #[arg(long, value_name = "SEED")]
    random: Option<u64>,
    /// Make only this share of them, and print it as a line of JSON a design; I runs from 0 to N-1
    #[arg(long, value_name = "I/N", requires = "random")]
    shard: Option<Shard>,
    /// How many, for each design
    #[arg(long, default_value_t = sample::HISTORIES, requires = "random")]
    histories: u64,
    /// Where to cut one off
    #[arg(long, value_name = "STEPS", default_value_t = sample::STEPS_MAX, requires = "random")]
    steps_max: u32,
    /// Of this scenario
    #[arg(long, value_name = "NAME", requires = "random")]
    scenario: Option<String>,
    /// Print a line of JSON a design instead of a table
    #[arg(long, requires = "random")]
    json: bool,
}

impl Args {
    pub(super) fn wanted(&self) -> bool {
        self.random.is_some()
    }
}

/// The shards to sum up.
#[derive(clap::Args)]
pub(super) struct Merge {
    /// What the shards printed; standard input unless given
    files: Vec<PathBuf>,
    /// Print a line of JSON a design instead of a table
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, designs: &[String], threads: usize) -> Result<ExitCode> {
    let plan = Plan {
        seed: args.random.expect("asked for"),
        histories: args.histories,
        steps_max: args.steps_max,
        shard: args.shard.unwrap_or(Shard::WHOLE),
        designs: designs.to_vec(),
        scenario: args.scenario.clone(),
    };
    let entries = catalogue::all();
    let all = plan.cases(&entries).map_err(bad)?.len() as u64 * plan.share();
    let target = if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template("{spinner} {pos} of {len} histories, {per_sec}, {elapsed}")?;
    let bar = ProgressBar::with_draw_target(Some(all), target).with_style(style);
    let done = AtomicU64::new(0);
    let lines = std::thread::scope(|scope| {
        let work = scope.spawn(|| sample::run(&plan, &entries, threads, &done));
        while !work.is_finished() {
            bar.set_position(done.load(Ordering::Relaxed));
            std::thread::sleep(Duration::from_millis(50));
        }
        work.join()
    });
    bar.finish_and_clear();
    let lines = lines.unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map_err(bad)?;
    print(&lines, args.json || args.shard.is_some())
}

pub(super) fn merge(args: &Merge) -> Result<ExitCode> {
    let mut lines = Vec::new();
    if args.files.is_empty() {
        lines = sample::read("standard input", io::stdin().lock()).map_err(bad)?;
    }
    for path in &args.files {
        let file = File::open(path).map_err(|error| bad(format!("cannot read {path:?}: {error}")))?;
        lines.extend(sample::read(&path.display().to_string(), BufReader::new(file)).map_err(bad)?);
    }
    if lines.is_empty() {
        return Err(bad("there is no line to merge: did the shards print any?").into());
    }
    let lines = sample::merge_named(lines).map_err(bad)?;
    print(&lines, args.json)?;
    // Said beneath the table as well; a script asks the exit code.
    Ok(if lines.iter().all(Line::is_whole) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(lines: &[Line], json: bool) -> Result<ExitCode> {
    let mut out = io::stdout().lock();
    if json {
        for line in lines {
            writeln!(out, "{}", serde_json::to_string(line)?)?;
        }
    } else {
        write!(out, "{}", sample::text(lines))?;
    }
    Ok(ExitCode::SUCCESS)
}
