//! The protocol lab.

pub mod case;
pub mod catalogue;
pub mod export;
pub mod fair;
pub mod graph;
pub mod history;
pub mod kernel;
pub mod pagelease;
pub mod property;
pub mod render;
pub mod sample;
pub mod subject;
pub mod table;
pub mod verdicts;

pub use property::{Property, PropertySet};
pub use subject::{Cell, Subject};
