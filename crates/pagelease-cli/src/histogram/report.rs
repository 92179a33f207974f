//! What happened, for people and for programs. The latter is a contract: docs/JSON.md.

use std::fmt::{self, Display, Formatter, Write as _};

use indicatif::HumanCount;
use pagelease::{Faults, Privilege, Space};
use serde::Serialize;

use super::count::{Counts, Shared};
use super::device::Devices;
use super::table::Memory;
use super::{Args, Mode};

/// The device claims the pages it works on.
const EXCLUSIVE: &str = "exclusive";

/// What `--json` prints.
#[derive(Serialize)]
pub(super) struct Report {
    mode: &'static str,
    faults: &'static str,
    memory: &'static str,
    backend: &'static str,
    privilege: &'static str,
    exact: bool,
    total: u64,
    lost_updates: u64,
    claims: u64,
    pages_claimed: u64,
    claims_already_held: u64,
    touches: u64,
    restores: u64,
    invalidations: u64,
    invalidations_spurious: u64,
    wait_ns_max: u64,
    elapsed_ns: u64,
    reference_elapsed_ns: u64,
    devices: Vec<DeviceReport>,
    #[serde(skip)]
    wrong_counters: usize,
}

/// One of the devices that were to count.
#[derive(Serialize)]
struct DeviceReport {
    name: &'static str,
    bytes: u64,
    /// Why there is none here.
    missing: Option<String>,
}

impl Report {
    /// `backend`: the one that the table has.
    pub(super) fn new(
        (mode, memory): (Mode, Memory),
        backend: &'static str,
        space: &Space,
        shared: &Shared,
        devices: &Devices,
        reference: &Counts,
    ) -> Self {
        let (stats, counts) = (space.stats(), &shared.counts);
        let counted = devices.counting.iter().zip(&shared.by_device);
        let counted = counted.map(|((name, _), &bytes)| DeviceReport { name, bytes, missing: None });
        let missing = devices.missing.iter();
        let missing = missing.map(|(name, why)| DeviceReport { name, bytes: 0, missing: Some(why.clone()) });
        let pairs = || reference.counters.iter().zip(&counts.counters);
        Self {
            mode: match mode {
                Mode::Exclusive => EXCLUSIVE,
                Mode::Racy => "racy",
            },
            faults: match space.faults() {
                Faults::Monitor => "monitor",
                Faults::InThread => "in-thread",
            },
            memory: match memory {
                Memory::Shared => "shared",
                Memory::Adopted => "adopted",
                Memory::Hugetlb => "hugetlb",
                Memory::File => "file",
            },
            backend,
            privilege: match space.privilege() {
                Privilege::Full => "full",
                Privilege::NoUserfaultfd => "none",
                _ => "user-mode-only",
            },
            exact: reference.counters == counts.counters,
            total: reference.counters.iter().sum(),
            lost_updates: pairs().map(|(right, counted)| right.saturating_sub(*counted)).sum(),
            claims: stats.claims,
            pages_claimed: stats.pages_claimed,
            claims_already_held: stats.claims_already_held,
            touches: stats.touches,
            restores: stats.restores,
            invalidations: stats.invalidations,
            invalidations_spurious: stats.invalidations_spurious,
            wait_ns_max: stats.wait_ns_max,
            elapsed_ns: counts.elapsed_ns,
            reference_elapsed_ns: reference.elapsed_ns,
            devices: counted.chain(missing).collect(),
            wrong_counters: pairs().filter(|(right, counted)| right != counted).count(),
        }
    }

    /// What is wrong, if anything is that should not be: in racy mode, updates may be lost.
    pub(super) fn defect(&self) -> Option<String> {
        let (wrong, lost, total) = (self.wrong_counters, self.lost_updates, self.total);
        (self.mode == EXCLUSIVE && !self.exact).then(|| {
            format!("{wrong} counters differ from the single-threaded count, {lost} of {total} updates are missing")
        })
    }
}

/// The same in words.
pub(super) struct Words<'a> {
    pub(super) args: &'a Args,
    pub(super) shared: &'a Shared,
    pub(super) report: &'a Report,
}

