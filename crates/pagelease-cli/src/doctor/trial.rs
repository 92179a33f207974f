//! What the doctor tries out, rather than believe a version number: in scratch pages of its own, each with two views,
//! one whose touches are trapped and one through which it is populated.
//!
//! A trial that fails says so. It does not hang: a monitor that gives up ends the trapping and wakes who waits. And it
//! does not kill the process: a SIGBUS handler that cannot serve its page ends the trapping, too.

use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread::{ScopedJoinHandle, scope};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use pagelease_sys::mem::{self, Mapping, SelfProcess};
use pagelease_sys::signal::{self, Fault, Signal};
use pagelease_sys::uffd::{ContinueMode, FaultFlags, Features, RegisterMode, Uffd};
use pagelease_sys::{Errno, Span, barrier, page_size, thread};

mod backends;
pub(super) use backends::{HugePage, huge_page, mprotect, read_write_protection};

/// The features that every space asks for.
pub(super) const NEEDED: Features = Features::MINOR_SHMEM.union(Features::THREAD_ID);

const ROUNDS: usize = 200;
const DEADLINE: Duration = Duration::from_secs(5);

/// A populated page whose touches are trapped.
struct Scratch {
    view: Mapping,
    alias: Mapping,
}

impl Scratch {
    fn new(uffd: &Uffd, mode: RegisterMode) -> Result<Self> {
        let file = mem::memfd(c"pagelease-doctor", page_size()).context("memfd")?;
        let view = Mapping::shared(&file, 0, page_size()).context("mmap")?;
        let alias = Mapping::shared(&file, 0, page_size()).context("mmap")?;
        mem::populate_write(alias.span()).context("MADV_POPULATE_WRITE")?;
        uffd.register(view.span(), mode).context("UFFDIO_REGISTER")?;
        Ok(Self { view, alias })
    }

    fn zap(&self) -> Result<()> {
        // SAFETY: the view is ours, and shared memory loses no contents.
        unsafe { mem::dont_need(self.view.span()) }.context("MADV_DONTNEED")
    }

    /// Revokes the page and touches it, many times. Returns the median time of a touch in nanoseconds.
    fn revoke_and_touch(&self) -> Result<u64> {
        let mut touches_ns = Vec::with_capacity(ROUNDS);
        for round in 1..=ROUNDS as u64 {
            word(&self.alias).store(round, SeqCst);
            self.zap()?;
            let begin_ns = thread::monotonic_ns();
            let seen = word(&self.view).load(SeqCst);
            touches_ns.push(thread::monotonic_ns() - begin_ns);
            ensure!(seen == round, "the page came back with other contents");
        }
        touches_ns.sort_unstable();
        Ok(touches_ns[ROUNDS / 2])
    }
}

fn word(mapping: &Mapping) -> &AtomicU64 {
    // SAFETY: mapped as long as the borrow lasts, aligned to a page, and used only as an atomic.
    unsafe { &*mapping.as_ptr().cast::<AtomicU64>() }
}

/// A touch served by a monitor thread: the median time in nanoseconds.
pub(super) fn monitor() -> Result<u64> {
    let uffd = Uffd::open(NEEDED)?.uffd;
    let scratch = Scratch::new(&uffd, RegisterMode::MINOR)?;
    let (touch_ns, served) = monitored(&uffd, &scratch, Scratch::revoke_and_touch)?;
    ensure!(served.len() == ROUNDS, "{} of {ROUNDS} touches were trapped", served.len());
    Ok(touch_ns)
}

/// What a system call gets that touches a revoked page while a monitor serves.
pub(super) fn system_call() -> Result<Result<(), Errno>> {
    let uffd = Uffd::open(NEEDED)?.uffd;
    let scratch = Scratch::new(&uffd, RegisterMode::MINOR)?;
    let zeroes = std::fs::File::open("/dev/zero")?;
    let (answer, _) = monitored(&uffd, &scratch, |scratch| {
        scratch.zap()?;
        let start = scratch.view.as_ptr().cast::<MaybeUninit<u8>>();
        // SAFETY: the page is mapped, and nobody else uses it meanwhile.
        let page = unsafe { std::slice::from_raw_parts_mut(start, page_size()) };
        Ok(rustix::io::read(&zeroes, page).map(|_| ()))
    })?;
    Ok(answer)
}

/// Write protection of a page that stays mapped: a read passes, a write is trapped.
pub(super) fn write_protection() -> Result<()> {
    let uffd = Uffd::open(NEEDED | Features::WP_HUGETLBFS_SHMEM)?.uffd;
    let scratch = Scratch::new(&uffd, RegisterMode::MINOR | RegisterMode::WP)?;
    let ((), served) = monitored(&uffd, &scratch, |scratch| {
        word(&scratch.view).load(SeqCst);
        uffd.write_protect(scratch.view.span(), true, false).context("UFFDIO_WRITEPROTECT")?;
        word(&scratch.view).load(SeqCst);
        word(&scratch.view).fetch_add(1, SeqCst);
        Ok(())
    })?;
    match served[..] {
        [FaultFlags::MINOR, write] if write.contains(FaultFlags::WP | FaultFlags::WRITE) => Ok(()),
        _ => bail!("other faults came than expected: {served:?}"),
    }
}

