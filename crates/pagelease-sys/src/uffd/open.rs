//! Opening a userfaultfd, and agreeing on its features.
//!
//! There are three ways, tried in this order, since each later one is allowed less:
//!
//! 1. `/dev/userfaultfd` (6.1): whoever may open the file gets everything.
//! 2. the system call: needs `CAP_SYS_PTRACE`, or `vm.unprivileged_userfaultfd=1`.
//! 3. the system call with `UFFD_USER_MODE_ONLY` (5.11): anybody, but a fault taken by the kernel itself, in a
//!    `read(2)` into the page for instance, is not served: that system call fails with `EFAULT`.
//!
//! The handshake (`UFFDIO_API`) is done once a descriptor and refuses a set of features as a whole, without saying
//! which it lacks. So a throwaway descriptor asks for none, which tells what is offered, and a second one asks for
//! what is wanted. Not signal-safe.

use core::fmt;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mm::UserfaultfdFlags;

use super::abi::{self, Api, New, UFFD_API, USER_MODE_ONLY};
use super::{Features, Uffd};

/// One of the three ways to a userfaultfd.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Hash)]
pub enum OpenPath {
    /// `/dev/userfaultfd`.
    Device,
    /// The system call.
    Syscall,
    /// The system call, for faults of user mode only.
    UserModeOnly,
}

impl OpenPath {
    /// All of them, in the order in which they are tried.
    pub const ALL: [Self; 3] = [Self::Device, Self::Syscall, Self::UserModeOnly];

    /// A new descriptor, close-on-exec and non-blocking, before its handshake.
    fn descriptor(self) -> Result<OwnedFd, Errno> {
        let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
        match self {
            Self::Device => {
                let device = rustix::fs::open("/dev/userfaultfd", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
                // SAFETY: USERFAULTFD_IOC_NEW takes flags, and a new userfaultfd does nothing yet.
                unsafe { rustix::ioctl::ioctl(device, New { flags: flags.bits() }) }
            }
            // SAFETY: a new userfaultfd does nothing yet.
            Self::Syscall => unsafe { rustix::mm::userfaultfd(flags) },
            Self::UserModeOnly => {
                let flags = flags | UserfaultfdFlags::from_bits_retain(USER_MODE_ONLY);
                // SAFETY: as above.
                unsafe { rustix::mm::userfaultfd(flags) }
            }
        }
    }

    /// What the kernel offers this way.
    fn offered(self) -> Result<Features, Errno> {
        handshake(self.descriptor()?, Features::empty())
    }
}

impl fmt::Display for OpenPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Device => "/dev/userfaultfd",
            Self::Syscall => "the userfaultfd system call",
            Self::UserModeOnly => "userfaultfd with UFFD_USER_MODE_ONLY",
        })
    }
}

/// A userfaultfd that is ready for use, and how it came about.
#[derive(Debug)]
pub struct Opened {
    /// The descriptor, with the wanted features enabled.
    pub uffd: Uffd,
    /// The way that worked; the ones before it did not.
    pub path: OpenPath,
    /// What the kernel offers, which may be more than was wanted.
    pub features: Features,
}

/// Why there is no userfaultfd.
#[derive(Clone, Eq, PartialEq, Debug, thiserror::Error)]
pub enum OpenError {
    /// None of the three ways works.
    #[error("no userfaultfd: {}: {}; {}: {}; {}: {}",
        .attempts[0].0, .attempts[0].1, .attempts[1].0, .attempts[1].1, .attempts[2].0, .attempts[2].1)]
    Refused {
        /// What each way returned, in the order in which they were tried.
        attempts: [(OpenPath, Errno); 3],
    },
    /// There is one, but it cannot do what was wanted.
    #[error("the kernel's userfaultfd lacks {missing}; through {path} it offers {offered}")]
    Missing {
        /// The way that worked.
        path: OpenPath,
        /// What was wanted and is not offered.
        missing: Features,
        /// What is offered.
        offered: Features,
    },
}

impl Uffd {
    /// Opens a userfaultfd with the features `want`, close-on-exec and non-blocking, in the first of the three
    /// ways that works. See [`OpenPath`]. A feature that the kernel lacks ends the search: it lacks it in every
    /// way.
    ///
    /// # Errors
    ///
    /// [`OpenError`] says what each way returned, or which of the wanted features are missing.
    pub fn open(want: Features) -> Result<Opened, OpenError> {
        let mut attempts = OpenPath::ALL.map(|path| (path, Errno::NOSYS));
        for (path, refusal) in &mut attempts {
            match Self::open_through(*path, want) {
                Ok(found) => return found,
                Err(errno) => *refusal = errno,
            }
        }
        Err(OpenError::Refused { attempts })
    }

    /// The outer error is this way's only; the inner one would be every way's.
    fn open_through(path: OpenPath, want: Features) -> Result<Result<Opened, OpenError>, Errno> {
        let offered = path.offered()?;
        let missing = want.difference(offered);
        if !missing.is_empty() {
            return Ok(Err(OpenError::Missing { path, missing, offered }));
        }
        let fd = path.descriptor()?;
        let features = handshake(&fd, want)?;
        Ok(Ok(Opened { uffd: Uffd { fd }, path, features }))
    }
}

/// What each of the three ways says, in order: the features offered, or the error.
pub fn probe() -> Vec<(OpenPath, Result<Features, Errno>)> {
    OpenPath::ALL.iter().map(|path| (*path, path.offered())).collect()
}

/// `UFFDIO_API`: enables `want`, returns what is offered.
fn handshake(fd: impl AsFd, want: Features) -> Result<Features, Errno> {
    let mut api = Api { api: UFFD_API, features: want.bits(), ioctls: 0 };
    abi::call(fd, &mut api)?;
    Ok(Features::from_bits_retain(api.features))
}
