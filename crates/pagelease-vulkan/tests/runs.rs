//! What runs come to: atomics against CPU threads, several regions, submissions in a row, splitting, every kind of memory.
#![expect(clippy::cast_possible_truncation, reason = "lengths, on machines of 64 bits")]

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::Duration;

use pagelease::{BackendKind, ByteLen, Faults, PageIndex, PageRange, Region, RestorePolicy, Space};
use pagelease_vulkan::{Binding, ImportError, Layout, RunError, VulkanDevice};

mod support;

const PAGE: u64 = 4096;

/// Doubles each word of 32 bits, one an invocation.
const DOUBLE: &str = "
    @group(0) @binding(0) var<storage, read_write> words: array<u32>;
    @compute @workgroup_size(64) fn double(@builtin(global_invocation_id) id: vec3<u32>) {
        if id.x < arrayLength(&words) { words[id.x] *= 2u; }
    }";

/// Adds 1 to the first word, by a load and a store.
const INCREMENT: &str = "
    @group(0) @binding(0) var<storage, read_write> words: array<u32>;
    @compute @workgroup_size(1) fn increment() { words[0] += 1u; }";

/// Stores the number of each page's element in its first word: 1 for the first.
const NUMBER: &str = "
    struct Page { words: array<u32, 1024> }
    var<immediate> first: u32;
    @group(0) @binding(0) var<storage, read_write> pages: array<Page>;
    @compute @workgroup_size(64) fn number(@builtin(global_invocation_id) id: vec3<u32>) {
        if id.x < arrayLength(&pages) { pages[id.x].words[0] = first + id.x + 1u; }
    }";

fn word(region: &Region, page: usize) -> &AtomicU64 {
    &region.words()[page * 512]
}

/// The same shader, handed over as SPIR-V, does the same.
#[test]
fn a_spirv_module_is_run() {
    let Some((space, device, _clean)) = support::open() else { return };
    let module = naga::front::wgsl::parse_str(DOUBLE).unwrap();
    let mut validator = naga::valid::Validator::new(naga::valid::ValidationFlags::all(), Default::default());
    let info = validator.validate(&module).unwrap();
    let spirv = naga::back::spv::write_vec(&module, &info, &naga::back::spv::Options::default(), None).unwrap();
    let layout = Layout { bindings: vec![Binding { number: 0, least: 4 }], immediates: 0, group_size: [64, 1, 1] };
    // SAFETY: naga has written the module, and the layout is its own; it compares its index with the buffer's length.
    let double = unsafe { device.kernel_spirv(&spirv, "double", layout) }.unwrap();
    let region = space.allocate(ByteLen(2 * 4096)).unwrap();
    let buffer = device.attach(&region).unwrap();
    (0..2).for_each(|page| word(&region, page).store(0x15, SeqCst));
    device.run(&double).elements(0, buffer.all(), 4).over(2 * PAGE / 4).unwrap().wait().unwrap();
    assert!((0..2).all(|page| word(&region, page).load(SeqCst) == 0x2a));
}

/// The last part of a split dispatch must have as much as the shader takes without asking.
#[test]
fn a_part_that_would_be_too_short_is_refused() {
    let Some((space, device, _clean)) = support::open() else { return };
    let quads = device
        .kernel(
            "@group(0) @binding(0) var<storage, read_write> quads: array<vec4<u32>>;
             @compute @workgroup_size(1) fn add(@builtin(global_invocation_id) id: vec3<u32>) {
                 if id.x < arrayLength(&quads) { quads[id.x] += vec4(1u); }
             }",
            "add",
        )
        .unwrap();
    let region = space.allocate(ByteLen(1 << 20)).unwrap();
    let buffer = device.attach(&region).unwrap();
    // As many elements as one dispatch takes, aligned, and one more.
    let most = u64::from(device.limits().groups[0]) / 4 * 4;
    let run = |elements: u64| device.run(&quads).elements(0, buffer.bytes(0..4 * elements), 4).over(elements);
    let refused = run(most + 1);
    assert!(matches!(refused, Err(RunError::TooShort { binding: 0, len: 4, least: 16 })), "{:?}", refused.err());
    run(most + 4).unwrap().wait().unwrap();
}

