//! One step of one actor: what every program needs. `claim`, `fault`, `events` and `notifier` hold the steps themselves.
//!
//! A step returns `None` when the actor has to wait: for a lock, a notifier, an operation in flight. A step that only
//! releases something is made together with the one before it: it can only enable others (Lipton's reduction), so no
//! history is lost. Locks are taken one a step.

use crate::property::{Property, PropertySet};

use super::Kernel;
use super::design::Knows;
use super::pc::Pc;
use super::scenario::{Op, Role};
use super::state::{
    Actor, CALLING, CHILD, COPIES, Frame, HUGE, NO_CHILD, NOTHING, PAGES, Prot, Pte, QUEUED, State, WRITER,
};

/// In [`Actor::x`] of a CPU thread: it has taken a fault for its access.
const FAULTED: u8 = 1;

/// One step in the making: `state` is what comes of it.
pub(super) struct Turn<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) state: State,
    /// Who steps.
    pub(super) actor: usize,
    /// Which of its possibilities: 0, unless a step has two.
    pub(super) choice: u8,
    /// How many spurious invalidations the step delivers.
    pub(super) spurious: u32,
}

impl Turn<'_> {
    /// Takes the step. `None`: it has to wait.
    pub(super) fn take(mut self) -> Option<(State, u32)> {
        self.state.broken = 0;
        match self.me().fault {
            Pc::None => self.step(),
            fault => self.fault_step(fault),
        }?;
        self.settle();
        Some((self.state, self.spurious))
    }

    fn step(&mut self) -> Option<()> {
        let pc = self.me().pc;
        match pc {
            Pc::None | Pc::Done => None,
            Pc::Unborn => {
                self.only()?;
                if !self.state.has(CHILD) {
                    return None;
                }
                self.begin();
                Some(())
            }
            Pc::Access => self.access(),
            Pc::DeviceLoad
            | Pc::DeviceStore
            | Pc::Insert
            | Pc::ReadBegin
            | Pc::ClaimMmap
            | Pc::SplitStart
            | Pc::SplitPmd
            | Pc::SplitEnd
            | Pc::Gup
            | Pc::ClaimLock
            | Pc::ExclusiveStart
            | Pc::ExclusivePte
            | Pc::ExclusiveEnd
            | Pc::OwnTouch
            | Pc::UnlockEarly
            | Pc::MutexLock
            | Pc::ReadRetry
            | Pc::Map
            | Pc::FolioUnlock
            | Pc::Unmap
            | Pc::Eager => self.claim_step(pc),
            _ => self.event_step(pc),
        }
    }

    /// The step has one possibility; a call back of several drivers begins with any.
    pub(super) fn only(&self) -> Option<()> {
        (self.choice == 0 || self.calling()).then_some(())
    }

    pub(super) fn me(&self) -> Actor {
        self.state.actors[self.actor]
    }

    pub(super) fn me_mut(&mut self) -> &mut Actor {
        &mut self.state.actors[self.actor]
    }

    pub(super) fn op(&self) -> Op {
        self.kernel.op(&self.state, self.actor).expect("an actor that steps has an operation")
    }

    pub(super) fn role(&self) -> Role {
        self.kernel.scenario.programs[self.actor].role
    }

    /// The device whose driver steps.
    pub(super) fn device(&self) -> usize {
        match self.role() {
            Role::Device(device) | Role::Engine(device) => device.into(),
            Role::Thread | Role::Child => unreachable!("only a device's actor does this"),
        }
    }

    /// The address space of the actor.
    pub(super) fn mm(&self) -> usize {
        usize::from(self.role() == Role::Child)
    }

    pub(super) fn goto(&mut self, pc: Pc) {
        self.me_mut().pc = pc;
    }

    /// The operation is over: the next one.
    pub(super) fn next_op(&mut self) {
        self.me_mut().op += 1;
        self.begin();
    }

    /// Goes to the first step of the operation that is now the actor's.
    pub(super) fn begin(&mut self) {
        let first = self.kernel.first_step(&self.state, self.actor);
        let me = self.me_mut();
        (me.pc, me.frame, me.fault_frame, me.x) = (first, NOTHING, NOTHING, 0);
    }

    pub(super) fn break_property(&mut self, property: Property) {
        let property = match property {
            Property::Atomicity if self.kernel.own_fault() => Property::OwnFault,
            // A write through a pin that a claim does not see loses increments: the same defect.
            Property::Count if self.kernel.pins() => Property::Pins,
            other => other,
        };
        let broken = PropertySet::from_bits(self.state.broken.into()).with(property.set());
        self.state.broken = u16::try_from(broken.bits()).expect("what a step breaks is among the first sixteen");
    }

    /// The end of every step: a child that will never be; and, when all is done, the books.
    fn settle(&mut self) {
        if self.state.has(NO_CHILD) {
            for (actor, program) in self.state.actors.iter_mut().zip(self.kernel.scenario.programs) {
                if program.role == Role::Child {
                    actor.pc = Pc::Done;
                }
            }
        }
        if self.state.actors.iter().all(|actor| actor.pc == Pc::Done) {
            for page in 0..PAGES {
                let frame = self.state.pte(0, page).frame();
                if frame.is_some_and(|frame| self.state.value(frame) != self.state.done((frame / COPIES).into())) {
                    self.break_property(Property::Count);
                }
            }
        }
    }

    // Memory.

    /// The frame of the folio's first page: what its lock is kept under.
    pub(super) fn folio(&self, frame: Frame) -> Frame {
        if self.kernel.scenario.huge && frame == COPIES { 0 } else { frame }
    }

    pub(super) fn locked(&self, frame: Frame) -> bool {
        self.state.lock(self.folio(frame)) != 0
    }

    pub(super) fn locked_by_me(&self, frame: Frame) -> bool {
        usize::from(self.state.lock(self.folio(frame))) == self.actor + 1
    }

    /// Waits for the folio lock, and takes it.
    pub(super) fn lock(&mut self, frame: Frame) -> Option<()> {
        if self.locked(frame) {
            return None;
        }
        self.state.set_lock(self.folio(frame), self.tag());
        Some(())
    }

    pub(super) fn unlock(&mut self, frame: Frame) {
        assert!(self.locked_by_me(frame), "{} unlocks a folio that it has not locked", self.me().pc.name());
        self.state.set_lock(self.folio(frame), 0);
    }

    /// The actor as a holder: its index and one.
    #[expect(clippy::cast_possible_truncation, reason = "five actors")]
    pub(super) fn tag(&self) -> u8 {
        self.actor as u8 + 1
    }

    pub(super) fn mmap_read_lock(&mut self) -> Option<()> {
        // A writer that waits goes before readers that come after it.
        if self.state.mmap & QUEUED != 0 {
            return None;
        }
        self.state.mmap += 1;
        Some(())
    }

    pub(super) fn mmap_read_unlock(&mut self) {
        assert!(self.state.mmap != WRITER && self.state.mmap & !QUEUED != 0, "nobody reads under the mmap lock");
        self.state.mmap -= 1;
    }

    /// Takes the mmap lock as a writer, or queues for it. True: it has it.
    pub(super) fn mmap_write_lock(&mut self) -> Option<bool> {
        match self.state.mmap {
            0 | QUEUED => self.state.mmap = WRITER,
            readers if readers & QUEUED == 0 => {
                self.state.mmap |= QUEUED;
                return Some(false);
            }
            _ => return None,
        }
        Some(true)
    }

    pub(super) fn mmap_write_unlock(&mut self) {
        assert!(self.state.mmap == WRITER, "nobody writes under the mmap lock");
        self.state.mmap = 0;
    }

    /// A frame for a new page at `page`: one that nothing refers to.
    pub(super) fn allocate(&mut self, page: usize, value: u8) -> Frame {
        #[expect(clippy::cast_possible_truncation, reason = "two pages")]
        let first = page as u8 * COPIES;
        let frame = (first..first + COPIES)
            .find(|&frame| !self.referred(frame))
            .expect("three frames a page suffice: the original, a copy, and one that a stale reader keeps");
        self.state.set_value(frame, value);
        frame
    }

    fn referred(&self, frame: Frame) -> bool {
        let state = &self.state;
        (0..PAGES).any(|page| {
            (0..2).any(|mm| state.pte(mm, page).frame() == Some(frame))
                || (0..state.devices.len()).any(|device| state.mapped(device, page) == Some(frame))
        }) || state.actors.iter().any(|actor| actor.frame == frame || actor.fault_frame == frame)
            || state.lock(frame) != 0
    }

    /// Whether a third party has the frame pinned.
    pub(super) fn pinned(&self, frame: Frame) -> bool {
        self.state.actors.iter().any(|actor| actor.pc == Pc::PinWrite && actor.frame == frame)
    }

    /// One increment of `frame` in one step.
    pub(super) fn add(&mut self, frame: Frame) {
        self.state.set_value(frame, self.state.value(frame) + 1);
        self.count(frame);
    }

    /// An increment has been made.
    pub(super) fn count(&mut self, frame: Frame) {
        let page = usize::from(frame / COPIES);
        self.state.set_done(page, self.state.done(page) + 1);
    }

    /// Whether some device is between the halves of its operation on `frame`.
    pub(super) fn in_flight(&self, frame: Frame) -> bool {
        self.state.actors.iter().any(|actor| actor.pc == Pc::DeviceStore && actor.frame == frame)
    }

    /// An entry is gone for good: what was counted for its page goes with it.
    pub(super) fn forget(&mut self, pte: Pte) {
        if let Some(frame) = pte.frame() {
            self.state.set_done((frame / COPIES).into(), 0);
        }
    }

    // The CPU's accesses.

    /// Whether the entry serves an access at once, and with which frame (`None`: the zero page).
    fn serves(pte: Pte, write: bool) -> Option<Option<Frame>> {
        match pte {
            Pte::Rw(frame) => Some(Some(frame)),
            Pte::Ro(frame) if !write => Some(Some(frame)),
            Pte::Zero if !write => Some(None),
            _ => None,
        }
    }

    fn access(&mut self) -> Option<()> {
        self.only()?;
        let (page, write) = match self.op() {
            Op::Load(page) => (page, false),
            Op::Add(page) => (page, true),
            other => unreachable!("{other:?} is no CPU access"),
        };
        if self.touch(page.into(), write) {
            self.next_op();
        }
        Some(())
    }

    /// An access of the actor: true when it is made (or refused with a signal), else a fault has begun.
    pub(super) fn touch(&mut self, page: usize, write: bool) -> bool {
        let mm = self.mm();
        if let Some(frame) = Self::serves(self.state.pte(mm, page), write) {
            if let Some(frame) = frame {
                if self.in_flight(frame) {
                    self.break_property(Property::Atomicity);
                }
                if write {
                    self.add(frame);
                }
            }
            return true;
        }
        if self.refused(page, write) {
            return true;
        }
        let me = self.me_mut();
        me.fault = Pc::FaultLock;
        if me.pc == Pc::Access {
            me.x = FAULTED;
        }
        false
    }

    /// Whether the mapping itself refuses the access: a real segmentation fault.
    pub(super) fn refused(&self, page: usize, write: bool) -> bool {
        match self.state.prot[page] {
            // The child's mapping is a copy from before.
            _ if self.mm() != 0 => false,
            Prot::Gone => true,
            Prot::Closing | Prot::Read => write,
            Prot::Write => false,
        }
    }

    /// The page of the operation, and whether it writes, for the fault that it is in.
    pub(super) fn faulting(&self) -> (usize, bool) {
        match (self.me().pc, self.op()) {
            (Pc::Gup, _) => (self.at_page(), true),
            (_, Op::Load(page)) => (page.into(), false),
            (
                _,
                Op::Add(page)
                | Op::DeviceAdd(page)
                | Op::Work(page)
                | Op::Claim(page)
                | Op::ClaimTouching(page)
                | Op::Pin(page),
            ) => (page.into(), true),
            // Restores before zap, write-protect or fork: the page that the walk is at.
            (_, _) => (usize::from(self.me().x), true),
        }
    }

    /// The page that a claim is at.
    pub(super) fn at_page(&self) -> usize {
        match self.op() {
            Op::ClaimBoth => usize::from(self.me().x),
            Op::DeviceAdd(page) | Op::Claim(page) | Op::ClaimTouching(page) => page.into(),
            other => unreachable!("{other:?} claims nothing"),
        }
    }

    /// Whether a CPU has been given `page` by a fault, and has not made its access yet.
    pub(super) fn awaits_access(&self, page: usize) -> bool {
        (0..self.kernel.scenario.programs.len()).any(|actor| {
            let me = self.state.actors[actor];
            let (wanted, write) = match (me.pc, self.kernel.op(&self.state, actor)) {
                (Pc::Access, Some(Op::Load(page))) => (page, false),
                (Pc::Access, Some(Op::Add(page))) => (page, true),
                _ => return false,
            };
            let faulted = me.x == FAULTED && me.fault == Pc::None;
            usize::from(wanted) == page && faulted && Self::serves(self.state.pte(0, page), write).is_some()
        })
    }

    /// Whether a device has been given `frame` by a claim, and has not made its operation yet.
    pub(super) fn awaits_operation(&self, frame: Frame) -> bool {
        self.state.actors.iter().zip(self.kernel.scenario.programs).any(|(actor, program)| {
            let Role::Device(device) = program.role else { return false };
            let Some(Op::DeviceAdd(page)) = program.ops.get(usize::from(actor.op)).copied() else { return false };
            matches!(actor.pc, Pc::DeviceLoad | Pc::DeviceStore)
                && self.state.mapped(device.into(), page.into()) == Some(frame)
        })
    }

    /// Whether the claim's own walk takes an exclusive entry as it is.
    pub(super) fn claim_knows(&self) -> bool {
        self.kernel.design.knows != Knows::Nobody
    }

    /// Whether the actor is calling drivers' callbacks.
    pub(super) fn calling(&self) -> bool {
        self.me().calls & CALLING != 0
    }

    /// Whether the mapping is one huge entry.
    pub(super) fn huge(&self) -> bool {
        self.state.has(HUGE)
    }
}
