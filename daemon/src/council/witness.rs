// SPDX-License-Identifier: MIT OR Apache-2.0

//! Accounts for what this node sees others do that no honest node does, and accuses them of it.

use std::collections::BTreeMap;

use ssi::id::NodeId;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Council;
use crate::audit::Event;
use crate::core::offence::Offence;

/// Sights that wait to be looked at; more are dropped: who lies more than that is accused already.
const MAX_WAITING: usize = 64;

/// What was seen.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sight {
    /// A node did this.
    Did(NodeId, Offence),
    /// A node named this epoch.
    Named(NodeId, u64),
}

/// Takes what is seen.
pub(super) type Sights = mpsc::Sender<Sight>;

/// Where what is seen goes in and comes out.
pub(super) fn sights() -> (Sights, mpsc::Receiver<Sight>) {
    mpsc::channel(MAX_WAITING)
}

impl Council {
    /// `node`, which has proved that it is, did what no honest node does.
    pub fn offended(&self, node: NodeId, offence: Offence) {
        let _ = self.sights.try_send(Sight::Did(node, offence));
    }

    /// `node`, which has proved that it is, named an epoch that this node does not know.
    pub fn named(&self, node: NodeId, epoch: u64) {
        let _ = self.sights.try_send(Sight::Named(node, epoch));
    }

    /// Looks at what is seen for as long as the node runs. Of each node it has one accusation agreed on at a
    /// time: more than one counts for no more.
    pub(super) async fn witness(self: std::sync::Arc<Self>, mut sights: mpsc::Receiver<Sight>) {
        let mut accusing = JoinSet::new();
        let mut accused = BTreeMap::new();
        loop {
            tokio::select! {
                sight = sights.recv() => {
                    let Some(sight) = sight else { return };
                    let Some((node, offence)) = self.proven(sight).await else { continue };
                    self.account(node, offence);
                    let state = self.state();
                    let Some(member) = state.nodes.get(&node) else { continue };
                    let since = member.answers_since();
                    if !state.would_matter(self.own, node) || accused.get(&node) == Some(&since) {
                        continue;
                    }
                    accused.insert(node, since);
                    let agreement = self.agreement.clone();
                    accusing.spawn(async move {
                        agreement.accuse(node, since, offence).await;
                        (node, since)
                    });
                }
                Some(done) = accusing.join_next() => {
                    if let Ok((node, since)) = done
                        && accused.get(&node) == Some(&since)
                    {
                        accused.remove(&node);
                    }
                }
            }
        }
    }

    /// The offence that was seen, if it is one.
    async fn proven(&self, sight: Sight) -> Option<(NodeId, Offence)> {
        let (node, epoch) = match sight {
            Sight::Did(node, offence) => return Some((node, offence)),
            Sight::Named(node, epoch) => (node, epoch),
        };
        if epoch <= self.state().epoch {
            return None;
        }
        // This node may be late. What it reads now is later than what the other knew when it said so.
        let known = self.read().await.ok()?.epoch;
        (epoch > known).then_some((node, Offence::EpochToCome))
    }

    fn account(&self, node: NodeId, offence: Offence) {
        tracing::warn!(%node, "it did what no honest node does: {offence}");
        if let Some(cluster) = self.cluster.upgrade() {
            cluster.audit().record(Event::Offence {
                peer: node.get(),
                offence: offence.code(),
            });
        }
    }
}
