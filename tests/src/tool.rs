// SPDX-License-Identifier: MIT OR Apache-2.0

//! The command line: any of it on any node for any process.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::cluster::{AS_USER, Cluster, N1, N2, N3, Node};
use crate::host::eventually;
use crate::moves::hop;
use crate::place::{Doing, prove_runs};
use crate::proc::{Proc, Start};
use crate::ssictl::{find, last_json, migrate};
use crate::suite::Test;

/// The tests.
pub fn tests() -> Vec<Test> {
    vec![
        Test::new("tool-anywhere", anywhere),
        Test::new("tool-ps", ps),
        Test::new("tool-node-names", node_names),
        Test::new("tool-report", report),
        Test::new("tool-wait", wait),
        Test::new("tool-timeout", timeout),
        Test::new("tool-manual", manual),
        Test::new("tool-mistakes", mistakes),
        Test::new("tool-audit", audit),
        Test::new("tool-status", status),
        Test::new("tool-service", service),
        Test::new("tool-metrics", metrics),
        Test::new("pid-ranges", pid_ranges),
    ]
}

/// A program that computes until told, ready.
pub(crate) fn spin(cluster: &Cluster) -> Result<Proc<'_>> {
    spin_at(cluster, N1)
}

/// The same at another home.
pub(crate) fn spin_at(cluster: &Cluster, home: Node) -> Result<Proc<'_>> {
    let proc = Proc::start(cluster, &Start::guest("spin").home(home))?;
    proc.ready()?;
    Ok(proc)
}

/// Asked on a node that is neither home, source nor target.
fn anywhere(cluster: &Cluster) -> Result<()> {
    let mut proc = spin(cluster)?;
    for (asked, to) in [(N3, N2), (N1, N3), (N2, N1), (N2, N3), (N1, N2)] {
        migrate(cluster, asked, proc.pid(), to).with_context(|| format!("asked on {asked}"))?;
        prove_runs(cluster, proc.pid(), "spin", N1, to, Doing::Computing)?;
        let answer = cluster.ssictl_json(asked, &["why", &proc.pid().to_string()])?;
        ensure!(
            find(&answer, "movable") == Some(&Value::Bool(true)),
            "why on {asked} says {answer}"
        );
    }
    proc.must_pass()
}

/// The row of a process in `ssictl ps` on a node.
fn row(cluster: &Cluster, on: Node, pid: u32) -> Result<Option<Value>> {
    let list = cluster.ssictl_json(on, &["ps"])?;
    let rows = list["processes"].as_array().or_else(|| list.as_array());
    let rows = rows.with_context(|| format!("ssictl ps on {on} holds no list: {list}"))?;
    Ok(rows.iter().find(|row| row["pid"] == pid).cloned())
}

fn names(value: &Value, node: Node) -> bool {
    *value == node.0 || *value == node.to_string().as_str()
}

/// Every node shows the same of a process that is away.
fn ps(cluster: &Cluster) -> Result<()> {
    let mut proc = Proc::start(cluster, &Start::guest("count 20"))?;
    proc.ready()?;
    let mut forwarded = 0;
    for to in [N2, N3, N1] {
        hop(&proc, "count", Doing::Sleeping, to)?;
        for on in cluster.nodes() {
            let row = row(cluster, on, proc.pid())?
                .with_context(|| format!("ssictl ps on {on} lacks it"))?;
            let right = names(&row["node"], to)
                && names(&row["home"], N1)
                && row["state"] == if to == N1 { "home" } else { "away" }
                && row["comm"] == "count"
                && row["threads"] == 1;
            ensure!(right, "ssictl ps on {on} says {row} of a process at {to}");
        }
        // Its lines are written at home, and that is counted.
        if to != N1 {
            eventually(Duration::from_secs(30), || {
                let row = row(cluster, N1, proc.pid())?.context("ssictl ps lacks it")?;
                let now = row["forwarded"]
                    .as_u64()
                    .with_context(|| format!("no number: {row}"))?;
                Ok((now <= forwarded).then(|| format!("forwarded stays at {now}")))
            })?;
            forwarded = row(cluster, N1, proc.pid())?.context("lacks it")?["forwarded"]
                .as_u64()
                .unwrap_or(0);
        }
    }
    hop(&proc, "count", Doing::Sleeping, N2)?;
    proc.must_pass()?;
    eventually(Duration::from_secs(20), || {
        for on in cluster.nodes() {
            if let Some(row) = row(cluster, on, proc.pid())? {
                return Ok(Some(format!(
                    "it has ended, and ssictl ps on {on} says {row}"
                )));
            }
        }
        Ok(None)
    })
}

