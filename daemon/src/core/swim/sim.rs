// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whole clusters, simulated.

use std::collections::{BTreeMap, BTreeSet};

use crate::core::sim::{Fault, Faults, Net, Node, Sim, seeds};

use super::{Config, Member, Output, Seems, Swim};

/// 100 ms ± 50 ms, one packet in ten lost.
const OVERLOAD: Net = Net {
    delay_ms: 50,
    jitter_ms: 100,
    lost: 100,
    twice: 0,
    late: 0,
};
/// One rack.
const RACK: Net = Net {
    delay_ms: 0,
    jitter_ms: 2,
    lost: 0,
    twice: 0,
    late: 0,
};

struct One {
    swim: Swim,
    now_ms: u64,
    sends: Vec<(u16, Vec<u8>)>,
    /// Who seemed what when.
    events: Vec<(u64, u16, Seems)>,
    refused: u64,
}

impl One {
    fn drain(&mut self) {
        for output in self.swim.outputs() {
            match output {
                Output::Send { to, bytes } => self.sends.push((to, bytes)),
                Output::Event { member, seems } => {
                    self.events.push((self.now_ms, member.node, seems));
                }
            }
        }
    }
}

impl Node for One {
    fn take(&mut self, now_ms: u64, from: u16, bytes: &[u8]) {
        self.now_ms = now_ms;
        if let Err(e) = self.swim.take(now_ms, from, bytes) {
            assert_eq!(e.offence(), None, "{e}");
            self.refused += 1;
        }
    }

    fn wake(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        self.swim.wake(now_ms);
    }

    fn due_ms(&self) -> Option<u64> {
        Some(self.swim.due_ms())
    }

    fn sends(&mut self) -> Vec<(u16, Vec<u8>)> {
        self.drain();
        std::mem::take(&mut self.sends)
    }
}

/// A cluster of which everybody knows who belongs to it, as by consensus.
struct Cluster {
    sim: Sim<One>,
    seed: u64,
    epochs: BTreeMap<u16, u64>,
}

impl Cluster {
    fn new(seed: u64, nodes: u16, net: Net) -> Self {
        let mut cluster = Self {
            sim: Sim::new(seed, net),
            seed,
            epochs: (1..=nodes).map(|n| (n, 1)).collect(),
        };
        (1..=nodes).for_each(|n| cluster.start(n));
        cluster
    }

    fn start(&mut self, node: u16) {
        start(&mut self.sim, &self.epochs, self.seed, node);
    }

    /// Runs; nodes that begin anew have a higher epoch, which all learn.
    fn run(&mut self, until_ms: u64) {
        let (epochs, seed) = (&mut self.epochs, self.seed);
        self.sim.run(until_ms, |sim, fault| {
            if let Fault::Restart(node) = fault {
                *epochs.entry(*node).or_default() += 1;
                start(sim, epochs, seed, *node);
                let now = sim.now_ms();
                let member = Member {
                    node: *node,
                    epoch: epochs[node],
                };
                for id in sim.running() {
                    sim.with(id, |one| one.swim.list(now, member).unwrap());
                }
            }
        });
    }

    fn pass(&mut self, ms: u64) {
        self.run(self.sim.now_ms() + ms);
    }

    /// Somebody who does not see all as they are: that those that run are alive, and the others down.
    fn wrong(&self) -> Option<(u16, u16, Seems)> {
        let running = BTreeSet::from_iter(self.sim.running());
        running.iter().find_map(|by| {
            let mut members = self.sim.node(*by)?.swim.members();
            members.find_map(|(member, seems)| {
                let right = if running.contains(&member.node) {
                    Seems::Alive
                } else {
                    Seems::Down
                };
                (seems != right).then_some((*by, member.node, seems))
            })
        })
    }

    /// Lets time pass until nobody is wrong any more; how much that took.
    fn converge(&mut self, most_ms: u64) -> u64 {
        let began = self.sim.now_ms();
        while let Some(wrong) = self.wrong() {
            let took = self.sim.now_ms() - began;
            assert!(
                took < most_ms,
                "seed {}: after {took} ms one of the wrong is {wrong:?}",
                self.seed
            );
            self.pass(100);
        }
        self.sim.now_ms() - began
    }

