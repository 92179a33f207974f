//! Waiting on a 32-bit word until somebody changes it. Words of this process only (`FUTEX_PRIVATE_FLAG`).
//!
//! The rule for callers: whoever changes the word calls [`wake`] after the change; whoever waits looks at the word
//! again after [`wait`], whatever that returned.
//!
//! Signal-safe: everything here.

use core::sync::atomic::AtomicU32;
use core::time::Duration;
use rustix::io::Errno;
use rustix::thread::futex::{self, Flags};
use rustix::time::Timespec;

/// Why a wait ended.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
#[must_use = "a wait may end for four reasons"]
pub enum Woken {
    /// Somebody called [`wake`], or the kernel woke for no reason, which it may.
    Woken,
    /// The word was not the expected one: there was no wait.
    Changed,
    /// The time was up.
    TimedOut,
    /// A signal was handled.
    Interrupted,
}

/// Sleeps as long as `word` is `expected`, until [`wake`], at most `timeout` (monotonic clock; `None`: forever).
/// The comparison and going to sleep are one step for every [`wake`] on the same word.
#[inline]
pub fn wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) -> Woken {
    let timeout =
        timeout.map(|duration| Timespec::try_from(duration).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 }));
    match futex::wait(word, Flags::PRIVATE, expected, timeout.as_ref()) {
        Ok(()) => Woken::Woken,
        Err(Errno::AGAIN) => Woken::Changed,
        Err(Errno::TIMEDOUT) => Woken::TimedOut,
        // EINTR. The address is a live word's and the time is well-formed, so nothing else can come.
        Err(_) => Woken::Interrupted,
    }
}

/// Wakes at most `count` of the threads that wait on `word`. Returns how many it woke.
#[inline]
pub fn wake(word: &AtomicU32, count: u32) -> usize {
    // The kernel's count is a signed int.
    let count = count.min(i32::MAX.cast_unsigned());
    // The address is a live word's: it cannot fail.
    futex::wake(word, Flags::PRIVATE, count).unwrap_or(0)
}

/// Wakes every thread that waits on `word`. Returns how many.
#[inline]
pub fn wake_all(word: &AtomicU32) -> usize {
    wake(word, u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::SeqCst;
    use std::time::Instant;

    #[test]
    fn a_word_that_changed_is_not_waited_for() {
        assert_eq!(wait(&AtomicU32::new(1), 0, None), Woken::Changed);
    }

    #[test]
    fn a_wait_ends_when_the_time_is_up() {
        let begin = Instant::now();
        let timeout = Duration::from_millis(20);
        assert_eq!(wait(&AtomicU32::new(0), 0, Some(timeout)), Woken::TimedOut);
        assert!(begin.elapsed() >= timeout);
        assert_eq!(wait(&AtomicU32::new(0), 0, Some(Duration::ZERO)), Woken::TimedOut);
    }

    #[test]
    fn the_longest_timeout_is_a_valid_one() {
        assert_eq!(wait(&AtomicU32::new(1), 0, Some(Duration::MAX)), Woken::Changed);
    }

    #[test]
    fn a_waker_wakes() {
        let word = AtomicU32::new(0);
        assert_eq!(wake_all(&word), 0, "nobody waits");
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                while word.load(SeqCst) == 0 {
                    let _ = wait(&word, 0, Some(Duration::from_secs(10)));
                }
            });
            std::thread::sleep(Duration::from_millis(10));
            word.store(1, SeqCst);
            wake(&word, 1);
            waiter.join().unwrap();
        });
    }

    #[test]
    fn wake_counts_whom_it_woke() {
        let word = AtomicU32::new(0);
        std::thread::scope(|scope| {
            let waiters = [(); 2].map(|()| scope.spawn(|| wait(&word, 0, Some(Duration::from_secs(10)))));
            let mut woken = 0;
            while woken < 2 {
                woken += wake(&word, 1);
                std::thread::yield_now();
            }
            assert_eq!(waiters.map(|waiter| waiter.join().unwrap()), [Woken::Woken; 2]);
        });
    }
}
