//! Signal handlers that touch managed pages at any moment, in the middle of a claim of the same pages above all.
#![cfg(not(pagelease_shuttle))]

use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use pagelease::software::{DevicePage, Item, SoftwareConfig, SoftwareDevice};
use pagelease::{
    Access, BackendKind, ByteLen, Device, DeviceHandle, Faults, Grant, Invalidation, NotDrained, Region, RestorePolicy,
    Space,
};

use support::{MODES, PLAIN, Rng, a_while, at, one, open, page, pages, watchdog};

mod support;

/// The handler is the process's: one test at a time.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the handler touches: the CPU view's start, how many pages, and how often it has added 1.
static START: AtomicUsize = AtomicUsize::new(0);
static PAGES: AtomicU32 = AtomicU32::new(0);
static ADDED: AtomicU64 = AtomicU64::new(0);
static RANDOM: AtomicU64 = AtomicU64::new(1);

/// Adds 1 to word 0 of a page of `PAGES`, at random.
extern "C" fn touch_a_page(_: libc::c_int) {
    // SAFETY: libc's errno is this thread's.
    let errno = unsafe { *libc::__errno_location() };
    let random = RANDOM.fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed);
    let pages = PAGES.load(Relaxed) as usize;
    if pages > 0 {
        let index = (random >> 33) as usize % pages;
        let word = std::ptr::with_exposed_provenance::<AtomicU64>(START.load(Relaxed) + index * 4096);
        // SAFETY: a word of the region's CPU view, which outlives the signals.
        unsafe { &*word }.fetch_add(1, SeqCst);
        ADDED.fetch_add(1, SeqCst);
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

fn install(region: &Region, pages: u32) {
    START.store(region.as_ptr().cast::<u8>().as_ptr().expose_provenance(), SeqCst);
    ADDED.store(0, SeqCst);
    PAGES.store(pages, SeqCst);
    // SAFETY: a sigaction of zeroes is valid; the handler is signal-safe.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = touch_a_page as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()), 0);
    }
}

/// Sends SIGUSR1 to the thread `target` until told to stop.
fn bombard(target: libc::pthread_t, stop: &AtomicBool) {
    let mut rng = Rng::new(7);
    while !stop.load(SeqCst) {
        // SAFETY: the thread outlives the bombardment.
        unsafe { libc::pthread_kill(target, libc::SIGUSR1) };
        // Now and then a pause, for the claims to get somewhere.
        if rng.one_in(4) {
            thread::sleep(Duration::from_micros(u64::from(rng.below(300))));
        } else {
            thread::yield_now();
        }
    }
}

/// A thread claims and claims, for two devices, while its own signal handler touches the pages of the claims; one of the
/// devices counts on them too.
#[test]
fn a_handler_touches_the_pages_that_its_thread_is_claiming() {
    const PAGES: u32 = 24;
    const CLAIMS: u32 = 3000;
    const HANDLED: u64 = 600;
    let _one = one_at_a_time();
    let _watchdog = watchdog();
    for faults in MODES {
        for (policy, access) in
            [(RestorePolicy::Lazy, Access::Exclusive), (RestorePolicy::Eager, Access::ExclusiveWrite)]
        {
            // A handler that waits for a page while its thread holds others is what the hold limit is there for.
            let builder = Space::builder().faults(faults).restore(policy).hold_limit(Duration::from_millis(2));
            let Some(space) = open(builder) else { return };
            let region = space.allocate(ByteLen(PAGES as usize * 4096)).unwrap();
            let config = SoftwareConfig { workers: 2, pause: 200, exclusive: true };
            let device = SoftwareDevice::start(&space, config).unwrap();
            let (view, plain) = (device.attach(&region).unwrap(), space.register(PLAIN).unwrap());
            let plain = region.attach(&plain).unwrap();
            install(&region, PAGES);
            let stop = AtomicBool::new(false);
            // SAFETY: always succeeds.
            let me = unsafe { libc::pthread_self() };
            let mut submitted = 0;
            thread::scope(|scope| {
                scope.spawn(|| bombard(me, &stop));
                let mut rng = Rng::new(42);
                let mut jobs = Vec::new();
                for claim in 0.. {
                    if claim > CLAIMS && ADDED.load(SeqCst) > HANDLED {
                        break;
                    }
                    if claim % 10 == 0 {
                        let items: Vec<_> = (0..30).map(|_| Item::new(rng.below(PAGES), 1)).collect();
                        submitted += 30;
                        jobs.push(device.submit(
                            &view,
                            |page: &DevicePage<'_>, n| page.update(0, |value| value + n),
                            &items,
                        ));
                    }
                    let claimer = if rng.one_in(2) { &view } else { &plain };
                    let access = if rng.one_in(3) { access } else { Access::Exclusive };
                    let range = rng.range(PAGES, 12);
                    // Broken or not: the handler may have touched what it holds.
                    let _ = claimer.claim(range, access).unwrap().end();
                }
                jobs.into_iter().for_each(|job| job.wait().unwrap());
                stop.store(true, SeqCst);
            });
            self::PAGES.store(0, SeqCst);
            let total: u64 = (0..PAGES).map(|index| at(&region, index, 0).load(SeqCst)).sum();
            assert_eq!(total, ADDED.load(SeqCst) + submitted, "{faults:?} {policy:?}: {:?}", space.stats());
            let stats = space.stats();
            assert_eq!((stats.invalidations_spurious, stats.devices_lost), (0, 0), "{stats:?}");
        }
    }
}

