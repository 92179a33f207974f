//! Explores the schedules of the shipped engine on simulated memory.
#![cfg(pagelease_shuttle)]

#[macro_use]
mod scenarios;

use scenarios::{Effort, Scenario};

macro_rules! tests {
    ($($file:ident::$name:ident if $applies:expr;)+) => {
        $(
            #[test]
            fn $name() {
                let scenario = Scenario { name: stringify!($name), applies: $applies, run: scenarios::$file::$name };
                scenario.explore(Effort::from_env(1000));
            }
        )+
    };
}

#[test]
fn nothing() {
    Scenario { name: "nothing", applies: |_| true, run: scenarios::touches::nothing }.explore(Effort::from_env(1000));
}
scenarios!(tests);
