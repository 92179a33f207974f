//! Claims against claims.

use pagelease::{Access, PageIndex};
use shuttle::thread;

use super::world::{ANY_MOMENT, Setting, World, page, pages};

/// Two devices and the CPU update one page. Reveals a device that goes on after the page was given to another.
pub(crate) fn two_devices_on_one_page(setting: Setting) {
    let world = World::new(setting, 1);
    let (one, other) = (world.device(), world.device());
    thread::scope(|scope| {
        scope.spawn(|| one.work(page(0), 2));
        scope.spawn(|| other.work(page(0), 1));
        scope.spawn(|| world.touch(0));
    });
    world.finish();
}

/// Claims that overlap without being the same. Reveals two that wait for each other, and pages of a claim that is undone
/// which stay with nobody.
pub(crate) fn overlapping_claims(setting: Setting) {
    let world = World::new(setting, 4);
    let (low, high, scattered) = (world.device(), world.device(), world.device());
    thread::scope(|scope| {
        scope.spawn(|| low.work(pages(0, 3), 1));
        scope.spawn(|| high.work(pages(1, 4), 1));
        scope.spawn(|| {
            let lease =
                scattered.view.claim_scattered(&[page(0), page(2)], setting.access).expect("nothing forbids it");
            assert!(scattered.try_update(0) && scattered.try_update(2), "it holds the pages");
            assert!(!scattered.has(1), "it asked for the first and the third page only");
            lease.end().expect("nobody breaks a hold without a limit");
        });
        scope.spawn(|| world.touch(1));
    });
    world.finish();
}

/// A claim larger than a chunk, against touches and a claim in its middle. Reveals a lease that forgets a chunk.
pub(crate) fn claims_of_several_chunks(setting: Setting) {
    let world = World::new(setting, 6);
    let (large, small) = (world.device(), world.device());
    thread::scope(|scope| {
        scope.spawn(|| large.claim_and_update(pages(0, 6)));
        scope.spawn(|| small.claim_and_update(pages(3, 5)));
        scope.spawn(|| world.touch(5));
    });
    world.finish();
}

/// Two threads of a device claim the same page. Reveals a claim that disturbs itself or its like: one that is not joined,
/// starts again, or notifies anybody.
pub(crate) fn repeat_claim_is_joined(setting: Setting) {
    let world = World::new(setting, 1);
    let gadget = world.device();
    let first = gadget.claim(page(0));
    thread::scope(|scope| {
        scope.spawn(|| gadget.claim_and_update(page(0)));
        scope.spawn(|| gadget.claim_and_update(page(0)));
    });
    let stats = world.stats();
    assert_eq!((stats.claims, stats.pages_claimed, stats.claims_already_held), (3, 1, 2), "claims, of them joined");
    assert_eq!((stats.claim_retries, stats.invalidations, stats.restores), (0, 0, 0), "nobody was disturbed");
    first.end().expect("nobody breaks a hold without a limit");
    world.finish();
}

/// A device that has a page for writing claims all of it while the CPU reads and writes. Reveals reads that go on.
pub(crate) fn upgrade_takes_the_reads_away(setting: Setting) {
    let world = World::new(setting, 1);
    let gadget = world.device();
    drop(gadget.view.claim(page(0), Access::ExclusiveWrite).expect("nothing forbids the claim"));
    thread::scope(|scope| {
        scope.spawn(|| gadget.work(page(0), 2));
        scope.spawn(|| {
            world.read(0);
            world.touch(0);
        });
    });
    world.finish();
}

/// Two devices claim one page, and neither ends its lease. Reveals a claim that sleeps for ever on a hold, because the page was
/// only busy when it first looked.
pub(crate) fn claim_against_a_claim_that_stays(setting: Setting) {
    let world = World::with_hold_limit(setting, 1, ANY_MOMENT);
    let gadgets = [world.device(), world.device()];
    let leases = shuttle::sync::Mutex::new(Vec::new());
    thread::scope(|scope| {
        for gadget in &gadgets {
            let leases = &leases;
            scope.spawn(move || {
                let lease = gadget.claim(page(0));
                leases.lock().expect("nobody panics with it").push(lease);
            });
        }
    });
    drop(leases);
    world.finish();
}

/// A lease that never ends by itself, and another device's claim. Reveals a limit that nobody watches.
pub(crate) fn hold_limit_breaks_a_hold_for_a_claim(setting: Setting) {
    let world = World::with_hold_limit(setting, 1, ANY_MOMENT);
    let (holder, claimer) = (world.device(), world.device());
    let lease = holder.claim(page(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            // Its own hold may be broken as well.
            let mut updated = false;
            while !updated {
                let _lease = claimer.claim(page(0));
                updated = claimer.try_update(0);
            }
        });
        scope.spawn(|| world.touch(0));
    });
    assert!(lease.end().is_err(), "the lease says that it was broken");
    world.finish();
}

/// A lease was broken, and its device has claimed the page anew, when the holder ends it at last. Reveals an end that ends
/// the later hold.
pub(crate) fn late_holder_harms_no_later_lease(setting: Setting) {
    let world = World::new(setting, 1);
    let gadget = world.device();
    let broken = gadget.claim(page(0));
    world.touch(0);
    let later = gadget.claim(page(0));
    thread::scope(|scope| {
        scope.spawn(|| assert_eq!(world.touch(0), 2, "the touch did not wait for the later lease"));
        scope.spawn(|| {
            assert!(broken.end().is_err(), "its holder touched the page");
            assert_eq!(later.check(), Ok(()), "another lease's end broke it");
            assert!(gadget.try_update(0), "it holds the page");
            later.end().expect("nobody breaks a hold without a limit");
        });
    });
    world.finish();
}

/// A driver evicts a page from its own table and maps it again without a claim, by what its subscription says. Reveals an
/// invalidation that a subscriber does not hear of.
pub(crate) fn subscriber_hears_of_every_invalidation(setting: Setting) {
    let world = World::new(setting, 1);
    let (gadget, other) = (world.device(), world.device());
    gadget.claim_and_update(page(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            let notifier = gadget.view.subscribe(page(0)).expect("within the region");
            for _ in 0..2 {
                gadget.handle.evict(0);
                loop {
                    let seq = notifier.read_begin();
                    if !gadget.view.has(PageIndex(0)) || gadget.handle.map_if(0, || !notifier.read_retry(seq)) {
                        break;
                    }
                }
                gadget.try_update(0);
            }
        });
        scope.spawn(|| world.touch(0));
        scope.spawn(|| other.claim_and_update(page(0)));
    });
    world.finish();
}
