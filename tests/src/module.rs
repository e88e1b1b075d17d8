// SPDX-License-Identifier: MIT OR Apache-2.0

//! The module comes and goes, and leaves nothing behind.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::cluster::{Cluster, N1, N2, N3, top};
use crate::moves::{home_without_memory, hop};
use crate::place::{Doing, prove_runs};
use crate::proc::{End, Proc, Start};
use crate::suite::Test;

/// The tests.
pub fn tests() -> Vec<Test> {
    vec![
        Test::new("module-parameters", parameters),
        Test::new("module-in-use", in_use),
        Test::new("module-killed-while-filling", killed_while_filling),
        Test::new("module-daemon-again", daemon_again),
        Test::new("module-cycles", cycles),
    ]
}

/// An ordinary build cannot be told to do its work wrong.
fn parameters(cluster: &Cluster) -> Result<()> {
    let module = fs::read(top()?.join("build/ssi.ko"))?;
    let has = |text: &[u8]| module.windows(text.len()).any(|window| window == text);
    ensure!(
        has(b"parm=prefetch:"),
        "build/ssi.ko does not list its parameters, so nothing is known of others"
    );
    ensure!(!has(b"parm=break:"), "build/ssi.ko has a parameter `break`");
    for node in cluster.nodes() {
        let listed = cluster.sh(
            node,
            "modinfo -p /ssi/ssi.ko; ls /sys/module/ssi/parameters 2>/dev/null; true",
        )?;
        ensure!(
            listed.contains("prefetch") && !listed.contains("break"),
            "the module on {node} has:\n{listed}"
        );
    }
    Ok(())
}

/// While a process is away, neither its home nor its host lets go of the module.
fn in_use(cluster: &Cluster) -> Result<()> {
    let mut proc = Proc::start(cluster, &Start::guest("spin"))?;
    proc.ready()?;
    hop(&proc, "spin", Doing::Computing, N2)?;
    for node in [N1, N2] {
        let output = cluster.exec(node, &["rmmod", "ssi"])?;
        ensure!(
            output.status != 0,
            "the module was unloaded on {node} while {} was away",
            proc.pid()
        );
    }
    prove_runs(cluster, proc.pid(), "spin", N1, N2, Doing::Computing)?;
    proc.must_pass()
}

/// A process that has come home is killed there before its memory has come, for which nobody asks any more: neither node
/// keeps the module for it.
fn killed_while_filling(cluster: &Cluster) -> Result<()> {
    let mut proc = home_without_memory(cluster)?;
    let kept = [N1, N2].map(|node| cluster.exec(node, &["rmmod", "ssi"]));
    cluster.sh(N1, &format!("kill -9 {}", proc.pid()))?;
    let ended = proc.must_end(End::Signal(9));
    // Unloads it, for which there is no second try by force.
    let unloaded = cluster.reload_on(&[N1, N2], "");
    for output in kept {
        ensure!(
            output?.status != 0,
            "the module was unloaded before: this test shows nothing"
        );
    }
    ended?;
    unloaded
}

/// A daemon that ends and comes back in time: the processes do not notice.
fn daemon_again(cluster: &Cluster) -> Result<()> {
    let mut proc = Proc::start(cluster, &Start::guest("count 20"))?;
    proc.ready()?;
    hop(&proc, "count", Doing::Sleeping, N2)?;
    for node in [N1, N2] {
        cluster.sh(node, "pkill -9 -x ssid; sleep 1")?;
        cluster.start_daemon(node)?;
        cluster.wait_linked(&cluster.nodes())?;
        let before = proc.lines().len();
        proc.wait_lines(before + 20, Duration::from_secs(30))?;
        prove_runs(cluster, proc.pid(), "count", N1, N2, Doing::Sleeping)?;
    }
    hop(&proc, "count", Doing::Sleeping, N3)?;
    proc.must_pass()?;
    let all = proc.lines();
    crate::lines::check(all.iter().map(|(_, line)| line.as_str()), |_| Ok(())).map(drop)
}

/// Loads and unloads between two measurements, of which there are [`ROUNDS`].
const TURNS: u32 = 13;
const ROUNDS: u32 = 4;

/// Objects of every kind that the kernel keeps, and some sums of memory in KiB.
type Usage = BTreeMap<String, i64>;

