//! The tests. See the crate.

use std::borrow::Borrow as _;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use pagelease::software::{DevicePage, Item, SoftwareConfig, SoftwareDevice};
use pagelease::{ByteLen, Faults, LossReason, PageIndex, PageRange, Region, Space, SpaceBuilder, View};

use crate::{BEGUN, COUNT, GATE, Job, Kind, Subject, skip};

const MODES: [Faults; 2] = [Faults::Monitor, Faults::InThread];
const PAGES: u32 = 8;
const PAGE: usize = 4096;

/// Longer than any job here takes on a busy machine: a device that is merely slow is not lost.
const LONG: Duration = Duration::from_secs(60);

/// Aborts the process unless it is dropped in time: a deadlock fails instead of hanging.
struct Watchdog {
    _done: Sender<()>,
}

fn watchdog() -> Watchdog {
    let name = thread::current().name().unwrap_or("a test").to_owned();
    let (done, dropped) = channel();
    thread::spawn(move || {
        if dropped.recv_timeout(2 * LONG) == Err(RecvTimeoutError::Timeout) {
            use std::io::Write as _;
            let _ = writeln!(std::io::stderr(), "\n*** {name} has not ended after {:?}: a deadlock?", 2 * LONG);
            std::process::abort();
        }
    });
    Watchdog { _done: done }
}

/// A device, its view of a region, and what they are in. Dropped in this order: the view before its device.
struct Rig<K: Kind> {
    view: <K::Device as Subject>::View,
    device: K::Device,
    region: Region,
    space: Space,
}

impl<K: Kind> Rig<K> {
    fn new(builder: SpaceBuilder) -> Option<Self> {
        let space = match builder.build() {
            Ok(space) => space,
            Err(refused) => {
                skip::<K>(&refused.to_string());
                return None;
            }
        };
        let device = match K::start(&space) {
            Ok(device) => device,
            Err(why) => {
                skip::<K>(&why);
                return None;
            }
        };
        let region = space.allocate(ByteLen(PAGES as usize * PAGE)).expect("a few pages");
        let view = device.attach(&region);
        Some(Self { view, device, region, space })
    }

    fn view(&self) -> &View {
        self.view.borrow()
    }

    fn word(&self, page: u32, word: usize) -> &AtomicU64 {
        &self.region.words()[page as usize * (PAGE / 8) + word]
    }

    /// As the device sees it: not a touch.
    fn seen(&self, page: u32, word: usize) -> &AtomicU64 {
        &self.view().words(PageIndex(page))[word]
    }

    fn add(&self, pages: PageRange, rounds: u32) {
        self.device.start(&self.view, Job::Add { pages, rounds }).wait().expect("nothing is lost");
    }
}

fn pages(start: u32, end: u32) -> PageRange {
    PageRange::new(start, end).expect("not empty")
}

/// Long enough for another thread to do something wrong in. No test fails because it is too short.
fn a_while() {
    thread::sleep(Duration::from_millis(50));
}

fn wait_until(what: impl Fn() -> bool) {
    while !what() {
        thread::sleep(Duration::from_millis(1));
    }
}

/// See the crate; so for the others.
pub fn counts_are_exact<K: Kind>() {
    let _watchdog = watchdog();
    for faults in MODES {
        let Some(rig) = Rig::<K>::new(Space::builder().faults(faults).drain_limit(LONG)) else { return };
        // Long enough that a driver in software is not done before a CPU thread meets it.
        let (jobs, rounds, used) = (40, 2000, 3);
        let over = AtomicBool::new(false);
        let by_cpu: u64 = thread::scope(|scope| {
            let adding: Vec<_> = (0..2)
                .map(|first| {
                    let (region, over) = (&rig.region, &over);
                    scope.spawn(move || {
                        let mut made = 0;
                        for page in (0..used).cycle().skip(first).take_while(|_| !over.load(SeqCst)) {
                            region.words()[page * (PAGE / 8) + COUNT].fetch_add(1, SeqCst);
                            made += 1;
                        }
                        made
                    })
                })
                .collect();
            for _ in 0..jobs {
                rig.add(pages(0, 3), rounds);
            }
            over.store(true, SeqCst);
            adding.into_iter().map(|thread| thread.join().expect("it adds")).sum()
        });
        let total: u64 = (0..3).map(|page| rig.word(page, COUNT).load(SeqCst)).sum();
        let by_device = u64::from(jobs * rounds) * used as u64;
        assert_eq!(total, by_cpu + by_device, "{faults:?}: {by_cpu} by the CPU, {by_device} by the device");
        assert_eq!(rig.space.stats().devices_lost, 0);
    }
}

