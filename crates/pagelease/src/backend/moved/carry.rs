//! Moving runs of pages: out to a device, back to the CPU, and what the kernel may have against it.
//!
//! Everything here runs inside the gate, with the pages busy. [`Moved::bring_back`] and [`Moved::fill`] are signal-safe.

use core::sync::atomic::Ordering;
use core::time::Duration;

use pagelease_protocol::{OwnerId, PageIndex, PageRange};
use pagelease_sys::mem::{PageKinds, PageRegion};
use pagelease_sys::uffd::{CopyMode, MoveMode};
use pagelease_sys::{Errno, Span, page_size};

use super::Moved;
use super::place::Home;
use crate::adopted::HUGE;
use crate::backend::{MapOutcome, Refusal, Refused};
use crate::sync::{Deadline, relax};

/// How often the kernel may say that it is busy with a page before whoever wants to move it gives up what it has busy.
const AGAIN_MAX: u32 = 250;

/// How long contents that have to go home now wait for the kernel: until whoever caused the change has run, however busy the
/// machine is.
const GIVE_UP_LIMIT: Duration = Duration::from_secs(20);

/// Granules known to be huge pages of which one is looked at.
const LOOK_EVERY: usize = 16;

impl Moved {
    /// Takes `pages` to the view of `device`, up to the first that it cannot take.
    pub(super) fn take_inside(&self, pages: PageRange, device: OwnerId) -> Result<(), Refusal> {
        let mut rest = Some(pages);
        while let Some(next) = rest {
            let (run, home) = self.homes.run(next);
            if let Home::Device(holder) = home {
                // What a change once stopped half way; and a huge granule of another device's goes by way of the CPU view, so that
                // a move that stops half way leaves nothing in two devices' views.
                let apart = if holder == device {
                    run.iter().find(|page| self.is_half(*page))
                } else {
                    (self.granule > page_size()).then_some(PageIndex(run.start()))
                };
                if let Some(page) = apart {
                    self.bring_together(page, holder)?;
                    continue;
                }
            }
            let (run, from) = match home {
                Home::Cpu => {
                    let (run, place) = self.extents.run(run);
                    self.note_huge(run, place);
                    (run, place)
                }
                Home::Device(holder) if holder != device => (run, self.in_view(holder, run)),
                Home::Device(_) => {
                    rest = PageRange::new(run.end(), pages.end());
                    continue;
                }
                Home::Gone => (run, None),
            };
            let stopped = |why| Refusal { pages: run, why };
            let from = from.ok_or(stopped(Refused::Unmapped))?;
            let to = self.in_view(device, run).ok_or(stopped(Refused::System(Errno::NOENT)))?;
            // Before they move: a page that is not where its home says is looked for in the CPU view, not taken for lost.
            self.homes.set(run, Home::Device(device));
            if let Err((bytes, why)) = self.carry(from, to) {
                let done = u32::try_from(bytes / self.granule).expect("within the run");
                let (at, mut kept) = (run.start() + done, 0);
                // Half a granule goes back.
                if let Some(half) = Span::new(to.start() + done as usize * self.granule, bytes % self.granule) {
                    let home_at = from.start() + done as usize * self.granule;
                    let back_to = Span::new(home_at, half.len()).expect("as long as the other");
                    // SAFETY: both are the region's; they have just come from there.
                    let back =
                        unsafe { self.adopted.uffd.move_pages(back_to, half.start(), MoveMode::ALLOW_SRC_HOLES) };
                    if back.error.is_some() {
                        // It stays where it is, and is brought together by whoever comes next.
                        if let Some(halves) = self.halves(PageIndex(at)) {
                            halves.store(1, Ordering::SeqCst);
                        }
                        kept = 1;
                    }
                }
                if let Some(left) = PageRange::new(at + kept, run.end()) {
                    self.homes.set(left, home);
                }
                return Err(Refusal { pages: PageRange::new(at, at + 1).expect("one page"), why });
            }
            rest = PageRange::new(run.end(), pages.end());
        }
        Ok(())
    }

