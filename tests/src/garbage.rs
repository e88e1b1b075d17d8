// SPDX-License-Identifier: MIT OR Apache-2.0

//! Senseless and unwelcome words to the netlink family, the device and the port: errors, and nothing else. A guest
//! that is there meanwhile does not notice.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::cluster::{Cluster, Kind, N1, N2, N3};
use crate::failures::still_works;
use crate::moves::hop;
use crate::place::{Doing, prove_runs};
use crate::proc::{Proc, Start};
use crate::suite::{Leg, Test};

/// Changes with every release of these tests by hand: a failure must be repeatable.
const SEED: u32 = 20_531;

/// The tests.
pub fn tests() -> Vec<Test> {
    vec![
        Test::new("garbage-forbidden", |cluster| say(cluster, &["forbidden"])),
        Test::new("garbage-device", |cluster| {
            beside_a_guest(cluster, &["device", "SEED", "300"])
        }),
        Test::new("garbage-stub", |cluster| say(cluster, &["stub"])),
        Test::new("garbage-port", |cluster| {
            beside_a_guest(cluster, &["port", "SEED", "150", "n2"])
        }),
        Test::new("garbage-stranger", strangers),
        Test::new("garbage-netlink", netlink),
        Test::new("link-peer", link_peer).on(Leg::Broken),
    ]
}

/// A peer that keeps sessions, breaks sockets, lives again and sends garbage, spoken by a program on n3 to the module
/// there, which echoes what it gets. The program loads and unloads it, in the end many times with links in every state.
fn link_peer(cluster: &Cluster) -> Result<()> {
    let script = cluster.program(Kind::Script, "link_peer.py", &[N3])?;
    cluster.stop_daemon(N3)?;
    cluster.unload(N3)?;
    let words = ["python3", &script, "/ssi/ssi.ko", "24"];
    let output = cluster.exec_with(N3, &words, b"", Duration::from_secs(400))?;
    ensure!(output.status == 0, "{}", output.evidence());
    cluster.kill(N3)?;
    cluster.start(N3)?;
    cluster.wait_linked(&cluster.nodes())
}

/// On n2, which hosts what there is to disturb.
fn say(cluster: &Cluster, words: &[&str]) -> Result<()> {
    let script = cluster.program(Kind::Script, "garbage.py", &[N2, N3])?;
    let seed = SEED.to_string();
    let words: Vec<&str> = words
        .iter()
        .map(|&word| if word == "SEED" { seed.as_str() } else { word })
        .collect();
    let all: Vec<&str> = ["python3", script.as_str()]
        .into_iter()
        .chain(words)
        .collect();
    let output = cluster.exec_with(N2, &all, b"", Duration::from_secs(300))?;
    ensure!(output.status == 0, "{}", output.evidence());
    Ok(())
}

fn beside_a_guest(cluster: &Cluster, words: &[&str]) -> Result<()> {
    let mut proc = Proc::start(cluster, &Start::guest("spin"))?;
    proc.ready()?;
    hop(&proc, "spin", Doing::Computing, N2)?;
    say(cluster, words)?;
    prove_runs(cluster, proc.pid(), "spin", N1, N2, Doing::Computing)?;
    hop(&proc, "spin", Doing::Computing, N3)?;
    proc.must_pass()?;
    still_works(cluster)
}

/// Somebody without a certificate, and somebody with one of another cluster's authority.
fn strangers(cluster: &Cluster) -> Result<()> {
    say(cluster, &["stranger", "n1"])?;
    // Another cluster, founded beside ours, has a node n1 as well: what that proves who it is with is of no use here.
    const DIR: &str = "/tmp/foreign";
    let found = format!(
        "rm -rf {DIR} && mkdir {DIR} && cat >{DIR}/ssid.toml <<END
port = 7500
state = \"{DIR}/state\"
socket = \"{DIR}/socket\"
audit = \"{DIR}/audit\"
metrics = \"off\"
END
        ssid --config {DIR}/ssid.toml </dev/null >{DIR}/log 2>&1 & pid=$!
        for i in $(seq 100); do [ -S {DIR}/socket ] && break; sleep 0.1; done
        ssictl --socket {DIR}/socket cluster init --addr 10.77.0.1:7500 >/dev/null; status=$?
        kill $pid; wait $pid; [ $status = 0 ] || {{ cat {DIR}/log >&2; exit 1; }}
        cat {DIR}/state/node.pem; rm -rf {DIR}"
    );
    let pem = cluster.sh(N1, &found)?;
    let file = "/tmp/foreign.pem";
    cluster.sh(N2, &format!("cat >{file} <<END\n{pem}\nEND"))?;
    say(cluster, &["stranger", "n1", file, file])?;
    still_works(cluster)
}

/// Random commands may be meant: whoever may say them can end a link or declare a peer dead. So this is said on a
/// node that hosts nothing, and only the others must not notice; the node itself must survive.
fn netlink(cluster: &Cluster) -> Result<()> {
    let mut proc = Proc::start(cluster, &Start::guest("spin"))?;
    proc.ready()?;
    hop(&proc, "spin", Doing::Computing, N2)?;
    let script = cluster.program(Kind::Script, "garbage.py", &[N3])?;
    let seed = SEED.to_string();
    let output = cluster.exec_with(
        N3,
        &["python3", &script, "netlink", &seed, "3000"],
        b"",
        Duration::from_secs(300),
    )?;
    ensure!(output.status == 0, "{}", output.evidence());
    prove_runs(cluster, proc.pid(), "spin", N1, N2, Doing::Computing)?;
    cluster.check()?;
    cluster.kill(N3)?;
    cluster.start(N3)?;
    cluster.wait_linked(&cluster.nodes())?;
    hop(&proc, "spin", Doing::Computing, N3)?;
    proc.must_pass()
}
