//! The fault service: who serves a touch, and the threads that do.
//!
//! | file | serves |
//! |---|---|
//! | `monitor` | touches reported by the userfaultfd, while the touching thread sleeps in the kernel |
//! | `inthread` | touches of the calling thread, in its SIGBUS handler |
//! | `deputy` | for a thread in its handler: the invalidation of a device that is not signal-safe |
//! | `simulated` | touches of simulated memory, as a monitor |

use std::sync::Mutex;

use pagelease_sys::event::Doorbell;
use pagelease_sys::fork;

use crate::adopted::Adopted;
use crate::error::SpaceError;
use crate::region::Region;
use crate::shared::Shared;
use crate::space::{Faults, SpaceCore};
use crate::sync::thread;

mod deputy;
pub(crate) mod inthread;
pub(crate) mod monitor;
mod simulated;

pub(crate) use deputy::Deputy;

/// The threads of a space. Dropping it ends them.
pub(crate) struct Service {
    core: Shared<SpaceCore>,
    stop: Shared<Doorbell>,
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
    deputy_runs: Mutex<bool>,
}

impl Service {
    pub(crate) fn start(core: &Shared<SpaceCore>) -> Result<Self, SpaceError> {
        let stop = Doorbell::open().and_then(Shared::new).map_err(SpaceError::Memory)?;
        let service =
            Self { core: core.clone(), stop, threads: Mutex::new(Vec::new()), deputy_runs: Mutex::new(false) };
        if let (Some(uffd), Faults::Monitor) = (&core.uffd, core.config.faults) {
            let watch = Shared::new(monitor::Watch::new()).map_err(SpaceError::Memory)?;
            for _ in 0..core.config.monitors {
                service.start_monitor(monitor::Source::Made(uffd.clone()), &watch)?;
            }
        }
        Ok(service)
    }

    /// Starts the threads that serve adopted memory: in in-thread mode one, which reads events only.
    pub(crate) fn start_for_adopted(&self, adopted: &Shared<Adopted>) -> Result<(), SpaceError> {
        let count = if self.core.config.faults == Faults::Monitor { self.core.config.monitors } else { 1 };
        let watch = Shared::new(monitor::Watch::new()).map_err(SpaceError::Memory)?;
        (0..count).try_for_each(|_| self.start_monitor(monitor::Source::Adopted(adopted.clone()), &watch))
    }

    fn start_monitor(&self, source: monitor::Source, watch: &Shared<monitor::Watch>) -> Result<(), SpaceError> {
        let monitor =
            monitor::Monitor { core: self.core.clone(), source, stop: self.stop.clone(), watch: watch.clone() };
        self.spawn("pagelease-monitor", move || monitor.run())
    }

    /// Starts the deputy, unless it runs.
    pub(crate) fn start_deputy(&self, core: &Shared<SpaceCore>) -> Result<(), SpaceError> {
        let mut runs = self.deputy_runs.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !*runs {
            let core = core.clone();
            self.spawn("pagelease-deputy", move || core.deputy.run())?;
            *runs = true;
        }
        Ok(())
    }

    /// Serves a simulated region, in monitor mode; a real one is served through the userfaultfd.
    pub(crate) fn watch(&self, region: &Region) {
        if self.core.config.faults == Faults::Monitor {
            simulated::watch(region, self.core.config.monitors);
        }
    }

    fn spawn(&self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), SpaceError> {
        let spawned = thread::Builder::new().name(name.to_owned()).spawn(move || {
            // The program's signal handlers shall not run on the threads that serve its faults.
            let _blocked = crate::sync::block_signals();
            crate::guard::driver(body);
        });
        let thread = spawned.map_err(|error| SpaceError::Thread(error.to_string()))?;
        self.threads.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(thread);
        Ok(())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        if fork::in_child() {
            // They are the parent's.
            std::mem::forget(threads);
            return;
        }
        self.stop.ring();
        self.core.deputy.stop();
        for thread in threads {
            // One that panics ends the process: see `guard`.
            let _ = thread.join();
        }
    }
}
