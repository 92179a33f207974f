//! docs/VERDICTS.md: what of it is generated. The words are written by hand; every figure comes from a table that was checked.
//!
//! A generated part stands between `<!-- generated: NAME -->` and `<!-- end -->`: `table`, the whole table; `Q1` to `Q9`, the
//! verdicts that answer a question, each with the command that shows it.

use std::fmt::Write;

use crate::property::Property;
use crate::table::{Table, Verdict};

/// A question, and the verdicts that answer it.
#[derive(Copy, Clone, Debug)]
pub struct Question {
    /// `Q1` to `Q9`.
    pub name: &'static str,
    /// Which verdicts: designs, and what of each.
    pub rows: &'static [(&'static str, &'static [Property])],
}

/// The questions, in order.
pub const QUESTIONS: &[Question] = &[
    Question {
        name: "Q1",
        rows: &[
            ("split-always-2021", &[Property::SelfRetry, Property::ClaimEnds]),
            ("linux-2021", &[Property::SelfRetry]),
            ("linux-7.3", &[Property::SelfRetry]),
            ("filter-none", &[Property::SelfRetry]),
            ("filter-thread", &[Property::SelfRetry]),
            ("filter-token", &[Property::SelfRetry]),
            ("begin-locked", &[Property::SelfRetry]),
            ("thread-unlock-early", &[Property::OwnFault]),
            ("token-unlock-early", &[Property::OwnFault]),
            ("all-mended-unlocked", &[Property::OwnFault, Property::ClaimEnds]),
            ("pagelease", &[Property::SelfRetry, Property::OwnFault]),
        ],
    },
    Question {
        name: "Q2",
        rows: &[
            ("split-always", &[Property::SelfRetry, Property::ClaimEnds]),
            ("thread-split-always", &[Property::SelfRetry]),
            ("token-split-always", &[Property::SelfRetry]),
            ("begin-locked-split", &[Property::SelfRetry]),
        ],
    },
    Question {
        name: "Q3",
        rows: &[
            ("linux-2021", &[Property::Spurious]),
            ("linux-7.3", &[Property::Spurious]),
            ("split-always", &[Property::Spurious]),
            ("token-split-always", &[Property::Spurious]),
            ("page-lock-only", &[Property::Spurious]),
            ("all-mended", &[Property::Spurious]),
            ("pagelease", &[Property::Spurious]),
            ("pagelease-inthread-eager", &[Property::Spurious]),
        ],
    },
    Question {
        name: "Q4",
        rows: &[
            ("page-lock-only", &[Property::Atomicity, Property::Zapped, Property::Protected, Property::Count]),
            ("page-lock-restore", &[Property::Zapped, Property::Protected]),
            ("linux-2021", &[Property::ClaimSucceeds]),
            ("linux-7.3", &[Property::Zapped, Property::Protected, Property::ClaimSucceeds]),
        ],
    },
    Question {
        name: "Q5",
        rows: &[
            ("linux-7.3", &[Property::Atomicity, Property::Zapped, Property::Protected, Property::Snapshot]),
            ("late", &[Property::Atomicity, Property::Zapped, Property::Protected, Property::Snapshot]),
            ("late-restore", &[Property::Zapped, Property::Protected]),
            ("late-checked", &[Property::Zapped, Property::Protected]),
            ("late-checked-restore", &[Property::Zapped, Property::UnmapEnds]),
            ("late-unlocked", &[Property::Atomicity]),
            ("late-unlocked-restore", &[Property::Atomicity]),
        ],
    },
    Question {
        name: "Q6",
        rows: &[
            ("restore-first", &[Property::Zapped, Property::Protected, Property::UnmapEnds]),
            ("page-lock-restore", &[Property::Zapped]),
            ("late-restore", &[Property::Zapped, Property::UnmapEnds]),
            ("late-checked-restore", &[Property::UnmapEnds]),
        ],
    },
    Question {
        name: "Q7",
        rows: &[
            ("linux-7.3", &[Property::RepeatEnds, Property::Progress]),
            ("eager", &[Property::RepeatEnds, Property::SelfRetry, Property::Progress]),
            ("residency", &[Property::Progress]),
            ("begin-locked", &[Property::Progress]),
            ("all-mended", &[Property::Progress]),
            ("pagelease", &[Property::Progress]),
            ("pagelease-eager", &[Property::Progress]),
        ],
    },
    Question {
        name: "Q8",
        rows: &[
            ("linux-7.3", &[Property::RepeatEnds]),
            ("claim-knows", &[Property::RepeatEnds, Property::SelfRetry]),
            ("gup-knows", &[Property::RepeatEnds, Property::Atomicity]),
            ("filter-thread", &[Property::RepeatEnds]),
            ("filter-token", &[Property::RepeatEnds]),
            ("begin-locked", &[Property::RepeatEnds, Property::ClaimEnds]),
            ("pins-refused", &[Property::Pins]),
            ("pagelease", &[Property::RepeatEnds, Property::Pins]),
        ],
    },
    Question {
        name: "Q9",
        rows: &[
            ("linux-2021", &[Property::ForkSucceeds]),
            ("linux-7.3", &[Property::ForkSucceeds, Property::Snapshot]),
            ("fork-waits", &[Property::ForkSucceeds, Property::ForkEnds, Property::Snapshot]),
            ("begin-locked-wait", &[Property::ForkSucceeds, Property::ForkEnds]),
            ("fork-restores", &[Property::ForkSucceeds, Property::ForkEnds, Property::Snapshot]),
            ("pagelease", &[Property::ForkSucceeds]),
        ],
    },
];

