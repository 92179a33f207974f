//! [`Adapter`]: a physical device, what it can do, and whether it is fit.

use core::fmt;
use std::ffi::CStr;

use ash::vk;

use crate::error::Unfit;
use crate::load::Vulkan;
use crate::trial;

/// A physical device that a driver offers.
#[derive(Clone)]
pub struct Adapter {
    pub(crate) vulkan: Vulkan,
    pub(crate) physical: vk::PhysicalDevice,
    pub(crate) profile: Profile,
}

/// What is known of a physical device.
#[derive(Clone, Debug)]
pub(crate) struct Profile {
    pub(crate) name: String,
    pub(crate) driver: String,
    pub(crate) driver_id: vk::DriverId,
    pub(crate) kind: vk::PhysicalDeviceType,
    pub(crate) version: u32,
    /// VK_EXT_external_memory_host.
    pub(crate) imports: bool,
    /// The first queue family that computes.
    pub(crate) family: Option<u32>,
    /// 64-bit integers in shaders, and atomics of them in buffers.
    pub(crate) int64: bool,
    pub(crate) limits: Limits,
}

/// The limits of a device. Drivers in software check none of them.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Bytes of one import. A region that has more is imported in parts.
    pub import: u64,
    /// Bytes of one storage buffer binding. A dispatch over elements that has more is split.
    pub binding: u64,
    /// A storage buffer binding starts at a multiple of this.
    pub offset_alignment: u64,
    /// Imported memory starts at a multiple of this, and has one.
    pub import_alignment: u64,
    /// Workgroups of one dispatch, in each dimension.
    pub groups: [u32; 3],
    /// Invocations of a workgroup, in each dimension.
    pub group_size: [u32; 3],
    /// Invocations of a workgroup.
    pub invocations: u32,
    /// Bytes that a workgroup shares.
    pub shared: u32,
    /// Bytes of immediates (push constants).
    pub immediates: u32,
    /// Storage buffers of a kernel.
    pub bindings: u32,
}

impl Profile {
    pub(crate) fn of(instance: &ash::Instance, physical: vk::PhysicalDevice) -> Self {
        // SAFETY: the physical device is the instance's, which is alive; so throughout.
        let version = unsafe { instance.get_physical_device_properties(physical) }.api_version;
        let mut driver = vk::PhysicalDeviceDriverProperties::default();
        let mut maintenance3 = vk::PhysicalDeviceMaintenance3Properties::default();
        let mut maintenance4 = vk::PhysicalDeviceMaintenance4Properties::default();
        let mut host = vk::PhysicalDeviceExternalMemoryHostPropertiesEXT::default();
        let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut maintenance3).push_next(&mut host);
        if version >= vk::API_VERSION_1_2 {
            properties = properties.push_next(&mut driver);
        }
        if version >= vk::API_VERSION_1_3 {
            properties = properties.push_next(&mut maintenance4);
        }
        // SAFETY: as above; the chain lives through the call, and has only structures of the device's version. (A driver passes
        // over one of an extension that it has not.)
        unsafe { instance.get_physical_device_properties2(physical, &mut properties) };
        let (device, limits) = (properties.properties, properties.properties.limits);
        let name = device.device_name_as_c_str().map(CStr::to_string_lossy).unwrap_or_default().into_owned();
        let driver_name = [driver.driver_name_as_c_str(), driver.driver_info_as_c_str()]
            .map(|text| text.map(CStr::to_string_lossy).unwrap_or_default());
        // SAFETY: as above.
        let extensions = unsafe { instance.enumerate_device_extension_properties(physical) }.unwrap_or_default();
        let imports = extensions
            .iter()
            .any(|extension| extension.extension_name_as_c_str() == Ok(ash::ext::external_memory_host::NAME));
        // SAFETY: as above.
        let families = unsafe { instance.get_physical_device_queue_family_properties(physical) };
        let family = families.iter().position(|family| family.queue_flags.contains(vk::QueueFlags::COMPUTE));
        let alignment = host.min_imported_host_pointer_alignment.max(1);
        let largest = match (maintenance3.max_memory_allocation_size, maintenance4.max_buffer_size) {
            (memory, 0) => memory,
            (memory, buffer) => memory.min(buffer),
        };
        Self {
            name,
            driver: format!("{} {}", driver_name[0], driver_name[1]),
            driver_id: driver.driver_id,
            kind: device.device_type,
            version,
            imports,
            family: family.and_then(|family| u32::try_from(family).ok()),
            int64: version >= vk::API_VERSION_1_2 && has_int64(instance, physical),
            limits: Limits {
                import: largest - largest % alignment,
                binding: u64::from(limits.max_storage_buffer_range),
                offset_alignment: limits.min_storage_buffer_offset_alignment.max(4),
                import_alignment: alignment,
                groups: limits.max_compute_work_group_count,
                group_size: limits.max_compute_work_group_size,
                invocations: limits.max_compute_work_group_invocations,
                shared: limits.max_compute_shared_memory_size,
                immediates: limits.max_push_constants_size,
                bindings: limits.max_per_stage_descriptor_storage_buffers,
            },
        }
    }
}

