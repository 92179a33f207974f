//! The kernel's side of userfaultfd: structures and ioctl numbers of `include/uapi/linux/userfaultfd.h`.
//!
//! How a structure and its number are tied, see [`crate::request`].

use core::ffi::c_void;
use rustix::fd::{AsFd, FromRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, opcode};

use crate::Span;
use crate::request::{self, Request, request};

/// `USERFAULTFD_IOC`, and `UFFDIO`: the group of every number here.
const GROUP: u8 = 0xAA;
/// `UFFD_API`: the only version of the interface there is.
pub(super) const UFFD_API: u64 = 0xAA;
/// `UFFD_EVENT_PAGEFAULT`.
pub(super) const EVENT_PAGEFAULT: u8 = 0x12;
/// `UFFD_EVENT_REMAP`.
pub(super) const EVENT_REMAP: u8 = 0x14;
/// `UFFD_EVENT_REMOVE`.
pub(super) const EVENT_REMOVE: u8 = 0x15;
/// `UFFD_EVENT_UNMAP`.
pub(super) const EVENT_UNMAP: u8 = 0x16;
/// `UFFD_USER_MODE_ONLY`, a flag of the system call: serve no fault that the kernel itself takes.
pub(super) const USER_MODE_ONLY: u32 = 1;
/// `UFFDIO_WRITEPROTECT_MODE_WP`.
pub(super) const WRITEPROTECT_MODE_WP: u64 = 1 << 0;
/// `UFFDIO_WRITEPROTECT_MODE_DONTWAKE`, refused together with the former.
pub(super) const WRITEPROTECT_MODE_DONTWAKE: u64 = 1 << 1;
/// `UFFDIO_RWPROTECT_MODE_RWP`.
pub(super) const RWPROTECT_MODE_RWP: u64 = 1 << 0;
/// `UFFDIO_RWPROTECT_MODE_DONTWAKE`, refused together with the former.
pub(super) const RWPROTECT_MODE_DONTWAKE: u64 = 1 << 1;
/// `UFFDIO_ZEROPAGE_MODE_DONTWAKE`.
pub(super) const ZEROPAGE_MODE_DONTWAKE: u64 = 1 << 0;

/// `struct uffdio_range`.
#[repr(C)]
#[derive(Copy, Clone)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) len: u64,
}

impl From<Span> for Range {
    #[inline]
    fn from(span: Span) -> Self {
        // The widening is exact: this crate is for 64-bit machines.
        Self { start: span.start() as u64, len: span.len() as u64 }
    }
}

/// `struct uffdio_api`.
#[repr(C)]
pub(super) struct Api {
    pub(super) api: u64,
    /// In: wanted. Out: offered, whatever was wanted.
    pub(super) features: u64,
    pub(super) ioctls: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
pub(super) struct Register {
    pub(super) range: Range,
    pub(super) mode: u64,
    /// Out: what the range allows, one bit a request number.
    pub(super) ioctls: u64,
}

/// The argument of `UFFDIO_UNREGISTER`.
#[repr(transparent)]
pub(super) struct Unregister(pub(super) Range);

/// The argument of `UFFDIO_WAKE`.
#[repr(transparent)]
pub(super) struct Wake(pub(super) Range);

/// `struct uffdio_writeprotect`.
#[repr(C)]
pub(super) struct WriteProtect {
    pub(super) range: Range,
    pub(super) mode: u64,
}

/// `struct uffdio_continue`.
#[repr(C)]
pub(super) struct Continue {
    pub(super) range: Range,
    pub(super) mode: u64,
    /// Out: bytes mapped, or a negative errno; untouched by an error found before the kernel looked at a page.
    pub(super) mapped: i64,
}

/// `struct uffdio_copy`.
#[repr(C)]
pub(super) struct CopyPages {
    pub(super) to: u64,
    pub(super) from: u64,
    pub(super) len: u64,
    pub(super) mode: u64,
    /// Out, as in [`Continue`].
    pub(super) copied: i64,
}

/// `struct uffdio_zeropage`.
#[repr(C)]
pub(super) struct ZeroPages {
    pub(super) range: Range,
    pub(super) mode: u64,
    /// Out, as in [`Continue`].
    pub(super) zeroed: i64,
}

/// `struct uffdio_move`.
#[repr(C)]
pub(super) struct MovePages {
    pub(super) to: u64,
    pub(super) from: u64,
    pub(super) len: u64,
    pub(super) mode: u64,
    /// Out, as in [`Continue`].
    pub(super) moved: i64,
}

/// `struct uffdio_rwprotect` (7.3).
#[repr(C)]
pub(super) struct RwProtect {
    pub(super) range: Range,
    pub(super) mode: u64,
}

request!(Api = opcode::read_write::<Api>(GROUP, 0x3F), 0xC018_AA3F);
request!(Register = opcode::read_write::<Register>(GROUP, 0x00), 0xC020_AA00);
// The kernel reads the argument of these two, but the header says `_IOR`.
request!(Unregister = opcode::read::<Unregister>(GROUP, 0x01), 0x8010_AA01);
request!(Wake = opcode::read::<Wake>(GROUP, 0x02), 0x8010_AA02);
request!(CopyPages = opcode::read_write::<CopyPages>(GROUP, 0x03), 0xC028_AA03);
request!(ZeroPages = opcode::read_write::<ZeroPages>(GROUP, 0x04), 0xC020_AA04);
request!(MovePages = opcode::read_write::<MovePages>(GROUP, 0x05), 0xC028_AA05);
request!(WriteProtect = opcode::read_write::<WriteProtect>(GROUP, 0x06), 0xC018_AA06);
request!(Continue = opcode::read_write::<Continue>(GROUP, 0x07), 0xC020_AA07);
request!(RwProtect = opcode::read_write::<RwProtect>(GROUP, 0x09), 0xC018_AA09);

/// One request, once; for those that return nothing but their structure. Signal-safe.
#[inline]
pub(super) fn call<R: Request>(fd: impl AsFd, request: &mut R) -> Result<(), Errno> {
    request::call(fd, request).map(|_| ())
}

/// `USERFAULTFD_IOC_NEW`, on `/dev/userfaultfd`: the argument is the flags, the answer a new userfaultfd.
pub(super) struct New {
    pub(super) flags: u32,
}

const NEW: Opcode = opcode::none(GROUP, 0x00);
const _: () = assert!(NEW == 0x0000_AA00);

// SAFETY: the argument is an integer, no memory is read or written, and the answer is a descriptor nobody owns yet.
unsafe impl Ioctl for New {
    type Output = OwnedFd;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        NEW
    }

    fn as_ptr(&mut self) -> *mut c_void {
        core::ptr::without_provenance_mut(self.flags as usize)
    }

    unsafe fn output_from_ptr(fd: IoctlOutput, _: *mut c_void) -> Result<OwnedFd, Errno> {
        // SAFETY: a successful USERFAULTFD_IOC_NEW returns a new descriptor, which is ours alone.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}
