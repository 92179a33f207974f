//! What the program does to the address space of adopted memory: `madvise`, `munmap` and `mremap`, reported as events.
//!
//! | event | the pages | devices |
//! |---|---|---|
//! | `Remove` (`MADV_DONTNEED`, `MADV_FREE`) | thrown away wherever they are: the next touch finds zeroes | let go |
//! | `Unmap` | thrown away; gone for good | let go |
//! | `Remap` | stay where they are, and are the CPU's at the new address | keep theirs |
//!
//! The gate is shut throughout ([`change`] is called by whoever reads the event, which is one thread at a time), so nobody moves
//! a page meanwhile; touches are left asleep, or trap again and again.
//!
//! `Remove` comes before the kernel's own zap. Pages of the CPU view are thrown away here as well, so that no claim takes old
//! contents away before the zap comes to them, and brings them back after the call has returned.

use pagelease_protocol::touch::{self as step, TouchStep};
use pagelease_protocol::{Cause, Origin, PageIndex, PageRange};
use pagelease_sys::uffd::Event;
use pagelease_sys::{Errno, Span};

use crate::adopted::{self, Adopted};
use crate::claim::for_runs;
use crate::invalidate::invalidate;
use crate::records::SERVICE_TICKET;
use crate::region::RegionCore;
use crate::registry;
use crate::sync::relax;
use crate::touch::{Who, break_overdue};

/// The most pages that are busy at a time: their generations lie on the stack.
const BATCH: u32 = 512;

/// What becomes of pages whose contents are dropped.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Fate {
    /// They are zeroes from now on.
    Emptied,
    /// They are not mapped any more.
    Gone,
}

/// Deals with an event of `adopted`, whose gate is shut.
pub(crate) fn change(adopted: &Adopted, event: &Event) {
    let ours = |region: &RegionCore| region.moved().is_some_and(|moved| core::ptr::eq(moved.adopted(), adopted));
    match *event {
        Event::Remove { start, end } => {
            registry::for_each_piece(start, end, |region, pages, at, part| {
                if ours(region) {
                    for_parts(region, pages, at, part, |pages, part| empty(region, pages, part));
                }
            });
            wake(adopted, start, end);
        }
        Event::Unmap { start, end } => {
            registry::for_each_piece(start, end, |region, pages, at, part| {
                if ours(region) {
                    for_parts(region, pages, at, part, |pages, part| match whole(region, pages, part) {
                        true => unmap(region, pages, part.start()),
                        false => give_up_part(region, pages, part, None),
                    });
                }
            });
            wake(adopted, start, end);
        }
        Event::Remap { from, to, len } => {
            registry::for_each_piece(from, from.saturating_add(len), |region, pages, at, part| {
                if ours(region) {
                    for_parts(region, pages, at, part, |pages, part| match whole(region, pages, part) {
                        true => relocate(region, pages, part.start(), to + (part.start() - from)),
                        false => give_up_part(region, pages, part, Some(to + (part.start() - from))),
                    });
                }
            });
            wake(adopted, from, from.saturating_add(len));
        }
        Event::Fault(_) | Event::Other(_) => {}
    }
}

/// Lets whoever waits for a page between `start` and `end` touch it again: it may be no region's any more.
pub(crate) fn wake(adopted: &Adopted, start: usize, end: usize) {
    if let (Some(first), Some(last)) = (Span::page_of(start), Span::page_of(end - 1))
        && let Some(span) = Span::new(first.start(), last.end() - first.start())
    {
        let _ = adopted.uffd.wake(span);
    }
}

/// A change of `part`, which lies in `pages`, the first of which begins at `at`: calls `act` for the granules of which all is in
/// `part`, and for one of which only some is, at either end, each by itself.
fn for_parts(region: &RegionCore, pages: PageRange, at: usize, part: Span, act: impl Fn(PageRange, Span)) {
    let granule = region.granule.0;
    let (mut page, mut start) = (pages.start(), part.start());
    while start < part.end() {
        let begin = at + (page - pages.start()) as usize * granule;
        let rest = part.end() - start;
        let count = if start == begin { u32::try_from(rest / granule).unwrap_or(u32::MAX).max(1) } else { 1 };
        let end = part.end().min(begin + count as usize * granule);
        if let (Some(run), Some(span)) = (PageRange::new(page, page + count), Span::new(start, end - start)) {
            act(run, span);
        }
        page += count;
        start = end;
    }
}

/// Whether `part` is all of `pages`.
fn whole(region: &RegionCore, pages: PageRange, part: Span) -> bool {
    part.len() == pages.len() as usize * region.granule.0
}

/// The contents of `part` are dropped, which is (a part of) `pages`.
fn empty(region: &RegionCore, pages: PageRange, part: Span) {
    if whole(region, pages, part) {
        return drop_contents(region, pages, Fate::Emptied);
    }
    let moved = region.moved().expect("only adopted regions have events");
    for_busy(region, pages, Cause::Clear, |page| moved.drop_part(page, part));
}