/// CPU threads and a shader of many invocations add to the same words by atomics, at the same time.
#[test]
fn atomics_of_the_shader_and_of_threads_are_all_counted() {
    let Some((space, device, _clean)) = support::open() else { return };
    assert!(device.has_int64(), "the tested driver has 64-bit atomics");
    let region = space.allocate(ByteLen(4 * 4096)).unwrap();
    let buffer = device.attach(&region).unwrap();
    let add = device
        .kernel(
            "@group(0) @binding(0) var<storage, read_write> words: array<atomic<u64>>;
             @compute @workgroup_size(64) fn add(@builtin(global_invocation_id) id: vec3<u32>) {
                 atomicAdd(&words[id.x % arrayLength(&words)], 0x100000001lu);
             }",
            "add",
        )
        .unwrap();
    let (rounds, groups, by_thread) = (50, 64, 20_000);
    thread::scope(|scope| {
        for seed in 0..2 {
            let region = &region;
            scope.spawn(move || {
                for n in 0..by_thread {
                    region.words()[(n * 97 + seed) % 2048].fetch_add(0x1_0000_0001, SeqCst);
                }
            });
        }
        for _ in 0..rounds {
            device.run(&add).bind(0, buffer.all()).groups([groups, 1, 1]).unwrap().wait().unwrap();
        }
    });
    let total: u64 = region.words().iter().map(|word| word.load(SeqCst) & 0xffff_ffff).sum();
    let upper: u64 = region.words().iter().map(|word| word.load(SeqCst) >> 32).sum();
    let made = u64::from(rounds * groups) * 64 + 2 * by_thread as u64;
    assert_eq!((total, upper), (made, made));
}

/// A touch behind a submission sees it, though nobody waited for that; and the next submission sees the touch.
#[test]
fn a_touch_sees_the_submission_and_the_next_submission_sees_the_touch() {
    let Some((space, device, _clean)) = support::open() else { return };
    let region = space.allocate(ByteLen(1 << 20)).unwrap();
    let buffer = device.attach(&region).unwrap();
    let double = device.kernel(DOUBLE, "double").unwrap();
    for page in 0..256 {
        word(&region, page).store(1, SeqCst);
    }
    for round in 1..=20 {
        let run = device.run(&double).elements(0, buffer.all(), 4).over(1 << 18).unwrap();
        for page in (0..256).step_by(37) {
            assert_eq!(word(&region, page).load(SeqCst), 1 << round, "round {round}, page {page}");
        }
        run.wait().unwrap();
    }
    assert_eq!(word(&region, 255).load(SeqCst), 1 << 20);
}

/// Each sees what the one before it wrote, though none is waited for.
#[test]
fn submissions_on_the_same_bytes_come_one_after_another() {
    let Some((space, device, _clean)) = support::open() else { return };
    let region = space.allocate(ByteLen(4096)).unwrap();
    let buffer = device.attach(&region).unwrap();
    let increment = device.kernel(INCREMENT, "increment").unwrap();
    // More than one page's word can hold leases of: the sixteenth waits.
    let runs: Vec<_> = (0..100).map(|_| device.run(&increment).bind(0, buffer.all()).groups([1; 3]).unwrap()).collect();
    for run in runs {
        run.wait().unwrap();
    }
    assert_eq!(word(&region, 0).load(SeqCst), 100);
}

#[test]
fn bindings_lie_in_several_regions() {
    let Some((space, device, _clean)) = support::open() else { return };
    let regions = [0; 3].map(|_| space.allocate(ByteLen(1 << 16)).unwrap());
    let buffers = regions.each_ref().map(|region| device.attach(region).unwrap());
    let add = device
        .kernel(
            "@group(0) @binding(0) var<storage, read> one: array<u32>;
             @group(0) @binding(2) var<storage, read> other: array<u32>;
             @group(0) @binding(7) var<storage, read_write> sum: array<u32>;
             @compute @workgroup_size(64) fn add(@builtin(global_invocation_id) id: vec3<u32>) {
                 sum[id.x] = one[id.x] + other[id.x];
             }",
            "add",
        )
        .unwrap();
    for (number, word) in regions[0].words().iter().enumerate() {
        word.store(number as u64, SeqCst);
    }
    regions[1].words().iter().for_each(|word| word.store(1000, SeqCst));
    // Unordered, and not from the beginning.
    let half = |index: usize| buffers[index].bytes(1 << 15..1 << 16);
    let run = device.run(&add).bind(7, half(2)).bind(0, half(0)).bind(2, half(1));
    run.groups([(1 << 15) / 4 / 64, 1, 1]).unwrap().wait().unwrap();
    let (first, last) = (&regions[2].words()[..4096], &regions[2].words()[4096..]);
    assert!(first.iter().all(|word| word.load(SeqCst) == 0));
    assert!(last.iter().zip(4096..).all(|(word, number)| word.load(SeqCst) == number + 1000));
}

