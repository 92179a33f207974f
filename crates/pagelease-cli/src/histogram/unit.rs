//! What is counted: bytes, or pairs of bytes.
//!
//! A pair is 16 bits, little-endian, at an even offset: pairs do not overlap. The last byte of a file of odd length makes a
//! pair with a zero, as for `od -An -v -tu2`.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use clap::ValueEnum;

/// What is counted.
#[derive(Copy, Clone, Debug, Eq, PartialEq, ValueEnum)]
pub(super) enum Unit {
    /// Bytes: 256 counters, which lie in one page
    Byte,
    /// 16-bit little-endian byte pairs: 65,536 counters, in 128 pages
    Pair,
}

impl Unit {
    /// How many values there are, and so counters.
    pub(super) fn values(self) -> usize {
        match self {
            Self::Byte => 1 << 8,
            Self::Pair => 1 << 16,
        }
    }

    /// How many bytes one has.
    pub(super) fn len(self) -> usize {
        match self {
            Self::Byte => 1,
            Self::Pair => 2,
        }
    }

    /// How many there are in so many bytes.
    pub(super) fn count(self, bytes: usize) -> usize {
        bytes.div_ceil(self.len())
    }

    /// What several are called.
    pub(super) fn plural(self) -> &'static str {
        match self {
            Self::Byte => "bytes",
            Self::Pair => "byte pairs",
        }
    }

    /// Calls `f` with the value of each unit, in order. `bytes` begin at an even offset of the file.
    #[inline]
    pub(super) fn for_each(self, bytes: &[AtomicU8], mut f: impl FnMut(u16)) {
        match self {
            Self::Byte => bytes.iter().for_each(|byte| f(byte.load(Relaxed).into())),
            Self::Pair => {
                let (pairs, odd) = bytes.as_chunks();
                for [low, high] in pairs {
                    f(u16::from_le_bytes([low.load(Relaxed), high.load(Relaxed)]));
                }
                odd.iter().for_each(|byte| f(byte.load(Relaxed).into()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(unit: Unit, bytes: &[u8]) -> Vec<u16> {
        let bytes: Vec<AtomicU8> = bytes.iter().map(|&byte| AtomicU8::new(byte)).collect();
        let mut values = Vec::new();
        unit.for_each(&bytes, |value| values.push(value));
        values
    }

    #[test]
    fn a_pair_is_little_endian_and_an_odd_byte_makes_one_with_zero() {
        assert_eq!(values(Unit::Byte, &[1, 2, 255]), [1, 2, 255]);
        assert_eq!(values(Unit::Pair, &[1, 2, 255]), [0x0201, 0x00ff]);
        assert_eq!(values(Unit::Pair, &[1, 2]), [0x0201]);
        assert!(values(Unit::Pair, &[]).is_empty());
    }
}
