//! Fair liveness, by real lassos.
//!
//! A property 'what is owed is paid in the end' is broken by a history along which something stays owed for ever: one that
//! ends so (nobody can take a step), or one that goes round a loop. A loop counts only if a scheduler could take it without
//! starving anybody: **strong fairness**, an actor that can step again and again along the loop does step in it. (Linux's
//! locks queue their waiters, so an actor that finds the lock free again and again gets it.)
//!
//! The search, for one property over the explored graph:
//!
//! 1. Keep the states in which it is owed. One without any step is an end that breaks it.
//! 2. Drop, again and again, states without a successor among those kept, or without a predecessor: on no loop.
//! 3. Take the strongly connected components of the rest (`petgraph`, Kosaraju). In a component, an actor that can step in
//!    some state and takes no step inside makes it unfair: drop the states in which it can, and take the components of
//!    what is left (Emerson and Lei's fixpoint for strong fairness; Streett emptiness).
//! 4. A component that is left and has a step is a fair loop. The history goes the shortest way to the component found
//!    first, then round inside it so that every actor that can step does.
//!
//! Stateright's own `eventually` does not look at loops; this works on any [`Model`] of which actions name an actor.

use petgraph::algo::kosaraju_scc;
use petgraph::graph::{DiGraph, NodeIndex};
use stateright::Model;

use crate::graph::{Graph, Node};

/// A history along which something stays owed: a way to a state, then a loop back to it, or an end there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Lasso {
    /// The state at which the loop begins and ends; or the end.
    pub knot: Node,
    /// The edges of the loop. Empty: the history ends at `knot`, nobody can take a step.
    pub round: Vec<usize>,
}

/// What the searches of a graph share: its steps reversed, and which states lead into a loop at all. Made once a graph.
#[derive(Debug)]
pub struct Reversed {
    sources: Vec<Node>,
    first: Vec<u32>,
    loops: Vec<bool>,
}

impl Reversed {
    /// Reverses `graph`.
    #[must_use]
    pub fn new<M: Model>(graph: &Graph<M>) -> Self {
        let mut first = vec![0u32; graph.len() + 1];
        for node in graph.nodes() {
            for edge in graph.edges(node) {
                first[edge.to as usize + 1] += 1;
            }
        }
        for index in 1..first.len() {
            first[index] += first[index - 1];
        }
        let (mut next, mut sources) = (first.clone(), vec![0; graph.edge_count()]);
        for node in graph.nodes() {
            for edge in graph.edges(node) {
                sources[next[edge.to as usize] as usize] = node;
                next[edge.to as usize] += 1;
            }
        }
        let mut reversed = Self { sources, first, loops: Vec::new() };
        let mut loops = vec![true; graph.len()];
        trim(graph, &reversed, &mut loops, |_| ());
        reversed.loops = loops;
        reversed
    }

    fn sources(&self, node: Node) -> &[Node] {
        &self.sources[self.first[node as usize] as usize..self.first[node as usize + 1] as usize]
    }
}

/// Drops, again and again, kept states without a successor among those kept. `dropped` hears of each, successors first.
pub(crate) fn trim<M: Model>(graph: &Graph<M>, reversed: &Reversed, kept: &mut [bool], mut dropped: impl FnMut(Node)) {
    let mut successors = vec![0u32; graph.len()];
    let mut ends = Vec::new();
    for node in graph.nodes().filter(|&node| kept[node as usize]) {
        let count = graph.edges(node).iter().filter(|edge| kept[edge.to as usize]).count();
        successors[node as usize] = u32::try_from(count).expect("edges are counted in 32 bits");
        if count == 0 {
            ends.push(node);
        }
    }
    while let Some(node) = ends.pop() {
        kept[node as usize] = false;
        dropped(node);
        for &source in reversed.sources(node) {
            if kept[source as usize] {
                successors[source as usize] -= 1;
                if successors[source as usize] == 0 {
                    ends.push(source);
                }
            }
        }
    }
}

/// Drops, again and again, kept states without a predecessor among those kept.
fn trim_sources<M: Model>(graph: &Graph<M>, reversed: &Reversed, kept: &mut [bool]) {
    let mut predecessors = vec![0u32; graph.len()];
    let mut sources = Vec::new();
    for node in graph.nodes().filter(|&node| kept[node as usize]) {
        let count = reversed.sources(node).iter().filter(|&&source| kept[source as usize]).count();
        predecessors[node as usize] = u32::try_from(count).expect("edges are counted in 32 bits");
        if count == 0 {
            sources.push(node);
        }
    }
    while let Some(node) = sources.pop() {
        kept[node as usize] = false;
        for edge in graph.edges(node).iter().filter(|edge| kept[edge.to as usize]) {
            predecessors[edge.to as usize] -= 1;
            if predecessors[edge.to as usize] == 0 {
                sources.push(edge.to);
            }
        }
    }
}

