//! The device's side: one interface for every device that counts, and the feeder that hands it chunk after chunk.
//!
//! The feeder prepares the next chunk while the device works: [`IN_FLIGHT`] chunks are submitted at most.
//!
//! | file | device |
//! |---|---|
//! | `software` | threads of this process |
//! | `kvm` | a vCPU, that runs machine code |
//! | `vulkan` | a compute shader |
//! | `opencl` | a kernel in OpenCL C |
//!
//! The last three run a kernel over a chunk in memory of their own (`chunks`), and take the chunk and the pages of the table as
//! they take any: by a claim.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::AtomicU8;

use anyhow::Result;
use clap::ValueEnum;
use pagelease::software::SoftwareConfig;
use pagelease::{Region, Space};

use super::split::{self, Split, Starting};
use super::{Args, Mode, RACY_PAUSE};
use crate::failure::BadInput;

mod chunks;
#[cfg(target_arch = "x86_64")]
mod kvm;
mod opencl;
mod software;
mod vulkan;

use opencl::OpenCl;
use software::Software;
use vulkan::Vulkan;

/// Chunks that a device has to work on, at most: one to do, and one for when it is done.
const IN_FLIGHT: usize = 2;

/// A device that counts into the table.
pub(super) trait Counting: Send {
    /// Has it count a chunk: one update for each unit, not atomic. At most [`IN_FLIGHT`] are waited for later.
    fn submit(&mut self, bytes: &[AtomicU8]) -> Result<Box<dyn Pending>>;
}

/// A chunk that a device has.
pub(super) trait Pending {
    /// Waits until it is counted.
    fn wait(self: Box<Self>) -> Result<()>;
}

/// Which device counts.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq, ValueEnum)]
pub(super) enum Which {
    /// Threads of this process, whose updates are deliberately not atomic
    #[default]
    Software,
    /// A virtual processor of Linux's KVM, on the program's own pointers
    Kvm,
    /// A Vulkan device: a compute shader
    Vulkan,
    /// An OpenCL device: a kernel in OpenCL C
    Opencl,
    /// Every device that this machine has, at once
    All,
}

/// Those that [`Which::All`] stands for.
const EACH: [Which; 4] = [Which::Software, Which::Kvm, Which::Vulkan, Which::Opencl];

impl Which {
    /// What reports call it.
    fn name(self) -> &'static str {
        match self {
            Self::Software => "software",
            Self::Kvm => "kvm",
            Self::Vulkan => "vulkan",
            Self::Opencl => "opencl",
            Self::All => "all",
        }
    }

    /// How one is started; `None` for several.
    fn starter(self) -> Option<Start> {
        match self {
            Self::Software => Some(software),
            Self::Kvm => Some(kvm),
            Self::Vulkan => Some(|args, space, table| Ok(Box::new(Vulkan::start(space, table, args.unit)?))),
            Self::Opencl => Some(|args, space, table| Ok(Box::new(OpenCl::start(space, table, args.unit)?))),
            Self::All => None,
        }
    }
}

/// Starts a device that counts into a table. Fails where there is none.
type Start = fn(&Args, &Space, &Region) -> Result<Box<dyn Counting>>;

/// The devices that count.
#[derive(Default)]
pub(super) struct Devices {
    pub(super) counting: Vec<(&'static str, Box<dyn Counting>)>,
    /// Those that this machine does not have, though all were asked for, and why.
    pub(super) missing: Vec<(&'static str, String)>,
}

impl Devices {
    /// Those that `args` ask for, on `table`.
    ///
    /// # Errors
    /// The one that was asked for is not there.
    pub(super) fn start(args: &Args, space: &Space, table: &Region) -> Result<Self> {
        if let Some(start) = args.device.starter() {
            let device = start(args, space, table)?;
            return Ok(Self { counting: vec![(args.device.name(), device)], missing: Vec::new() });
        }
        let mut devices = Self::default();
        for (which, start) in EACH.into_iter().filter_map(|which| Some((which, which.starter()?))) {
            match start(args, space, table) {
                Ok(device) => devices.counting.push((which.name(), device)),
                Err(why) => devices.missing.push((which.name(), format!("{why:#}"))),
            }
        }
        Ok(devices)
    }
}

/// Whether the options make sense for the device.
///
/// # Errors
/// They do not.
pub(super) fn check(args: &Args) -> Result<(), BadInput> {
    if args.device != Which::Software && matches!(args.mode, Mode::Racy) {
        return Err(BadInput::new(
            "only the software device can be made to work on pages that it does not have; leave --mode racy or --device out",
        ));
    }
    Ok(())
}

fn software(args: &Args, space: &Space, table: &Region) -> Result<Box<dyn Counting>> {
    let exclusive = matches!(args.mode, Mode::Exclusive);
    let pause = if exclusive { 0 } else { RACY_PAUSE };
    let config = SoftwareConfig { workers: args.device_workers, exclusive, pause };
    Ok(Box::new(Software::start(space, table, args.unit, config)?))
}

#[cfg(target_arch = "x86_64")]
fn kvm(args: &Args, space: &Space, table: &Region) -> Result<Box<dyn Counting>> {
    Ok(Box::new(kvm::Kvm::start(space, table, args.unit)?))
}

#[cfg(not(target_arch = "x86_64"))]
fn kvm(_: &Args, _: &Space, _: &Region) -> Result<Box<dyn Counting>> {
    pagelease_kvm::available()?;
    anyhow::bail!("there is no KVM device")
}

/// Has the device count `chunk`, and then chunk after chunk until none is left. Returns how many bytes that was.
pub(super) fn feed(split: &Split<'_>, device: &mut dyn Counting, chunk: Option<Range<u64>>) -> Result<u64> {
    let mut starting = Some(Starting(split));
    let mut in_flight: VecDeque<(Box<dyn Pending>, u64)> = VecDeque::new();
    let mut counted = 0;
    let mut finish = |(job, bytes): (Box<dyn Pending>, u64)| -> Result<()> {
        job.wait()?;
        counted += bytes;
        split.done(bytes);
        Ok(())
    };
    let mut next = chunk;
    while let Some(chunk) = next {
        if in_flight.len() == IN_FLIGHT
            && let Some(oldest) = in_flight.pop_front()
        {
            finish(oldest)?;
        }
        let job = device.submit(split.input.window(chunk.clone())?.bytes())?;
        drop(starting.take());
        in_flight.push_back((job, split::len(&chunk)));
        next = split.take();
    }
    in_flight.into_iter().try_for_each(&mut finish)?;
    Ok(counted)
}
