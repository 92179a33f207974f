//! [`Device`]: what a driver implements, and what the space keeps of it.
//!
//! A device gets pages by a claim and loses them by an invalidation. The runtime decides who may have a page; the driver
//! makes its device obey. A driver that keeps a page table of its own guards it by one lock: [`Device::map`] takes it to
//! ask whether the grant still stands and to map, [`Device::invalidate`] takes it to unmap, and then waits for what is in
//! flight.
//!
//! Invariants: a `DeviceCore` lives in a mapping of the runtime's own, as does the driver's value; it outlives every page
//! word that names it (a view is swept before it lets go of its device). `lost` is set once and never cleared.

use core::cell::Cell;
use core::ops::Deref;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use pagelease_protocol::{Cause, Origin, OwnerId, PageIndex, PageRange, Seq};
use pagelease_sys::mem::Mapping;
use pagelease_sys::{Errno, fork};

use crate::error::{DeviceLost, LossReason};
use crate::records::Record;
use crate::service::monitor::release_watch;
use crate::shared::{Shared, own_mapping};
use crate::space::{Space, SpaceCore};
use crate::stats::Counters;
use crate::sync::{Deadline, now_ns};
use crate::touch::Who;

/// A device driver, as the runtime sees it.
///
/// # Two kinds
///
/// A **faulting** device finds out that it lacks a page when it works on it: its worker, or its MMU's fault handler, claims the
/// page and goes on. It can be interrupted between any two accesses, so its leases are short. [`software`](crate::software) is one, a KVM vCPU is
/// another. A **submitting** device cannot: everything that a submission uses is claimed before, and held until its fence
/// signals. That is what [`submit`](crate::submit) does for any driver that has queues and fences. Nothing else in the runtime
/// tells the two apart.
///
/// # Order
///
/// - [`Device::map`] is called with the pages busy, before the page words name the device. A device that looks at [`View::has`]
///   before it works must publish first what it is about to work on, then look, with a full fence (or the membarrier of the other
///   side) between: either the invalidation sees the one, or the device the other.
/// - [`Device::invalidate`] is called when no operation can newly find the pages the device's own: their words are busy, or the
///   view is barred. Before it, every subscription has heard; after it, the CPU view is mapped. So it is the one place where a
///   device has to make sure, by unmapping and by waiting, that it is done with them; what it did is then visible to whoever
///   touches them.
/// - Where it cannot make sure, it says so ([`NotDrained`]), and pays: the device is lost, the pages that it may still store to are
///   covered in its view by private copies, and the CPU goes on with what they contained at that moment.
///
/// [`View::has`]: crate::View::has
///
/// # Where its functions are called from
///
/// Any thread: one that claims, ends or drops a lease, prefetches, drops a view or a region; a service thread; and one that
/// touched a page: in in-thread mode a device that answers [`Device::signal_safe`] with `true` is invalidated from a signal
/// handler. None of its functions may touch the CPU view of a managed region, claim, or wait for a thread that does. A driver
/// must do none of the above while it has a lock that its `invalidate` takes. A panic in one ends the process: what it would
/// leave busy nobody could release.
pub trait Device: Send + Sync + 'static {
    /// What messages call it.
    fn name(&self) -> &str;

    /// Whether [`Device::invalidate`] is async-signal-safe: no allocation, no lock that it could interrupt, no formatting.
    /// One that is not is called from a service thread while the touching thread sleeps. The answer must never change.
    fn signal_safe(&self) -> bool {
        false
    }

    /// The pages of `grant` are the device's, if it still stands: take the lock of the device's page table, ask
    /// [`Grant::stands`], map, unlock, and return the answer. `false` starts the claim again.
    ///
    /// A device without a page table of its own needs only the default.
    fn map(&self, grant: &Grant<'_>) -> bool {
        grant.stands()
    }

    /// The device must let go of the pages. When it returns `Ok`, it has unmapped them, no access of it to them is in
    /// flight, and none will start until they are claimed again.
    ///
    /// # Errors
    /// [`NotDrained`] once [`Invalidation::overdue`] says so: the device is then lost, its view of that page is covered by
    /// a private copy, and `invalidate` is called again, and must not wait for that operation on that page any more (see
    /// [`Invalidation::not_given_up`]).
    fn invalidate(&self, invalidation: &Invalidation) -> Result<(), NotDrained>;
}

/// An operation in flight did not end in time.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct NotDrained {
    /// The page it works on.
    pub page: PageIndex,
}

/// Names a region within the process.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub struct RegionId(pub(crate) u32);

