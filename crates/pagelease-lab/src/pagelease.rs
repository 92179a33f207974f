//! The shipped protocol: the engine's steps, on the very transition functions of `pagelease-protocol`.
//!
//! An actor's step is what the engine does between two moments at which another thread could make a difference: one
//! compare-and-swap of a page word (with the load before it: one that fails merely looks again), one change of a record, one
//! call of the backend, one access. Steps have the names of the engine's functions. Where a load and what is done by it
//! are apart, and the gap matters, they are two steps: a claim that finds a page in its way and then goes to sleep; a
//! touch that finds its own thread's claim and then borrows its `busy`; the end of a wait and the waking of who waited.
//!
//! The device is the software device: its page table is the page word, which it checks after it has published what it
//! works on. An operation is a load and a store.
//!
//! What is left out:
//!
//! - Time: spinning, the drain limit. The hold limit may pass at any moment, or never, as the scenario says. Minimum residency
//!   is as long as it takes: a claim leaves a page that a touch has brought back alone until every thread that waited for it
//!   has made its access. That is what the engine's times are chosen for, and no clock can promise it; so it is in force only
//!   in the endless scenarios, which ask whether anybody can be starved. In all others a claim may come first, and nothing but
//!   progress depends on it.
//! - The neighbours that a touch in sequence brings along, the deputy, the bound of the list of parked touches, failures of
//!   the kernel.
//! - Weak memory: a drain's `membarrier` makes the worker's store and load as good as sequentially consistent.
//! - fork: a region is not inherited, so a child sees nothing of it, and `snapshot`, `fork-ok` and `fork-ends` have nothing to
//!   be asked of. `protected`: a region's protection is its own.
//! - Pins: input and output that the kernel began before the claim is not stopped, and the scenario `pin` shows it.
//!
//! | file | what it has |
//! |---|---|
//! | `design` | configurations, and the rules that can be broken |
//! | `scenario` | who does what |
//! | `state` | the state, packed |
//! | `turn` | one step: whose it is, and what follows a change of a page word |
//! | `notify` | who hears of an invalidation, and what it waits for |
//! | `actor` | accesses, traps, signals, limits that pass, the monitor's watch |
//! | `claim`, `touch`, `lease`, `restore` | the steps of the engine's files of these names, and the end of a region |
//! | `device` | an operation of the software device |
//! | `show` | the state and the steps, in words |
//! | `footprint`, `schedule` | a history as the real engine can take it |

use stateright::Model;

use crate::case::Named;
use crate::property::{Property, PropertySet};
use crate::subject::{Broken, Cell, Subject};

mod actor;
mod claim;
pub(crate) mod design;
mod device;
mod footprint;
mod lease;
mod notify;
mod restore;
mod scenario;
mod schedule;
mod show;
mod state;
mod touch;
mod turn;

pub use design::{Design, Faults, Mutant, Policy};
pub use scenario::{Actor, Op, Role, SCENARIOS, Scenario};
pub use state::{Globals, Lane, Page, Record, State};

use state::{Fp, Handler, Pc, Trap};
use turn::{Turn, broke};

/// The model of a design in a scenario.
#[derive(Copy, Clone, Debug)]
pub struct Pagelease {
    /// The design.
    pub design: Design,
    /// Who does what.
    pub scenario: &'static Scenario,
}

/// One step of one actor.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub struct Action {
    /// The actor, by its place in the scenario.
    pub actor: u8,
    /// What kind of step.
    pub kind: Kind,
}

/// What kind of step an actor takes.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Hash)]
pub enum Kind {
    /// Its next one.
    Step,
    /// Its claim is interrupted by a signal.
    Signal,
    /// The hold limit passes while it sleeps.
    Expire,
    /// The monitor reads what this actor's trap has sent.
    Message(u8),
    /// The monitor finds that the hold limit has passed for a parked touch of this page.
    Overdue(u8),
}

impl Pagelease {
    /// The model.
    #[must_use]
    pub const fn new(design: Design, scenario: &'static Scenario) -> Self {
        Self { design, scenario }
    }

    fn op_of(&self, state: &State, actor: usize) -> Option<Op> {
        self.scenario.actors[actor].ops.get(usize::from(state.lanes[actor].op())).copied()
    }

    fn device_of(&self, actor: usize) -> Option<u8> {
        match self.scenario.actors[actor].role {
            Role::Device(device) => Some(device),
            Role::Thread | Role::Monitor => None,
        }
    }

    /// What an actor touches next, or has touched: in its signal handler, or by its program.
    fn access_of(&self, state: &State, actor: usize) -> Option<(u8, bool)> {
        if state.lanes[actor].handler() == Handler::Running as u8 {
            return self.scenario.actors[actor].signal.map(|page| (page, true));
        }
        match self.op_of(state, actor) {
            Some(Op::Read(page)) => Some((page, false)),
            Some(Op::Add(page)) => Some((page, true)),
            _ => None,
        }
    }

    /// Whether every program has ended, and nobody serves a fault.
    fn is_over(&self, state: &State) -> bool {
        (0..self.scenario.actors.len()).all(|actor| {
            let lane = state.lanes[actor];
            self.op_of(state, actor).is_none() && lane.pc() == Pc::Next && lane.f_pc() == Fp::None
        })
    }

    /// Whether nothing can go on, although something is owed.
    fn is_deadlocked(&self, state: &State) -> bool {
        if (0..self.scenario.actors.len()).all(|actor| self.owed(state, actor).is_empty()) {
            return false;
        }
        let mut actions = Vec::new();
        self.actions(state, &mut actions);
        actions.is_empty()
    }

    fn turn(&self, state: &State, action: Action) -> Turn<'_> {
        Turn::make(self, state, action).expect("an action of this state")
    }
}

