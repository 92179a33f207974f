//! One figure: what was measured, its floor, and the goal; as a line of a table and as JSON.

use std::fmt::Write as _;

use serde::Serialize;

use super::stats::{Arms, Summary};

/// One case of a bench.
pub(super) struct Figure {
    case: String,
    measured: Measured,
    /// The most that the ratio should be.
    goal: Option<f64>,
    /// Something that the ratio does not say.
    note: String,
}

enum Measured {
    Time {
        value: Summary,
        floor: Summary,
    },
    /// Something else than time, of which the ratio is all there is to say.
    Count(f64),
}

/// A figure, as JSON. See `bench` for what the fields mean.
#[derive(Serialize)]
pub(super) struct Json {
    bench: &'static str,
    case: String,
    value_ns: Option<f64>,
    floor_ns: Option<f64>,
    ratio: f64,
    goal: Option<f64>,
    met: Option<bool>,
}

impl Figure {
    /// What `arms` found, where each sample is of `count` (pages, items).
    pub(super) fn of(case: impl Into<String>, arms: &Arms, count: usize) -> Self {
        Self::times(case, arms.value.summary().per(count), arms.floor.summary().per(count))
    }

    /// Two times.
    pub(super) fn times(case: impl Into<String>, value: Summary, floor: Summary) -> Self {
        Self { case: case.into(), measured: Measured::Time { value, floor }, goal: None, note: String::new() }
    }

    /// Something else than a time.
    pub(super) fn count(case: impl Into<String>, ratio: f64) -> Self {
        Self { case: case.into(), measured: Measured::Count(ratio), goal: None, note: String::new() }
    }

    /// The ratio should be at most this.
    pub(super) fn goal(mut self, at_most: f64) -> Self {
        self.goal = Some(at_most);
        self
    }

    /// The value should be at most so many nanoseconds more than the floor.
    pub(super) fn goal_beyond_floor_ns(self, ns: f64) -> Self {
        let floor_ns = self.floor_ns().unwrap_or(ns);
        self.goal((floor_ns + ns) / floor_ns)
    }

    /// The value should be at most so many nanoseconds.
    pub(super) fn goal_ns(self, ns: f64) -> Self {
        let floor_ns = self.floor_ns().unwrap_or(ns);
        self.goal(ns / floor_ns)
    }

    pub(super) fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    pub(super) fn value_ns(&self) -> Option<f64> {
        match self.measured {
            Measured::Time { value, .. } => Some(value.median),
            Measured::Count(_) => None,
        }
    }

    pub(super) fn floor_ns(&self) -> Option<f64> {
        match self.measured {
            Measured::Time { floor, .. } => Some(floor.median),
            Measured::Count(_) => None,
        }
    }

    pub(super) fn ratio(&self) -> f64 {
        match self.measured {
            Measured::Time { value, floor } => value.median / floor.median,
            Measured::Count(ratio) => ratio,
        }
    }

    fn met(&self) -> Option<bool> {
        self.goal.map(|goal| self.ratio() <= goal)
    }

    pub(super) fn to_json(&self, bench: &'static str) -> Json {
        Json {
            bench,
            case: self.case.clone(),
            value_ns: self.value_ns(),
            floor_ns: self.floor_ns(),
            ratio: self.ratio(),
            goal: self.goal,
            met: self.met(),
        }
    }
}

/// The figures as a table, one a line, the middle half of the samples beside each median.
pub(super) fn table(figures: &[Figure]) -> String {
    let width = figures.iter().map(|figure| figure.case.chars().count()).max().unwrap_or(0).max(4);
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(
        out,
        "  {:width$}  {:>10} {:>21}  {:>10} {:>21}  {:>7} {:>10}",
        "case", "value", "p25 .. p75", "floor", "p25 .. p75", "ratio", "goal"
    );
    for figure in figures {
        let _ = write!(out, "  {:width$}  ", figure.case);
        match figure.measured {
            Measured::Time { value, floor } => {
                let _ = write!(out, "{}  {}", quartiles(value), quartiles(floor));
            }
            Measured::Count(_) => {
                let _ = write!(out, "{:66}", "");
            }
        }
        let _ = write!(out, "  {:>7}", short(figure.ratio()));
        let _ = match figure.goal {
            Some(goal) => write!(out, " {:>10}", format!("<= {}", short(goal))),
            None => write!(out, " {:>10}", "none"),
        };
        out.push_str(match figure.met() {
            Some(true) => "  met   ",
            Some(false) => "  MISSED",
            None => "        ",
        });
        if !figure.note.is_empty() {
            let _ = write!(out, "  {}", figure.note);
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
    }
    out
}

fn quartiles(times: Summary) -> String {
    let range = format!("{} .. {}", duration(times.p25), duration(times.p75));
    format!("{:>10} {range:>21}", duration(times.median))
}

/// A ratio to three figures.
fn short(ratio: f64) -> String {
    if ratio < 0.1 { format!("{ratio:.4}") } else { format!("{ratio:.3}") }
}

/// A time in the unit that suits it.
pub(super) fn duration(ns: f64) -> String {
    match ns {
        ..10.0 => format!("{ns:.2} ns"),
        ..1e3 => format!("{ns:.0} ns"),
        ..1e6 => format!("{:.2} us", ns / 1e3),
        _ => format!("{:.2} ms", ns / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure() -> Figure {
        let at = |median| Summary { p25: median, median, p75: median };
        Figure::times("a case", at(15.0), at(10.0))
    }

    #[test]
    fn a_goal_is_a_bound_on_the_ratio() {
        assert_eq!(figure().goal(1.5).met(), Some(true));
        assert_eq!(figure().goal(1.4).met(), Some(false));
        assert_eq!(figure().goal_beyond_floor_ns(5.0).goal, Some(1.5));
        assert_eq!(figure().goal_ns(12.0).goal, Some(1.2));
        assert_eq!(figure().met(), None);
    }

    #[test]
    fn json_has_the_documented_fields() {
        let json = serde_json::to_value(figure().goal(2.0).to_json("touch")).unwrap();
        let expected = serde_json::json!({
            "bench": "touch", "case": "a case",
            "value_ns": 15.0, "floor_ns": 10.0, "ratio": 1.5, "goal": 2.0, "met": true
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn the_table_shows_what_was_missed() {
        let table = table(&[figure().goal(1.2).note("for a reason"), Figure::count("a count", 0.001).goal(0.01)]);
        let lines: Vec<_> = table.lines().collect();
        assert!(lines[1].contains("15 ns") && lines[1].ends_with("MISSED  for a reason"), "{table}");
        assert!(lines[2].ends_with("0.0010  <= 0.0100  met"), "{table}");
    }
}
