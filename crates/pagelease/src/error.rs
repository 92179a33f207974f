//! What can go wrong, each with the range it concerns and what to do about it.

use core::time::Duration;

use pagelease_protocol::{ByteLen, OwnerId, PageIndex, PageRange};
use pagelease_sys::Errno;
use pagelease_sys::uffd::OpenError;

use crate::backend::BackendKind;

/// A space could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpaceError {
    /// Userfaultfd was refused, or lacks a feature.
    #[error("{0}; {remedy}", remedy = userfaultfd_remedy(.0))]
    Userfaultfd(OpenError),
    /// `membarrier` was refused.
    #[error("membarrier (private expedited) is refused: {0}; Linux 4.14 has it, a seccomp filter may forbid it")]
    Membarrier(Errno),
    /// The signal handler of the in-thread mode could not be installed.
    #[error("the signal handler of the in-thread mode cannot be installed: {0}; use Faults::Monitor")]
    Signal(Errno),
    /// A backend whose touches only the touching thread can serve, with [`Faults::Monitor`](crate::Faults::Monitor).
    #[error(
        "{backend:?} serves each touch in the thread that makes it, and no monitor hears of it; set SpaceBuilder::faults(Faults::InThread)"
    )]
    NeedsInThread {
        /// What was asked for.
        backend: BackendKind,
    },
    /// A backend that is not for memory which the runtime allocates.
    #[error("{backend:?} is for memory that the program has already; leave SpaceBuilder::backend unset, and adopt it")]
    NotAllocated {
        /// What was asked for.
        backend: BackendKind,
    },
    /// The mappings of the process cannot be looked up, which `BackendKind::Mprotect` has to.
    #[error(
        "/proc/self/maps cannot be opened: {0}; without it a device's page cannot be told from a segmentation fault: mount /proc"
    )]
    Maps(Errno),
    /// The runtime's own tables could not be mapped.
    #[error("the runtime's tables cannot be made: {errno}; {remedy}", errno = .0, remedy = remedy(*.0))]
    Memory(Errno),
    /// A service thread could not be started.
    #[error("a service thread cannot be started: {0}; raise the process limit (ulimit -u)")]
    Thread(String),
    /// A limit is zero, or the number of monitors is.
    #[error("{0} must not be zero")]
    Zero(&'static str),
    /// Called in a child of fork, of a process that had a space.
    #[error("this process is a forked child: the runtime is its parent's; make a space of its own after exec")]
    Forked,
}

/// Memory of the program could not be adopted. It is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdoptError {
    /// Start or length are not multiples of the granule.
    #[error("{start:#x}+{len:#x} is not aligned to the granule of {granule}; adopt whole granules")]
    Misaligned {
        /// The address asked for.
        start: usize,
        /// The length in bytes.
        len: usize,
        /// The granule.
        granule: ByteLen,
    },
    /// Some of it is not memory of a kind that can be adopted.
    #[error(
        "{start:#x}..{end:#x} is {what}; only private anonymous memory that can be read and written is adopted: {remedy}"
    )]
    Unfit {
        /// Where that lies.
        start: usize,
        /// Where it ends.
        end: usize,
        /// What it is.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// Some of it is under management already.
    #[error("{start:#x}..{end:#x} is (partly) in a region already; use that one, or drop it first")]
    Managed {
        /// Where that region lies.
        start: usize,
        /// Where it ends.
        end: usize,
    },
    /// Touches of it cannot be served in the touching thread.
    #[error("{start:#x}..{end:#x} is {what}, whose touches cannot be served in the touching thread; {remedy}")]
    NotInThread {
        /// Where that lies.
        start: usize,
        /// Where it ends.
        end: usize,
        /// What it is.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// Userfaultfd was refused, or lacks `UFFDIO_MOVE` (Linux 6.8) or its events.
    #[error("adopting memory: {0}; Linux 6.8 has what it takes; before, use Space::allocate")]
    Userfaultfd(OpenError),
    /// In a simulated space.
    #[error("a simulated space has no addresses to adopt; use Space::allocate")]
    Simulated,
    /// The region could not be made.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// A system call failed.
    #[error("{what} failed: {errno}; {}", remedy(*.errno))]
    System {
        /// The step.
        what: &'static str,
        /// What the kernel said.
        errno: Errno,
    },
    /// The thread that reads what happens to the memory could not be started.
    #[error("{0}")]
    Thread(String),
    /// Called in a child of fork.
    #[error("this process is a forked child: the runtime is its parent's; make a space of its own after exec")]
    Forked,
}

// Not `#[from]`, which would make it the source as well: whoever prints an error with its sources would print it twice.
impl From<OpenError> for SpaceError {
    fn from(error: OpenError) -> Self {
        Self::Userfaultfd(error)
    }
}

impl From<OpenError> for AdoptError {
    fn from(error: OpenError) -> Self {
        Self::Userfaultfd(error)
    }
}

fn userfaultfd_remedy(error: &OpenError) -> &'static str {
    let refused_for =
        |errno| matches!(error, OpenError::Refused { attempts } if attempts.iter().any(|(_, e)| *e == errno));
    match [Errno::MFILE, Errno::NFILE].into_iter().find(|&errno| refused_for(errno)) {
        Some(errno) => remedy(errno),
        None => {
            "run `pagelease doctor` for the command that changes it, or do without: BackendKind::Mprotect, Faults::InThread"
        }
    }
}

