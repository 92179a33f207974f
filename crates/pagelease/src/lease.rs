//! [`Lease`]: what a claim returns. While it lives, its pages are held.
//!
//! A hold is for forward progress: a CPU touch waits for it, at most the hold limit, and then breaks it. Dropping the lease
//! ends the hold, not the exclusivity: with [`RestorePolicy::Lazy`] the pages stay with the device until somebody needs
//! them, with [`RestorePolicy::Eager`] they go back to the CPU at once, with [`RestorePolicy::Adaptive`] those do that the CPU
//! is expected to touch before the device uses them again.
//!
//! A lease is a chain of records (see `records`); each says what generation each page had when the hold began.

use pagelease_protocol::hold::{self, Release};
use pagelease_protocol::{OwnerId, PageIndex, PageRange, PageWord};
use pagelease_sys::fork;

use crate::alike::Alike;
use crate::error::LeaseBroken;
use crate::mutant::{self, Mutant};
use crate::records::{Entry, Phase, Record};
use crate::region::RegionCore;
use crate::restore::{self, Of};
use crate::shared::Shared;
use crate::space::RestorePolicy;
use crate::sync::{now_ns, relax};
use crate::view::ViewCore;

/// Pages that a device holds. See the module.
///
/// A thread that claims a page which it holds already, while a touch waits for that page, waits for itself until the hold
/// limit passes: a claim never goes before a waiting touch. End the lease first.
///
/// It may be sent to another thread and dropped there. The thread that claimed is known: its own touch of a page it holds
/// ends that hold at once instead of waiting for itself.
#[must_use = "dropping a lease ends its hold"]
pub struct Lease {
    view: Shared<ViewCore>,
    pages: PageRange,
    /// The record claimed last, which chains to the others; 0 for none.
    last: u16,
}

impl Lease {
    pub(crate) fn new(view: Shared<ViewCore>, pages: PageRange) -> Self {
        Self { view, pages, last: 0 }
    }

    pub(crate) fn push(&mut self, record: Record<'_>) {
        record.set_next(self.last);
        self.last = record.id();
    }

    /// What was claimed: from the first page to the last.
    #[must_use]
    pub fn pages(&self) -> PageRange {
        self.pages
    }

    /// Whether every page is still held. Takes no lock; any thread.
    ///
    /// # Errors
    /// [`LeaseBroken`]: the hold limit passed while a touch waited, or the holder touched a page itself, or the device was
    /// lost. What the device did to a lost page before it was taken is kept; what it does now is not exclusive.
    pub fn check(&self) -> Result<(), LeaseBroken> {
        let region = &self.view.region;
        let owner = self.view.device.id;
        self.broken(|entry| hold::is_live(region.word(entry.page), owner, entry.generation))
    }

    /// Ends the hold, and says whether it was whole to the end. (Dropping the lease does the same and says nothing.)
    ///
    /// # Errors
    /// As [`Lease::check`].
    pub fn end(mut self) -> Result<(), LeaseBroken> {
        self.finish(self.policy())
    }

    /// The claim has failed half way: what it got goes back to the CPU.
    pub(crate) fn give_back(mut self) {
        // Whether some of it had been lost already is of no interest.
        let _ = self.finish(RestorePolicy::Eager);
    }

    fn policy(&self) -> RestorePolicy {
        self.view.region.space.config.restore
    }

    fn records(&self) -> impl Iterator<Item = Record<'_>> {
        let records = &self.view.region.space.records;
        let mut next = self.last;
        core::iter::from_fn(move || {
            let record = records.get(next)?;
            next = record.next();
            Some(record)
        })
    }

    fn broken(&self, mut live: impl FnMut(Entry) -> bool) -> Result<(), LeaseBroken> {
        let mut broken: Option<LeaseBroken> = None;
        for record in self.records() {
            for entry in record.entries() {
                if !live(entry) {
                    let found = broken.get_or_insert(LeaseBroken { pages: self.pages, first: entry.page, lost: 0 });
                    found.first = found.first.min(entry.page);
                    found.lost += 1;
                }
            }
        }
        broken.map_or(Ok(()), Err)
    }

    fn finish(&mut self, policy: RestorePolicy) -> Result<(), LeaseBroken> {
        if self.last == 0 || fork::in_child() {
            self.last = 0;
            return Ok(());
        }
        let region = &*self.view.region;
        let owner = self.view.device.id;
        let operation = region.enter();
        let mut alike = Alike::default();
        let result = self.broken(|entry| end_hold(region, owner, entry, &mut alike));
        let chosen: Option<fn(&RegionCore, PageIndex) -> bool> = match policy {
            RestorePolicy::Lazy => None,
            RestorePolicy::Eager => Some(|_, _| true),
            RestorePolicy::Adaptive => Some(RegionCore::gives_back),
        };
        if let Some(chosen) = chosen.filter(|_| operation.is_some()) {
            self.records().for_each(|record| record.set_phase(Phase::Ended));
            self.records().for_each(|record| restore::at_end(region, owner, record, chosen));
        }
        let mut next = self.last;
        while let Some(record) = region.space.records.get(next) {
            next = record.next();
            record.close();
        }
        self.last = 0;
        result
    }
}

impl core::fmt::Debug for Lease {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Lease").field("pages", &self.pages).finish_non_exhaustive()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Whoever wants to know whether it was whole calls `end`.
        let _ = self.finish(self.policy());
    }
}

impl RegionCore {
    /// Whether an adaptive lease gives `page` back. Not one that is fought over: its device has it for a minimum.
    fn gives_back(&self, page: PageIndex) -> bool {
        let fought_over = || self.thrash.is_watched() && self.thrash.minimum_ns(page, now_ns()) > 0;
        self.history.ended(page) && !fought_over()
    }
}

/// Ends one hold on the page of `entry`; whether it was live. Hands the page to a touch that waits for it. `alike`: what became
/// of the page before.
#[inline]
pub(crate) fn end_hold(region: &RegionCore, owner: OwnerId, entry: Entry, alike: &mut Alike) -> bool {
    alike.again(&region.words[entry.page.as_usize()], entry.generation) || end_hold_of(region, owner, entry, alike)
}

#[inline(never)]
fn end_hold_of(region: &RegionCore, owner: OwnerId, entry: Entry, alike: &mut Alike) -> bool {
    let mut turn = 0;
    loop {
        let word = region.word(entry.page);
        let generation = if mutant::active(Mutant::SkipGeneration) { word.generation() } else { entry.generation };
        match hold::release(word, owner, generation) {
            Release::Broken => return false,
            Release::Wait => {
                turn += 1;
                relax(turn);
            }
            Release::Ended(next) => {
                if region.swap(entry.page, word, next) {
                    region.settle(entry.page, word, next);
                    alike.note(generation, word, next);
                    return true;
                }
            }
        }
    }
}

/// Whether `word` is one that the end of a lease of `owner` may give back: nobody else holds it.
pub(crate) fn is_idle(word: PageWord, owner: OwnerId) -> bool {
    Of::Device(owner).includes(word) && !word.held() && !word.busy()
}
