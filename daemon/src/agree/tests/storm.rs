// SPDX-License-Identifier: MIT OR Apache-2.0

//! Clusters in bad weather: up to nine nodes that lose power, stand still, have clocks that jump and disks that
//! fail or lie; wires that lose, delay, repeat and stop messages in one direction; voters that change, machines
//! that join and are taken out, nodes that are declared dead and are not; all as a seed says.
//!
//! Each run draws how bad each fault is, as in TigerBeetle's VOPR, and stops wires one after the other
//! to heal them in another order, as in FoundationDB's swizzle-clogging. What must hold is looked at
//! all along; when all is healed everything must go on.
//!
//! The clock does not wait and all that is left to chance comes from the seed. In which order tokio wakes
//! those who watch the same value does so only if it is built with `--cfg tokio_unstable`, as `make soak-sim`
//! does: then a seed is the same run to the last entry, else it most often is.

mod people;
mod processes;
mod troubles;
mod weather;
pub(in crate::agree) mod witness;

use tokio::task::JoinSet;

use self::people::{Claims, Client};
use self::processes::Processes;
use self::troubles::Off;
use self::weather::{Trouble, Weather};
use self::witness::Witness;
use super::linear::{self, Seen};
use super::*;
use crate::agree::disk::faulty;
use crate::agree::lease::keep_time;
use crate::agree::runtime;
use crate::core::history::{Value, ValueOp, is_linear};

/// Steps of a run; between two of them something may go wrong.
const STEPS: u32 = 40;
/// Everybody agrees again within this when all is healed.
const WELL_IN: Duration = Duration::from_secs(120);
/// So many seeds are run if nobody says how many.
const FEW: u64 = 4;
/// Who comes reads and writes so often.
const VISITS: u64 = 5;
/// There are so many processes.
const PROCESSES: u16 = 4;

/// An error planted into a run, which must be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::agree) enum Planted {
    /// None.
    Nothing,
    /// A node that loses power comes back with what its disk had long ago.
    Forgets,
    /// Nobody looks whether checksums fit.
    Overlooks,
    /// Who waits for a lock has it as well.
    GivesTwice,
    /// Who lets a machine in does not wait for the others to agree.
    AdmitsAnyhow,
    /// Who takes a process over does not wait until its node has fenced itself off.
    FencesShort,
    /// What is read is what a node knows, without asking whether there is more.
    ReadsStale,
    /// A node believes that there is a majority if a leader says so, whenever that was.
    Believes,
}

struct Storm {
    cluster: Cluster,
    dice: Dice,
    weather: Weather,
    /// Machines that are nodes, and how often each was off.
    machines: BTreeMap<NodeId, u32>,
    /// Machines there were.
    count: u16,
    /// A node whose files are damaged. It stays off, and is to be taken out.
    damaged: Option<NodeId>,
    sure: BTreeMap<String, u64>,
    serial: u128,
    claims: Claims,
    /// What people read and wrote, and since when that is counted.
    seen: Arc<Mutex<Seen<ValueOp>>>,
    begun: Instant,
    visitors: JoinSet<()>,
    processes: processes::Shared,
    planted: Planted,
}

