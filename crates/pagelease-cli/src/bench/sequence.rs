//! `sequence`: what it costs a page to read a buffer in order after a device had all of it.
//!
//! Value: the CPU loads one word of each page, first to last, of pages that a device has just claimed. Touches that run in
//! sequence bring ever more neighbours along, so that few of them trap. Floor: one single `UFFDIO_CONTINUE` of the whole
//! range, which knows beforehand what will be read, and reads nothing.
//!
//! Placement: the reading thread here. The monitors there, awake; here is kept awake too (see `touch`).

use anyhow::Result;
use pagelease::Faults;

use super::Setup;
use super::bare::{Bare, Trap};
use super::cpus::{Spin, Spinner};
use super::figure::Figure;
use super::managed::{Managed, pages};
use super::stats::{Arms, spin_for, time};

const PAGES: usize = 16384;

/// Before a claim, so that it does not wait for the minimum residency of what was touched last.
const RESIDENCY_NS: u64 = 3_000_000;

pub(super) fn run(setup: &Setup) -> Result<Vec<Figure>> {
    let bare = Bare::new(PAGES, Trap::Message)?;
    let mut figures = Vec::new();
    for (faults, case, goal) in [
        (Faults::InThread, "in-thread, a page of 16384", 1.4),
        (Faults::Monitor, "monitor, awake, a page of 16384", 2.0),
    ] {
        let cpus = [setup.cpus.here, setup.cpus.there];
        let awake = if faults == Faults::Monitor { &cpus[..] } else { &[] };
        let _awake: Vec<Spinner> = awake.iter().map(|&cpu| Spinner::start(cpu, Spin::Awake)).collect::<Result<_>>()?;
        let managed = Managed::new(faults, PAGES, setup.cpus.there)?;
        let arms = read_back(&managed, &bare, setup.samples(80))?;
        figures.push(Figure::of(case, &arms, PAGES).goal(goal));
    }
    Ok(figures)
}

fn read_back(managed: &Managed, bare: &Bare, rounds: usize) -> Result<Arms> {
    let span = bare.span(0, PAGES);
    Arms::in_turn(
        rounds,
        |_| {
            spin_for(RESIDENCY_NS);
            managed.take(pages(0, PAGES))?;
            Ok(time(|| (0..PAGES).for_each(|page| managed.touch(page))).1)
        },
        |_| {
            bare.revoke(span)?;
            let (given, ns) = time(|| bare.give(span));
            given?;
            Ok(ns)
        },
    )
}
