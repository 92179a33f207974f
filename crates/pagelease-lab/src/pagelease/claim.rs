//! The claim path, as the engine's `claim` has it: `chunk`, `take`, `prepare`, `commit`, `undo`, `wait`.
//!
//! Two pages are always one chunk; a chunk ends early at a page that is in the way. Spinning is timing, and left out; minimum
//! residency is in force in the endless scenarios, see the module.

use pagelease_protocol::claim::{self as step, ClaimStep};
use pagelease_protocol::hold::{self, Release};
use pagelease_protocol::{Access, Cause, Obstacle, Origin, PageWord};

use super::design::Mutant;
use super::scenario::Op;
use super::state::{Pc, Phase, Record, View, Why, owner, pages};
use super::turn::{Note, Turn, broke, number, token, why};

const BUSY: u32 = 1;
const WAITERS: u32 = 2;

impl Turn<'_> {
    /// The next step of a claim.
    pub(super) fn claim(&mut self) -> bool {
        let lane = self.lane();
        match lane.pc() {
            Pc::Open => self.open(),
            Pc::Reside => {
                if self.is_resident(lane.cursor()) {
                    return false;
                }
                self.go(Pc::Open);
                self.says("claim::wait", Note::Page(lane.cursor(), "has been with the CPU for its time"))
            }
            Pc::ReadBegin => self.read_begin(),
            Pc::Take => self.take(),
            Pc::Invalidate => self.invalidate_previous(),
            Pc::Drain => {
                let first = lane.run().trailing_zeros();
                let device = self.owner_of(u8::try_from(first).expect("a page")).expect("it has an owner");
                if !self.is_drained(device, lane.run()) {
                    return false;
                }
                self.lane_mut().set_run(0);
                self.lane_mut().set_begun(0);
                self.go(Pc::Invalidate);
                self.says("invalidate::drain", Note::Pages(lane.run(), ""))
            }
            Pc::Populate => self.populate(),
            Pc::Revoke => self.revoke(),
            Pc::Committing => {
                self.record_mut().set_phase(Phase::Committing as u8);
                let none_taken = self.record().taken() == 0;
                self.lane_mut().set_at(lane.cursor());
                self.go(if none_taken { Pc::Held } else { Pc::Map });
                self.says("claim::committing", Note::None)
            }
            Pc::Map => self.map_if_it_stands(),
            Pc::Commit => self.commit(),
            Pc::CommitLate => self.commit_late(),
            Pc::Held => self.held(),
            Pc::Wait => self.wait(),
            Pc::Asleep => false,
            Pc::Refused => {
                self.record_mut().set_phase(Phase::Claiming as u8);
                self.lane_mut().set_at(lane.cursor());
                self.go(Pc::Undo);
                self.says("claim::refused", Note::None)
            }
            Pc::Undo => self.undo(),
            Pc::UndoDrain => {
                let device = self.owner_of(lane.at()).expect("it has an owner");
                if !self.is_drained(device, 1 << lane.at()) {
                    return false;
                }
                self.lane_mut().set_begun(0);
                self.go(Pc::UndoPut);
                self.says("invalidate::drain", Note::Page(lane.at(), ""))
            }
            Pc::UndoPut => self.undo_put(),
            other => unreachable!("{other:?} is no step of a claim"),
        }
    }

    pub(super) fn record(&self) -> Record {
        self.state.records[usize::from(self.lane().record())]
    }

    pub(super) fn record_mut(&mut self) -> &mut Record {
        let index = usize::from(self.lane().record());
        &mut self.state.records[index]
    }

    fn ticket(&self) -> u16 {
        u16::from(self.lane().record()) + 1
    }

    /// `check_alive`, `Records::open`: the claim's interval notifier is registered before anything is looked at.
    fn open(&mut self) -> bool {
        if self.is_barred() {
            return self.fail();
        }
        let (.., lease, _) = self.claim_op();
        let free = self.state.records.iter().position(|record| record.stage() == Phase::Free);
        let index = free.expect("scenarios need no more records than there are");
        let mut record = Record::default();
        record.set_phase(Phase::Claiming as u8);
        record.set_actor(self.me_code());
        record.set_lease(lease);
        // It matters to a monitor, whose last message is older than this claim.
        record.set_late(u8::from(!self.in_thread()));
        // A notifier word is never reset; what counts is how it changes from `read_begin` on.
        self.state.records[index] = record;
        self.lane_mut().set_record(u8::try_from(index).expect("at most RECORDS"));
        self.go(Pc::ReadBegin);
        self.says("claim::open", Note::None)
    }

    /// Whether the region is closing, or the device's view of it.
    fn is_barred(&self) -> bool {
        self.closing() || self.state.globals.stopped() >> self.device() & 1 == 1
    }

    /// The claim has failed: what it got goes back.
    fn fail(&mut self) -> bool {
        self.lane_mut().set_at(0);
        self.lane_mut().set_why(Why::Failed as u8);
        self.go(Pc::EndHold);
        self.says("claim::fail", Note::Text("the region is going"))
    }

    fn read_begin(&mut self) -> bool {
        let index = usize::from(self.lane().record());
        if self.notifier(index).read_begin().is_none() {
            return false;
        }
        let cursor = self.lane().cursor();
        let record = self.record_mut();
        record.set_moved(0);
        record.set_disturbed(0);
        self.lane_mut().set_at(cursor);
        self.go(Pc::Take);
        self.says("claim::read_begin", Note::None)
    }

    fn step(&self, word: PageWord) -> ClaimStep {
        let (.., access) = self.claim_op();
        let step = step::step(word, owner(self.device()), access);
        if self.breaks(Mutant::NoJoin) && matches!(step, ClaimStep::Join(_)) && word.held() {
            return ClaimStep::Wait(Obstacle::Held);
        }
        if self.breaks(Mutant::ClaimPastWaiter) && step == ClaimStep::Wait(Obstacle::Waiter) {
            let alone = step::step(PageWord::from_bits(word.bits() & !WAITERS), owner(self.device()), access);
            let still_waiting = |next: PageWord| PageWord::from_bits(next.bits() | WAITERS);
            return match alone {
                ClaimStep::Join(next) => ClaimStep::Join(still_waiting(next)),
                ClaimStep::Take(next) => ClaimStep::Take(still_waiting(next)),
                ClaimStep::Wait(obstacle) => ClaimStep::Wait(obstacle),
            };
        }
        step
    }

    /// Whether the page, which is the CPU's, has not been so for its minimum residency.
    fn is_resident(&self, page: u8) -> bool {
        self.word(page).owner().is_none() && self.state.pages[usize::from(page)].resident() != 0
    }

    /// One compare-and-swap: a page is made busy, or joined.
    fn take(&mut self) -> bool {
        let (_, to, ..) = self.claim_op();
        let page = self.lane().at();
        let word = self.word(page);
        let (next, taken) = match self.step(word) {
            ClaimStep::Join(next) => (next, false),
            ClaimStep::Take(next) => (next.signed(self.ticket()), true),
            ClaimStep::Wait(obstacle) => {
                if self.record().entries() == 0 {
                    *self.record_mut() = Record::default();
                    self.lane_mut().set_record(0);
                    self.lane_mut().set_why(why(obstacle) as u8);
                    self.go(Pc::Wait);
                } else {
                    self.prepare();
                }
                let note = match obstacle {
                    Obstacle::Busy => "is busy",
                    Obstacle::Held => "is held",
                    Obstacle::Waiter => "is waited for",
                };
                return self.says("claim::blocked", Note::Page(page, note));
            }
        };
        if self.is_resident(page) {
            if self.record().entries() == 0 {
                *self.record_mut() = Record::default();
                self.lane_mut().set_record(0);
                self.lane_mut().set_at(0);
                self.go(Pc::Reside);
            } else {
                self.prepare();
            }
            return self.says("claim::blocked", Note::Page(page, "has just been brought back"));
        }
        self.record_mut().add(page, taken);
        self.put(page, next);
        self.lane_mut().set_at(page + 1);
        if page + 1 == to {
            self.prepare();
        }
        self.says(if taken { "claim::take" } else { "claim::join" }, Note::Page(page, ""))
    }

    /// What follows the last page taken.
    fn prepare(&mut self) {
        let cursor = self.lane().cursor();
        self.lane_mut().set_at(cursor);
        let taken = self.record().taken();
        let device = owner(self.device());
        let owned = pages(taken).any(|page| step::previous_owner(self.word(page), device).is_some());
        if owned {
            self.go(Pc::Invalidate);
        } else {
            self.after_invalidate();
        }
    }

    fn after_invalidate(&mut self) {
        let unpopulated = pages(self.record().taken()).any(|page| !self.word(page).populated());
        if unpopulated && !self.breaks(Mutant::SkipPopulate) {
            self.go(Pc::Populate);
        } else {
            self.after_populate();
        }
    }

    fn after_populate(&mut self) {
        self.go(if self.revokes() == 0 { Pc::Committing } else { Pc::Revoke });
    }

    fn revokes(&self) -> u8 {
        pages(self.record().taken())
            .filter(|&page| step::needs_revoke(self.word(page)))
            .fold(0, |mask, page| mask | 1 << page)
    }

    /// The next run of pages with the same previous owner is invalidated.
    fn invalidate_previous(&mut self) -> bool {
        let device = owner(self.device());
        let (mut run, mut of) = (0, None);
        for page in self.lane().at()..2 {
            if self.record().taken() >> page & 1 == 0 {
                continue;
            }
            if self.is_borrowed(page) {
                return false;
            }
            let word = self.word(page);
            let previous = step::previous_owner(word, device).filter(|_| word.ticket() == Some(self.ticket()));
            if run != 0 && previous != of {
                break;
            }
            if previous.is_some() {
                run |= 1 << page;
                of = previous;
            }
        }
        let Some(previous) = of else {
            let cursor = self.lane().cursor();
            self.lane_mut().set_at(cursor);
            self.after_invalidate();
            return self.says("claim::prepare", Note::Text("every previous owner has let go"));
        };
        let origin = Origin { owner: Some(device), token: Some(token(self.record())) };
        let begun = self.invalidate_begin(number(previous), run, Cause::Exclusive, origin);
        let lane = self.lane_mut();
        lane.set_begun(begun);
        lane.set_run(run);
        lane.set_at(if run >> 1 == 1 { 2 } else { 1 });
        lane.go(Pc::Drain);
        self.says("invalidate::begin", Note::Pages(run, "cause Exclusive, previous owner"))
    }

    fn populate(&mut self) -> bool {
        let taken = self.record().taken();
        if pages(taken).any(|page| self.is_borrowed(page)) {
            return false;
        }
        for page in pages(taken).filter(|&page| !self.word(page).populated()).collect::<Vec<_>>() {
            self.state.pages[usize::from(page)].set_exists(1);
        }
        self.after_populate();
        self.says("claim::populate", Note::Pages(taken, ""))
    }

    fn revoke(&mut self) -> bool {
        let mask = self.revokes();
        let exclusive = self.claim_op().3 == Access::Exclusive;
        for page in pages(mask) {
            let entry = &mut self.state.pages[usize::from(page)];
            match View::of(entry.view()) {
                _ if exclusive => entry.set_view(View::Absent as u8),
                View::Writable => entry.set_view(View::ReadOnly as u8),
                View::Absent | View::ReadOnly => {}
            }
        }
        self.go(Pc::Committing);
        self.says("claim::revoke", Note::Pages(mask, if exclusive { "" } else { "writing only" }))
    }

    /// `Device::map`, under the device's lock: does the grant still stand?
    fn map_if_it_stands(&mut self) -> bool {
        let index = usize::from(self.lane().record());
        let retry = self.notifier(index).read_retry(super::turn::zero());
        let stands = self.breaks(Mutant::SkipReadRetry) || !retry;
        if !stands && self.record().disturbed() == 0 {
            self.break_property(broke::SELF_RETRY);
        }
        self.go(if stands { Pc::Commit } else { Pc::Refused });
        self.says("claim::map", Note::Text(if stands { "the grant stands" } else { "the grant stands no more" }))
    }

    /// The next taken page from `at` on.
    fn next_taken(&self) -> Option<u8> {
        (self.lane().at()..2).find(|&page| self.record().taken() >> page & 1 == 1)
    }

    fn commit(&mut self) -> bool {
        let Some(page) = self.next_taken() else {
            self.go(Pc::Held);
            return self.held();
        };
        if self.is_borrowed(page) {
            return false;
        }
        let word = self.word(page);
        if word.ticket() != Some(self.ticket()) {
            self.lane_mut().set_at(page + 1);
            return self.says("claim::commit", Note::Page(page, "lost"));
        }
        if self.breaks(Mutant::ReleaseBeforeWord) {
            self.put(page, PageWord::from_bits(word.bits() & 0xffff & !BUSY | u32::from(super::state::NOW) << 16));
            self.lane_mut().set_at(page);
            self.go(Pc::CommitLate);
            return self.says("claim::release", Note::Page(page, "busy no more, and not yet the device's"));
        }
        self.lane_mut().set_at(page + 1);
        self.commit_word(page, word);
        self.says("claim::commit", Note::Page(page, ""))
    }

    fn commit_word(&mut self, page: u8, word: PageWord) {
        let (.., access) = self.claim_op();
        let next = step::commit(word.unsigned(self.record().generation(page)), owner(self.device()), access);
        let next = if self.breaks(Mutant::NoHold) { hold::break_hold(next).unwrap_or(next) } else { next };
        self.put_and_settle(page, next);
    }

    /// Of the mutant: the word follows at last, whatever has become of it.
    fn commit_late(&mut self) -> bool {
        let page = self.lane().at();
        let (.., access) = self.claim_op();
        let as_taken = PageWord::from_bits(BUSY | u32::from(super::state::NOW) << 16);
        self.put(page, step::commit(as_taken, owner(self.device()), access));
        self.lane_mut().set_at(page + 1);
        self.go(Pc::Commit);
        self.says("claim::commit", Note::Page(page, "late"))
    }

    /// The record becomes the lease's; the claim goes on behind it.
    fn held(&mut self) -> bool {
        let (_, to, ..) = self.claim_op();
        self.record_mut().set_phase(Phase::Held as u8);
        let done = if self.record().entries() >> 1 == 1 { 2 } else { 1 };
        let lane = self.lane_mut();
        lane.set_record(0);
        lane.set_cursor(done);
        lane.set_at(0);
        lane.go(Pc::Open);
        if done == to {
            lane.end_op();
        }
        self.says("claim::held", Note::None)
    }

    /// Waits with nothing busy. It looks again, and may by then wait for something else than what was in its way.
    fn wait(&mut self) -> bool {
        let page = self.lane().cursor();
        let word = self.word(page);
        self.lane_mut().set_at(page);
        let ClaimStep::Wait(obstacle) = self.step(word) else {
            self.lane_mut().set_why(0);
            self.go(Pc::Open);
            return self.says("claim::wait", Note::Page(page, "may be had now"));
        };
        self.put(page, hold::sleep(word));
        if self.closing() {
            self.lane_mut().set_why(0);
            self.go(Pc::Open);
            return self.says("claim::wait", Note::Page(page, "the region is closing"));
        }
        if !self.breaks(Mutant::SleepByFirstLook) {
            self.lane_mut().set_why(why(obstacle) as u8);
        }
        self.go(Pc::Asleep);
        let limit = if self.lane().reason() == Why::Held { "sleeps, at most the hold limit" } else { "sleeps" };
        self.says("claim::wait", Note::Page(page, limit))
    }

    /// Everything of the record is given up, page by page.
    fn undo(&mut self) -> bool {
        let page = (self.lane().at()..2).find(|&page| self.record().entries() >> page & 1 == 1);
        let Some(page) = page else {
            let cursor = self.lane().cursor();
            self.record_mut().clear();
            self.lane_mut().set_at(cursor);
            if self.is_barred() {
                *self.record_mut() = Record::default();
                self.lane_mut().set_record(0);
                return self.fail();
            }
            self.go(Pc::ReadBegin);
            return self.says("claim::retry", Note::None);
        };
        self.lane_mut().set_at(page);
        if self.record().taken() >> page & 1 == 0 {
            let index = self.lane().record();
            let Some(note) = self.end_hold(index, page) else { return false };
            self.lane_mut().set_at(page + 1);
            return self.says("claim::undo", Note::Page(page, note));
        }
        if self.is_borrowed(page) {
            return false;
        }
        let word = self.word(page);
        match word.owner().filter(|_| word.ticket() == Some(self.ticket())) {
            None => self.undo_put(),
            Some(previous) => {
                let origin = Origin { owner: None, token: Some(token(self.record())) };
                let begun = self.invalidate_begin(number(previous), 1 << page, Cause::Clear, origin);
                self.lane_mut().set_begun(begun);
                self.go(Pc::UndoDrain);
                self.says("invalidate::begin", Note::Page(page, "cause Clear, own claim"))
            }
        }
    }

    fn undo_put(&mut self) -> bool {
        let page = self.lane().at();
        if self.is_borrowed(page) {
            return false;
        }
        let word = self.word(page);
        self.lane_mut().set_at(page + 1);
        self.go(Pc::Undo);
        if word.ticket() == Some(self.ticket()) {
            self.put_and_settle(page, step::undo(word.unsigned(self.record().generation(page)), true));
        }
        self.says("claim::undo", Note::Page(page, ""))
    }

    /// Ends a record's hold of a page; what came of it. `None`: not while the page is being mapped read-only.
    pub(super) fn end_hold(&mut self, record: u8, page: u8) -> Option<&'static str> {
        let generation = self.state.records[usize::from(record)].generation(page);
        match hold::release(self.word(page), owner(self.device()), generation) {
            Release::Wait => None,
            Release::Broken => Some("the hold had been broken"),
            Release::Ended(next) => {
                self.put_and_settle(page, next);
                Some("")
            }
        }
    }

    /// What the claim that the actor is in asks for.
    pub(super) fn claim_op(&self) -> (u8, u8, u8, Access) {
        match self.model.op_of(&self.state, self.me) {
            Some(Op::Claim { from, to, lease, access, .. }) => {
                (from, to, lease, access.unwrap_or(self.model.design.access))
            }
            op => unreachable!("{op:?} is no claim"),
        }
    }
}