/// Two bindings of one region, in one page even, and overlapping ones.
#[test]
fn bindings_share_pages() {
    let Some((space, device, _clean)) = support::open() else { return };
    let region = space.allocate(ByteLen(2 * 4096)).unwrap();
    let buffer = device.attach(&region).unwrap();
    let copy = device
        .kernel(
            "@group(0) @binding(0) var<storage, read> one: array<u32>;
             @group(0) @binding(1) var<storage, read_write> other: array<u32>;
             @compute @workgroup_size(1) fn copy() { other[0] = one[1]; }",
            "copy",
        )
        .unwrap();
    region.words()[0].store(7 << 32, SeqCst);
    let run = device.run(&copy).bind(0, buffer.bytes(0..64)).bind(1, buffer.bytes(2048..2048 + 6 * 1024));
    run.groups([1; 3]).unwrap().wait().unwrap();
    assert_eq!(region.words()[2048 / 8].load(SeqCst), 7);
}

/// More than a binding may have: several dispatches, each with its own part.
#[test]
fn a_dispatch_beyond_the_binding_limit_is_split() {
    let Some((space, device, _clean)) = support::open() else { return };
    let limit = device.limits().binding;
    let pages = limit / PAGE + limit / PAGE / 4 + 3;
    if limit > 1 << 30 {
        return support::skip(&format!("a binding of {limit} bytes is allowed: nothing is split"));
    }
    let region = space.allocate(ByteLen((pages * PAGE) as usize)).unwrap();
    let buffer = device.attach(&region).unwrap();
    let number = device.kernel(NUMBER, "number").unwrap();
    let run = device.run(&number).elements(0, buffer.all(), PAGE).immediates(&[0; 4]).first_element_at(0);
    run.over(pages).unwrap().wait().unwrap();
    region.prefetch(region.pages());
    for page in 0..pages {
        assert_eq!(word(&region, page as usize).load(SeqCst), page + 1);
    }
}

/// More than an import may have: what is bound lies across the border, and in the last window.
#[test]
fn a_region_beyond_the_import_limit_is_imported_in_windows() {
    let Some((space, device, _clean)) = support::open() else { return };
    let limit = device.limits().import;
    if limit > 1 << 40 {
        return support::skip(&format!("an import of {limit} bytes is allowed: there are no windows"));
    }
    let len = limit + (64 << 20);
    let region = space.allocate(ByteLen(len as usize)).unwrap();
    let buffer = device.attach(&region).unwrap();
    let number = device.kernel(NUMBER, "number").unwrap();
    let pages = 512;
    for start in [0, limit - 256 * PAGE, len - pages * PAGE] {
        let bytes = buffer.bytes(start..start + pages * PAGE);
        let run = device.run(&number).elements(0, bytes, PAGE).immediates(&[0; 4]).first_element_at(0);
        run.over(pages).unwrap().wait().unwrap();
        for page in 0..pages {
            assert_eq!(word(&region, (start / PAGE + page) as usize).load(SeqCst), page + 1);
        }
    }
    assert_eq!(word(&region, (limit / PAGE - 257) as usize).load(SeqCst), 0);
}

/// More workgroups than a dispatch may have.
#[test]
fn a_dispatch_of_too_many_workgroups_is_split() {
    let Some((space, device, _clean)) = support::open() else { return };
    let elements = u64::from(device.limits().groups[0]) + 100;
    if elements > 1 << 24 {
        return support::skip(&format!("{elements} workgroups: too many to run"));
    }
    let region = space.allocate(ByteLen(elements as usize * 4)).unwrap();
    let buffer = device.attach(&region).unwrap();
    let store = device
        .kernel(
            "var<immediate> first: u32;
             @group(0) @binding(0) var<storage, read_write> words: array<u32>;
             @compute @workgroup_size(1) fn store(@builtin(global_invocation_id) id: vec3<u32>) {
                 words[id.x] = first + id.x;
             }",
            "store",
        )
        .unwrap();
    let run = device.run(&store).elements(0, buffer.bytes(0..elements * 4), 4);
    run.immediates(&[0; 4]).first_element_at(0).over(elements).unwrap().wait().unwrap();
    for (word, number) in region.words()[..elements as usize / 2].iter().zip(0..) {
        assert_eq!(word.load(SeqCst), (2 * number) | ((2 * number + 1) << 32));
    }
}

