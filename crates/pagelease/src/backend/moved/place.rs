//! Where the pages of an adopted region are: in which view, and at which address the CPU view has them.
//!
//! Invariants: a page's home is changed by whoever has the page busy, or has the gate shut; extents are changed with the gate
//! shut, and read by those inside or by whoever has it shut. The extents that are not empty do not overlap.

use core::sync::atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering};

use pagelease_protocol::{OwnerId, PageIndex, PageRange};
use pagelease_sys::{Errno, Span};

use crate::sync::Table;

/// Pieces that a region can be in, after `mremap` of parts of it.
const EXTENTS: usize = 16;

/// The view that a page lies in.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum Home {
    /// The CPU view: mapped there, or nobody has touched it.
    Cpu,
    /// A device's view.
    Device(OwnerId),
    /// None: the program has unmapped it.
    Gone,
}

impl Home {
    const GONE: u8 = u8::MAX;

    fn from_byte(byte: u8) -> Self {
        match byte {
            Self::GONE => Self::Gone,
            byte => OwnerId::new(byte).map_or(Self::Cpu, Self::Device),
        }
    }

    fn byte(self) -> u8 {
        match self {
            Self::Cpu => 0,
            Self::Device(device) => device.get(),
            Self::Gone => Self::GONE,
        }
    }
}

/// A byte a page.
pub(super) struct Homes(Table<AtomicU8>);

impl Homes {
    pub(super) fn new(pages: u32) -> Result<Self, Errno> {
        Ok(Self(Table::zeroed(pages as usize)?))
    }

    pub(super) fn set(&self, pages: PageRange, home: Home) {
        for byte in &self.0[pages.start() as usize..pages.end() as usize] {
            byte.store(home.byte(), Ordering::Relaxed);
        }
    }

    #[inline]
    pub(super) fn set_one(&self, page: PageIndex, home: Home) {
        self.0[page.as_usize()].store(home.byte(), Ordering::Relaxed);
    }

    /// That of one page.
    #[inline]
    pub(super) fn of(&self, page: PageIndex) -> Home {
        Home::from_byte(self.0[page.as_usize()].load(Ordering::Relaxed))
    }

    /// The longest run from the start of `pages` that has one home.
    pub(super) fn run(&self, pages: PageRange) -> (PageRange, Home) {
        let bytes = &self.0[pages.start() as usize..pages.end() as usize];
        let first = bytes[0].load(Ordering::Relaxed);
        let len = bytes.iter().take_while(|byte| byte.load(Ordering::Relaxed) == first).count();
        let end = pages.start() + u32::try_from(len).expect("within a region");
        (PageRange::new(pages.start(), end).expect("at least the first page"), Home::from_byte(first))
    }
}

#[derive(Default)]
struct Extent {
    first: AtomicU32,
    end: AtomicU32,
    address: AtomicUsize,
}

/// Where the CPU view has which pages.
pub(super) struct Extents {
    extents: [Extent; EXTENTS],
    granule: usize,
}

impl Extents {
    pub(super) fn new(span: Span, pages: u32, granule: usize) -> Self {
        let extents: [Extent; EXTENTS] = core::array::from_fn(|_| Extent::default());
        extents[0].end.store(pages, Ordering::Relaxed);
        extents[0].address.store(span.start(), Ordering::Relaxed);
        Self { extents, granule }
    }

    fn used(&self) -> impl Iterator<Item = (PageRange, usize)> {
        self.extents.iter().filter_map(|extent| {
            let pages = PageRange::new(extent.first.load(Ordering::Relaxed), extent.end.load(Ordering::Relaxed))?;
            Some((pages, extent.address.load(Ordering::Relaxed)))
        })
    }

    /// The place of one page in the CPU view.
    #[inline]
    pub(super) fn place(&self, page: PageIndex) -> Option<Span> {
        let (extent, address) = self.used().find(|(extent, _)| extent.contains(page))?;
        Span::new(address + (page.0 - extent.start()) as usize * self.granule, self.granule)
    }

    /// The longest run from the start of `pages` that has one place in the CPU view, and that place; `None` if it has none.
    pub(super) fn run(&self, pages: PageRange) -> (PageRange, Option<Span>) {
        let first = PageIndex(pages.start());
        let within = |end: u32| PageRange::new(first.0, pages.end().min(end)).expect("at least the first page");
        if let Some((extent, address)) = self.used().find(|(extent, _)| extent.contains(first)) {
            let run = within(extent.end());
            let start = address + (first.0 - extent.start()) as usize * self.granule;
            return (run, Span::new(start, run.len() as usize * self.granule));
        }
        let next = self.used().map(|(extent, _)| extent.start()).filter(|start| *start > first.0).min();
        (within(next.unwrap_or(u32::MAX)), None)
    }

