// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the node that leads sees to: who votes, that those who seem dead are declared so, and that a
//! change of the authority comes to an end.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ssi::id::NodeId;
use tokio::time::{Instant, sleep};

use super::Council;
use crate::agree::{Role, Status};
use crate::cluster::Cluster;
use crate::core::liveness;
use crate::core::state::{Command, State, Why};
use crate::core::voters;
use crate::failure::{Failure, in_full};
use crate::pki::Authority;

/// A voter that has lost its seal asks for it so often.
const ASK_SEAL_EVERY: Duration = Duration::from_secs(5);
/// How often it looks.
const EVERY: Duration = Duration::from_millis(500);

impl Council {
    /// Sees to it for as long as the node runs; does something only while it leads.
    pub(super) async fn steward(self: Arc<Self>) {
        // Who has a seal voted when it ran last, and may not by now.
        let (mut complaint, mut voted) = (String::new(), self.keeps_seal());
        let mut ask_seal_at = Instant::now();
        loop {
            sleep(EVERY).await;
            let status = self.status();
            if status.voters.is_empty() {
                continue;
            }
            let votes = status.voters.contains(&self.own);
            if voted && !votes {
                self.drop_seal();
            }
            voted = votes;
            if votes && !self.has_seal() && Instant::now() >= ask_seal_at {
                self.fetch_seal(&status).await;
                ask_seal_at = Instant::now() + ASK_SEAL_EVERY;
            }
            if status.role != Role::Leader || !status.has_majority {
                continue;
            }
            let state = self.state();
            let mut done = self.declare_dead(&state).await;
            if done.is_ok() {
                done = self.set_voters(&status, &state, None).await;
            }
            if done.is_ok() {
                done = self.finish_rotation(&state).await;
            }
            let said = done.err().map(|e| e.to_string()).unwrap_or_default();
            if said != complaint && !said.is_empty() {
                tracing::info!("not seen to yet: {said}");
            }
            complaint = said;
        }
    }

    /// Declares those dead who seem to be.
    async fn declare_dead(&self, state: &State) -> Result<(), Failure> {
        for (node, member) in &state.nodes {
            let Some(since) = member.presence.current() else {
                continue;
            };
            if *node != self.own && self.lookout.seems_dead(*node, since) {
                let node = *node;
                self.decree(Command::DeclareDead { node, since }).await?;
            }
        }
        Ok(())
    }

    pub(super) fn is_up(&self, cluster: &Cluster, node: NodeId) -> bool {
        let peer = cluster.roster().peer(node);
        node == self.own || peer.is_some_and(|p| p.state() == liveness::State::Up)
    }

    /// Has the right ones of all nodes vote, but for `not` and those in quarantine, and the others hear.
    async fn set_voters(
        &self,
        status: &Status,
        state: &State,
        not: Option<NodeId>,
    ) -> Result<(), Failure> {
        let cluster = self.cluster()?;
        let nodes: BTreeSet<NodeId> = state.nodes.keys().copied().collect();
        let mut able = nodes.clone();
        able.retain(|n| Some(*n) != not && !state.is_quarantined(*n));
        // Who votes does so until it is declared dead: for a silence that may be over soon no other gets the
        // vote, nor what opens the key of the authority.
        let is_there = |n: NodeId| {
            let member = state.nodes.get(&n);
            member.is_some_and(|m| m.presence.current().is_some())
                && (status.voters.contains(&n) || self.is_up(&cluster, n))
        };
        let chosen = voters::choose(&able, &status.voters, self.own, is_there);
        let learners: BTreeSet<NodeId> = nodes.difference(&chosen).copied().collect();
        // Who is new hears what there is before it votes.
        let heard: BTreeSet<NodeId> = status.voters.union(&status.learners).copied().collect();
        if !nodes.is_subset(&heard) {
            let voters = status.voters.intersection(&nodes).copied().collect();
            let learners = nodes.difference(&voters).copied().collect();
            return Ok(self.agreement.set_members(voters, learners).await?);
        }
        if chosen == status.voters && learners == status.learners {
            return Ok(());
        }
        for new in chosen.difference(&status.voters) {
            self.hand_seal(&cluster, *new).await?;
        }
        tracing::info!(voters = ?chosen, "voters change");
        Ok(self.agreement.set_members(chosen, learners).await?)
    }

    /// Takes a node out; this node must lead. First it loses its vote: that needs it, if it is the
    /// only voter.
    pub(super) async fn retire_here(
        &self,
        node: NodeId,
        since: u64,
        why: Why,
    ) -> Result<(), Failure> {
        let state = self.read().await?;
        if state.nodes.get(&node).is_none_or(|m| m.epoch != since) {
            return Err(Failure::NoNode(node.to_string()));
        }
        let status = self.status();
        if status.voters.contains(&node) && state.nodes.len() > 1 {
            self.set_voters(&status, &state, Some(node)).await?;
        }
        let now_ms = crate::clock::now_ms();
        let remove = Command::Remove {
            node,
            since,
            why,
            now_ms,
        };
        // Who goes itself does not lead any more without its vote.
        let removed = match node == self.own {
            true => self.propose(remove).await,
            false => self.decree(remove).await,
        };
        removed.map(drop)
    }

    /// Has the cluster believe another authority; this node must have what opens the key of the
    /// present one.
    pub(super) async fn rotate_here(&self) -> Result<(), Failure> {
        let state = self.read().await?;
        let cluster = state.cluster.as_ref();
        let cluster =
            cluster.ok_or_else(|| Failure::from(crate::core::state::Refusal::NotFounded))?;
        let unmade = |e| Failure::Unavailable(in_full(&e));
        let (authority, ca) = Authority::new(&cluster.name).map_err(unmade)?;
        let generation = cluster.authority.generation.saturating_add(1);
        self.propose(Command::BeginRotation {
            generation,
            ca,
            sealed_key: self.seal_key(&authority.key_pem())?,
        })
        .await
        .map(drop)
    }

    async fn finish_rotation(&self, state: &State) -> Result<(), Failure> {
        let Some(authority) = state.cluster.as_ref().map(|c| &c.authority) else {
            return Ok(());
        };
        let generation = authority.generation;
        if authority.previous.is_none() || !state.nodes.values().all(|m| m.is_of(generation)) {
            return Ok(());
        }
        tracing::info!(
            generation,
            "every node has a certificate of the new authority"
        );
        self.decree(Command::FinishRotation { generation })
            .await
            .map(drop)
    }
}
