//! What is particular to one backend, or to one kind of memory: which one a space gets, files, huge pages; and of `mprotect`,
//! what it shares with the rest of the process: its signal, its mappings. What all have in common is `conformance.rs`.
#![cfg(not(pagelease_shuttle))]

use std::fmt::Display;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::ptr::null_mut;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Duration;

use pagelease::{
    Access, BackendKind, ByteLen, ClaimError, Device, Faults, Invalidation, NotDrained, PageIndex, PageRange,
    Privilege, Region, RegionError, Space, SpaceBuilder, SpaceError,
};

use support::memory::{Memory, file, memfd};
use support::{MODES, PLAIN, at, in_child, one, open, page, pages, patient, watchdog};

mod support;

#[track_caller]
fn says(error: impl Display, parts: &[&str]) {
    let message = error.to_string();
    for part in parts {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
}

fn mprotect() -> SpaceBuilder {
    Space::builder().faults(Faults::InThread).backend(BackendKind::Mprotect)
}

fn protect(region: &Region, index: u32, flags: i32) {
    let start = region.as_ptr().cast::<u8>().as_ptr().wrapping_add(index as usize * 4096);
    // SAFETY: a page of the region, which the test alone touches.
    assert_eq!(unsafe { libc::mprotect(start.cast(), 4096, flags) }, 0);
}

// Which backend.

#[test]
fn by_itself_a_space_takes_the_better_backend_that_the_kernel_has() {
    for faults in MODES {
        let Some(space) = open(Space::builder().faults(faults)) else { return };
        let asked = Space::builder().faults(faults).backend(BackendKind::RwProtect).build();
        let region = space.allocate(ByteLen(8 * 4096)).unwrap();
        let expected = match &asked {
            Ok(_) => BackendKind::RwProtect,
            Err(SpaceError::Userfaultfd(lacks)) => {
                says(lacks, &["lacks RWP"]);
                BackendKind::Minor
            }
            Err(error) => panic!("{error}"),
        };
        assert_eq!((region.backend(), region.capabilities().exclusive_write), (expected, asked.is_err()));
        // Whichever it is, it serves a memory file, and huge pages, in the same space.
        let mut all = vec![region, space.map_file(memfd(8 * 4096), 0, ByteLen(8 * 4096)).unwrap()];
        match Memory::Huge.allocate(&space, 8) {
            Ok(huge) => all.push(huge.region),
            Err(error) => eprintln!("skipped: huge pages: {error}"),
        }
        let device = space.register(PLAIN).unwrap();
        for region in all {
            let view = region.attach(&device).unwrap();
            view.claim(region.pages(), Access::Exclusive).unwrap().end().unwrap();
            view.words(page(7))[0].store(1, SeqCst);
            assert_eq!((at(&region, 7, 0).load(SeqCst), at(&region, 3, 1).fetch_add(1, SeqCst)), (1, 0));
            assert!(!view.has(page(7)) && !view.has(page(3)) && view.has(page(4)));
        }
    }
}

/// Reclaim takes a protected page's mapping, and the protection goes with it. It traps all the same, alone or among others
/// that are given back together.
#[test]
fn a_page_that_the_kernel_has_unmapped_still_traps() {
    let _watchdog = watchdog();
    for (faults, backend) in
        MODES.into_iter().flat_map(|mode| [(mode, BackendKind::RwProtect), (mode, BackendKind::Minor)])
    {
        let Some(space) = open(Space::builder().faults(faults).backend(backend)) else { continue };
        let region = space.allocate(ByteLen(8 * 4096)).unwrap();
        let device = space.register(PLAIN).unwrap();
        let view = region.attach(&device).unwrap();
        for together in [false, true] {
            view.claim(region.pages(), Access::Exclusive).unwrap().end().unwrap();
            let start = region.as_ptr().cast::<u8>().as_ptr();
            // SAFETY: shared memory, which loses no contents.
            assert_eq!(unsafe { libc::madvise(start.cast(), 4 * 4096, libc::MADV_DONTNEED) }, 0);
            view.words(page(2))[0].store(7, SeqCst);
            if together {
                region.prefetch(region.pages());
            }
            assert_eq!(at(&region, 2, 0).load(SeqCst), 7, "{faults:?} {backend:?}");
            assert!(!view.has(page(2)) && view.has(page(5)) != together);
            assert!((0..8).all(|index| at(&region, index, 1).fetch_add(1, SeqCst) == u64::from(together)));
        }
        assert_eq!(space.stats().restores_failed, 0);
    }
}

#[test]
fn a_backend_that_cannot_be_is_refused() {
    let error = Space::builder().backend(BackendKind::Mprotect).build().err().unwrap();
    assert!(matches!(error, SpaceError::NeedsInThread { backend: BackendKind::Mprotect }), "{error}");
    says(error, &["Mprotect", "no monitor", "Faults::InThread"]);
    let error = Space::builder().backend(BackendKind::Move).build().err().unwrap();
    assert!(matches!(error, SpaceError::NotAllocated { backend: BackendKind::Move }), "{error}");
    says(error, &["Move", "leave SpaceBuilder::backend unset"]);
    let space = Space::builder().backend(BackendKind::Sim).build().unwrap();
    assert_eq!(space.allocate(ByteLen(1)).unwrap().backend(), BackendKind::Sim);
    assert!(matches!(space.map_file(memfd(4096), 0, ByteLen(4096)), Err(RegionError::FileBackend { .. })));
    assert!(matches!(space.allocate_huge(ByteLen(1)), Err(RegionError::NoHugePages { .. })));
}

// Files.

#[test]
fn what_cpu_and_device_store_is_in_the_file() {
    let _watchdog = watchdog();
    let space = mprotect().build().unwrap();
    let file = file(5 * 4096);
    let device = space.register(PLAIN).unwrap();
    for round in 1..=2 {
        let region = space.map_file(&file, 4096, ByteLen(3 * 4096)).unwrap();
        assert_eq!((region.backend(), region.pages()), (BackendKind::Mprotect, pages(0, 3)));
        let view = region.attach(&device).unwrap();
        view.claim(pages(0, 2), Access::Exclusive).unwrap().end().unwrap();
        view.words(page(0))[0].store(10 * round, SeqCst);
        at(&region, 1, 0).store(20 * round, SeqCst);
        at(&region, 2, 511).store(30 * round, SeqCst);
        drop((view, region));
        let word = |offset: u64| {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, offset).unwrap();
            u64::from_ne_bytes(bytes)
        };
        assert_eq!([4096, 2 * 4096, 4 * 4096 - 8].map(word), [10, 20, 30].map(|value| value * round));
        assert_eq!((word(0), word(4 * 4096)), (0, 0), "nothing around it");
    }
}

