// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a process has, each kind of it in a program of its own that sets it, moves, and looks.
//!
//! On a cluster without the module the same programs run without moving.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cluster::{Cluster, N1, N2, N3, Node};
use crate::moves::{comm, hop, travel, trip};
use crate::place::{Doing, task};
use crate::proc::{End, Io, PASSED, Proc, Start};
use crate::suite::Test;

/// Programs that only compute until told: their names as tests, and their command lines.
const COMPUTING: [(&str, &str); 25] = [
    ("regs", "regs"),
    ("memory-hold", "memory hold 16"),
    ("memory-grow", "memory grow"),
    ("memory-discard", "memory discard"),
    ("memory-remap", "memory remap"),
    ("memory-protect", "memory protect"),
    ("memory-kernel", "memory kernel"),
    ("memory-fork", "memory fork"),
    ("memory-mapped", "memory mapped /tmp/mapped"),
    ("memory-loop", "memory loop 16"),
    ("shared", "shared"),
    ("clock", "clock"),
    ("identity", "identity"),
    ("timer-itimer", "timers itimer 50"),
    ("signals-state", "signals state"),
    ("files-numbers", "files numbers"),
    ("files-devices", "files devices"),
    ("files-directory", "files directory"),
    ("files-pipe", "files pipe"),
    ("files-offset", "files offset /tmp/offset"),
    ("files-append", "files append /tmp/append"),
    ("files-deleted", "files deleted /tmp/deleted"),
    ("threads-pass", "threads pass"),
    ("threads-mixed", "threads mixed"),
    ("threads-churn", "threads churn"),
];

/// Those of the table that also run without a C library of their own, before it can be trusted to move.
const STATIC: [&str; 4] = ["regs", "memory-hold", "memory-fork", "signals-state"];

/// Where they go: through all nodes, and checked as guests for the second time on n2.
const ROUTE: [Node; 4] = [N2, N3, N1, N2];

/// The tests.
pub fn tests() -> Vec<Test> {
    let mut tests = Vec::new();
    for (name, line) in COMPUTING {
        if STATIC.contains(&name) {
            tests.push(Test::new(format!("static-{name}"), move |cluster| {
                clean(cluster, line)?;
                trip(
                    cluster,
                    &Start::guest(line).fixed(),
                    Doing::Computing,
                    &ROUTE,
                )
            }));
        }
    }
    for (name, line) in COMPUTING {
        tests.push(Test::new(name, move |cluster| {
            clean(cluster, line)?;
            trip(cluster, &Start::guest(line), Doing::Computing, &ROUTE)?;
            contents(cluster, name)
        }));
    }
    for kind in ["nanosleep", "poll", "futex", "sigtimedwait"] {
        tests.push(Test::new(format!("sleep-{kind}"), move |cluster| {
            sleep(cluster, kind)
        }));
    }
    tests.push(Test::new("memory-beside", beside));
    tests.push(Test::new("sleep-others", sleep_others));
    for kind in ["pause", "sigsuspend", "futex-forever", "poll-forever"] {
        tests.push(Test::new(format!("sleep-{kind}"), move |cluster| {
            sleep_forever(cluster, kind)
        }));
    }
    for (name, words, end) in [
        ("exit", "exit 7", End::Exit(7)),
        ("signal", "signal 15", End::Signal(15)),
        ("abort", "abort", End::Signal(6)),
        ("segv", "segv", End::Signal(11)),
        ("thread", "thread 9", End::Exit(9)),
    ] {
        tests.push(Test::new(format!("status-{name}"), move |cluster| {
            status(cluster, words, end)
        }));
    }
    tests.push(Test::new("status-usage", usage));
    tests.push(Test::new("timer-alarm", alarm));
    tests.push(Test::new("program-absent", |cluster| {
        elsewhere(cluster, None)
    }));
    tests.push(Test::new("program-differs", |cluster| {
        elsewhere(cluster, Some("identity"))
    }));
    tests.push(Test::new("exec", |cluster| exec(cluster, "execs")));
    tests.push(Test::new("exec-thread", |cluster| {
        exec(cluster, "execs thread")
    }));
    tests.push(Test::new("exec-other", exec_other));
    tests
}

