//! The page word: everything that is known of one granule, in 32 bits.
//!
//! ```text
//!   31            16 15    10 9     6 5    4   3         2        1        0
//!  +----------------+--------+-------+------+---------+---------+---------+------+
//!  |   generation   | owner  | holds | state|populated| sleepers| waiters | busy |
//!  +----------------+--------+-------+------+---------+---------+---------+------+
//! ```
//!
//! - `busy`: a transition is in progress. It carries correctness: nothing maps or unmaps the page in the CPU view except
//!   whoever has set it. Short, never broken. While a page is busy and not held, the generation's place carries the
//!   **ticket** of whoever set `busy` ([`PageWord::ticket`]), set in the same compare-and-swap: a touch that finds its
//!   page busy can tell whether its own thread's interrupted claim is what it would wait for.
//! - `waiters`: a CPU touch waits for the page and goes before any claim.
//! - `sleepers`: some thread sleeps on this word; whoever removes what it waits for clears the bit and wakes.
//! - `populated`: the page is known to exist in the page cache. One that does not exist does not trap.
//! - `state`, `owner`: who has the page. The owner is zero exactly in state `Cpu`.
//! - `holds`: leases that live on the page; 0 is 'not held'. A hold is for forward progress only.
//! - `generation`: counts broken holds, so that a late holder learns that it lost the page. It wraps after 65,536 breaks
//!   of one page. A holder that sleeps through exactly that many mistakes a later hold of its own device for its own; a
//!   hold being for forward progress only, that costs a wait, never an update.
//!
//! The word of all zeroes is a page that the CPU has and nobody has touched, so a table of them costs no memory until used.
//!
//! Invariants, asserted by every transition ([`PageWord::assert_valid`]): the owner is zero exactly in state `Cpu`; a page in
//! state `Cpu` is not held; a page with a device is populated.

use core::fmt;

use crate::units::OwnerId;

const BUSY: u32 = 1 << 0;
const WAITERS: u32 = 1 << 1;
const SLEEPERS: u32 = 1 << 2;
const POPULATED: u32 = 1 << 3;
const STATE_SHIFT: u32 = 4;
const STATE: u32 = 0b11 << STATE_SHIFT;
const HOLDS_SHIFT: u32 = 6;
const HOLDS: u32 = 0b1111 << HOLDS_SHIFT;
const OWNER_SHIFT: u32 = 10;
const OWNER: u32 = 0b11_1111 << OWNER_SHIFT;
const GENERATION_SHIFT: u32 = 16;

/// Who has a page, and what the CPU may still do with it.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub enum PageState {
    /// The CPU has it.
    Cpu,
    /// A device has it; any CPU access traps.
    Exclusive,
    /// A device has it for writing; the CPU may read, a CPU write traps.
    ExclusiveWrite,
}

/// What a claim asks for.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub enum Access {
    /// Nobody else reads or writes the page.
    Exclusive,
    /// Nobody else writes the page; the CPU goes on reading it, and may see the device's stores half done.
    ExclusiveWrite,
}

impl Access {
    /// The state a page is in once it has been claimed like this.
    #[must_use]
    #[inline]
    pub const fn state(self) -> PageState {
        match self {
            Self::Exclusive => PageState::Exclusive,
            Self::ExclusiveWrite => PageState::ExclusiveWrite,
        }
    }
}

/// One granule's word. See the module for its layout and invariants.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Default)]
pub struct PageWord(u32);

impl PageWord {
    /// The most leases that can live on one page at a time. A claim that finds as many waits as for another device's.
    pub const HOLDS_MAX: u8 = 15;

    /// The word that was stored as `bits`.
    #[must_use]
    #[inline]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The word as it is stored.
    #[must_use]
    #[inline]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether a transition is in progress.
    #[must_use]
    #[inline]
    pub const fn busy(self) -> bool {
        self.0 & BUSY != 0
    }

    /// Whether a CPU touch waits for the page.
    #[must_use]
    #[inline]
    pub const fn waiters(self) -> bool {
        self.0 & WAITERS != 0
    }

    /// Whether a thread sleeps on the word.
    #[must_use]
    #[inline]
    pub const fn sleepers(self) -> bool {
        self.0 & SLEEPERS != 0
    }

    /// Whether the page is known to exist in the page cache.
    #[must_use]
    #[inline]
    pub const fn populated(self) -> bool {
        self.0 & POPULATED != 0
    }

    /// Who has the page.
    #[must_use]
    #[inline]
    pub const fn state(self) -> PageState {
        match (self.0 & STATE) >> STATE_SHIFT {
            0 => PageState::Cpu,
            1 => PageState::Exclusive,
            _ => PageState::ExclusiveWrite,
        }
    }

    /// The device that has the page, if one does.
    #[must_use]
    #[inline]
    pub const fn owner(self) -> Option<OwnerId> {
        OwnerId::new(((self.0 & OWNER) >> OWNER_SHIFT) as u8)
    }

    /// How many leases live on the page.
    #[must_use]
    #[inline]
    pub const fn holds(self) -> u8 {
        ((self.0 & HOLDS) >> HOLDS_SHIFT) as u8
    }

