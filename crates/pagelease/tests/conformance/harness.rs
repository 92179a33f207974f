//! What a test of the suite works with: a space of one backend in one fault mode, and CPU accesses that look the same on
//! real and on simulated memory.

use std::fmt::Debug;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};

use pagelease::sim::SimCpu;
use pagelease::{BackendKind, ByteLen, DeviceHandle, Faults, Region, Space, SpaceBuilder, Stats};

use crate::support::{PLAIN, Plain, open, watchdog};

/// CPU accesses to word `word` (0 or 1) of page `page`.
pub(crate) trait Cpu: Send + Sync {
    fn load(&self, page: u32, word: usize) -> u64;
    fn store(&self, page: u32, word: usize, value: u64);
    fn add(&self, page: u32, word: usize, value: u64) -> u64;
}

struct Real<'a> {
    words: &'a [AtomicU64],
    in_a_page: usize,
}

impl Real<'_> {
    fn at(&self, page: u32, word: usize) -> &AtomicU64 {
        &self.words[page as usize * self.in_a_page + word]
    }
}

impl Cpu for Real<'_> {
    fn load(&self, page: u32, word: usize) -> u64 {
        self.at(page, word).load(SeqCst)
    }

    fn store(&self, page: u32, word: usize, value: u64) {
        self.at(page, word).store(value, SeqCst);
    }

    fn add(&self, page: u32, word: usize, value: u64) -> u64 {
        self.at(page, word).fetch_add(value, SeqCst)
    }
}

impl Cpu for SimCpu {
    fn load(&self, page: u32, word: usize) -> u64 {
        self.load(page as usize * pagelease::sim::WORDS + word)
    }

    fn store(&self, page: u32, word: usize, value: u64) {
        self.store(page as usize * pagelease::sim::WORDS + word, value);
    }

    fn add(&self, page: u32, word: usize, value: u64) -> u64 {
        self.fetch_add(page as usize * pagelease::sim::WORDS + word, value)
    }
}

pub(crate) fn cpu(region: &Region) -> Box<dyn Cpu + '_> {
    match region.sim_cpu() {
        Some(sim) => Box::new(sim),
        None => Box::new(Real { words: region.words(), in_a_page: region.granule().0 / 8 }),
    }
}

#[derive(Copy, Clone, Debug)]
pub(crate) struct Rig {
    pub(crate) backend: BackendKind,
    pub(crate) faults: Faults,
}

impl Rig {
    /// Runs a test, unless this machine has no userfaultfd to run it on.
    pub(crate) fn run(self, test: fn(Rig)) {
        let _watchdog = watchdog();
        if self.try_bench(|builder| builder).is_some() {
            test(self);
        }
    }

    fn try_bench(self, configure: impl FnOnce(SpaceBuilder) -> SpaceBuilder) -> Option<Bench> {
        let builder = configure(Space::builder().faults(self.faults));
        let space = match self.backend {
            BackendKind::Sim => builder.simulated().build().expect("needs nothing"),
            _ => open(builder)?,
        };
        Some(Bench { space })
    }

    /// A space, set up by `configure`.
    pub(crate) fn bench(self, configure: impl FnOnce(SpaceBuilder) -> SpaceBuilder) -> Bench {
        self.try_bench(configure).expect("it could be made a moment ago")
    }

    /// A space with the defaults, but that it waits for a lease for ever.
    pub(crate) fn patient(self) -> Bench {
        self.bench(|builder| builder.hold_limit(Duration::MAX))
    }
}

/// A space under test. When it is dropped, what must be true of every space's counters is checked.
pub(crate) struct Bench {
    pub(crate) space: Space,
}

impl Bench {
    pub(crate) fn region(&self, pages: u32) -> Region {
        let len = ByteLen(pages as usize * 4096);
        self.space.allocate(len).expect("room for a few pages")
    }

    pub(crate) fn device(&self) -> DeviceHandle<Plain> {
        self.space.register(PLAIN).expect("one of a few devices")
    }

    pub(crate) fn stats(&self) -> Stats {
        self.space.stats()
    }

    /// Asserts what the counters come to. Some are raised by a monitor that has already let the touching thread go on, so
    /// they get the time to.
    #[track_caller]
    pub(crate) fn expect<T: Copy + PartialEq + Debug>(&self, counters: impl Fn(&Stats) -> T, expected: T) {
        let begin = Instant::now();
        while counters(&self.stats()) != expected && begin.elapsed() < Duration::from_secs(5) {
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(counters(&self.stats()), expected, "{:?}", self.stats());
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if thread::panicking() {
            return;
        }
        let stats = self.stats();
        assert_eq!(stats.invalidations_spurious, 0, "{stats:?}");
        assert_eq!(stats.devices_lost + stats.covers_failed + stats.restores_failed, 0, "{stats:?}");
        assert!(stats.restores <= stats.pages_claimed, "{stats:?}");
        assert!(stats.wait_ns_max == 0 || stats.waits > 0, "{stats:?}");
    }
}