impl RegionId {
    /// The number: unique among the process's regions, never used again.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// Pages that a device must let go of.
#[derive(Clone, Debug)]
pub struct Invalidation {
    pub(crate) region: RegionId,
    pub(crate) pages: PageRange,
    pub(crate) cause: Cause,
    pub(crate) origin: Origin,
    pub(crate) toucher: Who,
    pub(crate) limit: Duration,
    /// When the device first said that it waits, and until when it may. The clock is read only then.
    pub(crate) wait: Cell<Option<(u64, Deadline)>>,
    /// Monitors serve the space: the calling thread may be one.
    pub(crate) monitored: bool,
    /// The device says that it was using the pages.
    pub(crate) in_use: Cell<bool>,
    /// Pages before this one are not waited for any more.
    pub(crate) given_up: Cell<u32>,
}

impl Invalidation {
    /// The region they are in.
    #[must_use]
    pub fn region(&self) -> RegionId {
        self.region
    }

    /// The pages. The device may have only some of them.
    #[must_use]
    pub fn pages(&self) -> PageRange {
        self.pages
    }

    /// Why.
    #[must_use]
    pub fn cause(&self) -> Cause {
        self.cause
    }

    /// To be called by a device that is in the middle of something which uses the pages, and will claim them again at once.
    /// The runtime knows that of pages that a lease holds; of others it learns by this that a touch disturbs the device, and so,
    /// with [`RestorePolicy::Adaptive`], that CPU and device fight over a page.
    ///
    /// [`RestorePolicy::Adaptive`]: crate::RestorePolicy::Adaptive
    pub fn note_in_use(&self) {
        self.in_use.set(true);
    }

    /// The device that gets them, where one does.
    #[must_use]
    pub fn owner(&self) -> Option<OwnerId> {
        self.origin.owner
    }

    /// The thread whose touch raised it, by kernel thread id: an operation that this very thread is in must not be waited
    /// for, it cannot end before the touch does. To be asked only where it matters: it may cost a system call. Signal-safe.
    #[must_use]
    pub fn toucher(&self) -> Option<u32> {
        self.toucher.tid()
    }

    /// Those of the pages that are still to be waited for, when [`Device::invalidate`] has returned [`NotDrained`] before: those
    /// behind the page that it named. A device whose operation works on many pages names each in turn, ascending, so that each
    /// is covered. Signal-safe.
    #[must_use]
    pub fn not_given_up(&self) -> Option<PageRange> {
        PageRange::new(self.pages.start().max(self.given_up.get()), self.pages.end())
    }

    /// Whether the drain limit has passed since the first time this was asked: stop waiting, return [`NotDrained`]. To be asked whenever the wait turns out to
    /// be longer than a moment: other touches are then served by another monitor. Signal-safe.
    #[must_use]
    pub fn overdue(&self) -> bool {
        let Some((_, deadline)) = self.wait.get() else {
            if self.monitored {
                release_watch();
            }
            self.wait.set(Some((now_ns(), Deadline::after(self.limit))));
            return false;
        };
        deadline.passed()
    }
}

impl Invalidation {
    /// Counts the wait that has just ended, if there was one.
    pub(crate) fn note_wait(&self, stats: &Counters) {
        if let Some((since, _)) = self.wait.take() {
            stats.wait_ns_max.at_least(now_ns().saturating_sub(since));
        }
    }
}

/// Pages that a claim is about to give to a device.
pub struct Grant<'a> {
    pub(crate) region: RegionId,
    pub(crate) record: Record<'a>,
    pub(crate) seq: Seq,
    pub(crate) device: &'a DeviceCore,
}

impl Grant<'_> {
    /// The region they are in.
    #[must_use]
    pub fn region(&self) -> RegionId {
        self.region
    }

    /// The pages, ascending; among them some that the device had already.
    pub fn pages(&self) -> impl Iterator<Item = PageIndex> + '_ {
        self.record.entries().map(|entry| entry.page)
    }

    /// Whether nothing that concerns the claim has been invalidated since it began. To be asked under the lock that the
    /// device's `invalidate` takes.
    #[must_use]
    pub fn stands(&self) -> bool {
        if crate::mutant::active(crate::mutant::Mutant::SkipReadRetry) {
            return true;
        }
        self.device.lost().is_none() && !self.record.read_retry(self.seq)
    }
}

/// A registered device. Dropping the last handle and the last view of it unregisters it.
pub struct DeviceHandle<D> {
    pub(crate) core: Shared<DeviceCore>,
    pub(crate) space: Space,
    device: NonNull<D>,
}

// SAFETY: it gives `&D` to any thread, and `D` is `Send + Sync` as every `Device` is.
unsafe impl<D: Device> Send for DeviceHandle<D> {}
// SAFETY: as above.
unsafe impl<D: Device> Sync for DeviceHandle<D> {}

