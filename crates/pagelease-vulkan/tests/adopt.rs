//! An application's own `VkDevice`: the runtime works on its queue, beside the application, and destroys nothing of it.

use std::ffi::CStr;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::thread;

use ash::vk;
use pagelease::{ByteLen, Space};
use pagelease_vulkan::{Adopted, StartError, VulkanDevice};

mod support;

const INCREMENT: &str = "
    @group(0) @binding(0) var<storage, read_write> words: array<u32>;
    @compute @workgroup_size(1) fn increment() { words[0] += 1u; }";

/// What a program that uses Vulkan has already.
struct Application {
    _entry: ash::Entry,
    instance: ash::Instance,
    physical: vk::PhysicalDevice,
    device: ash::Device,
    queue: vk::Queue,
    lock: Arc<Mutex<()>>,
}

impl Application {
    fn new(extensions: &[&CStr]) -> Self {
        let application = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_1);
        let names: Vec<_> = extensions.iter().map(|name| name.as_ptr()).collect();
        let queues = [vk::DeviceQueueCreateInfo::default().queue_priorities(&[1.0])];
        // SAFETY: as the specification has it; what is pointed to lives through each call.
        unsafe {
            let entry = ash::Entry::load().unwrap();
            let info = vk::InstanceCreateInfo::default().application_info(&application);
            let instance = entry.create_instance(&info, None).unwrap();
            let physical = instance.enumerate_physical_devices().unwrap()[0];
            let info = vk::DeviceCreateInfo::default().queue_create_infos(&queues).enabled_extension_names(&names);
            let device = instance.create_device(physical, &info, None).unwrap();
            let queue = device.get_device_queue(0, 0);
            Self { _entry: entry, instance, physical, device, queue, lock: Arc::default() }
        }
    }

    fn adopted(&self, family: u32) -> Adopted {
        Adopted {
            instance: self.instance.clone(),
            physical: self.physical,
            device: self.device.clone(),
            family,
            queue: self.queue,
            lock: self.lock.clone(),
            int64: false,
        }
    }

    /// It does something of its own.
    fn submit(&self) {
        let _queue = self.lock.lock().unwrap();
        // SAFETY: the queue is locked, and alive.
        unsafe { self.device.queue_submit(self.queue, &[vk::SubmitInfo::default()], vk::Fence::null()) }.unwrap();
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        // SAFETY: nobody uses them any more.
        unsafe {
            self.device.device_wait_idle().unwrap();
            self.device.destroy_device(None);
            self.instance.destroy_instance(None);
        }
    }
}

#[test]
fn an_application_s_device_is_worked_on_and_stays_its_own() {
    if support::open().is_none() {
        return;
    }
    let application = Application::new(&[ash::ext::external_memory_host::NAME]);
    for _ in 0..2 {
        let space = Space::new().unwrap();
        // SAFETY: the application outlives what is made of it, and locks its queue.
        let device = unsafe { VulkanDevice::adopt(&space, application.adopted(0)) }.unwrap();
        assert!(!device.has_int64(), "the application has not enabled it");
        assert!(device.kernel("@compute @workgroup_size(1) fn f() { var x = 1lu; }", "f").is_err());
        let region = space.allocate(ByteLen(4096)).unwrap();
        let buffer = device.attach(&region).unwrap();
        let increment = device.kernel(INCREMENT, "increment").unwrap();
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(SeqCst) {
                    application.submit();
                    thread::yield_now();
                }
            });
            for _ in 0..100 {
                device.run(&increment).bind(0, buffer.all()).groups([1; 3]).unwrap().wait().unwrap();
                region.words()[0].fetch_add(1, SeqCst);
            }
            over.store(true, SeqCst);
        });
        assert_eq!(region.words()[0].load(SeqCst), 200);
    }
    application.submit();
}

#[test]
fn a_device_that_cannot_be_adopted() {
    if support::open().is_none() {
        return;
    }
    let space = Space::new().unwrap();
    let application = Application::new(&[]);
    // SAFETY: as above.
    let refused = unsafe { VulkanDevice::adopt(&space, application.adopted(0)) }.err().expect("refused");
    assert!(matches!(refused, StartError::Adopted { .. }), "{refused}");
    assert!(refused.to_string().contains("VK_EXT_external_memory_host"), "{refused}");
    let application = Application::new(&[ash::ext::external_memory_host::NAME]);
    // SAFETY: it has no such family, and is refused.
    let refused = unsafe { VulkanDevice::adopt(&space, application.adopted(99)) }.err().expect("refused");
    assert!(refused.to_string().contains("VK_QUEUE_COMPUTE_BIT"), "{refused}");
}