/// A document that [`update`] cannot fill in.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum UpdateError {
    /// There is no such generated part.
    #[error("nothing is generated under the name `{0}`; there are table and Q1 to Q9")]
    NoSuchPart(String),
    /// A generated part is not closed.
    #[error("`<!-- generated: {0} -->` has no `<!-- end -->`")]
    NotClosed(String),
    /// The document leaves out a part.
    #[error("the document has no `<!-- generated: {0} -->`")]
    Missing(&'static str),
}

const OPEN: &str = "<!-- generated: ";
const CLOSE: &str = "<!-- end -->";

/// The document with every generated part as `table` has it.
///
/// # Errors
///
/// [`UpdateError`].
pub fn update(document: &str, table: &Table) -> Result<String, UpdateError> {
    let (mut text, mut rest, mut seen) = (String::new(), document, Vec::new());
    while let Some((before, after)) = rest.split_once(OPEN) {
        let (name, after) = after.split_once(" -->").ok_or_else(|| UpdateError::NotClosed(after.to_owned()))?;
        let (_, after) = after.split_once(CLOSE).ok_or_else(|| UpdateError::NotClosed(name.to_owned()))?;
        let part = match QUESTIONS.iter().find(|question| question.name == name) {
            Some(question) => question.text(table),
            None if name == "table" => table.markdown(),
            None => return Err(UpdateError::NoSuchPart(name.to_owned())),
        };
        let _ = write!(text, "{before}{OPEN}{name} -->\n\n{part}\n{CLOSE}");
        seen.push(name);
        rest = after;
    }
    let parts = QUESTIONS.iter().map(|question| question.name).chain(["table"]);
    match parts.into_iter().find(|part| !seen.contains(part)) {
        Some(missing) => Err(UpdateError::Missing(missing)),
        None => Ok(text + rest),
    }
}

impl Question {
    /// Its verdicts as a table of Markdown.
    ///
    /// # Panics
    ///
    /// When `table` lacks one of its designs.
    #[must_use]
    pub fn text(&self, table: &Table) -> String {
        let mut text = String::from("| design | property | verdict | |\n|---|---|---|---|\n");
        for &(design, properties) in self.rows {
            let row = table.row(design).unwrap_or_else(|| panic!("{design} is not in the table"));
            for &property in properties {
                let verdict = row.verdict(property);
                let shown = match verdict {
                    Verdict::Holds | Verdict::Untested => String::new(),
                    Verdict::Counted { worst: Some(0), .. } => String::new(),
                    Verdict::Broken { .. } | Verdict::Counted { .. } => {
                        format!("`pagelease lab show {design} {property}`")
                    }
                };
                let _ = writeln!(text, "| {design} | {property} | {} | {shown} |", verdict.words());
            }
        }
        text
    }
}

impl Verdict {
    /// The verdict in a few words.
    #[must_use]
    pub fn words(&self) -> String {
        let number = |count: &Option<u64>| count.map_or_else(|| "without bound".to_owned(), |count| count.to_string());
        match self {
            Self::Holds => "holds".to_owned(),
            Self::Untested => "not put to the test".to_owned(),
            Self::Broken { steps, infinite: false, token } => {
                format!("**broken** in {steps} steps ({})", scenario(token))
            }
            Self::Broken { steps, infinite: true, token } => {
                format!("**broken** by a loop within {steps} steps ({})", scenario(token))
            }
            Self::Counted { alone, worst, token } => {
                let worst = match worst {
                    Some(0) => "0 at worst".to_owned(),
                    Some(_) | None => format!("{} at worst ({})", number(worst), scenario(token)),
                };
                format!("{} alone, {worst}", number(alone))
            }
        }
    }
}

/// The scenario that a token is of.
fn scenario(token: &str) -> &str {
    token.split(':').nth(1).unwrap_or_default()
}
