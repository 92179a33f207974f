//! Leases, views, devices and regions that end.

use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::Duration;

use pagelease::software::{DevicePage, Item, SoftwareConfig, SoftwareDevice};
use pagelease::{Access, AttachError, BackendKind, ClaimError, RestorePolicy};

use crate::harness::{Rig, cpu};
use crate::support::{PLAIN, a_while, one, page, pages, wait_until};

pub(crate) fn a_lazy_lease_leaves_the_pages_with_the_device(rig: Rig) {
    let bench = rig.bench(|builder| builder.restore(RestorePolicy::Lazy));
    let (region, device) = (bench.region(8), bench.device());
    let (cpu, view) = (cpu(&region), region.attach(&device).unwrap());
    view.claim(pages(0, 8), Access::Exclusive).unwrap().end().unwrap();
    assert!((0..8).all(|index| view.has(page(index))));
    assert_eq!(bench.stats().restores, 0);
    cpu.load(0, 0);
    assert_eq!(bench.stats().touches, 1);
}

pub(crate) fn an_eager_lease_gives_them_back(rig: Rig) {
    let bench = rig.bench(|builder| builder.restore(RestorePolicy::Eager));
    let (region, device) = (bench.region(32), bench.device());
    let (cpu, view) = (cpu(&region), region.attach(&device).unwrap());
    let lease = view.claim_scattered(&[pages(0, 8), pages(10, 30)], Access::Exclusive).unwrap();
    for index in 10..30 {
        view.words(page(index))[0].store(1, SeqCst);
    }
    assert!(view.has(page(10)));
    lease.end().unwrap();
    assert!((0..32).all(|index| !view.has(page(index))));
    assert_eq!((10..30).map(|index| cpu.load(index, 0)).sum::<u64>(), 20);
    // One call a run, and no trap.
    bench.expect(|s| (s.restores, s.touches, s.invalidations), (28, 0, 2));
}

pub(crate) fn an_eager_lease_leaves_what_another_lease_holds(rig: Rig) {
    let bench = rig.bench(|builder| builder.restore(RestorePolicy::Eager).hold_limit(Duration::MAX));
    let (region, device) = (bench.region(8), bench.device());
    let view = region.attach(&device).unwrap();
    let first = view.claim(pages(0, 6), Access::Exclusive).unwrap();
    let second = view.claim(pages(4, 8), Access::Exclusive).unwrap();
    first.end().unwrap();
    assert!((0..8).all(|index| view.has(page(index)) == (index >= 4)));
    second.end().unwrap();
    assert!((0..8).all(|index| !view.has(page(index))));
    assert_eq!(bench.stats().restores, 8);
}

pub(crate) fn a_dropped_view_gives_its_pages_back(rig: Rig) {
    let bench = rig.bench(|builder| builder);
    let (region, a, b) = (bench.region(16), bench.device(), bench.device());
    let (view, other) = (region.attach(&a).unwrap(), region.attach(&b).unwrap());
    let cpu = cpu(&region);
    view.claim_scattered(&[pages(1, 4), pages(9, 12)], Access::Exclusive).unwrap().end().unwrap();
    other.claim(pages(5, 7), Access::Exclusive).unwrap().end().unwrap();
    view.words(page(9))[0].store(4, SeqCst);
    let again = view.clone();
    drop(view);
    assert!(again.has(page(9)), "another handle of the view keeps it");
    drop(again);
    assert_eq!(cpu.load(9, 0), 4);
    assert!([1, 2, 3, 10, 11].iter().all(|&index| cpu.load(index, 0) == 0));
    bench.expect(|s| (s.restores, s.touches), (6, 0));
    assert!(other.has(page(5)) && other.has(page(6)), "another device's pages stay");
}

pub(crate) fn a_device_attaches_again(rig: Rig) {
    let bench = rig.bench(|builder| builder);
    let (region, device) = (bench.region(4), bench.device());
    for round in 0..5 {
        let view = region.attach(&device).unwrap();
        let twice = region.attach(&device).err().expect("it has a view");
        assert!(matches!(twice, AttachError::AlreadyAttached { device: id } if id == device.id()));
        assert!(twice.to_string().contains("use the view it has"), "{twice}");
        view.claim(one(0), Access::Exclusive).unwrap().end().unwrap();
        let word = &view.words(page(0))[0];
        word.store(word.load(SeqCst) + 1, SeqCst);
        drop(view);
        assert_eq!(cpu(&region).load(0, 0), round + 1);
    }
}