    /// Moves what is at `from` to `to`, which is in a device's view. On failure, how many bytes were moved.
    fn carry(&self, from: Span, to: Span) -> Result<(), (usize, Refused)> {
        let uffd = &self.adopted.uffd;
        let (mut done, mut again) = (0, 0);
        let mut limit = from.len();
        while done < from.len() {
            if done == limit {
                limit = from.len();
            }
            let left = Span::new(to.start() + done, limit - done).expect("whole pages");
            // SAFETY: both are the region's, whose pages are busy; nobody waits for a page of a device's view.
            let progress = unsafe { uffd.move_pages(left, from.start() + done, MoveMode::DONTWAKE) };
            done += progress.bytes;
            let Some(errno) = progress.error else { continue };
            if progress.bytes > 0 {
                continue;
            }
            let refused = |why| Err((done, why));
            let page = Span::new(to.start() + done, page_size()).expect("a page");
            match errno {
                Errno::AGAIN if again < AGAIN_MAX && !self.adopted.gate.is_wanted() => {
                    again += 1;
                    relax(again);
                }
                Errno::AGAIN => return refused(Refused::Changing),
                // Nobody has touched it: it is zeroes wherever it is.
                Errno::NOENT => match uffd.zero_pages(page, false).error {
                    None => done += page.len(),
                    // A stray access was faster: look again.
                    Some(Errno::EXIST) => {}
                    Some(Errno::AGAIN) => return refused(Refused::Changing),
                    Some(errno) => return refused(Refused::System(errno)),
                },
                // What a stray access left there.
                // SAFETY: the device does not have the page: what is there is nobody's.
                Errno::EXIST => match unsafe { self.adopted.discard(page) } {
                    Ok(()) => {}
                    Err(Errno::AGAIN) => return refused(Refused::Changing),
                    Err(errno) => return refused(Refused::System(errno)),
                },
                Errno::BUSY => return refused(Refused::Shared),
                Errno::INVAL => match self.why_invalid(from.start() + done) {
                    Ok(end) if end < from.start() + limit => limit = end - from.start(),
                    Ok(_) => return refused(Refused::System(errno)),
                    Err(why) => return refused(why),
                },
                Errno::NOMEM => return refused(Refused::NoMemory(errno)),
                errno => return refused(Refused::System(errno)),
            }
        }
        Ok(())
    }

    /// What is mapped at `address`, which cannot be moved as far as was asked for: where that ends, if it can be moved at all.
    fn why_invalid(&self, address: usize) -> Result<usize, Refused> {
        match self.adopted.maps.area_at_or_after(address) {
            Ok(Some(area)) if area.span.contains(address) => {
                if area.writable {
                    Ok(area.span.end())
                } else {
                    Err(Refused::Protected)
                }
            }
            Ok(_) => Err(Refused::Unmapped),
            Err(errno) => Err(Refused::System(errno)),
        }
    }

    /// Fills what is absent at `place`, and is nowhere else, with zeroes.
    pub(super) fn fill(&self, place: Span) -> Result<MapOutcome, Errno> {
        let uffd = &self.adopted.uffd;
        let mut outcome = MapOutcome::AlreadyMapped;
        let mut at = place.start();
        while let Some(left) = Span::new(at, place.end() - at) {
            let progress = uffd.zero_pages(left, true);
            at += progress.bytes;
            match progress.error {
                None => return Ok(MapOutcome::Mapped),
                Some(_) if progress.bytes > 0 => outcome = MapOutcome::Mapped,
                Some(Errno::EXIST) => {
                    let page = Span::page_of(at).ok_or(Errno::INVAL)?;
                    uffd.wake(page)?;
                    at += page.len();
                }
                // Not ours any more: whoever touches it finds out by himself.
                Some(Errno::NOENT) => {
                    uffd.wake(left)?;
                    return Ok(outcome);
                }
                Some(errno) => return Err(errno),
            }
        }
        Ok(outcome)
    }

