//! [`Changes`]: what the program has done to its address space that has been read, and not yet been dealt with.
//!
//! While a change waits to be read, the kernel moves, copies and fills no page: whoever deals with one has to read the next, or
//! waits for ever (`mremap` itself reports two: that the pages have moved, and then that the old place is gone). But a change
//! that has been read is a call that goes on. So what the one being dealt with says about an address holds only as far as
//! those behind it in the queue let it: [`Changes::fate`] says where the bytes belong *now*.
//!
//! `mremap`'s second report, its **echo**, says nothing new, and comes late: something else may have been moved to the old place
//! by then. It is left out. (A `munmap` whose thread has stopped between the call's work and its report could be overtaken in
//! the same way by an `mremap` of another thread to the very place. That is not recognised.)
//!
//! Used by whoever deals with changes, one thread at a time, while the gate is shut. Invariant: `first` and `len` are within
//! the ring; a change is in it from when it is read until it is dealt with next.

use std::sync::{Mutex, MutexGuard, PoisonError};

use pagelease_sys::Span;
use pagelease_sys::uffd::Event;

/// More than the threads of most programs, each of which waits until its change is read.
const CHANGES_MAX: usize = 256;

/// As many threads can be within `mremap` at a time.
const ECHOES: usize = 64;

pub(crate) struct Changes(Mutex<Queue>);

struct Queue {
    ring: [Event; CHANGES_MAX],
    first: usize,
    len: usize,
    /// Old places of what has moved, whose echo has not come. (With `MREMAP_DONTUNMAP` there is none.) 0 and 0: none.
    echoes: [(usize, usize); ECHOES],
    next_echo: usize,
}

impl Default for Changes {
    fn default() -> Self {
        let ring = [Event::Other(0); CHANGES_MAX];
        Self(Mutex::new(Queue { ring, first: 0, len: 0, echoes: [(0, 0); ECHOES], next_echo: 0 }))
    }
}

impl Changes {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is room for one more.
    pub(crate) fn has_room(&self) -> bool {
        self.queue().len < CHANGES_MAX
    }

    /// A change has been read; there is room.
    pub(crate) fn push(&self, change: Event) {
        let mut queue = self.queue();
        match change {
            Event::Remap { from, len, .. } => queue.await_echo(from, from.saturating_add(len)),
            Event::Unmap { start, end } if queue.is_echo(start, end) => return,
            _ => {}
        }
        // A thread that drops the same pages again and again shall not fill the queue: the order of drops does not matter.
        let is_drop = |event: &Event| matches!(event, Event::Remove { .. });
        if is_drop(&change) && queue.backwards().take_while(is_drop).any(|queued| queued == change) {
            return;
        }
        assert!(queue.len < CHANGES_MAX, "a change is read only where there is room for it");
        let at = (queue.first + queue.len) % CHANGES_MAX;
        queue.ring[at] = change;
        queue.len += 1;
    }

    /// `span` has just been adopted, and all that had been changed before has been read: no echo of it will come.
    pub(crate) fn forget_echoes(&self, span: Span) {
        let overlaps = |&(start, end): &(usize, usize)| start < span.end() && span.start() < end;
        self.queue().echoes.iter_mut().filter(|echo| overlaps(echo)).for_each(|echo| *echo = (0, 0));
    }

    /// Takes the one to be dealt with next.
    pub(crate) fn next(&self) -> Option<Event> {
        let mut queue = self.queue();
        let change = queue.forwards().next()?;
        queue.first = (queue.first + 1) % CHANGES_MAX;
        queue.len -= 1;
        Some(change)
    }

    /// What has become of the bytes that lay at `span` when the change was read that is being dealt with: how many from its start
    /// have had one fate, and where they belong; `None`: nowhere, the program has dropped them.
    pub(crate) fn fate(&self, span: Span) -> (usize, Option<Span>) {
        self.follow(span, true)
    }

    /// The same of the addresses, whatever they contain.
    pub(crate) fn place(&self, span: Span) -> (usize, Option<Span>) {
        self.follow(span, false)
    }

    fn follow(&self, span: Span, drops: bool) -> (usize, Option<Span>) {
        let (mut start, mut len) = (span.start(), span.len());
        for change in self.queue().forwards() {
            let (from, end, to) = match change {
                Event::Remove { .. } if !drops => continue,
                Event::Remove { start, end } | Event::Unmap { start, end } => (start, end, None),
                Event::Remap { from, to, len } => (from, from.saturating_add(len), Some(to)),
                Event::Fault(_) | Event::Other(_) => continue,
            };
            if (from..end).contains(&start) {
                len = len.min(end - start);
                let Some(to) = to else { return (len, None) };
                start = to + (start - from);
            } else if (start + 1..start + len).contains(&from) {
                len = from - start;
            }
        }
        (len, Span::new(start, len))
    }
}

impl Queue {
    fn await_echo(&mut self, start: usize, end: usize) {
        self.echoes[self.next_echo] = (start, end);
        self.next_echo = (self.next_echo + 1) % ECHOES;
    }

