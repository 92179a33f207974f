//! [`Holds`]: the leases of pages that vCPUs have faulted on, until the guest has got something from them.
//!
//! A vCPU that faults sleeps in the kernel until its page is mapped, then has to be scheduled, enter the guest, and make its
//! access. Were the page not held meanwhile, a CPU thread that touches it all the time could take it back each time before
//! that. So the lease stays until the vCPU's thread **has run** for [`RUN`], by its own processor time: while it waits for a
//! CPU, or for another fault to be answered (an instruction may touch several pages), it gets nothing done, and the hold lasts.
//! At the latest it ends after [`LAST`], with the lane, and at the space's hold limit, which breaks it as any.
//!
//! The other side cannot starve either: a page that a touch brought back has a minimum residency with the CPU, and a claim never
//! goes before a touch that waits.
//!
//! Who answers a vCPU's next fault ends those of its holds that are due. For the last ones there is a thread, the keeper, which
//! sleeps while there are none. Nothing it does waits for a claim, so holds end also while all faults that are being answered
//! have to wait.
//!
//! Lock: a lease is dropped without the lock, since that may bring its pages back to touches that wait.

use core::time::Duration;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use pagelease::{Lease, PageIndex, RegionId};

use crate::block::Block;
use crate::kick::Kick;

/// The processor time of a vCPU's thread for which a hold lasts: some of it is the way back into the guest.
const RUN: Duration = Duration::from_micros(60);
/// The time after which a hold ends, whatever the thread got.
const LAST: Duration = Duration::from_millis(20);
/// How often the keeper looks.
const TICK: Duration = Duration::from_micros(200);
/// Holds of one vCPU: more pages than an instruction touches.
const MOST: usize = 8;

struct Hold {
    vcpu: usize,
    kick: Kick,
    region: RegionId,
    lease: Lease,
    since: Instant,
    ran_ns: u64,
}

impl Hold {
    /// Whether it ends, now that its thread has run for `ran_ns`.
    fn is_due(&self, ran_ns: u64) -> bool {
        Duration::from_nanos(ran_ns.saturating_sub(self.ran_ns)) >= RUN || self.since.elapsed() >= LAST
    }
}

/// A vCPU whose fault is to be answered.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Faulted {
    pub(crate) vcpu: usize,
    kick: Kick,
    lane: u64,
    ran_ns: u64,
}

#[derive(Default)]
struct State {
    holds: VecDeque<Hold>,
    /// How many lanes each vCPU has run. Mapping a page lets its vCPU go on, which may be done before its fault is.
    lanes: [u64; Block::VCPUS_MAX],
    /// The keeper sleeps until there is something.
    asleep: bool,
    closed: bool,
}

impl State {
    /// Takes out those that `which` says.
    fn take(&mut self, mut which: impl FnMut(&Hold) -> bool) -> Vec<Hold> {
        let mut taken = Vec::new();
        let mut at = 0;
        while at < self.holds.len() {
            if which(&self.holds[at]) {
                taken.extend(self.holds.remove(at));
            } else {
                at += 1;
            }
        }
        taken
    }
}

/// See the module.
#[derive(Default)]
pub(crate) struct Holds {
    state: Mutex<State>,
    changed: Condvar,
}

impl Holds {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be known of a vCPU before its fault is answered. It sleeps, so its clock stands still.
    pub(crate) fn faulted(&self, vcpu: usize, kick: Kick) -> Faulted {
        Faulted { vcpu, kick, lane: self.state().lanes[vcpu], ran_ns: kick.ran_ns() }
    }

    /// Keeps `lease` for a vCPU that faulted on a page of it, unless the lane in which it did is over.
    pub(crate) fn push(&self, faulted: Faulted, region: RegionId, lease: Lease) {
        let Faulted { vcpu, kick, lane, ran_ns } = faulted;
        let hold = Hold { vcpu, kick, region, lease, since: Instant::now(), ran_ns };
        let mut state = self.state();
        if state.lanes[vcpu] != lane {
            drop(state);
            drop(hold);
            return;
        }
        let mut ended = state.take(|hold| hold.vcpu == vcpu && hold.is_due(ran_ns));
        if state.holds.iter().filter(|hold| hold.vcpu == vcpu).count() >= MOST {
            let oldest = state.holds.iter().position(|hold| hold.vcpu == vcpu);
            ended.extend(oldest.and_then(|oldest| state.holds.remove(oldest)));
        }
        state.holds.push_back(hold);
        if state.asleep {
            self.changed.notify_one();
        }
        drop(state);
        drop(ended);
    }

    /// Ends those that `which` says.
    fn end(&self, which: impl FnMut(&Hold) -> bool) {
        let ended = self.state().take(which);
        // The lock has gone with the statement.
        drop(ended);
    }

    /// The vCPU's lane is over.
    pub(crate) fn end_of(&self, vcpu: usize) {
        self.state().lanes[vcpu] += 1;
        self.end(|hold| hold.vcpu == vcpu);
    }

    /// The vCPU faults on a page that it holds: it has lost it, and whoever took it waits for nothing.
    pub(crate) fn end_on(&self, vcpu: usize, region: RegionId, page: PageIndex) {
        self.end(|hold| hold.vcpu == vcpu && hold.region == region && hold.lease.pages().contains(page));
    }

    /// The region is being detached.
    pub(crate) fn end_in(&self, region: RegionId) {
        self.end(|hold| hold.region == region);
    }

    /// What the keeper does until [`Holds::close`].
    pub(crate) fn keep(&self) {
        loop {
            let mut state = self.state();
            while state.holds.is_empty() {
                if state.closed {
                    return;
                }
                state.asleep = true;
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.asleep = false;
            }
            drop(state);
            std::thread::sleep(TICK);
            // One look at each clock.
            let mut ran: Option<(usize, u64)> = None;
            self.end(|hold| {
                let ran_ns = match ran {
                    Some((vcpu, ran_ns)) if vcpu == hold.vcpu => ran_ns,
                    _ => hold.kick.ran_ns(),
                };
                ran = Some((hold.vcpu, ran_ns));
                hold.is_due(ran_ns)
            });
        }
    }

    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }
}
