// SPDX-License-Identifier: MIT OR Apache-2.0

//! Links that wear out fast, with a module built for tests: they get other keys again and again while memory
//! and files go over them, and nobody notices.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::cluster::{Cluster, N1, N2, N3};
use crate::host::eventually;
use crate::lines;
use crate::moves::hop;
use crate::place::{Doing, prove_runs};
use crate::proc::{Proc, Start};
use crate::suite::{Leg, Test};
use crate::tool::metric;

/// Records after which a link is to be renewed here; ordinary modules wait for millions.
const RECORDS: u32 = 500;
/// So many renewals are waited for.
const RENEWALS: u64 = 40;
/// For so long at most.
const WITHIN: Duration = Duration::from_secs(240);
/// Nobody waits longer because of one. A move on a busy host takes most of it.
const PAUSE: Duration = Duration::from_secs(5);

/// The tests.
pub fn tests() -> Vec<Test> {
    vec![
        Test::new("worn-links", worn_links).on(Leg::Broken),
        Test::new("worn-out-links", worn_out_links).on(Leg::Broken),
    ]
}

/// How often links were renewed while they stood, on all nodes.
fn renewals(cluster: &Cluster) -> Result<u64> {
    let nodes = cluster.nodes().into_iter();
    nodes
        .map(|on| metric(cluster, on, "unum_links_renewed_total"))
        .sum()
}

/// What the kernels say of links that broke, but for those that the other side had replaced a moment before, or
/// were used up before that.
fn broken(cluster: &Cluster) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for on in cluster.nodes() {
        let console = cluster.console(on)?;
        let lines = console.lines().filter(|l| l.contains("link to n"));
        let ended = |l: &&str| {
            [-32, -61, -104, -116]
                .iter()
                .any(|e| l.ends_with(&format!(": {e}")))
        };
        found.extend(lines.filter(|l| !ended(l)).map(|l| format!("{on}: {l}")));
    }
    Ok(found)
}

/// A program that checks all of its memory goes around while another writes lines from afar.
fn worn_links(cluster: &Cluster) -> Result<()> {
    cluster.reload(&format!("renew={RECORDS}"))?;
    let broken_before = broken(cluster)?.len();
    let mut writer = Proc::start(cluster, &Start::guest("count 20"))?;
    writer.ready()?;
    hop(&writer, "count", Doing::Sleeping, N3)?;
    let mut memory = Proc::start(cluster, &Start::guest("memory loop 24"))?;
    memory.ready()?;
    let (start, before) = (Instant::now(), renewals(cluster)?);
    let (mut moves, mut renewed) = (0, 0);
    while renewed < RENEWALS {
        ensure!(
            start.elapsed() < WITHIN,
            "links were renewed {renewed} times in {moves} moves"
        );
        for to in [N2, N3, N1] {
            hop(&memory, "memory", Doing::Computing, to)?;
            moves += 1;
        }
        renewed = renewals(cluster)? - before;
    }
    memory.must_pass()?;
    writer.must_pass()?;
    let all = writer.lines();
    lines::check(all.iter().map(|(_, line)| line.as_str()), |_| Ok(()))?;
    let gaps = all.windows(2).map(|two| two[1].0 - two[0].0);
    let pause = gaps.max().unwrap_or_default();
    println!(
        "      links were renewed {renewed} times in {moves} moves and {:.0} s; {} lines, {:.2} s between two at most",
        start.elapsed().as_secs_f64(),
        all.len(),
        pause.as_secs_f64()
    );
    ensure!(pause < PAUSE, "no line for {pause:?}");
    let broke = broken(cluster)?.split_off(broken_before);
    ensure!(broke.is_empty(), "{broke:?}");
    cluster.reload("")
}

/// When nobody renews them, links stop before their keys have been used too often, and go on with others.
fn worn_out_links(cluster: &Cluster) -> Result<()> {
    cluster.reload(&format!("renew={RECORDS}"))?;
    let mut writer = Proc::start(cluster, &Start::guest("count 5"))?;
    writer.ready()?;
    hop(&writer, "count", Doing::Sleeping, N2)?;
    let nodes = [N1, N2];
    cluster.on_all(&nodes, |on| cluster.stop_daemon(on))?;
    let stopped = eventually(Duration::from_secs(60), || {
        let before = writer.lines().len();
        thread::sleep(Duration::from_secs(3));
        let more = writer.lines().len() - before;
        Ok((more > 0).then(|| format!("{more} lines went over a link that was used up")))
    });
    cluster.on_all(&nodes, |on| cluster.start_daemon(on))?;
    stopped?;
    let before = writer.lines().len();
    writer
        .wait_lines(before + 100, Duration::from_secs(60))
        .context("with other links")?;
    cluster.wait_linked(&cluster.nodes())?;
    prove_runs(cluster, writer.pid(), "count", N1, N2, Doing::Sleeping)?;
    writer.must_pass()?;
    let all = writer.lines();
    lines::check(all.iter().map(|(_, line)| line.as_str()), |_| Ok(()))?;
    cluster.reload("")
}
