//! CPU touches against devices.

use shuttle::sync::atomic::{AtomicBool, Ordering};
use shuttle::thread;

use super::world::{ANY_MOMENT, Setting, World, page, pages};

/// A device claims and works while the CPU touches. Reveals any hole in exclusivity as a lost update.
pub(crate) fn claim_against_touch(setting: Setting) {
    let world = World::new(setting, 1);
    let gadget = world.device();
    thread::scope(|scope| {
        scope.spawn(|| gadget.work(page(0), 2));
        scope.spawn(|| {
            world.touch(0);
            world.read(0);
            world.touch(0);
        });
    });
    world.finish();
}

/// A page that neither side has ever touched, and each touches once. Reveals one that is revoked before it exists: an
/// absent page does not trap.
pub(crate) fn first_claim_against_first_touch(setting: Setting) {
    let world = World::new(setting, 1);
    let gadget = world.device();
    thread::scope(|scope| {
        scope.spawn(|| gadget.claim_and_update(page(0)));
        scope.spawn(|| world.touch(0));
    });
    world.finish();
}

/// Two threads touch a page that a device has. Reveals one that is restored twice, or a touch that is not woken.
pub(crate) fn touch_against_touch(setting: Setting) {
    let world = World::new(setting, 1);
    let gadget = world.device();
    gadget.claim_and_update(page(0));
    thread::scope(|scope| {
        scope.spawn(|| world.touch(0));
        scope.spawn(|| world.touch(0));
    });
    let stats = world.stats();
    assert_eq!((stats.restores, stats.invalidations), (1, 1), "the device had the page once");
    world.finish();
}

/// A device goes on with a page that it has, without a lease, when touches come. Reveals one that is served before the
/// device has let go.
pub(crate) fn touch_in_the_middle_of_an_operation(setting: Setting) {
    let world = World::new(setting, 1);
    let gadget = world.device();
    gadget.claim_and_update(page(0));
    thread::scope(|scope| {
        scope.spawn(|| (0..3).take_while(|_| gadget.try_update(0)).count());
        scope.spawn(|| {
            world.touch(0);
            world.touch(0);
        });
        scope.spawn(|| world.read(0));
    });
    assert!(!gadget.has(0), "a touch takes the page from the device");
    world.finish();
}

/// A touch comes while a lease lives. Reveals a hold that is no hold, and a release that does not wake.
pub(crate) fn touch_waits_for_the_hold(setting: Setting) {
    let world = World::new(setting, 1);
    let gadget = world.device();
    let lease = gadget.claim(page(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            assert!(gadget.try_update(0) && gadget.try_update(0), "it holds the page");
            lease.end().expect("nobody breaks a hold without a limit");
        });
        scope.spawn(|| assert!(world.touch(0) >= 2, "the touch came in the middle of the hold"));
        scope.spawn(|| assert!(world.touch(0) >= 2, "the touch came in the middle of the hold"));
    });
    world.finish();
}

/// The device claims a page once more while a touch already waits for it. Reveals a claim that goes past the touch, which
/// then waits for one hold more, and so for ever.
pub(crate) fn waiting_touch_goes_before_a_claim(setting: Setting) {
    let world = World::new(setting, 1);
    let gadget = world.device();
    let lease = gadget.claim(page(0));
    let claiming = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| world.touch(0));
        scope.spawn(|| {
            wait_until(|| world.cpu.is_waited_for(0));
            claiming.store(true, Ordering::SeqCst);
            // It would be joined, were it not for the touch.
            let second = gadget.claim(page(0));
            assert_eq!(world.stats().restores, 1, "the claim went past a touch that waited");
            second.end().expect("nobody breaks a hold without a limit");
        });
        scope.spawn(|| {
            wait_until(|| claiming.load(Ordering::SeqCst));
            lease.end().expect("nobody breaks a hold without a limit");
        });
    });
    world.finish();
}

