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
use core::time::Duration;

use pagelease_protocol::PageIndex;
use pagelease_sys::Errno;
use pagelease_sys::event::{Doorbell, wait_readable};
use pagelease_sys::uffd::{Event, Fault, FaultFlags, Message, Uffd};
use pagelease_sys::{futex, thread};

use crate::adopted::{Adopted, READ_MAX};
use crate::layout;
use crate::registry::{self, Found};
use crate::shared::Shared;
use crate::space::{RestorePolicy, SpaceCore};
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

/// What a monitor reads.
pub(crate) enum Source {
    /// Touches of memory that the runtime made.
    Made(Shared<Uffd>),
    /// Touches of adopted memory (with `Faults::Monitor`), and what the program does to its address space there.
    Adopted(Shared<Adopted>),
}

impl Source {
    fn uffd(&self) -> &Uffd {
        match self {
            Self::Made(uffd) => uffd,
            Self::Adopted(adopted) => &adopted.uffd,
        }
    }
}

pub(crate) struct Monitor {
    pub(crate) core: Shared<SpaceCore>,
    pub(crate) source: Source,
    pub(crate) stop: Shared<Doorbell>,
    pub(crate) watch: Shared<Watch>,
}

thread_local! {
    /// The watch of this thread, if it is a monitor. Read by monitors and by threads that wait outside signal handlers.
    static ON_WATCH: core::cell::Cell<Option<(*const Watch, u32)>> = const { core::cell::Cell::new(None) };
    /// A monitor has left a touch asleep because the layout was being changed: to be woken when that may be over.
    static DEFERRED: core::cell::Cell<bool> = const { core::cell::Cell::new(false) };
}

