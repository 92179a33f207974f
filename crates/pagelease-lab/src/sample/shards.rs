//! What shards printed, put together again: read, merged, shown.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::io::{self, BufRead};

use super::{Line, LineError, Shard, Tally};
use crate::property::Property;

/// A line of JSON lines that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is no line of a run.
    #[error("{at}: {error}")]
    Line {
        /// The input's name and the line's number, from 1.
        at: String,
        /// What is wrong with it.
        error: LineError,
    },
    /// The input cannot be read.
    #[error("{0}: {1}")]
    Io(String, io::Error),
}

/// The lines of an input, each with the input's name and its number there, for [`merge_named`]. Empty lines are left out.
///
/// # Errors
///
/// [`ReadError`] for the first line that is none: the last of a file that was not written to its end, for one.
pub fn read(name: &str, input: impl BufRead) -> Result<Vec<(String, Line)>, ReadError> {
    let mut lines = Vec::new();
    for (number, text) in input.lines().enumerate() {
        let text = text.map_err(|error| ReadError::Io(name.to_owned(), error))?;
        if !text.trim().is_empty() {
            let at = format!("{name}:{}", number + 1);
            let line = Line::parse(&text).map_err(|error| ReadError::Line { at: at.clone(), error })?;
            lines.push((at, line));
        }
    }
    Ok(lines)
}

/// Lines that are not parts of one run. They are called by the names they were given.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum MergeError {
    /// One is wrong by itself.
    #[error("{at}: {error}")]
    Line {
        /// Its name.
        at: String,
        /// What is wrong with it.
        error: LineError,
    },
    /// Two are of different runs.
    #[error("{at} has another {what} than {first}: they are not of one run")]
    Plan {
        /// The one.
        at: String,
        /// The other.
        first: String,
        /// What they differ in.
        what: &'static str,
    },
    /// Two have the same histories.
    #[error("{at} and {first} both have shard {shard}: it would count twice")]
    Twice {
        /// The one.
        at: String,
        /// The other.
        first: String,
        /// What both have.
        shard: Shard,
    },
    /// Two are parts of the same run, differently divided: they may have histories in common.
    #[error("{at} is of {of} shards and {first} of {first_of}: they may have histories in common")]
    Split {
        /// The one.
        at: String,
        /// The other.
        first: String,
        /// Into how many the run of the one was divided.
        of: u32,
        /// And that of the other.
        first_of: u32,
    },
}

/// [`merge_named`], for lines without names: they are called `line 1`, `line 2` and so on.
///
/// # Errors
///
/// [`MergeError`].
pub fn merge(lines: &[Line]) -> Result<Vec<Line>, MergeError> {
    merge_named(lines.iter().enumerate().map(|(place, line)| (format!("line {}", place + 1), line.clone())))
}

/// Sums the parts of a run: one line a case, by name, the same in whatever order and grouping they are merged. A line
/// without all its shards says which it has; see [`Line::is_whole`] and [`Line::missing`].
///
/// # Errors
///
/// [`MergeError`], when they are not parts of one run, or some are there twice.
pub fn merge_named(lines: impl IntoIterator<Item = (String, Line)>) -> Result<Vec<Line>, MergeError> {
    let mut run: Option<(String, Line)> = None;
    // Each case's sum, the name of its first line, and who brought each shard.
    let mut parts = BTreeMap::<(String, String), (Line, String, BTreeMap<u32, String>)>::new();
    for (at, line) in lines {
        line.check().map_err(|error| MergeError::Line { at: at.clone(), error })?;
        let (first, plan) = run.get_or_insert_with(|| (at.clone(), line.clone()));
        let same = [
            ("version of the program", line.version == plan.version),
            ("seed", line.seed == plan.seed),
            ("number of histories", line.histories == plan.histories),
            ("limit of steps", line.steps_max == plan.steps_max),
        ];
        if let Some((what, _)) = same.into_iter().find(|(_, same)| !same) {
            return Err(MergeError::Plan { at, first: first.clone(), what });
        }
        let (sum, first, shards) = parts.entry((line.design.clone(), line.scenario.clone())).or_insert_with(|| {
            let none = Line { shards: Vec::new(), tally: Tally::default(), ..line.clone() };
            (none, at.clone(), BTreeMap::new())
        });
        if sum.of != line.of {
            return Err(MergeError::Split { at, first: first.clone(), of: line.of, first_of: sum.of });
        }
        for index in line.shards {
            if let Some(first) = shards.insert(index, at.clone()) {
                return Err(MergeError::Twice { at, first, shard: Shard { index, of: line.of } });
            }
        }
        sum.tally.add(&line.tally);
    }
    let sums = parts.into_values();
    Ok(sums.map(|(sum, _, shards)| Line { shards: shards.into_keys().collect(), ..sum }.whole()).collect())
}

/// The lines of one run as a table, for a reader: a row a case, a column for each property that some history broke, and
/// beneath the row the shortest history that did.
#[must_use]
pub fn text(lines: &[Line]) -> String {
    let Some(plan) = lines.first() else { return String::from("No case was sampled.\n") };
    let properties: BTreeSet<Property> = lines.iter().flat_map(|line| line.tally.broken.keys().copied()).collect();
    let mut rows = vec![["design", "scenario", "histories", "steps", "ended", "spurious"].map(str::to_owned).to_vec()];
    rows[0].extend(properties.iter().map(ToString::to_string));
    for Line { design, scenario, tally, .. } in lines {
        let figures = [tally.done, tally.steps, tally.ended, tally.spurious_worst].map(|figure| figure.to_string());
        let mut row = vec![design.clone(), scenario.clone()];
        row.extend(figures);
        row.extend(properties.iter().map(|property| {
            tally.broken.get(property).map_or_else(|| "-".to_owned(), |broken| broken.histories.to_string())
        }));
        rows.push(row);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let mut text = format!(
        "Seed {}: {} histories of each design in each scenario, each of at most {} steps.\n\n",
        plan.seed, plan.histories, plan.steps_max
    );
    let notes = std::iter::once(None).chain(lines.iter().map(Some));
    for (row, line) in rows.iter().zip(notes) {
        let _ = write!(text, "{:name$}  {:scenario$}", row[0], row[1], name = widths[0], scenario = widths[1]);
        for (cell, width) in row.iter().zip(&widths).skip(2) {
            let _ = write!(text, "  {cell:>width$}");
        }
        text.push('\n');
        let Some(line) = line else { continue };
        for (property, broken) in &line.tally.broken {
            let _ = writeln!(text, "    {property:12} {}", broken.token);
        }
        if !line.is_whole() {
            let missing: Vec<String> = line.missing().take(10).map(|index| index.to_string()).collect();
            let more = if u64::from(line.of) - line.shards.len() as u64 > 10 { ", ..." } else { "" };
            let _ = writeln!(text, "    incomplete: of {} shards it lacks {}{more}", line.of, missing.join(", "));
        }
    }
    text.push_str(
        "\nspurious: the most in one history. Under a property: how many histories broke it; -: none did, which proves nothing.\n",
    );
    text
}
