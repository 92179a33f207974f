//! A case: one design in one scenario, whichever model it belongs to. It can be checked, replayed, sampled and explored.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use stateright::{Checker, Model};

use crate::fair::{self, Most, Reversed};
use crate::graph::{Graph, Node, TooLarge};
use crate::history::{History, StepView};
use crate::property::{Kind, Property, PropertySet};
use crate::subject::{Broken, Subject};

/// A path through a model: at each step the place of the one taken among those possible; and where it goes back to.
#[derive(Clone, Debug, Default, Eq, PartialEq, Ord, PartialOrd)]
pub struct Path {
    /// The places.
    pub choices: Vec<u8>,
    /// An infinite history goes back to this step.
    pub loop_from: Option<usize>,
}

/// What breaks a property in one case.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    /// The property.
    pub property: Property,
    /// The shortest history that breaks it here.
    pub path: Path,
}

/// The most spurious invalidations that one history has.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Worst {
    /// How many; `None`: without bound.
    pub count: Option<u64>,
    /// A history that has as many, or that has more each time it goes round.
    pub path: Path,
}

/// What checking one case found.
#[derive(Clone, Debug)]
pub struct Checked {
    /// Distinct states, all there are.
    pub states: usize,
    /// Steps between them.
    pub edges: usize,
    /// The longest of the shortest ways to a state.
    pub depth: u32,
    /// How long it took.
    pub time: Duration,
    /// What is broken, at most one a property.
    pub findings: Vec<Finding>,
    /// Spurious invalidations.
    pub spurious: Worst,
    /// What this case puts to the test: properties that could have been broken in it.
    pub tested: PropertySet,
    /// How often each step of the design fired, over all states.
    pub fired: BTreeMap<&'static str, u64>,
}

/// A history that cannot be replayed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ReplayError {
    /// There is no such step.
    #[error(
        "step {step} of the history takes possibility {choice}, and there are {possible}: it belongs to another version of the model"
    )]
    NoSuchStep {
        /// Which step, from 0.
        step: usize,
        /// What it takes.
        choice: u8,
        /// How many there are.
        possible: usize,
    },
    /// It goes back to a state that it is not in.
    #[error("after its last step the history is not in the state that step {} begins in: it is no loop", .0 + 1)]
    NoLoop(usize),
}

/// One design in one scenario. Implemented for every [`Subject`] that is [`Named`].
pub trait Case: Send + Sync {
    /// The design's and the scenario's name.
    fn names(&self) -> (&'static str, &'static str);

    /// What happens in the scenario, in one line.
    fn what(&self) -> &'static str;

    /// Explores every state, up to `limit`, and decides every property.
    ///
    /// # Errors
    ///
    /// [`TooLarge`].
    fn check(&self, limit: usize, found: &AtomicU64) -> Result<Checked, TooLarge>;

    /// A history for a reader: along `path`, as breaking `property`, or whatever it breaks if none is given.
    ///
    /// # Errors
    ///
    /// [`ReplayError`] when there is no such path.
    fn history(&self, path: &Path, property: Option<Property>) -> Result<History, ReplayError>;

    /// One random history: to its end, or `steps` steps, each possibility taken with the same chance. `random` gives the
    /// numbers. Returns what it broke first, with the path to there.
    fn sample(&self, steps: usize, random: &mut dyn FnMut() -> u64) -> Sample;

    /// Every step that the design has here.
    fn steps(&self) -> Vec<&'static str>;

    /// Opens Stateright's explorer at `address`; returns when it is stopped.
    fn explore(&self, address: std::net::SocketAddr);

    /// Counts the states depth first with Stateright, modulo the model's symmetry if `symmetry`. The safety properties that
    /// are broken.
    fn count(&self, symmetry: bool) -> (usize, PropertySet);
}

/// What one random history did.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Sample {
    /// Its steps.
    pub steps: usize,
    /// Whether it came to an end.
    pub ended: bool,
    /// Spurious invalidations in it.
    pub spurious: u64,
    /// What it broke, each with the path to there: safety properties, and liveness ones if it ended with something owed.
    pub findings: Vec<Finding>,
}

