//! [`Gate`]: between those who move adopted pages, and the program's changes of its address space.
//!
//! A change (`munmap`, `mremap`, `MADV_DONTNEED`) is reported as an event; its caller goes on as soon as the event is *read*.
//! Whoever moves pages by their address must not do so behind that: the address may be something else by then. So the gate is
//! closed before an event is read, which waits until nobody is inside, and opened when the event has been dealt with.
//!
//! ```text
//!   mover    enter: inside += 1, is it open? no: out again             move, a millisecond at most             inside -= 1
//!   reader   close: shut, wait for inside == 0        read an event (its caller goes on)       deal with it        open
//! ```
//!
//! Both sides raise their own flag first and then look at the other's, sequentially consistent, so one of them sees the other.
//! A mover never waits inside: it leaves, gives up what it has busy, and comes again. Movers have their signals blocked, so
//! that no touch of a signal handler finds the gate closed on account of its own thread.
//!
//! A fork closes the gate to those who take pages from the CPU, and only to them.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::sync::relax;

const OPEN: u32 = 0;
/// An event, if there is one, is about to be read: over in a moment.
const SHUT: u32 = 1;
/// An event is being dealt with, which may take as long as a device takes to drain.
const CHANGING: u32 = 2;

/// Forks of this process that are under way.
static FORKS: AtomicU32 = AtomicU32::new(0);

#[derive(Default)]
pub(crate) struct Gate {
    state: AtomicU32,
    inside: AtomicU32,
}

/// Somebody who moves pages.
pub(crate) struct Inside<'a>(&'a Gate);

/// The gate is shut. Opens it when dropped.
pub(crate) struct Shut<'a>(&'a Gate);

impl Gate {
    /// Goes in, to move pages; waits for a moment, but never for a change: `None`, come again. Signal-safe.
    pub(crate) fn enter(&self) -> Option<Inside<'_>> {
        let mut turn = 0;
        loop {
            self.inside.fetch_add(1, Ordering::SeqCst);
            let inside = Inside(self);
            match self.state.load(Ordering::SeqCst) {
                OPEN => return Some(inside),
                CHANGING => return None,
                _ => drop(inside),
            }
            turn += 1;
            relax(turn);
        }
    }

    /// Goes in, to take pages from the CPU: not while the process forks.
    pub(crate) fn enter_to_take(&self) -> Option<Inside<'_>> {
        self.enter().filter(|_| FORKS.load(Ordering::SeqCst) == 0)
    }

    /// Whether somebody wants to shut it: who is inside shall leave. Signal-safe.
    pub(crate) fn is_wanted(&self) -> bool {
        self.state.load(Ordering::Relaxed) != OPEN
    }

    /// Whether a change is being dealt with. Signal-safe.
    pub(crate) fn is_changing(&self) -> bool {
        self.state.load(Ordering::SeqCst) == CHANGING
    }

    /// Shuts it, and waits until nobody is inside. For whoever reads events, of whom there is one at a time.
    pub(crate) fn shut(&self) -> Shut<'_> {
        self.state.store(SHUT, Ordering::SeqCst);
        self.wait_for_those_inside();
        Shut(self)
    }

    /// Waits until everybody has left who is inside now, or is about to look whether he may go in.
    pub(crate) fn wait_for_those_inside(&self) {
        let mut turn = 0;
        while self.inside.load(Ordering::SeqCst) != 0 {
            turn += 1;
            relax(turn);
        }
    }
}

/// A fork begins: nobody goes in to take pages until it ends.
pub(crate) fn begin_fork() {
    FORKS.fetch_add(1, Ordering::SeqCst);
}

/// The fork has ended.
pub(crate) fn end_fork() {
    FORKS.fetch_sub(1, Ordering::SeqCst);
}

impl Shut<'_> {
    /// What was read is a change.
    pub(crate) fn begin_change(&self) {
        self.0.state.store(CHANGING, Ordering::SeqCst);
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Shut<'_> {
    fn drop(&mut self) {
        self.0.state.store(OPEN, Ordering::SeqCst);
    }
}
