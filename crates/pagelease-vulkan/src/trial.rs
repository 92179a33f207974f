//! Trying a driver out before it is trusted with memory.
//!
//! Mesa's lavapipe bounded every loop of a shader to 65,535 iterations in all, as versions up to 22.3 and some later ones do, and
//! said nothing. A result that is wrong without a word is worse than none, so such a driver is refused, by what it does and not by
//! its number.

use std::alloc::{Layout as Memory, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use ash::vk;

use crate::adapter::Adapter;
use crate::error::Unfit;
use crate::gpu::Gpu;
use crate::import::Window;
use crate::kernel::Kernel;
use crate::record::{self, Descriptor, Part};
use crate::shader::Shader;

/// Counts in a loop that the compiler cannot see through.
const SHADER: &str = "
    @group(0) @binding(0) var<storage, read_write> words: array<atomic<u32>>;
    @compute @workgroup_size(1) fn count() {
        let asked = atomicLoad(&words[1]);
        for (var i = 0u; i < asked; i++) { atomicAdd(&words[0], 1u); }
    }";

const ASKED: u32 = 70_000;

/// It takes a millisecond; a driver that does not answer is no use.
const LIMIT: Duration = Duration::from_secs(10);

pub(crate) fn run(adapter: &Adapter) -> Result<(), Unfit> {
    let ran = count(adapter).map_err(Unfit::Trial)?;
    if ran == ASKED {
        return Ok(());
    }
    Err(Unfit::EndsLoops { driver: adapter.driver().to_owned(), ran, asked: ASKED })
}

fn count(adapter: &Adapter) -> Result<u32, String> {
    let said = |error: &dyn std::error::Error| error.to_string();
    let gpu = Gpu::open(adapter).map_err(|error| said(&error))?;
    let limits = gpu.profile.limits;
    let shader = Shader::wgsl(SHADER, "count", false, &limits).map_err(|error| said(&error))?;
    // SAFETY: naga has validated the shader.
    let kernel = unsafe { Kernel::new(&gpu, shader) }.map_err(|error| said(&error))?;
    let memory = Arc::new(Words::new(limits.import_alignment.max(4096))?);
    memory.store(1, ASKED);
    // SAFETY: the allocation is as long and aligned as this, and `memory`, which the window keeps, frees it.
    let window =
        unsafe { Window::import(&gpu, memory.start.cast(), memory.layout.size() as u64, Box::new(memory.clone())) }
            .map_err(|error| said(&error))?;
    let slot = gpu.slot(1, 1).map_err(|error| said(&error))?;
    let described =
        [Descriptor { binding: 0, info: vk::DescriptorBufferInfo { buffer: window.buffer, offset: 0, range: 8 } }];
    let parts = [Part { groups: [1; 3], first: 0, count: 0 }];
    record::record(&gpu, &slot, &kernel.core, &parts, &described, |_| Vec::new())
        .and_then(|()| gpu.submit(&slot))
        .map_err(|error| said(&error))?;
    if !gpu.wait(&slot, LIMIT).map_err(|error| said(&error))? {
        // It may still run: what it uses stays.
        core::mem::forget((window, kernel, slot, gpu));
        return Err(format!("a loop of {ASKED} iterations has not ended after {LIMIT:?}"));
    }
    gpu.put_back(slot);
    Ok(memory.load(0))
}

/// Memory for the shader.
struct Words {
    start: NonNull<u32>,
    layout: Memory,
}

// SAFETY: it is accessed by volatile loads and stores only, and freed once.
unsafe impl Send for Words {}
// SAFETY: as above; stores come before the submission, and loads after its end.
unsafe impl Sync for Words {}

impl Words {
    fn new(bytes: u64) -> Result<Self, String> {
        let bytes = usize::try_from(bytes).map_err(|error| error.to_string())?;
        let layout = Memory::from_size_align(bytes, bytes).map_err(|error| error.to_string())?;
        // SAFETY: not of no bytes.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or("out of memory")?;
        Ok(Self { start: start.cast(), layout })
    }

    fn store(&self, word: usize, value: u32) {
        // SAFETY: there are two words at least.
        unsafe { self.start.add(word).write_volatile(value) };
    }

    fn load(&self, word: usize) -> u32 {
        // SAFETY: as above.
        unsafe { self.start.add(word).read_volatile() }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: allocated so.
        unsafe { dealloc(self.start.as_ptr().cast(), self.layout) };
    }
}
