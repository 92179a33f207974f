//! `thrash`: what is got done while CPU and device fight over one page.
//!
//! Two threads and a device update the same 8 words of one page without pause, the threads by atomic additions, the device by
//! a load, an addition and a store. Value: the time for each update, whoever makes it, with `RestorePolicy::Adaptive`.
//! Floor: the same with `RestorePolicy::Lazy`. The goal says how many times as many updates there are to be in the same
//! time; as a ratio, 1/3. And neither side may pay for it: the larger one's share of the updates is to be 90 % at most.
//!
//! A sample is [`SLICE`] in a space of its own, so each begins before there is a fight. All updates are counted by whoever
//! makes them, and the sum is checked against the page. The words lie on different cache lines: it is the page that is to
//! be fought over. An operation of the device's is 64 updates, so that what it does is not mainly to ask whether it may.
//!
//! Placement: one CPU thread here; the other and the device's worker there, since there are only two CPUs; monitors here.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pagelease::software::{DevicePage, Item};
use pagelease::{Faults, RestorePolicy};
use pagelease_sys::thread::monotonic_ns;

use super::Setup;
use super::cpus::{Cpus, pin};
use super::figure::{Figure, duration};
use super::managed::{Managed, words_per_page};
use super::stats::{Arms, Samples};

/// How long each arm runs at a time.
const SLICE: Duration = Duration::from_millis(250);

/// Operations whose time is a sample, so that it is no small number of nanoseconds.
const MANY: usize = 1_000_000;

/// How often an operation of the device's updates each word.
const ROUNDS: usize = 8;

/// Operations of a job. Two are always queued behind the one that runs.
const ITEMS: usize = 8192;

/// The words that are fought over.
const WORDS: usize = 8;

pub(super) fn run(setup: &Setup) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (faults, name) in [(Faults::InThread, "in-thread"), (Faults::Monitor, "monitor")] {
        let mut adaptive = Arm::new(setup.cpus, faults, RestorePolicy::Adaptive);
        let mut lazy = Arm::new(setup.cpus, faults, RestorePolicy::Lazy);
        let arms = Arms::in_turn(setup.samples(12), |_| adaptive.slice(), |_| lazy.slice())?;
        let figure = Figure::of(format!("{name}, an operation"), &arms, MANY).goal(1.0 / 3.0);
        let note = format!("{:.1} times the operations; {}", 1.0 / figure.ratio(), adaptive.shown());
        figures.push(figure.note(note));
        let shares = format!("of lazy's it has {:.2}; {}", larger(&lazy.shares), lazy.shown());
        let share = Figure::count(format!("{name}, the larger side's share"), larger(&adaptive.shares)).goal(0.9);
        figures.push(share.note(shares));
    }
    Ok(figures)
}

/// The median of the CPU's shares says whose is the larger.
fn larger(cpu_percent: &Samples) -> f64 {
    let cpu = cpu_percent.summary().median / 1e4;
    cpu.max(1.0 - cpu)
}

struct Arm {
    faults: Faults,
    policy: RestorePolicy,
    cpus: Cpus,
    /// The CPU's part of each slice's operations, in hundredths of a percent.
    shares: Samples,
    /// Of all slices.
    operations: u64,
    claims: u64,
    fights: u64,
    throttled: u64,
    throttle_ns_max: u64,
}

/// What the sides of one slice share.
struct Slice {
    managed: Managed,
    cpus: Cpus,
}

impl Arm {
    fn new(cpus: Cpus, faults: Faults, policy: RestorePolicy) -> Self {
        let shares = Samples::default();
        Self { faults, policy, cpus, shares, operations: 0, claims: 0, fights: 0, throttled: 0, throttle_ns_max: 0 }
    }

    /// Whose page it was how often, and how long somebody waited for it.
    fn shown(&self) -> String {
        let throttled = if self.throttled == 0 {
            "no touch throttled".to_owned()
        } else {
            #[expect(clippy::cast_precision_loss, reason = "for three digits of it")]
            let longest = duration(self.throttle_ns_max as f64);
            format!("{} fights, {} touches throttled, {longest} at most", self.fights, self.throttled)
        };
        format!("{} operations a claim, {throttled}", self.operations / self.claims.max(1))
    }

