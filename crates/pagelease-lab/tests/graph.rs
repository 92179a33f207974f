//! The explored graph and the search for fair loops, on models small enough to see through, and against a search of every
//! subset on random ones.

use std::collections::VecDeque;
use std::sync::atomic::AtomicU64;

use pagelease_lab::case::Case;
use pagelease_lab::fair::{Lasso, Most, Reversed, lasso, most};
use pagelease_lab::graph::{Graph, TooLarge};
use pagelease_lab::kernel::{self, Kernel};
use proptest::prelude::*;
use stateright::{Checker, Model, Property};

/// A step: who takes it, where it leads, what it is worth.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
struct Step {
    from: u8,
    actor: usize,
    to: u8,
    worth: u32,
}

/// A model given by its steps. It begins in state 0; something is owed in the states of `owed`.
#[derive(Clone, Debug)]
struct Tiny {
    steps: Vec<Step>,
    owed: Vec<u8>,
}

impl Model for Tiny {
    type State = u8;
    type Action = Step;

    fn init_states(&self) -> Vec<u8> {
        vec![0]
    }

    fn actions(&self, state: &u8, actions: &mut Vec<Step>) {
        actions.extend(self.steps.iter().filter(|step| step.from == *state));
    }

    fn next_state(&self, _: &u8, action: Step) -> Option<u8> {
        Some(action.to)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::eventually("paid", |model: &Self, state: &u8| !model.owed.contains(state))]
    }
}

fn tiny<const N: usize>(steps: [(u8, usize, u8); N], owed: &[u8]) -> Tiny {
    let steps = steps.map(|(from, actor, to)| Step { from, actor, to, worth: 0 }).to_vec();
    Tiny { steps, owed: owed.to_vec() }
}

fn worth<const N: usize>(steps: [(u8, u8, u32); N]) -> Tiny {
    let steps = steps.map(|(from, to, worth)| Step { from, actor: 0, to, worth }).to_vec();
    Tiny { steps, owed: Vec::new() }
}

fn explore(model: &Tiny) -> Graph<Tiny> {
    Graph::explore(model, 1000, &AtomicU64::new(0)).expect("a tiny model")
}

fn find(model: &Tiny) -> Option<Lasso> {
    let graph = explore(model);
    lasso(&graph, &Reversed::new(&graph), |step| step.actor, |node| model.owed.contains(graph.state(node)))
}

/// The states that a loop goes through, from its knot on.
fn round(model: &Tiny, lasso: &Lasso) -> Vec<u8> {
    let graph = explore(model);
    let mut states = vec![*graph.state(lasso.knot)];
    states.extend(lasso.round.iter().map(|&edge| graph.edge(edge).action.to));
    states
}

/// What Stateright makes of the same question.
fn stateright_finds(model: &Tiny) -> bool {
    model.clone().checker().spawn_bfs().join().discovery("paid").is_some()
}

fn gathers(model: &Tiny) -> Most {
    let graph = explore(model);
    most(&graph, &Reversed::new(&graph), |_, step| step.worth)
}

#[test]
fn a_diamond_is_explored_once_and_shortest_first() {
    let model = tiny([(0, 0, 1), (0, 1, 2), (1, 1, 3), (2, 0, 3), (3, 0, 4), (1, 0, 4)], &[]);
    let graph = explore(&model);
    assert_eq!((graph.len(), graph.edge_count(), graph.depth()), (5, 6, 2));
    let states: Vec<u8> = graph.nodes().map(|node| *graph.state(node)).collect();
    assert_eq!(states[..3], [0, 1, 2], "breadth first, in the order of the steps");
    let node = |wanted: u8| graph.nodes().find(|&node| *graph.state(node) == wanted).unwrap();
    for (state, length) in [(0, 0), (1, 1), (2, 1), (3, 2), (4, 2)] {
        let (first, way) = graph.way_to(node(state));
        assert_eq!((first, way.len()), (0, length), "to {state}");
        let mut at = 0;
        for edge in way {
            assert!(graph.edge_range(at).contains(&edge), "the way hangs together");
            at = graph.edge(edge).to;
        }
        assert_eq!(at, node(state), "the way leads there");
    }
}

