//! [`Space`]: the runtime of one process, or of one part of it: regions, devices, the fault service.

use core::sync::atomic::Ordering;
use core::time::Duration;
use std::sync::atomic::AtomicU32;

use pagelease_protocol::{ByteLen, OwnerId, Token};
use pagelease_sys::mem::SelfProcess;
use pagelease_sys::uffd::{Features, OpenPath, Uffd};
use pagelease_sys::{Errno, barrier, fork, page_size};

use crate::backend::{AnyBackend, Minor, Sim};
use crate::device::{DRAIN_LIMIT, Device, DeviceHandle, RegionId};
use crate::error::{AttachError, RegionError, SpaceError};
use crate::park::Park;
use crate::records::Records;
use crate::region::Region;
use crate::service::{Deputy, Service, inthread};
use crate::shared::Shared;
use crate::stats::{Counters, Stats};
use crate::sync::{AtomicU64, Deadline};

/// How a CPU touch of a device's page is served.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
pub enum Faults {
    /// By monitor threads, while the touching thread sleeps in the kernel. Transparent: a system call that touches the page
    /// waits like any access. Costs two thread switches a touch.
    #[default]
    Monitor,
    /// By the touching thread itself, in a SIGBUS handler. About half the time of a monitor, but a system call that touches
    /// a device's page fails with EFAULT, and a thread that blocks SIGBUS is killed by a touch.
    InThread,
}

/// What happens to a device's pages when a lease of them ends.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Hash)]
#[non_exhaustive]
pub enum RestorePolicy {
    /// They stay with the device until the CPU or another device needs them.
    #[default]
    Lazy,
    /// They go back to the CPU at once, in one system call a run, and stay there for the minimum residency: a claim that comes
    /// within 8 or 16 microseconds (more where a page was fought over) waits for it.
    Eager,
}

/// What the process may do with userfaultfd, and so what a touch from inside a system call comes to.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub enum Privilege {
    /// Faults of the kernel are served too: with [`Faults::Monitor`], a system call that touches a device's page waits.
    Full,
    /// `UFFD_USER_MODE_ONLY`: such a system call fails with EFAULT.
    UserModeOnly,
    /// A simulated space.
    Simulated,
}

#[derive(Copy, Clone, Debug)]
pub(crate) struct Config {
    pub(crate) faults: Faults,
    pub(crate) restore: RestorePolicy,
    pub(crate) hold_limit: Duration,
    pub(crate) drain_limit: Duration,
    pub(crate) monitors: usize,
    pub(crate) simulated: bool,
}

/// Makes a [`Space`]; from [`Space::builder`].
#[derive(Copy, Clone, Debug)]
#[must_use]
pub struct SpaceBuilder {
    config: Config,
}

impl SpaceBuilder {
    /// How touches are served. [`Faults::Monitor`] unless set.
    pub fn faults(mut self, faults: Faults) -> Self {
        self.config.faults = faults;
        self
    }

    /// What happens when a lease ends. [`RestorePolicy::Lazy`] unless set.
    pub fn restore(mut self, policy: RestorePolicy) -> Self {
        self.config.restore = policy;
        self
    }

    /// How long a touch, or another device's claim, waits for a lease before it breaks it: 50 ms unless set.
    /// [`Duration::MAX`]: for ever.
    pub fn hold_limit(mut self, limit: Duration) -> Self {
        self.config.hold_limit = limit;
        self
    }

    /// How long an invalidation waits for an operation in flight before the device is lost: 2 s unless set. Long, because
    /// a worker that is not scheduled is not a stuck one. [`Duration::MAX`]: for ever.
    pub fn drain_limit(mut self, limit: Duration) -> Self {
        self.config.drain_limit = limit;
        self
    }

    /// How many monitor threads serve touches: 2 unless set. One watches, the others take over while it waits for a device
    /// to let go.
    pub fn monitors(mut self, count: usize) -> Self {
        self.config.monitors = count;
        self
    }

    /// Regions of simulated memory, for tests: see [`crate::sim`].
    pub fn simulated(mut self) -> Self {
        self.config.simulated = true;
        self
    }