/// A driver with a page table of its own, whose claims are interrupted where it hurts.
struct Driver {
    table: [AtomicBool; 8],
    /// Guards the table, unless the driver is signal-safe.
    lock: Mutex<()>,
    signal_safe: bool,
    /// Interrupt the next `map` before it asks whether the grant stands, or the next `invalidate`.
    in_map: AtomicBool,
    in_invalidate: AtomicBool,
    refused: AtomicU32,
}

impl Driver {
    fn new(signal_safe: bool) -> Self {
        Self {
            table: Default::default(),
            lock: Mutex::new(()),
            signal_safe,
            in_map: AtomicBool::new(false),
            in_invalidate: AtomicBool::new(false),
            refused: AtomicU32::new(0),
        }
    }

    fn guard(&self) -> Option<MutexGuard<'_, ()>> {
        (!self.signal_safe).then(|| self.lock.lock().unwrap())
    }

    fn maps(&self, index: usize) -> bool {
        self.table[index].load(SeqCst)
    }
}

/// A signal to the calling thread, whose handler touches page 0.
fn interrupt() {
    // SAFETY: the handler is installed.
    unsafe { libc::raise(libc::SIGUSR1) };
}

impl Device for Driver {
    fn name(&self) -> &'static str {
        "driver"
    }

    fn signal_safe(&self) -> bool {
        self.signal_safe
    }

    fn map(&self, grant: &Grant<'_>) -> bool {
        let _guard = self.guard();
        if self.in_map.swap(false, SeqCst) {
            interrupt();
        }
        if !grant.stands() {
            self.refused.fetch_add(1, SeqCst);
            return false;
        }
        grant.pages().for_each(|page| self.table[page.as_usize()].store(true, SeqCst));
        true
    }

    fn invalidate(&self, invalidation: &Invalidation) -> Result<(), NotDrained> {
        let _guard = self.guard();
        if self.in_invalidate.swap(false, SeqCst) {
            interrupt();
        }
        invalidation.pages().iter().for_each(|page| self.table[page.as_usize()].store(false, SeqCst));
        Ok(())
    }
}

fn driver(faults: Faults, signal_safe: bool) -> Option<(Space, Region, DeviceHandle<Driver>)> {
    let space = open(Space::builder().faults(faults))?;
    let region = space.allocate(ByteLen(8 * 4096)).unwrap();
    let driver = space.register(Driver::new(signal_safe)).unwrap();
    install(&region, 1);
    Some((space, region, driver))
}

