// SPDX-License-Identifier: MIT OR Apache-2.0

//! Programs at a terminal of their home, and signals that come from there.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::cluster::{Cluster, N1, N2, N3};
use crate::host::eventually;
use crate::moves::travel;
use crate::place::{Doing, prove_runs, task};
use crate::proc::{End, Io, PASSED, Proc, Start};
use crate::suite::Test;

const SOON: Duration = Duration::from_secs(60);
const SIGKILL: i32 = 9;
const SIGSTOP: i32 = 19;
const SIGTSTP: i32 = 20;

/// The tests.
pub fn tests() -> Vec<Test> {
    vec![
        Test::new("signal-catch", catch),
        Test::new("signal-kill", |cluster| {
            killed(cluster, "-KILL", End::Signal(SIGKILL))
        }),
        Test::new("signal-term", |cluster| {
            killed(cluster, "-TERM", End::Signal(15))
        }),
        Test::new("signal-stop", |cluster| stop(cluster, "-STOP", SIGSTOP)),
        Test::new("signal-tstp", |cluster| stop(cluster, "-TSTP", SIGTSTP)),
        Test::new("signal-kill-stopped", kill_stopped),
        Test::new("signal-ignored", ignored),
        Test::new("terminal-show", show),
        Test::new("terminal-raw", raw),
        Test::new("terminal-interrupt", interrupt),
        Test::new("terminal-shell", shell),
    ]
}

/// Sent at home, caught elsewhere, with sender and value.
fn catch(cluster: &Cluster) -> Result<()> {
    let mut proc = Proc::start(cluster, &Start::guest("signals catch"))?;
    proc.ready()?;
    for (to, value) in [(N2, 77), (N3, 78), (N1, 79), (N2, 80)] {
        travel(&proc, "signals", Doing::Computing, &[to])?;
        let sender = cluster.sh(
            N1,
            &format!(
                "/bin/kill -USR1 -q {value} {} & echo $!; wait $!",
                proc.pid()
            ),
        )?;
        let want = format!("CAUGHT 10 code -1 pid {sender} value {value}");
        proc.wait_line(&want, SOON)?;
        let sender = cluster.sh(N1, &format!("kill -HUP {}; echo $$", proc.pid()))?;
        proc.wait_line(&format!("CAUGHT 1 code 0 pid {sender}"), SOON)?;
    }
    cluster.sh(N1, &format!("kill {}", proc.pid()))?;
    proc.must_end(End::Exit(PASSED))?;
    // Each once: five kinds of lines, two at each of four places, and the last.
    let caught = proc
        .lines()
        .iter()
        .filter(|(_, line)| line.starts_with("CAUGHT"))
        .count();
    ensure!(
        caught == 9,
        "9 signals were sent and {caught} caught:\n{}",
        proc.output()
    );
    Ok(())
}

fn killed(cluster: &Cluster, signal: &str, want: End) -> Result<()> {
    let mut proc = Proc::start(cluster, &Start::guest("spin"))?;
    proc.ready()?;
    travel(&proc, "spin", Doing::Computing, &[N2])?;
    cluster.sh(N1, &format!("kill {signal} {}", proc.pid()))?;
    proc.must_end(want)?;
    gone(cluster, proc.pid())
}

/// No node has such a task, or will soon.
fn gone(cluster: &Cluster, pid: u32) -> Result<()> {
    for node in cluster.nodes() {
        eventually(Duration::from_secs(20), || {
            Ok(task(cluster, node, pid)?
                .map(|task| format!("{node} still has a task {pid}: {task:?}")))
        })?;
    }
    Ok(())
}

/// The task on n2, or at home when nothing moves.
fn ticks(cluster: &Cluster, pid: u32) -> Result<u64> {
    let at = if cluster.has_ssi() { N2 } else { N1 };
    Ok(task(cluster, at, pid)?
        .with_context(|| format!("no task {pid} on {at}"))?
        .ticks)
}

fn must_stand_still(cluster: &Cluster, pid: u32) -> Result<()> {
    eventually(Duration::from_secs(20), || {
        let before = ticks(cluster, pid)?;
        std::thread::sleep(Duration::from_millis(700));
        let after = ticks(cluster, pid)?;
        Ok((after > before).then(|| format!("{pid} is stopped and used {} ticks", after - before)))
    })
}

/// Stopped and continued at home, where its parent must see it; it stands still elsewhere.
fn stop(cluster: &Cluster, signal: &str, number: i32) -> Result<()> {
    let mut proc = Proc::start(cluster, &Start::guest("spin").watched())?;
    proc.ready()?;
    travel(&proc, "spin", Doing::Computing, &[N2])?;
    cluster.sh(N1, &format!("kill {signal} {}", proc.pid()))?;
    proc.wait_report(&format!("@launch stopped {number}"), SOON)?;
    must_stand_still(cluster, proc.pid())?;
    cluster.sh(N1, &format!("kill -CONT {}", proc.pid()))?;
    proc.wait_report("@launch continued", SOON)?;
    let at = if cluster.has_ssi() { N2 } else { N1 };
    prove_runs(cluster, proc.pid(), "spin", N1, at, Doing::Computing)?;
    proc.must_pass()
}

