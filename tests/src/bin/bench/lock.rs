// SPDX-License-Identifier: MIT OR Apache-2.0

//! What it costs that nodes agree: locks and values over the daemon's socket, beside the network and the disk they need.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ssi_tests::cluster::{N1, N2, N3, Node};

use super::{Aim, Bench, Figure, median};

/// How long two nodes hand a lock to each other.
const HAND_S: u32 = 5;
/// Until three nodes vote.
const VOTING: Duration = Duration::from_secs(120);

/// Medians of one round on one node, in nanoseconds.
struct Cost {
    nothing: f64,
    set: f64,
    first: f64,
    again: f64,
    sync: f64,
}

impl Bench {
    /// Who leads, once all three vote.
    fn leader(&self) -> Result<Node> {
        let end = Instant::now() + VOTING;
        loop {
            let list = self.cluster.ssictl_json(N1, &["node", "ls"])?;
            let rows = list.as_array().context("no list of nodes")?;
            let is = |n: Node, role: &str| rows.iter().any(|r| r["id"] == n.0 && r["role"] == role);
            let leader = [N1, N2, N3].into_iter().find(|n| is(*n, "leader"));
            let voters = rows.iter().filter(|r| r["role"] == "voter").count();
            if let (Some(leader), 2) = (leader, voters) {
                return Ok(leader);
            }
            ensure!(Instant::now() < end, "not all three vote: {list}");
            thread::sleep(Duration::from_secs(1));
        }
    }

    fn cost(&self, node: Node) -> Result<Cost> {
        let told = self.numbers(node, &["locks", "cost", "40", "/var/lib/ssid/figures"])?;
        let [nothing, set, first, again, sync] = told[..] else {
            bail!("locks says {told:?}")
        };
        Ok(Cost {
            nothing,
            set,
            first,
            again,
            sync,
        })
    }

    /// Two nodes hand a lock to each other; nanoseconds for each time.
    fn hand_off(&self, nodes: &[Node; 2]) -> Result<f64> {
        let seconds = HAND_S.to_string();
        let counts = self.cluster.on_all(nodes, |node| {
            self.numbers(node, &["locks", "hand", &seconds])
        })?;
        let count: f64 = counts.iter().flatten().sum();
        Ok(f64::from(HAND_S) * 1e9 / count)
    }

    /// Locks and values.
    pub(super) fn lock(&self) -> Result<Vec<Figure>> {
        let _servers = self.servers()?;
        let leader = self.leader()?;
        let others: Vec<Node> = self.cluster.nodes();
        let others: Vec<Node> = others.into_iter().filter(|n| *n != leader).collect();
        let [a, b] = others[..] else {
            bail!("there are {} others", others.len())
        };
        let (mut p0, mut leads, mut follows, mut hands) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            p0.push(self.ping("64", "64")?);
            leads.push(self.cost(leader)?);
            follows.push(self.cost(a)?);
            hands.push(self.hand_off(&[a, b])?);
        }
        ensure!(self.leader()? == leader, "another leads now");
        let each = |ratio: &dyn Fn(usize) -> f64| (0..self.rounds).map(ratio).collect::<Vec<f64>>();
        let us = |times: Vec<f64>| format!("{:.0} us", median(&times) / 1000.0);
        let of = |costs: &[Cost], what: fn(&Cost) -> f64| us(costs.iter().map(what).collect());
        Ok(vec![
            Figure {
                name: "value set, at the leader / (2 P0 + fsync)".into(),
                ratios: each(&|i| leads[i].set / (2.0 * p0[i] + leads[i].sync)),
                aim: Aim::AtMost(1.0),
                beside: format!(
                    "P0 {}, fsync {}, value set {}, at another node {}",
                    us(p0.clone()),
                    of(&leads, |c| c.sync),
                    of(&leads, |c| c.set),
                    of(&follows, |c| c.set)
                ),
            },
            Figure {
                name: "free lock / (1.5 P0 + value set at the leader)".into(),
                ratios: each(&|i| follows[i].first / (1.5 * p0[i] + leads[i].set)),
                aim: Aim::AtMost(1.0),
                beside: format!(
                    "taken {}, at the leader {}",
                    of(&follows, |c| c.first),
                    of(&leads, |c| c.first)
                ),
            },
            Figure {
                name: "lock taken again / empty call".into(),
                ratios: each(&|i| follows[i].again / follows[i].nothing),
                aim: Aim::AtMost(1.2),
                beside: format!(
                    "empty call {}, taken again {}",
                    of(&follows, |c| c.nothing),
                    of(&follows, |c| c.again)
                ),
            },
            Figure {
                name: "lock handed on / P0".into(),
                ratios: each(&|i| hands[i] / p0[i]),
                aim: Aim::AtMost(2.0),
                beside: format!("handed on {}", us(hands.clone())),
            },
        ])
    }
}
