//! The state of the kernel model: what the kernel, the driver and the device hold, in 64 bytes.
//!
//! Sequence numbers are kept as what the kernel compares, so that a loop of retries is a loop of states. `invalidate_seq`
//! of the subscriptions is odd or even; an interval's is the subscriptions' current number or an older one ([`CURRENT`]);
//! a driver's is its interval's or an older one ([`STALE`]). Nothing else is ever asked of them, short of 2^64 invalidations.

use zerocopy::{Immutable, IntoBytes};

use super::pc::Pc;

/// Pages of the mapping.
pub const PAGES: usize = 2;
/// Devices.
pub const DEVICES: usize = 2;
/// Actors.
pub const ACTORS: usize = 5;
/// Physical pages that one virtual page can come to have: itself, and copies.
pub const COPIES: u8 = 3;

/// A physical page: `page * COPIES + copy`.
pub type Frame = u8;
/// All of them.
pub const FRAMES: Frame = 2 * COPIES;

/// A page-table entry: a kind, and a frame.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub enum Pte {
    /// Nothing.
    None,
    /// The zero page, read-only.
    Zero,
    /// Present, read-only.
    Ro(Frame),
    /// Present, writable.
    Rw(Frame),
    /// Device-exclusive.
    Exclusive(Frame),
    /// Swapped out; `Frame` stands for its swap slot.
    Swap(Frame),
}

impl Pte {
    /// The frame it refers to.
    #[must_use]
    pub const fn frame(self) -> Option<Frame> {
        match self {
            Self::None | Self::Zero => None,
            Self::Ro(frame) | Self::Rw(frame) | Self::Exclusive(frame) | Self::Swap(frame) => Some(frame),
        }
    }

    const fn pack(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Zero => 1,
            Self::Ro(frame) => 2 << 4 | frame,
            Self::Rw(frame) => 3 << 4 | frame,
            Self::Exclusive(frame) => 4 << 4 | frame,
            Self::Swap(frame) => 5 << 4 | frame,
        }
    }

    const fn unpack(byte: u8) -> Self {
        let frame = byte & 0xf;
        match byte >> 4 {
            0 if frame == 0 => Self::None,
            0 => Self::Zero,
            2 => Self::Ro(frame),
            3 => Self::Rw(frame),
            4 => Self::Exclusive(frame),
            _ => Self::Swap(frame),
        }
    }
}

/// The protection of one page of the parent's mapping.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash, IntoBytes, Immutable)]
#[repr(u8)]
pub enum Prot {
    /// Readable and writable.
    Write,
    /// mprotect has changed the mapping, and not yet the page table.
    Closing,
    /// Read-only, down to the page table.
    Read,
    /// No mapping.
    Gone,
}

/// Bits of [`State::flags`]: the mapping is one huge entry.
pub const HUGE: u8 = 1 << 0;
/// The child exists.
pub const CHILD: u8 = 1 << 1;
/// `invalidate_seq` of the subscriptions is odd.
pub const ODD: u8 = 1 << 2;
/// fork has failed: there will be no child.
pub const NO_CHILD: u8 = 1 << 3;

/// [`State::mmap`] while a writer has the lock; else the number of readers, with [`QUEUED`] while a writer waits.
pub const WRITER: u8 = 0xff;
/// In [`State::mmap`].
pub const QUEUED: u8 = 1 << 7;

/// Bits of [`Device::flags`]: the interval notifiers, one a page, are in the tree.
pub const REGISTERED: u8 = 1 << 0;
/// Their insertion is deferred to the end of the invalidations that run.
pub const DEFERRED: u8 = 1 << 1;
/// The page's interval has the subscriptions' present number: an invalidation of it runs.
pub const CURRENT: [u8; PAGES] = [1 << 2, 1 << 3];
/// The driver is between `read_begin` and the map.
pub const WINDOW: u8 = 1 << 4;
/// The number of an interval that is claimed has changed since the driver's `read_begin`.
pub const STALE: u8 = 1 << 5;
/// Somebody other than the claim has invalidated what is claimed since the driver's `read_begin`.
pub const DISTURBED: u8 = 1 << 6;

/// A device and its driver.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Ord, PartialOrd, IntoBytes, Immutable)]
#[repr(C)]
pub struct Device {
    /// The device's page table: a frame and one, or nothing.
    pub table: [u8; PAGES],
    /// Who has the driver's mutex: an actor and one.
    pub mutex: u8,
    /// The interval notifier, and the driver's present claim.
    pub flags: u8,
}

/// Nothing held in a register.
pub const NOTHING: u8 = 0xff;

