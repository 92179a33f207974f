//! What can go wrong, and what to do about it.

use ash::vk;

use pagelease::submit::{SubmissionError, SubmitError};
use pagelease::{AttachError, BackendKind, ByteLen};

/// Vulkan cannot be used on this machine, or with no device of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// There is no Vulkan loader.
    #[error("there is no Vulkan loader: {0}; install one (Debian: libvulkan1)")]
    NoLoader(String),
    /// There is a loader, but no driver that it could load.
    #[error(
        "the Vulkan loader finds no driver; install one (Debian: mesa-vulkan-drivers), or see VK_DRIVER_FILES if it is set"
    )]
    NoDriver,
    /// The validation layer was asked for, and is not installed.
    #[error("VK_LAYER_KHRONOS_validation is not installed (Debian: vulkan-validationlayers)")]
    NoValidation,
    /// No device is fit; the reason for each.
    #[error("no Vulkan device is fit: {}", .0.iter().map(|(name, why)| format!("{name}: {why}")).collect::<Vec<_>>().join("; "))]
    NoneFit(Vec<(String, Unfit)>),
    /// A Vulkan call failed.
    #[error("{what} failed: {result}")]
    Vulkan {
        /// The call.
        what: &'static str,
        /// What the driver said.
        result: vk::Result,
    },
}

/// Why a physical device cannot be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Unfit {
    /// The driver is too old.
    #[error("its driver has Vulkan {major}.{minor}, and 1.2 is needed; update it")]
    TooOld {
        /// What it has.
        major: u32,
        /// What it has.
        minor: u32,
    },
    /// It cannot import the process's memory.
    #[error(
        "its driver has no VK_EXT_external_memory_host, so it cannot work on a process's memory; use another driver"
    )]
    NoImport,
    /// No queue of it computes.
    #[error("it has no queue for compute shaders; use another device")]
    NoCompute,
    /// The driver ends shader invocations early, and says nothing.
    #[error(
        "its driver ({driver}) ends every shader invocation after {ran} of {asked} loop iterations and says nothing; use a \
         newer one: Debian 12 has Mesa 25.0 in bookworm-backports, which can lie beside the system's (VK_DRIVER_FILES)"
    )]
    EndsLoops {
        /// The driver's name and version.
        driver: String,
        /// How many iterations a loop ran.
        ran: u32,
        /// How many it should have.
        asked: u32,
    },
    /// It could not be tried out.
    #[error("it cannot be tried out: {0}")]
    Trial(String),
}

/// The driver failed.
#[derive(Copy, Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DriverError {
    /// The device is lost: nothing it was given runs any more, and nothing will.
    #[error("{what}: the driver lost the device; make a new one")]
    Lost {
        /// The call that said so.
        what: &'static str,
    },
    /// No memory of the host's or of the device's.
    #[error("{what}: out of {}; free some, or submit less at a time", if *.device { "the device's memory" } else { "memory" })]
    OutOfMemory {
        /// The call that said so.
        what: &'static str,
        /// The device's, not the host's.
        device: bool,
    },
    /// Something else.
    #[error("{what} failed: {result}")]
    Vulkan {
        /// The call.
        what: &'static str,
        /// What the driver said.
        result: vk::Result,
    },
}

impl DriverError {
    /// What `result` of the call `what` means.
    pub(crate) fn of(what: &'static str) -> impl Fn(vk::Result) -> Self {
        move |result| match result {
            vk::Result::ERROR_DEVICE_LOST => Self::Lost { what },
            vk::Result::ERROR_OUT_OF_HOST_MEMORY => Self::OutOfMemory { what, device: false },
            vk::Result::ERROR_OUT_OF_DEVICE_MEMORY => Self::OutOfMemory { what, device: true },
            result => Self::Vulkan { what, result },
        }
    }
}

/// A Vulkan device could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The physical device is unfit.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// An adopted device lacks something.
    #[error("the adopted VkDevice cannot be used: {what}; {remedy}")]
    Adopted {
        /// What is wrong with it.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// The driver refused to make a logical device.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// wgpu refused to make a device.
    #[cfg(feature = "wgpu")]
    #[error("wgpu makes no device: {0}")]
    Wgpu(String),
    /// The runtime could not register it.
    #[error(transparent)]
    Runtime(#[from] pagelease::submit::StartError),
}

/// A region cannot be given to a Vulkan device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The region's pages have no address that stays, at which the driver could have them.
    #[error(
        "a region of backend {backend:?} carries its pages to and fro, and a graphics driver keeps what it was given in place; \
         use memory that the runtime allocates (Space::allocate) or maps (Space::map_file)"
    )]
    Carried {
        /// The region's backend.
        backend: BackendKind,
    },
    /// The driver wants another alignment.
    #[error(
        "the view of {len} at {start:#x} is not aligned to the {alignment} bytes that the driver imports; use huge pages \
         (Space::allocate_huge)"
    )]
    Misaligned {
        /// Where the device's view lies.
        start: usize,
        /// Its length.
        len: ByteLen,
        /// What the driver wants.
        alignment: u64,
    },
    /// More than one import, where it has to be one.
    #[cfg(feature = "wgpu")]
    #[error("a region of {len} bytes, and a wgpu::Buffer can have {limit}; make several regions")]
    TooLong {
        /// The region's length.
        len: u64,
        /// The limit.
        limit: u64,
    },
    /// No type of the device's memory is one that this can be, and that needs no flushing.
    #[error(
        "the driver offers no host-coherent type of memory for the view; this device cannot share memory page by page"
    )]
    NotCoherent,
    /// The driver refused.
    #[error("{bytes} bytes at {start:#x} cannot be imported: {source}")]
    Driver {
        /// Where.
        start: usize,
        /// How many.
        bytes: u64,
        /// What it said.
        source: DriverError,
    },
    /// The runtime could not attach the device.
    #[error(transparent)]
    Attach(#[from] AttachError),
}

