//! [`Arg`] and [`NdRange`]: what a kernel is given, and over how many work items it runs.

use core::ffi::c_void;
use core::{fmt, ptr};

use opencl3::error_codes::{
    CL_INVALID_ARG_SIZE, CL_INVALID_GLOBAL_WORK_SIZE, CL_INVALID_WORK_GROUP_SIZE, CL_INVALID_WORK_ITEM_SIZE, ClError,
};
use opencl3::event::Event;
use opencl3::kernel::set_kernel_arg;
use opencl3::types::{cl_event, cl_mem};
use pagelease::{ByteLen, PageRange};

use crate::buffers::Buffers;
use crate::error::{DriverError, SubmitError};
use crate::program::{Kernel, Place};
use crate::queue::OpenClQueue;

/// An argument of a kernel.
#[derive(Copy, Clone, Debug)]
#[non_exhaustive]
pub enum Arg<'a> {
    /// Pages of a region, for a `global` or `constant` pointer: the device's alone until the submission ends.
    Range(&'a Buffers, PageRange),
    /// So many bytes of local memory, for a `local` pointer.
    Local(ByteLen),
    /// An `int`.
    I32(i32),
    /// A `uint`.
    U32(u32),
    /// A `long`.
    I64(i64),
    /// A `ulong`.
    U64(u64),
    /// A `float`.
    F32(f32),
    /// A `double`.
    F64(f64),
    /// Any other value, a vector or a structure, as it lies in memory.
    Bytes(&'a [u8]),
}

impl Arg<'_> {
    fn place(&self) -> Place {
        match self {
            Self::Range(..) => Place::Buffer,
            Self::Local(_) => Place::Local,
            _ => Place::Value,
        }
    }

    fn kind(&self) -> &'static str {
        match self.place() {
            Place::Buffer => "pages of a region",
            Place::Local => "local memory",
            _ => "a value",
        }
    }
}

/// The work items of a submission, in one, two or three dimensions.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct NdRange<const D: usize> {
    global: [usize; D],
    local: Option<[usize; D]>,
}

impl<const D: usize> NdRange<D> {
    /// So many in each dimension; the driver arranges them in work groups. Does not compile for a number of dimensions other than
    /// 1, 2 and 3.
    #[must_use]
    pub const fn new(global: [usize; D]) -> Self {
        const { assert!(D >= 1 && D <= 3, "OpenCL has one, two or three dimensions") }
        Self { global, local: None }
    }

    /// In work groups of so many. Before OpenCL 2.0, the number of work items must be a multiple of it.
    #[must_use]
    pub const fn local(self, local: [usize; D]) -> Self {
        Self { local: Some(local), ..self }
    }
}

impl<const D: usize> fmt::Display for NdRange<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} work items", self.global)?;
        self.local.map_or(Ok(()), |local| write!(f, " in groups of {local:?}"))
    }
}

