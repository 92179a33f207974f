//! What happens when somebody does not let go: leases that never end, operations that hang or panic, threads that wait for
//! themselves, system calls that touch a device's page.
#![cfg(not(pagelease_shuttle))]

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::Duration;

use pagelease::software::{DevicePage, Item, JobError, SoftwareConfig, SoftwareDevice};
use pagelease::{Access, AttachError, ByteLen, ClaimError, Faults, LossReason, Privilege, Region, Space, SpaceBuilder};

use support::{MODES, PLAIN, a_while, at, one, open, page, pages, wait_until, watchdog};

mod support;

const DRAIN: Duration = Duration::from_millis(200);

fn space(faults: Faults, configure: impl FnOnce(SpaceBuilder) -> SpaceBuilder) -> Option<Space> {
    open(configure(Space::builder().faults(faults)))
}

fn region(space: &Space, pages: usize) -> Region {
    space.allocate(ByteLen(pages * 4096)).unwrap()
}

fn software(space: &Space, workers: usize) -> SoftwareDevice {
    SoftwareDevice::start(space, SoftwareConfig { workers, ..SoftwareConfig::default() }).unwrap()
}

/// What an operation of the device's adds to word 0.
fn add(page: &DevicePage<'_>, n: u64) {
    page.update(0, |value| value + n);
}

// System calls.

struct Pipe([i32; 2]);

impl Pipe {
    fn new() -> Self {
        let mut ends = [0; 2];
        // SAFETY: room for two descriptors.
        assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
        Self(ends)
    }

    /// Writes the word at `address` into the pipe; the error, if it fails.
    fn write_from(&self, address: *mut u64) -> Result<(), i32> {
        // SAFETY: a word that lives; the kernel says so if it cannot be read.
        let written = unsafe { libc::write(self.0[1], address.cast(), 8) };
        if written == 8 { Ok(()) } else { Err(errno()) }
    }

    /// Reads a word from the pipe to `address`.
    fn read_to(&self, address: *mut u64) -> Result<(), i32> {
        // SAFETY: a word that lives and is only accessed atomically; the kernel says so if it cannot be written.
        let read = unsafe { libc::read(self.0[0], address.cast(), 8) };
        if read == 8 { Ok(()) } else { Err(errno()) }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        for end in self.0 {
            // SAFETY: ours, and closed once.
            unsafe { libc::close(end) };
        }
    }
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

#[test]
fn a_system_call_waits_for_the_page_when_monitors_serve() {
    let _watchdog = watchdog();
    let Some(space) = space(Faults::Monitor, |builder| builder.hold_limit(Duration::MAX)) else { return };
    if space.privilege() != Privilege::Full {
        return;
    }
    let (region, device, pipe) = (region(&space, 2), space.register(PLAIN).unwrap(), Pipe::new());
    let view = region.attach(&device).unwrap();
    view.claim(pages(0, 2), Access::Exclusive).unwrap().end().unwrap();
    view.words(page(0))[0].store(11, SeqCst);
    pipe.write_from(at(&region, 0, 0).as_ptr()).unwrap();
    assert!(!view.has(page(0)), "the write took the page back");
    pipe.read_to(at(&region, 1, 0).as_ptr()).unwrap();
    assert_eq!(at(&region, 1, 0).load(SeqCst), 11);
    // While the page is held, the system call waits as any access does.
    let lease = view.claim(one(0), Access::Exclusive).unwrap();
    let went_on = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            pipe.write_from(at(&region, 0, 0).as_ptr()).unwrap();
            went_on.store(true, SeqCst);
        });
        a_while();
        assert!(!went_on.load(SeqCst));
        view.words(page(0))[0].store(12, SeqCst);
        lease.end().unwrap();
    });
    let mut word = 0;
    pipe.read_to(&raw mut word).unwrap();
    assert_eq!(word, 12);
}

