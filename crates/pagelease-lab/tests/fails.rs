//! Each property can fail, and each rule is one that something depends on: a broken rule is noticed, and the design that
//! keeps it is not accused. What is found is looked at anew here, without the code that found it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicU64;

use pagelease_lab::case::{Case, Checked, Finding, Path};
use pagelease_lab::kernel::design::{Begin, Design, Filter, MAINLINE, Mutant, Unlock};
use pagelease_lab::kernel::scenario::Scenario;
use pagelease_lab::kernel::{Action, Kernel, State, design, scenario};
use pagelease_lab::property::Kind;
use pagelease_lab::{Property, Subject};
use stateright::{Checker, Model};

/// Enough for the small scenarios.
const STATES_MAX: usize = 10_000;

fn design(name: &str) -> Design {
    *design::ALL.iter().find(|known| known.name == name).expect("a design of this name")
}

fn scenario(name: &str) -> Scenario {
    *scenario::ALL.iter().find(|known| known.name == name).expect("a scenario of this name")
}

fn check(kernel: &Kernel) -> Checked {
    kernel.check(100_000, &AtomicU64::new(0)).expect("a small scenario")
}

fn broken(design: Design, scenario: Scenario) -> BTreeSet<Property> {
    check(&Kernel { design, scenario }).findings.iter().map(|finding| finding.property).collect()
}

/// Lets go of a page before it maps it, with a token and a residency: the claiming thread's own touch is told apart.
const TOLD_APART: Design =
    Design { name: "told-apart", filter: Filter::Token, unlock: Unlock::BeforeMap, residency: true, ..MAINLINE };

/// For each property a design that breaks it in a scenario, and one that does not: they differ in one rule.
fn breakers(property: Property) -> (Design, Design, &'static str) {
    let mutant = |base: &str, mutant| (Design { mutant, ..design(base) }, design(base));
    let ((breaks, keeps), scenario) = match property {
        Property::Atomicity => (mutant("linux-7.3", Mutant::NoDrain), "touch"),
        Property::Count => (mutant("linux-7.3", Mutant::NoDrain), "touch"),
        Property::Zapped => (mutant("linux-7.3", Mutant::RetryBeforeMutex), "munmap"),
        Property::Protected => (mutant("linux-7.3", Mutant::ProtectSilently), "mprotect"),
        Property::Snapshot => (mutant("claim-knows", Mutant::ForkSharesExclusive), "fork"),
        Property::ForkSucceeds => ((design("linux-7.3"), design("fork-waits")), "fork"),
        Property::ClaimSucceeds => ((design("linux-2021"), design("linux-7.3")), "two-devices"),
        Property::SelfRetry => ((design("filter-none"), design("linux-7.3")), "alone"),
        Property::Pins => ((design("filter-token"), design("pins-refused")), "pin"),
        Property::OwnFault => ((Design { filter: Filter::Thread, ..TOLD_APART }, TOLD_APART), "own-fault"),
        Property::RepeatEnds => ((design("linux-7.3"), design("filter-thread")), "repeat"),
        Property::ClaimEnds => ((design("linux-7.3"), design("filter-thread")), "zero-page"),
        Property::FaultEnds => (mutant("linux-7.3", Mutant::RetryKeepsLock), "dontneed"),
        Property::ForkEnds => (mutant("fork-waits", Mutant::RetryKeepsLock), "fork"),
        Property::UnmapEnds => (mutant("linux-7.3", Mutant::RestoreKeepsLock), "munmap"),
        Property::Progress => ((design("linux-7.3"), design("residency")), "touch"),
        Property::Spurious => ((design("linux-7.3"), design("filter-thread")), "repeat"),
    };
    (breaks, keeps, scenario)
}

#[test]
fn every_property_can_fail_and_can_hold() {
    for &property in Property::ALL {
        let (breaks, keeps, name) = breakers(property);
        let of = |design| check(&Kernel { design, scenario: scenario(name) });
        let (with, without) = (of(breaks), of(keeps));
        if property.kind() == Kind::Count {
            assert_eq!(with.spurious.count, None, "{property} in {name} under {}", breaks.name);
            assert!(without.spurious.count.is_some(), "{property} in {name} under {}", keeps.name);
            continue;
        }
        let has = |checked: &Checked| checked.findings.iter().any(|finding| finding.property == property);
        assert!(has(&with), "{property} holds in {name} under {} {:?}", breaks.name, breaks.mutant);
        assert!(!has(&without), "{property} is broken in {name} under {} as it is", keeps.name);
        assert!(without.tested.has(property), "{property} is not put to the test in {name}");
    }
}