    fn is_echo(&mut self, start: usize, end: usize) -> bool {
        let echo = self.echoes.iter_mut().find(|echo| **echo == (start, end));
        echo.map(|echo| *echo = (0, 0)).is_some()
    }

    fn forwards(&self) -> impl Iterator<Item = Event> {
        (0..self.len).map(|index| self.ring[(self.first + index) % CHANGES_MAX])
    }

    fn backwards(&self) -> impl Iterator<Item = Event> {
        (0..self.len).rev().map(|index| self.ring[(self.first + index) % CHANGES_MAX])
    }
}

#[cfg(all(test, not(pagelease_shuttle)))]
mod tests {
    use super::*;

    const PAGE: usize = 4096;

    fn span(page: usize, count: usize) -> Span {
        Span::new(page * PAGE, count * PAGE).expect("whole pages")
    }

    fn drop_of(page: usize, count: usize) -> Event {
        Event::Remove { start: page * PAGE, end: (page + count) * PAGE }
    }

    fn move_of(page: usize, to: usize, count: usize) -> Event {
        Event::Remap { from: page * PAGE, to: to * PAGE, len: count * PAGE }
    }

    #[test]
    fn what_nobody_has_changed_is_where_it_was() {
        let changes = Changes::default();
        assert_eq!(changes.fate(span(10, 5)), (5 * PAGE, Some(span(10, 5))));
        changes.push(drop_of(15, 3));
        changes.push(move_of(1, 100, 9));
        assert_eq!(changes.fate(span(10, 5)), (5 * PAGE, Some(span(10, 5))));
        assert_eq!(changes.fate(span(10, 6)), (5 * PAGE, Some(span(10, 5))));
        assert_eq!(changes.fate(span(9, 6)), (PAGE, Some(span(108, 1))));
        assert_eq!(changes.place(span(10, 9)), (9 * PAGE, Some(span(10, 9))), "dropped, but still there");
    }

    #[test]
    fn a_fate_is_that_of_the_first_bytes() {
        let changes = Changes::default();
        changes.push(drop_of(12, 1));
        assert_eq!(changes.fate(span(10, 5)), (2 * PAGE, Some(span(10, 2))));
        assert_eq!(changes.fate(span(12, 3)), (PAGE, None));
        assert_eq!(changes.fate(span(13, 2)), (2 * PAGE, Some(span(13, 2))));
    }

    #[test]
    fn pages_are_followed_from_place_to_place() {
        let changes = Changes::default();
        changes.push(move_of(10, 50, 4));
        changes.push(drop_of(51, 1));
        changes.push(move_of(52, 80, 1));
        assert_eq!(changes.fate(span(10, 9)), (PAGE, Some(span(50, 1))));
        assert_eq!(changes.fate(span(11, 8)), (PAGE, None));
        assert_eq!(changes.fate(span(12, 7)), (PAGE, Some(span(80, 1))));
        assert_eq!(changes.place(span(10, 9)), (2 * PAGE, Some(span(50, 2))));
        assert_eq!(changes.fate(span(13, 6)), (PAGE, Some(span(53, 1))));
        assert_eq!(changes.fate(span(14, 5)), (5 * PAGE, Some(span(14, 5))));
        // What has been taken from the queue is what is being dealt with.
        assert_eq!(changes.next(), Some(move_of(10, 50, 4)));
        assert_eq!(changes.fate(span(50, 4)), (PAGE, Some(span(50, 1))));
    }

    #[test]
    fn the_echo_of_a_move_is_not_about_what_has_been_moved_there() {
        let changes = Changes::default();
        let unmap_of = |page: usize, count: usize| Event::Unmap { start: page * PAGE, end: (page + count) * PAGE };
        changes.push(move_of(10, 50, 4));
        changes.push(move_of(90, 11, 1));
        changes.push(unmap_of(10, 4));
        assert_eq!(changes.fate(span(90, 1)), (PAGE, Some(span(11, 1))));
        // There is one echo a move: this is news.
        changes.push(unmap_of(10, 4));
        assert_eq!(changes.fate(span(90, 1)), (PAGE, None));
        // And this is about memory that has been adopted since.
        changes.push(move_of(20, 60, 1));
        changes.forget_echoes(span(20, 1));
        changes.push(unmap_of(20, 1));
        assert_eq!(core::iter::from_fn(|| changes.next()).last(), Some(unmap_of(20, 1)));
    }

    #[test]
    fn the_same_drop_takes_no_room_twice() {
        let changes = Changes::default();
        for round in 0..CHANGES_MAX {
            for _ in 0..3 {
                changes.push(drop_of(1, 1));
                changes.push(drop_of(2, 1));
            }
            if round == 0 {
                changes.push(move_of(1, 9, 1));
            }
        }
        // Two before the move, two behind it: that one changes what the drops are about.
        let all: Vec<_> = core::iter::from_fn(|| changes.next()).collect();
        assert_eq!(all, [drop_of(1, 1), drop_of(2, 1), move_of(1, 9, 1), drop_of(1, 1), drop_of(2, 1)]);
        assert!(changes.has_room());
    }
}
