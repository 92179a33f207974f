//! Claims: a device takes pages from the CPU and from other devices.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::Duration;

use pagelease::{Access, ClaimError, PageRange};

use crate::harness::{Rig, cpu};
use crate::support::{a_while, one, page, pages};

pub(crate) fn a_claim_takes_the_page_and_a_touch_gives_it_back(rig: Rig) {
    let bench = rig.bench(|builder| builder);
    let (region, device) = (bench.region(4), bench.device());
    let (cpu, view) = (cpu(&region), region.attach(&device).unwrap());
    cpu.store(1, 0, 7);
    let first = u64::from(rig.memory.traps_at_first());
    let lease = view.claim(one(1), Access::Exclusive).unwrap();
    assert!(view.has(page(1)) && !view.has(page(0)) && !view.has(page(2)));
    assert_eq!(view.words(page(1))[0].load(SeqCst), 7, "the device sees what the CPU wrote");
    view.words(page(1))[0].store(8, SeqCst);
    lease.end().unwrap();
    assert!(view.has(page(1)), "the end of a lease is not the end of exclusivity");
    assert_eq!(cpu.load(1, 0), 8, "the CPU sees what the device wrote");
    assert!(!view.has(page(1)));
    bench.expect(|s| (s.claims, s.pages_claimed, s.claims_already_held), (1, 1, 0));
    bench.expect(|s| (s.touches, s.restores, s.invalidations), (1 + first, 1, 1));
    cpu.store(1, 0, 9);
    assert_eq!(bench.stats().touches, 1 + first, "the page is the CPU's: nothing traps");
}

pub(crate) fn a_page_that_nobody_touched_is_trapped_too(rig: Rig) {
    let bench = rig.bench(|builder| builder);
    let (region, device) = (bench.region(4), bench.device());
    let (cpu, view) = (cpu(&region), region.attach(&device).unwrap());
    view.claim(pages(0, 3), Access::Exclusive).unwrap().end().unwrap();
    for index in 0..3 {
        view.words(page(index))[1].store(10 + u64::from(index), SeqCst);
    }
    assert_eq!(cpu.load(0, 1), 10);
    cpu.store(2, 0, 1);
    assert_eq!(cpu.add(1, 1, 1), 11);
    assert_eq!((cpu.load(1, 1), cpu.load(2, 1)), (12, 12));
    assert_eq!(cpu.load(3, 0), 0, "a page that neither has is the CPU's without a trap");
    bench.expect(|s| (s.restores, s.pages_claimed), (3, 3));
    assert!(pages(0, 4).iter().all(|page| !view.has(page)));
}

pub(crate) fn a_page_that_the_cpu_touched_first_keeps_its_bytes(rig: Rig) {
    let bench = rig.bench(|builder| builder);
    let (region, device) = (bench.region(64), bench.device());
    let (cpu, view) = (cpu(&region), region.attach(&device).unwrap());
    for index in (0..64).step_by(3) {
        cpu.store(index, 1, u64::from(index) + 1);
    }
    for round in 0..3 {
        let lease = view.claim(region.pages(), Access::Exclusive).unwrap();
        for index in 0..64 {
            let expected = if index % 3 == 0 { u64::from(index) + 1 } else { 0 };
            assert_eq!(view.words(page(index))[1].load(SeqCst), expected);
            let word = &view.words(page(index))[0];
            word.store(word.load(SeqCst) + 1, SeqCst);
        }
        lease.end().unwrap();
        assert!((0..64).all(|index| cpu.load(index, 0) == round + 1));
    }
    bench.expect(|s| s.restores, 3 * 64);
}