#[test]
fn several_initial_states_are_all_explored() {
    struct Two;
    impl Model for Two {
        type State = u8;
        type Action = ();
        fn init_states(&self) -> Vec<u8> {
            vec![0, 10, 0]
        }
        fn actions(&self, state: &u8, actions: &mut Vec<()>) {
            actions.extend((state % 10 < 2).then_some(()));
        }
        fn next_state(&self, state: &u8, (): ()) -> Option<u8> {
            Some(state + 1)
        }
    }
    let found = AtomicU64::new(0);
    let graph = Graph::explore(&Two, 100, &found).unwrap();
    assert_eq!((graph.len(), graph.depth(), found.into_inner()), (6, 2, 6));
    let last = graph.nodes().find(|&node| *graph.state(node) == 12).unwrap();
    assert_eq!(*graph.state(graph.way_to(last).0), 10);
}

#[test]
fn exploring_stops_above_the_limit_and_not_at_it() {
    let chain =
        Tiny { steps: (0..10).map(|at| Step { from: at, actor: 0, to: at + 1, worth: 0 }).collect(), owed: vec![] };
    let at_most = |limit| Graph::explore(&chain, limit, &AtomicU64::new(0)).map(|graph| graph.len());
    assert_eq!(at_most(11), Ok(11));
    assert_eq!(at_most(10), Err(TooLarge { limit: 10 }));
    assert_eq!(at_most(0), Err(TooLarge { limit: 0 }));
    assert!(TooLarge { limit: 10 }.to_string().contains("more than 10 states"));
}

#[test]
fn a_dead_end_breaks_what_is_owed_there_and_nothing_else() {
    let steps = [(0, 0, 1), (1, 0, 2), (0, 1, 3)];
    let end = find(&tiny(steps, &[0, 1, 2])).expect("2 is an end");
    assert!(end.round.is_empty());
    assert_eq!(*explore(&tiny(steps, &[])).state(end.knot), 2);
    assert_eq!(find(&tiny(steps, &[0, 1])), None, "2 is an end, but it is paid");
    let nearest = find(&tiny(steps, &[0, 1, 2, 3])).expect("two ends");
    assert_eq!(*explore(&tiny(steps, &[])).state(nearest.knot), 3, "the nearer one");
}

#[test]
fn a_state_that_steps_to_itself_is_a_loop() {
    let model = tiny([(0, 0, 1), (1, 0, 1)], &[0, 1]);
    assert_eq!(round(&model, &find(&model).unwrap()), [1, 1]);
    assert_eq!(find(&tiny([(0, 0, 1), (1, 0, 1)], &[0])), None, "paid where it loops");
}

/// A loop with a paid state in it pays: only loops that stay owed count.
#[test]
fn a_loop_that_passes_a_paid_state_is_none() {
    let steps = [(0, 0, 1), (1, 0, 2), (2, 0, 0)];
    assert!(find(&tiny(steps, &[0, 1, 2])).is_some());
    assert_eq!(find(&tiny(steps, &[0, 1])), None);
}

#[test]
fn stateright_misses_the_cycle_and_we_do_not() {
    let ends = tiny([(0, 0, 1)], &[0, 1]);
    assert!(stateright_finds(&ends) && find(&ends).is_some(), "an end, both see");
    let cycle = tiny([(0, 0, 1), (1, 0, 0)], &[0, 1]);
    assert!(!stateright_finds(&cycle), "Stateright has learned to look at cycles: say so where we say that it has not");
    assert_eq!(round(&cycle, &find(&cycle).unwrap()), [0, 1, 0]);
    let paid = tiny([(0, 0, 1), (1, 0, 0), (1, 1, 2)], &[0, 1]);
    assert!(!stateright_finds(&paid) && find(&paid).is_none());
}

