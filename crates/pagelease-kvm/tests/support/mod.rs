//! What the tests share: kernels, and skipping where there is no KVM.

#![allow(dead_code, reason = "each test file uses some of it")]

use std::sync::atomic::Ordering;

use pagelease::{ByteLen, Region, Space};

/// A kernel: what lies between the labels `NAME` and `NAME_end`.
macro_rules! kernel {
    ($(#[$doc:meta])* $name:ident, $($line:literal),+ $(,)?) => {
        std::arch::global_asm!(
            ".pushsection .rodata",
            concat!(".globl pagelease_kvm_test_", stringify!($name), ", pagelease_kvm_test_", stringify!($name), "_end"),
            concat!("pagelease_kvm_test_", stringify!($name), ":"),
            $($line,)+
            concat!("pagelease_kvm_test_", stringify!($name), "_end:"),
            ".popsection",
        );

        $(#[$doc])*
        pub(crate) fn $name() -> &'static [u8] {
            let (start, end): (*const u8, *const u8);
            // SAFETY: takes two addresses.
            unsafe {
                std::arch::asm!(
                    concat!("lea {}, [rip + pagelease_kvm_test_", stringify!($name), "]"),
                    concat!("lea {}, [rip + pagelease_kvm_test_", stringify!($name), "_end]"),
                    out(reg) start, out(reg) end, options(nomem, nostack, preserves_flags),
                );
            }
            // SAFETY: the bytes between the labels, which are constant.
            unsafe { std::slice::from_raw_parts(start, end.offset_from(start).unsigned_abs()) }
        }
    };
}

kernel!(
    /// `(base, pages, rounds, page length)`: each round adds 1 to the first word of each page that is the lane's, by one
    /// instruction that is not atomic.
    add,
    "mov r8, [rdi]",
    "mov r9, [rdi + 8]",
    "mov r10, [rdi + 16]",
    "mov r11, [rdi + 24]",
    "2: mov rcx, rsi",
    "3: cmp rcx, r9",
    "jae 5f",
    "mov rax, rcx",
    "imul rax, r11",
    "add qword ptr [r8 + rax], 1",
    "add rcx, rdx",
    "jmp 3b",
    "5: dec r10",
    "jnz 2b",
    "xor eax, eax",
    "ret",
);

kernel!(
    /// Returns `lane + lanes + argument[0]`.
    sum,
    "lea rax, [rsi + rdx]",
    "add rax, [rdi]",
    "ret",
);

kernel!(
    /// Never returns.
    forever,
    "2: pause",
    "jmp 2b",
);

kernel!(
    /// Reads `argument[0]` bytes on from `argument[1]`, a word each 4096.
    read,
    "mov rcx, [rdi]",
    "mov rdx, [rdi + 8]",
    "xor eax, eax",
    "2: add rax, [rdx]",
    "add rdx, 4096",
    "sub rcx, 4096",
    "ja 2b",
    "ret",
);

kernel!(
    /// Stores `argument[1]` at `argument[0]`.
    store,
    "mov rax, [rdi]",
    "mov rcx, [rdi + 8]",
    "mov [rax], rcx",
    "ret",
);

kernel!(
    /// Adds 1 to the word at `argument[0]`, by an instruction that is not atomic, until that at `argument[1]` is not 0; returns how often.
    add_until,
    "mov rcx, [rdi]",
    "mov rdx, [rdi + 8]",
    "xor eax, eax",
    "2: add qword ptr [rcx], 1",
    "inc rax",
    "cmp qword ptr [rdx], 0",
    "je 2b",
    "ret",
);

kernel!(
    /// Adds 1 to the word at `argument[0]`, which may lie on two pages, `argument[1]` times.
    add_split,
    "mov rax, [rdi]",
    "mov rcx, [rdi + 8]",
    "2: add qword ptr [rax], 1",
    "dec rcx",
    "jnz 2b",
    "ret",
);

kernel!(
    /// Stores 1 at `argument[0]`, waits until the word at `argument[1]` is not 0, adds 1 to that at `argument[2]`.
    gated,
    "mov rax, [rdi]",
    "mov rcx, [rdi + 8]",
    "mov rdx, [rdi + 16]",
    "mov qword ptr [rax], 1",
    "2: pause",
    "cmp qword ptr [rcx], 0",
    "je 2b",
    "add qword ptr [rdx], 1",
    "ret",
);

/// Whether KVM can be used. If not, says why; with `PAGELEASE_NEEDS_KVM` set, that is a failure.
pub(crate) fn has_kvm() -> bool {
    match pagelease_kvm::available() {
        Ok(()) => true,
        Err(why) => {
            eprintln!("skipped: {}", lacking(&why));
            false
        }
    }
}

/// Why there is no KVM; with `PAGELEASE_NEEDS_KVM` set, that is a failure.
pub(crate) fn lacking(why: &pagelease_kvm::Unavailable) -> String {
    assert!(std::env::var_os("PAGELEASE_NEEDS_KVM").is_none(), "{why}");
    why.to_string()
}

/// A region of `pages` granules, each of whose first words is there and 0.
pub(crate) fn region(space: &Space, pages: usize) -> Region {
    let region = space.allocate(ByteLen(pages * 4096)).unwrap();
    (0..pages).for_each(|page| region.words()[page * 512].store(0, Ordering::Relaxed));
    region
}

/// The address of a word of the CPU view, which is the guest's too.
pub(crate) fn address(region: &Region, word: usize) -> u64 {
    region.words()[word..].as_ptr().addr() as u64
}

/// Waits until `is` says so.
pub(crate) fn eventually(is: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !is() {
        assert!(begun.elapsed() < std::time::Duration::from_secs(30), "it never came about");
        std::thread::yield_now();
    }
}

/// Pins the calling thread to one CPU, and the vCPUs of the process to another, where there are two: a busy scheduler would else
/// run both on one, in turn, and no update could be lost. For the calling thread's life; other threads of tests may be pinned too.
pub(crate) fn apart() {
    // SAFETY: a set of zeroes is an empty one; the pointers are to it.
    unsafe {
        let mut allowed: libc::cpu_set_t = std::mem::zeroed();
        libc::sched_getaffinity(libc::getpid(), size_of::<libc::cpu_set_t>(), &raw mut allowed);
        let cpus: Vec<_> = (0..libc::CPU_SETSIZE as usize).filter(|&cpu| libc::CPU_ISSET(cpu, &allowed)).collect();
        let [here, there, ..] = cpus[..] else { return };
        let pin = |thread: libc::pid_t, cpu: usize| {
            let mut one: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(cpu, &mut one);
            libc::sched_setaffinity(thread, size_of::<libc::cpu_set_t>(), &raw const one);
        };
        pin(0, here);
        for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
            let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            let is_vcpu = name.trim().strip_prefix("pagelease-kvm-").is_some_and(|rest| rest.parse::<u32>().is_ok());
            if let Some(thread) = task.file_name().to_str().and_then(|thread| thread.parse().ok()).filter(|_| is_vcpu) {
                pin(thread, there);
            }
        }
    }
}
