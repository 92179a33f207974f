//! Every design that the lab knows, each with its cases. A new model joins here.

use std::fmt;

use crate::case::{Case, Token};
use crate::kernel::{self, Kernel};
use crate::pagelease::{self, Pagelease};

/// A design and the cases it is checked in.
pub struct Entry {
    /// The design's name.
    pub name: &'static str,
    /// Who proposed it, or ships it; in one line.
    pub who: &'static str,
    /// The questions of docs/VERDICTS.md that it belongs to.
    pub questions: &'static str,
    /// The cases that are explored whole.
    pub cases: Vec<Box<dyn Case>>,
    /// The cases too large for that, which are sampled.
    pub large: Vec<Box<dyn Case>>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("name", &self.name).field("cases", &self.cases.len()).finish_non_exhaustive()
    }
}

/// Every design, in the order of the table: the kernel's, then this project's own.
#[must_use]
pub fn all() -> Vec<Entry> {
    let kernel = kernel::design::ALL.iter().map(|&design| {
        let case = |&scenario: &kernel::Scenario| Box::new(Kernel { design, scenario }) as Box<dyn Case>;
        let main = design.questions == "all";
        Entry {
            name: design.name,
            who: design.who,
            questions: design.questions,
            cases: kernel::scenario::ALL.iter().filter(|scenario| main || !scenario.main_only).map(case).collect(),
            large: kernel::scenario::LARGE.iter().map(case).collect(),
        }
    });
    let shipped = pagelease::Design::all().into_iter().map(|design| {
        let case = |scenario| Box::new(Pagelease::new(design, scenario)) as Box<dyn Case>;
        Entry {
            name: design.name(),
            who: design.who(),
            questions: "all",
            cases: pagelease::SCENARIOS.iter().map(case).collect(),
            large: Vec::new(),
        }
    });
    kernel.chain(shipped).collect()
}

/// A name that the lab does not know.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unknown {
    /// No such design.
    #[error("no design is called `{0}`; `pagelease lab list` lists them")]
    Design(String),
    /// No such scenario of this design.
    #[error("`{design}` has no scenario `{scenario}`; it has {known}")]
    Scenario {
        /// The design.
        design: String,
        /// What was asked for.
        scenario: String,
        /// What there is.
        known: String,
    },
}

/// The design of this name.
///
/// # Errors
///
/// [`Unknown::Design`].
pub fn design(name: &str) -> Result<Entry, Unknown> {
    all().into_iter().find(|entry| entry.name == name).ok_or_else(|| Unknown::Design(name.to_owned()))
}

impl Entry {
    /// The case of this scenario, large ones included.
    ///
    /// # Errors
    ///
    /// [`Unknown::Scenario`].
    pub fn case(&self, scenario: &str) -> Result<&dyn Case, Unknown> {
        let mut cases = self.cases.iter().chain(&self.large);
        cases.find(|case| case.names().1 == scenario).map(|case| &**case).ok_or_else(|| {
            let known: Vec<_> = self.cases.iter().chain(&self.large).map(|case| case.names().1).collect();
            Unknown::Scenario { design: self.name.to_owned(), scenario: scenario.to_owned(), known: known.join(", ") }
        })
    }
}

/// The history that `token` names, as breaking the property that its last step breaks, or the liveness property that it
/// leaves owed.
///
/// # Errors
///
/// A name in it is unknown, or there is no such history.
pub fn replay(token: &Token) -> Result<crate::history::History, ReplayError> {
    let entry = design(&token.design)?;
    let case = entry.case(&token.scenario)?;
    Ok(case.history(&token.path, None)?)
}

/// Why a token cannot be replayed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ReplayError {
    /// It names what the lab does not know.
    #[error(transparent)]
    Unknown(#[from] Unknown),
    /// Its steps are not possible.
    #[error(transparent)]
    Steps(#[from] crate::case::ReplayError),
}