/// `2` and `n2` name the same node.
fn node_names(cluster: &Cluster) -> Result<()> {
    let mut proc = spin(cluster)?;
    let pid = proc.pid().to_string();
    for (word, to) in [("2", N2), ("n3", N3), ("1", N1)] {
        let output = cluster.ssictl(N1, &["migrate", &pid, "--to", word])?;
        ensure!(output.status == 0, "--to {word}: {}", output.evidence());
        prove_runs(cluster, proc.pid(), "spin", N1, to, Doing::Computing)?;
    }
    proc.must_pass()
}

/// A migration's report has its times in order and its bytes; a large process is not shipped at once.
fn report(cluster: &Cluster) -> Result<()> {
    let mut proc = Proc::start(cluster, &Start::guest("memory hold 32"))?;
    proc.ready()?;
    let report = migrate(cluster, N1, proc.pid(), N2)?;
    let number = |key: &str| {
        find(&report, key)
            .and_then(Value::as_u64)
            .with_context(|| format!("no {key} in {report}"))
    };
    let times = ["frozen_us", "sent_us", "ready_us", "committed_us"];
    let times = times.into_iter().map(number).collect::<Result<Vec<_>>>()?;
    ensure!(
        times.is_sorted() && times[0] > 0,
        "the times are not in order: {report}"
    );
    let image = number("image_bytes")?;
    ensure!(
        image > 1000 && image < 8 << 20,
        "an image of {image} bytes for a process of 32 MiB: {report}"
    );
    prove_runs(cluster, proc.pid(), "memory", N1, N2, Doing::Computing)?;
    proc.must_pass()
}

/// Who waits for the memory hears all of it in the end: the move, and every byte.
fn wait(cluster: &Cluster) -> Result<()> {
    let mut proc = Proc::start(cluster, &Start::guest("memory hold 32"))?;
    proc.ready()?;
    let pid = proc.pid().to_string();
    let words = ["migrate", &pid, "--to", "n2", "--wait", "-o", "json"];
    let output = cluster.ssictl_within(N1, &words, Duration::from_secs(60))?;
    ensure!(output.status == 0, "{}", output.evidence());
    let report = last_json(&output)?;
    let number = |key: &str| {
        find(&report, key)
            .and_then(Value::as_u64)
            .with_context(|| format!("no {key} in {report}"))
    };
    let bytes = number("image_bytes")? + number("fetched_bytes")? + number("pushed_bytes")?;
    ensure!(
        number("frozen_us")? > 0 && number("filled_us")? >= number("committed_us")?,
        "the times are not in order: {report}"
    );
    ensure!(bytes >= 32 << 20, "32 MiB went in {bytes} bytes: {report}");
    let row = row(cluster, N1, proc.pid())?.context("ssictl ps lacks it")?;
    ensure!(
        row["missing_pages"] == 0,
        "its memory is there, and ssictl ps says {row}"
    );
    prove_runs(cluster, proc.pid(), "memory", N1, N2, Doing::Computing)?;
    proc.must_pass()
}

/// Who gives up waiting is told that, and the process is where it was or where it went to.
fn timeout(cluster: &Cluster) -> Result<()> {
    let mut proc = spin(cluster)?;
    let pid = proc.pid().to_string();
    cluster.freeze(N2)?;
    let words = ["migrate", &pid, "--to", "n2", "--wait", "--timeout", "1"];
    let output = cluster.ssictl(N1, &words);
    cluster.thaw(N2)?;
    let output = output?;
    ensure!(output.status == 124, "{}", output.evidence());
    cluster.wait_linked(&cluster.nodes())?;
    proc.must_pass()
}

/// The manual pages and the completions can be made on a node, and the configuration be checked.
fn manual(cluster: &Cluster) -> Result<()> {
    let made = cluster.sh(
        N1,
        "mkdir -p /tmp/man && ssictl man /tmp/man && ssid --man /tmp/man && cat /tmp/man/*",
    )?;
    for title in [".TH ssictl 1", ".TH ssictl-node-join 1", ".TH ssid"] {
        ensure!(made.contains(title), "no page has {title}");
    }
    cluster.sh(N1, "ssictl completions bash | bash -n")?;
    cluster.sh(N1, "ssid --check-config")?;
    let wrong = "echo 'colour = 1' >/tmp/wrong.toml; ssid --config /tmp/wrong.toml --check-config";
    let output = cluster.exec(N1, &["bash", "-c", wrong])?;
    ensure!(
        output.status == 1 && output.errors().contains("colour"),
        "{}",
        output.evidence()
    );
    Ok(())
}

