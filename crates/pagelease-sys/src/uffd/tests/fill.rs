//! Copying, zeroing and moving pages into place.

use super::*;
use crate::mem::{PageKinds, PageRegion, Pagemap, Protection};

const HUGE: usize = 2 << 20;

/// Private memory that no child shares, so that another test's fork makes no page busy.
pub(super) fn unshared(len: usize, align: usize) -> Mapping {
    let memory = Mapping::anonymous_like(len, 0, align).unwrap();
    // SAFETY: the memory is ours, and no child uses it.
    unsafe { mem::dont_fork(memory.span()) }.unwrap();
    memory
}

/// `pages` pages of private memory whose absent pages are trapped, and as many that hold their index plus one.
fn two(pages: usize) -> Option<(Uffd, Mapping, Mapping)> {
    let uffd = open(Features::empty())?;
    let [here, there] = [(); 2].map(|()| unshared(pages * page_size(), page_size()));
    uffd.register(here.span(), RegisterMode::MISSING).unwrap();
    (0..pages).for_each(|page| word(there.span(), page).store(page as u64 + 1, SeqCst));
    Some((uffd, here, there))
}

/// The same, for a kernel that has MOVE.
fn two_to_move(pages: usize) -> Option<(Uffd, Mapping, Mapping)> {
    let two = two(pages)?;
    let offered = Uffd::open(Features::empty()).unwrap().features;
    if !offered.contains(Features::MOVE) {
        eprintln!("skipped: UFFDIO_MOVE came with 6.8");
        return None;
    }
    Some(two)
}

/// MOVE, in these tests' own memory. `AGAIN` for nothing done is the kernel's wish that we ask again.
pub(super) fn move_pages(uffd: &Uffd, to: Span, from: usize, mode: MoveMode) -> Progress {
    loop {
        // SAFETY: the memory is the test's, which expects its pages to go.
        let progress = unsafe { uffd.move_pages(to, from, mode) };
        if progress != (Progress { error: Some(Errno::AGAIN), ..STOPPED }) {
            return progress;
        }
    }
}

fn refused(errno: Errno) -> Progress {
    Progress { error: Some(errno), ..STOPPED }
}

fn touch<T: Send + 'static>(span: Span, touch: fn(&AtomicU64) -> T) -> JoinHandle<T> {
    spawn(move || touch(word(span, 0)))
}

#[test]
fn a_moved_page_is_here_and_no_longer_there() {
    let Some((uffd, here, there)) = two_to_move(2) else { return };
    let reader = touch(here.span(), |word| word.load(SeqCst));
    assert_eq!(next_message(&uffd).fault().unwrap().flags, FaultFlags::empty());
    done(move_pages(&uffd, here.span(), there.span().start(), MoveMode::DONTWAKE), here.span());
    sleep(Duration::from_millis(20));
    assert!(!reader.is_finished(), "the page is there, but nobody woke the thread");
    uffd.wake(here.span()).unwrap();
    assert_eq!(reader.join().unwrap(), 1);
    assert_eq!(word(here.span(), 1).load(SeqCst), 2);
    assert_eq!([0, 1].map(|page| word(there.span(), page).load(SeqCst)), [0, 0], "zeroes where they were");
}

#[test]
fn a_hole_in_the_source_stops_a_move_unless_it_may_be_skipped() {
    let Some((uffd, here, there)) = two_to_move(3) else { return };
    // SAFETY: the memory is ours.
    unsafe { mem::dont_need(page(there.span(), 1)) }.unwrap();
    let from = there.span().start();
    let progress = move_pages(&uffd, here.span(), from, MoveMode::empty());
    assert_eq!(progress, Progress { bytes: page_size(), error: Some(Errno::AGAIN) });
    let (hole, to) = (page(there.span(), 1).start(), page(here.span(), 1));
    assert_eq!(move_pages(&uffd, to, hole, MoveMode::empty()), refused(Errno::NOENT));
    done(move_pages(&uffd, to, hole, MoveMode::ALLOW_SRC_HOLES), to);
    let rest = Span::new(to.start(), 2 * page_size()).unwrap();
    done(move_pages(&uffd, rest, hole, MoveMode::ALLOW_SRC_HOLES), rest);
    assert_eq!(word(here.span(), 2).load(SeqCst), 3);
    done(uffd.zero_pages(to, false), to);
}

