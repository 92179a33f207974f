//! What a device behind a driver costs: the core that `vulkan` and the other drivers' benches share.
//!
//! Two questions, and a job for both: the device adds 1 to every 32-bit word of some memory.
//!
//! - *What does a submission cost beyond the driver's?* Value: the job on 1 MiB of a region, to its end; before each, the CPU
//!   has touched 1 % of the pages, so that a claim has something to do. Floor: the bare submission and fence of the same job on
//!   memory of the same kind that nobody manages. The touches themselves are shown beside it.
//! - *From which size on is it faster than copies?* A round: the CPU adds 1 to every word, then the device does. Value: on the
//!   region, nothing else is done. Floor: on memory of the program, with what the driver's manual says to do for a device: in, the
//!   job, and out again. Both arms have the whole size changed by each side. The goals are for the adaptive policy, which is meant
//!   for memory that each side uses in turn. With the lazy one each page traps again, and a claim waits for what was touched just
//!   before to have been with the CPU for a minimum, which is up to 128 us by then: shown, without a goal.
//!
//! Placement: the measuring thread here; the runtime's monitors there; the driver's threads wherever they like.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, ensure};
use pagelease::{Faults, Region, RestorePolicy, Space, SpaceBuilder};

use super::Setup;
use super::cpus;
use super::figure::{Figure, duration};
use super::stats::{Arms, Samples, time};

/// What `bench vulkan`, say, is asked to have ready, for memory of some length.
pub(super) trait Ways {
    /// The region that the runtime manages.
    fn region(&self) -> &Region;

    /// The job on the region, by the runtime, to its end.
    fn managed(&self) -> Result<()>;

    /// Memory that nobody manages, of a region's kind.
    fn plain(&self) -> &[AtomicU64];

    /// The job on that memory, without a copy, by the driver alone, to its end.
    fn bare(&self) -> Result<()>;

    /// `words` to the device, the job there, and back, by the driver alone.
    fn staged(&self, words: &mut [u64]) -> Result<()>;
}

/// Adds 1 to both halves of a word.
const BOTH: u64 = 1 << 32 | 1;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const PAGE: usize = 4096;

/// Each with the rounds it gets.
const SIZES: [(usize, usize); 9] = [
    (KIB, 300),
    (4 * KIB, 300),
    (16 * KIB, 300),
    (64 * KIB, 200),
    (256 * KIB, 200),
    (MIB, 100),
    (4 * MIB, 50),
    (16 * MIB, 20),
    (64 * MIB, 10),
];

/// The figures of a driver; `ways` makes everything ready for a region of so many bytes.
pub(super) fn run<W: Ways>(setup: &Setup, ways: impl Fn(SpaceBuilder, usize) -> Result<W>) -> Result<Vec<Figure>> {
    let ways = |faults, policy, bytes| {
        // The driver's threads run where they like, and so do the runtime's that start meanwhile.
        let ways = setup.cpus.with_both(|| ways(Space::builder().faults(faults).restore(policy), bytes))?;
        if faults == Faults::Monitor {
            cpus::pin_named(super::managed::MONITOR, super::managed::MONITORS, setup.cpus.there)?;
        }
        anyhow::Ok(ways)
    };
    let mut figures = Vec::new();
    for (faults, mode) in [(Faults::InThread, "in-thread"), (Faults::Monitor, "monitor")] {
        figures.push(submission(setup, &ways(faults, RestorePolicy::Lazy, MIB)?, mode)?);
    }
    for (policy, name) in [(RestorePolicy::Adaptive, "adaptive"), (RestorePolicy::Lazy, "lazy")] {
        let mut ratios = Vec::new();
        for (bytes, rounds) in SIZES {
            let ways = ways(Faults::InThread, policy, bytes)?;
            let figure = rounds_of(setup, &ways, bytes, rounds, name)?;
            ratios.push((bytes, figure.ratio()));
            let goal = bytes >= MIB && policy == RestorePolicy::Adaptive;
            figures.push(if goal { figure.goal(1.0) } else { figure });
        }
        let crossing = crossing_figure(&ratios, name);
        figures.push(if policy == RestorePolicy::Adaptive { crossing.goal(1.0) } else { crossing });
    }
    Ok(figures)
}