impl Storm {
    async fn begin(seed: u64, planted: Planted) -> Result<Self, String> {
        let mut dice = Dice(seed);
        let mut weather = Weather::draw(&mut dice);
        match planted {
            Planted::Overlooks => weather.only(&[Trouble::Flip]),
            Planted::Believes => weather.only(&[Trouble::Slow, Trouble::Suspect]),
            _ => {}
        }
        let mut storm = Self {
            cluster: Cluster::new(seed),
            processes: Processes::new(PROCESSES, seed, planted),
            dice,
            weather,
            machines: BTreeMap::new(),
            count: 1,
            damaged: None,
            sure: BTreeMap::new(),
            serial: 1 << 32,
            claims: Claims::default(),
            seen: Arc::default(),
            begun: Instant::now(),
            visitors: JoinSet::new(),
            planted,
        };
        storm.start(n(1), Unique(1)).await?;
        let first = storm.node(n(1));
        first.found().await.unwrap();
        let now_ms = storm.wires().wall(n(1)).now_ms();
        let founded = first.propose(people::founding(Unique(1), now_ms)).await;
        assert_eq!(
            founded.unwrap(),
            Outcome::Joined {
                node: n(1),
                epoch: 1
            }
        );
        // All at once.
        let mut joining = JoinSet::new();
        for _ in 1..storm.weather.first {
            let machine = storm.machine();
            joining.spawn(storm.join(n(1), machine));
        }
        while let Some(joined) = joining.join_next().await {
            let (machine, seat) = joined.unwrap();
            let (node, _) = seat.ok_or("a machine does not join")?;
            storm.start(node, machine).await?;
        }
        let (voters, learners) = storm.choose(n(1));
        first.set_members(voters, learners).await.unwrap();
        let nodes: Vec<NodeId> = storm.machines.keys().copied().collect();
        for node in nodes {
            let early = storm.early(node);
            faulty::lose_power(&storm.dir_of(node), &early, 0, 0);
        }
        {
            let w = &storm.weather;
            let mut wires = storm.cluster.wires.lock().unwrap();
            (wires.lost, wires.late_ms, wires.twice) = (w.lost, w.late_ms, w.twice);
        }
        faulty::CHECKS_ARE_SKIPPED.set(planted == Planted::Overlooks);
        Ok(storm)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.dice.below(n)
    }

