//! Histories of the shipped protocol's model, as schedules for the real engine.

use std::path::Path;
use std::{env, fs};

use pagelease_lab::case::{Path as Choices, Token};
use pagelease_lab::export::{ExportError, schedule};
use pagelease_lab::pagelease::{Design, Kind, Pagelease, SCENARIOS, Scenario};
use stateright::Model;

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

/// A random walk to the end, without signals.
fn walk(model: Pagelease, seed: u64) -> Token {
    let mut chance = Chance(seed);
    let mut state = model.init_states()[0];
    let mut choices = Vec::new();
    loop {
        let steps = model.next_steps(&state);
        let possible: Vec<_> = (0..steps.len()).filter(|&at| steps[at].0.kind != Kind::Signal).collect();
        if possible.is_empty() {
            break;
        }
        let choice = possible[chance.below(possible.len())];
        choices.push(u8::try_from(choice).expect("few possibilities"));
        state = steps[choice].1;
    }
    token(model, choices)
}

fn token(model: Pagelease, choices: Vec<u8>) -> Token {
    let path = Choices { choices, loop_from: None };
    Token { design: model.design.name().to_owned(), scenario: model.scenario.name.to_owned(), path }
}

#[test]
#[ignore = "writes as many random histories as COUNT says for each design and scenario into DIR"]
fn export_in_bulk() {
    let folder = env::var("DIR").expect("DIR is a folder");
    let count: u64 = env::var("COUNT").map_or(3, |count| count.parse().expect("COUNT is a number"));
    let mut refused = std::collections::BTreeMap::<String, u32>::new();
    let mut exported = 0;
    for design in Design::all() {
        for scenario in SCENARIOS {
            for seed in 0..count {
                match schedule(&walk(Pagelease::new(design, scenario), seed)) {
                    Ok(text) => {
                        exported += 1;
                        let name = format!("{}.{}.{seed}.history", design.name(), scenario.name);
                        fs::write(Path::new(&folder).join(name), text).expect("DIR can be written to");
                    }
                    Err(ExportError::Scenario { .. }) => {}
                    Err(why) => *refused.entry(format!("{} {}: {why}", design.name(), scenario.name)).or_default() += 1,
                }
            }
        }
    }
    println!("{exported} exported, not: {refused:#?}");
}
