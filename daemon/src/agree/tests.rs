// SPDX-License-Identifier: MIT OR Apache-2.0

//! Nodes in one process, with wires that are cut and lose answers, on a clock that does not wait.

mod hostile;
mod keeper;
mod linear;
mod overload;
mod recovery;
mod storm;
mod wall;
mod wires;

use std::cell::Cell;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use self::wires::{Dice, LOOKS_UP_IN, Wire, Wires, awake};
use super::carrier::{Answer, NoAnswer};
use super::*;
use crate::core::facts::Facts;
use crate::core::hash::Hash;
use crate::core::kv;
use crate::core::offence::Offence;
use crate::core::state::{Candidate, Unique};

pub(super) use self::storm::witness::{followed, saw, twist};

thread_local! {
    /// Plants an error: a node says what it knows, without asking whether there is more.
    pub(super) static READS_ARE_STALE: Cell<bool> = const { Cell::new(false) };
}

struct Cluster {
    dir: TempDir,
    wires: Arc<Mutex<Wires>>,
    timing: Timing,
}

/// Whatever happened, nobody was accused who does not lie. One whose disk forgets may make two entries of one
/// number; it is not honest, if not by its own fault.
impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let mut all = self.wires.lock().unwrap();
        // They hold the wires, and the wires them: their files would stay open.
        let nodes = std::mem::take(&mut all.nodes);
        for (by, node, offence) in &all.offences {
            let is_known = all.liars.contains(node) || *offence == Offence::TwoEntries;
            assert!(is_known, "{by} accuses {node} of {offence}");
        }
        drop(all);
        drop(nodes);
    }
}

fn n(node: u16) -> NodeId {
    NodeId::new(node).unwrap()
}

fn set(nodes: &[u16]) -> BTreeSet<NodeId> {
    nodes.iter().map(|i| n(*i)).collect()
}

fn put(name: &str, text: &str) -> Command {
    Command::Kv(wish(name, None, text))
}

fn wish(name: &str, expected: Option<u64>, text: &str) -> kv::Command {
    static WISHES: AtomicU64 = AtomicU64::new(0);
    kv::Command {
        id: Unique(WISHES.fetch_add(1, Ordering::Relaxed).into()),
        after: 0,
        name: name.to_owned(),
        expected,
        value: Some(text.as_bytes().to_vec()),
    }
}

fn candidate(node: u16) -> Candidate {
    Candidate {
        node: n(node),
        name: format!("n{node}"),
        addr: SocketAddr::from(([10, 0, 0, 1], 7400 + node)),
        fingerprint: Hash::of(&node.to_le_bytes()),
        ends_ms: None,
        facts: Facts {
            kernel: "7.3.4".to_owned(),
            ..Facts::default()
        },
        nonce: Unique(node.into()),
    }
}

/// A node joins the cluster of [`formation`].
fn join(node: u16) -> Command {
    Command::Join {
        token: "t".to_owned(),
        secret: Hash::of(b"secret"),
        candidate: candidate(node),
        generation: 0,
        now_ms: 1,
    }
}

/// Three nodes form a cluster.
fn formation() -> Vec<Command> {
    vec![
        Command::Found {
            name: "here".to_owned(),
            id: Unique(1),
            ca: "authority".to_owned(),
            sealed_key: vec![1],
            first: candidate(1),
            now_ms: 0,
        },
        Command::AddToken {
            id: "t".to_owned(),
            secret: Hash::of(b"secret"),
            expires_ms: 1000,
            made_by_uid: 0,
            uses: 9,
            now_ms: 0,
        },
        join(2),
        join(3),
    ]
}

fn text(state: &State, name: &str) -> String {
    String::from_utf8(state.kv.get(name).unwrap().bytes.to_vec()).unwrap()
}