fn has_int64(instance: &ash::Instance, physical: vk::PhysicalDevice) -> bool {
    let mut vulkan12 = vk::PhysicalDeviceVulkan12Features::default();
    let mut features = vk::PhysicalDeviceFeatures2::default().push_next(&mut vulkan12);
    // SAFETY: the physical device is the instance's, which is alive; the device has Vulkan 1.2.
    unsafe { instance.get_physical_device_features2(physical, &mut features) };
    features.features.shader_int64 != 0 && vulkan12.shader_buffer_int64_atomics != 0
}

impl Adapter {
    pub(crate) fn new(vulkan: Vulkan, physical: vk::PhysicalDevice) -> Self {
        let profile = Profile::of(&vulkan.inner.instance, physical);
        Self { vulkan, physical, profile }
    }

    /// What the driver calls it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.profile.name
    }

    /// The driver's name and version.
    #[must_use]
    pub fn driver(&self) -> &str {
        &self.profile.driver
    }

    /// Whether it is a driver in software.
    #[must_use]
    pub fn is_software(&self) -> bool {
        self.profile.kind == vk::PhysicalDeviceType::CPU
    }

    /// Whether its shaders have 64-bit integers, and atomics of them.
    #[must_use]
    pub fn has_int64(&self) -> bool {
        self.profile.int64
    }

    /// Its limits.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.profile.limits
    }

    /// Whether it can be used. A driver in software is tried out, which takes some 50 ms: old ones compute wrong.
    ///
    /// # Errors
    /// [`Unfit`]: why not, and what to do.
    pub fn check(&self) -> Result<(), Unfit> {
        self.check_offered()?;
        if self.profile.driver_id == vk::DriverId::MESA_LLVMPIPE { trial::run(self) } else { Ok(()) }
    }

    /// What the driver says of itself.
    pub(crate) fn check_offered(&self) -> Result<(), Unfit> {
        let version = self.profile.version;
        if version < vk::API_VERSION_1_2 {
            let (major, minor) = (vk::api_version_major(version), vk::api_version_minor(version));
            return Err(Unfit::TooOld { major, minor });
        }
        if !self.profile.imports {
            return Err(Unfit::NoImport);
        }
        self.profile.family.map(|_| ()).ok_or(Unfit::NoCompute)
    }

    /// The lower, the sooner it is taken.
    pub(crate) fn rank(&self) -> u8 {
        match self.profile.kind {
            vk::PhysicalDeviceType::DISCRETE_GPU => 0,
            vk::PhysicalDeviceType::INTEGRATED_GPU => 1,
            vk::PhysicalDeviceType::VIRTUAL_GPU => 2,
            vk::PhysicalDeviceType::CPU => 3,
            _ => 4,
        }
    }
}

impl fmt::Display for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.profile.name, self.profile.driver.trim())
    }
}

impl fmt::Debug for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Adapter").field(&self.profile).finish()
    }
}
