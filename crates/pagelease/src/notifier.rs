//! [`Notifier`]: a driver's own subscription to a range.
//!
//! A claim has one of its own; this is for drivers that map outside a claim what they have read before: begin, read, take
//! the lock that `Device::invalidate` takes, ask, map.

use pagelease_protocol::{PageRange, Seq};
use pagelease_sys::fork;

use crate::error::ClaimError;
use crate::records::{Opening, RECORDS, Record};
use crate::shared::Shared;
use crate::sync::tid;
use crate::view::ViewCore;

/// A subscription of a device to the invalidations of a range; ended by dropping it.
pub struct Notifier {
    view: Shared<ViewCore>,
    record: u16,
}

impl Notifier {
    pub(crate) fn new(view: &Shared<ViewCore>, pages: PageRange) -> Result<Self, ClaimError> {
        if fork::in_child() {
            return Err(ClaimError::Forked { pages });
        }
        if pages.end() > view.region.pages {
            return Err(ClaimError::OutOfRange { pages, region_pages: view.region.pages });
        }
        let _operation = view.region.enter().ok_or(ClaimError::RegionGone { pages })?;
        let opening =
            Opening { thread: tid(), region: view.region.id.0, owner: view.device.id, range: pages, token: None };
        let record =
            view.region.space.records.open(opening).ok_or(ClaimError::TooManyLeases { pages, limit: RECORDS })?;
        Ok(Self { record: record.id(), view: view.clone() })
    }

    fn record(&self) -> Record<'_> {
        self.view.region.space.records.get(self.record).expect("opened in `new`, closed in `drop`")
    }

    /// The sequence number to act by. Waits while an invalidation of the range runs; not for signal handlers.
    #[must_use]
    pub fn read_begin(&self) -> Seq {
        self.record().read_begin()
    }

    /// Whether an invalidation that concerns the device and the range has begun since `seq`: what was read may be stale.
    /// To be asked under the lock that the device's `invalidate` takes. Any thread, signal handlers too.
    #[must_use]
    pub fn read_retry(&self, seq: Seq) -> bool {
        self.record().read_retry(seq)
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        if !fork::in_child() {
            self.record().close();
        }
    }
}
