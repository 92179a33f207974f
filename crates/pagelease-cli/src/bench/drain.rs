//! `drain`: what it costs to take a page from a device that works on it.
//!
//! Value: one CPU touch, served in the touching thread, of a page on which the device's worker runs operation after operation
//! without pause: the trap, the invalidation with its drain, and the mapping, all of it. Floor: one `membarrier` alone, with
//! the same threads running. The drain's design is that one `membarrier`, so that the worker pays no fence; its goal leaves
//! the other half for the trap, the mapping, and the operation in flight.
//!
//! The other busy threads are further workers of the device, each at work on a page of its own: those, a drain must not wait
//! for. (A scheme that waits until every worker has passed a quiescent state would: for milliseconds, as soon as there are more
//! threads than CPUs.)
//!
//! Placement: the touching thread here, the page's worker there, the other workers half here and half there. Each sample begins
//! when the page's worker is seen at work. Where it shares its CPU, it is often not running: stopped in the middle of an
//! operation, it can be drained by no scheme before it runs again, and what one would measure is the scheduler. While waiting for
//! that, the kernel's part of this CPU's caches goes cold. So just before, in both arms, another page that the device has, and
//! nobody works on, is touched.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use anyhow::{Result, ensure};
use pagelease::software::{DevicePage, Item, Job, SoftwareConfig};
use pagelease::{Faults, PageIndex, PageRange};
use pagelease_sys::barrier::barrier;

use super::figure::Figure;
use super::managed::{Managed, pages};
use super::stats::{Arms, spin_for, time};
use super::{Setup, cpus};

/// Words that an operation updates: some 100 ns of work.
const WORDS: usize = 64;

/// Items of a job: some milliseconds of work.
const ITEMS: usize = 1 << 16;

/// Jobs in each worker's queue: enough that it does not run dry while this thread waits for its CPU.
const JOBS: usize = 8;

/// The page that is taken, and by its number the worker that has it.
const PAGE: PageIndex = PageIndex(0);

/// Operations of the page's worker before it is taken again: some 200 us of work. It is in its stride then, and no longer
/// holds what it has claimed; a touch would wait for that, and what is measured is not how long a device holds its pages.
const STRIDE: u64 = 3000;

/// Some operations' time.
const LOOK_NS: u64 = 1_000;

pub(super) fn run(setup: &Setup) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (others, rounds) in [(0, 2000), (2, 500), (4, 300)] {
        let workers = 1 + others;
        let config = SoftwareConfig { workers, ..SoftwareConfig::default() };
        let managed = Managed::untouched(Faults::InThread, workers + 1, setup.cpus.there, config)?;
        for worker in 1..workers {
            let cpu = [setup.cpus.here, setup.cpus.there][worker % 2];
            cpus::pin_named(&format!("{}{worker}", Managed::WORKER), 1, cpu)?;
        }
        let arms = measure(&managed, workers, setup.samples(rounds))?;
        figures.push(Figure::of(format!("{others} other busy threads"), &arms, 1).goal(2.0));
    }
    Ok(figures)
}

fn measure(managed: &Managed, workers: usize, rounds: usize) -> Result<Arms> {
    let device = core::cell::RefCell::new(Working::new(managed, workers));
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

/// A device whose workers work without pause, each on one page. It has one page more, which stays idle.
struct Working<'a> {
    managed: &'a Managed,
    idle: PageRange,
    /// The first is the one whose page is taken.
    queues: Vec<Queue>,
}

impl<'a> Working<'a> {
    fn new(managed: &'a Managed, workers: usize) -> Self {
        let queues = pages(0, workers).iter().map(Queue::new).collect();
        Self { managed, idle: pages(workers, 1), queues }
    }

    /// Returns when all workers have work for long, and the page's is seen at it.
    fn work(&mut self) -> Result<()> {
        loop {
            self.queues.iter_mut().try_for_each(|queue| queue.fill(self.managed))?;
            let begin = self.done();
            while self.done() < begin + STRIDE && self.queues[0].lasts() {
                core::hint::spin_loop();
            }
            self.managed.take(self.idle)?;
            self.managed.touch(self.idle.start() as usize);
            // This thread may itself have been stopped in between: is the worker running now?
            let before = self.done();
            spin_for(LOOK_NS);
            if self.done() != before && self.queues.iter().all(Queue::lasts) {
                return Ok(());
            }
        }
    }

    /// The operations that the page's worker has done.
    fn done(&self) -> u64 {
        self.managed.view.words(PAGE)[0].load(Ordering::Relaxed)
    }

    /// Waits for the rest, and checks that no update was lost to all the taking away.
    fn finish(self) -> Result<()> {
        let mut expected = 0;
        for queue in self.queues {
            expected += queue.submitted * (ITEMS * WORDS) as u64;
            queue.jobs.into_iter().try_for_each(Job::wait)?;
        }
        let view = &self.managed.view;
        self.managed.region.prefetch(view.pages());
        let words = view.pages().iter().flat_map(|page| view.words(page));
        let counted: u64 = words.map(|word| word.load(Ordering::Relaxed)).sum();
        ensure!(counted == expected, "of {expected} updates {counted} were counted");
        Ok(())
    }
}

/// What one worker still has to do.
struct Queue {
    items: Vec<Item>,
    jobs: VecDeque<Job>,
    submitted: u64,
}

impl Queue {
    fn new(page: PageIndex) -> Self {
        Self { items: vec![Item { page, argument: 0 }; ITEMS], jobs: VecDeque::new(), submitted: 0 }
    }

    fn fill(&mut self, managed: &Managed) -> Result<()> {
        while self.jobs.front().is_some_and(Job::is_over)
            && let Some(job) = self.jobs.pop_front()
        {
            job.wait()?;
        }
        while self.jobs.len() < JOBS {
            let add_one = |page: &DevicePage<'_>, _| (0..WORDS).for_each(|word| page.update(word, |count| count + 1));
            self.jobs.push_back(managed.device.submit(&managed.view, add_one, &self.items));
            self.submitted += 1;
        }
        Ok(())
    }

    /// Whether the worker has a whole job before it.
    fn lasts(&self) -> bool {
        self.jobs.get(JOBS - 2).is_some_and(|job| !job.is_over())
    }
}
