// SPDX-License-Identifier: MIT OR Apache-2.0

//! Fences this node off when it hears of no majority: it hosts nothing, moves nothing, and what it
//! has to do with other nodes ends, so that the majority may count on that.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Council;
use crate::core::isolation::Isolation;

/// How often it looks.
const EVERY: Duration = Duration::from_millis(250);

impl Council {
    /// Watches for as long as the node runs.
    pub(super) async fn watch_majority(self: Arc<Self>) {
        let start = Instant::now();
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let mut isolation = Isolation::new(ms(self.fence_after), 0);
        loop {
            sleep(EVERY).await;
            let has_majority = self.status().has_majority;
            let Some(isolated) = isolation.look(has_majority, ms(start.elapsed())) else {
                continue;
            };
            let Some(cluster) = self.cluster.upgrade() else {
                return;
            };
            if isolated {
                tracing::warn!(
                    "no majority of the cluster is heard of: this node hosts nothing, and its processes elsewhere end"
                );
            } else {
                tracing::info!("a majority of the cluster is heard of again");
            }
            cluster.set_isolated(isolated).await;
        }
    }
}
