//! The shipped protocol keeps its properties in every small scenario, and each broken rule is noticed.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::atomic::AtomicU64;

use pagelease_lab::case::Case;
use pagelease_lab::pagelease::{
    Action, Actor, DEADLOCK, Design, Faults, Mutant, Op, Pagelease, Policy, Role, SCENARIOS, Scenario, State,
};
use pagelease_lab::{Property, Subject};
use stateright::{Checker, Model};

/// More than a few thousand states in some design.
const LARGE: &[&str] = &["crowd", "endless-holds", "own-fault", "own-fault-pages", "stuck-both"];

fn scenario(name: &str) -> &'static Scenario {
    Scenario::named(name).expect("a scenario of this name")
}

fn small() -> impl Iterator<Item = &'static Scenario> {
    SCENARIOS.iter().filter(|scenario| !LARGE.contains(&scenario.name))
}

/// What Stateright's own breadth-first search finds broken, each with a history.
fn check(model: Pagelease) -> BTreeMap<&'static str, Vec<(State, Option<Action>)>> {
    let checker = model.checker().threads(2).spawn_bfs().join();
    checker.discoveries().into_iter().map(|(name, path)| (name, path.into_vec())).collect()
}

fn assert_keeps_all(model: Pagelease) {
    let found = check(model);
    if let Some((name, history)) = found.first_key_value() {
        let steps: Vec<_> = history.iter().filter_map(|&(state, action)| Some((state, action?))).collect();
        panic!("{} in {} breaks {name}:\n{}", model.design, model.scenario.name, model.history(&steps));
    }
}

#[test]
fn every_design_keeps_its_properties_in_small_scenarios() {
    for design in Design::all() {
        for scenario in small().filter(|scenario| scenario.name != "pin") {
            assert_keeps_all(Pagelease::new(design, scenario));
        }
    }
}

#[test]
fn own_faults_are_served_in_the_middle_of_a_claim() {
    for faults in [Faults::Monitor, Faults::InThread] {
        let design = Design { faults, ..Design::SHIPPED };
        assert_keeps_all(Pagelease::new(design, scenario("own-fault")));
    }
}

#[test]
#[ignore = "minutes without optimisation"]
fn every_design_keeps_its_properties_in_large_scenarios() {
    for design in Design::all() {
        for name in LARGE {
            assert_keeps_all(Pagelease::new(design, scenario(name)));
        }
    }
}

/// What was begun through a pin before the claim is not stopped: the design says so, and the model shows it.
#[test]
fn an_old_pin_is_not_stopped() {
    assert!(Design::all().into_iter().all(|design| caught(design, "pin") == ["pins"].into()));
}

/// The properties that the design breaks in the scenario; of a deadlock, those under which somebody waits.
fn caught(design: Design, name: &str) -> BTreeSet<&'static str> {
    let model = Pagelease::new(design, scenario(name));
    let mut caught = BTreeSet::new();
    for (name, history) in check(model) {
        let last = history.last().expect("a history has a state").0;
        if name == DEADLOCK {
            let owed =
                (0..model.scenario.actors.len()).flat_map(|actor| model.owed(&last, actor).iter().collect::<Vec<_>>());
            caught.extend(owed.filter(|&property| property != Property::Progress).map(Property::name));
        } else {
            caught.insert(name);
        }
    }
    caught
}

