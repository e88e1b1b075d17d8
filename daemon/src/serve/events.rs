// SPDX-License-Identifier: MIT OR Apache-2.0

//! `Events`: what happens in the cluster, node by node as it is asked for.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::sys::socket::{MsgFlags, recv};
use ssi::id::NodeId;

use super::{Connection, Outcome};
use crate::api::{Event, EventsReply};
use crate::cluster::Cluster;
use crate::core::hlc::Stamp;
use crate::failure::Failure;
use crate::msg::{Answer, Recent, Request};
use crate::survey;
use crate::varlink::{self, Reply};

/// Pause from one look at all nodes to the next.
const EVERY: Duration = Duration::from_millis(500);
/// Longest wait for what a node has to tell.
const TOLD_IN: Duration = Duration::from_secs(3);

/// Up to where each node's events are known; the key of this one, and of a machine in no cluster, is none.
type Known = BTreeMap<Option<NodeId>, Stamp>;

impl Connection {
    /// Answers with the last events; called with `more`, with those that follow as well, for as long as
    /// somebody listens.
    pub(super) async fn events(&mut self, more: bool) -> Result<Outcome, varlink::Error> {
        if !self.user.is_admin {
            let refused: Result<(), Failure> = Err(Failure::NotAdministrator);
            return Ok(self.done("Events", String::new(), refused));
        }
        let mut known = Known::new();
        let mut first = true;
        loop {
            let events = self.news(&mut known).await;
            if !more {
                return Ok(Outcome::done(&EventsReply { events }));
            }
            if first || !events.is_empty() {
                let parameters = serde_json::to_value(EventsReply { events })?;
                self.send(&Reply {
                    parameters: Some(parameters),
                    continues: Some(true),
                    error: None,
                })
                .await?;
            }
            first = false;
            tokio::time::sleep(EVERY).await;
            if self.has_hung_up() {
                return Err(varlink::Error::Closed);
            }
        }
    }

    fn has_hung_up(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let read = recv(self.stream.as_fd().as_raw_fd(), &mut [0], flags);
        !matches!(read, Ok(1) | Err(nix::Error::EAGAIN))
    }

    /// What all nodes have to tell that is not `known`, in order.
    async fn news(&self, known: &mut Known) -> Vec<Event> {
        let after = |known: &Known, node| known.get(&node).copied().unwrap_or_default();
        let own = self.stage.audit().recent(after(known, None));
        if let Some((last, _)) = own.last() {
            known.insert(None, *last);
        }
        // What is no record is not told.
        let own = own.into_iter();
        let mut all: Vec<(Stamp, Event)> = own
            .filter_map(|(at, json)| Some((at, serde_json::from_str(&json).ok()?)))
            .collect();
        // A machine in no cluster has only its own.
        if let Ok(cluster) = self.stage.cluster() {
            for (node, told) in ask(&cluster, known).await {
                let Some(Answer::Recent(recent)) = told else {
                    continue;
                };
                let first = after(known, Some(node));
                for record in recent.records {
                    let at = Stamp::from_bits(record.stamp);
                    if at > first
                        && let Some(event) = told_by(node, at, &record.json)
                    {
                        known.insert(Some(node), at.max(after(known, Some(node))));
                        all.push((at, event));
                    }
                }
            }
        }
        all.sort_by_key(|(at, _)| *at);
        all.into_iter().map(|(_, event)| event).collect()
    }
}

/// What a node tells, if that is a record of its own, or of the machine before it was a node, from when it is said to be.
fn told_by(node: NodeId, at: Stamp, json: &str) -> Option<Event> {
    let event: Event = serde_json::from_str(json).ok()?;
    let is_its_own = [0, u32::from(node.get())].contains(&event.node);
    (is_its_own && event.hlc.parse() == Ok(at)).then_some(event)
}

/// What the other nodes have to tell.
async fn ask(cluster: &Cluster, known: &Known) -> Vec<(NodeId, Option<Answer>)> {
    let request = |node| {
        let after = known.get(&Some(node)).copied().unwrap_or_default();
        Request::Recent(Recent {
            after: after.bits(),
        })
    };
    let told = survey::ask_each(cluster.roster(), request, TOLD_IN).await;
    let told = told
        .into_iter()
        .map(|(node, a)| (node, a.map(|a| a.answer)));
    told.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_tells_only_what_happened_on_itself_and_when() {
        let at = Stamp::from_bits(7 << 20);
        let told = |node: u32, hlc: Stamp| {
            let time = "2027-01-02T03:04:05Z";
            let event = serde_json::json!({
                "hlc": hlc.to_string(), "time": time, "node": node, "event": "stopped",
            });
            event.to_string()
        };
        let two = NodeId::new(2).unwrap();
        let later = Stamp::from_bits(8 << 20);
        assert!(told_by(two, at, &told(2, at)).is_some());
        // Before it had a number.
        assert!(told_by(two, at, &told(0, at)).is_some());
        assert!(told_by(two, at, &told(1, at)).is_none());
        assert!(told_by(two, at, &told(2, later)).is_none());
        assert!(told_by(two, at, "{}").is_none());
    }
}
