//! Every error: that it is the right one, says what it concerns, and what to do about it; and that nothing remains of what
//! was refused.
//!
//! Limits, filters and privileges are a process's: what changes them runs in a process of its own.
#![cfg(not(pagelease_shuttle))]

use std::fmt::Display;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use pagelease::software::{DevicePage, Item, JobError, SoftwareConfig, SoftwareDevice, StartError};
use pagelease::{
    Access, AttachError, ByteLen, ClaimError, Faults, LossReason, PageIndex, Privilege, RangeError, Region,
    RegionError, Space, SpaceBuilder, SpaceError,
};

use support::private::{Memory, adopting};
use support::{End, MODES, PLAIN, at, fork, in_child, one, open, page, pages, wait_until, watchdog};

mod support;

fn region(space: &Space, pages: usize) -> Region {
    space.allocate(ByteLen(pages * 4096)).unwrap()
}

#[track_caller]
fn says(error: impl Display, parts: &[&str]) {
    let message = error.to_string();
    for part in parts {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
}

fn add(page: &DevicePage<'_>, n: u64) {
    page.update(0, |value| value + n);
}

// Ranges.

#[test]
fn addresses_that_are_not_whole_granules_of_the_region() {
    let Some(space) = open(Space::builder()) else { return };
    let (region, other) = (region(&space, 4), region(&space, 2));
    let start = region.as_ptr().cast::<u8>().as_ptr().cast_const();
    let of = |start: *const u8, len: usize| region.pages_of(start, ByteLen(len));
    let hex = |address: *const u8| format!("{:#x}", address.addr());

    assert_eq!(of(start, 4 * 4096), Ok(region.pages()));
    assert_eq!(of(start.wrapping_add(4096), 2 * 4096), Ok(pages(1, 3)));

    for (offset, len) in [(1, 4096), (0, 4095), (0, 4097), (4095, 2), (8, 8)] {
        let error = of(start.wrapping_add(offset), len).unwrap_err();
        assert!(matches!(error, RangeError::Misaligned { granule: ByteLen(4096), .. }), "{error}");
        says(error, &[&hex(start.wrapping_add(offset)), &format!("{len:#x}"), "4096", "round it to whole granules"]);
    }
    let error = of(start, 0).unwrap_err();
    assert!(matches!(error, RangeError::Empty { .. }), "{error}");
    says(error, &[&hex(start), "at least one granule"]);
    for (start, len) in [(start, usize::MAX), (start, usize::MAX - start.addr() + 1)] {
        let error = of(start, len).unwrap_err();
        assert!(matches!(error, RangeError::Overflow { .. }), "{error}");
        says(error, &[&hex(start), &format!("{len:#x}"), "overflows"]);
    }
    let local = 0u64;
    let unmanaged = [
        (start.wrapping_sub(4096 * 100_000), 4096),
        (start.wrapping_add(4 * 4096 * 100_000), 4096),
        ((&raw const local).cast(), 8),
        (std::ptr::null(), 4096),
    ];
    for (start, len) in unmanaged {
        let error = of(start, len).unwrap_err();
        assert!(matches!(error, RangeError::Unmanaged { .. }), "{error}");
        says(error, &[&hex(start), &hex(region.as_ptr().cast::<u8>().as_ptr()), "only a region's memory"]);
    }
    // From the last page on beyond the end: another region may happen to lie there.
    assert!(matches!(
        of(start.wrapping_add(3 * 4096), 2 * 4096).unwrap_err(),
        RangeError::Unmanaged { .. } | RangeError::Foreign { .. }
    ));
    let foreign = other.as_ptr().cast::<u8>().as_ptr().cast_const();
    let error = of(foreign, 4096).unwrap_err();
    assert!(matches!(error, RangeError::Foreign { region_start, .. } if region_start == foreign.addr()), "{error}");
    says(error, &[&hex(foreign), "another region", "use a view of that one"]);
    drop(other);
    assert!(matches!(of(foreign, 4096).unwrap_err(), RangeError::Unmanaged { .. }), "the other one is gone");
}

#[test]
fn pages_behind_the_end() {
    let Some(space) = open(Space::builder()) else { return };
    let (region, device) = (region(&space, 4), space.register(PLAIN).unwrap());
    let view = region.attach(&device).unwrap();
    let error = view.claim(pages(2, 5), Access::Exclusive).err().unwrap();
    assert!(matches!(error, ClaimError::OutOfRange { region_pages: 4, .. }), "{error}");
    says(error, &["pages 2..5", "region of 4", "claim within it"]);
    let error = view.claim_scattered(&[one(2), one(1)], Access::Exclusive).err().unwrap();
    says(error, &["ascending and disjoint", "sort and merge"]);
}

#[test]
#[should_panic(expected = "pages 2..5 of a region of 4")]
fn a_prefetch_behind_the_end_panics() {
    let space = Space::builder().simulated().build().unwrap();
    region(&space, 4).prefetch(pages(2, 5));
}

#[test]
#[should_panic(expected = "page 4")]
fn an_item_behind_the_end_panics() {
    let space = Space::builder().simulated().build().unwrap();
    let (region, device) = (region(&space, 4), SoftwareDevice::start(&space, SoftwareConfig::default()).unwrap());
    let view = device.attach(&region).unwrap();
    let _ = device.submit(&view, add, &[Item::new(0, 1), Item::new(4, 1)]);
}

/// Also one of another space that happens to have the same number.
#[test]
fn work_on_another_device_s_view_panics() {
    let spaces = [(); 2].map(|()| Space::builder().simulated().build().unwrap());
    let regions = spaces.each_ref().map(|space| region(space, 1));
    let start = |space| SoftwareDevice::start(space, SoftwareConfig::default()).unwrap();
    let (device, neighbour, namesake) = (start(&spaces[0]), start(&spaces[0]), start(&spaces[1]));
    assert_eq!(device.handle().id(), namesake.handle().id());
    for view in [neighbour.attach(&regions[0]).unwrap(), namesake.attach(&regions[1]).unwrap()] {
        let submit = || drop(device.submit(&view, add, &[Item::new(0, 1)]));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(submit)).is_err());
    }
}

