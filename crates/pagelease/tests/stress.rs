//! CPU threads (`fetch_add`) and software devices (a load, a pause, a store) count in the same words, while claims, restores,
//! prefetches and drops come at random, on every kind of memory. Not one update may be lost.
//!
//! `PAGELEASE_SEED` repeats a run as far as the scheduler allows; `PAGELEASE_STRESS_FACTOR` makes it longer, or, below 1, shorter;
//! after `PAGELEASE_STRESS_SECONDS` a run's devices begin nothing more, whatever they have done by then.
#![cfg(not(pagelease_shuttle))]

use std::io::Write as _;
use std::sync::Barrier;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pagelease::software::{DevicePage, Item, Job, SoftwareConfig, SoftwareDevice};
use pagelease::{
    Access, AttachError, BackendKind, ByteLen, ClaimError, DeviceHandle, Faults, Lease, PageIndex, PageRange, Region,
    RestorePolicy, Space, SpaceBuilder, SpaceError, Stats, View,
};

use support::memory::{HUGE_PAGES_MAX, Memory};
use support::{MODES, PLAIN, Rng, at, open, pages, patient, watchdog};

mod support;

const REGIONS: usize = 2;
const PAGES: u32 = 12;
// The two that stay, and one that comes and goes.
const _: () = assert!(3 * PAGES <= HUGE_PAGES_MAX);
/// Words of a page that are counted in, far enough apart not to share a cache line.
const WORDS: [usize; 3] = [0, 100, 511];

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count, and a factor within reason")]
fn scaled(count: u32) -> u32 {
    let factor = std::env::var("PAGELEASE_STRESS_FACTOR").ok().and_then(|factor| factor.parse().ok()).unwrap_or(1.0);
    (f64::from(count) * factor).ceil() as u32
}

/// How long a run's devices may go on.
fn longest() -> Duration {
    let seconds = std::env::var("PAGELEASE_STRESS_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    seconds.map_or(Duration::MAX, Duration::from_secs)
}

fn seed() -> u64 {
    let now = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| now.as_secs() << 20 | u64::from(now.subsec_micros()))
    };
    let seed = std::env::var("PAGELEASE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(now);
    eprintln!("PAGELEASE_SEED={seed}");
    seed
}

/// How often each word has been added to.
struct Tally(Vec<u64>);

impl Tally {
    fn new() -> Self {
        Self(vec![0; REGIONS * PAGES as usize * WORDS.len()])
    }

    fn add(&mut self, region: usize, page: u32, word: usize) {
        self.0[(region * PAGES as usize + page as usize) * WORDS.len() + word] += 1;
    }

    fn merge(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(mine, theirs)| *mine += theirs);
    }
}

#[derive(Copy, Clone, Debug)]
struct Setting {
    memory: Memory,
    backend: BackendKind,
    faults: Faults,
    policy: RestorePolicy,
    /// Leases are never broken, so that somebody can count under one. Otherwise they are broken all the time.
    patient: bool,
}

struct Run<'a> {
    setting: Setting,
    space: &'a Space,
    regions: &'a [Region],
    start: &'a Barrier,
    /// Devices that have something to do.
    operating: &'a AtomicU32,
    stop: &'a AtomicBool,
}

