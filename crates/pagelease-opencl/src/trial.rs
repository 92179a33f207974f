//! Whether a device works on the program's memory itself: tried out, on a page of our own.
//!
//! OpenCL lets a driver keep a copy of a `CL_MEM_USE_HOST_PTR` buffer, and bring the two in line when it is mapped and unmapped. One
//! that shares the memory with the CPU does nothing then, and submissions can do without. So: does the host see what the device
//! stored, and the device what the host stored since, with no map in between?

use core::ptr::null_mut;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ffi::c_void;

use opencl3::command_queue::CommandQueue;
use opencl3::context::Context;
use opencl3::device::Device;
use opencl3::event::Event;
use opencl3::memory::{Buffer, CL_MAP_READ, CL_MEM_READ_WRITE, CL_MEM_USE_HOST_PTR, ClMem};
use opencl3::types::{CL_FALSE, CL_TRUE};

use crate::error::{DriverError, of};

/// Two halves, each of whole cache lines of any device.
const HALF: usize = 4096;
const LAYOUT: Layout = match Layout::from_size_align(2 * HALF, 4096) {
    Ok(layout) => layout,
    Err(_) => unreachable!(),
};

/// What a driver does with the host's memory.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Trial {
    /// Works on it.
    InPlace,
    /// Copies it when it is mapped and unmapped.
    Mapped,
    /// Maps it elsewhere.
    Elsewhere,
}

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

    fn fill(&self, at: usize, value: u8) {
        for byte in at..at + HALF {
            // SAFETY: within the two halves; no command is in flight on them.
            unsafe { self.0.add(byte).write_volatile(value) };
        }
    }

    fn is_all(&self, at: usize, value: u8) -> bool {
        // SAFETY: as above.
        (at..at + HALF).all(|byte| unsafe { self.0.add(byte).read_volatile() } == value)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.0, LAYOUT) };
    }
}

/// Tries it. A few commands; nothing is compiled.
pub(crate) fn run(context: &Context, queue: &CommandQueue, device: &Device) -> Result<Trial, DriverError> {
    // Declared first, so dropped last: the buffer goes before its memory.
    let memory = Memory::new();
    let flags = CL_MEM_USE_HOST_PTR | CL_MEM_READ_WRITE;
    // SAFETY: the memory has that many bytes, and outlives the buffer and every command on it, all of which are waited for.
    let whole = unsafe { Buffer::<u8>::create(context, flags, 2 * HALF, memory.0.cast::<c_void>()) };
    let whole = whole.map_err(of("clCreateBuffer"))?;
    let mut mapped = null_mut();
    // SAFETY: within the buffer.
    unsafe { queue.enqueue_map_buffer(&whole, CL_TRUE, CL_MAP_READ, 0, 2 * HALF, &mut mapped, &[]) }
        .map_err(of("clEnqueueMapBuffer"))?;
    // SAFETY: mapped just there.
    let unmapped = unsafe { queue.enqueue_unmap_mem_object(whole.get(), mapped, &[]) };
    wait(&unmapped.map_err(of("clEnqueueUnmapMemObject"))?)?;
    if mapped != memory.0.cast() {
        return Ok(Trial::Elsewhere);
    }
    // A driver may well store through to memory that it reads from a cache: the hardware has to say so too.
    if !device.host_unified_memory().map_err(of("clGetDeviceInfo"))? {
        return Ok(Trial::Mapped);
    }
    let shares = device_s_stores_are_seen(queue, whole, &memory)?;
    Ok(if shares { Trial::InPlace } else { Trial::Mapped })
}

fn device_s_stores_are_seen(queue: &CommandQueue, mut whole: Buffer<u8>, memory: &Memory) -> Result<bool, DriverError> {
    // SAFETY: within the buffer.
    let filled = unsafe { queue.enqueue_fill_buffer(&mut whole, &[0x22_u8], 0, HALF, &[]) };
    wait(&filled.map_err(of("clEnqueueFillBuffer"))?)?;
    if !memory.is_all(0, 0x22) {
        return Ok(false);
    }
    memory.fill(0, 0x33);
    let mut seen = vec![0; HALF];
    // SAFETY: within the buffer; `seen` outlives the command, which is waited for.
    let read = unsafe { queue.enqueue_read_buffer(&whole, CL_FALSE, 0, &mut seen, &[]) };
    wait(&read.map_err(of("clEnqueueReadBuffer"))?)?;
    Ok(seen.iter().all(|&byte| byte == 0x33))
}

fn wait(event: &Event) -> Result<(), DriverError> {
    event.wait().map_err(of("clWaitForEvents"))
}
