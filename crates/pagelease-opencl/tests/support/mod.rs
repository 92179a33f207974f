//! What the tests share: a device, or the reason why there is none, and kernels that wait to be let go.
#![allow(dead_code, reason = "each test file uses some of it")]

use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};

use pagelease::{ByteLen, Faults, PageIndex, PageRange, Region, Space};
use pagelease_opencl::{Arg, Buffers, Kernel, OpenClDevice, OpenError};

/// Both ways to serve a touch.
pub(crate) const MODES: [Faults; 2] = [Faults::Monitor, Faults::InThread];

/// A device of `space`; `None`, said so, where there is no driver. With `PAGELEASE_NEEDS_DEVICES=1`, as in CI, that is a failure.
pub(crate) fn device(space: &Space) -> Option<OpenClDevice> {
    match OpenClDevice::open(space) {
        Ok(device) => Some(device),
        Err(OpenError::Unavailable(why)) => {
            assert!(std::env::var_os("PAGELEASE_NEEDS_DEVICES").is_none_or(|value| value == "0"), "skipped: {why}");
            println!("skipped: {why}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// A space with `faults`, whose hold limit no test waits for by accident, and a region of `pages`.
pub(crate) fn space(faults: Faults, pages: u32) -> (Space, Region) {
    let space = Space::builder().faults(faults).drain_limit(Duration::from_secs(60)).build().expect("userfaultfd");
    let region = space.allocate(ByteLen(pages as usize * 4096)).expect("memory");
    (space, region)
}

pub(crate) fn pages(start: u32, end: u32) -> PageRange {
    PageRange::new(start, end).expect("not empty")
}

/// Waits for what another thread does; fails if it does not.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}: waited for a minute");
        thread::sleep(Duration::from_millis(1));
    }
}

/// The kernels of the tests. `gate` is a page on which a kernel says that it runs, and waits to be let go.
pub(crate) const KERNELS: &str = "
    #pragma OPENCL EXTENSION cl_khr_int64_base_atomics : enable

    kernel void add(global ulong *words, ulong n) { words[get_global_id(0)] += n; }

    kernel void add_atomically(global ulong *words, uint count, uint rounds) {
        for (uint round = 0; round < rounds; round++)
            for (uint word = 0; word < count; word++) atom_add((volatile global ulong *)&words[word], 1UL);
    }

    // A load, a while, a store: as on a bus without atomics.
    kernel void add_plainly(volatile global ulong *words, uint rounds) {
        for (uint round = 0; round < rounds; round++) {
            ulong value = words[0];
            for (volatile uint i = 0; i < 20; i++) {}
            words[0] = value + 1;
        }
    }

    kernel void add_at_the_gate(volatile global uint *gate, volatile global ulong *words, ulong n) {
        words[0] += n;
        atomic_inc(&gate[0]);
        while (atomic_or(&gate[1], 0) == 0) {}
        words[1] += n;
    }
";

/// Where a kernel waits. Not a managed page in the sense of the tests: the host stores to it through the device's own view.
pub(crate) struct Gate {
    buffers: Buffers,
    _region: Region,
}

impl Gate {
    pub(crate) fn new(space: &Space, device: &OpenClDevice) -> Self {
        let region = space.allocate(ByteLen(4096)).expect("memory");
        let buffers = device.attach(&region).expect("attached");
        Self { buffers, _region: region }
    }

    pub(crate) fn arg(&self) -> Arg<'_> {
        Arg::Range(&self.buffers, pages(0, 1))
    }

    /// How many kernels have come to it.
    pub(crate) fn arrived(&self) -> u64 {
        self.buffers.view().words(PageIndex(0))[0].load(SeqCst) & 0xffff_ffff
    }

    pub(crate) fn wait_for(&self, count: u64) {
        wait_until("a kernel at the gate", || self.arrived() >= count);
    }

    pub(crate) fn open(&self) {
        self.buffers.view().words(PageIndex(0))[0].fetch_or(1 << 32, SeqCst);
    }
}

pub(crate) fn kernel(device: &OpenClDevice, name: &str) -> Kernel {
    device.build(KERNELS).and_then(|program| program.kernel(name)).unwrap_or_else(|error| panic!("{error}"))
}
