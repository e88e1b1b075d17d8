// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whom this node listens to: not to one that is quarantined, or leads and is not followed for a while, nor to
//! anybody in what is for another to say.

use std::sync::{Arc, PoisonError};

use ssi::id::NodeId;
use tokio::time::Instant;

use super::carrier::Request;
use super::guard::Leader;
use super::{Agreement, Entry, Role};
use crate::core::offence::Offence;
use crate::core::state::{self, Command, Objection};

impl Agreement {
    /// `node` did what no honest node does.
    pub(super) fn offended(&self, node: NodeId, offence: Offence) {
        self.0.carrier.offended(node, offence);
    }

    /// Whether what `from` has to say about who leads and what is in the log is listened to.
    pub(super) fn heeds(&self, from: NodeId, request: &Request) -> bool {
        if matches!(
            request,
            Request::Propose(_) | Request::ReadIndex | Request::Extent(_)
        ) {
            return true;
        }
        let turned_from = self.0.turned_from.lock();
        let turned_from = *turned_from.unwrap_or_else(PoisonError::into_inner);
        let is_turned_from = turned_from.is_some_and(|(n, u)| n == from && Instant::now() < u);
        !is_turned_from && !self.0.state.borrow().is_quarantined(from)
    }

    /// Has it not listened to who leads until then.
    pub(super) fn set_turned_from(&self, who: Option<(NodeId, Instant)>) {
        let turned_from = self.0.turned_from.lock();
        *turned_from.unwrap_or_else(PoisonError::into_inner) = who;
    }

    /// Whether `leader` made other entries of these numbers before.
    pub(super) fn contradicts(&self, leader: Leader, entries: &[Entry]) -> bool {
        let recall = self.0.recall.lock();
        let mut recall = recall.unwrap_or_else(PoisonError::into_inner);
        recall.contradicts(leader, entries)
    }

    /// Why `command` is not taken from `from`. Who may do what changes with who votes, which only who leads
    /// knows.
    pub(super) fn objection(&self, from: NodeId, command: &Command) -> Option<state::Refusal> {
        let status = self.status();
        let votes = status.voters.contains(&from);
        let state = Arc::clone(&self.0.state.borrow());
        match state.may_propose(from, votes, command) {
            Err(Objection::Offence(offence)) => {
                self.offended(from, offence);
                Some(state::Refusal::NotYours)
            }
            Err(Objection::Refused(refusal)) if status.role == Role::Leader => Some(refusal),
            _ => None,
        }
    }
}
