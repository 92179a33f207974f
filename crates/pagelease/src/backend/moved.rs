//! `move`: private anonymous memory that the program had already; its pages are carried between views.
//!
//! | step | how |
//! |---|---|
//! | revoke | `UFFDIO_MOVE` from the CPU view, or from another device's view, to the device's: the page is there, and nowhere else |
//! | map | `UFFDIO_MOVE` back; `UFFDIO_COPY` where the program has changed the protection meanwhile; a page that nobody has touched is filled with zeroes |
//! | trap | MISSING: a page that is not in the CPU view, for whatever reason |
//!
//! So the MMU keeps a device from a page that it does not have, too: a late access traps, and is given a page of zeroes that
//! is nobody's (`stray_accesses`). A huge page moves whole where a claim covers it, and back where all of it can be had
//! (`restore` asks for `whole`).
//!
//! Invariants: a page is in one view at a time, its home, which is changed with the page busy (`place`). Views have the CPU
//! view's alignment to huge pages; they are registered as the CPU view is, as long as they are open. Pages are moved inside
//! the gate only. From `new` to `close` the CPU view is registered; `close` brings every page home first.

mod carry;
mod place;

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};

use pagelease_protocol::{Access, ByteLen, OwnerId, PageIndex, PageRange};
use pagelease_sys::mem::{self, Mapping, PageKinds, PageRegion};
use pagelease_sys::uffd::RegisterMode;
use pagelease_sys::{Errno, Span};

use self::place::{Extents, Home, Homes};
use super::{Backend, BackendKind, Capabilities, MapOutcome, Mapped, Refusal, Refused, ViewMemory};
use crate::adopted::{Adopted, HUGE};
use crate::layout::Fate;
use crate::shared::Shared;
use crate::space::SpaceCore;
use crate::sync::{Table, block_signals, relax};

/// Huge granules that are moved without looking whether somebody wants the gate.
const HUGE_GRANULES: u32 = 64;

pub(crate) struct Moved {
    adopted: Shared<Adopted>,
    space: Shared<SpaceCore>,
    /// Where it was when it was adopted.
    cpu: Span,
    pages: PageRange,
    granule: usize,
    homes: Homes,
    extents: Extents,
    /// Where the devices' views begin; 0: none.
    views: [AtomicUsize; OwnerId::MAX as usize + 1],
    /// For each aligned huge page's worth of a region of base pages: whether it was a huge page that a device took whole. For
    /// each granule, where those are huge: whether it was found to be a huge page.
    whole: Table<AtomicU8>,
    /// Whether a device has ever taken a huge page whole, in a region of base pages.
    any_whole: AtomicBool,
    /// Claims of huge granules known to be huge pages: a count, which says when to look at one, and at which.
    sampled: AtomicUsize,
    /// For each huge granule: whether a move stopped within it, and what was moved could not be moved back.
    half: Table<AtomicU8>,
    closed: AtomicBool,
    /// It has closed, and every page is home.
    given_back: AtomicBool,
}

impl Moved {
    /// Takes `span` under management. On failure, says which step failed.
    pub(crate) fn new(
        adopted: Shared<Adopted>,
        space: Shared<SpaceCore>,
        span: Span,
        granule: ByteLen,
    ) -> Result<Self, (&'static str, Errno)> {
        let failed = |errno| ("mmap of the region's tables", errno);
        let count = u32::try_from(span.len() / granule.0).map_err(|_| ("size", Errno::NOMEM))?;
        let pages = PageRange::new(0, count).ok_or(("size", Errno::INVAL))?;
        let moved = Self {
            space,
            cpu: span,
            pages,
            granule: granule.0,
            homes: Homes::new(count).map_err(failed)?,
            extents: Extents::new(span, count, granule.0),
            views: core::array::from_fn(|_| AtomicUsize::new(0)),
            whole: Table::zeroed(span.len() / HUGE + 2).map_err(failed)?,
            any_whole: AtomicBool::new(false),
            sampled: AtomicUsize::new(0),
            half: Table::zeroed(span.len() / HUGE + 2).map_err(failed)?,
            closed: AtomicBool::new(true),
            given_back: AtomicBool::new(false),
            adopted,
        };
        moved.adopted.uffd.register(span, RegisterMode::MISSING).map_err(|errno| ("UFFDIO_REGISTER", errno))?;
        moved.closed.store(false, Ordering::SeqCst);
        Ok(moved)
    }

