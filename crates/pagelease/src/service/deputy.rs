//! The deputy: a thread that serves a touch for one that is in its signal handler and may not call the device.
//!
//! A fixed number of places. Whoever needs the deputy takes one, fills it in, rings, and sleeps until it is done; while all
//! are taken it waits for one. Invariant: the region of a place in `POSTED` or `SERVING` stays, because its poster has it
//! pinned until `DONE`.

use core::ptr::null_mut;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};

use pagelease_protocol::PageIndex;
use pagelease_sys::Errno;

use crate::region::RegionCore;
use crate::sync::{Deadline, Table, Word, relax};
use crate::touch::{self, Server, Toucher, Who};

const PLACES: usize = if cfg!(pagelease_shuttle) { 2 } else { 64 };

const FREE: u32 = 0;
const FILLING: u32 = 1;
const POSTED: u32 = 2;
const DONE: u32 = 3;

#[derive(Default)]
struct Request {
    region: AtomicPtr<RegionCore>,
    page: AtomicU32,
    /// 0 for nobody.
    tid: AtomicU32,
    /// 0: reads, 1: writes, 2: not known.
    write: AtomicU32,
}

pub(crate) struct Deputy {
    states: Table<Word>,
    requests: [Request; PLACES],
    bell: Table<Word>,
    stopped: AtomicBool,
}

impl Deputy {
    pub(crate) fn new() -> Result<Self, Errno> {
        Ok(Self {
            states: Table::zeroed(PLACES)?,
            requests: core::array::from_fn(|_| Request::default()),
            bell: Table::zeroed(1)?,
            stopped: AtomicBool::new(false),
        })
    }

    /// Has the touch served by the deputy's thread, and sleeps until it is. Signal-safe.
    pub(crate) fn serve(&self, region: &RegionCore, page: PageIndex, toucher: Toucher) {
        let mut turn = 0;
        let (state, request) = loop {
            let free = self.states.iter().zip(&self.requests).find(|(state, _)| state.swap_if(FREE, FILLING).is_ok());
            if let Some(place) = free {
                break place;
            }
            turn += 1;
            relax(turn);
        };
        request.region.store(core::ptr::from_ref(region).cast_mut(), Ordering::SeqCst);
        request.page.store(page.0, Ordering::SeqCst);
        request.tid.store(toucher.who.tid().unwrap_or(0), Ordering::SeqCst);
        request.write.store(toucher.write.map_or(2, u32::from), Ordering::SeqCst);
        let posted = state.swap_if(FILLING, POSTED);
        assert!(posted.is_ok(), "a place that is being filled is its filler's");
        self.ring();
        while state.load() != DONE {
            state.wait(POSTED, Deadline::NEVER);
        }
        request.region.store(null_mut(), Ordering::SeqCst);
        let freed = state.swap_if(DONE, FREE);
        assert!(freed.is_ok(), "a place that is done is its filler's");
    }

    /// The deputy's thread.
    pub(crate) fn run(&self) {
        loop {
            let seen = self.bell[0].load();
            for (state, request) in self.states.iter().zip(&self.requests) {
                if state.load() != POSTED {
                    continue;
                }
                // SAFETY: the module's invariant: the poster has the region pinned until DONE.
                let region = unsafe { &*request.region.load(Ordering::SeqCst) };
                let write = match request.write.load(Ordering::SeqCst) {
                    0 => Some(false),
                    1 => Some(true),
                    _ => None,
                };
                let who = match request.tid.load(Ordering::SeqCst) {
                    0 => Who::Nobody,
                    tid => Who::Thread(tid),
                };
                let page = PageIndex(request.page.load(Ordering::SeqCst));
                touch::serve(region, page, Toucher::stopped(who, write), Server::Deputy);
                let done = state.swap_if(POSTED, DONE);
                assert!(done.is_ok(), "a posted place is the deputy's");
                state.wake_all();
            }
            if self.stopped.load(Ordering::SeqCst) {
                return;
            }
            self.bell[0].wait(seen, Deadline::NEVER);
        }
    }

    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.ring();
    }

    fn ring(&self) {
        self.bell[0].bump();
        self.bell[0].wake_all();
    }
}
