// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the nodes that agree say to each other, and how it gets there.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use openraft::error::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{EmptyNode, OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use ssi::id::NodeId;

use super::guard::may_answer;
use super::recovery::Extent;
use super::{LogId, Snapshot, SnapshotMeta, Types, Vote};
use crate::core::offence::Offence;
use crate::core::state::{Command, Outcome, State};

/// Longest message.
pub const MAX_MESSAGE_BYTES: usize = 8 << 20;
/// Longest command, as JSON.
pub const MAX_COMMAND_BYTES: usize = 96 << 10;
/// Most entries in one message: with the longest commands they still fit.
pub const MAX_ENTRIES: u64 = 64;

/// A message has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// It was never sent.
    #[error("the node cannot be reached")]
    NotSent,
    /// It was sent, and may have arrived.
    #[error("the node did not answer")]
    Lost,
}

/// An answer that is to come.
pub type Asked<'a> = Pin<Box<dyn Future<Output = Result<Vec<u8>, NoAnswer>> + Send + 'a>>;

/// How messages reach other nodes.
pub trait Carrier: Send + Sync + 'static {
    /// Brings `request` to a node, which gives it to [`super::Agreement::serve`], and its answer
    /// back. May take as long as it likes: who asks does not wait for ever.
    fn ask(&self, to: NodeId, request: Vec<u8>) -> Asked<'_>;

    /// Is told what a node did that no node does which keeps to the rules.
    fn offended(&self, _node: NodeId, _offence: Offence) {}
}

/// What is asked.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Request {
    Append {
        rpc: AppendEntriesRequest<Types>,
        /// Whether the leader has heard of a majority lately: one that was cut off leads on.
        has_majority: bool,
    },
    Vote(VoteRequest<Types>),
    /// Whether the node would vote so.
    PreVote(VoteRequest<Types>),
    Snapshot {
        vote: Vote,
        meta: SnapshotMeta,
        state: Arc<State>,
    },
    Transfer(TransferLeaderRequest<Types>),
    Propose(Command),
    /// Up to where one must have applied the log to have read what is agreed on.
    ReadIndex,
    /// How far the node is, and whether it has that entry.
    Extent(Option<LogId>),
}

/// What is answered.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Answer {
    Append(AppendEntriesResponse<Types>),
    Vote(VoteResponse<Types>),
    Snapshot(SnapshotResponse<Types>),
    Transfer(TransferLeaderResponse<Types>),
    Proposed(Outcome),
    ReadIndex(u64),
    Extent(Extent),
    Refused(Refusal),
}

/// Why there is nothing else to answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Refusal {
    /// It did not happen: another node leads, maybe this one.
    #[error("the node does not lead")]
    NotLeader(Option<u16>),
    /// It did not happen.
    #[error("there is no majority")]
    Unavailable,
    /// It may have happened or may yet.
    #[error("the node does not know")]
    Unknown,
    /// The message makes no sense.
    #[error("the node did not understand")]
    Bad,
    /// The node does not take part any more.
    #[error("the node has stopped to agree")]
    Stopped,
}

/// The bytes of a message; none if it is too long.
pub(super) fn encode<T: Serialize>(message: &T) -> Option<Vec<u8>> {
    let bytes = serde_json::to_vec(message).ok()?;
    (bytes.len() <= MAX_MESSAGE_BYTES).then_some(bytes)
}

/// The message of some bytes, if they are one.
pub(super) fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Option<T> {
    if bytes.len() > MAX_MESSAGE_BYTES {
        return None;
    }
    serde_json::from_slice(bytes).ok()
}

/// Whether bytes that could not be decoded are none of a later version either.
pub(super) fn is_garbage(bytes: &[u8]) -> bool {
    bytes.len() > MAX_MESSAGE_BYTES || serde_json::from_slice::<IgnoredAny>(bytes).is_err()
}

