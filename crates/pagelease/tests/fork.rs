//! What a child of fork has of the runtime: nothing; and what it does to its parent's: nothing.
//!
//! Each test runs in a process of its own and forks there, while devices and service threads are at work. The child reports
//! by its exit status.
#![cfg(not(pagelease_shuttle))]

use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::Duration;

use pagelease::software::{DevicePage, Item, JobError, SoftwareConfig, SoftwareDevice, StartError};
use pagelease::{Access, AttachError, ByteLen, ClaimError, Faults, Region, RegionError, Space, SpaceError, View};

use support::{End, MODES, PLAIN, at, fork, in_child, one, open, page, pages};

mod support;

struct Parent {
    space: Space,
    region: Region,
    device: SoftwareDevice,
    view: View,
}

impl Parent {
    fn new(faults: Faults) -> Option<Self> {
        let space = open(Space::builder().faults(faults).hold_limit(Duration::MAX))?;
        let region = space.allocate(ByteLen(8 * 4096)).unwrap();
        let device = SoftwareDevice::start(&space, SoftwareConfig { workers: 2, pause: 10, exclusive: true }).unwrap();
        let view = device.attach(&region).unwrap();
        let parent = Self { space, region, device, view };
        parent.count(1);
        Some(parent)
    }

    /// The device adds 1 to word 0 of each page; and the CPU too, which takes the pages back, but for the last.
    fn count(&self, expected: u64) {
        self.device
            .submit(&self.view, add, &(0..8).map(|index| Item::new(index, 1)).collect::<Vec<_>>())
            .wait()
            .unwrap();
        for index in 0..7 {
            assert_eq!(at(&self.region, index, 0).fetch_add(1, SeqCst), 2 * expected - 1);
        }
        assert!(self.view.has(page(7)));
        assert_eq!(self.view.words(page(7))[0].load(SeqCst), expected);
    }
}

fn add(page: &DevicePage<'_>, n: u64) {
    page.update(0, |value| value + n);
}

#[test]
fn a_child_has_no_mapping_of_a_region() {
    in_child("a_child_has_no_mapping_of_a_region", || {
        for faults in MODES {
            let Some(parent) = Parent::new(faults) else { return };
            for index in [0, 7] {
                let touched = fork(|| at(&parent.region, index, 0).load(SeqCst) == 0);
                assert_eq!(touched, End::Signal(libc::SIGSEGV), "the CPU view of page {index}");
                let touched = fork(|| parent.view.words(page(index))[0].load(SeqCst) == 0);
                assert_eq!(touched, End::Signal(libc::SIGSEGV), "the device's view of page {index}");
            }
            parent.count(2);
        }
    });
}

#[test]
fn what_a_child_drops_stays_with_its_parent() {
    in_child("what_a_child_drops_stays_with_its_parent", || {
        for faults in MODES {
            let Some(parent) = Parent::new(faults) else { return };
            let plain = parent.space.register(PLAIN).unwrap();
            let plain_view = parent.region.attach(&plain).unwrap();
            let lease = plain_view.claim(pages(2, 4), Access::Exclusive).unwrap();
            let notifier = parent.view.subscribe(pages(0, 8)).unwrap();
            let seq = notifier.read_begin();
            // SAFETY: as in `fork`. The child owns a copy of everything, and does not return.
            let child = unsafe { libc::fork() };
            if child == 0 {
                // SAFETY: no precondition.
                unsafe { libc::alarm(20) };
                let Parent { space, region, device, view } = parent;
                let ended = lease.end().is_ok();
                drop((notifier, plain_view, plain, view, region, device, space));
                // SAFETY: no precondition.
                unsafe { libc::_exit(i32::from(!ended)) };
            }
            let mut status = -1;
            // SAFETY: room for an int.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            assert_eq!(status, 0, "{faults:?}");
            assert!(!notifier.read_retry(seq), "nothing was invalidated");
            assert!(plain_view.has(page(2)) && plain_view.has(page(3)) && parent.view.has(page(7)));
            lease.end().unwrap();
            parent.count(2);
            assert_eq!(parent.space.stats().devices_lost, 0);
        }
    });
}

#[test]
fn calls_in_a_child_say_that_it_is_one() {
    in_child("calls_in_a_child_say_that_it_is_one", || {
        for faults in MODES {
            let Some(parent) = Parent::new(faults) else { return };
            let plain = parent.space.register(PLAIN).unwrap();
            let lease = parent.view.claim(one(1), Access::Exclusive).unwrap();
            let says_so: [(&str, &dyn Fn() -> bool); 11] = [
                ("build", &|| matches!(Space::builder().faults(faults).build(), Err(SpaceError::Forked))),
                ("allocate", &|| matches!(parent.space.allocate(ByteLen(1)), Err(RegionError::Forked))),
                ("register", &|| matches!(parent.space.register(PLAIN), Err(AttachError::Forked))),
                ("attach", &|| matches!(parent.region.attach(&plain), Err(AttachError::Forked))),
                (
                    "claim",
                    &|| matches!(parent.view.claim(one(0), Access::Exclusive), Err(ClaimError::Forked { pages }) if pages == one(0)),
                ),
                ("claim_scattered", &|| {
                    let ranges = [one(0), pages(2, 4)];
                    matches!(parent.view.claim_scattered(&ranges, Access::Exclusive), Err(ClaimError::Forked { .. }))
                }),
                ("subscribe", &|| matches!(parent.view.subscribe(one(0)), Err(ClaimError::Forked { .. }))),
                ("prefetch", &|| {
                    parent.region.prefetch(parent.region.pages());
                    true
                }),
                ("start", &|| {
                    let started = SoftwareDevice::start(&parent.space, SoftwareConfig::default());
                    matches!(started, Err(StartError::Attach(AttachError::Forked)))
                }),
                ("submit", &|| {
                    let job = parent.device.submit(&parent.view, add, &[Item::new(0, 1)]);
                    matches!(job.wait(), Err(JobError::Forked))
                }),
                ("what asks only", &|| {
                    let _ = (parent.space.stats(), parent.space.privilege(), lease.check(), parent.view.has(page(0)));
                    true
                }),
            ];
            for (call, says_so) in says_so {
                assert_eq!(fork(says_so), End::Exit(0), "{call}, {faults:?}");
            }
            lease.end().unwrap();
            drop(plain);
            parent.count(2);
        }
    });
}

