// SPDX-License-Identifier: MIT OR Apache-2.0

//! Processes that run on other nodes than their own, in a storm, and are started again elsewhere from
//! a checkpoint when one of the two nodes is declared dead. None may run twice.
//!
//! A node decides by the code of the daemon what it hosts: [`Pulse`] says whether it is cut off, [`Ties`]
//! what follows of that and of who is present. Which process belongs to which pair of nodes is a value
//! that the cluster agrees on. Who takes a process over must have seen one of the two declared dead, and
//! waited for [`isolation::surely_ended_after_ms`]; then he writes himself into that value, and starts it.
//!
//! A node that stands still runs nothing. When it goes on, it may run what it had for as long as it takes to
//! look; only what it does after that counts.

use super::*;
use crate::agree::pulse::Pulse;
use crate::core::isolation::{self, Isolation};
use crate::core::tie::{Pair, Tie, Ties};

/// Silence after which a node is declared dead.
const DEAD_AFTER: Duration = Duration::from_secs(5);
/// The module ends a process within this.
const ENDS_IN_MS: u64 = 1_000;
/// How often a node goes through what it has.
const EVERY: Duration = Duration::from_millis(100);

/// What the cluster agrees on about a process: who has it, and on which node it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    home: (u16, u64),
    host: (u16, u64),
    /// The home has begun so often.
    life: u32,
}

/// A process that runs.
#[derive(Clone, Debug)]
struct Guest {
    process: String,
    /// Revision of the [`Place`] it was started by.
    run: u64,
    host: NodeId,
    home: NodeId,
    home_life: u32,
    /// The presences it belongs to, as its host has them.
    pair: Pair,
    ends: Option<Instant>,
}

/// All processes, as nobody knows them.
pub struct Processes {
    names: Vec<String>,
    guests: Vec<Guest>,
    ties: BTreeMap<NodeId, Ties>,
    lives: BTreeMap<NodeId, u32>,
    begun: BTreeSet<u64>,
    serial: u128,
    dice: Dice,
    planted: Planted,
    /// So often one was started.
    pub starts: u64,
}

pub type Shared = Arc<Mutex<Processes>>;

impl Processes {
    /// `count` processes that run nowhere yet.
    pub fn new(count: u16, seed: u64, planted: Planted) -> Shared {
        Arc::new(Mutex::new(Self {
            names: (1..=count).map(|i| format!("process.{i}")).collect(),
            guests: Vec::new(),
            ties: BTreeMap::new(),
            lives: BTreeMap::new(),
            begun: BTreeSet::new(),
            serial: 1 << 64,
            dice: Dice(seed),
            planted,
            starts: 0,
        }))
    }

    /// A machine is off: nothing runs there.
    pub fn off(&mut self, node: NodeId) {
        *self.lives.entry(node).or_default() += 1;
        self.ties.remove(&node);
        self.guests.retain(|guest| guest.host != node);
    }

    fn is_bound(&self, own: NodeId, other: NodeId, pair: Pair) -> bool {
        let ties = self.ties.get(&own);
        ties.is_some_and(|ties| ties.to(other) == Tie::Bound(pair))
    }

    /// None runs twice where anything runs.
    fn judge(&self, wires: &Wires) {
        let now = Instant::now();
        // It has looked since it went on.
        let looks =
            LOOKS_UP_IN + Duration::from_millis(isolation::LOOK_MS + ENDS_IN_MS) + 3 * EVERY;
        let runs = |guest: &&Guest| {
            let paused = wires.paused.get(&guest.host);
            // What its module was told to end it ends, whatever becomes of the daemon.
            guest.ends.is_none_or(|ends| ends > now)
                && paused.is_none_or(|until| *until + looks <= now)
        };
        let mut seen: BTreeMap<&str, &Guest> = BTreeMap::new();
        for guest in self.guests.iter().filter(runs) {
            if let Some(other) = seen.insert(&guest.process, guest) {
                let (process, a, b) = (&guest.process, other.host, guest.host);
                witness::accuse(format!("{process} runs on {a} and on {b}"));
            }
        }
    }
}

/// A node, in one of its lives.
struct Node {
    own: NodeId,
    life: u32,
    at: Agreement,
    all: Shared,
    wires: Arc<Mutex<Wires>>,
    /// When it saw that a place is no more.
    seen: BTreeMap<u64, Instant>,
    asked: BTreeMap<(String, u64), Instant>,
}

