//! [`Backend`]: the one seam to the operating system. How pages are taken from the CPU view and given back.
//!
//! One file a backend. Each states its [`Capabilities`]; one conformance suite runs on all of them.
//!
//! Contract, for every backend: the caller has the pages' words `busy` (or the region is closing). After `revoke` returns,
//! no CPU access to the pages completes until `map` maps them; every such access traps. `populate` comes before the
//! `revoke` of a page that may not exist: an absent page does not trap. `map` and `wake` are signal-safe; `map` wakes the
//! touches that wait for what it maps.

use pagelease_protocol::{Access, PageIndex, PageRange};
use pagelease_sys::{Errno, Span};

mod minor;
pub(crate) mod sim;

pub(crate) use minor::Minor;
pub(crate) use sim::Sim;

use crate::sync::AtomicU64;

/// Which backend a region has.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
#[non_exhaustive]
pub enum BackendKind {
    /// A memfd mapped twice, its CPU view trapped by userfaultfd MINOR.
    Minor,
    /// A simulated MMU, for tests that explore schedules.
    Sim,
}

/// What a backend can do beyond taking pages and giving them back.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Capabilities {
    /// [`Access::ExclusiveWrite`]: the CPU reads while a device writes.
    pub exclusive_write: bool,
    /// A stuck operation's page can be covered by a private copy.
    pub cover: bool,
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
    fn populate(&self, pages: PageRange) -> Result<(), Errno>;
    /// Takes the runs from the CPU: all of it (`Exclusive`), or writing (`ExclusiveWrite`).
    fn revoke(&self, runs: &[PageRange], access: Access) -> Result<(), Errno>;
    /// Gives the pages back to the CPU, and wakes the touches that wait for them.
    fn map(&self, pages: PageRange, how: Mapped) -> Result<MapOutcome, Errno>;
    /// Lets the touches that wait for the pages trap again.
    fn wake(&self, pages: PageRange);
    /// Touches trap no more, and those that wait go on.
    fn close(&self);
    /// Makes another view of the same pages.
    fn open_view(&self) -> Result<ViewMemory, Errno>;
    /// Covers a page of a device's view by a private copy, so that late stores land nowhere that matters. Signal-safe.
    fn cover(&self, view_base: usize, page: PageIndex) -> Result<(), Errno>;
}

/// The backend of a region, in the region's own mapping.
#[cfg_attr(
    pagelease_shuttle,
    expect(clippy::large_enum_variant, reason = "one a region; simulated primitives are large")
)]
pub(crate) enum AnyBackend {
    Minor(Minor),
    Sim(Sim),
}

impl core::ops::Deref for AnyBackend {
    type Target = dyn Backend;

    fn deref(&self) -> &(dyn Backend + 'static) {
        match self {
            Self::Minor(minor) => minor,
            Self::Sim(sim) => sim,
        }
    }
}
