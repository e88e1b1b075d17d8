// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the cluster offers to programs and scripts: locks, values, and word of what happens.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use crate::cluster::{AS_USER, Cluster, N1, N2, N3, Node};
use crate::host::{Output, eventually};
use crate::suite::Test;
use crate::tool::spin;

/// How often each node enters the critical section.
const ROUNDS: u32 = 5;
/// What must come about by itself does so within this.
const SOON: Duration = Duration::from_secs(60);

/// The tests.
pub fn tests() -> Vec<Test> {
    vec![
        Test::new("service-lock", lock),
        Test::new("service-lock-kept", lock_kept),
        Test::new("service-lock-dead", lock_dead),
        Test::new("service-kv", kv),
        Test::new("service-events", events),
    ]
}

fn ended(output: &Output, status: i32) -> Result<()> {
    ensure!(output.status == status, "{}", output.evidence());
    Ok(())
}

fn value(cluster: &Cluster, on: Node, name: &str) -> Result<String> {
    cluster.sh(on, &format!("ssictl kv get {name}"))
}

/// All nodes count on one value, which loses nothing only if one of them does at a time.
fn lock(cluster: &Cluster) -> Result<()> {
    cluster.sh(N1, "ssictl kv put count 0")?;
    let once = "v=$(ssictl kv get count); ssictl kv put count $((v + 1))";
    let script = format!(
        "for i in $(seq {ROUNDS}); do ssictl lock counting -- sh -c '{once}' || exit 1; done"
    );
    cluster.on_all(&cluster.nodes(), |on| cluster.sh(on, &script).map(drop))?;
    let count = value(cluster, N2, "count")?;
    let wanted = cluster.nodes().len() * ROUNDS as usize;
    ensure!(count == wanted.to_string(), "{count} of {wanted}");

    // A command ends as it ends, and knows the number of the grant, which grows.
    let token = || -> Result<u64> {
        let text = cluster.sh(N3, "ssictl lock counting -- sh -c 'echo $SSI_LOCK_TOKEN'")?;
        text.parse()
            .with_context(|| format!("{text:?} is no number"))
    };
    let first = token()?;
    ensure!(token()? > first, "the number of the grant does not grow");
    ended(
        &cluster.ssictl(N1, &["lock", "counting", "--", "sh", "-c", "exit 7"])?,
        7,
    )?;
    // One that is held is refused to who does not wait, and to who waits for himself.
    let nested = |name: &str, wait: u32| {
        let inner = format!("ssictl lock counting --wait {wait} -- true");
        cluster.ssictl(N1, &["lock", name, "--", "sh", "-c", &inner])
    };
    ended(&nested("other", 0)?, 0)?;
    ended(&nested("counting", 0)?, 5)?;
    ended(&nested("counting", 60)?, 6)?;
    cluster.sh(
        N2,
        "setsid ssictl lock held -- sleep 1000 </dev/null >/dev/null 2>&1 &",
    )?;
    eventually(SOON, || {
        let list = cluster.sh(N3, "ssictl lock ls")?;
        Ok((!list.contains("held")).then_some(list))
    })?;
    ended(
        &cluster.ssictl(N1, &["lock", "held", "--wait", "0", "--", "true"])?,
        5,
    )?;
    ended(
        &cluster.ssictl(N1, &["lock", "held", "--wait", "1", "--", "true"])?,
        124,
    )?;
    // Whoever holds it goes, and what it ran with it.
    cluster.sh(N2, "pkill -x ssictl")?;
    ended(
        &cluster.ssictl(N1, &["lock", "held", "--wait", "30", "--", "true"])?,
        0,
    )?;
    // Readers hold it together, and keep who writes out.
    let reader = |inner: &str| format!("ssictl lock reading --read --wait 0 -- {inner}");
    let both = reader(&format!("sh -c '{}'", reader("true")));
    let writer = reader("sh -c 'ssictl lock reading --wait 0 -- true'");
    ended(&cluster.exec(N3, &["bash", "-c", &both])?, 0)?;
    ended(&cluster.exec(N3, &["bash", "-c", &writer])?, 5)?;
    // Users have names of their own.
    let user = format!("{AS_USER} ssictl lock");
    cluster.sh(N1, &format!("{user} u65534/mine -- true"))?;
    let output = cluster.exec(N1, &["bash", "-c", &format!("{user} yours -- true")])?;
    ensure!(output.status == 5, "{}", output.evidence());
    Ok(())
}