/// A region could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegionError {
    /// A region of no bytes.
    #[error("a region of 0 bytes; ask for at least one")]
    Empty,
    /// More granules than a page index can name.
    #[error("a region of {len} needs more than 2^32 - 2 granules of {granule}; make several regions")]
    TooLarge {
        /// What was asked for.
        len: ByteLen,
        /// The granule.
        granule: ByteLen,
    },
    /// A system call refused memory, address space or a descriptor.
    #[error("a region of {len}: {what} failed: {errno}; {}", remedy(*.errno))]
    System {
        /// What was asked for.
        len: ByteLen,
        /// The step that failed.
        what: &'static str,
        /// What the kernel said.
        errno: Errno,
    },
    /// The pool of huge pages is too small.
    #[error(
        "a region of {len}: the pool has fewer than {pages} free pages of {granule}; enlarge it: sudo sysctl vm.nr_hugepages=N"
    )]
    TooFewHugePages {
        /// What was asked for.
        len: ByteLen,
        /// How many huge pages that takes.
        pages: u32,
        /// Their size.
        granule: ByteLen,
    },
    /// This kernel, or this space's backend, cannot serve huge pages of a pool.
    #[error(
        "a region of {len} of huge pages: {what} is missing; it came with Linux {since}: use Space::allocate there"
    )]
    NoHugePages {
        /// What was asked for.
        len: ByteLen,
        /// What the kernel lacks.
        what: &'static str,
        /// The version that has it.
        since: &'static str,
    },
    /// A part of a file that is not whole pages.
    #[error("{len} at {offset} of the file are not whole pages of {granule}; round both")]
    FileMisaligned {
        /// Where in the file.
        offset: u64,
        /// What was asked for.
        len: ByteLen,
        /// The page size of the file's memory.
        granule: ByteLen,
    },
    /// The file ends before the region would.
    #[error("{len} at {offset} of a file of {file_len} bytes; extend it first (ftruncate), or map less of it")]
    FileTooShort {
        /// Where in the file.
        offset: u64,
        /// What was asked for.
        len: ByteLen,
        /// How long the file is.
        file_len: u64,
    },
    /// The file may not be both read and written through its descriptor.
    #[error("the file is not open for reading and writing both; open it so: a region's memory is written to")]
    FileAccess,
    /// The file cannot be served by the space's backend.
    #[error(
        "this file is not in memory (memfd, tmpfs, hugetlbfs), and a space of {backend:?} serves no other; make one with SpaceBuilder::backend(BackendKind::Mprotect) and Faults::InThread"
    )]
    FileBackend {
        /// The space's backend.
        backend: BackendKind,
    },
    /// As many regions as the process may have.
    #[error("{limit} regions exist already; drop one, or make larger ones")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// Called in a child of fork.
    #[error("this process is a forked child: the runtime is its parent's; make a space of its own after exec")]
    Forked,
}

fn remedy(errno: Errno) -> &'static str {
    match errno {
        Errno::NOMEM => "raise the address-space limit (ulimit -v) or make it smaller",
        Errno::MFILE | Errno::NFILE => "raise the limit on open files (ulimit -n) or close some",
        Errno::FBIG => "raise the file-size limit (ulimit -f)",
        _ => "run `pagelease doctor`",
    }
}

