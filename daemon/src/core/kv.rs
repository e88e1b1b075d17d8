// SPDX-License-Identifier: MIT OR Apache-2.0

//! Texts by name that the nodes agree on, for services of the cluster.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The texts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Kv(pub BTreeMap<String, String>);

/// A change of the texts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    /// Sets a text.
    Put {
        /// Its name.
        name: String,
        /// The text.
        text: String,
    },
    /// Sets a text if it is as expected.
    Swap {
        /// Its name.
        name: String,
        /// What it has to be; none if there must be no such text.
        from: Option<String>,
        /// What it becomes.
        to: String,
    },
}

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Outcome {
    /// It was made.
    Done,
    /// The text was another.
    Differs {
        /// This one.
        is: Option<String>,
    },
}

impl Kv {
    /// Makes a change.
    pub fn apply(&mut self, command: &Command) -> Outcome {
        match command {
            Command::Put { name, text } => {
                self.0.insert(name.clone(), text.clone());
            }
            Command::Swap { name, from, to } => {
                let is = self.0.get(name);
                if is != from.as_ref() {
                    return Outcome::Differs { is: is.cloned() };
                }
                self.0.insert(name.clone(), to.clone());
            }
        }
        Outcome::Done
    }
}
