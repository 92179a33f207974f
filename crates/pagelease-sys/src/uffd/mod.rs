//! userfaultfd: a file descriptor through which user space serves page faults.
//!
//! A [`Span`] is registered with a [`Uffd`]. A touch that the registration traps then stops the touching thread,
//! and is reported in one of two ways, fixed when the descriptor is opened: as a [`Message`] to read, or, with
//! [`Features::SIGBUS`], as a signal in that very thread. Either way the page is mapped with
//! [`Uffd::continue_pages`] (or filled, or its protection lifted), and the thread goes on.
//!
//! Invariants:
//!
//! - A [`Uffd`] has had its handshake: each request can be made.
//! - Each method is one ioctl, made once. Retrying is the caller's decision.
//!
//! Closing the descriptor ends every registration and lets all waiting threads go on. A forked child's copy of the
//! descriptor still acts on the *parent's* memory: see [`mod@crate::fork`].
//!
//! Signal-safe: all methods but [`Uffd::open`].

mod abi;
mod fill;
mod flags;
mod message;
mod open;
#[cfg(test)]
mod tests;

use core::mem::MaybeUninit;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;

use crate::Span;
pub use flags::{ContinueMode, CopyMode, FaultFlags, Features, Ioctls, MoveMode, RegisterMode};
pub use message::{Event, Fault, Message};
pub use open::{OpenError, OpenPath, Opened, probe};

/// A userfaultfd, open and ready. See the [module](self).
#[derive(Debug)]
pub struct Uffd {
    fd: OwnedFd,
}

/// How far a request over several pages came.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
#[must_use = "a request may stop anywhere"]
pub struct Progress {
    /// Bytes done, from the start of the span; always whole pages.
    pub bytes: usize,
    /// Why it stopped; `None` when all of the span is done.
    ///
    /// When some pages were done, the kernel says only that it stopped (`AGAIN`), not why: ask again for the
    /// rest, from `bytes` on, and that answer says it. When none was done:
    ///
    /// - `EXIST`: the first page is mapped already, by somebody else. Its waiters may still sleep:
    ///   [`Uffd::wake`], and go on after it.
    /// - `FAULT` (CONTINUE): the page cache does not hold the first page.
    /// - `AGAIN`: the layout of the address space is being changed (only with the event features): try again.
    /// - `NOENT`: (part of) the span is not registered with this descriptor. `INVAL`: it is registered, but not
    ///   for this.
    pub error: Option<Errno>,
}

impl Progress {
    /// Decodes the answer to a request for `len` bytes. `done` is the result field: bytes done when positive, a
    /// negative errno (the one returned, too) or untouched zero otherwise.
    #[inline]
    fn decode(result: Result<(), Errno>, done: i64, len: usize) -> Self {
        match result {
            Ok(()) => Self { bytes: len, error: None },
            Err(errno) => Self { bytes: usize::try_from(done).unwrap_or(0), error: Some(errno) },
        }
    }
}

impl Uffd {
    /// Traps the touches of `span` that `mode` names. Pages that are mapped stay mapped. Returns what the range
    /// allows.
    ///
    /// # Errors
    ///
    /// `BUSY`: registered with another descriptor. `INVAL`: not mapped, or not memory that `mode` is possible for.
    pub fn register(&self, span: Span, mode: RegisterMode) -> Result<Ioctls, Errno> {
        let mut request = abi::Register { range: span.into(), mode: mode.bits(), ioctls: 0 };
        abi::call(&self.fd, &mut request)?;
        Ok(Ioctls::from_bits_retain(request.ioctls))
    }

    /// Traps no more touches of `span`, and lifts its write protection. **Wakes only those who wait for a MISSING
    /// page** (up to 6.18 at least): whoever waits for a MINOR page or to write sleeps on until [`Uffd::wake`], which
    /// is to follow.
    ///
    /// # Errors
    ///
    /// `INVAL`: `span` holds a mapping that userfaultfd cannot serve, or none at all.
    pub fn unregister(&self, span: Span) -> Result<(), Errno> {
        abi::call(&self.fd, &mut abi::Unregister(span.into()))
    }

