//! A state, a step, and what went wrong, for a reader.

use std::collections::BTreeSet;

use pagelease_protocol::Cause;

use crate::property::Property;
use crate::subject::{Broken, Cell};

use super::design::Call;
use super::pc::Pc;
use super::scenario::{Op, Role};
use super::state::{
    ACTORS, CHILD, COPIES, CURRENT, DEFERRED, DEVICES, FRAMES, Frame, HUGE, NO_CHILD, ODD, PAGES, Prot, Pte, QUEUED,
    REGISTERED, STALE, State, WINDOW, WRITER,
};
use super::turn::Turn;
use super::{Action, Kernel};

/// The step in which a driver is called back.
pub(super) const CALLBACK: &str = "driver: mni->invalidate";

/// `invalidate_seq` of an address space's first subscription: mm/mmu_notifier.c begins at 2.
const FIRST_SEQ: u64 = 2;

/// The numbers behind what the state keeps of them.
#[derive(Copy, Clone)]
struct Numbers {
    subscriptions: u64,
    interval: [[u64; PAGES]; DEVICES],
    driver: [[u64; PAGES]; DEVICES],
}

fn frame_name(frame: Frame) -> String {
    let page = if frame < COPIES { 'A' } else { 'B' };
    match frame % COPIES {
        0 => page.to_string(),
        copy => format!("{page}{}", copy + 1),
    }
}

fn pte_name(pte: Pte) -> String {
    match pte {
        Pte::None => "none".to_owned(),
        Pte::Zero => "zero page, read-only".to_owned(),
        Pte::Ro(frame) => format!("{}, read-only", frame_name(frame)),
        Pte::Rw(frame) => format!("{}, writable", frame_name(frame)),
        Pte::Exclusive(frame) => format!("{}, device-exclusive", frame_name(frame)),
        Pte::Swap(frame) => format!("{}, swapped out", frame_name(frame)),
    }
}

fn cause_name(cause: Cause) -> &'static str {
    match cause {
        Cause::Exclusive => "EXCLUSIVE",
        Cause::Clear => "CLEAR",
        Cause::Unmap => "UNMAP",
        Cause::ProtectionVma => "PROTECTION_VMA",
        Cause::ProtectionPage => "PROTECTION_PAGE",
        _ => "RELEASE",
    }
}