#[test]
fn a_system_call_fails_when_the_touching_thread_serves_itself() {
    let _watchdog = watchdog();
    let Some(space) = space(Faults::InThread, |builder| builder) else { return };
    let (region, device, pipe) = (region(&space, 2), space.register(PLAIN).unwrap(), Pipe::new());
    let view = region.attach(&device).unwrap();
    view.claim(pages(0, 2), Access::Exclusive).unwrap().end().unwrap();
    view.words(page(0))[0].store(11, SeqCst);
    assert_eq!(pipe.write_from(at(&region, 0, 0).as_ptr()), Err(libc::EFAULT));
    assert!(view.has(page(0)), "the page stays with the device");
    // A touch, or a prefetch, before the call is what helps.
    assert_eq!(at(&region, 0, 0).load(SeqCst), 11);
    pipe.write_from(at(&region, 0, 0).as_ptr()).unwrap();
    assert_eq!(pipe.read_to(at(&region, 1, 0).as_ptr()), Err(libc::EFAULT));
    region.prefetch(one(1));
    pipe.read_to(at(&region, 1, 0).as_ptr()).unwrap();
    assert_eq!(at(&region, 1, 0).load(SeqCst), 11);
}

// Leases that never end.

#[test]
fn a_lease_that_never_ends_costs_a_wait_and_no_update() {
    let _watchdog = watchdog();
    for faults in MODES {
        let Some(space) = space(faults, |builder| builder.hold_limit(Duration::from_millis(10))) else { return };
        let (region, device) = (region(&space, 2), software(&space, 1));
        let view = device.attach(&region).unwrap();
        let lease = view.claim(pages(0, 2), Access::Exclusive).unwrap();
        let items: Vec<_> = (0..2000).map(|n| Item::new(n % 2, 1)).collect();
        let job = device.submit(&view, add, &items);
        thread::scope(|scope| {
            scope.spawn(|| (0..500).for_each(|n| _ = at(&region, n % 2, 0).fetch_add(1, SeqCst)));
        });
        job.wait().unwrap();
        let broken = lease.end().unwrap_err();
        assert_eq!((broken.pages, broken.lost), (pages(0, 2), 2), "{faults:?}");
        assert_eq!(at(&region, 0, 0).load(SeqCst) + at(&region, 1, 0).load(SeqCst), 2500, "{faults:?}");
    }
}

#[test]
fn free_pages_are_served_while_touches_wait_for_held_ones() {
    let _watchdog = watchdog();
    for monitors in [1, 2] {
        let patient = |builder: SpaceBuilder| builder.hold_limit(Duration::MAX).monitors(monitors);
        let Some(space) = space(Faults::Monitor, patient) else { return };
        let (region, device) = (region(&space, 64), space.register(PLAIN).unwrap());
        let view = region.attach(&device).unwrap();
        let held = view.claim(pages(0, 8), Access::Exclusive).unwrap();
        thread::scope(|scope| {
            for index in 0..16 {
                let region = &region;
                scope.spawn(move || at(region, index % 8, 0).fetch_add(1, SeqCst));
            }
            wait_until(|| space.stats().touches == 16);
            for round in 0..3 {
                view.claim(pages(8, 64), Access::Exclusive).unwrap().end().unwrap();
                // Backwards, so that each is a touch of its own.
                (8..64).rev().for_each(|index| _ = at(&region, index, 0).fetch_add(1, SeqCst));
                assert!((8..64).all(|index| at(&region, index, 0).load(SeqCst) == round + 1));
            }
            assert!((0..8).all(|index| view.has(page(index))));
            held.end().unwrap();
        });
        assert!((0..8).all(|index| at(&region, index, 0).load(SeqCst) == 2));
    }
}