#[test]
fn errors_of_a_child_say_what_to_do() {
    for message in [SpaceError::Forked.to_string(), RegionError::Forked.to_string(), AttachError::Forked.to_string()] {
        assert!(message.contains("forked child"), "{message}");
    }
    let message = ClaimError::Forked { pages: pages(3, 5) }.to_string();
    assert!(message.contains("pages 3..5") && message.contains("forked child"), "{message}");
}

/// A page of the child's own, where the parent has its region.
fn map_at(region: &Region) -> bool {
    let place = region.as_ptr().cast::<libc::c_void>().as_ptr();
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: nothing is mapped there in the child.
    let mapped = unsafe { libc::mmap(place, 4096, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    mapped == place
}

#[test]
fn what_a_child_maps_there_is_its_own() {
    in_child("what_a_child_maps_there_is_its_own", || {
        for faults in MODES {
            let Some(parent) = Parent::new(faults) else { return };
            let Parent { space, region, device, view } = parent;
            // SAFETY: as in `fork`.
            let child = unsafe { libc::fork() };
            if child == 0 {
                let mapped = map_at(&region);
                let word = region.words().as_ptr();
                // SAFETY: just mapped.
                unsafe { &*word }.store(5, SeqCst);
                drop((view, region, device, space));
                // SAFETY: dropping the region has not unmapped it: a segmentation fault otherwise, which the parent sees.
                let kept = unsafe { &*word }.load(SeqCst) == 5;
                // SAFETY: no precondition.
                unsafe { libc::_exit(i32::from(!(mapped && kept))) };
            }
            let mut status = -1;
            // SAFETY: room for an int.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            assert_eq!(status, 0, "{faults:?}");
            Parent { space, region, device, view }.count(2);
        }
    });
}

/// A child that runs into a SIGBUS of its own dies of it, as it would without the handler that it inherited.
#[test]
fn the_inherited_sigbus_handler_passes_everything_on() {
    in_child("the_inherited_sigbus_handler_passes_everything_on", || {
        let Some(parent) = Parent::new(Faults::InThread) else { return };
        let touched = fork(|| {
            let place = parent.region.as_ptr().cast::<libc::c_void>().as_ptr();
            // SAFETY: an empty file, mapped where the parent has its region; reading it is a SIGBUS.
            unsafe {
                let file = libc::memfd_create(c"empty".as_ptr(), 0);
                let flags = libc::MAP_SHARED | libc::MAP_FIXED;
                assert_eq!(libc::mmap(place, 4096, libc::PROT_READ, flags, file, 0), place);
                place.cast::<u8>().read_volatile() == 0
            }
        });
        assert_eq!(touched, End::Signal(libc::SIGBUS));
        parent.count(2);
    });
}

#[test]
fn many_forks_while_everything_runs_change_nothing() {
    const ROUNDS: u64 = 40;
    in_child("many_forks_while_everything_runs_change_nothing", || {
        for faults in MODES {
            let Some(parent) = Parent::new(faults) else { return };
            let before: u64 = (0..7).map(|index| at(&parent.region, index, 0).load(SeqCst)).sum();
            let items: Vec<_> = (0..4000).map(|n| Item::new(n % 7, 1)).collect();
            let job = parent.device.submit(&parent.view, add, &items);
            let mut added = 0;
            thread::scope(|scope| {
                let forks = scope.spawn(|| {
                    for _ in 0..ROUNDS {
                        assert_eq!(fork(|| parent.region.attach(parent.device.handle()).is_err()), End::Exit(0));
                    }
                });
                while !forks.is_finished() {
                    at(&parent.region, added % 7, 0).fetch_add(1, SeqCst);
                    added += 1;
                    thread::sleep(Duration::from_micros(50));
                }
                forks.join().unwrap();
            });
            job.wait().unwrap();
            let total: u64 = (0..7).map(|index| at(&parent.region, index, 0).load(SeqCst)).sum();
            assert_eq!(total, before + 4000 + u64::from(added), "{faults:?}");
        }
    });
}

/// A process that is started, by `posix_spawn` or by fork and exec, finds nothing either, and its parent goes on.
#[test]
fn a_process_that_is_started_harms_nobody() {
    in_child("a_process_that_is_started_harms_nobody", || {
        for faults in MODES {
            let Some(parent) = Parent::new(faults) else { return };
            assert!(std::process::Command::new("true").status().unwrap().success());
            parent.count(2);
        }
    });
}
