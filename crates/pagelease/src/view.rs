//! [`View`]: a device's view of a region, and the door to claiming.
//!
//! A view is an alias of the region's pages, one a device, so that one device's can be covered without harming another's.
//!
//! Invariants: as long as a page word of the region names the device, the view exists, and keeps the device. Closing a view
//! bars the device (`stop`), drains it, and sweeps every word that may name it: those between `low` and `high`.

use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use pagelease_protocol::{Access, Cause, PageIndex, PageRange};
use pagelease_sys::fork;

use crate::backend::ViewMemory;
use crate::claim;
use crate::device::{DeviceCore, RegionId};
use crate::error::ClaimError;
use crate::lease::Lease;
use crate::notifier::Notifier;
use crate::region::{RegionCore, ViewSlot};
use crate::restore::{Of, Patience, bring_back};
use crate::shared::Shared;
use crate::space::Space;
use crate::sync::AtomicU64;

/// A device's view of a region. Cloning gives another handle of the same view; dropping the last one detaches the device:
/// it is drained, and its pages go back to the CPU.
#[derive(Clone)]
pub struct View {
    core: Shared<ViewCore>,
}

pub(crate) struct ViewCore {
    pub(crate) region: Shared<RegionCore>,
    pub(crate) device: Shared<DeviceCore>,
    pub(crate) memory: ViewMemory,
    pub(crate) granule: usize,
    /// Keeps the service threads while there is something to serve.
    pub(crate) _space: Space,
}

impl View {
    pub(crate) fn new(core: ViewCore) -> Result<Self, pagelease_sys::Errno> {
        Ok(Self { core: Shared::new(core)? })
    }

    pub(crate) fn core(&self) -> &Shared<ViewCore> {
        &self.core
    }

    /// Claims `pages` for the device: takes them from the CPU and from any other device, and holds them until the lease is
    /// dropped. Pages that the device has already cost no system call.
    ///
    /// It waits for what is in the way: another device's hold (at most the hold limit, then it breaks it), a CPU touch that
    /// waits for a page (which goes first), a page's minimum residency with the CPU. Any thread; not a signal handler.
    ///
    /// # Errors
    /// [`ClaimError`]; what had been taken is the CPU's again.
    pub fn claim(&self, pages: PageRange, access: Access) -> Result<Lease, ClaimError> {
        claim::claim(&self.core, &[pages], access)
    }

    /// Claims several ranges, ascending and disjoint, as [`View::claim`] does one; in as few system calls as they allow.
    ///
    /// # Errors
    /// [`ClaimError`]; what had been taken is the CPU's again.
    pub fn claim_scattered(&self, ranges: &[PageRange], access: Access) -> Result<Lease, ClaimError> {
        claim::claim(&self.core, ranges, access)
    }

    /// Subscribes to invalidations of `pages`: the `read_begin` / `read_retry` of a driver that maps what it has read.
    ///
    /// # Errors
    /// [`ClaimError::OutOfRange`], [`ClaimError::RegionGone`], [`ClaimError::TooManyLeases`].
    pub fn subscribe(&self, pages: PageRange) -> Result<Notifier, ClaimError> {
        Notifier::new(&self.core, pages)
    }

    /// Whether the device may use `page` now: three loads. It may stop being so at any moment, unless a lease holds it.
    #[must_use]
    pub fn has(&self, page: PageIndex) -> bool {
        let core = &self.core;
        page.0 < core.region.pages
            && core.region.word(page).usable_by(core.device.id)
            && !core.is_stopped()
            && !core.device.is_lost()
    }

    /// The pages of the region.
    #[must_use]
    pub fn pages(&self) -> PageRange {
        PageRange::new(0, self.core.region.pages).expect("a region has at least one page")
    }

    /// The region this is a view of.
    #[must_use]
    pub fn region(&self) -> RegionId {
        self.core.region.id
    }

    /// Where the device sees the region: the whole of what [`View::page_ptr`] shows page by page, under the same rules. `None`
    /// in a simulated region.
    ///
    /// A driver whose device reaches the memory through the page table of this process (a KVM memory slot) may trap and revoke
    /// its own view: register it with a userfaultfd of its own, and zap its pages with `MADV_DONTNEED`. Where
    /// [`Capabilities::alias`] holds, the runtime itself does neither to a view: it maps it, may cover single pages of it after
    /// the device was lost, and unmaps it with the last view and lease. Before its last view goes, the driver unregisters it.
    ///
    /// [`Capabilities::alias`]: crate::Capabilities::alias
    #[must_use]
    pub fn as_ptr(&self) -> Option<NonNull<[u8]>> {
        let ViewMemory::Mapping(mapping) = &self.core.memory else { return None };
        Some(NonNull::slice_from_raw_parts(NonNull::new(mapping.as_ptr())?, mapping.span().len()))
    }

    /// Where the device sees `page`: an alias of the CPU view's page, one granule long. What lies there may be stored to by
    /// the CPU and by other devices unless the device has the page. Valid as long as the view.
    ///
    /// `None` for a page behind the region's end, and in a simulated region, which has no addresses.
    #[must_use]
    pub fn page_ptr(&self, page: PageIndex) -> Option<NonNull<[u8]>> {
        let ViewMemory::Mapping(mapping) = &self.core.memory else { return None };
        if page.0 >= self.core.region.pages {
            return None;
        }
        let start = NonNull::new(mapping.as_ptr().wrapping_add(page.as_usize() * self.core.granule))?;
        Some(NonNull::slice_from_raw_parts(start, self.core.granule))
    }

    /// The words of `page` as the device sees them, under the same rules.
    ///
    /// # Panics
    /// If the page lies behind the region's end.
    #[must_use]
    pub fn words(&self, page: PageIndex) -> &[AtomicU64] {
        let (words, a_page) = self.core.all_words();
        &words[page.as_usize() * a_page..][..a_page]
    }
}

impl ViewCore {
    pub(crate) fn slot(&self) -> &ViewSlot {
        self.region.slot(self.device.id)
    }

    /// All of the region's words, and how many a page has.
    pub(crate) fn all_words(&self) -> (&[AtomicU64], usize) {
        let words = self.memory.words();
        (words, words.len() / self.region.pages as usize)
    }

    /// Whether the device must not start anything on the region any more. One load, no fence: whoever stops it drains.
    #[inline]
    pub(crate) fn is_stopped(&self) -> bool {
        self.slot().is_stopped()
    }

    /// The device may from now on have any of `pages`.
    pub(crate) fn widen(&self, pages: PageRange) {
        let slot = self.slot();
        if slot.low.load(Ordering::Relaxed) > pages.start() {
            slot.low.fetch_min(pages.start(), Ordering::SeqCst);
        }
        if slot.high.load(Ordering::Relaxed) < pages.end() {
            slot.high.fetch_max(pages.end(), Ordering::SeqCst);
        }
    }
}

impl Drop for ViewCore {
    fn drop(&mut self) {
        if fork::in_child() {
            return;
        }
        let slot = self.slot();
        slot.stop();
        if let Some(claimed) = slot.claimed()
            && let Some(_operation) = self.region.enter()
        {
            bring_back(&self.region, claimed, Of::Device(self.device.id), Cause::Release, Patience::None);
        }
        self.region.detach(self.device.id);
    }
}
