//! Explores the schedules of the shipped engine, on simulated memory.
//!
//! `ITERATIONS` and `SEED` change what is explored. A failure says how to run the schedule that failed alone.
#![cfg(pagelease_shuttle)]

#[macro_use]
mod scenarios;

use std::env;

use scenarios::explore::{Effort, Scenario, Schedules, config};
use scenarios::world::Setting;
use scenarios::*;
use shuttle::scheduler::ReplayScheduler;
use shuttle::{FailurePersistence, Runner};

macro_rules! tests {
    ($($file:ident::$name:ident if $applies:expr;)+) => {
        $(
            #[test]
            fn $name() {
                explore(&Scenario { name: stringify!($name), applies: $applies, run: $file::$name });
            }
        )+
    };
}

scenarios!(tests);

/// Explores every setting under both kinds of schedules.
fn explore(scenario: &Scenario) {
    if let Ok(schedule) = env::var("PAGELEASE_REPLAY") {
        return replay(scenario, &schedule);
    }
    let (name, effort) = (scenario.name, Effort::from_env(400));
    println!("{name}: {effort:?}");
    for setting in Setting::all().filter(scenario.applies) {
        for schedules in Schedules::BOTH {
            if let Err(failure) = scenario.explore(setting, schedules, effort, FailurePersistence::Print) {
                panic!(
                    "{name} fails in {setting} under {schedules:?} schedules of {effort:?}: {failure}\n\
                     To run the failing schedule, which is printed above, alone: set PAGELEASE_SETTING={setting} and \
                     PAGELEASE_REPLAY to the schedule, and run the test {name}."
                );
            }
        }
    }
}

fn replay(scenario: &Scenario, schedule: &str) {
    let setting = env::var("PAGELEASE_SETTING").expect("PAGELEASE_REPLAY comes with PAGELEASE_SETTING");
    let setting = Setting::all().find(|known| known.to_string() == setting).expect("a setting as a failure prints it");
    let run = scenario.run;
    Runner::new(ReplayScheduler::new_from_encoded(schedule), config(FailurePersistence::None))
        .run(move || run(setting));
}
