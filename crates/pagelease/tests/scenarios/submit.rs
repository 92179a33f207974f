//! A submitting device: work on several pages at once, which only its fence ends.

use core::time::Duration;
use std::convert::Infallible;
use std::sync::Arc;

use pagelease::submit::{Queue, SubmissionError, SubmitError, Submitter, Use};
use pagelease::{ClaimError, OwnerId, PageRange, View};
use shuttle::sync::{Condvar, Mutex};
use shuttle::thread;

use super::touches::wait_until;
use super::world::{ANY_MOMENT, NEVER, Setting, Tally, World, page, pages, update};
use shuttle::sync::atomic::{AtomicBool, Ordering};

/// It claims all of a page, and may be called from a signal handler.
pub(crate) fn applies(setting: &Setting) -> bool {
    setting.is_exclusive() && setting.signal_safe()
}

/// A driver: a thread for each submission.
struct Threads;

#[derive(Default)]
struct Fence {
    signalled: Mutex<bool>,
    changed: Condvar,
}

impl Queue for Threads {
    type Fence = Arc<Fence>;
    type Error = Infallible;

    fn name(&self) -> &'static str {
        "threads"
    }

    fn wait(&self, fence: &Self::Fence, _limit: Duration) -> Result<bool, Infallible> {
        let mut signalled = fence.signalled.lock().expect("not poisoned");
        while !*signalled {
            signalled = fence.changed.wait(signalled).expect("not poisoned");
        }
        Ok(true)
    }
}

fn start(world: &World) -> (Submitter<Threads>, View) {
    let device = Submitter::start(&world.space, Threads).expect("a thread");
    let view = device.attach(&world.region).expect("attached once");
    (device, view)
}

/// The work of one submission: an update of each page.
fn updating(view: &View, id: OwnerId, tally: Tally, all: PageRange) -> impl FnOnce() + Send + 'static {
    let view = view.clone();
    move || {
        for page in all.iter() {
            let words = view.words(page);
            update(
                |word| words[word].load(core::sync::atomic::Ordering::SeqCst),
                |word, value| words[word].store(value, core::sync::atomic::Ordering::SeqCst),
                id,
            );
            tally.made(page.0);
        }
    }
}

/// Hands work to the driver.
fn run(work: impl FnOnce() + Send + 'static) -> Arc<Fence> {
    let fence = Arc::new(Fence::default());
    let signalled = fence.clone();
    thread::spawn(move || {
        work();
        *signalled.signalled.lock().expect("not poisoned") = true;
        signalled.changed.notify_all();
    });
    fence
}

fn submit_and_wait(world: &World, device: &Submitter<Threads>, view: &View, all: PageRange) {
    let work = updating(view, device.handle().id(), world.tally(), all);
    let submission = device.submit(&[Use { view, pages: all }], |_| Ok(run(work))).expect("nothing forbids it");
    submission.wait().expect("nothing is lost");
}

/// Submissions against touches, with holds that may be broken at any moment. Reveals work that starts, or goes on, after its
/// page was taken.
pub(crate) fn submission_against_touch(setting: Setting) {
    let world = World::with_hold_limit(setting, 2, ANY_MOMENT);
    let (device, view) = start(&world);
    thread::scope(|scope| {
        scope.spawn(|| submit_and_wait(&world, &device, &view, pages(0, 2)));
        scope.spawn(|| {
            world.touch(1);
            world.touch(0);
        });
    });
    drop((view, device));
    world.finish();
}

/// Submissions of one page, again and again, against touches of it whose patience may end at any moment. Reveals work that starts
/// though its hold was broken before.
pub(crate) fn submissions_whose_holds_are_broken(setting: Setting) {
    let world = World::with_hold_limit(setting, 1, ANY_MOMENT);
    let (device, view) = start(&world);
    thread::scope(|scope| {
        scope.spawn(|| (0..3).for_each(|_| submit_and_wait(&world, &device, &view, page(0))));
        for _ in 0..2 {
            scope.spawn(|| (0..3).for_each(|_| _ = world.touch(0)));
        }
    });
    drop((view, device));
    world.finish();
}

/// Nobody waits for the submission but a touch. Reveals a reaper that does not let go.
pub(crate) fn touch_of_a_submission_nobody_waits_for(setting: Setting) {
    let world = World::new(setting, 1);
    let (device, view) = start(&world);
    let work = updating(&view, device.handle().id(), world.tally(), page(0));
    drop(device.submit(&[Use { view: &view, pages: page(0) }], |_| Ok(run(work))).expect("nothing forbids it"));
    thread::scope(|scope| {
        scope.spawn(|| assert_eq!(world.touch(0), 1, "the touch waits for the submission"));
    });
    drop((view, device));
    world.finish();
}

/// Two submitting devices and the CPU on the same pages, with holds that may be broken at any moment.
pub(crate) fn two_submitting_devices(setting: Setting) {
    let world = World::with_hold_limit(setting, 2, ANY_MOMENT);
    let (one, one_view) = start(&world);
    let (other, other_view) = start(&world);
    thread::scope(|scope| {
        scope.spawn(|| submit_and_wait(&world, &one, &one_view, pages(0, 2)));
        scope.spawn(|| submit_and_wait(&world, &other, &other_view, pages(0, 2)));
        scope.spawn(|| world.touch(0));
    });
    drop((one_view, one, other_view, other));
    world.finish();
}

/// A submission ends only after the touch that wants one of its pages. Reveals a stuck queue that hangs the program.
pub(crate) fn stuck_submission_costs_its_device_the_pages(setting: Setting) {
    let world = World::with_limits(setting, 2, ANY_MOMENT, ANY_MOMENT);
    let (device, view) = start(&world);
    let touched = Arc::new(AtomicBool::new(false));
    let work = {
        let touched = touched.clone();
        move || wait_until(|| touched.load(Ordering::SeqCst))
    };
    let uses = [Use { view: &view, pages: pages(0, 2) }];
    let submission = device.submit(&uses, |_| Ok(run(work))).expect("nothing forbids it");
    thread::scope(|scope| {
        scope.spawn(|| {
            world.touch(1);
            world.touch(0);
            touched.store(true, Ordering::SeqCst);
        });
    });
    assert!(matches!(submission.wait(), Err(SubmissionError::Lost(_))), "the device is lost");
    let again = device.submit(&uses, |_| unreachable!("a lost device gets nothing to do"));
    assert!(matches!(again, Err(SubmitError::Claim(ClaimError::Lost(_)))), "a lost device gets no page");
    assert_eq!(world.space.stats().devices_lost, 1, "one device is lost, once");
}

/// A region is dropped while the driver works on it. Reveals work that runs on after the drop.
pub(crate) fn region_dropped_while_a_submission_runs(setting: Setting) {
    let world = World::with_limits(setting, 1, NEVER, NEVER);
    let (device, view) = start(&world);
    let ended = Arc::new(AtomicBool::new(false));
    let work = updating(&view, device.handle().id(), world.tally(), page(0));
    let work = {
        let ended = ended.clone();
        move || {
            work();
            ended.store(true, Ordering::SeqCst);
        }
    };
    let submission =
        device.submit(&[Use { view: &view, pages: page(0) }], |_| Ok(run(work))).expect("nothing forbids it");
    let World { region, .. } = world;
    drop(region);
    assert!(ended.load(Ordering::SeqCst), "the region is dropped, and the driver works on it");
    submission.wait().expect("it ended");
}
