//! `Access::ExclusiveWrite`: the CPU reads while the device writes.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;

use pagelease::{Access, ClaimError};

use crate::harness::{Bench, Rig, cpu};
use crate::support::{a_while, one, page, pages, wait_until};

/// Whether there is anything to test: the other case is `where_it_is_missing_it_is_refused`.
fn missing(bench: &Bench) -> bool {
    !bench.region(1).capabilities().exclusive_write
}

pub(crate) fn the_cpu_reads_while_the_device_writes(rig: Rig) {
    let bench = rig.patient();
    if missing(&bench) {
        return;
    }
    let (region, device) = (bench.region(2), bench.device());
    let (cpu, view) = (cpu(&region), region.attach(&device).unwrap());
    cpu.store(0, 0, 1);
    let lease = view.claim(one(0), Access::ExclusiveWrite).unwrap();
    for value in 2..10 {
        view.words(page(0))[0].store(value, SeqCst);
        assert_eq!(cpu.load(0, 0), value);
    }
    assert!(view.has(page(0)));
    lease.end().unwrap();
    bench.expect(|s| (s.touches, s.restores, s.invalidations), (0, 0, 0));
}

pub(crate) fn a_page_never_touched_is_read_too(rig: Rig) {
    let bench = rig.patient();
    if missing(&bench) {
        return;
    }
    let (region, device) = (bench.region(2), bench.device());
    let (cpu, view) = (cpu(&region), region.attach(&device).unwrap());
    let lease = view.claim(pages(0, 2), Access::ExclusiveWrite).unwrap();
    for value in 1..5 {
        view.words(page(1))[1].store(value, SeqCst);
        assert_eq!(cpu.load(1, 1), value);
    }
    bench.expect(|s| (s.touches <= 1, s.read_only_maps == s.touches), (true, true));
    bench.expect(|s| (s.restores, s.invalidations), (0, 0));
    lease.end().unwrap();
    // What was mapped for reading traps for writing.
    cpu.store(1, 1, 9);
    assert!(!view.has(page(1)) && view.has(page(0)));
    assert_eq!(view.words(page(1))[1].load(SeqCst), 9);
    bench.expect(|s| s.restores, 1);
}

pub(crate) fn a_cpu_write_takes_the_page_back(rig: Rig) {
    let bench = rig.patient();
    if missing(&bench) {
        return;
    }
    let (region, device) = (bench.region(2), bench.device());
    let (cpu, view) = (cpu(&region), region.attach(&device).unwrap());
    for round in 0..4 {
        cpu.store(0, 1, round);
        view.claim(one(0), Access::ExclusiveWrite).unwrap().end().unwrap();
        view.words(page(0))[0].store(10 * round, SeqCst);
        assert_eq!((cpu.load(0, 0), cpu.load(0, 1)), (10 * round, round));
        assert!(view.has(page(0)), "reading leaves the page with the device");
        assert_eq!(cpu.add(0, 0, 1), 10 * round);
        assert!(!view.has(page(0)));
        let touches = bench.stats().touches;
        cpu.store(0, 0, 0);
        assert_eq!(bench.stats().touches, touches, "the page is the CPU's to write");
    }
    bench.expect(|s| (s.restores, s.invalidations, s.pages_claimed), (4, 4, 4));
}

pub(crate) fn a_cpu_write_waits_for_the_lease_and_reads_do_not(rig: Rig) {
    let bench = rig.patient();
    if missing(&bench) {
        return;
    }
    let (region, device) = (bench.region(1), bench.device());
    let (cpu, view) = (cpu(&region), region.attach(&device).unwrap());
    let lease = view.claim(one(0), Access::ExclusiveWrite).unwrap();
    let written = AtomicBool::new(false);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let before = cpu.add(0, 0, 1);
            written.store(true, SeqCst);
            before
        });
        wait_until(|| bench.stats().touches >= 1);
        for value in 1..20 {
            view.words(page(0))[0].store(value, SeqCst);
            assert_eq!(cpu.load(0, 0), value);
        }
        a_while();
        assert!(!written.load(SeqCst) && view.has(page(0)));
        lease.end().unwrap();
        assert_eq!(writer.join().unwrap(), 19);
    });
    assert_eq!((cpu.load(0, 0), bench.stats().holds_broken), (20, 0));
}

