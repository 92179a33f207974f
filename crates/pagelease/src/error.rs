//! What can go wrong, each with the range it concerns and what to do about it.

use core::time::Duration;

use pagelease_protocol::{ByteLen, OwnerId, PageIndex, PageRange};
use pagelease_sys::Errno;
use pagelease_sys::uffd::OpenError;

/// A space could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpaceError {
    /// Userfaultfd was refused, or lacks a feature.
    #[error("{0}; {remedy}", remedy = userfaultfd_remedy(.0))]
    Userfaultfd(#[from] OpenError),
    /// `membarrier` was refused.
    #[error("membarrier (private expedited) is refused: {0}; Linux 4.14 has it, a seccomp filter may forbid it")]
    Membarrier(Errno),
    /// The SIGBUS handler of the in-thread mode could not be installed.
    #[error("the SIGBUS handler of the in-thread mode cannot be installed: {0}; use Faults::Monitor")]
    Signal(Errno),
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

fn userfaultfd_remedy(error: &OpenError) -> &'static str {
    let refused_for =
        |errno| matches!(error, OpenError::Refused { attempts } if attempts.iter().any(|(_, e)| *e == errno));
    match [Errno::MFILE, Errno::NFILE].into_iter().find(|&errno| refused_for(errno)) {
        Some(errno) => remedy(errno),
        None => "run `pagelease doctor` for the command that changes it",
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
    /// The access is not one that the region's backend can give.
    #[error(
        "{pages}: this kernel cannot write-protect shared memory by userfaultfd (Linux 6.4); claim Access::Exclusive"
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
}
