//! Making a history up: the engine under a random schedule.

use super::direct::{Chance, Plan};
use super::history::{Doing, History};
use super::run::{direct, follow};

/// A history of the programs of `history`, chosen by `seed`, with no more `runs` steps than it takes to follow it.
///
/// # Errors
/// Why the engine failed; or that what it did cannot be told by a history, which seldom happens, and only where the hold
/// limit passes: a monitor may have been held up by a limit that passed for nothing. Try another seed.
pub(crate) fn record(history: &History, seed: u64) -> Result<History, String> {
    let plan = Plan::MakeUp(Chance(seed));
    let mut recorded = History { steps: direct(history, plan)?, ..history.clone() };
    follow(&recorded).map_err(|why| format!("it cannot be followed: {why}\n{recorded}"))?;
    for at in (0..recorded.steps.len()).rev() {
        if recorded.steps[at].doing == Doing::Runs {
            let mut shorter = recorded.clone();
            shorter.steps.remove(at);
            if follow(&shorter).is_ok() {
                recorded = shorter;
            }
        }
    }
    Ok(recorded)
}
