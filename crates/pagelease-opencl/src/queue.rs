//! [`OpenClQueue`]: a queue of a driver, with its context and what is known of its device.

use core::fmt;
use std::sync::Arc;
use std::time::Duration;

use opencl3::command_queue::CommandQueue;
use opencl3::context::Context;
use opencl3::device::Device;
use pagelease::ByteLen;
use pagelease::submit::Queue;

use crate::error::{DriverError, OpenError, of};
use crate::fence::Fence;
use crate::ours::Ours;
use crate::trial;

/// A queue of an OpenCL driver. Cloning gives another handle of the same one.
#[derive(Clone)]
pub struct OpenClQueue {
    shared: Arc<Shared>,
}

struct Shared {
    // Released in this order.
    queue: Ours<CommandQueue>,
    context: Ours<Context>,
    device: Device,
    name: String,
    in_place: bool,
    buffer_max: ByteLen,
    local_max: ByteLen,
    align: ByteLen,
}

impl OpenClQueue {
    /// Asks the driver for the device's limits, and tries out how it treats host memory.
    pub(crate) fn new(device: Device, context: Context, queue: CommandQueue) -> Result<Self, OpenError> {
        let info = of("clGetDeviceInfo");
        let (queue, context) = (Ours::new(queue), Ours::new(context));
        let name = device.name().map_err(info)?.trim().to_owned();
        let in_place = trial::works_in_place(&context, &queue, &device)?;
        let buffer_max = device.max_mem_alloc_size().map_err(info)?;
        let local_max = device.local_mem_size().map_err(info)?;
        let align_bits = device.mem_base_addr_align().map_err(info)?;
        Ok(Self {
            shared: Arc::new(Shared {
                queue,
                context,
                device,
                name,
                in_place,
                buffer_max: ByteLen(usize::try_from(buffer_max).unwrap_or(usize::MAX)),
                local_max: ByteLen(usize::try_from(local_max).unwrap_or(usize::MAX)),
                align: ByteLen(usize::try_from(align_bits / 8).map_or(1, |bytes| bytes.max(1))),
            }),
        })
    }

    /// The same, as if the driver kept copies.
    #[cfg(test)]
    pub(crate) fn not_in_place(mut self) -> Self {
        Arc::get_mut(&mut self.shared).expect("just made").in_place = false;
        self
    }

    pub(crate) fn device(&self) -> &Device {
        &self.shared.device
    }

    pub(crate) fn context(&self) -> &Context {
        &self.shared.context
    }

    pub(crate) fn commands(&self) -> &CommandQueue {
        &self.shared.queue
    }

    pub(crate) fn in_place(&self) -> bool {
        self.shared.in_place
    }

    /// The largest buffer.
    pub(crate) fn buffer_max(&self) -> ByteLen {
        self.shared.buffer_max
    }

    /// The local memory of a work group.
    pub(crate) fn local_max(&self) -> ByteLen {
        self.shared.local_max
    }

    /// Where in another a buffer may begin.
    pub(crate) fn align(&self) -> ByteLen {
        self.shared.align
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl Queue for OpenClQueue {
    type Fence = Fence;
    type Error = DriverError;

    fn name(&self) -> &str {
        &self.shared.name
    }

    fn wait(&self, fence: &Fence, limit: Duration) -> Result<bool, DriverError> {
        fence.wait(limit)
    }
}

impl fmt::Debug for OpenClQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenClQueue").field("name", &self.shared.name).finish_non_exhaustive()
    }
}
