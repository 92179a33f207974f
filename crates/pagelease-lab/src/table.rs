//! The table: every design against every property, decided.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::case::{Case, Checked, Path, Token};
use crate::catalogue::Entry;
use crate::graph::{TooLarge, collision_chance};
use crate::property::{Kind, Property, PropertySet};

/// What became of one property under one design.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// It holds in every history of every scenario.
    Holds,
    /// This breaks it.
    Broken {
        /// The steps of the shortest history that does, over all scenarios.
        steps: usize,
        /// Whether that history is infinite.
        infinite: bool,
        /// What replays it.
        token: String,
    },
    /// How much there is of it.
    Counted {
        /// In the history of one undisturbed operation (the scenario `alone`).
        alone: Option<u64>,
        /// In the worst history of any scenario; `None`: without bound.
        worst: Option<u64>,
        /// What replays that history.
        token: String,
    },
    /// No scenario of this design puts it to the test.
    Untested,
}

/// One design's line.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The design.
    pub design: &'static str,
    /// Who proposed it, or ships it.
    pub who: &'static str,
    /// The questions it belongs to.
    pub questions: &'static str,
    /// The verdicts, in the order of [`Property::ALL`].
    pub verdicts: Vec<(Property, Verdict)>,
    /// Distinct states, over all scenarios.
    pub states: usize,
    /// Those of the largest scenario.
    pub largest: usize,
    /// The longest of the shortest ways to a state.
    pub depth: u32,
    /// Time spent on one core.
    #[serde(skip)]
    pub time: Duration,
    /// Steps of the design that never fired, in any scenario.
    pub never_fired: Vec<&'static str>,
}

/// The whole table.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// The designs' lines.
    pub rows: Vec<Row>,
    /// How long it all took.
    #[serde(skip)]
    pub time: Duration,
}

/// What a progress line can show while [`Table::check`] works.
#[derive(Debug, Default)]
pub struct Progress {
    /// States found so far.
    pub states: AtomicU64,
    /// Cases done.
    pub done: AtomicUsize,
    /// All cases.
    pub cases: AtomicUsize,
}

