//! The program's cells are the device's. `vulkan_staging.rs` is the same program as Vulkan has it today.
//!
//! Run with `cargo run --release --package pagelease-vulkan --example vulkan_shared`.

use std::error::Error;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use pagelease::{ByteLen, Faults, Region, Space};
use pagelease_vulkan::{Vulkan, VulkanDevice};

mod heat;
use heat::{CELLS, GROUP, HEAT, ROUNDS, SHADER, WALKERS, expected, next};

fn main() -> Result<(), Box<dyn Error>> {
    // A touch is served in the signal handler of the touching thread: half the time of the default.
    let space = Space::builder().faults(Faults::InThread).build()?;
    let device = VulkanDevice::start(&space, &Vulkan::load()?.best()?)?;
    let spread = device.kernel(SHADER, "spread")?;

    let (mut before, mut after) = (space.allocate(ByteLen(4 * CELLS))?, space.allocate(ByteLen(4 * CELLS))?);
    let (mut before_buffer, mut after_buffer) = (device.attach(&before)?, device.attach(&after)?);
    let groups = [u32::try_from(CELLS / GROUP)?, 1, 1];

    let mut walkers = WALKERS;
    let start = Instant::now();
    for _ in 0..ROUNDS {
        device.run(&spread).bind(0, before_buffer.all()).bind(1, after_buffer.all()).groups(groups)?.wait()?;
        for at in &mut walkers {
            *at = next(*at, |i| cells(&after)[i].load(Relaxed));
            cells(&after)[*at].fetch_add(HEAT, Relaxed);
        }
        (before, after, before_buffer, after_buffer) = (after, before, after_buffer, before_buffer);
    }
    println!("{}: {ROUNDS} rounds on the program's own memory in {:?}", device.name(), start.elapsed());
    before.prefetch(before.pages());
    assert!(cells(&before).iter().zip(expected()).all(|(cell, expected)| cell.load(Relaxed) == expected));
    Ok(())
}

/// A region's memory as cells of 32 bits.
fn cells(region: &Region) -> &[AtomicU32] {
    // SAFETY: the region's memory is mapped as long as it lives, aligned to a page, and accessed by atomics only.
    unsafe { std::slice::from_raw_parts(region.as_ptr().cast().as_ptr(), CELLS) }
}