    /// Moves a page back from a device's view, as most touches want, if that is all there is to it. Otherwise it is for
    /// [`Moved::bring_back`] to look again. It costs a quarter of what serving a touch does to be ready for all else.
    #[inline]
    pub(super) fn bring_back_one(&self, page: PageRange) -> bool {
        let index = PageIndex(page.start());
        if page.len() != 1 || self.any_whole.load(Ordering::Relaxed) || self.is_half(index) {
            return false;
        }
        let Home::Device(device) = self.homes.of(index) else { return false };
        let view = self.view(device).load(Ordering::SeqCst);
        let Some(to) = self.extents.place(index).filter(|_| view != 0) else { return false };
        let from = view + index.as_usize() * self.granule;
        // SAFETY: both are the region's, whose page is busy, and which the device has let go of.
        let progress = unsafe { self.adopted.uffd.move_pages(to, from, MoveMode::empty()) };
        if progress.error.is_some() {
            // Half of a huge granule may have come.
            if progress.bytes > 0
                && let Some(halves) = self.halves(index)
            {
                halves.store(1, Ordering::SeqCst);
            }
            return false;
        }
        self.homes.set_one(index, Home::Cpu);
        true
    }

    /// Moves `pages` from the view of `device` to `place`.
    pub(super) fn bring_back(&self, pages: PageRange, device: OwnerId, place: Span) -> Result<MapOutcome, Errno> {
        let from = self.in_view(device, pages).ok_or(Errno::NOENT)?.start();
        self.note_return(pages);
        let (mut done, mut again) = (0, 0);
        while let Some(left) = Span::new(place.start() + done, place.len() - done) {
            // SAFETY: both are the region's, whose pages are busy, and which the device has let go of.
            let progress = unsafe { self.adopted.uffd.move_pages(left, from + done, MoveMode::empty()) };
            done += progress.bytes;
            if progress.bytes == 0 {
                match progress.error {
                    None => break,
                    Some(Errno::AGAIN) if again < AGAIN_MAX && !self.adopted.gate.is_wanted() => {
                        again += 1;
                        relax(again);
                    }
                    Some(Errno::AGAIN) => return Err(self.stopped_at(pages, done, Errno::AGAIN)),
                    Some(errno) => {
                        let page = Span::page_of(left.start()).ok_or(Errno::INVAL)?;
                        self.bring_back_page(page, from + done, errno)
                            .map_err(|errno| self.stopped_at(pages, done, errno))?;
                        done += page.len();
                    }
                }
            }
        }
        self.are_home(pages, place.len());
        Ok(MapOutcome::Mapped)
    }

    /// Bringing `pages` back stopped behind `done` bytes, for the reason `errno`.
    fn stopped_at(&self, pages: PageRange, done: usize, errno: Errno) -> Errno {
        self.are_home(pages, done);
        let half = PageIndex(pages.start() + u32::try_from(done / self.granule).expect("within the run"));
        if let Some(halves) = self.halves(half).filter(|_| !done.is_multiple_of(self.granule)) {
            halves.store(1, Ordering::SeqCst);
        }
        errno
    }

    fn is_half(&self, page: PageIndex) -> bool {
        self.halves(page).is_some_and(|half| half.load(Ordering::SeqCst) != 0)
    }

    /// Brings a huge granule that is in the view of `device`, all or half of it, to the CPU view.
    fn bring_together(&self, page: PageIndex, device: OwnerId) -> Result<(), Refusal> {
        let pages = PageRange::single(page).expect("a region's page is never the last index");
        let refused = |why| Refusal { pages, why };
        let place = self.extents.run(pages).1.ok_or(refused(Refused::Unmapped))?;
        self.bring_back(pages, device, place).map(drop).map_err(|errno| match errno {
            Errno::AGAIN => refused(Refused::Changing),
            errno => refused(Refused::System(errno)),
        })
    }

