// SPDX-License-Identifier: MIT OR Apache-2.0

//! Fences this node off when it hears of no majority, or was declared dead: it hosts nothing, moves
//! nothing, and what it has to do with other nodes ends, so that the majority may count on that.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::Council;
use crate::agree::pulse::Pulse;
use crate::core::state::Command;
use crate::failure::Failure;

/// Longest wait for the module to end what this node had to do with others.
const ENDED_IN: Duration = Duration::from_secs(30);
/// Pause before it is said again that this node is there.
const AGAIN: Duration = Duration::from_secs(1);

impl Council {
    /// Watches for as long as the node runs.
    pub(super) async fn watch_majority(self: Arc<Self>) {
        let mut pulse = Pulse::new(&self.agreement, self.fence_after);
        loop {
            let isolated = pulse.changed().await;
            let Some(cluster) = self.cluster.upgrade() else {
                return;
            };
            if isolated {
                tracing::warn!(
                    "no majority of the cluster answers: this node hosts nothing, and its processes elsewhere end"
                );
            } else {
                tracing::info!("a majority of the cluster answers again");
            }
            cluster.set_isolated(isolated).await;
        }
    }

    /// Has this node come back whenever the others take it for dead.
    pub(super) async fn watch_own_end(self: Arc<Self>) {
        let mut states = self.agreement.watch();
        loop {
            let state = Arc::clone(&states.borrow_and_update());
            // One that is quarantined waits for its pardon.
            let own = state.nodes.get(&self.own);
            let own = own.filter(|own| !own.conduct.quarantined);
            if let Some(ended) = own.and_then(|own| own.presence.ended)
                && let Err(f) = self.come_back(ended).await
            {
                tracing::info!("not back yet: {f}");
                sleep(AGAIN).await;
                continue;
            }
            if states.changed().await.is_err() {
                return;
            }
        }
    }

    /// Says that this node is there, once nothing is left of the epochs that are over.
    async fn come_back(&self, ended: u64) -> Result<(), Failure> {
        tracing::warn!(
            "the cluster took this node for dead: the processes it hosts and its own elsewhere end"
        );
        let cluster = self.cluster()?;
        let late = || Failure::Unavailable("the module has not ended what there was".to_owned());
        timeout(ENDED_IN, cluster.loose())
            .await
            .map_err(|_| late())?;
        drop(cluster);
        let node = self.own;
        self.propose(Command::ComeBack { node, ended })
            .await
            .map(drop)
    }
}
