//! Mappings: making, advising, and covering them.
//!
//! Invariants:
//!
//! - A [`Mapping`] owns its span: nothing else maps or unmaps there. Dropping it unmaps, but in a forked child it
//!   does nothing: the span may be `MADV_DONTFORK`, and the child may have mapped something else there.
//! - No function here creates a reference to mapped memory. Whoever does must know that a device, another process
//!   or another alias does not write to it meanwhile.
//! - What takes memory away, or changes what it contains, is `unsafe`: the span must be the caller's to change.
//!
//! Signal-safe, and each is one system call but [`cover`]: all functions and methods that take a [`Span`]. Not:
//! making or dropping a [`Mapping`], and [`memfd`], for the reason only that nobody needs it.

mod advise;
mod cover;
#[cfg(test)]
mod tests;

use core::ffi::{CStr, c_void};
use core::ptr::null_mut;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

pub use advise::{SelfProcess, dont_fork, dont_need, populate_write, wipe_on_fork};
pub use cover::cover;

use crate::{Span, fork};

/// A mapping that is unmapped when dropped. See the [module](self).
#[derive(Debug)]
pub struct Mapping {
    span: Span,
}

impl Mapping {
    /// `len` bytes of private memory, zeroed, readable and writable; no swap space is reserved, so that the size may
    /// exceed what the machine has.
    ///
    /// # Errors
    ///
    /// `INVAL`: `len` is not a positive multiple of the page size. `NOMEM`: no room for it.
    pub fn anonymous(len: usize) -> Result<Self, Errno> {
        check_len(len)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping where the kernel finds room harms no other.
        Self::own(unsafe { rustix::mm::mmap_anonymous(null_mut(), len, READ_WRITE, flags) }?, len)
    }

    /// `len` bytes of the file `fd` from `offset`, shared, readable and writable. Each call makes another view of
    /// the same pages.
    ///
    /// # Errors
    ///
    /// `INVAL`: `offset` or `len` is not a multiple of the page size, or `len` is zero. `ACCES`: `fd` is not open for
    /// both reading and writing. `NOMEM`: no room for it.
    pub fn shared(fd: impl AsFd, offset: u64, len: usize) -> Result<Self, Errno> {
        check_len(len)?;
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: a new mapping where the kernel finds room harms no other.
        Self::own(unsafe { rustix::mm::mmap(null_mut(), len, READ_WRITE, flags, fd, offset) }?, len)
    }

    fn own(start: *mut c_void, len: usize) -> Result<Self, Errno> {
        // Exposed, so that `Span::as_ptr` may make a pointer to it out of the address.
        let span = Span::new(start.expose_provenance(), len).ok_or(Errno::INVAL)?;
        Ok(Self { span })
    }

    /// Where it is. Signal-safe.
    #[inline]
    pub fn span(&self) -> Span {
        self.span
    }

    /// Its start. Signal-safe.
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        self.span.as_ptr()
    }

    /// Gives it up without unmapping: it stays for the life of the process.
    pub fn into_span(self) -> Span {
        let span = self.span;
        core::mem::forget(self);
        span
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if fork::in_child() {
            return;
        }
        // SAFETY: the span is ours alone. It was mapped, so unmapping can fail only for want of memory to split a
        // mapping that the kernel had merged; then it stays, and nobody uses it.
        let _ = unsafe { rustix::mm::munmap(self.span.as_ptr().cast(), self.span.len()) };
    }
}

const READ_WRITE: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

fn check_len(len: usize) -> Result<(), Errno> {
    if Span::new(0, len).is_some() { Ok(()) } else { Err(Errno::INVAL) }
}

/// A memory file of `len` bytes: the pages behind a region, of which [`Mapping::shared`] makes views.
///
/// It is close-on-exec, not executable where the kernel knows that flag (6.3), and **sealed against resizing**, by
/// this process too: a view of it never loses its end, so a SIGBUS in one is never a truncated file's. (Holes can
/// be punched.) `name` is for `/proc/PID/maps`.
///
/// # Errors
///
/// Those of `memfd_create` and `ftruncate`.
pub fn memfd(name: &CStr, len: usize) -> Result<OwnedFd, Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags)?,
        other => other?,
    };
    rustix::fs::ftruncate(&fd, u64::try_from(len).map_err(|_| Errno::FBIG)?)?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(fd)
}