/// A subject that knows its design's and its scenario's name.
pub trait Named: Subject + Clone + Send + 'static {
    /// The design's and the scenario's name.
    fn names(&self) -> (&'static str, &'static str);

    /// What happens in the scenario, in one line.
    fn what(&self) -> &'static str;

    /// The safety properties that its scenario can break at all; liveness is found out by itself.
    fn judged(&self) -> PropertySet;

    /// The step that has to fire for a safety property to be put to the test: where a device never stores, nothing that is
    /// said of its stores is worth anything.
    fn needs(&self, property: Property) -> Option<&'static str> {
        let _ = property;
        None
    }

    /// A state that stands for every one symmetric to it; the state itself where the model knows no symmetry.
    fn representative(state: &Self::State) -> Self::State {
        *state
    }
}

impl<S: Named> Case for S {
    fn names(&self) -> (&'static str, &'static str) {
        Named::names(self)
    }

    fn what(&self) -> &'static str {
        Named::what(self)
    }

    fn steps(&self) -> Vec<&'static str> {
        Subject::steps(self)
    }

    fn check(&self, limit: usize, found: &AtomicU64) -> Result<Checked, TooLarge> {
        let begun = Instant::now();
        let graph = Graph::explore(self, limit, found)?;
        let reversed = Reversed::new(&graph);
        let mut findings: Vec<Finding> = Vec::new();
        let (mut seen, mut tested) = (PropertySet::NONE, PropertySet::NONE);
        let actors = self.actors().len();
        let mut fired = hashbrown::HashMap::<&'static str, u64>::new();
        let mut owed = Vec::with_capacity(graph.len() * actors);
        for node in graph.nodes() {
            let state = graph.state(node);
            for property in self.broken(state).without(seen).iter() {
                let (_, way) = graph.way_to(node);
                findings.push(Finding { property, path: Path { choices: places(&graph, &way), loop_from: None } });
            }
            seen = seen.with(self.broken(state));
            owed.extend((0..actors).map(|actor| self.owed(state, actor)));
            tested = owed[owed.len() - actors..].iter().fold(tested, |tested, &owed| tested.with(owed));
            for edge in graph.edges(node) {
                *fired.entry(self.step(state, edge.action)).or_insert(0) += 1;
            }
        }
        let safety = self.judged().iter().filter(|property| property.kind() == Kind::Safety);
        for property in safety.filter(|&property| self.needs(property).is_none_or(|step| fired.contains_key(step))) {
            tested = tested.with(property.set());
        }
        tested = tested.with(seen);
        let live = Property::ALL.iter().filter(|property| property.kind() == Kind::Liveness && tested.has(**property));
        for &property in live.filter(|&&property| !seen.has(property)) {
            let lassos = (0..actors).filter_map(|actor| {
                let owed = |node| owed[node as usize * actors + actor].has(property);
                fair::lasso(&graph, &reversed, |action| self.actor(*action), owed)
            });
            let shortest = lassos.map(|lasso| lasso_path(&graph, &lasso)).min_by_key(|path| path.choices.len());
            findings.extend(shortest.map(|path| Finding { property, path }));
        }
        let spurious = match fair::most(&graph, &reversed, |state, action| self.spurious(state, *action)) {
            Most::Finite(count, way) => {
                Worst { count: Some(count), path: Path { choices: places(&graph, &way), loop_from: None } }
            }
            Most::Unbounded(lasso) => Worst { count: None, path: lasso_path(&graph, &lasso) },
        };
        Ok(Checked {
            states: graph.len(),
            edges: graph.edge_count(),
            depth: graph.depth(),
            time: begun.elapsed(),
            findings,
            spurious,
            tested,
            fired: fired.into_iter().collect(),
        })
    }

    fn history(&self, path: &Path, property: Option<Property>) -> Result<History, ReplayError> {
        let mut states = self.init_states();
        states.truncate(1);
        let mut steps = Vec::new();
        for (step, &choice) in path.choices.iter().enumerate() {
            let state = *states.last().expect("a model has an initial state");
            let possible = self.next_steps(&state);
            let Some(&(action, next)) = possible.get(usize::from(choice)) else {
                return Err(ReplayError::NoSuchStep { step, choice, possible: possible.len() });
            };
            steps.push((state, action));
            states.push(next);
        }
        let last = *states.last().expect("a model has an initial state");
        if let Some(from) = path.loop_from.filter(|&from| states.get(from) != Some(&last)) {
            return Err(ReplayError::NoLoop(from));
        }
        let property = property.or_else(|| broken_by(self, path, &states));
        let sentence = property.map_or_else(String::new, |property| {
            self.explain(&Broken { property, steps: &steps, last, loop_from: path.loop_from })
        });
        let mut tables = self.tables(&states).into_iter();
        let initial = tables.next().expect("a model has an initial state");
        let views = steps.iter().zip(tables).zip(&states[1..]).map(|((&(before, action), cells), after)| StepView {
            actor: self.actor(action),
            name: self.step(&before, action).to_owned(),
            detail: self.detail(&before, action),
            cells,
            broken: self.broken(after).iter().map(|property| property.name().to_owned()).collect(),
        });
        let (design, scenario) = Named::names(self);
        Ok(History {
            design: design.to_owned(),
            scenario: scenario.to_owned(),
            property: property.map(|property| property.name().to_owned()),
            sentence,
            token: Token { design: design.to_owned(), scenario: scenario.to_owned(), path: path.clone() }.to_string(),
            actors: self.actors(),
            steps: views.collect(),
            initial,
            loop_from: path.loop_from,
        })
    }

    fn sample(&self, steps: usize, random: &mut dyn FnMut() -> u64) -> Sample {
        let mut state = self.init_states().swap_remove(0);
        let mut sample = Sample { steps: 0, ended: false, spurious: 0, findings: Vec::new() };
        let (mut choices, mut seen) = (Vec::new(), PropertySet::NONE);
        while sample.steps < steps {
            let possible = self.next_steps(&state);
            if possible.is_empty() {
                sample.ended = true;
                break;
            }
            let place = usize::try_from(random() % possible.len() as u64).expect("fewer than the possibilities");
            let (action, next) = possible[place];
            sample.spurious += u64::from(self.spurious(&state, action));
            choices.push(u8::try_from(place).expect("at most 32 actors"));
            sample.steps += 1;
            state = next;
            for property in self.broken(&state).without(seen).iter() {
                sample.findings.push(Finding { property, path: Path { choices: choices.clone(), loop_from: None } });
            }
            seen = seen.with(self.broken(&state));
        }
        if sample.ended {
            let owed =
                (0..self.actors().len()).fold(PropertySet::NONE, |owed, actor| owed.with(self.owed(&state, actor)));
            for property in owed.without(seen).iter() {
                sample.findings.push(Finding { property, path: Path { choices: choices.clone(), loop_from: None } });
            }
        }
        sample
    }

    fn explore(&self, address: std::net::SocketAddr) {
        self.clone().checker().serve(address);
    }

    fn count(&self, symmetry: bool) -> (usize, PropertySet) {
        let builder = Whole(self.clone()).checker();
        let builder = if symmetry { builder.symmetry_fn(S::representative) } else { builder };
        let states = builder.spawn_dfs().join().unique_state_count();
        let builder = self.clone().checker();
        let builder = if symmetry { builder.symmetry_fn(S::representative) } else { builder };
        let discoveries = builder.spawn_dfs().join().discoveries();
        let broken = discoveries.keys().filter_map(|name| Property::named(name));
        (states, broken.fold(PropertySet::NONE, |set, property| set.with(property.set())))
    }
}

