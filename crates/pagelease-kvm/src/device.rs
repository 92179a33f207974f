//! [`KvmDevice`]: started, attached to regions, given kernels and jobs.

use core::time::Duration;
use std::sync::{Arc, PoisonError, Weak};

use pagelease::{DeviceHandle, Region, Space, View};
use pagelease_sys::{Span, fork, mem};

use crate::block::{Area, Block};
use crate::engine::{Core, Engine, NoPlace, Place};
use crate::error::{AttachError, LoadError, StartError, SubmitError};
use crate::job::{Job, JobState, Kernel, Loaded, Task};
use crate::traps::{ALIASES, Alias, Traps};

/// How a KVM device is made.
#[derive(Copy, Clone, Debug)]
pub struct KvmConfig {
    /// Virtual processors, of one virtual machine: each runs one lane at a time, in a thread of its own. 1 to 32.
    pub vcpus: usize,
    /// How long a lane may run, by the clock, before it is stopped ([`JobError::Deadline`](crate::JobError::Deadline)). 10 s
    /// unless set; `Duration::MAX`: for ever.
    pub deadline: Duration,
    /// Whether a vCPU's fault claims the page. Without, the device is what one without exclusivity is: updates are lost. For
    /// showing just that.
    pub exclusive: bool,
}

impl Default for KvmConfig {
    fn default() -> Self {
        Self { vcpus: 1, deadline: Duration::from_secs(10), exclusive: true }
    }
}

/// A virtual machine as an accelerator. Its threads end when the last of it, its views, kernels and jobs has gone, once what
/// was submitted is done. A forked child has none of it.
pub struct KvmDevice {
    engine: Arc<Engine>,
}

impl KvmDevice {
    /// Makes the virtual machine, starts its threads, and registers it.
    ///
    /// # Errors
    /// [`StartError`]; [`available`](crate::available) tells beforehand whether KVM can be used.
    pub fn start(space: &Space, config: KvmConfig) -> Result<Self, StartError> {
        if config.vcpus == 0 || config.vcpus > Block::VCPUS_MAX {
            return Err(StartError::Vcpus { asked: config.vcpus, limit: Block::VCPUS_MAX });
        }
        if config.deadline.is_zero() {
            return Err(StartError::NoTime);
        }
        Ok(Self { engine: Arc::new(Engine::start(space, config)?) })
    }

    /// The device as the space knows it.
    #[must_use]
    pub fn handle(&self) -> &DeviceHandle<Traps> {
        &self.engine.core.handle
    }

