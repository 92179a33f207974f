//! The claim path: a device takes pages exclusively.
//!
//! ```text
//!   claim     chunks of at most CHUNK pages; between two, wait for what is in the way, with nothing busy
//!     chunk     open a record: its interval notifier is registered before anything is looked at
//!       read_begin
//!       take      busy, page by page, ascending; a page that the device has already is merely held once more
//!       prepare   invalidate previous owners; populate; revoke the CPU view: a system call a run of pages
//!       map       Device::map, under the device's lock: does the grant still stand?   no: undo, start again
//!       commit    the words say whose the pages are, busy goes, sleepers wake
//! ```
//!
//! No allocation and no lock. A claim has pages `busy` in ascending order only and waits for a hold with none busy, so
//! claims that overlap cannot deadlock. From the moment a page is taken to its commit, a touch of it by the claiming
//! thread itself (a signal handler) is served by the fault path under the claim's `busy`, see `touch::serve_own_thread`:
//! up to the commit point that makes the claim start again; behind it, the lease has lost that page.
//!
//! The sequence number is read before the claim looks at any page: what is owed for a page follows from the word as it was
//! taken, so a touch between taking and doing must be heard of. But a claim hears only of pages that it has: a touch of one
//! that it has not come to yet is no reason to start again.

use core::time::Duration;

use pagelease_protocol::claim::{self as step, ClaimStep};
use pagelease_protocol::{Access, Cause, Obstacle, Origin, OwnerId, PageIndex, PageRange, PageWord, Token, hold};

use crate::alike::Alike;
use crate::backend::{Refusal, Refused};
use crate::device::Grant;
use crate::error::ClaimError;
use crate::guard;
use crate::invalidate::invalidate;
use crate::lease::Lease;
use crate::mutant::{self, Mutant};
use crate::records::{BORROWED, CHUNK, Entry, Opening, Phase, RECORDS, Record, Writer};
use crate::region::RegionCore;
use crate::rights::Rights;
use crate::sync::{Deadline, Waited, Word, block_signals, now_ns, relax, sleep_until, tid};
use crate::touch::{Who, break_overdue, single};
use crate::view::ViewCore;

/// Runs that are revoked by one call of the backend: bounds what lies on the stack.
const RUNS_MAX: usize = 64;

/// Turns for which a claim waits for a busy page before it sleeps: about as long as a drain takes.
const BUSY_TURNS: u32 = if cfg!(pagelease_shuttle) { 0 } else { 300 };

/// Turns for which a claim leaves the program to its `munmap` before it tries again.
const CHANGING_TURNS: u32 = 20;

/// How often a claim has a page unshared before it takes it for pinned.
const SHARED_MAX: u32 = 3;

/// The turn from which on `relax` gives the CPU away.
const YIELD: u32 = 200;

/// A page that stays with the CPU for longer than this is slept for, not spun.
const LONG_NS: u64 = 400_000;

/// Where a claim stands in its list of ranges.
#[derive(Copy, Clone)]
struct Cursor<'a> {
    ranges: &'a [PageRange],
    at: u32,
}

impl<'a> Cursor<'a> {
    fn new(ranges: &'a [PageRange]) -> Self {
        Self { ranges, at: ranges.first().map_or(0, |range| range.start()) }
    }

    fn is_at_end(&self) -> bool {
        self.ranges.is_empty()
    }

    /// What is left of the range it stands in.
    fn range(&self) -> Option<PageRange> {
        PageRange::new(self.at, self.ranges.first()?.end())
    }

    /// Moves to `page`, within that range or to its end.
    fn move_to(&mut self, page: u32) {
        self.at = page;
        if let [first, rest @ ..] = self.ranges
            && page == first.end()
        {
            self.ranges = rest;
            self.at = rest.first().map_or(0, |range| range.start());
        }
    }

