// SPDX-License-Identifier: MIT OR Apache-2.0

//! One small state that all nodes of a cluster agree on, whoever of them is lost: Ongaro and
//! Ousterhout, "In Search of an Understandable Consensus Algorithm", 2014, as openraft does it.
//!
//! Changes are entries of a log ([`log`]), which a majority has on its disks before anybody is told
//! that one was made; the state ([`machine`]) is what comes of them. Who leads decides on their
//! order; any node takes a change and brings it there ([`carrier`]).

mod accusation;
pub mod carrier;
pub mod disk;
mod guard;
mod heed;
pub mod keeper;
pub mod lease;
pub mod log;
pub mod machine;
mod members;
mod propose;
pub mod pulse;
mod recall;
pub mod recovery;
mod runtime;
mod serve;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver;
use openraft::error::{InitializeError, RaftError};
use openraft::{Config, EmptyNode, ServerState, SnapshotPolicy, alias};
use serde::{Deserialize, Serialize};
use ssi::id::NodeId;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use self::carrier::{Carrier, Links, Refusal};
use self::log::{Failed, Log};
use self::machine::Machine;
use self::recall::Recall;
use self::runtime::Runtime;
use crate::core::state::{self, Command, Outcome, State};

/// A command on its way through the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Change(pub Command);

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

openraft::declare_raft_types!(
    /// What openraft is to work with.
    pub Types:
        D = Change,
        R = Outcome,
        NodeId = u64,
        Node = EmptyNode,
        // As in the paper: one leader in a term.
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
        AsyncRuntime = Runtime,
);

type Metrics = openraft::RaftMetrics<Types>;
type Raft = openraft::Raft<Types, Machine>;
type Entry = alias::EntryOf<Types>;
type LogId = alias::LogIdOf<Types>;
type Vote = alias::VoteOf<Types>;
type SnapshotMeta = alias::SnapshotMetaOf<Types>;
type Snapshot = alias::SnapshotOf<Types, Arc<State>>;
type StoredMembership = alias::StoredMembershipOf<Types>;

/// A snapshot is not sent for longer.
const SNAPSHOT_WITHIN_MS: u64 = 30_000;
/// Pause before the leader is looked for again.
const AGAIN_MS: u64 = 50;
/// Nobody waits longer for another to lead.
const HANDED_OVER_IN: Duration = Duration::from_secs(1);
/// Changes and reads that another is asked for at once: half of what one answers at once.
const MAX_ASKED: usize = 32;
/// Name of the file that is locked while the directory is in use.
const LOCK: &str = "lock";

fn raft_id(node: NodeId) -> u64 {
    node.get().into()
}

fn node_of(id: u64) -> Option<NodeId> {
    u16::try_from(id).ok().and_then(NodeId::new)
}

/// How long things take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// The leader is heard of so often, in milliseconds.
    pub heartbeat_ms: u64,
    /// A node that has not heard of a leader for so long, in milliseconds, wants to be one,
    pub election_min_ms: u64,
    /// or for so long; and it votes for no other before so long.
    pub election_max_ms: u64,
    /// A majority not heard of for so long, in milliseconds, is not there. An election is over before that, if the
    /// wires and the voters are not slow.
    pub majority_ms: u64,
    /// A proposal, a read or a change of members is given up after so long, in milliseconds.
    pub answer_ms: u64,
    /// After so many entries a snapshot is made, and the entries go.
    pub snapshot_entries: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat_ms: 500,
            election_min_ms: 1000,
            election_max_ms: 2000,
            majority_ms: 4000,
            answer_ms: 15_000,
            snapshot_entries: 1000,
        }
    }
}

impl Timing {
    fn config(self) -> Config {
        Config {
            cluster_name: "unum".to_owned(),
            heartbeat_interval: self.heartbeat_ms,
            heartbeat_min_interval: Some(0),
            election_timeout_min: self.election_min_ms,
            election_timeout_max: self.election_max_ms,
            install_snapshot_timeout: SNAPSHOT_WITHIN_MS,
            max_payload_entries: carrier::MAX_ENTRIES,
            max_append_entries: Some(carrier::MAX_ENTRIES),
            replication_lag_threshold: self.snapshot_entries,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_entries),
            max_in_snapshot_log_to_keep: self.snapshot_entries / 10,
            enable_pre_vote: Some(true),
            // The others may have entries that it lost with the power: it must not lead on in the same reign.
            enable_leader_restore: Some(false),
            ..Config::default()
        }
    }

    fn majority(self) -> Duration {
        Duration::from_millis(self.majority_ms)
    }

    /// A node that no majority answered for so long fences itself off, if one that is silent for
    /// `dead_after` seems dead: the others may have needed two elections meanwhile.
    pub fn fence_after(self, dead_after: Duration) -> Duration {
        dead_after + 2 * self.majority()
    }

    fn answer(self) -> Duration {
        Duration::from_millis(self.answer_ms)
    }
}