#[test]
fn each_broken_rule_is_caught() {
    use Faults::{InThread, Monitor};
    let table: &[(Mutant, Faults, &str, Property)] = &[
        (Mutant::SkipReadRetry, Monitor, "own-fault", Property::Atomicity),
        (Mutant::SkipReadRetry, InThread, "own-fault", Property::Atomicity),
        (Mutant::WakeBeforeMap, Monitor, "two-devices", Property::Atomicity),
        (Mutant::WakeBeforeMap, InThread, "two-devices", Property::Count),
        (Mutant::SkipDrain, Monitor, "touch", Property::Atomicity),
        (Mutant::SkipDrain, InThread, "touch", Property::Count),
        (Mutant::RestoreBeforeInvalidate, Monitor, "touch", Property::Atomicity),
        (Mutant::RestoreBeforeInvalidate, InThread, "stuck-hold", Property::Count),
        (Mutant::ReleaseBeforeWord, Monitor, "touch", Property::Atomicity),
        (Mutant::SkipPopulate, Monitor, "touch", Property::Atomicity),
        (Mutant::FilterByThread, InThread, "own-fault", Property::Atomicity),
        (Mutant::NoFilter, Monitor, "after-you", Property::SelfRetry),
        (Mutant::NoJoin, Monitor, "repeat", Property::RepeatEnds),
        (Mutant::NoHandBack, Monitor, "touch", Property::FaultEnds),
        (Mutant::NoOwnRecord, Monitor, "own-fault", Property::OwnFault),
        (Mutant::NoOwnRecord, InThread, "own-fault", Property::OwnFault),
        (Mutant::SkipStop, Monitor, "release", Property::Zapped),
        (Mutant::NoHoldLimit, Monitor, "stuck-hold", Property::FaultEnds),
        (Mutant::NoHoldLimit, InThread, "stuck-claim", Property::ClaimEnds),
        // A page was busy when it was looked at, and held when they went to sleep: without a limit, behind a stuck hold.
        (Mutant::SleepByFirstLook, Monitor, "stuck-claim", Property::ClaimEnds),
        (Mutant::SleepByFirstLook, InThread, "stuck-claim", Property::ClaimEnds),
        (Mutant::SleepByFirstLook, Monitor, "stuck-view", Property::UnmapEnds),
        (Mutant::SleepByFirstLook, InThread, "stuck-view", Property::UnmapEnds),
        (Mutant::NoWakeOnClose, InThread, "stuck-release", Property::UnmapEnds),
    ];
    for &(mutant, faults, name, property) in table {
        let design = Design { faults, ..Design::SHIPPED };
        let caught = caught(design.with_mutant(mutant), name);
        assert!(caught.contains(property.name()), "{mutant:?}, {faults:?}, {name}: {caught:?}");
    }
    // One is counted, and four starve somebody in an endless scenario.
    let elsewhere =
        [Mutant::NotifyAll, Mutant::NoResidency, Mutant::NoEagerResidency, Mutant::ClaimPastWaiter, Mutant::NoHold];
    let untested =
        |mutant: &&Mutant| !elsewhere.contains(mutant) && !table.iter().any(|(tested, ..)| tested == *mutant);
    assert_eq!(Mutant::ALL.iter().find(untested), None);
}

/// What `Case::check` finds broken, endless histories included.
fn broken(design: Design, name: &str) -> BTreeSet<Property> {
    let model = Pagelease::new(design, scenario(name));
    let checked = Case::check(&model, 1_000_000, &AtomicU64::new(0)).expect("a small scenario");
    checked.findings.iter().map(|finding| finding.property).collect()
}

/// The rules are `waiters` first, minimum residency, and the hold.
#[test]
fn nobody_is_starved_where_pages_stay_with_the_device() {
    for design in Design::all() {
        assert_eq!(broken(design, "endless-touches"), [].into(), "{design}");
    }
    for design in Design::all().into_iter().filter(|design| design.policy == Policy::Lazy) {
        for name in ["endless-claims", "endless-holds"] {
            assert_eq!(broken(design, name), [].into(), "{design} in {name}");
        }
        let without = |mutant, name| broken(design.with_mutant(mutant), name);
        assert!(without(Mutant::NoResidency, "endless-claims").contains(&Property::Progress), "{design}");
        let past: BTreeSet<_> = [Property::FaultEnds, Property::Progress].into();
        assert!(without(Mutant::ClaimPastWaiter, "endless-holds").is_superset(&past), "{design}");
        assert!(without(Mutant::NoHold, "endless-touches").contains(&Property::Progress), "{design}");
        // A thread that serves itself does so within its touch: that it goes round is the touch's not ending.
        let fault = without(Mutant::NoResidency, "endless-claims").contains(&Property::FaultEnds);
        assert_eq!(fault, design.faults == Faults::InThread, "{design}");
    }
}

/// What an eager lease gives back has a minimum residency as well: a touch that comes just then, and waits, would find the page
/// claimed again each time.
#[test]
fn an_eager_lease_does_not_starve_a_touch() {
    for design in Design::all().into_iter().filter(|design| design.policy == Policy::Eager) {
        for name in ["endless-claims", "endless-holds", "endless-touches"] {
            assert_eq!(broken(design, name), [].into(), "{design} in {name}");
        }
        let without = design.with_mutant(Mutant::NoEagerResidency);
        assert!(broken(without, "endless-claims").contains(&Property::Progress), "{design}");
    }
}

