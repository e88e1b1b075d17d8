// SPDX-License-Identifier: MIT OR Apache-2.0

//! Rounds of kill, freeze and cut: a node that others host processes of, that hosts processes of others and
//! holds a lock is lost while all nodes write values, and is there again.
//!
//! In each round it is declared dead in time, nothing of the survivors stands still for longer, no write
//! that was acknowledged is lost on any node, and all is whole again without a hand. `ROUNDS` in the
//! environment says how many rounds a test has.

use std::collections::BTreeMap;
use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::cluster::{Cluster, N1, Node};
use crate::host::eventually;
use crate::lines;
use crate::members::{SOON, formed, members, names, one_with_role, presence, whole};
use crate::moves::hop;
use crate::place::{Doing, task};
use crate::proc::{End, Proc, Start};
use crate::suite::{Leg, Test};

/// So often the configured time is there for a death to be declared, and nothing may stand still for longer.
const TIMES: u32 = 3;
/// How long it goes on before the fault, and before the node is there again.
const GOES_ON: Duration = Duration::from_secs(3);
/// Names of all values begin so.
const PREFIX: &str = "rounds/";
/// The lock that the lost node holds.
const LOCK: &str = "rounds";

/// What is done to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Its power is cut.
    Kill,
    /// It stands still.
    Freeze,
    /// It and the others do not hear each other.
    Cut,
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Fault::Kill => "kill",
            Fault::Freeze => "freeze",
            Fault::Cut => "cut",
        }
    }

    fn strike(self, cluster: &Cluster, victim: Node) -> Result<()> {
        match self {
            Fault::Kill => cluster.kill(victim),
            Fault::Freeze => cluster.freeze(victim),
            Fault::Cut => cluster.cut_all(&wires(cluster, victim)),
        }
    }

    fn heal(self, cluster: &Cluster, victim: Node) -> Result<()> {
        match self {
            Fault::Kill => cluster.start(victim),
            Fault::Freeze => {
                cluster.thaw(victim)?;
                // Its clock stood still as well, and nothing else in it sets it.
                let output = cluster.exec(victim, &["/usr/lib/unum/agent", "clock"])?;
                ensure!(output.status == 0, "{}", output.evidence());
                Ok(())
            }
            Fault::Cut => cluster.heal_all(&wires(cluster, victim)),
        }
    }
}

/// The tests: every fault to every role.
pub fn tests() -> Vec<Test> {
    let faults = [Fault::Kill, Fault::Freeze, Fault::Cut];
    let mut tests = Vec::new();
    for fault in faults {
        for role in ["leader", "voter", "learner"] {
            let name = format!("{}-{role}", fault.name());
            let body = move |cluster: &Cluster| rounds(cluster, fault, role);
            tests.push(Test::new(name, body).on(Leg::Rounds));
        }
    }
    tests
}

/// What was measured in one round, or the longest of several.
#[derive(Clone, Copy, Debug, Default)]
struct Figures {
    /// From the fault until a survivor knew it for dead.
    declared: Duration,
    /// Until the lock it held was another's.
    handed_on: Duration,
    /// Between two acknowledged writes of a survivor.
    write_gap: Duration,
    /// Between two signs of life of the survivors' own processes, at home or with each other.
    work_gap: Duration,
    /// From when the node could be reached again until all were whole.
    whole: Duration,
    /// Writes that were acknowledged.
    writes: usize,
}

impl Figures {
    fn or_longer(self, other: Self) -> Self {
        Self {
            declared: self.declared.max(other.declared),
            handed_on: self.handed_on.max(other.handed_on),
            write_gap: self.write_gap.max(other.write_gap),
            work_gap: self.work_gap.max(other.work_gap),
            whole: self.whole.max(other.whole),
            writes: self.writes + other.writes,
        }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = |d: Duration| d.as_secs_f64();
        write!(
            f,
            "declared dead {:.1} s, lock {:.1} s, write {:.1} s, work {:.1} s, whole {:.1} s, {} writes",
            s(self.declared),
            s(self.handed_on),
            s(self.write_gap),
            s(self.work_gap),
            s(self.whole),
            self.writes
        )
    }
}

fn rounds(cluster: &Cluster, fault: Fault, role: &str) -> Result<()> {
    let count: u32 = match std::env::var("ROUNDS") {
        Ok(text) => text.parse().context("ROUNDS is no number")?,
        Err(_) => 1,
    };
    formed(cluster)?;
    let mut longest = Figures::default();
    let mut written = Written::default();
    for number in 1..=count {
        let figures = round(cluster, fault, role, number, &mut written)
            .with_context(|| format!("round {number} of {count}"))?;
        println!("      {}-{role} {number}: {figures}", fault.name());
        longest = longest.or_longer(figures);
    }
    if count > 1 {
        println!(
            "      {}-{role}, {count} rounds, at most: {longest}",
            fault.name()
        );
    }
    Ok(())
}

