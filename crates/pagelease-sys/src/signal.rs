//! One handler for the process, of SIGBUS and of SIGSEGV, in front of whichever was there before.
//!
//! | signal | raised in the touching thread by a touch of |
//! |---|---|
//! | SIGBUS | a page that is not there, with [`Features::SIGBUS`](crate::uffd::Features::SIGBUS) |
//! | SIGSEGV | a page that [`protect`](crate::mem::protect) has closed |
//!
//! The handler installed here asks a callback. When that served the fault, it returns, and the instruction is made again;
//! when not, the signal is not ours, and the previous action takes it as if it had been delivered there:
//!
//! | previous action | what happens |
//! |---|---|
//! | default, or ignored | the process dies of the signal, at the faulting instruction and with its address, core dump and all: a fault cannot be ignored. One that somebody *sent* is ignored if it was |
//! | a handler | it is called with the same arguments, and with the mask it asked for: the interrupted one, its `sa_mask`, and the signal unless `SA_NODEFER`. It may change the context, and may leave by `siglongjmp` |
//! | `SA_RESETHAND` | as a handler, once; from then on the default |
//!
//! The standard library's is such a handler: it tells a stack overflow from other faults, says so, and aborts; whatever else
//! it gets dies of the default. For its sake, ours is `SA_ONSTACK`: a thread that has overflown its stack has no other.
//!
//! What is not as the kernel would have done it: the previous handler runs on the alternate stack, where the thread has
//! one, even if it was installed without `SA_ONSTACK`; and a system call that a *sent* signal interrupts is restarted
//! even without `SA_RESTART`.
//!
//! Invariants:
//!
//! - What the handler reads are statics of words: no lock, no memory of an allocator, which may itself be managed.
//! - The previous action is written before ours is installed.
//! - While a callback runs, all signals that can wait do wait; so nothing interrupts a thread that has a page `busy`. A
//!   fault of the same kind in the callback itself kills the process.
//! - `errno` is what it was when the handler returns.
//!
//! A thread that blocks the signal does not get as far as any handler: the kernel kills the process.
//!
//! Not signal-safe: [`install`].

use core::mem::MaybeUninit;
use core::ptr::{null, null_mut};
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU64, AtomicUsize, Ordering::Acquire, Ordering::Release};
use std::sync::Mutex;

use libc::{SIG_DFL, SIG_IGN, c_int, c_void, siginfo_t, sigset_t};
use rustix::io::Errno;

use crate::{last_errno, thread};

mod context;

/// `si_code`: there is nothing at the address, or userfaultfd says so.
pub const BUS_ADRERR: i32 = 2;
/// `si_code`: the memory is broken, and the thread touched it.
pub const BUS_MCEERR_AR: i32 = 4;
/// `si_code`: the memory is broken, as was found out without a touch.
pub const BUS_MCEERR_AO: i32 = 5;
/// `si_code`: nothing is mapped at the address.
pub const SEGV_MAPERR: i32 = 1;
/// `si_code`: the mapping does not allow it.
pub const SEGV_ACCERR: i32 = 2;
/// `si_code`: a wrong memory tag, found out some time after the access.
const SEGV_MTEAERR: i32 = 8;

/// A signal that a touch may raise.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Hash)]
pub enum Signal {
    /// SIGBUS.
    Bus,
    /// SIGSEGV.
    Segmentation,
}

impl Signal {
    /// The signal's number.
    pub const fn number(self) -> i32 {
        match self {
            Self::Bus => libc::SIGBUS,
            Self::Segmentation => libc::SIGSEGV,
        }
    }

    /// That of a signal which the handler is installed for.
    fn of(number: c_int) -> Self {
        if number == libc::SIGBUS { Self::Bus } else { Self::Segmentation }
    }

    fn slot(self) -> &'static Slot {
        &SLOTS[self as usize]
    }
}

/// A touch that raised a signal.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Fault {
    /// What was touched (`si_addr`). Not every fault has an address: it is 0 for one that is not canonical, for instance.
    pub address: usize,
    /// Why it failed (`si_code`): [`BUS_ADRERR`] for a page that userfaultfd traps, and for one past the end of a file;
    /// [`SEGV_ACCERR`] for one that is closed; and others.
    pub code: i32,
    /// Whether it was a write, if the machine says so. A locked instruction counts as a write even where it would only
    /// read.
    pub write: Option<bool>,
    /// Whether it was to fetch an instruction, which is no touch of data. Never on a machine that does not say so.
    pub fetch: bool,
}

/// Serves a fault. Returns whether it did: `true`, and the touch is made again; `false`, and the previous action takes
/// the signal.
///
/// It runs in a signal handler: it may call what is signal-safe, and must not touch memory that might fault. It is not
/// called for a signal that somebody sent.
pub type Handler = fn(&Fault) -> bool;

/// What there is of each [`Signal`].
struct Slot {
    /// The callback, as a pointer; null before it is there.
    handler: AtomicPtr<()>,
    /// What was there before.
    previous: Action,
    /// Whether the handler is installed. Serialises [`install`].
    installed: Mutex<bool>,
}

static SLOTS: [Slot; 2] =
    [const { Slot { handler: AtomicPtr::new(null_mut()), previous: Action::default(), installed: Mutex::new(false) } };
        2];

/// An action, of which `struct sigaction` has the words that are needed to do what the kernel would.
struct Action {
    handler: AtomicUsize,
    flags: AtomicI32,
    /// Signal n is bit n - 1.
    mask: AtomicU64,
}

