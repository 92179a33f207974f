//! The files behind regions: memory files, of base pages and of huge ones, and the holes in them.
//!
//! Invariant: a file made here keeps its length for life. Signal-safe: [`punch_hole`].

use core::ffi::CStr;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::Errno;

/// A memory file of `len` bytes: the pages behind a region, of which [`Mapping::shared`](super::Mapping::shared) makes
/// views.
///
/// It is close-on-exec, not executable where the kernel knows that flag (6.3), and **sealed against resizing**, by
/// this process too: a view of it never loses its end, so a SIGBUS in one is never a truncated file's. (Holes can
/// be punched.) `name` is for `/proc/PID/maps`.
///
/// # Errors
///
/// Those of `memfd_create` and `ftruncate`.
pub fn memfd(name: &CStr, len: usize) -> Result<OwnedFd, Errno> {
    sealed(name, len, MemfdFlags::empty())
}

/// [`memfd`] of 2 MiB pages (hugetlb). Making it takes no page from the pool:
/// [`Mapping::shared_reserved`](super::Mapping::shared_reserved) does, or the first touch.
///
/// # Errors
///
/// Those of [`memfd`]; `INVAL` also when `len` is not a multiple of 2 MiB; `NODEV` or `NOENT`: the kernel has no such
/// pages.
pub fn memfd_huge(name: &CStr, len: usize) -> Result<OwnedFd, Errno> {
    sealed(name, len, MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB)
}

fn sealed(name: &CStr, len: usize, kind: MemfdFlags) -> Result<OwnedFd, Errno> {
    let flags = kind | MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags)?,
        other => other?,
    };
    rustix::fs::ftruncate(&fd, u64::try_from(len).map_err(|_| Errno::FBIG)?)?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(fd)
}

/// Gives the pages of `fd` from `offset` back to the system, in every view: the next touch finds zeroes. The length
/// stays. A page that is in the range in part only is zeroed there (hugetlb: untouched). Signal-safe.
///
/// # Errors
///
/// `OPNOTSUPP`: a file that can have no holes. `PERM`: sealed against writing. `INVAL`: `len` is zero. `BADF`: not open
/// for writing.
pub fn punch_hole(fd: impl AsFd, offset: u64, len: u64) -> Result<(), Errno> {
    rustix::fs::fallocate(fd, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)
}
