//! One page, step by step: the CPU writes it, a device claims it, the CPU touches it and has it back.
//!
//! Run with `cargo run --example handoff`.

use std::error::Error;
use std::sync::atomic::Ordering::Relaxed;

use pagelease::software::{SoftwareConfig, SoftwareDevice};
use pagelease::{Access, ByteLen, PageIndex, PageRange, Space};

fn main() -> Result<(), Box<dyn Error>> {
    let space = Space::new()?;
    let region = space.allocate(ByteLen(16 << 10))?;
    let device = SoftwareDevice::start(&space, SoftwareConfig::default())?;
    let view = device.attach(&region)?;
    let page = PageIndex(0);

    // The CPU has every page to begin with.
    region.words()[0].store(1, Relaxed);
    assert!(!view.has(page));

    // A claim takes the CPU's mapping of the page away. While the lease lives, the page is held.
    let lease = view.claim(PageRange::single(page).ok_or("no such page")?, Access::Exclusive)?;
    println!("claimed: the device has {page}, and reads {}", view.words(page)[0].load(Relaxed));
    view.words(page)[0].store(2, Relaxed);

    // Ending the hold does not give the page back: the device keeps it until somebody needs it.
    lease.end()?;
    assert!(view.has(page));

    // The CPU touches it. The access faults, the device lets go, the page is mapped again, and the access goes on.
    println!("touched: the CPU reads {}", region.words()[0].load(Relaxed));
    assert!(!view.has(page));

    let stats = space.stats();
    println!("{} claim, {} touch, {} restore", stats.claims, stats.touches, stats.restores);
    assert_eq!((stats.claims, stats.touches, stats.restores), (1, 1, 1));
    Ok(())
}
