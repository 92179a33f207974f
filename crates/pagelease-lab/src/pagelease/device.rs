//! The software device: an operation on a page that it may use.

use super::scenario::Op;
use super::state::{Pc, owner};
use super::turn::{Note, Turn, broke};

impl Turn<'_> {
    /// An operation of the device: the page is published, looked at, worked on, withdrawn.
    pub(super) fn operate(&mut self) -> bool {
        let Some(Op::Operate(page)) = self.model.op_of(&self.state, self.me) else { unreachable!("it operates") };
        let at = usize::from(page);
        match self.lane().pc() {
            Pc::Check => {
                let device = self.device();
                let stopped = self.state.globals.stopped() >> device & 1 == 1;
                let usable = self.word(page).usable_by(owner(device)) && !stopped;
                self.go(if usable { Pc::Load } else { Pc::Withdraw });
                self.says("device::check", Note::Page(page, if usable { "may use it" } else { "may not use it" }))
            }
            Pc::Load => {
                self.use_page(page);
                let value = self.state.pages[at].value();
                self.lane_mut().set_loaded(value);
                self.go(Pc::Store);
                self.says("device::load", Note::Page(page, ""))
            }
            Pc::Store => {
                let loaded = self.lane().loaded();
                self.lane_mut().set_loaded(0);
                let counts = self.counts();
                self.lane_mut().set_worked(u8::from(!counts));
                self.go(Pc::Withdraw);
                self.use_page(page);
                if counts {
                    let entry = &mut self.state.pages[at];
                    entry.set_value(loaded + 1);
                    entry.set_made(entry.made() + 1);
                }
                self.says("device::store", Note::Page(page, ""))
            }
            Pc::Withdraw => {
                self.lane_mut().end_op();
                self.says("device::withdraw", Note::Page(page, ""))
            }
            other => unreachable!("{other:?} is no step of an operation"),
        }
    }

    /// A device's access.
    fn use_page(&mut self, page: u8) {
        let device = self.device();
        if (0..2).any(|other| other != device && self.operates(other, 1 << page, &[Pc::Store])) {
            self.break_property(broke::ATOMICITY);
        }
        if self.state.globals.closed() == 1 || self.state.globals.detached() >> device & 1 == 1 {
            self.break_property(broke::ZAPPED);
        }
    }
}
