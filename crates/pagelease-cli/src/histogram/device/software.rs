//! The software device: chunks become items, one non-atomic update for each unit of the file.
//!
//! An item names a page of the table and up to [`LANES`] of its counters, so that the device is told three updates at a time;
//! a counter that occurs three times is named three times, and updated three times. The items of a chunk go page by page: the
//! device then claims a page once for many updates.

use std::sync::Arc;
use std::sync::atomic::AtomicU8;

use anyhow::{Context, Result};
use pagelease::software::{DevicePage, Item, Job, Operation, SoftwareConfig, SoftwareDevice};
use pagelease::{PageIndex, Region, Space, View};

use super::{Counting, Pending};
use crate::histogram::unit::Unit;

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

/// A software device, and what it counts into.
pub(super) struct Software {
    view: View,
    operation: Arc<dyn Operation>,
    unit: Unit,
    batch: Batch,
    device: SoftwareDevice,
}

impl Software {
    pub(super) fn start(space: &Space, table: &Region, unit: Unit, config: SoftwareConfig) -> Result<Self> {
        let device = SoftwareDevice::start(space, config)?;
        let view = device.attach(table)?;
        let batch = Batch::new(unit, view.words(PageIndex(0)).len());
        Ok(Self { view, operation: Arc::new(count), unit, batch, device })
    }
}

impl Counting for Software {
    fn submit(&mut self, bytes: &[AtomicU8]) -> Result<Box<dyn Pending>> {
        self.batch.fill(self.unit, bytes);
        Ok(Box::new(self.device.submit(&self.view, self.operation.clone(), &self.batch.items)))
    }
}

impl Pending for Job {
    fn wait(self: Box<Self>) -> Result<()> {
        (*self).wait().context("the software device failed")
    }
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
