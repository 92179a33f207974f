//! [`Run`]: one submission of a kernel: what it is given, checked, claimed, recorded and handed to the driver.
//!
//! Nothing is left to the driver to check: those in software check nothing.

use std::sync::Arc;

use ash::vk;
use pagelease::submit::Use;

use crate::device::{Submission, VulkanDevice};
use crate::error::RunError;
use crate::flight::Flight;
use crate::gpu::Gpu;
use crate::import::{Slice, Window};
use crate::kernel::Kernel;
use crate::record::{Descriptor, Part, record};
use crate::split::{Elements, part};

/// A kernel about to be run: what it is given. Made by [`VulkanDevice::run`].
///
/// ```text
///   device.run(&kernel).bind(0, table.all()).groups([64, 1, 1])?.wait()?
///   device.run(&kernel).elements(0, words.all(), 4).over(1 << 20)?.wait()?
/// ```
#[must_use = "nothing runs until groups or over is called"]
pub struct Run<'a> {
    device: &'a VulkanDevice,
    kernel: &'a Kernel,
    bound: Vec<Bound<'a>>,
    immediates: Vec<u8>,
    first_at: Option<usize>,
}

/// What a binding is given.
struct Bound<'a> {
    binding: u32,
    slice: Slice<'a>,
    /// Bytes of an element, if it is split with the dispatch.
    stride: Option<u64>,
}

impl<'a> Run<'a> {
    pub(crate) fn new(device: &'a VulkanDevice, kernel: &'a Kernel) -> Self {
        Self { device, kernel, bound: Vec::new(), immediates: Vec::new(), first_at: None }
    }

    /// Gives binding `binding` the bytes of `slice`, whole: each part of a split dispatch sees all of them.
    pub fn bind(mut self, binding: u32, slice: Slice<'a>) -> Self {
        self.bound.push(Bound { binding, slice, stride: None });
        self
    }

    /// Gives binding `binding` the elements in `slice`, of `stride` bytes each, one an invocation: where a dispatch over them has
    /// to be split, each part sees its own, from index 0 on. For [`Run::over`].
    pub fn elements(mut self, binding: u32, slice: Slice<'a>, stride: u64) -> Self {
        self.bound.push(Bound { binding, slice, stride: Some(stride) });
        self
    }

    /// Gives the shader its immediates (`var<immediate>`; push constants): as many bytes as it has.
    pub fn immediates(mut self, bytes: &[u8]) -> Self {
        self.immediates = bytes.to_vec();
        self
    }

    /// Has the number of a part's first element stored, as a `u32`, at byte `offset` of the immediates: with it a shader knows
    /// which elements it has when a dispatch is split. Numbers beyond 32 bits are cut off.
    pub fn first_element_at(mut self, offset: usize) -> Self {
        self.first_at = Some(offset);
        self
    }

    /// Claims what it was given, and hands one dispatch of `groups` workgroups to the driver. Returns once the driver has it; waits
    /// before that for what is in the way, as [`View::claim`](pagelease::View::claim) does. Any thread; not a signal handler.
    ///
    /// # Errors
    /// [`RunError`].
    pub fn groups(self, groups: [u32; 3]) -> Result<Submission, RunError> {
        let limit = self.gpu().profile.limits.groups;
        if groups.iter().zip(limit).any(|(&groups, limit)| groups == 0 || groups > limit) {
            return Err(RunError::Groups { groups, limit });
        }
        if let Some(bound) = self.bound.iter().find(|bound| bound.stride.is_some()) {
            // Elements are for a dispatch over them.
            let (binding, stride) = (bound.binding, bound.stride.unwrap_or_default());
            return Err(RunError::Count { binding, len: bound.slice.len, elements: 0, stride });
        }
        self.submit(&[Part { groups, first: 0, count: 0 }])
    }

    /// The same with an invocation for each of `elements` elements, in one dimension, split in as many dispatches as the device's
    /// limits take. The last workgroup may have more invocations than there are elements left: the shader has to compare its index
    /// with `arrayLength`.
    ///
    /// # Errors
    /// [`RunError`].
    pub fn over(self, elements: u64) -> Result<Submission, RunError> {
        let limits = self.gpu().profile.limits;
        let takes = &self.kernel.core.takes;
        let mut split = Vec::new();
        for bound in &self.bound {
            if let Some(stride) = bound.stride {
                let (binding, len) = (bound.binding, bound.slice.len);
                if elements.checked_mul(stride) != Some(len) {
                    return Err(RunError::Count { binding, len, elements, stride });
                }
                let limit = bound.slice.buffer.binding_limit();
                split.push(Elements { binding, stride, limit, alignment: limits.offset_alignment });
            }
        }
        if elements == 0 {
            return Err(RunError::Groups { groups: [0, 1, 1], limit: limits.groups });
        }
        let most = part(takes.group_size[0], limits.groups[0], &split)?;
        let mut parts = Vec::new();
        let mut first = 0;
        while first < elements {
            let count = most.min(elements - first);
            let groups = count.div_ceil(u64::from(takes.group_size[0].max(1)));
            let groups = [u32::try_from(groups).expect("a part has no more groups than the device takes"), 1, 1];
            parts.push(Part { groups, first, count });
            first += count;
        }
        self.submit(&parts)
    }

