//! JSON, and back.

use serde::{Deserialize, Serialize};

use crate::history::History;

/// The first field of the document. The number changes when a reader of an earlier one would misread it.
const FORMAT: &str = "pagelease-lab-history/1";

#[derive(Serialize)]
struct Written<'a> {
    format: &'static str,
    #[serde(flatten)]
    history: &'a History,
}

#[derive(Deserialize)]
struct Header {
    format: String,
}

pub(super) fn render(history: &History) -> String {
    let document = serde_json::to_string_pretty(&Written { format: FORMAT, history });
    document.expect("strings and numbers in structs always serialize") + "\n"
}

/// JSON that is no history.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Not JSON, or a field is missing or of another type.
    #[error("not a history: {0}")]
    Json(#[from] serde_json::Error),
    /// Another document, or another version of this one.
    #[error("the format is {0:?}, and should be {FORMAT:?}")]
    Format(String),
    /// It refers to a step, an actor or a cell that it does not have.
    #[error("the history is inconsistent: {0}")]
    Inconsistent(String),
}

/// Reads what [`Format::Json`](super::Format::Json) wrote.
///
/// # Errors
///
/// [`ReadError`] if `document` is something else, or contradicts itself.
pub fn read(document: &str) -> Result<History, ReadError> {
    let header: Header = serde_json::from_str(document)?;
    if header.format != FORMAT {
        return Err(ReadError::Format(header.format));
    }
    let history: History = serde_json::from_str(document)?;
    consistent(&history).map_err(ReadError::Inconsistent)?;
    Ok(history)
}

fn consistent(history: &History) -> Result<(), String> {
    let names = |cells: &[crate::Cell]| -> Vec<_> { cells.iter().map(|c| (c.group.clone(), c.name.clone())).collect() };
    let expected = names(&history.initial);
    for (number, step) in (1..).zip(&history.steps) {
        if step.actor >= history.actors.len() {
            return Err(format!("step {number} is actor {}'s, of {} actors", step.actor, history.actors.len()));
        }
        if names(&step.cells) != expected {
            return Err(format!("step {number} has other cells than the initial state"));
        }
    }
    match history.loop_from {
        Some(from) if from >= history.steps.len() => {
            Err(format!("it goes back to index {from}, of {} steps", history.steps.len()))
        }
        _ => Ok(()),
    }
}
