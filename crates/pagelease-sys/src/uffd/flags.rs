//! The bits of userfaultfd, by the kernel's names.
//!
//! A bit the kernel sets and this file does not know is kept, and printed as a number. All signal-safe, except
//! that printing is not.

use core::fmt;

bitflags::bitflags! {
    /// `UFFD_FEATURE_*`: what a userfaultfd can be asked for when it is opened.
    #[derive(Copy, Clone, Eq, PartialEq, Debug, Hash)]
    pub struct Features: u64 {
        /// Write-protect faults on anonymous memory are reported (5.7).
        const PAGEFAULT_FLAG_WP = 1 << 0;
        /// fork raises an event; needs `CAP_SYS_PTRACE`, and fork waits until the event is read.
        const EVENT_FORK = 1 << 1;
        /// mremap raises an event.
        const EVENT_REMAP = 1 << 2;
        /// `MADV_DONTNEED`, `MADV_REMOVE` and hole punching raise an event, and wait until it is read.
        const EVENT_REMOVE = 1 << 3;
        /// MISSING on hugetlb.
        const MISSING_HUGETLBFS = 1 << 4;
        /// MISSING on shmem.
        const MISSING_SHMEM = 1 << 5;
        /// munmap raises an event.
        const EVENT_UNMAP = 1 << 6;
        /// A fault raises SIGBUS in the touching thread instead of a message (4.14). A system call that touches
        /// the page gets `EFAULT`.
        const SIGBUS = 1 << 7;
        /// A message names the thread that faulted (4.14).
        const THREAD_ID = 1 << 8;
        /// MINOR on hugetlb (5.13).
        const MINOR_HUGETLBFS = 1 << 9;
        /// MINOR on shmem (5.14).
        const MINOR_SHMEM = 1 << 10;
        /// Messages carry the address itself, not that of its page (5.18).
        const EXACT_ADDRESS = 1 << 11;
        /// Write protection on shmem and hugetlb (5.19).
        const WP_HUGETLBFS_SHMEM = 1 << 12;
        /// Write protection of anonymous pages not populated yet (6.4).
        const WP_UNPOPULATED = 1 << 13;
        /// `UFFDIO_POISON` (6.6).
        const POISON = 1 << 14;
        /// Write protection that the kernel lifts by itself, for tracking what was written (6.7).
        const WP_ASYNC = 1 << 15;
        /// `UFFDIO_MOVE` (6.8).
        const MOVE = 1 << 16;
        /// Protection from reads and writes of pages that stay where they are (7.3).
        const RWP = 1 << 17;
        /// The same, lifted by the kernel itself (7.3).
        const RWP_ASYNC = 1 << 18;

        // Bits of later kernels.
        const _ = !0;
    }

    /// The requests that a registered range, or a userfaultfd as a whole, allows: one bit a request number.
    #[derive(Copy, Clone, Eq, PartialEq, Debug, Hash)]
    pub struct Ioctls: u64 {
        /// `UFFDIO_REGISTER`.
        const REGISTER = 1 << 0x00;
        /// `UFFDIO_UNREGISTER`.
        const UNREGISTER = 1 << 0x01;
        /// `UFFDIO_WAKE`.
        const WAKE = 1 << 0x02;
        /// `UFFDIO_COPY`.
        const COPY = 1 << 0x03;
        /// `UFFDIO_ZEROPAGE`.
        const ZEROPAGE = 1 << 0x04;
        /// `UFFDIO_MOVE`.
        const MOVE = 1 << 0x05;
        /// `UFFDIO_WRITEPROTECT`.
        const WRITEPROTECT = 1 << 0x06;
        /// `UFFDIO_CONTINUE`.
        const CONTINUE = 1 << 0x07;
        /// `UFFDIO_POISON`.
        const POISON = 1 << 0x08;
        /// `UFFDIO_RWPROTECT`.
        const RWPROTECT = 1 << 0x09;
        /// `UFFDIO_API`.
        const API = 1 << 0x3F;

        // Bits of later kernels.
        const _ = !0;
    }

    /// `UFFDIO_REGISTER_MODE_*`: which faults of a range are trapped.
    #[derive(Copy, Clone, Eq, PartialEq, Debug, Hash)]
    pub struct RegisterMode: u64 {
        /// A page that does not exist.
        const MISSING = 1 << 0;
        /// A write to a page that [`Uffd::write_protect`](super::Uffd::write_protect) protected.
        const WP = 1 << 1;
        /// A page that the page cache holds and this mapping does not. A page that the page cache does not hold is
        /// filled without a fault.
        const MINOR = 1 << 2;
        /// Any touch of a page that [`Uffd::rw_protect`](super::Uffd::rw_protect) protected (7.3; needs
        /// [`Features::RWP`]). Not together with [`WP`](Self::WP). To take it from a range, unregister first.
        const RWP = 1 << 3;
    }

    /// `UFFDIO_CONTINUE_MODE_*`.
    #[derive(Copy, Clone, Eq, PartialEq, Debug, Hash)]
    pub struct ContinueMode: u64 {
        /// Leave the threads that wait for the range asleep.
        const DONTWAKE = 1 << 0;
        /// Map write-protected (6.4). Without it, CONTINUE erases the protection that an absent page carried.
        const WP = 1 << 1;
    }

    /// `UFFDIO_COPY_MODE_*`.
    #[derive(Copy, Clone, Eq, PartialEq, Debug, Hash)]
    pub struct CopyMode: u64 {
        /// Leave the threads that wait for the range asleep.
        const DONTWAKE = 1 << 0;
        /// Map write-protected (5.7).
        const WP = 1 << 1;
    }

    /// `UFFDIO_MOVE_MODE_*`.
    #[derive(Copy, Clone, Eq, PartialEq, Debug, Hash)]
    pub struct MoveMode: u64 {
        /// Leave the threads that wait for the range asleep.
        const DONTWAKE = 1 << 0;
        /// Where the source has no page, leave the destination without one too, and go on.
        const ALLOW_SRC_HOLES = 1 << 1;
    }

    /// `UFFD_PAGEFAULT_FLAG_*`: what kind of touch a fault was.
    #[derive(Copy, Clone, Eq, PartialEq, Debug, Hash)]
    pub struct FaultFlags: u64 {
        /// It was a write.
        const WRITE = 1 << 0;
        /// The page is there, and write-protected.
        const WP = 1 << 1;
        /// The page cache holds the page, this mapping does not.
        const MINOR = 1 << 2;
        /// The page is there, and protected from reads and writes (7.3).
        const RWP = 1 << 3;

        // Bits of later kernels.
        const _ = !0;
    }
}

/// `SIGBUS | MINOR_SHMEM`; the empty set prints as `none`.
impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() { f.write_str("none") } else { bitflags::parser::to_writer(self, f) }
    }
}

/// `WRITE | MINOR`; the empty set prints as `none`.
impl fmt::Display for FaultFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() { f.write_str("none") } else { bitflags::parser::to_writer(self, f) }
    }
}