/// A submission, and touches after it.
fn submission(setup: &Setup, ways: &impl Ways, mode: &str) -> Result<Figure> {
    let pages = MIB / PAGE;
    // 1 %, never the same ones twice in a row.
    let touched = |round: usize| (0..pages.div_ceil(100)).map(move |n| (round * 37 + n * 85) % pages * (PAGE / 8));
    let touch = |words: &[AtomicU64], round| {
        touched(round).for_each(|word| _ = words[word].fetch_add(1 << 20, Ordering::Relaxed));
    };
    let mut touches = Samples::default();
    let arms = Arms::in_turn(
        setup.samples(600),
        |round| {
            let (ended, ns) = time(|| ways.managed());
            ended?;
            touches.push(time(|| touch(ways.region().words(), round)).1);
            anyhow::Ok(ns)
        },
        |round| {
            let (ended, ns) = time(|| ways.bare());
            ended?;
            touch(ways.plain(), round);
            Ok(ns)
        },
    )?;
    let same = ways.region().words().iter().zip(ways.plain());
    ensure!(
        same.clone().all(|(one, other)| one.load(Ordering::Relaxed) == other.load(Ordering::Relaxed)),
        "the two differ"
    );
    let count = pages.div_ceil(100);
    let a_touch = duration(touches.summary().per(count).median);
    let case = format!("1 MiB, a submission to its end, {mode}");
    Ok(Figure::of(case, &arms, 1).goal(1.25).note(format!("and {count} touches of {a_touch} each")))
}

/// Rounds in which each side changes all of `bytes`.
fn rounds_of(setup: &Setup, ways: &impl Ways, bytes: usize, rounds: usize, policy: &str) -> Result<Figure> {
    let managed = &ways.region().words()[..bytes / 8];
    let mut own = vec![0_u64; bytes / 8];
    let arms = Arms::in_turn(
        setup.samples(rounds),
        |_| {
            let (ended, ns) = time(|| {
                // A load and a store, as the program without a device has it: nobody else changes them at the time.
                managed.iter().for_each(|word| word.store(word.load(Ordering::Relaxed) + BOTH, Ordering::Relaxed));
                ways.managed()
            });
            ended.map(|()| ns)
        },
        |_| {
            let (ended, ns) = time(|| {
                own.iter_mut().for_each(|word| *word += BOTH);
                ways.staged(&mut own)
            });
            ended.map(|()| ns)
        },
    )?;
    let right = 2 * arms.rounds as u64 * BOTH;
    ensure!(managed.iter().all(|word| word.load(Ordering::Relaxed) == right), "the region is wrong");
    ensure!(own.iter().all(|&word| word == right), "the copy is wrong");
    Ok(Figure::of(format!("{} changed by each side, {policy}", size(bytes)), &arms, 1))
}

fn crossing_figure(ratios: &[(usize, f64)], policy: &str) -> Figure {
    let found = crossing(ratios);
    let bytes = found.unwrap_or(f64::INFINITY);
    let says = match found {
        Some(bytes) if bytes <= ratios[0].0 as f64 => "at every size".to_owned(),
        Some(bytes) => format!("from {:.0} KiB on", bytes / KIB as f64),
        None => "at no size: copies are".to_owned(),
    };
    Figure::count(format!("ahead of copies from so many MiB on, {policy}"), bytes / MIB as f64).note(says)
}

/// From how many bytes on the ratio stays below 1, between sizes by the logarithm; `None`: not even for the last.
fn crossing(ratios: &[(usize, f64)]) -> Option<f64> {
    let ahead = ratios.iter().rev().take_while(|(_, ratio)| *ratio < 1.0).count();
    let first = ratios.len() - ahead;
    let (bytes, ratio) = *ratios.get(first)?;
    let Some((below, behind)) = first.checked_sub(1).map(|before| ratios[before]) else { return Some(bytes as f64) };
    let part = (behind - 1.0) / (behind - ratio);
    Some((below as f64) * (bytes as f64 / below as f64).powf(part))
}

fn size(bytes: usize) -> String {
    if bytes < MIB { format!("{} KiB", bytes / KIB) } else { format!("{} MiB", bytes / MIB) }
}

#[cfg(test)]
mod tests {
    use super::crossing;

    #[test]
    fn the_crossing_lies_where_it_stays_ahead() {
        assert_eq!(crossing(&[(1, 3.0), (4, 2.0)]), None);
        assert_eq!(crossing(&[(1, 0.9), (4, 0.5)]), Some(1.0));
        assert_eq!(crossing(&[(1, 2.0), (4, 1.5), (16, 0.5), (64, 0.2)]), Some(8.0));
        // Ahead by chance before it falls behind again.
        assert_eq!(crossing(&[(1, 0.9), (4, 1.5), (16, 0.5)]), Some(8.0));
    }
}
