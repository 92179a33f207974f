//! One SIGBUS handler for the process, in front of whichever was there before.
//!
//! With [`Features::SIGBUS`](crate::uffd::Features::SIGBUS), a touch of a page that is not there raises SIGBUS in the
//! touching thread. The handler installed here asks a callback. When that served the fault, it returns, and the
//! instruction is made again; when not, the signal is not ours, and the previous action takes it as if it had been
//! delivered there:
//!
//! | previous action | what happens |
//! |---|---|
//! | default, or ignored | the process dies of SIGBUS, at the faulting instruction, core dump and all: a fault cannot be ignored. One that somebody *sent* is ignored if it was |
//! | a handler | it is called with the same arguments, and with the mask it asked for: the interrupted one, its `sa_mask`, and SIGBUS unless `SA_NODEFER`. It may change the context, and may leave by `siglongjmp` |
//! | `SA_RESETHAND` | as a handler, once; from then on the default |
//!
//! What is not as the kernel would have done it: the previous handler runs on the alternate stack, where the thread has
//! one, even if it was installed without `SA_ONSTACK`; and a system call that a *sent* SIGBUS interrupts is restarted
//! even without `SA_RESTART`.
//!
//! Invariants:
//!
//! - What the handler reads are statics of words: no lock, no memory of an allocator, which may itself be managed.
//! - The previous action is written before ours is installed.
//! - While a callback runs, all signals that can wait do wait; so nothing interrupts a thread that has a page `busy`. A
//!   fault in the callback itself kills the process.
//! - `errno` is what it was when the handler returns.
//!
//! A thread that blocks SIGBUS does not get as far as any handler: the kernel kills the process.
//!
//! Not signal-safe: [`install_sigbus`].

use core::mem::MaybeUninit;
use core::ptr::{null, null_mut};
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU64, AtomicUsize, Ordering::Acquire, Ordering::Release};
use std::sync::Mutex;

use libc::{SIG_DFL, SIG_IGN, SIGBUS, c_int, c_void, siginfo_t, sigset_t};
use rustix::io::Errno;

use crate::{last_errno, thread};

mod context;

/// `si_code`: there is nothing at the address, or userfaultfd says so.
pub const BUS_ADRERR: i32 = 2;
/// `si_code`: the memory is broken, and the thread touched it.
pub const BUS_MCEERR_AR: i32 = 4;
/// `si_code`: the memory is broken, as was found out without a touch.
pub const BUS_MCEERR_AO: i32 = 5;

/// A touch that raised SIGBUS.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct BusFault {
    /// What was touched (`si_addr`).
    pub address: usize,
    /// Why it failed (`si_code`): [`BUS_ADRERR`] for a page that userfaultfd traps, and for one past the end of a file.
    pub code: i32,
    /// Whether it was a write, if the machine says so. A locked instruction counts as a write even where it would only
    /// read.
    pub write: Option<bool>,
}

/// Serves a fault. Returns whether it did: `true`, and the touch is made again; `false`, and the previous action takes
/// the signal.
///
/// It runs in a signal handler: it may call what is signal-safe, and must not touch memory that might fault. It is not
/// called for a SIGBUS that somebody sent.
pub type Handler = fn(&BusFault) -> bool;

/// The callback, as a pointer; null before it is there.
static HANDLER: AtomicPtr<()> = AtomicPtr::new(null_mut());

/// What the previous action was: of `struct sigaction`, the words that are needed to do what the kernel would.
static PREVIOUS: Action =
    Action { handler: AtomicUsize::new(SIG_DFL), flags: AtomicI32::new(0), mask: AtomicU64::new(0) };

struct Action {
    handler: AtomicUsize,
    flags: AtomicI32,
    /// Signal n is bit n - 1.
    mask: AtomicU64,
}

/// Installs the process's SIGBUS handler, with `handler` as its callback. A second call only exchanges the callback, in
/// whatever position the handler has come to be.
///
/// # Errors
///
/// None that a kernel is known to return.
pub fn install_sigbus(handler: Handler) -> Result<(), Errno> {
    static INSTALLED: Mutex<bool> = Mutex::new(false);
    let mut installed = INSTALLED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);

    HANDLER.store(handler as *mut (), Release);
    if *installed {
        return Ok(());
    }
    // Before ours is there: the first fault may come at once.
    PREVIOUS.record(&action(null())?);
    // SAFETY: a sigaction of zeroes is a valid one.
    let mut ours: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    ours.sa_sigaction = on_sigbus as *const () as usize;
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    ours.sa_mask = thread::asynchronous_signals();
    // Again, should somebody have come between.
    PREVIOUS.record(&action(&raw const ours)?);
    *installed = true;
    Ok(())
}

/// Whether the process's SIGBUS handler is the one [`install_sigbus`] installed. If not, somebody came after us: then
/// theirs runs first, and whether ours runs at all is up to it. Signal-safe, though it may change errno.
///
/// # Errors
///
/// None that a kernel is known to return.
pub fn sigbus_is_ours() -> Result<bool, Errno> {
    Ok(action(null())?.sa_sigaction == on_sigbus as *const () as usize)
}

