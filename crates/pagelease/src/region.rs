//! [`Region`]: a range of memory under management.
//!
//! Invariants: a region's words, views and backend live in mappings of the runtime's own, and outlive every operation on
//! the region: an operation of the program enters (`operations`), one of a fault handler pins (`registry`). Closing a
//! region bars new ones, waits for those that run, and stops every device on it.

use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering, fence};

use pagelease_protocol::{ByteLen, Cause, Origin, OwnerId, PageIndex, PageRange, PageWord, hold};
use pagelease_sys::{Span, fork};

use crate::adopted;
use crate::backend::{AnyBackend, BackendKind, Capabilities, Moved, Sim, sim::SimCpu};
use crate::device::{Device, DeviceCore, DeviceHandle, RegionId};
use crate::error::{AttachError, RangeError, RegionError};
use crate::history::History;
use crate::invalidate::invalidate;
use crate::registry;
use crate::residency::Residency;
use crate::restore::{Of, Patience, bring_back, bring_home};
use crate::rights::Rights;
use crate::sequence::Sequence;
use crate::shared::Shared;
use crate::space::{RestorePolicy, Space, SpaceCore};
use crate::sync::{Mutex, Table, Word, relax};
use crate::thrash::Thrash;
use crate::touch::Who;
use crate::view::{View, ViewCore};

/// Memory that the CPU and devices share, page by page. Made by [`Space::allocate`].
///
/// Dropping it stops every device on it and ends the CPU's access; the memory itself is freed when the last view and the
/// last lease of it have gone. A forked child does not have it: no mapping of a region is inherited.
pub struct Region {
    core: Shared<RegionCore>,
    space: Space,
}

pub(crate) struct RegionCore {
    pub(crate) id: RegionId,
    pub(crate) space: Shared<SpaceCore>,
    pub(crate) backend: AnyBackend,
    pub(crate) words: Table<Word>,
    pub(crate) pages: u32,
    pub(crate) granule: ByteLen,
    pub(crate) sequence: Sequence,
    pub(crate) residency: Residency,
    pub(crate) rights: Rights,
    pub(crate) history: History,
    pub(crate) thrash: Thrash,
    slots: [ViewSlot; OwnerId::MAX as usize + 1],
    closing: AtomicBool,
    operations: AtomicU32,
    /// Serialises the program's changes through the region. Never taken by the fault path, nor with a page busy.
    pub(crate) reshaping: Mutex<()>,
    /// Serialises attaching, detaching and closing. Never taken by the fault path, nor with a page busy.
    attaching: Mutex<()>,
}

/// What the fault path knows of a device's view.
#[derive(Default)]
pub(crate) struct ViewSlot {
    device: AtomicPtr<DeviceCore>,
    base: AtomicUsize,
    stop: AtomicBool,
    signal_safe: AtomicBool,
    /// The device may have pages from `low`...
    pub(crate) low: AtomicU32,
    /// ...up to and without `high`.
    pub(crate) high: AtomicU32,
}

impl ViewSlot {
    #[inline]
    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// The pages among which those lie that the device may have had; `None` if it never claimed any.
    pub(crate) fn claimed(&self) -> Option<PageRange> {
        PageRange::new(self.low.load(Ordering::SeqCst), self.high.load(Ordering::SeqCst))
    }
}

