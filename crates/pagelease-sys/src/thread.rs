//! Threads: who am I, what time is it, which signals does a thread block.
//!
//! Signal-safe: [`tid_uncached`] and [`monotonic_ns`]. The others are not.

use core::cell::Cell;
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use std::io;

/// The calling thread's id, from the second call on without a system call. In a forked child it may still be the
/// parent's. **Not signal-safe**: in a shared library, the first use of a thread-local may allocate.
#[inline]
pub fn tid() -> u32 {
    thread_local! {
        static TID: Cell<u32> = const { Cell::new(0) };
    }
    TID.with(|cached| {
        if cached.get() == 0 {
            cached.set(tid_uncached());
        }
        cached.get()
    })
}

/// The calling thread's id, as the kernel says it (`gettid`). Signal-safe.
#[inline]
pub fn tid_uncached() -> u32 {
    rustix::thread::gettid().as_raw_pid().cast_unsigned()
}

/// `CLOCK_MONOTONIC` in nanoseconds: enough for 584 years of uptime. Without a system call where the kernel offers
/// that. Signal-safe (POSIX lists `clock_gettime`).
#[inline]
pub fn monotonic_ns() -> u64 {
    let mut now = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: the pointer is to room for a timespec, and this clock is always there.
    let now = unsafe {
        libc::clock_gettime(libc::CLOCK_MONOTONIC, now.as_mut_ptr());
        now.assume_init()
    };
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// The signals that the CPU raises for what a thread does itself. To block one does not keep it away: the kernel kills
/// the process instead of calling its handler.
const SYNCHRONOUS: [i32; 7] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGABRT, libc::SIGSYS];

/// All signals but the synchronous ones.
pub(crate) fn asynchronous_signals() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the pointer is to room for a set, which sigfillset fills in; the signals exist.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        for signal in SYNCHRONOUS {
            libc::sigdelset(set.as_mut_ptr(), signal);
        }
        set.assume_init()
    }
}

/// While it lives, the thread that made it handles no asynchronous signal. Dropping it restores the mask from before.
#[derive(Debug)]
#[must_use = "dropping it unblocks the signals"]
pub struct SignalsBlocked {
    before: libc::sigset_t,
    /// A mask is a thread's own: neither `Send` nor `Sync`.
    _of_this_thread: PhantomData<*const ()>,
}

/// Blocks, in the calling thread, every signal that can wait: all but SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT
/// and SIGSYS, which the thread raises itself, and whose handlers (a crash reporter's, say) should run.
///
/// For a service thread, so that the program's signal handlers never run on it: made first thing in the thread and
/// kept to its end, or in its parent while it spawns it, since a new thread inherits the mask.
pub fn block_all_signals() -> SignalsBlocked {
    let set = asynchronous_signals();
    let mut before = MaybeUninit::uninit();
    // SAFETY: the pointers are to a set, and to room for one.
    let before = unsafe {
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, before.as_mut_ptr());
        before.assume_init()
    };
    SignalsBlocked { before, _of_this_thread: PhantomData }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: the pointer is to a set that pthread_sigmask filled in.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, core::ptr::null_mut()) };
    }
}
