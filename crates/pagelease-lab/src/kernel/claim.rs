//! The driver's claim and the device's operation: make_device_exclusive() in mm/rmap.c, and a driver's loop around it as
//! nouveau and lib/test_hmm.c have it.
//!
//! ```text
//!   device faults -> read_begin -> mmap_read_lock -> (split) -> GUP -> folio_lock -> notify EXCLUSIVE
//!     -> look again, exclusive entry -> end, mmap_read_unlock -> mutex -> read_retry -> map -> folio_unlock
//!                 ^------------------------------------------------------------+ changed: unlock, again
//! ```

use crate::property::Property;

use super::design::{Begin, Call, Mutant, Register, Split, Unlock};
use super::notifier::inserted;
use super::pc::Pc;
use super::scenario::Op;
use super::state::{COPIES, DISTURBED, Frame, HUGE, NOTHING, PAGES, Prot, Pte, STALE, WINDOW};
use super::turn::Turn;

/// In [`super::state::Actor::x`]: the exclusive entry is in place.
const PLACED: u8 = 1 << 7;
/// The claiming thread has made its own touch.
const TOUCHED: u8 = 1 << 6;
/// The sequence number was compared before the mutex was taken, and was unchanged (a mutant).
const COMPARED: u8 = 1 << 5;