/// Files that an earlier run may have left.
fn clean(cluster: &Cluster, line: &str) -> Result<()> {
    match line.split_whitespace().nth(2) {
        Some(path) if path.starts_with('/') => cluster.sh(N1, &format!("rm -f {path}")).map(drop),
        _ => Ok(()),
    }
}

/// What a program has written must be found at home.
fn contents(cluster: &Cluster, name: &str) -> Result<()> {
    let (path, want) = match name {
        "files-offset" => ("/tmp/offset", "01234XY789"),
        "files-append" => ("/tmp/append", "before\nafter"),
        _ => return Ok(()),
    };
    let got = cluster.sh(N1, &format!("cat {path}"))?;
    ensure!(got == want, "{path} at home holds {got:?}, not {want:?}");
    Ok(())
}

/// A mapped file that is in the page cache in pieces of many pages: one of them must not bring the others.
fn beside(cluster: &Cluster) -> Result<()> {
    for node in cluster.nodes() {
        cluster.sh(
            node,
            "echo 1 > /proc/sys/vm/drop_caches; cat /usr/lib/x86_64-linux-gnu/libc.a > /dev/null",
        )?;
    }
    let start = Start::guest("memory beside");
    trip(cluster, &start, Doing::Computing, &ROUTE)
}

/// Sleeps long, goes through all nodes meanwhile, and must wake when its time is over.
fn sleep(cluster: &Cluster, kind: &str) -> Result<()> {
    let line = format!(
        "sleepers {kind} {}",
        if cluster.has_ssi() { 25000 } else { 3000 }
    );
    let mut proc = Proc::start(cluster, &Start::guest(&line))?;
    proc.ready()?;
    travel(&proc, "sleepers", Doing::Sleeping, &[N2, N3, N1])?;
    let early = proc.output();
    ensure!(
        !early.contains("SLEPT"),
        "it woke early, or the moves took its whole time: {early}"
    );
    proc.must_end(End::Exit(PASSED))
}

/// The other kinds, all at once.
fn sleep_others(cluster: &Cluster) -> Result<()> {
    let kinds = [
        "clock",
        "absolute",
        "ppoll",
        "select",
        "pselect",
        "futex-bitset",
        "futex-realtime",
    ];
    let ms = if cluster.has_ssi() { 40000 } else { 10000 };
    let lines = kinds.map(|kind| format!("sleepers {kind} {ms}"));
    let mut procs = Vec::new();
    for line in &lines {
        let proc = Proc::start(cluster, &Start::guest(line))?;
        proc.ready()?;
        procs.push(proc);
    }
    for (proc, kind) in procs.iter().zip(kinds) {
        travel(proc, "sleepers", Doing::Sleeping, &[N2]).context(kind)?;
    }
    for (proc, kind) in procs.iter_mut().zip(kinds) {
        proc.must_end(End::Exit(PASSED)).context(kind)?;
    }
    Ok(())
}

/// Sleeps without end, until a signal sent at home wakes it.
fn sleep_forever(cluster: &Cluster, kind: &str) -> Result<()> {
    let line = format!("sleepers {kind}");
    let mut proc = Proc::start(cluster, &Start::guest(&line))?;
    proc.ready()?;
    travel(&proc, "sleepers", Doing::Sleeping, &[N2, N3])?;
    let early = proc.output();
    ensure!(
        !early.contains("SLEPT"),
        "it woke although nobody woke it: {early}"
    );
    cluster.sh(N1, &format!("kill -USR1 {}", proc.pid()))?;
    proc.must_end(End::Exit(PASSED))
}

