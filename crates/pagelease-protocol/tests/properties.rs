//! Random event sequences over page words, against a model that knows the truth; and the same for notifier words.
//!
//! The model keeps for each page what the word only claims: who really can reach the page, which leases really live, who
//! really waits. Every event goes through the transition functions as the runtime uses them, and after every event word
//! and truth must agree.

use pagelease_protocol::claim::{self, ClaimStep};
use pagelease_protocol::hold::{self, Release};
use pagelease_protocol::touch::{self, Service, TouchStep};
use pagelease_protocol::{Access, NotifierWord, Obstacle, OwnerId, PageState, PageWord, Seq};
use proptest::collection::vec;
use proptest::prelude::*;

const DEVICES: u8 = 3;
const PAGES: usize = 3;

fn device(id: u8) -> OwnerId {
    OwnerId::new(id).expect("small and not zero")
}

fn devices() -> impl Iterator<Item = OwnerId> {
    (1..=DEVICES).map(device)
}

/// What the CPU's page table has.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
enum Mapped {
    No,
    ReadOnly,
    Writable,
}

/// A lease of one page.
#[derive(Copy, Clone, Debug)]
struct Lease {
    device: OwnerId,
    generation: u16,
    /// The truth: nobody has broken it.
    live: bool,
}

/// Who has the page busy.
#[derive(Copy, Clone, Debug)]
enum Busy {
    Claim { device: OwnerId, access: Access, generation: u16, ticket: u16, prepared: bool, populated: bool },
    Touch { service: Service, generation: u16, signed: bool },
}

/// One page: its word, and the truth.
#[derive(Clone, Debug)]
struct Page {
    word: PageWord,
    cpu: Mapped,
    exists: bool,
    /// Devices that may reach the page, as far as their own tables go.
    reaches: Vec<OwnerId>,
    leases: Vec<Lease>,
    busy: Option<Busy>,
    waiting: bool,
    asleep: bool,
    next_ticket: u16,
}

#[derive(Copy, Clone, Debug)]
enum Event {
    /// A device claims: takes the page busy, or joins.
    Claim { device: u8, write_only: bool },
    /// A claim that has the page busy does what it owes.
    Prepare,
    /// It commits.
    Commit,
    /// It gives up.
    Undo,
    /// The claiming thread touches the page, behind the commit point.
    TakeOver,
    /// A CPU access.
    Touch { write: bool, sleeps: bool },
    /// The touch that has the page busy is done.
    Finish,
    /// The touch that has the page busy could not map it.
    Abandon,
    /// Some lease ends, live or not.
    Release { which: usize },
    /// Somebody ends a lease that never was: another generation, another device.
    ReleaseWrong { device: u8, newer_by: u16 },
    /// The hold limit passes.
    Break,
    /// A claim goes to sleep on the word.
    Sleep,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (1..=DEVICES, any::<bool>()).prop_map(|(device, write_only)| Event::Claim { device, write_only }),
        3 => Just(Event::Prepare),
        4 => Just(Event::Commit),
        1 => Just(Event::Undo),
        1 => Just(Event::TakeOver),
        4 => (any::<bool>(), any::<bool>()).prop_map(|(write, sleeps)| Event::Touch { write, sleeps }),
        4 => Just(Event::Finish),
        1 => Just(Event::Abandon),
        4 => (0..8usize).prop_map(|which| Event::Release { which }),
        1 => (1..=DEVICES, prop_oneof![Just(0), Just(1), Just(u16::MAX)]).prop_map(|(device, newer_by)| Event::ReleaseWrong { device, newer_by }),
        1 => Just(Event::Break),
        1 => Just(Event::Sleep),
    ]
}

impl Page {
    fn new(generation: u16) -> Self {
        // A page of which `generation` holds were broken before; zero is the word of a page that nobody has touched.
        Self {
            word: PageWord::from_bits(u32::from(generation) << 16),
            cpu: Mapped::No,
            exists: false,
            reaches: Vec::new(),
            leases: Vec::new(),
            busy: None,
            waiting: false,
            asleep: false,
            next_ticket: 1,
        }
    }

