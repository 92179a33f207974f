//! Monitors: threads that serve the touches which the userfaultfd reports.
//!
//! One of them is **on watch**: it alone reads the userfaultfd, so that a touch wakes one thread and not all. It serves what
//! it reads itself. Before it waits for a device to let go, it gives the watch to the next monitor ([`release_watch`]), so
//! that touches of free pages are served meanwhile. Nobody waits for a hold: such a touch is parked.
//!
//! After a touch the watch spins for [`SPIN_NS`] before it sleeps: waking an idle CPU costs ten times the fault. It gives
//! its CPU away at every turn, in case the touching thread wants it.

use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU32, Ordering};

use pagelease_protocol::PageIndex;
use pagelease_sys::Errno;
use pagelease_sys::event::{Doorbell, wait_readable};
use pagelease_sys::uffd::{Fault, FaultFlags, Message, Uffd};
use pagelease_sys::{futex, thread};

use crate::registry;
use crate::shared::Shared;
use crate::space::SpaceCore;
use crate::sync::now_ns;
use crate::touch::{self, Server, Toucher, Who};

/// How long the watch spins after a touch: longer than it takes to wake an idle CPU, so that touches that follow each other
/// as closely as they could be served anyway never pay for it.
const SPIN_NS: u64 = 200_000;

/// How often it looks whose hold limit has passed, while touches leave it no time to sleep.
const LOOK_NS: u64 = 1_000_000;

/// Who is on watch: the monitor's thread id, 0 for nobody.
pub(crate) struct Watch(AtomicU32);

impl Watch {
    pub(crate) fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    fn take(&self, me: u32) -> bool {
        self.0.compare_exchange(0, me, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    fn has(&self, me: u32) -> bool {
        self.0.load(Ordering::SeqCst) == me
    }

    fn give(&self, me: u32) {
        if self.0.compare_exchange(me, 0, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            futex::wake(&self.0, 1);
        }
    }
}

pub(crate) struct Monitor {
    pub(crate) core: Shared<SpaceCore>,
    pub(crate) uffd: Shared<Uffd>,
    pub(crate) stop: Shared<Doorbell>,
    pub(crate) watch: Shared<Watch>,
}

thread_local! {
    /// The watch of this thread, if it is a monitor. Read by monitors and by threads that wait outside signal handlers.
    static ON_WATCH: core::cell::Cell<Option<(*const Watch, u32)>> = const { core::cell::Cell::new(None) };
}

/// This thread may now wait for a while: if it is on watch, another monitor shall be.
pub(crate) fn release_watch() {
    if let Some((watch, me)) = ON_WATCH.get() {
        // SAFETY: set by `Monitor::run` to a watch that it keeps for as long as the thread runs.
        unsafe { &*watch }.give(me);
    }
}

impl Monitor {
    /// The thread.
    pub(crate) fn run(&self) {
        let me = thread::tid();
        ON_WATCH.set(Some((self.watch.as_ptr(), me)));
        loop {
            let holder = self.watch.0.load(Ordering::SeqCst);
            if holder == 0 && self.watch.take(me) {
                if self.stand_watch(me) {
                    self.watch.give(me);
                    return;
                }
            } else if holder != 0 {
                // Whoever takes the watch from us wakes us; so does the end of the space.
                let _ = futex::wait(&self.watch.0, holder, None);
            }
        }
    }

    /// Reads and serves until another monitor has the watch (`false`) or the space ends (`true`).
    fn stand_watch(&self, me: u32) -> bool {
        let (mut spin_until, mut look_at) = (0, 0);
        loop {
            let mut buffer = [MaybeUninit::uninit()];
            let read_at = self.core.last_token();
            match self.uffd.read_faults(&mut buffer).map(|messages| messages.first().and_then(Message::fault)) {
                Ok(Some(fault)) => {
                    self.serve(&fault, read_at);
                    if !self.watch.has(me) {
                        return false;
                    }
                    let now_ns = now_ns();
                    spin_until = now_ns + SPIN_NS;
                    if now_ns >= look_at {
                        look_at = now_ns + LOOK_NS;
                        self.break_overdue();
                        if !self.watch.has(me) {
                            return false;
                        }
                    }
                    continue;
                }
                Ok(None) => continue,
                Err(Errno::AGAIN | Errno::INTR) => {}
                // The descriptor is ours, non-blocking and past its handshake: nothing else can go wrong with it.
                Err(errno) => unreachable!("reading the userfaultfd: {errno}"),
            }
            if now_ns() < spin_until {
                thread::yield_now();
                continue;
            }
            let deadline = self.core.park.first_deadline(self.core.config.hold_limit);
            let readable = wait_readable(&*self.uffd, &*self.stop, deadline.remaining());
            if readable.second {
                return true;
            }
            if !readable.first {
                self.break_overdue();
                if !self.watch.has(me) {
                    return false;
                }
            }
        }
    }

    fn serve(&self, fault: &Fault, read_at: u64) {
        let Some(region) = registry::find(fault.address) else { return };
        let offset = fault.address - region.backend.span().start();
        let Ok(page) = u32::try_from(offset / region.granule.0) else { return };
        let write = fault.flags.intersects(FaultFlags::WRITE | FaultFlags::WP);
        region.space.stats.touches.one();
        touch::serve(
            &region,
            PageIndex(page),
            Toucher { who: Who::Thread(fault.thread), write: Some(write), read_at },
            Server::Monitor,
        );
    }

    /// Takes the pages of the parked touches whose hold limit has passed.
    fn break_overdue(&self) {
        for (id, page) in self.core.park.overdue(self.core.config.hold_limit) {
            match registry::find_id(id.0) {
                Some(region) => serve_overdue(&region, page),
                None => drop(self.core.park.remove(id, page)),
            }
        }
    }
}

/// The hold limit has passed for a parked touch of `page`.
pub(crate) fn serve_overdue(region: &crate::region::RegionCore, page: PageIndex) {
    if !region.word(page).waiters() {
        // It has been served, and merely its note is left.
        region.space.park.remove(region.id, page);
        return;
    }
    touch::break_overdue(region, page);
    touch::serve(region, page, Toucher::stopped(Who::Nobody, Some(true)), Server::Monitor);
}