fn kill_stopped(cluster: &Cluster) -> Result<()> {
    let mut proc = Proc::start(cluster, &Start::guest("spin").watched())?;
    proc.ready()?;
    travel(&proc, "spin", Doing::Computing, &[N2])?;
    cluster.sh(N1, &format!("kill -STOP {}", proc.pid()))?;
    proc.wait_report("@launch stopped", SOON)?;
    cluster.sh(N1, &format!("kill -KILL {}", proc.pid()))?;
    proc.must_end(End::Signal(SIGKILL))?;
    gone(cluster, proc.pid())
}

fn ignored(cluster: &Cluster) -> Result<()> {
    let mut proc = Proc::start(cluster, &Start::guest("signals ignore"))?;
    proc.ready()?;
    travel(&proc, "signals", Doing::Computing, &[N2])?;
    cluster.sh(
        N1,
        &format!("kill -HUP {0}; kill -INT {0}; kill -TERM {0}", proc.pid()),
    )?;
    let at = if cluster.has_ssi() { N2 } else { N1 };
    prove_runs(cluster, proc.pid(), "signals", N1, at, Doing::Computing)?;
    proc.must_pass()
}

/// What it knows of its terminal stays, and lines typed at home reach it.
fn show(cluster: &Cluster) -> Result<()> {
    let mut proc = Proc::start(cluster, &Start::guest("tty show").io(Io::Terminal))?;
    proc.ready()?;
    for (number, to) in [N2, N3, N1, N2].into_iter().enumerate() {
        travel(&proc, "tty", Doing::Sleeping, &[to])?;
        proc.input(format!("word{number}\n").as_bytes())?;
        proc.wait_line(&format!("HEARD word{number} at "), SOON)?;
    }
    proc.input(b"end\n")?;
    proc.must_end(End::Exit(PASSED))
}

/// Single keys, without echo, waited for by poll().
fn raw(cluster: &Cluster) -> Result<()> {
    let mut proc = Proc::start(cluster, &Start::guest("tty raw").io(Io::Terminal))?;
    proc.ready()?;
    for (key, to) in [(b'a', N2), (3, N3), (b'c', N1), (26, N2)] {
        travel(&proc, "tty", Doing::Sleeping, &[to])?;
        proc.input(&[key])?;
        proc.wait_line(&format!("KEY {key}"), SOON)?;
    }
    proc.input(b"q")?;
    proc.must_end(End::Exit(PASSED))
}

/// The interrupt key at home ends a program that is elsewhere.
fn interrupt(cluster: &Cluster) -> Result<()> {
    let mut proc = Proc::start(cluster, &Start::guest("tty spin").io(Io::Terminal))?;
    proc.ready()?;
    travel(&proc, "tty", Doing::Computing, &[N2])?;
    proc.input(&[3])?;
    proc.must_end(End::Signal(2))?;
    gone(cluster, proc.pid())
}

/// An interactive shell: its job is moved, stopped, continued, put in the background and interrupted.
fn shell(cluster: &Cluster) -> Result<()> {
    let program = cluster.program(crate::cluster::Kind::Dynamic, "tty", &cluster.nodes())?;
    let mut bash = Proc::start(
        cluster,
        &Start::system(&["bash", "--norc", "-i"]).io(Io::Terminal),
    )?;
    // The echo of what is typed holds the word only with a quote in it.
    bash.input(b"PS1=; echo sh''ell\n")?;
    bash.wait_line("shell", SOON)?;
    bash.input(format!("GO=/run/tests/never {program} spin\n").as_bytes())?;
    bash.ready()?;
    let pid: u32 = cluster.sh(N1, "pgrep -x tty")?.parse()?;
    let runs = |at| prove_runs(cluster, pid, "tty", N1, at, Doing::Computing);
    let go_to = |to| -> Result<()> {
        if cluster.has_ssi() {
            crate::ssictl::migrate(cluster, N1, pid, to)?;
            return runs(to);
        }
        runs(N1)
    };
    go_to(N2)?;

    bash.input(&[26])?;
    bash.wait_line("Stopped", SOON)?;
    must_stand_still(cluster, pid)?;
    bash.input(b"bg; echo in''back\n")?;
    bash.wait_line("inback", SOON)?;
    go_to(N3)?;
    bash.input(b"jobs; echo list''ed\n")?;
    bash.wait_line("listed", SOON)?;
    bash.wait_line("Running", Duration::from_secs(5))?;
    bash.input(b"fg\n")?;
    go_to(N2)?;
    bash.input(&[3])?;
    bash.input(b"echo status''=$?\n")?;
    let line = bash.wait_line("status=", SOON)?;
    if !line.contains("status=130") {
        bail!("the shell says {line}\n{}", bash.evidence());
    }
    gone(cluster, pid)?;
    bash.input(b"exit 3\n")?;
    bash.must_end(End::Exit(3))
}
