//! A [`History`] for a person to read, in four formats of the same content.
//!
//! Steps are numbered from 1, in every format: 0 is the state before the first one.

mod html;
mod json;
mod mermaid;
mod text;

use std::fmt;

pub use json::{ReadError, read};

use crate::history::{History, StepView};
use crate::property::Property;

/// A format of a history.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Format {
    /// Lanes of plain text, for a terminal.
    Text,
    /// A Mermaid sequence diagram, for a page of documentation or an issue.
    Mermaid,
    /// JSON, for programs. [`read`] reads it back.
    Json,
    /// One self-contained page to step through.
    Html,
}

impl Format {
    /// Every format.
    pub const ALL: &'static [Self] = &[Self::Text, Self::Mermaid, Self::Json, Self::Html];

    /// The name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Mermaid => "mermaid",
            Self::Json => "json",
            Self::Html => "html",
        }
    }

    /// The format of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|format| format.name() == name)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The width of text for whoever does not know better: a pipe, a file.
pub const DEFAULT_WIDTH: usize = 120;

/// Below this, lanes of text say nothing any more: a smaller width is taken as this one.
pub const MIN_WIDTH: usize = 40;

/// Renders `history`. Ends with a line break.
///
/// `width` is in characters, and for [`Format::Text`] only. No line is longer, but for a replay command that would not be one
/// any more if it were broken.
///
/// # Panics
///
/// If a step's actor or `loop_from` is out of range. [`read`] lets no such history in.
#[must_use]
pub fn render(history: &History, format: Format, width: usize) -> String {
    match format {
        Format::Text => text::render(history, width),
        Format::Mermaid => mermaid::render(history),
        Format::Json => json::render(history),
        Format::Html => html::render(history),
    }
}

/// What the header says, as pairs of a word and what it stands for.
fn facts(history: &History) -> Vec<(&'static str, String)> {
    let mut facts = vec![("design", plain(&history.design)), ("scenario", plain(&history.scenario))];
    if let Some(name) = &history.property {
        let asks = Property::named(name).map(|property| format!(": {}", property.asks()));
        facts.push(("property", plain(name) + &asks.unwrap_or_default()));
    }
    facts.push(("replay", format!("pagelease lab --replay {}", plain(&history.token))));
    facts
}

/// What a step is, in its lane.
fn label(step: &StepView) -> String {
    match step.detail.as_str() {
        "" => plain(&step.name),
        detail => plain(&format!("{}: {detail}", step.name)),
    }
}

/// What step `index` changed, one text a cell.
fn changes(history: &History, index: usize) -> Vec<String> {
    history.changes(index).map(|cell| plain(&format!("{} {}: {}", cell.group, cell.name, cell.value))).collect()
}

/// `breaks atomicity`, for a step that does.
fn breaks(step: &StepView) -> Option<String> {
    (!step.broken.is_empty()).then(|| plain(&format!("breaks {}", step.broken.join(", "))))
}

/// One line, whatever a model put into a name: a line break would end a lane, or a comment, half-way.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Breaks `text` into lines of at most `width` characters: at a blank (but not in `page 0`, if it can be helped), else behind a
/// joint of a name, else anywhere. At least one line.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let chars: Vec<char> = text.trim().chars().collect();
    let mut rest = chars.as_slice();
    let mut lines = Vec::new();
    while rest.len() > width {
        let blank = |at: &usize| rest[*at] == ' ';
        let numbered = |at: &usize| rest.get(at + 1).is_some_and(char::is_ascii_digit);
        let cut = (1..=width)
            .rev()
            .find(|at| blank(at) && !numbered(at))
            .or_else(|| (1..=width).rev().find(blank))
            .or_else(|| (1..=width).rev().find(|at| "_-/.:,".contains(rest[at - 1])))
            .unwrap_or(width);
        lines.push(rest[..cut].iter().collect());
        rest = &rest[cut..];
        while let [' ', tail @ ..] = rest {
            rest = tail;
        }
    }
    if !rest.is_empty() || lines.is_empty() {
        lines.push(rest.iter().collect());
    }
    lines
}
