//! Running the engine under a director.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::thread;

use pagelease::sim::observe_words;
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

use super::direct::{Director, Plan, Shared, lock, stuck};
use super::history::{History, Step};
use super::panics;
use super::stage::Stage;
use super::world::enact;

/// More than the longest history takes.
const MAX_STEPS: usize = 100_000;

/// Has the engine take the steps of the history.
///
/// # Errors
/// At which step it does something else, and what; or what is wrong at the end.
pub(crate) fn follow(history: &History) -> Result<(), String> {
    direct(history, Plan::Follow).map(drop)
}

/// Has the engine take the steps that the plan says; returns them.
pub(super) fn direct(history: &History, plan: Plan) -> Result<Vec<Step>, String> {
    panics::note();
    let history = history.clone();
    // In a thread of its own: a failed execution is left where it failed, and leaves its thread unwinding.
    let executor = thread::spawn(move || {
        let stage: Shared = Arc::new(Mutex::new(Stage::new(history.clone())));
        let (observed, enacted) = (stage.clone(), stage.clone());
        observe_words(Some(Rc::new(move |address, event| lock(&observed).observe(address, event))));
        let runner = Runner::new(Director::new(stage.clone(), plan), config());
        let run = catch_unwind(AssertUnwindSafe(|| runner.run(move || enact(&history, &enacted))));
        let mut stage = lock(&stage);
        match (stage.failure.take(), run) {
            (Some(failure), _) => Err(failure),
            (None, Ok(_)) => Ok(core::mem::take(&mut stage.done)),
            (None, Err(payload)) => {
                let message = panics::first(&*payload);
                Err(if message.starts_with("deadlock!") {
                    stuck(&stage, "it is blocked, and so are all")
                } else if message.starts_with("exceeded max_steps") {
                    stuck(&stage, "it goes on without coming to it")
                } else {
                    stuck(&stage, &format!("the engine panics: {message}"))
                })
            }
        }
    });
    executor.join().unwrap_or_else(|payload| Err(panics::message(&*payload)))
}

fn config() -> Config {
    let mut config = Config::new();
    config.stack_size = 1 << 17;
    config.failure_persistence = FailurePersistence::None;
    config.max_steps = MaxSteps::FailAfter(MAX_STEPS);
    config.silence_warnings = true;
    // What is on the stack of a failed thread are leases and regions, whose destructors would work on a broken engine.
    config.ungraceful_shutdown_config.immediately_return_on_panic = true;
    config
}
