//! A C function runs on a virtual processor and follows the pointers of the program's own hash table, 40 MiB of chained nodes,
//! while the program uses it too. `index_by_copy` is the same job as it is done today.
//!
//! ```sh
//! cargo run --release -p pagelease-kvm --example index
//! ```

mod common;

use std::error::Error;
use std::time::Instant;

use common::{Index, ROUNDS, WORDS, check, code, keys};
use pagelease::{ByteLen, Space};
use pagelease_kvm::{KvmConfig, KvmDevice};

fn main() -> Result<(), Box<dyn Error>> {
    if let Err(why) = pagelease_kvm::available() {
        println!("skipped: {why}");
        return Ok(());
    }
    // The program's memory, with the program's data structure in it.
    let space = Space::new()?;
    let region = space.allocate(ByteLen(WORDS * 8))?;
    let index = Index::build(&region.words()[..WORDS]);

    // The device, which may use that memory, and its kernel.
    let device = KvmDevice::start(&space, KvmConfig::default())?;
    let _view = device.attach(&region)?;
    let kernel = device.load(&code("index.c")?)?;

    let begin = Instant::now();
    for round in 0..ROUNDS {
        let (of_device, of_program) = keys(round);
        // A pointer is a pointer: nothing has moved.
        let buckets = region.as_ptr().addr().get() as u64;
        let argument = [&[buckets, 0, of_device.len() as u64], &of_device[..]].concat();
        let job = device.submit(&kernel, &argument, 1)?;
        // Meanwhile the program goes on, on the same nodes.
        of_program.iter().for_each(|&key| index.count(key));
        assert_eq!(job.wait()?, [of_device.len() as u64]);
    }
    let took = begin.elapsed();
    check(&index);
    let stats = space.stats();
    println!("{ROUNDS} rounds on a shared index of {} MiB, exact: {took:?}", (WORDS * 8) >> 20);
    println!("{} claims by faults of the guest, {} pages taken back by touches", stats.claims, stats.restores);
    Ok(())
}
