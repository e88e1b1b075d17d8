// SPDX-License-Identifier: MIT OR Apache-2.0

//! Brings the messages of those who agree over the control connections.

use std::sync::Weak;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ssi::id::NodeId;

use crate::agree::carrier::{Asked, Carrier, NoAnswer};
use crate::cluster::Cluster;
use crate::core::liveness::State;
use crate::core::offence::Offence;
use crate::core::parts;
use crate::msg::{Answer, Request};

/// Nobody waits longer for an answer.
const ANSWER_IN: Duration = Duration::from_secs(60);

/// Carries messages to the peers of a cluster.
#[derive(Debug)]
pub(super) struct Envoy {
    cluster: Weak<Cluster>,
    /// The number of the next.
    messages: AtomicU64,
}

impl Envoy {
    pub(super) fn new(cluster: Weak<Cluster>) -> Self {
        Self {
            cluster,
            // Parts of a message of an earlier run are not to be taken for some of this one.
            messages: AtomicU64::new(crate::depart::random().unwrap_or_default()),
        }
    }
}

impl Carrier for Envoy {
    fn ask(&self, to: NodeId, message: Vec<u8>) -> Asked<'_> {
        Box::pin(async move {
            let cluster = self.cluster.upgrade().ok_or(NoAnswer::NotSent)?;
            let peer = cluster.roster().peer(to).ok_or(NoAnswer::NotSent)?;
            drop(cluster);
            // One that has no connection is not sent to; one that had may have got it.
            if peer.state() == State::Dead {
                return Err(NoAnswer::NotSent);
            }
            let id = self.messages.fetch_add(1, Ordering::Relaxed);
            let mut answer = Err(NoAnswer::NotSent);
            for part in parts::cut(id, &message) {
                let part = Request::Agree(part.into());
                answer = match peer.ask_once(part, ANSWER_IN).await {
                    Ok(Answer::Agreed(agreed)) => Ok(agreed.message),
                    _ => return Err(NoAnswer::Lost),
                };
            }
            answer
        })
    }

    fn offended(&self, node: NodeId, offence: Offence) {
        if let Some(cluster) = self.cluster.upgrade() {
            cluster.offended(node, offence);
        }
    }
}