    /// Whether a lease lives on the page.
    #[must_use]
    #[inline]
    pub const fn held(self) -> bool {
        self.0 & HOLDS != 0
    }

    /// How many holds of this page have been broken, modulo 65,536. Of no meaning while a ticket stands in its place.
    #[must_use]
    #[inline]
    pub const fn generation(self) -> u16 {
        (self.0 >> GENERATION_SHIFT) as u16
    }

    /// Who has the page `busy`: the ticket it was taken with. `None` when it is not busy, or held as well (only a page that
    /// is being mapped read-only is both; whoever does that is never a claim).
    #[must_use]
    #[inline]
    pub const fn ticket(self) -> Option<u16> {
        if self.0 & (BUSY | HOLDS) == BUSY { Some((self.0 >> GENERATION_SHIFT) as u16) } else { None }
    }

    /// Puts `ticket` in the generation's place of a word that a `step` has just made busy. The caller keeps the
    /// generation, and puts it back ([`PageWord::unsigned`]) before it makes any other transition of the word.
    #[must_use]
    #[inline]
    pub const fn signed(self, ticket: u16) -> Self {
        assert!(self.busy() && !self.held(), "only a busy page that is not held is signed");
        self.with_generation(ticket)
    }

    /// Puts the generation back in the place of the ticket.
    #[must_use]
    #[inline]
    pub const fn unsigned(self, generation: u16) -> Self {
        assert!(self.busy() && !self.held(), "only a busy page that is not held is signed");
        self.with_generation(generation)
    }

    /// Whether `device` may use the page now: the device's fast-path check. One mask and one comparison.
    #[must_use]
    #[inline]
    pub const fn usable_by(self, device: OwnerId) -> bool {
        (self.0 & (OWNER | BUSY)) == ((device.get() as u32) << OWNER_SHIFT)
    }

    /// Whether whoever leaves the word like this owes the waiting CPU touch its page: nobody else will bring it.
    #[must_use]
    #[inline]
    pub const fn owes_hand_back(self) -> bool {
        self.0 & (WAITERS | BUSY | HOLDS) == WAITERS
    }

    /// Panics unless the invariants of the module hold.
    #[inline]
    pub fn assert_valid(self) {
        let cpu = self.0 & STATE == 0;
        assert!((self.0 & STATE) != STATE, "page word {self:?}: no such state");
        assert!(cpu == (self.0 & OWNER == 0), "page word {self:?}: owned exactly when a device has it");
        assert!(!cpu || !self.held(), "page word {self:?}: the CPU's page is not held");
        assert!(cpu || self.populated(), "page word {self:?}: a device's page exists");
    }

    #[inline]
    pub(crate) const fn with_busy(self) -> Self {
        Self(self.0 | BUSY)
    }

    #[inline]
    pub(crate) const fn without_busy(self) -> Self {
        Self(self.0 & !BUSY)
    }

    #[inline]
    pub(crate) const fn with_waiters(self) -> Self {
        Self(self.0 | WAITERS)
    }

    #[inline]
    pub(crate) const fn without_waiters(self) -> Self {
        Self(self.0 & !WAITERS)
    }

    #[inline]
    pub(crate) const fn with_sleepers(self) -> Self {
        Self(self.0 | SLEEPERS)
    }

    #[inline]
    pub(crate) const fn without_sleepers(self) -> Self {
        Self(self.0 & !SLEEPERS)
    }

    #[inline]
    pub(crate) const fn with_populated(self) -> Self {
        Self(self.0 | POPULATED)
    }

    #[inline]
    pub(crate) const fn with_holds(self, holds: u8) -> Self {
        assert!(holds <= Self::HOLDS_MAX);
        Self(self.0 & !HOLDS | (holds as u32) << HOLDS_SHIFT)
    }

    #[inline]
    pub(crate) const fn with_next_generation(self) -> Self {
        // The generation is the topmost field: overflow leaves the word at the top.
        Self(self.0.wrapping_add(1 << GENERATION_SHIFT))
    }

    #[inline]
    const fn with_generation(self, generation: u16) -> Self {
        Self(self.0 & ((1 << GENERATION_SHIFT) - 1) | (generation as u32) << GENERATION_SHIFT)
    }

    #[inline]
    pub(crate) const fn with_cpu(self) -> Self {
        Self(self.0 & !(STATE | OWNER | HOLDS))
    }

    #[inline]
    pub(crate) const fn with_device(self, device: OwnerId, access: Access) -> Self {
        let state = match access {
            Access::Exclusive => 1,
            Access::ExclusiveWrite => 2,
        };
        Self(self.0 & !(STATE | OWNER) | state << STATE_SHIFT | (device.get() as u32) << OWNER_SHIFT)
    }
}

impl fmt::Debug for PageWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.state())?;
        if let Some(owner) = self.owner() {
            write!(f, "({owner})")?;
        }
        for (set, name) in [
            (self.busy(), " busy"),
            (self.waiters(), " waiters"),
            (self.sleepers(), " sleepers"),
            (self.populated(), " populated"),
        ] {
            if set {
                f.write_str(name)?;
            }
        }
        write!(f, " holds={} gen={}", self.holds(), self.generation())
    }
}