#[test]
fn a_page_of_zeroes_moves() {
    let Some((uffd, here, _)) = two_to_move(1) else { return };
    let read = Mapping::anonymous(page_size()).unwrap();
    assert_eq!(word(read.span(), 0).load(SeqCst), 0);
    done(move_pages(&uffd, here.span(), read.span().start(), MoveMode::empty()), here.span());
    assert_eq!(word(here.span(), 0).load(SeqCst), 0);
}

#[test]
fn a_move_replaces_nothing() {
    let Some((uffd, here, there)) = two_to_move(2) else { return };
    let (last, from) = (page(here.span(), 1), there.span().start());
    done(uffd.zero_pages(last, false), last);
    let progress = move_pages(&uffd, here.span(), from, MoveMode::empty());
    assert_eq!(progress, Progress { bytes: page_size(), error: Some(Errno::AGAIN) });
    assert_eq!(move_pages(&uffd, last, from + page_size(), MoveMode::empty()), refused(Errno::EXIST));
    assert_eq!(word(there.span(), 1).load(SeqCst), 2);
}

#[test]
fn mappings_that_differ_refuse_a_move() {
    let Some((uffd, here, there)) = two_to_move(1) else { return };
    let (to, from) = (here.span(), there.span());
    let moved = |to, from: Span| move_pages(&uffd, to, from.start(), MoveMode::empty());
    for protection in [Protection::None, Protection::Read] {
        // SAFETY: the memory is ours, and untouched meanwhile.
        unsafe { mem::protect(from, protection) }.unwrap();
        assert_eq!(moved(to, from), refused(Errno::INVAL), "{protection:?}");
        // SAFETY: as above.
        unsafe { mem::protect(to, protection) }.unwrap();
        assert_eq!(moved(to, from), refused(Errno::INVAL), "the same, but not writable: {protection:?}");
        // SAFETY: as above.
        unsafe { mem::protect(to, Protection::ReadWrite).and(mem::protect(from, Protection::ReadWrite)) }.unwrap();
    }
    let file = mem::memfd(c"pagelease-test", page_size()).unwrap();
    let shared = Mapping::shared(&file, 0, page_size()).unwrap();
    word(shared.span(), 0).store(1, SeqCst);
    assert_eq!(moved(to, shared.span()), refused(Errno::INVAL), "shared memory");
    let unregistered = Mapping::anonymous(page_size()).unwrap();
    let error = moved(unregistered.span(), from).error;
    assert!(matches!(error, Some(Errno::INVAL | Errno::NOENT)), "not registered: {error:?}");
    // SAFETY: locking changes nothing but where the page may be.
    assert_eq!(unsafe { libc::mlock(from.as_ptr().cast(), from.len()) }, 0);
    assert_eq!(moved(to, from), refused(Errno::INVAL), "one is locked");
    // SAFETY: as above.
    unsafe { libc::munlock(from.as_ptr().cast(), from.len()) };
    done(moved(to, from), to);
}

#[test]
fn a_page_that_a_child_shares_is_busy_until_it_is_written_to() {
    let Some((uffd, here, _)) = two_to_move(1) else { return };
    let there = Mapping::anonymous(page_size()).unwrap();
    word(there.span(), 0).store(1, SeqCst);
    let mut ends = [0; 2];
    // SAFETY: the pointer is to room for two; the child does nothing but wait for the end of the pipe.
    let (child, ends) = unsafe {
        assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
        let child = libc::fork();
        if child == 0 {
            libc::close(ends[1]);
            libc::read(ends[0], ends.as_mut_ptr().cast(), 1);
            libc::_exit(0);
        }
        (child, ends)
    };
    let moved = || move_pages(&uffd, here.span(), there.span().start(), MoveMode::empty());
    assert_eq!(moved(), refused(Errno::BUSY), "while it lives");
    // SAFETY: the pipe's ends and the child are ours.
    unsafe {
        libc::close(ends[1]);
        libc::close(ends[0]);
        libc::waitpid(child, core::ptr::null_mut(), 0);
    }
    assert_eq!(moved(), refused(Errno::BUSY), "and after it has gone");
    word(there.span(), 0).store(9, SeqCst);
    done(moved(), here.span());
    assert_eq!(word(here.span(), 0).load(SeqCst), 9);
}

