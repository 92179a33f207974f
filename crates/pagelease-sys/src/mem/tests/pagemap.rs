//! Which pages are there.

use super::*;

/// The regions of `span`, as page indexes; `None` before 6.7.
fn scan(span: Span, want: PageKinds) -> Option<Vec<(usize, usize, PageKinds)>> {
    let mut found = [PageRegion::default(); 16];
    let answer = Pagemap::open().unwrap().scan(span, want, &mut found);
    if answer == Err(Errno::NOTTY) {
        eprintln!("skipped: PAGEMAP_SCAN came with 6.7");
        return None;
    }
    let (count, end) = answer.unwrap();
    assert_eq!(end, span.end(), "all of it");
    let index = |address| (address - span.start()) / page_size();
    Some(found[..count].iter().map(|region| (index(region.start), index(region.end), region.kinds)).collect())
}

/// Private memory that never becomes a huge page.
fn small_pages(pages: usize) -> Mapping {
    let memory = Mapping::anonymous(pages * page_size()).unwrap();
    // SAFETY: the memory is ours. Without huge pages in the kernel there are none anyway.
    let _ = unsafe { no_huge_page(memory.span()) };
    memory
}

#[test]
fn the_layouts_are_those_of_another_reading_of_the_header() {
    use linux_raw_sys::general as raw;
    assert_eq!(size_of::<PageRegion>(), size_of::<raw::page_region>());
    let kinds = [PageKinds::PRESENT, PageKinds::SWAPPED, PageKinds::PFNZERO, PageKinds::HUGE].map(|kind| kind.bits());
    let theirs = [raw::PAGE_IS_PRESENT, raw::PAGE_IS_SWAPPED, raw::PAGE_IS_PFNZERO, raw::PAGE_IS_HUGE];
    assert_eq!(kinds, theirs.map(u64::from));
}

#[test]
fn written_read_and_untouched_pages_are_told_apart() {
    let memory = small_pages(5);
    word(memory.span(), 1).store(1, SeqCst);
    word(memory.span(), 2).store(1, SeqCst);
    assert_eq!(word(memory.span(), 4).load(SeqCst), 0);
    let Some(present) = scan(memory.span(), PageKinds::PRESENT) else { return };
    let (written, zero) = (PageKinds::PRESENT, PageKinds::PRESENT | PageKinds::PFNZERO);
    assert_eq!(present, [(1, 3, written), (4, 5, zero)]);
    assert_eq!(scan(memory.span(), PageKinds::PFNZERO).unwrap(), [(4, 5, zero)]);
    assert_eq!(scan(memory.span(), PageKinds::PFNZERO | PageKinds::HUGE).unwrap(), [(4, 5, zero)], "any of them");
    let none = PageKinds::empty();
    assert_eq!(scan(memory.span(), none).unwrap(), [(0, 1, none), (1, 3, written), (3, 4, none), (4, 5, zero)]);
    assert_eq!(scan(memory.span(), PageKinds::SWAPPED | PageKinds::HUGE).unwrap(), []);
}

#[test]
fn a_page_of_the_page_cache_alone_is_not_here() {
    let (view, alias) = two_views(2);
    word(alias.span(), 0).store(1, SeqCst);
    let Some(present) = scan(view.span(), PageKinds::PRESENT) else { return };
    assert_eq!(present, []);
    word(view.span(), 0).store(2, SeqCst);
    assert_eq!(scan(view.span(), PageKinds::PRESENT).unwrap(), [(0, 1, PageKinds::PRESENT)]);
}

#[test]
fn a_search_that_finds_no_room_goes_on_where_it_ended() {
    let memory = small_pages(8);
    (0..8).step_by(2).for_each(|page| word(memory.span(), page).store(1, SeqCst));
    let pagemap = Pagemap::open().unwrap();
    assert_eq!(pagemap.scan(memory.span(), PageKinds::PRESENT, &mut []), Err(Errno::INVAL));
    let (mut rest, mut starts) = (Some(memory.span()), Vec::new());
    while let Some(span) = rest {
        let mut found = [PageRegion::default(); 3];
        let Ok((count, end)) = pagemap.scan(span, PageKinds::PRESENT, &mut found) else {
            eprintln!("skipped: PAGEMAP_SCAN came with 6.7");
            return;
        };
        assert!(end > span.start(), "it goes forward");
        starts.extend(found[..count].iter().map(|region| (region.start - memory.span().start()) / page_size()));
        rest = Span::new(end, memory.span().end() - end);
    }
    assert_eq!(starts, [0, 2, 4, 6]);
}

#[test]
fn a_part_of_a_huge_page_is_huge() {
    const HUGE: usize = 2 << 20;
    let memory = Mapping::anonymous_like(HUGE, 0, HUGE).unwrap();
    // SAFETY: the memory is ours.
    let advised = unsafe { huge_page(memory.span()) };
    word(memory.span(), 3).store(1, SeqCst);
    let Some(found) = scan(memory.span(), PageKinds::HUGE) else { return };
    if advised.is_err() || found.is_empty() {
        eprintln!("skipped: the kernel had no huge page to give");
        return;
    }
    let kinds = PageKinds::PRESENT | PageKinds::HUGE;
    assert_eq!(found, [(0, HUGE / page_size(), kinds)]);
    assert_eq!(scan(page(memory.span(), 9), PageKinds::PRESENT).unwrap(), [(0, 1, kinds)]);
}
