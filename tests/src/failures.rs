// SPDX-License-Identifier: MIT OR Apache-2.0

//! What fails: targets, homes, hosts and links, before and after the commit. Exactly one copy runs, nothing waits
//! for ever, and what ends says honestly how.
//!
//! These tests leave every node running and linked.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::cluster::{Cluster, N1, N2, N3, Node};
use crate::host::{Output, eventually};
use crate::lines;
use crate::moves::{home_without_memory, hop, travel};
use crate::place::{Doing, prove_runs, prove_runs_among, task};
use crate::proc::{End, Io, PASSED, Proc, Start};
use crate::ssictl::{migrate, try_migrate};
use crate::suite::Test;
use crate::tool::spin;

/// A node is declared dead when it did not show for 10 s that it lives; a slow machine may take a while longer to say so.
const DEAD_WITHIN: Duration = Duration::from_secs(25);
/// It has most of that time.
const NOT_DEAD_BEFORE: Duration = Duration::from_secs(5);
/// How long wires are bad.
const BAD_FOR: Duration = Duration::from_secs(120);
const KILLED: End = End::Signal(9);

/// The tests.
pub fn tests() -> Vec<Test> {
    let mut tests = vec![
        Test::new("fail-target-frozen", target_frozen),
        Test::new("fail-target-cut-off", target_cut_off),
        Test::new("fail-target-off", target_off),
        Test::new("fail-target-full", target_full),
        Test::new("fail-short-cut", short_cut),
        Test::new("fail-host-off", host_off),
        Test::new("fail-host-frozen", host_frozen),
        Test::new("fail-host-cut-off", host_cut_off),
        Test::new("fail-home-off", home_off),
        Test::new("fail-home-frozen", home_frozen),
        Test::new("fail-stranger-off", stranger_off),
        Test::new("fail-former-host-off", former_host_off),
        Test::new("fail-bad-wires", bad_wires),
        Test::new("fail-source-off", source_off),
        Test::new("fail-killed", killed),
        Test::new("fail-killed-moving-on", killed_moving_on),
        Test::new("fail-home-off-leaving", home_off_leaving),
    ];
    for (phase, ms) in [
        ("early", 60),
        ("middle", 250),
        ("late", 700),
        ("after", 1800),
    ] {
        tests.push(Test::new(format!("fail-{phase}-cut"), move |cluster| {
            cut_in_flight(cluster, ms)
        }));
        tests.push(Test::new(format!("fail-{phase}-freeze"), move |cluster| {
            freeze_in_flight(cluster, ms)
        }));
        tests.push(Test::new(format!("fail-{phase}-off"), move |cluster| {
            off_in_flight(cluster, ms)
        }));
    }
    tests
}

/// Boots a node again and waits until all see each other.
fn bring_back(cluster: &Cluster, node: Node) -> Result<()> {
    cluster.start(node)?;
    cluster.wait_linked(&cluster.nodes())
}

fn must_have_failed(output: &Output) -> Result<()> {
    ensure!(
        output.status != 0,
        "it says it moved to a node that does not answer: {}",
        output.evidence()
    );
    ensure!(
        !output.text().trim().is_empty() || !output.errors().trim().is_empty(),
        "it failed without a word, status {}",
        output.status
    );
    Ok(())
}

fn target_frozen(cluster: &Cluster) -> Result<()> {
    let mut proc = spin(cluster)?;
    cluster.freeze(N2)?;
    let answer = try_migrate(cluster, N1, proc.pid(), N2);
    let runs = prove_runs_among(
        cluster,
        &[N1, N3],
        proc.pid(),
        "spin",
        N1,
        N1,
        Doing::Computing,
    );
    cluster.thaw(N2)?;
    must_have_failed(&answer?)?;
    runs.context("while the target is frozen")?;
    cluster.wait_linked(&cluster.nodes())?;
    prove_runs(cluster, proc.pid(), "spin", N1, N1, Doing::Computing)
        .context("after it was thawed")?;
    hop(&proc, "spin", Doing::Computing, N2).context("asked again")?;
    proc.must_pass()
}

