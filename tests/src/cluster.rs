// SPDX-License-Identifier: MIT OR Apache-2.0

//! A cluster of test VMs, driven by the same command line people use: `vm/cluster`.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::host::{self, Output};

/// A node of the cluster under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node(pub u16);

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

/// First node.
pub const N1: Node = Node(1);
/// Second node.
pub const N2: Node = Node(2);
/// Third node.
pub const N3: Node = Node(3);

/// How long an ordinary command in a VM may take. A VM is slow, not lazy.
pub const COMMAND: Duration = Duration::from_secs(60);
/// Making everything, the first time, then booting.
const UP: Duration = Duration::from_secs(600);
/// Where test programs are put in the VMs.
pub const PROGRAMS: &str = "/tests";
/// What ssictl exits with when it refuses.
pub const REFUSED: i32 = 5;
/// Before a command: it is run as a user who is no administrator.
pub const AS_USER: &str = "setpriv --reuid 65534 --regid 65534 --clear-groups";

/// How a cluster is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Number of nodes.
    pub nodes: u16,
    /// More words for `vm/cluster up`.
    pub options: Vec<&'static str>,
    /// Pages travel only when asked for, as long as no node is started again.
    pub lazy: bool,
}

/// A running cluster. It goes down with the value; the script that starts the runner sees to it too.
pub struct Cluster {
    shape: Shape,
    name: String,
    top: PathBuf,
    pushed: Mutex<HashSet<(Node, String)>>,
}

impl Cluster {
    /// Brings a cluster up and waits until its nodes see each other.
    pub fn up(name: &str, shape: Shape) -> Result<Self> {
        let top = top()?;
        let cluster = Self {
            shape,
            name: name.into(),
            top,
            pushed: Mutex::default(),
        };
        let nodes = cluster.shape.nodes.to_string();
        let words: Vec<&str> = ["up", &nodes]
            .into_iter()
            .chain(cluster.shape.options.iter().copied())
            .collect();
        let output = cluster.verb(&words, UP)?;
        ensure!(
            output.status == 0,
            "vm/cluster up failed: {}",
            output.evidence()
        );
        if cluster.is_formed() {
            cluster.wait_linked(&cluster.nodes())?;
        }
        Ok(cluster)
    }

    /// Whether the module and the daemon are there.
    pub fn has_ssi(&self) -> bool {
        !self.shape.options.contains(&"--no-ssi")
    }

    /// Whether its machines are a cluster from the beginning.
    pub fn is_formed(&self) -> bool {
        self.has_ssi() && !self.shape.options.contains(&"--no-form")
    }

    /// Whether systemd starts the daemon.
    fn has_systemd(&self) -> bool {
        self.shape.options.contains(&"--systemd")
    }

    /// Whether pages travel only when asked for.
    pub fn is_lazy(&self) -> bool {
        self.shape.lazy
    }

    /// How it was made.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// All nodes.
    pub fn nodes(&self) -> Vec<Node> {
        (1..=self.shape.nodes).map(Node).collect()
    }

