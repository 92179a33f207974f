//! The count: CPU threads and devices raise the same counters; and the plain count that they are checked against.

use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::{Builder, scope};
use std::time::Instant;

use anyhow::{Context, Result};
use indicatif::ProgressBar;
use pagelease::Region;

use super::device::{self, Devices};
use super::input::Input;
use super::split::{self, CHUNK_MAX, Split};
use super::unit::Unit;

/// A counter for each value, and the time that it took.
pub(super) struct Counts {
    pub(super) counters: Vec<u64>,
    pub(super) elapsed_ns: u64,
}

/// What came of the shared count.
pub(super) struct Shared {
    pub(super) counts: Counts,
    /// Bytes that the CPU counted.
    pub(super) by_cpu: u64,
    /// Bytes that each device counted, in the order of the devices.
    pub(super) by_device: Vec<u64>,
}

/// Counts the file with `cpu_threads` and the devices, in one table, which is `region`. The time is from the first update to
/// the moment when the CPU has read the last total.
pub(super) fn shared(
    devices: &mut Devices,
    region: &Region,
    input: &Input,
    unit: Unit,
    cpu_threads: usize,
    progress: &ProgressBar,
) -> Result<Shared> {
    let table = &region.words()[..unit.values()];

    let count = devices.counting.len();
    let split = &Split::new(input, unit, cpu_threads, count, progress);
    // Each side's first chunk is its own, so that all work even on a file that is counted faster than a thread starts.
    let mut sides: Vec<Side<'_>> = Vec::new();
    for (_, device) in &mut devices.counting {
        let first = split.take();
        sides.push(Box::new(move || device::feed(split, &mut **device, first)));
    }
    for _ in 0..cpu_threads {
        let first = split.take();
        sides.push(Box::new(move || count_chunks(split, table, first)));
    }

    let begin = Instant::now();
    let counted = scope(|scope| -> Result<Vec<u64>> {
        let mut threads = Vec::new();
        for side in sides {
            let thread = Builder::new().spawn_scoped(scope, move || side().inspect_err(|_| split.stop()));
            let thread = thread.inspect_err(|_| split.stop());
            threads.push(thread.context("a thread cannot be started; use fewer, or raise the limit (ulimit -u)")?);
        }
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    })?;
    let counters = table.iter().map(|counter| counter.load(Relaxed)).collect();
    let counts = Counts { counters, elapsed_ns: nanoseconds_since(begin) };
    Ok(Shared { counts, by_device: counted[..count].to_vec(), by_cpu: counted[count..].iter().sum() })
}

/// What a thread does: it counts some chunks, and says how many bytes they had.
type Side<'a> = Box<dyn FnOnce() -> Result<u64> + Send + 'a>;

/// The CPU's side: one atomic addition for each unit of the file, whoever has the page.
fn count_chunks(split: &Split<'_>, table: &[AtomicU64], chunk: Option<Range<u64>>) -> Result<u64> {
    split.wait_for_devices();
    let mut counted = 0;
    let mut next = chunk;
    while let Some(chunk) = next {
        let window = split.input.window(chunk.clone())?;
        split.unit.for_each(window.bytes(), |value| {
            table[usize::from(value)].fetch_add(1, Relaxed);
        });
        counted += split::len(&chunk);
        split.done(split::len(&chunk));
        next = split.take();
    }
    Ok(counted)
}

/// Counts the file with this thread alone, in memory that is nobody else's.
pub(super) fn reference(input: &Input, unit: Unit, progress: &ProgressBar) -> Result<Counts> {
    let begin = Instant::now();
    let mut counters = vec![0; unit.values()];
    let mut at = 0;
    while at < input.len() {
        let chunk = at..input.len().min(at + CHUNK_MAX);
        let window = input.window(chunk.clone())?;
        unit.for_each(window.bytes(), |value| counters[usize::from(value)] += 1);
        progress.inc(split::len(&chunk));
        at = chunk.end;
    }
    Ok(Counts { counters, elapsed_ns: nanoseconds_since(begin) })
}

fn nanoseconds_since(begin: Instant) -> u64 {
    u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
