//! Answering the faults of vCPUs: a page that a lane uses and its device does not have is claimed.
//!
//! ```text
//!   read      a fault: which address of a view, by which thread
//!   claim     the page, and some behind it when the vCPU's faults run in sequence; `Traps::map` maps what is got, which lets
//!             the vCPU go on
//!   hold      until the guest has got something from it: see `holds`
//! ```
//!
//! A claim may have to wait: for another device's hold, a touch that goes first. So there are as many of these threads as
//! vCPUs: each has its own `epoll` with the descriptor in it exclusively, so that a fault wakes one that is idle, and a fault that
//! waits keeps no other waiting.

use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use pagelease::{Access, ClaimError, PageIndex, PageRange, RegionId, View};
use pagelease_sys::Errno;
use pagelease_sys::uffd::{Fault, Message};
use rustix::event::epoll;

use crate::engine::Core;
use crate::error::JobError;
use crate::holds::Faulted;
use crate::traps::Traps;

/// The most bytes that are claimed ahead of a vCPU.
const AHEAD: usize = 128 << 10;
/// The most pages.
const AHEAD_PAGES: u32 = 32;

/// Where a vCPU's faults go.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    /// The region (upper half) and the page behind the last ones that were claimed.
    next: AtomicU64,
    /// How many those were.
    window: AtomicU32,
}

impl Stream {
    fn key(region: RegionId, page: u32) -> u64 {
        u64::from(region.get()) << 32 | u64::from(page)
    }

    /// What to claim for a fault on `page`: more each time that it follows upon what was claimed before.
    fn window(&self, view: &View, granule: usize, page: PageIndex) -> PageRange {
        let most = u32::try_from(AHEAD / granule).unwrap_or(AHEAD_PAGES).clamp(1, AHEAD_PAGES);
        let follows = self.next.load(Ordering::Relaxed) == Self::key(view.region(), page.0);
        let window = if follows { (self.window.load(Ordering::Relaxed) * 2).clamp(1, most) } else { 1 };
        let end = page.0.saturating_add(window).min(view.pages().end());
        self.window.store(window, Ordering::Relaxed);
        self.next.store(Self::key(view.region(), end), Ordering::Relaxed);
        PageRange::new(page.0, end).expect("a page of the view")
    }
}

/// What one of these threads does until the bell is rung.
pub(crate) fn serve(core: &Core) -> Result<(), Errno> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let uffd = &core.handle.uffd;
    epoll::add(&epoll, uffd, epoll::EventData::new_u64(0), epoll::EventFlags::IN | epoll::EventFlags::EXCLUSIVE)?;
    epoll::add(&epoll, &core.bell, epoll::EventData::new_u64(1), epoll::EventFlags::IN)?;
    loop {
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); 2];
        let ready = match epoll::wait(&epoll, &mut events, None) {
            Ok((ready, _)) => ready,
            Err(_) => continue,
        };
        if ready.iter().any(|event| event.data.u64() == 1) {
            return Ok(());
        }
        // One at a time: the others are for those who are idle.
        let mut message = [MaybeUninit::<Message>::uninit()];
        if let Ok([message]) = uffd.read_faults(&mut message)
            && let Some(fault) = message.fault()
        {
            answer(core, fault);
        }
    }
}

fn answer(core: &Core, fault: Fault) {
    let traps = &*core.handle;
    let Some((region, page)) = traps.find(fault.address) else { return };
    if !core.config.exclusive {
        return traps.map_unasked(region, page);
    }
    match core.vcpu_of(fault.thread) {
        Some((vcpu, kick)) => {
            core.answering(vcpu, || claim(core, region, page, Some(core.holds.faulted(vcpu, kick))));
        }
        None => claim(core, region, page, None),
    }
}

/// Claims `page` for whoever faulted on it; `None`: not a vCPU.
fn claim(core: &Core, region: RegionId, page: PageIndex, faulted: Option<Faulted>) {
    let traps = &*core.handle;
    let Some((view, granule)) = core.view(region) else { return traps.wake(region, page) };
    let mut pages = PageRange::single(page).expect("a page of the view");
    if let Some(Faulted { vcpu, .. }) = faulted {
        core.holds.end_on(vcpu, region, page);
        pages = core.vcpus[vcpu].stream.window(&view, granule, page);
    }
    let (mut claimed, mut mapped) = Traps::watching(|| view.claim(pages, Access::Exclusive));
    if claimed.is_err() && pages.len() > 1 {
        pages = PageRange::single(page).expect("a page of the view");
        (claimed, mapped) = Traps::watching(|| view.claim(pages, Access::Exclusive));
    }
    match claimed {
        Ok(lease) => {
            if !mapped {
                traps.map_again(&view, page);
            }
            // A thread of the host's that reads the view holds nothing.
            if let Some(faulted) = faulted {
                core.holds.push(faulted, region, lease);
            }
        }
        Err(error) => refused(core, faulted.map(|faulted| faulted.vcpu), region, page, error),
    }
}

/// The page cannot be had: the lane that wants it fails.
fn refused(core: &Core, vcpu: Option<usize>, region: RegionId, page: PageIndex, error: ClaimError) {
    match vcpu {
        Some(vcpu) => core.fail(vcpu, JobError::from(error)),
        None => {
            // A thread of the host's that reads the view: nobody can tell it. It tries again.
            std::thread::sleep(core::time::Duration::from_millis(1));
            core.handle.wake(region, page);
        }
    }
}
