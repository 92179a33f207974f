//! Mappings: making, advising, changing and covering them, and asking the kernel what is mapped.
//!
//! Invariants:
//!
//! - A [`Mapping`] owns its span: nothing else maps or unmaps there. Dropping it unmaps, but in a forked child it
//!   does nothing: the span may be `MADV_DONTFORK`, and the child may have mapped something else there.
//! - No function here creates a reference to mapped memory. Whoever does must know that a device, another process
//!   or another alias does not write to it meanwhile.
//! - What takes memory away, or changes what it contains, is `unsafe`: the span must be the caller's to change.
//!
//! Signal-safe, and each is one system call but [`cover()`]: all functions and methods that take a [`Span`]. Not:
//! making or dropping a [`Mapping`], and making a file, for the reason only that nobody needs it.

mod advise;
mod change;
mod cover;
mod file;
mod limits;
pub mod maps;
pub mod pagemap;
#[cfg(test)]
mod tests;

use core::ffi::c_void;
use core::ptr::null_mut;
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

pub use advise::{SelfProcess, dont_fork, dont_need, huge_page, no_huge_page, populate_write, wipe_on_fork};
pub use change::{Protection, protect, remap, unmap};
pub use cover::cover;
pub use file::{memfd, memfd_huge, punch_hole};
pub use limits::{mapping_count, max_map_count};
pub use maps::{Area, AreaKind, Maps};
pub use pagemap::{PageKinds, PageRegion, Pagemap};

use crate::{Span, fork, page_size};

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

    /// As [`anonymous`](Self::anonymous), at an address that leaves the same remainder as `congruent` when divided by
    /// `align`: so that `UFFDIO_MOVE` can move whole huge pages between here and there.
    ///
    /// # Errors
    ///
    /// `INVAL`: `align` is not a power of two and at least the page size, or `len` or `congruent` is not a whole
    /// number of pages. `NOMEM`: no room for it, which is looked for with `align` bytes to spare.
    pub fn anonymous_like(len: usize, congruent: usize, align: usize) -> Result<Self, Errno> {
        let page = page_size();
        if !align.is_power_of_two() || align < page || congruent & (page - 1) != 0 {
            return Err(Errno::INVAL);
        }
        check_len(len)?;
        let spare = align - page;
        let whole = Self::anonymous(len.checked_add(spare).ok_or(Errno::NOMEM)?)?.into_span();
        let before = congruent.wrapping_sub(whole.start()) & (align - 1);
        let kept = whole.start() + before;
        for (start, len) in [(whole.start(), before), (kept + len, spare - before)] {
            if let Some(end) = Span::new(start, len) {
                // SAFETY: ours alone, and nobody has used it. It can fail only for want of memory to split a mapping
                // that the kernel had merged; then some unused addresses stay taken.
                let _ = unsafe { unmap(end) };
            }
        }
        Ok(Self { span: Span::new(kept, len).ok_or(Errno::INVAL)? })
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

    /// As [`shared`](Self::shared), and what the mapping may come to need is reserved now: on hugetlb, its pages, so
    /// that no later touch of it finds the pool empty (which would be a SIGBUS).
    ///
    /// # Errors
    ///
    /// Those of [`shared`](Self::shared); `NOMEM` also when the pool of huge pages is too small.
    pub fn shared_reserved(fd: impl AsFd, offset: u64, len: usize) -> Result<Self, Errno> {
        check_len(len)?;
        // SAFETY: a new mapping where the kernel finds room harms no other.
        Self::own(unsafe { rustix::mm::mmap(null_mut(), len, READ_WRITE, MapFlags::SHARED, fd, offset) }?, len)
    }

    /// Owns what is mapped at `span`.
    ///
    /// # Safety
    ///
    /// It is a mapping of the caller's, which nobody else will unmap.
    pub unsafe fn from_span(span: Span) -> Self {
        Self { span }
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
        let _ = unsafe { unmap(self.span) };
    }
}

const READ_WRITE: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

fn check_len(len: usize) -> Result<(), Errno> {
    if Span::new(0, len).is_some() { Ok(()) } else { Err(Errno::INVAL) }
}
