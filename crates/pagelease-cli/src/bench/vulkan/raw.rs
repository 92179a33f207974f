//! Vulkan without the runtime: what an application makes, and what it records once and submits each time.

use std::ffi::CStr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, anyhow};
use ash::vk;
use pagelease_vulkan::Adopted;

const HANDLE: vk::ExternalMemoryHandleTypeFlags = vk::ExternalMemoryHandleTypeFlags::HOST_ALLOCATION_EXT;

/// An application's instance, device and compute pipeline of one storage buffer.
pub(super) struct Raw {
    _entry: ash::Entry,
    instance: ash::Instance,
    physical: vk::PhysicalDevice,
    memory: vk::PhysicalDeviceMemoryProperties,
    device: ash::Device,
    family: u32,
    queue: vk::Queue,
    lock: Arc<Mutex<()>>,
    sets: vk::DescriptorSetLayout,
    layout: vk::PipelineLayout,
    pipeline: vk::Pipeline,
}

impl Raw {
    pub(super) fn new(wgsl: &str, entry_point: &CStr) -> Result<Self> {
        let module = naga::front::wgsl::parse_str(wgsl)?;
        let mut validator = naga::valid::Validator::new(Default::default(), Default::default());
        let info = validator.validate(&module)?;
        let spirv = naga::back::spv::write_vec(&module, &info, &Default::default(), None)?;
        // SAFETY: as the specification has it, throughout: what is pointed to lives through each call, handles are of the device.
        unsafe {
            let entry = ash::Entry::load()?;
            let application = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_1);
            let info = vk::InstanceCreateInfo::default().application_info(&application);
            let instance = entry.create_instance(&info, None)?;
            let physical = *instance.enumerate_physical_devices()?.first().context("no device")?;
            let families = instance.get_physical_device_queue_family_properties(physical);
            let computes = |family: &vk::QueueFamilyProperties| family.queue_flags.contains(vk::QueueFlags::COMPUTE);
            let family = u32::try_from(families.iter().position(computes).context("no compute queue")?)?;
            let queues = [vk::DeviceQueueCreateInfo::default().queue_family_index(family).queue_priorities(&[1.0])];
            let extensions = [ash::ext::external_memory_host::NAME.as_ptr()];
            let info = vk::DeviceCreateInfo::default().queue_create_infos(&queues).enabled_extension_names(&extensions);
            let device = instance.create_device(physical, &info, None)?;
            let queue = device.get_device_queue(family, 0);
            let memory = instance.get_physical_device_memory_properties(physical);
            let binding = [vk::DescriptorSetLayoutBinding::default()
                .descriptor_type(vk::DescriptorType::STORAGE_BUFFER)
                .descriptor_count(1)
                .stage_flags(vk::ShaderStageFlags::COMPUTE)];
            let info = vk::DescriptorSetLayoutCreateInfo::default().bindings(&binding);
            let sets = device.create_descriptor_set_layout(&info, None)?;
            let layouts = [sets];
            let info = vk::PipelineLayoutCreateInfo::default().set_layouts(&layouts);
            let layout = device.create_pipeline_layout(&info, None)?;
            let shader = device.create_shader_module(&vk::ShaderModuleCreateInfo::default().code(&spirv), None)?;
            let stage = vk::PipelineShaderStageCreateInfo::default().stage(vk::ShaderStageFlags::COMPUTE);
            let info =
                [vk::ComputePipelineCreateInfo::default().stage(stage.module(shader).name(entry_point)).layout(layout)];
            let made = device.create_compute_pipelines(vk::PipelineCache::null(), &info, None);
            device.destroy_shader_module(shader, None);
            let pipeline = made.map_err(|(_, error)| error)?[0];
            let lock = Arc::default();
            Ok(Self { _entry: entry, instance, physical, memory, device, family, queue, lock, sets, layout, pipeline })
        }
    }

    pub(super) fn adopted(&self) -> Adopted {
        Adopted {
            instance: self.instance.clone(),
            physical: self.physical,
            device: self.device.clone(),
            family: self.family,
            queue: self.queue,
            lock: self.lock.clone(),
            int64: false,
        }
    }

    /// The first type of memory among `allowed` that has all of `wanted`.
    fn memory_type(&self, allowed: u32, wanted: vk::MemoryPropertyFlags) -> Result<u32> {
        (0..self.memory.memory_type_count)
            .find(|&kind| {
                let flags = self.memory.memory_types[kind as usize].property_flags;
                allowed & 1 << kind != 0 && flags.contains(wanted)
            })
            .with_context(|| format!("no memory that is {wanted:?}"))
    }

    /// A buffer with memory of its own.
    fn buffer(&self, bytes: u64, usage: vk::BufferUsageFlags, wanted: vk::MemoryPropertyFlags) -> Result<Held> {
        // SAFETY: as above.
        unsafe {
            let buffer = self.device.create_buffer(&vk::BufferCreateInfo::default().size(bytes).usage(usage), None)?;
            let needs = self.device.get_buffer_memory_requirements(buffer);
            let kind = self.memory_type(needs.memory_type_bits, wanted)?;
            let info = vk::MemoryAllocateInfo::default().allocation_size(needs.size).memory_type_index(kind);
            let memory = self.device.allocate_memory(&info, None)?;
            self.device.bind_buffer_memory(buffer, memory, 0)?;
            Ok(Held { buffer, memory })
        }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // SAFETY: what was made of it keeps it, and has gone; the queue is idle.
        unsafe {
            self.device.destroy_pipeline(self.pipeline, None);
            self.device.destroy_pipeline_layout(self.layout, None);
            self.device.destroy_descriptor_set_layout(self.sets, None);
            self.device.destroy_device(None);
            self.instance.destroy_instance(None);
        }
    }
}

