//! Invalidation: a device stops using pages.
//!
//! ```text
//!   begin     every subscription it concerns hears of it (its sequence number moves)
//!   device    unmaps the pages and drains what is in flight on them
//!   stuck?    after the drain limit: the device is lost, its view of the page is covered, and the rest goes on
//!   end       a claim that waits in read_begin may start
//! ```
//!
//! The caller has the pages' words `busy`, or has barred the device from the whole region, so no operation starts on them
//! meanwhile. When [`invalidate`] returns, none is in flight. It never waits for a hold, and for an operation no longer
//! than the drain limit. Signal-safe if the device is.

use core::cell::Cell;

use pagelease_protocol::{Cause, Origin, OwnerId, PageRange, PageWord};

use crate::device::{DeviceCore, Invalidation, Loss};
use crate::guard;
use crate::mutant::{self, Mutant};
use crate::records::{Begun, SERVICE_TICKET};
use crate::region::RegionCore;
use crate::service::monitor::release_watch;
use crate::space::Faults;
use crate::sync::block_signals;
use crate::touch::Who;

/// Makes `owner` stop using `pages` of `region`. `toucher`: the thread whose touch it is, which is not waited for.
/// Whether the device says that it was using them.
pub(crate) fn invalidate(
    region: &RegionCore,
    owner: OwnerId,
    pages: PageRange,
    cause: Cause,
    origin: Origin,
    toucher: Who,
) -> bool {
    let space = &region.space;
    let Some(device) = region.device(owner) else { return false };
    space.stats.invalidations.one();
    // A claim that is past its commit point has given the device the page before the word says so.
    let may_have = |word: PageWord| word.owner() == Some(owner) || word.ticket().is_some_and(|t| t != SERVICE_TICKET);
    if !pages.iter().any(|page| may_have(region.word(page))) {
        space.stats.invalidations_spurious.one();
    }
    if space.records.any_in_flight() {
        return heard(region, device, pages, cause, origin, toucher);
    }
    stop(region, device, pages, cause, origin, toucher)
}

/// As [`stop`], and every subscription that it concerns hears of it.
#[inline(never)]
fn heard(
    region: &RegionCore,
    device: &DeviceCore,
    pages: PageRange,
    cause: Cause,
    origin: Origin,
    toucher: Who,
) -> bool {
    let records = &region.space.records;
    let mut begun = Begun::NONE;
    let heard = records.begin(&mut begun, region.id.0, pages, cause, origin);
    let in_use = stop(region, device, pages, cause, origin, toucher);
    if heard {
        records.end(&begun);
    }
    in_use
}

/// The device stops using `pages`. Whether it says that it was using them.
fn stop(
    region: &RegionCore,
    device: &DeviceCore,
    pages: PageRange,
    cause: Cause,
    origin: Origin,
    toucher: Who,
) -> bool {
    let space = &region.space;
    let invalidation = Invalidation {
        region: region.id,
        pages,
        cause,
        origin,
        toucher,
        limit: space.config.drain_limit,
        wait: Cell::new(None),
        monitored: space.config.faults == Faults::Monitor,
        in_use: Cell::new(false),
        given_up: Cell::new(0),
    };
    if invalidation.monitored && !device.device().signal_safe() {
        // It may wait for its device for a long time.
        release_watch();
    }
    // A signal handler that touched a page of the device would wait for a driver whose lock this thread may have.
    let unblock = (!device.device().signal_safe()).then(block_signals);
    while !mutant::active(Mutant::SkipDrain) {
        match guard::driver(|| device.device().invalidate(&invalidation)) {
            Ok(()) => break,
            Err(stuck) => {
                device.lose(region.id, stuck.page, Loss::Stuck);
                region.cover(device.id, stuck.page);
                invalidation.given_up.set(stuck.page.0 + 1);
                invalidation.note_wait(&space.stats);
            }
        }
    }
    drop(unblock);
    invalidation.note_wait(&space.stats);
    invalidation.in_use.get()
}
