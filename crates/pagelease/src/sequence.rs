//! Sequential touches: how many neighbours a touch brings along.
//!
//! A thread that touches the page behind the last one it got is reading in order; each such touch doubles the number of
//! pages it brings, up to [`WINDOW_MAX`], and any other touch starts at one. As file readahead does. One stream a slot,
//! slots by thread; two threads that share a slot lose the doubling, nothing else.

use pagelease_protocol::{PageIndex, PageRange};
use pagelease_sys::Errno;

use crate::sync::{AtomicU64, Ordering, Table};

/// The most pages that one touch brings: about 80 microseconds of mapping, which other touches of them would wait for.
pub(crate) const WINDOW_MAX: usize = 256;

const STREAMS: usize = if cfg!(pagelease_shuttle) { 2 } else { 16 };

/// Next page expected (upper half) and pages brought last (lower half), a stream.
pub(crate) struct Sequence(Table<AtomicU64>);

impl Sequence {
    pub(crate) fn new() -> Result<Self, Errno> {
        Ok(Self(Table::zeroed(STREAMS)?))
    }

    fn stream(&self, stream: usize) -> &AtomicU64 {
        &self.0[stream % STREAMS]
    }

    /// The pages that the last touch in `stream` brought, if `page` is the one behind them: they have been walked through.
    pub(crate) fn passed(&self, stream: usize, page: PageIndex) -> Option<PageRange> {
        let state = self.stream(stream).load(Ordering::Relaxed);
        #[expect(clippy::cast_possible_truncation, reason = "takes the packed fields apart")]
        let (next, last) = ((state >> 32) as u32, state as u32);
        if next != page.0 { None } else { PageRange::new(next.saturating_sub(last), next) }
    }

    /// How many pages a touch of `page` in `stream` brings, at most; itself included.
    pub(crate) fn window(&self, stream: usize, page: PageIndex) -> u32 {
        let stream = self.stream(stream);
        let state = stream.load(Ordering::Relaxed);
        #[expect(clippy::cast_possible_truncation, reason = "takes the packed fields apart")]
        let (next, last) = ((state >> 32) as u32, state as u32);
        #[expect(clippy::cast_possible_truncation, reason = "a small constant")]
        let window = if next == page.0 && page.0 != 0 { (last * 2).clamp(1, WINDOW_MAX as u32) } else { 1 };
        stream.store(u64::from(page.0) << 32 | u64::from(window), Ordering::Relaxed);
        window
    }

    /// The touch brought the pages up to `end`.
    pub(crate) fn touched(&self, stream: usize, end: u32) {
        let stream = self.stream(stream);
        let window = stream.load(Ordering::Relaxed) & u64::from(u32::MAX);
        stream.store(u64::from(end) << 32 | window, Ordering::Relaxed);
    }
}
