//! `shuttle`'s primitives, for schedule exploration.

use core::cell::{Cell, RefCell};
use core::ops::Deref;
use core::time::Duration;
use std::rc::Rc;

use pagelease_sys::Errno;
use shuttle::rand::Rng;

pub(crate) use shuttle::sync::atomic::{AtomicU16, AtomicU64};
pub(crate) use shuttle::sync::atomic::{AtomicU32, Ordering, compiler_fence, fence};
pub(crate) use shuttle::sync::{Condvar, Mutex, MutexGuard};
pub(crate) use shuttle::thread;

use super::Waited;

/// A 32-bit word that threads can sleep on.
#[derive(Default)]
pub(crate) struct Word {
    value: AtomicU32,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Word {
    pub(crate) fn new(value: u32) -> Self {
        Self { value: AtomicU32::new(value), ..Self::default() }
    }

    pub(crate) fn load(&self) -> u32 {
        maybe_interrupted();
        let value = self.value.load(Ordering::SeqCst);
        self.observed(WordEvent::Loaded(value));
        value
    }

    pub(crate) fn swap_if(&self, current: u32, next: u32) -> Result<(), u32> {
        maybe_interrupted();
        self.observed(WordEvent::Swapping { current, next });
        let swapped = self.value.compare_exchange(current, next, Ordering::SeqCst, Ordering::SeqCst);
        self.observed(WordEvent::Swapped { current, next, changed: swapped.is_ok() });
        swapped.map(|_| ())
    }

    pub(crate) fn bump(&self) {
        self.value.fetch_add(1, Ordering::SeqCst);
    }

    /// A finite deadline may pass at any moment; an infinite one never, and a lost wake-up is then a deadlock.
    pub(crate) fn wait(&self, expected: u32, deadline: Deadline) -> Waited {
        if deadline.finite {
            if self.load() != expected {
                return Waited::LookAgain;
            }
            if deadline.passed() {
                return Waited::TimedOut;
            }
            thread::yield_now();
            return Waited::LookAgain;
        }
        let guard = self.lock.lock().expect("no thread panics with it");
        if self.value.load(Ordering::SeqCst) == expected {
            drop(self.changed.wait(guard).expect("no thread panics with it"));
        }
        Waited::LookAgain
    }

    pub(crate) fn wake_all(&self) {
        let _guard = self.lock.lock().expect("no thread panics with it");
        self.changed.notify_all();
    }

    fn observed(&self, event: WordEvent) {
        let observer = OBSERVER.with_borrow(Clone::clone);
        observer.into_iter().for_each(|observe| observe(core::ptr::from_ref(self).addr(), event));
    }
}

/// What the running simulated thread does to a word. See [`observe_words`].
#[derive(Copy, Clone, Debug)]
pub enum WordEvent {
    /// It has loaded this value.
    Loaded(u32),
    /// It comes to a compare-and-swap. The next scheduling point lies between this and the operation.
    Swapping {
        /// What it expects.
        current: u32,
        /// What it would put.
        next: u32,
    },
    /// It has done it. No scheduling point lies between the operation and this.
    Swapped {
        /// What it expected.
        current: u32,
        /// What it put.
        next: u32,
        /// Whether the word was as expected.
        changed: bool,
    },
}

/// Is told the address of the word, and the event. It must not do anything that shuttle schedules.
pub type WordObserver = Rc<dyn Fn(usize, WordEvent)>;

std::thread_local! {
    /// Of the executions that this thread runs: a simulated thread is none of its own.
    static OBSERVER: RefCell<Option<WordObserver>> = const { RefCell::new(None) };
}

/// Has `observer` told of every access to a word by the executions that the calling thread runs from now on, or nobody.
pub fn observe_words(observer: Option<WordObserver>) {
    OBSERVER.set(observer);
}

/// A moment after which a wait gives up; may be never.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Deadline {
    finite: bool,
}

impl Deadline {
    pub(crate) const NEVER: Self = Self { finite: false };

    pub(crate) fn after(limit: Duration) -> Self {
        Self { finite: limit != Duration::MAX }
    }

