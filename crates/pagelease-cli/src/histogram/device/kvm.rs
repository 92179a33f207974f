//! A KVM vCPU that counts: a loop of five instructions on the program's own pointers.

use std::sync::atomic::AtomicU8;

use anyhow::{Context, Result};
use pagelease::{Region, Space};
use pagelease_kvm::{Job, Kernel, KvmConfig, KvmDevice, KvmView};

use super::chunks::Chunks;
use super::{Counting, Pending};
use crate::histogram::unit::Unit;

/// `(chunk, units, table)`: adds 1 to a counter for each unit, by one instruction that is not atomic.
///
/// ```text
///   mov rdx, [rdi]; mov rcx, [rdi + 8]; mov r8, [rdi + 16]
///   test rcx, rcx; jz done
///   next: movzx eax, byte [rdx]          (or word)
///   add qword [r8 + rax * 8], 1
///   add rdx, 1                           (or 2)
///   dec rcx; jnz next
///   done: xor eax, eax; ret
/// ```
const BYTES: &[u8] = &[
    0x48, 0x8b, 0x17, 0x48, 0x8b, 0x4f, 0x08, 0x4c, 0x8b, 0x47, 0x10, // the arguments
    0x48, 0x85, 0xc9, 0x74, 0x11, // none: done
    0x0f, 0xb6, 0x02, // movzx eax, byte [rdx]
    0x49, 0x83, 0x04, 0xc0, 0x01, // add qword [r8 + rax * 8], 1
    0x48, 0x83, 0xc2, 0x01, // add rdx, 1
    0x48, 0xff, 0xc9, 0x75, 0xef, // dec rcx; jnz next
    0x31, 0xc0, 0xc3, // return 0
];

pub(super) struct Kvm {
    kernel: Kernel,
    chunks: Chunks,
    unit: Unit,
    /// The address of the table.
    table: u64,
    _views: [KvmView; 2],
    device: KvmDevice,
}

impl Kvm {
    pub(super) fn start(space: &Space, table: &Region, unit: Unit) -> Result<Self> {
        pagelease_kvm::available()?;
        let device = KvmDevice::start(space, KvmConfig::default())?;
        let chunks = Chunks::new(space)?;
        let views = [device.attach(table)?, device.attach(&chunks.region)?];
        let mut code = BYTES.to_vec();
        if unit == Unit::Pair {
            // movzx eax, word [rdx]; add rdx, 2
            (code[17], code[27]) = (0xb7, 2);
        }
        let kernel = device.load(&code)?;
        let table = table.as_ptr().addr().get() as u64;
        Ok(Self { kernel, chunks, unit, table, _views: views, device })
    }
}

impl Counting for Kvm {
    fn submit(&mut self, bytes: &[AtomicU8]) -> Result<Box<dyn Pending>> {
        let slot = self.chunks.put(bytes);
        let chunk = self.chunks.region.as_ptr().addr().get() + slot.start;
        let units = self.unit.count(bytes.len());
        let job = self.device.submit(&self.kernel, &[chunk as u64, units as u64, self.table], 1)?;
        Ok(Box::new(job))
    }
}

impl Pending for Job {
    fn wait(self: Box<Self>) -> Result<()> {
        (*self).wait().context("the KVM device failed")?;
        Ok(())
    }
}
