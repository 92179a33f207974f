//! Memory for the chunks that a device reads: a region of its own, which the CPU fills and the device then has.

use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Context, Result};
use pagelease::{ByteLen, PageIndex, PageRange, Region, Space};

use super::IN_FLIGHT;
use crate::histogram::split::CHUNK_MAX;

pub(super) struct Chunks {
    pub(super) region: Region,
    next: usize,
}

/// Where a chunk lies.
pub(super) struct Slot {
    /// The pages that it takes.
    pub(super) pages: PageRange,
    /// Where it starts in the region, in bytes.
    pub(super) start: usize,
}

impl Chunks {
    /// Room for as many chunks as are in flight.
    pub(super) fn new(space: &Space) -> Result<Self> {
        let region = space.allocate(ByteLen(IN_FLIGHT * slot_len())).context("memory for the chunks of a device")?;
        Ok(Self { region, next: 0 })
    }

    /// Copies a chunk to where the device shall read it: the touch waits for the device, if it has not done with what was there.
    /// What is missing to a whole word is 0.
    pub(super) fn put(&mut self, bytes: &[AtomicU8]) -> Slot {
        let start = self.next * slot_len();
        self.next = (self.next + 1) % IN_FLIGHT;
        let (whole, rest) = bytes.as_chunks::<8>();
        let words = &self.region.words()[start / 8..];
        let word = |bytes: &[AtomicU8]| {
            let mut word = [0; 8];
            word.iter_mut().zip(bytes).for_each(|(to, from)| *to = from.load(Relaxed));
            u64::from_le_bytes(word)
        };
        words.iter().zip(whole).for_each(|(to, from)| to.store(word(from), Relaxed));
        words[whole.len()].store(word(rest), Relaxed);
        let granule = self.region.granule().0;
        let page = |byte: usize| PageIndex(u32::try_from(byte / granule).expect("a few pages"));
        let pages = PageRange::new(page(start).0, page(start + bytes.len()).0 + 1).expect("at least one");
        Slot { pages, start }
    }
}

/// The largest chunk, and a word behind it; whole pages.
fn slot_len() -> usize {
    let chunk = usize::try_from(CHUNK_MAX).expect("a small constant");
    (chunk + 8).next_multiple_of(pagelease_sys::page_size())
}
