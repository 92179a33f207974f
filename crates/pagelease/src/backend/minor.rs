//! `minor`: a memory file mapped several times; the CPU view is trapped by userfaultfd.
//!
//! | step | how |
//! |---|---|
//! | revoke, all | `MADV_DONTNEED` on the CPU view: the pages stay in the page cache, the next touch is a MINOR fault |
//! | revoke, writing | `UFFDIO_WRITEPROTECT` on the CPU view |
//! | map | `UFFDIO_CONTINUE`, after lifting any write protection |
//! | populate | `MADV_POPULATE_WRITE` on the runtime's own alias |
//!
//! Of base pages, or of 2 MiB ones (hugetlb): then the granule is the huge page, and every request is of whole granules. (The
//! kernel takes a part of one for nothing, or for all of it.)
//!
//! Invariant: the CPU view is registered with `uffd` for MINOR (and WP where the kernel has it) from `new` to the unmapping.

use pagelease_protocol::{Access, OwnerId, PageIndex, PageRange};
use pagelease_sys::mem::{self, SelfProcess};
use pagelease_sys::uffd::{ContinueMode, RegisterMode, Uffd};
use pagelease_sys::{Errno, Span};

use super::backing::{Backing, Failed};
use super::{Backend, BackendKind, Capabilities, MapOutcome, Mapped, Refusal, ViewMemory};
use crate::shared::Shared;

/// Runs in one `process_madvise`: bounds what lies on the stack.
const RUNS_MAX: usize = 64;

/// What [`Minor::new`] calls the step that fails for memory which userfaultfd cannot serve.
pub(crate) const REGISTER: &str = "UFFDIO_REGISTER";

pub(crate) struct Minor {
    uffd: Shared<Uffd>,
    process: Option<Shared<SelfProcess>>,
    backing: Backing,
    write_protect: bool,
}

impl Minor {
    /// Traps the touches of `backing`. On failure, says which step failed.
    pub(crate) fn new(
        uffd: Shared<Uffd>,
        process: Option<Shared<SelfProcess>>,
        backing: Backing,
        write_protect: bool,
    ) -> Result<Self, Failed> {
        let minor = Self { uffd, process, backing, write_protect };
        minor.uffd.register(minor.backing.span(), minor.mode()).map_err(|errno| (REGISTER, errno))?;
        Ok(minor)
    }

    fn mode(&self) -> RegisterMode {
        if self.write_protect { RegisterMode::MINOR | RegisterMode::WP } else { RegisterMode::MINOR }
    }

    /// Whether the kernel can take pages from this view: for hugetlb, from 5.18 on.
    pub(crate) fn can_revoke(&self) -> Result<(), Errno> {
        let first = PageRange::single(PageIndex(0)).expect("not the last index");
        self.zap(&[first])
    }

    fn zap(&self, runs: &[PageRange]) -> Result<(), Errno> {
        match &self.process {
            Some(process) if runs.len() > 1 => self.zap_scattered(process, runs),
            _ => runs.iter().try_for_each(|run| {
                // SAFETY: a shared mapping: the contents stay in the file, only the CPU's mapping of them goes.
                unsafe { mem::dont_need(self.backing.span_of(*run)) }
            }),
        }
    }

    /// One system call, and one TLB shootdown, for up to [`RUNS_MAX`] runs.
    fn zap_scattered(&self, process: &SelfProcess, runs: &[PageRange]) -> Result<(), Errno> {
        for batch in runs.chunks(RUNS_MAX) {
            let mut spans = [self.backing.span_of(batch[0]); RUNS_MAX];
            for (span, run) in spans.iter_mut().zip(batch) {
                *span = self.backing.span_of(*run);
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

/// Maps `span` by `UFFDIO_CONTINUE`, and wakes who waits for it. What is mapped already is left to `mapped`, a granule at a
/// time: a touch may still sleep on it, and a protection may still be there.
pub(super) fn continue_all(
    uffd: &Uffd,
    span: Span,
    granule: usize,
    mode: ContinueMode,
    mapped: impl Fn(Span) -> Result<(), Errno>,
) -> Result<MapOutcome, Errno> {
    let mut outcome = MapOutcome::AlreadyMapped;
    let mut at = span.start();
    while let Some(rest) = Span::new(at, span.end() - at) {
        let progress = uffd.continue_pages(rest, mode);
        at += progress.bytes;
        if progress.bytes > 0 {
            outcome = MapOutcome::Mapped;
        }
        match progress.error {
            None => break,
            Some(Errno::AGAIN) => {}
            Some(Errno::EXIST) => {
                mapped(Span::new(at, granule).ok_or(Errno::INVAL)?)?;
                at += granule;
            }
            Some(errno) => return Err(errno),
        }
    }
    Ok(outcome)
}

impl Backend for Minor {
    fn kind(&self) -> BackendKind {
        BackendKind::Minor
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { exclusive_write: self.write_protect, cover: true, alias: true }
    }

    fn span(&self) -> Span {
        self.backing.span()
    }

    fn populate(&self, pages: PageRange) -> Result<(), Refusal> {
        self.backing.populate(pages)
    }

    fn revoke(&self, runs: &[PageRange], access: Access, _device: OwnerId) -> Result<(), Refusal> {
        let done = match access {
            Access::Exclusive => self.zap(runs),
            Access::ExclusiveWrite => {
                runs.iter().try_for_each(|run| self.uffd.write_protect(self.backing.span_of(*run), true, false))
            }
        };
        done.map_err(|errno| Refusal::system(runs, errno))
    }

    fn map(&self, pages: PageRange, how: Mapped) -> Result<MapOutcome, Errno> {
        let mode = match how {
            Mapped::Writable => ContinueMode::empty(),
            Mapped::ReadOnly => ContinueMode::WP,
        };
        continue_all(&self.uffd, self.backing.span_of(pages), self.backing.granule(), mode, |page| {
            if how == Mapped::Writable && self.write_protect {
                self.uffd.write_protect(page, false, true)
            } else {
                self.uffd.wake(page)
            }
        })
    }

    fn wake(&self, pages: PageRange) {
        // It fails only outside the address space.
        let _ = self.uffd.wake(self.backing.span_of(pages));
    }

    fn close(&self) {
        // Both fail only for a range that is not mapped. Unregistering does not wake who waits for a MINOR fault. Whoever
        // still touches the region of a dropped `Region` finds its memory there, until the last view of it has gone.
        for piece in self.backing.pieces() {
            let _ = self.uffd.unregister(piece);
            let _ = self.uffd.wake(piece);
        }
    }

    unsafe fn unmap(&self, pages: PageRange) -> Result<(), Failed> {
        // SAFETY: passed on to the caller.
        unsafe { self.backing.unmap(pages) }
    }

    unsafe fn move_to(&self, to: Option<usize>) -> Result<Span, Failed> {
        let register = |span| self.uffd.register(span, self.mode()).map(drop).map_err(|errno| (REGISTER, errno));
        // SAFETY: passed on to the caller.
        unsafe { self.backing.move_to(to, register) }
    }

    fn moved_away(&self) {
        self.backing.moved_away();
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
