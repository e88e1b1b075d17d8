// SPDX-License-Identifier: MIT OR Apache-2.0

//! A cluster in one thread, with a clock and a network that obey: the same seed gives the same run,
//! to the byte. What is driven is what runs in the daemon.
//!
//! Time passes only in [`Sim::run`]. What happens is in one queue, ordered by time and then by when it
//! was put there; all chance is drawn from one seeded source, in that order.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// Something that is driven by time and bytes.
pub trait Node {
    /// Bytes from another node.
    fn take(&mut self, now_ms: u64, from: u16, bytes: &[u8]);
    /// Time has passed.
    fn wake(&mut self, now_ms: u64);
    /// When to wake it next.
    fn due_ms(&self) -> Option<u64>;
    /// What it wants sent, and to whom. Called after each of the others.
    fn sends(&mut self) -> Vec<(u16, Vec<u8>)>;
}

/// What the network does to what is sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Net {
    /// Shortest way.
    pub delay_ms: u64,
    /// As much longer, at most. Packets overtake each other within it.
    pub jitter_ms: u64,
    /// Packets of a thousand that are lost.
    pub lost: u32,
    /// Packets of a thousand that come twice.
    pub twice: u32,
    /// Packets of a thousand that come as late as ten others.
    pub late: u32,
}

/// Something goes wrong, or right again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing gets from the first to the second. The other direction is another fault.
    Cut(u16, u16),
    /// These hear only each other, and the others only the others.
    Split(BTreeSet<u16>),
    /// What is sent to and from this node waits.
    Clog(u16),
    /// And comes, all at once.
    Unclog(u16),
    /// Every wire is whole again and nothing waits.
    Mend,
    /// The node does nothing until then; what it is sent waits.
    Pause(u16, u64),
    /// The node is gone, with all it knew.
    Crash(u16),
    /// It begins anew.
    Restart(u16),
}

/// What goes wrong when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults(pub Vec<(u64, Fault)>);

impl Faults {
    /// Some of each kind between `from_ms` and `until_ms`, by `seed`; by then all is whole again and
    /// every node runs. At most a third of the nodes is gone or stands at any time.
    pub fn drawn(seed: u64, nodes: &[u16], from_ms: u64, until_ms: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut all = Vec::new();
        let third = nodes.len() / 3;
        let mut at = from_ms;
        while at < until_ms {
            // One round of faults, which ends before the next begins.
            let end = at + rng.random_range(2_000..20_000);
            if end >= until_ms {
                break;
            }
            let mut some = nodes.to_vec();
            for i in (1..some.len()).rev() {
                some.swap(i, rng.random_range(0..=i));
            }
            some.truncate(rng.random_range(1..=third.max(1)));
            match rng.random_range(0..5) {
                0 => {
                    for a in &some {
                        let b = nodes[rng.random_range(0..nodes.len())];
                        all.push((at, Fault::Cut(*a, b)));
                    }
                }
                1 => all.push((at, Fault::Split(some.into_iter().collect()))),
                2 => {
                    // Swizzle: one after the other stops, and they come back in another order.
                    let mut back = some.clone();
                    back.rotate_left(some.len() / 2);
                    for (i, (a, b)) in (0_u64..).zip(some.iter().zip(&back)) {
                        let step = (end - at) / 2 / some.len() as u64;
                        all.push((at + i * step, Fault::Clog(*a)));
                        all.push((end - i * step, Fault::Unclog(*b)));
                    }
                }
                3 => all.extend(some.iter().map(|a| (at, Fault::Pause(*a, end)))),
                _ => {
                    all.extend(some.iter().map(|a| (at, Fault::Crash(*a))));
                    all.extend(some.iter().map(|a| (end, Fault::Restart(*a))));
                }
            }
            all.push((end, Fault::Mend));
            at = end + rng.random_range(0..10_000);
        }
        all.sort_by_key(|(at, _)| *at);
        Self(all)
    }
}

#[derive(Debug)]
enum Happening {
    Deliver { from: u16, to: u16, bytes: Vec<u8> },
    Wake(u16),
    Fault(Fault),
}