/// A shader cannot be made a kernel of.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShaderError {
    /// It is not right, or uses what the device has not: where, and why.
    #[error("{0}")]
    Wgsl(String),
    /// It has no such entry point.
    #[error("the shader has no compute entry point {wanted:?}; it has: {}", .has.join(", "))]
    NoEntry {
        /// What was asked for.
        wanted: String,
        /// What there is.
        has: Vec<String>,
    },
    /// It uses something that a region cannot be bound as.
    #[error("{name}: {what}; {remedy}")]
    Unsupported {
        /// The variable.
        name: String,
        /// What is wrong with it.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// It needs more than the device has.
    #[error("the shader needs {needs} {what}, and the device has {has}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// What it needs.
        needs: u64,
        /// The limit.
        has: u64,
    },
    /// The driver refused it.
    #[error(transparent)]
    Driver(#[from] DriverError),
}

/// A run could not be submitted. Nothing of it runs, and nothing stays claimed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The kernel has no such binding.
    #[error("the kernel has no binding {binding}; it has {has:?}")]
    NoBinding {
        /// What was asked for.
        binding: u32,
        /// Those it has.
        has: Vec<u32>,
    },
    /// A binding of the kernel was given nothing, or something twice.
    #[error("binding {binding} was given {count} buffers; give it one")]
    NotBoundOnce {
        /// The binding.
        binding: u32,
        /// How often.
        count: usize,
    },
    /// The bytes lie (partly) behind the region's end, or there are none.
    #[error("binding {binding}: bytes {start}..{end} of a region of {len}; bind at least 4 within it")]
    OutOfRange {
        /// The binding.
        binding: u32,
        /// First byte.
        start: u64,
        /// Behind the last.
        end: u64,
        /// The region's length.
        len: u64,
    },
    /// The bytes do not start where the device can bind them, or their length is none it can.
    #[error(
        "binding {binding}: {len} bytes from {start}: a storage buffer starts at a multiple of {alignment} (minStorageBufferOffsetAlignment) and has a multiple of 4"
    )]
    Misaligned {
        /// The binding.
        binding: u32,
        /// First byte.
        start: u64,
        /// How many.
        len: u64,
        /// What the device wants.
        alignment: u64,
    },
    /// The bytes are fewer than the shader's type of that binding.
    #[error("binding {binding}: {len} bytes, and the shader reads at least {least}; bind more")]
    TooShort {
        /// The binding.
        binding: u32,
        /// How many.
        len: u64,
        /// How many it takes.
        least: u64,
    },
    /// More than one binding may have, and not to be split.
    #[error(
        "binding {binding}: {len} bytes, and a binding has at most {limit}; bind it by elements (Run::elements), and the \
         dispatch is split"
    )]
    TooLong {
        /// The binding.
        binding: u32,
        /// How many.
        len: u64,
        /// The limit.
        limit: u64,
    },
    /// Elements of no size, or of one that no part of a dispatch could hold.
    #[error(
        "binding {binding}: elements of {stride} bytes cannot be split into parts of at most {limit} bytes at multiples of {alignment}; choose another size"
    )]
    Stride {
        /// The binding.
        binding: u32,
        /// An element's size.
        stride: u64,
        /// The longest part.
        limit: u64,
        /// Where a part may start.
        alignment: u64,
    },
    /// The buffers of a dispatch over elements have different numbers of them.
    #[error(
        "binding {binding} has {len} bytes, which is not {elements} elements of {stride}; bind as many as there are"
    )]
    Count {
        /// The binding.
        binding: u32,
        /// How many bytes.
        len: u64,
        /// How many elements the dispatch is over.
        elements: u64,
        /// An element's size.
        stride: u64,
    },
    /// A dispatch of nothing, or of more workgroups than the device takes at a time.
    #[error(
        "{groups:?} workgroups, and the device takes 1 to {limit:?}; dispatch over elements (Run::over), which is split"
    )]
    Groups {
        /// What was asked for.
        groups: [u32; 3],
        /// The limits.
        limit: [u32; 3],
    },
    /// The immediates are not as long as the shader's.
    #[error("{given} bytes of immediates, and the shader has {wanted}")]
    Immediates {
        /// What was given.
        given: usize,
        /// What it takes.
        wanted: u32,
    },
    /// A buffer or a kernel is another device's.
    #[error("a buffer or the kernel was made by another Vulkan device; make it by this one")]
    Foreign,
    /// Memory could not be imported.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// The pages could not be claimed, or the driver refused the work.
    #[error(transparent)]
    Submit(#[from] SubmitError<DriverError>),
}

/// A run ended otherwise than it should.
pub type WaitError = SubmissionError<DriverError>;
