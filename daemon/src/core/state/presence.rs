// SPDX-License-Identifier: MIT OR Apache-2.0

//! Who of the nodes is there: one that seems dead is declared so, and stays a node that can come back.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use ssi::id::NodeId;

use super::{Answer, Outcome, Refusal, State};

/// From when to when a node is there, in epochs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Presence {
    /// The epoch that began when it joined, or came back.
    pub since: u64,
    /// The epoch that began when it was declared dead or quarantined; none if it was not.
    pub ended: Option<u64>,
}

impl Presence {
    /// From `epoch` on.
    pub(super) fn since(epoch: u64) -> Self {
        Self {
            since: epoch,
            ended: None,
        }
    }

    /// The epoch it is present since, if it was not declared dead.
    pub fn current(self) -> Option<u64> {
        self.ended.is_none().then_some(self.since)
    }
}

impl State {
    /// `node`, present since the epoch `since`, is dead, and holds no lock any more.
    pub(super) fn declare_dead(&mut self, node: NodeId, since: u64) -> Answer {
        let epoch = self.epoch.saturating_add(1);
        let member = self.member(node)?;
        if member.presence.since != since {
            return Err(Refusal::OtherPresence);
        }
        if let Some(ended) = member.presence.ended {
            return Ok(Outcome::Epoch(ended));
        }
        member.presence.ended = Some(epoch);
        let joined = member.epoch;
        self.epoch = epoch;
        Arc::make_mut(&mut self.locks).end_of_node(node, joined);
        Ok(Outcome::Epoch(epoch))
    }

    /// `node`, which was declared dead in the epoch `ended`, is there again.
    pub(super) fn come_back(&mut self, node: NodeId, ended: u64) -> Answer {
        let epoch = self.epoch.saturating_add(1);
        let member = self.member(node)?;
        if member.conduct.quarantined {
            return Err(Refusal::Quarantined);
        }
        let presence = &mut member.presence;
        match presence.ended {
            Some(at) if at == ended => {
                *presence = Presence::since(epoch);
                self.epoch = epoch;
                Ok(Outcome::Epoch(epoch))
            }
            // It was said before.
            None if presence.since > ended => Ok(Outcome::Epoch(presence.since)),
            _ => Err(Refusal::OtherPresence),
        }
    }
}
