//! Directed schedules of the shipped engine: it takes the very steps of a history, or the history fails.
//!
//! `histories/directed/mod.rs` says what a history is; `histories/*.history` are samples. To make one up, write a file with
//! everything above its steps, and run the ignored test `make_up` with `RECORD` set to the file, and `SEED`.
#![cfg(pagelease_shuttle)]

#[path = "histories/directed/mod.rs"]
mod directed;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs};

use directed::{Doing, History, Step, follow, record};
use pagelease::mutant::{self, Mutant};

fn read(path: &Path) -> History {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.parse().unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/histories"))
}

fn sample(name: &str) -> History {
    read(&folder().join(name).with_extension("history"))
}

fn samples() -> Vec<PathBuf> {
    let files = fs::read_dir(folder()).expect("the samples' folder").map(|entry| entry.expect("a file of it").path());
    let mut samples: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "history")).collect();
    samples.sort();
    assert!(samples.len() >= 9, "samples have gone: {samples:?}");
    samples
}

#[test]
fn the_engine_follows_every_sample() {
    for path in samples() {
        let history = read(&path);
        assert!(!history.steps.is_empty(), "{}: it has no steps", path.display());
        follow(&history).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    }
}

#[test]
fn what_is_written_reads_the_same() {
    for path in samples() {
        let written = read(&path).to_string();
        assert_eq!(written.parse::<History>().expect("it was written").to_string(), written);
    }
}

#[test]
fn what_is_made_up_can_be_followed() {
    for path in samples() {
        for seed in 1..=5 {
            let recorded = record(&read(&path), seed).unwrap_or_else(|why| panic!("{}, {seed}: {why}", path.display()));
            follow(&recorded).unwrap_or_else(|why| panic!("{}, {seed}: {why}\n{recorded}", path.display()));
        }
    }
}

/// The sample with its steps changed.
fn changed(name: &str, change: impl FnOnce(&mut Vec<Step>)) -> History {
    let mut history = sample(name);
    change(&mut history.steps);
    history
}

fn assert_fails(history: &History, with: &str) {
    let failure = follow(history).expect_err("it is impossible");
    assert!(failure.contains(with), "it fails with `{failure}`, not with `{with}`");
}

#[test]
fn a_history_with_two_steps_swapped_fails() {
    assert_fails(
        &changed("touch_waits_for_a_hold", |steps| steps.swap(2, 3)),
        "device1 should make `0 Exclusive(1) held waiters populated -> Exclusive(1) waiters populated`, \
         but it is about to make `0 Exclusive(1) held populated -> Exclusive(1) populated`",
    );
    assert_fails(
        &changed("touch_waits_for_a_hold_in_thread", |steps| steps.swap(3, 7)),
        "cpu0 should make `0 Cpu populated -> Cpu busy populated`, but it is blocked",
    );
}

#[test]
fn a_history_with_a_wrong_word_fails() {
    let wrong = |steps: &mut Vec<Step>| {
        let Doing::Makes(busy) = steps[0].doing else { unreachable!("it begins with a claim") };
        let Doing::Makes(change) = &mut steps[1].doing else { unreachable!("it ends one") };
        change.after = busy.before;
    };
    assert_fails(
        &changed("claim_against_touch", wrong),
        "step 2 (line 13): device1 should make `0 Cpu busy -> Cpu`, \
         but it is about to make `0 Cpu busy -> Exclusive(1) held populated`",
    );
}

#[test]
fn a_history_with_a_step_missing_fails() {
    assert_fails(
        &changed("repeat_claim", |steps| _ = steps.remove(2)),
        "device1 should make `0 Cpu busy sleepers -> Exclusive(1) held populated`, \
         but it is about to make `0 Cpu busy -> Exclusive(1) held populated`",
    );
    assert_fails(
        &changed("cpu_reads_beside_a_writer", |steps| _ = steps.pop()),
        "after the last step: monitor is about to make `0 ExclusiveWrite(1) busy populated -> Cpu populated`",
    );
}

#[test]
fn a_history_that_goes_on_fails() {
    assert_fails(&changed("repeat_claim", |steps| steps.push(steps[1])), "but it has finished");
    assert_fails(&changed("limit_breaks_a_hold", |steps| steps.push(steps[5])), "monitor should make");
}

#[test]
fn a_limit_that_never_passes_breaks_no_hold() {
    let mut history = sample("limit_breaks_a_hold");
    history.setting.limit_passes = false;
    assert_fails(
        &history,
        "monitor should make `0 Exclusive(1) held waiters populated -> Exclusive(1) waiters populated`, but it is blocked",
    );
}