/// A subject with one property, which always holds: a checker of Stateright's stops once each property is decided, and so
/// visits every state of this.
#[derive(Clone, Debug)]
struct Whole<S>(S);

impl<S: Subject> Model for Whole<S> {
    type State = S::State;
    type Action = S::Action;

    fn init_states(&self) -> Vec<S::State> {
        self.0.init_states()
    }

    fn actions(&self, state: &S::State, actions: &mut Vec<S::Action>) {
        self.0.actions(state, actions);
    }

    fn next_state(&self, last: &S::State, action: S::Action) -> Option<S::State> {
        self.0.next_state(last, action)
    }

    fn properties(&self) -> Vec<stateright::Property<Self>> {
        vec![stateright::Property::always("every state is visited", |_: &Self, _| true)]
    }
}

/// What a history breaks: the first of what its last step breaks, or else of what it leaves owed to one actor, at its end or
/// all the way round.
fn broken_by<S: Subject>(subject: &S, path: &Path, states: &[S::State]) -> Option<Property> {
    let last = states.last()?;
    if let (Some(property), None) = (subject.broken(last).iter().next(), path.loop_from) {
        return Some(property);
    }
    let for_ever = match path.loop_from {
        Some(from) => &states[from..],
        None if subject.next_steps(last).is_empty() => &states[states.len() - 1..],
        None => return None,
    };
    let owed = (0..subject.actors().len()).flat_map(|actor| {
        let all = for_ever.iter().map(|state| subject.owed(state, actor));
        all.reduce(PropertySet::both).unwrap_or_default().iter().collect::<Vec<_>>()
    });
    owed.min()
}

