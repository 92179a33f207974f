//! A device takes a page.
//!
//! ```text
//!            step: Take                        commit
//!   Cpu ------------------> Cpu + busy ------------------> Exclusive(device), held
//!   Exclusive(other) -----> + busy ---- (invalidated) ---> Exclusive(device), held
//!   ExclusiveWrite(device) -> + busy -- (upgrade) -------> Exclusive(device), held
//!                              |  undo
//!                              +--------> Cpu
//!
//!   Exclusive(device) ----- step: Join, no `busy`, no system call -----> one more hold
//! ```
//!
//! What is owed between `Take` and `commit` follows from the word that was read: its owner, if another device, is
//! invalidated; a page not `populated` is populated; the CPU view is revoked unless the page was `Exclusive` already.

use crate::Obstacle;
use crate::units::OwnerId;
use crate::word::{Access, PageState, PageWord};

/// What a claim does with a page next.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum ClaimStep {
    /// The device has the page already, with at least this access: put this word (one hold more), and that is all.
    Join(PageWord),
    /// Put this word (`busy` set), do what is owed, then [`commit`] or [`undo`].
    Take(PageWord),
    /// Not now.
    Wait(Obstacle),
}

/// What `device`, claiming with `access`, does with a page whose word is `word`.
#[must_use]
#[inline]
pub fn step(word: PageWord, device: OwnerId, access: Access) -> ClaimStep {
    word.assert_valid();
    if word.busy() {
        return ClaimStep::Wait(Obstacle::Busy);
    }
    if word.waiters() {
        return ClaimStep::Wait(Obstacle::Waiter);
    }
    let mine = word.owner() == Some(device);
    if word.held() && (!mine || word.holds() == PageWord::HOLDS_MAX) {
        return ClaimStep::Wait(Obstacle::Held);
    }
    // Exclusive satisfies a claim for ExclusiveWrite; the reverse is an upgrade, which revokes the CPU's reads. It takes
    // `busy`, so it waits for the holds that live: a claim never makes a held page busy.
    if mine && (word.state() == PageState::Exclusive || access == Access::ExclusiveWrite) {
        return ClaimStep::Join(word.with_holds(word.holds() + 1));
    }
    if word.held() {
        return ClaimStep::Wait(Obstacle::Held);
    }
    ClaimStep::Take(word.with_busy())
}

/// Whether a page taken at `word` must be revoked from the CPU view before the claim commits.
#[must_use]
#[inline]
pub fn needs_revoke(word: PageWord) -> bool {
    word.state() != PageState::Exclusive
}

/// The device that must be invalidated before `device` commits a page taken at `word`.
#[must_use]
#[inline]
pub fn previous_owner(word: PageWord, device: OwnerId) -> Option<OwnerId> {
    word.owner().filter(|&owner| owner != device)
}

/// The claim has done what it owes: the page is the device's, and held. Wake whoever sleeps on the word if it said so.
///
/// The word may have gained `waiters` and `sleepers` since it was taken; waiters stay, and are served when the hold ends.
#[must_use]
#[inline]
pub fn commit(word: PageWord, device: OwnerId, access: Access) -> PageWord {
    assert!(word.busy(), "commit without busy: {word:?}");
    assert!(!word.held(), "commit over a hold: {word:?}");
    let next = word.with_device(device, access).with_holds(1).with_populated().without_sleepers().without_busy();
    next.assert_valid();
    next
}

/// The claim gives a taken page up, to the CPU. Whoever owned it, the claiming device included, has been invalidated.
/// `populated`: whether the claim has made sure by now that the page exists.
#[must_use]
#[inline]
pub fn undo(word: PageWord, populated: bool) -> PageWord {
    assert!(word.busy(), "undo without busy: {word:?}");
    assert!(!word.held(), "undo of a held page: {word:?}");
    let next = word.with_cpu().without_sleepers().without_busy();
    let next = if populated { next.with_populated() } else { next };
    next.assert_valid();
    next
}
