//! What threads do and suffer beside the engine: accesses, traps, signals, limits that pass, and the monitor's watch.

use pagelease_protocol::PageState;

use super::scenario::{Op, Role};
use super::state::{Fp, Handler, NOBODY, Pc, Server, Trap, View, Why};
use super::turn::{Note, Turn, broke};

impl Turn<'_> {
    /// The hold limit passes for a thread that sleeps.
    pub(super) fn expire(&mut self) -> bool {
        if !self.limited() {
            return false;
        }
        let lane = self.lane();
        if lane.f_pc() == Fp::Asleep {
            if lane.f_saved() == 0 {
                return false;
            }
            let page = lane.f_page();
            self.lane_mut().set_f_saved(0);
            self.lane_mut().f_go(Fp::Look);
            self.break_hold(page);
            return self.says("touch::break_overdue", Note::Page(page, "the hold limit has passed"));
        }
        if lane.reason() != Why::Held || lane.f_pc() != Fp::None || lane.handler() == Handler::Running as u8 {
            return false;
        }
        let next = match lane.pc() {
            Pc::Asleep => Pc::Open,
            Pc::RsAsleep => Pc::RsTake,
            _ => return false,
        };
        let page = lane.at();
        self.lane_mut().set_why(0);
        self.go(next);
        self.break_hold(page);
        self.hand_back(page);
        self.says("claim::break_overdue", Note::Page(page, "the hold limit has passed"))
    }

    /// A CPU access, if the CPU view allows it. An absent page that does not exist is filled without a trap.
    pub(super) fn access(&mut self, page: u8, write: bool) -> bool {
        let at = usize::from(page);
        let entry = &mut self.state.pages[at];
        if entry.view() == View::Absent as u8 && entry.exists() == 0 {
            entry.set_view(View::Writable as u8);
            entry.set_exists(1);
        }
        let view = View::of(entry.view());
        if self.state.globals.closing() == 0 && (view == View::Absent || view == View::ReadOnly && write) {
            return false;
        }
        let counted = write && self.counts();
        let entry = &mut self.state.pages[at];
        entry.set_resident(entry.resident() & !(1 << self.me));
        if counted {
            entry.set_value(entry.value() + 1);
            entry.set_made(entry.made() + 1);
        }
        let reads_allowed = self.word(page).state() == PageState::ExclusiveWrite;
        if (write || !reads_allowed) && (0..2).any(|device| self.operates(device, 1 << page, &[Pc::Store])) {
            self.break_property(broke::ATOMICITY);
        }
        true
    }

    /// The thread accesses what its program, or its signal handler, says; or it traps.
    pub(super) fn touch(&mut self, page: u8, write: bool) -> bool {
        if self.access(page, write) {
            let lane = self.lane_mut();
            if lane.handler() == Handler::Running as u8 {
                lane.set_handler(Handler::Over as u8);
            } else {
                lane.end_op();
            }
            return self.says("cpu::access", Note::Page(page, if write { "adds one" } else { "loads" }));
        }
        let me = self.me_code();
        if self.in_thread() {
            self.lane_mut().serve(page, write, Server::InThread, me);
        } else {
            self.lane_mut().set_trap(Trap::Unread as u8);
        }
        self.says("touch::trap", Note::Page(page, if write { "to write" } else { "to read" }))
    }

    pub(super) fn handler(&mut self) -> bool {
        let (page, write) = self.access_of(self.me).expect("a handler runs");
        self.touch(page, write)
    }

    /// A signal interrupts the actor's claim. A thread that sleeps wakes, and will look again.
    pub(super) fn signal(&mut self) -> bool {
        let lane = self.lane();
        let Some(page) = self.model.scenario.actors[self.me].signal else { return false };
        let in_claim =
            matches!(self.model.op_of(&self.state, self.me), Some(Op::Claim { .. })) && lane.pc() != Pc::Next;
        if !in_claim || lane.f_pc() != Fp::None || lane.handler() != Handler::Waiting as u8 {
            return false;
        }
        if lane.pc() == Pc::Asleep {
            self.lane_mut().set_why(0);
            self.go(Pc::Open);
        }
        self.lane_mut().set_handler(Handler::Running as u8);
        self.says("signal", Note::Page(page, "its handler will touch it"))
    }

    /// The monitor reads the message of a thread that trapped.
    pub(super) fn read_message(&mut self, actor: usize) -> bool {
        let idle = self.lane().f_pc() == Fp::None && self.model.scenario.actors[self.me].role == Role::Monitor;
        if !idle || self.state.lanes[actor].trapped() != Trap::Unread {
            return false;
        }
        let (page, write) = self.access_of(actor).expect("it trapped");
        let who = u8::try_from(actor).expect("at most ACTORS");
        self.state.lanes[actor].set_trap(Trap::Read as u8);
        self.lane_mut().serve(page, write, Server::Monitor, who);
        // Whatever claim begins from now on is younger than the touch.
        for record in &mut self.state.records {
            record.set_late(0);
        }
        self.says("monitor::read", Note::Actor(who, page, if write { "write" } else { "read" }))
    }

    /// The monitor finds that the hold limit has passed for a parked touch.
    pub(super) fn overdue(&mut self, page: u8) -> bool {
        let idle = self.lane().f_pc() == Fp::None && self.model.scenario.actors[self.me].role == Role::Monitor;
        let word = self.word(page);
        let waits = word.waiters();
        // One that is busy it would only park again.
        let futile = waits && word.busy() && !word.held();
        if !idle || !self.limited() || self.state.pages[usize::from(page)].note() == 0 || futile {
            return false;
        }
        if waits {
            self.break_hold(page);
            self.lane_mut().serve(page, true, Server::Monitor, NOBODY);
        } else {
            self.state.pages[usize::from(page)].set_note(0);
        }
        self.says("monitor::overdue", Note::Page(page, if waits { "the hold limit has passed" } else { "long served" }))
    }
}
