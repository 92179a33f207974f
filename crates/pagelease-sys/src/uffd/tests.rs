//! Against the running kernel. Where userfaultfd is refused, a test says so and passes.

mod events;
mod fill;
mod rwp;

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;

use super::*;
use crate::mem::{self, Mapping};
use crate::{page_size, thread};

/// Pages with two views: one whose touches are trapped, and one for looking behind the scenes.
struct Scratch {
    uffd: Uffd,
    view: Mapping,
    alias: Mapping,
    _file: OwnedFd,
}

impl Scratch {
    /// `pages` pages, each populated and holding its index plus one, and none mapped in the view.
    fn new(features: Features, mode: RegisterMode, pages: usize) -> Option<Self> {
        let uffd = open(features)?;
        let len = pages * page_size();
        let file = mem::memfd(c"pagelease-test", len).unwrap();
        let view = Mapping::shared(&file, 0, len).unwrap();
        let alias = Mapping::shared(&file, 0, len).unwrap();
        let ioctls = uffd.register(view.span(), mode).unwrap();
        assert!(ioctls.contains(Ioctls::CONTINUE | Ioctls::WAKE), "{ioctls:?}");
        let scratch = Self { uffd, view, alias, _file: file };
        for page in 0..pages {
            word(scratch.alias.span(), page).store(page as u64 + 1, SeqCst);
        }
        Some(scratch)
    }

    fn pages(&self, first: usize, count: usize) -> Span {
        Span::new(self.view.span().start() + first * page_size(), count * page_size()).unwrap()
    }

    /// A thread that does `touch` with the first word of a page of the view.
    fn touch<T: Send + 'static>(&self, page: usize, touch: fn(&AtomicU64) -> T) -> JoinHandle<(u32, T)> {
        let span = self.view.span();
        spawn(move || (thread::tid(), touch(word(span, page))))
    }

    fn next_message(&self) -> Message {
        next_message(&self.uffd)
    }

    fn next_fault(&self) -> Fault {
        self.next_message().fault().expect("a page fault")
    }
}

fn next_message(uffd: &Uffd) -> Message {
    let patience = Timespec { tv_sec: 10, tv_nsec: 0 };
    let ready = poll(&mut [PollFd::new(uffd, PollFlags::IN)], Some(&patience)).unwrap();
    assert_eq!(ready, 1, "no message came");
    let mut buf = [MaybeUninit::uninit(); 1];
    let messages = uffd.read_faults(&mut buf).unwrap();
    assert_eq!(messages.len(), 1);
    messages[0]
}

/// One page of a span.
fn page(span: Span, page: usize) -> Span {
    Span::new(span.start() + page * page_size(), page_size()).unwrap()
}

/// The first word of a page. The mapping must outlive its use, which it does in these tests: each thread is joined.
fn word(span: Span, page: usize) -> &'static AtomicU64 {
    assert!(page * page_size() < span.len());
    // SAFETY: mapped, aligned, and only ever used as an atomic.
    unsafe { &*span.as_ptr().add(page * page_size()).cast::<AtomicU64>() }
}

