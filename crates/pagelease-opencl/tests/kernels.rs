//! Kernels on regions: what they are given, what they do, and what is refused.

use std::sync::atomic::Ordering::Relaxed;

use pagelease::{ByteLen, Faults, PageIndex};
use pagelease_opencl::{Arg, BuildError, NdRange, OpenClDevice, SubmitError};

use support::{MODES, device, kernel, pages, space};

mod support;

/// The program's memory and a kernel's are one; a second submission claims nothing anew.
#[test]
fn a_kernel_adds_to_the_program_s_memory() {
    for faults in MODES {
        let (space, region) = space(faults, 16);
        let Some(device) = device(&space) else { return };
        let buffers = device.attach(&region).unwrap();
        let add = kernel(&device, "add");
        let words = region.words();
        words.iter().zip(0..).for_each(|(word, n)| word.store(n, Relaxed));
        for _ in 0..3 {
            let args = [Arg::Range(&buffers, region.pages()), Arg::U64(1_000_000)];
            // SAFETY: one work item a word.
            unsafe { device.submit(&add, NdRange::new([words.len()]), &args) }.unwrap().wait().unwrap();
            assert!(buffers.view().has(PageIndex(15)), "lazy: they stay with the device");
        }
        assert_eq!(space.stats().pages_claimed, 16, "the other two had everything");
        assert!(words.iter().zip(0..).all(|(word, n)| word.load(Relaxed) == n + 3_000_000));
        assert_eq!(space.stats().invalidations_spurious, 0);
    }
}

/// A range is what the kernel sees as its argument: its first word is the range's.
#[test]
fn a_range_is_a_part_of_the_region() {
    let (space, region) = space(Faults::Monitor, 16);
    let Some(device) = device(&space) else { return };
    let buffers = device.attach(&region).unwrap();
    let add = kernel(&device, "add");
    let part = pages(3, 5);
    // SAFETY: one work item a word of the two pages.
    let submission =
        unsafe { device.submit(&add, NdRange::new([1024]).local([64]), &[Arg::Range(&buffers, part), Arg::U64(7)]) };
    submission.unwrap().wait().unwrap();
    for page in 0..16 {
        assert_eq!(buffers.view().has(PageIndex(page)), part.contains(PageIndex(page)), "page {page}");
    }
    for (word, at) in region.words().iter().zip(0..) {
        assert_eq!(word.load(Relaxed), if part.contains(PageIndex(at / 512)) { 7 } else { 0 }, "word {at}");
    }
}

const EVERY_KIND: &str = "
    typedef struct { uint a; uint b; } pair;
    kernel void every(global ulong *out, constant uint *in, int i, uint u, long l, ulong ul, float f, pair p,
                      local ulong *scratch) {
        uint x = get_global_id(0), y = get_global_id(1), me = get_local_id(1) * get_local_size(0) + get_local_id(0);
        scratch[me] = in[0] + i + u + l + ul + (ulong)f + p.a + p.b;
        barrier(CLK_LOCAL_MEM_FENCE);
        // The neighbour's, so that it must really be shared.
        out[y * get_global_size(0) + x] = scratch[me ^ 1] + x + 100 * y;
    }";

/// Values of each kind, two regions, local memory, two dimensions.
#[test]
fn every_kind_of_argument() {
    let (space, region) = space(Faults::Monitor, 4);
    let Some(device) = device(&space) else { return };
    let input = space.allocate(ByteLen(4096)).unwrap();
    input.words()[0].store(1, Relaxed);
    let (out, input) = (device.attach(&region).unwrap(), device.attach(&input).unwrap());
    let every = device.build(EVERY_KIND).unwrap().kernel("every").unwrap();
    let pair: Vec<u8> = [60_u32, 70].iter().flat_map(|n| n.to_ne_bytes()).collect();
    let args = [
        Arg::Range(&out, pages(1, 3)),
        Arg::Range(&input, pages(0, 1)),
        Arg::I32(-2),
        Arg::U32(3),
        Arg::I64(-4),
        Arg::U64(5),
        Arg::F32(6.5),
        Arg::Bytes(&pair),
        Arg::Local(ByteLen(16 * 8)),
    ];
    // SAFETY: 16 times 8 words, of two pages; groups of 16 items, with 16 words of local memory.
    unsafe { device.submit(&every, NdRange::new([16, 8]).local([8, 2]), &args) }.unwrap().wait().unwrap();
    let sum = 1 + 3 + 5 - 2 - 4 + 6 + 60 + 70;
    for (y, x) in (0..8).flat_map(|y| (0..16).map(move |x| (y, x))) {
        assert_eq!(region.words()[512 + 16 * y + x].load(Relaxed), sum + x as u64 + 100 * y as u64, "{x}, {y}");
    }
}

