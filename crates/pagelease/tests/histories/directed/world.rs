//! The real engine on simulated memory, and actors that do what their programs say.

use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use std::collections::VecDeque;

use pagelease::sim::{SimCpu, WORDS, block_signals};
use pagelease::{
    ByteLen, Device, DeviceHandle, Grant, Invalidation, Lease, NotDrained, PageIndex, Region, Space, View,
};
use shuttle::sync::Mutex;
use shuttle::thread;

use super::direct::{Shared, lock};
use super::history::{Actor, History, Kind, Operation, Setting};
use super::stage::Act;

/// Runs the actors of the history, and then looks at the pages.
pub(super) fn enact(history: &History, stage: &Shared) {
    let world = World::new(history);
    for page in 0..history.setting.pages {
        // It loads the word of the page: the stage learns where that lies.
        let _ = world.cpu.is_waited_for(word(page));
    }
    thread::scope(|scope| {
        for (index, actor) in history.actors.iter().enumerate().filter(|(_, actor)| actor.kind != Kind::Monitor) {
            let world = &world;
            let running = scope.spawn(move || world.perform(index, actor, stage));
            lock(stage).enlist(index, running.thread().id().into());
        }
        lock(stage).act = Act::Directed;
    });
    lock(stage).act = Act::Over;
    world.check(stage);
}

fn word(page: u32) -> usize {
    page as usize * WORDS
}

struct World {
    setting: Setting,
    devices: Vec<(DeviceHandle<Driver>, View)>,
    cpu: SimCpu,
    region: Region,
    space: Space,
    /// How often each page was added to. No scheduling point.
    added: Vec<AtomicU64>,
}

impl World {
    fn new(history: &History) -> Self {
        let setting = history.setting;
        // A finite limit passes when the history says so, however long it is.
        let hold_limit = if setting.limit_passes { Duration::from_millis(1) } else { Duration::MAX };
        let builder = Space::builder().simulated().faults(setting.faults).restore(setting.policy).monitors(1);
        let space = builder.hold_limit(hold_limit).drain_limit(Duration::MAX).build().expect("nothing of the system");
        let pages = setting.pages as usize;
        let region = space.allocate(ByteLen(pages * pagelease_sys::page_size())).expect("a few pages");
        let last = history.actors.iter().filter_map(|actor| match actor.kind {
            Kind::Device(id) => Some(id),
            Kind::Cpu | Kind::Monitor => None,
        });
        let devices = (1..=last.max().unwrap_or(0)).map(|number| {
            let handle = space.register(Driver { table: Mutex::new(vec![false; pages]) }).expect("few devices");
            assert_eq!(handle.id().get(), number, "devices are numbered in order");
            let view = region.attach(&handle).expect("it has no view yet");
            (handle, view)
        });
        Self {
            setting,
            devices: devices.collect(),
            cpu: region.sim_cpu().expect("a simulated region"),
            region,
            space,
            added: (0..pages).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    fn perform(&self, index: usize, actor: &Actor, stage: &Shared) {
        let mut leases = VecDeque::new();
        // A scheduling point: an operation does not end in the same step as its last change, whatever the engine does.
        let end = shuttle::sync::atomic::AtomicBool::new(false);
        for (at, &operation) in actor.program.iter().enumerate() {
            lock(stage).halt_at_operation(index, at);
            thread::yield_now();
            match (operation, actor.kind) {
                (Operation::Add(page), Kind::Device(device)) => self.add_by_device(device, page, || {
                    lock(stage).halt_midway(index);
                    thread::yield_now();
                }),
                (Operation::Touch(page) | Operation::Add(page), _) => {
                    self.cpu.fetch_add(word(page), 1);
                    self.added[page as usize].fetch_add(1, Ordering::Relaxed);
                }
                (Operation::Load(page), _) => _ = self.cpu.load(word(page)),
                (Operation::Prefetch(pages), _) => self.region.prefetch(pages),
                (Operation::Claim(pages), Kind::Device(device)) => {
                    let claimed = self.device(device).1.claim(pages, self.setting.access);
                    leases.push_back(claimed.expect("nothing forbids the claim"));
                }
                (Operation::Drop, _) => drop::<Option<Lease>>(leases.pop_front()),
                (Operation::Claim(_), _) => unreachable!("only devices claim"),
            }
            end.store(true, Ordering::SeqCst);
        }
        lock(stage).halt_at_operation(index, actor.program.len());
    }

    fn device(&self, number: u8) -> &(DeviceHandle<Driver>, View) {
        &self.devices[usize::from(number) - 1]
    }

    /// As a device does, under the lock of its table, so that an invalidation drains it.
    fn add_by_device(&self, device: u8, page: u32, midway: impl Fn()) {
        let (handle, view) = self.device(device);
        let table = handle.table.lock().expect("not poisoned");
        if table[page as usize] {
            let count = &view.words(PageIndex(page))[0];
            let before = count.load(Ordering::SeqCst);
            midway();
            count.store(before + 1, Ordering::SeqCst);
            self.added[page as usize].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Every page shows what was added to it, and the engine has not troubled anybody for nothing.
    fn check(&self, stage: &Shared) {
        for (page, added) in (0..self.setting.pages).zip(&self.added) {
            // A write, so that the page comes back whatever the access.
            let (shown, added) = (self.cpu.fetch_add(word(page), 0), added.load(Ordering::Relaxed));
            if shown != added {
                lock(stage).fail(format!("at the end, page {page} shows {shown}, but {added} was added to it"));
            }
        }
        let spurious = self.space.stats().invalidations_spurious;
        if spurious != 0 {
            lock(stage).fail(format!("{spurious} invalidations reached a device that had nothing"));
        }
    }
}

/// A device with a page table behind one lock. It may be called from signal handlers.
struct Driver {
    table: Mutex<Vec<bool>>,
}

impl Device for Driver {
    fn name(&self) -> &'static str {
        "directed"
    }

    fn signal_safe(&self) -> bool {
        true
    }

    fn map(&self, grant: &Grant<'_>) -> bool {
        let _blocked = block_signals();
        let mut table = self.table.lock().expect("not poisoned");
        let stands = grant.stands();
        if stands {
            for page in grant.pages() {
                table[page.as_usize()] = true;
            }
        }
        stands
    }

    fn invalidate(&self, invalidation: &Invalidation) -> Result<(), NotDrained> {
        let mut table = self.table.lock().expect("not poisoned");
        for page in invalidation.pages().iter() {
            table[page.as_usize()] = false;
        }
        Ok(())
    }
}
