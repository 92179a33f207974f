//! Records: what is known of each chunk of a claim, from its first step to the end of its lease.
//!
//! A record is at once the claim's **interval notifier** (its range, its token, its sequence word; registered before the
//! claim takes anything), its **ticket** (the record's number, which signs the page words it has made busy), and its
//! **hold** (page and generation of everything it got). It lies in a table of the space's own mappings: claiming
//! allocates nothing, and the fault path can read it.
//!
//! Life of a record: `Free -> Claiming -> Committing -> Held (-> Ended) -> Free`. Up to `Claiming`, an invalidation that concerns it
//! makes the claim start again; `Committing` is its commit point; `Ended`, an eager lease
//! gives its pages back. A user's notifier is a record too, in `Subscribed`.
//!
//! Invariants:
//! - A record is changed by the thread that opened it only, or by whoever owns the lease later. Others read its header:
//!   region, range and token, to notify it; thread and phase, to find out whose ticket a busy word carries.
//! - A notifier word is never reset: whoever has begun an invalidation ends it on the same word, whatever has become of
//!   the record.
//! - `in_flight` counts the records that want to hear of invalidations, and is raised before the claim looks at any word.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::{AtomicU32, Ordering};

use pagelease_protocol::{Cause, NotifierWord, Origin, OwnerId, PageIndex, PageRange, Seq, Token, notifier};
use pagelease_sys::Errno;

use crate::sync::{Table, Word, Zeroed, relax};

/// The most granules a chunk of a claim has busy at a time.
///
/// A chunk is one system call, and with another thread running one TLB shootdown, which costs as much as zapping 150
/// pages; it is also how long a touch may find its page busy. 4096 keeps the first below 4 % and the second at half a
/// millisecond.
pub(crate) const CHUNK: usize = if cfg!(pagelease_shuttle) { 4 } else { 4096 };

/// Records of a space: the most chunks that are claimed or held at a time.
pub(crate) const RECORDS: usize = if cfg!(pagelease_shuttle) { 64 } else { 4096 };

/// The ticket of whoever serves a fault. It cannot be interrupted by a touch, so nobody needs to find it.
pub(crate) const SERVICE_TICKET: u16 = 0;

/// The ticket of whoever serves a touch of a claim's own thread, under that claim's `busy`.
pub(crate) const BORROWED: u16 = u16::MAX;

const MAP_WORDS: usize = RECORDS / 64;

/// Where a record is in its life.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
#[repr(u32)]
pub(crate) enum Phase {
    Free = 0,
    Claiming = 1,
    Committing = 2,
    Held = 3,
    Subscribed = 4,
    Ended = 5,
}

/// What a claim did with a page of its record.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) struct Entry {
    pub(crate) page: PageIndex,
    pub(crate) generation: u16,
    /// Taken busy by this record; otherwise the device had the page, and the record joined its hold.
    pub(crate) taken: bool,
}

impl Entry {
    const TAKEN: u64 = 1 << 16;

    #[inline]
    fn pack(self) -> u64 {
        u64::from(self.page.0) << 32 | if self.taken { Self::TAKEN } else { 0 } | u64::from(self.generation)
    }

    #[expect(clippy::cast_possible_truncation, reason = "takes the packed fields apart")]
    #[inline]
    fn unpack(bits: u64) -> Self {
        Self { page: PageIndex((bits >> 32) as u32), generation: bits as u16, taken: bits & Self::TAKEN != 0 }
    }
}

/// The part of a record that other threads read.
pub(crate) struct Header {
    notifier: Word,
    phase: AtomicU32,
    thread: AtomicU32,
    region: AtomicU32,
    owner: AtomicU32,
    start: AtomicU32,
    end: AtomicU32,
    len: AtomicU32,
    next: AtomicU32,
    token: AtomicU64,
}

#[cfg(not(pagelease_shuttle))]
// SAFETY: made of atomic integers, for which zero bits are zero.
unsafe impl Zeroed for Header {}

#[cfg(pagelease_shuttle)]
impl Default for Header {
    fn default() -> Self {
        Self {
            notifier: Word::default(),
            phase: AtomicU32::new(0),
            thread: AtomicU32::new(0),
            region: AtomicU32::new(0),
            owner: AtomicU32::new(0),
            start: AtomicU32::new(0),
            end: AtomicU32::new(0),
            len: AtomicU32::new(0),
            next: AtomicU32::new(0),
            token: AtomicU64::new(0),
        }
    }
}
#[cfg(pagelease_shuttle)]
impl Zeroed for Header {}

