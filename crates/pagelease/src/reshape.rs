//! What the program does to its own mapping of a region through the region: `protect`, `unmap`, `remap`.
//!
//! The kernel reports such calls for adopted memory only ([`layout`](crate::layout)); memory that the runtime made raises no
//! events. So these do what the system call does, and take the devices along: **when one returns, its guarantee holds.**
//!
//! The order is the same in each: no new claim may have the pages (`rights`); those that devices have come back, for which a
//! hold is waited at most its limit; then the mapping changes.

use core::ptr::NonNull;
use core::time::Duration;

use pagelease_protocol::{Cause, PageRange};
use pagelease_sys::mem::{self, Mapping, Protection};
use pagelease_sys::{Errno, Span, fork};

use crate::adopted::HUGE;
use crate::backend::BackendKind;
use crate::error::ReshapeError;
use crate::region::{Region, RegionCore};
use crate::registry;
use crate::restore::{Of, Patience, bring_back};
use crate::sync::{Deadline, MutexGuard, relax};

impl Region {
    /// Changes what the program may do with `pages` (`mprotect` on the CPU view). While it may not write them, no device gets
    /// them: a claim is refused ([`ClaimError::Protected`](crate::ClaimError::Protected)). Those that a device has come back
    /// first, with all that it has written; a lease of them is waited for as a touch would, and broken at the hold limit.
    ///
    /// # Errors
    /// [`ReshapeError`]. With [`BackendKind::Mprotect`] the protection of the pages is the runtime's own tool: `Unsupported`.
    pub fn protect(&self, pages: PageRange, protection: Protection) -> Result<(), ReshapeError> {
        let (region, _alone) = self.enter_to_reshape(pages)?;
        if region.backend.kind() == BackendKind::Mprotect {
            let remedy = "use another backend, or keep the program from writing by other means";
            return Err(ReshapeError::Unsupported { what: "protecting pages", remedy });
        }
        region.rights.protect(pages, protection);
        if protection != Protection::ReadWrite {
            bring_back(region, pages, Of::Any, Cause::ProtectionVma, Patience::HoldLimit);
        }
        let changed = region.places(pages).try_for_each(|span| {
            // SAFETY: the CPU view is the region's; whoever it is taken from asked for it.
            unsafe { mem::protect(span, protection) }
        });
        region.rights.look_again();
        changed.map_err(|errno| ReshapeError::System { pages, what: "mprotect", errno })
    }

    /// Gives `pages` up, for good: unmaps them from the CPU view, and takes their contents from the devices. Memory that the
    /// runtime made is freed; a file keeps its contents.
    ///
    /// # Safety
    /// Nobody uses their addresses any more: not through [`Region::words`] or [`Region::as_ptr`] either, which still name them.
    ///
    /// # Errors
    /// [`ReshapeError`].
    pub unsafe fn unmap(&self, pages: PageRange) -> Result<(), ReshapeError> {
        let (region, _alone) = self.enter_to_reshape(pages)?;
        let failed = |(what, errno)| match errno {
            Errno::OPNOTSUPP => ReshapeError::Unsupported { what: "unmapping pages", remedy: "drop the region" },
            errno => ReshapeError::System { pages, what, errno },
        };
        region.rights.unmap(pages);
        bring_back(region, pages, Of::Any, Cause::Unmap, Patience::HoldLimit);
        if let Some(moved) = region.moved() {
            for span in region.places(pages) {
                // SAFETY: passed on to the caller.
                unsafe { mem::unmap(span) }.map_err(|errno| failed(("munmap", errno)))?;
            }
            return region.wait_for_event(pages, || moved.is_gone(pages));
        }
        for span in region.places(pages) {
            registry::cut(region, span.start(), span.end());
        }
        // SAFETY: passed on to the caller.
        unsafe { region.backend.unmap(pages) }.map_err(failed)
    }

