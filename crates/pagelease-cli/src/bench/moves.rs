//! `move`: what it costs beyond `UFFDIO_MOVE` to carry pages of the program's own memory to a device and back.
//!
//! Value: a claim of 1024 small pages, its lease's end, and a prefetch of them. Floor: `UFFDIO_MOVE` of as many pages of the
//! same kind of memory, in one call each way. The two halves are shown as well, without a goal.
//!
//! Placement: all here, alone: every other thread of the process sleeps.

use std::time::Duration;

use anyhow::Result;
use pagelease::Faults;
use pagelease_sys::page_size;

use super::Setup;
use super::carried::{self, BareMove, Carried, Pages, Private};
use super::figure::Figure;
use super::managed::pages;
use super::stats::{Arms, spin_for, time};

const PAGES: usize = 1024;

/// Before a claim, so that it does not wait for the minimum residency of what came back last.
const RESIDENCY_NS: u64 = 600_000;

pub(super) fn run(setup: &Setup) -> Result<Vec<Figure>> {
    if !carried::can_move("move")? {
        return Ok(Vec::new());
    }
    let [mine, bare] = Private::two(PAGES * page_size(), Pages::Base)?;
    let carried = Carried::new(Faults::Monitor, mine, Pages::Base, setup.cpus.there)?;
    let bare = BareMove::new(bare, Pages::Base)?;
    // So that the threads just started have gone to sleep.
    std::thread::sleep(Duration::from_millis(20));
    let all = pages(0, PAGES);
    let Ways { both, out, back } =
        there_and_back(&carried, &bare, PAGES, setup.samples(600), |carried| carried.region.prefetch(all))?;
    Ok(vec![
        Figure::of(format!("{PAGES} pages, claimed and prefetched"), &both, 1).goal(1.2),
        Figure::of(format!("{PAGES} pages, claimed"), &out, 1),
        Figure::of(format!("{PAGES} pages, prefetched"), &back, 1),
    ])
}

/// What it took to carry pages: both ways together, away to the device, and back.
pub(super) struct Ways {
    pub(super) both: Arms,
    pub(super) out: Arms,
    pub(super) back: Arms,
}

/// All `granules` are carried away and back, by the runtime and by the bare call in turn. `bring_back` is the runtime's return.
pub(super) fn there_and_back(
    carried: &Carried,
    bare: &BareMove,
    granules: usize,
    rounds: usize,
    bring_back: impl Fn(&Carried),
) -> Result<Ways> {
    let pages = pages(0, granules);
    let (mut value, mut floor) = (Vec::new(), Vec::new());
    let both = Arms::in_turn(
        rounds,
        |_| {
            spin_for(RESIDENCY_NS);
            let (taken, out) = time(|| carried.take(pages));
            taken?;
            let ((), back) = time(|| bring_back(carried));
            value.push((out, back));
            Ok(out + back)
        },
        |_| {
            // As long as the other arm: the caches that it finds have cooled as much.
            spin_for(RESIDENCY_NS);
            let (gone, out) = time(|| bare.out());
            gone?;
            let (home, back) = time(|| bare.back());
            home?;
            floor.push((out, back));
            Ok::<_, anyhow::Error>(out + back)
        },
    )?;
    let (mut out, mut back) = (Arms::default(), Arms::default());
    let warm_up = both.rounds - both.value.len();
    for (value, floor) in value.into_iter().zip(floor).skip(warm_up) {
        out.value.push(value.0);
        out.floor.push(floor.0);
        back.value.push(value.1);
        back.floor.push(floor.1);
    }
    Ok(Ways { both, out, back })
}
