//! [`VulkanDevice`]: a Vulkan device as a submitting device of the runtime.

use std::sync::Arc;

use pagelease::submit::{Flights, Submitter};
use pagelease::{DeviceHandle, Region, Space};

use crate::adapter::{Adapter, Limits};
use crate::error::{ImportError, ShaderError, StartError};
use crate::gpu::{Adopted, Gpu, VulkanQueue};
use crate::import::Buffer;
use crate::kernel::Kernel;
use crate::run::Run;
use crate::shader::{Layout, Shader};

/// Work that the driver has: [`Submission::wait`](pagelease::submit::Submission::wait).
pub type Submission = pagelease::submit::Submission<VulkanQueue>;

/// A Vulkan device that works on regions of a space. Dropping it waits for what was submitted.
pub struct VulkanDevice {
    submitter: Submitter<VulkanQueue>,
}

impl VulkanDevice {
    /// Makes a logical device of `adapter`, and registers it.
    ///
    /// # Errors
    /// [`StartError`]: the adapter is unfit, the driver refuses, or the space has no room for another device.
    pub fn start(space: &Space, adapter: &Adapter) -> Result<Self, StartError> {
        adapter.check()?;
        Self::over(space, Gpu::open(adapter)?)
    }

    /// Registers a device and a queue that the application has already. It is the application's: nothing is destroyed with this.
    ///
    /// # Safety
    /// - `physical` is of `instance`, `device` was made of `physical`, `queue` is of `device` and of `family`.
    /// - If `int64` is set, the device was made with the features `shaderInt64` and `shaderBufferInt64Atomics`.
    /// - Instance and device live until this, its buffers, its kernels and its submissions have been dropped.
    /// - Whoever uses the queue meanwhile, or waits for the whole device to be idle, has `lock`.
    ///
    /// # Errors
    /// [`StartError`]: [`StartError::Adopted`] where it was made without what it needs.
    pub unsafe fn adopt(space: &Space, adopted: Adopted) -> Result<Self, StartError> {
        // SAFETY: the caller's.
        Self::over(space, unsafe { Gpu::adopt(adopted) }?)
    }

    fn over(space: &Space, gpu: Arc<Gpu>) -> Result<Self, StartError> {
        Ok(Self { submitter: Submitter::start(space, VulkanQueue { gpu })? })
    }

    /// The device as the space knows it.
    #[must_use]
    pub fn handle(&self) -> &DeviceHandle<Flights> {
        self.submitter.handle()
    }

    /// What the driver calls it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.gpu().profile.name
    }

    /// Its limits.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.gpu().profile.limits
    }

    /// Whether its shaders have 64-bit integers, and atomics of them.
    #[must_use]
    pub fn has_int64(&self) -> bool {
        self.gpu().profile.int64
    }

    /// Attaches it to a region, and imports the region's memory, without a copy.
    ///
    /// # Errors
    /// [`ImportError`]: a region whose pages are carried to and fro cannot be imported; the driver may refuse.
    pub fn attach(&self, region: &Region) -> Result<Buffer, ImportError> {
        Buffer::check(region)?;
        Buffer::new(self.gpu().clone(), region, self.submitter.attach(region)?)
    }

    /// Makes a kernel of the compute entry point `entry` of a WGSL shader. It has 64-bit atomics where the device has.
    ///
    /// # Errors
    /// [`ShaderError`]: what is wrong with it, and where.
    pub fn kernel(&self, wgsl: &str, entry: &str) -> Result<Kernel, ShaderError> {
        let shader = Shader::wgsl(wgsl, entry, self.has_int64(), &self.limits())?;
        // SAFETY: naga has validated the shader, and written it with what the device has.
        unsafe { Kernel::new(self.gpu(), shader) }
    }

    /// Makes a kernel of the compute entry point `entry` of a SPIR-V module.
    ///
    /// # Safety
    /// `words` are valid SPIR-V that needs nothing beyond Vulkan 1.1 but, where [`VulkanDevice::has_int64`], 64-bit integers and
    /// their atomics; the entry point takes what `layout` says and nothing else; and it stays within the buffers that it is given.
    ///
    /// # Errors
    /// [`ShaderError`].
    pub unsafe fn kernel_spirv(&self, words: &[u32], entry: &str, layout: Layout) -> Result<Kernel, ShaderError> {
        let shader = Shader { words: words.to_vec(), entry: entry.to_owned(), layout };
        // SAFETY: the caller's.
        unsafe { Kernel::new(self.gpu(), shader) }
    }

    /// Begins to run a kernel.
    pub fn run<'a>(&'a self, kernel: &'a Kernel) -> Run<'a> {
        Run::new(self, kernel)
    }

    pub(crate) fn gpu(&self) -> &Arc<Gpu> {
        &self.submitter.queue().gpu
    }

    pub(crate) fn submitter(&self) -> &Submitter<VulkanQueue> {
        &self.submitter
    }
}
