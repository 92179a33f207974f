//! The kernel model: Linux's device-exclusive memory, and the designs that were argued over.
//!
//! One address space and, for fork, a second; two pages, which may be one huge mapping; page-table entries, protection,
//! folio locks, mmap lock; `mmu_interval_notifier` as mm/mmu_notifier.c has it; up to two devices, each with a driver (its
//! mutex, its page table, its retry loop) and atomic operations that are a load, then a store. The actors are programs of
//! atomic steps under the names of the kernel's functions. Sources: mm/rmap.c, mm/memory.c, mm/mmu_notifier.c,
//! mm/huge_memory.c, lib/test_hmm.c, drivers/gpu/drm/nouveau/nouveau_svm.c of Linux 5.15, 6.12 and 7.3.
//!
//! | file | what it holds |
//! |---|---|
//! | [`design`] | the designs: values that switch steps |
//! | [`scenario`] | the scenarios: what the actors do |
//! | [`state`] | the state, 64 bytes |
//! | [`pc`] | every step and its name |
//! | `turn` | one step of one actor: locks, accesses |
//! | `claim` | the driver's claim and the device's operation |
//! | `fault` | the CPU's fault |
//! | `events` | zap, mprotect, mremap, fork, GUP, reclaim |
//! | `notifier` | invalidations, and the driver's callback |
//! | [`symmetry`] | what can be swapped |
//! | `show` | a state and a step for a reader |
//!
//! What it leaves out:
//!
//! - Memory ordering: each step is under a lock or a single atomic access in the kernel. The TLB: an entry is cleared and
//!   flushed in one step.
//! - Time. A driver's own limit on its retries (nouveau: one second) turns a livelock into a failed claim; it is left out so
//!   that the livelock shows.
//! - `folio_lock_or_retry` gives the mmap lock up while it waits for the first time; here a fault keeps it, as the kernel's
//!   second try does, so munmap may wait behind a fault that waits for a folio. Per-VMA locks.
//! - `mmu_interval_read_begin` takes its number before it waits for an invalidation to end; here after, which makes a few
//!   retries fewer.
//! - A write to a read-only page that nobody shares reuses it; the kernel copies it where it cannot have the folio lock.
//! - In 2021 the claim of the head of a huge page made every page of it exclusive; here it takes the one.
//! - Inserting an address space's very first interval notifier takes the mmap lock for writing, which a late driver would do
//!   under the folio lock: a deadlock more than `late` shows.
//! - A driver has a second notifier, as nouveau does, that unmaps the device whatever the filter leaves uncounted. nvidia-uvm
//!   does not unmap for what names its own owner, and relies on GUP having restored the page first.

mod claim;
pub mod design;
mod events;
mod fault;
mod notifier;
pub mod pc;
pub mod scenario;
mod show;
pub mod state;
pub mod symmetry;
mod turn;

use stateright::{Model, Property as Always};

use crate::property::{Property, PropertySet};
use crate::subject::{Broken, Cell, Subject};

pub use design::Design;
pub use scenario::Scenario;
pub use state::State;

use design::{Begin, Fork, Register};
use pc::Pc;
use scenario::{Op, Role};
use state::{HUGE, Prot, Pte, REGISTERED};
use turn::Turn;

/// One design in one scenario.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The design.
    pub design: Design,
    /// The scenario.
    pub scenario: Scenario,
}

/// A step: of this actor, its `choice`-th possibility.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub struct Action {
    /// The actor's index.
    pub actor: u8,
    /// 0, unless the step has two possibilities.
    pub choice: u8,
}

/// The most possibilities that one step has.
const CHOICES: u8 = 2;

impl Kernel {
    fn op(&self, state: &State, actor: usize) -> Option<Op> {
        self.scenario.programs.get(actor)?.ops.get(usize::from(state.actors[actor].op)).copied()
    }