    /// What is at `from`, in a device's view, goes to wherever the program has by now what lay at `place` when the change was read
    /// that is being dealt with. With the gate shut.
    pub(super) fn hand_over(&self, place: Span, from: usize) {
        let (mut done, mut turn) = (0, 0);
        let deadline = Deadline::after(GIVE_UP_LIMIT);
        while let Some(left) = Span::new(place.start() + done, place.len().saturating_sub(done)) {
            // Looked at each time: what is read meanwhile may be about these pages.
            let to = match self.adopted.changes.fate(left) {
                (_, Some(to)) => to,
                (len, None) => {
                    done += len;
                    continue;
                }
            };
            // SAFETY: the pages are the region's, and busy; their contents belong there. What is absent is zeroes there, too.
            let progress = unsafe { self.adopted.uffd.move_pages(to, from + done, MoveMode::ALLOW_SRC_HOLES) };
            done += progress.bytes;
            if progress.bytes > 0 {
                turn = 0;
                continue;
            }
            let page = Span::new(to.start(), page_size()).expect("a page");
            let result = match progress.error {
                None => continue,
                // The kernel moves nothing before whoever caused the change has run; he may be waiting for a CPU.
                Some(Errno::AGAIN) if turn <= AGAIN_MAX => Err(Errno::AGAIN),
                // Or it has some reason of its own not to move this page.
                Some(Errno::AGAIN) => self.bring_back_page(page, from + done, Errno::BUSY),
                Some(errno) => self.bring_back_page(page, from + done, errno),
            };
            match result {
                Ok(()) => (done, turn) = (done + page.len(), 0),
                Err(Errno::AGAIN) if !deadline.passed() => self.adopted.give_way(&mut turn),
                Err(_) => {
                    self.space.stats.restores_failed.one();
                    (done, turn) = (done + page.len(), 0);
                }
            }
        }
    }

    /// The first `bytes` of `pages` are home.
    fn are_home(&self, pages: PageRange, bytes: usize) {
        let end = pages.start() + u32::try_from(bytes / self.granule).expect("within the run");
        if let Some(home) = PageRange::new(pages.start(), end) {
            self.homes.set(home, Home::Cpu);
            if self.granule >= HUGE {
                home.iter().filter_map(|page| self.halves(page)).for_each(|half| half.store(0, Ordering::SeqCst));
            }
        }
    }

    /// One base page that could not be moved from `from` to `to`, for the reason `errno`.
    fn bring_back_page(&self, to: Span, from: usize, errno: Errno) -> Result<(), Errno> {
        let uffd = &self.adopted.uffd;
        match errno {
            // Somebody else was first.
            Errno::EXIST => uffd.wake(to),
            // It is not there. So it is in the CPU view already, or nowhere yet.
            Errno::NOENT => match uffd.zero_pages(to, true).error {
                None if self.is_present(from) => {
                    // It was on its way out while we looked.
                    // SAFETY: what has just been put there is zeroes.
                    unsafe { self.adopted.discard(to) }?;
                    Err(Errno::AGAIN)
                }
                None | Some(Errno::EXIST | Errno::NOENT) => uffd.wake(to),
                Some(errno) => Err(errno),
            },
            // The program has changed its protection since; or the kernel has pinned the page for the device. The copy that
            // stays behind is nobody's.
            _ => {
                // SAFETY: the page is the region's, and busy; its contents belong there. The device's view can be read:
                // MOVE has just found the page there.
                let progress = unsafe { uffd.copy_pages(to, from, CopyMode::empty()) };
                match progress.error {
                    None | Some(Errno::EXIST | Errno::NOENT) => uffd.wake(to),
                    Some(errno) => Err(errno),
                }
            }
        }
    }

    fn is_present(&self, address: usize) -> bool {
        let Some(page) = Span::page_of(address) else { return false };
        let mut found = [PageRegion::default()];
        let there = PageKinds::PRESENT | PageKinds::SWAPPED;
        self.adopted.pagemap.scan(page, there, &mut found).is_ok_and(|(regions, _)| regions > 0)
    }

