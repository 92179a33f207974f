//! The conformance suite for devices, on a Vulkan device.

use std::borrow::Borrow;

use pagelease::{DeviceLost, Region, Space, View};
use pagelease_device_tests::{BEGUN, COUNT, GATE, Job, Kind, Running, Subject, suite};
use pagelease_vulkan::{Buffer, Kernel, Submission, VulkanDevice};

mod support;

/// Loads and stores, and no atomic addition. Each word's lower half is used. The count is carried in memory from round to round.
const SHADER: &str = "
    struct Job { first: u32, pages: u32, rounds: u32 }
    var<immediate> job: Job;
    @group(0) @binding(0) var<storage, read_write> words: array<atomic<u32>>;

    @compute @workgroup_size(1) fn add() {
        for (var round = 0u; round < job.rounds; round++) {
            for (var page = job.first; page < job.first + job.pages; page++) {
                let word = page * 1024u + 2u * COUNT;
                atomicStore(&words[word], atomicLoad(&words[word]) + 1u);
            }
        }
    }

    @compute @workgroup_size(1) fn gated() {
        let page = job.first * 1024u;
        atomicStore(&words[page + 2u * BEGUN], 1u);
        while atomicLoad(&words[page + 2u * GATE]) == 0u {}
        atomicStore(&words[page + 2u * COUNT], atomicLoad(&words[page + 2u * COUNT]) + 1u);
    }";

/// Each test has its own device; the validation layer listens to all.
struct Vulkan {
    device: VulkanDevice,
    add: Kernel,
    gated: Kernel,
    _clean: support::Clean,
}

/// A buffer, which the suite takes for a view.
struct Attached(Buffer);

impl Borrow<View> for Attached {
    fn borrow(&self) -> &View {
        self.0.view()
    }
}

impl Kind for Vulkan {
    type Device = Self;
    const NAME: &'static str = "vulkan";
    const PREEMPTIBLE: bool = false;
    const NEEDED: bool = true;

    fn start(space: &Space) -> Result<Self, String> {
        let device = VulkanDevice::start(space, &support::adapter()?).map_err(|error| error.to_string())?;
        let shader = [("COUNT", COUNT), ("BEGUN", BEGUN), ("GATE", GATE)]
            .into_iter()
            .fold(SHADER.to_owned(), |shader, (name, value)| shader.replace(name, &format!("{value}u")));
        let kernel = |entry| device.kernel(&shader, entry).map_err(|error| error.to_string());
        let (add, gated) = (kernel("add")?, kernel("gated")?);
        Ok(Self { device, add, gated, _clean: support::Clean })
    }
}

impl Subject for Vulkan {
    type View = Attached;

    fn attach(&self, region: &Region) -> Attached {
        Attached(self.device.attach(region).expect("attached once"))
    }

    fn start(&self, view: &Attached, job: Job) -> Box<dyn Running + '_> {
        let (kernel, first, pages, rounds) = match job {
            Job::Add { pages, rounds } => (&self.add, pages.start(), pages.len(), rounds),
            Job::Gated { page } => (&self.gated, page.0, 1, 1),
        };
        // Of the pages that are worked on, and no others.
        let page = |index: u32| u64::from(index) * 4096;
        let bytes = view.0.bytes(page(first)..page(first + pages));
        let immediates: Vec<u8> = [0, pages, rounds].into_iter().flat_map(u32::to_ne_bytes).collect();
        let run = self.device.run(kernel).bind(0, bytes).immediates(&immediates).groups([1; 3]);
        Box::new(Submitted(run.expect("it is handed to the driver")))
    }

    fn lost(&self) -> Option<DeviceLost> {
        self.device.handle().lost()
    }
}

struct Submitted(Submission);

impl Running for Submitted {
    fn wait(self: Box<Self>) -> Result<(), String> {
        self.0.wait().map_err(|error| error.to_string())
    }
}

suite!(Vulkan);