    fn wires(&self) -> std::sync::MutexGuard<'_, Wires> {
        self.cluster.wires.lock().unwrap()
    }

    fn unique(&mut self) -> Unique {
        self.serial += 1;
        Unique(self.serial)
    }

    /// A machine that is no node yet.
    fn machine(&mut self) -> Unique {
        self.count += 1;
        Unique(self.count.into())
    }

    fn pause(&mut self) -> impl Future<Output = ()> + use<> {
        sleep(Duration::from_millis(
            self.dice.below(self.weather.pause_ms),
        ))
    }

    /// Some node that is on.
    fn any(&mut self) -> NodeId {
        let all: Vec<NodeId> = self.wires().nodes.keys().copied().collect();
        let which = usize::try_from(self.dice.below(all.len() as u64)).unwrap();
        all[which]
    }

    fn node(&self, node: NodeId) -> Agreement {
        self.wires().nodes[&node].clone()
    }

    fn dir_of(&self, node: NodeId) -> PathBuf {
        self.cluster.dir_of(node.get())
    }

    /// What the disk of a node had long ago.
    fn early(&self, node: NodeId) -> PathBuf {
        self.cluster.dir.path().join(format!("{node}.early"))
    }

    fn leader(&self) -> Option<(NodeId, Agreement)> {
        let nodes = self.wires().nodes.clone();
        let leads = |at: &Agreement| at.status().role == Role::Leader && at.status().has_majority;
        nodes.into_iter().find(|(_, at)| leads(at))
    }

    /// Has a node take part, with the files it has.
    async fn open(&mut self, node: NodeId) -> Result<(), Error> {
        let at = self.cluster.try_start(node.get()).await?;
        {
            let dir = self.dir_of(node);
            let mut wires = self.wires();
            wires.dirs.insert(node, dir);
            wires.nodes.insert(node, at.clone());
        }
        tokio::spawn(keep_time(at.clone()));
        processes::run(node, &at, &self.processes, &self.cluster.wires);
        Ok(())
    }

    /// A machine is a node now.
    async fn start(&mut self, node: NodeId, machine: Unique) -> Result<(), String> {
        witness::with(|witness| witness.seat(node, machine));
        Witness::verdict()?;
        self.machines.insert(node, 0);
        begin(&self.dir_of(node), node).map_err(|e| format!("{node} has files: {e}"))?;
        let opened = self.open(node).await;
        opened.map_err(|e| format!("{node} does not start: {e}"))
    }

    fn join(
        &self,
        by: NodeId,
        machine: Unique,
    ) -> impl Future<Output = (Unique, Option<(NodeId, u64)>)> + use<> {
        let (at, wires) = (self.node(by), Arc::clone(&self.cluster.wires));
        let planted = self.planted;
        async move { (machine, people::join(by, at, wires, machine, planted).await) }
    }

    /// Those whose disk failed take part no more. They are started again.
    async fn restart_failed(&mut self) -> Result<(), String> {
        let nodes = self.wires().nodes.clone();
        for (node, at) in nodes {
            let struck = faulty::struck(&self.dir_of(node));
            if struck.is_some() {
                // It sees that at once, but not before it has anything to do.
                sleep(Duration::from_millis(1)).await;
            }
            let stopped = at.status().role == Role::Stopped;
            match struck {
                Some((fault, file)) if !stopped && file.ends_with(log::NAME) => {
                    return Err(format!("{node} goes on, though its disk is {fault:?}"));
                }
                None if stopped => return Err(format!("{node} has stopped by itself")),
                _ => {}
            }
            if stopped {
                let how = [Off::Power, Off::Daemon][usize::try_from(self.below(2)).unwrap()];
                self.crash(node, how).await?;
            }
        }
        Ok(())
    }

    async fn step(&mut self, i: u32) -> Result<(), String> {
        if let Some(trouble) = self.weather.next(&mut self.dice) {
            self.meet(trouble).await?;
        }
        self.restart_failed().await?;
        if self.below(2) == 0 {
            self.want_lock();
        }
        if self.below(3) == 0 {
            self.visit();
        }
        let mut asked = JoinSet::new();
        for j in 0..2 {
            let by = self.any();
            let by = self.node(by);
            let name = format!("{i}.{j}");
            let put = kv::Command {
                id: self.unique(),
                ..wish(&name, None, &name)
            };
            asked.spawn(async move {
                let outcome = by.propose(Command::Kv(put)).await;
                (name, outcome)
            });
        }
        while let Some(done) = asked.join_next().await {
            let (name, outcome) = done.map_err(|e| e.to_string())?;
            match outcome {
                Ok(Outcome::Kv(kv::Outcome::Done { revision })) => {
                    self.sure.insert(name, revision);
                }
                Err(Error::Unknown | Error::Unavailable | Error::Stopped) => {}
                other => return Err(format!("{name}: {other:?}")),
            }
        }
        self.pause().await;
        self.look()
    }

    fn want_lock(&mut self) {
        let node = self.any();
        let client = Client {
            node,
            dir: self.dir_of(node),
            at: self.node(node),
            session: self.unique(),
            claims: Arc::clone(&self.claims),
            dice: Dice(self.below(u64::MAX - 1) + 1),
        };
        tokio::spawn(client.run());
    }

    /// Somebody reads and writes a few values, on any nodes.
    fn visit(&mut self) {
        let visitor = linear::Client::<ValueOp> {
            wires: Arc::clone(&self.cluster.wires),
            keepers: linear::Keepers::default(),
            begun: self.begun,
            seen: Arc::clone(&self.seen),
            dice: Dice(self.below(u64::MAX - 1) + 1),
        };
        self.visitors.spawn(visitor.some(VISITS));
    }

    /// What they saw is what they could have seen of one machine.
    async fn judge_visits(&mut self) -> Result<(), String> {
        while let Some(ended) = self.visitors.join_next().await {
            ended.map_err(|e| e.to_string())?;
        }
        for (name, events) in &self.seen.lock().unwrap().events {
            if !is_linear::<Value>(events) {
                return Err(format!("{name} is not as of one machine: {events:?}"));
            }
        }
        Ok(())
    }

    fn look(&mut self) -> Result<(), String> {
        let wires = self.wires();
        witness::with(|witness| {
            for (node, at) in &wires.nodes {
                witness.look(*node, &at.status());
            }
        });
        for at in wires.nodes.values() {
            people::judge(&self.claims, &wires, &at.watch().borrow());
        }
        Witness::verdict()
    }

    /// All is healed: everybody agrees again, on all that was acknowledged.
    async fn clear_up(&mut self) -> Result<(), String> {
        {
            let mut wires = self.wires();
            (wires.lost, wires.late_ms, wires.twice) = (0, 5, 0);
            wires.stopped.clear();
            wires.slow.clear();
            for until in wires.paused.values_mut() {
                *until = Instant::now().min(*until);
            }
        }
        let nodes: Vec<NodeId> = self.wires().nodes.keys().copied().collect();
        for node in &nodes {
            faulty::heal(&self.dir_of(*node));
        }
        sleep(Duration::from_secs(1)).await;
        self.restart_failed().await?;
        timeout(WELL_IN, self.well())
            .await
            .map_err(|_| format!("not well again: {}", self.plight()))??;
        timeout(WELL_IN, self.judge_visits())
            .await
            .map_err(|_| "somebody is not answered".to_owned())??;
        self.look()?;
        for (node, at) in &self.wires().nodes {
            let state = Arc::clone(&at.watch().borrow());
            for (name, revision) in &self.sure {
                let is = state.kv.get(name).map(|v| v.revision);
                if is != Some(*revision) {
                    return Err(format!("{node} has {name} of {is:?}, not {revision}"));
                }
            }
        }
        Ok(())
    }

    /// How all stand.
    fn plight(&self) -> String {
        let damaged = self.damaged.map(|node| format!("{node} is damaged, "));
        let wires = self.wires();
        let all: Vec<_> = wires.nodes.iter().map(|(n, at)| (n, at.status())).collect();
        let heard = wires.nodes.iter().filter(|(_, at)| {
            let state = Arc::clone(&at.watch().borrow());
            state.kv.get("last").is_some()
        });
        let heard: Vec<_> = heard.map(|(n, _)| n).collect();
        format!(
            "{}last is known to {heard:?}, {all:?}",
            damaged.unwrap_or_default()
        )
    }

    /// Waits until all nodes there should be are members, and know what was said last.
    async fn well(&mut self) -> Result<(), String> {
        let again = Duration::from_millis(500);
        while self.damaged.is_some() {
            self.remove().await?;
            sleep(again).await;
        }
        loop {
            self.change_voters().await;
            let asked = self.any();
            let asked = self.node(asked);
            if asked.propose(put("last", "last")).await.is_ok() {
                break;
            }
            sleep(again).await;
        }
        let mut all: BTreeSet<NodeId> = self.machines.keys().copied().collect();
        while !all.is_empty() {
            self.restart_failed().await?;
            let members = self.leader().map(|(_, at)| at.status());
            let members = members.map(|s| s.voters.union(&s.learners).copied().collect());
            if members.is_none_or(|members: BTreeSet<NodeId>| !all.is_subset(&members)) {
                self.change_voters().await;
            }
            all.retain(|node| {
                let at = self.wires().nodes.get(node).cloned();
                at.is_none_or(|at| at.watch().borrow().kv.get("last").is_none())
            });
            sleep(again).await;
        }
        Ok(())
    }
}

