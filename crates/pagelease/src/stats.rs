//! What a space has done so far, counted.

use core::sync::atomic::{AtomicU64, Ordering};

macro_rules! stats {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// A snapshot of a space's counters. They only grow; each is exact, but they are not read at one instant.
        #[derive(Copy, Clone, Debug, Default, Eq, PartialEq)]
        #[non_exhaustive]
        pub struct Stats {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        #[derive(Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)+
        }

        impl Counters {
            pub(crate) fn snapshot(&self) -> Stats {
                Stats { $($name: self.$name.0.load(Ordering::Relaxed),)+ }
            }
        }
    };
}

stats! {
    /// Claims that ended in a lease.
    claims,
    /// Pages that claims took from the CPU or from another device.
    pages_claimed,
    /// Pages that claims asked for and the device already had: no system call, no notification.
    claims_already_held,
    /// Times a claim started again because an invalidation that concerned it came in between.
    claim_retries,
    /// CPU accesses that trapped and were served; among them first accesses of pages that only a device had touched before.
    touches,
    /// Pages given back to the CPU, by whatever way: a touch, its neighbours, a prefetch, an eager lease.
    restores,
    /// Those of them that the end of a lease gave back: all of its pages that were idle with [`RestorePolicy::Eager`], the ones
    /// chosen with [`RestorePolicy::Adaptive`].
    ///
    /// [`RestorePolicy::Eager`]: crate::RestorePolicy::Eager
    /// [`RestorePolicy::Adaptive`]: crate::RestorePolicy::Adaptive
    given_back,
    /// Pages mapped read-only for the CPU while a device kept them for writing.
    read_only_maps,
    /// Calls of a device's `invalidate`.
    invalidations,
    /// Invalidations that reached a device that had none of the pages.
    invalidations_spurious,
    /// Holds broken because the hold limit passed.
    holds_broken,
    /// Holds that ended because the holding thread touched the page itself.
    holds_broken_by_self,
    /// Touches that found the page held or busy and had to wait.
    waits,
    /// The longest such wait, and the longest for an operation in flight to end, in nanoseconds.
    wait_ns_max,
    /// Times that a page was found to be fought over by CPU and device, and both were given a minimum residency. With
    /// [`RestorePolicy::Adaptive`] only.
    ///
    /// [`RestorePolicy::Adaptive`]: crate::RestorePolicy::Adaptive
    fights,
    /// Touches that left such a page with its device for the rest of the minimum.
    touches_throttled,
    /// The longest rest that was asked of one, in nanoseconds. (What it waits for the device to end comes on top.)
    throttle_ns_max,
    /// Touches that a monitor could not park because the list was full; it woke them to trap again.
    parks_refused,
    /// Claims that waited for a page's minimum residency with the CPU. (With every policy: the CPU has one always.)
    residency_waits,
    /// Devices lost: an operation did not drain in time, or failed.
    devices_lost,
    /// Pages of a lost device that could not be covered by a copy, for want of memory.
    covers_failed,
    /// Pages that could not be mapped back at the first attempt; the touch trapped again.
    restores_failed,
    /// Huge pages of adopted memory that claims took whole.
    huge_pages_moved,
    /// Huge pages of adopted memory that were split: a claim or a touch was about a part of them.
    huge_pages_split,
    /// Accesses through a device's view of adopted memory to pages that the device did not have. They found zeroes, and what
    /// they stored is lost.
    stray_accesses,
    /// Granules of adopted memory that are the program's own again, because `mremap` had scattered their region too much, or a part
    /// of one of 2 MiB was unmapped or moved.
    pages_given_up,
}

/// A counter that any thread may raise, a signal handler included.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn one(&self) {
        self.add(1);
    }

    pub(crate) fn at_least(&self, n: u64) {
        if self.0.load(Ordering::Relaxed) < n {
            self.0.fetch_max(n, Ordering::Relaxed);
        }
    }
}
