//! Exhaustive checks: the table, and one design's shortest history.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pagelease_lab::Property;
use pagelease_lab::case::Token;
use pagelease_lab::catalogue::{self, Entry};
use pagelease_lab::render::Format;
use pagelease_lab::table::{Progress, Table, Verdict};

use super::TableFormat;
use crate::failure::BadInput;

/// The most states of one check: at 100 bytes each (the state, its steps, the index) they fit into 4 GiB, two at a time.
const STATES_MAX: usize = 20_000_000;

/// Prints the table of `designs`, or of all.
pub(super) fn table(designs: &[String], format: TableFormat, threads: usize) -> Result<ExitCode> {
    let entries = if designs.is_empty() {
        catalogue::all()
    } else {
        designs.iter().map(|name| catalogue::design(name)).collect::<Result<_, _>>().map_err(super::bad)?
    };
    let table = check(&entries, threads)?;
    let mut out = std::io::stdout().lock();
    match format {
        TableFormat::Text => writeln!(out, "{}\n{}\n{}", table.text(), table.legend(), table.figures())?,
        TableFormat::Markdown => write!(out, "{}", table.markdown())?,
        TableFormat::Json => writeln!(out, "{}", serde_json::to_string_pretty(&table)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Checks `entries`, with a line of progress on standard error.
fn check(entries: &[Entry], threads: usize) -> Result<Table> {
    let progress = Progress::default();
    let target =
        if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = "{spinner} {pos} of {len} checks, {msg} states, {elapsed}";
    let bar = ProgressBar::with_draw_target(Some(0), target).with_style(ProgressStyle::with_template(style)?);
    let table = std::thread::scope(|scope| {
        let work = scope.spawn(|| Table::check(entries, threads, STATES_MAX, &progress));
        while !work.is_finished() {
            bar.set_length(progress.cases.load(Ordering::Relaxed) as u64);
            bar.set_position(progress.done.load(Ordering::Relaxed) as u64);
            bar.set_message(progress.states.load(Ordering::Relaxed).to_string());
            bar.tick();
            std::thread::sleep(Duration::from_millis(50));
        }
        work.join()
    });
    bar.finish_and_clear();
    match table {
        Ok(table) => Ok(table.map_err(super::bad)?),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Prints the shortest history that breaks `property` under `design`.
pub(super) fn show(
    design: &str,
    property: Property,
    scenario: Option<&str>,
    format: Format,
    output: Option<&Path>,
) -> Result<ExitCode> {
    let mut entry = catalogue::design(design).map_err(super::bad)?;
    if let Some(scenario) = scenario {
        entry.case(scenario).map_err(super::bad)?;
        if entry.large.iter().any(|case| case.names().1 == scenario) {
            return Err(super::bad(format!("{scenario} is too large to explore; sample it with --random SEED")).into());
        }
        entry.cases.retain(|case| case.names().1 == scenario);
    }
    let table = check(std::slice::from_ref(&entry), super::threads(None))?;
    let row = &table.rows[0];
    let place = scenario.map_or_else(|| "in every scenario".to_owned(), |scenario| format!("in {scenario}"));
    let token = match row.verdict(property) {
        Verdict::Broken { token, .. } => token,
        Verdict::Counted { worst: Some(0), .. } => {
            return nothing(&format!("{property} is 0 under {design} {place} ({} states)", row.states), format, output);
        }
        Verdict::Counted { token, .. } => token,
        Verdict::Holds => {
            return nothing(
                &format!("{property} holds under {design} {place} ({} states)", row.states),
                format,
                output,
            );
        }
        Verdict::Untested => {
            return nothing(&format!("{property} is not put to the test under {design} {place}"), format, output);
        }
    };
    let token: Token = token.parse().expect("the lab reads what it writes");
    let case = entry.case(&token.scenario).map_err(super::bad)?;
    let history = case.history(&token.path, Some(property)).map_err(super::bad)?;
    match output {
        None => super::print(&history, format, &mut std::io::stdout().lock())?,
        Some(path) => {
            let mut file = std::fs::File::create(path)
                .map_err(|error| BadInput::new(format!("cannot write {path:?}: {error}")))?;
            super::print(&history, format, &mut file).with_context(|| format!("{path:?} cannot be written"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// There is no history: said, unless somebody waits for one in a file or a format of its own.
fn nothing(what: &str, format: Format, output: Option<&Path>) -> Result<ExitCode> {
    if format != Format::Text || output.is_some() {
        return Err(BadInput::new(format!("{what}: there is no history to print as {}", format.name())).into());
    }
    writeln!(std::io::stdout().lock(), "{what}: there is no history to show")?;
    Ok(ExitCode::SUCCESS)
}
