//! `peer`: how it compares with what runtimes do today.
//!
//! A round: the device updates one word on each of 64 random pages, then the CPU updates another word on each of 64 random
//! pages. Value: with pagelease. Floor: with `mprotect` and SIGSEGV for the whole allocation: the round begins by closing all
//! of it to the CPU, the device works through an alias, and the CPU's first touch opens all of it again. The goals say how many
//! times faster the value is; as a ratio, 1/6 and 1/20.
//!
//! In both arms the device's part is a job of the same software device, so that handing it over costs both the same; the
//! floor's is one operation that updates all 64 words of the alias. Before the first round the device takes a random half of
//! the region, which is how things stand after many rounds: about half of what either side needs is the other's.
//!
//! A sample is [`AT_A_TIME`] rounds of an arm, since the floor leaves the caches full of page tables, which a program that
//! does without it would not suffer from. Both arms count, and the counts are checked.
//!
//! Placement: the CPU's part here, the device's worker there, monitors there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use pagelease::software::{DevicePage, Item, Operation};
use pagelease::{ByteLen, Faults, PageIndex, Region, View};
use pagelease_sys::page_size;

use super::Setup;
use super::bare::{Bare, Handler, Trap};
use super::figure::Figure;
use super::managed::{Managed, pages, words_per_page};
use super::stats::{Arms, Random, time};

/// Pages that each side updates a round.
const TOUCHED: usize = 64;

/// Rounds of a sample.
const AT_A_TIME: usize = 8;

const MIB: usize = 1 << 20;

pub(super) fn run(setup: &Setup) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (size_mib, faster, rounds) in [(64, 6.0, 60), (256, 20.0, 30)] {
        for (faults, name) in [(Faults::InThread, "in-thread"), (Faults::Monitor, "monitor")] {
            let arms = Peers::new(setup, faults, size_mib * MIB)?.compare(setup.samples(rounds))?;
            let figure = Figure::of(format!("{size_mib} MiB, {name}, a round"), &arms, AT_A_TIME);
            let note = format!("{:.1} times faster", 1.0 / figure.ratio());
            let figure = figure.note(note);
            figures.push(if faults == Faults::InThread { figure.goal(1.0 / faster) } else { figure });
        }
    }
    Ok(figures)
}

struct Peers {
    managed: Managed,
    bare: Arc<Bare>,
    /// One page that the device keeps: the floor's jobs need one to run on.
    desk: (View, Region),
    pages: usize,
}

/// What both sides update in one round, as indices of words: of the device's, the first half of a page; of the CPU's, the
/// second.
struct Round {
    device: Vec<usize>,
    cpu: Vec<usize>,
}

impl Round {
    fn new(number: usize, pages: usize) -> Result<Self> {
        let mut random = Random(number as u64);
        let (pages, half) = (u32::try_from(pages)?, u32::try_from(words_per_page() / 2)?);
        let mut words = |from: usize| {
            let word = |_| random.below(pages) as usize * words_per_page() + from + random.below(half) as usize;
            (0..TOUCHED).map(word).collect()
        };
        Ok(Self { device: words(0), cpu: words(words_per_page() / 2) })
    }

    fn items(&self) -> Result<Vec<Item>> {
        let item = |&word: &usize| {
            let page = PageIndex(u32::try_from(word / words_per_page())?);
            Ok(Item { page, argument: (word % words_per_page()) as u64 })
        };
        self.device.iter().map(item).collect()
    }
}

fn add_one(word: &AtomicU64) {
    word.store(word.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

impl Peers {
    fn new(setup: &Setup, faults: Faults, len: usize) -> Result<Self> {
        let count = len / page_size();
        let managed = Managed::new(faults, count, setup.cpus.there)?;
        let bare = Arc::new(Bare::new(count, Trap::None)?);
        let desk = managed.space.allocate(ByteLen(page_size()))?;
        let desk = (managed.device.attach(&desk)?, desk);
        let mut random = Random(7);
        let half: Vec<Item> = managed
            .view
            .pages()
            .iter()
            .filter(|_| random.below(2) == 0)
            .map(|page| Item { page, argument: 0 })
            .collect();
        managed.device.submit(&managed.view, |_: &DevicePage<'_>, _| {}, &half).wait()?;
        Ok(Self { managed, bare, desk, pages: count })
    }

    fn compare(&self, samples: usize) -> Result<Arms> {
        let update = |page: &DevicePage<'_>, word: u64| {
            #[expect(clippy::cast_possible_truncation, reason = "a word of a page")]
            page.update(word as usize, |count| count + 1);
        };
        let rounds_of =
            |sample| (sample * AT_A_TIME..(sample + 1) * AT_A_TIME).map(|number| Round::new(number, self.pages));
        let arms = Arms::in_turn(
            samples,
            |sample| rounds_of(sample).map(|round| self.managed_round(&round?, update)).sum(),
            |sample| rounds_of(sample).map(|round| self.bare_round(round?)).sum::<Result<u64>>(),
        )?;
        // All rounds of both arms, those of the warm-up included.
        let expected = (arms.rounds * AT_A_TIME * TOUCHED) as u64;
        self.managed.region.prefetch(pages(0, self.pages));
        check(self.managed.region.words(), expected).context("pagelease")?;
        check(self.bare.alias_words(), expected).context("mprotect")?;
        Ok(arms)
    }

    fn managed_round(&self, round: &Round, update: impl Operation + Copy) -> Result<u64> {
        let Managed { device, view, region, .. } = &self.managed;
        let items = round.items()?;
        let words = region.words();
        let (done, ns) = time(|| {
            device.submit(view, update, &items).wait()?;
            round.cpu.iter().for_each(|&word| add_one(&words[word]));
            Ok::<_, anyhow::Error>(())
        });
        done?;
        Ok(ns)
    }

    fn bare_round(&self, round: Round) -> Result<u64> {
        let bare = self.bare.clone();
        let Round { device: device_words, cpu } = round;
        let update = move |_: &DevicePage<'_>, _| {
            let words = bare.alias_words();
            device_words.iter().for_each(|&word| add_one(&words[word]));
        };
        let desk = [Item { page: PageIndex(0), argument: 0 }];
        let words = self.bare.words();
        let (done, ns) = Handler::sigsegv(&self.bare).during(|| {
            time(|| {
                self.bare.protect(false)?;
                self.managed.device.submit(&self.desk.0, update, &desk).wait()?;
                cpu.iter().for_each(|&word| add_one(&words[word]));
                Ok::<_, anyhow::Error>(())
            })
        });
        done?;
        Ok(ns)
    }
}

/// Each side counted in its own half of each page.
fn check(words: &[AtomicU64], expected: u64) -> Result<()> {
    let (mut device, mut cpu) = (0, 0);
    for page in words.chunks(words_per_page()) {
        let (first, second) = page.split_at(words_per_page() / 2);
        device += first.iter().map(|word| word.load(Ordering::Relaxed)).sum::<u64>();
        cpu += second.iter().map(|word| word.load(Ordering::Relaxed)).sum::<u64>();
    }
    ensure!(device == expected, "of the device's {expected} updates {device} were counted");
    ensure!(cpu == expected, "of the CPU's {expected} updates {cpu} were counted");
    Ok(())
}
