//! [`Buffers`]: a region as OpenCL sees it.
//!
//! `CL_MEM_USE_HOST_PTR` buffers lie over the device's view of the region, which is an alias: never over the CPU view, of which pages
//! come and go. A region larger than the driver's largest buffer is several, one a chunk. A range of pages is a sub-buffer of
//! its chunk's; OpenCL leaves two buffers over the same memory undefined, so there is never a second.
//!
//! Invariant: the view outlives the buffers, and a sub-buffer keeps them.

use core::ffi::c_void;
use core::ptr::NonNull;
use std::sync::Arc;

use opencl3::memory::{Buffer, CL_MEM_READ_WRITE, CL_MEM_USE_HOST_PTR, ClMem};
use opencl3::types::cl_mem;
use pagelease::submit::Queue;
use pagelease::{ByteLen, PageIndex, PageRange, Region, View};

use crate::error::{AttachError, SubmitError, of};
use crate::ours::Ours;
use crate::queue::OpenClQueue;

/// A region, attached to an OpenCL device. Cloning gives another handle of the same; dropping the last detaches the device, once
/// no submission uses it.
#[derive(Clone)]
pub struct Buffers {
    inner: Arc<Inner>,
}

struct Inner {
    // Released in this order.
    chunks: Ours<Vec<Buffer<u8>>>,
    chunk_pages: u32,
    granule: usize,
    queue: OpenClQueue,
    view: View,
}

impl Buffers {
    /// Makes them over `view`, of `region`, each at most `limit` bytes long.
    pub(crate) fn new(region: &Region, view: View, queue: &OpenClQueue, limit: ByteLen) -> Result<Self, AttachError> {
        let granule = region.granule();
        let fit = u32::try_from(limit.0 / granule.0).unwrap_or(u32::MAX);
        let pages = view.pages();
        let chunk_pages = fit.min(pages.len());
        if chunk_pages == 0 {
            return Err(AttachError::GranuleTooLarge { name: queue.name().to_owned(), limit, granule });
        }
        let mut chunks = Vec::new();
        for start in (0..pages.len()).step_by(chunk_pages as usize) {
            let chunk = PageRange::new(start, pages.len().min(start.saturating_add(chunk_pages))).expect("not empty");
            let no_alias = AttachError::NoAlias { region: region.id(), backend: region.backend() };
            let first = view.page_ptr(PageIndex(start)).ok_or(no_alias)?.cast::<c_void>();
            let len = chunk.len() as usize * granule.0;
            let flags = CL_MEM_USE_HOST_PTR | CL_MEM_READ_WRITE;
            // SAFETY: the view has these pages one behind the other, and outlives the buffer.
            let buffer = unsafe { Buffer::create(queue.context(), flags, len, first.as_ptr()) };
            let failed = |why| AttachError::Buffer { pages: chunk, why };
            chunks.push(buffer.map_err(of("clCreateBuffer")).map_err(failed)?);
        }
        let inner = Inner { chunks: Ours::new(chunks), chunk_pages, granule: granule.0, queue: queue.clone(), view };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The device's view of the region.
    #[must_use]
    pub fn view(&self) -> &View {
        &self.inner.view
    }

    /// The pages of the buffer in which `page` lies: one argument of a kernel must be within them. All of the region's, unless it is
    /// larger than `CL_DEVICE_MAX_MEM_ALLOC_SIZE`. `None` behind the region's end.
    #[must_use]
    pub fn chunk_of(&self, page: PageIndex) -> Option<PageRange> {
        let start = page.0 - page.0 % self.inner.chunk_pages;
        let end = start.saturating_add(self.inner.chunk_pages).min(self.view().pages().end());
        PageRange::new(start, end).filter(|chunk| chunk.contains(page))
    }

    pub(crate) fn queue(&self) -> &OpenClQueue {
        &self.inner.queue
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// The buffer of `pages`.
    pub(crate) fn part(&self, pages: PageRange) -> Result<Part, SubmitError> {
        let inner = &*self.inner;
        let region_pages = self.view().pages().end();
        if pages.end() > region_pages {
            return Err(SubmitError::OutOfRange { pages, region_pages });
        }
        let chunk = self.chunk_of(PageIndex(pages.start())).expect("within the region");
        if pages.end() > chunk.end() {
            return Err(SubmitError::AcrossBuffers { pages, boundary: chunk.end() });
        }
        let origin = (pages.start() - chunk.start()) as usize * inner.granule;
        let len = pages.len() as usize * inner.granule;
        let align = inner.queue.align();
        if !origin.is_multiple_of(align.0) {
            return Err(SubmitError::Misaligned { pages, align });
        }
        let sub = if pages == chunk {
            None
        } else {
            // SAFETY: within the buffer, as just checked.
            let sub = unsafe { self.chunk(pages.start()).create_sub_buffer(CL_MEM_READ_WRITE, origin, len) };
            Some(Ours::new(sub.map_err(of("clCreateSubBuffer")).map_err(SubmitError::from)?))
        };
        Ok(Part { sub, pages, len, of: self.clone() })
    }

    /// The buffer in which `page` lies.
    fn chunk(&self, page: u32) -> &Buffer<u8> {
        &self.inner.chunks[(page / self.inner.chunk_pages) as usize]
    }
}

/// The buffer of a range, while a submission uses it.
pub(crate) struct Part {
    // Released before what it is a part of.
    sub: Option<Ours<Buffer<u8>>>,
    pub(crate) pages: PageRange,
    pub(crate) len: usize,
    pub(crate) of: Buffers,
}

impl Part {
    /// Where it lies.
    pub(crate) fn host(&self) -> NonNull<c_void> {
        self.of.view().page_ptr(PageIndex(self.pages.start())).expect("a part of the region").cast()
    }

    pub(crate) fn buffer(&self) -> cl_mem {
        self.sub.as_ref().map_or_else(|| self.of.chunk(self.pages.start()).get(), |sub| sub.get())
    }
}

impl core::fmt::Debug for Buffers {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let inner = &*self.inner;
        f.debug_struct("Buffers").field("device", &inner.queue.name()).field("buffers", &inner.chunks.len()).finish()
    }
}
