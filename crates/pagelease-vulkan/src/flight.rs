//! [`Flight`]: one submission's command buffer, descriptors and fence, and all that it uses.
//!
//! Invariant: a slot's objects are touched only by whoever owns the slot. A flight owns it from its recording until the driver
//! has said that it ended, and then gives it back to be used again.

use core::fmt;
use std::sync::Arc;
use std::time::Duration;

use ash::vk;

use crate::error::DriverError;
use crate::gpu::Gpu;
use crate::import::Window;
use crate::kernel::KernelCore;

/// What a submission is recorded in and waited for with.
pub(crate) struct Slot {
    pool: vk::CommandPool,
    pub(crate) commands: vk::CommandBuffer,
    pub(crate) fence: vk::Fence,
    pub(crate) descriptors: vk::DescriptorPool,
    /// What the descriptor pool has room for.
    sets: u32,
    bindings: u32,
}

impl Slot {
    /// One with room for `sets` descriptor sets and `bindings` buffers in all.
    pub(crate) fn new(gpu: &Gpu, sets: u32, bindings: u32) -> Result<Self, DriverError> {
        let device = &gpu.device;
        let mut slot = Self {
            pool: vk::CommandPool::null(),
            commands: vk::CommandBuffer::null(),
            fence: vk::Fence::null(),
            descriptors: vk::DescriptorPool::null(),
            sets,
            bindings,
        };
        slot.fill(gpu).inspect_err(|_| {
            // SAFETY: nothing of it was handed to the driver's queue; what was not made is null, which is passed over.
            unsafe { slot.destroy_parts(device) };
        })?;
        Ok(slot)
    }

    fn fill(&mut self, gpu: &Gpu) -> Result<(), DriverError> {
        let device = &gpu.device;
        let info = vk::CommandPoolCreateInfo::default()
            .queue_family_index(gpu.family)
            .flags(vk::CommandPoolCreateFlags::TRANSIENT);
        // SAFETY: the device is alive; so throughout. Each structure lives through its call.
        self.pool =
            unsafe { device.create_command_pool(&info, None) }.map_err(DriverError::of("vkCreateCommandPool"))?;
        let info = vk::CommandBufferAllocateInfo::default().command_pool(self.pool).command_buffer_count(1);
        // SAFETY: as above; the pool is this slot's.
        self.commands =
            unsafe { device.allocate_command_buffers(&info) }.map_err(DriverError::of("vkAllocateCommandBuffers"))?[0];
        // SAFETY: as above.
        self.fence = unsafe { device.create_fence(&vk::FenceCreateInfo::default(), None) }
            .map_err(DriverError::of("vkCreateFence"))?;
        self.descriptors = descriptor_pool(device, self.sets, self.bindings)?;
        Ok(())
    }

    /// The same slot, emptied, with room for as many.
    pub(crate) fn reuse(mut self, gpu: &Gpu, sets: u32, bindings: u32) -> Result<Self, DriverError> {
        self.empty(gpu, sets, bindings).inspect_err(|_| {
            // SAFETY: it was free.
            unsafe { self.destroy_parts(&gpu.device) };
        })?;
        Ok(self)
    }

    fn empty(&mut self, gpu: &Gpu, sets: u32, bindings: u32) -> Result<(), DriverError> {
        let device = &gpu.device;
        // SAFETY: the slot is free: no submission uses its command buffer, its fence or its descriptors; so throughout.
        unsafe { device.reset_command_pool(self.pool, vk::CommandPoolResetFlags::empty()) }
            .map_err(DriverError::of("vkResetCommandPool"))?;
        // SAFETY: as above.
        unsafe { device.reset_fences(&[self.fence]) }.map_err(DriverError::of("vkResetFences"))?;
        if self.sets >= sets && self.bindings >= bindings {
            // SAFETY: as above.
            return unsafe { device.reset_descriptor_pool(self.descriptors, vk::DescriptorPoolResetFlags::empty()) }
                .map_err(DriverError::of("vkResetDescriptorPool"));
        }
        let larger = descriptor_pool(device, sets, bindings)?;
        // SAFETY: as above.
        unsafe { device.destroy_descriptor_pool(core::mem::replace(&mut self.descriptors, larger), None) };
        (self.sets, self.bindings) = (sets, bindings);
        Ok(())
    }

    /// # Safety
    /// No submission uses it.
    pub(crate) unsafe fn destroy(mut self, device: &ash::Device) {
        // SAFETY: the caller's.
        unsafe { self.destroy_parts(device) };
    }

    /// # Safety
    /// No submission uses it, and nobody will.
    unsafe fn destroy_parts(&mut self, device: &ash::Device) {
        // SAFETY: the caller's; a null handle is passed over; the command buffer goes with its pool.
        unsafe {
            device.destroy_descriptor_pool(self.descriptors, None);
            device.destroy_fence(self.fence, None);
            device.destroy_command_pool(self.pool, None);
        }
    }
}

fn descriptor_pool(device: &ash::Device, sets: u32, bindings: u32) -> Result<vk::DescriptorPool, DriverError> {
    let sizes = [vk::DescriptorPoolSize { ty: vk::DescriptorType::STORAGE_BUFFER, descriptor_count: bindings.max(1) }];
    let info = vk::DescriptorPoolCreateInfo::default().max_sets(sets.max(1)).pool_sizes(&sizes);
    // SAFETY: the device is alive, and the structure lives through the call.
    unsafe { device.create_descriptor_pool(&info, None) }.map_err(DriverError::of("vkCreateDescriptorPool"))
}

/// A submission that the driver has, or had: its fence, and what it uses.
pub struct Flight {
    gpu: Arc<Gpu>,
    /// There until it is dropped.
    slot: Option<Slot>,
    _kernel: Arc<KernelCore>,
    _windows: Vec<Arc<Window>>,
}

impl Flight {
    /// To be called when the driver has taken what was recorded in `slot`.
    pub(crate) fn new(gpu: Arc<Gpu>, slot: Slot, kernel: Arc<KernelCore>, windows: Vec<Arc<Window>>) -> Self {
        Self { gpu, slot: Some(slot), _kernel: kernel, _windows: windows }
    }

    pub(crate) fn wait(&self, limit: Duration) -> Result<bool, DriverError> {
        self.gpu.wait(self.slot.as_ref().expect("there until it is dropped"), limit)
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        // The runtime drops it when the driver has said that it ended, and leaks it otherwise.
        if let Some(slot) = self.slot.take()
            && self.gpu.is_ours()
        {
            self.gpu.put_back(slot);
        }
    }
}

impl fmt::Debug for Flight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flight").finish_non_exhaustive()
    }
}