#[test]
fn what_is_no_history_is_refused() {
    let refused = |text: &str, why: &str| {
        let refusal = text.parse::<History>().expect_err("it is no history");
        assert!(refusal.contains(why), "`{refusal}` is not `{why}`");
    };
    let with = |line: &str| {
        format!(
            "faults: in-thread\naccess: exclusive\npolicy: lazy\npages: 1\ncpu0: add 0\ndevice1: claim 0; drop\n{line}"
        )
    };
    refused("pages: 1", "does not say `faults:`");
    refused(&with("colour: red"), "line 7: `colour` is no setting");
    refused(&with("pages: none"), "line 7: `none` is no number of pages");
    refused(&with("monitor:"), "exactly where faults are served by one");
    refused(&with("device3: add 0"), "there is no device2");
    refused(&with("cpu0: add 0"), "an actor cpu0 already");
    refused(&with("cpu1: claim 0"), "nothing that this actor can do");
    refused(&with("cpu1: add 1"), "goes behind the last");
    refused(&with("device2: claim 0"), "ends with a lease");
    refused(&with("steps:\ncpu1 runs"), "line 8: there is no actor `cpu1`");
    refused(&with("steps:\ncpu0 0 Cpu"), "line 8: a step is");
    refused(&with("steps:\ncpu0 1 Cpu -> Cpu busy"), "`1` is none of 1 pages");
    refused(&with("steps:\ncpu0 0 Cpu -> Cpu"), "it changes nothing");
    refused(&with("steps:\ncpu0 0 Cpu -> Cpu held busy"), "write `Cpu busy held`");
    refused(&with("steps:\ncpu0 0 Cpu -> Exclusive(0)"), "a device is a number from 1 on");
}

/// A broken rule, the sample that notices, and how.
const CAUGHT_BY: [(Mutant, &str, &str); 5] = [
    (Mutant::SkipDrain, "touch_drains_an_operation", "at the end, page 0 shows 1, but 2 was added to it"),
    (Mutant::ClaimPastWaiter, "limit_breaks_a_hold_in_thread", "device2 should make"),
    (Mutant::ReleaseBeforeWord, "touch_waits_for_a_hold", "but it is about to make `0 Cpu busy -> Cpu`"),
    (Mutant::SkipPopulate, "touch_waits_for_a_hold", "monitor should make"),
    (
        Mutant::SkipGeneration,
        "late_holder",
        "but it is about to make `0 Exclusive(1) held populated -> Exclusive(1) populated`",
    ),
];

const MUTANT: &str = "PAGELEASE_MUTANT";
const SAMPLE: &str = "PAGELEASE_SAMPLE";
const FOLLOWED: &str = "the engine follows";

#[test]
fn a_broken_engine_fails_a_sample() {
    for (mutant, sample, how) in CAUGHT_BY {
        let shipped = follow_in_child(None, sample);
        assert!(shipped.contains(FOLLOWED), "{sample} fails on the shipped engine:\n{shipped}");
        let broken = follow_in_child(Some(mutant), sample);
        assert!(broken.contains(how), "{sample} does not notice {mutant:?} by `{how}`:\n{broken}");
    }
}

/// Runs [`follow_one`] in a child process, since which rule is broken is the process's, and returns what it wrote.
fn follow_in_child(mutant: Option<Mutant>, sample: &str) -> String {
    let Output { stdout, .. } = Command::new(env::current_exe().expect("this test is a file"))
        .args(["follow_one", "--exact", "--ignored", "--nocapture"])
        .env(MUTANT, mutant.map_or_else(String::new, |mutant| format!("{mutant:?}")))
        .env(SAMPLE, sample)
        .output()
        .expect("this test can be run again");
    String::from_utf8_lossy(&stdout).into_owned()
}

#[test]
#[ignore = "run by a_broken_engine_fails_a_sample, in a process of its own"]
fn follow_one() {
    let (mutant, name) = (env::var(MUTANT).expect("set by the parent"), env::var(SAMPLE).expect("likewise"));
    mutant::activate(CAUGHT_BY.iter().map(|caught| caught.0).find(|known| format!("{known:?}") == mutant));
    match follow(&sample(&name)) {
        Ok(()) => println!("{FOLLOWED}"),
        Err(failure) => println!("{failure}"),
    }
}

#[test]
#[ignore = "writes a history: set RECORD to a file with the programs, and SEED"]
fn make_up() {
    let file = env::var("RECORD").expect("RECORD is a file with the programs");
    let seed = env::var("SEED").map_or(1, |seed| seed.parse().expect("SEED is a number"));
    println!("{}", record(&read(Path::new(&file)), seed).expect("a history can be made up"));
}
