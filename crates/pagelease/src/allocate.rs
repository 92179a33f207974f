//! Which backend a space has, and the memory of regions: of the runtime's own, in base pages or huge ones, or a file's.
//!
//! What was asked for and cannot be is refused. The one choice that is made here is between two backends that serve the same
//! memory, when none was asked for; [`Region::backend`] says which it was.

use std::os::fd::AsFd;

use pagelease_protocol::ByteLen;
use pagelease_sys::file::{self, Store};
use pagelease_sys::mem::{Maps, SelfProcess};
use pagelease_sys::uffd::{Features, OpenError, OpenPath, Opened, Uffd};
use pagelease_sys::{Errno, barrier, fork, page_size};

use crate::backend::backing::{Backing, Failed};
use crate::backend::{AnyBackend, BackendKind, Minor, Mprotect, REGISTER, RwProtect, mprotect};
use crate::error::{RegionError, SpaceError};
use crate::region::Region;
use crate::service::inthread;
use crate::shared::Shared;
use crate::space::{Faults, Privilege, Space, SpaceCore};

/// The huge pages that regions are made of.
const HUGE: ByteLen = ByteLen(2 << 20);

/// What [`Space::allocate_huge`] needs of the kernel's userfaultfd.
const HUGE_FEATURES: Features = Features::MINOR_HUGETLBFS;

/// The granule of regions on ordinary pages.
pub(crate) fn base_granule() -> ByteLen {
    ByteLen(page_size())
}

impl SpaceCore {
    /// Opens what a space of real memory needs, for the backend that was asked for.
    pub(crate) fn open(&mut self) -> Result<(), SpaceError> {
        let asked = self.config.backend;
        self.maps = Maps::open().ok();
        barrier::register().map_err(SpaceError::Membarrier)?;
        match asked {
            Some(backend @ BackendKind::Move) => return Err(SpaceError::NotAllocated { backend }),
            Some(backend @ BackendKind::Mprotect) => {
                if self.config.faults != Faults::InThread {
                    return Err(SpaceError::NeedsInThread { backend });
                }
                mprotect::arm().map_err(SpaceError::Maps)?;
                inthread::install_for_mprotect().map_err(SpaceError::Signal)?;
                (self.backend, self.privilege) = (backend, Privilege::NoUserfaultfd);
                return Ok(());
            }
            _ => {}
        }
        let mut wanted = Features::MINOR_SHMEM | Features::THREAD_ID;
        if self.config.faults == Faults::InThread {
            wanted |= Features::SIGBUS;
            inthread::install().map_err(SpaceError::Signal)?;
        }
        let chosen = open_userfaultfd(asked, wanted)?;
        self.privilege = if chosen.path == OpenPath::UserModeOnly { Privilege::UserModeOnly } else { Privilege::Full };
        // Mapping a page read-only takes UFFDIO_CONTINUE_MODE_WP, which has no feature bit, but is as old as this one.
        self.write_protect = chosen.features.contains(Features::WP_HUGETLBFS_SHMEM | Features::WP_UNPOPULATED);
        self.serves_huge = chosen.features.contains(HUGE_FEATURES);
        (self.uffd, self.backend) = (Some(chosen.uffd), chosen.backend);
        self.process = SelfProcess::open().ok().map(Shared::new).transpose().map_err(SpaceError::Memory)?;
        Ok(())
    }

    /// The backend of a space, over memory that it can serve.
    fn over(&self, backing: Backing, pages: u32) -> Result<AnyBackend, Failed> {
        Ok(match (&self.uffd, self.backend) {
            (Some(uffd), BackendKind::RwProtect) => AnyBackend::RwProtect(RwProtect::new(uffd.clone(), backing)?),
            (Some(uffd), _) => AnyBackend::Minor(self.minor(uffd, backing)?),
            (None, _) => AnyBackend::Mprotect(Mprotect::new(backing, pages)?),
        })
    }

    fn minor(&self, uffd: &Shared<Uffd>, backing: Backing) -> Result<Minor, Failed> {
        Minor::new(uffd.clone(), self.process.clone(), backing, self.write_protect)
    }

    /// Memory of the runtime's own.
    pub(crate) fn memory(&self, len: ByteLen, pages: u32) -> Result<AnyBackend, RegionError> {
        let made = Backing::memory(pages, base_granule()).and_then(|backing| self.over(backing, pages));
        made.map_err(|(what, errno)| RegionError::System { len, what, errno })
    }

    /// The same of huge pages.
    fn huge_memory(&self, len: ByteLen, pages: u32) -> Result<AnyBackend, RegionError> {
        let missing = |what, since| RegionError::NoHugePages { len, what, since };
        if self.uffd.is_some() && !self.serves_huge {
            return Err(missing("userfaultfd MINOR_HUGETLBFS", "5.13"));
        }
        let failed = |(what, errno)| match (what, errno) {
            ("mmap of the CPU view", Errno::NOMEM) => RegionError::TooFewHugePages { len, pages, granule: HUGE },
            (_, Errno::NODEV | Errno::NOENT | Errno::INVAL) => missing("hugetlb with pages of 2 MiB", "4.14"),
            _ => RegionError::System { len, what, errno },
        };
        let backing = Backing::memory(pages, HUGE).map_err(failed)?;
        let Some(uffd) = &self.uffd else {
            return Mprotect::new(backing, pages).map(AnyBackend::Mprotect).map_err(failed);
        };
        let minor = self.minor(uffd, backing).map_err(failed)?;
        minor.can_revoke().map_err(|_| missing("MADV_DONTNEED on hugetlb", "5.18"))?;
        Ok(AnyBackend::Minor(minor))
    }
}

