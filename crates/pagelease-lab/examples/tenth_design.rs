//! A tenth design: what it takes to put an idea for the kernel to the test, beside the designs that are there.
//!
//! The idea: a driver that cannot change the kernel does what it can. It ignores the notifications of its own thread, as
//! nvidia-uvm does, and gives a page back as soon as its device is done with it; the kernel's share is one line, fork
//! waiting for the folio lock instead of failing. Change `TENTH` to try another. What the fields of `Design` cannot say is
//! a new step: it goes into the model, behind a new field (`kernel::pc` names the steps there are). Once a design is in
//! `kernel::design::ALL`, all of `pagelease lab` knows it: `show`, `--replay`, `explore`, `--random`.
//!
//! Run with `cargo run --release --example tenth_design`.

use std::error::Error;
use std::sync::atomic::Ordering::Relaxed;

use pagelease_lab::case::{Case, Token};
use pagelease_lab::catalogue::Entry;
use pagelease_lab::kernel::design::{Design, Filter, Fork, MAINLINE};
use pagelease_lab::kernel::{Kernel, scenario};
use pagelease_lab::render::{self, Format};
use pagelease_lab::table::{Progress, Table, Verdict};

/// Linux 7.3, with what the idea changes. The compiler lists the fields; design.rs says what each switches.
const TENTH: Design = Design {
    name: "tenth",
    who: "own-thread filter, eager restore, and fork waits",
    questions: "Q1 Q7 Q9",
    filter: Filter::Thread,
    eager: true,
    fork: Fork::Wait,
    ..MAINLINE
};

/// A check that has more states than this is given up, so that a design gone wrong does not eat the machine.
const STATES_MAX: usize = 5_000_000;

/// `design` in every scenario but the largest two, each a model to explore whole.
fn entry(design: Design) -> Entry {
    let small = scenario::ALL.iter().filter(|scenario| !scenario.main_only && scenario.name != "crowd");
    let case = |&scenario| Box::new(Kernel { design, scenario }) as Box<dyn Case>;
    Entry {
        name: design.name,
        who: design.who,
        questions: design.questions,
        cases: small.map(case).collect(),
        large: Vec::new(),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    // Side by side: what the change mends, and what it breaks.
    let entries = [entry(MAINLINE), entry(TENTH)];
    let threads = std::thread::available_parallelism()?.get();
    let progress = Progress::default();
    let table = Table::check(&entries, threads, STATES_MAX, &progress)?;
    println!("{}\n{}\n{}\n", table.text(), table.legend(), table.figures());

    let row = table.row(TENTH.name).ok_or("a checked design has a row")?;
    let broken = row.verdicts.iter().find_map(|(property, verdict)| match verdict {
        Verdict::Broken { token, .. } => Some((*property, token)),
        _ => None,
    });
    let Some((property, token)) = broken else {
        println!("{} breaks nothing in {} states", row.design, row.states);
        return Ok(());
    };
    // A token names a history: design, scenario, and which of the possible steps was taken each time.
    let token: Token = token.parse()?;
    let history = entries[1].case(&token.scenario)?.history(&token.path, Some(property))?;
    print!("{}", render::render(&history, Format::Text, render::DEFAULT_WIDTH));

    // As every example, it checks what it shows: all of it was explored, and the history says what it breaks.
    assert_eq!(progress.done.load(Relaxed), progress.cases.load(Relaxed));
    assert!(history.property.as_deref() == Some(property.name()) && !history.sentence.is_empty());
    Ok(())
}
