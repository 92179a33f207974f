//! [`WgpuDevice`]: for programs that use wgpu. A region is a `wgpu::Buffer`; what a submission uses is claimed, and held until wgpu
//! says that it has ended.
//!
//! wgpu opens its devices without `VK_EXT_external_memory_host`, and has no option for it: [`open`] does it with wgpu's own
//! doors to the layer below. What else its programs do is as it was: pipelines, bind groups, encoders, one `submit`.
//!
//! What wgpu's API does not allow: a buffer of a region cannot be mapped by wgpu (`map_async`; it is the program's memory already), and
//! a region beyond one import is refused, since a `wgpu::Buffer` is one Vulkan buffer. wgpu holds a lock while it waits for a
//! submission, which others need to submit; so it is waited for a millisecond at a time.
//!
//! Invariant: a Vulkan buffer that wgpu was given lives until wgpu has let go of it (its callback keeps the import).

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ::wgpu::hal::api::Vulkan;
use ash::vk;
use pagelease::submit::{Flights, Queue, Submission, SubmitError, Submitter, Use};
use pagelease::{DeviceHandle, Region, Space, View};

use crate::error::{ImportError, StartError};
use crate::gpu::{Adopted, Gpu};
use crate::import::Buffer;

/// The longest that wgpu waits at a time.
const A_WHILE: Duration = Duration::from_millis(1);

/// Opens a wgpu device that can be given regions: as `wgpu::Adapter::request_device` does, with one extension more.
///
/// # Errors
/// [`StartError::Adopted`] where the adapter is not Vulkan's or has not the extension; [`StartError::Wgpu`].
pub fn open(
    adapter: &::wgpu::Adapter,
    descriptor: &::wgpu::DeviceDescriptor<'_>,
) -> Result<(::wgpu::Device, ::wgpu::Queue), StartError> {
    let not_vulkan =
        StartError::Adopted { what: "the adapter is not one of Vulkan", remedy: "ask for Backends::VULKAN" };
    // SAFETY: nothing of it is destroyed.
    let hal = unsafe { adapter.as_hal::<Vulkan>() }.ok_or(not_vulkan)?;
    let (features, limits, hints) =
        (descriptor.required_features, &descriptor.required_limits, &descriptor.memory_hints);
    let name = ash::ext::external_memory_host::NAME;
    if !hal.physical_device_capabilities().supports_extension(name) {
        return Err(crate::Unfit::NoImport.into());
    }
    let add = |arguments: ::wgpu::hal::vulkan::CreateDeviceCallbackArgs<'_, '_, '_>| arguments.extensions.push(name);
    // SAFETY: the callback adds an extension that the device has, and changes nothing else.
    let opened = unsafe { hal.open_with_callback(features, limits, hints, Some(Box::new(add))) };
    let opened = opened.map_err(|error| StartError::Wgpu(error.to_string()))?;
    drop(hal);
    // SAFETY: it was just opened from this adapter, with these features.
    unsafe { adapter.create_device_from_hal(opened, descriptor) }.map_err(|error| StartError::Wgpu(error.to_string()))
}

/// A wgpu device that works on regions of a space. Dropping it waits for what was submitted by it.
pub struct WgpuDevice {
    submitter: Submitter<WgpuQueue>,
    device: ::wgpu::Device,
    gpu: Arc<Gpu>,
}

/// wgpu's queue, as the runtime sees it.
pub struct WgpuQueue {
    device: ::wgpu::Device,
    queue: ::wgpu::Queue,
    name: String,
    lost: Arc<AtomicBool>,
}

/// wgpu lost the device.
#[derive(Copy, Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("wgpu lost the device; make a new one")]
pub struct WgpuLost;

impl Queue for WgpuQueue {
    type Fence = ::wgpu::SubmissionIndex;
    type Error = WgpuLost;

    fn name(&self) -> &str {
        &self.name
    }

    fn wait(&self, fence: &::wgpu::SubmissionIndex, limit: Duration) -> Result<bool, WgpuLost> {
        let begin = Instant::now();
        loop {
            let left = limit.saturating_sub(begin.elapsed());
            let poll =
                ::wgpu::PollType::Wait { submission_index: Some(fence.clone()), timeout: Some(left.min(A_WHILE)) };
            let polled = self.device.poll(poll);
            if self.lost.load(Ordering::SeqCst) {
                return Err(WgpuLost);
            }
            match polled {
                Ok(_) => return Ok(true),
                Err(::wgpu::PollError::Timeout) if left > A_WHILE => {}
                Err(::wgpu::PollError::Timeout) => return Ok(false),
                Err(::wgpu::PollError::WrongSubmissionIndex(..)) => return Err(WgpuLost),
            }
        }
    }
}

/// A region as a `wgpu::Buffer`. Dropping it, and every clone of [`WgpuBuffer::buffer`], detaches the device.
pub struct WgpuBuffer {
    buffer: ::wgpu::Buffer,
    import: Buffer,
}

impl WgpuBuffer {
    /// For bind groups: a storage buffer, which may be copied from and to. It must be used by [`WgpuDevice::submit`] only.
    #[must_use]
    pub fn buffer(&self) -> &::wgpu::Buffer {
        &self.buffer
    }

    /// The device's view of the region.
    #[must_use]
    pub fn view(&self) -> &View {
        self.import.view()
    }

    /// Its length in bytes: the region's.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a region has bytes")]
    pub fn len(&self) -> u64 {
        self.import.len()
    }
}

