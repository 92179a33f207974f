//! The state and the steps, in words.

use pagelease_protocol::{PageState, PageWord};

use super::design::{Faults, Mutant, Policy};
use super::scenario::{Op, Role};
use super::state::{BORROWED, Fp, Handler, NOW, Pc, Phase, RECORDS, SERVICE, Server, State, Trap, View, pages};
use super::turn::Note;
use super::{Action, Pagelease};
use crate::property::{Kind as Decided, Property};
use crate::subject::{Broken, Cell, Subject};

impl Pagelease {
    pub(super) fn name_of(&self, actor: usize) -> &'static str {
        self.scenario.actors.get(actor).map_or("nobody", |actor| actor.name)
    }

    pub(super) fn describe(&self, note: Note) -> String {
        let join = |first: String, text: &str| if text.is_empty() { first } else { format!("{first}: {text}") };
        match note {
            Note::None => String::new(),
            Note::Text(text) => text.to_owned(),
            Note::Page(page, text) => join(format!("page {page}"), text),
            Note::Pages(mask, text) => join(page_list(mask), text),
            Note::Actor(number, page, text) if text.ends_with("device") => format!("page {page}: {text} {number}"),
            Note::Actor(actor, page, text) => format!("{}, page {page}: {text}", self.name_of(usize::from(actor))),
        }
    }

    pub(super) fn table(&self, state: &State) -> Vec<Cell> {
        let mut cells = Vec::new();
        let mut add = |group: &str, name: String, value: String| {
            cells.push(Cell { group: group.to_owned(), name, value });
        };
        for page in 0..self.scenario.pages {
            add("page word", format!("page {page}"), self.word_text(state, state.word(page)));
        }
        for page in 0..self.scenario.pages {
            let entry = state.pages[usize::from(page)];
            let view = match View::of(entry.view()) {
                View::Absent if entry.exists() == 0 => "does not exist",
                View::Absent => "not mapped",
                View::ReadOnly => "read-only",
                View::Writable => "writable",
            };
            add("CPU view", format!("page {page}"), view.to_owned());
        }
        for page in 0..self.scenario.pages {
            let entry = state.pages[usize::from(page)];
            let value = format!("{} of {} increments", entry.value(), entry.made());
            add("memory", format!("page {page}"), value);
        }
        for page in (0..self.scenario.pages).filter(|_| self.scenario.is_endless()) {
            let resident = state.pages[usize::from(page)].resident();
            let who: Vec<_> = (0..self.scenario.actors.len()).filter(|at| resident >> at & 1 == 1).collect();
            let who = who.into_iter().map(|actor| self.name_of(actor)).collect::<Vec<_>>().join(", ");
            let value = if who.is_empty() { "for nobody".to_owned() } else { format!("for {who}") };
            add("residency", format!("page {page}"), value);
        }
        for record in 0..RECORDS {
            add("records", format!("record {}", record + 1), self.record_text(state, record));
        }
        let barred = match (state.globals.closed(), state.globals.closing(), state.globals.stopped()) {
            (1, ..) => "gone".to_owned(),
            (_, 1, _) => "closing".to_owned(),
            (_, _, 0) => "open".to_owned(),
            (.., stopped) => format!("open, without device {}", stopped >> 1),
        };
        add("region", "state".to_owned(), barred);
        for (actor, who) in self.scenario.actors.iter().enumerate() {
            add(who.name, "does".to_owned(), self.doing(state, actor));
            if matches!(who.role, Role::Device(_)) {
                add(who.name, "lane".to_owned(), self.lane_text(state, actor));
            }
        }
        cells
    }

    fn word_text(&self, state: &State, word: PageWord) -> String {
        let mut text = match word.state() {
            PageState::Cpu => "Cpu".to_owned(),
            PageState::Exclusive => "Exclusive".to_owned(),
            PageState::ExclusiveWrite => "ExclusiveWrite".to_owned(),
        };
        if let Some(owner) = word.owner() {
            text += &format!("(device {})", owner.get() - 1);
        }
        match word.ticket() {
            None if word.busy() => text += ", busy: a touch",
            None => {}
            Some(SERVICE) => text += ", busy: a touch",
            Some(BORROWED) => text += ", busy: borrowed",
            Some(ticket) => {
                let claim = state
                    .records
                    .get(usize::from(ticket) - 1)
                    .map_or("nobody", |record| self.name_of(usize::from(record.actor())));
                text += &format!(", busy: record {ticket} ({claim})");
            }
        }
        if word.held() {
            text += &format!(", held by {}", word.holds());
        }
        for (set, name) in [(word.waiters(), "waiters"), (word.sleepers(), "sleepers")] {
            if set {
                text += &format!(", {name}");
            }
        }
        text
    }

    fn record_text(&self, state: &State, index: usize) -> String {
        let record = state.records[index];
        let phase = match record.stage() {
            Phase::Free => return "free".to_owned(),
            Phase::Claiming => "claiming",
            Phase::Committing => "past its commit point",
            Phase::Held => "held",
            Phase::Ended => "ended",
        };
        let mut text = format!("{}, {phase}", self.name_of(usize::from(record.actor())));
        for page in pages(record.entries()) {
            let how = match (record.taken() >> page & 1, record.generation(page)) {
                (_, generation) if generation != NOW => "lost",
                (1, _) => "taken",
                _ => "joined",
            };
            text += &format!(", page {page} {how}");
        }
        if record.listens() && record.moved() == 1 {
            text += ", invalidated since read_begin";
        }
        if state.running(index) > 0 {
            text += &format!(", {} running", state.running(index));
        }
        text
    }

    fn lane_text(&self, state: &State, actor: usize) -> String {
        let Some(Op::Operate(page)) = self.op_of(state, actor) else { return "empty".to_owned() };
        match state.lanes[actor].pc() {
            Pc::Check | Pc::Load => format!("page {page}"),
            Pc::Store => format!("page {page}, between load ({}) and store", state.lanes[actor].loaded()),
            Pc::Withdraw => format!("page {page}, done"),
            _ => "empty".to_owned(),
        }
    }

    fn doing(&self, state: &State, actor: usize) -> String {
        let lane = state.lanes[actor];
        let mut text = match self.op_of(state, actor) {
            None if self.scenario.actors[actor].role == Role::Monitor => "on watch".to_owned(),
            None => "done".to_owned(),
            Some(op) => {
                let pc = if lane.pc() == Pc::Next { String::new() } else { format!(", at {:?}", lane.pc()) };
                format!("{}{pc}", op_text(op))
            }
        };
        if lane.handler() == Handler::Running as u8 {
            text += ", in a signal handler";
        }
        match lane.trapped() {
            Trap::None => {}
            Trap::Unread => text += ", trapped",
            Trap::Read => text += ", trapped (the monitor knows)",
        }
        if lane.f_pc() != Fp::None {
            let whose = match Server::of(lane.f_server()) {
                Server::InThread => "its own touch",
                Server::Monitor => "a touch",
                Server::Owed => "a touch that it owes",
            };
            text += &format!(", serves {whose} of page {}: {:?}", lane.f_page(), lane.f_pc());
        }
        text
    }

    /// What this scenario may give occasion to, in this design.
    pub(super) fn step_names(&self) -> Vec<&'static str> {
        let actors = self.scenario.actors;
        let has = |wanted: fn(&Op) -> bool| actors.iter().flat_map(|actor| actor.ops).any(wanted);
        let claimers = actors.iter().filter(|actor| actor.ops.iter().any(|op| matches!(op, Op::Claim { .. }))).count();
        let signalled = actors.iter().any(|actor| actor.signal.is_some());
        let touches = signalled || has(|op| matches!(op, Op::Read(_) | Op::Add(_)));
        let monitored = touches && self.design.faults == Faults::Monitor;
        let in_thread = touches && self.design.faults == Faults::InThread;
        let limited = self.scenario.limited;
        let ends = has(|op| matches!(op, Op::End(_)));
        let eager = ends && self.design.policy == Policy::Eager;
        let views = has(|op| matches!(op, Op::DropView));
        let occasions: &[(bool, &[&'static str])] = &[
            (touches, &["cpu::access", "touch::trap", "touch::take", "touch::serve", "touch::map", "touch::commit"]),
            (touches, &["touch::settle", "touch::map_read_only", "touch::commit_read_only", "touch::break_own_hold"]),
            (monitored, &["monitor::read", "touch::park", "touch::gone_on"]),
            (monitored && limited, &["monitor::overdue"]),
            (in_thread, &["touch::sleep"]),
            (in_thread && limited, &["touch::break_overdue"]),
            (signalled, &["signal", "touch::own_record", "touch::borrow", "records::begin", "touch::give_back"]),
            (signalled, &["touch::take_over", "records::end", "claim::refused", "claim::undo", "claim::retry"]),
            (claimers > 0, &["claim::open", "claim::read_begin", "claim::take", "claim::join", "claim::blocked"]),
            (claimers > 0, &["claim::wait", "claim::populate", "claim::revoke", "claim::committing", "claim::map"]),
            (
                claimers > 0,
                &["claim::commit", "claim::held", "claim::prepare", "invalidate::begin", "invalidate::drain"],
            ),
            (limited && (claimers > 1 || touches), &["claim::break_overdue"]),
            (has(|op| matches!(op, Op::Operate(_))), &["device::publish", "device::check", "device::load"]),
            (has(|op| matches!(op, Op::Operate(_))), &["device::store", "device::withdraw"]),
            (ends, &["lease::drop", "lease::end_hold", "lease::close"]),
            (eager, &["lease::ended", "restore::eagerly", "restore::done"]),
            (views, &["view::stop", "region::detach"]),
            (
                views || eager,
                &["restore::take", "restore::map", "restore::commit", "restore::blocked", "restore::wait"],
            ),
            (has(|op| matches!(op, Op::DropRegion)), &["region::close", "region::operations", "region::stop"]),
            (has(|op| matches!(op, Op::DropRegion)), &["region::closed", "claim::fail", "lease::close"]),
            (has(|op| matches!(op, Op::Pinned(_))), &["pin::access"]),
            (has(|op| matches!(op, Op::Repeat)), &["program::repeat"]),
            (has(|op| matches!(op, Op::Retry)), &["program::retry"]),
            (self.design.mutant == Some(Mutant::ReleaseBeforeWord), &["claim::release"]),
        ];
        let mut names: Vec<_> = occasions.iter().filter(|(on, _)| *on).flat_map(|(_, names)| *names).copied().collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    pub(super) fn sentence(&self, broken: &Broken<'_, Self>) -> String {
        if broken.property.kind() == Decided::Liveness {
            return self.unending(broken);
        }
        let Some(&(before, action)) = broken.steps.last() else { return "It is so from the start.".to_owned() };
        let who = self.name_of(self.actor(action));
        let what = format!("{} ({})", self.step(&before, action), self.detail(&before, action));
        let between = || {
            let half = |&actor: &usize| before.lanes[actor].pc() == Pc::Store && actor != usize::from(action.actor);
            (0..self.scenario.actors.len()).find(half).map_or("a device", |actor| self.name_of(actor))
        };
        match broken.property {
            Property::Atomicity => {
                format!("{who} makes {what} while {} is between the load and the store of its increment.", between())
            }
            Property::Pins => {
                format!("{who} writes through its pin while {} is between its load and its store.", between())
            }
            Property::Zapped => format!("{who} makes {what} although its device has been made to let go for good."),
            Property::SelfRetry => {
                format!("The claim of {who} must start again, although nobody but itself has disturbed it.")
            }
            Property::Count => {
                let lost = broken.last.pages.iter().position(|page| page.value() != page.made());
                let at = lost.unwrap_or(0);
                let page = broken.last.pages[at];
                let (made, value) = (page.made(), page.value());
                format!("{made} increments were made of page {at}, which holds {value} at the end.")
            }
            Property::Spurious => format!("{what} by {who} reaches a device that has nothing of the page."),
            other => format!("{who} makes {what}, which breaks {other}."),
        }
    }

    /// Who waits, and for what, for ever.
    fn unending(&self, broken: &Broken<'_, Self>) -> String {
        let state = &broken.last;
        let waiting = (0..self.scenario.actors.len())
            .filter(|&actor| self.op_of(state, actor).is_some())
            .map(|actor| format!("{} ({})", self.name_of(actor), self.doing(state, actor)))
            .collect::<Vec<_>>();
        let how = match broken.loop_from {
            Some(_) => "go round for ever without what they owe",
            None => "wait for ever",
        };
        let words = (0..self.scenario.pages)
            .map(|page| format!("page {page} is {}", self.word_text(state, state.word(page))))
            .collect::<Vec<_>>();
        format!("{} {how}; {}.", waiting.join(" and "), words.join(", "))
    }

    /// A history, one step a line, for a test that fails.
    #[must_use]
    pub fn history(&self, steps: &[(State, Action)]) -> String {
        steps
            .iter()
            .map(|&(state, action)| {
                let words = (0..self.scenario.pages).map(|page| self.word_text(&state, state.word(page)));
                let who = self.name_of(self.actor(action));
                let (step, detail) = (self.step(&state, action), self.detail(&state, action));
                format!("{who}: {step} {detail}    [before: {}]\n", words.collect::<Vec<_>>().join(" | "))
            })
            .collect()
    }
}

fn page_list(mask: u8) -> String {
    match mask {
        0 => "no page".to_owned(),
        0b11 => "pages 0 and 1".to_owned(),
        one => format!("page {}", one >> 1),
    }
}

fn op_text(op: Op) -> String {
    match op {
        Op::Read(page) => format!("reads page {page}"),
        Op::Add(page) => format!("adds to page {page}"),
        Op::Claim { from, to, again, .. } => {
            let what = if to - from == 1 { format!("page {from}") } else { format!("pages {from} to {}", to - 1) };
            format!("claims {what}{}", if again { " again" } else { "" })
        }
        Op::Operate(page) => format!("works on page {page}"),
        Op::End(_) => "ends its lease".to_owned(),
        Op::DropView => "drops its view".to_owned(),
        Op::DropRegion => "drops the region".to_owned(),
        Op::Pinned(page) => format!("writes to page {page} through a pin"),
        Op::Repeat => "begins anew".to_owned(),
        Op::Retry => "begins anew if it could not work".to_owned(),
    }
}
