//! What is read from a userfaultfd: `struct uffd_msg`.

use core::mem::{offset_of, size_of};

use super::abi::EVENT_PAGEFAULT;
use super::flags::FaultFlags;

/// One message, 32 bytes, as the kernel wrote it. Valid for every bit pattern.
#[repr(transparent)]
#[derive(Copy, Clone, Debug)]
pub struct Message(Raw);

/// `struct uffd_msg` with the fields of a page fault, the only event this crate's users ask for.
#[repr(C)]
#[derive(Copy, Clone, Debug)]
struct Raw {
    event: u8,
    reserved: [u8; 7],
    flags: u64,
    address: u64,
    thread: u32,
    unused: u32,
}

const _: () = {
    assert!(size_of::<Message>() == 32);
    assert!(offset_of!(Raw, flags) == 8);
    assert!(offset_of!(Raw, address) == 16);
    assert!(offset_of!(Raw, thread) == 24);
};

/// A touch that waits to be served.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Fault {
    /// Where: the address itself with `EXACT_ADDRESS`, otherwise its page's.
    pub address: usize,
    /// Who: the thread's id with `THREAD_ID`, otherwise 0. Also 0 for a thread of another pid namespace.
    pub thread: u32,
    /// How.
    pub flags: FaultFlags,
}

impl Message {
    /// The page fault it reports; `None` for the events of fork, mremap, munmap and the like, which are not sent
    /// unless asked for. Signal-safe.
    #[inline]
    pub fn fault(&self) -> Option<Fault> {
        (self.0.event == EVENT_PAGEFAULT).then(|| Fault {
            // Exact: this crate is for 64-bit machines.
            #[expect(clippy::cast_possible_truncation)]
            address: self.0.address as usize,
            thread: self.0.thread,
            flags: FaultFlags::from_bits_retain(self.0.flags),
        })
    }

    /// The event's number: 0x12 for a page fault. Signal-safe.
    #[inline]
    pub fn event(&self) -> u8 {
        self.0.event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_page_fault_is_a_fault() {
        let raw = Raw { event: 0x12, reserved: [0; 7], flags: 5, address: 0x1000, thread: 7, unused: 0 };
        let expected = Fault { address: 0x1000, thread: 7, flags: FaultFlags::WRITE | FaultFlags::MINOR };
        assert_eq!(Message(raw).fault(), Some(expected));
        let remove = Message(Raw { event: 0x15, ..raw });
        assert_eq!((remove.fault(), remove.event()), (None, 0x15));
    }
}
