//! Minimum residency: how long the CPU keeps a page that has just come back to it.
//!
//! Giving a page back does not run the thread that touched it. Woken by a monitor it needs some ten microseconds, from an
//! idle CPU more than a hundred, and a device that claims in a loop takes the page away again in two: the touch would
//! starve. So a claim waits until the page has been with the CPU for a minimum time.
//!
//! The minimum starts at one step and doubles, up to [`LEVEL_MAX`] times, while a page is fought over: it was claimed
//! within twice its minimum, and touched again. A touch of a page that was left alone starts anew. (Linux's GPU drivers do
//! the same with a `timeslice_ms`.) One step is 16 microseconds when monitors serve, 8 when the touching thread serves
//! itself and is running already: about what taking the page back and forth costs.
//!
//! A page that comes back without a touch, at the end of an eager lease or by a prefetch, has a minimum as well: a touch that
//! arrives just then is answered by it, and would starve in the same way. It halves each time, down to a step.
//!
//! That is all unless the policy is adaptive. Then a page that is fought over has a longer minimum, on both sides: `thrash`.
//!
//! A direct-mapped table of the pages that came back last; one that falls out of it has no minimum until it comes back again.

use pagelease_protocol::{PageIndex, PageRange};
use pagelease_sys::Errno;

use crate::sync::{AtomicU64, Ordering, Table, now_ns};
use crate::thrash;

const SLOTS: usize = if cfg!(pagelease_shuttle) { 2 } else { 256 };

/// The longest minimum is `step << LEVEL_MAX`: long enough for a CPU to be woken from idle.
const LEVEL_MAX: u64 = 4;

/// A slot: page (upper 32 bits), level (3), stolen soon (1), time in units of 1.024 us (28, wrapping after 4.5 minutes).
const TIME: u64 = (1 << 28) - 1;
const STOLEN: u64 = 1 << 28;
const LEVEL_SHIFT: u32 = 29;

pub(crate) struct Residency {
    slots: Table<AtomicU64>,
    /// When any page of the region was last given back: one load settles most claims.
    last_ns: AtomicU64,
    step_ns: u64,
    /// The longest minimum that a page can have.
    longest_ns: u64,
}

impl Residency {
    /// `step_ns` 0 turns it off. `throttles`: pages can be fought over.
    pub(crate) fn new(step_ns: u64, throttles: bool) -> Result<Self, Errno> {
        let longest_ns = (step_ns << LEVEL_MAX).max(if throttles { thrash::MINIMUM_MAX_NS } else { 0 });
        Ok(Self { slots: Table::zeroed(SLOTS)?, last_ns: AtomicU64::new(0), step_ns, longest_ns })
    }

    fn slot(&self, page: PageIndex) -> &AtomicU64 {
        &self.slots[page.as_usize() % SLOTS]
    }

    /// A touch has brought `page` back. Signal-safe.
    pub(crate) fn restored(&self, page: PageIndex) {
        if self.step_ns != 0 {
            self.restored_at(page, now_ns());
        }
    }

    fn restored_at(&self, page: PageIndex, now_ns: u64) {
        let before = self.slot(page).load(Ordering::Relaxed);
        let fought_over = is_of(before, page) && before & STOLEN != 0;
        self.keep(page, if fought_over { (level(before) + 1).min(LEVEL_MAX) << LEVEL_SHIFT } else { 0 }, now_ns);
        self.last_ns.store(now_ns, Ordering::Relaxed);
    }

    /// `pages` were given back without a touch that asked for it: by the end of an eager lease, or a prefetch. A touch that
    /// came meanwhile may have been answered by that, and has not run yet; nothing tells.
    pub(crate) fn given_back(&self, pages: PageRange) {
        if self.step_ns != 0 {
            self.given_back_at(pages, now_ns());
        }
    }

    /// A page's minimum halves each time, so that a device which claims again what it gave back, and fights with nobody, comes
    /// down to one step. What a touch has just brought back keeps its place in the table, and the first pages of a run that
    /// is larger than the table theirs.
    fn given_back_at(&self, pages: PageRange, now_ns: u64) {
        // One page a slot: of more than there are slots, that which has its slot, or the first.
        for page in pages.iter().take(SLOTS) {
            let before = self.slot(page).load(Ordering::Relaxed);
            if let Some(known) = page_of(before).filter(|&known| pages.contains(known)) {
                self.keep(known, level(before).saturating_sub(1) << LEVEL_SHIFT | before & STOLEN, now_ns);
            } else if before == 0 || age_ns(before, now_ns) >= self.step_ns << level(before) {
                self.keep(page, 0, now_ns);
            }
        }
        self.last_ns.store(now_ns, Ordering::Relaxed);
    }

    fn keep(&self, page: PageIndex, state: u64, now_ns: u64) {
        let state = u64::from(page.0) << 32 | state | (now_ns >> 10) & TIME;
        self.slot(page).store(state, Ordering::Relaxed);
    }

    /// The time to look up pages by, if any page was brought back so lately that it matters.
    pub(crate) fn recent(&self) -> Option<u64> {
        if self.step_ns == 0 {
            return None;
        }
        let now = now_ns();
        (now.saturating_sub(self.last_ns.load(Ordering::Relaxed)) < 2 * self.longest_ns).then_some(now)
    }

