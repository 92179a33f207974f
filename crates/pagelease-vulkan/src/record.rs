//! Recording a submission: one command buffer, a dispatch for each part.

use ash::vk;

use crate::error::DriverError;
use crate::flight::Slot;
use crate::gpu::Gpu;
use crate::kernel::KernelCore;

/// A part of a dispatch: the workgroups, the first element, and how many elements of each split binding it has.
#[derive(Copy, Clone)]
pub(crate) struct Part {
    pub(crate) groups: [u32; 3],
    pub(crate) first: u64,
    pub(crate) count: u64,
}

/// A storage buffer of a part, as the driver is given it.
pub(crate) struct Descriptor {
    pub(crate) binding: u32,
    pub(crate) info: vk::DescriptorBufferInfo,
}

/// Records the parts, one dispatch each. Each has as many of `described`, in order.
pub(crate) fn record(
    gpu: &Gpu,
    slot: &Slot,
    kernel: &KernelCore,
    parts: &[Part],
    described: &[Descriptor],
    immediates: impl Fn(&Part) -> Vec<u8>,
) -> Result<(), DriverError> {
    let (device, commands) = (&gpu.device, slot.commands);
    let begin = vk::CommandBufferBeginInfo::default().flags(vk::CommandBufferUsageFlags::ONE_TIME_SUBMIT);
    // SAFETY: the device is alive; the slot is this submission's, and its pools have room for it; what is bound was checked, and
    // is kept with the kernel until the submission has ended (`Flight`); so throughout.
    unsafe { device.begin_command_buffer(commands, &begin) }.map_err(DriverError::of("vkBeginCommandBuffer"))?;
    // What an earlier submission did to the same bytes comes before this one.
    barrier(device, commands, vk::PipelineStageFlags::COMPUTE_SHADER, SHADER);
    // SAFETY: as above.
    unsafe { device.cmd_bind_pipeline(commands, vk::PipelineBindPoint::COMPUTE, kernel.pipeline) };
    let each = described.len() / parts.len().max(1);
    for (index, part) in parts.iter().enumerate() {
        if each > 0 {
            describe(device, slot, kernel, &described[index * each..][..each])?;
        }
        let immediates = immediates(part);
        // SAFETY: as above; the immediates are as long as the layout's.
        unsafe {
            if !immediates.is_empty() {
                device.cmd_push_constants(commands, kernel.layout, vk::ShaderStageFlags::COMPUTE, 0, &immediates);
            }
            device.cmd_dispatch(commands, part.groups[0], part.groups[1], part.groups[2]);
        }
    }
    // What the shader wrote is the CPU's to read once the fence has signalled.
    barrier(device, commands, vk::PipelineStageFlags::HOST, vk::AccessFlags::HOST_READ | vk::AccessFlags::HOST_WRITE);
    // SAFETY: as above.
    unsafe { device.end_command_buffer(commands) }.map_err(DriverError::of("vkEndCommandBuffer"))
}

const SHADER: vk::AccessFlags =
    vk::AccessFlags::from_raw(vk::AccessFlags::SHADER_READ.as_raw() | vk::AccessFlags::SHADER_WRITE.as_raw());

fn barrier(device: &ash::Device, commands: vk::CommandBuffer, to: vk::PipelineStageFlags, access: vk::AccessFlags) {
    let memory = [vk::MemoryBarrier::default().src_access_mask(vk::AccessFlags::SHADER_WRITE).dst_access_mask(access)];
    let from = vk::PipelineStageFlags::COMPUTE_SHADER;
    // SAFETY: the command buffer is being recorded, by its owner.
    unsafe { device.cmd_pipeline_barrier(commands, from, to, vk::DependencyFlags::empty(), &memory, &[], &[]) };
}

/// Binds a part's buffers.
fn describe(
    device: &ash::Device,
    slot: &Slot,
    kernel: &KernelCore,
    described: &[Descriptor],
) -> Result<(), DriverError> {
    let layouts = [kernel.sets];
    let info = vk::DescriptorSetAllocateInfo::default().descriptor_pool(slot.descriptors).set_layouts(&layouts);
    // SAFETY: the slot is this submission's, and has room for its sets and buffers; the buffers are kept until it has ended.
    unsafe {
        let sets = device.allocate_descriptor_sets(&info).map_err(DriverError::of("vkAllocateDescriptorSets"))?;
        let writes: Vec<_> = described
            .iter()
            .map(|descriptor| {
                vk::WriteDescriptorSet::default()
                    .dst_set(sets[0])
                    .dst_binding(descriptor.binding)
                    .descriptor_type(vk::DescriptorType::STORAGE_BUFFER)
                    .buffer_info(std::slice::from_ref(&descriptor.info))
            })
            .collect();
        device.update_descriptor_sets(&writes, &[]);
        let point = vk::PipelineBindPoint::COMPUTE;
        device.cmd_bind_descriptor_sets(slot.commands, point, kernel.layout, 0, &sets, &[]);
    }
    Ok(())
}
