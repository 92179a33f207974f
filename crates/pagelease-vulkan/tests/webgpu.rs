//! A `wgpu::Buffer` over a region: a program of wgpu's own, and no staging.

use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::Duration;

use pagelease::{BackendKind, ByteLen, PageIndex, Space};
use pagelease_vulkan::webgpu::{self, WgpuDevice};
use pagelease_vulkan::{ImportError, StartError};

mod support;

const SHADER: &str = "
    @group(0) @binding(0) var<storage, read_write> words: array<u32>;
    @compute @workgroup_size(64) fn double(@builtin(global_invocation_id) id: vec3<u32>) {
        if id.x < arrayLength(&words) { words[id.x] = 2u * words[id.x]; }
    }";

/// The first adapter that wgpu finds; where the other tests have a device, this has one.
fn adapter() -> Option<wgpu::Adapter> {
    support::open()?;
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::VULKAN;
    let instance = wgpu::Instance::new(descriptor);
    let adapters = block_on(instance.enumerate_adapters(wgpu::Backends::VULKAN));
    Some(adapters.into_iter().next().expect("wgpu finds a device"))
}

/// What wgpu returns is ready at once, but for the web.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let mut future = std::pin::pin!(future);
    loop {
        if let std::task::Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
        thread::yield_now();
    }
}

#[test]
fn a_wgpu_program_works_on_a_region() {
    let Some(adapter) = adapter() else { return };
    let (device, queue) = webgpu::open(&adapter, &wgpu::DeviceDescriptor::default()).unwrap();
    let space = Space::builder().drain_limit(Duration::from_secs(60)).build().unwrap();
    let region = space.allocate(ByteLen(64 << 10)).unwrap();
    let shared = WgpuDevice::start(&space, &device, &queue).unwrap();
    let buffer = shared.attach(&region).unwrap();

    // From here to `submit`, wgpu's own.
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: None,
        source: wgpu::ShaderSource::Wgsl(SHADER.into()),
    });
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: None,
        layout: None,
        module: &module,
        entry_point: Some("double"),
        compilation_options: wgpu::PipelineCompilationOptions::default(),
        cache: None,
    });
    let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &pipeline.get_bind_group_layout(0),
        entries: &[wgpu::BindGroupEntry { binding: 0, resource: buffer.buffer().as_entire_binding() }],
    });
    let commands = || {
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &group, &[]);
        pass.dispatch_workgroups(256, 1, 1);
        drop(pass);
        encoder.finish()
    };
    let words = region.words();
    words.iter().for_each(|word| word.store(1, SeqCst));
    for round in 1..=20 {
        let submission = shared.submit(&[(&buffer, 0..buffer.len())], [commands()]).unwrap();
        for page in 0..16 {
            // No wait: the touch itself waits.
            assert_eq!(words[page * 512].load(SeqCst), 1 << round, "round {round}");
        }
        submission.wait().unwrap();
    }
    assert!(words.iter().all(|word| word.load(SeqCst) == 1 << 20));
    // Only what is named is claimed.
    shared
        .submit(&[(&buffer, 8192..8196)], [device.create_command_encoder(&Default::default()).finish()])
        .unwrap()
        .wait()
        .unwrap();
    let has: Vec<_> = (0..16).filter(|&page| buffer.view().has(PageIndex(page))).collect();
    assert_eq!(has, [2]);
    // A bind group still has the buffer, and the import: nothing of it goes before.
    drop((buffer, region, shared));
    drop((group, pipeline, device, queue));
}

#[test]
fn what_wgpu_cannot_be_given() {
    let Some(adapter) = adapter() else { return };
    let space = Space::new().unwrap();
    let (device, queue) = block_on(adapter.request_device(&wgpu::DeviceDescriptor::default())).unwrap();
    let refused = WgpuDevice::start(&space, &device, &queue).err().expect("made without the extension");
    assert!(matches!(refused, StartError::Adopted { .. }) && refused.to_string().contains("webgpu::open"), "{refused}");
    let (device, queue) = webgpu::open(&adapter, &wgpu::DeviceDescriptor::default()).unwrap();
    let shared = WgpuDevice::start(&space, &device, &queue).unwrap();
    let mut memory = vec![0_u8; 1 << 20];
    let start = memory.as_mut_ptr().wrapping_add(memory.as_ptr().align_offset(4096));
    // SAFETY: it is not used but through the region, and outlives it.
    if let Ok(region) = unsafe { space.adopt(std::ptr::NonNull::new(start).unwrap(), ByteLen(1 << 19)) } {
        let refused = shared.attach(&region).err().expect("carried memory");
        assert!(matches!(refused, ImportError::Carried { backend: BackendKind::Move }), "{refused}");
    }
    drop(memory);
}
