//! Covering a mapping with a private copy of what it shows: how late stores of a stuck device come to nothing.
//!
//! Invariant: a thread that uses `span` meanwhile finds there either what was before or the whole copy, and takes no
//! signal: the kernel exchanges them under the lock that its touch would wait for. Signal-safe.

use core::ptr::null_mut;
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MremapFlags};

use super::READ_WRITE;
use crate::Span;

/// Replaces what is mapped at `span` by private memory that holds what `source` contains now: later stores at
/// `span` go nowhere, and whoever makes them does not notice. Other views of the page keep it. A forked child will
/// have nothing mapped here.
///
/// `source` may be another view of the same page, or `span` itself, and may change meanwhile: each aligned word of
/// the copy is one that was there. Four system calls. Signal-safe.
///
/// # Safety
///
/// `span` is the caller's, and may become private memory. `source` can be read, and not by way of a touch that the
/// calling thread itself would have to serve.
///
/// # Errors
///
/// `INVAL`: the lengths differ. `NOMEM`: no memory, or too many mappings; `span` then shows what it did before. (Only
/// when the kernel has no memory left for the record of a mapping may it end up with nothing mapped.)
pub unsafe fn cover(span: Span, source: Span) -> Result<(), Errno> {
    if span.len() != source.len() {
        return Err(Errno::INVAL);
    }
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new mapping where the kernel finds room harms no other.
    let copy = unsafe { rustix::mm::mmap_anonymous(null_mut(), span.len(), READ_WRITE, flags) }?;

    let from = source.as_ptr().cast::<u64>();
    for word in 0..span.len() / size_of::<u64>() {
        // SAFETY: both are of this many words, aligned to a page; the copy is ours alone, the source can be read.
        // Volatile, since somebody may be writing to the source.
        unsafe {
            copy.cast::<u64>().add(word).write(from.add(word).read_volatile());
        };
    }

    // Before the move, so that no fork can come between. A mapping keeps the mark when it moves.
    // SAFETY: the copy is ours alone.
    let marked = unsafe { rustix::mm::madvise(copy, span.len(), Advice::LinuxDontFork) };
    let moved = marked.and_then(|()| {
        let to = span.as_ptr().cast();
        // SAFETY: the copy is ours alone, and the caller lets us replace `span`.
        unsafe { rustix::mm::mremap_fixed(copy, span.len(), span.len(), MremapFlags::MAYMOVE, to) }
    });
    if let Err(errno) = moved {
        // SAFETY: the copy did not move, and is ours alone.
        let _ = unsafe { rustix::mm::munmap(copy, span.len()) };
        return Err(errno);
    }
    Ok(())
}