/// Actor 1 can step in state 1 alone, and never does: strong fairness forbids that, although weak fairness does not (in
/// state 0 it cannot step).
#[test]
fn a_loop_that_starves_somebody_now_and_then_able_is_unfair() {
    let steps = [(0, 0, 1), (1, 0, 0), (1, 1, 2)];
    assert_eq!(find(&tiny(steps, &[0, 1])), None);
    // Were its step back into the loop, it could be taken there.
    let model = tiny([(0, 0, 1), (1, 0, 0), (1, 1, 0)], &[0, 1]);
    let lasso = find(&model).expect("nobody is left out");
    let graph = explore(&model);
    let actors: Vec<usize> = lasso.round.iter().map(|&edge| graph.edge(edge).action.actor).collect();
    assert!(actors.contains(&0) && actors.contains(&1), "{actors:?}");
}

/// Whoever can step nowhere in the loop is not starved by it: actor 1 has stepped once, and waits from then on.
#[test]
fn somebody_who_waits_all_along_the_loop_does_not_make_it_unfair() {
    let model = tiny([(0, 1, 1), (1, 0, 2), (2, 0, 1)], &[0, 1, 2]);
    assert_eq!(round(&model, &find(&model).expect("1 and 2 go round")), [1, 2, 1]);
}

/// 0, 1, 2 go round and starve actor 1 in 2; but 0 and 1 go round without it.
#[test]
fn a_fair_loop_within_an_unfair_one_is_found() {
    let model = tiny([(0, 0, 1), (1, 0, 0), (1, 0, 2), (2, 0, 0), (2, 1, 3)], &[0, 1, 2]);
    assert_eq!(round(&model, &find(&model).unwrap()), [0, 1, 0]);
    // Without the short cut there is nothing fair inside.
    assert_eq!(find(&tiny([(0, 0, 1), (1, 0, 2), (2, 0, 0), (2, 1, 3)], &[0, 1, 2])), None);
}

/// Dropping the states where one is starved leaves a loop that starves another: it takes a second round.
#[test]
fn what_is_left_of_an_unfair_loop_is_judged_anew() {
    let outer = [(0, 0, 1), (1, 0, 2), (2, 0, 0), (1, 0, 0), (2, 1, 9), (1, 2, 9)];
    assert_eq!(find(&tiny(outer, &[0, 1, 2])), None);
    let inner = [(0, 0, 1), (1, 0, 2), (2, 0, 0), (1, 0, 0), (2, 1, 9), (1, 2, 9), (0, 0, 0)];
    let model = tiny(inner, &[0, 1, 2]);
    assert_eq!(round(&model, &find(&model).unwrap()), [0, 0]);
}

#[test]
fn of_two_fair_loops_the_nearer_is_taken() {
    let model =
        tiny([(0, 0, 1), (1, 0, 2), (2, 0, 3), (3, 0, 3), (0, 0, 4), (4, 0, 5), (5, 0, 4)], &[0, 1, 2, 3, 4, 5]);
    assert_eq!(round(&model, &find(&model).unwrap()), [4, 5, 4]);
}

#[test]
fn the_most_of_a_model_without_loops_is_that_of_its_best_history() {
    let model = worth([(0, 1, 1), (1, 3, 5), (0, 2, 2), (2, 3, 1), (3, 4, 0)]);
    let graph = explore(&model);
    let Most::Finite(most, way) = gathers(&model) else { panic!("there is no loop") };
    assert_eq!(most, 6);
    assert_eq!(way.iter().map(|&edge| graph.edge(edge).action.worth).sum::<u32>(), 6);
    assert_eq!(graph.edge(way[0]).action.from, 0);
    assert!(matches!(gathers(&worth([(0, 1, 0), (1, 2, 0)])), Most::Finite(0, _)));
}

