//! `fork`: what managing memory costs a program that forks.
//!
//! Two programs with 1 GiB of memory each: in one it is adopted and a device has 64 MiB of it, in the other nothing is managed.
//! Value: the parent's call of `fork` in the one; floor: in the other. The child exits at once. A fork brings the device's pages back
//! first, which costs what it costs at any other time: it is measured on its own just before, as a prefetch of the same pages,
//! and what is held against the goal is the rest. The first claim after a fork has to undo the sharing with the child page by
//! page; it is shown beside `MADV_POPULATE_WRITE` of as many pages in the program that manages nothing, which does just that.
//!
//! The two are processes of their own, started by this one, and take turns, so that neither runs in what the other has left behind.
//! Both write to the 64 MiB between two forks, or the sharing would stay undone in one of them only.
//!
//! Placement: both here; the runtime's threads, there, sleep.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use pagelease::Faults;
use pagelease_sys::{mem, page_size};

use super::Setup;
use super::carried::{self, Carried, Pages, Private};
use super::figure::{Figure, duration};
use super::managed::pages;
use super::scale;
use super::stats::{Arms, Samples, spin_for, time};
use crate::failure;

/// The memory of each program.
const LEN: usize = 1 << 30;

/// What the device has of it.
const TAKEN: usize = 64 << 20;

/// Before a claim: see `moves`.
const RESIDENCY_NS: u64 = 600_000;

/// Which of the two programs a process is.
#[derive(Copy, Clone, Debug, Eq, PartialEq, clap::ValueEnum)]
pub(super) enum Side {
    /// Its memory is adopted.
    Managed,
    /// It is not.
    Plain,
}

/// What a program says of a round, in nanoseconds, on one line.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq)]
struct Round {
    /// A fork while no device has anything.
    idle: u64,
    /// A fork while the device has its part.
    taken: u64,
    /// The return of that part at any other time.
    back: u64,
    /// A claim of it, the first after a fork; in the other program, writing to it.
    first_claim: u64,
    /// A claim of it at any other time.
    claim: u64,
}

impl Round {
    fn parse(line: &str) -> Result<Self> {
        let times: Vec<u64> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let [idle, taken, back, first_claim, claim] = times[..] else { bail!("{line:?} are not five times") };
        Ok(Self { idle, taken, back, first_claim, claim })
    }
}

pub(super) fn run(setup: &Setup) -> Result<Vec<Figure>> {
    if !carried::can_move("fork")? {
        return Ok(Vec::new());
    }
    let needed = 5 * LEN / 2;
    if scale::available()? < needed {
        failure::say(format_args!("bench fork: skipped: it takes {} MiB of free memory", needed >> 20));
        return Ok(Vec::new());
    }
    let start = |side| setup.cpus.with_both(|| Program::start(side));
    let (mut managed, mut plain) = (start(Side::Managed)?, start(Side::Plain)?);
    let (mut idle, mut taken, mut rest) = (Arms::default(), Arms::default(), Arms::default());
    let mut first_claim = Arms::default();
    let (mut back, mut claim) = <(Samples, Samples)>::default();
    for round in 0..=setup.samples(30) {
        let (value, floor) = (managed.round()?, plain.round()?);
        // The first round warms up.
        if round == 0 {
            continue;
        }
        idle.value.push(value.idle);
        idle.floor.push(floor.idle);
        taken.value.push(value.taken);
        taken.floor.push(floor.taken);
        rest.value.push(value.taken.saturating_sub(value.back));
        rest.floor.push(floor.taken);
        back.push(value.back);
        first_claim.value.push(value.first_claim);
        first_claim.floor.push(floor.first_claim);
        claim.push(value.claim);
    }
    let note = format!("the return alone: {}", duration(back.summary().median));
    let another = format!("at any other time: {}", duration(claim.summary().median));
    Ok(vec![
        Figure::of("1 GiB managed, 64 MiB of it a device's, less their return", &rest, 1).goal(2.0).note(note),
        Figure::of("the same, their return included", &taken, 1),
        Figure::of("1 GiB managed, no device has anything", &idle, 1),
        Figure::of("the first claim of 64 MiB after a fork, against writing to it", &first_claim, 1).note(another),
    ])
}

