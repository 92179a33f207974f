//! The usual way: the program's cells and the device's buffers are two things, and a round copies all of the first into a staging
//! buffer and from there into the second, and back. `vulkan_shared.rs` is the same program without.
//!
//! Run with `cargo run --release --package pagelease-vulkan --example vulkan_staging`.

use std::error::Error;
use std::time::Instant;

use ash::vk;

mod heat;
use heat::{CELLS, GROUP, HEAT, ROUNDS, SHADER, WALKERS, expected, next};

const BYTES: u64 = 4 * CELLS as u64;

fn main() -> Result<(), Box<dyn Error>> {
    let gpu = Gpu::new()?;
    let transfer = vk::BufferUsageFlags::TRANSFER_SRC | vk::BufferUsageFlags::TRANSFER_DST;
    let storage = transfer | vk::BufferUsageFlags::STORAGE_BUFFER;
    let visible = vk::MemoryPropertyFlags::HOST_VISIBLE | vk::MemoryPropertyFlags::HOST_COHERENT;
    let (staging, staging_memory) = gpu.buffer(transfer, visible)?;
    let (before, before_memory) = gpu.buffer(storage, vk::MemoryPropertyFlags::DEVICE_LOCAL)?;
    let (after, after_memory) = gpu.buffer(storage, vk::MemoryPropertyFlags::DEVICE_LOCAL)?;
    let kernel = Kernel::new(&gpu, [before, after])?;
    let commands = gpu.record(&kernel, staging, before, after)?;

    let mut cells = vec![0_u32; CELLS];
    let mut walkers = WALKERS;
    let start = Instant::now();
    // SAFETY: the staging memory is mapped, of as many cells, and touched only while the queue is idle.
    unsafe {
        let mapped = gpu.device.map_memory(staging_memory, 0, BYTES, vk::MemoryMapFlags::empty())?.cast::<u32>();
        for _ in 0..ROUNDS {
            mapped.copy_from_nonoverlapping(cells.as_ptr(), CELLS);
            gpu.device.queue_submit(gpu.queue, &[vk::SubmitInfo::default().command_buffers(&[commands])], gpu.fence)?;
            gpu.device.wait_for_fences(&[gpu.fence], true, u64::MAX)?;
            gpu.device.reset_fences(&[gpu.fence])?;
            mapped.copy_to_nonoverlapping(cells.as_mut_ptr(), CELLS);
            for at in &mut walkers {
                *at = next(*at, |i| cells[i]);
                cells[*at] += HEAT;
            }
        }
        gpu.device.unmap_memory(staging_memory);
    }
    println!("{}: {ROUNDS} rounds with staging copies in {:?}", gpu.name, start.elapsed());
    assert_eq!(cells, expected());

    // SAFETY: the queue is idle.
    unsafe {
        kernel.destroy(&gpu.device);
        for (buffer, memory) in [(staging, staging_memory), (before, before_memory), (after, after_memory)] {
            gpu.device.destroy_buffer(buffer, None);
            gpu.device.free_memory(memory, None);
        }
        gpu.destroy();
    }
    Ok(())
}

struct Gpu {
    _entry: ash::Entry,
    instance: ash::Instance,
    memory: vk::PhysicalDeviceMemoryProperties,
    name: String,
    device: ash::Device,
    queue: vk::Queue,
    pool: vk::CommandPool,
    fence: vk::Fence,
}