    fn live(&self) -> usize {
        self.leases.iter().filter(|lease| lease.live).count()
    }

    fn put(&mut self, next: PageWord) {
        assert!(next.populated() || !self.word.populated(), "a page that exists goes on existing");
        if self.word.sleepers() && !next.sleepers() {
            self.asleep = false;
        }
        if self.word.waiters() && !next.waiters() {
            self.waiting = false;
        }
        self.word = next;
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Claim { device: id, write_only } => self.claim(device(id), write_only),
            Event::Prepare => self.prepare(),
            Event::Commit => self.commit(),
            Event::Undo => self.undo(),
            Event::TakeOver => self.take_over(),
            Event::Touch { write, sleeps } => self.touch(write, sleeps),
            Event::Finish => self.finish(false),
            Event::Abandon => self.finish(true),
            Event::Release { which } => self.release(which),
            Event::ReleaseWrong { device: id, newer_by } => self.release_wrong(device(id), newer_by),
            Event::Break => self.break_hold(),
            Event::Sleep => self.sleep(),
        }
        self.hand_back();
    }

    fn claim(&mut self, device: OwnerId, write_only: bool) {
        let access = if write_only { Access::ExclusiveWrite } else { Access::Exclusive };
        let step = claim::step(self.word, device, access);
        if self.word.waiters() {
            assert!(matches!(step, ClaimStep::Wait(_)), "a waiter goes first: {:?}", self.word);
        }
        match step {
            ClaimStep::Join(next) => {
                assert!(self.word.usable_by(device), "joined what it does not have: {:?}", self.word);
                self.leases.push(Lease { device, generation: self.word.generation(), live: true });
                self.put(next);
            }
            ClaimStep::Take(next) => {
                let (generation, ticket) = (self.word.generation(), self.next_ticket);
                self.next_ticket = self.next_ticket.wrapping_add(1).max(1);
                let signed = next.signed(ticket);
                assert_eq!(signed.ticket(), Some(ticket));
                assert_eq!(signed.unsigned(generation), next, "signing loses nothing");
                self.put(signed);
                let populated = self.word.populated();
                self.busy = Some(Busy::Claim { device, access, generation, ticket, prepared: false, populated });
            }
            ClaimStep::Wait(Obstacle::Busy) => assert!(self.busy.is_some()),
            ClaimStep::Wait(Obstacle::Held) => assert!(self.live() > 0),
            ClaimStep::Wait(Obstacle::Waiter) => assert!(self.waiting),
        }
    }

    fn prepare(&mut self) {
        let Some(Busy::Claim { device, access, prepared, populated, .. }) = &mut self.busy else { return };
        let previous = claim::previous_owner(self.word, *device);
        assert!(previous != Some(*device), "no device is invalidated for its own claim");
        if let Some(previous) = previous {
            self.reaches.retain(|&other| other != previous);
        }
        if !self.word.populated() {
            self.exists = true;
        }
        *populated = true;
        if claim::needs_revoke(self.word) {
            self.cpu = match (*access, self.cpu) {
                (Access::Exclusive, _) | (_, Mapped::No) => Mapped::No,
                (Access::ExclusiveWrite, _) => Mapped::ReadOnly,
            };
        }
        *prepared = true;
    }

    fn commit(&mut self) {
        let Some(Busy::Claim { device, access, generation, ticket, prepared: true, .. }) = self.busy else { return };
        assert_eq!(self.word.ticket(), Some(ticket), "nobody else changes a word that a claim has signed");
        self.reaches.push(device);
        self.reaches.dedup();
        self.leases.push(Lease { device, generation, live: true });
        self.busy = None;
        self.put(claim::commit(self.word.unsigned(generation), device, access));
    }

    fn undo(&mut self) {
        let Some(Busy::Claim { generation, populated, .. }) = self.busy else { return };
        // Whoever owned it, the claiming device included, is invalidated first.
        self.reaches.clear();
        self.busy = None;
        self.put(claim::undo(self.word.unsigned(generation), populated));
    }

    fn take_over(&mut self) {
        let Some(Busy::Claim { generation, prepared: true, .. }) = self.busy else { return };
        self.reaches.clear();
        self.cpu = Mapped::Writable;
        self.busy = None;
        self.put(touch::take_over(self.word.unsigned(generation)));
        assert_ne!(self.word.generation(), generation, "the claim can tell that it lost the page");
    }

    /// An access that the page table allows does not reach the protocol at all.
    fn touch(&mut self, write: bool, sleeps: bool) {
        let allowed = self.cpu == Mapped::Writable || (self.cpu == Mapped::ReadOnly && !write);
        if allowed {
            return;
        }
        if !self.exists {
            // The kernel fills an absent page without a trap. That it is not a device's is what `populate` is for.
            assert_eq!(self.word.state(), PageState::Cpu, "a device has a page that does not trap");
            self.exists = true;
            self.cpu = Mapped::Writable;
            return;
        }
        self.serve(write, sleeps);
    }

    fn serve(&mut self, write: bool, sleeps: bool) {
        match touch::step(self.word, write) {
            TouchStep::Take(next, service) => {
                let (generation, signed) = (self.word.generation(), !self.word.held());
                match service {
                    Service::Map => assert_eq!(self.word.owner(), None),
                    Service::Restore(owner) => {
                        assert_eq!(self.word.owner(), Some(owner));
                        assert_eq!(self.live(), 0, "a held page is not restored");
                    }
                    Service::MapReadOnly => assert!(!write && self.word.state() == PageState::ExclusiveWrite),
                }
                self.put(if signed { next.signed(0) } else { next });
                self.busy = Some(Busy::Touch { service, generation, signed });
            }
            TouchStep::Wait(obstacle) => {
                match obstacle {
                    Obstacle::Busy => assert!(self.busy.is_some()),
                    Obstacle::Held => assert!(self.live() > 0),
                    Obstacle::Waiter => unreachable!("a touch does not wait for another"),
                }
                self.waiting = true;
                self.asleep |= sleeps;
                self.put(touch::wait(self.word, sleeps));
            }
        }
    }

    fn finish(&mut self, failed: bool) {
        let Some(Busy::Touch { service, generation, signed }) = self.busy else { return };
        if let Service::Restore(owner) = service {
            self.reaches.retain(|&other| other != owner);
        }
        self.cpu = match (service, failed) {
            (_, true) => self.cpu,
            (Service::MapReadOnly, _) => Mapped::ReadOnly,
            _ => Mapped::Writable,
        };
        let word = if signed { self.word.unsigned(generation) } else { self.word };
        self.busy = None;
        self.put(match (service, failed) {
            (service, true) => touch::abandon(word, service),
            (Service::MapReadOnly, _) => touch::commit_read_only(word),
            _ => touch::commit(word),
        });
    }

    fn release(&mut self, which: usize) {
        if self.leases.is_empty() {
            return;
        }
        let which = which % self.leases.len();
        let lease = self.leases[which];
        match hold::release(self.word, lease.device, lease.generation) {
            Release::Ended(next) => {
                assert!(lease.live, "a broken lease ended as if it were whole");
                assert_eq!(next.holds() + 1, self.word.holds());
                self.leases.swap_remove(which);
                self.put(next);
            }
            Release::Broken => {
                assert!(!lease.live, "a whole lease was said to be broken: {:?}", self.word);
                self.leases.swap_remove(which);
            }
            Release::Wait => {
                assert!(lease.live && matches!(self.busy, Some(Busy::Touch { service: Service::MapReadOnly, .. })));
            }
        }
    }

    fn release_wrong(&self, device: OwnerId, newer_by: u16) {
        let generation = self.word.generation().wrapping_add(newer_by);
        if newer_by != 0 || self.word.owner() != Some(device) || self.live() == 0 {
            assert_eq!(hold::release(self.word, device, generation), Release::Broken);
            assert!(!hold::is_live(self.word, device, generation));
        }
    }

    fn break_hold(&mut self) {
        match hold::break_hold(self.word) {
            Some(next) => {
                assert!(self.live() > 0 && self.busy.is_none());
                assert_eq!(next.generation(), self.word.generation().wrapping_add(1));
                for lease in &mut self.leases {
                    lease.live = false;
                }
                self.put(next);
            }
            None => assert!(self.live() == 0 || self.busy.is_some()),
        }
    }

    fn sleep(&mut self) {
        if matches!(claim::step(self.word, device(1), Access::Exclusive), ClaimStep::Wait(_)) {
            self.asleep = true;
            self.put(hold::sleep(self.word));
        }
    }

    /// Whoever left the word so that it owes a touch its page serves that touch.
    fn hand_back(&mut self) {
        let nobody_else_will = self.waiting && self.busy.is_none() && self.live() == 0;
        assert_eq!(self.word.owes_hand_back(), nobody_else_will, "{:?}", self.word);
        if nobody_else_will {
            self.serve(true, false);
            assert!(self.busy.is_some(), "nothing is in the way of a touch that is owed its page");
        }
    }

    fn check(&self) {
        let word = self.word;
        word.assert_valid();
        assert_eq!(PageWord::from_bits(word.bits()), word);
        assert_eq!(word.busy(), self.busy.is_some());
        assert_eq!(word.waiters(), self.waiting);
        assert_eq!(usize::from(word.holds()), self.live());
        assert!(!word.populated() || self.exists);
        if self.asleep {
            assert!(word.sleepers(), "asleep on a word that will wake nobody: {word:?}");
            assert!(word.busy() || word.held() || word.waiters(), "asleep, and nothing to wait for: {word:?}");
        }
        // Who can use the page? A device needs both the word's leave and a way to reach it.
        let usable: Vec<_> = devices().filter(|&device| word.usable_by(device)).collect();
        assert!(usable.len() <= 1, "two devices may use {word:?}");
        for &device in &usable {
            assert!(self.reaches.contains(&device), "{device} was given {word:?} without mapping it");
            assert!(self.exists, "a device has a page that would not trap: {word:?}");
            match word.state() {
                PageState::Cpu => panic!("{device} may use the CPU's page"),
                PageState::Exclusive => assert_eq!(self.cpu, Mapped::No, "{word:?}"),
                PageState::ExclusiveWrite => assert_ne!(self.cpu, Mapped::Writable, "{word:?}"),
            }
        }
        // While a page changes hands, a device that still reaches it does not share it with a writing CPU.
        if self.cpu == Mapped::Writable {
            assert!(usable.is_empty(), "CPU and {} share {word:?}", usable[0]);
            assert!(self.reaches.is_empty() || self.busy.is_some(), "{:?} reach the CPU's {word:?}", self.reaches);
        }
        assert!(self.reaches.len() <= 1, "two devices reach {word:?}: {:?}", self.reaches);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn word_and_truth_agree_after_every_event(
        start in prop_oneof![Just(0u16), Just(u16::MAX), any::<u16>()],
        events in vec((0..PAGES, event()), 1..200),
    ) {
        let mut pages: Vec<Page> = (0..PAGES).map(|_| Page::new(start)).collect();
        for (page, event) in events {
            let others: Vec<_> = pages.iter().map(|page| page.word).collect();
            pages[page].apply(event);
            pages[page].check();
            for (index, before) in others.into_iter().enumerate().filter(|&(index, _)| index != page) {
                assert_eq!(pages[index].word, before);
            }
        }
    }

    /// Whatever else happens, a page that all let go of comes back to the CPU and is the CPU's alone.
    #[test]
    fn a_page_that_all_let_go_of_comes_back(events in vec(event(), 1..200)) {
        let mut page = Page::new(0);
        for event in events {
            page.apply(event);
            page.check();
        }
        for _ in 0..4 {
            for event in [Event::Prepare, Event::Commit, Event::Finish, Event::Break, Event::Touch { write: true, sleeps: false }] {
                page.apply(event);
                page.check();
            }
        }
        assert_eq!(page.cpu, Mapped::Writable);
        assert_eq!(page.word.state(), PageState::Cpu);
        assert!(page.reaches.is_empty() && !page.waiting && !page.asleep);
    }

    /// A signed word behaves as a busy one, whatever its ticket looks like.
    #[test]
    fn a_ticket_is_never_taken_for_a_generation(generation: u16, ticket: u16, owner in 0..=DEVICES, write_only: bool) {
        let access = if write_only { Access::ExclusiveWrite } else { Access::Exclusive };
        let mut word = PageWord::from_bits(u32::from(generation) << 16);
        if let Some(owner) = OwnerId::new(owner) {
            let ClaimStep::Take(taken) = claim::step(word, owner, access) else { unreachable!() };
            let held = claim::commit(taken, owner, access);
            let Release::Ended(free) = hold::release(held, owner, generation) else { unreachable!() };
            word = free;
        }
        let TouchStep::Take(taken, _) = touch::step(word, true) else { unreachable!() };
        let signed = taken.signed(ticket);
        for device in devices() {
            prop_assert!(!signed.usable_by(device));
            prop_assert!(!hold::is_live(signed, device, ticket));
            prop_assert_eq!(hold::release(signed, device, ticket), Release::Broken);
            prop_assert_eq!(claim::step(signed, device, access), ClaimStep::Wait(Obstacle::Busy));
        }
        prop_assert_eq!(hold::break_hold(signed), None);
        prop_assert_eq!(touch::step(signed, true), TouchStep::Wait(Obstacle::Busy));
        let waited = touch::wait(hold::sleep(signed), true);
        prop_assert_eq!(waited.ticket(), Some(ticket), "waiting leaves the ticket alone");
        prop_assert_eq!(touch::commit(waited.unsigned(generation)).generation(), generation);
    }
}

