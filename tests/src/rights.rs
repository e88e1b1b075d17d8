// SPDX-License-Identifier: MIT OR Apache-2.0

//! Who may move what, and what a node lets in.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::cluster::{AS_USER, Cluster, Kind, N1, N2, N3, Node};
use crate::host::eventually;
use crate::moves::hop;
use crate::place::{Doing, prove_runs};
use crate::proc::{Proc, Start};
use crate::ssictl::{migrate, must_refuse, try_migrate};
use crate::suite::Test;
use crate::tool::spin;

/// The tests.
pub fn tests() -> Vec<Test> {
    vec![
        Test::new("tool-users", users),
        Test::new("tool-administrators", administrators),
        Test::new("tool-policy", policy),
    ]
}

/// A user moves his own processes and no others.
fn users(cluster: &Cluster) -> Result<()> {
    let mut roots = spin(cluster)?;
    let command = |pid: u32, to: Node| {
        format!("{AS_USER} ssictl migrate {pid} --to {to} -o json 2>&1; echo status $?")
    };
    let answer = cluster.sh(N1, &command(roots.pid(), N2))?;
    ensure!(
        !answer.contains("status 0"),
        "a user moved a process of root: {answer}"
    );
    prove_runs(cluster, roots.pid(), "spin", N1, N1, Doing::Computing)?;
    roots.must_pass()?;

    let path = cluster.program(Kind::Dynamic, "spin", &cluster.nodes())?;
    let words: Vec<&str> = AS_USER.split(' ').chain([path.as_str()]).collect();
    let mut own = Proc::start(cluster, &Start::system(&words))?;
    own.ready()?;
    let answer = cluster.sh(N1, &command(own.pid(), N2))?;
    ensure!(
        answer.contains("status 0"),
        "a user could not move his own process: {answer}"
    );
    prove_runs(cluster, own.pid(), "spin", N1, N2, Doing::Computing)?;
    let ids = cluster.sh(
        N2,
        &format!(
            "grep -E '^(Uid|Gid|Groups)' /proc/{}/status | xargs",
            own.pid()
        ),
    )?;
    let want = "Uid: 65534 65534 65534 65534 Gid: 65534 65534 65534 65534 Groups:";
    ensure!(ids.trim() == want, "on n2 it runs as {ids}");
    own.must_pass()
}

/// Members of the group `ssi` move the processes of all, also when another node carries it out.
fn administrators(cluster: &Cluster) -> Result<()> {
    cluster.sh(N1, "grep -q ^ssi: /etc/group || groupadd --system ssi")?;
    let body = || -> Result<()> {
        let mut proc = spin(cluster)?;
        let ask = |groups: &str, to: Node| {
            let user = format!("setpriv --reuid 65534 --regid 65534 {groups}");
            let line = format!(
                "{user} ssictl migrate {} --to {to} -o json 2>&1; echo status $?",
                proc.pid()
            );
            cluster.sh(N1, &line)
        };
        let other = ask("--groups 4241", N2)?;
        ensure!(other.contains("status 4"), "a stranger moved it: {other}");
        for (to, doing) in [(N2, N2), (N3, N3), (N1, N1)] {
            let said = ask("--groups 4241,ssi", to)?;
            ensure!(said.contains("status 0"), "an administrator: {said}");
            prove_runs(cluster, proc.pid(), "spin", N1, doing, Doing::Computing)?;
        }
        proc.must_pass()
    };
    let result = body();
    cluster.sh(N1, "groupdel ssi")?;
    result
}

/// A node says whose processes it hosts. Its own always come home.
fn policy(cluster: &Cluster) -> Result<()> {
    const CONFIG: &str = "/etc/ssid/ssid.toml";
    let rule = |text: &str| {
        let script = format!(
            "cp -n {CONFIG} /tmp/policy.toml; (cat /tmp/policy.toml; printf '\\n[guests]\\n{text}\\n') >{CONFIG}; pkill -HUP -x ssid"
        );
        cluster.sh(N2, &script)
    };
    let body = || -> Result<()> {
        let mut roots = spin(cluster)?;
        let home = Start::guest("spin").home(N2);
        let mut away = Proc::start(cluster, &home)?;
        away.ready()?;
        migrate(cluster, N2, away.pid(), N3)?;
        let path = cluster.program(Kind::Dynamic, "spin", &cluster.nodes())?;
        let words: Vec<&str> = AS_USER.split(' ').chain([path.as_str()]).collect();
        let mut users = Proc::start(cluster, &Start::system(&words))?;
        users.ready()?;

        // Each refuses one whom the one before took.
        let why = |pid: u32| format!("ssictl why {pid} --to n2 -o json; echo status $?");
        for (text, refused, hosted) in [
            ("root = false", &roots, &users),
            ("uids = [\"1000-65533\", \"65535\"]", &users, &roots),
            ("root = false\nuids = [\"65534\"]", &roots, &users),
        ] {
            rule(text)?;
            eventually(Duration::from_secs(30), || {
                let said = cluster.sh(N1, &why(refused.pid()))?;
                let right = said.contains("status 5") && said.contains("not-hosted");
                Ok((!right).then(|| format!("{text}: ssictl why says {said}")))
            })?;
            must_refuse(&try_migrate(cluster, N1, refused.pid(), N2)?, "not-hosted")?;
            prove_runs(cluster, refused.pid(), "spin", N1, N1, Doing::Computing)?;
            hop(hosted, "spin", Doing::Computing, N2)?;
            hop(hosted, "spin", Doing::Computing, N1)?;
        }

        rule("host = false")?;
        eventually(Duration::from_secs(30), || {
            let said = cluster.sh(N1, &why(roots.pid()))?;
            Ok((!said.contains("hosts no processes of other")).then_some(said))
        })?;
        must_refuse(&try_migrate(cluster, N1, users.pid(), N2)?, "not-hosted")?;
        migrate(cluster, N1, away.pid(), N2)?;
        prove_runs(cluster, away.pid(), "spin", N2, N2, Doing::Computing)?;
        for proc in [&mut roots, &mut away, &mut users] {
            proc.must_pass()?;
        }
        Ok(())
    };
    let result = body();
    cluster.sh(
        N2,
        &format!("[ ! -f /tmp/policy.toml ] || mv /tmp/policy.toml {CONFIG}; pkill -HUP -x ssid"),
    )?;
    result
}
