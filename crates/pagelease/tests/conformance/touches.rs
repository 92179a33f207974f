//! Touches: the CPU takes pages back, and what it waits for.

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::thread::{self, ThreadId};
use std::time::Duration;

use pagelease::{Access, Device, Faults, Invalidation, NotDrained};

use crate::harness::{Rig, cpu};
use crate::support::{a_while, one, page, pages, wait_until};

pub(crate) fn a_touch_waits_for_the_lease(rig: Rig) {
    let bench = rig.patient();
    let (region, device) = (bench.region(2), bench.device());
    let (cpu, view) = (cpu(&region), region.attach(&device).unwrap());
    let lease = view.claim(one(0), Access::Exclusive).unwrap();
    let went_on = AtomicBool::new(false);
    thread::scope(|scope| {
        let toucher = scope.spawn(|| {
            let seen = cpu.load(0, 0);
            went_on.store(true, SeqCst);
            seen
        });
        wait_until(|| bench.stats().touches == 1);
        a_while();
        assert!(!went_on.load(SeqCst) && view.has(page(0)));
        view.words(page(0))[0].store(3, SeqCst);
        lease.end().unwrap();
        assert_eq!(toucher.join().unwrap(), 3);
    });
    bench.expect(|s| (s.waits, s.holds_broken, s.restores, s.wait_ns_max > 1_000_000), (1, 0, 1, true));
}

pub(crate) fn every_thread_that_waits_goes_on(rig: Rig) {
    let bench = rig.patient();
    let (region, device) = (bench.region(3), bench.device());
    let (cpu, view) = (cpu(&region), region.attach(&device).unwrap());
    for round in 1..=5 {
        let lease = view.claim(pages(0, 3), Access::Exclusive).unwrap();
        let before = bench.stats().touches;
        thread::scope(|scope| {
            for index in [0, 0, 0, 1, 1, 2] {
                let cpu = &cpu;
                scope.spawn(move || cpu.add(index, 1, 1));
            }
            wait_until(|| bench.stats().touches - before >= 6);
            lease.end().unwrap();
        });
        assert_eq!([0, 1, 2].map(|index| cpu.load(index, 1)), [3 * round, 2 * round, round]);
    }
    bench.expect(|s| s.restores, 15);
}

pub(crate) fn a_touch_goes_on_at_the_hold_limit_and_nothing_is_lost(rig: Rig) {
    let bench = rig.bench(|builder| builder.hold_limit(Duration::from_millis(20)));
    let (region, device) = (bench.region(4), bench.device());
    let (cpu, view) = (cpu(&region), region.attach(&device).unwrap());
    let lease = view.claim(pages(0, 4), Access::Exclusive).unwrap();
    view.words(page(2))[0].store(6, SeqCst);
    view.words(page(3))[0].store(7, SeqCst);
    assert_eq!(thread::scope(|scope| scope.spawn(|| cpu.add(2, 0, 1)).join().unwrap()), 6);
    assert!(!view.has(page(2)) && view.has(page(1)) && view.has(page(3)));
    assert_eq!(lease.check().unwrap_err().first, page(2));
    let broken = lease.end().unwrap_err();
    assert_eq!((broken.pages, broken.first, broken.lost), (pages(0, 4), page(2), 1));
    assert!(
        broken.to_string().contains("1 of its pages 0..4") && broken.to_string().contains("claim again"),
        "{broken}"
    );
    assert_eq!((cpu.load(2, 0), cpu.load(3, 0)), (7, 7));
    bench.expect(|s| (s.holds_broken, s.holds_broken_by_self), (1, 0));
    // A monitor notes the time a little after the touch.
    bench.expect(|s| s.wait_ns_max >= 18_000_000, true);
}

pub(crate) fn the_late_end_of_a_broken_lease_ends_no_other(rig: Rig) {
    let bench = rig.patient();
    let (region, device) = (bench.region(2), bench.device());
    let (cpu, view) = (cpu(&region), region.attach(&device).unwrap());
    let broken = view.claim(pages(0, 2), Access::Exclusive).unwrap();
    cpu.store(0, 0, 1);
    let whole = view.claim(one(0), Access::Exclusive).unwrap();
    assert_eq!(broken.end().unwrap_err().first, page(0));
    whole.check().unwrap();
    let went_on = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            cpu.store(0, 0, 2);
            went_on.store(true, SeqCst);
        });
        a_while();
        assert!(!went_on.load(SeqCst), "the page is still held");
        whole.end().unwrap();
    });
}

pub(crate) fn a_thread_that_touches_what_it_holds_does_not_wait(rig: Rig) {
    let bench = rig.patient();
    let (region, device) = (bench.region(3), bench.device());
    let (cpu, view) = (cpu(&region), region.attach(&device).unwrap());
    let lease = view.claim(pages(0, 3), Access::Exclusive).unwrap();
    view.words(page(1))[0].store(4, SeqCst);
    assert_eq!(cpu.load(1, 0), 4);
    let broken = lease.end().unwrap_err();
    assert_eq!((broken.first, broken.lost), (page(1), 1));
    bench.expect(|s| (s.holds_broken, s.holds_broken_by_self), (0, 1));
    // Two leases of its own on one page are no harder.
    let leases = [(); 2].map(|()| view.claim(one(2), Access::Exclusive).unwrap());
    cpu.store(2, 0, 1);
    assert!(leases.into_iter().all(|lease| lease.end().is_err()));
}