fn target_cut_off(cluster: &Cluster) -> Result<()> {
    let mut proc = spin(cluster)?;
    cluster.cut(N1, N2)?;
    let answer = try_migrate(cluster, N1, proc.pid(), N2);
    let runs = prove_runs(cluster, proc.pid(), "spin", N1, N1, Doing::Computing);
    cluster.heal(N1, N2)?;
    must_have_failed(&answer?)?;
    runs.context("while the target is cut off")?;
    cluster.wait_linked(&cluster.nodes())?;
    hop(&proc, "spin", Doing::Computing, N2).context("asked again")?;
    proc.must_pass()
}

fn target_off(cluster: &Cluster) -> Result<()> {
    let mut proc = spin(cluster)?;
    cluster.kill(N2)?;
    let answer = try_migrate(cluster, N1, proc.pid(), N2);
    let runs = prove_runs_among(
        cluster,
        &[N1, N3],
        proc.pid(),
        "spin",
        N1,
        N1,
        Doing::Computing,
    );
    bring_back(cluster, N2)?;
    must_have_failed(&answer?)?;
    runs.context("while the target is off")?;
    proc.must_pass()
}

/// No memory at the target: the process moves or stays, and if the target's kernel has to kill it there, its parent
/// is told so. Other programs of the target are none of its business.
fn target_full(cluster: &Cluster) -> Result<()> {
    let mut proc = Proc::start(cluster, &Start::guest("memory hold 64"))?;
    proc.ready()?;
    // Unreclaimable: a tmpfs of its own, which the kernel may fill to the last page, and no swap.
    let fill = "mkdir -p /full && mount -t tmpfs -o size=100% full /full
        free=$(awk '/MemAvailable/ { print int($2 / 1024) - 24 }' /proc/meminfo)
        dd if=/dev/zero of=/full/all bs=1M count=$free status=none";
    cluster.sh(N2, fill)?;
    let answer = try_migrate(cluster, N1, proc.pid(), N2);
    let end = if answer.as_ref().is_ok_and(|answer| answer.status == 0) {
        proc.tell()
            .and_then(|()| proc.wait_end(Duration::from_secs(120)))
    } else {
        prove_runs(cluster, proc.pid(), "memory", N1, N1, Doing::Computing)
            .and_then(|()| proc.tell())
            .and_then(|()| proc.wait_end(Duration::from_secs(60)))
            .and_then(|end| match end {
                End::Exit(PASSED) => Ok(end),
                _ => bail!("refused, and then {end:?}"),
            })
    };
    cluster.sh(N2, "umount /full && rmdir /full")?;
    let end = end.with_context(|| {
        answer.map_or_else(|error| format!("{error:#}"), |output| output.evidence())
    })?;
    ensure!(
        matches!(end, End::Exit(PASSED) | KILLED),
        "{end:?}\n{}",
        proc.evidence()
    );
    cluster.wait_linked(&cluster.nodes())
}

/// A link that is down for less than a peer's life: nothing is lost, in either direction.
fn short_cut(cluster: &Cluster) -> Result<()> {
    let mut proc = Proc::start(cluster, &Start::guest("count 10"))?;
    proc.ready()?;
    travel(&proc, "count", Doing::Sleeping, &[N2])?;
    for _ in 0..3 {
        let before = proc.lines().len();
        cluster.cut(N1, N2)?;
        thread::sleep(Duration::from_secs(4));
        cluster.heal(N1, N2)?;
        proc.wait_lines(before + 50, Duration::from_secs(60))?;
    }
    cluster.wait_linked(&cluster.nodes())?;
    proc.must_pass()?;
    let all = proc.lines();
    lines::check(all.iter().map(|(_, line)| line.as_str()), |_| Ok(())).map(drop)
}

