//! The kinds of memory that tests run on, each made as a program would.

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use pagelease::{AdoptError, ByteLen, Region, RegionError, Space};

use super::private::{self, adopted, adopted_huge};

/// What a region is made of.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Memory {
    /// The runtime's own memory file.
    Shared,
    /// Huge pages.
    Huge,
    /// A memory file of the program's own.
    Memfd,
    /// A file on a disk.
    File,
    /// Private memory, adopted.
    Adopted,
    /// The same, huge pages in granules of 2 MiB.
    AdoptedHuge,
    /// None.
    Sim,
}

/// A region, and the memory that is to be kept for as long as anybody may use it. Dropped in this order.
pub(crate) struct Made {
    pub(crate) region: Region,
    pub(crate) memory: Option<private::Memory>,
}

/// Why there is no such memory.
#[derive(Debug)]
pub(crate) enum Missing {
    Region(RegionError),
    Adopt(AdoptError),
}

impl From<RegionError> for Missing {
    fn from(error: RegionError) -> Self {
        Self::Region(error)
    }
}

impl From<AdoptError> for Missing {
    fn from(error: AdoptError) -> Self {
        Self::Adopt(error)
    }
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Region(error) => error.fmt(f),
            Self::Adopt(error) => error.fmt(f),
        }
    }
}

impl Missing {
    /// It is for want of something that not every machine has.
    pub(crate) fn is_the_machine_s(&self) -> bool {
        use RegionError::{NoHugePages, TooFewHugePages};
        matches!(
            self,
            Self::Region(TooFewHugePages { .. } | NoHugePages { .. }) | Self::Adopt(AdoptError::Userfaultfd(_))
        )
    }
}

/// The most huge pages that a test uses at a time.
pub(crate) const HUGE_PAGES_MAX: u32 = 96;

/// A few more: some tests have several regions.
const POOL: u32 = HUGE_PAGES_MAX + 16;

const HUGE: usize = 2 << 20;

fn page_size() -> usize {
    // SAFETY: no precondition.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).expect("positive")
}

impl Memory {
    pub(crate) fn allocate(self, space: &Space, pages: u32) -> Result<Made, Missing> {
        let len = ByteLen(pages as usize * page_size());
        let region = match self {
            Self::Shared => space.allocate(len)?,
            Self::Sim => space.allocate(ByteLen(pages as usize * 4096))?,
            Self::Adopted => adopted(space, len)?,
            Self::AdoptedHuge => {
                let (region, memory) = adopted_huge(space, pages as usize)?;
                return Ok(Made { region, memory: Some(memory) });
            }
            Self::Huge => {
                fill_the_pool();
                space.allocate_huge(ByteLen(pages as usize * HUGE))?
            }
            // Not from its beginning, to see that every view is of the same part.
            Self::Memfd => space.map_file(memfd(len.0 + page_size()), page_size() as u64, len)?,
            Self::File => space.map_file(file(len.0 + page_size()), page_size() as u64, len)?,
        };
        Ok(Made { region, memory: None })
    }

    /// Whether the CPU's first touch of a page traps: one that is not there when it is adopted.
    pub(crate) fn traps_at_first(self) -> bool {
        self == Self::Adopted
    }

    /// Fails if this machine has no such memory: not as many pages as any test uses at a time.
    pub(crate) fn try_out(self, space: &Space) -> Result<(), Missing> {
        // Of huge pages that are no pool's there are as many as there is memory.
        self.allocate(space, if self == Self::AdoptedHuge { 1 } else { self.most(HUGE_PAGES_MAX) }).map(drop)
    }

    /// `count` pages, or as many as there can be.
    pub(crate) fn most(self, count: u32) -> u32 {
        if matches!(self, Self::Huge | Self::AdoptedHuge) { count.min(HUGE_PAGES_MAX) } else { count }
    }
}

/// A memory file of `len` bytes, which may shrink.
pub(crate) fn memfd(len: usize) -> File {
    // SAFETY: the name is a string; the new descriptor is the file's alone.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC)) };
    file.set_len(len as u64).expect("room for it");
    file
}

/// A file of `len` bytes that no directory has, on a disk if there is one.
pub(crate) fn file(len: usize) -> File {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("pagelease-{}-{}", std::process::id(), NUMBER.fetch_add(1, SeqCst));
    let build = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path = if build.is_dir() { build.join(name) } else { std::env::temp_dir().join(name) };
    let file = File::options().read(true).write(true).create_new(true).open(&path).expect("a new file");
    std::fs::remove_file(path).expect("it was made a moment ago");
    file.set_len(len as u64).expect("room for it");
    file
}

/// The setting, of 2 MiB pages whatever the default size is.
fn pool(file: &str) -> PathBuf {
    Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB").join(file)
}

fn read(file: &str) -> io::Result<u32> {
    std::fs::read_to_string(pool(file))?.trim().parse().map_err(io::Error::other)
}

/// What the pool had before, to be put back.
static BEFORE: AtomicU32 = AtomicU32::new(0);

/// Makes the pool large enough, if it is not and this may; what it had is put back when the process exits. Where it may not,
/// the region cannot be made, and says why.
fn fill_the_pool() {
    static ONCE: Once = Once::new();
    extern "C" fn put_back() {
        let _ = std::fs::write(pool("nr_hugepages"), BEFORE.load(SeqCst).to_string());
    }
    let fill = || -> io::Result<()> {
        let (pages, free) = (read("nr_hugepages")?, read("free_hugepages")?);
        if free < POOL {
            std::fs::write(pool("nr_hugepages"), (pages + POOL - free).to_string())?;
            BEFORE.store(pages, SeqCst);
            // SAFETY: the function may be called at any time.
            unsafe { libc::atexit(put_back) };
        }
        Ok(())
    };
    ONCE.call_once(|| drop(fill()));
}
