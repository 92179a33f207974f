//! Restoring without a touch: a prefetch, an eager lease, a view that is being closed.
//!
//! The same transition as a touch's (`protocol::touch`), for many pages at a time: take them busy, invalidate their owner
//! once a run, map once a run, commit. Signal handlers of the calling thread are blocked meanwhile: a touch of theirs would
//! wait for what this thread has busy.

use pagelease_protocol::touch::{self as step, Service, TouchStep};
use pagelease_protocol::{Cause, Obstacle, Origin, OwnerId, PageIndex, PageRange, PageWord, hold};

use crate::alike::Alike;
use crate::backend::Mapped;
use crate::invalidate::invalidate;
use crate::lease;
use crate::records::{Entry, Record, SERVICE_TICKET};
use crate::region::RegionCore;
use crate::sync::{Deadline, Waited, block_signals, now_ns, relax, tid};
use crate::touch::{Toucher, Who, break_hold, break_overdue, commit_all, map_for_cpu, own_record, single};

/// The most pages that are busy at a time: their generations lie on the stack.
const BATCH: usize = if cfg!(pagelease_shuttle) { 4 } else { 1024 };

/// Pages that a lease gives back although it would keep them, because they lie between two that it does not keep: a system
/// call more costs as much as giving back and taking again so many.
const GAP: u32 = 4;

/// Whose pages are restored.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Of {
    /// Any device's.
    Any,
    /// One device's.
    Device(OwnerId),
}

impl Of {
    pub(crate) fn includes(self, word: PageWord) -> bool {
        match (self, word.owner()) {
            (_, None) => false,
            (Self::Any, Some(_)) => true,
            (Self::Device(device), Some(owner)) => device == owner,
        }
    }
}

/// How long a restore waits for a lease before it breaks it.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Patience {
    /// The hold limit.
    HoldLimit,
    /// Not at all.
    None,
    /// It leaves held pages alone.
    Skip,
}

/// Brings the devices' pages among `pages` back to the CPU, and maps them; how many.
pub(crate) fn bring_back(region: &RegionCore, pages: PageRange, of: Of, cause: Cause, patience: Patience) -> u64 {
    let mut count = 0;
    let mut at = pages.start();
    let mut since = None;
    while at < pages.end() && (patience == Patience::None || !region.is_closing()) {
        let blocked = {
            let _blocked = block_signals();
            batch(region, &mut at, pages.end(), of, cause)
        };
        let obstacle = match blocked {
            Ok(restored) => {
                count += u64::from(restored);
                since = None;
                continue;
            }
            Err(obstacle) => obstacle,
        };
        match (obstacle, patience) {
            (Obstacle::Held, Patience::Skip) => at += 1,
            (Obstacle::Held, Patience::None) => break_and_settle(region, PageIndex(at)),
            // Waiting for itself, as a touch would not.
            (Obstacle::Held, Patience::HoldLimit) if break_own(region, PageIndex(at)) => {}
            _ => wait(region, PageIndex(at), of, patience, *since.get_or_insert_with(now_ns)),
        }
    }
    count
}

/// Restores the next run from `at` on, and moves `at` behind what it has looked at; how many pages.
///
/// # Errors
/// What is in the way of the very first page of a run; then nothing was done.
fn batch(region: &RegionCore, at: &mut u32, end: u32, of: Of, cause: Cause) -> Result<u32, Obstacle> {
    while *at < end && !region.word(PageIndex(*at)).busy() && !of.includes(region.word(PageIndex(*at))) {
        *at += 1;
    }
    let start = *at;
    let mut generations = [0; BATCH];
    let mut run_owner = None;
    let mut alike = Alike::default();
    let mut before = 0;
    while *at < end && ((*at - start) as usize) < BATCH {
        let page = PageIndex(*at);
        if alike.again(&region.words[page.as_usize()], before) {
            generations[(*at - start) as usize] = before;
            *at += 1;
            continue;
        }
        let word = region.word(page);
        match step::step(word, true) {
            // Somebody else's by now.
            _ if !word.busy() && !of.includes(word) => break,
            TouchStep::Wait(obstacle) if run_owner.is_none() => return Err(obstacle),
            TouchStep::Take(next, Service::Restore(owner)) if run_owner.is_none_or(|run_owner| run_owner == owner) => {
                if region.swap(page, word, next.signed(SERVICE_TICKET)) {
                    before = word.generation();
                    generations[(*at - start) as usize] = before;
                    alike.note(before, word, next.signed(SERVICE_TICKET));
                    run_owner = Some(owner);
                    *at += 1;
                }
            }
            _ => break,
        }
    }
    if let (Some(owner), Some(run)) = (run_owner, PageRange::new(start, *at)) {
        invalidate(region, owner, run, cause, Origin::default(), Who::Nobody);
        map_for_cpu(region, run, Mapped::Writable);
        region.space.stats.restores.add(u64::from(run.len()));
        // Whose view or region goes away claims nothing again.
        if cause != Cause::Release {
            region.residency.given_back(run);
        }
        commit_all(region, run, &generations);
        return Ok(run.len());
    }
    Ok(0)
}

