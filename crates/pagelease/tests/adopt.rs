//! Memory of the program under management: adopted in place, claimed, touched back, and given back intact.
#![cfg(not(pagelease_shuttle))]

use std::ptr::NonNull;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::Duration;

use pagelease::software::{DevicePage, Item, SoftwareConfig, SoftwareDevice};
use pagelease::{Access, AdoptError, BackendKind, ByteLen, ClaimError, Faults, Region, Space};

use support::private::{HUGE, Memory, SEED, adopting, thp_split_pmd};
use support::{MODES, PLAIN, at, in_child, one, page, pages, wait_until, watchdog};

mod support;

#[test]
fn what_it_contains_stays_and_goes_to_the_device_and_back() {
    let _watchdog = watchdog();
    for faults in MODES {
        let Some(space) = adopting(Space::builder().faults(faults)) else { return };
        let memory = Memory::pages(16);
        for index in 0..16 {
            memory.word(index, 3).store(u64::from(index) + 100, SeqCst);
        }
        let region = memory.adopt(&space);
        assert_eq!((region.backend(), region.as_ptr().cast()), (BackendKind::Move, memory.start()));
        let device = space.register(PLAIN).unwrap();
        let view = region.attach(&device).unwrap();
        let lease = view.claim(pages(0, 12), Access::Exclusive).unwrap();
        for index in 0..12 {
            let word = &view.words(page(index))[3];
            assert_eq!(word.load(SeqCst), u64::from(index) + 100, "the device sees what the CPU wrote");
            word.fetch_add(1000, SeqCst);
        }
        lease.end().unwrap();
        for index in 0..6 {
            assert_eq!(memory.word(index, 3).load(SeqCst), u64::from(index) + 1100, "{faults:?}");
        }
        assert!(view.has(page(7)) && !view.has(page(2)));
        drop((view, region));
        for index in 0..16 {
            let expected = u64::from(index) + if index < 12 { 1100 } else { 100 };
            assert_eq!(memory.word(index, 3).load(SeqCst), expected, "page {index}, {faults:?}");
        }
        let stats = space.stats();
        assert_eq!((stats.invalidations_spurious, stats.stray_accesses, stats.restores_failed), (0, 0, 0), "{stats:?}");
    }
}

