// SPDX-License-Identifier: MIT OR Apache-2.0

//! Programs that move: there, back, and on to a third node. The simplest first.

use anyhow::{Context, Result, ensure};

use crate::cluster::{Cluster, N1, N2, N3, Node};
use crate::place::{Doing, prove_runs, prove_runs_among};
use crate::proc::{End, Io, PASSED, Proc, Start};
use crate::ssictl;
use crate::suite::Test;

/// Moves a program and proves that it moved. Asked on n1, as a user would at the program's home.
pub fn hop(proc: &Proc<'_>, comm: &str, doing: Doing, to: Node) -> Result<()> {
    let cluster = proc.cluster();
    ssictl::migrate(cluster, proc.home(), proc.pid(), to)?;
    prove_runs(cluster, proc.pid(), comm, proc.home(), to, doing)
        .with_context(|| format!("after the move to {to}\n{}", proc.evidence()))
}

/// A program of n1 that has come home from n2, where most of its memory still is. n2 sends only what it is asked for until
/// its module is loaded again.
pub fn home_without_memory(cluster: &Cluster) -> Result<Proc<'_>> {
    cluster.reload_on(&[N2], "push=0 prefetch=1")?;
    let proc = Proc::start(cluster, &Start::guest("memory hold 16"))?;
    proc.ready()?;
    hop(&proc, "memory", Doing::Computing, N2)?;
    // A move away from a host is over when all of the memory has come.
    let pid = proc.pid().to_string();
    cluster.ssictl(N1, &["migrate", &pid, "--to", "n1", "--timeout", "10"])?;
    Ok(proc)
}

/// Goes along a route. `ROUTE=2,1` in the environment replaces it; without the module there is none.
pub fn travel(proc: &Proc<'_>, comm: &str, doing: Doing, route: &[Node]) -> Result<()> {
    let chosen: Vec<Node> = match std::env::var("ROUTE") {
        Ok(words) => words
            .split(',')
            .map(|word| {
                word.parse()
                    .map(Node)
                    .with_context(|| format!("ROUTE: {word} is no node"))
            })
            .collect::<Result<_>>()?,
        Err(_) => route.to_vec(),
    };
    if !proc.cluster().has_ssi() {
        return prove_runs(
            proc.cluster(),
            proc.pid(),
            comm,
            proc.home(),
            proc.home(),
            doing,
        );
    }
    // A lazy node that is left before it has all of a process keeps the rest of it.
    let route = if proc.cluster().is_lazy() {
        &chosen[..1]
    } else {
        &chosen[..]
    };
    route.iter().try_for_each(|&to| hop(proc, comm, doing, to))
}

/// Starts a program of tests/guest, takes it along a route, tells it to check, and it must have passed.
pub fn trip(cluster: &Cluster, start: &Start<'_>, doing: Doing, route: &[Node]) -> Result<()> {
    let mut proc = Proc::start(cluster, start)?;
    if start.io == Io::Null {
        // It cannot say when it is ready; it is when it computes.
        prove_runs(
            cluster,
            proc.pid(),
            comm(start),
            start.home,
            start.home,
            doing,
        )?;
    } else {
        proc.ready()?;
    }
    travel(&proc, comm(start), doing, route)?;
    proc.must_pass()
}

/// The name a program of tests/guest goes by.
pub fn comm<'a>(start: &Start<'a>) -> &'a str {
    start.program.map_or_else(
        || start.words.first().copied().unwrap_or_default(),
        |(_, name)| name,
    )
}

fn spin<'a>() -> Start<'a> {
    Start::guest("spin").fixed().io(Io::Null)
}

/// Those that make sense without moving, too.
pub fn simple() -> Vec<Test> {
    vec![
        Test::new("proof", proof),
        Test::new("static", |cluster| {
            trip(cluster, &spin(), Doing::Computing, &[N2, N1])
        }),
        Test::new("static-pipe", |cluster| {
            trip(
                cluster,
                &spin().io(Io::Pipe),
                Doing::Computing,
                &[N2, N3, N1, N2],
            )
        }),
        Test::new("dynamic", |cluster| {
            trip(
                cluster,
                &Start::guest("spin"),
                Doing::Computing,
                &[N2, N3, N1, N2],
            )
        }),
    ]
}

/// The others.
pub fn tests() -> Vec<Test> {
    vec![
        Test::new("static-move", |cluster| {
            trip(cluster, &spin(), Doing::Computing, &[N2])
        }),
        Test::new("static-third", |cluster| {
            trip(cluster, &spin(), Doing::Computing, &[N2, N3, N1, N3])
        }),
        Test::new("static-other-home", |cluster| {
            trip(cluster, &spin().home(N3), Doing::Computing, &[N1, N2, N3])
        }),
        Test::new("dynamic-move", |cluster| {
            trip(
                cluster,
                &Start::guest("spin").io(Io::Null),
                Doing::Computing,
                &[N2],
            )
        }),
        Test::new("frozen-home", frozen_home),
    ]
}

/// The proof of where a process runs fails when it should.
fn proof(cluster: &Cluster) -> Result<()> {
    let mut spinning = Proc::start(cluster, &spin())?;
    let mut sleeping = Proc::start(cluster, &Start::system(&["sleep", "8"]))?;
    let prove = |proc: &Proc<'_>, comm, home, at, doing| {
        prove_runs(cluster, proc.pid(), comm, home, at, doing)
    };
    prove(&spinning, "spin", N1, N1, Doing::Computing)?;
    prove(&sleeping, "sleep", N1, N1, Doing::Sleeping)?;
    ensure!(
        prove(&spinning, "other", N1, N1, Doing::Computing).is_err(),
        "another name is taken"
    );
    ensure!(
        prove(&sleeping, "sleep", N1, N1, Doing::Computing).is_err(),
        "a sleeper is taken for computing"
    );
    if cluster.has_ssi() {
        ensure!(
            prove(&spinning, "spin", N1, N2, Doing::Computing).is_err(),
            "n2 is taken for where it runs"
        );
        ensure!(
            prove(&spinning, "spin", N2, N2, Doing::Computing).is_err(),
            "n2 is taken for its home"
        );
    }
    let end = sleeping.wait_end(std::time::Duration::from_secs(60))?;
    ensure!(end == End::Exit(0), "{end:?}");
    ensure!(
        prove(&sleeping, "sleep", N1, N1, Doing::Sleeping).is_err(),
        "a dead process is taken for a living one"
    );
    spinning.must_pass()
}

/// A program that needs nothing at home goes on while its home does not answer, and ends there afterwards.
fn frozen_home(cluster: &Cluster) -> Result<()> {
    let mut proc = Proc::start(cluster, &spin())?;
    hop(&proc, "spin", Doing::Computing, N2)?;
    cluster.freeze(N1)?;
    let ran = prove_runs_among(
        cluster,
        &[N2, N3],
        proc.pid(),
        "spin",
        N1,
        N2,
        Doing::Computing,
    );
    cluster.thaw(N1)?;
    ran.context("with its home frozen")?;
    prove_runs(cluster, proc.pid(), "spin", N1, N2, Doing::Computing)
        .context("with its home thawed")?;
    proc.tell()?;
    let end = proc.wait_end(std::time::Duration::from_secs(60))?;
    ensure!(
        end == End::Exit(PASSED),
        "its parent saw {end:?}\n{}",
        proc.evidence()
    );
    Ok(())
}
