//! Flights: the pages that submissions use, and how an invalidation waits for them.
//!
//! A table of ranges, a place each, published before a submission is handed to the driver and withdrawn when it has landed.
//! An invalidation only reads it: no lock, no allocation.
//!
//! Invariants: a place's region is 0 unless a submission uses its range; the range is written before the region; `high` lies
//! above every place in use; all three are changed by whoever has the place's bit in `taken`, which is changed under its lock.
//! A reader may see one submission's region with another's range. Then the place was taken anew while it looked, by a
//! submission that has yet to look whether its pages are still its own, and will find that they are not.

use pagelease_protocol::PageIndex;
use pagelease_sys::Errno;

use super::Need;
use crate::device::{Device, DeviceHandle, Invalidation, NotDrained};
use crate::error::DeviceLost;
use crate::sync::{AtomicU32, Deadline, Mutex, Ordering, Table, Word, Zeroed, block_signals, fence};

/// How long an invalidation sleeps before it looks at the drain limit again.
const LOOK: core::time::Duration = core::time::Duration::from_millis(10);

/// A range of pages in use.
#[cfg_attr(pagelease_shuttle, derive(Default))]
struct Place {
    region: AtomicU32,
    start: AtomicU32,
    end: AtomicU32,
}

#[cfg(not(pagelease_shuttle))]
// SAFETY: made of atomics for which zero bits are zero.
unsafe impl Zeroed for Place {}
#[cfg(pagelease_shuttle)]
impl Zeroed for Place {}

/// A submitting device, as the space sees it.
pub struct Flights {
    name: String,
    places: Table<Place>,
    /// Which places are in use, a bit each.
    taken: Mutex<[u64; Self::LIMIT / 64]>,
    /// Places from here on are not in use.
    high: AtomicU32,
    /// Changes whenever a flight has landed.
    landings: Word,
    /// 1 once a flight was not waited for to its end: the device is lost, and none of its flights is waited for any more.
    abandoned: AtomicU32,
}

impl Flights {
    /// How many separate ranges can be in use at a time.
    pub(super) const LIMIT: usize = 1024;

    pub(super) fn new(name: &str) -> Result<Self, Errno> {
        Ok(Self {
            name: name.to_owned(),
            places: Table::zeroed(Self::LIMIT)?,
            taken: Mutex::new([0; Self::LIMIT / 64]),
            high: AtomicU32::new(0),
            landings: Word::new(0),
            abandoned: AtomicU32::new(0),
        })
    }

    /// Takes `count` places, if there are as many.
    fn take(&self, count: usize) -> Option<Vec<usize>> {
        let _blocked = block_signals();
        let mut taken = self.taken.lock().expect("not poisoned");
        let free: Vec<_> =
            (0..Self::LIMIT).filter(|&place| taken[place / 64] & 1 << (place % 64) == 0).take(count).collect();
        if free.len() < count {
            return None;
        }
        free.iter().for_each(|&place| taken[place / 64] |= 1 << (place % 64));
        self.set_high(&taken);
        Some(free)
    }

    fn give_back(&self, places: &[usize]) {
        for &place in places {
            // What the device did to the pages comes before it.
            self.places[place].region.store(0, Ordering::SeqCst);
        }
        {
            let _blocked = block_signals();
            let mut taken = self.taken.lock().expect("not poisoned");
            places.iter().for_each(|&place| taken[place / 64] &= !(1 << (place % 64)));
            self.set_high(&taken);
        }
        self.landings.bump();
        self.landings.wake_all();
    }

    fn set_high(&self, taken: &[u64; Self::LIMIT / 64]) {
        let last = (1..).zip(taken).filter(|(_, bits)| **bits != 0).last();
        self.high.store(last.map_or(0, |(count, bits)| count * 64 - bits.leading_zeros()), Ordering::SeqCst);
    }

    /// The first of the invalidation's pages that a flight uses, of those that have not been given up.
    fn in_use(&self, invalidation: &Invalidation) -> Option<PageIndex> {
        let wanted = invalidation.not_given_up()?;
        let high = self.high.load(Ordering::SeqCst) as usize;
        let used = self.places[..high].iter().filter_map(|place| {
            if place.region.load(Ordering::SeqCst) != invalidation.region().get() {
                return None;
            }
            let (start, end) = (place.start.load(Ordering::SeqCst), place.end.load(Ordering::SeqCst));
            let start = start.max(wanted.start());
            (start < end.min(wanted.end())).then_some(start)
        });
        used.min().map(PageIndex)
    }
}

impl Device for Flights {
    fn name(&self) -> &str {
        &self.name
    }

    fn signal_safe(&self) -> bool {
        true
    }

    fn invalidate(&self, invalidation: &Invalidation) -> Result<(), NotDrained> {
        fence(Ordering::SeqCst);
        loop {
            let landings = self.landings.load();
            let Some(page) = self.in_use(invalidation) else { return Ok(()) };
            if self.abandoned.load(Ordering::SeqCst) != 0 || invalidation.overdue() {
                self.abandoned.store(1, Ordering::SeqCst);
                return Err(NotDrained { page });
            }
            self.landings.wait(landings, Deadline::after(LOOK));
        }
    }
}

/// A submission's places, before the driver has the work. Dropping it withdraws them.
pub(super) struct Boarding<'a> {
    device: &'a DeviceHandle<Flights>,
    places: Vec<usize>,
}

impl<'a> Boarding<'a> {
    /// Publishes what is needed; waits until there is room.
    pub(super) fn new(device: &'a DeviceHandle<Flights>, needs: &[Need<'_>]) -> Result<Self, DeviceLost> {
        let ranges = || needs.iter().flat_map(|need| need.ranges.iter().map(move |range| (need, *range)));
        let count = ranges().count();
        let places = loop {
            let landings = device.landings.load();
            if let Some(places) = device.take(count) {
                break places;
            }
            if let Some(lost) = device.lost() {
                return Err(lost);
            }
            device.landings.wait(landings, Deadline::after(LOOK));
        };
        for (&place, (need, range)) in places.iter().zip(ranges()) {
            let place = &device.places[place];
            place.start.store(range.start(), Ordering::SeqCst);
            place.end.store(range.end(), Ordering::SeqCst);
            place.region.store(need.view.core().region.id.get(), Ordering::SeqCst);
        }
        Ok(Self { device, places })
    }

    /// The driver has the work.
    pub(super) fn take_off(mut self) -> Flying {
        Flying { device: self.device.clone(), places: core::mem::take(&mut self.places) }
    }
}

impl Drop for Boarding<'_> {
    fn drop(&mut self) {
        if !self.places.is_empty() {
            self.device.give_back(&self.places);
        }
    }
}

/// A submission's places, while the driver works on it.
pub(super) struct Flying {
    device: DeviceHandle<Flights>,
    places: Vec<usize>,
}

impl Flying {
    pub(super) fn land(self) {
        self.device.give_back(&self.places);
    }
}
