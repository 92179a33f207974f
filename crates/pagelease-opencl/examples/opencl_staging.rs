//! The usual way: the program's cells and the device's buffers are two things, and a round copies all of the first into the
//! second, and back. `opencl_shared.rs` is the same program without.
//!
//! Run with `cargo run --release --package pagelease-opencl --example opencl_staging`.

use std::error::Error;
use std::ptr::{null, null_mut};
use std::time::Instant;

use opencl3::command_queue::CommandQueue;
use opencl3::context::Context;
use opencl3::device::{CL_DEVICE_TYPE_ALL, Device, get_all_devices};
use opencl3::kernel::Kernel;
use opencl3::memory::{Buffer, CL_MEM_READ_ONLY, CL_MEM_WRITE_ONLY, ClMem};
use opencl3::program::Program;
use opencl3::types::CL_TRUE;
use pagelease_opencl::opencl3;

mod heat;
use heat::{CELLS, HEAT, KERNEL, ROUNDS, WALKERS, expected, next};

fn main() -> Result<(), Box<dyn Error>> {
    let device = Device::new(*get_all_devices(CL_DEVICE_TYPE_ALL)?.first().ok_or("no device")?);
    let context = Context::from_device(&device)?;
    // SAFETY: the device is the context's.
    let queue = unsafe { CommandQueue::create(&context, device.id(), 0) }?;
    let program = Program::create_and_build_from_source(&context, KERNEL, "")?;
    let spread = Kernel::create(&program, "spread")?;

    let mut cells = vec![0; CELLS];
    // SAFETY: no host pointer is given.
    let mut from = unsafe { Buffer::<u64>::create(&context, CL_MEM_READ_ONLY, CELLS, null_mut()) }?;
    // SAFETY: as above.
    let to = unsafe { Buffer::<u64>::create(&context, CL_MEM_WRITE_ONLY, CELLS, null_mut()) }?;
    // SAFETY: the kernel takes two buffers.
    unsafe { spread.set_arg(0, &from.get()).and_then(|()| spread.set_arg(1, &to.get())) }?;

    let mut walkers = WALKERS;
    let start = Instant::now();
    for _ in 0..ROUNDS {
        // SAFETY: the buffers have as many cells; the last call blocks, and the queue is in order.
        unsafe {
            queue.enqueue_write_buffer(&mut from, CL_TRUE, 0, &cells, &[])?;
            queue.enqueue_nd_range_kernel(spread.get(), 1, null(), [CELLS].as_ptr(), null(), &[])?;
            queue.enqueue_read_buffer(&to, CL_TRUE, 0, &mut cells, &[])?;
        }
        for at in &mut walkers {
            *at = next(*at, |i| cells[i]);
            cells[*at] += HEAT;
        }
    }
    println!("{}: {ROUNDS} rounds with staging copies in {:?}", device.name()?.trim(), start.elapsed());
    assert_eq!(cells, expected());
    Ok(())
}
