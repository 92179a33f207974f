//! What can be read about this machine and this user: `/proc`, `/sys`, capabilities.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::thread::{CapabilitySet, capabilities};
use serde::Serialize;

/// Who runs this, and what that is allowed. Part of the report.
#[derive(Serialize)]
pub(super) struct Privilege {
    pub(super) uid: u32,
    pub(super) cap_sys_ptrace: bool,
    /// `vm.unprivileged_userfaultfd`; `null` where there is no such setting.
    pub(super) unprivileged_userfaultfd: Option<bool>,
    /// `/dev/userfaultfd`, as `0600 0:0`; `null` where there is none.
    pub(super) device: Option<String>,
}

impl Privilege {
    pub(super) fn read() -> Self {
        let setting = line("/proc/sys/vm/unprivileged_userfaultfd");
        Self {
            uid: rustix::process::geteuid().as_raw(),
            cap_sys_ptrace: capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_PTRACE)),
            unprivileged_userfaultfd: setting.map(|value| value != "0"),
            device: fs::metadata("/dev/userfaultfd")
                .ok()
                .map(|file| format!("{:04o} {}:{}", file.mode() & 0o7777, file.uid(), file.gid())),
        }
    }
}

/// A pool of huge pages that were set aside when the machine started, or since.
#[derive(Serialize)]
pub(super) struct Pool {
    pub(super) page_kib: u64,
    pub(super) pages: u64,
    pub(super) free: u64,
}

/// What the machine has of huge pages. Part of the report.
#[derive(Serialize)]
pub(super) struct HugePages {
    /// Of private memory: `always`, `madvise` or `never`; `null` without kernel support.
    pub(super) transparent: Option<String>,
    /// Of memory files: `always`, `within_size`, `advise`, `never`, `deny` or `force`; `null` without kernel support.
    pub(super) shmem: Option<String>,
    pub(super) pools: Vec<Pool>,
}

impl HugePages {
    pub(super) fn read() -> Self {
        let thp = Path::new("/sys/kernel/mm/transparent_hugepage");
        let mut pools: Vec<Pool> = fs::read_dir("/sys/kernel/mm/hugepages")
            .into_iter()
            .flatten()
            .filter_map(|entry| pool(&entry.ok()?.path()))
            .collect();
        pools.sort_by_key(|pool| pool.page_kib);
        Self {
            transparent: line(thp.join("enabled")).and_then(|line| chosen(&line)),
            shmem: line(thp.join("shmem_enabled")).and_then(|line| chosen(&line)),
            pools,
        }
    }
}

/// One directory of `/sys/kernel/mm/hugepages`, by name `hugepages-2048kB`.
fn pool(directory: &Path) -> Option<Pool> {
    let name = directory.file_name()?.to_str()?;
    let number = |file| line(directory.join(file))?.parse().ok();
    Some(Pool {
        page_kib: name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?,
        pages: number("nr_hugepages")?,
        free: number("free_hugepages")?,
    })
}

/// The word in brackets: `always [madvise] never`.
fn chosen(line: &str) -> Option<String> {
    let (_, rest) = line.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

/// The kernel's release, `6.18.44` for instance.
pub(super) fn kernel_release() -> String {
    line("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".to_owned())
}

/// A file of one line, trimmed; `None` when it cannot be read.
fn line(path: impl AsRef<Path>) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_choice_is_the_word_in_brackets() {
        assert_eq!(chosen("always [madvise] never").as_deref(), Some("madvise"));
        assert_eq!(chosen("never"), None);
    }
}
