// SPDX-License-Identifier: MIT OR Apache-2.0

//! The life of a cluster: founded by one command, joined by others, changed, broken and mended, each
//! step by the commands an administrator types.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::cluster::{AS_USER, Cluster, N1, N2, N3, Node};
use crate::host::{Output, eventually};
use crate::members::{
    Member, N4, SOON, count, formed, join_line, members, names, nodes, ok, one_with_role, presence,
    whole,
};
use crate::moves::hop;
use crate::place::{Doing, prove_runs, prove_runs_among, task};
use crate::proc::End;
use crate::ssictl::{must_refuse, try_migrate};
use crate::suite::{Leg, Test};
use crate::tool::{spin, spin_at};

/// A node that stands still is declared dead within this: the time set for that, and what a busy host adds.
const DECLARED_IN: Duration = Duration::from_secs(20);

/// The tests. Each goes on with the cluster of the one before, and founds one if there is none.
pub fn tests() -> Vec<Test> {
    vec![
        Test::new("found-and-join", found_and_join).on(Leg::Forming),
        Test::new("cordon", cordon).on(Leg::Forming),
        Test::new("authority", authority).on(Leg::Forming),
        Test::new("power-cut", power_cut).on(Leg::Forming),
        Test::new("declared-dead", declared_dead).on(Leg::Forming),
        Test::new("minority", minority).on(Leg::Forming),
        Test::new("leave", leave).on(Leg::Forming),
        Test::new("lost-voter", lost_voter).on(Leg::Forming),
        Test::new("revoked", revoked).on(Leg::Forming),
        Test::new("recover", recover).on(Leg::Forming),
    ]
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
    let tokens = || ok(cluster.ssictl(N2, &["cluster", "token", "ls"])?);
    ensure!(tokens()?.contains(id), "{}", tokens()?);
    ok(cluster.ssictl(N1, &["cluster", "token", "rm", id])?)?;
    ensure!(!tokens()?.contains(id), "{}", tokens()?);
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
    let line = join_line(&text)?;
    let (door, token, hash) = (line[2], line[4], line[6]);
    // Out of sight of `ps`.
    let join = format!(
        "SSI_TOKEN={token} ssictl node join {door} --ca-hash {hash} --name four --addr 10.77.0.4"
    );
    cluster.sh(N4, &join)?;
    for on in [N1, N4] {
        whole(cluster, on, &["n1", "n2", "n3", "four"])?;
    }
    let shown = cluster.ssictl_json(N2, &["node", "show", "four"])?;
    ensure!(shown["id"] == 4 && shown["role"] == "learner", "{shown}");
    let ends_ms = shown["certificate_ends_ms"].as_u64();
    ensure!(ends_ms > shown["joined_ms"].as_u64(), "{shown}");
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
    // The module is still the node this machine was, and its processes have the numbers of that.
    let early = cluster.ssictl(N4, &join_line(&text)?)?;
    ensure!(early.status == 3, "{}", early.evidence());
    boot(cluster, N4)?;
    whole(cluster, N1, &["n1", "n2", "n3", "n5"])?;

    // One that is alive goes by force as well, does not hear any more, and may join again.
    ok(cluster.ssictl(N2, &["node", "remove", "n5", "--force"])?)?;
    whole(cluster, N1, &["n1", "n2", "n3"])?;
    join_anew(cluster, N4, N3)?;
    whole(cluster, N4, &["n1", "n2", "n3", "n6"])
}

