// SPDX-License-Identifier: MIT OR Apache-2.0

//! The life of a cluster: founded by one command, joined by others, changed, broken and mended, each
//! step by the commands an administrator types.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cluster::{AS_USER, Cluster, N1, N2, N3, Node};
use crate::host::{Output, eventually};
use crate::moves::hop;
use crate::place::{Doing, prove_runs, prove_runs_among, task};
use crate::proc::{End, Proc, Start};
use crate::ssictl::{must_refuse, try_migrate};
use crate::suite::{Leg, Test};
use crate::tool::spin;

const N4: Node = Node(4);
/// A node that stands still is declared dead within this: the time set for that, and what a busy host adds.
const DECLARED_IN: Duration = Duration::from_secs(20);
/// What must come about by itself does so within this.
const SOON: Duration = Duration::from_secs(90);

/// The tests. Each goes on with the cluster of the one before, and founds one if there is none.
pub fn tests() -> Vec<Test> {
    vec![
        Test::new("found-and-join", found_and_join).on(Leg::Forming),
        Test::new("cordon", cordon).on(Leg::Forming),
        Test::new("authority", authority).on(Leg::Forming),
        Test::new("power-cut", power_cut).on(Leg::Forming),
        Test::new("minority", minority).on(Leg::Forming),
        Test::new("declared-dead", declared_dead).on(Leg::Forming),
        Test::new("leave", leave).on(Leg::Forming),
        Test::new("lost-voter", lost_voter).on(Leg::Forming),
        Test::new("revoked", revoked).on(Leg::Forming),
    ]
}

fn ok(output: Output) -> Result<String> {
    ensure!(output.status == 0, "{}", output.evidence());
    Ok(output.text().trim().to_owned())
}

