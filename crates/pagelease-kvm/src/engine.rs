//! [`Core`]: what the threads of a device share; and [`Engine`], which has the threads.
//!
//! Order of locks: none is taken with another, but the table's (see `traps`), which is taken last.
//!
//! Invariants, on which the unsafe blocks lean: a memory slot of the virtual machine is the block, for the life of the machine,
//! or a view that an `Attachment` keeps; the slot is deleted, with every vCPU outside, before the view goes.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use core::time::Duration;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VmFd};
use pagelease::{DeviceHandle, RegionId, Space, View};
use pagelease_sys::event::Doorbell;
use pagelease_sys::{Errno, Span, fork};

use crate::KvmConfig;
use crate::available::open_uffd;
use crate::block::{BLOCK_GPA, Block};
use crate::device::Attachment;
use crate::error::{JobError, StartError, Unavailable};
use crate::holds::Holds;
use crate::job::Task;
use crate::kick::Kick;
use crate::ranges::Ranges;
use crate::serve::{self, Stream};
use crate::tables::{DATA, LARGE_PAGE, Tables};
use crate::traps::{ALIASES, Alias, Traps};
use crate::vcpu::{Vcpu, errno};
use crate::worker;

/// How long the end of a lane waits for answers to its faults.
const SETTLE_MOST: Duration = Duration::from_millis(20);

/// Where regions are, physically, in the guest: from here on.
const REGIONS_GPA: u64 = 4 << 30;

/// A virtual machine: its memory, and what of that the guest can reach.
pub(crate) struct Machine {
    pub(crate) vm: VmFd,
    pub(crate) block: Arc<Block>,
    cpuid: CpuId,
    layout: Mutex<Layout>,
}

struct Layout {
    tables: Tables,
    physical: Ranges,
    /// Slots that no region has.
    slots: Vec<u32>,
}

/// Where a region is in the guest.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Place {
    slot: u32,
    address: u64,
    gpa: u64,
    len: u64,
}

/// Why a region has no place in the guest.
pub(crate) enum NoPlace {
    NoRoom,
    Slot(Errno),
}

impl Machine {
    pub(crate) fn new(vcpus: usize) -> Result<Self, Unavailable> {
        let kvm = Kvm::new().map_err(|error| Unavailable::Open(errno(error)))?;
        let version = kvm.get_api_version();
        if version != 12 {
            return Err(Unavailable::Version(version));
        }
        let refused = |what| move |errno| Unavailable::Refused { what, errno };
        let vm = kvm.create_vm().map_err(errno).map_err(refused("KVM_CREATE_VM"))?;
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(errno)
            .map_err(refused("KVM_GET_SUPPORTED_CPUID"))?;
        // Intel's processors want three pages below 4 GiB that the guest does not use; others do not know the call.
        let _ = vm.set_tss_address(0xFFFB_D000);
        let block = Arc::new(Block::new(vcpus).map_err(refused("mmap of the guest's own memory"))?);
        let tables = Tables::new(&block).expect("there is room for the block itself");
        let bits = physical_bits(&cpuid);
        let physical = Ranges::new(REGIONS_GPA, 1 << bits);
        #[expect(clippy::cast_possible_truncation, reason = "a small constant")]
        let slots = (1..=ALIASES as u32).rev().collect();
        let machine = Self { vm, block, cpuid, layout: Mutex::new(Layout { tables, physical, slots }) };
        machine.set_slot(0, BLOCK_GPA, machine.block.span()).map_err(refused("KVM_SET_USER_MEMORY_REGION"))?;
        Ok(machine)
    }

    pub(crate) fn vcpu(&self, index: usize) -> Result<Vcpu, Errno> {
        let root = self.layout().tables.root();
        Vcpu::new(&self.vm, index, self.block.clone(), root, &self.cpuid)
    }

    fn layout(&self) -> MutexGuard<'_, Layout> {
        self.layout.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_slot(&self, slot: u32, gpa: u64, span: Span) -> Result<(), Errno> {
        self.set(slot, gpa, span.start() as u64, span.len() as u64)
    }

    fn set(&self, slot: u32, guest_phys_addr: u64, userspace_addr: u64, memory_size: u64) -> Result<(), Errno> {
        let region = kvm_userspace_memory_region { slot, flags: 0, guest_phys_addr, memory_size, userspace_addr };
        // SAFETY: see the invariants: the memory is there as long as the slot.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(errno)
    }