fn others(cluster: &Cluster, node: Node) -> Vec<Node> {
    let nodes = cluster.nodes().into_iter();
    nodes.filter(|n| *n != node).collect()
}

/// From a node to all others.
fn wires(cluster: &Cluster, node: Node) -> Vec<(Node, Node)> {
    let others = others(cluster, node).into_iter();
    others.map(|other| (node, other)).collect()
}

/// What the nodes are configured with: a node that does not show for so long is declared dead.
fn dead_after(cluster: &Cluster, on: Node) -> Result<Duration> {
    let script = "sed -n 's/^peer_dead_after_s *= *//p' /etc/ssid/ssid.toml";
    let text = cluster.sh(on, script)?;
    let seconds = text
        .parse()
        .with_context(|| format!("peer_dead_after_s is {text:?}"))?;
    Ok(Duration::from_secs(seconds))
}

/// Sets one value after the other, each until that is acknowledged, and says so, until told.
fn writer<'c>(cluster: &'c Cluster, node: Node, mark: &str) -> Result<Proc<'c>> {
    let script = format!(
        r#"i=0
        until [ -e "$GO.1" ]; do
            echo "try {PREFIX}{node}/$i {mark}.$i"
            until ssictl kv put {PREFIX}{node}/$i {mark}.$i >/dev/null 2>/tmp/refused; do
                echo "not yet: $(head -n 1 /tmp/refused)"
                sleep 0.2
            done
            echo "put {PREFIX}{node}/$i {mark}.$i"
            i=$((i + 1))
            sleep 0.2
        done
        exit 33"#
    );
    Proc::start(cluster, &Start::system(&["bash", "-c", &script]).home(node))
}

/// A process of the node's own: starts others, writes to the disk, and says so, until told.
fn worker(cluster: &Cluster, node: Node) -> Result<Proc<'_>> {
    let script = r#"until [ -e "$GO.1" ]; do
            /bin/true && date >/var/lib/rounds && echo beat
            sleep 0.2
        done
        exit 33"#;
    Proc::start(cluster, &Start::system(&["bash", "-c", script]).home(node))
}

/// The longest time in which no line came that begins so, from the first one that did until now.
fn longest_gap(lines: &[(Instant, String)], prefix: &str, now: Instant) -> Result<Duration> {
    let mut moments = lines
        .iter()
        .filter(|(_, line)| line.starts_with(prefix))
        .map(|(at, _)| *at);
    let mut last = moments
        .next()
        .with_context(|| format!("no line begins with {prefix:?}"))?;
    let mut longest = Duration::ZERO;
    for at in moments.chain([now]) {
        longest = longest.max(at.saturating_duration_since(last));
        last = at;
    }
    Ok(longest)
}

/// What the values are that writers have set, by what was acknowledged.
#[derive(Debug, Default)]
struct Written {
    /// Acknowledged last.
    sure: BTreeMap<String, String>,
    /// Tried later, with an end that nobody knows.
    tried: BTreeMap<String, Vec<String>>,
}

impl Written {
    /// Takes what a writer said. Returns how many writes were acknowledged to it.
    fn take<'l>(&mut self, lines: impl Iterator<Item = &'l str>) -> usize {
        let mut count = 0;
        for line in lines {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["try", name, value] => {
                    let tried = self.tried.entry(name.to_owned()).or_default();
                    tried.push(value.to_owned());
                }
                ["put", name, value] => {
                    self.sure.insert(name.to_owned(), value.to_owned());
                    self.tried.remove(name);
                    count += 1;
                }
                _ => {}
            }
        }
        count
    }

    /// What `ssictl kv ls` lists must be what was acknowledged.
    fn check(&self, list: &str) -> Result<()> {
        let seen: BTreeMap<&str, &str> = list
            .lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                Some((words.next()?, words.nth(2)?))
            })
            .collect();
        for (name, value) in &self.sure {
            let is = seen.get(name.as_str());
            let may_be = |is: &&&str| {
                *is == value || {
                    let tried = self.tried.get(name);
                    tried.is_some_and(|values| values.iter().any(|v| v == *is))
                }
            };
            ensure!(
                is.filter(may_be).is_some(),
                "{name} was set to {value}, and is {is:?}"
            );
        }
        Ok(())
    }
}

fn must_be_gone(cluster: &Cluster, pid: u32, on: Node) -> Result<()> {
    eventually(SOON, || {
        let left = task(cluster, on, pid)?;
        Ok(left
            .filter(|t| !t.is_dead())
            .map(|t| format!("{on} still has {pid}: {t:?}")))
    })
}

