//! Which pages of a range are there, and of what kind: `PAGEMAP_SCAN` on `/proc/self/pagemap` (6.7).
//!
//! An answer is of the past as soon as it is given. Signal-safe: [`Pagemap::scan`].

use core::mem::{offset_of, size_of};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::opcode;

use crate::Span;
use crate::request::{self, request};

bitflags::bitflags! {
    /// `PAGE_IS_*`: what a page is.
    #[repr(transparent)]
    #[derive(Copy, Clone, Eq, PartialEq, Debug, Hash, Default)]
    pub struct PageKinds: u64 {
        /// Mapped here. A page that only the page cache holds is not.
        const PRESENT = 1 << 3;
        /// Swapped out, or on its way to another place in memory.
        const SWAPPED = 1 << 4;
        /// The shared page of zeroes, of either size, which is mapped where private memory was only read.
        const PFNZERO = 1 << 5;
        /// Mapped as (part of) a huge page.
        const HUGE = 1 << 6;

        // Bits of later kernels.
        const _ = !0;
    }
}

/// Adjacent pages of the same kinds: `struct page_region`.
#[repr(C)]
#[derive(Copy, Clone, Eq, PartialEq, Debug, Default)]
pub struct PageRegion {
    /// The first address.
    pub start: usize,
    /// The first address past it.
    pub end: usize,
    /// What its pages are, of the kinds named in [`PageKinds`].
    pub kinds: PageKinds,
}

const _: () = {
    assert!(size_of::<PageRegion>() == 24);
    assert!(offset_of!(PageRegion, end) == 8);
    assert!(offset_of!(PageRegion, kinds) == 16);
};

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    /// Out.
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

request!(Scan = opcode::read_write::<Scan>(b'f', 16), 0xC060_6610);

/// The kinds that this module names.
const NAMED: PageKinds = PageKinds::PRESENT.union(PageKinds::SWAPPED).union(PageKinds::PFNZERO).union(PageKinds::HUGE);

/// `/proc/self/pagemap`, open.
#[derive(Debug)]
pub struct Pagemap {
    fd: OwnedFd,
}

impl Pagemap {
    /// Opens it. In a forked child it still names the parent.
    ///
    /// # Errors
    ///
    /// `NOENT`: no `/proc`. `MFILE`, `NFILE`: too many open files.
    pub fn open() -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(Self { fd: rustix::fs::open("/proc/self/pagemap", flags, Mode::empty())? })
    }

    /// Looks for the pages of `span` that are of any kind of `want`; of every page that is in a mapping, absent ones
    /// too, when `want` is empty. Writes the regions found, in order, to `found`; returns how many they are, and
    /// where the search ended: at the end of `span`, or, when `found` has no room for more, before it: go on from
    /// there. Signal-safe.
    ///
    /// # Errors
    ///
    /// `NOTTY` before 6.7. `INVAL`: `found` is empty. `FAULT`: outside the address space. `INTR`: the process is being
    /// killed.
    pub fn scan(&self, span: Span, want: PageKinds, found: &mut [PageRegion]) -> Result<(usize, usize), Errno> {
        if found.is_empty() {
            return Err(Errno::INVAL);
        }
        let mut scan = Scan {
            size: size_of::<Scan>() as u64,
            start: span.start() as u64,
            end: span.end() as u64,
            vec: found.as_mut_ptr().expose_provenance() as u64,
            vec_len: found.len() as u64,
            category_anyof_mask: want.bits(),
            return_mask: NAMED.bits(),
            ..Scan::default()
        };
        let regions = request::call(&self.fd, &mut scan)?;
        Ok((regions, usize::try_from(scan.walk_end).unwrap_or(usize::MAX)))
    }
}
