//! Drivers: devices with a page table of their own, and what they are told.
#![cfg(not(pagelease_shuttle))]

use std::sync::Mutex;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::thread;
use std::time::{Duration, Instant};

use pagelease::{
    Access, ByteLen, Cause, Device, Faults, Grant, Invalidation, LossReason, NotDrained, OwnerId, PageIndex, PageRange,
    Region, RestorePolicy, Space,
};

use support::{MODES, PLAIN, Rng, a_while, at, one, open, page, pages, wait_until, watchdog};

mod support;

/// What an invalidation said.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
struct Told {
    region: u32,
    pages: PageRange,
    cause: Cause,
    owner: Option<OwnerId>,
}

/// Its table says which pages it maps; both functions take the table's lock.
struct Driver {
    table: Mutex<Vec<bool>>,
    told: Mutex<Vec<Told>>,
    /// How many grants it turns down, for reasons of its own.
    turns_down: AtomicU32,
    /// `invalidate` waits while this is set; and gives up when the drain limit passes.
    hangs: AtomicBool,
    gave_up: AtomicBool,
}

impl Driver {
    fn new(pages: usize) -> Self {
        Self {
            table: Mutex::new(vec![false; pages]),
            told: Mutex::default(),
            turns_down: AtomicU32::new(0),
            hangs: AtomicBool::new(false),
            gave_up: AtomicBool::new(false),
        }
    }

    fn maps(&self, page: PageIndex) -> bool {
        self.table.lock().unwrap()[page.as_usize()]
    }
}

impl Device for Driver {
    fn name(&self) -> &'static str {
        "driver"
    }

    fn map(&self, grant: &Grant<'_>) -> bool {
        let mut table = self.table.lock().unwrap();
        let turned_down = self.turns_down.load(SeqCst) > 0 && self.turns_down.fetch_sub(1, SeqCst) > 0;
        if turned_down || !grant.stands() {
            return false;
        }
        grant.pages().for_each(|page| table[page.as_usize()] = true);
        true
    }

    fn invalidate(&self, invalidation: &Invalidation) -> Result<(), NotDrained> {
        while self.hangs.load(SeqCst) && !self.gave_up.load(SeqCst) {
            if invalidation.overdue() {
                self.gave_up.store(true, SeqCst);
                return Err(NotDrained { page: PageIndex(invalidation.pages().start()) });
            }
            thread::sleep(Duration::from_millis(1));
        }
        let mut table = self.table.lock().unwrap();
        invalidation.pages().iter().for_each(|page| table[page.as_usize()] = false);
        self.told.lock().unwrap().push(Told {
            region: invalidation.region().get(),
            pages: invalidation.pages(),
            cause: invalidation.cause(),
            owner: invalidation.owner(),
        });
        Ok(())
    }
}

fn space(faults: Faults) -> Option<(Space, Region)> {
    let space = open(Space::builder().faults(faults).drain_limit(Duration::from_millis(200)))?;
    let region = space.allocate(ByteLen(16 * 4096)).unwrap();
    Some((space, region))
}