impl WgpuDevice {
    /// Registers a wgpu device that was opened by [`open`]. Its device-lost callback is set: set none after it.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(space: &Space, device: &::wgpu::Device, queue: &::wgpu::Queue) -> Result<Self, StartError> {
        let not_vulkan =
            StartError::Adopted { what: "the wgpu device is not one of Vulkan", remedy: "ask for Backends::VULKAN" };
        // SAFETY: nothing of it is destroyed.
        let hal = unsafe { device.as_hal::<Vulkan>() }.ok_or(not_vulkan)?;
        if !hal.enabled_device_extensions().contains(&ash::ext::external_memory_host::NAME) {
            return Err(StartError::Adopted {
                what: "the wgpu device was made without VK_EXT_external_memory_host",
                remedy: "open it by pagelease_vulkan::webgpu::open",
            });
        }
        let adopted = Adopted {
            instance: hal.shared_instance().raw_instance().clone(),
            physical: hal.raw_physical_device(),
            device: hal.raw_device().clone(),
            family: hal.queue_family_index(),
            queue: hal.raw_queue(),
            lock: Arc::default(),
            int64: false,
        };
        // SAFETY: they are wgpu's, and fit; its device lives as long as a buffer that it was given. The queue is not used.
        let gpu = unsafe { Gpu::adopt(adopted) }?;
        drop(hal);
        let lost = Arc::new(AtomicBool::new(false));
        let told = lost.clone();
        device.set_device_lost_callback(move |_, _| told.store(true, Ordering::SeqCst));
        let name = gpu.profile.name.clone();
        let submitting = WgpuQueue { device: device.clone(), queue: queue.clone(), name, lost };
        Ok(Self { submitter: Submitter::start(space, submitting)?, device: device.clone(), gpu })
    }

    /// The device as the space knows it.
    #[must_use]
    pub fn handle(&self) -> &DeviceHandle<Flights> {
        self.submitter.handle()
    }

    /// Attaches it to a region, and makes a `wgpu::Buffer` of the region's memory, without a copy.
    ///
    /// # Errors
    /// [`ImportError`].
    pub fn attach(&self, region: &Region) -> Result<WgpuBuffer, ImportError> {
        Buffer::check(region)?;
        let import = Buffer::new(self.gpu.clone(), region, self.submitter.attach(region)?)?;
        let (window, _) = import.window(0)?;
        if window.len() < import.len() {
            return Err(ImportError::TooLong { len: import.len(), limit: window.len() });
        }
        let raw = window.buffer;
        // SAFETY: the callback keeps the window, and so the Vulkan buffer, until wgpu has let go of it.
        let owned =
            unsafe { ::wgpu::hal::vulkan::Buffer::from_raw_externally_owned(raw, Box::new(move || drop(window))) };
        let descriptor = ::wgpu::BufferDescriptor {
            label: Some("pagelease region"),
            size: import.len(),
            usage: ::wgpu::BufferUsages::STORAGE | ::wgpu::BufferUsages::COPY_SRC | ::wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        };
        // SAFETY: the buffer is the device's, made for these uses, of this size, and memory of the process: initialised.
        let buffer = unsafe { self.device.create_buffer_from_hal::<Vulkan>(owned, &descriptor) };
        Ok(WgpuBuffer { buffer, import })
    }

    /// Claims the bytes that `uses` names of each buffer, and submits `commands`, which use no others of any region. Returns once
    /// wgpu has them. Any thread; not a signal handler.
    ///
    /// # Panics
    /// If a range is empty or reaches behind its buffer's end; and where `wgpu::Queue::submit` does.
    ///
    /// # Errors
    /// [`SubmitError`].
    pub fn submit(
        &self,
        uses: &[(&WgpuBuffer, Range<u64>)],
        commands: impl IntoIterator<Item = ::wgpu::CommandBuffer>,
    ) -> Result<Submission<WgpuQueue>, SubmitError<WgpuLost>> {
        let uses: Vec<Use<'_>> = uses
            .iter()
            .map(|(buffer, bytes)| {
                assert!(bytes.start < bytes.end && bytes.end <= buffer.len(), "{bytes:?} of {}", buffer.len());
                Use { view: buffer.view(), pages: buffer.import.pages_of(bytes.clone()) }
            })
            .collect();
        let commands: Vec<_> = commands.into_iter().chain([self.host_barrier()]).collect();
        self.submitter.submit(&uses, |queue| Ok(queue.queue.submit(commands)))
    }

    /// What shaders and copies wrote is the CPU's to read: wgpu does that only for buffers which it can map.
    fn host_barrier(&self) -> ::wgpu::CommandBuffer {
        let mut encoder = self.device.create_command_encoder(&::wgpu::CommandEncoderDescriptor::default());
        let from = vk::PipelineStageFlags::COMPUTE_SHADER | vk::PipelineStageFlags::TRANSFER;
        let written = vk::AccessFlags::SHADER_WRITE | vk::AccessFlags::TRANSFER_WRITE;
        let read = vk::AccessFlags::HOST_READ | vk::AccessFlags::HOST_WRITE;
        let memory = [vk::MemoryBarrier::default().src_access_mask(written).dst_access_mask(read)];
        // SAFETY: the encoder is recording, and not used otherwise meanwhile; the command buffer is the device's.
        unsafe {
            encoder.as_hal_mut::<Vulkan, _, _>(|hal| {
                if let Some(hal) = hal {
                    let (commands, host) = (hal.raw_handle(), vk::PipelineStageFlags::HOST);
                    let flags = vk::DependencyFlags::empty();
                    self.gpu.device.cmd_pipeline_barrier(commands, from, host, flags, &memory, &[], &[]);
                }
            });
        }
        encoder.finish()
    }
}
