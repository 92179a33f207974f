//! [`Tables`]: the guest's page tables: which addresses of the program a vCPU reaches, and where its physical memory has them.
//!
//! Four levels; leaves of 2 MiB where address and physical address allow it, of 4 KiB elsewhere. The accessed and dirty bits
//! are set from the start, so that nobody has to.
//!
//! Invariants:
//!
//! 1. An entry goes from absent to present while vCPUs run, and back only while none does: KVM does not see what the host
//!    changes in a present entry.
//! 2. A table once linked stays linked. It is used again when its addresses are.

use core::ops::Range;

use crate::block::{Area, Block, PAGE};

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

/// What a leaf of level 2 maps.
pub(crate) const LARGE_PAGE: u64 = 2 << 20;

/// A region's memory.
pub(crate) const DATA: u64 = PRESENT | WRITE | USER | ACCESSED | DIRTY | NO_EXECUTE;

impl Area {
    fn flags(self) -> u64 {
        match self {
            Self::System => PRESENT | WRITE | ACCESSED | DIRTY,
            Self::Stack => DATA,
            Self::Code => PRESENT | USER | ACCESSED,
            Self::Arguments => PRESENT | USER | ACCESSED | NO_EXECUTE,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Tables {
    root: usize,
    next: usize,
    end: usize,
}

/// There is no room for another table.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) struct Full;

impl Tables {
    /// Tables that map the block's areas.
    pub(crate) fn new(block: &Block) -> Result<Self, Full> {
        let Range { start, end } = block.paging();
        let mut tables = Self { root: start, next: start + PAGE, end };
        for (range, area) in block.areas() {
            let (at, len) = (block.address(range.start), (range.end - range.start) as u64);
            tables.map(block, at, Block::gpa(range.start), len, area.flags())?;
        }
        Ok(tables)
    }

    /// What CR3 is to be.
    pub(crate) fn root(&self) -> u64 {
        Block::gpa(self.root)
    }

    /// Maps `len` bytes at `address` to `gpa`. On failure, what was mapped is to be unmapped by the caller.
    pub(crate) fn map(&mut self, block: &Block, address: u64, gpa: u64, len: u64, flags: u64) -> Result<(), Full> {
        let mut done = 0;
        while done < len {
            let (at, to) = (address + done, gpa + done);
            let level_2 = self.entry(block, at, 2)?;
            let large = (at | to).is_multiple_of(LARGE_PAGE) && len - done >= LARGE_PAGE;
            if large && block.word(level_2) & PRESENT == 0 {
                block.set_word(level_2, to | flags | LARGE);
                done += LARGE_PAGE;
                continue;
            }
            let leaf = self.entry(block, at, 1)?;
            debug_assert_eq!(block.word(leaf) & PRESENT, 0, "{at:#x} is mapped already");
            block.set_word(leaf, to | flags);
            done += PAGE as u64;
        }
        Ok(())
    }

    /// Unmaps what is mapped of `len` bytes at `address`. No vCPU runs (invariant 1).
    pub(crate) fn unmap(&mut self, block: &Block, address: u64, len: u64) {
        let mut at = address;
        while at < address + len {
            let leaf = match self.find(block, at, 2) {
                None => (None, LARGE_PAGE - at % LARGE_PAGE),
                Some(entry) if block.word(entry) & LARGE != 0 => (Some(entry), LARGE_PAGE),
                Some(_) => (self.find(block, at, 1), PAGE as u64),
            };
            if let Some(entry) = leaf.0 {
                block.set_word(entry, 0);
            }
            at += leaf.1;
        }
    }

    /// Where the entry of `level` for `address` lies, making the tables on the way. A large leaf on the way cannot be: its
    /// addresses are one region's.
    fn entry(&mut self, block: &Block, address: u64, level: u32) -> Result<usize, Full> {
        let mut table = self.root;
        for above in (level + 1..=4).rev() {
            let slot = table + index(address, above) * 8;
            let entry = block.word(slot);
            debug_assert_eq!(entry & LARGE, 0, "{address:#x} is mapped already");
            table = if entry & PRESENT == 0 {
                let new = self.next;
                if new == self.end {
                    return Err(Full);
                }
                self.next += PAGE;
                block.set_word(slot, Block::gpa(new) | PRESENT | WRITE | USER | ACCESSED);
                new
            } else {
                offset(entry)
            };
        }
        Ok(table + index(address, level) * 8)
    }

    /// The same, if the tables are there and the entry is present.
    fn find(&self, block: &Block, address: u64, level: u32) -> Option<usize> {
        let mut table = self.root;
        for above in (level + 1..=4).rev() {
            let entry = block.word(table + index(address, above) * 8);
            if entry & PRESENT == 0 || entry & LARGE != 0 {
                return None;
            }
            table = offset(entry);
        }
        let slot = table + index(address, level) * 8;
        (block.word(slot) & PRESENT != 0).then_some(slot)
    }
}

/// Where in the block the table lies that `entry` points to.
fn offset(entry: u64) -> usize {
    usize::try_from((entry & ADDRESS) - crate::block::BLOCK_GPA).expect("tables lie in the block")
}

fn index(address: u64, level: u32) -> usize {
    usize::try_from(address >> (12 + 9 * (level - 1)) & 0x1FF).expect("nine bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a walk of the guest's comes to.
    fn walk(tables: &Tables, block: &Block, address: u64) -> Option<(u64, u64)> {
        if let Some(large) = tables.find(block, address, 2)
            && block.word(large) & LARGE != 0
        {
            let entry = block.word(large);
            return Some(((entry & ADDRESS & !(LARGE_PAGE - 1)) + address % LARGE_PAGE, entry & !ADDRESS & !LARGE));
        }
        let entry = block.word(tables.find(block, address, 1)?);
        Some(((entry & ADDRESS) + address % PAGE as u64, entry & !ADDRESS))
    }

    #[test]
    fn the_block_lies_where_it_lies_here_and_no_stack_touches_another() {
        let block = Block::new(3).unwrap();
        let tables = Tables::new(&block).unwrap();
        for (range, area) in block.areas() {
            for offset in [range.start, range.end - 1] {
                assert_eq!(walk(&tables, &block, block.address(offset)), Some((Block::gpa(offset), area.flags())));
            }
            if area == Area::Stack {
                assert_eq!(walk(&tables, &block, block.address(range.start) - 1), None, "a page below a stack");
            }
        }
    }

    #[test]
    fn large_leaves_where_they_fit_and_everything_goes_away_again() {
        let block = Block::new(1).unwrap();
        let mut tables = Tables::new(&block).unwrap();
        let (at, gpa, len) = (0x1234_5678_D000, 0x1_0018_D000, 5 * LARGE_PAGE);
        for _ in 0..2 {
            let before = tables.next;
            tables.map(&block, at, gpa, len, DATA).unwrap();
            for offset in [0, 0x1000, LARGE_PAGE, len / 2 + 5, len - 1] {
                assert_eq!(walk(&tables, &block, at + offset), Some((gpa + offset, DATA)));
            }
            assert_eq!((walk(&tables, &block, at - 1), walk(&tables, &block, at + len)), (None, None));
            assert!(tables.next - before <= 5 * PAGE, "most of it in large leaves");
            tables.unmap(&block, at, len);
            assert!((0..len).step_by(PAGE).all(|offset| walk(&tables, &block, at + offset).is_none()));
        }
    }

    #[test]
    fn no_room_is_said_so() {
        let block = Block::new(1).unwrap();
        let mut tables = Tables::new(&block).unwrap();
        tables.end = tables.next + PAGE;
        assert_eq!(tables.map(&block, 0x1000_0000_0000, 0x1_0000_0000, 1 << 30, DATA), Err(Full));
    }
}
