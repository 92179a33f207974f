//! A file that shrinks while it is mapped: a read past its new end raises SIGBUS, which would kill the program.
//!
//! A handler maps zeroes over the rest of the window instead, and notes it, so that the program ends with a message. The
//! in-thread mode of the runtime handles SIGBUS, too: its handler comes in front of this one, if this one was
//! [installed](install) first, and passes on what is no page of a region. A disk that fails raises SIGBUS as well.
//!
//! Invariants: a thread has one window at a time, and it alone reads it, so that its handler finds what it reads. The
//! handler is signal-safe: it reads two words of its thread, and makes system calls.

use std::ffi::{c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::ptr::{null_mut, with_exposed_provenance_mut};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicUsize, compiler_fence};

use pagelease_sys::page_size;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

thread_local! {
    /// This thread's window: where it begins, and ends. Atomic for the handler, which may interrupt a change.
    static WINDOW: [AtomicUsize; 2] = const { [AtomicUsize::new(0), AtomicUsize::new(0)] };
}

static SEEN: AtomicBool = AtomicBool::new(false);

/// Whether a file has shrunk under its window, since the program began.
pub(super) fn was_seen() -> bool {
    SEEN.load(SeqCst)
}

/// The calling thread reads the `len` bytes of a file that are mapped at `address`.
pub(super) fn watch(address: usize, len: usize) {
    set(address, address + len);
}

/// The calling thread reads them no more.
pub(super) fn unwatch() {
    set(0, 0);
}

fn set(begin: usize, end: usize) {
    WINDOW.with(|window| {
        // In between, the window is empty.
        window[1].store(0, Relaxed);
        compiler_fence(SeqCst);
        window[0].store(begin, Relaxed);
        compiler_fence(SeqCst);
        window[1].store(end, Relaxed);
        compiler_fence(SeqCst);
    });
}

/// Installs the handler. Before a space with in-thread faults is made, which puts its own in front.
///
/// # Errors
/// None that a kernel is known to return.
pub(super) fn install() -> io::Result<()> {
    // SAFETY: a sigaction of zeroes is a valid one.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = on_sigbus as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the action is valid, and its handler takes three arguments, as SA_SIGINFO promises.
    match unsafe { libc::sigaction(libc::SIGBUS, &raw const action, null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

extern "C" fn on_sigbus(_signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel passes a valid pointer, and a SIGBUS has an address; of one that was sent, it lies in no window.
    let address = unsafe { (*info).si_addr() }.addr();
    let [begin, end] = WINDOW.with(|window| [window[0].load(Relaxed), window[1].load(Relaxed)]);
    if !(begin..end).contains(&address) || !replace(address - address % page_size(), end) {
        // Not ours: the program dies of it when this returns, as it would have without a handler.
        // SAFETY: the default action is always valid; the signal is blocked until the handler returns.
        unsafe {
            libc::signal(libc::SIGBUS, libc::SIG_DFL);
            libc::raise(libc::SIGBUS);
        }
        return;
    }
    SEEN.store(true, SeqCst);
}

/// Maps zeroes from `page` to the end of the window; whether it could.
fn replace(page: usize, end: usize) -> bool {
    let start: *mut c_void = with_exposed_provenance_mut(page);
    let flags = MapFlags::PRIVATE | MapFlags::FIXED;
    // SAFETY: replaces pages of a window of this thread's, which is only read, and as atomics, by others than the compiler.
    unsafe { mmap_anonymous(start, end - page, ProtFlags::READ, flags) }.is_ok()
}

#[cfg(test)]
mod tests {
    use std::fs::{File, remove_file};
    use std::process::Command;

    use pagelease::{Faults, Space};

    use super::super::input::Input;
    use super::*;

    /// In a process of its own, as handlers are the process's, and other tests install theirs.
    #[test]
    fn a_window_outlives_what_it_shows() {
        let this = std::env::current_exe().expect("the path of this program");
        let test = "histogram::shrunk::tests::in_a_process_of_its_own";
        let output = Command::new(this).args([test, "--exact", "--ignored"]).output().expect("it starts");
        assert!(output.status.success(), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{output:?}");
    }

    #[test]
    #[ignore = "changes handlers of the process; a_window_outlives_what_it_shows runs it"]
    fn in_a_process_of_its_own() {
        let path = std::env::temp_dir().join(format!("pagelease-shrunk-{}", std::process::id()));
        let page = page_size();
        std::fs::write(&path, vec![7; 3 * page]).expect("a file");
        let input = Input::open(&path).expect("an input");
        install().expect("our handler");
        let _in_front = Space::builder().faults(Faults::InThread).build().expect("a space");

        let window = input.window(1..input.len()).expect("a window");
        File::options().write(true).open(&path).and_then(|file| file.set_len(1)).expect("it shrinks");
        remove_file(&path).expect("our file");
        // What follows the new end in its page is zeroed by the kernel, the pages behind it are gone.
        assert!(window.bytes().iter().all(|byte| byte.load(Relaxed) == 0));
        assert!(was_seen() && input.check_unchanged().is_err());
    }
}