/// Claims have no order among themselves: one that waits for a page may find it claimed again by a device that goes on for
/// ever. The hold limit ends a hold, and does not give the page to who waited for that.
#[test]
fn a_claim_may_be_starved_by_claims() {
    const CLAIM: Op = Op::Claim { from: 0, to: 1, lease: 0, access: None, again: false };
    const fn device(name: &'static str, device: u8, ops: &'static [Op]) -> Actor {
        Actor { name, role: Role::Device(device), ops, signal: None }
    }
    static RIVALS: Scenario = Scenario {
        name: "rivals",
        what: "a device claims a page again and again, and another wants it once",
        pages: 1,
        limited: false,
        actors: &[device("device 0", 0, &[CLAIM, Op::End(0), Op::Repeat]), device("device 1", 1, &[CLAIM, Op::End(0)])],
    };
    for design in Design::all() {
        let checked = Case::check(&Pagelease::new(design, &RIVALS), 1_000_000, &AtomicU64::new(0)).expect("small");
        let broken: BTreeSet<_> = checked.findings.iter().map(|finding| finding.property).collect();
        assert_eq!(broken, [Property::ClaimEnds, Property::Progress].into(), "{design}");
    }
}

/// All states and what was seen on the way: the steps that fired, the spurious invalidations, whether a history is endless.
struct Seen {
    fired: BTreeSet<&'static str>,
    spurious: u32,
    endless: bool,
}

fn explore(model: Pagelease) -> Seen {
    let mut places = HashMap::new();
    let mut queue = VecDeque::new();
    for state in model.init_states() {
        places.insert(state, 0_usize);
        queue.push_back(state);
    }
    let mut seen = Seen { fired: BTreeSet::new(), spurious: 0, endless: false };
    let mut edges: Vec<Vec<usize>> = Vec::new();
    while let Some(state) = queue.pop_front() {
        let mut actions = Vec::new();
        model.actions(&state, &mut actions);
        edges.push(Vec::new());
        for action in actions {
            let next = model.next_state(&state, action).expect("an action of the state");
            seen.fired.insert(model.step(&state, action));
            seen.spurious += model.spurious(&state, action);
            let free = places.len();
            let place = *places.entry(next).or_insert_with(|| {
                queue.push_back(next);
                free
            });
            edges.last_mut().expect("just added").push(place);
        }
    }
    // What is never reached by taking away whatever nothing leads to lies on, or behind, a loop.
    let mut leading = vec![0_usize; edges.len()];
    edges.iter().flatten().for_each(|&to| leading[to] += 1);
    let mut ready: Vec<_> = (0..edges.len()).filter(|&at| leading[at] == 0).collect();
    let mut left = edges.len();
    while let Some(at) = ready.pop() {
        left -= 1;
        for &to in &edges[at] {
            leading[to] -= 1;
            if leading[to] == 0 {
                ready.push(to);
            }
        }
    }
    seen.endless = left != 0;
    seen
}

#[test]
fn every_history_ends_no_invalidation_is_spurious_and_every_step_is_taken() {
    for faults in [Faults::Monitor, Faults::InThread] {
        let mut listed = BTreeSet::new();
        let mut fired = BTreeSet::new();
        for design in Design::all().into_iter().filter(|design| design.faults == faults) {
            let own_fault = (design.policy == Policy::Lazy).then(|| scenario("own-fault"));
            for scenario in small().chain(own_fault) {
                let model = Pagelease::new(design, scenario);
                let seen = explore(model);
                assert!(!seen.endless || scenario.is_endless(), "{design} in {} goes round for ever", scenario.name);
                assert_eq!(seen.spurious, 0, "{design} in {}", scenario.name);
                let steps: BTreeSet<_> = Subject::steps(&model).into_iter().collect();
                let unlisted: Vec<_> = seen.fired.difference(&steps).collect();
                assert!(unlisted.is_empty(), "{design} in {}: {unlisted:?} are no steps of it", scenario.name);
                listed.extend(steps);
                fired.extend(seen.fired);
            }
        }
        let idle: Vec<_> = listed.difference(&fired).collect();
        assert!(idle.is_empty(), "{faults:?}: {idle:?} never happen");
    }
    let notifies = Design::SHIPPED.with_mutant(Mutant::NotifyAll);
    assert!(explore(Pagelease::new(notifies, scenario("two-devices"))).spurious > 0);
}

#[test]
fn states_and_steps_can_be_read() {
    for design in [Design::SHIPPED, Design { faults: Faults::InThread, ..Design::SHIPPED }] {
        for scenario in small() {
            let model = Pagelease::new(design, scenario);
            let mut state = model.init_states()[0];
            let names =
                |state: &State| model.cells(state).into_iter().map(|cell| (cell.group, cell.name)).collect::<Vec<_>>();
            let first = names(&state);
            let mut steps = 0;
            loop {
                let mut actions = Vec::new();
                model.actions(&state, &mut actions);
                let Some(&action) = actions.last() else { break };
                assert!(!model.step(&state, action).is_empty());
                steps += 1;
                if scenario.is_endless() && steps == 100 {
                    break;
                }
                state = model.next_state(&state, action).expect("an action of the state");
                assert_eq!(names(&state), first, "the same cells in every state");
            }
        }
    }
}
