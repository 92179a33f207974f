//! How a thread is made to leave the guest: a signal that it blocks, except while it is inside.
//!
//! `KVM_SET_SIGNAL_MASK` unblocks the signal for the time of `KVM_RUN` only. So it needs no handler, and changes nothing for
//! the program: outside it stays pending, and the next `KVM_RUN` returns at once; inside, also while a fault waits to be
//! answered, `KVM_RUN` returns `EINTR`, and the state of the guest is whole. It never reaches user mode.
//!
//! Invariants, on which the unsafe blocks lean: every thread here is a vCPU's, which blocks all signals from its start to its
//! end; a [`Kick`] is used no longer than its thread lives.

use core::mem::MaybeUninit;
use core::time::Duration;
use std::os::fd::{AsRawFd, RawFd};

use pagelease_sys::Errno;

/// One of those that no library takes for itself.
fn number() -> i32 {
    libc::SIGRTMAX() - 3
}

/// The signal's number as a bit of the kernel's set.
fn bit() -> u64 {
    1 << (number() - 1)
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// `struct kvm_signal_mask`, with room for a set.
#[repr(C, packed)]
struct Mask {
    len: u32,
    set: u64,
}

/// `_IOW(KVMIO, 0x8b, struct kvm_signal_mask)`, whose size is that of `len`.
const KVM_SET_SIGNAL_MASK: libc::c_ulong = 0x4004_AE8B;

/// Has `KVM_RUN` on `vcpu` run with every signal blocked but this one.
pub(crate) fn unblock_inside(vcpu: &impl AsRawFd) -> Result<(), Errno> {
    let mask = Mask { len: 8, set: !bit() };
    let fd: RawFd = vcpu.as_raw_fd();
    // SAFETY: the argument is a length and a set of that length, which the kernel reads.
    match unsafe { libc::ioctl(fd, KVM_SET_SIGNAL_MASK, &raw const mask) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

/// The calling thread has left the guest: what made it do so is not pending any more.
pub(crate) fn consume() {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointers are to room for a set, which sigemptyset fills in, to that set, and to a time. The signal is blocked.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), number());
        while libc::sigtimedwait(set.as_ptr(), core::ptr::null_mut(), &raw const now) > 0 {}
    }
}

/// Makes one thread leave the guest, from any thread; and tells how long it has run.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Kick {
    tid: u32,
    clock: libc::clockid_t,
}

impl Kick {
    /// For the calling thread.
    pub(crate) fn for_this_thread() -> Self {
        let mut clock = 0;
        // SAFETY: the pointer is to room for a clock's number, and the thread is this one.
        unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &raw mut clock) };
        Self { tid: pagelease_sys::thread::tid_uncached(), clock }
    }

    pub(crate) fn tid(self) -> u32 {
        self.tid
    }

    /// Now if it is inside, otherwise when it is about to enter.
    pub(crate) fn leave(self) {
        // SAFETY: a signal that the thread blocks, or that ends its KVM_RUN. It cannot fail while the thread lives.
        unsafe {
            libc::syscall(libc::SYS_tgkill, libc::getpid(), self.tid, number());
        }
    }

    /// The processor time that the thread has used, in nanoseconds, that of its guest included.
    pub(crate) fn ran_ns(self) -> u64 {
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the pointer is to room for a time; the clock is a living thread's.
        unsafe { libc::clock_gettime(self.clock, &raw mut now) };
        now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
    }
}

/// A timer that makes the thread that made it leave the guest.
#[derive(Debug)]
pub(crate) struct Timer {
    id: libc::timer_t,
}

impl Timer {
    /// For the calling thread.
    pub(crate) fn for_this_thread() -> Result<Self, Errno> {
        // SAFETY: a sigevent of zeroes is a valid one.
        let mut event: libc::sigevent = unsafe { MaybeUninit::zeroed().assume_init() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = number();
        event.sigev_notify_thread_id = pagelease_sys::thread::tid_uncached().cast_signed();
        let mut id = core::ptr::null_mut();
        // SAFETY: the pointers are to an event, and to room for a timer's identity.
        match unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut id) } {
            0 => Ok(Self { id }),
            _ => Err(last_errno()),
        }
    }

    /// Rings once after `duration`; a zero or `Duration::MAX` means never.
    pub(crate) fn set(&self, duration: Duration) {
        let value = match (duration, libc::time_t::try_from(duration.as_secs())) {
            (Duration::MAX, _) | (_, Err(_)) => libc::timespec { tv_sec: 0, tv_nsec: 0 },
            (_, Ok(tv_sec)) => libc::timespec { tv_sec, tv_nsec: duration.subsec_nanos().into() },
        };
        let once = libc::itimerspec { it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        // SAFETY: the timer is ours, and the pointer is to a time. It fails only for a malformed time.
        unsafe { libc::timer_settime(self.id, 0, &raw const once, core::ptr::null_mut()) };
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: the timer is ours, and deleted once.
        unsafe { libc::timer_delete(self.id) };
    }
}