#[test]
fn a_device_that_claims_in_a_loop_does_not_starve_a_touch() {
    const TOUCHES: u64 = 300;
    let _watchdog = watchdog();
    for faults in MODES {
        for workers in [1, 2] {
            let Some(space) = space(faults, |builder| builder) else { return };
            let (region, device) = (region(&space, workers), software(&space, workers));
            let view = device.attach(&region).unwrap();
            let rival = space.register(PLAIN).unwrap();
            let rival = region.attach(&rival).unwrap();
            let done = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| {
                    while !done.load(SeqCst) {
                        drop(rival.claim(region.pages(), Access::Exclusive).unwrap());
                    }
                });
                scope.spawn(|| {
                    while !done.load(SeqCst) {
                        let items: Vec<_> = (0..200).map(|n| Item::new(n % region.pages().len(), 0)).collect();
                        device.submit(&view, add, &items).wait().unwrap();
                    }
                });
                for _ in 0..TOUCHES {
                    while !view.has(page(0)) && !rival.has(page(0)) {
                        thread::yield_now();
                    }
                    at(&region, 0, 0).fetch_add(1, SeqCst);
                }
                done.store(true, SeqCst);
            });
            assert_eq!(at(&region, 0, 0).load(SeqCst), TOUCHES, "{faults:?}");
            // Giving a page back does not run the thread that touched it; but it rarely comes too late.
            assert!(space.stats().touches < 10 * TOUCHES, "{faults:?}: {:?}", space.stats());
        }
    }
}

// A thread that waits for itself.

#[test]
fn a_thread_that_touches_what_it_holds_in_several_chunks_goes_on() {
    let _watchdog = watchdog();
    for faults in MODES {
        let forever = |builder: SpaceBuilder| builder.hold_limit(Duration::MAX).drain_limit(Duration::MAX);
        let Some(space) = space(faults, forever) else { return };
        let (region, device) = (region(&space, 9000), space.register(PLAIN).unwrap());
        let view = region.attach(&device).unwrap();
        let lease = view.claim(region.pages(), Access::Exclusive).unwrap();
        for index in [8999, 4096, 4095, 1] {
            at(&region, index, 0).store(1, SeqCst);
        }
        let broken = lease.end().unwrap_err();
        assert_eq!((broken.first, broken.lost), (page(1), 4), "{faults:?}");
        assert_eq!(space.stats().holds_broken, 0);
    }
}

#[test]
fn a_prefetch_of_what_the_thread_itself_holds_does_not_wait() {
    let _watchdog = watchdog();
    for faults in MODES {
        let Some(space) = space(faults, |builder| builder.hold_limit(Duration::from_secs(20))) else { return };
        let (region, device) = (region(&space, 8), space.register(PLAIN).unwrap());
        let view = region.attach(&device).unwrap();
        let lease = view.claim(pages(2, 6), Access::Exclusive).unwrap();
        region.prefetch(pages(0, 4));
        let broken = lease.end().unwrap_err();
        assert_eq!((broken.first, broken.lost), (page(2), 2));
        let stats = space.stats();
        assert_eq!((stats.holds_broken, stats.holds_broken_by_self, stats.restores), (0, 2, 2), "{faults:?}");
        assert!(view.has(page(4)) && !view.has(page(3)));
    }
}

#[test]
fn an_operation_that_touches_the_cpu_view_of_its_own_page_goes_on() {
    let _watchdog = watchdog();
    for faults in MODES {
        let forever = |builder: SpaceBuilder| builder.hold_limit(Duration::MAX).drain_limit(Duration::MAX);
        let Some(space) = space(faults, forever) else { return };
        let (region, device) = (Arc::new(region(&space, 4)), software(&space, 1));
        let view = device.attach(&region).unwrap();
        let region_too = region.clone();
        let touch = move |page: &DevicePage<'_>, index: u64| {
            page.store(0, 5);
            let index = u32::try_from(index).unwrap();
            assert_eq!(at(&region_too, index, 0).fetch_add(1, SeqCst), 5);
        };
        // Pages that it claims for the operation (held), and then such as it has already (not held).
        for _ in 0..2 {
            let items: Vec<_> = (0..4).map(|index| Item::new(index, u64::from(index))).collect();
            device.submit(&view, touch.clone(), &items).wait().unwrap();
            assert!((0..4).all(|index| at(&region, index, 0).load(SeqCst) == 6), "{faults:?}");
            view.claim(region.pages(), Access::Exclusive).unwrap().end().unwrap();
        }
        assert_eq!(device.handle().lost(), None);
    }
}

