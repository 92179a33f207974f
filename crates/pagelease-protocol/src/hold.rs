//! Holds: what a lease adds to a page, and how it ends.
//!
//! A hold is for forward progress only: it keeps a page with its device until the device has done something with it.
//! Correctness never depends on it, so it can be broken at any time the page is not `busy`; the generation then tells
//! the late holder, whose end of the hold must change nothing.

use crate::units::OwnerId;
use crate::word::PageWord;

/// What ending a hold comes to.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Release {
    /// The hold was live: put this word. Wake sleepers if the old word had them and the new one has not; hand the page
    /// to a waiting touch if [`PageWord::owes_hand_back`].
    Ended(PageWord),
    /// The hold had been broken, or the page taken away: change nothing.
    Broken,
    /// The page is being mapped read-only just now: wait for `busy` to clear, and look again.
    Wait,
}

/// A lease of `device`, taken at `generation`, lets the page go.
#[must_use]
#[inline]
pub fn release(word: PageWord, device: OwnerId, generation: u16) -> Release {
    word.assert_valid();
    if !is_live(word, device, generation) {
        return Release::Broken;
    }
    if word.busy() {
        return Release::Wait;
    }
    let holds = word.holds() - 1;
    let next = word.with_holds(holds);
    // Whoever found the last place taken waits for any hold to end.
    let wakes = holds == 0 || word.holds() == PageWord::HOLDS_MAX;
    Release::Ended(if wakes { next.without_sleepers() } else { next })
}

/// Whether a hold that `device` took at `generation` still lives. (A held page always carries its generation, never a
/// ticket.)
#[must_use]
#[inline]
pub fn is_live(word: PageWord, device: OwnerId, generation: u16) -> bool {
    word.generation() == generation && word.owner() == Some(device) && word.held()
}

/// Ends every hold of the page at once: the hold limit has passed, or the holder itself touches the page.
///
/// `None` when there is nothing to break, or the page is `busy` (then a transition is about to look at the holds).
#[must_use]
#[inline]
pub fn break_hold(word: PageWord) -> Option<PageWord> {
    if word.busy() || !word.held() {
        return None;
    }
    let next = word.with_holds(0).with_next_generation().without_sleepers();
    next.assert_valid();
    Some(next)
}

/// A claim will sleep on this word until what it waits for is gone. It sets no `waiters`: a claim never goes first.
#[must_use]
#[inline]
pub fn sleep(word: PageWord) -> PageWord {
    word.with_sleepers()
}

/// Everybody who sleeps on this word shall look again, although nothing has changed for them here. Wake them: the word has
/// changed even for one who is just about to sleep.
#[must_use]
#[inline]
pub fn wake(word: PageWord) -> PageWord {
    word.without_sleepers()
}
