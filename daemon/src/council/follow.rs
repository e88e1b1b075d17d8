// SPDX-License-Identifier: MIT OR Apache-2.0

//! Does on this node what was agreed on: who is in the roster, and whom it believes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ssi::id::NodeId;
use tokio::time::{sleep, timeout};

use super::{Council, Error};
use crate::audit::Event;
use crate::config::Node;
use crate::core::state::{Command, State, Why};
use crate::failure::in_full;
use crate::seat::Other;

/// Pause before what was not agreed on is proposed again.
const AGAIN: Duration = Duration::from_secs(5);
/// A node that left is heard for so long.
const FAREWELL: Duration = Duration::from_millis(500);

impl Council {
    /// Acts on every change.
    pub(super) async fn follow(self: Arc<Self>) {
        let mut states = self.agreement.watch();
        let mut epochs = BTreeMap::new();
        let mut before = Arc::<State>::default();
        // By which this node knows whom to believe.
        let mut believed = Arc::clone(&before);
        loop {
            let state = Arc::clone(&states.borrow_and_update());
            if self.is_of_now(&state) {
                match self.trust(&believed, &state) {
                    Ok(()) => believed = Arc::clone(&state),
                    Err(e) => tracing::error!("whom to believe: {}", in_full(&e)),
                }
                self.enter_and_leave(&state, &mut epochs).await;
                self.note_presence(&before, &state).await;
                self.note_conduct(&before, &state);
                // What was not acted on is news yet.
                before = state;
            }
            let is_done = Arc::ptr_eq(&believed, &before);
            let changed = async {
                if is_done {
                    return states.changed().await;
                }
                timeout(AGAIN, states.changed()).await.unwrap_or(Ok(()))
            };
            if changed.await.is_err() {
                return;
            }
        }
    }

    /// Has agreed on what this node is like whenever that is not what is known: it may have another kernel since it
    /// was started last.
    pub(super) async fn describe(self: Arc<Self>) {
        let mut states = self.agreement.watch();
        loop {
            let state = Arc::clone(&states.borrow_and_update());
            if self.is_of_now(&state)
                && let Some(command) = self.description(&state)
                && let Err(e) = self.propose(command).await
            {
                tracing::info!("what this node is like is not agreed on yet: {e}");
                sleep(AGAIN).await;
                continue;
            }
            if states.changed().await.is_err() {
                return;
            }
        }
    }

    /// What this node is like, if `state` says something else.
    fn description(&self, state: &State) -> Option<Command> {
        let (own, cluster) = (state.nodes.get(&self.own)?, self.cluster.upgrade()?);
        let facts = cluster.net().facts();
        (own.facts != *facts).then(|| Command::Describe {
            node: self.own,
            since: own.epoch,
            facts: facts.clone(),
        })
    }

    /// Whether what is agreed on has come here up to when this node joined. What was before is not for it to act on:
    /// whoever leads may not have been a node yet, and nothing more would be heard of it. Until then those
    /// count that were there when this node joined.
    fn is_of_now(&self, state: &State) -> bool {
        state.cluster.is_some() && state.epoch >= self.seat().since
    }

    async fn enter_and_leave(&self, state: &State, epochs: &mut BTreeMap<NodeId, u64>) {
        let Some(cluster) = self.cluster.upgrade() else {
            return;
        };
        for peer in cluster.roster().peers() {
            let since = state.nodes.get(&peer.node).map(|m| m.epoch);
            let known = epochs.get(&peer.node).copied();
            // Another machine may have the number of one that went.
            let is_same = known.is_none() || known == since;
            if since.is_none() || !is_same {
                let gone = state.gone.get(&peer.node);
                if gone.is_some_and(|g| g.why == Why::Left) {
                    // Whoever helped it to leave still has to tell it.
                    sleep(FAREWELL).await;
                }
                epochs.remove(&peer.node);
                cluster.leave(peer.node).await;
                peer.ended().await;
            }
        }
        self.note_others(state);
        for (id, member) in &state.nodes {
            epochs.insert(*id, member.epoch);
            if *id == self.own {
                cluster.set_cordoned(member.cordoned);
            } else {
                cluster.enter(Node {
                    id: *id,
                    name: member.name.clone(),
                    addr: member.addr,
                });
            }
        }
    }

