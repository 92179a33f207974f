//! Drivers must not unwind into the engine.

/// Calls a driver's code; the process ends if it panics (the panic's own message has been printed by then).
///
/// What the driver would leave behind cannot be mended: pages busy that nobody will ever release, a monitor that nobody
/// replaces. Every thread that touches one of those pages would wait for ever, and nothing would say why.
#[inline]
pub(crate) fn driver<R>(call: impl FnOnce() -> R) -> R {
    struct AbortOnUnwind;
    impl Drop for AbortOnUnwind {
        fn drop(&mut self) {
            std::process::abort();
        }
    }
    if cfg!(pagelease_shuttle) {
        // A failed scenario is reported, with the schedule that replays it.
        return call();
    }
    let guard = AbortOnUnwind;
    let result = call();
    core::mem::forget(guard);
    result
}
