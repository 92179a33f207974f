//! Giving an absent page its contents: a copy, zeroes, or a page that is elsewhere now.
//!
//! Each is one ioctl, made once; how far it came is a [`Progress`], whose errors are those of
//! [`Uffd::continue_pages`] and those named here. A page that is mapped is never replaced.
//!
//! Signal-safe: everything here.

use super::{CopyMode, MoveMode, Progress, Uffd, abi};
use crate::Span;

impl Uffd {
    /// Moves the pages at `from` to `to`, without copying (`UFFDIO_MOVE`, 6.8), and wakes who waits for them, unless
    /// `mode` says otherwise. Where the pages were, nothing is mapped: a touch there finds zeroes, or is trapped when
    /// that range is registered as MISSING. Private anonymous memory only. A huge page that is moved whole stays one.
    ///
    /// [`Progress::error`], when nothing was moved:
    ///
    /// - `NOENT`: the source has no page there, and `mode` lacks [`MoveMode::ALLOW_SRC_HOLES`], with which a hole
    ///   counts as done; or nothing is mapped at the source or the destination.
    /// - `EXIST`: the destination has a page.
    /// - `BUSY`: the page is not this process's alone (shared with a forked child, even one that has ended, until the
    ///   page is written to; KSM), or it is pinned.
    /// - `AGAIN`: the kernel was working on the page, or the layout of the address space is being changed: try again.
    /// - `INVAL`: `to` is not registered, in whatever mode, with this descriptor; either is not one mapping, or not of
    ///   private anonymous memory; their protections differ, or are not writable; one is locked and the other is not;
    ///   `from` is no page's address; or before 6.8.
    ///
    /// # Safety
    ///
    /// `from`, as long as `to`, is the caller's, and nothing relies on what it contains until it is moved back. `to`
    /// may come to hold those contents.
    #[inline]
    pub unsafe fn move_pages(&self, to: Span, from: usize, mode: MoveMode) -> Progress {
        let mut request = abi::MovePages {
            to: to.start() as u64,
            from: from as u64,
            len: to.len() as u64,
            mode: mode.bits(),
            moved: 0,
        };
        let result = abi::call(&self.fd, &mut request);
        Progress::decode(result, request.moved, to.len())
    }

    /// Fills the absent pages of `to` with a copy of what is at `from` (`UFFDIO_COPY`), each page appearing whole,
    /// and wakes who waits for them, unless `mode` says otherwise. The source need not be aligned.
    ///
    /// [`Progress::error`], when nothing was copied: `EXIST`: the first page is mapped. `FAULT`: the source cannot be
    /// read. `NOENT`: `to` is not one mapping registered with this descriptor. `NOMEM`. `NOSPC`: the file behind `to`
    /// cannot grow there. `INVAL`: write protection where `to` is not registered for it.
    ///
    /// # Safety
    ///
    /// `to` may come to hold those contents. The source, as long as `to`, can be read, and not by way of a touch that
    /// the calling thread itself would have to serve; it is the kernel that reads it, so somebody may be writing to
    /// it meanwhile.
    #[inline]
    pub unsafe fn copy_pages(&self, to: Span, from: usize, mode: CopyMode) -> Progress {
        let mut request = abi::CopyPages {
            to: to.start() as u64,
            from: from as u64,
            len: to.len() as u64,
            mode: mode.bits(),
            copied: 0,
        };
        let result = abi::call(&self.fd, &mut request);
        Progress::decode(result, request.copied, to.len())
    }

    /// Fills the absent pages of `span` with zeroes (`UFFDIO_ZEROPAGE`), and wakes who waits for them when `wake` is
    /// set. Absent memory is zeroes, so this changes no contents. Not on hugetlb (`INVAL`).
    #[inline]
    pub fn zero_pages(&self, span: Span, wake: bool) -> Progress {
        let mode = if wake { 0 } else { abi::ZEROPAGE_MODE_DONTWAKE };
        let mut request = abi::ZeroPages { range: span.into(), mode, zeroed: 0 };
        let result = abi::call(&self.fd, &mut request);
        Progress::decode(result, request.zeroed, span.len())
    }
}
