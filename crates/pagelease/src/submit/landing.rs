//! Landing: how a submission ends.
//!
//! Whoever sees the driver's fence first lands the flight, once: the reaper, a thread that waits for each in turn, so that pages
//! are let go of though nobody waits for the submission; or the thread that does wait, which saves it the way over the reaper.
//!
//! Invariant: `leases` and `flying` of a flight are there until it has landed. A flight that is never seen to end (its device is
//! lost) is leaked, with all that the driver may still use.

use core::time::Duration;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use pagelease_sys::fork;

use super::flights::{Flights, Flying};
use super::{Queue, SubmissionError};
use crate::device::DeviceHandle;
use crate::lease::Lease;
use crate::mutant::{self, Mutant};
use crate::sync::{Condvar, Deadline, Mutex, MutexGuard, block_signals, thread};

/// How long a wait for a fence lasts before it is looked whether the device has been lost.
const LOOK: Duration = Duration::from_millis(20);

/// A submission that the driver has.
struct Flight<Q: Queue> {
    fence: Q::Fence,
    state: Mutex<State<Q::Error>>,
}

enum State<E> {
    Flying(Vec<Lease>, Flying),
    /// Until somebody has asked, what became of it.
    Landed(Result<(), Option<E>>),
}

/// What the reaper and the handles of submissions share.
struct Tower<Q: Queue> {
    queue: Q,
    device: DeviceHandle<Flights>,
    waiting: Mutex<Waiting<Q>>,
    changed: Condvar,
}

struct Waiting<Q: Queue> {
    flights: VecDeque<Arc<Flight<Q>>>,
    closed: bool,
}

impl<Q: Queue> Tower<Q> {
    /// Waits for the flight, at most `limit`, and lands it if it has ended. Whether it has.
    fn settle(&self, flight: &Flight<Q>, limit: Duration) -> bool {
        // A handler that touched a page in use would wait for what this thread has: a lock of the driver's, or of the flight.
        let _blocked = block_signals();
        let ended = if mutant::active(Mutant::LandEarly) { Ok(true) } else { self.queue.wait(&flight.fence, limit) };
        let outcome = match ended {
            Ok(false) => return false,
            // What it did to pages that were given up is lost.
            Ok(true) => self.device.lost().map_or(Ok(()), |_| Err(None)),
            Err(error) => {
                self.device.declare_lost();
                Err(Some(error))
            }
        };
        let mut state = flight.state.lock().expect("not poisoned");
        if let State::Flying(..) = *state
            && let State::Flying(leases, flying) = core::mem::replace(&mut *state, State::Landed(outcome))
        {
            flying.land();
            // Nobody has broken them but who may: what was done was done before.
            drop(leases);
        }
        true
    }

    fn run(&self) {
        // A handler that touched a page in use would wait for this very thread.
        let _blocked = block_signals();
        while let Some(first) = self.first() {
            if self.settle(&first, LOOK) {
                self.landed(&first);
                continue;
            }
            // A queue may end later ones first.
            let others: Vec<_> = self.waiting().flights.iter().skip(1).cloned().collect();
            others.iter().filter(|other| self.settle(other, Duration::ZERO)).for_each(|other| self.landed(other));
            if self.device.lost().is_some() && self.waiting().closed {
                // The driver may still use what each of them has, whenever it comes to it.
                core::mem::take(&mut self.waiting().flights).into_iter().for_each(core::mem::forget);
                return;
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting<Q>> {
        self.waiting.lock().expect("not poisoned")
    }

    /// The flight that has been there longest, once there is one; `None` at the end.
    fn first(&self) -> Option<Arc<Flight<Q>>> {
        let mut waiting = self.waiting();
        loop {
            if let Some(first) = waiting.flights.front() {
                return Some(first.clone());
            }
            if waiting.closed {
                return None;
            }
            waiting = self.changed.wait(waiting).expect("not poisoned");
        }
    }

    fn landed(&self, flight: &Arc<Flight<Q>>) {
        self.waiting().flights.retain(|other| !Arc::ptr_eq(other, flight));
    }
}

/// The thread that sees submissions end, and the door to it.
pub(super) struct Reaper<Q: Queue> {
    tower: Arc<Tower<Q>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl<Q: Queue> Reaper<Q> {
    pub(super) fn start(device: DeviceHandle<Flights>, queue: Q) -> io::Result<Self> {
        let waiting = Mutex::new(Waiting { flights: VecDeque::new(), closed: false });
        let tower = Arc::new(Tower { queue, device, waiting, changed: Condvar::new() });
        let thread = thread::Builder::new().name("pagelease-reaper".to_owned()).spawn({
            let tower = tower.clone();
            move || tower.run()
        })?;
        Ok(Self { tower, thread: Some(thread) })
    }

    pub(super) fn queue(&self) -> &Q {
        &self.tower.queue
    }

    /// The driver has the work. To be called with signals blocked.
    pub(super) fn fly(&self, fence: Q::Fence, leases: Vec<Lease>, flying: Flying) -> Submission<Q> {
        let flight = Arc::new(Flight { fence, state: Mutex::new(State::Flying(leases, flying)) });
        self.tower.waiting().flights.push_back(flight.clone());
        self.tower.changed.notify_one();
        Submission { tower: self.tower.clone(), flight }
    }
}

impl<Q: Queue> Drop for Reaper<Q> {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        if fork::in_child() {
            core::mem::forget(thread);
            return;
        }
        {
            let _blocked = block_signals();
            self.tower.waiting().closed = true;
        }
        self.tower.changed.notify_one();
        let _ = thread.join();
    }
}

/// Work that the driver has. Dropping it does not cancel the work, and its pages are let go of when it has ended.
#[must_use = "a submission may fail: wait for it"]
pub struct Submission<Q: Queue> {
    tower: Arc<Tower<Q>>,
    flight: Arc<Flight<Q>>,
}

impl<Q: Queue> Submission<Q> {
    /// Waits until the work has ended and its pages are held no more. A device lost ends the wait, even while the work is stuck.
    /// Any thread; not a signal handler.
    ///
    /// # Errors
    /// [`SubmissionError`].
    pub fn wait(self) -> Result<(), SubmissionError<Q::Error>> {
        loop {
            if fork::in_child() {
                return Err(SubmissionError::Forked);
            }
            if self.wait_for(LOOK) {
                return self.outcome();
            }
            if let Some(lost) = self.tower.device.lost() {
                return Err(lost.into());
            }
        }
    }

    /// Waits until the work has ended, at most `limit`: whether it has, or failed. What cannot be waited for longer cannot be
    /// cancelled; a touch of its pages ends the wait after the drain limit, and costs the device.
    #[must_use]
    pub fn wait_for(&self, limit: Duration) -> bool {
        let deadline = Deadline::after(limit);
        while !fork::in_child() {
            if self.tower.settle(&self.flight, limit.min(LOOK)) {
                return true;
            }
            if deadline.passed() {
                return false;
            }
        }
        false
    }

    fn outcome(self) -> Result<(), SubmissionError<Q::Error>> {
        let _blocked = block_signals();
        let mut state = self.flight.state.lock().expect("not poisoned");
        match &mut *state {
            State::Landed(Ok(())) => Ok(()),
            State::Landed(Err(error)) => Err(match (error.take(), self.tower.device.lost()) {
                (Some(error), _) => SubmissionError::Queue(error),
                (None, Some(lost)) => lost.into(),
                (None, None) => unreachable!("without an error of the queue only a loss is one"),
            }),
            State::Flying(..) => unreachable!("it has landed"),
        }
    }
}
