//! `RestorePolicy::Adaptive`, on real memory: which pages it gives back, and what it does about a page that is fought over.
#![cfg(not(pagelease_shuttle))]

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};

use pagelease::software::{DevicePage, Item, SoftwareConfig, SoftwareDevice};
use pagelease::{Access, ByteLen, DeviceHandle, Faults, PageRange, Region, RestorePolicy, Space, Stats, View};

use support::{MODES, PLAIN, Plain, at, one, open, page, pages, watchdog};

mod support;

/// Longer than any minimum residency of a page that is not fought over.
const BREAK: Duration = Duration::from_millis(1);

/// Hardly any time.
const MOMENT: Duration = Duration::from_micros(20);

/// The longest that a device keeps a page which is fought over.
const MINIMUM_MAX_NS: u64 = 4_000_000;

struct World {
    view: View,
    region: Region,
    _device: DeviceHandle<Plain>,
    space: Space,
}

impl World {
    fn new(faults: Faults, policy: RestorePolicy, pages: usize) -> Option<Self> {
        let space = open(Space::builder().faults(faults).restore(policy).hold_limit(Duration::MAX))?;
        let region = space.allocate(ByteLen(pages * 4096)).unwrap();
        let device = space.register(PLAIN).unwrap();
        let view = region.attach(&device).unwrap();
        Some(Self { view, region, _device: device, space })
    }

    fn lease(&self, pages: PageRange) {
        self.view.claim(pages, Access::Exclusive).unwrap().end().unwrap();
    }

    fn touch(&self, index: u32) {
        at(&self.region, index, 0).fetch_add(1, SeqCst);
    }

    /// A lease, and then the CPU touches what it is to touch; `rounds` times.
    fn rounds(&self, rounds: usize, leased: PageRange, touched: &[u32]) {
        for _ in 0..rounds {
            self.lease(leased);
            touched.iter().for_each(|&index| self.touch(index));
            thread::sleep(BREAK);
        }
    }

    fn stats(&self) -> Stats {
        self.space.stats()
    }
}

/// In both fault modes, with the adaptive policy.
fn adaptive(pages: usize, test: impl Fn(&World)) {
    let _watchdog = watchdog();
    for faults in MODES {
        let Some(world) = World::new(faults, RestorePolicy::Adaptive, pages) else { return };
        test(&world);
        assert_eq!(world.stats().fights, 0, "who works by turns fights with nobody");
        assert_eq!(world.stats().touches_throttled, 0);
    }
}

#[test]
fn it_gives_back_what_the_cpu_touches() {
    adaptive(16, |world| {
        // Out of sequence.
        world.rounds(2, pages(0, 16), &[0, 8, 3]);
        let touches = world.stats().touches;
        for _ in 0..10 {
            world.rounds(1, pages(0, 16), &[0, 8, 3]);
        }
        assert_eq!(world.stats().touches, touches, "nothing traps any more");
        world.lease(pages(0, 16));
        let has: Vec<_> = (0..16).filter(|&index| world.view.has(page(index))).collect();
        // Those between 0 and 3, and between 3 and 8, would each cost a system call more.
        assert_eq!(has, [9, 10, 11, 12, 13, 14, 15]);
        assert_eq!(world.stats().given_back, 11 * 9);
    });
}

#[test]
fn it_keeps_what_lies_far_from_what_it_gives_back() {
    adaptive(32, |world| {
        world.rounds(2, pages(0, 32), &[20, 0]);
        world.lease(pages(0, 32));
        let gone: Vec<_> = (0..32).filter(|&index| !world.view.has(page(index))).collect();
        assert_eq!(gone, [0, 20]);
    });
}

#[test]
fn it_keeps_what_the_device_uses_again() {
    adaptive(16, |world| {
        world.rounds(20, pages(0, 16), &[]);
        assert_eq!(world.stats().given_back, 0);
        assert_eq!(world.stats().pages_claimed, 16, "all later claims join");
    });
}

#[test]
fn it_changes_its_mind() {
    adaptive(4, |world| {
        for _ in 0..2 {
            (0..5).for_each(|_| world.rounds(1, pages(0, 4), &[0, 2, 1, 3]));
            world.lease(pages(0, 4));
            assert!((0..4).all(|index| !world.view.has(page(index))), "it gives back");
            // The device alone: after a while it looks, finds that nobody wants them, and keeps them.
            (0..300).for_each(|_| world.lease(pages(0, 4)));
            assert!((0..4).all(|index| world.view.has(page(index))), "it keeps");
            let claimed = world.stats().pages_claimed;
            (0..300).for_each(|_| world.lease(pages(0, 4)));
            assert_eq!(world.stats().pages_claimed, claimed, "for good");
        }
    });
}

#[test]
fn what_another_lease_holds_stays() {
    adaptive(2, |world| {
        world.rounds(2, pages(0, 2), &[1, 0]);
        let other = world.view.claim(one(0), Access::Exclusive).unwrap();
        world.lease(pages(0, 2));
        assert!(world.view.has(page(0)) && !world.view.has(page(1)));
        other.end().unwrap();
        assert!(!world.view.has(page(0)));
    });
}

