//! Histories of the shipped protocol's model, as schedules that the real engine follows.
//!
//! A sample of them is kept beside the engine, whose own tests follow it (`crates/pagelease/tests/histories.rs`). It is made
//! here, and compared with what is kept: where the model has changed, run this with `UPDATE=1`, and the engine's tests then.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::{env, fs};

use pagelease_lab::Subject;
use pagelease_lab::case::{Path as Choices, Token};
use pagelease_lab::catalogue::Unknown;
use pagelease_lab::export::{ExportError, schedule};
use pagelease_lab::pagelease::{Action, Design, Kind, Pagelease, SCENARIOS, Scenario, State};
use stateright::Model;

fn model(design: &str, scenario: &str) -> Pagelease {
    let design = Design::named(design).expect("a configuration of this name");
    Pagelease::new(design, Scenario::named(scenario).expect("a scenario of this name"))
}

fn token(model: Pagelease, choices: Vec<u8>) -> Token {
    let path = Choices { choices, loop_from: None };
    Token { design: model.design.name().to_owned(), scenario: model.scenario.name.to_owned(), path }
}

/// A random sequence (`SplitMix64`).
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ mixed >> 31) % bound as u64).expect("below a usize")
    }
}

/// The places of the steps that no signal takes, and the steps.
fn possible(model: Pagelease, state: &State) -> Vec<(u8, Action, State)> {
    let steps = (0..).zip(model.next_steps(state)).map(|(place, (action, next))| (place, action, next));
    steps.filter(|(_, action, _)| action.kind != Kind::Signal).collect()
}

/// A random walk to the end.
fn walk(model: Pagelease, seed: u64) -> Token {
    let mut chance = Chance(seed);
    let mut state = model.init_states()[0];
    let mut choices = Vec::new();
    loop {
        let possible = possible(model, &state);
        if possible.is_empty() {
            return token(model, choices);
        }
        let (place, _, next) = possible[chance.below(possible.len())];
        choices.push(place);
        state = next;
    }
}

/// The shortest history that ends with this step, in a state of which some cell says `says`.
fn shortest(model: Pagelease, step: &str, detail: &str, says: &str) -> Token {
    let first = model.init_states()[0];
    let mut ways: HashMap<State, Option<(State, u8)>> = HashMap::from([(first, None)]);
    let mut queue = VecDeque::from([first]);
    while let Some(state) = queue.pop_front() {
        for (place, action, next) in possible(model, &state) {
            if model.step(&state, action) == step
                && model.detail(&state, action).contains(detail)
                && model.cells(&state).iter().any(|cell| cell.value.contains(says))
            {
                let mut choices = vec![place];
                let mut at = state;
                while let Some((before, place)) = ways[&at] {
                    choices.push(place);
                    at = before;
                }
                choices.reverse();
                return token(model, choices);
            }
            if let std::collections::hash_map::Entry::Vacant(entry) = ways.entry(next) {
                entry.insert(Some((state, place)));
                queue.push_back(next);
            }
        }
    }
    panic!("no history of {} in {} has {step} {detail} {says}", model.design, model.scenario.name);
}

/// The histories that are kept, by the ends of their names.
fn kept() -> Vec<(&'static str, Token)> {
    let reach = |design, scenario, step, detail, says| shortest(model(design, scenario), step, detail, says);
    let random = |design, scenario, seed| walk(model(design, scenario), seed);
    vec![
        ("touch_parked", reach("pagelease", "touch", "touch::park", "held", "")),
        ("touch_drains", reach("pagelease-inthread", "touch", "invalidate::begin", "cause Clear", "between load")),
        ("claim_joins", reach("pagelease", "two-workers", "claim::join", "", "")),
        ("limit_for_a_touch", reach("pagelease", "stuck-hold", "monitor::overdue", "has passed", "")),
        ("limit_for_a_claim", reach("pagelease-inthread", "stuck-claim", "claim::break_overdue", "", "")),
        ("read_beside_a_writer", reach("pagelease-write", "two-cpus", "touch::commit_read_only", "", "held by 1")),
        ("crossing", reach("pagelease-inthread", "crossing", "claim::blocked", "page 1", "")),
        ("eager_end_meets_a_touch", reach("pagelease-inthread-eager", "two-cpus", "restore::blocked", "", "")),
        ("random_two_devices", random("pagelease", "two-devices", 7)),
        ("random_two_pages", random("pagelease-inthread", "two-pages", 5)),
        ("random_crowd", random("pagelease-inthread-write-eager", "crowd", 3)),
        ("random_hold_limit", random("pagelease-write", "hold-limit", 11)),
        ("random_workers", random("pagelease-eager", "two-workers", 2)),
        ("random_stuck", random("pagelease-inthread", "stuck-both", 4)),
    ]
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../pagelease/tests/histories")
}