/// One of the two, running.
struct Program {
    child: Child,
    /// `None` once it shall end.
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Program {
    fn start(side: Side) -> Result<Self> {
        let side = if side == Side::Managed { "managed" } else { "plain" };
        let program = std::env::current_exe().context("this program's file")?;
        let mut command = Command::new(program);
        command.args(["bench", "--fork-side", side]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("starting this program again")?;
        let (orders, answers) = (child.stdin.take(), child.stdout.take().context("its standard output")?);
        Ok(Self { child, orders, answers: BufReader::new(answers) })
    }

    fn round(&mut self) -> Result<Round> {
        self.orders.as_mut().context("it shall end")?.write_all(b"\n").context("the other program has ended")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        ensure!(!line.is_empty(), "the other program has failed, and said why");
        Round::parse(&line)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It ends when there are no orders any more.
        drop(self.orders.take());
        let _ = self.child.wait();
    }
}

/// Is one of the two programs: a round for each line of standard input.
pub(super) fn serve(side: Side, setup: &Setup) -> Result<ExitCode> {
    let memory = Private::new(LEN, Pages::Base)?;
    match side {
        Side::Managed => {
            let carried = Carried::new(Faults::Monitor, memory, Pages::Base, setup.cpus.there)?;
            rounds(|| managed_round(&carried))
        }
        Side::Plain => rounds(|| plain_round(&memory)),
    }
}

fn rounds(round: impl Fn() -> Result<Round>) -> Result<ExitCode> {
    let mut out = std::io::stdout();
    for order in std::io::stdin().lines() {
        order?;
        let Round { idle, taken, back, first_claim, claim } = round()?;
        writeln!(out, "{idle} {taken} {back} {first_claim} {claim}")?;
        out.flush()?;
    }
    Ok(ExitCode::SUCCESS)
}

fn managed_round(carried: &Carried) -> Result<Round> {
    let part = pages(0, TAKEN / page_size());
    let claim = || -> Result<u64> {
        spin_for(RESIDENCY_NS);
        let (taken, ns) = time(|| carried.take(part));
        taken.map(|()| ns)
    };
    let idle = fork()?;
    let first_claim = claim()?;
    let ((), back) = time(|| carried.region.prefetch(part));
    let claim = claim()?;
    let taken = fork()?;
    Ok(Round { idle, taken, back, first_claim, claim })
}

fn plain_round(memory: &Private) -> Result<Round> {
    let idle = fork()?;
    spin_for(RESIDENCY_NS);
    let part = memory.part(0, TAKEN)?;
    let (written, first_claim) = time(|| mem::populate_write(part));
    written.context("MADV_POPULATE_WRITE")?;
    spin_for(RESIDENCY_NS);
    let taken = fork()?;
    Ok(Round { idle, taken, first_claim, ..Round::default() })
}

/// Forks, and returns how long the parent's call took, once the child has gone.
fn fork() -> Result<u64> {
    // SAFETY: the child makes no call but one that is signal-safe, and does not return.
    let (child, ns) = time(|| match unsafe { libc::fork() } {
        // SAFETY: no precondition.
        0 => unsafe { libc::_exit(0) },
        child => child,
    });
    ensure!(child > 0, "fork: {}", std::io::Error::last_os_error());
    let mut status = 0;
    // SAFETY: the pointer is to an int.
    while unsafe { libc::waitpid(child, &raw mut status, 0) } < 0 {
        let error = std::io::Error::last_os_error();
        ensure!(error.kind() == std::io::ErrorKind::Interrupted, "waitpid: {error}");
    }
    ensure!(status == 0, "the child ended with status {status:#x}");
    Ok(ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_a_line() {
        let round = Round { idle: 1, taken: 2, back: 3, first_claim: 4, claim: 5 };
        assert_eq!(Round::parse("1 2 3 4 5\n").unwrap(), round);
        assert!(Round::parse("1 2 3 4").is_err() && Round::parse("1 2 3 4 x").is_err());
    }
}