#[test]
fn a_loop_that_gathers_has_no_bound() {
    let model = worth([(0, 1, 9), (1, 2, 0), (2, 1, 1), (2, 3, 50)]);
    let Most::Unbounded(lasso) = gathers(&model) else { panic!("1 and 2 gather for ever") };
    assert_eq!(round(&model, &lasso), [1, 2, 1]);
    let to_itself = worth([(0, 1, 0), (1, 1, 1)]);
    let Most::Unbounded(lasso) = gathers(&to_itself) else { panic!("1 gathers for ever") };
    assert_eq!(round(&to_itself, &lasso), [1, 1]);
}

#[test]
fn a_loop_that_gathers_nothing_adds_nothing() {
    let model = worth([(0, 1, 2), (1, 2, 0), (2, 1, 0), (2, 3, 3), (3, 3, 0), (1, 4, 1)]);
    assert!(matches!(gathers(&model), Most::Finite(5, _)));
}

/// Steps between at most [`STATES`] states, by at most three actors.
fn any_model() -> impl Strategy<Value = Tiny> {
    let step = (0..STATES, 0..3usize, 0..STATES, prop_oneof![3 => Just(0u32), 1 => 1..3u32])
        .prop_map(|(from, actor, to, worth)| Step { from, actor, to, worth });
    (prop::collection::vec(step, 0..14), prop::collection::vec(0..STATES, 0..8))
        .prop_map(|(steps, owed)| Tiny { steps, owed })
}

const STATES: u8 = 6;

/// How far each state is from state 0; `None`: not to be reached.
fn distances(model: &Tiny) -> Vec<Option<usize>> {
    let mut far = vec![None; STATES.into()];
    far[0] = Some(0);
    let mut queue = VecDeque::from([0]);
    while let Some(at) = queue.pop_front() {
        for step in model.steps.iter().filter(|step| step.from == at) {
            if far[usize::from(step.to)].is_none() {
                far[usize::from(step.to)] = far[usize::from(at)].map(|far| far + 1);
                queue.push_back(step.to);
            }
        }
    }
    far
}

