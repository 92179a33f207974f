//! A CPU touch takes a page back.
//!
//! ```text
//!   Cpu -----------------> + busy --- map ----------------------> Cpu
//!   Exclusive(device) ---> + busy --- invalidate, map ----------> Cpu
//!   ExclusiveWrite, read-> + busy --- map read-only ------------> as it was
//!   held, or busy: wait (`waiters` set), and go before any claim
//! ```
//!
//! Even a page that the word says the CPU has is mapped under `busy`: mapping knows nothing of anybody's bookkeeping, and
//! a late one would map a page that has just been claimed.

use crate::Obstacle;
use crate::units::OwnerId;
use crate::word::{PageState, PageWord};

/// What a touch does with a page next.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum TouchStep {
    /// Put this word (`busy` set), do the service, then its commit.
    Take(PageWord, Service),
    /// Not now: [`wait`] and look again.
    Wait(Obstacle),
}

/// What serving the touch takes.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Service {
    /// The CPU has the page: map it, accept that it is mapped already, [`commit`].
    Map,
    /// The device keeps it for writing: map it read-only, [`commit_read_only`].
    MapReadOnly,
    /// Invalidate this device, map the page, [`commit`].
    Restore(OwnerId),
}

/// What a CPU access (`write`: or it may be one) does with a page whose word is `word`.
#[must_use]
// The compiler does not think it worth it; every page that a touch brings along goes through here.
#[inline(always)]
pub fn step(word: PageWord, write: bool) -> TouchStep {
    word.assert_valid();
    if word.busy() {
        return TouchStep::Wait(Obstacle::Busy);
    }
    if word.state() == PageState::ExclusiveWrite && !write {
        return TouchStep::Take(word.with_busy(), Service::MapReadOnly);
    }
    if word.held() {
        return TouchStep::Wait(Obstacle::Held);
    }
    let service = match word.owner() {
        None => Service::Map,
        Some(owner) => Service::Restore(owner),
    };
    TouchStep::Take(word.with_busy(), service)
}

/// A touch will wait for this page, which is `busy` or held; it sleeps on the word itself if `sleeps`.
///
/// From now on the touch goes before any claim, and whoever ends what it waits for owes it the page
/// ([`PageWord::owes_hand_back`]).
#[must_use]
#[inline]
pub fn wait(word: PageWord, sleeps: bool) -> PageWord {
    assert!(word.busy() || word.held(), "nothing to wait for: {word:?}");
    let next = word.with_waiters();
    if sleeps { next.with_sleepers() } else { next }
}

/// The page is mapped in the CPU view and nobody else has it. Ends every wait: wake sleepers and parked touches if `word`
/// had any.
#[must_use]
#[inline]
pub fn commit(word: PageWord) -> PageWord {
    assert!(word.busy(), "commit without busy: {word:?}");
    assert!(!word.held(), "commit over a hold: {word:?}");
    let next = word.with_cpu().with_populated().without_waiters().without_sleepers().without_busy();
    next.assert_valid();
    next
}

/// The page is mapped read-only in the CPU view and stays the device's. Ends every wait, as [`commit`] does: a touch that
/// waited in order to write will trap again, and wait again.
#[must_use]
#[inline]
pub fn commit_read_only(word: PageWord) -> PageWord {
    assert!(word.busy(), "commit without busy: {word:?}");
    assert!(word.state() == PageState::ExclusiveWrite, "read-only beside {word:?}");
    let next = word.without_waiters().without_sleepers().without_busy();
    next.assert_valid();
    next
}

/// The page is given up half way (it could not be mapped): the CPU has it, and the next touch traps.
///
/// For a page taken with [`Service::MapReadOnly`] the device keeps it.
#[must_use]
#[inline]
pub fn abandon(word: PageWord, service: Service) -> PageWord {
    match service {
        Service::MapReadOnly => commit_read_only(word),
        Service::Map | Service::Restore(_) => commit(word),
    }
}

/// A touch by the very thread whose claim has this page `busy`, after that claim's commit point: the page becomes the
/// CPU's, and the generation tells the claim that it lost it.
///
/// The caller must know that the claiming thread cannot run meanwhile: it is the one that waits for this touch.
#[must_use]
#[inline]
pub fn take_over(word: PageWord) -> PageWord {
    assert!(word.busy(), "take_over without busy: {word:?}");
    let next =
        word.with_cpu().with_populated().with_next_generation().without_waiters().without_sleepers().without_busy();
    next.assert_valid();
    next
}
