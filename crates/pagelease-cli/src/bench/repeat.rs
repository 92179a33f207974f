//! `repeat`: what a device pays for an operation on a page that it has already.
//!
//! Value: a job of many items, each of which adds one to a word, on pages that the device has: the whole of the software
//! device's fast path, by which it knows that a page is its own. Floor: the same list of items, the same load, add and
//! store, in a loop with nothing around it.
//!
//! Both run in the device's worker thread, there: the floor as one single operation of it that walks the list. The worker
//! itself takes the time, in operations before and behind the job, so that submitting and waking are not in it. They are held
//! back by a gate until all is submitted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use pagelease::software::{DevicePage, Item, Operation};
use pagelease::{Faults, PageIndex, View};
use pagelease_sys::thread::monotonic_ns;

use super::Setup;
use super::figure::{Figure, duration};
use super::managed::{Managed, pages, words_per_page};
use super::stats::{Arms, Random};

/// The device's pages: 64 KiB, which a core's caches hold, so that the operation and not the memory is measured.
const PAGES: usize = 16;

/// Items of a job: many, since what is around a job is measured too, and few enough for one slice of a busy CPU.
const ITEMS: usize = 20_000;

/// What an operation may cost beyond its floor.
const GOAL_NS: f64 = 5.0;

pub(super) fn run(setup: &Setup) -> Result<Vec<Figure>> {
    let managed = Managed::new(Faults::InThread, PAGES, setup.cpus.there)?;
    managed.take(pages(0, PAGES))?;
    let words = u32::try_from(words_per_page())?;
    let mut random = Random(1);
    let mut figures = Vec::new();
    for (case, spread) in [("words of 16 pages", PAGES), ("words of one page", 1)] {
        let spread = u32::try_from(spread)?;
        let mut item = || Item { page: PageIndex(random.below(spread)), argument: u64::from(random.below(words)) };
        let items: Vec<Item> = (0..ITEMS).map(|_| item()).collect();
        let figure = Figure::of(case, &measure(&managed, &items, setup.samples(1500))?, ITEMS);
        let more_ns = figure.value_ns().zip(figure.floor_ns()).map_or(0.0, |(value_ns, floor_ns)| value_ns - floor_ns);
        figures.push(figure.goal_beyond_floor_ns(GOAL_NS).note(format!("{} more", duration(more_ns))));
    }
    Ok(figures)
}

fn measure(managed: &Managed, items: &[Item], rounds: usize) -> Result<Arms> {
    let add_one = |page: &DevicePage<'_>, word: u64| {
        #[expect(clippy::cast_possible_truncation, reason = "a word of a page")]
        page.update(word as usize, |count| count + 1);
    };
    let one = [Item { page: PageIndex(0), argument: 0 }];
    let value = |_| in_worker(managed, add_one, items);
    let floor = |_| in_worker(managed, Walk::new(managed, items)?, &one);
    let before = sum(managed);
    let arms = Arms::in_turn(rounds, value, floor)?;
    let expected = 2 * arms.rounds * items.len();
    ensure!(sum(managed) - before == expected as u64, "an update was lost");
    Ok(arms)
}

/// All words of the device's pages. (The device is idle.)
fn sum(managed: &Managed) -> u64 {
    managed.view.pages().iter().flat_map(|page| managed.view.words(page)).map(|word| word.load(Ordering::Relaxed)).sum()
}

/// The floor: walks the items as plainly as can be. Its list is as fresh from this thread as a job's is, so that the worker
/// has to fetch it from the other CPU's cache in both arms.
struct Walk {
    /// The first word of the view.
    words: *const AtomicU64,
    /// Keeps the words.
    _view: View,
    words_per_page: usize,
    items: Vec<Item>,
}

// SAFETY: it points to atomics, which any thread may use, and keeps them.
unsafe impl Send for Walk {}
// SAFETY: as above.
unsafe impl Sync for Walk {}

impl Walk {
    fn new(managed: &Managed, items: &[Item]) -> Result<Self> {
        let first = managed.view.page_ptr(PageIndex(0)).context("a real region has addresses")?;
        Ok(Self {
            words: first.cast().as_ptr(),
            _view: managed.view.clone(),
            words_per_page: words_per_page(),
            items: items.to_vec(),
        })
    }
}

impl Operation for Walk {
    fn run(&self, _: &DevicePage<'_>, _: u64) {
        for item in &self.items {
            #[expect(clippy::cast_possible_truncation, reason = "a word of a page")]
            let index = item.page.as_usize() * self.words_per_page + item.argument as usize;
            // SAFETY: the items' pages are the view's, their arguments words of a page.
            let word = unsafe { &*self.words.add(index) };
            word.store(word.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
    }
}

/// Submits the items between two marks, opens the gate when all is queued, and returns what lies between the marks.
fn in_worker(managed: &Managed, operation: impl Operation, items: &[Item]) -> Result<u64> {
    struct Marks {
        open: AtomicBool,
        begin_ns: AtomicU64,
        end_ns: AtomicU64,
    }
    let marks = Arc::new(Marks { open: AtomicBool::new(false), begin_ns: 0.into(), end_ns: 0.into() });
    let one = [Item { page: PageIndex(0), argument: 0 }];
    let (gate, last) = (marks.clone(), marks.clone());
    let first = managed.device.submit(
        &managed.view,
        move |_: &DevicePage<'_>, _| {
            while !gate.open.load(Ordering::Acquire) {
                std::hint::spin_loop();
            }
            gate.begin_ns.store(monotonic_ns(), Ordering::Relaxed);
        },
        &one,
    );
    let job = managed.device.submit(&managed.view, operation, items);
    let end = move |_: &DevicePage<'_>, _| last.end_ns.store(monotonic_ns(), Ordering::Relaxed);
    let end = managed.device.submit(&managed.view, end, &one);
    marks.open.store(true, Ordering::Release);
    for job in [first, job, end] {
        job.wait()?;
    }
    Ok(marks.end_ns.load(Ordering::Relaxed) - marks.begin_ns.load(Ordering::Relaxed))
}
