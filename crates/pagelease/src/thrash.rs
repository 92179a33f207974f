//! Thrashing: a page that CPU and device steal from each other, under [`RestorePolicy::Adaptive`].
//!
//! A **fight** shows in one thing: a touch disturbs a device that wants the page at the same moment. It finds the page held,
//! or just being claimed, or the device says that it was using it ([`Invalidation::note_in_use`]). A touch that comes when
//! the device is done disturbs nobody, however soon the page is claimed again: whoever works by turns is not slowed. After
//! [`EVENTS`] claims in a row of which each was disturbed, each soon after the last, the page is *fought over*, and each side
//! keeps it for a minimum:
//!
//! - the CPU, because a claim waits for it (`residency`, whose minimum is smaller otherwise);
//! - the device, because a touch waits until it has had the page for so long: in its own thread it sleeps, a monitor leaves
//!   it asleep in the kernel and comes back to it (`touch::serve`, `SpaceCore::delays`). It sets no `waiters` meanwhile:
//!   the device may claim the page again, and the end of a lease owes nobody anything.
//!
//! The minimum is [`STEP_NS`] first and doubles with each further claim that is disturbed, up to 4 ms; a claim that nobody
//! disturbed halves it, and so the fight ends as it began. A touch waits for it once, whatever happens meanwhile, so a page
//! is never further away than the minimum and the hold limit together. It is about progress only: a claim by
//! another device, a prefetch, a view that is dropped do not look at it.
//!
//! The figures are the drivers': nvidia-uvm calls three events within 500 us of each other thrashing, and throttles the page
//! for 500 us; xe gives its device 5 ms, and doubles. The minimum of both sides is the same, since neither's operations are
//! known to be worth more.
//!
//! A direct-mapped table of pages whose claims were disturbed; a page that is fought over is not driven out.
//!
//! [`RestorePolicy::Adaptive`]: crate::RestorePolicy::Adaptive
//! [`Invalidation::note_in_use`]: crate::Invalidation::note_in_use

use pagelease_protocol::PageIndex;
use pagelease_sys::Errno;

use crate::sync::{AtomicU64, Ordering, Table, by_chance};

const SLOTS: usize = if cfg!(pagelease_shuttle) { 2 } else { 256 };

/// Disturbed claims in a row that make a fight.
const EVENTS: u64 = 3;

/// Claims that are further apart, beyond the minimum of both sides, are no fight: with more time than the longest minimum,
/// neither side needs one.
const WINDOW_NS: u64 = 2 * MINIMUM_MAX_NS;

/// The first minimum.
const STEP_NS: u64 = 500_000;

/// The longest is `STEP_NS << (LEVEL_MAX - 1)`.
const LEVEL_MAX: u64 = 4;

/// The longest that either side keeps a page while the other wants it.
pub(crate) const MINIMUM_MAX_NS: u64 = STEP_NS << (LEVEL_MAX - 1);

/// A slot: page (upper 32 bits), whether its last claim was disturbed (1), disturbed claims (2), level (3; 0: no fight), when
/// it was claimed last in units of 1.024 us (26, wrapping after a minute).
const TIME: u64 = (1 << 26) - 1;
const LEVEL_SHIFT: u32 = 26;
const EVENTS_SHIFT: u32 = 29;
const DISTURBED: u64 = 1 << 31;

pub(crate) struct Thrash {
    /// None unless the policy is adaptive.
    slots: Option<Table<AtomicU64>>,
}

#[derive(Copy, Clone, Debug, Eq, PartialEq)]
struct State {
    disturbed: bool,
    events: u64,
    level: u64,
    age_ns: u64,
}

impl State {
    /// Of `page`, if the slot is about it.
    fn of(slot: u64, page: PageIndex, now_ns: u64) -> Option<Self> {
        (slot != 0 && slot >> 32 == u64::from(page.0)).then(|| Self::any(slot, now_ns))
    }

    /// Of whatever page the slot is about.
    fn any(slot: u64, now_ns: u64) -> Self {
        Self {
            disturbed: slot & DISTURBED != 0,
            events: slot >> EVENTS_SHIFT & 0b11,
            level: slot >> LEVEL_SHIFT & 0b111,
            age_ns: ((now_ns >> 10).wrapping_sub(slot) & TIME) << 10,
        }
    }

