//! Shows that the schedules have teeth: breaks one rule of the engine at a time, and each is caught.
//!
//! A mutant is caught when a scenario that passes on the shipped engine fails on the broken one, under the same schedules: by
//! a wrong count, a failed assertion, a deadlock or a livelock. Each engine runs in a process of its own: which rule is
//! broken is the process's, and a broken engine may end it.
#![cfg(pagelease_shuttle)]

#[macro_use]
#[allow(dead_code, reason = "`schedules` uses the rest")]
mod scenarios;

use std::env;
use std::process::{Command, Output};

use pagelease::mutant::{self, Mutant};
use scenarios::explore::{Effort, Scenario, Schedules};
use scenarios::world::Setting;
use scenarios::*;
use shuttle::FailurePersistence;

macro_rules! all {
    ($($file:ident::$name:ident if $applies:expr;)+) => {
        /// Every scenario there is.
        const SCENARIOS: &[Scenario] = &[
            $(Scenario { name: stringify!($name), applies: $applies, run: $file::$name },)+
        ];
    };
}

scenarios!(all);

/// Each rule, and the scenario that sees it broken.
const CATCHES: [(Mutant, &str); 9] = [
    (Mutant::SkipReadRetry, "handler_touches_in_its_claim"),
    (Mutant::FilterByThread, "handler_touches_in_its_claim"),
    (Mutant::WakeBeforeMap, "claim_against_touch"),
    (Mutant::SkipDrain, "software_against_touch"),
    (Mutant::RestoreBeforeInvalidate, "software_against_touch"),
    (Mutant::ReleaseBeforeWord, "claim_against_touch"),
    (Mutant::SkipPopulate, "first_claim_against_first_touch"),
    (Mutant::SkipGeneration, "late_holder_harms_no_later_lease"),
    (Mutant::ClaimPastWaiter, "waiting_touch_goes_before_a_claim"),
];

const MUTANT: &str = "PAGELEASE_MUTANT";
const SCENARIO: &str = "PAGELEASE_SCENARIO";
const PASSED: &str = "the scenario passed";
const FAILED: &str = "the scenario failed";

#[test]
fn every_mutant_is_caught() {
    let mut missed = Vec::new();
    for (broken, scenario) in CATCHES {
        let (whole, mutant) = (explore_in_child("", scenario), explore_in_child(&format!("{broken:?}"), scenario));
        let stdout = String::from_utf8_lossy(&whole.stdout);
        if !stdout.contains(PASSED) {
            missed.push(format!("{scenario} fails on the shipped engine: {stdout}"));
        }
        let stdout = String::from_utf8_lossy(&mutant.stdout);
        if stdout.contains(PASSED) {
            missed.push(format!("{broken:?} is not caught by {scenario}"));
        }
        let how =
            stdout.lines().find(|line| line.contains(FAILED)).map_or_else(|| mutant.status.to_string(), str::to_owned);
        println!("{broken:?}: {scenario}: {how}");
    }
    assert!(missed.is_empty(), "{missed:#?}");
}

/// Runs `explore_one` below in a child process.
fn explore_in_child(mutant: &str, scenario: &str) -> Output {
    Command::new(env::current_exe().expect("this test is a file"))
        .args(["explore_one", "--exact", "--ignored", "--nocapture"])
        .env(MUTANT, mutant)
        .env(SCENARIO, scenario)
        .output()
        .expect("this test can be run again")
}

#[test]
#[ignore = "run by every_mutant_is_caught, in a process of its own"]
fn explore_one() {
    let (broken, name) = (env::var(MUTANT).unwrap_or_default(), env::var(SCENARIO).unwrap_or_default());
    let mutant = CATCHES.iter().map(|(mutant, _)| *mutant).find(|mutant| format!("{mutant:?}") == broken);
    assert_eq!(mutant.is_none(), broken.is_empty(), "{MUTANT}={broken}: no such rule");
    mutant::activate(mutant);
    let effort = Effort::from_env(150);
    let wanted = |scenario: &&Scenario| name.is_empty() || scenario.name == name;
    assert!(SCENARIOS.iter().any(|scenario| wanted(&scenario)), "{SCENARIO}={name}: no such scenario");
    for scenario in SCENARIOS.iter().filter(wanted) {
        for setting in Setting::all().filter(scenario.applies) {
            for schedules in Schedules::BOTH {
                if scenario.run_with(setting, schedules, effort, FailurePersistence::None).is_err() {
                    println!("{FAILED}: {} in {setting} under {schedules:?} schedules", scenario.name);
                    return;
                }
            }
        }
    }
    println!("{PASSED}");
}
