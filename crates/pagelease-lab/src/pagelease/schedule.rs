//! A history of the model as the real engine can take it: changes of page words, and runs between them.
//!
//! The engine's threads halt where they are about to change a word, at the ends of operations, between a device's load and
//! its store, and where they wait. What lies between two halts happens at once. So the model's steps are put together into
//! **bouts**: a change of a word, or what one actor does between two halts. Steps that read or write the same keep their
//! order (`footprint`), changes keep theirs; a bout happens as late as that allows, which is what the engine does unless it is
//! told otherwise. Where no order of whole bouts is left, the history cannot be told to the engine.

use pagelease_protocol::{PageState, PageWord};
use stateright::Model;

use super::state::{State, Trap};
use super::{Action, Kind, Pagelease};
use crate::case::ReplayError;
use crate::export::ExportError;
use crate::subject::Subject;

/// A change of the word of a page, as far as a schedule tells of it.
#[derive(Copy, Clone, Debug)]
struct Change {
    page: u8,
    before: PageWord,
    after: PageWord,
}

/// What an actor does between two halts.
struct Bout {
    actor: usize,
    change: Option<Change>,
    /// What its steps are called, for a refusal.
    steps: Vec<&'static str>,
    /// The bouts that have to come before.
    before: Vec<usize>,
}

/// The bouts of two actors would have to come one into the other: the actor that would have to stop, and between what.
struct Entangled {
    actor: usize,
    first: &'static str,
    last: &'static str,
}

impl Pagelease {
    /// What is done along a history.
    pub(crate) fn actions_along(&self, choices: &[u8]) -> Result<Vec<Action>, ReplayError> {
        let mut state = State::new();
        let mut actions = Vec::with_capacity(choices.len());
        for (step, &choice) in choices.iter().enumerate() {
            let possible = self.next_steps(&state);
            let Some(&(action, next)) = possible.get(usize::from(choice)) else {
                return Err(ReplayError::NoSuchStep { step, choice, possible: possible.len() });
            };
            actions.push(action);
            state = next;
        }
        Ok(actions)
    }

    /// The steps of a history that begins with `actions` and goes on to the end of every program.
    pub(crate) fn brought_to_an_end(&self, actions: &[Action]) -> Result<Vec<(State, Action)>, ExportError> {
        let mut state = State::new();
        let mut steps = Vec::new();
        let mut possible = Vec::new();
        loop {
            let next = if let Some(&action) = actions.get(steps.len()) {
                Some(action)
            } else {
                possible.clear();
                self.actions(&state, &mut possible);
                let of_time = |action: &Action| matches!(action.kind, Kind::Expire | Kind::Overdue(_));
                let of_program = |action: &&Action| action.kind != Kind::Signal && !of_time(action);
                possible.iter().find(of_program).or_else(|| possible.iter().find(|action| of_time(action))).copied()
            };
            let Some(action) = next else { break };
            let actor = usize::from(action.actor);
            if action.kind == Kind::Signal {
                return Err(ExportError::Signal { step: steps.len(), actor: self.name_of(actor) });
            }
            steps.push((state, action));
            state = self.turn(&state, action).state;
        }
        match (0..self.scenario.actors.len()).find(|&actor| !self.owed(&state, actor).is_empty()) {
            Some(actor) => Err(ExportError::Stuck(self.name_of(actor))),
            None => Ok(steps),
        }
    }

    /// The lines of a schedule for the engine. `name` names the actors.
    pub(crate) fn schedule(
        &self,
        steps: &[(State, Action)],
        name: impl Fn(usize) -> String,
    ) -> Result<Vec<String>, ExportError> {
        lines(self, steps, name).map_err(|Entangled { actor, first, last }| {
            let actor = self.name_of(actor);
            ExportError::Entangled { actor, first, last }
        })
    }
}

/// The steps of a schedule, a line each.
fn lines(
    model: &Pagelease,
    steps: &[(State, Action)],
    name: impl Fn(usize) -> String,
) -> Result<Vec<String>, Entangled> {
    let steps = without_idle_traps(steps);
    let bouts = bouts(model, &steps);
    let mut order = Order { marks: vec![Mark::New; bouts.len()], bouts, way: Vec::new(), done: Vec::new() };
    let mut lines = Vec::new();
    let run = |actor: usize| format!("{} runs", name(actor));
    for at in 0..order.bouts.len() {
        let Some(change) = order.bouts[at].change else { continue };
        let actor = order.bouts[at].actor;
        order.visit(at)?;
        let mut led: Vec<_> = order.done.drain(..).filter(|&bout| bout != at).collect();
        // What the actor does just before its change needs no saying.
        while led.last().is_some_and(|&bout| order.bouts[bout].actor == actor) {
            led.pop();
        }
        lines.extend(led.into_iter().map(|bout| run(order.bouts[bout].actor)));
        lines.push(format!("{} {} {} -> {}", name(actor), change.page, word(change.before), word(change.after)));
    }
    // What is left happens in any order, but for what depends on each other.
    for at in 0..order.bouts.len() {
        let others = order.bouts[at].before.iter().filter(|&&bout| order.bouts[bout].actor != order.bouts[at].actor);
        let others: Vec<_> = others.copied().collect();
        for other in others {
            order.visit(other)?;
        }
        lines.extend(order.done.drain(..).map(|bout| run(order.bouts[bout].actor)));
    }
    Ok(lines)
}

#[derive(Copy, Clone, Eq, PartialEq)]
enum Mark {
    New,
    Open,
    Done,
}

struct Order {
    bouts: Vec<Bout>,
    marks: Vec<Mark>,
    /// The bouts that are being put somewhere, each because of the one before.
    way: Vec<usize>,
    done: Vec<usize>,
}

