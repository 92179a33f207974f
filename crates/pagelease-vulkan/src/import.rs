//! [`Buffer`]: a region as a Vulkan device sees it.
//!
//! What is imported is the device's view, an alias of the region's pages, and never the CPU view: a driver that follows the
//! imported address, by an MMU notifier, say, would otherwise be told of each page that the runtime takes from the CPU.
//!
//! A region longer than one import is imported in **windows** that overlap by the longest binding, so that every binding lies
//! within one of them. Each is imported when something in it is first bound.
//!
//! ```text
//!   |<------- window 0 ------->|
//!                  |<------- window 1 ------->|
//!   |<--- step --->|<-binding->|
//! ```
//!
//! Invariant: a window keeps the memory that it imports, and is kept by every submission that uses it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use ash::vk;
use pagelease::{ByteLen, PageIndex, PageRange, Region, View};

use crate::adapter::Limits;
use crate::error::{DriverError, ImportError};
use crate::gpu::Gpu;

/// What can be imported without a copy, and shows what the CPU stores without flushing.
const HANDLE: vk::ExternalMemoryHandleTypeFlags = vk::ExternalMemoryHandleTypeFlags::HOST_ALLOCATION_EXT;

/// What an imported buffer is used for: by shaders, and, through wgpu, by copies.
const USAGE: vk::BufferUsageFlags = vk::BufferUsageFlags::from_raw(
    vk::BufferUsageFlags::STORAGE_BUFFER.as_raw()
        | vk::BufferUsageFlags::TRANSFER_SRC.as_raw()
        | vk::BufferUsageFlags::TRANSFER_DST.as_raw(),
);

/// A region as a Vulkan device sees it: what shaders are given. Made by [`VulkanDevice::attach`](crate::VulkanDevice::attach);
/// dropping it detaches the device, once submissions that use it have ended.
pub struct Buffer {
    pub(crate) gpu: Arc<Gpu>,
    view: View,
    base: Base,
    len: u64,
    granule: u64,
    windows: Windows,
    imported: Mutex<BTreeMap<u64, Arc<Window>>>,
}

/// Where the device's view begins.
#[derive(Copy, Clone)]
struct Base(NonNull<u8>);

// SAFETY: an address, which is handed to the driver and never dereferenced here.
unsafe impl Send for Base {}
// SAFETY: as above.
unsafe impl Sync for Base {}

/// A range of a buffer's bytes.
#[derive(Copy, Clone)]
pub struct Slice<'a> {
    pub(crate) buffer: &'a Buffer,
    pub(crate) start: u64,
    pub(crate) len: u64,
}

impl Buffer {
    pub(crate) fn new(gpu: Arc<Gpu>, region: &Region, view: View) -> Result<Self, ImportError> {
        let carried = ImportError::Carried { backend: region.backend() };
        let page = view.page_ptr(PageIndex(0)).ok_or(carried)?;
        let (granule, pages) = (page.len() as u64, u64::from(view.pages().end()));
        let base = Base(page.cast());
        let len = granule * pages;
        let alignment = gpu.profile.limits.import_alignment;
        let start = base.0.as_ptr().addr();
        if !(start as u64).is_multiple_of(alignment) || !len.is_multiple_of(alignment) {
            let len = ByteLen(usize::try_from(len).unwrap_or(usize::MAX));
            return Err(ImportError::Misaligned { start, len, alignment });
        }
        let windows = Windows::of(len, &gpu.profile.limits);
        let buffer = Self { gpu, view, base, len, granule, windows, imported: Mutex::default() };
        // What cannot be imported is refused here, and not at the first run.
        buffer.window(0)?;
        Ok(buffer)
    }

    /// Whether a region's memory is of a kind that can be imported: one whose views are aliases.
    pub(crate) fn check(region: &Region) -> Result<(), ImportError> {
        if region.capabilities().alias { Ok(()) } else { Err(ImportError::Carried { backend: region.backend() }) }
    }

    /// The device's view of the region: what it has at the moment can be asked of it.
    #[must_use]
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Its length in bytes: the region's.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a region has bytes")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The most bytes of it that one binding may have: more of it is bound by elements, and the dispatch split.
    #[must_use]
    pub fn binding_limit(&self) -> u64 {
        self.windows.binding
    }

