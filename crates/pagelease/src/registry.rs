//! The process's regions, by address: what a fault handler looks in.
//!
//! A static table of slots that are never freed, read without a lock. A slot is free (an empty range), open, or closed.
//! Invariants: an open slot's region pointer is valid; a reader raises the slot's `pins` before it looks whether it is open
//! a second time, and whoever closes it says so first and then waits for the pins to go. Both are sequentially consistent,
//! so one of the two sees the other. A slot stays closed until the region's memory goes: a touch that has trapped just
//! before is told apart from one that is nobody's ([`is_closed`]).

use core::ptr::null_mut;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};
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
    closed: AtomicBool,
    region: AtomicPtr<RegionCore>,
}

static SLOTS: [Slot; REGIONS_MAX] = [const {
    Slot {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        pins: AtomicU32::new(0),
        closed: AtomicBool::new(false),
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
        // SAFETY: the pin was taken while the slot was open, and whoever closes it waits for the pin.
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
        // The pin came before this look: if the slot is still open, its region stays.
        let open = self.end.load(Ordering::SeqCst) != 0 && !self.closed.load(Ordering::SeqCst);
        (open && wanted(&pinned)).then_some(pinned)
    }
}

fn used() -> &'static [Slot] {
    &SLOTS[..USED.load(Ordering::Acquire)]
}

/// The region that `address` lies in. Signal-safe.
pub(crate) fn find(address: usize) -> Option<Pinned> {
    // A slot that is just being filled anew may look as if it contained the address: then another one does.
    used()
        .iter()
        .filter(|slot| slot.contains(address))
        .find_map(|slot| slot.pin(|region| region.backend.span().contains(address)))
}

/// The region numbered `id`. Signal-safe.
pub(crate) fn find_id(id: u32) -> Option<Pinned> {
    used()
        .iter()
        .filter(|slot| slot.end.load(Ordering::SeqCst) != 0)
        .find_map(|slot| slot.pin(|region| region.id.0 == id))
}

/// Whether `address` lies in a region that has closed: whoever trapped there may try again, and will not trap. Signal-safe.
pub(crate) fn is_closed(address: usize) -> bool {
    used().iter().any(|slot| slot.contains(address) && slot.closed.load(Ordering::SeqCst))
}

/// Where some region lies that overlaps `start..end`.
pub(crate) fn overlapping(start: usize, end: usize) -> Option<Span> {
    used().iter().find_map(|slot| {
        let (from, to) = (slot.start.load(Ordering::SeqCst), slot.end.load(Ordering::SeqCst));
        if from < end && start < to { Span::new(from, to - from) } else { None }
    })
}

/// Makes `region` known; `false` if there are too many. The caller closes it, and removes it before its memory goes.
pub(crate) fn insert(region: *const RegionCore, span: Span) -> bool {
    let _changes = CHANGES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some((index, slot)) = SLOTS.iter().enumerate().find(|(_, slot)| slot.end.load(Ordering::Relaxed) == 0) else {
        return false;
    };
    slot.region.store(region.cast_mut(), Ordering::SeqCst);
    slot.closed.store(false, Ordering::SeqCst);
    slot.start.store(span.start(), Ordering::SeqCst);
    slot.end.store(span.end(), Ordering::SeqCst);
    USED.fetch_max(index + 1, Ordering::SeqCst);
    true
}

fn slot_of(span: Span) -> Option<&'static Slot> {
    SLOTS.iter().find(|slot| {
        slot.start.load(Ordering::Relaxed) == span.start() && slot.end.load(Ordering::Relaxed) == span.end()
    })
}

/// No fault handler finds the region of `span` any more; waits until none works on it.
pub(crate) fn close(span: Span) {
    let _changes = CHANGES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some(slot) = slot_of(span) else { return };
    slot.closed.store(true, Ordering::SeqCst);
    let mut turn = 0;
    while slot.pins.load(Ordering::SeqCst) != 0 {
        turn += 1;
        relax(turn);
    }
}

/// Forgets the region of `span`, which is closed.
pub(crate) fn remove(span: Span) {
    let _changes = CHANGES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some(slot) = slot_of(span) else { return };
    slot.end.store(0, Ordering::SeqCst);
    slot.start.store(0, Ordering::SeqCst);
}