/// A device could not be registered or attached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// Every device identity of the space is taken.
    #[error("{limit} devices exist already in this space; drop one, or make another space")]
    TooManyDevices {
        /// The limit: what six bits of a page word can name.
        limit: u8,
    },
    /// The device has a view of this region already.
    #[error("{device} is attached to this region already; use the view it has")]
    AlreadyAttached {
        /// The device.
        device: OwnerId,
    },
    /// As many regions and views of adopted regions as the process may have.
    #[error("{limit} regions and views of adopted regions exist already; drop some")]
    TooManyViews {
        /// The limit.
        limit: usize,
    },
    /// Device and region belong to different spaces.
    #[error("{device} belongs to another space than the region; register it with the region's space")]
    ForeignDevice {
        /// The device.
        device: OwnerId,
    },
    /// The device has been lost.
    #[error(transparent)]
    Lost(#[from] DeviceLost),
    /// A system call refused memory or address space.
    #[error("{what} failed: {errno}; {}", remedy(*.errno))]
    System {
        /// The step that failed.
        what: &'static str,
        /// What the kernel said.
        errno: Errno,
    },
    /// Called in a child of fork.
    #[error("this process is a forked child: the runtime is its parent's")]
    Forked,
}

/// An address range is not one of a region's whole granules.
#[derive(Copy, Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RangeError {
    /// Start or length are not multiples of the granule.
    #[error("{start:#x}+{len:#x} is not aligned to the granule of {granule}; round it to whole granules")]
    Misaligned {
        /// The address asked for.
        start: usize,
        /// The length in bytes.
        len: usize,
        /// The granule of the region.
        granule: ByteLen,
    },
    /// No bytes.
    #[error("{start:#x}: an empty range; ask for at least one granule")]
    Empty {
        /// The address asked for.
        start: usize,
    },
    /// The end lies beyond the address space.
    #[error("{start:#x}+{len:#x} overflows the address space")]
    Overflow {
        /// The address asked for.
        start: usize,
        /// The length in bytes.
        len: usize,
    },
    /// (Partly) in no region.
    #[error(
        "{start:#x}+{len:#x} is not (wholly) in this region, {region_start:#x}..{region_end:#x}; only a region's memory can be claimed"
    )]
    Unmanaged {
        /// The address asked for.
        start: usize,
        /// The length in bytes.
        len: usize,
        /// Where the region starts.
        region_start: usize,
        /// Where it ends.
        region_end: usize,
    },
    /// In another region.
    #[error("{start:#x}+{len:#x} lies in another region, {region_start:#x}..{region_end:#x}; use a view of that one")]
    Foreign {
        /// The address asked for.
        start: usize,
        /// The length in bytes.
        len: usize,
        /// Where the region it lies in starts.
        region_start: usize,
        /// Where that region ends.
        region_end: usize,
    },
}

/// A claim was refused. Nothing of it remains: pages it had got are the CPU's again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError {
    /// A range reaches behind the region's end.
    #[error("{pages} of a region of {region_pages}; claim within it")]
    OutOfRange {
        /// What was asked for.
        pages: PageRange,
        /// How many granules the region has.
        region_pages: u32,
    },
    /// The ranges of one claim overlap or are out of order, or there is none.
    #[error("the ranges of one claim must be ascending and disjoint, and at least one; sort and merge them")]
    NotAscending,
    /// The device has been lost.
    #[error(transparent)]
    Lost(#[from] DeviceLost),
    /// The region, or the device's view of it, has been dropped.
    #[error("{pages}: the region has been dropped, or the device detached from it")]
    RegionGone {
        /// What was asked for.
        pages: PageRange,
    },
    /// The kernel had no memory for pages never touched before.
    #[error("{pages}: no memory for them: {errno}; free memory, or raise the limit of the memory cgroup")]
    OutOfMemory {
        /// What was asked for.
        pages: PageRange,
        /// What the kernel said.
        errno: Errno,
    },
    /// The CPU view could not be revoked.
    #[error("{pages}: the CPU view cannot be revoked: {errno}; was the mapping changed behind the runtime's back?")]
    Revoke {
        /// What was asked for.
        pages: PageRange,
        /// What the kernel said.
        errno: Errno,
    },
    /// The kernel or another process uses the pages too: they are pinned (by `O_DIRECT`, `io_uring`, RDMA, `vmsplice`), or were
    /// merged, and stay so. (That a forked child shares them is undone by the claim.)
    #[error(
        "{pages}: in use by the kernel (pinned) or merged (KSM), and cannot be moved; end that input and output, then claim again"
    )]
    Pinned {
        /// The pages.
        pages: PageRange,
    },
    /// The program has taken its own right to write the pages away, and a device has no more than that.
    #[error("{pages}: not writable (mprotect), so no device may write them; make them writable, or claim others")]
    Protected {
        /// The pages.
        pages: PageRange,
    },
    /// The program has unmapped the pages.
    #[error("{pages}: not mapped any more (munmap); claim others, or drop the region")]
    Unmapped {
        /// The pages.
        pages: PageRange,
    },
    /// Giving the pages back one by one could need more mappings than the process may have.
    #[error(
        "{pages}: the region would need up to {limit} mappings and more, the process's limit; claim fewer pages at a time, or raise vm.max_map_count"
    )]
    TooManyMappings {
        /// What was asked for.
        pages: PageRange,
        /// How many mappings the region may have.
        limit: usize,
    },
    /// Somebody has installed a handler for SIGSEGV after the space: it would get the touches of the pages.
    #[error(
        "{pages}: a SIGSEGV handler was installed after the space, and touches would go to it; install it before making the space, which passes on what is not its own"
    )]
    HandlerReplaced {
        /// The pages.
        pages: PageRange,
    },
    /// The access is not one that the region's backend can give.
    #[error(
        "{pages}: the region's backend or this kernel cannot protect them from writes alone; claim Access::Exclusive"
    )]
    Unsupported {
        /// What was asked for.
        pages: PageRange,
    },
    /// Every record of a claim in flight or held is in use.
    #[error("{pages}: {limit} chunks are claimed or held already; drop leases, or claim larger ranges at a time")]
    TooManyLeases {
        /// What was asked for.
        pages: PageRange,
        /// The limit.
        limit: usize,
    },
    /// Called in a child of fork.
    #[error("{pages}: this process is a forked child: the runtime is its parent's")]
    Forked {
        /// What was asked for.
        pages: PageRange,
    },
}

