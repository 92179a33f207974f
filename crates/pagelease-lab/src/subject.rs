//! What a model says of itself beyond [`stateright::Model`], so that the lab can judge it and show it.

use std::fmt::Debug;
use std::hash::Hash;

use stateright::Model;

use crate::property::{Property, PropertySet};

/// A model of one design in one scenario: actors, each a program of atomic steps, over a shared state.
///
/// An action is one step of one actor. Everything here is a pure function of its arguments, and cheap: the first four
/// functions are called for every edge of the explored graph.
pub trait Subject:
    Model<State: Copy + Eq + Hash + Debug + Send + Sync, Action: Copy + Eq + Debug + Send + Sync> + Sync
{
    /// The actors' names, in the order of their lanes. At most 32.
    fn actors(&self) -> Vec<String>;

    /// The actor that takes this step.
    fn actor(&self, action: Self::Action) -> usize;

    /// The safety properties that the step *into* this state broke (sticky or not: the first state that has it counts).
    fn broken(&self, state: &Self::State) -> PropertySet;

    /// The liveness properties under which `actor` is still owed something in this state: an operation begun and not ended,
    /// or not yet begun. A fair history along which it is owed for ever breaks that property.
    fn owed(&self, state: &Self::State, actor: usize) -> PropertySet;

    /// How many spurious invalidations this step delivers.
    fn spurious(&self, before: &Self::State, action: Self::Action) -> u32;

    /// The step's name: a function of the kernel or of the runtime, the same for all steps of this kind.
    fn step(&self, before: &Self::State, action: Self::Action) -> &'static str;

    /// What the step is about, for a reader: `page 0`, `waits`, `cause CLEAR, no owner`. May be empty.
    fn detail(&self, before: &Self::State, action: Self::Action) -> String;

    /// Every step name that this design has in this scenario: what never fires is reported.
    fn steps(&self) -> Vec<&'static str>;

    /// The state as a table of cells, the same cells in the same order in every state.
    fn cells(&self, state: &Self::State) -> Vec<Cell>;

    /// The cells of each state of a history, the initial one first. To be written by models that keep only what is compared
    /// of a number, and can count it along a history.
    fn tables(&self, history: &[Self::State]) -> Vec<Vec<Cell>> {
        history.iter().map(|state| self.cells(state)).collect()
    }

    /// What went wrong, in one sentence: `property` is broken by the last of `steps` (each a state and the action out of
    /// it), or by going round from `loop_from` for ever, or by ending in `last` with something owed.
    fn explain(&self, broken: &Broken<'_, Self>) -> String;
}

/// A history that breaks a property, as [`Subject::explain`] gets it.
#[derive(Debug)]
pub struct Broken<'a, S: Subject> {
    /// The property.
    pub property: crate::Property,
    /// Each step: the state before it, and the action.
    pub steps: &'a [(S::State, S::Action)],
    /// The state after the last step.
    pub last: S::State,
    /// The step to which the history goes back after its last one, if it is infinite.
    pub loop_from: Option<usize>,
}

/// One fact of a state, for a reader.
#[derive(Clone, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Cell {
    /// What it belongs to: `page table`, `device 0`, `notifier`, `CPU 0`. Cells of a group are next to each other.
    pub group: String,
    /// Its name in the group: `page 0`, `seq`, `lock`.
    pub name: String,
    /// Its value: `device-exclusive frame 0`.
    pub value: String,
}

/// The safety properties as Stateright has them, for [`Model::properties`] of a subject.
#[must_use]
pub fn always_properties<M: Subject>() -> Vec<stateright::Property<M>> {
    // Stateright takes plain functions, which cannot remember the property they are for: hence a list.
    macro_rules! always {
        ($($property:ident)+) => {
            vec![$(stateright::Property::always(Property::$property.name(), |subject: &M, state: &M::State| {
                !subject.broken(state).has(Property::$property)
            })),+]
        };
    }
    always![Atomicity Count Zapped Protected Snapshot ForkSucceeds ClaimSucceeds SelfRetry Pins OwnFault]
}
