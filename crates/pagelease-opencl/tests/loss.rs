//! Kernels that do not end, regions that no driver can have, devices that go while they work.

use std::ptr::NonNull;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::Duration;

use opencl3::command_queue::{CL_QUEUE_CONTEXT, CommandQueue, enqueue_fill_buffer, get_command_queue_info};
use opencl3::error_codes::{CL_MEM_OBJECT_ALLOCATION_FAILURE, CL_OUT_OF_RESOURCES, ClError};
use opencl3::event::{Event, create_user_event, set_user_event_status};
use opencl3::types::{cl_context, cl_event};
use pagelease::submit::SubmissionError;
use pagelease::{ByteLen, Faults, LossReason, PageIndex, Space};
use pagelease_opencl::{Arg, AttachError, NdRange, SubmitError, opencl3};

use support::{Gate, MODES, device, kernel, pages, space, wait_until};

mod support;

/// A kernel that does not end within the drain limit costs the device its access: the CPU has the pages, with what was stored to
/// them before, and what the kernel stores later it does not see.
#[test]
fn a_stuck_kernel_loses_the_device() {
    for faults in MODES {
        let space = Space::builder().faults(faults).drain_limit(Duration::from_millis(200)).build().unwrap();
        let region = space.allocate(ByteLen(2 * 4096)).unwrap();
        let Some(device) = device(&space) else { return };
        let (buffers, gate) = (device.attach(&region).unwrap(), Gate::new(&space, &device));
        let add = kernel(&device, "add_at_the_gate");
        let args = [gate.arg(), Arg::Range(&buffers, pages(0, 2)), Arg::U64(7)];
        // SAFETY: the kernel works on words of both pages.
        let submission = unsafe { device.submit(&add, NdRange::new([1]), &args) }.unwrap();
        gate.wait_for(1);
        assert_eq!(region.words()[0].fetch_add(1, SeqCst), 7, "{faults:?}: stored before");
        assert_eq!(space.stats().devices_lost, 1);
        let lost = device.handle().lost().expect("lost");
        assert!(matches!(lost.why, LossReason::Stuck { page: PageIndex(0), .. }), "{lost}");
        let Err(SubmissionError::Lost(_)) = submission.wait() else { panic!("{faults:?}: the wait ends") };
        // SAFETY: it is not to run.
        let again = unsafe { device.submit(&add, NdRange::new([1]), &args) };
        assert!(matches!(again, Err(SubmitError::Runtime(_))), "{:?}", again.map(drop));
        let _ = device.handle();
        gate.open();
        thread::sleep(Duration::from_millis(100));
        assert_eq!(region.words()[1].load(SeqCst), 0, "{faults:?}: a late store landed");
        assert_eq!(region.words()[0].load(SeqCst), 8);
        // Another device takes its place.
        let other = support::device(&space).unwrap();
        let buffers = other.attach(&region).unwrap();
        let add = kernel(&other, "add");
        let args = [Arg::Range(&buffers, region.pages()), Arg::U64(1)];
        // SAFETY: one work item a word.
        unsafe { other.submit(&add, NdRange::new([1024]), &args) }.unwrap().wait().unwrap();
        assert_eq!(region.words()[0].load(SeqCst), 9);
    }
}

/// A command that the driver ends with an error: what it did is undefined, so the device is lost; the CPU has its pages.
#[test]
fn a_command_that_fails_loses_the_device() {
    let (space, region) = space(Faults::Monitor, 1);
    let Some(device) = device(&space) else { return };
    let buffers = device.attach(&region).unwrap();
    let mut user = None;
    // SAFETY: the one command waits for an event of ours, and fills a page of the range.
    let submission = unsafe {
        device.enqueue(&[(&buffers, region.pages())], |queue, given, _| {
            let event = create_user_event(queue_context(queue))?;
            let filled = enqueue_fill_buffer(queue.get(), given[0], [7_u8].as_ptr().cast(), 1, 0, 4096, 1, &event);
            user = Some(event as usize);
            Ok(Event::new(filled?))
        })
    }
    .unwrap();
    assert!(!submission.wait_for(Duration::from_millis(20)));
    set_user_event_status(user.expect("made") as cl_event, CL_OUT_OF_RESOURCES).unwrap();
    let Err(SubmissionError::Queue(error)) = submission.wait() else { panic!("it failed") };
    assert!(error.code < 0, "{error}");
    assert!(matches!(device.handle().lost().expect("lost").why, LossReason::Driver));
    assert_eq!(region.words()[0].load(SeqCst), 0, "the CPU has its page, and nothing ran");
}

