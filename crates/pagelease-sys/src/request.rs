//! An ioctl whose argument is a pointer to a structure: number and structure in one type.
//!
//! Each request is a type whose layout is the kernel's and which knows its own number, so that a number cannot be
//! used with another request's argument. Numbers are computed as the kernel's macros do, from the size of the
//! type, and asserted against the literal value: a field too many does not compile.

use core::ffi::c_void;
use core::mem::size_of;
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::ioctl::{self, Ioctl, IoctlOutput, Opcode};

/// A structure that is the argument of one ioctl.
///
/// # Safety
///
/// `OPCODE` is the number of an ioctl that takes a pointer to exactly this type, and the type is valid for every bit
/// pattern. Besides the structure itself, the ioctl reads and writes only memory that the structure's fields name;
/// whoever fills in the fields answers for that.
pub(crate) unsafe trait Request {
    /// The ioctl's number.
    const OPCODE: Opcode;
}

/// Implements [`Request`], and checks the number against the header's.
macro_rules! request {
    ($type:ty = $opcode:expr, $literal:literal) => {
        // SAFETY: the structure is the kernel's, of integers only, and the assertion ties number and size.
        unsafe impl crate::request::Request for $type {
            const OPCODE: rustix::ioctl::Opcode = $opcode;
        }
        const _: () = assert!(<$type as crate::request::Request>::OPCODE == $literal);
    };
}
pub(crate) use request;

const _: () = assert!(size_of::<usize>() == size_of::<u64>());

/// One ioctl, once. The kernel may have written to `request` even when it reports an error. Returns what the ioctl
/// returned: for most, zero. Signal-safe.
#[inline]
pub(crate) fn call<R: Request>(fd: impl AsFd, request: &mut R) -> Result<usize, Errno> {
    // SAFETY: `Request` promises that this number goes with this type.
    unsafe { ioctl::ioctl(fd, Call(request)) }
}

/// A request on its way. (`rustix::ioctl::Updater` wants the number as a const generic, which cannot depend on a
/// type.)
struct Call<'a, R>(&'a mut R);

// SAFETY: the pointer is to a live, exclusively borrowed `R`, which is what `R::OPCODE` takes and may write to.
unsafe impl<R: Request> Ioctl for Call<'_, R> {
    type Output = usize;
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
    unsafe fn output_from_ptr(output: IoctlOutput, _: *mut c_void) -> Result<usize, Errno> {
        // Negative ones are errors, which do not come here.
        Ok(usize::try_from(output).unwrap_or(0))
    }
}