    pub(crate) const fn at(ns: u64) -> Self {
        Self { finite: ns != u64::MAX }
    }

    pub(crate) const fn earlier(self, other: Self) -> Self {
        Self { finite: self.finite || other.finite }
    }

    /// Monitors of real memory, which alone ask, are not explored.
    pub(crate) fn remaining(self) -> Option<Duration> {
        None
    }

    pub(crate) fn passed(self) -> bool {
        self.finite && shuttle::rand::thread_rng().gen_bool(0.25)
    }
}

/// Waits on a condition variable; a finite deadline may pass at any moment.
pub(crate) fn wait_until<'a, T>(
    condvar: &Condvar,
    mutex: &'a Mutex<T>,
    guard: MutexGuard<'a, T>,
    deadline: Deadline,
) -> (MutexGuard<'a, T>, Waited) {
    if deadline.passed() {
        return (guard, Waited::TimedOut);
    }
    if deadline.finite {
        // Not `wait_timeout`: `shuttle`'s never times out.
        drop(guard);
        thread::yield_now();
        return (mutex.lock().expect("not poisoned"), Waited::LookAgain);
    }
    (condvar.wait(guard).expect("not poisoned"), Waited::LookAgain)
}

pub(crate) fn now_ns() -> u64 {
    0
}

pub(crate) fn tid() -> u32 {
    let id = usize::from(thread::current().id());
    u32::try_from(id).expect("few simulated threads") + 1
}

type Handler = Box<dyn FnOnce()>;

shuttle::thread_local! {
    /// The handler of a signal that is on its way to the thread.
    static PENDING: RefCell<Option<Handler>> = RefCell::new(None);
    /// How many [`SignalsBlocked`] the thread has.
    static BLOCKED: Cell<u32> = Cell::new(0);
}

/// Sends the calling thread a signal, whose `handler` interrupts it before some access to a [`Word`], by the schedule's
/// choice; once, and not while it has signals blocked.
pub fn interrupt(handler: impl FnOnce() + 'static) {
    PENDING.with(|pending| *pending.borrow_mut() = Some(Box::new(handler)));
}

fn maybe_interrupted() {
    let deliverable = BLOCKED.with(Cell::get) == 0 && PENDING.with(|pending| pending.borrow().is_some());
    if deliverable && shuttle::rand::thread_rng().gen_bool(0.1) {
        let handler = PENDING.with(|pending| pending.borrow_mut().take());
        handler.into_iter().for_each(|handler| handler());
    }
}

/// No signal handler of the calling thread runs while this lives.
pub struct SignalsBlocked(());

/// Keeps every signal handler of the calling thread from running until the guard is dropped.
pub fn block_signals() -> SignalsBlocked {
    BLOCKED.with(|blocked| blocked.set(blocked.get() + 1));
    SignalsBlocked(())
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        BLOCKED.with(|blocked| blocked.set(blocked.get() - 1));
    }
}

pub(crate) fn barrier() {
    thread::yield_now();
}

pub(crate) fn relax(_turn: u32) {
    thread::yield_now();
}

/// Gives way until `deadline`, which may pass at any moment.
pub(crate) fn sleep_until(deadline: Deadline) {
    while !deadline.passed() {
        thread::yield_now();
    }
}

/// A choice that is the schedule's.
pub(crate) fn by_chance() -> bool {
    shuttle::rand::thread_rng().gen_bool(0.5)
}

pub(crate) trait Zeroed: Default {}
impl Zeroed for Word {}
impl Zeroed for core::sync::atomic::AtomicU8 {}
impl Zeroed for AtomicU16 {}
impl Zeroed for AtomicU32 {}
impl Zeroed for AtomicU64 {}

/// An array of zeroes.
pub(crate) struct Table<T>(Vec<T>);

impl<T: Zeroed> Table<T> {
    pub(crate) fn zeroed(len: usize) -> Result<Self, Errno> {
        Ok(Self((0..len).map(|_| T::default()).collect()))
    }
}

impl<T> Deref for Table<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}
