// SPDX-License-Identifier: MIT OR Apache-2.0

//! The part of the interface that is about the cluster itself: founding and joining it, and its
//! nodes.

use serde::{Deserialize, Serialize};

/// Parameters of `Init`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct InitParameters {
    /// Name of the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Name of this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// Where the other nodes reach this one: an IP address, with or without a port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addr: Option<String>,
}

/// Parameters of `Join`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct JoinParameters {
    /// A node of the cluster: an IP address, with or without a port.
    pub door: String,
    /// The token, secret included.
    pub token: String,
    /// Hash of the cluster's authority.
    pub ca_hash: String,
    /// Name of this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// As [`InitParameters::addr`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addr: Option<String>,
}

/// Answer of `Join`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct JoinReply {
    /// The node this machine is now.
    pub node: u32,
}

/// Parameters of `CreateToken`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CreateTokenParameters {
    /// It is good for so long.
    pub ttl_s: u64,
    /// For so many machines; as many as a cluster can have if not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses: Option<u16>,
}

/// Answer of `Init` and `CreateToken`: all that a machine needs to join.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct InvitationReply {
    /// Where this node is reached.
    pub addr: String,
    /// The token, secret included: it is told this once.
    pub token: String,
    /// Hash of the cluster's authority.
    pub ca_hash: String,
    /// When the token ends, in ms since 1970.
    pub expires_ms: u64,
}

/// Answer of `Tokens`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct TokensReply {
    /// Those that can still be used.
    pub tokens: Vec<Token>,
}

/// A token without its secret.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Token {
    /// The part before the dot.
    pub id: String,
    /// When it ends, in ms since 1970.
    pub expires_ms: u64,
    /// For so many machines.
    pub uses_left: u16,
    /// The user who made it.
    pub made_by_uid: u32,
}

/// Parameters of `DropToken`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DropTokenParameters {
    /// The part before the dot.
    pub id: String,
}

/// Parameters of `Leave`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LeaveParameters {
    /// Even if processes end by it, or the other nodes cannot be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub force: Option<bool>,
}

/// Parameters of `Remove`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveParameters {
    /// The node: `2`, `n2` or its name.
    pub node: String,
    /// Even if it is alive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub force: Option<bool>,
}

/// Parameters of `Cordon`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CordonParameters {
    /// The node: `2`, `n2` or its name.
    pub node: String,
    /// Whether nothing new should move there.
    pub cordoned: bool,
}

/// Parameters of `Pardon`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PardonParameters {
    /// The node: `2`, `n2` or its name.
    pub node: String,
}

/// Parameters of `Recover`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RecoverParameters {
    /// The nodes that are lost, as [`CordonParameters::node`].
    pub without: Vec<String>,
}

/// That a node saw another do what no honest node does.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Accusation {
    /// Who saw it.
    pub by: u32,
    /// What: the word is stable.
    pub offence: String,
}

/// Parameters of `ShowNode`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ShowNodeParameters {
    /// The node: `2`, `n2` or its name.
    pub node: String,
}

/// Answer of `ShowNode`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct ShowNodeReply {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Where its daemon listens.
    pub addr: String,
    /// As [`super::Node::state`].
    pub state: String,
    /// As [`super::Node::role`].
    pub role: String,
    /// Whether nothing new moves there.
    pub cordoned: bool,
    /// When it joined, in ms since 1970.
    pub joined_ms: u64,
    /// The epoch that began when it joined.
    pub epoch: u64,
    /// The epoch since which it is there: that one, or the one that began when it came back last.
    pub since: u64,
    /// The epoch that began when it was declared dead, if it was and is not back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<u64>,
    /// The epoch that began when it was pardoned last, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pardoned: Option<u64>,
    /// What it is accused of since then.
    #[serde(default)]
    pub accusations: Vec<Accusation>,
    /// Fingerprint of its certificate.
    pub fingerprint: String,
    /// When that runs out, in ms since 1970, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_ends_ms: Option<u64>,
    /// The authority that made the certificate: how many there were before.
    pub generation: u32,
    /// Its kernel.
    pub kernel: String,
    /// What its processor can do for programs.
    pub features: Vec<String>,
}
