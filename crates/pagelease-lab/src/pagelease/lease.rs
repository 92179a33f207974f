//! What an actor's program does next; and the end of a lease, as the engine's `lease` has it.

use super::design::Policy;
use super::scenario::Op;
use super::state::{Pc, Phase, RECORDS, Record, Why, owner, pages};
use super::turn::{Note, Turn, broke};

impl Turn<'_> {
    /// The first step of the next operation of the program.
    pub(super) fn next_op(&mut self) -> bool {
        match self.model.op_of(&self.state, self.me) {
            None => false,
            Some(Op::Read(page)) => self.touch(page, false),
            Some(Op::Add(page)) => self.touch(page, true),
            Some(Op::Claim { from, .. }) => {
                if self.closing() {
                    self.end_program();
                    return self.says("claim::fail", Note::Text("the region has gone"));
                }
                self.lane_mut().set_inside(1);
                self.lane_mut().set_cursor(from);
                self.go(Pc::Open);
                self.claim()
            }
            Some(Op::Operate(page)) => {
                self.go(Pc::Check);
                self.says("device::publish", Note::Page(page, ""))
            }
            Some(Op::End(_)) => {
                let inside = u8::from(!self.closing());
                self.lane_mut().set_inside(inside);
                self.go(Pc::EndHold);
                self.says("lease::drop", Note::None)
            }
            Some(Op::DropView) => self.stop_view(),
            Some(Op::DropRegion) => self.drop_region(),
            Some(Op::Repeat) => {
                self.lane_mut().set_op(0);
                self.says("program::repeat", Note::None)
            }
            Some(Op::Retry) => {
                let lane = self.lane_mut();
                let worked = lane.worked() == 1;
                lane.set_worked(0);
                if worked {
                    lane.end_op();
                } else {
                    lane.set_op(0);
                }
                self.says("program::retry", Note::Text(if worked { "not needed" } else { "" }))
            }
            Some(Op::Pinned(page)) => {
                if (0..2).any(|device| self.operates(device, 1 << page, &[Pc::Store])) {
                    self.break_property(broke::PINS);
                }
                self.lane_mut().end_op();
                self.says("pin::access", Note::Page(page, "through an old pin"))
            }
        }
    }

    /// Nothing follows: the program gives up.
    fn end_program(&mut self) {
        let len = self.model.scenario.actors[self.me].ops.len();
        self.lane_mut().end_program_step();
        self.lane_mut().set_op(u8::try_from(len).expect("a short program"));
    }

    /// Which lease ends: by its end, or by the failure of its claim.
    fn lease(&self) -> u8 {
        match self.model.op_of(&self.state, self.me) {
            Some(Op::End(lease) | Op::Claim { lease, .. }) => lease,
            op => unreachable!("{op:?} ends no lease"),
        }
    }

    /// The lease's records, the one claimed last first: chunks ascend.
    fn chain(&self) -> impl Iterator<Item = usize> + use<> {
        let (me, lease) = (self.me_code(), self.lease());
        let records = self.state.records;
        let of_lease = move |index: &usize| {
            let record = records[*index];
            let ours = record.actor() == me && record.lease() == lease;
            ours && matches!(record.stage(), Phase::Held | Phase::Ended)
        };
        let has_second = move |index: &usize| records[*index].entries() >> 1 == 1;
        let last = (0..RECORDS).filter(of_lease).filter(has_second);
        last.chain((0..RECORDS).filter(of_lease).filter(move |index| !has_second(index)))
    }

    /// `finish`: every hold ends; eagerly, the pages go back; the records are closed.
    pub(super) fn end_lease(&mut self) -> bool {
        let failed = self.lane().reason() == Why::Failed;
        match self.lane().pc() {
            Pc::EndHold => {
                let at = usize::from(self.lane().at());
                let entries = |index: usize| pages(self.state.records[index].entries()).map(move |page| (index, page));
                let Some((index, page)) = self.chain().flat_map(entries).nth(at) else {
                    self.lane_mut().set_at(0);
                    let eager = self.model.design.policy == Policy::Eager && self.lane().inside() == 1 && !failed;
                    if !eager {
                        return self.close_records(failed);
                    }
                    for index in self.chain() {
                        self.state.records[index].set_phase(Phase::Ended as u8);
                    }
                    self.go(Pc::Eagerly);
                    return self.says("lease::ended", Note::None);
                };
                let index = u8::try_from(index).expect("at most RECORDS");
                let Some(note) = self.end_hold(index, page) else { return false };
                let at = self.lane().at();
                self.lane_mut().set_at(at + 1);
                self.says("lease::end_hold", Note::Page(page, note))
            }
            Pc::Eagerly => {
                let Some(index) = self.chain().nth(usize::from(self.lane().record())) else {
                    return self.close_records(failed);
                };
                let device = owner(self.device());
                let idle = |page: &u8| {
                    let word = self.word(*page);
                    word.owner() == Some(device) && !word.held() && !word.busy()
                };
                let mask =
                    pages(self.state.records[index].entries()).filter(idle).fold(0, |mask, page| mask | 1 << page);
                let lane = self.lane_mut();
                if mask == 0 {
                    lane.set_record(lane.record() + 1);
                } else {
                    lane.set_at(if mask & 1 == 1 { 0 } else { 1 });
                    lane.set_cursor(if mask >> 1 == 1 { 2 } else { 1 });
                    lane.go(Pc::RsTake);
                }
                self.says("restore::eagerly", Note::Pages(mask, "idle"))
            }
            other => unreachable!("{other:?} is no step of a lease's end"),
        }
    }

    fn close_records(&mut self, failed: bool) -> bool {
        for index in self.chain() {
            self.state.records[index] = Record::default();
        }
        if failed {
            self.end_program();
        } else {
            self.lane_mut().end_op();
        }
        self.says("lease::close", Note::None)
    }
}
