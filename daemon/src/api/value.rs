// SPDX-License-Identifier: MIT OR Apache-2.0

//! The part of the interface that is about values the nodes agree on.

use serde::{Deserialize, Serialize};

use crate::core::state::spell::{base64, optional_base64};

/// Parameters of `GetValue`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct GetValueParameters {
    /// Its name.
    pub name: String,
}

/// Parameters of `SetValue`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SetValueParameters {
    /// Its name.
    pub name: String,
    /// Its bytes.
    #[serde(with = "base64")]
    pub value: Vec<u8>,
    /// Only if it is of this revision; 0 if there must be none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<u64>,
}

/// Parameters of `DeleteValue`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteValueParameters {
    /// Its name.
    pub name: String,
    /// Only if it is of this revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<u64>,
}

/// Answer of `SetValue` and `DeleteValue`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct RevisionReply {
    /// Number of the change.
    pub revision: u64,
}

/// Parameters of `ListValues`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ListValuesParameters {
    /// What the names begin with.
    pub prefix: String,
}

/// Answer of `GetValue`, and a value in lists.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Value {
    /// Its name.
    pub name: String,
    /// Its bytes.
    #[serde(with = "base64")]
    pub value: Vec<u8>,
    /// Number of the change that made it.
    pub revision: u64,
}

/// Answer of `ListValues`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct ListValuesReply {
    /// Number of the last change of any value: `WatchValues` goes on from here.
    pub revision: u64,
    /// Those values, in the order of their names.
    pub values: Vec<Value>,
}

/// Parameters of `WatchValues`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct WatchValuesParameters {
    /// What the names begin with.
    pub prefix: String,
    /// Tell the changes after this one; those to come if not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
}

/// Answers of `WatchValues`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct WatchValuesReply {
    /// All changes up to this one are told.
    pub revision: u64,
    /// The changes, the oldest first.
    pub changes: Vec<Change>,
}

/// A change of a value.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Its name.
    pub name: String,
    /// Its bytes; null if it was deleted.
    #[serde(with = "optional_base64")]
    pub value: Option<Vec<u8>>,
    /// Number of the change.
    pub revision: u64,
}