    /// From here to the end of what one chunk can hold: what its interval notifier covers.
    fn bounds(&self) -> Option<PageRange> {
        let mut room = u32::try_from(CHUNK).expect("a small constant");
        let mut end = self.at;
        for range in self.ranges {
            let start = range.start().max(self.at);
            end = range.end().min(start.saturating_add(room));
            room -= end - start;
            if room == 0 {
                break;
            }
        }
        PageRange::new(self.at, end)
    }
}

/// What a page's word is made of by a claim that takes it, and what is owed for it then.
#[derive(Copy, Clone)]
struct Taking {
    from: PageWord,
    to: PageWord,
    /// Made busy; otherwise the device has it, and is given one more hold.
    is_taken: bool,
    owned: bool,
    unpopulated: bool,
    revoke: bool,
}

impl Taking {
    /// Changes the word of `page`, and notes it; unless the word has changed meanwhile.
    #[inline]
    fn take(self, page: PageIndex, cell: &Word, entries: &mut Writer<'_>) -> bool {
        // The entry comes first: a touch that interrupts right behind the swap must find the generation.
        entries.push(Entry { page, generation: self.from.generation(), taken: self.is_taken });
        let taken = cell.swap_if(self.from.bits(), self.to.bits()).is_ok();
        if !taken {
            entries.pop();
        }
        taken
    }

    /// The same with the pages from `first` on that have this very word, which pages in a row mostly do; how many.
    #[inline(never)]
    fn take_alike(self, first: PageIndex, cells: &[Word], entries: &mut Writer<'_>) -> u32 {
        let mut page = first;
        for cell in cells {
            if cell.load() != self.from.bits() || !self.take(page, cell, entries) {
                break;
            }
            page.0 += 1;
        }
        page.0 - first.0
    }
}

/// What `take` found of the pages it made busy: spares the later steps a walk that would find nothing.
#[derive(Copy, Clone, Debug, Default)]
struct Taken {
    /// How many are busy.
    count: u32,
    /// Some belong to another device.
    owned: bool,
    /// Some may not exist.
    unpopulated: bool,
    /// How many must be revoked, and the range they lie in.
    revoke: u32,
    revoke_from: u32,
    revoke_to: u32,
}

/// A chunk could not begin: its first page is in the way.
struct Blocked {
    page: PageIndex,
    why: Blocker,
}

enum Blocker {
    Obstacle(Obstacle),
    /// The page has not been with the CPU for its minimum residency.
    Resident {
        wait_ns: u64,
    },
    /// The program is changing the layout of its address space.
    Changing,
    /// A forked child shares the page, or it is pinned.
    Shared {
        /// From the page to the end of the chunk.
        pages: PageRange,
    },
}

/// Claims `ranges` for the view's device.
pub(crate) fn claim(
    view: &crate::shared::Shared<ViewCore>,
    ranges: &[PageRange],
    access: Access,
) -> Result<Lease, ClaimError> {
    let all = check(view, ranges, access)?;
    let region = &*view.region;
    let _operation = region.enter().ok_or(ClaimError::RegionGone { pages: all })?;
    let space = &region.space;
    view.widen(all);
    let carries = region.backend.carries();
    let mut claim = Claim {
        view,
        region,
        device: view.device.id,
        access,
        token: space.next_token(),
        all,
        carries,
        learns: region.history.is_kept(),
        shared: (PageIndex(0), 0),
    };
    let mut lease = Lease::new(view.clone(), all);
    if let Err(error) = claim.all(&mut lease, ranges) {
        lease.give_back();
        return Err(error);
    }
    space.stats.claims.one();
    Ok(lease)
}

fn check(view: &ViewCore, ranges: &[PageRange], access: Access) -> Result<PageRange, ClaimError> {
    let (Some(first), Some(last)) = (ranges.first(), ranges.last()) else { return Err(ClaimError::NotAscending) };
    let all = PageRange::new(first.start(), last.end()).ok_or(ClaimError::NotAscending)?;
    if pagelease_sys::fork::in_child() {
        return Err(ClaimError::Forked { pages: all });
    }
    if ranges.windows(2).any(|pair| pair[0].end() > pair[1].start()) {
        return Err(ClaimError::NotAscending);
    }
    if all.end() > view.region.pages {
        return Err(ClaimError::OutOfRange { pages: all, region_pages: view.region.pages });
    }
    if access == Access::ExclusiveWrite && !view.region.backend.capabilities().exclusive_write {
        return Err(ClaimError::Unsupported { pages: all });
    }
    Ok(all)
}

