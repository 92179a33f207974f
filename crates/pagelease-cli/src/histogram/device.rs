//! The device's side: chunks become items for the software device, one non-atomic update for each unit of the file.
//!
//! An item names a page of the table and up to [`LANES`] of its counters, so that the device is told three updates at a time;
//! a counter that occurs three times is named three times, and updated three times. The items of a chunk go page by page: the
//! device then claims a page once for many updates.
//!
//! The feeder prepares the next chunk while the device works: [`IN_FLIGHT`] chunks are submitted at most.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;

use anyhow::{Context, Result};
use pagelease::software::{DevicePage, Item, Job, Operation, SoftwareDevice};
use pagelease::{PageIndex, View};

use super::split::{self, Split, Starting};
use super::unit::Unit;

/// Chunks that the device has to work on, at most: one to do, and one for when it is done.
const IN_FLIGHT: usize = 2;

/// Counters that an item names: so many indices of words are its argument.
const LANES: usize = 3;

/// The bits of such an index: enough for the words of a huge page.
const INDEX_BITS: usize = 21;

/// In an argument: no counter. No page has that many words, see [`Batch::new`].
const NONE: u32 = (1 << INDEX_BITS) - 1;

/// What the device does with an item.
fn count(page: &DevicePage<'_>, argument: u64) {
    for word in unpack(argument) {
        page.update(word, |count| count + 1);
    }
}

fn pack(words: &[u32]) -> u64 {
    words.iter().rfold(u64::MAX, |argument, &word| argument << INDEX_BITS | u64::from(word))
}

#[inline]
fn unpack(argument: u64) -> impl Iterator<Item = usize> {
    let word = move |lane| (argument >> (INDEX_BITS * lane)) & u64::from(NONE);
    (0..LANES).map(word).filter(|&word| word != u64::from(NONE)).map(|word| usize::try_from(word).expect("21 bits"))
}

/// Has the device count `chunk`, and then chunk after chunk until none is left. Returns how many bytes that was.
pub(super) fn feed(split: &Split<'_>, device: &SoftwareDevice, view: &View, chunk: Option<Range<u64>>) -> Result<u64> {
    let mut starting = Some(Starting(split));
    let operation: Arc<dyn Operation> = Arc::new(count);
    let words = view.words(PageIndex(0)).len();
    let mut batch = Batch::new(split.unit, words);
    let mut in_flight: VecDeque<(Job, u64)> = VecDeque::new();
    let mut counted = 0;
    let mut finish = |(job, bytes): (Job, u64)| -> Result<()> {
        job.wait().context("the software device failed")?;
        counted += bytes;
        split.done(bytes);
        Ok(())
    };
    let mut next = chunk;
    while let Some(chunk) = next {
        batch.fill(split.unit, split.input.window(chunk.clone())?.bytes());
        if in_flight.len() == IN_FLIGHT
            && let Some(oldest) = in_flight.pop_front()
        {
            finish(oldest)?;
        }
        let job = device.submit(view, operation.clone(), &batch.items);
        drop(starting.take());
        in_flight.push_back((job, split::len(&chunk)));
        next = split.take();
    }
    in_flight.into_iter().try_for_each(&mut finish)?;
    Ok(counted)
}

/// The items of one chunk. Kept from chunk to chunk for its memory.
struct Batch {
    words_per_page: usize,
    /// For each page of the table, which of its counters to raise, in the order of the file.
    pages: Vec<Vec<u32>>,
    items: Vec<Item>,
}

impl Batch {
    fn new(unit: Unit, words_per_page: usize) -> Self {
        assert!(words_per_page < NONE as usize, "an argument has {INDEX_BITS} bits for the index of a word");
        let pages = unit.values().div_ceil(words_per_page);
        Self { words_per_page, pages: vec![Vec::new(); pages], items: Vec::new() }
    }

    fn fill(&mut self, unit: Unit, bytes: &[AtomicU8]) {
        unit.for_each(bytes, |value| {
            let value = usize::from(value);
            let word = u32::try_from(value % self.words_per_page).expect("a page has fewer words");
            self.pages[value / self.words_per_page].push(word);
        });
        self.items.clear();
        for (page, words) in (0..).map(PageIndex).zip(&mut self.pages) {
            self.items.extend(words.chunks(LANES).map(|words| Item { page, argument: pack(words) }));
            words.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_argument_names_up_to_three_words() {
        for words in [&[0][..], &[511, 0], &[1, 2, 3], &[7, 7, 7], &[65535, 262_143, 0]] {
            let unpacked: Vec<usize> = unpack(pack(words)).collect();
            assert_eq!(unpacked, words.iter().map(|&word| word as usize).collect::<Vec<_>>());
        }
        assert_eq!(unpack(pack(&[])).count(), 0);
    }

    #[test]
    fn a_batch_has_an_update_for_each_unit_and_goes_page_by_page() {
        let bytes: Vec<AtomicU8> = [0, 2, 1, 0, 0, 2, 5].map(AtomicU8::new).into();
        let mut batch = Batch::new(Unit::Pair, 512);
        for _ in 0..2 {
            batch.fill(Unit::Pair, &bytes);
            let updates: Vec<(u32, Vec<usize>)> =
                batch.items.iter().map(|item| (item.page.0, unpack(item.argument).collect())).collect();
            assert_eq!(updates, [(0, vec![1, 5]), (1, vec![0, 0])]);
        }
    }
}
