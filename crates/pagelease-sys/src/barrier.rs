//! `membarrier`, private expedited: a full memory barrier on every CPU that runs a thread of this process, at the
//! cost of one system call on one side, and of nothing but a compiler fence on the other.
//!
//! The pairing: thread W stores A, then (compiler fence) loads B. Thread I stores B, then [`barrier`], then loads
//! A. Either W sees I's store to B, or I sees W's store to A.
//!
//! Signal-safe: everything here.

use rustix::io::Errno;
use rustix::thread::{MembarrierCommand, membarrier, membarrier_query};

/// Whether the kernel has it (4.14).
pub fn supported() -> bool {
    let commands = membarrier_query();
    commands.contains_command(MembarrierCommand::RegisterPrivateExpedited)
        && commands.contains_command(MembarrierCommand::PrivateExpedited)
}

/// Tells the kernel that this process will use [`barrier`]. Once is enough, for forked children too; more often does
/// no harm. The first time costs milliseconds (5 to 9 measured) in a process with several threads.
///
/// # Errors
///
/// `NOSYS`, `INVAL`: the kernel does not have it.
pub fn register() -> Result<(), Errno> {
    membarrier(MembarrierCommand::RegisterPrivateExpedited)
}

/// A full memory barrier on every CPU that runs a thread of this process. It interrupts those CPUs: 10 to 20 us when
/// there are any besides the caller's, half a microsecond when there are none.
///
/// Aborts the process when the kernel refuses, which it does not after a successful [`register`]: to go on without
/// the barrier would be to lose writes.
#[inline]
pub fn barrier() {
    if membarrier(MembarrierCommand::PrivateExpedited).is_err() {
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed, compiler_fence};

    /// The pairing of the module's documentation, many times: never do both sides miss the other.
    #[test]
    fn one_side_always_sees_the_other() {
        assert!(supported());
        register().unwrap();
        register().unwrap();
        const ROUNDS: usize = 2000;
        let (a, b, missed) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
        let line = Barrier::new(2);
        let cheap_side = || {
            for _ in 0..ROUNDS {
                line.wait();
                a.store(1, Relaxed);
                compiler_fence(std::sync::atomic::Ordering::SeqCst);
                let saw = b.load(Relaxed);
                if saw == 0 {
                    missed.fetch_add(1, Relaxed);
                }
                line.wait();
                line.wait();
            }
        };
        let costly_side = || {
            for _ in 0..ROUNDS {
                line.wait();
                b.store(1, Relaxed);
                barrier();
                if a.load(Relaxed) == 0 {
                    missed.fetch_add(1, Relaxed);
                }
                line.wait();
                assert!(missed.load(Relaxed) < 2, "both sides missed the other");
                for word in [&a, &b, &missed] {
                    word.store(0, Relaxed);
                }
                line.wait();
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(cheap_side);
            costly_side();
        });
    }
}