struct Claim<'a> {
    view: &'a ViewCore,
    region: &'a RegionCore,
    device: OwnerId,
    access: Access,
    token: Token,
    all: PageRange,
    /// See [`crate::backend::Backend::carries`].
    carries: bool,
    /// Whether the region keeps a history of its pages.
    learns: bool,
    /// The page that was last found shared, and how often.
    shared: (PageIndex, u32),
}

impl<'a> Claim<'a> {
    fn check_alive(&self) -> Result<(), ClaimError> {
        if let Some(lost) = self.view.device.lost() {
            return Err(lost.into());
        }
        if self.region.is_closing() || self.view.is_stopped() {
            return Err(ClaimError::RegionGone { pages: self.all });
        }
        Ok(())
    }

    /// Claims chunk by chunk.
    fn all(&mut self, lease: &mut Lease, ranges: &[PageRange]) -> Result<(), ClaimError> {
        let mut cursor = Cursor::new(ranges);
        let mut blocked_since = None;
        while !cursor.is_at_end() {
            self.check_alive()?;
            match self.chunk(&mut cursor)? {
                Ok(record) => {
                    lease.push(record);
                    blocked_since = None;
                }
                Err(blocked) => self.wait(&blocked, *blocked_since.get_or_insert_with(now_ns)),
            }
        }
        Ok(())
    }

