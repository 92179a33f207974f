//! Workers: threads that run operations on the pages of their device's view.
//!
//! The fast path, [`Post::operate`], on a page that the device has: a store, three loads, the operation, a store. No lock,
//! no fence, no system call; see `lanes` for why that is enough.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use pagelease_protocol::{Access, OwnerId, PageIndex, PageRange, PageWord};
use pagelease_sys::fork;

use super::job::{Item, Job, JobError, JobState};
use super::lanes::Lane;
use super::{DevicePage, Lanes, Operation, SoftwareConfig};
use crate::device::{DeviceCore, DeviceHandle, Loss, RegionId};
use crate::error::SpaceError;
use crate::region::ViewSlot;
use crate::sync::{AtomicU64, Condvar, Deadline, Mutex, Ordering, Word, compiler_fence, now_ns, relax, thread, tid};
use crate::touch::single;
use crate::view::{View, ViewCore};

/// The most pages that a worker claims ahead of its operations: one system call and one TLB shootdown for all of them.
const AHEAD: usize = if cfg!(pagelease_shuttle) { 2 } else { 32 };

/// The operations among which it looks for such pages.
const LOOK_AHEAD: usize = 4 * AHEAD;

/// How long it holds what it has claimed while it has work for it: several times what taking the pages costs.
const HOLD_NS: u64 = 50_000;

/// The workers of a device.
pub(super) struct Crew {
    queues: Vec<Arc<Queue>>,
    threads: Vec<thread::JoinHandle<()>>,
    handle: DeviceHandle<Lanes>,
}

#[derive(Default)]
struct Queue {
    tasks: Mutex<Tasks>,
    changed: Condvar,
}

#[derive(Default)]
struct Tasks {
    waiting: std::collections::VecDeque<Task>,
    closed: bool,
}

struct Task {
    job: Arc<JobState>,
    view: View,
    program: Arc<dyn Program>,
    items: Vec<Item>,
}

/// An operation with the loop around it, so that the loop is compiled with the operation in it.
pub(super) trait Program: Send + Sync {
    /// Runs items, in order, until one's page is not the device's; how many it ran.
    fn run_items(&self, post: &Post<'_>, items: &[Item]) -> usize;
}

impl<O: Operation> Program for O {
    fn run_items(&self, post: &Post<'_>, items: &[Item]) -> usize {
        items.iter().position(|item| !post.operate(self, *item)).unwrap_or(items.len())
    }
}

/// What a worker has before it while it works on one view.
pub(super) struct Post<'a> {
    lane: &'a Lane,
    region: RegionId,
    page_words: &'a [Word],
    device: OwnerId,
    slot: &'a ViewSlot,
    core: &'a DeviceCore,
    words: &'a [AtomicU64],
    words_a_page: usize,
    config: SoftwareConfig,
}

impl Post<'_> {
    /// Runs the operation if the device has the page; `false` if it has not.
    #[inline]
    fn operate(&self, operation: &impl Operation, item: Item) -> bool {
        self.lane.publish(self.region, item.page);
        // The compiler must not move the check before the publication; the CPU's own order is the invalidation's business.
        compiler_fence(Ordering::SeqCst);
        let usable = !self.config.exclusive || self.may_use(item.page);
        if usable {
            let words = &self.words[item.page.as_usize() * self.words_a_page..][..self.words_a_page];
            operation.run(&DevicePage { words, pause: self.config.pause }, item.argument);
        }
        self.lane.withdraw();
        usable
    }

    #[inline]
    fn may_use(&self, page: PageIndex) -> bool {
        PageWord::from_bits(self.page_words[page.as_usize()].load()).usable_by(self.device)
            && !self.slot.is_stopped()
            && !self.core.is_lost()
    }
}

impl Crew {
    pub(super) fn start(handle: &DeviceHandle<Lanes>, config: SoftwareConfig) -> Result<Self, SpaceError> {
        let mut crew = Self { queues: Vec::new(), threads: Vec::new(), handle: handle.clone() };
        for lane in 0..config.workers {
            let queue = Arc::new(Queue::default());
            let worker = Worker { lane, config, queue: queue.clone(), handle: handle.clone() };
            let thread = thread::Builder::new()
                .name(format!("pagelease-sw-{lane}"))
                .spawn(move || worker.run())
                .map_err(|error| SpaceError::Thread(error.to_string()))?;
            crew.queues.push(queue);
            crew.threads.push(thread);
        }
        Ok(crew)
    }

    pub(super) fn submit(
        &self,
        device: &DeviceHandle<Lanes>,
        view: &View,
        program: &Arc<dyn Program>,
        parts: Vec<Vec<Item>>,
    ) -> Job {
        let busy = parts.iter().filter(|items| !items.is_empty()).count();
        let workers = u32::try_from(busy).expect("a thread each");
        let state = Arc::new(JobState::new(workers));
        if fork::in_child() {
            // Nobody will take it; a queue's lock may be one that the parent had when it forked.
            return Job { state, device: device.clone() };
        }
        for (queue, items) in self.queues.iter().zip(parts).filter(|(_, items)| !items.is_empty()) {
            let task = Task { job: state.clone(), view: view.clone(), program: program.clone(), items };
            queue.tasks.lock().expect("not poisoned").waiting.push_back(task);
            queue.changed.notify_one();
        }
        Job { state, device: device.clone() }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        if fork::in_child() {
            std::mem::forget(std::mem::take(&mut self.threads));
            return;
        }
        for queue in &self.queues {
            queue.tasks.lock().expect("not poisoned").closed = true;
            queue.changed.notify_all();
        }
        for (lane, thread) in self.threads.drain(..).enumerate() {
            // Work that was submitted is done first, however long it takes; only a worker whose device is lost may be stuck
            // for ever. It keeps what it uses alive, and its late stores land in a private copy.
            let lane = self.handle.lane(lane);
            let mut turn = 0;
            while !(lane.has_ended() || self.handle.lost().is_some() && lane.is_abandoned()) {
                turn += 1;
                relax(turn);
            }
            if lane.has_ended() {
                let _ = thread.join();
            }
        }
    }
}

