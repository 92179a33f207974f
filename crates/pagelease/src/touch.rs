//! The fault path: a CPU touch of a page takes it back from its device.
//!
//! ```text
//!   serve     look at the word (protocol::touch::step)
//!     wait      busy or held: in the touching thread, sleep on the word; in a monitor, park. The own thread's interrupted
//!               claim, or its own hold, is not waited for
//!     take      `busy`, for the page and, when touches run in sequence, its neighbours
//!     restore   invalidate the device, map the pages, commit the words
//!   settle    wake sleepers; give the page to a touch that was left waiting
//! ```
//!
//! With the adaptive policy a touch may have to wait before that, because its page is fought over (`thrash`): in its own
//! thread it sleeps, and a monitor leaves it to `SpaceCore::delays`.
//!
//! Signal-safe throughout: no allocation, no lock, no formatting; it touches the runtime's own mappings only, and no CPU
//! view. Order of `busy`: ascending, and never waited for while another is had.

use pagelease_protocol::touch::{Service, TouchStep};
use pagelease_protocol::{Cause, Obstacle, Origin, OwnerId, PageIndex, PageRange, PageWord, hold, touch};

use pagelease_sys::Errno;

use crate::alike::{self, Alike};
use crate::backend::{MapOutcome, Mapped};
use crate::invalidate::invalidate;
use crate::mutant::{self, Mutant};
use crate::records::{BORROWED, Begun, Phase, Record, SERVICE_TICKET};
use crate::region::RegionCore;
use crate::sequence::WINDOW_MAX;
use crate::service::monitor::defer;
use crate::space::Faults;
use crate::sync::{Deadline, Waited, block_signals, now_ns, sleep_until};

/// The most pages that a huge page has.
const WHOLE_MAX: usize = 512;

/// Which thread touched.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Who {
    /// None that is known: a waiting touch is served by whoever owes it the page.
    Nobody,
    /// The calling thread, in its signal handler. Its id costs a system call, and is asked for only where it matters.
    Caller,
    /// The thread with this id.
    Thread(u32),
}

impl Who {
    /// The thread's id. Signal-safe.
    pub(crate) fn tid(self) -> Option<u32> {
        match self {
            Self::Nobody => None,
            Self::Caller => Some(pagelease_sys::thread::tid_uncached()),
            Self::Thread(tid) => Some(tid),
        }
    }

    /// Something that tells threads apart most of the time, and costs nothing.
    fn stream(self) -> Option<usize> {
        match self {
            Self::Nobody => None,
            Self::Caller => Some(pagelease_sys::thread::pointer() >> 12),
            Self::Thread(tid) => Some(tid as usize),
        }
    }
}

/// A CPU access that trapped.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Toucher {
    /// The thread.
    pub(crate) who: Who,
    /// Whether it writes, where that is known.
    pub(crate) write: Option<bool>,
    /// It touched before any claim with this token or a later one began; as far as whoever serves it can know.
    pub(crate) read_at: u64,
    /// It has left the page with its device for the minimum already.
    pub(crate) delayed: bool,
}

impl Toucher {
    /// A touch whose thread does not run until it is served.
    pub(crate) fn stopped(who: Who, write: Option<bool>) -> Self {
        Self { who, write, read_at: u64::MAX, delayed: false }
    }

    /// One that was left asleep, and whose time has come. Nobody knows any more who it was.
    pub(crate) fn delayed() -> Self {
        Self { delayed: true, ..Self::stopped(Who::Nobody, Some(true)) }
    }
}

/// On which thread a touch is served.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Server {
    /// The touching thread itself, in its signal handler: it may sleep, but call signal-safe devices only.
    InThread,
    /// A service thread, on behalf of a touching thread that sleeps until it is done: it calls any device, and never waits
    /// for a page.
    Deputy,
    /// A monitor: it never waits.
    Monitor,
    /// Whoever has just ended what a waiting touch waited for.
    Owed,
}

