//! Submitting devices on real memory, over a driver that is a thread: exact counts, touches that wait, losses, refusals.
#![cfg(not(pagelease_shuttle))]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use pagelease::submit::{Queue, SubmissionError, SubmitError, Submitter, Use};
use pagelease::{ByteLen, ClaimError, Faults, LossReason, PageRange, Region, RestorePolicy, Space, View};

use support::{MODES, a_while, at, one, open, page, pages, wait_until, watchdog};

mod support;

type Work = Box<dyn FnOnce() + Send>;

/// A driver whose device is one thread, that does what is handed to it in order.
struct Thread {
    work: Mutex<Sender<(Work, Arc<Fence>)>>,
    /// From now on, waiting fails, as after a hang of the device.
    fails: AtomicBool,
}

#[derive(Default)]
struct Fence {
    signalled: Mutex<bool>,
    changed: Condvar,
}

#[derive(Debug, thiserror::Error)]
#[error("the thread's device hangs")]
struct Hangs;

impl Thread {
    fn start() -> Self {
        let (work, queue) = channel::<(Work, Arc<Fence>)>();
        thread::spawn(move || {
            for (work, fence) in queue {
                work();
                fence.signal();
            }
        });
        Self { work: Mutex::new(work), fails: AtomicBool::new(false) }
    }

    fn enqueue(&self, work: impl FnOnce() + Send + 'static) -> Arc<Fence> {
        let fence = Arc::new(Fence::default());
        self.work.lock().unwrap().send((Box::new(work), fence.clone())).unwrap();
        fence
    }
}

impl Fence {
    fn signal(&self) {
        *self.signalled.lock().unwrap() = true;
        self.changed.notify_all();
    }
}

impl Queue for Thread {
    type Fence = Arc<Fence>;
    type Error = Hangs;

    fn name(&self) -> &'static str {
        "thread"
    }

    fn wait(&self, fence: &Self::Fence, limit: Duration) -> Result<bool, Hangs> {
        let signalled = fence.signalled.lock().unwrap();
        let waiting = |signalled: &mut bool| !*signalled && !self.fails.load(SeqCst);
        let (signalled, _) = fence.changed.wait_timeout_while(signalled, limit, waiting).unwrap();
        if self.fails.load(SeqCst) { Err(Hangs) } else { Ok(*signalled) }
    }
}

struct Rig {
    space: Space,
    region: Region,
    device: Submitter<Thread>,
    view: View,
}

fn rig(faults: Faults, policy: RestorePolicy, drain_limit: Duration) -> Option<Rig> {
    let space = open(Space::builder().faults(faults).restore(policy).drain_limit(drain_limit))?;
    let region = space.allocate(ByteLen(16 * 4096)).unwrap();
    let device = Submitter::start(&space, Thread::start()).unwrap();
    let view = device.attach(&region).unwrap();
    Some(Rig { space, region, device, view })
}

const LONG: Duration = Duration::from_secs(60);

/// Adds 1 to the first word of each page, `times`: a load and a store, with a pause between.
fn adding(view: &View, all: PageRange, times: u32) -> impl FnOnce() + Send + 'static {
    let view = view.clone();
    move || {
        for _ in 0..times {
            for page in all.iter() {
                let word = &view.words(page)[0];
                let value = word.load(Relaxed);
                std::hint::black_box((0..20).fold(value, |sum, n| sum ^ n));
                word.store(value + 1, Relaxed);
            }
        }
    }
}

impl Rig {
    fn add(&self, all: PageRange, times: u32) -> pagelease::submit::Submission<Thread> {
        let work = adding(&self.view, all, times);
        self.device.submit(&[Use { view: &self.view, pages: all }], |queue| Ok(queue.enqueue(work))).unwrap()
    }
}

