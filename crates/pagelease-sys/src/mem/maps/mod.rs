//! What is mapped where in this process, asked of the kernel.
//!
//! Two ways to the same answer: `PROCMAP_QUERY` (6.11), about a microsecond, and reading `/proc/self/maps`, which
//! takes as long as the process has mappings before the address. Neither allocates.
//!
//! Invariants:
//!
//! - The kept descriptor's read position belongs to whoever set `reading`; everybody else, a signal handler that
//!   interrupted that very reading included, reads through a descriptor of its own. Nobody waits.
//! - An answer is of the past as soon as it is given.
//!
//! Signal-safe: everything but [`Maps::open`].

mod query;
#[cfg(test)]
mod tests;
mod text;

use core::sync::atomic::{AtomicBool, Ordering::Acquire, Ordering::Release};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::Span;

/// One mapping.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Area {
    /// Where.
    pub span: Span,
    /// It can be read.
    pub readable: bool,
    /// It can be written to.
    pub writable: bool,
    /// It can be executed.
    pub executable: bool,
    /// Stores reach the file, and other processes; if not, it is private.
    pub shared: bool,
    /// What it shows.
    pub kind: AreaKind,
}

/// What a mapping shows.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Hash)]
pub enum AreaKind {
    /// Private memory of this process.
    Anonymous,
    /// The same, below the program break.
    Heap,
    /// The stack of the main thread. Other threads' are [`Anonymous`](Self::Anonymous).
    Stack,
    /// A file, memory files and shared anonymous memory included.
    File,
    /// The kernel's own (`[vdso]` and the like), or a device's.
    Other,
}

/// `/proc/self/maps`, open.
#[derive(Debug)]
pub struct Maps {
    fd: OwnedFd,
    /// Somebody is reading through `fd`.
    reading: AtomicBool,
}

impl Maps {
    /// Opens it. In a forked child it still names the parent.
    ///
    /// # Errors
    ///
    /// `NOENT`: no `/proc`. `MFILE`, `NFILE`: too many open files.
    pub fn open() -> Result<Self, Errno> {
        Ok(Self { fd: open_text()?, reading: AtomicBool::new(false) })
    }

    /// The mapping that contains `address`, or else the first one after it; `None` when there is none. The kernel's
    /// `[vsyscall]`, above all of a process's addresses, is not counted. Signal-safe.
    ///
    /// # Errors
    ///
    /// Those of reading `/proc/self/maps`; before 6.11, `MFILE` and `NFILE` too.
    pub fn area_at_or_after(&self, address: usize) -> Result<Option<Area>, Errno> {
        match query::area(&self.fd, address) {
            // Before 6.11, or a filter of system calls: whatever it was, the other way may be open.
            Err(_) => self.read_area(address),
            answer => answer,
        }
    }

    /// The same, always by reading.
    fn read_area(&self, address: usize) -> Result<Option<Area>, Errno> {
        if self.reading.swap(true, Acquire) {
            return text::area(&open_text()?, address);
        }
        let area = text::area(&self.fd, address);
        self.reading.store(false, Release);
        area
    }
}

/// `/proc/self/maps`, newly opened. Signal-safe.
pub(super) fn open_text() -> Result<OwnedFd, Errno> {
    rustix::fs::open("/proc/self/maps", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// What a mapping shows, by its name in `/proc/self/maps` and whether it has a file.
fn kind(name: &[u8], has_file: bool) -> AreaKind {
    let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix.as_bytes()));
    // What lies there is a device's, or memory that only its maker may touch.
    let special = begins(&["/dev/", "/proc/", "/sys/", "/dmabuf:", "/secretmem"]);
    let ordinary = begins(&["/dev/zero", "/dev/shm/", "/dev/hugepages/"]);
    match name {
        b"[heap]" => AreaKind::Heap,
        b"[stack]" => AreaKind::Stack,
        _ if has_file && (begins(&["[anon_shmem:"]) || begins(&["/"]) && (ordinary || !special)) => AreaKind::File,
        _ if !has_file && (name.is_empty() || begins(&["[anon:"])) => AreaKind::Anonymous,
        _ => AreaKind::Other,
    }
}