/// What a run was.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    trace: u64,
    starts: u64,
}

/// One run; an error is what must not be.
fn storm(seed: u64, planted: Planted) -> Result<Run, String> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().start_paused(true);
    #[cfg(tokio_unstable)]
    runtime.rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes()));
    let runtime = runtime.build().unwrap();
    runtime::seed(seed);
    faulty::clear();
    witness::begin(planted);
    READS_ARE_STALE.set(planted == Planted::ReadsStale);
    let starts = runtime.block_on(async {
        let mut storm = Storm::begin(seed, planted).await?;
        for i in 0..STEPS {
            storm.step(i).await?;
        }
        storm.clear_up().await?;
        let nodes = storm.wires().nodes.clone();
        for node in nodes.into_values() {
            node.stop().await;
        }
        let starts = storm.processes.lock().unwrap().starts;
        Ok(starts)
    });
    faulty::CHECKS_ARE_SKIPPED.set(false);
    READS_ARE_STALE.set(false);
    let seen = witness::end();
    starts.map(|starts: u64| Run {
        trace: seen.trace(),
        starts,
    })
}

/// Small numbers have few bits for the dice to begin with.
fn spread(seed: u64) -> u64 {
    seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|n| n.parse().ok())
}

/// Runs seeds, on as many threads as there are processors. Returns those that went wrong, and how many
/// processes were started in the others.
fn run(seeds: std::ops::RangeInclusive<u64>) -> (Vec<u64>, u64) {
    let processors = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let threads = number("STORM_THREADS").unwrap_or(processors).max(1);
    let (next, end) = (AtomicU64::new(*seeds.start()), *seeds.end());
    let (bad, starts) = (Mutex::new(Vec::new()), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > end {
                        return;
                    }
                    match storm(spread(seed), Planted::Nothing) {
                        Ok(run) => drop(starts.fetch_add(run.starts, Ordering::Relaxed)),
                        Err(why) => {
                            eprintln!("STORM_SEED={seed}: {why}");
                            bad.lock().unwrap().push(seed);
                        }
                    }
                    if seed % 500 == 0 {
                        eprintln!("storms: {seed}");
                    }
                }
            });
        }
    });
    (bad.into_inner().unwrap(), starts.into_inner())
}