    /// As a slot, its age counted back from `now_ns`.
    fn pack(self, page: PageIndex, now_ns: u64) -> u64 {
        let time = (now_ns >> 10).wrapping_sub(self.age_ns >> 10) & TIME;
        let disturbed = if self.disturbed { DISTURBED } else { 0 };
        u64::from(page.0) << 32 | disturbed | self.events << EVENTS_SHIFT | self.level << LEVEL_SHIFT | time
    }

    fn minimum_ns(self) -> u64 {
        if self.level == 0 { 0 } else { STEP_NS << (self.level - 1) }
    }

    /// Whether the last claim is so long ago that there is no fight any more.
    fn is_over(self) -> bool {
        self.age_ns > WINDOW_NS + 2 * self.minimum_ns()
    }

    /// The page is claimed.
    fn claimed(self) -> Option<Self> {
        let next = match self {
            _ if self.is_over() => return None,
            Self { disturbed: true, .. } => self,
            // Nobody wanted the page while the device had it.
            Self { level: 2.., .. } => Self { level: self.level - 1, ..self },
            Self { events: 2.., .. } => Self { level: 0, events: self.events - 1, ..self },
            _ => return None,
        };
        Some(Self { disturbed: false, age_ns: 0, ..next })
    }

    /// A touch finds the page held, or being claimed.
    fn disturb(self) -> Self {
        match self {
            Self { disturbed: true, .. } => self,
            Self { events: EVENTS, .. } => Self { disturbed: true, level: (self.level + 1).min(LEVEL_MAX), ..self },
            _ => {
                let events = self.events + 1;
                Self { disturbed: true, events, level: u64::from(events == EVENTS), ..self }
            }
        }
    }
}

impl Thrash {
    pub(crate) fn new(adaptive: bool) -> Result<Self, Errno> {
        Ok(Self { slots: adaptive.then(|| Table::zeroed(SLOTS)).transpose()? })
    }

    #[inline]
    pub(crate) fn is_watched(&self) -> bool {
        self.slots.is_some()
    }

    fn slot(&self, page: PageIndex) -> Option<&AtomicU64> {
        self.slots.as_ref().map(|slots| &slots[page.as_usize() % SLOTS])
    }

    fn state(&self, page: PageIndex, now_ns: u64) -> Option<State> {
        State::of(self.slot(page)?.load(Ordering::Relaxed), page, now_ns)
    }

    /// A device takes `page`, which has been with the CPU a short time ago.
    pub(crate) fn claimed(&self, page: PageIndex, now_ns: u64) {
        let Some(slot) = self.slot(page) else { return };
        if let Some(state) = State::of(slot.load(Ordering::Relaxed), page, now_ns) {
            slot.store(state.claimed().map_or(0, |next| next.pack(page, now_ns)), Ordering::Relaxed);
        }
    }

    /// A touch finds `page` held by a device, or being claimed: whether it is fought over from now on, and was not before.
    /// Signal-safe.
    pub(crate) fn disturbed(&self, page: PageIndex, now_ns: u64) -> bool {
        let Some(slot) = self.slot(page) else { return false };
        let before = slot.load(Ordering::Relaxed);
        let state = State::of(before, page, now_ns);
        if state.is_none() && before != 0 {
            let other = State::any(before, now_ns);
            if other.level > 0 && !other.is_over() {
                return false;
            }
        }
        let anew = State { disturbed: false, events: 0, level: 0, age_ns: 0 };
        let state = state.filter(|state| !state.is_over()).unwrap_or(anew);
        let next = state.disturb();
        if next != state {
            slot.store(next.pack(page, now_ns), Ordering::Relaxed);
        }
        state.level == 0 && next.level > 0
    }

    /// Until when a touch of `page` leaves it with the device, if it does. Signal-safe.
    pub(crate) fn device_keeps_until(&self, page: PageIndex, now_ns: u64) -> Option<u64> {
        if cfg!(pagelease_shuttle) {
            // Schedules are explored with touches that wait for no visible reason.
            return (self.is_watched() && by_chance()).then_some(0);
        }
        let state = self.state(page, now_ns)?;
        let left_ns = state.minimum_ns().saturating_sub(state.age_ns);
        (left_ns > 0).then_some(now_ns + left_ns)
    }

    /// How long the CPU keeps `page`, at least, because it is fought over.
    #[inline]
    pub(crate) fn minimum_ns(&self, page: PageIndex, now_ns: u64) -> u64 {
        self.state(page, now_ns).filter(|state| !state.is_over()).map_or(0, State::minimum_ns)
    }
}

#[cfg(all(test, not(pagelease_shuttle)))]
mod tests {
    use super::*;

