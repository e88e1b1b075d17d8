// SPDX-License-Identifier: MIT OR Apache-2.0

//! Who is a node, as `ssictl` says it, and a cluster made by its commands.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cluster::{Cluster, N1, N2, N3, Node};
use crate::host::{Output, eventually};

/// Fourth node.
pub(crate) const N4: Node = Node(4);
/// What must come about by itself does so within this.
pub(crate) const SOON: Duration = Duration::from_secs(90);

pub(crate) fn ok(output: Output) -> Result<String> {
    ensure!(output.status == 0, "{}", output.evidence());
    Ok(output.text().trim().to_owned())
}

/// The words of the line that begins with `ssictl node join`, without the first.
pub(crate) fn join_line(text: &str) -> Result<Vec<&str>> {
    let line = text
        .lines()
        .find(|l| l.trim().starts_with("ssictl node join"));
    Ok(line
        .with_context(|| format!("no line to join with: {text}"))?
        .split_whitespace()
        .skip(1)
        .collect())
}

/// What `ssictl node ls` says of the nodes, by name.
pub(crate) fn nodes(cluster: &Cluster, on: Node) -> Result<Vec<Value>> {
    let list = cluster.ssictl_json(on, &["node", "ls"])?;
    Ok(list.as_array().cloned().unwrap_or_default())
}

pub(crate) fn count(nodes: &[Value], key: &str, wanted: &str) -> usize {
    nodes.iter().filter(|n| n[key] == wanted).count()
}

/// `on` sees these nodes up, the rest of the cluster gone, three of them voting if there are so many.
pub(crate) fn whole(cluster: &Cluster, on: Node, wanted: &[&str]) -> Result<()> {
    eventually(SOON, || {
        let output = cluster.ssictl(on, &["cluster", "status"])?;
        let nodes = nodes(cluster, on)?;
        let names: Vec<&str> = nodes.iter().filter_map(|n| n["name"].as_str()).collect();
        let voters = nodes.len() - count(&nodes, "role", "learner") - count(&nodes, "role", "");
        let right = output.status == 0
            && names == wanted
            && count(&nodes, "role", "leader") == 1
            && voters == if wanted.len() < 3 { 1 } else { 3 };
        Ok((!right).then(|| format!("{on} says {nodes:?}, {}", output.evidence())))
    })
}

/// A node of the cluster.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    /// The machine, which may have been another node before.
    pub machine: Node,
    /// What it is called.
    pub name: String,
    /// `leader`, `voter` or `learner`.
    pub role: String,
}

/// The nodes, by number, as `on` knows them.
pub(crate) fn members(cluster: &Cluster, on: Node) -> Result<Vec<Member>> {
    let list = nodes(cluster, on)?;
    let member = |row: &Value| {
        let text = |key: &str| row[key].as_str().map(str::to_owned);
        let machine = text("addr")?.split([':', '.']).nth(3)?.parse().ok()?;
        Some(Member {
            machine: Node(machine),
            name: text("name")?,
            role: text("role")?,
        })
    };
    list.iter()
        .map(|row| member(row).with_context(|| format!("a strange row: {row}")))
        .collect()
}

/// What `on` calls the node that a machine is.
pub(crate) fn name(cluster: &Cluster, on: Node, machine: Node) -> Result<String> {
    if cluster.is_formed() {
        return Ok(machine.to_string());
    }
    let mut all = members(cluster, on)?.into_iter();
    let member = all.find(|m| m.machine == machine);
    Ok(member
        .with_context(|| format!("machine {machine} is no node to {on}"))?
        .name)
}

/// Their names.
pub(crate) fn names(members: &[Member]) -> Vec<&str> {
    members.iter().map(|m| m.name.as_str()).collect()
}

/// The first of them with this role.
pub(crate) fn one_with_role<'m>(members: &'m [Member], role: &str) -> Result<&'m Member> {
    let member = members.iter().find(|m| m.role == role);
    member.with_context(|| format!("no {role} among {members:?}"))
}

/// A cluster of four nodes, if there is none.
pub(crate) fn formed(cluster: &Cluster) -> Result<()> {
    if cluster.ssictl(N1, &["node", "ls"])?.status == 0 {
        return Ok(());
    }
    let named = "cluster init --addr 10.77.0.1 --name lab --node-name n1";
    let words: Vec<&str> = named.split(' ').collect();
    let text = ok(cluster.ssictl(N1, &words)?)?;
    for on in [N2, N3, N4] {
        ok(cluster.ssictl(on, &join_line(&text)?)?)?;
    }
    whole(cluster, N1, &["n1", "n2", "n3", "n4"])
}

/// In which epochs `on` knows `node` to be there: since when, and when it was declared dead.
pub(crate) fn presence(cluster: &Cluster, on: Node, node: &str) -> Result<(u64, Option<u64>)> {
    let shown = cluster.ssictl_json(on, &["node", "show", node])?;
    let since = shown["since"].as_u64().context("since when is it there?")?;
    Ok((since, shown["ended"].as_u64()))
}
