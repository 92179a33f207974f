//! `minor`: a memfd mapped several times; the CPU view is trapped by userfaultfd.
//!
//! | step | how |
//! |---|---|
//! | revoke, all | `MADV_DONTNEED` on the CPU view: the pages stay in the page cache, the next touch is a MINOR fault |
//! | revoke, writing | `UFFDIO_WRITEPROTECT` on the CPU view |
//! | map | `UFFDIO_CONTINUE`, after lifting any write protection |
//! | populate | `MADV_POPULATE_WRITE` on the runtime's own alias (on the CPU view it would raise the faults it avoids) |
//!
//! Invariants: `cpu`, `alias` and every view map the same memfd from its start, so page *n* is the same page in all of
//! them; the descriptor is sealed against resizing and never leaves this module; the CPU view is registered with `uffd`
//! for MINOR (and WP where the kernel has it) from `new` to the unmapping; nothing of it is inherited by a forked child.

use pagelease_protocol::{Access, ByteLen, PageIndex, PageRange};
use pagelease_sys::mem::{self, Mapping, SelfProcess};
use pagelease_sys::uffd::{ContinueMode, RegisterMode, Uffd};
use pagelease_sys::{Errno, Span};
use std::os::fd::OwnedFd;

use super::{Backend, BackendKind, Capabilities, MapOutcome, Mapped, ViewMemory};
use crate::shared::Shared;

/// Runs in one `process_madvise`: bounds what lies on the stack.
const RUNS_MAX: usize = 64;

pub(crate) struct Minor {
    uffd: Shared<Uffd>,
    process: Option<Shared<SelfProcess>>,
    file: OwnedFd,
    cpu: Mapping,
    alias: Mapping,
    granule: usize,
    write_protect: bool,
}

impl Minor {
    /// A region of `pages` granules of `granule` bytes. On failure, says which step failed.
    pub(crate) fn new(
        uffd: Shared<Uffd>,
        process: Option<Shared<SelfProcess>>,
        pages: u32,
        granule: ByteLen,
        write_protect: bool,
    ) -> Result<Self, (&'static str, Errno)> {
        let len = (pages as usize).checked_mul(granule.0).ok_or(("size", Errno::NOMEM))?;
        let file = mem::memfd(c"pagelease", len).map_err(|errno| ("memfd_create", errno))?;
        let cpu = private_view(&file, len).map_err(|errno| ("mmap of the CPU view", errno))?;
        let alias = private_view(&file, len).map_err(|errno| ("mmap of the runtime's alias", errno))?;
        let mode = if write_protect { RegisterMode::MINOR | RegisterMode::WP } else { RegisterMode::MINOR };
        uffd.register(cpu.span(), mode).map_err(|errno| ("UFFDIO_REGISTER", errno))?;
        Ok(Self { uffd, process, file, cpu, alias, granule: granule.0, write_protect })
    }

    fn span_of(&self, pages: PageRange) -> Span {
        let start = self.cpu.span().start() + pages.start() as usize * self.granule;
        Span::new(start, pages.len() as usize * self.granule).expect("whole granules of a mapping are a span")
    }

    fn zap(&self, runs: &[PageRange]) -> Result<(), Errno> {
        match &self.process {
            Some(process) if runs.len() > 1 => self.zap_scattered(process, runs),
            _ => runs.iter().try_for_each(|run| {
                // SAFETY: a shared mapping: the contents stay in the memfd, only the CPU's mapping of them goes.
                unsafe { mem::dont_need(self.span_of(*run)) }
            }),
        }
    }

    /// One system call, and one TLB shootdown, for up to [`RUNS_MAX`] runs.
    fn zap_scattered(&self, process: &SelfProcess, runs: &[PageRange]) -> Result<(), Errno> {
        for batch in runs.chunks(RUNS_MAX) {
            let mut spans = [self.span_of(batch[0]); RUNS_MAX];
            for (span, run) in spans.iter_mut().zip(batch) {
                *span = self.span_of(*run);
            }
            let mut rest = &spans[..batch.len()];
            while !rest.is_empty() {
                // SAFETY: as in `zap`.
                let Ok(mut done) = (unsafe { process.dont_need(rest) }) else {
                    // Before Linux 6.13, or forbidden by a filter: one call a run.
                    // SAFETY: as in `zap`.
                    rest.iter().try_for_each(|span| unsafe { mem::dont_need(*span) })?;
                    break;
                };
                // What was done in part is done again from its start.
                while let Some((first, others)) = rest.split_first()
                    && done >= first.len()
                {
                    done -= first.len();
                    rest = others;
                }
            }
        }
        Ok(())
    }
}