    /// All of it.
    #[must_use]
    pub fn all(&self) -> Slice<'_> {
        self.bytes(0..self.len)
    }

    /// Some of its bytes. Whether they can be bound is checked when they are.
    #[must_use]
    pub fn bytes(&self, range: Range<u64>) -> Slice<'_> {
        Slice { buffer: self, start: range.start, len: range.end.saturating_sub(range.start) }
    }

    /// The pages that `bytes` lie in: within the buffer, and some.
    pub(crate) fn pages_of(&self, bytes: Range<u64>) -> PageRange {
        let page = |byte: u64| u32::try_from(byte / self.granule).expect("a region's pages are numbered by 32 bits");
        PageRange::new(page(bytes.start), page(bytes.end - 1) + 1).expect("not empty")
    }

    /// The window that has `start`, and what follows it up to the longest binding; and where it begins.
    pub(crate) fn window(&self, start: u64) -> Result<(Arc<Window>, u64), ImportError> {
        let begin = self.windows.begin_of(start);
        let mut imported = self.imported.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(window) = imported.get(&begin) {
            return Ok((window.clone(), begin));
        }
        let len = self.windows.len.min(self.len - begin);
        let offset = usize::try_from(begin).expect("within the view");
        // SAFETY: `begin` lies within the view's mapping, of `len` bytes.
        let address = unsafe { self.base.0.add(offset) };
        // SAFETY: the view has these bytes mapped, readable and writable, for as long as it lives; the window keeps it.
        let window = Arc::new(unsafe { Window::import(&self.gpu, address, len, Box::new(self.view.clone())) }?);
        imported.insert(begin, window.clone());
        Ok((window, begin))
    }
}

/// How a buffer is cut in windows.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
struct Windows {
    len: u64,
    step: u64,
    /// The longest binding.
    binding: u64,
}

impl Windows {
    fn of(len: u64, limits: &Limits) -> Self {
        if len <= limits.import {
            return Self { len, step: len, binding: limits.binding.min(len) };
        }
        let longest = limits.binding.min(limits.import / 2);
        let step = limits.import - longest;
        let step = step - step % limits.import_alignment;
        Self { len: limits.import, step, binding: limits.binding.min(limits.import - step) }
    }

    fn begin_of(&self, start: u64) -> u64 {
        start / self.step * self.step
    }
}

/// Host memory that the driver has imported, as a storage buffer.
pub(crate) struct Window {
    gpu: Arc<Gpu>,
    pub(crate) buffer: vk::Buffer,
    memory: vk::DeviceMemory,
    #[cfg(feature = "wgpu")]
    len: u64,
    /// What was imported. Last, so that it outlives the import.
    _host: Box<dyn Send + Sync>,
}

impl Window {
    /// # Safety
    /// `len` bytes from `address` are mapped, readable and writable, as long as `host` lives, and multiples of the alignment that
    /// the device imports.
    pub(crate) unsafe fn import(
        gpu: &Arc<Gpu>,
        address: NonNull<u8>,
        len: u64,
        host: Box<dyn Send + Sync>,
    ) -> Result<Self, ImportError> {
        let start = address.as_ptr().expose_provenance();
        let failed = |source| ImportError::Driver { start, bytes: len, source };
        let device = &gpu.device;
        let mut handle = vk::ExternalMemoryBufferCreateInfo::default().handle_types(HANDLE);
        let info = vk::BufferCreateInfo::default()
            .size(len)
            .usage(USAGE)
            .sharing_mode(vk::SharingMode::EXCLUSIVE)
            .push_next(&mut handle);
        // SAFETY: the device is alive, and the structures live through the call; so throughout.
        let buffer =
            unsafe { device.create_buffer(&info, None) }.map_err(DriverError::of("vkCreateBuffer")).map_err(failed)?;
        // From here on dropping it destroys what there is; null is passed over.
        let mut window = Self {
            gpu: gpu.clone(),
            buffer,
            memory: vk::DeviceMemory::null(),
            #[cfg(feature = "wgpu")]
            len,
            _host: host,
        };
        let mut properties = vk::MemoryHostPointerPropertiesEXT::default();
        // SAFETY: as above; the pointer is aligned as it must be, and mapped (the caller's).
        unsafe {
            (gpu.import.get_memory_host_pointer_properties_ext)(
                device.handle(),
                HANDLE,
                address.as_ptr().cast_const().cast(),
                &raw mut properties,
            )
        }
        .result()
        .map_err(DriverError::of("vkGetMemoryHostPointerPropertiesEXT"))
        .map_err(failed)?;
        // SAFETY: as above.
        let needs = unsafe { device.get_buffer_memory_requirements(buffer) };
        let kind = memory_type(&gpu.memory, properties.memory_type_bits & needs.memory_type_bits)
            .filter(|_| needs.size <= len)
            .ok_or(ImportError::NotCoherent)?;
        let mut import =
            vk::ImportMemoryHostPointerInfoEXT::default().handle_type(HANDLE).host_pointer(address.as_ptr().cast());
        let info =
            vk::MemoryAllocateInfo::default().allocation_size(len).memory_type_index(kind).push_next(&mut import);
        // SAFETY: as above; the memory outlives the import (the caller's).
        window.memory = unsafe { device.allocate_memory(&info, None) }
            .map_err(DriverError::of("vkAllocateMemory"))
            .map_err(failed)?;
        // SAFETY: as above; the buffer is new, and the memory as long.
        unsafe { device.bind_buffer_memory(buffer, window.memory, 0) }
            .map_err(DriverError::of("vkBindBufferMemory"))
            .map_err(failed)?;
        Ok(window)
    }