impl Gpu {
    fn new() -> Result<Self, Box<dyn Error>> {
        // SAFETY: as the specification has it; what is pointed to lives through each call.
        unsafe {
            let entry = ash::Entry::load()?;
            let application = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_1);
            let info = vk::InstanceCreateInfo::default().application_info(&application);
            let instance = entry.create_instance(&info, None)?;
            let physical = *instance.enumerate_physical_devices()?.first().ok_or("no device")?;
            let name = instance.get_physical_device_properties(physical).device_name_as_c_str()?.to_str()?.to_owned();
            let families = instance.get_physical_device_queue_family_properties(physical);
            let computes = |family: &vk::QueueFamilyProperties| family.queue_flags.contains(vk::QueueFlags::COMPUTE);
            let family = u32::try_from(families.iter().position(computes).ok_or("no compute queue")?)?;
            let queues = [vk::DeviceQueueCreateInfo::default().queue_family_index(family).queue_priorities(&[1.0])];
            let info = vk::DeviceCreateInfo::default().queue_create_infos(&queues);
            let device = instance.create_device(physical, &info, None)?;
            let queue = device.get_device_queue(family, 0);
            let info = vk::CommandPoolCreateInfo::default().queue_family_index(family);
            let pool = device.create_command_pool(&info, None)?;
            let fence = device.create_fence(&vk::FenceCreateInfo::default(), None)?;
            let memory = instance.get_physical_device_memory_properties(physical);
            Ok(Self { _entry: entry, instance, memory, name, device, queue, pool, fence })
        }
    }

    fn buffer(
        &self,
        usage: vk::BufferUsageFlags,
        wanted: vk::MemoryPropertyFlags,
    ) -> Result<(vk::Buffer, vk::DeviceMemory), Box<dyn Error>> {
        // SAFETY: as above.
        unsafe {
            let info = vk::BufferCreateInfo::default().size(BYTES).usage(usage);
            let buffer = self.device.create_buffer(&info, None)?;
            let needs = self.device.get_buffer_memory_requirements(buffer);
            let kind = (0..self.memory.memory_type_count)
                .find(|&kind| {
                    let flags = self.memory.memory_types[kind as usize].property_flags;
                    needs.memory_type_bits & 1 << kind != 0 && flags.contains(wanted)
                })
                .ok_or("no such memory")?;
            let info = vk::MemoryAllocateInfo::default().allocation_size(needs.size).memory_type_index(kind);
            let memory = self.device.allocate_memory(&info, None)?;
            self.device.bind_buffer_memory(buffer, memory, 0)?;
            Ok((buffer, memory))
        }
    }

    /// A round: in, the shader, and out.
    fn record(
        &self,
        kernel: &Kernel,
        staging: vk::Buffer,
        before: vk::Buffer,
        after: vk::Buffer,
    ) -> Result<vk::CommandBuffer, Box<dyn Error>> {
        use vk::{AccessFlags as Access, PipelineStageFlags as Stage};
        let whole = [vk::BufferCopy::default().size(BYTES)];
        // SAFETY: as above; the descriptors and buffers live until the queue is idle for the last time.
        unsafe {
            let info = vk::CommandBufferAllocateInfo::default().command_pool(self.pool).command_buffer_count(1);
            let commands = self.device.allocate_command_buffers(&info)?[0];
            let then = |from: (Stage, Access), to: (Stage, Access)| {
                let memory = [vk::MemoryBarrier::default().src_access_mask(from.1).dst_access_mask(to.1)];
                let flags = vk::DependencyFlags::empty();
                self.device.cmd_pipeline_barrier(commands, from.0, to.0, flags, &memory, &[], &[]);
            };
            let (copied, read) = ((Stage::TRANSFER, Access::TRANSFER_WRITE), (Stage::TRANSFER, Access::TRANSFER_READ));
            let computed = (Stage::COMPUTE_SHADER, Access::SHADER_WRITE);
            self.device.begin_command_buffer(commands, &vk::CommandBufferBeginInfo::default())?;
            self.device.cmd_copy_buffer(commands, staging, before, &whole);
            then(copied, (Stage::COMPUTE_SHADER, Access::SHADER_READ));
            kernel.dispatch(&self.device, commands, u32::try_from(CELLS / GROUP)?);
            then(computed, read);
            self.device.cmd_copy_buffer(commands, after, staging, &whole);
            then(copied, (Stage::HOST, Access::HOST_READ));
            self.device.end_command_buffer(commands)?;
            Ok(commands)
        }
    }

    /// # Safety
    /// Nothing made of it is left, and the queue is idle.
    unsafe fn destroy(&self) {
        // SAFETY: the caller's.
        unsafe {
            self.device.destroy_fence(self.fence, None);
            self.device.destroy_command_pool(self.pool, None);
            self.device.destroy_device(None);
            self.instance.destroy_instance(None);
        }
    }
}

