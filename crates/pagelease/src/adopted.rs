//! What the adopted regions of a space have in common: a userfaultfd of their own, which reports what the program does to its
//! address space; the gate that this shuts; and a place to throw pages away.
//!
//! Its own, because a region that revokes by `MADV_DONTNEED` must not be told of it: the call would wait for whoever reads the
//! event.
//!
//! Invariants: `trash` is registered, and empty but while [`Adopted::discard`] has `trashing`; nobody but the runtime knows it.

use core::ptr::null_mut;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};

use pagelease_sys::mem::{self, Mapping, Maps, Pagemap};
use pagelease_sys::uffd::{Features, MoveMode, RegisterMode, Uffd};
use pagelease_sys::{Errno, Span};

use crate::error::AdoptError;
use crate::gate::Gate;
use crate::space::Faults;
use crate::sync::{block_signals, relax};

/// What a huge page is aligned to; and what is thrown away at a time.
pub(crate) const HUGE: usize = 2 << 20;

/// Turns for which a discard waits for whoever caused the change to run.
const DISCARD_TURNS: u32 = 400;

/// The process's, for a thread that serves itself and has trapped where no region is.
static ALL: [Listed; 64] = [const { Listed { adopted: AtomicPtr::new(null_mut()), pins: AtomicU32::new(0) } }; 64];

/// Invariant: while it is pinned, or not null, the pointer is valid: whoever drops it takes it out first, and waits.
struct Listed {
    adopted: AtomicPtr<Adopted>,
    pins: AtomicU32,
}

/// Whether a change of some adopted memory's layout is being dealt with.
pub(crate) fn is_any_changing() -> bool {
    let mut changing = false;
    for_each(|adopted| changing |= adopted.gate.is_wanted());
    changing
}

/// Calls `act` for each one of the process. Signal-safe.
pub(crate) fn for_each(mut act: impl FnMut(&Adopted)) {
    for listed in &ALL {
        listed.pins.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the list's invariant.
        if let Some(adopted) = unsafe { listed.adopted.load(Ordering::SeqCst).as_ref() } {
            act(adopted);
        }
        listed.pins.fetch_sub(1, Ordering::SeqCst);
    }
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

    /// Throws away what pages there are in `span`. (Not by `MADV_DONTNEED`: that would wait for the event to be read.)
    ///
    /// # Errors
    /// `BUSY`: some page is pinned, or shared with a forked child. `AGAIN`: the layout is being changed, and again. What could not
    /// be thrown away is still there.
    ///
    /// # Safety
    /// Nothing relies on the contents of `span`, which is adopted memory or a device's view of it.
    pub(crate) unsafe fn discard(&self, span: Span) -> Result<(), Errno> {
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
            result = unsafe { self.to_trash(at, end) };
            at = end;
        }
        self.trashing.store(false, Ordering::Release);
        result
    }

    /// # Safety
    /// That of `discard`; the range lies in one aligned piece of `HUGE` bytes.
    unsafe fn to_trash(&self, mut at: usize, end: usize) -> Result<(), Errno> {
        let mut result = Ok(());
        let mut turn = 0;
        while let Some(to) = Span::new(self.trash.span().start() + at % HUGE, end - at) {
            // SAFETY: the caller's promise; the trash is ours.
            let progress = unsafe { self.uffd.move_pages(to, at, MoveMode::ALLOW_SRC_HOLES | MoveMode::DONTWAKE) };
            at += progress.bytes;
            match progress.error {
                None => break,
                Some(_) if progress.bytes > 0 => {}
                // Whoever caused the change that is being dealt with has not run yet; or another change waits to be read.
                Some(Errno::AGAIN) if turn < DISCARD_TURNS => {
                    turn += 1;
                    relax(turn);
                }
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
