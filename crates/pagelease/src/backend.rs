//! [`Backend`]: the one seam to the operating system. How pages are taken from the CPU view and given back.
//!
//! One file a backend. Each states its [`Capabilities`]; one conformance suite runs on all of them.
//!
//! Contract, for every backend: the caller has the pages' words `busy` (or the region is closing). After `revoke` returns,
//! no CPU access to the pages completes until `map` maps them; every such access traps. `populate` comes before the
//! `revoke` of a page that may not exist: an absent page does not trap. `map` and `wake` are signal-safe; `map` wakes the
//! touches that wait for what it maps.

use pagelease_protocol::{Access, OwnerId, PageIndex, PageRange};
use pagelease_sys::{Errno, Span};

mod minor;
mod moved;
pub(crate) mod sim;

pub(crate) mod backing;
pub(crate) mod mprotect;
mod rwprotect;

pub(crate) use minor::{Minor, REGISTER};
pub(crate) use moved::Moved;
pub(crate) use mprotect::Mprotect;
pub(crate) use rwprotect::RwProtect;
pub(crate) use sim::Sim;

use crate::sync::AtomicU64;

/// Which backend a region has.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
#[non_exhaustive]
pub enum BackendKind {
    /// A memory file mapped twice, its CPU view trapped by userfaultfd MINOR.
    Minor,
    /// Private memory that the program had already: `UFFDIO_MOVE` carries its pages to a device's view and back.
    Move,
    /// As `Minor`, but a device's pages stay where they are, protected by userfaultfd RWP (Linux 7.3). No
    /// [`Access::ExclusiveWrite`].
    RwProtect,
    /// Any shared mapping, a file's or a device's too, closed by `mprotect`; touches are served in the SIGSEGV handler of the
    /// touching thread. Needs no userfaultfd.
    Mprotect,
    /// A simulated MMU, for tests that explore schedules.
    Sim,
}

/// What a backend can do beyond taking pages and giving them back.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Capabilities {
    /// [`Access::ExclusiveWrite`]: the CPU reads while a device writes.
    pub exclusive_write: bool,
    /// A stuck operation's page can be taken from under it: its late stores land nowhere that matters.
    pub cover: bool,
    /// A device's view shows all of the region's pages, whoever has them. Otherwise a page is carried from view to view: the MMU
    /// keeps devices from what they do not have as well, and the first touch of a page that nobody has touched yet traps.
    pub alias: bool,
}

/// Why pages could not be taken from the CPU.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) struct Refusal {
    /// Those it is about: some of what was to be taken.
    pub(crate) pages: PageRange,
    pub(crate) why: Refused,
}

impl Refusal {
    /// The kernel refused to take one of `runs`, which ascend.
    pub(crate) fn system(runs: &[PageRange], errno: Errno) -> Self {
        let (first, last) = (runs.first().expect("at least one run"), runs.last().expect("at least one run"));
        let pages = PageRange::new(first.start(), last.end()).expect("runs ascend");
        Self { pages, why: Refused::System(errno) }
    }
}

/// See [`Refusal`].
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Refused {
    /// The layout of the address space is being changed just now: give up what is busy, and try again.
    Changing,
    /// A forked child shares them, or they are pinned: give up what is busy, have them unshared, and try again.
    Shared,
    /// The program may not write them: `mprotect`.
    Protected,
    /// Not mapped any more.
    Unmapped,
    /// Taking them could split the address space into more mappings than there may be.
    Mappings {
        /// How many there may be.
        limit: usize,
    },
    /// Somebody else has installed a handler for the signal that touches raise.
    Handler,
    /// No memory for pages never touched before.
    NoMemory(Errno),
    /// Something else.
    System(Errno),
}

/// How a page is mapped for the CPU.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Mapped {
    /// For reading and writing; any write protection is lifted.
    Writable,
    /// For reading: a write traps.
    ReadOnly,
}

/// What mapping came to.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum MapOutcome {
    /// All of the range is mapped, and this call mapped some of it.
    Mapped,
    /// All of it was mapped already.
    AlreadyMapped,
}

/// A device's view of a region: an alias of the same pages.
#[derive(Debug)]
pub(crate) enum ViewMemory {
    /// A mapping of its own.
    Mapping(pagelease_sys::mem::Mapping),
    /// The simulated memory.
    Sim(sim::SharedMemory),
}

