//! `pagelease bench`: how fast, each figure beside its floor.
//!
//! A time in microseconds says little about a runtime: it says how fast the machine is, and how busy. So nothing is printed
//! alone. Each figure is measured together with its **floor**, the least that the kernel lets anybody pay for the same
//! (the bare system call on the same kind of memory, a handler of three lines), and what counts is the ratio.
//!
//! - Both arms run in turn, sample by sample, in one process; medians are compared. What else the machine does falls on both.
//! - Each thread is pinned, the same in both arms: see `cpus`. Each bench's file says what runs where, and why.
//! - A goal that is missed is shown as missed. The exit status says only whether measuring worked.
//!
//! | file | the question |
//! |---|---|
//! | `handoff` | what does a claim cost beyond the `madvise` it needs? |
//! | `touch` | what does a CPU touch cost beyond trapping and mapping? |
//! | `repeat` | what does a device pay for a page it has? |
//! | `drain` | what does taking a page from a working device cost? |
//! | `sequence` | what does reading a claimed buffer in order cost a page? |
//! | `scale` | does size matter? |
//! | `mprotect` | the same as `touch`, where pages are closed by `mprotect` |
//! | `peer` | how does it compare with `mprotect` and SIGSEGV for the whole allocation? |
//! | `policy` | when should a device give pages back, for which pattern of accesses? |
//! | `thrash` | what is got done while CPU and device fight over one page? |
//! | `moves` | (`move`) what does carrying the program's own pages cost beyond `UFFDIO_MOVE`? |
//! | `huge` | the same for whole huge pages; and how much faster is that than small ones? |
//! | `fork` | what does managed memory cost a program that forks? |
//! | `kvm` | what does a virtual processor cost as a device? |
//! | `kernel` | how does it compare with the kernel's own device-exclusive memory? |
//! | `submitting` | what does a submission cost beyond the driver's, and from which size on is it faster than copies? |
//! | `vulkan` | that, through Vulkan |
//! | `opencl` | that, through OpenCL |
//!
//! # JSON
//!
//! `--json` prints one array, of an object a figure:
//!
//! ```json
//! [
//!   {
//!     "bench": "handoff", "case": "64 pages, alone",
//!     "value_ns": 9100.0, "floor_ns": 8900.0, "ratio": 1.022, "goal": 1.15, "met": true
//!   }
//! ]
//! ```
//!
//! `ratio` is `value_ns / floor_ns`, and `goal` the most it should be: 0.1 for 'ten times faster'. Where the issue is not
//! time (a count, bytes), both times are `null`. Where there is no goal, `goal` and `met` are.

mod bare;
mod carried;
mod cpus;
mod drain;
mod figure;
mod fork;
mod handoff;
mod huge;
mod kernel;
#[cfg(target_arch = "x86_64")]
mod kvm;
mod managed;
mod moves;
mod mprotect;
mod opencl;
mod peer;
mod policy;
mod repeat;
mod scale;
mod sequence;
mod stats;
mod submitting;
mod thrash;
mod touch;
mod vulkan;

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};

use cpus::Cpus;
use figure::Figure;

/// Measure the runtime against the least that the kernel lets anybody pay
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to measure; everything unless given
    #[arg(value_enum)]
    benches: Vec<Bench>,
    /// Print one JSON array instead of tables
    #[arg(long)]
    json: bool,
    /// Take a sixth of the samples
    #[arg(long)]
    quick: bool,
    /// Be one of the two programs that `fork` compares: for itself to use
    #[arg(long, value_enum, hide = true)]
    fork_side: Option<fork::Side>,
}

