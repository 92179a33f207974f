//! What the test files share: an adapter, with the validation layer listening.
#![allow(dead_code, reason = "each test file uses its part")]

use std::io::Write as _;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use pagelease::Space;
use pagelease_vulkan::{Adapter, LoadError, Vulkan, VulkanDevice};

/// What the validation layer has said.
static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn needed() -> bool {
    std::env::var_os("PAGELEASE_NEEDS_DEVICES").is_some()
}

fn load() -> Result<Adapter, LoadError> {
    let validated = Vulkan::load_validated(|message| SAID.lock().expect("not poisoned").push(message.to_owned()));
    let vulkan = match validated {
        Err(LoadError::NoValidation) if !needed() => {
            let _ = writeln!(std::io::stderr(), "not validated: {}", LoadError::NoValidation);
            Vulkan::load()?
        }
        loaded => loaded?,
    };
    vulkan.best()
}

/// The adapter that is tested; or why there is none.
pub(crate) fn adapter() -> Result<Adapter, String> {
    static ADAPTER: OnceLock<Result<Adapter, String>> = OnceLock::new();
    ADAPTER.get_or_init(|| load().map_err(|error| error.to_string())).clone()
}

/// A space and a device. `None`, and says why, where there can be none; that is a failure where `PAGELEASE_NEEDS_DEVICES` is set.
pub(crate) fn open() -> Option<(Space, VulkanDevice, Clean)> {
    let opened = Space::builder().drain_limit(Duration::from_secs(60)).build().map_err(|error| error.to_string());
    let opened = opened.and_then(|space| {
        let device = VulkanDevice::start(&space, &adapter()?).map_err(|error| error.to_string())?;
        Ok((space, device, Clean))
    });
    opened
        .map_err(|why| {
            assert!(!needed(), "PAGELEASE_NEEDS_DEVICES is set, and there is no vulkan: {why}");
            // Not `eprintln`, which the test harness captures.
            let _ = writeln!(std::io::stderr(), "skipped: vulkan: {why}");
        })
        .ok()
}

/// Fails the test if the validation layer has said anything.
pub(crate) struct Clean;

impl Drop for Clean {
    fn drop(&mut self) {
        let said = std::mem::take(&mut *SAID.lock().expect("not poisoned"));
        assert!(said.is_empty() || std::thread::panicking(), "the validation layer says:\n{}", said.join("\n"));
    }
}

/// Says that something is not tested here, and why. No failure: what it is about is the machine's, not its set-up's.
pub(crate) fn skip(why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: vulkan: {why}");
}