/// The program's rights to a region's pages, or their place, could not be changed. Everything is as it was, unless it says so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReshapeError {
    /// The range reaches behind the region's end.
    #[error("{pages} of a region of {region_pages}; name pages within it")]
    OutOfRange {
        /// What was asked for.
        pages: PageRange,
        /// How many granules the region has.
        region_pages: u32,
    },
    /// Some of the pages are unmapped already.
    #[error("{pages}: some are not mapped any more; name those that are")]
    Unmapped {
        /// What was asked for.
        pages: PageRange,
    },
    /// The region's backend cannot.
    #[error("{what}: a region of this backend cannot; {remedy}")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// The region is being dropped.
    #[error("the region has been dropped")]
    RegionGone,
    /// The kernel refused.
    #[error("{pages}: {what} failed: {errno}; {}", remedy(*.errno))]
    System {
        /// What was asked for.
        pages: PageRange,
        /// The step that failed.
        what: &'static str,
        /// What the kernel said.
        errno: Errno,
    },
    /// What the program did to adopted memory was not noticed within the drain limit.
    #[error("{pages}: the change was made, but devices may still have the pages: no event came within the drain limit")]
    NotNoticed {
        /// What was asked for.
        pages: PageRange,
    },
    /// Called in a child of fork.
    #[error("this process is a forked child: the runtime is its parent's")]
    Forked,
}

/// Some pages of a lease were taken away before it ended.
#[derive(Copy, Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "the lease lost {lost} of its {pages}, first {first}: the hold limit passed, the holder touched it, or device or region went; claim again"
)]
pub struct LeaseBroken {
    /// What had been claimed: from the first page to the last.
    pub pages: PageRange,
    /// The first page that was lost.
    pub first: PageIndex,
    /// How many were.
    pub lost: u32,
}

/// A device that will never be given a page again.
#[derive(Copy, Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{device} is lost: {why}; drop it and register a new one")]
pub struct DeviceLost {
    /// The device.
    pub device: OwnerId,
    /// Why.
    pub why: LossReason,
}

/// Why a device was lost.
#[derive(Copy, Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LossReason {
    /// An operation did not end within the drain limit.
    #[error("its operation on {page} of region {region} did not end within {limit:?}")]
    Stuck {
        /// The region.
        region: u32,
        /// The page.
        page: PageIndex,
        /// The drain limit.
        limit: Duration,
    },
    /// An operation panicked.
    #[error("its operation on {page} of region {region} panicked")]
    Panicked {
        /// The region.
        region: u32,
        /// The page.
        page: PageIndex,
    },
    /// Its driver said so: see [`DeviceHandle::declare_lost`](crate::DeviceHandle::declare_lost).
    #[error("its driver lost it")]
    Driver,
}
