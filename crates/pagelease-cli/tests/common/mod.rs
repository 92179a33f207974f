//! What the tests of the program share: running it, and files for it to work on.

// Each test file is a program of its own, and none needs everything.
#![allow(dead_code, reason = "see above")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// The program, with nothing on standard input.
pub(crate) fn pagelease(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pagelease"));
    command.args(args).stdin(Stdio::null());
    command
}

/// `pagelease run histogram FILE ARGS`, run to its end.
pub(crate) fn histogram(file: &Path, args: &[&str]) -> Output {
    pagelease(&["run", "histogram"]).arg(file).args(args).output().expect("the program starts")
}

/// The object that it prints with `--json`; it must have succeeded.
pub(crate) fn json(file: &Path, args: &[&str]) -> Value {
    let output = histogram(file, &[args, &["--json"]].concat());
    assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The program must have refused: code 2, nothing on standard output, and one line that has all of `words`.
pub(crate) fn assert_refused(output: &Output, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    assert_eq!(said.lines().count(), 1, "{said:?}");
    assert!(said.starts_with("pagelease: "), "{said:?}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in {said:?}");
    }
}

/// A directory of one test's own, removed at its end.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// `test` names it: each has one.
    pub(crate) fn new(test: &str) -> Self {
        Self::inside(Path::new(env!("CARGO_TARGET_TMPDIR")), test)
    }

    /// In `parent`.
    pub(crate) fn inside(parent: &Path, test: &str) -> Self {
        let path = parent.join(format!("pagelease-{test}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory for the test");
        Self(path)
    }

    /// A path in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A file in it.
    pub(crate) fn file(&self, name: &str, contents: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, contents).expect("a file for the test");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// `len` bytes that are the same in each run: every value occurs, small ones more often, so that both sides of a count meet
/// on the same counters.
pub(crate) fn sample(len: usize) -> Vec<u8> {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..len)
        .map(|_| {
            let [a, b, ..] = next();
            a.min(b)
        })
        .collect()
}
