//! How many mappings the regions may need, and how many there may be (`vm.max_map_count`).
//!
//! A touch that opens a page in the middle of closed ones splits a mapping into three, and at the limit the kernel refuses.
//! So room is taken when pages are *claimed*: for the worst that touches can make of them. A region of *n* pages of which
//! *k* are revoked is in at most `min(2k + 1, n)` mappings, and in no more while *k* shrinks.
//!
//! What else the process has mapped is looked up (the lines of `/proc/self/maps`, some 0.3 us each) when the regions may
//! need [`STEP`] mappings more than at the last look. An eighth of the limit stays unused by regions, and half of that is for
//! what the program may map between two looks.
//!
//! Invariants: `TAKEN` is the sum over the regions of what their revoked pages may need beyond one mapping each (for moments
//! off by what some thread is just about to add or subtract); no more than `GRANTED` are taken without a look.

use core::sync::atomic::{AtomicIsize, Ordering};
use std::io::Read as _;

use pagelease_sys::mem;

use crate::backend::BackendKind;
use crate::registry;

/// `vm.max_map_count` where nobody has changed it: for when it cannot be read.
const LIMIT: usize = 65_530;

static TAKEN: AtomicIsize = AtomicIsize::new(0);
static GRANTED: AtomicIsize = AtomicIsize::new(0);
/// What the regions may need more than at the last look, before the next.
static STEP: AtomicIsize = AtomicIsize::new(0);

/// Takes room for `more` mappings. `Err`: there is none, and the limit is this. They are taken all the same, and to be given
/// back.
pub(super) fn take(more: usize) -> Result<(), usize> {
    let taken = TAKEN.fetch_add(signed(more), Ordering::SeqCst) + signed(more);
    if taken <= GRANTED.load(Ordering::SeqCst) {
        return Ok(());
    }
    let limit = mem::max_map_count().unwrap_or(LIMIT);
    let room = signed(limit - limit / 8) - signed(others().unwrap_or(limit / 2));
    let enough = taken <= room;
    STEP.store(signed(limit / 16), Ordering::SeqCst);
    GRANTED.store(room.min(taken + signed(limit / 16)), Ordering::SeqCst);
    if enough { Ok(()) } else { Err(limit) }
}

/// Gives room for `fewer` mappings back. Signal-safe.
pub(super) fn give(fewer: usize) {
    let most = TAKEN.fetch_sub(signed(fewer), Ordering::SeqCst) - signed(fewer) + STEP.load(Ordering::SeqCst);
    // What is given back is the program's to use, too.
    if GRANTED.load(Ordering::SeqCst) > most {
        GRANTED.fetch_min(most, Ordering::SeqCst);
    }
}

fn signed(count: usize) -> isize {
    isize::try_from(count).unwrap_or(isize::MAX)
}

/// How many mappings the process has, where each region of this backend counts as one. `None`: it cannot be read.
fn others() -> Option<usize> {
    let mut file = std::fs::File::open("/proc/self/maps").ok()?;
    let (mut text, mut start, mut in_start) = ([0; 1024], 0, true);
    let (mut count, mut inside) = (0, None);
    loop {
        let len = match file.read(&mut text) {
            Ok(0) => return Some(count),
            Ok(len) => len,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => return None,
        };
        for &byte in &text[..len] {
            match byte {
                b'\n' => (start, in_start) = (0, true),
                b'-' if in_start => {
                    in_start = false;
                    count += usize::from(!is_a_part(start, &mut inside));
                }
                digit if in_start => start = start << 4 | (digit as char).to_digit(16).unwrap_or(0) as usize,
                _ => {}
            }
        }
    }
}

/// Whether what is mapped at `start` is a part of a region of this backend, and not its first one. `inside`: the region that
/// the mapping before this one lies in.
fn is_a_part(start: usize, inside: &mut Option<pagelease_sys::Span>) -> bool {
    if !inside.is_some_and(|span| span.contains(start)) {
        *inside = registry::find(start)
            .filter(|found| found.region.backend.kind() == BackendKind::Mprotect)
            .map(|found| found.region.backend.span());
    }
    inside.is_some_and(|span| span.start() != start)
}