/// What became of a touch.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Served {
    /// The access can be tried again; it need not succeed (somebody may have claimed the page anew).
    Done,
    /// It waits, asleep in the kernel; whoever ends the obstacle gives the page back.
    Parked,
}

/// Serves a touch of `page`.
pub(crate) fn serve(region: &RegionCore, page: PageIndex, toucher: Toucher, server: Server) -> Served {
    let space = &region.space;
    let mut write = toucher.write.unwrap_or(false);
    let mut since: Option<u64> = None;
    let mut delayed = toucher.delayed || !region.thrash.is_watched();
    loop {
        if region.is_closing() {
            return Served::Done;
        }
        let word = region.word(page);
        let step = touch::step(word, write);
        if !delayed && let Some(until_ns) = device_keeps_until(region, page, word, step, toucher, server) {
            delayed = true;
            if server == Server::InThread {
                sleep_until(Deadline::at(until_ns));
                continue;
            }
            if space.delays.insert(region.id, page, until_ns) {
                return Served::Parked;
            }
        }
        match step {
            TouchStep::Take(_, Service::Restore(owner))
                if server == Server::InThread && !region.is_signal_safe(owner) =>
            {
                space.deputy.serve(region, page, toucher);
                return Served::Done;
            }
            TouchStep::Take(next, service) => {
                let next = if word.held() { next } else { next.signed(SERVICE_TICKET) };
                if !region.swap(page, word, next) {
                    continue;
                }
                let outcome = match service {
                    Service::Restore(owner) => restore(region, page, word.generation(), owner, toucher),
                    Service::Map => map(region, page, word.generation()),
                    Service::MapReadOnly => map_read_only(region, page, word),
                };
                if service == Service::MapReadOnly && outcome == MapOutcome::AlreadyMapped && toucher.write.is_none() {
                    // It was mapped for reading and trapped all the same: the access is a write.
                    write = true;
                    continue;
                }
                break;
            }
            TouchStep::Wait(obstacle) => {
                if let Some(record) = own_record(region, page, word, obstacle, toucher) {
                    if record.token() >= toucher.read_at {
                        // The thread has gone on since. If it has not, it traps again.
                        region.backend.wake(single(page));
                        return Served::Done;
                    }
                    if obstacle == Obstacle::Held {
                        break_own_hold(region, page);
                        continue;
                    }
                    let may_call = |device: Option<OwnerId>| device.is_none_or(|device| region.is_signal_safe(device));
                    if server == Server::InThread && !(may_call(record.owner()) && may_call(word.owner())) {
                        space.deputy.serve(region, page, toucher);
                        return Served::Done;
                    }
                    if serve_own_claim(region, page, word, record, toucher) {
                        break;
                    }
                    continue;
                }
                match server {
                    // Somebody else has taken the page meanwhile, and owes it now; or the touch traps again, and waits in
                    // its own thread: a deputy that waited for a hold would serve nobody else, the holder included.
                    Server::Owed | Server::Deputy => return Served::Done,
                    Server::Monitor => {
                        if park(region, page, word) {
                            return Served::Parked;
                        }
                    }
                    Server::InThread => {
                        sleep(region, page, word, obstacle, *since.get_or_insert_with(now_ns));
                    }
                }
            }
        }
    }
    if let Some(since) = since {
        space.stats.waits.one();
        space.stats.wait_ns_max.at_least(now_ns().saturating_sub(since));
    }
    Served::Done
}

/// A touch trapped at a page that is mapped for it as far as the backend knows. Either somebody has mapped it since: then
/// `allowed`, which is asked while nobody can revoke the page, says so, and the touch may be tried again. Or it is no touch of
/// a device's page, but a fault of the program's own. `None`: it is to be served, like any other.
pub(crate) fn is_stale(
    region: &RegionCore,
    page: PageIndex,
    write: bool,
    allowed: impl FnOnce() -> bool,
) -> Option<bool> {
    let word = region.word(page);
    let TouchStep::Take(next, service @ (Service::Map | Service::MapReadOnly)) = touch::step(word, write) else {
        return None;
    };
    if !region.swap(page, word, if word.held() { next } else { next.signed(SERVICE_TICKET) }) {
        return None;
    }
    let allowed = allowed();
    let unsigned = |now: PageWord| if now.held() { now } else { now.unsigned(word.generation()) };
    region.update(page, |now| touch::abandon(unsigned(now), service));
    Some(allowed)
}

