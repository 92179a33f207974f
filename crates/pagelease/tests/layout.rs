//! What the program does to its address space, behind the runtime's back, on adopted memory while devices have pages of it:
//! `munmap`, `madvise`, `mremap`, `mprotect`, `fork`, `posix_spawn`, a raw `clone`.
#![cfg(not(pagelease_shuttle))]

use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::Duration;

use pagelease::software::{DevicePage, Item, SoftwareConfig, SoftwareDevice};
use pagelease::{
    Access, BackendKind, ByteLen, ClaimError, DeviceHandle, Faults, Protection, Region, ReshapeError, Space, View,
};

use support::memory as kinds;
use support::private::{Memory, SEED, adopting};
use support::{End, MODES, PLAIN, Plain, at, fork, in_child, one, open, page, pages, wait_until, watchdog};

mod support;

/// Adopted memory of 16 pages, word 0 of each its number and 1000; a device has those from 4 on, and has added 100.
struct World {
    space: Space,
    memory: Memory,
    region: Region,
    view: View,
    _device: DeviceHandle<Plain>,
}

impl World {
    fn new(faults: Faults) -> Option<Self> {
        let space = adopting(Space::builder().faults(faults))?;
        let memory = Memory::pages(16);
        for index in 0..16 {
            memory.word(index, 0).store(1000 + u64::from(index), SeqCst);
        }
        let region = memory.adopt(&space);
        let device = space.register(PLAIN).unwrap();
        let view = region.attach(&device).unwrap();
        view.claim(pages(4, 16), Access::Exclusive).unwrap().end().unwrap();
        for index in 4..16 {
            view.words(page(index))[0].fetch_add(100, SeqCst);
        }
        Some(Self { space, memory, region, view, _device: device })
    }

    fn expected(index: u32) -> u64 {
        1000 + u64::from(index) + if index < 4 { 0 } else { 100 }
    }

    /// What nobody has dropped is as it should be, touched in place.
    fn assert_rest(&self, dropped: std::ops::Range<u32>) {
        for index in (0..16).filter(|index| !dropped.contains(index)) {
            assert_eq!(self.memory.word(index, 0).load(SeqCst), Self::expected(index), "page {index}");
        }
    }
}

/// Runs `test` in both modes.
fn each(test: impl Fn(World)) {
    let _watchdog = watchdog();
    for faults in MODES {
        let Some(world) = World::new(faults) else { return };
        test(world);
    }
}

#[test]
fn dont_need_drops_what_the_device_has_and_what_the_cpu_has() {
    each(|world| {
        assert_eq!(world.memory.advise(2, 8, libc::MADV_DONTNEED), 0);
        for index in 2..8 {
            assert_eq!(world.memory.word(index, 0).load(SeqCst), 0, "page {index}: old contents came back");
        }
        assert!(!world.view.has(page(5)) && world.view.has(page(9)));
        world.assert_rest(2..8);
        // It goes on: with zeroes.
        world.view.claim(pages(0, 16), Access::Exclusive).unwrap().end().unwrap();
        assert_eq!(world.view.words(page(5))[0].load(SeqCst), 0);
        world.view.words(page(5))[0].store(77, SeqCst);
        assert_eq!(world.memory.word(5, 0).load(SeqCst), 77);
        assert_eq!(world.space.stats().invalidations_spurious, 0);
    });
}

#[test]
fn dont_need_ends_a_lease() {
    each(|world| {
        let lease = world.view.claim(pages(4, 8), Access::Exclusive).unwrap();
        assert_eq!(world.memory.advise(6, 7, libc::MADV_DONTNEED), 0);
        assert_eq!(world.memory.word(6, 0).load(SeqCst), 0);
        let broken = lease.end().unwrap_err();
        assert_eq!((broken.first, broken.lost), (page(6), 1));
        world.assert_rest(6..7);
    });
}

/// Claims, touches and DONTNEED of one page by three threads: what was there before a DONTNEED never comes back after it.
#[test]
fn dont_need_never_brings_old_contents_back() {
    let _watchdog = watchdog();
    for faults in MODES {
        let Some(space) = adopting(Space::builder().faults(faults)) else { return };
        let memory = Memory::pages(8);
        let region = memory.adopt(&space);
        let device = space.register(PLAIN).unwrap();
        let view = region.attach(&device).unwrap();
        let done = AtomicU64::new(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                while done.load(SeqCst) == 0 {
                    let _ = view.claim(pages(0, 8), Access::Exclusive).unwrap().end();
                    thread::yield_now();
                }
            });
            for round in 1..=1500 {
                for index in 0..8 {
                    memory.word(index, 5).store(round, SeqCst);
                }
                if round % 3 == 0 {
                    thread::yield_now();
                }
                assert_eq!(memory.advise(0, 8, libc::MADV_DONTNEED), 0);
                for index in 0..8 {
                    assert_eq!(memory.word(index, 5).load(SeqCst), 0, "round {round}, page {index}, {faults:?}");
                }
            }
            done.store(1, SeqCst);
        });
    }
}

#[test]
fn after_munmap_nobody_reaches_the_contents() {
    each(|world| after_munmap(&world));
}

