// SPDX-License-Identifier: MIT OR Apache-2.0

//! ssid as a service of systemd: however it ends and comes back, the processes it has moved do not notice.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cluster::{Cluster, N1, N2, N3, Node};
use crate::guide;
use crate::host::eventually;
use crate::lines;
use crate::members::{SOON, join_line, ok, whole};
use crate::moves::hop;
use crate::place::{Doing, prove_runs};
use crate::proc::{End, Proc, Start};
use crate::suite::{Leg, Test};

/// Longest wait for a service to come back.
const BACK: Duration = Duration::from_secs(60);
/// Longest time that what the guide has typed may take: `depmod` reads all modules there are.
const TYPED: Duration = Duration::from_secs(300);
/// Where files for the guide are.
const FILES: &str = "/root/unum";
/// Has modprobe load the module from where the machines have it.
const MODPROBE: &str = "/etc/modprobe.d/unum.conf";

/// The tests.
pub fn tests() -> Vec<Test> {
    let tests = vec![
        Test::new("unit", unit),
        Test::new("restart", restart),
        Test::new("killed", killed),
        Test::new("reload", reload),
        Test::new("watchdog", watchdog),
        Test::new("stopped", stopped),
        Test::new("sockets", sockets),
        Test::new("journal", journal),
        Test::new("install", install),
        Test::new("restore", restore),
        Test::new("upgrade", upgrade),
        Test::new("damaged", damaged),
    ];
    tests
        .into_iter()
        .map(|test| test.on(Leg::Systemd))
        .collect()
}

/// A property of the unit.
fn property(cluster: &Cluster, node: Node, name: &str) -> Result<String> {
    cluster.sh(node, &format!("systemctl show -P {name} ssid"))
}

/// The process that is the daemon; 0 if there is none.
fn main_pid(cluster: &Cluster, node: Node) -> Result<u32> {
    Ok(property(cluster, node, "MainPID")?.parse()?)
}

/// Waits until the service runs, as a process other than `old`.
fn wait_for_another(cluster: &Cluster, node: Node, old: u32) -> Result<()> {
    eventually(BACK, || {
        let state = property(cluster, node, "ActiveState")?;
        let pid = main_pid(cluster, node)?;
        let right = state == "active" && pid != old && pid != 0;
        Ok((!right).then(|| format!("ssid on {node} is {state} as process {pid}, before {old}")))
    })
}

/// Does something to the daemon of the home and then of the host of two processes, one that writes and one that
/// reads and answers. Neither may notice, and afterwards they move as before.
fn undisturbed(cluster: &Cluster, disturb: impl Fn(Node) -> Result<()>) -> Result<()> {
    let mut writer = Proc::start(cluster, &Start::guest("count 20"))?;
    writer.ready()?;
    let mut reader = Proc::start(cluster, &Start::system(&["bc"]))?;
    reader.input(b"6 * 7\n")?;
    reader.wait_line("42", BACK)?;
    hop(&writer, "count", Doing::Sleeping, N2)?;
    hop(&reader, "bc", Doing::Sleeping, N2)?;
    let mut answers = "42\n".to_owned();
    for node in [N1, N2] {
        disturb(node).with_context(|| format!("at {node}"))?;
        // Before the daemons have found each other again, and after that.
        for when in ["at once", "later"] {
            let before = writer.lines().len();
            writer
                .wait_lines(before + 20, BACK)
                .with_context(|| format!("{when}, at {node}"))?;
            let number = answers.len();
            reader.input(format!("{number} * 1000\n").as_bytes())?;
            reader.wait_line(&format!("{number}000"), BACK)?;
            answers += &format!("{number}000\n");
            cluster.wait_linked(&cluster.nodes())?;
        }
        prove_runs(cluster, writer.pid(), "count", N1, N2, Doing::Sleeping)?;
    }
    hop(&writer, "count", Doing::Sleeping, N3)?;
    writer.must_pass()?;
    let all = writer.lines();
    lines::check(all.iter().map(|(_, line)| line.as_str()), |_| Ok(()))?;
    reader.input(b"quit\n")?;
    reader.must_end(End::Exit(0))?;
    ensure!(
        reader.output() == answers,
        "bc says {:?}, not {answers:?}",
        reader.output()
    );
    Ok(())
}

