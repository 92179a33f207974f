//! `pagelease run histogram`: CPU threads and a device, or several, count one file into one table.
//!
//! The table is a region: a 64-bit counter for each byte value, or for each pair of bytes. Both sides take chunks of the
//! file from one queue, and raise a counter once for each byte or pair. The CPU does so by an atomic addition, right in the
//! region; the device by a load, an addition and a store, which are **not atomic**. Where both work on one page, only
//! exclusivity keeps them from undoing each other's work. So the totals are compared with those of a plain, single-threaded
//! count: they are the same, or the protocol has a hole.
//!
//! With `--mode racy` the device does not claim the pages it works on, and updates are lost. That is what this mode is there
//! to show: the exit code is 0, whatever was lost. (There, the device pauses a little between load and store, as on a slow
//! bus, so that it shows on a small file.) In exclusive mode, a difference is exit code 1.
//!
//! The table can be in memory of any kind that the runtime manages (`--memory`), taken from the CPU in any way that serves it
//! (`--backend`); what was in force is in the report.
//!
//! The reference is counted last, when the file is in the page cache: the comparison of times never flatters the device.
//! What `--json` prints is a contract, in docs/JSON.md.
//!
//! | file | what it does |
//! |---|---|
//! | `table` | the memory that the table is in, and which combinations make sense |
//! | `unit` | what is counted: bytes or pairs |
//! | `input`, `shrunk` | the file: checked, mapped a window at a time; what if it shrinks meanwhile |
//! | `split` | the queue of chunks |
//! | `count` | the CPU threads, and the single-threaded count |
//! | `device` | the devices' side, a file each |
//! | `report`, `output` | what is printed; the counters as CSV |

mod count;
mod device;
mod input;
mod output;
mod report;
mod shrunk;
mod split;
mod table;
mod unit;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pagelease::{RestorePolicy, Space, SpaceError};
use pagelease_sys::thread;
use pagelease_sys::uffd::{Features, OpenError};

use crate::failure;
use device::{Devices, Which};
use input::Input;
use output::Output;
use report::{Report, Words};
use table::{Backend, Memory, Plan, Table};
use unit::Unit;

/// More threads than that are a slip of the finger.
const THREADS_MAX: usize = 1024;

/// Spins between the load and the store of an update in racy mode, so that updates are lost even when the file is small.
const RACY_PAUSE: u32 = 1;

/// Count a file's bytes: CPU threads and a device, in one table; check the totals, and say what it took
///
/// The CPU counts by atomic additions, the device by updates that are not atomic: only its exclusive access to the pages of
/// the table makes the totals right. They are compared with a single-threaded count.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to count: any regular file that is not empty
    file: PathBuf,
    /// The device, or all of them
    #[arg(long, value_enum, default_value_t)]
    device: Which,
    /// CPU threads, 1 to 1024 [default: one for each CPU but one]
    #[arg(long, value_name = "N", value_parser = threads, default_value_t = default_threads(), hide_default_value = true)]
    cpu_threads: usize,
    /// Threads of the software device, 1 to 1024; the table's pages are divided among them (bytes need but one page)
    #[arg(long, value_name = "N", value_parser = threads, default_value_t = 1)]
    device_workers: usize,
    /// Whether the device claims the pages it works on
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,
    /// Who serves the CPU's touch of a page that the device has [default: monitor; with mprotect, in-thread]
    #[arg(long, value_enum)]
    faults: Option<FaultsArg>,
    /// The memory that the table is in
    #[arg(long, value_enum, default_value_t)]
    memory: Memory,
    /// How pages are taken from the CPU
    #[arg(long, value_enum, default_value_t)]
    backend: Backend,
    /// When pages go back to the CPU
    #[arg(long, value_enum, default_value_t)]
    policy: Policy,
    /// What to count
    #[arg(long, value_enum, default_value_t = Unit::Byte)]
    unit: Unit,
    /// Print one JSON object, described in docs/JSON.md
    #[arg(long)]
    json: bool,
    /// Write the counters to a file, as CSV: value,count
    #[arg(long, value_name = "COUNTS.CSV")]
    out: Option<PathBuf>,
}

#[derive(Copy, Clone, Default, ValueEnum)]
enum Mode {
    /// It does: the totals are exact
    #[default]
    Exclusive,
    /// It does not: shows the updates that are lost
    Racy,
}

