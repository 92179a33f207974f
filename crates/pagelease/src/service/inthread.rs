//! In-thread service: the touching thread serves itself, in its SIGBUS handler.
//!
//! Async-signal-safe from end to end: the registry and everything behind it are read without a lock, `touch::serve`
//! neither allocates nor formats, and the handler runs with all asynchronous signals blocked, so that nothing interrupts
//! it on this thread. A thread that blocks SIGBUS never gets here: the kernel kills the process at its first touch.

use pagelease_sys::signal::{self, BusFault};
use pagelease_sys::{Errno, fork};

use pagelease_protocol::PageIndex;

use crate::registry;
use crate::space::Faults;
use crate::touch::{self, Server, Toucher, Who};

/// Installs the handler, once a process; it passes on what is not a touch of a managed page.
pub(crate) fn install() -> Result<(), Errno> {
    signal::install_sigbus(on_bus_error)
}

fn on_bus_error(fault: &BusFault) -> bool {
    // Failed memory (BUS_MCEERR_AR) is not a touch.
    if fork::in_child() || fault.code != signal::BUS_ADRERR {
        return false;
    }
    let Some(region) = registry::find(fault.address) else {
        // It trapped just before its region closed.
        return registry::is_closed(fault.address);
    };
    if region.space.config.faults != Faults::InThread {
        return false;
    }
    let offset = fault.address - region.backend.span().start();
    let Ok(page) = u32::try_from(offset / region.granule.0) else { return false };
    let toucher = Toucher::stopped(Who::Caller, fault.write);
    region.space.stats.touches.one();
    touch::serve(&region, PageIndex(page), toucher, Server::InThread);
    true
}