/// Runs on a node what a block of a section of the guide has typed, in the directory [`FILES`].
fn type_in(cluster: &Cluster, node: Node, section: &str, block: usize) -> Result<()> {
    let script = format!("cd {FILES}\n{}", guide::script(section, block)?);
    let output = cluster.exec_with(node, &["bash", "-c", &script], b"", TYPED)?;
    ok(output).with_context(|| format!("on {node}: {script}"))?;
    Ok(())
}

/// The unit that is shipped has no mistake that systemd knows of, and says how the daemon is.
fn unit(cluster: &Cluster) -> Result<()> {
    // The nodes have no manual pages.
    let said = cluster.sh(
        N1,
        "systemd-analyze verify --man=no /etc/systemd/system/ssid.service 2>&1",
    )?;
    ensure!(said.is_empty(), "systemd-analyze verify: {said}");
    for node in cluster.nodes() {
        let text = format!("{node} of 3 nodes");
        eventually(BACK, || {
            let told = property(cluster, node, "StatusText")?;
            Ok((told != text).then(|| format!("{node}: {told:?}")))
        })?;
        let status = cluster.sh(node, "systemctl status ssid")?;
        ensure!(
            status.contains(&format!("Status: \"{text}\"")) && status.contains("enabled"),
            "{node}: {status}"
        );
    }
    Ok(())
}

/// As after an upgrade.
fn restart(cluster: &Cluster) -> Result<()> {
    undisturbed(cluster, |node| {
        let old = main_pid(cluster, node)?;
        cluster.sh(node, "systemctl restart ssid")?;
        wait_for_another(cluster, node, old)
    })
}

/// systemd starts what has crashed.
fn killed(cluster: &Cluster) -> Result<()> {
    undisturbed(cluster, |node| {
        let old = main_pid(cluster, node)?;
        cluster.sh(node, &format!("kill -9 {old}"))?;
        wait_for_another(cluster, node, old)
    })
}

/// `systemctl reload` waits until the files have been read, and it is the same process that has read them.
fn reload(cluster: &Cluster) -> Result<()> {
    undisturbed(cluster, |node| {
        let old = main_pid(cluster, node)?;
        let before = times_reloaded(cluster, node)?;
        cluster.sh(node, "systemctl reload ssid")?;
        ensure!(times_reloaded(cluster, node)? == before + 1);
        let now = main_pid(cluster, node)?;
        ensure!(now == old, "ssid was process {old} and is {now}");
        Ok(())
    })
}

fn times_reloaded(cluster: &Cluster, node: Node) -> Result<usize> {
    let text = cluster.sh(
        node,
        "grep -h '\"event\":\"reloaded\"' /var/lib/ssid/audit/*.jsonl || true",
    )?;
    Ok(text.lines().count())
}

/// A daemon that stands still is ended and started again.
fn watchdog(cluster: &Cluster) -> Result<()> {
    const DROP_IN: &str = "/run/systemd/system/ssid.service.d";
    let shorten = format!(
        "mkdir -p {DROP_IN} && printf '[Service]\\nWatchdogSec=2\\n' >{DROP_IN}/watchdog.conf
        systemctl daemon-reload && systemctl restart ssid"
    );
    cluster.on_all(&[N1, N2], |node| cluster.sh(node, &shorten))?;
    cluster.wait_linked(&cluster.nodes())?;
    let result = undisturbed(cluster, |node| {
        let old = main_pid(cluster, node)?;
        cluster.sh(node, &format!("kill -STOP {old}"))?;
        wait_for_another(cluster, node, old)?;
        let log = cluster.sh(node, "journalctl -u ssid -o cat --no-pager")?;
        ensure!(
            log.contains("Watchdog timeout"),
            "it was not the watchdog: {log}"
        );
        Ok(())
    });
    let restore = format!("rm -r {DROP_IN}; systemctl daemon-reload; systemctl restart ssid");
    cluster.on_all(&[N1, N2], |node| cluster.sh(node, &restore))?;
    cluster.wait_linked(&cluster.nodes())?;
    result
}