// Spaces, regions, devices.

#[test]
fn limits_of_zero() {
    type Configure = fn(SpaceBuilder) -> SpaceBuilder;
    let zero: [(&str, Configure); 3] = [
        ("limit", |builder| builder.hold_limit(Duration::ZERO)),
        ("limit", |builder| builder.drain_limit(Duration::ZERO)),
        ("number of monitors", |builder| builder.monitors(0)),
    ];
    for (what, configure) in zero {
        let error = configure(Space::builder()).build().err().unwrap();
        assert!(matches!(error, SpaceError::Zero(_)), "{error}");
        says(error, &[what, "must not be zero"]);
    }
    let space = Space::builder().simulated().build().unwrap();
    let error =
        SoftwareDevice::start(&space, SoftwareConfig { workers: 0, ..SoftwareConfig::default() }).err().unwrap();
    assert!(matches!(error, StartError::NoWorkers), "{error}");
    says(error, &["at least one worker"]);
}

#[test]
fn regions_of_no_bytes_and_of_too_many() {
    let Some(space) = open(Space::builder()) else { return };
    let error = space.allocate(ByteLen(0)).err().unwrap();
    assert!(matches!(error, RegionError::Empty), "{error}");
    for len in [usize::MAX, (u32::MAX as usize) * 4096, (u32::MAX as usize - 1) * 4096 + 1] {
        let error = space.allocate(ByteLen(len)).err().unwrap();
        assert!(matches!(error, RegionError::TooLarge { .. }), "{error}");
        says(error, &[&len.to_string(), "make several regions"]);
    }
    assert_eq!(space.allocate(ByteLen(1)).unwrap().pages(), pages(0, 1), "rounded up");
    assert_eq!(space.allocate(ByteLen(4097)).unwrap().pages(), pages(0, 2), "rounded up");
}