impl Order {
    /// Puts the bout behind everything that has to come before it.
    fn visit(&mut self, at: usize) -> Result<(), Entangled> {
        match self.marks[at] {
            Mark::Done => return Ok(()),
            Mark::Open => return Err(self.entangled(at)),
            Mark::New => self.marks[at] = Mark::Open,
        }
        self.way.push(at);
        for index in 0..self.bouts[at].before.len() {
            self.visit(self.bouts[at].before[index])?;
        }
        self.way.pop();
        self.marks[at] = Mark::Done;
        self.done.push(at);
        Ok(())
    }

    /// The bout must come before itself: the longest on the way round is to blame.
    fn entangled(&self, at: usize) -> Entangled {
        let round = self.way.iter().skip_while(|&&bout| bout != at).map(|&bout| &self.bouts[bout]);
        let longest = round.max_by_key(|bout| bout.steps.len()).expect("it is on the way");
        Entangled { actor: longest.actor, first: longest.steps[0], last: longest.steps[longest.steps.len() - 1] }
    }
}

/// What one actor does between two halts, for each; with what has to come before it.
fn bouts(model: &Pagelease, steps: &[(State, Action)]) -> Vec<Bout> {
    let mut bouts: Vec<Bout> = Vec::new();
    let mut open = vec![None; model.scenario.actors.len()];
    let mut of_step = Vec::with_capacity(steps.len());
    for &(state, action) in steps {
        let actor = usize::from(action.actor);
        let turn = model.turn(&state, action);
        let change = (0..model.scenario.pages).find_map(|page| {
            let (before, after) = (state.word(page), turn.state.word(page));
            (word(before) != word(after)).then_some(Change { page, before, after })
        });
        let bout = open[actor].filter(|_| change.is_none()).unwrap_or_else(|| {
            bouts.push(Bout { actor, change, steps: Vec::new(), before: Vec::new() });
            bouts.len() - 1
        });
        bouts[bout].steps.push(turn.name);
        of_step.push(bout);
        open[actor] = (change.is_none() && !model.halts_behind(&state, action)).then_some(bout);
    }
    let footprints: Vec<_> = steps.iter().map(|(state, action)| model.footprint(state, *action)).collect();
    for later in 0..steps.len() {
        let at = of_step[later];
        let must_precede = |earlier: &usize| {
            let from = of_step[*earlier];
            let in_turn = bouts[from].actor == bouts[at].actor;
            let both_change = bouts[from].change.is_some() && bouts[at].change.is_some();
            from != at && (in_turn || both_change || footprints[*earlier].stays_before(footprints[later]))
        };
        let before: Vec<_> = (0..later).filter(must_precede).map(|earlier| of_step[earlier]).collect();
        bouts[at].before.extend(before);
    }
    for (read, trap) in queue(steps) {
        bouts[of_step[trap]].before.push(of_step[read]);
    }
    for bout in &mut bouts {
        bout.before.sort_unstable();
        bout.before.dedup();
    }
    bouts
}

/// Which steps are touches that trap for a monitor, of whom.
fn trapped(state: &State, next: &State, action: Action) -> Option<usize> {
    let actor = usize::from(action.actor);
    let unread = |state: &State| state.lanes[actor].trapped() == Trap::Unread;
    (!unread(state) && unread(next)).then_some(actor)
}

/// The engine's one monitor reads messages in the order they were sent, the model's in any. So a touch traps only when what
/// is read before its own message has been read: pairs of the read and the trap, as steps.
fn queue(steps: &[(State, Action)]) -> Vec<(usize, usize)> {
    let after = |at: usize| steps.get(at + 1).map(|(state, _)| state);
    let mut pairs = Vec::new();
    for trap in 0..steps.len() {
        let Some(actor) = after(trap).and_then(|next| trapped(&steps[trap].0, next, steps[trap].1)) else { continue };
        let own = |&at: &usize| steps[at].1.kind == Kind::Message(u8::try_from(actor).expect("few actors"));
        let Some(read) = (trap..steps.len()).find(own) else { continue };
        let others = (trap..read).filter(|&at| matches!(steps[at].1.kind, Kind::Message(_)));
        pairs.extend(others.map(|read| (read, trap)));
    }
    pairs
}

/// The steps without those that nothing follows from: touches that trap, and are let go before a monitor has read of it. The
/// engine need not do it.
fn without_idle_traps(steps: &[(State, Action)]) -> Vec<(State, Action)> {
    let is_idle = |at: usize| {
        let Some(actor) = steps.get(at + 1).and_then(|(next, _)| trapped(&steps[at].0, next, steps[at].1)) else {
            return false;
        };
        let ends = steps[at + 1..].iter().map(|(state, _)| state.lanes[actor].trapped());
        ends.into_iter().find(|&trap| trap != Trap::Unread) == Some(Trap::None)
    };
    (0..steps.len()).filter(|&at| !is_idle(at)).map(|at| steps[at]).collect()
}

/// A page word as a schedule has it: without generation and ticket.
fn word(word: PageWord) -> String {
    let mut text = match (word.state(), word.owner()) {
        (PageState::Cpu, _) | (_, None) => "Cpu".to_owned(),
        (PageState::Exclusive, Some(owner)) => format!("Exclusive({})", owner.get()),
        (PageState::ExclusiveWrite, Some(owner)) => format!("ExclusiveWrite({})", owner.get()),
    };
    let held = match word.holds() {
        0 => String::new(),
        1 => "held".to_owned(),
        holds => format!("held*{holds}"),
    };
    for (set, what) in [
        (word.busy(), "busy"),
        (word.held(), &held),
        (word.waiters(), "waiters"),
        (word.sleepers(), "sleepers"),
        (word.populated(), "populated"),
    ] {
        if set {
            text += " ";
            text += what;
        }
    }
    text
}
