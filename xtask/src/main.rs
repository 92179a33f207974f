//! Project tasks: `cargo xtask test`.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

const USAGE: &str = "\
Usage: cargo xtask test

  test   every test: unit, property, conformance, failure and stress tests on real memory; the lab's whole table; the
         examples in the documentation; then the shipped engine under schedule exploration, its mutants, and histories
         of the lab that it must follow";

fn main() -> ExitCode {
    let result = match std::env::args().nth(1).as_deref() {
        Some("test") => test(),
        Some("--help" | "-h") => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn test() -> Result<()> {
    cargo(&["test", "--workspace"], &[])?;
    // Another configuration of the same sources: a target folder of its own keeps both builds warm.
    cargo(
        &[
            "test",
            "--release",
            "--package",
            "pagelease",
            "--test",
            "schedules",
            "--test",
            "mutants",
            "--test",
            "histories",
        ],
        &[("RUSTFLAGS", "--cfg pagelease_shuttle"), ("CARGO_TARGET_DIR", "target/shuttle")],
    )
}

fn cargo(arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the workspace")?;
    let shown: Vec<String> = environment.iter().map(|(name, value)| format!("{name}='{value}'")).collect();
    eprintln!("xtask: {} cargo {}", shown.join(" "), arguments.join(" "));
    let status = Command::new(env!("CARGO"))
        .args(arguments)
        .envs(environment.iter().copied())
        .current_dir(root)
        .status()
        .context("cargo cannot be run")?;
    if !status.success() {
        bail!("cargo {} failed: {status}", arguments.join(" "));
    }
    Ok(())
}