#[test]
fn devices_that_cannot_be_attached() {
    let Some(space) = open(Space::builder()) else { return };
    let Some(elsewhere) = open(Space::builder()) else { return };
    let (region, device) = (region(&space, 1), space.register(PLAIN).unwrap());
    let _view = region.attach(&device).unwrap();
    says(region.attach(&device).err().unwrap(), &["device 1", "already", "use the view it has"]);
    let foreign = elsewhere.register(PLAIN).unwrap();
    says(region.attach(&foreign).err().unwrap(), &["device 1", "another space", "register it with the region's space"]);
    let rest: Vec<_> = (2..=63).map(|_| space.register(PLAIN).unwrap()).collect();
    let error = space.register(PLAIN).err().unwrap();
    assert!(matches!(error, AttachError::TooManyDevices { limit: 63 }), "{error}");
    says(error, &["63 devices", "drop one, or make another space"]);
    let error = SoftwareDevice::start(&space, SoftwareConfig::default()).err().unwrap();
    assert!(matches!(error, StartError::Attach(AttachError::TooManyDevices { .. })), "{error}");
    drop(rest);
    space.register(PLAIN).unwrap();
}

#[test]
fn a_job_whose_region_goes_away_says_so() {
    let _watchdog = watchdog();
    let Some(space) = open(Space::builder().hold_limit(Duration::MAX)) else { return };
    let region = region(&space, 2);
    let (device, plain) =
        (SoftwareDevice::start(&space, SoftwareConfig::default()).unwrap(), space.register(PLAIN).unwrap());
    let (view, other) = (device.attach(&region).unwrap(), region.attach(&plain).unwrap());
    let lease = other.claim(one(1), Access::Exclusive).unwrap();
    let job = device.submit(&view, add, &[Item::new(0, 1), Item::new(1, 1)]);
    wait_until(|| view.has(page(0)));
    drop(region);
    let error = job.wait().unwrap_err();
    assert!(matches!(error, JobError::Claim(ClaimError::RegionGone { .. })), "{error}");
    says(error, &["pages ", "has been dropped"]);
    drop(lease);
}

#[test]
fn more_regions_than_a_process_may_have() {
    in_child("more_regions_than_a_process_may_have", || {
        let Some(space) = open(Space::builder()) else { return };
        let mut regions = Vec::new();
        let error = loop {
            match space.allocate(ByteLen(4096)) {
                Ok(region) => regions.push(region),
                Err(error) => break error,
            }
        };
        let RegionError::TooMany { limit } = error else { panic!("{error}") };
        assert_eq!(regions.len(), limit);
        says(error, &[&limit.to_string(), "drop one"]);
        regions.swap_remove(500);
        let device = space.register(PLAIN).unwrap();
        let region = space.allocate(ByteLen(4096)).unwrap();
        // The new one works, and so do the first and the last.
        for region in [&region, &regions[0], &regions[limit - 2]] {
            region.attach(&device).unwrap().claim(one(0), Access::Exclusive).unwrap().end().unwrap();
            assert_eq!(at(region, 0, 0).load(SeqCst), 0);
        }
    });
}

// Resources.

fn limit(resource: libc::__rlimit_resource_t, to: u64) {
    let mut limits = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: room for the limits; only the soft one changes, and it can be raised again.
    unsafe {
        assert_eq!(libc::getrlimit(resource, &raw mut limits), 0);
        limits.rlim_cur = to.min(limits.rlim_max);
        assert_eq!(libc::setrlimit(resource, &raw const limits), 0);
    }
}

/// What may be asked of a machine that has just run out of something: either it works, or it says what is missing.
#[track_caller]
fn granted<T, E: Display>(asked: Result<T, E>, remedy: &str) -> Option<T> {
    asked.map_err(|error| says(error, &[remedy])).ok()
}

