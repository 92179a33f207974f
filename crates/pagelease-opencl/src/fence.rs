//! [`Fence`]: the end of a submission, as the driver's event tells it.
//!
//! OpenCL can wait for an event without a limit, or ask for its status; so the end comes by a callback, into a cell that any
//! number of threads wait on. A driver that lost the callback is asked when a wait has run out.
//!
//! Invariant: the buffers and views that a submission works on stay until its event has ended: the fence keeps them, and the runtime
//! drops no fence before that.

use core::ffi::c_void;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use opencl3::event::{CL_COMPLETE, Event, cl_event};
use opencl3::types::cl_int;

use crate::buffers::Part;
use crate::error::DriverError;
use crate::ours::Ours;

/// The end of a submission.
pub struct Fence {
    event: Ours<Event>,
    ended: Arc<Ended>,
    _keeps: Vec<Part>,
}

#[derive(Default)]
struct Ended {
    status: Mutex<Option<cl_int>>,
    changed: Condvar,
}

impl Ended {
    fn set(&self, status: cl_int) {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
        self.changed.notify_all();
    }

    fn wait(&self, limit: Duration) -> Option<cl_int> {
        let status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(status, limit, |status| status.is_none());
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// The driver calls it once, from a thread of its own, or from the one that registers it.
extern "C" fn on_end(_event: cl_event, status: cl_int, ended: *mut c_void) {
    // SAFETY: what `Fence::new` gave away for this one call.
    let ended = unsafe { Arc::from_raw(ended.cast_const().cast::<Ended>()) };
    ended.set(status);
}

impl Fence {
    /// The end of `event`, behind which nothing of the submission is left; it has been enqueued, and works on `keeps`.
    pub(crate) fn new(event: Event, keeps: Vec<Part>) -> Self {
        let ended = Arc::new(Ended::default());
        let given = Arc::into_raw(ended.clone());
        if event.set_callback(CL_COMPLETE, on_end, given.cast_mut().cast()).is_err() {
            // SAFETY: the driver did not take it.
            drop(unsafe { Arc::from_raw(given) });
            // Without a callback there is only waiting, here and now; how it ended is asked for by the first `wait`.
            let _ = event.wait();
        }
        Self { event: Ours::new(event), ended, _keeps: keeps }
    }

    /// Whether it has ended well, after waiting for it at most `limit`.
    pub(crate) fn wait(&self, limit: Duration) -> Result<bool, DriverError> {
        match self.ended.wait(limit).or_else(|| self.ask()) {
            None => Ok(false),
            Some(CL_COMPLETE) => Ok(true),
            Some(code) => Err(DriverError::new("the submission", code)),
        }
    }

    /// The status, if it is a last one. A driver that cannot say counts as one that has not ended: what runs must not be let go of.
    fn ask(&self) -> Option<cl_int> {
        let status = self.event.command_execution_status().ok()?.0;
        if status > CL_COMPLETE {
            return None;
        }
        self.ended.set(status);
        Some(status)
    }
}