struct Held {
    buffer: vk::Buffer,
    memory: vk::DeviceMemory,
}

/// A command buffer recorded once, its descriptors and its fence.
struct Recorded {
    raw: Arc<Raw>,
    pool: vk::CommandPool,
    commands: vk::CommandBuffer,
    descriptors: vk::DescriptorPool,
    fence: vk::Fence,
}

impl Recorded {
    /// The job on `bytes` of `storage`, after `before` and before `after`.
    fn new(
        raw: &Arc<Raw>,
        storage: vk::Buffer,
        bytes: u64,
        groups: u32,
        before: impl FnOnce(vk::CommandBuffer),
        after: impl FnOnce(vk::CommandBuffer),
    ) -> Result<Self> {
        let device = &raw.device;
        // SAFETY: as above; what is bound lives as long as this.
        unsafe {
            let info = vk::CommandPoolCreateInfo::default().queue_family_index(raw.family);
            let pool = device.create_command_pool(&info, None)?;
            let info = vk::CommandBufferAllocateInfo::default().command_pool(pool).command_buffer_count(1);
            let commands = device.allocate_command_buffers(&info)?[0];
            let kind = vk::DescriptorType::STORAGE_BUFFER;
            let sizes = [vk::DescriptorPoolSize { ty: kind, descriptor_count: 1 }];
            let info = vk::DescriptorPoolCreateInfo::default().max_sets(1).pool_sizes(&sizes);
            let descriptors = device.create_descriptor_pool(&info, None)?;
            let layouts = [raw.sets];
            let info = vk::DescriptorSetAllocateInfo::default().descriptor_pool(descriptors).set_layouts(&layouts);
            let set = device.allocate_descriptor_sets(&info)?;
            let range = [vk::DescriptorBufferInfo { buffer: storage, offset: 0, range: bytes }];
            let write = vk::WriteDescriptorSet::default().dst_set(set[0]).descriptor_type(kind).buffer_info(&range);
            device.update_descriptor_sets(&[write], &[]);
            device.begin_command_buffer(commands, &vk::CommandBufferBeginInfo::default())?;
            before(commands);
            device.cmd_bind_pipeline(commands, vk::PipelineBindPoint::COMPUTE, raw.pipeline);
            device.cmd_bind_descriptor_sets(commands, vk::PipelineBindPoint::COMPUTE, raw.layout, 0, &set, &[]);
            device.cmd_dispatch(commands, groups, 1, 1);
            after(commands);
            device.end_command_buffer(commands)?;
            let fence = device.create_fence(&vk::FenceCreateInfo::default(), None)?;
            Ok(Self { raw: raw.clone(), pool, commands, descriptors, fence })
        }
    }