/// The parent is told of the end, not sooner and not much later than the peer is dead.
fn must_end_killed(proc: &mut Proc<'_>, since: Instant) -> Result<()> {
    let end = proc.wait_end(DEAD_WITHIN)?;
    let took = since.elapsed();
    ensure!(
        end == KILLED,
        "its parent saw {end:?} instead of a kill\n{}",
        proc.evidence()
    );
    ensure!(
        took >= NOT_DEAD_BEFORE,
        "its host was given up after {:.1} s already",
        took.as_secs_f64()
    );
    Ok(())
}

fn must_be_gone(cluster: &Cluster, pid: u32, node: Node, limit: Duration) -> Result<()> {
    eventually(limit, || {
        Ok(
            task(cluster, node, pid)?
                .map(|task| format!("{node} still has a task {pid}: {task:?}")),
        )
    })
}

fn host_off(cluster: &Cluster) -> Result<()> {
    let mut proc = spin(cluster)?;
    hop(&proc, "spin", Doing::Computing, N2)?;
    let since = Instant::now();
    cluster.kill(N2)?;
    let ended = must_end_killed(&mut proc, since);
    bring_back(cluster, N2)?;
    ended?;
    must_be_gone(cluster, proc.pid(), N1, Duration::from_secs(5))?;
    must_be_gone(cluster, proc.pid(), N2, Duration::from_secs(1))
}

/// A host that was silent for too long has lost its guests; it is told so when it speaks again.
fn host_frozen(cluster: &Cluster) -> Result<()> {
    let mut proc = spin(cluster)?;
    hop(&proc, "spin", Doing::Computing, N2)?;
    let since = Instant::now();
    cluster.freeze(N2)?;
    let ended = must_end_killed(&mut proc, since);
    cluster.thaw(N2)?;
    ended?;
    must_be_gone(cluster, proc.pid(), N2, Duration::from_secs(15))?;
    cluster.wait_linked(&cluster.nodes())
}

/// Both sides of a cut come to the same end.
fn host_cut_off(cluster: &Cluster) -> Result<()> {
    let mut proc = spin(cluster)?;
    hop(&proc, "spin", Doing::Computing, N2)?;
    let since = Instant::now();
    cluster.cut(N1, N2)?;
    let ended = must_end_killed(&mut proc, since);
    let gone = must_be_gone(cluster, proc.pid(), N2, DEAD_WITHIN);
    cluster.heal(N1, N2)?;
    ended?;
    gone.context("a guest outlives its home")?;
    cluster.wait_linked(&cluster.nodes())
}

fn home_off(cluster: &Cluster) -> Result<()> {
    let proc = Proc::start(cluster, &Start::guest("spin").home(N3).io(Io::Null))?;
    hop(&proc, "spin", Doing::Computing, N2)?;
    cluster.kill(N3)?;
    thread::sleep(Duration::from_secs(4));
    let early = prove_runs_among(
        cluster,
        &[N1, N2],
        proc.pid(),
        "spin",
        N3,
        N2,
        Doing::Computing,
    );
    let gone = must_be_gone(cluster, proc.pid(), N2, DEAD_WITHIN);
    bring_back(cluster, N3)?;
    early.context("its home is not dead yet")?;
    gone.context("a guest outlives its home")
}

fn home_frozen(cluster: &Cluster) -> Result<()> {
    let mut proc = spin(cluster)?;
    hop(&proc, "spin", Doing::Computing, N2)?;
    cluster.freeze(N1)?;
    let gone = must_be_gone(cluster, proc.pid(), N2, DEAD_WITHIN);
    cluster.thaw(N1)?;
    gone.context("a guest outlives its home")?;
    let end = proc
        .wait_end(DEAD_WITHIN)
        .context("at home, after it was thawed")?;
    ensure!(end == KILLED, "its parent saw {end:?}\n{}", proc.evidence());
    cluster.wait_linked(&cluster.nodes())
}