/// Runs what a node runs, for as long as it is on.
pub fn run(own: NodeId, at: &Agreement, all: &Shared, wires: &Arc<Mutex<Wires>>) {
    let life = {
        let mut all = all.lock().unwrap();
        all.ties.insert(own, Ties::new(own));
        *all.lives.entry(own).or_default()
    };
    let node = Node {
        own,
        life,
        at: at.clone(),
        all: Arc::clone(all),
        wires: Arc::clone(wires),
        seen: BTreeMap::new(),
        asked: BTreeMap::new(),
    };
    tokio::spawn(node.run());
}

fn fence_after() -> Duration {
    Timing::default().fence_after(DEAD_AFTER)
}

fn wait(planted: Planted) -> Duration {
    let fence_after = u64::try_from(fence_after().as_millis()).unwrap();
    match planted {
        Planted::FencesShort => Duration::from_secs(2),
        _ => Duration::from_millis(isolation::surely_ended_after_ms(fence_after)),
    }
}

impl Node {
    async fn run(mut self) {
        let planted = self.all.lock().unwrap().planted;
        let mut pulse = Pulse::new(&self.at, fence_after());
        let after_ms = u64::try_from(fence_after().as_millis()).unwrap();
        let (mut believing, begun) = (Isolation::new(after_ms, 0), Instant::now());
        let mut states = self.at.watch();
        let mut has_stopped = false;
        loop {
            let mut isolated = None;
            tokio::select! {
                biased;
                is = pulse.changed(), if planted != Planted::Believes => isolated = Some(is),
                // One whose disk failed agrees on nothing any more, and is fenced off all the same.
                changed = states.changed(), if !has_stopped => has_stopped = changed.is_err(),
                () = sleep(EVERY) => {}
            }
            awake(&self.wires, self.own).await;
            if planted == Planted::Believes {
                let now_ms = u64::try_from(begun.elapsed().as_millis()).unwrap();
                if self.at.status().has_majority {
                    believing.answered(now_ms);
                }
                isolated = believing.look(now_ms);
            }
            let state = Arc::clone(&states.borrow_and_update());
            if !self.act(isolated, &state) {
                return;
            }
        }
    }

    /// Does what follows, at once. Says whether the node is still on.
    fn act(&mut self, isolated: Option<bool>, state: &State) -> bool {
        let (all, wires) = (Arc::clone(&self.all), Arc::clone(&self.wires));
        let (mut all, wires) = (all.lock().unwrap(), wires.lock().unwrap());
        if all.lives.get(&self.own) != Some(&self.life) {
            return false;
        }
        let present = state.nodes.iter();
        let present = present.map(|(node, m)| (*node, m.presence.current()));
        let Some(ties) = all.ties.get_mut(&self.own) else {
            return false;
        };
        if state.cluster.is_some() {
            ties.set_present(present.collect());
        }
        if let Some(isolated) = isolated {
            witness::trace(|| format!("{} is isolated: {isolated}", self.own));
            ties.set_isolated(isolated);
        }
        self.end(&mut all, &wires);
        let is_fenced = all.ties[&self.own].is_fenced();
        if is_fenced {
            self.come_back(&mut all, state);
        } else if let Some(since) = current(state, self.own) {
            for name in all.names.clone() {
                self.see_to(&mut all, &wires, state, &name, since);
            }
        }
        all.judge(&wires);
        true
    }

    /// Ends what this node hosts and should not.
    fn end(&self, all: &mut Processes, wires: &Wires) {
        let now = Instant::now();
        let mut guests = std::mem::take(&mut all.guests);
        for guest in guests.iter_mut().filter(|guest| guest.host == self.own) {
            let meets = is_open(wires, guest.home, self.own);
            let home_is_new = meets && all.lives.get(&guest.home) != Some(&guest.home_life);
            if (home_is_new || !all.is_bound(self.own, guest.home, guest.pair))
                && guest.ends.is_none()
            {
                let takes = Duration::from_millis(all.dice.below(ENDS_IN_MS));
                guest.ends = Some(now + takes);
                witness::trace(|| format!("{} ends {guest:?}", self.own));
            }
        }
        guests.retain(|guest| guest.host != self.own || guest.ends.is_none_or(|ends| ends > now));
        all.guests = guests;
    }

    /// Says that it is there, if it was declared dead and nothing is left of that time.
    fn come_back(&mut self, all: &mut Processes, state: &State) {
        let ended = state.nodes.get(&self.own).and_then(|m| m.presence.ended);
        let Some(ended) = ended else { return };
        let has_ended = all.guests.iter().all(|guest| guest.host != self.own);
        if has_ended && self.may_ask("back", ended) {
            witness::trace(|| format!("{} comes back after {ended}", self.own));
            let node = self.own;
            self.propose(Command::ComeBack { node, ended });
        }
    }