impl Words<'_> {
    fn verdict(&self) -> String {
        let Report { exact, lost_updates, total, .. } = *self.report;
        match (exact, self.report.defect()) {
            (_, Some(defect)) => format!("NO: {defect}"),
            (true, None) if self.report.mode == EXCLUSIVE => {
                "yes: every counter is what the single-threaded count says".into()
            }
            (true, None) => "yes, by luck: CPU and device never met on a counter; try a larger file".into(),
            (false, None) => {
                let (lost, total) = (HumanCount(lost_updates), HumanCount(total));
                format!("no: {lost} of {total} updates were lost, for want of exclusivity")
            }
        }
    }

    fn way(&self) -> &'static str {
        match (self.report.mode, self.report.faults) {
            (mode, _) if mode != EXCLUSIVE => "racy: the device works on pages without having them",
            (_, "monitor") => "exclusive; touches served by monitor threads",
            _ => "exclusive; touches served by the touching thread",
        }
    }

    fn memory(&self) -> String {
        let memory = match self.report.memory {
            "shared" => "shared memory",
            "adopted" => "the program's own, adopted",
            "hugetlb" => "huge pages of the system's pool",
            _ => "a temporary file",
        };
        let taken = match self.report.backend {
            "minor" => "taken by removing the mapping, trapped by userfaultfd",
            "move" => "carried to the device and back by userfaultfd",
            "rwprotect" => "protected and trapped by userfaultfd",
            _ => "protected by mprotect, trapped as SIGSEGV",
        };
        format!("{memory}; {taken} ({})", self.report.backend)
    }

    fn shares(&self) -> String {
        let cpu = HumanCount(self.shared.by_cpu);
        let mut shares = format!("{cpu} bytes by {}", several(self.args.cpu_threads, "CPU thread"));
        for DeviceReport { name, bytes, missing } in &self.report.devices {
            let bytes = HumanCount(*bytes);
            let _ = match (missing, *name) {
                (Some(why), _) => write!(shares, "; none by {name}: {why}"),
                (None, "software") => {
                    let workers = several(self.args.device_workers, "device worker");
                    write!(shares, ", {bytes} bytes by {workers}")
                }
                (None, _) => write!(shares, ", {bytes} bytes by {name}"),
            };
        }
        shares
    }

    fn time(&self) -> String {
        let (shared, single) = (self.report.elapsed_ns, self.report.reference_elapsed_ns);
        #[expect(clippy::cast_precision_loss, reason = "for two digits of it")]
        let ratio = shared as f64 / single.max(1) as f64;
        format!("{}; single-threaded {}: {ratio:.2} times as long", time(shared), time(single))
    }
}

impl Display for Words<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let report = self.report;
        let count = HumanCount;
        let privilege = match report.privilege {
            "full" => "full: userfaultfd for every fault",
            "none" => "none needed: a system call that touches a page of the device's fails with EFAULT",
            _ => {
                "userfaultfd for user-mode faults only: a system call that touches a page of the device's fails with \
                 EFAULT; `pagelease doctor` says how to change that"
            }
        };
        let lines = [
            ("exact", self.verdict()),
            ("mode", self.way().into()),
            ("memory", self.memory()),
            ("counted", self.shares()),
            (
                "claims",
                format!(
                    "{}, which took {} pages; {} more were the device's already",
                    count(report.claims),
                    count(report.pages_claimed),
                    count(report.claims_already_held)
                ),
            ),
            ("touches", format!("{} by the CPU, of pages it did not have", count(report.touches))),
            ("restores", format!("{} pages given back to the CPU", count(report.restores))),
            (
                "invalidations",
                format!("{}, {} of them spurious", count(report.invalidations), count(report.invalidations_spurious)),
            ),
            ("longest wait", format!("{} for the device to let go of a page", time(report.wait_ns_max))),
            ("time", self.time()),
            ("privilege", privilege.into()),
        ];
        let (units, counters) = (count(report.total), self.args.unit.values());
        writeln!(f, "{}: {units} {} into {} counters", self.args.file.display(), self.args.unit.plural(), counters)?;
        lines.iter().try_for_each(|(name, value)| writeln!(f, "  {name:13}  {value}"))
    }
}

fn several(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// In the unit that gives one to three digits before the point.
fn time(nanoseconds: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "for three digits of it")]
    let seconds = nanoseconds as f64 / 1e9;
    match nanoseconds {
        0..1_000 => format!("{nanoseconds} ns"),
        1_000..1_000_000 => format!("{:.1} us", seconds * 1e6),
        1_000_000..1_000_000_000 => format!("{:.1} ms", seconds * 1e3),
        _ => format!("{seconds:.2} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_a_defect_but_for_racy_mode() {
        let space = Space::builder().simulated().build().expect("a simulated space");
        let counts = |counters: [u64; 3]| Counts { counters: counters.into(), elapsed_ns: 1 };
        let report = |mode, counters| {
            let shared = Shared { counts: counts(counters), by_cpu: 0, by_device: Vec::new() };
            Report::new((mode, Memory::Shared), "minor", &space, &shared, &Devices::default(), &counts([5, 0, 7]))
        };

        let right = report(Mode::Exclusive, [5, 0, 7]);
        assert_eq!((right.exact, right.total, right.lost_updates, right.defect()), (true, 12, 0, None));
        let wrong = report(Mode::Exclusive, [3, 1, 6]);
        assert_eq!((wrong.exact, wrong.lost_updates), (false, 3), "what is too many does not make up for it");
        assert!(wrong.defect().is_some_and(|defect| defect.starts_with("3 counters differ")));
        assert!(report(Mode::Exclusive, [5, 1, 7]).defect().is_some(), "too many is wrong as well");
        let racy = report(Mode::Racy, [3, 0, 7]);
        assert_eq!((racy.exact, racy.lost_updates, racy.defect()), (false, 2, None));
    }

    #[test]
    fn a_time_has_a_fitting_unit() {
        assert_eq!(
            [0, 999, 1_500, 999_949, 12_345_678, 61_000_000_000].map(time),
            ["0 ns", "999 ns", "1.5 us", "999.9 us", "12.3 ms", "61.00 s"]
        );
    }
}
