//! `scale`: does size matter?
//!
//! *Claims.* Value: what a claim costs a page, from 64 pages to 1 Mi pages (4 GiB of memory on 4 KiB pages). Floor: the same of
//! 64 pages. Larger claims should cost no more a page. All sizes are of one region and take turns; the small ones are
//! measured several times a round, at other pages each time. Measured is CPU time: the largest take a tenth of a second, in
//! which a busy machine does other things too.
//!
//! *An empty region of 1 TiB.* Value: the time to make it and drop it, untouched. Floor: the bare system calls for the same
//! (a memfd, two mappings, the registration, and undoing them). Here the goal is absolute: under 0.3 ms, and under 128 KiB of
//! memory more while it is there.
//!
//! Placement: all here, alone; the threads of the runtime sleep.

use std::time::Duration;

use anyhow::{Context, Result};
use pagelease::{Access, ByteLen, Faults, Space};
use pagelease_sys::page_size;

use super::Setup;
use super::bare::{Bare, Trap};
use super::figure::Figure;
use super::managed::{Managed, pages};
use super::stats::{Arms, Samples, cpu_time, time};

/// What all sizes are compared with.
const SMALLEST: usize = 64;

/// Sizes in pages, and how often each is measured a round.
const SIZES: [(usize, usize); 5] = [(SMALLEST, 64), (1 << 10, 32), (1 << 14, 4), (1 << 18, 1), (1 << 20, 1)];

const TIB: usize = 1 << 40;
const EMPTY_NS: f64 = 300_000.0;
const EMPTY_BYTES: f64 = 128.0 * 1024.0;

pub(super) fn run(setup: &Setup) -> Result<Vec<Figure>> {
    let mut figures = claims(setup)?;
    figures.extend(empty(setup)?);
    Ok(figures)
}

fn claims(setup: &Setup) -> Result<Vec<Figure>> {
    // Half of what is free, so that nothing is paged out meanwhile.
    let room = available()? / 2 / page_size();
    let sizes: Vec<_> = SIZES.into_iter().filter(|&(size, _)| size == SMALLEST || size <= room).collect();
    let (largest, _) = sizes[sizes.len() - 1];
    let managed = Managed::new(Faults::Monitor, largest, setup.cpus.there)?;
    std::thread::sleep(Duration::from_millis(20));

    let mut times = vec![Samples::default(); sizes.len()];
    for round in 0..=setup.samples(8) {
        for (&(size, often), times) in sizes.iter().zip(&mut times) {
            for turn in 0..often {
                let pages = pages((round * often + turn) * 617 * size % largest / size * size, size);
                let (lease, ns) = cpu_time(|| managed.view.claim(pages, Access::Exclusive));
                drop(lease?);
                managed.region.prefetch(pages);
                // The first round warms up.
                if round > 0 {
                    times.push(ns);
                }
            }
        }
    }
    let floor = times[0].summary().per(SMALLEST);
    let figures = sizes.iter().zip(&times).skip(1).map(|(&(size, _), times)| {
        let case = format!("claim, a page of {size}, against a page of {SMALLEST}");
        let figure = Figure::times(case, times.summary().per(size), floor).goal(1.3);
        if size == largest && sizes.len() < SIZES.len() { figure.note("no memory for more pages") } else { figure }
    });
    Ok(figures.collect())
}

fn empty(setup: &Setup) -> Result<Vec<Figure>> {
    let space = Space::new()?;
    let arms = Arms::in_turn(
        setup.samples(300),
        |_| {
            let (made, ns) = time(|| space.allocate(ByteLen(TIB)).map(drop));
            made?;
            Ok(ns)
        },
        |_| {
            let (made, ns) = time(|| Bare::untouched(TIB / page_size(), Trap::Message).map(drop));
            made?;
            Ok::<_, anyhow::Error>(ns)
        },
    )?;
    let before = resident()?;
    let region = space.allocate(ByteLen(TIB))?;
    let grown = resident()?.saturating_sub(before);
    drop(region);
    let memory = Figure::count("an empty region of 1 TiB, resident bytes of 128 KiB", grown as f64 / EMPTY_BYTES);
    Ok(vec![
        Figure::of("an empty region of 1 TiB, made and dropped", &arms, 1).goal_ns(EMPTY_NS).note("goal: 0.3 ms"),
        memory.goal(1.0).note(format!("{} KiB", grown / 1024)),
    ])
}

/// Memory that can be had without paging out, in bytes.
pub(super) fn available() -> Result<usize> {
    Ok(1024 * field("/proc/meminfo", "MemAvailable:")?)
}

/// This process's resident memory in bytes: counted page by page (`statm` is off by what each CPU has not reported yet).
fn resident() -> Result<usize> {
    Ok(1024 * field("/proc/self/smaps_rollup", "Rss:")?)
}

/// A number of KiB.
fn field(file: &str, name: &str) -> Result<usize> {
    let text = std::fs::read_to_string(file).with_context(|| file.to_owned())?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
    value.with_context(|| format!("{file} has no {name}"))
}