pub(crate) fn neighbours_come_along_when_touches_run_in_sequence(rig: Rig) {
    let bench = rig.bench(|builder| builder);
    let count = rig.pages(300);
    let (region, device) = (bench.region(count), bench.device());
    let (cpu, view) = (cpu(&region), region.attach(&device).unwrap());
    view.claim(region.pages(), Access::Exclusive).unwrap().end().unwrap();
    for index in 0..count {
        view.words(page(index))[0].store(u64::from(index) + 1, SeqCst);
    }
    assert!((0..count).all(|index| cpu.load(index, 0) == u64::from(index) + 1));
    bench.expect(|s| s.restores, u64::from(count));
    let stats = bench.stats();
    assert!(stats.touches < u64::from(count) / 5, "{} touches for {count} pages in order", stats.touches);
}

pub(crate) fn touches_out_of_sequence_bring_one_page(rig: Rig) {
    let bench = rig.bench(|builder| builder);
    let (region, device) = (bench.region(64), bench.device());
    let (cpu, view) = (cpu(&region), region.attach(&device).unwrap());
    view.claim(region.pages(), Access::Exclusive).unwrap().end().unwrap();
    for index in (0..64).rev().step_by(2) {
        cpu.load(index, 0);
    }
    bench.expect(|s| (s.touches, s.restores), (32, 32));
    assert!((0..64).all(|index| view.has(page(index)) == (index % 2 == 0)));
}

pub(crate) fn a_prefetch_brings_pages_back_before_they_are_touched(rig: Rig) {
    let bench = rig.bench(|builder| builder);
    let (region, a, b) = (bench.region(32), bench.device(), bench.device());
    let (a, b) = (region.attach(&a).unwrap(), region.attach(&b).unwrap());
    let cpu = cpu(&region);
    a.claim(pages(0, 10), Access::Exclusive).unwrap().end().unwrap();
    b.claim(pages(10, 20), Access::Exclusive).unwrap().end().unwrap();
    a.words(page(3))[0].store(1, SeqCst);
    b.words(page(13))[0].store(2, SeqCst);
    region.prefetch(pages(2, 32));
    assert_eq!((cpu.load(3, 0), cpu.load(13, 0)), (1, 2));
    bench.expect(|s| (s.restores, s.touches, s.invalidations), (18, 0, 2));
    assert_eq!(cpu.load(25, 0), 0);
    assert!((0..20).all(|index| (a.has(page(index)) || b.has(page(index))) == (index < 2)));
    region.prefetch(pages(2, 32));
    assert_eq!(bench.stats().invalidations, 2, "a prefetch of the CPU's own pages tells nobody anything");
}

pub(crate) fn a_prefetch_waits_for_a_lease(rig: Rig) {
    let bench = rig.patient();
    let (region, device) = (bench.region(8), bench.device());
    let view = region.attach(&device).unwrap();
    let lease = view.claim(pages(2, 5), Access::Exclusive).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            region.prefetch(region.pages());
            done.store(true, SeqCst);
        });
        a_while();
        assert!(!done.load(SeqCst) && view.has(page(3)));
        lease.end().unwrap();
    });
    assert_eq!((bench.stats().restores, bench.stats().holds_broken), (3, 0));
}

pub(crate) fn a_touch_of_one_page_leaves_the_others_with_the_device(rig: Rig) {
    let bench = rig.patient();
    let (region, device) = (bench.region(8), bench.device());
    let (cpu, view) = (cpu(&region), region.attach(&device).unwrap());
    let held = view.claim(pages(0, 4), Access::Exclusive).unwrap();
    view.claim(pages(4, 8), Access::Exclusive).unwrap().end().unwrap();
    cpu.store(5, 0, 1);
    assert!((0..8).all(|index| view.has(page(index)) == (index != 5)));
    held.end().unwrap();
    assert_eq!(bench.stats().waits, 0, "nobody waits for a lease of other pages");
}

/// Notes on which threads it is told to let go.
#[derive(Default)]
struct Unsafe {
    told_on: Mutex<Vec<ThreadId>>,
}

impl Device for Unsafe {
    fn name(&self) -> &'static str {
        "not signal-safe"
    }

    fn invalidate(&self, _: &Invalidation) -> Result<(), NotDrained> {
        self.told_on.lock().unwrap().push(thread::current().id());
        Ok(())
    }
}

pub(crate) fn a_device_that_is_not_signal_safe_is_asked_all_the_same(rig: Rig) {
    let bench = rig.bench(|builder| builder.hold_limit(Duration::from_millis(20)));
    let region = bench.region(32);
    let device = bench.space.register(Unsafe::default()).unwrap();
    let (cpu, view) = (cpu(&region), region.attach(&device).unwrap());
    let lease = view.claim(pages(0, 16), Access::Exclusive).unwrap();
    thread::scope(|scope| {
        for first in 0..4 {
            let cpu = &cpu;
            scope.spawn(move || (0..4).for_each(|step| _ = cpu.add(first + 4 * step, 0, 1)));
        }
    });
    assert!(lease.end().is_err());
    view.claim(pages(0, 16), Access::Exclusive).unwrap().end().unwrap();
    assert!((0..16).all(|index| cpu.load(index, 0) == 1));
    bench.expect(|s| s.restores, 32);
    let told_on = device.told_on.lock().unwrap();
    assert!(!told_on.is_empty());
    if rig.faults == Faults::InThread {
        assert!(!told_on.contains(&thread::current().id()), "told in a signal handler");
    }
}
