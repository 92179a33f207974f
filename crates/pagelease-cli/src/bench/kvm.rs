//! `kvm`: what a virtual processor costs as a device.
//!
//! | case | value | floor |
//! |---|---|---|
//! | warm update loop | one job that adds 1 to each word of 8 pages that the device has, over and over | the same machine code, called on the host |
//! | a fault answered | one job that touches pages that the CPU has, the last first, so that none is claimed ahead; a page | the same vCPU code on a device whose fault thread asks nobody: it reads the message and continues the page (`KvmConfig::exclusive` off) |
//! | faults in sequence | the same pages, the first first: the claims reach ahead | the same |
//!
//! A job's time is read by its own code from the time stamp counter, so that making a job is no part of it.
//!
//! Placement: the vCPU here, where the measuring thread sleeps meanwhile; what answers its faults there. The CPU of neither is
//! kept awake: the threads of a fault wake each other in both arms.

use anyhow::{Context, Result};
use pagelease::{ByteLen, PageRange, Region, Space};
use pagelease_kvm::{Kernel, KvmConfig, KvmDevice, KvmView};
use pagelease_sys::thread::monotonic_ns;
use pagelease_sys::{Span, mem};

use super::figure::Figure;
use super::managed::pages;
use super::stats::{Arms, spin_for};
use super::{Setup, cpus};
use crate::failure;

/// Pages of the warm loop.
const WARM_PAGES: usize = 8;
/// Its rounds: some two milliseconds, which fit into a time slice.
const WARM_ROUNDS: usize = 300;
/// Pages of a job whose faults run in sequence.
const FAULTS: usize = 64;
/// Pages of a job whose faults do not: about a millisecond, which other programs seldom interrupt.
const FEW: usize = 16;

std::arch::global_asm!(
    ".pushsection .text",
    ".globl pagelease_bench_kvm_update, pagelease_bench_kvm_touch, pagelease_bench_kvm_end",
    // (words, count, rounds): the ticks that it took
    "pagelease_bench_kvm_update:",
    "lfence",
    "rdtsc",
    "shl rdx, 32",
    "lea r11, [rax + rdx]",
    "mov r8, [rdi]",
    "mov r9, [rdi + 8]",
    "mov r10, [rdi + 16]",
    "2: xor ecx, ecx",
    "3: add qword ptr [r8 + rcx * 8], 1",
    "inc rcx",
    "cmp rcx, r9",
    "jb 3b",
    "dec r10",
    "jnz 2b",
    "lfence",
    "rdtsc",
    "shl rdx, 32",
    "add rax, rdx",
    "sub rax, r11",
    "ret",
    // (address, pages, step): likewise
    "pagelease_bench_kvm_touch:",
    "lfence",
    "rdtsc",
    "shl rdx, 32",
    "lea r11, [rax + rdx]",
    "mov r8, [rdi]",
    "mov rcx, [rdi + 8]",
    "mov r10, [rdi + 16]",
    "2: add qword ptr [r8], 1",
    "add r8, r10",
    "dec rcx",
    "jnz 2b",
    "lfence",
    "rdtsc",
    "shl rdx, 32",
    "add rax, rdx",
    "sub rax, r11",
    "ret",
    "pagelease_bench_kvm_end:",
    ".popsection",
);

unsafe extern "C" {
    #[link_name = "pagelease_bench_kvm_update"]
    safe fn update(argument: *const u64, lane: u64, lanes: u64) -> u64;
    #[link_name = "pagelease_bench_kvm_touch"]
    static TOUCH: u8;
    #[link_name = "pagelease_bench_kvm_end"]
    static END: u8;
}

/// The machine code from `start` to `end`.
fn code(start: *const u8, end: *const u8) -> &'static [u8] {
    // SAFETY: two labels in one section, in this order, of code, which is constant.
    unsafe { std::slice::from_raw_parts(start, end.offset_from(start).unsigned_abs()) }
}

