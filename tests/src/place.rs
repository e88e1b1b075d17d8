// SPDX-License-Identifier: MIT OR Apache-2.0

//! Where a process really runs, asked of every node's own kernel through `/proc` and never through our tools.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cluster::{Cluster, Node};
use crate::host::eventually;

/// What one kernel says of a PID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Name of the leader.
    pub comm: String,
    /// One letter.
    pub state: char,
    /// User and system time of all its threads, in ticks of 10 ms.
    pub ticks: u64,
    /// Number of threads.
    pub threads: u32,
}

impl Task {
    /// From a line of `/proc/PID/stat`.
    pub fn parse(line: &str) -> Option<Self> {
        let (head, rest) = line.rsplit_once(") ")?;
        let (_, comm) = head.split_once(" (")?;
        // The state is field 3, the first of `rest`.
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            comm: comm.into(),
            state: fields.first()?.chars().next()?,
            ticks: field(14)? + field(15)?,
            threads: field(20)?.try_into().ok()?,
        })
    }
}

impl Task {
    /// Whether nothing of it runs any more. A leader may be gone while other threads live on.
    pub fn is_dead(&self) -> bool {
        self.state == 'X' || self.state == 'Z' && self.threads <= 1
    }
}

/// What the kernel of `node` says of `pid` now; `None` when it has no such task.
pub fn task(cluster: &Cluster, node: Node, pid: u32) -> Result<Option<Task>> {
    let line = cluster.sh(
        node,
        &format!("cat /proc/{pid}/stat 2>/dev/null || echo none"),
    )?;
    if line == "none" {
        return Ok(None);
    }
    Task::parse(&line)
        .map(Some)
        .with_context(|| format!("strange /proc/{pid}/stat on {node}: {line}"))
}

/// What a process is doing, which decides what its place can be proven by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Its processor time must grow where it runs, and only there.
    Computing,
    /// The same, but its deputy writes what it prints, which takes a little.
    Printing,
    /// It waits.
    Sleeping,
}

/// How much processor time must be seen to grow where it runs.
const GROWTH_TICKS: u64 = 20;
/// How much a deputy may be charged meanwhile: a tick goes to whoever runs when the clock interrupts.
const IDLE_TICKS: u64 = 1;

/// Proves that `pid` is run by the kernel of `at` and by no other of `nodes`:
///
/// - `at` has the task, not dead, called `comm`, with its processor time growing if it computes;
/// - its home, if that is another node, has the deputy, whose processor time does not grow meanwhile;
/// - no other node has such a task.
pub fn prove_runs_among(
    cluster: &Cluster,
    nodes: &[Node],
    pid: u32,
    comm: &str,
    home: Node,
    at: Node,
    doing: Doing,
) -> Result<()> {
    let others: Vec<Node> = nodes
        .iter()
        .copied()
        .filter(|&node| node != at && node != home)
        .collect();
    let deputy = (home != at && nodes.contains(&home)).then_some(home);
    thread::scope(|scope| {
        let nowhere =
            scope.spawn(|| cluster.on_all(&others, |node| prove_gone(cluster, pid, node)));
        prove_here(cluster, pid, comm, at, deputy, doing)?;
        nowhere
            .join()
            .map_err(|_| anyhow::anyhow!("a thread of the runner panicked"))?
            .map(drop)
    })
}

/// [`prove_runs_among`] all nodes.
pub fn prove_runs(
    cluster: &Cluster,
    pid: u32,
    comm: &str,
    home: Node,
    at: Node,
    doing: Doing,
) -> Result<()> {
    prove_runs_among(cluster, &cluster.nodes(), pid, comm, home, at, doing)
}

/// A deputy hands out the memory it had, and then does nothing any more: so within some seconds one must come in
/// which the guest computes and the deputy uses no time to speak of.
fn prove_here(
    cluster: &Cluster,
    pid: u32,
    comm: &str,
    at: Node,
    deputy: Option<Node>,
    doing: Doing,
) -> Result<()> {
    let living = |node: Node, what: &str| -> Result<Task> {
        let task = task(cluster, node, pid)?
            .with_context(|| format!("the kernel of {node} has no task {pid}, {what}"))?;
        ensure!(
            !task.is_dead(),
            "task {pid} on {node}, {what}, is dead (state {})",
            task.state
        );
        Ok(task)
    };
    let look = || -> Result<(u64, u64)> {
        let here = living(at, "which should run there")?;
        ensure!(
            here.comm == comm,
            "task {pid} on {at} is called {}, not {comm}",
            here.comm
        );
        let there = deputy
            .map(|home| living(home, "the deputy at its home"))
            .transpose()?;
        Ok((here.ticks, there.map_or(0, |task| task.ticks)))
    };
    let mut before = look()?;
    if doing == Doing::Sleeping {
        return Ok(());
    }
    eventually(Duration::from_secs(30), || {
        thread::sleep(Duration::from_millis(700));
        let now = look()?;
        let (grown, idle) = (
            now.0.saturating_sub(before.0),
            now.1.saturating_sub(before.1),
        );
        before = now;
        let most = IDLE_TICKS
            + if doing == Doing::Printing {
                grown / 5
            } else {
                grown / 50
            };
        Ok((grown < GROWTH_TICKS || idle > most).then(|| {
            format!(
                "in a while task {pid} used {grown} ticks on {at}, and its deputy {idle} at home"
            )
        }))
    })
}

/// A node that a process left keeps its image until the last page has gone, and not longer.
fn prove_gone(cluster: &Cluster, pid: u32, node: Node) -> Result<()> {
    eventually(Duration::from_secs(30), || {
        Ok(
            task(cluster, node, pid)?
                .map(|task| format!("{node} still has a task {pid}: {task:?}")),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_look_like_the_rest_of_the_line() {
        let line = "7 (a) R (b)) S 1 7 7 0 -1 4194560 1 2 3 4 15 27 0 0 20 0 8 0 100 1 2";
        let want = Task {
            comm: "a) R (b)".into(),
            state: 'S',
            ticks: 42,
            threads: 8,
        };
        assert_eq!(Task::parse(line), Some(want));
        assert_eq!(Task::parse("7 (short) S 1"), None);
    }
}