// Operations that hang.

/// Where an operation hangs until it is let go.
#[derive(Default)]
struct Gate {
    entered: AtomicBool,
    open: AtomicBool,
    left: AtomicBool,
}

impl Gate {
    /// Stores 1 to word 0, hangs, and stores to words 0 and 1 when it is too late.
    fn operation(self: &Arc<Self>) -> impl Fn(&DevicePage<'_>, u64) + use<> {
        let gate = self.clone();
        move |page, _| {
            page.store(0, 1);
            gate.entered.store(true, SeqCst);
            wait_until(|| gate.open.load(SeqCst));
            page.store(0, 98);
            page.store(1, 99);
            gate.left.store(true, SeqCst);
        }
    }

    fn let_go(&self) {
        self.open.store(true, SeqCst);
        wait_until(|| self.left.load(SeqCst));
    }
}

#[derive(Copy, Clone, Debug)]
enum Wanted {
    Touched,
    Claimed,
    Prefetched,
}

fn a_stuck_device_is_lost(faults: Faults, wanted: Wanted) {
    let Some(space) = space(faults, |builder| builder.drain_limit(DRAIN).hold_limit(Duration::from_millis(20))) else {
        return;
    };
    let (region, stuck, other) = (region(&space, 8), software(&space, 1), software(&space, 2));
    let (view, other_view) = (stuck.attach(&region).unwrap(), other.attach(&region).unwrap());
    stuck.submit(&view, add, &[Item::new(1, 41), Item::new(2, 42)]).wait().unwrap();
    other.submit(&other_view, add, &[Item::new(5, 50)]).wait().unwrap();
    let gate = Arc::new(Gate::default());
    let job = stuck.submit(&view, gate.operation(), &[Item::new(0, 0), Item::new(3, 0)]);
    wait_until(|| gate.entered.load(SeqCst));

    match wanted {
        Wanted::Touched => assert_eq!(at(&region, 0, 0).load(SeqCst), 1, "a store before the loss stays"),
        Wanted::Prefetched => region.prefetch(one(0)),
        Wanted::Claimed => {
            other_view.claim(one(0), Access::Exclusive).unwrap().end().unwrap();
            assert_eq!(other_view.words(page(0))[0].load(SeqCst), 1);
        }
    }
    let error = job.wait().unwrap_err();
    let JobError::Lost(lost) = &error else { panic!("{error}") };
    let expected = LossReason::Stuck { region: region.id().get(), page: page(0), limit: DRAIN };
    assert_eq!((lost.device, lost.why), (stuck.handle().id(), expected));
    for part in ["page 0", "200ms", "register a new one"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    at(&region, 0, 1).store(7, SeqCst);

    // Its other pages come back; it is given none any more.
    assert_eq!((at(&region, 1, 0).load(SeqCst), at(&region, 2, 0).load(SeqCst)), (41, 42));
    let refused = view.claim(one(4), Access::Exclusive).expect_err("refused");
    assert!(matches!(refused, ClaimError::Lost(again) if again == *lost), "{refused}");
    let elsewhere = space.allocate(ByteLen(1)).unwrap();
    assert!(matches!(stuck.attach(&elsewhere), Err(AttachError::Lost(again)) if again == *lost));

    // Another device goes on, on that page too.
    assert!(other_view.has(page(5)));
    other.submit(&other_view, add, &[Item::new(5, 5), Item::new(0, 10)]).wait().unwrap();
    assert_eq!((at(&region, 5, 0).load(SeqCst), at(&region, 0, 0).load(SeqCst)), (55, 11));

    gate.let_go();
    assert_eq!((at(&region, 0, 0).load(SeqCst), at(&region, 0, 1).load(SeqCst)), (11, 7), "late stores land nowhere");
    assert_eq!(at(&region, 3, 0).load(SeqCst), 0, "the lost device does nothing more");
    let stats = space.stats();
    assert_eq!((stats.devices_lost, stats.covers_failed, stats.invalidations_spurious), (1, 0, 0), "{wanted:?}");
    assert_eq!(other.handle().lost(), None);
}

#[test]
fn a_stuck_device_is_lost_when_the_cpu_touches_its_page() {
    let _watchdog = watchdog();
    MODES.into_iter().for_each(|faults| a_stuck_device_is_lost(faults, Wanted::Touched));
}

#[test]
fn a_stuck_device_is_lost_when_another_claims_its_page() {
    let _watchdog = watchdog();
    MODES.into_iter().for_each(|faults| a_stuck_device_is_lost(faults, Wanted::Claimed));
}

#[test]
fn a_stuck_device_is_lost_when_its_page_is_prefetched() {
    let _watchdog = watchdog();
    MODES.into_iter().for_each(|faults| a_stuck_device_is_lost(faults, Wanted::Prefetched));
}

#[test]
fn everything_can_be_dropped_while_an_operation_hangs() {
    let _watchdog = watchdog();
    for faults in MODES {
        for touched in [true, false] {
            let Some(space) = space(faults, |builder| builder.drain_limit(DRAIN)) else { return };
            let (region, device) = (region(&space, 2), software(&space, 2));
            let view = device.attach(&region).unwrap();
            let gate = Arc::new(Gate::default());
            let job = device.submit(&view, gate.operation(), &[Item::new(0, 0)]);
            wait_until(|| gate.entered.load(SeqCst));
            if touched {
                assert_eq!(at(&region, 0, 0).load(SeqCst), 1);
            }
            drop((view, region));
            assert!(device.handle().lost().is_some(), "dropping the region takes the page from the device");
            drop((device, space));
            assert!(job.wait().is_err());
            gate.let_go();
        }
    }
}

/// A slow operation is not a stuck one, however long touches, claims and prefetches wait for it.
#[test]
fn a_slow_operation_is_waited_for() {
    let _watchdog = watchdog();
    for faults in MODES {
        let Some(space) = space(faults, |builder| builder.hold_limit(Duration::from_millis(1))) else { return };
        let (region, device) = (region(&space, 3), software(&space, 3));
        let rival = space.register(PLAIN).unwrap();
        let (view, rival) = (device.attach(&region).unwrap(), region.attach(&rival).unwrap());
        let slow = |page: &DevicePage<'_>, n: u64| {
            let before = page.load(0);
            thread::sleep(Duration::from_millis(100));
            page.store(0, before + n);
        };
        for round in 1..=3 {
            let job = device.submit(&view, slow, &[Item::new(0, 1), Item::new(1, 1), Item::new(2, 1)]);
            wait_until(|| (0..3).all(|index| view.has(page(index))));
            thread::scope(|scope| {
                scope.spawn(|| at(&region, 0, 0).fetch_add(1, SeqCst));
                scope.spawn(|| rival.claim(one(1), Access::Exclusive).map(drop));
                scope.spawn(|| region.prefetch(one(2)));
            });
            job.wait().unwrap();
            assert_eq!(at(&region, 0, 0).load(SeqCst), 2 * round, "{faults:?}");
            assert_eq!([1, 2].map(|index| at(&region, index, 0).load(SeqCst)), [round, round], "{faults:?}");
        }
        assert_eq!(space.stats().devices_lost, 0);
    }
}

