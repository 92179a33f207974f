//! The floors: what each step costs with no runtime around it.
//!
//! [`Bare`] is the same memory as a region's: a memfd with a CPU view, registered with userfaultfd for MINOR (and WP, where
//! the runtime does), and an alias. What the runtime decides is left out: there is no page word, no owner, no hold.
//!
//! [`BareMonitor`] is the least that serves touches from another thread: poll, read, `UFFDIO_CONTINUE`.
//! [`Handler`] is the least that serves them in the touching thread. A signal has one handler a process, and the runtime's
//! is one too, so the bare one is swapped in before each sample of its arm and out again behind it, outside of what is timed:
//! two `sigaction` calls, the same for both arms, since one follows upon the other.

use core::mem::MaybeUninit;
use core::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use libc::{c_int, c_void, siginfo_t};
use pagelease_sys::mem::{self, Mapping};
use pagelease_sys::uffd::{ContinueMode, Features, Message, RegisterMode, Uffd};
use pagelease_sys::{Errno, Span, page_size};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::mm::MprotectFlags;

use super::cpus;

/// How the touches of a [`Bare`] mapping are trapped.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum Trap {
    /// By userfaultfd, as messages.
    Message,
    /// By userfaultfd, as signals.
    Signal,
    /// Not at all: for `mprotect`.
    None,
}

/// A memfd mapped twice. See the module.
pub(super) struct Bare {
    view: Mapping,
    alias: Mapping,
    /// Closed last, so that the registration covers the view as long as it is mapped.
    uffd: Option<Uffd>,
}

impl Bare {
    /// `count` pages that exist, and are mapped in both views.
    pub(super) fn new(count: usize, trap: Trap) -> Result<Self> {
        let bare = Self::untouched(count, trap)?;
        bare.populate(0, count)?;
        Ok(bare)
    }

    /// Makes `count` pages from `first` on exist, mapped in both views.
    pub(super) fn populate(&self, first: usize, count: usize) -> Result<()> {
        let span = self.span(first, count);
        let alias = self.alias.span().start() + (span.start() - self.view.span().start());
        let alias = Span::new(alias, span.len()).context("a part of the alias")?;
        mem::populate_write(alias).context("MADV_POPULATE_WRITE")?;
        if self.uffd.is_some() {
            return self.give(span);
        }
        mem::populate_write(span).context("MADV_POPULATE_WRITE")
    }

    /// `count` pages of which none exists yet.
    pub(super) fn untouched(count: usize, trap: Trap) -> Result<Self> {
        let len = count * page_size();
        let file = mem::memfd(c"pagelease-bench", len).context("memfd")?;
        let view = Mapping::shared(&file, 0, len).context("mmap")?;
        let alias = Mapping::shared(&file, 0, len).context("mmap")?;
        let mut wanted = Features::MINOR_SHMEM | Features::THREAD_ID | Features::EXACT_ADDRESS;
        let uffd = match trap {
            Trap::None => None,
            Trap::Message | Trap::Signal => {
                if trap == Trap::Signal {
                    wanted |= Features::SIGBUS;
                }
                let opened = Uffd::open(wanted)?;
                let write_protect = opened.features.contains(Features::WP_HUGETLBFS_SHMEM);
                let mode = if write_protect { RegisterMode::MINOR | RegisterMode::WP } else { RegisterMode::MINOR };
                opened.uffd.register(view.span(), mode).context("UFFDIO_REGISTER")?;
                Some(opened.uffd)
            }
        };
        Ok(Self { view, alias, uffd })
    }

    /// The CPU view's addresses of `count` pages from `first` on.
    pub(super) fn span(&self, first: usize, count: usize) -> Span {
        let start = self.view.span().start() + first * page_size();
        Span::new(start, count * page_size()).expect("whole pages of a mapping are a span")
    }