    /// Lets the guest reach `alias` at `address`, while vCPUs run.
    pub(crate) fn map(&self, address: u64, alias: Span) -> Result<Place, NoPlace> {
        let mut layout = self.layout();
        let Layout { tables, physical, slots } = &mut *layout;
        let len = alias.len() as u64;
        let gpa = physical.take(len, address, LARGE_PAGE).ok_or(NoPlace::NoRoom)?;
        let Some(slot) = slots.pop() else {
            physical.give(gpa, len);
            return Err(NoPlace::NoRoom);
        };
        let place = Place { slot, address, gpa, len };
        let mapped = self.set_slot(slot, gpa, alias).map_err(NoPlace::Slot).and_then(|()| {
            tables.map(&self.block, address, gpa, len, DATA).map_err(|_| {
                tables.unmap(&self.block, address, len);
                let _ = self.set(slot, gpa, 0, 0);
                NoPlace::NoRoom
            })
        });
        if mapped.is_err() {
            slots.push(slot);
            physical.give(gpa, len);
        }
        mapped.map(|()| place)
    }

    /// The guest reaches it no more. No vCPU is inside.
    pub(crate) fn unmap(&self, place: Place) {
        let mut layout = self.layout();
        layout.tables.unmap(&self.block, place.address, place.len);
        // Deleting a slot that is there fails only without memory; then it stays, and its number and addresses with it.
        if self.set(place.slot, place.gpa, 0, 0).is_ok() {
            layout.physical.give(place.gpa, place.len);
            layout.slots.push(place.slot);
        }
    }
}

/// How many bits a physical address of the guest has.
fn physical_bits(cpuid: &CpuId) -> u32 {
    let entry = cpuid.as_slice().iter().find(|entry| entry.function == 0x8000_0008);
    entry.map_or(36, |entry| entry.eax & 0xFF).clamp(33, 52)
}

/// A vCPU, as the other threads see it.
#[derive(Default)]
pub(crate) struct VcpuSlot {
    pub(crate) stream: Stream,
    /// Its faults that are being answered.
    answering: AtomicU32,
    /// Why its lane is to stop.
    failure: Mutex<Option<JobError>>,
}

/// The jobs that wait.
#[derive(Default)]
pub(crate) struct Queue {
    pub(crate) tasks: VecDeque<Task>,
    pub(crate) closed: bool,
}

pub(crate) struct Core {
    pub(crate) config: KvmConfig,
    pub(crate) handle: DeviceHandle<Traps>,
    pub(crate) machine: Machine,
    pub(crate) vcpus: Vec<VcpuSlot>,
    pub(crate) holds: Holds,
    pub(crate) bell: Doorbell,
    pub(crate) queue: Mutex<Queue>,
    pub(crate) submitted: Condvar,
    views: Mutex<Vec<(View, usize)>>,
    attachments: Mutex<Vec<Weak<Attachment>>>,
}

impl Core {
    /// The vCPU whose thread is `tid`.
    pub(crate) fn vcpu_of(&self, tid: u32) -> Option<(usize, Kick)> {
        let kicks = self.handle.vcpus.iter().map_while(OnceLock::get);
        kicks.enumerate().find(|(_, kick)| kick.tid() == tid).map(|(vcpu, kick)| (vcpu, *kick))
    }

    fn views(&self) -> MutexGuard<'_, Vec<(View, usize)>> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The view of `region`, and its granule.
    pub(crate) fn view(&self, region: RegionId) -> Option<(View, usize)> {
        self.views().iter().find(|(view, _)| view.region() == region).cloned()
    }

    /// The lane that runs on `vcpu` is to stop.
    pub(crate) fn fail(&self, vcpu: usize, error: JobError) {
        self.vcpus[vcpu].failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        if let Some(kick) = self.handle.vcpus[vcpu].get() {
            kick.leave();
        }
    }

    /// Runs `answer` as an answer to a fault of `vcpu`.
    pub(crate) fn answering(&self, vcpu: usize, answer: impl FnOnce()) {
        let answering = &self.vcpus[vcpu].answering;
        answering.fetch_add(1, Ordering::SeqCst);
        answer();
        answering.fetch_sub(1, Ordering::SeqCst);
    }

    /// Waits until the faults of `vcpu`, which has done its lane, are answered to the end: their pages are mapped, and their words
    /// are just about to say whose they are. Not for long: a fault that was raised twice may be waiting for something else.
    pub(crate) fn settle(&self, vcpu: usize) {
        let begun = Instant::now();
        while self.vcpus[vcpu].answering.load(Ordering::SeqCst) != 0 && begun.elapsed() < SETTLE_MOST {
            thread::yield_now();
        }
    }