/// The words of the line that begins with `ssictl node join`, without the first.
fn join_line(text: &str) -> Result<Vec<&str>> {
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
fn nodes(cluster: &Cluster, on: Node) -> Result<Vec<Value>> {
    let list = cluster.ssictl_json(on, &["node", "ls"])?;
    Ok(list.as_array().cloned().unwrap_or_default())
}

fn count(nodes: &[Value], key: &str, wanted: &str) -> usize {
    nodes.iter().filter(|n| n[key] == wanted).count()
}

/// `on` sees these nodes up, the rest of the cluster gone, three of them voting if there are so many.
fn whole(cluster: &Cluster, on: Node, wanted: &[&str]) -> Result<()> {
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

/// A cluster of four nodes, if there is none.
fn formed(cluster: &Cluster) -> Result<()> {
    if cluster.ssictl(N1, &["node", "ls"])?.status == 0 {
        return Ok(());
    }
    let text = ok(cluster.ssictl(N1, &["cluster", "init", "--addr", "10.77.0.1"])?)?;
    for on in [N2, N3, N4] {
        ok(cluster.ssictl(on, &join_line(&text)?)?)?;
    }
    whole(cluster, N1, &["n1", "n2", "n3", "n4"])
}

fn found_and_join(cluster: &Cluster) -> Result<()> {
    let none = cluster.ssictl(N1, &["node", "ls", "-o", "json"])?;
    must_refuse(&none, "no-cluster")?;
    let text = ok(cluster.ssictl(N1, &["cluster", "init"])?)?;
    whole(cluster, N1, &["n1"])?;
    let again = cluster.ssictl(N1, &["cluster", "init", "-o", "json"])?;
    must_refuse(&again, "already-in-a-cluster")?;
    let line = join_line(&text)?;
    for on in [N2, N3] {
        ok(cluster.ssictl(on, &line)?)?;
    }
    for on in [N1, N2, N3] {
        whole(cluster, on, &["n1", "n2", "n3"])?;
    }

    // Who has not all that is needed stays out, and is told why.
    let (token, hash) = (line[4], line[6]);
    let (id, secret) = token.split_once('.').context("a token has a dot")?;
    let guessed = format!("{id}.{}", "a".repeat(secret.len()));
    let other = format!("sha256:{}", "0".repeat(64));
    let join = |token: &str, hash: &str| {
        let words = [
            "node",
            "join",
            "10.77.0.2",
            "--token",
            token,
            "--ca-hash",
            hash,
        ];
        cluster.ssictl(N4, &[&words[..], &["-o", "json"]].concat())
    };
    must_refuse(&join(&guessed, hash)?, "token-unknown")?;
    must_refuse(&join(token, &other)?, "other-cluster")?;
    cluster.sh(N4, "date -s '+9 seconds' >/dev/null")?;
    let ahead = join(token, hash);
    cluster.sh(N4, "date -s '-9 seconds' >/dev/null")?;
    must_refuse(&ahead?, "facts-differ")?;
    ok(cluster.ssictl(N1, &["cluster", "token", "rm", id])?)?;
    must_refuse(&join(token, hash)?, "token-used-up")?;
    let user = format!("{AS_USER} ssictl cluster token create");
    let output = cluster.exec(N1, &["bash", "-c", &user])?;
    ensure!(
        output.status == 4,
        "a user makes tokens: {}",
        output.evidence()
    );

    // Any node makes a token, and lets machines in.
    let words = ["cluster", "token", "create", "--ttl", "5m", "--uses", "1"];
    let text = ok(cluster.ssictl(N3, &words)?)?;
    ok(cluster.ssictl(N4, &[&join_line(&text)?[..], &["--name", "four"]].concat())?)?;
    for on in [N1, N4] {
        whole(cluster, on, &["n1", "n2", "n3", "four"])?;
    }
    let shown = cluster.ssictl_json(N2, &["node", "show", "four"])?;
    ensure!(shown["id"] == 4 && shown["role"] == "learner", "{shown}");
    cluster.wait_linked(&cluster.nodes())?;
    Ok(())
}

/// A node leaves when nothing needs it any more, and comes back as another.
fn leave(cluster: &Cluster) -> Result<()> {
    formed(cluster)?;
    let mut proc = spin(cluster)?;
    hop(&proc, "spin", Doing::Computing, N4)?;
    must_refuse_text(&cluster.ssictl(N4, &["node", "leave"])?, "would end")?;
    hop(&proc, "spin", Doing::Computing, N2)?;
    ok(cluster.ssictl(N4, &["node", "leave"])?)?;
    whole(cluster, N1, &["n1", "n2", "n3"])?;
    prove_runs(cluster, proc.pid(), "spin", N1, N2, Doing::Computing)?;
    proc.must_pass()?;
    let text = ok(cluster.ssictl(N1, &["cluster", "token", "create"])?)?;
    // The module is still the node this machine was.
    let early = cluster.ssictl(N4, &join_line(&text)?)?;
    ensure!(early.status == 3, "{}", early.evidence());
    cluster.kill(N4)?;
    cluster.start(N4)?;
    whole(cluster, N1, &["n1", "n2", "n3", "n5"])
}

fn must_refuse_text(output: &Output, part: &str) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status == 5 && said.contains(part),
        "{}",
        output.evidence()
    );
    Ok(())
}

/// The name of the fourth machine, which depends on what happened to it.
fn fourth(cluster: &Cluster) -> Result<String> {
    let list = nodes(cluster, N4)?;
    let own = list.iter().find(|n| n["state"] == "self");
    let name = own.and_then(|n| n["name"].as_str());
    Ok(name.context("no node is itself")?.to_owned())
}

fn cordon(cluster: &Cluster) -> Result<()> {
    formed(cluster)?;
    let mut proc = spin(cluster)?;
    ok(cluster.ssictl(N1, &["node", "cordon", "n2"])?)?;
    eventually(SOON, || {
        let output = try_migrate(cluster, N1, proc.pid(), N2)?;
        Ok(must_refuse(&output, "not-hosted")
            .err()
            .map(|e| format!("{e:#}")))
    })?;
    let list = nodes(cluster, N3)?;
    ensure!(list[1]["cordoned"] == true, "{list:?}");
    ok(cluster.ssictl(N3, &["node", "uncordon", "n2"])?)?;
    eventually(SOON, || {
        let output = cluster.ssictl(N1, &["why", &proc.pid().to_string(), "--to", "n2"])?;
        Ok((output.status != 0).then(|| output.evidence()))
    })?;
    hop(&proc, "spin", Doing::Computing, N2)?;
    proc.must_pass()
}