#[test]
fn as_many_leases_as_a_word_can_count_and_no_more() {
    let (device, other) = (device(1), device(2));
    let ClaimStep::Take(taken) = claim::step(PageWord::default(), device, Access::Exclusive) else { panic!() };
    let mut word = claim::commit(taken, device, Access::Exclusive);
    for holds in 2..=PageWord::HOLDS_MAX {
        let ClaimStep::Join(next) = claim::step(word, device, Access::Exclusive) else { panic!("{word:?}") };
        assert_eq!(next.holds(), holds);
        word = next;
    }
    for claimer in [device, other] {
        assert_eq!(claim::step(word, claimer, Access::Exclusive), ClaimStep::Wait(Obstacle::Held));
    }
    for _ in 0..PageWord::HOLDS_MAX {
        let Release::Ended(next) = hold::release(word, device, 0) else { panic!("{word:?}") };
        word = next;
    }
    assert!(!word.held() && word.usable_by(device));
    assert_eq!(hold::release(word, device, 0), Release::Broken, "one too many");
}

#[test]
fn an_upgrade_takes_the_page_anew_once_nobody_holds_it() {
    let device = device(1);
    let ClaimStep::Take(taken) = claim::step(PageWord::default(), device, Access::ExclusiveWrite) else { panic!() };
    let held = claim::commit(taken, device, Access::ExclusiveWrite);
    assert_eq!(claim::step(held, device, Access::Exclusive), ClaimStep::Wait(Obstacle::Held));
    let Release::Ended(free) = hold::release(held, device, 0) else { panic!() };
    assert!(matches!(claim::step(free, device, Access::ExclusiveWrite), ClaimStep::Join(_)));
    let ClaimStep::Take(taken) = claim::step(free, device, Access::Exclusive) else { panic!() };
    assert!(claim::needs_revoke(taken), "the CPU can still read");
    assert_eq!(claim::previous_owner(taken, device), None);
    let upgraded = claim::commit(taken, device, Access::Exclusive);
    assert!(
        matches!(claim::step(upgraded, device, Access::ExclusiveWrite), ClaimStep::Join(_)),
        "more than it asks for"
    );
}

