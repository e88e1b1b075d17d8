// SPDX-License-Identifier: MIT OR Apache-2.0

//! The part of the interface that is about locks. They belong to the connection: when it ends, they
//! are given up.

use serde::{Deserialize, Serialize};

use crate::core::lock::Mode;

/// Parameters of `Acquire`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AcquireParameters {
    /// Name of the lock.
    pub name: String,
    /// How it is held.
    pub mode: Mode,
    /// Wait for so long; none not to wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<u64>,
    /// The first time: what the connection holds is good for so long after each `Renew`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
    /// The first time: [`AcquireReply::session`] of the connection that waits for the end of this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
}

/// Answer of `Acquire`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct AcquireReply {
    /// Number of the grant, higher than that of every grant before.
    pub token: u64,
    /// Names the connection to its children.
    pub session: String,
    /// What the connection holds is good for so long after each `Renew`.
    pub ttl_ms: u64,
}

/// Parameters of `Release`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseParameters {
    /// Name of the lock.
    pub name: String,
}

/// Answer of `Locks`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct LocksReply {
    /// Those that are held, in the order of their names.
    pub locks: Vec<Lock>,
}

/// A lock.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Lock {
    /// Its name.
    pub name: String,
    /// Who has it.
    pub holders: Vec<Party>,
    /// Who waits, the first first.
    pub waiting: Vec<Party>,
}

/// One who has a lock or waits for it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Party {
    /// Node he asked.
    pub node: u32,
    /// The user.
    pub uid: u32,
    /// How.
    pub mode: Mode,
    /// Number of the grant; 0 of one who waits.
    pub token: u64,
    /// It is another node that keeps the lock for whoever asks there: somebody may have it.
    #[serde(default)]
    pub kept: bool,
}