impl ViewMemory {
    /// All of the region's words, as the device sees them.
    pub(crate) fn words(&self) -> &[AtomicU64] {
        match self {
            #[cfg(not(pagelease_shuttle))]
            Self::Mapping(mapping) => {
                let count = mapping.span().len() / size_of::<AtomicU64>();
                // SAFETY: the mapping lives as long as `self`, is page-aligned, and is shared memory of which only atomics
                // or raw pointers are ever handed out.
                unsafe { core::slice::from_raw_parts(mapping.as_ptr().cast(), count) }
            }
            #[cfg(pagelease_shuttle)]
            Self::Mapping(_) => unreachable!("exploration runs on simulated memory"),
            Self::Sim(memory) => memory.words(),
        }
    }
}

/// See the module.
pub(crate) trait Backend: Send + Sync {
    fn kind(&self) -> BackendKind;
    fn capabilities(&self) -> Capabilities;
    /// The addresses of the CPU view.
    fn span(&self) -> Span;
    /// Makes sure that the pages exist.
    fn populate(&self, pages: PageRange) -> Result<(), Refusal>;
    /// Whether a page lies in one view at a time, so that a device that takes it from another has to `revoke` it as well.
    fn carries(&self) -> bool {
        false
    }
    /// Makes pages that a forked child shares, or did, this process's alone. To be called with nothing busy: it touches them.
    fn unshare(&self, _pages: PageRange) {}
    /// Takes the runs from the CPU, for `device`: all of it (`Exclusive`), or writing (`ExclusiveWrite`).
    fn revoke(&self, runs: &[PageRange], access: Access, device: OwnerId) -> Result<(), Refusal>;
    /// A claim of the pages has been given up after `revoke`; nobody uses them. What they cost while revoked ends.
    fn undo(&self, _pages: PageRange) {}
    /// Whether `undo` does anything.
    fn undoes(&self) -> bool {
        false
    }
    /// Gives the pages back to the CPU, and wakes the touches that wait for them.
    fn map(&self, pages: PageRange, how: Mapped) -> Result<MapOutcome, Errno>;
    /// Lets the touches that wait for the pages trap again.
    fn wake(&self, pages: PageRange);
    /// The program gives `pages` up: takes them out of the CPU view, and their contents from everybody. Devices have let go of
    /// them. On failure, says which step failed.
    ///
    /// # Safety
    /// Nobody uses the addresses any more.
    unsafe fn unmap(&self, _pages: PageRange) -> Result<(), (&'static str, Errno)> {
        Err(("munmap", Errno::OPNOTSUPP))
    }
    /// The CPU view of the whole region moves to `to`, or where there is room: returns its new place, where nothing is mapped
    /// yet, so that everything traps. The old one is still there, until [`Backend::moved_away`].
    ///
    /// # Safety
    /// `to` is the caller's.
    unsafe fn move_to(&self, _to: Option<usize>) -> Result<Span, (&'static str, Errno)> {
        Err(("mremap", Errno::OPNOTSUPP))
    }
    /// The CPU view that was left is unmapped.
    fn moved_away(&self) {}
    /// Touches trap no more, and those that wait go on.
    fn close(&self);
    /// The pages that can be one huge page, of which `page` is one; `page` may be the one behind the region's last.
    fn group_of(&self, _page: PageIndex) -> Option<PageRange> {
        None
    }
    /// The pages that should go back to the CPU together with `page`, if they can: those of one huge page.
    fn whole(&self, _page: PageIndex) -> Option<PageRange> {
        None
    }
    /// Whether the memory still has the page: a file of the program's may have been truncated. Signal-safe.
    fn reaches(&self, _page: PageIndex) -> bool {
        true
    }
    /// Makes a view for `device`.
    fn open_view(&self, device: OwnerId) -> Result<ViewMemory, Errno>;
    /// The view of `device` is about to go. No page lies in it.
    fn close_view(&self, _device: OwnerId) {}
    /// Covers a page of a device's view by a private copy, so that late stores land nowhere that matters. Signal-safe.
    fn cover(&self, view_base: usize, page: PageIndex) -> Result<(), Errno>;
}

/// The backend of a region, in the region's own mapping.
#[cfg_attr(
    not(pagelease_shuttle),
    expect(clippy::large_enum_variant, reason = "one a region, in a mapping of whole pages")
)]
pub(crate) enum AnyBackend {
    Minor(Minor),
    Move(Moved),
    Sim(Sim),
    RwProtect(RwProtect),
    Mprotect(Mprotect),
}

impl core::ops::Deref for AnyBackend {
    type Target = dyn Backend;

    fn deref(&self) -> &(dyn Backend + 'static) {
        match self {
            Self::Minor(minor) => minor,
            Self::Move(moved) => moved,
            Self::Sim(sim) => sim,
            Self::RwProtect(rwprotect) => rwprotect,
            Self::Mprotect(mprotect) => mprotect,
        }
    }
}