#[test]
fn out_of_descriptors() {
    in_child("out_of_descriptors", || {
        for faults in MODES {
            if open(Space::builder().faults(faults)).is_none() {
                return;
            }
            // One descriptor more at a time, so that each step fails once.
            let mut refused = 0;
            let built = (3..100).find_map(|most| {
                limit(libc::RLIMIT_NOFILE, most);
                let built = granted(Space::builder().faults(faults).build(), "ulimit -n");
                refused += u32::from(built.is_none());
                built
            });
            let space = built.expect("a hundred descriptors are enough");
            assert!(refused > 0);
            limit(libc::RLIMIT_NOFILE, 3);
            let error = space.allocate(ByteLen(12_288)).err().unwrap();
            let what = matches!(error, RegionError::System { len: ByteLen(12_288), what: "memfd_create", .. });
            assert!(what, "{error}");
            says(error, &["12288 bytes", "memfd_create", "ulimit -n"]);
            limit(libc::RLIMIT_NOFILE, 100);
            let (region, device) = (region(&space, 3), space.register(PLAIN).unwrap());
            // What exists already needs none.
            limit(libc::RLIMIT_NOFILE, 3);
            let view = region.attach(&device).unwrap();
            view.claim_scattered(&[one(0), one(2)], Access::Exclusive).unwrap().end().unwrap();
            assert_eq!(at(&region, 2, 0).fetch_add(1, SeqCst), 0);
            drop((view, region));
            limit(libc::RLIMIT_NOFILE, 1000);
        }
    });
}

/// Address space in use.
fn in_use() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    status.split(' ').next().unwrap().parse::<u64>().unwrap() * 4096
}

/// Whether every other thread has come as far as to wait for something: one that has just been started still needs a
/// signal stack.
fn all_others_sleep() -> bool {
    let state = |task: std::io::Result<std::fs::DirEntry>| {
        let stat = std::fs::read_to_string(task.ok()?.path().join("stat")).ok()?;
        stat.rsplit(") ").next()?.chars().next()
    };
    let awake = std::fs::read_dir("/proc/self/task").unwrap().filter_map(state).filter(|&state| state != 'S').count();
    awake <= 1
}

/// Lets malloc keep enough memory that the test's own few strings do not run out of it.
fn hoard_memory() {
    // SAFETY: these only tune malloc.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 30);
        libc::mallopt(libc::M_MMAP_MAX, 0);
    }
    let hoard: Vec<Vec<u8>> = (0..4096).map(|_| vec![1; 4096]).collect();
    assert_eq!(hoard.iter().map(|block| u64::from(block[4000])).sum::<u64>(), 4096);
}

#[test]
fn out_of_address_space() {
    in_child("out_of_address_space", || {
        for faults in MODES {
            let Some(space) = open(Space::builder().faults(faults)) else { return };
            hoard_memory();
            wait_until(all_others_sleep);
            let first = region(&space, 4);
            // One page more at a time, so that each step of each call fails once. (Nothing that starts threads: the standard
            // library aborts the process when a thread has its stack and nothing more.)
            let mut got = [false; 3];
            for more in 0..200 {
                limit(libc::RLIMIT_AS, in_use() + more * 4096);
                let region = granted(space.allocate(ByteLen(8 * 4096)), "ulimit -v");
                let device = granted(space.register(PLAIN), "ulimit -v");
                let view = device.as_ref().and_then(|device| granted(first.attach(device), "ulimit -v"));
                if let Some(view) = &view {
                    view.claim(pages(0, 4), Access::Exclusive).unwrap().end().unwrap();
                    assert_eq!(at(&first, 1, 0).load(SeqCst), 0);
                }
                let now = [region.is_some(), device.is_some(), view.is_some()];
                got.iter_mut().zip(now).for_each(|(got, now)| *got |= now);
                drop((region, view, device));
                limit(libc::RLIMIT_AS, u64::MAX);
            }
            assert_eq!(got, [true; 3], "region, device, view: {faults:?}");
            // Whatever failed gave back what it had: every identity is there again.
            let devices: Vec<_> = (1..=63).map(|_| space.register(PLAIN).unwrap()).collect();
            drop(devices);

            limit(libc::RLIMIT_AS, in_use() + (1 << 20));
            let error = space.allocate(ByteLen(1 << 30)).err().unwrap();
            assert!(matches!(error, RegionError::System { len: ByteLen(0x4000_0000), .. }), "{error}");
            says(error, &["1073741824 bytes", "mmap", "ulimit -v"]);
            let error = Space::builder().faults(faults).build().err().unwrap();
            assert!(matches!(error, SpaceError::Memory(_)), "{error}");
            says(error, &["ulimit -v"]);
            let many = SoftwareConfig { workers: 1 << 20, ..SoftwareConfig::default() };
            let error = SoftwareDevice::start(&space, many).err().unwrap();
            assert!(matches!(error, StartError::Space(SpaceError::Memory(_))), "{error}");
            says(error, &["ulimit -v"]);
            limit(libc::RLIMIT_AS, u64::MAX);
        }
    });
}