fn queue_context(queue: &CommandQueue) -> cl_context {
    isize::from(get_command_queue_info(queue.get(), CL_QUEUE_CONTEXT).expect("known")) as cl_context
}

/// A driver without memory for a command, and a kernel that wants more local memory than there is: typed errors, and nothing is lost or
/// held.
#[test]
fn too_much_is_refused() {
    let (space, region) = space(Faults::Monitor, 1);
    let Some(device) = device(&space) else { return };
    let buffers = device.attach(&region).unwrap();
    let source = "kernel void f(global ulong *words, local ulong *much) { much[0] = 1; words[0] += much[0]; }";
    let f = device.build(source).unwrap().kernel("f").unwrap();
    let submit = |local| {
        let args = [Arg::Range(&buffers, region.pages()), Arg::Local(ByteLen(local))];
        // SAFETY: one work item, which works on a word of each.
        unsafe { device.submit(&f, NdRange::new([1]), &args) }
    };
    let refused = submit(1 << 40).map(drop).unwrap_err();
    assert!(matches!(refused, SubmitError::LocalMemory { given: ByteLen(0x100_0000_0000), .. }), "{refused}");
    // SAFETY: nothing is enqueued.
    let refused = unsafe {
        device.enqueue(&[(&buffers, region.pages())], |_, _, _| Err(ClError(CL_MEM_OBJECT_ALLOCATION_FAILURE)))
    };
    let refused = refused.map(drop).unwrap_err();
    assert!(matches!(refused, SubmitError::OutOfMemory(_)), "{refused}");
    assert_eq!(region.words()[0].fetch_add(1, SeqCst), 0);
    submit(64).unwrap().wait().unwrap();
    assert_eq!(region.words()[0].load(SeqCst), 2);
    assert_eq!((space.stats().devices_lost, space.stats().holds_broken), (0, 0));
}

/// Buffers, region and device may be dropped while a kernel works on them: the memory stays until it has ended.
#[test]
fn what_a_running_kernel_uses_is_kept() {
    let (space, region) = space(Faults::Monitor, 1);
    let Some(device) = device(&space) else { return };
    let (buffers, gate) = (device.attach(&region).unwrap(), Gate::new(&space, &device));
    let add = kernel(&device, "add_at_the_gate");
    let args = [gate.arg(), Arg::Range(&buffers, pages(0, 1)), Arg::U64(7)];
    // SAFETY: the kernel works on words of both pages.
    let submission = unsafe { device.submit(&add, NdRange::new([1]), &args) }.unwrap();
    gate.wait_for(1);
    drop((submission, buffers, add));
    thread::scope(|scope| {
        let dropped = scope.spawn(move || drop(device));
        thread::sleep(Duration::from_millis(50));
        assert!(!dropped.is_finished(), "it waits for what was submitted");
        gate.open();
        wait_until("the device's end", || dropped.is_finished());
    });
    assert_eq!(region.words()[1].load(SeqCst), 7);
}

/// Adopted memory is carried from view to view; a driver that has noted where it lies cannot have it.
#[test]
fn adopted_memory_is_refused() {
    let (space, _) = space(Faults::Monitor, 1);
    let Some(device) = device(&space) else { return };
    let layout = std::alloc::Layout::from_size_align(1 << 20, 1 << 20).unwrap();
    // SAFETY: not of size 0.
    let memory = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }).expect("memory");
    // SAFETY: nobody else uses it.
    match unsafe { space.adopt(memory, ByteLen(1 << 20)) } {
        Ok(region) => {
            let error = device.attach(&region).unwrap_err();
            assert!(matches!(error, AttachError::NoAlias { .. }), "{error}");
            assert!(error.to_string().contains("Space::allocate"), "{error}");
        }
        // A kernel before Linux 6.8 has no UFFDIO_MOVE.
        Err(error) => println!("skipped: {error}"),
    }
    // SAFETY: allocated so; the region has gone.
    unsafe { std::alloc::dealloc(memory.as_ptr(), layout) };
}

/// A granule that no buffer can hold.
#[test]
fn too_small_a_limit_is_refused() {
    let (space, region) = space(Faults::Monitor, 1);
    let Some(device) = device(&space) else { return };
    let error = device.attach_in_chunks(&region, ByteLen(4095)).unwrap_err();
    assert!(matches!(error, AttachError::GranuleTooLarge { limit: ByteLen(4095), .. }), "{error}");
    device.attach(&region).expect("the view of the attempt has gone");
}