#[test]
fn a_huge_page_moves_as_one() {
    let Some((uffd, _, _)) = two_to_move(1) else { return };
    let [here, there] = [(); 2].map(|()| unshared(HUGE, HUGE));
    // SAFETY: the memory is ours.
    if let Err(errno) = unsafe { mem::huge_page(there.span()) } {
        eprintln!("skipped: no transparent huge pages: {errno}");
        return;
    }
    let is_huge = |span: Span| {
        let mut found = [PageRegion::default(); 4];
        let (count, _) = Pagemap::open().unwrap().scan(span, PageKinds::PRESENT, &mut found).unwrap();
        count == 1 && found[0].kinds.contains(PageKinds::HUGE)
    };
    word(there.span(), 0).store(7, SeqCst);
    if !is_huge(there.span()) {
        eprintln!("skipped: the kernel had no huge page to give");
        return;
    }
    uffd.register(here.span(), RegisterMode::MISSING).unwrap();
    done(move_pages(&uffd, here.span(), there.span().start(), MoveMode::empty()), here.span());
    assert!(is_huge(here.span()), "it is still whole");
    assert_eq!(word(here.span(), 0).load(SeqCst), 7);

    uffd.register(there.span(), RegisterMode::MISSING).unwrap();
    let back = page(there.span(), 1);
    done(move_pages(&uffd, back, here.span().start() + page_size(), MoveMode::empty()), back);
    assert!(!is_huge(here.span()), "a part of it splits it");
}

#[test]
fn a_copy_fills_what_is_absent_and_nothing_else() {
    let Some((uffd, here, there)) = two(3) else { return };
    let reader = touch(here.span(), |word| word.load(SeqCst));
    next_message(&uffd);
    let (first, from) = (page(here.span(), 0), there.span().start());
    // SAFETY: both are ours, and the source is mapped.
    let copy = |to, from, mode| unsafe { uffd.copy_pages(to, from, mode) };
    done(copy(first, from, CopyMode::DONTWAKE), first);
    sleep(Duration::from_millis(20));
    assert!(!reader.is_finished(), "the page is there, but nobody woke the thread");
    uffd.wake(first).unwrap();
    assert_eq!(reader.join().unwrap(), 1);

    assert_eq!(copy(first, from + page_size(), CopyMode::empty()), refused(Errno::EXIST));
    assert_eq!(copy(page(here.span(), 1), 0x1000, CopyMode::empty()), refused(Errno::FAULT));
    let last = page(here.span(), 2);
    assert_eq!(copy(last, from, CopyMode::WP), refused(Errno::INVAL), "not registered for it");
    let rest = Span::new(page(here.span(), 1).start(), 2 * page_size()).unwrap();
    done(copy(rest, from + 8, CopyMode::empty()), rest);
    assert_eq!(word(there.span(), 0).load(SeqCst), 1, "the source keeps it");
}

#[test]
fn a_copy_may_come_write_protected() {
    let Some(uffd) = open(Features::PAGEFAULT_FLAG_WP) else { return };
    let [here, there] = [(); 2].map(|()| Mapping::anonymous(page_size()).unwrap());
    uffd.register(here.span(), RegisterMode::MISSING | RegisterMode::WP).unwrap();
    // SAFETY: both are ours, and the source can be read.
    done(unsafe { uffd.copy_pages(here.span(), there.span().start(), CopyMode::WP) }, here.span());
    assert_eq!(word(here.span(), 0).load(SeqCst), 0);
    let writer = touch(here.span(), |word| word.store(1, SeqCst));
    assert_eq!(next_message(&uffd).fault().unwrap().flags, FaultFlags::WP | FaultFlags::WRITE);
    uffd.write_protect(here.span(), false, true).unwrap();
    writer.join().unwrap();
}

#[test]
fn zeroes_fill_what_is_absent_and_nothing_else() {
    let Some((uffd, here, _)) = two(2) else { return };
    let span = here.span();
    let writer = touch(span, |word| word.fetch_add(5, SeqCst));
    assert_eq!(next_message(&uffd).fault().unwrap().flags, FaultFlags::WRITE);
    done(uffd.zero_pages(page(span, 0), false), page(span, 0));
    sleep(Duration::from_millis(20));
    assert!(!writer.is_finished(), "the page is there, but nobody woke the thread");
    uffd.wake(span).unwrap();
    assert_eq!(writer.join().unwrap(), 0);
    assert_eq!(uffd.zero_pages(span, true), refused(Errno::EXIST));
    assert_eq!(word(span, 0).load(SeqCst), 5);
    let unregistered = Mapping::anonymous(page_size()).unwrap();
    assert_eq!(uffd.zero_pages(unregistered.span(), true), refused(Errno::NOENT));
}