#[test]
fn a_driver_is_told_which_pages_and_why() {
    let _watchdog = watchdog();
    for faults in MODES {
        let Some((space, region)) = space(faults) else { return };
        let (driver, other) = (space.register(Driver::new(16)).unwrap(), space.register(PLAIN).unwrap());
        let (view, other_view) = (region.attach(&driver).unwrap(), region.attach(&other).unwrap());
        let told = |pages, cause, owner| {
            let told = std::mem::take(&mut *driver.told.lock().unwrap());
            assert_eq!(told, [Told { region: region.id().get(), pages, cause, owner }], "{faults:?}");
            assert!(pages.iter().all(|page| !driver.maps(page)));
        };
        view.claim(pages(0, 10), Access::Exclusive).unwrap().end().unwrap();
        assert!((0..16).all(|index| driver.maps(page(index)) == (index < 10)));
        at(&region, 7, 0).store(1, SeqCst);
        told(one(7), Cause::Clear, None);
        other_view.claim(pages(4, 6), Access::Exclusive).unwrap().end().unwrap();
        told(pages(4, 6), Cause::Exclusive, Some(other.id()));
        region.prefetch(pages(2, 6));
        told(pages(2, 4), Cause::Clear, None);
        view.claim(pages(0, 1), Access::Exclusive).unwrap().end().unwrap();
        assert!(driver.told.lock().unwrap().is_empty(), "what it has already is no news");
        drop(view);
        let told: Vec<_> = driver.told.lock().unwrap().drain(..).collect();
        assert!(told.iter().all(|told| told.cause == Cause::Release && told.owner.is_none()), "{told:?}");
        assert!((0..16).all(|index| !driver.maps(page(index))));
        assert!(driver.told.lock().unwrap().is_empty());

        let view = region.attach(&driver).unwrap();
        let lease = view.claim(pages(3, 5), Access::Exclusive).unwrap();
        let id = region.id().get();
        drop(region);
        let told = driver.told.lock().unwrap()[0];
        assert_eq!((told.region, told.cause), (id, Cause::Release));
        assert!(!driver.maps(page(3)) && !driver.maps(page(4)));
        drop(lease);
    }
}

#[test]
fn a_grant_turned_down_starts_the_claim_again() {
    let _watchdog = watchdog();
    for faults in MODES {
        let Some((space, region)) = space(faults) else { return };
        let driver = space.register(Driver::new(16)).unwrap();
        let view = region.attach(&driver).unwrap();
        at(&region, 3, 0).store(7, SeqCst);
        driver.turns_down.store(3, SeqCst);
        let lease = view.claim(pages(2, 6), Access::Exclusive).unwrap();
        assert!((2..6).all(|index| driver.maps(page(index)) && view.has(page(index))));
        assert_eq!(view.words(page(3))[0].load(SeqCst), 7);
        lease.end().unwrap();
        assert_eq!(space.stats().claim_retries, 3, "{faults:?}");
    }
}

/// The pattern of the notifier's documentation: a reader that began before an invalidation retries; one that begins
/// meanwhile waits for its end.
#[test]
fn a_notifier_s_reader_waits_for_an_invalidation_that_runs() {
    let _watchdog = watchdog();
    for faults in MODES {
        let Some(space) = open(Space::builder().faults(faults).drain_limit(Duration::MAX)) else { return };
        let region = space.allocate(ByteLen(16 * 4096)).unwrap();
        let driver = space.register(Driver::new(16)).unwrap();
        let view = region.attach(&driver).unwrap();
        view.claim(pages(0, 4), Access::Exclusive).unwrap().end().unwrap();
        let notifier = view.subscribe(pages(2, 8)).unwrap();
        let elsewhere = view.subscribe(pages(4, 8)).unwrap();
        let (before, unconcerned) = (notifier.read_begin(), elsewhere.read_begin());
        driver.hangs.store(true, SeqCst);
        let began = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| at(&region, 3, 0).store(1, SeqCst));
            wait_until(|| notifier.read_retry(before));
            scope.spawn(|| {
                let seq = notifier.read_begin();
                began.store(true, SeqCst);
                assert!(!notifier.read_retry(seq), "nothing has begun since");
            });
            assert!(!elsewhere.read_retry(unconcerned) && !elsewhere.read_retry(elsewhere.read_begin()));
            a_while();
            assert!(!began.load(SeqCst), "{faults:?}: it did not wait");
            driver.hangs.store(false, SeqCst);
        });
        assert!(began.into_inner() && notifier.read_retry(before));
    }
}

