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

use core::ffi::CStr;
use core::ptr::null_mut;
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags};
use rustix::process::PidfdFlags;

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

    fn own(start: *mut core::ffi::c_void, len: usize) -> Result<Self, Errno> {
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

/// Replaces what is mapped at `span` by private memory that holds what `source` contains now: later stores at
/// `span` go nowhere, and whoever makes them does not notice. Other views of the page keep it. A forked child will
/// have nothing mapped here.
///
/// `source` may be another view of the same page, or `span` itself, and may change meanwhile: each aligned word of
/// the copy is one that was there. Four system calls. Signal-safe.
///
/// # Safety
///
/// `span` is the caller's, and may become private memory. `source` can be read, and not by way of a touch that the
/// calling thread itself would have to serve.
///
/// # Errors
///
/// `INVAL`: the lengths differ. `NOMEM`: no memory, or too many mappings. What was mapped at `span` is then as before.
pub unsafe fn cover(span: Span, source: Span) -> Result<(), Errno> {
    if span.len() != source.len() {
        return Err(Errno::INVAL);
    }
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new mapping where the kernel finds room harms no other.
    let copy = unsafe { rustix::mm::mmap_anonymous(null_mut(), span.len(), READ_WRITE, flags) }?;

    let from = source.as_ptr().cast::<u64>();
    for word in 0..span.len() / size_of::<u64>() {
        // SAFETY: both are of this many words, aligned to a page; the copy is ours alone, the source can be read.
        // Volatile, since somebody may be writing to the source.
        unsafe { copy.cast::<u64>().add(word).write(from.add(word).read_volatile()) };
    }

    // Before the move, so that no fork can come between. A mapping keeps the mark when it moves.
    // SAFETY: the copy is ours alone.
    let marked = unsafe { rustix::mm::madvise(copy, span.len(), Advice::LinuxDontFork) };
    let moved = marked.and_then(|()| {
        let to = span.as_ptr().cast();
        // SAFETY: the copy is ours alone, and the caller lets us replace `span`.
        unsafe { rustix::mm::mremap_fixed(copy, span.len(), span.len(), MremapFlags::MAYMOVE, to) }
    });
    if let Err(errno) = moved {
        // SAFETY: the copy did not move, and is ours alone.
        let _ = unsafe { rustix::mm::munmap(copy, span.len()) };
        return Err(errno);
    }
    Ok(())
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

/// What libc says of the call that has just failed. Signal-safe.
pub(crate) fn last_errno() -> Errno {
    // SAFETY: libc's errno is this thread's, and always there.
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}