/// Operations on pages that the device has already make no claim. They count all the same.
#[test]
fn it_learns_of_jobs_that_claim_nothing() {
    let _watchdog = watchdog();
    for faults in MODES {
        let Some(space) = open(Space::builder().faults(faults).restore(RestorePolicy::Adaptive)) else { return };
        let region = space.allocate(ByteLen(4096)).unwrap();
        let device = SoftwareDevice::start(&space, SoftwareConfig::default()).unwrap();
        let view = device.attach(&region).unwrap();
        for round in 1..=100 {
            device.submit(&view, add_one, &[Item::new(0, 0)]).wait().unwrap();
            if round % 10 == 0 {
                assert_eq!(at(&region, 0, 0).load(SeqCst), round);
                thread::sleep(BREAK);
            }
        }
        let stats = space.stats();
        assert_eq!((stats.claims, stats.given_back, stats.fights), (10, 0, 0), "{stats:?}");
    }
}

fn add_one(page: &DevicePage<'_>, _: u64) {
    page.update(0, |value| value + 1);
}

/// A device that holds the page until a touch disturbs it, and a thread that touches it again and again, until `enough`.
/// Returns how long the longest access took. Both sleep a little between, so that on a busy machine each runs soon when it
/// has something to do: three disturbed claims make a fight only if they follow each other closely.
fn fight(world: &World, enough: impl Fn(&Stats) -> bool) -> Duration {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let toucher = scope.spawn(|| {
            let mut longest = Duration::ZERO;
            while !over.load(SeqCst) {
                let begin = Instant::now();
                world.touch(0);
                longest = longest.max(begin.elapsed());
                thread::sleep(MOMENT);
            }
            longest
        });
        while !enough(&world.stats()) {
            let lease = world.view.claim(one(0), Access::Exclusive).unwrap();
            let (touches, held) = (world.stats().touches, Instant::now());
            while world.stats().touches == touches && held.elapsed() < Duration::from_millis(5) {
                let word = &world.view.words(page(0))[1];
                word.store(word.load(SeqCst) + 1, SeqCst);
                thread::sleep(MOMENT);
            }
            lease.end().unwrap();
        }
        over.store(true, SeqCst);
        toucher.join().unwrap()
    })
}

#[test]
fn a_fight_is_noticed_and_both_sides_go_on() {
    let _watchdog = watchdog();
    for faults in MODES {
        let Some(world) = World::new(faults, RestorePolicy::Adaptive, 1) else { return };
        let longest = fight(&world, |stats| stats.touches_throttled >= 10);
        let stats = world.stats();
        assert!(stats.fights >= 1 && stats.residency_waits >= 1, "{stats:?}");
        assert!((1..=MINIMUM_MAX_NS).contains(&stats.throttle_ns_max), "{stats:?}");
        assert_eq!(stats.holds_broken, 0, "to wait is not to break a hold: {stats:?}");
        // A second for a busy machine.
        assert!(longest < Duration::from_nanos(MINIMUM_MAX_NS) + Duration::from_secs(1), "{longest:?}");
        assert!(at(&world.region, 0, 0).load(SeqCst) > 0 && at(&world.region, 0, 1).load(SeqCst) > 0);
    }
}

#[test]
fn a_touch_right_after_a_fight_gets_its_page() {
    let _watchdog = watchdog();
    for faults in MODES {
        let Some(world) = World::new(faults, RestorePolicy::Adaptive, 1) else { return };
        fight(&world, |stats| stats.touches_throttled >= 3);
        // The device takes it once more, and claims nothing after that: nothing but its time brings the page back.
        world.lease(one(0));
        let begin = Instant::now();
        world.touch(0);
        assert!(begin.elapsed() < Duration::from_secs(1));
        assert!(!world.view.has(page(0)));
    }
}

#[test]
fn nothing_is_throttled_with_the_other_policies() {
    let _watchdog = watchdog();
    for policy in [RestorePolicy::Lazy, RestorePolicy::Eager] {
        for faults in MODES {
            let Some(world) = World::new(faults, policy, 1) else { return };
            fight(&world, |stats| stats.claims >= 50);
            assert_eq!((world.stats().fights, world.stats().touches_throttled), (0, 0), "{policy:?}");
        }
    }
}

/// A region goes while a touch leaves its page with the device.
#[test]
fn a_region_dropped_in_a_fight() {
    let _watchdog = watchdog();
    for faults in MODES {
        for _ in 0..5 {
            let Some(world) = World::new(faults, RestorePolicy::Adaptive, 1) else { return };
            fight(&world, |stats| stats.touches_throttled >= 3);
            let World { view, region, space, _device } = world;
            drop(view);
            drop(region);
            // What monitors still had in mind of it harms no other.
            let other = space.allocate(ByteLen(4096)).unwrap();
            thread::sleep(Duration::from_millis(6));
            at(&other, 0, 0).fetch_add(1, SeqCst);
        }
    }
}

/// Neither side starves, and no update is lost, while two threads and a software device do nothing but fight.
#[test]
fn threads_and_a_software_device_on_one_page() {
    const OPERATIONS: usize = 200_000;
    let _watchdog = watchdog();
    for faults in MODES {
        let Some(space) = open(Space::builder().faults(faults).restore(RestorePolicy::Adaptive)) else { return };
        let region = space.allocate(ByteLen(4096)).unwrap();
        let device = SoftwareDevice::start(&space, SoftwareConfig::default()).unwrap();
        let view = device.attach(&region).unwrap();
        let job = device.submit(&view, add_one, &vec![Item::new(0, 0); OPERATIONS]);
        let by_cpu: usize = thread::scope(|scope| {
            let threads = [(); 2].map(|()| {
                scope.spawn(|| {
                    let mut made = 0;
                    while !job.is_over() {
                        at(&region, 0, 0).fetch_add(1, SeqCst);
                        made += 1;
                    }
                    made
                })
            });
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        job.wait().unwrap();
        assert_eq!(at(&region, 0, 0).load(SeqCst), (by_cpu + OPERATIONS) as u64);
    }
}
