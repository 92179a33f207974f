//! `mmu_interval_notifier`, as mm/mmu_notifier.c has it, and the driver's callback.
//!
//! ```text
//!   start   active_invalidate_ranges += 1
//!           an interval in the tree overlaps: invalidate_seq |= 1, call each: its number becomes invalidate_seq
//!   end     active_invalidate_ranges -= 1
//!           the last one, and odd: invalidate_seq += 1, deferred insertions, wake
//! ```
//!
//! A driver has an interval for each page, and a claim compares the numbers of those it claims. What an invalidation that runs has found in the tree cannot change before its
//! end: insertions are deferred while `invalidate_seq` is odd.

use pagelease_protocol::Cause;

use super::design::{Call, Filter, Mutant};
use super::pc::Pc;
use super::scenario::{Op, Role};
use super::state::{CALLING, CURRENT, DEFERRED, DEVICES, DISTURBED, ODD, PAGES, REGISTERED, STALE, State, WINDOW};
use super::turn::Turn;

/// What an invalidation says of itself.
pub(super) struct Event {
    pub(super) cause: Cause,
    /// The pages, as bits.
    pub(super) pages: u8,
    /// The device that gets them, where one does.
    pub(super) owner: Option<usize>,
}

const ALL_PAGES: u8 = (1 << PAGES) - 1;
const ALL_CURRENT: u8 = CURRENT[0] | CURRENT[1];

