//! Sampling: random histories where there are too many states to explore, spread over as many processes as there are.
//!
//! The histories of a case are numbered, and the random numbers of each come from the seed, the case's names and that
//! number alone. Shard I of N makes those whose number leaves I when divided by N; what is counted merges by sums, minima
//! and maxima. So all shards merged are one run, to the last bit, whoever made them and in whatever order they are merged.

mod shards;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Deserializer, Serialize};

use crate::case::{Case, Finding, Token};
use crate::catalogue::{Entry, Unknown};
use crate::property::Property;

pub use shards::{MergeError, ReadError, merge, merge_named, read, text};

/// The version of [`Line`]: it grows when a key, or what one counts, changes.
pub const FORMAT: u32 = 1;

/// Histories of each case, unless somebody asks for another number.
pub const HISTORIES: u64 = 10_000;

/// Steps after which a history is left, unless somebody asks for another number. The histories of the large scenarios that
/// end at all end before that, nearly all of them; where claims retry for ever, more steps only show that again.
pub const STEPS_MAX: u32 = 400;

/// One part of a run: what is left when a history's number is divided by the number of shards. Written `I/N`.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Shard {
    index: u32,
    of: u32,
}

impl Shard {
    /// All of it.
    pub const WHOLE: Self = Self { index: 0, of: 1 };

    /// Shard `index`, from 0, of `of`; `None` when there is no such shard.
    #[must_use]
    pub fn new(index: u32, of: u32) -> Option<Self> {
        (index < of).then_some(Self { index, of })
    }

    /// How many of the numbers below `histories` are its own.
    fn share(self, histories: u64) -> u64 {
        histories.saturating_sub(self.index.into()).div_ceil(self.of.into())
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

/// A word that is no shard.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{0}` is no shard: one is written I/N, with I from 0 to N-1")]
pub struct NoShard(String);

impl std::str::FromStr for Shard {
    type Err = NoShard;

    fn from_str(word: &str) -> Result<Self, NoShard> {
        let numbers = word.split_once('/').and_then(|(index, of)| Some((index.parse().ok()?, of.parse().ok()?)));
        numbers.and_then(|(index, of)| Self::new(index, of)).ok_or_else(|| NoShard(word.to_owned()))
    }
}

/// What to sample.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Plan {
    /// Where the random numbers come from.
    pub seed: u64,
    /// Histories of each design in each scenario, all shards together.
    pub histories: u64,
    /// A history is left after so many steps.
    pub steps_max: u32,
    /// Which of them to make.
    pub shard: Shard,
    /// Only these designs; all if none is named.
    pub designs: Vec<String>,
    /// Every case of this name, instead of those too large to be explored.
    pub scenario: Option<String>,
}

/// A plan that cannot be carried out.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// It names what the lab does not know.
    #[error(transparent)]
    Unknown(#[from] Unknown),
    /// The designs have no large scenario, and none was named.
    #[error("no scenario of {0} is too large to be explored whole; name one to sample it all the same")]
    NothingLarge(String),
    /// The steps could not be counted in 64 bits.
    #[error("{0} histories of up to {1} steps are more than can be counted")]
    TooMany(u64, u32),
}

impl Plan {
    /// The cases that it samples.
    ///
    /// # Errors
    ///
    /// [`PlanError`], when there is none, or too much to do in one.
    pub fn cases<'a>(&self, entries: &'a [Entry]) -> Result<Vec<&'a dyn Case>, PlanError> {
        if self.histories.checked_mul(self.steps_max.into()).is_none() {
            return Err(PlanError::TooMany(self.histories, self.steps_max));
        }
        let unknown = self.designs.iter().find(|design| entries.iter().all(|entry| entry.name != **design));
        if let Some(design) = unknown {
            return Err(Unknown::Design(design.clone()).into());
        }
        let wanted = |entry: &&Entry| self.designs.is_empty() || self.designs.iter().any(|design| design == entry.name);
        let entries: Vec<&Entry> = entries.iter().filter(wanted).collect();
        let cases: Vec<&dyn Case> = match &self.scenario {
            Some(scenario) => entries.iter().filter_map(|entry| entry.case(scenario).ok()).collect(),
            None => entries.iter().flat_map(|entry| &entry.large).map(|case| &**case).collect(),
        };
        if !cases.is_empty() {
            return Ok(cases);
        }
        let name = if self.designs.is_empty() { "any design".to_owned() } else { self.designs.join(", ") };
        let Some(scenario) = &self.scenario else { return Err(PlanError::NothingLarge(name)) };
        // Not every design has every scenario: it is unknown only where none has it.
        let mut known: Vec<_> = entries.iter().flat_map(|entry| entry.cases.iter().chain(&entry.large)).collect();
        known.sort_by_key(|case| case.names().1);
        known.dedup_by_key(|case| case.names().1);
        let known: Vec<_> = known.iter().map(|case| case.names().1).collect();
        Err(Unknown::Scenario { design: name, scenario: scenario.clone(), known: known.join(", ") }.into())
    }

    /// How many histories of each case its shard has.
    #[must_use]
    pub fn share(&self) -> u64 {
        self.shard.share(self.histories)
    }
}

