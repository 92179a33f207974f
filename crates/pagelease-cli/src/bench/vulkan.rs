//! `vulkan`: what submissions on managed memory cost beyond the driver's, and from which size on they beat copies. See
//! `submitting` for the two questions.
//!
//! All of it on one `VkDevice`, made as an application makes it, and adopted by the runtime. The job's bytes are bound whole; an
//! invocation adds to 16 of them. Bare: imported memory, recorded once. Copies: into a mapped staging buffer, from there into one in
//! the device's memory, and back, in one command buffer, recorded once.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use anyhow::{Context, Result};
use pagelease::{ByteLen, Region, Space, SpaceBuilder};
use pagelease_vulkan::{Buffer, Kernel, Vulkan, VulkanDevice};

use super::Setup;
use super::bare::{Bare, Trap};
use super::figure::Figure;
use super::submitting::{self, Ways};
use crate::failure;
use raw::{Import, Raw, Staging};

mod raw;

/// The job.
const SHADER: &str = "
    @group(0) @binding(0) var<storage, read_write> words: array<vec4<u32>>;
    @compute @workgroup_size(256) fn add(@builtin(global_invocation_id) id: vec3<u32>) {
        if id.x < arrayLength(&words) { words[id.x] += vec4(1u); }
    }";

const GROUP: usize = 256;
const ELEMENT: usize = 16;

pub(super) fn run(setup: &Setup) -> Result<Vec<Figure>> {
    // Not on a driver that computes wrong.
    if let Err(why) = setup.cpus.with_both(|| Ok(Vulkan::load()?.best()?)) {
        failure::say(format_args!("bench vulkan: skipped: {why}"));
        return Ok(Vec::new());
    }
    submitting::run(setup, Ready::new)
}

/// Everything for one size. The fields are dropped in order: what was made of the device, then the device.
struct Ready {
    buffer: Buffer,
    kernel: Kernel,
    device: VulkanDevice,
    staging: Staging,
    import: Import,
    plain: Bare,
    region: Region,
    elements: u64,
    _space: Space,
    _raw: Arc<Raw>,
}

impl Ready {
    fn new(builder: SpaceBuilder, bytes: usize) -> Result<Self> {
        let raw = Arc::new(Raw::new(SHADER, c"add")?);
        let space = builder.build()?;
        // SAFETY: instance and device live longer, as the fields are ordered; this thread alone uses the queue, and locks it.
        let device = unsafe { VulkanDevice::adopt(&space, raw.adopted()) }?;
        let kernel = device.kernel(SHADER, "add")?;
        let region = space.allocate(ByteLen(bytes))?;
        let buffer = device.attach(&region)?;
        let plain = Bare::new(bytes.div_ceil(4096), Trap::None)?;
        let groups = u32::try_from(bytes.div_ceil(ELEMENT * GROUP)).context("too many workgroups")?;
        let words = plain.alias_words();
        // SAFETY: the memory is dropped after the import, as the fields are ordered.
        let import = unsafe { Import::new(&raw, words.as_ptr().cast_mut().cast(), size_of_val(words), bytes, groups) }?;
        let staging = Staging::new(&raw, bytes, groups)?;
        let elements = (bytes / ELEMENT) as u64;
        Ok(Self { buffer, kernel, device, staging, import, plain, region, elements, _space: space, _raw: raw })
    }
}

impl Ways for Ready {
    fn region(&self) -> &Region {
        &self.region
    }

    fn managed(&self) -> Result<()> {
        let bytes = self.buffer.bytes(0..self.elements * ELEMENT as u64);
        Ok(self.device.run(&self.kernel).elements(0, bytes, ELEMENT as u64).over(self.elements)?.wait()?)
    }

    fn plain(&self) -> &[AtomicU64] {
        self.plain.words()
    }

    fn bare(&self) -> Result<()> {
        self.import.run()
    }

    fn staged(&self, words: &mut [u64]) -> Result<()> {
        self.staging.run(words)
    }
}