    /// How long a claim of `page` still has to wait, at `now_ns`: 0 if it may have it. `fought_over_ns`: the minimum that it
    /// has because it is fought over.
    pub(crate) fn wait_ns(&self, page: PageIndex, now_ns: u64, fought_over_ns: u64) -> u64 {
        let slot = self.slot(page);
        let state = slot.load(Ordering::Relaxed);
        if !is_of(state, page) {
            return 0;
        }
        let age_ns = age_ns(state, now_ns);
        let minimum_ns = (self.step_ns << level(state)).max(fought_over_ns);
        if age_ns < 2 * minimum_ns {
            slot.store(state | STOLEN, Ordering::Relaxed);
        }
        minimum_ns.saturating_sub(age_ns)
    }
}

fn level(state: u64) -> u64 {
    state >> LEVEL_SHIFT & 0b111
}

/// The page that a slot is about.
fn page_of(state: u64) -> Option<PageIndex> {
    (state != 0).then_some(PageIndex((state >> 32) as u32))
}

/// Whether a slot is about `page`.
fn is_of(state: u64, page: PageIndex) -> bool {
    state != 0 && state >> 32 == u64::from(page.0)
}

/// How long ago the page of a slot came back.
fn age_ns(state: u64, now_ns: u64) -> u64 {
    ((now_ns >> 10).wrapping_sub(state) & TIME) << 10
}

#[cfg(all(test, not(pagelease_shuttle)))]
mod tests {
    use super::*;

    const STEP: u64 = 16 << 10;
    const PAGE: PageIndex = PageIndex(7);

    fn residency() -> Residency {
        Residency::new(STEP, true).expect("memory for the table")
    }

    fn pages(start: u32, end: u32) -> PageRange {
        PageRange::new(start, end).expect("not empty")
    }

    /// Claims the page as soon as it may be had, and has it touched at once, `times` over; the time at the end.
    fn fight(residency: &Residency, times: u32) -> u64 {
        let mut now = 1 << 30;
        for _ in 0..times {
            residency.restored_at(PAGE, now);
            now += residency.wait_ns(PAGE, now, 0);
            assert_eq!(residency.wait_ns(PAGE, now, 0), 0, "it waited long enough");
        }
        now
    }

    #[test]
    fn the_minimum_grows_while_a_page_is_fought_over() {
        let residency = residency();
        let now = fight(&residency, 10);
        residency.restored_at(PAGE, now);
        assert_eq!(residency.wait_ns(PAGE, now, 0), STEP << LEVEL_MAX);
    }

    #[test]
    fn a_device_that_fights_with_nobody_waits_one_step() {
        let residency = residency();
        let mut now = fight(&residency, 10);
        for _ in 0..=LEVEL_MAX {
            residency.given_back_at(pages(7, 8), now);
            now += residency.wait_ns(PAGE, now, 0);
        }
        residency.given_back_at(pages(7, 8), now);
        assert_eq!(residency.wait_ns(PAGE, now, 0), STEP);
    }

    #[test]
    fn what_is_given_back_stays_and_a_touch_after_it_raises_the_minimum() {
        let residency = residency();
        residency.given_back_at(pages(7, 8), 1 << 30);
        assert_eq!(residency.wait_ns(PAGE, 1 << 30, 0), STEP);
        residency.given_back_at(pages(7, 8), (1 << 30) + STEP);
        residency.restored_at(PAGE, (1 << 30) + 2 * STEP);
        assert_eq!(
            residency.wait_ns(PAGE, (1 << 30) + 2 * STEP, 0),
            STEP << 1,
            "it was claimed soon after it was given back"
        );
    }

    #[test]
    fn a_page_that_is_fought_over_stays_for_that_minimum() {
        let residency = residency();
        residency.restored_at(PAGE, 1 << 30);
        assert_eq!(residency.wait_ns(PAGE, 1 << 30, 8 * STEP), 8 * STEP);
        assert_eq!(residency.wait_ns(PAGE, (1 << 30) + STEP, 8 * STEP), 7 * STEP);
        assert_eq!(residency.wait_ns(PAGE, (1 << 30) + 8 * STEP, 8 * STEP), 0);
        assert_eq!(residency.wait_ns(PageIndex(8), 1 << 30, 8 * STEP), 0, "the CPU has had it for long");
    }

    #[test]
    fn a_page_far_behind_in_a_large_run_keeps_its_slot() {
        let residency = residency();
        let far = PageIndex(3 * 256 + 7);
        for turn in 0..2 {
            residency.restored_at(far, (1 << 30) + turn * STEP);
            residency.wait_ns(far, (1 << 30) + turn * STEP, 0);
        }
        residency.given_back_at(pages(0, 4 * 256), (1 << 30) + 2 * STEP);
        assert_eq!(residency.wait_ns(far, (1 << 30) + 2 * STEP, 0), STEP, "half of two steps");
        assert_eq!(residency.wait_ns(PAGE, (1 << 30) + 2 * STEP, 0), 0, "the slot is not its");
    }

    #[test]
    fn a_large_run_drives_out_nothing_that_a_touch_has_just_brought_back() {
        let residency = residency();
        residency.restored_at(PAGE, 1 << 30);
        residency.given_back_at(pages(1000, 1000 + 4 * 256), (1 << 30) + 1024);
        assert_eq!(residency.wait_ns(PAGE, (1 << 30) + 1024, 0), STEP - 1024);
        assert_eq!(residency.wait_ns(PageIndex(1000), (1 << 30) + 1024, 0), STEP);
    }
}
