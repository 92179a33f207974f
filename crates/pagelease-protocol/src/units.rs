//! Types of the quantities that cross a module's edge, checked where they are made.

use core::fmt;
use core::num::NonZeroU8;

/// A granule of a region, counted from the region's start.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct PageIndex(pub u32);

impl PageIndex {
    /// The index as an array index.
    #[must_use]
    #[inline]
    pub const fn as_usize(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for PageIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {}", self.0)
    }
}

/// A non-empty run of granules, `start..end`, within a region.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub struct PageRange {
    start: u32,
    end: u32,
}

impl PageRange {
    /// The granules from `start` up to and without `end`; `None` if that is no granule.
    #[must_use]
    #[inline]
    pub const fn new(start: u32, end: u32) -> Option<Self> {
        if start < end { Some(Self { start, end }) } else { None }
    }

    /// The one granule `page`; `None` for the one index that no region has (`u32::MAX`).
    #[must_use]
    #[inline]
    pub const fn single(page: PageIndex) -> Option<Self> {
        match page.0.checked_add(1) {
            Some(end) => Some(Self { start: page.0, end }),
            None => None,
        }
    }

    /// The first granule.
    #[must_use]
    #[inline]
    pub const fn start(self) -> u32 {
        self.start
    }

    /// The granule behind the last.
    #[must_use]
    #[inline]
    pub const fn end(self) -> u32 {
        self.end
    }

    /// How many granules: at least one.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a range is never empty")]
    #[inline]
    pub const fn len(self) -> u32 {
        self.end - self.start
    }

    /// Whether `page` lies in the range.
    #[must_use]
    #[inline]
    pub const fn contains(self, page: PageIndex) -> bool {
        self.start <= page.0 && page.0 < self.end
    }

    /// Whether the two ranges share a granule.
    #[must_use]
    #[inline]
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// The granules, in ascending order.
    #[inline]
    pub fn iter(self) -> impl DoubleEndedIterator<Item = PageIndex> + ExactSizeIterator {
        (self.start..self.end).map(PageIndex)
    }
}

impl fmt::Display for PageRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pages {}..{}", self.start, self.end)
    }
}

/// A length in bytes, as opposed to one in granules.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct ByteLen(pub usize);

impl ByteLen {
    /// `n` KiB; `None` on overflow.
    #[must_use]
    #[inline]
    pub const fn kib(n: usize) -> Option<Self> {
        match n.checked_mul(1 << 10) {
            Some(bytes) => Some(Self(bytes)),
            None => None,
        }
    }

    /// `n` MiB; `None` on overflow.
    #[must_use]
    #[inline]
    pub const fn mib(n: usize) -> Option<Self> {
        match n.checked_mul(1 << 20) {
            Some(bytes) => Some(Self(bytes)),
            None => None,
        }
    }

    /// How many granules of `granule` bytes hold this length; `None` if it is zero or needs more than 2^32 - 1 of them.
    #[must_use]
    #[inline]
    pub fn pages(self, granule: Self) -> Option<u32> {
        let pages = self.0.div_ceil(granule.0);
        u32::try_from(pages).ok().filter(|&pages| pages > 0 && pages < u32::MAX)
    }
}

impl fmt::Display for ByteLen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0)
    }
}

/// A device, as page words name it: 1 to [`OwnerId::MAX`]. Zero, in a word, is nobody.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub struct OwnerId(NonZeroU8);

impl OwnerId {
    /// The largest identity: six bits of a page word.
    pub const MAX: u8 = 63;

    /// The device numbered `id`; `None` for zero and above [`OwnerId::MAX`].
    #[must_use]
    #[inline]
    pub const fn new(id: u8) -> Option<Self> {
        match NonZeroU8::new(id) {
            Some(id) if id.get() <= Self::MAX => Some(Self(id)),
            _ => None,
        }
    }

    /// The number, 1 to [`OwnerId::MAX`].
    #[must_use]
    #[inline]
    pub const fn get(self) -> u8 {
        self.0.get()
    }
}

impl fmt::Display for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device {}", self.0)
    }
}