#[test]
fn files_that_cannot_be_mapped() {
    let space = mprotect().build().unwrap();
    let whole = file(4 * 4096);
    let map = |offset, len| space.map_file(&whole, offset, ByteLen(len)).err().unwrap();
    for (offset, len) in [(1, 4096), (0, 4097), (2048, 4096)] {
        let error = map(offset, len);
        assert!(matches!(error, RegionError::FileMisaligned { granule: ByteLen(4096), .. }), "{error}");
        says(error, &[&len.to_string(), &offset.to_string(), "round both"]);
    }
    for (offset, len) in [(0, 5 * 4096), (4 * 4096, 4096), (u64::MAX - 4095, 4096)] {
        let error = map(offset, len);
        assert!(matches!(error, RegionError::FileTooShort { file_len: 16384, .. }), "{error}");
        says(error, &["16384 bytes", "ftruncate"]);
    }
    assert!(matches!(map(0, 0), RegionError::Empty));
    let read_only = File::open(std::env::current_exe().unwrap()).unwrap();
    let error = space.map_file(read_only, 0, ByteLen(4096)).err().unwrap();
    assert!(matches!(error, RegionError::FileAccess), "{error}");
    says(error, &["reading and writing"]);

    let Some(space) = open(Space::builder()) else { return };
    match space.map_file(&whole, 0, ByteLen(4096)) {
        Ok(_) => eprintln!("skipped: this machine has no disk: every file is in memory"),
        Err(error) => {
            assert!(matches!(error, RegionError::FileBackend { .. }), "{error}");
            says(error, &["memfd, tmpfs", "BackendKind::Mprotect", "Faults::InThread"]);
        }
    }
}

