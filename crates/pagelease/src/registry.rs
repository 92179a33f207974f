//! The process's regions, by address: what a fault handler looks in.
//!
//! A static table of slots that are never freed, read without a lock. A slot is free (an empty range), open, or closed. A region
//! has one for its CPU view (several, once `mremap` has moved parts of it), and, where pages are carried to devices' views, one
//! for each of those.
//!
//! Invariants: an open slot's region pointer is valid; a reader raises the slot's `pins` before it looks whether it is open
//! a second time, and whoever closes it says so first and then waits for the pins to go. Both are sequentially consistent,
//! so one of the two sees the other. A slot stays closed until the region's memory goes: a touch that has trapped just
//! before is told apart from one that is nobody's ([`is_closed`]).

use core::ptr::null_mut;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::Mutex;

use pagelease_protocol::{OwnerId, PageIndex, PageRange};
use pagelease_sys::Span;

use crate::region::RegionCore;
use crate::sync::{now_ns, relax};

/// The most regions of a process, with the views of those that are adopted.
pub(crate) const REGIONS_MAX: usize = 1024;

struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    /// The page of the region that lies at `start`.
    first: AtomicU32,
    /// Whose view it is: a device's number, or 0 for the CPU.
    device: AtomicU8,
    pins: AtomicU32,
    closed: AtomicBool,
    /// The first slot of the region's CPU view, which it always has, though what lay there may have moved.
    main: AtomicBool,
    region: AtomicPtr<RegionCore>,
}