/// Whether the states of `set` (as bits) are a fair loop: each leads to each inside, and who can step does so inside.
fn fair_set(model: &Tiny, set: u8) -> bool {
    let has = |state: u8| set & 1 << state != 0;
    let inside: Vec<Step> = model.steps.iter().copied().filter(|step| has(step.from) && has(step.to)).collect();
    let spreads = |from: u8| {
        let mut reached = inside.iter().filter(|step| step.from == from).fold(0u8, |set, step| set | 1 << step.to);
        for _ in 0..STATES {
            reached = inside
                .iter()
                .filter(|step| reached & 1 << step.from != 0)
                .fold(reached, |set, step| set | 1 << step.to);
        }
        reached == set
    };
    let able = model.steps.iter().filter(|step| has(step.from));
    (0..STATES).filter(|&state| has(state)).all(spreads)
        && able.clone().all(|step| inside.iter().any(|other| other.actor == step.actor))
        && !inside.is_empty()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Against every subset of states: a lasso is found exactly if there is one, it is one, and none begins nearer.
    #[test]
    fn the_search_agrees_with_trying_every_set_of_states(model in any_model()) {
        let far = distances(&model);
        let reached = |state: &u8| far[usize::from(*state)].is_some();
        let ends: Vec<usize> = model.owed.iter().copied().filter(reached)
            .filter(|&state| model.steps.iter().all(|step| step.from != state))
            .filter_map(|state| far[usize::from(state)]).collect();
        let all = model.owed.iter().copied().filter(reached).fold(0u8, |set, state| set | 1 << state);
        let nearest_loop = (1..=all).filter(|set| set & !all == 0 && fair_set(&model, *set))
            .flat_map(|set| (0..STATES).filter(move |state| set & 1 << state != 0))
            .filter_map(|state| far[usize::from(state)]).min();
        let graph = explore(&model);
        let found = find(&model);
        prop_assert_eq!(found.is_some(), !ends.is_empty() || nearest_loop.is_some());
        let Some(lasso) = found else { return Ok(()) };
        let way_in = graph.way_to(lasso.knot).1.len();
        if lasso.round.is_empty() {
            prop_assert!(graph.edges(lasso.knot).is_empty() && model.owed.contains(graph.state(lasso.knot)));
            prop_assert_eq!(Some(way_in), ends.into_iter().min());
        } else {
            let states = round(&model, &lasso);
            prop_assert_eq!(states.first(), states.last());
            prop_assert!(states.iter().all(|state| model.owed.contains(state)));
            let taken: Vec<Step> = lasso.round.iter().map(|&edge| graph.edge(edge).action).collect();
            prop_assert!(taken.iter().zip(&states).all(|(step, state)| step.from == *state));
            let able = model.steps.iter().filter(|step| states.contains(&step.from));
            prop_assert!(able.clone().all(|step| taken.iter().any(|other| other.actor == step.actor)));
            prop_assert_eq!(Some(way_in), nearest_loop);
        }
    }

    /// Against adding up step by step for longer than any finite sum takes.
    #[test]
    fn the_most_agrees_with_adding_up(model in any_model()) {
        let mut ahead = vec![0u64; STATES.into()];
        for _ in 0..200 {
            let before = ahead.clone();
            for step in &model.steps {
                let through = u64::from(step.worth) + before[usize::from(step.to)];
                let best = &mut ahead[usize::from(step.from)];
                *best = through.max(*best);
            }
        }
        let bound = u64::from(STATES) * 3;
        match gathers(&model) {
            Most::Finite(most, _) => prop_assert_eq!(most, ahead[0]),
            Most::Unbounded(lasso) => {
                prop_assert!(ahead[0] > bound, "{} is no more than a history without loops has", ahead[0]);
                let graph = explore(&model);
                prop_assert!(lasso.round.iter().any(|&edge| graph.edge(edge).action.worth != 0));
                let states = round(&model, &lasso);
                prop_assert_eq!(states.first(), states.last());
            }
        }
    }
}

/// A model with one property, which holds: Stateright stops once each property is decided, and visits all of this.
#[derive(Clone)]
struct Whole(Kernel);

impl Model for Whole {
    type State = kernel::State;
    type Action = kernel::Action;

    fn init_states(&self) -> Vec<kernel::State> {
        self.0.init_states()
    }

    fn actions(&self, state: &kernel::State, actions: &mut Vec<kernel::Action>) {
        self.0.actions(state, actions);
    }

    fn next_state(&self, state: &kernel::State, action: kernel::Action) -> Option<kernel::State> {
        self.0.next_state(state, action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always("all", |_, _| true)]
    }
}

#[test]
fn we_count_as_many_states_as_stateright_does() {
    let case = |design: &str, scenario: &str| Kernel {
        design: *kernel::design::ALL.iter().find(|known| known.name == design).expect("a design"),
        scenario: *kernel::scenario::ALL.iter().find(|known| known.name == scenario).expect("a scenario"),
    };
    for (design, scenario) in [("linux-7.3", "touch"), ("linux-2021", "dontneed"), ("filter-token", "fork")] {
        let model = case(design, scenario);
        let graph = Graph::explore(&model, 1_000_000, &AtomicU64::new(0)).unwrap();
        assert!(graph.len() > 100, "{design} {scenario} is too small to tell");
        let breadth = Whole(model.clone()).checker().spawn_bfs().join();
        assert_eq!(graph.len(), breadth.unique_state_count(), "{design} {scenario}, breadth first");
        let (depth_first, broken) = model.count(false);
        assert_eq!(graph.len(), depth_first, "{design} {scenario}, depth first");
        let ours = graph.nodes().fold(pagelease_lab::PropertySet::NONE, |all, node| {
            all.with(pagelease_lab::Subject::broken(&model, graph.state(node)))
        });
        assert_eq!(ours, broken, "{design} {scenario}: the same safety properties are broken");
    }
}
