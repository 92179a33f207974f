//! The same pages in several hands: the CPU's, this device's while it is idle, busy or about to be, other devices', a child's.
#![cfg(target_arch = "x86_64")]

mod support;

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

use pagelease::software::{DevicePage, Item, SoftwareConfig, SoftwareDevice};
use pagelease::{Access, ByteLen, ClaimError, PageIndex, PageRange, RegionError, RestorePolicy, Space};
use pagelease_kvm::{JobError, KvmConfig, KvmDevice, LoadError, SubmitError};
use support::{add, add_split, add_until, address, eventually, has_kvm, region};

fn device(space: &Space, vcpus: usize) -> KvmDevice {
    KvmDevice::start(space, KvmConfig { vcpus, deadline: Duration::from_secs(60), ..KvmConfig::default() }).unwrap()
}

#[test]
fn a_touch_finds_what_an_idle_device_did_and_none_is_spurious() {
    if !has_kvm() {
        return;
    }
    let space = Space::new().unwrap();
    let (device, region) = (device(&space, 1), region(&space, 32));
    let _view = device.attach(&region).unwrap();
    let kernel = device.load(add()).unwrap();
    for round in 1..=20 {
        let argument = [address(&region, 0), 32, 1, 4096];
        device.submit(&kernel, &argument, 1).unwrap().wait().unwrap();
        assert!((0..32).all(|page| region.words()[page * 512].load(Relaxed) == round));
    }
    let stats = space.stats();
    assert_eq!((stats.invalidations_spurious, stats.devices_lost, stats.holds_broken), (0, 0, 0));
}

#[test]
fn pages_are_taken_from_a_device_whose_job_waits() {
    if !has_kvm() {
        return;
    }
    let space = Space::new().unwrap();
    let (device, region) = (device(&space, 1), region(&space, 4));
    let view = device.attach(&region).unwrap();
    let (add, add_until) = (device.load(add()).unwrap(), device.load(add_until()).unwrap());
    let count = |rounds| [address(&region, 0), 1, rounds, 4096];
    device.submit(&add, &count(5), 1).unwrap().wait().unwrap();
    eventually(|| view.view().has(PageIndex(0)));
    let running = device.submit(&add_until, &[address(&region, 1024), address(&region, 1536)], 1).unwrap();
    let waiting = device.submit(&add, &count(7), 1).unwrap();
    assert_eq!(region.words()[0].fetch_add(1, SeqCst), 5);
    assert!(!waiting.is_over() && !view.view().has(PageIndex(0)));
    region.words()[1536].store(1, SeqCst);
    assert_eq!(running.wait().unwrap()[0], region.words()[1024].load(SeqCst));
    waiting.wait().unwrap();
    assert_eq!(region.words()[0].load(SeqCst), 13);
}

#[test]
fn an_instruction_on_two_pages_gets_both_while_the_cpu_wants_both() {
    if !has_kvm() {
        return;
    }
    let space = Space::new().unwrap();
    let (device, region) = (device(&space, 1), region(&space, 2));
    let _view = device.attach(&region).unwrap();
    let kernel = device.load(add_split()).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let touched: Vec<_> = [0, 512]
            .map(|word| {
                let (region, done) = (&region, &done);
                scope.spawn(move || {
                    let mut count = 0u64;
                    while !done.load(SeqCst) {
                        region.words()[word].fetch_add(1, SeqCst);
                        count += 1;
                    }
                    (word, count)
                })
            })
            .into_iter()
            .collect();
        let argument = [address(&region, 511) + 4, 3000];
        device.submit(&kernel, &argument, 1).unwrap().wait().unwrap();
        done.store(true, SeqCst);
        for thread in touched {
            let (word, count) = thread.join().unwrap();
            let own = if word == 0 { count } else { 0 };
            assert_eq!(
                region.words()[word].load(SeqCst) & 0xFFFF_FFFF,
                if word == 0 { own } else { count & 0xFFFF_FFFF }
            );
        }
    });
    assert_eq!(region.words()[511].load(SeqCst) >> 32, 3000);
}