struct Worker {
    lane: usize,
    config: SoftwareConfig,
    queue: Arc<Queue>,
    handle: DeviceHandle<Lanes>,
}

impl Worker {
    fn run(&self) {
        self.handle.lane(self.lane).begin(tid());
        while let Some(task) = self.next_task() {
            self.handle.activate();
            let result = catch_unwind(AssertUnwindSafe(|| self.run_task(&task)));
            self.handle.deactivate();
            let result = result.unwrap_or_else(|_| Err(self.panicked(&task)));
            // The job is over only when nothing of it is held any more: its view can be dropped and attached anew.
            let Task { job, view, program, items } = task;
            // An operation whose destructor panics has done its work all the same.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(program)));
            drop((view, items));
            job.finish_part(result);
        }
        self.handle.lane(self.lane).end();
    }

    fn next_task(&self) -> Option<Task> {
        let mut tasks = self.queue.tasks.lock().expect("not poisoned");
        loop {
            if let Some(task) = tasks.waiting.pop_front() {
                return Some(task);
            }
            if tasks.closed {
                return None;
            }
            tasks = self.queue.changed.wait(tasks).expect("not poisoned");
        }
    }

    fn run_task(&self, task: &Task) -> Result<(), JobError> {
        let post = self.post(task.view.core());
        let mut items = &task.items[..];
        report_reuse(task, &post);
        loop {
            items = &items[task.program.run_items(&post, items)..];
            if items.is_empty() {
                return Ok(());
            }
            if let Some(lost) = self.handle.lost() {
                return Err(lost.into());
            }
            items = self.claim_and_operate(task, &post, items)?;
        }
    }

    fn post<'a>(&'a self, view: &'a ViewCore) -> Post<'a> {
        let (words, words_a_page) = view.all_words();
        Post {
            lane: self.handle.lane(self.lane),
            region: view.region.id,
            page_words: &view.region.words,
            device: self.handle.id(),
            slot: view.slot(),
            core: &self.handle.core,
            words,
            words_a_page,
            config: self.config,
        }
    }

    /// Claims the first item's page, and in the same breath the pages that the items behind it lack; operates while it
    /// holds them. Returns what is left.
    fn claim_and_operate<'a>(&self, task: &Task, post: &Post<'_>, items: &'a [Item]) -> Result<&'a [Item], JobError> {
        let mut pages = [items[0].page; AHEAD];
        let mut count = 1;
        for item in items.iter().take(LOOK_AHEAD) {
            let known = pages[..count].contains(&item.page);
            if count < AHEAD && !known && !post.may_use(item.page) {
                pages[count] = item.page;
                count += 1;
            }
        }
        pages[..count].sort_unstable();
        let mut ranges = [single(pages[0]); AHEAD];
        for (range, &page) in ranges.iter_mut().zip(&pages[..count]) {
            *range = single(page);
        }
        let _lease = task.view.claim_scattered(merge(&mut ranges[..count]), Access::Exclusive)?;
        // Goes before the lease: its end may hand a page to a touch, which waits for whatever is published.
        let unwinding = Unwinding { worker: self, task };
        // No more operations than were looked at: the pages are held meanwhile, and a touch of them waits.
        // The clock is read seldom for short operations, and soon for long ones.
        let until = Deadline::at(now_ns() + HOLD_NS);
        let (mut left, mut batch) = (items, 1);
        loop {
            let tried = &left[..left.len().min(batch)];
            let done = task.program.run_items(post, tried);
            left = &left[done..];
            if done < tried.len() || left.is_empty() || until.passed() {
                core::mem::forget(unwinding);
                return Ok(left);
            }
            batch *= 2;
        }
    }

    /// The operation panicked on the page in the lane: the device cannot be trusted any more.
    fn panicked(&self, task: &Task) -> JobError {
        let lane = self.handle.lane(self.lane);
        self.handle.core.lose(task.view.core().region.id, lane.page(), Loss::Panicked);
        lane.withdraw();
        self.handle.lost().expect("just lost").into()
    }
}

/// Dropped only when an operation panics.
struct Unwinding<'a> {
    worker: &'a Worker,
    task: &'a Task,
}

impl Drop for Unwinding<'_> {
    fn drop(&mut self) {
        self.worker.panicked(self.task);
    }
}

/// Operations on pages that the device has already claim nothing, so that nobody would learn of them.
fn report_reuse(task: &Task, post: &Post<'_>) {
    let history = &task.view.core().region.history;
    if history.is_kept() {
        task.items.iter().filter(|item| post.may_use(item.page)).for_each(|item| history.used_again(item.page));
    }
}

/// Joins ranges that are adjacent; they ascend.
fn merge(ranges: &mut [PageRange]) -> &[PageRange] {
    let mut last = 0;
    for index in 1..ranges.len() {
        match PageRange::new(ranges[last].start(), ranges[index].end()) {
            Some(joined) if ranges[last].end() == ranges[index].start() => ranges[last] = joined,
            _ => {
                last += 1;
                ranges[last] = ranges[index];
            }
        }
    }
    &ranges[..=last]
}
