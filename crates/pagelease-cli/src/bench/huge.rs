//! `huge`: what it costs to carry huge pages of the program's own memory to a device and back, whole.
//!
//! Value: a claim of 64 MiB in granules of 2 MiB, its lease's end, and the return of all of it: by a prefetch (the way for whoever
//! knows what he will need), or by touching it in order, served in the touching thread or by a monitor. Floor: `UFFDIO_MOVE` of
//! 64 MiB of huge pages, in one call each way.
//!
//! The second figure sets the same job on 64 MiB of small pages beside it: as a ratio, 1/50 is fifty times faster a byte.
//!
//! Whether the memory is in huge pages is looked at before and after, and whether the machine has split any meanwhile: other
//! programs do that too, so what the runtime itself has split, by its own count, is held against it alone.
//!
//! Placement: all here, alone. The monitor's case: the monitor here, too, so that no CPU has to be woken for it.

use std::time::Duration;

use anyhow::{Result, ensure};
use pagelease::Faults;
use pagelease_sys::page_size;

use super::Setup;
use super::carried::{self, BareMove, Carried, HUGE, Pages, Private};
use super::figure::Figure;
use super::managed::pages;
use super::moves::{Ways, there_and_back};
use super::stats::{Arms, Samples};
use crate::failure;

const LEN: usize = 64 << 20;

/// The second figure's goal: how many times faster a byte than small pages.
const FASTER: f64 = 50.0;

pub(super) fn run(setup: &Setup) -> Result<Vec<Figure>> {
    if !carried::can_move("huge")? {
        return Ok(Vec::new());
    }
    let splits_before = carried::thp_split_pmd()?;
    let here = setup.cpus.here;
    let granules = LEN / HUGE;
    let all = pages(0, granules);
    let mut figures = Vec::new();
    let mut bulk = Samples::default();
    for (faults, way) in [
        (Faults::Monitor, "prefetched"),
        (Faults::InThread, "touched back in order, in-thread"),
        (Faults::Monitor, "touched back in order, monitor"),
    ] {
        let Some([mine, bare]) = huge_pages()? else { return Ok(Vec::new()) };
        let prefetch = way == "prefetched";
        let carried = Carried::new(faults, mine, Pages::Huge, if prefetch { setup.cpus.there } else { here })?;
        let bare = BareMove::new(bare, Pages::Huge)?;
        std::thread::sleep(Duration::from_millis(20));
        let Ways { both, out, back } = there_and_back(&carried, &bare, granules, setup.samples(600), |carried| {
            if prefetch { carried.region.prefetch(all) } else { carried.touch_all() }
        })?;
        check_whole(&carried, &bare)?;
        let figure = Figure::of(format!("64 MiB of huge pages, claimed and {way}"), &both, 1);
        figures.push(if prefetch { figure.goal(1.2) } else { figure });
        if prefetch {
            figures.push(Figure::of("64 MiB of huge pages, claimed", &out, 1));
            figures.push(Figure::of("64 MiB of huge pages, prefetched", &back, 1));
            bulk = both.value;
        }
    }
    let small = small_pages(setup)?;
    let ratio = Figure::times("the same, against 64 MiB of small pages", bulk.summary(), small.value.summary());
    let faster = format!("{:.0} times faster", 1.0 / ratio.ratio());
    figures.insert(1, ratio.goal(1.0 / FASTER).note(faster));
    figures.push(Figure::of("64 MiB of small pages, claimed and prefetched", &small, 1));
    let bulk = figures.remove(0).note(match (splits_before, carried::thp_split_pmd()?) {
        (Some(before), Some(after)) if after == before => "no huge page was split (thp_split_pmd)".to_owned(),
        (Some(before), Some(after)) => {
            format!("all stayed huge; {} huge pages of other programs were split", after - before)
        }
        _ => "all stayed huge".to_owned(),
    });
    figures.insert(0, bulk);
    Ok(figures)
}

/// Memory in huge pages; `None`, and says so, where there are none to be had.
fn huge_pages() -> Result<Option<[Private; 2]>> {
    let skip = |why: &str| {
        failure::say(format_args!(
            "bench huge: skipped: {why}; as root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
        ));
        Ok(None)
    };
    let Ok(two) = Private::two(LEN, Pages::Huge) else { return skip("this kernel has no transparent huge pages") };
    for memory in &two {
        if memory.huge_bytes()? != LEN {
            return skip("the kernel gave small pages: transparent huge pages are off, or memory is fragmented");
        }
    }
    Ok(Some(two))
}

/// What was measured was huge pages to the end.
fn check_whole(carried: &Carried, bare: &BareMove) -> Result<()> {
    for (whose, memory) in [("the runtime's", &carried.memory), ("the floor's", bare.memory())] {
        let huge = memory.huge_bytes()?;
        ensure!(huge == LEN, "{} of {whose} {LEN} bytes are not in huge pages any more", LEN - huge);
    }
    let split = carried.space.stats().huge_pages_split;
    ensure!(split == 0, "the runtime has split {split} huge pages");
    Ok(())
}

fn small_pages(setup: &Setup) -> Result<Arms> {
    let [mine, bare] = Private::two(LEN, Pages::Base)?;
    let carried = Carried::new(Faults::Monitor, mine, Pages::Base, setup.cpus.there)?;
    let bare = BareMove::new(bare, Pages::Base)?;
    std::thread::sleep(Duration::from_millis(20));
    let count = LEN / page_size();
    let all = pages(0, count);
    Ok(there_and_back(&carried, &bare, count, setup.samples(60), |carried| carried.region.prefetch(all))?.both)
}
