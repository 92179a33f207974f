//! A Vulkan device that counts: a compute shader, on the table and the chunk where they lie.
//!
//! Each invocation has counters of its own, those whose value leaves its number as the remainder, and looks at all of the chunk. So
//! no two raise the same counter, and none of them is raised by an atomic operation: a load, an addition with its carry, a store.

use std::sync::atomic::AtomicU8;

use anyhow::{Context, Result};
use pagelease::{Region, Space};
use pagelease_vulkan::{Buffer, Kernel, Submission, Vulkan as Loader, VulkanDevice};

use super::chunks::Chunks;
use super::{Counting, Pending};
use crate::histogram::unit::Unit;

/// With the number of bits of a unit in place of `BITS`.
const SHADER: &str = "
    const LANES = 16u;
    struct Chunk { units: u32 }
    var<immediate> chunk: Chunk;
    @group(0) @binding(0) var<storage, read_write> counters: array<vec2<u32>>;
    @group(0) @binding(1) var<storage, read_write> words: array<u32>;

    @compute @workgroup_size(LANES) fn count(@builtin(global_invocation_id) id: vec3<u32>) {
        for (var unit = 0u; unit < chunk.units; unit++) {
            let value = extractBits(words[unit / (32u / BITS)], unit % (32u / BITS) * BITS, BITS);
            if value % LANES == id.x {
                let count = counters[value];
                let low = count.x + 1u;
                counters[value] = vec2(low, count.y + select(0u, 1u, low == 0u));
            }
        }
    }";

pub(super) struct Vulkan {
    kernel: Kernel,
    table: Buffer,
    buffer: Buffer,
    chunks: Chunks,
    unit: Unit,
    device: VulkanDevice,
}

impl Vulkan {
    pub(super) fn start(space: &Space, table: &Region, unit: Unit) -> Result<Self> {
        let device = VulkanDevice::start(space, &Loader::load()?.best()?)?;
        let chunks = Chunks::new(space)?;
        let (table, buffer) = (device.attach(table)?, device.attach(&chunks.region)?);
        let bits = 8 * unit.len();
        let kernel = device.kernel(&SHADER.replace("BITS", &format!("{bits}u")), "count")?;
        Ok(Self { kernel, table, buffer, chunks, unit, device })
    }
}

impl Counting for Vulkan {
    fn submit(&mut self, bytes: &[AtomicU8]) -> Result<Box<dyn Pending>> {
        let slot = self.chunks.put(bytes);
        let units = u32::try_from(self.unit.count(bytes.len()))?;
        let start = slot.start as u64;
        let chunk = self.buffer.bytes(start..start + (bytes.len() as u64).next_multiple_of(4));
        let run = self.device.run(&self.kernel).bind(0, self.table.all()).bind(1, chunk);
        Ok(Box::new(run.immediates(&units.to_ne_bytes()).groups([1, 1, 1])?))
    }
}

impl Pending for Submission {
    fn wait(self: Box<Self>) -> Result<()> {
        (*self).wait().context("the Vulkan device failed")
    }
}