/// Until when a touch has to leave the page with its device, which has it or is just claiming it: it is fought over.
fn device_keeps_until(
    region: &RegionCore,
    page: PageIndex,
    word: PageWord,
    step: TouchStep,
    toucher: Toucher,
    server: Server,
) -> Option<u64> {
    if matches!(server, Server::Owed | Server::Deputy) {
        // It has waited already, as any touch waits.
        return None;
    }
    let disturbs = match step {
        TouchStep::Take(_, Service::Restore(_)) => false,
        TouchStep::Wait(Obstacle::Held) => true,
        TouchStep::Wait(Obstacle::Busy) if claiming_record(region, word).is_some() => true,
        TouchStep::Take(..) | TouchStep::Wait(_) => return None,
    };
    // A thread fights with nobody over what it claims and holds itself.
    if let TouchStep::Wait(obstacle) = step
        && own_record(region, page, word, obstacle, toucher).is_some()
    {
        return None;
    }
    if disturbs {
        disturbed(region, page);
    }
    let (stats, now_ns) = (&region.space.stats, now_ns());
    let until_ns = region.thrash.device_keeps_until(page, now_ns)?;
    stats.touches_throttled.one();
    stats.throttle_ns_max.at_least(until_ns.saturating_sub(now_ns));
    Some(until_ns)
}

/// A touch finds that a device uses `page`, or is about to.
fn disturbed(region: &RegionCore, page: PageIndex) {
    if region.thrash.is_watched() && region.thrash.disturbed(page, now_ns()) {
        region.space.stats.fights.one();
    }
}

/// The page, taken `busy` at `generation`, goes from `owner` to the CPU; so do its neighbours, when touches run in sequence.
fn restore(region: &RegionCore, page: PageIndex, generation: u16, owner: OwnerId, toucher: Toucher) -> MapOutcome {
    if let Some(whole) = region.backend.whole(page) {
        return restore_whole(region, page, generation, owner, toucher, whole);
    }
    let stream = toucher.who.stream();
    let window = stream.map_or(1, |stream| window(region, stream, page));
    if window == 1 {
        if let Some(stream) = stream {
            region.sequence.touched(stream, page.0 + 1);
        }
        return restore_taken(region, page, single(page), owner, toucher, &[generation]);
    }
    restore_window(region, page, generation, owner, toucher, window)
}

/// As [`restore`], with up to `window` pages. Apart from it, since what it lays on the stack costs every touch.
#[inline(never)]
fn restore_window(
    region: &RegionCore,
    page: PageIndex,
    generation: u16,
    owner: OwnerId,
    toucher: Toucher,
    window: u32,
) -> MapOutcome {
    let mut generations = [0; WINDOW_MAX];
    generations[0] = generation;
    let mut end = page.0 + 1;
    while end < page.0 + window
        && take_neighbour(region, PageIndex(end), owner, &mut generations[(end - page.0) as usize])
    {
        end += 1;
    }
    if let Some(stream) = toucher.who.stream() {
        region.sequence.touched(stream, end);
    }
    let pages = PageRange::new(page.0, end).expect("holds the page");
    restore_taken(region, page, pages, owner, toucher, &generations)
}

/// How many pages a touch of `page` in `stream` may bring, itself included.
fn window(region: &RegionCore, stream: usize, page: PageIndex) -> u32 {
    if region.history.is_kept()
        && let Some(passed) = region.sequence.passed(stream, page)
    {
        let walked = passed.iter().filter(|&page| region.word(page).owner().is_none());
        walked.for_each(|page| region.history.touched(page));
    }
    region.sequence.window(stream, page).min(region.pages - page.0)
}