/// A part of a huge granule goes, or moves to `to`: the granule cannot be kept. It is the program's own again.
fn give_up_part(region: &RegionCore, page: PageRange, part: Span, to: Option<usize>) {
    let moved = region.moved().expect("only adopted regions have events");
    region.space.stats.pages_given_up.one();
    let place = moved.place(page).1;
    for_busy(region, page, Cause::Unmap, |page| moved.give_up_part(page, part, to));
    for piece in [place, to.and_then(|to| Span::new(to, part.len()))].into_iter().flatten() {
        registry::give_back(region, piece);
    }
}

fn unmap(region: &RegionCore, pages: PageRange, at: usize) {
    drop_contents(region, pages, Fate::Gone);
    let moved = region.moved().expect("only adopted regions have events");
    // Without room for one more piece, the old places stay in the books: what is there is not registered any more, so no page
    // can be moved to it; and none is taken from it, since the pages are gone.
    let _ = moved.forget_place(pages);
    let _ = registry::cut(region, at, at + pages.len() as usize * region.granule.0);
}

/// `pages` are at `to` now, and were at `from`.
fn relocate(region: &RegionCore, pages: PageRange, from: usize, to: usize) {
    let moved = region.moved().expect("only adopted regions have events");
    let len = pages.len() as usize * region.granule.0;
    let Some(place) = Span::new(to, len) else { return };
    // Known at the new place before it is forgotten at the old one: nobody touches it there any more.
    let known = registry::insert(region, place, PageIndex(pages.start()), None).is_some();
    if known && registry::cut(region, from, from + len) && moved.forget_place(pages) && moved.note_place(pages, to) {
        return;
    }
    // Too many pieces: this one is the program's own again.
    region.space.stats.pages_given_up.add(u64::from(pages.len()));
    for_busy(region, pages, Cause::Unmap, |run| moved.give_up(run, place, pages));
    registry::give_back(region, place);
}

/// Takes the contents of `pages` from everybody: devices let go of them, and they are thrown away.
pub(crate) fn drop_contents(region: &RegionCore, pages: PageRange, fate: Fate) {
    let moved = region.moved().expect("only adopted regions have events");
    let cause = if fate == Fate::Gone { Cause::Unmap } else { Cause::Clear };
    for_busy(region, pages, cause, |run| moved.drop_contents(run, fate));
}

/// Takes `pages` busy, a batch at a time, has their devices let go of them (for `cause`), and has `act` deal with the batch; then they are the
/// CPU's. Holds are not waited for.
fn for_busy(region: &RegionCore, pages: PageRange, cause: Cause, act: impl Fn(PageRange)) {
    let mut at = pages.start();
    while let Some(batch) = PageRange::new(at, pages.end().min(at.saturating_add(BATCH))) {
        let mut generations = [0; BATCH as usize];
        for (page, generation) in batch.iter().zip(&mut generations) {
            *generation = take(region, page);
        }
        for_runs(batch.iter().filter_map(|page| Some((page, region.word(page).owner()?))), |run, owner| {
            invalidate(region, owner, run, cause, Origin::default(), Who::Nobody);
        });
        act(batch);
        for (page, generation) in batch.iter().zip(generations) {
            region.update(page, |word| step::commit(word.unsigned(generation)));
        }
        at = batch.end();
    }
}

/// Makes the page busy, and returns its generation. Whoever has it busy is never one that waits for a change to end.
fn take(region: &RegionCore, page: PageIndex) -> u16 {
    let mut turn = 0;
    loop {
        let word = region.word(page);
        if word.held() && !word.busy() {
            break_overdue(region, page);
            continue;
        }
        match step::step(word, true) {
            TouchStep::Take(next, _) if region.swap(page, word, next.signed(SERVICE_TICKET)) => {
                return word.generation();
            }
            TouchStep::Take(..) => {}
            TouchStep::Wait(_) => {
                turn += 1;
                relax(turn);
            }
        }
    }
}

/// A touch at `address`, which is registered, but no region's: the program has made an adopted mapping larger, or has moved it
/// and kept the old place (`MREMAP_DONTUNMAP`). It finds zeroes there, as it would anyway.
pub(crate) fn serve_stranger(adopted: &Adopted, address: usize) {
    let Some(page) = Span::page_of(address) else { return };
    // While a change is being dealt with, it may be about to become some region's: it traps again.
    if let Some(_inside) = adopted.gate.enter()
        && registry::find(address).is_none()
    {
        let _ = adopted.uffd.zero_pages(page, true);
    }
    let _ = adopted.uffd.wake(page);
}

/// As [`serve_stranger`], for the touching thread itself; `false`: it is nobody's. Signal-safe.
///
/// The kernel fills a page for whoever asks, if only it is registered, with another's userfaultfd even. So nobody's memory may be
/// changing.
pub(crate) fn serve_stranger_in_thread(address: usize) -> bool {
    let Some(page) = Span::page_of(address) else { return false };
    adopted::with_all(|all| {
        // In one order, as all do; and nobody who is inside one waits for another to be opened by him.
        let mut inside = [const { None }; adopted::SPACES_MAX];
        for (inside, adopted) in inside.iter_mut().zip(all.iter().flatten()) {
            *inside = adopted.gate.enter();
            if inside.is_none() {
                return true;
            }
        }
        registry::find(address).is_some()
            || all.iter().flatten().any(|adopted| {
                matches!(adopted.uffd.zero_pages(page, false).error, None | Some(Errno::EXIST | Errno::AGAIN))
            })
    })
}