    /// Has `name` run, if that is for this node to do.
    fn see_to(
        &mut self,
        all: &mut Processes,
        wires: &Wires,
        state: &State,
        name: &str,
        since: u64,
    ) {
        let value = state.kv.get(name);
        let run = value.map_or(0, |v| v.revision);
        let place: Option<Place> = value.map(|v| serde_json::from_slice(&v.bytes).unwrap());
        let own = (self.own.get(), since);
        let over = match place {
            None => true,
            Some(place) => {
                let is = |(node, since)| current(state, n(node)) == Some(since);
                let may = if is(place.home) && is(place.host) {
                    // Its home knows when it has ended on a node it can reach.
                    place.home == own && self.has_ended(all, wires, place, run)
                } else {
                    let seen = *self.seen.entry(run).or_insert_with(Instant::now);
                    seen.elapsed() >= wait(all.planted)
                };
                if !may && place.home == own && place.life == self.life {
                    self.start(all, wires, name, run, place);
                }
                may
            }
        };
        if !over || !self.may_ask(name, run) {
            return;
        }
        let mut others: Vec<NodeId> = state.nodes.keys().copied().collect();
        others.retain(|node| *node != self.own && current(state, *node).is_some());
        if others.is_empty() {
            return;
        }
        let one = usize::try_from(all.dice.below(others.len() as u64)).unwrap();
        let host = others[one];
        witness::trace(|| format!("{} wants {name}, of {run} before, on {host}", self.own));
        let place = Place {
            home: own,
            host: (host.get(), current(state, host).unwrap()),
            life: self.life,
        };
        all.serial += 1;
        self.propose(Command::Kv(kv::Command {
            id: Unique(all.serial),
            after: state.kv.revision(),
            name: name.to_owned(),
            expected: Some(run),
            value: Some(serde_json::to_vec(&place).unwrap()),
        }));
    }

    /// Whether a process of this node that was started runs no more, for sure.
    fn has_ended(&self, all: &Processes, wires: &Wires, place: Place, run: u64) -> bool {
        let host = n(place.host.0);
        let meets = is_open(wires, self.own, host) && is_open(wires, host, self.own);
        let is_new = place.life != self.life;
        let ran = is_new || all.begun.contains(&run);
        meets && ran && all.guests.iter().all(|guest| guest.run != run)
    }

    /// Starts a process on the node where it is to run, if both are for it.
    fn start(&self, all: &mut Processes, wires: &Wires, name: &str, run: u64, place: Place) {
        let (home, host) = (self.own, n(place.host.0));
        let here = Pair {
            own: place.home.1,
            other: place.host.1,
        };
        let there = Pair {
            own: place.host.1,
            other: place.home.1,
        };
        let meets = is_open(wires, home, host) && is_open(wires, host, home);
        if all.begun.contains(&run)
            || !meets
            || !all.is_bound(home, host, here)
            || !all.is_bound(host, home, there)
        {
            return;
        }
        all.begun.insert(run);
        all.starts += 1;
        witness::trace(|| format!("{home} starts {name} of {run} on {host}: {here:?}"));
        all.guests.push(Guest {
            process: name.to_owned(),
            run,
            host,
            home,
            home_life: self.life,
            pair: there,
            ends: None,
        });
    }

    /// Whether it is time to ask for this again.
    fn may_ask(&mut self, name: &str, number: u64) -> bool {
        let (what, now) = ((name.to_owned(), number), Instant::now());
        let asked = self.asked.get(&what);
        let may = asked.is_none_or(|at| *at + Duration::from_secs(2) <= now);
        if may {
            self.asked.insert(what, now);
        }
        may
    }

    fn propose(&self, command: Command) {
        let at = self.at.clone();
        // What comes of it is seen in the state.
        tokio::spawn(async move { at.propose(command).await });
    }
}

/// Since when a node is present.
fn current(state: &State, node: NodeId) -> Option<u64> {
    state.nodes.get(&node)?.presence.current()
}

/// Whether something said by one arrives at the other, both being awake.
fn is_open(wires: &Wires, from: NodeId, to: NodeId) -> bool {
    let now = Instant::now();
    let is_awake = |node: &NodeId| wires.paused.get(node).is_none_or(|until| *until <= now);
    let is_on = |node: &NodeId| wires.nodes.contains_key(node);
    !wires.stopped.contains(&(from, to))
        && [from, to].iter().all(|node| is_awake(node) && is_on(node))
}
