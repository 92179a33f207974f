//! Memory that the program had already, for the benches of adopted memory, and the least that carries its pages.
//!
//! [`Carried`] is such memory under management, with a software device on it. [`BareMove`] is the floor: the same kind of
//! memory and a second range like a device's view, and one `UFFDIO_MOVE` for all of it each way. What the runtime decides is
//! left out: no page word, no owner, nobody who might use the pages, no look at what they are.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail, ensure};
use pagelease::software::{SoftwareConfig, SoftwareDevice};
use pagelease::{Access, ByteLen, Faults, PageRange, Region, Space, View};
use pagelease_sys::mem::{self, Mapping, PageKinds, PageRegion, Pagemap};
use pagelease_sys::uffd::{Features, MoveMode, OpenError, RegisterMode, Uffd};
use pagelease_sys::{Span, page_size};

use super::cpus;
use crate::failure;

/// What a huge page has.
pub(super) const HUGE: usize = 2 << 20;

/// Small pages that are populated at a time.
const FEW: usize = 16;

/// The pages that memory is of.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum Pages {
    /// Small ones, and none else.
    Base,
    /// Huge ones.
    Huge,
}

/// Whether this kernel can carry pages at all; if not, says so.
pub(super) fn can_move(bench: &str) -> Result<bool> {
    match Uffd::open(Features::MOVE) {
        Ok(_) => Ok(true),
        Err(error @ OpenError::Missing { .. }) => {
            failure::say(format_args!("bench {bench}: skipped: {error}; Linux 6.8 has UFFDIO_MOVE"));
            Ok(false)
        }
        Err(error) => Err(error).context("userfaultfd"),
    }
}

/// Private anonymous memory, as any program has. It begins where a huge page can.
pub(super) struct Private(Mapping);

impl Private {
    fn untouched(len: usize, pages: Pages) -> Result<Self> {
        let mapping = Mapping::anonymous_like(len, 0, HUGE).context("mmap")?;
        // SAFETY: a mapping of ours; what it may be made of changes no contents.
        let advised = unsafe {
            match pages {
                Pages::Huge => mem::huge_page(mapping.span()),
                Pages::Base => mem::no_huge_page(mapping.span()),
            }
        };
        match (advised, pages) {
            // A kernel without huge pages.
            (Ok(()), _) | (Err(_), Pages::Base) => Ok(Self(mapping)),
            (Err(errno), Pages::Huge) => Err(errno).context("MADV_HUGEPAGE"),
        }
    }

    /// `len` bytes that exist.
    pub(super) fn new(len: usize, pages: Pages) -> Result<Self> {
        let memory = Self::untouched(len, pages)?;
        mem::populate_write(memory.span()).context("MADV_POPULATE_WRITE")?;
        Ok(memory)
    }

    /// Two of `len` bytes that exist. They are populated by turns, a little at a time, so that one's pages lie in physical
    /// memory as the other's do: see `Managed::beside_bare`.
    pub(super) fn two(len: usize, pages: Pages) -> Result<[Self; 2]> {
        let two = [Self::untouched(len, pages)?, Self::untouched(len, pages)?];
        let step = if pages == Pages::Huge { HUGE } else { FEW * page_size() };
        for from in (0..len).step_by(step) {
            for memory in &two {
                mem::populate_write(memory.part(from, step.min(len - from))?).context("MADV_POPULATE_WRITE")?;
            }
        }
        Ok(two)
    }

    pub(super) fn span(&self) -> Span {
        self.0.span()
    }

    /// `len` bytes of it, from byte `from` on.
    pub(super) fn part(&self, from: usize, len: usize) -> Result<Span> {
        Span::new(self.span().start() + from, len).context("a part of the memory")
    }

    /// How many bytes of it are in huge pages.
    pub(super) fn huge_bytes(&self) -> Result<usize> {
        let pagemap = Pagemap::open().context("/proc/self/pagemap")?;
        let (mut at, mut bytes) = (self.span().start(), 0);
        while let Some(rest) = Span::new(at, self.span().end() - at) {
            let mut found = [PageRegion::default(); 32];
            let (count, end) = pagemap.scan(rest, PageKinds::HUGE, &mut found).context("PAGEMAP_SCAN")?;
            bytes += found[..count].iter().map(|run| run.end - run.start).sum::<usize>();
            ensure!(end > at, "PAGEMAP_SCAN ends where it began, at {at:#x}");
            at = end;
        }
        Ok(bytes)
    }
}

