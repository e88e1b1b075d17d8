// SPDX-License-Identifier: MIT OR Apache-2.0

//! Tests, the clusters they run on, and running them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, ensure};

use crate::cluster::{Cluster, Shape};

/// What a test needs to run on. Tests of one leg share a cluster, in this order of legs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Leg {
    /// One node without module and daemon: what the programs do on a plain machine.
    Plain,
    /// Three nodes, started the quickest way.
    Main,
    /// Three nodes that send a page only when it is asked for, and no other with it.
    Lazy,
    /// Three nodes with little memory, and lazy as well.
    Small,
    /// Three nodes whose kernels check themselves and panic at the first complaint.
    Checkers,
    /// Three nodes that booted by themselves, at different times.
    Apart,
    /// Three nodes whose process 1 is systemd, and ssid a service of it.
    Systemd,
    /// Four machines that are in no cluster.
    Forming,
    /// Four machines that the tests make a cluster, and lose one of it again and again.
    Rounds,
    /// Three nodes with a module that can be told to do its work wrong, or to wear its links out fast.
    Broken,
}

impl Leg {
    /// Short name.
    pub fn name(self) -> &'static str {
        match self {
            Leg::Plain => "plain",
            Leg::Main => "main",
            Leg::Lazy => "lazy",
            Leg::Small => "small",
            Leg::Checkers => "checkers",
            Leg::Apart => "apart",
            Leg::Systemd => "systemd",
            Leg::Forming => "forming",
            Leg::Rounds => "rounds",
            Leg::Broken => "broken",
        }
    }

    fn shape(self) -> Shape {
        let (nodes, options): (u16, &[&'static str]) = match self {
            Leg::Plain => (1, &["--no-ssi"]),
            Leg::Main | Leg::Lazy => (3, &["--template"]),
            Leg::Small => (3, &["--template", "--mem", "320"]),
            // Slabs that are checked take several times their size.
            Leg::Checkers => (3, &["--checkers", "--mem", "1024"]),
            Leg::Apart => (3, &[]),
            Leg::Systemd => (3, &["--systemd"]),
            Leg::Forming | Leg::Rounds => (4, &["--template", "--no-form"]),
            Leg::Broken => (3, &["--template", "--bench"]),
        };
        let lazy = matches!(self, Leg::Lazy | Leg::Small);
        Shape {
            nodes,
            options: options.to_vec(),
            lazy,
        }
    }

    /// What is done to a new cluster before its first test.
    fn prepare(self, cluster: &Cluster) -> Result<()> {
        match self {
            Leg::Lazy | Leg::Small => cluster.reload("push=0 prefetch=1"),
            Leg::Apart => {
                // Nothing the nodes have in common can come from having booted together.
                for node in cluster.nodes() {
                    cluster.kill(node)?;
                    thread::sleep(Duration::from_secs(15));
                    cluster.start(node)?;
                }
                cluster.wait_linked(&cluster.nodes())
            }
            _ => Ok(()),
        }
    }
}

type Body = Box<dyn Fn(&Cluster) -> Result<()>>;

/// One test.
pub struct Test {
    /// How it is called on the command line.
    pub name: String,
    /// What it runs on.
    pub leg: Leg,
    body: Body,
}

impl Test {
    /// A test of [`Leg::Main`].
    pub fn new(name: impl Into<String>, body: impl Fn(&Cluster) -> Result<()> + 'static) -> Self {
        Self {
            name: name.into(),
            leg: Leg::Main,
            body: Box::new(body),
        }
    }

    /// The same on another leg; its name then begins with the leg's.
    pub fn on(mut self, leg: Leg) -> Self {
        self.name = format!("{}-{}", leg.name(), self.name);
        self.leg = leg;
        self
    }
}

/// Whether a test is meant by a word of the command line: its name, or a pattern with one `*`.
pub fn is_meant(name: &str, word: &str) -> bool {
    match word.split_once('*') {
        Some((begin, end)) => {
            name.len() >= begin.len() + end.len() && name.starts_with(begin) && name.ends_with(end)
        }
        None => name == word,
    }
}

/// How a run went.
#[derive(Debug, Default)]
pub struct Count {
    /// Tests that passed.
    pub passed: usize,
    /// Names of those that did not.
    pub failed: Vec<String>,
    /// Names of those for which there was no time.
    pub left_out: Vec<String>,
}

