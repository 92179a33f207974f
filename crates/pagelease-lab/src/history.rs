//! A history: one path through a model, as a person reads it. Plain data: every output format renders this.

use serde::{Deserialize, Serialize};

use crate::subject::Cell;

/// One path through one design's model in one scenario.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// The design's name.
    pub design: String,
    /// The scenario's name.
    pub scenario: String,
    /// The property it breaks, by name; none when it is only replayed or sampled.
    pub property: Option<String>,
    /// What goes wrong, in one sentence. Empty when nothing does.
    pub sentence: String,
    /// The token that replays it: `pagelease lab --replay TOKEN`.
    pub token: String,
    /// The lanes: one name an actor.
    pub actors: Vec<String>,
    /// The state before the first step.
    pub initial: Vec<Cell>,
    /// The steps, in order.
    pub steps: Vec<StepView>,
    /// An infinite history goes back to this step after its last one.
    pub loop_from: Option<usize>,
}

/// One step of a history.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct StepView {
    /// The lane: an index into [`History::actors`].
    pub actor: usize,
    /// The function it is a step of.
    pub name: String,
    /// What it is about. May be empty.
    pub detail: String,
    /// The state after it: the same cells, in the same order, as [`History::initial`].
    pub cells: Vec<Cell>,
    /// The properties this very step breaks, by name.
    pub broken: Vec<String>,
}

impl History {
    /// The cells that step `index` changed, as they are after it.
    pub fn changes(&self, index: usize) -> impl Iterator<Item = &Cell> {
        let before = match index {
            0 => &self.initial,
            _ => &self.steps[index - 1].cells,
        };
        self.steps[index]
            .cells
            .iter()
            .zip(before)
            .filter(|(after, before)| after.value != before.value)
            .map(|(after, _)| after)
    }
}
