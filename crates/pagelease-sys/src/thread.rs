//! Threads: who am I, where is my stack, what time is it, which signals does a thread block.
//!
//! Signal-safe: [`tid_uncached`], [`pointer()`], [`monotonic_ns`], [`yield_now`], [`sleep`] and
//! [`has_alternate_stack`]. The others are not.

use core::cell::Cell;
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::time::Duration;
use rustix::time::Timespec;
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

/// The calling thread's thread pointer: tells living threads apart without a system call, and says nothing else.
/// Signal-safe.
#[inline]
pub fn pointer() -> usize {
    let pointer: usize;
    // SAFETY: reads the thread pointer; on x86-64 the ABI stores it at its own address.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        core::arch::asm!("mov {}, fs:0", out(reg) pointer, options(nostack, preserves_flags, readonly));
        #[cfg(target_arch = "aarch64")]
        core::arch::asm!("mrs {}, tpidr_el0", out(reg) pointer, options(nostack, preserves_flags, nomem));
    }
    pointer
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

/// Lets another thread that can run on this CPU do so. Signal-safe.
#[inline]
pub fn yield_now() {
    rustix::thread::sched_yield();
}

/// Sleeps for `duration`, or less when a signal is handled meanwhile. Signal-safe.
#[inline]
pub fn sleep(duration: Duration) {
    let request = Timespec::try_from(duration).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
    // Interrupted is fine, and nothing else can happen to a well-formed time.
    let _ = rustix::thread::nanosleep(&request);
}

/// The calling thread's stack: its first address, and the first one past it; for the main thread, what it may grow to.
/// `None` when libc does not know. **Not signal-safe**: it may allocate, and read `/proc/self/maps`.
pub fn stack() -> Option<(usize, usize)> {
    let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
    // SAFETY: the pointer is to room for attributes, and the thread is this one.
    if unsafe { libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) } != 0 {
        return None;
    }
    let (mut start, mut len) = (core::ptr::null_mut(), 0);
    // SAFETY: the attributes were filled in, and are destroyed once; the pointers are to room for both answers.
    let failed = unsafe {
        let failed = libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut start, &raw mut len);
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        failed
    };
    (failed == 0).then(|| (start.addr(), start.addr() + len))
}