/// A lock that is used on one node again and again stays there, and goes to another node when it is wanted there, also from
/// whoever has it.
fn lock_kept(cluster: &Cluster) -> Result<()> {
    let tokens = "for i in 1 2 3 4; do ssictl lock stays -- sh -c 'echo $SSI_LOCK_TOKEN'; done";
    let mut last = 0;
    for on in [N2, N2, N3] {
        for token in cluster.sh(on, tokens)?.split_whitespace() {
            let token: u64 = token.parse().context(format!("no number: {token}"))?;
            ensure!(token > last, "{token} came after {last}");
            last = token;
        }
    }
    let list = cluster.sh(N1, "ssictl lock ls")?;
    ensure!(list.contains("kept"), "n3 does not keep it: {list}");
    let list = cluster.sh(N3, "ssictl lock ls")?;
    ensure!(!list.contains("stays"), "nobody on n3 has it: {list}");
    // Somebody there has what is kept: others see who, and get it when he is gone.
    cluster.sh(
        N3,
        "setsid ssictl lock stays -- sleep 1000 </dev/null >/dev/null 2>&1 &",
    )?;
    eventually(SOON, || {
        let list = cluster.sh(N3, "ssictl lock ls")?;
        Ok((!list.contains("held")).then_some(list))
    })?;
    let now = ["lock", "stays", "--wait", "0", "--", "true"];
    ended(&cluster.ssictl(N1, &now)?, 5)?;
    let list = cluster.sh(N1, "ssictl lock ls")?;
    ensure!(list.contains("held"), "n3 does not say who has it: {list}");
    cluster.sh(N3, "pkill -x ssictl")?;
    let soon = ["lock", "stays", "--wait", "30", "--", "true"];
    ended(&cluster.ssictl(N1, &soon)?, 0)
}

/// The node that holds a lock dies: another has it as soon as that is agreed on.
fn lock_dead(cluster: &Cluster) -> Result<()> {
    cluster.sh(
        N3,
        "setsid ssictl lock dead --ttl 300 -- sleep 1000 </dev/null >/dev/null 2>&1 &",
    )?;
    eventually(SOON, || {
        let list = cluster.sh(N1, "ssictl lock ls")?;
        Ok((!list.contains("dead")).then_some(list))
    })?;
    cluster.kill(N3)?;
    let start = Instant::now();
    let output = cluster.ssictl(N1, &["lock", "dead", "--wait", "120", "--", "true"]);
    let took = start.elapsed();
    cluster.start(N3)?;
    ended(&output?, 0)?;
    println!("      handed on after {:.1} s", took.as_secs_f64());
    cluster.wait_linked(&cluster.nodes())
}