    /// The first step of the operation that is now the actor's.
    fn first_step(&self, state: &State, actor: usize) -> Pc {
        match self.op(state, actor) {
            None => Pc::Done,
            Some(Op::Load(_) | Op::Add(_)) => Pc::Access,
            Some(Op::DeviceAdd(_) | Op::Work(_)) => Pc::DeviceLoad,
            Some(Op::Claim(_) | Op::ClaimBoth | Op::ClaimTouching(_)) => self.first_of_claim(),
            Some(Op::Munmap | Op::DontNeed) => Pc::ZapMmap,
            Some(Op::Protect) => Pc::ProtectMmap,
            Some(Op::Move) => Pc::MoveMmap,
            Some(Op::Fork) => Pc::ForkMmap,
            Some(Op::Pin(_)) => Pc::PinWalk,
            Some(Op::Split) => Pc::SplitStart,
            Some(Op::Reclaim(_)) => Pc::ReclaimLock,
        }
    }

    fn first_of_claim(&self) -> Pc {
        if self.design.register == Register::Early && self.design.begin == Begin::First {
            Pc::ReadBegin
        } else {
            Pc::ClaimMmap
        }
    }

    /// Whether this scenario is about the claiming thread's own touch.
    fn own_fault(&self) -> bool {
        self.scenario.programs.iter().any(|program| program.ops.iter().any(|op| matches!(op, Op::ClaimTouching(_))))
    }

    /// Whether a third party pins a page here.
    fn pins(&self) -> bool {
        self.scenario.programs.iter().any(|program| program.ops.iter().any(|op| matches!(op, Op::Pin(_))))
    }

    fn turn(&self, state: &State, action: Action) -> Option<(State, u32)> {
        let turn = Turn { kernel: self, state: *state, actor: action.actor.into(), choice: action.choice, spurious: 0 };
        turn.take()
    }

    fn steps_from(&self, state: &State) -> impl Iterator<Item = (Action, State)> {
        #[expect(clippy::cast_possible_truncation, reason = "five actors")]
        let actors = 0..self.scenario.programs.len() as u8;
        let actions = actors.flat_map(|actor| (0..CHOICES).map(move |choice| Action { actor, choice }));
        actions.filter_map(|action| self.turn(state, action).map(|(next, _)| (action, next)))
    }
}

impl Model for Kernel {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut state = State::blank();
        state.symmetry = self.scenario.symmetry as u8;
        for (page, &pte) in self.scenario.pages.iter().enumerate() {
            state.set_pte(0, page, pte);
            if page == 0 || pte != Pte::None {
                state.prot[page] = Prot::Write;
            }
        }
        if self.scenario.huge {
            state.flags |= HUGE;
        }
        for (index, program) in self.scenario.programs.iter().enumerate() {
            if let (Role::Device(device), Register::Early) = (program.role, self.design.register) {
                state.devices[usize::from(device)].flags = REGISTERED;
            }
            state.actors[index].pc =
                if program.role == Role::Child { Pc::Unborn } else { self.first_step(&state, index) };
        }
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.extend(self.steps_from(state).map(|(action, _)| action));
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        self.turn(state, action).map(|(next, _)| next)
    }

    fn next_steps(&self, state: &State) -> Vec<(Action, State)> {
        self.steps_from(state).collect()
    }

    fn properties(&self) -> Vec<Always<Self>> {
        crate::subject::always_properties()
    }

    fn format_action(&self, action: &Action) -> String {
        self.scenario.programs[usize::from(action.actor)].name.to_owned()
    }

    fn format_step(&self, last: &State, action: Action) -> Option<String> {
        let next = self.next_state(last, action)?;
        let table: Vec<String> =
            self.cells(&next).iter().map(|cell| format!("{} {}: {}", cell.group, cell.name, cell.value)).collect();
        Some(format!("{} {}\n{}", self.step(last, action), self.detail(last, action), table.join("\n")))
    }
}

impl Subject for Kernel {
    fn actors(&self) -> Vec<String> {
        self.scenario.programs.iter().map(|program| program.name.to_owned()).collect()
    }

    fn actor(&self, action: Action) -> usize {
        action.actor.into()
    }

    fn broken(&self, state: &State) -> PropertySet {
        PropertySet::from_bits(state.broken.into())
    }

