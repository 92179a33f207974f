//! Jobs: what was submitted, and what became of it.

use core::time::Duration;
use std::sync::Arc;

use pagelease_protocol::PageIndex;
use pagelease_sys::fork;

use super::Lanes;
use crate::device::DeviceHandle;
use crate::error::{ClaimError, DeviceLost};
use crate::sync::{Deadline, Mutex, Word};

/// How often a waiting [`Job::wait`] looks whether the device has been lost: nobody can wake it from a signal handler.
const LOSS_POLL: Duration = if cfg!(pagelease_shuttle) { Duration::MAX } else { Duration::from_millis(20) };

/// One application of an operation: to a page, with an argument.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Item {
    /// The page.
    pub page: PageIndex,
    /// Handed to the operation.
    pub argument: u64,
}

impl Item {
    /// An operation on the region's page number `page`.
    #[must_use]
    pub const fn new(page: u32, argument: u64) -> Self {
        Self { page: PageIndex(page), argument }
    }
}

/// Why a job did not finish. What it has done so far is done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JobError {
    /// A page could not be claimed.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The device was lost.
    #[error(transparent)]
    Lost(#[from] DeviceLost),
    /// Waited for in a child of fork.
    #[error("this process is a forked child: the workers are its parent's")]
    Forked,
}

/// Work that was submitted. Dropping it does not cancel the work.
#[must_use = "a job may fail: wait for it"]
pub struct Job {
    pub(super) state: Arc<JobState>,
    pub(super) device: DeviceHandle<Lanes>,
}

pub(super) struct JobState {
    /// Workers that have not finished their part.
    pending: Word,
    failure: Mutex<Option<JobError>>,
}

impl JobState {
    pub(super) fn new(workers: u32) -> Self {
        Self { pending: Word::new(workers), failure: Mutex::new(None) }
    }

    pub(super) fn finish_part(&self, result: Result<(), JobError>) {
        if let Err(error) = result {
            self.failure.lock().expect("not poisoned").get_or_insert(error);
        }
        let pending = &self.pending;
        loop {
            let current = pending.load();
            if pending.swap_if(current, current - 1).is_ok() {
                break;
            }
        }
        pending.wake_all();
    }
}

impl Job {
    /// Whether it is over, finished or not.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.state.pending.load() == 0 || self.device.lost().is_some()
    }

    /// Waits until every operation has run, or the job has failed. A device lost ends the wait, even while an operation of
    /// it is stuck.
    ///
    /// # Errors
    /// [`JobError`]: the first failure.
    pub fn wait(self) -> Result<(), JobError> {
        let pending = &self.state.pending;
        loop {
            let left = pending.load();
            if left == 0 {
                break;
            }
            if let Some(lost) = self.device.lost() {
                return Err(lost.into());
            }
            if fork::in_child() {
                return Err(JobError::Forked);
            }
            pending.wait(left, Deadline::after(LOSS_POLL));
        }
        self.state.failure.lock().expect("not poisoned").take().map_or(Ok(()), Err)
    }
}
