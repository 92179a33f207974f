//! Memory of a test's own, to be adopted.
use std::io::Write as _;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

use pagelease::{AdoptError, ByteLen, Region, Space, SpaceBuilder};

use super::open;

pub(crate) const HUGE: usize = 2 << 20;

/// What [`Memory::huge`] writes to the first word of each small page.
pub(crate) const SEED: u64 = 0x5eed;

/// A space that can adopt. `None`, and says so, where it cannot.
pub(crate) fn adopting(builder: SpaceBuilder) -> Option<Space> {
    let space = open(builder)?;
    let memory = Memory::pages(1);
    // SAFETY: nobody uses it.
    match unsafe { space.adopt(memory.start(), ByteLen(4096)) } {
        Ok(_) => Some(space),
        Err(error @ AdoptError::Userfaultfd(_)) => {
            let _ = writeln!(std::io::stderr(), "skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// A private anonymous mapping, as any program has.
pub(crate) struct Memory {
    start: NonNull<u8>,
    len: usize,
    /// Where the mapping begins and how long it is, if it is more than that.
    mapping: (usize, usize),
    /// Addresses that are not ours any more: something else may lie there.
    gone: Mutex<Vec<(usize, usize)>>,
}

// SAFETY: it is reached through atomics only.
unsafe impl Sync for Memory {}
// SAFETY: as above.
unsafe impl Send for Memory {}

impl Memory {
    pub(crate) fn pages(count: usize) -> Self {
        Self::map(count * 4096, libc::MAP_PRIVATE, 0)
    }

    pub(crate) fn shared(count: usize) -> Self {
        Self::map(count * 4096, libc::MAP_SHARED, 0)
    }

    /// `count` huge pages, each small page of which begins with [`SEED`]; `None`, and says so, where there are none to be had.
    pub(crate) fn huge(count: usize) -> Option<Self> {
        let memory = Self::room_for_huge(count);
        for index in 0..u32::try_from(count * 512).unwrap() {
            memory.word(index, 0).store(SEED, SeqCst);
        }
        if memory.huge_pages() != count {
            let _ = writeln!(
                std::io::stderr(),
                "skipped: no huge pages: transparent_hugepage is off, or memory fragmented"
            );
            return None;
        }
        Some(memory)
    }

    /// `count` huge pages of zeroes. Where there are none to be had, small ones: each costs as much as a huge one.
    fn huge_and_touched(count: usize) -> Self {
        let memory = Self::room_for_huge(count);
        // SAFETY: the mapping is ours.
        let touched = unsafe { libc::madvise(memory.start.as_ptr().cast(), memory.len, libc::MADV_POPULATE_WRITE) };
        assert_eq!(touched, 0, "no room for {count} huge pages");
        memory
    }

    /// Where the kernel may put `count` huge pages, when they are touched.
    pub(crate) fn room_for_huge(count: usize) -> Self {
        let memory = Self::map(count * HUGE, libc::MAP_PRIVATE, HUGE);
        // SAFETY: the mapping is ours.
        unsafe { libc::madvise(memory.start.as_ptr().cast(), memory.len, libc::MADV_HUGEPAGE) };
        memory
    }

    fn map(len: usize, flags: i32, align: usize) -> Self {
        let whole = len + align;
        // SAFETY: a new mapping where the kernel finds room.
        let start = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), whole, protection, flags | libc::MAP_ANONYMOUS, -1, 0)
        };
        assert_ne!(start, libc::MAP_FAILED);
        let base = start.expose_provenance();
        let aligned = if align == 0 { base } else { base.next_multiple_of(align) };
        let start = NonNull::new(std::ptr::with_exposed_provenance_mut(aligned)).unwrap();
        Self { start, len, mapping: (base, whole), gone: Mutex::default() }
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(crate) fn len(&self) -> ByteLen {
        ByteLen(self.len)
    }

    /// Word `word` of small page `page`.
    pub(crate) fn word(&self, page: u32, word: usize) -> &AtomicU64 {
        assert!((page as usize) < self.len / 4096 && word < 512);
        // SAFETY: within the mapping, aligned, and reached through atomics only.
        unsafe { &*self.start.as_ptr().cast::<AtomicU64>().add(page as usize * 512 + word) }
    }

    pub(crate) fn adopt(&self, space: &Space) -> Region {
        // SAFETY: it is reached through atomics only.
        unsafe { space.adopt(self.start, self.len()) }.unwrap()
    }

    pub(crate) fn adopt_huge(&self, space: &Space) -> Region {
        // SAFETY: it is reached through atomics only.
        unsafe { space.adopt_huge(self.start, self.len()) }.unwrap()
    }

    fn at(&self, page: usize) -> *mut libc::c_void {
        self.start.as_ptr().wrapping_add(page * 4096).cast()
    }

    pub(crate) fn protect(&self, from: usize, to: usize, protection: i32) {
        // SAFETY: the mapping is ours.
        assert_eq!(unsafe { libc::mprotect(self.at(from), (to - from) * 4096, protection) }, 0);
    }

    pub(crate) fn unmap(&self, from: usize, to: usize) {
        self.lose(from, to);
        // SAFETY: the mapping is ours, and nobody uses these pages any more.
        assert_eq!(unsafe { libc::munmap(self.at(from), (to - from) * 4096) }, 0);
    }

    fn lose(&self, from: usize, to: usize) {
        self.gone.lock().unwrap().push((self.at(from).addr(), self.at(to).addr()));
    }

    /// All of it has been moved, or unmapped, by other means.
    pub(crate) fn lose_all(&self) {
        self.lose(0, self.len / 4096);
    }

    pub(crate) fn advise(&self, from: usize, to: usize, advice: i32) -> i32 {
        // SAFETY: the mapping is ours, and reached through atomics only.
        unsafe { libc::madvise(self.at(from), (to - from) * 4096, advice) }
    }

    /// Moves pages somewhere else: where to.
    pub(crate) fn remap(&self, from: usize, to: usize) -> *mut u8 {
        let len = (to - from) * 4096;
        self.lose(from, to);
        // SAFETY: room for them, which the move replaces; the pages are ours.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let place = libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0);
            let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            let moved = libc::mremap(self.at(from), len, len, flags, place);
            assert_eq!(moved, place);
            moved.cast()
        }
    }

    /// How many huge pages it has, by /proc/self/smaps.
    pub(crate) fn huge_pages(&self) -> usize {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let (mut within, mut kib) = (false, 0);
        for line in smaps.lines() {
            let mut words = line.split_whitespace();
            let first = words.next().unwrap_or_default();
            if let Some((start, end)) = first.split_once('-')
                && let (Ok(start), Ok(end)) = (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16))
            {
                let from = self.start.as_ptr().addr();
                within = start < from + self.len && from < end;
            } else if within && first == "AnonHugePages:" {
                kib += words.next().unwrap().parse::<usize>().unwrap();
            }
        }
        kib / 2048
    }
}

