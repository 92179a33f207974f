//! Against the running kernel.

mod change;
mod file;
mod pagemap;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use super::*;

/// The first word of a page; it must not be used after the mapping has gone.
fn word(span: Span, page: usize) -> &'static AtomicU64 {
    assert!(page * page_size() < span.len());
    // SAFETY: mapped, aligned, and only ever used as an atomic.
    unsafe { &*span.as_ptr().add(page * page_size()).cast::<AtomicU64>() }
}

fn page(span: Span, page: usize) -> Span {
    Span::new(span.start() + page * page_size(), page_size()).unwrap()
}

/// Two views of `pages` new pages.
fn two_views(pages: usize) -> (Mapping, Mapping) {
    let len = pages * page_size();
    let file = memfd(c"pagelease-test", len).unwrap();
    (Mapping::shared(&file, 0, len).unwrap(), Mapping::shared(&file, 0, len).unwrap())
}

/// The `VmFlags` of the mapping that begins at `span`, as in `/proc/self/smaps`; `None` when there is none.
fn vm_flags(span: Span) -> Option<String> {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&format!("{:x}-", span.start())));
    lines.next()?;
    lines.find_map(|line| line.strip_prefix("VmFlags:")).map(|flags| format!("{flags} "))
}

#[test]
fn two_views_show_the_same_pages_and_a_dropped_one_is_unmapped() {
    let (view, alias) = two_views(2);
    word(view.span(), 1).store(7, SeqCst);
    assert_eq!(word(alias.span(), 1).load(SeqCst), 7);
    let span = view.span();
    assert!(vm_flags(span).is_some());
    drop(view);
    // Refused, unless another test has mapped something there meanwhile.
    assert!(populate_write(span).is_err() || vm_flags(span).is_some());
}

#[test]
fn a_length_that_is_no_whole_number_of_pages_is_refused() {
    let file = memfd(c"pagelease-test", page_size()).unwrap();
    for len in [0, 1, page_size() + 1] {
        assert_eq!(Mapping::anonymous(len).unwrap_err(), Errno::INVAL);
        assert_eq!(Mapping::shared(&file, 0, len).unwrap_err(), Errno::INVAL);
    }
    assert_eq!(Mapping::shared(&file, 1, page_size()).unwrap_err(), Errno::INVAL);
}

#[test]
fn a_mapping_may_exceed_the_machine() {
    let huge = Mapping::anonymous(1 << 40).unwrap();
    word(huge.span(), (1 << 39) / page_size()).store(1, SeqCst);
}

#[test]
fn a_memory_file_cannot_be_resized() {
    let file = memfd(c"pagelease-test", page_size()).unwrap();
    for len in [0, 2 * page_size() as u64] {
        assert_eq!(rustix::fs::ftruncate(&file, len), Err(Errno::PERM));
    }
}

#[test]
fn dont_need_keeps_shared_contents_and_loses_private_ones() {
    let (view, _alias) = two_views(1);
    let private = Mapping::anonymous(page_size()).unwrap();
    for (mapping, kept) in [(&view, 9), (&private, 0)] {
        word(mapping.span(), 0).store(9, SeqCst);
        // SAFETY: both are ours.
        unsafe { dont_need(mapping.span()) }.unwrap();
        assert_eq!(word(mapping.span(), 0).load(SeqCst), kept);
    }
}

#[test]
fn one_call_drops_many_scattered_pages() {
    let private = Mapping::anonymous(8 * page_size()).unwrap();
    let odd: Vec<Span> = (0..4).map(|index| page(private.span(), 2 * index + 1)).collect();
    (0..8).for_each(|page| word(private.span(), page).store(1, SeqCst));
    let this = SelfProcess::open().unwrap();
    // SAFETY: the memory is ours.
    match unsafe { this.dont_need(&odd) } {
        Ok(bytes) => {
            assert_eq!(bytes, 4 * page_size());
            let left: Vec<u64> = (0..8).map(|page| word(private.span(), page).load(SeqCst)).collect();
            assert_eq!(left, [1, 0, 1, 0, 1, 0, 1, 0]);
        }
        Err(errno) => eprintln!("skipped: process_madvise on oneself came with 6.13: {errno}"),
    }
    let many = vec![private.span(); SelfProcess::SPANS_MAX + 1];
    // SAFETY: the memory is ours.
    assert_eq!(unsafe { this.dont_need(&many) }, Err(Errno::INVAL));
}