/// The strongly connected components among `nodes`, each after those it leads to. `place` maps a state to its place in
/// `nodes`, and is scratch: all [`NOWHERE`] before and after.
pub(crate) fn components<M: Model>(graph: &Graph<M>, nodes: &[Node], place: &mut [u32]) -> Vec<Vec<Node>> {
    let mut digraph = DiGraph::<(), (), u32>::with_capacity(nodes.len(), nodes.len() * 2);
    for (index, &node) in nodes.iter().enumerate() {
        place[node as usize] = u32::try_from(index).expect("a graph's states are numbered in 32 bits");
        digraph.add_node(());
    }
    for &node in nodes {
        for edge in graph.edges(node).iter().filter(|edge| place[edge.to as usize] != NOWHERE) {
            digraph.add_edge(NodeIndex::from(place[node as usize]), NodeIndex::from(place[edge.to as usize]), ());
        }
    }
    let components = kosaraju_scc(&digraph);
    for &node in nodes {
        place[node as usize] = NOWHERE;
    }
    components.into_iter().map(|component| component.into_iter().map(|index| nodes[index.index()]).collect()).collect()
}

/// No place: see [`components`].
pub(crate) const NOWHERE: u32 = u32::MAX;

/// Finds the fair lasso with the shortest way in along which `owed` stays true, if there is one.
///
/// `actor` names who takes a step, below 32; every actor is strongly fair.
pub fn lasso<M: Model>(
    graph: &Graph<M>,
    reversed: &Reversed,
    actor: impl Fn(&M::Action) -> usize,
    owed: impl Fn(Node) -> bool,
) -> Option<Lasso> {
    let end = graph.nodes().find(|&node| graph.edges(node).is_empty() && owed(node));
    if let Some(end) = end {
        return Some(Lasso { knot: end, round: Vec::new() });
    }
    let mut kept: Vec<bool> = graph.nodes().map(|node| reversed.loops[node as usize] && owed(node)).collect();
    if !kept.contains(&true) {
        return None;
    }
    trim(graph, reversed, &mut kept, |_| ());
    trim_sources(graph, reversed, &mut kept);
    let core: Vec<Node> = graph.nodes().filter(|&node| kept[node as usize]).collect();
    let mut place = vec![NOWHERE; graph.len()];
    let mut work = vec![core];
    let (mut best, mut best_nearest): (Option<Vec<Node>>, Node) = (None, Node::MAX);
    while let Some(nodes) = work.pop() {
        for component in components(graph, &nodes, &mut place) {
            let nearest = *component.iter().min().expect("a component has a state");
            if best_nearest < nearest {
                continue;
            }
            for &node in &component {
                place[node as usize] = 0;
            }
            let inside = |node: Node| place[node as usize] != NOWHERE;
            let (mut able, mut steps) = (0u32, 0u32);
            for edge in component.iter().flat_map(|&node| graph.edges(node)) {
                let bit = 1 << actor(&edge.action);
                able |= bit;
                steps |= if inside(edge.to) { bit } else { 0 };
            }
            let starved = able & !steps;
            for &node in &component {
                place[node as usize] = NOWHERE;
            }
            if steps == 0 {
                continue;
            }
            if starved == 0 {
                (best, best_nearest) = (Some(component), nearest);
            } else {
                let can_starve =
                    |&node: &Node| graph.edges(node).iter().any(|edge| starved & 1 << actor(&edge.action) != 0);
                work.push(component.into_iter().filter(|node| !can_starve(node)).collect());
            }
        }
    }
    best.map(|component| go_round(graph, &component, &actor))
}

/// A loop through a fair component, from its nearest state back to it, in which every actor that can step does.
fn go_round<M: Model>(graph: &Graph<M>, component: &[Node], actor: &impl Fn(&M::Action) -> usize) -> Lasso {
    let knot = *component.iter().min().expect("a component has a state");
    let mut inside = vec![false; graph.len()];
    let mut missing = 0u32;
    for &node in component {
        inside[node as usize] = true;
        missing |= graph.edges(node).iter().fold(0, |actors, edge| actors | 1 << actor(&edge.action));
    }
    let (mut at, mut round) = (knot, Vec::new());
    while missing != 0 || at != knot {
        let leg = shortest(graph, &inside, at, |edge| {
            let edge = graph.edge(edge);
            if missing == 0 { edge.to == knot } else { missing & 1 << actor(&edge.action) != 0 }
        });
        for &edge in &leg {
            missing &= !(1 << actor(&graph.edge(edge).action));
        }
        at = graph.edge(*leg.last().expect("a leg has an edge")).to;
        round.extend(leg);
    }
    Lasso { knot, round }
}