fn stranger_off(cluster: &Cluster) -> Result<()> {
    let mut proc = spin(cluster)?;
    hop(&proc, "spin", Doing::Computing, N2)?;
    cluster.kill(N3)?;
    thread::sleep(Duration::from_secs(14));
    let runs = prove_runs_among(
        cluster,
        &[N1, N2],
        proc.pid(),
        "spin",
        N1,
        N2,
        Doing::Computing,
    );
    bring_back(cluster, N3)?;
    runs?;
    hop(&proc, "spin", Doing::Computing, N3).context("on to the node that came back")?;
    proc.must_pass()
}

/// Once its memory is complete, a process depends on its home and its host, and on nobody it passed.
fn former_host_off(cluster: &Cluster) -> Result<()> {
    let mut proc = Proc::start(cluster, &Start::guest("memory hold 16"))?;
    proc.ready()?;
    // Each hop ends with the image gone from where it was.
    travel(&proc, "memory", Doing::Computing, &[N2, N3])?;
    cluster.kill(N2)?;
    thread::sleep(Duration::from_secs(14));
    let told = proc.tell_on(&[N1, N3]);
    let end = proc.wait_end(Duration::from_secs(60));
    bring_back(cluster, N2)?;
    told?;
    let end = end?;
    ensure!(end == End::Exit(PASSED), "{end:?}\n{}", proc.evidence());
    Ok(())
}

/// Wires that are slow and lose a tenth of what they carry are no death of anybody, and processes move over them.
fn bad_wires(cluster: &Cluster) -> Result<()> {
    let on_all = |script: &str| {
        cluster
            .nodes()
            .into_iter()
            .try_for_each(|node| cluster.sh(node, script).map(drop))
    };
    let deaths = || -> Result<u32> {
        let count = "grep -c 'declared dead' /var/log/ssid.log; true";
        let each = cluster.nodes().into_iter();
        each.map(|node| Ok(cluster.sh(node, count)?.trim().parse::<u32>()?))
            .sum()
    };
    let mut proc = spin(cluster)?;
    let before = deaths()?;
    on_all("modprobe sch_netem && tc qdisc add dev eth0 root netem delay 100ms 50ms loss 10%")?;
    let run = || -> Result<()> {
        for to in [N2, N3, N1] {
            hop(&proc, "spin", Doing::Computing, to)?;
            thread::sleep(BAD_FOR / 3);
            prove_runs(cluster, proc.pid(), "spin", N1, to, Doing::Computing)?;
        }
        Ok(())
    };
    let ran = run();
    on_all("tc qdisc del dev eth0 root")?;
    ran?;
    let more = deaths()? - before;
    ensure!(more == 0, "{more} times somebody was declared dead");
    cluster.wait_linked(&cluster.nodes())?;
    proc.must_pass()
}

/// A process that has come home ends with the node on which pages of it still are: what it would read there nobody knows.
fn source_off(cluster: &Cluster) -> Result<()> {
    let mut proc = home_without_memory(cluster)?;
    let ticks =
        || Ok::<_, anyhow::Error>(task(cluster, N1, proc.pid())?.context("it is gone")?.ticks);
    let before = ticks()?;
    let home = eventually(Duration::from_secs(30), || {
        Ok((ticks()? == before).then(|| "it does not compute at home".to_owned()))
    });
    let since = Instant::now();
    cluster.kill(N2)?;
    let ended = must_end_killed(&mut proc, since);
    bring_back(cluster, N2)?;
    home?;
    ended?;
    must_be_gone(cluster, proc.pid(), N1, Duration::from_secs(5))
}

/// Killed at any moment of a move: its parent sees that, and no copy is left anywhere.
fn killed(cluster: &Cluster) -> Result<()> {
    for tenths in 0..10 {
        let mut proc = spin(cluster)?;
        let pid = proc.pid();
        // Both on the node itself: what starts a command there takes longer than a move.
        let script = format!(
            "ssictl migrate {pid} --to n2 >/dev/null 2>&1 & sleep 0.{tenths}; kill -9 {pid}; wait"
        );
        cluster.sh(N1, &script)?;
        let when = || format!("killed {tenths}00 ms after it was asked to move");
        proc.must_end(KILLED).with_context(when)?;
        for node in [N1, N2] {
            must_be_gone(cluster, pid, node, Duration::from_secs(10)).with_context(when)?;
        }
    }
    Ok(())
}

