// SPDX-License-Identifier: MIT OR Apache-2.0

//! A program under test: started on its home node below a waiting parent, its output read as it comes.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::cluster::{Cluster, Kind, N1, Node};
use crate::host::{tail, wait_until};

/// What the programs of tests/guest exit with when all was right.
pub const PASSED: i32 = 33;
/// Folder of the files that tell a program to go on.
const WORDS: &str = "/run/tests";

/// Where a program's standard streams go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// `/dev/null`: the program needs nothing at home.
    Null,
    /// Pipes.
    Pipe,
    /// A terminal.
    Terminal,
}

/// How a program ended, as its parent saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It exited with this status.
    Exit(i32),
    /// This signal killed it.
    Signal(i32),
}

/// What to start, and how.
#[derive(Clone, Debug)]
pub struct Start<'a> {
    /// Where.
    pub home: Node,
    /// A program of tests/guest, or `None` when `words` begins with one of the system.
    pub program: Option<(Kind, &'a str)>,
    /// Arguments.
    pub words: Vec<&'a str>,
    /// Standard streams.
    pub io: Io,
    /// The parent also reports stops.
    pub watch: bool,
}

impl<'a> Start<'a> {
    /// A dynamic program of tests/guest on n1, with pipes. `line` is its name and arguments.
    pub fn guest(line: &'a str) -> Self {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap_or_default();
        Self {
            home: N1,
            program: Some((Kind::Dynamic, name)),
            words: words.collect(),
            io: Io::Pipe,
            watch: false,
        }
    }

    /// A program of the system on n1, with pipes.
    pub fn system(words: &[&'a str]) -> Self {
        Self {
            home: N1,
            program: None,
            words: words.to_vec(),
            io: Io::Pipe,
            watch: false,
        }
    }

    /// The same, without libraries.
    pub fn fixed(mut self) -> Self {
        self.program = self.program.map(|(_, name)| (Kind::Static, name));
        self
    }

    /// The same with other standard streams.
    pub fn io(mut self, io: Io) -> Self {
        self.io = io;
        self
    }

    /// The same on another node.
    pub fn home(mut self, home: Node) -> Self {
        self.home = home;
        self
    }

    /// The same with stops reported.
    pub fn watched(mut self) -> Self {
        self.watch = true;
        self
    }
}

/// Bytes that came, with the moments at which lines were complete.
#[derive(Default)]
struct Stream {
    text: String,
    lines: Vec<(Instant, String)>,
    partial: Vec<u8>,
    open: bool,
}

#[derive(Default)]
struct Streams {
    out: Stream,
    err: Stream,
}

#[derive(Default)]
struct Shared {
    streams: Mutex<Streams>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Streams> {
        self.streams
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn read(
        self: &Arc<Self>,
        mut from: impl Read + Send + 'static,
        pick: fn(&mut Streams) -> &mut Stream,
    ) {
        pick(&mut self.lock()).open = true;
        let shared = Arc::clone(self);
        thread::spawn(move || {
            let mut buffer = [0; 16384];
            loop {
                let size = from.read(&mut buffer).unwrap_or(0);
                let mut streams = shared.lock();
                let stream = pick(&mut streams);
                if size == 0 {
                    stream.open = false;
                } else {
                    stream.take(&buffer[..size]);
                }
                drop(streams);
                shared.changed.notify_all();
                if size == 0 {
                    break;
                }
            }
        });
    }
}

impl Stream {
    fn take(&mut self, bytes: &[u8]) {
        self.text.push_str(&String::from_utf8_lossy(bytes));
        for &byte in bytes {
            if byte == b'\n' {
                let line = String::from_utf8_lossy(&self.partial)
                    .trim_end_matches('\r')
                    .to_owned();
                self.lines.push((Instant::now(), line));
                self.partial.clear();
            } else {
                self.partial.push(byte);
            }
        }
    }
}

/// A started program.
pub struct Proc<'c> {
    cluster: &'c Cluster,
    home: Node,
    pid: u32,
    go: String,
    told: u32,
    exec: Child,
    stdin: Option<ChildStdin>,
    shared: Arc<Shared>,
    over: bool,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

impl<'c> Proc<'c> {
    /// Starts a program. Returns once its parent has said its PID.
    pub fn start(cluster: &'c Cluster, start: &Start<'_>) -> Result<Self> {
        let nodes = cluster.nodes();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let go = format!("{WORDS}/{number}");
        let launch = cluster.program(Kind::Static, "launch", &[start.home])?;
        let path = match start.program {
            // The same file everywhere: its pages need not travel, and exec finds it.
            Some((kind, name)) => Some(cluster.program(kind, name, &nodes)?),
            None => None,
        };
        let home = start.home.to_string();
        let go_word = format!("GO={go}");
        let mut words = vec!["exec", home.as_str()];
        if start.io == Io::Terminal {
            words.push("-t");
        }
        words.extend(["--", "env", &go_word, &launch]);
        if start.io == Io::Null {
            words.push("-n");
        }
        if start.watch {
            words.push("-w");
        }
        words.extend(path.as_deref());
        words.extend(&start.words);

        let mut exec = cluster
            .command(&words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start vm/cluster exec")?;
        let shared = Arc::new(Shared::default());
        shared.read(exec.stdout.take().context("no pipe")?, |streams| {
            &mut streams.out
        });
        shared.read(exec.stderr.take().context("no pipe")?, |streams| {
            &mut streams.err
        });
        let stdin = exec.stdin.take();
        let mut started = Self {
            cluster,
            home: start.home,
            pid: 0,
            go,
            told: 0,
            exec,
            stdin,
            shared,
            over: false,
        };
        let line = started.wait_report("@launch pid ", Duration::from_secs(60))?;
        started.pid = line.parse().with_context(|| format!("no PID: {line}"))?;
        Ok(started)
    }

    /// Its number, the same everywhere and always.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Where it was started.
    pub fn home(&self) -> Node {
        self.home
    }

    /// The cluster it runs on.
    pub fn cluster(&self) -> &'c Cluster {
        self.cluster
    }