/// The touch comes between the claim's work and the driver's last look: the grant does not stand any more, the driver says
/// so, and the claim starts again.
#[test]
fn a_touch_before_the_driver_maps_makes_the_claim_start_again() {
    let _one = one_at_a_time();
    let _watchdog = watchdog();
    for faults in MODES {
        let Some((space, region, driver)) = driver(faults, true) else { return };
        let view = region.attach(&driver).unwrap();
        driver.in_map.store(true, SeqCst);
        let lease = view.claim(pages(0, 4), Access::Exclusive).unwrap();
        assert_eq!((driver.refused.load(SeqCst), ADDED.load(SeqCst)), (1, 1), "{faults:?}");
        assert!(view.has(page(0)) && driver.maps(0) && driver.maps(3));
        assert_eq!(view.words(page(0))[0].load(SeqCst), 1);
        lease.end().unwrap();
        assert_eq!(space.stats().claim_retries, 1, "{faults:?}");
        assert_eq!(at(&region, 0, 0).load(SeqCst), 1);
        assert!(!driver.maps(0) && driver.maps(1), "the touch took it back, and the neighbours stay");
    }
}

/// The touch comes while the driver has its lock, which its `invalidate` takes.
#[test]
fn a_touch_while_the_driver_maps_does_not_deadlock() {
    let _one = one_at_a_time();
    let _watchdog = watchdog();
    for faults in MODES {
        let Some((_space, region, driver)) = driver(faults, false) else { return };
        let view = region.attach(&driver).unwrap();
        driver.in_map.store(true, SeqCst);
        // Whether the claim keeps the page depends on when exactly the handler got to run.
        let _ = view.claim(pages(0, 4), Access::Exclusive).unwrap().end();
        assert_eq!(ADDED.load(SeqCst), 1, "{faults:?}");
        assert_eq!(driver.maps(0), view.has(page(0)), "the driver maps what the device has, and nothing else");
        assert_eq!(at(&region, 0, 0).load(SeqCst), 1);
    }
}

/// As above, while the driver's pages are taken for another device, on the claiming thread; or brought back.
#[test]
fn a_touch_while_the_driver_unmaps_does_not_deadlock() {
    let _one = one_at_a_time();
    let _watchdog = watchdog();
    for faults in MODES {
        let Some((space, region, driver)) = driver(faults, false) else { return };
        let (view, other) = (region.attach(&driver).unwrap(), space.register(PLAIN).unwrap());
        let other = region.attach(&other).unwrap();
        for round in 1..=2 {
            view.claim(pages(0, 4), Access::Exclusive).unwrap().end().unwrap();
            driver.in_invalidate.store(true, SeqCst);
            if round == 1 {
                let _ = other.claim(pages(0, 2), Access::Exclusive).unwrap().end();
            } else {
                region.prefetch(pages(0, 2));
            }
            assert_eq!(ADDED.load(SeqCst), round, "{faults:?}");
            assert!(!driver.maps(0) && !driver.maps(1) && driver.maps(2));
            assert_eq!(at(&region, 0, 0).load(SeqCst), round);
        }
    }
}

/// A touch on one thread, a prefetch, a lease that hands a page over: none of them is undone by a handler on the thread
/// that serves it.
#[test]
fn a_handler_touches_pages_while_its_thread_brings_them_back() {
    const PAGES: u32 = 16;
    let _one = one_at_a_time();
    let _watchdog = watchdog();
    for faults in MODES {
        let builder = Space::builder().faults(faults).restore(RestorePolicy::Eager).hold_limit(Duration::MAX);
        let Some(space) = open(builder) else { return };
        let region = space.allocate(ByteLen(PAGES as usize * 4096)).unwrap();
        let device = space.register(PLAIN).unwrap();
        install(&region, PAGES);
        let stop = AtomicBool::new(false);
        // SAFETY: always succeeds.
        let me = unsafe { libc::pthread_self() };
        let added = thread::scope(|scope| {
            scope.spawn(|| bombard(me, &stop));
            // Claims on another thread, so that nothing is its own hold.
            let claims = scope.spawn(|| {
                while !stop.load(SeqCst) {
                    let view = region.attach(&device).unwrap();
                    for start in 0..8 {
                        let lease = view.claim(pages(start, start + 8), Access::Exclusive).unwrap();
                        thread::yield_now();
                        lease.end().unwrap();
                    }
                }
            });
            let mut rng = Rng::new(3);
            let mut added = 0;
            for _ in 0..1500 {
                if rng.one_in(2) {
                    region.prefetch(rng.range(PAGES, 8));
                } else {
                    at(&region, rng.below(PAGES), 0).fetch_add(1, SeqCst);
                    added += 1;
                }
            }
            stop.store(true, SeqCst);
            claims.join().unwrap();
            added
        });
        self::PAGES.store(0, SeqCst);
        let total: u64 = (0..PAGES).map(|index| at(&region, index, 0).load(SeqCst)).sum();
        assert_eq!(total, ADDED.load(SeqCst) + added, "{faults:?}");
    }
}

