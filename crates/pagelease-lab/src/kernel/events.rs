//! What the rest of the kernel does to a page meanwhile: zap, write-protect, mremap, fork, GUP, reclaim.

use crate::property::Property;

use super::design::{Call, Fork, Knows, Mutant};
use super::pc::Pc;
use super::scenario::Op;
use super::state::{CHILD, HUGE, NO_CHILD, NOTHING, PAGES, Prot, Pte};
use super::turn::Turn;

/// In [`super::state::Actor::x`]: fork has failed; the pin was taken from an exclusive entry.
const MARK: u8 = 1 << 7;

impl Turn<'_> {
    pub(super) fn event_step(&mut self, pc: Pc) -> Option<()> {
        if pc != Pc::ForkRestore {
            self.only()?;
        }
        match pc {
            Pc::ZapMmap => {
                if self.op() == Op::Munmap {
                    if !self.mmap_write_lock()? {
                        return Some(());
                    }
                    self.state.prot = [Prot::Gone; PAGES];
                } else {
                    self.mmap_read_lock()?;
                }
                self.goto(Pc::ZapStart);
            }
            Pc::ProtectMmap => {
                if self.mmap_write_lock()? {
                    self.reprotect(Prot::Closing);
                    self.goto(Pc::ProtectStart);
                }
            }
            Pc::MoveMmap => {
                if self.mmap_write_lock()? {
                    self.goto(Pc::MoveStart);
                }
            }
            Pc::ForkMmap => {
                if self.mmap_write_lock()? {
                    let first = self.kernel.design.fork == Fork::RestoreFirst;
                    self.goto(if first { Pc::ForkRestore } else { Pc::ForkStart });
                }
            }
            Pc::ZapStart => self.notify_then(Pc::ZapPte)?,
            Pc::ProtectStart => self.notify_then(Pc::ProtectPte)?,
            Pc::MoveStart => self.notify_then(Pc::MovePte)?,
            Pc::ForkStart => self.notify_then(Pc::ForkCopy)?,
            Pc::ReclaimStart => self.notify_then(Pc::ReclaimPte)?,
            Pc::ZapPte => self.zap_pte(),
            Pc::ProtectPte => self.protect_pte(),
            Pc::MovePte => {
                self.state.set_pte(0, 1, self.state.pte(0, 0));
                self.state.set_pte(0, 0, Pte::None);
                self.state.prot = [Prot::Gone, self.state.prot[0]];
                self.goto(Pc::MoveEnd);
            }
            Pc::ZapEnd => {
                self.notify_end();
                match self.op() {
                    Op::Munmap => self.mmap_write_unlock(),
                    _ => self.mmap_read_unlock(),
                }
                self.next_op();
            }
            Pc::ProtectEnd | Pc::MoveEnd => {
                self.notify_end();
                self.mmap_write_unlock();
                self.next_op();
            }
            Pc::ForkRestore => self.fork_restore()?,
            Pc::ForkCopy => self.fork_copy()?,
            Pc::ForkEnd => self.fork_end(),
            Pc::PinWalk => self.pin_walk(),
            Pc::PinWrite => self.pin_write(),
            Pc::ReclaimLock => self.reclaim_lock(),
            Pc::ReclaimPte => self.reclaim_pte(),
            Pc::ReclaimEnd => {
                self.notify_end();
                self.next_op();
            }
            other => unreachable!("{} belongs to no event", other.name()),
        }
        Some(())
    }

    fn notify_then(&mut self, next: Pc) -> Option<()> {
        if self.notify()? {
            self.goto(next);
        }
        Some(())
    }

    fn reprotect(&mut self, to: Prot) {
        for prot in self.state.prot.iter_mut().filter(|prot| **prot != Prot::Gone) {
            *prot = to;
        }
    }

    /// Restores the page that the walk is at, if the design wants that first. True: a restore has begun.
    fn restores_first(&mut self, page: usize) -> bool {
        let Pte::Exclusive(frame) = self.state.pte(0, page) else { return false };
        if !self.kernel.design.restore_first {
            return false;
        }
        let me = self.me_mut();
        (me.fault, me.fault_frame) = (Pc::FolioLock, frame);
        true
    }

    fn zap_pte(&mut self) {
        let page = usize::from(self.me().x);
        if self.restores_first(page) {
            return;
        }
        self.forget(self.state.pte(0, page));
        self.state.set_pte(0, page, Pte::None);
        self.state.flags &= !HUGE;
        self.advance(Pc::ZapEnd);
    }

    fn protect_pte(&mut self) {
        let page = usize::from(self.me().x);
        if self.restores_first(page) {
            return;
        }
        if let Pte::Rw(frame) = self.state.pte(0, page) {
            self.state.set_pte(0, page, Pte::Ro(frame));
        }
        if page + 1 == PAGES {
            self.reprotect(Prot::Read);
        }
        self.advance(Pc::ProtectEnd);
    }

    /// The next page of the walk, or `end`.
    fn advance(&mut self, end: Pc) {
        self.me_mut().x += 1;
        if usize::from(self.me().x) == PAGES {
            self.me_mut().x = 0;
            self.goto(end);
        }
    }

    // fork: copy_present_pte() and try_restore_exclusive_pte() in mm/memory.c.

    fn fork_restore(&mut self) -> Option<()> {
        let page = usize::from(self.me().x);
        let exclusive = match self.state.pte(0, page) {
            Pte::Exclusive(frame) => Some(frame),
            _ => None,
        };
        match (exclusive, self.choice) {
            (Some(frame), 0) if !self.locked(frame) => {
                let me = self.me_mut();
                (me.fault, me.fault_frame) = (Pc::FolioLock, frame);
            }
            (Some(frame), 1) if self.locked(frame) => self.advance(Pc::ForkStart),
            (None, 0) => self.advance(Pc::ForkStart),
            _ => return None,
        }
        Some(())
    }

    fn fork_copy(&mut self) -> Option<()> {
        let page = usize::from(self.me().x);
        let pte = self.state.pte(0, page);
        if let Pte::Exclusive(frame) = pte {
            let mutant = self.kernel.design.mutant == Mutant::ForkSharesExclusive;
            match (self.locked(frame), self.kernel.design.fork) {
                _ if mutant => {
                    self.state.set_pte(1, page, Pte::Ro(frame));
                    self.advance(Pc::ForkEnd);
                    return Some(());
                }
                (true, Fork::TryLock) => {
                    self.me_mut().x = MARK;
                    self.break_property(Property::ForkSucceeds);
                    self.goto(Pc::ForkEnd);
                    return Some(());
                }
                (true, Fork::Wait) => return None,
                (true, Fork::RestoreFirst) => {
                    self.copy_for_child(page, frame);
                    self.advance(Pc::ForkEnd);
                    return Some(());
                }
                (false, _) => self.restore(0, page),
            }
        }
        match self.state.pte(0, page) {
            Pte::Rw(frame) if self.pinned(frame) => self.copy_for_child(page, frame),
            Pte::Rw(frame) | Pte::Ro(frame) => {
                self.state.set_pte(0, page, Pte::Ro(frame));
                self.state.set_pte(1, page, Pte::Ro(frame));
            }
            other => self.state.set_pte(1, page, other),
        }
        self.advance(Pc::ForkEnd);
        Some(())
    }

    fn copy_for_child(&mut self, page: usize, frame: u8) {
        let value = self.state.value(frame);
        let copy = self.allocate(page, value);
        self.state.set_pte(1, page, Pte::Ro(copy));
    }

    fn fork_end(&mut self) {
        self.notify_end();
        self.mmap_write_unlock();
        if self.me().x & MARK != 0 {
            for page in 0..PAGES {
                self.state.set_pte(1, page, Pte::None);
            }
            self.state.flags |= NO_CHILD;
        } else {
            self.state.flags |= CHILD;
        }
        self.next_op();
    }

    // GUP by a third party.

    fn pin_walk(&mut self) {
        let Op::Pin(page) = self.op() else { unreachable!("only a pin walks") };
        match self.state.pte(0, page.into()) {
            _ if self.refused(page.into(), true) => self.next_op(),
            Pte::Rw(frame) => self.pin(frame, 0),
            Pte::Exclusive(frame) if self.kernel.design.knows == Knows::Everybody => self.pin(frame, MARK),
            _ => self.fault(),
        }
    }

    fn pin(&mut self, frame: u8, mark: u8) {
        let me = self.me_mut();
        (me.frame, me.x, me.pc) = (frame, mark, Pc::PinWrite);
    }

    fn pin_write(&mut self) {
        let frame = self.me().frame;
        if self.in_flight(frame) {
            // A walk that takes an exclusive page as it is has the kernel access it on the CPU's behalf; a pin from before
            // the claim is another matter.
            self.break_property(if self.me().x & MARK == 0 { Property::Pins } else { Property::Atomicity });
        }
        self.add(frame);
        self.next_op();
    }

    // Reclaim.

    fn reclaim_lock(&mut self) {
        let Op::Reclaim(page) = self.op() else { unreachable!("only reclaim does this") };
        let pte = self.state.pte(0, page.into());
        // In 2021 an exclusive page counted as not mapped: there was nothing to unmap, nor to notify of.
        let unmapped = matches!(pte, Pte::Exclusive(_)) && self.kernel.design.call == Call::Range;
        match pte.frame() {
            Some(frame) if !self.locked(frame) && !self.pinned(frame) && !unmapped => {
                self.state.set_lock(self.folio(frame), self.tag());
                self.me_mut().frame = frame;
                self.goto(Pc::ReclaimStart);
            }
            _ => self.next_op(),
        }
    }

    fn reclaim_pte(&mut self) {
        let Op::Reclaim(page) = self.op() else { unreachable!("only reclaim does this") };
        let (page, frame) = (usize::from(page), self.me().frame);
        match self.state.pte(0, page) {
            Pte::Exclusive(at) if at == frame && self.kernel.design.call == Call::Single => {
                self.state.set_pte(0, page, Pte::Swap(frame));
            }
            Pte::Ro(at) | Pte::Rw(at) if at == frame => self.state.set_pte(0, page, Pte::Swap(frame)),
            _ => {}
        }
        self.unlock(frame);
        self.me_mut().frame = NOTHING;
        self.goto(Pc::ReclaimEnd);
    }
}