/// A program that counts, far from home.
fn away(cluster: &Cluster, home: Node, to: Node) -> Result<Proc<'_>> {
    let proc = Proc::start(cluster, &Start::guest("count 50").home(home))?;
    proc.ready()?;
    hop(&proc, "count", Doing::Sleeping, to)?;
    Ok(proc)
}

/// A script that says what became of a command under the lock.
fn under_lock<'c>(
    cluster: &'c Cluster,
    node: Node,
    command: &str,
    shows: &str,
) -> Result<Proc<'c>> {
    let script = format!("ssictl lock {LOCK} --wait 300 -- {command}; echo over $?");
    let proc = Proc::start(cluster, &Start::system(&["sh", "-c", &script]).home(node))?;
    eventually(SOON, || {
        let list = cluster.sh(node, "ssictl lock ls")?;
        Ok((!list.contains(shows)).then_some(list))
    })?;
    Ok(proc)
}

/// All that goes on in a round.
struct Scene<'c> {
    cluster: &'c Cluster,
    victim: Node,
    /// Since when the victim is there.
    since: u64,
    survivors: Vec<Node>,
    /// Of a survivor, on the victim.
    hosted: Proc<'c>,
    /// Of the victim, on a survivor.
    guest: Proc<'c>,
    /// Of a survivor, on another.
    going: Proc<'c>,
    /// Has the lock, on the victim.
    holder: Proc<'c>,
    /// Waits for it, on a survivor.
    waiter: Proc<'c>,
    workers: Vec<Proc<'c>>,
    writers: Vec<Proc<'c>>,
    /// The writer on the victim.
    lost_writer: Proc<'c>,
}

impl<'c> Scene<'c> {
    fn set(cluster: &'c Cluster, victim: Node, mark: &str) -> Result<Self> {
        let survivors = others(cluster, victim);
        let [first, second, third] = survivors[..] else {
            bail!("{survivors:?} are not three")
        };
        let all = |start: &dyn Fn(Node) -> Result<Proc<'c>>| {
            let started = survivors.iter().map(|n| start(*n));
            started.collect::<Result<Vec<_>>>()
        };
        Ok(Self {
            cluster,
            victim,
            since: presence(cluster, first, &victim.to_string())?.0,
            hosted: away(cluster, first, victim)?,
            guest: away(cluster, victim, second)?,
            going: away(cluster, first, third)?,
            holder: under_lock(cluster, victim, "sleep 1000", "held")?,
            waiter: under_lock(cluster, second, "echo had", "waiting")?,
            workers: all(&|n| worker(cluster, n))?,
            writers: all(&|n| writer(cluster, n, mark))?,
            lost_writer: writer(cluster, victim, mark)?,
            survivors,
        })
    }

    /// Waits for what follows from the loss; it was at the moment `struck`.
    fn mourn(&mut self, struck: Instant, bound: Duration) -> Result<Figures> {
        let (cluster, victim) = (self.cluster, self.victim.to_string());
        let seer = self.survivors[1];
        // Who would say so may have to be found first.
        eventually(bound, || {
            let output = cluster.ssictl(seer, &["node", "show", &victim, "-o", "json"])?;
            let shown: Option<Value> = serde_json::from_slice(&output.stdout).ok();
            let ended = shown.is_some_and(|s| s["ended"].is_u64());
            Ok((!ended).then(|| format!("{victim} is not declared dead: {}", output.evidence())))
        })?;
        let declared = struck.elapsed();
        let end = self.hosted.wait_end(bound)?;
        ensure!(end == End::Signal(9), "what {victim} hosted: {end:?}");
        must_be_gone(cluster, self.guest.pid(), seer).context("a guest outlives its home")?;
        self.waiter.wait_line("had", bound)?;
        let lines = self.waiter.lines();
        let had = lines.iter().find(|(_, line)| line == "had");
        let handed_on = had.map_or(Duration::ZERO, |(at, _)| at.duration_since(struck));
        thread::sleep(GOES_ON);
        Ok(Figures {
            declared,
            handed_on,
            ..Figures::default()
        })
    }

    /// Waits until all is whole, as far as the victim itself is concerned.
    fn welcome(&mut self, fault: Fault) -> Result<()> {
        let (cluster, victim) = (self.cluster, self.victim);
        let all = members(cluster, self.survivors[0])?;
        for on in cluster.nodes() {
            whole(cluster, on, &names(&all))?;
        }
        let (since, ended) = presence(cluster, self.survivors[0], &victim.to_string())?;
        ensure!(
            since > self.since && ended.is_none(),
            "{victim} is there since {since}, as before"
        );
        if fault == Fault::Kill {
            for proc in [&mut self.guest, &mut self.holder, &mut self.lost_writer] {
                proc.lost();
            }
            return Ok(());
        }
        must_be_gone(cluster, self.hosted.pid(), victim)?;
        self.guest.must_end(End::Signal(9))?;
        self.holder
            .wait_line("over 7", SOON)
            .context("who held the lock does not know that it is another's")?;
        self.holder.must_end(End::Exit(0))
    }

    /// Ends what goes on. Returns the figures of it.
    fn end(mut self, fault: Fault, written: &mut Written) -> Result<Figures> {
        let now = Instant::now();
        self.waiter.must_end(End::Exit(0))?;
        let gap = |procs: &[Proc<'_>], prefix| {
            let gaps = procs.iter().map(|p| longest_gap(&p.lines(), prefix, now));
            gaps.collect::<Result<Vec<_>>>()
        };
        let at_home = gap(&self.workers, "beat")?;
        let with_others = longest_gap(&self.going.lines(), "LINE", now)?;
        let write_gap = gap(&self.writers, "put")?.into_iter().max();
        let work_gap = at_home.into_iter().chain([with_others]).max();
        self.going.must_pass()?;
        lines::check(self.going.lines().iter().map(|(_, l)| l.as_str()), |_| {
            Ok(())
        })?;
        for proc in self.workers.iter_mut().chain(&mut self.writers) {
            proc.must_pass()?;
        }
        if fault != Fault::Kill {
            self.lost_writer.must_pass()?;
        }
        let mut writes = 0;
        for proc in self.writers.iter().chain([&self.lost_writer]) {
            writes += written.take(proc.lines().iter().map(|(_, l)| l.as_str()));
        }
        for on in self.cluster.nodes() {
            let list = self.cluster.sh(on, &format!("ssictl kv ls {PREFIX}"))?;
            written
                .check(&list)
                .with_context(|| format!("{on} reads"))?;
        }
        Ok(Figures {
            write_gap: write_gap.unwrap_or_default(),
            work_gap: work_gap.unwrap_or_default(),
            writes,
            ..Figures::default()
        })
    }
}