/// What a record is opened for.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Opening {
    pub(crate) thread: u32,
    pub(crate) region: u32,
    pub(crate) owner: OwnerId,
    pub(crate) range: PageRange,
    pub(crate) token: Option<Token>,
}

/// An invalidation that has begun on some records: which ones. Filled in where it lies: it is large, and a touching thread may
/// have no more than its alternate signal stack.
pub(crate) struct Begun([u64; MAP_WORDS]);

impl Begun {
    pub(crate) const NONE: Self = Self([0; MAP_WORDS]);
}

pub(crate) struct Records {
    used: Table<EntryWord>,
    headers: Table<Header>,
    entries: Table<EntryWord>,
    in_flight: AtomicU32,
}

/// A table element that exploration need not see: only its owner writes it.
#[repr(transparent)]
#[derive(Default)]
pub(crate) struct EntryWord(AtomicU64);
#[cfg(not(pagelease_shuttle))]
// SAFETY: an atomic integer of zero bits is zero.
unsafe impl Zeroed for EntryWord {}
#[cfg(pagelease_shuttle)]
impl Zeroed for EntryWord {}

impl Records {
    pub(crate) fn new() -> Result<Self, Errno> {
        Ok(Self {
            used: Table::zeroed(MAP_WORDS)?,
            headers: Table::zeroed(RECORDS)?,
            entries: Table::zeroed(RECORDS * CHUNK)?,
            in_flight: AtomicU32::new(0),
        })
    }

    /// Opens a record in `Claiming` (or `Subscribed`, without a token); `None` when all are in use.
    pub(crate) fn open(&self, opening: Opening) -> Option<Record<'_>> {
        let id = self.reserve()?;
        let record = Record { records: self, id };
        let header = record.header();
        header.thread.store(opening.thread, Ordering::Relaxed);
        header.region.store(opening.region, Ordering::Relaxed);
        header.owner.store(u32::from(opening.owner.get()), Ordering::Relaxed);
        header.start.store(opening.range.start(), Ordering::Relaxed);
        header.end.store(opening.range.end(), Ordering::Relaxed);
        header.len.store(0, Ordering::Relaxed);
        header.next.store(0, Ordering::Relaxed);
        header.token.store(opening.token.map_or(0, |token| token.0), Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        let phase = if opening.token.is_some() { Phase::Claiming } else { Phase::Subscribed };
        header.phase.store(phase as u32, Ordering::SeqCst);
        Some(record)
    }

    fn reserve(&self) -> Option<u16> {
        for (word_index, word) in self.used.iter().enumerate() {
            let mut bits = word.0.load(Ordering::Relaxed);
            while bits != u64::MAX {
                let free = bits.trailing_ones();
                match word.0.compare_exchange(bits, bits | 1 << free, Ordering::Acquire, Ordering::Relaxed) {
                    Ok(_) => return u16::try_from(word_index * 64 + free as usize + 1).ok(),
                    Err(found) => bits = found,
                }
            }
        }
        None
    }

    /// The record numbered `id`, which must be one.
    pub(crate) fn get(&self, id: u16) -> Option<Record<'_>> {
        (id != SERVICE_TICKET && usize::from(id) <= RECORDS).then_some(Record { records: self, id })
    }

    fn live(&self) -> impl Iterator<Item = Record<'_>> {
        self.used.iter().enumerate().flat_map(move |(word_index, word)| {
            let mut bits = word.0.load(Ordering::SeqCst);
            core::iter::from_fn(move || {
                let bit = (bits != 0).then(|| bits.trailing_zeros())?;
                bits &= bits - 1;
                #[expect(clippy::cast_possible_truncation, reason = "at most RECORDS, which fits")]
                Some(Record { records: self, id: (word_index * 64) as u16 + bit as u16 + 1 })
            })
        })
    }

    /// The oldest claim or lease by which `thread` holds `page` of `region`, whose holds have this `generation`. A lease that
    /// has lost the page has another; and a claim holds none of those that it takes, up to its commit point.
    pub(crate) fn holding(&self, thread: u32, region: u32, page: PageIndex, generation: u16) -> Option<Record<'_>> {
        let range = PageRange::single(page)?;
        let holds = |record: &Record<'_>| {
            record.first_in(region, range).is_some_and(|entry| match record.phase() {
                Phase::Held | Phase::Committing => entry.generation == generation,
                Phase::Claiming => entry.generation == generation && !entry.taken,
                Phase::Free | Phase::Subscribed | Phase::Ended => false,
            })
        };
        self.live().filter(|record| record.thread() == thread).filter(holds).min_by_key(Record::token)
    }

    /// Whether there is anybody at all who might want to hear of an invalidation. Signal-safe.
    #[inline]
    pub(crate) fn any_in_flight(&self) -> bool {
        self.in_flight.load(Ordering::SeqCst) != 0
    }

    /// An invalidation of `range` begins: every subscription it concerns hears of it, and is noted in `begun`. Signal-safe.
    ///
    /// `false` when there is nobody to tell, which costs one load.
    pub(crate) fn begin(&self, begun: &mut Begun, region: u32, range: PageRange, cause: Cause, origin: Origin) -> bool {
        if !self.any_in_flight() {
            return false;
        }
        for record in self.live() {
            if record.hears(region, range) && record.is_concerned(cause, origin) {
                record.change(|word| word.begin());
                let index = usize::from(record.id - 1);
                begun.0[index / 64] |= 1 << (index % 64);
            }
        }
        true
    }

    /// The invalidation has ended. Signal-safe.
    pub(crate) fn end(&self, begun: &Begun) {
        for (word_index, &word) in begun.0.iter().enumerate() {
            let mut bits = word;
            while bits != 0 {
                let index = word_index * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                if let Some(record) = u16::try_from(index + 1).ok().and_then(|id| self.get(id)) {
                    record.change(|word| Some(word.end()));
                }
            }
        }
    }
}

