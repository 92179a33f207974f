//! What a KVM device does with memory that the CPU uses too.
#![cfg(target_arch = "x86_64")]

mod support;

use std::sync::Barrier;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

use pagelease::{ByteLen, Space};
use pagelease_kvm::{KvmConfig, KvmDevice};
use support::{add, add_until, address, apart, eventually, has_kvm, read, region, store, sum};

fn start(space: &Space, vcpus: usize, exclusive: bool) -> KvmDevice {
    // No machine is so busy.
    let deadline = Duration::from_secs(120);
    KvmDevice::start(space, KvmConfig { vcpus, deadline, exclusive }).unwrap()
}

fn device(space: &Space, vcpus: usize) -> KvmDevice {
    start(space, vcpus, true)
}

#[test]
fn a_kernel_is_a_function_called_once_a_lane() {
    if !has_kvm() {
        return;
    }
    let space = Space::new().unwrap();
    let device = device(&space, 2);
    let kernel = device.load(sum()).unwrap();
    for lanes in [1, 2, 9] {
        let results = device.submit(&kernel, &[100], lanes).unwrap().wait().unwrap();
        assert_eq!(results, (0..u64::from(lanes)).map(|lane| 100 + lane + u64::from(lanes)).collect::<Vec<_>>());
    }
}

#[test]
fn it_works_on_the_programs_own_pointers() {
    if !has_kvm() {
        return;
    }
    let space = Space::new().unwrap();
    let (device, region) = (device(&space, 1), region(&space, 3));
    let view = device.attach(&region).unwrap();
    let kernel = device.load(store()).unwrap();
    region.words()[700].store(1, Relaxed);
    device.submit(&kernel, &[address(&region, 700), 77], 1).unwrap().wait().unwrap();
    eventually(|| view.view().has(pagelease::PageIndex(1)));
    assert_eq!(region.words()[700].load(Relaxed), 77);
    assert!(!view.view().has(pagelease::PageIndex(1)), "the touch took it back");
}

#[test]
fn pages_that_nobody_has_touched_yet_are_claimed_too() {
    if !has_kvm() {
        return;
    }
    let space = Space::new().unwrap();
    let device = device(&space, 1);
    let region = space.allocate(ByteLen(64 * 4096)).unwrap();
    let view = device.attach(&region).unwrap();
    let kernel = device.load(add()).unwrap();
    let job = device.submit(&kernel, &[address(&region, 0), 64, 3, 4096], 1).unwrap();
    job.wait().unwrap();
    // The last fault's claim may still be about to say so.
    eventually(|| (0..64).all(|page| view.view().has(pagelease::PageIndex(page))));
    assert!((0..64).all(|page| region.words()[page * 512].load(Relaxed) == 3));
}

/// How many updates of `pages` words survive, of those that guest and host made.
fn race(vcpus: usize, pages: usize, rounds: u64, exclusive: bool) -> (u64, u64) {
    let space = Space::new().unwrap();
    let region = region(&space, pages);
    let device = start(&space, vcpus, exclusive);
    let _view = device.attach(&region).unwrap();
    let kernel = device.load(add()).unwrap();
    let start = Barrier::new(2);
    let done = AtomicBool::new(false);
    let by_host = std::thread::scope(|scope| {
        let host = scope.spawn(|| {
            apart();
            start.wait();
            let mut added = 0;
            while !done.load(SeqCst) {
                for page in 0..pages {
                    region.words()[page * 512].fetch_add(1, SeqCst);
                    added += 1;
                }
            }
            added
        });
        start.wait();
        let lanes = u32::try_from(vcpus).unwrap();
        let argument = [address(&region, 0), pages as u64, rounds, 4096];
        device.submit(&kernel, &argument, lanes).unwrap().wait().unwrap();
        done.store(true, SeqCst);
        host.join().unwrap()
    });
    let found = (0..pages).map(|page| region.words()[page * 512].load(SeqCst)).sum();
    (found, by_host + rounds * pages as u64)
}

#[test]
fn plain_updates_of_the_guest_are_exact_beside_atomic_ones_of_the_cpu() {
    if !has_kvm() {
        return;
    }
    for (vcpus, pages, rounds) in [(1, 1, 20_000_000), (1, 8, 200_000), (2, 8, 200_000), (3, 40, 5_000)] {
        let (found, made) = race(vcpus, pages, rounds, true);
        assert_eq!(found, made, "{vcpus} vCPUs on {pages} pages");
    }
}

#[test]
fn without_exclusivity_updates_are_lost() {
    if !has_kvm() {
        return;
    }
    // Until some are: it takes both sides to run at once.
    let lost = (0..100).any(|_| {
        let (found, made) = race(1, 1, 10_000_000, false);
        assert!(found <= made);
        found < made
    });
    assert!(lost, "the test above would not notice");
}

#[test]
fn neither_side_starves_on_one_word() {
    if !has_kvm() {
        return;
    }
    let space = Space::new().unwrap();
    let (device, region) = (device(&space, 1), region(&space, 2));
    let _view = device.attach(&region).unwrap();
    let kernel = device.load(add_until()).unwrap();
    apart();
    let job = device.submit(&kernel, &[address(&region, 0), address(&region, 512)], 1).unwrap();
    let mut by_host = 0u64;
    // Each restore takes the page away from a guest that wants nothing else.
    while space.stats().restores < 100 && !job.is_over() {
        region.words()[0].fetch_add(1, SeqCst);
        by_host += 1;
    }
    region.words()[512].store(1, SeqCst);
    let by_guest = job.wait().unwrap()[0];
    assert!(by_guest > 100 && by_host >= 100, "{by_guest} by the guest, {by_host} by the host");
    assert_eq!(region.words()[0].load(SeqCst), by_guest + by_host);
}

#[test]
fn a_sequential_reader_faults_less_than_once_a_page() {
    if !has_kvm() {
        return;
    }
    let space = Space::new().unwrap();
    let (device, region) = (device(&space, 1), region(&space, 256));
    let _view = device.attach(&region).unwrap();
    let kernel = device.load(read()).unwrap();
    let before = space.stats().claims;
    device.submit(&kernel, &[256 * 4096, address(&region, 0)], 1).unwrap().wait().unwrap();
    let claims = space.stats().claims - before;
    assert!((8..=20).contains(&claims), "{claims} claims");
}
