//! What the scenarios are made of: a small simulated world, and devices that show every hole in their exclusivity.
//!
//! Each page has a count and a mark. A device adds 2 to the count by a load and two stores, odd in between, and leaves its
//! mark meanwhile; the CPU adds 2 atomically, and leaves its own. So a lost update shows in the final count, an access in
//! the middle of a device's update in the mark or in an odd count.

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use std::sync::Arc;

use pagelease::sim::{SimCpu, WORDS, block_signals};
use pagelease::{
    Access, ByteLen, Device, DeviceHandle, Faults, Grant, Invalidation, Lease, NotDrained, OwnerId, PageIndex,
    PageRange, Region, RestorePolicy, Space, Stats, View,
};
use shuttle::sync::Mutex;

/// The word of a page that counts updates, two for each, and the one that says who made the last.
const COUNT: usize = 0;
const MARK: usize = 1;

/// The mark of the CPU; a device's is its identity.
const CPU: u64 = 0;

/// Whether what the engine counts must be right as well as what it does.
pub(crate) static CHECK_COUNTERS: AtomicBool = AtomicBool::new(true);

/// A limit that never passes: what waits for it in vain is a deadlock, which fails the test.
pub(crate) const NEVER: Duration = Duration::MAX;

/// A limit that may pass at any moment, by the schedule's choice.
pub(crate) const ANY_MOMENT: Duration = Duration::from_millis(1);

/// Who serves a touch.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Served {
    /// Monitors.
    Monitor,
    /// The touching thread, in its signal handler.
    InThread,
    /// The touching thread, but the devices may not be called from its signal handler.
    Deputy,
}

/// What a scenario is run with.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) struct Setting {
    pub(crate) served: Served,
    pub(crate) restore: RestorePolicy,
    pub(crate) access: Access,
}

impl Setting {
    /// Every one.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let served = [Served::Monitor, Served::InThread, Served::Deputy];
        served.into_iter().flat_map(|served| {
            [RestorePolicy::Lazy, RestorePolicy::Eager, RestorePolicy::Adaptive].into_iter().flat_map(move |restore| {
                [Access::Exclusive, Access::ExclusiveWrite].map(|access| Self { served, restore, access })
            })
        })
    }

    pub(crate) fn is_exclusive(&self) -> bool {
        self.access == Access::Exclusive
    }

    pub(crate) fn signal_safe(&self) -> bool {
        self.served != Served::Deputy
    }

    pub(crate) fn is_lazy(&self) -> bool {
        self.restore == RestorePolicy::Lazy
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}-{:?}-{:?}", self.served, self.restore, self.access)
    }
}

pub(crate) fn page(index: u32) -> PageRange {
    pages(index, index + 1)
}

pub(crate) fn pages(start: u32, end: u32) -> PageRange {
    PageRange::new(start, end).expect("at least one page")
}

/// How many updates of each page have been made. Not part of what is explored: counting is no scheduling point.
#[derive(Clone)]
pub(crate) struct Tally(Arc<[AtomicU64]>);