    /// All that seemed so to somebody since then.
    fn said(&self, since_ms: u64, seems: Seems) -> Vec<(u64, u16, u16)> {
        let mut said = Vec::new();
        for by in self.sim.running() {
            for (at, who, what) in &self.sim.node(by).unwrap().events {
                if *at >= since_ms && *what == seems {
                    said.push((*at, by, *who));
                }
            }
        }
        said.sort_unstable();
        said
    }
}

fn start(sim: &mut Sim<One>, epochs: &BTreeMap<u16, u64>, seed: u64, node: u16) {
    let now = sim.now_ms();
    let epoch = epochs[&node];
    let own = Member { node, epoch };
    let mut swim = Swim::new(own, seed << 16 | u64::from(node), Config::default());
    for (node, epoch) in epochs {
        let (node, epoch) = (*node, *epoch);
        swim.list(now, Member { node, epoch }).unwrap();
    }
    let one = One {
        swim,
        now_ms: now,
        sends: Vec::new(),
        events: Vec::new(),
        refused: 0,
    };
    sim.put(node, one);
}

#[test]
fn a_dead_node_is_seen_within_five_seconds_by_all() {
    for seed in seeds(4) {
        for nodes in [2, 3, 5, 9, 31] {
            let mut cluster = Cluster::new(seed, nodes, RACK);
            cluster.pass(10_000 + seed * 137);
            let died = cluster.sim.now_ms();
            let dead = 1 + u16::try_from(seed).unwrap() % nodes;
            cluster.sim.fault(&Fault::Crash(dead));
            let took = cluster.converge(5_000);
            assert!(took <= 5_000, "seed {seed}, {nodes} nodes: {took} ms");
            let suspected = cluster.said(died, Seems::Suspect);
            let first = suspected.first().map(|(at, _, _)| at - died);
            assert!(
                first.is_some_and(|ms| ms <= 1_600),
                "seed {seed}: {first:?}"
            );
            let others = cluster.said(0, Seems::Down);
            assert!(
                others.iter().all(|(_, _, who)| *who == dead),
                "seed {seed}: {others:?}"
            );
        }
    }
}

#[test]
fn half_an_hour_of_overload_kills_nobody() {
    for seed in seeds(2) {
        let mut cluster = Cluster::new(seed, 9, OVERLOAD);
        cluster.pass(30 * 60 * 1_000);
        let down = cluster.said(0, Seems::Down);
        assert_eq!(down, [], "seed {seed}");
        let suspected = cluster.said(0, Seems::Suspect).len();
        // It would be no test if nobody was ever in doubt.
        assert!((1..10_000).contains(&suspected), "seed {seed}: {suspected}");
        // And one that dies in it is seen.
        cluster.sim.fault(&Fault::Crash(4));
        cluster.converge(10_000);
    }
}

#[test]
fn a_cluster_in_two_halves_heals_by_itself() {
    for seed in seeds(4) {
        let mut cluster = Cluster::new(seed, 9, RACK);
        cluster.pass(5_000);
        let some = BTreeSet::from([2, 3, 5, 7]);
        cluster.sim.fault(&Fault::Split(some.clone()));
        cluster.pass(60_000);
        for by in cluster.sim.running() {
            for (member, seems) in cluster.sim.node(by).unwrap().swim.members() {
                let apart = some.contains(&by) != some.contains(&member.node);
                assert_eq!(
                    seems == Seems::Down,
                    apart,
                    "seed {seed}: {by} of {member:?}"
                );
            }
        }
        cluster.sim.fault(&Fault::Mend);
        cluster.converge(20_000);
        // And it stays so.
        let healed = cluster.sim.now_ms();
        cluster.pass(30_000);
        assert_eq!(cluster.said(healed, Seems::Suspect), [], "seed {seed}");
    }
}