    fn view(&self, device: OwnerId) -> &AtomicUsize {
        &self.views[usize::from(device.get())]
    }

    /// Where the view of `device` has `pages`.
    fn in_view(&self, device: OwnerId, pages: PageRange) -> Option<Span> {
        let base = self.view(device).load(Ordering::SeqCst);
        let start = base + pages.start() as usize * self.granule;
        if base == 0 { None } else { Span::new(start, pages.len() as usize * self.granule) }
    }

    /// `pages` in parts that are moved in one go, none of which cuts an aligned huge page that another has the rest of.
    fn parts(&self, pages: PageRange) -> impl Iterator<Item = PageRange> {
        let (granule, start) = (self.granule, self.cpu.start());
        let mut at = pages.start();
        core::iter::from_fn(move || {
            let end = if granule < HUGE {
                let address = start + at as usize * granule;
                at + u32::try_from((HUGE - address % HUGE) / granule).expect("pages of a huge page")
            } else {
                at + HUGE_GRANULES
            };
            let part = PageRange::new(at, pages.end().min(end))?;
            at = part.end();
            Some(part)
        })
    }

    /// The aligned huge page's worth that `page` lies in, and its number; `None` where the region has only a part of it, and
    /// where granules are huge anyway.
    fn group(&self, page: PageIndex) -> Option<(PageRange, &AtomicU8)> {
        if self.granule >= HUGE {
            return None;
        }
        let offset = page.as_usize() * self.granule;
        let skew = self.cpu.start() % HUGE;
        let number = (skew + offset) / HUGE;
        let start = (number * HUGE).checked_sub(skew)? / self.granule;
        let group = PageRange::new(u32::try_from(start).ok()?, u32::try_from(start + HUGE / self.granule).ok()?)?;
        (group.end() <= self.pages.end()).then(|| (group, &self.whole[number]))
    }

    /// Takes `part` to the view of `device`, from wherever it is.
    fn take(&self, part: PageRange, device: OwnerId) -> Result<(), Refusal> {
        // A touch of the claiming thread's own signal handler never finds a page half way.
        let _blocked = block_signals();
        let Some(_inside) = self.adopted.gate.enter_to_take() else {
            return Err(Refusal { pages: part, why: Refused::Changing });
        };
        self.take_inside(part, device)
    }

    /// Brings every page to the CPU view. For a region that is closing: nobody takes pages any more, and a touch that is still
    /// being served wants the same.
    fn bring_all_home(&self) {
        let mut turn = 0;
        let mut rest = Some(self.pages);
        while let Some(next) = rest {
            // Inside the gate nobody may touch an adopted page, a signal handler of this thread neither.
            let _blocked = block_signals();
            let (run, home) = self.homes.run(next);
            if let Home::Device(_) = home
                && self.map(run, Mapped::Writable) == Err(Errno::AGAIN)
            {
                turn += 1;
                relax(turn);
                continue;
            }
            rest = PageRange::new(run.end(), self.pages.end());
        }
    }

    /// Whether the region has closed, and every page is home.
    pub(crate) fn is_given_back(&self) -> bool {
        self.given_back.load(Ordering::SeqCst)
    }

    /// The contents of `part` of a huge granule are nobody's any more. With the gate shut and the granule busy.
    pub(crate) fn drop_part(&self, page: PageRange, part: Span) {
        let (_, home) = self.homes.run(page);
        let (_, place) = self.extents.run(page);
        let Some(place) = place else { return };
        match home {
            Home::Cpu => {
                // SAFETY: the caller's: nothing relies on the contents.
                let _ = unsafe { self.adopted.discard_in_place(part) };
            }
            Home::Device(device) => {
                let offset = part.start() - place.start();
                let view = self.in_view(device, page).and_then(|view| Span::new(view.start() + offset, part.len()));
                view.into_iter().for_each(|view| self.drop_from_view(view));
            }
            Home::Gone => {}
        }
    }