fn round(
    cluster: &Cluster,
    fault: Fault,
    role: &str,
    number: u32,
    written: &mut Written,
) -> Result<Figures> {
    let victim = one_with_role(&members(cluster, N1)?, role)?.machine;
    let bound = dead_after(cluster, victim)? * TIMES;
    let mark = format!("{}-{role}.{number}", fault.name());
    let mut scene = Scene::set(cluster, victim, &mark)?;
    thread::sleep(GOES_ON);

    let struck = Instant::now();
    fault.strike(cluster, victim)?;
    let mourned = scene.mourn(struck, bound);
    fault.heal(cluster, victim)?;
    let figures = mourned?;
    let healed = Instant::now();
    scene.welcome(fault)?;
    let figures = Figures {
        whole: healed.elapsed(),
        ..figures
    };
    let figures = figures.or_longer(scene.end(fault, written)?);
    for (what, took) in [
        ("it was declared dead", figures.declared),
        ("a survivor's write took", figures.write_gap),
        ("a survivor's work stood still", figures.work_gap),
    ] {
        ensure!(took <= bound, "{what} after, or for, {took:?}: {figures}");
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_may_be_the_last() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let line = |s, text: &str| (at(s), text.to_owned());
        let lines = [
            line(0, "@launch"),
            line(5, "put a"),
            line(6, "try"),
            line(8, "put b"),
        ];
        let gap = |now| longest_gap(&lines, "put", at(now)).unwrap();
        assert_eq!(gap(9), Duration::from_secs(3));
        assert_eq!(gap(12), Duration::from_secs(4));
        assert!(longest_gap(&lines, "beat", at(9)).is_err());
    }

    #[test]
    fn a_lost_write_is_seen_and_one_of_unknown_end_may_be_either() {
        let mut written = Written::default();
        let said = "try a 1\nput a 1\ntry b 1\nput b 1\ntry b 2\nnot yet: x";
        assert_eq!(written.take(said.lines()), 2);
        let list = |a: &str, b: &str| {
            let row = |name, value| format!("{name}  7  1  {value}\n");
            format!(
                "NAME  REVISION  BYTES  VALUE\n{}{}",
                row("a", a),
                row("b", b)
            )
        };
        written.check(&list("1", "1")).unwrap();
        written.check(&list("1", "2")).unwrap();
        written.check(&list("0", "1")).unwrap_err();
        written.check(&list("1", "3")).unwrap_err();
        written.check("a 7 1 1\n").unwrap_err();
    }
}