/// A claim gives pages back as the space says.
#[test]
fn what_a_run_used_goes_back_by_the_restore_policy() {
    let Some((_, _, _clean)) = support::open() else { return };
    for policy in [RestorePolicy::Lazy, RestorePolicy::Eager] {
        let space = Space::builder().restore(policy).build().unwrap();
        let device = VulkanDevice::start(&space, &support::adapter().unwrap()).unwrap();
        let region = space.allocate(ByteLen(4 * 4096)).unwrap();
        let buffer = device.attach(&region).unwrap();
        let increment = device.kernel(INCREMENT, "increment").unwrap();
        device.run(&increment).bind(0, buffer.bytes(4096..8192)).groups([1; 3]).unwrap().wait().unwrap();
        let has: Vec<_> = (0..4).map(|page| buffer.view().has(PageIndex(page))).collect();
        assert_eq!(has, [false, policy == RestorePolicy::Lazy, false, false], "{policy:?}");
        assert_eq!(word(&region, 1).load(SeqCst), 1);
    }
}

/// Two Vulkan devices on one page, and the CPU: each by a load and a store.
#[test]
fn two_devices_take_turns() {
    let Some((space, device, _clean)) = support::open() else { return };
    let other = VulkanDevice::start(&space, &support::adapter().unwrap()).unwrap();
    let region = space.allocate(ByteLen(4096)).unwrap();
    thread::scope(|scope| {
        for device in [&device, &other] {
            let region = &region;
            scope.spawn(move || {
                let buffer = device.attach(region).unwrap();
                let increment = device.kernel(INCREMENT, "increment").unwrap();
                for _ in 0..50 {
                    device.run(&increment).bind(0, buffer.all()).groups([1; 3]).unwrap().wait().unwrap();
                }
            });
        }
        for _ in 0..50 {
            word(&region, 0).fetch_add(1, SeqCst);
            thread::sleep(Duration::from_micros(100));
        }
    });
    assert_eq!(word(&region, 0).load(SeqCst), 150);
}

/// Every backend whose views are aliases; memory that is carried is refused.
#[test]
fn memory_of_every_kind() {
    let Some((space, device, _clean)) = support::open() else { return };
    for (backend, faults) in [
        (BackendKind::Minor, Faults::Monitor),
        (BackendKind::RwProtect, Faults::InThread),
        (BackendKind::Mprotect, Faults::InThread),
    ] {
        let space = match Space::builder().backend(backend).faults(faults).build() {
            Ok(space) => space,
            Err(why) => {
                support::skip(&format!("{backend:?}: {why}"));
                continue;
            }
        };
        let device = VulkanDevice::start(&space, &support::adapter().unwrap()).unwrap();
        let region = space.allocate(ByteLen(16 * 4096)).unwrap();
        let buffer = device.attach(&region).unwrap();
        let double = device.kernel(DOUBLE, "double").unwrap();
        for round in 0..10 {
            word(&region, 3).fetch_add(1, SeqCst);
            device.run(&double).elements(0, buffer.all(), 4).over(16 * 1024).unwrap().wait().unwrap();
            assert_eq!(word(&region, 3).load(SeqCst), (2 << (round + 1)) - 2, "{backend:?}");
        }
    }
    let mut memory = vec![0_u8; 1 << 20];
    let start = memory.as_mut_ptr().wrapping_add(memory.as_ptr().align_offset(4096));
    // SAFETY: it is not used but through the region, and outlives it.
    let adopted = unsafe { space.adopt(std::ptr::NonNull::new(start).unwrap(), ByteLen(1 << 19)) };
    match adopted {
        Ok(region) => {
            let refused = device.attach(&region).err().expect("carried memory cannot be imported");
            assert!(matches!(refused, ImportError::Carried { backend: BackendKind::Move }), "{refused}");
            // It is not attached, and goes on as it was.
            assert!(refused.to_string().contains("Space::allocate"), "{refused}");
        }
        Err(why) => support::skip(&why.to_string()),
    }
    drop(memory);
}

/// The device's view shows what a run left there, page by page; nothing else was claimed.
#[test]
fn only_what_is_bound_is_claimed() {
    let Some((space, device, _clean)) = support::open() else { return };
    let region = space.allocate(ByteLen(64 * 4096)).unwrap();
    let buffer = device.attach(&region).unwrap();
    let increment = device.kernel(INCREMENT, "increment").unwrap();
    let before = space.stats();
    // The last byte of page 9, so to speak, to the first of page 12.
    let bytes = buffer.bytes(10 * PAGE - 64..12 * PAGE + 64);
    device.run(&increment).bind(0, bytes).groups([1; 3]).unwrap().wait().unwrap();
    let has: Vec<_> = (0..64).filter(|&page| buffer.view().has(PageIndex(page))).collect();
    assert_eq!(has, [9, 10, 11, 12]);
    assert_eq!(space.stats().claims - before.claims, 1);
    assert_eq!(buffer.view().words(PageIndex(9))[504].load(SeqCst), 1);
    region.prefetch(PageRange::new(0, 64).unwrap());
}
