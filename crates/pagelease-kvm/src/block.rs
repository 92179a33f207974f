//! [`Block`]: the memory that the virtual machine itself needs: descriptor tables, page tables, stacks, code, arguments.
//!
//! ```text
//!   tables    descriptor tables, the exits of faults, a task segment a vCPU: supervisor's
//!   paging    page tables: supervisor's
//!   stacks    one a vCPU, a page that is not mapped below each: user's, written
//!   code      kernels and the exit they return to: user's, executed
//!   arguments one block a job: user's, read
//! ```
//!
//! The guest has it **at the address where the process has it**. So nothing of the program's can lie there, and an address
//! in it means the same on both sides.
//!
//! Invariants, on which the unsafe blocks lean:
//!
//! 1. The mapping lives as long as the block, is anonymous, and nobody outside of this module has a reference into it: it is
//!    read and written through raw pointers, by offsets that are checked against the area they are for.
//! 2. What an area may be used for in the guest never changes: no present entry of a page table is altered.
//! 3. The guest writes to the stacks only (and, where its hardware does so, to the busy bits of descriptors).

use core::ops::Range;
use std::sync::{Mutex, PoisonError};

use pagelease_sys::mem::{self, Mapping};
use pagelease_sys::{Errno, Span};

use crate::ranges::Ranges;

/// A page of the guest.
pub(crate) const PAGE: usize = 4096;
/// Where the guest has the block, physically.
pub(crate) const BLOCK_GPA: u64 = 1 << 20;

/// GDT, IDT and exits: a page each; task segments: a page.
const FIXED: usize = 4 * PAGE;
/// The stack on which a fault is reported.
const REPORT_STACK: usize = PAGE;
/// A vCPU's stack, without the page below it.
const STACK: usize = 64 << 10;
const PAGING: usize = 16 << 20;
const CODE: usize = 16 << 20;
const ARGUMENTS: usize = 16 << 20;
/// Kernels and arguments start at multiples of it.
const GRAIN: usize = 64;

/// Selectors of the GDT.
pub(crate) const KERNEL_CODE: u16 = 0x08;
pub(crate) const USER_DATA: u16 = 0x18 | 3;
pub(crate) const USER_CODE: u16 = 0x20 | 3;
pub(crate) const TASK: u16 = 0x28;

/// A task segment, without and with its map of ports.
const TASK_SEGMENT: usize = 104;
const TASK_LEN: usize = 128;
pub(crate) const TASK_LIMIT: u32 = 127;

const GDT: [u64; 5] = [0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x00CF_F300_0000_FFFF, 0x00AF_FB00_0000_FFFF];

/// Vectors that the processor itself raises.
pub(crate) const VECTORS: u16 = 32;
/// The port on which a fault of vector *n* is reported is this plus *n*.
pub(crate) const FAULT_PORT: u16 = 0xC0;
/// The port on which a kernel that returns is reported.
pub(crate) const EXIT_PORT: u16 = 0xB0;

/// `out imm8, al; hlt`: four bytes an exit.
fn exit(port: u16) -> [u8; 4] {
    [0xE6, port.to_le_bytes()[0], 0xF4, 0xF4]
}

/// What a part of the block is for.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Area {
    /// The supervisor's, written.
    System,
    /// The user's, written.
    Stack,
    /// The user's, executed.
    Code,
    /// The user's, read.
    Arguments,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Block {
    mapping: Mapping,
    vcpus: usize,
    code: Mutex<Ranges>,
    arguments: Mutex<Ranges>,
}