/// Asks a node, and waits so long. An answer that is none to this is as good as lost.
pub(super) async fn ask(
    carrier: &dyn Carrier,
    to: NodeId,
    request: &Request,
    within: Duration,
) -> Result<Answer, NoAnswer> {
    let bytes = encode(request).ok_or(NoAnswer::NotSent)?;
    let answer = tokio::time::timeout(within, carrier.ask(to, bytes))
        .await
        .map_err(|_| NoAnswer::Lost)??;
    let Some(answer) = decode(&answer) else {
        // What has no room in a message is answered with nothing.
        if !answer.is_empty() && is_garbage(&answer) {
            carrier.offended(to, Offence::Unreadable);
        }
        return Err(NoAnswer::Lost);
    };
    if !may_answer(request, &answer) {
        carrier.offended(to, Offence::ImpossibleAnswer);
        return Err(NoAnswer::Lost);
    }
    Ok(answer)
}

/// Tells whether this node, should it lead, has heard of a majority lately.
pub(super) type Majority = Arc<OnceLock<Box<dyn Fn() -> bool + Send + Sync>>>;

/// Makes a [`Link`] for each node.
pub(super) struct Links {
    pub carrier: Arc<dyn Carrier>,
    /// Set once there is something to tell of.
    pub majority: Majority,
}

impl RaftNetworkFactory<Types> for Links {
    type Network = Link;

    async fn new_client(&mut self, target: u64, _: &EmptyNode) -> Link {
        Link {
            carrier: Arc::clone(&self.carrier),
            majority: Arc::clone(&self.majority),
            to: super::node_of(target),
        }
    }
}

/// The way to one node.
pub(super) struct Link {
    carrier: Arc<dyn Carrier>,
    majority: Majority,
    /// None of a number that no node has.
    to: Option<NodeId>,
}

impl Link {
    async fn ask(&self, request: &Request, within: Duration) -> Result<Answer, RPCError<Types>> {
        let unreachable = |e: NoAnswer| RPCError::from(Unreachable::new(&e));
        let to = self.to.ok_or_else(|| unreachable(NoAnswer::NotSent))?;
        let answer = ask(self.carrier.as_ref(), to, request, within).await;
        answer.map_err(unreachable)
    }

    async fn ask_vote(
        &self,
        request: &Request,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        match self.ask(request, option.soft_ttl()).await? {
            Answer::Vote(answer) => Ok(answer),
            other => Err(stray(&other)),
        }
    }
}

/// An answer that is none to the question.
fn stray(answer: &Answer) -> RPCError<Types> {
    let why = match answer {
        Answer::Refused(refusal) => refusal.clone(),
        _ => Refusal::Bad,
    };
    NetworkError::new(&why).into()
}

impl RaftNetworkV2<Types> for Link {
    type SnapshotData = Arc<State>;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let request = Request::Append {
            rpc,
            has_majority: self.majority.get().is_some_and(|tell| tell()),
        };
        match self.ask(&request, option.soft_ttl()).await? {
            Answer::Append(answer) => Ok(answer),
            other => Err(stray(&other)),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask_vote(&Request::Vote(rpc), option).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask_vote(&Request::PreVote(rpc), option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let request = Request::Snapshot {
            vote,
            meta: snapshot.meta,
            state: snapshot.snapshot,
        };
        let answer = tokio::select! {
            biased;
            closed = cancel => return Err(closed.into()),
            answer = self.ask(&request, option.soft_ttl()) => answer,
        };
        match answer {
            Ok(Answer::Snapshot(answer)) => Ok(answer),
            Ok(other) => Err(NetworkError::new(&stray(&other)).into()),
            Err(e) => Err(Unreachable::new(&e).into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let request = Request::Transfer(req);
        match self.ask(&request, option.soft_ttl()).await? {
            Answer::Transfer(answer) => Ok(answer),
            other => Err(stray(&other)),
        }
    }
}