fn usage(cluster: &Cluster) -> Result<Usage> {
    let script = "sync; echo 3 > /proc/sys/vm/drop_caches
        for cache in /sys/kernel/slab/*/shrink; do echo 1 > $cache; done 2>/dev/null; sleep 0.5
        for cache in /sys/kernel/slab/*/shrink; do echo 1 > $cache; done 2>/dev/null
        awk 'NR > 2 { print \"slab:\" $1, $2 }' /proc/slabinfo
        awk '/^(VmallocUsed|KernelStack|Percpu|SUnreclaim):/ { print $1 $3, $2 }' /proc/meminfo
        echo vmalloc-areas $(grep -c . /proc/vmallocinfo)
        echo tasks $(ls -d /proc/[0-9]* | wc -l)";
    let text = cluster.sh(N3, script)?;
    text.lines()
        .map(|line| {
            let (name, count) = line
                .rsplit_once(' ')
                .with_context(|| format!("strange line {line:?}"))?;
            Ok((name.to_owned(), count.parse()?))
        })
        .collect()
}

/// What grew from each measurement to the next, by as much as one for every load or more: a leak does, noise does
/// not.
fn growing(measured: &[Usage]) -> Vec<String> {
    let Some(first) = measured.first() else {
        return Vec::new();
    };
    first
        .keys()
        .filter_map(|name| {
            let counts: Vec<i64> = measured
                .iter()
                .map(|usage| usage.get(name).copied().unwrap_or(0))
                .collect();
            let each = i64::from(TURNS) * 9 / 10;
            counts
                .windows(2)
                .all(|pair| pair[1] - pair[0] >= each)
                .then(|| format!("{name}: {counts:?}"))
        })
        .collect()
}

/// 52 loads and unloads, some of them with the daemon linked to its peers.
fn cycles(cluster: &Cluster) -> Result<()> {
    // It has hosted and sent somebody before.
    let mut proc = Proc::start(cluster, &Start::guest("spin"))?;
    proc.ready()?;
    hop(&proc, "spin", Doing::Computing, N3)?;
    hop(&proc, "spin", Doing::Computing, N2)?;
    proc.must_pass()?;

    cluster.stop_daemon(N3)?;
    cluster.unload(N3)?;
    let turns = format!(
        "for i in $(seq {TURNS}); do
            insmod /ssi/ssi.ko || exit 1
            if [ $((i % 7)) = 0 ]; then
                setsid ssid --config /etc/ssid/ssid.toml </dev/null >>/var/log/ssid.log 2>&1 &
                for k in $(seq 60); do
                    [ \"$(ssictl node ls -o json 2>/dev/null | grep -o '\"up\"' | wc -l)\" = 2 ] && break; sleep 0.25
                done
                [ $k -lt 60 ] || {{ echo no peers; exit 1; }}
                pkill -x ssid
                while pgrep -x ssid >/dev/null; do sleep 0.1; done
            fi
            for k in $(seq 100); do error=$(rmmod ssi 2>&1) && break; sleep 0.1; done
            [ ! -e /sys/module/ssi ] || {{ echo \"turn $i: $error\"; exit 1; }}
        done"
    );
    let mut measured = Vec::new();
    for round in 0..ROUNDS {
        let output =
            cluster.exec_with(N3, &["bash", "-c", &turns], b"", Duration::from_secs(300))?;
        ensure!(
            output.status == 0,
            "round {round} of {TURNS} loads: {}",
            output.evidence()
        );
        measured.push(usage(cluster)?);
    }
    let leaks = growing(&measured);
    let left = cluster.sh(
        N3,
        "ls /dev/ssi 2>/dev/null; grep ssi /proc/filesystems /proc/misc /proc/devices
        grep '\\[ssi\\]' /proc/vmallocinfo /proc/kallsyms | head -n 5
        cat /sys/kernel/tracing/enabled_functions; ps -e -o comm= | grep '^ssi'; true",
    )?;
    cluster.kill(N3)?;
    cluster.start(N3)?;
    cluster.wait_linked(&cluster.nodes())?;
    if !leaks.is_empty() {
        bail!(
            "{TURNS} loads after {TURNS} loads, these grew:\n{}",
            leaks.join("\n")
        );
    }
    ensure!(
        left.is_empty(),
        "after the last unload there is left:\n{left}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage_of(counts: &[(&str, i64)]) -> Usage {
        counts
            .iter()
            .map(|(name, count)| ((*name).to_owned(), *count))
            .collect()
    }

    #[test]
    fn a_leak_is_told_from_noise() {
        let measured = [
            usage_of(&[("leak", 100), ("noise", 500)]),
            usage_of(&[("leak", 113), ("noise", 900)]),
            usage_of(&[("leak", 126), ("noise", 880)]),
        ];
        assert_eq!(growing(&measured), ["leak: [100, 113, 126]"]);
    }
}
