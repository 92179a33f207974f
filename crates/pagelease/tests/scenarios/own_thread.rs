//! A thread that touches what it holds or is about to claim: itself, or in a signal handler.

use std::sync::Arc;

use pagelease::sim::interrupt;
use shuttle::sync::atomic::{AtomicBool, Ordering};
use shuttle::thread;

use super::touches::wait_until;
use super::world::{Setting, World, page, pages};

/// A thread touches a page by a lease of its own. Reveals one that waits for itself, and a lease that does not say so.
pub(crate) fn touch_of_a_page_it_holds(setting: Setting) {
    let world = World::new(setting, 2);
    let gadget = world.device();
    thread::scope(|scope| {
        scope.spawn(|| {
            let lease = gadget.claim(pages(0, 2));
            assert!(gadget.try_update(0) && gadget.try_update(1), "it holds the pages");
            world.touch(1);
            let broken = lease.check().expect_err("the holder touched a page");
            assert_eq!((broken.first.0, broken.lost), (1, 1), "the other page is still held");
            assert!(gadget.try_update(0), "the other page is still held");
            assert_eq!(lease.end(), Err(broken));
        });
        scope.spawn(|| world.touch(1));
    });
    world.finish();
}

/// A thread prefetches a page that it holds. Reveals one that waits for itself.
pub(crate) fn prefetch_of_a_page_it_holds(setting: Setting) {
    let world = World::new(setting, 2);
    let gadget = world.device();
    thread::scope(|scope| {
        scope.spawn(|| {
            let lease = gadget.claim(pages(0, 2));
            world.region.prefetch(page(0));
            assert_eq!(lease.end().map_err(|broken| broken.lost), Err(1), "the holder wanted one of its pages back");
        });
        scope.spawn(|| world.touch(0));
    });
    world.finish();
}

/// Two threads touch a page, and then claim it. Reveals a touch of one that is served twice, the second time when it has
/// long gone on: what is then done in its name is done behind the back of its claim.
pub(crate) fn threads_touch_and_claim(setting: Setting) {
    let world = World::new(setting, 1);
    let (one, other) = (world.device(), world.device());
    one.claim_and_update(page(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            world.touch(0);
            one.claim_and_update(page(0));
        });
        scope.spawn(|| {
            world.touch(0);
            other.claim_and_update(page(0));
        });
        scope.spawn(|| world.touch(0));
    });
    world.finish();
}

/// A thread still has a lease that it lost, and touches the page while another device holds it. Reveals a thread that
/// takes that hold for its own, and breaks it.
pub(crate) fn lost_lease_breaks_no_later_hold(setting: Setting) {
    let world = World::new(setting, 1);
    let (one, other) = (world.device(), world.device());
    let held = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let lost = one.claim(page(0));
            world.touch(0);
            assert!(lost.check().is_err(), "the holder touched the page");
            held.store(true, Ordering::SeqCst);
            world.touch(0);
            assert!(lost.end().is_err(), "the holder touched the page");
        });
        scope.spawn(|| {
            wait_until(|| held.load(Ordering::SeqCst));
            other.claim_and_update(page(0));
        });
    });
    world.finish();
}

/// A thread that holds one page touches another, while somebody waits for the one it holds. Reveals a service that waits
/// for the hold and serves nobody meanwhile.
pub(crate) fn touch_while_it_holds_another_page(setting: Setting) {
    let world = World::new(setting, 2);
    let gadget = world.device();
    gadget.claim_and_update(pages(0, 2));
    thread::scope(|scope| {
        scope.spawn(|| {
            let lease = gadget.claim(page(0));
            world.touch(1);
            lease.end().expect("nobody breaks a hold without a limit");
        });
        scope.spawn(|| world.touch(0));
    });
    world.finish();
}

/// A signal handler touches a page that its own thread is just claiming. Reveals a claim that does not start again.
pub(crate) fn handler_touch_restarts_its_claim(setting: Setting) {
    let world = World::new(setting, 1);
    let gadget = world.device();
    let cpu = world.cpu.clone();
    world.cpu.interrupt_next_claim(move || _ = cpu.touch(0));
    thread::scope(|scope| {
        scope.spawn(|| gadget.claim_and_update(page(0)));
        scope.spawn(|| world.read(0));
    });
    assert_eq!(world.stats().claim_retries, 1, "a claim whose page was touched starts again, once");
    world.finish();
}

/// A signal handler touches pages that its own thread is just claiming, one from the CPU and one from another device, and
/// other threads touch them when the claim goes on. Reveals a claim that keeps a page which the CPU has mapped.
pub(crate) fn handler_touches_in_its_claim(setting: Setting) {
    let world = World::new(setting, 2);
    let (gadget, other) = (world.device(), world.device());
    other.claim_and_update(page(1));
    let cpu = world.cpu.clone();
    world.cpu.interrupt_next_claim(move || {
        cpu.touch(0);
        cpu.touch(1);
    });
    thread::scope(|scope| {
        scope.spawn(|| gadget.claim_and_update(pages(0, 2)));
        scope.spawn(|| {
            wait_until(|| world.cpu.was_interrupted());
            world.touch(0);
            world.touch(1);
        });
    });
    world.finish();
}

/// A signal handler touches a page when its thread's claim has just passed its commit point. Reveals a claim that commits a
/// page which it has lost by then.
pub(crate) fn handler_touches_behind_the_commit_point(setting: Setting) {
    let world = World::new(setting, 2);
    let gadget = world.device();
    let mapped = Arc::new(AtomicBool::new(false));
    let (cpu, once) = (world.cpu.clone(), mapped.clone());
    gadget.on_mapped(move || {
        cpu.touch(1);
        once.store(true, Ordering::SeqCst);
    });
    thread::scope(|scope| {
        scope.spawn(|| {
            let lease = gadget.claim(pages(0, 2));
            let broken = lease.check().expect_err("the handler touched a page");
            assert_eq!((broken.first.0, broken.lost), (1, 1), "the other page is held");
            assert!(gadget.try_update(0), "the other page is held");
            assert!(!gadget.has(1), "the device has let go of the page");
            assert_eq!(lease.end(), Err(broken));
        });
        scope.spawn(|| {
            wait_until(|| mapped.load(Ordering::SeqCst));
            world.touch(1);
        });
    });
    world.finish();
}

/// A signal handler touches pages at any moment of its thread's claims, holds and releases, while others want them too.
/// Reveals a moment that the cases above have forgotten.
pub(crate) fn handler_touches_at_any_moment(setting: Setting) {
    let world = World::new(setting, 2);
    let (gadget, other) = (world.device(), world.device());
    other.claim_and_update(page(1));
    thread::scope(|scope| {
        scope.spawn(|| {
            let cpu = world.cpu.clone();
            interrupt(move || {
                cpu.touch(1);
                cpu.touch(0);
            });
            for _ in 0..2 {
                let lease = gadget.claim(pages(0, 2));
                gadget.try_update(0);
                gadget.try_update(1);
                drop(lease);
            }
        });
        scope.spawn(|| {
            world.touch(1);
            world.touch(1);
        });
        scope.spawn(|| {
            // Its hold may be taken for one of the thread's own that is just ending.
            let lease = other.claim(page(1));
            other.try_update(1);
            drop(lease);
        });
    });
    world.finish();
}
