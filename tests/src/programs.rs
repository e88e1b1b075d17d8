// SPDX-License-Identifier: MIT OR Apache-2.0

//! Programs of the system as they are: python3, bc, gzip, sha256sum, and what they are connected to.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cluster::{Cluster, Kind, N1, N2, N3, Node};
use crate::lines;
use crate::moves::travel;
use crate::place::{Doing, prove_runs};
use crate::proc::{End, Io, PASSED, Proc, Start};
use crate::ssictl::migrate;
use crate::suite::Test;

const LONG: Duration = Duration::from_secs(180);

/// The tests.
pub fn tests() -> Vec<Test> {
    vec![
        Test::new("count-pipe", |cluster| count(cluster, Io::Pipe, "count 10")),
        Test::new("count-fast", |cluster| {
            count(cluster, Io::Pipe, "count 0 300")
        }),
        Test::new("count-terminal", |cluster| {
            count(cluster, Io::Terminal, "count 10")
        }),
        Test::new("python-pipe", |cluster| python(cluster, Io::Pipe)),
        Test::new("python-terminal", |cluster| python(cluster, Io::Terminal)),
        Test::new("bc", bc),
        Test::new("sha256sum", sha256sum),
        Test::new("gzip", gzip),
        Test::new("reader", reader),
        Test::new("sleep", sleep),
    ]
}

/// Lines at a steady pace, or as fast as they go: a full pipe must hold the writer up, wherever it is.
fn count(cluster: &Cluster, io: Io, line: &str) -> Result<()> {
    let mut proc = Proc::start(cluster, &Start::guest(line).io(io))?;
    proc.ready()?;
    for to in [N2, N3, N1, N2] {
        let before = proc.lines().len();
        travel(&proc, "count", Doing::Sleeping, &[to])?;
        proc.wait_lines(before + 20, LONG)?;
    }
    proc.must_pass()?;
    let all = proc.lines();
    lines::check(all.iter().map(|(_, line)| line.as_str()), |_| Ok(())).map(drop)
}

fn python(cluster: &Cluster, io: Io) -> Result<()> {
    let script = cluster.program(Kind::Script, "compute.py", &[N1])?;
    let mut proc = Proc::start(cluster, &Start::system(&["python3", &script]).io(io))?;
    proc.ready()?;
    for to in [N2, N3, N1, N2] {
        let before = proc.lines().len();
        travel(&proc, "python3", Doing::Printing, &[to])?;
        proc.wait_lines(before + 10, LONG)?;
    }
    proc.must_pass()?;
    let all = proc.lines();
    lines::check_chain(all.iter().map(|(_, line)| line.as_str()), lines::STEPS).map(drop)
}

/// Reads a calculation from its home, computes it elsewhere, and answers at home.
fn bc(cluster: &Cluster) -> Result<()> {
    let sum =
        |n: u32| format!("x = 0; for (i = 1; i <= {n}; i++) x = (x * 7 + i^5) % 1000003; x\n");
    let at = if cluster.has_ssi() { N3 } else { N1 };
    let reference = cluster
        .exec_with(at, &["bc"], sum(60_000).as_bytes(), LONG)?
        .text();

    let mut proc = Proc::start(cluster, &Start::system(&["bc"]))?;
    proc.input(b"6 * 7\n")?;
    proc.wait_line("42", LONG)?;
    // It waits for input while it moves, and gets it on n2.
    travel(&proc, "bc", Doing::Sleeping, &[N2])?;
    proc.input(sum(60_000).as_bytes())?;
    if cluster.has_ssi() {
        migrate(cluster, N1, proc.pid(), N3)?;
        migrate(cluster, N1, proc.pid(), N2)?;
    }
    proc.wait_lines(1, LONG)?;
    travel(&proc, "bc", Doing::Sleeping, &[N1, N3])?;
    proc.input(b"quit\n")?;
    proc.close_input();
    proc.must_end(End::Exit(0))?;
    ensure!(
        proc.output() == format!("42\n{reference}"),
        "bc says {:?}, and {reference:?} on a node of its own",
        proc.output()
    );
    Ok(())
}