#[test]
fn a_generation_comes_round_after_65536_breaks() {
    let device = device(1);
    let mut word = PageWord::default();
    for turn in 0..=u16::MAX {
        assert_eq!(word.generation(), turn);
        let ClaimStep::Take(taken) = claim::step(word, device, Access::Exclusive) else { panic!() };
        let held = claim::commit(taken, device, Access::Exclusive);
        let broken = hold::break_hold(held).expect("held and not busy");
        assert_eq!(hold::release(broken, device, turn), Release::Broken);
        let TouchStep::Take(taken, Service::Restore(owner)) = touch::step(broken, true) else { panic!() };
        assert_eq!(owner, device);
        word = touch::commit(taken);
    }
    assert_eq!(word.generation(), 0);
}

/// What the notifier's word should say, without wrapping.
#[derive(Default)]
struct Invalidations {
    begun: u64,
    running: u64,
}

const WRAP: u64 = 1 << 24;

#[derive(Copy, Clone, Debug)]
enum NotifierEvent {
    Begin,
    End,
    ReadBegin,
    /// So many invalidations come and go.
    Pass(u32),
}

fn notifier_event() -> impl Strategy<Value = NotifierEvent> {
    prop_oneof![
        3 => Just(NotifierEvent::Begin),
        3 => Just(NotifierEvent::End),
        3 => Just(NotifierEvent::ReadBegin),
        1 => (1..500u32).prop_map(NotifierEvent::Pass),
    ]
}

