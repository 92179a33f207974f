//! The software device: worker threads that run operations on the pages of their view.
//!
//! The reference for what a faulting device does, and the default where there is no other. A worker looks whether its
//! device has a page, works on it if so, and otherwise claims it and tries again. Its read-modify-write
//! ([`DevicePage::update`]) is **deliberately not atomic**, as on a bus without atomics: a load, a computation, a store. Only
//! exclusivity makes its results right, so that every hole in the protocol loses updates, and shows.
//!
//! Operations are routed to workers by page, so that the device does not race with itself: two operations on one page never
//! run at the same time.
//!
//! | file | what it has |
//! |---|---|
//! | `lanes` | the device proper: what each worker works on, and how an invalidation drains it |
//! | `worker` | the loop of a worker, and its fast path |
//! | `job` | what was submitted, and what became of it |

use std::sync::Arc;

use crate::device::DeviceHandle;
use crate::error::{AttachError, SpaceError};
use crate::region::Region;
use crate::space::Space;
use crate::sync::{AtomicU64, Ordering};
use crate::view::View;

mod job;
mod lanes;
mod worker;

pub use job::{Item, Job, JobError};
pub use lanes::Lanes;

use worker::Crew;

/// An operation on one page, run by a worker.
///
/// It must not touch the CPU view of a managed region, nor submit work and wait for it. If it panics, the device is lost; if
/// it does not return within the space's drain limit while somebody wants the page, too.
pub trait Operation: Send + Sync + 'static {
    /// Runs the operation on `page`, with the argument of its [`Item`].
    fn run(&self, page: &DevicePage<'_>, argument: u64);
}

impl<F: Fn(&DevicePage<'_>, u64) + Send + Sync + 'static> Operation for F {
    fn run(&self, page: &DevicePage<'_>, argument: u64) {
        self(page, argument);
    }
}

impl<O: Operation + ?Sized> Operation for Arc<O> {
    fn run(&self, page: &DevicePage<'_>, argument: u64) {
        (**self).run(page, argument);
    }
}

/// A page of the device's view, while the device has it.
pub struct DevicePage<'a> {
    words: &'a [AtomicU64],
    pause: u32,
}

impl DevicePage<'_> {
    /// How many 64-bit words the page has.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a page has words")]
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Loads a word.
    ///
    /// # Panics
    /// If the page has no such word; likewise the others.
    #[must_use]
    #[inline]
    pub fn load(&self, word: usize) -> u64 {
        self.words[word].load(Ordering::Relaxed)
    }

    /// Stores a word.
    #[inline]
    pub fn store(&self, word: usize, value: u64) {
        self.words[word].store(value, Ordering::Relaxed);
    }

    /// Replaces a word by what `change` makes of it: a load, `change`, the device's pause, a store. **Not atomic.**
    #[inline]
    pub fn update(&self, word: usize, change: impl FnOnce(u64) -> u64) {
        let word = &self.words[word];
        let value = change(word.load(Ordering::Relaxed));
        for _ in 0..self.pause {
            core::hint::spin_loop();
        }
        word.store(value, Ordering::Relaxed);
    }
}

/// A software device could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// No workers.
    #[error("a software device needs at least one worker")]
    NoWorkers,
    /// It could not be registered.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// Its tables or threads could not be made.
    #[error(transparent)]
    Space(#[from] SpaceError),
}

/// How a software device is made.
#[derive(Copy, Clone, Debug)]
pub struct SoftwareConfig {
    /// Worker threads.
    pub workers: usize,
    /// Spins between the load and the store of [`DevicePage::update`]: 0 for none. Makes a lost update likelier.
    pub pause: u32,
    /// Whether workers look whether they have a page before they work on it, and claim it. Without, the device is what one
    /// without exclusivity is: updates are lost. For showing just that.
    pub exclusive: bool,
}

impl Default for SoftwareConfig {
    fn default() -> Self {
        Self { workers: 1, pause: 0, exclusive: true }
    }
}

/// A software device. Dropping it ends its workers, once they have done what was submitted.
pub struct SoftwareDevice {
    handle: DeviceHandle<Lanes>,
    crew: Crew,
    config: SoftwareConfig,
}

impl SoftwareDevice {
    /// Starts the workers and registers the device.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(space: &Space, config: SoftwareConfig) -> Result<Self, StartError> {
        if config.workers == 0 {
            return Err(StartError::NoWorkers);
        }
        let lanes = Lanes::new(config.workers).map_err(SpaceError::Memory)?;
        let handle = space.register(lanes)?;
        let crew = Crew::start(&handle, config)?;
        Ok(Self { handle, crew, config })
    }

    /// The device as the space knows it.
    #[must_use]
    pub fn handle(&self) -> &DeviceHandle<Lanes> {
        &self.handle
    }

    /// Attaches it to a region.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn attach(&self, region: &Region) -> Result<View, AttachError> {
        region.attach(&self.handle)
    }

    /// Runs `operation` on each item's page: in order for items of one page, in any order otherwise. Returns at once.
    ///
    /// An operation that is submitted many times can be shared: `Arc<O>` and `Arc<dyn Operation>` are operations too.
    ///
    /// # Panics
    /// If the view is another device's, or an item's page lies behind its end.
    pub fn submit(&self, view: &View, operation: impl Operation, items: &[Item]) -> Job {
        assert!(view.core().device.same(&self.handle.core), "the view of another device");
        let pages = view.pages();
        let mut queues: Vec<Vec<Item>> = (0..self.config.workers).map(|_| Vec::new()).collect();
        for item in items {
            assert!(pages.contains(item.page), "{} of {pages}", item.page);
            queues[item.page.as_usize() % self.config.workers].push(*item);
        }
        let program: Arc<dyn worker::Program> = Arc::new(operation);
        self.crew.submit(&self.handle, view, &program, queues)
    }
}