pub(crate) fn a_repeat_claim_joins(rig: Rig) {
    let bench = rig.bench(|builder| builder);
    let (region, device) = (bench.region(8), bench.device());
    let view = region.attach(&device).unwrap();
    let first = view.claim(pages(0, 6), Access::Exclusive).unwrap();
    let before = bench.stats();
    let second = view.claim(pages(2, 8), Access::Exclusive).unwrap();
    let third = view.claim(pages(2, 4), Access::ExclusiveWrite);
    let third = third.or_else(|_| view.claim(pages(2, 4), Access::Exclusive)).unwrap();
    let after = bench.stats();
    assert_eq!(after.claims_already_held - before.claims_already_held, 4 + 2);
    assert_eq!(after.pages_claimed - before.pages_claimed, 2);
    assert_eq!(after.invalidations, 0, "nobody is told of what changes nothing");
    assert_eq!(after.claim_retries, 0, "a claim that nobody disturbs does not start again");
    for lease in [second, first, third] {
        lease.end().unwrap();
    }
    assert!(pages(0, 8).iter().all(|page| view.has(page)));
}

pub(crate) fn overlapping_claims_of_two_devices(rig: Rig) {
    let bench = rig.bench(|builder| builder);
    let (region, a, b) = (bench.region(6), bench.device(), bench.device());
    let (a, b) = (region.attach(&a).unwrap(), region.attach(&b).unwrap());
    let cpu = cpu(&region);
    a.claim(pages(0, 4), Access::Exclusive).unwrap().end().unwrap();
    for index in 0..4 {
        a.words(page(index))[0].store(100 + u64::from(index), SeqCst);
    }
    let lease = b.claim(pages(2, 6), Access::Exclusive).unwrap();
    for index in 0..6 {
        assert_eq!((a.has(page(index)), b.has(page(index))), (index < 2, index >= 2), "page {index}");
    }
    assert_eq!(b.words(page(3))[0].load(SeqCst), 103, "B sees what A wrote");
    assert_eq!(bench.stats().invalidations, 1, "both pages in one call");
    lease.end().unwrap();
    assert_eq!([0, 1, 2, 3, 4].map(|index| cpu.load(index, 0)), [100, 101, 102, 103, 0]);
    assert_eq!(bench.stats().claim_retries, 0);
}

pub(crate) fn a_device_takes_a_page_from_another(rig: Rig) {
    let bench = rig.bench(|builder| builder);
    let (region, a, b) = (bench.region(1), bench.device(), bench.device());
    let (a, b) = (region.attach(&a).unwrap(), region.attach(&b).unwrap());
    for round in 0..20 {
        let (taker, loser) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let lease = taker.claim(one(0), Access::Exclusive).unwrap();
        assert!(taker.has(page(0)) && !loser.has(page(0)));
        let word = &taker.words(page(0))[0];
        word.store(word.load(SeqCst) + 1, SeqCst);
        lease.end().unwrap();
    }
    assert_eq!(cpu(&region).load(0, 0), 20);
    bench.expect(|s| (s.claim_retries, s.invalidations, s.restores), (0, 20, 1));
}

pub(crate) fn a_claim_waits_for_another_device_s_lease(rig: Rig) {
    let bench = rig.patient();
    let (region, a, b) = (bench.region(2), bench.device(), bench.device());
    let (a, b) = (region.attach(&a).unwrap(), region.attach(&b).unwrap());
    let lease = a.claim(one(0), Access::Exclusive).unwrap();
    let taken = AtomicBool::new(false);
    thread::scope(|scope| {
        let taker = scope.spawn(|| {
            let lease = b.claim(pages(0, 2), Access::Exclusive).unwrap();
            taken.store(true, SeqCst);
            let seen = b.words(page(0))[0].load(SeqCst);
            lease.end().unwrap();
            seen
        });
        a_while();
        assert!(!taken.load(SeqCst) && a.has(page(0)));
        a.words(page(0))[0].store(5, SeqCst);
        lease.end().unwrap();
        assert_eq!(taker.join().unwrap(), 5);
    });
    assert_eq!(bench.stats().holds_broken, 0);
}