    /// Claims as much as it can from the cursor on, up to a chunk, and moves the cursor behind it.
    fn chunk(&mut self, cursor: &mut Cursor<'_>) -> Result<Result<Record<'a>, Blocked>, ClaimError> {
        let range = cursor.bounds().expect("the cursor is not at the end");
        let opening =
            Opening { thread: tid(), region: self.region.id.0, owner: self.device, range, token: Some(self.token) };
        let limit = ClaimError::TooManyLeases { pages: self.all, limit: RECORDS };
        let record = self.region.space.records.open(opening).ok_or(limit)?;
        // Each turn but the last is an invalidation that concerns the chunk and came from outside: the claiming thread
        // touched it in a signal handler, or the device was lost (which `check_alive` ends).
        loop {
            let seq = record.read_begin();
            let mut end = *cursor;
            let (taken, blocked) = self.take(record, &mut end, self.stop(range));
            if let (0, Some(blocked)) = (record.len(), blocked) {
                record.close();
                return Ok(Err(blocked));
            }
            if let Err(refusal) = self.prepare(record, taken) {
                self.undo(record, taken, false);
                record.close();
                return self.refused(refusal, range).map(Err);
            }
            let grant = Grant { region: self.region.id, record, seq, device: &self.view.device };
            let device = self.view.device.device();
            // A signal handler that touched one of these pages would wait for a driver whose lock this thread may have.
            let unblock = (taken.count != 0 && !device.signal_safe()).then(block_signals);
            record.set_phase(Phase::Committing);
            if taken.count == 0 || guard::driver(|| device.map(&grant)) {
                self.commit(record, taken);
                *cursor = end;
                return Ok(Ok(record));
            }
            record.set_phase(Phase::Claiming);
            drop(unblock);
            self.undo(record, taken, true);
            self.region.space.stats.claim_retries.one();
            if let Err(error) = self.check_alive() {
                record.close();
                return Err(error);
            }
        }
    }

    /// What follows from the backend's refusal to take pages of a chunk that ends with `range`: trying again, or giving up.
    fn refused(&mut self, refusal: Refusal, range: PageRange) -> Result<Blocked, ClaimError> {
        let pages = refusal.pages;
        let page = PageIndex(pages.start());
        match refusal.why {
            Refused::Changing => Ok(Blocked { page, why: Blocker::Changing }),
            Refused::Shared => {
                self.shared = if self.shared.0 == page { (page, self.shared.1 + 1) } else { (page, 1) };
                match PageRange::new(page.0, range.end()) {
                    Some(pages) if self.shared.1 <= SHARED_MAX => Ok(Blocked { page, why: Blocker::Shared { pages } }),
                    _ => Err(ClaimError::Pinned { pages }),
                }
            }
            Refused::Protected => Err(ClaimError::Protected { pages }),
            Refused::Unmapped => Err(ClaimError::Unmapped { pages }),
            Refused::Mappings { limit } => Err(ClaimError::TooManyMappings { pages, limit }),
            Refused::Handler => Err(ClaimError::HandlerReplaced { pages }),
            Refused::NoMemory(errno) => Err(ClaimError::OutOfMemory { pages, errno }),
            Refused::System(errno) => Err(ClaimError::Revoke { pages, errno }),
        }
    }

    /// Where a chunk that could reach to the end of `range` ends: not within a huge page, if it can be helped.
    fn stop(&self, range: PageRange) -> u32 {
        let start_of_last = self.region.backend.group_of(PageIndex(range.end())).map(PageRange::start);
        start_of_last.filter(|start| *start > range.start()).unwrap_or(range.end())
    }

    /// Makes the pages busy, ascending, up to the first that is in the way, and not beyond `stop`.
    fn take(&self, record: Record<'_>, cursor: &mut Cursor<'_>, stop: u32) -> (Taken, Option<Blocked>) {
        let mut taken = Taken::default();
        let mut entries = record.writer();
        let recent = self.region.residency.recent();
        while let Some(range) = cursor.range()
            && let Some(range) = PageRange::new(range.start(), range.end().min(stop))
        {
            let blocked = self.take_range(range, record.id(), recent, &mut entries, &mut taken);
            let end =
                blocked.as_ref().map_or(range.end().min(range.start() + entries.added()), |blocked| blocked.page.0);
            cursor.move_to(end);
            if blocked.is_some() || entries.is_full() {
                return (taken, blocked);
            }
        }
        (taken, None)
    }

    /// Makes busy what it can of `range`, one compare-and-swap a page. What is in the way of the first page that it leaves.
    fn take_range(
        &self,
        range: PageRange,
        ticket: u16,
        recent: Option<u64>,
        entries: &mut Writer<'_>,
        taken: &mut Taken,
    ) -> Option<Blocked> {
        entries.mark();
        let cells = &self.region.words[range.start() as usize..range.end() as usize];
        let cells = &cells[..cells.len().min(entries.room())];
        let mut page = PageIndex(range.start());
        while let [cell, behind @ ..] = &cells[(page.0 - range.start()) as usize..] {
            let word = PageWord::from_bits(cell.load());
            let taking = match self.taking(word, ticket) {
                Ok(taking) => taking,
                Err(obstacle) => return Some(Blocked { page, why: Blocker::Obstacle(obstacle) }),
            };
            let back_lately = recent.filter(|_| word.owner().is_none());
            if let Some(now_ns) = back_lately
                && let fought_over_ns = self.region.thrash.minimum_ns(page, now_ns)
                && let wait_ns @ 1.. = self.region.residency.wait_ns(page, now_ns, fought_over_ns)
            {
                return Some(Blocked { page, why: Blocker::Resident { wait_ns } });
            }
            if !taking.take(page, cell, entries) {
                continue;
            }
            let mut count = 1;
            if self.learns {
                self.learn(page, taking.is_taken, recent);
            } else if back_lately.is_none() {
                // There is nothing to look up for those behind it that have the same word.
                count += taking.take_alike(PageIndex(page.0 + 1), behind, entries);
            }
            taken.add(page, count, taking);
            page.0 += count;
        }
        None
    }

    /// What a claim does with a page whose word is `word`.
    fn taking(&self, word: PageWord, ticket: u16) -> Result<Taking, Obstacle> {
        let (to, is_taken) = match self.step(word) {
            ClaimStep::Join(next) => (next, false),
            ClaimStep::Take(next) => (next.signed(ticket), true),
            ClaimStep::Wait(obstacle) => return Err(obstacle),
        };
        Ok(Taking {
            from: word,
            to,
            is_taken,
            owned: step::previous_owner(word, self.device).is_some(),
            unpopulated: !word.populated(),
            revoke: self.must_revoke(word),
        })
    }

    /// What the page's history and a fight over it become by this claim.
    fn learn(&self, page: PageIndex, is_taken: bool, recent: Option<u64>) {
        if is_taken {
            self.region.history.taken(page);
        } else {
            self.region.history.used_again(page);
        }
        // What the CPU got back long ago is not fought over.
        if is_taken && let Some(now_ns) = recent {
            self.region.thrash.claimed(page, now_ns);
        }
    }

    fn step(&self, word: PageWord) -> ClaimStep {
        let step = step::step(word, self.device, self.access);
        if mutant::active(Mutant::ClaimPastWaiter) && step == ClaimStep::Wait(Obstacle::Waiter) {
            return mutant::claim_past_waiter(word, self.device, self.access);
        }
        step
    }

    /// Does what is owed for the pages taken, so that nobody but the device can reach them.
    fn prepare(&self, record: Record<'_>, taken: Taken) -> Result<(), Refusal> {
        self.check_rights(record, taken)?;
        if taken.owned {
            let origin = Origin { owner: Some(self.device), token: Some(self.token) };
            for_runs(
                self.taken_words(record)
                    .filter_map(|(page, word)| Some((page, step::previous_owner(word, self.device)?))),
                |run, owner| _ = invalidate(self.region, owner, run, Cause::Exclusive, origin, Who::Nobody),
            );
        }
        if taken.unpopulated && !mutant::active(Mutant::SkipPopulate) {
            let mut result = Ok(());
            for_runs(
                self.taken_words(record).filter(|(_, word)| !word.populated()).map(|(page, _)| (page, ())),
                |run, ()| {
                    if result.is_ok() {
                        result = self.region.backend.populate(run);
                    }
                },
            );
            result?;
        }
        self.revoke(record, taken)
    }

    /// Whether the program may write the pages that were taken: a device may do no more.
    fn check_rights(&self, record: Record<'_>, taken: Taken) -> Result<(), Refusal> {
        let rights = &self.region.rights;
        // What is carried, the kernel itself refuses to.
        let maps = self.region.space.maps.as_ref().filter(|_| !self.carries && taken.count != 0 && rights.is_to_look());
        if maps.is_none() && !rights.is_altered() {
            return Ok(());
        }
        let mut result = Ok(());
        let of_cpu = self.taken_words(record).filter(|(_, word)| word.owner().is_none());
        for_runs(of_cpu.map(|(page, _)| (page, ())), |run, ()| {
            if result.is_ok() {
                result = rights.check(run);
            }
            if let (Ok(()), Some(maps), Some(span)) = (&result, maps, self.region.span_of(run)) {
                result = Rights::look(maps, run, span).inspect_err(|_| rights.look_again());
            }
        });
        result
    }

    /// Whether a page taken at `word` has to be taken from wherever it is.
    fn must_revoke(&self, word: PageWord) -> bool {
        step::needs_revoke(word) || self.carries && step::previous_owner(word, self.device).is_some()
    }

    fn revoke(&self, record: Record<'_>, taken: Taken) -> Result<(), Refusal> {
        if taken.revoke == 0 {
            return Ok(());
        }
        if let Some(run) = PageRange::new(taken.revoke_from, taken.revoke_to)
            && run.len() == taken.revoke
        {
            return self.region.backend.revoke(&[run], self.access, self.device);
        }
        let mut runs = Batch {
            backend: &*self.region.backend,
            access: self.access,
            device: self.device,
            runs: [None; RUNS_MAX],
            len: 0,
            result: Ok(()),
        };
        for_runs(
            self.taken_words(record).filter(|&(_, word)| self.must_revoke(word)).map(|(page, _)| (page, ())),
            |run, ()| runs.push(run),
        );
        runs.flush();
        runs.result
    }

    /// The pages that this record has busy, with their words.
    fn taken_words(&self, record: Record<'_>) -> impl Iterator<Item = (PageIndex, PageWord)> {
        record
            .entries()
            .filter(|entry| entry.taken)
            .map(|entry| (entry.page, given_back(&self.region.words[entry.page.as_usize()])))
            .filter(move |(_, word)| word.ticket() == Some(record.id()))
    }

    fn commit(&self, record: Record<'_>, taken: Taken) {
        if taken.count != 0 {
            let words = &self.region.words[..];
            let ticket = record.id();
            let mut alike = Alike::default();
            for entry in record.entries().filter(|entry| entry.taken) {
                let cell = &words[entry.page.as_usize()];
                if alike.again(cell, entry.generation) {
                    continue;
                }
                // A page that the claiming thread itself has touched since the commit point is not ours any more.
                let put = self.put(cell, ticket, entry, |word| step::commit(word, self.device, self.access));
                if let Some((from, to)) = put {
                    alike.note(entry.generation, from, to);
                }
            }
        }
        let stats = &self.region.space.stats;
        record.set_phase(Phase::Held);
        stats.pages_claimed.add(u64::from(taken.count));
        stats.claims_already_held.add(record.len() as u64 - u64::from(taken.count));
    }

    /// Puts what `step` makes of a page that this claim has busy; nothing if it has it no more. The word before, and behind it.
    fn put(
        &self,
        cell: &Word,
        ticket: u16,
        entry: Entry,
        step: impl Fn(PageWord) -> PageWord,
    ) -> Option<(PageWord, PageWord)> {
        loop {
            let word = given_back(cell);
            if word.ticket() != Some(ticket) {
                return None;
            }
            let next = step(word.unsigned(entry.generation));
            if mutant::active(Mutant::ReleaseBeforeWord) {
                mutant::release_before_word(self.region, entry.page, word, next);
                return None;
            }
            if cell.swap_if(word.bits(), next.bits()).is_ok() {
                self.region.settle(entry.page, word, next);
                return Some((word, next));
            }
        }
    }

    /// Gives everything of the record up: taken pages to the CPU, joined ones one hold less.
    fn undo(&self, record: Record<'_>, taken: Taken, populated: bool) {
        let origin = Origin { owner: None, token: Some(self.token) };
        for (page, word) in self.taken_words(record) {
            if let Some(owner) = word.owner() {
                invalidate(self.region, owner, single(page), Cause::Clear, origin, Who::Nobody);
            }
        }
        if self.region.backend.undoes() {
            let taken = self.taken_words(record).map(|(page, _)| (page, ()));
            for_runs(taken, |run, ()| self.region.backend.undo(run));
        }
        for entry in record.entries() {
            if entry.taken {
                let cell = &self.region.words[entry.page.as_usize()];
                self.put(cell, record.id(), entry, |word| step::undo(word, populated));
            } else {
                crate::lease::end_hold(self.region, self.device, entry, &mut Alike::default());
            }
        }
        debug_assert!(taken.count as usize <= record.len());
        record.clear();
    }

    /// Whether the page is busy no more after a moment, as it mostly is. A claim that sleeps has to be woken by whoever serves
    /// the touch that it waits for.
    fn busy_passes(&self, page: PageIndex) -> bool {
        (0..BUSY_TURNS).any(|turn| {
            relax(turn);
            !self.region.word(page).busy()
        })
    }

    /// Waits, with nothing busy, until the page may be claimed: at most the hold limit for a hold, which is then broken.
    fn wait(&self, blocked: &Blocked, since_ns: u64) {
        let space = &self.region.space;
        let page = blocked.page;
        match blocked.why {
            Blocker::Resident { wait_ns } => {
                space.stats.residency_waits.one();
                let until = Deadline::after(Duration::from_nanos(wait_ns));
                if wait_ns > LONG_NS {
                    return sleep_until(until);
                }
                let mut turn = 0;
                while !until.passed() {
                    turn += 1;
                    relax(turn);
                }
            }
            Blocker::Shared { pages } => self.region.backend.unshare(pages),
            Blocker::Changing => (0..CHANGING_TURNS).for_each(|_| relax(YIELD)),
            Blocker::Obstacle(Obstacle::Busy) if self.busy_passes(page) => {}
            Blocker::Obstacle(_) => {
                // Look again before sleeping: what was in the way may be gone, or a hold may stand in its place. How long to
                // sleep follows from the very word slept on; nobody else ends a hold at its limit.
                let word = self.region.word(page);
                let ClaimStep::Wait(obstacle) = self.step(word) else { return };
                let held = obstacle == Obstacle::Held;
                let deadline = if held { space.hold_deadline(since_ns) } else { Deadline::NEVER };
                if self.region.sleep(page, word, hold::sleep(word), deadline) == Waited::TimedOut && held {
                    break_overdue(self.region, page);
                    let word = self.region.word(page);
                    self.region.settle(page, word, word);
                }
            }
        }
    }
}

/// The word of a page that a claim has busy, once nobody borrows that.
#[inline]
fn given_back(cell: &Word) -> PageWord {
    let mut turn = 0;
    loop {
        let word = PageWord::from_bits(cell.load());
        if word.ticket() != Some(BORROWED) {
            return word;
        }
        turn += 1;
        relax(turn);
    }
}

impl Taken {
    /// `count` pages from `first` on.
    fn add(&mut self, first: PageIndex, count: u32, taking: Taking) {
        if !taking.is_taken {
            return;
        }
        self.count += count;
        self.owned |= taking.owned;
        self.unpopulated |= taking.unpopulated;
        if taking.revoke {
            if self.revoke == 0 {
                self.revoke_from = first.0;
            }
            self.revoke += count;
            self.revoke_to = first.0 + count;
        }
    }
}

/// Collects runs for one call of the backend.
struct Batch<'a> {
    backend: &'a dyn crate::backend::Backend,
    access: Access,
    device: OwnerId,
    runs: [Option<PageRange>; RUNS_MAX],
    len: usize,
    result: Result<(), Refusal>,
}

