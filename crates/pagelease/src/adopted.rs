//! What the adopted regions of a space have in common: a userfaultfd of their own, which reports what the program does to its
//! address space; the gate that this shuts; and a place to throw pages away.
//!
//! Its own, because a region that revokes by `MADV_DONTNEED` must not be told of it: the call would wait for whoever reads the
//! event.
//!
//! Invariants: `trash` is registered, and empty but while [`Adopted::discard`] has `trashing`; nobody but the runtime knows it.

use core::mem::MaybeUninit;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};

use pagelease_sys::mem::{self, Mapping, Maps, Pagemap};
use pagelease_sys::uffd::{ContinueMode, Event, Features, Message, MoveMode, RegisterMode, Uffd};
use pagelease_sys::{Errno, Span};

use crate::changes::Changes;
use crate::error::AdoptError;
use crate::gate::Gate;
use crate::space::Faults;
use crate::sync::{block_signals, relax};

/// What a huge page is aligned to; and what is thrown away at a time.
pub(crate) const HUGE: usize = 2 << 20;

/// Messages that are read in one go.
pub(crate) const READ_MAX: usize = 16;

/// Turns for which changes are waited for: about as long as a device may take to drain.
const SETTLE_TURNS: u32 = 40_000;

/// Turns for which a discard waits for whoever caused the change to run.
const DISCARD_TURNS: u32 = 800;

/// The process's, for a thread that serves itself and has trapped where no region is.
static ALL: [Listed; SPACES_MAX] =
    [const { Listed { adopted: AtomicPtr::new(null_mut()), pins: AtomicU32::new(0) } }; SPACES_MAX];

/// Spaces that can adopt, at a time.
pub(crate) const SPACES_MAX: usize = 64;

/// Invariant: while it is pinned, or not null, the pointer is valid: whoever drops it takes it out first, and waits.
struct Listed {
    adopted: AtomicPtr<Adopted>,
    pins: AtomicU32,
}

/// Waits until all that the program had changed when this was called has been read and dealt with. Addresses are used again:
/// whoever puts something into the books at a place that has just been mapped must come behind what is still to be said about
/// it. Bounded, in case a device's driver calls it while it is waited for. Not for signal handlers.
pub(crate) fn settle() {
    with_all(|all| {
        let mut turn = 0;
        for adopted in all.iter().flatten() {
            while turn < SETTLE_TURNS && adopted.is_reporting() {
                turn += 1;
                relax(turn);
            }
            while turn < SETTLE_TURNS && adopted.gate.is_wanted() {
                turn += 1;
                relax(turn);
            }
        }
    });
}

/// Calls `act` with all of the process. Signal-safe.
pub(crate) fn with_all<R>(act: impl FnOnce(&[Option<&Adopted>; SPACES_MAX]) -> R) -> R {
    ALL.iter().for_each(|listed| _ = listed.pins.fetch_add(1, Ordering::SeqCst));
    // SAFETY: the list's invariant.
    let all = core::array::from_fn(|index| unsafe { ALL[index].adopted.load(Ordering::SeqCst).as_ref() });
    let result = act(&all);
    ALL.iter().for_each(|listed| _ = listed.pins.fetch_sub(1, Ordering::SeqCst));
    result
}

/// What adopting takes.
const NEEDED: Features = Features::MOVE
    .union(Features::THREAD_ID)
    .union(Features::EVENT_REMAP)
    .union(Features::EVENT_REMOVE)
    .union(Features::EVENT_UNMAP);

pub(crate) struct Adopted {
    pub(crate) uffd: Uffd,
    pub(crate) gate: Gate,
    /// See there: for whoever deals with changes.
    pub(crate) changes: Changes,
    pub(crate) maps: Maps,
    /// Before Linux 6.7 it cannot be scanned; then huge pages are moved whole all the same, but not counted.
    pub(crate) pagemap: Pagemap,
    trash: Mapping,
    trashing: AtomicBool,
}

impl Adopted {
    pub(crate) fn open(faults: Faults) -> Result<Self, AdoptError> {
        let wanted = if faults == Faults::InThread { NEEDED | Features::SIGBUS } else { NEEDED };
        let uffd = Uffd::open(wanted)?.uffd;
        let failed = |what| move |errno| AdoptError::System { what, errno };
        let trash = Mapping::anonymous_like(HUGE, 0, HUGE).map_err(failed("mmap"))?;
        // SAFETY: a mapping that nobody has seen yet; a forked child shall not have it.
        unsafe { mem::dont_fork(trash.span()) }.map_err(failed("madvise"))?;
        uffd.register(trash.span(), RegisterMode::MISSING).map_err(failed("UFFDIO_REGISTER"))?;
        Ok(Self {
            uffd,
            gate: Gate::default(),
            changes: Changes::default(),
            maps: Maps::open().map_err(failed("opening /proc/self/maps"))?,
            pagemap: Pagemap::open().map_err(failed("opening /proc/self/pagemap"))?,
            trash,
            trashing: AtomicBool::new(false),
        })
    }

    /// Puts it in the list, which it leaves when it is dropped; it must not move any more. `false`: the list is full.
    pub(crate) fn list(&self) -> bool {
        let this = core::ptr::from_ref(self).cast_mut();
        let put = |listed: &Listed| {
            listed.adopted.compare_exchange(null_mut(), this, Ordering::SeqCst, Ordering::SeqCst).is_ok()
        };
        ALL.iter().any(put)
    }

    /// Whether a change waits to be read, or its caller has not gone on since.
    fn is_reporting(&self) -> bool {
        // A request that can never be: the kernel says first that it does nothing now.
        let request = self.uffd.continue_pages(self.trash.span(), ContinueMode::empty());
        request.error == Some(Errno::AGAIN)
    }

