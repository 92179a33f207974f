//! The pagelease protocol as pure functions.
//!
//! A device is given exclusive access to pages of a process; a CPU touch takes them back. Who has a page is written in
//! one 32-bit [`PageWord`] a granule, and every change of it is a function of this crate: it takes the word that was
//! read, asserts what must be true of it, and returns the word to put in its place (by compare-and-swap) together with
//! what the caller now owes. The functions are pure, and the protocol lab (`pagelease-lab`) calls the very ones that the
//! runtime runs: what it explores is what ships.
//!
//! | file | what it decides |
//! |---|---|
//! | [`word`] | the layout of a page word, and what a device may do by it |
//! | [`claim`] | a device takes a page: may it, must it wait, what follows |
//! | [`touch`] | a CPU touch takes a page back: may it, must it wait, what follows |
//! | [`hold`] | leases: joining, ending and breaking a hold |
//! | [`notifier`] | interval notifiers: sequence numbers, tokens, which invalidation concerns whom |
//! | [`units`] | the types of indices, ranges, lengths, owners |
//!
//! No I/O, no time, no threads, no allocation, no `unsafe`. Every function may be called from anywhere, a signal handler
//! included. A failed assertion is a defect of the caller, never a result of input.

#![no_std]
#![forbid(unsafe_code)]

pub mod claim;
pub mod hold;
pub mod notifier;
pub mod touch;
pub mod units;
pub mod word;

pub use notifier::{Cause, NotifierWord, Origin, Seq, Token};
pub use units::{ByteLen, OwnerId, PageIndex, PageRange};
pub use word::{Access, PageState, PageWord};

/// Why an operation on a page has to wait before it can go on.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Obstacle {
    /// Another transition of the page is in progress. Short, and never broken.
    Busy,
    /// A lease holds the page. Breakable at the hold limit ([`hold::break_hold`]).
    Held,
    /// A CPU touch waits for the page; it goes first.
    Waiter,
}
