//! The kernel's side of userfaultfd: structures and ioctl numbers of `include/uapi/linux/userfaultfd.h`.
//!
//! Each request is a type whose layout is the kernel's and which knows its own number, so that a number cannot be
//! used with another request's argument. Numbers are computed as the kernel's macros do, from the size of the
//! type, and asserted against the literal value: a field too many does not compile.

use core::ffi::c_void;
use core::mem::size_of;
use rustix::fd::{AsFd, FromRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::ioctl::{self, Ioctl, IoctlOutput, Opcode, opcode};

use crate::Span;

/// `USERFAULTFD_IOC`, and `UFFDIO`: the group of every number here.
const GROUP: u8 = 0xAA;
/// `UFFD_API`: the only version of the interface there is.
pub(super) const UFFD_API: u64 = 0xAA;
/// `UFFD_EVENT_PAGEFAULT`.
pub(super) const EVENT_PAGEFAULT: u8 = 0x12;
/// `UFFD_USER_MODE_ONLY`, a flag of the system call: serve no fault that the kernel itself takes.
pub(super) const USER_MODE_ONLY: u32 = 1;
/// `UFFDIO_WRITEPROTECT_MODE_WP`.
pub(super) const WRITEPROTECT_MODE_WP: u64 = 1 << 0;
/// `UFFDIO_WRITEPROTECT_MODE_DONTWAKE`, refused together with the former.
pub(super) const WRITEPROTECT_MODE_DONTWAKE: u64 = 1 << 1;

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

/// A structure that is the argument of one userfaultfd ioctl.
///
/// # Safety
///
/// `OPCODE` is the number of an ioctl that takes a pointer to exactly this type, reads and writes nothing else of
/// the caller's memory, and the type is valid for every bit pattern.
pub(super) unsafe trait Request {
    /// The ioctl's number.
    const OPCODE: Opcode;
}

/// Implements [`Request`], and checks the number against the header's.
macro_rules! request {
    ($type:ty = $opcode:expr, $literal:literal) => {
        // SAFETY: the structure is the kernel's, of integers only, and the assertion ties number and size.
        unsafe impl Request for $type {
            const OPCODE: Opcode = $opcode;
        }
        const _: () = assert!(<$type>::OPCODE == $literal);
    };
}

request!(Api = opcode::read_write::<Api>(GROUP, 0x3F), 0xC018_AA3F);
request!(Register = opcode::read_write::<Register>(GROUP, 0x00), 0xC020_AA00);
// The kernel reads the argument of these two, but the header says `_IOR`.
request!(Unregister = opcode::read::<Unregister>(GROUP, 0x01), 0x8010_AA01);
request!(Wake = opcode::read::<Wake>(GROUP, 0x02), 0x8010_AA02);
request!(WriteProtect = opcode::read_write::<WriteProtect>(GROUP, 0x06), 0xC018_AA06);
request!(Continue = opcode::read_write::<Continue>(GROUP, 0x07), 0xC020_AA07);

const _: () = assert!(size_of::<usize>() == size_of::<u64>());

/// One ioctl on a userfaultfd, once. The kernel may have written to `request` even when it reports an error.
/// Signal-safe.
#[inline]
pub(super) fn call<R: Request>(fd: impl AsFd, request: &mut R) -> Result<(), Errno> {
    // SAFETY: `Request` promises that this number goes with this type.
    unsafe { ioctl::ioctl(fd, Call(request)) }
}

/// A request on its way. (`rustix::ioctl::Updater` wants the number as a const generic, which cannot depend on a
/// type.)
struct Call<'a, R>(&'a mut R);

// SAFETY: the pointer is to a live, exclusively borrowed `R`, which is what `R::OPCODE` takes and may write to.
unsafe impl<R: Request> Ioctl for Call<'_, R> {
    type Output = ();
    const IS_MUTATING: bool = true;

    #[inline]
    fn opcode(&self) -> Opcode {
        R::OPCODE
    }

    #[inline]
    fn as_ptr(&mut self) -> *mut c_void {
        core::ptr::from_mut(self.0).cast()
    }

    #[inline]
    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> Result<(), Errno> {
        Ok(())
    }
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
