//! [`Space`]: the runtime of one process, or of one part of it: regions, devices, the fault service.

use core::ptr::NonNull;
use core::sync::atomic::Ordering;
use core::time::Duration;
use std::sync::atomic::AtomicU32;

use pagelease_protocol::{ByteLen, OwnerId, Token};
use pagelease_sys::mem::{Maps, SelfProcess};
use pagelease_sys::uffd::Uffd;
use pagelease_sys::{Errno, fork};

use crate::adopt;
use crate::adopted::{Adopted, HUGE};
use crate::allocate::base_granule;
use crate::backend::{AnyBackend, BackendKind, Moved, Sim};
use crate::device::{DRAIN_LIMIT, Device, DeviceHandle, RegionId};
use crate::error::{AdoptError, AttachError, RegionError, SpaceError};
use crate::forks;
use crate::park::Park;
use crate::records::Records;
use crate::region::Region;
use crate::service::{Deputy, Service};
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
    /// By the touching thread itself, in a signal handler: for SIGBUS, or, with [`BackendKind::Mprotect`], SIGSEGV. About half
    /// the time of a monitor, but a system call that touches a device's page fails with EFAULT, and a thread that blocks
    /// the signal is killed by a touch.
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
    /// Page by page as one of the two, by what became of the page after earlier leases: given back if the CPU touched it next,
    /// kept if a device used it again (a touch counts as much as seven uses). It takes two touches to begin giving a page back;
    /// after 255 times it is kept once, to see whether the CPU still wants it.
    ///
    /// And if CPU and device **fight** over a page (a touch finds it held or just being claimed, three claims in a row), it stays
    /// with each of them for a minimum before the other gets it: 0.5 ms, doubling up to 4 ms while the fight lasts. Both get
    /// more done, and a touch of such a page takes that much longer. [`Stats`] counts fights and the touches that waited.
    /// The other policies leave a page with its device for no time, and with the CPU for 128 or 256 microseconds at most.
    Adaptive,
}

/// What the process may do with userfaultfd, and so what a touch from inside a system call comes to.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub enum Privilege {
    /// Faults of the kernel are served too: with [`Faults::Monitor`], a system call that touches a device's page waits.
    Full,
    /// `UFFD_USER_MODE_ONLY`: such a system call fails with EFAULT.
    UserModeOnly,
    /// There is none, and none is needed ([`BackendKind::Mprotect`]): such a system call fails with EFAULT.
    NoUserfaultfd,
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
    pub(crate) backend: Option<BackendKind>,
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

    /// Which backend the memory has that the runtime allocates. Unless set: [`BackendKind::RwProtect`] where the kernel has it
    /// (Linux 7.3) and it works, otherwise [`BackendKind::Minor`]. With [`BackendKind::Mprotect`], which needs
    /// [`Faults::InThread`], no userfaultfd is opened. What cannot be is refused by [`SpaceBuilder::build`].
    pub fn backend(mut self, backend: BackendKind) -> Self {
        self.config.simulated = backend == BackendKind::Sim;
        self.config.backend = Some(backend);
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
    /// Touches that monitors leave asleep until a moment, which stands in place of the time since when they wait: the device
    /// has its page for a minimum. Such a touch sets no `waiters`, so nobody owes it anything; only its own moment wakes it.
    pub(crate) delays: Park,
    pub(crate) deputy: Deputy,
    pub(crate) uffd: Option<Shared<Uffd>>,
    pub(crate) process: Option<Shared<SelfProcess>>,
    /// Where the kernel is asked what the program may do with a page.
    pub(crate) maps: Option<Maps>,
    /// Made when the first memory is adopted. Never taken by the fault path.
    adopted: std::sync::Mutex<Option<Shared<Adopted>>>,
    pub(crate) privilege: Privilege,
    /// That of memory which the runtime allocates.
    pub(crate) backend: BackendKind,
    pub(crate) write_protect: bool,
    pub(crate) serves_huge: bool,
    tokens: AtomicU64,
    /// Device identities in use, one bit each.
    devices: core::sync::atomic::AtomicU64,
}

/// Never used again, so that what remembers a region that has gone cannot mistake another for it.
static NEXT_REGION: AtomicU32 = AtomicU32::new(1);

