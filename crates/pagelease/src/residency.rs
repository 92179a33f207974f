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
//! arrives just then is answered by it, and would starve in the same way.
//!
//! A direct-mapped table of the pages that were touched last; one that falls out of it merely starts anew.

use pagelease_protocol::{PageIndex, PageRange};
use pagelease_sys::Errno;

use crate::sync::{AtomicU64, Ordering, Table, now_ns};

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
}

impl Residency {
    /// `step_ns` 0 turns it off.
    pub(crate) fn new(step_ns: u64) -> Result<Self, Errno> {
        Ok(Self { slots: Table::zeroed(SLOTS)?, last_ns: AtomicU64::new(0), step_ns })
    }

    fn slot(&self, page: PageIndex) -> &AtomicU64 {
        &self.slots[page.as_usize() % SLOTS]
    }

    /// A touch has brought `page` back. Signal-safe.
    pub(crate) fn restored(&self, page: PageIndex) {
        if self.step_ns == 0 {
            return;
        }
        let now = now_ns();
        let before = self.slot(page).load(Ordering::Relaxed);
        let fought_over = before >> 32 == u64::from(page.0) && before & STOLEN != 0;
        self.keep(page, if fought_over { (level(before) + 1).min(LEVEL_MAX) } else { 0 }, now);
    }

    /// `pages` were given back without a touch that asked for it: by the end of an eager lease, or a prefetch. A touch that
    /// came meanwhile may have been answered by that, and has not run yet; nothing tells. Each page keeps the minimum that it
    /// had: a device that claims again what it gave back fights with nobody.
    pub(crate) fn given_back(&self, pages: PageRange) {
        if self.step_ns == 0 {
            return;
        }
        let now = now_ns();
        for page in pages.iter() {
            let before = self.slot(page).load(Ordering::Relaxed);
            self.keep(page, if before >> 32 == u64::from(page.0) { level(before) } else { 0 }, now);
        }
    }

    fn keep(&self, page: PageIndex, level: u64, now_ns: u64) {
        let state = u64::from(page.0) << 32 | level << LEVEL_SHIFT | (now_ns >> 10) & TIME;
        self.slot(page).store(state, Ordering::Relaxed);
        self.last_ns.store(now_ns, Ordering::Relaxed);
    }

    /// The time to look up pages by, if any page was brought back so lately that it matters.
    pub(crate) fn recent(&self) -> Option<u64> {
        if self.step_ns == 0 {
            return None;
        }
        let now = now_ns();
        let longest = (self.step_ns << LEVEL_MAX) * 2;
        (now.saturating_sub(self.last_ns.load(Ordering::Relaxed)) < longest).then_some(now)
    }

    /// How long a claim of `page` still has to wait, at `now_ns`: 0 if it may have it.
    pub(crate) fn wait_ns(&self, page: PageIndex, now_ns: u64) -> u64 {
        let slot = self.slot(page);
        let state = slot.load(Ordering::Relaxed);
        if state >> 32 != u64::from(page.0) || state == 0 {
            return 0;
        }
        let age_ns = ((now_ns >> 10).wrapping_sub(state) & TIME) << 10;
        let minimum_ns = self.step_ns << level(state);
        if age_ns < 2 * minimum_ns {
            slot.store(state | STOLEN, Ordering::Relaxed);
        }
        minimum_ns.saturating_sub(age_ns)
    }
}

fn level(state: u64) -> u64 {
    state >> LEVEL_SHIFT & 0b111
}
