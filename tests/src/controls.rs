// SPDX-License-Identifier: MIT OR Apache-2.0

//! Do the tests notice? A module built for this purpose drops something on the way, and the test of that very thing
//! must fail, with the program's own words; told to drop nothing, the same module passes it.

use anyhow::{Result, bail, ensure};

use crate::cluster::{Cluster, N1, N2};
use crate::moves::trip;
use crate::place::Doing;
use crate::proc::Start;
use crate::suite::{Leg, Test};

/// What is broken: the bit of the parameter, the program that has to notice, and what it has to say.
const BROKEN: [(&str, u32, &str, &str); 3] = [
    ("xstate", 1, "regs avx", "of ymm"),
    ("mask", 2, "signals state", "memcmp(&now, &blocked, 8) == 0"),
    (
        "offset",
        4,
        "files offset /tmp/broken",
        "lseek(shared, 0, SEEK_CUR)",
    ),
];

/// The tests.
pub fn tests() -> Vec<Test> {
    BROKEN
        .into_iter()
        .map(|(name, bit, line, words)| {
            Test::new(name, move |cluster| control(cluster, bit, line, words)).on(Leg::Broken)
        })
        .collect()
}

fn attempt(cluster: &Cluster, line: &str) -> Result<()> {
    cluster.sh(N1, "rm -f /tmp/broken")?;
    trip(cluster, &Start::guest(line), Doing::Computing, &[N2])
}

fn control(cluster: &Cluster, bit: u32, line: &str, words: &str) -> Result<()> {
    cluster.reload(&format!("break={bit}"))?;
    let Err(error) = attempt(cluster, line) else {
        bail!("`{line}` passes although the module breaks what it tests (break={bit})");
    };
    let error = format!("{error:#}");
    ensure!(
        error.contains(words),
        "`{line}` failed, but not because of break={bit}:\n{error}"
    );
    cluster.reload("break=0")?;
    attempt(cluster, line)
}
