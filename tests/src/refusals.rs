// SPDX-License-Identifier: MIT OR Apache-2.0

//! What cannot move is refused with its reason, before anything is touched, and goes on.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::cluster::{Cluster, N1, N2, N3, Node};
use crate::moves::{comm, hop};
use crate::place::{Doing, prove_runs, task};
use crate::proc::{End, PASSED, Proc, Start};
use crate::ssictl::{must_refuse, try_migrate};
use crate::suite::Test;

/// Kinds of tests/guest/refuse.c, and the reason each has to give.
const KINDS: [(&str, &str); 20] = [
    ("socket", "file-kind"),
    ("listener", "file-kind"),
    ("seccomp", "seccomp"),
    ("traced", "traced"),
    ("shared-mapping", "shared-mapping"),
    ("shared-memory", "shared-memory"),
    ("shared-files", "shared-files"),
    ("vfork-child", "vfork-child"),
    ("vfork-parent", "shared-memory"),
    ("io-uring", "async-io"),
    ("aio", "async-io"),
    ("lock", "file-lock"),
    ("record-lock", "file-lock"),
    ("scheduling", "scheduling"),
    ("sysv-memory", "sysv-ipc"),
    ("sysv-undo", "sysv-ipc"),
    ("mount-space", "namespace"),
    ("uts-space", "namespace"),
    ("missing-directory", "missing-path"),
    ("missing-opened", "missing-path"),
];

/// The tests.
pub fn tests() -> Vec<Test> {
    let mut tests: Vec<Test> = KINDS
        .into_iter()
        .map(|(kind, reason)| {
            Test::new(format!("refuse-{kind}"), move |cluster| {
                refuse(cluster, kind, reason)
            })
        })
        .collect();
    tests.push(Test::new("refuse-compat", compat));
    tests.push(Test::new("refuse-frozen-cgroup", frozen_cgroup));
    tests.push(Test::new("refuse-stopped", stopped));
    tests.push(Test::new("refuse-children", children));
    tests.push(Test::new("refuse-old", |cluster| {
        plain(cluster, "1", &["too-old"])
    }));
    tests.push(Test::new("refuse-kernel-thread", |cluster| {
        plain(cluster, "2", &["kernel-thread", "too-old"])
    }));
    tests.push(Test::new("refuse-no-process", |cluster| {
        no_process(cluster)
    }));
    for (name, line, reason) in [
        ("timer-posix", "timers posix 50", "timer"),
        ("timer-cpu", "timers cpu 50", "timer"),
        ("threads-leader", "threads leader", "ending"),
    ] {
        tests.push(Test::new(name, move |cluster| {
            moves_or_not(cluster, line, reason)
        }));
    }
    tests.push(Test::new("refuse-already-there", already_there));
    tests
}

/// Moving it and asking why not give the same answer.
fn both(cluster: &Cluster, pid: u32, to: Node, reason: &str) -> Result<()> {
    let answer = try_migrate(cluster, N1, pid, to)?;
    must_refuse(&answer, reason).context("migrate")?;
    // Without a target it says what holds for every target.
    if reason != "missing-path" && reason != "already-there" {
        let answer = cluster.ssictl(N1, &["why", &pid.to_string(), "-o", "json"])?;
        must_refuse(&answer, reason).context("why")?;
    }
    Ok(())
}

fn refuse(cluster: &Cluster, kind: &str, reason: &str) -> Result<()> {
    let line = format!("refuse {kind}");
    let mut proc = Proc::start(cluster, &Start::guest(&line))?;
    proc.ready()?;
    let pid = match proc.output().split_once("VFORKED ") {
        Some((_, rest)) => rest.split_whitespace().next().unwrap_or_default().parse()?,
        None => proc.pid(),
    };
    both(cluster, pid, N2, reason)?;
    proc.must_pass().context("after the refusal")
}

/// Something that need not move: then it is refused for that reason, and goes on at home; or it moves, and goes on
/// there.
fn moves_or_not(cluster: &Cluster, line: &str, reason: &str) -> Result<()> {
    let start = Start::guest(line);
    let mut proc = Proc::start(cluster, &start)?;
    proc.ready()?;
    let answer = try_migrate(cluster, N1, proc.pid(), N2)?;
    if answer.status == 0 {
        prove_runs(cluster, proc.pid(), comm(&start), N1, N2, Doing::Computing)?;
    } else {
        must_refuse(&answer, reason)?;
        prove_runs(cluster, proc.pid(), comm(&start), N1, N1, Doing::Computing)?;
    }
    proc.must_pass()
}

