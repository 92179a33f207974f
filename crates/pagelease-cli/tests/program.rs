//! The program as such: help, exit codes, an output that nobody reads, and an ordinary user.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use common::{Scratch, assert_refused, pagelease, sample};
use serde_json::Value;

/// An ordinary user, who owns nothing. What he is called does not matter.
const NOBODY: u32 = 65534;

#[test]
fn help_names_what_there_is() {
    for (args, words) in [
        (&["--help"][..], &["doctor", "run", "Exit codes"][..]),
        (&["run", "--help"], &["histogram"]),
        (
            &["run", "histogram", "--help"],
            &["--cpu-threads", "--device-workers", "--json", "--out", "racy", "in-thread"],
        ),
        (&["--version"], &[env!("CARGO_PKG_VERSION")]),
    ] {
        let output = pagelease(args).output().expect("it starts");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        assert_eq!(output.status.code(), Some(0), "{text}");
        assert!(words.iter().all(|word| text.contains(word)), "{words:?}: {text}");
    }
    assert_eq!(pagelease(&[]).status().expect("it starts").code(), Some(2));
}

#[test]
fn nobody_reads_the_output() {
    let scratch = Scratch::new("unread");
    let file = scratch.file("data", b"some data");
    let file = file.to_str().expect("UTF-8");
    for args in [&["run", "histogram", file][..], &["run", "histogram", file, "--json"], &["doctor"], &["--help"]] {
        let mut child =
            pagelease(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("it ends");
        // 141: as if by SIGPIPE. Of help, nobody wants to know.
        assert!(matches!(output.status.code(), Some(141 | 0)), "{args:?}: {output:?}");
        assert!(output.stderr.is_empty(), "{args:?}: {output:?}");
    }
}

#[test]
fn a_full_disk_is_an_error_of_one_line() {
    let scratch = Scratch::new("full");
    let file = scratch.file("data", b"some data");
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    let mut command = pagelease(&["run", "histogram"]);
    let output = command.arg(&file).stdout(full()).stderr(Stdio::piped()).output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
    assert!(said.contains("standard output"), "{said}");
}

/// Run by root, the tests above say nothing of what others can do; run by anybody else, this says what they do.
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