/// The layout of the address space is being changed, which a monitor must not wait for: it may be the one to read the event.
/// Whether the calling thread is one, and will wake the touch later. Not for signal handlers.
pub(crate) fn defer() -> bool {
    let is_monitor = ON_WATCH.get().is_some();
    if is_monitor {
        DEFERRED.set(true);
    }
    is_monitor
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
                let ended = self.stand_watch(me);
                self.wake_deferred();
                if ended {
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
        let throttles = self.core.config.restore == RestorePolicy::Adaptive;
        loop {
            let read_at = self.core.last_token();
            match self.read() {
                Ok(Some(fault)) => {
                    self.serve(&fault, read_at);
                    if !self.watch.has(me) {
                        return false;
                    }
                    let now_ns = now_ns();
                    spin_until = now_ns + SPIN_NS;
                    if now_ns >= look_at {
                        look_at = now_ns + LOOK_NS;
                        if !self.serve_overdue(me) {
                            return false;
                        }
                    }
                    continue;
                }
                // An event: dealt with.
                Ok(None) => {
                    self.wake_deferred();
                    if !self.watch.has(me) {
                        return false;
                    }
                    continue;
                }
                Err(Errno::AGAIN | Errno::INTR) => self.wake_deferred(),
                // The descriptor is ours, non-blocking and past its handshake: nothing else can go wrong with it.
                Err(errno) => unreachable!("reading the userfaultfd: {errno}"),
            }
            if now_ns() < spin_until {
                if throttles && !self.serve_delayed(me) {
                    return false;
                }
                thread::yield_now();
                continue;
            }
            let deadline = self.core.first_deadline();
            let readable = wait_readable(self.source.uffd(), &*self.stop, deadline.remaining());
            if readable.second {
                return true;
            }
            if !readable.first && !self.serve_overdue(me) {
                return false;
            }
        }
    }

    /// Reads one message: a fault, or an event, with which it deals (`None`).
    fn read(&self) -> Result<Option<Fault>, Errno> {
        let mut buffer = [MaybeUninit::uninit()];
        let adopted = match &self.source {
            Source::Made(uffd) => return Ok(uffd.read_faults(&mut buffer)?.first().and_then(Message::fault)),
            Source::Adopted(adopted) => adopted,
        };
        // While there is nothing to read, nobody is kept out.
        if !wait_readable(&adopted.uffd, &*self.stop, Some(Duration::ZERO)).first {
            return Err(Errno::AGAIN);
        }
        let shut = adopted.gate.shut();
        match adopted.uffd.read_faults(&mut buffer)?.first().map(Message::event) {
            Some(Event::Fault(fault)) => return Ok(Some(fault)),
            Some(change) => {
                shut.begin_change();
                self.deal_with(adopted, change);
            }
            None => {}
        }
        Ok(None)
    }

    /// Deals with a change, and with those that have come meanwhile: while one waits to be read, the kernel moves no page.
    ///
    /// The watch is kept throughout, however long a device takes: whoever else had it would open the gate.
    fn deal_with(&self, adopted: &Adopted, first: Event) {
        let watch = ON_WATCH.take();
        adopted.changes.push(first);
        adopted.read_up_to(READ_MAX);
        while let Some(change) = adopted.changes.next() {
            layout::change(adopted, &change);
        }
        ON_WATCH.set(watch);
    }

    /// Lets the touches go on that were left asleep: those that still cannot be served trap again.
    fn wake_deferred(&self) {
        if DEFERRED.take() {
            thread::yield_now();
            registry::for_each(|region| {
                if region.backend.carries() {
                    region.backend.wake(region.all());
                }
            });
        }
    }

    fn serve(&self, fault: &Fault, read_at: u64) {
        let Some(Found { region, page, device }) = registry::find(fault.address) else {
            if let Source::Adopted(adopted) = &self.source {
                layout::serve_stranger(adopted, fault.address);
            }
            return;
        };
        if device.is_some() {
            region.moved().expect("only carried pages have views to trap").serve_stray(fault.address);
            return;
        }
        let write = fault.flags.intersects(FaultFlags::WRITE | FaultFlags::WP);
        region.space.stats.touches.one();
        touch::serve(
            &region,
            page,
            Toucher { who: Who::Thread(fault.thread), write: Some(write), read_at, delayed: false },
            Server::Monitor,
        );
    }

    /// Takes the pages of the parked touches whose hold limit has passed, and serves those whose delay has. `false`: another
    /// monitor has the watch now, and looks after the rest; what this one parked it would not know of.
    fn serve_overdue(&self, me: u32) -> bool {
        for (id, page) in self.core.park.overdue(self.core.config.hold_limit) {
            match registry::find_id(id.0) {
                Some(region) => serve_overdue(&region, page),
                None => drop(self.core.park.remove(id, page)),
            }
            if !self.watch.has(me) {
                return false;
            }
        }
        self.serve_delayed(me)
    }

    fn serve_delayed(&self, me: u32) -> bool {
        for (id, page) in self.core.delays.overdue(Duration::ZERO) {
            match registry::find_id(id.0) {
                Some(region) => serve_delayed(&region, page),
                None => drop(self.core.delays.remove(id, page)),
            }
            if !self.watch.has(me) {
                return false;
            }
        }
        true
    }
}

/// The device has had `page` for its minimum, or whoever was to bring it back has done so.
pub(crate) fn serve_delayed(region: &crate::region::RegionCore, page: PageIndex) {
    // First: a touch that comes from now on leaves a note of its own, and one that came before is served here.
    if region.space.delays.remove(region.id, page).is_some() {
        touch::serve(region, page, Toucher::delayed(), Server::Monitor);
    }
}

/// The hold limit has passed for a parked touch of `page`.
pub(crate) fn serve_overdue(region: &crate::region::RegionCore, page: PageIndex) {
    if !region.word(page).waiters() {
        // It has been served, and merely its note is left. Unless another monitor is just about to set the bit: it looks
        // after the note once more when it has.
        region.space.park.remove(region.id, page);
        if region.word(page).waiters() {
            region.space.park.insert(region.id, page, now_ns());
        }
        return;
    }
    touch::break_overdue(region, page);
    touch::serve(region, page, Toucher::stopped(Who::Nobody, Some(true)), Server::Monitor);
}