    /// `madvise(MADV_DONTNEED)`: the CPU view loses the pages, the memfd keeps them.
    #[inline]
    pub(super) fn revoke(&self, span: Span) -> Result<()> {
        // SAFETY: the span is this view's, and a shared mapping loses no contents.
        unsafe { mem::dont_need(span) }.context("MADV_DONTNEED")
    }

    /// `UFFDIO_CONTINUE`: maps the pages again.
    #[inline]
    pub(super) fn give(&self, span: Span) -> Result<()> {
        let uffd = self.uffd.as_ref().context("not registered")?;
        let mut at = span.start();
        while let Some(rest) = Span::new(at, span.end() - at) {
            let progress = uffd.continue_pages(rest, ContinueMode::empty());
            match progress.error {
                None => break,
                Some(Errno::AGAIN) => at += progress.bytes,
                Some(errno) => return Err(errno).context("UFFDIO_CONTINUE"),
            }
        }
        Ok(())
    }

    /// `mprotect` of the whole CPU view: readable and writable, or not at all.
    #[inline]
    pub(super) fn protect(&self, open: bool) -> Result<(), Errno> {
        self.protect_span(self.view.span(), open)
    }

    /// The same of a part of it.
    #[inline]
    fn protect_span(&self, span: Span, open: bool) -> Result<(), Errno> {
        let flags = if open { MprotectFlags::READ | MprotectFlags::WRITE } else { MprotectFlags::empty() };
        // SAFETY: the span is this view's; a touch of it while it is protected is served by the bench's handler.
        unsafe { rustix::mm::mprotect(span.as_ptr().cast(), span.len(), flags) }
    }

    /// The words of the CPU view.
    pub(super) fn words(&self) -> &[AtomicU64] {
        words(&self.view)
    }

    /// The words of the alias.
    pub(super) fn alias_words(&self) -> &[AtomicU64] {
        words(&self.alias)
    }
}

fn words(mapping: &Mapping) -> &[AtomicU64] {
    let span = mapping.span();
    // SAFETY: mapped as long as the borrow lasts, aligned to a page, and used only as atomics.
    unsafe { core::slice::from_raw_parts(span.as_ptr().cast(), span.len() / size_of::<AtomicU64>()) }
}

/// A thread that serves the touches of a [`Bare`] mapping until it is dropped.
pub(super) struct BareMonitor {
    bare: Arc<Bare>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl BareMonitor {
    /// Starts it on `cpu`.
    pub(super) fn start(bare: &Arc<Bare>, cpu: usize) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (served, stopped) = (bare.clone(), stop.clone());
        let (started, runs) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name("bare-monitor".to_owned()).spawn(move || {
            let _ = started.send(cpus::pin(None, cpu));
            if let Some(uffd) = &served.uffd {
                monitor(uffd, &stopped);
            }
        })?;
        let monitor = Self { bare: bare.clone(), stop, thread: Some(thread) };
        runs.recv()??;
        Ok(monitor)
    }
}

/// One descriptor polled, without a timeout: nothing but what serving a touch takes.
fn monitor(uffd: &Uffd, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let _ = poll(&mut [PollFd::new(uffd, PollFlags::IN)], None);
        let mut buffer = [MaybeUninit::uninit()];
        let fault = uffd.read_faults(&mut buffer).ok().and_then(|read| read.first()).and_then(Message::fault);
        if let Some(page) = fault.and_then(|fault| Span::page_of(fault.address)) {
            let _ = uffd.continue_pages(page, ContinueMode::empty());
        }
    }
}

impl Drop for BareMonitor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let (page, thread) = (self.bare.span(0, 1), self.thread.take());
        if self.bare.revoke(page).is_err() {
            return;
        }
        // It sleeps in `poll`: a last touch wakes it. If it has ended before, that touch is served here.
        std::thread::scope(|scope| {
            scope.spawn(|| self.bare.words()[0].load(Ordering::Relaxed));
            let _ = thread.map(JoinHandle::join);
            let _ = self.bare.give(page);
        });
    }
}

