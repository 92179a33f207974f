//! `drain`: what it costs to take a page from a device that works on it.
//!
//! Value: one CPU touch, served in the touching thread, of a page on which the device's worker runs operation after operation
//! without pause: the trap, the invalidation with its drain, and the mapping, all of it. Floor: one `membarrier` alone, with
//! the same threads running. The drain's design is that one `membarrier`, so that the worker pays no fence; its goal leaves
//! the other half for the trap, the mapping, and the operation in flight.
//!
//! Each sample waits until the device has the page again, and then a little, so that its worker is in its stride.
//!
//! Placement: the touching thread here, the worker there, and of the other busy threads half here and half there. With those,
//! the worker is often not running at all; if it was stopped within an operation, no scheme can take the page before it runs
//! again, and such samples take milliseconds. The upper quartile shows them.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::thread::yield_now;

use anyhow::{Result, ensure};
use pagelease::software::{DevicePage, Item, Job};
use pagelease::{Faults, PageIndex};
use pagelease_sys::barrier::barrier;

use super::Setup;
use super::cpus::{Spin, Spinner};
use super::figure::Figure;
use super::managed::{Managed, pages};
use super::stats::{Arms, Random, spin_for, time};

/// Items of a job: some milliseconds of work.
const ITEMS: usize = 1 << 18;

/// Jobs in the device's queue: enough that it never runs dry while this thread waits for its CPU.
const JOBS: usize = 4;

const PAGE: PageIndex = PageIndex(0);

/// The word that each operation counts in.
const WORD: usize = 1;

/// From the device's having the page back to the next sample, at least; and at most twice that.
const PAUSE_NS: u32 = 50_000;

pub(super) fn run(setup: &Setup) -> Result<Vec<Figure>> {
    let managed = Managed::new(Faults::InThread, 1, setup.cpus.there)?;
    let mut figures = Vec::new();
    for (busy, rounds) in [(0, 3000), (2, 600), (4, 400)] {
        let sides = [setup.cpus.here, setup.cpus.there];
        let spinners = (0..busy).map(|index| Spinner::start(sides[index % 2], Spin::Busy));
        let _spinners: Vec<Spinner> = spinners.collect::<Result<_>>()?;
        let arms = measure(&managed, setup.samples(rounds))?;
        figures.push(Figure::of(format!("{busy} other busy threads"), &arms, 1).goal(2.0));
    }
    Ok(figures)
}

fn measure(managed: &Managed, rounds: usize) -> Result<Arms> {
    let device = core::cell::RefCell::new(Working::new(managed));
    let arms = Arms::in_turn(
        rounds,
        |_| {
            device.borrow_mut().work()?;
            Ok(time(|| managed.touch(PAGE.as_usize())).1)
        },
        |_| {
            device.borrow_mut().work()?;
            Ok::<_, anyhow::Error>(time(barrier).1)
        },
    )?;
    device.into_inner().finish()?;
    Ok(arms)
}

/// A device that works on the page without pause.
struct Working<'a> {
    managed: &'a Managed,
    items: Vec<Item>,
    jobs: VecDeque<Job>,
    random: Random,
    submitted: u64,
    before: u64,
}

impl<'a> Working<'a> {
    fn new(managed: &'a Managed) -> Self {
        Self {
            managed,
            items: vec![Item { page: PAGE, argument: 0 }; ITEMS],
            jobs: VecDeque::new(),
            random: Random(1),
            submitted: 0,
            before: count(managed),
        }
    }

    /// Returns when it has the page, and has work for long.
    fn work(&mut self) -> Result<()> {
        loop {
            while self.jobs.front().is_some_and(Job::is_over)
                && let Some(job) = self.jobs.pop_front()
            {
                job.wait()?;
            }
            while self.jobs.len() < JOBS {
                let Managed { device, view, .. } = self.managed;
                let add_one = |page: &DevicePage<'_>, _| page.update(WORD, |count| count + 1);
                self.jobs.push_back(device.submit(view, add_one, &self.items));
                self.submitted += 1;
            }
            while !self.managed.has(PAGE) {
                yield_now();
            }
            spin_for(u64::from(PAUSE_NS + self.random.below(PAUSE_NS)));
            if self.managed.has(PAGE) && !self.jobs[JOBS - 1].is_over() {
                return Ok(());
            }
        }
    }

    /// Waits for the rest, and checks that no update was lost to all the taking away.
    fn finish(self) -> Result<()> {
        for job in self.jobs {
            job.wait()?;
        }
        let (counted, expected) = (count(self.managed) - self.before, self.submitted * ITEMS as u64);
        ensure!(counted == expected, "of {expected} updates {counted} were counted");
        Ok(())
    }
}

/// What the operations have counted, as the CPU sees it.
fn count(managed: &Managed) -> u64 {
    managed.region.prefetch(pages(0, 1));
    managed.region.words()[WORD].load(Ordering::Relaxed)
}