pub(super) fn run(setup: &Setup) -> Result<Vec<Figure>> {
    if let Err(why) = pagelease_kvm::available() {
        failure::say(format_args!("bench kvm: skipped: {why}"));
        return Ok(Vec::new());
    }
    let space = Space::new()?;
    let managed = Arm::new(&space, true)?;
    let bare = Arm::new(&space, false)?;
    cpus::pin_named("pagelease-kvm-0", 2, setup.cpus.here)?;
    cpus::pin_named("pagelease-kvm-f", 2, setup.cpus.there)?;
    cpus::pin_named("pagelease-kvm-h", 2, setup.cpus.there)?;

    let clock = Clock::new();
    let warm = warm(setup, clock, &managed, &bare.region)?;
    let last_first = faults(setup, clock, &managed, &bare, FEW, true)?;
    let in_sequence = faults(setup, clock, &managed, &bare, FAULTS, false)?;
    Ok(vec![
        Figure::of("warm update loop, a word", &warm, WARM_PAGES * 512 * WARM_ROUNDS).goal(1.3),
        Figure::of("a fault answered", &last_first, FEW).goal(1.15),
        Figure::of("faults in sequence, a page", &in_sequence, FAULTS),
    ])
}

/// A device with a region of its own.
struct Arm {
    region: Region,
    device: KvmDevice,
    view: KvmView,
    update: Kernel,
    touch: Kernel,
}

impl Arm {
    fn new(space: &Space, exclusive: bool) -> Result<Self> {
        let region = space.allocate(ByteLen(FAULTS * pagelease_sys::page_size()))?;
        region.words().iter().step_by(512).for_each(|word| word.store(1, std::sync::atomic::Ordering::Relaxed));
        let device = KvmDevice::start(space, KvmConfig { exclusive, ..KvmConfig::default() })?;
        let view = device.attach(&region)?;
        let (start, touch, end) = (update as *const u8, &raw const TOUCH, &raw const END);
        let (update, touch) = (device.load(code(start, touch))?, device.load(code(touch, end))?);
        Ok(Self { region, device, view, update, touch })
    }

    /// The ticks that a job of one lane says it took.
    fn run(&self, kernel: &Kernel, argument: &[u64]) -> Result<u64> {
        let ticks = self.device.submit(kernel, argument, 1)?.wait()?;
        ticks.first().copied().context("a lane")
    }

    fn address(&self) -> u64 {
        self.region.as_ptr().addr().get() as u64
    }

    /// All pages are the CPU's, and absent from the device's view.
    fn give_back(&self) -> Result<()> {
        self.region.prefetch(self.all());
        let view = self.view.view().as_ptr().context("a mapping")?;
        let span = Span::new(view.addr().get(), view.len()).context("whole pages")?;
        // SAFETY: a shared mapping, which the idle device does not use: only its pages go.
        Ok(unsafe { mem::dont_need(span) }?)
    }

    fn all(&self) -> PageRange {
        pages(0, FAULTS)
    }
}

/// What makes nanoseconds of ticks.
#[derive(Copy, Clone)]
struct Clock {
    ticks_a_us: u64,
}

impl Clock {
    fn new() -> Self {
        // SAFETY: every x86-64 processor has the instruction.
        let ticks = || unsafe { core::arch::x86_64::_rdtsc() };
        let (begin, begin_ns) = (ticks(), monotonic_ns());
        spin_for(20_000_000);
        let (end, end_ns) = (ticks(), monotonic_ns());
        Self { ticks_a_us: ((end - begin) * 1000 / (end_ns - begin_ns)).max(1) }
    }

    fn ns(self, ticks: u64) -> u64 {
        ticks * 1000 / self.ticks_a_us
    }
}

fn warm(setup: &Setup, clock: Clock, managed: &Arm, host: &Region) -> Result<Arms> {
    let argument = |address: u64| [address, (WARM_PAGES * 512) as u64, WARM_ROUNDS as u64];
    let on_host = argument(host.as_ptr().addr().get() as u64);
    Arms::in_turn(
        setup.samples(300),
        |_| managed.run(&managed.update, &argument(managed.address())).map(|ticks| clock.ns(ticks)),
        |_| Ok(clock.ns(update(on_host.as_ptr(), 0, 1))),
    )
}

fn faults(setup: &Setup, clock: Clock, managed: &Arm, bare: &Arm, count: usize, last_first: bool) -> Result<Arms> {
    let page = pagelease_sys::page_size() as u64;
    let sample = |arm: &Arm| {
        arm.give_back()?;
        let last = arm.address() + (count as u64 - 1) * page;
        let (from, step) = if last_first { (last, page.wrapping_neg()) } else { (arm.address(), page) };
        arm.run(&arm.touch, &[from, count as u64, step]).map(|ticks| clock.ns(ticks))
    };
    Arms::in_turn(setup.samples(16_000 / count), |_| sample(managed), |_| sample(bare))
}
