//! Directed schedules: the real engine, on simulated memory, takes exactly the interleaving that a history says.
//!
//! # A history
//!
//! A history is a text of lines; `#` begins a comment. First the setting and the actors, in any order; then, below `steps:`,
//! one step a line.
//!
//! ```text
//! faults: monitor                      or in-thread
//! access: exclusive                    or exclusive-write: what every claim asks for
//! policy: lazy                         or eager
//! limit: never                         or passes: whether the hold limit ever passes (`never` if not said)
//! pages: 1                             all the CPU's, and never populated, at first
//! cpu0: add 0                          a thread of the program
//! device1: claim 0; add 0; drop        a thread of device 1; `device1b` is another thread of it
//! monitor:                             who serves touches; exactly where faults are served by a monitor
//!
//! steps:
//! device1 0 Cpu -> Cpu busy
//! device1 0 Cpu busy -> Exclusive(1) held populated
//! cpu0 runs
//! monitor 0 Exclusive(1) held populated -> Exclusive(1) held waiters populated
//! ...
//! ```
//!
//! Devices are numbered from 1 without a gap. What an actor can do, in order, `P` being a page, and `A..B` pages (without `B`):
//!
//! | actor | operation | |
//! |---|---|---|
//! | CPU, device | `touch P` | adds 1 to the page through the CPU view: a write, which traps where the page is not mapped |
//! | CPU | `add P` | the same |
//! | CPU | `load P` | reads the page |
//! | CPU | `prefetch A..B` | brings the pages back |
//! | device | `claim A..B`, `claim P` | takes the pages |
//! | device | `add P` | adds 1 to the page by a load and a store, if the device has the page by then |
//! | device | `drop` | ends the lease that is the oldest of the actor's; a program ends all of its leases |
//!
//! A step is either of:
//!
//! - `ACTOR PAGE BEFORE -> AFTER`: the actor changes the word of the page, by one compare-and-swap that succeeds. A word is
//!   `Cpu`, `Exclusive(DEVICE)` or `ExclusiveWrite(DEVICE)`, and then, in this order, what is set of `busy`, `held` (`held*2`
//!   for two leases), `waiters`, `sleepers`, `populated`. Of generations and tickets a history knows nothing: a swap that
//!   changes only those is no step.
//! - `ACTOR runs`: the actor runs as far as it gets without changing a word: to its next change, to the middle of a device's
//!   `add`, to the end of its operation, or to where it waits. Rarely needed: what an actor does between two changes happens
//!   just before the second, unless this says otherwise. It is for what has to happen earlier: an access that completes
//!   before the page is claimed anew, one that traps and is served late, an addition that a touch comes into. (With the last
//!   change of an operation the operation has not ended: it does so by the actor's next step, or by this one.)
//!
//! # What a directed schedule does
//!
//! At each step its actor runs until it has made its next change, and no other thread changes a word. Where the actor is
//! blocked, or looks again and again, others help: first who has just made a change (it may have a sleeper to wake), then
//! each up to its next change or the end of its operation. A monitor with nothing to serve has the touch of the step's page
//! begin. The hold limit has passed for an actor, if it asks, exactly when its next change in the history is what is due then:
//! it ends a hold, or takes a page that a touch waits for. After the last step all run to their end, and change no word.
//!
//! The engine has failed the history if the actor is about to make another change than its step's, does not come to one
//! (it is blocked, it waits in vain, it has finished), or if a page shows another number at the end than was added to it.

mod direct;
mod history;
#[path = "../../scenarios/panics.rs"]
mod panics;
mod parse;
mod record;
mod run;
mod stage;
mod word;
mod world;

pub(crate) use history::{Doing, History, Step};
pub(crate) use record::record;
pub(crate) use run::follow;