/// A region of memory that nobody has touched and that is never unmapped: it is there for as long as anybody may use it.
pub(crate) fn adopted(space: &Space, len: ByteLen) -> Result<Region, AdoptError> {
    let memory = std::mem::ManuallyDrop::new(Memory::map(len.0, libc::MAP_PRIVATE, 0));
    // SAFETY: nobody else uses it.
    unsafe { space.adopt(memory.start, len) }
}

/// A region of `count` huge pages, and their memory, which is to be kept for as long as anybody may use it. They are touched
/// first: what is touched under management gets small pages.
pub(crate) fn adopted_huge(space: &Space, count: usize) -> Result<(Region, Memory), AdoptError> {
    let memory = Memory::huge_and_touched(count);
    // SAFETY: nobody else uses it.
    let region = unsafe { space.adopt_huge(memory.start, memory.len()) }?;
    Ok((region, memory))
}

impl Drop for Memory {
    fn drop(&mut self) {
        let gone = self.gone.lock().unwrap();
        let (base, len) = self.mapping;
        if gone.is_empty() {
            // SAFETY: the mapping is ours.
            unsafe { libc::munmap(std::ptr::with_exposed_provenance_mut(base), len) };
            return;
        }
        for page in (base..base + len).step_by(4096) {
            if !gone.iter().any(|(from, to)| (*from..*to).contains(&page)) {
                // SAFETY: the page is ours.
                unsafe { libc::munmap(std::ptr::with_exposed_provenance_mut(page), 4096) };
            }
        }
    }
}

/// How many mappings of huge pages the machine has split so far.
pub(crate) fn thp_split_pmd() -> u64 {
    let vmstat = std::fs::read_to_string("/proc/vmstat").unwrap();
    let line = vmstat.lines().find_map(|line| line.strip_prefix("thp_split_pmd "));
    line.expect("a kernel with huge pages").parse().unwrap()
}
