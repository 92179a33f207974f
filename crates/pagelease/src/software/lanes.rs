//! Lanes: what each worker works on, and how an invalidation waits for it.
//!
//! ```text
//!   worker                                      invalidation (the page's word is busy, or the device barred)
//!     publish the page in its lane  (a store)     membarrier
//!     is the page mine?             (a load)      for each lane that works on one of the pages: wait
//!       yes: work
//!     withdraw                      (a store)
//! ```
//!
//! The worker's side has no fence: the membarrier is one, on every CPU. After it, either the worker's store is visible and
//! is waited for, or its load comes later and finds the page not its own. A worker that has nothing to do says so with full
//! fences (`active`), and then no membarrier is needed at all.
//!
//! Invariant: a worker works on a page only between publishing and withdrawing it.

use core::sync::atomic::AtomicBool;

use pagelease_protocol::PageIndex;
use pagelease_sys::Errno;

use crate::device::{Device, Invalidation, NotDrained, RegionId};
use crate::sync::{AtomicU32, AtomicU64, Ordering, Table, Zeroed, barrier, fence, relax};

/// Turns of waiting before the drain limit is looked at, and the watch given away.
const PATIENCE: u32 = 400;

/// One worker's lane, alone on its cache lines: it is stored to twice an operation.
#[repr(align(128))]
#[cfg_attr(pagelease_shuttle, derive(Default))]
pub(super) struct Lane {
    /// Region (upper half, never 0) and page; 0 for nothing.
    working: AtomicU64,
    tid: AtomicU32,
    /// The operation that is not waited for any more, as in `working`; the worker may yet come back from it, and work on
    /// other pages, until it learns that its device is lost.
    abandoned: AtomicU64,
    ended: AtomicBool,
}

#[cfg(not(pagelease_shuttle))]
// SAFETY: made of atomics for which zero bits are zero and `false`.
unsafe impl Zeroed for Lane {}
#[cfg(pagelease_shuttle)]
impl Zeroed for Lane {}

fn key(region: RegionId, page: PageIndex) -> u64 {
    u64::from(region.0) << 32 | u64::from(page.0)
}

impl Lane {
    pub(super) fn begin(&self, tid: u32) {
        self.tid.store(tid, Ordering::SeqCst);
    }

    /// A plain store; see the module.
    #[inline]
    pub(super) fn publish(&self, region: RegionId, page: PageIndex) {
        self.working.store(key(region, page), Ordering::Relaxed);
    }

    /// What was done to the page comes before it.
    #[inline]
    pub(super) fn withdraw(&self) {
        self.working.store(0, Ordering::Release);
    }

    /// The page that is being worked on, if it is one of the invalidation's.
    fn works_on(&self, invalidation: &Invalidation) -> Option<PageIndex> {
        let working = self.working.load(Ordering::Acquire);
        #[expect(clippy::cast_possible_truncation, reason = "takes the packed fields apart")]
        let (region, page) = ((working >> 32) as u32, PageIndex(working as u32));
        (region == invalidation.region().0 && invalidation.pages().contains(page)).then_some(page)
    }

    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::SeqCst) != 0
    }

    fn is_abandoned_on(&self, region: RegionId, page: PageIndex) -> bool {
        self.abandoned.load(Ordering::SeqCst) == key(region, page)
    }

    pub(super) fn page(&self) -> PageIndex {
        #[expect(clippy::cast_possible_truncation, reason = "takes the packed fields apart")]
        PageIndex(self.working.load(Ordering::Relaxed) as u32)
    }
}

/// The software device, as the space sees it: its lanes.
pub struct Lanes {
    lanes: Table<Lane>,
    /// Workers that may publish without a fence.
    active: AtomicU32,
}

impl Lanes {
    pub(super) fn new(workers: usize) -> Result<Self, Errno> {
        Ok(Self { lanes: Table::zeroed(workers)?, active: AtomicU32::new(0) })
    }

    pub(super) fn lane(&self, worker: usize) -> &Lane {
        &self.lanes[worker]
    }

    pub(super) fn lanes(&self) -> &[Lane] {
        &self.lanes
    }

    /// A worker is about to publish.
    pub(super) fn activate(&self) {
        self.active.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// A worker will publish nothing until it is active again.
    pub(super) fn deactivate(&self) {
        self.active.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Device for Lanes {
    fn name(&self) -> &'static str {
        "software"
    }

    fn signal_safe(&self) -> bool {
        true
    }

    fn invalidate(&self, invalidation: &Invalidation) -> Result<(), NotDrained> {
        fence(Ordering::SeqCst);
        if self.active.load(Ordering::SeqCst) == 0 {
            return Ok(());
        }
        // It has a job, and most likely the next operation of it is on these pages.
        invalidation.note_in_use();
        barrier();
        for lane in self.lanes() {
            let mut turn = 0;
            while let Some(page) = lane.works_on(invalidation) {
                // An operation of the touching thread itself ends only after its touch. Asked once: it is a system call.
                let own = turn == 50 && invalidation.toucher() == Some(lane.tid.load(Ordering::SeqCst));
                if own || lane.is_abandoned_on(invalidation.region(), page) {
                    break;
                }
                if turn > PATIENCE && invalidation.overdue() {
                    lane.abandoned.store(key(invalidation.region(), page), Ordering::SeqCst);
                    return Err(NotDrained { page });
                }
                turn += 1;
                relax(turn);
            }
        }
        Ok(())
    }
}