/// Nothing is agreed on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log cannot be kept or read.
    #[error("cannot keep the agreed log")]
    Disk(#[source] disk::Error),
    /// The log and the snapshot of a node do not fit together.
    #[error(
        "{path} has no entries before {purged}, and no snapshot has them; this node cannot go on: see \"A node does not start\" in cluster.md"
    )]
    Gap {
        /// The log.
        path: std::path::PathBuf,
        /// Number of the last entry that is gone.
        purged: u64,
    },
    /// Another process has the directory.
    #[error("another ssid uses {0}")]
    InUse(std::path::PathBuf),
    /// The times make no sense.
    #[error("the times of the agreement make no sense: {0}")]
    Timing(String),
    /// The node is of a cluster already.
    #[error("this node has a cluster already")]
    Founded,
    /// The command is longer than [`carrier::MAX_COMMAND_BYTES`].
    #[error("the command is of {0} bytes, which is too long")]
    TooLong(usize),
    /// It did not happen: there is no majority, or none that can be reached.
    #[error("no majority of the cluster can be reached: nothing was changed")]
    Unavailable,
    /// It may have happened, or may yet.
    #[error("the leader was lost on the way: it may or may not have happened")]
    Unknown,
    /// This node may not have it done.
    #[error(transparent)]
    Refused(state::Refusal),
    /// Only the leader can do this.
    #[error("this node does not lead")]
    NotLeader(Option<NodeId>),
    /// The members are being changed.
    #[error("the members are being changed already")]
    Changing,
    /// The members cannot be so.
    #[error("a cluster needs a voter")]
    NoVoter,
    /// The node does not take part any more, for good or after an error that is in the journal.
    #[error(
        "this node does not take part in the agreement any more: it stops, or its disk failed or is full, as the journal says; then make room, and start ssid again"
    )]
    Stopped,
}

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It decides.
    Leader,
    /// It wants to.
    Candidate,
    /// It votes.
    Follower,
    /// It hears all and has no vote.
    Learner,
    /// Nothing.
    Stopped,
}

/// How a node stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// What it does.
    pub role: Role,
    /// Who leads, as far as it knows.
    pub leader: Option<NodeId>,
    /// The number of the reign.
    pub term: u64,
    /// Number of the last entry that is in the state here.
    pub last_applied: Option<u64>,
    /// Who votes.
    pub voters: BTreeSet<NodeId>,
    /// Who hears all and has no vote.
    pub learners: BTreeSet<NodeId>,
    /// Time since a majority was heard of: by the leader itself, by others through a leader that had.
    pub silent_for: Option<Duration>,
    /// Whether that is recent enough.
    pub has_majority: bool,
}

struct Inner {
    own: NodeId,
    raft: Raft,
    log: Log,
    carrier: Arc<dyn Carrier>,
    timing: Timing,
    state: watch::Receiver<Arc<State>>,
    /// When the leader was heard of last.
    heard: Mutex<Option<Instant>>,
    /// What leaders said lately.
    recall: Mutex<Recall>,
    /// Who leads and is not followed, until when.
    turned_from: Mutex<Option<(NodeId, Instant)>>,
    /// Room for changes and reads that another is asked for, so that they do not take all the room that one has.
    asking: Semaphore,
    /// Held while the directory is in use.
    lock: Mutex<Option<File>>,
}

/// This node's part in the agreement.
#[derive(Clone)]
pub struct Agreement(Arc<Inner>);

impl fmt::Debug for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Agreement({})", self.0.own)
    }
}

