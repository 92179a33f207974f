//! The conformance suite of devices, on a KVM device.
#![cfg(target_arch = "x86_64")]

mod support;

use std::borrow::Borrow;
use std::time::Duration;

use pagelease::{DeviceLost, Region, Space, View};
use pagelease_device_tests::{BEGUN, COUNT, GATE, Job, Kind, Running, Subject, suite};
use pagelease_kvm::{Kernel, KvmConfig, KvmDevice, KvmView};
use support::{add, gated, lacking};

suite!(Kvm);

struct Kvm {
    device: KvmDevice,
    add: Kernel,
    gated: Kernel,
}

struct Attached {
    view: KvmView,
    start: u64,
}

impl Borrow<View> for Attached {
    fn borrow(&self) -> &View {
        self.view.view()
    }
}

impl Kind for Kvm {
    type Device = Self;
    const NAME: &'static str = "KVM";
    const PREEMPTIBLE: bool = true;
    const NEEDED: bool = false;

    fn start(space: &Space) -> Result<Self, String> {
        pagelease_kvm::available().map_err(|why| lacking(&why))?;
        // No machine is so busy.
        let config = KvmConfig { vcpus: 2, deadline: Duration::from_secs(120), ..KvmConfig::default() };
        let device = KvmDevice::start(space, config).map_err(|why| why.to_string())?;
        let load = |code| device.load(code).map_err(|why| why.to_string());
        let (add, gated) = (load(add())?, load(gated())?);
        Ok(Self { device, add, gated })
    }
}

impl Subject for Kvm {
    type View = Attached;

    fn attach(&self, region: &Region) -> Attached {
        let view = self.device.attach(region).expect("attached once");
        Attached { view, start: region.as_ptr().addr().get() as u64 }
    }

    fn start(&self, attached: &Attached, job: Job) -> Box<dyn Running + '_> {
        let address = |page: u32, word: usize| attached.start + u64::from(page) * 4096 + word as u64 * 8;
        let (kernel, argument) = match job {
            Job::Add { pages, rounds } => {
                (&self.add, [address(pages.start(), COUNT), pages.len().into(), rounds.into(), 4096])
            }
            Job::Gated { page } => {
                (&self.gated, [address(page.0, BEGUN), address(page.0, GATE), address(page.0, COUNT), 0])
            }
        };
        Box::new(Submitted(self.device.submit(kernel, &argument, 1).expect("there is room")))
    }

    fn lost(&self) -> Option<DeviceLost> {
        self.device.handle().lost()
    }
}

struct Submitted(pagelease_kvm::Job);

impl Running for Submitted {
    fn wait(self: Box<Self>) -> Result<(), String> {
        self.0.wait().map(drop).map_err(|error| error.to_string())
    }
}
