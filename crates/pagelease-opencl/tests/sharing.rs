//! CPU threads and OpenCL kernels on the same memory at the same time: what the conformance suite (`suite.rs`) does not ask.

use std::ffi::c_void;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread;
use std::time::Duration;

use opencl3::command_queue::CommandQueue;
use opencl3::context::Context;
use opencl3::device::Device;
use opencl3::memory::{Buffer, CL_MEM_USE_HOST_PTR, ClMem};
use pagelease::{Faults, PageIndex, RestorePolicy, Space};
use pagelease_opencl::{Arg, NdRange, OpenClDevice, available, opencl3};

use support::{Gate, MODES, device, kernel, pages, space};

mod support;

const SUBMISSIONS: u64 = 40;
const ROUNDS: u32 = 2000;
const WORDS: u32 = 64;

/// Both sides add atomically, the CPU from two threads: what exclusivity must not break.
#[test]
fn atomic_counts_are_exact() {
    for faults in MODES {
        let (space, region) = space(faults, 1);
        let Some(device) = device(&space) else { return };
        let buffers = device.attach(&region).unwrap();
        let add = kernel(&device, "add_atomically");
        let words = &region.words()[..WORDS as usize];
        let (done, by_cpu) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(SeqCst) {
                        words.iter().for_each(|word| _ = word.fetch_add(1, Relaxed));
                        by_cpu.fetch_add(1, SeqCst);
                    }
                });
            }
            for _ in 0..SUBMISSIONS {
                let args = [Arg::Range(&buffers, region.pages()), Arg::U32(WORDS), Arg::U32(ROUNDS)];
                // SAFETY: the kernel adds to that many words of the page.
                unsafe { device.submit(&add, NdRange::new([1]), &args) }.unwrap().wait().unwrap();
            }
            done.store(true, SeqCst);
        });
        let expected = SUBMISSIONS * u64::from(ROUNDS) + by_cpu.load(SeqCst);
        assert!(words.iter().all(|word| word.load(Relaxed) == expected), "{faults:?}");
        assert!(space.stats().touches > 0, "the CPU was in between");
    }
}

/// The kernel loads, waits a little and stores: without exclusivity updates are lost.
#[test]
fn plain_updates_are_exact_by_exclusivity() {
    for faults in MODES {
        for policy in [RestorePolicy::Lazy, RestorePolicy::Eager, RestorePolicy::Adaptive] {
            let limit = Duration::from_secs(60);
            let space = Space::builder().faults(faults).restore(policy).drain_limit(limit).build().unwrap();
            let region = space.allocate(pagelease::ByteLen(4096)).unwrap();
            let Some(device) = device(&space) else { return };
            let buffers = device.attach(&region).unwrap();
            let add = kernel(&device, "add_plainly");
            let (done, by_cpu) = (AtomicBool::new(false), AtomicU64::new(0));
            thread::scope(|scope| {
                scope.spawn(|| {
                    while !done.load(SeqCst) {
                        region.words()[0].fetch_add(1, SeqCst);
                        by_cpu.fetch_add(1, SeqCst);
                    }
                });
                for _ in 0..SUBMISSIONS {
                    let args = [Arg::Range(&buffers, region.pages()), Arg::U32(ROUNDS)];
                    // SAFETY: the kernel works on the page's first word.
                    unsafe { device.submit(&add, NdRange::new([1]), &args) }.unwrap().wait().unwrap();
                }
                done.store(true, SeqCst);
            });
            let expected = SUBMISSIONS * u64::from(ROUNDS) + by_cpu.load(SeqCst);
            assert_eq!(region.words()[0].load(SeqCst), expected, "{faults:?}, {policy:?}");
        }
    }
}

/// The same on the same kind of alias, with nothing claimed, as an OpenCL program would do it: it loses updates. So the test above
/// could fail.
#[test]
fn plain_updates_without_exclusivity_are_lost() {
    let (space, region) = space(Faults::Monitor, 1);
    let Some(managed) = device(&space) else { return };
    let buffers = managed.attach(&region).unwrap();
    let device = Device::new(opencl3::device::get_all_devices(opencl3::device::CL_DEVICE_TYPE_ALL).unwrap()[0]);
    let context = Context::from_device(&device).unwrap();
    // SAFETY: the context's device.
    let queue = unsafe { CommandQueue::create(&context, device.id(), 0) }.unwrap();
    let alias = buffers.view().page_ptr(PageIndex(0)).unwrap().cast::<c_void>().as_ptr();
    // SAFETY: the view outlives the buffer.
    let buffer = unsafe { Buffer::<u8>::create(&context, CL_MEM_USE_HOST_PTR, 4096, alias) }.unwrap();
    let program =
        opencl3::program::Program::create_and_build_from_source(&context, support::KERNELS, "").expect("it compiles");
    let add = opencl3::kernel::Kernel::create(&program, "add_plainly").unwrap();
    // What the CPU adds while the kernel is between its load and its store is lost. On a busy machine the two may happen to run one
    // after the other; not for seconds on end.
    let lost = (0..15).map(|attempt| ROUNDS << attempt).any(|rounds| {
        let (done, by_cpu) = (AtomicBool::new(false), AtomicU64::new(0));
        let before = region.words()[0].load(SeqCst);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(SeqCst) {
                    region.words()[0].fetch_add(1, SeqCst);
                    by_cpu.fetch_add(1, SeqCst);
                }
            });
            // SAFETY: the arguments that it declares; it works on the page's first word.
            let event = unsafe {
                add.set_arg(0, &buffer.get()).unwrap();
                add.set_arg(1, &rounds).unwrap();
                let size = [1_usize];
                queue.enqueue_nd_range_kernel(add.get(), 1, std::ptr::null(), size.as_ptr(), std::ptr::null(), &[])
            };
            event.unwrap().wait().unwrap();
            done.store(true, SeqCst);
        });
        let counted = u64::from(rounds) + by_cpu.load(SeqCst);
        region.words()[0].load(SeqCst) < before + counted
    });
    assert!(lost, "nothing was lost, so exclusivity is not tested here");
}

