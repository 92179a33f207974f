//! One-rule mutants of the engine, for the test that proves the other tests have teeth.
//!
//! In an ordinary build no mutant exists and [`active`] is a constant. Under `--cfg pagelease_shuttle` a test breaks one
//! rule at a time and shows that the explored schedules catch it.

/// A rule of the protocol that can be broken.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
#[repr(u8)]
#[cfg_attr(not(pagelease_shuttle), expect(unreachable_pub, reason = "public where a mutant can be activated"))]
pub enum Mutant {
    /// A claim commits without looking whether an invalidation came in between.
    SkipReadRetry = 1,
    /// A touch is woken, and its page word says `Cpu`, before the page is mapped.
    WakeBeforeMap,
    /// An invalidation does not wait for operations in flight.
    SkipDrain,
    /// A touch maps the page before the device is told to let go.
    RestoreBeforeInvalidate,
    /// A claim releases `busy` before the word says whose the page is.
    ReleaseBeforeWord,
    /// The end of a hold does not look whether it had been broken.
    SkipGeneration,
    /// A claim revokes pages that may not exist.
    SkipPopulate,
    /// A claim ignores what its own thread raised, instead of what carries its token.
    FilterByThread,
    /// A claim takes a page that a CPU touch waits for.
    ClaimPastWaiter,
    /// A submission is handed to the driver without a look whether its pages are still held.
    SkipFlightCheck,
    /// A submission's pages are let go of before the driver says that it has ended.
    LandEarly,
}

#[cfg(not(pagelease_shuttle))]
pub(crate) const fn active(_mutant: Mutant) -> bool {
    false
}

#[cfg(pagelease_shuttle)]
static ACTIVE: core::sync::atomic::AtomicU8 = core::sync::atomic::AtomicU8::new(0);

#[cfg(pagelease_shuttle)]
pub(crate) fn active(mutant: Mutant) -> bool {
    ACTIVE.load(core::sync::atomic::Ordering::Relaxed) == mutant as u8
}

/// Breaks one rule, process-wide, from now on; `None` mends it.
#[cfg(pagelease_shuttle)]
pub fn activate(mutant: Option<Mutant>) {
    ACTIVE.store(mutant.map_or(0, |mutant| mutant as u8), core::sync::atomic::Ordering::Relaxed);
}

#[cfg(not(pagelease_shuttle))]
mod breaking {
    use pagelease_protocol::claim::ClaimStep;
    use pagelease_protocol::{Access, OwnerId, PageIndex, PageWord};

    use crate::region::RegionCore;

    pub(crate) fn claim_past_waiter(_word: PageWord, _device: OwnerId, _access: Access) -> ClaimStep {
        unreachable!("no mutant in this build")
    }

    pub(crate) fn release_before_word(_region: &RegionCore, _page: PageIndex, _word: PageWord, _next: PageWord) {
        unreachable!("no mutant in this build")
    }
}

#[cfg(pagelease_shuttle)]
mod breaking {
    use pagelease_protocol::claim::{self, ClaimStep};
    use pagelease_protocol::{Access, OwnerId, PageIndex, PageWord};

    use crate::region::RegionCore;

    const BUSY: u32 = 1;
    const WAITERS: u32 = 2;

    pub(crate) fn claim_past_waiter(word: PageWord, device: OwnerId, access: Access) -> ClaimStep {
        let still_waiting = |next: PageWord| PageWord::from_bits(next.bits() | WAITERS);
        match claim::step(PageWord::from_bits(word.bits() & !WAITERS), device, access) {
            ClaimStep::Join(next) => ClaimStep::Join(still_waiting(next)),
            ClaimStep::Take(next) => ClaimStep::Take(still_waiting(next)),
            ClaimStep::Wait(obstacle) => ClaimStep::Wait(obstacle),
        }
    }

    pub(crate) fn release_before_word(region: &RegionCore, page: PageIndex, word: PageWord, next: PageWord) {
        if !region.swap(page, word, PageWord::from_bits(word.bits() & 0xffff & !BUSY)) {
            return release_before_word(region, page, region.word(page), next);
        }
        while !region.swap(page, region.word(page), next) {}
    }
}

pub(crate) use breaking::{claim_past_waiter, release_before_word};
