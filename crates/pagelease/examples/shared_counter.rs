//! CPU threads and a device count on the same words at the same time. The device's update is a load, an addition and a
//! store, as on a bus without atomics; that every update counts is the work of exclusivity alone.
//!
//! Run with `cargo run --example shared_counter`.

use std::error::Error;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;

use pagelease::software::{DevicePage, Item, SoftwareConfig, SoftwareDevice};
use pagelease::{ByteLen, Faults, Space};

const PAGES: u32 = 4;
const WORDS_A_PAGE: usize = 512;
const UPDATES: u32 = 200_000;

fn main() -> Result<(), Box<dyn Error>> {
    // In-thread: a touch is served by the touching thread, in its SIGBUS handler. The default is monitor threads.
    let space = Space::builder().faults(Faults::InThread).build()?;
    let region = space.allocate(ByteLen(PAGES as usize * 4096))?;
    let device = SoftwareDevice::start(&space, SoftwareConfig { workers: 2, pause: 4, ..SoftwareConfig::default() })?;
    let view = device.attach(&region)?;

    let items: Vec<Item> = (0..UPDATES).map(|n| Item::new(n % PAGES, 1)).collect();
    let job = device.submit(&view, |page: &DevicePage<'_>, n| page.update(0, |value| value + n), &items);

    let words = region.words();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for n in 0..UPDATES as usize {
                    words[n % PAGES as usize * WORDS_A_PAGE].fetch_add(1, Relaxed);
                }
            });
        }
    });
    job.wait()?;

    let total: u64 = (0..PAGES as usize).map(|page| words[page * WORDS_A_PAGE].load(Relaxed)).sum();
    println!("{total} updates counted, {} made", 3 * UPDATES);
    println!("{:#?}", space.stats());
    assert_eq!(total, u64::from(3 * UPDATES));
    Ok(())
}
