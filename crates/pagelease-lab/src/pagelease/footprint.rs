//! What a step reads and writes of what threads share: which steps of a history may change places.
//!
//! The real engine runs from one change of a page word to the next, where the model takes many steps. A history is exported
//! by putting each of those runs into one place, so what must be known of a step is what it has to come behind, and what has
//! to come behind it.

use super::scenario::Role;
use super::state::{ACTORS, PAGES, RECORDS, State, pages};
use super::turn::{Note, Turn};
use super::{Action, Faults, Pagelease};

/// A set of things that threads share.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Things(u32);

impl Things {
    /// A page's word.
    fn words(mask: u8) -> Self {
        Self(u32::from(mask))
    }

    /// How the CPU view maps a page, and whether the page exists.
    fn views(mask: u8) -> Self {
        Self(u32::from(mask) << 2)
    }

    /// The note of a parked touch.
    fn note(page: usize) -> Self {
        Self(1 << (4 + page))
    }

    /// What a page holds.
    fn values(mask: u8) -> Self {
        Self(u32::from(mask) << 6)
    }

    /// What the devices know of a page. (Which device: two seldom have to do with one page at a time.)
    fn tables(mask: u8) -> Self {
        Self(u32::from(mask) << 8)
    }

    /// The message that a trapped thread has sent, and its sleep.
    fn message(actor: usize) -> Self {
        Self(1 << (10 + actor))
    }

    /// Which of a thread's claims are younger than the monitor's last message of it.
    fn claims(actor: usize) -> Self {
        Self(1 << (15 + actor))
    }

    /// A record's sequence number.
    fn record(index: usize) -> Self {
        Self(1 << (20 + index))
    }

    fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }

    fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

const _: () = assert!(PAGES == 2 && ACTORS == 5 && RECORDS == 4);

/// What a step reads and writes.
#[derive(Copy, Clone, Debug, Default)]
pub(super) struct Footprint {
    writes: Things,
    reads: Things,
    /// What it reads and finds the same however much later it looks.
    settled: Things,
}

impl Footprint {
    /// Whether this step must stay before the `later` one.
    pub(super) fn stays_before(self, later: Self) -> bool {
        self.writes.meets(later.writes)
            || self.writes.meets(later.reads)
            || self.writes.meets(later.settled)
            || self.reads.meets(later.writes)
    }
}

impl Pagelease {
    /// What the step reads and writes.
    pub(super) fn footprint(&self, before: &State, action: Action) -> Footprint {
        let turn = self.turn(before, action);
        let mut footprint = Footprint { writes: differences(before, &turn.state), ..Footprint::default() };
        self.add_reads(before, &turn, &mut footprint);
        footprint
    }

    fn add_reads(&self, before: &State, turn: &Turn<'_>, footprint: &mut Footprint) {
        let (me, lane) = (turn.me, before.lanes[turn.me]);
        let all = turn.all_pages();
        let mask = match turn.note {
            Note::Page(page, _) | Note::Actor(_, page, _) => 1 << page,
            Note::Pages(mask, _) => mask,
            Note::None | Note::Text(_) => 0,
        };
        let Footprint { writes, reads, settled } = footprint;
        match turn.name {
            "cpu::access" => {
                reads.add(Things::views(mask));
                reads.add(Things::values(mask));
                reads.add(Things::message(me));
            }
            // A touch that a monitor serves and that is mapped meanwhile is woken by that, and its message is never read.
            "touch::trap" if self.design.faults == Faults::Monitor => settled.add(Things::views(mask)),
            "touch::trap" => reads.add(Things::views(mask)),
            "device::check" => {
                reads.add(Things::words(mask));
                reads.add(Things::tables(mask));
            }
            "device::load" | "device::store" => {
                reads.add(Things::tables(mask));
                reads.add(Things::values(mask));
            }
            "invalidate::drain" => writes.add(Things::tables(mask)),
            "claim::map" => {
                let record = before.records[usize::from(lane.record())];
                writes.add(Things::tables(record.taken()));
                reads.add(Things::record(usize::from(lane.record())));
            }
            // What it has so far is what it goes on with: one that has nothing looks again before it sleeps.
            "claim::blocked" if before.records[usize::from(lane.record())].entries() != 0 => {
                reads.add(Things::words(mask));
            }
            "claim::open" => writes.add(Things::claims(me)),
            "monitor::read" => {
                if let Note::Actor(actor, ..) = turn.note {
                    writes.add(Things::claims(usize::from(actor)));
                }
            }
            "touch::gone_on" | "touch::break_own_hold" => {
                reads.add(Things::words(mask));
                reads.add(Things::claims(usize::from(lane.f_who())));
            }
            "touch::serve" | "touch::park" | "touch::sleep" | "monitor::overdue" => reads.add(Things::words(mask)),
            "restore::eagerly" | "restore::done" => reads.add(Things::words(all)),
            // Whatever broke the hold did so for ever.
            "lease::end_hold" => settled.add(Things::words(mask)),
            _ => {}
        }
    }

    /// Whether the engine lets others run behind this step, in the actor's own time: at the end of an operation, between a
    /// device's load and its store, and where the actor waits.
    pub(super) fn halts_behind(&self, before: &State, action: Action) -> bool {
        let turn = self.turn(before, action);
        let (was, is) = (before.lanes[turn.me], turn.state.lanes[turn.me]);
        let monitor = self.scenario.actors[turn.me].role == Role::Monitor;
        was.op() != is.op()
            || turn.name == "device::load"
            || turn.name == "touch::trap" && self.design.faults == Faults::Monitor
            || monitor && is.f_pc() == super::Fp::None
            || matches!(is.pc(), super::Pc::Asleep | super::Pc::RsAsleep)
            || is.f_pc() == super::Fp::Asleep
    }
}

/// What the step has changed.
fn differences(before: &State, after: &State) -> Things {
    let mut changed = Things::default();
    for page in pages(0b11) {
        let at = usize::from(page);
        let (was, is) = (before.pages[at], after.pages[at]);
        let mut differs = |differs: bool, thing: Things| {
            if differs {
                changed.add(thing);
            }
        };
        differs(before.words[at] != after.words[at], Things::words(1 << page));
        differs((was.view(), was.exists()) != (is.view(), is.exists()), Things::views(1 << page));
        differs(was.note() != is.note(), Things::note(at));
        differs((was.value(), was.made()) != (is.value(), is.made()), Things::values(1 << page));
    }
    for actor in 0..ACTORS {
        if before.lanes[actor].trapped() != after.lanes[actor].trapped() {
            changed.add(Things::message(actor));
        }
    }
    for index in 0..RECORDS {
        if before.records[index].moved() != after.records[index].moved() {
            changed.add(Things::record(index));
        }
    }
    changed
}