    /// A claim takes `run` from `place`: notes which huge pages it takes whole, and counts those that it splits.
    fn note_huge(&self, run: PageRange, place: Option<Span>) {
        let Some(place) = place else { return };
        if self.granule >= HUGE {
            return self.note_huge_granules(run, place);
        }
        let Some((group, whole)) = self.group(PageIndex(run.start())) else { return };
        // Where one page of an aligned huge page's worth is mapped as a part of one, all are: to look at all of it costs some
        // four per cent of moving it.
        let in_one = place.start() / HUGE == (place.end() - 1) / HUGE;
        let huge = self.is_huge(Span::page_of(place.start()).filter(|_| in_one).unwrap_or(place));
        let stats = &self.space.stats;
        match (huge, run == group) {
            (true, true) => stats.huge_pages_moved.one(),
            (true, false) => stats.huge_pages_split.one(),
            (false, _) => {}
        }
        if huge && run == group {
            self.any_whole.store(true, Ordering::Relaxed);
        }
        whole.store(u8::from(huge && run == group), Ordering::Relaxed);
    }

    /// The same where granules are huge, and so are not split by claims. To look at one costs as much as to move some of them;
    /// so those known to be huge pages are counted as such, and of every [`LOOK_EVERY`] one is looked at, in case the
    /// kernel has split it for a reason of its own (memory was short, or the program has protected a part of it).
    fn note_huge_granules(&self, run: PageRange, place: Span) {
        let known = &self.whole[run.start() as usize..run.end() as usize];
        if known.iter().all(|known| known.load(Ordering::Relaxed) != 0) {
            let before = self.sampled.fetch_add(known.len(), Ordering::Relaxed);
            let after = before.wrapping_add(known.len());
            let sample = after / LOOK_EVERY % known.len();
            let is_huge =
                || Span::page_of(place.start() + sample * self.granule).is_some_and(|page| self.is_huge(page));
            if before / LOOK_EVERY == after / LOOK_EVERY || is_huge() {
                self.space.stats.huge_pages_moved.add(known.len() as u64);
                return;
            }
        }
        known.iter().for_each(|known| known.store(0, Ordering::Relaxed));
        let mut at = place.start();
        while let Some(left) = Span::new(at, place.end() - at) {
            let mut found = [PageRegion::default(); 8];
            let Ok((count, end)) = self.adopted.pagemap.scan(left, PageKinds::HUGE, &mut found) else { return };
            for huge in &found[..count] {
                let granules = (huge.start - place.start()) / HUGE..(huge.end - place.start()) / HUGE;
                self.space.stats.huge_pages_moved.add(granules.len() as u64);
                known[granules].iter().for_each(|known| known.store(1, Ordering::Relaxed));
            }
            if end <= at {
                return;
            }
            at = end;
        }
    }

    /// Whether any page of `span` is mapped as a part of a huge page.
    fn is_huge(&self, span: Span) -> bool {
        let mut found = [PageRegion::default()];
        self.adopted.pagemap.scan(span, PageKinds::HUGE, &mut found).is_ok_and(|(regions, _)| regions > 0)
    }

    /// What was known of huge pages among `pages` does not hold any more.
    pub(super) fn forget_whole(&self, pages: PageRange) {
        if self.granule >= HUGE {
            let known = &self.whole[pages.start() as usize..pages.end() as usize];
            known.iter().for_each(|known| known.store(0, Ordering::Relaxed));
            return;
        }
        for page in pages.iter() {
            if let Some((_, whole)) = self.group(page) {
                whole.store(0, Ordering::Relaxed);
            }
        }
    }

    /// `pages` leave a device's view: a huge page among them that does not go whole is split.
    fn note_return(&self, pages: PageRange) {
        if !self.any_whole.load(Ordering::Relaxed) {
            return;
        }
        let mut at = pages.start();
        while at < pages.end() {
            let Some((group, whole)) = self.group(PageIndex(at)) else { return };
            if whole.swap(0, Ordering::Relaxed) != 0 && !(pages.start() <= group.start() && group.end() <= pages.end())
            {
                self.space.stats.huge_pages_split.one();
            }
            at = group.end();
        }
    }
}