/// Does not let go of its page, and says so.
#[derive(Default)]
struct Stuck {
    said_so: AtomicBool,
}

impl Device for Stuck {
    fn name(&self) -> &'static str {
        "stuck"
    }

    fn signal_safe(&self) -> bool {
        true
    }

    fn invalidate(&self, invalidation: &Invalidation) -> Result<(), NotDrained> {
        if self.said_so.swap(true, SeqCst) {
            return Ok(());
        }
        Err(NotDrained { page: PageIndex(invalidation.pages().start()) })
    }
}

/// The file has what the device had stored until it was lost, and nothing that comes later.
#[test]
fn late_stores_of_a_lost_device_do_not_reach_the_file() {
    let _watchdog = watchdog();
    let space = mprotect().build().unwrap();
    for region in
        [space.map_file(file(4 * 4096), 0, ByteLen(4 * 4096)).unwrap(), space.allocate(ByteLen(4 * 4096)).unwrap()]
    {
        let device = space.register(Stuck::default()).unwrap();
        let view = region.attach(&device).unwrap();
        view.claim(region.pages(), Access::Exclusive).unwrap().end().unwrap();
        view.words(page(1))[0].store(5, SeqCst);
        assert_eq!(at(&region, 1, 0).load(SeqCst), 5);
        assert!(device.lost().is_some());
        view.words(page(1))[0].store(6, SeqCst);
        assert_eq!((at(&region, 1, 0).load(SeqCst), view.words(page(1))[0].load(SeqCst)), (5, 6));
    }
    assert_eq!(space.stats().covers_failed, 0);
}

/// A file that is truncated under a region: the touch of a lost page is a bus error, as it is in any mapping, and no touch of
/// a device's page that is tried for ever.
#[test]
fn a_page_that_the_file_has_lost_raises_sigbus() {
    const TEST: &str = "a_page_that_the_file_has_lost_raises_sigbus";
    let status = dies(TEST, |case| {
        let builder = if case == "mprotect" { mprotect() } else { Space::builder().faults(Faults::InThread) };
        let Some(space) = open(builder) else { std::process::exit(0) };
        let file = memfd(4 * 4096);
        let region = space.map_file(&file, 0, ByteLen(4 * 4096)).unwrap();
        let device = space.register(PLAIN).unwrap();
        let view = region.attach(&device).unwrap();
        view.claim(region.pages(), Access::Exclusive).unwrap().end().unwrap();
        file.set_len(2 * 4096).unwrap();
        assert_eq!(at(&region, 1, 0).load(SeqCst), 0);
        at(&region, 3, 0).load(SeqCst);
    });
    for case in ["mprotect", "minor"] {
        let status = status(case);
        assert!(status.signal() == Some(libc::SIGBUS) || (case == "minor" && status.success()), "{case}: {status}");
    }
}

/// Runs `body` in a process of its own, with a word: returns how that process ended. 0: `body` said so itself.
fn dies(test: &'static str, body: fn(&str)) -> impl Fn(&str) -> std::process::ExitStatus {
    const CASE: &str = "PAGELEASE_CASE";
    if let Ok(case) = std::env::var(CASE) {
        let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the pointer is to a limit. One that hangs is killed by a signal which no test expects.
        unsafe {
            libc::setrlimit(libc::RLIMIT_CORE, &raw const no_core);
            libc::alarm(u32::try_from(patient(Duration::from_secs(60)).as_secs()).unwrap());
        }
        body(&case);
        eprintln!("{test}, {case}: it lives");
        std::process::exit(1);
    }
    move |case| {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(CASE, case);
        child.status().unwrap()
    }
}

// Huge pages.