// Operations that panic.

/// Panics as `panic!` does, without the message on standard error.
fn panic_quietly() -> ! {
    std::panic::resume_unwind(Box::new("for the test"))
}

/// `waited_for`: a touch waits for the page when the operation on it panics. `held`: so far the device has it by the lease
/// that the worker took for the operation.
fn a_panicking_operation_loses_the_device(faults: Faults, waited_for: bool, held: bool) {
    // Nobody must wait for these.
    let limits =
        |builder: SpaceBuilder| builder.drain_limit(Duration::from_secs(15)).hold_limit(Duration::from_secs(15));
    let Some(space) = space(faults, limits) else { return };
    let (region, device, other) = (region(&space, 8), software(&space, 2), software(&space, 1));
    let (view, other_view) = (device.attach(&region).unwrap(), other.attach(&region).unwrap());
    let first = if held { 1 } else { 0 };
    let prepared: Vec<_> = (first..4).map(|index| Item::new(index, 40 + u64::from(index))).collect();
    device.submit(&view, add, &prepared).wait().unwrap();
    other.submit(&other_view, add, &[Item::new(5, 50)]).wait().unwrap();

    let touched = Arc::new(AtomicBool::new(!waited_for));
    let touched_too = touched.clone();
    let entered = Arc::new(AtomicBool::new(false));
    let entered_too = entered.clone();
    let job = device.submit(
        &view,
        move |page: &DevicePage<'_>, _| {
            page.store(0, 9);
            entered_too.store(true, SeqCst);
            wait_until(|| touched_too.load(SeqCst));
            panic_quietly();
        },
        &[Item::new(0, 0)],
    );
    wait_until(|| entered.load(SeqCst));
    thread::scope(|scope| {
        let toucher = scope.spawn(|| at(&region, 0, 0).load(SeqCst));
        if waited_for {
            wait_until(|| space.stats().touches > 0);
            a_while();
            touched.store(true, SeqCst);
        }
        assert_eq!(toucher.join().unwrap(), 9, "what it did before it panicked is kept");
    });

    let error = job.wait().unwrap_err();
    let JobError::Lost(lost) = &error else { panic!("{error}") };
    let expected = LossReason::Panicked { region: region.id().get(), page: page(0) };
    assert_eq!(lost.why, expected, "{faults:?}, a touch waits: {waited_for}, held: {held}");
    assert!(error.to_string().contains("page 0") && error.to_string().contains("panicked"), "{error}");
    assert!(
        (1..4).all(|index| at(&region, index, 0).load(SeqCst) == 40 + u64::from(index)),
        "its other pages come back"
    );
    assert!(device.submit(&view, add, &[Item::new(6, 1)]).wait().is_err());
    other.submit(&other_view, add, &[Item::new(5, 5), Item::new(0, 1)]).wait().unwrap();
    assert_eq!((at(&region, 5, 0).load(SeqCst), at(&region, 0, 0).load(SeqCst)), (55, 10));
    assert_eq!(space.stats().devices_lost, 1);
}