impl Cluster {
    fn new(seed: u64) -> Self {
        // In memory if that can be: nothing here is to outlive the test.
        let ram = ["/dev/shm".into(), std::env::temp_dir()];
        let ram = ram.into_iter().find(|dir| dir.is_dir()).unwrap();
        Self {
            dir: tempfile::tempdir_in(ram).unwrap(),
            wires: Arc::new(Mutex::new(Wires {
                nodes: BTreeMap::new(),
                cut: BTreeSet::new(),
                silent: BTreeSet::new(),
                apart: BTreeSet::new(),
                stopped: BTreeSet::new(),
                slow: BTreeMap::new(),
                paused: BTreeMap::new(),
                lost: 0,
                twice: 0,
                late_ms: 20,
                dirs: BTreeMap::new(),
                walls: BTreeMap::new(),
                snapshots: 0,
                hiding: BTreeSet::new(),
                offences: Vec::new(),
                liars: BTreeSet::new(),
                dice: Dice(seed),
            })),
            timing: Timing {
                snapshot_entries: 20,
                ..Timing::default()
            },
        }
    }

    fn dir_of(&self, node: u16) -> PathBuf {
        let moved = self.wires.lock().unwrap().dirs.get(&n(node)).cloned();
        moved.unwrap_or_else(|| self.dir.path().join(node.to_string()))
    }

    async fn try_start(&self, node: u16) -> Result<Agreement, Error> {
        let dir = self.dir_of(node);
        let wire = Wire {
            own: n(node),
            dir: dir.clone(),
            all: Arc::clone(&self.wires),
        };
        Agreement::open(&dir, n(node), Arc::new(wire), self.timing).await
    }

    async fn start(&self, node: u16) -> Agreement {
        let dir = self.dir_of(node);
        if !dir.exists() {
            begin(&dir, n(node)).unwrap();
        }
        let started = self.try_start(node).await.unwrap();
        let mut wires = self.wires.lock().unwrap();
        wires.nodes.insert(n(node), started.clone());
        started
    }

    async fn stop(&self, node: u16) {
        let stopped = self.wires.lock().unwrap().nodes.remove(&n(node));
        stopped.unwrap().stop().await;
    }

    fn cut(&self, nodes: &[u16]) {
        self.wires.lock().unwrap().cut = set(nodes);
    }

    /// Three voters, the first of which leads.
    async fn three(seed: u64) -> (Self, Vec<Agreement>) {
        let cluster = Self::new(seed);
        let mut all = Vec::new();
        for node in 1..=3 {
            all.push(cluster.start(node).await);
        }
        all[0].found().await.unwrap();
        let voters = set(&[1, 2, 3]);
        all[0].set_members(voters, set(&[])).await.unwrap();
        (cluster, all)
    }

    /// As [`Self::three`], and agreed on who they are: each is there since the epoch of its number.
    async fn three_members(seed: u64) -> (Self, Vec<Agreement>) {
        let (cluster, all) = Self::three(seed).await;
        for command in formation() {
            let outcome = all[0].propose(command).await.unwrap();
            assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
        }
        for node in &all {
            node.read().await.unwrap();
        }
        (cluster, all)
    }

    /// Asserts that nobody was accused of anything.
    fn assert_honest(&self) {
        assert_eq!(self.wires.lock().unwrap().offences, []);
    }
}

#[tokio::test(start_paused = true)]
async fn one_founds_and_has_it_after_a_restart() {
    let cluster = Cluster::new(1);
    let one = cluster.start(1).await;
    assert!(matches!(
        one.propose(put("a", "0")).await,
        Err(Error::Unavailable)
    ));
    one.found().await.unwrap();
    assert!(matches!(one.found().await, Err(Error::Founded)));
    let done = Outcome::Kv(kv::Outcome::Done { revision: 1 });
    assert_eq!(one.propose(put("a", "1")).await.unwrap(), done);
    let swap = Command::Kv(wish("a", Some(0), "2"));
    let differs = kv::Refusal::Differs { revision: 1 };
    let differs = Outcome::Kv(kv::Outcome::Refused(differs));
    assert_eq!(one.propose(swap).await.unwrap(), differs);
    assert_eq!(text(&one.watch().borrow(), "a"), "1");
    assert!(matches!(cluster.try_start(1).await, Err(Error::InUse(_))));
    let long = put("a", &"x".repeat(carrier::MAX_COMMAND_BYTES));
    assert!(matches!(one.propose(long).await, Err(Error::TooLong(_))));
    cluster.stop(1).await;
    let refused = one.propose(put("a", "3")).await;
    assert!(matches!(refused, Err(Error::Stopped)));

    let one = cluster.start(1).await;
    assert_eq!(text(&one.read().await.unwrap(), "a"), "1");
    assert!(matches!(one.found().await, Err(Error::Founded)));
    let status = one.status();
    assert_eq!((status.role, status.leader), (Role::Leader, Some(n(1))));
    assert!(status.has_majority);
    cluster.stop(1).await;

    fs::rename(cluster.dir_of(1), cluster.dir_of(2)).unwrap();
    let foreign = cluster.try_start(2).await;
    assert!(matches!(
        foreign,
        Err(Error::Disk(disk::Error::Foreign { node: 1, .. }))
    ));
}

