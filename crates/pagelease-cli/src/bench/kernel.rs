//! `kernel`: what a claim and a touch cost beside those of the kernel's own device-exclusive memory.
//!
//! Floor: the kernel's claim (`make_device_exclusive`, a page at a time) of private memory, by way of its test driver, and its
//! fault back. The driver also copies what it claims to the caller. It can copy alone, right afterwards and without asking for a
//! page again; that is measured with each claim, and subtracted.
//!
//! Value: a claim and its lease's end, and the touches after it. The goals are the adopted memory's, served in the touching
//! thread: that is private memory, the only kind that the kernel's facility takes, and its faults, too, are served by the thread
//! that touches. In base pages with [`Space::adopt`], a huge page with [`Space::adopt_huge`]: the kernel splits it, and claims
//! 512. Shared memory, which the kernel refuses, stands beside the same floor without a goal, and so does a monitor.
//!
//! | step | what is timed |
//! |---|---|
//! | claimed | all pages, while the CPU has them |
//! | claimed again | all pages, while the device has them |
//! | touched back in order | one load a page, first to last |
//! | one touch | each load alone, in an order in which no page follows its neighbour |
//!
//! Not by turns, as elsewhere: the driver hears of every change of the address space for as long as it is open, the runtime's
//! too, and that costs them something. So all values come first. It is meant for an emulated machine whose clock counts
//! instructions (`cargo xtask kernels --compare IMAGE`), where nothing else falls on either arm, and figures repeat. No cost of
//! a TLB flush, an exception or an interrupt is in such figures.
//!
//! Placement: all on one CPU, the only one that such a machine has.
//!
//! [`Space::adopt`]: pagelease::Space::adopt
//! [`Space::adopt_huge`]: pagelease::Space::adopt_huge

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use pagelease::{BackendKind, Faults, SpaceError};
use pagelease_sys::dmirror::{self, Dmirror};
use pagelease_sys::page_size;

use super::Setup;
use super::carried::{self, Carried, HUGE, Pages, Private};
use super::figure::Figure;
use super::managed::{Managed, pages};
use super::stats::{Arms, Samples, spin_for, time};
use super::touch::{PAGES, RESIDENCY_NS, nth};
use crate::failure;

/// Pages of a huge page.
const PAGES_OF_HUGE: usize = 512;

pub(super) fn run(setup: &Setup) -> Result<Vec<Figure>> {
    if let Err(errno) = Dmirror::open() {
        failure::say(format_args!(
            "bench kernel: skipped: {}: {errno}; in a checkout: cargo xtask kernels --compare IMAGE, with a kernel that has CONFIG_TEST_HMM",
            dmirror::PATH
        ));
        return Ok(Vec::new());
    }
    if !carried::can_move("kernel")? {
        return Ok(Vec::new());
    }
    let rounds = setup.samples(24);
    let mut sides = Vec::new();
    for (name, faults, goals) in [("adopted", Faults::InThread, true), ("adopted, monitor", Faults::Monitor, false)] {
        let memory = Private::new(PAGES * page_size(), Pages::Base)?;
        let carried = Carried::new(faults, memory, Pages::Base, setup.cpus.here)?;
        sides.push((name, goals, steps(&carried, rounds)?));
    }
    for (name, backend) in [("shared, minor", BackendKind::Minor), ("shared, rwprotect", BackendKind::RwProtect)] {
        match Managed::on(backend, PAGES, setup.cpus.here) {
            Ok(managed) => sides.push((name, false, steps(&managed, rounds)?)),
            Err(error) if error.is::<SpaceError>() => failure::say(format_args!("bench kernel: no {name}: {error}")),
            Err(error) => return Err(error),
        }
    }
    let huge = huge_page(setup, rounds)?;

    let mirror = Mirror::open(Private::new(PAGES * page_size(), Pages::Base)?)?;
    let floor = steps(&mirror, rounds)?;
    drop(mirror);
    let goals = [("claimed", 0.25), ("claimed again", 0.02), ("touched back in order", 0.5), ("one touch", 2.6)];
    let mut figures = Vec::new();
    for (name, has_goals, value) in sides {
        for ((step, goal), (value, floor, count)) in goals.into_iter().zip(value.beside(&floor)) {
            let figure = Figure::of(format!("{name}: {step}, a page"), &arms(value, floor), count);
            figures.push(if has_goals { figure.goal(goal) } else { figure });
        }
    }
    if let Some(value) = huge {
        figures.extend(of_huge(&value, &split_by_kernel(rounds)?));
    }
    Ok(figures)
}

/// Who has pages, and loses them to the CPU.
trait Side {
    /// What the `round`th begins with: all pages are the CPU's, and may be claimed.
    fn begin(&self) {
        // Their minimum residency is over.
        spin_for(RESIDENCY_NS);
    }
    /// Claims all pages, and holds none; how long it took.
    fn claim(&self) -> Result<u64>;
    /// The CPU loads a word of each granule, first to last.
    fn touch_all(&self);
    /// The CPU loads a word of a page.
    fn touch(&self, page: usize);
}

impl Side for Carried {
    fn claim(&self) -> Result<u64> {
        let (taken, ns) = time(|| self.take(self.view.pages()));
        taken.map(|()| ns)
    }

    fn touch_all(&self) {
        Self::touch_all(self);
    }

    fn touch(&self, page: usize) {
        load(&self.memory, page);
    }
}

impl Side for Managed {
    fn claim(&self) -> Result<u64> {
        let (taken, ns) = time(|| self.take(pages(0, PAGES)));
        taken.map(|()| ns)
    }

    fn touch_all(&self) {
        (0..PAGES).for_each(|page| self.touch(page));
    }

