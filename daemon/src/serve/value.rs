// SPDX-License-Identifier: MIT OR Apache-2.0

//! The methods that are about values. Everybody may read them; administrators change them, which is
//! recorded.

use std::time::Duration;

use serde_json::Value;
use tokio::time::timeout;

use super::lock::is_closed;
use super::{Connection, Outcome, answer, invalid};
use crate::api::value::{
    self, Change, DeleteValueParameters, GetValueParameters, ListValuesParameters, ListValuesReply,
    RevisionReply, SetValueParameters, WatchValuesParameters, WatchValuesReply,
};
use crate::core::kv::{Compacted, Kv};
use crate::failure::Failure;
use crate::varlink::{self, Reply};

/// Who watches is looked after so often.
const LOOK: Duration = Duration::from_secs(1);
/// The word for a value that is not there.
const NO_VALUE: &str = "no-value";
/// The word for changes that are not kept any more.
const COMPACTED: &str = "compacted";

impl Connection {
    /// Calls a method, if it is one of these.
    ///
    /// # Errors
    /// When the connection fails.
    pub(super) async fn value(
        &mut self,
        method: &str,
        parameters: &Value,
        more: bool,
    ) -> Result<Option<Outcome>, varlink::Error> {
        macro_rules! with {
            ($p:ident => $answer:expr) => {
                match serde_json::from_value(parameters.clone()) {
                    Ok($p) => $answer,
                    Err(e) => invalid(&e),
                }
            };
        }
        Ok(Some(match method {
            "GetValue" => with!(p => answer(self.get_value(p).await)),
            "SetValue" => with!(p => self.set_value(p).await),
            "DeleteValue" => with!(p => self.delete_value(p).await),
            "ListValues" => with!(p => answer(self.list_values(p).await)),
            "WatchValues" => with!(p => self.watch_values(p, more).await?),
            _ => return Ok(None),
        }))
    }

    async fn get_value(&self, p: GetValueParameters) -> Result<value::Value, Failure> {
        let state = self.agreed().await?;
        let none = || Failure::declined(NO_VALUE, format!("no value is called {}", p.name));
        let value = state.kv.get(&p.name).ok_or_else(none)?;
        Ok(value::Value {
            value: value.bytes.to_vec(),
            revision: value.revision,
            name: p.name,
        })
    }

    async fn set_value(&self, p: SetValueParameters) -> Outcome {
        let subject = p.name.clone();
        let result = self.write(p.name, p.expected, Some(p.value)).await;
        self.done("SetValue", subject, result)
    }

    async fn delete_value(&self, p: DeleteValueParameters) -> Outcome {
        let subject = p.name.clone();
        let result = self.write(p.name, p.expected, None).await;
        self.done("DeleteValue", subject, result)
    }

    async fn write(
        &self,
        name: String,
        expected: Option<u64>,
        value: Option<Vec<u8>>,
    ) -> Result<RevisionReply, Failure> {
        self.administrator()?;
        let cluster = self.stage.cluster()?;
        let revision = cluster.council()?.write(name, expected, value).await?;
        Ok(RevisionReply { revision })
    }

    async fn list_values(&self, p: ListValuesParameters) -> Result<ListValuesReply, Failure> {
        let state = self.agreed().await?;
        let values = state.kv.list(&p.prefix).map(|(name, v)| value::Value {
            name: name.to_owned(),
            value: v.bytes.to_vec(),
            revision: v.revision,
        });
        Ok(ListValuesReply {
            revision: state.kv.revision(),
            values: values.collect(),
        })
    }

    /// Tells changes until the client has enough; one answer if it does not want more.
    async fn watch_values(
        &mut self,
        p: WatchValuesParameters,
        more: bool,
    ) -> Result<Outcome, varlink::Error> {
        let begun = async {
            let cluster = self.stage.cluster()?;
            let council = cluster.council()?;
            // What is known here is not from before the call.
            let now = council.read().await?.kv.revision();
            Ok::<_, Failure>((council.watch(), now))
        };
        let (mut state, now) = match begun.await {
            Ok(begun) => begun,
            Err(f) => return Ok(f.into()),
        };
        let mut after = p.after.unwrap_or(now);
        loop {
            let told = changes(&state.borrow_and_update().kv, after, &p.prefix);
            let reply = match told {
                Ok(reply) => reply,
                Err(e) => return Ok(Failure::declined(COMPACTED, e.to_string()).into()),
            };
            if !more {
                return Ok(Outcome::done(&reply));
            }
            after = reply.revision;
            if !reply.changes.is_empty() {
                self.send(&Reply {
                    parameters: Some(serde_json::to_value(reply)?),
                    continues: Some(true),
                    error: None,
                })
                .await?;
            }
            let changed = timeout(LOOK, state.changed()).await;
            if is_closed(&self.stream) {
                return Err(varlink::Error::Closed);
            }
            if let Ok(Err(_)) = changed {
                let gone = "this node takes part no more".to_owned();
                return Ok(Failure::Unavailable(gone).into());
            }
        }
    }
}

/// The changes after a revision.
fn changes(kv: &Kv, after: u64, prefix: &str) -> Result<WatchValuesReply, Compacted> {
    let changes = kv.since(after, prefix)?.map(|(revision, change)| Change {
        name: change.name.to_string(),
        value: change.value.as_ref().map(|v| v.bytes.to_vec()),
        revision,
    });
    Ok(WatchValuesReply {
        changes: changes.collect(),
        revision: kv.revision().max(after),
    })
}