/// Another authority, while a process is away, and no connection is lost by it.
fn authority(cluster: &Cluster) -> Result<()> {
    formed(cluster)?;
    let mut proc = spin(cluster)?;
    hop(&proc, "spin", Doing::Computing, N3)?;
    let show = |node: &str| cluster.ssictl_json(N1, &["node", "show", node]);
    let before = show("n2")?;
    let next = before["generation"].as_u64().context("no generation")? + 1;
    ok(cluster.ssictl(N2, &["cluster", "ca", "rotate"])?)?;
    let names = ["n1", "n2", "n3", &fourth(cluster)?];
    eventually(SOON, || {
        for name in names {
            let now = show(name)?;
            if now["generation"] != next {
                return Ok(Some(format!("{name}: {now}")));
            }
        }
        Ok(None)
    })?;
    ensure!(show("n2")?["fingerprint"] != before["fingerprint"]);
    // Soon the old one is believed by nobody, and the next can come.
    eventually(SOON, || {
        let on_disk = "grep -c BEGIN /var/lib/ssid/ca.pem";
        for on in cluster.nodes() {
            let believed = cluster.sh(on, on_disk)?;
            if believed != "1" {
                return Ok(Some(format!("{on} believes {believed} authorities")));
            }
        }
        Ok(None)
    })?;
    whole(cluster, N1, &names)?;
    hop(&proc, "spin", Doing::Computing, N2)?;
    proc.must_pass()
}

/// All lose power at once, and are one cluster again.
fn power_cut(cluster: &Cluster) -> Result<()> {
    formed(cluster)?;
    let before = nodes(cluster, N1)?;
    let names: Vec<&str> = before.iter().filter_map(|n| n["name"].as_str()).collect();
    for on in cluster.nodes() {
        cluster.kill(on)?;
    }
    cluster.on_all(&cluster.nodes(), |on| cluster.start(on))?;
    for on in cluster.nodes() {
        whole(cluster, on, &names)?;
    }
    let mut proc = spin(cluster)?;
    eventually(SOON, || {
        let output = cluster.ssictl(N1, &["why", &proc.pid().to_string(), "--to", "n3"])?;
        Ok((output.status != 0).then(|| output.evidence()))
    })?;
    hop(&proc, "spin", Doing::Computing, N3)?;
    proc.must_pass()
}

/// In which epochs `on` knows `node` to be there: since when, and when it was declared dead.
fn presence(cluster: &Cluster, on: Node, node: &str) -> Result<(u64, Option<u64>)> {
    let shown = cluster.ssictl_json(on, &["node", "show", node])?;
    let since = shown["since"].as_u64().context("since when is it there?")?;
    Ok((since, shown["ended"].as_u64()))
}

