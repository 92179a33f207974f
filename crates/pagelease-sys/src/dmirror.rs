//! The kernel's own device-exclusive memory, by way of its test driver: `/dev/hmm_dmirror0`, of a kernel with
//! `CONFIG_TEST_HMM` (`lib/test_hmm_uapi.h`).
//!
//! The driver is a device without a device: it mirrors the address space of whoever opened it, and looks at memory as a
//! device would. From then on it also hears of every change of that address space, which costs each of them something.

use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::opcode;

use crate::request::{self, Request, request};
use crate::{Span, page_size};

/// The file of the driver's first device.
pub const PATH: &str = "/dev/hmm_dmirror0";

/// `struct hmm_dmirror_cmd`.
#[repr(C)]
#[derive(Default)]
struct Command {
    addr: u64,
    /// Where the pages' contents are copied to.
    ptr: u64,
    npages: u64,
    /// Out: pages copied.
    cpages: u64,
    /// Out: how often the device had to ask for pages.
    faults: u64,
}

/// The argument of `HMM_DMIRROR_READ`.
#[repr(transparent)]
struct Read(Command);

/// The argument of `HMM_DMIRROR_EXCLUSIVE`.
#[repr(transparent)]
struct Exclusive(Command);

request!(Read = opcode::read_write::<Read>(b'H', 0x00), 0xC028_4800);
request!(Exclusive = opcode::read_write::<Exclusive>(b'H', 0x05), 0xC028_4805);

/// A mirror of this process's address space.
#[derive(Debug)]
pub struct Dmirror {
    fd: OwnedFd,
}

impl Dmirror {
    /// Opens the driver's first device.
    ///
    /// # Errors
    ///
    /// `NOENT`: this kernel has no such driver. `ACCESS`: the device is root's.
    pub fn open() -> Result<Self, Errno> {
        Ok(Self { fd: rustix::fs::open(PATH, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())? })
    }

    /// Makes the pages of `span` exclusive to the device, each by the kernel's `make_device_exclusive`, and copies their
    /// contents to `into`, of which there must be as many bytes.
    ///
    /// # Errors
    ///
    /// `INVAL`: `into` is not as long as `span`. `BUSY`: a page was touched before all had been claimed. `FAULT`,
    /// `OPNOTSUPP`: memory that the kernel cannot claim.
    pub fn exclusive(&self, span: Span, into: &mut [u8]) -> Result<(), Errno> {
        let mut request = Exclusive(command(span, into)?);
        self.call(&mut request)
    }

    /// Reads the pages of `span` as the device, and copies their contents to `into`, of which there must be as many bytes.
    /// How often it had to ask the kernel for pages that it did not have: not at all right after [`Dmirror::exclusive`].
    ///
    /// # Errors
    ///
    /// `INVAL`: `into` is not as long as `span`. `FAULT`: not mapped.
    pub fn read(&self, span: Span, into: &mut [u8]) -> Result<u64, Errno> {
        let mut request = Read(command(span, into)?);
        self.call(&mut request)?;
        Ok(request.0.faults)
    }

    fn call<R: Request>(&self, request: &mut R) -> Result<(), Errno> {
        request::call(&self.fd, request).map(drop)
    }
}

fn command(span: Span, into: &mut [u8]) -> Result<Command, Errno> {
    if into.len() != span.len() {
        return Err(Errno::INVAL);
    }
    Ok(Command {
        addr: span.start() as u64,
        ptr: into.as_mut_ptr().expose_provenance() as u64,
        npages: (span.len() / page_size()) as u64,
        ..Command::default()
    })
}

#[cfg(test)]
mod tests {
    use super::{Dmirror, PATH, command};
    use crate::{Errno, Span, page_size};

    #[test]
    fn a_buffer_of_another_length_is_refused() {
        let span = Span::new(page_size(), 2 * page_size()).expect("two pages");
        assert_eq!(command(span, &mut [0; 1]).map(|_| ()), Err(Errno::INVAL));
        let mut into = vec![0; span.len()];
        let command = command(span, &mut into).expect("as long");
        assert_eq!((command.addr, command.npages), (page_size() as u64, 2));
    }

    #[test]
    fn a_kernel_without_the_driver_says_so() {
        if !std::path::Path::new(PATH).exists() {
            assert_eq!(Dmirror::open().map(|_| ()), Err(Errno::NOENT));
        }
    }
}
