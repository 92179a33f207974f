//! Monitors of simulated memory.

use core::time::Duration;

use crate::region::Region;
use crate::sim::NextFault;
use crate::sync::{Deadline, thread};
use crate::touch::{self, Server, Toucher, Who};

use super::monitor::{serve_delayed, serve_overdue};

/// Starts `monitors` threads that serve the region until it closes.
pub(crate) fn watch(region: &Region, monitors: usize) {
    for _ in 0..monitors {
        let region = region.core().clone();
        thread::spawn(move || {
            let Some(sim) = region.sim() else { return };
            loop {
                let hold_limit = region.space.config.hold_limit;
                let deadline: Deadline = region.space.first_deadline();
                let read_at = region.space.last_token();
                match sim.next_fault(deadline) {
                    NextFault::Fault(message) => {
                        // As a fault handler pins a real region.
                        let Some(_pinned) = region.enter() else { return };
                        region.space.stats.touches.one();
                        let (who, write) = (Who::Thread(message.tid), Some(message.write));
                        let toucher = Toucher { who, write, read_at, delayed: false };
                        touch::serve(&region, message.page, toucher, Server::Monitor);
                    }
                    NextFault::TimedOut => {
                        let Some(_pinned) = region.enter() else { return };
                        for (_, page) in region.space.park.overdue(hold_limit) {
                            serve_overdue(&region, page);
                        }
                        for (_, page) in region.space.delays.overdue(Duration::ZERO) {
                            serve_delayed(&region, page);
                        }
                    }
                    NextFault::Closed => return,
                }
            }
        });
    }
}