fn compat(cluster: &Cluster) -> Result<()> {
    let mut proc = Proc::start(cluster, &Start::guest("compat").fixed())?;
    proc.ready()?;
    both(cluster, proc.pid(), N2, "compat")?;
    prove_runs(cluster, proc.pid(), "compat", N1, N1, Doing::Computing)?;
    proc.must_pass()
}

fn frozen_cgroup(cluster: &Cluster) -> Result<()> {
    let mut proc = Proc::start(cluster, &Start::guest("spin"))?;
    proc.ready()?;
    let group = "/sys/fs/cgroup/frozen";
    cluster.sh(
        N1,
        &format!(
            "mkdir -p {group}; echo {} > {group}/cgroup.procs; echo 1 > {group}/cgroup.freeze
            until grep -q 'frozen 1' {group}/cgroup.events; do sleep 0.1; done",
            proc.pid()
        ),
    )?;
    let refused = both(cluster, proc.pid(), N2, "frozen");
    cluster.sh(N1, &format!("echo 0 > {group}/cgroup.freeze"))?;
    refused?;
    prove_runs(cluster, proc.pid(), "spin", N1, N1, Doing::Computing)?;
    // And thawed it moves.
    hop(&proc, "spin", Doing::Computing, N2)?;
    proc.must_pass()?;
    cluster.sh(N1, &format!("rmdir {group}")).map(drop)
}

/// A process that a signal has stopped is refused at once, stays stopped, and moves when it goes on.
fn stopped(cluster: &Cluster) -> Result<()> {
    let mut proc = Proc::start(cluster, &Start::guest("spin").watched())?;
    proc.ready()?;
    let pid = proc.pid();
    let signal = |name| cluster.sh(N1, &format!("kill -{name} {pid}"));
    signal("STOP")?;
    proc.wait_report("@launch stopped", Duration::from_secs(20))?;
    let refused = both(cluster, pid, N2, "frozen");
    let state = task(cluster, N1, pid)?.map(|task| task.state);
    signal("CONT")?;
    refused?;
    ensure!(state == Some('T'), "it was stopped, and then {state:?}");
    prove_runs(cluster, pid, "spin", N1, N1, Doing::Computing)?;
    hop(&proc, "spin", Doing::Computing, N2)?;
    proc.must_pass()
}

/// A guest with a child of its own stays where it is until the child is reaped.
fn children(cluster: &Cluster) -> Result<()> {
    let mut proc = Proc::start(cluster, &Start::guest("family"))?;
    proc.ready()?;
    hop(&proc, "family", Doing::Computing, N2)?;
    proc.tell()?;
    proc.wait_line("CHILD ", Duration::from_secs(60))?;
    for to in [N1, N3] {
        must_refuse(&try_migrate(cluster, N1, proc.pid(), to)?, "children")?;
    }
    proc.tell()?;
    proc.wait_line("REAPED", Duration::from_secs(60))?;
    hop(&proc, "family", Doing::Computing, N3)?;
    hop(&proc, "family", Doing::Computing, N1)?;
    proc.must_pass()
}

/// Any of the reasons will do when several hold.
fn plain(cluster: &Cluster, pid: &str, reasons: &[&str]) -> Result<()> {
    let answer = cluster.ssictl(N1, &["migrate", pid, "--to", "n2", "-o", "json"])?;
    if reasons
        .iter()
        .any(|reason| must_refuse(&answer, reason).is_ok())
    {
        return Ok(());
    }
    bail!("none of {reasons:?}: {}", answer.evidence())
}

/// Numbers of all kinds that nobody has.
fn no_process(cluster: &Cluster) -> Result<()> {
    const NOT_FOUND: i32 = 4;
    for pid in ["262000", "393000", "4190000"] {
        let answer = cluster.ssictl(N1, &["migrate", pid, "--to", "n2", "-o", "json"])?;
        ensure!(
            answer.status == NOT_FOUND,
            "a process {pid} that does not exist: {}",
            answer.evidence()
        );
    }
    Ok(())
}

fn already_there(cluster: &Cluster) -> Result<()> {
    let mut proc = Proc::start(cluster, &Start::guest("spin"))?;
    proc.ready()?;
    both(cluster, proc.pid(), N1, "already-there")?;
    hop(&proc, "spin", Doing::Computing, N2)?;
    must_refuse(&try_migrate(cluster, N1, proc.pid(), N2)?, "already-there")?;
    prove_runs(cluster, proc.pid(), "spin", N1, N2, Doing::Computing)?;
    proc.tell()?;
    proc.must_end(End::Exit(PASSED))
}
