//! Touches that never cease, and what they must not put off. Alone in its file: other tests would give the monitors pause.
#![cfg(not(pagelease_shuttle))]

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};

use pagelease::{Access, ByteLen, Faults, Space};

use support::{MODES, PLAIN, at, one, open, pages, watchdog};

mod support;

/// Whether a touch that waits for a lease goes on at the hold limit while touches of other pages never cease.
fn goes_on_in_a_storm(faults: Faults) -> Option<bool> {
    /// A hundred times the hold limit.
    const STORM: Duration = Duration::from_secs(1);
    let space = open(Space::builder().faults(faults).hold_limit(STORM / 100))?;
    let (region, device) = (space.allocate(ByteLen(4 * 512 * 4096)).unwrap(), space.register(PLAIN).unwrap());
    let view = region.attach(&device).unwrap();
    let held = view.claim(one(0), Access::Exclusive).unwrap();
    let (went_on, storm_passed) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            at(&region, 0, 0).store(1, SeqCst);
            went_on.store(true, SeqCst);
        });
        // Several, so that some of them touch at any time, whatever the others are at.
        for own in [512, 1024, 1536].map(|start| pages(start, start + 512)) {
            let (region, view, went_on, storm_passed) = (&region, &view, &went_on, &storm_passed);
            scope.spawn(move || {
                let begin = Instant::now();
                while !went_on.load(SeqCst) && begin.elapsed() < STORM {
                    view.claim(own, Access::Exclusive).unwrap().end().unwrap();
                    own.iter().rev().for_each(|page| _ = at(region, page.0, 0).fetch_add(1, SeqCst));
                }
                storm_passed.fetch_or(!went_on.load(SeqCst), SeqCst);
            });
        }
    });
    assert!(held.end().is_err());
    Some(!storm_passed.into_inner())
}

/// Touches that keep the monitors busy do not put off the moment when a hold is broken for another.
#[test]
fn a_storm_of_touches_does_not_put_off_the_hold_limit() {
    const ROUNDS: usize = 8;
    let _watchdog = watchdog();
    for faults in MODES {
        let in_time = (0..ROUNDS).map_while(|_| goes_on_in_a_storm(faults)).filter(|&in_time| in_time).count();
        // One may be bad luck on a busy machine.
        assert!(in_time == 0 && open(Space::builder()).is_none() || in_time >= ROUNDS - 1, "{faults:?}: {in_time}");
    }
}