/// Killed on its host at any moment of a move to another: its home hears of it.
fn killed_moving_on(cluster: &Cluster) -> Result<()> {
    for tenths in 0..10 {
        let mut proc = spin(cluster)?;
        let pid = proc.pid();
        hop(&proc, "spin", Doing::Computing, N2)?;
        let script = format!(
            "ssictl migrate {pid} --to n3 >/dev/null 2>&1 & sleep 0.{tenths}; kill -9 {pid}; wait; true"
        );
        cluster.sh(N2, &script)?;
        if task(cluster, N3, pid)?.is_some() {
            // It was there already.
            cluster.sh(N3, &format!("kill -9 {pid}; true"))?;
        }
        let when = || format!("killed {tenths}00 ms after it was asked to move on");
        proc.must_end(KILLED).with_context(when)?;
        for node in [N1, N2, N3] {
            must_be_gone(cluster, pid, node, Duration::from_secs(10)).with_context(when)?;
        }
    }
    Ok(())
}

/// Its home dies while it goes from one host to another: both know, and it ends on whichever has it.
fn home_off_leaving(cluster: &Cluster) -> Result<()> {
    let start = Start::guest("memory loop 24").home(N3);
    let proc = Proc::start(cluster, &start)?;
    proc.ready()?;
    hop(&proc, "memory", Doing::Computing, N2)?;
    let pid = proc.pid();
    let (asked, killed) = thread::scope(|scope| {
        let asked = scope.spawn(move || try_migrate(cluster, N2, pid, N1));
        thread::sleep(Duration::from_millis(100));
        let killed = cluster.kill(N3);
        (asked.join(), killed)
    });
    killed?;
    let gone = [N1, N2].map(|node| must_be_gone(cluster, pid, node, DEAD_WITHIN));
    bring_back(cluster, N3)?;
    let answer = asked.unwrap_or_else(|_| bail!("a thread of the runner panicked"));
    for one in gone {
        one.context("a guest outlives its home")
            .with_context(|| describe(&answer))?;
    }
    Ok(())
}

/// A program with memory that takes a while to move, and the migration under way for `ms`.
fn in_flight<'c>(
    cluster: &'c Cluster,
    ms: u64,
    disturb: impl FnOnce() -> Result<()>,
) -> Result<(Proc<'c>, Result<Output>)> {
    let proc = Proc::start(cluster, &Start::guest("memory loop 24"))?;
    proc.ready()?;
    let pid = proc.pid();
    let (answer, disturbed) = thread::scope(|scope| {
        let asked = scope.spawn(move || try_migrate(cluster, N1, pid, N2));
        thread::sleep(Duration::from_millis(ms));
        let disturbed = disturb();
        (asked.join(), disturbed)
    });
    disturbed?;
    let answer = answer.unwrap_or_else(|_| bail!("a thread of the runner panicked"));
    Ok((proc, answer))
}

/// Which of two nodes runs it; exactly one must, in the end.
fn the_one_place(cluster: &Cluster, proc: &Proc<'_>) -> Result<Node> {
    let mut place = None;
    eventually(Duration::from_secs(45), || {
        let ticks = || -> Result<Vec<Option<u64>>> {
            [N1, N2]
                .iter()
                .map(|&node| Ok(task(cluster, node, proc.pid())?.map(|task| task.ticks)))
                .collect()
        };
        let first = ticks()?;
        thread::sleep(Duration::from_millis(1500));
        let last = ticks()?;
        let grew = |i: usize| matches!((first[i], last[i]), (Some(a), Some(b)) if b > a + 20);
        place = match (grew(0), grew(1)) {
            (true, true) => bail!("two copies run: {first:?}, then {last:?}"),
            (true, false) => Some(N1),
            (false, true) => Some(N2),
            (false, false) => None,
        };
        Ok(place
            .is_none()
            .then(|| format!("no copy runs: {first:?}, then {last:?}")))
    })
    .with_context(|| proc.evidence())?;
    place.context("no place")
}

