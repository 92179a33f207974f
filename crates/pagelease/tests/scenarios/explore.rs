//! Running a scenario under many schedules, or under the one that failed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::{fmt, thread};

use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

use super::panics;
use super::world::Setting;

/// What happens in a world, and which settings it makes sense in.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) applies: fn(&Setting) -> bool,
    pub(crate) run: fn(Setting),
}

/// How schedules are chosen.
#[derive(Copy, Clone, Debug)]
pub(crate) enum Schedules {
    /// At every step any thread that can run.
    Random,
    /// Probabilistic concurrency testing: threads by priority, with a few changes of it. Finds what takes one thread to be
    /// held up for long.
    Pct,
}

impl Schedules {
    pub(crate) const BOTH: [Self; 2] = [Self::Random, Self::Pct];

    fn scheduler(self, seed: u64, iterations: usize) -> Box<dyn Scheduler + Send> {
        match self {
            Self::Random => Box::new(RandomScheduler::new_from_seed(seed, iterations)),
            Self::Pct => Box::new(PctScheduler::new_from_seed(seed, PCT_DEPTH, iterations)),
        }
    }
}

/// Changes of priority in a schedule, plus one.
const PCT_DEPTH: usize = 4;

/// An execution with more steps than that is a livelock. The longest that are none have a tenth of it.
const MAX_STEPS: usize = 100_000;

/// How much is explored.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Effort {
    pub(crate) seed: u64,
    /// Executions a setting and a scheduler.
    pub(crate) iterations: usize,
}

impl Effort {
    /// So many iterations with the usual seed, unless `ITERATIONS` and `SEED` say otherwise.
    pub(crate) fn from_env(iterations: usize) -> Self {
        Self { seed: number("SEED").unwrap_or(1), iterations: number("ITERATIONS").unwrap_or(iterations) }
    }
}

fn number<N: std::str::FromStr<Err: fmt::Display>>(name: &str) -> Option<N> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

impl Scenario {
    /// Explores one setting under one kind of schedules.
    ///
    /// # Errors
    /// How it failed: an assertion, a deadlock, too many steps.
    pub(crate) fn explore(
        &self,
        setting: Setting,
        schedules: Schedules,
        effort: Effort,
        persistence: FailurePersistence,
    ) -> Result<(), String> {
        panics::note();
        let run = self.run;
        // In a thread of its own: a failed execution is left where it failed, and leaves its thread unwinding.
        let explorer = thread::spawn(move || {
            let runner = Runner::new(schedules.scheduler(effort.seed, effort.iterations), config(persistence));
            let explored = catch_unwind(AssertUnwindSafe(|| runner.run(move || run(setting))));
            explored.map(drop).map_err(|payload| panics::first(&*payload))
        });
        explorer.join().unwrap_or_else(|payload| Err(panics::message(&*payload)))
    }
}

/// How every execution is run.
pub(crate) fn config(persistence: FailurePersistence) -> Config {
    let mut config = Config::new();
    config.stack_size = 1 << 17;
    config.failure_persistence = persistence;
    config.max_steps = MaxSteps::FailAfter(MAX_STEPS);
    config.silence_warnings = true;
    // What is on the stack of a failed thread are leases and regions, whose destructors would work on a broken engine.
    config.ungraceful_shutdown_config.immediately_return_on_panic = true;
    config
}
