//! CPU touches against devices.

use shuttle::thread;

use super::world::{Setting, World, page};

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
    drop(gadget);
    world.finish();
}

/// Two threads touch a page that a device has. Reveals a page that is restored twice: a device invalidated for nothing, or
/// one that has claimed the page anew meanwhile.
pub(crate) fn touch_against_touch(setting: Setting) {
    let world = World::new(setting, 1);
    let gadget = world.device();
    gadget.claim_and_update(page(0));
    thread::scope(|scope| {
        scope.spawn(|| world.touch(0));
        scope.spawn(|| world.touch(0));
    });
    let stats = world.stats();
    assert_eq!((stats.restores, stats.invalidations), (1, 1), "the page was with the device once");
    drop(gadget);
    world.finish();
}
pub(crate) fn nothing(setting: Setting) {
    let world = World::new(setting, 1);
    world.finish();
}
