//! The fault path, as the engine's `touch` has it: `serve`, `restore`, `serve_own_claim`.
//!
//! Without what changes only how long things take: the neighbours that a touch in sequence brings along (a region of two
//! pages has none), the deputy (the device is signal-safe).

use pagelease_protocol::touch::{self, Service, TouchStep};
use pagelease_protocol::{Cause, Obstacle, Origin, PageWord};

use super::design::Mutant;
use super::state::{BORROWED, Fp, NOBODY, NOW, Phase, RECORDS, Server, Trap, View};
use super::turn::{Note, Turn, number, signed_by_service, unsigned};

impl Turn<'_> {
    /// The next step of whoever serves a fault.
    pub(super) fn service(&mut self) -> bool {
        let lane = self.lane();
        let page = lane.f_page();
        let here = Note::Page(page, "");
        match lane.f_pc() {
            Fp::None => false,
            Fp::Look => self.look(page),
            Fp::Begin => {
                let device = lane.f_saved();
                let begun = self.invalidate_begin(device, 1 << page, Cause::Clear, Origin::default());
                self.lane_mut().set_f_begun(begun);
                self.lane_mut().f_go(Fp::Drain);
                self.says("invalidate::begin", Note::Actor(device, page, "cause Clear, device"))
            }
            Fp::Drain => {
                if !self.is_drained(lane.f_saved(), 1 << page) {
                    return false;
                }
                self.lane_mut().set_f_begun(0);
                self.lane_mut().f_go(Fp::Map);
                self.says("invalidate::drain", here)
            }
            Fp::Map => {
                self.keep_resident(page);
                self.map(1 << page);
                let next = if self.breaks(Mutant::RestoreBeforeInvalidate) && lane.f_committing() == 1 {
                    // Not yet told to let go: the mapping came first.
                    self.lane_mut().set_f_committing(0);
                    Fp::Begin
                } else if self.breaks(Mutant::WakeBeforeMap) && lane.f_committing() == 1 {
                    self.lane_mut().end_service();
                    Fp::None
                } else {
                    Fp::Commit
                };
                self.lane_mut().f_go(next);
                self.says("touch::map", here)
            }
            Fp::MapReadOnly => {
                let entry = &mut self.state.pages[usize::from(page)];
                if entry.view() == View::Absent as u8 {
                    entry.set_view(View::ReadOnly as u8);
                }
                self.wake(1 << page);
                self.lane_mut().f_go(Fp::CommitReadOnly);
                self.says("touch::map_read_only", here)
            }
            Fp::Commit if !self.is_intact(page) => {
                self.lane_mut().end_service();
                self.says("touch::commit", Note::Page(page, "the word is not its own"))
            }
            Fp::Commit => {
                let word = self.word(page);
                let first = self.breaks(Mutant::WakeBeforeMap) && lane.f_committing() == 1;
                self.finish(page, touch::commit(unsigned(word)));
                if first {
                    self.wake(1 << page);
                    self.lane_mut().serve(page, lane.f_write() == 1, Server::of(lane.f_server()), lane.f_who());
                    self.lane_mut().set_f_saved(lane.f_saved());
                    self.lane_mut().set_f_committing(1);
                    self.lane_mut().f_go(Fp::Begin);
                }
                self.says("touch::commit", here)
            }
            Fp::CommitReadOnly => {
                let word = self.word(page);
                self.finish(page, touch::commit_read_only(unsigned(word)));
                self.says("touch::commit_read_only", here)
            }
            Fp::Settle => {
                self.state.pages[usize::from(page)].set_note(0);
                self.wake(1 << page);
                self.lane_mut().end_service();
                self.says("touch::settle", here)
            }
            Fp::Asleep => false,
            _ => self.borrow(page),
        }
    }

    /// `residency.restored`, and `given_back`: the page has been with a device, and shall stay with the CPU until whoever waits for it now has
    /// made its access.
    pub(super) fn keep_resident(&mut self, page: u8) {
        if !self.model.scenario.is_endless() || self.breaks(Mutant::NoResidency) || self.word(page).owner().is_none() {
            return;
        }
        for (actor, lane) in self.state.lanes.iter().enumerate() {
            let serves_itself = lane.f_pc() != Fp::None && lane.f_server() == Server::InThread as u8;
            let waits = lane.trapped() != Trap::None || serves_itself;
            if waits && self.access_of(actor).is_some_and(|(touched, _)| touched == page) {
                let entry = &mut self.state.pages[usize::from(page)];
                entry.set_resident(entry.resident() | 1 << actor);
            }
        }
    }

    /// The word's last change in a service: it ends with it, but for what is owed to those who wait.
    fn finish(&mut self, page: u8, next: PageWord) {
        self.lane_mut().end_service();
        self.put_and_settle(page, next);
    }

    /// `serve`: look at the word, and at whose it is.
    fn look(&mut self, page: u8) -> bool {
        let lane = self.lane();
        if self.closing() {
            self.lane_mut().end_service();
            return self.says("touch::serve", Note::Page(page, "the region is closing"));
        }
        let word = self.word(page);
        match touch::step(word, lane.f_write() == 1) {
            TouchStep::Take(next, service) => {
                self.put(page, signed_by_service(next));
                let early = self.breaks(Mutant::WakeBeforeMap) || self.breaks(Mutant::RestoreBeforeInvalidate);
                let next = match service {
                    Service::Map => Fp::Map,
                    Service::MapReadOnly => Fp::MapReadOnly,
                    Service::Restore(owner) => {
                        self.lane_mut().set_f_saved(number(owner));
                        self.lane_mut().set_f_committing(u8::from(early));
                        match self.model.design.mutant {
                            Some(Mutant::WakeBeforeMap) => Fp::Commit,
                            Some(Mutant::RestoreBeforeInvalidate) => Fp::Map,
                            _ => Fp::Begin,
                        }
                    }
                };
                self.lane_mut().f_go(next);
                self.says("touch::take", Note::Page(page, "busy"))
            }
            TouchStep::Wait(obstacle) => self.must_wait(page, word, obstacle),
        }
    }

    fn must_wait(&mut self, page: u8, word: PageWord, obstacle: Obstacle) -> bool {
        if let Some((record, late)) = self.own_record(page, word, obstacle) {
            if late {
                self.wake(1 << page);
                self.lane_mut().end_service();
                return self.says("touch::gone_on", Note::Page(page, "the claim is younger than the touch"));
            }
            if obstacle == Obstacle::Held {
                self.break_hold(page);
                return self.says("touch::break_own_hold", Note::Page(page, "the touching thread holds it"));
            }
            let lane = self.lane_mut();
            lane.set_f_record(record);
            lane.set_f_saved(low_bits(word));
            lane.f_go(Fp::Borrow);
            return self.says("touch::own_record", Note::Page(page, "busy by the touching thread's own claim"));
        }
        match Server::of(self.lane().f_server()) {
            Server::Owed => {
                self.lane_mut().end_service();
                self.says("touch::serve", Note::Page(page, "somebody else has it, and owes it"))
            }
            Server::Monitor => {
                self.state.pages[usize::from(page)].set_note(1);
                self.put(page, touch::wait(word, false));
                self.lane_mut().end_service();
                self.says("touch::park", Note::Page(page, text(obstacle)))
            }
            Server::InThread => {
                self.put(page, touch::wait(word, true));
                self.lane_mut().set_f_saved(u8::from(obstacle == Obstacle::Held));
                self.lane_mut().f_go(Fp::Asleep);
                self.says("touch::sleep", Note::Page(page, text(obstacle)))
            }
        }
    }

    /// The claim or lease of the touching thread's own that the touch would wait for: its record, and whether it is younger
    /// than the touch.
    fn own_record(&self, page: u8, word: PageWord, obstacle: Obstacle) -> Option<(u8, bool)> {
        let who = self.lane().f_who();
        if who == NOBODY || self.breaks(Mutant::NoOwnRecord) {
            return None;
        }
        // A thread that serves itself does not run meanwhile: none of its claims can be younger.
        let monitored = self.lane().f_server() == Server::Monitor as u8;
        let found = |record: usize| {
            let late = monitored && self.state.records[record].late() == 1;
            Some((u8::try_from(record).expect("at most RECORDS"), late))
        };
        match obstacle {
            Obstacle::Waiter => None,
            Obstacle::Busy => {
                let record = usize::from(word.ticket()?).checked_sub(1).filter(|&record| record < RECORDS)?;
                if self.state.records[record].actor() == who { found(record) } else { None }
            }
            Obstacle::Held => {
                let holds = |&record: &usize| {
                    let record = self.state.records[record];
                    let taken = record.taken() >> page & 1 == 1;
                    let live = (record.entries() & record.live()) >> page & 1 == 1;
                    record.actor() == who
                        && live
                        && match record.stage() {
                            Phase::Held | Phase::Committing => true,
                            Phase::Claiming => !taken,
                            Phase::Free | Phase::Ended => false,
                        }
                };
                // The oldest: one that is not late, if there is one.
                let of_late =
                    |late: u8| (0..RECORDS).filter(holds).find(|&record| self.state.records[record].late() == late);
                of_late(0).or_else(|| of_late(1)).and_then(found)
            }
        }
    }

    /// `serve_own_claim`: the touch of a page that its own thread's claim has busy is served under that `busy`.
    fn borrow(&mut self, page: u8) -> bool {
        let lane = self.lane();
        let word = self.word(page);
        let record = usize::from(lane.f_record());
        let ticket = u16::from(lane.f_record()) + 1;
        let here = Note::Page(page, "");
        match lane.f_pc() {
            Fp::Borrow => {
                let same = word.ticket() == Some(ticket) && low_bits(word) == lane.f_saved();
                if same {
                    self.put(page, word.signed(BORROWED));
                }
                self.lane_mut().f_go(if same { Fp::BorrowBegin } else { Fp::Look });
                self.says("touch::borrow", Note::Page(page, if same { "" } else { "the word has changed" }))
            }
            Fp::BorrowBegin => {
                let begun = self.records_begin(1 << page, Cause::Clear, Origin::default());
                self.lane_mut().set_f_begun(begun);
                self.lane_mut().f_go(Fp::BorrowInvalidate);
                self.says("records::begin", here)
            }
            Fp::BorrowInvalidate => {
                let claim = self.state.records[record];
                let committing = claim.stage() == Phase::Committing;
                let user = if committing { self.device_of(usize::from(claim.actor())) } else { self.owner_of(page) };
                let mut begun = 0;
                if let Some(device) = user {
                    begun = self.invalidate_begin(device, 1 << page, Cause::Clear, Origin::default());
                }
                let lane = self.lane_mut();
                lane.set_f_committing(u8::from(committing));
                lane.set_f_inner(begun);
                lane.set_f_saved(user.map_or(3, |device| device));
                lane.f_go(if user.is_some() { Fp::BorrowDrain } else { Fp::BorrowMap });
                self.says(
                    "invalidate::begin",
                    Note::Page(page, if committing { "behind the commit point" } else { "before the commit point" }),
                )
            }
            Fp::BorrowDrain => {
                if !self.is_drained(lane.f_saved(), 1 << page) {
                    return false;
                }
                self.lane_mut().set_f_inner(0);
                self.lane_mut().f_go(Fp::BorrowMap);
                self.says("invalidate::drain", here)
            }
            Fp::BorrowMap => {
                self.map(1 << page);
                self.lane_mut().f_go(Fp::BorrowPut);
                self.says("touch::map", here)
            }
            Fp::BorrowPut => {
                let lost = lane.f_committing() == 1 && self.state.records[record].entries() >> page & 1 == 1;
                self.lane_mut().f_go(Fp::BorrowEnd);
                if lost {
                    let waited = word.waiters();
                    let next = touch::take_over(word.unsigned(NOW));
                    self.put(page, next);
                    if word.sleepers() {
                        self.wake_all(page);
                    }
                    if waited {
                        self.state.pages[usize::from(page)].set_note(0);
                        self.wake(1 << page);
                    }
                } else {
                    self.put(page, word.signed(ticket));
                }
                self.says(if lost { "touch::take_over" } else { "touch::give_back" }, here)
            }
            Fp::BorrowEnd => {
                self.lane_mut().end_service();
                self.says("records::end", here)
            }
            other => unreachable!("{other:?} borrows nothing"),
        }
    }
}

/// What of a signed word is not its ticket: enough to tell whether it has changed.
fn low_bits(word: PageWord) -> u8 {
    let bits = word.bits();
    // Waiters, sleepers, populated, state; and the two lowest bits of the owner.
    u8::try_from(bits >> 1 & 0b1_1111 | (bits >> 10 & 0b11) << 5).expect("seven bits")
}

fn text(obstacle: Obstacle) -> &'static str {
    match obstacle {
        Obstacle::Busy => "busy",
        Obstacle::Held => "held",
        Obstacle::Waiter => "waited for",
    }
}