    /// A `vm/cluster` command, not yet started.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(self.top.join("vm/cluster"));
        command.args(words).env("CLUSTER", &self.name);
        command
    }

    fn verb(&self, words: &[&str], limit: Duration) -> Result<Output> {
        host::run(self.command(words), b"", limit)
    }

    fn plain_verb(&self, words: &[&str]) -> Result<String> {
        let output = self.verb(words, COMMAND)?;
        ensure!(
            output.status == 0,
            "vm/cluster {}: {}",
            words.join(" "),
            output.evidence()
        );
        Ok(output.text().trim_end().to_owned())
    }

    /// Runs a command on a node, by that node's own kernel and nothing of ours.
    pub fn exec(&self, node: Node, words: &[&str]) -> Result<Output> {
        self.exec_with(node, words, b"", COMMAND)
    }

    /// The same with standard input and a limit of its own.
    pub fn exec_with(
        &self,
        node: Node,
        words: &[&str],
        input: &[u8],
        limit: Duration,
    ) -> Result<Output> {
        let node = node.to_string();
        let all: Vec<&str> = ["exec", &node, "--"]
            .into_iter()
            .chain(words.iter().copied())
            .collect();
        host::run(self.command(&all), input, limit)
    }

    /// Runs a bash script on a node; it must succeed. Returns what it printed, without the last newline.
    pub fn sh(&self, node: Node, script: &str) -> Result<String> {
        let output = self.exec(node, &["bash", "-c", script])?;
        ensure!(
            output.status == 0,
            "on {node}: {script}\n{}",
            output.evidence()
        );
        Ok(output.text().trim_end().to_owned())
    }

    /// Runs `ssictl` on a node.
    pub fn ssictl(&self, node: Node, words: &[&str]) -> Result<Output> {
        self.ssictl_within(node, words, COMMAND)
    }

    /// The same with a limit of its own.
    pub fn ssictl_within(&self, node: Node, words: &[&str], limit: Duration) -> Result<Output> {
        let mut all = vec!["bash", "-c", r#"exec ssictl "$@""#, "ssictl"];
        all.extend(words);
        self.exec_with(node, &all, b"", limit)
    }

    /// Runs `ssictl ... -o json`; it must succeed.
    pub fn ssictl_json(&self, node: Node, words: &[&str]) -> Result<Value> {
        let words: Vec<&str> = words.iter().copied().chain(["-o", "json"]).collect();
        let output = self.ssictl(node, &words)?;
        ensure!(
            output.status == 0,
            "ssictl {} on {node}: {}",
            words.join(" "),
            output.evidence()
        );
        serde_json::from_slice(&output.stdout).with_context(|| {
            format!(
                "ssictl {} on {node} gives no JSON: {}",
                words.join(" "),
                output.evidence()
            )
        })
    }

    /// Puts a file on a node. A file that is there already is left alone.
    pub fn push(&self, node: Node, from: &Path, to: &str) -> Result<()> {
        if !self.lock_pushed().insert((node, to.into())) {
            return Ok(());
        }
        let from = from.to_str().context("a path that is no text")?;
        self.plain_verb(&["push", &node.to_string(), from, to])
            .inspect_err(|_| {
                self.lock_pushed().remove(&(node, to.to_owned()));
            })
            .map(drop)
    }

    fn lock_pushed(&self) -> std::sync::MutexGuard<'_, HashSet<(Node, String)>> {
        self.pushed
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Puts a test program on the given nodes and returns its path there.
    pub fn program(&self, kind: Kind, name: &str, nodes: &[Node]) -> Result<String> {
        let from = match kind {
            Kind::Dynamic => self.top.join("build/guest/dynamic").join(name),
            Kind::Static => self.top.join("build/guest/static").join(name),
            Kind::Script => self.top.join("tests/guest").join(name),
        };
        ensure!(
            from.exists(),
            "{} is not there; tests/run makes it",
            from.display()
        );
        let to = format!("{PROGRAMS}/{}/{name}", kind.folder());
        self.on_all(nodes, |node| self.push(node, &from, &to))?;
        Ok(to)
    }

    /// Does the same on several nodes at once.
    pub fn on_all<T: Send>(
        &self,
        nodes: &[Node],
        work: impl Fn(Node) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        thread::scope(|scope| {
            let work = &work;
            let running: Vec<_> = nodes
                .iter()
                .map(|&node| scope.spawn(move || work(node)))
                .collect();
            running
                .into_iter()
                .map(|one| {
                    one.join()
                        .unwrap_or_else(|_| bail!("a thread of the runner panicked"))
                })
                .collect()
        })
    }

    /// Stops a node's processors; the others see nothing but silence.
    pub fn freeze(&self, node: Node) -> Result<()> {
        self.plain_verb(&["freeze", &node.to_string()]).map(drop)
    }

    /// Lets a frozen node go on.
    pub fn thaw(&self, node: Node) -> Result<()> {
        self.plain_verb(&["thaw", &node.to_string()]).map(drop)
    }

    /// Pulls a node's power.
    pub fn kill(&self, node: Node) -> Result<()> {
        self.lock_pushed().retain(|(at, _)| *at != node);
        self.plain_verb(&["kill", &node.to_string()]).map(drop)
    }

    /// Boots a node that was killed.
    pub fn start(&self, node: Node) -> Result<()> {
        let output = self.verb(&["start", &node.to_string()], UP)?;
        ensure!(
            output.status == 0,
            "vm/cluster start {node}: {}",
            output.evidence()
        );
        Ok(())
    }

    /// Drops every frame between two nodes from now on.
    pub fn cut(&self, a: Node, b: Node) -> Result<()> {
        self.cut_all(&[(a, b)])
    }

    /// As [`Cluster::cut`], for all of these pairs at one moment.
    pub fn cut_all(&self, wires: &[(Node, Node)]) -> Result<()> {
        self.wires("cut", wires)
    }

    /// Undoes [`Cluster::cut`].
    pub fn heal(&self, a: Node, b: Node) -> Result<()> {
        self.heal_all(&[(a, b)])
    }

    /// Undoes [`Cluster::cut_all`].
    pub fn heal_all(&self, wires: &[(Node, Node)]) -> Result<()> {
        self.wires("heal", wires)
    }

    fn wires(&self, verb: &str, wires: &[(Node, Node)]) -> Result<()> {
        let ends = wires
            .iter()
            .flat_map(|(a, b)| [a.to_string(), b.to_string()]);
        let words: Vec<String> = [verb.to_owned()].into_iter().chain(ends).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.plain_verb(&words).map(drop)
    }

    /// What the node's kernel has said so far.
    pub fn console(&self, node: Node) -> Result<String> {
        let path = self.plain_verb(&["console", &node.to_string()])?;
        Ok(String::from_utf8_lossy(&fs::read(path)?).into_owned())
    }

    /// No kernel complains and none is tainted beyond what an unsigned module does.
    pub fn check(&self) -> Result<()> {
        let output = self.verb(&["check"], COMMAND)?;
        ensure!(
            output.status == 0,
            "a kernel complains: {}",
            output.evidence()
        );
        Ok(())
    }

    /// No node that runs has noted that another did what no honest node does: all are.
    pub fn offences(&self) -> Result<()> {
        if !self.has_ssi() {
            return Ok(());
        }
        for node in self.nodes() {
            // One that has no power has no say.
            let look = "grep -hE '\"event\":\"(offence|accused|quarantined)\"' /var/lib/ssid/audit/*.jsonl || true";
            if let Ok(seen) = self.sh(node, look) {
                ensure!(seen.is_empty(), "{node} saw offences: {seen}");
            }
        }
        Ok(())
    }

    /// Waits until each of `nodes` has a link to all the others of them.
    pub fn wait_linked(&self, nodes: &[Node]) -> Result<()> {
        host::eventually(Duration::from_secs(60), || {
            for &node in nodes {
                let output = self.ssictl(node, &["node", "ls", "-o", "json"])?;
                let Ok(list) = serde_json::from_slice::<Value>(&output.stdout) else {
                    return Ok(Some(format!(
                        "ssictl node ls on {node}: {}",
                        output.evidence()
                    )));
                };
                for &other in nodes {
                    if !crate::ssictl::is_linked(&list, other) {
                        return Ok(Some(format!("{node} does not see {other}: {list}")));
                    }
                }
            }
            Ok(None)
        })
    }

    /// Ends the daemon of a node, as an operator would.
    pub fn stop_daemon(&self, node: Node) -> Result<()> {
        if self.has_systemd() {
            return self.sh(node, "systemctl stop ssid").map(drop);
        }
        let script = "pkill -x ssid; for i in $(seq 100); do pgrep -x ssid >/dev/null || exit 0; sleep 0.1; done; exit 1";
        self.sh(node, script).context("ssid does not end").map(drop)
    }

    /// Starts it again.
    pub fn start_daemon(&self, node: Node) -> Result<()> {
        if self.has_systemd() {
            return self.sh(node, "systemctl start ssid").map(drop);
        }
        let script = "setsid ssid --config /etc/ssid/ssid.toml </dev/null >>/var/log/ssid.log 2>&1 & sleep 0.5";
        self.sh(node, script).map(drop)
    }

    /// Unloads the module once nothing uses it, within a bounded time.
    pub fn unload(&self, node: Node) -> Result<()> {
        let script = "for i in $(seq 150); do error=$(rmmod ssi 2>&1) && exit 0; sleep 0.1; done; echo \"$error\"; exit 1";
        self.sh(node, script)
            .context("the module cannot be unloaded")
            .map(drop)
    }

    /// Loads the module anew with other parameters on all nodes.
    pub fn reload(&self, parameters: &str) -> Result<()> {
        self.reload_on(&self.nodes(), parameters)
    }

    /// The same on some of them.
    pub fn reload_on(&self, nodes: &[Node], parameters: &str) -> Result<()> {
        self.on_all(nodes, |node| self.stop_daemon(node))?;
        self.on_all(nodes, |node| {
            self.unload(node)?;
            self.sh(node, &format!("insmod /ssi/ssi.ko {parameters}"))?;
            self.start_daemon(node)
        })?;
        self.wait_linked(&self.nodes())
    }

    /// What the nodes' kernels and daemons said last, for a failure's message.
    pub fn last_words(&self) -> String {
        let mut words = String::new();
        for node in self.nodes() {
            let console = self
                .console(node)
                .unwrap_or_else(|error| format!("({error:#})"));
            words += &end_of(&format!("console of {node}"), &console);
            if !self.has_ssi() {
                continue;
            }
            let log: &[&str] = if self.has_systemd() {
                &["journalctl", "-u", "ssid", "-n", "12", "--no-pager"]
            } else {
                &["tail", "-n", "12", "/var/log/ssid.log"]
            };
            if let Ok(output) = self.exec_with(node, log, b"", Duration::from_secs(10)) {
                words += &end_of(&format!("log of ssid on {node}"), &output.text());
            }
        }
        words
    }

    /// Takes it down. Not an error if it is down.
    pub fn down(&self) {
        if let Err(error) = self.verb(&["down"], Duration::from_secs(60)) {
            eprintln!("vm/cluster down: {error:#}");
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.down();
    }
}

fn end_of(name: &str, text: &str) -> String {
    let from = text.lines().count().saturating_sub(12);
    let lines: Vec<&str> = text.lines().skip(from).collect();
    format!("{name}, end:\n  {}\n", lines.join("\n  "))
}

/// How a test program was built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Position independent, with the system's C library.
    Dynamic,
    /// Without any library.
    Static,
    /// A text for an interpreter.
    Script,
}

impl Kind {
    fn folder(self) -> &'static str {
        match self {
            Kind::Dynamic => "dynamic",
            Kind::Static => "static",
            Kind::Script => "scripts",
        }
    }
}

/// The top of the tree.
pub fn top() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(here.parent().context("tests/ lies in the tree")?.to_owned())
}
