//! The `pagelease` program: `doctor` looks the machine over, `run` does a job with it, `bench` measures it.
//!
//! Exit codes: 0, it did what was asked, and the result is right; 1, the result is wrong, or this machine cannot do it;
//! 2, the input or the command line is bad. What goes wrong is said in one line on standard error.
//!
//! | module | what it does |
//! |---|---|
//! | `bench` | `pagelease bench`: how fast, each figure beside its floor |
//! | `doctor` | `pagelease doctor`: what this machine offers |
//! | `lab` | `pagelease lab`: which design of device-exclusive memory is right, and the history that breaks the others |
//! | `histogram` | `pagelease run histogram`: CPU and device count one file into one table |
//! | `failure` | errors: their one line, and their exit code |

mod bench;
mod doctor;
mod failure;
mod histogram;
mod lab;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Device-exclusive shared memory for Linux: a device takes pages of a process, the CPU gets them back by touching them
///
/// Exit codes: 0 it worked, and the result is right; 1 it is wrong, or this machine cannot do it; 2 the input is bad.
/// What --json prints is described in docs/JSON.md.
#[derive(Parser)]
#[command(name = "pagelease", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Doctor(doctor::Args),
    #[command(subcommand)]
    Run(Run),
    Bench(bench::Args),
    Lab(lab::Args),
}

/// Do a job on real data, with CPU threads and a device that share memory
#[derive(Subcommand)]
enum Run {
    Histogram(histogram::Args),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return failure::refuse(&error),
    };
    let result = match &cli.command {
        Command::Doctor(args) => doctor::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Lab(args) => lab::run(args),
        Command::Run(Run::Histogram(args)) => histogram::run(args),
    };
    result.unwrap_or_else(|error| failure::report(&error))
}