    /// All places of the CPU view.
    pub(super) fn spans(&self) -> impl Iterator<Item = Span> {
        self.used().filter_map(|(pages, address)| Span::new(address, pages.len() as usize * self.granule))
    }

    fn put(&self, pages: Option<PageRange>, address: usize) -> bool {
        let Some(pages) = pages else { return true };
        let free = |extent: &&Extent| extent.first.load(Ordering::Relaxed) >= extent.end.load(Ordering::Relaxed);
        let Some(extent) = self.extents.iter().find(free) else { return false };
        extent.address.store(address, Ordering::Relaxed);
        extent.first.store(pages.start(), Ordering::Relaxed);
        extent.end.store(pages.end(), Ordering::Relaxed);
        true
    }

    /// Takes the place of `pages` away. `false`, and nothing has changed: it would take more pieces than there can be.
    pub(super) fn remove(&self, pages: PageRange) -> bool {
        for extent in &self.extents {
            let (first, end) = (extent.first.load(Ordering::Relaxed), extent.end.load(Ordering::Relaxed));
            if first >= end || pages.end() <= first || end <= pages.start() {
                continue;
            }
            let address = extent.address.load(Ordering::Relaxed);
            let behind = PageRange::new(pages.end(), end);
            let skipped = pages.end().saturating_sub(first) as usize * self.granule;
            if pages.start() <= first {
                let first = pages.end().min(end);
                extent.first.store(first, Ordering::Relaxed);
                extent.address.store(address + skipped, Ordering::Relaxed);
                continue;
            }
            if !self.put(behind, address + skipped) {
                return false;
            }
            extent.end.store(pages.start(), Ordering::Relaxed);
        }
        true
    }

    /// Gives `pages`, which have no place, one. `false`: too many pieces.
    pub(super) fn add(&self, pages: PageRange, address: usize) -> bool {
        self.put(Some(pages), address)
    }
}

#[cfg(all(test, not(pagelease_shuttle)))]
mod tests {
    use super::*;

    fn pages(start: u32, end: u32) -> PageRange {
        PageRange::new(start, end).expect("not empty")
    }

    fn place(extents: &Extents, page: u32) -> Option<usize> {
        extents.run(pages(page, page + 1)).1.map(Span::start)
    }

    #[test]
    fn a_piece_that_moves_has_a_place_of_its_own() {
        let extents = Extents::new(Span::new(0x10_0000, 10 * 4096).unwrap(), 10, 4096);
        assert_eq!(extents.run(pages(0, 10)), (pages(0, 10), Span::new(0x10_0000, 10 * 4096)));
        assert!(extents.remove(pages(3, 5)));
        assert_eq!(
            (place(&extents, 2), place(&extents, 3), place(&extents, 5)),
            (Some(0x10_2000), None, Some(0x10_5000))
        );
        assert_eq!(extents.run(pages(3, 10)), (pages(3, 5), None));
        assert!(extents.add(pages(3, 5), 0x90_0000));
        assert_eq!(extents.run(pages(4, 10)), (pages(4, 5), Span::new(0x90_1000, 4096)));
        assert!(extents.remove(pages(0, 4)));
        assert_eq!((place(&extents, 0), place(&extents, 3)), (None, None));
        assert_eq!((place(&extents, 4), place(&extents, 9)), (Some(0x90_1000), Some(0x10_9000)));
        assert!(extents.remove(pages(0, 10)));
        assert_eq!(extents.spans().count(), 0);
    }

    #[test]
    fn too_many_pieces_are_refused_and_change_nothing() {
        let extents = Extents::new(Span::new(0x10_0000, 100 * 4096).unwrap(), 100, 4096);
        for hole in 0..15 {
            assert!(extents.remove(pages(2 * hole + 1, 2 * hole + 2)));
        }
        assert!(!extents.remove(pages(51, 52)), "seventeen pieces");
        assert_eq!(place(&extents, 51), Some(0x10_0000 + 51 * 4096));
    }

    #[test]
    fn a_home_is_a_byte() {
        let homes = Homes::new(8).unwrap();
        let device = OwnerId::new(63).unwrap();
        assert_eq!(homes.run(pages(0, 8)), (pages(0, 8), Home::Cpu));
        homes.set(pages(2, 4), Home::Device(device));
        homes.set(pages(4, 5), Home::Gone);
        assert_eq!(homes.run(pages(0, 8)), (pages(0, 2), Home::Cpu));
        assert_eq!(homes.run(pages(3, 8)), (pages(3, 4), Home::Device(device)));
        assert_eq!(homes.run(pages(4, 5)), (pages(4, 5), Home::Gone));
    }
}
