//! What the tests share: a device, or the reason why there is none, and kernels that wait to be let go.
#![allow(dead_code, reason = "each test file uses some of it")]

use std::borrow::Borrow;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};

use pagelease::submit::Submission;
use pagelease::{ByteLen, DeviceLost, Faults, PageIndex, PageRange, Region, Space, View};
use pagelease_device_tests::{Job, Kind, Running, Subject, skip};
use pagelease_opencl::{Arg, Buffers, Kernel, NdRange, OpenClDevice, OpenClQueue, OpenError, SubmitError};

/// Both ways to serve a touch.
pub(crate) const MODES: [Faults; 2] = [Faults::Monitor, Faults::InThread];

/// The kind of device, for the conformance suite and its skipping.
pub(crate) struct OpenCl;

/// A device of `space`; `None`, said so, where there is no driver.
pub(crate) fn device(space: &Space) -> Option<OpenClDevice> {
    match OpenClDevice::open(space) {
        Ok(device) => Some(device),
        Err(OpenError::Unavailable(why)) => {
            skip::<OpenCl>(&why.to_string());
            None
        }
        Err(error) => panic!("{error}"),
    }
}

impl Kind for OpenCl {
    type Device = Tested;
    const NAME: &'static str = "OpenCL";
    const PREEMPTIBLE: bool = false;
    const NEEDED: bool = true;

    fn start(space: &Space) -> Result<Tested, String> {
        let device = OpenClDevice::open(space).map_err(|error| error.to_string())?;
        let (add, gated) = (kernel(&device, "suite_add"), kernel(&device, "suite_gated"));
        Ok(Tested { device, add, gated })
    }
}

/// A device under the conformance suite.
pub(crate) struct Tested {
    device: OpenClDevice,
    add: Kernel,
    gated: Kernel,
}

pub(crate) struct Attached(Buffers);

impl Borrow<View> for Attached {
    fn borrow(&self) -> &View {
        self.0.view()
    }
}

impl Subject for Tested {
    type View = Attached;

    fn attach(&self, region: &Region) -> Attached {
        Attached(self.device.attach(region).expect("attached once"))
    }

    fn start(&self, view: &Attached, job: Job) -> Box<dyn Running + '_> {
        let (kernel, pages, rounds) = match job {
            Job::Add { pages, rounds } => (&self.add, pages, rounds),
            Job::Gated { page } => (&self.gated, PageRange::single(page).expect("a page"), 1),
        };
        let args = [Arg::Range(&view.0, pages), Arg::U32(rounds)];
        // SAFETY: one work item a page.
        let submission = unsafe { self.device.submit(kernel, NdRange::new([pages.len() as usize]), &args) };
        Box::new(Submitted(submission))
    }

    fn lost(&self) -> Option<DeviceLost> {
        self.device.handle().lost()
    }
}

struct Submitted(Result<Submission<OpenClQueue>, SubmitError>);

impl Running for Submitted {
    fn wait(self: Box<Self>) -> Result<(), String> {
        self.0.map_err(|error| error.to_string())?.wait().map_err(|error| error.to_string())
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

    // Those of the conformance suite: a word counts, one says that the job has begun, one lets it go on.
    kernel void suite_add(volatile global ulong *words, uint rounds) {
        words += 512 * get_global_id(0);
        for (uint round = 0; round < rounds; round++) words[0] = words[0] + 1;
    }

    kernel void suite_gated(volatile global ulong *words, uint rounds) {
        words[1] = 1;
        while (words[2] == 0) {}
        words[0] = words[0] + rounds;
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