/// An operation of the program on a region, which closing it waits for.
pub(crate) struct Operation<'a>(&'a RegionCore);

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        self.0.operations.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Region {
    pub(crate) fn new(
        space: &Space,
        id: RegionId,
        backend: AnyBackend,
        pages: u32,
        granule: ByteLen,
        residency_step_ns: u64,
    ) -> Result<Self, RegionError> {
        let span = backend.span();
        let failed = |errno| RegionError::System { len: ByteLen(span.len()), what: "mmap of the page words", errno };
        let adaptive = space.core().config.restore == RestorePolicy::Adaptive;
        // Without time, none can be kept: of simulated regions, only those whose schedules are explored pretend to.
        let throttles = adaptive && (residency_step_ns != 0 || cfg!(pagelease_shuttle));
        let core = Shared::new(RegionCore {
            id,
            space: space.core().clone(),
            words: Table::zeroed(pages as usize).map_err(failed)?,
            pages,
            granule,
            sequence: Sequence::new().map_err(failed)?,
            rights: Rights::new(pages).map_err(failed)?,
            residency: Residency::new(residency_step_ns, throttles).map_err(failed)?,
            history: History::new(pages, adaptive).map_err(failed)?,
            thrash: Thrash::new(throttles).map_err(failed)?,
            slots: core::array::from_fn(|_| ViewSlot::default()),
            closing: AtomicBool::new(false),
            operations: AtomicU32::new(0),
            reshaping: Mutex::new(()),
            attaching: Mutex::new(()),
            backend,
        })
        .map_err(failed)?;
        if core.backend.kind() != BackendKind::Sim {
            adopted::settle();
            registry::insert(core.as_ptr(), span, PageIndex(0), None)
                .ok_or(RegionError::TooMany { limit: registry::REGIONS_MAX })?;
        }
        if let Some(moved) = core.moved() {
            // Whoever serves a touch there, and has not found a region: from now on there is one.
            moved.adopted().gate.wait_for_those_inside();
        }
        Ok(Self { core, space: space.clone() })
    }

    pub(crate) fn core(&self) -> &Shared<RegionCore> {
        &self.core
    }

    /// Names the region in messages and invalidations.
    #[must_use]
    pub fn id(&self) -> RegionId {
        self.core.id
    }

    /// The bytes of the CPU view. Whatever reads or writes them goes through raw pointers or atomics: the device and other
    /// threads store to them. Valid as long as the region.
    #[must_use]
    pub fn as_ptr(&self) -> NonNull<[u8]> {
        let span = self.core.backend.span();
        NonNull::slice_from_raw_parts(NonNull::new(span.as_ptr()).expect("a mapping is not at 0"), span.len())
    }

    /// The CPU view as 64-bit words. Touching one that a device has traps, and goes on when the page is back.
    ///
    /// # Panics
    /// In a simulated region, which has no addresses: use [`Region::sim_cpu`].
    #[must_use]
    pub fn words(&self) -> &[core::sync::atomic::AtomicU64] {
        assert!(self.core.backend.kind() != BackendKind::Sim, "a simulated region has no addresses");
        let span = self.core.backend.span();
        // SAFETY: the CPU view is mapped, page-aligned, and shared memory of which only atomics or raw pointers are handed
        // out; it lives as long as the region that the slice borrows.
        unsafe { core::slice::from_raw_parts(span.as_ptr().cast(), span.len() / 8) }
    }

    /// The CPU's access to a simulated region; `None` for a real one.
    #[must_use]
    pub fn sim_cpu(&self) -> Option<SimCpu> {
        self.core.sim().map(|_| SimCpu::new(self.core.clone()))
    }

    /// All of its granules.
    #[must_use]
    pub fn pages(&self) -> PageRange {
        self.core.all()
    }

    /// The unit of ownership.
    #[must_use]
    pub fn granule(&self) -> ByteLen {
        self.core.granule
    }

    /// The granules of `len` bytes from `start`, which must be whole ones of this region.
    ///
    /// # Errors
    /// [`RangeError`].
    pub fn pages_of(&self, start: *const u8, len: ByteLen) -> Result<PageRange, RangeError> {
        let (start, len, granule) = (start.addr(), len.0, self.core.granule);
        let span = self.core.backend.span();
        if len == 0 {
            return Err(RangeError::Empty { start });
        }
        let end = start.checked_add(len).ok_or(RangeError::Overflow { start, len })?;
        if start < span.start() || end > span.end() {
            let other = registry::overlapping(start, end).filter(|other| *other != span);
            return Err(match other {
                Some(other) => RangeError::Foreign { start, len, region_start: other.start(), region_end: other.end() },
                None => RangeError::Unmanaged { start, len, region_start: span.start(), region_end: span.end() },
            });
        }
        let misaligned = RangeError::Misaligned { start, len, granule };
        if !(start - span.start()).is_multiple_of(granule.0) || !len.is_multiple_of(granule.0) {
            return Err(misaligned);
        }
        let first = u32::try_from((start - span.start()) / granule.0);
        let count = u32::try_from(len / granule.0);
        first.ok().zip(count.ok()).and_then(|(first, count)| PageRange::new(first, first + count)).ok_or(misaligned)
    }

    /// Which backend it has.
    #[must_use]
    pub fn backend(&self) -> BackendKind {
        self.core.backend.kind()
    }

    /// What its backend can do.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        self.core.backend.capabilities()
    }

    /// Gives `device` a view of the region: from now on it can claim its pages.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn attach<D: Device>(&self, device: &DeviceHandle<D>) -> Result<View, AttachError> {
        if fork::in_child() {
            return Err(AttachError::Forked);
        }
        let id = device.id();
        if !device.space.is(&self.space) {
            return Err(AttachError::ForeignDevice { device: id });
        }
        if let Some(lost) = device.lost() {
            return Err(lost.into());
        }
        let failed = |errno| AttachError::System { what: "mmap of the device's view", errno };
        let _attaching = self.core.attaching.lock().expect("attaching does not panic");
        let slot = self.core.slot(id);
        if !slot.device.load(Ordering::SeqCst).is_null() {
            return Err(AttachError::AlreadyAttached { device: id });
        }
        let memory = self.core.backend.open_view(id).map_err(failed)?;
        if let crate::backend::ViewMemory::Mapping(mapping) = &memory {
            slot.base.store(mapping.span().start(), Ordering::SeqCst);
            if self.core.backend.carries() {
                adopted::settle();
                let known = registry::insert(self.core.as_ptr(), mapping.span(), PageIndex(0), Some(id)).is_some();
                if !known {
                    self.core.close_view(id);
                    return Err(AttachError::TooManyViews { limit: registry::REGIONS_MAX });
                }
            }
        }
        let view = View::new(ViewCore {
            region: self.core.clone(),
            device: device.core.clone(),
            memory,
            granule: self.core.granule.0,
            _space: self.space.clone(),
        })
        .map_err(failed)?;
        slot.low.store(u32::MAX, Ordering::SeqCst);
        slot.high.store(0, Ordering::SeqCst);
        slot.stop.store(false, Ordering::SeqCst);
        slot.signal_safe.store(device.core.device().signal_safe(), Ordering::SeqCst);
        slot.device.store(device.core.as_ptr().cast_mut(), Ordering::SeqCst);
        Ok(view)
    }

    /// Brings the pages back to the CPU, in as few system calls as they allow, before it touches them. Waits for leases as a
    /// touch would. Does nothing in a forked child.
    ///
    /// # Panics
    /// If `pages` reaches behind the region's end.
    pub fn prefetch(&self, pages: PageRange) {
        assert!(pages.end() <= self.core.pages, "{pages} of a region of {}", self.core.pages);
        if fork::in_child() {
            return;
        }
        if let Some(_operation) = self.core.enter() {
            bring_back(&self.core, pages, Of::Any, Cause::Clear, Patience::HoldLimit);
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if !fork::in_child() {
            self.core.close();
        }
    }
}

