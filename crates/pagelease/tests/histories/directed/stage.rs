//! What is known of a running execution: where each actor stands, and what the page words are.
//!
//! Told by the engine's words (see `pagelease::sim::observe_words`) and by the actors between their operations. An actor
//! halts in three places, and the schedule decides when it goes on: where it is about to change a page word, where it is
//! about to begin an operation, and in the middle of a device's addition.

use pagelease::sim::WordEvent;

use super::history::{Actor, Doing, History, Kind, Step};
use super::word::{Change, Word};

/// The thread that sets the stage, and looks at the pages in the end.
pub(super) const MAIN: usize = 0;

/// The monitor's thread, which is the first that is started.
const MONITOR: usize = 1;

/// How often the hold limit passes between two steps, at most; once it is asked for the monitor, and once for each touch.
const ASKED_MAX: u32 = 8;

#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum Act {
    /// The space is made; nobody's steps count.
    Setup,
    /// The actors run, as the schedule directs.
    Directed,
    /// All have finished.
    Over,
}

/// Where an actor stands.
#[derive(Copy, Clone, Debug)]
enum Halt {
    /// It runs, or is blocked.
    No,
    /// It is about to compare and swap these values of the word of a page.
    Swap { page: usize, current: u32, next: u32 },
    /// It is about to begin this operation of its program.
    Operation(usize),
    /// It is a device, and has loaded what it adds to.
    Midway,
}

struct Part {
    task: usize,
    /// Whether it has come to its first operation. (A monitor has none.)
    begun: bool,
    halt: Halt,
    finished: bool,
}

/// The word of a page: where it lies, and what it is.
struct Cell {
    address: usize,
    bits: u32,
}

pub(super) struct Stage {
    pub(super) act: Act,
    pub(super) history: History,
    /// What the actors have done so far, as steps.
    pub(super) done: Vec<Step>,
    /// Whose turn it is: only this actor may change a word.
    pub(super) turn: Option<usize>,
    pub(super) failure: Option<String>,
    /// The actor that has made the last change.
    pub(super) last: Option<usize>,
    parts: Vec<Part>,
    cells: Vec<Cell>,
    /// Tasks that have looked in vain since the last step.
    yielded: Vec<usize>,
    running: usize,
    /// How often the hold limit has passed since the last step.
    asked: u32,
}

impl Stage {
    pub(super) fn new(history: History) -> Self {
        let parts = history.actors.iter().map(|actor| Part {
            task: if actor.kind == Kind::Monitor { MONITOR } else { usize::MAX },
            begun: actor.kind == Kind::Monitor,
            halt: Halt::No,
            finished: false,
        });
        Self {
            act: Act::Setup,
            parts: parts.collect(),
            history,
            done: Vec::new(),
            turn: None,
            failure: None,
            last: None,
            cells: Vec::new(),
            yielded: Vec::new(),
            running: MAIN,
            asked: 0,
        }
    }

    /// Notes the first failure; what follows from it says nothing.
    pub(super) fn fail(&mut self, message: impl Into<String>) {
        self.failure.get_or_insert_with(|| message.into());
    }

    /// The actor's thread is this task.
    pub(super) fn enlist(&mut self, actor: usize, task: usize) {
        self.parts[actor].task = task;
    }

    /// The actor is about to begin its operation `index`; behind its last one, it has finished.
    pub(super) fn halt_at_operation(&mut self, actor: usize, index: usize) {
        let finished = index == self.history.actors[actor].program.len();
        self.parts[actor].begun = true;
        self.parts[actor].finished = finished;
        self.parts[actor].halt = if finished { Halt::No } else { Halt::Operation(index) };
    }

    /// The actor has loaded what it adds to, and has not stored it yet.
    pub(super) fn halt_midway(&mut self, actor: usize) {
        self.parts[actor].halt = Halt::Midway;
    }

    /// The running thread does this to the word at this address.
    pub(super) fn observe(&mut self, address: usize, event: WordEvent) {
        if self.act == Act::Setup {
            // The stage is set by loading every page's word once, in order.
            if let WordEvent::Loaded(bits) = event
                && self.cells.len() < self.history.setting.pages as usize
            {
                self.cells.push(Cell { address, bits });
            }
            return;
        }
        let page = self.cells.iter().position(|cell| cell.address == address);
        let actor = self.actor_of(self.running);
        let (Act::Directed, Some(page), Some(actor)) = (self.act, page, actor) else { return };
        match event {
            WordEvent::Loaded(_) => {}
            WordEvent::Swapping { current, next } => self.parts[actor].halt = Halt::Swap { page, current, next },
            WordEvent::Swapped { next, changed, .. } => {
                let change = self.about_to(actor);
                self.parts[actor].halt = Halt::No;
                if changed {
                    self.cells[page].bits = next;
                }
                if let (true, Some(change)) = (changed, change) {
                    self.made(actor, change);
                }
            }
        }
    }