/// While the daemons of home and host are stopped, the processes go on, and their end is known at home.
fn stopped(cluster: &Cluster) -> Result<()> {
    let mut proc = Proc::start(cluster, &Start::guest("count 20"))?;
    proc.ready()?;
    hop(&proc, "count", Doing::Sleeping, N2)?;
    let nodes = [N1, N2];
    cluster.on_all(&nodes, |node| cluster.stop_daemon(node))?;
    let mut body = || -> Result<()> {
        let before = proc.lines().len();
        proc.wait_lines(before + 20, BACK)?;
        prove_runs(cluster, proc.pid(), "count", N1, N2, Doing::Sleeping)?;
        // Nothing is kept for a daemon that is not to come back.
        let output = cluster.ssictl(N1, &["node", "ls"])?;
        ensure!(output.status != 0, "who answers? {}", output.evidence());
        proc.must_pass()
    };
    let result = body();
    cluster.on_all(&nodes, |node| cluster.start_daemon(node))?;
    cluster.wait_linked(&cluster.nodes())?;
    result?;
    let all = proc.lines();
    lines::check(all.iter().map(|(_, line)| line.as_str()), |_| Ok(())).map(drop)
}

/// While the daemon starts again, nobody who connects is turned away: tools wait, and so do other daemons.
fn sockets(cluster: &Cluster) -> Result<()> {
    const FILES: &str = "/tmp/sockets";
    // A question that is under way when the daemon ends gets no answer; whoever asks later gets one.
    let ask = format!(
        "rm -rf {FILES}; mkdir {FILES}
        (until [ -e {FILES}/stop ]; do
            ssictl node ls >/dev/null 2>>{FILES}/tool && echo >>{FILES}/answered
        done; touch {FILES}/tool.over) </dev/null >/dev/null 2>&1 &
        (until [ -e {FILES}/stop ]; do
            exec 3<>/dev/tcp/10.77.0.1/7400 && echo >>{FILES}/connected; exec 3>&-; sleep 0.05
        done; touch {FILES}/peer.over) </dev/null >/dev/null 2>{FILES}/peer &"
    );
    cluster.sh(N1, &ask)?;
    let body = || -> Result<()> {
        for how in ["restart", "kill -s KILL", "restart", "kill -s ABRT"] {
            let old = main_pid(cluster, N1)?;
            cluster.sh(N1, &format!("systemctl {how} ssid"))?;
            wait_for_another(cluster, N1, old).context(how)?;
            let answered = || cluster.sh(N1, &format!("wc -l <{FILES}/answered"));
            let before = answered()?;
            eventually(BACK, || {
                Ok((answered()? == before).then(|| format!("nobody answers after {how}")))
            })?;
        }
        Ok(())
    };
    let result = body();
    let script = format!(
        "touch {FILES}/stop; for i in $(seq 300); do [ -e {FILES}/tool.over -a -e {FILES}/peer.over ] && break; sleep 0.1; done
        cat {FILES}/tool {FILES}/peer; echo; wc -l <{FILES}/connected"
    );
    let said = cluster.sh(N1, &script)?;
    cluster.wait_linked(&cluster.nodes())?;
    result?;
    let (said, connected) = said.rsplit_once('\n').context("no count")?;
    ensure!(
        connected.trim().parse::<u32>()? > 40,
        "only {connected} connections"
    );
    let refused: Vec<&str> = said
        .lines()
        .filter(|line| {
            // Of a question that was under way.
            let lost = ["closed", "ended the connection"];
            line.contains("refused")
                || line.contains("connect") && !lost.iter().any(|l| line.contains(l))
        })
        .collect();
    ensure!(refused.is_empty(), "refused: {refused:?}");
    let stored = property(cluster, N1, "NFileDescriptorStore")?;
    ensure!(stored == "2", "{stored} sockets are kept");
    Ok(())
}