#[test]
fn one_that_stands_still_accuses_nobody_and_comes_back() {
    for seed in seeds(4) {
        let mut cluster = Cluster::new(seed, 9, RACK);
        cluster.pass(5_000);
        let now = cluster.sim.now_ms();
        // Shorter than it takes to be called down.
        cluster.sim.fault(&Fault::Pause(3, now + 2_000));
        cluster.pass(20_000);
        assert_eq!(cluster.said(0, Seems::Down), [], "seed {seed}");
        // And longer.
        let now = cluster.sim.now_ms();
        cluster.sim.fault(&Fault::Pause(3, now + 60_000));
        cluster.pass(60_000);
        cluster.converge(10_000);
        let accused = cluster.said(0, Seems::Suspect);
        let others = accused.iter().find(|(_, _, who)| *who != 3);
        assert_eq!(others, None, "seed {seed}");
        assert!(cluster.sim.node(3).unwrap().swim.late_ms() >= 58_000);
    }
}

#[test]
fn one_that_cannot_hear_does_not_kill_the_others() {
    for seed in seeds(4) {
        let mut cluster = Cluster::new(seed, 9, RACK);
        cluster.pass(5_000);
        for from in 2..=9 {
            cluster.sim.fault(&Fault::Cut(from, 1));
        }
        cluster.pass(60_000);
        // It says that everybody is down; nobody else believes it.
        let down = cluster.said(0, Seems::Down);
        let wrong = down.iter().find(|(_, by, who)| *by != 1 && *who != 1);
        assert_eq!(wrong, None, "seed {seed}");
        cluster.sim.fault(&Fault::Mend);
        cluster.converge(20_000);
    }
}

#[test]
fn a_wire_cut_between_two_is_nobodys_death() {
    for seed in seeds(4) {
        let mut cluster = Cluster::new(seed, 5, RACK);
        cluster.pass(5_000);
        cluster.sim.fault(&Fault::Cut(1, 2));
        cluster.sim.fault(&Fault::Cut(2, 1));
        cluster.pass(120_000);
        assert_eq!(cluster.said(0, Seems::Down), [], "seed {seed}");
    }
}

#[test]
fn whatever_goes_wrong_all_agree_in_the_end() {
    for seed in seeds(10) {
        let net = Net {
            lost: 20,
            twice: 20,
            late: 20,
            delay_ms: 2,
            jitter_ms: 20,
        };
        let nodes = 5 + u16::try_from(seed % 5).unwrap();
        let mut cluster = Cluster::new(seed, nodes, net);
        let all: Vec<u16> = (1..=nodes).collect();
        cluster.sim.plan(Faults::drawn(seed, &all, 5_000, 120_000));
        cluster.run(120_000);
        cluster.sim.fault(&Fault::Mend);
        cluster.sim.net = RACK;
        cluster.converge(30_000);
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    let run = || {
        let mut cluster = Cluster::new(3, 7, OVERLOAD);
        let faults = Faults::drawn(3, &[1, 2, 3, 4, 5, 6, 7], 1_000, 60_000);
        cluster.sim.plan(faults);
        cluster.run(60_000);
        cluster.sim.counts
    };
    assert_eq!(run(), run());
}

/// Packets a thousand nodes send in a second when all is well, and how long until all have seen a
/// death.
fn load(nodes: u16) -> (u64, u64) {
    let mut cluster = Cluster::new(1, nodes, RACK);
    cluster.pass(1_000);
    let before = cluster.sim.counts.sent;
    cluster.pass(2_000);
    let sent = cluster.sim.counts.sent - before;
    cluster.sim.fault(&Fault::Crash(nodes / 2));
    let took = cluster.converge(7_000);
    (sent * 1_000 / 2 / u64::from(nodes), took)
}

#[test]
fn a_node_of_a_thousand_has_no_more_to_do_than_one_of_fifty() {
    let (few, soon) = load(50);
    assert!(few < 12_000, "{few}");
    for nodes in [200, 1_000] {
        let (many, late) = load(nodes);
        assert!(many <= few + few / 10, "{nodes} nodes: {many}, 50: {few}");
        assert!(
            late <= soon + 2_000,
            "{nodes} nodes: {late} ms, 50: {soon} ms"
        );
    }
}
