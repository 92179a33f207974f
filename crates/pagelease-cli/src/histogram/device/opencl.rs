//! An OpenCL device that counts: a kernel in OpenCL C, on the table and the chunk where they lie.
//!
//! As for Vulkan, each work item has counters of its own, so that none is raised by an atomic operation.

use std::sync::atomic::AtomicU8;

use anyhow::{Context, Result};
use pagelease::submit::Submission;
use pagelease::{Region, Space};
use pagelease_opencl::{Arg, Buffers, Kernel, NdRange, OpenClDevice, OpenClQueue};

use super::chunks::Chunks;
use super::{Counting, Pending};
use crate::histogram::unit::Unit;

/// With the type of a unit in place of `UNIT`.
const SOURCE: &str = "
    kernel void count(global ulong *counters, global const UNIT *units, uint count) {
        uint lane = get_global_id(0), lanes = get_global_size(0);
        for (uint unit = 0; unit < count; unit++)
            if (units[unit] % lanes == lane) counters[units[unit]] += 1;
    }";

const LANES: usize = 16;

pub(super) struct OpenCl {
    kernel: Kernel,
    table: Buffers,
    buffers: Buffers,
    chunks: Chunks,
    unit: Unit,
    device: OpenClDevice,
}

impl OpenCl {
    pub(super) fn start(space: &Space, table: &Region, unit: Unit) -> Result<Self> {
        let device = OpenClDevice::open(space)?;
        let chunks = Chunks::new(space)?;
        let (table, buffers) = (device.attach(table)?, device.attach(&chunks.region)?);
        let name = if unit == Unit::Byte { "uchar" } else { "ushort" };
        let kernel = device.build(&SOURCE.replace("UNIT", name))?.kernel("count")?;
        Ok(Self { kernel, table, buffers, chunks, unit, device })
    }
}

impl Counting for OpenCl {
    fn submit(&mut self, bytes: &[AtomicU8]) -> Result<Box<dyn Pending>> {
        let slot = self.chunks.put(bytes);
        let units = u32::try_from(self.unit.count(bytes.len()))?;
        let args = [
            Arg::Range(&self.table, self.table.view().pages()),
            Arg::Range(&self.buffers, slot.pages),
            Arg::U32(units),
        ];
        // SAFETY: the kernel reads `units` units of the chunk, which its pages begin with, and raises counters of values that a
        // unit can have, each of which the table has.
        let submission = unsafe { self.device.submit(&self.kernel, NdRange::new([LANES]), &args) }?;
        Ok(Box::new(submission))
    }
}

impl Pending for Submission<OpenClQueue> {
    fn wait(self: Box<Self>) -> Result<()> {
        (*self).wait().context("the OpenCL device failed")
    }
}
