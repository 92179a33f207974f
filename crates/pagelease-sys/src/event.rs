//! Waiting for a descriptor: a doorbell that wakes, and `poll`.
//!
//! Signal-safe: everything but opening a [`Doorbell`].

use core::time::Duration;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;

/// An eventfd that, once rung, stays readable: everybody who polls it wakes, now or later.
#[derive(Debug)]
pub struct Doorbell {
    fd: OwnedFd,
}

impl Doorbell {
    /// A doorbell that nobody has rung, close-on-exec.
    ///
    /// # Errors
    ///
    /// `MFILE`, `NFILE`: too many open files. `NOMEM`.
    pub fn open() -> Result<Self, Errno> {
        Ok(Self { fd: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)? })
    }

    /// Rings it, for good.
    pub fn ring(&self) {
        // The counter cannot be full: it is rung a handful of times at most.
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Which of two descriptors can be read.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq)]
pub struct Readable {
    /// The first.
    pub first: bool,
    /// The second.
    pub second: bool,
}

/// Sleeps until one of the descriptors can be read, at most for `timeout`. A signal ends it early, with neither.
pub fn wait_readable(first: impl AsFd, second: impl AsFd, timeout: Option<Duration>) -> Readable {
    let timeout = timeout.and_then(|timeout| {
        Some(Timespec { tv_sec: i64::try_from(timeout.as_secs()).ok()?, tv_nsec: timeout.subsec_nanos().into() })
    });
    let mut fds = [PollFd::new(&first, PollFlags::IN), PollFd::new(&second, PollFlags::IN)];
    match poll(&mut fds, timeout.as_ref()) {
        Ok(1..) => Readable { first: !fds[0].revents().is_empty(), second: !fds[1].revents().is_empty() },
        _ => Readable::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rung_bell_stays_rung() {
        let (bell, other) = (Doorbell::open().unwrap(), Doorbell::open().unwrap());
        let soon = Some(Duration::from_millis(1));
        assert_eq!(wait_readable(&bell, &other, soon), Readable::default());
        other.ring();
        for _ in 0..2 {
            assert_eq!(wait_readable(&bell, &other, None), Readable { first: false, second: true });
        }
    }
}
