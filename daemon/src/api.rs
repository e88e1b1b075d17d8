// SPDX-License-Identifier: MIT OR Apache-2.0

//! The Varlink interface of the daemon, `io.unum.Cluster`: what `ssictl` and others may ask.

pub mod govern;
pub mod lock;
pub mod value;

use serde::{Deserialize, Serialize};

/// Name of the interface.
pub const INTERFACE: &str = "io.unum.Cluster";

/// Its description, in Varlink's own language.
pub const DESCRIPTION: &str = include_str!("io.unum.Cluster.varlink");

/// Parameters of `Migrate`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MigrateParameters {
    /// The process.
    pub pid: u32,
    /// The node, `2`, `n2` or its name.
    pub to: String,
    /// Answer only when its memory is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<bool>,
}

/// Answers of `Migrate`: any number with a phase, the last with the migration.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct MigrateReply {
    /// The phase it has entered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// What it took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<Migration>,
}

/// What a migration took.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Migration {
    /// The process.
    pub pid: u32,
    /// Node it left.
    pub from: u32,
    /// Node it runs on.
    pub to: u32,
    /// Times of the phases.
    pub times: Times,
    /// Bytes of the image without later pages.
    pub image_bytes: u64,
    /// Bytes of pages sent on request.
    pub fetched_bytes: u64,
    /// Bytes of pages sent unasked.
    pub pushed_bytes: u64,
}

/// Times in microseconds. The first two come before the process stops; the others count from when
/// it is told to.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Times {
    /// Reading the mapped files at the source.
    pub digest_us: u64,
    /// Making ready at the target.
    pub prepare_us: u64,
    /// Until every thread stood still.
    pub frozen_us: u64,
    /// Until the image was handed to the link.
    pub sent_us: u64,
    /// Until the target said it is ready.
    pub ready_us: u64,
    /// Until the commit was acknowledged: the downtime as the source sees it.
    pub committed_us: u64,
    /// Until the last page was at the target; 0 while it is not.
    pub filled_us: u64,
}

/// Parameters of `Why`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct WhyParameters {
    /// The process.
    pub pid: u32,
    /// The node it would go to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// Answer of `Why` for a process that would move; one that would not is [`ErrorParameters`].
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct WhyReply {
    /// The process.
    pub pid: u32,
    /// Node that runs it.
    pub node: u32,
    /// True.
    pub movable: bool,
}

/// Answer of `Ps`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct PsReply {
    /// The processes of the cluster in the order of their numbers.
    pub processes: Vec<Process>,
    /// Nodes that did not answer.
    pub missing: Vec<u32>,
}

/// A process of the cluster.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Node that runs it.
    pub node: u32,
    /// Node it was created on.
    pub home: u32,
    /// `home` where it was created, `away` from there, or `moving`.
    pub state: String,
    /// Operations on its files carried out at home since it left.
    pub forwarded: u64,
    /// Its threads.
    pub threads: u32,
    /// Its name.
    pub comm: String,
    /// Pages not yet fetched from where it came from.
    pub missing_pages: u64,
}

/// Answer of `Nodes`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct NodesReply {
    /// The nodes in the order of their numbers.
    pub nodes: Vec<Node>,
}

/// A node of the cluster.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Where its daemon listens.
    pub addr: String,
    /// `self`, `up`, `linking`, `silent` or `dead`, as the node that answers sees it; `quarantined` if most
    /// others accuse it.
    pub state: String,
    /// `leader`, `voter` or `learner`; empty as long as that is not known.
    pub role: String,
    /// Whether nothing new moves there.
    pub cordoned: bool,
}

/// Answer of `Status`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct StatusReply {
    /// `whole`, or `degraded` when there are problems.
    pub health: String,
    /// The node that leads, if one is known to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<u32>,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// The nodes in the order of their numbers.
    pub nodes: Vec<NodeStatus>,
}

/// Something that is wrong with the cluster.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Stable: `node-state`, `no-answer`, `clock-skew`, `no-majority`, `accused` or `quarantined`.
    pub kind: String,
    /// The node it is about.
    pub node: u32,
    /// For people.
    pub text: String,
}

/// A node of the cluster, and how far away it is.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct NodeStatus {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// As [`Node::state`].
    pub state: String,
    /// How long it took to answer, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round_trip_us: Option<i64>,
    /// How far its clock is ahead of the one of the node that was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_offset_us: Option<i64>,
}

/// What happened on a node, as its audit log has it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Event {
    /// Its place among all events: milliseconds since 1970, a dot, and a count.
    pub hlc: String,
    /// When, by the clock of that node.
    pub time: String,
    /// On which node; 0 while it was in no cluster.
    pub node: u32,
    /// What.
    pub event: String,
    /// What else there is to say about it.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, serde_json::Value>,
}

/// Answer of `Events`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct EventsReply {
    /// In order.
    pub events: Vec<Event>,
}

/// Answer of `Version`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct VersionReply {
    /// The daemon.
    pub daemon: String,
    /// The netlink protocol it shares with the module.
    pub netlink: u32,
    /// The protocol between the daemons.
    pub protocol: u32,
    /// The node that answers.
    pub node: u32,
}

/// Parameters of every error of the interface.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct ErrorParameters {
    /// For people: what did not happen and why.
    pub message: String,
    /// Stable reason code, of `Refused`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// File descriptor, address or thread the reason is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<u64>,
    /// Path or name the reason is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// For people: what one can do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Health of a cluster without problems.
pub const WHOLE: &str = "whole";
/// Health of one that has some.
pub const DEGRADED: &str = "degraded";

/// The errors of the interface, without its name.
pub mod error {
    /// The process cannot move; nothing was touched.
    pub const REFUSED: &str = "Refused";
    /// There is no such process or node.
    pub const NOT_FOUND: &str = "NotFound";
    /// The process belongs to another user.
    pub const NOT_PERMITTED: &str = "NotPermitted";
    /// A node or the module could not be asked.
    pub const UNAVAILABLE: &str = "Unavailable";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_the_interface() {
        let document = include_str!("../../Documentation/admin/varlink.md");
        let (_, rest) = document.split_once("```\n").unwrap();
        let (shown, _) = rest.split_once("```\n").unwrap();
        assert_eq!(shown, DESCRIPTION);
    }
}