/// As [`restore`], with all of `whole`, so that a huge page stays one; unless somebody has a part of it.
#[cold]
#[inline(never)]
fn restore_whole(
    region: &RegionCore,
    page: PageIndex,
    generation: u16,
    owner: OwnerId,
    toucher: Toucher,
    whole: PageRange,
) -> MapOutcome {
    let mut generations = [0; WHOLE_MAX];
    let mut take =
        |page: u32| take_neighbour(region, PageIndex(page), owner, &mut generations[(page - whole.start()) as usize]);
    let (mut start, mut end) = (page.0, page.0 + 1);
    while end < whole.end() && take(end) {
        end += 1;
    }
    while end == whole.end() && start > whole.start() && take(start - 1) {
        start -= 1;
    }
    generations[(page.0 - whole.start()) as usize] = generation;
    let pages = PageRange::new(start, end).expect("holds the page");
    // Its minimum residency is the huge page's, at whose start a claim waits; within it, it would split it.
    let first = PageIndex(start);
    restore_taken(region, first, pages, owner, toucher, &generations[(start - whole.start()) as usize..])
}

/// `pages`, all taken `busy` at their `generations`, go from `owner` to the CPU; `page` shall stay there for a minimum time.
fn restore_taken(
    region: &RegionCore,
    page: PageIndex,
    pages: PageRange,
    owner: OwnerId,
    toucher: Toucher,
    generations: &[u16],
) -> MapOutcome {
    if mutant::active(Mutant::WakeBeforeMap) {
        commit_all(region, pages, generations);
        invalidate(region, owner, pages, Cause::Clear, Origin::default(), toucher.who);
        let _ = region.backend.map(pages, Mapped::Writable);
        return MapOutcome::Mapped;
    }
    if mutant::active(Mutant::RestoreBeforeInvalidate) {
        let _ = region.backend.map(pages, Mapped::Writable);
    }
    let disturbs = invalidate(region, owner, pages, Cause::Clear, Origin::default(), toucher.who);
    if disturbs {
        disturbed(region, page);
        region.history.taken(page);
    } else {
        region.history.touched(page);
    }
    // Counted first: mapping lets the touching thread go on, which may look.
    region.space.stats.restores.add(u64::from(pages.len()));
    let outcome = map_for_cpu(region, pages, Mapped::Writable);
    region.residency.restored(page);
    commit_all(region, pages, generations);
    outcome
}

/// Takes one more page for the CPU, if `owner` has it and nobody uses or waits for it.
fn take_neighbour(region: &RegionCore, page: PageIndex, owner: OwnerId, generation: &mut u16) -> bool {
    let word = region.word(page);
    if word.waiters() {
        return false;
    }
    let TouchStep::Take(next, Service::Restore(of)) = touch::step(word, true) else { return false };
    *generation = word.generation();
    of == owner && region.swap(page, word, next.signed(SERVICE_TICKET))
}

/// The CPU has `pages`, all taken `busy` at their `generations`.
pub(crate) fn commit_all(region: &RegionCore, pages: PageRange, generations: &[u16]) {
    if let [generation] = *generations {
        region.update(PageIndex(pages.start()), |word| touch::commit(word.unsigned(generation)));
        return;
    }
    let mut alike = Alike::default();
    for (page, &generation) in pages.iter().zip(generations) {
        if !alike.again(&region.words[page.as_usize()], generation) {
            let (from, to) = region.update(page, |word| touch::commit(word.unsigned(generation)));
            alike.note(generation, from, to);
        }
    }
}

/// The page is the CPU's already, and merely not mapped.
fn map(region: &RegionCore, page: PageIndex, generation: u16) -> MapOutcome {
    let outcome = map_for_cpu(region, single(page), Mapped::Writable);
    region.update(page, |word| touch::commit(word.unsigned(generation)));
    outcome
}