pub(crate) fn a_claim_breaks_another_device_s_lease_at_the_hold_limit(rig: Rig) {
    let bench = rig.bench(|builder| builder.hold_limit(Duration::from_millis(20)));
    let (region, a, b) = (bench.region(3), bench.device(), bench.device());
    let (a, b) = (region.attach(&a).unwrap(), region.attach(&b).unwrap());
    let lease = a.claim(pages(0, 3), Access::Exclusive).unwrap();
    a.words(page(1))[0].store(5, SeqCst);
    lease.check().unwrap();
    let taken = thread::scope(|scope| scope.spawn(|| b.claim(one(1), Access::Exclusive).unwrap()).join().unwrap());
    assert_eq!(b.words(page(1))[0].load(SeqCst), 5, "what A wrote while it had the page is kept");
    taken.end().unwrap();
    let broken = lease.end().unwrap_err();
    assert_eq!((broken.pages, broken.first, broken.lost), (pages(0, 3), page(1), 1));
    assert_eq!(bench.stats().holds_broken, 1);
    assert!(b.has(page(1)), "the late end of A's lease changes nothing");
}

pub(crate) fn a_sixteenth_lease_of_one_page_waits(rig: Rig) {
    let bench = rig.patient();
    let (region, device) = (bench.region(1), bench.device());
    let view = region.attach(&device).unwrap();
    let leases: Vec<_> = (0..15).map(|_| view.claim(one(0), Access::Exclusive).unwrap()).collect();
    let got = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let lease = view.claim(one(0), Access::Exclusive).unwrap();
            got.store(true, SeqCst);
            lease.end().unwrap();
        });
        a_while();
        assert!(!got.load(SeqCst));
        for lease in leases {
            lease.end().unwrap();
        }
    });
    assert!(got.into_inner());
}

pub(crate) fn scattered_claims(rig: Rig) {
    let bench = rig.bench(|builder| builder);
    let count = rig.pages(400);
    let (region, device) = (bench.region(count), bench.device());
    let (cpu, view) = (cpu(&region), region.attach(&device).unwrap());
    // More ranges than one system call takes, of one page and of two.
    let ranges: Vec<PageRange> = (0..count / 3 - 3).map(|n| pages(3 * n, 3 * n + 1 + n % 2)).collect();
    let claimed: u32 = ranges.iter().map(|range| range.len()).sum();
    for index in 0..count {
        cpu.store(index, 0, u64::from(index));
    }
    let lease = view.claim_scattered(&ranges, Access::Exclusive).unwrap();
    assert_eq!(lease.pages(), pages(0, ranges.last().unwrap().end()));
    for index in 0..count {
        let wanted = ranges.iter().any(|range| range.contains(page(index)));
        assert_eq!(view.has(page(index)), wanted, "page {index}");
        if wanted {
            let word = &view.words(page(index))[0];
            word.store(word.load(SeqCst) + 1000, SeqCst);
        }
    }
    lease.end().unwrap();
    assert_eq!(bench.stats().pages_claimed, u64::from(claimed));
    for index in 0..count {
        let wanted = ranges.iter().any(|range| range.contains(page(index)));
        assert_eq!(cpu.load(index, 0), u64::from(index) + if wanted { 1000 } else { 0 });
    }
    bench.expect(|s| s.restores, u64::from(claimed));
}

pub(crate) fn ranges_that_cannot_be_claimed(rig: Rig) {
    let bench = rig.bench(|builder| builder);
    let (region, device) = (bench.region(8), bench.device());
    let view = region.attach(&device).unwrap();
    let not_ascending: [&[PageRange]; 5] = [
        &[],
        &[pages(4, 6), pages(0, 2)],
        &[pages(0, 4), pages(3, 6)],
        &[pages(0, 2), pages(0, 2)],
        &[pages(0, 1), pages(6, 8), pages(2, 3), pages(7, 8)],
    ];
    for ranges in not_ascending {
        let error = view.claim_scattered(ranges, Access::Exclusive).expect_err("refused");
        assert!(matches!(error, ClaimError::NotAscending), "{ranges:?}: {error}");
    }
    let beyond: [&[PageRange]; 4] =
        [&[pages(0, 9)], &[pages(8, 9)], &[pages(0, 1), pages(7, 9)], &[pages(u32::MAX - 1, u32::MAX)]];
    for ranges in beyond {
        let error = view.claim_scattered(ranges, Access::Exclusive).expect_err("refused");
        assert!(matches!(error, ClaimError::OutOfRange { region_pages: 8, .. }), "{ranges:?}: {error}");
        assert!(error.to_string().contains("of a region of 8"), "{error}");
    }
    assert!(matches!(view.subscribe(pages(0, 9)), Err(ClaimError::OutOfRange { .. })));
    assert!(region.pages().iter().all(|page| !view.has(page)));
    assert_eq!((bench.stats().claims, bench.stats().pages_claimed), (0, 0), "nothing remains of a refused claim");
    // Ranges that touch each other are disjoint.
    view.claim_scattered(&[pages(0, 2), pages(2, 4), pages(5, 8)], Access::Exclusive).unwrap().end().unwrap();
    assert!(!view.has(page(8)) && !view.has(page(u32::MAX)), "a page behind the end is nobody's");
}

