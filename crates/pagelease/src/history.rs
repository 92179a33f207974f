//! What became of pages that leases let go of: by it [`RestorePolicy::Adaptive`] chooses which to give back.
//!
//! Giving a page back at the end of a lease saves a touch, if the CPU is who wants it next; if the device is, it costs taking
//! the page again. A touch costs as much as that [`TOUCH`] times over, or more. So each page has a score, somewhat as a branch
//! predictor has a counter a branch:
//!
//! ```text
//!   kept, and touched:        + TOUCH, at most SCORE_MAX
//!   kept, and used again:     - 1
//!   from ENOUGH on:           given back at the end of each lease, RUN times; then kept, to see who wants it
//! ```
//!
//! A page that is touched after each seventh lease or more often comes to be given back, any other to be kept; one that
//! nothing is known of is at 0, two touches from being given back.
//!
//! A page that has been given back says nothing: the CPU touches it without a trap, or does not, and a claim that comes then
//! looks the same. Hence the look after [`RUN`] leases. If the CPU still wants the page, it costs one touch. If it does not,
//! the page is kept, which costs nothing, until it is touched after all or its score has fallen.
//!
//! A touch that disturbs the device in the middle of its work says nothing: giving the page back at the end of a lease that is
//! one of many would have made things worse (`thrash` deals with that). A neighbour that a touch in a sequence brought along counts as touched once the sequence has gone on behind it. A prefetch,
//! or another device's claim, says nothing about either side. Device operations that no claim precedes are reported by who
//! makes them (the software device at the start of a job).
//!
//! Two bytes a page, in memory populated as it is used; every access is one relaxed load and mostly no store, and two at the
//! same moment may lose one of their outcomes. Nothing but speed depends on it.
//!
//! [`RestorePolicy::Adaptive`]: crate::RestorePolicy::Adaptive

use pagelease_protocol::PageIndex;
use pagelease_sys::Errno;

use crate::sync::{AtomicU16, Ordering, Table, by_chance};

/// How often a page is given back before it is kept once, to see who wants it.
const RUN: u16 = 255;

/// What a touch is worth: giving back one page and taking it again costs 1 to 2 us, a touch 5 to 12 (`pagelease bench policy`).
const TOUCH: u16 = 7;

/// The score from which on a page is given back.
const ENOUGH: u16 = 8;

const SCORE_MAX: u16 = 15;

/// The page was kept at the end of its last lease, and nobody has been seen to want it since.
const KEPT: u16 = 1 << 4;

/// A state: score (4 bits), kept (1), how often it is still given back (8).
const RUN_SHIFT: u32 = 5;

pub(crate) struct History {
    /// None unless the policy is adaptive.
    pages: Option<Table<AtomicU16>>,
}

impl History {
    pub(crate) fn new(pages: u32, adaptive: bool) -> Result<Self, Errno> {
        Ok(Self { pages: adaptive.then(|| Table::zeroed(pages as usize)).transpose()? })
    }

    /// For loops over many pages: nothing to do where it is not kept.
    #[inline]
    pub(crate) fn is_kept(&self) -> bool {
        self.pages.is_some()
    }

    /// The last lease of `page` has ended: whether to give it back.
    pub(crate) fn ended(&self, page: PageIndex) -> bool {
        let Some(cell) = self.state(page) else { return false };
        if cfg!(pagelease_shuttle) {
            // Schedules are explored with either choice, whatever was learnt.
            return by_chance();
        }
        let state = cell.load(Ordering::Relaxed);
        let (next, give_back) = end(state);
        if next != state {
            cell.store(next, Ordering::Relaxed);
        }
        give_back
    }

    /// A touch has brought `page` back from its device, which was done with it. Signal-safe.
    pub(crate) fn touched(&self, page: PageIndex) {
        self.learn(page, touch);
    }

    /// A device uses `page`, which it has already.
    #[inline]
    pub(crate) fn used_again(&self, page: PageIndex) {
        self.learn(page, use_again);
    }

    /// `page` has changed hands for another reason.
    #[inline]
    pub(crate) fn taken(&self, page: PageIndex) {
        self.learn(page, |state| state & !KEPT);
    }

    /// What is learnt follows from a page having been kept.
    #[inline]
    fn learn(&self, page: PageIndex, outcome: impl Fn(u16) -> u16) {
        if let Some(cell) = self.state(page)
            && let state = cell.load(Ordering::Relaxed)
            && state & KEPT != 0
        {
            cell.store(outcome(state), Ordering::Relaxed);
        }
    }