fn private_view(file: &OwnedFd, len: usize) -> Result<Mapping, Errno> {
    let mapping = Mapping::shared(file, 0, len)?;
    // SAFETY: a mapping that nobody has seen yet; a forked child shall not have it.
    unsafe { mem::dont_fork(mapping.span()) }?;
    Ok(mapping)
}

impl Backend for Minor {
    fn kind(&self) -> BackendKind {
        BackendKind::Minor
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { exclusive_write: self.write_protect, cover: true }
    }

    fn span(&self) -> Span {
        self.cpu.span()
    }

    fn populate(&self, pages: PageRange) -> Result<(), Errno> {
        let start = self.alias.span().start() + pages.start() as usize * self.granule;
        let span =
            Span::new(start, pages.len() as usize * self.granule).expect("whole granules of a mapping are a span");
        mem::populate_write(span)
    }

    fn revoke(&self, runs: &[PageRange], access: Access) -> Result<(), Errno> {
        match access {
            Access::Exclusive => self.zap(runs),
            Access::ExclusiveWrite => {
                for run in runs {
                    self.uffd.write_protect(self.span_of(*run), true, false)?;
                }
                Ok(())
            }
        }
    }

    fn map(&self, pages: PageRange, how: Mapped) -> Result<MapOutcome, Errno> {
        let mode = match how {
            Mapped::Writable => ContinueMode::empty(),
            Mapped::ReadOnly => ContinueMode::WP,
        };
        let span = self.span_of(pages);
        let mut outcome = MapOutcome::AlreadyMapped;
        let mut at = span.start();
        while let Some(rest) = Span::new(at, span.end() - at) {
            let progress = self.uffd.continue_pages(rest, mode);
            at += progress.bytes;
            if progress.bytes > 0 {
                outcome = MapOutcome::Mapped;
            }
            match progress.error {
                None => break,
                Some(Errno::AGAIN) => {}
                Some(Errno::EXIST) => {
                    // Mapped already; a touch may still sleep on it, and a write protection may still be there.
                    let page = Span::page_of(at).ok_or(Errno::INVAL)?;
                    if how == Mapped::Writable && self.write_protect {
                        self.uffd.write_protect(page, false, true)?;
                    } else {
                        self.uffd.wake(page)?;
                    }
                    at += page.len();
                }
                Some(errno) => return Err(errno),
            }
        }
        Ok(outcome)
    }

    fn wake(&self, pages: PageRange) {
        // It fails only outside the address space.
        let _ = self.uffd.wake(self.span_of(pages));
    }

    fn close(&self) {
        // Both fail only for a range that is not mapped. Unregistering does not wake who waits for a MINOR fault. Whoever
        // still touches the region of a dropped `Region` finds its memory there, until the last view of it has gone.
        let _ = self.uffd.unregister(self.cpu.span());
        let _ = self.uffd.wake(self.cpu.span());
    }

    fn open_view(&self) -> Result<ViewMemory, Errno> {
        private_view(&self.file, self.cpu.span().len()).map(ViewMemory::Mapping)
    }

    fn cover(&self, view_base: usize, page: PageIndex) -> Result<(), Errno> {
        let offset = page.as_usize() * self.granule;
        let at = Span::new(view_base + offset, self.granule).ok_or(Errno::INVAL)?;
        let source = Span::new(self.alias.span().start() + offset, self.granule).ok_or(Errno::INVAL)?;
        // SAFETY: `at` is a page of a device's view, which belongs to the runtime; only an operation that the device
        // abandoned still uses it, through raw or atomic accesses.
        unsafe { mem::cover(at, source) }
    }
}
