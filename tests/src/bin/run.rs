// SPDX-License-Identifier: MIT OR Apache-2.0

//! The test runner: `tests/run [--list] [--keep] [NAME...] [--then [--until TIME] NAME...]`.
//!
//! A name may hold one `*`. `--keep` stops at the first failure and leaves its cluster up. Tests are in the order
//! of what they ask of the system; each can be run alone. Those after `--then` come last, and none of them begins
//! later than at TIME, in seconds since 1970: those for which there was no time are named.

#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use ssi_tests::suite::{self, Count, Test};

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
    let (mut list, mut keep, mut until) = (false, false, None);
    let (mut first, mut then) = (Vec::new(), None);
    let mut args = std::env::args().skip(1);
    while let Some(word) = args.next() {
        match word.as_str() {
            "--list" => list = true,
            "--keep" => keep = true,
            "--then" => then = Some(Vec::new()),
            "--until" => {
                let time = args.next().and_then(|text| text.parse().ok());
                let time = Duration::from_secs(time.context("--until takes a number of seconds")?);
                until = Some(SystemTime::UNIX_EPOCH + time);
            }
            option if option.starts_with('-') => bail!("no such option: {option}"),
            _ => then.as_mut().unwrap_or(&mut first).push(word),
        }
    }
    suite::verify(&ssi_tests::all())?;
    let last = then.map_or(Ok(Vec::new()), |words| chosen(&words))?;
    let first = chosen(&first)?;
    if list {
        for test in first.iter().chain(&last) {
            println!("{}", test.name);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let name = std::env::var("CLUSTER").unwrap_or_else(|_| format!("test{}", std::process::id()));
    let mut count = Count::default();
    if !suite::run(&name, first, keep, None, &mut count) {
        suite::run(&name, last, keep, until, &mut count);
    }
    if !count.left_out.is_empty() {
        println!("no time for: {}", count.left_out.join(" "));
    }
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

/// The tests that are meant by these words, all of them if there are none.
fn chosen(words: &[String]) -> Result<Vec<Test>> {
    let mut tests = ssi_tests::all();
    let meant = |test: &Test, word: &String| suite::is_meant(&test.name, word);
    for word in words {
        if !tests.iter().any(|test| meant(test, word)) {
            bail!("no test is called {word}; tests/run --list names them");
        }
    }
    tests.retain(|test| words.is_empty() || words.iter().any(|word| meant(test, word)));
    Ok(tests)
}
