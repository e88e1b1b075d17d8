// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a node answers to those it agrees with.

use std::sync::PoisonError;

use openraft::async_runtime::WatchReceiver;
use openraft::raft::AppendEntriesResponse;
use ssi::id::NodeId;
use tokio::time::Instant;

use super::carrier::{self, Answer, Refusal, Request};
use super::guard::Here;
use super::propose::fits;
use super::{Agreement, Snapshot, Vote, raft_id};
use crate::core::offence::Offence;
use crate::core::state::Outcome;

impl Agreement {
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
        let is_of = |vote: &Vote| vote.leader_id.voted_for == raft_id(from);
        let stopped = Answer::Refused(Refusal::Stopped);
        let refused = Answer::Refused;
        let here = Here::of(&raft.metrics().borrow_watched());
        if let Some(offence) = here.offence(from, &request) {
            self.offended(from, offence);
            return refused(Refusal::Bad);
        }
        if !self.heeds(from, &request) || here.usurps(from, &request) && self.status().has_majority
        {
            return refused(Refusal::Bad);
        }
        if let Request::Propose(command) = &request
            && fits(command).is_err()
        {
            self.offended(from, Offence::ImpossibleRequest);
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
}
