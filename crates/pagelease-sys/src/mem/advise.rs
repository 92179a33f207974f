//! `madvise`, and `process_madvise` on oneself.
//!
//! What takes memory away, or changes what it contains, is `unsafe`: the span must be the caller's to change.
//! Signal-safe: everything but [`SelfProcess::open`].

use rustix::fd::{AsRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::mm::Advice;
use rustix::process::PidfdFlags;

use crate::{Span, last_errno};

/// `MADV_DONTNEED`: removes the mapping of each page. On a shared mapping, the file keeps the page and what it
/// contains, and the next touch maps it again, or is trapped. On private memory **the contents are gone**.
///
/// When it returns, no CPU has a stale translation of the span.
///
/// # Safety
///
/// The span is the caller's, and nothing relies on its contents if it is private.
///
/// # Errors
///
/// `INVAL`: locked memory, or a mapping of a device. `NOMEM`: (part of) the span is not mapped.
#[inline]
pub unsafe fn dont_need(span: Span) -> Result<(), Errno> {
    // SAFETY: passed on to the caller.
    unsafe { advise(span, Advice::LinuxDontNeed) }
}

/// `MADV_DONTFORK`: a forked child will have nothing mapped here.
///
/// # Safety
///
/// The span is the caller's, and no forked child uses it.
///
/// # Errors
///
/// `NOMEM`: (part of) the span is not mapped.
#[inline]
pub unsafe fn dont_fork(span: Span) -> Result<(), Errno> {
    // SAFETY: passed on to the caller.
    unsafe { advise(span, Advice::LinuxDontFork) }
}

/// `MADV_WIPEONFORK`: a forked child will find zeroes here. Private anonymous memory only.
///
/// # Safety
///
/// The span is the caller's, and zeroes are valid for everything in it.
///
/// # Errors
///
/// `INVAL`: not private anonymous memory. `NOMEM`: (part of) the span is not mapped.
#[inline]
pub unsafe fn wipe_on_fork(span: Span) -> Result<(), Errno> {
    // SAFETY: passed on to the caller.
    unsafe { advise(span, Advice::LinuxWipeOnFork) }
}

/// `MADV_HUGEPAGE`: the kernel may use huge pages here.
///
/// # Safety
///
/// The span is the caller's.
///
/// # Errors
///
/// `INVAL`: a kernel without transparent huge pages. `NOMEM`: (part of) the span is not mapped.
#[inline]
pub unsafe fn huge_page(span: Span) -> Result<(), Errno> {
    // SAFETY: passed on to the caller.
    unsafe { advise(span, Advice::LinuxHugepage) }
}

/// `MADV_NOHUGEPAGE`: the kernel uses no huge pages here. Those that are here stay as they are.
///
/// # Safety
///
/// The span is the caller's.
///
/// # Errors
///
/// `INVAL`: a kernel without transparent huge pages, which uses none anyway. `NOMEM`: (part of) the span is not mapped.
#[inline]
pub unsafe fn no_huge_page(span: Span) -> Result<(), Errno> {
    // SAFETY: passed on to the caller.
    unsafe { advise(span, Advice::LinuxNoHugepage) }
}

/// `MADV_POPULATE_WRITE` (5.14): maps every page of the span for writing, as a write would, but without changing
/// what it contains. On a span registered with a userfaultfd it raises the faults that it was to avoid: populate
/// through another view.
///
/// # Errors
///
/// `FAULT`: a touch of some page would raise SIGBUS. `NOMEM`: (part of) the span is not mapped, or there is no
/// memory.
#[inline]
pub fn populate_write(span: Span) -> Result<(), Errno> {
    // SAFETY: what memory contains does not change, nor what is mapped where.
    unsafe { advise(span, Advice::LinuxPopulateWrite) }
}

/// # Safety
///
/// That of `advice`.
#[inline]
unsafe fn advise(span: Span, advice: Advice) -> Result<(), Errno> {
    // SAFETY: passed on to the caller.
    unsafe { rustix::mm::madvise(span.as_ptr().cast(), span.len(), advice) }
}

/// This process, as `process_madvise` wants it: one system call for many spans.
#[derive(Debug)]
pub struct SelfProcess {
    pidfd: OwnedFd,
}

impl SelfProcess {
    /// The most spans that one call takes (`UIO_MAXIOV`).
    pub const SPANS_MAX: usize = 1024;

    /// Opens this process. In a forked child it still names the parent, and [`dont_need`](Self::dont_need) is
    /// refused.
    ///
    /// # Errors
    ///
    /// `NOSYS` before 5.3. `MFILE`, `NFILE`: too many files.
    pub fn open() -> Result<Self, Errno> {
        let pidfd = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
        Ok(Self { pidfd })
    }

    /// [`dont_need`] for each of `spans`, in order. Returns the bytes done: fewer than all when one of the later
    /// spans fails. Signal-safe, though it may change errno.
    ///
    /// # Safety
    ///
    /// As for [`dont_need`], for each of them.
    ///
    /// # Errors
    ///
    /// `INVAL` before 6.13, which knows no such advice, and with more than [`SPANS_MAX`](Self::SPANS_MAX) spans;
    /// `NOSYS` before 5.10; otherwise the first span's.
    pub unsafe fn dont_need(&self, spans: &[Span]) -> Result<usize, Errno> {
        // SAFETY: a span is a `struct iovec` (asserted beside its definition), and the kernel only reads them. What it
        // does to the memory they name, the caller allows.
        let done = unsafe {
            libc::syscall(
                libc::SYS_process_madvise,
                self.pidfd.as_raw_fd(),
                spans.as_ptr(),
                spans.len(),
                libc::MADV_DONTNEED,
                0,
            )
        };
        usize::try_from(done).map_err(|_| last_errno())
    }
}
