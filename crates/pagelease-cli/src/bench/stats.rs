//! Samples, and what is said of them: the median, and the quartiles around it.
//!
//! No means: one descheduled sample among a thousand would move them, and on a shared machine there always is one.

use pagelease_sys::thread::monotonic_ns;
use rustix::time::{ClockId, clock_gettime};

/// The time that `work` takes, in nanoseconds. Asking the clock costs some 25 ns, the same in both arms.
#[inline]
pub(super) fn time<R>(work: impl FnOnce() -> R) -> (R, u64) {
    let begin_ns = monotonic_ns();
    let result = work();
    (result, monotonic_ns() - begin_ns)
}

/// The time that the calling thread's CPU spends on `work`, in nanoseconds: for work of which a sample is so long that it is
/// interrupted by others on a busy machine, and which never sleeps. Asking takes a system call.
pub(super) fn cpu_time<R>(work: impl FnOnce() -> R) -> (R, u64) {
    let now_ns = || {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
    };
    let begin_ns = now_ns();
    let result = work();
    (result, now_ns() - begin_ns)
}

/// Spins for `ns`: unlike a sleep, it leaves the CPU awake, and its caches as they are.
pub(super) fn spin_for(ns: u64) {
    let begin_ns = monotonic_ns();
    while monotonic_ns() - begin_ns < ns {
        core::hint::spin_loop();
    }
}

/// Times, in nanoseconds.
#[derive(Clone, Debug, Default)]
pub(super) struct Samples(Vec<u64>);

impl Samples {
    pub(super) fn push(&mut self, ns: u64) {
        self.0.push(ns);
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Their quartiles; of nothing, zeroes.
    pub(super) fn summary(&self) -> Summary {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let at = |quarter: usize| sorted.get(sorted.len() * quarter / 4).or(sorted.last()).map_or(0.0, |&ns| ns as f64);
        Summary { p25: at(1), median: at(2), p75: at(3) }
    }
}

/// The quartiles of some samples, in nanoseconds.
#[derive(Copy, Clone, Debug)]
pub(super) struct Summary {
    pub(super) p25: f64,
    pub(super) median: f64,
    pub(super) p75: f64,
}

impl Summary {
    /// The time of one, where each sample is of `count`.
    pub(super) fn per(self, count: usize) -> Self {
        let count = count as f64;
        Self { p25: self.p25 / count, median: self.median / count, p75: self.p75 / count }
    }
}

/// The longest that [`Arms::in_turn`] goes on: a machine that has other things to do gives fewer samples, not later ones.
const BUDGET_NS: u64 = 15_000_000_000;

/// The two arms of a ratio.
#[derive(Clone, Debug, Default)]
pub(super) struct Arms {
    /// What is measured.
    pub(super) value: Samples,
    /// What it is measured against.
    pub(super) floor: Samples,
    /// How often each arm has run, counted or not.
    pub(super) rounds: usize,
}

impl Arms {
    /// Runs both arms in turn, `rounds` times: value, floor, value, floor. So whatever else the machine does meanwhile
    /// falls on both alike. Before that, both run for a sixteenth of the rounds without being counted, and once at least:
    /// caches fill, memory is populated.
    ///
    /// Each arm is given the round's number, and returns its time.
    pub(super) fn in_turn<E>(
        rounds: usize,
        mut value: impl FnMut(usize) -> Result<u64, E>,
        mut floor: impl FnMut(usize) -> Result<u64, E>,
    ) -> Result<Self, E> {
        let mut arms = Self::default();
        let warm_up = rounds / 16 + 1;
        let end_ns = monotonic_ns() + BUDGET_NS;
        while arms.rounds < warm_up + rounds && (arms.rounds <= warm_up || monotonic_ns() < end_ns) {
            let (value_ns, floor_ns) = (value(arms.rounds)?, floor(arms.rounds)?);
            if arms.rounds >= warm_up {
                arms.value.push(value_ns);
                arms.floor.push(floor_ns);
            }
            arms.rounds += 1;
        }
        Ok(arms)
    }
}

/// Pseudo-random numbers (SplitMix64): the same ones every time.
#[derive(Clone, Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    /// The next one below `bound`.
    pub(super) fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((bits >> 32) * u64::from(bound)) >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_are_samples() {
        let summary = Samples((1..=100).rev().collect()).summary();
        assert_eq!((summary.p25, summary.median, summary.p75), (26.0, 51.0, 76.0));
        assert_eq!(summary.per(10).median, 5.1);
        let one = Samples(vec![7]).summary();
        assert_eq!((one.p25, one.median, one.p75), (7.0, 7.0, 7.0));
        assert_eq!(Samples::default().summary().median, 0.0);
    }

    #[test]
    fn arms_take_turns_and_the_warm_up_is_not_counted() {
        let order = core::cell::RefCell::new(Vec::new());
        let arm = |number: usize, ns: u64| {
            let order = &order;
            move |round| {
                order.borrow_mut().push(2 * round + number);
                Ok::<_, ()>(ns)
            }
        };
        let arms = Arms::in_turn(16, arm(0, 5), arm(1, 4)).unwrap();
        assert_eq!((arms.value.0, arms.floor.0), (vec![5; 16], vec![4; 16]));
        assert_eq!(order.into_inner(), (0..36).collect::<Vec<_>>());
    }

    #[test]
    fn random_numbers_stay_below_their_bound_and_reach_it() {
        let mut random = Random(1);
        let mut seen = [0; 8];
        (0..800).for_each(|_| seen[random.below(8) as usize] += 1);
        assert!(seen.iter().all(|&count| count > 50), "{seen:?}");
    }
}
