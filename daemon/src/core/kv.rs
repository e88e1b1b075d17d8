// SPDX-License-Identifier: MIT OR Apache-2.0

//! Small values by name that the nodes agree on, for services of the cluster.
//!
//! Every change has a number, the revision; a value bears that of the change that made it. Who asks for
//! a change may ask for a value to be of a certain revision still. The last changes are kept: who
//! knows the values of a revision learns from them what is otherwise by now.
//!
//! A change bears a random number and the revision after which it was asked for. One whose answer was
//! lost may be asked for again: it is not made twice.

use std::collections::BTreeMap;
use std::ops::Bound::{Included, Unbounded};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::state::Unique;
use super::state::spell;

#[cfg(test)]
mod tests;

/// Longest name.
pub const MAX_NAME_BYTES: usize = 256;
/// Longest value.
pub const MAX_VALUE_BYTES: usize = 64 << 10;
/// Most values.
pub const MAX_VALUES: usize = 4096;
/// Most of all names and values together.
pub const MAX_TOTAL_BYTES: usize = 2 << 20;
/// Most changes that are kept.
pub const MAX_CHANGES: usize = 1024;
/// Most of their names and values together.
pub const MAX_CHANGES_BYTES: usize = 256 << 10;
/// So many numbers of changes are known again.
pub const MAX_MADE: usize = 2048;

/// A value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Value {
    /// Its bytes.
    #[serde(with = "spell::shared_base64")]
    pub bytes: Arc<[u8]>,
    /// Number of the change that made it.
    pub revision: u64,
}

/// A change that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Name of the value.
    pub name: Arc<str>,
    /// The value; none if it was deleted.
    pub value: Option<Value>,
}

/// A wish for a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// Random.
    pub id: Unique,
    /// The revision that was known when it was asked for.
    pub after: u64,
    /// Name of the value.
    pub name: String,
    /// Only if the value is of this revision; 0 if there must be none.
    pub expected: Option<u64>,
    /// What it should be; none to delete it.
    #[serde(with = "spell::optional_base64")]
    pub value: Option<Vec<u8>>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Outcome {
    /// It is as was asked for.
    Done {
        /// Number of the change; of the last one, if there was nothing to delete.
        revision: u64,
    },
    /// Nothing was changed.
    Refused(Refusal),
}

/// Why a change is not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Refusal {
    /// The value is of another revision.
    #[error("it is of revision {revision}")]
    Differs {
        /// Of this; 0 if there is none.
        revision: u64,
    },
    /// It is none.
    #[error("a name has 1 to 256 of the visible ASCII characters but \" and \\")]
    NameInvalid,
    /// It is too long.
    #[error("a value has 64 KiB at most")]
    TooLong,
    /// There is no room.
    #[error("there is no room for more values: remove some")]
    Full,
    /// It was asked for so long ago that nobody knows whether it was made.
    #[error("so much was changed since that nobody knows whether this was")]
    Forgotten,
}

impl Refusal {
    /// The word that stands for it, for programs. It never changes.
    pub const fn code(self) -> &'static str {
        match self {
            Refusal::Differs { .. } => "value-differs",
            Refusal::NameInvalid => "key-invalid",
            Refusal::TooLong => "value-too-long",
            Refusal::Full => "values-full",
            Refusal::Forgotten => "forgotten",
        }
    }
}

/// What was changed is not known any more from there on: look at all values, and go on from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the changes up to revision {first} are not kept any more")]
pub struct Compacted {
    /// Changes after this revision are known.
    pub first: u64,
}

/// All values. Each change is made in a copy, since somebody always looks at what was before: nothing that is long is
/// in it by itself, but names and bytes shared with that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kv {
    /// Number of the last change.
    revision: u64,
    values: BTreeMap<Arc<str>, Value>,
    /// Of all names and values together.
    bytes: usize,
    /// The last changes by number.
    changes: BTreeMap<u64, Change>,
    /// Of their names and values together.
    changes_bytes: usize,
    /// Numbers of the last wishes that were granted, by revision.
    made: BTreeMap<u64, Unique>,
}

