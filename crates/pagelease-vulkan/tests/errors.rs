//! What is refused, by whom, and what it says; and that the CPU has its pages afterwards.
#![expect(clippy::cast_possible_truncation, reason = "lengths, on machines of 64 bits")]

use std::process::Command;
use std::sync::atomic::Ordering::SeqCst;

use pagelease::submit::SubmitError;
use pagelease::{AttachError, ByteLen, ClaimError, Space};
use pagelease_vulkan::{ImportError, Layout, LoadError, RunError, ShaderError, Vulkan, VulkanDevice};

mod support;

const INCREMENT: &str = "
    struct Head { words: array<u32, 4>, tail: array<vec2<u32>> }
    var<immediate> by: u32;
    @group(0) @binding(3) var<storage, read_write> head: Head;
    @compute @workgroup_size(64) fn increment(@builtin(global_invocation_id) id: vec3<u32>) {
        if id.x == 0u { head.words[0] += by; }
    }";

/// Each is refused before anything is claimed, and says what is wrong.
#[test]
fn what_a_kernel_is_given_is_checked() {
    let Some((space, device, _clean)) = support::open() else { return };
    let other = VulkanDevice::start(&space, &support::adapter().unwrap()).unwrap();
    let region = space.allocate(ByteLen(4096 * 4)).unwrap();
    let (buffer, foreign) = (device.attach(&region).unwrap(), other.attach(&region).unwrap());
    let kernel = device.kernel(INCREMENT, "increment").unwrap();
    let alignment = device.limits().offset_alignment;
    assert!(alignment > 4, "else there is nothing to refuse");
    let run = |start, end| device.run(&kernel).bind(3, buffer.bytes(start..end)).immediates(&[0; 4]).groups([1; 3]);
    macro_rules! refused {
        ($result:expr, $pattern:pat, $($says:expr),+) => {
            let refused = $result.err().expect("refused");
            assert!(matches!(refused, $pattern), "{refused:?}");
            $(assert!(refused.to_string().contains(&$says.to_string()), "{refused}");)+
        };
    }
    refused!(
        run(4, 4096),
        RunError::Misaligned { binding: 3, start: 4, .. },
        alignment,
        "minStorageBufferOffsetAlignment"
    );
    refused!(run(0, 4095), RunError::Misaligned { len: 4095, .. }, "multiple of 4");
    refused!(run(0, 0), RunError::OutOfRange { .. }, "within it");
    refused!(run(4096, 4096 * 4 + 4), RunError::OutOfRange { len: 16384, .. }, "16388");
    refused!(run(u64::MAX - 15, u64::MAX), RunError::OutOfRange { .. }, "16384");
    refused!(run(0, 16), RunError::TooShort { len: 16, least: 24, .. }, "at least 24");
    let run = || device.run(&kernel).immediates(&[0; 4]);
    let all = || buffer.all();
    refused!(run().bind(0, all()).groups([1; 3]), RunError::NoBinding { binding: 0, .. }, "[3]");
    refused!(run().groups([1; 3]), RunError::NotBoundOnce { binding: 3, count: 0 }, "give it one");
    refused!(run().bind(3, all()).bind(3, all()).groups([1; 3]), RunError::NotBoundOnce { count: 2, .. }, "2 buffers");
    refused!(run().bind(3, all()).groups([1, 0, 1]), RunError::Groups { .. }, "[1, 0, 1]");
    let limit = device.limits().groups[0];
    if let Some(beyond) = limit.checked_add(1) {
        refused!(run().bind(3, all()).groups([beyond, 1, 1]), RunError::Groups { .. }, limit);
    }
    refused!(run().bind(3, all()).immediates(&[]).groups([1; 3]), RunError::Immediates { given: 0, wanted: 4 }, "4");
    refused!(run().bind(3, all()).first_element_at(4).groups([1; 3]), RunError::Immediates { .. }, "4 bytes");
    refused!(run().bind(3, foreign.all()).groups([1; 3]), RunError::Foreign, "another Vulkan device");
    refused!(other.run(&kernel).bind(3, foreign.all()).groups([1; 3]), RunError::Foreign, "another");
    refused!(
        run().elements(3, all(), 8).over(100),
        RunError::Count { elements: 100, .. },
        "16384",
        "100 elements of 8"
    );
    refused!(run().elements(3, all(), 8).groups([1; 3]), RunError::Count { .. }, "elements");
    refused!(run().elements(3, buffer.bytes(0..6000), 6).over(1000), RunError::Stride { stride: 6, .. }, "6 bytes");
    refused!(run().over(0), RunError::Groups { .. }, "0");
    // And nothing was claimed for any of them.
    assert_eq!(space.stats().claims, 0);
    run().bind(3, all()).immediates(&5_u32.to_ne_bytes()).groups([1; 3]).unwrap().wait().unwrap();
    assert_eq!(region.words()[0].load(SeqCst), 5);
}