/// A range given twice is one buffer; two that overlap are refused.
#[test]
fn ranges_of_one_submission() {
    let (space, region) = space(Faults::Monitor, 8);
    let Some(device) = device(&space) else { return };
    let buffers = device.attach(&region).unwrap();
    let source =
        "kernel void copy(global ulong *to, global ulong *from) { to[get_global_id(0)] = from[get_global_id(0)] + 1; }";
    let copy = device.build(source).unwrap().kernel("copy").unwrap();
    let submit = |to, from| {
        let args = [Arg::Range(&buffers, to), Arg::Range(&buffers, from)];
        // SAFETY: a page has 512 words.
        unsafe { device.submit(&copy, NdRange::new([512]), &args) }
    };
    submit(pages(2, 3), pages(2, 3)).unwrap().wait().unwrap();
    submit(pages(4, 6), pages(2, 3)).unwrap().wait().unwrap();
    assert_eq!(region.words()[4 * 512].load(Relaxed), 2);
    let Err(SubmitError::Overlap { first, second }) = submit(pages(2, 4), pages(3, 5)) else { panic!("refused") };
    assert_eq!((first, second), (pages(2, 4), pages(3, 5)));
}

/// A region larger than a buffer can be is several; an argument lies in one of them, or is refused with the place to split it.
#[test]
fn a_region_of_several_buffers() {
    let (space, region) = space(Faults::Monitor, 10);
    let Some(device) = device(&space) else { return };
    let buffers = device.attach_in_chunks(&region, ByteLen(4 * 4096 + 1)).unwrap();
    let chunks: Vec<_> = (0..10).filter_map(|page| buffers.chunk_of(PageIndex(page))).collect();
    assert_eq!(chunks, [vec![pages(0, 4); 4], vec![pages(4, 8); 4], vec![pages(8, 10); 2]].concat());
    assert_eq!(buffers.chunk_of(PageIndex(10)), None);
    let add = kernel(&device, "add");
    let submit = |range: pagelease::PageRange| {
        let args = [Arg::Range(&buffers, range), Arg::U64(1)];
        // SAFETY: one work item a word.
        unsafe { device.submit(&add, NdRange::new([range.len() as usize * 512]), &args) }
    };
    for range in [pages(0, 4), pages(4, 8), pages(8, 10), pages(1, 2), pages(5, 8), pages(9, 10)] {
        submit(range).unwrap().wait().unwrap();
    }
    let sums: Vec<_> = (0..10).map(|page| region.words()[page * 512 + 511].load(Relaxed)).collect();
    assert_eq!(sums, [1, 2, 1, 1, 1, 2, 2, 2, 1, 2]);
    let Err(SubmitError::AcrossBuffers { boundary, .. }) = submit(pages(3, 5)) else { panic!("refused") };
    assert_eq!(boundary, 4);
    let Err(SubmitError::OutOfRange { region_pages, .. }) = submit(pages(9, 11)) else { panic!("refused") };
    assert_eq!(region_pages, 10);
}

/// A region beyond the driver's real limit costs nothing until it is touched, and its last page works as the first.
#[test]
fn a_region_beyond_the_driver_s_limit() {
    let (space, _) = space(Faults::Monitor, 1);
    let Some(device) = device(&space) else { return };

    let limit = device.buffer_max();
    let region = space.allocate(ByteLen(limit.0 + (1 << 20))).expect("address space: it is not touched");
    let buffers = device.attach(&region).unwrap();
    let last = PageIndex(region.pages().end() - 1);
    assert!(buffers.chunk_of(last).unwrap().start() > 0, "two buffers");
    let add = kernel(&device, "add");
    for page in [0, last.0] {
        let args = [Arg::Range(&buffers, pages(page, page + 1)), Arg::U64(5)];
        // SAFETY: a page has 512 words.
        unsafe { device.submit(&add, NdRange::new([512]), &args) }.unwrap().wait().unwrap();
        assert_eq!(region.words()[page as usize * 512].load(Relaxed), 5);
    }
}

