//! What is read from a userfaultfd: `struct uffd_msg`.

use core::mem::{offset_of, size_of};

use super::abi::{EVENT_PAGEFAULT, EVENT_REMAP, EVENT_REMOVE, EVENT_UNMAP};
use super::flags::FaultFlags;

/// One message, 32 bytes, as the kernel wrote it. Valid for every bit pattern.
#[repr(transparent)]
#[derive(Copy, Clone, Debug)]
pub struct Message(Raw);

/// `struct uffd_msg`: what the three words mean depends on the event.
#[repr(C)]
#[derive(Copy, Clone, Debug)]
struct Raw {
    event: u8,
    reserved: [u8; 7],
    words: [u64; 3],
}

const _: () = {
    assert!(size_of::<Message>() == 32);
    assert!(offset_of!(Raw, words) == 8);
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

/// What a message reports. All but faults are sent only when their feature was asked for.
///
/// Whoever caused an event waits until its message is **read**, not until it is handled.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum Event {
    /// A touch waits.
    Fault(Fault),
    /// mremap moved `len` bytes; the registration moved with them.
    Remap {
        /// Where they were.
        from: usize,
        /// Where they are.
        to: usize,
        /// How many bytes.
        len: usize,
    },
    /// The pages are about to be removed by `MADV_DONTNEED`, `MADV_REMOVE` or the like; the range stays mapped.
    Remove {
        /// The first address.
        start: usize,
        /// The first address past it.
        end: usize,
    },
    /// The range has been unmapped, and may already be something else.
    Unmap {
        /// The first address.
        start: usize,
        /// The first address past it.
        end: usize,
    },
    /// An event of another number; 0x13 is a fork, whose message carries a new descriptor, which this loses.
    Other(u8),
}

impl Message {
    /// The page fault it reports; `None` for every other event. Signal-safe.
    #[inline]
    pub fn fault(&self) -> Option<Fault> {
        let [flags, address, feature] = self.0.words;
        (self.0.event == EVENT_PAGEFAULT).then(|| Fault {
            address: exact(address),
            // The first half of the word, whatever the byte order: a `__u32` of the kernel's union.
            thread: u32::from_ne_bytes(first_half(feature)),
            flags: FaultFlags::from_bits_retain(flags),
        })
    }

    /// What it reports. Signal-safe.
    #[inline]
    pub fn event(&self) -> Event {
        if let Some(fault) = self.fault() {
            return Event::Fault(fault);
        }
        let [first, second, third] = self.0.words.map(exact);
        match self.0.event {
            EVENT_REMAP => Event::Remap { from: first, to: second, len: third },
            EVENT_REMOVE => Event::Remove { start: first, end: second },
            EVENT_UNMAP => Event::Unmap { start: first, end: second },
            other => Event::Other(other),
        }
    }
}

/// The widths are the same: this crate is for 64-bit machines.
#[inline]
#[expect(clippy::cast_possible_truncation)]
fn exact(word: u64) -> usize {
    word as usize
}

#[inline]
fn first_half(word: u64) -> [u8; 4] {
    let [a, b, c, d, ..] = word.to_ne_bytes();
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(event: u8, words: [u64; 3]) -> Message {
        Message(Raw { event, reserved: [0; 7], words })
    }

    #[test]
    fn only_a_page_fault_is_a_fault() {
        let words = [5, 0x1000, 7];
        let fault = Fault { address: 0x1000, thread: 7, flags: FaultFlags::WRITE | FaultFlags::MINOR };
        let read = message(0x12, words);
        assert_eq!((read.fault(), read.event()), (Some(fault), Event::Fault(fault)));
        for (number, event) in [
            (0x13, Event::Other(0x13)),
            (0x14, Event::Remap { from: 5, to: 0x1000, len: 7 }),
            (0x15, Event::Remove { start: 5, end: 0x1000 }),
            (0x16, Event::Unmap { start: 5, end: 0x1000 }),
        ] {
            let read = message(number, words);
            assert_eq!((read.fault(), read.event()), (None, event));
        }
    }
}