/// Mappings of huge pages that this machine has split so far, by whomever; `None` where it does not count them.
pub(super) fn thp_split_pmd() -> Result<Option<u64>> {
    let vmstat = std::fs::read_to_string("/proc/vmstat").context("/proc/vmstat")?;
    Ok(vmstat.lines().find_map(|line| line.strip_prefix("thp_split_pmd ")?.parse().ok()))
}

/// Adopted memory, and a software device on it, idle. The fields are dropped in order.
pub(super) struct Carried {
    pub(super) view: View,
    pub(super) region: Region,
    _device: SoftwareDevice,
    pub(super) space: Space,
    pub(super) memory: Private,
}

/// What the runtime calls its monitors.
const MONITOR: &str = "pagelease-monitor";

impl Carried {
    /// Adopts `memory`. The threads of the runtime run on `service_cpu`.
    pub(super) fn new(faults: Faults, memory: Private, pages: Pages, service_cpu: usize) -> Result<Self> {
        let space = Space::builder().faults(faults).build()?;
        let start = NonNull::new(memory.span().as_ptr()).context("a mapping is not at 0")?;
        let len = ByteLen(memory.span().len());
        // SAFETY: nothing but the region, the device's view and atomics is used to get at it until the region is dropped,
        // which is before the mapping is; it is nobody's stack and no allocator's.
        let region = unsafe {
            match pages {
                Pages::Base => space.adopt(start, len),
                Pages::Huge => space.adopt_huge(start, len),
            }
        }?;
        // Two that serve memory which the runtime makes, two for what is adopted; in-thread, one that reads events.
        cpus::pin_named(MONITOR, if faults == Faults::Monitor { 4 } else { 1 }, service_cpu)?;
        let device = SoftwareDevice::start(&space, SoftwareConfig::default())?;
        cpus::pin_named(super::managed::Managed::WORKER, 1, service_cpu)?;
        let view = device.attach(&region)?;
        Ok(Self { view, region, _device: device, space, memory })
    }

    /// The device takes `pages`, and keeps them without a hold.
    pub(super) fn take(&self, pages: PageRange) -> Result<()> {
        drop(self.view.claim(pages, Access::Exclusive)?);
        Ok(())
    }

    /// The CPU loads a word of each granule, first to last.
    pub(super) fn touch_all(&self) {
        let words = self.region.words();
        for granule in words.chunks(self.region.granule().0 / size_of::<AtomicU64>()) {
            core::hint::black_box(granule[0].load(Ordering::Relaxed));
        }
    }
}

/// See the module. The descriptor is closed first: then nobody has to be told that the memory is unmapped.
pub(super) struct BareMove {
    uffd: Uffd,
    view: Private,
    memory: Private,
}

impl BareMove {
    pub(super) fn new(memory: Private, pages: Pages) -> Result<Self> {
        let uffd = Uffd::open(Features::MOVE)?.uffd;
        let view = Private::untouched(memory.span().len(), pages)?;
        for span in [memory.span(), view.span()] {
            uffd.register(span, RegisterMode::MISSING).context("UFFDIO_REGISTER")?;
        }
        Ok(Self { uffd, view, memory })
    }

    /// All of it leaves the CPU's side.
    #[inline]
    pub(super) fn out(&self) -> Result<()> {
        self.carry(&self.memory, &self.view)
    }

    /// All of it comes back.
    #[inline]
    pub(super) fn back(&self) -> Result<()> {
        self.carry(&self.view, &self.memory)
    }

    #[inline]
    fn carry(&self, from: &Private, to: &Private) -> Result<()> {
        // SAFETY: both are ours, and nobody uses them but to be measured.
        let progress = unsafe { self.uffd.move_pages(to.span(), from.span().start(), MoveMode::empty()) };
        match progress.error {
            None => Ok(()),
            Some(errno) => bail!("UFFDIO_MOVE: {errno} behind {} bytes of {}", progress.bytes, to.span().len()),
        }
    }

    pub(super) fn memory(&self) -> &Private {
        &self.memory
    }
}
