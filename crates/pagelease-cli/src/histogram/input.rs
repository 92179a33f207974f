//! The file that is counted: opened, checked, and mapped a window at a time, so that any size works.
//!
//! Somebody else may write to the file meanwhile, so what is mapped is handed out as atomics. [`Input::check_unchanged`]
//! says whether somebody did: then two counts of it need not agree, and that is no fault of the protocol's.
//!
//! Invariant: a window's bytes are mapped for as long as the window lives, whatever becomes of the file; see `shrunk`.

use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::AtomicU8;

use anyhow::Result;
use pagelease_sys::page_size;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::shrunk;
use crate::failure::BadInput;

/// The file.
pub(super) struct Input {
    file: File,
    path: PathBuf,
    as_opened: Metadata,
}

impl Input {
    /// Opens the file, and checks that it can be counted.
    ///
    /// # Errors
    /// [`BadInput`]
    pub(super) fn open(path: &Path) -> Result<Self, BadInput> {
        let bad = |why: &str| BadInput::new(format!("{path:?} {why}"));
        // Non-blocking: a pipe that nobody writes to is refused rather than waited for.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file: File = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(file) => file.into(),
            Err(errno) => return Err(bad(&why_not_opened(errno))),
        };
        let as_opened = file.metadata().map_err(|error| bad(&format!("cannot be examined: {error}")))?;
        if let Some(why) = why_not_counted(&as_opened) {
            return Err(bad(why));
        }
        let input = Self { file, path: path.to_owned(), as_opened };
        if let Err(error) = Window::map(&input.file, 0..1) {
            return Err(bad(&format!("cannot be mapped: {error}; copy it to an ordinary file system")));
        }
        Ok(input)
    }

    /// Its length in bytes, not 0.
    pub(super) fn len(&self) -> u64 {
        self.as_opened.len()
    }

    /// Whether `other` is this very file.
    pub(super) fn is(&self, other: &Metadata) -> bool {
        (self.as_opened.dev(), self.as_opened.ino()) == (other.dev(), other.ino())
    }

    /// Maps `bytes` of the file, which lie within its length.
    ///
    /// # Errors
    /// [`BadInput`] if the file has changed.
    pub(super) fn window(&self, bytes: Range<u64>) -> Result<Window> {
        self.check_unchanged()?;
        let what = || anyhow::anyhow!("{:?}: mapping bytes {} to {} failed", self.path, bytes.start, bytes.end);
        Window::map(&self.file, bytes.clone()).map_err(|error| what().context(error))
    }

    /// Says whether the file still is what was opened.
    ///
    /// # Errors
    /// [`BadInput`]: its size or its time of modification has changed.
    pub(super) fn check_unchanged(&self) -> Result<(), BadInput> {
        let now = self.file.metadata();
        let stamp = |data: &Metadata| (data.len(), data.mtime(), data.mtime_nsec());
        if !shrunk::was_seen() && now.is_ok_and(|now| stamp(&now) == stamp(&self.as_opened)) {
            return Ok(());
        }
        let was = self.as_opened.len();
        Err(BadInput::new(format!(
            "{:?} changed while it was counted (it had {was} bytes); count a copy of it, or wait until it is complete",
            self.path
        )))
    }
}

fn why_not_opened(errno: Errno) -> String {
    match errno {
        Errno::NOENT => "does not exist; name a file to count".into(),
        Errno::NXIO => "is a socket, or a device that is not there; name a regular file".into(),
        Errno::ACCESS => "may not be read: permission denied; chmod it, or name another file".into(),
        _ => format!("cannot be opened: {}; name a regular file", io::Error::from(errno)),
    }
}

/// Says it of a file that could be opened.
fn why_not_counted(file: &Metadata) -> Option<&'static str> {
    let kind = file.file_type();
    if kind.is_dir() {
        Some("is a directory; name a file in it")
    } else if kind.is_fifo() {
        Some("is a pipe, which cannot be mapped; write what it carries to a file, and name that")
    } else if kind.is_char_device() || kind.is_block_device() {
        Some("is a device file, which is not counted; copy what you want of it to a file, and name that")
    } else if file.len() == 0 {
        Some("is empty (or, as in /proc, has no size); name a file with something in it")
    } else {
        None
    }
}

/// Some of the file's bytes, mapped. Stays on the thread that made it, which handles its own faults.
pub(super) struct Window {
    mapping: NonNull<AtomicU8>,
    mapped: usize,
    /// Where the bytes begin in the mapping, which begins at a page.
    begin: usize,
    len: usize,
}

impl Window {
    fn map(file: &File, bytes: Range<u64>) -> io::Result<Self> {
        let page = u64::try_from(page_size()).expect("64-bit");
        let offset = bytes.start - bytes.start % page;
        let size = |len: u64| usize::try_from(len).expect("64-bit");
        let mapped = size(bytes.end - offset);
        // All of it at once, instead of a fault every few pages.
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a new mapping, at an address that the kernel picks.
        let mapping = unsafe { mmap(null_mut(), mapped, ProtFlags::READ, flags, file, offset) }?;
        let mapping = NonNull::new(mapping.cast::<AtomicU8>()).expect("a mapping is not at 0");
        shrunk::watch(mapping.as_ptr().expose_provenance(), mapped);
        Ok(Self { mapping, mapped, begin: size(bytes.start - offset), len: size(bytes.end - bytes.start) })
    }

    /// The bytes. Past the end of a file that has shrunk since, zeroes.
    pub(super) fn bytes(&self) -> &[AtomicU8] {
        // SAFETY: the module's invariant; the memory is only ever read, and as atomics.
        unsafe { NonNull::slice_from_raw_parts(self.mapping.add(self.begin), self.len).as_ref() }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        shrunk::unwatch();
        // SAFETY: mapped by `map`, and the borrows that `bytes` gave out have ended.
        let unmapped = unsafe { munmap(self.mapping.as_ptr().cast(), self.mapped) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}