#[test]
fn a_pool_that_is_too_small() {
    let Some(space) = open(Space::builder()) else { return };
    let error = space.allocate_huge(ByteLen(1 << 40)).err().unwrap();
    match error {
        RegionError::TooFewHugePages { pages, granule, .. } => {
            assert_eq!((pages, granule), (1 << 19, ByteLen(2 << 20)));
            says(error, &["1099511627776", "524288", "vm.nr_hugepages"]);
        }
        RegionError::NoHugePages { .. } => eprintln!("skipped: {error}"),
        error => panic!("{error}"),
    }
    assert!(matches!(space.allocate_huge(ByteLen(0)), Err(RegionError::Empty)));
}

// The signal of `mprotect`.

#[test]
fn no_userfaultfd_is_opened() {
    in_child("no_userfaultfd_is_opened", || {
        let space = mprotect().build().unwrap();
        let region = space.allocate(ByteLen(4096)).unwrap();
        assert_eq!((space.privilege(), region.backend()), (Privilege::NoUserfaultfd, BackendKind::Mprotect));
        for open in std::fs::read_dir("/proc/self/fd").unwrap() {
            let name = std::fs::read_link(open.unwrap().path()).unwrap_or_default();
            assert!(!name.to_string_lossy().contains("userfaultfd"), "{name:?}");
        }
    });
}

/// A touch from inside a system call raises no signal, so nobody can serve it.
#[test]
fn a_system_call_gets_efault() {
    let space = mprotect().build().unwrap();
    let region = space.allocate(ByteLen(4096)).unwrap();
    let device = space.register(PLAIN).unwrap();
    let view = region.attach(&device).unwrap();
    view.claim(one(0), Access::Exclusive).unwrap().end().unwrap();
    // SAFETY: the buffer is the region's.
    let got = unsafe { libc::getrandom(region.as_ptr().cast::<u8>().as_ptr().cast(), 8, 0) };
    assert_eq!((got, std::io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EFAULT)));
    assert!(view.has(page(0)));
}

/// What the handler before or after ours has seen: an address, and how often.
static SEEN: AtomicUsize = AtomicUsize::new(0);
static CALLS: AtomicUsize = AtomicUsize::new(0);

/// Opens the page that the program has closed itself.
extern "C" fn opens(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    CALLS.fetch_add(1, SeqCst);
    // SAFETY: what the kernel passed.
    let address = unsafe { (*info).si_addr() };
    SEEN.store(address.addr(), SeqCst);
    let start = address.map_addr(|address| address & !4095);
    // SAFETY: a page of the test's region.
    unsafe { libc::mprotect(start, 4096, libc::PROT_READ | libc::PROT_WRITE) };
}

fn by_hand(handler: usize) -> libc::sigaction {
    // SAFETY: zeroes are a valid sigaction, and the pointers are to live ones.
    unsafe {
        let (mut action, mut before): (libc::sigaction, libc::sigaction) = std::mem::zeroed();
        (action.sa_sigaction, action.sa_flags) = (handler, libc::SA_SIGINFO);
        assert_eq!(libc::sigaction(libc::SIGSEGV, &raw const action, &raw mut before), 0);
        before
    }
}

#[test]
fn a_handler_from_before_gets_the_faults_of_the_program_and_no_touch() {
    in_child("a_handler_from_before_gets_the_faults_of_the_program_and_no_touch", || {
        by_hand(opens as *const () as usize);
        let space = mprotect().build().unwrap();
        let region = space.allocate(ByteLen(8 * 4096)).unwrap();
        let device = space.register(PLAIN).unwrap();
        let view = region.attach(&device).unwrap();
        for (round, index, flags) in [(1, 7, libc::PROT_NONE), (2, 2, libc::PROT_READ), (3, 7, libc::PROT_NONE)] {
            view.claim(pages(0, 4), Access::Exclusive).unwrap().end().unwrap();
            assert_eq!(at(&region, 2, 0).fetch_add(1, SeqCst), 2 * (round - 1));
            assert_eq!((CALLS.load(SeqCst) as u64, view.has(page(1))), (round - 1, true));
            // Its own doing: of a page that is the CPU's, whether or not a device has ever had it.
            protect(&region, index, flags);
            at(&region, index, 5).fetch_add(1, SeqCst);
            assert_eq!(CALLS.load(SeqCst) as u64, round);
            assert_eq!(SEEN.load(SeqCst), (&raw const *at(&region, index, 5)).addr());
            at(&region, 2, 0).fetch_add(1, SeqCst);
        }
    });
}

