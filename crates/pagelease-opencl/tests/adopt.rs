//! A context and a queue that the program has already, and commands of its own.

use std::sync::atomic::Ordering::SeqCst;

use opencl3::command_queue::{CL_QUEUE_OUT_OF_ORDER_EXEC_MODE_ENABLE, CommandQueue, enqueue_copy_buffer};
use opencl3::context::Context;
use opencl3::device::{CL_DEVICE_TYPE_ALL, Device, get_all_devices};
use opencl3::error_codes::{CL_INVALID_VALUE, ClError};
use opencl3::event::Event;
use opencl3::memory::{Buffer, CL_MEM_READ_WRITE};
use opencl3::types::CL_TRUE;
use pagelease::{Faults, PageIndex};
use pagelease_opencl::{Arg, NdRange, OpenClDevice, OpenError, SubmitError, opencl3};

use support::{device, kernel, pages, space};

mod support;

/// The program's own context and queue, before and after, beside what goes through the device.
#[test]
fn a_context_and_a_queue_of_the_program_s() {
    for properties in [0, CL_QUEUE_OUT_OF_ORDER_EXEC_MODE_ENABLE] {
        let (space, region) = space(Faults::Monitor, 2);
        if device(&space).is_none() {
            return;
        }
        let driver_s = Device::new(get_all_devices(CL_DEVICE_TYPE_ALL).unwrap()[0]);
        let context = Context::from_device(&driver_s).unwrap();
        // SAFETY: the context's device.
        let queue = unsafe { CommandQueue::create(&context, driver_s.id(), properties) }.unwrap();
        // SAFETY: both are alive.
        let device = unsafe { OpenClDevice::adopt(&space, context.get(), queue.get()) }.unwrap();
        let buffers = device.attach(&region).unwrap();
        let add = kernel(&device, "add");
        // SAFETY: one work item a word.
        unsafe { device.submit(&add, NdRange::new([1024]), &[Arg::Range(&buffers, pages(0, 2)), Arg::U64(3)]) }
            .unwrap()
            .wait()
            .unwrap();
        assert_eq!(region.words()[1000].load(SeqCst), 3);
        drop((add, buffers, device));
        // Its own are still its own.
        // SAFETY: a buffer of its own, with as many bytes; the call blocks.
        let read = unsafe {
            let mut buffer = Buffer::<u64>::create(&context, CL_MEM_READ_WRITE, 4, std::ptr::null_mut()).unwrap();
            queue.enqueue_write_buffer(&mut buffer, CL_TRUE, 0, &[1, 2, 3, 4], &[]).unwrap();
            let mut read = [0; 4];
            queue.enqueue_read_buffer(&buffer, CL_TRUE, 0, &mut read, &[]).unwrap();
            read
        };
        assert_eq!(read, [1, 2, 3, 4]);
    }
}

/// A queue of another context is found out.
#[test]
fn a_queue_of_another_context_is_refused() {
    let (space, _) = space(Faults::Monitor, 1);
    if device(&space).is_none() {
        return;
    }
    let driver_s = Device::new(get_all_devices(CL_DEVICE_TYPE_ALL).unwrap()[0]);
    let (context, other) = (Context::from_device(&driver_s).unwrap(), Context::from_device(&driver_s).unwrap());
    // SAFETY: the context's device.
    let queue = unsafe { CommandQueue::create(&context, driver_s.id(), 0) }.unwrap();
    // SAFETY: both are alive.
    let refused = unsafe { OpenClDevice::adopt(&space, other.get(), queue.get()) };
    assert!(matches!(refused, Err(OpenError::ForeignQueue)), "{refused:?}");
}

/// Commands of the program's own: a copy from page to page. What fails is passed on, and leaves nothing held.
#[test]
fn commands_of_the_program_s() {
    let (space, region) = space(Faults::Monitor, 2);
    let Some(device) = device(&space) else { return };
    let buffers = device.attach(&region).unwrap();
    region.words()[5].store(42, SeqCst);
    let ranges = [(&buffers, pages(0, 1)), (&buffers, pages(1, 2))];
    // SAFETY: the copy is within the two ranges, and its event its own.
    let submission = unsafe {
        device.enqueue(&ranges, |queue, given, wait| {
            let list = if wait.is_empty() { std::ptr::null() } else { wait.as_ptr() };
            let count = u32::try_from(wait.len()).expect("few");
            enqueue_copy_buffer(queue.get(), given[0], given[1], 0, 0, 4096, count, list)
                .map(Event::new)
                .map_err(ClError::from)
        })
    };
    submission.unwrap().wait().unwrap();
    assert!(buffers.view().has(PageIndex(1)));
    assert_eq!(region.words()[512 + 5].load(SeqCst), 42);
    // SAFETY: nothing is enqueued.
    let refused = unsafe { device.enqueue(&ranges, |_, _, _| Err(ClError(CL_INVALID_VALUE))) };
    let Err(SubmitError::Driver(error)) = refused else { panic!("refused") };
    assert_eq!(error.code, CL_INVALID_VALUE);
    assert_eq!(region.words()[512 + 5].load(SeqCst), 42);
    assert_eq!((space.stats().holds_broken, space.stats().devices_lost), (0, 0));
}
