//! Who hears of an invalidation, and what it waits for: `records`, `invalidate`, and the lanes of the software device.

use pagelease_protocol::{Cause, NotifierWord, Origin, notifier};

use super::design::Mutant;
use super::scenario::Op;
use super::state::{Pc, owner, pages};
use super::turn::{Turn, token, zero};

impl Turn<'_> {
    /// Whether an operation of `device` is in its lane, on one of the pages.
    pub(super) fn operates(&self, device: u8, mask: u8, within: &[Pc]) -> bool {
        (0..self.model.scenario.actors.len()).any(|actor| {
            let page = match self.model.op_of(&self.state, actor) {
                Some(Op::Operate(page)) => page,
                _ => return false,
            };
            self.device_of(actor) == Some(device)
                && mask >> page & 1 == 1
                && within.contains(&self.state.lanes[actor].pc())
        })
    }

    /// Whether an invalidation of `device` has nothing to wait for.
    pub(super) fn is_drained(&self, device: u8, mask: u8) -> bool {
        self.breaks(Mutant::SkipDrain) || !self.operates(device, mask, &[Pc::Check, Pc::Load, Pc::Store, Pc::Withdraw])
    }

    /// `records.begin`: every subscription that an invalidation concerns hears of it. Returns which.
    pub(super) fn records_begin(&mut self, mask: u8, cause: Cause, origin: Origin) -> u8 {
        let mut begun = 0;
        for index in 0..self.state.records.len() {
            let record = self.state.records[index];
            if !record.listens() || record.entries() & mask == 0 {
                continue;
            }
            let token = token(record);
            let device = owner(self.device_of(usize::from(record.actor())).expect("a device's thread claims"));
            let concerned = if self.breaks(Mutant::FilterByThread) {
                record.actor() != self.me_code()
            } else {
                self.breaks(Mutant::NoFilter) || notifier::concerns(cause, origin, device, Some(token))
            };
            if concerned {
                let word = self.notifier(index).begin().expect("far fewer run than can be counted");
                let record = &mut self.state.records[index];
                record.set_moved(u8::from(word.read_retry(zero())));
                if origin.token != Some(token) {
                    record.set_disturbed(1);
                }
                begun |= 1 << index;
            }
        }
        begun
    }

    /// A record's notifier word, counted from its last `read_begin`.
    pub(super) fn notifier(&self, record: usize) -> NotifierWord {
        let begun = u32::from(self.state.records[record].moved());
        NotifierWord::from_bits(begun << 8 | self.state.running(record))
    }

    /// The first half of `invalidate`: everybody hears of it. Returns who has; the second half waits for the device.
    pub(super) fn invalidate_begin(&mut self, device: u8, mask: u8, cause: Cause, origin: Origin) -> u8 {
        if self.state.globals.detached() >> device & 1 == 1 {
            return 0;
        }
        self.count_spurious(device, mask);
        if self.breaks(Mutant::NotifyAll) {
            let is_there =
                |device: u8| (0..self.model.scenario.actors.len()).any(|at| self.device_of(at) == Some(device));
            for other in (0..2).filter(|&other| other != device && is_there(other)).collect::<Vec<_>>() {
                self.count_spurious(other, mask);
            }
        }
        self.records_begin(mask, cause, origin)
    }

    fn count_spurious(&mut self, device: u8, mask: u8) {
        let needs = pages(mask).any(|page| {
            self.word(page).owner() == Some(owner(device))
                || self.state.records.iter().any(|record| {
                    record.listens()
                        && record.entries() >> page & 1 == 1
                        && self.device_of(usize::from(record.actor())) == Some(device)
                })
        });
        self.spurious += u32::from(!needs);
    }
}
