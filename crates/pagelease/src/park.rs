//! The park: touches that a monitor cannot serve yet.
//!
//! A monitor never waits. A touch of a page that is held or busy is noted here and left asleep in the kernel; the page
//! word's `waiters` bit tells whoever ends the obstacle to give the page back. The note has two uses: the monitors find
//! in it whose hold limit has passed, and it says since when the touch has waited.
//!
//! Lock-free and bounded: a slot is a key (region and page; 0 is free) and a time. One slot serves all touches of a page.
//! When no slot is free the monitor lets the touch trap again, so nothing is lost but time.

use core::time::Duration;

use pagelease_protocol::PageIndex;
use pagelease_sys::Errno;

use crate::device::RegionId;
use crate::sync::{AtomicU64, Deadline, Ordering, Table};

const SLOTS: usize = if cfg!(pagelease_shuttle) { 4 } else { 256 };

pub(crate) struct Park {
    keys: Table<AtomicU64>,
    since_ns: Table<AtomicU64>,
}

fn key(region: RegionId, page: PageIndex) -> u64 {
    u64::from(region.0) << 32 | u64::from(page.0)
}

impl Park {
    pub(crate) fn new() -> Result<Self, Errno> {
        Ok(Self { keys: Table::zeroed(SLOTS)?, since_ns: Table::zeroed(SLOTS)? })
    }

    /// Notes that a touch of `page` waits since `now_ns`, if none does yet. `false`: no room.
    pub(crate) fn insert(&self, region: RegionId, page: PageIndex, now_ns: u64) -> bool {
        let key = key(region, page);
        if self.keys.iter().any(|slot| slot.load(Ordering::SeqCst) == key) {
            return true;
        }
        for (slot, since) in self.keys.iter().zip(self.since_ns.iter()) {
            if slot.load(Ordering::Relaxed) == 0 {
                // A slot that is taken in the same moment keeps its own, later time: nobody waits longer for it than
                // one hold limit more.
                since.store(now_ns, Ordering::Relaxed);
                if slot.compare_exchange(0, key, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
                    return true;
                }
            }
        }
        false
    }

    /// The page has been given back: since when it was waited for, if it was.
    pub(crate) fn remove(&self, region: RegionId, page: PageIndex) -> Option<u64> {
        let key = key(region, page);
        let mut since = None;
        for (slot, at) in self.keys.iter().zip(self.since_ns.iter()) {
            if slot.load(Ordering::SeqCst) == key {
                let ns = at.load(Ordering::Relaxed);
                if slot.compare_exchange(key, 0, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
                    since = Some(since.unwrap_or(u64::MAX).min(ns));
                }
            }
        }
        since
    }

    /// When the first hold limit passes; [`Deadline::NEVER`] when nothing is parked.
    pub(crate) fn first_deadline(&self, hold_limit: Duration) -> Deadline {
        let first = self
            .keys
            .iter()
            .zip(self.since_ns.iter())
            .filter(|(slot, _)| slot.load(Ordering::SeqCst) != 0)
            .map(|(_, since)| since.load(Ordering::Relaxed))
            .min();
        match first {
            Some(since) if hold_limit != Duration::MAX => {
                Deadline::at(since.saturating_add(u64::try_from(hold_limit.as_nanos()).unwrap_or(u64::MAX)))
            }
            _ => Deadline::NEVER,
        }
    }

    /// The parked touches whose hold limit has passed. They stay parked until their page is given back.
    pub(crate) fn overdue(&self, hold_limit: Duration) -> impl Iterator<Item = (RegionId, PageIndex)> + '_ {
        self.keys.iter().zip(self.since_ns.iter()).filter_map(move |(slot, since)| {
            let key = slot.load(Ordering::SeqCst);
            let limit = u64::try_from(hold_limit.as_nanos()).unwrap_or(u64::MAX);
            let overdue = key != 0
                && hold_limit != Duration::MAX
                && Deadline::at(since.load(Ordering::Relaxed).saturating_add(limit)).passed();
            #[expect(clippy::cast_possible_truncation, reason = "takes the packed key apart")]
            overdue.then_some((RegionId((key >> 32) as u32), PageIndex(key as u32)))
        })
    }
}
