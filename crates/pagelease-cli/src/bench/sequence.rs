//! `sequence`: what it costs a page to read a buffer in order after a device had all of it.
//!
//! Value: the CPU loads one word of each page, first to last, of pages that a device has just claimed. Touches that run in
//! sequence bring ever more neighbours along, so that few of them trap. Floor: one single `UFFDIO_CONTINUE` of the whole
//! range, which knows beforehand what will be read, and reads nothing.
//!
//! Placement: the reading thread here. Whoever maps the pages, a monitor or the floor, runs where the case says: here as the
//! reader does, or there, where it has to fetch from this CPU's caches what the claim has just written of every page. In the
//! latter case here is kept awake while the reader sleeps (see `touch`); there needs no help, since touches follow so closely
//! that the runtime's monitor does not go to sleep.

use std::thread::scope;

use anyhow::Result;
use pagelease::Faults;

use super::Setup;
use super::bare::{Bare, Trap};
use super::cpus::{self, Spin, Spinner};
use super::figure::Figure;
use super::managed::{Managed, pages};
use super::stats::{Arms, spin_for, time};

const PAGES: usize = 16384;

/// Before a claim, so that it does not wait for the minimum residency of what was touched last.
const RESIDENCY_NS: u64 = 3_000_000;

pub(super) fn run(setup: &Setup) -> Result<Vec<Figure>> {
    let (here, there) = (setup.cpus.here, setup.cpus.there);
    let mut figures = Vec::new();
    for (faults, place, goal) in
        [(Faults::InThread, here, 1.4), (Faults::Monitor, here, 2.0), (Faults::Monitor, there, 2.0)]
    {
        let _awake = (place == there).then(|| Spinner::start(here, Spin::Awake)).transpose()?;
        let (managed, bare) = Managed::beside_bare(faults, PAGES, place, Trap::Message)?;
        let arms = read_back(&managed, &bare, place, setup.samples(80))?;
        let case = match (faults, place == here) {
            (Faults::InThread, _) => "in-thread",
            (Faults::Monitor, true) => "monitor, its CPU awake",
            (Faults::Monitor, false) => "monitor, another CPU, awake",
        };
        figures.push(Figure::of(format!("{case}, a page of {PAGES}"), &arms, PAGES).goal(goal));
    }
    Ok(figures)
}

fn read_back(managed: &Managed, bare: &Bare, place: usize, rounds: usize) -> Result<Arms> {
    let span = bare.span(0, PAGES);
    let give = || -> Result<u64> {
        cpus::pin(None, place)?;
        let (given, ns) = time(|| bare.give(span));
        given.map(|()| ns)
    };
    Arms::in_turn(
        rounds,
        |_| {
            spin_for(RESIDENCY_NS);
            managed.take(pages(0, PAGES))?;
            Ok(time(|| (0..PAGES).for_each(|page| managed.touch(page))).1)
        },
        |_| {
            bare.revoke(span)?;
            scope(|scope| scope.spawn(give).join().expect("it does not panic"))
        },
    )
}
