//! The devices and drivers of this machine: each is tried, and for each that cannot be used, the exact reason and the remedy.

use pagelease_kvm::Unavailable;
use pagelease_sys::Errno;
use pagelease_vulkan::LoadError;

use super::checks::List;

const SECTION: &str = "devices";

impl List {
    pub(super) fn devices(&mut self) {
        self.add(SECTION, "software", true, "threads of the process; always there");
        self.kvm();
        self.vulkan();
        self.opencl();
    }

    fn kvm(&mut self) {
        let why = match pagelease_kvm::available() {
            Ok(()) => {
                self.add(SECTION, "KVM", true, "a function ran in a virtual machine, its page faults trapped");
                return;
            }
            Err(why) => why,
        };
        let remedy = match &why {
            Unavailable::Open(Errno::ACCESS | Errno::PERM) => Some("sudo usermod -aG kvm $USER"),
            Unavailable::Open(Errno::NOENT | Errno::NODEV | Errno::NXIO) => Some("sudo modprobe -a kvm_intel kvm_amd"),
            Unavailable::UserModeOnly => Some("sudo sysctl vm.unprivileged_userfaultfd=1"),
            _ => None,
        };
        self.add(SECTION, "KVM", false, &why).remedy = remedy.map(str::to_owned);
    }

    fn vulkan(&mut self) {
        let why = match pagelease_vulkan::available() {
            Ok(found) => {
                for adapter in found {
                    let name = format!("Vulkan: {}", adapter.name());
                    match adapter.check() {
                        Ok(()) => self.add(SECTION, name, true, adapter.driver()),
                        Err(unfit) => self.add(SECTION, name, false, unfit),
                    };
                }
                return;
            }
            Err(why) => why,
        };
        let remedy = match &why {
            LoadError::NoLoader(_) => Some("sudo apt install libvulkan1 mesa-vulkan-drivers"),
            LoadError::NoDriver if std::env::var_os("VK_DRIVER_FILES").is_some() => Some("unset VK_DRIVER_FILES"),
            LoadError::NoDriver => Some("sudo apt install mesa-vulkan-drivers"),
            _ => None,
        };
        self.add(SECTION, "Vulkan", false, &why).remedy = remedy.map(str::to_owned);
    }

    fn opencl(&mut self) {
        match pagelease_opencl::available() {
            Ok(found) => {
                for device in found {
                    self.add(SECTION, format!("OpenCL: {}", device.name), device.usable, &device);
                }
            }
            Err(why) => self.add(SECTION, "OpenCL", false, &why).remedy = Some(why.remedy().to_owned()),
        }
    }
}
