//! A page word without its generation or ticket, as a history writes it.

use core::fmt;

use pagelease_protocol::{PageState, PageWord};

/// What a history says of a page word.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) struct Word {
    state: PageState,
    /// The device that has the page; 0 is the CPU.
    owner: u8,
    busy: bool,
    holds: u8,
    waiters: bool,
    sleepers: bool,
    populated: bool,
}

impl Word {
    pub(crate) fn from_bits(bits: u32) -> Self {
        let word = PageWord::from_bits(bits);
        Self {
            state: word.state(),
            owner: word.owner().map_or(0, |owner| owner.get()),
            busy: word.busy(),
            holds: word.holds(),
            waiters: word.waiters(),
            sleepers: word.sleepers(),
            populated: word.populated(),
        }
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.busy
    }

    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| Err(format!("`{text}` is no page word: {why}"));
        let mut parts = text.split_whitespace();
        let Some(state) = parts.next() else { return wrong("it begins with Cpu, Exclusive(N) or ExclusiveWrite(N)") };
        let (state, owner) = match state.strip_suffix(')').and_then(|state| state.split_once('(')) {
            None if state == "Cpu" => (PageState::Cpu, 0),
            Some((name @ ("Exclusive" | "ExclusiveWrite"), device)) => {
                let Some(device) = device.parse().ok().filter(|&device| device != 0) else {
                    return wrong("a device is a number from 1 on");
                };
                (if name == "Exclusive" { PageState::Exclusive } else { PageState::ExclusiveWrite }, device)
            }
            _ => return wrong("it begins with Cpu, Exclusive(N) or ExclusiveWrite(N)"),
        };
        let mut word = Self { state, owner, busy: false, holds: 0, waiters: false, sleepers: false, populated: false };
        for part in parts {
            match part.split_once('*') {
                None if part == "busy" => word.busy = true,
                None if part == "held" => word.holds = 1,
                Some(("held", holds)) => match holds.parse() {
                    Ok(holds @ 2..=PageWord::HOLDS_MAX) => word.holds = holds,
                    _ => return wrong("`held*` is followed by a number from 2 to 15"),
                },
                None if part == "waiters" => word.waiters = true,
                None if part == "sleepers" => word.sleepers = true,
                None if part == "populated" => word.populated = true,
                _ => return wrong(&format!("`{part}` is not known")),
            }
        }
        // What is written in another order, or twice, could be a mistake.
        if word.to_string() != text.split_whitespace().collect::<Vec<_>>().join(" ") {
            return wrong(&format!("write `{word}`"));
        }
        Ok(word)
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.state)?;
        if self.owner != 0 {
            write!(f, "({})", self.owner)?;
        }
        if self.busy {
            f.write_str(" busy")?;
        }
        match self.holds {
            0 => {}
            1 => f.write_str(" held")?,
            holds => write!(f, " held*{holds}")?,
        }
        for (set, name) in [(self.waiters, " waiters"), (self.sleepers, " sleepers"), (self.populated, " populated")] {
            if set {
                f.write_str(name)?;
            }
        }
        Ok(())
    }
}

/// One change of a page's word.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) struct Change {
    pub(crate) page: u32,
    pub(crate) before: Word,
    pub(crate) after: Word,
}

impl Change {
    /// Whether it is what is due when the hold limit has passed: to end every hold of the page, or, where the last has just
    /// ended, to take the page that a touch waits for.
    pub(crate) fn is_overdue(&self) -> bool {
        let ends_holds = self.before.holds != 0 && self.after.holds == 0;
        let takes_waited_for = self.before.waiters && self.before.holds == 0 && !self.before.busy && self.after.busy;
        ends_holds || takes_waited_for
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} -> {}", self.page, self.before, self.after)
    }
}
