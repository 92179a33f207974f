//! Shaders: WGSL, translated and looked through here, and SPIR-V, taken at its word.
//!
//! WGSL is validated, and what it does with an index out of bounds is defined (it is brought within them), so that no WGSL
//! shader reaches beyond what it was given. Storage buffers are in group 0.

use naga::valid::{Capabilities, GlobalUse, ValidationFlags, Validator};
use naga::{AddressSpace, Module, ShaderStage};

use crate::adapter::Limits;
use crate::error::ShaderError;

/// What a kernel takes.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Layout {
    /// The storage buffers of descriptor set 0, by their binding numbers, ascending.
    pub bindings: Vec<Binding>,
    /// Bytes of immediates (push constants), a multiple of 4; 0 for none.
    pub immediates: u32,
    /// Invocations of a workgroup, in each dimension.
    pub group_size: [u32; 3],
}

/// A storage buffer that a kernel takes.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Binding {
    /// Its number.
    pub number: u32,
    /// The least bytes it must have: with an array without a length, room for one element.
    pub least: u64,
}

/// A shader as the driver takes it.
pub(crate) struct Shader {
    pub(crate) words: Vec<u32>,
    pub(crate) entry: String,
    pub(crate) layout: Layout,
}

impl Shader {
    /// Translates WGSL.
    pub(crate) fn wgsl(source: &str, entry: &str, int64: bool, limits: &Limits) -> Result<Self, ShaderError> {
        let module = naga::front::wgsl::parse_str(source)
            .map_err(|error| ShaderError::Wgsl(error.emit_to_string(source).trim_end().to_owned()))?;
        check_immediates(&module, limits)?;
        let mut capabilities = Capabilities::IMMEDIATES;
        if int64 {
            capabilities |= Capabilities::SHADER_INT64 | Capabilities::SHADER_INT64_ATOMIC_ALL_OPS;
        }
        let info = Validator::new(ValidationFlags::all(), capabilities)
            .validate(&module)
            .map_err(|error| ShaderError::Wgsl(error.emit_to_string(source).trim_end().to_owned()))?;
        let index = module
            .entry_points
            .iter()
            .position(|point| point.stage == ShaderStage::Compute && point.name == entry)
            .ok_or_else(|| no_entry(&module, entry))?;
        let used = info.get_entry_point(index);
        let layout = layout(&module, index, |global| used[global], limits)?;
        let mut options = naga::back::spv::Options { lang_version: (1, 3), ..Default::default() };
        options.flags.remove(naga::back::spv::WriterFlags::DEBUG);
        options.bounds_check_policies = naga::proc::BoundsCheckPolicies {
            index: naga::proc::BoundsCheckPolicy::Restrict,
            buffer: naga::proc::BoundsCheckPolicy::Restrict,
            ..Default::default()
        };
        let point =
            naga::back::spv::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: entry.to_owned() };
        let words = naga::back::spv::write_vec(&module, &info, &options, Some(&point))
            .map_err(|error| ShaderError::Wgsl(error.to_string()))?;
        Ok(Self { words, entry: entry.to_owned(), layout })
    }
}

/// Before the module is validated, for naga itself keeps account of so many and no more.
fn check_immediates(module: &Module, limits: &Limits) -> Result<(), ShaderError> {
    const MAX: u32 = 256;
    let has = u64::from(limits.immediates.min(MAX));
    for (_, global) in module.global_variables.iter().filter(|(_, global)| global.space == AddressSpace::Immediate) {
        let size = module.types[global.ty].inner.try_size(module.to_ctx());
        let needs = size.map_or(u64::MAX, u64::from);
        if needs > has {
            return Err(ShaderError::Limit { what: "bytes of immediates", needs, has });
        }
    }
    Ok(())
}

fn no_entry(module: &Module, wanted: &str) -> ShaderError {
    let compute = module.entry_points.iter().filter(|point| point.stage == ShaderStage::Compute);
    ShaderError::NoEntry { wanted: wanted.to_owned(), has: compute.map(|point| point.name.clone()).collect() }
}

/// What an entry point takes of what it uses.
fn layout(
    module: &Module,
    entry: usize,
    used: impl Fn(naga::Handle<naga::GlobalVariable>) -> GlobalUse,
    limits: &Limits,
) -> Result<Layout, ShaderError> {
    let point = &module.entry_points[entry];
    let mut layout = Layout { group_size: point.workgroup_size, ..Layout::default() };
    let mut shared = 0;
    for (handle, global) in module.global_variables.iter().filter(|(handle, _)| !used(*handle).is_empty()) {
        let size = module.types[global.ty].inner.size(module.to_ctx());
        let refused = |what, remedy| {
            let name = global.name.clone().unwrap_or_else(|| format!("{handle:?}"));
            ShaderError::Unsupported { name, what, remedy }
        };
        match (global.space, global.binding) {
            (AddressSpace::Storage { .. }, Some(at)) if at.group == 0 => {
                layout.bindings.push(Binding { number: at.binding, least: u64::from(size) });
            }
            (AddressSpace::Storage { .. }, _) => {
                return Err(refused("a storage buffer outside group 0", "give it a @binding in @group(0)"));
            }
            (AddressSpace::Uniform, _) => {
                return Err(refused("a uniform buffer", "use var<immediate>, or var<storage, read>"));
            }
            (AddressSpace::Handle, _) => {
                return Err(refused("a texture or sampler", "memory of the process is bound as storage buffers"));
            }
            (AddressSpace::Immediate, _) => layout.immediates = size.next_multiple_of(4),
            (AddressSpace::WorkGroup, _) => shared += u64::from(size),
            _ => {}
        }
    }
    layout.bindings.sort_by_key(|binding| binding.number);
    if shared > u64::from(limits.shared) {
        return Err(ShaderError::Limit {
            what: "bytes shared by a workgroup",
            needs: shared,
            has: u64::from(limits.shared),
        });
    }
    Ok(layout)
}

impl Layout {
    /// Whether a device with `limits` has what it takes. Drivers in software do not look.
    pub(crate) fn check(&self, limits: &Limits) -> Result<(), ShaderError> {
        let invocations: u64 = self.group_size.iter().map(|&size| u64::from(size)).product();
        let mut needs = vec![
            ("invocations in a workgroup", invocations, u64::from(limits.invocations)),
            ("bytes of immediates", u64::from(self.immediates), u64::from(limits.immediates)),
            ("storage buffers", self.bindings.len() as u64, u64::from(limits.bindings)),
        ];
        for (&size, &limit) in self.group_size.iter().zip(&limits.group_size) {
            needs.push(("invocations in one dimension of a workgroup", u64::from(size), u64::from(limit)));
        }
        match needs.into_iter().find(|(_, needs, has)| needs > has) {
            Some((what, needs, has)) => Err(ShaderError::Limit { what, needs, has }),
            None => Ok(()),
        }
    }
}
