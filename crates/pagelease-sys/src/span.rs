//! A page-aligned range of addresses, and the size of a page.
//!
//! Invariants of [`Span`], checked once, in [`Span::new`]: start and length are multiples of the page size, the
//! length is not zero, and the end does not overflow. So a span can be handed to the kernel as it is. It says
//! nothing about what is mapped there.
//!
//! Its layout is that of `struct iovec`, so that a slice of spans is an argument of `process_madvise`.
//!
//! Everything here is signal-safe.

use core::fmt;
use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The size of a base page in bytes: 4096 on x86-64; 4096, 16384 or 65536 on aarch64.
///
/// The first call asks libc (`sysconf`, which POSIX lists as safe in a signal handler), the others load one word.
#[inline]
pub fn page_size() -> usize {
    static PAGE_SIZE: AtomicUsize = AtomicUsize::new(0);

    #[cold]
    fn ask() -> usize {
        // SAFETY: sysconf has no precondition.
        let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let size = usize::try_from(size).unwrap_or(0);
        assert!(size.is_power_of_two(), "the page size is a power of two");
        PAGE_SIZE.store(size, Relaxed);
        size
    }

    match PAGE_SIZE.load(Relaxed) {
        0 => ask(),
        size => size,
    }
}

/// A page-aligned, non-empty range of addresses. See the [module](self) for its invariants.
#[repr(C)]
#[derive(Copy, Clone, Eq, PartialEq, Debug, Hash)]
pub struct Span {
    start: usize,
    len: usize,
}

// Span is `struct iovec`: base, then length.
const _: () = {
    assert!(size_of::<Span>() == size_of::<libc::iovec>());
    assert!(offset_of!(Span, start) == offset_of!(libc::iovec, iov_base));
    assert!(offset_of!(Span, len) == offset_of!(libc::iovec, iov_len));
};

#[expect(clippy::len_without_is_empty, reason = "a span is never empty")]
impl Span {
    /// The span of `len` bytes from `start`; `None` unless both are multiples of the page size, `len` is not
    /// zero, and the end can be represented.
    #[inline]
    pub fn new(start: usize, len: usize) -> Option<Self> {
        let aligned = (start | len) & (page_size() - 1) == 0;
        (aligned && len != 0 && start.checked_add(len).is_some()).then_some(Self { start, len })
    }

    /// The one page that contains `address`; `None` for the last page of the address space, whose end cannot be
    /// represented.
    #[inline]
    pub fn page_of(address: usize) -> Option<Self> {
        Self::new(address & !(page_size() - 1), page_size())
    }

    /// Where it begins.
    #[inline]
    pub const fn start(self) -> usize {
        self.start
    }

    /// Its length in bytes, never zero.
    #[inline]
    pub const fn len(self) -> usize {
        self.len
    }

    /// The first address past it.
    #[inline]
    pub const fn end(self) -> usize {
        self.start + self.len
    }

    /// Its start as a pointer. The pointer's provenance is that of whoever mapped the memory and exposed it
    /// ([`Mapping`](crate::mem::Mapping) does).
    #[inline]
    pub fn as_ptr(self) -> *mut u8 {
        core::ptr::with_exposed_provenance_mut(self.start)
    }

    /// Whether `address` lies in it.
    #[inline]
    pub const fn contains(self, address: usize) -> bool {
        address >= self.start && address - self.start < self.len
    }
}

/// `0x7f12_3456_7000-0x7f12_3456_8000`, without the underscores, as in `/proc/PID/maps`.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.start, self.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_pages_make_a_span() {
        let page = page_size();
        assert_eq!(Span::new(page, 0), None);
        assert_eq!(Span::new(page + 1, page), None);
        assert_eq!(Span::new(page, page + 1), None);
        let last = usize::MAX - page + 1;
        assert_eq!(Span::new(last, page), None, "the end overflows");
        assert_eq!(Span::page_of(usize::MAX), None);

        let span = Span::new(2 * page, 3 * page).unwrap();
        assert_eq!((span.start(), span.len(), span.end()), (2 * page, 3 * page, 5 * page));
        assert!(span.contains(2 * page) && span.contains(5 * page - 1));
        assert!(!span.contains(2 * page - 1) && !span.contains(5 * page));
        assert_eq!(Span::page_of(2 * page + 7), Span::new(2 * page, page));
        assert_eq!(span.as_ptr().addr(), 2 * page);
    }

    #[test]
    fn it_prints_like_proc_maps() {
        let span = Span::new(0x7000_0000, page_size()).unwrap();
        assert_eq!(span.to_string(), format!("0x70000000-{:#x}", 0x7000_0000 + page_size()));
    }

    #[test]
    fn the_page_size_is_the_kernels() {
        assert_eq!(page_size(), rustix::param::page_size());
    }
}
