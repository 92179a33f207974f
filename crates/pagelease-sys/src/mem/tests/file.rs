//! Holes, and files of huge pages.

use super::*;

const HUGE: usize = 2 << 20;

#[test]
fn a_hole_is_zeroes_in_every_view() {
    let file = memfd(c"pagelease-test", 2 * page_size()).unwrap();
    let [view, alias] = [(); 2].map(|()| Mapping::shared(&file, 0, 2 * page_size()).unwrap());
    (0..2).for_each(|page| word(view.span(), page).store(3, SeqCst));
    punch_hole(&file, page_size() as u64, page_size() as u64).unwrap();
    for view in [&view, &alias] {
        assert_eq!([0, 1].map(|page| word(view.span(), page).load(SeqCst)), [3, 0]);
    }
    assert_eq!(rustix::fs::fstat(&file).unwrap().st_size, 2 * page_size() as i64);
    assert_eq!(punch_hole(&file, 0, 0), Err(Errno::INVAL));
}

#[test]
fn a_file_of_huge_pages_cannot_be_resized() {
    let file = match memfd_huge(c"pagelease-test", 2 * HUGE) {
        Err(errno) => return eprintln!("skipped: no huge pages of 2 MiB: {errno}"),
        Ok(file) => file,
    };
    for len in [0, 4 * HUGE as u64] {
        assert_eq!(rustix::fs::ftruncate(&file, len), Err(Errno::PERM));
    }
    assert_eq!(memfd_huge(c"pagelease-test", HUGE + page_size()).unwrap_err(), Errno::INVAL);
}

#[test]
fn huge_pages_are_reserved_or_refused_at_once() {
    let free = || {
        let pool = "/sys/kernel/mm/hugepages/hugepages-2048kB";
        let read = |name| std::fs::read_to_string(format!("{pool}/{name}")).ok()?.trim().parse::<usize>().ok();
        Some(read("free_hugepages")?.saturating_sub(read("resv_hugepages")?))
    };
    let (Some(free), Ok(file)) = (free(), memfd_huge(c"pagelease-test", 1 << 40)) else {
        eprintln!("skipped: no huge pages of 2 MiB");
        return;
    };
    assert_eq!(Mapping::shared_reserved(&file, 0, 1 << 40).unwrap_err(), Errno::NOMEM, "more than there are");
    Mapping::shared(&file, 0, 1 << 40).expect("a promise of nothing");
    if free < 2 {
        eprintln!("skipped: {free} huge pages are free; /proc/sys/vm/nr_hugepages");
        return;
    }
    let [view, alias] = [(); 2].map(|()| Mapping::shared_reserved(&file, 0, 2 * HUGE).unwrap());
    word(view.span(), 1).store(4, SeqCst);
    assert_eq!(word(alias.span(), 1).load(SeqCst), 4);
    let (whole, part) = (Span::new(view.span().start(), HUGE).unwrap(), page(view.span(), 1));
    // SAFETY: the views are ours.
    unsafe {
        assert_eq!(protect(part, Protection::Read), Err(Errno::INVAL), "a part of a huge page");
        protect(whole, Protection::Read).unwrap();
    }
    punch_hole(&file, 0, HUGE as u64).unwrap();
    assert_eq!(word(alias.span(), 1).load(SeqCst), 0);
}

#[test]
fn what_is_reserved_is_shared_all_the_same() {
    let file = memfd(c"pagelease-test", page_size()).unwrap();
    let reserved = Mapping::shared_reserved(&file, 0, page_size()).unwrap();
    let view = Mapping::shared(&file, 0, page_size()).unwrap();
    word(reserved.span(), 0).store(2, SeqCst);
    assert_eq!(word(view.span(), 0).load(SeqCst), 2);
    let flags = [&reserved, &view].map(|mapping| vm_flags(mapping.span()).unwrap().contains(" nr "));
    assert_eq!(flags, [false, true]);
}