#[test]
fn an_invalidation_that_nobody_needs_is_counted() {
    let alone = |name: &str| check(&Kernel { design: design(name), scenario: scenario("alone") }).spurious.count;
    assert_eq!(alone("page-lock-only"), Some(0), "no notifier, nobody told");
    assert_eq!(alone("linux-7.3"), Some(1), "its own EXCLUSIVE");
    assert_eq!(alone("thread-split-always"), Some(2), "and a split of nothing");
}

/// What notices a broken rule: a base that keeps it, a scenario, a property.
fn noticed_by(mutant: Mutant) -> Option<(&'static str, Scenario, Property)> {
    Some(match mutant {
        Mutant::Whole => return None,
        Mutant::FilterKeepsMapping => ("filter-thread", scenario("engine"), Property::Atomicity),
        Mutant::RetryBeforeMutex => ("linux-7.3", scenario("mprotect"), Property::Protected),
        Mutant::NoDrain => ("linux-7.3", scenario("reclaim"), Property::Atomicity),
        Mutant::NoCollisionWait => ("filter-token", scenario("dontneed"), Property::Zapped),
        Mutant::ForkSharesExclusive => ("gup-knows", scenario("fork"), Property::Snapshot),
        Mutant::ProtectSilently => ("all-mended", scenario("mprotect"), Property::Protected),
        Mutant::RestoreKeepsLock => ("filter-token", scenario("repeat"), Property::RepeatEnds),
        Mutant::RetryKeepsLock => ("filter-token", scenario("split"), Property::FaultEnds),
    })
}

const MUTANTS: &[Mutant] = &[
    Mutant::Whole,
    Mutant::FilterKeepsMapping,
    Mutant::RetryBeforeMutex,
    Mutant::NoDrain,
    Mutant::NoCollisionWait,
    Mutant::ForkSharesExclusive,
    Mutant::ProtectSilently,
    Mutant::RestoreKeepsLock,
    Mutant::RetryKeepsLock,
];

#[test]
fn every_broken_rule_is_noticed() {
    for &mutant in MUTANTS {
        let Some((base, scenario, property)) = noticed_by(mutant) else { continue };
        let base = design(base);
        assert!(
            !broken(base, scenario).contains(&property),
            "{} itself breaks {property} in {}",
            base.name,
            scenario.name
        );
        let caught = broken(Design { mutant, ..base }, scenario);
        assert!(caught.contains(&property), "{mutant:?} of {} in {}: only {caught:?}", base.name, scenario.name);
    }
}

/// Every small scenario under every design, and under each mutant of the two that ship.
fn small_cases() -> Vec<(Kernel, Checked)> {
    let mutants =
        MUTANTS.iter().flat_map(|&mutant| ["linux-7.3", "linux-2021"].map(|base| Design { mutant, ..design(base) }));
    let designs = design::ALL.iter().copied().chain(mutants);
    let kernels = designs.flat_map(|design| scenario::ALL.iter().map(move |&scenario| Kernel { design, scenario }));
    let skipped = ["two-cpus", "range", "crowd", "throng"];
    let kernels = kernels.filter(|kernel| !skipped.contains(&kernel.scenario.name));
    kernels
        .filter_map(|kernel| kernel.check(STATES_MAX, &AtomicU64::new(0)).ok().map(|checked| (kernel, checked)))
        .collect()
}

/// Walks a path by the model alone: each step, and the state after the last.
fn walk(kernel: &Kernel, path: &Path) -> (Vec<(State, Action)>, State) {
    let mut state = kernel.init_states()[0];
    let mut steps = Vec::new();
    for &choice in &path.choices {
        let (action, next) = kernel.next_steps(&state)[usize::from(choice)];
        steps.push((state, action));
        state = next;
    }
    (steps, state)
}

fn assert_is_so(kernel: &Kernel, finding: &Finding) {
    let (steps, last) = walk(kernel, &finding.path);
    let property = finding.property;
    let case = format!("{} {} {property}", kernel.design.name, kernel.scenario.name);
    let view = kernel.history(&finding.path, Some(property)).unwrap_or_else(|error| panic!("{case}: {error}"));
    assert_eq!(view.steps.len(), steps.len(), "{case}");
    assert!(view.sentence.len() > 20, "{case}: it says what went wrong: {}", view.sentence);
    let owed = |state: &State, actor: usize| kernel.owed(state, actor).has(property);
    let actors = 0..kernel.actors().len();
    let actor = |action: Action| kernel.actor(action);
    let Some(from) = finding.path.loop_from else {
        let breaks = steps.iter().position(|(state, _)| kernel.broken(state).has(property));
        assert_eq!(breaks, None, "{case}: broken before its last step");
        if !kernel.broken(&last).has(property) {
            assert_eq!(property.kind(), Kind::Liveness, "{case}: its last step breaks nothing");
            assert!(kernel.next_steps(&last).is_empty(), "{case}: it could go on");
            assert!(actors.clone().any(|actor| owed(&last, actor)), "{case}: nothing is owed");
        }
        return;
    };
    assert_eq!(property.kind(), Kind::Liveness, "{case}");
    let round = &steps[from..];
    assert!(!round.is_empty(), "{case}: an empty loop");
    assert_eq!(round[0].0, last, "{case}: it does not come back");
    assert!(
        actors.clone().any(|actor| round.iter().all(|(state, _)| owed(state, actor))),
        "{case}: owed to nobody all along"
    );
    let takes: BTreeSet<usize> = round.iter().map(|&(_, action)| actor(action)).collect();
    let able: BTreeSet<usize> =
        round.iter().flat_map(|(state, _)| kernel.next_steps(state)).map(|(action, _)| actor(action)).collect();
    assert!(able.is_subset(&takes), "{case}: unfair to {:?}", able.difference(&takes).collect::<Vec<_>>());
}

