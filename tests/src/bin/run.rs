// SPDX-License-Identifier: MIT OR Apache-2.0

//! The test runner: `tests/run [--list] [--keep] [NAME...]`.
//!
//! A name may hold one `*`. `--keep` stops at the first failure and leaves its cluster up. Tests are in the order
//! of what they ask of the system; each can be run alone.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::{Result, bail};
use ssi_tests::suite::{self, Test};

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("tests: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    let (mut list, mut keep, mut words) = (false, false, Vec::new());
    for word in std::env::args().skip(1) {
        match word.as_str() {
            "--list" => list = true,
            "--keep" => keep = true,
            option if option.starts_with('-') => bail!("no such option: {option}"),
            _ => words.push(word),
        }
    }
    let tests = ssi_tests::all();
    suite::verify(&tests)?;
    for word in &words {
        if !tests.iter().any(|test| suite::is_meant(&test.name, word)) {
            bail!("no test is called {word}; tests/run --list names them");
        }
    }
    let chosen: Vec<Test> = tests
        .into_iter()
        .filter(|test| {
            words.is_empty() || words.iter().any(|word| suite::is_meant(&test.name, word))
        })
        .collect();
    if list {
        for test in &chosen {
            println!("{}", test.name);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let name = std::env::var("CLUSTER").unwrap_or_else(|_| format!("test{}", std::process::id()));
    let count = suite::run(&name, chosen, keep);
    for name in &count.failed {
        println!("failed: {name}");
    }
    println!("{} passed, {} failed", count.passed, count.failed.len());
    Ok(if count.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
