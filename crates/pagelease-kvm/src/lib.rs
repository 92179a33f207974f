//! A KVM vCPU as a [`pagelease`] device: an accelerator whose page table is enforced by hardware.
//!
//! A kernel is position-independent x86-64 machine code. It runs in a virtual machine, natively, at privilege level 3, on the
//! **program's own pointers**: the guest's page tables have each attached region at the address at which the program has it.
//! What it does not have is everything else of the process: an access outside of its regions is caught by the MMU, and
//! reported with its address.
//!
//! ```
//! use pagelease::{ByteLen, Space};
//! use pagelease_kvm::{KvmConfig, KvmDevice};
//! use std::sync::atomic::Ordering::Relaxed;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! if let Err(why) = pagelease_kvm::available() {
//!     println!("no KVM device: {why}");
//!     return Ok(());
//! }
//! let space = Space::new()?;
//! let region = space.allocate(ByteLen(1 << 20))?;
//! let device = KvmDevice::start(&space, KvmConfig::default())?;
//! let _view = device.attach(&region)?;
//! // mov rax, [rdi]; add qword ptr [rax], 41; ret
//! let kernel = device.load(&[0x48, 0x8B, 0x07, 0x48, 0x83, 0x00, 0x29, 0xC3])?;
//! let word = &region.words()[700];
//! let job = device.submit(&kernel, &[std::ptr::from_ref(word).addr() as u64], 1)?;
//! // The CPU adds 1 to the same word at the same time.
//! word.fetch_add(1, Relaxed);
//! job.wait()?;
//! assert_eq!(word.load(Relaxed), 42);
//! # Ok(())
//! # }
//! ```
//!
//! `examples/index.rs` builds a kernel from a C function, which follows the pointers of the program's own hash table;
//! `examples/index_by_copy.rs` is the same job with a virtual machine's own memory and copies.
//!
//! # What is exclusive
//!
//! **One instruction.** While a vCPU executes it, the pages that it uses are the device's; no CPU thread and no other device
//! reads or writes them. So `add [x], 1` is exact without a `lock`, against all the world but the other vCPUs of the same
//! device. Between two instructions a page can go away, and come back changed: `v = *x; *x = v + 1`, as two instructions, loses
//! updates, as it would among threads. (An operation of the software device is drained as a whole; a processor knows no more
//! than instructions.) Several lanes that share a word use `lock`.
//!
//! # How it works
//!
//! | | how |
//! |---|---|
//! | the guest reaches a region | a memory slot: the device's view of it, an alias; guest page tables give it the CPU view's addresses |
//! | a vCPU uses a page that the device does not have | a fault on a userfaultfd of the device's own, MINOR and MISSING, over the view; a claim answers it |
//! | somebody else needs the page | `MADV_DONTNEED` on the view: KVM's MMU notifier takes it from the running guest before that returns |
//! | a lane has to stop | a signal that the vCPU's thread blocks outside of the guest: no handler, nothing changes for the program |
//! | a kernel returns, or faults | `out` on a port; faults come by way of an interrupt table whose handlers do just that |
//!
//! A fault is answered ahead when a vCPU's faults run in sequence. The lease of it is kept until the vCPU has run on for some
//! 60 microseconds of its own time (see `holds.rs` for why that is what lets both sides get on).
//! With [`RestorePolicy::Eager`](pagelease::RestorePolicy::Eager) a page goes back at the end of that: for a device that faults,
//! choose another policy.
//!
//! # Limits
//!
//! - The baseline of x86-64 with SSE2: no AVX, whatever the machine has. No operating system, no thread-local storage, a stack of
//!   64 KiB. A lane must not wait for another.
//! - Regions with [`Capabilities::alias`](pagelease::Capabilities::alias), whose memory userfaultfd serves: those of
//!   [`Space::allocate`](pagelease::Space::allocate), memory files, tmpfs, hugetlbfs. Others are refused.
//! - It needs the full userfaultfd: with `UFFD_USER_MODE_ONLY`, a vCPU's fault is the kernel's own, and not served.
//! - It is not for code that is hostile: a virtual machine contains it, but nobody has attacked this one.

// Both halves are Linux's KVM on x86-64; elsewhere only `available` is left, which says so.
#[cfg(target_arch = "x86_64")]
mod available;
#[cfg(target_arch = "x86_64")]
mod block;
#[cfg(target_arch = "x86_64")]
mod device;
#[cfg(target_arch = "x86_64")]
mod engine;
mod error;
#[cfg(target_arch = "x86_64")]
mod holds;
#[cfg(target_arch = "x86_64")]
mod job;
#[cfg(target_arch = "x86_64")]
mod kick;
#[cfg(target_arch = "x86_64")]
mod ranges;
#[cfg(target_arch = "x86_64")]
mod serve;
#[cfg(target_arch = "x86_64")]
mod tables;
#[cfg(target_arch = "x86_64")]
mod traps;
#[cfg(target_arch = "x86_64")]
mod vcpu;
#[cfg(target_arch = "x86_64")]
mod worker;

#[cfg(target_arch = "x86_64")]
pub use available::available;
#[cfg(target_arch = "x86_64")]
pub use device::{KvmConfig, KvmDevice, KvmView};
pub use error::{Access, AttachError, Exception, JobError, LoadError, StartError, SubmitError, Unavailable};
#[cfg(target_arch = "x86_64")]
pub use job::{Job, Kernel};
#[cfg(target_arch = "x86_64")]
pub use traps::Traps;

/// Whether a KVM device can be had: not on this machine.
///
/// # Errors
/// [`Unavailable::Architecture`], always.
#[cfg(not(target_arch = "x86_64"))]
pub fn available() -> Result<(), Unavailable> {
    Err(Unavailable::Architecture)
}