impl Run<'_> {
    /// A CPU thread: until the devices are done, and not without end.
    fn touch(&self, mut rng: Rng, operations: u32) -> Tally {
        let mut tally = Tally::new();
        self.start.wait();
        for _ in 0..operations {
            let (region, word) = (rng.below(2) as usize, rng.below(3) as usize);
            // One page, or some in sequence, so that neighbours come along.
            let touched = if rng.one_in(20) { rng.range(PAGES, PAGES) } else { rng.range(PAGES, 1) };
            for index in touched.iter() {
                at(&self.regions[region], index.0, WORDS[word]).fetch_add(1, SeqCst);
                tally.add(region, index.0, word);
            }
            match rng.below(64) {
                0 => thread::sleep(Duration::from_micros(u64::from(rng.below(200)))),
                1..32 => thread::yield_now(),
                _ => {}
            }
            if self.operating.load(SeqCst) == 0 {
                break;
            }
        }
        tally
    }

    /// A software device: jobs, and now and then a view that is dropped while they run.
    fn operate(&self, mut rng: Rng, rounds: u32) -> Tally {
        let mut tally = Tally::new();
        // Short operations, or such that are still under way when the CPU has its page back, were they not waited for.
        let pause = if rng.one_in(2) { 10 } else { 300 };
        let device = SoftwareDevice::start(self.space, SoftwareConfig { workers: 2, pause, exclusive: true }).unwrap();
        let mut views = [None, None];
        let mut jobs: Vec<Job> = Vec::new();
        self.start.wait();
        let (begin, longest) = (Instant::now(), longest());
        for round in 0..rounds {
            if round > 0 && begin.elapsed() > longest {
                break;
            }
            let region = rng.below(2) as usize;
            let view = views[region].get_or_insert_with(|| attach(&self.regions[region], device.handle()));
            let mut items = Vec::new();
            for _ in 0..rng.below(60) + 1 {
                let (index, word) = (rng.below(PAGES), rng.below(3) as usize);
                items.push(Item::new(index, WORDS[word] as u64));
                tally.add(region, index, word);
            }
            jobs.push(device.submit(view, count, &items));
            if rng.one_in(10) {
                views[region] = None;
            }
            if rng.one_in(3) {
                jobs.drain(..).for_each(|job| job.wait().unwrap());
            }
        }
        jobs.drain(..).for_each(|job| job.wait().unwrap());
        assert_eq!(device.handle().lost(), None);
        self.operating.fetch_sub(1, SeqCst);
        tally
    }

    /// Everything else, until it is told to stop.
    fn meddle(&self, mut rng: Rng) -> Tally {
        let mut tally = Tally::new();
        let device = self.space.register(PLAIN).unwrap();
        let mut views = [None, None];
        let mut leases: Vec<Lease> = Vec::new();
        self.start.wait();
        while !self.stop.load(SeqCst) {
            let region = rng.below(2) as usize;
            match rng.below(12) {
                0..=4 => {
                    let view = views[region].get_or_insert_with(|| attach(&self.regions[region], &device));
                    let (lease, claimed) = claim(view, &mut rng);
                    if self.setting.patient {
                        // One at a time: whoever held one and waited for another could wait for ever.
                        count_under(lease, &claimed, view, region, &mut rng, &mut tally);
                    } else if leases.len() < 4 {
                        leases.push(lease);
                    }
                }
                5 | 6 if !leases.is_empty() => {
                    let which = rng.below(u32::try_from(leases.len()).expect("a few")) as usize;
                    // Whole or broken, as the touches had it.
                    let _ = leases.swap_remove(which).end();
                }
                7 => self.regions[region].prefetch(rng.range(PAGES, PAGES)),
                8 => {
                    leases.clear();
                    views[region] = None;
                }
                9 => self.come_and_go(&mut rng),
                10 => thread::sleep(Duration::from_micros(u64::from(rng.below(300)))),
                _ => thread::yield_now(),
            }
        }
        tally
    }

    /// A region and devices that exist for a moment, and are dropped in whatever order.
    fn come_and_go(&self, rng: &mut Rng) {
        let made = self.setting.memory.allocate(self.space, PAGES).unwrap();
        let region = &made.region;
        let device =
            SoftwareDevice::start(self.space, SoftwareConfig { workers: 2, ..SoftwareConfig::default() }).unwrap();
        let plain = self.space.register(PLAIN).unwrap();
        let (view, other) = (device.attach(region).unwrap(), region.attach(&plain).unwrap());
        let items: Vec<_> = (0..PAGES).map(|index| Item::new(index, 0)).collect();
        let job = device.submit(&view, count, &items);
        let lease = other.claim(rng.range(PAGES, 3), Access::Exclusive);
        if rng.one_in(2) {
            drop(lease);
            job.wait().unwrap();
            let total: u64 = (0..PAGES).map(|index| at(region, index, 0).load(SeqCst)).sum();
            assert_eq!(total, u64::from(PAGES));
        } else if rng.one_in(2) {
            // The job may fail: its region goes away.
            drop((made.region, view, other));
            drop(lease);
            let _ = job.wait();
        } else {
            // A device that is dropped does what was submitted first.
            drop((view, other, lease));
            drop((device, plain));
        }
    }
}

fn count(page: &DevicePage<'_>, word: u64) {
    page.update(usize::try_from(word).expect("a word of a page"), |value| value + 1);
}