impl Model for Pagelease {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        assert!(self.scenario.actors.len() <= state::ACTORS && usize::from(self.scenario.pages) <= state::PAGES);
        vec![State::new()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let mut offer = |actor: u8, kind: Kind| {
            let action = Action { actor, kind };
            if Turn::make(self, state, action).is_some() {
                actions.push(action);
            }
        };
        for (actor, who) in (0..).zip(self.scenario.actors) {
            offer(actor, Kind::Step);
            if who.signal.is_some() {
                offer(actor, Kind::Signal);
            }
            if self.scenario.limited {
                offer(actor, Kind::Expire);
            }
            if who.role == Role::Monitor {
                for (other, lane) in (0..).zip(&state.lanes) {
                    if lane.trapped() == Trap::Unread {
                        offer(actor, Kind::Message(other));
                    }
                }
                if self.scenario.limited {
                    (0..self.scenario.pages).for_each(|page| offer(actor, Kind::Overdue(page)));
                }
            }
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        Turn::make(self, state, action).map(|turn| turn.state)
    }

    /// For Stateright's own checkers and its explorer: what is broken by one step, and where nothing can go on.
    fn properties(&self) -> Vec<stateright::Property<Self>> {
        fn keeps(model: &Pagelease, state: &State, property: Property) -> bool {
            !model.broken(state).has(property)
        }
        vec![
            stateright::Property::always(Property::Atomicity.name(), |m: &Self, s| keeps(m, s, Property::Atomicity)),
            stateright::Property::always(Property::Count.name(), |m: &Self, s| keeps(m, s, Property::Count)),
            stateright::Property::always(Property::Zapped.name(), |m: &Self, s| keeps(m, s, Property::Zapped)),
            stateright::Property::always(Property::SelfRetry.name(), |m: &Self, s| keeps(m, s, Property::SelfRetry)),
            stateright::Property::always(Property::Pins.name(), |m: &Self, s| keeps(m, s, Property::Pins)),
            stateright::Property::always(DEADLOCK, |m: &Self, s| !m.is_deadlocked(s)),
        ]
    }
}

/// The name of the property that nobody waits for ever where nothing can go on.
pub const DEADLOCK: &str = "deadlock";

impl Subject for Pagelease {
    fn actors(&self) -> Vec<String> {
        self.scenario.actors.iter().map(|actor| actor.name.to_owned()).collect()
    }

    fn actor(&self, action: Action) -> usize {
        usize::from(action.actor)
    }

    fn broken(&self, state: &State) -> PropertySet {
        let mut broken = PropertySet::NONE;
        let last = state.globals.broken();
        for (bit, property) in [
            (broke::ATOMICITY, Property::Atomicity),
            (broke::ZAPPED, Property::Zapped),
            (broke::SELF_RETRY, Property::SelfRetry),
            (broke::PINS, Property::Pins),
        ] {
            if last & bit != 0 {
                broken = broken.with(property.set());
            }
        }
        if state.pages.iter().any(|page| page.value() != page.made()) && self.is_over(state) {
            broken = broken.with(Property::Count.set());
        }
        broken
    }

    fn owed(&self, state: &State, actor: usize) -> PropertySet {
        let lane = state.lanes[actor];
        let faulted = lane.trapped() != Trap::None || lane.f_pc() != Fp::None;
        let in_fault = if faulted { Property::FaultEnds.set() } else { PropertySet::NONE };
        let own = if lane.handler() == Handler::Running as u8 { Property::OwnFault.set() } else { PropertySet::NONE };
        let owed = own.with(match self.op_of(state, actor) {
            Some(Op::Read(_) | Op::Add(_)) => in_fault.with(Property::Progress.set()),
            Some(Op::Claim { again: true, .. }) => Property::RepeatEnds.set(),
            Some(Op::Claim { .. }) => Property::ClaimEnds.set().with(Property::Progress.set()),
            Some(Op::Operate(_) | Op::End(_)) => Property::Progress.set(),
            Some(Op::DropView | Op::DropRegion) => Property::UnmapEnds.set(),
            Some(Op::Pinned(_) | Op::Repeat | Op::Retry) | None => PropertySet::NONE,
        });
        // Of an endless scenario it is asked whether the others are starved, not whoever goes on for ever.
        let ops = self.scenario.actors[actor].ops;
        if ops.contains(&Op::Repeat) {
            return PropertySet::NONE;
        }
        // Until the device has worked on the page, a program that tries again is owed that, whatever it is just doing.
        if ops.contains(&Op::Retry) && lane.worked() == 0 && self.op_of(state, actor).is_some() {
            return owed.with(Property::Progress.set());
        }
        owed
    }

    fn spurious(&self, before: &State, action: Action) -> u32 {
        self.turn(before, action).spurious
    }

    fn step(&self, before: &State, action: Action) -> &'static str {
        self.turn(before, action).name
    }

    fn detail(&self, before: &State, action: Action) -> String {
        self.describe(self.turn(before, action).note)
    }

    fn steps(&self) -> Vec<&'static str> {
        self.step_names()
    }

    fn cells(&self, state: &State) -> Vec<Cell> {
        self.table(state)
    }

    fn explain(&self, broken: &Broken<'_, Self>) -> String {
        self.sentence(broken)
    }
}

impl Named for Pagelease {
    fn names(&self) -> (&'static str, &'static str) {
        (self.design.name(), self.scenario.name)
    }

    fn what(&self) -> &'static str {
        self.scenario.what
    }

    /// All but protection and fork: the runtime has no call of its own for the one, and hides its regions from the other.
    fn judged(&self) -> PropertySet {
        let absent = [Property::Protected, Property::Snapshot, Property::ForkSucceeds];
        absent.iter().fold(PropertySet::ALL, |judged, property| judged.without(property.set()))
    }
}
