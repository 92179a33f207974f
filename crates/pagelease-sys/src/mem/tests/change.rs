//! Protecting, moving, unmapping, and mappings at a wanted remainder.

use rustix::fd::AsRawFd;

use super::*;

/// What the kernel says is mapped at `span`'s start.
fn area(span: Span) -> Option<Area> {
    let area = Maps::open().unwrap().area_at_or_after(span.start()).unwrap();
    area.filter(|area| area.span.contains(span.start()))
}

/// Whether the first word of `page` can be read, as the kernel sees it: a way to try without a signal.
fn readable(page: Span) -> bool {
    let file = memfd(c"pagelease-test", page_size()).unwrap();
    // SAFETY: the kernel says so when it cannot be read.
    let written = unsafe { libc::write(file.as_raw_fd(), page.as_ptr().cast(), size_of::<u64>()) };
    written == 8
}

#[test]
fn protection_is_the_mappings_and_ordered() {
    let memory = Mapping::anonymous(3 * page_size()).unwrap();
    let middle = page(memory.span(), 1);
    word(memory.span(), 1).store(7, SeqCst);
    for (protection, expected) in
        [(Protection::Read, (true, false)), (Protection::None, (false, false)), (Protection::ReadWrite, (true, true))]
    {
        // SAFETY: the memory is ours.
        unsafe { protect(middle, protection) }.unwrap();
        let found = area(middle).unwrap();
        assert_eq!((found.readable, found.writable), expected, "{protection:?}");
        assert_eq!(readable(middle), found.readable);
        assert!(readable(page(memory.span(), 2)), "its neighbour is not affected");
    }
    assert_eq!(word(memory.span(), 1).load(SeqCst), 7);
    assert!(Protection::None < Protection::Read && Protection::Read < Protection::ReadWrite);
}

#[test]
fn a_file_open_for_reading_is_not_written_to() {
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    let flags = MapFlags::PRIVATE;
    // SAFETY: a new mapping where the kernel finds room harms no other.
    let start = unsafe { rustix::mm::mmap(null_mut(), page_size(), ProtFlags::READ, flags, &file, 0) }.unwrap();
    let private = Mapping::own(start, page_size()).unwrap();
    // SAFETY: the memory is ours.
    assert_eq!(unsafe { protect(private.span(), Protection::ReadWrite) }, Ok(()), "private: its pages are copied");
    // SAFETY: a new mapping where the kernel finds room harms no other.
    let start = unsafe { rustix::mm::mmap(null_mut(), page_size(), ProtFlags::READ, MapFlags::SHARED, &file, 0) };
    let shared = Mapping::own(start.unwrap(), page_size()).unwrap();
    // SAFETY: the memory is ours.
    assert_eq!(unsafe { protect(shared.span(), Protection::ReadWrite) }, Err(Errno::ACCESS));
}

#[test]
fn pages_move_with_their_mapping() {
    let from = Mapping::anonymous(2 * page_size()).unwrap().into_span();
    word(from, 1).store(5, SeqCst);
    // SAFETY: the memory is ours, and now elsewhere.
    let anywhere = unsafe { remap(from, None, true) }.unwrap();
    assert_ne!(anywhere, from.start());
    let moved = Span::new(anywhere, from.len()).unwrap();
    assert_eq!((word(moved, 1).load(SeqCst), word(from, 1).load(SeqCst)), (5, 0), "and the old one stays, empty");

    word(from, 0).store(9, SeqCst);
    // SAFETY: both are ours.
    assert_eq!(unsafe { remap(moved, Some(from.start()), false) }, Ok(from.start()));
    assert_eq!((word(from, 0).load(SeqCst), word(from, 1).load(SeqCst)), (0, 5), "replaced");
    // SAFETY: as above.
    assert_eq!(unsafe { remap(from, Some(from.start()), false) }, Err(Errno::INVAL), "they overlap");
    // SAFETY: nobody uses it any more.
    unsafe { unmap(from) }.unwrap();
}

#[test]
fn what_is_unmapped_is_gone() {
    let memory = Mapping::anonymous(3 * page_size()).unwrap().into_span();
    let middle = page(memory, 1);
    // SAFETY: the memory is ours.
    unsafe {
        protect(middle, Protection::None).unwrap();
        unmap(page(memory, 2)).unwrap();
        unmap(memory).unwrap();
    }
    // Gone, unless another test has mapped something there meanwhile, which is readable.
    assert!(area(middle).is_none_or(|area| area.readable));
    // SAFETY: nothing is there, or was.
    assert_eq!(unsafe { unmap(Span::new(1 << 46, page_size()).unwrap()) }, Ok(()), "nothing is there: nothing happens");
}

#[test]
fn a_remainder_is_as_wanted() {
    const HUGE: usize = 2 << 20;
    for (congruent, align) in [(0, HUGE), (5 * page_size(), HUGE), (HUGE - page_size(), HUGE), (0, page_size())] {
        let len = 3 * page_size();
        let memory = Mapping::anonymous_like(len, congruent + (7 << 30), align).unwrap();
        assert_eq!((memory.span().start() % align, memory.span().len()), (congruent, len));
        word(memory.span(), 2).store(1, SeqCst);
    }
    for (len, congruent, align) in
        [(0, 0, HUGE), (1, 0, HUGE), (page_size(), 1, HUGE), (page_size(), 0, 3 * page_size()), (page_size(), 0, 1)]
    {
        assert_eq!(Mapping::anonymous_like(len, congruent, align).unwrap_err(), Errno::INVAL);
    }
    assert_eq!(Mapping::anonymous_like(1 << 62, 0, 1 << 63).unwrap_err(), Errno::NOMEM);
}

#[test]
fn what_is_cut_off_for_a_remainder_is_given_back() {
    const ALIGN: usize = 1 << 40;
    let reserved = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    };
    let before = reserved();
    // Eight, since another test has a mapping of this size for a moment.
    let kept: Vec<Mapping> = (0..8).map(|_| Mapping::anonymous_like(page_size(), 0, ALIGN).unwrap()).collect();
    assert!(reserved() < before + 4 * ALIGN, "{before:#x} {kept:?}");
}

#[test]
fn huge_pages_are_advised_for_and_against() {
    let memory = Mapping::anonymous(page_size()).unwrap();
    // SAFETY: the memory is ours.
    if let Err(errno) = unsafe { huge_page(memory.span()) } {
        eprintln!("skipped: no transparent huge pages: {errno}");
        return;
    }
    assert!(vm_flags(memory.span()).unwrap().contains(" hg "));
    // SAFETY: as above.
    unsafe { no_huge_page(memory.span()) }.unwrap();
    let flags = vm_flags(memory.span()).unwrap();
    assert!(flags.contains(" nh ") && !flags.contains(" hg "), "{flags}");
}
