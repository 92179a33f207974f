//! What happens in the explored worlds.

#[macro_use]
mod table;
pub(crate) mod explore;
pub(crate) mod world;

pub(crate) mod touches;

pub(crate) use explore::{Effort, Scenario};
