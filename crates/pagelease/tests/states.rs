//! Adopted memory in each state that the kernel can have a page in: pinned, swapped out, merged, the zero page. It goes to the
//! device with its contents, or the claim says which pages it cannot take, and why.
#![cfg(not(pagelease_shuttle))]

use std::io::Write as _;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use pagelease::{Access, AdoptError, ByteLen, ClaimError, Faults, Region, Space};

use support::private::{Memory, adopting};
use support::{MODES, PLAIN, one, page, pages, watchdog};

mod support;

fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

/// What word 0 of a page begins with.
fn seed(memory: &Memory, count: u32) {
    (0..count).for_each(|index| memory.word(index, 0).store(500 + u64::from(index), SeqCst));
}

/// All of the memory goes to a device and back, and is as [`seed`] left it, and the device.
fn goes_and_comes_back(space: &Space, memory: &Memory, count: u32, what: &str) {
    let region = memory.adopt(space);
    let device = space.register(PLAIN).unwrap();
    let view = region.attach(&device).unwrap();
    view.claim(pages(0, count), Access::Exclusive).unwrap().end().unwrap();
    for index in 0..count {
        let words = view.words(page(index));
        assert_eq!(words[0].fetch_add(1000, SeqCst), 500 + u64::from(index), "page {index}, {what}");
    }
    for index in 0..count {
        assert_eq!(memory.word(index, 0).load(SeqCst), 1500 + u64::from(index), "page {index}, {what}");
    }
    let stats = space.stats();
    assert_eq!((stats.restores_failed, stats.stray_accesses), (0, 0), "{what}: {stats:?}");
}

/// Pins pages as an io_uring's registered buffer does, until it is dropped.
fn pin(start: *mut u8, len: usize) -> Option<OwnedFd> {
    // `struct io_uring_params`; what it asks for is the default.
    let mut params = [0u32; 30];
    // SAFETY: a structure of that size, which the kernel fills in.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 2, params.as_mut_ptr()) };
    let Ok(ring @ 0..) = i32::try_from(ring) else {
        skipped(&format!("no io_uring: {}", std::io::Error::last_os_error()));
        return None;
    };
    // SAFETY: a new descriptor, nobody else's.
    let ring = unsafe { OwnedFd::from_raw_fd(ring) };
    let buffer = libc::iovec { iov_base: start.cast(), iov_len: len };
    /// `IORING_REGISTER_BUFFERS`.
    const BUFFERS: u32 = 0;
    // SAFETY: the kernel reads one vector; the memory outlives the ring.
    let registered =
        unsafe { libc::syscall(libc::SYS_io_uring_register, ring.as_raw_fd(), BUFFERS, &raw const buffer, 1) };
    assert_eq!(registered, 0, "{}", std::io::Error::last_os_error());
    Some(ring)
}

