//! `policy`: when should a device give pages back, for which pattern of accesses?
//!
//! Four patterns, each with every `RestorePolicy`. In all of them the device claims 64 pages, writes a word of each, and ends
//! the lease; what the CPU does after that is the pattern:
//!
//! - *ping-pong*: it reads each page after each lease. Giving back saves every touch.
//! - *reuse*: the device claims the same pages again and again, and the CPU reads them after each 64th lease only. Giving
//!   back costs as much as it saves touches, and more.
//! - *stream*: the device works once through a region that is new each time, chunk by chunk, and the CPU follows, in order:
//!   touches bring neighbours along, and no page has a history.
//! - *mixed*: it reads every second page after each lease, the others after each 64th.
//!
//! Value: the time of a lease and the reads after it. Floor: the same with the better of lazy and eager, whichever that is;
//! so one of those two is at 1, and the other shows what a wrong choice costs. The goal is adaptive's. But for *stream*, reads
//! are in an order in which no page follows its neighbour. A sample is of [`LEASES`] leases, or of one region; the policies
//! take turns, sample by sample. Adaptive learns during the warm-up.
//!
//! Placement: everything here, the device's part too: leases are claimed directly. Monitors here.

use std::sync::atomic::Ordering;

use anyhow::{Result, ensure};
use pagelease::{Access, ByteLen, Faults, Region, RestorePolicy, View};
use pagelease_sys::page_size;

use super::Setup;
use super::figure::{Figure, duration};
use super::managed::{Managed, pages, words_per_page};
use super::stats::{Samples, time};

/// Pages of a lease.
const PAGES: usize = 64;

/// Pages of the region that is worked through once.
const STREAM: usize = 64 * PAGES;

/// Leases of a sample: as many as it takes adaptive to look whether it is still right.
const LEASES: usize = 256;

/// What the CPU reads seldom, it reads after each lease whose number this divides.
const SELDOM: usize = 64;

const POLICIES: [(RestorePolicy, &str); 3] =
    [(RestorePolicy::Lazy, "lazy"), (RestorePolicy::Eager, "eager"), (RestorePolicy::Adaptive, "adaptive")];

/// Adaptive may be so much slower than the better of the other two: its probes are in that.
const GOAL: f64 = 1.15;

#[derive(Copy, Clone, Debug, Eq, PartialEq)]
enum Pattern {
    PingPong,
    Reuse,
    Stream,
    Mixed,
}

impl Pattern {
    const ALL: [(Self, &'static str); 4] =
        [(Self::PingPong, "ping-pong"), (Self::Reuse, "reuse"), (Self::Stream, "stream"), (Self::Mixed, "mixed")];

    /// Whether the CPU reads `page` after the lease with this number.
    fn reads(self, page: usize, lease: usize) -> bool {
        let often = match self {
            Self::PingPong | Self::Stream => true,
            Self::Reuse => false,
            Self::Mixed => page.is_multiple_of(2),
        };
        often || lease % SELDOM == SELDOM - 1
    }

    /// Leases of a sample.
    fn leases(self) -> usize {
        if self == Self::Stream { STREAM / PAGES } else { LEASES }
    }
}

pub(super) fn run(setup: &Setup) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (faults, mode) in [(Faults::InThread, "in-thread"), (Faults::Monitor, "monitor")] {
        for (pattern, name) in Pattern::ALL {
            figures.extend(measure(setup, faults, pattern, &format!("{name}, {mode}"))?);
        }
    }
    Ok(figures)
}

/// A figure a policy.
fn measure(setup: &Setup, faults: Faults, pattern: Pattern, case: &str) -> Result<Vec<Figure>> {
    let mut arms = Vec::new();
    for (policy, name) in POLICIES {
        let managed = Managed::with_policy(faults, policy, PAGES, None)?;
        arms.push((name, Arm { managed, pattern, samples: Samples::default(), lease: 0 }));
    }
    let (warm_up, rounds) = (2, setup.samples(18));
    for round in 0..warm_up + rounds {
        for (_, arm) in &mut arms {
            let ns = arm.sample()?;
            if round >= warm_up {
                arm.samples.push(ns);
            }
        }
    }
    let summaries: Vec<_> = arms.iter().map(|(_, arm)| arm.samples.summary().per(pattern.leases())).collect();
    let best = if summaries[0].median <= summaries[1].median { summaries[0] } else { summaries[1] };
    let figures = arms.iter().zip(&summaries).map(|((name, arm), &summary)| {
        let figure = Figure::times(format!("{case}: {name}"), summary, best).note(arm.shown());
        if *name == "adaptive" { figure.goal(GOAL) } else { figure }
    });
    Ok(figures.collect())
}

struct Arm {
    managed: Managed,
    pattern: Pattern,
    samples: Samples,
    /// Leases so far.
    lease: usize,
}

impl Arm {
    fn sample(&mut self) -> Result<u64> {
        if self.pattern == Pattern::Stream {
            return self.stream();
        }
        let (result, ns) = time(|| {
            (0..LEASES)
                .try_for_each(|_| self.turn(&self.managed.region, &self.managed.view, 0).map(|()| self.lease += 1))
        });
        result?;
        Ok(ns)
    }

    fn stream(&mut self) -> Result<u64> {
        let region = self.managed.space.allocate(ByteLen(STREAM * page_size()))?;
        let view = self.managed.device.attach(&region)?;
        // The pages exist, and both sides have them mapped.
        for page in region.pages().iter() {
            region.words()[page.as_usize() * words_per_page()].store(0, Ordering::Relaxed);
            view.words(page)[0].store(0, Ordering::Relaxed);
        }
        let (result, ns) = time(|| (0..STREAM).step_by(PAGES).try_for_each(|first| self.turn(&region, &view, first)));
        result?;
        self.lease += STREAM / PAGES;
        Ok(ns)
    }

    /// A lease, and the CPU's reads after it.
    fn turn(&self, region: &Region, view: &View, first: usize) -> Result<()> {
        let leased = pages(first, PAGES);
        let lease = view.claim(leased, Access::Exclusive)?;
        for page in leased.iter() {
            view.words(page)[0].store(self.lease as u64, Ordering::Relaxed);
        }
        lease.end()?;
        let stride = if self.pattern == Pattern::Stream { 1 } else { 37 };
        for page in (0..PAGES).map(|n| n * stride % PAGES).filter(|&page| self.pattern.reads(page, self.lease)) {
            let word = &region.words()[(first + page) * words_per_page()];
            ensure!(word.load(Ordering::Relaxed) == self.lease as u64, "the CPU does not see what the device wrote");
        }
        Ok(())
    }

    /// What the policy came to, a lease.
    fn shown(&self) -> String {
        let stats = self.managed.space.stats();
        let leases = self.lease.max(1) as f64;
        let each = |count: u64| count as f64 / leases;
        let throttled = match stats.throttle_ns_max {
            0 => String::new(),
            #[expect(clippy::cast_precision_loss, reason = "for three digits of it")]
            longest => format!(", {} throttled, {} at most", stats.touches_throttled, duration(longest as f64)),
        };
        format!("{:.1} touches, {:.1} given back{throttled}", each(stats.touches), each(stats.given_back))
    }
}