/// The device keeps the page for writing, and the CPU reads it. `taken_at`: the word that was taken.
fn map_read_only(region: &RegionCore, page: PageIndex, taken_at: PageWord) -> MapOutcome {
    let outcome = map_for_cpu(region, single(page), Mapped::ReadOnly);
    region.space.stats.read_only_maps.one();
    region.update(page, |word| {
        touch::commit_read_only(if word.held() { word } else { word.unsigned(taken_at.generation()) })
    });
    outcome
}

/// Maps; where the kernel cannot just now (no memory for a page table), the touch is let go, and traps again.
pub(crate) fn map_for_cpu(region: &RegionCore, pages: PageRange, how: Mapped) -> MapOutcome {
    region.backend.map(pages, how).unwrap_or_else(|errno| {
        if errno == Errno::AGAIN {
            // The program is changing the layout of its address space.
            if region.space.config.faults == Faults::Monitor && defer() {
                return MapOutcome::Mapped;
            }
        } else if !region.is_closing() {
            region.space.stats.restores_failed.one();
        }
        region.backend.wake(pages);
        MapOutcome::Mapped
    })
}

/// The claim or lease of the touching thread's own that the touch would wait for, and which cannot go on before it does.
pub(crate) fn own_record(
    region: &RegionCore,
    page: PageIndex,
    word: PageWord,
    obstacle: Obstacle,
    toucher: Toucher,
) -> Option<Record<'_>> {
    let tid = toucher.who.tid()?;
    match obstacle {
        Obstacle::Busy => claiming_record(region, word).filter(|record| record.thread() == tid),
        Obstacle::Held => region.space.records.holding(tid, region.id.0, page, word.generation()),
        Obstacle::Waiter => None,
    }
}

fn claiming_record(region: &RegionCore, word: PageWord) -> Option<Record<'_>> {
    word.ticket().and_then(|ticket| region.space.records.get(ticket))
}

/// A thread touches a page that it holds: its own hold ends.
fn break_own_hold(region: &RegionCore, page: PageIndex) {
    if break_hold(region, page) {
        region.space.stats.holds_broken_by_self.one();
    }
}

/// A thread touches a page that it is about to claim: its claim starts again, or has lost the page. `false`: look again.
///
/// The thread does not run meanwhile, so its `busy` could be used as it is. But a monitor cannot know whether somebody else
/// has woken it since the message was read. So the `busy` is borrowed: until it is given back, the claim waits where it
/// looks at the word; and behind that, it finds that its grant does not stand, unless it was past its commit point.
fn serve_own_claim(region: &RegionCore, page: PageIndex, word: PageWord, record: Record<'_>, toucher: Toucher) -> bool {
    if !region.swap(page, word, word.signed(BORROWED)) {
        return false;
    }
    let records = &region.space.records;
    let mut begun = Begun::NONE;
    let heard = records.begin(&mut begun, region.id.0, single(page), Cause::Clear, Origin::default());
    let committing = record.phase() == Phase::Committing;
    // Up to the commit point a previous owner may still use the page; behind it, the claiming device may.
    if let Some(user) = if committing { record.owner() } else { word.owner() } {
        invalidate(region, user, single(page), Cause::Clear, Origin::default(), toucher.who);
    }
    map_for_cpu(region, single(page), Mapped::Writable);
    match record.entries().find(|entry| entry.page == page) {
        Some(lost) if committing => {
            region.update(page, |word| touch::take_over(word.unsigned(lost.generation)));
            region.space.stats.holds_broken_by_self.one();
            region.space.stats.restores.one();
        }
        _ => {
            region.update(page, |word| word.signed(record.id()));
        }
    }
    if heard {
        records.end(&begun);
    }
    true
}