    fn owed(&self, state: &State, actor: usize) -> PropertySet {
        let me = state.actors[actor];
        let Some(op) = self.op(state, actor) else { return PropertySet::NONE };
        let in_claim = !matches!(me.pc, Pc::DeviceLoad | Pc::DeviceStore | Pc::Unmap | Pc::Eager);
        let in_fault = if me.fault == Pc::None { PropertySet::NONE } else { Property::FaultEnds.set() };
        match op {
            _ if matches!(me.pc, Pc::Unborn | Pc::Done) => PropertySet::NONE,
            Op::Split | Op::Reclaim(_) | Op::Work(_) => PropertySet::NONE,
            // There, the claiming thread's touch is what is asked about, and nothing else.
            _ if self.own_fault() && me.pc == Pc::OwnTouch => Property::OwnFault.set(),
            _ if self.own_fault() => PropertySet::NONE,
            Op::Load(_) | Op::Add(_) | Op::Pin(_) => in_fault.with(Property::Progress.set()),
            Op::Claim(_) if self.scenario.repeat => Property::RepeatEnds.set(),
            Op::Claim(_) | Op::ClaimBoth | Op::ClaimTouching(_) => Property::ClaimEnds.set(),
            Op::DeviceAdd(_) if in_claim => Property::ClaimEnds.set().with(Property::Progress.set()),
            Op::DeviceAdd(_) => Property::Progress.set(),
            Op::Munmap | Op::DontNeed | Op::Protect | Op::Move => Property::UnmapEnds.set(),
            Op::Fork => Property::ForkEnds.set(),
        }
    }

    fn spurious(&self, before: &State, action: Action) -> u32 {
        self.turn(before, action).map_or(0, |(_, spurious)| spurious)
    }

    fn step(&self, before: &State, action: Action) -> &'static str {
        self.step_name(before, action)
    }

    fn detail(&self, before: &State, action: Action) -> String {
        self.step_detail(before, action)
    }

    fn steps(&self) -> Vec<&'static str> {
        let design = &self.design;
        let absent = |pc: Pc| match pc {
            Pc::None | Pc::Done => true,
            Pc::Insert => matches!(design.register, Register::Early | Register::Never),
            Pc::ReadBegin | Pc::ReadRetry => {
                !matches!(design.register, Register::Early | Register::BeforeUnlockChecked)
            }
            Pc::Unmap => design.register != Register::Never,
            Pc::UnlockEarly | Pc::FolioUnlock => design.register == Register::Never,
            Pc::Eager => !design.eager,
            Pc::ForkRestore => design.fork != Fork::RestoreFirst,
            _ => false,
        };
        let mut names: Vec<_> = Pc::ALL.iter().copied().filter(|&pc| !absent(pc)).map(|pc| self.name_of(pc)).collect();
        if design.register != Register::Never {
            names.push(show::CALLBACK);
        }
        names.dedup();
        names
    }

    fn cells(&self, state: &State) -> Vec<Cell> {
        self.show(state)
    }

    fn tables(&self, history: &[State]) -> Vec<Vec<Cell>> {
        self.show_history(history)
    }

    fn explain(&self, broken: &Broken<'_, Self>) -> String {
        self.say(broken)
    }
}

impl crate::case::Named for Kernel {
    fn names(&self) -> (&'static str, &'static str) {
        (self.design.name, self.scenario.name)
    }

    fn what(&self) -> &'static str {
        self.scenario.what
    }

    fn judged(&self) -> PropertySet {
        PropertySet::ALL
    }

    fn representative(state: &State) -> State {
        symmetry::representative(state)
    }

    fn needs(&self, property: Property) -> Option<&'static str> {
        let step = match property {
            Property::Atomicity
            | Property::Count
            | Property::Zapped
            | Property::Protected
            | Property::Snapshot
            | Property::Pins => Pc::DeviceStore,
            Property::ForkSucceeds => Pc::ForkCopy,
            Property::SelfRetry => Pc::ReadRetry,
            Property::ClaimSucceeds => Pc::ClaimLock,
            _ => return None,
        };
        Some(self.name_of(step))
    }
}