/// Runs tests one after another, each leg on a cluster of its own called `name`, and counts how they went. None begins
/// after `until`. With `keep` the first failure is the end, and its cluster stays up. Returns whether that happened.
pub fn run(
    name: &str,
    mut tests: Vec<Test>,
    keep: bool,
    until: Option<SystemTime>,
    count: &mut Count,
) -> bool {
    tests.sort_by_key(|test| test.leg);
    let mut clusters = Clusters {
        name,
        current: None,
        lost: None,
    };
    for test in &tests {
        if until.is_some_and(|until| SystemTime::now() > until) {
            count.left_out.push(test.name.clone());
            continue;
        }
        let start = Instant::now();
        let result = clusters
            .of(test.leg)
            .and_then(|cluster| run_one(test, cluster));
        let seconds = start.elapsed().as_secs_f64();
        let Err(error) = result else {
            println!("ok    {} ({seconds:.1} s)", test.name);
            count.passed += 1;
            continue;
        };
        let current = clusters.current.take();
        let words = current
            .as_ref()
            .map(|(_, cluster)| cluster.last_words())
            .unwrap_or_default();
        let text = format!("{error:#}\n{words}")
            .trim_end()
            .replace('\n', "\n      ");
        println!("FAIL  {} ({seconds:.1} s)\n      {text}", test.name);
        count.failed.push(test.name.clone());
        if keep {
            println!("the cluster {name} is kept: CLUSTER={name} vm/cluster exec 1 -t -- bash");
            std::mem::forget(current);
            return true;
        }
        // The cluster goes down here: what the test left behind must not fail the next one.
    }
    if let Err(error) = clusters.end() {
        println!("FAIL  {error:#}");
        count.failed.push("offences".to_owned());
    }
    false
}

/// The cluster that is up, one at a time.
struct Clusters<'a> {
    name: &'a str,
    current: Option<(Leg, Cluster)>,
    /// The leg whose cluster did not come up, so that it is not tried again for each of its tests.
    lost: Option<Leg>,
}

impl Clusters<'_> {
    /// Takes the cluster down that is up. No node of it may have seen another do what no honest node does.
    fn end(&mut self) -> Result<()> {
        let Some((leg, cluster)) = self.current.take() else {
            return Ok(());
        };
        let all = cluster.offences();
        all.with_context(|| format!("on the cluster of {}, which is over", leg.name()))
    }

    fn of(&mut self, leg: Leg) -> Result<&Cluster> {
        if self.current.as_ref().is_none_or(|(have, _)| *have != leg) {
            // The old one goes first: there is room for one.
            self.end()?;
            ensure!(self.lost != Some(leg), "its cluster did not come up before");
            let start = Instant::now();
            let made = Cluster::up(self.name, leg.shape()).and_then(|cluster| {
                leg.prepare(&cluster)?;
                Ok(cluster)
            });
            let cluster = made.inspect_err(|_| self.lost = Some(leg))?;
            println!(
                "--    {} up ({:.1} s)",
                leg.name(),
                start.elapsed().as_secs_f64()
            );
            self.current = Some((leg, cluster));
        }
        self.current
            .as_ref()
            .map(|(_, cluster)| cluster)
            .ok_or_else(|| anyhow!("no cluster"))
    }
}

fn run_one(test: &Test, cluster: &Cluster) -> Result<()> {
    let result = catch_unwind(AssertUnwindSafe(|| (test.body)(cluster)))
        .unwrap_or_else(|_| Err(anyhow!("the test panicked")));
    match (result, cluster.check()) {
        (result, Ok(())) => result,
        (Ok(()), complaint) => complaint,
        // A kernel's complaint explains more than what came of it.
        (Err(error), Err(complaint)) => Err(anyhow!("{complaint:#}\nand {error:#}")),
    }
}

/// Names are used on the command line and must be told apart.
pub fn verify(tests: &[Test]) -> Result<()> {
    for (i, test) in tests.iter().enumerate() {
        ensure!(
            tests[..i].iter().all(|other| other.name != test.name),
            "two tests are called {}",
            test.name
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        assert!(is_meant("memory-hold", "memory-hold"));
        assert!(is_meant("memory-hold", "memory-*"));
        assert!(is_meant("memory-hold", "*-hold"));
        assert!(!is_meant("memory-hold", "memory"));
        assert!(!is_meant("ab", "ab*b"));
    }
}
