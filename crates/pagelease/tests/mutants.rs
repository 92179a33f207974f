//! Shows that the scenarios have teeth: breaks one rule of the engine at a time, and each is noticed.
//!
//! A mutant is caught when a scenario that the shipped engine passes fails on the broken one, under the same schedules: by a
//! lost update, a page that is not exclusive, a deadlock or a livelock. What the engine only counts wrong does not count.
//! Each engine runs in a process of its own: which rule is broken is the process's, and a broken engine may end it.
#![cfg(pagelease_shuttle)]

#[macro_use]
mod scenarios;

use std::env;
use std::process::{Command, Output};
use std::sync::atomic::Ordering;

use pagelease::mutant::{self, Mutant};
use scenarios::explore::{Effort, Scenario, Schedules};
use scenarios::world::{CHECK_COUNTERS, Setting};
use scenarios::*;
use shuttle::FailurePersistence;

macro_rules! all {
    ($($file:ident::$name:ident if $applies:expr;)+) => {
        const SCENARIOS: &[Scenario] =
            &[$(Scenario { name: stringify!($name), applies: $applies, run: $file::$name },)+];
    };
}

scenarios!(all);

/// Each rule, and a scenario that notices when it is broken.
const CAUGHT_BY: [(Mutant, &str); 12] = [
    (Mutant::SkipReadRetry, "handler_touches_in_its_claim"),
    (Mutant::FilterByThread, "handler_touches_in_its_claim"),
    (Mutant::WakeBeforeMap, "claim_against_touch"),
    (Mutant::ReleaseBeforeWord, "claim_against_touch"),
    (Mutant::SkipDrain, "touch_in_the_middle_of_an_operation"),
    (Mutant::SkipDrain, "software_against_touch"),
    (Mutant::RestoreBeforeInvalidate, "touch_in_the_middle_of_an_operation"),
    (Mutant::SkipPopulate, "first_claim_against_first_touch"),
    (Mutant::SkipGeneration, "late_holder_harms_no_later_lease"),
    (Mutant::ClaimPastWaiter, "waiting_touch_goes_before_a_claim"),
    (Mutant::SkipFlightCheck, "submissions_whose_holds_are_broken"),
    (Mutant::LandEarly, "submission_against_touch"),
];

const MUTANT: &str = "PAGELEASE_MUTANT";
const SCENARIO: &str = "PAGELEASE_SCENARIO";
const PASSES: &str = "no schedule fails";
const FAILS: &str = "fails in";

#[test]
fn every_mutant_is_caught() {
    for (mutant, scenario) in CAUGHT_BY {
        let shipped = explore_in_child(None, scenario);
        assert!(shipped.contains(PASSES), "{scenario} fails on the shipped engine:\n{shipped}");
        let broken = explore_in_child(Some(mutant), scenario);
        assert!(!broken.contains(PASSES), "{scenario} does not notice {mutant:?}");
        let how = broken.lines().find(|line| line.contains(FAILS)).unwrap_or("the process ends");
        println!("{mutant:?}: {scenario} {how}");
    }
}

/// Runs [`explore_one`] in a child process, and returns what it wrote.
fn explore_in_child(mutant: Option<Mutant>, scenario: &str) -> String {
    let Output { stdout, .. } = Command::new(env::current_exe().expect("this test is a file"))
        .args(["explore_one", "--exact", "--ignored", "--nocapture"])
        .env(MUTANT, mutant.map_or_else(String::new, |mutant| format!("{mutant:?}")))
        .env(SCENARIO, scenario)
        .output()
        .expect("this test can be run again");
    String::from_utf8_lossy(&stdout).into_owned()
}

#[test]
#[ignore = "run by every_mutant_is_caught, in a process of its own"]
fn explore_one() {
    let (mutant, scenario) = (env::var(MUTANT).expect("set by the parent"), env::var(SCENARIO).expect("likewise"));
    let scenario = SCENARIOS.iter().find(|known| known.name == scenario).expect("a scenario of the table");
    if !mutant.is_empty() {
        let (mutant, _) = CAUGHT_BY.into_iter().find(|(known, _)| format!("{known:?}") == mutant).expect("a mutant");
        mutant::activate(Some(mutant));
        CHECK_COUNTERS.store(false, Ordering::Relaxed);
    }
    match first_failure(scenario, Effort::from_env(300)) {
        None => println!("{PASSES}"),
        Some(failure) => println!("{FAILS} {failure}"),
    }
}

/// The first failure of a scenario, over all of its settings and both kinds of schedules.
fn first_failure(scenario: &Scenario, effort: Effort) -> Option<String> {
    Setting::all().filter(scenario.applies).find_map(|setting| {
        Schedules::BOTH.into_iter().find_map(|schedules| {
            let failure = scenario.explore(setting, schedules, effort, FailurePersistence::None).err()?;
            Some(format!("{setting}, {schedules:?} schedules: {failure}"))
        })
    })
}