#[tokio::test(start_paused = true)]
async fn a_learner_catches_up_from_a_snapshot_and_votes() {
    let cluster = Cluster::new(2);
    let one = cluster.start(1).await;
    one.found().await.unwrap();
    for i in 0..100 {
        one.propose(put(&i.to_string(), "x")).await.unwrap();
    }
    let two = cluster.start(2).await;
    one.set_members(set(&[1]), set(&[2])).await.unwrap();
    assert_eq!(two.read().await.unwrap().kv.list("").count(), 100);
    assert!(cluster.wires.lock().unwrap().snapshots > 0);
    assert_eq!(two.status().role, Role::Learner);
    two.propose(put("by-two", "x")).await.unwrap();
    for _ in 0..2 {
        one.set_members(set(&[1, 2]), set(&[])).await.unwrap();
    }
    assert_eq!(two.read().await.unwrap().kv.list("").count(), 101);
    let status = two.status();
    assert_eq!((status.role, status.voters), (Role::Follower, set(&[1, 2])));
    let refused = two.set_members(set(&[2]), set(&[])).await;
    assert!(matches!(refused, Err(Error::NotLeader(Some(l))) if l == n(1)));
    let refused = one.set_members(set(&[]), set(&[])).await;
    assert!(matches!(refused, Err(Error::NoVoter)));
    one.set_members(set(&[1]), set(&[])).await.unwrap();
    assert_eq!(one.status().voters, set(&[1]));
    assert_eq!(one.status().learners, set(&[]));
}

#[tokio::test(start_paused = true)]
async fn others_go_on_without_the_leader() {
    let (cluster, all) = Cluster::three(3).await;
    all[2].propose(put("a", "1")).await.unwrap();
    cluster.stop(1).await;
    all[1].propose(put("b", "2")).await.unwrap();
    let state = all[2].read().await.unwrap();
    assert_eq!(text(&state, "a") + &text(&state, "b"), "12");
    let one = cluster.start(1).await;
    assert_eq!(one.read().await.unwrap(), state);
}

#[tokio::test(start_paused = true)]
async fn a_minority_refuses_within_bounded_time() {
    let (cluster, all) = Cluster::three(4).await;
    all[0].propose(put("a", "1")).await.unwrap();
    cluster.cut(&[1]);
    let begun = Instant::now();
    // It does not know yet that it is alone.
    let e = all[0].propose(put("a", "2")).await.unwrap_err();
    assert!(matches!(e, Error::Unknown), "{e}");
    let e = all[0].propose(put("a", "3")).await.unwrap_err();
    assert!(matches!(e, Error::Unavailable), "{e}");
    let e = all[0].read().await.unwrap_err();
    assert!(matches!(e, Error::Unavailable), "{e}");
    assert!(!all[0].status().has_majority);
    assert!(begun.elapsed() < Duration::from_secs(60));
    all[1].propose(put("b", "1")).await.unwrap();
    cluster.cut(&[]);
    let state = all[0].read().await.unwrap();
    assert_eq!(text(&state, "a") + &text(&state, "b"), "11");
}