/// What the compiler says is in the error, with the line; so are the names of the kernels that there are.
#[test]
fn errors_of_a_build() {
    let (space, _) = space(Faults::Monitor, 1);
    let Some(device) = device(&space) else { return };
    let error = device.build("kernel void f(global int *x) {\n  x[0] = nothing_of_that_name;\n}").unwrap_err();
    assert!(matches!(error, BuildError::Compile { .. }), "{error:?}");
    assert!(error.to_string().contains("nothing_of_that_name"), "{error}");
    let error = device.build(support::KERNELS).unwrap().kernel("subtract").unwrap_err();
    assert!(error.to_string().contains("no kernel subtract") && error.to_string().contains("add_plainly"), "{error}");
    assert!(matches!(device.build(""), Err(BuildError::Empty)));
    let options = device.build_with("kernel void f() {}", "--no-such-option").map(drop);
    assert!(matches!(options, Err(BuildError::Options { .. } | BuildError::Compile { .. })), "{options:?}");
    assert!(matches!(device.build("kernel void f() {} \0"), Err(BuildError::Zero { .. })));
    assert!(device.build_with("kernel void f() { NAME }", "-DNAME=").is_ok(), "options reach the compiler");
}

/// What a kernel is given is compared with what it declares; nothing of a refused submission is held.
#[test]
fn errors_of_arguments() {
    let (space, region) = space(Faults::Monitor, 4);
    let Some(device) = device(&space) else { return };
    let buffers = device.attach(&region).unwrap();
    let add = kernel(&device, "add");
    let submit = |device: &OpenClDevice, size, args: &[Arg<'_>]| {
        // SAFETY: none of these is to run.
        unsafe { device.submit(&add, NdRange::new([size]).local([size.clamp(1, 1 << 20)]), args) }.map(drop)
    };
    let range = Arg::Range(&buffers, region.pages());
    let error = submit(&device, 1, &[range]).unwrap_err();
    assert!(matches!(error, SubmitError::ArgCount { declared: 2, given: 1, .. }), "{error}");
    let error = submit(&device, 1, &[Arg::U64(1), Arg::U64(1)]).unwrap_err();
    assert_eq!(error.to_string(), "argument 0 of kernel add is global ulong*, not a value");
    let error = submit(&device, 1, &[range, range]).unwrap_err();
    assert!(matches!(error, SubmitError::ArgKind { index: 1, .. }), "{error}");
    let error = submit(&device, 1, &[Arg::Local(ByteLen(8)), Arg::U64(1)]).unwrap_err();
    assert!(matches!(error, SubmitError::ArgKind { index: 0, .. }), "{error}");
    let error = submit(&device, 1, &[range, Arg::U32(1)]).unwrap_err();
    assert!(matches!(error, SubmitError::ArgSize { index: 1, given: ByteLen(4), .. }), "{error}");
    let error = submit(&device, 1 << 20, &[range, Arg::U64(1)]).unwrap_err();
    assert!(matches!(error, SubmitError::WorkSize { .. }), "{error}");
    let error = submit(&device, 1, &[range, Arg::Bytes(&[])]).unwrap_err();
    assert!(matches!(error, SubmitError::ArgSize { given: ByteLen(0), .. }), "{error}");
    let other = support::device(&space).expect("there is one");
    let error = submit(&other, 1, &[range, Arg::U64(1)]).unwrap_err();
    assert!(matches!(error, SubmitError::ForeignDevice { .. }), "{error}");
    // Held pages would keep the other device waiting.
    let view = other.attach(&region).unwrap();
    let _lease = view.view().claim(region.pages(), pagelease::Access::Exclusive).unwrap();
    assert_eq!(space.stats().holds_broken, 0);
}

/// Local memory of no size, and a group of no work items.
#[test]
fn errors_of_sizes() {
    let (space, region) = space(Faults::Monitor, 1);
    let Some(device) = device(&space) else { return };
    let buffers = device.attach(&region).unwrap();
    let source = "kernel void f(global ulong *words, local ulong *scratch) { scratch[0] = 1; words[0] = scratch[0]; }";
    let f = device.build(source).unwrap().kernel("f").unwrap();
    let submit = |range: NdRange<2>, local| {
        let args = [Arg::Range(&buffers, region.pages()), Arg::Local(ByteLen(local))];
        // SAFETY: none of these is to run.
        unsafe { device.submit(&f, range, &args) }.map(drop).unwrap_err()
    };
    let error = submit(NdRange::new([1, 1]), 0);
    assert!(matches!(error, SubmitError::ArgSize { index: 1, .. }), "{error}");
    for range in [NdRange::new([4, 4]).local([0, 4]), NdRange::new([4, 0])] {
        let error = submit(range, 64);
        assert!(matches!(error, SubmitError::NoWork { .. }), "{error}");
    }
    let error = submit(NdRange::new([4, 4]).local([2, 1 << 20]), 64);
    assert!(matches!(error, SubmitError::WorkSize { .. }), "{error}");
    assert!(error.to_string().contains("[4, 4] work items in groups of [2, 1048576]"), "{error}");
}