proptest! {
    /// Starts just below the wrap of the counter, so that most sequences cross it.
    #[test]
    fn a_reader_retries_exactly_if_an_invalidation_began_since(
        below in 0..64u32,
        events in vec(notifier_event(), 1..200),
    ) {
        let first = (1 << 24) - 1 - below;
        let mut word = NotifierWord::from_bits(first << 8);
        let mut truth = Invalidations { begun: u64::from(first), running: 0 };
        let mut seen: Vec<(Seq, u64)> = Vec::new();
        for event in events {
            match event {
                NotifierEvent::Begin => {
                    let next = word.begin();
                    prop_assert_eq!(next.is_none(), truth.running == u64::from(NotifierWord::RUNNING_MAX));
                    if let Some(next) = next {
                        word = next;
                        truth.begun += 1;
                        truth.running += 1;
                    }
                }
                NotifierEvent::End if truth.running > 0 => {
                    word = word.end();
                    truth.running -= 1;
                }
                NotifierEvent::End => {}
                NotifierEvent::ReadBegin => {
                    let seq = word.read_begin();
                    prop_assert_eq!(seq.is_none(), truth.running > 0, "a reader waits while an invalidation runs");
                    seen.extend(seq.map(|seq| (seq, truth.begun)));
                }
                NotifierEvent::Pass(count) => {
                    for _ in 0..count {
                        let Some(next) = word.begin() else { break };
                        word = next.end();
                        truth.begun += 1;
                    }
                }
            }
            prop_assert_eq!(NotifierWord::from_bits(word.bits()), word);
            for &(seq, begun) in &seen {
                prop_assert_eq!(word.read_retry(seq), !(truth.begun - begun).is_multiple_of(WRAP));
            }
        }
    }
}

#[test]
fn a_notifier_counts_255_at_a_time() {
    let mut word = NotifierWord::default();
    let seq = word.read_begin().expect("nothing runs");
    for _ in 0..NotifierWord::RUNNING_MAX {
        word = word.begin().expect("room");
    }
    assert_eq!(word.begin(), None);
    for _ in 0..NotifierWord::RUNNING_MAX {
        assert_eq!(word.read_begin(), None);
        assert!(word.read_retry(seq));
        word = word.end();
    }
    assert!(word.read_begin().is_some() && word.read_retry(seq));
}

#[test]
#[should_panic(expected = "never began")]
fn an_end_without_a_beginning_is_a_defect() {
    let _ = NotifierWord::default().end();
}
