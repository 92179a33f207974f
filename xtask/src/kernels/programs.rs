//! What runs in the guests: built here, linked statically, since a guest has no libraries.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::guest::missing;

/// A program for the guests.
#[derive(Clone, Debug)]
pub(crate) struct Built {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

/// Builds the programs `names`, tests and binaries of the workspace at `root`, into `target`.
pub(crate) fn build(root: &Path, target: &Path, tests: &[&str], binaries: &[&str]) -> Result<Vec<Built>> {
    let mut command = Command::new(env!("CARGO"));
    command.args(["build", "--release", "--package", "pagelease*", "--message-format=json-render-diagnostics"]);
    // Flags for a named target do not reach build scripts and procedural macros, which cannot be static.
    command.args(["--target", &host()?]);
    command.args(tests.iter().flat_map(|name| ["--test", name]));
    command.args(binaries.iter().flat_map(|name| ["--bin", name]));
    eprintln!("xtask: building {} {}, linked statically", tests.join(" "), binaries.join(" "));
    let built = command
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        // It would take precedence.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("CARGO_TARGET_DIR", target)
        .current_dir(root)
        .stderr(Stdio::inherit())
        .output()
        .context("cargo cannot be run")?;
    if !built.status.success() {
        bail!("the programs for the guests cannot be built: see above");
    }
    let messages = String::from_utf8_lossy(&built.stdout);
    tests.iter().chain(binaries).map(|name| executable(name, &messages)).collect()
}

/// The tests that a test program runs with these arguments, by its own list: what does not run shall not be overlooked.
pub(crate) fn tests_of(program: &Built, arguments: &[&str]) -> Result<Vec<String>> {
    let listed = Command::new(&program.path).args(arguments).arg("--list").output();
    let listed = listed.with_context(|| format!("{} cannot be run", program.path.display()))?;
    let tests: Vec<_> = String::from_utf8_lossy(&listed.stdout)
        .lines()
        .filter_map(|line| line.strip_suffix(": test").map(str::to_owned))
        .collect();
    if !listed.status.success() || tests.is_empty() {
        bail!("{} --list names no test ({})", program.path.display(), listed.status);
    }
    Ok(tests)
}

/// This machine's target, as rustc names it.
fn host() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version =
        Command::new(rustc).arg("-vV").output().map_err(|error| missing("rustc", "a Rust toolchain", &error))?;
    let version = String::from_utf8_lossy(&version.stdout);
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV names no host")?.to_owned())
}

fn executable(name: &str, messages: &str) -> Result<Built> {
    let path = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(|message| {
        let ours = message["target"]["name"] == name;
        ours.then(|| message["executable"].as_str().map(PathBuf::from)).flatten()
    });
    Ok(Built { name: name.to_owned(), path: path.with_context(|| format!("cargo built no program {name}"))? })
}
