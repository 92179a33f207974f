//! A logical device and its queue: of its own, or the application's.
//!
//! Invariants: everything made of the logical device keeps the `Arc<Gpu>`, so that it is destroyed last; an adopted one is never
//! destroyed, its owner keeps it alive (`VulkanDevice::adopt`). The queue is used under `queue` only. A forked child calls no
//! driver: `is_ours` is asked before anything is destroyed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ash::vk;

use crate::adapter::{Adapter, Profile};
use crate::error::{DriverError, StartError};
use crate::flight::{Flight, Slot};
use crate::load::Vulkan;

pub(crate) struct Gpu {
    pub(crate) device: ash::Device,
    pub(crate) profile: Profile,
    pub(crate) import: ash::ext::external_memory_host::DeviceFn,
    pub(crate) memory: vk::PhysicalDeviceMemoryProperties,
    pub(crate) family: u32,
    queue: vk::Queue,
    /// Taken for each use of the queue; with an adopted one, by the application too.
    lock: Arc<Mutex<()>>,
    /// Slots that no submission uses.
    free: Mutex<Vec<Slot>>,
    process: u32,
    /// With a device of our own, what it was made from.
    own: Option<Vulkan>,
}

/// A Vulkan device of the application, for [`VulkanDevice::adopt`](crate::VulkanDevice::adopt).
pub struct Adopted {
    /// The instance it was made from, of Vulkan 1.1 at least.
    pub instance: ash::Instance,
    /// The physical device.
    pub physical: vk::PhysicalDevice,
    /// The device, made with `VK_EXT_external_memory_host`.
    pub device: ash::Device,
    /// A family of queues that compute.
    pub family: u32,
    /// A queue of it.
    pub queue: vk::Queue,
    /// What everybody takes who uses the queue.
    pub lock: Arc<Mutex<()>>,
    /// Whether the device was made with the features `shaderInt64` and `shaderBufferInt64Atomics`.
    pub int64: bool,
}

impl Gpu {
    /// A logical device of its own.
    pub(crate) fn open(adapter: &Adapter) -> Result<Arc<Self>, StartError> {
        adapter.check_offered()?;
        let (instance, profile) = (&adapter.vulkan.inner.instance, adapter.profile.clone());
        let family = profile.family.expect("checked");
        let queues = [vk::DeviceQueueCreateInfo::default().queue_family_index(family).queue_priorities(&[1.0])];
        let extensions = [ash::ext::external_memory_host::NAME.as_ptr()];
        let features = vk::PhysicalDeviceFeatures::default().shader_int64(profile.int64);
        let mut vulkan12 = vk::PhysicalDeviceVulkan12Features::default().shader_buffer_int64_atomics(profile.int64);
        let info = vk::DeviceCreateInfo::default()
            .queue_create_infos(&queues)
            .enabled_extension_names(&extensions)
            .enabled_features(&features)
            .push_next(&mut vulkan12);
        // SAFETY: the physical device is the instance's; it offers the queue, the extension and the features.
        let device = unsafe { instance.create_device(adapter.physical, &info, None) }
            .map_err(DriverError::of("vkCreateDevice"))?;
        // SAFETY: the device was made with this queue.
        let queue = unsafe { device.get_device_queue(family, 0) };
        let adopted = Adopted {
            instance: instance.clone(),
            physical: adapter.physical,
            device,
            family,
            queue,
            lock: Arc::default(),
            int64: profile.int64,
        };
        Ok(Self::new(adopted, profile, Some(adapter.vulkan.clone())))
    }

