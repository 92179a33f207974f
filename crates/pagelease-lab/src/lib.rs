//! The protocol lab: designs of device-exclusive memory, each explored whole.
//!
//! A **design** in a **scenario** is a model: actors, each a program of atomic steps, over a shared state. The lab visits every
//! state, and says of each [`Property`] whether it holds, or by which history, a shortest one, it is broken. There are two
//! models, both [`stateright::Model`]s: [`kernel`], Linux's facility, with the designs that were argued over as values that
//! switch its steps; and [`pagelease`], the protocol that this project ships, on the functions of [`pagelease_protocol`]
//! that its runtime calls. docs/VERDICTS.md says what came of it.
//!
//! What holds, holds in these scenarios: a few actors, one or two pages. The models leave out time, memory ordering and the
//! TLB; each says in its own documentation what else.
//!
//! | module | what it has |
//! |---|---|
//! | [`property`] | what is asked of a design |
//! | [`subject`] | what a model says of itself, so that it can be judged and shown |
//! | [`kernel`], [`pagelease`] | the models: designs, scenarios, states, steps |
//! | [`catalogue`] | every design with its cases |
//! | [`case`] | one design in one scenario: checked, replayed, sampled; a history in one word, the token |
//! | [`graph`] | every reachable state of any model, and every step |
//! | [`fair`] | fair loops in it, along which something stays owed for ever |
//! | [`table`], [`verdicts`] | every design against every property; the generated parts of docs/VERDICTS.md |
//! | [`history`], [`render`] | a history as a person reads it: lanes, Mermaid, JSON, a page to step through |
//! | [`export`] | a history of the shipped protocol as a schedule that its engine can be made to follow |
//! | [`sample`] | random histories where there are too many states, spread over processes |
//!
//! # A design of one's own
//!
//! Linux 7.3 with one change, in one scenario: a device claims a page that it has already, and nobody disturbs it.
//!
//! ```
//! use std::sync::atomic::AtomicU64;
//!
//! use pagelease_lab::case::Case;
//! use pagelease_lab::kernel::design::{Begin, Design, MAINLINE};
//! use pagelease_lab::kernel::{Kernel, scenario};
//! use pagelease_lab::{Property, render};
//!
//! let scenario = *scenario::ALL.iter().find(|scenario| scenario.name == "repeat").ok_or("no such scenario")?;
//! let mainline = Kernel { design: MAINLINE, scenario };
//! let tenth = Kernel { design: Design { name: "tenth", begin: Begin::UnderLock, ..MAINLINE }, scenario };
//!
//! // The claim retries for ever: a history that goes round.
//! let checked = mainline.check(100_000, &AtomicU64::new(0))?;
//! let finding = checked.findings.iter().find(|finding| finding.property == Property::RepeatEnds).ok_or("it ends")?;
//! assert!(finding.path.loop_from.is_some());
//! let history = mainline.history(&finding.path, Some(finding.property))?;
//! print!("{}", render::render(&history, render::Format::Text, render::DEFAULT_WIDTH));
//!
//! // With the sequence number read under the folio lock it ends; and not because nobody asked.
//! let checked = tenth.check(100_000, &AtomicU64::new(0))?;
//! assert!(checked.tested.has(Property::RepeatEnds));
//! assert!(checked.findings.iter().all(|finding| finding.property != Property::RepeatEnds));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # A model of one's own
//!
//! [`graph`] and [`fair`] work on any [`stateright::Model`] of which an action names an actor. Here, two threads need both of two
//! locks. Each takes its own; if it then finds the other's taken, it waits, or it gives its own back and starts again.
//!
//! ```
//! use std::sync::atomic::AtomicU64;
//!
//! use pagelease_lab::fair::{Reversed, lasso};
//! use pagelease_lab::graph::Graph;
//! use stateright::Model;
//!
//! #[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
//! enum Thread { Waits, HasOne, Done }
//!
//! struct Locks { backs_off: bool }
//!
//! impl Model for Locks {
//!     type State = [Thread; 2];
//!     type Action = usize; // the thread that takes a step
//!
//!     fn init_states(&self) -> Vec<Self::State> {
//!         vec![[Thread::Waits; 2]]
//!     }
//!
//!     fn actions(&self, _: &Self::State, actions: &mut Vec<usize>) {
//!         actions.extend([0, 1]);
//!     }
//!
//!     fn next_state(&self, last: &Self::State, me: usize) -> Option<Self::State> {
//!         let mut next = *last;
//!         next[me] = match (last[me], last[1 - me]) {
//!             (Thread::Waits, _) => Thread::HasOne,
//!             (Thread::HasOne, Thread::HasOne) if self.backs_off => Thread::Waits,
//!             (Thread::HasOne, Thread::HasOne) | (Thread::Done, _) => return None,
//!             (Thread::HasOne, _) => Thread::Done,
//!         };
//!         Some(next)
//!     }
//! }
//!
//! // How thread 0 can wait for ever: the steps of a loop, or none if nobody can take a step any more.
//! let waits_for_ever = |model: &Locks| -> Option<Vec<usize>> {
//!     let graph = Graph::explore(model, 1_000, &AtomicU64::new(0)).expect("nine states at most");
//!     let owed = |node| graph.state(node)[0] != Thread::Done;
//!     let lasso = lasso(&graph, &Reversed::new(&graph), |&thread| thread, owed)?;
//!     Some(lasso.round.iter().map(|&edge| graph.edge(edge).action).collect())
//! };
//! assert_eq!(waits_for_ever(&Locks { backs_off: false }), Some(vec![]), "a deadlock");
//! let livelock = waits_for_ever(&Locks { backs_off: true }).expect("a loop");
//! assert!(livelock.contains(&0) && livelock.contains(&1), "and a fair one: both go on taking steps");
//! ```

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