/// The random numbers of one history.
///
/// The generator is SplitMix64 of Steele, Lea and Flood ("Fast splittable pseudorandom number generators", OOPSLA 2014), with
/// the constants of Vigna's public domain `splitmix64.c`. It is written out here because a seed must give the same histories
/// for as long as there are shards of it, and generators of libraries change.
#[derive(Clone, Debug)]
pub struct Numbers(u64);

impl Numbers {
    const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

    /// Those of the `history`-th history of a case. It starts at that output of the case's own sequence; these are all
    /// different, so that no two histories of a case begin with the same state.
    #[must_use]
    pub fn of_history(seed: u64, design: &str, scenario: &str, history: u64) -> Self {
        // No name holds a zero byte: two cases never hash the same bytes.
        let bytes = seed.to_le_bytes().into_iter().chain(design.bytes()).chain([0]).chain(scenario.bytes());
        Self(Self(fnv1a(bytes).wrapping_add(Self::GAMMA.wrapping_mul(history))).draw())
    }

    /// The next.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(Self::GAMMA);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

/// FNV-1a of 64 bits (Fowler, Noll and Vo; RFC 9923).
fn fnv1a(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// What the histories of one case came to, or of a part of it.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tally {
    /// Histories made.
    pub done: u64,
    /// Steps in them.
    pub steps: u64,
    /// How many came to an end; the others were left at the most steps.
    pub ended: u64,
    /// Spurious invalidations in all of them.
    pub spurious: u64,
    /// The most in one.
    pub spurious_worst: u64,
    /// Each property that one of them broke.
    #[serde(deserialize_with = "broken")]
    pub broken: BTreeMap<Property, Broken>,
}

/// How a property was broken.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Broken {
    /// By how many histories.
    pub histories: u64,
    /// By the one of these that takes the fewest steps to it; of equally short ones, by the first in the alphabet.
    pub token: String,
}

impl Tally {
    /// Both together. A sum stays at the largest number rather than overflow, which no order of adding changes; what
    /// [`Plan::cases`] allows never comes to that.
    fn add(&mut self, other: &Self) {
        self.done = self.done.saturating_add(other.done);
        self.steps = self.steps.saturating_add(other.steps);
        self.ended = self.ended.saturating_add(other.ended);
        self.spurious = self.spurious.saturating_add(other.spurious);
        self.spurious_worst = self.spurious_worst.max(other.spurious_worst);
        for (&property, Broken { histories, token }) in &other.broken {
            let broken = self.broken.entry(property).or_insert_with(|| Broken { histories: 0, token: token.clone() });
            broken.histories = broken.histories.saturating_add(*histories);
            // The tokens of a case begin alike, and then have one digit a step.
            if (token.len(), token) < (broken.token.len(), &broken.token) {
                broken.token.clone_from(token);
            }
        }
    }

    fn of_history(case: &dyn Case, plan: &Plan, history: u64) -> Self {
        let (design, scenario) = case.names();
        let mut numbers = Numbers::of_history(plan.seed, design, scenario, history);
        let sample = case.sample(plan.steps_max as usize, &mut || numbers.draw());
        let broken = sample.findings.into_iter().map(|Finding { property, path }| {
            let token = Token { design: design.to_owned(), scenario: scenario.to_owned(), path };
            (property, Broken { histories: 1, token: token.to_string() })
        });
        Self {
            done: 1,
            steps: sample.steps as u64,
            ended: sample.ended.into(),
            spurious: sample.spurious,
            spurious_worst: sample.spurious,
            broken: broken.collect(),
        }
    }
}

/// What a run, one shard of it or several, found of one case: one line of JSON.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// [`FORMAT`].
    pub format: u32,
    /// The version of the program: another one's models may take other histories from the same numbers.
    pub version: String,
    /// [`Plan::seed`].
    pub seed: u64,
    /// [`Plan::histories`].
    pub histories: u64,
    /// [`Plan::steps_max`].
    pub steps_max: u32,
    /// The design.
    pub design: String,
    /// The scenario.
    pub scenario: String,
    /// The shards it has, in order. The whole of it is shard 0 of 1, however it was put together.
    pub shards: Vec<u32>,
    /// Of how many.
    pub of: u32,
    /// What they came to.
    pub tally: Tally,
}

fn broken<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<Property, Broken>, D::Error> {
    let named = BTreeMap::<String, Broken>::deserialize(from)?;
    let property = |name: &str| {
        Property::named(name).ok_or_else(|| serde::de::Error::custom(format!("no property is called `{name}`")))
    };
    named.into_iter().map(|(name, broken)| Ok((property(&name)?, broken))).collect()
}

/// What is wrong with a line by itself.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum LineError {
    /// Another version's.
    #[error("it is of format {0}, and this program reads format {FORMAT}")]
    Format(u32),
    /// It is no line of JSON, or not of this form.
    #[error("{0}")]
    Form(String),
    /// Its figures do not go together: no run printed it.
    #[error("its {0} cannot be: it was changed, or is not a run's")]
    Figures(&'static str),
}

