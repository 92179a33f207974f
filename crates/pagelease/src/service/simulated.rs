//! Monitors of simulated memory.

use crate::region::Region;
use crate::sim::NextFault;
use crate::sync::{Deadline, thread};
use crate::touch::{self, Server, Toucher, Who};

use super::monitor::serve_overdue;

/// Starts `monitors` threads that serve the region until it closes.
pub(crate) fn watch(region: &Region, monitors: usize) {
    for _ in 0..monitors {
        let region = region.core().clone();
        thread::spawn(move || {
            let Some(sim) = region.sim() else { return };
            loop {
                let hold_limit = region.space.config.hold_limit;
                let deadline: Deadline = region.space.park.first_deadline(hold_limit);
                let read_at = region.space.last_token();
                match sim.next_fault(deadline) {
                    NextFault::Fault(message) => {
                        // As a fault handler pins a real region.
                        let Some(_pinned) = region.enter() else { return };
                        region.space.stats.touches.one();
                        let toucher = Toucher { who: Who::Thread(message.tid), write: Some(message.write), read_at };
                        touch::serve(&region, message.page, toucher, Server::Monitor);
                    }
                    NextFault::TimedOut => {
                        let Some(_pinned) = region.enter() else { return };
                        for (_, page) in region.space.park.overdue(hold_limit) {
                            serve_overdue(&region, page);
                        }
                    }
                    NextFault::Closed => return,
                }
            }
        });
    }
}