    fn gpu(&self) -> &'a Arc<Gpu> {
        self.device.gpu()
    }

    /// Whether everything is bound once, and as it may be.
    fn check(&self) -> Result<(), RunError> {
        let takes = &self.kernel.core.takes;
        let foreign = self.bound.iter().any(|bound| !Arc::ptr_eq(&bound.slice.buffer.gpu, self.gpu()));
        if foreign || !Arc::ptr_eq(&self.kernel.core.gpu, self.gpu()) {
            return Err(RunError::Foreign);
        }
        for bound in &self.bound {
            let Some(taken) = takes.bindings.iter().find(|taken| taken.number == bound.binding) else {
                let has = takes.bindings.iter().map(|taken| taken.number).collect();
                return Err(RunError::NoBinding { binding: bound.binding, has });
            };
            self.check_bytes(bound, taken.least)?;
        }
        for taken in &takes.bindings {
            let count = self.bound.iter().filter(|bound| bound.binding == taken.number).count();
            if count != 1 {
                return Err(RunError::NotBoundOnce { binding: taken.number, count });
            }
        }
        let (given, wanted) = (self.immediates.len(), takes.immediates);
        let first_fits = self.first_at.is_none_or(|at| at.is_multiple_of(4) && at.saturating_add(4) <= given);
        if given != wanted as usize || !first_fits {
            return Err(RunError::Immediates { given, wanted });
        }
        Ok(())
    }

    fn check_bytes(&self, bound: &Bound<'_>, least: u64) -> Result<(), RunError> {
        let &Bound { binding, slice: Slice { buffer, start, len }, stride } = bound;
        let end = start.saturating_add(len);
        if len == 0 || end > buffer.len() {
            return Err(RunError::OutOfRange { binding, start, end, len: buffer.len() });
        }
        let alignment = self.gpu().profile.limits.offset_alignment;
        if !start.is_multiple_of(alignment) || !len.is_multiple_of(4) {
            return Err(RunError::Misaligned { binding, start, len, alignment });
        }
        if len < least {
            return Err(RunError::TooShort { binding, len, least });
        }
        let limit = buffer.binding_limit();
        if stride.is_none() && len > limit {
            return Err(RunError::TooLong { binding, len, limit });
        }
        Ok(())
    }

    /// Whether a part has as much as the shader takes without asking: what is shorter it would reach beyond.
    fn check_part(&self, bound: &Bound<'_>, part: &Part) -> Result<(), RunError> {
        let takes = &self.kernel.core.takes;
        let least = takes.bindings.iter().find(|taken| taken.number == bound.binding).map_or(0, |taken| taken.least);
        match bound.stride {
            Some(stride) if part.count * stride < least => {
                Err(RunError::TooShort { binding: bound.binding, len: part.count * stride, least })
            }
            _ => Ok(()),
        }
    }

    /// The immediates of a part.
    fn immediates_of(&self, part: &Part) -> Vec<u8> {
        let mut immediates = self.immediates.clone();
        if let Some(at) = self.first_at {
            #[expect(clippy::cast_possible_truncation, reason = "documented: 32 bits of it")]
            immediates[at..at + 4].copy_from_slice(&(part.first as u32).to_ne_bytes());
        }
        immediates
    }

    fn submit(self, parts: &[Part]) -> Result<Submission, RunError> {
        self.check()?;
        let uses: Vec<Use<'_>> = self
            .bound
            .iter()
            .map(|Bound { slice: Slice { buffer, start, len }, .. }| Use {
                view: buffer.view(),
                pages: buffer.pages_of(*start..start + len),
            })
            .collect();
        let mut windows = Vec::new();
        let mut described = Vec::new();
        for part in parts {
            for bound in &self.bound {
                self.check_part(bound, part)?;
                described.push(bound.describe(part, &mut windows)?);
            }
        }
        let submission = self.device.submitter().submit(&uses, |queue| {
            let gpu = &queue.gpu;
            let sets = u32::try_from(parts.len()).unwrap_or(u32::MAX);
            let descriptors = u32::try_from(described.len()).unwrap_or(u32::MAX);
            let slot = gpu.slot(sets, descriptors)?;
            let recorded = record(gpu, &slot, &self.kernel.core, parts, &described, |part| self.immediates_of(part))
                .and_then(|()| gpu.submit(&slot));
            if let Err(error) = recorded {
                // The driver has not taken it.
                gpu.put_back(slot);
                return Err(error);
            }
            Ok(Flight::new(gpu.clone(), slot, self.kernel.core.clone(), windows))
        });
        Ok(submission?)
    }
}

impl Bound<'_> {
    /// The bytes of a part, in the window that has them.
    fn describe(&self, part: &Part, windows: &mut Vec<Arc<Window>>) -> Result<Descriptor, RunError> {
        let (start, len) = match self.stride {
            Some(stride) => (self.slice.start + part.first * stride, part.count * stride),
            None => (self.slice.start, self.slice.len),
        };
        let (window, begin) = self.slice.buffer.window(start)?;
        let info = vk::DescriptorBufferInfo { buffer: window.buffer, offset: start - begin, range: len };
        if !windows.iter().any(|kept| Arc::ptr_eq(kept, &window)) {
            windows.push(window);
        }
        Ok(Descriptor { binding: self.binding, info })
    }
}
