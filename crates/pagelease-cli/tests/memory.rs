//! The table can be in memory of any kind, taken from the CPU in any way: exact in each, and the report says which it was.

mod common;

use std::fs;
use std::path::Path;
use std::process::Output;

use common::{Scratch, assert_refused, histogram, pagelease, sample};
use serde_json::Value;

/// Memory and backend as asked for, who serves touches, and the backend in force; `None`: either of those that userfaultfd has.
const OFFERED: [(&str, &str, &[&str], Option<&str>); 8] = [
    ("shared", "auto", &["monitor", "in-thread"], None),
    ("shared", "minor", &["monitor", "in-thread"], Some("minor")),
    ("shared", "mprotect", &["in-thread"], Some("mprotect")),
    ("adopted", "auto", &["monitor", "in-thread"], Some("move")),
    ("hugetlb", "auto", &["monitor", "in-thread"], Some("minor")),
    ("hugetlb", "mprotect", &["in-thread"], Some("mprotect")),
    ("file", "auto", &["in-thread"], Some("mprotect")),
    ("file", "mprotect", &["in-thread"], Some("mprotect")),
];

/// `None`, and says so, where this machine has no such memory.
fn count(file: &Path, memory: &str, backend: &str, more: &[&str]) -> Option<Value> {
    let args = [&["--memory", memory, "--backend", backend, "--json"], more].concat();
    let output = histogram(file, &args);
    let said = String::from_utf8_lossy(&output.stderr);
    let missing = match memory {
        "hugetlb" => ["vm.nr_hugepages", "of huge pages"].iter().any(|word| said.contains(word)),
        "adopted" => said.contains("lacks MOVE"),
        _ => false,
    };
    if missing {
        assert_eq!((output.status.code(), output.stdout.len(), said.lines().count()), (Some(1), 0, 1), "{said}");
        eprintln!("skipped: {said}");
        return None;
    }
    assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
    Some(serde_json::from_slice(&output.stdout).expect("JSON"))
}

#[test]
fn exact_in_every_memory() {
    let scratch = Scratch::new("memory");
    let file = scratch.file("data", &sample(300_001));
    for (memory, backend, modes, in_force) in OFFERED {
        for unit in ["byte", "pair"] {
            for faults in modes {
                let more = ["--unit", unit, "--faults", faults, "--cpu-threads", "2"];
                let Some(report) = count(&file, memory, backend, &more) else { continue };
                assert_eq!((&report["exact"], &report["memory"]), (&true.into(), &memory.into()), "{report}");
                assert_eq!(report["faults"], *faults, "{report}");
                match in_force {
                    Some(backend) => assert_eq!(report["backend"], backend, "{report}"),
                    None => assert!(report["backend"] == "minor" || report["backend"] == "rwprotect", "{report}"),
                }
                assert_eq!(report["privilege"] == "none", report["backend"] == "mprotect", "{report}");
                assert!(report["claims"].as_u64() >= Some(1) && report["restores"].as_u64() >= Some(1), "{report}");
                assert_eq!(report["invalidations_spurious"], 0, "{report}");
            }
        }
    }
}

#[test]
fn the_words_say_which_it_was() {
    let scratch = Scratch::new("memory-words");
    let file = scratch.file("data", &sample(5000));
    for (memory, words) in [
        ("adopted", ["the program's own, adopted", "(move)", "touches served by monitor threads"]),
        ("file", ["a temporary file", "(mprotect)", "touches served by the touching thread"]),
    ] {
        let output = histogram(&file, &["--memory", memory]);
        if memory == "adopted" && String::from_utf8_lossy(&output.stderr).contains("lacks MOVE") {
            continue;
        }
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(output.status.success() && words.iter().all(|word| text.contains(word)), "{text}");
    }
}

#[test]
fn racy_works_in_any_memory_that_a_device_can_reach_unclaimed() {
    let scratch = Scratch::new("memory-racy");
    let file = scratch.file("data", &sample(100_000));
    for (memory, backend) in [("shared", "mprotect"), ("hugetlb", "auto"), ("file", "auto")] {
        let Some(report) = count(&file, memory, backend, &["--mode", "racy"]) else { continue };
        assert_eq!(
            (&report["mode"], &report["claims"], &report["memory"]),
            (&"racy".into(), &0.into(), &memory.into())
        );
    }
}

#[test]
fn combinations_that_make_no_sense() {
    let scratch = Scratch::new("memory-refused");
    let file = scratch.file("data", b"data");
    for (args, words) in [
        (&["--backend", "mprotect", "--faults", "monitor"][..], &["--backend mprotect", "--faults in-thread"][..]),
        (&["--memory", "file", "--faults", "monitor"], &["--memory file", "--faults in-thread"]),
        (&["--memory", "adopted", "--backend", "mprotect"], &["--memory adopted", "leave --backend out"]),
        (&["--memory", "adopted", "--backend", "minor"], &["--memory adopted", "leave --backend out"]),
        (&["--memory", "adopted", "--mode", "racy"], &["--mode racy", "use another --memory"]),
        (&["--memory", "hugetlb", "--backend", "rwprotect"], &["--backend rwprotect", "use --backend minor"]),
        (&["--memory", "disk"], &["disk", "shared", "adopted", "hugetlb", "file"]),
        (&["--backend", "fast"], &["fast", "auto", "minor", "rwprotect", "mprotect"]),
    ] {
        assert_refused(&histogram(&file, args), words);
    }
}

/// The count of `file` with a temporary file in `folder`.
fn in_folder(file: &Path, folder: &Path, args: &[&str]) -> Output {
    let mut command = pagelease(&["run", "histogram", "--memory", "file"]);
    command.arg(file).args(args).env("TMPDIR", folder).output().expect("it starts")
}

#[test]
fn a_temporary_file_is_where_it_is_told_to_be_and_does_not_stay() {
    let scratch = Scratch::new("memory-folder");
    let file = scratch.file("data", &sample(5000));
    let folder = scratch.path("folder");
    assert_refused(&in_folder(&file, &folder, &[]), &["--memory file", "folder", "set TMPDIR"]);
    fs::create_dir(&folder).expect("a directory");
    assert!(in_folder(&file, &folder, &[]).status.success());
    assert_eq!(fs::read_dir(&folder).expect("a directory").count(), 0, "nothing is left behind");
    // Userfaultfd serves it only where files are in memory.
    let output = in_folder(&file, &folder, &["--backend", "minor"]);
    if !output.status.success() {
        assert_refused(&output, &["lies on a disk", "--backend mprotect", "set TMPDIR"]);
    }
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        let output = in_folder(&file, memory, &["--backend", "minor", "--faults", "monitor", "--json"]);
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!((&report["backend"], &report["exact"]), (&"minor".into(), &true.into()), "{output:?}");
    }
}
