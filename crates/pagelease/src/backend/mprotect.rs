//! `mprotect`: closed pages and SIGSEGV. For shared mappings that userfaultfd cannot serve (a file on a disk, a device's
//! memory), and where there is no userfaultfd. Page by page, like every backend.
//!
//! | step | how |
//! |---|---|
//! | revoke, all | `mprotect(PROT_NONE)` on the CPU view, a call a run |
//! | revoke, writing | `mprotect(PROT_READ)` |
//! | map | `mprotect(PROT_READ \| PROT_WRITE)`, or `PROT_READ` |
//! | populate | `MADV_POPULATE_WRITE` on the runtime's own alias: an absent page would trap, but a device that stores to it must not find the disk full |
//!
//! A touch is served by the touching thread, in its SIGSEGV handler: nobody else hears of it. So a system call that touches
//! a device's page fails with EFAULT; a thread that blocks SIGSEGV dies of its touch, and so does one whose stack lies in
//! a device's page, unless it has an alternate signal stack. A handler that the program installs later would get the
//! touches first: claims are refused then.
//!
//! The **book** has a byte a page: what the CPU view was last set to. It tells a real segmentation fault from a touch: see
//! [`Mprotect::is_open`]. What it has as open is open; it is written before a page is closed, and after it is opened, by
//! whoever has the page `busy`. Nobody else reads it but for a hint.
//!
//! Where protections differ, the kernel has one mapping for each side of the border, and a process may have so many: see
//! `mappings`. Every claim sees to it that no later touch fails for want of one.
//!
//! Invariants: what `backing` says; every byte of the book but those of busy pages is what the CPU view is set to, until
//! `closed` (so no signal handler of the thread that has them busy may run between entry and call); `revoked` counts the pages that the book does not have as open, and the mappings they may need are taken.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};

use pagelease_protocol::{Access, OwnerId, PageIndex, PageRange};
use pagelease_sys::mem::{self, Mapping, Protection};
use pagelease_sys::signal::{self, Signal};
use pagelease_sys::{Errno, Span};

use super::backing::{Backing, Failed};
use super::{Backend, BackendKind, Capabilities, MapOutcome, Mapped, Refusal, Refused, ViewMemory};
use crate::shared::own_mapping;
use crate::sync::block_signals;

mod allowed;
mod mappings;

pub(crate) use allowed::{allows, arm};

/// What the book says of a page. Zero, so that a new book has every page open.
const OPEN: u8 = 0;
const READ_ONLY: u8 = 1;
const CLOSED: u8 = 2;

pub(crate) struct Mprotect {
    backing: Backing,
    pages: u32,
    /// See the module. Not a `Table`: no schedule depends on it, so exploration need not see it.
    book: Mapping,
    revoked: AtomicUsize,
    closed: AtomicBool,
}

impl Mprotect {
    /// Traps the touches of `backing`, which has `pages` granules. On failure, says which step failed.
    pub(crate) fn new(backing: Backing, pages: u32) -> Result<Self, Failed> {
        let book = own_mapping(pages as usize).map_err(|errno| ("mmap of the book of protections", errno))?;
        Ok(Self { backing, pages, book, revoked: AtomicUsize::new(0), closed: AtomicBool::new(false) })
    }

    fn book(&self) -> &[AtomicU8] {
        // SAFETY: a zero-filled mapping of at least so many bytes, which lives as long as `self` and is only ever used as
        // atomics.
        unsafe { core::slice::from_raw_parts(self.book.as_ptr().cast(), self.pages as usize) }
    }

    fn book_of(&self, pages: PageRange) -> &[AtomicU8] {
        &self.book()[pages.start() as usize..pages.end() as usize]
    }

    fn protect(&self, pages: PageRange, protection: Protection) -> Result<(), Errno> {
        // SAFETY: the CPU view is the region's, holds no code, and whoever touches it is served by the handler.
        unsafe { mem::protect(self.backing.span_of(pages), protection) }
    }

    /// Whether the page is open for the access, as far as is known: then the thread that trapped there either was overtaken
    /// by another that opened it, or made a segmentation fault of its own. A hint, unless the page is busy. Signal-safe.
    pub(crate) fn is_open(&self, page: PageIndex, write: Option<bool>) -> bool {
        match self.book()[page.as_usize()].load(Ordering::Relaxed) {
            OPEN => true,
            READ_ONLY => write == Some(false),
            _ => false,
        }
    }

    /// So many pages more will be revoked: takes the mappings they may need. `Err`: how many there may be.
    fn take_mappings(&self, more: usize) -> Result<(), usize> {
        let before = self.revoked.fetch_add(more, Ordering::SeqCst);
        let needed = self.worst(before + more) - self.worst(before);
        let taken = mappings::take(needed);
        if taken.is_err() {
            self.give_mappings(more);
        }
        taken
    }

    fn give_mappings(&self, fewer: usize) {
        let before = self.revoked.fetch_sub(fewer, Ordering::SeqCst);
        debug_assert!(before >= fewer, "{before} pages are revoked, not {fewer}");
        mappings::give(self.worst(before) - self.worst(before - fewer));
    }