/// A record, by number.
#[derive(Copy, Clone)]
pub(crate) struct Record<'a> {
    records: &'a Records,
    id: u16,
}

impl<'a> Record<'a> {
    fn header(&self) -> &Header {
        &self.records.headers[usize::from(self.id - 1)]
    }

    /// The record's number: the ticket of the words it has made busy.
    pub(crate) fn id(&self) -> u16 {
        self.id
    }

    pub(crate) fn thread(&self) -> u32 {
        self.header().thread.load(Ordering::Relaxed)
    }

    pub(crate) fn token(&self) -> u64 {
        self.header().token.load(Ordering::Relaxed)
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.header().phase.load(Ordering::SeqCst) {
            1 => Phase::Claiming,
            2 => Phase::Committing,
            3 => Phase::Held,
            4 => Phase::Subscribed,
            5 => Phase::Ended,
            _ => Phase::Free,
        }
    }

    /// The claiming device.
    #[expect(clippy::cast_possible_truncation, reason = "stored from a u8")]
    pub(crate) fn owner(&self) -> Option<OwnerId> {
        OwnerId::new(self.header().owner.load(Ordering::Relaxed) as u8)
    }

    /// Moves on within the claim, or from it to the lease.
    pub(crate) fn set_phase(&self, phase: Phase) {
        self.header().phase.store(phase as u32, Ordering::SeqCst);
        if phase == Phase::Held {
            self.records.in_flight.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Ends the record's life; nothing of it may be used any more.
    pub(crate) fn close(&self) {
        if !matches!(self.phase(), Phase::Held | Phase::Ended) {
            self.records.in_flight.fetch_sub(1, Ordering::SeqCst);
        }
        self.header().phase.store(Phase::Free as u32, Ordering::SeqCst);
        let index = usize::from(self.id - 1);
        self.records.used[index / 64].0.fetch_and(!(1 << (index % 64)), Ordering::Release);
    }

    /// How many entries it has.
    pub(crate) fn len(&self) -> usize {
        self.header().len.load(Ordering::Relaxed) as usize
    }

    /// For adding entries, from the first on.
    pub(crate) fn writer(self) -> Writer<'a> {
        let first = usize::from(self.id - 1) * CHUNK;
        let header = &self.records.headers[usize::from(self.id - 1)];
        let (entries, published) = (&self.records.entries[first..first + CHUNK], &header.len);
        Writer { entries, len: 0, mark: 0, published }
    }

    pub(crate) fn clear(&self) {
        self.header().len.store(0, Ordering::Release);
    }

    pub(crate) fn entry(&self, index: usize) -> Entry {
        Entry::unpack(self.records.entries[usize::from(self.id - 1) * CHUNK + index].0.load(Ordering::Relaxed))
    }

    pub(crate) fn entries(self) -> impl Iterator<Item = Entry> + use<'a> {
        let len = self.records.headers[usize::from(self.id - 1)].len.load(Ordering::Acquire) as usize;
        let first = usize::from(self.id - 1) * CHUNK;
        self.records.entries[first..first + len].iter().map(|entry| Entry::unpack(entry.0.load(Ordering::Relaxed)))
    }

