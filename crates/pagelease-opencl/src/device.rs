//! [`OpenClDevice`]: an OpenCL device of a space.

use core::ptr;

use opencl3::command_queue::{
    CL_QUEUE_CONTEXT, CL_QUEUE_DEVICE, CommandQueue, get_command_queue_info, retain_command_queue,
};
use opencl3::context::Context;
use opencl3::context::context::retain_context;
use opencl3::device::Device;
use opencl3::error_codes::ClError;
use opencl3::event::Event;
use opencl3::types::{cl_command_queue, cl_context, cl_event, cl_mem};
use pagelease::submit::{Flights, Queue, Submission, Submitter};
use pagelease::{ByteLen, DeviceHandle, PageRange, Region, Space};
use pagelease_sys::fork;

use crate::available::{Found, available};
use crate::buffers::Buffers;
use crate::error::{AttachError, BuildError, DriverError, OpenError, SubmitError, of};
use crate::launch::{self, Arg, NdRange};
use crate::program::Program;
use crate::queue::OpenClQueue;
use crate::submit::Ranges;

/// An OpenCL device of a space, with a queue. Dropping it waits for what was submitted, however long that takes, unless the device
/// is lost.
#[derive(Debug)]
pub struct OpenClDevice {
    submitter: Submitter<OpenClQueue>,
}

impl OpenClDevice {
    /// Opens the first usable device that [`available`] finds, with a context and an in-order queue of its own.
    ///
    /// # Errors
    /// [`OpenError`]; most often [`OpenError::Unavailable`], with the reason.
    pub fn open(space: &Space) -> Result<Self, OpenError> {
        if fork::in_child() {
            return Err(OpenError::Forked);
        }
        let found = available()?;
        let usable = found.iter().find(|found| found.usable).expect("at least one is");
        Self::open_on(space, usable)
    }