fn places<M: Model>(graph: &Graph<M>, way: &[usize]) -> Vec<u8> {
    let (mut at, mut places): (Node, Vec<u8>) = (0, Vec::with_capacity(way.len()));
    for &edge in way {
        let place = edge - graph.edge_range(at).start;
        places.push(u8::try_from(place).expect("at most 32 actors, with few possibilities each"));
        at = graph.edge(edge).to;
    }
    places
}

fn lasso_path<M: Model>(graph: &Graph<M>, lasso: &fair::Lasso) -> Path {
    let (_, mut way) = graph.way_to(lasso.knot);
    let loop_from = if lasso.round.is_empty() { None } else { Some(way.len()) };
    way.extend(&lasso.round);
    Path { choices: places(graph, &way), loop_from }
}

/// A history in one word: `design:scenario:steps`, a digit of base 36 a step, and `~n` if it goes back to step n.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Token {
    /// The design.
    pub design: String,
    /// The scenario.
    pub scenario: String,
    /// The path.
    pub path: Path,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.design, self.scenario)?;
        for &choice in &self.path.choices {
            let digit = char::from_digit(choice.into(), 36).expect("fewer than 36 possibilities");
            write!(f, "{digit}")?;
        }
        self.path.loop_from.map_or(Ok(()), |from| write!(f, "~{from}"))
    }
}

/// A word that is no token.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{0}` is no history: one looks like linux-7.3:repeat:00000~3")]
pub struct NoToken(String);

impl std::str::FromStr for Token {
    type Err = NoToken;

    fn from_str(word: &str) -> Result<Self, NoToken> {
        let refuse = || NoToken(word.to_owned());
        let (design, rest) = word.split_once(':').ok_or_else(refuse)?;
        let (scenario, rest) = rest.split_once(':').ok_or_else(refuse)?;
        let (digits, from) = match rest.split_once('~') {
            Some((digits, from)) => (digits, Some(from.parse().map_err(|_| refuse())?)),
            None => (rest, None),
        };
        let digit = |digit: char| digit.to_digit(36).and_then(|digit| u8::try_from(digit).ok());
        let choices: Vec<u8> = digits.chars().map(digit).collect::<Option<_>>().ok_or_else(refuse)?;
        if from.is_some_and(|from| from >= choices.len()) {
            return Err(refuse());
        }
        let path = Path { choices, loop_from: from };
        Ok(Self { design: design.to_owned(), scenario: scenario.to_owned(), path })
    }
}
