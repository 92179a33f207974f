//! The program as such: help, exit codes, an output that nobody reads.

mod common;

use std::fs;
use std::process::Stdio;

use common::{Scratch, pagelease};

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
    assert_eq!(pagelease(&[]).output().expect("it starts").status.code(), Some(2));
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