#[test]
fn counts_are_exact_against_cpu_threads() {
    let _watchdog = watchdog();
    for faults in MODES {
        for policy in [RestorePolicy::Lazy, RestorePolicy::Eager, RestorePolicy::Adaptive] {
            let Some(rig) = rig(faults, policy, LONG) else { return };
            let (rounds, over) = (300, AtomicBool::new(false));
            let by_cpu: Vec<u64> = thread::scope(|scope| {
                let threads: Vec<_> = (0..2)
                    .map(|first| {
                        let (region, over) = (&rig.region, &over);
                        scope.spawn(move || {
                            let mut made = 0;
                            for index in (0..3).cycle().skip(first).take_while(|_| !over.load(SeqCst)) {
                                at(region, index, 0).fetch_add(1, SeqCst);
                                made += 1;
                            }
                            made
                        })
                    })
                    .collect();
                for round in 0..rounds {
                    let submission = rig.add(pages(0, 3), 2);
                    if round % 2 == 0 {
                        submission.wait().unwrap();
                    }
                }
                over.store(true, SeqCst);
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            rig.add(one(0), 1).wait().unwrap();
            let total: u64 = (0..3).map(|index| at(&rig.region, index, 0).load(SeqCst)).sum();
            assert_eq!(total, by_cpu.iter().sum::<u64>() + rounds * 2 * 3 + 1, "{faults:?} {policy:?}");
            assert_eq!(rig.space.stats().devices_lost, 0);
        }
    }
}

/// Idle, queued behind another submission, and running; the hold limit passes while it waits.
#[test]
fn a_touch_waits_for_what_is_submitted_and_sees_all_of_it() {
    let _watchdog = watchdog();
    for faults in MODES {
        let Some(rig) = rig(faults, RestorePolicy::Lazy, LONG) else { return };
        let go = Arc::new(AtomicBool::new(false));
        let blocks = |rig: &Rig, index| {
            let (go, add) = (go.clone(), adding(&rig.view, one(index), 5));
            let uses = [Use { view: &rig.view, pages: one(index) }];
            rig.device.submit(&uses, |queue| {
                Ok(queue.enqueue(move || {
                    while !go.load(SeqCst) {
                        thread::yield_now();
                    }
                    add();
                }))
            })
        };
        let running = blocks(&rig, 1).unwrap();
        let queued = rig.add(one(2), 7);
        let touched = AtomicU32::new(0);
        thread::scope(|scope| {
            for (index, expected) in [(1, 5), (2, 7)] {
                let (rig, touched) = (&rig, &touched);
                scope.spawn(move || {
                    assert_eq!(at(&rig.region, index, 0).load(SeqCst), expected, "{faults:?}: page {index}");
                    touched.fetch_add(1, SeqCst);
                });
            }
            // Elsewhere nobody waits.
            assert_eq!(at(&rig.region, 3, 0).load(SeqCst), 0);
            a_while();
            a_while();
            assert_eq!(touched.load(SeqCst), 0, "{faults:?}: a touch did not wait");
            assert!(!running.wait_for(Duration::ZERO));
            go.store(true, SeqCst);
        });
        running.wait().unwrap();
        queued.wait().unwrap();
        assert_eq!(rig.space.stats().devices_lost, 0);
    }
}

/// Nobody waits for it, and its pages are let go of when it has ended: at once with `Eager`.
#[test]
fn what_nobody_waits_for_lands_all_the_same() {
    let _watchdog = watchdog();
    let Some(rig) = rig(Faults::Monitor, RestorePolicy::Eager, LONG) else { return };
    drop(rig.add(pages(0, 4), 1));
    wait_until(|| !(0..4).any(|index| rig.view.has(page(index))));
    assert_eq!(rig.view.words(page(3))[0].load(SeqCst), 1);
}

#[test]
fn a_stuck_submission_costs_the_device_and_not_the_program() {
    let _watchdog = watchdog();
    for faults in MODES {
        let Some(rig) = rig(faults, RestorePolicy::Lazy, Duration::from_millis(150)) else { return };
        let (go, view) = (Arc::new(AtomicBool::new(false)), rig.view.clone());
        let stuck = {
            let (go, view) = (go.clone(), view.clone());
            move || {
                (0..4).for_each(|index| view.words(page(index))[0].store(1, SeqCst));
                while !go.load(SeqCst) {
                    thread::yield_now();
                }
                (0..4).for_each(|index| view.words(page(index))[0].store(2, SeqCst));
            }
        };
        let uses = [Use { view: &rig.view, pages: pages(0, 4) }];
        let submission = rig.device.submit(&uses, |queue| Ok(queue.enqueue(stuck))).unwrap();
        wait_until(|| view.words(page(3))[0].load(SeqCst) == 1);
        assert_eq!(at(&rig.region, 2, 0).load(SeqCst), 1, "{faults:?}: what it did so far stays");
        let Err(SubmissionError::Lost(lost)) = submission.wait() else { panic!("the device is lost") };
        assert!(matches!(lost.why, LossReason::Stuck { .. }), "{lost}");
        // Several pages in one go.
        rig.region.prefetch(pages(0, 4));
        go.store(true, SeqCst);
        wait_until(|| view.words(page(3))[0].load(SeqCst) == 2);
        for index in 0..4 {
            assert_eq!(at(&rig.region, index, 0).load(SeqCst), 1, "{faults:?}: a late store landed in page {index}");
        }
        let again = rig.device.submit(&uses, |_| unreachable!("a lost device gets no work"));
        assert!(matches!(again, Err(SubmitError::Claim(ClaimError::Lost(_)))));
    }
}

/// The driver still has what was queued behind a stuck submission: it stays, though everybody has dropped everything.
#[test]
fn what_is_queued_behind_a_stuck_submission_is_kept() {
    let _watchdog = watchdog();
    let Some(rig) = rig(Faults::Monitor, RestorePolicy::Lazy, Duration::from_millis(150)) else { return };
    let fences = [Arc::new(Fence::default()), Arc::new(Fence::default())];
    for (index, fence) in (0..).zip(&fences) {
        let uses = [Use { view: &rig.view, pages: one(index) }];
        drop(rig.device.submit(&uses, |_| Ok(fence.clone())).unwrap());
    }
    assert_eq!(at(&rig.region, 0, 0).load(SeqCst), 0, "the CPU goes on");
    assert!(rig.device.handle().lost().is_some());
    drop(rig);
    for fence in &fences {
        assert_eq!(Arc::strong_count(fence), 2, "what the driver may still use was dropped");
    }
}

#[test]
fn a_queue_may_end_what_came_later_first() {
    let _watchdog = watchdog();
    for faults in MODES {
        let Some(rig) = rig(faults, RestorePolicy::Lazy, LONG) else { return };
        let fences = [Arc::new(Fence::default()), Arc::new(Fence::default())];
        let [first, second] = [0, 1].map(|index| {
            let uses = [Use { view: &rig.view, pages: one(index) }];
            rig.device.submit(&uses, |_| Ok(fences[index as usize].clone())).unwrap()
        });
        fences[1].signal();
        // Nobody waits for it but the touch.
        assert_eq!(at(&rig.region, 1, 0).load(SeqCst), 0, "{faults:?}");
        assert!(!first.wait_for(Duration::ZERO));
        fences[0].signal();
        first.wait().unwrap();
        second.wait().unwrap();
        assert_eq!(rig.space.stats().devices_lost, 0);
    }
}

#[test]
fn a_device_that_its_driver_loses_gives_its_pages_back() {
    let _watchdog = watchdog();
    let Some(rig) = rig(Faults::Monitor, RestorePolicy::Lazy, LONG) else { return };
    rig.add(pages(0, 2), 3).wait().unwrap();
    let submission = rig
        .device
        .submit(&[Use { view: &rig.view, pages: one(1) }], |queue| {
            let fence = queue.enqueue(|| ());
            queue.fails.store(true, SeqCst);
            Ok(fence)
        })
        .unwrap();
    assert!(matches!(submission.wait(), Err(SubmissionError::Queue(Hangs))));
    let lost = rig.device.handle().lost().expect("its driver lost it");
    assert_eq!(lost.why, LossReason::Driver);
    assert_eq!((at(&rig.region, 0, 0).load(SeqCst), at(&rig.region, 1, 0).load(SeqCst)), (3, 3));
}

#[test]
fn what_cannot_be_submitted_is_refused_and_holds_nothing() {
    let _watchdog = watchdog();
    let Some(rig) = rig(Faults::Monitor, RestorePolicy::Lazy, LONG) else { return };
    let uses = [Use { view: &rig.view, pages: pages(0, 4) }];
    assert!(matches!(rig.device.submit(&uses, |_| Err(Hangs)), Err(SubmitError::Queue(Hangs))));
    at(&rig.region, 0, 0).store(9, SeqCst);
    let panicked = catch_unwind(AssertUnwindSafe(|| rig.device.submit(&uses, |_| panic!("before the driver has it"))));
    assert!(panicked.is_err());
    assert_eq!(at(&rig.region, 0, 0).load(SeqCst), 9, "nothing waits for what was never submitted");

    let other = Submitter::start(&rig.space, Thread::start()).unwrap();
    let foreign = other.submit(&uses, |_| unreachable!("it has no view of its own"));
    assert!(matches!(foreign, Err(SubmitError::ForeignView { .. })));
    let outside = [Use { view: &rig.view, pages: pages(15, 17) }];
    let outside = rig.device.submit(&outside, |_| unreachable!("behind the end"));
    assert!(matches!(outside, Err(SubmitError::Claim(ClaimError::OutOfRange { .. }))));

    let large = rig.space.allocate(ByteLen(4096 * 4096)).unwrap();
    let view = rig.device.attach(&large).unwrap();
    let scattered: Vec<_> = (0..1025).map(|index| Use { view: &view, pages: one(2 * index) }).collect();
    let refused = rig.device.submit(&scattered, |_| unreachable!("too many"));
    assert!(matches!(refused, Err(SubmitError::TooManyRanges { ranges: 1025, limit: 1024 })));
    // Adjacent and overlapping ones are one.
    let adjacent: Vec<_> = (0..2000).map(|index| Use { view: &view, pages: pages(index, index + 2) }).collect();
    let submission = rig.device.submit(&adjacent, |queue| Ok(queue.enqueue(|| ()))).unwrap();
    submission.wait().unwrap();
    drop(large);
    let gone = rig.device.submit(&adjacent, |_| unreachable!("the region has gone"));
    assert!(matches!(gone, Err(SubmitError::Claim(ClaimError::RegionGone { .. }))));
}

/// More flights than places: a submission waits until one has landed.
#[test]
fn submissions_wait_for_room() {
    let _watchdog = watchdog();
    let Some(rig) = rig(Faults::Monitor, RestorePolicy::Lazy, LONG) else { return };
    let region = rig.space.allocate(ByteLen(2048 * 4096)).unwrap();
    let view = rig.device.attach(&region).unwrap();
    let most: Vec<_> = (0..1000).map(|index| Use { view: &view, pages: one(2 * index) }).collect();
    let went = Arc::new(AtomicU32::new(0));
    for round in 0..3 {
        let counted = went.clone();
        let work = move || {
            a_while();
            counted.fetch_add(1, SeqCst);
        };
        let submitted = rig.device.submit(&most, |queue| {
            assert_eq!(went.load(SeqCst), round, "there was room before the last had landed");
            Ok(queue.enqueue(work))
        });
        drop(submitted.unwrap());
    }
    drop(rig);
    assert_eq!(went.load(SeqCst), 3, "dropping the device waits for what was submitted");
}