/// A userfaultfd, and the backend that it is for.
struct Chosen {
    uffd: Shared<Uffd>,
    path: OpenPath,
    features: Features,
    backend: BackendKind,
}

impl Chosen {
    fn new(opened: Opened, backend: BackendKind) -> Result<Self, SpaceError> {
        let Opened { uffd, path, features } = opened;
        Ok(Self { uffd: Shared::new(uffd).map_err(SpaceError::Memory)?, path, features, backend })
    }
}

/// Of the backends that serve the runtime's own memory, the one asked for, or else the better one that the kernel has and
/// that works.
fn open_userfaultfd(asked: Option<BackendKind>, wanted: Features) -> Result<Chosen, SpaceError> {
    if asked != Some(BackendKind::Minor) {
        match Uffd::open(wanted | Features::RWP) {
            Err(OpenError::Missing { missing: Features::RWP, .. }) if asked.is_none() => {}
            Err(error) => return Err(error.into()),
            Ok(opened) => {
                let chosen = Chosen::new(opened, BackendKind::RwProtect)?;
                if asked.is_some() || RwProtect::works(&chosen.uffd) {
                    return Ok(chosen);
                }
            }
        }
    }
    Chosen::new(Uffd::open(wanted)?, BackendKind::Minor)
}

impl Space {
    /// Makes a region of at least `len` bytes of huge pages, rounded up to whole ones: its granule is 2 MiB, so that is what a
    /// claim takes and a touch gives back. They are taken from the system's pool (`vm.nr_hugepages`) at once, so that no later
    /// touch finds the pool empty, and go back to it with the region.
    ///
    /// It is served by [`BackendKind::Minor`]; in a space of [`BackendKind::Mprotect`], by that.
    ///
    /// # Errors
    /// [`RegionError`]: most often, [`RegionError::TooFewHugePages`].
    pub fn allocate_huge(&self, len: ByteLen) -> Result<Region, RegionError> {
        let pages = self.pages_for(len, HUGE)?;
        if self.core().config.simulated {
            return Err(RegionError::NoHugePages { len, what: "memory that is not simulated", since: "any" });
        }
        let backend = self.core().huge_memory(len, pages)?;
        // Of a huge page, what it costs to take it and give it back is mostly what it costs of a base page.
        self.region(backend, pages, HUGE)
    }

    /// Makes a region of `len` bytes of a file, from `offset` on: CPU view and device views are shared mappings of it, so
    /// what the CPU and devices store is in the file. It must be open for reading and writing. The runtime keeps a duplicate
    /// of the descriptor.
    ///
    /// In a space of [`BackendKind::Mprotect`] that is any file which can be mapped, a device's too. In others it is a file in
    /// memory: a memfd, or one on tmpfs or hugetlbfs, where `offset` and `len` must be whole huge pages.
    ///
    /// **The file is the program's**: whoever truncates it takes pages away from under CPU and devices; touching such a page
    /// raises SIGBUS, in a device's thread too. Whoever punches a hole into it, or extends it again after truncating it, gives
    /// the CPU pages that a device has. Others who map or read it see what a device is doing. Sealing a memfd against
    /// shrinking (`F_SEAL_SHRINK`) excludes the first.
    ///
    /// # Errors
    /// [`RegionError`].
    pub fn map_file(&self, file: impl AsFd, offset: u64, len: ByteLen) -> Result<Region, RegionError> {
        let core = self.core();
        let failed = |what| move |errno| RegionError::System { len, what, errno };
        let facts = file::facts(&file).map_err(failed("fstat"))?;
        let granule = match facts.store {
            Store::HugePages(size) => ByteLen(size),
            Store::Memory | Store::Other => base_granule(),
        };
        let pages = self.pages_for(len, granule)?;
        if core.config.simulated || (core.uffd.is_some() && facts.store == Store::Other) {
            return Err(RegionError::FileBackend { backend: core.backend });
        }
        if !len.0.is_multiple_of(granule.0) || !offset.is_multiple_of(granule.0 as u64) {
            return Err(RegionError::FileMisaligned { offset, len, granule });
        }
        if let Some(file_len) = facts.len
            && offset.checked_add(len.0 as u64).is_none_or(|end| end > file_len)
        {
            return Err(RegionError::FileTooShort { offset, len, file_len });
        }
        let file = file.as_fd().try_clone_to_owned().map_err(|error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::MFILE);
            failed("duplicating the descriptor")(errno)
        })?;
        let backing =
            Backing::file(file, offset, pages, granule, facts.may_shrink).map_err(|(what, errno)| match errno {
                Errno::ACCESS => RegionError::FileAccess,
                errno => failed(what)(errno),
            })?;
        let made = match (&core.uffd, facts.store) {
            (Some(uffd), Store::HugePages(_)) => core.minor(uffd, backing).map(AnyBackend::Minor),
            _ => core.over(backing, pages),
        };
        let backend = made.map_err(|(what, errno)| match what {
            REGISTER => RegionError::FileBackend { backend: core.backend },
            what => failed(what)(errno),
        })?;
        self.region(backend, pages, granule)
    }

    pub(crate) fn pages_for(&self, len: ByteLen, granule: ByteLen) -> Result<u32, RegionError> {
        if fork::in_child() {
            return Err(RegionError::Forked);
        }
        if len.0 == 0 {
            return Err(RegionError::Empty);
        }
        len.pages(granule).ok_or(RegionError::TooLarge { len, granule })
    }
}
