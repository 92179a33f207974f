//! Submitting devices: a driver's queue takes whole pieces of work, and says by a fence when one has ended.
//!
//! A GPU behind Vulkan or OpenCL cannot be asked to fault on a page. So what a submission uses is claimed before it is
//! handed to the driver, is held until its fence signals, and is let go by the space's [`RestorePolicy`]. Nobody calls map
//! or unmap: a touch of a page in use waits for the fence, and any other takes the page back at once.
//!
//! ```text
//!   submit (the program's thread)                invalidation (the pages' words are busy, or the device is barred)
//!     claim what it uses
//!     publish it in the table of flights           (a fence)
//!     (a fence)                                    for each flight that has one of the pages: wait until it has landed
//!     are all pages still held?
//!       no: withdraw, start again
//!     hand it to the driver's queue
//!   land (whoever sees the driver's fence first: the reaper, or a thread in `Submission::wait`)
//!     withdraw it from the table, end its leases, tell who waits
//! ```
//!
//! Either the invalidation finds the published flight and waits, or the submission finds that its hold is broken. A hold that
//! is broken later (the hold limit) changes nothing: the flight is waited for all the same, up to the drain limit.
//!
//! | file | what it has |
//! |---|---|
//! | `flights` | the device proper: the pages in use, and how an invalidation waits for them |
//! | `landing` | how a submission ends, and the thread that sees to it |
//!
//! Locks: that of the flights' table, that of the reaper's list, that of a flight's outcome; none is taken under another, none
//! by the fault path, and signals are blocked while one is held.
//!
//! [`RestorePolicy`]: crate::RestorePolicy

use core::time::Duration;

use pagelease_protocol::{Access, PageRange};
use pagelease_sys::fork;

use crate::device::DeviceHandle;
use crate::error::{AttachError, ClaimError, DeviceLost, SpaceError};
use crate::lease::Lease;
use crate::mutant::{self, Mutant};
use crate::region::Region;
use crate::space::Space;
use crate::sync::{Ordering, block_signals, fence};
use crate::view::View;

mod flights;
mod landing;

pub use flights::Flights;
pub use landing::Submission;

use flights::Boarding;
use landing::Reaper;

/// A driver's queue: what the runtime needs of it.
///
/// Its functions are called from the threads that submit or wait and from the reaper, never from a fault handler or a signal
/// handler; they may allocate and take the driver's locks. They must not touch the CPU view of a managed region, nor claim.
pub trait Queue: Send + Sync + 'static {
    /// What one submission signals when it has ended. It owns what the submission needs until then (command buffers,
    /// descriptors), and is dropped only afterwards.
    type Fence: Send + Sync + 'static;

    /// What can go wrong in the driver.
    type Error: std::error::Error + Send + Sync + 'static;

    /// What messages call the device.
    fn name(&self) -> &str;

    /// Waits until the submission has ended, at most `limit`; `false`: it has not yet. Several threads may wait for one fence.
    ///
    /// # Errors
    /// Nothing of the submission runs any more, or ever will, and its work is undefined: the device is lost.
    fn wait(&self, fence: &Self::Fence, limit: Duration) -> Result<bool, Self::Error>;
}

/// Pages that a submission uses.
#[derive(Copy, Clone)]
pub struct Use<'a> {
    /// The device's view of their region.
    pub view: &'a View,
    /// Which.
    pub pages: PageRange,
}

/// A submission did not get under way. Nothing of it runs, and nothing stays held.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError<E> {
    /// A page could not be claimed.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The device was lost.
    #[error(transparent)]
    Lost(#[from] DeviceLost),
    /// A view is another device's.
    #[error("{pages}: the view is of another device; use the one that this device's attach returned")]
    ForeignView {
        /// What was to be used.
        pages: PageRange,
    },
    /// More ranges than the table of pages in use has places.
    #[error(
        "{ranges} separate ranges in one submission, and {limit} is the most; use larger ranges, or submit in parts"
    )]
    TooManyRanges {
        /// How many, adjacent ones joined.
        ranges: usize,
        /// The limit.
        limit: usize,
    },
    /// The driver refused it.
    #[error(transparent)]
    Queue(E),
    /// Called in a child of fork.
    #[error("this process is a forked child: the device is its parent's")]
    Forked,
}

/// A submission did not end as it should. Its pages are not held any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubmissionError<E> {
    /// The driver lost the device while it ran: what it did is undefined.
    #[error("the driver lost the device: {0}; make a new one")]
    Queue(E),
    /// The device was lost; the submission may still run, and its late stores land nowhere that matters.
    #[error(transparent)]
    Lost(#[from] DeviceLost),
    /// Waited for in a child of fork.
    #[error("this process is a forked child: the device is its parent's")]
    Forked,
}

/// A submitting device over a driver's queue. Dropping it waits for what was submitted, however long that takes, unless the
/// device is lost.
pub struct Submitter<Q: Queue> {
    handle: DeviceHandle<Flights>,
    reaper: Reaper<Q>,
}