impl Turn<'_> {
    pub(super) fn claim_step(&mut self, pc: Pc) -> Option<()> {
        self.only()?;
        let design = self.kernel.design;
        match pc {
            Pc::DeviceLoad => self.device_load()?,
            Pc::DeviceStore => self.device_store(),
            Pc::Insert => {
                self.insert();
                self.goto(if design.register == Register::BeforeUnlockChecked { Pc::ReadBegin } else { Pc::MutexLock });
            }
            Pc::ReadBegin => {
                self.read_begin()?;
                self.goto(match (design.begin, self.me().frame) {
                    (Begin::UnderLock, _) => Pc::ExclusiveStart,
                    (Begin::First, NOTHING) => Pc::ClaimMmap,
                    // The page is claimed already (late and checked): the comparison is all that is left to do.
                    (Begin::First, _) => Pc::MutexLock,
                });
            }
            Pc::ClaimMmap => {
                self.mmap_read_lock()?;
                self.goto(if design.split == Split::Always { Pc::SplitStart } else { Pc::Gup });
            }
            Pc::SplitStart => {
                let looks = self.op() == Op::Split && design.split == Split::WhenHuge && !self.calling();
                if looks && !self.huge() {
                    self.next_op();
                } else if self.notify()? {
                    self.goto(Pc::SplitPmd);
                }
            }
            Pc::SplitPmd => {
                self.state.flags &= !HUGE;
                self.goto(Pc::SplitEnd);
            }
            Pc::SplitEnd => {
                self.notify_end();
                match self.op() {
                    Op::Split => self.next_op(),
                    _ => self.goto(Pc::Gup),
                }
            }
            Pc::Gup => self.gup(),
            Pc::ClaimLock => self.claim_lock()?,
            Pc::ExclusiveStart => {
                if self.notify()? {
                    self.goto(Pc::ExclusivePte);
                }
            }
            Pc::ExclusivePte => {
                let (page, frame) = (self.at_page(), self.me().frame);
                let found = match self.state.pte(0, page) {
                    Pte::Rw(there) => there == frame,
                    Pte::Exclusive(there) => there == frame && self.claim_knows(),
                    _ => false,
                };
                if found && !self.huge() && !(design.refuses_pinned && self.pinned(frame)) {
                    self.state.set_pte(0, page, Pte::Exclusive(frame));
                    self.me_mut().x |= PLACED;
                }
                self.goto(Pc::ExclusiveEnd);
            }
            Pc::ExclusiveEnd => self.exclusive_end(),
            Pc::OwnTouch => {
                let page = self.at_page();
                if self.touch(page, true) {
                    self.me_mut().x |= TOUCHED;
                    self.after_claim();
                }
            }
            Pc::UnlockEarly => {
                self.unlock_all();
                self.goto(if design.register == Register::AfterUnlock { self.late() } else { self.compare() });
            }
            Pc::MutexLock => {
                let device = self.device();
                if self.state.devices[device].mutex != 0 {
                    return None;
                }
                self.state.devices[device].mutex = self.tag();
                let compares = self.state.devices[device].flags & WINDOW != 0 && self.me().x & COMPARED == 0;
                self.goto(if compares { Pc::ReadRetry } else { Pc::Map });
            }
            Pc::ReadRetry => self.read_retry(),
            Pc::Map => self.map(),
            Pc::FolioUnlock => {
                self.unlock_all();
                self.claimed();
            }
            Pc::Unmap => {
                let (device, Op::DeviceAdd(page)) = (self.device(), self.op()) else {
                    unreachable!("an operation's end")
                };
                if self.works_on(device, page.into()) {
                    return None;
                }
                self.state.devices[device].table[usize::from(page)] = 0;
                self.unlock(self.me().frame);
                self.next_op();
            }
            Pc::Eager => {
                let page = self.faulting().0;
                match self.state.pte(0, page) {
                    Pte::Exclusive(_) => self.fault(),
                    _ => self.next_op(),
                }
            }
            other => unreachable!("{} is no step of a claim", other.name()),
        }
        Some(())
    }

    // The device.

    fn device_load(&mut self) -> Option<()> {
        let (device, Op::DeviceAdd(page) | Op::Work(page)) = (self.device(), self.op()) else {
            unreachable!("the device adds");
        };
        match self.state.mapped(device, page.into()) {
            // The device orders its own engines' operations.
            Some(_) if self.works_on(device, page.into()) => return None,
            Some(frame) => {
                self.device_access(page.into(), frame);
                let value = self.state.value(frame);
                let me = self.me_mut();
                (me.frame, me.x, me.pc) = (frame, value, Pc::DeviceStore);
            }
            None if matches!(self.op(), Op::Work(_)) => self.next_op(),
            None => self.goto(self.kernel.first_of_claim()),
        }
        Some(())
    }

    fn device_store(&mut self) {
        let (frame, page) = (self.me().frame, self.faulting().0);
        self.device_access(page, frame);
        if self.state.prot[page] == Prot::Read {
            self.break_property(Property::Protected);
        }
        if (0..PAGES).any(|page| self.state.pte(1, page).frame() == Some(frame)) {
            self.break_property(Property::Snapshot);
        }
        self.state.set_value(frame, self.me().x + 1);
        self.count(frame);
        match (self.kernel.design.register, self.kernel.design.eager) {
            _ if matches!(self.op(), Op::Work(_)) => self.next_op(),
            (Register::Never, _) => self.goto(Pc::Unmap),
            (_, true) => self.goto(Pc::Eager),
            (_, false) => self.next_op(),
        }
    }

    /// The device reaches what it believes to be `page`.
    fn device_access(&mut self, page: usize, frame: Frame) {
        let there = matches!(self.state.pte(0, page), Pte::Ro(at) | Pte::Rw(at) | Pte::Exclusive(at) if at == frame);
        if !there {
            self.break_property(Property::Zapped);
        }
    }

    // The claim.

    /// The pages that the claim is for.
    fn claimed_pages(&self) -> std::ops::Range<usize> {
        match self.op() {
            Op::ClaimBoth => 0..PAGES,
            _ => self.at_page()..self.at_page() + 1,
        }
    }

    fn gup(&mut self) {
        let page = self.at_page();
        if self.huge() {
            self.goto(Pc::SplitStart);
            return;
        }
        if self.state.prot[page] != Prot::Write {
            self.fail();
            return;
        }
        match self.state.pte(0, page) {
            Pte::Exclusive(_) if !self.claim_knows() => self.fault(),
            Pte::Rw(frame) | Pte::Exclusive(frame) => {
                let last = self.claimed_pages().end - 1;
                if self.kernel.design.call == Call::Range && page < last {
                    self.me_mut().x += 1;
                } else {
                    if self.kernel.design.call == Call::Range {
                        self.me_mut().x = 0;
                    }
                    self.me_mut().frame = frame;
                    self.goto(Pc::ClaimLock);
                }
            }
            _ => self.fault(),
        }
    }

    fn claim_lock(&mut self) -> Option<()> {
        let stays = self.awaits_access(self.at_page()) || self.awaits_operation(self.me().frame);
        if self.kernel.design.residency && stays {
            return None;
        }
        match self.kernel.design.call {
            Call::Single => self.lock(self.me().frame)?,
            Call::Range => {
                // The page that GUP has found, or none any more: left out, as one that is locked, and as a tail page.
                let (Pte::Rw(frame) | Pte::Exclusive(frame)) = self.state.pte(0, self.at_page()) else {
                    self.fail();
                    return Some(());
                };
                if self.locked(frame) {
                    self.break_property(Property::ClaimSucceeds);
                }
                if self.locked(frame) || self.folio(frame) != frame {
                    self.fail();
                    return Some(());
                }
                self.lock(frame)?;
                self.me_mut().frame = frame;
            }
        }
        // In a claim of two pages the first page's number serves for both.
        let begun = self.state.devices[self.device()].flags & WINDOW != 0;
        let begins = self.kernel.design.begin == Begin::UnderLock && !begun;
        self.goto(if begins { Pc::ReadBegin } else { Pc::ExclusiveStart });
        Some(())
    }

    fn exclusive_end(&mut self) {
        self.notify_end();
        let frame = self.me().frame;
        if self.me().x & PLACED == 0 {
            match self.kernel.design.call {
                Call::Single => {
                    self.unlock(frame);
                    if self.kernel.design.begin == Begin::UnderLock && !self.holds_lock() {
                        let device = self.device();
                        self.state.devices[device].flags &= !(WINDOW | STALE | DISTURBED);
                    }
                    self.me_mut().frame = NOTHING;
                    self.goto(Pc::Gup);
                }
                Call::Range => {
                    self.break_property(Property::ClaimSucceeds);
                    self.fail();
                }
            }
            return;
        }
        self.me_mut().x &= !PLACED;
        if self.at_page() + 1 < self.claimed_pages().end {
            self.me_mut().x += 1;
            self.goto(if self.kernel.design.call == Call::Range { Pc::ClaimLock } else { Pc::Gup });
            return;
        }
        self.mmap_read_unlock();
        self.after_claim();
    }

    /// Where the driver goes once the claim has returned.
    fn after_claim(&mut self) {
        let design = self.kernel.design;
        let touches = matches!(self.op(), Op::ClaimTouching(_)) && self.me().x & TOUCHED == 0;
        let early = design.unlock == Unlock::BeforeMap || design.register == Register::AfterUnlock;
        let next = match (early, touches) {
            (true, _) if self.locked_by_me(self.me().frame) => Pc::UnlockEarly,
            (_, true) => Pc::OwnTouch,
            (_, false) if design.register == Register::Early => self.compare(),
            (_, false) => self.late(),
        };
        self.goto(next);
    }

    /// Where a driver goes that inserts its notifier late, if at all.
    fn late(&self) -> Pc {
        match (self.op(), self.me().x & TOUCHED) {
            (Op::ClaimTouching(_), 0) => Pc::OwnTouch,
            _ if self.kernel.design.register == Register::Never || inserted(&self.state, self.device()) => {
                if self.kernel.design.register == Register::BeforeUnlockChecked { Pc::ReadBegin } else { Pc::MutexLock }
            }
            _ => Pc::Insert,
        }
    }

    /// Where a driver goes that compares its sequence number.
    fn compare(&self) -> Pc {
        match (self.op(), self.me().x & TOUCHED) {
            (Op::ClaimTouching(_), 0) => Pc::OwnTouch,
            _ if self.kernel.design.mutant == Mutant::RetryBeforeMutex => Pc::ReadRetry,
            _ => Pc::MutexLock,
        }
    }

    fn read_retry(&mut self) {
        let device = self.device();
        let flags = self.state.devices[device].flags;
        let early = self.state.devices[device].mutex == 0;
        if flags & STALE == 0 {
            if early {
                self.me_mut().x |= COMPARED;
            }
            self.goto(if early { Pc::MutexLock } else { Pc::Map });
            return;
        }
        if flags & DISTURBED == 0 {
            self.break_property(Property::SelfRetry);
        }
        if !early {
            self.state.devices[device].mutex = 0;
        }
        self.state.devices[device].flags &= !(WINDOW | STALE | DISTURBED);
        if self.kernel.design.mutant == Mutant::RetryKeepsLock {
            // The lock is lost: nobody will ever give it back.
        } else {
            self.unlock_all();
        }
        let first = self.kernel.first_of_claim();
        let me = self.me_mut();
        (me.frame, me.pc, me.x) = (NOTHING, first, me.x & TOUCHED);
    }

    fn map(&mut self) {
        let device = self.device();
        // A driver that keeps nothing beyond the folio lock maps nothing for a claim without an operation.
        let keeps = self.kernel.design.register != Register::Never || matches!(self.op(), Op::DeviceAdd(_));
        for page in self.claimed_pages().filter(|_| keeps) {
            // Two pages are claimed only where nothing copies them.
            let frame = if self.op() == Op::ClaimBoth { first_frame(page) } else { self.me().frame };
            self.state.devices[device].table[page] = frame + 1;
        }
        let entry = &mut self.state.devices[device];
        entry.mutex = 0;
        entry.flags &= !(WINDOW | STALE | DISTURBED);
        if self.holds_lock() && self.kernel.design.register != Register::Never {
            self.goto(Pc::FolioUnlock);
        } else {
            self.claimed();
        }
    }

    /// The claim is over, and well: on with the operation it was for.
    fn claimed(&mut self) {
        match self.op() {
            Op::DeviceAdd(_) => {
                self.me_mut().x = 0;
                if self.kernel.design.register != Register::Never {
                    self.me_mut().frame = NOTHING;
                }
                self.goto(Pc::DeviceLoad);
            }
            Op::Claim(_) | Op::ClaimBoth | Op::ClaimTouching(_) => {
                if self.kernel.design.register == Register::Never {
                    self.unlock_all();
                }
                self.next_op();
            }
            other => unreachable!("{other:?} claims nothing"),
        }
    }

    /// The claim is refused: `EFAULT` of the walk, or a page left out. The driver cancels the device's fault.
    fn fail(&mut self) {
        let device = self.device();
        self.unlock_all();
        self.mmap_read_unlock();
        self.state.devices[device].flags &= !(WINDOW | STALE | DISTURBED);
        self.next_op();
    }

    /// The frame of `page` that the actor has locked.
    fn locked_frame(&self, page: usize) -> Option<Frame> {
        let first = first_frame(page);
        (first..first + COPIES).find(|&frame| self.locked_by_me(frame))
    }

    fn holds_lock(&self) -> bool {
        (0..PAGES).any(|page| self.locked_frame(page).is_some())
    }

    fn unlock_all(&mut self) {
        for page in 0..PAGES {
            if let Some(frame) = self.locked_frame(page) {
                self.unlock(frame);
            }
        }
    }
}

/// The frame that `page` has at the beginning.
fn first_frame(page: usize) -> Frame {
    Frame::try_from(page).expect("two pages") * COPIES
}