    /// Opens the device `found`.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_on(space: &Space, found: &Found) -> Result<Self, OpenError> {
        if fork::in_child() {
            return Err(OpenError::Forked);
        }
        if !found.usable {
            return Err(OpenError::Unusable { name: found.name.clone() });
        }
        let device = found.device;
        let context = Context::from_device(&device).map_err(of("clCreateContext"))?;
        // SAFETY: the device is the context's.
        let queue = unsafe { CommandQueue::create(&context, device.id(), 0) }.map_err(of("clCreateCommandQueue"))?;
        Self::over(space, OpenClQueue::new(device, context, queue)?)
    }

    /// Makes a device of a context and a queue that the program has already, both of which it keeps (`clRetainContext`,
    /// `clRetainCommandQueue`). The program goes on using them as before, for buffers and commands of its own; those that use a
    /// region's pages go through [`OpenClDevice::submit`] or [`OpenClDevice::enqueue`]. The queue may be out of order.
    ///
    /// # Safety
    /// Both are valid OpenCL objects of the loader that this process has as `libOpenCL.so.1`.
    ///
    /// # Errors
    /// [`OpenError`].
    pub unsafe fn adopt(space: &Space, context: cl_context, queue: cl_command_queue) -> Result<Self, OpenError> {
        if fork::in_child() {
            return Err(OpenError::Forked);
        }
        available()?;
        let info =
            |what| get_command_queue_info(queue, what).map_err(|code| DriverError::new("clGetCommandQueueInfo", code));
        if ptr::without_provenance_mut(isize::from(info(CL_QUEUE_CONTEXT)?).cast_unsigned()) != context {
            return Err(OpenError::ForeignQueue);
        }
        let device = Device::new(ptr::with_exposed_provenance_mut(isize::from(info(CL_QUEUE_DEVICE)?).cast_unsigned()));
        // SAFETY: the caller's promise; each is released once, by what wraps it.
        unsafe { retain_context(context) }.map_err(|code| DriverError::new("clRetainContext", code))?;
        let context = Context::wrap_cl_context(context, &device);
        // SAFETY: as above.
        unsafe { retain_command_queue(queue) }.map_err(|code| DriverError::new("clRetainCommandQueue", code))?;
        let queue = CommandQueue::wrap_cl_command_queue(queue, &device).map_err(of("clGetDeviceInfo"))?;
        Self::over(space, OpenClQueue::new(device, context, queue)?)
    }

    pub(crate) fn over(space: &Space, queue: OpenClQueue) -> Result<Self, OpenError> {
        Ok(Self { submitter: Submitter::start(space, queue)? })
    }

    /// The device as the space knows it.
    #[must_use]
    pub fn handle(&self) -> &DeviceHandle<Flights> {
        self.submitter.handle()
    }

    /// What the driver calls the device.
    #[must_use]
    pub fn name(&self) -> &str {
        self.queue().name()
    }

    /// Whether the driver works on the memory itself, as was tried out when the device was opened. If not, it
    /// copies the ranges of a submission from memory before it, and back after it.
    #[must_use]
    pub fn in_place(&self) -> bool {
        self.queue().in_place()
    }

    /// The largest buffer that the driver makes: `CL_DEVICE_MAX_MEM_ALLOC_SIZE`.
    #[must_use]
    pub fn buffer_max(&self) -> ByteLen {
        self.queue().buffer_max()
    }

    fn queue(&self) -> &OpenClQueue {
        self.submitter.queue()
    }

    /// Gives the device a view of the region, and the driver buffers over it.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn attach(&self, region: &Region) -> Result<Buffers, AttachError> {
        self.attach_in_chunks(region, self.queue().buffer_max())
    }

    /// As [`OpenClDevice::attach`], with buffers of at most `limit` bytes, or of the driver's limit if that is less.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn attach_in_chunks(&self, region: &Region, limit: ByteLen) -> Result<Buffers, AttachError> {
        if !region.capabilities().alias {
            return Err(AttachError::NoAlias { region: region.id(), backend: region.backend() });
        }
        let view = self.submitter.attach(region)?;
        Buffers::new(region, view, self.queue(), limit.min(self.queue().buffer_max()))
    }

    /// Compiles a program in OpenCL C. The first time takes a driver hundreds of milliseconds; most keep what they compiled.
    ///
    /// # Errors
    /// [`BuildError`]; what the compiler said is in [`BuildError::Compile`].
    pub fn build(&self, source: &str) -> Result<Program, BuildError> {
        self.build_with(source, "")
    }

    /// As [`OpenClDevice::build`], with options for the compiler, as `-cl-std=CL3.0` or `-DNAME=value`.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn build_with(&self, source: &str, options: &str) -> Result<Program, BuildError> {
        Program::build(self.queue(), source, options)
    }

    /// Runs `kernel` over `range` on `args`, of which the pages are claimed first. Returns when the driver has the work; waits
    /// before that for what is in the way, as [`View::claim`](pagelease::View::claim) does. Any thread; not a signal handler.
    ///
    /// # Safety
    /// With these arguments, the kernel accesses only the memory of its arguments: OpenCL C checks no bounds. An argument given as a
    /// value or as [`Arg::Bytes`] is of the type that the kernel declares.
    ///
    /// # Errors
    /// [`SubmitError`]: nothing of it runs.
    pub unsafe fn submit<const D: usize>(
        &self,
        kernel: &crate::Kernel,
        range: NdRange<D>,
        args: &[Arg<'_>],
    ) -> Result<Submission<OpenClQueue>, SubmitError> {
        launch::check(self.queue(), kernel, range, args)?;
        let named = args.iter().filter_map(|arg| match *arg {
            Arg::Range(buffers, pages) => Some((buffers, pages)),
            _ => None,
        });
        let ranges = Ranges::new(self.queue(), named)?;
        ranges.submit(&self.submitter, |queue, ranges, wait| {
            let buffer_of = |buffers: &Buffers, pages| ranges.buffer_of(buffers, pages);
            // SAFETY: passed on to the caller.
            unsafe { launch::enqueue(queue, kernel, range, args, buffer_of, wait) }
        })
    }

    /// Has `enqueue` put any commands of the program's own into the queue, which use the `ranges`; for kernels, copies and fills that
    /// [`OpenClDevice::submit`] does not cover. It is given the queue, a buffer for each range (to be used by these commands only, and
    /// not to be released), and events that the first commands must wait for; it returns the event of the last, behind which none is
    /// left. It runs with signals blocked, and must not touch the CPU view of a managed region.
    ///
    /// # Safety
    /// What it enqueues accesses only memory of the ranges, and of the program's own; when the event that it returns has ended, so have
    /// all; when it fails, nothing was left in the queue.
    ///
    /// # Errors
    /// [`SubmitError`]; what `enqueue` failed with is in [`SubmitError::Driver`] or [`SubmitError::OutOfMemory`].
    pub unsafe fn enqueue(
        &self,
        ranges: &[(&Buffers, PageRange)],
        enqueue: impl FnOnce(&CommandQueue, &[cl_mem], &[cl_event]) -> Result<Event, ClError>,
    ) -> Result<Submission<OpenClQueue>, SubmitError> {
        let named = Ranges::new(self.queue(), ranges.iter().copied())?;
        named.submit(&self.submitter, |queue, named, wait| {
            let buffers: Vec<_> = ranges.iter().map(|&(buffers, pages)| named.buffer_of(buffers, pages)).collect();
            Ok(enqueue(queue.commands(), &buffers, wait).map_err(of("a command of the program's own"))?)
        })
    }
}
