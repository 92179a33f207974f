//! The program's cells are the device's. `opencl_staging.rs` is the same program as OpenCL has it today.
//!
//! Run with `cargo run --release --package pagelease-opencl --example opencl_shared`.

use std::error::Error;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use pagelease::{ByteLen, Faults, Space};
use pagelease_opencl::{Arg, NdRange, OpenClDevice};

mod heat;
use heat::{CELLS, HEAT, KERNEL, ROUNDS, WALKERS, expected, next};

fn main() -> Result<(), Box<dyn Error>> {
    // A touch is served in the signal handler of the touching thread: half the time of the default.
    let space = Space::builder().faults(Faults::InThread).build()?;
    let device = OpenClDevice::open(&space)?;
    let spread = device.build(KERNEL)?.kernel("spread")?;

    let (mut from, mut to) = (space.allocate(ByteLen(8 * CELLS))?, space.allocate(ByteLen(8 * CELLS))?);
    let (mut from_buffers, mut to_buffers) = (device.attach(&from)?, device.attach(&to)?);

    let mut walkers = WALKERS;
    let start = Instant::now();
    for _ in 0..ROUNDS {
        let args = [Arg::Range(&from_buffers, from.pages()), Arg::Range(&to_buffers, to.pages())];
        // SAFETY: both have as many cells as there are work items.
        unsafe { device.submit(&spread, NdRange::new([CELLS]), &args) }?.wait()?;
        for at in &mut walkers {
            *at = next(*at, |i| to.words()[i].load(Relaxed));
            to.words()[*at].fetch_add(HEAT, Relaxed);
        }
        (from, to, from_buffers, to_buffers) = (to, from, to_buffers, from_buffers);
    }
    println!("{}: {ROUNDS} rounds on the program's own memory in {:?}", device.name(), start.elapsed());
    from.prefetch(from.pages());
    assert!(from.words().iter().zip(expected()).all(|(cell, expected)| cell.load(Relaxed) == expected));
    Ok(())
}