impl Kv {
    /// Makes a change, if it can be made and was not.
    pub fn apply(&mut self, command: &Command) -> Outcome {
        self.change(command)
            .map_or_else(Outcome::Refused, |revision| Outcome::Done { revision })
    }

    /// Number of the last change.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// A value.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.values.get(name)
    }

    /// The values whose names begin with `prefix`, in the order of the names.
    pub fn list<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a Value)> {
        let from = self.values.range::<str, _>((Included(prefix), Unbounded));
        let of_prefix = from.take_while(move |(name, _)| name.starts_with(prefix));
        of_prefix.map(|(name, value)| (&**name, value))
    }

    /// The changes after revision `after` of the names that begin with `prefix`, the oldest first.
    ///
    /// # Errors
    /// [`Compacted`] if not all of them are known any more.
    pub fn since<'a>(
        &'a self,
        after: u64,
        prefix: &'a str,
    ) -> Result<impl Iterator<Item = (u64, &'a Change)>, Compacted> {
        let first = self.changes.keys().next().copied();
        let first = first.map_or(self.revision, |oldest| oldest.saturating_sub(1));
        if after < first {
            return Err(Compacted { first });
        }
        let later = self.changes.range(after.saturating_add(1)..);
        let of_prefix = later.filter(move |(_, change)| change.name.starts_with(prefix));
        Ok(of_prefix.map(|(revision, change)| (*revision, change)))
    }

    fn change(&mut self, command: &Command) -> Result<u64, Refusal> {
        let Command { name, value, .. } = command;
        super::lock::check_name(name).map_err(|_| Refusal::NameInvalid)?;
        if value.as_ref().is_some_and(|v| v.len() > MAX_VALUE_BYTES) {
            return Err(Refusal::TooLong);
        }
        let made = self.made.range(command.after.saturating_add(1)..);
        if let Some((revision, _)) = made.clone().find(|(_, id)| **id == command.id) {
            return Ok(*revision);
        }
        let known = self.made.keys().next();
        if known.is_some_and(|oldest| command.after < oldest.saturating_sub(1)) {
            return Err(Refusal::Forgotten);
        }
        let is = self.values.get(name.as_str());
        let revision = is.map_or(0, |v| v.revision);
        if command.expected.is_some_and(|wanted| wanted != revision) {
            return Err(Refusal::Differs { revision });
        }
        if is.is_none() && value.is_none() {
            return Ok(self.revision);
        }
        let size = |v: usize| name.len() + v;
        let without = is.map_or(0, |v| size(v.bytes.len()));
        let without = self.bytes.saturating_sub(without);
        let bytes = without.saturating_add(value.as_ref().map_or(0, |v| size(v.len())));
        let grows = is.is_none() && self.values.len() >= MAX_VALUES;
        if value.is_some() && (grows || bytes > MAX_TOTAL_BYTES) {
            return Err(Refusal::Full);
        }
        self.bytes = bytes;
        self.revision = self.revision.saturating_add(1);
        let revision = self.revision;
        let value = value.as_deref().map(|bytes| Value {
            bytes: bytes.into(),
            revision,
        });
        let name: Arc<str> = name.as_str().into();
        match &value {
            Some(value) => self.values.insert(Arc::clone(&name), value.clone()),
            None => self.values.remove(&name),
        };
        self.remember(command.id, Change { name, value });
        Ok(revision)
    }

    /// Keeps a change, and lets the oldest go.
    fn remember(&mut self, id: Unique, change: Change) {
        self.changes_bytes = self.changes_bytes.saturating_add(change.bytes());
        self.changes.insert(self.revision, change);
        while self.changes.len() > MAX_CHANGES || self.changes_bytes > MAX_CHANGES_BYTES {
            let Some((_, oldest)) = self.changes.pop_first() else {
                break;
            };
            self.changes_bytes = self.changes_bytes.saturating_sub(oldest.bytes());
        }
        self.made.insert(self.revision, id);
        if self.made.len() > MAX_MADE {
            self.made.pop_first();
        }
    }
}

impl Change {
    fn bytes(&self) -> usize {
        self.name.len() + self.value.as_ref().map_or(0, |v| v.bytes.len())
    }
}
