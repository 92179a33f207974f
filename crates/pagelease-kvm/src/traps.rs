//! [`Traps`]: the device as the space sees it. Its page table is the process's own, of the device's views.
//!
//! A vCPU reaches a page through the process's mapping of the view (KVM's memory slot). So to take a page from it is to zap
//! it there, and KVM's MMU notifier takes it from the running guest before `madvise` returns; to give it a page is to map it
//! there, by `UFFDIO_CONTINUE` on a userfaultfd of the device's own.
//!
//! Locks: `table` is the lock of the device's page table. With it are done: asking whether a grant stands, or the device has
//! a page, and mapping it; zapping. So a page is mapped in a view only while its word says that it is the device's, or that a
//! claim of the device is just making it so. Nothing that may wait for a touch or a claim is done with it.
//!
//! Invariants, on which the unsafe blocks lean: each alias in the table is a view that the runtime keeps mapped, registered
//! with `uffd` for MINOR and MISSING (a page that the file does not have yet would else be filled without a trap). All of it lies
//! in the mapping that the runtime has the device in: the fault path reads no memory of an allocator.

use core::cell::Cell;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use pagelease::{Device, Grant, Invalidation, NotDrained, PageIndex, PageRange, RegionId, View};
use pagelease_sys::mem;
use pagelease_sys::uffd::{ContinueMode, RegisterMode, Uffd};
use pagelease_sys::{Errno, Span};

use crate::block::Block;
use crate::kick::Kick;

/// Regions that a device can be attached to.
pub(crate) const ALIASES: usize = 64;

std::thread_local! {
    /// A grant has been mapped in this thread since it was last reset.
    static MAPPED: Cell<bool> = const { Cell::new(false) };
}

/// A view in the table.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Alias {
    pub(crate) region: RegionId,
    pub(crate) span: Span,
    pub(crate) granule: usize,
}

impl Alias {
    fn span_of(&self, pages: PageRange) -> Option<Span> {
        let start = self.span.start() + pages.start() as usize * self.granule;
        Span::new(start, pages.len() as usize * self.granule)
    }

    fn page_of(&self, address: usize) -> Option<PageIndex> {
        u32::try_from((address - self.span.start()) / self.granule).ok().map(PageIndex)
    }
}

type Table = [Option<Alias>; ALIASES];

/// The device, as the space sees it. Nothing can be done with it but through [`KvmDevice`](crate::KvmDevice).
pub struct Traps {
    pub(crate) uffd: Uffd,
    table: Mutex<Table>,
    /// Lanes that run.
    pub(crate) running: AtomicU32,
    /// How each vCPU's thread is made to leave the guest; from its start to the end of the device.
    pub(crate) vcpus: [OnceLock<Kick>; Block::VCPUS_MAX],
    /// Shared while in the guest.
    gate: RwLock<()>,
    /// How many want all vCPUs outside.
    pausing: AtomicU32,
    /// No vCPU enters the guest again.
    halted: AtomicBool,
}