    /// Runs both sides for a while, in a space of its own; the time of [`MANY`] operations.
    fn slice(&mut self) -> Result<u64> {
        let managed = Managed::with_policy(self.faults, self.policy, 1, Some(self.cpus.there))?;
        if self.faults == Faults::Monitor {
            managed.monitors_run_on(self.cpus.here)?;
        }
        let slice = Slice { managed, cpus: self.cpus };
        let begin_ns = monotonic_ns();
        let (by_cpu, by_device) = slice.fight()?;
        let elapsed_ns = monotonic_ns() - begin_ns;
        let operations = by_cpu + by_device;
        ensure!(slice.sum() == operations, "an update was lost");
        self.operations += operations;
        self.shares.push(by_cpu * 10_000 / operations.max(1));
        let stats = slice.managed.space.stats();
        self.claims += stats.claims;
        self.fights += stats.fights;
        self.throttled += stats.touches_throttled;
        self.throttle_ns_max = self.throttle_ns_max.max(stats.throttle_ns_max);
        Ok(elapsed_ns * MANY as u64 / operations.max(1))
    }
}

impl Slice {
    /// How many updates the CPU and the device have made.
    fn fight(&self) -> Result<(u64, u64)> {
        let words = self.managed.region.words();
        let progress = Arc::new(Progress::default());
        let cpu = |cpu, first: usize| {
            pin(None, cpu)?;
            let mut made = 0;
            while !progress.stop.load(Ordering::Relaxed) {
                for n in 0..WORDS {
                    words[word(first + n)].fetch_add(1, Ordering::Relaxed);
                }
                made += WORDS as u64;
            }
            Ok::<u64, anyhow::Error>(made)
        };
        let cpu = &cpu;
        std::thread::scope(|scope| {
            let places = [(self.cpus.here, 0), (self.cpus.there, WORDS / 2)];
            let threads = places.map(|(at, first)| scope.spawn(move || cpu(at, first)));
            let worked = self.keep_busy(&progress);
            progress.stop.store(true, Ordering::Relaxed);
            let made = threads.map(|thread| thread.join().ok().context("a thread panicked")?);
            worked?;
            Ok((made.into_iter().sum::<Result<u64>>()?, progress.by_device.load(Ordering::Relaxed)))
        })
    }

    /// Gives the device more to do than it can, for the time of the slice.
    fn keep_busy(&self, progress: &Arc<Progress>) -> Result<()> {
        let items = [Item::new(0, 0); ITEMS];
        let submit = || {
            let progress = progress.clone();
            let update = move |page: &DevicePage<'_>, _| {
                if !progress.stop.load(Ordering::Relaxed) {
                    for n in 0..ROUNDS * WORDS {
                        page.update(word(n), |count| count + 1);
                    }
                    // There is one worker.
                    let made = progress.by_device.load(Ordering::Relaxed) + (ROUNDS * WORDS) as u64;
                    progress.by_device.store(made, Ordering::Relaxed);
                }
            };
            self.managed.device.submit(&self.managed.view, update, &items)
        };
        let end_ns = monotonic_ns() + u64::try_from(SLICE.as_nanos())?;
        let mut queued = VecDeque::from([submit(), submit()]);
        while monotonic_ns() < end_ns
            && let Some(first) = queued.pop_front()
        {
            queued.push_back(submit());
            first.wait()?;
        }
        progress.stop.store(true, Ordering::Relaxed);
        queued.into_iter().try_for_each(|job| Ok(job.wait()?))
    }

    fn sum(&self) -> u64 {
        (0..WORDS).map(|n| self.managed.region.words()[word(n)].load(Ordering::Relaxed)).sum()
    }
}

/// Where in the page the words lie: each on a cache line of its own, since it is the page that is to be fought over.
fn word(n: usize) -> usize {
    n % WORDS * (words_per_page() / WORDS)
}

/// What the sides of a slice tell each other.
#[derive(Default)]
struct Progress {
    stop: AtomicBool,
    by_device: AtomicU64,
}
