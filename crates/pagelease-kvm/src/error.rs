//! What can go wrong, each with what to do about it.

use core::time::Duration;

use pagelease::{BackendKind, ClaimError, DeviceLost};
use pagelease_sys::Errno;
use pagelease_sys::uffd::OpenError;

/// Why this machine, or this process, has no KVM device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// Not built for x86-64.
    #[error("device code for KVM is x86-64 machine code, and this is another machine; use the software device")]
    Architecture,
    /// `/dev/kvm` cannot be opened.
    #[error("/dev/kvm cannot be opened: {errno}; {remedy}", errno = .0, remedy = open_remedy(*.0))]
    Open(Errno),
    /// It speaks another version of its interface.
    #[error("/dev/kvm speaks version {0} of its interface, and only 12 is known; use a kernel of this decade")]
    Version(i32),
    /// A step of making a virtual machine was refused.
    #[error("{what} failed: {errno}; see the kernel's log for why KVM refused it")]
    Refused {
        /// The step.
        what: &'static str,
        /// What the kernel said.
        errno: Errno,
    },
    /// No userfaultfd, or one that lacks what trapping a vCPU takes.
    #[error(
        "a vCPU's accesses cannot be trapped: {0}; Linux 5.14 has what it takes: run as root, or sysctl vm.unprivileged_userfaultfd=1"
    )]
    Userfaultfd(#[from] OpenError),
    /// Only a userfaultfd that does not serve faults of the kernel, of which a vCPU's are.
    #[error(
        "userfaultfd is allowed for faults of user mode only, and a vCPU's are the kernel's; run as root, allow /dev/userfaultfd, or sysctl vm.unprivileged_userfaultfd=1"
    )]
    UserModeOnly,
    /// A function of five bytes did not come back from the guest.
    #[error("the guest does not run code at privilege level 3: {0}; this KVM cannot be used for it")]
    Trial(String),
}

fn open_remedy(errno: Errno) -> &'static str {
    match errno {
        Errno::NOENT | Errno::NODEV | Errno::NXIO => {
            "load kvm_intel or kvm_amd; in a virtual machine, switch nested virtualization on for it; in a container, pass the device in (--device /dev/kvm)"
        }
        Errno::ACCESS | Errno::PERM => {
            "join the group that owns it (usermod -aG kvm USER, then log in again), or run as root"
        }
        Errno::BUSY => "another hypervisor has the processor's virtualization; stop it",
        _ => "see the kernel's log",
    }
}

/// A KVM device could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// KVM cannot be used here.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// No vCPUs, or too many.
    #[error("a KVM device of {asked} vCPUs; ask for 1 to {limit}")]
    Vcpus {
        /// What was asked for.
        asked: usize,
        /// The most.
        limit: usize,
    },
    /// A deadline of nothing.
    #[error("a deadline of zero; set one that a lane can meet, or Duration::MAX for none")]
    NoTime,
    /// It could not be registered with the space.
    #[error(transparent)]
    Register(#[from] pagelease::AttachError),
    /// A step of making it failed.
    #[error("{what} failed: {errno}; raise the limits on memory (ulimit -v) and open files (ulimit -n)")]
    System {
        /// The step.
        what: &'static str,
        /// What the kernel said.
        errno: Errno,
    },
    /// A thread could not be started.
    #[error("a thread of the device cannot be started: {0}; raise the process limit (ulimit -u)")]
    Thread(String),
}

/// A KVM device could not be attached to a region.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// The runtime refused.
    #[error(transparent)]
    Runtime(#[from] pagelease::AttachError),
    /// The region's memory has no alias that a virtual machine could be given.
    #[error(
        "a region of {backend:?} has no alias of all its pages for a virtual machine to have; use Space::allocate or Space::map_file"
    )]
    NoAlias {
        /// The region's backend.
        backend: BackendKind,
    },
    /// The device's accesses to this memory cannot be trapped.
    #[error(
        "the device's view cannot be trapped by userfaultfd: {errno}; use memory that it serves: Space::allocate, a memfd, a file in tmpfs or hugetlbfs"
    )]
    NotTrapped {
        /// What the kernel said.
        errno: Errno,
    },
    /// Pages cannot be taken from the device's view: the memory is locked.
    #[error(
        "the device's view cannot be revoked: {errno}; memory that is locked (mlockall with MCL_FUTURE) cannot be: unlock it"
    )]
    NotRevoked {
        /// What the kernel said.
        errno: Errno,
    },
    /// The region does not fit in the guest's physical memory, or in the page tables there is room for.
    #[error("the guest has no room for {len} bytes more; detach other regions, or make another device")]
    NoRoom {
        /// The size of the region.
        len: usize,
    },
    /// As many regions as a device can have.
    #[error("{limit} regions are attached to the device already; detach one, or make another device")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// KVM refused the memory.
    #[error("KVM_SET_USER_MEMORY_REGION failed: {errno}; see the kernel's log")]
    Slot {
        /// What the kernel said.
        errno: Errno,
    },
}

