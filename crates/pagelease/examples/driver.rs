//! A driver with a page table of its own: what implementing [`Device`] takes.
//!
//! The "hardware" here reads and writes only through the table. The one lock of the table is the whole trick: `map` asks
//! under it whether the grant still stands, `invalidate` unmaps under it, so a stale page is never mapped. An access holds
//! the lock too, which makes `invalidate` wait for it; a real driver flushes its TLB and waits for a fence instead.
//!
//! Run with `cargo run --example driver`.

use std::collections::HashSet;
use std::error::Error;
use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;

use pagelease::{Access, ByteLen, Device, Grant, Invalidation, NotDrained, PageIndex, PageRange, Space, View};

#[derive(Default)]
struct Accelerator {
    table: Mutex<HashSet<PageIndex>>,
}

impl Device for Accelerator {
    fn name(&self) -> &'static str {
        "accelerator"
    }

    // It takes a mutex, so it is not: in in-thread mode a service thread would call `invalidate`.
    fn signal_safe(&self) -> bool {
        false
    }

    fn map(&self, grant: &Grant<'_>) -> bool {
        let mut table = self.table.lock().expect("not poisoned");
        let stands = grant.stands();
        if stands {
            table.extend(grant.pages());
        }
        stands
    }

    fn invalidate(&self, invalidation: &Invalidation) -> Result<(), NotDrained> {
        println!("  invalidate {}: {:?}", invalidation.pages(), invalidation.cause());
        let pages = invalidation.pages();
        self.table.lock().expect("not poisoned").retain(|&page| !pages.contains(page));
        Ok(())
    }
}

impl Accelerator {
    /// Doubles the first word of `page`; `false` is a device fault: the page is not mapped.
    fn double(&self, view: &View, page: PageIndex) -> bool {
        let table = self.table.lock().expect("not poisoned");
        let mapped = table.contains(&page);
        if mapped {
            let word = &view.words(page)[0];
            word.store(word.load(Relaxed) * 2, Relaxed);
        }
        mapped
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let space = Space::new()?;
    let region = space.allocate(ByteLen(1 << 20))?;
    let device = space.register(Accelerator::default())?;
    let view = region.attach(&device)?;
    let page = PageIndex(3);
    let word = &region.words()[3 * 512];

    for round in 1..=3 {
        word.fetch_add(1, Relaxed);
        while !device.double(&view, page) {
            println!("round {round}: device fault on {page}, claiming it");
            // Dropped at once: the device keeps the page anyway until the CPU touches it.
            let _lease = view.claim(PageRange::single(page).ok_or("no such page")?, Access::Exclusive)?;
        }
    }
    println!("((0 + 1) * 2 + 1) * 2 + 1) * 2 = {}", word.load(Relaxed));
    assert_eq!(word.load(Relaxed), 14);
    assert_eq!(space.stats().invalidations_spurious, 0);
    Ok(())
}