struct Kernel {
    sets: vk::DescriptorSetLayout,
    layout: vk::PipelineLayout,
    pipeline: vk::Pipeline,
    pool: vk::DescriptorPool,
    set: vk::DescriptorSet,
}

impl Kernel {
    fn new(gpu: &Gpu, buffers: [vk::Buffer; 2]) -> Result<Self, Box<dyn Error>> {
        let module = naga::front::wgsl::parse_str(SHADER)?;
        let mut validator = naga::valid::Validator::new(Default::default(), Default::default());
        let info = validator.validate(&module)?;
        let spirv = naga::back::spv::write_vec(&module, &info, &Default::default(), None)?;
        let device = &gpu.device;
        let kind = vk::DescriptorType::STORAGE_BUFFER;
        // SAFETY: as above; naga wrote the shader.
        unsafe {
            let binding = |number| {
                let binding = vk::DescriptorSetLayoutBinding::default().binding(number).descriptor_type(kind);
                binding.descriptor_count(1).stage_flags(vk::ShaderStageFlags::COMPUTE)
            };
            let bindings = [binding(0), binding(1)];
            let info = vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings);
            let sets = device.create_descriptor_set_layout(&info, None)?;
            let layouts = [sets];
            let info = vk::PipelineLayoutCreateInfo::default().set_layouts(&layouts);
            let layout = device.create_pipeline_layout(&info, None)?;
            let shader = device.create_shader_module(&vk::ShaderModuleCreateInfo::default().code(&spirv), None)?;
            let stage = vk::PipelineShaderStageCreateInfo::default().stage(vk::ShaderStageFlags::COMPUTE);
            let stage = stage.module(shader).name(c"spread");
            let info = [vk::ComputePipelineCreateInfo::default().stage(stage).layout(layout)];
            let pipelines = device.create_compute_pipelines(vk::PipelineCache::null(), &info, None);
            let pipeline = pipelines.map_err(|(_, error)| error)?[0];
            device.destroy_shader_module(shader, None);
            let sizes = [vk::DescriptorPoolSize { ty: kind, descriptor_count: 2 }];
            let info = vk::DescriptorPoolCreateInfo::default().max_sets(1).pool_sizes(&sizes);
            let pool = device.create_descriptor_pool(&info, None)?;
            let info = vk::DescriptorSetAllocateInfo::default().descriptor_pool(pool).set_layouts(&layouts);
            let set = device.allocate_descriptor_sets(&info)?[0];
            let whole = buffers.map(|buffer| [vk::DescriptorBufferInfo { buffer, offset: 0, range: vk::WHOLE_SIZE }]);
            let write = |number: u32, whole| {
                let write = vk::WriteDescriptorSet::default().dst_set(set).dst_binding(number);
                write.descriptor_type(kind).buffer_info(whole)
            };
            device.update_descriptor_sets(&[write(0, &whole[0]), write(1, &whole[1])], &[]);
            Ok(Self { sets, layout, pipeline, pool, set })
        }
    }

    /// # Safety
    /// The command buffer is being recorded.
    unsafe fn dispatch(&self, device: &ash::Device, commands: vk::CommandBuffer, groups: u32) {
        let point = vk::PipelineBindPoint::COMPUTE;
        // SAFETY: the caller's.
        unsafe {
            device.cmd_bind_pipeline(commands, point, self.pipeline);
            device.cmd_bind_descriptor_sets(commands, point, self.layout, 0, &[self.set], &[]);
            device.cmd_dispatch(commands, groups, 1, 1);
        }
    }

    /// # Safety
    /// The queue is idle.
    unsafe fn destroy(&self, device: &ash::Device) {
        // SAFETY: the caller's.
        unsafe {
            device.destroy_descriptor_pool(self.pool, None);
            device.destroy_pipeline(self.pipeline, None);
            device.destroy_pipeline_layout(self.layout, None);
            device.destroy_descriptor_set_layout(self.sets, None);
        }
    }
}
