//! The explored graph: every state that a model can reach, and every step between them.
//!
//! Breadth first, on one thread, states compared whole: the way back from a state is a shortest one, the numbering is the
//! same in every run, and two states are never taken for one (Stateright's own checkers keep 64 bits of a state instead,
//! see [`collision_chance`]). Works for any [`Model`]; [`crate::fair`] looks for infinite histories in it.

use std::hash::{BuildHasher, Hash};
use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::{DefaultHashBuilder, HashTable};
use stateright::Model;

/// A state's number: states are numbered in the order they were found.
pub type Node = u32;

/// One step of the graph.
#[derive(Copy, Clone, Debug)]
pub struct Edge<A> {
    /// The state it leads to.
    pub to: Node,
    /// The action.
    pub action: A,
}

/// Every reachable state of a model, and every step.
#[derive(Debug)]
pub struct Graph<M: Model> {
    states: Vec<M::State>,
    /// By which edge each state was found first; an initial state has none.
    parents: Vec<Option<Parent>>,
    edges: Vec<Edge<M::Action>>,
    /// `edges[first[n]..first[n + 1]]` leave state `n`.
    first: Vec<u32>,
    depth: u32,
}

#[derive(Copy, Clone, Debug)]
struct Parent {
    node: Node,
    edge: u32,
}

/// The model has more states than the caller allowed.
#[derive(Copy, Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("more than {limit} states; make the scenario smaller, or sample it with --random")]
pub struct TooLarge {
    /// What the caller allowed.
    pub limit: usize,
}

impl<M> Graph<M>
where
    M: Model<State: Clone + Eq + Hash, Action: Clone>,
{
    /// Explores `model`, up to `limit` states. `found` grows by each state found, for a progress line.
    ///
    /// # Errors
    ///
    /// [`TooLarge`] when there are more than `limit` states (at most 2^32 - 1).
    pub fn explore(model: &M, limit: usize, found: &AtomicU64) -> Result<Self, TooLarge> {
        let limit = limit.min(Node::MAX as usize);
        let hasher = DefaultHashBuilder::default();
        let mut graph =
            Self { states: Vec::new(), parents: Vec::new(), edges: Vec::new(), first: Vec::new(), depth: 0 };
        let mut known = HashTable::<Node>::new();
        for state in model.init_states() {
            graph.intern(state, None, &hasher, &mut known);
        }
        let (mut node, mut level_end, mut told) = (0, graph.states.len(), 0);
        let mut actions = Vec::new();
        while node < graph.states.len() {
            if node == level_end {
                level_end = graph.states.len();
                graph.depth += 1;
            }
            if graph.states.len() > limit {
                return Err(TooLarge { limit });
            }
            graph.first.push(number(graph.edges.len()));
            let state = graph.states[node].clone();
            model.actions(&state, &mut actions);
            for action in actions.drain(..) {
                let Some(next) = model.next_state(&state, action.clone()) else { continue };
                let parent = Parent { node: number(node), edge: number(graph.edges.len()) };
                let to = graph.intern(next, Some(parent), &hasher, &mut known);
                graph.edges.push(Edge { to, action });
            }
            node += 1;
            if node.is_multiple_of(4096) || node == graph.states.len() {
                found.fetch_add((graph.states.len() - told) as u64, Ordering::Relaxed);
                told = graph.states.len();
            }
        }
        graph.first.push(number(graph.edges.len()));
        Ok(graph)
    }

    fn intern(
        &mut self,
        state: M::State,
        parent: Option<Parent>,
        hasher: &DefaultHashBuilder,
        known: &mut HashTable<Node>,
    ) -> Node {
        let states = &mut self.states;
        let hash = hasher.hash_one(&state);
        if let Some(&node) = known.find(hash, |&node| states[node as usize] == state) {
            return node;
        }
        let node = number(states.len());
        states.push(state);
        self.parents.push(parent);
        known.insert_unique(hash, node, |&node| hasher.hash_one(&states[node as usize]));
        node
    }
}

impl<M: Model> Graph<M> {
    /// How many states there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.states.len()
    }

    /// Whether the model has no state at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    /// The longest of the shortest ways to a state, in steps.
    #[must_use]
    pub fn depth(&self) -> u32 {
        self.depth
    }

    /// Every state's number, in the order they were found: nearest first.
    pub fn nodes(&self) -> impl Iterator<Item = Node> + use<M> {
        0..number(self.states.len())
    }

    /// A state.
    #[must_use]
    pub fn state(&self, node: Node) -> &M::State {
        &self.states[node as usize]
    }

    /// The steps out of a state.
    #[must_use]
    pub fn edges(&self, node: Node) -> &[Edge<M::Action>] {
        &self.edges[self.edge_range(node)]
    }

    /// How many steps there are between all states.
    #[must_use]
    pub fn edge_count(&self) -> usize {
        self.edges.len()
    }

    /// The numbers of the edges out of a state, for [`Graph::edge`].
    #[must_use]
    pub fn edge_range(&self, node: Node) -> std::ops::Range<usize> {
        self.first[node as usize] as usize..self.first[node as usize + 1] as usize
    }

    /// The edge of this number.
    #[must_use]
    pub fn edge(&self, edge: usize) -> &Edge<M::Action> {
        &self.edges[edge]
    }

    /// A shortest way from an initial state to `node`: the initial state, and the edges' numbers.
    #[must_use]
    pub fn way_to(&self, node: Node) -> (Node, Vec<usize>) {
        let (mut node, mut way) = (node, Vec::new());
        while let Some(parent) = self.parents[node as usize] {
            way.push(parent.edge as usize);
            node = parent.node;
        }
        way.reverse();
        (node, way)
    }
}

/// The chance that a checker which keeps 64 bits of every state takes two of `states` for one, at most: n(n-1)/2 pairs,
/// each alike with a chance of 2^-64 (the union bound on the birthday problem).
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "a bound printed to two digits")]
pub fn collision_chance(states: u64) -> f64 {
    let n = states as f64;
    n * (n - 1.0).max(0.0) / 2.0 / 2f64.powi(64)
}

/// An index as it is stored; `explore` keeps the states below the limit.
fn number(index: usize) -> u32 {
    u32::try_from(index).expect("the graph is kept below 2^32 states and edges")
}