/// Leaves the touch asleep in the kernel. `false`: the word has changed, look again.
fn park(region: &RegionCore, page: PageIndex, word: PageWord) -> bool {
    let space = &region.space;
    if !space.park.insert(region.id, page, now_ns()) {
        space.stats.parks_refused.one();
        region.backend.wake(single(page));
        return true;
    }
    // Put even an unchanged word: from then on, whoever ends the obstacle finds both the bit and the note.
    let parked = region.swap(page, word, touch::wait(word, false));
    if !parked {
        space.park.remove(region.id, page);
    } else if !space.park.insert(region.id, page, now_ns()) {
        // Another monitor took the note for one that was left behind, while there was no bit yet, and there is no room for a
        // new one. Without it nobody would break the hold at its limit.
        space.stats.parks_refused.one();
        region.backend.wake(single(page));
    }
    parked
}

/// Sleeps on the word until the obstacle is gone, or breaks a hold whose limit has passed.
fn sleep(region: &RegionCore, page: PageIndex, word: PageWord, obstacle: Obstacle, since: u64) {
    let space = &region.space;
    let deadline = if obstacle == Obstacle::Held { space.hold_deadline(since) } else { Deadline::NEVER };
    if deadline.passed() {
        break_overdue(region, page);
        return;
    }
    if region.sleep(page, word, touch::wait(word, true), deadline) == Waited::TimedOut {
        break_overdue(region, page);
    }
}

/// The hold limit has passed for a touch of `page`: whatever holds it is broken. The caller serves the touch next.
pub(crate) fn break_overdue(region: &RegionCore, page: PageIndex) {
    if break_hold(region, page) {
        region.space.stats.holds_broken.one();
    }
}

/// Breaks what holds `page`, if anything does. A touch that waits for it is served by the caller.
pub(crate) fn break_hold(region: &RegionCore, page: PageIndex) -> bool {
    let word = region.word(page);
    let Some(next) = hold::break_hold(word) else { return false };
    let broken = region.swap(page, word, next);
    if broken && word.sleepers() {
        region.words[page.as_usize()].wake_all();
    }
    broken
}

impl RegionCore {
    /// Changes the word by `step`, and does what follows for those who wait; what it was, and what it has become.
    pub(crate) fn update(&self, page: PageIndex, step: impl Fn(PageWord) -> PageWord) -> (PageWord, PageWord) {
        loop {
            let word = self.word(page);
            let next = step(word);
            if self.swap(page, word, next) {
                self.settle(page, word, next);
                return (word, next);
            }
        }
    }

    /// Puts `next`, whose `sleepers` bit is set, and sleeps until the word changes or the region closes.
    pub(crate) fn sleep(&self, page: PageIndex, word: PageWord, next: PageWord, deadline: Deadline) -> Waited {
        // Put even an unchanged word: whoever closes the region sets `closing` first and looks for sleepers then.
        if !self.swap(page, word, next) || self.has_begun_to_close() {
            return Waited::LookAgain;
        }
        self.words[page.as_usize()].wait(next.bits(), deadline)
    }

    /// The word has gone from `word` to `next`: wakes and serves those whose wait that ends.
    #[inline]
    pub(crate) fn settle(&self, page: PageIndex, word: PageWord, next: PageWord) {
        if !alike::is_quiet(word, next) {
            self.settle_waits(page, word, next);
        }
    }

    #[cold]
    fn settle_waits(&self, page: PageIndex, word: PageWord, next: PageWord) {
        if word.sleepers() && !next.sleepers() {
            self.words[page.as_usize()].wake_all();
        }
        if word.waiters() && !next.waiters() {
            if let Some(since) = self.space.park.remove(self.id, page) {
                self.space.stats.waits.one();
                self.space.stats.wait_ns_max.at_least(now_ns().saturating_sub(since));
            }
            self.backend.wake(single(page));
        }
        if next.owes_hand_back() {
            // What this thread has busy now nobody could find if a signal handler of it touched the page.
            let _blocked = block_signals();
            serve(self, page, Toucher::stopped(Who::Nobody, Some(true)), Server::Owed);
        }
    }
}

pub(crate) fn single(page: PageIndex) -> PageRange {
    PageRange::single(page).expect("a region's page is never the last index")
}