    /// A huge granule of which `part` has gone, or has moved to `to`, is the program's own again. With the gate shut and the
    /// granule busy.
    pub(crate) fn give_up_part(&self, page: PageRange, part: Span, to: Option<usize>) {
        let Some(place) = self.extents.run(page).1 else { return };
        let between = |start: usize, end: usize| Span::new(start, end.saturating_sub(start));
        let moved = to.and_then(|to| Span::new(to, part.len()));
        let pieces = [
            (between(place.start(), part.start()), 0),
            (moved, part.start() - place.start()),
            (between(part.end(), place.end()), part.end() - place.start()),
        ];
        self.release(page, pieces.into_iter().filter_map(|(piece, offset)| Some((piece?, offset))));
    }

    /// `pages` are the program's own again: of each of `pieces`, which are where the CPU view has them and how far from their
    /// start, what a device has is handed over. With the gate shut and the pages busy.
    fn release(&self, pages: PageRange, pieces: impl Iterator<Item = (Span, usize)>) {
        for (piece, offset) in pieces {
            let mut done = 0;
            while let Some(left) = Span::new(piece.start() + done, piece.len() - done) {
                let at = offset + done;
                let page = pages.start() + u32::try_from(at / self.granule).expect("within the pages");
                let (run, home) =
                    self.homes.run(PageRange::new(page, pages.end()).expect("the piece lies in the pages"));
                let end = (run.end() - pages.start()) as usize * self.granule;
                let len = left.len().min(end - at);
                if let (Home::Device(device), Some(place)) = (home, Span::new(left.start(), len))
                    && let Some(view) = self.in_view(device, run)
                {
                    self.hand_over(place, view.start() + at - (page - pages.start()) as usize * self.granule);
                }
                done += len;
            }
            let _ = self.adopted.uffd.unregister(piece);
            let _ = self.adopted.uffd.wake(piece);
        }
        // What the program has dropped is nobody's.
        self.drop_contents(pages, Fate::Gone);
        let _ = self.extents.remove(pages);
    }

    /// Whether a huge granule may be half in the CPU view and half in a device's; `None` where granules are pages.
    fn halves(&self, page: PageIndex) -> Option<&AtomicU8> {
        self.half.get(page.as_usize()).filter(|_| self.granule >= HUGE)
    }

    /// Whether `page` lies in the view of a device: of this one, if one is named.
    pub(crate) fn lies_with(&self, page: PageIndex, of: Option<OwnerId>) -> bool {
        let page = PageRange::single(page).expect("a region's page is never the last index");
        match self.homes.run(page).1 {
            Home::Device(device) => of.is_none_or(|of| of == device),
            Home::Cpu | Home::Gone => false,
        }
    }

    /// Writes to the pages that are there, and so ends that others share them. One that goes meanwhile is touched.
    fn unshare_at(&self, place: Span) {
        let mut at = place.start();
        while let Some(left) = Span::new(at, place.end() - at) {
            let mut found = [PageRegion::default(); 32];
            let there = PageKinds::PRESENT | PageKinds::SWAPPED;
            let Ok((count, end)) = self.adopted.pagemap.scan(left, there, &mut found) else { return };
            for run in &found[..count] {
                if let Some(run) = Span::new(run.start, run.end - run.start) {
                    let _ = mem::populate_write(run);
                }
            }
            if end <= at {
                return;
            }
            at = end;
        }
    }

    /// The contents of `pages` are nobody's any more. With the gate shut and the pages busy.
    pub(crate) fn drop_contents(&self, pages: PageRange, fate: Fate) {
        let mut rest = Some(pages);
        while let Some(next) = rest {
            let (run, home) = self.homes.run(next);
            let (run, place) = self.extents.run(run);
            match home {
                Home::Cpu => {
                    if let Some(place) = place.filter(|_| fate == Fate::Emptied) {
                        // What cannot be carried off stays until the kernel itself drops it, which it is about to do.
                        // SAFETY: the caller's: nothing relies on the contents.
                        let _ = unsafe { self.adopted.discard_in_place(place) };
                    }
                }
                Home::Device(device) => {
                    self.in_view(device, run).into_iter().for_each(|view| self.drop_from_view(view));
                }
                Home::Gone => {}
            }
            if home != Home::Gone {
                self.homes.set(run, if fate == Fate::Gone { Home::Gone } else { Home::Cpu });
            }
            rest = PageRange::new(run.end(), pages.end());
        }
        self.forget_whole(pages);
    }