/// Whether `args` are what the kernel declares, for this device, and there are work items: what drivers need not check, or take ill.
/// (PoCL 3.1 ends the process for work groups of nothing, and for too much local memory.)
pub(crate) fn check<const D: usize>(
    queue: &OpenClQueue,
    kernel: &Kernel,
    range: NdRange<D>,
    args: &[Arg<'_>],
) -> Result<(), SubmitError> {
    if range.global.iter().chain(range.local.iter().flatten()).any(|&size| size == 0) {
        return Err(SubmitError::NoWork { what: range.to_string() });
    }
    if !kernel.queue().is(queue) {
        return Err(SubmitError::ForeignDevice { what: format!("kernel {}", kernel.name()) });
    }
    let params = kernel.params();
    let declared = u32::try_from(params.len()).expect("counted in 32 bits");
    if params.len() != args.len() {
        return Err(SubmitError::ArgCount { kernel: kernel.name().to_owned(), declared, given: args.len() });
    }
    for ((index, param), arg) in (0..declared).zip(params).zip(args) {
        if param.place != Place::Unknown && param.place != arg.place() {
            return Err(SubmitError::ArgKind {
                kernel: kernel.name().to_owned(),
                index,
                declared: param.to_string(),
                given: arg.kind(),
            });
        }
    }
    let locals = args.iter().filter_map(|arg| if let Arg::Local(len) = arg { Some(len.0) } else { None });
    let (given, limit) = (ByteLen(locals.fold(0, usize::saturating_add)), queue.local_max());
    if given > limit {
        return Err(SubmitError::LocalMemory { given, limit });
    }
    Ok(())
}

/// Sets the arguments and enqueues the kernel. `buffer_of` gives the buffer of a range.
///
/// # Safety
/// That of [`OpenClDevice::submit`](crate::OpenClDevice::submit).
pub(crate) unsafe fn enqueue<const D: usize>(
    queue: &OpenClQueue,
    kernel: &Kernel,
    range: NdRange<D>,
    args: &[Arg<'_>],
    buffer_of: impl Fn(&Buffers, PageRange) -> cl_mem,
    wait: &[cl_event],
) -> Result<Event, SubmitError> {
    let locked = kernel.lock();
    for (index, arg) in (0..).zip(args) {
        let set = |len: usize, value: *const c_void| {
            // SAFETY: `value` has `len` bytes, or is null for local memory; the kernel is locked. That a buffer's handle is given
            // just where the kernel has a pointer was checked.
            unsafe { set_kernel_arg(locked.get(), index, len, value) }
        };
        let of_value = |bytes: &[u8]| set(bytes.len(), bytes.as_ptr().cast());
        let (result, len) = match *arg {
            Arg::Range(buffers, pages) => {
                let buffer = buffer_of(buffers, pages);
                (set(size_of::<cl_mem>(), ptr::from_ref(&buffer).cast()), size_of::<cl_mem>())
            }
            Arg::Local(len) => (set(len.0, ptr::null()), len.0),
            Arg::I32(value) => (of_value(&value.to_ne_bytes()), 4),
            Arg::U32(value) => (of_value(&value.to_ne_bytes()), 4),
            Arg::I64(value) => (of_value(&value.to_ne_bytes()), 8),
            Arg::U64(value) => (of_value(&value.to_ne_bytes()), 8),
            Arg::F32(value) => (of_value(&value.to_ne_bytes()), 4),
            Arg::F64(value) => (of_value(&value.to_ne_bytes()), 8),
            Arg::Bytes(bytes) => (of_value(bytes), bytes.len()),
        };
        result.map_err(|code| match code {
            CL_INVALID_ARG_SIZE => SubmitError::ArgSize {
                kernel: kernel.name().to_owned(),
                index,
                declared: kernel.params()[index as usize].to_string(),
                given: ByteLen(len),
            },
            code => DriverError::new("clSetKernelArg", code).into(),
        })?;
    }
    let dimensions = u32::try_from(D).expect("at most three");
    let local = range.local.as_ref().map_or(ptr::null(), |local| local.as_ptr());
    // SAFETY: every argument is set, the sizes have `dimensions` entries; the rest is the caller's promise.
    let event = unsafe {
        queue.commands().enqueue_nd_range_kernel(
            locked.get(),
            dimensions,
            ptr::null(),
            range.global.as_ptr(),
            local,
            wait,
        )
    };
    event.map_err(|ClError(code)| {
        let why = DriverError::new("clEnqueueNDRangeKernel", code);
        match code {
            CL_INVALID_WORK_GROUP_SIZE | CL_INVALID_WORK_ITEM_SIZE | CL_INVALID_GLOBAL_WORK_SIZE => {
                SubmitError::WorkSize {
                    what: match range.local {
                        Some(local) => format!("{:?} work items in groups of {local:?}", range.global),
                        None => format!("{:?} work items", range.global),
                    },
                    why,
                }
            }
            _ => why.into(),
        }
    })
}