impl Line {
    /// The line that `text` is.
    ///
    /// # Errors
    ///
    /// [`LineError`].
    pub fn parse(text: &str) -> Result<Self, LineError> {
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        // The version first, and loosely: of a line of another version it is all that can be understood.
        let form = |error: serde_json::Error| LineError::Form(error.to_string());
        let head: Head = serde_json::from_str(text).map_err(form)?;
        if head.format != FORMAT {
            return Err(LineError::Format(head.format));
        }
        let line: Self = serde_json::from_str(text).map_err(form)?;
        line.check().map(|()| line)
    }

    /// Whether its figures go together.
    fn check(&self) -> Result<(), LineError> {
        let Tally { done, steps, ended, broken, .. } = &self.tally;
        let share = |&index: &u32| Shard::new(index, self.of).map(|shard| u128::from(shard.share(self.histories)));
        let in_order = !self.shards.is_empty() && self.shards.is_sorted_by(|a, b| a < b);
        let own = |Broken { histories, token }: &Broken| {
            let known = token.parse::<Token>().is_ok_and(|token| {
                token.design == self.design
                    && token.scenario == self.scenario
                    && token.path.loop_from.is_none()
                    && token.path.choices.len() <= self.steps_max as usize
            });
            known && (1..=*done).contains(histories)
        };
        let checks = [
            ("list of shards", in_order && (self.of == 1 || !self.is_whole())),
            ("number of histories", self.shards.iter().map(share).sum::<Option<u128>>() == Some((*done).into())),
            ("number of steps", u128::from(*steps) <= u128::from(*done) * u128::from(self.steps_max)),
            ("number of ended histories", ended <= done),
            ("list of broken properties", broken.values().all(own)),
        ];
        if self.format != FORMAT {
            return Err(LineError::Format(self.format));
        }
        checks.into_iter().find(|(_, right)| !right).map_or(Ok(()), |(what, _)| Err(LineError::Figures(what)))
    }

    /// Whether it has every shard.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.shards.len() as u64 == u64::from(self.of)
    }

    /// The shards that it has not.
    pub fn missing(&self) -> impl Iterator<Item = u32> {
        (0..self.of).filter(|index| self.shards.binary_search(index).is_err())
    }

    fn of(plan: &Plan, case: &dyn Case, tally: Tally) -> Self {
        let (design, scenario) = case.names();
        Self {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            seed: plan.seed,
            histories: plan.histories,
            steps_max: plan.steps_max,
            design: design.to_owned(),
            scenario: scenario.to_owned(),
            shards: vec![plan.shard.index],
            of: plan.shard.of,
            tally,
        }
    }

    /// All shards are shard 0 of 1: nothing tells then how it was divided.
    fn whole(self) -> Self {
        if self.is_whole() { Self { shards: vec![0], of: 1, ..self } } else { self }
    }

    fn names(&self) -> (&str, &str) {
        (&self.design, &self.scenario)
    }
}

/// How many histories a thread takes at a time: enough that the counter they share is not felt.
const TAKEN: u64 = 256;

/// Makes the histories of the plan's shard, in every case that it samples, on `threads` threads: one line a case, the same
/// whatever the number of threads. `progress` grows by each history made, up to the number of cases times [`Plan::share`].
///
/// # Errors
///
/// [`PlanError`].
pub fn run(plan: &Plan, entries: &[Entry], threads: usize, progress: &AtomicU64) -> Result<Vec<Line>, PlanError> {
    let cases = plan.cases(entries)?;
    let (share, next) = (plan.share(), AtomicU64::new(0));
    let takes = share.div_ceil(TAKEN);
    let tallies = Mutex::new(vec![Tally::default(); cases.len()]);
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                let mut own = vec![Tally::default(); cases.len()];
                // Without histories there is nothing to take, and no case to take it from.
                while let Some(number) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|_| takes > 0) {
                    let Some(case) = usize::try_from(number / takes).ok().filter(|&case| case < cases.len()) else {
                        break;
                    };
                    let first = number % takes * TAKEN;
                    let last = share.min(first + TAKEN);
                    for place in first..last {
                        let history = place * u64::from(plan.shard.of) + u64::from(plan.shard.index);
                        own[case].add(&Tally::of_history(cases[case], plan, history));
                    }
                    progress.fetch_add(last - first, Ordering::Relaxed);
                }
                let mut all = tallies.lock().expect("no thread panics with the lock");
                all.iter_mut().zip(&own).for_each(|(all, own)| all.add(own));
            });
        }
    });
    let tallies = tallies.into_inner().expect("no thread panics with the lock");
    let mut lines: Vec<Line> = cases.iter().zip(tallies).map(|(case, tally)| Line::of(plan, *case, tally)).collect();
    // As `merge` has them.
    lines.sort_by(|a, b| a.names().cmp(&b.names()));
    Ok(lines)
}
