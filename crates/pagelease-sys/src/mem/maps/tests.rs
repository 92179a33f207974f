//! Against the running kernel.

use super::*;
use crate::mem::{Mapping, Protection, memfd, protect};
use crate::page_size;

/// Every mapping of the process, asked for one after the other.
fn all(ask: impl Fn(usize) -> Result<Option<Area>, Errno>) -> Vec<Area> {
    let mut areas: Vec<Area> = Vec::new();
    let mut address = 0;
    while let Some(area) = ask(address).unwrap() {
        assert!(area.span.end() > address);
        address = area.span.end();
        areas.push(area);
    }
    areas
}

#[test]
fn the_query_is_laid_out_as_in_another_reading_of_the_header() {
    assert_eq!(size_of::<query::Query>(), size_of::<linux_raw_sys::general::procmap_query>());
}

/// In a child, where no other test's threads map anything meanwhile.
#[test]
fn both_ways_give_the_same_answer() {
    let file = memfd(c"pagelease-test", page_size()).unwrap();
    let shown = [
        Mapping::shared(&file, 0, page_size()).unwrap(),
        Mapping::anonymous(page_size()).unwrap(),
        Mapping::anonymous(page_size()).unwrap(),
    ];
    // SAFETY: the memory is ours.
    unsafe { protect(shown[2].span(), Protection::None) }.unwrap();
    // SAFETY: the child makes no call that is not signal-safe, and does not return.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: no precondition.
        unsafe { libc::_exit(differences(&Maps::open().unwrap())) };
    }
    let mut status = 0;
    // SAFETY: the pointer is to an int.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(libc::WEXITSTATUS(status), 0, "0x7F: PROCMAP_QUERY found too few; else where they differ");
    assert_eq!(libc::WTERMSIG(status), 0);
}

/// 0 when they do not differ; allocates nothing.
fn differences(maps: &Maps) -> i32 {
    let mut areas = 0;
    let mut address = 0;
    loop {
        let read = maps.read_area(address);
        let asked = query::area(&maps.fd, address);
        if asked == Err(Errno::NOTTY) {
            return 0;
        }
        if read != asked {
            return 1;
        }
        let Ok(Some(area)) = read else { break };
        // An address inside, and the last one of the gap before it, have the same answer.
        for inside in [area.span.start(), area.span.end() - 1, area.span.start().saturating_sub(1).max(address)] {
            if maps.read_area(inside) != Ok(Some(area)) || query::area(&maps.fd, inside) != Ok(Some(area)) {
                return 2;
            }
        }
        areas += 1;
        address = area.span.end();
    }
    if areas < 10 { 0x7F } else { 0 }
}

#[test]
fn a_process_has_what_it_should_have() {
    let file = memfd(c"pagelease-test", 2 * page_size()).unwrap();
    let (shared, private) = (Mapping::shared(&file, 0, page_size()).unwrap(), Mapping::anonymous(page_size()).unwrap());
    // SAFETY: the memory is ours.
    unsafe { protect(private.span(), Protection::Read) }.unwrap();
    let maps = Maps::open().unwrap();
    for areas in [all(|address| maps.area_at_or_after(address)), all(|address| maps.read_area(address))] {
        let at = |address| *areas.iter().find(|area| area.span.contains(address)).unwrap();
        let found = at(shared.span().start());
        let (readable, writable, executable) = (true, true, false);
        let expected = Area { span: shared.span(), readable, writable, executable, shared: true, kind: AreaKind::File };
        assert_eq!(found, expected);
        let found = at(private.span().start());
        let flags = (found.readable, found.writable, found.executable, found.shared, found.kind);
        assert_eq!(flags, (true, false, false, false, AreaKind::Anonymous));

        let code = at((all as fn(fn(usize) -> Result<Option<Area>, Errno>) -> Vec<Area>) as usize);
        assert!(code.executable && !code.writable && code.kind == AreaKind::File, "{code:?}");
        let local = 0u8;
        assert_ne!(at((&raw const local).addr()).kind, AreaKind::File);
        for kind in [AreaKind::Stack, AreaKind::Other] {
            assert!(areas.iter().any(|area| area.kind == kind), "no {kind:?}");
        }
    }
}

#[test]
fn after_the_last_there_is_none_and_before_one_there_is_it() {
    let maps = Maps::open().unwrap();
    let first = all(|address| maps.area_at_or_after(address))[0];
    for address in [0, first.span.start() - 1] {
        assert_eq!(maps.area_at_or_after(address), Ok(Some(first)));
        assert_eq!(maps.read_area(address), Ok(Some(first)));
    }
    for address in [isize::MAX.cast_unsigned(), usize::MAX] {
        assert_eq!(maps.area_at_or_after(address), Ok(None));
        assert_eq!(maps.read_area(address), Ok(None));
    }
}

#[test]
fn a_reader_that_is_interrupted_by_another_is_not_disturbed() {
    let maps = Maps::open().unwrap();
    let target = Mapping::shared(memfd(c"pagelease-test", page_size()).unwrap(), 0, page_size()).unwrap();
    let look = || maps.read_area(target.span().start()).unwrap().unwrap().span;
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..200 {
                    assert_eq!(look(), target.span());
                }
            });
        }
    });
    maps.reading.store(true, Release);
    assert_eq!(look(), target.span());
}

#[test]
fn a_name_tells_what_it_names() {
    for (name, has_file, expected) in [
        ("", false, AreaKind::Anonymous),
        ("[anon:a name]", false, AreaKind::Anonymous),
        ("[heap]", false, AreaKind::Heap),
        ("[stack]", false, AreaKind::Stack),
        ("[vdso]", false, AreaKind::Other),
        ("[vvar]", false, AreaKind::Other),
        ("/usr/lib/libc.so.6", true, AreaKind::File),
        ("/memfd:pagelease (deleted)", true, AreaKind::File),
        ("/dev/zero (deleted)", true, AreaKind::File),
        ("/dev/shm/x", true, AreaKind::File),
        ("/SYSV00000000 (deleted)", true, AreaKind::File),
        ("/anon_hugepage (deleted)", true, AreaKind::File),
        ("[anon_shmem:a name]", true, AreaKind::File),
        ("/dev/nvidia0", true, AreaKind::Other),
        ("/sys/devices/pci0000:00/0000:00:01.0/resource0", true, AreaKind::Other),
        ("anon_inode:[io_uring]", true, AreaKind::Other),
        ("/dmabuf:", true, AreaKind::Other),
        ("/secretmem (deleted)", true, AreaKind::Other),
    ] {
        assert_eq!(kind(name.as_bytes(), has_file), expected, "{name}");
    }
}
