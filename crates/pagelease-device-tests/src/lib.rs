//! One conformance suite for every device, whatever it is: a worker thread, a vCPU, a GPU behind a driver.
//!
//! A device's crate says how one is made and how it does the two [`Job`]s of the suite, and has [`suite!`] write the tests:
//!
//! | test | what it shows |
//! |---|---|
//! | `counts_are_exact` | two CPU threads and the device add to the same words, the device by a load and a store |
//! | `a_touch_of_an_idle_device_s_page` | taken at once, with what the device wrote; and again, to and fro |
//! | `a_touch_while_a_job_runs` | waits, and sees all of it; of a preemptible device, takes the page from the middle of the job |
//! | `a_touch_while_a_job_is_queued` | sees all of it |
//! | `a_stuck_device_is_lost_and_the_cpu_goes_on` | what it stored stays, what it stores later lands nowhere that matters |
//! | `two_kinds_on_one_page` | this device, a software device and a CPU thread add to the same word |
//! | `region_and_view_go_while_a_job_runs` | dropping either ends the device's access first |
//!
//! Each runs with monitors and in-thread. A machine without the device skips them, and says why; with `PAGELEASE_NEEDS_DEVICES`
//! set, that is a failure for a [`Kind`] that is [`Kind::NEEDED`].

use std::borrow::Borrow;
use std::io::Write as _;

use pagelease::{DeviceLost, PageIndex, PageRange, Region, Space, View};

mod tests;

pub use tests::*;

/// A kind of device.
pub trait Kind {
    /// One of them.
    type Device: Subject;

    /// What it is called in messages.
    const NAME: &'static str;

    /// Whether it can be taken a page from in the middle of a job, which goes on later: a device with an MMU. Any other ends its
    /// job first.
    const PREEMPTIBLE: bool;

    /// Whether a machine that is made for testing must have one.
    const NEEDED: bool;

    /// Makes one.
    ///
    /// # Errors
    /// Why there can be none on this machine.
    fn start(space: &Space) -> Result<Self::Device, String>;
}

/// A device under test.
pub trait Subject: Send + Sync {
    /// Its view of a region.
    type View: Borrow<View> + Send + Sync;

    /// Attaches it.
    fn attach(&self, region: &Region) -> Self::View;

    /// Hands it a job, and returns at once.
    fn start(&self, view: &Self::View, job: Job) -> Box<dyn Running + '_>;

    /// Whether it was lost.
    fn lost(&self) -> Option<DeviceLost>;
}

/// What a device does in the suite. Words are of 64 bits; no count comes near 32, so a device may use their lower halves. Every
/// access is a load or a store by itself (relaxed): never an atomic addition.
#[derive(Copy, Clone, Debug)]
pub enum Job {
    /// `rounds` times, adds 1 to [`COUNT`] of each page.
    Add {
        /// The pages.
        pages: PageRange,
        /// How often.
        rounds: u32,
    },
    /// Stores 1 to [`BEGUN`] of the page, waits until [`GATE`] of it is not 0, then adds 1 to its [`COUNT`].
    Gated {
        /// The page.
        page: PageIndex,
    },
}

/// A job under way.
pub trait Running: Send {
    /// Waits for its end.
    ///
    /// # Errors
    /// Why it did not do all of it.
    fn wait(self: Box<Self>) -> Result<(), String>;
}

/// The word of a page that counts.
pub const COUNT: usize = 0;
/// The word that says that a gated job has begun.
pub const BEGUN: usize = 1;
/// The word that lets a gated job go on.
pub const GATE: usize = 2;

/// Writes the tests of the suite for a [`Kind`].
#[macro_export]
macro_rules! suite {
    ($kind:ty) => {
        $crate::suite!($kind: counts_are_exact, a_touch_of_an_idle_device_s_page, a_touch_while_a_job_runs,
            a_touch_while_a_job_is_queued, a_stuck_device_is_lost_and_the_cpu_goes_on, two_kinds_on_one_page,
            region_and_view_go_while_a_job_runs);
    };
    ($kind:ty: $($name:ident),+) => {
        $(
            #[test]
            fn $name() {
                $crate::$name::<$kind>();
            }
        )+
    };
}

/// Says that a device cannot be tested here, and why.
///
/// # Panics
/// With `PAGELEASE_NEEDS_DEVICES` set, if the machine must have it.
pub fn skip<K: Kind>(why: &str) {
    assert!(
        !(K::NEEDED && std::env::var_os("PAGELEASE_NEEDS_DEVICES").is_some()),
        "PAGELEASE_NEEDS_DEVICES is set, and there is no {}: {why}",
        K::NAME
    );
    // Not `eprintln`, which the test harness captures.
    let _ = writeln!(std::io::stderr(), "skipped: {}: {why}", K::NAME);
}