    /// Waits for `found` to find something in the streams.
    fn wait<T>(
        &self,
        what: &str,
        limit: Duration,
        mut found: impl FnMut(&Streams) -> Option<T>,
    ) -> Result<T> {
        let end = Instant::now() + limit;
        let mut streams = self.shared.lock();
        loop {
            if let Some(answer) = found(&streams) {
                return Ok(answer);
            }
            let left = end.saturating_duration_since(Instant::now());
            let silent = !streams.out.open && !streams.err.open;
            if left.is_zero() || silent {
                drop(streams);
                let why = if silent {
                    "the program's streams ended"
                } else {
                    "nothing more came"
                };
                bail!(
                    "no {what} within {} s ({why})\n{}",
                    limit.as_secs(),
                    self.evidence()
                );
            }
            streams = self
                .shared
                .changed
                .wait_timeout(streams, left.min(Duration::from_millis(500)))
                .map_or_else(|poisoned| poisoned.into_inner().0, |(guard, _)| guard);
        }
    }

    /// Waits until the parent has said a line that begins so; returns the rest of it.
    pub fn wait_report(&self, prefix: &str, limit: Duration) -> Result<String> {
        self.wait(&format!("`{prefix}`"), limit, |streams| {
            streams
                .err
                .lines
                .iter()
                .chain(&streams.out.lines)
                .find_map(|(_, line)| line.strip_prefix(prefix))
                .map(str::to_owned)
        })
    }

    /// Waits for a line of output that contains `text`; returns it.
    pub fn wait_line(&self, text: &str, limit: Duration) -> Result<String> {
        self.wait(&format!("`{text}` in its output"), limit, |streams| {
            streams
                .out
                .lines
                .iter()
                .find(|(_, line)| line.contains(text))
                .map(|(_, line)| line.clone())
        })
    }

    /// Waits until it has written more than `count` lines.
    pub fn wait_lines(&self, count: usize, limit: Duration) -> Result<()> {
        self.wait(&format!("{count} lines"), limit, |streams| {
            (streams.out.lines.len() > count).then_some(())
        })
    }

    /// Waits until it says READY.
    pub fn ready(&self) -> Result<()> {
        self.wait_line("READY", Duration::from_secs(60)).map(drop)
    }

    /// Lines of output so far, each with the moment it came.
    pub fn lines(&self) -> Vec<(Instant, String)> {
        self.shared.lock().out.lines.clone()
    }

    /// Output so far.
    pub fn output(&self) -> String {
        self.shared.lock().out.text.clone()
    }

    /// Gives it the next word it waits for, wherever it runs.
    pub fn tell(&mut self) -> Result<()> {
        let nodes = self.cluster.nodes();
        self.tell_on(&nodes)
    }

