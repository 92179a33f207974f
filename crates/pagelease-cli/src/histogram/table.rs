//! The memory that the table is in, and who takes its pages: what may be combined, and what came of it.

use std::fs::{File, OpenOptions, remove_file};
use std::ptr::NonNull;

use anyhow::{Context, Result};
use clap::ValueEnum;
use pagelease::{BackendKind, ByteLen, Faults, Region, RegionError, Space};
use pagelease_sys::mem::Mapping;
use pagelease_sys::page_size;

use super::{Args, FaultsArg, Mode};
use crate::failure::BadInput;

/// Where the table is.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq, ValueEnum)]
pub(super) enum Memory {
    /// Shared memory that the runtime makes
    #[default]
    Shared,
    /// Private memory of the program's own, adopted: its pages are carried to the device and back
    Adopted,
    /// Huge pages of the system's pool (vm.nr_hugepages): one holds all of the table
    Hugetlb,
    /// A temporary file in the directory for such files (TMPDIR)
    File,
}

/// How pages are taken from the CPU.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq, ValueEnum)]
pub(super) enum Backend {
    /// What suits the memory: mprotect for a file, userfaultfd for everything else
    #[default]
    Auto,
    /// Their mapping is removed; userfaultfd traps the touch
    Minor,
    /// They are protected; userfaultfd traps the touch (Linux 7.3)
    Rwprotect,
    /// They are protected by mprotect; the touch is a SIGSEGV. Needs no userfaultfd, but --faults in-thread
    Mprotect,
}

/// A combination that makes sense.
#[derive(Copy, Clone, Debug)]
pub(super) struct Plan {
    pub(super) memory: Memory,
    /// `None`: the runtime chooses, or there is no choice.
    pub(super) backend: Option<BackendKind>,
    pub(super) faults: Faults,
}

impl Plan {
    /// What `args` ask for.
    ///
    /// # Errors
    /// It makes no sense.
    pub(super) fn new(args: &Args) -> Result<Self, BadInput> {
        let (memory, asked) = (args.memory, args.backend);
        let backend = match (memory, asked) {
            (Memory::Adopted, Backend::Auto) => None,
            (Memory::Adopted, _) => {
                return Err(BadInput::new(
                    "--memory adopted is carried by UFFDIO_MOVE, no other --backend serves it; leave --backend out",
                ));
            }
            (Memory::Hugetlb, Backend::Rwprotect) => {
                return Err(BadInput::new(
                    "--backend rwprotect does not serve --memory hugetlb; use --backend minor or mprotect",
                ));
            }
            (Memory::File, Backend::Auto) | (_, Backend::Mprotect) => Some(BackendKind::Mprotect),
            (_, Backend::Auto) => None,
            (_, Backend::Minor) => Some(BackendKind::Minor),
            (_, Backend::Rwprotect) => Some(BackendKind::RwProtect),
        };
        if memory == Memory::Adopted && matches!(args.mode, Mode::Racy) {
            return Err(BadInput::new(
                "--mode racy has nothing to show with --memory adopted: a device that does not claim a page reaches another \
                 one there, not the CPU's; use another --memory",
            ));
        }
        let mprotect = backend == Some(BackendKind::Mprotect);
        let faults = match args.faults {
            Some(FaultsArg::Monitor) if mprotect => {
                let what = if asked == Backend::Mprotect { "--backend mprotect" } else { "--memory file" };
                return Err(BadInput::new(format!(
                    "with {what} each touch is served in the thread that makes it, and --faults monitor hears of none; use \
                     --faults in-thread, or leave --faults out"
                )));
            }
            Some(FaultsArg::InThread) => Faults::InThread,
            None if mprotect => Faults::InThread,
            Some(FaultsArg::Monitor) | None => Faults::Monitor,
        };
        Ok(Self { memory, backend, faults })
    }

    /// The signal that the touching thread serves itself by, by number and name; `None` where others serve it.
    pub(super) fn signal(self) -> Option<(i32, &'static str)> {
        match (self.faults, self.backend) {
            (Faults::Monitor, _) => None,
            (Faults::InThread, Some(BackendKind::Mprotect)) => Some((libc::SIGSEGV, "SIGSEGV")),
            (Faults::InThread, _) => Some((libc::SIGBUS, "SIGBUS")),
        }
    }
}

/// The table. The fields are dropped in order: adopted memory is the runtime's no more before it is unmapped.
pub(super) struct Table {
    pub(super) region: Region,
    _own: Option<Mapping>,
}

impl Table {
    /// One of at least `len` bytes, of zeroes.
    ///
    /// # Errors
    /// This machine cannot do it; or [`BadInput`]: the temporary file cannot be made, or be served.
    pub(super) fn make(space: &Space, memory: Memory, len: usize) -> Result<Self> {
        let len = ByteLen(len.next_multiple_of(page_size()));
        let table = |region| Self { region, _own: None };
        Ok(match memory {
            Memory::Shared => table(space.allocate(len)?),
            Memory::Hugetlb => table(space.allocate_huge(len)?),
            Memory::File => table(Self::of_file(space, len)?),
            Memory::Adopted => {
                let own = Mapping::anonymous(len.0).context("mmap of the table")?;
                let start = NonNull::new(own.as_ptr()).context("a mapping is not at 0")?;
                // SAFETY: a mapping that nobody else knows; it is used by way of the region alone, through atomics, and is
                // unmapped after that.
                let region = unsafe { space.adopt(start, len) }?;
                Self { region, _own: Some(own) }
            }
        })
    }

    fn of_file(space: &Space, len: ByteLen) -> Result<Region> {
        let folder = std::env::temp_dir();
        let file = temporary_file(len).map_err(|error| {
            BadInput::new(format!(
                "--memory file: no temporary file in {folder:?}: {error}; set TMPDIR to a directory that you may write to"
            ))
        })?;
        match space.map_file(file, 0, len) {
            Ok(region) => Ok(region),
            Err(RegionError::FileBackend { .. }) => Err(BadInput::new(format!(
                "--memory file: a file in {folder:?} lies on a disk, which userfaultfd does not serve; use --backend mprotect, \
                 or set TMPDIR to a directory in memory (/dev/shm)"
            ))
            .into()),
            Err(error) => Err(error.into()),
        }
    }

    /// What its backend is called.
    pub(super) fn backend(&self) -> &'static str {
        match self.region.backend() {
            BackendKind::Minor => "minor",
            BackendKind::Move => "move",
            BackendKind::RwProtect => "rwprotect",
            BackendKind::Mprotect => "mprotect",
            _ => "another",
        }
    }
}

/// A file of `len` bytes that has no name any more.
fn temporary_file(len: ByteLen) -> std::io::Result<File> {
    let path = std::env::temp_dir().join(format!("pagelease-table-{}", std::process::id()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    remove_file(&path)?;
    file.set_len(len.0 as u64)?;
    Ok(file)
}