/// A touch of a page that a running kernel uses goes on when the kernel has ended, and sees both of its stores; a touch of a page that
/// it does not use, at once.
#[test]
fn a_touch_waits_for_a_running_kernel() {
    for faults in MODES {
        let (space, region) = space(faults, 2);
        let Some(device) = device(&space) else { return };
        let (buffers, gate) = (device.attach(&region).unwrap(), Gate::new(&space, &device));
        let add = kernel(&device, "add_at_the_gate");
        let args = [gate.arg(), Arg::Range(&buffers, pages(0, 1)), Arg::U64(7)];
        // SAFETY: the kernel works on words of both pages.
        let submission = unsafe { device.submit(&add, NdRange::new([1]), &args) }.unwrap();
        gate.wait_for(1);
        assert!(!submission.wait_for(Duration::ZERO));
        region.words()[512].store(1, SeqCst);
        thread::scope(|scope| {
            let touch = scope.spawn(|| [0, 1].map(|word| region.words()[word].fetch_add(1, SeqCst)));
            // Longer than the hold limit: the hold is broken, the kernel is waited for all the same.
            thread::sleep(Duration::from_millis(120));
            assert!(!touch.is_finished(), "{faults:?}: the kernel is not done");
            gate.open();
            assert_eq!(touch.join().unwrap(), [7, 7], "{faults:?}");
        });
        submission.wait().unwrap();
        assert_eq!(region.words()[1].load(SeqCst), 8);
        assert_eq!(space.stats().devices_lost, 0);
    }
}

/// Of an idle device, a touch takes pages without waiting for anything; with the eager policy they are back already.
#[test]
fn an_idle_device_keeps_pages_by_policy() {
    for (policy, stays) in [(RestorePolicy::Lazy, true), (RestorePolicy::Eager, false)] {
        let space = Space::builder().restore(policy).build().unwrap();
        let region = space.allocate(pagelease::ByteLen(8 * 4096)).unwrap();
        let Some(device) = device(&space) else { return };
        let buffers = device.attach(&region).unwrap();
        let add = kernel(&device, "add");
        let args = [Arg::Range(&buffers, region.pages()), Arg::U64(1)];
        // SAFETY: one work item a word.
        unsafe { device.submit(&add, NdRange::new([4096]), &args) }.unwrap().wait().unwrap();
        assert_eq!(buffers.view().has(PageIndex(3)), stays, "{policy:?}");
        assert_eq!(region.words()[3 * 512].load(SeqCst), 1);
        assert!(!buffers.view().has(PageIndex(3)), "the CPU touched it");
        assert_eq!(space.stats().touches, u64::from(stays), "{policy:?}");
    }
}

/// Two OpenCL devices, each with a queue of its own, take the page from each other.
#[test]
fn two_opencl_devices_on_one_page() {
    let (space, region) = space(Faults::Monitor, 1);
    let Some(first) = device(&space) else { return };
    let found = available().unwrap();
    let second = OpenClDevice::open_on(&space, found.last().unwrap()).unwrap();
    thread::scope(|scope| {
        for device in [&first, &second] {
            let region = &region;
            scope.spawn(move || {
                let (buffers, add) = (device.attach(region).unwrap(), kernel(device, "add_plainly"));
                for _ in 0..SUBMISSIONS {
                    let args = [Arg::Range(&buffers, region.pages()), Arg::U32(ROUNDS)];
                    // SAFETY: the kernel works on the page's first word.
                    unsafe { device.submit(&add, NdRange::new([1]), &args) }.unwrap().wait().unwrap();
                }
            });
        }
    });
    assert_eq!(region.words()[0].load(SeqCst), 2 * SUBMISSIONS * u64::from(ROUNDS));
}

/// Several threads submit one kernel, each with arguments of its own.
#[test]
fn threads_share_a_kernel() {
    let (space, region) = space(Faults::Monitor, 4);
    let Some(device) = device(&space) else { return };
    let (buffers, add) = (device.attach(&region).unwrap(), kernel(&device, "add"));
    thread::scope(|scope| {
        for page in 0..4 {
            let (device, buffers, add) = (&device, &buffers, &add);
            scope.spawn(move || {
                for _ in 0..100 {
                    let args = [Arg::Range(buffers, pages(page, page + 1)), Arg::U64(u64::from(page) + 1)];
                    // SAFETY: a page has 512 words.
                    unsafe { device.submit(add, NdRange::new([512]), &args) }.unwrap().wait().unwrap();
                }
            });
        }
    });
    for page in 0..4 {
        assert_eq!(region.words()[page * 512 + 511].load(SeqCst), 100 * (page as u64 + 1));
    }
}