    #[inline]
    fn state(&self, page: PageIndex) -> Option<&AtomicU16> {
        self.pages.as_ref().map(|pages| &pages[page.as_usize()])
    }
}

fn score(state: u16) -> u16 {
    state & SCORE_MAX
}

fn end(state: u16) -> (u16, bool) {
    let run = state >> RUN_SHIFT;
    if run > 0 { (score(state) | (run - 1) << RUN_SHIFT, true) } else { (score(state) | KEPT, false) }
}

fn touch(state: u16) -> u16 {
    let score = (score(state) + TOUCH).min(SCORE_MAX);
    if score >= ENOUGH { score | RUN << RUN_SHIFT } else { score }
}

fn use_again(state: u16) -> u16 {
    score(state).saturating_sub(1)
}

#[cfg(all(test, not(pagelease_shuttle)))]
mod tests {
    use super::*;

    const PAGE: PageIndex = PageIndex(3);

    fn history() -> History {
        History::new(8, true).expect("memory for a few states")
    }

    /// Ends a lease, and has the CPU touch the page after it; whether it was given back.
    fn end_and_touch(history: &History) -> bool {
        let given_back = history.ended(PAGE);
        // A touch of a page that was given back does not trap.
        if !given_back {
            history.touched(PAGE);
        }
        given_back
    }

    /// Ends a lease, and has the device claim the page again; whether it was given back.
    fn end_and_claim(history: &History) -> bool {
        let given_back = history.ended(PAGE);
        let outcome = if given_back { History::taken } else { History::used_again };
        outcome(history, PAGE);
        given_back
    }

    /// How many of `leases` give the page back, where the CPU touches it after each `nth`.
    fn given_back(history: &History, leases: u32, nth: u32) -> u32 {
        let one = |lease| if lease % nth == 0 { end_and_touch(history) } else { end_and_claim(history) };
        (1..=leases).map(|lease| u32::from(one(lease))).sum()
    }

    #[test]
    fn what_the_cpu_touches_is_given_back_after_two_touches() {
        let history = history();
        let given_back: Vec<_> = (0..4).map(|_| end_and_touch(&history)).collect();
        assert_eq!(given_back, [false, false, true, true]);
    }

    #[test]
    fn what_the_device_uses_again_is_kept() {
        assert_eq!(given_back(&history(), 1000, u32::MAX), 0);
    }

    #[test]
    fn a_touch_outweighs_six_uses_and_not_seven() {
        assert!(given_back(&history(), 10_000, 7) > 9_000);
        assert_eq!(given_back(&history(), 10_000, 9), 0);
    }

    #[test]
    fn a_page_is_looked_at_once_in_256_times() {
        let kept = 25_600 - given_back(&history(), 25_600, 1);
        assert!((100..=102).contains(&kept), "kept {kept} times");
    }

    #[test]
    fn it_changes_its_mind_both_ways() {
        let history = history();
        for _ in 0..3 {
            assert!(given_back(&history, 1000, 1) > 990);
            let wasted = given_back(&history, 1000, u32::MAX);
            assert!(wasted <= u32::from(RUN), "{wasted} give-backs that nobody wanted");
            assert_eq!(given_back(&history, 1000, u32::MAX), 0);
        }
    }

    #[test]
    fn one_exception_does_not_change_it() {
        let history = history();
        given_back(&history, 2, 1);
        assert_eq!(given_back(&history, u32::from(RUN), 1), u32::from(RUN));
        assert!(!end_and_claim(&history), "the look finds an exception");
        assert!(!end_and_touch(&history), "a second look");
        assert!(history.ended(PAGE));
    }

    #[test]
    fn a_page_taken_by_somebody_else_teaches_nothing() {
        let history = history();
        given_back(&history, 2 + u32::from(RUN), 1);
        for _ in 0..100 {
            assert!(!history.ended(PAGE));
            history.taken(PAGE);
        }
        assert!(!end_and_touch(&history));
        assert!(history.ended(PAGE), "as sure as before");
    }

    #[test]
    fn nothing_is_kept_without_the_policy() {
        let history = History::new(8, false).expect("needs nothing");
        (0..10).for_each(|_| assert!(!end_and_touch(&history)));
    }
}