    const PAGE: PageIndex = PageIndex(7);
    const US: u64 = 1024;

    fn thrash() -> Thrash {
        Thrash::new(true).expect("memory for the table")
    }

    /// `claims` that are each disturbed at once, each as soon as both sides have had their minimum; the time at the end.
    fn fight(thrash: &Thrash, claims: u32, mut now: u64) -> u64 {
        for _ in 0..claims {
            thrash.claimed(PAGE, now);
            thrash.disturbed(PAGE, now + 2 * US);
            now += 100 * US + 2 * thrash.minimum_ns(PAGE, now);
        }
        now
    }

    #[test]
    fn three_disturbed_claims_make_a_fight() {
        let (thrash, now) = (thrash(), 1 << 30);
        let found: Vec<_> = (0..4)
            .map(|turn| {
                let now = now + turn * 100 * US;
                thrash.claimed(PAGE, now);
                thrash.disturbed(PAGE, now)
            })
            .collect();
        assert_eq!(found, [false, false, true, false]);
        assert_eq!(thrash.device_keeps_until(PageIndex(8), now), None);
    }

    #[test]
    fn the_minimum_doubles_and_is_bounded() {
        let (thrash, mut now) = (thrash(), 1 << 30);
        now = fight(&thrash, 2, now);
        assert_eq!(thrash.minimum_ns(PAGE, now), 0);
        for expected in [500_000, 1_000_000, 2_000_000, 4_000_000, 4_000_000, 4_000_000] {
            now = fight(&thrash, 1, now);
            assert_eq!(thrash.minimum_ns(PAGE, now), expected);
        }
        assert_eq!(MINIMUM_MAX_NS, 4_000_000);
    }

    #[test]
    fn a_touch_waits_for_what_is_left_of_the_minimum() {
        let thrash = thrash();
        let now = fight(&thrash, 20, 1 << 30);
        thrash.claimed(PAGE, now);
        assert_eq!(thrash.device_keeps_until(PAGE, now), Some(now + MINIMUM_MAX_NS));
        let later = now + 1000 * US;
        assert_eq!(thrash.device_keeps_until(PAGE, later), Some(now + MINIMUM_MAX_NS));
        assert_eq!(thrash.device_keeps_until(PAGE, now + MINIMUM_MAX_NS + US), None);
    }

    #[test]
    fn several_touches_of_one_claim_are_one_event() {
        let thrash = thrash();
        let now = 1 << 30;
        (0..10).for_each(|turn| assert!(!thrash.disturbed(PAGE, now + turn * US)));
        assert_eq!(thrash.minimum_ns(PAGE, now), 0);
    }

    #[test]
    fn a_fight_ends_as_it_began() {
        let thrash = thrash();
        let mut now = fight(&thrash, 20, 1 << 30);
        let mut minima = Vec::new();
        for _ in 0..8 {
            thrash.claimed(PAGE, now);
            minima.push(thrash.minimum_ns(PAGE, now));
            now += 100 * US;
        }
        // The first claim is the one after the last that was disturbed.
        assert_eq!(minima, [4_000_000, 2_000_000, 1_000_000, 500_000, 0, 0, 0, 0]);
    }

    #[test]
    fn a_page_left_alone_is_forgotten() {
        let thrash = thrash();
        let now = fight(&thrash, 20, 1 << 30) + 40_000_000;
        assert_eq!(thrash.minimum_ns(PAGE, now), 0);
        assert!(!thrash.disturbed(PAGE, now), "it begins anew");
        assert_eq!(thrash.device_keeps_until(PAGE, now), None);
    }

    #[test]
    fn claims_that_are_far_apart_make_no_fight() {
        let thrash = thrash();
        for turn in 0..100 {
            let now = (1 << 30) + turn * 10_000 * US;
            thrash.claimed(PAGE, now);
            assert!(!thrash.disturbed(PAGE, now));
        }
    }

    #[test]
    fn a_fight_is_not_driven_out_of_its_slot() {
        let thrash = thrash();
        let now = fight(&thrash, 20, 1 << 30);
        assert!(!thrash.disturbed(PageIndex(7 + 256), now));
        assert_eq!(thrash.minimum_ns(PAGE, now), MINIMUM_MAX_NS);
        thrash.disturbed(PageIndex(7 + 256), now + 40_000_000);
        assert_eq!(thrash.minimum_ns(PAGE, now + 40_000_000), 0);
    }
}