/// Ends as a guest; the parent at home must see how.
fn status(cluster: &Cluster, words: &str, end: End) -> Result<()> {
    let line = format!("status {words}");
    let mut proc = Proc::start(cluster, &Start::guest(&line))?;
    proc.ready()?;
    travel(&proc, "status", Doing::Computing, &[N2])?;
    proc.tell()?;
    proc.must_end(end)?;
    for node in cluster.nodes() {
        ensure!(
            task(cluster, node, proc.pid())?.is_none(),
            "{node} still has a task {}",
            proc.pid()
        );
    }
    Ok(())
}

/// The parent is told the processor time that was used elsewhere too.
fn usage(cluster: &Cluster) -> Result<()> {
    let mut proc = Proc::start(cluster, &Start::guest("spin"))?;
    proc.ready()?;
    travel(&proc, "spin", Doing::Computing, &[N2])?;
    let at = if cluster.has_ssi() { N2 } else { N1 };
    crate::host::eventually(Duration::from_secs(60), || {
        let ticks = task(cluster, at, proc.pid())?.map_or(0, |task| task.ticks);
        Ok((ticks < 200).then(|| format!("it has used {ticks} ticks only")))
    })?;
    proc.must_pass()?;
    let used: u64 = proc
        .wait_report("@launch used ", Duration::from_secs(5))?
        .parse()?;
    ensure!(
        used >= 2000,
        "it used 2000 ms or more, and its parent was told {used} ms"
    );
    Ok(())
}

/// An alarm that is set at home and rings elsewhere.
fn alarm(cluster: &Cluster) -> Result<()> {
    let line = format!(
        "timers alarm {}",
        if cluster.has_ssi() { 20_000 } else { 8_000 }
    );
    let mut proc = Proc::start(cluster, &Start::guest(&line))?;
    proc.ready()?;
    travel(&proc, "timers", Doing::Computing, &[N2, N3])?;
    ensure!(
        !proc.output().contains("PASSED"),
        "it rang early, or the moves took its whole time"
    );
    proc.must_end(End::Exit(PASSED))
}

/// The program's file is not on the other nodes, or another one has its name there: its pages travel with it.
fn elsewhere(cluster: &Cluster, instead: Option<&str>) -> Result<()> {
    let built = crate::cluster::top()?.join("build/guest/dynamic");
    let path = format!("/elsewhere/{}/memory", instead.unwrap_or("absent"));
    cluster.push(N1, &built.join("memory"), &path)?;
    if let Some(other) = instead {
        for node in cluster.nodes().into_iter().filter(|&node| node != N1) {
            cluster.push(node, &built.join(other), &path)?;
        }
    }
    let mut proc = Proc::start(cluster, &Start::system(&[&path, "fork"]))?;
    proc.ready()?;
    travel(&proc, "memory", Doing::Computing, &[N2, N3, N1, N2])?;
    proc.must_pass()
}

/// Replaces itself by exec on another node, and moves again afterwards.
fn exec(cluster: &Cluster, line: &str) -> Result<()> {
    let start = Start::guest(line);
    let mut proc = Proc::start(cluster, &start)?;
    proc.ready()?;
    travel(&proc, comm(&start), Doing::Computing, &[N2])?;
    proc.tell()?;
    proc.wait_line("SECOND", Duration::from_secs(60))?;
    // It became the program that its link /proc/self/exe named.
    travel(&proc, "exe", Doing::Computing, &[N3, N1, N2])?;
    proc.restart_words("second");
    proc.must_pass()
}

/// Becomes a program that knows nothing of tests.
fn exec_other(cluster: &Cluster) -> Result<()> {
    let start = Start::guest("execs busybox").io(Io::Pipe);
    let mut proc = Proc::start(cluster, &start)?;
    proc.ready()?;
    if cluster.has_ssi() {
        hop(&proc, comm(&start), Doing::Computing, N2)?;
    }
    proc.tell()?;
    let line = proc.wait_line("by exec", Duration::from_secs(60))?;
    ensure!(
        line == format!("by exec {}", proc.pid()),
        "it has another number: {line}"
    );
    proc.must_end(End::Exit(PASSED))
}
