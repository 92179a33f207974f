//! Vulkan compute shaders on memory that the CPU shares with them page by page.
//!
//! A [`Region`](pagelease::Region)'s pages are imported as they are, without a copy (`VK_EXT_external_memory_host`), and bound as
//! storage buffers. What a run uses is claimed before the driver gets it: the CPU's mapping of those pages is gone. A CPU touch
//! waits for the fence, and sees all that the shader wrote. There is no staging buffer, no map and no unmap.
//!
//! ```no_run
//! use pagelease::{ByteLen, Space};
//! use pagelease_vulkan::{Vulkan, VulkanDevice};
//! use std::sync::atomic::Ordering::Relaxed;
//!
//! let space = Space::new()?;
//! let region = space.allocate(ByteLen(1 << 20))?;
//! let device = VulkanDevice::start(&space, &Vulkan::load()?.best()?)?;
//! let buffer = device.attach(&region)?;
//! let double = device.kernel(
//!     "@group(0) @binding(0) var<storage, read_write> words: array<vec2<u32>>;
//!      @compute @workgroup_size(64) fn double(@builtin(global_invocation_id) id: vec3<u32>) {
//!          if id.x < arrayLength(&words) { words[id.x] = words[id.x] * 2u; }
//!      }",
//!     "double",
//! )?;
//! region.words()[7].store(21, Relaxed);
//! let submission = device.run(&double).elements(0, buffer.all(), 8).over(1 << 17)?;
//! // No wait: the touch itself waits for the shader.
//! assert_eq!(region.words()[7].load(Relaxed), 42);
//! submission.wait()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The pieces
//!
//! | file | what it has |
//! |---|---|
//! | `load` | the loader, opened at run time, and an instance; [`available`] |
//! | `adapter` | a physical device: its limits, and whether it is fit |
//! | `trial` | finding out whether a driver in software computes right |
//! | `gpu` | a logical device and its queue: of its own, or the application's |
//! | `device` | the door: [`VulkanDevice`] |
//! | `import` | a region as the device sees it, in windows of what can be imported at a time |
//! | `shader`, `kernel` | WGSL and SPIR-V; pipelines |
//! | `run`, `split`, `record` | what a kernel is given: checked, split, recorded |
//! | `flight` | what a submission uses until its fence has signalled |
//! | `webgpu` | (feature `wgpu`) a `wgpu::Buffer` over a region |
//!
//! # What it does not do
//!
//! It binds ranges of regions as storage buffers, in group 0: no uniform buffers, textures or samplers (constants go in
//! immediates). A dispatch that is stuck cannot be cancelled: after the drain limit the CPU has its pages back, and the device is
//! lost to it. A driver that follows the imported pages by itself is at liberty to; one that refuses file-backed memory (AMD's
//! kernel driver is known for it) refuses [`VulkanDevice::attach`]. A forked child has no device: what it inherited does nothing.

mod adapter;
mod device;
mod error;
mod flight;
mod gpu;
mod import;
mod kernel;
mod load;
mod record;
mod run;
mod shader;
mod split;
mod trial;
#[cfg(feature = "wgpu")]
pub mod webgpu;

pub use adapter::{Adapter, Limits};
pub use device::{Submission, VulkanDevice};
pub use error::{DriverError, ImportError, LoadError, RunError, ShaderError, StartError, Unfit, WaitError};
pub use flight::Flight;
pub use gpu::{Adopted, VulkanQueue};
pub use import::{Buffer, Slice};
pub use kernel::Kernel;
pub use load::Vulkan;
pub use run::Run;
pub use shader::{Binding, Layout};

/// Every Vulkan device of this machine, fit or not: [`Adapter::check`] says which, why not, and what to do.
///
/// # Errors
/// [`LoadError`]: there is no loader, or no driver.
pub fn available() -> Result<Vec<Adapter>, LoadError> {
    Vulkan::load()?.adapters()
}
