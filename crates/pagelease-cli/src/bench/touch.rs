//! `touch`: what a CPU touch of a page that a device has costs, beyond trapping it and mapping the page.
//!
//! Value: one load of such a page. Floor: the same of a page that was revoked by `madvise`, served by a handler that does
//! nothing but `UFFDIO_CONTINUE`: in SIGBUS, or in a thread that polls and reads. The pages are taken from the CPU
//! beforehand, many at a time, and touched in an order in which none follows its neighbour, so that no touch brings along
//! others; the device is idle. Pages are taken again only well after the minimum residency that a touch gives them.
//!
//! Placement: the touching thread runs here. A monitor, the runtime's or the bare one, in three places:
//!
//! - *its CPU awake*: here, too. It has just run the touching thread, so nothing has to be woken but a thread: the least
//!   that a monitor can cost. In-thread service is held against this one as well.
//! - *another CPU, awake*: there. Waking the monitor, and the touching thread again, now takes an interrupt each.
//! - *its CPU idle*: there, with nothing to keep it awake, so that each touch wakes it.
//! - *its CPU idle, in quick succession*: the same in bursts, [`GAP_NS`] apart. The first of each burst is not counted.
//!
//! In all but the last, each touch comes after a pause, so that both monitors sleep in `poll`. What is to be awake is kept so
//! by a thread of the lowest priority; that is always so here, for otherwise both arms would measure how long it takes to
//! wake *this* CPU, which sleeps while it waits.

use std::sync::Arc;

use anyhow::Result;
use pagelease::Faults;

use super::Setup;
use super::bare::{Bare, BareMonitor, Handler, Trap};
use super::cpus::{Spin, Spinner};
use super::figure::Figure;
use super::managed::{Managed, pages, words_per_page};
use super::stats::{Arms, spin_for, time};

/// The pages of both mappings, taken together and touched one by one.
pub(super) const PAGES: usize = 1024;

/// No touch within this time of the last one of a page that is claimed: more than any minimum residency.
pub(super) const RESIDENCY_NS: u64 = 3_000_000;

/// After it, the runtime's monitors sleep: they spin for less, once there is nothing to do.
const QUIET_NS: u64 = 400_000;

/// Between two touches of a burst, from the end of one to the next: less than 100 us even with what the touch takes.
const GAP_NS: u64 = 50_000;

/// Touches of a burst.
const BURST: usize = 17;

pub(super) fn run(setup: &Setup) -> Result<Vec<Figure>> {
    let mut figures = in_thread(setup)?;
    figures.extend(monitor(setup)?);
    Ok(figures)
}

/// The `turn`th page to touch: all of them in 1024 turns, none next to the one before.
pub(super) fn nth(turn: usize) -> usize {
    turn * 389 % PAGES
}

/// The pages of both mappings are taken from the CPU whenever all have been touched.
struct Pages<'a> {
    managed: &'a Managed,
    bare: &'a Bare,
    turn: usize,
}

impl<'a> Pages<'a> {
    fn new(managed: &'a Managed, bare: &'a Bare) -> Self {
        Self { managed, bare, turn: 0 }
    }

    /// The next page to touch, in both mappings.
    fn next(&mut self) -> Result<usize> {
        if self.turn.is_multiple_of(PAGES) {
            spin_for(RESIDENCY_NS);
            self.managed.take(pages(0, PAGES))?;
            self.bare.revoke(self.bare.span(0, PAGES))?;
        }
        self.turn += 1;
        Ok(nth(self.turn - 1))
    }
}

pub(super) fn touch(bare: &Bare, page: usize) {
    core::hint::black_box(bare.words()[page * words_per_page()].load(std::sync::atomic::Ordering::Relaxed));
}