#[test]
fn every_history_found_is_what_it_is_said_to_be() {
    let cases = small_cases();
    let (mut kinds, mut properties) = (BTreeMap::<&str, usize>::new(), BTreeSet::new());
    for (kernel, checked) in &cases {
        for finding in &checked.findings {
            assert_is_so(kernel, finding);
            let kind = match (finding.property.kind(), finding.path.loop_from) {
                (_, Some(_)) => "loop",
                (Kind::Liveness, None) => "stuck",
                (_, None) => "step",
            };
            *kinds.entry(kind).or_default() += 1;
            properties.insert(finding.property);
        }
        assert_gathers(kernel, checked);
    }
    // Enough of each kind, or this test has looked at nothing.
    assert!(kinds["loop"] > 300 && kinds["stuck"] > 50 && kinds["step"] > 300, "{kinds:?}");
    assert_eq!(properties.len(), Property::ALL.len() - 1, "all but the one that is counted: {properties:?}");
}

/// The history that is shown for the worst count has as many as counted; one without bound gathers in its loop.
fn assert_gathers(kernel: &Kernel, checked: &Checked) {
    let path = &checked.spurious.path;
    let (steps, _) = walk(kernel, path);
    let sum = |steps: &[(State, Action)]| {
        steps.iter().map(|&(state, action)| u64::from(kernel.spurious(&state, action))).sum::<u64>()
    };
    let case = format!("{} {}", kernel.design.name, kernel.scenario.name);
    match (checked.spurious.count, path.loop_from) {
        (Some(count), None) => assert_eq!(sum(&steps), count, "{case}"),
        (None, Some(from)) => assert!(sum(&steps[from..]) > 0, "{case}"),
        other => panic!("{case}: {other:?}"),
    }
}

/// Stateright's own breadth-first search finds nothing in fewer steps, and something in as many. (It is bounded, since of
/// several discoveries of one property its search keeps the last, which is the longest.)
#[test]
fn histories_are_as_short_as_stateright_finds_them() {
    let mut compared = BTreeSet::new();
    for &property in Property::ALL.iter().filter(|property| property.kind() == Kind::Safety) {
        let (design, _, name) = breakers(property);
        for name in [name, "dontneed", "pin"] {
            let kernel = Kernel { design, scenario: scenario(name) };
            let safety = |finding: &Finding| finding.property.kind() == Kind::Safety;
            for finding in check(&kernel).findings.into_iter().filter(safety) {
                // Stateright counts states, and stops short of the bound: up to `steps` steps is `steps + 2`.
                let within = |steps: usize| {
                    let bounded = kernel.clone().checker().threads(1).target_max_depth(steps + 2);
                    bounded.spawn_bfs().join().discovery(finding.property.name())
                };
                let steps = finding.path.choices.len();
                let case = format!("{} in {name} under {}", finding.property, design.name);
                assert!(within(steps - 1).is_none(), "{case}: there is a shorter one than {steps}");
                let theirs = within(steps).unwrap_or_else(|| panic!("{case}: nothing in {steps}"));
                assert_eq!(theirs.into_actions().len(), steps, "{case}");
                compared.insert(finding.property);
            }
        }
    }
    let safety = Property::ALL.iter().copied().filter(|property| property.kind() == Kind::Safety);
    assert_eq!(compared, safety.collect());
}

/// What the claiming thread raises and what its claim raises are not the same: read_begin under the lock, too, tells them
/// apart.
#[test]
fn an_own_touch_is_told_apart_by_a_token_or_under_the_lock() {
    let under_lock = Design { begin: Begin::UnderLock, filter: Filter::Owner, ..TOLD_APART };
    for design in [TOLD_APART, under_lock] {
        assert_eq!(broken(design, scenario("own-fault")), BTreeSet::new(), "{:?} {:?}", design.filter, design.begin);
    }
}
