//! Explores the schedules of the shipped engine, on simulated memory.
#![cfg(pagelease_shuttle)]

#[macro_use]
mod scenarios;

use scenarios::explore::{Effort, Scenario};
use scenarios::world::Setting;
use scenarios::*;

macro_rules! tests {
    ($($file:ident::$name:ident if $applies:expr;)+) => {
        $(
            #[test]
            fn $name() {
                let scenario = Scenario { name: stringify!($name), applies: $applies, run: $file::$name };
                scenario.explore(Effort::from_env(300));
            }
        )+
    };
}

scenarios!(tests);