/// Idle.
pub fn a_touch_of_an_idle_device_s_page<K: Kind>() {
    let _watchdog = watchdog();
    for faults in MODES {
        let Some(rig) = Rig::<K>::new(Space::builder().faults(faults).drain_limit(LONG)) else { return };
        for round in 1..=20 {
            rig.add(pages(2, 5), 3);
            let page = 2 + round % 3;
            assert!(rig.view().has(PageIndex(page)), "{faults:?}: it keeps what it has used");
            rig.word(page, COUNT).fetch_add(100, SeqCst);
            assert!(!rig.view().has(PageIndex(page)), "{faults:?}: the CPU has taken it");
        }
        let total: u64 = (2..5).map(|page| rig.word(page, COUNT).load(SeqCst)).sum();
        assert_eq!(total, 20 * 100 + 20 * 3 * 3, "{faults:?}");
    }
}

/// Running.
pub fn a_touch_while_a_job_runs<K: Kind>() {
    let _watchdog = watchdog();
    for faults in MODES {
        let builder = Space::builder().faults(faults).drain_limit(LONG).hold_limit(Duration::from_millis(5));
        let Some(rig) = Rig::<K>::new(builder) else { return };
        let job = rig.device.start(&rig.view, Job::Gated { page: PageIndex(1) });
        wait_until(|| rig.seen(1, BEGUN).load(SeqCst) == 1);
        let touched = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let count = rig.word(1, COUNT).load(SeqCst);
                assert_eq!(count, u64::from(!K::PREEMPTIBLE), "{faults:?}: the touch sees the job half done");
                touched.store(true, SeqCst);
            });
            if K::PREEMPTIBLE {
                wait_until(|| touched.load(SeqCst));
                rig.word(1, GATE).store(1, SeqCst);
            } else {
                a_while();
                assert!(!touched.load(SeqCst), "{faults:?}: the touch did not wait for the job");
                rig.seen(1, GATE).store(1, SeqCst);
            }
        });
        job.wait().expect("nothing is lost");
        assert_eq!(rig.word(1, COUNT).load(SeqCst), 1);
        assert_eq!(rig.space.stats().devices_lost, 0);
    }
}

/// Queued.
pub fn a_touch_while_a_job_is_queued<K: Kind>() {
    let _watchdog = watchdog();
    for faults in MODES {
        let Some(rig) = Rig::<K>::new(Space::builder().faults(faults).drain_limit(LONG)) else { return };
        let first = rig.device.start(&rig.view, Job::Gated { page: PageIndex(0) });
        wait_until(|| rig.seen(0, BEGUN).load(SeqCst) == 1);
        let second = rig.device.start(&rig.view, Job::Add { pages: pages(3, 5), rounds: 10 });
        thread::scope(|scope| {
            scope.spawn(|| {
                // Before, in the middle (of a device that claims as it goes), or behind: never between a load and its store.
                rig.word(4, COUNT).fetch_add(1000, SeqCst);
            });
            a_while();
            rig.seen(0, GATE).store(1, SeqCst);
        });
        first.wait().expect("nothing is lost");
        second.wait().expect("nothing is lost");
        let counts = [0, 3, 4].map(|page| rig.word(page, COUNT).load(SeqCst));
        assert_eq!(counts, [1, 10, 1010], "{faults:?}");
    }
}