impl Block {
    /// A block for so many vCPUs, its fixed part written.
    pub(crate) fn new(vcpus: usize) -> Result<Self, Errno> {
        let mapping = Mapping::anonymous(Self::code_at(vcpus) + CODE + ARGUMENTS)?;
        // SAFETY: invariant 1: ours alone, and a forked child has no use for it.
        unsafe { mem::dont_fork(mapping.span()) }?;
        let code = Self::code_at(vcpus);
        let range = |start: usize, len: usize| Ranges::new(start as u64, (start + len) as u64);
        let block = Self {
            mapping,
            vcpus,
            code: Mutex::new(range(code + PAGE, CODE - PAGE)),
            arguments: Mutex::new(range(code + CODE, ARGUMENTS)),
        };
        block.write_fixed();
        Ok(block)
    }

    fn write_fixed(&self) {
        for (index, descriptor) in GDT.into_iter().enumerate() {
            self.write(index * 8, &descriptor.to_le_bytes());
        }
        for vector in 0..usize::from(VECTORS) {
            let stub = self.address(2 * PAGE + vector * 4);
            // An interrupt gate to the supervisor's code; the user may not call it.
            let low = (stub & 0xFFFF) | u64::from(KERNEL_CODE) << 16 | 0x8E00 << 32 | (stub >> 16 & 0xFFFF) << 48;
            self.write(PAGE + vector * 16, &low.to_le_bytes());
            self.write(PAGE + vector * 16 + 8, &(stub >> 32).to_le_bytes());
            #[expect(clippy::cast_possible_truncation, reason = "fewer than 32")]
            self.write(2 * PAGE + vector * 4, &exit(FAULT_PORT + vector as u16));
        }
        for vcpu in 0..self.vcpus {
            let (_, stack_end) = self.report_stack(vcpu);
            // The stack that faults are reported on, and the map of ports: the user may use the exit's, and no other.
            let task = Self::task_at(vcpu);
            self.write(task + 4, &stack_end.to_le_bytes());
            self.write(task + TASK_SEGMENT - 2, &[104, 0]);
            let mut ports = [0xFF; TASK_LEN - TASK_SEGMENT];
            ports[usize::from(EXIT_PORT / 8)] &= !(1 << (EXIT_PORT % 8));
            self.write(task + TASK_SEGMENT, &ports);
        }
        self.write(Self::code_at(self.vcpus), &exit(EXIT_PORT));
    }

    fn task_at(vcpu: usize) -> usize {
        3 * PAGE + vcpu * TASK_LEN
    }

    /// The most vCPUs that there is room for a task segment for.
    pub(crate) const VCPUS_MAX: usize = PAGE / TASK_LEN;

    fn paging_at(vcpus: usize) -> usize {
        FIXED + vcpus * REPORT_STACK
    }

    fn stacks_at(vcpus: usize) -> usize {
        Self::paging_at(vcpus) + PAGING
    }

    fn code_at(vcpus: usize) -> usize {
        Self::stacks_at(vcpus) + vcpus * (STACK + PAGE)
    }

    pub(crate) fn span(&self) -> Span {
        self.mapping.span()
    }

    /// The address of the byte at `offset`: the same here and in the guest.
    pub(crate) fn address(&self, offset: usize) -> u64 {
        (self.mapping.span().start() + offset) as u64
    }

    /// Where the guest has the byte at `offset`, physically.
    pub(crate) fn gpa(offset: usize) -> u64 {
        BLOCK_GPA + offset as u64
    }

    /// What each part is for; what lies between is not mapped in the guest.
    pub(crate) fn areas(&self) -> Vec<(Range<usize>, Area)> {
        let (stacks, code) = (Self::stacks_at(self.vcpus), Self::code_at(self.vcpus));
        let mut areas = vec![
            (0..stacks, Area::System),
            (code..code + CODE, Area::Code),
            (code + CODE..code + CODE + ARGUMENTS, Area::Arguments),
        ];
        areas.extend((0..self.vcpus).map(|vcpu| {
            let end = stacks + (vcpu + 1) * (STACK + PAGE);
            (end - STACK..end, Area::Stack)
        }));
        areas
    }

    pub(crate) fn gdt(&self) -> (u64, u16) {
        (self.address(0), 5 * 8 - 1)
    }