/// A kernel could not be loaded.
#[derive(Copy, Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// No code.
    #[error("a kernel of no bytes; its first byte is where it is entered")]
    Empty,
    /// No room for it.
    #[error("no room for a kernel of {len} bytes among those that are loaded; drop some")]
    NoRoom {
        /// Its size.
        len: usize,
    },
    /// In a child of fork.
    #[error("this process is a forked child: the device is its parent's")]
    Forked,
}

/// A job could not be submitted.
#[derive(Copy, Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// The kernel was loaded on another device.
    #[error("the kernel was loaded on another device; load it on this one")]
    ForeignKernel,
    /// No lanes.
    #[error("a job of no lanes does nothing; ask for at least one")]
    NoLanes,
    /// No room for its arguments.
    #[error(
        "no room for an argument block of {len} bytes; wait for jobs that are under way, or pass a pointer into a region"
    )]
    NoRoom {
        /// Its size.
        len: usize,
    },
    /// In a child of fork.
    #[error("this process is a forked child: the device is its parent's")]
    Forked,
}

/// Why a job did not finish. What it has done so far is done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JobError {
    /// It used an address that no region attached to the device has, or used its own in a way that they are not for.
    #[error("the kernel at {instruction:#x} {what} {address:#x}, which no region attached to the device has; attach it, or check the pointer", what = .access)]
    Outside {
        /// The address it used; where its physical address alone is known, that.
        address: u64,
        /// The instruction.
        instruction: u64,
        /// What it did.
        access: Access,
    },
    /// The processor refused an instruction.
    #[error(
        "the kernel raised {exception} at {instruction:#x} (error code {error:#x}); it has no operating system, and only the baseline of x86-64 with SSE2"
    )]
    Fault {
        /// Which fault.
        exception: Exception,
        /// The processor's error code; 0 where it has none.
        error: u64,
        /// The instruction.
        instruction: u64,
    },
    /// It ran for longer than a lane may.
    #[error(
        "the kernel ran longer than {limit:?} and was stopped at {instruction:#x}; raise KvmConfig::deadline, or split the job"
    )]
    Deadline {
        /// The limit.
        limit: Duration,
        /// Where it was stopped.
        instruction: u64,
    },
    /// [`Job::cancel`](crate::Job::cancel), or another lane of the job failed first.
    #[error("the job was cancelled")]
    Cancelled,
    /// A page that it used could not be claimed.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The device was lost.
    #[error(transparent)]
    Lost(#[from] DeviceLost),
    /// The virtual processor gave up.
    #[error("the vCPU gave up at {instruction:#x}: {what}")]
    Broken {
        /// Why.
        what: &'static str,
        /// Where.
        instruction: u64,
    },
    /// KVM refused to run it.
    #[error("KVM_RUN failed: {errno}; has memory of a region gone (a file truncated, a pool of huge pages empty)?")]
    Run {
        /// What the kernel said.
        errno: Errno,
    },
    /// Waited for in a child of fork.
    #[error("this process is a forked child: the device is its parent's")]
    Forked,
}

/// What a kernel did with an address.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Access {
    /// It read.
    Read,
    /// It wrote.
    Write,
    /// It went there.
    Execute,
}

impl core::fmt::Display for Access {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "wrote to",
            Self::Execute => "jumped to",
        })
    }
}

/// A fault of the processor's, other than a page fault.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Exception {
    /// #DE: division by zero, or a quotient too large.
    Divide,
    /// #UD: no such instruction.
    InvalidOpcode,
    /// #GP: an instruction of the supervisor's, a port, or an address that is none.
    GeneralProtection,
    /// #SS: an address that is none, by way of the stack pointer.
    Stack,
    /// #AC: a misaligned access.
    Alignment,
    /// #XM or #MF: floating point, with its exceptions unmasked.
    FloatingPoint,
    /// Another, by its vector.
    Other(u8),
}

impl From<u8> for Exception {
    fn from(vector: u8) -> Self {
        match vector {
            0 => Self::Divide,
            6 => Self::InvalidOpcode,
            12 => Self::Stack,
            13 => Self::GeneralProtection,
            17 => Self::Alignment,
            16 | 19 => Self::FloatingPoint,
            vector => Self::Other(vector),
        }
    }
}

impl core::fmt::Display for Exception {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Divide => f.write_str("#DE (division)"),
            Self::InvalidOpcode => f.write_str("#UD (no such instruction)"),
            Self::GeneralProtection => f.write_str("#GP (privileged instruction, port, or no address)"),
            Self::Stack => f.write_str("#SS (stack)"),
            Self::Alignment => f.write_str("#AC (alignment)"),
            Self::FloatingPoint => f.write_str("#XM (floating point)"),
            Self::Other(vector) => write!(f, "vector {vector}"),
        }
    }
}