impl<D: Device> DeviceHandle<D> {
    pub(crate) fn new(space: &Space, id: OwnerId, device: D) -> Result<Self, Errno> {
        // From here on, whoever has the core gives the identity back with it.
        let mapping = own_mapping(size_of::<D>()).inspect_err(|_| space.core().release_id(id))?;
        let place = NonNull::new(mapping.as_ptr().cast::<D>()).ok_or(Errno::NOMEM)?;
        assert!(align_of::<D>() <= pagelease_sys::page_size(), "a device aligned beyond a page");
        // SAFETY: the mapping is page-aligned, large enough, writable, and ours alone.
        unsafe { place.write(device) };
        let core = DeviceCore {
            id,
            space: space.core().clone(),
            device: place,
            lost: AtomicU64::new(0),
            lost_region: AtomicU64::new(0),
            _mapping: mapping,
        };
        Ok(Self { core: Shared::new(core)?, space: space.clone(), device: place })
    }

    /// The identity that page words, errors and messages give it.
    #[must_use]
    pub fn id(&self) -> OwnerId {
        self.core.id
    }

    /// Why the device was lost, if it was.
    #[must_use]
    pub fn lost(&self) -> Option<DeviceLost> {
        self.core.lost()
    }

    /// Declares the device lost: for a driver whose hardware, or the library in front of it, says that it is gone. Claims for it
    /// are refused from now on; what it has goes back to the CPU as it is touched, for which the driver's [`Device::invalidate`] is called as ever. Any thread; signal-safe. A second call, or one
    /// after the runtime has found the device lost by itself, changes nothing.
    pub fn declare_lost(&self) {
        self.core.lose(RegionId(0), PageIndex(0), Loss::Driver);
    }
}

impl<D> Deref for DeviceHandle<D> {
    type Target = D;

    fn deref(&self) -> &D {
        // SAFETY: the value lives as long as the core, which the handle keeps.
        unsafe { self.device.as_ref() }
    }
}

impl<D> Clone for DeviceHandle<D> {
    fn clone(&self) -> Self {
        Self { core: self.core.clone(), space: self.space.clone(), device: self.device }
    }
}

/// What the space keeps of a device.
pub(crate) struct DeviceCore {
    pub(crate) id: OwnerId,
    pub(crate) space: Shared<SpaceCore>,
    device: NonNull<dyn Device>,
    /// 0, or how it was lost and on which page: see `Loss`.
    lost: AtomicU64,
    lost_region: AtomicU64,
    _mapping: Mapping,
}

// SAFETY: the driver is `Send + Sync`; the rest is atomic or immutable.
unsafe impl Send for DeviceCore {}
// SAFETY: as above.
unsafe impl Sync for DeviceCore {}

const STUCK: u64 = 1;
const PANICKED: u64 = 2;
const DRIVER: u64 = 3;

impl DeviceCore {
    pub(crate) fn device(&self) -> &dyn Device {
        // SAFETY: the value lives in `_mapping`, from `new` to `drop`.
        unsafe { self.device.as_ref() }
    }

    /// Whether the device has been lost: one load. Signal-safe.
    #[inline]
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed) != 0
    }

    pub(crate) fn lost(&self) -> Option<DeviceLost> {
        let bits = self.lost.load(Ordering::Acquire);
        if bits == 0 {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, reason = "takes the packed fields apart")]
        let (page, region) = (PageIndex((bits >> 32) as u32), self.lost_region.load(Ordering::Acquire) as u32);
        let why = match bits & 0xff {
            PANICKED => LossReason::Panicked { region, page },
            DRIVER => LossReason::Driver,
            _ => LossReason::Stuck { region, page, limit: self.space.config.drain_limit },
        };
        Some(DeviceLost { device: self.id, why })
    }

    /// Declares the device lost; the first reason stays. Signal-safe.
    pub(crate) fn lose(&self, region: RegionId, page: PageIndex, how: Loss) {
        let how = match how {
            Loss::Stuck => STUCK,
            Loss::Panicked => PANICKED,
            Loss::Driver => DRIVER,
        };
        if self.lost.load(Ordering::Relaxed) == 0 {
            self.lost_region.store(u64::from(region.0), Ordering::Release);
        }
        if self.lost.compare_exchange(0, how | u64::from(page.0) << 32, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
            self.space.stats.devices_lost.one();
        }
    }
}

/// How a device is lost.
#[derive(Copy, Clone, Debug)]
pub(crate) enum Loss {
    Stuck,
    Panicked,
    /// Names no page.
    Driver,
}

impl Drop for DeviceCore {
    fn drop(&mut self) {
        if fork::in_child() {
            return;
        }
        // SAFETY: the value was written in `new`; nobody refers to it any more, and it is dropped once. Its mapping is
        // unmapped afterwards, with the field.
        unsafe { self.device.drop_in_place() };
        self.space.release_id(self.id);
    }
}

/// The drain limit a device is given by default. Long: a worker that is not scheduled is not a stuck one.
pub(crate) const DRAIN_LIMIT: Duration = Duration::from_secs(2);
