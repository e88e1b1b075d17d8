// SPDX-License-Identifier: MIT OR Apache-2.0

//! Has it agreed on that a node accuses another, also of one that leads and would rather not.
//!
//! Who leads can leave out of the log what it does not like. If it does so with an accusation of itself, the
//! accuser does not follow it for a while: it takes no entries from it, and wants to lead
//! itself, or have another do. One that is alone with this is not voted for, since the others hear of
//! their leader, and follows again before it counts as cut off. If those who accuse can outvote it, they do.

use std::sync::Arc;
use std::time::Duration;

use ssi::id::NodeId;
use tokio::time::{Instant, sleep, timeout};

use super::{Agreement, Error};
use crate::core::offence::Offence;
use crate::core::state::{Command, State};

/// How often it is looked whether another leads.
const LOOK: Duration = Duration::from_millis(200);

impl Agreement {
    /// Accuses `node`, which answers for what it does since the epoch `since`, until that is agreed on or
    /// of no matter any more.
    pub async fn accuse(&self, node: NodeId, since: u64, offence: Offence) {
        let command = Command::Accuse {
            by: self.0.own,
            node,
            since,
            offence,
        };
        let patience = self.0.timing.majority();
        let mut tries = 0;
        let mut states = self.watch();
        let matters = |state: &State| {
            let member = state.nodes.get(&node);
            member.is_some_and(|m| m.answers_since() == since)
                && state.would_matter(self.0.own, node)
        };
        while matters(&Arc::clone(&states.borrow_and_update())) {
            let proposed = timeout(patience, self.propose(command.clone())).await;
            if let Ok(Err(Error::Stopped)) = proposed {
                return;
            }
            // What was agreed on comes here soon, if it was.
            let known = states.wait_for(|state| !matters(state));
            if timeout(patience, known).await.is_ok() {
                return;
            }
            if self.status().leader == Some(node) {
                self.turn_from(node, patience * 2).await;
            }
            // Those who accuse it are not to turn away and back by turns.
            tries += 1;
            let stagger_ms = u64::from(self.0.own.get()) * 997 + tries * 1499;
            sleep(Duration::from_millis(
                stagger_ms % self.0.timing.majority_ms,
            ))
            .await;
        }
    }

    /// Does not follow `node` for so long, or until another leads.
    async fn turn_from(&self, node: NodeId, time: Duration) {
        let until = Instant::now() + time;
        tracing::warn!(%node, "who leads does not have it agreed on that it is accused: not followed for a while");
        self.set_turned_from(Some((node, until)));
        while Instant::now() < until && self.status().leader == Some(node) {
            sleep(LOOK).await;
        }
        self.set_turned_from(None);
    }
}