fn kv(cluster: &Cluster) -> Result<()> {
    cluster.sh(N1, "ssictl kv put place/a one")?;
    ensure!(value(cluster, N3, "place/a")? == "one");
    let shown = cluster.ssictl_json(N2, &["kv", "get", "place/a"])?;
    let revision = shown["revision"].as_u64().context("no revision")?;
    cluster.sh(N2, &format!("ssictl kv cas place/a {revision} two"))?;
    let late = cluster.ssictl(
        N3,
        &["kv", "cas", "place/a", &revision.to_string(), "three"],
    )?;
    ended(&late, 5)?;
    ensure!(value(cluster, N1, "place/a")? == "two");
    cluster.sh(
        N3,
        "head -c 60000 /dev/zero | tr '\\0' x | ssictl kv put place/b -",
    )?;
    ensure!(value(cluster, N1, "place/b")?.len() == 60_000);
    let list = cluster.sh(N1, "ssictl kv ls place/")?;
    ensure!(
        list.contains("place/a") && list.contains("place/b"),
        "{list}"
    );
    let shown = cluster.ssictl_json(N1, &["kv", "ls", "place/"])?;
    let now = shown["revision"].as_u64().context("no revision")?;
    let is = |name: &str| {
        let shown = cluster.ssictl_json(N1, &["kv", "get", name])?;
        shown["revision"].as_u64().context("no revision")
    };
    let before = (is("place/b")? - 1).to_string();
    let late = cluster.ssictl(N2, &["kv", "rm", "place/b", "--revision", &before])?;
    ended(&late, 5)?;
    for name in ["place/a", "place/b"] {
        let revision = is(name)?.to_string();
        let words = ["kv", "rm", name, "--revision", &revision];
        ended(&cluster.ssictl(N2, &words)?, 0)?;
    }
    // Who watches is told what was done since, and then what is done.
    let watch = format!("timeout 10 ssictl kv watch place/ --after {now} >/tmp/watched; true");
    let watched = thread::scope(|scope| {
        let watched = scope.spawn(|| cluster.sh(N3, &watch));
        let put = cluster.sh(N1, "sleep 3; ssictl kv put place/c three");
        watched.join().map(|w| put.and(w))
    });
    watched.map_err(|_| anyhow!("a thread of the runner panicked"))??;
    let watched = cluster.sh(N3, "cat /tmp/watched")?;
    let told: Vec<&str> = watched
        .lines()
        .filter_map(|l| l.split_once(' ').map(|(_, change)| change))
        .collect();
    let wanted = ["place/a (deleted)", "place/b (deleted)", "place/c three"];
    ensure!(told == wanted, "{watched}");
    ended(&cluster.ssictl(N1, &["kv", "rm", "place/c"])?, 0)?;
    let gone = cluster.ssictl(N1, &["kv", "get", "place/a"])?;
    ensure!(gone.status != 0, "{}", gone.evidence());
    Ok(())
}

/// What happens on one node is seen on another, in order, by who watches and by who asks later.
fn events(cluster: &Cluster) -> Result<()> {
    let watched = "/tmp/events";
    cluster.sh(
        N3,
        &format!("setsid ssictl events -w -o json </dev/null >{watched} 2>&1 &"),
    )?;
    eventually(SOON, || {
        let told = cluster.sh(N3, &format!("wc -l <{watched}"))?;
        Ok((told.trim() == "0").then_some("nothing is told".to_owned()))
    })?;
    let mut proc = spin(cluster)?;
    let pid = proc.pid();
    crate::ssictl::migrate(cluster, N1, pid, N2)?;
    let is_ours = |event: &Value| event["event"] == "migrate" && event["pid"] == pid;
    let parse = |text: &str| -> Vec<Value> {
        text.lines()
            .filter_map(|l| serde_json::from_str(l).ok())
            .collect()
    };
    let told = eventually(SOON, || {
        let text = cluster.sh(N3, &format!("cat {watched}"))?;
        let seen = parse(&text).iter().any(|e| is_ours(e) && e["node"] == 1);
        Ok((!seen).then_some(text))
    });
    cluster.sh(N3, "pkill -x ssictl; rm -f /tmp/events")?;
    told?;
    proc.must_pass()?;
    let all = parse(&cluster.sh(N2, "ssictl events -o json")?);
    let at = |wanted: &dyn Fn(&Value) -> bool| all.iter().position(wanted);
    let arrival = at(&|e| e["event"] == "arrival" && e["pid"] == pid).context("no arrival")?;
    let moved = at(&is_ours).context("no move")?;
    ensure!(
        arrival < moved,
        "the arrival was made ready for after the move: {all:?}"
    );
    let user = format!("{AS_USER} ssictl events");
    let output = cluster.exec(N1, &["bash", "-c", &user])?;
    ensure!(output.status == 4, "{}", output.evidence());
    Ok(())
}