#[test]
fn out_of_threads() {
    in_child("out_of_threads", || {
        if become_nobody().is_none() {
            return;
        }
        if open(Space::builder()).is_none() {
            return;
        }
        // No more threads than run now, of this user, whoever else's.
        limit(libc::RLIMIT_NPROC, 1);
        let error = Space::builder().build().err().unwrap();
        assert!(matches!(error, SpaceError::Thread(_)), "{error}");
        says(error, &["thread", "ulimit -u"]);
        let Ok(space) = Space::builder().faults(Faults::InThread).build() else { return };
        let error = SoftwareDevice::start(&space, SoftwareConfig::default()).err().unwrap();
        assert!(matches!(error, StartError::Space(SpaceError::Thread(_))), "{error}");
        says(error, &["thread", "ulimit -u"]);
        // A device that is not signal-safe needs the deputy.
        let error = space.register(support::Plain { signal_safe: false }).err().unwrap();
        assert!(matches!(error, AttachError::System { .. }), "{error}");
        // Nothing is left of either.
        let device = space.register(PLAIN).unwrap();
        assert_eq!(device.id().get(), 1);
    });
}

// Calls that the kernel refuses.

/// Makes system call `number` fail with `errno` in this thread and the threads it starts: always, or if
/// its argument of the number and value `only` is that. `None` if the machine has no such filters.
#[expect(clippy::cast_possible_truncation, reason = "libc's types of these codes are wider than the filter's")]
fn refuse(number: libc::c_long, only: Option<(u32, u32)>, errno: i32) -> Option<()> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    // `struct seccomp_data`: the number at 0, the arguments, eight bytes each, from 16 on.
    const NUMBER: u32 = 0;
    const ARGUMENTS: u32 = 16;
    let line = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let refusal = line(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | errno.cast_unsigned());
    let allowed = line(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW);
    let number = u32::try_from(number).expect("a small number");
    let mut filter = match only {
        None => vec![line(LOAD, 0, 0, NUMBER), line(IF_EQUAL, 0, 1, number), refusal, allowed],
        Some((argument, value)) => vec![
            line(LOAD, 0, 0, NUMBER),
            line(IF_EQUAL, 0, 3, number),
            line(LOAD, 0, 0, ARGUMENTS + 8 * argument),
            line(IF_EQUAL, 0, 1, value),
            refusal,
            allowed,
        ],
    };
    let program = libc::sock_fprog { len: u16::try_from(filter.len()).expect("short"), filter: filter.as_mut_ptr() };
    // SAFETY: the program is well-formed and outlives the call.
    let installed = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
    };
    if !installed {
        eprintln!("skipped: no seccomp filters: {}", std::io::Error::last_os_error());
    }
    installed.then_some(())
}