impl Kernel {
    fn name(&self, actor: usize) -> &'static str {
        self.scenario.programs[actor].name
    }

    fn holder(&self, tag: u8) -> String {
        match usize::from(tag).checked_sub(1) {
            None => "-".to_owned(),
            Some(actor) => self.name(actor).to_owned(),
        }
    }

    /// The pages that this scenario has.
    fn pages(&self) -> std::ops::Range<usize> {
        let moves = self.scenario.programs.iter().any(|program| program.ops.contains(&Op::Move));
        0..if moves || self.scenario.pages[1] != Pte::None { PAGES } else { 1 }
    }

    fn has_child(&self) -> bool {
        self.scenario.programs.iter().any(|program| program.role == Role::Child)
    }

    fn devices(&self) -> impl Iterator<Item = usize> {
        (0..DEVICES).filter(|&device| {
            self.scenario
                .programs
                .iter()
                .any(|program| matches!(program.role, Role::Device(own) if usize::from(own) == device))
        })
    }

    pub(super) fn show(&self, state: &State) -> Vec<Cell> {
        self.table(state, None)
    }

    pub(super) fn show_history(&self, history: &[State]) -> Vec<Vec<Cell>> {
        let mut numbers = Numbers {
            subscriptions: FIRST_SEQ,
            interval: [[FIRST_SEQ - 1; PAGES]; DEVICES],
            driver: [[0; PAGES]; DEVICES],
        };
        let mut before = history.first().copied();
        history
            .iter()
            .map(|state| {
                numbers.follow(&before.expect("a history has a first state"), state);
                before = Some(*state);
                self.table(state, Some(numbers))
            })
            .collect()
    }

    fn table(&self, state: &State, numbers: Option<Numbers>) -> Vec<Cell> {
        let mut cells = Vec::new();
        let mut cell = |group: &str, name: String, value: String| {
            cells.push(Cell { group: group.to_owned(), name, value });
        };
        for page in self.pages() {
            let huge = if state.has(HUGE) { " (huge)" } else { "" };
            cell("page table", format!("page {page}"), pte_name(state.pte(0, page)) + huge);
        }
        for page in self.pages() {
            let prot = match state.prot[page] {
                Prot::Write => "read-write",
                Prot::Closing => "read-only (page table not yet)",
                Prot::Read => "read-only",
                Prot::Gone => "none",
            };
            cell("mapping", format!("page {page}"), prot.to_owned());
        }
        if self.has_child() {
            let child = match (state.has(CHILD), state.has(NO_CHILD)) {
                (true, _) => "runs",
                (_, true) => "fork failed: ENOMEM",
                (_, _) => "not yet",
            };
            cell("child", "process".to_owned(), child.to_owned());
            for page in self.pages() {
                cell("child", format!("page {page}"), pte_name(state.pte(1, page)));
            }
        }
        for frame in self.pages().flat_map(|page| (0..COPIES).map(move |copy| (page, copy))) {
            let frame = Frame::try_from(frame.0).expect("two pages") * COPIES + frame.1;
            let lock = match state.lock(frame) {
                0 => String::new(),
                tag => format!(", locked by {}", self.holder(tag)),
            };
            cell("frames", frame_name(frame), format!("{}{lock}", state.value(frame)));
        }
        let mmap = match state.mmap {
            0 => "free".to_owned(),
            WRITER => "a writer".to_owned(),
            queued if queued & QUEUED != 0 => format!("{} reading, a writer waits", queued & !QUEUED),
            readers => format!("{readers} reading"),
        };
        cell("mm", "mmap_lock".to_owned(), mmap);
        cell("mm", "active_invalidate_ranges".to_owned(), state.active.to_string());
        let seq = match numbers {
            Some(numbers) => numbers.subscriptions.to_string(),
            None if state.has(ODD) => "odd".to_owned(),
            None => "even".to_owned(),
        };
        cell("mm", "invalidate_seq".to_owned(), seq);
        for device in self.devices() {
            self.device_cells(state, numbers, device, &mut cell);
        }
        for index in 0..self.scenario.programs.len() {
            let operation = self.op(state, index).map_or_else(|| "-".to_owned(), |op| format!("{op:?}"));
            cell(self.name(index), "does".to_owned(), operation);
        }
        cells
    }

    fn device_cells(
        &self,
        state: &State,
        numbers: Option<Numbers>,
        device: usize,
        cell: &mut impl FnMut(&str, String, String),
    ) {
        let group = format!("device {device}: driver");
        let entry = &state.devices[device];
        for page in self.pages() {
            let mapped = state.mapped(device, page).map_or_else(|| "none".to_owned(), frame_name);
            cell(&group, format!("maps page {page}"), mapped);
        }
        cell(&group, "mutex".to_owned(), self.holder(entry.mutex));
        for page in self.pages() {
            let interval = match (entry.flags & (REGISTERED | DEFERRED), numbers) {
                (0, _) => "not inserted".to_owned(),
                (DEFERRED, _) => "insertion deferred".to_owned(),
                (_, Some(numbers)) => numbers.interval[device][page].to_string(),
                (_, None) if entry.flags & CURRENT[page] != 0 => "current".to_owned(),
                (_, None) => "older".to_owned(),
            };
            cell(&group, format!("seq of page {page}"), interval);
        }
        let read = match numbers {
            _ if entry.flags & WINDOW == 0 => "-".to_owned(),
            Some(numbers) => {
                self.pages().map(|page| numbers.driver[device][page].to_string()).collect::<Vec<_>>().join(", ")
            }
            None => "in a claim".to_owned(),
        };
        cell(&group, "read_begin".to_owned(), read);
    }

    fn turn_of(&self, before: &State, action: Action) -> Turn<'_> {
        Turn { kernel: self, state: *before, actor: action.actor.into(), choice: action.choice, spurious: 0 }
    }

    /// The function that a step belongs to: the claim's had other names in 2021.
    #[must_use]
    pub fn name_of(&self, pc: Pc) -> &'static str {
        match (self.design.call, pc) {
            (Call::Range, Pc::Gup) => "get_user_pages_remote",
            (Call::Range, Pc::ClaimLock) => "make_device_exclusive_range: trylock_page",
            (Call::Range, Pc::ExclusiveStart) => "make_device_exclusive_range: mmu_notifier_invalidate_range_start",
            (Call::Range, Pc::ExclusivePte) => "page_make_device_exclusive_one: set_pte_at",
            (Call::Range, Pc::ExclusiveEnd) => "make_device_exclusive_range: mmu_notifier_invalidate_range_end",
            (_, pc) => pc.name(),
        }
    }

    pub(super) fn step_name(&self, before: &State, action: Action) -> &'static str {
        let turn = self.turn_of(before, action);
        let me = turn.me();
        match (turn.calling(), me.fault) {
            (true, _) => CALLBACK,
            (false, Pc::None) => self.name_of(me.pc),
            (false, fault) => fault.name(),
        }
    }

    pub(super) fn step_detail(&self, before: &State, action: Action) -> String {
        let turn = self.turn_of(before, action);
        let me = turn.me();
        let pc = if me.fault == Pc::None { me.pc } else { me.fault };
        let starts = matches!(
            pc,
            Pc::RestoreStart
                | Pc::CowStart
                | Pc::SplitStart
                | Pc::ExclusiveStart
                | Pc::ZapStart
                | Pc::ProtectStart
                | Pc::MoveStart
                | Pc::ForkStart
                | Pc::ReclaimStart
        );
        if starts {
            let event = turn.event();
            let owner = event.owner.map_or_else(|| "no owner".to_owned(), |device| format!("owner device {device}"));
            if !turn.calling() {
                return format!("{}, {owner}", cause_name(event.cause));
            }
            let Some(device) = turn.called() else { return String::new() };
            let counts = if turn.filtered(device, &event) { "does not count it" } else { "counts it" };
            return format!("device {device} {counts}");
        }
        let next = || self.turn(before, action).map(|(next, _)| next);
        let faults = || {
            let faults = next().is_some_and(|next| next.actors[turn.actor].fault != Pc::None);
            if faults { ": a fault" } else { "" }
        };
        match (pc, turn.op()) {
            (Pc::Access, Op::Load(page)) => format!("load page {page}{}", faults()),
            (Pc::Access, Op::Add(page)) => format!("add to page {page}{}", faults()),
            (Pc::OwnTouch, _) => format!("add to page {}{}", turn.at_page(), faults()),
            (Pc::DeviceLoad, Op::DeviceAdd(page) | Op::Work(page))
                if before.mapped(turn.device(), page.into()).is_none() =>
            {
                format!("page {page}: not mapped, a device fault")
            }
            (Pc::ExclusivePte, _) if next().is_some_and(|next| next.actors[turn.actor].x == me.x) => {
                let why = match before.pte(0, turn.at_page()) {
                    _ if turn.huge() => "the mapping is huge",
                    Pte::Rw(frame) if frame == me.frame && turn.pinned(frame) => "the folio is pinned",
                    _ => "the entry has changed",
                };
                format!("{why}: undo, look again")
            }
            (Pc::ClaimLock, _) if next().is_some_and(|next| next.broken != 0) => {
                "locked: the claim is refused".to_owned()
            }
            (Pc::ZapPte, _) => format!("page {}", me.x),
            (Pc::DeviceLoad | Pc::DeviceStore, Op::DeviceAdd(page) | Op::Work(page)) => format!("page {page}"),
            (Pc::ReadRetry, _) => {
                let stale = before.devices[turn.device()].flags & STALE != 0;
                if stale { "changed: start again".to_owned() } else { "unchanged".to_owned() }
            }
            (Pc::ZapMmap, op) => if op == Op::Munmap { "munmap" } else { "MADV_DONTNEED" }.to_owned(),
            (Pc::ForkRestore, _) if action.choice == 1 => "the bound has passed".to_owned(),
            (Pc::PinWalk | Pc::PinWrite, Op::Pin(page)) => format!("page {page}"),
            _ => String::new(),
        }
    }

    pub(super) fn say(&self, broken: &Broken<'_, Self>) -> String {
        if broken.property == Property::Spurious && broken.loop_from.is_none() {
            let count: u32 =
                broken.steps.iter().map(|(before, action)| self.turn(before, *action).map_or(0, |(_, n)| n)).sum();
            let plural = if count == 1 { "" } else { "s" };
            return format!(
                "{count} invalidation{plural} reached a device that had nothing mapped, and no claim that needed to know."
            );
        }
        let (before, action) = match (broken.steps.last(), broken.loop_from) {
            (Some(&(before, action)), None) => (before, action),
            (_, Some(from)) => return self.say_loop(broken, from),
            (None, None) => return "Nothing has happened.".to_owned(),
        };
        let next = self.turn(&before, action).map(|(next, _)| next);
        if next.is_none_or(|next| next.broken == 0) {
            return self.say_stuck(&broken.last);
        }
        let who = self.name(action.actor.into());
        let other = self.working(&before).unwrap_or("a device");
        match broken.property {
            Property::Atomicity | Property::OwnFault => {
                format!(
                    "{who} reaches the page between the load and the store of {other}'s operation: the CPU has it mapped, and so has the device."
                )
            }
            Property::Pins => {
                format!(
                    "{who} writes through its pin between the load and the store of {other}'s operation: a claim looks at no pin."
                )
            }
            Property::Count => {
                "All is done, and a page does not hold the increments that were made: one went elsewhere, or was overwritten.".to_owned()
            }
            Property::Zapped => {
                format!("{who} reaches a page that is no longer at that address: nothing took it from the device.")
            }
            Property::Protected => {
                format!("{who} stores to a page that mprotect has made read-only: nothing took it from the device.")
            }
            Property::Snapshot => format!("{who} stores to a page that the child sees."),
            Property::ForkSucceeds => {
                format!(
                    "{who} cannot have the folio lock, which {} holds, and fork fails with ENOMEM.",
                    self.lock_holders(&before)
                )
            }
            Property::ClaimSucceeds => {
                format!("{who}'s claim is refused because somebody had the folio lock just then, and the device's operation is cancelled.")
            }
            Property::SelfRetry => {
                format!(
                    "{who} starts its claim again although only the claim itself has invalidated anything since read_begin."
                )
            }
            other => format!("{} is broken.", other.name()),
        }
    }

    /// The actor that is between the halves of a device's operation.
    fn working(&self, state: &State) -> Option<&'static str> {
        (0..ACTORS).find(|&actor| state.actors[actor].pc == Pc::DeviceStore).map(|actor| self.name(actor))
    }

    fn lock_holders(&self, state: &State) -> String {
        let holders: BTreeSet<_> = (0..FRAMES).map(|frame| state.lock(frame)).filter(|&tag| tag != 0).collect();
        holders.into_iter().map(|tag| self.holder(tag)).collect::<Vec<_>>().join(" and ")
    }

    fn say_loop(&self, broken: &Broken<'_, Self>, from: usize) -> String {
        let round = &broken.steps[from..];
        let actors: BTreeSet<_> = round.iter().map(|&(_, action)| self.name(action.actor.into())).collect();
        let found = |pc: Pc, what: &dyn Fn(&State, usize) -> bool| {
            round.iter().any(|(before, action)| {
                let me = self.turn_of(before, *action).me();
                me.fault == Pc::None && me.pc == pc && what(before, action.actor.into())
            })
        };
        let stale = found(Pc::ReadRetry, &|before, actor| {
            matches!(self.scenario.programs[actor].role, Role::Device(device)
                if before.devices[usize::from(device)].flags & STALE != 0)
        });
        let maps = found(Pc::Map, &|_, _| true);
        let who = actors.into_iter().collect::<Vec<_>>().join(" and ");
        if broken.property == Property::Spurious {
            format!("{who}: an invalidation that nobody needs each time round, and it goes round for ever.")
        } else if maps {
            format!(
                "{who}: each time round a claim ends well, and the page is taken away again before it is used; nobody gets to make \
                 an access."
            )
        } else if stale {
            format!(
                "{who}: the claim finds its sequence number changed, starts again, and is back where it was after {} steps: for ever.",
                round.len()
            )
        } else {
            format!("{who}: the same {} steps again and again, and nobody who could step is left out.", round.len())
        }
    }

    fn say_stuck(&self, state: &State) -> String {
        let waits: Vec<_> = (0..self.scenario.programs.len())
            .filter(|&actor| !matches!(state.actors[actor].pc, Pc::Done | Pc::Unborn))
            .map(|actor| {
                let me = state.actors[actor];
                let at = if me.fault == Pc::None { me.pc } else { me.fault };
                format!("{} waits in {}", self.name(actor), at.name())
            })
            .collect();
        let locks = self.lock_holders(state);
        let locks = if locks.is_empty() { String::new() } else { format!(" The folio is locked by {locks}.") };
        format!("Nobody can take a step: {}.{locks}", waits.join("; "))
    }
}

impl Numbers {
    /// What one step made of the numbers.
    fn follow(&mut self, before: &State, after: &State) {
        if before.has(ODD) != after.has(ODD) {
            self.subscriptions += 1;
        }
        for device in 0..DEVICES {
            let (was, is) = (before.devices[device].flags, after.devices[device].flags);
            let came = is & !was;
            for (interval, current) in self.interval[device].iter_mut().zip(CURRENT) {
                if came & REGISTERED != 0 && was & DEFERRED == 0 && is & current == 0 {
                    *interval = self.subscriptions - 1;
                }
                if came & current != 0 {
                    *interval = self.subscriptions;
                }
            }
            if came & WINDOW != 0 {
                self.driver[device] = self.interval[device];
            }
        }
    }
}