#[test]
fn a_handler_from_after_is_noticed_at_the_next_claim() {
    in_child("a_handler_from_after_is_noticed_at_the_next_claim", || {
        let space = mprotect().build().unwrap();
        let region = space.allocate(ByteLen(4 * 4096)).unwrap();
        let device = space.register(PLAIN).unwrap();
        let view = region.attach(&device).unwrap();
        view.claim(one(0), Access::Exclusive).unwrap().end().unwrap();
        let ours = by_hand(opens as *const () as usize);
        let error = view.claim(pages(0, 3), Access::Exclusive).err().unwrap();
        assert!(matches!(error, ClaimError::HandlerReplaced { .. }), "{error}");
        says(error, &["pages 1..3", "SIGSEGV", "install it before making the space"]);
        assert!(!view.has(page(1)));
        // What takes no page from the CPU goes on.
        view.claim(one(0), Access::Exclusive).unwrap().end().unwrap();
        // SAFETY: the action that was there.
        unsafe { libc::sigaction(libc::SIGSEGV, &raw const ours, null_mut()) };
        view.claim(pages(0, 3), Access::Exclusive).unwrap().end().unwrap();
        assert_eq!((0..4).map(|index| at(&region, index, 0).fetch_add(1, SeqCst)).sum::<u64>(), 0);
        assert_eq!(CALLS.load(SeqCst), 0);
    });
}

#[test]
fn a_real_segmentation_fault_kills() {
    let status = dies("a_real_segmentation_fault_kills", |case| {
        let space = mprotect().build().unwrap();
        let region = space.allocate(ByteLen(4 * 4096)).unwrap();
        let device = space.register(PLAIN).unwrap();
        let view = region.attach(&device).unwrap();
        view.claim(region.pages(), Access::Exclusive).unwrap().end().unwrap();
        assert_eq!(at(&region, 1, 0).load(SeqCst), 0);
        let start = region.as_ptr().cast::<u8>().as_ptr();
        // SAFETY: none; each is a fault of the program's own, which is the test.
        unsafe {
            match case {
                "nowhere" => drop(std::ptr::without_provenance::<u8>(64).read_volatile()),
                "protected by the program" => {
                    protect(&region, 1, libc::PROT_READ);
                    start.add(4096).write_volatile(1);
                }
                "unmapped by the program" => {
                    libc::munmap(start.add(4096).cast(), 4096);
                    start.add(4096).read_volatile();
                }
                "executed" => std::mem::transmute::<*mut u8, extern "C" fn()>(start)(),
                "closed" => {
                    let lease = view.claim(one(0), Access::Exclusive).unwrap();
                    drop(region);
                    start.write_volatile(1);
                    libc::mprotect(start.cast(), 4096, libc::PROT_READ);
                    start.write_volatile(1);
                    drop(lease);
                }
                _ => unreachable!("{case}"),
            }
        }
    });
    for case in ["nowhere", "protected by the program", "unmapped by the program", "executed", "closed"] {
        assert_eq!(status(case).signal(), Some(libc::SIGSEGV), "{case}");
    }
}