impl Drop for RegionCore {
    fn drop(&mut self) {
        if self.backend.kind() != BackendKind::Sim && !fork::in_child() {
            registry::remove(self);
        }
    }
}

impl RegionCore {
    #[inline]
    pub(crate) fn word(&self, page: PageIndex) -> PageWord {
        PageWord::from_bits(self.words[page.as_usize()].load())
    }

    /// Puts `next` if the word still is `word`.
    #[inline]
    pub(crate) fn swap(&self, page: PageIndex, word: PageWord, next: PageWord) -> bool {
        self.words[page.as_usize()].swap_if(word.bits(), next.bits()).is_ok()
    }

    pub(crate) fn sim(&self) -> Option<&Sim> {
        match &self.backend {
            AnyBackend::Sim(sim) => Some(sim),
            _ => None,
        }
    }

    /// Where its CPU view has `pages`, if it is in one piece.
    pub(crate) fn span_of(&self, pages: PageRange) -> Option<Span> {
        let start = self.backend.span().start() + pages.start() as usize * self.granule.0;
        Span::new(start, pages.len() as usize * self.granule.0)
    }

    /// All of its pages.
    pub(crate) fn all(&self) -> PageRange {
        PageRange::new(0, self.pages).expect("a region has at least one page")
    }

    pub(crate) fn moved(&self) -> Option<&Moved> {
        match &self.backend {
            AnyBackend::Move(moved) => Some(moved),
            _ => None,
        }
    }

    pub(crate) fn slot(&self, device: OwnerId) -> &ViewSlot {
        &self.slots[usize::from(device.get())]
    }

