//! How the file is split: chunks, which CPU threads and the device take from one queue, so that no side waits for another.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Condvar, Mutex, PoisonError};

use indicatif::ProgressBar;

use super::input::Input;
use super::unit::Unit;

/// Bounds the memory that is mapped, and copied for the device, at a time.
pub(super) const CHUNK_MAX: u64 = 256 << 10;

/// Below this, mapping a chunk costs more than counting it.
const CHUNK_MIN: u64 = 1 << 10;

/// So many chunks a side, where the file is large enough: they end at about the same time.
const CHUNKS_EACH: u64 = 16;

/// The file, and what is left of it to count.
pub(super) struct Split<'a> {
    pub(super) input: &'a Input,
    pub(super) unit: Unit,
    pub(super) progress: &'a ProgressBar,
    chunk: u64,
    next: AtomicU64,
    stopped: AtomicBool,
    /// Devices that have not begun.
    starting: Mutex<usize>,
    begun: Condvar,
}

impl<'a> Split<'a> {
    /// For so many CPU threads and devices that take chunks.
    pub(super) fn new(
        input: &'a Input,
        unit: Unit,
        cpu_threads: usize,
        devices: usize,
        progress: &'a ProgressBar,
    ) -> Self {
        let takers = u64::try_from(cpu_threads + devices).unwrap_or(u64::MAX);
        let share = input.len() / takers.saturating_mul(CHUNKS_EACH);
        // Even, so that no pair of bytes is split.
        let chunk = share.clamp(CHUNK_MIN, CHUNK_MAX).next_multiple_of(2);
        Self {
            input,
            unit,
            progress,
            chunk,
            next: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            starting: Mutex::new(devices),
            begun: Condvar::new(),
        }
    }

    /// The next chunk; `None` when there is none left, or somebody has failed.
    pub(super) fn take(&self) -> Option<Range<u64>> {
        let begin = self.next.fetch_add(self.chunk, Relaxed);
        let left = begin < self.input.len() && !self.stopped.load(Relaxed);
        left.then(|| begin..self.input.len().min(begin + self.chunk))
    }

    /// Waits until each device has its first chunk: a file may be counted faster than a thread is woken.
    pub(super) fn wait_for_devices(&self) {
        let starting = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        let _begun = self.begun.wait_while(starting, |starting| *starting > 0);
    }

    /// Nobody gets another chunk: what has been counted is of no use any more.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Relaxed);
    }

    /// `bytes` have been counted.
    pub(super) fn done(&self, bytes: u64) {
        self.progress.inc(bytes);
    }
}

/// Held by a device's side until the device has its first chunk, or has failed.
pub(super) struct Starting<'a>(pub(super) &'a Split<'a>);

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        *self.0.starting.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.begun.notify_all();
    }
}

/// How many bytes a range of a file has.
pub(super) fn len(bytes: &Range<u64>) -> u64 {
    bytes.end - bytes.start
}
