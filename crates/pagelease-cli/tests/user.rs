//! An ordinary user counts as exactly as root does, and is told what he may not do.
//!
//! Run by root, the other tests say nothing of that. A file of its own, since it copies the program: a child that another
//! test of the same process forks meanwhile would have the copy open for writing, and then it cannot be started.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use common::{Scratch, assert_refused, sample};
use serde_json::Value;

/// Somebody who owns nothing.
const NOBODY: u32 = 65534;

#[test]
fn an_ordinary_user_counts_as_exactly() {
    let scratch = Scratch::inside(&std::env::temp_dir(), "user");
    let program = scratch.path("pagelease");
    fs::copy(env!("CARGO_BIN_EXE_pagelease"), &program).expect("a copy that everybody may run");
    let file = scratch.file("data", &sample(100_000));
    let secret = scratch.file("secret", b"not for everybody");
    for (path, mode) in
        [(scratch.path(""), 0o755), (program.clone(), 0o755), (file.clone(), 0o644), (secret.clone(), 0)]
    {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("permissions");
    }
    let as_user = |args: &[&str]| {
        let mut command = Command::new(&program);
        if rustix::process::geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.args(args).stdin(Stdio::null()).output().expect("it starts")
    };
    let [file, secret] = [&file, &secret].map(|path| path.to_str().expect("UTF-8"));
    for faults in ["monitor", "in-thread"] {
        let output = as_user(&["run", "histogram", file, "--json", "--faults", faults]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!((&report["exact"], &report["faults"]), (&true.into(), &faults.into()));

        let words = String::from_utf8(as_user(&["run", "histogram", file, "--faults", faults]).stdout).expect("UTF-8");
        let limited = words.contains("userfaultfd for user-mode faults only");
        assert_eq!(limited, report["privilege"] == "user-mode-only", "{words}");
    }
    assert_refused(&as_user(&["run", "histogram", secret]), &["secret", "permission denied"]);
    // Root's to write, if it is root who tests; else the user's own, and made read-only for this.
    fs::set_permissions(scratch.path(""), fs::Permissions::from_mode(0o555)).expect("permissions");
    let out = scratch.path("counts.csv");
    let output = as_user(&["run", "histogram", file, "--out", out.to_str().expect("UTF-8")]);
    fs::set_permissions(scratch.path(""), fs::Permissions::from_mode(0o755)).expect("permissions");
    assert_refused(&output, &["--out", "counts.csv", "ermission denied"]);
}