    fn touch(&self, page: usize) {
        Self::touch(self, page);
    }
}

/// Private memory, and the kernel's test driver.
struct Mirror {
    driver: Dmirror,
    memory: Private,
    /// Where the driver copies to.
    copy: std::cell::RefCell<Vec<u8>>,
}

impl Mirror {
    fn open(memory: Private) -> Result<Self> {
        // Not zeroes, which would be memory that is not there yet.
        let copy = vec![1; memory.span().len()].into();
        Ok(Self { driver: Dmirror::open().context(dmirror::PATH)?, memory, copy })
    }
}

impl Side for Mirror {
    fn claim(&self) -> Result<u64> {
        let (span, copy) = (self.memory.span(), &mut *self.copy.borrow_mut());
        let (claimed, both_ns) = time(|| self.driver.exclusive(span, copy));
        claimed.context("HMM_DMIRROR_EXCLUSIVE")?;
        let (faults, copy_ns) = time(|| self.driver.read(span, copy));
        ensure!(faults.context("HMM_DMIRROR_READ")? == 0, "the driver has lost pages that it has just claimed");
        Ok(both_ns.saturating_sub(copy_ns))
    }

    fn touch_all(&self) {
        (0..self.memory.span().len() / page_size()).for_each(|page| self.touch(page));
    }

    fn touch(&self, page: usize) {
        load(&self.memory, page);
    }
}

/// Loads the first word of a page.
fn load(memory: &Private, page: usize) {
    let span = memory.span();
    assert!(page < span.len() / page_size());
    // SAFETY: mapped as long as the borrow lasts, and used only as atomics meanwhile.
    let word = unsafe { &*span.as_ptr().add(page * page_size()).cast::<AtomicU64>() };
    core::hint::black_box(word.load(Ordering::Relaxed));
}

/// The times of the steps.
#[derive(Default)]
struct Steps {
    claimed: Samples,
    again: Samples,
    in_order: Samples,
    one: Samples,
}

impl Steps {
    /// Step by step: these times, those of `floor`, and how many pages each is of.
    fn beside<'a>(&'a self, floor: &'a Self) -> [(&'a Samples, &'a Samples, usize); 4] {
        [
            (&self.claimed, &floor.claimed, PAGES),
            (&self.again, &floor.again, PAGES),
            (&self.in_order, &floor.in_order, PAGES),
            (&self.one, &floor.one, 1),
        ]
    }
}

/// The first round warms up, and is not counted.
fn steps(side: &impl Side, rounds: usize) -> Result<Steps> {
    let mut steps = Steps::default();
    for round in 0..=rounds {
        side.begin();
        let (claimed, again) = (side.claim()?, side.claim()?);
        let ((), in_order) = time(|| side.touch_all());
        side.begin();
        side.claim()?;
        let one: Vec<_> = (0..PAGES).map(|turn| time(|| side.touch(nth(turn))).1).collect();
        if round > 0 {
            steps.claimed.push(claimed);
            steps.again.push(again);
            steps.in_order.push(in_order);
            one.into_iter().for_each(|ns| steps.one.push(ns));
        }
    }
    Ok(steps)
}

/// The times of a huge page's steps.
#[derive(Default)]
struct OfHuge {
    claimed: Samples,
    again: Samples,
    back: Samples,
    both: Samples,
}

impl OfHuge {
    fn round(&mut self, side: &impl Side) -> Result<()> {
        side.begin();
        let (claimed, again) = (side.claim()?, side.claim()?);
        let ((), back) = time(|| side.touch_all());
        self.claimed.push(claimed);
        self.again.push(again);
        self.back.push(back);
        self.both.push(claimed + back);
        Ok(())
    }
}

/// A huge page; `None`, and says so, where there is none to be had.
fn whole_page() -> Result<Option<Private>> {
    let memory = Private::new(HUGE, Pages::Huge)?;
    if memory.huge_bytes()? == HUGE {
        return Ok(Some(memory));
    }
    failure::say("bench kernel: no huge page: transparent huge pages are off, or memory is fragmented");
    Ok(None)
}

fn huge_page(setup: &Setup, rounds: usize) -> Result<Option<OfHuge>> {
    let Some(memory) = whole_page()? else { return Ok(None) };
    let carried = Carried::new(Faults::InThread, memory, Pages::Huge, setup.cpus.here)?;
    OfHuge::default().round(&carried)?;
    let mut value = OfHuge::default();
    (0..rounds).try_for_each(|_| value.round(&carried))?;
    ensure!(carried.memory.huge_bytes()? == HUGE, "the huge page is not one any more");
    Ok(Some(value))
}

/// The kernel splits it: a new one for each round.
fn split_by_kernel(rounds: usize) -> Result<OfHuge> {
    let mut floor = OfHuge::default();
    for _ in 0..rounds {
        let memory = whole_page()?.context("a huge page, as there was before")?;
        floor.round(&Mirror::open(memory)?)?;
    }
    Ok(floor)
}

fn of_huge(value: &OfHuge, floor: &OfHuge) -> Vec<Figure> {
    let figure = |step, value, floor| Figure::of(format!("adopted, a huge page: {step}"), &arms(value, floor), 1);
    vec![
        figure("claimed and touched back", &value.both, &floor.both)
            .goal(0.005)
            .note(format!("{PAGES_OF_HUGE} claims and faults of the kernel's")),
        figure("claimed", &value.claimed, &floor.claimed),
        figure("claimed again", &value.again, &floor.again),
        figure("touched back", &value.back, &floor.back),
    ]
}

fn arms(value: &Samples, floor: &Samples) -> Arms {
    Arms { value: value.clone(), floor: floor.clone(), rounds: value.len() }
}