/// What the audit log of a node holds, one JSON object after the other.
fn records(cluster: &Cluster, on: Node) -> Result<Vec<Value>> {
    let text = cluster.sh(on, "cat /var/lib/ssid/audit/*.jsonl")?;
    text.lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("on {on}: {line}")))
        .collect()
}

/// Who was let in, who was turned away and who moved what is on the disk of the node, and cannot be changed unseen.
fn audit(cluster: &Cluster) -> Result<()> {
    let mut proc = spin(cluster)?;
    let pid = proc.pid();
    cluster.sh(N1, &format!("{AS_USER} ssictl migrate {pid} --to n2; true"))?;
    hop(&proc, "spin", Doing::Computing, N2)?;
    let stranger =
        "exec 3<>/dev/tcp/10.77.0.1/7400; echo let me in >&3; timeout 20 cat <&3 >/dev/null; true";
    cluster.sh(N2, stranger)?;

    let has = |on: Node, what: &str, wanted: &dyn Fn(&Value) -> bool| {
        eventually(Duration::from_secs(30), || {
            let missing = !records(cluster, on)?.iter().any(wanted);
            Ok(missing.then(|| format!("{on} has no record of {what}")))
        })
    };
    let migrate =
        |r: &Value, uid: u32| r["event"] == "migrate" && r["pid"] == pid && r["uid"] == uid;
    has(N1, "the user's try", &|r| {
        migrate(r, 65534) && r["outcome"] != "moved"
    })?;
    has(N1, "the move", &|r| {
        migrate(r, 0) && r["outcome"] == "moved" && r["to"] == 2
    })?;
    has(N2, "the arrival", &|r| {
        r["event"] == "arrival" && r["pid"] == pid && r["from"] == 1 && r["outcome"] == "ready"
    })?;
    has(N1, "the stranger", &|r| {
        let from = r["addr"].as_str().unwrap_or_default();
        r["event"] == "connection-refused" && from.starts_with("10.77.0.2:")
    })?;
    for (on, peer, incoming) in [(N1, 2, false), (N3, 1, true)] {
        has(on, "its peer", &|r| {
            r["event"] == "node-admitted" && r["peer"] == peer && r["incoming"] == incoming
        })?;
    }

    // A daemon that was killed goes on where it was.
    let head = cluster.ssictl_json(N1, &["audit", "verify"])?;
    let head = head["head"].as_str().context("no head")?.to_owned();
    cluster.sh(N1, "pkill -KILL -x ssid; sleep 0.5; ! pgrep -x ssid")?;
    cluster.start_daemon(N1)?;
    cluster.wait_linked(&cluster.nodes())?;
    let later = cluster.ssictl(N1, &["audit", "verify", "--head", &head])?;
    ensure!(later.status == 0, "after a restart: {}", later.evidence());

    let changed = [
        (
            "one user for another",
            "sed -i 's/\"uid\":65534/\"uid\":65533/'",
            "is not what its hash says",
        ),
        ("a line left out", "sed -i '2d'", "is not the one it names"),
        ("an end cut off", "sed -i '2,$d'", "no record has the hash"),
    ];
    for (what, how, says) in changed {
        let script = format!(
            "rm -rf /tmp/audit; cp -r /var/lib/ssid/audit /tmp/audit; for f in /tmp/audit/*; do {how} $f; done"
        );
        cluster.sh(N1, &script)?;
        let output = cluster.ssictl(N1, &["audit", "verify", "/tmp/audit", "--head", &head])?;
        let right = output.status == 1 && output.errors().contains(says);
        ensure!(right, "{what}: {}", output.evidence());
    }
    proc.must_pass()
}