pub(crate) fn a_dropped_device_s_identity_is_given_to_another(rig: Rig) {
    let bench = rig.bench(|builder| builder);
    let region = bench.region(2);
    let mut devices: Vec<_> = (1..=63).map(|_| bench.device()).collect();
    let refused = bench.space.register(PLAIN).err().expect("all identities are taken");
    assert!(matches!(refused, AttachError::TooManyDevices { limit: 63 }), "{refused}");
    assert!(refused.to_string().contains("drop one"), "{refused}");
    let gone = devices.swap_remove(20);
    let (id, view) = (gone.id(), region.attach(&gone).unwrap());
    view.claim(one(0), Access::Exclusive).unwrap().end().unwrap();
    drop(gone);
    assert!(bench.space.register(PLAIN).is_err(), "its view keeps the device");
    drop(view);
    let heir = bench.device();
    assert_eq!(heir.id(), id);
    let view = region.attach(&heir).unwrap();
    assert!(!view.has(page(0)), "it inherits no pages");
    view.claim(one(0), Access::Exclusive).unwrap().end().unwrap();
}

pub(crate) fn a_region_dropped_while_held(rig: Rig) {
    let bench = rig.patient();
    let (region, device) = (bench.region(4), bench.device());
    let view = region.attach(&device).unwrap();
    let lease = view.claim(pages(0, 2), Access::Exclusive).unwrap();
    view.words(page(0))[0].store(1, SeqCst);
    let alias = region.capabilities().alias;
    drop(region);
    assert_eq!(bench.stats().invalidations, 1, "the device is told");
    let gone = view.claim(one(0), Access::Exclusive).expect_err("refused");
    assert!(matches!(gone, ClaimError::RegionGone { .. }), "{gone}");
    assert!(matches!(view.subscribe(one(0)), Err(ClaimError::RegionGone { .. })));
    if alias {
        // The memory is there until the last view has gone.
        assert_eq!(view.words(page(0))[0].load(SeqCst), 1);
    }
    drop(view);
    drop(lease);
    // The device is free for another region.
    let region = bench.region(1);
    region.attach(&device).unwrap().claim(one(0), Access::Exclusive).unwrap().end().unwrap();
}

pub(crate) fn a_claim_that_waits_when_the_region_is_dropped(rig: Rig) {
    let bench = rig.patient();
    let (region, a, b) = (bench.region(4), bench.device(), bench.device());
    let (a, b) = (region.attach(&a).unwrap(), region.attach(&b).unwrap());
    let lease = a.claim(pages(2, 4), Access::Exclusive).unwrap();
    thread::scope(|scope| {
        let claim = scope.spawn(|| b.claim(pages(0, 4), Access::Exclusive).err());
        wait_until(|| b.has(page(1)));
        a_while();
        drop(region);
        let gone = claim.join().unwrap().expect("it ended without the pages");
        assert!(matches!(gone, ClaimError::RegionGone { .. }), "{gone}");
    });
    drop(lease);
}

pub(crate) fn a_touch_that_waits_when_the_region_is_dropped(rig: Rig) {
    // Only a raw pointer outlives the region.
    if rig.backend == BackendKind::Sim {
        return;
    }
    let bench = rig.patient();
    let (region, device) = (bench.region(1), bench.device());
    let view = region.attach(&device).unwrap();
    let lease = view.claim(one(0), Access::Exclusive).unwrap();
    view.words(page(0))[0].store(7, SeqCst);
    let address = region.as_ptr().cast::<u64>().as_ptr().expose_provenance();
    thread::scope(|scope| {
        let toucher = scope.spawn(move || {
            // SAFETY: the lease keeps the mapping; nobody writes but by atomics.
            unsafe { std::ptr::with_exposed_provenance::<u64>(address).read_volatile() }
        });
        wait_until(|| bench.stats().touches == 1);
        a_while();
        drop(region);
        assert_eq!(toucher.join().unwrap(), 7);
    });
    drop(lease);
}