#[test]
fn a_pinned_page_is_refused_by_name_and_goes_once_it_is_not() {
    let _watchdog = watchdog();
    for faults in MODES {
        let Some(space) = adopting(Space::builder().faults(faults)) else { return };
        let memory = Memory::pages(8);
        seed(&memory, 8);
        let region = memory.adopt(&space);
        let device = space.register(PLAIN).unwrap();
        let view = region.attach(&device).unwrap();
        let Some(pinned) = pin(memory.start().as_ptr().wrapping_add(3 * 4096), 2 * 4096) else { return };
        let refused = view.claim(pages(0, 8), Access::Exclusive).unwrap_err();
        assert!(matches!(refused, ClaimError::Pinned { pages } if pages == one(3)), "{refused}");
        assert!(refused.to_string().contains("pinned"), "{refused}");
        // The others can be had; what the refused claim had taken is the CPU's.
        view.claim(pages(5, 8), Access::Exclusive).unwrap().end().unwrap();
        (0..8).for_each(|index| assert_eq!(memory.word(index, 0).load(SeqCst), 500 + u64::from(index)));
        drop(pinned);
        // The kernel lets go of the pages a moment after the ring is closed.
        let begun = Instant::now();
        while let Err(error) = view.claim(pages(0, 8), Access::Exclusive).map(drop) {
            assert!(matches!(error, ClaimError::Pinned { .. }), "{error}");
            assert!(begun.elapsed() < support::patient(Duration::from_secs(20)), "still pinned: {error}");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(view.words(page(3))[0].load(SeqCst), 503, "{faults:?}");
    }
}

#[test]
fn the_zero_page_goes_to_the_device() {
    let _watchdog = watchdog();
    for faults in MODES {
        let Some(space) = adopting(Space::builder().faults(faults)) else { return };
        // Read, and never written, before it is adopted: the kernel maps its one page of zeroes.
        let memory = Memory::pages(8);
        (0..4).for_each(|index| assert_eq!(memory.word(index, 0).load(SeqCst), 0));
        let region = memory.adopt(&space);
        let device = space.register(PLAIN).unwrap();
        let view = region.attach(&device).unwrap();
        view.claim(pages(0, 8), Access::Exclusive).unwrap().end().unwrap();
        for index in 0..8 {
            assert_eq!(view.words(page(index))[0].fetch_add(7, SeqCst), 0);
        }
        assert!((0..8).all(|index| memory.word(index, 0).load(SeqCst) == 7), "{faults:?}");
        assert_eq!(space.stats().stray_accesses, 0);
    }
}

/// How many of a memory's first pages `/proc/self/pagemap` says are swapped out.
fn swapped(memory: &Memory, count: usize) -> usize {
    use std::os::unix::fs::FileExt as _;
    let pagemap = std::fs::File::open("/proc/self/pagemap").unwrap();
    let mut entries = vec![0; count * 8];
    pagemap.read_exact_at(&mut entries, memory.start().as_ptr().addr() as u64 / 4096 * 8).unwrap();
    entries.chunks_exact(8).filter(|entry| entry[7] & 1 << 6 != 0).count()
}

#[test]
fn pages_that_are_swapped_out_go_to_the_device() {
    let _watchdog = watchdog();
    for faults in MODES {
        let Some(space) = adopting(Space::builder().faults(faults)) else { return };
        let memory = Memory::pages(16);
        seed(&memory, 16);
        assert_eq!(memory.advise(0, 16, libc::MADV_PAGEOUT), 0);
        if swapped(&memory, 16) == 0 {
            return skipped("no page could be swapped out: no swap space (swapon /dev/zram0)");
        }
        goes_and_comes_back(&space, &memory, 16, &format!("{faults:?}"));
        // And while a device has them, and behind it.
        assert_eq!(memory.advise(0, 16, libc::MADV_PAGEOUT), 0);
        (0..16).for_each(|index| assert_eq!(memory.word(index, 0).load(SeqCst), 1500 + u64::from(index)));
    }
}

#[test]
fn merged_pages_are_unshared_by_the_claim() {
    const RUN: &str = "/sys/kernel/mm/ksm/run";
    let _watchdog = watchdog();
    let Ok(before) = std::fs::read_to_string(RUN) else { return skipped("a kernel without KSM") };
    if std::fs::write(RUN, "1").is_err() {
        return skipped("KSM is root's to switch on");
    }
    let merged = || -> u64 {
        let stat = std::fs::read_to_string("/proc/self/ksm_stat").unwrap_or_default();
        let line = stat.lines().find_map(|line| line.strip_prefix("ksm_merging_pages "));
        line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    };
    for faults in MODES {
        let Some(space) = adopting(Space::builder().faults(faults)) else { break };
        let memory = Memory::pages(64);
        // All alike, and not zeroes.
        (0..64).for_each(|index| memory.word(index, 1).store(77, SeqCst));
        assert_eq!(memory.advise(0, 64, libc::MADV_MERGEABLE), 0);
        let begun = Instant::now();
        while merged() < 32 && begun.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(20));
        }
        if merged() < 32 {
            skipped("KSM merged nothing in five seconds");
            break;
        }
        let region = memory.adopt(&space);
        let device = space.register(PLAIN).unwrap();
        let view = region.attach(&device).unwrap();
        // KSM may merge a page anew as soon as it has been written to: then the claim says so, and names it.
        match view.claim(pages(0, 64), Access::Exclusive) {
            Ok(lease) => {
                lease.end().unwrap();
                (0..64).for_each(|index| {
                    let before = view.words(page(index))[1].fetch_add(u64::from(index), SeqCst);
                    assert_eq!(before, 77, "page {index}, {faults:?}");
                });
                (0..64).for_each(|index| assert_eq!(memory.word(index, 1).load(SeqCst), 77 + u64::from(index)));
            }
            Err(error) => {
                assert!(matches!(error, ClaimError::Pinned { .. }), "{error}");
                assert!((0..64).all(|index| memory.word(index, 1).load(SeqCst) == 77), "{faults:?}");
            }
        }
    }
    std::fs::write(RUN, before.trim()).unwrap();
}

/// The C library touches its heap with signals blocked: a thread could not serve itself.
#[test]
fn the_heap_is_refused_where_threads_serve_themselves() {
    let _watchdog = watchdog();
    if adopting(Space::builder()).is_none() {
        return;
    }
    // The heap proper: what `brk` gives.
    // SAFETY: more room at the end of the heap, which nobody else knows of.
    let start = unsafe { libc::sbrk(3 * 4096) };
    assert_ne!(start.addr(), usize::MAX, "no room behind the heap");
    let start = NonNull::new(start.map_addr(|address| address.next_multiple_of(4096)).cast::<u8>()).unwrap();
    let adopt = |faults| {
        let space = Space::builder().faults(faults).build().unwrap();
        // SAFETY: nobody else uses it.
        unsafe { space.adopt(start, ByteLen(4096)) }.map(|_: Region| ())
    };
    let refused = adopt(Faults::InThread).unwrap_err();
    assert!(matches!(refused, AdoptError::NotInThread { .. }), "{refused}");
    assert!(refused.to_string().contains("Faults::Monitor"), "{refused}");
    adopt(Faults::Monitor).unwrap();
}
