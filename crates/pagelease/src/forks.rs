//! fork: adopted pages come home first, so that the child has a snapshot of all of them.
//!
//! ```text
//!   before   nobody takes pages from the CPU until the fork is over; what devices have is brought back: waits for a lease at
//!            most the hold limit, for an operation at most the drain limit. So a held page does not make fork fail.
//!   fork     the child's memory is a copy, unregistered; views are not inherited
//!   after    devices claim again; the first claim of a page undoes the sharing with the child
//! ```
//!
//! A fork in a signal handler that has interrupted a claim would wait for that claim; and a `pthread_atfork` handler that takes a
//! lock which is held around a claim, and was registered before the first memory was adopted, would too. Both are for the program
//! to avoid.
//!
//! libc's `fork` calls it. A raw `clone` does not: its child finds zeroes where a device had a page, and the parent is not
//! affected. Memory that the runtime made is not inherited at all.

use std::sync::Mutex;

use pagelease_protocol::{Cause, OwnerId};
use pagelease_sys::{Errno, fork};

use crate::gate;
use crate::region::RegionCore;
use crate::registry;
use crate::restore::{self, Of, Patience, bring_back};
use crate::sync::relax;

/// From now on, every fork of this process is seen. Once is enough.
pub(crate) fn watch() -> Result<(), Errno> {
    static WATCHED: Mutex<bool> = Mutex::new(false);
    let mut watched = WATCHED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !*watched {
        fork::at_fork(before, after_in_parent)?;
        *watched = true;
    }
    Ok(())
}

extern "C" fn before() {
    if fork::in_child() {
        return;
    }
    gate::begin_fork();
    registry::for_each(|region| {
        if let Some(moved) = region.moved() {
            moved.adopted().gate.wait_for_those_inside();
        }
    });
    registry::for_each(bring_home);
}

extern "C" fn after_in_parent() {
    if fork::in_child() {
        return;
    }
    gate::end_fork();
}

fn bring_home(region: &RegionCore) {
    if !region.backend.carries() {
        return;
    }
    let Some(_operation) = region.enter() else {
        // It is being dropped: what devices have comes home, which takes at most as long as they take to drain.
        let mut turn = 0;
        while !region.moved().expect("it carries").is_given_back() {
            turn += 1;
            relax(turn);
        }
        return;
    };
    for claimed in (1..=OwnerId::MAX).filter_map(OwnerId::new).filter_map(|device| region.slot(device).claimed()) {
        bring_back(region, claimed, Of::Any, Cause::ProtectionPage, Patience::HoldLimit);
        // What a claim gave up half way is the CPU's, but not yet there.
        restore::bring_home(region, claimed, None);
    }
}