/// Gives up root, for good. `None` if that is refused; somebody who is not root has nothing to give up.
fn become_nobody() -> Option<()> {
    // SAFETY: changes the credentials of this process only.
    let ordinary = unsafe {
        libc::geteuid() != 0
            || (libc::setgroups(0, std::ptr::null()) == 0 && libc::setgid(65534) == 0 && libc::setuid(65534) == 0)
    };
    if !ordinary {
        eprintln!("skipped: root cannot be given up here");
    }
    ordinary.then_some(())
}

#[test]
fn userfaultfd_is_refused() {
    in_child("userfaultfd_is_refused", || {
        let refused = become_nobody().and_then(|()| refuse(libc::SYS_userfaultfd, None, libc::EPERM));
        if refused.is_none() {
            return;
        }
        for faults in MODES {
            let error = Space::builder().faults(faults).build().err().unwrap();
            assert!(matches!(error, SpaceError::Userfaultfd(_)), "{error}");
            says(&error, &["/dev/userfaultfd", "UFFD_USER_MODE_ONLY", "pagelease doctor"]);
            // All is said: whoever prints the sources as well prints nothing twice.
            assert!(std::error::Error::source(&error).is_none(), "{error}");
        }
        Space::builder().simulated().build().unwrap();
    });
}

#[test]
fn membarrier_is_refused() {
    in_child("membarrier_is_refused", || {
        if refuse(libc::SYS_membarrier, None, libc::ENOSYS).is_none() {
            return;
        }
        let error = Space::builder().build().err().unwrap();
        assert!(matches!(error, SpaceError::Membarrier(_)), "{error}");
        says(error, &["membarrier", "seccomp"]);
    });
}

/// An attach that fails for want of memory, at its last step, leaves nothing behind.
#[test]
fn no_memory_for_a_view() {
    in_child("no_memory_for_a_view", || {
        let Some(space) = adopting(Space::builder()) else { return };
        let memory = Memory::pages(1);
        let region = memory.adopt(&space);
        let device = space.register(PLAIN).unwrap();
        // Of the mappings that it makes, the last is the only one of a page. More often than there may be views.
        thread::scope(|scope| {
            scope.spawn(|| {
                if refuse(libc::SYS_mmap, Some((1, 4096)), libc::ENOMEM).is_none() {
                    return;
                }
                for _ in 0..1100 {
                    let error = region.attach(&device).map(drop).unwrap_err();
                    assert!(matches!(error, AttachError::System { .. }), "{error}");
                }
            });
        });
        let view = region.attach(&device).unwrap();
        view.claim(one(0), Access::Exclusive).unwrap().end().unwrap();
    });
}

#[test]
fn no_memory_for_pages_never_touched() {
    in_child("no_memory_for_pages_never_touched", || {
        for faults in MODES {
            // A thread, so that the filter ends with it.
            thread::scope(|scope| {
                scope.spawn(|| {
                    let Some(space) = open(Space::builder().faults(faults)) else { return };
                    let (region, a, b) =
                        (region(&space, 8), space.register(PLAIN).unwrap(), space.register(PLAIN).unwrap());
                    let (a, b) = (region.attach(&a).unwrap(), region.attach(&b).unwrap());
                    a.claim(pages(0, 2), Access::Exclusive).unwrap().end().unwrap();
                    a.words(page(1))[0].store(5, SeqCst);
                    b.claim(pages(3, 4), Access::Exclusive).unwrap().end().unwrap();
                    let joined = b.claim(pages(3, 4), Access::Exclusive).unwrap();
                    if refuse(libc::SYS_madvise, Some((2, 23)), libc::ENOMEM).is_none() {
                        return;
                    }
                    let error = b.claim(pages(1, 6), Access::Exclusive).err().unwrap();
                    assert!(matches!(error, ClaimError::OutOfMemory { .. }), "{error}");
                    says(error, &["pages 2..3", "no memory", "memory cgroup"]);
                    // Page 1 had been taken already, and is the CPU's; what B had it has.
                    assert_eq!(at(&region, 1, 0).load(SeqCst), 5);
                    assert!(a.has(page(0)) && !a.has(page(1)) && !b.has(page(1)) && b.has(page(3)));
                    joined.end().unwrap();
                    assert!((4..8).all(|index| at(&region, index, 0).fetch_add(1, SeqCst) == 0));
                    // Pages known to exist are claimed all the same.
                    b.claim(pages(0, 2), Access::Exclusive).unwrap().end().unwrap();
                    assert!(b.has(page(0)));
                    assert_eq!((space.stats().claims, space.stats().invalidations_spurious), (4, 0));
                });
            });
        }
    });
}

