//! What a test of the suite works with: a [`Rig`], which is a space of one backend in one fault mode over one kind of memory;
//! and CPU accesses that look the same on real and on simulated memory.

use std::fmt::{Debug, Display};
use std::io::Write as _;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use pagelease::sim::SimCpu;
use pagelease::{BackendKind, DeviceHandle, Faults, Region, Space, SpaceBuilder, SpaceError, Stats};

use crate::support::memory::{HUGE_PAGES_MAX, Made, Memory};
use crate::support::private;
use crate::support::{PLAIN, Plain, patient, watchdog};

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

/// What the suite runs on: a line of `suite!`.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Rig {
    /// That of its module.
    pub(crate) name: &'static str,
    pub(crate) memory: Memory,
    pub(crate) backend: BackendKind,
    pub(crate) faults: Faults,
}

/// The pool of huge pages has enough for one test at a time.
fn one_of_the_pool() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Rig {
    /// Runs a test, unless this machine cannot do what the rig is made of: then it says so.
    pub(crate) fn run(self, test: fn(Rig)) {
        let _watchdog = watchdog();
        let _one = (self.memory == Memory::Huge).then(one_of_the_pool);
        match self.try_bench(|builder| builder) {
            Ok(_) => test(self),
            // Not `eprintln`, which the test harness captures.
            Err(reason) => drop(writeln!(std::io::stderr(), "skipped: {}: {reason}", self.name)),
        }
    }

    /// `Err`: why this machine cannot. Whatever else goes wrong is a failure.
    fn try_bench(self, configure: impl FnOnce(SpaceBuilder) -> SpaceBuilder) -> Result<Bench, Box<dyn Display>> {
        let builder = Space::builder().faults(self.faults);
        // Adopted memory has its own, whatever a space allocates.
        let builder = if self.backend == BackendKind::Move { builder } else { builder.backend(self.backend) };
        let space = match configure(builder).build() {
            Ok(space) => space,
            Err(SpaceError::Userfaultfd(refused)) => return Err(Box::new(refused)),
            Err(error) => panic!("{}: {error}", self.name),
        };
        match self.memory.try_out(&space) {
            Ok(()) => Ok(Bench { space, rig: self, kept: Mutex::default() }),
            Err(missing) if missing.is_the_machine_s() => Err(Box::new(missing)),
            Err(error) => panic!("{}: {error}", self.name),
        }
    }

    /// `count` pages, or as many as there can be of this memory.
    pub(crate) fn pages(self, count: u32) -> u32 {
        self.memory.most(count)
    }

    /// A space, set up by `configure`.
    pub(crate) fn bench(self, configure: impl FnOnce(SpaceBuilder) -> SpaceBuilder) -> Bench {
        self.try_bench(configure).unwrap_or_else(|reason| panic!("it could be made a moment ago: {reason}"))
    }

    /// A space with the defaults, but that it waits for a lease for ever.
    pub(crate) fn patient(self) -> Bench {
        self.bench(|builder| builder.hold_limit(Duration::MAX))
    }
}

/// A space under test. When it is dropped, what must be true of every space's counters is checked.
pub(crate) struct Bench {
    pub(crate) space: Space,
    rig: Rig,
    /// The memory of its regions; unmapped after they have gone.
    kept: Mutex<Vec<private::Memory>>,
}

impl Bench {
    pub(crate) fn region(&self, pages: u32) -> Region {
        assert!(self.rig.memory != Memory::Huge || pages <= HUGE_PAGES_MAX, "more than `Rig::pages` says");
        let Made { region, memory } = self.rig.memory.allocate(&self.space, pages).expect("room for a few pages");
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).extend(memory);
        region
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
        while counters(&self.stats()) != expected && begin.elapsed() < patient(Duration::from_secs(5)) {
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
    }
}