/// A handler on a thread that waits in a touch, for a lease, is not a way around the wait.
#[test]
fn a_handler_touches_a_page_that_its_thread_waits_for() {
    let _one = one_at_a_time();
    let _watchdog = watchdog();
    for faults in MODES {
        let Some(space) = open(Space::builder().faults(faults).hold_limit(Duration::MAX)) else { return };
        let region = space.allocate(ByteLen(4096)).unwrap();
        let device = space.register(PLAIN).unwrap();
        let view = region.attach(&device).unwrap();
        install(&region, 1);
        let lease = view.claim(one(0), Access::Exclusive).unwrap();
        let thread = AtomicU64::new(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                // SAFETY: always succeeds.
                thread.store(unsafe { libc::pthread_self() }, SeqCst);
                at(&region, 0, 0).fetch_add(1, SeqCst);
            });
            support::wait_until(|| space.stats().touches > 0);
            // SAFETY: the thread waits for the page.
            unsafe { libc::pthread_kill(thread.load(SeqCst), libc::SIGUSR1) };
            a_while();
            assert_eq!((ADDED.load(SeqCst), view.has(page(0))), (0, true), "{faults:?}");
            lease.end().unwrap();
        });
        assert_eq!((at(&region, 0, 0).load(SeqCst), ADDED.load(SeqCst)), (2, 1), "{faults:?}");
    }
}

/// Has the calling thread handle signals on a painted stack from now on; returns it.
fn painted_stack() -> &'static [u8] {
    let stack = vec![PAINT; 64 << 10].leak();
    let new = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
    // SAFETY: the stack is never freed; the thread is not on one now.
    assert_eq!(unsafe { libc::sigaltstack(&raw const new, std::ptr::null_mut()) }, 0);
    stack
}

const PAINT: u8 = 0x5a;

/// A touch is served on the alternate stack of its thread, where it has one. The standard library gives its threads 8 KiB,
/// or what the kernel needs; up to 3.6 KiB of that are the kernel's, on machines with AVX-512.
#[test]
fn serving_a_touch_fits_on_a_small_signal_stack() {
    const OURS_MAX: usize = 8192 - 3632;
    let _one = one_at_a_time();
    let _watchdog = watchdog();
    for backend in [BackendKind::Minor, BackendKind::Mprotect] {
        let Some(space) = open(Space::builder().faults(Faults::InThread).backend(backend)) else { return };
        let region = space.allocate(ByteLen(64 * 4096)).unwrap();
        let device = space.register(PLAIN).unwrap();
        let view = region.attach(&device).unwrap();
        // Of another region, so that each touch has somebody to tell.
        let elsewhere = space.allocate(ByteLen(4096)).unwrap();
        let other = elsewhere.attach(&device).unwrap();
        let _lease = other.claim(one(0), Access::Exclusive).unwrap();
        view.claim(region.pages(), Access::Exclusive).unwrap().end().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                let stack = painted_stack();
                // In sequence, so that neighbours come along.
                (0..64).for_each(|index| assert_eq!(at(&region, index, 0).fetch_add(1, SeqCst), 0));
                let used = stack.iter().rev().rposition(|&byte| byte != PAINT).map_or(0, |at| at + 1);
                // SAFETY: no precondition.
                let kernel = usize::try_from(unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) }).unwrap();
                assert!(used > kernel, "it was served there");
                assert!(used - kernel < OURS_MAX, "{backend:?}: {used} bytes, of which {kernel} the kernel's");
                eprintln!("{backend:?}: {} bytes", used - kernel);
            });
        });
    }
}
