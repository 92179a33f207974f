//! [`Vcpu`]: one virtual processor, in 64-bit mode at privilege level 3, from the call of a function to its return.
//!
//! ```text
//!   enter     registers of a function that has just been called: the arguments, the stack, the exit as return address
//!   run       until it returns (`out` on the exit's port), faults (`out` on the fault's port, by the supervisor's exit),
//!             leaves its memory, or is interrupted: then the state is whole, and it runs on
//!   reset     after anything but a return: as new
//! ```
//!
//! Invariant: system registers are those of level 3 whenever `enter` is called.

use std::sync::Arc;

use kvm_bindings::{CpuId, kvm_dtable, kvm_fpu, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use pagelease_sys::Errno;

use crate::block::{Block, EXIT_PORT, FAULT_PORT, TASK, TASK_LIMIT, USER_CODE, USER_DATA, VECTORS};
use crate::kick;

const CR0: u64 = 1 << 31 | 1 << 16 | 1 << 5 | 1 << 4 | 1 << 1 | 1; // PG WP NE ET MP PE
const CR4: u64 = 1 << 10 | 1 << 9 | 1 << 5; // OSXMMEXCPT OSFXSR PAE
const EFER: u64 = 1 << 11 | 1 << 10 | 1 << 8; // NXE LMA LME
/// None but the one that is always set. Ports are opened by the task segment's map, since not every KVM lets level 3 have the
/// privilege for all of them (IOPL).
const RFLAGS: u64 = 1 << 1;
const PAGE_FAULT: u16 = 14;

/// Why a vCPU stopped.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Stop {
    /// The function returned this.
    Returned(u64),
    /// Interrupted by a signal: it can run on.
    Interrupted,
    /// It used an address that is not mapped, or not for that.
    PageFault { address: u64, error: u64, instruction: u64 },
    /// Another fault of the processor's.
    Fault { vector: u8, error: u64, instruction: u64 },
    /// It used guest memory that is no more.
    NoMemory { gpa: u64, write: bool, instruction: u64 },
    /// KVM gave up on it.
    Broken { what: &'static str, instruction: u64 },
}

pub(crate) struct Vcpu {
    fd: VcpuFd,
    index: usize,
    block: Arc<Block>,
    system: kvm_sregs,
}

impl Vcpu {
    pub(crate) fn new(vm: &VmFd, index: usize, block: Arc<Block>, root: u64, cpuid: &CpuId) -> Result<Self, Errno> {
        let fd = vm.create_vcpu(index as u64).map_err(errno)?;
        fd.set_cpuid2(cpuid).map_err(errno)?;
        kick::unblock_inside(&fd)?;
        let system = system(fd.get_sregs().map_err(errno)?, &block, index, root);
        let mut vcpu = Self { fd, index, block, system };
        vcpu.reset()?;
        Ok(vcpu)
    }

    /// Makes it as new.
    pub(crate) fn reset(&mut self) -> Result<(), Errno> {
        // What an access outside of memory still owes the registers is paid before they are set.
        self.fd.set_kvm_immediate_exit(1);
        let _ = self.fd.run();
        self.fd.set_kvm_immediate_exit(0);
        self.fd.set_sregs(&self.system).map_err(errno)?;
        self.fd.set_fpu(&kvm_fpu { fcw: 0x37F, mxcsr: 0x1F80, ..Default::default() }).map_err(errno)
    }

    /// What runs next is a call of the function at `entry`.
    pub(crate) fn enter(&mut self, entry: u64, arguments: [u64; 3]) -> Result<(), Errno> {
        let [rdi, rsi, rdx] = arguments;
        let rsp = self.block.stack_pointer(self.index);
        let regs = kvm_regs { rip: entry, rsp, rdi, rsi, rdx, rflags: RFLAGS, ..Default::default() };
        self.fd.set_regs(&regs).map_err(errno)
    }

    /// Runs it until it stops.
    pub(crate) fn run(&mut self) -> Result<Stop, Errno> {
        let stop = match self.fd.run() {
            Err(error) => {
                return match errno(error) {
                    Errno::INTR => Ok(Stop::Interrupted),
                    errno => Err(errno),
                };
            }
            Ok(VcpuExit::Intr) => return Ok(Stop::Interrupted),
            Ok(VcpuExit::IoOut(port, _) | VcpuExit::IoIn(port, _)) => Exit::Port(port),
            Ok(VcpuExit::MmioRead(gpa, _)) => Exit::NoMemory { gpa, write: false },
            Ok(VcpuExit::MmioWrite(gpa, _)) => Exit::NoMemory { gpa, write: true },
            Ok(VcpuExit::Shutdown) => Exit::Broken("a fault while a fault was reported (triple fault)"),
            Ok(VcpuExit::InternalError) => {
                Exit::Broken("KVM_EXIT_INTERNAL_ERROR: an instruction that it cannot emulate")
            }
            Ok(VcpuExit::FailEntry(..)) => Exit::Broken("KVM_EXIT_FAIL_ENTRY"),
            Ok(_) => Exit::Broken("an exit that no kernel of this kind makes"),
        };
        let regs = self.fd.get_regs().map_err(errno)?;
        let instruction = regs.rip;
        match stop {
            Exit::Port(EXIT_PORT) => Ok(Stop::Returned(regs.rax)),
            Exit::Port(port) => self.fault(port, &regs),
            Exit::NoMemory { gpa, write } => Ok(Stop::NoMemory { gpa, write, instruction }),
            Exit::Broken(what) => Ok(Stop::Broken { what, instruction }),
        }
    }

    /// Where it is; 0 if KVM does not say.
    pub(crate) fn instruction(&self) -> u64 {
        self.fd.get_regs().map_or(0, |regs| regs.rip)
    }

    /// The supervisor's exit reports a fault: no other port is open to a kernel.
    fn fault(&self, port: u16, regs: &kvm_regs) -> Result<Stop, Errno> {
        let system = self.fd.get_sregs().map_err(errno)?;
        let vector = port.wrapping_sub(FAULT_PORT);
        let Some(words) = self.block.report(self.index, regs.rsp).filter(|_| vector < VECTORS) else {
            return Ok(Stop::Broken { what: "a report of a fault that makes no sense", instruction: regs.rip });
        };
        // These push an error code; the others do not.
        let (error, instruction) = match vector {
            8 | 10..=14 | 17 | 21 | 29 | 30 => (words[0], words[1]),
            _ => (0, words[0]),
        };
        Ok(match vector {
            PAGE_FAULT => Stop::PageFault { address: system.cr2, error, instruction },
            _ => Stop::Fault { vector: vector.to_le_bytes()[0], error, instruction },
        })
    }
}

enum Exit {
    Port(u16),
    NoMemory { gpa: u64, write: bool },
    Broken(&'static str),
}

pub(crate) fn errno(error: kvm_ioctls::Error) -> Errno {
    Errno::from_raw_os_error(error.errno())
}

fn system(mut sregs: kvm_sregs, block: &Block, index: usize, root: u64) -> kvm_sregs {
    let segment = |selector, type_, dpl, code: bool| kvm_segment {
        base: 0,
        limit: 0xFFFF_FFFF,
        selector,
        type_,
        present: 1,
        dpl,
        db: u8::from(!code),
        s: 1,
        l: u8::from(code),
        g: 1,
        ..Default::default()
    };
    let data = segment(USER_DATA, 3, 3, false);
    sregs.cs = segment(USER_CODE, 11, 3, true);
    (sregs.ss, sregs.ds, sregs.es, sregs.fs, sregs.gs) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        base: block.task(index),
        limit: TASK_LIMIT,
        selector: TASK,
        type_: 11,
        present: 1,
        ..Default::default()
    };
    sregs.ldt = kvm_segment { unusable: 1, type_: 2, ..Default::default() };
    let table = |(base, limit)| kvm_dtable { base, limit, ..Default::default() };
    (sregs.gdt, sregs.idt) = (table(block.gdt()), table(block.idt()));
    (sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.efer) = (CR0, 0, root, CR4, EFER);
    sregs
}