#[test]
fn a_vec_and_the_allocator_go_on_working() {
    let _watchdog = watchdog();
    let Some(space) = adopting(Space::builder()) else { return };
    // Large enough for a mapping of its own, small enough to share pages with the allocator's book-keeping.
    for len in [64 << 10, 4 << 20] {
        let mut numbers: Vec<u64> = (0..len as u64 / 8).collect();
        let start = (numbers.as_mut_ptr().expose_provenance() + 4095) & !4095;
        let end = (numbers.as_ptr().addr() + len) & !4095;
        let whole = NonNull::new(std::ptr::with_exposed_provenance_mut(start)).unwrap();
        // SAFETY: the vector is not used while the region lives, but by the device and atomics below.
        let region = unsafe { space.adopt(whole, ByteLen(end - start)) }.unwrap();
        let device = SoftwareDevice::start(&space, SoftwareConfig::default()).unwrap();
        let view = device.attach(&region).unwrap();
        let items: Vec<_> = region.pages().iter().map(|page| Item::new(page.0, 5)).collect();
        device.submit(&view, |page: &DevicePage<'_>, n| page.update(1, |v| v + n), &items).wait().unwrap();
        at(&region, 2, 1).fetch_add(1, SeqCst);
        drop((view, device, region));
        for (index, number) in numbers.iter_mut().enumerate() {
            let address = std::ptr::from_ref(number).addr();
            let hit = address >= start && address < end && address % 4096 == 8;
            let extra = u64::from(address == start + 2 * 4096 + 8);
            assert_eq!(*number, index as u64 + if hit { 5 + extra } else { 0 });
        }
        numbers.push(1);
        drop(numbers);
    }
}

#[test]
fn pages_nobody_has_touched_are_zeroes_for_everybody() {
    let _watchdog = watchdog();
    for faults in MODES {
        let Some(space) = adopting(Space::builder().faults(faults)) else { return };
        let memory = Memory::pages(8);
        let region = memory.adopt(&space);
        let device = space.register(PLAIN).unwrap();
        let view = region.attach(&device).unwrap();
        assert_eq!(memory.word(6, 0).load(SeqCst), 0, "the CPU's first touch");
        memory.word(6, 0).store(6, SeqCst);
        view.claim(pages(0, 4), Access::Exclusive).unwrap().end().unwrap();
        assert_eq!(view.words(page(1))[9].load(SeqCst), 0, "the device's first touch");
        view.words(page(1))[9].store(7, SeqCst);
        assert_eq!((memory.word(1, 9).load(SeqCst), memory.word(2, 0).load(SeqCst)), (7, 0));
        drop((view, region));
        assert_eq!((memory.word(1, 9).load(SeqCst), memory.word(6, 0).load(SeqCst)), (7, 6));
        assert_eq!(memory.word(7, 0).load(SeqCst), 0, "a page that stayed a hole");
    }
}

#[test]
fn huge_granules_nobody_has_touched_are_zeroes_for_everybody() {
    let _watchdog = watchdog();
    for faults in MODES {
        let Some(space) = adopting(Space::builder().faults(faults)) else { return };
        let memory = Memory::room_for_huge(3);
        let region = memory.adopt_huge(&space);
        let (a, b) = (space.register(PLAIN).unwrap(), space.register(PLAIN).unwrap());
        let (a, b) = (region.attach(&a).unwrap(), region.attach(&b).unwrap());
        assert_eq!(memory.word(700, 1).load(SeqCst), 0, "the CPU's first touch");
        memory.word(700, 0).store(6, SeqCst);
        a.claim(pages(0, 2), Access::Exclusive).unwrap().end().unwrap();
        assert_eq!(a.words(page(0))[99].load(SeqCst), 0, "the device's first touch");
        assert_eq!(a.words(page(1))[(700 - 512) * 512].load(SeqCst), 6);
        a.words(page(0))[99].store(7, SeqCst);
        b.claim(pages(0, 2), Access::Exclusive).unwrap().end().unwrap();
        assert_eq!(b.words(page(0))[99].load(SeqCst), 7);
        assert_eq!((memory.word(0, 99).load(SeqCst), memory.word(511, 0).load(SeqCst)), (7, 0));
        assert_eq!(memory.word(700, 0).load(SeqCst), 6);
        drop((a, b, region));
        assert_eq!((memory.word(0, 99).load(SeqCst), memory.word(1024, 0).load(SeqCst)), (7, 0));
        assert_eq!(space.stats().stray_accesses, 0, "the device was given its zeroes");
    }
}

#[test]
fn a_device_takes_pages_from_another() {
    let _watchdog = watchdog();
    for faults in MODES {
        let Some(space) = adopting(Space::builder().faults(faults)) else { return };
        let memory = Memory::pages(8);
        let region = memory.adopt(&space);
        let (a, b) = (space.register(PLAIN).unwrap(), space.register(PLAIN).unwrap());
        let (a, b) = (region.attach(&a).unwrap(), region.attach(&b).unwrap());
        for round in 0..20 {
            let (from, to) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
            from.claim(pages(0, 8), Access::Exclusive).unwrap().end().unwrap();
            from.words(page(3))[0].fetch_add(1, SeqCst);
            to.claim(pages(2, 5), Access::Exclusive).unwrap().end().unwrap();
            to.words(page(3))[0].fetch_add(1, SeqCst);
        }
        assert_eq!(memory.word(3, 0).load(SeqCst), 40);
        drop((a, b));
        assert_eq!(memory.word(3, 0).load(SeqCst), 40);
        assert_eq!(space.stats().claim_retries, 0);
    }
}

#[test]
fn dropped_while_other_threads_store() {
    let _watchdog = watchdog();
    for faults in MODES {
        let Some(space) = adopting(Space::builder().faults(faults).hold_limit(Duration::MAX)) else { return };
        let memory = Memory::pages(32);
        let stop = AtomicBool::new(false);
        let mut by_device = 0;
        let by_cpu = thread::scope(|scope| {
            let storing: Vec<_> = (0..2)
                .map(|thread| {
                    let (memory, stop) = (&memory, &stop);
                    scope.spawn(move || {
                        let mut stores = 0;
                        while !stop.load(SeqCst) {
                            memory.word(stores % 32, 1).fetch_add(1, SeqCst);
                            memory.word(stores % 32, 2 + thread).store(u64::from(stores), SeqCst);
                            stores += 1;
                        }
                        u64::from(stores)
                    })
                })
                .collect();
            for _ in 0..30 {
                let region = memory.adopt(&space);
                let device = SoftwareDevice::start(&space, SoftwareConfig::default()).unwrap();
                let view = device.attach(&region).unwrap();
                let items: Vec<_> = (0..320).map(|n| Item::new(n % 32, 1)).collect();
                device.submit(&view, |page: &DevicePage<'_>, n| page.update(1, |v| v + n), &items).wait().unwrap();
                by_device += 320;
                // In either order: the view, or the region first.
                if by_device % 640 == 0 { drop((view, region)) } else { drop((region, view)) }
            }
            stop.store(true, SeqCst);
            storing.into_iter().map(|thread| thread.join().unwrap()).sum::<u64>()
        });
        let total: u64 = (0..32).map(|index| memory.word(index, 1).load(SeqCst)).sum();
        assert_eq!(total, by_cpu + by_device, "{faults:?}: {:?}", space.stats());
    }
}

#[test]
fn huge_pages_move_whole() {
    in_child("huge_pages_move_whole", || {
        for faults in MODES {
            let Some(space) = adopting(Space::builder().faults(faults)) else { return };
            let Some(memory) = Memory::huge(4) else { return };
            let split = thp_split_pmd();
            {
                let region = memory.adopt_huge(&space);
                assert_eq!(region.granule(), ByteLen(HUGE));
                let device = space.register(PLAIN).unwrap();
                let view = region.attach(&device).unwrap();
                for _ in 0..3 {
                    view.claim(pages(0, 4), Access::Exclusive).unwrap().end().unwrap();
                    view.words(page(2))[7].fetch_add(1, SeqCst);
                    assert!((0..4).all(|index| at(&region, index, 0).load(SeqCst) == SEED));
                }
                assert_eq!(at(&region, 2, 7).load(SeqCst), 3);
                assert_eq!(space.stats().huge_pages_moved, 12);
            }
            {
                let region = memory.adopt(&space);
                let device = space.register(PLAIN).unwrap();
                let view = region.attach(&device).unwrap();
                for round in 0..3 {
                    view.claim(pages(512, 2048), Access::Exclusive).unwrap().end().unwrap();
                    assert_eq!(at(&region, 1024 + 100, 0).load(SeqCst), SEED);
                    // The touch goes on before the last of them is in the books.
                    wait_until(|| pages(1024, 1536).iter().all(|page| !view.has(page)));
                    assert!(view.has(page(1023)) && view.has(page(1536)), "and no other");
                    wait_until(|| space.stats().restores >= 4 * 3 + 512 * (round + 1));
                }
                // The claims of the others were joined each time.
                assert_eq!(space.stats().huge_pages_moved, 12 + 3 + 2);
            }
            assert_eq!(memory.huge_pages(), 4, "{faults:?}");
            assert_eq!(thp_split_pmd(), split, "{faults:?}");
            assert_eq!(space.stats().huge_pages_split, 0);
            assert_eq!((space.stats().claim_retries, space.stats().invalidations_spurious), (0, 0));
        }
    });
}

#[test]
fn a_part_of_a_huge_page_splits_that_one() {
    in_child("a_part_of_a_huge_page_splits_that_one", || {
        for faults in MODES {
            let Some(space) = adopting(Space::builder().faults(faults)) else { return };
            let Some(memory) = Memory::huge(4) else { return };
            let region = memory.adopt(&space);
            let device = space.register(PLAIN).unwrap();
            let view = region.attach(&device).unwrap();
            let split = thp_split_pmd();
            view.claim(pages(512 + 10, 512 + 12), Access::Exclusive).unwrap().end().unwrap();
            assert_eq!((space.stats().huge_pages_split, space.stats().huge_pages_moved), (1, 0));
            // Another: taken whole, and half of it held when the other half is touched.
            let lease = view.claim(pages(1024, 1536), Access::Exclusive).unwrap();
            lease.end().unwrap();
            let held = view.claim(pages(1024, 1025), Access::Exclusive).unwrap();
            assert_eq!(at(&region, 1300, 0).load(SeqCst), SEED);
            assert!(view.has(page(1024)));
            held.end().unwrap();
            wait_until(|| space.stats().huge_pages_split == 2);
            assert_eq!(space.stats().huge_pages_moved, 1);
            drop((view, region));
            assert_eq!(thp_split_pmd() - split, 2, "no others were");
            assert_eq!(memory.huge_pages(), 2);
            assert!((0..2048).all(|index| memory.word(index, 0).load(SeqCst) == SEED));
        }
    });
}

#[test]
fn what_cannot_be_adopted_is_refused_with_the_reason() {
    let _watchdog = watchdog();
    let Some(space) = adopting(Space::builder()) else { return };
    let memory = Memory::pages(8);
    let start = memory.start();
    // SAFETY: nothing is adopted.
    let adopt = |start: NonNull<u8>, len| unsafe { space.adopt(start, ByteLen(len)) }.map(|_: Region| ());
    // SAFETY: within the memory.
    let odd = unsafe { start.add(8) };
    assert!(matches!(adopt(odd, 4096), Err(AdoptError::Misaligned { .. })));
    assert!(matches!(adopt(start, 100), Err(AdoptError::Misaligned { .. })));
    assert!(matches!(adopt(start, 0), Err(AdoptError::Misaligned { .. })));

    let region = memory.adopt(&space);
    assert!(matches!(adopt(start, 4096), Err(AdoptError::Managed { .. })));
    drop(region);

    let what = |error: AdoptError| match error {
        AdoptError::Unfit { what, .. } => what,
        other => panic!("{other}"),
    };
    memory.protect(2, 3, libc::PROT_READ);
    assert_eq!(what(adopt(start, 8 * 4096).unwrap_err()), "not readable and writable");
    memory.protect(2, 3, libc::PROT_READ | libc::PROT_WRITE);
    memory.unmap(4, 5);
    assert_eq!(what(adopt(start, 8 * 4096).unwrap_err()), "not mapped");
    let made = space.allocate(ByteLen(4096)).unwrap();
    assert!(matches!(adopt(made.as_ptr().cast(), 4096), Err(AdoptError::Managed { .. })));
    let shared = Memory::shared(1);
    assert_eq!(what(adopt(shared.start(), 4096).unwrap_err()), "shared memory");
    let message = adopt(shared.start(), 4096).unwrap_err().to_string();
    assert!(message.contains("Space::allocate"), "{message}");

    let in_thread = Space::builder().faults(Faults::InThread).build().unwrap();
    let on_stack = [0u8; 8192];
    let on_stack = NonNull::new(((on_stack.as_ptr().expose_provenance() + 4095) & !4095) as *mut u8).unwrap();
    // SAFETY: nothing is adopted: Rust's threads have an alternate stack of their own, so this one says no first.
    unsafe {
        let none = libc::stack_t { ss_sp: std::ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
        let mut before = none;
        libc::sigaltstack(&raw const none, &raw mut before);
        let refused = in_thread.adopt(on_stack, ByteLen(4096)).map(|_| ());
        libc::sigaltstack(&raw const before, std::ptr::null_mut());
        assert!(matches!(refused, Err(AdoptError::NotInThread { .. })), "{refused:?}");
    }
    let simulated = Space::builder().simulated().build().unwrap();
    // SAFETY: nothing is adopted.
    assert!(matches!(unsafe { simulated.adopt(start, ByteLen(4096)) }, Err(AdoptError::Simulated)));
}

#[test]
fn a_late_access_of_a_device_lands_nowhere() {
    let _watchdog = watchdog();
    for faults in MODES {
        let Some(space) = adopting(Space::builder().faults(faults)) else { return };
        let memory = Memory::pages(4);
        memory.word(1, 0).store(5, SeqCst);
        let region = memory.adopt(&space);
        let device = space.register(PLAIN).unwrap();
        let view = region.attach(&device).unwrap();
        assert_eq!(view.words(page(1))[0].load(SeqCst), 0, "it has not claimed it");
        view.words(page(1))[0].store(9, SeqCst);
        assert_eq!(memory.word(1, 0).load(SeqCst), 5);
        assert_eq!(space.stats().stray_accesses, 1);
        let lease = view.claim(one(1), Access::Exclusive).unwrap();
        assert_eq!(view.words(page(1))[0].load(SeqCst), 5, "now it has");
        lease.end().unwrap();
        assert_eq!(memory.word(1, 0).load(SeqCst), 5);
        assert!(matches!(view.claim(one(1), Access::ExclusiveWrite), Err(ClaimError::Unsupported { .. })));
    }
}

/// The handler of the in-thread mode has what signal stack the C library and Rust give a thread.
#[test]
fn the_handler_fits_on_a_signal_stack() {
    const LEN: usize = 64 << 10;
    const PATTERN: u8 = 0xa5;
    let _watchdog = watchdog();
    let Some(space) = adopting(Space::builder().faults(Faults::InThread)) else { return };
    let memory = Memory::pages(64);
    let region = memory.adopt(&space);
    let device = space.register(PLAIN).unwrap();
    let view = region.attach(&device).unwrap();
    let mut stack = vec![PATTERN; LEN];
    let new = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: LEN };
    let mut before = new;
    // SAFETY: the stack stays until the old one is back.
    unsafe { libc::sigaltstack(&raw const new, &raw mut before) };
    view.claim(pages(0, 64), Access::Exclusive).unwrap().end().unwrap();
    for index in 0..64 {
        memory.word(index, 0).fetch_add(1, SeqCst);
    }
    // SAFETY: as above.
    unsafe { libc::sigaltstack(&raw const before, std::ptr::null_mut()) };
    let used = LEN - stack.iter().take_while(|byte| **byte == PATTERN).count();
    // SAFETY: no precondition.
    let frame = usize::try_from(unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) }).unwrap();
    assert!(used > frame, "it ran on that stack");
    assert!(used - frame < 6000, "{used} bytes, of which the kernel's {frame}");
}
