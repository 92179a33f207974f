//! Trials of what not every space needs: protection from reads and writes, huge pages, `mprotect`.

use std::sync::OnceLock;
use std::sync::atomic::Ordering::SeqCst;

use anyhow::{Context, Result, bail, ensure};
use pagelease_sys::mem::{self, Mapping, Protection};
use pagelease_sys::signal::{self, Fault, Signal};
use pagelease_sys::uffd::{ContinueMode, FaultFlags, Features, RegisterMode, Uffd};
use pagelease_sys::{Errno, Span, page_size, thread};

use super::{NEEDED, ROUNDS, Scratch, monitored, word};

/// Protection from reads and writes of a page that stays mapped: a read is trapped.
pub(in crate::doctor) fn read_write_protection() -> Result<()> {
    let uffd = Uffd::open(NEEDED | Features::RWP)?.uffd;
    let scratch = Scratch::new(&uffd, RegisterMode::MINOR | RegisterMode::RWP)?;
    let ((), served) = monitored(&uffd, &scratch, |scratch| {
        word(&scratch.view).load(SeqCst);
        uffd.rw_protect(scratch.view.span(), true, false).context("UFFDIO_RWPROTECT")?;
        word(&scratch.view).load(SeqCst);
        word(&scratch.view).fetch_add(1, SeqCst);
        Ok(())
    })?;
    match served[..] {
        [FaultFlags::MINOR, FaultFlags::RWP] => Ok(()),
        _ => bail!("other faults came than expected: {served:?}"),
    }
}

/// What a huge page of the pool comes to.
pub(in crate::doctor) enum HugePage {
    /// It can be revoked and given back.
    Works,
    /// The pool has none that is free.
    EmptyPool,
}

/// A huge page of the pool, revoked and given back. Nobody touches it.
pub(in crate::doctor) fn huge_page() -> Result<HugePage> {
    const LEN: usize = 2 << 20;
    let uffd = Uffd::open(NEEDED | Features::MINOR_HUGETLBFS)?.uffd;
    let file = mem::memfd_huge(c"pagelease-doctor", LEN).context("memfd of huge pages")?;
    let view = match Mapping::shared_reserved(&file, 0, LEN) {
        Err(Errno::NOMEM) => return Ok(HugePage::EmptyPool),
        view => view.context("mmap")?,
    };
    let alias = Mapping::shared_reserved(&file, 0, LEN).context("mmap")?;
    mem::populate_write(alias.span()).context("MADV_POPULATE_WRITE")?;
    uffd.register(view.span(), RegisterMode::MINOR).context("UFFDIO_REGISTER")?;
    for _ in 0..2 {
        let mapped = uffd.continue_pages(view.span(), ContinueMode::empty());
        ensure!(mapped.error.is_none(), "UFFDIO_CONTINUE: {mapped:?}");
        // SAFETY: the view is ours, and shared memory loses no contents.
        unsafe { mem::dont_need(view.span()) }.context("MADV_DONTNEED")?;
    }
    Ok(HugePage::Works)
}

/// The page of the trial below, for its handler. Stays for the life of the process.
static CLOSED: OnceLock<Span> = OnceLock::new();

/// A closed page that the touching thread opens: the median time in nanoseconds. Installs the process's SIGSEGV handler.
/// The calling thread must not block SIGSEGV.
pub(in crate::doctor) fn mprotect() -> Result<u64> {
    let page = Mapping::shared(mem::memfd(c"pagelease-doctor", page_size())?, 0, page_size()).context("mmap")?;
    ensure!(CLOSED.set(page.span()).is_ok(), "was tried already, and is tried once a process");
    signal::install(Signal::Segmentation, open_the_page).context("sigaction")?;
    let mut touches_ns = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS as u64 {
        // SAFETY: the page is ours, and its touches are served by the handler.
        unsafe { mem::protect(page.span(), Protection::None) }.context("mprotect")?;
        let begin_ns = thread::monotonic_ns();
        let seen = word(&page).fetch_add(1, SeqCst);
        touches_ns.push(thread::monotonic_ns() - begin_ns);
        ensure!(seen == round, "the page came back with other contents");
    }
    // Open, it is never touched again: whatever comes to lie there is not the handler's, which serves what is closed.
    let _ = page.into_span();
    touches_ns.sort_unstable();
    Ok(touches_ns[ROUNDS / 2])
}

/// Signal-safe.
fn open_the_page(fault: &Fault) -> bool {
    let Some(page) = CLOSED.get().filter(|page| page.contains(fault.address)) else { return false };
    // SAFETY: the page is the trial's.
    unsafe { mem::protect(*page, Protection::ReadWrite) }.is_ok()
}