    /// Makes the space.
    ///
    /// # Errors
    /// [`SpaceError`]: most often, userfaultfd is refused.
    pub fn build(self) -> Result<Space, SpaceError> {
        Space::with(self.config)
    }
}

/// The runtime: regions, devices, and the threads that serve faults. Cloning gives another handle of the same one; the
/// threads end when the last handle, region, view and device of it has gone.
///
/// A forked child has none of it: regions are not inherited, what it inherited of the runtime does nothing, and every call
/// that can say so returns `Forked`. In the child, touching a region's address is a segmentation fault.
#[derive(Clone)]
pub struct Space {
    inner: Shared<SpaceInner>,
}

struct SpaceInner {
    core: Shared<SpaceCore>,
    service: Service,
}

pub(crate) struct SpaceCore {
    pub(crate) config: Config,
    pub(crate) stats: Counters,
    pub(crate) records: Records,
    pub(crate) park: Park,
    pub(crate) deputy: Deputy,
    pub(crate) uffd: Option<Shared<Uffd>>,
    process: Option<Shared<SelfProcess>>,
    privilege: Privilege,
    write_protect: bool,
    tokens: AtomicU64,
    /// Device identities in use, one bit each.
    devices: core::sync::atomic::AtomicU64,
}

/// Never used again, so that what remembers a region that has gone cannot mistake another for it.
static NEXT_REGION: AtomicU32 = AtomicU32::new(1);

/// The granule of regions on ordinary pages.
fn base_granule() -> ByteLen {
    ByteLen(page_size())
}

impl Space {
    /// A space with the defaults: [`Faults::Monitor`], [`RestorePolicy::Lazy`].
    ///
    /// # Errors
    /// [`SpaceError`]: most often, userfaultfd is refused.
    pub fn new() -> Result<Self, SpaceError> {
        Self::builder().build()
    }

    /// Sets a space up.
    pub fn builder() -> SpaceBuilder {
        SpaceBuilder {
            config: Config {
                faults: Faults::default(),
                restore: RestorePolicy::default(),
                hold_limit: Duration::from_millis(50),
                drain_limit: DRAIN_LIMIT,
                monitors: 2,
                simulated: false,
            },
        }
    }

    fn with(config: Config) -> Result<Self, SpaceError> {
        if config.monitors == 0 {
            return Err(SpaceError::Zero("the number of monitors"));
        }
        if config.hold_limit.is_zero() || config.drain_limit.is_zero() {
            return Err(SpaceError::Zero("a limit"));
        }
        if fork::in_child() {
            return Err(SpaceError::Forked);
        }
        fork::arm().map_err(SpaceError::Memory)?;
        let mut core = SpaceCore::with(config)?;
        if !config.simulated {
            barrier::register().map_err(SpaceError::Membarrier)?;
            let mut wanted = Features::MINOR_SHMEM | Features::THREAD_ID;
            if config.faults == Faults::InThread {
                wanted |= Features::SIGBUS;
                inthread::install().map_err(SpaceError::Signal)?;
            }
            let opened = Uffd::open(wanted)?;
            core.privilege =
                if opened.path == OpenPath::UserModeOnly { Privilege::UserModeOnly } else { Privilege::Full };
            // Mapping a page read-only takes UFFDIO_CONTINUE_MODE_WP, which has no feature bit, but is as old as this one.
            core.write_protect = opened.features.contains(Features::WP_HUGETLBFS_SHMEM | Features::WP_UNPOPULATED);
            core.uffd = Some(Shared::new(opened.uffd).map_err(SpaceError::Memory)?);
            core.process = SelfProcess::open().ok().map(Shared::new).transpose().map_err(SpaceError::Memory)?;
        }
        let core = Shared::new(core).map_err(SpaceError::Memory)?;
        let service = Service::start(&core)?;
        Ok(Self { inner: Shared::new(SpaceInner { core, service }).map_err(SpaceError::Memory)? })
    }

