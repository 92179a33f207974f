//! What the machine says about the instruction that a signal interrupted. Signal-safe.

use libc::{sigset_t, ucontext_t};

/// What an instruction that faulted was to do with the address.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum Access {
    /// Read it.
    Read,
    /// Write to it, or both.
    Write,
    /// Be fetched from it.
    Fetch,
}

/// The mask in force when the signal came.
///
/// # Safety
///
/// `context` is what the kernel passed to a signal handler. It fills in the first 64 bits of the mask; the rest of
/// libc's larger type is taken as empty.
pub(super) unsafe fn interrupted_mask(context: *const ucontext_t) -> sigset_t {
    // SAFETY: a set of zeroes is a valid one.
    let mut mask: sigset_t = unsafe { core::mem::zeroed() };
    // SAFETY: the caller's promise; the kernel's mask is 64 bits, and libc's type begins with them.
    unsafe {
        let word = (&raw const (*context).uc_sigmask).cast::<u64>().read();
        (&raw mut mask).cast::<u64>().write(word);
    }
    mask
}

/// What the faulting instruction was to do; `None` when it was not a page fault.
///
/// # Safety
///
/// `context` is what the kernel passed to a handler for a signal that it raised itself.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn access(context: *const ucontext_t) -> Option<Access> {
    /// Vector 14: a page fault. Then the error code is that of one.
    const PAGE_FAULT: i64 = 14;
    /// `X86_PF_WRITE`.
    const WRITE: i64 = 1 << 1;
    /// `X86_PF_INSTR`.
    const FETCH: i64 = 1 << 4;
    // Both indices are small and positive.
    const TRAP: usize = libc::REG_TRAPNO.cast_unsigned() as usize;
    const ERROR: usize = libc::REG_ERR.cast_unsigned() as usize;

    // SAFETY: the caller's promise.
    let registers = unsafe { &(*context).uc_mcontext.gregs };
    (registers[TRAP] == PAGE_FAULT).then(|| match registers[ERROR] {
        error if error & FETCH != 0 => Access::Fetch,
        error if error & WRITE != 0 => Access::Write,
        _ => Access::Read,
    })
}

/// What the faulting instruction was to do; `None` when the kernel does not say, or it was something else.
///
/// The fault's syndrome is one of the records that follow the registers, each with a magic number and its length.
///
/// # Safety
///
/// `context` is what the kernel passed to a handler for a signal that it raised itself.
#[cfg(target_arch = "aarch64")]
pub(super) unsafe fn access(context: *const ucontext_t) -> Option<Access> {
    use core::mem::offset_of;

    /// Where the records begin, and how many bytes there are: `__reserved` of `struct sigcontext`, aligned to 16.
    const RECORDS: usize = 288;
    const RECORDS_LEN: usize = 4096;
    const ESR_MAGIC: u32 = 0x4553_5201;
    /// `struct _aarch64_ctx`: magic, length.
    const HEADER_LEN: usize = 8;
    /// Exception classes: data abort, from user mode and from the kernel.
    const DATA_ABORTS: [u64; 2] = [0x24, 0x25];
    /// The same of instruction aborts.
    const INSTRUCTION_ABORTS: [u64; 2] = [0x20, 0x21];
    /// `WnR` of a data abort's syndrome.
    const WRITE: u64 = 1 << 6;
    /// `CM`: a cache maintenance instruction, which sets `WnR` whatever it does.
    const CACHE_MAINTENANCE: u64 = 1 << 8;
    const _: () = {
        assert!(offset_of!(ucontext_t, uc_mcontext) == 176);
        assert!(offset_of!(libc::mcontext_t, pstate) == 272);
    };

    // SAFETY: the caller's promise; the records are part of the context.
    let records = unsafe { (&raw const (*context).uc_mcontext).cast::<u8>().add(RECORDS) };
    let mut at = 0;
    while at + HEADER_LEN + size_of::<u64>() <= RECORDS_LEN {
        // SAFETY: inside the records, as the loop's condition says; records are aligned to 16.
        let (magic, len) = unsafe {
            let header = records.add(at).cast::<u32>();
            (header.read(), header.add(1).read() as usize)
        };
        if magic == ESR_MAGIC {
            // SAFETY: inside the records, as the loop's condition says.
            let syndrome = unsafe { records.add(at + HEADER_LEN).cast::<u64>().read() };
            return match syndrome >> 26 & 0x3F {
                class if INSTRUCTION_ABORTS.contains(&class) => Some(Access::Fetch),
                class if !DATA_ABORTS.contains(&class) => None,
                _ if syndrome & (WRITE | CACHE_MAINTENANCE) == WRITE => Some(Access::Write),
                _ => Some(Access::Read),
            };
        }
        // The list ends with a record of magic and length zero.
        if magic == 0 || len < HEADER_LEN {
            return None;
        }
        at += len;
    }
    None
}