    /// The device that page words call `owner`: valid while the caller has a page busy that it owns, or serialises with
    /// detaching.
    pub(crate) fn device(&self, owner: OwnerId) -> Option<&DeviceCore> {
        // SAFETY: a view keeps its device, and is detached only after every word that names the device is swept, for which
        // it waits for whoever has one busy.
        unsafe { self.slot(owner).device.load(Ordering::Acquire).as_ref() }
    }

    pub(crate) fn is_signal_safe(&self, owner: OwnerId) -> bool {
        self.slot(owner).signal_safe.load(Ordering::Relaxed)
    }

    /// Covers a page of a device's view by a private copy.
    pub(crate) fn cover(&self, owner: OwnerId, page: PageIndex) {
        if self.backend.capabilities().cover {
            // It fails only without memory for a page; then a late store of the lost device can still land in the page.
            if self.backend.cover(self.slot(owner).base.load(Ordering::Acquire), page).is_err() {
                self.space.stats.covers_failed.one();
            }
        }
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// As [`RegionCore::is_closing`], ordered behind what the calling thread has put in a word: whoever closes the region sees
    /// that, or this sees the closing.
    pub(crate) fn has_begun_to_close(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    /// Begins an operation; `None` once the region is closing.
    pub(crate) fn enter(&self) -> Option<Operation<'_>> {
        self.operations.fetch_add(1, Ordering::SeqCst);
        let operation = Operation(self);
        (!self.closing.load(Ordering::SeqCst)).then_some(operation)
    }

    fn close(&self) {
        let _attaching = self.attaching.lock().expect("attaching does not panic");
        self.closing.store(true, Ordering::SeqCst);
        self.wake_sleepers();
        // Whoever still touches memory that the runtime made finds it there at once. What was carried away has to come back
        // first, and for that the devices must have let go of it.
        let carries = self.backend.carries();
        if !carries {
            self.end_service();
        }
        let mut turn = 0;
        while self.operations.load(Ordering::SeqCst) != 0 {
            turn += 1;
            relax(turn);
        }
        for owner in (1..=OwnerId::MAX).filter_map(OwnerId::new) {
            let slot = self.slot(owner);
            let claimed = slot.claimed();
            slot.stop();
            // A device that never claimed anything has nothing to let go of.
            if !slot.device.load(Ordering::SeqCst).is_null()
                && let Some(claimed) = claimed
                && claimed.iter().any(|page| self.word(page).owner() == Some(owner))
            {
                invalidate(self, owner, claimed, Cause::Release, Origin::default(), Who::Nobody);
            }
        }
        if carries {
            self.end_service();
        }
    }

    /// Touches trap no more.
    fn end_service(&self) {
        if self.backend.carries() {
            // Its threads serve until the last page is home.
            self.backend.close();
        }
        if self.backend.kind() != BackendKind::Sim {
            registry::close(self);
        }
        if !self.backend.carries() {
            self.backend.close();
        }
    }

    /// Wakes whoever sleeps on a word of the region: all who do sleep on a page that some device may have.
    fn wake_sleepers(&self) {
        // Between `closing` and the words: see `has_begun_to_close`.
        fence(Ordering::SeqCst);
        for slot in &self.slots {
            let high = slot.high.load(Ordering::SeqCst).min(self.pages);
            for page in (slot.low.load(Ordering::SeqCst)..high).map(PageIndex) {
                if self.word(page).sleepers() {
                    // By changing the word: one who is just about to sleep would not be woken.
                    self.update(page, hold::wake);
                }
            }
        }
    }

    pub(crate) fn detach(&self, device: OwnerId) {
        // A view that could not be made was never attached, and is dropped under the lock.
        if self.slot(device).device.load(Ordering::SeqCst).is_null() {
            return self.close_view(device);
        }
        let _attaching = self.attaching.lock().expect("attaching does not panic");
        if let Some(claimed) = self.slot(device).claimed() {
            // Pages that a claim gave up half way are the CPU's, and still there.
            bring_home(self, claimed, Some(device));
        }
        self.close_view(device);
        self.slot(device).device.store(null_mut(), Ordering::SeqCst);
    }

    /// The view of `device` is about to be unmapped.
    fn close_view(&self, device: OwnerId) {
        self.backend.close_view(device);
        if self.backend.carries() {
            registry::remove_view(self, device);
        }
    }
}
