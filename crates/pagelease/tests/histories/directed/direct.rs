//! The scheduler: has the actors take the steps of a history, or makes one up.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shuttle::scheduler::{Schedule, Scheduler, Task, TaskId};

use super::history::{Doing, Kind, Step};
use super::stage::{Act, MAIN, Stage};
use super::word::Change;

/// How often all may look in vain, one after the other, before that is taken for waiting in vain.
const ROUNDS_MAX: u32 = 100;

/// Where the steps come from.
pub(super) enum Plan {
    /// From the history.
    Follow,
    /// By chance: any actor that can do anything. What steps the history has does not matter.
    MakeUp(Chance),
}

/// A random sequence (`SplitMix64`).
pub(super) struct Chance(pub(super) u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}

/// What shall happen next.
#[derive(Copy, Clone)]
enum Aim {
    Step(Step),
    /// All run to their end.
    End,
}

/// Shared by the scheduler, the observer and the actors; all of one thread.
pub(super) type Shared = Arc<Mutex<Stage>>;

pub(super) fn lock(stage: &Shared) -> MutexGuard<'_, Stage> {
    stage.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) struct Director {
    stage: Shared,
    plan: Plan,
    begun: bool,
    aim: Option<Aim>,
    /// How many steps had been done when the aim was set.
    done: usize,
    /// Whether the actor that shall run has run.
    has_run: bool,
    rounds: u32,
}

impl Director {
    pub(super) fn new(stage: Shared, plan: Plan) -> Self {
        Self { stage, plan, begun: false, aim: None, done: 0, has_run: false, rounds: 0 }
    }

    /// Which task runs next while the actors are on; fails the history if none should.
    fn direct(&mut self, stage: &mut Stage, runnable: &[usize]) -> Option<usize> {
        // All it has to do is wait for the actors.
        if runnable.contains(&MAIN) && !stage.all_finished() {
            return Some(MAIN);
        }
        if let Some(task) = stage.to_begin() {
            return Some(task);
        }
        loop {
            let aim = self.aim(stage, runnable)?;
            let next = match aim {
                Aim::Step(Step { actor, doing: Doing::Makes(change), .. }) => {
                    self.change(stage, runnable, actor, change)
                }
                Aim::Step(Step { actor, doing: Doing::Runs, .. }) => self.run(stage, runnable, actor),
                Aim::End => self.end(stage, runnable),
            };
            match next {
                Ok(Some(task)) => return Some(task),
                Ok(None) => {}
                Err(why) => {
                    let message = failure(stage, aim, &why);
                    stage.fail(message);
                    return None;
                }
            }
        }
    }

    /// What shall happen next: what has been aimed at, until it is done.
    fn aim(&mut self, stage: &mut Stage, runnable: &[usize]) -> Option<Aim> {
        if stage.failure.is_some() {
            return None;
        }
        if let Some(aim) = self.aim
            && self.done == stage.done.len()
        {
            return Some(aim);
        }
        (self.done, self.has_run, self.rounds) = (stage.done.len(), false, 0);
        let aim = match &mut self.plan {
            Plan::Follow => stage.history.steps.get(self.done).map_or(Aim::End, |&step| Aim::Step(step)),
            Plan::MakeUp(chance) => {
                let possible: Vec<_> = stage.everybody().filter_map(|actor| possible(stage, runnable, actor)).collect();
                if stage.all_finished() && !stage.any_busy() {
                    Aim::End
                } else if possible.is_empty() {
                    stage.fail("nobody can do anything, and not all have finished");
                    return None;
                } else {
                    let chosen = chance.next() % u64::try_from(possible.len()).expect("few actors");
                    Aim::Step(possible[usize::try_from(chosen).expect("few actors")])
                }
            }
        };
        stage.turn = if let Aim::Step(Step { actor, .. }) = aim { Some(actor) } else { None };
        self.aim = Some(aim);
        Some(aim)
    }

    /// The actor makes this change.
    fn change(
        &mut self,
        stage: &mut Stage,
        runnable: &[usize],
        actor: usize,
        change: Change,
    ) -> Result<Option<usize>, String> {
        match stage.about_to(actor) {
            Some(next) if next == change => return Ok(Some(stage.release(actor))),
            Some(next) => return Err(format!("it is about to make `{next}`")),
            None if stage.has_finished(actor) => return Err("it has finished".to_owned()),
            None if stage.can_run(actor, runnable) => return Ok(Some(stage.release(actor))),
            None => {}
        }
        if let Some(helper) = helper(stage, runnable) {
            return Ok(Some(helper));
        }
        if stage.actor(actor).kind == Kind::Monitor
            && let Some(toucher) = toucher(stage, runnable, change.page)
        {
            return Ok(Some(stage.release(toucher)));
        }
        self.another_round(stage)
    }

