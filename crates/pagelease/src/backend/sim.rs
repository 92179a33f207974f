//! `sim`: a simulated MMU, for tests that explore schedules.
//!
//! One page table entry and a handful of words a page. A simulated CPU access ([`SimCpu`]) looks at the entry and touches
//! the word as one step, as hardware does (after a zap has returned, no access through the old mapping completes); where
//! the entry does not allow it, it traps: in in-thread mode the accessing thread serves itself, in monitor mode it queues
//! a message and sleeps until it is woken, as on a userfaultfd. An absent page that does not exist yet is filled without
//! a trap, as the kernel does. A device's access is not checked: that is what the protocol is for.
//!
//! It cannot cover a page.

use std::collections::VecDeque;
use std::sync::Arc;

use pagelease_protocol::{Access, OwnerId, PageIndex, PageRange};
use pagelease_sys::{Errno, Span};

use super::{Backend, BackendKind, Capabilities, MapOutcome, Mapped, Refusal, ViewMemory};
use crate::region::RegionCore;
use crate::shared::Shared;
use crate::space::Faults;
use crate::sync::{AtomicU64, Condvar, Deadline, Mutex, Ordering, Waited, block_signals, wait_until};
use crate::touch::{self, Server, Toucher, Who};

/// Words a simulated page has.
pub const WORDS: usize = 2;

#[derive(Copy, Clone, Debug, Eq, PartialEq)]
enum Entry {
    Absent,
    ReadOnly,
    Writable,
}

#[derive(Debug)]
struct Page {
    entry: Entry,
    exists: bool,
}

/// What a monitor of simulated memory finds.
#[derive(Copy, Clone, Debug)]
pub(crate) enum NextFault {
    Fault(Message),
    TimedOut,
    Closed,
}

/// A touch that waits for a monitor.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Message {
    pub(crate) page: PageIndex,
    pub(crate) write: bool,
    pub(crate) tid: u32,
}

#[derive(Debug, Default)]
struct Faulted {
    queue: VecDeque<Message>,
    /// Sleeping touches: the page and the thread.
    asleep: Vec<(PageIndex, u32)>,
    closed: bool,
}

/// The simulated physical memory.
#[derive(Debug)]
pub(crate) struct Memory {
    words: Vec<AtomicU64>,
}

/// The simulated memory, shared by all of its views.
pub(crate) type SharedMemory = Arc<Memory>;

impl Memory {
    pub(crate) fn words(&self) -> &[AtomicU64] {
        &self.words
    }
}

type Hook = Box<dyn Fn(PageRange) + Send + Sync>;

/// See the module.
pub(crate) struct Sim {
    memory: SharedMemory,
    pages: Mutex<Vec<Page>>,
    faulted: Mutex<Faulted>,
    changed: Condvar,
    on_revoked: Mutex<Option<Arc<Hook>>>,
}

impl Sim {
    pub(crate) fn new(pages: u32) -> Self {
        let pages = pages as usize;
        Self {
            memory: Arc::new(Memory { words: (0..pages * WORDS).map(|_| AtomicU64::new(0)).collect() }),
            pages: Mutex::new((0..pages).map(|_| Page { entry: Entry::Absent, exists: false }).collect()),
            faulted: Mutex::new(Faulted::default()),
            changed: Condvar::new(),
            on_revoked: Mutex::new(None),
        }
    }

    /// The next queued fault; waits for one, at most until `deadline`.
    pub(crate) fn next_fault(&self, deadline: Deadline) -> NextFault {
        let mut faulted = self.faulted.lock().expect("not poisoned");
        loop {
            if let Some(message) = faulted.queue.pop_front() {
                return NextFault::Fault(message);
            }
            if faulted.closed {
                return NextFault::Closed;
            }
            let (guard, waited) = wait_until(&self.changed, &self.faulted, faulted, deadline);
            if waited == Waited::TimedOut {
                return NextFault::TimedOut;
            }
            faulted = guard;
        }
    }

    fn set(&self, pages: PageRange, change: impl Fn(&mut Page)) {
        let mut table = self.pages.lock().expect("not poisoned");
        for page in pages.iter() {
            change(&mut table[page.as_usize()]);
        }
    }
}

impl Backend for Sim {
    fn kind(&self) -> BackendKind {
        BackendKind::Sim
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { exclusive_write: true, cover: false, alias: true }
    }

    fn span(&self) -> Span {
        // Its addresses are never accessed; they only have to be those of a span.
        let len = self.pages.lock().expect("not poisoned").len() * pagelease_sys::page_size();
        Span::new(pagelease_sys::page_size(), len).expect("a region has at least one page")
    }

    fn populate(&self, pages: PageRange) -> Result<(), Refusal> {
        self.set(pages, |page| page.exists = true);
        Ok(())
    }

    fn revoke(&self, runs: &[PageRange], access: Access, _device: OwnerId) -> Result<(), Refusal> {
        for &run in runs {
            self.set(run, |page| match (access, page.entry) {
                (Access::Exclusive, _) => page.entry = Entry::Absent,
                (Access::ExclusiveWrite, Entry::Writable) => page.entry = Entry::ReadOnly,
                (Access::ExclusiveWrite, _) => {}
            });
            let hook = self.on_revoked.lock().expect("not poisoned").clone();
            if let Some(hook) = hook {
                hook(run);
            }
        }
        Ok(())
    }