fn open(features: Features) -> Option<Uffd> {
    match Uffd::open(features) {
        Ok(opened) => Some(opened.uffd),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// One attempt that must do all of it.
fn done(progress: Progress, span: Span) {
    assert_eq!(progress, Progress { bytes: span.len(), error: None });
}

const STOPPED: Progress = Progress { bytes: 0, error: None };

#[test]
fn the_layouts_are_those_of_another_reading_of_the_header() {
    use linux_raw_sys::general as raw;
    assert_eq!(size_of::<abi::Api>(), size_of::<raw::uffdio_api>());
    assert_eq!(size_of::<abi::Range>(), size_of::<raw::uffdio_range>());
    assert_eq!(size_of::<abi::Register>(), size_of::<raw::uffdio_register>());
    assert_eq!(size_of::<abi::WriteProtect>(), size_of::<raw::uffdio_writeprotect>());
    assert_eq!(size_of::<abi::Continue>(), size_of::<raw::uffdio_continue>());
    assert_eq!(size_of::<abi::CopyPages>(), size_of::<raw::uffdio_copy>());
    assert_eq!(size_of::<abi::ZeroPages>(), size_of::<raw::uffdio_zeropage>());
    assert_eq!(size_of::<abi::MovePages>(), size_of::<raw::uffdio_move>());
    assert_eq!(size_of::<Message>(), size_of::<raw::uffd_msg>());
    let events = [abi::EVENT_REMAP, abi::EVENT_REMOVE, abi::EVENT_UNMAP].map(u32::from);
    assert_eq!(events, [raw::UFFD_EVENT_REMAP, raw::UFFD_EVENT_REMOVE, raw::UFFD_EVENT_UNMAP]);
    assert_eq!(u64::from(raw::UFFD_API), abi::UFFD_API);
    assert_eq!(raw::UFFD_EVENT_PAGEFAULT, u32::from(abi::EVENT_PAGEFAULT));
}

#[test]
fn the_handshake_tells_what_is_offered_and_refuses_what_is_not() {
    let Ok(opened) = Uffd::open(Features::empty()) else {
        eprintln!("skipped: no userfaultfd");
        return;
    };
    assert!(opened.features.contains(Features::THREAD_ID | Features::SIGBUS), "{}", opened.features);
    let answer = probe().into_iter().find(|(path, _)| *path == opened.path).unwrap().1;
    assert_eq!(answer, Ok(opened.features));

    let unknown = Features::from_bits_retain(1 << 62);
    let error = Uffd::open(unknown | Features::THREAD_ID).unwrap_err();
    let expected = OpenError::Missing { path: opened.path, missing: unknown, offered: opened.features };
    assert_eq!(error, expected);
    assert!(error.to_string().contains("lacks 0x4000000000000000; through"), "{error}");
}

#[test]
fn a_refusal_says_what_each_way_returned() {
    let attempts =
        [(OpenPath::Device, Errno::ACCESS), (OpenPath::Syscall, Errno::PERM), (OpenPath::UserModeOnly, Errno::NOSYS)];
    let text = OpenError::Refused { attempts }.to_string();
    for part in ["no userfaultfd: /dev/userfaultfd: Permission denied", "UFFD_USER_MODE_ONLY: Function not"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_touch_is_reported_and_goes_on_when_its_page_is_continued() {
    let Some(scratch) = Scratch::new(Features::THREAD_ID | Features::EXACT_ADDRESS, RegisterMode::MINOR, 4) else {
        return;
    };
    let mut buf = [MaybeUninit::uninit(); 1];
    assert_eq!(scratch.uffd.read_faults(&mut buf).unwrap_err(), Errno::AGAIN);
    assert_eq!(scratch.uffd.read_faults(&mut []).unwrap_err(), Errno::INVAL);

    let reader = scratch.touch(2, |word| word.load(SeqCst));
    let fault = scratch.next_fault();
    assert_eq!((fault.address, fault.flags), (scratch.pages(2, 1).start(), FaultFlags::MINOR));
    done(scratch.uffd.continue_pages(scratch.pages(2, 1), ContinueMode::empty()), scratch.pages(2, 1));
    assert_eq!(reader.join().unwrap(), (fault.thread, 3));

    let writer = scratch.touch(3, |word| word.store(77, SeqCst));
    let fault = scratch.next_fault();
    assert_eq!(fault.flags, FaultFlags::MINOR | FaultFlags::WRITE);
    done(scratch.uffd.continue_pages(scratch.pages(3, 1), ContinueMode::empty()), scratch.pages(3, 1));
    writer.join().unwrap();
    assert_eq!(word(scratch.alias.span(), 3).load(SeqCst), 77);
}

#[test]
fn a_page_that_was_dropped_is_trapped_again() {
    let Some(scratch) = Scratch::new(Features::empty(), RegisterMode::MINOR, 1) else {
        return;
    };
    done(scratch.uffd.continue_pages(scratch.pages(0, 1), ContinueMode::empty()), scratch.pages(0, 1));
    for _ in 0..3 {
        assert_eq!(word(scratch.view.span(), 0).load(SeqCst), 1, "mapped: no fault");
        // SAFETY: shared memory loses no contents.
        unsafe { mem::dont_need(scratch.pages(0, 1)) }.unwrap();
        let reader = scratch.touch(0, |word| word.load(SeqCst));
        scratch.next_fault();
        done(scratch.uffd.continue_pages(scratch.pages(0, 1), ContinueMode::empty()), scratch.pages(0, 1));
        assert_eq!(reader.join().unwrap().1, 1);
    }
}

#[test]
fn a_thread_sleeps_until_it_is_woken() {
    let Some(scratch) = Scratch::new(Features::empty(), RegisterMode::MINOR, 1) else {
        return;
    };
    let reader = scratch.touch(0, |word| word.load(SeqCst));
    scratch.next_fault();
    done(scratch.uffd.continue_pages(scratch.pages(0, 1), ContinueMode::DONTWAKE), scratch.pages(0, 1));
    sleep(Duration::from_millis(20));
    assert!(!reader.is_finished(), "the page is mapped, but nobody woke the thread");
    scratch.uffd.wake(scratch.pages(0, 1)).unwrap();
    assert_eq!(reader.join().unwrap().1, 1);
}

#[test]
fn unregistering_wakes_no_minor_fault() {
    let Some(scratch) = Scratch::new(Features::empty(), RegisterMode::MINOR, 1) else {
        return;
    };
    let reader = scratch.touch(0, |word| word.load(SeqCst));
    scratch.next_fault();
    scratch.uffd.unregister(scratch.view.span()).unwrap();
    sleep(Duration::from_millis(20));
    assert!(!reader.is_finished(), "should a kernel come to wake it, say so in the documentation");
    scratch.uffd.wake(scratch.view.span()).unwrap();
    assert_eq!(reader.join().unwrap().1, 1);
    assert_eq!(scratch.uffd.continue_pages(scratch.pages(0, 1), ContinueMode::empty()).error, Some(Errno::NOENT));
}

#[test]
fn closing_lets_everybody_go_on() {
    let Some(scratch) = Scratch::new(Features::empty(), RegisterMode::MINOR, 2) else { return };
    let readers = [0, 1].map(|page| scratch.touch(page, |word| word.load(SeqCst)));
    scratch.next_fault();
    let Scratch { uffd, view: _view, .. } = scratch;
    drop(uffd);
    assert_eq!(readers.map(|reader| reader.join().unwrap().1), [1, 2]);
}

#[test]
fn progress_stops_before_a_page_that_is_mapped_already() {
    let Some(scratch) = Scratch::new(Features::empty(), RegisterMode::MINOR, 4) else {
        return;
    };
    done(scratch.uffd.continue_pages(scratch.pages(2, 1), ContinueMode::empty()), scratch.pages(2, 1));

    let progress = scratch.uffd.continue_pages(scratch.pages(0, 4), ContinueMode::empty());
    assert_eq!(progress, Progress { bytes: 2 * page_size(), error: Some(Errno::AGAIN) });
    let progress = scratch.uffd.continue_pages(scratch.pages(2, 2), ContinueMode::empty());
    assert_eq!(progress, Progress { error: Some(Errno::EXIST), ..STOPPED });
    done(scratch.uffd.continue_pages(scratch.pages(3, 1), ContinueMode::empty()), scratch.pages(3, 1));
}

#[test]
fn progress_stops_at_a_hole() {
    let Some(scratch) = Scratch::new(Features::empty(), RegisterMode::MINOR, 1) else {
        return;
    };
    let file = mem::memfd(c"pagelease-test", 2 * page_size()).unwrap();
    let view = Mapping::shared(&file, 0, 2 * page_size()).unwrap();
    let alias = Mapping::shared(&file, 0, 2 * page_size()).unwrap();
    scratch.uffd.register(view.span(), RegisterMode::MINOR).unwrap();
    word(alias.span(), 0).store(1, SeqCst);

    let progress = scratch.uffd.continue_pages(view.span(), ContinueMode::empty());
    assert_eq!(progress, Progress { bytes: page_size(), error: Some(Errno::AGAIN) });
    let hole = Span::page_of(view.span().end() - 1).unwrap();
    let progress = scratch.uffd.continue_pages(hole, ContinueMode::empty());
    assert_eq!(progress, Progress { error: Some(Errno::FAULT), ..STOPPED });
    assert_eq!(word(view.span(), 1).load(SeqCst), 0, "and a touch of a hole is not trapped");
}

#[test]
fn a_negative_errno_is_not_a_number_of_bytes() {
    let again = Progress::decode(Err(Errno::AGAIN), -11, 4096);
    assert_eq!(again, Progress { error: Some(Errno::AGAIN), ..STOPPED });

    // The kernel's own: while a zap waits for its event to be read, CONTINUE is put off with -EAGAIN in `mapped`.
    let Some(scratch) = Scratch::new(Features::EVENT_REMOVE, RegisterMode::MINOR, 1) else {
        return;
    };
    let span = scratch.pages(0, 1);
    // SAFETY: shared memory loses no contents.
    let zap = spawn(move || unsafe { mem::dont_need(span) });
    let patience = Timespec { tv_sec: 10, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(&scratch.uffd, PollFlags::IN)], Some(&patience)), Ok(1));
    assert_eq!(scratch.uffd.continue_pages(span, ContinueMode::empty()), again);
    let message = scratch.next_message();
    assert_eq!(message.event(), Event::Remove { start: span.start(), end: span.end() });
    zap.join().unwrap().unwrap();
}

const MINOR_AND_WP: RegisterMode = RegisterMode::MINOR.union(RegisterMode::WP);
const WP_FEATURES: Features = Features::WP_HUGETLBFS_SHMEM.union(Features::PAGEFAULT_FLAG_WP);

#[test]
fn write_protection_lets_reads_pass_and_traps_writes() {
    let Some(scratch) = Scratch::new(WP_FEATURES, MINOR_AND_WP, 2) else {
        return;
    };
    let page = scratch.pages(0, 1);
    done(scratch.uffd.continue_pages(page, ContinueMode::empty()), page);
    scratch.uffd.write_protect(page, true, true).unwrap();
    assert_eq!(word(scratch.view.span(), 0).load(SeqCst), 1);

    let writer = scratch.touch(0, |word| word.fetch_add(1, SeqCst));
    assert_eq!(scratch.next_fault().flags, FaultFlags::WP | FaultFlags::WRITE);
    scratch.uffd.write_protect(page, false, false).unwrap();
    sleep(Duration::from_millis(20));
    assert!(!writer.is_finished(), "lifted, but nobody woke the thread");
    scratch.uffd.wake(page).unwrap();
    assert_eq!(writer.join().unwrap().1, 1);

    scratch.uffd.write_protect(page, true, false).unwrap();
    let writer = scratch.touch(0, |word| word.fetch_add(1, SeqCst));
    scratch.next_fault();
    scratch.uffd.write_protect(page, false, true).unwrap();
    assert_eq!(writer.join().unwrap().1, 2);
}

#[test]
fn continue_keeps_write_protection_only_when_told_to() {
    let Some(scratch) = Scratch::new(WP_FEATURES, MINOR_AND_WP, 2) else {
        return;
    };
    scratch.uffd.write_protect(scratch.view.span(), true, false).unwrap();
    done(scratch.uffd.continue_pages(scratch.pages(0, 1), ContinueMode::empty()), scratch.pages(0, 1));
    word(scratch.view.span(), 0).store(5, SeqCst);

    let kept = scratch.uffd.continue_pages(scratch.pages(1, 1), ContinueMode::WP);
    if kept.error == Some(Errno::INVAL) {
        eprintln!("skipped: UFFDIO_CONTINUE_MODE_WP came with 6.4");
        return;
    }
    done(kept, scratch.pages(1, 1));
    let writer = scratch.touch(1, |word| word.store(6, SeqCst));
    assert_eq!(scratch.next_fault().flags, FaultFlags::WP | FaultFlags::WRITE);
    scratch.uffd.write_protect(scratch.pages(1, 1), false, true).unwrap();
    writer.join().unwrap();
}

#[test]
fn protecting_what_is_not_registered_for_it_is_refused() {
    let Some(scratch) = Scratch::new(Features::empty(), RegisterMode::MINOR, 1) else {
        return;
    };
    assert_eq!(scratch.uffd.write_protect(scratch.view.span(), true, false), Err(Errno::NOENT));
    assert_eq!(scratch.uffd.register(scratch.view.span(), RegisterMode::empty()), Err(Errno::INVAL));
}