    /// Maps the pages of `span` that the page cache holds and this mapping does not (`UFFDIO_CONTINUE`), and wakes
    /// who waits for them, unless `mode` says otherwise. What the pages contain does not change. One attempt: see
    /// [`Progress`].
    #[inline]
    pub fn continue_pages(&self, span: Span, mode: ContinueMode) -> Progress {
        let mut request = abi::Continue { range: span.into(), mode: mode.bits(), mapped: 0 };
        let result = abi::call(&self.fd, &mut request);
        Progress::decode(result, request.mapped, span.len())
    }

    /// Protects `span` from writes, or lifts the protection (`UFFDIO_WRITEPROTECT`). Reads go on. Lifting it lets
    /// the waiting writers go on when `wake` is set; protecting wakes nobody, whatever `wake` says.
    ///
    /// # Errors
    ///
    /// `NOENT`: (part of) `span` is not registered for [`RegisterMode::WP`] with this descriptor. `AGAIN`: the
    /// layout of the address space is being changed (only with the event features).
    #[inline]
    pub fn write_protect(&self, span: Span, on: bool, wake: bool) -> Result<(), Errno> {
        let mode = match (on, wake) {
            (true, _) => abi::WRITEPROTECT_MODE_WP,
            (false, true) => 0,
            (false, false) => abi::WRITEPROTECT_MODE_DONTWAKE,
        };
        abi::call(&self.fd, &mut abi::WriteProtect { range: span.into(), mode })
    }

    /// Protects the pages of `span` from reads and writes, or lifts the protection (`UFFDIO_RWPROTECT`, 7.3). The
    /// pages stay where they are, and other views of them are not affected. Lifting it lets the waiting threads go on
    /// when `wake` is set; protecting wakes nobody, whatever `wake` says.
    ///
    /// **Only pages that are mapped here are protected**: an absent one gets no mark, so that it comes unprotected,
    /// when touched or by [`continue_pages`](Self::continue_pages). `MADV_DONTNEED`, hole punching and (of a file's
    /// pages) reclaim drop the protection with the page. With [`RegisterMode::MINOR`] besides, an absent page that the
    /// page cache holds is trapped all the same, as MINOR. What [`move_pages`](Self::move_pages) brings into a range
    /// registered for this arrives protected.
    ///
    /// # Errors
    ///
    /// `NOENT`: (part of) `span` is not registered for [`RegisterMode::RWP`] with this descriptor. `AGAIN`: the
    /// layout of the address space is being changed (only with the event features). `INVAL`: a part of a hugetlb page;
    /// or before 7.3.
    #[inline]
    pub fn rw_protect(&self, span: Span, on: bool, wake: bool) -> Result<(), Errno> {
        let mode = match (on, wake) {
            (true, _) => abi::RWPROTECT_MODE_RWP,
            (false, true) => 0,
            (false, false) => abi::RWPROTECT_MODE_DONTWAKE,
        };
        abi::call(&self.fd, &mut abi::RwProtect { range: span.into(), mode })
    }

    /// Lets the threads that wait for `span` go on: each touches again.
    ///
    /// # Errors
    ///
    /// `INVAL`: outside the address space.
    #[inline]
    pub fn wake(&self, span: Span) -> Result<(), Errno> {
        abi::call(&self.fd, &mut abi::Wake(span.into()))
    }

    /// Reads as many waiting messages as `buf` has room for, without blocking. Several threads may read one
    /// descriptor; each message goes to one of them.
    ///
    /// # Errors
    ///
    /// `AGAIN`: none is waiting. `INVAL`: `buf` is empty.
    #[inline]
    pub fn read_faults<'a>(&self, buf: &'a mut [MaybeUninit<Message>]) -> Result<&'a [Message], Errno> {
        let len = size_of_val(buf);
        let start = buf.as_mut_ptr();
        // SAFETY: the same memory, exclusively borrowed, as uninitialised bytes.
        let bytes = unsafe { core::slice::from_raw_parts_mut(start.cast::<MaybeUninit<u8>>(), len) };
        let (read, _) = rustix::io::read(&self.fd, bytes)?;
        let count = read.len() / size_of::<Message>();
        // SAFETY: the kernel filled in `count` whole messages, and a `Message` is valid for every bit pattern.
        Ok(unsafe { core::slice::from_raw_parts(start.cast::<Message>(), count) })
    }
}

/// For `poll`, and for handing the descriptor on.
impl AsFd for Uffd {
    #[inline]
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
