//! Protection from reads and writes, which came with 7.3.

use super::*;

const MINOR_AND_RWP: RegisterMode = RegisterMode::MINOR.union(RegisterMode::RWP);

/// As [`Scratch::new`], with every page mapped in the view.
fn mapped(mode: RegisterMode, pages: usize) -> Option<Scratch> {
    let scratch = Scratch::new(Features::RWP, RegisterMode::MINOR.union(mode), pages)?;
    done(scratch.uffd.continue_pages(scratch.view.span(), ContinueMode::empty()), scratch.view.span());
    Some(scratch)
}

#[test]
fn a_protected_page_traps_reads_and_writes() {
    let Some(scratch) = mapped(MINOR_AND_RWP, 3) else { return };
    let span = scratch.view.span();
    scratch.uffd.rw_protect(span, true, true).unwrap();
    assert_eq!(word(scratch.alias.span(), 0).load(SeqCst), 1, "other views are not affected");

    let reader = scratch.touch(0, |word| word.load(SeqCst));
    assert_eq!(scratch.next_fault().flags, FaultFlags::RWP);
    scratch.uffd.rw_protect(scratch.pages(0, 1), false, false).unwrap();
    sleep(Duration::from_millis(20));
    assert!(!reader.is_finished(), "lifted, but nobody woke the thread");
    scratch.uffd.wake(span).unwrap();
    assert_eq!(reader.join().unwrap().1, 1);

    let writer = scratch.touch(1, |word| word.fetch_add(1, SeqCst));
    assert_eq!(scratch.next_fault().flags, FaultFlags::RWP | FaultFlags::WRITE);
    let again = scratch.uffd.continue_pages(scratch.pages(1, 1), ContinueMode::empty());
    assert_eq!(again, Progress { error: Some(Errno::EXIST), ..STOPPED }, "the page is mapped");
    scratch.uffd.rw_protect(scratch.pages(1, 1), false, true).unwrap();
    assert_eq!(writer.join().unwrap().1, 2);
}

#[test]
fn an_absent_page_takes_no_mark() {
    let Some(scratch) = Scratch::new(Features::RWP, MINOR_AND_RWP, 2) else { return };
    scratch.uffd.rw_protect(scratch.view.span(), true, false).unwrap();
    let reader = scratch.touch(0, |word| word.load(SeqCst));
    assert_eq!(scratch.next_fault().flags, FaultFlags::MINOR);
    done(scratch.uffd.continue_pages(scratch.pages(0, 2), ContinueMode::empty()), scratch.pages(0, 2));
    assert_eq!(reader.join().unwrap().1, 1);
    assert_eq!(word(scratch.view.span(), 1).load(SeqCst), 2, "and comes without protection");
}

#[test]
fn dropping_a_page_drops_its_protection() {
    let Some(scratch) = mapped(MINOR_AND_RWP, 1) else { return };
    let span = scratch.view.span();
    scratch.uffd.rw_protect(span, true, false).unwrap();
    // SAFETY: shared memory loses no contents.
    unsafe { mem::dont_need(span) }.unwrap();
    let reader = scratch.touch(0, |word| word.load(SeqCst));
    assert_eq!(scratch.next_fault().flags, FaultFlags::MINOR);
    done(scratch.uffd.continue_pages(span, ContinueMode::empty()), span);
    assert_eq!(reader.join().unwrap().1, 1);
}

#[test]
fn what_is_moved_in_arrives_protected_and_what_is_copied_in_does_not() {
    let Some(uffd) = open(Features::RWP | Features::MOVE) else { return };
    let [here, there] = [(); 2].map(|()| fill::unshared(2 * page_size(), page_size()));
    uffd.register(here.span(), RegisterMode::RWP).unwrap();
    word(there.span(), 0).store(4, SeqCst);
    let (moved, copied) = (page(here.span(), 0), page(here.span(), 1));
    // SAFETY: the memory is ours, and the source is mapped.
    done(unsafe { uffd.copy_pages(copied, there.span().start(), CopyMode::empty()) }, copied);
    assert_eq!(word(copied, 0).load(SeqCst), 4);
    done(fill::move_pages(&uffd, moved, there.span().start(), MoveMode::empty()), moved);
    let reader = spawn(move || word(moved, 0).load(SeqCst));
    assert_eq!(next_message(&uffd).fault().unwrap().flags, FaultFlags::RWP);
    uffd.rw_protect(moved, false, true).unwrap();
    assert_eq!(reader.join().unwrap(), 4);
}

#[test]
fn closing_lifts_it() {
    let Some(scratch) = mapped(MINOR_AND_RWP, 1) else { return };
    scratch.uffd.rw_protect(scratch.view.span(), true, false).unwrap();
    let Scratch { uffd, view, alias: _alias, .. } = scratch;
    drop(uffd);
    assert_eq!(word(view.span(), 0).load(SeqCst), 1);
}

#[test]
fn the_two_protections_exclude_each_other() {
    let Some(uffd) = open(Features::RWP | WP_FEATURES) else { return };
    let memory = Mapping::anonymous(page_size()).unwrap();
    let both = RegisterMode::RWP | RegisterMode::WP;
    assert_eq!(uffd.register(memory.span(), both), Err(Errno::INVAL));
    uffd.register(memory.span(), RegisterMode::WP).unwrap();
    assert_eq!(uffd.rw_protect(memory.span(), true, false), Err(Errno::NOENT));
    uffd.unregister(memory.span()).unwrap();
    assert!(uffd.register(memory.span(), RegisterMode::RWP).unwrap().contains(Ioctls::RWPROTECT));
    assert_eq!(uffd.register(memory.span(), RegisterMode::MISSING), Err(Errno::BUSY), "it cannot be taken away");
    assert_eq!(uffd.write_protect(memory.span(), true, false), Err(Errno::NOENT));
}

#[test]
fn a_kernel_without_it_says_so() {
    let Ok(opened) = Uffd::open(Features::empty()) else {
        eprintln!("skipped: no userfaultfd");
        return;
    };
    let memory = Mapping::anonymous(page_size()).unwrap();
    let expected = if opened.features.contains(Features::RWP) { Errno::NOENT } else { Errno::INVAL };
    assert_eq!(opened.uffd.rw_protect(memory.span(), true, false), Err(expected));
    assert_eq!(opened.uffd.register(memory.span(), RegisterMode::RWP), Err(Errno::INVAL), "not asked for at opening");
}