    /// Submits it, and waits for the fence.
    fn run(&self) -> Result<()> {
        let device = &self.raw.device;
        let commands = [self.commands];
        // SAFETY: it is not in flight: nobody but this submits it, and waits; the queue is locked.
        unsafe {
            let queue = self.raw.lock.lock().unwrap_or_else(PoisonError::into_inner);
            let info = vk::SubmitInfo::default().command_buffers(&commands);
            device.queue_submit(self.raw.queue, &[info], self.fence)?;
            drop(queue);
            device.wait_for_fences(&[self.fence], true, u64::MAX)?;
            device.reset_fences(&[self.fence])?;
        }
        Ok(())
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        let device = &self.raw.device;
        // SAFETY: it is not in flight.
        unsafe {
            device.destroy_fence(self.fence, None);
            device.destroy_descriptor_pool(self.descriptors, None);
            device.destroy_command_pool(self.pool, None);
        }
    }
}

type Access = (vk::PipelineStageFlags, vk::AccessFlags);

const COMPUTED: Access = (vk::PipelineStageFlags::COMPUTE_SHADER, vk::AccessFlags::SHADER_WRITE);
const COPIED: Access = (vk::PipelineStageFlags::TRANSFER, vk::AccessFlags::TRANSFER_WRITE);
const READ: Access = (vk::PipelineStageFlags::HOST, vk::AccessFlags::HOST_READ);

fn barrier(device: &ash::Device, commands: vk::CommandBuffer, from: Access, to: Access) {
    let memory = [vk::MemoryBarrier::default().src_access_mask(from.1).dst_access_mask(to.1)];
    // SAFETY: the command buffer is being recorded.
    unsafe {
        device.cmd_pipeline_barrier(commands, from.0, to.0, vk::DependencyFlags::empty(), &memory, &[], &[]);
    }
}

/// The job on imported memory.
pub(super) struct Import {
    recorded: Recorded,
    held: Held,
}

impl Import {
    /// # Safety
    /// `len` bytes from `start`, whole pages, are mapped as long as this lives.
    pub(super) unsafe fn new(raw: &Arc<Raw>, start: *mut u8, len: usize, bytes: usize, groups: u32) -> Result<Self> {
        let device = &raw.device;
        let functions = ash::ext::external_memory_host::Device::new(&raw.instance, device);
        // SAFETY: as above, and the caller's.
        unsafe {
            let mut handle = vk::ExternalMemoryBufferCreateInfo::default().handle_types(HANDLE);
            let info = vk::BufferCreateInfo::default()
                .size(len as u64)
                .usage(vk::BufferUsageFlags::STORAGE_BUFFER)
                .push_next(&mut handle);
            let buffer = device.create_buffer(&info, None)?;
            let mut allowed = vk::MemoryHostPointerPropertiesEXT::default();
            let query = functions.fp().get_memory_host_pointer_properties_ext;
            query(device.handle(), HANDLE, start.cast(), &raw mut allowed).result()?;
            let needs = device.get_buffer_memory_requirements(buffer).memory_type_bits;
            let coherent = vk::MemoryPropertyFlags::HOST_VISIBLE | vk::MemoryPropertyFlags::HOST_COHERENT;
            let kind = raw.memory_type(allowed.memory_type_bits & needs, coherent)?;
            let mut host = vk::ImportMemoryHostPointerInfoEXT::default().handle_type(HANDLE).host_pointer(start.cast());
            let info = vk::MemoryAllocateInfo::default()
                .allocation_size(len as u64)
                .memory_type_index(kind)
                .push_next(&mut host);
            let memory = device.allocate_memory(&info, None)?;
            device.bind_buffer_memory(buffer, memory, 0)?;
            let held = Held { buffer, memory };
            let after = |commands| barrier(device, commands, COMPUTED, READ);
            Ok(Self { recorded: Recorded::new(raw, buffer, bytes as u64, groups, |_| (), after)?, held })
        }
    }

