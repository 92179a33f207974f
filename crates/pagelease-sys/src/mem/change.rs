//! Changing what is mapped where, and what may be done there: `mprotect`, `mremap`, `munmap`.
//!
//! When a function here returns, no CPU has a stale translation of the span. Signal-safe: everything, though [`remap`]
//! may change errno.

use core::ffi::c_void;
use rustix::io::Errno;
use rustix::mm::MprotectFlags;

use crate::{Span, last_errno};

/// What may be done with memory. Each allows what the ones before it allow.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Debug, Hash)]
pub enum Protection {
    /// Nothing: `PROT_NONE`.
    None,
    /// Reading: `PROT_READ`.
    Read,
    /// Reading and writing: `PROT_READ | PROT_WRITE`.
    ReadWrite,
}

impl Protection {
    fn flags(self) -> MprotectFlags {
        match self {
            Self::None => MprotectFlags::empty(),
            Self::Read => MprotectFlags::READ,
            Self::ReadWrite => MprotectFlags::READ | MprotectFlags::WRITE,
        }
    }
}

/// Sets what may be done at `span` (`mprotect`): a touch that is not allowed raises SIGSEGV. Where it changes for a
/// part of a mapping, the kernel splits the mapping, up to [`max_map_count`](super::max_map_count).
///
/// # Safety
///
/// The span is the caller's, nobody executes code there, and whoever touches it is prepared for the signal.
///
/// # Errors
///
/// `NOMEM`: (part of) the span is not mapped, or there would be too many mappings; what lies before may have changed.
/// `ACCES`: a file that is not open for that. `INVAL`: a part of a hugetlb page. `PERM`: sealed (`mseal`).
#[inline]
pub unsafe fn protect(span: Span, protection: Protection) -> Result<(), Errno> {
    // SAFETY: passed on to the caller.
    unsafe { rustix::mm::mprotect(span.as_ptr().cast(), span.len(), protection.flags()) }
}

/// Moves what is mapped at `span`, pages and all, to `to`, replacing what is there, or to where the kernel finds room
/// (`mremap`). Returns where it is. With `keep_old` (`MREMAP_DONTUNMAP`: 5.7, shared memory 5.13), only the pages
/// move: `span` stays mapped, empty if private, and its registration with a userfaultfd stays in force there.
///
/// # Safety
///
/// `span`, and as many bytes from `to`, are the caller's to change.
///
/// # Errors
///
/// `INVAL`: the two overlap, `to` is no page's address, or `keep_old` for a mapping that it is not possible for (locked
/// memory among others). `FAULT`: (part of) `span` is not mapped, or it is several mappings (from 6.17 on, these can
/// be moved without `keep_old`). `NOMEM`: no room, or there would be too many mappings.
#[inline]
pub unsafe fn remap(span: Span, to: Option<usize>, keep_old: bool) -> Result<usize, Errno> {
    let fixed = if to.is_some() { libc::MREMAP_FIXED } else { 0 };
    let kept = if keep_old { libc::MREMAP_DONTUNMAP } else { 0 };
    // With DONTUNMAP the kernel reads the address even without FIXED, as a hint: `rustix::mm::mremap`, which leaves
    // that register as it happens to be, gets INVAL.
    let to = core::ptr::with_exposed_provenance_mut::<c_void>(to.unwrap_or(0));
    let (from, len, flags) = (span.as_ptr().cast(), span.len(), libc::MREMAP_MAYMOVE | fixed | kept);
    // SAFETY: passed on to the caller.
    let moved = unsafe { libc::mremap(from, len, len, flags, to) };
    if moved == libc::MAP_FAILED {
        return Err(last_errno());
    }
    // Exposed, so that `Span::as_ptr` may make a pointer to it out of the address.
    Ok(moved.expose_provenance())
}

/// Unmaps `span` (`munmap`). Where nothing is mapped, nothing happens.
///
/// # Safety
///
/// The span is the caller's, and nobody uses it any more.
///
/// # Errors
///
/// `NOMEM`: a mapping would have to be split, and there are too many. `INVAL`: a part of a hugetlb page, or outside the
/// address space. `PERM`: sealed (`mseal`).
#[inline]
pub unsafe fn unmap(span: Span) -> Result<(), Errno> {
    // SAFETY: passed on to the caller.
    unsafe { rustix::mm::munmap(span.as_ptr().cast(), span.len()) }
}
