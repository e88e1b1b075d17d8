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
use crate::suite::Test;

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
    ]
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
    let foreign = "rm -rf /tmp/foreign && ssictl pki init --dir /tmp/foreign/ca &&
        ssictl pki issue --dir /tmp/foreign/ca --node 2 --addr 10.77.0.2 --out /tmp/foreign/out && ls /tmp/foreign/out";
    let made = cluster.sh(N2, &format!("mkdir -p /tmp/foreign; {foreign}"))?;
    let find = |ending: &str| {
        made.lines()
            .find(|name| name.ends_with(ending) && !name.starts_with("ca"))
            .map(|name| format!("/tmp/foreign/out/{name}"))
    };
    let key = find("key.pem").or_else(|| find(".key"));
    let certificate = find("cert.pem").or_else(|| find("node.pem"));
    let (Some(certificate), Some(key)) = (certificate, key) else {
        anyhow::bail!("ssictl pki issue made: {made}");
    };
    say(cluster, &["stranger", "n1", &certificate, &key])?;
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