static SLOTS: [Slot; REGIONS_MAX] = [const {
    Slot {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        first: AtomicU32::new(0),
        device: AtomicU8::new(0),
        pins: AtomicU32::new(0),
        closed: AtomicBool::new(false),
        main: AtomicBool::new(false),
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

/// What lies at an address.
pub(crate) struct Found {
    pub(crate) region: Pinned,
    pub(crate) page: PageIndex,
    /// It is this device's view, not the CPU's.
    pub(crate) device: Option<OwnerId>,
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

    /// Whether it can be taken, with `CHANGES` locked: it is free, or has been cut down to nothing and nobody has it pinned.
    fn is_free(&self) -> bool {
        let (start, end) = (self.start.load(Ordering::SeqCst), self.end.load(Ordering::SeqCst));
        if end == 0 {
            return true;
        }
        if start != end || self.main.load(Ordering::SeqCst) {
            return false;
        }
        // Nobody pins it from now on.
        let was_closed = self.closed.swap(true, Ordering::SeqCst);
        let free = !was_closed && self.pins.load(Ordering::SeqCst) == 0;
        if !free && !was_closed {
            self.closed.store(false, Ordering::SeqCst);
        }
        free
    }

    fn is_of_cpu(&self) -> bool {
        self.device.load(Ordering::SeqCst) == 0
    }

    fn is_of(&self, region: *const RegionCore) -> bool {
        self.end.load(Ordering::SeqCst) != 0 && core::ptr::eq(self.region.load(Ordering::SeqCst), region)
    }

    /// With `CHANGES` locked.
    fn free(&self) {
        self.main.store(false, Ordering::SeqCst);
        self.end.store(0, Ordering::SeqCst);
        self.start.store(0, Ordering::SeqCst);
    }

    fn wait_for_pins(&self) {
        let mut turn = 0;
        while self.pins.load(Ordering::SeqCst) != 0 {
            turn += 1;
            relax(turn);
        }
    }

    /// The pages of the slot's region, of which it has only those between its addresses.
    fn pages_between(&self, region: &RegionCore, start: usize, end: usize) -> Option<(PageRange, usize)> {
        let (from, to) = (self.start.load(Ordering::SeqCst), self.end.load(Ordering::SeqCst));
        let (start, end) = (start.max(from), end.min(to));
        if start >= end {
            return None;
        }
        let first = self.first.load(Ordering::SeqCst);
        let page = |offset: usize| u32::try_from(offset / region.granule.0).ok()?.checked_add(first);
        Some((PageRange::new(page(start - from)?, page(end - from - 1)? + 1)?, start))
    }
}

fn used() -> &'static [Slot] {
    &SLOTS[..USED.load(Ordering::Acquire)]
}

/// What `address` is, if it is a region's. Signal-safe.
pub(crate) fn find(address: usize) -> Option<Found> {
    // A slot that is just being changed may look as if it contained the address: then another one does.
    used().iter().filter(|slot| slot.contains(address)).find_map(|slot| {
        let region = slot.pin(|_| slot.contains(address))?;
        let offset = address.checked_sub(slot.start.load(Ordering::SeqCst))?;
        let page = u32::try_from(offset / region.granule.0).ok()?.checked_add(slot.first.load(Ordering::SeqCst))?;
        let device = OwnerId::new(slot.device.load(Ordering::SeqCst));
        (page < region.pages).then_some(Found { region, page: PageIndex(page), device })
    })
}

/// The region numbered `id`. Signal-safe.
pub(crate) fn find_id(id: u32) -> Option<Pinned> {
    used()
        .iter()
        .filter(|slot| slot.end.load(Ordering::SeqCst) != 0)
        .find_map(|slot| slot.pin(|region| region.id.0 == id))
}

/// Calls `act` for each region once. Signal-safe.
pub(crate) fn for_each(mut act: impl FnMut(&RegionCore)) {
    for slot in used().iter().filter(|slot| slot.main.load(Ordering::SeqCst)) {
        if let Some(region) = slot.pin(|_| slot.main.load(Ordering::SeqCst)) {
            act(&region);
        }
    }
}

/// Calls `act` for each piece of a CPU view that overlaps `start..end`: the region, the pages that it (partly) has, where the
/// first of those begins, and the overlap itself.
pub(crate) fn for_each_piece(start: usize, end: usize, mut act: impl FnMut(&RegionCore, PageRange, usize, Span)) {
    for slot in used().iter().filter(|slot| slot.is_of_cpu()) {
        let Some(region) = slot.pin(|_| true) else { continue };
        if let Some((pages, at)) = slot.pages_between(&region, start, end)
            && let Some(overlap) = Span::new(at, end.min(slot.end.load(Ordering::SeqCst)).saturating_sub(at))
        {
            let offset = (at - slot.start.load(Ordering::SeqCst)) % region.granule.0;
            act(&region, pages, at - offset, overlap);
        }
    }
}

/// The CPU view of `region` has nothing at `start..end` any more. A slot never changes where it begins, which readers could see
/// half done: what is left behind the gap gets a new one first. `false`, and nothing is cut: there are too many.
pub(crate) fn cut(region: &RegionCore, start: usize, end: usize) -> bool {
    for slot in used().iter().filter(|slot| slot.is_of(region) && slot.is_of_cpu()) {
        let (from, to) = (slot.start.load(Ordering::SeqCst), slot.end.load(Ordering::SeqCst));
        if to <= start || end <= from {
            continue;
        }
        if let Some(behind) = to.checked_sub(end).and_then(|len| Span::new(end, len)) {
            let Some((pages, _)) = slot.pages_between(region, end, to) else { return false };
            if insert(region, behind, PageIndex(pages.start()), None).is_none() {
                return false;
            }
        }
        slot.end.store(start.max(from), Ordering::SeqCst);
    }
    true
}

/// What `region` had at `span` is the program's own again: whoever trapped there just before may try again. Where there are too
/// many pieces to cut one more, it stays known, as a place that has no page.
pub(crate) fn give_back(region: &RegionCore, span: Span) {
    GivenBack::note(span.start(), span.end());
    let _ = cut(region, span.start(), span.end());
}

/// Whether `address` lies in a region that has closed: whoever trapped there may try again, and will not trap. Signal-safe.
pub(crate) fn is_closed(address: usize) -> bool {
    let now_ns = now_ns();
    used().iter().any(|slot| slot.contains(address) && slot.closed.load(Ordering::SeqCst))
        || GIVEN_BACK.iter().any(|given_back| given_back.contains(address, now_ns))
}

/// Where a region of adopted memory was. The memory stays when the region goes, and with it whoever trapped just before.
struct GivenBack {
    start: AtomicUsize,
    end: AtomicUsize,
    at_ns: AtomicU64,
}

/// How long a thread may take from its trap to the end of its signal handler.
const HANDLER_NS: u64 = 10_000_000_000;

static GIVEN_BACK: [GivenBack; 64] =
    [const { GivenBack { start: AtomicUsize::new(0), end: AtomicUsize::new(0), at_ns: AtomicU64::new(0) } }; 64];

static GIVEN_BACK_NEXT: AtomicUsize = AtomicUsize::new(0);

impl GivenBack {
    fn contains(&self, address: usize, now_ns: u64) -> bool {
        (self.start.load(Ordering::SeqCst)..self.end.load(Ordering::SeqCst)).contains(&address)
            && now_ns.saturating_sub(self.at_ns.load(Ordering::SeqCst)) < HANDLER_NS
    }

    fn note(start: usize, end: usize) {
        let place = &GIVEN_BACK[GIVEN_BACK_NEXT.fetch_add(1, Ordering::SeqCst) % GIVEN_BACK.len()];
        place.end.store(0, Ordering::SeqCst);
        place.start.store(start, Ordering::SeqCst);
        place.at_ns.store(now_ns(), Ordering::SeqCst);
        place.end.store(end, Ordering::SeqCst);
    }
}

/// Where some region's CPU view lies that overlaps `start..end`.
pub(crate) fn overlapping(start: usize, end: usize) -> Option<Span> {
    used().iter().filter(|slot| slot.is_of_cpu() && !slot.closed.load(Ordering::SeqCst)).find_map(|slot| {
        let (from, to) = (slot.start.load(Ordering::SeqCst), slot.end.load(Ordering::SeqCst));
        if from < end && start < to { Span::new(from, to - from) } else { None }
    })
}

/// Makes `region` known at `span`, where its pages from `first` on are, in its CPU view or in a device's. `None`: too many. The
/// caller closes it, and removes it before its memory goes.
pub(crate) fn insert(region: *const RegionCore, span: Span, first: PageIndex, device: Option<OwnerId>) -> Option<()> {
    let _changes = CHANGES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let is_main = device.is_none() && !used().iter().any(|slot| slot.is_of(region) && slot.main.load(Ordering::SeqCst));
    let closes =
        |slot: &Slot| slot.is_of(region) && slot.main.load(Ordering::SeqCst) && slot.closed.load(Ordering::SeqCst);
    if used().iter().any(closes) {
        return None;
    }
    let (index, slot) = SLOTS.iter().enumerate().find(|(_, slot)| slot.is_free())?;
    slot.main.store(is_main, Ordering::SeqCst);
    slot.region.store(region.cast_mut(), Ordering::SeqCst);
    slot.closed.store(false, Ordering::SeqCst);
    slot.first.store(first.0, Ordering::SeqCst);
    slot.device.store(device.map_or(0, OwnerId::get), Ordering::SeqCst);
    slot.start.store(span.start(), Ordering::SeqCst);
    slot.end.store(span.end(), Ordering::SeqCst);
    USED.fetch_max(index + 1, Ordering::SeqCst);
    Some(())
}

/// No fault handler finds `region` any more; waits until none works on it.
pub(crate) fn close(region: *const RegionCore) {
    let changes = CHANGES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let slots = || used().iter().filter(|slot| slot.is_of(region));
    for slot in slots() {
        if slot.is_of_cpu() {
            GivenBack::note(slot.start.load(Ordering::SeqCst), slot.end.load(Ordering::SeqCst));
        }
        slot.closed.store(true, Ordering::SeqCst);
    }
    // Unlocked: whoever has pinned one may be about to change them, and is refused. The slots stay the region's.
    drop(changes);
    slots().for_each(Slot::wait_for_pins);
}

/// Forgets `region`, which is closed.
pub(crate) fn remove(region: *const RegionCore) {
    let _changes = CHANGES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    used().iter().filter(|slot| slot.is_of(region)).for_each(Slot::free);
}

/// Forgets a device's view of `region`; waits until no fault handler works on it.
pub(crate) fn remove_view(region: *const RegionCore, device: OwnerId) {
    let lock = || CHANGES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let is_its = |slot: &&Slot| slot.is_of(region) && slot.device.load(Ordering::SeqCst) == device.get();
    let changes = lock();
    used().iter().filter(is_its).for_each(|slot| slot.closed.store(true, Ordering::SeqCst));
    // As in `close`.
    drop(changes);
    used().iter().filter(is_its).for_each(Slot::wait_for_pins);
    let _changes = lock();
    used().iter().filter(is_its).for_each(Slot::free);
}