    /// The application's.
    ///
    /// # Safety
    /// That of [`VulkanDevice::adopt`](crate::VulkanDevice::adopt).
    pub(crate) unsafe fn adopt(adopted: Adopted) -> Result<Arc<Self>, StartError> {
        let mut profile = Profile::of(&adopted.instance, adopted.physical);
        profile.int64 &= adopted.int64;
        let name = c"vkGetMemoryHostPointerPropertiesEXT";
        // SAFETY: the caller's: the device is alive, and the instance's.
        if unsafe { adopted.instance.get_device_proc_addr(adopted.device.handle(), name.as_ptr()) }.is_none() {
            return Err(StartError::Adopted {
                what: "it was made without VK_EXT_external_memory_host",
                remedy: "name that extension in VkDeviceCreateInfo",
            });
        }
        // SAFETY: the caller's: the physical device is the instance's.
        let families = unsafe { adopted.instance.get_physical_device_queue_family_properties(adopted.physical) };
        let computes = families
            .get(adopted.family as usize)
            .is_some_and(|family| family.queue_flags.contains(vk::QueueFlags::COMPUTE));
        if !computes {
            return Err(StartError::Adopted {
                what: "its queue family does not compute",
                remedy: "adopt a queue of one that has VK_QUEUE_COMPUTE_BIT",
            });
        }
        Ok(Self::new(adopted, profile, None))
    }

    fn new(parts: Adopted, profile: Profile, own: Option<Vulkan>) -> Arc<Self> {
        let Adopted { instance, physical, device, family, queue, lock, int64: _ } = parts;
        let import = ash::ext::external_memory_host::Device::new(&instance, &device).fp().clone();
        // SAFETY: the physical device is the instance's.
        let memory = unsafe { instance.get_physical_device_memory_properties(physical) };
        let process = std::process::id();
        Arc::new(Self { device, profile, import, memory, family, queue, lock, free: Mutex::default(), process, own })
    }

    /// Whether this is the process that made it, and not a forked child.
    pub(crate) fn is_ours(&self) -> bool {
        self.process == std::process::id()
    }

    /// A slot for a submission: one that is free, or a new one.
    pub(crate) fn slot(&self, sets: u32, bindings: u32) -> Result<Slot, DriverError> {
        let slot = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match slot {
            Some(slot) => slot.reuse(self, sets, bindings),
            None => Slot::new(self, sets, bindings),
        }
    }

    /// No submission uses the slot any more.
    pub(crate) fn put_back(&self, slot: Slot) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(slot);
    }

    /// Hands a recorded command buffer to the driver.
    pub(crate) fn submit(&self, slot: &Slot) -> Result<(), DriverError> {
        let commands = [slot.commands];
        let info = [vk::SubmitInfo::default().command_buffers(&commands)];
        let _queue = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the command buffer is recorded, and neither it nor the fence is in use (`Slot`); the queue is locked.
        unsafe { self.device.queue_submit(self.queue, &info, slot.fence) }.map_err(DriverError::of("vkQueueSubmit"))
    }

    /// Waits for a slot's fence; `false`: it has not signalled yet.
    pub(crate) fn wait(&self, slot: &Slot, limit: Duration) -> Result<bool, DriverError> {
        let limit_ns = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        // SAFETY: the fence is alive, and reset only when its submission has gone.
        match unsafe { self.device.wait_for_fences(&[slot.fence], true, limit_ns) } {
            Ok(()) => Ok(true),
            Err(vk::Result::TIMEOUT) => Ok(false),
            Err(lost @ vk::Result::ERROR_DEVICE_LOST) => Err(DriverError::of("vkWaitForFences")(lost)),
            // Without memory for the waiting, the work goes on, and its pages are in use.
            Err(_) => {
                std::thread::sleep(limit.min(Duration::from_millis(1)));
                Ok(false)
            }
        }
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if !self.is_ours() {
            return;
        }
        for slot in self.free.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // SAFETY: it is free: no submission uses it.
            unsafe { slot.destroy(&self.device) };
        }
        if self.own.is_some() {
            // SAFETY: what was made of it kept it, and has gone.
            unsafe { self.device.destroy_device(None) };
        }
    }
}

/// The driver's queue, as the runtime sees it.
pub struct VulkanQueue {
    pub(crate) gpu: Arc<Gpu>,
}

impl pagelease::submit::Queue for VulkanQueue {
    type Fence = Flight;
    type Error = DriverError;

    fn name(&self) -> &str {
        &self.gpu.profile.name
    }

    fn wait(&self, fence: &Flight, limit: Duration) -> Result<bool, DriverError> {
        fence.wait(limit)
    }
}