#[derive(Copy, Clone, Debug, Eq, PartialEq, clap::ValueEnum)]
enum Bench {
    /// A claim, against the bare madvise
    Handoff,
    /// A CPU touch, against a bare handler
    Touch,
    /// A device operation on a page it has, against the same loop with nothing around it
    Repeat,
    /// A page taken from a working device, against a membarrier
    Drain,
    /// Reading a claimed buffer in order, against one UFFDIO_CONTINUE
    Sequence,
    /// A claim's cost a page from 64 pages to 1 Mi, and a region of 1 TiB
    Scale,
    /// A CPU touch on the mprotect backend, against a bare SIGSEGV handler
    Mprotect,
    /// CPU and device on the same memory, against mprotect and SIGSEGV
    Peer,
    /// Each restore policy on four patterns of accesses, against the better of lazy and eager
    Policy,
    /// CPU threads and a device on 8 words of one page: adaptive, against lazy
    Thrash,
    /// 1024 pages of the program's own memory there and back, against bare UFFDIO_MOVE
    Move,
    /// 64 MiB of the program's own memory in huge pages there and back, against bare UFFDIO_MOVE
    Huge,
    /// A fork with 1 GiB managed, against one with none
    Fork,
    /// A vCPU's update loop and faults, against the host's loop and the same device without claims
    #[cfg(target_arch = "x86_64")]
    Kvm,
    /// Claims and touches, against those of the kernel's own device-exclusive memory
    Kernel,
    /// A submission to a Vulkan device, against the bare one, and against staging copies
    Vulkan,
    /// A submission to an OpenCL device, against the bare one, and against staging copies
    Opencl,
}

/// What each bench is given.
struct Setup {
    cpus: Cpus,
    quick: bool,
}

impl Setup {
    /// How many samples to take where there are to be `full`.
    fn samples(&self, full: usize) -> usize {
        if self.quick { full.div_ceil(6) } else { full }
    }
}

impl Bench {
    fn run(self, setup: &Setup) -> Result<Vec<Figure>> {
        match self {
            Self::Handoff => handoff::run(setup),
            Self::Touch => touch::run(setup),
            Self::Repeat => repeat::run(setup),
            Self::Drain => drain::run(setup),
            Self::Sequence => sequence::run(setup),
            Self::Scale => scale::run(setup),
            Self::Mprotect => mprotect::run(setup),
            Self::Peer => peer::run(setup),
            Self::Policy => policy::run(setup),
            Self::Thrash => thrash::run(setup),
            Self::Move => moves::run(setup),
            Self::Huge => huge::run(setup),
            Self::Fork => fork::run(setup),
            #[cfg(target_arch = "x86_64")]
            Self::Kvm => kvm::run(setup),
            Self::Kernel => kernel::run(setup),
            Self::Vulkan => vulkan::run(setup),
            Self::Opencl => opencl::run(setup),
        }
    }

    fn all() -> &'static [Self] {
        <Self as clap::ValueEnum>::value_variants()
    }

    fn name(self) -> &'static str {
        match self {
            Self::Handoff => "handoff",
            Self::Touch => "touch",
            Self::Repeat => "repeat",
            Self::Drain => "drain",
            Self::Sequence => "sequence",
            Self::Scale => "scale",
            Self::Mprotect => "mprotect",
            Self::Peer => "peer",
            Self::Policy => "policy",
            Self::Thrash => "thrash",
            Self::Move => "move",
            Self::Huge => "huge",
            Self::Fork => "fork",
            #[cfg(target_arch = "x86_64")]
            Self::Kvm => "kvm",
            Self::Kernel => "kernel",
            Self::Vulkan => "vulkan",
            Self::Opencl => "opencl",
        }
    }

    fn about(self) -> String {
        let value = clap::ValueEnum::to_possible_value(&self);
        value.and_then(|value| value.get_help().map(ToString::to_string)).unwrap_or_default()
    }
}

/// Measures, and prints what it found.
///
/// # Errors
///
/// When something could not be measured. A goal that was missed is no error.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    // The one bench that does with one CPU, since where it belongs there is no more.
    let cpus = if args.benches == [Bench::Kernel] { Cpus::take_one()? } else { Cpus::take()? };
    let setup = Setup { cpus, quick: args.quick };
    if let Some(side) = args.fork_side {
        return fork::serve(side, &setup);
    }
    let benches = if args.benches.is_empty() { Bench::all() } else { &args.benches[..] };
    let mut out = std::io::stdout();
    let mut all = Vec::new();
    for &bench in benches {
        let figures = bench.run(&setup).with_context(|| format!("bench {}", bench.name()))?;
        if args.json {
            all.extend(figures.iter().map(|figure| figure.to_json(bench.name())));
        } else {
            writeln!(out, "{}: {}", bench.name(), bench.about())?;
            writeln!(out, "{}", figure::table(&figures))?;
            out.flush()?;
        }
    }
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&all)?)?;
    }
    Ok(ExitCode::SUCCESS)
}