/// Two threads of a device claim one page in a loop until a touch of it is served. Reveals starvation: holds that overlap
/// without end.
pub(crate) fn claims_in_a_loop_do_not_starve_a_touch(setting: Setting) {
    let world = World::new(setting, 1);
    let gadget = world.device();
    let touched = AtomicBool::new(false);
    let claim_in_a_loop = || {
        while !touched.load(Ordering::SeqCst) {
            gadget.claim_and_update(page(0));
            thread::yield_now();
        }
    };
    thread::scope(|scope| {
        scope.spawn(claim_in_a_loop);
        scope.spawn(claim_in_a_loop);
        scope.spawn(|| {
            world.touch(0);
            touched.store(true, Ordering::SeqCst);
        });
    });
    world.finish();
}

/// A lease that never ends by itself, a touch and a prefetch. Reveals a limit that nobody watches.
pub(crate) fn hold_limit_breaks_a_hold(setting: Setting) {
    let world = World::with_hold_limit(setting, 2, ANY_MOMENT);
    let gadget = world.device();
    let lease = gadget.claim(pages(0, 2));
    thread::scope(|scope| {
        scope.spawn(|| world.touch(0));
        scope.spawn(|| world.touch(0));
        scope.spawn(|| world.region.prefetch(page(1)));
    });
    assert_eq!(world.stats().holds_broken, 2, "two pages were held, and each was wanted");
    assert_eq!(lease.check().map_err(|broken| broken.lost), Err(2), "the lease says what it lost");
    assert!(lease.end().is_err(), "the lease says that it was broken");
    world.finish();
}

/// A thread touches in order, so that each touch brings more pages along, while a device claims among them. Reveals a
/// neighbour that is brought along although somebody uses it.
pub(crate) fn touches_in_order_bring_neighbours(setting: Setting) {
    let world = World::new(setting, 4);
    let gadget = world.device();
    gadget.claim_and_update(pages(0, 4));
    thread::scope(|scope| {
        scope.spawn(|| {
            for page in 0..4 {
                world.touch(page);
            }
        });
        scope.spawn(|| gadget.work(pages(1, 4), 1));
        scope.spawn(|| world.touch(2));
    });
    world.finish();
}

/// A prefetch runs into claims. Reveals one that maps what has just been claimed.
pub(crate) fn prefetch_against_claim(setting: Setting) {
    let world = World::new(setting, 2);
    let gadget = world.device();
    gadget.claim_and_update(page(1));
    thread::scope(|scope| {
        scope.spawn(|| gadget.work(pages(0, 2), 1));
        scope.spawn(|| {
            world.region.prefetch(pages(0, 2));
            world.touch(1);
        });
    });
    world.finish();
}

/// The CPU reads while a device that has the page for writing works on it; then it writes. Reveals reads that are taken
/// away, and a write that is not.
pub(crate) fn cpu_reads_while_a_device_writes(setting: Setting) {
    let world = World::new(setting, 1);
    let gadget = world.device();
    world.touch(0);
    let touches = world.stats().touches;
    thread::scope(|scope| {
        scope.spawn(|| gadget.work(page(0), 2));
        scope.spawn(|| {
            let first = world.read(0);
            assert!(first <= world.read(0), "the CPU reads what was, not what is");
            if setting.is_lazy() {
                assert_eq!(world.stats().touches, touches, "a read trapped");
            }
            world.touch(0);
        });
    });
    world.finish();
}

/// A page that the CPU has never mapped is read while a lease holds it for writing. Reveals a read that waits for it.
pub(crate) fn read_does_not_wait_for_a_writer(setting: Setting) {
    let world = World::new(setting, 1);
    let gadget = world.device();
    let lease = gadget.claim(page(0));
    thread::scope(|scope| {
        scope.spawn(|| world.read(0));
        scope.spawn(|| world.read(0));
        scope.spawn(|| assert!(gadget.try_update(0), "a read does not take the page back"));
    });
    assert_eq!(world.stats().restores, 0, "a read does not take the page back");
    lease.end().expect("a read does not break the hold");
    world.finish();
}

/// Gives way until `condition` is true.
pub(crate) fn wait_until(condition: impl Fn() -> bool) {
    while !condition() {
        thread::yield_now();
    }
}
