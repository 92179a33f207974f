//! Errors: what was asked for, why it cannot be, and what to do.

use opencl3::error_codes::{
    CL_CONTEXT_TERMINATED_KHR, CL_DEVICE_NOT_AVAILABLE, CL_MEM_OBJECT_ALLOCATION_FAILURE, CL_OUT_OF_HOST_MEMORY,
    CL_OUT_OF_RESOURCES, ClError, error_text,
};
use pagelease::{BackendKind, ByteLen, PageRange, RegionId};

use crate::available::Unavailable;

/// A call of OpenCL failed.
#[derive(Copy, Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{call} failed: {} ({code})", error_text(*.code))]
pub struct DriverError {
    /// The call.
    pub call: &'static str,
    /// The code that OpenCL gives it.
    pub code: i32,
}

impl DriverError {
    pub(crate) const fn new(call: &'static str, code: i32) -> Self {
        Self { call, code }
    }

    /// The driver lacks memory, of the device or of the host, or another resource.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self.code, CL_MEM_OBJECT_ALLOCATION_FAILURE | CL_OUT_OF_RESOURCES | CL_OUT_OF_HOST_MEMORY)
    }

    /// The device has gone, or was reset.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self.code, CL_DEVICE_NOT_AVAILABLE | CL_CONTEXT_TERMINATED_KHR)
    }
}

/// Names the call that an error of the bindings is of.
pub(crate) fn of(call: &'static str) -> impl Fn(ClError) -> DriverError + Copy {
    move |error| DriverError::new(call, error.0)
}

/// A device could not be opened or adopted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is none.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// It is not one that can be used.
    #[error("{name} is not available now, or its driver has no compiler; open one that `available` says is usable")]
    Unusable {
        /// The device.
        name: String,
    },
    /// The queue to adopt is of another context.
    #[error("the queue was not made in this context; adopt a queue with its own context")]
    ForeignQueue,
    /// Called in a child of fork.
    #[error("this process is a forked child: the driver and the runtime are its parent's")]
    Forked,
    /// The driver failed.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The space did not take it, or its thread could not be started.
    #[error(transparent)]
    Start(#[from] pagelease::submit::StartError),
}

/// A region could not be given to a device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// Its pages are carried from view to view, or it is simulated.
    #[error(
        "region {}: a driver keeps the addresses of pages, and those of backend {backend:?} are carried elsewhere; use memory that the runtime allocates, or a file's (Space::allocate, Space::map_file)",
        .region.get()
    )]
    NoAlias {
        /// The region.
        region: RegionId,
        /// Its backend.
        backend: BackendKind,
    },
    /// One granule is more than a buffer of the driver can be.
    #[error("{name} takes at most {limit} a buffer, less than a granule of {granule}; use smaller granules")]
    GranuleTooLarge {
        /// The device.
        name: String,
        /// The driver's limit.
        limit: ByteLen,
        /// The region's granule.
        granule: ByteLen,
    },
    /// The driver does not take the memory as a buffer.
    #[error(
        "{pages}: the driver does not take them as a CL_MEM_USE_HOST_PTR buffer: {why}; {}",
        if .why.is_out_of_memory() { "free memory, or raise the limit of locked memory (ulimit -l)" }
        else { "some drivers refuse memory of a file: use a device that works on host memory" }
    )]
    Buffer {
        /// Those of the buffer.
        pages: PageRange,
        /// What it said.
        why: DriverError,
    },
    /// The space did not take it.
    #[error(transparent)]
    Attach(#[from] pagelease::AttachError),
}

/// A program could not be built, or has no such kernel.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The compiler refused it.
    #[error("the OpenCL C program does not compile:\n{log}")]
    Compile {
        /// What the compiler said.
        log: String,
    },
    /// No source.
    #[error("an empty program; OpenCL takes an empty source for one of unknown length")]
    Empty,
    /// The compiler does not know the options.
    #[error("the compiler does not take the options {options:?}")]
    Options {
        /// What was asked for.
        options: String,
    },
    /// A name or an option with a zero byte in it.
    #[error("{what:?} has a zero byte in it; OpenCL takes strings without")]
    Zero {
        /// What it is in.
        what: String,
    },
    /// No such kernel.
    #[error("the program has no kernel {name}; it has {kernels}")]
    NoKernel {
        /// What was asked for.
        name: String,
        /// Those that it has, separated by semicolons.
        kernels: String,
    },
    /// Called in a child of fork.
    #[error("this process is a forked child: the driver and the runtime are its parent's")]
    Forked,
    /// The driver failed.
    #[error(transparent)]
    Driver(#[from] DriverError),
}