#[test]
fn a_binding_beyond_the_limit_that_is_not_split() {
    let Some((space, device, _clean)) = support::open() else { return };
    let limit = device.limits().binding;
    if limit > 1 << 40 {
        return support::skip(&format!("a binding of {limit} bytes is allowed"));
    }
    let region = space.allocate(ByteLen(limit as usize + 4096)).unwrap();
    let buffer = device.attach(&region).unwrap();
    let kernel = device.kernel(INCREMENT, "increment").unwrap();
    let refused = device.run(&kernel).bind(3, buffer.all()).immediates(&[0; 4]).groups([1; 3]).err().unwrap();
    assert!(matches!(refused, RunError::TooLong { .. }) && refused.to_string().contains("Run::elements"), "{refused}");
}

#[test]
fn shaders_are_checked() {
    let Some((_space, device, _clean)) = support::open() else { return };
    let refused = |wgsl: &str, entry: &str| device.kernel(wgsl, entry).err().expect("refused");
    let error = refused("@compute @workgroup_size(1) fn f() { x(); }", "f");
    assert!(matches!(&error, ShaderError::Wgsl(said) if said.contains("wgsl:1:")), "{error}");
    let error = refused("@compute @workgroup_size(1) fn f() {} @compute @workgroup_size(1) fn g() {}", "h");
    assert!(matches!(error, ShaderError::NoEntry { .. }) && error.to_string().contains("it has: f, g"), "{error}");
    let main = "@compute @workgroup_size(1) fn f() { _ = u; }";
    let error = refused(&format!("@group(0) @binding(0) var<uniform> u: vec4<u32>; {main}"), "f");
    assert!(matches!(&error, ShaderError::Unsupported { name, .. } if name == "u"), "{error}");
    let error = refused(&format!("@group(1) @binding(0) var<storage> u: vec4<u32>; {main}"), "f");
    assert!(error.to_string().contains("@group(0)"), "{error}");
    let error = refused("@compute @workgroup_size(4096, 64) fn f() {}", "f");
    assert!(matches!(error, ShaderError::Limit { needs: 262_144, .. }), "{error}");
    let shared = "var<workgroup> w: array<u32, 100000>; @compute @workgroup_size(1) fn f() { w[0] = 1u; }";
    let error = refused(shared, "f");
    assert!(matches!(error, ShaderError::Limit { needs: 400_000, .. }), "{error}");
    let words = device.limits().immediates / 4 + 4;
    let error = refused(&format!("var<immediate> u: array<vec4<u32>, {words}>; {main}"), "f");
    assert!(matches!(error, ShaderError::Limit { what: "bytes of immediates", .. }), "{error}");
}

/// An index out of bounds stays within what is bound.
#[test]
fn wgsl_stays_within_what_it_was_given() {
    let Some((space, device, _clean)) = support::open() else { return };
    let region = space.allocate(ByteLen(4096 * 8)).unwrap();
    let buffer = device.attach(&region).unwrap();
    let kernel = device
        .kernel(
            "@group(0) @binding(0) var<storage, read_write> words: array<u32>;
             @compute @workgroup_size(64) fn f(@builtin(global_invocation_id) id: vec3<u32>) {
                 words[id.x * 64u] = 1u;
             }",
            "f",
        )
        .unwrap();
    device.run(&kernel).bind(0, buffer.bytes(4096..8192)).groups([64, 1, 1]).unwrap().wait().unwrap();
    let touched = region.words().iter().position(|word| word.load(SeqCst) != 0);
    let last = region.words().iter().rposition(|word| word.load(SeqCst) != 0);
    assert_eq!((touched, last), (Some(512), Some(1023)));
}

#[test]
fn a_region_that_has_gone() {
    let Some((space, device, _clean)) = support::open() else { return };
    let region = space.allocate(ByteLen(4096)).unwrap();
    let buffer = device.attach(&region).unwrap();
    let twice = device.attach(&region).err().expect("attached already");
    assert!(matches!(twice, ImportError::Attach(AttachError::AlreadyAttached { .. })), "{twice}");
    let kernel = device.kernel(INCREMENT, "increment").unwrap();
    drop(region);
    let refused = device.run(&kernel).bind(3, buffer.all()).immediates(&[0; 4]).groups([1; 3]).err().unwrap();
    assert!(matches!(refused, RunError::Submit(SubmitError::Claim(ClaimError::RegionGone { .. }))), "{refused}");
}