    #[cfg(feature = "wgpu")]
    pub(crate) fn len(&self) -> u64 {
        self.len
    }
}

/// A type of memory among `allowed` that the CPU shares without flushing; rather one that it caches.
fn memory_type(memory: &vk::PhysicalDeviceMemoryProperties, allowed: u32) -> Option<u32> {
    let coherent = vk::MemoryPropertyFlags::HOST_VISIBLE | vk::MemoryPropertyFlags::HOST_COHERENT;
    [coherent | vk::MemoryPropertyFlags::HOST_CACHED, coherent].into_iter().find_map(|wanted| {
        (0..memory.memory_type_count).find(|&kind| {
            allowed & 1 << kind != 0 && memory.memory_types[kind as usize].property_flags.contains(wanted)
        })
    })
}

impl Drop for Window {
    fn drop(&mut self) {
        if self.gpu.is_ours() {
            // SAFETY: every submission that uses it has kept it, so none does any more.
            unsafe {
                self.gpu.device.destroy_buffer(self.buffer, None);
                self.gpu.device.free_memory(self.memory, None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(import: u64, binding: u64, import_alignment: u64) -> Limits {
        Limits {
            import,
            binding,
            import_alignment,
            offset_alignment: 16,
            groups: [1; 3],
            group_size: [1; 3],
            invocations: 1,
            shared: 0,
            immediates: 0,
            bindings: 1,
        }
    }

    #[test]
    fn every_binding_lies_in_one_window() {
        for (len, import, binding, alignment) in [
            (100 << 12, 200 << 12, 10 << 12, 1 << 12),
            (100 << 12, 20 << 12, 5 << 12, 1 << 12),
            (100 << 12, 20 << 12, 50 << 12, 1 << 12),
            (1 << 22, 5 << 16, 100_000, 1 << 16),
            (1 << 22, 1 << 16, u64::from(u32::MAX), 1 << 12),
        ] {
            let windows = Windows::of(len, &limits(import, binding, alignment));
            assert!(windows.len <= import && windows.binding <= binding, "{windows:?}");
            assert!(windows.step.is_multiple_of(alignment) && windows.binding >= alignment.min(binding), "{windows:?}");
            for start in (0..len).step_by(16) {
                let begin = windows.begin_of(start);
                let end = (start + windows.binding).min(len);
                assert!(begin <= start && end <= (begin + windows.len).min(len), "{start} {windows:?}");
            }
        }
    }

    #[test]
    fn memory_is_coherent_and_rather_cached() {
        use vk::MemoryPropertyFlags as Flags;
        let mut memory = vk::PhysicalDeviceMemoryProperties { memory_type_count: 4, ..Default::default() };
        let coherent = Flags::HOST_VISIBLE | Flags::HOST_COHERENT;
        let kinds =
            [Flags::DEVICE_LOCAL, Flags::HOST_VISIBLE | Flags::HOST_CACHED, coherent, coherent | Flags::HOST_CACHED];
        for (kind, flags) in kinds.into_iter().enumerate() {
            memory.memory_types[kind].property_flags = flags;
        }
        assert_eq!(memory_type(&memory, 0b1111), Some(3));
        assert_eq!(memory_type(&memory, 0b0111), Some(2));
        assert_eq!(memory_type(&memory, 0b0011), None);
    }
}
