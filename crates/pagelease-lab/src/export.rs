//! From a history of the shipped protocol's model to a test of the real engine.
//!
//! The engine can be made to follow a *directed schedule* on simulated memory: a text that says which thread changes which
//! page word next, and from what to what (crates/pagelease/tests/histories). [`schedule`] prints a history of the model as
//! such a text. What the engine then does otherwise is a mistake of the model, or of the engine.
//!
//! A schedule runs to the end of every program. So a history is brought to an end: whoever can take a step takes one, the
//! first actor first, a limit passes only when nothing else can happen, and a lease that the scenario never ends is ended.

use std::fmt::Write;
use std::sync::LazyLock;

use crate::case::{ReplayError, Token};
use crate::catalogue::{self, Unknown};
use crate::pagelease::{Actor, Design, Faults, Op, Pagelease, Role, SCENARIOS, Scenario};

/// Why a history cannot be told to the real engine.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ExportError {
    /// The token names what the lab does not know.
    #[error(transparent)]
    Unknown(#[from] Unknown),
    /// The design is not what this project ships.
    #[error("`{0}` is no configuration of the engine: only `pagelease` and its variants can be exported")]
    NotShipped(String),
    /// The token is of another version of the model.
    #[error(transparent)]
    Steps(#[from] ReplayError),
    /// The history goes round for ever.
    #[error("a history that goes round for ever cannot be followed to its end")]
    Endless,
    /// The scenario has something that a schedule cannot say.
    #[error("in `{scenario}`, {actor} {why}: a schedule cannot say that")]
    Scenario {
        /// The scenario.
        scenario: &'static str,
        /// The actor.
        actor: &'static str,
        /// What it does.
        why: &'static str,
    },
    /// A signal interrupts a claim.
    #[error("at step {step}, a signal interrupts {actor}: a schedule has no signals")]
    Signal {
        /// Which step, from 0.
        step: usize,
        /// Whom.
        actor: &'static str,
    },
    /// Nothing can happen any more, and not every program has ended.
    #[error("the history cannot be brought to an end: {0} waits for ever")]
    Stuck(&'static str),
    /// Others act in the middle of what the engine does without a halt.
    #[error("others act between `{first}` and `{last}` of {actor}, where the engine does not halt")]
    Entangled {
        /// The actor that would have to stop.
        actor: &'static str,
        /// A step of it.
        first: &'static str,
        /// A later step.
        last: &'static str,
    },
}

/// Prints the history of `token` as a schedule for the real engine: the text of a `.history` file.
///
/// # Errors
///
/// [`ExportError`]: the token is none of the shipped protocol's, or tells of what a schedule cannot.
pub fn schedule(token: &Token) -> Result<String, ExportError> {
    let entry = catalogue::design(&token.design)?;
    let case = entry.case(&token.scenario)?;
    let design = Design::named(&token.design).ok_or_else(|| ExportError::NotShipped(token.design.clone()))?;
    if token.path.loop_from.is_some() {
        return Err(ExportError::Endless);
    }
    case.history(&token.path, None)?;
    let scenario = Scenario::named(&token.scenario).expect("the catalogue has it");
    let programs = programs(design, scenario)?;
    let model = Pagelease::new(design, scenario);
    let ended = Pagelease::new(design, with_leases_ended(scenario));
    let steps = ended.brought_to_an_end(&model.actions_along(&token.path.choices)?)?;
    let names = names(scenario);
    let lines = ended.schedule(&steps, |actor| names[actor].clone())?;
    let mut text = String::new();
    let _ = header(&mut text, token, design, scenario);
    for (name, program) in names.iter().zip(&programs) {
        if let Some(program) = program {
            let _ = writeln!(text, "{}", format!("{name}: {program}").trim_end());
        }
    }
    let _ = writeln!(text, "\nsteps:");
    lines.iter().for_each(|line| _ = writeln!(text, "{line}"));
    Ok(text)
}

fn header(text: &mut String, token: &Token, design: Design, scenario: &Scenario) -> std::fmt::Result {
    let (faults, access, policy) = design.words();
    let limit = if scenario.limited { "passes" } else { "never" };
    let (first, rest) = scenario.what.split_at(1);
    writeln!(text, "# {}{rest}.", first.to_uppercase())?;
    writeln!(text, "# Exported from the model: {token}")?;
    writeln!(text, "faults: {faults}\naccess: {access}\npolicy: {policy}\nlimit: {limit}\npages: {}", scenario.pages)
}

/// What the actors are called in a schedule: by what they are, and numbered.
fn names(scenario: &Scenario) -> Vec<String> {
    let actors = scenario.actors;
    let earlier = |at: usize| actors[..at].iter().filter(|other| other.role == actors[at].role).count();
    let name = |at: usize| match (actors[at].role, earlier(at)) {
        (Role::Monitor, _) => "monitor".to_owned(),
        (Role::Thread, number) => format!("cpu{number}"),
        (Role::Device(device), 0) => format!("device{}", device + 1),
        (Role::Device(device), number) => {
            let letter = ('a'..='z').nth(number).expect("few threads of a device");
            format!("device{}{letter}", device + 1)
        }
    };
    (0..actors.len()).map(name).collect()
}

/// What each actor does, in a schedule's words; `None` for one that takes no part.
fn programs(design: Design, scenario: &'static Scenario) -> Result<Vec<Option<String>>, ExportError> {
    let ended = with_leases_ended(scenario);
    let program = |actor: &Actor| {
        let refuse = |why| ExportError::Scenario { scenario: scenario.name, actor: actor.name, why };
        let mut leases = std::collections::VecDeque::new();
        let mut words = Vec::new();
        for &op in actor.ops {
            words.push(match (op, actor.role) {
                (Op::Add(page), Role::Device(_)) => format!("touch {page}"),
                (Op::Add(page) | Op::Operate(page), _) => format!("add {page}"),
                (Op::Read(page), Role::Thread) => format!("load {page}"),
                (Op::Read(_), _) => return Err(refuse("reads through the CPU view")),
                (Op::Claim { access: Some(access), .. }, _) if access != design.access => {
                    return Err(refuse("claims for another access than the design's"));
                }
                (Op::Claim { from, to, lease, .. }, _) => {
                    leases.push_back(lease);
                    format!("claim {from}..{to}")
                }
                (Op::End(lease), _) if leases.pop_front() == Some(lease) => "drop".to_owned(),
                (Op::End(_), _) => return Err(refuse("ends another lease than its oldest")),
                (Op::DropView, _) => return Err(refuse("gives its view up")),
                (Op::DropRegion, _) => return Err(refuse("drops the region")),
                (Op::Pinned(_), _) => return Err(refuse("writes through a pin")),
                (Op::Repeat | Op::Retry, _) => return Err(refuse("begins its program anew")),
            });
        }
        let idle = actor.role == Role::Monitor && design.faults == Faults::InThread;
        Ok((!idle).then(|| words.join("; ")))
    };
    ended.actors.iter().map(program).collect()
}

/// The scenario in which every program ends its leases.
fn with_leases_ended(scenario: &'static Scenario) -> &'static Scenario {
    // Made once, for all: a model's scenario lives as long as the process.
    static ENDED: LazyLock<Vec<Scenario>> = LazyLock::new(|| SCENARIOS.iter().map(ended).collect());
    ENDED.iter().find(|ended| ended.name == scenario.name).unwrap_or(scenario)
}

fn ended(scenario: &Scenario) -> Scenario {
    let actor = |actor: &Actor| {
        let mut leases = Vec::new();
        for op in actor.ops {
            match *op {
                Op::Claim { lease, .. } => leases.push(lease),
                Op::End(lease) => leases.retain(|&other| other != lease),
                _ => {}
            }
        }
        let ops: Vec<_> = actor.ops.iter().copied().chain(leases.into_iter().map(Op::End)).collect();
        Actor { ops: ops.leak(), ..*actor }
    };
    Scenario { actors: scenario.actors.iter().map(actor).collect::<Vec<_>>().leak(), ..*scenario }
}