    /// Throws away what lies in a device's view.
    fn drop_from_view(&self, view: Span) {
        // SAFETY: the caller's: nothing relies on the contents.
        if unsafe { self.adopted.discard(view) }.is_err() {
            self.wipe(view);
        }
    }

    /// Writes zeroes over the pages of a device's view that are there. With the gate shut and the pages busy, so that they stay.
    fn wipe(&self, view: Span) {
        let mut at = view.start();
        while let Some(left) = Span::new(at, view.end() - at) {
            let mut found = [PageRegion::default(); 32];
            let there = PageKinds::PRESENT | PageKinds::SWAPPED;
            let Ok((count, end)) = self.adopted.pagemap.scan(left, there, &mut found) else { return };
            for run in &found[..count] {
                // SAFETY: pages of a view that its device has let go of; raw, since a late operation may be storing to them.
                unsafe {
                    core::ptr::write_bytes(
                        core::ptr::with_exposed_provenance_mut::<u8>(run.start),
                        0,
                        run.end - run.start,
                    );
                };
            }
            if end <= at {
                return;
            }
            at = end;
        }
    }

    /// Whether the program has unmapped all of `pages`, and that has been dealt with.
    pub(crate) fn is_gone(&self, pages: PageRange) -> bool {
        !self.adopted.gate.is_wanted() && self.homes.run(pages) == (pages, Home::Gone)
    }

    /// Whether the CPU view has `pages` at `address`, in one piece.
    pub(crate) fn is_at(&self, pages: PageRange, address: usize) -> bool {
        let (run, place) = self.extents.run(pages);
        !self.adopted.gate.is_wanted() && run == pages && place.is_some_and(|place| place.start() == address)
    }

    /// The longest run from the start of `pages` that is in one piece, and where the CPU view has it.
    pub(crate) fn place(&self, pages: PageRange) -> (PageRange, Option<Span>) {
        self.extents.run(pages)
    }

    /// The CPU view has no place for `pages` any more. `false`: they would leave too many pieces.
    pub(crate) fn forget_place(&self, pages: PageRange) -> bool {
        self.extents.remove(pages)
    }

    /// The CPU view has `pages` at `address` now. `false`: there are too many pieces.
    pub(crate) fn note_place(&self, pages: PageRange, address: usize) -> bool {
        self.extents.add(pages, address)
    }

    /// `run`, of the `pages` that are at `place` now, is the program's own again. With the gate shut and the pages busy.
    pub(crate) fn give_up(&self, run: PageRange, place: Span, pages: PageRange) {
        let start = place.start() + (run.start() - pages.start()) as usize * self.granule;
        let piece = Span::new(start, run.len() as usize * self.granule);
        self.release(run, piece.map(|piece| (piece, 0)).into_iter());
    }

    /// A touch of `device`'s view, where it has no page: its device was lost, or looks at what it has not claimed. Signal-safe.
    pub(crate) fn serve_stray(&self, address: usize) {
        self.space.stats.stray_accesses.one();
        if let Some(page) = Span::page_of(address) {
            let _ = self.adopted.uffd.zero_pages(page, true);
            let _ = self.adopted.uffd.wake(page);
        }
    }

    pub(crate) fn adopted(&self) -> &Adopted {
        &self.adopted
    }
}

impl Backend for Moved {
    fn kind(&self) -> BackendKind {
        BackendKind::Move
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { exclusive_write: false, cover: true, alias: false }
    }

    fn span(&self) -> Span {
        self.cpu
    }

    /// An absent page traps: nothing to do.
    fn populate(&self, _pages: PageRange) -> Result<(), Refusal> {
        Ok(())
    }

    fn carries(&self) -> bool {
        true
    }

    fn unshare(&self, pages: PageRange) {
        if self.granule >= HUGE {
            // A copy is of small pages.
            self.forget_whole(pages);
        }
        let mut rest = Some(pages);
        while let Some(next) = rest {
            let Some(inside) = self.adopted.gate.enter() else { return };
            let (run, place) = self.extents.run(next);
            drop(inside);
            if let Some(place) = place {
                self.unshare_at(place);
            }
            rest = PageRange::new(run.end(), pages.end());
        }
    }

