//! Submissions to a driver that does not work in place. None is at hand: one that does is treated as if it did not.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread;

use opencl3::command_queue::{CL_QUEUE_OUT_OF_ORDER_EXEC_MODE_ENABLE, CommandQueue};
use opencl3::context::Context;
use opencl3::types::cl_command_queue_properties;
use pagelease::{ByteLen, PageRange, Space};

use crate::error::{OpenError, SubmitError};
use crate::queue::OpenClQueue;
use crate::{Arg, Kind, NdRange, OpenClDevice, available};

const SOURCE: &str = "
    kernel void add_plainly(volatile global ulong *words, uint rounds) {
        for (uint round = 0; round < rounds; round++) {
            ulong value = words[0];
            for (volatile uint i = 0; i < 20; i++) {}
            words[0] = value + 1;
        }
    }

    kernel void copy(global ulong *to, global ulong *from) { to[get_global_id(0)] = from[get_global_id(0)]; }";

/// `None`, said so, without a driver.
fn copying(space: &Space, properties: cl_command_queue_properties) -> Option<OpenClDevice> {
    let found = match available() {
        Ok(found) => found.into_iter().find(|found| found.usable).expect("one is"),
        Err(why) => {
            assert!(std::env::var_os("PAGELEASE_NEEDS_DEVICES").is_none(), "{why}");
            println!("skipped: {why}");
            return None;
        }
    };
    let open = || -> Result<OpenClDevice, OpenError> {
        let context = Context::from_device(&found.device).expect("a context");
        // SAFETY: the device is the context's.
        let queue = unsafe { CommandQueue::create(&context, found.device.id(), properties) }.expect("a queue");
        OpenClDevice::over(space, OpenClQueue::new(found.device, context, queue)?.not_in_place())
    };
    Some(open().expect("a device"))
}

/// Every update counts, of the kernel and of the CPU, though each submission copies what it has there and back.
#[test]
fn copied_around_each_submission() {
    for properties in [0, CL_QUEUE_OUT_OF_ORDER_EXEC_MODE_ENABLE] {
        let space = Space::new().expect("userfaultfd");
        let Some(device) = copying(&space, properties) else { return };
        assert!(!device.in_place());
        // What is being pretended: a driver for the CPU has no other memory, and is found to need no copies.
        let really = OpenClDevice::open(&space).expect("a device");
        let kind = available().expect("some").into_iter().find(|found| found.usable).map(|found| found.kind);
        assert!(really.in_place() || kind != Some(Kind::Cpu));
        let region = space.allocate(ByteLen(4 * 4096)).expect("memory");
        let buffers = device.attach(&region).expect("attached");
        let program = device.build(SOURCE).expect("it compiles");
        let (add, copy) = (program.kernel("add_plainly").expect("there"), program.kernel("copy").expect("there"));
        let pages = |start, end| PageRange::new(start, end).expect("not empty");
        let (over, by_cpu) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(SeqCst) {
                    region.words()[2 * 512].fetch_add(1, SeqCst);
                    by_cpu.fetch_add(1, SeqCst);
                }
            });
            for _ in 0..40 {
                let args = [Arg::Range(&buffers, pages(2, 3)), Arg::U32(500)];
                // SAFETY: the kernel works on the page's first word.
                unsafe { device.submit(&add, NdRange::new([1]), &args) }
                    .expect("taken")
                    .wait()
                    .expect("nothing is lost");
            }
            over.store(true, SeqCst);
        });
        let counted = 40 * 500 + by_cpu.load(SeqCst);
        assert_eq!(region.words()[2 * 512].load(SeqCst), counted);
        let args = [Arg::Range(&buffers, pages(0, 2)), Arg::Range(&buffers, pages(2, 4))];
        // SAFETY: two pages have 1024 words.
        unsafe { device.submit(&copy, NdRange::new([1024]), &args) }.expect("taken").wait().expect("nothing is lost");
        assert_eq!(region.words()[0].load(SeqCst), counted);
    }
}

/// A kernel that the driver refuses when the copies before it are in the queue already: the pages are held until those have ended, and
/// no longer.
#[test]
fn refused_in_the_middle() {
    let space = Space::new().expect("userfaultfd");
    let Some(device) = copying(&space, 0) else { return };
    let region = space.allocate(ByteLen(4096)).expect("memory");
    let buffers = device.attach(&region).expect("attached");
    let add = device.build(SOURCE).and_then(|program| program.kernel("add_plainly")).expect("it compiles");
    let args = [Arg::Range(&buffers, region.pages()), Arg::U32(1)];
    for _ in 0..20 {
        region.words()[1].fetch_add(1, SeqCst);
        // SAFETY: it is not to run.
        let refused = unsafe { device.submit(&add, NdRange::new([1 << 20]).local([1 << 20]), &args) };
        assert!(matches!(refused, Err(SubmitError::WorkSize { .. })), "refused");
        region.words()[1].fetch_add(1, SeqCst);
    }
    assert_eq!(region.words()[1].load(SeqCst), 40);
    assert_eq!(space.stats().devices_lost, 0);
    // SAFETY: one work item.
    unsafe { device.submit(&add, NdRange::new([1]), &args) }.expect("taken").wait().expect("nothing is lost");
    assert_eq!(region.words()[0].load(SeqCst), 1);
}