#[test]
fn the_cpu_view_cannot_be_revoked() {
    in_child("the_cpu_view_cannot_be_revoked", || {
        let Some(space) = open(Space::builder()) else { return };
        let (region, device) = (region(&space, 4), space.register(PLAIN).unwrap());
        let view = region.attach(&device).unwrap();
        at(&region, 0, 0).store(1, SeqCst);
        let dont_need = libc::MADV_DONTNEED.cast_unsigned();
        let refused = refuse(libc::SYS_madvise, Some((2, dont_need)), libc::EINVAL)
            .and_then(|()| refuse(libc::SYS_process_madvise, None, libc::EINVAL));
        if refused.is_none() {
            return;
        }
        for ranges in [&[pages(0, 2)][..], &[one(0), one(2)][..]] {
            let error = view.claim_scattered(ranges, Access::Exclusive).err().unwrap();
            assert!(matches!(error, ClaimError::Revoke { .. }), "{error}");
            says(error, &["pages 0..", "cannot be revoked"]);
            assert!((0..4).all(|index| !view.has(page(index))));
        }
        assert_eq!(at(&region, 0, 0).fetch_add(1, SeqCst), 1);
    });
}

/// A stuck operation's page that cannot be covered: the CPU goes on all the same, and the counter says so.
#[test]
fn a_page_cannot_be_covered() {
    in_child("a_page_cannot_be_covered", || {
        for faults in MODES {
            let Some(space) = open(Space::builder().faults(faults).drain_limit(Duration::from_millis(100))) else {
                return;
            };
            // The monitors run already; in-thread, this thread covers.
            if faults == Faults::Monitor {
                continue;
            }
            let (region, device) =
                (region(&space, 1), SoftwareDevice::start(&space, SoftwareConfig::default()).unwrap());
            let view = device.attach(&region).unwrap();
            let (entered, gate) = (Arc::new(AtomicBool::new(false)), mpsc::channel::<()>());
            let (entered_too, wait) = (entered.clone(), std::sync::Mutex::new(gate.1));
            let stuck = move |page: &DevicePage<'_>, _: u64| {
                page.store(0, 1);
                entered_too.store(true, SeqCst);
                let _ = wait.lock().unwrap().recv();
            };
            let job = device.submit(&view, stuck, &[Item::new(0, 0)]);
            wait_until(|| entered.load(SeqCst));
            if refuse(libc::SYS_mremap, None, libc::ENOMEM).is_none() {
                return;
            }
            assert_eq!(at(&region, 0, 0).load(SeqCst), 1);
            let JobError::Lost(lost) = job.wait().unwrap_err() else { panic!("not lost") };
            assert!(matches!(lost.why, LossReason::Stuck { page: PageIndex(0), .. }), "{lost}");
            assert_eq!((space.stats().covers_failed, space.stats().devices_lost), (1, 1));
            drop(gate.0);
        }
    });
}

// Ordinary users.

