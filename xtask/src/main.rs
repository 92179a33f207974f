//! Project tasks: `cargo xtask test`, `cargo xtask kernels`.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use kernels::{Options, Unavailable};

mod kernels;

const USAGE: &str = "\
Usage: cargo xtask test
       cargo xtask kernels [--kernel 6.1|6.12|7.3|SERIES|PATH]... [-- ARGUMENTS]
       cargo xtask kernels --compare IMAGE

  test      every test: unit, property, conformance, failure and stress tests on real memory; the lab's whole table; the
            examples in the documentation; then the shipped engine under schedule exploration, its mutants, and histories
            of the lab that it must follow
  kernels   conformance and stress tests, the doctor and the histogram on Debian's kernels (the newest packages of these
            series; or any x86-64 bzImage), in an emulated machine. With ARGUMENTS, only the conformance tests, with these
            (a test's name, for one), and all they print. Needs Debian's apt, qemu-system-x86, seabios and busybox-static.
            --compare: no tests, but `pagelease bench kernel` on this kernel, a bzImage with CONFIG_TEST_HMM: claims and
            touches beside those of its own device-exclusive memory, on a clock that counts instructions

Exits with 0 if everything passed, 1 if something failed, 2 on bad input; kernels with 3 if what it needs is not to be had.";

const BAD_INPUT: u8 = 2;
const UNAVAILABLE: u8 = 3;

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let task = words.next();
    let words: Vec<_> = words.collect();
    let own = || words.iter().take_while(|word| *word != "--");
    let result = match task.as_deref() {
        Some("test") if words.is_empty() => test().map(|()| true),
        _ if task.iter().chain(own()).any(|word| word == "--help" || word == "-h") => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Some("kernels") => match Options::parse(words.into_iter()) {
            Ok(options) => kernels::run(&options),
            Err(error) => {
                eprintln!("xtask: {error}");
                return ExitCode::from(BAD_INPUT);
            }
        },
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(BAD_INPUT);
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            if error.is::<Unavailable>() { ExitCode::from(UNAVAILABLE) } else { ExitCode::FAILURE }
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