/// A large file, read at home by a program that is elsewhere.
fn sha256sum(cluster: &Cluster) -> Result<()> {
    // Mostly holes: large to read, small to keep.
    let make = r#"rm -f /tmp/large; for i in 0 1 2 3 4 5 6 7; do
        seq "$i" 20000 | dd of=/tmp/large bs=1M seek=$((i * 8)) conv=notrunc status=none; done
        truncate -s 64M /tmp/large"#;
    cluster.sh(N1, make)?;
    let reference = cluster.sh(N1, "sha256sum < /tmp/large")?;
    let mut proc = Proc::start(cluster, &Start::system(&["sha256sum", "/tmp/large"]))?;
    if cluster.has_ssi() {
        for to in [N2, N3, N1, N2] {
            migrate(cluster, N1, proc.pid(), to).with_context(|| {
                format!("to {to}; was the file read too soon?\n{}", proc.evidence())
            })?;
        }
    }
    let end = proc.wait_end(LONG)?;
    ensure!(end == End::Exit(0), "{end:?}\n{}", proc.evidence());
    let want = reference.replace('-', "/tmp/large");
    ensure!(
        proc.output().trim_end() == want,
        "it says {}, not {want}",
        proc.output()
    );
    cluster.sh(N1, "rm /tmp/large").map(drop)
}

/// The only process of that name on a node.
fn pid_of(cluster: &Cluster, node: Node, name: &str) -> Result<u32> {
    let text = cluster.sh(node, &format!("pgrep -x {name}"))?;
    text.parse()
        .with_context(|| format!("pgrep -x {name} on {node}: {text}"))
}

/// Between two pipes whose other ends are at home.
fn gzip(cluster: &Cluster) -> Result<()> {
    let feed = "for i in $(seq 1 50); do seq $((i * 999)) $((i * 999 + 2500)); sleep 0.2; done";
    let at = if cluster.has_ssi() { N3 } else { N1 };
    let quick = feed.replace("sleep 0.2", ":");
    let reference = cluster.sh(at, &format!("{{ {quick}; }} | gzip -9 | sha256sum"))?;

    let script = format!("{{ {feed}; }} | gzip -9 | sha256sum");
    let mut proc = Proc::start(cluster, &Start::system(&["bash", "-c", &script]))?;
    let mut pid = None;
    crate::host::eventually(Duration::from_secs(20), || {
        pid = pid_of(cluster, N1, "gzip").ok();
        Ok(pid.is_none().then(|| "no gzip runs".to_owned()))
    })?;
    let pid = pid.context("no gzip")?;
    if cluster.has_ssi() {
        for to in [N2, N3, N1, N2] {
            migrate(cluster, N1, pid, to)?;
            prove_runs(cluster, pid, "gzip", N1, to, Doing::Sleeping)?;
        }
    }
    let end = proc.wait_end(LONG)?;
    ensure!(end == End::Exit(0), "{end:?}\n{}", proc.evidence());
    let got = proc.output();
    ensure!(
        got.trim_end() == reference,
        "the sum is {got}, not {reference}"
    );
    Ok(())
}

/// Standard input that comes while the reader moves: all of it, and then its end.
fn reader(cluster: &Cluster) -> Result<()> {
    let mut proc = Proc::start(cluster, &Start::guest("files reader"))?;
    proc.ready()?;
    let (mut count, mut sum) = (0_u64, 0_u64);
    for (part, to) in (0_u32..).zip([N2, N3, N1, N2]) {
        let bytes: Vec<u8> = (0..150_000_u32)
            .map(|i| i.wrapping_mul(31 + part).to_le_bytes()[1])
            .collect();
        for &byte in &bytes {
            sum = sum.wrapping_mul(31).wrapping_add(byte.into());
            count += 1;
        }
        proc.input(&bytes)?;
        if cluster.has_ssi() {
            migrate(cluster, N1, proc.pid(), to)?;
        }
    }
    proc.close_input();
    let line = proc.wait_line("READ ", LONG)?;
    ensure!(
        line == format!("READ {count} {sum}"),
        "{count} bytes with the sum {sum} were sent; it says {line}"
    );
    proc.must_end(End::Exit(PASSED))
}

/// A program so small that it is mostly its library: its time is right although it moved.
fn sleep(cluster: &Cluster) -> Result<()> {
    let seconds = if cluster.has_ssi() { 20 } else { 2 };
    let start = std::time::Instant::now();
    let mut proc = Proc::start(cluster, &Start::system(&["sleep", &seconds.to_string()]))?;
    travel(&proc, "sleep", Doing::Sleeping, &[N2, N3])?;
    let end = proc.wait_end(LONG)?;
    let took = start.elapsed().as_secs_f64();
    ensure!(end == End::Exit(0), "{end:?}\n{}", proc.evidence());
    let want = f64::from(seconds);
    ensure!(
        took >= want && took < want + 6.0,
        "sleep {seconds} took {took:.1} s"
    );
    Ok(())
}