/// The action for SIGBUS; sets it to `new` first, unless that is null.
fn action(new: *const libc::sigaction) -> Result<libc::sigaction, Errno> {
    let mut old = MaybeUninit::uninit();
    // SAFETY: `new` is null or a sigaction, `old` is room for one. A new handler is `on_sigbus` or the default.
    match unsafe { libc::sigaction(SIGBUS, new, old.as_mut_ptr()) } {
        // SAFETY: it succeeded, and filled `old` in.
        0 => Ok(unsafe { old.assume_init() }),
        _ => Err(last_errno()),
    }
}

/// The handler. Everything from here on is signal-safe.
extern "C" fn on_sigbus(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: libc's errno is this thread's, and always there.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let before = unsafe { *errno };
    // SAFETY: the kernel passes valid pointers to a handler with SA_SIGINFO.
    let fault = unsafe { fault(info, context) };
    if !fault.is_some_and(|fault| serve(&fault)) {
        // SAFETY: they are what the kernel passed to us.
        unsafe { PREVIOUS.take(signal, info, context) };
    }
    // SAFETY: as above.
    unsafe { *errno = before };
}

/// The fault that the kernel reports; `None` when somebody sent the signal.
///
/// # Safety
///
/// Both are what the kernel passed to a handler for SIGBUS.
unsafe fn fault(info: *const siginfo_t, context: *const c_void) -> Option<BusFault> {
    // SAFETY: the caller's promise.
    let code = unsafe { (*info).si_code };
    if code <= 0 {
        return None;
    }
    Some(BusFault {
        // SAFETY: a SIGBUS from the kernel has an address.
        address: unsafe { (*info).si_addr() }.addr(),
        code,
        // SAFETY: the caller's promise.
        write: unsafe { context::was_write(context.cast()) },
    })
}

fn serve(fault: &BusFault) -> bool {
    let handler = HANDLER.load(Acquire);
    if handler.is_null() {
        return false;
    }
    // SAFETY: not null, so `install_sigbus` made it out of a `Handler`.
    let handler = unsafe { core::mem::transmute::<*mut (), Handler>(handler) };
    handler(fault)
}

impl Action {
    fn record(&self, action: &libc::sigaction) {
        if action.sa_sigaction == on_sigbus as *const () as usize {
            return;
        }
        self.flags.store(action.sa_flags, Release);
        self.mask.store(word_of(&action.sa_mask), Release);
        self.handler.store(action.sa_sigaction, Release);
    }

    /// Does with a signal what this action would have.
    ///
    /// # Safety
    ///
    /// The arguments are what the kernel passed to a handler for SIGBUS, installed with SA_SIGINFO.
    unsafe fn take(&self, signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
        // SAFETY: the caller's promise.
        let code = unsafe { (*info).si_code };
        // The instruction will be made again, and raise the signal again.
        let comes_again = code > 0 && code != BUS_MCEERR_AO;

        let handler = self.handler.load(Acquire);
        if handler == SIG_DFL || (handler == SIG_IGN && comes_again) {
            return die(comes_again);
        }
        if handler == SIG_IGN {
            return;
        }
        let flags = self.flags.load(Acquire);
        if flags & libc::SA_RESETHAND != 0 {
            self.handler.store(SIG_DFL, Release);
        }
        let mut mask = self.mask.load(Acquire);
        if flags & libc::SA_NODEFER == 0 {
            mask |= 1 << (SIGBUS - 1);
        }
        // SAFETY: the caller's promise.
        unsafe { set_mask(context::interrupted_mask(context.cast()), mask) };
        // Returning from our handler restores the interrupted mask.
        if flags & libc::SA_SIGINFO != 0 {
            // SAFETY: with this flag, it is a function of three arguments, and these are the kernel's.
            unsafe {
                let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = core::mem::transmute(handler);
                handler(signal, info, context);
            }
        } else {
            // SAFETY: without this flag, it is a function of one argument.
            unsafe {
                let handler: extern "C" fn(c_int) = core::mem::transmute(handler);
                handler(signal);
            }
        }
    }
}

/// Restores the default action, which kills the process when the handler returns: because the instruction is made
/// again, or because the signal is sent again, to wait until then.
fn die(comes_again: bool) {
    // SAFETY: a sigaction of zeroes is a valid one; a handler of zero is the default.
    let default: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    if action(&raw const default).is_err() {
        std::process::abort();
    }
    if !comes_again {
        // SAFETY: no precondition.
        unsafe { libc::raise(SIGBUS) };
    }
}

/// Sets the thread's mask to `mask` and those of `more`.
fn set_mask(mut mask: sigset_t, more: u64) {
    for signal in 1..=64 {
        if more >> (signal - 1) & 1 == 1 {
            // SAFETY: the pointer is to a set. libc refuses the signals that it keeps to itself.
            unsafe { libc::sigaddset(&raw mut mask, signal) };
        }
    }
    // SAFETY: the pointer is to a set.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const mask, null_mut()) };
}

/// The kernel's part of a signal set: the first 64 bits.
fn word_of(set: &sigset_t) -> u64 {
    const { assert!(size_of::<sigset_t>() >= size_of::<u64>()) };
    // SAFETY: a set is at least that large, and the kernel's word is its first.
    unsafe { core::ptr::from_ref(set).cast::<u64>().read_unaligned() }
}