/// A node stands still for too long: it is declared dead, ends what it had when it runs again, and is
/// back in another epoch without a hand. One whose wire to another is cut is not.
fn declared_dead(cluster: &Cluster) -> Result<()> {
    formed(cluster)?;
    let before = nodes(cluster, N1)?;
    let names: Vec<&str> = before.iter().filter_map(|n| n["name"].as_str()).collect();
    let present = || -> Result<Vec<_>> {
        names
            .iter()
            .map(|name| presence(cluster, N2, name))
            .collect()
    };
    let all = present()?;
    cluster.cut(N1, N3)?;
    let cut = eventually(SOON, || {
        let list = nodes(cluster, N1)?;
        Ok((list[2]["state"] != "dead").then(|| format!("{list:?}")))
    });
    cluster.heal(N1, N3)?;
    cut.context("n1 and n3 do not hear each other")?;
    whole(cluster, N1, &names)?;
    ensure!(present()? == all, "somebody was declared dead: {all:?}");

    let mut hosted = spin(cluster)?;
    hop(&hosted, "spin", Doing::Computing, N3)?;
    let start = Instant::now();
    cluster.freeze(N3)?;
    let dead = eventually(SOON, || {
        let (_, ended) = presence(cluster, N2, "n3")?;
        Ok(ended
            .is_none()
            .then(|| "n3 is not declared dead".to_owned()))
    });
    let took = start.elapsed();
    let ended = dead.and_then(|()| {
        hosted
            .must_end(End::Signal(9))
            .context("what the dead one hosted")
    });
    cluster.thaw(N3)?;
    // Its clock stood still as well, and nothing else in it sets it.
    cluster.exec(N3, &["/usr/lib/unum/agent", "clock"])?;
    ended?;
    println!("      declared dead after {:.1} s", took.as_secs_f64());
    ensure!(took < DECLARED_IN, "declared dead after {took:?}");
    eventually(SOON, || {
        let left = task(cluster, N3, hosted.pid())?;
        Ok(left
            .filter(|t| !t.is_dead())
            .map(|t| format!("n3 still has {t:?}")))
    })?;
    for on in cluster.nodes() {
        whole(cluster, on, &names)?;
    }
    let ((was, _), (is, ended)) = (all[2], presence(cluster, N1, "n3")?);
    ensure!(is > was && ended.is_none(), "n3 is in its old epoch: {is}");
    let mut again = spin(cluster)?;
    hop(&again, "spin", Doing::Computing, N3)?;
    again.must_pass()
}

/// Two of four are cut off, one voter among them: they stop what they have to do with each other, and the
/// others go on. All is whole again when the wires are.
fn minority(cluster: &Cluster) -> Result<()> {
    formed(cluster)?;
    let before = nodes(cluster, N1)?;
    let names: Vec<&str> = before.iter().filter_map(|n| n["name"].as_str()).collect();
    let mut hosted = spin(cluster)?;
    hop(&hosted, "spin", Doing::Computing, N4)?;
    let mut local = spin(cluster)?;
    let mut going = Proc::start(cluster, &Start::guest("spin").home(N2))?;
    going.ready()?;
    hop(&going, "spin", Doing::Computing, N3)?;

    let wires = [(N1, N2), (N1, N3), (N4, N2), (N4, N3)];
    for (a, b) in wires {
        cluster.cut(a, b)?;
    }
    let mut body = || -> Result<()> {
        eventually(SOON, || {
            let pid = local.pid().to_string();
            let words = ["why", &pid, "--to", "n4", "-o", "json"];
            let output = cluster.ssictl(N1, &words)?;
            Ok(must_refuse(&output, "no-majority")
                .err()
                .map(|e| format!("{e:#}")))
        })?;
        hosted
            .must_end(End::Signal(9))
            .context("what the cut-off nodes shared")?;
        eventually(SOON, || {
            let left = task(cluster, N4, hosted.pid())?;
            Ok(left
                .filter(|t| !t.is_dead())
                .map(|t| format!("n4 still has {t:?}")))
        })?;
        prove_runs(cluster, local.pid(), "spin", N1, N1, Doing::Computing)?;
        let status = cluster.ssictl(N1, &["cluster", "status"])?;
        ensure!(
            status.status == 3 && status.text().contains("hears of no majority"),
            "{}",
            status.evidence()
        );
        let token = cluster.ssictl(N4, &["cluster", "token", "create"])?;
        ensure!(token.status == 3, "{}", token.evidence());
        // The others have somebody to lead them, and go on.
        eventually(SOON, || {
            let token = cluster.ssictl(N2, &["cluster", "token", "create"])?;
            Ok((token.status != 0).then(|| token.evidence()))
        })?;
        hop(&going, "spin", Doing::Computing, N2)?;
        hop(&going, "spin", Doing::Computing, N3)
    };
    let result = body();
    for (a, b) in wires {
        cluster.heal(a, b)?;
    }
    result?;
    for on in cluster.nodes() {
        whole(cluster, on, &names)?;
    }
    hop(&local, "spin", Doing::Computing, N4)?;
    local.must_pass()?;
    going.must_pass()
}

