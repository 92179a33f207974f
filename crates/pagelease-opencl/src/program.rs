//! [`Program`] and [`Kernel`]: OpenCL C, compiled for a device.
//!
//! Programs are built with `-cl-kernel-arg-info`, so that what a kernel declares can be compared with what it is given: OpenCL itself
//! takes any eight bytes for a buffer.

use core::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use opencl3::error_codes::{
    CL_BUILD_PROGRAM_FAILURE, CL_INVALID_BUILD_OPTIONS, CL_INVALID_KERNEL_NAME, CL_KERNEL_ARG_INFO_NOT_AVAILABLE,
    ClError,
};
use opencl3::kernel::{
    CL_KERNEL_ARG_ACCESS_NONE, CL_KERNEL_ARG_ADDRESS_CONSTANT, CL_KERNEL_ARG_ADDRESS_GLOBAL,
    CL_KERNEL_ARG_ADDRESS_LOCAL,
};

use pagelease_sys::fork;

use crate::error::{BuildError, DriverError, of};
use crate::ours::Ours;
use crate::queue::OpenClQueue;

/// A program in OpenCL C, built for one device.
pub struct Program {
    program: Ours<opencl3::program::Program>,
    queue: OpenClQueue,
}

/// A kernel of a program. Any number of threads may submit it at a time.
pub struct Kernel {
    /// Setting its arguments and enqueuing it is one step.
    kernel: Mutex<Ours<opencl3::kernel::Kernel>>,
    name: String,
    params: Vec<Param>,
    queue: OpenClQueue,
}

/// An argument, as a kernel declares it.
#[derive(Clone, Debug)]
pub(crate) struct Param {
    pub(crate) place: Place,
    declared: String,
}

/// What an argument can be.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Place {
    /// A pointer to global or constant memory.
    Buffer,
    /// A pointer to local memory.
    Local,
    /// A value.
    Value,
    /// An image, a sampler, a pipe.
    Other,
    /// The driver does not say.
    Unknown,
}

impl fmt::Display for Param {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.declared)
    }
}

impl Program {
    pub(crate) fn build(queue: &OpenClQueue, source: &str, options: &str) -> Result<Self, BuildError> {
        if fork::in_child() {
            return Err(BuildError::Forked);
        }
        for text in [source, options] {
            if text.contains('\0') {
                return Err(BuildError::Zero { what: text.to_owned() });
            }
        }
        if source.is_empty() {
            return Err(BuildError::Empty);
        }
        let created = opencl3::program::Program::create_from_source(queue.context(), source);
        let mut program = Ours::new(created.map_err(of("clCreateProgramWithSource"))?);
        let device = queue.device().id();
        let built = program.get_mut().build(&[device], &format!("-cl-kernel-arg-info {options}"));
        match built {
            Ok(()) => Ok(Self { program, queue: queue.clone() }),
            Err(ClError(CL_BUILD_PROGRAM_FAILURE)) => {
                let log = program.get_build_log(device).map_err(of("clGetProgramBuildInfo"))?;
                Err(BuildError::Compile { log: log.trim_end_matches(['\0', '\n', ' ']).to_owned() })
            }
            Err(ClError(CL_INVALID_BUILD_OPTIONS)) => Err(BuildError::Options { options: options.to_owned() }),
            Err(error) => Err(of("clBuildProgram")(error).into()),
        }
    }

    /// The kernel called `name`.
    ///
    /// # Errors
    /// [`BuildError::NoKernel`], with the names of those that there are; [`BuildError::Driver`].
    pub fn kernel(&self, name: &str) -> Result<Kernel, BuildError> {
        if fork::in_child() {
            return Err(BuildError::Forked);
        }
        if name.contains('\0') {
            return Err(BuildError::Zero { what: name.to_owned() });
        }
        let kernel = match opencl3::kernel::Kernel::create(&self.program, name) {
            Ok(kernel) => Ours::new(kernel),
            Err(ClError(CL_INVALID_KERNEL_NAME)) => {
                let kernels = self.program.kernel_names().to_owned();
                return Err(BuildError::NoKernel { name: name.to_owned(), kernels });
            }
            Err(error) => return Err(of("clCreateKernel")(error).into()),
        };
        let count = kernel.num_args().map_err(of("clGetKernelInfo"))?;
        let params = (0..count).map(|index| param(&kernel, index)).collect::<Result<_, _>>()?;
        Ok(Kernel { kernel: Mutex::new(kernel), name: name.to_owned(), params, queue: self.queue.clone() })
    }
}

/// What the kernel declares for its argument `index`.
fn param(kernel: &opencl3::kernel::Kernel, index: u32) -> Result<Param, DriverError> {
    let info = of("clGetKernelArgInfo");
    let address = match kernel.get_arg_address_qualifier(index) {
        Ok(address) => address,
        Err(ClError(CL_KERNEL_ARG_INFO_NOT_AVAILABLE)) => {
            return Ok(Param { place: Place::Unknown, declared: "unknown".into() });
        }
        Err(error) => return Err(info(error)),
    };
    let type_name = kernel.get_arg_type_name(index).map_err(info)?;
    let type_name = type_name.trim_end_matches('\0');
    let is_image = kernel.get_arg_access_qualifier(index).map_err(info)? != CL_KERNEL_ARG_ACCESS_NONE;
    let is_opaque = is_image || matches!(type_name, "sampler_t" | "queue_t");
    let (place, space) = match address {
        _ if is_opaque => (Place::Other, ""),
        CL_KERNEL_ARG_ADDRESS_GLOBAL => (Place::Buffer, "global "),
        CL_KERNEL_ARG_ADDRESS_CONSTANT => (Place::Buffer, "constant "),
        CL_KERNEL_ARG_ADDRESS_LOCAL => (Place::Local, "local "),
        _ => (Place::Value, ""),
    };
    Ok(Param { place, declared: format!("{space}{type_name}") })
}

impl Kernel {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn params(&self) -> &[Param] {
        &self.params
    }

    pub(crate) fn queue(&self) -> &OpenClQueue {
        &self.queue
    }

    /// For setting its arguments and enqueuing it.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Ours<opencl3::kernel::Kernel>> {
        // Whoever panicked with it left at worst some arguments set, and all are set anew.
        self.kernel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program").field("kernels", &self.program.kernel_names()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel").field("name", &self.name).field("params", &self.params).finish_non_exhaustive()
    }
}
