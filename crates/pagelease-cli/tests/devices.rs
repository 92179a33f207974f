//! The histogram with each device, and with all of them at once.

mod common;

use std::io::Write as _;

use common::{Scratch, assert_refused, histogram, json, pagelease, sample};
use serde_json::Value;

/// Counts with the device; `None`, and says why, if this machine has none. With `PAGELEASE_NEEDS_DEVICES` set, it must have the
/// drivers; KVM depends on the machine.
fn count(scratch: &Scratch, device: &str, args: &[&str]) -> Option<Value> {
    let file = scratch.file("data", &sample(400_001));
    let args = [&["--device", device, "--json"], args].concat();
    let output = histogram(&file, &args);
    if output.status.code() == Some(1) && output.stdout.is_empty() {
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        let needed = device != "kvm" && std::env::var_os("PAGELEASE_NEEDS_DEVICES").is_some();
        assert!(!needed && why.lines().count() == 1, "{args:?}: {why}");
        let _ = writeln!(std::io::stderr(), "skipped: {device}: {why}");
        return None;
    }
    assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
    Some(serde_json::from_slice(&output.stdout).expect("JSON"))
}

fn counts_exactly(device: &str) {
    let scratch = Scratch::new(device);
    for unit in ["byte", "pair"] {
        for faults in ["monitor", "in-thread"] {
            let args = ["--unit", unit, "--faults", faults, "--cpu-threads", "2"];
            let Some(report) = count(&scratch, device, &args) else { return };
            assert_eq!(report["exact"], true, "{args:?}: {report}");
            let devices = report["devices"].as_array().expect("an array");
            assert_eq!(devices.len(), 1, "{report}");
            assert_eq!(devices[0]["name"], device);
            assert!(devices[0]["bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{report}");
        }
    }
}

#[test]
fn kvm_counts_exactly() {
    counts_exactly("kvm");
}

#[test]
fn vulkan_counts_exactly() {
    counts_exactly("vulkan");
}

#[test]
fn opencl_counts_exactly() {
    counts_exactly("opencl");
}

#[test]
fn all_at_once_count_exactly() {
    let scratch = Scratch::new("all");
    let file = scratch.file("data", &sample(700_001));
    for args in [["--unit", "byte", "--policy", "lazy"], ["--unit", "pair", "--policy", "adaptive"]] {
        let report = json(&file, &[&["--device", "all"], &args[..]].concat());
        assert_eq!(report["exact"], true, "{args:?}: {report}");
        let devices = report["devices"].as_array().expect("an array");
        let mut names: Vec<_> = devices.iter().filter_map(|device| device["name"].as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["kvm", "opencl", "software", "vulkan"], "{report}");
        for device in devices {
            let counted = device["bytes"].as_u64().expect("a number");
            match device["missing"].as_str() {
                None => assert!(counted > 0, "{report}"),
                Some(why) => {
                    assert!(counted == 0 && !why.is_empty() && device["name"] != "software", "{report}");
                    assert!(
                        device["name"] == "kvm" || std::env::var_os("PAGELEASE_NEEDS_DEVICES").is_none(),
                        "{report}"
                    );
                }
            }
        }
    }
}

#[test]
fn what_a_device_cannot_do_is_refused() {
    let scratch = Scratch::new("refused");
    let file = scratch.file("data", b"data");
    assert_refused(&histogram(&file, &["--device", "kvm", "--mode", "racy"]), &["software", "--mode racy"]);
    assert_refused(&histogram(&file, &["--device", "gpu"]), &["gpu", "kvm", "vulkan", "opencl", "all"]);
}

/// The doctor says of each device whether it can be used, and if not, what to do.
#[test]
fn the_doctor_says_why_a_driver_is_missing() {
    let output = pagelease(&["doctor", "--json"])
        .env("VK_DRIVER_FILES", "/nonexistent")
        .env("OCL_ICD_VENDORS", "/nonexistent")
        .output()
        .expect("the program starts");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let checks = report["checks"].as_array().expect("an array");
    let of = |name: &str| {
        let is = |check: &&Value| check["section"] == "devices" && check["name"].as_str() == Some(name);
        checks.iter().find(is).unwrap_or_else(|| panic!("no {name}: {report}"))
    };
    assert_eq!(of("software")["ok"], true);
    assert!(of("KVM")["found"].as_str().is_some_and(|found| !found.is_empty()));
    for name in ["Vulkan", "OpenCL"] {
        let check = of(name);
        assert_eq!(check["ok"], false, "{check}");
        let remedy = check["remedy"].as_str().unwrap_or_else(|| panic!("{check}"));
        assert!(remedy.starts_with("unset ") || remedy.starts_with("sudo apt install "), "{check}");
    }
}