/// What the daemon says has fields of its own in the journal, not only a text.
fn journal(cluster: &Cluster) -> Result<()> {
    for node in cluster.nodes() {
        let text = cluster.sh(node, "journalctl -u ssid -o json --no-pager")?;
        let entries = text
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<Vec<Value>, _>>()?;
        let ready = entries
            .iter()
            .find(|e| e["MESSAGE"] == "ready")
            .with_context(|| format!("{node} has not said that it is ready: {text}"))?;
        let name = node.to_string();
        let right = [
            ("F_NODE", name.as_str()),
            ("F_PORT", "7400"),
            ("PRIORITY", "5"),
            ("SYSLOG_IDENTIFIER", "ssid"),
            ("TARGET", "ssid::daemon"),
            ("_SYSTEMD_UNIT", "ssid.service"),
            ("_TRANSPORT", "journal"),
        ];
        for (field, value) in right {
            ensure!(
                ready[field] == value,
                "{node}: {field} is {}, not {value}: {ready}",
                ready[field]
            );
        }
    }
    Ok(())
}

/// The files that `make all` builds, put where the guide says: "Set up".
fn install(cluster: &Cluster) -> Result<()> {
    cluster.stop_daemon(N3)?;
    cluster.unload(N3)?;
    let take_out = format!(
        "set -e; rm -rf {FILES}; mkdir -p {FILES}/build {FILES}/daemon; mv {MODPROBE} /root
        mv /usr/sbin/ssid /usr/bin/ssictl {FILES}/build; cp /ssi/ssi.ko {FILES}/build
        systemctl disable ssid; mv /etc/systemd/system/ssid.service {FILES}/daemon"
    );
    cluster.sh(N3, &take_out)?;
    type_in(cluster, N3, "Set up", 0)?;
    cluster.wait_linked(&cluster.nodes())?;
    let found = cluster.sh(
        N3,
        "modinfo -n ssi; command -v ssid ssictl; systemctl is-enabled ssid",
    )?;
    let found: Vec<&str> = found.lines().collect();
    ensure!(
        matches!(found[..], [module, "/usr/sbin/ssid", "/usr/sbin/ssictl", "enabled"] if module.ends_with("/updates/ssi.ko")),
        "{found:?}"
    );
    let version = cluster.sh(N3, "ssid --version")?;
    let running = cluster.sh(N3, "ssictl version")?;
    let protocol = version.rsplit(", ").next().unwrap_or_default();
    ensure!(
        protocol.starts_with("daemon protocol ") && running.contains(protocol),
        "{version}, but {running}"
    );
    // As they were.
    let put_back = format!(
        "mv /usr/sbin/ssictl /usr/bin/; rm \"$(modinfo -n ssi)\"; mv /root/unum.conf {MODPROBE}; rm -r {FILES}"
    );
    cluster.sh(N3, &put_back)?;
    crate::failures::still_works(cluster)
}

/// Copies are made while the daemons are stopped, which no process notices, and are put back on empty nodes: "Back up".
fn restore(cluster: &Cluster) -> Result<()> {
    let nodes = cluster.nodes();
    let type_all = |block| {
        cluster
            .on_all(&nodes, |on| type_in(cluster, on, "Back up", block))
            .map(drop)
    };
    let all = |script: &str| {
        cluster
            .on_all(&nodes, |on| cluster.sh(on, script))
            .map(drop)
    };
    let get = |name| cluster.ssictl(N2, &["kv", "get", name]);
    all(&format!("mkdir -p {FILES}; rm -rf /root/audit-before"))?;
    cluster.sh(N1, "ssictl kv put kept/before yes")?;
    let mut writer = Proc::start(cluster, &Start::guest("count 20"))?;
    writer.ready()?;
    hop(&writer, "count", Doing::Sleeping, N2)?;
    let before = writer.lines().len();
    type_all(0)?;
    writer.wait_lines(before + 20, BACK)?;
    cluster.wait_linked(&nodes)?;
    writer.must_pass()?;
    let lines = writer.lines();
    lines::check(lines.iter().map(|(_, line)| line.as_str()), |_| Ok(()))?;
    cluster.sh(N1, "ssictl kv put kept/later yes")?;

    all("systemctl stop ssid")?;
    cluster.on_all(&nodes, |on| cluster.unload(on))?;
    type_all(1)?;
    cluster.wait_linked(&nodes)?;
    let kept = get("kept/before")?;
    ensure!(
        kept.status == 0 && kept.text().trim() == "yes",
        "{}",
        kept.evidence()
    );
    let later = get("kept/later")?;
    ensure!(later.status == 4, "{}", later.evidence());
    cluster.sh(N3, "ssictl kv put kept/later yes")?;
    all(&format!("rm -rf {FILES} /root/audit-before"))?;
    crate::failures::still_works(cluster)
}