    /// Why the lane that runs on `vcpu` is to stop, if it is.
    pub(crate) fn take_failure(&self, vcpu: usize) -> Option<JobError> {
        self.vcpus[vcpu].failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Gives the guest `view`, whose alias and CPU view are given.
    pub(crate) fn admit(&self, view: &View, alias: Alias, address: u64) -> Result<Place, NoPlace> {
        self.views().push((view.clone(), alias.granule));
        self.machine.map(address, alias.span).inspect_err(|_| self.forget(view.region()))
    }

    /// The regions that are attached; among them some that have just gone.
    pub(crate) fn attachments(&self) -> MutexGuard<'_, Vec<Weak<Attachment>>> {
        self.attachments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, region: RegionId) {
        self.attachments().retain(|attachment| attachment.strong_count() != 0);
        let mut views = self.views();
        let gone = views.iter().position(|(view, _)| view.region() == region).map(|at| views.swap_remove(at));
        drop(views);
        drop(gone);
    }

    /// Takes it away again.
    pub(crate) fn expel(&self, region: RegionId, place: Option<Place>) {
        if let Some(place) = place {
            self.handle.paused(|| self.machine.unmap(place));
        }
        self.forget(region);
        self.handle.remove(region);
        self.holds.end_in(region);
    }
}

/// The device's threads. They end when it is dropped, once what was submitted has been done.
pub(crate) struct Engine {
    pub(crate) core: Arc<Core>,
    workers: Vec<JoinHandle<()>>,
    servers: Vec<JoinHandle<()>>,
}

impl Engine {
    pub(crate) fn start(space: &Space, config: KvmConfig) -> Result<Self, StartError> {
        let failed = |what| move |errno| StartError::System { what, errno };
        let machine = Machine::new(config.vcpus)?;
        let uffd = open_uffd()?;
        let vcpus: Result<Vec<_>, _> = (0..config.vcpus).map(|index| machine.vcpu(index)).collect();
        let vcpus = vcpus.map_err(failed("making a vCPU"))?;
        let handle = space.register(Traps::new(uffd))?;
        let core = Arc::new(Core {
            config,
            handle,
            machine,
            vcpus: (0..config.vcpus).map(|_| VcpuSlot::default()).collect(),
            holds: Holds::default(),
            bell: Doorbell::open().map_err(failed("eventfd"))?,
            queue: Mutex::default(),
            submitted: Condvar::new(),
            views: Mutex::default(),
            attachments: Mutex::default(),
        });
        let mut engine = Self { core: core.clone(), workers: Vec::new(), servers: Vec::new() };
        let keeper = core.clone();
        engine.servers.push(spawn("pagelease-kvm-hold".into(), move || {
            let _signals = pagelease_sys::thread::block_all_signals();
            keeper.holds.keep();
        })?);
        for index in 0..config.vcpus {
            let server = core.clone();
            engine.servers.push(spawn(format!("pagelease-kvm-f{index}"), move || {
                let _signals = pagelease_sys::thread::block_all_signals();
                // Descriptors were opened for it all before; without memory for this one, the others answer.
                let _ = serve::serve(&server);
            })?);
        }
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            let worker = core.clone();
            let ready = Arc::new(OnceLock::new());
            let begun = ready.clone();
            let run = move || worker::run(&worker, index, vcpu, &begun);
            engine.workers.push(spawn(format!("pagelease-kvm-{index}"), run)?);
            ready.wait().map_err(failed("timer_create"))?;
        }
        Ok(engine)
    }
}

fn spawn(name: String, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StartError> {
    thread::Builder::new().name(name).spawn(run).map_err(|error| StartError::Thread(error.to_string()))
}

impl Drop for Engine {
    fn drop(&mut self) {
        if fork::in_child() {
            std::mem::forget((std::mem::take(&mut self.workers), std::mem::take(&mut self.servers), self.core.clone()));
            return;
        }
        self.core.queue.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.core.submitted.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
        self.core.bell.ring();
        self.core.holds.close();
        for server in self.servers.drain(..) {
            let _ = server.join();
        }
    }
}

/// Says that something has happened once.
pub(crate) type Once = OnceLock<Result<(), Errno>>;

/// So that the one flag that jobs are cancelled by reads well.
pub(crate) fn is_set(flag: &AtomicBool) -> bool {
    flag.load(Ordering::SeqCst)
}
