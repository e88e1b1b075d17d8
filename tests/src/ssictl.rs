// SPDX-License-Identifier: MIT OR Apache-2.0

//! What `ssictl -o json` answers, as far as the tests read it.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::cluster::{Cluster, Node, REFUSED};
use crate::host::Output;
use crate::members;

/// Longest a migration may take: the image of a big process over a slow link, and every bound inside it.
const MIGRATE: Duration = Duration::from_secs(90);

/// Whether `ssictl node ls` says that `node` is this one or linked.
pub fn is_linked(list: &Value, node: Node) -> bool {
    let name = Value::from(node.to_string());
    let rows = list.as_array().or_else(|| list["nodes"].as_array());
    rows.into_iter().flatten().any(|row| {
        let named = ["node", "name", "id"]
            .iter()
            .any(|key| row[key] == name || row[key] == node.0);
        named && matches!(row["state"].as_str(), Some("up" | "self" | "linked"))
    })
}

/// Asks `asked` to move a process; it may answer anything.
pub fn try_migrate(cluster: &Cluster, asked: Node, pid: u32, to: Node) -> Result<Output> {
    let (pid, to) = (pid.to_string(), members::name(cluster, asked, to)?);
    cluster.ssictl_within(
        asked,
        &["migrate", &pid, "--to", &to, "-o", "json"],
        MIGRATE,
    )
}

/// Moves a process; it must succeed. Returns the report.
pub fn migrate(cluster: &Cluster, asked: Node, pid: u32, to: Node) -> Result<Value> {
    let output = try_migrate(cluster, asked, pid, to)?;
    ensure!(
        output.status == 0,
        "ssictl migrate {pid} --to {to} on {asked}: {}",
        output.evidence()
    );
    last_json(&output)
}

/// The last line that is JSON: lines of progress may come first.
pub fn last_json(output: &Output) -> Result<Value> {
    let text = output.text();
    if let Ok(value) = serde_json::from_str(&text) {
        return Ok(value);
    }
    text.lines()
        .rev()
        .find_map(|line| serde_json::from_str(line).ok())
        .with_context(|| format!("no JSON: {}", output.evidence()))
}

/// The answer must be a refusal with this reason code and exit status 5.
pub fn must_refuse(output: &Output, reason: &str) -> Result<()> {
    ensure!(
        output.status == REFUSED,
        "not refused with status {REFUSED}: {}",
        output.evidence()
    );
    let answer = last_json(output)?;
    let code = find(&answer, "reason").and_then(Value::as_str);
    if code != Some(reason) {
        bail!("refused, but not for `{reason}`: {answer}");
    }
    Ok(())
}

/// The first value under this key, however deep.
pub fn find<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    match value {
        Value::Object(map) => map
            .get(key)
            .or_else(|| map.values().find_map(|inner| find(inner, key))),
        Value::Array(list) => list.iter().find_map(|inner| find(inner, key)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn output(status: i32, text: &str) -> Output {
        Output {
            status,
            stdout: text.into(),
            stderr: Vec::new(),
        }
    }

    #[test]
    fn refusals_are_told_apart() {
        must_refuse(&output(5, r#"{"error":{"reason":"traced"}}"#), "traced").unwrap();
        must_refuse(&output(5, r#"{"reason":"traced"}"#), "seccomp").unwrap_err();
        must_refuse(&output(1, r#"{"reason":"traced"}"#), "traced").unwrap_err();
        must_refuse(&output(5, "traced"), "traced").unwrap_err();
    }

    #[test]
    fn progress_may_come_before_the_report() {
        let got = last_json(&output(0, "{\"phase\":1}\n{\"pid\":7}\n")).unwrap();
        assert_eq!(got, json!({"pid": 7}));
    }
}