/// A submission was refused. Nothing of it runs, and nothing of it is held.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// The wrong number of arguments.
    #[error("kernel {kernel} has {declared} arguments, not {given}")]
    ArgCount {
        /// The kernel.
        kernel: String,
        /// How many it declares.
        declared: u32,
        /// How many were given.
        given: usize,
    },
    /// An argument is not what the kernel declares.
    #[error("argument {index} of kernel {kernel} is {declared}, not {given}")]
    ArgKind {
        /// The kernel.
        kernel: String,
        /// Which, from 0.
        index: u32,
        /// What it declares.
        declared: String,
        /// What was given.
        given: &'static str,
    },
    /// A value is not as large as the kernel declares.
    #[error("argument {index} of kernel {kernel} is {declared}, and not of {given}")]
    ArgSize {
        /// The kernel.
        kernel: String,
        /// Which, from 0.
        index: u32,
        /// What it declares.
        declared: String,
        /// What was given.
        given: ByteLen,
    },
    /// More local memory than a work group can have.
    #[error("{given} of local memory, and a work group has at most {limit} (CL_DEVICE_LOCAL_MEM_SIZE); use less")]
    LocalMemory {
        /// What was asked for, all arguments together.
        given: ByteLen,
        /// What there is.
        limit: ByteLen,
    },
    /// A kernel, or buffers, of another device.
    #[error("{what} belongs to another device; build and attach with the device that it is submitted to")]
    ForeignDevice {
        /// What does.
        what: String,
    },
    /// The range reaches behind the region's end.
    #[error("{pages} of a region of {region_pages}; name pages within it")]
    OutOfRange {
        /// What was asked for.
        pages: PageRange,
        /// How many granules the region has.
        region_pages: u32,
    },
    /// One argument would lie in two buffers.
    #[error(
        "{pages} reach over page {boundary}, where one buffer of the driver ends and the next begins (CL_DEVICE_MAX_MEM_ALLOC_SIZE); split the argument there"
    )]
    AcrossBuffers {
        /// What was asked for.
        pages: PageRange,
        /// The first page of the second buffer.
        boundary: u32,
    },
    /// Two different ranges of one submission share pages, which OpenCL leaves undefined.
    #[error("{first} and {second} overlap; name one range for both arguments, or split them")]
    Overlap {
        /// One of them.
        first: PageRange,
        /// The other.
        second: PageRange,
    },
    /// The driver does not let a buffer begin there.
    #[error("{pages} do not begin at a multiple of {align}, as the device needs (CL_DEVICE_MEM_BASE_ADDR_ALIGN)")]
    Misaligned {
        /// What was asked for.
        pages: PageRange,
        /// What it needs.
        align: ByteLen,
    },
    /// No memory, of the device or the host, for the submission.
    #[error("{0}; free memory of the device, or submit less at a time")]
    OutOfMemory(DriverError),
    /// No work items, or none in a work group.
    #[error("{what}; name at least one in each dimension")]
    NoWork {
        /// The sizes.
        what: String,
    },
    /// The work items cannot be arranged so.
    #[error("{why}: {what}; see CL_DEVICE_MAX_WORK_GROUP_SIZE, and let the global size be a multiple of the local one")]
    WorkSize {
        /// The sizes.
        what: String,
        /// What the driver said.
        why: DriverError,
    },
    /// Called in a child of fork.
    #[error("this process is a forked child: the driver and the runtime are its parent's")]
    Forked,
    /// The driver failed.
    #[error(transparent)]
    Driver(DriverError),
    /// The pages could not be claimed, or the device is lost.
    #[error(transparent)]
    Runtime(pagelease::submit::SubmitError<DriverError>),
}

impl From<pagelease::submit::SubmitError<DriverError>> for SubmitError {
    fn from(error: pagelease::submit::SubmitError<DriverError>) -> Self {
        match error {
            pagelease::submit::SubmitError::Queue(error) => error.into(),
            error => Self::Runtime(error),
        }
    }
}

impl From<DriverError> for SubmitError {
    fn from(error: DriverError) -> Self {
        if error.is_out_of_memory() { Self::OutOfMemory(error) } else { Self::Driver(error) }
    }
}