pub(crate) fn a_claim_of_many_chunks(rig: Rig) {
    let bench = rig.bench(|builder| builder);
    // Of huge pages there are not that many: one chunk then.
    let count = rig.pages(10_000);
    let (region, a, b) = (bench.region(count), bench.device(), bench.device());
    let (a, b) = (region.attach(&a).unwrap(), region.attach(&b).unwrap());
    let cpu = cpu(&region);
    let lease = a.claim(region.pages(), Access::Exclusive).unwrap();
    assert!(region.pages().iter().all(|page| a.has(page)));
    region.pages().iter().for_each(|page| a.words(page)[0].store(1, SeqCst));
    lease.end().unwrap();
    let lease = b.claim(pages(50, count), Access::Exclusive).unwrap();
    region.pages().iter().skip(50).for_each(|page| b.words(page)[0].store(2, SeqCst));
    assert!(region.pages().iter().all(|page| a.has(page) == (page.0 < 50)));
    lease.end().unwrap();
    for index in 0..count {
        assert_eq!(cpu.load(index, 0), if index < 50 { 1 } else { 2 });
    }
    bench.expect(|s| (s.claims, s.pages_claimed, s.claim_retries), (2, u64::from(2 * count - 50), 0));
    bench.expect(|s| s.restores, u64::from(count));
}

pub(crate) fn claims_that_overlap_in_a_loop_do_not_deadlock(rig: Rig) {
    let bench = rig.bench(|builder| builder);
    let region = bench.region(64);
    let devices = [0, 1, 2].map(|_| bench.device());
    let views = devices.each_ref().map(|device| region.attach(device).unwrap());
    let cpu = cpu(&region);
    thread::scope(|scope| {
        for (number, view) in (0..).zip(&views) {
            scope.spawn(move || {
                for round in 0..60 {
                    let start = (number * 17 + round * 7) % 40;
                    let whole = view.claim(pages(start, start + 24), Access::Exclusive).unwrap();
                    let again = view.claim_scattered(&[one(start), pages(start + 9, start + 20)], Access::Exclusive);
                    drop(whole);
                    drop(again.unwrap());
                }
            });
        }
        scope.spawn(|| {
            for round in 0..200 {
                cpu.add(round * 13 % 64, 1, 1);
            }
        });
    });
    assert_eq!((0..64).map(|index| cpu.load(index, 1)).sum::<u64>(), 200);
}

pub(crate) fn many_leases_and_then_too_many(rig: Rig) {
    let bench = rig.bench(|builder| builder);
    let count = rig.pages(5000);
    if count < 5000 {
        // The limit is the space's, and of 15 leases a page it takes more pages to get there.
        return;
    }
    let (region, device) = (bench.region(count), bench.device());
    let view = region.attach(&device).unwrap();
    let mut leases = Vec::new();
    let error = loop {
        let index = u32::try_from(leases.len()).unwrap();
        match view.claim(one(index), Access::Exclusive) {
            Ok(lease) => leases.push(lease),
            Err(error) => break error,
        }
    };
    let ClaimError::TooManyLeases { limit, .. } = error else { panic!("{error}") };
    assert_eq!(leases.len(), limit);
    assert!(error.to_string().contains("drop leases"), "{error}");
    leases.pop().unwrap().end().unwrap();
    leases.push(view.claim(one(count - 1), Access::Exclusive).unwrap());
    for lease in leases {
        lease.end().unwrap();
    }
}
