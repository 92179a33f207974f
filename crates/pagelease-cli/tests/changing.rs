//! A file that changes while it is counted ends the program with a message, not with a signal, a panic, or a wrong verdict.

mod common;

use std::fs::{File, OpenOptions, read_to_string};
use std::io::Write;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Scratch, assert_refused, pagelease};

/// Would take many seconds to count. It takes no room: it is all hole.
const LEN: u64 = 8 << 30;

/// Waits until the program has mapped the file, and so knows its size.
fn wait_until_mapped(child: &mut Child, name: &str) {
    let begin = Instant::now();
    let maps = format!("/proc/{}/maps", child.id());
    while !read_to_string(&maps).is_ok_and(|maps| maps.contains(name)) {
        assert!(child.try_wait().expect("our child").is_none(), "it ended before the file changed");
        assert!(begin.elapsed() < Duration::from_secs(60), "it does not map the file");
        sleep(Duration::from_millis(1));
    }
}

/// Changes the file while it is counted, and checks what the program says of it. It must leave `--out` as it was.
fn counted_while(test: &str, faults: &str, change: impl FnOnce(&mut File)) {
    let scratch = Scratch::new(test);
    let name = format!("data-{test}");
    let path = scratch.path(&name);
    File::create(&path).and_then(|file| file.set_len(LEN)).expect("a sparse file");
    let out = scratch.file("counts.csv", b"what was there");

    let mut command = pagelease(&["run", "histogram", "--faults", faults]);
    command.arg(&path).arg("--out").arg(&out).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    wait_until_mapped(&mut child, &name);
    change(&mut OpenOptions::new().append(true).open(&path).expect("the file"));
    assert_refused(&child.wait_with_output().expect("it ends"), &[&name, "changed while it was counted"]);
    assert_eq!(read_to_string(&out).expect("a file"), "what was there");
}

#[test]
fn it_shrinks() {
    counted_while("shrinks-monitor", "monitor", |file| file.set_len(4096).expect("it shrinks"));
    counted_while("shrinks-in-thread", "in-thread", |file| file.set_len(0).expect("it shrinks"));
}

#[test]
fn it_grows() {
    counted_while("grows", "monitor", |file| file.write_all(b"more").expect("it grows"));
}