    /// The record behind this one in its lease's chain.
    pub(crate) fn next(&self) -> u16 {
        #[expect(clippy::cast_possible_truncation, reason = "stored from a u16")]
        {
            self.header().next.load(Ordering::Relaxed) as u16
        }
    }

    pub(crate) fn set_next(&self, next: u16) {
        self.header().next.store(u32::from(next), Ordering::Relaxed);
    }

    /// Whether an invalidation of `range` is news to it: to a user's notifier, any within its range; to a claim, one of a
    /// page that it has. Pages of its range that it has not come to yet it will look at when it does.
    fn hears(&self, region: u32, range: PageRange) -> bool {
        match self.phase() {
            Phase::Subscribed => self.overlaps(region, range),
            Phase::Claiming | Phase::Committing => self.has_any(region, range),
            Phase::Held | Phase::Ended | Phase::Free => false,
        }
    }

    /// Whether one of its entries lies in `range`. They ascend.
    fn has_any(&self, region: u32, range: PageRange) -> bool {
        self.first_in(region, range).is_some()
    }

    /// The first of its entries that lies in `range`.
    fn first_in(&self, region: u32, range: PageRange) -> Option<Entry> {
        if !self.overlaps(region, range) {
            return None;
        }
        let (mut from, mut to) = (0, self.header().len.load(Ordering::Acquire) as usize);
        while from < to {
            let middle = from.midpoint(to);
            if self.entry(middle).page.0 < range.start() { from = middle + 1 } else { to = middle }
        }
        (from < self.len()).then(|| self.entry(from)).filter(|entry| range.contains(entry.page))
    }

    fn overlaps(&self, region: u32, range: PageRange) -> bool {
        let header = self.header();
        header.region.load(Ordering::Relaxed) == region
            && PageRange::new(header.start.load(Ordering::Relaxed), header.end.load(Ordering::Relaxed))
                .is_some_and(|own| own.overlaps(range))
    }

    fn is_concerned(&self, cause: Cause, origin: Origin) -> bool {
        let header = self.header();
        let Some(owner) = self.owner() else { return false };
        let token = match header.token.load(Ordering::Relaxed) {
            0 => None,
            token => Some(Token(token)),
        };
        if crate::mutant::active(crate::mutant::Mutant::FilterByThread) {
            return header.thread.load(Ordering::Relaxed) != crate::sync::tid();
        }
        notifier::concerns(cause, origin, owner, token)
    }

    fn change(&self, step: impl Fn(NotifierWord) -> Option<NotifierWord>) {
        let word = &self.header().notifier;
        let mut turn = 0;
        loop {
            let current = word.load();
            if let Some(next) = step(NotifierWord::from_bits(current))
                && word.swap_if(current, next.bits()).is_ok()
            {
                return;
            }
            turn += 1;
            relax(turn);
        }
    }

    /// The sequence number to act by; waits while an invalidation of the range runs.
    pub(crate) fn read_begin(&self) -> Seq {
        let mut turn = 0;
        loop {
            if let Some(seq) = NotifierWord::from_bits(self.header().notifier.load()).read_begin() {
                return seq;
            }
            turn += 1;
            relax(turn);
        }
    }

    /// Whether an invalidation that concerns the record has begun since `seq`.
    pub(crate) fn read_retry(&self, seq: Seq) -> bool {
        NotifierWord::from_bits(self.header().notifier.load()).read_retry(seq)
    }
}

/// Adds entries to a record.
pub(crate) struct Writer<'a> {
    entries: &'a [EntryWord],
    len: u32,
    mark: u32,
    /// The length that others see.
    published: &'a AtomicU32,
}

impl Writer<'_> {
    /// Adds an entry; before the page's word is changed, so that a touch that interrupts finds it.
    #[inline]
    pub(crate) fn push(&mut self, entry: Entry) {
        self.entries[self.len as usize].0.store(entry.pack(), Ordering::Relaxed);
        self.len += 1;
        self.published.store(self.len, Ordering::Release);
    }

    /// Takes the last one back: the page's word had changed.
    pub(crate) fn pop(&mut self) {
        self.len -= 1;
        self.published.store(self.len, Ordering::Release);
    }

    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.room() == 0
    }

    /// How many more can be added.
    #[inline]
    pub(crate) fn room(&self) -> usize {
        self.entries.len() - self.len as usize
    }

    /// Begins to count what is added.
    pub(crate) fn mark(&mut self) {
        self.mark = self.len;
    }

    /// How many were added since the mark.
    pub(crate) fn added(&self) -> u32 {
        self.len - self.mark
    }
}