pub(crate) fn an_upgrade_ends_the_cpu_s_reads(rig: Rig) {
    let bench = rig.patient();
    if missing(&bench) {
        return;
    }
    let (region, device) = (bench.region(1), bench.device());
    let (cpu, view) = (cpu(&region), region.attach(&device).unwrap());
    view.claim(one(0), Access::ExclusiveWrite).unwrap().end().unwrap();
    assert_eq!(cpu.load(0, 0), 0);
    wait_until(|| view.has(page(0)));
    let before = bench.stats();
    let lease = view.claim(one(0), Access::Exclusive).unwrap();
    assert_eq!(bench.stats().claims_already_held, before.claims_already_held, "an upgrade is a claim of its own");
    view.words(page(0))[0].store(5, SeqCst);
    lease.end().unwrap();
    // What is more than it asks for joins.
    view.claim(one(0), Access::ExclusiveWrite).unwrap().end().unwrap();
    assert_eq!(bench.stats().claims_already_held, before.claims_already_held + 1);
    assert_eq!(cpu.load(0, 0), 5);
    assert!(!view.has(page(0)), "a read of an exclusive page takes it back");
    cpu.store(0, 0, 6);
    // And leaves it writable.
    bench.expect(|s| (s.restores, s.touches - before.touches), (1, 1));
}

pub(crate) fn a_claim_to_write_takes_a_page_from_another_device(rig: Rig) {
    let bench = rig.patient();
    if missing(&bench) {
        return;
    }
    let (region, a, b) = (bench.region(1), bench.device(), bench.device());
    let (a, b) = (region.attach(&a).unwrap(), region.attach(&b).unwrap());
    let cpu = cpu(&region);
    for round in 0..4 {
        a.claim(one(0), Access::Exclusive).unwrap().end().unwrap();
        a.words(page(0))[0].store(round, SeqCst);
        b.claim(one(0), Access::ExclusiveWrite).unwrap().end().unwrap();
        assert!(b.has(page(0)) && !a.has(page(0)));
        assert_eq!(cpu.load(0, 0), round);
        b.words(page(0))[0].store(round + 100, SeqCst);
        assert_eq!(cpu.load(0, 0), round + 100);
        // While it is being mapped for the CPU to read, the page is busy.
        wait_until(|| b.has(page(0)));
    }
    cpu.store(0, 0, 1);
    assert!(!b.has(page(0)));
    bench.expect(|s| s.restores, 1);
}

pub(crate) fn a_prefetch_makes_the_page_writable(rig: Rig) {
    let bench = rig.patient();
    if missing(&bench) {
        return;
    }
    let (region, device) = (bench.region(8), bench.device());
    let (cpu, view) = (cpu(&region), region.attach(&device).unwrap());
    (0..4).for_each(|index| cpu.store(index, 0, 1));
    view.claim(region.pages(), Access::ExclusiveWrite).unwrap().end().unwrap();
    region.prefetch(region.pages());
    (0..8).for_each(|index| cpu.store(index, 0, 2));
    bench.expect(|s| (s.restores, s.touches), (8, 0));
}

pub(crate) fn where_it_is_missing_it_is_refused(rig: Rig) {
    let bench = rig.patient();
    if !missing(&bench) {
        return;
    }
    let (region, device) = (bench.region(1), bench.device());
    let view = region.attach(&device).unwrap();
    let error = view.claim(one(0), Access::ExclusiveWrite).expect_err("refused");
    assert!(matches!(error, ClaimError::Unsupported { .. }), "{error}");
    assert!(error.to_string().contains("claim Access::Exclusive"), "{error}");
    view.claim(one(0), Access::Exclusive).unwrap().end().unwrap();
}
