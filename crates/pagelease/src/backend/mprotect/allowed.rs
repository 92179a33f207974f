//! What the kernel allows at an address: `/proc/self/maps`, asked in a signal handler.

use std::sync::OnceLock;

use pagelease_sys::Errno;
use pagelease_sys::mem::Maps;

/// One a process, open for its life. Read without a lock once it is there.
static MAPS: OnceLock<Maps> = OnceLock::new();

/// Makes [`allows`] work. Once is enough.
pub(crate) fn arm() -> Result<(), Errno> {
    if MAPS.get().is_none() {
        // If another thread was first, its descriptor stays.
        let _ = MAPS.set(Maps::open()?);
    }
    Ok(())
}

/// Whether the mapping at `address` allows reading, or `write`. Where the kernel does not say (no descriptor is left to
/// look again with): `true`, so that the access is tried again. Signal-safe.
pub(crate) fn allows(address: usize, write: bool) -> bool {
    let Some(Ok(area)) = MAPS.get().map(|maps| maps.area_at_or_after(address)) else { return true };
    area.is_some_and(|area| area.span.contains(address) && if write { area.writable } else { area.readable })
}