impl Table {
    /// Checks every case of `entries` on `threads` threads, none of more than `limit` states.
    ///
    /// # Errors
    ///
    /// [`TooLarge`] for the first case that is.
    pub fn check(entries: &[Entry], threads: usize, limit: usize, progress: &Progress) -> Result<Self, TooLarge> {
        let begun = Instant::now();
        // A design's last scenarios are its largest: those first, so that no thread is left with a large one at the end.
        let mut cases: Vec<(usize, usize)> = entries
            .iter()
            .enumerate()
            .flat_map(|(row, entry)| (0..entry.cases.len()).map(move |case| (row, case)))
            .collect();
        cases.sort_by_key(|&(row, case)| (entries[row].cases.len() - case, row));
        progress.cases.store(cases.len(), Ordering::Relaxed);
        let next = AtomicUsize::new(0);
        let results = Mutex::new(vec![]);
        std::thread::scope(|scope| {
            for _ in 0..threads.max(1) {
                scope.spawn(|| {
                    while let Some(&(row, case)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let checked = entries[row].cases[case].check(limit, &progress.states);
                        let failed = checked.is_err();
                        results.lock().expect("no thread panics with the lock").push((row, case, checked));
                        progress.done.fetch_add(1, Ordering::Relaxed);
                        if failed {
                            next.store(cases.len(), Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        let mut results = results.into_inner().expect("no thread panics with the lock");
        results.sort_by_key(|&(row, case, _)| (row, case));
        let mut rows: Vec<Vec<(&dyn Case, Checked)>> = entries.iter().map(|_| Vec::new()).collect();
        for (row, case, checked) in results {
            rows[row].push((&*entries[row].cases[case], checked?));
        }
        let rows = entries.iter().zip(rows).map(|(entry, checked)| Row::new(entry, &checked)).collect();
        Ok(Self { rows, time: begun.elapsed() })
    }

    /// The line of this design.
    #[must_use]
    pub fn row(&self, design: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.design == design)
    }
}

impl Row {
    fn new(entry: &Entry, checked: &[(&dyn Case, Checked)]) -> Self {
        let tested = checked.iter().fold(PropertySet::NONE, |all, (_, case)| all.with(case.tested));
        let verdicts = Property::ALL.iter().map(|&property| {
            let verdict = match property.kind() {
                Kind::Count => counted(checked),
                _ if !tested.has(property) => Verdict::Untested,
                _ => broken(checked, property).unwrap_or(Verdict::Holds),
            };
            (property, verdict)
        });
        let fired: BTreeSet<_> = checked.iter().flat_map(|(_, case)| case.fired.keys().copied()).collect();
        let mut never_fired: Vec<_> = checked.iter().flat_map(|(case, _)| case.steps()).collect();
        never_fired.retain(|step| !fired.contains(step));
        never_fired.sort_unstable();
        never_fired.dedup();
        Self {
            design: entry.name,
            who: entry.who,
            questions: entry.questions,
            verdicts: verdicts.collect(),
            states: checked.iter().map(|(_, case)| case.states).sum(),
            largest: checked.iter().map(|(_, case)| case.states).max().unwrap_or(0),
            depth: checked.iter().map(|(_, case)| case.depth).max().unwrap_or(0),
            time: checked.iter().map(|(_, case)| case.time).sum(),
            never_fired,
        }
    }

    /// The verdict on `property`.
    #[must_use]
    pub fn verdict(&self, property: Property) -> &Verdict {
        &self.verdicts.iter().find(|(of, _)| *of == property).expect("a row has every property").1
    }
}

fn token(case: &dyn Case, path: &Path) -> String {
    let (design, scenario) = case.names();
    Token { design: design.to_owned(), scenario: scenario.to_owned(), path: path.clone() }.to_string()
}

/// The shortest of the histories that break `property`; of equally short ones the first scenario's.
fn broken(checked: &[(&dyn Case, Checked)], property: Property) -> Option<Verdict> {
    let findings =
        checked.iter().flat_map(|(case, checked)| checked.findings.iter().map(move |finding| (*case, finding)));
    let shortest = findings
        .filter(|(_, finding)| finding.property == property)
        .min_by_key(|(_, finding)| finding.path.choices.len())?;
    let (case, finding) = shortest;
    Some(Verdict::Broken {
        steps: finding.path.choices.len(),
        infinite: finding.path.loop_from.is_some(),
        token: token(case, &finding.path),
    })
}

fn counted(checked: &[(&dyn Case, Checked)]) -> Verdict {
    let alone =
        checked.iter().find(|(case, _)| case.names().1 == "alone").and_then(|(_, checked)| checked.spurious.count);
    let worst = checked.iter().max_by_key(|(_, checked)| {
        // Of several without bound, the one with the shortest history.
        let length = checked.spurious.path.choices.len();
        (checked.spurious.count.unwrap_or(u64::MAX), std::cmp::Reverse(length))
    });
    worst.map_or(Verdict::Untested, |(case, checked)| Verdict::Counted {
        alone,
        worst: checked.spurious.count,
        token: token(*case, &checked.spurious.path),
    })
}

impl Verdict {
    /// A few characters for the table: `ok`, `✗16` (broken in 16 steps), `✗25∞` (by a history of 25 steps that goes round),
    /// `1/∞` (counted: alone, and at worst), `-` (not put to the test).
    #[must_use]
    pub fn short(&self) -> String {
        let number = |count: &Option<u64>| count.map_or_else(|| "∞".to_owned(), |count| count.to_string());
        match self {
            Self::Holds => "ok".to_owned(),
            Self::Broken { steps, infinite, .. } => format!("✗{steps}{}", if *infinite { "∞" } else { "" }),
            Self::Counted { alone, worst, .. } => format!("{}/{}", number(alone), number(worst)),
            Self::Untested => "-".to_owned(),
        }
    }
}

impl Table {
    /// The table as text, with states, depth and time.
    #[must_use]
    pub fn text(&self) -> String {
        let heads: Vec<(&str, &str)> = Property::ALL.iter().map(|property| head(*property)).collect();
        let mut widths: Vec<usize> = heads.iter().map(|(upper, lower)| upper.len().max(lower.len())).collect();
        for row in &self.rows {
            for (width, (_, verdict)) in widths.iter_mut().zip(&row.verdicts) {
                *width = (*width).max(verdict.short().chars().count());
            }
        }
        let name = self.rows.iter().map(|row| row.design.len()).max().unwrap_or(0);
        let mut text = String::new();
        for line in 0..2 {
            let _ = write!(text, "{:name$}", if line == 0 { "" } else { "design" });
            for (head, width) in heads.iter().zip(&widths) {
                let _ = write!(text, "  {:>width$}", if line == 0 { head.0 } else { head.1 });
            }
            let _ = writeln!(
                text,
                "  {:>9} {:>5} {:>6}",
                if line == 0 { "" } else { "states" },
                if line == 0 { "" } else { "depth" },
                if line == 0 { "" } else { "time" }
            );
        }
        for row in &self.rows {
            let _ = write!(text, "{:name$}", row.design);
            for ((_, verdict), width) in row.verdicts.iter().zip(&widths) {
                let _ = write!(text, "  {:>width$}", verdict.short());
            }
            let _ = writeln!(text, "  {:>9} {:>5} {:>5.1}s", row.states, row.depth, row.time.as_secs_f64());
        }
        text
    }

    /// What the table's signs mean, what each column asks, and which steps never fired.
    #[must_use]
    pub fn legend(&self) -> String {
        let mut text = String::from(
            "ok    it holds in every history of every scenario\n\
             ✗16   broken; the shortest history has 16 steps\n\
             ✗25∞  broken by a fair history that goes round for ever: a shortest way in and a round, 25 steps\n\
             1/∞   counted: in one undisturbed operation, and in the worst history, fair or not (∞: without bound)\n\
             -     no scenario of the design puts it to the test\n\n",
        );
        for property in Property::ALL {
            let _ = writeln!(text, "{:12} {}", property.name(), property.asks());
        }
        text.push('\n');
        let steps: BTreeSet<_> = self.rows.iter().flat_map(|row| row.never_fired.iter().copied()).collect();
        if steps.is_empty() {
            text.push_str("Every step of every design fired in some scenario.\n");
        }
        for step in steps {
            let designs: Vec<_> =
                self.rows.iter().filter(|row| row.never_fired.contains(&step)).map(|row| row.design).collect();
            let _ = writeln!(text, "never fired: {step} ({})", designs.join(", "));
        }
        text
    }

    /// How fast, and how sure, in one line.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "figures for a reader")]
    pub fn figures(&self) -> String {
        let states: usize = self.rows.iter().map(|row| row.states).sum();
        let largest = self.rows.iter().map(|row| row.largest).max().unwrap_or(0);
        format!(
            "{states} states in {:.1} s, {:.0} a second; the largest check has {largest}. States are compared whole: no two are \
             taken for one. A checker that keeps 64 bits of each would do so in that check with a chance of {:.0e}, at most.",
            self.time.as_secs_f64(),
            states as f64 / self.time.as_secs_f64(),
            collision_chance(largest as u64),
        )
    }

    /// The table in Markdown, without times: the same in every run.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = String::from("| design |");
        for property in Property::ALL {
            let _ = write!(text, " {} |", property.name());
        }
        text.push_str(" states | depth |\n|---|");
        text.push_str(&"---|".repeat(Property::ALL.len()));
        text.push_str("---:|---:|\n");
        for row in &self.rows {
            let _ = write!(text, "| {} |", row.design);
            for (_, verdict) in &row.verdicts {
                let _ = write!(text, " {} |", verdict.short());
            }
            let _ = writeln!(text, " {} | {} |", row.states, row.depth);
        }
        text
    }
}

/// A property's name over two lines.
fn head(property: Property) -> (&'static str, &'static str) {
    match property {
        Property::Atomicity => ("atom-", "icity"),
        Property::Count => ("", "count"),
        Property::Zapped => ("", "zapped"),
        Property::Protected => ("pro-", "tected"),
        Property::Snapshot => ("snap-", "shot"),
        Property::ForkSucceeds => ("fork-", "ok"),
        Property::ClaimSucceeds => ("claim-", "ok"),
        Property::SelfRetry => ("self-", "retry"),
        Property::Pins => ("", "pins"),
        Property::OwnFault => ("own-", "fault"),
        Property::RepeatEnds => ("repeat-", "ends"),
        Property::ClaimEnds => ("claim-", "ends"),
        Property::FaultEnds => ("fault-", "ends"),
        Property::ForkEnds => ("fork-", "ends"),
        Property::UnmapEnds => ("unmap-", "ends"),
        Property::Progress => ("pro-", "gress"),
        Property::Spurious => ("spu-", "rious"),
    }
}
