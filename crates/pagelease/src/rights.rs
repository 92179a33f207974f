//! What the program may do with the pages of a region: by `Region::protect` and `Region::unmap`, and by the kernel's own books.
//!
//! A device has no more rights than the program: pages that the program may not write are not given to one. What the region's
//! own calls change is noted here, before anything is done; a claim looks at it once it has its pages busy. What the program
//! changes behind the region's back, by `mprotect`, is read from the kernel: at a claim, but for memory that is carried (the
//! kernel refuses to) not more often than once in [`LOOK_NS`], since asking costs as much as taking a page.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use pagelease_protocol::{PageIndex, PageRange};
use pagelease_sys::mem::{Maps, Protection};
use pagelease_sys::{Errno, Span};

use crate::backend::{Refusal, Refused};
use crate::sync::{Table, now_ns};

/// How long an answer of the kernel's is believed.
const LOOK_NS: u64 = 1_000_000;

/// What the program may do with a page. Zero, so that a new table has every page writable.
const WRITABLE: u8 = 0;
const READ_ONLY: u8 = 1;
const CLOSED: u8 = 2;
const GONE: u8 = 3;

pub(crate) struct Rights {
    pages: Table<AtomicU8>,
    /// Some page is not writable: one load settles most claims.
    altered: AtomicBool,
    looked_ns: AtomicU64,
}

impl Rights {
    pub(crate) fn new(pages: u32) -> Result<Self, Errno> {
        let pages = Table::zeroed(pages as usize)?;
        Ok(Self { pages, altered: AtomicBool::new(false), looked_ns: AtomicU64::new(0) })
    }

    fn set(&self, pages: PageRange, right: u8) {
        self.altered.store(true, Ordering::SeqCst);
        for page in &self.pages[pages.start() as usize..pages.end() as usize] {
            page.store(right, Ordering::SeqCst);
        }
    }

    /// From now on no claim gets pages that the program may not write.
    pub(crate) fn protect(&self, pages: PageRange, protection: Protection) {
        self.set(
            pages,
            match protection {
                Protection::None => CLOSED,
                Protection::Read => READ_ONLY,
                Protection::ReadWrite => WRITABLE,
            },
        );
    }

    /// From now on no claim gets the pages.
    pub(crate) fn unmap(&self, pages: PageRange) {
        self.set(pages, GONE);
    }

    /// Whether some of `pages` are gone.
    pub(crate) fn any_gone(&self, pages: PageRange) -> bool {
        self.altered.load(Ordering::SeqCst) && pages.iter().any(|page| self.of(page) == GONE)
    }

    fn of(&self, page: PageIndex) -> u8 {
        self.pages[page.as_usize()].load(Ordering::SeqCst)
    }

    /// Whether a claim may have the pages of `run`, which it has busy.
    pub(crate) fn check(&self, run: PageRange) -> Result<(), Refusal> {
        let Some(page) = run.iter().find(|page| self.of(*page) != WRITABLE) else { return Ok(()) };
        let pages = PageRange::single(page).expect("a page of a region");
        let why = if self.of(page) == GONE { Refused::Unmapped } else { Refused::Protected };
        Err(Refusal { pages, why })
    }

    /// Whether some page may not be writable, by our own books.
    pub(crate) fn is_altered(&self) -> bool {
        self.altered.load(Ordering::SeqCst)
    }

    /// Whether the kernel is to be asked again; if so, by the caller.
    pub(crate) fn is_to_look(&self) -> bool {
        let (now_ns, looked_ns) = (now_ns(), self.looked_ns.load(Ordering::Relaxed));
        let due = now_ns.saturating_sub(looked_ns) >= LOOK_NS;
        if due {
            self.looked_ns.store(now_ns, Ordering::Relaxed);
        }
        due
    }

    /// Something is not as it should be: the next claim asks again.
    pub(crate) fn look_again(&self) {
        self.looked_ns.store(0, Ordering::Relaxed);
    }

    /// Whether the kernel would let the program write to `pages`, which lie at `span`.
    pub(crate) fn look(maps: &Maps, pages: PageRange, span: Span) -> Result<(), Refusal> {
        let mut at = span.start();
        while at < span.end() {
            // Where it cannot be asked, nothing is known.
            let Ok(area) = maps.area_at_or_after(at) else { return Ok(()) };
            match area {
                Some(area) if area.span.contains(at) && area.writable => at = area.span.end(),
                Some(area) if area.span.contains(at) => return Err(Refusal { pages, why: Refused::Protected }),
                _ => return Err(Refusal { pages, why: Refused::Unmapped }),
            }
        }
        Ok(())
    }
}
