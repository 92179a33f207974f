//! Restoring without a touch: an eager lease, the end of a view; and the end of a region.

use pagelease_protocol::touch::{self, Service, TouchStep};
use pagelease_protocol::{Cause, Obstacle, Origin, PageWord, hold};

use super::design::Mutant;
use super::scenario::Op;
use super::state::{Lane, Pc, owner, pages};
use super::turn::{Note, Turn, signed_by_service, unsigned, why};

impl Turn<'_> {
    /// `bring_back`: pages of the device go back to the CPU, a run at a time. An eager lease leaves held pages alone; the end
    /// of a view breaks their holds at once.
    pub(super) fn restore(&mut self) -> bool {
        let lane = self.lane();
        let of_view = matches!(self.model.op_of(&self.state, self.me), Some(Op::DropView));
        let device = self.device();
        match lane.pc() {
            Pc::RsTake => self.restore_take(device, of_view),
            Pc::RsBegin => {
                let cause = if of_view { Cause::Release } else { Cause::Clear };
                let begun = self.invalidate_begin(device, lane.run(), cause, Origin::default());
                self.lane_mut().set_begun(begun);
                self.go(Pc::RsDrain);
                self.says(
                    "invalidate::begin",
                    Note::Pages(lane.run(), if of_view { "cause Release" } else { "cause Clear" }),
                )
            }
            Pc::RsDrain => {
                if !self.is_drained(device, lane.run()) {
                    return false;
                }
                self.lane_mut().set_begun(0);
                self.go(Pc::RsMap);
                self.says("invalidate::drain", Note::Pages(lane.run(), ""))
            }
            Pc::RsMap => {
                if !self.breaks(Mutant::NoEagerResidency) {
                    pages(lane.run()).for_each(|page| self.keep_resident(page));
                }
                self.map(lane.run());
                self.go(Pc::RsCommit);
                self.says("restore::map", Note::Pages(lane.run(), ""))
            }
            Pc::RsCommit => {
                let page = pages(lane.run()).next().expect("a run has pages");
                let word = self.word(page);
                if self.is_intact(page) {
                    self.put_and_settle(page, touch::commit(unsigned(word)));
                }
                let rest = lane.run() & !(1 << page);
                self.lane_mut().set_run(rest);
                if rest == 0 {
                    self.go(Pc::RsTake);
                }
                self.says("restore::commit", Note::Page(page, ""))
            }
            Pc::RsWait => self.restore_wait(),
            Pc::RsAsleep => false,
            other => unreachable!("{other:?} is no step of a restore"),
        }
    }

    fn restore_take(&mut self, device: u8, of_view: bool) -> bool {
        let (run, end) = (self.lane().run(), self.lane().cursor());
        let of_device = |word: PageWord| word.owner() == Some(owner(device));
        loop {
            let page = self.lane().at();
            if run == 0 && (page >= end || !of_view && self.closing()) {
                return self.restored(device, of_view);
            }
            if page >= end {
                break;
            }
            let word = self.word(page);
            if !word.busy() && !of_device(word) {
                if run != 0 {
                    break;
                }
                self.lane_mut().set_at(page + 1);
                continue;
            }
            match touch::step(word, true) {
                TouchStep::Wait(Obstacle::Held) if run == 0 && !of_view => self.lane_mut().set_at(page + 1),
                TouchStep::Wait(Obstacle::Held) if run == 0 => {
                    self.break_hold(page);
                    self.hand_back(page);
                    return self.says("restore::break_hold", Note::Page(page, ""));
                }
                TouchStep::Wait(obstacle) if run == 0 => {
                    self.lane_mut().set_why(why(obstacle) as u8);
                    self.go(Pc::RsWait);
                    return self.says("restore::blocked", Note::Page(page, "is busy"));
                }
                TouchStep::Take(next, Service::Restore(of)) if of == owner(device) => {
                    self.put(page, signed_by_service(next));
                    let lane = self.lane_mut();
                    lane.set_run(run | 1 << page);
                    lane.set_at(page + 1);
                    return self.says("restore::take", Note::Page(page, "busy"));
                }
                _ => break,
            }
        }
        self.go(Pc::RsBegin);
        self.restore()
    }

    /// Everything has been looked at.
    fn restored(&mut self, device: u8, of_view: bool) -> bool {
        if of_view {
            let detached = self.state.globals.detached();
            self.state.globals.set_detached(detached | 1 << device);
            self.lane_mut().end_op();
            return self.says("region::detach", Note::None);
        }
        let lane = self.lane_mut();
        lane.set_record(lane.record() + 1);
        lane.set_at(0);
        lane.set_cursor(0);
        lane.go(Pc::Eagerly);
        self.says("restore::done", Note::None)
    }

    /// Waits, without a limit, while the page is `busy`; held by now, it is broken at the next look.
    fn restore_wait(&mut self) -> bool {
        let page = self.lane().at();
        let word = self.word(page);
        let waits = word.busy() || word.held() && self.breaks(Mutant::SleepByFirstLook);
        if !waits || self.closing() {
            self.lane_mut().set_why(0);
            self.go(Pc::RsTake);
            return self.says("restore::wait", Note::Page(page, "looks again"));
        }
        self.put(page, hold::sleep(word));
        self.go(Pc::RsAsleep);
        self.says("restore::wait", Note::Page(page, "sleeps"))
    }

    /// The last handle of a view goes: the device is barred, and what it has goes back.
    pub(super) fn stop_view(&mut self) -> bool {
        let device = self.device();
        if !self.breaks(Mutant::SkipStop) {
            let stopped = self.state.globals.stopped();
            self.state.globals.set_stopped(stopped | 1 << device);
        }
        let (closing, pages) = (self.closing(), self.model.scenario.pages);
        let lane = self.lane_mut();
        lane.set_inside(u8::from(!closing));
        // A region that closes does this for all of its devices.
        lane.set_cursor(if closing { 0 } else { pages });
        lane.go(Pc::RsTake);
        self.says("view::stop", Note::None)
    }

    /// `close`: no operation begins any more; those who sleep look again; touches trap no more.
    pub(super) fn drop_region(&mut self) -> bool {
        self.state.globals.set_closing(1);
        for page in 0..self.model.scenario.pages {
            let word = self.word(page);
            if word.sleepers() && !self.breaks(Mutant::NoWakeOnClose) {
                self.put(page, hold::wake(word));
                self.wake_all(page);
            }
        }
        self.wake(self.all_pages());
        self.go(Pc::RgOperations);
        self.says("region::close", Note::None)
    }

    /// Waits for the operations that run; then every device is stopped, and drained if it has a page.
    pub(super) fn close_region(&mut self) -> bool {
        let device = self.lane().at();
        let all = self.all_pages();
        match self.lane().pc() {
            Pc::RgOperations => {
                if self.state.lanes.iter().any(|lane: &Lane| lane.inside() == 1) {
                    return false;
                }
                self.go(Pc::RgStop);
                self.says("region::operations", Note::Text("none runs any more"))
            }
            Pc::RgStop if device == 2 => {
                self.state.globals.set_closed(1);
                self.lane_mut().end_op();
                self.says("region::closed", Note::None)
            }
            Pc::RgStop => {
                let has = pages(all).any(|page| self.owner_of(page) == Some(device));
                if self.breaks(Mutant::SkipStop) {
                    self.lane_mut().set_at(device + 1);
                } else {
                    let stopped = self.state.globals.stopped();
                    self.state.globals.set_stopped(stopped | 1 << device);
                    if has {
                        let begun = self.invalidate_begin(device, all, Cause::Release, Origin::default());
                        self.lane_mut().set_begun(begun);
                        self.go(Pc::RgDrain);
                    } else {
                        self.lane_mut().set_at(device + 1);
                    }
                }
                self.says(
                    "region::stop",
                    Note::Text(if has { "the device has a page" } else { "the device has nothing" }),
                )
            }
            Pc::RgDrain => {
                if !self.is_drained(device, all) {
                    return false;
                }
                self.lane_mut().set_begun(0);
                self.lane_mut().set_at(device + 1);
                self.go(Pc::RgStop);
                self.says("invalidate::drain", Note::Pages(all, ""))
            }
            other => unreachable!("{other:?} closes no region"),
        }
    }
}
