//! The process's regions, by address: what a fault handler looks in.
//!
//! A static table of slots that are never freed, read without a lock. Invariants: a slot's region pointer is valid while
//! its range is not empty; a reader raises the slot's `pins` before it looks at the range a second time, and whoever
//! removes a region empties the range first and then waits for the pins to go. Both are sequentially consistent, so one
//! of the two sees the other.

use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use std::sync::Mutex;

use pagelease_sys::Span;

use crate::region::RegionCore;
use crate::sync::relax;

/// The most regions of a process.
pub(crate) const REGIONS_MAX: usize = 1024;

struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    pins: AtomicU32,
    region: AtomicPtr<RegionCore>,
}

static SLOTS: [Slot; REGIONS_MAX] = [const {
    Slot {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        pins: AtomicU32::new(0),
        region: AtomicPtr::new(null_mut()),
    }
}; REGIONS_MAX];

/// No slot from here on was ever used.
static USED: AtomicUsize = AtomicUsize::new(0);

/// Serialises changes. Never taken by a fault handler.
static CHANGES: Mutex<()> = Mutex::new(());

/// A region that a fault handler works on: it stays until this is dropped.
pub(crate) struct Pinned(&'static Slot);

impl core::ops::Deref for Pinned {
    type Target = RegionCore;

    fn deref(&self) -> &RegionCore {
        // SAFETY: the pin was taken while the range was not empty, and whoever empties it waits for the pin.
        unsafe { &*self.0.region.load(Ordering::Acquire) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.0.pins.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Slot {
    fn contains(&self, address: usize) -> bool {
        address < self.end.load(Ordering::SeqCst) && self.start.load(Ordering::SeqCst) <= address
    }

    fn pin(&'static self, wanted: impl Fn(&RegionCore) -> bool) -> Option<Pinned> {
        self.pins.fetch_add(1, Ordering::SeqCst);
        let pinned = Pinned(self);
        // The pin came before this look: if the slot is still in use, it stays so.
        let used = self.end.load(Ordering::SeqCst) != 0;
        (used && wanted(&pinned)).then_some(pinned)
    }
}

fn used() -> &'static [Slot] {
    &SLOTS[..USED.load(Ordering::Acquire)]
}

/// The region that `address` lies in. Signal-safe.
pub(crate) fn find(address: usize) -> Option<Pinned> {
    used().iter().find(|slot| slot.contains(address))?.pin(|region| region.backend.span().contains(address))
}

/// The region numbered `id`. Signal-safe.
pub(crate) fn find_id(id: u32) -> Option<Pinned> {
    used()
        .iter()
        .filter(|slot| slot.end.load(Ordering::SeqCst) != 0)
        .find_map(|slot| slot.pin(|region| region.id.0 == id))
}

/// Where some region lies that overlaps `start..end`.
pub(crate) fn overlapping(start: usize, end: usize) -> Option<Span> {
    used().iter().find_map(|slot| {
        let (from, to) = (slot.start.load(Ordering::SeqCst), slot.end.load(Ordering::SeqCst));
        if from < end && start < to { Span::new(from, to - from) } else { None }
    })
}

/// Makes `region` known; `false` if there are too many. The caller removes it before it is dropped.
pub(crate) fn insert(region: *const RegionCore, span: Span) -> bool {
    let _changes = CHANGES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some((index, slot)) = SLOTS.iter().enumerate().find(|(_, slot)| slot.end.load(Ordering::Relaxed) == 0) else {
        return false;
    };
    slot.region.store(region.cast_mut(), Ordering::SeqCst);
    slot.start.store(span.start(), Ordering::SeqCst);
    slot.end.store(span.end(), Ordering::SeqCst);
    USED.fetch_max(index + 1, Ordering::SeqCst);
    true
}

/// Forgets the region of `span`, and waits until no fault handler works on it.
pub(crate) fn remove(span: Span) {
    let _changes = CHANGES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some(slot) = SLOTS
        .iter()
        .find(|slot| slot.start.load(Ordering::Relaxed) == span.start() && slot.end.load(Ordering::Relaxed) != 0)
    else {
        return;
    };
    slot.end.store(0, Ordering::SeqCst);
    let mut turn = 0;
    while slot.pins.load(Ordering::SeqCst) != 0 {
        turn += 1;
        relax(turn);
    }
    slot.start.store(0, Ordering::SeqCst);
    slot.region.store(null_mut(), Ordering::SeqCst);
}