#[test]
fn an_ordinary_user_gets_user_mode_only_and_is_told() {
    in_child("an_ordinary_user_gets_user_mode_only_and_is_told", || {
        if become_nobody().is_none() {
            return;
        }
        let privileged =
            std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").is_ok_and(|on| on.trim() == "1");
        for faults in MODES {
            let Some(space) = open(Space::builder().faults(faults)) else { return };
            if !privileged {
                assert_eq!(space.privilege(), Privilege::UserModeOnly);
            }
            let (region, device) =
                (region(&space, 8), SoftwareDevice::start(&space, SoftwareConfig::default()).unwrap());
            let view = device.attach(&region).unwrap();
            let items: Vec<_> = (0..2000).map(|n| Item::new(n % 8, 1)).collect();
            let job = device.submit(&view, add, &items);
            (0..400).for_each(|n| _ = at(&region, n % 8, 0).fetch_add(1, SeqCst));
            job.wait().unwrap();
            assert_eq!((0..8).map(|index| at(&region, index, 0).load(SeqCst)).sum::<u64>(), 2400, "{faults:?}");

            // System calls: neither reading nor writing a device's page.
            view.claim(pages(0, 8), Access::Exclusive).unwrap().end().unwrap();
            let mut ends = [0; 2];
            let address = |index| at(&region, index, 0).as_ptr().cast::<libc::c_void>();
            // SAFETY: room for two descriptors; words that live, and are accessed by the kernel as by atomics.
            unsafe {
                assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
                if space.privilege() == Privilege::UserModeOnly {
                    assert_eq!(libc::write(ends[1], address(0), 8), -1, "{faults:?}");
                    assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EFAULT));
                    assert!(view.has(page(0)));
                }
                region.prefetch(pages(0, 2));
                assert_eq!(libc::write(ends[1], address(0), 8), 8);
                assert_eq!(libc::read(ends[0], address(1), 8), 8);
                assert_eq!(at(&region, 1, 0).load(SeqCst), at(&region, 0, 0).load(SeqCst));
                libc::close(ends[0]);
                libc::close(ends[1]);
            }
        }
    });
}

// Deaths that are documented.

/// What a child returns that has no userfaultfd.
const SKIPPED: i32 = 77;

/// Makes a space, gives a page to a device, and touches it.
fn touch_in_thread(prepare: impl FnOnce()) -> bool {
    let Some(space) = open(Space::builder().faults(Faults::InThread)) else {
        // SAFETY: no precondition.
        unsafe { libc::_exit(SKIPPED) }
    };
    let (region, device) = (region(&space, 1), space.register(PLAIN).unwrap());
    let view = region.attach(&device).unwrap();
    view.claim(one(0), Access::Exclusive).unwrap().end().unwrap();
    prepare();
    at(&region, 0, 0).fetch_add(1, SeqCst) == 0
}

fn block_sigbus() {
    // SAFETY: room for a set, which sigemptyset fills in.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGBUS);
        assert_eq!(libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()), 0);
    }
}

/// Touches a file's mapping behind the file's end.
fn touch_behind_the_end_of_a_file() {
    // SAFETY: a mapping of its own, and a read of it that raises SIGBUS.
    unsafe {
        let file = libc::memfd_create(c"empty".as_ptr(), 0);
        let mapped = libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, libc::MAP_SHARED, file, 0);
        assert!(mapped != libc::MAP_FAILED);
        mapped.cast::<u8>().read_volatile();
    }
}

// The children make their spaces after they have been forked, so they are no children to the runtime.

#[test]
fn a_thread_that_blocks_sigbus_dies_of_a_touch_that_it_serves_itself() {
    in_child("a_thread_that_blocks_sigbus_dies_of_a_touch_that_it_serves_itself", || {
        match fork(|| touch_in_thread(|| ())) {
            End::Exit(SKIPPED) => return,
            end => assert_eq!(end, End::Exit(0)),
        }
        assert_eq!(fork(|| touch_in_thread(block_sigbus)), End::Signal(libc::SIGBUS));
    });
}

#[test]
fn a_sigbus_that_is_nobody_s_touch_is_passed_on() {
    in_child("a_sigbus_that_is_nobody_s_touch_is_passed_on", || {
        let end = fork(|| touch_in_thread(touch_behind_the_end_of_a_file));
        assert!(matches!(end, End::Signal(libc::SIGBUS) | End::Exit(SKIPPED)), "{end:?}");
    });
}