/// Loss. A preemptible device cannot be stuck in the way of a touch.
pub fn a_stuck_device_is_lost_and_the_cpu_goes_on<K: Kind>() {
    let _watchdog = watchdog();
    if K::PREEMPTIBLE {
        return;
    }
    for faults in MODES {
        let builder = Space::builder().faults(faults).drain_limit(Duration::from_millis(300));
        let Some(rig) = Rig::<K>::new(builder) else { return };
        let job = rig.device.start(&rig.view, Job::Gated { page: PageIndex(1) });
        wait_until(|| rig.seen(1, BEGUN).load(SeqCst) == 1);
        assert_eq!(rig.word(1, BEGUN).load(SeqCst), 1, "{faults:?}: what it stored before stays");
        let lost = rig.device.lost().expect("it did not end within the drain limit");
        assert!(matches!(lost.why, LossReason::Stuck { page: PageIndex(1), .. }), "{lost}");
        // The device's view is its own by now, and lets it end.
        rig.seen(1, GATE).store(1, SeqCst);
        assert!(job.wait().is_err(), "{faults:?}: the job of a lost device fails");
        wait_until(|| rig.seen(1, COUNT).load(SeqCst) == 1);
        assert_eq!(rig.word(1, COUNT).load(SeqCst), 0, "{faults:?}: a late store reached the CPU's page");
        assert_eq!(rig.space.stats().devices_lost, 1);
    }
}

/// Two kinds.
pub fn two_kinds_on_one_page<K: Kind>() {
    let _watchdog = watchdog();
    for faults in MODES {
        let Some(rig) = Rig::<K>::new(Space::builder().faults(faults).drain_limit(LONG)) else { return };
        let software = SoftwareDevice::start(&rig.space, SoftwareConfig::default()).expect("a thread");
        let view = software.attach(&rig.region).expect("attached once");
        let (jobs, rounds) = (20, 20);
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..jobs {
                    let items = vec![Item::new(0, 1); rounds as usize];
                    let add = |page: &DevicePage<'_>, n| page.update(COUNT, |value| value + n);
                    software.submit(&view, add, &items).wait().expect("nothing is lost");
                }
            });
            scope.spawn(|| {
                for _ in 0..jobs * rounds {
                    rig.word(0, COUNT).fetch_add(1, SeqCst);
                    thread::yield_now();
                }
            });
            for _ in 0..jobs {
                rig.add(pages(0, 1), rounds);
            }
        });
        assert_eq!(rig.word(0, COUNT).load(SeqCst), u64::from(3 * jobs * rounds), "{faults:?}");
    }
}

/// Endings.
pub fn region_and_view_go_while_a_job_runs<K: Kind>() {
    let _watchdog = watchdog();
    for faults in MODES {
        for drops_view in [true, false] {
            let Some(rig) = Rig::<K>::new(Space::builder().faults(faults).drain_limit(LONG)) else { return };
            let Rig { view, device, region, space } = rig;
            // Another view of the memory, which outlives the region.
            let witness = SoftwareDevice::start(&space, SoftwareConfig::default()).expect("a thread");
            let seen = witness.attach(&region).expect("attached once");
            let job = device.start(&view, Job::Add { pages: pages(0, PAGES), rounds: 20 });
            if drops_view {
                // The job has a handle of its own.
                drop(view);
                job.wait().expect("nothing is lost");
                let counts = (0..PAGES).map(|page| region.words()[page as usize * (PAGE / 8) + COUNT].load(SeqCst));
                assert!(counts.eq([20; PAGES as usize]), "{faults:?}");
                continue;
            }
            drop(region);
            let count = |page| seen.words(PageIndex(page))[COUNT].load(SeqCst);
            let before: Vec<_> = (0..PAGES).map(count).collect();
            a_while();
            assert_eq!((0..PAGES).map(count).collect::<Vec<_>>(), before, "{faults:?}: it works on after the drop");
            // All of it was done, or it was told that the region has gone.
            let done = before.iter().all(|&count| count == 20);
            assert_eq!(job.wait().is_ok(), done, "{faults:?}");
        }
    }
}