impl Batch<'_> {
    fn push(&mut self, run: PageRange) {
        self.runs[self.len] = Some(run);
        self.len += 1;
        if self.len == RUNS_MAX {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let Some(first) = self.runs[0].filter(|_| self.len > 0) else { return };
        let mut runs = [first; RUNS_MAX];
        for (run, found) in runs.iter_mut().zip(&self.runs[..self.len]) {
            *run = found.unwrap_or(first);
        }
        if self.result.is_ok() {
            self.result = self.backend.revoke(&runs[..self.len], self.access, self.device);
        }
        self.len = 0;
    }
}

/// Calls `act` for each run of adjacent pages with the same tag; pages ascend.
pub(crate) fn for_runs<T: Copy + PartialEq>(
    pages: impl Iterator<Item = (PageIndex, T)>,
    mut act: impl FnMut(PageRange, T),
) {
    let mut run: Option<(u32, u32, T)> = None;
    for (page, tag) in pages {
        run = match run {
            Some((start, end, same)) if end == page.0 && same == tag => Some((start, end + 1, tag)),
            before => {
                if let Some((range, tag)) =
                    before.and_then(|(start, end, tag)| Some((PageRange::new(start, end)?, tag)))
                {
                    act(range, tag);
                }
                Some((page.0, page.0 + 1, tag))
            }
        };
    }
    if let Some((range, tag)) = run.and_then(|(start, end, tag)| Some((PageRange::new(start, end)?, tag))) {
        act(range, tag);
    }
}