    fn revoke(&self, runs: &[PageRange], _access: Access, device: OwnerId) -> Result<(), Refusal> {
        runs.iter().flat_map(|run| self.parts(*run)).try_for_each(|part| self.take(part, device))
    }

    fn map(&self, pages: PageRange, _how: Mapped) -> Result<MapOutcome, Errno> {
        let Some(_inside) = self.adopted.gate.enter() else { return Err(Errno::AGAIN) };
        if self.bring_back_one(pages) {
            return Ok(MapOutcome::Mapped);
        }
        let mut outcome = MapOutcome::AlreadyMapped;
        let mut rest = Some(pages);
        while let Some(next) = rest {
            let (run, home) = self.homes.run(next);
            let (run, place) = self.extents.run(run);
            let mapped = match (home, place) {
                (Home::Gone, _) | (_, None) => MapOutcome::AlreadyMapped,
                (Home::Cpu, Some(place)) => self.fill(place)?,
                (Home::Device(device), Some(place)) => self.bring_back(run, device, place)?,
            };
            if mapped == MapOutcome::Mapped {
                outcome = mapped;
            }
            rest = PageRange::new(run.end(), pages.end());
        }
        Ok(outcome)
    }

    fn wake(&self, pages: PageRange) {
        let mut rest = Some(pages);
        while let Some(next) = rest {
            let (run, place) = self.extents.run(next);
            if let Some(place) = place {
                // It fails only outside the address space.
                let _ = self.adopted.uffd.wake(place);
            }
            rest = PageRange::new(run.end(), pages.end());
        }
    }

    fn group_of(&self, page: PageIndex) -> Option<PageRange> {
        self.group(page).map(|(group, _)| group)
    }

    fn whole(&self, page: PageIndex) -> Option<PageRange> {
        if !self.any_whole.load(Ordering::Relaxed) {
            return None;
        }
        self.group(page).filter(|(_, whole)| whole.load(Ordering::Relaxed) != 0).map(|(group, _)| group)
    }

    fn close(&self) {
        if self.closed.swap(true, Ordering::SeqCst) {
            return;
        }
        self.bring_all_home();
        for view in &self.views {
            if let Some(view) =
                Span::new(view.swap(0, Ordering::SeqCst), self.cpu.len()).filter(|view| view.start() != 0)
            {
                let _ = self.adopted.uffd.unregister(view);
                let _ = self.adopted.uffd.wake(view);
            }
        }
        // The layout may be changing: what has gone needs no unregistering. Who still sleeps, touches what is there now.
        for span in self.extents.spans() {
            let _ = self.adopted.uffd.unregister(span);
            let _ = self.adopted.uffd.wake(span);
        }
        self.given_back.store(true, Ordering::SeqCst);
    }

    fn open_view(&self, device: OwnerId) -> Result<ViewMemory, Errno> {
        let view = Mapping::anonymous_like(self.cpu.len(), self.cpu.start(), HUGE)?;
        // SAFETY: a mapping that nobody has seen yet; a forked child shall not have it.
        unsafe { mem::dont_fork(view.span()) }?;
        self.adopted.uffd.register(view.span(), RegisterMode::MISSING)?;
        self.view(device).store(view.span().start(), Ordering::SeqCst);
        Ok(ViewMemory::Mapping(view))
    }

    fn close_view(&self, device: OwnerId) {
        if let Some(view) = self.in_view(device, self.pages) {
            self.view(device).store(0, Ordering::SeqCst);
            let _ = self.adopted.uffd.unregister(view);
            let _ = self.adopted.uffd.wake(view);
        }
    }

    /// Nothing to do: the page is about to be carried away, and late stores trap.
    fn cover(&self, _view_base: usize, _page: PageIndex) -> Result<(), Errno> {
        Ok(())
    }
}

/// A region that could not be made: its memory is given back all the same.
impl Drop for Moved {
    fn drop(&mut self) {
        if !pagelease_sys::fork::in_child() {
            self.close();
        }
    }
}