/// The directory, for us alone.
fn claim(dir: &Path) -> Result<File, Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| Error::Disk(disk::failed("make", dir)(e)))?;
    let path = dir.join(LOCK);
    let io = |e: io::Error| Error::Disk(disk::failed("lock", &path)(e));
    let file = File::create(&path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::InUse(dir.to_owned())),
        Err(TryLockError::Error(e)) => Err(io(e)),
    }
}

/// Makes the files in `dir` for `own`, which was no node before. It has to have them from then on: one that came to have
/// forgotten what it said could vote twice.
///
/// # Errors
/// When there are some, or they cannot be written.
pub fn begin(dir: &Path, own: NodeId) -> Result<(), Error> {
    let _lock = claim(dir)?;
    log::LogFile::begin(&dir.join(log::NAME), own).map_err(Error::Disk)
}

/// What is in the directory.
fn load(dir: &Path, own: NodeId) -> Result<(File, Log, Failed, Machine), Error> {
    let lock = claim(dir)?;
    let machine = Machine::open(dir).map_err(Error::Disk)?;
    let (log, failed) = Log::open(dir, own).map_err(Error::Disk)?;
    gap(dir, log.purged(), machine.applied())?;
    Ok((lock, log, failed, machine))
}

/// That the snapshot has what the log has no more.
fn gap(dir: &Path, purged: Option<LogId>, applied: Option<LogId>) -> Result<(), Error> {
    match purged.filter(|p| applied < Some(*p)) {
        Some(purged) => Err(Error::Gap {
            path: dir.join(log::NAME),
            purged: purged.index,
        }),
        None => Ok(()),
    }
}

impl Agreement {
    /// Goes on where the files in `dir` end; [`begin`] has made them. A new node waits until it founds a
    /// cluster or is made a member of one.
    ///
    /// # Errors
    /// When the files are missing, cannot be read or written, are damaged or in use.
    pub async fn open(
        dir: &Path,
        own: NodeId,
        carrier: Arc<dyn Carrier>,
        timing: Timing,
    ) -> Result<Self, Error> {
        let config = timing.config().validate();
        let config = Arc::new(config.map_err(|e| Error::Timing(e.to_string()))?);
        let path = dir.to_owned();
        let loaded = runtime::on_disk(move || load(&path, own)).await;
        let (lock, log, failed, machine) = loaded.map_err(|_| Error::Stopped)??;
        let state = machine.watch();
        let majority = carrier::Majority::default();
        let links = Links {
            carrier: Arc::clone(&carrier),
            majority: Arc::clone(&majority),
        };
        let raft = Raft::new(raft_id(own), config, links, log.clone(), machine)
            .await
            .map_err(|e| {
                tracing::error!("agreement: {e}");
                Error::Stopped
            })?;
        let metrics = raft.metrics();
        if votes_alone(&metrics.borrow_watched(), own) {
            // It need not wait for a leader to be heard of.
            raft.trigger()
                .elect(false)
                .await
                .map_err(|_| Error::Stopped)?;
        }
        let tell = move || {
            let silent_for = led_in_silence(&metrics.borrow_watched(), own);
            silent_for.is_some_and(|silent| silent < timing.majority())
        };
        drop(majority.set(Box::new(tell)));
        let inner = Arc::new(Inner {
            own,
            raft,
            log,
            carrier,
            timing,
            state,
            heard: Mutex::new(None),
            recall: Mutex::default(),
            turned_from: Mutex::new(None),
            asking: Semaphore::new(MAX_ASKED),
            lock: Mutex::new(Some(lock)),
        });
        tokio::spawn(stop_when(failed, Arc::downgrade(&inner)));
        Ok(Self(inner))
    }

    /// Makes a cluster of this node alone.
    ///
    /// # Errors
    /// When it is of one already.
    pub async fn found(&self) -> Result<(), Error> {
        let members = BTreeMap::from([(raft_id(self.0.own), EmptyNode {})]);
        match self.0.raft.initialize(members).await {
            Ok(()) => {}
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => return Err(Error::Founded),
            Err(_) => return Err(Error::Stopped),
        }
        let wait = self.0.raft.wait(Some(self.0.timing.answer()));
        let led = wait.state(ServerState::Leader, "found").await;
        led.map(drop).map_err(|_| Error::Unavailable)
    }

    /// The state as it becomes known here, for who acts on it.
    pub fn watch(&self) -> watch::Receiver<Arc<State>> {
        self.0.state.clone()
    }