/// Of two threads that touch a page, the second finds it open: no fault of the program's.
#[test]
fn touches_of_the_same_pages_at_the_same_time() {
    let _watchdog = watchdog();
    let space = mprotect().build().unwrap();
    let region = space.allocate(ByteLen(8 * 4096)).unwrap();
    let device = space.register(PLAIN).unwrap();
    let view = region.attach(&device).unwrap();
    let stop = AtomicBool::new(false);
    let added: u64 = std::thread::scope(|scope| {
        let touch = || {
            let mut added = 0;
            while !stop.load(SeqCst) {
                (0..8).for_each(|index| _ = at(&region, index, 0).fetch_add(1, SeqCst));
                added += 8;
            }
            added
        };
        let touchers = [(); 4].map(|()| scope.spawn(touch));
        for round in 0..3000 {
            let access = if round % 2 == 0 { Access::Exclusive } else { Access::ExclusiveWrite };
            drop(view.claim(pages(round % 5, round % 5 + 4), access).unwrap());
        }
        stop.store(true, SeqCst);
        touchers.into_iter().map(|toucher| toucher.join().unwrap()).sum()
    });
    assert_eq!((0..8).map(|index| at(&region, index, 0).load(SeqCst)).sum::<u64>(), added);
}

// The mappings of `mprotect`.

fn mappings() -> usize {
    std::fs::read_to_string("/proc/self/maps").unwrap().lines().count()
}

#[test]
fn claims_leave_touches_the_mappings_they_need() {
    in_child("claims_leave_touches_the_mappings_they_need", || {
        let most: u32 = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap();
        if most > 300_000 {
            eprintln!("skipped: {most} mappings are allowed; to use them up takes too much memory");
            return;
        }
        let space = mprotect().build().unwrap();
        let count = 2 * most;
        let region = space.allocate(ByteLen(count as usize * 4096)).unwrap();
        let small = space.allocate(ByteLen(8 * 4096)).unwrap();
        let device = space.register(PLAIN).unwrap();
        let (view, other) = (region.attach(&device).unwrap(), small.attach(&device).unwrap());
        // Taken in one piece, they are few mappings now; given back every other one, they are as many as can be.
        let mut claimed = 0;
        let error = loop {
            match view.claim(pages(claimed, claimed + 1000), Access::Exclusive) {
                Ok(lease) => lease.end().unwrap(),
                Err(error) => break error,
            }
            claimed += 1000;
        };
        assert!(matches!(error, ClaimError::TooManyMappings { limit, .. } if limit == most as usize), "{error}");
        says(error, &[&most.to_string(), "fewer pages at a time", "vm.max_map_count"]);
        assert!(claimed > most / 4 && mappings() < 1000, "{claimed} pages, {} mappings", mappings());
        // Nothing of the refused claim counts: a smaller one still finds room, as does another region.
        view.claim(pages(claimed, claimed + 1), Access::Exclusive).unwrap().end().unwrap();
        other.claim(small.pages(), Access::Exclusive).unwrap().end().unwrap();

        (0..claimed).step_by(2).for_each(|index| _ = at(&region, index, 0).fetch_add(1, SeqCst));
        assert!(mappings() > claimed as usize, "{}", mappings());
        (0..8).for_each(|index| _ = at(&small, index, 0).fetch_add(1, SeqCst));
        assert_eq!((space.stats().restores_failed, view.has(page(1))), (0, true));
        // As pages come back, there is room again: for as many scattered ones.
        let scattered: Vec<PageRange> = (0..claimed / 8).map(|n| one(count - 2 * n - 1)).rev().collect();
        view.claim_scattered(&scattered, Access::Exclusive).unwrap().end().unwrap();
        region.prefetch(region.pages());
        assert!(mappings() < 1000, "{}", mappings());
        // The other way round: scattered from the beginning, until there is no room.
        let mut at_a_time = (0..count / 2).step_by(500).map(|from| {
            let ranges: Vec<_> = (from..from + 500).map(|n| one(2 * n)).collect();
            view.claim_scattered(&ranges, Access::Exclusive).map(|lease| lease.end().unwrap())
        });
        let error = at_a_time.find_map(Result::err).expect("there are more pages than mappings");
        assert!(matches!(error, ClaimError::TooManyMappings { .. }), "{error}");
        let before = mappings();
        assert!(before < most as usize && before > most as usize * 3 / 4, "{before}");
        drop((view, region));
        other.claim(small.pages(), Access::Exclusive).unwrap().end().unwrap();
        assert_eq!(space.stats().restores_failed, 0);
    });
}