impl Turn<'_> {
    /// The invalidation that the actor's present step belongs to.
    pub(super) fn event(&self) -> Event {
        let me = self.me();
        let restore = match self.kernel.design.call {
            Call::Range => Cause::Exclusive,
            Call::Single => Cause::Clear,
        };
        let (cause, pages, owner) = match if me.fault == Pc::None { me.pc } else { me.fault } {
            Pc::RestoreStart => (restore, 1 << self.faulting().0, None),
            Pc::CowStart => (Cause::Clear, 1 << self.faulting().0, None),
            Pc::SplitStart => (Cause::Clear, ALL_PAGES, None),
            Pc::ExclusiveStart => (Cause::Exclusive, 1 << self.at_page(), Some(self.device())),
            Pc::ZapStart if self.op() == Op::Munmap => (Cause::Unmap, ALL_PAGES, None),
            Pc::ZapStart => (Cause::Clear, ALL_PAGES, None),
            Pc::ProtectStart => (Cause::ProtectionVma, ALL_PAGES, None),
            Pc::MoveStart => (Cause::Unmap, ALL_PAGES, None),
            Pc::ForkStart => (Cause::ProtectionPage, ALL_PAGES, None),
            Pc::ReclaimStart => {
                let Op::Reclaim(page) = self.op() else { unreachable!("only reclaim does this") };
                (Cause::Clear, 1 << page, None)
            }
            other => unreachable!("{} notifies nobody", other.name()),
        };
        Event { cause, pages, owner }
    }

    /// `mmu_notifier_invalidate_range_start`: one step to begin, one for each driver called. True when all have been.
    pub(super) fn notify(&mut self) -> Option<bool> {
        if self.calling() {
            return self.call_next();
        }
        self.state.active += 1;
        let silent = self.kernel.design.mutant == Mutant::ProtectSilently && self.me().pc == Pc::ProtectStart;
        let mut calls = 0;
        for (index, device) in self.state.devices.iter().enumerate() {
            if device.flags & REGISTERED != 0 && !silent {
                calls |= 1 << index;
            }
        }
        if calls == 0 {
            return Some(true);
        }
        self.state.flags |= ODD;
        self.me_mut().calls = CALLING | calls;
        Some(false)
    }

    /// The driver that is called back by this step: the `choice`-th of those left.
    pub(super) fn called(&self) -> Option<usize> {
        let mut left = (0..DEVICES).filter(|device| self.me().calls & 1 << device != 0);
        left.nth(self.choice.into())
    }

    /// Calls one more driver back, in any order: the kernel's is that of its tree. It waits for the driver's mutex, and for the device's operation in flight.
    fn call_next(&mut self) -> Option<bool> {
        let calls = self.me().calls & !CALLING;
        let device = self.called()?;
        let event = self.event();
        let design = &self.kernel.design;
        if self.state.devices[device].mutex != 0 {
            return None;
        }
        let maps = |page: usize| event.pages & 1 << page != 0 && self.state.mapped(device, page).is_some();
        let filtered = self.filtered(device, &event);
        let unmaps = !(filtered && design.mutant == Mutant::FilterKeepsMapping);
        if unmaps
            && design.mutant != Mutant::NoDrain
            && (0..PAGES).any(|page| maps(page) && self.works_on(device, page))
        {
            return None;
        }
        let mapped = (0..PAGES).any(maps);
        let own_claim = self.raised_by_claim_of(device);
        let in_window = self.state.devices[device].flags & WINDOW != 0 && event.pages & self.claimed_by(device) != 0;
        if !mapped && (!in_window || own_claim) {
            self.spurious += 1;
        }
        let claimed = self.claimed_by(device);
        let flags = &mut self.state.devices[device].flags;
        if in_window && !own_claim {
            *flags |= DISTURBED;
        }
        for page in (0..PAGES).filter(|&page| event.pages & 1 << page != 0) {
            if !filtered && *flags & CURRENT[page] == 0 {
                *flags |= CURRENT[page];
                if in_window && claimed & 1 << page != 0 {
                    *flags |= STALE;
                }
            }
        }
        if unmaps {
            for page in (0..PAGES).filter(|&page| event.pages & 1 << page != 0) {
                self.state.devices[device].table[page] = 0;
            }
        }
        let left = calls & !(1 << device);
        self.me_mut().calls = if left == 0 { 0 } else { CALLING | left };
        Some(left == 0)
    }

    /// The pages that the present operation of `device` claims, as bits.
    fn claimed_by(&self, device: usize) -> u8 {
        let programs = self.kernel.scenario.programs.iter().enumerate();
        let mut devices =
            programs.filter(|(_, program)| matches!(program.role, Role::Device(own) if usize::from(own) == device));
        match devices.next().and_then(|(actor, _)| self.kernel.op(&self.state, actor)) {
            Some(Op::DeviceAdd(page) | Op::Claim(page) | Op::ClaimTouching(page)) => 1 << page,
            Some(Op::ClaimBoth) => ALL_PAGES,
            _ => 0,
        }
    }

    pub(super) fn works_on(&self, device: usize, page: usize) -> bool {
        let frame = self.state.mapped(device, page);
        self.state.actors.iter().zip(self.kernel.scenario.programs).any(|(actor, program)| {
            matches!(program.role, Role::Device(own) | Role::Engine(own) if usize::from(own) == device)
                && actor.pc == Pc::DeviceStore
                && frame == Some(actor.frame)
        })
    }

    /// Whether the actor steps for `device`'s own claim: not for a touch that its thread makes besides.
    fn raised_by_claim_of(&self, device: usize) -> bool {
        let claims = matches!(self.op(), Op::DeviceAdd(_) | Op::Claim(_) | Op::ClaimBoth | Op::ClaimTouching(_));
        self.raised_by_thread_of(device) && claims && !matches!(self.me().pc, Pc::OwnTouch | Pc::Eager)
    }

    fn raised_by_thread_of(&self, device: usize) -> bool {
        matches!(self.role(), Role::Device(own) if usize::from(own) == device)
    }

    pub(super) fn filtered(&self, device: usize, event: &Event) -> bool {
        match self.kernel.design.filter {
            Filter::None => false,
            Filter::Owner => event.cause == Cause::Exclusive && event.owner == Some(device),
            Filter::Thread => self.raised_by_thread_of(device),
            Filter::Token => self.raised_by_claim_of(device),
        }
    }

    /// `mmu_notifier_invalidate_range_end`.
    pub(super) fn notify_end(&mut self) {
        let state = &mut self.state;
        assert!(state.active != 0, "an invalidation ends that never began");
        state.active -= 1;
        if state.active == 0 && state.has(ODD) {
            state.flags &= !ODD;
            for device in &mut state.devices {
                device.flags &= !ALL_CURRENT;
                if device.flags & DEFERRED != 0 {
                    device.flags = device.flags & !DEFERRED | REGISTERED;
                }
            }
        }
    }

    /// `mmu_interval_notifier_insert`.
    pub(super) fn insert(&mut self) {
        let device = self.device();
        let state = &mut self.state;
        let flags = &mut state.devices[device].flags;
        assert!(*flags & (REGISTERED | DEFERRED) == 0, "inserted twice");
        *flags |= match (state.active, state.flags & ODD) {
            (0, _) => REGISTERED,
            // It joins the invalidations that run: they are as good as of it.
            (_, 0) => {
                state.flags |= ODD;
                REGISTERED | ALL_CURRENT
            }
            (_, _) => DEFERRED | ALL_CURRENT,
        };
    }

    /// `mmu_interval_read_begin`: waits while an invalidation of the interval runs.
    pub(super) fn read_begin(&mut self) -> Option<()> {
        let device = self.device();
        let running = (0..PAGES).any(|page| {
            self.claimed_by(device) & 1 << page != 0 && self.state.devices[device].flags & CURRENT[page] != 0
        });
        let flags = &mut self.state.devices[device].flags;
        if running && self.kernel.design.mutant != Mutant::NoCollisionWait {
            return None;
        }
        *flags = *flags & !(STALE | DISTURBED) | WINDOW;
        Some(())
    }
}

/// Whether device `device` has its interval notifier, in the tree or about to be.
pub(super) fn inserted(state: &State, device: usize) -> bool {
    assert!(device < DEVICES);
    state.devices[device].flags & (REGISTERED | DEFERRED) != 0
}
