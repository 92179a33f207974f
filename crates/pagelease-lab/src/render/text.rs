//! Lanes of plain text: one column an actor, one line a step, and at the right what the step changed.

use super::{MIN_WIDTH, breaks, changes, facts, label, plain, wrap};
use crate::history::History;

/// Between two columns.
const GAP: usize = 2;

/// Marks a lane where its actor does nothing.
const IDLE: &str = "|";

/// A lane may be wider than what stands in it, but not narrower than this: names would be in shreds.
const MIN_LANE: usize = 11;

/// What the column of changes gets at least, if it needs it.
const MIN_CHANGES: usize = 28;

pub(super) fn render(history: &History, width: usize) -> String {
    let width = width.max(MIN_WIDTH);
    let mut lines = Vec::new();
    for (word, fact) in facts(history) {
        // A command that is broken in two is no command any more.
        let fact_width = if word == "replay" { usize::MAX } else { width - 10 };
        hang(&mut lines, word, &fact, fact_width);
    }
    lines.push(String::new());
    initial(&mut lines, history, width);
    Lanes::new(history, width).draw(&mut lines);
    if !history.sentence.is_empty() {
        lines.push(String::new());
        lines.extend(wrap(&plain(&history.sentence), width));
    }
    lines.iter().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// A word in a column of ten, and a text beside it.
fn hang(lines: &mut Vec<String>, word: &str, text: &str, width: usize) {
    for (i, line) in wrap(text, width).into_iter().enumerate() {
        lines.push(format!("{:<10}{line}", if i == 0 { word } else { "" }));
    }
}

/// The state before the first step, a line a group: without it, 'what changed' says only half.
fn initial(lines: &mut Vec<String>, history: &History, width: usize) {
    let groups = history.initial.chunk_by(|one, other| one.group == other.group);
    for (i, cells) in groups.enumerate() {
        let values: Vec<_> = cells.iter().map(|cell| format!("{}: {}", cell.name, cell.value)).collect();
        let text = plain(&format!("{} {}", cells[0].group, values.join("; ")));
        hang(lines, if i == 0 { "at first" } else { "" }, &text, width - 10);
    }
    if !history.initial.is_empty() {
        lines.push(String::new());
    }
}

/// Lanes of at most `room` together, if they can be. The widest gives way first, so that what is short stays in one line.
fn shrink(mut lanes: Vec<usize>, room: usize) -> Vec<usize> {
    while lanes.iter().sum::<usize>() > room {
        match lanes.iter_mut().max() {
            Some(widest) if *widest > MIN_LANE => *widest -= 1,
            _ => break,
        }
    }
    lanes
}

struct Lanes<'a> {
    history: &'a History,
    /// The headings of the lanes: the actors, or one for all of them where there is no room for a lane each.
    headings: Vec<&'a str>,
    /// What stands in the lane, for each step.
    labels: Vec<String>,
    /// What each step changed.
    changes: Vec<Vec<String>>,
    number_width: usize,
    lane_widths: Vec<usize>,
    changes_width: usize,
}

impl<'a> Lanes<'a> {
    fn new(history: &'a History, width: usize) -> Self {
        let labels = history.steps.iter().map(label).collect();
        let changes = (0..history.steps.len()).map(|index| changes(history, index)).collect();
        let headings = history.actors.iter().map(String::as_str).collect();
        let mut lanes =
            Self { history, headings, labels, changes, number_width: 0, lane_widths: Vec::new(), changes_width: 0 };
        let margin = if history.loop_from.is_some() { 2 } else { 0 };
        lanes.number_width = margin + history.steps.len().to_string().len().max(4);
        if !lanes.fit(width) {
            lanes.headings = vec!["actor and step"];
            let actor = |index: usize| &history.actors[history.steps[index].actor];
            lanes.labels = lanes.labels.iter().enumerate().map(|(i, label)| format!("{}: {label}", actor(i))).collect();
            lanes.fit(width);
        }
        lanes
    }