    pub(super) fn run(&self) -> Result<()> {
        self.recorded.run()
    }
}

impl Drop for Import {
    fn drop(&mut self) {
        destroy(&self.recorded.raw, [&self.held]);
    }
}

/// The job on the device's own memory, between two copies.
pub(super) struct Staging {
    recorded: Recorded,
    staging: Held,
    storage: Held,
    mapped: *mut u64,
    words: usize,
}

impl Staging {
    pub(super) fn new(raw: &Arc<Raw>, bytes: usize, groups: u32) -> Result<Self> {
        let len = bytes as u64;
        let transfer = vk::BufferUsageFlags::TRANSFER_SRC | vk::BufferUsageFlags::TRANSFER_DST;
        let visible = vk::MemoryPropertyFlags::HOST_VISIBLE | vk::MemoryPropertyFlags::HOST_COHERENT;
        let staging = raw
            .buffer(len, transfer, visible | vk::MemoryPropertyFlags::HOST_CACHED)
            .or_else(|_| raw.buffer(len, transfer, visible))?;
        let storage = transfer | vk::BufferUsageFlags::STORAGE_BUFFER;
        let storage = raw.buffer(len, storage, vk::MemoryPropertyFlags::DEVICE_LOCAL)?;
        let device = &raw.device;
        let whole = [vk::BufferCopy::default().size(len)];
        // SAFETY: as above; both buffers are as long, and live as long.
        let recorded = unsafe {
            Recorded::new(
                raw,
                storage.buffer,
                len,
                groups,
                |commands| {
                    device.cmd_copy_buffer(commands, staging.buffer, storage.buffer, &whole);
                    let read = vk::AccessFlags::SHADER_READ | vk::AccessFlags::SHADER_WRITE;
                    barrier(device, commands, COPIED, (vk::PipelineStageFlags::COMPUTE_SHADER, read));
                },
                |commands| {
                    let read = (vk::PipelineStageFlags::TRANSFER, vk::AccessFlags::TRANSFER_READ);
                    barrier(device, commands, COMPUTED, read);
                    device.cmd_copy_buffer(commands, storage.buffer, staging.buffer, &whole);
                    barrier(device, commands, COPIED, READ);
                },
            )
        }?;
        // SAFETY: as above; it is host-visible, and unmapped when it is freed.
        let mapped = unsafe { device.map_memory(staging.memory, 0, len, vk::MemoryMapFlags::empty()) }?.cast();
        Ok(Self { recorded, staging, storage, mapped, words: bytes / 8 })
    }

    pub(super) fn run(&self, words: &mut [u64]) -> Result<()> {
        if words.len() != self.words {
            return Err(anyhow!("{} words in a staging buffer of {}", words.len(), self.words));
        }
        // SAFETY: the staging memory is mapped, of so many words, coherent, and touched only while nothing is in flight.
        unsafe {
            self.mapped.copy_from_nonoverlapping(words.as_ptr(), words.len());
            self.recorded.run()?;
            self.mapped.copy_to_nonoverlapping(words.as_mut_ptr(), words.len());
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        destroy(&self.recorded.raw, [&self.staging, &self.storage]);
    }
}

fn destroy<const N: usize>(raw: &Raw, held: [&Held; N]) {
    for held in held {
        // SAFETY: nothing that uses it is in flight, nor will be.
        unsafe {
            raw.device.destroy_buffer(held.buffer, None);
            raw.device.free_memory(held.memory, None);
        }
    }
}
