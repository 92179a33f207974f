//! Which CPU each thread runs on.
//!
//! A bench uses two CPUs: it runs **here**, and whoever it works with (a monitor, a device's worker, a spinning thread)
//! runs **there**. Both arms of a ratio place their threads alike. Two more things must be equal, and are arranged:
//!
//! - Whether a CPU is idle. To wake an idle one costs ten times what is being measured. A CPU is kept awake by a spinning
//!   thread of policy `SCHED_IDLE`, which gives way at once to any other.
//! - Whether another thread of the process runs. If one does, each revocation interrupts its CPU (a TLB shootdown).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};

/// The CPUs of a bench.
#[derive(Copy, Clone, Debug)]
pub(super) struct Cpus {
    /// The measuring thread's.
    pub(super) here: usize,
    /// The other side's.
    pub(super) there: usize,
}

impl Cpus {
    /// The first two CPUs that this process may use; pins the calling thread to the first. Threads that it starts stay
    /// there unless they are pinned elsewhere.
    pub(super) fn take() -> Result<Self> {
        let allowed = sched_getaffinity(None).context("sched_getaffinity")?;
        let mut cpus = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu));
        let (Some(here), Some(there)) = (cpus.next(), cpus.next()) else {
            bail!("the benches need two CPUs; this process may use one");
        };
        pin(None, here)?;
        Ok(Self { here, there })
    }

    /// One CPU for both sides; pins the calling thread to it.
    pub(super) fn take_one() -> Result<Self> {
        let allowed = sched_getaffinity(None).context("sched_getaffinity")?;
        let here = (0..CpuSet::MAX_CPU).find(|&cpu| allowed.is_set(cpu)).context("this process may use no CPU")?;
        pin(None, here)?;
        Ok(Self { here, there: here })
    }

    /// Calls `work` with the calling thread free to run on either: a program that it starts inherits that, and takes the same.
    pub(super) fn with_both<R>(self, work: impl FnOnce() -> Result<R>) -> Result<R> {
        let mut both = CpuSet::new();
        both.set(self.here);
        both.set(self.there);
        sched_setaffinity(None, &both).context("sched_setaffinity to both CPUs")?;
        let result = work();
        pin(None, self.here)?;
        result
    }
}

/// Pins a thread, or the calling one, to `cpu`.
pub(super) fn pin(thread: Option<Pid>, cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(thread, &set).with_context(|| format!("sched_setaffinity to CPU {cpu}"))
}

/// Pins the `count` threads of this process whose name begins with `name`: the runtime's own, which it starts itself.
pub(super) fn pin_named(name: &str, count: usize, cpu: usize) -> Result<()> {
    // The kernel keeps fifteen bytes of a name.
    let name = &name[..name.len().min(15)];
    let begin = Instant::now();
    loop {
        let threads = named(name)?;
        if threads.len() == count {
            return threads.into_iter().try_for_each(|thread| pin(Some(thread), cpu));
        }
        // A new thread names itself, in its own time; one that has ended stays for a moment.
        if begin.elapsed() > Duration::from_secs(5) {
            bail!("{} threads are named {name}, not {count}", threads.len());
        }
        std::thread::yield_now();
    }
}

fn named(name: &str) -> io::Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc/self/task")? {
        let entry = entry?;
        // Gone since the directory was read: not one of those wanted.
        let Ok(comm) = std::fs::read_to_string(entry.path().join("comm")) else { continue };
        if comm.starts_with(name) {
            found.extend(entry.file_name().to_str().and_then(|id| id.parse().ok()).and_then(Pid::from_raw));
        }
    }
    Ok(found)
}

/// When a [`Spinner`] runs.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum Spin {
    /// As any thread: it takes its share of the CPU.
    Busy,
    /// Only when nothing else would run: it keeps the CPU from going idle.
    Awake,
}

/// A thread of this process that spins on a CPU until it is dropped.
pub(super) struct Spinner {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Spinner {
    /// Starts it, and returns once it runs.
    pub(super) fn start(cpu: usize, how: Spin) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, (started, runs)) = (stop.clone(), std::sync::mpsc::channel());
        let thread = std::thread::Builder::new().name("spinner".to_owned()).spawn(move || {
            let placed = pin(None, cpu).and_then(|()| if how == Spin::Awake { give_way() } else { Ok(()) });
            let _ = started.send(placed);
            // No pause instruction: a hypervisor may take that for waiting, and put the CPU to sleep.
            while !stopped.load(Ordering::Relaxed) {}
        })?;
        let spinner = Self { stop, thread: Some(thread) };
        runs.recv()??;
        Ok(spinner)
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The calling thread runs from now on only when its CPU would be idle.
fn give_way() -> Result<()> {
    let no_priority = libc::sched_param { sched_priority: 0 };
    // SAFETY: the pointer is to a sched_param; 0 is the calling thread.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const no_priority) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()).context("sched_setscheduler to SCHED_IDLE"),
    }
}
