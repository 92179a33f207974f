//! `opencl`: what submissions on managed memory cost beyond the driver's, and from which size on they beat copies. See `submitting`
//! for the two questions.
//!
//! A work item adds to 16 bytes. Bare: a `CL_MEM_USE_HOST_PTR` buffer over the alias, made once. Copies: into a buffer of the
//! driver's and back, by `clEnqueueWriteBuffer` and `clEnqueueReadBuffer`, of which only the last blocks.

use std::ffi::c_void;
use std::ptr::{null, null_mut};
use std::sync::atomic::AtomicU64;

use anyhow::{Context as _, Result};
use opencl3::command_queue::CommandQueue;
use opencl3::context::Context;
use opencl3::device::Device;
use opencl3::event::Event;
use opencl3::memory::{Buffer, CL_MEM_READ_WRITE, CL_MEM_USE_HOST_PTR, ClMem};
use opencl3::program::Program;
use opencl3::types::{CL_FALSE, CL_TRUE};
use pagelease::{ByteLen, Region, SpaceBuilder};
use pagelease_opencl::{Arg, Buffers, Kernel, NdRange, OpenClDevice, available, opencl3};

use super::Setup;
use super::bare::{Bare, Trap};
use super::figure::Figure;
use super::submitting::{self, Ways};
use crate::failure;

/// The job.
const SOURCE: &str = "kernel void add(global uint4 *words) { words[get_global_id(0)] += 1; }";

const ITEM: usize = 16;

pub(super) fn run(setup: &Setup) -> Result<Vec<Figure>> {
    // The driver's threads inherit where they may run.
    if let Err(why) = setup.cpus.with_both(|| Ok(available()?)) {
        failure::say(format_args!("bench opencl: skipped: {why}"));
        return Ok(Vec::new());
    }
    submitting::run(setup, Ready::new)
}

/// Everything for one size, on one context and queue, made as an application makes them, and adopted by the runtime. The fields
/// are dropped in order.
struct Ready {
    buffers: Buffers,
    kernel: Kernel,
    device: OpenClDevice,
    import: Buffer<u64>,
    copy: Buffer<u64>,
    add: opencl3::kernel::Kernel,
    queue: CommandQueue,
    _context: Context,
    plain: Bare,
    region: Region,
    items: usize,
}

impl Ready {
    fn new(builder: SpaceBuilder, bytes: usize) -> Result<Self> {
        let device = Device::new(
            *opencl3::device::get_all_devices(opencl3::device::CL_DEVICE_TYPE_ALL)?.first().context("no device")?,
        );
        let context = Context::from_device(&device)?;
        // SAFETY: the context's device.
        let queue = unsafe { CommandQueue::create(&context, device.id(), 0) }?;
        let program = Program::create_and_build_from_source(&context, SOURCE, "").map_err(anyhow::Error::msg)?;
        let add = opencl3::kernel::Kernel::create(&program, "add")?;
        let plain = Bare::new(bytes.div_ceil(4096), Trap::None)?;
        let words = plain.alias_words();
        let alias = words.as_ptr().cast_mut().cast::<c_void>();
        // SAFETY: the alias has so many words, accessed by atomics only, and is dropped after the buffer.
        let import = unsafe { Buffer::create(&context, CL_MEM_USE_HOST_PTR | CL_MEM_READ_WRITE, words.len(), alias) }?;
        // SAFETY: no host pointer.
        let copy = unsafe { Buffer::create(&context, CL_MEM_READ_WRITE, words.len(), null_mut()) }?;

        let space = builder.build()?;
        let region = space.allocate(ByteLen(bytes))?;
        // SAFETY: both are alive.
        let device = unsafe { OpenClDevice::adopt(&space, context.get(), queue.get()) }?;
        let kernel = device.build(SOURCE)?.kernel("add")?;
        let buffers = device.attach(&region)?;
        let items = bytes / ITEM;
        Ok(Self { buffers, kernel, device, import, copy, add, queue, _context: context, plain, region, items })
    }

    fn enqueue(&self, buffer: &Buffer<u64>) -> Result<Event> {
        // SAFETY: the kernel's one argument is a buffer of at least so many items; the queue is in order.
        unsafe {
            self.add.set_arg(0, &buffer.get())?;
            Ok(self.queue.enqueue_nd_range_kernel(self.add.get(), 1, null(), [self.items].as_ptr(), null(), &[])?)
        }
    }
}

impl Ways for Ready {
    fn region(&self) -> &Region {
        &self.region
    }

    fn managed(&self) -> Result<()> {
        let args = [Arg::Range(&self.buffers, self.region.pages())];
        // SAFETY: so many items are within the range.
        Ok(unsafe { self.device.submit(&self.kernel, NdRange::new([self.items]), &args) }?.wait()?)
    }

    fn plain(&self) -> &[AtomicU64] {
        self.plain.words()
    }

    fn bare(&self) -> Result<()> {
        Ok(self.enqueue(&self.import)?.wait()?)
    }

    fn staged(&self, words: &mut [u64]) -> Result<()> {
        // A second name for the buffer, which is not the one that is released.
        let mut copy = std::mem::ManuallyDrop::new(Buffer::<u64>::new(self.copy.get()));
        // SAFETY: the buffer has at least as many words, which nobody touches until the last call, which blocks.
        unsafe {
            self.queue.enqueue_write_buffer(&mut copy, CL_FALSE, 0, words, &[])?;
            self.enqueue(&copy)?;
            self.queue.enqueue_read_buffer(&copy, CL_TRUE, 0, words, &[])?;
        }
        Ok(())
    }
}