#[test]
fn a_covered_page_takes_stores_that_go_nowhere() {
    let (device, runtime) = two_views(3);
    (0..3).for_each(|page| word(runtime.span(), page).store(10 + page as u64, SeqCst));
    let (covered, source) = (page(device.span(), 1), page(runtime.span(), 1));
    // SAFETY: the views are ours.
    unsafe { cover(covered, source) }.unwrap();
    assert_eq!(word(device.span(), 1).load(SeqCst), 11, "it shows what was there");

    (0..3).for_each(|page| word(device.span(), page).store(99, SeqCst));
    let seen: Vec<u64> = (0..3).map(|page| word(runtime.span(), page).load(SeqCst)).collect();
    assert_eq!(seen, [99, 11, 99], "and only that page is covered");
    let flags = vm_flags(covered).unwrap();
    assert!(flags.contains(" dc ") && !flags.contains(" sh "), "private, and not for children: {flags}");
}

#[test]
fn a_thread_that_stores_meanwhile_does_not_notice() {
    let (device, runtime) = two_views(1);
    let (span, stop) = (device.span(), &AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while !stop.load(SeqCst) {
                word(span, 0).fetch_add(1, SeqCst);
            }
        });
        for _ in 0..200 {
            let before = word(span, 0).load(SeqCst);
            // SAFETY: the view is ours.
            unsafe { cover(span, span) }.unwrap();
            assert!(word(span, 0).load(SeqCst) >= before);
        }
        let left = word(runtime.span(), 0).load(SeqCst);
        std::thread::yield_now();
        assert_eq!(word(runtime.span(), 0).load(SeqCst), left, "the stores go elsewhere");
        stop.store(true, SeqCst);
    });
}

#[test]
fn a_page_can_be_covered_by_a_copy_of_itself() {
    let (device, runtime) = two_views(1);
    word(runtime.span(), 0).store(5, SeqCst);
    // SAFETY: the view is ours.
    unsafe { cover(device.span(), device.span()) }.unwrap();
    word(runtime.span(), 0).store(6, SeqCst);
    assert_eq!(word(device.span(), 0).load(SeqCst), 5);
}

#[test]
fn a_cover_of_another_length_is_refused() {
    let (device, runtime) = two_views(2);
    // SAFETY: the views are ours.
    let refused = unsafe { cover(device.span(), page(runtime.span(), 0)) };
    assert_eq!(refused, Err(Errno::INVAL));
}

#[test]
fn populating_changes_no_contents() {
    let (view, alias) = two_views(2);
    word(alias.span(), 0).store(3, SeqCst);
    populate_write(view.span()).unwrap();
    assert_eq!((word(view.span(), 0).load(SeqCst), word(view.span(), 1).load(SeqCst)), (3, 0));
}

#[test]
fn a_mark_for_fork_is_the_mappings() {
    let private = Mapping::anonymous(page_size()).unwrap();
    // SAFETY: the memory is ours, and no child uses it.
    unsafe {
        dont_fork(private.span()).unwrap();
        wipe_on_fork(private.span()).unwrap();
    }
    let flags = vm_flags(private.span()).unwrap();
    assert!(flags.contains(" dc ") && flags.contains(" wf "), "{flags}");
    let (shared, _) = two_views(1);
    // SAFETY: the memory is ours.
    assert_eq!(unsafe { wipe_on_fork(shared.span()) }, Err(Errno::INVAL));
}

#[test]
fn what_is_given_up_stays_mapped() {
    let span = Mapping::anonymous(page_size()).unwrap().into_span();
    word(span, 0).store(1, SeqCst);
}
