//! [`Ranges`]: which parts of an address range are free. First fit; neighbours are joined when they come back.
//!
//! Invariant: the free parts are disjoint, none is empty, and no two of them touch.

use std::collections::BTreeMap;

/// Free parts of a range, by their start.
#[derive(Debug)]
pub(crate) struct Ranges {
    free: BTreeMap<u64, u64>,
}

impl Ranges {
    /// All of `start..end` is free.
    pub(crate) fn new(start: u64, end: u64) -> Self {
        Self { free: BTreeMap::from([(start, end)]) }
    }

    /// Takes `len` bytes at an address that leaves the same remainder as `congruent` when divided by `align`, a power of two.
    pub(crate) fn take(&mut self, len: u64, congruent: u64, align: u64) -> Option<u64> {
        let (start, end, at) = self.free.iter().find_map(|(&start, &end)| {
            let at = start.checked_add(congruent.wrapping_sub(start) & (align - 1))?;
            (at.checked_add(len)? <= end).then_some((start, end, at))
        })?;
        self.free.remove(&start);
        if start < at {
            self.free.insert(start, at);
        }
        if at + len < end {
            self.free.insert(at + len, end);
        }
        Some(at)
    }

    /// Gives back what [`Ranges::take`] took.
    pub(crate) fn give(&mut self, at: u64, len: u64) {
        let (mut start, mut end) = (at, at + len);
        if let Some((&before, &before_end)) = self.free.range(..at).next_back() {
            debug_assert!(before_end <= at, "given back twice");
            if before_end == at {
                start = before;
            }
        }
        if let Some(after_end) = self.free.remove(&end) {
            end = after_end;
        }
        self.free.insert(start, end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_back_is_joined_again() {
        let mut ranges = Ranges::new(0x1000, 0x9000);
        let taken: Vec<_> = (0..8).map(|_| ranges.take(0x1000, 0, 0x1000).unwrap()).collect();
        assert_eq!(ranges.take(1, 0, 1), None);
        for at in [1, 3, 2, 0, 7, 5, 6, 4] {
            ranges.give(taken[at], 0x1000);
        }
        assert_eq!(ranges.free, BTreeMap::from([(0x1000, 0x9000)]));
    }

    #[test]
    fn an_address_has_the_remainder_asked_for() {
        let mut ranges = Ranges::new(0x1000, 0x10_0000);
        assert_eq!(ranges.take(0x3000, 0x7f12_5000, 0x8000), Some(0x5000));
        assert_eq!(ranges.take(0x4000, 0x1000, 0x1000), Some(0x1000), "what lies before is free still");
        assert_eq!(ranges.take(0x10_0000, 0, 0x1000), None);
        assert_eq!(ranges.take(u64::MAX, 0, 1), None);
    }
}