/// Counts by loads and stores on pages that a lease holds, which nobody breaks.
fn count_under(lease: Lease, claimed: &[PageIndex], view: &View, region: usize, rng: &mut Rng, tally: &mut Tally) {
    for &page in claimed.iter().filter(|_| rng.below(2) == 0).collect::<Vec<_>>() {
        let word = rng.below(3) as usize;
        let cell = &view.words(page)[WORDS[word]];
        let value = cell.load(SeqCst);
        thread::yield_now();
        cell.store(value + 1, SeqCst);
        tally.add(region, page.0, word);
    }
    lease.end().expect("nobody breaks it");
}

/// Attaches, once the device's last view of the region has gone: its jobs may still run.
fn attach<D: pagelease::Device>(region: &Region, device: &DeviceHandle<D>) -> View {
    loop {
        match region.attach(device) {
            Ok(view) => return view,
            Err(AttachError::AlreadyAttached { .. }) => thread::sleep(Duration::from_micros(100)),
            Err(error) => panic!("{error}"),
        }
    }
}

/// Claims something at random; returns the pages too.
fn claim(view: &View, rng: &mut Rng) -> (Lease, Vec<PageIndex>) {
    let access = if rng.one_in(3) { Access::ExclusiveWrite } else { Access::Exclusive };
    let mut ranges = vec![rng.range(PAGES, 6)];
    if rng.one_in(3) {
        ranges = (0..PAGES / 3).map(|n| pages(3 * n, 3 * n + 1 + n % 2)).collect();
        ranges.retain(|range| range.start() == 0 || rng.one_in(2));
    }
    let lease = match view.claim_scattered(&ranges, access) {
        Err(ClaimError::Unsupported { .. }) => view.claim_scattered(&ranges, Access::Exclusive),
        claimed => claimed,
    };
    (lease.unwrap(), ranges.into_iter().flat_map(PageRange::iter).collect())
}

/// What the run came to.
fn run(setting: Setting, rng: &mut Rng) -> Stats {
    // Where all is slow, a hold that is broken before anything is done helps nobody.
    let limit = if setting.patient { Duration::MAX } else { patient(Duration::from_micros(500)) };
    let builder = Space::builder().faults(setting.faults).restore(setting.policy).hold_limit(limit);
    let space = of_backend(builder, setting.backend).build().unwrap();
    let made = (0..REGIONS).map(|_| setting.memory.allocate(&space, PAGES).unwrap());
    // In the order in which they may not go.
    let (_memory, regions): (Vec<_>, Vec<_>) = made.map(|made| (made.memory, made.region)).unzip();
    assert!(regions.iter().all(|region| region.backend() == setting.backend));
    let (start, operating, stop) = (Barrier::new(5), AtomicU32::new(2), AtomicBool::new(false));
    let run = Run { setting, space: &space, regions: &regions, start: &start, operating: &operating, stop: &stop };
    let mut expected = Tally::new();
    thread::scope(|scope| {
        let run = &run;
        let meddler = rng.fork();
        let meddler = scope.spawn(move || run.meddle(meddler));
        let mut workers = Vec::new();
        for _ in 0..2 {
            let (touches, operations) = (rng.fork(), rng.fork());
            workers.push(scope.spawn(move || run.touch(touches, scaled(1_000_000))));
            workers.push(scope.spawn(move || run.operate(operations, scaled(800))));
        }
        let tallies: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        stop.store(true, SeqCst);
        tallies.into_iter().for_each(|tally| expected.merge(&tally.unwrap()));
        expected.merge(&meddler.join().unwrap());
    });
    let mut lost = 0;
    for (number, region) in regions.iter().enumerate() {
        for index in 0..PAGES {
            for (word, &offset) in WORDS.iter().enumerate() {
                let wanted = expected.0[(number * PAGES as usize + index as usize) * WORDS.len() + word];
                let found = at(region, index, offset).load(SeqCst);
                if found != wanted {
                    eprintln!("region {number}, page {index}, word {offset}: {found} of {wanted}");
                    lost += 1;
                }
            }
        }
    }
    let stats = space.stats();
    assert_eq!(lost, 0, "words that are wrong: {setting:?} {stats:?}");
    assert_eq!((stats.invalidations_spurious, stats.devices_lost), (0, 0), "{setting:?} {stats:?}");
    assert_eq!((stats.covers_failed, stats.restores_failed), (0, 0), "{setting:?} {stats:?}");
    assert!(!setting.patient || stats.holds_broken == 0, "{stats:?}");
    stats
}

/// Adopted memory has its own, whatever a space allocates.
fn of_backend(builder: SpaceBuilder, backend: BackendKind) -> SpaceBuilder {
    if backend == BackendKind::Move { builder } else { builder.backend(backend) }
}

