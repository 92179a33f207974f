//! The suite on the software device.

use std::thread;

use pagelease::software::{self, DevicePage, Item, SoftwareConfig, SoftwareDevice};
use pagelease::{DeviceLost, Region, Space, View};
use pagelease_device_tests::{BEGUN, COUNT, GATE, Job, Kind, Running, Subject, suite};

struct Software(SoftwareDevice);

impl Kind for Software {
    type Device = Self;
    const NAME: &'static str = "software";
    const PREEMPTIBLE: bool = false;
    const NEEDED: bool = true;

    fn start(space: &Space) -> Result<Self, String> {
        let config = SoftwareConfig { workers: 2, ..SoftwareConfig::default() };
        SoftwareDevice::start(space, config).map(Self).map_err(|error| error.to_string())
    }
}

impl Subject for Software {
    type View = View;

    fn attach(&self, region: &Region) -> View {
        self.0.attach(region).expect("attached once")
    }

    fn start(&self, view: &View, job: Job) -> Box<dyn Running + '_> {
        match job {
            Job::Add { pages, rounds } => {
                let items: Vec<_> = (0..rounds).flat_map(|_| pages.iter().map(|page| Item::new(page.0, 1))).collect();
                let add = |page: &DevicePage<'_>, n| page.update(COUNT, |value| value + n);
                Box::new(Submitted(self.0.submit(view, add, &items)))
            }
            Job::Gated { page } => Box::new(Submitted(self.0.submit(view, gated, &[Item::new(page.0, 1)]))),
        }
    }

    fn lost(&self) -> Option<DeviceLost> {
        self.0.handle().lost()
    }
}

fn gated(page: &DevicePage<'_>, n: u64) {
    page.store(BEGUN, 1);
    while page.load(GATE) == 0 {
        thread::yield_now();
    }
    page.update(COUNT, |value| value + n);
}

struct Submitted(software::Job);

impl Running for Submitted {
    fn wait(self: Box<Self>) -> Result<(), String> {
        self.0.wait().map_err(|error| error.to_string())
    }
}

suite!(Software);
