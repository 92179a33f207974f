//! `rwprotect`: as `minor`, but pages that a device takes stay mapped in the CPU view, protected from reads and writes
//! (userfaultfd RWP, Linux 7.3). Nothing is unmapped and mapped again, and a huge page stays one.
//!
//! | step | how |
//! |---|---|
//! | populate | `MADV_POPULATE_WRITE` on the runtime's own alias, then `UFFDIO_CONTINUE`: RWP marks only what is mapped |
//! | revoke, all | `UFFDIO_RWPROTECT` on the CPU view |
//! | map | `UFFDIO_RWPROTECT`, off; and `UFFDIO_CONTINUE`, for a page that is not mapped any more |
//!
//! The kernel may reclaim a protected page's mapping, and the protection goes with it. So the view is registered for MINOR
//! too: such a page still traps, since the page cache holds it. Giving one page back maps it if need be. Giving many back
//! at a time lifts their protection only: of those, a reclaimed one traps once more.
//!
//! RWP and write protection exclude each other (EINVAL), so [`Access::ExclusiveWrite`] is not possible.
//!
//! Invariant: the CPU view is registered with `uffd` for MINOR and RWP from `new` to the unmapping.

use pagelease_protocol::{Access, ByteLen, OwnerId, PageIndex, PageRange};
use pagelease_sys::uffd::{ContinueMode, RegisterMode, Uffd};
use pagelease_sys::{Errno, Span, page_size};

use super::backing::{Backing, Failed};
use super::minor::{REGISTER, continue_all};
use super::{Backend, BackendKind, Capabilities, MapOutcome, Mapped, Refusal, ViewMemory};
use crate::shared::Shared;

pub(crate) struct RwProtect {
    uffd: Shared<Uffd>,
    backing: Backing,
}

impl RwProtect {
    /// Traps the touches of `backing`. On failure, says which step failed.
    pub(crate) fn new(uffd: Shared<Uffd>, backing: Backing) -> Result<Self, Failed> {
        let mode = RegisterMode::MINOR | RegisterMode::RWP;
        uffd.register(backing.span(), mode).map_err(|errno| (REGISTER, errno))?;
        Ok(Self { uffd, backing })
    }

    /// Takes a page and gives it back, on memory of its own: whether the kernel, which says that it has RWP, can.
    pub(crate) fn works(uffd: &Shared<Uffd>) -> bool {
        let page = PageRange::single(PageIndex(0)).expect("not the last index");
        let Ok(trial) = Backing::memory(1, ByteLen(page_size())).and_then(|backing| Self::new(uffd.clone(), backing))
        else {
            return false;
        };
        let taken = trial.populate(page).and_then(|()| trial.protect(&[page]));
        let works = taken.is_ok() && trial.map(page, Mapped::Writable).is_ok();
        trial.close();
        works
    }

    fn protect(&self, runs: &[PageRange]) -> Result<(), Refusal> {
        runs.iter()
            .try_for_each(|run| self.uffd.rw_protect(self.backing.span_of(*run), true, false))
            .map_err(|errno| Refusal::system(runs, errno))
    }

    /// Maps what is not mapped; wakes who waits for any of it.
    fn map_absent(&self, span: Span) -> Result<MapOutcome, Errno> {
        let mode = ContinueMode::empty();
        continue_all(&self.uffd, span, self.backing.granule(), mode, |page| self.uffd.wake(page))
    }
}

impl Backend for RwProtect {
    fn kind(&self) -> BackendKind {
        BackendKind::RwProtect
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { exclusive_write: false, cover: true, alias: true }
    }

    fn span(&self) -> Span {
        self.backing.span()
    }

    fn populate(&self, pages: PageRange) -> Result<(), Refusal> {
        self.backing.populate(pages)?;
        // What cannot be mapped now is trapped as MINOR, and mapped when it is given back.
        let _ = self.map_absent(self.backing.span_of(pages));
        Ok(())
    }

    fn revoke(&self, runs: &[PageRange], _access: Access, _device: OwnerId) -> Result<(), Refusal> {
        // `capabilities` has it that no claim asks for anything but `Exclusive`.
        self.protect(runs)
    }

    fn map(&self, pages: PageRange, _how: Mapped) -> Result<MapOutcome, Errno> {
        let span = self.backing.span_of(pages);
        if pages.len() == 1 {
            self.uffd.rw_protect(span, false, false)?;
            self.map_absent(span)?;
        } else {
            self.uffd.rw_protect(span, false, true)?;
        }
        Ok(MapOutcome::Mapped)
    }

    fn wake(&self, pages: PageRange) {
        // It fails only outside the address space.
        let _ = self.uffd.wake(self.backing.span_of(pages));
    }

    fn close(&self) {
        // As `minor` does.
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
        let register = |span| {
            self.uffd
                .register(span, RegisterMode::MINOR | RegisterMode::RWP)
                .map(drop)
                .map_err(|errno| (REGISTER, errno))
        };
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
