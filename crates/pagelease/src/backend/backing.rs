//! [`Backing`]: the file behind a region, and its views: what `minor`, `rwprotect` and `mprotect` have in common.
//!
//! Invariants: `cpu`, `alias` and every view map the same bytes of the same file, so page *n* is the same page in all of
//! them; a memory file of the runtime's own is sealed against resizing, and its descriptor never leaves this module; nothing
//! of it is inherited by a forked child. A file of the program's own may be truncated by whoever has it: see
//! [`Backing::reaches`].

use core::sync::atomic::{AtomicUsize, Ordering};
use pagelease_protocol::{ByteLen, PageIndex, PageRange};
use pagelease_sys::file;
use pagelease_sys::mem::{self, Mapping};
use pagelease_sys::{Errno, Span, fork, page_size};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use super::{Refusal, Refused, ViewMemory};

/// What failed, and how.
pub(crate) type Failed = (&'static str, Errno);

pub(crate) struct Backing {
    file: OwnedFd,
    /// Where in the file page 0 is.
    offset: u64,
    cpu: Cpu,
    alias: Mapping,
    granule: usize,
    may_shrink: bool,
    /// The file is the runtime's own.
    own: bool,
}

/// The CPU view: its mapping may move, and have holes, by `Region::remap` and `Region::unmap`.
struct Cpu {
    start: AtomicUsize,
    len: usize,
    /// The view that has just been left, and is still there; 0: none.
    left: AtomicUsize,
    /// What is not mapped any more: something else may be there.
    holes: Mutex<Vec<PageRange>>,
    granule: usize,
}

impl Cpu {
    fn span(&self) -> Span {
        Span::new(self.start.load(Ordering::SeqCst), self.len).expect("it was one when it was mapped")
    }

    /// What is mapped of the view at `start`.
    fn pieces(&self, start: usize) -> Vec<Span> {
        let mut holes = self.holes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        holes.sort_unstable_by_key(|hole| hole.start());
        let mut at = start;
        let mut pieces = Vec::new();
        for hole in holes {
            pieces.extend(Span::new(at, start + hole.start() as usize * self.granule - at));
            at = start + hole.end() as usize * self.granule;
        }
        pieces.extend(Span::new(at, start + self.len - at));
        pieces
    }

    fn unmap(&self, start: usize) {
        for piece in self.pieces(start) {
            // SAFETY: the view's own. It was mapped, so this fails only for want of memory to split a mapping; then it stays.
            let _ = unsafe { mem::unmap(piece) };
        }
    }
}

impl Drop for Cpu {
    fn drop(&mut self) {
        if !fork::in_child() {
            self.unmap(self.start.load(Ordering::SeqCst));
        }
    }
}

impl Backing {
    /// Memory of the runtime's own: `pages` granules, of base pages or of 2 MiB.
    pub(crate) fn memory(pages: u32, granule: ByteLen) -> Result<Self, Failed> {
        let len = size(pages, granule)?;
        let file = if granule.0 == page_size() {
            mem::memfd(c"pagelease", len).map_err(|errno| ("memfd_create", errno))?
        } else {
            mem::memfd_huge(c"pagelease-huge", len).map_err(|errno| ("memfd_create (MFD_HUGETLB)", errno))?
        };
        Self::over(file, 0, len, granule, false, true)
    }

    /// `pages` granules of a file of the program's, from `offset` on.
    pub(crate) fn file(
        file: OwnedFd,
        offset: u64,
        pages: u32,
        granule: ByteLen,
        may_shrink: bool,
    ) -> Result<Self, Failed> {
        Self::over(file, offset, size(pages, granule)?, granule, may_shrink, false)
    }

    fn over(
        file: OwnedFd,
        offset: u64,
        len: usize,
        granule: ByteLen,
        may_shrink: bool,
        own: bool,
    ) -> Result<Self, Failed> {
        let granule = granule.0;
        let cpu = private_view(&file, offset, len, granule).map_err(|errno| ("mmap of the CPU view", errno))?;
        let alias =
            private_view(&file, offset, len, granule).map_err(|errno| ("mmap of the runtime's alias", errno))?;
        let start = AtomicUsize::new(cpu.into_span().start());
        let cpu = Cpu { start, len, left: AtomicUsize::new(0), holes: Mutex::default(), granule };
        Ok(Self { file, offset, cpu, alias, granule, may_shrink, own })
    }

    pub(crate) fn granule(&self) -> usize {
        self.granule
    }

    /// The CPU view.
    pub(crate) fn span(&self) -> Span {
        self.cpu.span()
    }

    pub(crate) fn span_of(&self, pages: PageRange) -> Span {
        self.in_view(self.cpu.span().start(), pages)
    }

    /// What is mapped of the CPU view.
    pub(crate) fn pieces(&self) -> Vec<Span> {
        self.cpu.pieces(self.cpu.span().start())
    }

    /// Takes `pages` out of the CPU view, and frees them if they are the runtime's own.
    ///
    /// # Safety
    /// Nobody uses the addresses any more.
    pub(crate) unsafe fn unmap(&self, pages: PageRange) -> Result<(), Failed> {
        let span = self.span_of(pages);
        let mut holes = self.cpu.holes.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: passed on to the caller; it is the view's own.
        unsafe { mem::unmap(span) }.map_err(|errno| ("munmap", errno))?;
        holes.push(pages);
        drop(holes);
        if self.own {
            let offset = self.offset + (pages.start() as usize * self.granule) as u64;
            mem::punch_hole(&self.file, offset, span.len() as u64)
                .map_err(|errno| ("fallocate (punching a hole)", errno))?;
        }
        Ok(())
    }

    /// Maps another CPU view, where nothing is mapped yet, and makes it the one that counts; `register` comes first.
    ///
    /// # Safety
    /// `to` is the caller's.
    pub(crate) unsafe fn move_to(
        &self,
        to: Option<usize>,
        register: impl Fn(Span) -> Result<(), Failed>,
    ) -> Result<Span, Failed> {
        if !self.cpu.holes.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
            return Err(("mremap", Errno::OPNOTSUPP));
        }
        let view = private_view(&self.file, self.offset, self.cpu.len, self.granule)
            .map_err(|errno| ("mmap of the new CPU view", errno))?;
        let view = match to {
            None => view,
            Some(to) => {
                // SAFETY: the view is ours, and `to` the caller's.
                unsafe { mem::remap(view.span(), Some(to), false) }.map_err(|errno| ("mremap", errno))?;
                let _ = view.into_span();
                // SAFETY: just mapped there, and nobody else's.
                unsafe { Mapping::from_span(Span::new(to, self.cpu.len).expect("it was mapped there")) }
            }
        };
        register(view.span())?;
        let view = view.into_span();
        // Whoever has a page busy just now may yet take it from the old view, or map it there: nobody looks. In the new one it
        // is absent, and traps.
        self.cpu.left.store(self.cpu.start.swap(view.start(), Ordering::SeqCst), Ordering::SeqCst);
        Ok(view)
    }

    /// Unmaps the view that was left, which nobody uses any more.
    pub(crate) fn moved_away(&self) {
        let left = self.cpu.left.swap(0, Ordering::SeqCst);
        if left != 0 {
            self.cpu.unmap(left);
        }
    }

    fn in_view(&self, base: usize, pages: PageRange) -> Span {
        let start = base + pages.start() as usize * self.granule;
        Span::new(start, pages.len() as usize * self.granule).expect("whole granules of a mapping are a span")
    }

    /// Makes the pages exist, through the runtime's own alias: on the CPU view that would raise the faults it avoids.
    pub(crate) fn populate(&self, pages: PageRange) -> Result<(), Refusal> {
        mem::populate_write(self.in_view(self.alias.span().start(), pages))
            .map_err(|errno| Refusal { pages, why: Refused::NoMemory(errno) })
    }

    pub(crate) fn open_view(&self) -> Result<ViewMemory, Errno> {
        private_view(&self.file, self.offset, self.cpu.len, self.granule).map(ViewMemory::Mapping)
    }

    /// Covers a page of the view at `view_base` by a private copy: the file is read, never written. Signal-safe.
    pub(crate) fn cover(&self, view_base: usize, page: PageIndex) -> Result<(), Errno> {
        let offset = page.as_usize() * self.granule;
        let at = Span::new(view_base + offset, self.granule).ok_or(Errno::INVAL)?;
        let source = Span::new(self.alias.span().start() + offset, self.granule).ok_or(Errno::INVAL)?;
        // SAFETY: `at` is a page of a device's view, which belongs to the runtime; only an operation that the device
        // abandoned still uses it, through raw or atomic accesses.
        unsafe { mem::cover(at, source) }
    }

    /// Whether the file is still long enough to have `page`. Signal-safe.
    pub(crate) fn reaches(&self, page: PageIndex) -> bool {
        let end = self.offset + (page.as_usize() as u64 + 1) * self.granule as u64;
        !self.may_shrink || file::len(&self.file).is_ok_and(|len| end <= len)
    }
}

fn size(pages: u32, granule: ByteLen) -> Result<usize, Failed> {
    (pages as usize).checked_mul(granule.0).ok_or(("size", Errno::NOMEM))
}

fn private_view(file: &OwnedFd, offset: u64, len: usize, granule: usize) -> Result<Mapping, Errno> {
    let mapping = if granule == page_size() {
        Mapping::shared(file, offset, len)?
    } else {
        // The first view takes the pages out of the pool; the others find them taken.
        Mapping::shared_reserved(file, offset, len)?
    };
    // SAFETY: a mapping that nobody has seen yet; a forked child shall not have it.
    unsafe { mem::dont_fork(mapping.span()) }?;
    // MADV_COLLAPSE, and khugepaged, would map pages that a device has into the CPU view, without a trap.
    // SAFETY: as above. A kernel without huge pages, or a file that cannot have any, need not be told.
    let _ = unsafe { mem::no_huge_page(mapping.span()) };
    Ok(mapping)
}