/// What is wrong anywhere in the cluster is told anywhere, and by the exit status.
fn status(cluster: &Cluster) -> Result<()> {
    let is = |on: Node, wanted: &[&str]| {
        eventually(Duration::from_secs(40), || {
            let output = cluster.ssictl(on, &["cluster", "status", "-o", "json"])?;
            let answer = last_json(&output)?;
            let problems = answer["problems"].as_array().context("no problems")?;
            let texts: Vec<&str> = problems.iter().filter_map(|p| p["text"].as_str()).collect();
            let health = if wanted.is_empty() {
                "whole"
            } else {
                "degraded"
            };
            let right = output.status == if wanted.is_empty() { 0 } else { 3 }
                && answer["health"] == health
                && texts.len() == wanted.len()
                && texts.iter().zip(wanted).all(|(t, w)| t.starts_with(w));
            Ok((!right).then(|| format!("{on} says {}", output.evidence())))
        })
    };
    for on in cluster.nodes() {
        is(on, &[])?;
    }
    cluster.cut(N2, N3)?;
    let seen = is(N1, &["n2 is dead, say n3", "n3 is dead, say n2"]);
    cluster.heal(N2, N3)?;
    seen.context("while n2 and n3 do not hear each other")?;
    is(N1, &[]).context("after that")?;

    let clock = |by: &str| cluster.sh(N3, &format!("date -s '{by} seconds' >/dev/null"));
    clock("+9")?;
    let ahead = is(N1, &["the clock of n3 is "]);
    clock("-9")?;
    ahead.context("with a clock that is 9 s ahead")?;
    is(N1, &[]).context("with the clock put right")?;

    cluster.kill(N3)?;
    let dead = is(N2, &["n3 is dead, say n1, n2"]);
    cluster.start(N3)?;
    cluster.wait_linked(&cluster.nodes())?;
    dead.context("with n3 off")?;
    let text = cluster.ssictl(N2, &["cluster", "status"])?;
    ensure!(
        text.status == 0 && text.text().starts_with("whole\n"),
        "{}",
        text.evidence()
    );
    Ok(())
}

/// What monitoring gets on a node: status and text.
fn get(cluster: &Cluster, on: Node, path: &str) -> Result<String> {
    let script = format!(
        "import urllib.request as u, urllib.error as e
try:
    r = u.urlopen('http://127.0.0.1:7401{path}', timeout=30)
except e.HTTPError as error:
    r = error
print(r.status, r.read().decode())"
    );
    cluster.sh(on, &format!("python3 -c \"{script}\""))
}

/// A number that monitoring gets on a node.
pub(crate) fn metric(cluster: &Cluster, on: Node, name: &str) -> Result<u64> {
    let text = get(cluster, on, "/metrics")?;
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
    let number = line.with_context(|| format!("{on} has no {name}: {text}"))?;
    Ok(number.trim().parse()?)
}

/// Monitoring gets counters and verdicts over HTTP, on the node itself only.
fn metrics(cluster: &Cluster) -> Result<()> {
    let get = |on, path| get(cluster, on, path);
    let value = |on, name| metric(cluster, on, name);
    for path in ["/healthz", "/readyz"] {
        let said = get(N1, path)?;
        ensure!(said.starts_with("200 ok"), "{path}: {said}");
    }
    ensure!(get(N1, "/other")?.starts_with("404 "));
    ensure!(value(N1, "unum_peer_up{peer=\"n2\"}")? == 1);
    let before = value(N1, "unum_migrations_out_total")?;
    let mut proc = spin(cluster)?;
    hop(&proc, "spin", Doing::Computing, N2)?;
    ensure!(value(N1, "unum_migrations_out_total")? == before + 1);
    ensure!(value(N1, "unum_deputies")? >= 1 && value(N2, "unum_guests")? >= 1);
    proc.must_pass()?;
    let outside = "exec 3<>/dev/tcp/10.77.0.1/7401 && echo open; true";
    let said = cluster.sh(N2, &format!("bash -c '{outside}' 2>/dev/null; true"))?;
    ensure!(!said.contains("open"), "others reach it");

    // Alone among three it is well, but not ready.
    let body = || -> Result<()> {
        cluster.on_all(&[N2, N3], |node| cluster.stop_daemon(node))?;
        eventually(Duration::from_secs(30), || {
            let said = get(N1, "/readyz")?;
            Ok((said.trim() != "503 no majority of the cluster is heard of").then_some(said))
        })?;
        ensure!(get(N1, "/healthz")?.starts_with("200 ok"));
        ensure!(value(N1, "unum_peer_up{peer=\"n2\"}")? == 0);
        Ok(())
    };
    let result = body();
    cluster.on_all(&[N2, N3], |node| cluster.start_daemon(node))?;
    cluster.wait_linked(&cluster.nodes())?;
    result
}