fn in_thread(setup: &Setup) -> Result<Vec<Figure>> {
    let (managed, bare) = Managed::beside_bare(Faults::InThread, PAGES, setup.cpus.there, Trap::Signal)?;
    let rounds = setup.samples(8 * PAGES);

    let handler = Handler::sigbus(&bare);
    let mut pages = Pages::new(&managed, &bare);
    let mut arms = Arms::default();
    for _ in 0..rounds {
        let page = pages.next()?;
        arms.value.push(time(|| managed.touch(page)).1);
        arms.floor.push(handler.during(|| time(|| touch(&bare, page)).1));
    }
    let signal = Figure::of("in-thread, against a bare SIGBUS handler", &arms, 1).goal(1.08);

    let bare = Arc::new(Bare::new(PAGES, Trap::Message)?);
    let _monitor = BareMonitor::start(&bare, setup.cpus.here)?;
    let mut pages = Pages::new(&managed, &bare);
    let mut arms = Arms::default();
    for _ in 0..rounds {
        let page = pages.next()?;
        arms.value.push(time(|| managed.touch(page)).1);
        arms.floor.push(time(|| touch(&bare, page)).1);
    }
    let message = Figure::of("in-thread, against a bare monitor, its CPU awake", &arms, 1).goal(0.65);
    Ok(vec![signal, message])
}

fn monitor(setup: &Setup) -> Result<Vec<Figure>> {
    let (here, there) = (setup.cpus.here, setup.cpus.there);
    let (managed, bare) = Managed::beside_bare(Faults::Monitor, PAGES, there, Trap::Message)?;
    let bare = Arc::new(bare);
    let _awake_here = Spinner::start(here, Spin::Awake)?;

    managed.monitors_run_on(here)?;
    let monitor = BareMonitor::start(&bare, here)?;
    let same = spaced(&managed, &bare, setup.samples(1500))?;
    drop(monitor);

    managed.monitors_run_on(there)?;
    let _monitor = BareMonitor::start(&bare, there)?;
    let awake_there = Spinner::start(there, Spin::Awake)?;
    let awake = spaced(&managed, &bare, setup.samples(1500))?;
    drop(awake_there);
    let idle = spaced(&managed, &bare, setup.samples(1500))?;
    let quick = bursts(&managed, &bare, setup.samples(150))?;
    Ok(vec![
        Figure::of("monitor, its CPU awake", &same, 1).goal(1.15),
        Figure::of("monitor, another CPU, awake", &awake, 1).goal(1.15),
        Figure::of("monitor, its CPU idle", &idle, 1).goal(1.15),
        Figure::of("monitor, its CPU idle, in quick succession", &quick, 1).goal(0.4),
    ])
}

/// Touches far apart.
fn spaced(managed: &Managed, bare: &Bare, rounds: usize) -> Result<Arms> {
    let mut pages = Pages::new(managed, bare);
    let mut arms = Arms::default();
    for _ in 0..rounds {
        let page = pages.next()?;
        spin_for(QUIET_NS);
        arms.value.push(time(|| managed.touch(page)).1);
        spin_for(QUIET_NS);
        arms.floor.push(time(|| touch(bare, page)).1);
    }
    Ok(arms)
}

/// Bursts of touches close to each other, of one arm and then the other.
fn bursts(managed: &Managed, bare: &Bare, rounds: usize) -> Result<Arms> {
    let mut pages = Pages::new(managed, bare);
    let mut arms = Arms::default();
    for _ in 0..rounds {
        let burst: Vec<usize> = (0..BURST).map(|_| pages.next()).collect::<Result<_>>()?;
        let in_burst = |touch: &dyn Fn(usize)| {
            spin_for(QUIET_NS);
            burst
                .iter()
                .map(|&page| {
                    spin_for(GAP_NS);
                    time(|| touch(page)).1
                })
                .skip(1)
                .collect::<Vec<_>>()
        };
        in_burst(&|page| managed.touch(page)).into_iter().for_each(|ns| arms.value.push(ns));
        in_burst(&|page| touch(bare, page)).into_iter().for_each(|ns| arms.floor.push(ns));
    }
    Ok(arms)
}