struct Slot<N> {
    node: Option<N>,
    wake_ms: Option<u64>,
    paused_until: u64,
    clogged: bool,
}

/// What was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets given to the network.
    pub sent: u64,
    /// Their bytes.
    pub bytes: u64,
    /// All that came and when, in one number: equal for equal runs.
    pub trace: u64,
}

/// The cluster.
pub struct Sim<N> {
    /// What the network does. May be changed between runs.
    pub net: Net,
    /// What was seen so far.
    pub counts: Counts,
    now_ms: u64,
    serial: u64,
    queue: BTreeMap<(u64, u64), Happening>,
    slots: BTreeMap<u16, Slot<N>>,
    cuts: BTreeSet<(u16, u16)>,
    split: BTreeSet<u16>,
    clogged: Vec<(u16, u16, Vec<u8>)>,
    rng: SmallRng,
}

impl<N: Node> Sim<N> {
    /// Without nodes.
    pub fn new(seed: u64, net: Net) -> Self {
        Self {
            net,
            counts: Counts::default(),
            now_ms: 0,
            serial: 0,
            queue: BTreeMap::new(),
            slots: BTreeMap::new(),
            cuts: BTreeSet::new(),
            split: BTreeSet::new(),
            clogged: Vec::new(),
            rng: SmallRng::seed_from_u64(seed),
        }
    }

    /// What the clock shows.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// A node joins, or replaces the one with its number.
    pub fn put(&mut self, id: u16, node: N) {
        let slot = Slot {
            node: Some(node),
            wake_ms: None,
            paused_until: 0,
            clogged: false,
        };
        self.slots.insert(id, slot);
        self.after(id);
    }

    /// Does something to a node that is there.
    pub fn with<T>(&mut self, id: u16, f: impl FnOnce(&mut N) -> T) -> Option<T> {
        let result = self.slots.get_mut(&id)?.node.as_mut().map(f);
        self.after(id);
        result
    }

    /// A node, if it runs.
    pub fn node(&self, id: u16) -> Option<&N> {
        self.slots.get(&id)?.node.as_ref()
    }

    /// Those that run.
    pub fn running(&self) -> Vec<u16> {
        let running = self.slots.iter().filter(|(_, s)| s.node.is_some());
        running.map(|(id, _)| *id).collect()
    }

    /// Puts these into the queue.
    pub fn plan(&mut self, faults: Faults) {
        for (at, fault) in faults.0 {
            self.queue_at(at, Happening::Fault(fault));
        }
    }

    /// Lets time pass until then. Each fault is shown to `on_fault` when it is done; what is to begin
    /// anew, it makes.
    pub fn run(&mut self, until_ms: u64, mut on_fault: impl FnMut(&mut Self, &Fault)) {
        while let Some(first) = self.queue.first_entry() {
            if first.key().0 > until_ms {
                break;
            }
            let ((at, _), happening) = first.remove_entry();
            self.now_ms = self.now_ms.max(at);
            match happening {
                Happening::Deliver { from, to, bytes } => self.deliver(from, to, bytes),
                Happening::Wake(id) => self.wake(id, at),
                Happening::Fault(fault) => {
                    self.fault(&fault);
                    on_fault(self, &fault);
                }
            }
        }
        self.now_ms = self.now_ms.max(until_ms);
    }

    /// As [`Sim::run`], with nothing to be done about faults.
    pub fn pass(&mut self, ms: u64) {
        self.run(self.now_ms + ms, |_, _| {});
    }

    /// Makes something go wrong, or right.
    pub fn fault(&mut self, fault: &Fault) {
        match fault {
            Fault::Cut(from, to) => {
                self.cuts.insert((*from, *to));
            }
            Fault::Split(some) => self.split.clone_from(some),
            Fault::Clog(id) => self.clog(*id, true),
            Fault::Unclog(id) => self.clog(*id, false),
            Fault::Mend => {
                self.cuts.clear();
                self.split.clear();
                for slot in self.slots.values_mut() {
                    slot.clogged = false;
                }
                self.unclog();
            }
            Fault::Pause(id, until_ms) => {
                if let Some(slot) = self.slots.get_mut(id) {
                    slot.paused_until = *until_ms;
                }
            }
            Fault::Crash(id) => {
                if let Some(slot) = self.slots.get_mut(id) {
                    slot.node = None;
                    slot.wake_ms = None;
                }
            }
            Fault::Restart(_) => {}
        }
    }