pub(crate) fn several_regions_and_several_devices(rig: Rig) {
    let bench = rig.bench(|builder| builder);
    let regions = [3, 1, 8].map(|pages| bench.region(pages));
    let devices = [(); 4].map(|()| bench.device());
    assert!(regions.windows(2).all(|pair| pair[0].id() != pair[1].id()));
    for (number, region) in (1u64..).zip(&regions) {
        let views = devices.each_ref().map(|device| region.attach(device).unwrap());
        for (turn, view) in (1u64..).zip(&views) {
            view.claim(region.pages(), Access::Exclusive).unwrap().end().unwrap();
            region.pages().iter().for_each(|page| {
                let word = &view.words(page)[0];
                word.store(word.load(SeqCst) + turn * number, SeqCst);
            });
        }
        assert!(views[3].has(page(0)) && !views[0].has(page(0)));
        assert!(region.pages().iter().all(|page| cpu(region).load(page.0, 0) == 10 * number));
    }
    let other = rig.bench(|builder| builder);
    let foreign = other.region(1).attach(&devices[2]).err().expect("of another space");
    assert!(matches!(foreign, AttachError::ForeignDevice { device } if device == devices[2].id()), "{foreign}");
}

pub(crate) fn a_software_device_and_the_cpu_count_together(rig: Rig) {
    const OPERATIONS: u32 = 400;
    for policy in [RestorePolicy::Lazy, RestorePolicy::Eager, RestorePolicy::Adaptive] {
        let bench = rig.bench(|builder| builder.restore(policy));
        let region = bench.region(8);
        let cpu = cpu(&region);
        let device = SoftwareDevice::start(&bench.space, SoftwareConfig { workers: 2, pause: 20, exclusive: true });
        let device = device.unwrap();
        let view = device.attach(&region).unwrap();
        let items: Vec<_> = (0..OPERATIONS).map(|n| Item::new(n * 5 % 8, 1)).collect();
        let job = device.submit(&view, |page: &DevicePage<'_>, by| page.update(1, |value| value + by), &items);
        for n in 0..OPERATIONS {
            cpu.add(n * 3 % 8, 1, 1);
        }
        job.wait().unwrap();
        drop((view, device));
        let total: u64 = (0..8).map(|index| cpu.load(index, 1)).sum();
        assert_eq!(total, 2 * u64::from(OPERATIONS), "{policy:?}");
    }
}

pub(crate) fn a_notifier_hears_of_what_concerns_it(rig: Rig) {
    let bench = rig.bench(|builder| builder);
    let (region, a, b) = (bench.region(16), bench.device(), bench.device());
    let (a, b) = (region.attach(&a).unwrap(), region.attach(&b).unwrap());
    let cpu = cpu(&region);
    let notifier = a.subscribe(pages(4, 8)).unwrap();
    let seq = notifier.read_begin();
    a.claim(pages(0, 16), Access::Exclusive).unwrap().end().unwrap();
    cpu.load(2, 0);
    cpu.load(8, 0);
    b.claim(pages(9, 12), Access::Exclusive).unwrap().end().unwrap();
    assert!(!notifier.read_retry(seq), "neither a claim of the device itself nor other pages concern it");
    cpu.load(5, 0);
    assert!(notifier.read_retry(seq), "a touch does");
    let seq = notifier.read_begin();
    assert!(!notifier.read_retry(seq));
    b.claim(one(6), Access::Exclusive).unwrap().end().unwrap();
    assert!(notifier.read_retry(seq), "another device does");
    let seq = notifier.read_begin();
    a.claim(one(6), Access::Exclusive).unwrap().end().unwrap();
    assert!(!notifier.read_retry(seq), "pages that become the device's own do not");
    region.prefetch(pages(7, 8));
    assert!(notifier.read_retry(seq), "a prefetch does");
    let elsewhere = thread::scope(|scope| scope.spawn(|| notifier.read_retry(seq)).join().unwrap());
    assert!(elsewhere, "any thread may ask");
}

pub(crate) fn capabilities_are_honest(rig: Rig) {
    let bench = rig.bench(|builder| builder);
    let (region, device) = (bench.region(2), bench.device());
    assert_eq!((region.backend(), bench.space.faults()), (rig.backend, rig.faults));
    assert_eq!(region.sim_cpu().is_some(), rig.backend == BackendKind::Sim);
    let (view, capabilities) = (region.attach(&device).unwrap(), region.capabilities());
    let claimed = view.claim(one(0), Access::ExclusiveWrite);
    assert_eq!(claimed.is_ok(), capabilities.exclusive_write);
    // What `cover` promises is shown by `limits.rs`: a late store of a stuck operation lands nowhere.
    assert_eq!(capabilities.cover, rig.backend != BackendKind::Sim);
    assert_eq!(view.page_ptr(page(0)).is_some(), rig.backend != BackendKind::Sim);
    assert!(view.page_ptr(page(2)).is_none());
}
