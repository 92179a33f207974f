//! What cannot be counted is refused in one line, with exit code 2, before any work is done.

mod common;

use std::fs;
use std::path::Path;

use common::{Scratch, assert_refused, histogram, pagelease};
use rustix::fs::{CWD, FileType, Mode, mknodat};

#[test]
fn files_that_cannot_be_counted() {
    let scratch = Scratch::new("files");
    assert_refused(&histogram(&scratch.path("missing"), &[]), &["missing", "does not exist", "name a file"]);
    assert_refused(&histogram(&scratch.file("empty", b""), &[]), &["empty\" is empty"]);
    assert_refused(&histogram(&scratch.path(""), &[]), &["is a directory", "name a file in it"]);
    assert_refused(&histogram(Path::new("/dev/null"), &[]), &["/dev/null", "device file"]);
    assert_refused(&histogram(Path::new("/dev/zero"), &[]), &["/dev/zero", "device file"]);
    assert_refused(&histogram(&scratch.file("file", b"x").join("below"), &[]), &["below", "ot a directory"]);
    // Nobody writes to it: opening it must not wait.
    let pipe = scratch.path("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a pipe");
    assert_refused(&histogram(&pipe, &[]), &["is a pipe"]);
    // A file of /sys: regular, with a size, and cannot be mapped.
    assert_refused(&histogram(Path::new("/sys/kernel/mm/transparent_hugepage/enabled"), &[]), &["cannot be mapped"]);
    let _listener = std::os::unix::net::UnixListener::bind(scratch.path("socket")).expect("a socket");
    assert_refused(&histogram(&scratch.path("socket"), &[]), &["is a socket"]);
}

#[test]
fn a_name_with_a_line_break_is_one_line() {
    let scratch = Scratch::new("names");
    assert_refused(&histogram(&scratch.path("two\nlines"), &[]), &["two\\nlines"]);
}

#[test]
fn arguments_that_make_no_sense() {
    let scratch = Scratch::new("arguments");
    let file = scratch.file("data", b"data");
    for (args, words) in [
        (&["--cpu-threads", "0"][..], &["--cpu-threads", "1 to 1024"][..]),
        (&["--device-workers", "0"], &["--device-workers", "1 to 1024"]),
        (&["--cpu-threads", "1025"], &["1025", "--cpu-threads", "1 to 1024"]),
        (&["--device-workers", "99999999999999999999"], &["--device-workers", "1 to 1024"]),
        (&["--cpu-threads", "two"], &["two", "1 to 1024"]),
        (&["--device", "gpu"], &["gpu", "--device", "software"]),
        (&["--mode", "fast"], &["fast", "exclusive", "racy"]),
        (&["--faults", "none"], &["none", "monitor", "in-thread"]),
        (&["--policy", "never"], &["never", "lazy", "eager", "adaptive"]),
        (&["--unit", "word"], &["word", "byte", "pair"]),
        (&["--jsn"], &["--jsn", "--json"]),
    ] {
        assert_refused(&histogram(&file, args), words);
    }
    assert_refused(&pagelease(&["run", "histogram"]).output().expect("it starts"), &["<FILE>"]);
    assert_refused(&pagelease(&["walk"]).output().expect("it starts"), &["walk"]);
}

#[test]
fn an_output_that_cannot_be_written_is_found_before_the_work() {
    let scratch = Scratch::new("outputs");
    let file = scratch.file("data", b"data");
    let out = |path: &Path| histogram(&file, &["--out", path.to_str().expect("UTF-8")]);
    assert_refused(&out(&scratch.path("nowhere/counts.csv")), &["--out", "nowhere/counts.csv", "cannot be written"]);
    assert_refused(&out(&scratch.path("")), &["--out", "cannot be written"]);
    assert_refused(&out(&file), &["--out", "is the file to count"]);
    fs::hard_link(&file, scratch.path("same")).expect("a link");
    assert_refused(&out(&scratch.path("same")), &["--out", "is the file to count"]);
    assert_eq!(fs::read(&file).expect("the file"), b"data", "it is as it was");
}
