//! [`Vulkan`]: the loader, opened at run time, and an instance.
//!
//! Invariant: an instance outlives everything made of it; whoever makes something of it keeps the `Arc`. A forked child
//! destroys nothing: the driver's threads are its parent's.

use std::ffi::{CStr, c_void};
use std::sync::Arc;

use ash::vk;

use crate::adapter::Adapter;
use crate::error::LoadError;

/// What the application may use of Vulkan: 64-bit atomics and driver names are part of the core since then.
pub(crate) const API_VERSION: u32 = vk::API_VERSION_1_2;

const VALIDATION: &CStr = c"VK_LAYER_KHRONOS_validation";

/// The Vulkan loader and an instance of it. Cloning gives another handle of the same one.
#[derive(Clone)]
pub struct Vulkan {
    pub(crate) inner: Arc<Loaded>,
}

pub(crate) struct Loaded {
    pub(crate) instance: ash::Instance,
    messenger: Option<Messenger>,
    process: u32,
    // Closed after everything that was loaded from it.
    _entry: ash::Entry,
}

struct Messenger {
    functions: ash::ext::debug_utils::Instance,
    handle: vk::DebugUtilsMessengerEXT,
    /// What the driver's callback is given: boxed once more, for it takes a thin pointer.
    _report: Box<Report>,
}

type Report = Box<dyn Fn(&str) + Send + Sync>;

impl Vulkan {
    /// Opens `libvulkan.so.1`, and makes an instance.
    ///
    /// # Errors
    /// [`LoadError`]: there is no loader, or no driver.
    pub fn load() -> Result<Self, LoadError> {
        Self::with(None)
    }

    /// The same with the validation layer (`VK_LAYER_KHRONOS_validation`): `report` is given each of its warnings and errors,
    /// on whatever thread made the call that it is about.
    ///
    /// # Errors
    /// [`LoadError`]: [`LoadError::NoValidation`] where the layer is not installed.
    pub fn load_validated(report: impl Fn(&str) + Send + Sync + 'static) -> Result<Self, LoadError> {
        Self::with(Some(Box::new(report)))
    }

    fn with(report: Option<Report>) -> Result<Self, LoadError> {
        // SAFETY: it is the system's Vulkan loader, whose initialisers are what any Vulkan program runs; it is closed with the
        // last of what was loaded from it (`Loaded`).
        let entry = unsafe { ash::Entry::load() }.map_err(|error| LoadError::NoLoader(error.to_string()))?;
        if report.is_some() && !has_validation(&entry)? {
            return Err(LoadError::NoValidation);
        }
        let application = vk::ApplicationInfo::default()
            .application_name(c"pagelease")
            .engine_name(c"pagelease")
            .api_version(API_VERSION);
        let (mut layers, mut extensions) = (Vec::new(), Vec::new());
        if report.is_some() {
            layers.push(VALIDATION.as_ptr());
            extensions.push(ash::ext::debug_utils::NAME.as_ptr());
        }
        let info = vk::InstanceCreateInfo::default()
            .application_info(&application)
            .enabled_layer_names(&layers)
            .enabled_extension_names(&extensions);
        // SAFETY: the structure and what it points to live through the call.
        let instance = unsafe { entry.create_instance(&info, None) }.map_err(|result| match result {
            vk::Result::ERROR_INCOMPATIBLE_DRIVER => LoadError::NoDriver,
            result => LoadError::Vulkan { what: "vkCreateInstance", result },
        })?;
        let mut loaded = Loaded { instance, messenger: None, process: std::process::id(), _entry: entry };
        if let Some(report) = report {
            loaded.messenger = Some(Messenger::new(&loaded, report)?);
        }
        Ok(Self { inner: Arc::new(loaded) })
    }

    /// Every physical device that the drivers offer, fit or not.
    ///
    /// # Errors
    /// [`LoadError::NoDriver`] where there is none.
    pub fn adapters(&self) -> Result<Vec<Adapter>, LoadError> {
        // SAFETY: the instance is alive.
        let devices = unsafe { self.inner.instance.enumerate_physical_devices() }
            .map_err(|result| LoadError::Vulkan { what: "vkEnumeratePhysicalDevices", result })?;
        if devices.is_empty() {
            return Err(LoadError::NoDriver);
        }
        Ok(devices.into_iter().map(|device| Adapter::new(self.clone(), device)).collect())
    }

    /// The first adapter that is fit: a discrete one before an integrated one before one in software.
    ///
    /// # Errors
    /// [`LoadError::NoneFit`] says of each why not.
    pub fn best(&self) -> Result<Adapter, LoadError> {
        let mut adapters = self.adapters()?;
        adapters.sort_by_key(Adapter::rank);
        let mut unfit = Vec::new();
        for adapter in adapters {
            match adapter.check() {
                Ok(()) => return Ok(adapter),
                Err(why) => unfit.push((adapter.to_string(), why)),
            }
        }
        Err(LoadError::NoneFit(unfit))
    }
}

fn has_validation(entry: &ash::Entry) -> Result<bool, LoadError> {
    // SAFETY: no precondition.
    let layers = unsafe { entry.enumerate_instance_layer_properties() }
        .map_err(|result| LoadError::Vulkan { what: "vkEnumerateInstanceLayerProperties", result })?;
    Ok(layers.iter().any(|layer| layer.layer_name_as_c_str() == Ok(VALIDATION)))
}

impl Messenger {
    fn new(loaded: &Loaded, report: Report) -> Result<Self, LoadError> {
        let report = Box::new(report);
        let functions = ash::ext::debug_utils::Instance::new(&loaded._entry, &loaded.instance);
        let info = vk::DebugUtilsMessengerCreateInfoEXT::default()
            .message_severity(
                vk::DebugUtilsMessageSeverityFlagsEXT::ERROR | vk::DebugUtilsMessageSeverityFlagsEXT::WARNING,
            )
            .message_type(vk::DebugUtilsMessageTypeFlagsEXT::VALIDATION)
            .pfn_user_callback(Some(on_message))
            .user_data((&raw const *report).cast_mut().cast());
        // SAFETY: `report` lives as long as the messenger, which is destroyed before it is dropped.
        let handle = unsafe { functions.create_debug_utils_messenger(&info, None) }
            .map_err(|result| LoadError::Vulkan { what: "vkCreateDebugUtilsMessengerEXT", result })?;
        Ok(Self { functions, handle, _report: report })
    }
}

/// Called by the validation layer.
unsafe extern "system" fn on_message(
    _: vk::DebugUtilsMessageSeverityFlagsEXT,
    _: vk::DebugUtilsMessageTypeFlagsEXT,
    data: *const vk::DebugUtilsMessengerCallbackDataEXT<'_>,
    report: *mut c_void,
) -> vk::Bool32 {
    // SAFETY: the layer hands over a valid structure; `report` is what the messenger was made with, alive as long as it. A panic
    // must not cross the layer's frames, so it is caught.
    unsafe {
        if let (Some(data), Some(report)) = (data.as_ref(), report.cast::<Report>().as_ref())
            && let Some(message) = data.message_as_c_str()
        {
            let message = message.to_string_lossy();
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| report(&message)));
        }
    }
    vk::FALSE
}

impl Drop for Loaded {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            return;
        }
        // SAFETY: nothing made of the instance is left: each keeps it. Nothing else uses the messenger.
        unsafe {
            if let Some(messenger) = &self.messenger {
                messenger.functions.destroy_debug_utils_messenger(messenger.handle, None);
            }
            self.instance.destroy_instance(None);
        }
    }
}