    fn map(&self, pages: PageRange, how: Mapped) -> Result<MapOutcome, Errno> {
        let entry = match how {
            Mapped::Writable => Entry::Writable,
            Mapped::ReadOnly => Entry::ReadOnly,
        };
        let mut outcome = MapOutcome::AlreadyMapped;
        {
            let mut table = self.pages.lock().expect("not poisoned");
            for page in pages.iter() {
                let page = &mut table[page.as_usize()];
                if !page.exists {
                    return Err(Errno::FAULT);
                }
                if page.entry == Entry::Absent {
                    outcome = MapOutcome::Mapped;
                }
                if how == Mapped::Writable || page.entry == Entry::Absent {
                    page.entry = entry;
                }
            }
        }
        self.wake(pages);
        Ok(outcome)
    }

    fn wake(&self, pages: PageRange) {
        let mut faulted = self.faulted.lock().expect("not poisoned");
        faulted.asleep.retain(|&(page, _)| !pages.contains(page));
        // As on a userfaultfd: what was not read by then is never read.
        faulted.queue.retain(|message| !pages.contains(message.page));
        drop(faulted);
        self.changed.notify_all();
    }

    fn close(&self) {
        let mut faulted = self.faulted.lock().expect("not poisoned");
        faulted.closed = true;
        faulted.asleep.clear();
        drop(faulted);
        self.changed.notify_all();
    }

    fn open_view(&self, _device: OwnerId) -> Result<ViewMemory, Errno> {
        Ok(ViewMemory::Sim(self.memory.clone()))
    }

    fn cover(&self, _view_base: usize, _page: PageIndex) -> Result<(), Errno> {
        Err(Errno::NOSYS)
    }
}

fn page_of(word: usize) -> PageIndex {
    PageIndex(u32::try_from(word / WORDS).expect("within the region"))
}

/// The CPU's access to a simulated region.
#[derive(Clone)]
pub struct SimCpu {
    region: Shared<RegionCore>,
}

impl SimCpu {
    pub(crate) fn new(region: Shared<RegionCore>) -> Self {
        Self { region }
    }

    fn sim(&self) -> &Sim {
        self.region.sim().expect("made for a simulated region only")
    }

    /// Loads word `word` of the region.
    #[must_use]
    pub fn load(&self, word: usize) -> u64 {
        self.access(word, false, |cell| cell.load(Ordering::SeqCst))
    }

    /// Stores to word `word` of the region.
    pub fn store(&self, word: usize, value: u64) {
        self.access(word, true, |cell| cell.store(value, Ordering::SeqCst));
    }

    /// Adds to word `word` of the region, atomically; returns what it was.
    pub fn fetch_add(&self, word: usize, value: u64) -> u64 {
        self.access(word, true, |cell| cell.fetch_add(value, Ordering::SeqCst))
    }

    /// Whether a touch of the page that word `word` lies in waits, so that no claim may have the page before it.
    #[must_use]
    pub fn is_waited_for(&self, word: usize) -> bool {
        self.region.word(page_of(word)).waiters()
    }

    /// Runs `hook` in the claiming thread right after it has revoked pages: where an interrupting signal handler would run.
    pub fn on_revoked(&self, hook: impl Fn(PageRange) + Send + Sync + 'static) {
        *self.sim().on_revoked.lock().expect("not poisoned") = Some(Arc::new(Box::new(hook)));
    }

    /// Runs the hook of [`SimCpu::on_revoked`] no more.
    pub fn clear_hook(&self) {
        *self.sim().on_revoked.lock().expect("not poisoned") = None;
    }

    fn access<R>(&self, word: usize, write: bool, act: impl Fn(&AtomicU64) -> R) -> R {
        let page = page_of(word);
        let sim = self.sim();
        loop {
            {
                let mut table = sim.pages.lock().expect("not poisoned");
                let entry = &mut table[page.as_usize()];
                if entry.entry == Entry::Absent && !entry.exists {
                    *entry = Page { entry: Entry::Writable, exists: true };
                }
                if entry.entry == Entry::Writable || (entry.entry == Entry::ReadOnly && !write) {
                    return act(&sim.memory.words[word]);
                }
            }
            self.trap(page, write);
        }
    }

    fn trap(&self, page: PageIndex, write: bool) {
        let tid = crate::sync::tid();
        if self.region.space.config.faults == Faults::InThread {
            // As in the SIGBUS handler.
            let _blocked = block_signals();
            let Some(_pinned) = self.region.enter() else { return };
            self.region.space.stats.touches.one();
            touch::serve(&self.region, page, Toucher::stopped(Who::Thread(tid), Some(write)), Server::InThread);
            return;
        }
        let sim = self.sim();
        let mut faulted = sim.faulted.lock().expect("not poisoned");
        faulted.queue.push_back(Message { page, write, tid });
        faulted.asleep.push((page, tid));
        sim.changed.notify_all();
        while faulted.asleep.contains(&(page, tid)) {
            faulted = sim.changed.wait(faulted).expect("not poisoned");
        }
    }
}
