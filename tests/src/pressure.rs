// SPDX-License-Identifier: MIT OR Apache-2.0

//! Memory that is short while part of a guest's is still missing: ageing, swap, reclaim and the end of it all.
//! Nothing is lost and no kernel warns.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cluster::{Cluster, N1, N2, Node};
use crate::moves::hop;
use crate::place::Doing;
use crate::proc::{End, PASSED, Proc, Start};
use crate::suite::{Leg, Test};

const LONG: Duration = Duration::from_secs(240);

/// The tests.
pub fn tests() -> Vec<Test> {
    [
        Test::new("pressure-host", |cluster| {
            pressed(cluster, N2, "memory hold 16")
        }),
        Test::new("pressure-home", |cluster| {
            pressed(cluster, N1, "memory hold 16")
        }),
        Test::new("pressure-loop", |cluster| {
            pressed(cluster, N2, "memory loop 16")
        }),
        Test::new("pressure-discard", |cluster| {
            pressed(cluster, N2, "memory discard")
        }),
        Test::new("pressure-group", group),
        Test::new("pressure-end", end_of_memory),
    ]
    .into_iter()
    .map(|test| test.on(Leg::Small))
    .collect()
}

/// A swap area in compressed memory.
fn swap_on(cluster: &Cluster, node: Node) -> Result<()> {
    cluster
        .sh(
            node,
            "[ $(wc -l < /proc/swaps) -gt 1 ] && exit 0
            modprobe zram && echo 256M > /sys/block/zram0/disksize && mkswap /dev/zram0 >/dev/null && swapon /dev/zram0",
        )
        .context("no swap area")
        .map(drop)
}

/// Ages and reclaims all there is, and makes work of it: a program that wants most of the memory.
const PRESS: &str = r#"
    mountpoint -q /sys/kernel/debug || mount -t debugfs debugfs /sys/kernel/debug
    age() {
        # memcg ID PATH / node NODE / generations, the youngest last
        awk '/^memcg/ { memcg = $2 } /^ *node/ { node = $2 }
             NF >= 3 && $1 ~ /^[0-9]+$/ { last[memcg " " node] = $1 }
             END { for (k in last) print "+ " k " " last[k] " 1 1" }' /sys/kernel/debug/lru_gen |
            while read -r line; do echo "$line" > /sys/kernel/debug/lru_gen; done 2>/dev/null
    }
    [ "$(cat /sys/kernel/mm/lru_gen/enabled)" != 0x0000 ] || exit 1
    for turn in 1 2; do
        age
        echo 60M > /sys/fs/cgroup/memory.reclaim
        python3 -c 'import os
size = int(os.popen("free -m").read().split("\n")[1].split()[-1]) + 40
block = bytearray(size << 20)
pages = size << 8
block[::4096] = (bytes(range(1, 256)) * (pages // 255 + 1))[:pages]
' &
        wait
    done 2>/dev/null
    awk '/^pswpout/ { print $2 }' /proc/vmstat
"#;

/// A guest whose memory comes page by page, while `node` has too little of its own.
fn pressed(cluster: &Cluster, node: Node, line: &str) -> Result<()> {
    swap_on(cluster, node)?;
    let mut proc = Proc::start(cluster, &Start::guest(line))?;
    proc.ready()?;
    hop(&proc, "memory", Doing::Computing, N2)?;
    let press = || -> Result<u64> {
        let output = cluster.exec_with(node, &["bash", "-c", PRESS], b"", LONG)?;
        ensure!(
            output.status == 0,
            "memory could not be made short on {node}: {}",
            output.evidence()
        );
        Ok(output.text().trim().parse()?)
    };
    // Once with nearly everything missing, then while it comes.
    let before = press()?;
    let after = thread::scope(|scope| {
        let pressing = scope.spawn(press);
        let told = proc.tell();
        let end = proc.wait_end(LONG);
        let after = pressing
            .join()
            .map_err(|_| anyhow::anyhow!("a thread of the runner panicked"))??;
        told?;
        let end = end?;
        ensure!(
            end == End::Exit(PASSED),
            "its parent saw {end:?}\n{}",
            proc.evidence()
        );
        Ok(after)
    })?;
    ensure!(
        before > 0 && after > before,
        "nothing was swapped out: memory was not short ({before}, then {after})"
    );
    Ok(())
}

/// A guest in a control group that holds less than it needs, with swap: slow, and right.
fn group(cluster: &Cluster) -> Result<()> {
    swap_on(cluster, N2)?;
    let mut proc = Proc::start(cluster, &Start::guest("memory hold 16"))?;
    proc.ready()?;
    hop(&proc, "memory", Doing::Computing, N2)?;
    limit(cluster, proc.pid(), "8M", "max")?;
    proc.tell()?;
    let end = proc.wait_end(LONG)?;
    ensure!(
        end == End::Exit(PASSED),
        "its parent saw {end:?}\n{}",
        proc.evidence()
    );
    let reached = cluster.sh(
        N2,
        "awk '/^max/ { print $2 }' /sys/fs/cgroup/guest/memory.events",
    )?;
    ensure!(reached != "0", "the group's limit was never reached");
    cluster.sh(N2, "rmdir /sys/fs/cgroup/guest").map(drop)
}

/// The same without swap: the kernel of the host has to kill it, and its parent at home is told.
fn end_of_memory(cluster: &Cluster) -> Result<()> {
    let mut proc = Proc::start(cluster, &Start::guest("memory hold 16"))?;
    proc.ready()?;
    hop(&proc, "memory", Doing::Computing, N2)?;
    limit(cluster, proc.pid(), "8M", "0")?;
    proc.tell()?;
    let end = proc.wait_end(LONG)?;
    ensure!(
        end == End::Signal(9),
        "its parent saw {end:?}\n{}",
        proc.evidence()
    );
    cluster.sh(
        N2,
        "for i in $(seq 50); do rmdir /sys/fs/cgroup/guest && break; sleep 0.2; done 2>/dev/null",
    )?;
    crate::failures::still_works(cluster)
}

fn limit(cluster: &Cluster, pid: u32, memory: &str, swap: &str) -> Result<()> {
    let script = format!(
        "cd /sys/fs/cgroup && echo +memory > cgroup.subtree_control && mkdir -p guest && cd guest &&
        echo {memory} > memory.max && echo {swap} > memory.swap.max && echo {pid} > cgroup.procs"
    );
    cluster.sh(N2, &script).map(drop)
}