impl<Q: Queue> Submitter<Q> {
    /// Registers the device, and starts the thread that sees its submissions end.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(space: &Space, queue: Q) -> Result<Self, StartError> {
        let flights = Flights::new(queue.name()).map_err(SpaceError::Memory)?;
        let handle = space.register(flights)?;
        let reaper = Reaper::start(handle.clone(), queue).map_err(|error| SpaceError::Thread(error.to_string()))?;
        Ok(Self { handle, reaper })
    }

    /// The device as the space knows it.
    #[must_use]
    pub fn handle(&self) -> &DeviceHandle<Flights> {
        &self.handle
    }

    /// The driver's queue.
    #[must_use]
    pub fn queue(&self) -> &Q {
        self.reaper.queue()
    }

    /// Attaches it to a region.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn attach(&self, region: &Region) -> Result<View, AttachError> {
        region.attach(&self.handle)
    }

    /// Claims what `uses` names (in any order; it may overlap), and then has `enqueue` hand the work to the driver. Returns
    /// at once when the driver has taken it; waits before that for what is in the way, as [`View::claim`] does. Any thread; not
    /// a signal handler.
    ///
    /// `enqueue` runs with signals blocked: it must not touch the CPU view of a managed region. If it fails, or panics, the
    /// driver must not have taken anything.
    ///
    /// # Errors
    /// [`SubmitError`].
    pub fn submit(
        &self,
        uses: &[Use<'_>],
        enqueue: impl FnOnce(&Q) -> Result<Q::Fence, Q::Error>,
    ) -> Result<Submission<Q>, SubmitError<Q::Error>> {
        if fork::in_child() {
            return Err(SubmitError::Forked);
        }
        let plan = self.plan(uses)?;
        let (leases, boarding) = loop {
            let leases = plan.iter().map(Need::claim).collect::<Result<Vec<_>, _>>()?;
            let boarding = Boarding::new(&self.handle, &plan)?;
            fence(Ordering::SeqCst);
            if let Some(lost) = self.handle.lost() {
                return Err(lost.into());
            }
            if let Some(gone) = plan.iter().find(|need| need.view.core().is_stopped()) {
                return Err(ClaimError::RegionGone { pages: gone.all() }.into());
            }
            if mutant::active(Mutant::SkipFlightCheck) || leases.iter().all(|lease| lease.check().is_ok()) {
                break (leases, boarding);
            }
        };
        let blocked = block_signals();
        let fence = enqueue(self.queue()).map_err(SubmitError::Queue)?;
        let submission = self.reaper.fly(fence, leases, boarding.take_off());
        drop(blocked);
        Ok(submission)
    }

    /// What is claimed for `uses`: a view once, its ranges ascending and disjoint; and the regions in one order, whoever
    /// submits, so that two submissions do not wait for each other.
    fn plan<'a>(&self, uses: &[Use<'a>]) -> Result<Vec<Need<'a>>, SubmitError<Q::Error>> {
        let mut sorted = uses.to_vec();
        sorted.sort_by_key(|used| (used.view.core().region.id.0, used.pages.start()));
        let mut plan: Vec<Need<'a>> = Vec::new();
        for used in sorted {
            if !used.view.core().device.same(&self.handle.core) {
                return Err(SubmitError::ForeignView { pages: used.pages });
            }
            match plan.last_mut() {
                Some(need) if need.view.core().region.id == used.view.core().region.id => need.add(used.pages),
                _ => plan.push(Need { view: used.view, ranges: vec![used.pages] }),
            }
        }
        let (ranges, limit) = (plan.iter().map(|need| need.ranges.len()).sum(), Flights::LIMIT);
        if ranges > limit {
            return Err(SubmitError::TooManyRanges { ranges, limit });
        }
        Ok(plan)
    }
}

/// A submitting device could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// It could not be registered.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// Its table or its thread could not be made.
    #[error(transparent)]
    Space(#[from] SpaceError),
}

/// What a submission uses of one region: ascending, disjoint, not adjacent.
struct Need<'a> {
    view: &'a View,
    ranges: Vec<PageRange>,
}

impl Need<'_> {
    /// Adds pages that start no earlier than those before.
    fn add(&mut self, pages: PageRange) {
        let last = self.ranges.last_mut().expect("made with one");
        if pages.start() <= last.end() {
            let end = last.end().max(pages.end());
            *last = PageRange::new(last.start(), end).expect("it grows");
        } else {
            self.ranges.push(pages);
        }
    }

    fn claim(&self) -> Result<Lease, ClaimError> {
        self.view.claim_scattered(&self.ranges, Access::Exclusive)
    }

    fn all(&self) -> PageRange {
        let (first, last) = (self.ranges[0], self.ranges[self.ranges.len() - 1]);
        PageRange::new(first.start(), last.end()).expect("they ascend")
    }
}

impl<Q: Queue> core::fmt::Debug for Submitter<Q> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Submitter").field("device", &self.handle.id()).finish_non_exhaustive()
    }
}
