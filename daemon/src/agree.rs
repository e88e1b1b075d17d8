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
pub mod pulse;
mod recall;
pub mod recovery;
mod runtime;
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
use openraft::error::{
    ChangeMembershipError, ClientWriteError, InitializeError, LinearizableReadError, RaftError,
};
use openraft::raft::AppendEntriesResponse;
use openraft::{ChangeMembers, Config, EmptyNode, ReadPolicy, ServerState, SnapshotPolicy, alias};
use serde::{Deserialize, Serialize};
use ssi::id::NodeId;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use self::carrier::{Answer, Carrier, Links, NoAnswer, Refusal, Request};
use self::guard::Here;
use self::log::{Failed, Log};
use self::machine::Machine;
use self::recall::Recall;
use self::runtime::Runtime;
use crate::core::kv;
use crate::core::offence::Offence;
use crate::core::state::{self, Command, Outcome, State, Unique};

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
/// An answer of one that does not lead any more is waited for so long.
const FAREWELL: Duration = Duration::from_millis(500);
/// Nobody waits longer for another to lead.
const HANDED_OVER_IN: Duration = Duration::from_secs(1);
/// A change of which nobody knows whether it was made is proposed so often.
const SETTLE_TRIES: u32 = 3;
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
    /// or for so long.
    pub election_max_ms: u64,
    /// A proposal, a read or a change of members is given up after so long, in milliseconds.
    pub answer_ms: u64,
    /// After so many entries a snapshot is made, and the entries go.
    pub snapshot_entries: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat_ms: 500,
            election_min_ms: 2000,
            election_max_ms: 4000,
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

    /// A majority not heard of for so long is not there.
    fn majority(self) -> Duration {
        Duration::from_millis(self.election_max_ms)
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
        "{path} has no entries before {purged}, and no snapshot has them: restore the directory from a copy, or remove it and let this node join the cluster as a new one"
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
    #[error("this node does not take part in the agreement any more")]
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

/// What is in the directory, or new.
fn load(dir: &Path, own: NodeId) -> Result<(File, Log, Failed, Machine), Error> {
    let lock = claim(dir)?;
    let machine = Machine::open(dir).map_err(Error::Disk)?;
    let opened = Log::open(dir, own, machine.applied().is_none());
    let (log, failed) = opened.map_err(Error::Disk)?;
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
    /// Goes on where the files in `dir` end, and makes them if there are none. A new node waits
    /// until it founds a cluster or is made a member of one.
    ///
    /// # Errors
    /// When the files cannot be read or written, are damaged or in use.
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

    /// Makes a change, wherever the leader is.
    ///
    /// # Errors
    /// [`Error::Unknown`] says that it may have been made; all others say that it was not.
    pub async fn propose(&self, command: Command) -> Result<Outcome, Error> {
        fits(&command)?;
        let until = Instant::now() + self.0.timing.answer();
        loop {
            let leader = match self.propose_here(&command, until).await {
                Ok(outcome) => return Ok(outcome),
                Err(Refusal::NotLeader(leader)) => leader,
                // One that has only just begun to lead has not heard of a majority yet.
                Err(Refusal::Unavailable) => None,
                Err(refusal) => return Err(refusal.into()),
            };
            if let Some(leader) = self.other(leader) {
                let request = Request::Propose(command.clone());
                match self.ask_leader(leader, &request, until).await {
                    Ok(Answer::Proposed(outcome)) => return Ok(outcome),
                    Ok(Answer::Refused(Refusal::NotLeader(_) | Refusal::Unavailable)) => {}
                    Ok(Answer::Refused(Refusal::Bad)) | Err(NoAnswer::NotSent) => {}
                    Ok(_) | Err(NoAnswer::Lost) => return Err(Error::Unknown),
                }
            }
            again(until).await?;
        }
    }

    /// Makes a change that only who leads makes; this node must lead.
    ///
    /// # Errors
    /// As [`Self::propose`], and [`Error::NotLeader`]. Another leader is not asked: it would take that
    /// for a lie.
    pub async fn decree(&self, command: Command) -> Result<Outcome, Error> {
        fits(&command)?;
        let until = Instant::now() + self.0.timing.answer();
        Ok(self.propose_here(&command, until).await?)
    }

    /// Makes a change that changes nothing if it is made again: it is proposed again as long as nobody
    /// knows what became of it.
    ///
    /// # Errors
    /// As [`Self::propose`].
    pub async fn settle(&self, command: Command) -> Result<Outcome, Error> {
        for tries in 0..SETTLE_TRIES {
            match self.propose(command.clone()).await {
                Err(Error::Unknown) => {}
                Err(Error::Unavailable) if tries > 0 => break,
                known => return known,
            }
        }
        Err(Error::Unknown)
    }

    /// Makes a change of a value, once; `id` is random.
    ///
    /// # Errors
    /// As [`Self::propose`].
    pub async fn write(
        &self,
        id: Unique,
        name: String,
        expected: Option<u64>,
        value: Option<Vec<u8>>,
    ) -> Result<kv::Outcome, Error> {
        let command = kv::Command {
            id,
            after: self.0.state.borrow().kv.revision(),
            name,
            expected,
            value,
        };
        match self.settle(Command::Kv(command)).await? {
            Outcome::Kv(outcome) => Ok(outcome),
            Outcome::Refused(refusal) => Err(Error::Refused(refusal)),
            _ => Err(Error::Unknown),
        }
    }

    /// Proposes to this node, which must lead.
    async fn propose_here(&self, command: &Command, until: Instant) -> Result<Outcome, Refusal> {
        let status = self.status();
        if status.role == Role::Stopped {
            return Err(Refusal::Stopped);
        }
        if status.role == Role::Leader && !status.has_majority {
            return Err(Refusal::Unavailable);
        }
        let write = self.0.raft.client_write(Change(command.clone()));
        match timeout(left(until), write).await {
            Ok(Ok(answer)) => Ok(answer.data),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to)))) => {
                Err(Refusal::NotLeader(to.leader_id.and_then(node_number)))
            }
            _ => Err(Refusal::Unknown),
        }
    }

    /// The state with all that was agreed on before this was called.
    ///
    /// # Errors
    /// When there is no majority to say so.
    pub async fn read(&self) -> Result<Arc<State>, Error> {
        #[cfg(test)]
        if tests::READS_ARE_STALE.get() {
            return Ok(Arc::clone(&self.0.state.borrow()));
        }
        let until = Instant::now() + self.0.timing.answer();
        let index = loop {
            let leader = match self.index_here(until).await {
                Ok(index) => break index,
                Err(Refusal::NotLeader(leader)) => leader,
                // One that has only just begun to lead has not heard of a majority yet.
                Err(Refusal::Unavailable) => None,
                Err(refusal) => return Err(refusal.into()),
            };
            if let Some(leader) = self.other(leader) {
                let asked = self.ask_leader(leader, &Request::ReadIndex, until).await;
                if let Ok(Answer::ReadIndex(index)) = asked {
                    break index;
                }
            }
            again(until).await?;
        };
        let wait = self.0.raft.wait(Some(left(until)));
        wait.applied_index_at_least(Some(index), "read")
            .await
            .map_err(|_| Error::Unavailable)?;
        Ok(Arc::clone(&self.0.state.borrow()))
    }

    /// Up to where one must have applied the log to read; this node must lead.
    async fn index_here(&self, until: Instant) -> Result<u64, Refusal> {
        let read = self.0.raft.get_read_log_id(ReadPolicy::ReadIndex);
        match timeout(left(until), read).await {
            Ok(Ok((at, _))) => Ok(at.index()),
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(to)))) => {
                Err(Refusal::NotLeader(to.leader_id.and_then(node_number)))
            }
            Ok(Err(RaftError::Fatal(_))) => Err(Refusal::Stopped),
            Ok(Err(_)) | Err(_) => Err(Refusal::Unavailable),
        }
    }

    /// The state as it becomes known here, for who acts on it.
    pub fn watch(&self) -> watch::Receiver<Arc<State>> {
        self.0.state.clone()
    }

    /// Answers a message of a node that has proved to be `from`.
    pub async fn serve(&self, from: NodeId, request: &[u8]) -> Vec<u8> {
        let answer = match carrier::decode(request) {
            Some(request) => self.answer(from, request).await,
            None => {
                if carrier::is_garbage(request) {
                    self.offended(from, Offence::Unreadable);
                }
                Answer::Refused(Refusal::Bad)
            }
        };
        carrier::encode(&answer).unwrap_or_default()
    }

    async fn answer(&self, from: NodeId, request: Request) -> Answer {
        let raft = &self.0.raft;
        let until = Instant::now() + self.0.timing.answer();
        // Nobody votes or leads in the name of another.
        let is_of = |vote: &Vote| vote.leader_id.node_id == raft_id(from);
        let stopped = Answer::Refused(Refusal::Stopped);
        let refused = Answer::Refused;
        let here = Here::of(&raft.metrics().borrow_watched());
        if let Some(offence) = here.offence(from, &request) {
            self.offended(from, offence);
            return refused(Refusal::Bad);
        }
        if !self.heeds(from, &request) {
            return refused(Refusal::Bad);
        }
        if let Request::Append { rpc, .. } = &request
            && let Some(vote) = here.later(&rpc.vote)
        {
            return Answer::Append(AppendEntriesResponse::HigherVote(vote));
        }
        if !here.accepts(&request) {
            return refused(Refusal::Bad);
        }
        if let Request::Append { rpc, .. } = &request
            && self.contradicts(rpc.vote.leader_id, &rpc.entries)
        {
            self.offended(from, Offence::TwoEntries);
            return refused(Refusal::Bad);
        }
        match request {
            Request::Append { rpc, has_majority } if is_of(&rpc.vote) && rpc.vote.committed => {
                let answer = raft.append_entries(rpc).await;
                if answer.is_ok() && has_majority {
                    let mut heard = self.0.heard.lock().unwrap_or_else(PoisonError::into_inner);
                    *heard = Some(Instant::now());
                }
                answer.map_or(stopped, Answer::Append)
            }
            Request::Vote(rpc) if is_of(&rpc.vote) && !rpc.vote.committed => {
                raft.vote(rpc).await.map_or(stopped, Answer::Vote)
            }
            Request::PreVote(rpc) if is_of(&rpc.vote) && !rpc.vote.committed => {
                raft.pre_vote(rpc).await.map_or(stopped, Answer::Vote)
            }
            Request::Snapshot { vote, meta, state } if is_of(&vote) && vote.committed => {
                let snapshot = Snapshot {
                    meta,
                    snapshot: state,
                };
                let answer = raft.install_full_snapshot(vote, snapshot).await;
                answer.map_or(stopped, Answer::Snapshot)
            }
            Request::Transfer(rpc) if is_of(rpc.from_leader()) => {
                let answer = raft.handle_transfer_leader(rpc).await;
                answer.map_or(stopped, Answer::Transfer)
            }
            Request::Propose(command) => match self.objection(from, &command) {
                Some(refusal) => Answer::Proposed(Outcome::Refused(refusal)),
                None => self
                    .propose_here(&command, until)
                    .await
                    .map_or_else(refused, Answer::Proposed),
            },
            Request::ReadIndex => self
                .index_here(until)
                .await
                .map_or_else(refused, Answer::ReadIndex),
            Request::Extent(of) => Answer::Extent(self.extent(of)),
            _ => refused(Refusal::Bad),
        }
    }

    /// Makes these nodes the members: those who vote, and those who only hear. Who is to vote first
    /// learns what there is. Can be called again after an error.
    ///
    /// # Errors
    /// When this node does not lead, there is no majority, or a new voter does not catch up.
    pub async fn set_members(
        &self,
        voters: BTreeSet<NodeId>,
        learners: BTreeSet<NodeId>,
    ) -> Result<(), Error> {
        if voters.is_empty() {
            return Err(Error::NoVoter);
        }
        let change = async {
            loop {
                // Also a leader that has only just begun says so.
                match self.change_members(&voters, &learners).await {
                    Err(Error::Changing) => sleep(Duration::from_millis(AGAIN_MS)).await,
                    done => return done,
                }
            }
        };
        timeout(self.0.timing.answer(), change)
            .await
            .map_err(|_| Error::Unknown)?
    }

    async fn change_members(
        &self,
        voters: &BTreeSet<NodeId>,
        learners: &BTreeSet<NodeId>,
    ) -> Result<(), Error> {
        let raft = &self.0.raft;
        let ids = |nodes: &BTreeSet<NodeId>| nodes.iter().map(|n| raft_id(*n)).collect();
        let (voters, learners): (BTreeSet<u64>, BTreeSet<u64>) = (ids(voters), ids(learners));
        let now = Arc::clone(&raft.metrics().borrow_watched().membership_config);
        let vote_now: BTreeSet<u64> = now.voter_ids().collect();
        let known: BTreeSet<u64> = now.nodes().map(|(id, _)| *id).collect();
        for id in voters.difference(&vote_now) {
            let learn = raft.add_learner(*id, EmptyNode {}, true).await;
            learn.map_err(|e| refused_change(&e))?;
        }
        for id in learners.difference(&known) {
            let learn = raft.add_learner(*id, EmptyNode {}, false).await;
            learn.map_err(|e| refused_change(&e))?;
        }
        let is_joint = now.get_joint_config().len() > 1;
        if vote_now != voters || is_joint {
            // Who loses the vote goes at once, unless there is one to stay.
            let stays = vote_now.difference(&voters).any(|id| learners.contains(id));
            let members = ChangeMembers::ReplaceAllVoters(voters.clone());
            let change = raft.change_membership(members, stays).await;
            change.map_err(|e| refused_change(&e))?;
        }
        let now = Arc::clone(&raft.metrics().borrow_watched().membership_config);
        let known = now.nodes().map(|(id, _)| *id);
        let gone: BTreeSet<u64> = known
            .filter(|id| !voters.contains(id) && !learners.contains(id))
            .collect();
        if !gone.is_empty() {
            let members = ChangeMembers::RemoveNodes(gone);
            let change = raft.change_membership(members, false).await;
            change.map_err(|e| refused_change(&e))?;
        }
        Ok(())
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
        let wait = self.0.raft.wait(Some(HANDED_OVER_IN));
        let leads = |m: &Metrics| m.current_leader.is_some_and(|leader| leader != own);
        if told.is_err() || wait.metrics(leads, "handed over").await.is_err() {
            tracing::info!("no other node leads yet");
        }
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

    /// The node with this number, if it is another.
    fn other(&self, number: Option<u16>) -> Option<NodeId> {
        number.and_then(NodeId::new).filter(|n| *n != self.0.own)
    }

    /// Asks a node that leads, and waits no longer for the answer than a little after another does.
    async fn ask_leader(
        &self,
        leader: NodeId,
        what: &Request,
        until: Instant,
    ) -> Result<Answer, NoAnswer> {
        let is_other = |m: &Metrics| m.current_leader.is_some_and(|now| now != raft_id(leader));
        let wait = self.0.raft.wait(Some(left(until)));
        let overthrown = async {
            match wait.metrics(is_other, "overthrown").await {
                Ok(_) => sleep(FAREWELL).await,
                // It still leads, or this node stops: then who asks is told so.
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            answer = self.ask(leader, what, until) => answer,
            () = overthrown => Err(NoAnswer::Lost),
        }
    }

    async fn ask(&self, to: NodeId, what: &Request, until: Instant) -> Result<Answer, NoAnswer> {
        carrier::ask(self.0.carrier.as_ref(), to, what, left(until)).await
    }
}

/// A node whose disk fails takes part no more, even if it has nothing to write.
async fn stop_when(failed: Failed, inner: Weak<Inner>) {
    if failed.await.is_ok()
        && let Some(inner) = inner.upgrade()
        && let Err(e) = inner.raft.shutdown().await
    {
        tracing::error!("agreement: {e}");
    }
}

/// Whether a command may go through the log.
fn fits(command: &Command) -> Result<(), Error> {
    let bytes = serde_json::to_vec(command).map_or(usize::MAX, |json| json.len());
    if bytes > carrier::MAX_COMMAND_BYTES {
        return Err(Error::TooLong(bytes));
    }
    Ok(())
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

fn refused_change(e: &RaftError<Types, ClientWriteError<Types>>) -> Error {
    match e {
        RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => {
            Error::NotLeader(to.leader_id.and_then(node_of))
        }
        RaftError::APIError(ClientWriteError::ChangeMembershipError(e)) => match e {
            ChangeMembershipError::EmptyMembership(_) => Error::NoVoter,
            _ => Error::Changing,
        },
        _ => Error::Unknown,
    }
}

fn node_number(id: u64) -> Option<u16> {
    u16::try_from(id).ok()
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

/// Waits a little, if there is time for another try.
async fn again(until: Instant) -> Result<(), Error> {
    let pause = Duration::from_millis(AGAIN_MS);
    if left(until) <= pause {
        return Err(Error::Unavailable);
    }
    sleep(pause).await;
    Ok(())
}