fn after_munmap(world: &World) {
    world.memory.unmap(6, 9);
    // The device is cut off within the drain limit, not at once.
    wait_until(|| (6..9).all(|index| world.view.words(page(index))[0].load(SeqCst) != World::expected(index)));
    assert!(!world.view.has(page(6)) && !world.view.has(page(8)) && world.view.has(page(9)));
    let refused = world.view.claim(pages(5, 8), Access::Exclusive).unwrap_err();
    assert!(matches!(refused, ClaimError::Unmapped { pages: refused } if refused.contains(page(6))), "{refused}");
    world.assert_rest(6..9);
}

#[test]
fn what_is_mapped_where_something_was_unmapped_is_the_programs() {
    in_child("what_is_mapped_where_something_was_unmapped_is_the_programs", || {
        for faults in MODES {
            // Somebody else may map something there first.
            let tried = (0..50).find_map(|_| World::new(faults).map(map_in_the_gap)?);
            assert!(tried.is_some() || World::new(faults).is_none(), "the gap was never free");
        }
    });
}

/// `None`: somebody else has mapped something there.
fn map_in_the_gap(world: World) -> Option<()> {
    // One page: no thread's signal stack fits.
    world.memory.unmap(6, 7);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let place = world.memory.start().as_ptr().wrapping_add(6 * 4096).cast();
    // SAFETY: nothing is mapped there, or it fails.
    let new = unsafe { libc::mmap(place, 4096, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if new == libc::MAP_FAILED {
        return None;
    }
    world.memory.word(6, 0).store(5, SeqCst);
    // What the device has still is the page that was there.
    wait_until(|| !world.view.has(page(6)));
    assert!(world.view.claim(one(6), Access::Exclusive).is_err());
    assert_eq!(world.memory.word(6, 0).load(SeqCst), 5);
    let World { memory, region, view, .. } = world;
    drop((region, view));
    assert_eq!(memory.word(6, 0).load(SeqCst), 5);
    assert_eq!(memory.word(9, 0).load(SeqCst), World::expected(9));
    // SAFETY: ours.
    unsafe { libc::munmap(place, 4096) };
    Some(())
}

#[test]
fn mremap_carries_contents_and_exclusivity() {
    each(|world| {
        let new = world.memory.remap(3, 10);
        let at = |index: u32| {
            // SAFETY: the pages are mapped there now.
            unsafe { AtomicU64::from_ptr(new.wrapping_add((index as usize - 3) * 4096).cast()) }
        };
        // Right after: whoever has read the event need not have dealt with it.
        assert_eq!(at(7).load(SeqCst), World::expected(7));
        assert_eq!(at(3).load(SeqCst), World::expected(3));
        assert!(world.view.has(page(8)), "it stays exclusive");
        let word = &world.view.words(page(8))[0];
        word.store(word.load(SeqCst) + 5, SeqCst);
        assert_eq!(at(8).load(SeqCst), World::expected(8) + 5);
        // And can be claimed there.
        world.view.claim(pages(0, 16), Access::Exclusive).unwrap().end().unwrap();
        world.view.words(page(3))[0].fetch_add(1, SeqCst);
        assert_eq!(at(3).load(SeqCst), World::expected(3) + 1);
        world.assert_rest(3..10);
        let World { memory, region, view, .. } = world;
        view.claim(pages(0, 16), Access::Exclusive).unwrap().end().unwrap();
        drop((region, view));
        assert_eq!(at(9).load(SeqCst), World::expected(9));
        assert_eq!(memory.word(12, 0).load(SeqCst), World::expected(12));
        // SAFETY: ours.
        unsafe { libc::munmap(new.cast(), 7 * 4096) };
    });
}

/// The mapping that an adopted range lies in may grow; what is added is the program's own, and no touch of it is lost.
#[test]
fn what_is_added_to_a_mapping_is_the_programs() {
    each(|world| {
        let (start, len) = (world.memory.start().as_ptr(), 16 * 4096);
        world.memory.lose_all();
        // SAFETY: the memory is ours; nothing else refers to it by its old address.
        let new = unsafe { libc::mremap(start.cast(), len, 4 * len, libc::MREMAP_MAYMOVE) };
        assert_ne!(new, libc::MAP_FAILED);
        let at = |index: usize| {
            // SAFETY: within the mapping.
            unsafe { AtomicU64::from_ptr(new.cast::<u8>().wrapping_add(index * 4096).cast()) }
        };
        assert_eq!(at(40).fetch_add(3, SeqCst), 0);
        assert_eq!((at(40).load(SeqCst), at(5).load(SeqCst)), (3, World::expected(5)));
        drop((world.region, world.view));
        assert_eq!((at(40).load(SeqCst), at(7).load(SeqCst)), (3, World::expected(7)));
        // SAFETY: ours.
        unsafe { libc::munmap(new, 4 * len) };
    });
}

#[test]
fn a_device_may_not_write_what_the_program_may_not() {
    each(|world| {
        world.memory.protect(3, 7, libc::PROT_READ);
        assert_eq!(world.memory.word(5, 0).load(SeqCst), World::expected(5), "the CPU reads what the device wrote");
        let refused = world.view.claim(pages(2, 6), Access::Exclusive).unwrap_err();
        assert!(
            matches!(refused, ClaimError::Protected { pages } if pages == one(3) || pages.contains(page(3))),
            "{refused}"
        );
        assert!(refused.to_string().contains("mprotect"), "{refused}");
        world.assert_rest(0..0);
        world.memory.protect(3, 7, libc::PROT_READ | libc::PROT_WRITE);
        world.view.claim(pages(2, 6), Access::Exclusive).unwrap().end().unwrap();
        world.assert_rest(0..0);
    });
}

#[test]
fn collapse_does_not_let_the_cpu_in() {
    /// `MADV_COLLAPSE`, Linux 6.1.
    const COLLAPSE: i32 = 25;
    let _watchdog = watchdog();
    for faults in MODES {
        let Some(space) = adopting(Space::builder().faults(faults)) else { return };
        let Some(memory) = Memory::huge(1) else { return };
        let region = memory.adopt(&space);
        let device = space.register(PLAIN).unwrap();
        let view = region.attach(&device).unwrap();
        for claimed in [pages(0, 512), pages(100, 200)] {
            view.claim(claimed, Access::Exclusive).unwrap().end().unwrap();
            let _ = memory.advise(0, 512, COLLAPSE);
            assert!(claimed.iter().all(|page| view.has(page)));
            view.words(page(150))[1].fetch_add(1, SeqCst);
            let before = space.stats().touches;
            let word = memory.word(150, 1).load(SeqCst);
            assert!(word > 0 && word == view_count(claimed), "{word}");
            wait_until(|| space.stats().touches > before);
        }
    }

    fn view_count(claimed: pagelease::PageRange) -> u64 {
        if claimed.len() == 512 { 1 } else { 2 }
    }
}

#[test]
fn a_forked_child_has_a_snapshot() {
    in_child("a_forked_child_has_a_snapshot", || {
        for faults in MODES {
            let Some(world) = World::new(faults) else { return };
            let lease = world.view.claim(pages(4, 16), Access::Exclusive).unwrap();
            let World { space, memory, region, view, .. } = &world;
            let (mut ready, mut go) = ([0; 2], [0; 2]);
            // SAFETY: room for two descriptors each.
            assert_eq!(unsafe { libc::pipe(ready.as_mut_ptr()) + libc::pipe(go.as_mut_ptr()) }, 0);
            let child = thread::scope(|scope| {
                let child = scope.spawn(|| {
                    // SAFETY: the child looks at memory and exits.
                    let child = unsafe { libc::fork() };
                    if child == 0 {
                        let mut byte = [0u8];
                        // SAFETY: room for a byte.
                        unsafe { libc::read(go[0], byte.as_mut_ptr().cast(), 1) };
                        let whole = (0..16).all(|index| memory.word(index, 0).load(SeqCst) == World::expected(index));
                        memory.word(4, 1).store(9, SeqCst);
                        let inert = matches!(view.claim(one(4), Access::Exclusive), Err(ClaimError::Forked { .. }))
                            && region.attach(&world._device).is_err();
                        // SAFETY: no precondition.
                        unsafe { libc::_exit(i32::from(!whole) + 2 * i32::from(!inert)) };
                    }
                    child
                });
                child.join().unwrap()
            });
            assert!(child > 0, "fork failed for a held page");
            assert!(lease.end().is_err(), "the pages were brought home");
            assert_eq!(space.stats().holds_broken, 12);
            // The parent's device goes on, while the child is there.
            view.claim(pages(0, 16), Access::Exclusive).unwrap().end().unwrap();
            for index in 0..16 {
                view.words(page(index))[0].fetch_add(10_000, SeqCst);
            }
            assert_eq!(memory.word(9, 0).load(SeqCst), World::expected(9) + 10_000);
            let mut status = -1;
            // SAFETY: a byte to write, and room for an int.
            unsafe {
                libc::write(go[1], [1u8].as_ptr().cast(), 1);
                libc::waitpid(child, &raw mut status, 0);
            }
            assert_eq!(status, 0, "exit status of the child, {faults:?}");
            assert_eq!(memory.word(4, 1).load(SeqCst), 0, "what the child stores is its own");
            for index in 0..16 {
                assert_eq!(memory.word(index, 0).load(SeqCst), World::expected(index) + 10_000);
            }
        }
    });
}

#[test]
fn many_forks_while_a_device_works() {
    in_child("many_forks_while_a_device_works", || {
        for faults in MODES {
            let Some(space) = adopting(Space::builder().faults(faults)) else { return };
            let memory = Memory::pages(16);
            let region = memory.adopt(&space);
            let device = SoftwareDevice::start(&space, SoftwareConfig { workers: 2, ..Default::default() }).unwrap();
            let view = device.attach(&region).unwrap();
            let items: Vec<_> = (0..20_000).map(|n| Item::new(n % 16, 1)).collect();
            let job = device.submit(&view, |page: &DevicePage<'_>, n| page.update(0, |v| v + n), &items);
            let mut added = 0;
            for _ in 0..40 {
                let end = fork(|| {
                    let sum = || (0..16).map(|index| memory.word(index, 0).load(SeqCst)).sum::<u64>();
                    let before = sum();
                    thread_sleep();
                    before == sum()
                });
                assert_eq!(end, End::Exit(0), "{faults:?}");
                memory.word(added % 16, 0).fetch_add(1, SeqCst);
                added += 1;
            }
            job.wait().unwrap();
            let total: u64 = (0..16).map(|index| memory.word(index, 0).load(SeqCst)).sum();
            assert_eq!(total, 20_000 + u64::from(added), "{faults:?} {:?}", space.stats());
        }
    });

    fn thread_sleep() {
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn other_ways_to_start_a_process_do_no_harm() {
    in_child("other_ways_to_start_a_process_do_no_harm", || {
        for faults in MODES {
            let Some(world) = World::new(faults) else { return };
            assert!(std::process::Command::new("true").status().unwrap().success());
            assert!(world.view.has(page(5)), "nothing was brought home for it");
            // A raw clone calls no handler: the child finds zeroes where the device has pages.
            // SAFETY: the child looks at memory and exits.
            let child = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
            if child == 0 {
                let at_cpu = world.memory.word(1, 0).load(SeqCst) == World::expected(1);
                let at_device = world.memory.word(5, 0).load(SeqCst) == 0;
                drop(world);
                // SAFETY: no precondition.
                unsafe { libc::_exit(i32::from(!(at_cpu && at_device))) };
            }
            let mut status = -1;
            // SAFETY: room for an int.
            unsafe { libc::waitpid(i32::try_from(child).unwrap(), &raw mut status, 0) };
            assert_eq!(status, 0, "{faults:?}");
            world.view.claim(pages(0, 16), Access::Exclusive).unwrap().end().unwrap();
            world.assert_rest(0..0);
        }
    });
}

/// Everything at once, on any thread: the counts are exact, and nothing hangs.
#[test]
fn all_of_it_at_once() {
    in_child("all_of_it_at_once", || {
        for faults in MODES {
            let Some(space) = adopting(Space::builder().faults(faults).hold_limit(Duration::from_millis(20))) else {
                return;
            };
            // Counted: the first 16 pages. Harassed: the next 16.
            let memory = Memory::pages(32);
            let region = memory.adopt(&space);
            let device = SoftwareDevice::start(&space, SoftwareConfig { workers: 2, ..Default::default() }).unwrap();
            let view = device.attach(&region).unwrap();
            let (stop, harassed) = (AtomicU64::new(0), AtomicU64::new(0));
            let mut submitted = 0;
            let touched = thread::scope(|scope| {
                let toucher = scope.spawn(|| {
                    let (mut index, mut touched) = (0, 0);
                    while stop.load(SeqCst) == 0 {
                        memory.word(index, 0).fetch_add(1, SeqCst);
                        touched += u64::from(index < 16);
                        index = (index + 1) % 32;
                    }
                    touched
                });
                let harasser = scope.spawn(|| {
                    let mut round = 0;
                    while stop.load(SeqCst) == 0 {
                        let from = 16 + round % 12;
                        match round % 3 {
                            0 => assert_eq!(memory.advise(from, from + 3, libc::MADV_DONTNEED), 0),
                            1 => assert_eq!(memory.advise(from, from + 3, libc::MADV_FREE), 0),
                            _ => assert_eq!(fork(|| true), End::Exit(0)),
                        }
                        round += 1;
                        harassed.fetch_add(1, SeqCst);
                        thread::sleep(Duration::from_micros(200));
                    }
                });
                let mut round = 0;
                while round < 60 || harassed.load(SeqCst) < 30 {
                    round += 1;
                    let items: Vec<_> = (0..640).map(|n| Item::new((n + round) % 32, 1)).collect();
                    let count = |page: &DevicePage<'_>, n: u64| page.update(0, |v| v + n);
                    device.submit(&view, count, &items).wait().unwrap();
                    submitted += 1;
                }
                stop.store(1, SeqCst);
                harasser.join().unwrap();
                toucher.join().unwrap()
            });
            let total: u64 = (0..16).map(|index| memory.word(index, 0).load(SeqCst)).sum();
            assert_eq!(total, touched + submitted * 320, "{faults:?} {:?}", space.stats());
        }
    });
}

#[test]
fn adopting_again_after_all_of_it() {
    each(|world| {
        let start = world.memory.start();
        world.memory.advise(0, 2, libc::MADV_DONTNEED);
        world.memory.unmap(14, 16);
        let World { space, memory, region, view, .. } = world;
        drop((view, region));
        // SAFETY: reached through atomics only.
        let region = unsafe { space.adopt(NonNull::new(start.as_ptr()).unwrap(), ByteLen(14 * 4096)) }.unwrap();
        assert_eq!(memory.word(5, 0).load(SeqCst), World::expected(5));
        assert_eq!(region.pages(), pages(0, 14));
    });
}

/// The kinds of memory, each in a space that serves it in `faults`.
fn made(faults: Faults) -> Vec<(&'static str, Space, Region)> {
    let mut made = Vec::new();
    if let Some(space) = open(Space::builder().faults(faults)) {
        made.push(("shared", space.clone(), kinds::Memory::Shared.allocate(&space, 16).unwrap().region));
        made.push(("a file's", space.clone(), kinds::Memory::Memfd.allocate(&space, 16).unwrap().region));
        if adopting(Space::builder()).is_some() {
            made.push(("adopted", space.clone(), kinds::Memory::Adopted.allocate(&space, 16).unwrap().region));
        }
    }
    if faults == Faults::InThread {
        let space = Space::builder().faults(faults).backend(BackendKind::Mprotect).build().unwrap();
        made.push(("mprotect", space.clone(), kinds::Memory::File.allocate(&space, 16).unwrap().region));
    }
    made
}

/// A device with all pages but the first, which it has added 100 to; the CPU had stored 1000 and the page's number.
fn device_on(space: &Space, region: &Region) -> (DeviceHandle<Plain>, View) {
    for index in 0..16 {
        at(region, index, 0).store(1000 + u64::from(index), SeqCst);
    }
    let device = space.register(PLAIN).unwrap();
    let view = region.attach(&device).unwrap();
    view.claim(pages(1, 16), Access::Exclusive).unwrap().end().unwrap();
    for index in 1..16 {
        view.words(page(index))[0].fetch_add(100, SeqCst);
    }
    (device, view)
}

// In a process of its own: a fork brings home what the devices of other tests have.
#[test]
fn a_region_s_own_protect() {
    in_child("a_region_s_own_protect", || {
        let _watchdog = watchdog();
        for (kind, space, region) in MODES.into_iter().flat_map(made) {
            let (_device, view) = device_on(&space, &region);
            if region.backend() == BackendKind::Mprotect {
                let refused = region.protect(pages(2, 6), Protection::Read).unwrap_err();
                assert!(matches!(refused, ReshapeError::Unsupported { .. }), "{refused}");
                continue;
            }
            region.protect(pages(2, 6), Protection::Read).unwrap();
            assert!((2..6).all(|index| !view.has(page(index))) && view.has(page(6)), "{kind}");
            assert_eq!(at(&region, 3, 0).load(SeqCst), 1103, "{kind}: the CPU reads what the device had written");
            let refused = view.claim(pages(0, 16), Access::Exclusive).unwrap_err();
            assert!(matches!(refused, ClaimError::Protected { pages } if pages.contains(page(2))), "{kind}: {refused}");
            assert_eq!(fork(|| at(&region, 3, 0).fetch_add(1, SeqCst) == 0), End::Signal(libc::SIGSEGV), "{kind}");
            region.protect(pages(2, 6), Protection::ReadWrite).unwrap();
            view.claim(pages(0, 16), Access::Exclusive).unwrap().end().unwrap();
            view.words(page(3))[0].fetch_add(1, SeqCst);
            assert_eq!(at(&region, 3, 0).fetch_add(1, SeqCst), 1104, "{kind}");
            assert!(region.protect(pages(0, 17), Protection::Read).is_err());
        }
    });
}

#[test]
fn a_region_s_own_unmap() {
    in_child("a_region_s_own_unmap", || {
        let _watchdog = watchdog();
        for (kind, space, region) in MODES.into_iter().flat_map(made) {
            let (_device, view) = device_on(&space, &region);
            let lease = view.claim(one(7), Access::Exclusive).unwrap();
            // SAFETY: nobody uses them any more.
            unsafe { region.unmap(pages(5, 9)) }.unwrap();
            assert!(lease.end().is_err(), "{kind}: the hold was broken at its limit");
            assert!(!view.has(page(5)) && view.has(page(9)), "{kind}");
            if kind == "shared" {
                assert_eq!(view.words(page(6))[0].load(SeqCst), 0, "{kind}: the device still reads it");
            }
            let refused = view.claim(pages(0, 16), Access::Exclusive).unwrap_err();
            assert!(matches!(refused, ClaimError::Unmapped { pages } if pages.contains(page(5))), "{kind}: {refused}");
            assert_eq!(fork(|| at(&region, 6, 0).load(SeqCst) == 0), End::Signal(libc::SIGSEGV), "{kind}");
            // SAFETY: as above.
            let again = unsafe { region.unmap(pages(8, 10)) };
            assert!(matches!(again, Err(ReshapeError::Unmapped { .. })), "{kind}");
            for index in (1..16).filter(|index| !(5..9).contains(index)) {
                assert_eq!(at(&region, index, 0).load(SeqCst), 1100 + u64::from(index), "{kind}");
            }
            view.claim(pages(9, 16), Access::Exclusive).unwrap().end().unwrap();
        }
    });
}

#[test]
fn a_region_s_own_remap() {
    let _watchdog = watchdog();
    for (kind, space, region) in MODES.into_iter().flat_map(made) {
        let (_device, view) = device_on(&space, &region);
        let old = region.as_ptr();
        // SAFETY: the old address is used no more.
        let new = match unsafe { region.remap(None) } {
            Ok(new) => new,
            Err(refused) => {
                assert!(matches!(refused, ReshapeError::Unsupported { .. }), "{kind}: {refused}");
                assert_eq!(region.backend(), BackendKind::Mprotect);
                continue;
            }
        };
        assert_ne!(new.cast::<u8>(), old.cast::<u8>());
        let word = |index: usize| {
            // SAFETY: within the new view.
            unsafe { AtomicU64::from_ptr(new.cast::<u64>().as_ptr().add(index * 512)) }
        };
        assert!(view.has(page(4)), "{kind}: it stays exclusive");
        view.words(page(4))[0].fetch_add(1, SeqCst);
        assert_eq!((word(4).load(SeqCst), word(0).load(SeqCst), word(9).load(SeqCst)), (1105, 1000, 1109), "{kind}");
        assert!(!view.has(page(4)), "{kind}: the touch took it back");
        view.claim(pages(0, 16), Access::Exclusive).unwrap().end().unwrap();
        view.words(page(0))[0].fetch_add(1, SeqCst);
        assert_eq!(word(0).fetch_add(1, SeqCst), 1001, "{kind}");
        if region.backend() != BackendKind::Move {
            assert_eq!(region.as_ptr(), new, "{kind}");
        }
        drop((view, region));
    }
}

#[test]
fn an_mprotect_behind_the_runtime_s_back_is_found() {
    let _watchdog = watchdog();
    for (kind, space, region) in MODES.into_iter().flat_map(made) {
        let (_device, view) = device_on(&space, &region);
        region.prefetch(region.pages());
        let start = region.as_ptr().cast::<u8>().as_ptr();
        let protect = |protection| {
            // SAFETY: the pages are the region's, and reached through atomics only.
            unsafe { libc::mprotect(start.wrapping_add(4 * 4096).cast(), 4 * 4096, protection) }
        };
        assert_eq!(protect(libc::PROT_READ), 0);
        // Asked at most once in a millisecond.
        thread::sleep(Duration::from_millis(2));
        let refused = view.claim(pages(2, 8), Access::Exclusive).unwrap_err();
        assert!(matches!(refused, ClaimError::Protected { .. }), "{kind}: {refused}");
        assert_eq!(at(&region, 5, 0).load(SeqCst), 1105, "{kind}");
        assert_eq!(protect(libc::PROT_READ | libc::PROT_WRITE), 0);
        view.claim(pages(2, 8), Access::Exclusive).unwrap().end().unwrap();
        assert_eq!(at(&region, 5, 0).fetch_add(1, SeqCst), 1105, "{kind}");
    }
}

#[test]
fn collapse_of_shared_memory_does_not_let_the_cpu_in() {
    /// `MADV_COLLAPSE`, Linux 6.1.
    const COLLAPSE: i32 = 25;
    let _watchdog = watchdog();
    for faults in MODES {
        let Some(space) = open(Space::builder().faults(faults)) else { return };
        let region = space.allocate(ByteLen(4 << 20)).unwrap();
        // Where a huge page could be mapped.
        let aligned = std::mem::ManuallyDrop::new(Memory::huge(2));
        let Some(aligned) = &*aligned else { return };
        // SAFETY: nobody uses either place.
        unsafe { region.remap(Some(aligned.start())) }.unwrap();
        (0..1024).for_each(|index| at(&region, index, 0).store(7, SeqCst));
        let device = space.register(PLAIN).unwrap();
        let view = region.attach(&device).unwrap();
        view.claim(pages(0, 1024), Access::Exclusive).unwrap().end().unwrap();
        let start = region.as_ptr().cast::<u8>().as_ptr();
        // SAFETY: the pages are the region's, and reached through atomics only.
        let collapsed = unsafe { libc::madvise(start.cast(), 4 << 20, COLLAPSE) };
        assert_eq!(collapsed, -1, "it is refused");
        for index in [0, 300, 600, 1023] {
            let before = space.stats().touches;
            view.words(page(index))[0].fetch_add(1, SeqCst);
            assert_eq!(at(&region, index, 0).load(SeqCst), 8, "{faults:?}");
            assert!(space.stats().touches > before, "{faults:?}: page {index} did not trap");
        }
    }
}

/// Of memory that the runtime made, `MADV_DONTNEED` changes nothing that anybody could see: the contents are the file's.
#[test]
fn dont_need_on_shared_memory_keeps_the_contents() {
    let _watchdog = watchdog();
    for (kind, space, region) in MODES.into_iter().flat_map(made).filter(|(kind, ..)| *kind != "adopted") {
        let (_device, view) = device_on(&space, &region);
        let start = region.as_ptr().cast::<u8>().as_ptr().cast();
        // SAFETY: the pages are the region's, and reached through atomics only.
        assert_eq!(unsafe { libc::madvise(start, 8 * 4096, libc::MADV_DONTNEED) }, 0);
        assert!(view.has(page(3)), "{kind}");
        view.words(page(3))[0].fetch_add(1, SeqCst);
        assert_eq!((at(&region, 3, 0).load(SeqCst), at(&region, 0, 0).load(SeqCst)), (1104, 1000), "{kind}");
    }
}

#[test]
fn a_view_that_is_dropped_leaves_what_another_device_has() {
    let _watchdog = watchdog();
    for faults in MODES {
        let Some(space) = adopting(Space::builder().faults(faults)) else { return };
        let memory = Memory::pages(8);
        let region = memory.adopt(&space);
        let (a, b) = (space.register(PLAIN).unwrap(), space.register(PLAIN).unwrap());
        let (a, b) = (region.attach(&a).unwrap(), region.attach(&b).unwrap());
        a.claim(pages(0, 8), Access::Exclusive).unwrap().end().unwrap();
        let lease = b.claim(pages(0, 8), Access::Exclusive).unwrap();
        b.words(page(3))[0].store(5, SeqCst);
        drop(a);
        b.words(page(3))[0].fetch_add(1, SeqCst);
        lease.end().unwrap();
        assert_eq!((space.stats().stray_accesses, memory.word(3, 0).load(SeqCst)), (0, 6), "{faults:?}");
    }
}

#[test]
fn dont_need_of_a_part_of_a_huge_granule_leaves_the_rest() {
    let _watchdog = watchdog();
    for faults in MODES {
        let Some(space) = adopting(Space::builder().faults(faults)) else { return };
        let Some(memory) = Memory::huge(2) else { return };
        let region = memory.adopt_huge(&space);
        let device = space.register(PLAIN).unwrap();
        let view = region.attach(&device).unwrap();
        for claimed in [false, true] {
            if claimed {
                view.claim(pages(0, 2), Access::Exclusive).unwrap().end().unwrap();
            }
            assert_eq!(memory.advise(5, 6, libc::MADV_DONTNEED), 0);
            // Ends in the next granule.
            assert_eq!(memory.advise(500, 520, libc::MADV_DONTNEED), 0);
            for index in (0..1024).filter(|index| *index != 5 && !(500..520).contains(index)) {
                assert_eq!(memory.word(index, 0).load(SeqCst), SEED, "page {index}, {claimed}, {faults:?}");
            }
            assert!(
                [5, 500, 519].iter().all(|index| memory.word(*index, 0).load(SeqCst) == 0),
                "{claimed}, {faults:?}"
            );
        }
    }
}

#[test]
fn changes_beside_a_drop_and_many_of_them() {
    in_child("changes_beside_a_drop_and_many_of_them", || {
        for faults in MODES {
            let Some(space) = adopting(Space::builder().faults(faults)) else { return };
            for _ in 0..20 {
                let memory = Memory::pages(16);
                let region = memory.adopt(&space);
                memory.unmap(4, 8);
                drop(region);
            }
            // A thousand moves of one piece leave room for more.
            let memory = Memory::pages(4);
            let region = memory.adopt(&space);
            memory.word(1, 0).store(9, SeqCst);
            memory.lose_all();
            let mut at = memory.start().as_ptr();
            for _ in 0..1500 {
                // SAFETY: the memory is the test's own; nothing else refers to it.
                unsafe {
                    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                    let room = libc::mmap(std::ptr::null_mut(), 4 * 4096, libc::PROT_NONE, flags, -1, 0);
                    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
                    at = libc::mremap(at.cast(), 4 * 4096, 4 * 4096, flags, room).cast();
                }
            }
            // SAFETY: mapped there now.
            let word = unsafe { AtomicU64::from_ptr(at.wrapping_add(4096).cast()) };
            assert_eq!((word.load(SeqCst), space.stats().pages_given_up), (9, 0), "{faults:?}");
            space.allocate(ByteLen(4096)).unwrap();
            drop(region);
            assert_eq!(word.load(SeqCst), 9);
            // SAFETY: ours.
            unsafe { libc::munmap(at.cast(), 4 * 4096) };
        }
    });
}

/// Two huge granules of a device, which has written to every small page of them.
struct Huge {
    space: Space,
    memory: Memory,
    region: Region,
    view: View,
    _device: DeviceHandle<Plain>,
}

impl Huge {
    fn new(faults: Faults) -> Option<Self> {
        let space = adopting(Space::builder().faults(faults))?;
        let memory = Memory::huge(2)?;
        let region = memory.adopt_huge(&space);
        let device = space.register(PLAIN).unwrap();
        let view = region.attach(&device).unwrap();
        view.claim(pages(0, 2), Access::Exclusive).unwrap().end().unwrap();
        let huge = Self { space, memory, region, view, _device: device };
        (0..1024).for_each(|index| huge.device_word(index).store(7000 + u64::from(index), SeqCst));
        Some(huge)
    }

    /// Word 1 of a small page, as the device sees it.
    fn device_word(&self, index: u32) -> &AtomicU64 {
        &self.view.words(page(index / 512))[index as usize % 512 * 512 + 1]
    }

    /// Small page `index`, which is at `start` now, has what the CPU wrote, and then the device.
    fn assert_at(start: *mut u8, index: u32, what: &str) {
        // SAFETY: it is mapped there, by the caller.
        let [seed, written] =
            [0, 1].map(|word| unsafe { AtomicU64::from_ptr(start.cast::<u64>().wrapping_add(word)) }.load(SeqCst));
        assert_eq!((seed, written), (SEED, 7000 + u64::from(index)), "page {index}, {what}");
    }

    fn assert_rest(&self, gone: &std::ops::Range<u32>, what: &str) {
        for index in (0..1024).filter(|index| !gone.contains(index)) {
            Self::assert_at(self.memory.start().as_ptr().wrapping_add(index as usize * 4096), index, what);
        }
    }
}

/// Parts of granules, at the start, within, at the end, and across the border of two.
const PARTS: [std::ops::Range<u32>; 4] = [0..3, 5..9, 500..512, 300..700];

#[test]
fn munmap_of_a_part_of_a_huge_granule_leaves_the_rest() {
    in_child("munmap_of_a_part_of_a_huge_granule_leaves_the_rest", || {
        let _watchdog = watchdog();
        for (faults, part) in MODES.into_iter().flat_map(|faults| PARTS.map(|part| (faults, part))) {
            let Some(huge) = Huge::new(faults) else { return };
            let what = format!("{part:?} {faults:?}");
            huge.memory.unmap(part.start as usize, part.end as usize);
            huge.assert_rest(&part, &what);
            // The device is cut off from what has gone, and from the granule.
            wait_until(|| part.clone().all(|index| huge.device_word(index).load(SeqCst) != 7000 + u64::from(index)));
            let refused = huge.view.claim(pages(0, 2), Access::Exclusive).unwrap_err();
            assert!(matches!(refused, ClaimError::Unmapped { .. }), "{refused}, {what}");
            let granules = u64::from(part.end.div_ceil(512) - part.start / 512);
            let stats = huge.space.stats();
            assert_eq!((stats.pages_given_up, stats.restores_failed), (granules, 0), "{what}");
            // What is left of it is the program's own again, and can be adopted anew.
            let start = huge.memory.start().as_ptr().wrapping_add(part.end as usize * 4096);
            // SAFETY: reached through atomics only.
            let again = unsafe { huge.space.adopt(NonNull::new(start).unwrap(), ByteLen(4096)) }.map(|_: Region| ());
            assert_eq!(again.is_ok(), part.end % 512 != 0, "{what} {again:?}");
        }
    });
}

#[test]
fn mremap_of_a_part_of_a_huge_granule_loses_nothing() {
    let _watchdog = watchdog();
    for (faults, part) in MODES.into_iter().flat_map(|faults| PARTS.map(|part| (faults, part))) {
        let Some(huge) = Huge::new(faults) else { return };
        let what = format!("{part:?} {faults:?}");
        let new = huge.memory.remap(part.start as usize, part.end as usize);
        for index in part.clone() {
            Huge::assert_at(new.wrapping_add((index - part.start) as usize * 4096), index, &what);
        }
        huge.assert_rest(&part, &what);
        assert_eq!(huge.space.stats().restores_failed, 0, "{what}");
        let Huge { space, memory, region, view, .. } = huge;
        drop((region, view));
        // Nobody's hand is on any of it any more.
        let behind = NonNull::new(memory.start().as_ptr().wrapping_add(part.end as usize * 4096)).unwrap();
        // SAFETY: reached through atomics only.
        unsafe { space.adopt(behind, ByteLen(4096 * (1024 - part.end as usize))) }.unwrap();
        // SAFETY: ours.
        unsafe { libc::munmap(new.cast(), part.len() * 4096) };
    }
}

/// While one change is dealt with, others come: about the same pages, too.
#[test]
fn parts_of_a_huge_granule_move_while_other_threads_change_the_rest() {
    in_child("parts_of_a_huge_granule_move_while_other_threads_change_the_rest", || {
        let _watchdog = watchdog();
        for (round, faults) in MODES.into_iter().cycle().take(30).enumerate() {
            let Some(huge) = Huge::new(faults) else { return };
            let what = format!("round {round} {faults:?}");
            let begin = std::sync::Barrier::new(3);
            let new = thread::scope(|scope| {
                // One drops what lies behind the part, another moves what lies before it, and a third the part.
                let dropping = scope.spawn(|| {
                    begin.wait();
                    for from in (320..480).step_by(16) {
                        assert_eq!(huge.memory.advise(from, from + 8, libc::MADV_DONTNEED), 0);
                        for index in from..from + 8 {
                            let found = huge.memory.word(u32::try_from(index).unwrap(), 1).load(SeqCst);
                            assert_eq!(found, 0, "page {index} came back, {what}");
                        }
                    }
                });
                let before = scope.spawn(|| {
                    begin.wait();
                    huge.memory.remap(10, 20).expose_provenance()
                });
                begin.wait();
                let new = huge.memory.remap(200, 300);
                dropping.join().unwrap();
                [(10..20, before.join().unwrap()), (200..300, new.expose_provenance())]
            });
            for (part, start) in new {
                for index in part.clone() {
                    let start: *mut u8 = std::ptr::with_exposed_provenance_mut(start);
                    Huge::assert_at(start.wrapping_add((index - part.start) as usize * 4096), index, &what);
                }
                // SAFETY: ours.
                unsafe { libc::munmap(std::ptr::with_exposed_provenance_mut(start), part.len() * 4096) };
            }
            let dropped = |index: &u32| (320..480).contains(index) && index % 16 < 8;
            let moved = |index: &u32| (10..20).contains(index) || (200..300).contains(index);
            for index in (0..1024).filter(|index| !dropped(index) && !moved(index)) {
                Huge::assert_at(huge.memory.start().as_ptr().wrapping_add(index as usize * 4096), index, &what);
            }
            assert_eq!(huge.space.stats().restores_failed, 0, "{what}");
        }
    });
}

/// A region that `mremap` has scattered too much gives the pieces up, with what a device has of them.
#[test]
fn too_many_pieces_are_given_up_with_what_the_device_wrote() {
    let _watchdog = watchdog();
    for faults in MODES {
        let Some(space) = adopting(Space::builder().faults(faults)) else { return };
        let memory = Memory::pages(64);
        let region = memory.adopt(&space);
        let device = space.register(PLAIN).unwrap();
        let view = region.attach(&device).unwrap();
        view.claim(pages(0, 64), Access::Exclusive).unwrap().end().unwrap();
        (0..64).for_each(|index| view.words(page(index))[0].store(1000 + u64::from(index), SeqCst));
        let moved: Vec<_> = (0..64).step_by(2).map(|index| (index, memory.remap(index, index + 1))).collect();
        for &(index, start) in &moved {
            // SAFETY: it is mapped there.
            let word = unsafe { AtomicU64::from_ptr(start.cast()) };
            assert_eq!(word.fetch_add(1, SeqCst), 1000 + index as u64, "{faults:?}");
        }
        for index in (1..64).step_by(2) {
            assert_eq!(memory.word(index, 0).load(SeqCst), 1000 + u64::from(index), "{faults:?}");
        }
        let stats = space.stats();
        assert!(stats.pages_given_up > 0 && stats.restores_failed == 0, "{stats:?}");
        drop((view, region));
        for (index, start) in moved {
            // SAFETY: it is mapped there.
            assert_eq!(unsafe { AtomicU64::from_ptr(start.cast()) }.load(SeqCst), 1001 + index as u64);
            // SAFETY: ours.
            unsafe { libc::munmap(start.cast(), 4096) };
        }
    }
}
