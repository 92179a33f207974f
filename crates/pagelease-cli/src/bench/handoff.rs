//! `handoff`: what a claim costs beyond the `madvise` it needs.
//!
//! Value: `View::claim` alone. The lease is dropped, and the pages are brought back, outside of what is timed. Floor:
//! `madvise(MADV_DONTNEED)` of as many pages of a mapping of the same kind. In both arms the pages exist and are mapped for
//! the CPU before each sample, by `UFFDIO_CONTINUE`.
//!
//! A claim of a few pages takes other ones each time, in both arms, so that neither profits from pages that are in the cache
//! already.
//!
//! Placement: the claim runs here. Alone: every other thread of the process sleeps. With another thread running: one spins
//! there, so that each revocation must interrupt it. That costs as much as revoking 150 pages, once a system call: so the
//! shootdowns are counted too (Linux's own device-exclusive claim makes 0.99 a page).

use std::time::Duration;

use anyhow::{Context, Result};
use pagelease::{Access, Faults};

use super::Setup;
use super::bare::{Bare, Trap};
use super::cpus::{Spin, Spinner};
use super::figure::Figure;
use super::managed::{Managed, pages};
use super::stats::{Arms, Samples, time};

/// The pages of both mappings.
const PAGES: usize = 16384;

/// The claim whose shootdowns are counted.
const COUNTED: usize = 1024;

pub(super) fn run(setup: &Setup) -> Result<Vec<Figure>> {
    let (managed, bare) = Managed::beside_bare(Faults::Monitor, PAGES, setup.cpus.there, Trap::Message)?;
    // So that the threads just started have gone to sleep.
    std::thread::sleep(Duration::from_millis(20));
    let mut figures = Vec::new();
    for spinning in [false, true] {
        let _spinner = spinning.then(|| Spinner::start(setup.cpus.there, Spin::Busy)).transpose()?;
        let company = if spinning { "another thread running" } else { "alone" };
        for (count, rounds, goal) in [(1, 4000, 1.2), (64, 2000, 1.15), (COUNTED, 400, 1.15), (PAGES, 60, 1.15)] {
            let arms = claim(&managed, &bare, count, setup.samples(rounds))?;
            let pages = if count == 1 { "page" } else { "pages" };
            figures.push(Figure::of(format!("{count} {pages}, {company}"), &arms, 1).goal(goal));
        }
        if spinning {
            figures.extend(shootdowns(&managed, setup.samples(200))?);
        }
    }
    Ok(figures)
}

fn claim(managed: &Managed, bare: &Bare, count: usize, rounds: usize) -> Result<Arms> {
    // Each round its own pages, far from those of the round before.
    let first = |round: usize| round * 617 * count % PAGES / count * count;
    Arms::in_turn(
        rounds,
        |round| {
            let pages = pages(first(round), count);
            let (lease, ns) = time(|| managed.view.claim(pages, Access::Exclusive));
            drop(lease?);
            managed.region.prefetch(pages);
            Ok(ns)
        },
        |round| {
            let span = bare.span(first(round), count);
            let (revoked, ns) = time(|| bare.revoke(span));
            revoked?;
            bare.give(span)?;
            Ok(ns)
        },
    )
}

/// Shootdowns a page. The counter is the machine's, so other processes' are in it: what counts is the median of the faster
/// half of many claims, in which little else happened.
fn shootdowns(managed: &Managed, rounds: usize) -> Result<Option<Figure>> {
    if tlb_shootdowns()?.is_none() {
        return Ok(None);
    }
    let mut claims = Vec::new();
    for round in 0..rounds {
        let pages = pages(round * COUNTED % PAGES, COUNTED);
        let (counts, ns) = time(|| -> Result<_> {
            let before = tlb_shootdowns()?;
            let lease = managed.view.claim(pages, Access::Exclusive)?;
            let after = tlb_shootdowns()?;
            drop(lease);
            Ok((before, after))
        });
        let (before, after) = counts?;
        managed.region.prefetch(pages);
        claims.push((ns, after.zip(before).map_or(0, |(after, before)| after - before)));
    }
    claims.sort_unstable();
    claims.truncate(rounds.div_ceil(2));
    let mut counts = Samples::default();
    claims.into_iter().for_each(|(_, count)| counts.push(count));
    let a_claim = counts.summary().median;
    let figure = Figure::count(format!("{COUNTED} pages, shootdowns a page"), a_claim / COUNTED as f64);
    Ok(Some(figure.goal(0.01).note(format!("{a_claim} a claim"))))
}

/// The TLB row of `/proc/interrupts`, all CPUs; `None` on machines that have no such row.
fn tlb_shootdowns() -> Result<Option<u64>> {
    let interrupts = std::fs::read_to_string("/proc/interrupts").context("/proc/interrupts")?;
    let row = interrupts.lines().find_map(|line| line.trim_start().strip_prefix("TLB:"));
    Ok(row.map(|row| row.split_whitespace().map_while(|count| count.parse::<u64>().ok()).sum()))
}
