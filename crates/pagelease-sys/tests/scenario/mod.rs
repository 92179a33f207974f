//! What both signals' tests share. A handler is the process's, and some of these processes are to die: so each test runs
//! its body in a process of its own, this program again, told to run that one test (see [`scenario`]).
#![allow(dead_code, reason = "each test file uses its part")]

use std::process::{Command, ExitStatus};
use std::ptr::null_mut;
use std::sync::atomic::AtomicU64;

use pagelease_sys::Span;

const VARIABLE: &str = "PAGELEASE_SCENARIO";

/// The command that runs the one test, as a process of its own in which [`scenario`] runs the body.
pub(crate) fn command(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture"]).env(VARIABLE, test);
    command
}

/// In the test's own process: runs `body`, and ends the process well if it returns. Otherwise: starts that process, and
/// returns how it ended.
pub(crate) fn scenario(test: &str, body: fn()) -> ExitStatus {
    if std::env::var(VARIABLE).is_ok_and(|name| name == test) {
        let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the pointer is to a limit.
        unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const no_core) };
        body();
        std::process::exit(0);
    }
    command(test).status().unwrap()
}

/// The first word of a span, which stays mapped.
pub(crate) fn word(span: Span) -> &'static AtomicU64 {
    // SAFETY: mapped for the life of the process, aligned, and only ever used as an atomic.
    unsafe { &*span.as_ptr().cast::<AtomicU64>() }
}

/// Installs `handler` for `signal`, by hand.
pub(crate) fn by_hand(signal: i32, handler: usize, flags: i32, masked: &[i32]) {
    // SAFETY: zeroes are a valid sigaction, and the pointers are to live ones.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        (action.sa_sigaction, action.sa_flags) = (handler, flags);
        for masked in masked {
            libc::sigaddset(&raw mut action.sa_mask, *masked);
        }
        assert_eq!(libc::sigaction(signal, &raw const action, null_mut()), 0);
    }
}

pub(crate) fn is_blocked(signal: i32) -> bool {
    // SAFETY: the pointers are to a set.
    unsafe {
        let mut mask: libc::sigset_t = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, null_mut(), &raw mut mask);
        libc::sigismember(&raw const mask, signal) == 1
    }
}

pub(crate) fn set_errno(value: i32) {
    // SAFETY: this thread's errno.
    unsafe { *libc::__errno_location() = value }
}

pub(crate) fn errno() -> i32 {
    // SAFETY: this thread's errno.
    unsafe { *libc::__errno_location() }
}