/// What the program may not write, no device may.
#[test]
fn pages_that_the_program_protects() {
    let Some((space, device, _clean)) = support::open() else { return };
    let region = space.allocate(ByteLen(4096 * 4)).unwrap();
    let buffer = device.attach(&region).unwrap();
    let kernel = device.kernel(INCREMENT, "increment").unwrap();
    let protected = pagelease::PageRange::new(1, 2).unwrap();
    region.protect(protected, pagelease::Protection::Read).unwrap();
    let run = |start: u64| {
        let bytes = buffer.bytes(start * 4096..(start + 1) * 4096);
        device.run(&kernel).bind(3, bytes).immediates(&1_u32.to_ne_bytes()).groups([1; 3])
    };
    let refused = run(1).err().expect("refused");
    assert!(matches!(refused, RunError::Submit(SubmitError::Claim(ClaimError::Protected { .. }))), "{refused}");
    run(2).unwrap().wait().unwrap();
    assert_eq!(region.words()[1024].load(SeqCst), 1);
}

/// The layer is heard at all: a module that takes more than its layout says.
#[test]
fn the_validation_layer_is_listened_to() {
    if support::open().is_none() {
        return;
    }
    let (send, said) = std::sync::mpsc::channel();
    let send = std::sync::Mutex::new(send);
    let vulkan = match Vulkan::load_validated(move |message| {
        let _ = send.lock().unwrap().send(message.to_owned());
    }) {
        Ok(vulkan) => vulkan,
        Err(why) => return support::skip(&why.to_string()),
    };
    let space = Space::new().unwrap();
    let device = VulkanDevice::start(&space, &vulkan.best().unwrap()).unwrap();
    let module = naga::front::wgsl::parse_str(INCREMENT).unwrap();
    let capabilities = naga::valid::Capabilities::IMMEDIATES;
    let mut validator = naga::valid::Validator::new(naga::valid::ValidationFlags::all(), capabilities);
    let info = validator.validate(&module).unwrap();
    let words = naga::back::spv::write_vec(&module, &info, &naga::back::spv::Options::default(), None).unwrap();
    let whole = Layout {
        bindings: vec![pagelease_vulkan::Binding { number: 3, least: 24 }],
        immediates: 4,
        group_size: [64, 1, 1],
    };
    // SAFETY: naga has written the module, and the layout is its own.
    unsafe { device.kernel_spirv(&words, "increment", whole.clone()) }.unwrap();
    assert!(said.try_recv().is_err(), "a right one is not objected to");
    let wrong = Layout { bindings: Vec::new(), ..whole };
    // SAFETY: it is never run, and the driver in software does not mind.
    let _ = unsafe { device.kernel_spirv(&words, "increment", wrong) };
    assert!(said.try_recv().is_ok(), "the layer objects to a binding that the layout has not");
}

/// No driver, in a process of its own.
#[test]
fn no_driver_is_said() {
    const CHILD: &str = "PAGELEASE_TEST_NO_DRIVER";
    if std::env::var_os(CHILD).is_some() {
        let error = Vulkan::load().and_then(|vulkan| vulkan.best()).expect_err("no driver");
        assert!(matches!(error, LoadError::NoDriver), "{error}");
        assert!(error.to_string().contains("mesa-vulkan-drivers") && pagelease_vulkan::available().is_err());
        return;
    }
    if let Err(error @ LoadError::NoLoader(_)) = Vulkan::load() {
        return support::skip(&error.to_string());
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "no_driver_is_said", "--nocapture"])
        .env(CHILD, "1")
        .env("VK_DRIVER_FILES", "/nonexistent")
        .env("VK_ICD_FILENAMES", "/nonexistent")
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    assert!(child.status.success() && out.contains("1 passed"), "{out}\n{err}");
}

/// A child of fork has no device: it cannot use it, and dropping it calls no driver.
#[test]
fn a_forked_child_has_no_device() {
    let Some((space, device, clean)) = support::open() else { return };
    let region = space.allocate(ByteLen(4096)).unwrap();
    let buffer = device.attach(&region).unwrap();
    let kernel = device.kernel(INCREMENT, "increment").unwrap();
    let run = || device.run(&kernel).bind(3, buffer.all()).immediates(&1_u32.to_ne_bytes()).groups([1; 3]);
    run().unwrap().wait().unwrap();
    // SAFETY: the child calls malloc, which glibc makes safe after fork, and otherwise only what the test is about.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: no precondition. A child that hangs is killed.
        unsafe { libc::alarm(20) };
        let refused = matches!(run(), Err(RunError::Submit(SubmitError::Forked)));
        std::mem::forget(clean);
        drop((kernel, buffer, device, region, space));
        // SAFETY: no precondition.
        unsafe { libc::_exit(if refused { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: room for an int.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "{status:#x}");
    run().unwrap().wait().unwrap();
    assert_eq!(region.words()[0].load(SeqCst), 2);
}
