//! Interval notifiers: how a driver that reads, then acts, learns that what it read is no longer so.
//!
//! After Linux's `mmu_interval_notifier`. A subscription covers a range of pages. Every invalidation that concerns it
//! *begins* before anything changes and *ends* when nothing stale is left. A driver does
//!
//! ```text
//!   seq = read_begin()          waits while an invalidation runs
//!   ... learn what to map ...
//!   lock(driver's table)        the lock its invalidate() takes
//!   if read_retry(seq)          an invalidation began since: unlock, start again
//!   map; unlock
//! ```
//!
//! What concerns a subscription is decided by [`concerns`]. A claim is subscribed to its own range under a token, and
//! ignores the invalidations that carry that token, and no others. (A filter by thread would also hide a real restore
//! that happens on the claiming thread: a touch in a signal handler.)

use crate::units::OwnerId;

/// Why pages are taken from a device, after Linux's `enum mmu_notifier_event`.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// Another device claims them.
    Exclusive,
    /// A CPU touch restores them, or the contents are dropped.
    Clear,
    /// The range is unmapped.
    Unmap,
    /// The protection of the mapping changes.
    ProtectionVma,
    /// The protection of single pages changes (fork).
    ProtectionPage,
    /// The region, the device's view of it, or the device itself goes away.
    Release,
}

/// Names one claim. Two claims of a space never share one.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub struct Token(pub u64);

/// On whose behalf an invalidation is raised.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq)]
pub struct Origin {
    /// The device that gets the pages, where one does (cause [`Cause::Exclusive`]).
    pub owner: Option<OwnerId>,
    /// The claim that raised it, where one did.
    pub token: Option<Token>,
}

/// Whether an invalidation of `cause` and `origin`, over a range that a subscription of `device` covers, concerns it.
///
/// `token` is the claim the subscription belongs to, if it belongs to one. Two things do not concern it: what that very
/// claim raised, and pages that become exclusive to the subscribing device itself.
#[must_use]
#[inline]
pub fn concerns(cause: Cause, origin: Origin, device: OwnerId, token: Option<Token>) -> bool {
    let own_claim = token.is_some() && origin.token == token;
    let becomes_ours = cause == Cause::Exclusive && origin.owner == Some(device);
    !own_claim && !becomes_ours
}

/// What `read_begin` returned.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Seq(u32);

/// The state of a subscription, in 32 bits: invalidations begun (24 bits, wrapping), and running now (8 bits).
///
/// A reader is fooled only by exactly 16,777,216 invalidations of its own range between `read_begin` and `read_retry`.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq)]
pub struct NotifierWord(u32);

const RUNNING: u32 = 0xff;
const BEGUN: u32 = 1 << 8;

impl NotifierWord {
    /// The most invalidations of one subscription that can run at a time. Each runs on a thread of its own.
    pub const RUNNING_MAX: u32 = RUNNING;

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

    /// An invalidation begins; `None` if as many run as can be counted (the caller waits for one to end).
    #[must_use]
    #[inline]
    pub fn begin(self) -> Option<Self> {
        if self.0 & RUNNING == RUNNING {
            return None;
        }
        Some(Self((self.0 + 1).wrapping_add(BEGUN)))
    }

    /// An invalidation ends.
    #[must_use]
    #[inline]
    pub fn end(self) -> Self {
        assert!(self.0 & RUNNING != 0, "an invalidation ends that never began");
        Self(self.0 - 1)
    }

    /// What to compare with later; `None` while an invalidation runs (wait for its end).
    #[must_use]
    #[inline]
    pub fn read_begin(self) -> Option<Seq> {
        if self.0 & RUNNING == 0 { Some(Seq(self.0)) } else { None }
    }

    /// Whether an invalidation has begun since `read_begin` returned `seq`: what was read may be stale, start again.
    #[must_use]
    #[inline]
    pub fn read_retry(self, seq: Seq) -> bool {
        self.0 & !RUNNING != seq.0
    }
}