/// Installs the process's handler for `signal`, with `handler` as its callback. A second call only exchanges the callback, in
/// whatever position the handler has come to be.
///
/// # Errors
///
/// None that a kernel is known to return.
pub fn install(signal: Signal, handler: Handler) -> Result<(), Errno> {
    let slot = signal.slot();
    let mut installed = slot.installed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);

    slot.handler.store(handler as *mut (), Release);
    if *installed {
        return Ok(());
    }
    // Before ours is there: the first fault may come at once.
    slot.previous.record(&action(signal, null())?);
    // SAFETY: a sigaction of zeroes is a valid one.
    let mut ours: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    ours.sa_sigaction = on_signal as *const () as usize;
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    ours.sa_mask = thread::asynchronous_signals();
    // Again, should somebody have come between.
    slot.previous.record(&action(signal, &raw const ours)?);
    *installed = true;
    Ok(())
}

/// Whether the process's handler for `signal` is the one [`install`] installed. If not, somebody came after us: then
/// theirs runs first, and whether ours runs at all is up to it. About 0.2 us. Signal-safe, though it may change errno.
///
/// # Errors
///
/// None that a kernel is known to return.
pub fn is_ours(signal: Signal) -> Result<bool, Errno> {
    Ok(action(signal, null())?.sa_sigaction == on_signal as *const () as usize)
}

/// The action for `signal`; sets it to `new` first, unless that is null.
fn action(signal: Signal, new: *const libc::sigaction) -> Result<libc::sigaction, Errno> {
    let mut old = MaybeUninit::uninit();
    // SAFETY: `new` is null or a sigaction, `old` is room for one. A new handler is `on_signal` or the default.
    match unsafe { libc::sigaction(signal.number(), new, old.as_mut_ptr()) } {
        // SAFETY: it succeeded, and filled `old` in.
        0 => Ok(unsafe { old.assume_init() }),
        _ => Err(last_errno()),
    }
}

/// The handler. Everything from here on is signal-safe.
extern "C" fn on_signal(number: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: libc's errno is this thread's, and always there.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let before = unsafe { *errno };
    let signal = Signal::of(number);
    // SAFETY: the kernel passes valid pointers to a handler with SA_SIGINFO.
    let fault = unsafe { fault(info, context) };
    if !fault.is_some_and(|fault| serve(signal, &fault)) {
        // SAFETY: they are what the kernel passed to us.
        unsafe { signal.slot().previous.take(signal, info, context) };
    }
    // SAFETY: as above.
    unsafe { *errno = before };
}

/// The fault that the kernel reports; `None` when somebody sent the signal.
///
/// # Safety
///
/// Both are what the kernel passed to a handler for a [`Signal`].
unsafe fn fault(info: *const siginfo_t, context: *const c_void) -> Option<Fault> {
    // SAFETY: the caller's promise.
    let code = unsafe { (*info).si_code };
    if code <= 0 {
        return None;
    }
    // SAFETY: the caller's promise.
    let access = unsafe { context::access(context.cast()) };
    Some(Fault {
        // SAFETY: such a signal from the kernel has the field of an address.
        address: unsafe { (*info).si_addr() }.addr(),
        code,
        write: access.map(|access| access == context::Access::Write),
        fetch: access == Some(context::Access::Fetch),
    })
}

fn serve(signal: Signal, fault: &Fault) -> bool {
    let handler = signal.slot().handler.load(Acquire);
    if handler.is_null() {
        return false;
    }
    // SAFETY: not null, so `install` made it out of a `Handler`.
    let handler = unsafe { core::mem::transmute::<*mut (), Handler>(handler) };
    handler(fault)
}

impl Action {
    const fn default() -> Self {
        Self { handler: AtomicUsize::new(SIG_DFL), flags: AtomicI32::new(0), mask: AtomicU64::new(0) }
    }

    fn record(&self, action: &libc::sigaction) {
        if action.sa_sigaction == on_signal as *const () as usize {
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
    /// The arguments are what the kernel passed to a handler for the signal, installed with SA_SIGINFO.
    unsafe fn take(&self, signal: Signal, info: *mut siginfo_t, context: *mut c_void) {
        // SAFETY: the caller's promise.
        let code = unsafe { (*info).si_code };
        // The instruction will be made again, and raise the signal again.
        let comes_again =
            code > 0 && !matches!((signal, code), (Signal::Bus, BUS_MCEERR_AO) | (Signal::Segmentation, SEGV_MTEAERR));

        let handler = self.handler.load(Acquire);
        if handler == SIG_DFL || (handler == SIG_IGN && comes_again) {
            return die(signal, comes_again);
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
            mask |= 1 << (signal.number() - 1);
        }
        // SAFETY: the caller's promise.
        unsafe { set_mask(context::interrupted_mask(context.cast()), mask) };
        // Returning from our handler restores the interrupted mask.
        if flags & libc::SA_SIGINFO != 0 {
            // SAFETY: with this flag, it is a function of three arguments, and these are the kernel's.
            unsafe {
                let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = core::mem::transmute(handler);
                handler(signal.number(), info, context);
            }
        } else {
            // SAFETY: without this flag, it is a function of one argument.
            unsafe {
                let handler: extern "C" fn(c_int) = core::mem::transmute(handler);
                handler(signal.number());
            }
        }
    }
}

/// Restores the default action, which kills the process when the handler returns: because the instruction is made
/// again, or because the signal is sent again, to wait until then.
fn die(signal: Signal, comes_again: bool) {
    // SAFETY: a sigaction of zeroes is a valid one; a handler of zero is the default.
    let default: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    if action(signal, &raw const default).is_err() {
        std::process::abort();
    }
    if !comes_again {
        // SAFETY: no precondition.
        unsafe { libc::raise(signal.number()) };
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