/// The mapping whose touches the bare handlers serve.
static SERVED: AtomicPtr<Bare> = AtomicPtr::new(null_mut());

/// A bare handler, ready to be swapped in.
pub(super) struct Handler<'a> {
    signal: c_int,
    action: libc::sigaction,
    bare: &'a Bare,
}

impl<'a> Handler<'a> {
    /// SIGBUS, served by `UFFDIO_CONTINUE` of the page.
    pub(super) fn sigbus(bare: &'a Bare) -> Self {
        Self::new(libc::SIGBUS, continue_page, bare)
    }

    /// SIGSEGV, served by `mprotect` of the whole view.
    pub(super) fn sigsegv(bare: &'a Bare) -> Self {
        Self::new(libc::SIGSEGV, unprotect_all, bare)
    }

    /// SIGSEGV, served by `mprotect` of the page.
    pub(super) fn sigsegv_of_a_page(bare: &'a Bare) -> Self {
        Self::new(libc::SIGSEGV, unprotect_page, bare)
    }

    fn new(signal: c_int, handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void), bare: &'a Bare) -> Self {
        // SAFETY: a sigaction of zeroes is a valid one.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        Self { signal, action, bare }
    }

    /// Runs `work` with the handler in place of the one that was there.
    pub(super) fn during<R>(&self, work: impl FnOnce() -> R) -> R {
        SERVED.store(core::ptr::from_ref(self.bare).cast_mut(), Ordering::Release);
        let mut before = MaybeUninit::uninit();
        // SAFETY: the action is a valid one, and there is room for the one before it. It cannot fail then, and fills it in.
        let before = unsafe {
            libc::sigaction(self.signal, &raw const self.action, before.as_mut_ptr());
            before.assume_init()
        };
        let _restore = Restore { signal: self.signal, before };
        work()
    }
}

/// Puts a signal's action back when dropped.
struct Restore {
    signal: c_int,
    before: libc::sigaction,
}

impl Drop for Restore {
    fn drop(&mut self) {
        // SAFETY: the action is the one that was there.
        unsafe { libc::sigaction(self.signal, &raw const self.before, null_mut()) };
    }
}

/// The mapping that the running [`Handler`] serves, if `address` is in it.
fn served(address: usize) -> Option<&'static Bare> {
    // SAFETY: set by `Handler::during`, which keeps the mapping for as long as the handler is there.
    unsafe { SERVED.load(Ordering::Acquire).as_ref() }.filter(|bare| bare.view.span().contains(address))
}

extern "C" fn continue_page(_: c_int, info: *mut siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel passes a valid pointer to a handler with SA_SIGINFO, and a fault has an address.
    let address = unsafe { (*info).si_addr() }.addr();
    let page = Span::page_of(address);
    let uffd = served(address).and_then(|bare| bare.uffd.as_ref());
    match uffd.zip(page).map(|(uffd, page)| uffd.continue_pages(page, ContinueMode::empty()).error) {
        Some(None | Some(Errno::EXIST)) => {}
        // Not a touch of ours: a crash, and to be seen as one.
        _ => std::process::abort(),
    }
}

extern "C" fn unprotect_all(_: c_int, info: *mut siginfo_t, _: *mut c_void) {
    // SAFETY: as in `continue_page`.
    let address = unsafe { (*info).si_addr() }.addr();
    if served(address).is_none_or(|bare| bare.protect(true).is_err()) {
        std::process::abort();
    }
}

extern "C" fn unprotect_page(_: c_int, info: *mut siginfo_t, _: *mut c_void) {
    // SAFETY: as in `continue_page`.
    let address = unsafe { (*info).si_addr() }.addr();
    let page = served(address).zip(Span::page_of(address));
    if page.is_none_or(|(bare, page)| bare.protect_span(page, true).is_err()) {
        std::process::abort();
    }
}