/// Runs `touch` on another thread, and serves its faults on this one. Returns what it returned, and the faults.
fn monitored<T: Send>(
    uffd: &Uffd,
    scratch: &Scratch,
    touch: impl FnOnce(&Scratch) -> Result<T> + Send,
) -> Result<(T, Vec<FaultFlags>)> {
    scope(|scope| {
        let toucher = scope.spawn(|| touch(scratch));
        let served = serve(uffd, scratch.view.span(), &toucher);
        if served.is_err() {
            // So that the other thread ends.
            let _ = uffd.unregister(scratch.view.span());
            let _ = uffd.wake(scratch.view.span());
        }
        let answer = toucher.join().map_err(|_| anyhow!("the touching thread panicked"))?;
        Ok((answer?, served?))
    })
}

/// Serves the faults of `page` until `toucher` has ended. It polls without sleeping, as the runtime's monitors do while
/// faults keep coming: to wake an idle CPU costs ten times the fault.
fn serve<T>(uffd: &Uffd, page: Span, toucher: &ScopedJoinHandle<'_, T>) -> Result<Vec<FaultFlags>> {
    let begin = Instant::now();
    let mut served = Vec::new();
    while !toucher.is_finished() {
        ensure!(begin.elapsed() < DEADLINE, "a touch was neither trapped nor let through");
        let mut buf = [MaybeUninit::uninit(); 1];
        let message = match uffd.read_faults(&mut buf) {
            Ok(messages) => messages[0],
            Err(Errno::AGAIN) => {
                thread::yield_now();
                continue;
            }
            Err(errno) => bail!("reading a fault: {errno}"),
        };
        let flags = message.fault().context("a message that is no fault")?.flags;
        served.push(flags);
        if flags.contains(FaultFlags::RWP) {
            uffd.rw_protect(page, false, true).context("UFFDIO_RWPROTECT")?;
        } else if flags.contains(FaultFlags::WP) {
            uffd.write_protect(page, false, true).context("UFFDIO_WRITEPROTECT")?;
        } else if let Some(errno) = uffd.continue_pages(page, ContinueMode::empty()).error {
            bail!("UFFDIO_CONTINUE: {errno}");
        }
    }
    Ok(served)
}

/// The page of the in-thread trial, for its handler. Stays for the life of the process.
static IN_THREAD: OnceLock<(Uffd, Span)> = OnceLock::new();

/// A touch served by the thread that made it: the median time in nanoseconds. Installs the process's SIGBUS handler.
/// The calling thread must not block SIGBUS.
pub(super) fn in_thread() -> Result<u64> {
    let uffd = Uffd::open(NEEDED | Features::SIGBUS)?.uffd;
    let scratch = Scratch::new(&uffd, RegisterMode::MINOR)?;
    let page = scratch.view.span();
    ensure!(IN_THREAD.set((uffd, page)).is_ok(), "was tried already, and is tried once a process");
    signal::install(Signal::Bus, serve_in_thread).context("sigaction")?;
    let answer = scratch.revoke_and_touch();
    // The view is about to go; whatever comes to lie there is not the handler's.
    if let Some((uffd, page)) = IN_THREAD.get() {
        uffd.unregister(*page).context("UFFDIO_UNREGISTER")?;
    }
    answer
}

/// Signal-safe.
fn serve_in_thread(fault: &Fault) -> bool {
    let Some((uffd, page)) = IN_THREAD.get().filter(|(_, page)| page.contains(fault.address)) else {
        return false;
    };
    match uffd.continue_pages(*page, ContinueMode::empty()).error {
        None | Some(Errno::EXIST) => true,
        // Rather a touch that is not trapped than a process that dies.
        Some(_) => uffd.unregister(*page).is_ok(),
    }
}

/// `process_madvise(MADV_DONTNEED)` on oneself.
pub(super) fn process_madvise() -> Result<()> {
    let page = Mapping::anonymous(page_size())?;
    word(&page).store(1, SeqCst);
    // SAFETY: the page is ours.
    unsafe { SelfProcess::open()?.dont_need(&[page.span()]) }?;
    ensure!(word(&page).load(SeqCst) == 0, "the page was not dropped");
    Ok(())
}

/// A process-wide barrier: its time in nanoseconds, which depends on what the process's other threads do.
pub(super) fn membarrier() -> Result<u64> {
    barrier::register()?;
    let begin_ns = thread::monotonic_ns();
    (0..ROUNDS).for_each(|_| barrier::barrier());
    Ok((thread::monotonic_ns() - begin_ns) / ROUNDS as u64)
}

/// A memory file that cannot be resized.
pub(super) fn memfd() -> Result<()> {
    mem::memfd(c"pagelease-doctor", page_size())?;
    Ok(())
}

/// A page that a forked child finds wiped.
pub(super) fn wipe_on_fork() -> Result<()> {
    Ok(pagelease_sys::fork::arm()?)
}