#[test]
fn devices_of_two_kinds_and_the_cpu_on_one_word() {
    if !has_kvm() {
        return;
    }
    let (rounds, words) = (300u32, 3u32);
    let space = Space::new().unwrap();
    let region = region(&space, 3);
    let (one, other) = (device(&space, 1), device(&space, 1));
    let software = SoftwareDevice::start(&space, SoftwareConfig { pause: 20, ..SoftwareConfig::default() }).unwrap();
    let _views = (one.attach(&region).unwrap(), other.attach(&region).unwrap());
    let view = software.attach(&region).unwrap();
    let argument = [address(&region, 0), words.into(), rounds.into(), 4096];
    let jobs = [&one, &other].map(|device| device.submit(&device.load(add()).unwrap(), &argument, 1).unwrap());
    let items: Vec<_> = (0..rounds * words).map(|n| Item::new(n % words, 1)).collect();
    let job = software.submit(&view, |page: &DevicePage<'_>, n| page.update(0, |value| value + n), &items);
    for n in 0..rounds * words {
        region.words()[(n % words) as usize * 512].fetch_add(1, SeqCst);
    }
    jobs.into_iter().for_each(|job| _ = job.wait().unwrap());
    job.wait().unwrap();
    let counts: Vec<_> = (0..3).map(|page| region.words()[page * 512].load(SeqCst)).collect();
    assert_eq!(counts, [u64::from(rounds) * 4; 3]);
}

#[test]
fn every_restore_policy_is_exact() {
    if !has_kvm() {
        return;
    }
    for policy in [RestorePolicy::Lazy, RestorePolicy::Eager, RestorePolicy::Adaptive] {
        let space = Space::builder().restore(policy).build().unwrap();
        let (device, region) = (device(&space, 2), region(&space, 6));
        let _view = device.attach(&region).unwrap();
        let kernel = device.load(add()).unwrap();
        let job = device.submit(&kernel, &[address(&region, 0), 6, 400, 4096], 2).unwrap();
        for n in 0..6 * 100 {
            region.words()[n % 6 * 512].fetch_add(1, SeqCst);
        }
        job.wait().unwrap();
        let counts: Vec<_> = (0..6).map(|page| region.words()[page * 512].load(SeqCst)).collect();
        assert_eq!(counts, [500; 6], "{policy:?}");
    }
}

#[test]
fn a_claim_ahead_of_a_kernel_spares_its_faults() {
    if !has_kvm() {
        return;
    }
    let space = Space::new().unwrap();
    let (device, region) = (device(&space, 1), region(&space, 64));
    let view = device.attach(&region).unwrap();
    let kernel = device.load(add()).unwrap();
    let lease = view.view().claim(region.pages(), Access::Exclusive).unwrap();
    let before = space.stats().claims;
    device.submit(&kernel, &[address(&region, 0), 64, 1, 4096], 1).unwrap().wait().unwrap();
    assert_eq!(space.stats().claims, before);
    lease.end().unwrap();
    assert!((0..64).all(|page| region.words()[page * 512].load(Relaxed) == 1));
}

#[test]
fn a_touch_waits_for_a_lease_and_then_sees_all() {
    if !has_kvm() {
        return;
    }
    let space = Space::builder().hold_limit(Duration::MAX).build().unwrap();
    let (device, region) = (device(&space, 1), region(&space, 1));
    let view = device.attach(&region).unwrap();
    let kernel = device.load(add()).unwrap();
    let lease = view.view().claim(region.pages(), Access::Exclusive).unwrap();
    let touched = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let toucher = scope.spawn(|| {
            let found = region.words()[0].load(SeqCst);
            touched.store(true, SeqCst);
            found
        });
        for _ in 0..20 {
            device.submit(&kernel, &[address(&region, 0), 1, 50, 4096], 1).unwrap().wait().unwrap();
        }
        assert!(!touched.load(SeqCst));
        drop(lease);
        assert_eq!(toucher.join().unwrap(), 1000);
    });
}

#[test]
fn pages_that_the_program_has_unmapped_fail_the_kernel_that_uses_them() {
    if !has_kvm() {
        return;
    }
    let space = Space::new().unwrap();
    let (device, region) = (device(&space, 1), region(&space, 8));
    let _view = device.attach(&region).unwrap();
    let kernel = device.load(add()).unwrap();
    let gone = PageRange::new(4, 6).unwrap();
    // SAFETY: nobody uses the addresses any more.
    unsafe { region.unmap(gone) }.unwrap();
    let failed = device.submit(&kernel, &[address(&region, 0), 8, 1, 4096], 1).unwrap().wait();
    assert!(matches!(failed, Err(JobError::Claim(ClaimError::Unmapped { .. }))), "{failed:?}");
    assert_eq!(region.words()[512].load(Relaxed), 1, "what came before them");
    device.submit(&kernel, &[address(&region, 0), 4, 1, 4096], 1).unwrap().wait().unwrap();
    assert_eq!(region.words()[512].load(Relaxed), 2);
}

#[test]
fn huge_pages_of_a_pool() {
    if !has_kvm() {
        return;
    }
    let space = Space::new().unwrap();
    let region = match space.allocate_huge(ByteLen(2 << 21)) {
        Ok(region) => region,
        Err(why @ RegionError::TooFewHugePages { .. }) => return eprintln!("skipped: {why}"),
        Err(why) => panic!("{why}"),
    };
    let (device, words) = (device(&space, 1), region.words());
    words[0].store(0, Relaxed);
    let _view = device.attach(&region).unwrap();
    let kernel = device.load(add()).unwrap();
    // Every base page of both huge ones, of which the CPU has touched one.
    let job = device.submit(&kernel, &[address(&region, 0), 1024, 20, 4096], 1).unwrap();
    for n in 0..200 {
        words[n % 1024 * 512].fetch_add(1, SeqCst);
    }
    job.wait().unwrap();
    assert_eq!((0..1024).map(|page| words[page * 512].load(SeqCst)).sum::<u64>(), 1024 * 20 + 200);
}

#[test]
fn a_forked_child_has_nothing_of_it() {
    if !has_kvm() {
        return;
    }
    let space = Space::new().unwrap();
    let (device, region) = (device(&space, 1), region(&space, 2));
    let view = device.attach(&region).unwrap();
    let (kernel, add_until) = (device.load(add()).unwrap(), device.load(add_until()).unwrap());
    let job = device.submit(&add_until, &[address(&region, 0), address(&region, 512)], 1).unwrap();
    // SAFETY: the child makes calls that are to work in one, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let load = matches!(device.load(&[0xC3]), Err(LoadError::Forked));
        let submit = matches!(device.submit(&kernel, &[], 1), Err(SubmitError::Forked));
        job.cancel();
        let wait = matches!(job.wait(), Err(JobError::Forked));
        drop((view, kernel, add_until, device, region, space));
        // SAFETY: ends the child.
        unsafe { libc::_exit((!(load && submit && wait)).into()) };
    }
    let mut status = -1;
    // SAFETY: the pointer is to an int.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(status, 0);
    assert!(!job.is_over(), "the child's cancelling was its own");
    region.words()[512].store(1, SeqCst);
    assert_eq!(job.wait().unwrap()[0], region.words()[0].load(SeqCst));
}