#[test]
fn the_kept_histories_are_those_of_the_model() {
    let update = env::var_os("UPDATE").is_some();
    let mut names = BTreeSet::new();
    for (name, token) in kept() {
        let text = schedule(&token).unwrap_or_else(|why| panic!("{name}, {token}: {why}"));
        let name = format!("from_lab_{name}.history");
        let path = folder().join(&name);
        if update {
            fs::write(&path, &text).expect("the folder can be written to");
        }
        let found = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}; run this with UPDATE=1"));
        assert_eq!(found, text, "{name} is stale; run this with UPDATE=1, and then the engine's histories");
        names.insert(name);
    }
    let files =
        fs::read_dir(folder()).expect("the samples' folder").map(|entry| entry.expect("a file of it").file_name());
    let files = files.map(|name| name.to_string_lossy().into_owned()).filter(|name| name.starts_with("from_lab_"));
    let left: Vec<_> = files.filter(|name| !names.contains(name)).collect();
    assert!(left.is_empty(), "{left:?} belong to no history of the model any more: remove them");
}

/// Nearly every random history can be exported, where the scenario can; and what is refused says why.
#[test]
fn a_random_history_can_be_exported() {
    let (mut exported, mut entangled) = (0, 0);
    for design in Design::all() {
        for scenario in SCENARIOS.iter().filter(|scenario| !scenario.is_endless()) {
            for seed in 0..5 {
                match schedule(&walk(Pagelease::new(design, scenario), seed)) {
                    Ok(text) => {
                        assert!(text.contains(" -> "), "{} in {}, {seed}: no step", design, scenario.name);
                        exported += 1;
                    }
                    Err(ExportError::Entangled { .. }) => entangled += 1,
                    Err(ExportError::Scenario { .. }) => break,
                    Err(why) => panic!("{} in {}, {seed}: {why}", design, scenario.name),
                }
            }
        }
    }
    assert!(exported > 600 && entangled * 20 < exported, "{exported} exported, {entangled} entangled");
}

#[test]
fn what_a_schedule_cannot_say_is_refused() {
    let refused = |token: &str| schedule(&token.parse().expect("a token")).expect_err("a schedule cannot say that");
    assert!(matches!(refused("pageleash:touch:"), ExportError::Unknown(Unknown::Design(_))));
    assert!(matches!(refused("pagelease:nowhere:"), ExportError::Unknown(Unknown::Scenario { .. })));
    assert!(matches!(refused("linux-7.3:repeat:"), ExportError::NotShipped(_)));
    assert!(matches!(refused("pagelease:touch:000~1"), ExportError::Endless));
    assert!(matches!(refused("pagelease:touch:9"), ExportError::Steps(_)));
    let says = |token: &str, why: &str| assert!(refused(token).to_string().contains(why), "{}", refused(token));
    says("pagelease:release:", "owner drops the region");
    says("pagelease:view:", "device 0 gives its view up");
    says("pagelease:pin:", "pin writes through a pin");
    says("pagelease:upgrade:", "device claims for another access than the design's");
    says("pagelease:repeat-touched:", "device ends another lease than its oldest");
    says("pagelease:endless-claims:", "device begins its program anew");
    // The first device's claim begins, and its signal comes.
    let signalled = model("pagelease", "own-fault");
    let mut state = signalled.init_states()[0];
    let mut choices = Vec::new();
    loop {
        let steps = signalled.next_steps(&state);
        let signal = steps.iter().position(|(action, _)| action.kind == Kind::Signal);
        choices.push(u8::try_from(signal.unwrap_or(0)).expect("few possibilities"));
        state = steps[signal.unwrap_or(0)].1;
        if signal.is_some() {
            break;
        }
    }
    let refused = schedule(&token(signalled, choices)).expect_err("it has a signal");
    assert!(matches!(refused, ExportError::Signal { actor: "device 0", .. }), "{refused}");
}

#[test]
#[ignore = "writes COUNT random histories of every configuration in every scenario into the folder DIR"]
fn export_in_bulk() {
    let folder = PathBuf::from(env::var("DIR").expect("DIR is a folder"));
    let count: u64 = env::var("COUNT").map_or(1, |count| count.parse().expect("COUNT is a number"));
    let (mut exported, mut refused) = (0, HashMap::<String, u32>::new());
    for design in Design::all() {
        for scenario in SCENARIOS.iter().filter(|scenario| !scenario.is_endless()) {
            for seed in 0..count {
                match schedule(&walk(Pagelease::new(design, scenario), seed)) {
                    Ok(text) => {
                        exported += 1;
                        let name = format!("{}.{}.{seed}.history", design.name(), scenario.name);
                        fs::write(folder.join(name), text).expect("DIR can be written to");
                    }
                    Err(why) => *refused.entry(format!("{} {}: {why}", design.name(), scenario.name)).or_default() += 1,
                }
            }
        }
    }
    println!("{exported} exported, not: {refused:#?}");
}