#[test]
fn a_device_whose_operation_panics_is_lost() {
    let _watchdog = watchdog();
    for faults in MODES {
        a_panicking_operation_loses_the_device(faults, false, false);
        a_panicking_operation_loses_the_device(faults, false, true);
    }
}

#[test]
fn a_touch_does_not_wait_for_an_operation_that_panicked() {
    let _watchdog = watchdog();
    MODES.into_iter().for_each(|faults| a_panicking_operation_loses_the_device(faults, true, false));
}

/// The worker's own lease ends while it unwinds, and hands the page to the touch that waits for it.
#[test]
fn a_touch_that_waits_for_the_lease_of_an_operation_that_panics_goes_on() {
    let _watchdog = watchdog();
    MODES.into_iter().for_each(|faults| a_panicking_operation_loses_the_device(faults, true, true));
}

/// A region at the very end of what page indices can name.
#[test]
fn the_last_page_of_the_largest_region_is_claimed_like_any_other() {
    let _watchdog = watchdog();
    let Some(space) = space(Faults::Monitor, |builder| builder) else { return };
    let last = u32::MAX - 2;
    // An address space may be too small for it; that is another test's business.
    let Ok(region) = space.allocate(ByteLen((last as usize + 1) * 4096)) else { return };
    assert_eq!(region.pages(), pages(0, last + 1));
    let device = space.register(PLAIN).unwrap();
    let view = region.attach(&device).unwrap();
    let lease = view.claim_scattered(&[pages(last - 5, last - 3), one(last)], Access::Exclusive).unwrap();
    view.words(page(last))[511].store(1, SeqCst);
    lease.end().unwrap();
    assert_eq!(at(&region, last, 511).load(SeqCst), 1);
}
