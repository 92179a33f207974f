//! `pagelease run histogram` is exact in every mode, writes what it counted, and shows what is lost without exclusivity.

mod common;

use std::collections::BTreeMap;
use std::fs;

use common::{Scratch, histogram, json, sample};
use serde_json::Value;

const KEYS: [&str; 19] = [
    "mode",
    "faults",
    "memory",
    "backend",
    "privilege",
    "exact",
    "total",
    "lost_updates",
    "claims",
    "pages_claimed",
    "claims_already_held",
    "touches",
    "restores",
    "invalidations",
    "invalidations_spurious",
    "wait_ns_max",
    "elapsed_ns",
    "reference_elapsed_ns",
    "devices",
];

fn number(report: &Value, key: &str) -> u64 {
    report[key].as_u64().unwrap_or_else(|| panic!("{key} is not a natural number: {report}"))
}

/// The lines that `--out` shall have, counted in another way than the program does.
fn expected_csv(contents: &[u8], unit: &str) -> String {
    let width = if unit == "byte" { 1 } else { 2 };
    let mut counts = BTreeMap::new();
    for value in 0..1_u32 << (8 * width) {
        counts.insert(value, 0);
    }
    for unit in contents.chunks(width) {
        let value = unit.iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte));
        *counts.get_mut(&value).expect("every value is there") += 1;
    }
    let lines = counts.iter().map(|(value, count)| format!("{value},{count}\n"));
    "value,count\n".to_owned() + &lines.collect::<String>()
}

#[test]
fn exact_in_every_mode_and_consistent() {
    let scratch = Scratch::new("exact");
    // Odd, so that the last byte has no partner.
    let contents = sample(300_001);
    let file = scratch.file("data", &contents);
    let out = scratch.path("counts.csv");
    for unit in ["byte", "pair"] {
        let expected = expected_csv(&contents, unit);
        for faults in ["monitor", "in-thread"] {
            for policy in ["lazy", "eager", "adaptive"] {
                let args = ["--unit", unit, "--faults", faults, "--policy", policy, "--cpu-threads", "2"];
                let args = [&args[..], &["--device-workers", "2", "--out", out.to_str().expect("UTF-8")]].concat();
                let report = json(&file, &args);
                assert_eq!(fs::read_to_string(&out).expect("counts.csv"), expected, "{args:?}");

                assert_eq!(report.as_object().expect("one object").len(), KEYS.len(), "{report}");
                assert!(KEYS.iter().all(|key| report.get(key).is_some()), "{report}");
                assert_eq!((&report["mode"], &report["faults"]), (&"exclusive".into(), &faults.into()));
                assert_eq!(report["memory"], "shared");
                assert!(report["privilege"] == "full" || report["privilege"] == "user-mode-only", "{report}");
                assert_eq!(report["exact"], true, "{args:?}: {report}");
                let total = if unit == "byte" { 300_001 } else { 150_001 };
                assert_eq!((number(&report, "total"), number(&report, "lost_updates")), (total, 0));

                let [claims, pages, restores] = ["claims", "pages_claimed", "restores"].map(|key| number(&report, key));
                // The device has had its first chunk, and the CPU has read every total.
                assert!(claims >= 1 && pages >= claims && restores >= 1, "{report}");
                assert!(restores <= pages, "only what was claimed can be given back: {report}");
                assert!(number(&report, "touches") >= 1 || policy != "lazy", "{report}");
                assert_eq!(number(&report, "invalidations_spurious"), 0, "{report}");
                assert!(number(&report, "invalidations") >= 1, "{report}");
                assert!(number(&report, "elapsed_ns") > number(&report, "wait_ns_max"), "{report}");
                assert!(number(&report, "reference_elapsed_ns") > 0, "{report}");
                let device = &report["devices"][0];
                assert_eq!((&device["name"], &device["missing"]), (&"software".into(), &Value::Null), "{report}");
                assert!((1..=300_001).contains(&number(device, "bytes")), "{report}");
            }
        }
    }
}

#[test]
fn the_smallest_files() {
    let scratch = Scratch::new("smallest");
    let out = scratch.path("counts.csv");
    for contents in [&b"\x07"[..], b"\x07\x01", b"\xff\xff\xff", &[0; 4096], &[1; 4097]] {
        let file = scratch.file("data", contents);
        for unit in ["byte", "pair"] {
            let report = json(&file, &["--unit", unit, "--out", out.to_str().expect("UTF-8")]);
            assert_eq!(report["exact"], true);
            assert_eq!(fs::read_to_string(&out).expect("counts.csv"), expected_csv(contents, unit), "{contents:?}");
        }
    }
}

#[test]
fn many_threads_and_workers() {
    let scratch = Scratch::new("many");
    let file = scratch.file("data", &sample(200_000));
    let report = json(&file, &["--unit", "pair", "--cpu-threads", "12", "--device-workers", "9"]);
    assert_eq!(report["exact"], true, "{report}");
}

#[test]
fn racy_loses_updates_and_is_no_failure() {
    let scratch = Scratch::new("racy");
    // Whether CPU and device meet is up to the scheduler; on more data it is likelier.
    let mut len = 1 << 20;
    for attempt in 1.. {
        let file = scratch.file("data", &sample(len));
        let report = json(&file, &["--mode", "racy"]);
        assert_eq!((&report["mode"], number(&report, "total")), (&"racy".into(), u64::try_from(len).expect("64-bit")));
        assert_eq!(report["exact"] == true, number(&report, "lost_updates") == 0, "{report}");
        let happened = ["claims", "pages_claimed", "restores", "invalidations"].map(|key| number(&report, key));
        assert_eq!(happened, [0; 4], "nobody claims anything: {report}");
        if report["exact"] == false {
            break;
        }
        assert!(attempt < 6, "no update was lost in {attempt} attempts, the last on {len} bytes");
        len *= 2;
    }
}

#[test]
fn the_words_have_every_figure() {
    let scratch = Scratch::new("words");
    let file = scratch.file("data", &sample(1234));
    let output = histogram(&file, &[]);
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success() && output.stderr.is_empty(), "{text}");
    assert!(text.contains("1,234 bytes into 256 counters"), "{text}");
    for word in [
        "exact",
        "memory",
        "claims",
        "pages",
        "touches",
        "restores",
        "spurious",
        "longest wait",
        "single-threaded",
        "full",
    ] {
        assert!(text.contains(word) || (word == "full" && text.contains("user-mode faults only")), "{word}: {text}");
    }
}
