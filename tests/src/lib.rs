// SPDX-License-Identifier: MIT OR Apache-2.0

//! Runs programs on a cluster of test VMs, moves them, and asks each kernel where they really run.
//!
//! - [`host`]: bounded commands on this host; [`cluster`]: `vm/cluster` as a value; [`ssictl`]: its answers;
//! - [`proc`]: one program under test; [`place`]: the proof of where it runs;
//! - [`suite`]: tests, their clusters, and running them; every other module is a table of tests.
//!
//! The programs themselves are in `tests/guest`.

#![forbid(unsafe_code)]

pub mod cluster;
pub mod controls;
pub mod failures;
pub mod forming;
pub mod garbage;
mod guide;
pub mod host;
pub mod lines;
mod members;
pub mod module;
pub mod moves;
pub mod place;
pub mod pressure;
pub mod proc;
pub mod programs;
pub mod refusals;
pub mod rights;
pub mod rounds;
pub mod service;
pub mod ssictl;
pub mod state;
pub mod suite;
pub mod systemd;
pub mod terminal;
pub mod tool;
pub mod worn;

use suite::{Leg, Test};

/// What runs once more where the kernels check themselves.
const CHECKED: [&str; 18] = [
    "static",
    "dynamic",
    "regs",
    "memory-hold",
    "memory-discard",
    "memory-fork",
    "signals-state",
    "threads-mixed",
    "files-pipe",
    "exec",
    "status-signal",
    "python-pipe",
    "terminal-shell",
    "refuse-socket",
    "fail-host-off",
    "fail-middle-cut",
    "garbage-device",
    "module-cycles",
];

/// What runs once more where every node booted by itself: all that depends on addresses and clocks.
const APART: [&str; 7] = [
    "dynamic",
    "memory-hold",
    "clock",
    "sleep-futex",
    "sleep-others",
    "threads-mixed",
    "python-pipe",
];

/// What runs once more where pages come one by one and only when asked for, with one move.
const LAZY: [&str; 10] = [
    "memory-hold",
    "memory-grow",
    "memory-discard",
    "memory-remap",
    "memory-protect",
    "memory-kernel",
    "memory-fork",
    "memory-beside",
    "threads-mixed",
    "shared",
];

/// Every test, the simplest first.
pub fn all() -> Vec<Test> {
    // Those that make sense without moving.
    let unmoved = || {
        let parts = [
            moves::simple(),
            state::tests(),
            programs::tests(),
            terminal::tests(),
        ];
        parts.into_iter().flatten()
    };
    let others = || {
        let parts = [
            tool::tests(),
            rights::tests(),
            refusals::tests(),
            module::tests(),
            garbage::tests(),
            service::tests(),
            failures::tests(),
        ];
        parts.into_iter().flatten()
    };
    let again = |leg: Leg, names: &'static [&str]| {
        unmoved()
            .chain(others())
            .filter(|test| names.contains(&test.name.as_str()))
            .map(move |test| test.on(leg))
    };
    unmoved()
        .map(|test| test.on(Leg::Plain))
        .chain(moves::tests())
        .chain(unmoved())
        .chain(others())
        .chain(again(Leg::Lazy, &LAZY))
        .chain(pressure::tests())
        .chain(again(Leg::Checkers, &CHECKED))
        .chain(again(Leg::Apart, &APART))
        .chain(forming::tests())
        .chain(rounds::tests())
        .chain(systemd::tests())
        .chain(controls::tests())
        .chain(worn::tests())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_lists_name_tests() {
        let all = all();
        suite::verify(&all).unwrap();
        let count = |leg| all.iter().filter(|test| test.leg == leg).count();
        assert_eq!(count(Leg::Checkers), CHECKED.len());
        assert_eq!(count(Leg::Apart), APART.len());
        assert_eq!(count(Leg::Lazy), LAZY.len());
    }
}
