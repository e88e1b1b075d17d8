// SPDX-License-Identifier: MIT OR Apache-2.0

//! Who votes, and who only hears.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::error::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{ChangeMembers, EmptyNode};
use ssi::id::NodeId;
use tokio::time::{sleep, timeout};

use super::{AGAIN_MS, Agreement, Error, Types, node_of, raft_id};

impl Agreement {
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
