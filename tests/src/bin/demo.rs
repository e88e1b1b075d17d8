// SPDX-License-Identifier: MIT OR Apache-2.0

//! The demonstration: a Python program at a terminal of n1 computes and prints, and is moved from node to node while
//! it runs. Ends with status 0 only if nothing of its output was lost, doubled or wrong.

#![forbid(unsafe_code)]

use std::io::{IsTerminal, Write, stdout};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use ssi_tests::cluster::{Cluster, Kind, N1, N2, N3, Node, Shape};
use ssi_tests::lines;
use ssi_tests::place::{Doing, prove_runs, task};
use ssi_tests::proc::{End, Io, PASSED, Proc, Start};
use ssi_tests::ssictl::{find, last_json};

/// Steps of the computation between two lines: a few lines a second on an emulated processor.
const STEPS: u32 = 50_000;
/// How long one may watch before the next move.
const WATCH: Duration = Duration::from_secs(4);

fn main() -> ExitCode {
    match demo() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn say(text: &str) {
    if stdout().is_terminal() {
        println!("\x1b[1m{text}\x1b[0m");
    } else {
        println!("{text}");
    }
}

/// Prints the program's lines as they come.
struct Screen<'a, 'c> {
    proc: &'a Proc<'c>,
    printed: usize,
}

impl Screen<'_, '_> {
    fn show(&mut self) {
        let lines = self.proc.lines();
        for (_, line) in lines.iter().skip(self.printed) {
            if !line.starts_with("@launch") {
                println!("   n1 terminal | {line}");
            }
        }
        self.printed = lines.len();
        // Whoever closed our output does not want to see more.
        let _ = stdout().flush();
    }

    fn show_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.show();
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Goes on printing while something else is done.
    fn show_while<T: Send>(&mut self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let working = scope.spawn(work);
            while !working.is_finished() {
                self.show();
                thread::sleep(Duration::from_millis(20));
            }
            working
                .join()
                .unwrap_or_else(|_| anyhow::bail!("a thread panicked"))
        })
    }
}

fn demo() -> Result<()> {
    let name = std::env::var("CLUSTER").unwrap_or_else(|_| format!("demo{}", std::process::id()));
    say("Starting three virtual machines, n1, n2 and n3: the module is loaded, ssid runs on each.");
    let start = Instant::now();
    let shape = Shape {
        nodes: 3,
        options: vec!["--template"],
        lazy: false,
    };
    let cluster = Cluster::up(&name, shape)?;
    say(&format!(
        "They are up after {:.0} s.\n",
        start.elapsed().as_secs_f64()
    ));

    let script = cluster.program(Kind::Script, "compute.py", &[N1])?;
    let steps = STEPS.to_string();
    say("At a terminal of n1:  python3 compute.py");
    say(
        "It computes a long chain of numbers and prints one now and then. No number can be had without all before it.",
    );
    let mut proc = Proc::start(
        &cluster,
        &Start::system(&["python3", &script, &steps]).io(Io::Terminal),
    )?;
    proc.ready()?;
    let mut screen = Screen {
        proc: &proc,
        printed: 0,
    };
    screen.show_for(WATCH);
    for to in [N2, N3, N1] {
        let text = screen.show_while(|| step(&cluster, &proc, to))?;
        say(&text);
        screen.show_for(WATCH);
    }
    say("\nIt is told to end.");
    proc.tell()?;
    let end = proc.wait_end(Duration::from_secs(60))?;
    ensure!(
        end == End::Exit(PASSED),
        "its parent on n1 saw {end:?}\n{}",
        proc.evidence()
    );

    let all = proc.lines();
    let count = lines::check_chain(all.iter().map(|(_, line)| line.as_str()), STEPS)?;
    let mut moments: Vec<Instant> = all
        .iter()
        .filter(|(_, line)| line.starts_with("LINE"))
        .map(|(at, _)| *at)
        .collect();
    moments.sort();
    let mut pauses: Vec<Duration> = moments.windows(2).map(|pair| pair[1] - pair[0]).collect();
    pauses.sort();
    let usual = pauses.get(pauses.len() / 2).copied().unwrap_or_default();
    let longest = pauses.last().copied().unwrap_or_default();
    cluster.check()?;
    say(&format!(
        "{count} lines came, each once, in order and right; usually {} ms apart, at most {} ms.\nIts parent on n1 saw it \
         exit with {PASSED}, as always.",
        usual.as_millis(),
        longest.as_millis()
    ));
    Ok(())
}

/// Moves the program and tells what each kernel says of it.
fn step(cluster: &Cluster, proc: &Proc<'_>, to: Node) -> Result<String> {
    let pid = proc.pid().to_string();
    let words = [
        "migrate",
        pid.as_str(),
        "--to",
        &to.to_string(),
        "--wait",
        "-o",
        "json",
    ];
    let output = cluster.ssictl(N1, &words)?;
    ensure!(
        output.status == 0,
        "ssictl migrate {pid} --to {to}: {}",
        output.evidence()
    );
    let report = last_json(&output)?;
    let ticks = || {
        Ok::<_, anyhow::Error>(
            task(cluster, to, proc.pid())?
                .context("it has ended")?
                .ticks,
        )
    };
    let before = ticks()?;
    prove_runs(cluster, proc.pid(), "python3", N1, to, Doing::Printing)?;
    let ticks = ticks()?.saturating_sub(before);
    let number = |key: &str| {
        find(&report, key)
            .and_then(Value::as_u64)
            .with_context(|| format!("no {key} in {report}"))
    };
    let bytes = number("image_bytes")? + number("fetched_bytes")? + number("pushed_bytes")?;
    let other = if to == N1 {
        ""
    } else {
        "; n1 keeps its deputy, which does next to nothing"
    };
    Ok(format!(
        "\n== ssictl migrate {pid} --to {to}\n== Process {pid} is run by the kernel of {to} now, which has given it {:.1} s more of \
         its processor{other}.\n== It stood still for {:.1} ms; {} KiB moved.\n",
        ticks as f64 / 100.0,
        number("committed_us")? as f64 / 1000.0,
        bytes.div_ceil(1024),
    ))
}