    /// Reads the next message, if there is one and room for it; whether that was so. For whoever deals with changes.
    fn read_on(&self) -> bool {
        if !self.changes.has_room() {
            return false;
        }
        let mut buffer = [MaybeUninit::uninit()];
        let Ok(messages) = self.uffd.read_faults(&mut buffer) else { return false };
        match messages.first().map(Message::event) {
            // It traps again when this is over.
            Some(Event::Fault(fault)) => {
                let _ = Span::page_of(fault.address).map(|page| self.uffd.wake(page));
            }
            Some(change) => self.changes.push(change),
            None => return false,
        }
        true
    }

    /// Reads all that is there, up to `count` messages.
    pub(crate) fn read_up_to(&self, count: usize) {
        let _ = (0..count).all(|_| self.read_on());
    }

    /// The kernel moves nothing just now (`AGAIN`): waits for a moment. Whoever deals with a change reads what is in the way.
    pub(crate) fn give_way(&self, turn: &mut u32) {
        if self.gate.is_changing() {
            self.read_up_to(READ_MAX);
        }
        *turn += 1;
        relax(*turn);
    }

    /// Throws away what pages there are in `span`. (Not by `MADV_DONTNEED`: that would wait for the event to be read.)
    ///
    /// # Errors
    /// `BUSY`: some page is pinned, or shared with a forked child. `AGAIN`: the layout is being changed, and again. What could not
    /// be thrown away is still there.
    ///
    /// # Safety
    /// Nothing relies on the contents of `span`, which is adopted memory or a device's view of it. Memory of the program's only
    /// while it cannot be anything else by now: [`Adopted::discard_in_place`].
    pub(crate) unsafe fn discard(&self, span: Span) -> Result<(), Errno> {
        // SAFETY: the caller's promise.
        unsafe { self.throw_away(span, false) }
    }

    /// The same, for memory of the program's while a change of it is being dealt with: what another change since is about is left
    /// alone. It may be something else by now, and the kernel itself has dropped it.
    ///
    /// # Safety
    /// Nothing relies on the contents of `span`, which was adopted memory when the change was read.
    pub(crate) unsafe fn discard_in_place(&self, span: Span) -> Result<(), Errno> {
        // SAFETY: the caller's promise.
        unsafe { self.throw_away(span, true) }
    }

    /// # Safety
    /// That of the two above.
    unsafe fn throw_away(&self, span: Span, in_place: bool) -> Result<(), Errno> {
        let _blocked = block_signals();
        let mut turn = 0;
        while self.trashing.swap(true, Ordering::Acquire) {
            turn += 1;
            relax(turn);
        }
        let mut result = Ok(());
        let mut at = span.start();
        while at < span.end() && result.is_ok() {
            // A huge page goes whole, so it is not split to be thrown away.
            let end = span.end().min((at / HUGE + 1) * HUGE);
            // SAFETY: the caller's promise.
            result = unsafe { self.to_trash(at, end, in_place) };
            at = end;
        }
        self.trashing.store(false, Ordering::Release);
        result
    }

    /// # Safety
    /// That of `throw_away`; the range lies in one aligned piece of `HUGE` bytes.
    unsafe fn to_trash(&self, mut at: usize, end: usize, in_place: bool) -> Result<(), Errno> {
        let mut result = Ok(());
        let mut turn = 0;
        while let Some(mut left) = Span::new(at, end.saturating_sub(at)) {
            if in_place {
                // Looked at each time: what is read meanwhile may be about these pages.
                match self.changes.place(left) {
                    (_, Some(there)) if there.start() == at => left = there,
                    (len, _) => {
                        at += len;
                        continue;
                    }
                }
            }
            let Some(to) = Span::new(self.trash.span().start() + at % HUGE, left.len()) else { break };
            // SAFETY: the caller's promise; the trash is ours.
            let progress = unsafe { self.uffd.move_pages(to, at, MoveMode::ALLOW_SRC_HOLES | MoveMode::DONTWAKE) };
            at += progress.bytes;
            match progress.error {
                None => {}
                Some(_) if progress.bytes > 0 => {}
                // Whoever caused the change that is being dealt with has not run yet; or another change waits to be read.
                Some(Errno::AGAIN) if turn < DISCARD_TURNS => self.give_way(&mut turn),
                Some(errno) => {
                    result = Err(errno);
                    break;
                }
            }
        }
        self.empty_trash();
        result
    }

    fn empty_trash(&self) {
        let trash = self.trash.span();
        // Each fails only for a range that is not mapped as it was. Unregistered, it raises no event; registered, it would wait
        // for the one that this thread itself may have to read.
        if self.uffd.unregister(trash).is_ok() {
            // SAFETY: the trash is ours, and its contents are nobody's.
            let _ = unsafe { mem::dont_need(trash) };
            let _ = self.uffd.register(trash, RegisterMode::MISSING);
        }
    }
}

impl Drop for Adopted {
    fn drop(&mut self) {
        if !pagelease_sys::fork::in_child() {
            let this = core::ptr::from_ref(self).cast_mut();
            for listed in ALL.iter().filter(|listed| listed.adopted.load(Ordering::SeqCst) == this) {
                listed.adopted.store(null_mut(), Ordering::SeqCst);
                let mut turn = 0;
                while listed.pins.load(Ordering::SeqCst) != 0 {
                    turn += 1;
                    relax(turn);
                }
            }
            // Unmapping what is registered would wait for a reader of the event.
            let _ = self.uffd.unregister(self.trash.span());
        }
    }
}