/// The daemon tells a service manager when it serves, that it lives, and when it ends; SIGHUP makes it read its files again.
fn service(cluster: &Cluster) -> Result<()> {
    const LOG: &str = "/tmp/ssid-service.log";
    let mut proc = spin(cluster)?;
    hop(&proc, "spin", Doing::Computing, N3)?;
    // A service manager, as far as a daemon sees it.
    let manager = "import os, socket
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind('/tmp/notify')
while True:
    print(s.recv(4096).decode().replace('\\n', ' '), flush=True)";
    cluster.sh(N3, "rm -f /tmp/notify /tmp/notified")?;
    cluster.sh(
        N3,
        &format!("setsid python3 -c \"{manager}\" </dev/null >/tmp/notified 2>&1 & echo $! >/tmp/manager; for i in $(seq 100); do [ -S /tmp/notify ] && exit 0; sleep 0.1; done; exit 1"),
    )?;
    let told = |wanted: &str| {
        eventually(Duration::from_secs(30), || {
            let told = cluster.sh(N3, "cat /tmp/notified")?;
            Ok((!told.contains(wanted)).then(|| format!("{wanted} was not told: {told}")))
        })
    };
    let said = |wanted: &str| {
        eventually(Duration::from_secs(30), || {
            let log = cluster.sh(N3, &format!("cat {LOG}"))?;
            Ok((!log.contains(wanted)).then(|| format!("{wanted:?} is not in its log: {log}")))
        })
    };
    let body = || -> Result<()> {
        cluster.stop_daemon(N3)?;
        cluster.sh(
            N3,
            &format!("NOTIFY_SOCKET=/tmp/notify WATCHDOG_USEC=2000000 setsid ssid --config /etc/ssid/ssid.toml </dev/null >{LOG} 2>&1 &"),
        )?;
        told("READY=1")?;
        told("WATCHDOG=1")?;
        cluster.wait_linked(&cluster.nodes())?;
        // What is wrong is said and changes nothing, what is right takes effect.
        cluster.sh(N3, "cp /etc/ssid/ssid.toml /tmp/ssid.toml; echo 'colour = 1' >>/etc/ssid/ssid.toml; pkill -HUP -x ssid")?;
        told("RELOADING=1")?;
        said("colour")?;
        cluster.sh(
            N3,
            "(echo 'log = \"debug\"'; cat /tmp/ssid.toml) >/etc/ssid/ssid.toml; pkill -HUP -x ssid",
        )?;
        said("read again")?;
        prove_runs(cluster, proc.pid(), "spin", N1, N3, Doing::Computing)?;
        hop(&proc, "spin", Doing::Computing, N1)?;
        said("DEBUG")?;
        cluster.stop_daemon(N3)?;
        told("STOPPING=1")
    };
    let result = body();
    cluster.sh(N3, "[ -f /tmp/ssid.toml ] && mv /tmp/ssid.toml /etc/ssid/; kill $(cat /tmp/manager); pkill -x ssid; sleep 1; true")?;
    cluster.start_daemon(N3)?;
    result?;
    cluster.wait_linked(&cluster.nodes())?;
    hop(&proc, "spin", Doing::Computing, N2)?;
    proc.must_pass()
}

/// Wrong words are answered, not obeyed.
fn mistakes(cluster: &Cluster) -> Result<()> {
    let mut proc = spin(cluster)?;
    let pid = proc.pid().to_string();
    let wrong: [&[&str]; 6] = [
        &["migrate", &pid, "--to", "n9"],
        &["migrate", &pid, "--to", ""],
        &["migrate", "-5", "--to", "n2"],
        &["migrate", "99999999999", "--to", "n2"],
        &["why", "0"],
        &["frobnicate"],
    ];
    for words in wrong {
        let output = cluster.ssictl(N1, words)?;
        if output.status == 0
            || output.errors().trim().is_empty() && output.text().trim().is_empty()
        {
            bail!("ssictl {}: {}", words.join(" "), output.evidence());
        }
    }
    prove_runs(cluster, proc.pid(), "spin", N1, N1, Doing::Computing)?;
    proc.must_pass()
}

/// New processes get numbers of their node's own range, many at once too.
fn pid_ranges(cluster: &Cluster) -> Result<()> {
    const PER_NODE: u32 = 1 << 17;
    const OLD: u32 = 32_768;
    let script =
        "for i in 1 2 3 4; do (for k in $(seq 1 25); do sh -c 'echo $$'; done) & done; wait";
    for node in cluster.nodes() {
        let low = u32::from(node.0) * PER_NODE + OLD;
        let text = cluster.sh(node, script)?;
        let pids = text
            .lines()
            .map(str::parse)
            .collect::<Result<Vec<u32>, _>>()?;
        ensure!(pids.len() == 100, "{} numbers came", pids.len());
        let wrong: Vec<_> = pids
            .iter()
            .filter(|&&pid| pid < low || pid >= low - OLD + PER_NODE)
            .collect();
        ensure!(
            wrong.is_empty(),
            "on {node}, whose range begins at {low}: {wrong:?}"
        );
    }
    Ok(())
}