    pub(crate) fn idt(&self) -> (u64, u16) {
        (self.address(PAGE), VECTORS * 16 - 1)
    }

    pub(crate) fn task(&self, vcpu: usize) -> u64 {
        self.address(Self::task_at(vcpu))
    }

    fn report_stack(&self, vcpu: usize) -> (u64, u64) {
        let start = self.address(FIXED + vcpu * REPORT_STACK);
        (start, start + REPORT_STACK as u64)
    }

    /// Where a vCPU's stack ends, as a function finds it that has just been called and returns to the exit.
    pub(crate) fn stack_pointer(&self, vcpu: usize) -> u64 {
        let end = Self::stacks_at(self.vcpus) + (vcpu + 1) * (STACK + PAGE);
        // The ABI: 16 bytes aligned before the call, which pushed the return address.
        let at = end - 64 - 8;
        self.write(at, &self.address(Self::code_at(self.vcpus)).to_le_bytes());
        self.address(at)
    }

    /// The words from `rsp` on, on which vCPU `vcpu` reported a fault; `None` if that is not its stack for it.
    pub(crate) fn report(&self, vcpu: usize, rsp: u64) -> Option<[u64; 6]> {
        let (start, end) = self.report_stack(vcpu);
        if rsp < start || !rsp.is_multiple_of(8) || rsp >= end {
            return None;
        }
        let offset = usize::try_from(rsp - self.address(0)).ok()?;
        let left = usize::try_from((end - rsp) / 8).ok()?;
        let mut words = [0; 6];
        for (index, word) in words.iter_mut().enumerate().take(left) {
            *word = self.word(offset + index * 8);
        }
        Some(words)
    }

    /// Where the page tables lie.
    pub(crate) fn paging(&self) -> Range<usize> {
        let start = Self::paging_at(self.vcpus);
        start..start + PAGING
    }

    /// A word of a page table.
    pub(crate) fn word(&self, offset: usize) -> u64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.span().len());
        // SAFETY: invariant 1: inside, aligned. Volatile: a vCPU may write the accessed and dirty bits.
        unsafe { self.mapping.as_ptr().add(offset).cast::<u64>().read_volatile() }
    }

    pub(crate) fn set_word(&self, offset: usize, word: u64) {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.span().len());
        // SAFETY: invariant 1, as in `word`; one store, so that a walk finds the old or the new entry.
        unsafe { self.mapping.as_ptr().add(offset).cast::<u64>().write_volatile(word) };
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.span().len());
        // SAFETY: invariant 1: inside; no vCPU uses these bytes now: they are of a fixed part before the first runs, of an
        // idle stack, or of what has just been taken.
        unsafe { self.mapping.as_ptr().add(offset).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// Puts `bytes` where the guest can execute (or read) them. `None`: no room.
    pub(crate) fn put(&self, bytes: &[u8], area: Area) -> Option<Put> {
        let len = bytes.len().max(1).checked_next_multiple_of(GRAIN)?;
        let offset =
            self.ranges(area).lock().unwrap_or_else(PoisonError::into_inner).take(len as u64, 0, GRAIN as u64)?;
        let offset = usize::try_from(offset).ok()?;
        self.write(offset, bytes);
        Some(Put { offset, len, area })
    }

    /// Frees what was [`Block::put`]; no vCPU uses it any more.
    pub(crate) fn take_back(&self, put: &Put) {
        let mut ranges = self.ranges(put.area).lock().unwrap_or_else(PoisonError::into_inner);
        ranges.give(put.offset as u64, put.len as u64);
    }

    fn ranges(&self, area: Area) -> &Mutex<Ranges> {
        if area == Area::Code { &self.code } else { &self.arguments }
    }
}

/// What was put into the block.
#[derive(Debug)]
pub(crate) struct Put {
    pub(crate) offset: usize,
    len: usize,
    area: Area,
}
