//! What is measured: a region, and a software device that works on it.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use pagelease::software::{SoftwareConfig, SoftwareDevice};
use pagelease::{Access, BackendKind, ByteLen, Faults, PageRange, Region, RestorePolicy, Space, View};
use pagelease_sys::page_size;

use super::bare::{Bare, Trap};
use super::cpus;

/// Pages that are populated at a time.
const FEW: usize = 16;

/// 64-bit words of a page.
pub(super) fn words_per_page() -> usize {
    page_size() / size_of::<AtomicU64>()
}

/// The pages `first..first + count`.
///
/// # Panics
/// If that is none, or more than a region can have.
pub(super) fn pages(first: usize, count: usize) -> PageRange {
    let index = |page| u32::try_from(page).expect("a region's pages are numbered in 32 bits");
    PageRange::new(index(first), index(first + count)).expect("at least one page")
}

/// A region with a software device on it: one worker, idle until something is submitted. The fields are dropped in order.
pub(super) struct Managed {
    pub(super) view: View,
    pub(super) region: Region,
    pub(super) device: SoftwareDevice,
    pub(super) space: Space,
}

/// What the runtime calls its monitors.
pub(super) const MONITOR: &str = "pagelease-monitor";

/// How many monitors a space has by default.
pub(super) const MONITORS: usize = 2;

impl Managed {
    /// What the runtime calls a software device's workers; their number follows.
    pub(super) const WORKER: &str = "pagelease-sw-";

    /// A region of `count` pages that exist, are mapped in all views, and are the CPU's. The threads of the runtime run on
    /// `service_cpu`.
    pub(super) fn new(faults: Faults, count: usize, service_cpu: usize) -> Result<Self> {
        let managed = Self::untouched(faults, count, service_cpu, SoftwareConfig::default())?;
        managed.populate(0, count)?;
        Ok(managed)
    }

    /// The same, and beside it a floor of as many pages. They are populated by turns, a few pages at a time, so that one's
    /// pages lie in physical memory as the other's do: what lies in a row is dealt with a third faster than what is scattered.
    pub(super) fn beside_bare(faults: Faults, count: usize, service_cpu: usize, trap: Trap) -> Result<(Self, Bare)> {
        let managed = Self::untouched(faults, count, service_cpu, SoftwareConfig::default())?;
        managed.and_bare(count, trap)
    }

    /// The same on the `mprotect` backend.
    pub(super) fn mprotect_beside_bare(count: usize, service_cpu: usize) -> Result<(Self, Bare)> {
        Self::untouched_on(BackendKind::Mprotect, count, service_cpu)?.and_bare(count, Trap::None)
    }

    /// As [`Managed::new`], on this backend, served in the touching thread.
    pub(super) fn on(backend: BackendKind, count: usize, service_cpu: usize) -> Result<Self> {
        let managed = Self::untouched_on(backend, count, service_cpu)?;
        managed.populate(0, count)?;
        Ok(managed)
    }

    fn untouched_on(backend: BackendKind, count: usize, service_cpu: usize) -> Result<Self> {
        let space = Space::builder().faults(Faults::InThread).backend(backend).build()?;
        Self::in_space(space, count, Some(service_cpu), SoftwareConfig::default())
    }

    fn and_bare(self, count: usize, trap: Trap) -> Result<(Self, Bare)> {
        let managed = self;
        let bare = Bare::untouched(count, trap)?;
        for first in (0..count).step_by(FEW) {
            managed.populate(first, FEW.min(count - first))?;
            bare.populate(first, FEW.min(count - first))?;
        }
        Ok((managed, bare))
    }

    /// A region of which no page exists yet, and a device of some kind.
    pub(super) fn untouched(faults: Faults, count: usize, service_cpu: usize, config: SoftwareConfig) -> Result<Self> {
        Self::of(Space::builder().faults(faults).build()?, count, Some(service_cpu), config)
    }

    /// As [`Managed::new`], with this policy. The threads of the runtime run on `service_cpu`; if there is none, where the
    /// calling thread does. Only so there can be several at a time.
    pub(super) fn with_policy(
        faults: Faults,
        policy: RestorePolicy,
        count: usize,
        service_cpu: Option<usize>,
    ) -> Result<Self> {
        let space = Space::builder().faults(faults).restore(policy).build()?;
        let managed = Self::of(space, count, service_cpu, SoftwareConfig::default())?;
        managed.populate(0, count)?;
        Ok(managed)
    }

    fn of(space: Space, count: usize, service_cpu: Option<usize>, config: SoftwareConfig) -> Result<Self> {
        if let Some(cpu) = service_cpu.filter(|_| space.faults() == Faults::Monitor) {
            cpus::pin_named(MONITOR, MONITORS, cpu)?;
        }
        Self::in_space(space, count, service_cpu, config)
    }

    fn in_space(space: Space, count: usize, service_cpu: Option<usize>, config: SoftwareConfig) -> Result<Self> {
        let region = space.allocate(ByteLen(count * page_size()))?;
        let device = SoftwareDevice::start(&space, config)?;
        if let Some(cpu) = service_cpu {
            cpus::pin_named(Self::WORKER, config.workers, cpu)?;
        }
        let view = device.attach(&region)?;
        Ok(Self { view, region, device, space })
    }

    /// Makes `count` pages from `first` on exist, mapped in all views.
    fn populate(&self, first: usize, count: usize) -> Result<()> {
        let pages = pages(first, count);
        self.take(pages)?;
        // So that the device's first operation on a page does not have to map it in its own view.
        for page in pages.iter() {
            core::hint::black_box(self.view.words(page)[0].load(Ordering::Relaxed));
        }
        self.region.prefetch(pages);
        Ok(())
    }

    /// Moves the monitors.
    pub(super) fn monitors_run_on(&self, cpu: usize) -> Result<()> {
        cpus::pin_named(MONITOR, MONITORS, cpu)
    }

    /// The device takes `pages`, and keeps them without a hold.
    pub(super) fn take(&self, pages: PageRange) -> Result<()> {
        drop(self.view.claim(pages, Access::Exclusive)?);
        Ok(())
    }

    /// The CPU loads the first word of a page.
    #[inline]
    pub(super) fn touch(&self, page: usize) {
        core::hint::black_box(self.region.words()[page * words_per_page()].load(Ordering::Relaxed));
    }
}
