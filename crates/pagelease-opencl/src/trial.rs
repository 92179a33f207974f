//! Whether a device works on the program's memory itself: tried out, on a page of our own.
//!
//! OpenCL lets a driver keep a copy of a `CL_MEM_USE_HOST_PTR` buffer, and bring the two in line when it is told to. One that shares
//! the memory with the CPU does nothing then, and submissions can do without. So: does the host see what the device stored, and
//! the device what the host stored since, untold?

use core::ptr::null_mut;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ffi::c_void;

use opencl3::command_queue::CommandQueue;
use opencl3::context::Context;
use opencl3::device::Device;
use opencl3::event::Event;
use opencl3::memory::{Buffer, CL_MEM_READ_WRITE, CL_MEM_USE_HOST_PTR};
use opencl3::types::CL_FALSE;

use crate::error::{DriverError, of};

/// Whole cache lines of any device.
const LEN: usize = 4096;
const LAYOUT: Layout = match Layout::from_size_align(LEN, 4096) {
    Ok(layout) => layout,
    Err(_) => unreachable!(),
};

/// Memory that the device stores to: only raw, volatile accesses.
struct Memory(*mut u8);

impl Memory {
    fn new() -> Self {
        // SAFETY: the layout is not of size 0.
        let start = unsafe { alloc_zeroed(LAYOUT) };
        if start.is_null() {
            handle_alloc_error(LAYOUT);
        }
        Self(start)
    }

    fn fill(&self, value: u8) {
        for byte in 0..LEN {
            // SAFETY: within it; no command is in flight on it.
            unsafe { self.0.add(byte).write_volatile(value) };
        }
    }

    fn is_all(&self, value: u8) -> bool {
        // SAFETY: as above.
        (0..LEN).all(|byte| unsafe { self.0.add(byte).read_volatile() } == value)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.0, LAYOUT) };
    }
}

/// Whether it does. A few commands; nothing is compiled.
pub(crate) fn works_in_place(context: &Context, queue: &CommandQueue, device: &Device) -> Result<bool, DriverError> {
    // A driver may well store through to memory that it reads from a cache: the hardware has to say so too.
    if !device.host_unified_memory().map_err(of("clGetDeviceInfo"))? {
        return Ok(false);
    }
    // Declared first, so dropped last: the buffer goes before its memory.
    let memory = Memory::new();
    let flags = CL_MEM_USE_HOST_PTR | CL_MEM_READ_WRITE;
    // SAFETY: the memory has that many bytes, and outlives the buffer and every command on it, all of which are waited for.
    let pair = unsafe {
        let first = Buffer::<u8>::create(context, flags, LEN, memory.0.cast::<c_void>());
        first.and_then(|first| Ok((first, Buffer::<u8>::create(context, CL_MEM_READ_WRITE, LEN, null_mut())?)))
    };
    let (mut shared, mut other) = pair.map_err(of("clCreateBuffer"))?;
    // SAFETY: within the buffer.
    let filled = unsafe { queue.enqueue_fill_buffer(&mut shared, &[0x22_u8], 0, LEN, &[]) };
    wait(&filled.map_err(of("clEnqueueFillBuffer"))?)?;
    if !memory.is_all(0x22) {
        return Ok(false);
    }
    memory.fill(0x33);
    let mut seen = vec![0; LEN];
    // By way of a buffer of the driver's own: a read could be answered from the host's memory.
    // SAFETY: within both; `seen` outlives the command, which is waited for.
    let read = unsafe {
        let copied = queue.enqueue_copy_buffer(&shared, &mut other, 0, 0, LEN, &[]);
        wait(&copied.map_err(of("clEnqueueCopyBuffer"))?)?;
        queue.enqueue_read_buffer(&other, CL_FALSE, 0, &mut seen, &[])
    };
    wait(&read.map_err(of("clEnqueueReadBuffer"))?)?;
    Ok(seen.iter().all(|&byte| byte == 0x33))
}

fn wait(event: &Event) -> Result<(), DriverError> {
    event.wait().map_err(of("clWaitForEvents"))
}
