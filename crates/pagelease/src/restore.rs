//! Restoring without a touch: a prefetch, an eager lease, a view that is being closed.
//!
//! The same transition as a touch's (`protocol::touch`), for many pages at a time: take them busy, invalidate their owner
//! once a run, map once a run, commit. Signal handlers of the calling thread are blocked meanwhile: a touch of theirs would
//! wait for what this thread has busy.

use pagelease_protocol::touch::{self as step, Service, TouchStep};
use pagelease_protocol::{Cause, Obstacle, Origin, OwnerId, PageIndex, PageRange, PageWord, hold};

use crate::backend::Mapped;
use crate::invalidate::invalidate;
use crate::lease;
use crate::records::{Record, SERVICE_TICKET};
use crate::region::RegionCore;
use crate::sync::{Deadline, Waited, block_signals, now_ns, tid};
use crate::touch::{Toucher, Who, break_hold, break_overdue, map_for_cpu, own_record};

/// The most pages that are busy at a time: their generations lie on the stack.
const BATCH: usize = if cfg!(pagelease_shuttle) { 4 } else { 1024 };

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

/// Brings the devices' pages among `pages` back to the CPU, and maps them.
pub(crate) fn bring_back(region: &RegionCore, pages: PageRange, of: Of, cause: Cause, patience: Patience) {
    let mut at = pages.start();
    let mut since = None;
    while at < pages.end() && (patience == Patience::None || !region.is_closing()) {
        let blocked = {
            let _blocked = block_signals();
            batch(region, &mut at, pages.end(), of, cause)
        };
        let Some(obstacle) = blocked else {
            since = None;
            continue;
        };
        match (obstacle, patience) {
            (Obstacle::Held, Patience::Skip) => at += 1,
            (Obstacle::Held, Patience::None) => break_and_settle(region, PageIndex(at)),
            // Waiting for itself, as a touch would not.
            (Obstacle::Held, Patience::HoldLimit) if break_own(region, PageIndex(at)) => {}
            _ => wait(region, PageIndex(at), of, patience, *since.get_or_insert_with(now_ns)),
        }
    }
}

/// Restores the next run from `at` on, and moves `at` behind what it has looked at. Returns what is in the way of the very
/// first page of a run; then nothing was done.
fn batch(region: &RegionCore, at: &mut u32, end: u32, of: Of, cause: Cause) -> Option<Obstacle> {
    while *at < end && !region.word(PageIndex(*at)).busy() && !of.includes(region.word(PageIndex(*at))) {
        *at += 1;
    }
    let start = *at;
    let mut generations = [0; BATCH];
    let mut run_owner = None;
    while *at < end && ((*at - start) as usize) < BATCH {
        let page = PageIndex(*at);
        let word = region.word(page);
        match step::step(word, true) {
            // Somebody else's by now.
            _ if !word.busy() && !of.includes(word) => break,
            TouchStep::Wait(obstacle) if run_owner.is_none() => return Some(obstacle),
            TouchStep::Take(next, Service::Restore(owner)) if run_owner.is_none_or(|run_owner| run_owner == owner) => {
                if region.swap(page, word, next.signed(SERVICE_TICKET)) {
                    generations[(*at - start) as usize] = word.generation();
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
        for (page, &generation) in run.iter().zip(&generations) {
            region.update(page, |word| step::commit(word.unsigned(generation)));
        }
    }
    None
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

/// The lease of `owner` that `record` belongs to has ended, and its pages go back at once: those that nobody else holds.
pub(crate) fn eagerly(region: &RegionCore, owner: OwnerId, record: Record<'_>) {
    let idle = record.entries().filter(|entry| lease::is_idle(region.word(entry.page), owner));
    crate::claim::for_runs(idle.map(|entry| (entry.page, ())), |run, ()| {
        bring_back(region, run, Of::Device(owner), Cause::Clear, Patience::Skip);
    });
}
