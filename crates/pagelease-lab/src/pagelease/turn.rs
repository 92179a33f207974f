//! One step of one actor: whose it is, and what follows a change of a page word.

use pagelease_protocol::{NotifierWord, Obstacle, OwnerId, PageWord, Seq, Token, hold};

use super::design::{Faults, Mutant};
use super::state::{
    BORROWED, Fp, Handler, Lane, NOBODY, NOW, Pc, Record, SERVICE, Server, State, Trap, View, Why, pages,
};
use super::{Action, Kind, Pagelease};

/// What a step broke, in [`Globals`](super::state::Globals).
pub(super) mod broke {
    pub(in super::super) const ATOMICITY: u8 = 1;
    pub(in super::super) const ZAPPED: u8 = 2;
    pub(in super::super) const SELF_RETRY: u8 = 4;
    pub(in super::super) const PINS: u8 = 8;
}

/// What a step is about.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum Note {
    None,
    Page(u8, &'static str),
    Pages(u8, &'static str),
    Actor(u8, u8, &'static str),
    Text(&'static str),
}

/// A step that is being made.
pub(super) struct Turn<'a> {
    pub(super) model: &'a Pagelease,
    pub(super) state: State,
    pub(super) me: usize,
    pub(super) name: &'static str,
    pub(super) note: Note,
    pub(super) spurious: u32,
}

impl<'a> Turn<'a> {
    /// The step, if it can be made.
    pub(super) fn make(model: &'a Pagelease, state: &State, action: Action) -> Option<Self> {
        let mut turn =
            Self { model, state: *state, me: usize::from(action.actor), name: "", note: Note::None, spurious: 0 };
        turn.state.globals.set_broken(0);
        turn.run(action.kind).then_some(turn)
    }

    fn run(&mut self, kind: Kind) -> bool {
        let lane = self.lane();
        match kind {
            Kind::Step if lane.f_pc() != Fp::None => self.service(),
            Kind::Step if lane.trapped() != Trap::None => false,
            Kind::Step if lane.handler() == Handler::Running as u8 => self.handler(),
            Kind::Step => self.base(),
            Kind::Signal => self.signal(),
            Kind::Expire => self.expire(),
            Kind::Message(actor) => self.read_message(usize::from(actor)),
            Kind::Overdue(page) => self.overdue(page),
        }
    }

    fn base(&mut self) -> bool {
        match self.lane().pc() {
            Pc::Next => self.next_op(),
            Pc::Check | Pc::Load | Pc::Store | Pc::Withdraw => self.operate(),
            Pc::EndHold | Pc::Eagerly => self.end_lease(),
            Pc::RsTake | Pc::RsBegin | Pc::RsDrain | Pc::RsMap | Pc::RsCommit | Pc::RsWait | Pc::RsAsleep => {
                self.restore()
            }
            Pc::RgOperations | Pc::RgStop | Pc::RgDrain => self.close_region(),
            _ => self.claim(),
        }
    }

    pub(super) fn says(&mut self, name: &'static str, note: Note) -> bool {
        self.name = name;
        self.note = note;
        true
    }

    pub(super) fn lane(&self) -> Lane {
        self.state.lanes[self.me]
    }

    pub(super) fn lane_mut(&mut self) -> &mut Lane {
        &mut self.state.lanes[self.me]
    }

    pub(super) fn go(&mut self, pc: Pc) {
        self.lane_mut().go(pc);
    }

    /// The actor's number, as records and registers have it.
    pub(super) fn me_code(&self) -> u8 {
        u8::try_from(self.me).expect("at most ACTORS")
    }

    pub(super) fn breaks(&self, mutant: Mutant) -> bool {
        self.model.design.breaks(mutant)
    }

    pub(super) fn in_thread(&self) -> bool {
        self.model.design.faults == Faults::InThread
    }

    pub(super) fn closing(&self) -> bool {
        self.state.globals.closing() == 1
    }

    pub(super) fn limited(&self) -> bool {
        self.model.scenario.limited && !self.breaks(Mutant::NoHoldLimit)
    }

    /// Whether increments are counted: not where there is no end of them.
    pub(super) fn counts(&self) -> bool {
        !self.model.scenario.is_endless()
    }

    pub(super) fn device_of(&self, actor: usize) -> Option<u8> {
        self.model.device_of(actor)
    }

    /// The acting thread's device.
    pub(super) fn device(&self) -> u8 {
        self.device_of(self.me).expect("only a device's thread gets here")
    }

    pub(super) fn all_pages(&self) -> u8 {
        (1 << self.model.scenario.pages) - 1
    }

    pub(super) fn break_property(&mut self, what: u8) {
        let broken = self.state.globals.broken();
        self.state.globals.set_broken(broken | what);
    }

    pub(super) fn word(&self, page: u8) -> PageWord {
        self.state.word(page)
    }

    /// Puts a word. Where that begins another generation, what is of the last one is of an earlier one from now on.
    pub(super) fn put(&mut self, page: u8, next: PageWord) {
        let mut bits = next.bits();
        let signed = next.busy() && !next.held();
        if !signed && next.generation() != NOW {
            for record in &mut self.state.records {
                record.set_live(record.live() & !(1 << page));
            }
            bits = bits & 0xffff | u32::from(NOW) << 16;
        }
        self.state.words[usize::from(page)] = bits;
    }

    /// Puts a word, and does what follows for those who wait: `settle`. The page is handed back within the service of a
    /// fault, which whoever acts does next.
    pub(super) fn put_and_settle(&mut self, page: u8, next: PageWord) {
        let word = self.word(page);
        self.put(page, next);
        let after = self.word(page);
        if word.sleepers() && !after.sleepers() {
            self.wake_all(page);
        }
        if word.waiters() && !after.waiters() {
            let lane = self.lane_mut();
            if lane.f_pc() == Fp::None {
                lane.set_f_page(page);
                lane.set_f_who(NOBODY);
            }
            lane.f_go(Fp::Settle);
        } else {
            self.hand_back(page);
        }
    }

    /// Gives the page to a touch that waits for it, if nobody else will.
    pub(super) fn hand_back(&mut self, page: u8) {
        if self.word(page).owes_hand_back() && !self.breaks(Mutant::NoHandBack) {
            self.lane_mut().serve(page, true, Server::Owed, NOBODY);
        }
    }

    /// Wakes the threads that sleep on the page's word: they look again.
    pub(super) fn wake_all(&mut self, page: u8) {
        for actor in 0..self.model.scenario.actors.len() {
            let lane = &mut self.state.lanes[actor];
            if lane.f_pc() == Fp::Asleep && lane.f_page() == page {
                lane.set_f_saved(0);
                lane.f_go(Fp::Look);
            }
            if lane.at() == page {
                match lane.pc() {
                    Pc::Asleep => {
                        lane.set_why(0);
                        lane.go(Pc::Open);
                    }
                    Pc::RsAsleep => {
                        lane.set_why(0);
                        lane.go(Pc::RsTake);
                    }
                    _ => {}
                }
            }
        }
    }

    /// Lets the touches that wait in the kernel for the pages try again. What was not read by then is never read.
    pub(super) fn wake(&mut self, mask: u8) {
        for actor in 0..self.model.scenario.actors.len() {
            let waits = self.state.lanes[actor].trapped() != Trap::None;
            if waits && self.access_of(actor).is_some_and(|(page, _)| mask >> page & 1 == 1) {
                self.state.lanes[actor].set_trap(Trap::None as u8);
            }
        }
    }

    /// The page that an actor is about to touch, and whether it writes.
    pub(super) fn access_of(&self, actor: usize) -> Option<(u8, bool)> {
        self.model.access_of(&self.state, actor)
    }

    pub(super) fn map(&mut self, mask: u8) {
        for page in pages(mask) {
            self.state.pages[usize::from(page)].set_view(View::Writable as u8);
        }
        self.wake(mask);
    }

    /// Whose the page is, as a number of a device.
    pub(super) fn owner_of(&self, page: u8) -> Option<u8> {
        self.word(page).owner().map(number)
    }

    /// Whether the word is one of a page that a claim has busy, which somebody borrows.
    pub(super) fn is_borrowed(&self, page: u8) -> bool {
        self.word(page).ticket() == Some(BORROWED)
    }

    /// Whether the page is still as whoever took it `busy` has left it: always, unless a mutant has put over it.
    pub(super) fn is_intact(&self, page: u8) -> bool {
        let word = self.word(page);
        let intact = word.busy() && !word.held();
        assert!(intact || self.breaks(Mutant::ReleaseBeforeWord), "somebody else has put {word:?}");
        intact
    }

    /// Breaks what holds the page, if anything does.
    pub(super) fn break_hold(&mut self, page: u8) -> bool {
        let word = self.word(page);
        let Some(next) = hold::break_hold(word) else { return false };
        self.put(page, next);
        if word.sleepers() {
            self.wake_all(page);
        }
        true
    }
}

/// The claim that a record belongs to: an actor has one a lease.
pub(super) fn token(record: Record) -> Token {
    Token(u64::from(record.actor()) << 1 | u64::from(record.lease()))
}

/// What `read_begin` returns, as sequence numbers are counted here.
pub(super) fn zero() -> Seq {
    NotifierWord::default().read_begin().expect("nothing runs")
}

/// The device's number, as registers have it.
pub(super) fn number(owner: OwnerId) -> u8 {
    owner.get() - 1
}

pub(super) fn why(obstacle: Obstacle) -> Why {
    match obstacle {
        Obstacle::Busy => Why::Busy,
        Obstacle::Held => Why::Held,
        Obstacle::Waiter => Why::Waiter,
    }
}

/// Signs a word that a touch has made busy.
pub(super) fn signed_by_service(next: PageWord) -> PageWord {
    if next.held() { next } else { next.signed(SERVICE) }
}

/// Puts the generation back, where a ticket stands in its place.
pub(super) fn unsigned(word: PageWord) -> PageWord {
    if word.busy() && !word.held() { word.unsigned(NOW) } else { word }
}
