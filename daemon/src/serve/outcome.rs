// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a call comes to, as an answer of the interface.

use serde::Serialize;
use serde_json::{Value, json};

use super::SERVICE;
use crate::api::{self, ErrorParameters, INTERFACE};
use crate::failure::{Failure, hint};

/// What a call comes to.
pub(super) enum Outcome {
    Done(Value),
    Failed { error: String, parameters: Value },
}

impl Outcome {
    /// It did, and answers that.
    pub(super) fn done(value: &impl Serialize) -> Self {
        match serde_json::to_value(value) {
            Ok(value) => Outcome::Done(value),
            Err(e) => Failure::Unavailable(e.to_string()).into(),
        }
    }

    /// An error that every Varlink service has, with its one parameter.
    pub(super) fn service_error(name: &str, field: &str, value: &str) -> Self {
        Outcome::Failed {
            error: format!("{SERVICE}.{name}"),
            parameters: json!({ field: value }),
        }
    }
}

impl From<Failure> for Outcome {
    fn from(failure: Failure) -> Self {
        let (error, parameters) = describe(&failure);
        Outcome::Failed {
            error: format!("{INTERFACE}.{error}"),
            parameters: json!(parameters),
        }
    }
}

/// A failure as an error of the interface.
fn describe(failure: &Failure) -> (&'static str, ErrorParameters) {
    let mut parameters = ErrorParameters {
        message: failure.to_string(),
        ..ErrorParameters::default()
    };
    let error = match failure {
        Failure::Refused(r) => {
            parameters.reason = Some(r.reason.code().to_owned());
            parameters.detail = (r.detail != 0).then_some(r.detail);
            parameters.text = (!r.text.is_empty()).then(|| r.text.clone());
            parameters.hint = Some(hint(r.reason).to_owned());
            api::error::REFUSED
        }
        Failure::NoProcess(_) => {
            parameters.hint = Some("`ssictl ps` lists the processes of the cluster".to_owned());
            api::error::NOT_FOUND
        }
        Failure::NoNode(_) => {
            parameters.hint = Some("`ssictl node ls` lists the nodes".to_owned());
            api::error::NOT_FOUND
        }
        Failure::NotPermitted(_) => {
            parameters.hint = Some(
                "only its owner, root and members of the group `ssi` may move a process".to_owned(),
            );
            api::error::NOT_PERMITTED
        }
        Failure::NotAdministrator => api::error::NOT_PERMITTED,
        Failure::Declined { code, .. } => {
            parameters.reason = Some(code.clone());
            parameters.hint = advice(code).map(str::to_owned);
            api::error::REFUSED
        }
        Failure::Unavailable(_) => {
            parameters.hint = Some("`ssictl cluster status` says what is wrong".to_owned());
            api::error::UNAVAILABLE
        }
    };
    (error, parameters)
}

/// What one can do when an administrator's wish is declined; for people.
fn advice(code: &str) -> Option<&'static str> {
    Some(match code {
        "no-cluster" => "`ssictl cluster init` founds one, `ssictl node join` joins one",
        "token-unknown" | "token-expired" | "token-used-up" => {
            "`ssictl cluster token create` on a node of the cluster makes another"
        }
        "held" | "lock-timeout" => "`ssictl lock ls` shows who holds it",
        "deadlock" => "give up what you hold, and begin again",
        "value-differs" => "`ssictl kv get` shows its revision",
        "compacted" => "`ssictl kv ls` shows all values and from where to watch",
        "has-majority" => "`ssictl node remove` takes out who is lost",
        "not-fenced" => "wait that long, and run it again",
        "name-taken" | "addr-taken" => {
            "--name, --addr; if that was this machine before, `ssictl node remove` it on another node"
        }
        "last-node" => "`ssictl node leave --force` ends the cluster",
        "rotation-underway" => {
            "`ssictl node show` tells which node has no certificate of the new authority yet"
        }
        "not-named" => "bring it back, or name it with --without too",
        "knows-less" => "run the same command there",
        "node-alive" => "`ssictl node leave` on that node, or --force here",
        "quarantined" => "`ssictl node pardon` on another node lets it back",
        "processes-away" => "`ssictl ps` lists them; --force ends them",
        "other-cluster" => {
            "the join line of `ssictl cluster token create` has the address and the hash"
        }
        _ => return None,
    })
}

/// Nothing to answer.
#[derive(Serialize)]
pub(super) struct Nothing {}

/// What came of a call that may fail.
pub(super) fn answer(result: Result<impl Serialize, Failure>) -> Outcome {
    result.map_or_else(Outcome::from, |reply| Outcome::done(&reply))
}

/// The parameters are none of this method.
pub(super) fn invalid(e: &serde_json::Error) -> Outcome {
    Outcome::service_error("InvalidParameter", "parameter", &e.to_string())
}
