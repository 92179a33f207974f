//! What a history consists of, and how it is written.

use core::fmt;

use pagelease::{Access, Faults, PageRange, RestorePolicy};

use super::word::Change;

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct History {
    pub(crate) setting: Setting,
    pub(crate) actors: Vec<Actor>,
    pub(crate) steps: Vec<Step>,
}

#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) struct Setting {
    pub(crate) faults: Faults,
    pub(crate) access: Access,
    pub(crate) policy: RestorePolicy,
    pub(crate) limit_passes: bool,
    pub(crate) pages: u32,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Actor {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) program: Vec<Operation>,
}

#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Cpu,
    /// A thread of the device with this number.
    Device(u8),
    Monitor,
}

#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Operation {
    /// Adds through the CPU view.
    Touch(u32),
    /// Adds as the actor does: a CPU atomically, a device by a load and a store.
    Add(u32),
    Load(u32),
    Prefetch(PageRange),
    Claim(PageRange),
    Drop,
}

/// A step, and its line in the text (0 for one that was recorded).
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) struct Step {
    pub(crate) line: usize,
    pub(crate) actor: usize,
    pub(crate) doing: Doing,
}

#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Doing {
    /// Changes the word of a page.
    Makes(Change),
    /// Runs as far as it gets without a change.
    Runs,
}

impl Actor {
    /// The page that it accesses through the CPU view by its operation `index`, if it does.
    pub(crate) fn touches(&self, index: usize) -> Option<u32> {
        match (self.kind, *self.program.get(index)?) {
            (_, Operation::Touch(page) | Operation::Load(page)) | (Kind::Cpu, Operation::Add(page)) => Some(page),
            _ => None,
        }
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.setting)?;
        for Actor { name, program, .. } in &self.actors {
            let program: Vec<_> = program.iter().map(|operation| format!(" {operation}")).collect();
            writeln!(f, "{name}:{}", program.join(";"))?;
        }
        writeln!(f, "\nsteps:")?;
        for step in &self.steps {
            writeln!(f, "{} {}", self.actors[step.actor].name, step.doing)?;
        }
        Ok(())
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults = if self.faults == Faults::Monitor { "monitor" } else { "in-thread" };
        let access = if self.access == Access::Exclusive { "exclusive" } else { "exclusive-write" };
        let policy = if self.policy == RestorePolicy::Eager { "eager" } else { "lazy" };
        let limit = if self.limit_passes { "passes" } else { "never" };
        writeln!(f, "faults: {faults}\naccess: {access}\npolicy: {policy}\nlimit: {limit}\npages: {}", self.pages)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Touch(page) => write!(f, "touch {page}"),
            Self::Add(page) => write!(f, "add {page}"),
            Self::Load(page) => write!(f, "load {page}"),
            Self::Prefetch(pages) => write!(f, "prefetch {}..{}", pages.start(), pages.end()),
            Self::Claim(pages) => write!(f, "claim {}..{}", pages.start(), pages.end()),
            Self::Drop => f.write_str("drop"),
        }
    }
}

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Makes(change) => write!(f, "{change}"),
            Self::Runs => f.write_str("runs"),
        }
    }
}
