//! Leases, views and regions that end while something goes on.

use pagelease::{ClaimError, PageIndex};
use shuttle::sync::atomic::{AtomicBool, Ordering};
use shuttle::thread;

use super::touches::wait_until;
use super::world::{ANY_MOMENT, Setting, World, page, pages};

/// A lease is ended by another thread than the one that claimed, which touches the page. Reveals a touch that is lost
/// between the two.
pub(crate) fn lease_ended_elsewhere(setting: Setting) {
    let world = World::new(setting, 1);
    let gadget = world.device();
    let (give, take) = shuttle::sync::mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || drop(take.recv().expect("a lease is sent")));
        scope.spawn(|| {
            give.send(gadget.claim(page(0))).expect("somebody takes it");
            world.touch(0);
        });
        scope.spawn(|| world.touch(0));
    });
    world.finish();
}

/// The last view is dropped while its device has the pages and the CPU touches them; then the device is attached anew.
/// Reveals a touch that calls a device which has gone, and pages that stay with it.
pub(crate) fn view_dropped_while_its_device_has_pages(setting: Setting) {
    let world = World::new(setting, 2);
    let gadget = world.device();
    let other = world.device();
    let handle = gadget.handle.clone();
    gadget.claim_and_update(pages(0, 2));
    thread::scope(|scope| {
        scope.spawn(|| {
            gadget.try_update(0);
            drop(gadget);
        });
        scope.spawn(|| world.touch(0));
        scope.spawn(|| other.claim_and_update(page(1)));
    });
    assert!(handle.is_empty(), "a device without a view has no pages");
    world.attach(handle).claim_and_update(pages(0, 2));
    world.finish();
}

/// A region is dropped while its device holds and claims its pages. Reveals a device that goes on after the drop.
pub(crate) fn region_dropped_while_held(setting: Setting) {
    let world = World::new(setting, 2);
    let gadget = world.device();
    let lease = gadget.claim(page(0));
    let World { region, space, .. } = world;
    let gone = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            drop(region);
            gone.store(true, Ordering::SeqCst);
        });
        scope.spawn(|| {
            loop {
                let over = gone.load(Ordering::SeqCst);
                let claimed = gadget.view.claim(pages(0, 2), setting.access);
                let updated = gadget.try_update(0);
                assert!(!(over && (updated || claimed.is_ok())), "the device goes on in a region that is dropped");
                match claimed {
                    Ok(lease) => drop(lease),
                    Err(ClaimError::RegionGone { .. }) => break,
                    Err(other) => panic!("{other}"),
                }
                thread::yield_now();
            }
        });
    });
    assert!(!gadget.try_update(0) && !gadget.try_update(1), "the device goes on in a region that is dropped");
    assert!(!gadget.view.has(PageIndex(0)), "the device is told that it may use a page of a region that is dropped");
    drop(lease);
    gadget.finish();
    assert_eq!(space.stats().invalidations_spurious, 0);
}

/// A view is dropped while another device takes the page from it, with a lease that never ends. Reveals a drop that waits for
/// another device's hold: what was busy when it looked is held when it goes to sleep.
pub(crate) fn view_dropped_while_another_takes_the_page(setting: Setting) {
    let world = World::with_hold_limit(setting, 1, ANY_MOMENT);
    let gadget = world.device();
    let other = world.device();
    drop(gadget.claim(page(0)));
    let leases = shuttle::sync::Mutex::new(Vec::new());
    thread::scope(|scope| {
        scope.spawn(|| drop(gadget));
        scope.spawn(|| leases.lock().expect("nobody panics with it").push(other.claim(page(0))));
    });
    drop(leases);
    world.finish();
}

/// A region is dropped while a claim waits for a hold that outlives the drop. Reveals a drop that waits for ever.
pub(crate) fn region_dropped_while_a_claim_waits(setting: Setting) {
    let world = World::new(setting, 1);
    let (holder, claimer) = (world.device(), world.device());
    let lease = holder.claim(page(0));
    let World { region, .. } = world;
    let gone = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            drop(region);
            gone.store(true, Ordering::SeqCst);
        });
        scope.spawn(|| match claimer.view.claim(page(0), setting.access) {
            Err(ClaimError::RegionGone { .. }) => {}
            other => panic!("the page was held to the end: {:?}", other.map(drop)),
        });
        scope.spawn(|| {
            wait_until(|| gone.load(Ordering::SeqCst));
            drop(lease);
        });
    });
    assert!(!claimer.try_update(0) && !holder.try_update(0), "a device goes on in a region that is dropped");
}