/// Power off and on.
fn boot(cluster: &Cluster, on: Node) -> Result<()> {
    cluster.kill(on)?;
    cluster.start(on)
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
    proc.must_pass()?;
    // Nobody has anything to be pardoned for.
    let shown = cluster.ssictl_json(N3, &["node", "show", "n2"])?;
    ensure!(shown["accusations"] == serde_json::json!([]), "{shown}");
    let pardon = cluster.ssictl(N1, &["node", "pardon", "n2"])?;
    must_refuse_text(&pardon, "nothing is held against")
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
    let all = members(cluster, N1)?;
    let names = names(&all);
    eventually(SOON, || {
        for name in &names {
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
    let all = members(cluster, N1)?;
    let names = names(&all);
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

/// A node stands still for too long: it is declared dead, ends what it had when it runs again, and is
/// back in another epoch without a hand. One whose wire to another is cut is not.
fn declared_dead(cluster: &Cluster) -> Result<()> {
    formed(cluster)?;
    let all = members(cluster, N1)?;
    let names = names(&all);
    let present = || -> Result<Vec<_>> {
        names
            .iter()
            .map(|name| presence(cluster, N2, name))
            .collect()
    };
    let present_before = present()?;
    cluster.cut(N1, N3)?;
    let cut = eventually(SOON, || {
        let list = nodes(cluster, N1)?;
        Ok((list[2]["state"] != "dead").then(|| format!("{list:?}")))
    });
    cluster.heal(N1, N3)?;
    cut.context("n1 and n3 do not hear each other")?;
    whole(cluster, N1, &names)?;
    ensure!(
        present()? == present_before,
        "somebody was declared dead: {present_before:?}"
    );

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
    let ((was, _), (is, ended)) = (present_before[2], presence(cluster, N1, "n3")?);
    ensure!(is > was && ended.is_none(), "n3 is in its old epoch: {is}");
    let mut again = spin(cluster)?;
    hop(&again, "spin", Doing::Computing, N3)?;
    again.must_pass()
}

/// The node that leads and the one that does not vote are cut off from the two others: they stop what they have
/// to do with each other, and the others go on. All is whole again when the wires are.
fn minority(cluster: &Cluster) -> Result<()> {
    formed(cluster)?;
    let all = members(cluster, N1)?;
    let (leader, learner) = (
        one_with_role(&all, "leader")?.machine,
        one_with_role(&all, "learner")?,
    );
    let few = [leader, learner.machine];
    let many: Vec<Node> = cluster
        .nodes()
        .into_iter()
        .filter(|n| !few.contains(n))
        .collect();
    let [home, host] = many[..] else {
        bail!("not two nodes are left: {all:?}")
    };
    let mut hosted = spin_at(cluster, leader)?;
    hop(&hosted, "spin", Doing::Computing, learner.machine)?;
    let mut local = spin_at(cluster, leader)?;
    let mut going = spin_at(cluster, home)?;
    hop(&going, "spin", Doing::Computing, host)?;

    let wires = few.map(|a| [(a, home), (a, host)]).concat();
    // At one moment: as long as the one that leads hears one of them it has a majority, and has the learner vote
    // instead of the other.
    cluster.cut_all(&wires)?;
    let mut body = || -> Result<()> {
        eventually(SOON, || {
            let pid = local.pid().to_string();
            let words = ["why", &pid, "--to", &learner.name, "-o", "json"];
            let output = cluster.ssictl(leader, &words)?;
            Ok(must_refuse(&output, "no-majority")
                .err()
                .map(|e| format!("{e:#}")))
        })?;
        hosted
            .must_end(End::Signal(9))
            .context("what the cut-off nodes shared")?;
        eventually(SOON, || {
            let left = task(cluster, learner.machine, hosted.pid())?;
            Ok(left
                .filter(|t| !t.is_dead())
                .map(|t| format!("{} still has {t:?}", learner.machine)))
        })?;
        prove_runs(
            cluster,
            local.pid(),
            "spin",
            leader,
            leader,
            Doing::Computing,
        )?;
        let status = cluster.ssictl(leader, &["cluster", "status"])?;
        ensure!(
            status.status == 3 && status.text().contains("hears of no majority"),
            "{}",
            status.evidence()
        );
        let token = cluster.ssictl(learner.machine, &["cluster", "token", "create"])?;
        ensure!(token.status == 3, "{}", token.evidence());
        // The others have somebody to lead them, and go on.
        eventually(SOON, || {
            let token = cluster.ssictl(home, &["cluster", "token", "create"])?;
            Ok((token.status != 0).then(|| token.evidence()))
        })?;
        hop(&going, "spin", Doing::Computing, home)?;
        hop(&going, "spin", Doing::Computing, host)
    };
    let result = body();
    cluster.heal_all(&wires)?;
    result?;
    for on in cluster.nodes() {
        whole(cluster, on, &names(&all))?;
    }
    hop(&local, "spin", Doing::Computing, learner.machine)?;
    local.must_pass()?;
    going.must_pass()
}

/// A voter is lost for good: another votes, the lost one is removed, and what is left is whole.
fn lost_voter(cluster: &Cluster) -> Result<()> {
    formed(cluster)?;
    let all = members(cluster, N1)?;
    let other_voter = |m: &&Member| m.role == "voter" && m.machine != N1;
    let lost = all
        .iter()
        .find(other_voter)
        .with_context(|| format!("n1 alone votes and does not lead: {all:?}"))?;
    let next = one_with_role(&all, "learner")?;
    let left: Vec<Member> = all
        .iter()
        .filter(|m| m.name != lost.name)
        .cloned()
        .collect();
    let kept = left
        .iter()
        .find(|m| m.machine != N1)
        .context("nobody is left")?
        .machine;
    let mut proc = spin(cluster)?;
    hop(&proc, "spin", Doing::Computing, kept)?;
    let alive = cluster.ssictl(N1, &["node", "remove", &lost.name])?;
    must_refuse_text(&alive, "is up")?;
    cluster.kill(lost.machine)?;
    eventually(SOON, || {
        let list = nodes(cluster, kept)?;
        let row = list.iter().find(|n| n["name"] == next.name.as_str());
        let votes = row.is_some_and(|n| n["role"] == "voter");
        Ok((!votes).then(|| format!("{list:?}")))
    })?;
    let status = cluster.ssictl(N1, &["cluster", "status"])?;
    ensure!(status.status == 3, "{}", status.evidence());
    eventually(SOON, || {
        let output = cluster.ssictl(N1, &["node", "remove", &lost.name])?;
        Ok((output.status != 0).then(|| output.evidence()))
    })?;
    let left_names = names(&left);
    whole(cluster, kept, &left_names)?;
    let alive: Vec<Node> = left.iter().map(|m| m.machine).collect();
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
    cluster.start(lost.machine)?;
    proc.must_pass()?;
    let seen = nodes(cluster, lost.machine)?;
    ensure!(
        count(&seen, "state", "up") == 0,
        "a removed node is listened to: {seen:?}"
    );
    whole(cluster, N1, &left_names)?;
    join_anew(cluster, lost.machine, kept)?;
    eventually(SOON, || {
        let list = nodes(cluster, N1)?;
        let up = count(&list, "state", "up");
        Ok((up != 3).then(|| format!("{list:?}")))
    })
}

/// The node that leads is revoked, alive: its connections end within a second, nobody lets it in again, and the
/// others have another to lead them.
fn revoked(cluster: &Cluster) -> Result<()> {
    formed(cluster)?;
    let all = members(cluster, N1)?;
    let victim = one_with_role(&all, "leader")?;
    let rest: Vec<Member> = all
        .iter()
        .filter(|m| m.name != victim.name)
        .cloned()
        .collect();
    let by = rest.first().context("there is no other")?.machine;
    let victim_sees = || nodes(cluster, victim.machine);
    // From when it is agreed on to when no socket is left that leads there, the kernels' own among them.
    let script = format!(
        "left() {{ ss -Htn state established dst {addr}; }}
        [ $(left | wc -l) -ge 4 ] || {{ echo too few before; left; exit 1; }}
        ssictl node revoke {name} >/dev/null || exit 1; begin=$(date +%s%N)
        for i in $(seq 400); do
            [ -z \"$(left)\" ] && {{ echo $(( ($(date +%s%N) - begin) / 1000000 )); exit 0; }}
        done; left; exit 1",
        addr = format_args!("10.77.0.{}", victim.machine.0),
        name = victim.name
    );
    let cut_ms: u64 = cluster.sh(by, &script)?.trim().parse()?;
    println!("      no connection to it is left {cut_ms} ms after that was agreed on");
    // An emulated node has one or two ways of its own to be late.
    ensure!(cut_ms < 3000, "it is connected still after {cut_ms} ms");
    eventually(Duration::from_secs(15), || {
        let list = victim_sees()?;
        let up = count(&list, "state", "up");
        Ok((up > 0).then(|| format!("{list:?}")))
    })?;
    whole(cluster, by, &names(&rest))?;
    eventually(SOON, || {
        let output = cluster.ssictl(victim.machine, &["cluster", "status"])?;
        let told = output.status == 3 && output.text().contains("hears of no majority");
        Ok((!told).then(|| output.evidence()))
    })?;
    let list = victim_sees()?;
    ensure!(count(&list, "state", "up") == 0, "{list:?}");
    Ok(())
}

/// A machine that nobody listens to any more joins again, as `by` lets it.
fn join_anew(cluster: &Cluster, machine: Node, by: Node) -> Result<()> {
    ok(cluster.ssictl(machine, &["node", "leave", "--force"])?)?;
    boot(cluster, machine)?;
    let text = ok(cluster.ssictl(by, &["cluster", "token", "create"])?)?;
    ok(cluster.ssictl(machine, &join_line(&text)?)?)?;
    Ok(())
}

/// Two of three voters are lost for good: the one who only hears goes on with the third, by a command.
fn recover(cluster: &Cluster) -> Result<()> {
    formed(cluster)?;
    let is_in = |on: &Node| -> Result<bool> {
        let status = cluster.ssictl(*on, &["cluster", "status"])?;
        Ok(!status.text().contains("hears of no majority"))
    };
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    for on in cluster.nodes() {
        match is_in(&on)? {
            true => inside.push(on),
            false => outside.push(on),
        }
    }
    let by = *inside.first().context("nobody is in the cluster")?;
    for machine in outside {
        join_anew(cluster, machine, by)?;
    }
    let all = members(cluster, by)?;
    whole(cluster, by, &names(&all))?;
    let (leader, hearer) = (
        one_with_role(&all, "leader")?,
        one_with_role(&all, "learner")?,
    );
    let mut voters = all.iter().filter(|m| m.role == "voter");
    let (Some(voter), Some(left)) = (voters.next(), voters.next()) else {
        bail!("three do not vote: {all:?}");
    };
    let (on, lost) = (hearer.machine, [leader, voter]);
    let names = lost.map(|m| m.name.as_str());
    let words = ["cluster", "recover", "--without", names[0], names[1]];
    must_refuse_text(&cluster.ssictl(on, &words)?, "a majority answers")?;

    ok(cluster.ssictl(on, &["kv", "put", "color", "blue"])?)?;
    ok(cluster.ssictl(on, &["kv", "get", "color"])?)?;
    let (mut local, mut away) = (spin_at(cluster, on)?, spin_at(cluster, on)?);
    hop(&away, "spin", Doing::Computing, leader.machine)?;
    for member in lost {
        cluster.kill(member.machine)?;
    }
    away.must_end(End::Signal(9))
        .context("its host is lost, and nobody says so")?;
    eventually(SOON, || {
        let output = cluster.ssictl(on, &words[..4])?;
        let told = must_refuse_text(&output, &format!("{} does not answer", names[1]));
        Ok(told.err().map(|e| format!("{e:#}")))
    })?;
    ok(cluster.ssictl(on, &words)?)?;
    let mut rest = [hearer.clone(), left.clone()];
    rest.sort_by_key(|m| all.iter().position(|n| n.name == m.name));
    let rest_names = rest.each_ref().map(|m| m.name.as_str());
    for member in &rest {
        whole(cluster, member.machine, &rest_names)?;
        let color = ok(cluster.ssictl(member.machine, &["kv", "get", "color"])?)?;
        ensure!(color == "blue", "{color}");
    }
    let there = rest.each_ref().map(|m| m.machine);
    let pid = local.pid();
    prove_runs_among(cluster, &there, pid, "spin", on, on, Doing::Computing)?;

    // The lost come back with all they had: they do not know it, and nobody listens to them.
    cluster.on_all(&lost.map(|m| m.machine), |machine| cluster.start(machine))?;
    eventually(SOON, || {
        let list = nodes(cluster, leader.machine)?;
        Ok((count(&list, "state", "up") != 1).then(|| format!("{list:?}")))
    })?;
    whole(cluster, on, &rest_names)?;
    hop(&local, "spin", Doing::Computing, left.machine)?;
    hop(&local, "spin", Doing::Computing, on)?;
    for member in lost {
        join_anew(cluster, member.machine, on)?;
    }
    let all = members(cluster, on)?;
    ensure!(all.len() == 4, "{all:?}");
    whole(cluster, left.machine, &crate::members::names(&all))?;
    local.must_pass()
}