    /// Moves the CPU view of the whole region to `to` (where whatever is mapped is replaced), or to where there is room: its
    /// contents and what devices have of it stay as they are. Returns the new place.
    ///
    /// # Safety
    /// Nobody uses the old addresses any more, through [`Region::words`] and the like either; `to` is the caller's.
    ///
    /// # Errors
    /// [`ReshapeError`]. `Unsupported` with [`BackendKind::Mprotect`], and where the region is in several pieces.
    pub unsafe fn remap(&self, to: Option<NonNull<u8>>) -> Result<NonNull<[u8]>, ReshapeError> {
        let pages = self.pages();
        let (region, _alone) = self.enter_to_reshape(pages)?;
        let remedy = "make a new region, and copy";
        let unsupported = ReshapeError::Unsupported { what: "moving the CPU view", remedy };
        let to = to.map(|to| to.as_ptr().expose_provenance());
        let failed = |(what, errno)| match errno {
            Errno::OPNOTSUPP => ReshapeError::Unsupported { what: "moving the CPU view", remedy },
            errno => ReshapeError::System { pages, what, errno },
        };
        let place = if let Some(moved) = region.moved() {
            let mut places = region.places(pages);
            let (Some(old), None) = (places.next(), places.next()) else { return Err(unsupported) };
            drop(places);
            // Without a place the kernel would leave it where it is; one aligned alike keeps huge pages whole.
            let room = || Mapping::anonymous_like(old.len(), old.start(), HUGE).map(|room| room.into_span().start());
            let to = to.map_or_else(room, Ok).map_err(|errno| failed(("mmap", errno)))?;
            // SAFETY: passed on to the caller; or the place is ours.
            let new = unsafe { mem::remap(old, Some(to), false) }.map_err(|errno| failed(("mremap", errno)))?;
            region.wait_for_event(pages, || moved.is_at(pages, new))?;
            Span::new(new, old.len())
        } else {
            let old = region.backend.span();
            // SAFETY: passed on to the caller.
            let new = unsafe { region.backend.move_to(to) }.map_err(failed)?;
            // Known at the new place before anybody is told of it.
            let first = pagelease_protocol::PageIndex(0);
            if registry::insert(region, new, first, None).is_none() {
                return Err(unsupported);
            }
            registry::cut(region, old.start(), old.end());
            region.wait_until_nobody_is_busy();
            region.backend.moved_away();
            Some(new)
        };
        let place = place.and_then(|place| Some((NonNull::new(place.as_ptr())?, place.len())));
        let (start, len) = place.ok_or(ReshapeError::System { pages, what: "mremap", errno: Errno::INVAL })?;
        Ok(NonNull::slice_from_raw_parts(start, len))
    }

    /// The region, and the right to change it, which one thread has at a time.
    fn enter_to_reshape(&self, pages: PageRange) -> Result<(&RegionCore, MutexGuard<'_, ()>), ReshapeError> {
        let region = &**self.core();
        if fork::in_child() {
            return Err(ReshapeError::Forked);
        }
        if pages.end() > region.pages {
            return Err(ReshapeError::OutOfRange { pages, region_pages: region.pages });
        }
        let alone = region.reshaping.lock().expect("reshaping does not panic");
        if region.rights.any_gone(pages) {
            return Err(ReshapeError::Unmapped { pages });
        }
        if region.backend.kind() == BackendKind::Sim {
            let remedy = "use a region of real memory";
            return Err(ReshapeError::Unsupported { what: "changing the mapping of simulated memory", remedy });
        }
        Ok((region, alone))
    }
}

impl RegionCore {
    /// Where the CPU view has `pages`: in one piece, but for adopted memory that the program has moved parts of.
    fn places(&self, pages: PageRange) -> impl Iterator<Item = Span> {
        let mut rest = Some(pages);
        core::iter::from_fn(move || {
            loop {
                let next = rest?;
                let (run, place) = match self.moved() {
                    Some(moved) => moved.place(next),
                    None => (next, self.span_of(next)),
                };
                rest = PageRange::new(run.end(), pages.end());
                if place.is_some() {
                    return place;
                }
            }
        })
    }

    /// The program's call has been made, and its event been read; waits until it has been dealt with.
    fn wait_for_event(&self, pages: PageRange, dealt_with: impl Fn() -> bool) -> Result<(), ReshapeError> {
        let limit = self.space.config.drain_limit.saturating_add(Duration::from_secs(1));
        let deadline = Deadline::after(limit);
        let mut turn = 0;
        while !dealt_with() {
            if deadline.passed() {
                return Err(ReshapeError::NotNoticed { pages });
            }
            turn += 1;
            relax(turn);
        }
        Ok(())
    }

    /// Waits until whoever has had a page busy when this began has let go of it.
    fn wait_until_nobody_is_busy(&self) {
        for page in self.all().iter() {
            let mut turn = 0;
            while self.word(page).busy() && !self.is_closing() {
                turn += 1;
                relax(turn);
            }
        }
    }
}