/// The link is down for 4 s while the process moves. In the end one copy runs, and nothing is lost.
fn cut_in_flight(cluster: &Cluster, ms: u64) -> Result<()> {
    let (mut proc, answer) = in_flight(cluster, ms, || {
        cluster.cut(N1, N2)?;
        thread::sleep(Duration::from_secs(4));
        cluster.heal(N1, N2)
    })?;
    let place = the_one_place(cluster, &proc).with_context(|| describe(&answer))?;
    agree(&answer, place)?;
    prove_runs(cluster, proc.pid(), "memory", N1, place, Doing::Computing)?;
    cluster.wait_linked(&cluster.nodes())?;
    proc.must_pass()
}

/// The target stands still for 4 s while the process moves.
fn freeze_in_flight(cluster: &Cluster, ms: u64) -> Result<()> {
    let (mut proc, answer) = in_flight(cluster, ms, || {
        cluster.freeze(N2)?;
        thread::sleep(Duration::from_secs(4));
        cluster.thaw(N2)
    })?;
    let place = the_one_place(cluster, &proc).with_context(|| describe(&answer))?;
    agree(&answer, place)?;
    prove_runs(cluster, proc.pid(), "memory", N1, place, Doing::Computing)?;
    cluster.wait_linked(&cluster.nodes())?;
    proc.must_pass()
}

/// The target loses power while the process moves: it goes on at the source, or it had moved and is honestly dead.
fn off_in_flight(cluster: &Cluster, ms: u64) -> Result<()> {
    let (mut proc, answer) = in_flight(cluster, ms, || cluster.kill(N2))?;
    let end = proc.wait_end(DEAD_WITHIN);
    let outcome = match end {
        Ok(KILLED) => Ok(()),
        Ok(end) => Err(anyhow::anyhow!(
            "its parent saw {end:?}\n{}",
            proc.evidence()
        )),
        // It has not ended: then it must run.
        Err(_) => prove_runs_among(
            cluster,
            &[N1, N3],
            proc.pid(),
            "memory",
            N1,
            N1,
            Doing::Computing,
        )
        .and_then(|()| proc.tell_on(&[N1, N3]))
        .and_then(|()| proc.must_end(End::Exit(PASSED))),
    };
    bring_back(cluster, N2)?;
    outcome.with_context(|| describe(&answer))
}

fn describe(answer: &Result<Output>) -> String {
    match answer {
        Ok(output) => format!("ssictl migrate said: {}", output.evidence()),
        Err(error) => format!("ssictl migrate: {error:#}"),
    }
}

/// An answer that says it moved must not be contradicted by where it runs, nor one that says it did not.
fn agree(answer: &Result<Output>, place: Node) -> Result<()> {
    let Ok(output) = answer else {
        bail!("{}", describe(answer))
    };
    match (output.status == 0, place) {
        (true, N2) | (false, N1) => Ok(()),
        // Its asker may have lost sight of it; then it must not say that it knows.
        (false, _)
            if output.text().contains("target-lost") || output.errors().contains("target-lost") =>
        {
            Ok(())
        }
        _ => bail!("it runs on {place}, and {}", describe(answer)),
    }
}

/// After everything, a plain move still works. Used by tests that disturb a cluster on purpose.
pub fn still_works(cluster: &Cluster) -> Result<()> {
    cluster.wait_linked(&cluster.nodes())?;
    let mut proc = spin(cluster)?;
    migrate(cluster, N1, proc.pid(), N2)?;
    prove_runs(cluster, proc.pid(), "spin", N1, N2, Doing::Computing)?;
    proc.must_pass()
}
