// SPDX-License-Identifier: MIT OR Apache-2.0

//! The commands about values that the nodes agree on.

use std::io::Read;
use std::path::Path;

use serde_json::json;
use ssid::api::INTERFACE;
use ssid::api::value::{
    DeleteValueParameters, GetValueParameters, ListValuesParameters, ListValuesReply,
    RevisionReply, SetValueParameters, Value, WatchValuesParameters, WatchValuesReply,
};
use ssid::core::kv::MAX_VALUE_BYTES;
use ssid::varlink::{self, Client};

use crate::cli::{KvCommand, KvWatch, Output};
use crate::fail::Fail;
use crate::show::{print, table};
use crate::{ask, out};

/// Carries the command out.
pub(crate) fn run(socket: &Path, command: &KvCommand) -> Result<(), Fail> {
    match command {
        KvCommand::Get(a) => {
            let name = a.name.clone();
            let value: Value = ask::once(socket, "GetValue", &GetValueParameters { name })?;
            match a.output {
                Output::Json => out::json(&value),
                Output::Text => out::bytes(&value.value),
            }
        }
        KvCommand::Put(a) => set(socket, &a.name, &a.value, None, a.output),
        KvCommand::Cas(a) => set(socket, &a.name, &a.value, Some(a.revision), a.output),
        KvCommand::Rm(a) => {
            let parameters = DeleteValueParameters {
                name: a.name.clone(),
                expected: a.revision,
            };
            changed(&ask::once(socket, "DeleteValue", &parameters)?, a.output)
        }
        KvCommand::Ls(a) => list(socket, &a.prefix, a.output),
        KvCommand::Watch(a) => watch(socket, a),
    }
}

fn set(
    socket: &Path,
    name: &str,
    value: &str,
    expected: Option<u64>,
    output: Output,
) -> Result<(), Fail> {
    let value = if value == "-" {
        stdin()?
    } else {
        value.as_bytes().to_vec()
    };
    // A longer one may not even fit into a call.
    if value.len() > MAX_VALUE_BYTES {
        return Err(Fail::refused(
            "value-too-long",
            format!("a value has {MAX_VALUE_BYTES} bytes at most"),
        ));
    }
    let parameters = SetValueParameters {
        name: name.to_owned(),
        value,
        expected,
    };
    changed(&ask::once(socket, "SetValue", &parameters)?, output)
}

/// What stdin has, up to a little more than the longest value, which is refused.
fn stdin() -> Result<Vec<u8>, Fail> {
    let mut value = Vec::new();
    let most = u64::try_from(MAX_VALUE_BYTES).unwrap_or(u64::MAX);
    let mut stdin = std::io::stdin().lock().take(most.saturating_add(1));
    let read = stdin.read_to_end(&mut value);
    read.map_err(|e| Fail::other(&e))?;
    Ok(value)
}

fn changed(reply: &RevisionReply, output: Output) -> Result<(), Fail> {
    match output {
        Output::Json => out::json(reply),
        Output::Text => out::line(&reply.revision.to_string()),
    }
}

/// A value as one line of a table.
fn short(value: &[u8]) -> String {
    const MOST: usize = 60;
    let text = String::from_utf8_lossy(value);
    let mut short: String = text
        .chars()
        .take(MOST)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().count() > MOST {
        short.push_str("...");
    }
    short
}

fn list(socket: &Path, prefix: &str, output: Output) -> Result<(), Fail> {
    let prefix = prefix.to_owned();
    let reply: ListValuesReply = ask::once(socket, "ListValues", &ListValuesParameters { prefix })?;
    if output == Output::Json {
        return out::json(&reply);
    }
    let mut rows = table(["NAME", "REVISION", "BYTES", "VALUE"], &[1, 2]);
    for v in reply.values {
        let (revision, bytes) = (v.revision.to_string(), v.value.len().to_string());
        rows.add_row([v.name, revision, bytes, short(&v.value)]);
    }
    print(&rows)
}

/// Shows changes, one a line, until the daemon or a signal ends it.
fn watch(socket: &Path, a: &KvWatch) -> Result<(), Fail> {
    let parameters = WatchValuesParameters {
        prefix: a.prefix.clone(),
        after: a.after,
    };
    let told = |reply: WatchValuesReply| {
        for change in reply.changes {
            let (revision, name) = (change.revision, &change.name);
            out::line_of_many(&match (a.output, &change.value) {
                (Output::Json, _) => json!(change).to_string(),
                (Output::Text, Some(value)) => format!("{revision} {name} {}", short(value)),
                (Output::Text, None) => format!("{revision} {name} (deleted)"),
            });
        }
    };
    let method = format!("{INTERFACE}.WatchValues");
    let call = |told| Client::connect(socket, None)?.call(&method, &parameters, told);
    let ended: Result<WatchValuesReply, varlink::Error> = call(told);
    ended.map(drop).map_err(|e| Fail::call(socket, e))
}
