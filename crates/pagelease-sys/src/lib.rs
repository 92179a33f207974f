//! The Linux system calls and ioctls that pagelease stands on, typed, with their numbers asserted at
//! compile time. **No policy**: this crate decides nothing, retries nothing, and keeps no record of who
//! owns which page.
//!
//! | module | what it wraps |
//! |---|---|
//! | [`span`] | a checked, page-aligned range of addresses: the argument of everything else |
//! | [`uffd`] | userfaultfd: opening, registering, filling, moving and protecting pages, reading faults and events |
//! | [`mem`] | mappings, memfd, `madvise`, `mprotect`, `mremap`, covering a page with a copy; what is mapped where |
//! | [`mod@file`] | what kind of file a descriptor is of, and how long it is |
//! | [`barrier`] | `membarrier`, private expedited |
//! | [`event`] | a doorbell that wakes whoever polls, and `poll` for two |
//! | [`futex`] | waiting on a 32-bit word, waking its waiters |
//! | [`thread`] | thread ids, stacks, the monotonic clock, signal masks |
//! | [`signal`] | one handler a process of SIGBUS and SIGSEGV, chaining to the one before it |
//! | [`dmirror`] | the kernel's own device-exclusive memory, by way of its test driver: to compare with |
//! | [`mod@fork`] | am I a forked child? answered by one load; what to do before and after a fork |
//!
//! # What a signal handler may call
//!
//! Each function says whether it is *signal-safe*. Such a function allocates nothing, takes no lock, formats
//! nothing, and touches no memory but its arguments and this crate's statics. It may change `errno` (only where
//! it goes through libc); the handler that [`signal`] installs saves and restores `errno` around its callback.
//!
//! # What it does not do
//!
//! It is not a general binding: a call that pagelease does not make is not here. Linux on x86-64 and aarch64
//! only, 64-bit only.

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
compile_error!("pagelease runs on Linux, on x86-64 and aarch64");

pub mod barrier;
pub mod dmirror;
pub mod event;
pub mod file;
pub mod fork;
pub mod futex;
pub mod mem;
mod request;
pub mod signal;
pub mod span;
pub mod thread;
pub mod uffd;

pub use rustix::io::Errno;
pub use span::{Span, page_size};

/// What libc says of the call that has just failed. Signal-safe.
fn last_errno() -> Errno {
    // SAFETY: libc's errno is this thread's, and always there.
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}