    /// Attaches it to a region: from now on its kernels reach the region's memory, at the addresses at which the program does.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn attach(&self, region: &Region) -> Result<KvmView, AttachError> {
        let core = &self.engine.core;
        if !region.capabilities().alias {
            return Err(AttachError::NoAlias { backend: region.backend() });
        }
        let view = region.attach(&core.handle)?;
        let memory = view.as_ptr().ok_or(AttachError::NoAlias { backend: region.backend() })?;
        let span = Span::new(memory.addr().get(), memory.len()).expect("a mapping is whole pages");
        let alias = Alias { region: region.id(), span, granule: region.granule().0 };
        // SAFETY: a shared mapping that nobody uses yet.
        unsafe { mem::dont_need(span) }.map_err(|errno| AttachError::NotRevoked { errno })?;
        if !core.handle.insert(alias).map_err(|errno| AttachError::NotTrapped { errno })? {
            return Err(AttachError::TooMany { limit: ALIASES });
        }
        let address = region.as_ptr().addr().get() as u64;
        let place = core.admit(&view, alias, address).map_err(|error| {
            core.expel(alias.region, None);
            match error {
                NoPlace::NoRoom => AttachError::NoRoom { len: span.len() },
                NoPlace::Slot(errno) => AttachError::Slot { errno },
            }
        })?;
        let attachment = Arc::new(Attachment { place, view, core: core.clone() });
        core.attachments().push(Arc::downgrade(&attachment));
        Ok(KvmView { attachment, _engine: self.engine.clone() })
    }

    /// Loads position-independent x86-64 machine code, which is entered at its first byte as a function of the C ABI:
    ///
    /// ```c
    /// uint64_t kernel(const uint64_t *argument, uint64_t lane, uint64_t lanes);
    /// ```
    ///
    /// It may use the baseline of x86-64 with SSE2, a stack of 64 KiB, and the memory of the regions that are attached. There is
    /// no operating system: no system calls, no thread-local storage.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn load(&self, code: &[u8]) -> Result<Kernel, LoadError> {
        if fork::in_child() {
            return Err(LoadError::Forked);
        }
        if code.is_empty() {
            return Err(LoadError::Empty);
        }
        let block = &self.engine.core.machine.block;
        let put = block.put(code, Area::Code).ok_or(LoadError::NoRoom { len: code.len() })?;
        Ok(Kernel { code: Arc::new(Loaded::new(put, block.clone())), engine: self.engine.clone() })
    }

    /// Calls `kernel` once a lane, `lanes` times, on as many vCPUs as are free; in any order, so a lane must not wait for
    /// another. Each is given the address of a copy of `argument`, which it may read. Returns at once.
    ///
    /// # Errors
    /// [`SubmitError`].
    pub fn submit(&self, kernel: &Kernel, argument: &[u64], lanes: u32) -> Result<Job, SubmitError> {
        if fork::in_child() {
            return Err(SubmitError::Forked);
        }
        if !Arc::ptr_eq(&kernel.engine, &self.engine) {
            return Err(SubmitError::ForeignKernel);
        }
        if lanes == 0 {
            return Err(SubmitError::NoLanes);
        }
        let core = &self.engine.core;
        let block = &core.machine.block;
        let bytes: Vec<u8> = argument.iter().flat_map(|word| word.to_le_bytes()).collect();
        let put = block.put(&bytes, Area::Arguments).ok_or(SubmitError::NoRoom { len: bytes.len() })?;
        let argument = Loaded::new(put, block.clone());
        let attached = core.attachments().iter().filter_map(Weak::upgrade).collect();
        let state = Arc::new(JobState::new(kernel.code.clone(), argument, attached, lanes));
        let mut queue = core.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.tasks.extend((0..lanes).map(|lane| Task { job: state.clone(), lane }));
        drop(queue);
        if lanes == 1 {
            core.submitted.notify_one();
        } else {
            core.submitted.notify_all();
        }
        Ok(Job { state, engine: self.engine.clone() })
    }

    /// Declares the device lost, and stops what runs on it: jobs fail with [`JobError::Lost`](crate::JobError::Lost), and its
    /// pages go back to the CPU as they are touched. For a program that has reason to mistrust it.
    pub fn lose(&self) {
        let handle = self.handle();
        handle.declare_lost();
        handle.kick_all();
    }
}

/// A device's view of a region. Dropping it detaches the device, as soon as the jobs are over that were submitted while it was
/// attached; the pages go back to the CPU. A kernel that uses the region after that fails.
///
/// A region that is moved ([`Region::remap`]) stays in the guest where it was: detach it before, and attach it again.
pub struct KvmView {
    attachment: Arc<Attachment>,
    /// Its faults are answered as long as it is there.
    _engine: Arc<Engine>,
}

impl KvmView {
    /// The runtime's view: for claiming ahead of a kernel, and for asking what the device has. A thread of the host's that
    /// touches the view's memory traps like a vCPU.
    #[must_use]
    pub fn view(&self) -> &View {
        &self.attachment.view
    }
}

/// A region's place in the guest, until nobody needs it.
pub(crate) struct Attachment {
    place: Place,
    view: View,
    core: Arc<Core>,
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if !fork::in_child() {
            self.core.expel(self.view.region(), Some(self.place));
        }
    }
}