impl Traps {
    pub(crate) fn new(uffd: Uffd) -> Self {
        Self {
            uffd,
            table: Mutex::new([None; ALIASES]),
            running: AtomicU32::new(0),
            vcpus: [const { OnceLock::new() }; Block::VCPUS_MAX],
            gate: RwLock::new(()),
            pausing: AtomicU32::new(0),
            halted: AtomicBool::new(false),
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Traps the accesses to `alias`. `Ok(false)`: the table is full.
    pub(crate) fn insert(&self, alias: Alias) -> Result<bool, Errno> {
        // A handler of this thread that touched a page of the device would wait for the table.
        let _signals = pagelease_sys::thread::block_all_signals();
        let mut table = self.table();
        let Some(free) = table.iter_mut().find(|slot| slot.is_none()) else { return Ok(false) };
        self.uffd.register(alias.span, RegisterMode::MINOR | RegisterMode::MISSING)?;
        *free = Some(alias);
        Ok(true)
    }

    /// Traps them no more. No vCPU has a way to them any more.
    pub(crate) fn remove(&self, region: RegionId) {
        let _signals = pagelease_sys::thread::block_all_signals();
        let mut table = self.table();
        let Some(slot) = table.iter_mut().find(|slot| slot.is_some_and(|alias| alias.region == region)) else { return };
        if let Some(alias) = slot.take() {
            // Both fail only for a range that is not mapped; unregistering does not wake who waits for a MINOR page.
            let _ = self.uffd.unregister(alias.span);
            let _ = self.uffd.wake(alias.span);
        }
    }

    /// Which page of which region the device sees at `address`.
    pub(crate) fn find(&self, address: usize) -> Option<(RegionId, PageIndex)> {
        let table = self.table();
        let alias = table.iter().flatten().find(|alias| alias.span.contains(address))?;
        Some((alias.region, alias.page_of(address)?))
    }

    /// Lets who waits for `page` trap again.
    pub(crate) fn wake(&self, region: RegionId, page: PageIndex) {
        if let Some(span) = self.span_of(&self.table(), region, page) {
            let _ = self.uffd.wake(span);
        }
    }

    fn span_of(&self, table: &Table, region: RegionId, page: PageIndex) -> Option<Span> {
        find(table, region)?.span_of(PageRange::single(page)?)
    }

    /// Runs `claim`; whether pages were mapped by it.
    pub(crate) fn watching<T>(claim: impl FnOnce() -> T) -> (T, bool) {
        MAPPED.set(false);
        (claim(), MAPPED.get())
    }

    /// Maps `page`, which the device had before it was claimed, if it still has it: zapping takes whole runs, and so may take
    /// what the device keeps. Otherwise whoever waits for it traps again.
    pub(crate) fn map_again(&self, view: &View, page: PageIndex) {
        let table = self.table();
        // Whoever takes the page makes its word say so, and then comes here to zap it.
        let Some(span) = self.span_of(&table, view.region(), page) else { return };
        if view.has(page) {
            self.map_span(span, span.len());
        } else {
            let _ = self.uffd.wake(span);
        }
    }

    /// Maps `page` whoever has it: what a device without exclusivity does.
    pub(crate) fn map_unasked(&self, region: RegionId, page: PageIndex) {
        let table = self.table();
        if let Some(span) = self.span_of(&table, region, page) {
            self.map_span(span, span.len());
        }
    }

    /// Maps `span` in the view, and wakes who waits for it.
    fn map_span(&self, span: Span, granule: usize) {
        let mut at = span.start();
        while let Some(rest) = Span::new(at, span.end() - at) {
            let progress = self.uffd.continue_pages(rest, ContinueMode::empty());
            at += progress.bytes;
            match progress.error {
                None => break,
                Some(Errno::AGAIN) => {}
                // Mapped already, or no memory for a page table, or the file has the page no more: whoever waits tries again.
                Some(errno) => {
                    let Some(page) = Span::new(at, granule) else { break };
                    let filled = errno == Errno::FAULT && self.uffd.zero_pages(page, true).error.is_none();
                    if !filled {
                        let _ = self.uffd.wake(page);
                    }
                    at += granule;
                }
            }
        }
    }
}

fn find(table: &Table, region: RegionId) -> Option<&Alias> {
    table.iter().flatten().find(|alias| alias.region == region)
}

impl Device for Traps {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn map(&self, grant: &Grant<'_>) -> bool {
        let table = self.table();
        if !grant.stands() {
            return false;
        }
        // Not there: it is just being detached.
        if let Some(alias) = find(&table, grant.region()) {
            let mut run: Option<PageRange> = None;
            let map = |run: Option<PageRange>| {
                if let Some(span) = run.and_then(|run| alias.span_of(run)) {
                    self.map_span(span, alias.granule);
                }
            };
            for page in grant.pages() {
                run = match run {
                    Some(before) if before.end() == page.0 => PageRange::new(before.start(), page.0 + 1),
                    before => {
                        map(before);
                        PageRange::single(page)
                    }
                };
            }
            map(run);
            MAPPED.set(true);
        }
        true
    }

    fn invalidate(&self, invalidation: &Invalidation) -> Result<(), NotDrained> {
        if self.running.load(Ordering::Relaxed) > 0 {
            invalidation.note_in_use();
        }
        let table = self.table();
        let Some(span) = find(&table, invalidation.region()).and_then(|alias| alias.span_of(invalidation.pages()))
        else {
            return Ok(());
        };
        // SAFETY: see the invariants: a shared mapping, whose contents stay in the file. When it returns, no vCPU has the pages.
        match unsafe { mem::dont_need(span) } {
            Ok(()) => Ok(()),
            Err(_) => self.not_zapped(invalidation),
        }
    }
}

impl Traps {
    /// The kernel refuses to zap (the program has locked the view since it was attached). Then no vCPU runs ever again, which
    /// costs the device its life, and the memory nothing.
    #[cold]
    fn not_zapped(&self, invalidation: &Invalidation) -> Result<(), NotDrained> {
        if self.halted.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        self.kick_all();
        while self.gate.try_write().is_err() && !invalidation.overdue() {
            std::thread::yield_now();
        }
        Err(NotDrained { page: PageIndex(invalidation.pages().start()) })
    }

    /// Runs `change` while no vCPU is in the guest.
    pub(crate) fn paused<T>(&self, change: impl FnOnce() -> T) -> T {
        self.pausing.fetch_add(1, Ordering::SeqCst);
        self.kick_all();
        let outside = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let changed = change();
        self.pausing.fetch_sub(1, Ordering::SeqCst);
        drop(outside);
        changed
    }

    /// Runs `guest` unless vCPUs are to stay outside just now. Whoever wants them outside says so first, and then kicks: a vCPU
    /// that has not seen it is kicked out.
    pub(crate) fn inside<T>(&self, guest: impl FnOnce() -> T) -> Option<T> {
        let inside = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        let result = (self.pausing.load(Ordering::SeqCst) == 0 && !self.is_halted()).then(guest);
        drop(inside);
        result
    }

    pub(crate) fn is_halted(&self) -> bool {
        self.halted.load(Ordering::SeqCst)
    }

    pub(crate) fn kick_all(&self) {
        self.vcpus.iter().filter_map(OnceLock::get).for_each(|kick| kick.leave());
    }
}