#[tokio::test(start_paused = true)]
async fn who_only_hears_a_leader_that_is_cut_off_is_cut_off() {
    let (cluster, all) = Cluster::three(8).await;
    let four = cluster.start(4).await;
    all[0]
        .set_members(set(&[1, 2, 3]), set(&[4]))
        .await
        .unwrap();
    all[0].propose(put("a", "1")).await.unwrap();
    sleep(Duration::from_secs(5)).await;
    let stand = || [&all[0], &all[1], &all[2], &four].map(|n| n.status().has_majority);
    assert_eq!(stand(), [true; 4]);
    cluster.wires.lock().unwrap().apart = set(&[1, 4]);
    sleep(Duration::from_secs(30)).await;
    assert_eq!(stand(), [false, true, true, false]);
    // It leads on, and is heard: that is no majority.
    assert_eq!(all[0].status().role, Role::Leader);
    cluster.wires.lock().unwrap().apart.clear();
    sleep(Duration::from_secs(30)).await;
    assert_eq!(stand(), [true; 4]);
}

#[tokio::test(start_paused = true)]
async fn all_start_again_from_their_disks() {
    let (cluster, all) = Cluster::three(5).await;
    for i in 0..50 {
        all[i % 3].propose(put(&i.to_string(), "x")).await.unwrap();
    }
    for node in 1..=3 {
        cluster.stop(node).await;
    }
    for node in 1..=3 {
        cluster.start(node).await;
    }
    let two = cluster.wires.lock().unwrap().nodes[&n(2)].clone();
    assert_eq!(two.read().await.unwrap().kv.list("").count(), 50);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_or_missing_file_is_an_error_that_names_it() {
    let cluster = Cluster::new(6);
    let one = cluster.start(1).await;
    one.found().await.unwrap();
    for i in 0..50 {
        one.propose(put(&i.to_string(), "x")).await.unwrap();
    }
    cluster.stop(1).await;
    for name in [log::NAME, machine::NAME] {
        let path = cluster.dir_of(1).join(name);
        let whole = fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        bytes[whole.len() / 2] ^= 4;
        fs::write(&path, &bytes).unwrap();
        let e = cluster.try_start(1).await.err().unwrap();
        let said = format!("{:#}", anyhow::Error::from(e));
        assert!(said.contains(path.to_str().unwrap()), "{said}");
        fs::remove_file(&path).unwrap();
        let e = cluster.try_start(1).await.err().unwrap();
        let said = format!("{:#}", anyhow::Error::from(e));
        let log = cluster.dir_of(1).join(log::NAME);
        assert!(said.contains(log.to_str().unwrap()), "{said}");
        fs::write(&path, &whole).unwrap();
    }
    // Nor does it begin anew when all is gone, and nothing else may have it do so.
    let (dir, away) = (cluster.dir_of(1), cluster.dir.path().join("away"));
    fs::rename(&dir, &away).unwrap();
    let e = cluster.try_start(1).await.err().unwrap();
    assert!(matches!(e, Error::Disk(disk::Error::Missing { .. })), "{e}");
    fs::remove_dir_all(&dir).unwrap();
    fs::rename(&away, &dir).unwrap();
    assert!(matches!(begin(&dir, n(1)), Err(Error::Disk(_))));
    let one = cluster.start(1).await;
    assert_eq!(one.read().await.unwrap().kv.list("").count(), 50);
}

/// Cuts, lost answers and restarts, after which all must be there that was acknowledged.
async fn trouble(seed: u64) {
    let (cluster, _) = Cluster::three(seed).await;
    let mut dice = Dice(seed);
    let mut sure = BTreeMap::new();
    cluster.wires.lock().unwrap().lost = 5;
    for i in 0..60_u32 {
        let node = u16::try_from(dice.below(3)).unwrap() + 1;
        match dice.below(12) {
            0 => {
                cluster.stop(node).await;
                cluster.start(node).await;
            }
            1 => cluster.cut(&[node]),
            2 | 3 => cluster.cut(&[]),
            _ => {}
        }
        let by = cluster.wires.lock().unwrap().nodes[&n(node)].clone();
        let (name, text) = (format!("k{}", dice.below(1000)), i.to_string());
        // A name is only used once more if nobody knows what became of it.
        if sure.contains_key(&name) {
            continue;
        }
        match by.propose(put(&name, &text)).await {
            Ok(_) => drop(sure.insert(name, text)),
            Err(Error::Unknown | Error::Unavailable) => {}
            Err(e) => panic!("{e}"),
        }
    }
    cluster.cut(&[]);
    cluster.wires.lock().unwrap().lost = 0;
    let nodes: Vec<Agreement> = {
        let wires = cluster.wires.lock().unwrap();
        wires.nodes.values().cloned().collect()
    };
    let mut states = Vec::new();
    for node in &nodes {
        states.push(node.read().await.unwrap());
    }
    cluster.assert_honest();
    assert!(!sure.is_empty());
    assert!(states.iter().all(|s| *s == states[0]));
    for name in sure.keys() {
        assert!(states[0].kv.get(name).is_some(), "{name} of seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_stops_has_another_lead() {
    let (cluster, all) = Cluster::three(12).await;
    all[0].propose(put("a", "1")).await.unwrap();
    all[1].hand_over().await;
    assert_eq!(all[0].status().role, Role::Leader, "only who leads can");
    all[0].hand_over().await;
    cluster.stop(1).await;
    let start = Instant::now();
    all[1].propose(put("b", "1")).await.unwrap();
    // Else nobody leads before the others have found out.
    let least = Duration::from_millis(cluster.timing.election_min_ms);
    assert!(start.elapsed() < least / 2, "{:?}", start.elapsed());
    assert!(all[1..].iter().any(|at| at.status().role == Role::Leader));
    // One that votes alone has nobody to hand it to.
    let alone = Cluster::new(1);
    let one = alone.start(1).await;
    one.found().await.unwrap();
    one.hand_over().await;
    one.propose(put("a", "1")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_leader_that_is_gone_asks_the_next() {
    let (cluster, all) = Cluster::three(13).await;
    all[0].propose(put("a", "1")).await.unwrap();
    cluster.wires.lock().unwrap().silent = set(&[1]);
    let start = Instant::now();
    let (id, value) = (Unique(1), Some(b"1".to_vec()));
    let written = all[1].write(id, "b".to_owned(), None, value).await;
    assert!(
        matches!(written, Ok(kv::Outcome::Done { .. })),
        "{written:?}"
    );
    let most = 2 * Duration::from_millis(cluster.timing.election_max_ms);
    assert!(start.elapsed() < most, "{:?}", start.elapsed());
    all[1].read().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn nothing_acknowledged_is_lost_in_trouble() {
    for seed in 1..=3 {
        trouble(seed * 0x9e37_79b9).await;
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_speaks_for_another_and_garbage_is_refused() {
    let (cluster, all) = Cluster::three(7).await;
    cluster.wires.lock().unwrap().liars = set(&[2, 3, 4]);
    let bad =
        |bytes: &[u8]| carrier::decode::<serde_json::Value>(bytes).unwrap()["refused"] == "bad";
    let vote = br#"{"vote":{"vote":{"leader_id":{"term":99,"voted_for":2},"committed":false},"last_log_id":null}}"#;
    assert!(bad(&all[0].serve(n(3), vote).await));
    assert!(!bad(&all[0].serve(n(2), vote).await));
    let long = vec![b' '; carrier::MAX_MESSAGE_BYTES + 1];
    assert!(bad(&all[0].serve(n(2), &long).await));
    let mut dice = Dice(11);
    for i in 0..500 {
        let mut bytes = vote.to_vec();
        if i % 2 == 0 {
            let at = usize::try_from(dice.below(bytes.len() as u64)).unwrap();
            bytes[at] = u8::try_from(dice.below(256)).unwrap();
        } else {
            bytes = (0..dice.below(100))
                .map(|_| u8::try_from(dice.below(256)).unwrap())
                .collect();
        }
        // It is from one that may not vote so, whatever it is.
        assert!(bad(&all[0].serve(n(4), &bytes).await) || bytes.len() == vote.len());
    }
    all[1].propose(put("a", "1")).await.unwrap();
    drop(cluster);
}