/// Whether the calling thread has an alternate signal stack (`sigaltstack`). Signal-safe.
pub fn has_alternate_stack() -> bool {
    let mut stack = MaybeUninit::<libc::stack_t>::uninit();
    // SAFETY: nothing is changed, and the pointer is to room for the answer.
    let asked = unsafe { libc::sigaltstack(core::ptr::null(), stack.as_mut_ptr()) };
    // SAFETY: the call succeeded, so it filled in the answer.
    asked == 0 && unsafe { stack.assume_init() }.ss_flags & libc::SS_DISABLE == 0
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

/// The threads of this process that block `signal`, by id and name: those that a touch of a device's page would kill
/// the process in, when faults are served in the touching thread and `signal` is SIGBUS.
///
/// # Errors
///
/// Those of reading `/proc`.
pub fn threads_blocking(signal: i32) -> io::Result<Vec<(u32, String)>> {
    threads_blocking_in(std::process::id(), signal)
}

/// The same for another process.
///
/// # Errors
///
/// `NotFound`: there is no such process. Otherwise those of reading `/proc`.
pub fn threads_blocking_in(pid: u32, signal: i32) -> io::Result<Vec<(u32, String)>> {
    let mut blocking = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let entry = entry?;
        let Some(tid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let status = match std::fs::read_to_string(entry.path().join("status")) {
            // Ended since the directory was read.
            Err(gone) if is_gone(&gone) => continue,
            status => status?,
        };
        if blocks(&status, signal) {
            blocking.push((tid, field(&status, "Name:").unwrap_or_default().to_owned()));
        }
    }
    Ok(blocking)
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// Whether `status`, as in `/proc/PID/task/TID/status`, says that `signal` is blocked.
fn blocks(status: &str, signal: i32) -> bool {
    let mask = field(status, "SigBlk:").and_then(|mask| u64::from_str_radix(mask, 16).ok()).unwrap_or(0);
    (1..=64).contains(&signal) && mask >> (signal - 1) & 1 == 1
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_has_an_id_of_its_own() {
        assert_eq!(tid(), tid_uncached());
        assert_eq!(tid(), tid());
        let other = std::thread::spawn(|| (tid(), tid_uncached())).join().unwrap();
        assert_eq!(other.0, other.1);
        assert_ne!(other.0, tid());
    }

    #[test]
    fn the_clock_goes_forward() {
        let begin = monotonic_ns();
        sleep(Duration::from_millis(2));
        yield_now();
        assert!(monotonic_ns() - begin >= 2_000_000);
    }

    #[test]
    fn a_stack_holds_its_locals_and_is_a_threads_own() {
        let bounds = || {
            let local = 0;
            let (start, end) = stack().unwrap();
            let address = (&raw const local).addr();
            assert!((start..end).contains(&address), "{start:#x} {address:#x} {end:#x}");
            (start, end)
        };
        let (mine, other) = (bounds(), std::thread::spawn(bounds).join().unwrap());
        assert_eq!(mine, bounds());
        assert!(other.1 <= mine.0 || mine.1 <= other.0, "{mine:x?} {other:x?}");
    }

    #[test]
    fn an_alternate_stack_is_noticed() {
        extern "C" fn answers(_: *mut libc::c_void) -> *mut libc::c_void {
            let before = has_alternate_stack();
            let mut room = vec![0u8; 1 << 16];
            let stack = libc::stack_t { ss_sp: room.as_mut_ptr().cast(), ss_flags: 0, ss_size: room.len() };
            let none = libc::stack_t { ss_flags: libc::SS_DISABLE, ..stack };
            // SAFETY: the room outlives its use as a stack, which ends with the second call.
            let between = unsafe {
                assert_eq!(libc::sigaltstack(&raw const stack, core::ptr::null_mut()), 0);
                let between = has_alternate_stack();
                assert_eq!(libc::sigaltstack(&raw const none, core::ptr::null_mut()), 0);
                between
            };
            let right = !before && between && !has_alternate_stack();
            core::ptr::without_provenance_mut(right.into())
        }
        // Not a thread of std's, which gives each an alternate stack.
        let (mut thread, mut right) = (0, core::ptr::null_mut());
        // SAFETY: the pointers are to room for the answers, and the thread is joined once.
        unsafe {
            assert_eq!(libc::pthread_create(&raw mut thread, core::ptr::null(), answers, core::ptr::null_mut()), 0);
            assert_eq!(libc::pthread_join(thread, &raw mut right), 0);
        }
        assert_eq!(right.addr(), 1);
        assert!(std::thread::spawn(has_alternate_stack).join().unwrap());
    }

    #[test]
    fn a_blocking_thread_is_found_by_name_and_only_while_it_blocks() {
        let name = "blocks-usr1";
        let found = move || threads_blocking(libc::SIGUSR1).unwrap().into_iter().find(|(_, found)| found == name);
        std::thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                assert_eq!(found(), None);
                let blocked = block_all_signals();
                assert_eq!(found(), Some((tid(), name.to_owned())));
                let synchronous = threads_blocking(libc::SIGBUS).unwrap();
                assert!(!synchronous.iter().any(|(found, _)| *found == tid()), "SIGBUS is not kept away");
                drop(blocked);
                assert_eq!(found(), None);
            })
            .unwrap()
            .join()
            .unwrap();
    }

    #[test]
    fn a_mask_is_read_bit_by_bit() {
        let status = "Name:\tsome name\nSigBlk:\t0000000000000040\nSigIgn:\tffffffffffffffff\n";
        assert!(blocks(status, libc::SIGBUS));
        assert!(!blocks(status, libc::SIGUSR1) && !blocks(status, 0) && !blocks(status, 65));
        assert_eq!(field(status, "Name:"), Some("some name"));
    }
}