    /// The actor runs as far as it gets.
    fn run(&mut self, stage: &mut Stage, runnable: &[usize], actor: usize) -> Result<Option<usize>, String> {
        let halts = stage.halts(actor);
        if !self.has_run && stage.has_finished(actor) {
            return Err("it has finished".to_owned());
        }
        if stage.about_to(actor).is_none() && !(self.has_run && halts) && stage.can_run(actor, runnable) {
            self.has_run = true;
            return Ok(Some(stage.release(actor)));
        }
        if self.has_run || halts {
            stage.did(actor, Doing::Runs);
            return Ok(None);
        }
        match helper(stage, runnable) {
            Some(helper) => Ok(Some(helper)),
            None => self.another_round(stage),
        }
    }

    /// All run to their end, and change nothing.
    fn end(&mut self, stage: &mut Stage, runnable: &[usize]) -> Result<Option<usize>, String> {
        for actor in stage.everybody() {
            if let Some(change) = stage.about_to(actor) {
                return Err(format!("{} is about to make `{change}`", stage.actor(actor).name));
            }
        }
        match stage.everybody().find(|&actor| stage.can_run(actor, runnable)) {
            Some(actor) => Ok(Some(stage.release(actor))),
            None if runnable.contains(&MAIN) => Ok(Some(MAIN)),
            None => self.another_round(stage),
        }
    }

    /// Nobody has anything to do but to look once more.
    fn another_round(&mut self, stage: &mut Stage) -> Result<Option<usize>, String> {
        self.rounds += 1;
        if !stage.look_again() {
            return Err("it is blocked".to_owned());
        }
        if self.rounds > ROUNDS_MAX {
            return Err("it waits in vain".to_owned());
        }
        Ok(None)
    }
}

/// What the actor can do next, if anything.
fn possible(stage: &Stage, runnable: &[usize], actor: usize) -> Option<Step> {
    let doing = match stage.about_to(actor) {
        Some(change) => Doing::Makes(change),
        None if stage.can_run(actor, runnable) && !stage.has_finished(actor) => Doing::Runs,
        None => return None,
    };
    Some(Step { line: 0, actor, doing })
}

/// Another actor that goes on without changing a word, or beginning anything: first who may have to wake others.
fn helper(stage: &mut Stage, runnable: &[usize]) -> Option<usize> {
    let helps = |&actor: &usize| {
        stage.can_run(actor, runnable) && stage.about_to(actor).is_none() && stage.about_to_begin(actor).is_none()
    };
    let helper = stage.last.into_iter().chain(stage.everybody()).find(helps)?;
    Some(stage.release(helper))
}

/// An actor that is about to touch the page.
fn toucher(stage: &Stage, runnable: &[usize], page: u32) -> Option<usize> {
    stage.everybody().find(|&actor| {
        let touches = stage.about_to_begin(actor).and_then(|index| stage.actor(actor).touches(index));
        touches == Some(page) && stage.can_run(actor, runnable)
    })
}

fn failure(stage: &Stage, aim: Aim, why: &str) -> String {
    let Aim::Step(Step { line, actor, doing }) = aim else { return format!("after the last step: {why}") };
    let name = &stage.actor(actor).name;
    let number = stage.done.len() + 1;
    match doing {
        Doing::Makes(change) => format!("step {number} (line {line}): {name} should make `{change}`, but {why}"),
        Doing::Runs => format!("step {number} (line {line}): {name} should run, but {why}"),
    }
}

/// What an execution fails with that `why` ended at the step it had come to.
pub(super) fn stuck(stage: &Stage, why: &str) -> String {
    let aim = stage.history.steps.get(stage.done.len()).map_or(Aim::End, |&step| Aim::Step(step));
    failure(stage, aim, why)
}

/// While nothing is directed: the main task, unless it waits; else one after the other.
fn undirected(runnable: &[usize], current: Option<usize>, is_yielding: bool) -> Option<usize> {
    if runnable.contains(&MAIN) && !(is_yielding && current == Some(MAIN)) {
        return Some(MAIN);
    }
    let next = runnable.iter().find(|&&task| current.is_none_or(|current| task > current));
    next.or(runnable.first()).copied()
}

impl Scheduler for Director {
    fn new_execution(&mut self) -> Option<Schedule> {
        (!core::mem::replace(&mut self.begun, true)).then(|| Schedule::new(0))
    }

    fn next_task(&mut self, runnable: &[&Task], current: Option<TaskId>, is_yielding: bool) -> Option<TaskId> {
        let runnable: Vec<usize> = runnable.iter().map(|task| task.id().into()).collect();
        let shared = self.stage.clone();
        let stage = &mut *lock(&shared);
        if is_yielding {
            stage.note_yield();
        }
        let next = match stage.act {
            Act::Directed => self.direct(stage, &runnable),
            Act::Setup | Act::Over => undirected(&runnable, current.map(usize::from), is_yielding),
        };
        let next = next?;
        stage.runs(next);
        Some(next.into())
    }

    /// Asked for when a deadline may have passed: 0 says that it has, the largest number that it has not.
    fn next_u64(&mut self) -> u64 {
        let shared = self.stage.clone();
        let mut stage = lock(&shared);
        match &mut self.plan {
            Plan::MakeUp(chance) => chance.next(),
            Plan::Follow if stage.act == Act::Directed && stage.time_has_passed() => 0,
            Plan::Follow => u64::MAX,
        }
    }
}
