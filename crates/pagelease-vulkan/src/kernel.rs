//! [`Kernel`]: a compute pipeline.

use std::ffi::CString;
use std::sync::Arc;

use ash::vk;

use crate::error::{DriverError, ShaderError};
use crate::gpu::Gpu;
use crate::shader::{Layout, Shader};

/// A compute shader, ready to run. Cloning gives another handle of the same one.
#[derive(Clone)]
pub struct Kernel {
    pub(crate) core: Arc<KernelCore>,
}

pub(crate) struct KernelCore {
    pub(crate) gpu: Arc<Gpu>,
    pub(crate) sets: vk::DescriptorSetLayout,
    pub(crate) layout: vk::PipelineLayout,
    pub(crate) pipeline: vk::Pipeline,
    pub(crate) takes: Layout,
}

impl Kernel {
    /// What it takes.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.core.takes
    }

    /// # Safety
    /// What the shader says is valid SPIR-V for the device, and takes what its layout says.
    pub(crate) unsafe fn new(gpu: &Arc<Gpu>, shader: Shader) -> Result<Self, ShaderError> {
        shader.layout.check(&gpu.profile.limits)?;
        let Ok(entry) = CString::new(shader.entry.as_str()) else {
            return Err(ShaderError::NoEntry { wanted: shader.entry, has: Vec::new() });
        };
        // From here on dropping it destroys what there is; null is passed over.
        let mut core = KernelCore {
            gpu: gpu.clone(),
            sets: vk::DescriptorSetLayout::null(),
            layout: vk::PipelineLayout::null(),
            pipeline: vk::Pipeline::null(),
            takes: shader.layout,
        };
        let device = &gpu.device;
        let bindings: Vec<_> = core
            .takes
            .bindings
            .iter()
            .map(|binding| {
                vk::DescriptorSetLayoutBinding::default()
                    .binding(binding.number)
                    .descriptor_type(vk::DescriptorType::STORAGE_BUFFER)
                    .descriptor_count(1)
                    .stage_flags(vk::ShaderStageFlags::COMPUTE)
            })
            .collect();
        let info = vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings);
        // SAFETY: the device is alive, and the structures live through the call; so throughout.
        core.sets = unsafe { device.create_descriptor_set_layout(&info, None) }
            .map_err(DriverError::of("vkCreateDescriptorSetLayout"))?;
        let sets = [core.sets];
        let immediates = [vk::PushConstantRange {
            stage_flags: vk::ShaderStageFlags::COMPUTE,
            offset: 0,
            size: core.takes.immediates,
        }];
        let mut info = vk::PipelineLayoutCreateInfo::default().set_layouts(&sets);
        if core.takes.immediates > 0 {
            info = info.push_constant_ranges(&immediates);
        }
        // SAFETY: as above.
        core.layout =
            unsafe { device.create_pipeline_layout(&info, None) }.map_err(DriverError::of("vkCreatePipelineLayout"))?;
        let info = vk::ShaderModuleCreateInfo::default().code(&shader.words);
        // SAFETY: as above; the words are valid SPIR-V (the caller's).
        let module =
            unsafe { device.create_shader_module(&info, None) }.map_err(DriverError::of("vkCreateShaderModule"))?;
        let stage = vk::PipelineShaderStageCreateInfo::default()
            .stage(vk::ShaderStageFlags::COMPUTE)
            .module(module)
            .name(&entry);
        let info = [vk::ComputePipelineCreateInfo::default().stage(stage).layout(core.layout)];
        // SAFETY: as above.
        let made = unsafe { device.create_compute_pipelines(vk::PipelineCache::null(), &info, None) };
        // SAFETY: the pipeline does not need it any more.
        unsafe { device.destroy_shader_module(module, None) };
        match made {
            Ok(pipelines) => core.pipeline = pipelines[0],
            Err((_, result)) => return Err(DriverError::of("vkCreateComputePipelines")(result).into()),
        }
        Ok(Self { core: Arc::new(core) })
    }
}

impl Drop for KernelCore {
    fn drop(&mut self) {
        if self.gpu.is_ours() {
            let device = &self.gpu.device;
            // SAFETY: every submission that uses it has kept it, so none does any more.
            unsafe {
                device.destroy_pipeline(self.pipeline, None);
                device.destroy_pipeline_layout(self.layout, None);
                device.destroy_descriptor_set_layout(self.sets, None);
            }
        }
    }
}