    /// How this node stands.
    pub fn status(&self) -> Status {
        let metrics = self.0.raft.metrics().borrow_watched().clone();
        let nodes = |ids: &mut dyn Iterator<Item = u64>| ids.filter_map(node_of).collect();
        let members = &metrics.membership_config;
        let role = match metrics.state {
            _ if metrics.running_state.is_err() => Role::Stopped,
            ServerState::Leader => Role::Leader,
            ServerState::Candidate => Role::Candidate,
            ServerState::Follower => Role::Follower,
            ServerState::Learner => Role::Learner,
            ServerState::Shutdown => Role::Stopped,
        };
        let heard = *self.0.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let voters: BTreeSet<NodeId> = nodes(&mut members.voter_ids());
        let silent_for = match role {
            Role::Leader => led_in_silence(&metrics, self.0.own),
            Role::Stopped => None,
            _ => heard.map(|at| at.elapsed()),
        };
        Status {
            role,
            leader: metrics.current_leader.and_then(node_of),
            term: metrics.current_term,
            last_applied: metrics.last_applied.map(|at| at.index),
            voters,
            learners: nodes(&mut members.membership().learner_ids()),
            silent_for,
            has_majority: silent_for.is_some_and(|silent| silent < self.0.timing.majority()),
        }
    }

    /// Has the voter that knows most lead instead of this node, if this node leads: it is about to stop, and the
    /// others need not find out. Does not wait for long.
    pub async fn hand_over(&self) {
        let metrics = self.0.raft.metrics().borrow_watched().clone();
        let own = raft_id(self.0.own);
        // Only who leads knows.
        let Some(known) = metrics.replication else {
            return;
        };
        let voters = metrics.membership_config.voter_ids();
        let next = voters.filter(|id| *id != own);
        let next = next.max_by_key(|id| known.get(id).cloned().flatten());
        let Some(next) = next else { return };
        tracing::info!(next, "another node is to lead");
        let told = self.0.raft.trigger().transfer_leader(next).await;
        if told.is_err() || !self.led_by_another(own, HANDED_OVER_IN).await {
            tracing::info!("no other node leads yet");
        }
    }

    /// Waits until another than `this` leads, as far as this node knows; not for longer than `within`.
    async fn led_by_another(&self, this: u64, within: Duration) -> bool {
        let is_another = |m: &Metrics| m.current_leader.is_some_and(|leader| leader != this);
        let wait = self.0.raft.wait(Some(within));
        wait.metrics(is_another, "another leads").await.is_ok()
    }

    /// Takes part no more. What others do later with this handle fails.
    pub async fn stop(&self) {
        if let Err(e) = self.0.raft.shutdown().await {
            tracing::error!("agreement: {e}");
        }
        // If it could not be written, that was said before.
        let _ = self.0.log.settle().await;
        let mut lock = self.0.lock.lock().unwrap_or_else(PoisonError::into_inner);
        lock.take();
    }
}

/// A node whose disk fails takes part no more, even if it has nothing to write.
async fn stop_when(failed: Failed, inner: Weak<Inner>) {
    if failed.await.is_ok()
        && let Some(inner) = inner.upgrade()
    {
        tracing::error!(
            "what is agreed on cannot be written: this node takes no part until ssid is started again, with room on its disk"
        );
        if let Err(e) = inner.raft.shutdown().await {
            tracing::error!("agreement: {e}");
        }
    }
}

fn votes_alone(metrics: &Metrics, own: NodeId) -> bool {
    let mut voters = metrics.membership_config.voter_ids();
    voters.next() == Some(raft_id(own)) && voters.next().is_none()
}

/// Time since a majority was heard of, if `own` leads.
fn led_in_silence(metrics: &Metrics, own: NodeId) -> Option<Duration> {
    if votes_alone(metrics, own) {
        return Some(Duration::ZERO);
    }
    metrics.last_quorum_acked.map(|at| at.elapsed())
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotLeader(leader) => Error::NotLeader(leader.and_then(NodeId::new)),
            Refusal::Unavailable | Refusal::Bad => Error::Unavailable,
            Refusal::Unknown => Error::Unknown,
            Refusal::Stopped => Error::Stopped,
        }
    }
}

fn node_number(id: u64) -> Option<u16> {
    u16::try_from(id).ok()
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}