/// The shortest way from `from`, inside, that ends with an edge that `wanted` accepts.
fn shortest<M: Model>(graph: &Graph<M>, inside: &[bool], from: Node, wanted: impl Fn(usize) -> bool) -> Vec<usize> {
    let mut came = std::collections::HashMap::from([(from, None)]);
    let mut queue = std::collections::VecDeque::from([from]);
    while let Some(node) = queue.pop_front() {
        for edge in graph.edge_range(node).filter(|&edge| inside[graph.edge(edge).to as usize]) {
            if wanted(edge) {
                let (mut way, mut at) = (vec![edge], node);
                while let Some((source, edge)) = came[&at] {
                    way.push(edge);
                    at = source;
                }
                way.reverse();
                return way;
            }
            let to = graph.edge(edge).to;
            if let std::collections::hash_map::Entry::Vacant(vacant) = came.entry(to) {
                vacant.insert(Some((node, edge)));
                queue.push_back(to);
            }
        }
    }
    unreachable!("in a strongly connected component every edge can be reached")
}

/// The most that one history can gather, where each step is worth something.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Most {
    /// This much, along these edges.
    Finite(u64, Vec<usize>),
    /// Without bound: a loop gathers.
    Unbounded(Lasso),
}

/// How much one history can gather at most, `worth` being what a step is worth.
pub fn most<M: Model>(graph: &Graph<M>, reversed: &Reversed, worth: impl Fn(&M::State, &M::Action) -> u32) -> Most {
    let mut kept = vec![true; graph.len()];
    // For each state: the most that a history from it gathers, and its first edge.
    let mut ahead: Vec<(u64, Option<usize>)> = vec![(0, None); graph.len()];
    let better = |ahead: &[(u64, Option<usize>)], node: Node| {
        let through = |edge: usize| {
            let edge = graph.edge(edge);
            u64::from(worth(graph.state(node), &edge.action)) + ahead[edge.to as usize].0
        };
        graph.edge_range(node).map(|edge| (through(edge), Some(edge))).max_by_key(|&(gain, _)| gain)
    };
    trim(graph, reversed, &mut kept, |node| ahead[node as usize] = better(&ahead, node).unwrap_or((0, None)));
    let core: Vec<Node> = graph.nodes().filter(|&node| kept[node as usize]).collect();
    let mut place = vec![NOWHERE; graph.len()];
    for component in components(graph, &core, &mut place) {
        let inside: std::collections::HashSet<Node> = component.iter().copied().collect();
        let gathers = component.iter().find_map(|&node| {
            let state = graph.state(node);
            graph
                .edge_range(node)
                .find(|&edge| inside.contains(&graph.edge(edge).to) && worth(state, &graph.edge(edge).action) != 0)
        });
        if let Some(edge) = gathers {
            let knot = *component.iter().min().expect("a component has a state");
            let mut flags = vec![false; graph.len()];
            component.iter().for_each(|&node| flags[node as usize] = true);
            let mut round = shortest(graph, &flags, knot, |candidate| candidate == edge);
            if graph.edge(edge).to != knot {
                round.extend(shortest(graph, &flags, graph.edge(edge).to, |edge| graph.edge(edge).to == knot));
            }
            return Most::Unbounded(Lasso { knot, round });
        }
        // A component that gathers nothing inside: what any of its states has ahead, all have. Only the state with the best
        // way out knows its edge; the others go there first.
        let exits = component.iter().filter_map(|&node| better(&ahead, node).map(|(gain, edge)| (gain, node, edge)));
        let Some((gain, exit, edge)) = exits.max_by_key(|&(gain, node, _)| (gain, std::cmp::Reverse(node))) else {
            continue;
        };
        for &node in &component {
            ahead[node as usize] = (gain, None);
        }
        ahead[exit as usize] = (gain, edge);
    }
    let mut at: Node = 0;
    let mut way = Vec::new();
    while ahead[at as usize].0 > 0 {
        if let (_, Some(edge)) = ahead[at as usize] {
            way.push(edge);
            at = graph.edge(edge).to;
            continue;
        }
        // Inside such a component: to its exit, without losing or gathering anything.
        let gain = ahead[at as usize].0;
        let inside: Vec<bool> = ahead.iter().map(|&(ahead, _)| ahead == gain).collect();
        let leg = shortest(graph, &inside, at, |edge| ahead[graph.edge(edge).to as usize].1.is_some());
        at = graph.edge(*leg.last().expect("a leg has an edge")).to;
        way.extend(leg);
    }
    Most::Finite(ahead[0].0, way)
}