    fn made(&mut self, actor: usize, change: Change) {
        if self.turn != Some(actor) {
            self.fail(format!("{} made {change} out of turn", self.actor(actor).name));
        }
        self.last = Some(actor);
        self.did(actor, Doing::Makes(change));
    }

    /// The actor has done a step.
    pub(super) fn did(&mut self, actor: usize, doing: Doing) {
        self.done.push(Step { line: 0, actor, doing });
        self.turn = None;
        self.yielded.clear();
        self.asked = 0;
    }

    /// The change that the actor comes to next, if it halts there and would make it now.
    pub(super) fn about_to(&self, actor: usize) -> Option<Change> {
        let Halt::Swap { page, current, next } = self.parts[actor].halt else { return None };
        let (before, after) = (Word::from_bits(current), Word::from_bits(next));
        let page_index = u32::try_from(page).expect("few pages");
        // A swap that will fail changes nothing, and one of ticket or generation alone nothing that a history tells.
        (self.cells[page].bits == current && before != after).then_some(Change { page: page_index, before, after })
    }

    /// The operation that the actor is about to begin, by its place in the program.
    pub(super) fn about_to_begin(&self, actor: usize) -> Option<usize> {
        if let Halt::Operation(index) = self.parts[actor].halt { Some(index) } else { None }
    }

    /// Whether the actor goes on only by the schedule's choice, or has nothing left to do.
    pub(super) fn halts(&self, actor: usize) -> bool {
        let halt = self.parts[actor].halt;
        self.about_to(actor).is_some() || self.has_finished(actor) || matches!(halt, Halt::Operation(_) | Halt::Midway)
    }

    /// The task of the actor, which goes on from where it halts.
    pub(super) fn release(&mut self, actor: usize) -> usize {
        let part = &mut self.parts[actor];
        if let Halt::Operation(_) | Halt::Midway = part.halt {
            part.halt = Halt::No;
        }
        part.task
    }

    /// The task of an actor that has not come to its first operation.
    pub(super) fn to_begin(&self) -> Option<usize> {
        self.parts.iter().find(|part| !part.begun).map(|part| part.task)
    }

    pub(super) fn has_finished(&self, actor: usize) -> bool {
        self.parts[actor].finished
    }

    /// Whether the actor can run, and has not looked in vain since the last step.
    pub(super) fn can_run(&self, actor: usize, runnable: &[usize]) -> bool {
        runnable.contains(&self.parts[actor].task) && !self.yielded.contains(&self.parts[actor].task)
    }

    /// The running task has looked in vain, unless it only halts.
    pub(super) fn note_yield(&mut self) {
        if self.actor_of(self.running).is_none_or(|actor| !self.halts(actor)) {
            self.yielded.push(self.running);
        }
    }

    /// Whether anybody has looked in vain; all may look again.
    pub(super) fn look_again(&mut self) -> bool {
        let any = !self.yielded.is_empty();
        self.yielded.clear();
        any
    }

    pub(super) fn runs(&mut self, task: usize) {
        self.running = task;
    }

    /// Whether the hold limit has passed for the running actor: if its next change, says the history, is what is due then,
    /// and the page is as it has to be for that.
    pub(super) fn time_has_passed(&mut self) -> bool {
        let actor = self.actor_of(self.running);
        let mut ahead = self.history.steps.iter().skip(self.done.len()).filter(|step| Some(step.actor) == actor);
        let change = ahead.find_map(|step| if let Doing::Makes(change) = step.doing { Some(change) } else { None });
        let due = change.is_some_and(|change| {
            change.is_overdue() && Word::from_bits(self.cells[change.page as usize].bits) == change.before
        });
        // A monitor that always finds that time has passed would never do anything else.
        self.asked += u32::from(due);
        due && self.asked <= ASKED_MAX
    }

    fn actor_of(&self, task: usize) -> Option<usize> {
        self.parts.iter().position(|part| part.task == task)
    }

    pub(super) fn actor(&self, actor: usize) -> &Actor {
        &self.history.actors[actor]
    }

    pub(super) fn everybody(&self) -> core::ops::Range<usize> {
        0..self.parts.len()
    }

    /// Whether every program has come to its end.
    pub(super) fn all_finished(&self) -> bool {
        self.everybody().all(|actor| self.actor(actor).kind == Kind::Monitor || self.has_finished(actor))
    }

    /// Whether some page is busy.
    pub(super) fn any_busy(&self) -> bool {
        self.cells.iter().any(|cell| Word::from_bits(cell.bits).is_busy())
    }
}