    /// The most mappings beyond one that the CPU view is split into while at most `revoked` of its pages are: each may lie
    /// between two open ones.
    fn worst(&self, revoked: usize) -> usize {
        (2 * revoked).min(self.pages as usize - 1)
    }

    /// The region closes while a claim of it ends: whatever that has closed since is open again.
    fn reopen_if_closed(&self, pages: PageRange) {
        if self.closed.load(Ordering::SeqCst) {
            let _ = self.protect(pages, Protection::ReadWrite);
        }
    }
}

impl Backend for Mprotect {
    fn kind(&self) -> BackendKind {
        BackendKind::Mprotect
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { exclusive_write: true, cover: true, alias: true }
    }

    fn span(&self) -> Span {
        self.backing.span()
    }

    fn populate(&self, pages: PageRange) -> Result<(), Refusal> {
        match self.backing.populate(pages) {
            // A device's mapping is populated by the device; and before 5.14 nobody can.
            Err(Refusal { why: Refused::NoMemory(Errno::INVAL), .. }) => Ok(()),
            done => done,
        }
    }

    fn revoke(&self, runs: &[PageRange], access: Access, _device: OwnerId) -> Result<(), Refusal> {
        let refusal = |why| Refusal { why, ..Refusal::system(runs, Errno::NOMEM) };
        // A handler that interrupted this and touched one of the pages would open it between the book's entry and the call.
        let _blocked = block_signals();
        if signal::is_ours(Signal::Segmentation) != Ok(true) {
            return Err(refusal(Refused::Handler));
        }
        let open =
            |run: &PageRange| self.book_of(*run).iter().filter(|page| page.load(Ordering::Relaxed) == OPEN).count();
        self.take_mappings(runs.iter().map(open).sum()).map_err(|limit| refusal(Refused::Mappings { limit }))?;
        let (entry, protection) = match access {
            Access::Exclusive => (CLOSED, Protection::None),
            Access::ExclusiveWrite => (READ_ONLY, Protection::Read),
        };
        // All of the book first: what it has as revoked is counted, whether or not the kernel has done it.
        runs.iter().flat_map(|run| self.book_of(*run)).for_each(|page| page.store(entry, Ordering::Relaxed));
        for &run in runs {
            self.protect(run, protection).map_err(|errno| refusal(Refused::System(errno)))?;
            self.reopen_if_closed(run);
        }
        Ok(())
    }

    fn undo(&self, pages: PageRange) {
        // Or what nobody has would count against the claims of others until it is touched.
        let _blocked = block_signals();
        let _ = self.map(pages, Mapped::Writable);
    }

    fn undoes(&self) -> bool {
        true
    }

    fn map(&self, pages: PageRange, how: Mapped) -> Result<MapOutcome, Errno> {
        let book = self.book_of(pages);
        let (protection, entry) = match how {
            Mapped::Writable => (Protection::ReadWrite, OPEN),
            Mapped::ReadOnly => (Protection::Read, READ_ONLY),
        };
        let less = |page: &AtomicU8| page.load(Ordering::Relaxed) > entry;
        let Some(first) = book.iter().position(less) else { return Ok(MapOutcome::AlreadyMapped) };
        let last = book.iter().rposition(less).unwrap_or(first);
        let index = |at: usize| pages.start() + u32::try_from(at).expect("within the range");
        let changed = PageRange::new(index(first), index(last) + 1).expect("holds the first");
        // In one call, over those between that are open already: all of them are busy, and to be mapped.
        self.protect(changed, protection)?;
        let mut opened = 0;
        for page in &book[first..=last] {
            let before = page.load(Ordering::Relaxed);
            page.store(before.min(entry), Ordering::Relaxed);
            opened += usize::from(before != OPEN && entry == OPEN);
        }
        if opened > 0 {
            self.give_mappings(opened);
        }
        if how == Mapped::ReadOnly {
            self.reopen_if_closed(changed);
        }
        Ok(MapOutcome::Mapped)
    }

    fn wake(&self, _pages: PageRange) {
        // Whoever waits for a page sleeps on its word.
    }

    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        // A claim that is just ending has either seen `closed`, or closed its pages before this. It fails for want of memory
        // only; then a touch finds the region closed and not open, and is a segmentation fault.
        for piece in self.backing.pieces() {
            // SAFETY: as in `protect`.
            let _ = unsafe { mem::protect(piece, Protection::ReadWrite) };
        }
    }

    unsafe fn unmap(&self, pages: PageRange) -> Result<(), Failed> {
        // SAFETY: passed on to the caller.
        unsafe { self.backing.unmap(pages) }
    }

    fn reaches(&self, page: PageIndex) -> bool {
        self.backing.reaches(page)
    }

    fn open_view(&self, _device: OwnerId) -> Result<ViewMemory, Errno> {
        self.backing.open_view()
    }

    fn cover(&self, view_base: usize, page: PageIndex) -> Result<(), Errno> {
        self.backing.cover(view_base, page)
    }
}

impl Drop for Mprotect {
    fn drop(&mut self) {
        mappings::give(self.worst(self.revoked.load(Ordering::SeqCst)));
    }
}