impl Tally {
    pub(crate) fn made(&self, page: u32) {
        self.0[page as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Every update that was made, and no other, has reached its page; `count` gives what a page shows.
    fn check(&self, count: impl Fn(u32) -> u64) {
        for (page, made) in (0..).zip(self.0.iter()) {
            let (count, made) = (count(page), made.load(Ordering::Relaxed));
            assert_eq!(count, 2 * made, "page {page} has seen {made} updates, and shows half of this count");
        }
    }
}

/// The CPU: what every thread can do with the pages.
#[derive(Clone)]
pub(crate) struct Cpu {
    sim: SimCpu,
    tally: Tally,
    reads_on: bool,
    interrupted: Arc<AtomicBool>,
}

impl Cpu {
    /// Updates the page; returns how many updates came before.
    pub(crate) fn touch(&self, page: u32) -> u64 {
        self.sim.store(word(page) + MARK, CPU);
        let before = self.sim.fetch_add(word(page) + COUNT, 2);
        self.tally.made(page);
        before / 2
    }

    /// Reads how many updates the page has seen. One half done must not be seen, unless the device lets the CPU read on.
    pub(crate) fn read(&self, page: u32) -> u64 {
        let count = self.sim.load(word(page) + COUNT);
        assert!(self.reads_on || count.is_multiple_of(2), "the CPU saw an update of page {page} half done");
        count / 2
    }

    /// Whether a touch of the page waits.
    pub(crate) fn is_waited_for(&self, page: u32) -> bool {
        self.sim.is_waited_for(word(page))
    }

    /// Has the next claim that revokes pages interrupted there once, by a signal handler of its thread.
    pub(crate) fn interrupt_next_claim(&self, handler: impl Fn() + Send + Sync + 'static) {
        let interrupted = self.interrupted.clone();
        self.sim.on_revoked(move |_| {
            if !interrupted.load(Ordering::Relaxed) {
                handler();
                interrupted.store(true, Ordering::Relaxed);
            }
        });
    }

    pub(crate) fn was_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

/// A space with one simulated region.
pub(crate) struct World {
    pub(crate) setting: Setting,
    pub(crate) space: Space,
    pub(crate) region: Region,
    pub(crate) cpu: Cpu,
}

impl World {
    /// Where nothing is given up: every wait ends because of what it waits for.
    pub(crate) fn new(setting: Setting, pages: usize) -> Self {
        Self::with_limits(setting, pages, NEVER, NEVER)
    }

    pub(crate) fn with_hold_limit(setting: Setting, pages: usize, hold_limit: Duration) -> Self {
        Self::with_limits(setting, pages, hold_limit, NEVER)
    }

    pub(crate) fn with_limits(setting: Setting, pages: usize, hold_limit: Duration, drain_limit: Duration) -> Self {
        let faults = if setting.served == Served::Monitor { Faults::Monitor } else { Faults::InThread };
        let builder = Space::builder().simulated().faults(faults).restore(setting.restore);
        let builder = builder.hold_limit(hold_limit).drain_limit(drain_limit);
        let space = builder.build().expect("a simulated space needs nothing of the system");
        let region = space.allocate(ByteLen(pages * pagelease_sys::page_size())).expect("a few pages");
        let sim = region.sim_cpu().expect("a simulated region");
        let tally = Tally((0..pages).map(|_| AtomicU64::new(0)).collect());
        let reads_on = setting.access == Access::ExclusiveWrite;
        let cpu = Cpu { sim, tally, reads_on, interrupted: Arc::default() };
        Self { setting, space, region, cpu }
    }

    pub(crate) fn device(&self) -> Gadget {
        let driver = Driver {
            table: Mutex::new(vec![false; self.region.pages().len() as usize]),
            signal_safe: self.setting.signal_safe(),
            on_mapped: Mutex::new(None),
        };
        self.attach(self.space.register(driver).expect("few devices"))
    }

    pub(crate) fn attach(&self, handle: DeviceHandle<Driver>) -> Gadget {
        let view = self.region.attach(&handle).expect("it has no view yet");
        Gadget { handle, view, access: self.setting.access, tally: self.tally() }
    }

    pub(crate) fn tally(&self) -> Tally {
        self.cpu.tally.clone()
    }

    pub(crate) fn touch(&self, page: u32) -> u64 {
        self.cpu.touch(page)
    }

    pub(crate) fn read(&self, page: u32) -> u64 {
        self.cpu.read(page)
    }

    /// The end: every update that was made, and no other, has reached its page; and what must hold whatever happened.
    pub(crate) fn finish(self) {
        // By a write, so that the page comes back whatever the access.
        self.cpu.tally.check(|page| self.cpu.sim.fetch_add(word(page) + COUNT, 0));
        // The handler keeps the region.
        self.cpu.sim.clear_hook();
        self.stats();
    }

    /// What the engine has counted. Some of it must be nothing, whatever happened.
    pub(crate) fn stats(&self) -> Stats {
        let stats = self.space.stats();
        if CHECK_COUNTERS.load(Ordering::Relaxed) {
            assert_eq!(stats.invalidations_spurious, 0, "a device was told to let go of pages that it did not have");
            assert_eq!(stats.devices_lost, 0, "no operation is stuck");
            assert_eq!(stats.restores_failed, 0, "simulated pages can always be mapped");
        }
        stats
    }
}

fn word(page: u32) -> usize {
    page as usize * WORDS
}

/// An update as a device makes it, whatever the device: anything but atomic.
pub(crate) fn update(load: impl Fn(usize) -> u64, store: impl Fn(usize, u64), device: OwnerId) {
    let mark = u64::from(device.get());
    let before = load(COUNT);
    assert!(before.is_multiple_of(2), "{device} found the update of another half done");
    store(MARK, mark);
    store(COUNT, before + 1);
    assert_eq!(load(MARK), mark, "somebody wrote to the page in the middle of {device}'s update");
    assert_eq!(load(COUNT), before + 1, "somebody wrote to the page in the middle of {device}'s update");
    store(COUNT, before + 2);
}

type OnMapped = Box<dyn Fn() + Send>;

/// A device with a page table of its own behind one lock, as most drivers have it. It works on pages under that lock, so
/// that an invalidation, which takes it, drains.
pub(crate) struct Driver {
    table: Mutex<Vec<bool>>,
    signal_safe: bool,
    on_mapped: Mutex<Option<OnMapped>>,
}

impl Driver {
    fn has(&self, page: u32) -> bool {
        self.table.lock().expect("not poisoned")[page as usize]
    }

    /// Whether it has no page at all.
    pub(crate) fn is_empty(&self) -> bool {
        !self.table.lock().expect("not poisoned").contains(&true)
    }

    /// Maps the page without a claim, if `may` says under the lock that what was read before still holds.
    pub(crate) fn map_if(&self, page: u32, may: impl FnOnce() -> bool) -> bool {
        let mut table = self.table.lock().expect("not poisoned");
        let may = may();
        table[page as usize] |= may;
        may
    }

    /// Evicts the page from the device's own table; the device may map it again.
    pub(crate) fn evict(&self, page: u32) {
        self.table.lock().expect("not poisoned")[page as usize] = false;
    }
}

impl Device for Driver {
    fn name(&self) -> &'static str {
        "gadget"
    }

    fn signal_safe(&self) -> bool {
        self.signal_safe
    }

    fn map(&self, grant: &Grant<'_>) -> bool {
        {
            // Whoever may be called from a signal handler has no lock that one could interrupt.
            let _blocked = self.signal_safe.then(block_signals);
            let mut table = self.table.lock().expect("not poisoned");
            if !grant.stands() {
                return false;
            }
            for page in grant.pages() {
                table[page.as_usize()] = true;
            }
        }
        let hook = self.on_mapped.lock().expect("not poisoned").take();
        if let Some(hook) = hook {
            hook();
        }
        true
    }

    fn invalidate(&self, invalidation: &Invalidation) -> Result<(), NotDrained> {
        let mut table = self.table.lock().expect("not poisoned");
        for page in invalidation.pages().iter() {
            table[page.as_usize()] = false;
        }
        Ok(())
    }
}

/// A device and its view of the world's region.
pub(crate) struct Gadget {
    pub(crate) handle: DeviceHandle<Driver>,
    pub(crate) view: View,
    access: Access,
    tally: Tally,
}

impl Gadget {
    pub(crate) fn id(&self) -> OwnerId {
        self.handle.id()
    }

    pub(crate) fn claim(&self, pages: PageRange) -> Lease {
        self.view.claim(pages, self.access).expect("nothing forbids the claim")
    }

    /// Runs `hook` in the claiming thread once, as a signal handler that interrupts it when it has just passed the commit
    /// point of its next claim.
    pub(crate) fn on_mapped(&self, hook: impl Fn() + Send + 'static) {
        *self.handle.on_mapped.lock().expect("not poisoned") = Some(Box::new(hook));
    }

    pub(crate) fn has(&self, page: u32) -> bool {
        self.handle.has(page)
    }

    /// As [`World::finish`], where the CPU has no access any more.
    pub(crate) fn finish(self) {
        self.tally.check(|page| self.view.words(PageIndex(page))[COUNT].load(Ordering::SeqCst));
    }

    /// Updates the page if the device has it: `false` if it has not. Lease or no lease.
    pub(crate) fn try_update(&self, page: u32) -> bool {
        let table = self.handle.table.lock().expect("not poisoned");
        let has = table[page as usize];
        if has {
            let words = self.view.words(PageIndex(page));
            update(
                |word| words[word].load(Ordering::SeqCst),
                |word, value| words[word].store(value, Ordering::SeqCst),
                self.id(),
            );
            self.tally.made(page);
        }
        drop(table);
        has
    }

    /// Claims the pages, updates each, and ends the lease, which nothing may break meanwhile.
    pub(crate) fn claim_and_update(&self, pages: PageRange) {
        let lease = self.claim(pages);
        for page in pages.iter() {
            assert!(self.try_update(page.0), "{} does not have {page}, which it holds", self.id());
        }
        assert_eq!(lease.check(), Ok(()), "nobody breaks a hold without a limit");
        lease.end().expect("nobody breaks a hold without a limit");
    }

    /// Updates the pages `rounds` times under a lease, and each once more without, if the device still has it by then.
    pub(crate) fn work(&self, pages: PageRange, rounds: usize) {
        for _ in 0..rounds {
            self.claim_and_update(pages);
            for page in pages.iter() {
                self.try_update(page.0);
            }
        }
    }
}