/// `Err`: why there is no such memory here.
fn try_out(memory: Memory, backend: BackendKind, faults: Faults) -> Result<(), String> {
    let space = match of_backend(Space::builder().faults(faults), backend).build() {
        Ok(space) => space,
        Err(SpaceError::Userfaultfd(refused)) => return Err(refused.to_string()),
        Err(error) => panic!("{error}"),
    };
    match memory.try_out(&space) {
        Err(missing) if missing.is_the_machine_s() => Err(missing.to_string()),
        tried => tried.map_err(|error| panic!("{error}")),
    }
}

fn stress(rig: &str, memory: Memory, backend: BackendKind, faults: Faults) {
    let _watchdog = watchdog();
    if let Err(reason) = try_out(memory, backend, faults) {
        // Not `eprintln`, which the test harness captures.
        let _ = writeln!(std::io::stderr(), "skipped: {rig}: {reason}");
        return;
    }
    let mut rng = Rng::new(seed());
    let mut broken = 0;
    let setting = |policy, patient| Setting { memory, backend, faults, policy, patient };
    for policy in [RestorePolicy::Lazy, RestorePolicy::Eager, RestorePolicy::Adaptive] {
        for patient in [false, true] {
            // A short one may be over before anybody was in another's way, which is not much of a stress. The watchdog sees to it
            // that it comes to one.
            while {
                let stats = run(setting(policy, patient), &mut rng);
                broken += stats.holds_broken;
                stats.touches == 0 || stats.restores == 0 || stats.claims == 0
            } {}
        }
    }
    while broken == 0 {
        broken += run(setting(RestorePolicy::Lazy, false), &mut rng).holds_broken;
    }
}

/// A module a rig, named as in the conformance suite: the memory, its backend, and who serves its touches.
macro_rules! rigs {
    ($($rig:ident: $memory:ident $backend:ident $faults:ident)+) => {
        $(mod $rig {
            #[test]
            fn no_update_is_lost() {
                use pagelease::{BackendKind, Faults};
                let memory = crate::support::memory::Memory::$memory;
                crate::stress(stringify!($rig), memory, BackendKind::$backend, Faults::$faults);
            }
        })+
    };
}

rigs! {
    minor_monitor: Shared Minor Monitor
    minor_in_thread: Shared Minor InThread
    hugetlb_monitor: Huge Minor Monitor
    hugetlb_in_thread: Huge Minor InThread
    rwprotect_monitor: Shared RwProtect Monitor
    rwprotect_in_thread: Shared RwProtect InThread
    mprotect_in_thread: Shared Mprotect InThread
    file_in_thread: File Mprotect InThread
    move_monitor: Adopted Move Monitor
    move_in_thread: Adopted Move InThread
    move_huge_monitor: AdoptedHuge Move Monitor
    move_huge_in_thread: AdoptedHuge Move InThread
}

/// How many updates are lost in one run of a device that does not look whether it has its pages.
fn lost_without_exclusivity(space: &Space, exclusive: bool, pause: u32) -> u64 {
    const OPERATIONS: u32 = 20_000;
    let region = space.allocate(ByteLen(4096)).unwrap();
    let device = SoftwareDevice::start(space, SoftwareConfig { workers: 1, pause, exclusive }).unwrap();
    let view = device.attach(&region).unwrap();
    let items = vec![Item::new(0, 0); OPERATIONS as usize];
    let job = device.submit(&view, count, &items);
    let mut added = 0;
    while !job.is_over() {
        at(&region, 0, 0).fetch_add(1, SeqCst);
        added += 1;
    }
    job.wait().unwrap();
    added + u64::from(OPERATIONS) - at(&region, 0, 0).load(SeqCst)
}

/// The negative control: what these tests count is lost without exclusivity, and only without.
#[test]
fn without_exclusivity_updates_are_lost() {
    let _watchdog = watchdog();
    for faults in MODES {
        let Some(space) = open(Space::builder().faults(faults)) else { return };
        let lost = [20, 200, 2000, 5000].into_iter().find(|&pause| lost_without_exclusivity(&space, false, pause) > 0);
        assert!(lost.is_some(), "nothing is lost without exclusivity: what do the other tests show?");
        assert_eq!(space.stats().claims, 0, "it does not claim");
        assert_eq!(lost_without_exclusivity(&space, true, 20), 0, "{faults:?}");
    }
}
