// SPDX-License-Identifier: MIT OR Apache-2.0

//! The commands that found a cluster, change who is in it, and show its nodes.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use ssid::api::govern::{
    CordonParameters, CreateTokenParameters, DropTokenParameters, InitParameters, InvitationReply,
    JoinParameters, JoinReply, LeaveParameters, PardonParameters, RecoverParameters,
    RemoveParameters, ShowNodeParameters, ShowNodeReply, TokensReply,
};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::cli::{
    CaCommand, ClusterInit, ClusterRecover, NodeJoin, NodeLeave, NodeName, NodeRemove, NodeShow,
    Output, TokenCommand, TokenCreate,
};
use crate::fail::Fail;
use crate::show::{print, table};
use crate::{ask, out};

/// Calls a method that answers nothing.
fn order(socket: &Path, method: &str, parameters: &impl Serialize) -> Result<(), Fail> {
    ask::once::<Value>(socket, method, parameters).map(drop)
}

/// Calls a method and writes its answer, for people or for programs.
fn tell<T: Serialize + DeserializeOwned>(
    socket: &Path,
    method: &str,
    parameters: &impl Serialize,
    output: Output,
    text: impl FnOnce(&T) -> String,
) -> Result<(), Fail> {
    let reply: T = ask::once(socket, method, parameters)?;
    match output {
        Output::Json => out::json(&reply),
        Output::Text => out::line(&text(&reply)),
    }
}

/// What to type on a machine that is to join.
fn join_line(i: &InvitationReply) -> String {
    format!(
        "ssictl node join {} --token {} --ca-hash {}",
        i.addr, i.token, i.ca_hash
    )
}

/// A time as people read it.
fn time(ms: u64) -> String {
    let seconds = i64::try_from(ms / 1000).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|t| t.format(&Rfc3339).ok())
        .unwrap_or_default()
}

/// Founds a cluster.
pub(crate) fn init(socket: &Path, a: &ClusterInit) -> Result<(), Fail> {
    let parameters = InitParameters {
        name: a.name.clone(),
        node_name: a.node_name.clone(),
        addr: a.addr.clone(),
    };
    tell(
        socket,
        "Init",
        &parameters,
        a.output,
        |i: &InvitationReply| {
            format!(
                "The cluster is founded, and this is its first node. To add others, start ssid there and run, until {}:\n\n  {}\n\n`ssictl cluster token create` makes another such line.",
                time(i.expires_ms),
                join_line(i)
            )
        },
    )
}

/// Makes, lists or drops tokens.
pub(crate) fn token(socket: &Path, command: &TokenCommand) -> Result<(), Fail> {
    match command {
        TokenCommand::Create(a) => create_token(socket, a),
        TokenCommand::Ls(a) => {
            let reply: TokensReply = ask::once(socket, "Tokens", &json!({}))?;
            if a.output == Output::Json {
                return out::json(&reply.tokens);
            }
            let mut rows = table(["ID", "EXPIRES", "USES LEFT", "MADE BY UID"], &[2, 3]);
            for t in reply.tokens {
                rows.add_row([
                    t.id,
                    time(t.expires_ms),
                    t.uses_left.to_string(),
                    t.made_by_uid.to_string(),
                ]);
            }
            print(&rows)
        }
        TokenCommand::Rm { id } => {
            let id = id.clone();
            order(socket, "DropToken", &DropTokenParameters { id })
        }
    }
}

fn create_token(socket: &Path, a: &TokenCreate) -> Result<(), Fail> {
    let parameters = CreateTokenParameters {
        ttl_s: a.ttl.as_secs(),
        uses: a.uses,
    };
    tell(socket, "CreateToken", &parameters, a.output, join_line)
}

/// Changes the authority.
pub(crate) fn authority(socket: &Path, command: &CaCommand) -> Result<(), Fail> {
    match command {
        CaCommand::Rotate => order(socket, "RotateAuthority", &json!({})),
    }
}

/// Goes on without a majority.
pub(crate) fn recover(socket: &Path, a: &ClusterRecover) -> Result<(), Fail> {
    let without = a.without.clone();
    order(socket, "Recover", &RecoverParameters { without })
}

/// Joins a cluster.
pub(crate) fn join(socket: &Path, a: &NodeJoin) -> Result<(), Fail> {
    let parameters = JoinParameters {
        door: a.door.clone(),
        token: a.token.clone(),
        ca_hash: a.ca_hash.clone(),
        node_name: a.name.clone(),
        addr: a.addr.clone(),
    };
    tell(socket, "Join", &parameters, a.output, |j: &JoinReply| {
        format!("this machine is n{} of the cluster now", j.node)
    })
}

/// Takes this node out.
pub(crate) fn leave(socket: &Path, a: &NodeLeave) -> Result<(), Fail> {
    let force = Some(a.force);
    order(socket, "Leave", &LeaveParameters { force })
}

/// Takes another node out.
pub(crate) fn remove(socket: &Path, a: &NodeRemove) -> Result<(), Fail> {
    revoke(socket, &a.node, a.force)
}

/// Takes another node out, if it is to be even while it is alive.
pub(crate) fn revoke(socket: &Path, node: &str, force: bool) -> Result<(), Fail> {
    let parameters = RemoveParameters {
        node: node.to_owned(),
        force: Some(force),
    };
    order(socket, "Remove", &parameters)
}

/// Lets nothing new move to a node, or lets it again.
pub(crate) fn cordon(socket: &Path, a: &NodeName, cordoned: bool) -> Result<(), Fail> {
    let node = a.node.clone();
    order(socket, "Cordon", &CordonParameters { node, cordoned })
}

/// Holds nothing against a node any more.
pub(crate) fn pardon(socket: &Path, a: &NodeName) -> Result<(), Fail> {
    let node = a.node.clone();
    order(socket, "Pardon", &PardonParameters { node })
}

/// Shows all about a node.
pub(crate) fn show(socket: &Path, a: &NodeShow) -> Result<(), Fail> {
    let node = a.node.clone();
    let parameters = ShowNodeParameters { node };
    tell(
        socket,
        "ShowNode",
        &parameters,
        a.output,
        |n: &ShowNodeReply| {
            let accused = n.accusations.iter();
            let accused = accused.map(|a| format!("n{} ({})", a.by, a.offence));
            let accused: Vec<String> = accused.collect();
            let or_none = |text: String| match text.is_empty() {
                true => "-".to_owned(),
                false => text,
            };
            let lines = [
                ("name", n.name.clone()),
                ("number", n.id.to_string()),
                ("address", n.addr.clone()),
                ("state", n.state.clone()),
                ("role", n.role.clone()),
                ("cordoned", if n.cordoned { "yes" } else { "no" }.to_owned()),
                ("joined", time(n.joined_ms)),
                ("epoch", n.epoch.to_string()),
                ("there since", n.since.to_string()),
                (
                    "dead since",
                    n.ended.map_or("-".to_owned(), |at| at.to_string()),
                ),
                ("accused by", or_none(accused.join(", "))),
                (
                    "pardoned",
                    n.pardoned.map_or("-".to_owned(), |at| at.to_string()),
                ),
                ("certificate", n.fingerprint.clone()),
                (
                    "runs out",
                    n.certificate_ends_ms.map_or("-".to_owned(), time),
                ),
                ("authority", n.generation.to_string()),
                ("kernel", n.kernel.clone()),
                ("processor", n.features.join(" ")),
            ];
            let lines = lines.map(|(key, value)| format!("{key:<12}{value}"));
            lines.join("\n")
        },
    )
}
