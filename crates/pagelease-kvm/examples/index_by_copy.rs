//! The job of `index` as it is done today, without pagelease: a virtual machine has memory of its own. What the guest works on
//! is copied in, since nobody knows which nodes it will need; its pointers are wrong there, and have to be mended on the way; and
//! the program must wait until all of it has been copied out again.
//!
//! ```sh
//! cargo run --release -p pagelease-kvm --example index_by_copy
//! ```

mod common;

use std::error::Error;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use common::{Index, ROUNDS, WORDS, check, code, keys};
use kvm_bindings::{kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use pagelease_sys::mem::Mapping;

// Where things are in the guest's memory.
const TABLES: usize = 0x1000;
const TASK: usize = 0x8000;
const STACK_END: usize = 0xF000;
const CODE: usize = 0x1_0000;
const ARGUMENT: usize = 0x2_0000;
const INDEX: usize = 0x20_0000;
const EXIT_PORT: u16 = 0xB0;

fn main() -> Result<(), Box<dyn Error>> {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(why) => {
            println!("skipped: /dev/kvm: {why}");
            return Ok(());
        }
    };
    // The program's memory, with the program's data structure in it.
    let words: Vec<AtomicU64> = (0..WORDS).map(|_| AtomicU64::new(0)).collect();
    let index = Index::build(&words);

    // A virtual machine, with memory for a copy of it.
    let len = (INDEX + WORDS * 8).next_multiple_of(2 << 20);
    let guest = Guest { memory: Mapping::anonymous(len)? };
    let vm = kvm.create_vm()?;
    let region = kvm_userspace_memory_region {
        memory_size: len as u64,
        userspace_addr: guest.memory.span().start() as u64,
        ..Default::default()
    };
    // SAFETY: the memory outlives the virtual machine, which is dropped first.
    unsafe { vm.set_user_memory_region(region)? };
    let mut vcpu = vm.create_vcpu(0)?;
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)?)?;
    guest.write_tables(len);
    let code = code("index.c")?;
    guest.write(CODE, &code);
    let exit = CODE + code.len().next_multiple_of(16);
    guest.write(exit, &[0xE6, EXIT_PORT.to_le_bytes()[0]]);

    let begin = Instant::now();
    for round in 0..ROUNDS {
        let (of_device, of_program) = keys(round);
        // Copied in: all of it, and what makes a pointer of the program's one of the guest's.
        guest.copy_in(INDEX, &words);
        let moved = (INDEX as u64).wrapping_sub(words.as_ptr().addr() as u64);
        let argument = [&[INDEX as u64, moved, of_device.len() as u64], &of_device[..]].concat();
        guest.write_words(ARGUMENT, &argument);
        enter(&vcpu, exit, &guest)?;
        match vcpu.run() {
            Ok(VcpuExit::IoOut(EXIT_PORT, _)) => {}
            other => return Err(format!("the guest stopped: {other:?}").into()),
        }
        // Copied out. Then, and not before, it is the program's turn: what it changed meanwhile would be lost.
        guest.copy_out(INDEX, &words);
        of_program.iter().for_each(|&key| index.count(key));
    }
    let took = begin.elapsed();
    check(&index);
    println!("{ROUNDS} rounds on an index of {} MiB, copied in and out: {took:?}", (WORDS * 8) >> 20);
    Ok(())
}

/// The guest's memory, which is the host's to read and write while no vCPU runs.
struct Guest {
    memory: Mapping,
}

impl Guest {
    fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.memory.span().len());
        // SAFETY: inside the mapping, which nobody else uses now.
        unsafe { self.memory.as_ptr().add(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    fn write_words(&self, at: usize, words: &[u64]) {
        words.iter().enumerate().for_each(|(index, word)| self.write(at + index * 8, &word.to_le_bytes()));
    }

    fn words(&self, at: usize, count: usize) -> *mut u64 {
        assert!(at.is_multiple_of(8) && at + count * 8 <= self.memory.span().len());
        // SAFETY: inside the mapping.
        unsafe { self.memory.as_ptr().add(at).cast() }
    }

    fn copy_in(&self, at: usize, words: &[AtomicU64]) {
        // SAFETY: there is room for as many, and nobody uses either side now.
        unsafe { self.words(at, words.len()).copy_from_nonoverlapping(words.as_ptr().cast(), words.len()) };
    }

    fn copy_out(&self, at: usize, words: &[AtomicU64]) {
        // SAFETY: as above; atomics may be written to through a shared reference.
        unsafe {
            self.words(at, words.len()).copy_to_nonoverlapping(words.as_ptr().cast::<u64>().cast_mut(), words.len());
        };
    }

    /// Page tables that map the guest's memory to itself, for level 3, and a task segment that opens the ports to it.
    fn write_tables(&self, len: usize) {
        const TABLE_FLAGS: u64 = 0b111;
        const LARGE_PAGE: u64 = 0xE7;
        let directory = TABLES + 0x2000;
        self.write_words(TABLES, &[(TABLES + 0x1000) as u64 | TABLE_FLAGS]);
        self.write_words(TABLES + 0x1000, &[directory as u64 | TABLE_FLAGS]);
        let pages = len >> 21;
        assert!(pages <= 512, "one directory: up to 1 GiB");
        self.write_words(directory, &(0..pages as u64).map(|page| page << 21 | LARGE_PAGE).collect::<Vec<_>>());
        self.write(TASK + 102, &[104, 0]);
    }
}

/// The vCPU is about to execute the code as a function that has just been called and returns to `exit`.
fn enter(vcpu: &VcpuFd, exit: usize, guest: &Guest) -> Result<(), Box<dyn Error>> {
    let mut sregs = vcpu.get_sregs()?;
    let segment = |selector, type_, l, db| kvm_segment {
        limit: 0xFFFF_FFFF,
        selector,
        type_,
        present: 1,
        dpl: 3,
        s: 1,
        l,
        db,
        g: 1,
        ..Default::default()
    };
    let data = segment(0x1B, 3, 0, 1);
    sregs.cs = segment(0x23, 11, 1, 0);
    (sregs.ss, sregs.ds, sregs.es, sregs.fs, sregs.gs) = (data, data, data, data, data);
    sregs.tr = kvm_segment { base: TASK as u64, limit: 0x2067, type_: 11, present: 1, ..Default::default() };
    sregs.cr3 = TABLES as u64;
    (sregs.cr0, sregs.cr4, sregs.efer) = (0x8000_0033, 0x620, 0x500);
    vcpu.set_sregs(&sregs)?;
    let rsp = STACK_END - 8;
    guest.write_words(rsp, &[exit as u64]);
    let regs =
        kvm_regs { rip: CODE as u64, rsp: rsp as u64, rdi: ARGUMENT as u64, rdx: 1, rflags: 2, ..Default::default() };
    Ok(vcpu.set_regs(&regs)?)
}