/// One actor.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Ord, PartialOrd, IntoBytes, Immutable)]
#[repr(C)]
pub struct Actor {
    /// Which operation of its program.
    pub op: u8,
    /// Where in it.
    pub pc: Pc,
    /// Where in the fault that the operation is taking.
    pub fault: Pc,
    /// Devices whose callback is still to be called, with [`CALLING`] while there are any.
    pub calls: u8,
    /// The folio it has a reference to.
    pub frame: u8,
    /// The folio that its fault has a reference to.
    pub fault_frame: u8,
    /// What the device has loaded; which page a loop is at; see each use.
    pub x: u8,
}

/// In [`Actor::calls`].
pub const CALLING: u8 = 1 << 7;

/// The whole state.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Ord, PartialOrd, IntoBytes, Immutable)]
#[repr(C)]
pub struct State {
    /// The properties that the last step broke: the first sixteen, which all safety properties are among, as bits.
    pub broken: u16,
    ptes: [[u8; PAGES]; 2],
    /// The parent's mapping.
    pub prot: [Prot; PAGES],
    /// [`HUGE`] and the like.
    pub flags: u8,
    /// The parent's mmap lock.
    pub mmap: u8,
    locks: [u8; FRAMES as usize / 2],
    values: [u8; FRAMES as usize / 2],
    done: u8,
    /// Invalidations that run (`active_invalidate_ranges`).
    pub active: u8,
    /// The devices.
    pub devices: [Device; DEVICES],
    /// What of the scenario is symmetric, the same in every state of it: Stateright asks a state alone for its
    /// representative.
    pub symmetry: u8,
    /// The actors.
    pub actors: [Actor; ACTORS],
}

const _: () = assert!(size_of::<State>() <= 64);

impl std::hash::Hash for State {
    fn hash<H: std::hash::Hasher>(&self, hasher: &mut H) {
        hasher.write(self.as_bytes());
    }
}

fn nibble(bytes: &[u8], index: usize) -> u8 {
    bytes[index / 2] >> (index % 2 * 4) & 0xf
}

fn set_nibble(bytes: &mut [u8], index: usize, value: u8) {
    assert!(value <= 0xf, "a nibble overflows: the scenario is too long");
    let shift = index % 2 * 4;
    bytes[index / 2] = bytes[index / 2] & !(0xf << shift) | value << shift;
}

impl State {
    /// A state in which nothing has happened, and no actor has anything to do.
    pub(super) fn blank() -> Self {
        let idle = Actor { op: 0, pc: Pc::Done, fault: Pc::None, calls: 0, frame: NOTHING, fault_frame: NOTHING, x: 0 };
        Self {
            broken: 0,
            ptes: [[0; PAGES]; 2],
            prot: [Prot::Gone; PAGES],
            flags: 0,
            mmap: 0,
            locks: [0; 3],
            values: [0; 3],
            done: 0,
            active: 0,
            devices: [Device { table: [0; PAGES], mutex: 0, flags: 0 }; DEVICES],
            symmetry: 0,
            actors: [idle; ACTORS],
        }
    }

    /// The entry of `page` in address space `mm` (0: the parent's).
    #[must_use]
    pub fn pte(&self, mm: usize, page: usize) -> Pte {
        Pte::unpack(self.ptes[mm][page])
    }

    pub(super) fn set_pte(&mut self, mm: usize, page: usize, pte: Pte) {
        self.ptes[mm][page] = pte.pack();
    }

    /// What is stored in a frame: how many increments.
    #[must_use]
    pub fn value(&self, frame: Frame) -> u8 {
        nibble(&self.values, frame.into())
    }

    pub(super) fn set_value(&mut self, frame: Frame, value: u8) {
        set_nibble(&mut self.values, frame.into(), value);
    }

    /// Who has locked a folio, given by its first frame: an actor and one, or 0.
    #[must_use]
    pub fn lock(&self, folio: Frame) -> u8 {
        nibble(&self.locks, folio.into())
    }

    pub(super) fn set_lock(&mut self, folio: Frame, holder: u8) {
        set_nibble(&mut self.locks, folio.into(), holder);
    }

    /// Increments made to `page` and its copies since it was last zapped.
    #[must_use]
    pub fn done(&self, page: usize) -> u8 {
        self.done >> (4 * page) & 0xf
    }

    pub(super) fn set_done(&mut self, page: usize, done: u8) {
        let mut bytes = [self.done];
        set_nibble(&mut bytes, page, done);
        [self.done] = bytes;
    }

    /// What device `device` has mapped at `page`.
    #[must_use]
    pub fn mapped(&self, device: usize, page: usize) -> Option<Frame> {
        self.devices[device].table[page].checked_sub(1)
    }

    /// Whether any of `flags` of the state is set.
    #[must_use]
    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }
}
