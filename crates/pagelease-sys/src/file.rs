//! What lies behind a descriptor: for whoever is given a file to map.
//!
//! Signal-safe: everything.

use rustix::fd::AsFd;
use rustix::fs::{FileType, SealFlags};
use rustix::io::Errno;

/// Where a file's contents are.
#[derive(Copy, Clone, Eq, PartialEq, Debug, Hash)]
pub enum Store {
    /// In memory (tmpfs, a memfd): userfaultfd can serve it.
    Memory,
    /// In huge pages of so many bytes (hugetlbfs): userfaultfd can serve it, whole huge pages at a time.
    HugePages(usize),
    /// On a disk, in a device, elsewhere.
    Other,
}

/// See [`facts`].
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub struct Facts {
    /// Where the contents are.
    pub store: Store,
    /// How many bytes; `None` for what is no ordinary file: a device says itself what can be mapped.
    pub len: Option<u64>,
    /// Whether it may become shorter: it is not sealed against that.
    pub may_shrink: bool,
}

const TMPFS: u64 = 0x0102_1994;
const HUGETLBFS: u64 = 0x9584_58F6;

/// What kind of file it is, and how long. Signal-safe.
///
/// # Errors
///
/// `BADF`: no file. `OVERFLOW`: longer than can be said.
pub fn facts(fd: impl AsFd) -> Result<Facts, Errno> {
    let system = rustix::fs::fstatfs(&fd)?;
    // The type's width and sign depend on the machine; the numbers fit in 32 bits.
    #[expect(clippy::cast_sign_loss, reason = "a magic number")]
    let store = match system.f_type as u64 & 0xFFFF_FFFF {
        TMPFS => Store::Memory,
        HUGETLBFS => Store::HugePages(usize::try_from(system.f_bsize).map_err(|_| Errno::OVERFLOW)?),
        _ => Store::Other,
    };
    let status = rustix::fs::fstat(&fd)?;
    let ordinary = FileType::from_raw_mode(status.st_mode) == FileType::RegularFile;
    let len = if ordinary { Some(u64::try_from(status.st_size).map_err(|_| Errno::OVERFLOW)?) } else { None };
    // What cannot be sealed says INVAL.
    let sealed = rustix::fs::fcntl_get_seals(&fd).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
    Ok(Facts { store, len, may_shrink: ordinary && !sealed })
}

/// How many bytes the file has now. Signal-safe.
///
/// # Errors
///
/// `BADF`: no file. `OVERFLOW`: longer than can be said.
pub fn len(fd: impl AsFd) -> Result<u64, Errno> {
    u64::try_from(rustix::fs::fstat(fd)?.st_size).map_err(|_| Errno::OVERFLOW)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem;

    #[test]
    fn each_kind_of_file_is_known() {
        let sealed = mem::memfd(c"pagelease-test", 8192).unwrap();
        let expected = Facts { store: Store::Memory, len: Some(8192), may_shrink: false };
        assert_eq!((facts(&sealed), len(&sealed)), (Ok(expected), Ok(8192)));

        let open = rustix::fs::memfd_create(c"pagelease-test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        assert_eq!(facts(&open), Ok(Facts { store: Store::Memory, len: Some(0), may_shrink: true }));

        if let Ok(huge) = mem::memfd_huge(c"pagelease-test", 4 << 20) {
            let expected = Facts { store: Store::HugePages(2 << 20), len: Some(4 << 20), may_shrink: false };
            assert_eq!(facts(&huge), Ok(expected));
        }
        // This program lies on a disk, or in whatever the machine is built from; a device has no length.
        let disk = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
        let found = facts(&disk).unwrap();
        assert_eq!((found.len, found.may_shrink), (Some(disk.metadata().unwrap().len()), true));
        let device = facts(std::fs::File::open("/dev/zero").unwrap()).unwrap();
        assert_eq!((device.len, device.may_shrink), (None, false));
    }
}
