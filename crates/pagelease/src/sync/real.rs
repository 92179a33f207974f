//! The machine's own primitives.
//!
//! Invariant of [`Table`]: its mapping is zero-filled, as long as the slice it derefs to, and lives as long as the table;
//! its elements are [`Zeroed`], for which all-zero bytes are a valid value.

use core::marker::PhantomData;
use core::ops::Deref;
use core::time::Duration;

pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
pub(crate) use std::thread;

pub(crate) use core::sync::atomic::{AtomicU16, AtomicU64};
pub(crate) use core::sync::atomic::{AtomicU32, Ordering, compiler_fence, fence};

use pagelease_sys::mem::Mapping;
use pagelease_sys::{Errno, futex};

use super::Waited;
use crate::shared::own_mapping;

/// A 32-bit word that threads can sleep on.
#[repr(transparent)]
pub(crate) struct Word(AtomicU32);

impl Word {
    pub(crate) const fn new(value: u32) -> Self {
        Self(AtomicU32::new(value))
    }

    #[inline]
    pub(crate) fn load(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }

    /// Puts `next` if the word still is `current`. Sequentially consistent: the drain leans on it.
    #[inline]
    pub(crate) fn swap_if(&self, current: u32, next: u32) -> Result<(), u32> {
        match self.0.compare_exchange(current, next, Ordering::SeqCst, Ordering::Acquire) {
            Ok(_) => Ok(()),
            Err(found) => Err(found),
        }
    }

    pub(crate) fn bump(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    /// Sleeps while the word is `expected`, at most until `deadline`. Signal-safe.
    pub(crate) fn wait(&self, expected: u32, deadline: Deadline) -> Waited {
        let timeout = match deadline.remaining() {
            Some(left) if left.is_zero() => return Waited::TimedOut,
            other => other,
        };
        match futex::wait(&self.0, expected, timeout) {
            futex::Woken::TimedOut => Waited::TimedOut,
            _ => Waited::LookAgain,
        }
    }

    /// Wakes every thread that sleeps on the word. Signal-safe.
    pub(crate) fn wake_all(&self) {
        futex::wake_all(&self.0);
    }
}

/// A moment after which a wait gives up; may be never.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Deadline(u64);

impl Deadline {
    pub(crate) const NEVER: Self = Self(u64::MAX);

    pub(crate) fn after(limit: Duration) -> Self {
        if limit == Duration::MAX {
            return Self::NEVER;
        }
        Self::at(now_ns().saturating_add(u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX)))
    }

    pub(crate) const fn at(ns: u64) -> Self {
        Self(ns)
    }

    pub(crate) fn passed(self) -> bool {
        self.0 != u64::MAX && now_ns() >= self.0
    }

    pub(crate) fn earlier(self, other: Self) -> Self {
        Self(self.0.min(other.0))
    }

    pub(crate) fn remaining(self) -> Option<Duration> {
        (self.0 != u64::MAX).then(|| Duration::from_nanos(self.0.saturating_sub(now_ns())))
    }
}

/// Waits on a condition variable, at most until `deadline`.
pub(crate) fn wait_until<'a, T>(
    condvar: &Condvar,
    _mutex: &'a Mutex<T>,
    guard: MutexGuard<'a, T>,
    deadline: Deadline,
) -> (MutexGuard<'a, T>, Waited) {
    match deadline.remaining() {
        None => (condvar.wait(guard).expect("not poisoned"), Waited::LookAgain),
        Some(left) => {
            let (guard, result) = condvar.wait_timeout(guard, left).expect("not poisoned");
            (guard, if result.timed_out() { Waited::TimedOut } else { Waited::LookAgain })
        }
    }
}

pub(crate) fn now_ns() -> u64 {
    pagelease_sys::thread::monotonic_ns()
}

/// The calling thread. Not for signal handlers: it caches.
pub(crate) fn tid() -> u32 {
    pagelease_sys::thread::tid()
}

/// Keeps every signal handler of the calling thread from running until the guard is dropped. Signal-safe.
pub(crate) fn block_signals() -> pagelease_sys::thread::SignalsBlocked {
    pagelease_sys::thread::block_all_signals()
}

/// After it returns, every other thread of the process has executed a full memory barrier. Signal-safe.
pub(crate) fn barrier() {
    pagelease_sys::barrier::barrier();
}

/// One turn of waiting for another thread that is running: spins first, then gives the CPU away, then sleeps. Signal-safe.
pub(crate) fn relax(turn: u32) {
    match turn {
        0..200 => core::hint::spin_loop(),
        200..400 => pagelease_sys::thread::yield_now(),
        _ => pagelease_sys::thread::sleep(Duration::from_micros(50)),
    }
}

/// Sleeps until `deadline`, which is finite. Signal-safe.
pub(crate) fn sleep_until(deadline: Deadline) {
    // A signal ends a sleep early.
    while let Some(left) = deadline.remaining().filter(|left| !left.is_zero()) {
        pagelease_sys::thread::sleep(left);
    }
}

/// What explored schedules choose: never, on a real machine.
pub(crate) const fn by_chance() -> bool {
    false
}

/// Marks types for which all-zero bytes are a valid value.
///
/// # Safety
/// They must be, and the type must not need dropping.
pub(crate) unsafe trait Zeroed {}
// SAFETY: an atomic integer of zero bits is zero.
unsafe impl Zeroed for Word {}
// SAFETY: an atomic integer of zero bits is zero.
unsafe impl Zeroed for core::sync::atomic::AtomicU8 {}
// SAFETY: an atomic integer of zero bits is zero.
unsafe impl Zeroed for AtomicU16 {}
// SAFETY: an atomic integer of zero bits is zero.
unsafe impl Zeroed for AtomicU32 {}
// SAFETY: an atomic integer of zero bits is zero.
unsafe impl Zeroed for AtomicU64 {}

/// A zero-filled array in a mapping of its own, populated as it is touched: a large one costs nothing until used.
pub(crate) struct Table<T> {
    mapping: Mapping,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Zeroed> Table<T> {
    pub(crate) fn zeroed(len: usize) -> Result<Self, Errno> {
        let bytes = len.checked_mul(size_of::<T>()).ok_or(Errno::NOMEM)?;
        Ok(Self { mapping: own_mapping(bytes)?, len, of: PhantomData })
    }
}

impl<T: Zeroed> Deref for Table<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: the module's invariant: `len` zeroed elements, alive as long as `self`.
        unsafe { core::slice::from_raw_parts(self.mapping.as_ptr().cast::<T>(), self.len) }
    }
}