/// A voter is lost for good: another votes, the lost one is removed, and what is left is whole.
fn lost_voter(cluster: &Cluster) -> Result<()> {
    formed(cluster)?;
    let list = nodes(cluster, N1)?;
    let lost = [N3, N2]
        .into_iter()
        .find(|n| {
            list.iter()
                .any(|row| row["id"] == n.0 && row["role"] == "voter")
        })
        .context("neither n2 nor n3 only votes")?;
    let kept = if lost == N3 { N2 } else { N3 };
    let mut proc = spin(cluster)?;
    hop(&proc, "spin", Doing::Computing, kept)?;
    let alive = cluster.ssictl(N1, &["node", "remove", &lost.to_string()])?;
    must_refuse_text(&alive, "is up")?;
    cluster.kill(lost)?;
    let fourth = fourth(cluster)?;
    eventually(SOON, || {
        let list = nodes(cluster, N1)?;
        let row = list.iter().find(|n| n["name"] == fourth.as_str());
        let votes = row.is_some_and(|n| n["role"] == "voter");
        Ok((!votes).then(|| format!("{list:?}")))
    })?;
    let status = cluster.ssictl(N1, &["cluster", "status"])?;
    ensure!(status.status == 3, "{}", status.evidence());
    eventually(SOON, || {
        let output = cluster.ssictl(N1, &["node", "remove", &lost.to_string()])?;
        Ok((output.status != 0).then(|| output.evidence()))
    })?;
    let left = ["n1".to_owned(), kept.to_string(), fourth];
    let left: Vec<&str> = left.iter().map(String::as_str).collect();
    whole(cluster, kept, &left)?;
    let alive: Vec<Node> = cluster.nodes().into_iter().filter(|n| *n != lost).collect();
    prove_runs_among(
        cluster,
        &alive,
        proc.pid(),
        "spin",
        N1,
        kept,
        Doing::Computing,
    )?;

    // It comes back, and nobody listens to it, until it joins anew.
    cluster.start(lost)?;
    proc.must_pass()?;
    let seen = cluster.ssictl_json(lost, &["node", "ls"])?;
    let up = seen
        .as_array()
        .into_iter()
        .flatten()
        .filter(|n| n["state"] == "up");
    ensure!(up.count() == 0, "a removed node is listened to: {seen}");
    whole(cluster, N1, &left)?;
    ok(cluster.ssictl(lost, &["node", "leave", "--force"])?)?;
    cluster.kill(lost)?;
    cluster.start(lost)?;
    let text = ok(cluster.ssictl(kept, &["cluster", "token", "create"])?)?;
    ok(cluster.ssictl(lost, &join_line(&text)?)?)?;
    eventually(SOON, || {
        let list = nodes(cluster, N1)?;
        let up = count(&list, "state", "up");
        Ok((up != 3).then(|| format!("{list:?}")))
    })
}

/// A live node is revoked: its connections end within a second, and nobody lets it in again.
fn revoked(cluster: &Cluster) -> Result<()> {
    formed(cluster)?;
    let name = fourth(cluster)?;
    let before = nodes(cluster, N1)?.len();
    let start = Instant::now();
    ok(cluster.ssictl(N1, &["node", "revoke", &name])?)?;
    // It sees that those who knew it are gone, without waiting for the time of the dead.
    eventually(Duration::from_secs(15), || {
        let list = nodes(cluster, N4)?;
        let up = count(&list, "state", "up");
        Ok((up > 0).then(|| format!("{list:?}")))
    })?;
    println!(
        "      cut off after {:.1} s, by the clock of the tests",
        start.elapsed().as_secs_f64()
    );
    eventually(SOON, || {
        let output = cluster.ssictl(N4, &["cluster", "status"])?;
        let told = output.status == 3 && output.text().contains("hears of no majority");
        Ok((!told).then(|| output.evidence()))
    })?;
    let list = nodes(cluster, N1)?;
    ensure!(list.len() == before - 1, "{list:?}");
    let list = nodes(cluster, N4)?;
    ensure!(count(&list, "state", "up") == 0, "{list:?}");
    Ok(())
}
