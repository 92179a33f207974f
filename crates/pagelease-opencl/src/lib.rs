//! OpenCL devices on the memory of a process.
//!
//! A kernel in OpenCL C runs on ranges of a [`Region`](pagelease::Region). While it runs, the pages are the device's: whoever
//! touches one waits until the kernel has ended, and sees all that it wrote. There is no buffer to fill, nothing to read back,
//! and nothing to map: the CPU's pointers and the kernel's are two views of the same pages.
//!
//! ```no_run
//! use pagelease::{ByteLen, Space};
//! use pagelease_opencl::{Arg, NdRange, OpenClDevice};
//! use std::sync::atomic::Ordering::Relaxed;
//!
//! let space = Space::new()?;
//! let device = OpenClDevice::open(&space)?;
//! let region = space.allocate(ByteLen(1 << 20))?;
//! let buffers = device.attach(&region)?;
//! let program = device.build(
//!     "kernel void add(global ulong *words, ulong n) { words[get_global_id(0)] += n; }",
//! )?;
//! let add = program.kernel("add")?;
//!
//! let words = region.words();
//! words[7].store(1, Relaxed);
//! let args = [Arg::Range(&buffers, region.pages()), Arg::U64(41)];
//! // SAFETY: one work item a word; the kernel touches no other memory.
//! let submission = unsafe { device.submit(&add, NdRange::new([words.len()]), &args) }?;
//! // Traps, waits for the kernel, and has the page back.
//! assert_eq!(words[7].load(Relaxed), 42);
//! submission.wait()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The pieces
//!
//! - [`available`] says what there is: the devices, or the exact reason why there are none, with a remedy. `libOpenCL.so.1` is
//!   loaded when it is first needed; nothing is linked.
//! - [`OpenClDevice`] is a device of a space: opened, or over a context and queue that the program has already
//!   ([`OpenClDevice::adopt`]).
//! - [`Buffers`] is a region as OpenCL sees it: `CL_MEM_USE_HOST_PTR` buffers over the device's view.
//! - [`Program`] and [`Kernel`]: OpenCL C; what the compiler had to say is in the error.
//! - [`OpenClDevice::submit`] runs a kernel on [`Arg`]s over an [`NdRange`]; [`OpenClDevice::enqueue`] runs whatever commands
//!   the program enqueues itself.
//!
//! # What is guaranteed
//!
//! A submission claims the pages that it names, exclusively, and holds them until its event says that it has ended; then they
//! stay with the device or go back, by the space's [`RestorePolicy`](pagelease::RestorePolicy). A touch waits for it, at most the
//! drain limit; a kernel that does not end by then costs the device its access, and the CPU goes on. OpenCL has no call that ends a
//! kernel: its thread, and the memory that it may still use, stay until it ends of itself.
//!
//! # Which devices, which memory
//!
//! A driver that works on the memory itself, as one for the CPU or an integrated GPU does, is found out by trying, and gets plain
//! submissions: [`OpenClDevice::in_place`]. Any other is told before each submission to take its ranges from memory, and after it to put
//! them back there; what it copies are the pages that the submission has.
//!
//! Regions whose devices have an alias of the memory ([`Capabilities::alias`](pagelease::Capabilities)): all but adopted ones, whose
//! pages are carried, and cannot be where a driver has noted them. Larger ones than `CL_DEVICE_MAX_MEM_ALLOC_SIZE` are
//! several buffers; one argument must lie in one of them ([`Buffers::chunk_of`]).
//!
//! # What it does not do
//!
//! It checks arguments against the kernel's declaration, but OpenCL C has pointers and no bounds: a kernel that runs out of its
//! arguments corrupts what lies there. Images, pipes and shared virtual memory (`clSVMAlloc`) are not covered. Nothing here may be
//! called from a signal handler; all of it from any thread. A forked child has no device: what it inherited does nothing, and calls say
//! `Forked`.

mod available;
mod buffers;
mod device;
mod error;
mod fence;
mod launch;
mod ours;
mod program;
mod queue;
mod submit;
mod trial;

pub use available::{Found, Kind, Unavailable, available};
pub use buffers::Buffers;
pub use device::OpenClDevice;
pub use error::{AttachError, BuildError, DriverError, OpenError, SubmitError};
pub use fence::Fence;
pub use launch::{Arg, NdRange};
/// The OpenCL bindings, for programs that bring a context or commands of their own.
pub use opencl3;
pub use program::{Kernel, Program};
pub use queue::OpenClQueue;
