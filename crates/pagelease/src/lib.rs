//! Device-exclusive shared virtual memory for Linux, in user space.
//!
//! A device (a GPU, a KVM vCPU, an emulated accelerator, another process) is given **exclusive, atomic access** to pages of
//! an ordinary process. While it has them, the CPU mapping of those pages is really gone: any CPU touch faults, waits for
//! the operation in flight, tells the device to let go, and gets the page back with every byte the device wrote. Nobody
//! calls map or unmap; the MMU arbitrates. It is the user-space counterpart of Linux's `make_device_exclusive()`, HMM and
//! `mmu_interval_notifier`.
//!
//! ```
//! use pagelease::software::{DevicePage, Item, SoftwareConfig, SoftwareDevice};
//! use pagelease::{ByteLen, Space};
//! use std::sync::atomic::Ordering::Relaxed;
//!
//! let space = Space::new()?;
//! let region = space.allocate(ByteLen(1 << 20))?;
//! let device = SoftwareDevice::start(&space, SoftwareConfig::default())?;
//! let view = device.attach(&region)?;
//! // The device adds 41 by a load and a store; the CPU adds 1 to the same word at the same time.
//! let job = device.submit(&view, |page: &DevicePage<'_>, n| page.update(0, |v| v + n), &[Item::new(0, 41)]);
//! region.words()[0].fetch_add(1, Relaxed);
//! job.wait()?;
//! assert_eq!(region.words()[0].load(Relaxed), 42);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The pieces
//!
//! - [`Space`]: the runtime of a process. [`Faults`] says who serves a touch, [`RestorePolicy`] what happens when a device
//!   is done.
//! - [`Region`]: memory under management. It has a CPU view, where the program touches it, and a [`View`] a device, an alias
//!   of the same pages. The unit of ownership is a **granule**, 4 KiB; with [`Space::allocate_huge`], 2 MiB. The memory may be
//!   a file's: [`Space::map_file`]; or memory that the program has already, in place: [`Space::adopt`]. How pages are taken from the CPU is the region's [`BackendKind`].
//! - [`Device`]: what a driver implements; [`software`] has one that needs no hardware, [`submit`] what a driver needs whose
//!   device cannot fault.
//! - [`View::claim`] takes pages for the device; the [`Lease`] that it returns **holds** them. Dropping it ends the hold, not
//!   the exclusivity.
//! - A **touch** of a page that a device has takes it back; [`Region::prefetch`] does so ahead of the touches.
//! - [`Notifier`]: `read_begin` and `read_retry`, for a driver that maps what it has read.
//!
//! # What is guaranteed
//!
//! - *Exclusive.* While a device may use a page claimed with [`Access::Exclusive`], no CPU access to it and no other
//!   device's completes. With [`Access::ExclusiveWrite`] the CPU reads, and may see the device's stores half done.
//! - *Complete.* A touch goes on only after every operation of the device on that page has ended, and sees all of it.
//! - *Live.* A touch waits for a lease at most the hold limit, and for an operation in flight at most the drain limit; then the
//!   hold is broken, or the device lost, and the touch goes on. A claim never goes before a waiting touch. With
//!   [`RestorePolicy::Adaptive`], a touch of a page that CPU and device fight over leaves it with the device for up to 4 ms
//!   before that, once.
//! - *Quiet.* A device is invalidated only for pages that it has; a claim of what it has already is one atomic operation a
//!   page.
//!
//! # What it does not do
//!
//! It moves no data over a bus, schedules no kernels, and does not make a hostile device behave: the CPU side is enforced
//! by the MMU, the device side by the driver that implements [`Device`]. Input and output that the kernel started on a page
//! before the claim (splice, `io_uring`, `O_DIRECT`) is not stopped.
//!
//! # What the program does to the memory meanwhile
//!
//! `munmap`, `mremap`, `madvise`, `mprotect` and `fork` on adopted memory are followed: devices lose what the program gives up,
//! and keep what it moves. Memory that the runtime made has [`Region::protect`], [`Region::unmap`] and [`Region::remap`] for
//! that; a raw `munmap` or `mremap` goes around the runtime. docs/MEMORY.md of the repository has the table.
//!
//! # Signals, threads, fork
//!
//! - [`Faults::InThread`] uses SIGBUS, or, with [`BackendKind::Mprotect`], SIGSEGV. The handler is installed once a process and
//!   passes on what is not its own: a real segmentation fault stays one. **A thread that blocks the signal is killed by its
//!   first touch** of a device's page; `pagelease doctor --pid` finds such threads. A system call that touches a device's page
//!   fails with EFAULT; so it does with [`Privilege::UserModeOnly`]. With SIGSEGV, a thread whose stack lies in a region needs
//!   an alternate signal stack, and a handler that the program wants must be installed before the space is made: claims find
//!   one installed later, and are refused.
//! - Claims and everything else that has no other note is for ordinary code on any thread, not for signal handlers. Touches
//!   may come from anywhere, a signal handler that interrupts a claim of the same pages included.
//! - A child of fork has no region and no alias: touching their addresses is a segmentation fault. Of adopted memory it has a
//!   copy of its own, as of the moment of the fork, for which devices give their pages up first. What it inherited of the
//!   runtime does nothing (`Drop` and the signal handlers included); calls that can say so return `Forked`.

mod adopt;
mod adopted;
mod alike;
mod allocate;
mod backend;
mod changes;
mod claim;
mod device;
mod error;
mod forks;
mod gate;
mod guard;
mod history;
mod invalidate;
mod layout;
mod lease;
#[cfg(pagelease_shuttle)]
#[doc(hidden)]
pub mod mutant;
#[cfg(not(pagelease_shuttle))]
mod mutant;
mod notifier;
mod park;
mod records;
mod region;
mod registry;
mod reshape;
mod residency;
mod restore;
mod rights;
mod sequence;
mod service;
mod shared;
pub mod software;
mod space;
mod stats;
pub mod submit;
mod sync;
mod thrash;
mod touch;
mod view;

/// Simulated memory, for tests that explore schedules: regions of a space made with [`SpaceBuilder::simulated`].
///
/// A simulated region has no addresses. Its CPU view is a [`SimCpu`](sim::SimCpu), each access of which looks at a simulated
/// page table and traps where hardware would; everything behind the trap is the shipped engine.
pub mod sim {
    pub(crate) use crate::backend::sim::NextFault;
    pub use crate::backend::sim::{SimCpu, WORDS};
    #[cfg(pagelease_shuttle)]
    pub use crate::sync::explored::{SignalsBlocked, WordEvent, WordObserver, block_signals, interrupt, observe_words};
}

pub use backend::{BackendKind, Capabilities};
pub use device::{Device, DeviceHandle, Grant, Invalidation, NotDrained, RegionId};
pub use error::{
    AdoptError, AttachError, ClaimError, DeviceLost, LeaseBroken, LossReason, RangeError, RegionError, ReshapeError,
    SpaceError,
};
pub use lease::Lease;
pub use notifier::Notifier;
pub use pagelease_protocol::{Access, ByteLen, Cause, OwnerId, PageIndex, PageRange, Seq};
pub use pagelease_sys::mem::Protection;
pub use region::Region;
pub use space::{Faults, Privilege, RestorePolicy, Space, SpaceBuilder};
pub use stats::Stats;
pub use view::View;

/// The README's code is compiled and run with the documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
