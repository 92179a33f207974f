//! The software device: worker threads that work without a lock, and are drained without one.

use std::sync::Arc;

use pagelease::ClaimError;
use pagelease::software::{DevicePage, Item, JobError, SoftwareConfig, SoftwareDevice};
use shuttle::sync::atomic::{AtomicBool, Ordering};
use shuttle::thread;

use super::touches::wait_until;
use super::world::{ANY_MOMENT, NEVER, Setting, World, page, update};

/// It claims all of a page, and may be called from a signal handler.
pub(crate) fn applies(setting: &Setting) -> bool {
    setting.is_exclusive() && setting.signal_safe()
}

fn start(world: &World, workers: usize) -> SoftwareDevice {
    SoftwareDevice::start(&world.space, SoftwareConfig { workers, ..SoftwareConfig::default() }).expect("a few threads")
}

fn items(pages: &[u32]) -> Vec<Item> {
    pages.iter().map(|&page| Item::new(page, u64::from(page))).collect()
}

/// An update of the item's page.
fn updating(world: &World, device: &SoftwareDevice) -> impl Fn(&DevicePage<'_>, u64) + Send + Sync + 'static {
    let (tally, id) = (world.tally(), device.handle().id());
    move |page, argument| {
        update(|word| page.load(word), |word, value| page.store(word, value), id);
        tally.made(u32::try_from(argument).expect("a page"));
    }
}

/// Two workers and the CPU update the same pages. Reveals an invalidation that does not wait for an operation in flight.
pub(crate) fn software_against_touch(setting: Setting) {
    let world = World::new(setting, 2);
    let device = start(&world, 2);
    let view = device.attach(&world.region).expect("attached once");
    thread::scope(|scope| {
        scope.spawn(|| {
            let job = device.submit(&view, updating(&world, &device), &items(&[0, 1, 1, 0, 1]));
            job.wait().expect("nothing forbids it");
        });
        scope.spawn(|| {
            world.touch(0);
            world.touch(1);
        });
        scope.spawn(|| world.touch(1));
    });
    drop((view, device));
    world.finish();
}

/// Two software devices and the CPU update one page. Reveals a worker that goes on after the page was given away.
pub(crate) fn two_software_devices(setting: Setting) {
    let world = World::new(setting, 1);
    let (one, other) = (start(&world, 1), start(&world, 1));
    let one_view = one.attach(&world.region).expect("attached once");
    let other_view = other.attach(&world.region).expect("attached once");
    let first = one.submit(&one_view, updating(&world, &one), &items(&[0, 0]));
    let second = other.submit(&other_view, updating(&world, &other), &items(&[0, 0]));
    thread::scope(|scope| {
        scope.spawn(|| world.touch(0));
    });
    first.wait().expect("nothing forbids it");
    second.wait().expect("nothing forbids it");
    drop((one_view, one, other_view, other));
    world.finish();
}

/// A region is dropped while workers work on it. Reveals an operation that runs on after the drop.
pub(crate) fn region_dropped_while_the_software_works(setting: Setting) {
    let world = World::new(setting, 2);
    let device = start(&world, 2);
    let view = device.attach(&world.region).expect("attached once");
    let gone = Arc::new(AtomicBool::new(false));
    let update = updating(&world, &device);
    let operation = {
        let gone = gone.clone();
        move |page: &DevicePage<'_>, argument| {
            update(page, argument);
            assert!(!gone.load(Ordering::SeqCst), "an operation runs in a region that is dropped");
        }
    };
    let job = device.submit(&view, operation, &items(&[0, 1, 0, 1]));
    let World { region, .. } = world;
    thread::scope(|scope| {
        scope.spawn(|| {
            drop(region);
            gone.store(true, Ordering::SeqCst);
        });
    });
    match job.wait() {
        Ok(()) | Err(JobError::Claim(ClaimError::RegionGone { .. })) => {}
        Err(other) => panic!("{other}"),
    }
}

/// An operation ends only after the touch that wants its page. Reveals a stuck device that hangs the program.
pub(crate) fn stuck_operation_costs_its_device_the_page(setting: Setting) {
    let world = World::with_limits(setting, 1, NEVER, ANY_MOMENT);
    let device = start(&world, 1);
    let view = device.attach(&world.region).expect("attached once");
    let (begun, touched) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let operation = {
        let (begun, touched) = (begun.clone(), touched.clone());
        move |_: &DevicePage<'_>, _| {
            begun.store(true, Ordering::SeqCst);
            wait_until(|| touched.load(Ordering::SeqCst));
        }
    };
    let lease = view.claim(page(0), setting.access).expect("nothing forbids the claim");
    let job = device.submit(&view, operation, &items(&[0, 0]));
    thread::scope(|scope| {
        scope.spawn(|| {
            wait_until(|| begun.load(Ordering::SeqCst));
            drop(lease);
        });
        scope.spawn(|| {
            wait_until(|| begun.load(Ordering::SeqCst));
            world.touch(0);
            touched.store(true, Ordering::SeqCst);
        });
    });
    assert!(matches!(job.wait(), Err(JobError::Lost(_))), "the device is lost");
    assert!(matches!(view.claim(page(0), setting.access), Err(ClaimError::Lost(_))), "a lost device gets no page");
    assert_eq!(world.space.stats().devices_lost, 1, "one device is lost, once");
    world.touch(0);
}
