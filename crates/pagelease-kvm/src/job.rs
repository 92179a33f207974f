//! [`Kernel`] and [`Job`]: code that was loaded, and what became of its runs.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use pagelease_sys::fork;

use crate::block::{Block, Put};
use crate::device::Attachment;
use crate::engine::{Core, Engine, is_set};
use crate::error::JobError;

/// How often a waiting [`Job::wait`] looks whether this is a forked child.
const CHILD_POLL: Duration = Duration::from_millis(100);

/// What was put into the block, and goes when nobody uses it any more.
pub(crate) struct Loaded {
    put: Put,
    block: Arc<Block>,
}

impl Loaded {
    pub(crate) fn new(put: Put, block: Arc<Block>) -> Self {
        Self { put, block }
    }

    fn address(&self) -> u64 {
        self.block.address(self.put.offset)
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        self.block.take_back(&self.put);
    }
}

/// Machine code that was loaded on a device. Cloning gives another handle of the same.
#[derive(Clone)]
pub struct Kernel {
    pub(crate) code: Arc<Loaded>,
    pub(crate) engine: Arc<Engine>,
}

impl Kernel {
    /// Where its first byte is, for the guest and for messages.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.code.address()
    }
}

/// A kernel's run, as a job's threads and its owner see it.
pub(crate) struct JobState {
    code: Arc<Loaded>,
    argument: Loaded,
    lanes: u32,
    cancelled: AtomicBool,
    /// The vCPUs that run it, a bit each.
    on: AtomicU64,
    progress: Mutex<Progress>,
    changed: Condvar,
}

struct Progress {
    /// What was attached when it was submitted stays so until it is over.
    attached: Vec<Arc<Attachment>>,
    pending: u32,
    results: Vec<u64>,
    failure: Option<JobError>,
}

impl JobState {
    pub(crate) fn new(code: Arc<Loaded>, argument: Loaded, attached: Vec<Arc<Attachment>>, lanes: u32) -> Self {
        let progress = Progress { attached, pending: lanes, results: vec![0; lanes as usize], failure: None };
        Self {
            code,
            argument,
            lanes,
            cancelled: AtomicBool::new(false),
            on: AtomicU64::new(0),
            progress: Mutex::new(progress),
            changed: Condvar::new(),
        }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cancel(&self, core: &Core) {
        self.cancelled.store(true, Ordering::SeqCst);
        let on = self.on.load(Ordering::SeqCst);
        for (_, kick) in core.handle.vcpus.iter().enumerate().filter(|(index, _)| on >> index & 1 == 1) {
            if let Some(kick) = kick.get() {
                kick.leave();
            }
        }
    }
}

/// One lane of a job, in the queue and on a vCPU.
pub(crate) struct Task {
    pub(crate) job: Arc<JobState>,
    pub(crate) lane: u32,
}

impl Task {
    pub(crate) fn entry(&self) -> u64 {
        self.job.code.address()
    }

    pub(crate) fn arguments(&self) -> [u64; 3] {
        [self.job.argument.address(), self.lane.into(), self.job.lanes.into()]
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        is_set(&self.job.cancelled)
    }

    /// It runs on `vcpu`: from now on, cancelling makes that leave the guest.
    pub(crate) fn begin(&self, vcpu: usize) {
        self.job.on.fetch_or(1 << vcpu, Ordering::SeqCst);
    }

    pub(crate) fn end(&self, vcpu: usize) {
        self.job.on.fetch_and(!(1 << vcpu), Ordering::SeqCst);
    }

    pub(crate) fn finish(self, result: Result<u64, JobError>) {
        let mut progress = self.job.progress();
        match result {
            Ok(value) => progress.results[self.lane as usize] = value,
            Err(error) => {
                // Lanes that have not begun are not begun.
                self.job.cancelled.store(true, Ordering::SeqCst);
                progress.failure.get_or_insert(error);
            }
        }
        if progress.pending == 1 {
            // Before anybody learns that it is over, and without the lock: it may detach regions.
            let attached = std::mem::take(&mut progress.attached);
            drop(progress);
            drop(attached);
            progress = self.job.progress();
        }
        progress.pending -= 1;
        if progress.pending == 0 {
            self.job.changed.notify_all();
        }
    }
}

/// Work that was submitted. Dropping it does not cancel the work.
#[must_use = "a job may fail: wait for it"]
pub struct Job {
    pub(crate) state: Arc<JobState>,
    pub(crate) engine: Arc<Engine>,
}

impl Job {
    /// Whether every lane of it is over, finished or not.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.state.progress().pending == 0
    }

    /// Stops it: lanes that run are taken off their vCPUs wherever they are, lanes that wait are not begun. Returns at once;
    /// [`Job::wait`] says [`JobError::Cancelled`], or what came first. Any thread.
    pub fn cancel(&self) {
        if !fork::in_child() {
            self.state.cancel(&self.engine.core);
        }
    }

    /// Waits until every lane is over; what each returned.
    ///
    /// # Errors
    /// [`JobError`]: the first failure. Lanes that had begun have run to their end all the same.
    pub fn wait(self) -> Result<Vec<u64>, JobError> {
        let mut progress = self.state.progress();
        while progress.pending != 0 {
            if fork::in_child() {
                return Err(JobError::Forked);
            }
            let waited = self.state.changed.wait_timeout(progress, CHILD_POLL);
            progress = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        match progress.failure.take() {
            Some(failure) => Err(failure),
            None => Ok(std::mem::take(&mut progress.results)),
        }
    }
}