#[derive(Copy, Clone, ValueEnum)]
enum FaultsArg {
    /// Threads of the runtime's
    Monitor,
    /// The touching thread itself, in its signal handler
    InThread,
}

#[derive(Copy, Clone, Default, ValueEnum)]
enum Policy {
    /// When the CPU touches them
    #[default]
    Lazy,
    /// As soon as the device is done with them
    Eager,
    /// Page by page as one of the two, by what became of the page before; and both sides keep one that they fight over
    Adaptive,
}

/// Counts, checks, and prints what happened.
///
/// # Errors
/// The input is bad ([`failure::BadInput`]), or the machine cannot do it.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let plan = Plan::new(args)?;
    device::check(args)?;
    let input = Input::open(&args.file)?;
    let output = args.out.as_deref().map(|path| Output::open(path, &input)).transpose()?;
    shrunk::install().context("the SIGBUS handler cannot be installed")?;
    let space = space(args, plan)?;
    let table = Table::make(&space, plan.memory, args.unit.values() * size_of::<u64>())?;
    let mut devices = Devices::start(args, &space, &table.region)?;

    let progress = progress(&input);
    let shared = count::shared(&mut devices, &table.region, &input, args.unit, args.cpu_threads, &progress);
    // A failure may be due to the change, and the change is what can be remedied.
    input.check_unchanged()?;
    let shared = shared?;
    progress.set_message("checking");
    let reference = count::reference(&input, args.unit, &progress)?;
    input.check_unchanged()?;
    progress.finish_and_clear();

    if let Some(output) = output {
        output.write(&shared.counts.counters)?;
    }
    let report = Report::new((args.mode, plan.memory), table.backend(), &space, &shared, &devices, &reference);
    let text = if args.json {
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        Words { args, shared: &shared, report: &report }.to_string()
    };
    io::stdout().write_all(text.as_bytes()).context("standard output")?;
    let Some(defect) = report.defect() else { return Ok(ExitCode::SUCCESS) };
    failure::say(format_args!("{:?}: wrong: {defect}; this is a defect of pagelease, please report it", args.file));
    Ok(ExitCode::FAILURE)
}

fn space(args: &Args, plan: Plan) -> Result<Space> {
    if let Some((signal, name)) = plan.signal() {
        let blocked = thread::threads_blocking(signal).unwrap_or_default();
        let remedy = if args.backend == Backend::Mprotect { "--backend minor" } else { "--faults monitor" };
        ensure!(
            blocked.is_empty(),
            "{name} was blocked when the program was started, but serving touches in-thread needs it; use {remedy}"
        );
    }
    let policy = match args.policy {
        Policy::Lazy => RestorePolicy::Lazy,
        Policy::Eager => RestorePolicy::Eager,
        Policy::Adaptive => RestorePolicy::Adaptive,
    };
    let space = Space::builder().faults(plan.faults).restore(policy);
    match plan.backend.map_or(space, |backend| space.backend(backend)).build() {
        Err(SpaceError::Userfaultfd(OpenError::Missing { missing: Features::RWP, .. })) => {
            bail!(
                "--backend rwprotect needs userfaultfd RWP of Linux 7.3, which this kernel lacks; use another, or leave it out"
            )
        }
        space => Ok(space?),
    }
}

/// A bar for both counts, on a terminal.
fn progress(input: &Input) -> ProgressBar {
    let target =
        if io::stderr().is_terminal() { ProgressDrawTarget::stderr_with_hz(10) } else { ProgressDrawTarget::hidden() };
    let template = "{msg:8} {wide_bar} {binary_bytes_per_sec} {eta}";
    let style = ProgressStyle::with_template(template).expect("the template is right");
    ProgressBar::with_draw_target(Some(2 * input.len()), target).with_style(style).with_message("counting")
}

fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=THREADS_MAX) => Ok(count),
        Ok(0) => Err(format!("nothing is counted without threads, give 1 to {THREADS_MAX}")),
        _ => Err(format!("give a number from 1 to {THREADS_MAX}")),
    }
}

/// The device's worker has a CPU as well.
fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cpus| cpus.get().saturating_sub(1).clamp(1, THREADS_MAX))
}
