//! Adopting: what memory of the program may be put under management, and why not.

use pagelease_protocol::ByteLen;
use pagelease_sys::mem::{Area, AreaKind, Maps};
use pagelease_sys::{Span, thread};

use crate::adopted;
use crate::error::AdoptError;
use crate::registry;
use crate::space::Faults;

/// `start..start + len` as a span of whole granules.
pub(crate) fn span(start: usize, len: ByteLen, granule: ByteLen) -> Result<Span, AdoptError> {
    let aligned = start.is_multiple_of(granule.0) && len.0.is_multiple_of(granule.0);
    Span::new(start, len.0).filter(|span| aligned && span.start() != 0).ok_or(AdoptError::Misaligned {
        start,
        len: len.0,
        granule,
    })
}

/// Looks at all that is mapped in `span`.
pub(crate) fn check(span: Span, maps: &Maps, faults: Faults) -> Result<(), AdoptError> {
    // What was there may just have been unmapped, which is not yet in our books.
    adopted::settle();
    if let Some(other) = registry::overlapping(span.start(), span.end()) {
        return Err(AdoptError::Managed { start: other.start(), end: other.end() });
    }
    let failed = |errno| AdoptError::System { what: "reading /proc/self/maps", errno };
    let mut at = span.start();
    while at < span.end() {
        let area = maps.area_at_or_after(at).map_err(failed)?.filter(|area| area.span.start() < span.end());
        let gap_end = area.as_ref().map_or(span.end(), |area| area.span.start());
        if gap_end > at {
            let remedy = "map it first, or adopt only what is mapped";
            return Err(AdoptError::Unfit { start: at, end: gap_end, what: "not mapped", remedy });
        }
        let Some(area) = area else { break };
        check_area(&area)?;
        if faults == Faults::InThread {
            check_in_thread(span, &area)?;
        }
        at = area.span.end();
    }
    Ok(())
}

fn check_area(area: &Area) -> Result<(), AdoptError> {
    let (start, end) = (area.span.start(), area.span.end());
    let unfit = |what, remedy| Err(AdoptError::Unfit { start, end, what, remedy });
    if area.shared {
        return unfit(
            "shared memory",
            "Space::allocate makes memory that can be shared, Space::map_file manages a file's",
        );
    }
    match area.kind {
        AreaKind::Anonymous | AreaKind::Heap | AreaKind::Stack => {}
        AreaKind::File => return unfit("a private mapping of a file", "copy it to anonymous memory"),
        AreaKind::Other => return unfit("the kernel's or a device's", "leave it out"),
    }
    if !(area.readable && area.writable) {
        return unfit("not readable and writable", "mprotect it so first, or leave it out");
    }
    Ok(())
}

/// A thread that serves itself must be able to run its handler: on a stack that is there, and with SIGBUS not blocked, as it is
/// in parts of the C library that use the allocator's memory.
fn check_in_thread(span: Span, area: &Area) -> Result<(), AdoptError> {
    let (start, end) = (area.span.start(), area.span.end());
    if area.kind == AreaKind::Heap {
        let remedy = "use Faults::Monitor: the C library touches it with signals blocked";
        return Err(AdoptError::NotInThread { start, end, what: "the allocator's heap", remedy });
    }
    let own_stack = thread::stack().is_some_and(|(from, to)| from < span.end() && span.start() < to);
    if own_stack && !thread::has_alternate_stack() {
        let remedy = "give the thread an alternate signal stack (sigaltstack), or use Faults::Monitor";
        return Err(AdoptError::NotInThread { start, end, what: "the calling thread's stack", remedy });
    }
    if area.kind == AreaKind::Stack && !own_stack {
        let remedy = "adopt it from its own thread, which must have an alternate signal stack, or use Faults::Monitor";
        return Err(AdoptError::NotInThread { start, end, what: "the stack of another thread", remedy });
    }
    Ok(())
}