fn next_region() -> RegionId {
    RegionId(NEXT_REGION.fetch_add(1, Ordering::Relaxed))
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
                backend: None,
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
            core.open()?;
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
        let granule = base_granule();
        let pages = self.pages_for(len, granule)?;
        if self.core().config.simulated {
            let region = Region::new(self, next_region(), AnyBackend::Sim(Sim::new(pages)), pages, granule, 0)?;
            self.inner.service.watch(&region);
            return Ok(region);
        }
        self.region(self.core().memory(len, pages)?, pages, granule)
    }

    /// A region of real memory.
    pub(crate) fn region(&self, backend: AnyBackend, pages: u32, granule: ByteLen) -> Result<Region, RegionError> {
        Region::new(self, next_region(), backend, pages, granule, self.core().residency_step_ns())
    }

    /// Puts `len` bytes of the program's own memory from `start` under management, in place, in granules of a page: private
    /// anonymous memory, from `mmap`, an allocator, or a `Vec`. What it contains stays. Dropping the region gives it back, in
    /// place, while other threads go on using it.
    ///
    /// A huge page moves whole where a claim covers it, and goes back whole at the first touch, unless somebody holds a part of
    /// it. A claim of a part splits that huge page (`Stats::huge_pages_split`). Where all claims are of whole huge pages,
    /// [`Space::adopt_huge`] is faster.
    ///
    /// What the program does to the memory is followed: `munmap`, `mremap`, `madvise`, `mprotect`, `fork`. See the crate's
    /// documentation. It must not be locked (`mlock`).
    ///
    /// # Safety
    /// As long as the region lives, nobody relies on the memory's contents being stable: devices and other threads store to it,
    /// so no reference that excludes that (`&mut`, `&` of anything but atomics) may be used. With [`Faults::InThread`] it must
    /// not be memory that an allocator still hands out pieces of (of which only the heap is recognised), nor the stack of a thread
    /// without an alternate signal stack (of which the calling and the main thread's are).
    ///
    /// # Errors
    /// [`AdoptError`]: what it is, where, and what to do.
    pub unsafe fn adopt(&self, start: NonNull<u8>, len: ByteLen) -> Result<Region, AdoptError> {
        // SAFETY: passed on to the caller.
        unsafe { self.adopt_in(start, len, base_granule()) }
    }

    /// As [`Space::adopt`], in granules of 2 MiB, of which the memory must be whole ones: it is claimed and given back in those,
    /// in two system calls for many. Meant for memory that has huge pages (see `MADV_HUGEPAGE`), and has been touched: what is
    /// touched first under management gets small pages.
    ///
    /// # Safety
    /// That of [`Space::adopt`].
    ///
    /// # Errors
    /// [`AdoptError`].
    pub unsafe fn adopt_huge(&self, start: NonNull<u8>, len: ByteLen) -> Result<Region, AdoptError> {
        // SAFETY: passed on to the caller.
        unsafe { self.adopt_in(start, len, ByteLen(HUGE)) }
    }

    /// # Safety
    /// That of [`Space::adopt`].
    unsafe fn adopt_in(&self, start: NonNull<u8>, len: ByteLen, granule: ByteLen) -> Result<Region, AdoptError> {
        if fork::in_child() {
            return Err(AdoptError::Forked);
        }
        let core = self.core();
        if core.config.simulated {
            return Err(AdoptError::Simulated);
        }
        let span = adopt::span(start.as_ptr().expose_provenance(), len, granule)?;
        let adopted = self.adopted()?;
        adopt::check(span, &adopted.maps, core.config.faults)?;
        adopted.changes.forget_echoes(span);
        let pages = len.pages(granule).ok_or(RegionError::TooLarge { len, granule })?;
        let moved = Moved::new(adopted, core.clone(), span, granule).map_err(|(what, errno)| RegionError::System {
            len,
            what,
            errno,
        })?;
        Ok(self.region(AnyBackend::Move(moved), pages, granule)?)
    }

    /// What the adopted regions have in common; made for the first.
    fn adopted(&self) -> Result<Shared<Adopted>, AdoptError> {
        let core = self.core();
        let mut adopted = core.adopted.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(adopted) = &*adopted {
            return Ok(adopted.clone());
        }
        let failed = |errno| AdoptError::System { what: "mmap of the runtime's tables", errno };
        let new = Shared::new(Adopted::open(core.config.faults)?).map_err(failed)?;
        if !new.list() {
            return Err(AdoptError::System { what: "adopting in more than 64 spaces", errno: Errno::NOMEM });
        }
        forks::watch().map_err(|errno| AdoptError::System { what: "pthread_atfork", errno })?;
        self.inner.service.start_for_adopted(&new).map_err(|error| AdoptError::Thread(error.to_string()))?;
        Ok(adopted.insert(new).clone())
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
            delays: Park::new().map_err(SpaceError::Memory)?,
            deputy: Deputy::new().map_err(SpaceError::Memory)?,
            uffd: None,
            process: None,
            maps: None,
            adopted: std::sync::Mutex::new(None),
            privilege: Privilege::Simulated,
            backend: BackendKind::Sim,
            write_protect: true,
            serves_huge: false,
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

    /// When a monitor has to look after a touch that it left asleep.
    pub(crate) fn first_deadline(&self) -> Deadline {
        let held = self.park.first_deadline(self.config.hold_limit);
        match self.config.restore {
            RestorePolicy::Lazy | RestorePolicy::Eager => held,
            RestorePolicy::Adaptive => held.earlier(self.delays.first_deadline(Duration::ZERO)),
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