#[test]
fn nothing_is_lost_in_a_storm() {
    let first = number("STORM_SEED");
    let count = number("STORM_SEEDS").unwrap_or(if first.is_some() { 1 } else { FEW });
    let first = first.unwrap_or(1);
    let (bad, starts) = run(first..=first + count - 1);
    assert!(bad.is_empty(), "seeds that went wrong: {bad:?}");
    // Processes that are never started again cannot run twice.
    let once = count * u64::from(PROCESSES);
    assert!(count < FEW || starts > once, "{starts} of {once}");
}

/// One of so many seeds finds the error, and says so with one of these words.
fn finds(planted: Planted, seeds: u64, words: &[&str]) {
    let found = (1..=seeds).find_map(|seed| storm(spread(seed), planted).err());
    let found = found.expect("no seed finds it");
    println!("found: {found}");
    assert!(words.iter().any(|word| found.contains(word)), "{found}");
}

#[test]
fn a_disk_that_forgets_is_found() {
    finds(
        Planted::Forgets,
        60,
        &["not well", "another", "lead", "has"],
    );
}

#[test]
fn damage_that_is_overlooked_is_found() {
    finds(Planted::Overlooks, 60, &["is damaged, and used"]);
}

#[test]
fn a_lock_that_is_given_twice_is_found() {
    finds(Planted::GivesTwice, 60, &["two holders"]);
}

#[test]
fn a_read_that_asks_nobody_is_found() {
    finds(Planted::ReadsStale, 60, &["as of one machine"]);
}

#[test]
fn a_number_that_is_given_twice_is_found() {
    finds(Planted::AdmitsAnyhow, 60, &["two machines"]);
}

#[test]
#[ignore = "it takes many storms: make soak-sim"]
fn a_fence_that_is_too_short_is_found() {
    finds(Planted::FencesShort, 3000, &["runs on"]);
}

#[test]
#[ignore = "it takes many storms: make soak-sim"]
fn a_node_that_believes_old_words_is_found() {
    finds(Planted::Believes, 3000, &["runs on"]);
}

#[cfg(tokio_unstable)]
#[test]
fn a_seed_is_a_run() {
    for seed in 1..=3 {
        let [one, other] = [(); 2].map(|()| storm(spread(seed), Planted::Nothing).unwrap());
        assert_eq!(one, other, "seed {seed}");
    }
}
