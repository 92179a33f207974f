//! What OpenCL there is on this machine, and why not.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use cl3::load_library;
use opencl3::device::{CL_DEVICE_TYPE_ALL, CL_DEVICE_TYPE_CPU, CL_DEVICE_TYPE_GPU, Device};
use opencl3::error_codes::{CL_DEVICE_NOT_FOUND, CL_PLATFORM_NOT_FOUND_KHR};
use opencl3::platform::{Platform, get_platforms};

use crate::error::{DriverError, of};

/// A device that was found.
#[derive(Clone, Debug)]
pub struct Found {
    pub(crate) device: Device,
    /// The driver: the name of its platform.
    pub platform: String,
    /// What the driver calls the device.
    pub name: String,
    /// The OpenCL version of the device, and what the driver adds to it.
    pub version: String,
    /// What it is.
    pub kind: Kind,
    /// Whether it can be used now, and its driver compiles OpenCL C.
    pub usable: bool,
}

/// What a device is.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// The CPU, or software that runs on it.
    Cpu,
    /// A GPU.
    Gpu,
    /// Anything else.
    Accelerator,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "CPU",
            Self::Gpu => "GPU",
            Self::Accelerator => "accelerator",
        })
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}), {}, {}", self.name, self.kind, self.platform, self.version)?;
        if self.usable { Ok(()) } else { f.write_str("; not usable now, or its driver has no compiler") }
    }
}

/// Why there is no OpenCL device. It says what is missing and what to do; [`Unavailable::remedy`] is a shell command.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// No `libOpenCL.so.1`.
    #[error("no OpenCL loader: {why}; install one, and a driver")]
    NoLoader {
        /// What the dynamic linker said.
        why: String,
    },
    /// The loader found no driver.
    #[error("the OpenCL loader found no driver (CL_PLATFORM_NOT_FOUND_KHR) in {looked_in}; {}", no_driver(.overridden))]
    NoDriver {
        /// Where it looks for drivers.
        looked_in: String,
        /// That place comes from the environment.
        overridden: bool,
    },
    /// The drivers have no device.
    #[error(
        "no device: {platforms} found none; is the hardware there, and may this user open it (/dev/dri, /dev/kfd)?"
    )]
    NoDevice {
        /// The drivers.
        platforms: String,
    },
    /// There are devices, and none that can be used.
    #[error(
        "{devices}: not available now, or their driver has no compiler; see what uses them, or install another driver"
    )]
    NoneUsable {
        /// The devices.
        devices: String,
    },
    /// A driver failed.
    #[error("{0}; the driver itself fails: see its own diagnosis (clinfo)")]
    Driver(#[from] DriverError),
}

fn no_driver(overridden: &bool) -> &'static str {
    if *overridden { "unset OCL_ICD_VENDORS, or let it name a folder with a driver" } else { "install a driver" }
}

impl Unavailable {
    /// The command that most likely helps, on Debian.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NoLoader { .. } => "sudo apt install ocl-icd-libopencl1 pocl-opencl-icd",
            Self::NoDriver { overridden: true, .. } => "unset OCL_ICD_VENDORS",
            Self::NoDevice { .. } => "sudo usermod -aG render,video $USER",
            Self::NoDriver { .. } | Self::NoneUsable { .. } | Self::Driver(_) => "sudo apt install pocl-opencl-icd",
        }
    }
}

/// One thread looks for devices at a time.
static LOOKING: Mutex<()> = Mutex::new(());

/// The OpenCL devices of this machine, in the loader's order; at least one of them usable.
///
/// Loads `libOpenCL.so.1` and its drivers the first time, which may take a while; the library then stays, and is not looked for
/// again.
///
/// # Errors
/// [`Unavailable`]: why there are none.
pub fn available() -> Result<Vec<Found>, Unavailable> {
    if let Err(error) = load_library() {
        return Err(Unavailable::NoLoader { why: error.to_string() });
    }
    // A driver may look for its devices when it is first asked, and show a second thread those that it is not done with (PoCL 3.1).
    let _alone = LOOKING.lock().unwrap_or_else(PoisonError::into_inner);
    let platforms = match get_platforms() {
        Ok(platforms) => platforms,
        Err(error) if error.0 == CL_PLATFORM_NOT_FOUND_KHR => Vec::new(),
        Err(error) => return Err(DriverError::new("clGetPlatformIDs", error.0).into()),
    };
    if platforms.is_empty() {
        let named = std::env::var("OCL_ICD_VENDORS").ok();
        let overridden = named.is_some();
        return Err(Unavailable::NoDriver {
            looked_in: named.unwrap_or_else(|| "/etc/OpenCL/vendors".into()),
            overridden,
        });
    }
    let mut found = Vec::new();
    for platform in &platforms {
        match platform.get_devices(CL_DEVICE_TYPE_ALL) {
            Ok(ids) => {
                for id in ids {
                    found.push(describe(platform, Device::new(id))?);
                }
            }
            Err(error) if error.0 == CL_DEVICE_NOT_FOUND => {}
            Err(error) => return Err(DriverError::new("clGetDeviceIDs", error.0).into()),
        }
    }
    if found.is_empty() {
        let names = platforms.iter().map(|platform| platform.name().unwrap_or_else(|error| error.to_string()));
        return Err(Unavailable::NoDevice { platforms: names.collect::<Vec<_>>().join(", ") });
    }
    if !found.iter().any(|found| found.usable) {
        let names: Vec<_> = found.iter().map(|found| found.name.as_str()).collect();
        return Err(Unavailable::NoneUsable { devices: names.join(", ") });
    }
    Ok(found)
}

fn describe(platform: &Platform, device: Device) -> Result<Found, DriverError> {
    let info = of("clGetDeviceInfo");
    let kind = device.dev_type().map_err(info)?;
    Ok(Found {
        device,
        platform: platform.name().map_err(of("clGetPlatformInfo"))?.trim().to_owned(),
        name: device.name().map_err(info)?.trim().to_owned(),
        version: device.version().map_err(info)?.trim().to_owned(),
        kind: match kind {
            kind if kind & CL_DEVICE_TYPE_GPU != 0 => Kind::Gpu,
            kind if kind & CL_DEVICE_TYPE_CPU != 0 => Kind::Cpu,
            _ => Kind::Accelerator,
        },
        usable: device.available().map_err(info)? && device.compiler_available().map_err(info)?,
    })
}