#[test]
fn a_driver_that_does_not_drain_is_lost() {
    let _watchdog = watchdog();
    for faults in MODES {
        let Some((space, region)) = space(faults) else { return };
        let driver = space.register(Driver::new(16)).unwrap();
        let view = region.attach(&driver).unwrap();
        view.claim(pages(0, 4), Access::Exclusive).unwrap().end().unwrap();
        view.words(page(1))[0].store(4, SeqCst);
        driver.hangs.store(true, SeqCst);
        assert_eq!(at(&region, 1, 0).load(SeqCst), 4, "the CPU goes on");
        let lost = driver.lost().expect("it gave up");
        assert!(matches!(lost.why, LossReason::Stuck { page: PageIndex(1), .. }), "{lost}");
        // What it does there now is nobody's.
        view.words(page(1))[0].store(5, SeqCst);
        assert_eq!(at(&region, 1, 0).load(SeqCst), 4);
        // It is asked for the others, too, and not given any.
        assert_eq!(at(&region, 3, 0).fetch_add(1, SeqCst), 0);
        assert!(view.claim(one(9), Access::Exclusive).is_err());
        assert_eq!(space.stats().devices_lost, 1);
    }
}

/// Whatever happens, a driver maps a page exactly while the device may use it: claims of several threads, touches, other
/// devices, and leases that are broken.
#[test]
fn a_driver_can_declare_its_device_lost() {
    let _watchdog = watchdog();
    for faults in MODES {
        let Some((space, region)) = space(faults) else { return };
        let device = space.register(Driver::new(region.pages().len() as usize)).unwrap();
        let view = region.attach(&device).unwrap();
        assert_eq!(view.region(), region.id());
        let alias = view.as_ptr().unwrap();
        assert_eq!(alias.len(), region.as_ptr().len());
        assert_eq!(alias.cast(), view.page_ptr(PageIndex(0)).unwrap().cast::<u8>());
        let lease = view.claim(pages(0, 2), Access::Exclusive).unwrap();
        view.words(PageIndex(0))[0].store(7, SeqCst);
        device.declare_lost();
        device.declare_lost();
        assert_eq!(device.lost().map(|lost| lost.why), Some(LossReason::Driver));
        drop(lease);
        assert!(!view.has(PageIndex(0)) && view.claim(one(5), Access::Exclusive).is_err());
        assert_eq!(region.words()[0].load(SeqCst), 7, "the CPU has it back");
        assert!(!device.maps(PageIndex(0)), "by way of the driver");
        assert_eq!(space.stats().devices_lost, 1);
    }
}

#[test]
fn a_driver_s_table_agrees_with_the_page_words() {
    let _watchdog = watchdog();
    for faults in MODES {
        for policy in [RestorePolicy::Lazy, RestorePolicy::Eager, RestorePolicy::Adaptive] {
            let builder = Space::builder().faults(faults).restore(policy).hold_limit(Duration::from_millis(1));
            let Some(space) = open(builder) else { return };
            let region = space.allocate(ByteLen(16 * 4096)).unwrap();
            let drivers = [(); 2].map(|()| space.register(Driver::new(16)).unwrap());
            let views = drivers.each_ref().map(|driver| region.attach(driver).unwrap());
            let deadline = Instant::now() + Duration::from_millis(500);
            thread::scope(|scope| {
                for seed in 0..4 {
                    let (region, views, drivers) = (&region, &views, &drivers);
                    scope.spawn(move || {
                        let mut rng = Rng::new(seed);
                        while Instant::now() < deadline {
                            let which = usize::from(rng.one_in(2));
                            if seed % 2 == 0 {
                                at(region, rng.below(16), 0).fetch_add(1, SeqCst);
                            } else {
                                let range = rng.range(16, 6);
                                let lease = views[which].claim(range, Access::Exclusive).unwrap();
                                // Two tables never map one page.
                                for page in range.iter() {
                                    let [one, two] = drivers.each_ref().map(|driver| driver.table.lock().unwrap());
                                    assert!(!(one[page.as_usize()] && two[page.as_usize()]), "{page}");
                                }
                                let _ = lease.end();
                            }
                        }
                    });
                }
            });
            for (driver, view) in drivers.iter().zip(&views) {
                assert!(
                    (0..16).all(|index| driver.maps(page(index)) == view.has(page(index))),
                    "{faults:?} {policy:?}"
                );
            }
            assert_eq!(space.stats().invalidations_spurious, 0);
        }
    }
}