    fn clog(&mut self, id: u16, clogged: bool) {
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.clogged = clogged;
        }
        self.unclog();
    }

    fn is_clogged(&self, id: u16) -> bool {
        self.slots.get(&id).is_some_and(|s| s.clogged)
    }

    fn unclog(&mut self) {
        for (from, to, bytes) in std::mem::take(&mut self.clogged) {
            if self.is_clogged(from) || self.is_clogged(to) {
                self.clogged.push((from, to, bytes));
            } else {
                self.queue_at(self.now_ms, Happening::Deliver { from, to, bytes });
            }
        }
    }

    fn queue_at(&mut self, at_ms: u64, happening: Happening) {
        self.serial += 1;
        self.queue.insert((at_ms, self.serial), happening);
    }

    fn chance(&mut self, of_thousand: u32) -> bool {
        of_thousand > 0 && self.rng.random_range(0..1_000) < of_thousand
    }

    fn send(&mut self, from: u16, to: u16, bytes: Vec<u8>) {
        self.counts.sent += 1;
        self.counts.bytes += bytes.len() as u64;
        let apart = self.split.contains(&from) != self.split.contains(&to);
        if apart || self.cuts.contains(&(from, to)) || self.chance(self.net.lost) {
            return;
        }
        if self.is_clogged(from) || self.is_clogged(to) {
            self.clogged.push((from, to, bytes));
            return;
        }
        if self.chance(self.net.twice) {
            self.queue_way(from, to, bytes.clone());
        }
        self.queue_way(from, to, bytes);
    }

    fn queue_way(&mut self, from: u16, to: u16, bytes: Vec<u8>) {
        let mut way = self.net.delay_ms + self.rng.random_range(0..=self.net.jitter_ms);
        if self.chance(self.net.late) {
            way = way.max(1) * 10;
        }
        self.queue_at(self.now_ms + way, Happening::Deliver { from, to, bytes });
    }

    fn deliver(&mut self, from: u16, to: u16, bytes: Vec<u8>) {
        let Some(slot) = self.slots.get_mut(&to) else {
            return;
        };
        if slot.paused_until > self.now_ms {
            let until = slot.paused_until;
            return self.queue_at(until, Happening::Deliver { from, to, bytes });
        }
        let Some(node) = &mut slot.node else { return };
        node.take(self.now_ms, from, &bytes);
        // FNV-1a.
        for byte in [from.to_be_bytes(), to.to_be_bytes()]
            .as_flattened()
            .iter()
            .chain(&bytes)
        {
            self.counts.trace =
                (self.counts.trace ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.counts.trace ^= self.now_ms;
        self.after(to);
    }

    fn wake(&mut self, id: u16, at: u64) {
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        if slot.wake_ms != Some(at) {
            return;
        }
        if slot.paused_until > at {
            slot.wake_ms = Some(slot.paused_until);
            let until = slot.paused_until;
            return self.queue_at(until, Happening::Wake(id));
        }
        slot.wake_ms = None;
        if let Some(node) = &mut slot.node {
            node.wake(self.now_ms);
        }
        self.after(id);
    }

    /// Sends what the node wants sent and notes when it is to be woken.
    fn after(&mut self, id: u16) {
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        let Some(node) = &mut slot.node else { return };
        let sends = node.sends();
        let due = node.due_ms().map(|d| d.max(self.now_ms));
        if due != slot.wake_ms {
            slot.wake_ms = due;
            if let Some(due) = due {
                self.queue_at(due, Happening::Wake(id));
            }
        }
        for (to, bytes) in sends {
            self.send(id, to, bytes);
        }
    }
}

/// The seeds of a run: `some` of them, or as many as `SIM_SEEDS` says, for a long one.
pub fn seeds(some: u64) -> std::ops::Range<u64> {
    let wanted = std::env::var("SIM_SEEDS").ok();
    0..wanted.and_then(|s| s.parse().ok()).unwrap_or(some)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Says a number to the next node every 100 ms, and counts what comes.
    struct Talks {
        own: u16,
        of: u16,
        due_ms: u64,
        heard: Vec<(u64, u16)>,
        out: Vec<(u16, Vec<u8>)>,
    }

    impl Node for Talks {
        fn take(&mut self, now_ms: u64, from: u16, _: &[u8]) {
            self.heard.push((now_ms, from));
        }

        fn wake(&mut self, now_ms: u64) {
            self.due_ms = now_ms + 100;
            self.out.push((self.own % self.of + 1, vec![1, 2, 3]));
        }

        fn due_ms(&self) -> Option<u64> {
            Some(self.due_ms)
        }

        fn sends(&mut self) -> Vec<(u16, Vec<u8>)> {
            std::mem::take(&mut self.out)
        }
    }

    fn talks(own: u16) -> Talks {
        Talks {
            own,
            of: 3,
            due_ms: 0,
            heard: Vec::new(),
            out: Vec::new(),
        }
    }

    fn three(seed: u64, net: Net) -> Sim<Talks> {
        let mut sim = Sim::new(seed, net);
        (1..=3).for_each(|i| sim.put(i, talks(i)));
        sim
    }

    #[test]
    fn the_same_seed_is_the_same_run() {
        let net = Net {
            delay_ms: 10,
            jitter_ms: 50,
            lost: 100,
            twice: 50,
            late: 50,
        };
        let run = |seed| {
            let mut sim = three(seed, net);
            sim.plan(Faults::drawn(seed, &[1, 2, 3], 1_000, 60_000));
            sim.run(60_000, |sim, fault| {
                if let Fault::Restart(id) = fault {
                    sim.put(*id, talks(*id));
                }
            });
            sim.counts
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7).trace, run(8).trace);
    }

    #[test]
    fn faults_do_what_they_say() {
        let mut sim = three(1, Net::default());
        let heard = |sim: &Sim<Talks>, id| sim.node(id).map_or(0, |n: &Talks| n.heard.len());
        sim.pass(950);
        assert_eq!([1, 2, 3].map(|i| heard(&sim, i)), [10, 10, 10]);
        sim.fault(&Fault::Cut(1, 2));
        sim.fault(&Fault::Clog(3));
        sim.pass(1_000);
        assert_eq!([1, 2, 3].map(|i| heard(&sim, i)), [10, 10, 10]);
        sim.fault(&Fault::Unclog(3));
        sim.pass(10);
        assert_eq!([1, 2, 3].map(|i| heard(&sim, i)), [20, 10, 20]);
        sim.fault(&Fault::Mend);
        sim.fault(&Fault::Crash(1));
        sim.fault(&Fault::Pause(3, 4_000));
        sim.pass(1_000);
        assert_eq!([1, 2, 3].map(|i| heard(&sim, i)), [0, 10, 20]);
        assert_eq!(sim.running(), [2, 3]);
        sim.pass(2_000);
        assert!(heard(&sim, 3) > 25, "what waited comes");
    }

    #[test]
    fn a_plan_ends_whole() {
        for seed in 0..50 {
            let faults = Faults::drawn(seed, &[1, 2, 3, 4, 5, 6], 0, 120_000);
            let count = |f: fn(&Fault) -> bool| faults.0.iter().filter(|(_, x)| f(x)).count();
            assert_eq!(
                count(|f| matches!(f, Fault::Crash(_))),
                count(|f| matches!(f, Fault::Restart(_)))
            );
            assert!(faults.0.iter().all(|(at, _)| *at < 120_000));
            assert!(matches!(
                faults.0.last(),
                Some((_, Fault::Mend | Fault::Restart(_)))
            ));
        }
    }
}
