//! The synchronisation primitives of the engine: the machine's own, or `shuttle`'s for schedule exploration.
//!
//! What the protocol races on (page words, notifier words, lanes, the simulated memory) is built from this module, so that
//! `--cfg pagelease_shuttle` explores the schedules of the shipped code. Some bookkeeping is on `core`'s atomics in both
//! configurations (records' headers, a region's flags, the deputy's places): exploration does not interleave there. The two files beside this one offer the same names:
//!
//! | name | `real` | `explored` |
//! |---|---|---|
//! | atomics, `Mutex`, `Condvar`, `thread` | `std` | `shuttle` (every atomic sequentially consistent) |
//! | [`Word`] | a futex | a mutex and a condition variable, so that a lost wake-up is a deadlock that `shuttle` reports |
//! | [`Table`] | zero-filled pages of a mapping of its own | a vector |
//! | [`Deadline`] | the monotonic clock | a finite one may pass at any moment, by the schedule's choice; an infinite one never |
//! | [`now_ns`] | the monotonic clock | always 0 |
//! | [`by_chance`] | never | as the schedule chooses: for what no schedule may depend on |
//! | [`barrier`] | `membarrier` | nothing to do: sequential consistency is what a membarrier gives |
//! | [`tid`] | the kernel's thread id | the number of the simulated thread |
//! | signals | the kernel's | sent by a test, delivered before any access to a [`Word`], by the schedule's choice |
//!
//! What exploration cannot see is weak memory ordering; the stress tests on real memory are for that.

#[cfg(not(pagelease_shuttle))]
mod real;
#[cfg(not(pagelease_shuttle))]
pub(crate) use real::*;

#[cfg(pagelease_shuttle)]
pub(crate) mod explored;
#[cfg(pagelease_shuttle)]
pub(crate) use explored::*;

/// Whether a wait ended because its deadline passed.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Waited {
    /// The word changed, or may have: look again.
    LookAgain,
    /// The deadline passed.
    TimedOut,
}