    /// Shares the width out such that the whole takes the fewest lines. False if some lane gets less than it can do with.
    fn fit(&mut self, width: usize) -> bool {
        let mut wanted: Vec<_> = self.headings.iter().map(|heading| heading.chars().count().max(1)).collect();
        for (index, label) in self.labels.iter().enumerate() {
            let lane = self.lane(index);
            wanted[lane] = wanted[lane].max(label.chars().count());
        }
        let room = width.saturating_sub(self.number_width + GAP * (wanted.len() + 1));
        let most = room.saturating_sub(MIN_CHANGES.min(room / 2));
        let least: usize = wanted.iter().map(|&want| want.min(MIN_LANE)).sum();
        let shares = (least.min(most)..=most).rev().map(|for_lanes| {
            let lanes = shrink(wanted.clone(), for_lanes);
            let changes = room.saturating_sub(lanes.iter().sum()).max(1);
            (lanes, changes)
        });
        let best = shares.min_by_key(|(lanes, changes)| self.height(lanes, *changes));
        (self.lane_widths, self.changes_width) = best.expect("the range has its end in it");
        least <= most
    }

    /// How many lines all steps take together.
    fn height(&self, lanes: &[usize], changes: usize) -> usize {
        let steps = 0..self.labels.len();
        steps
            .map(|index| wrap(&self.labels[index], lanes[self.lane(index)]).len().max(self.right(index, changes).len()))
            .sum()
    }

    /// What stands right of the lanes beside step `index`: a change is broken only where it does not fit into a line of its own.
    fn right(&self, index: usize, width: usize) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        for (at, change) in self.changes[index].iter().enumerate() {
            let change = if at + 1 < self.changes[index].len() { format!("{change};") } else { change.clone() };
            match lines.last_mut() {
                Some(line) if line.chars().count() + 1 + change.chars().count() <= width => {
                    line.push_str(&format!(" {change}"));
                }
                _ => lines.extend(wrap(&change, width)),
            }
        }
        if let Some(breaks) = breaks(&self.history.steps[index]) {
            lines.extend(wrap(&format!("<-- {breaks}"), width));
        }
        lines
    }

    fn lane(&self, index: usize) -> usize {
        if self.headings.len() == self.history.actors.len() { self.history.steps[index].actor } else { 0 }
    }

    fn draw(&self, lines: &mut Vec<String>) {
        let headings: Vec<_> =
            self.headings.iter().zip(&self.lane_widths).map(|(heading, &width)| wrap(&plain(heading), width)).collect();
        for row in 0..headings.iter().map(Vec::len).max().unwrap_or(1) {
            let cells = headings.iter().map(|heading| heading.get(row).map_or("", String::as_str));
            let (number, changed) = if row == 0 { ("step", "what changed") } else { ("", "") };
            lines.push(self.line("", number, cells, changed));
        }
        let loop_from = self.history.loop_from;
        for index in 0..self.history.steps.len() {
            if loop_from == Some(index) {
                lines.push("+-- for ever from here:".to_owned());
            }
            self.step(lines, index, if loop_from.is_some_and(|from| from <= index) { "|" } else { "" });
        }
        if let Some(from) = loop_from {
            lines.push(format!("+-- ... back to step {}, for ever", from + 1));
        }
    }

    fn step(&self, lines: &mut Vec<String>, index: usize, margin: &str) {
        let lane = self.lane(index);
        let label = wrap(&self.labels[index], self.lane_widths[lane]);
        let changed = self.right(index, self.changes_width);
        for row in 0..label.len().max(changed.len()) {
            let number = if row == 0 { (index + 1).to_string() } else { String::new() };
            let in_lane = label.get(row).map_or(IDLE, String::as_str);
            let cells = (0..self.lane_widths.len()).map(|at| if at == lane { in_lane } else { IDLE });
            lines.push(self.line(margin, &number, cells, changed.get(row).map_or("", String::as_str)));
        }
    }

    fn line<'t>(&self, margin: &str, number: &str, cells: impl Iterator<Item = &'t str>, changed: &str) -> String {
        let number_width = self.number_width - margin.len();
        let mut line = format!("{margin}{number:>number_width$}");
        for (cell, width) in cells.zip(&self.lane_widths) {
            line.push_str(&format!("{:GAP$}{cell:<width$}", ""));
        }
        line + &format!("{:GAP$}{changed}", "")
    }
}