/// Brings pages that are the CPU's, but still lie in a device's view (that of `device`, if one is named), to the CPU view: a claim
/// gave them up half way. Where pages are not carried, there are none.
pub(crate) fn bring_home(region: &RegionCore, pages: PageRange, device: Option<OwnerId>) {
    let Some(moved) = region.moved() else { return };
    for page in pages.iter() {
        let mut turn = 0;
        while moved.lies_with(page, device) {
            let word = region.word(page);
            match step::step(word, true) {
                TouchStep::Take(next, Service::Map) => {
                    let _blocked = block_signals();
                    if region.swap(page, word, next.signed(SERVICE_TICKET)) {
                        map_for_cpu(region, single(page), Mapped::Writable);
                        region.update(page, |now| step::commit(now.unsigned(word.generation())));
                    }
                }
                // A device has it.
                TouchStep::Take(..) | TouchStep::Wait(Obstacle::Held | Obstacle::Waiter) => break,
                TouchStep::Wait(Obstacle::Busy) => {}
            }
            turn += 1;
            relax(turn);
        }
    }
}

/// Ends the calling thread's own hold of `page`, if it has one.
fn break_own(region: &RegionCore, page: PageIndex) -> bool {
    let word = region.word(page);
    let toucher = Toucher::stopped(Who::Thread(tid()), None);
    let own = word.held() && own_record(region, page, word, Obstacle::Held, toucher).is_some();
    if own && break_hold(region, page) {
        region.space.stats.holds_broken_by_self.one();
        let word = region.word(page);
        region.settle(page, word, word);
    }
    own
}

fn break_and_settle(region: &RegionCore, page: PageIndex) {
    break_overdue(region, page);
    let word = region.word(page);
    region.settle(page, word, word);
}

/// Sleeps until `page` may be brought back, or is none of `of` any more. How long follows from the very word slept on: a page
/// that was busy may be held by now, by another device even, and nobody else ends a hold at its limit.
///
/// A prefetch is a touch in all but name: while it waits, no claim goes before it. Whoever gives up a device's pages wants
/// nothing back.
fn wait(region: &RegionCore, page: PageIndex, of: Of, patience: Patience, since_ns: u64) {
    let word = region.word(page);
    let deadline = match (word.busy(), patience) {
        (true, _) => Deadline::NEVER,
        (false, Patience::HoldLimit) if word.held() && of.includes(word) => region.space.hold_deadline(since_ns),
        (false, _) => return,
    };
    let next = if of == Of::Any { step::wait(word, true) } else { hold::sleep(word) };
    if region.sleep(page, word, next, deadline) == Waited::TimedOut {
        break_and_settle(region, page);
    }
}

/// The lease of `owner` that `record` belongs to has ended, and of its pages those go back at once that are `chosen`, and that
/// nobody else holds; and up to [`GAP`] others in a row that lie between two of them.
pub(crate) fn at_end(
    region: &RegionCore,
    owner: OwnerId,
    record: Record<'_>,
    chosen: impl Fn(&RegionCore, PageIndex) -> bool,
) {
    let give_back = |run: Option<PageRange>| {
        let Some(run) = run else { return };
        let count = bring_back(region, run, Of::Device(owner), Cause::Clear, Patience::Skip);
        region.space.stats.given_back.add(count);
    };
    let mut run: Option<PageRange> = None;
    // Where the run and the idle pages that follow it end.
    let mut reach = 0;
    // Not a page whose hold was broken: whoever broke it takes it, and another operation of the device may be in flight on it,
    // which only the calling thread might end.
    let idle = |entry: &Entry| {
        let word = region.word(entry.page);
        lease::is_idle(word, owner) && word.generation() == entry.generation
    };
    for page in record.entries().filter(idle).map(|entry| entry.page) {
        if chosen(region, page) {
            run = match run {
                Some(before) if page.0 == reach && page.0 - before.end() <= GAP => {
                    (before.end()..page.0).for_each(|between| region.history.taken(PageIndex(between)));
                    PageRange::new(before.start(), page.0 + 1)
                }
                before => {
                    give_back(before);
                    PageRange::single(page)
                }
            };
            reach = page.0 + 1;
        } else if page.0 == reach {
            reach += 1;
        }
    }
    give_back(run);
}