    /// What this node had to do with one that was declared dead or came back is over.
    async fn note_presence(&self, before: &State, state: &State) {
        let Some(cluster) = self.cluster.upgrade() else {
            return;
        };
        let present = state
            .nodes
            .iter()
            .map(|(id, m)| (*id, m.presence.current()));
        cluster.set_present(present.collect()).await;
        for (id, member) in &state.nodes {
            let (peer, now) = (id.get(), member.presence);
            let known = before.nodes.get(id).filter(|m| m.epoch == member.epoch);
            let Some(was) = known.map(|k| k.presence).filter(|was| *was != now) else {
                continue;
            };
            // Both may have happened since.
            if was.ended.is_none() && !member.conduct.quarantined {
                tracing::warn!(peer, since = was.since, "declared dead by the cluster");
                let since = was.since;
                cluster.audit().record(Event::DeclaredDead { peer, since });
            }
            if let Some(since) = now.current() {
                tracing::info!(peer, since, "back in the cluster");
                cluster.audit().record(Event::CameBack { peer, since });
            }
        }
    }

    /// Accounts for who is accused, quarantined and pardoned.
    fn note_conduct(&self, before: &State, state: &State) {
        let Some(cluster) = self.cluster.upgrade() else {
            return;
        };
        for (id, member) in &state.nodes {
            let (peer, now) = (id.get(), &member.conduct);
            let known = before.nodes.get(id).filter(|m| m.epoch == member.epoch);
            let Some(was) = known.map(|k| &k.conduct).filter(|was| *was != now) else {
                continue;
            };
            if was.pardoned != now.pardoned {
                tracing::info!(peer, "pardoned by an administrator");
                cluster.audit().record(Event::Pardoned { peer });
            }
            let is_new =
                |by: &NodeId| was.pardoned != now.pardoned || !was.accusers.contains_key(by);
            for (by, offence) in now.accusers.iter().filter(|(by, _)| is_new(by)) {
                tracing::warn!(peer, %by, "accused of what no honest node does: {offence}");
                cluster.audit().record(Event::Accused {
                    peer,
                    by: by.get(),
                    offence: offence.code(),
                });
            }
            if now.quarantined && (!was.quarantined || was.pardoned != now.pardoned) {
                tracing::error!(peer, "quarantined by the cluster");
                cluster.audit().record(Event::Quarantined { peer });
            }
        }
    }

    /// Keeps who there is, for the next start: what is agreed on takes a moment to be known then.
    fn note_others(&self, state: &State) {
        let others = state.nodes.iter().filter(|(id, _)| **id != self.own);
        let others: Vec<Other> = others
            .map(|(id, m)| Other {
                node: *id,
                name: m.name.clone(),
                addr: m.addr,
            })
            .collect();
        let mut seat = self.seat();
        // Before that it has no place yet.
        if seat.others == others || !state.nodes.contains_key(&self.own) {
            return;
        }
        seat.others = others;
        if let Err(e) = self.store.save(&seat) {
            tracing::error!("who there is: {}", in_full(&e));
        }
    }

    /// Believes whom `state` believes. What was revoked is cut off.
    ///
    /// # Errors
    /// When it could not be written down; it is to be done again.
    fn trust(&self, before: &State, state: &State) -> Result<(), Error> {
        if !before.authorities().eq(state.authorities()) || before.revoked != state.revoked {
            self.believe()?;
        }
        let wanted = |s: &State| {
            let generation = s.cluster.as_ref().map(|c| c.authority.generation);
            (generation, s.nodes.get(&self.own).map(|m| m.fingerprint))
        };
        if wanted(before) != wanted(state) {
            self.renew.send_replace(());
        }
        Ok(())
    }
}
