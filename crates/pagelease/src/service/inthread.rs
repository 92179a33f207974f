//! In-thread service: the touching thread serves itself, in its signal handler: for SIGBUS, which userfaultfd raises, and for
//! SIGSEGV, with the `mprotect` backend.
//!
//! Async-signal-safe from end to end: the registry and everything behind it are read without a lock, `touch::serve`
//! neither allocates nor formats, and the handler runs with all asynchronous signals blocked, so that nothing interrupts
//! it on this thread. A thread that blocks the signal never gets here: the kernel kills the process at its first touch.
//!
//! What is not a touch of a managed page is passed on: to the handler that was there before, or the process dies of it, as it
//! would have. Not a touch are: an instruction to be fetched, memory that the program itself has unmapped or protected, a
//! page that a file has lost.

use pagelease_sys::signal::{self, Fault, Signal};
use pagelease_sys::{Errno, fork};

use pagelease_protocol::PageIndex;
use pagelease_sys::thread::yield_now;

use crate::backend::{AnyBackend, mprotect};
use crate::layout;
use crate::region::RegionCore;
use crate::registry::{self, Found};
use crate::space::Faults;
use crate::sync::relax;
use crate::touch::{self, Server, Toucher, Who};

/// How long a fault in a region that has closed may be one that trapped just before: turns of `relax`, about a second.
const CLOSING_TURNS: u32 = 20_000;

/// Installs the handler for userfaultfd's signal, once a process.
pub(crate) fn install() -> Result<(), Errno> {
    signal::install(Signal::Bus, on_bus_error)
}

/// Installs the handler for the signal of closed pages, once a process.
pub(crate) fn install_for_mprotect() -> Result<(), Errno> {
    signal::install(Signal::Segmentation, on_segmentation_fault)
}

fn on_bus_error(fault: &Fault) -> bool {
    // Failed memory (BUS_MCEERR_AR) is not a touch.
    if fork::in_child() || fault.code != signal::BUS_ADRERR {
        return false;
    }
    let Some(Found { region, page, device }) = registry::find(fault.address) else {
        // It trapped just before its region closed; or it is memory that the program has added to an adopted range.
        return registry::is_closed(fault.address) || layout::serve_stranger_in_thread(fault.address);
    };
    // An mprotect region raises this one only for a page that its file has lost.
    if region.space.config.faults != Faults::InThread || matches!(region.backend, AnyBackend::Mprotect(_)) {
        return false;
    }
    if let Some(moved) = region.moved() {
        if moved.adopted().gate.is_changing() {
            // The page may be about to go, or to be found elsewhere: touch it again afterwards.
            drop(region);
            yield_now();
            return true;
        }
        if device.is_some() {
            moved.serve_stray(fault.address);
            return true;
        }
    }
    if !region.backend.reaches(page) {
        return false;
    }
    serve(&region, page, fault);
    true
}

fn on_segmentation_fault(fault: &Fault) -> bool {
    // A closed page is mapped: SEGV_MAPERR is never one.
    if fork::in_child() || fault.code != signal::SEGV_ACCERR || fault.fetch {
        return false;
    }
    // Where the machine does not say, reading is what every access does.
    let write = fault.write.unwrap_or(false);
    let allows = || mprotect::allows(fault.address, write);
    let Some(Found { region, page, .. }) = registry::find(fault.address) else {
        // It trapped just before its region closed, which opens all of it in a moment.
        return registry::is_closed(fault.address) && (0..CLOSING_TURNS).inspect(|turn| relax(*turn)).any(|_| allows());
    };
    let AnyBackend::Mprotect(backend) = &region.backend else { return false };
    if backend.is_open(page, fault.write)
        && let Some(stale) = touch::is_stale(&region, page, write, allows)
    {
        return stale;
    }
    serve(&region, page, fault);
    true
}

fn serve(region: &RegionCore, page: PageIndex, fault: &Fault) {
    region.space.stats.touches.one();
    touch::serve(region, page, Toucher::stopped(Who::Caller, fault.write), Server::InThread);
}