    /// Makes a region of at least `len` bytes, rounded up to whole granules, of zeroes. It costs no memory until touched.
    ///
    /// # Errors
    /// [`RegionError`].
    pub fn allocate(&self, len: ByteLen) -> Result<Region, RegionError> {
        if fork::in_child() {
            return Err(RegionError::Forked);
        }
        let core = self.core();
        let granule = base_granule();
        if len.0 == 0 {
            return Err(RegionError::Empty);
        }
        let pages = len.pages(granule).ok_or(RegionError::TooLarge { len, granule })?;
        let id = RegionId(NEXT_REGION.fetch_add(1, Ordering::Relaxed));
        let Some(uffd) = &core.uffd else {
            let region = Region::new(self, id, AnyBackend::Sim(Sim::new(pages)), pages, granule, 0)?;
            self.inner.service.watch(&region);
            return Ok(region);
        };
        let minor = Minor::new(uffd.clone(), core.process.clone(), pages, granule, core.write_protect)
            .map_err(|(what, errno)| RegionError::System { len, what, errno })?;
        Region::new(self, id, AnyBackend::Minor(minor), pages, granule, core.residency_step_ns())
    }

    /// Registers a device. It then is attached to the regions it shall work on ([`Region::attach`]).
    ///
    /// # Panics
    /// For a type that is aligned to more than a page.
    ///
    /// # Errors
    /// [`AttachError::TooManyDevices`], [`AttachError::System`].
    pub fn register<D: Device>(&self, device: D) -> Result<DeviceHandle<D>, AttachError> {
        if fork::in_child() {
            return Err(AttachError::Forked);
        }
        let core = self.core();
        let failed = |errno| AttachError::System { what: "registering a device", errno };
        if core.config.faults == Faults::InThread && !device.signal_safe() {
            self.inner.service.start_deputy(core).map_err(|_| failed(Errno::AGAIN))?;
        }
        let id = core.reserve_id().ok_or(AttachError::TooManyDevices { limit: OwnerId::MAX })?;
        DeviceHandle::new(self, id, device).map_err(failed)
    }

    /// What has happened so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.core().stats.snapshot()
    }

    /// How touches are served.
    #[must_use]
    pub fn faults(&self) -> Faults {
        self.core().config.faults
    }

    /// What the process may do, and so what a touch from inside a system call comes to.
    #[must_use]
    pub fn privilege(&self) -> Privilege {
        self.core().privilege
    }

    pub(crate) fn core(&self) -> &Shared<SpaceCore> {
        &self.inner.core
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        self.inner.same(&other.inner)
    }
}

impl SpaceCore {
    fn with(config: Config) -> Result<Self, SpaceError> {
        Ok(Self {
            config,
            stats: Counters::default(),
            records: Records::new().map_err(SpaceError::Memory)?,
            park: Park::new().map_err(SpaceError::Memory)?,
            deputy: Deputy::new().map_err(SpaceError::Memory)?,
            uffd: None,
            process: None,
            privilege: Privilege::Simulated,
            write_protect: true,
            tokens: AtomicU64::new(1),
            devices: core::sync::atomic::AtomicU64::new(0),
        })
    }

    fn residency_step_ns(&self) -> u64 {
        match self.config.faults {
            Faults::Monitor => 16_000,
            Faults::InThread => 8_000,
        }
    }

    /// The token of the next claim, at least.
    pub(crate) fn last_token(&self) -> u64 {
        self.tokens.load(Ordering::SeqCst)
    }

    pub(crate) fn next_token(&self) -> Token {
        Token(self.tokens.fetch_add(1, Ordering::Relaxed))
    }

    /// Until when something that has waited for a lease since `since_ns` goes on waiting.
    pub(crate) fn hold_deadline(&self, since_ns: u64) -> Deadline {
        if self.config.hold_limit == Duration::MAX {
            return Deadline::NEVER;
        }
        Deadline::at(since_ns.saturating_add(u64::try_from(self.config.hold_limit.as_nanos()).unwrap_or(u64::MAX - 1)))
    }

    fn reserve_id(&self) -> Option<OwnerId> {
        let mut used = self.devices.load(Ordering::SeqCst);
        loop {
            let id = (1..=OwnerId::MAX).find(|id| used & 1 << id == 0)?;
            match self.devices.compare_exchange(used, used | 1 << id, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return OwnerId::new(id),
                Err(found) => used = found,
            }
        }
    }

    pub(crate) fn release_id(&self, id: OwnerId) {
        self.devices.fetch_and(!(1 << id.get()), Ordering::SeqCst);
    }
}