/// Another module takes the place of one that was emptied: "Upgrade".
fn upgrade(cluster: &Cluster) -> Result<()> {
    let mut guest = Proc::start(cluster, &Start::guest("count 20"))?;
    guest.ready()?;
    hop(&guest, "count", Doing::Sleeping, N2)?;
    let mut own = Proc::start(cluster, &Start::guest("count 20").home(N2))?;
    own.ready()?;
    hop(&own, "count", Doing::Sleeping, N1)?;
    let full = cluster.exec(N2, &["rmmod", "ssi"])?;
    ensure!(full.status != 0, "a module that is not empty goes");

    cluster.sh(N1, "ssictl node cordon n2")?;
    hop(&guest, "count", Doing::Sleeping, N3)?;
    hop(&own, "count", Doing::Sleeping, N2)?;
    own.must_pass()?;
    let ready = format!(
        "set -e; mkdir -p {FILES} /lib/modules/$(uname -r)/updates; mv {MODPROBE} /root; cp /ssi/ssi.ko {FILES}"
    );
    cluster.sh(N2, &ready)?;
    type_in(cluster, N2, "Upgrade", 0)?;
    cluster.sh(N1, "ssictl node uncordon n2")?;
    cluster.wait_linked(&cluster.nodes())?;
    hop(&guest, "count", Doing::Sleeping, N2)?;
    guest.must_pass()?;
    let put_back =
        format!("rm \"$(modinfo -n ssi)\"; mv /root/unum.conf {MODPROBE}; rm -r {FILES}");
    cluster.sh(N2, &put_back)?;
    let lines = guest.lines();
    lines::check(lines.iter().map(|(_, line)| line.as_str()), |_| Ok(())).map(drop)
}

/// A node whose files are damaged, or gone, does not start and says what to do: "A node does not start". That makes it a node again.
fn damaged(cluster: &Cluster) -> Result<()> {
    const AGREED: &str = "/var/lib/ssid/agreed";
    let says = |what: &str| {
        eventually(BACK, || {
            let log = cluster.sh(N3, "journalctl -u ssid -o cat --no-pager -n 40")?;
            let told =
                log.contains(what) && log.contains("\"A node does not start\" in cluster.md");
            Ok((!told).then_some(log))
        })
    };
    cluster.stop_daemon(N3)?;
    // The first byte of the first record behind its length and checksums.
    let flip = format!("printf '\\377' | dd of={AGREED}/log bs=1 seek=20 conv=notrunc");
    cluster.sh(N3, &flip)?;
    cluster.sh(N3, "systemctl start ssid || true")?;
    says("agreed/log is damaged")?;
    cluster.stop_daemon(N3)?;
    cluster.sh(N3, &format!("rm -r {AGREED}; systemctl start ssid || true"))?;
    says("agreed/log is missing")?;

    eventually(SOON, || {
        let output = cluster.ssictl(N1, &["node", "remove", "n3"])?;
        Ok((output.status != 0).then(|| output.evidence()))
    })?;
    cluster.sh(N3, &format!("mkdir -p {FILES}; rm -rf /root/audit-of-n3"))?;
    type_in(cluster, N3, "A node does not start", 0)?;
    cluster.sh(N3, "sync")?;
    cluster.kill(N3)?;
    cluster.start(N3)?;
    let text = ok(cluster.ssictl(N1, &["cluster", "token", "create"])?)?;
    let line = join_line(&text)?;
    ok(cluster.ssictl(N3, &line)?)?;
    cluster.sh(N3, &format!("rm -rf {FILES} /root/audit-of-n3"))?;
    whole(cluster, N1, &["n1", "n2", "n4"])?;
    // That number was another's, and what it is called comes of the number.
    let mut proc = Proc::start(cluster, &Start::guest("count 20"))?;
    proc.ready()?;
    ok(cluster.ssictl(N1, &["migrate", &proc.pid().to_string(), "--to", "n4"])?)?;
    prove_runs(cluster, proc.pid(), "count", N1, N3, Doing::Sleeping)?;
    proc.must_pass()
}