    /// The same when some nodes cannot be reached.
    pub fn tell_on(&mut self, nodes: &[Node]) -> Result<()> {
        self.told += 1;
        let script = format!("mkdir -p {WORDS} && touch {}.{}", self.go, self.told);
        self.cluster
            .on_all(nodes, |node| self.cluster.sh(node, &script))
            .map(drop)
    }

    /// From now on it counts words anew, under another name.
    pub fn restart_words(&mut self, name: &str) {
        self.go = format!("{}.{name}", self.go);
        self.told = 0;
    }

    /// Types at its terminal, or writes to its standard input.
    pub fn input(&mut self, bytes: &[u8]) -> Result<()> {
        let stdin = self
            .stdin
            .as_mut()
            .context("its standard input is closed")?;
        stdin.write_all(bytes)?;
        stdin.flush()?;
        Ok(())
    }

    /// Ends its standard input.
    pub fn close_input(&mut self) {
        self.stdin = None;
    }

    /// Waits for its end as its parent sees it.
    pub fn wait_end(&mut self, limit: Duration) -> Result<End> {
        let end = self.wait("end of the program", limit, |streams| {
            streams
                .err
                .lines
                .iter()
                .chain(&streams.out.lines)
                .find_map(|(_, line)| {
                    let (kind, number) = line.strip_prefix("@launch ")?.split_once(' ')?;
                    let number = number.split(' ').next()?.parse().ok()?;
                    match kind {
                        "exit" => Some(End::Exit(number)),
                        "signal" => Some(End::Signal(number)),
                        _ => None,
                    }
                })
        })?;
        self.over = true;
        self.stdin = None;
        let closed = wait_until(&mut self.exec, Instant::now() + Duration::from_secs(20))?;
        ensure!(
            closed.is_some(),
            "the exec channel stays open after the program's end"
        );
        Ok(end)
    }

    /// Its home lost power: nothing of it is left that would have to be ended, and another process may have its
    /// number by now.
    pub fn lost(&mut self) {
        self.over = true;
        self.stdin = None;
        let _ = self.exec.kill();
        let _ = self.exec.wait();
    }

    /// Tells it to check, and it must have passed.
    pub fn must_pass(&mut self) -> Result<()> {
        self.tell()?;
        self.must_end(End::Exit(PASSED))
    }

    /// It must end so, soon.
    pub fn must_end(&mut self, want: End) -> Result<()> {
        let end = self.wait_end(Duration::from_secs(60))?;
        ensure!(
            end == want,
            "its parent saw {end:?}, not {want:?}\n{}",
            self.evidence()
        );
        Ok(())
    }

    /// Its output, what its parent said, what it complained about itself, and what each kernel says of it.
    pub fn evidence(&self) -> String {
        let look = format!(
            "cat {}.failed 2>/dev/null && echo says the program itself
            cd /proc/{}/task 2>/dev/null || exit 0
            for task in *; do
                echo \"task $task: $(grep State: $task/status) in $(cat $task/wchan) call $(cat $task/syscall)\"
                sed 's/^/    /' $task/stack
            done | head -n 40",
            self.go, self.pid
        );
        let seen: String = self
            .cluster
            .nodes()
            .into_iter()
            .filter_map(|node| {
                let limit = Duration::from_secs(10);
                let output = self
                    .cluster
                    .exec_with(node, &["bash", "-c", &look], b"", limit)
                    .ok()?;
                let text = output.text();
                (!text.trim().is_empty()).then(|| format!("on {node}:\n{}\n", tail(&text)))
            })
            .collect();
        let streams = self.shared.lock();
        format!(
            "pid {}, output:\n{}\nits parent:\n{}\n{seen}",
            self.pid,
            tail(&streams.out.text),
            tail(&streams.err.text)
        )
    }
}

impl Drop for Proc<'_> {
    fn drop(&mut self) {
        // Somebody wants to look at what failed.
        if self.over || std::env::var_os("KEEP").is_some() {
            return;
        }
        // Cleaning up after a failure: whatever does not work now will be seen by the next test.
        if self.pid > 0 {
            let kill = format!("kill -9 {} 2>/dev/null; true", self.pid);
            for node in self.cluster.nodes() {
                let _ = self.cluster.exec_with(
                    node,
                    &["bash", "-c", &kill],
                    b"",
                    Duration::from_secs(10),
                );
            }
        }
        self.stdin = None;
        let end = Instant::now() + Duration::from_secs(5);
        if !matches!(wait_until(&mut self.exec, end), Ok(Some(_))) {
            let _ = self.exec.kill();
            let _ = self.exec.wait();
        }
    }
}
