// SPDX-License-Identifier: MIT OR Apache-2.0

//! The figures: ratios of what the product does to what the same VMs do without it, measured in turns.
//!
//! `tests/bench [NAME...]` measures all, or those named: `fault`, `stream`, `downtime`, `compute`, `everyday`, `lock`.
//! `ROUNDS=n` in the environment measures n rounds of each (default 9). See `Documentation/figures.md` for what each is.

#![forbid(unsafe_code)]

mod lock;

use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ssi_tests::cluster::{Cluster, Kind, N1, N2, Node, Shape};
use ssi_tests::place::{Doing, prove_runs};
use ssi_tests::proc::{End, Io, PASSED, Proc, Start};
use ssi_tests::ssictl::migrate;

const LONG: Duration = Duration::from_secs(400);
const PORT: &str = "7999";
const TLS_PORT: &str = "7998";
/// Address of n2.
const PEER: &str = "10.77.0.2";

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A ratio over several rounds, and what it should be.
struct Figure {
    name: String,
    ratios: Vec<f64>,
    aim: Aim,
    beside: String,
}

#[derive(Clone, Copy)]
enum Aim {
    AtMost(f64),
    AtLeast(f64),
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

impl Figure {
    fn print(&self) {
        let middle = median(&self.ratios);
        let low = self.ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let high = self
            .ratios
            .iter()
            .copied()
            .fold(f64::NEG_INFINITY, f64::max);
        let (words, aim, reached) = match self.aim {
            Aim::AtMost(aim) => ("at most", aim, middle <= aim),
            Aim::AtLeast(aim) => ("at least", aim, middle >= aim),
        };
        println!(
            "{:<44} {middle:>8.3} ({low:.3} to {high:.3}, {} rounds)  aim: {words} {aim}: {}",
            self.name,
            self.ratios.len(),
            if reached { "reached" } else { "MISSED" }
        );
        if !self.beside.is_empty() {
            println!("    {}", self.beside);
        }
    }
}

/// Prints a figure, or why there is none.
fn report(name: &str, figures: Result<Vec<Figure>>) {
    match figures {
        Ok(figures) => figures.iter().for_each(Figure::print),
        Err(error) => println!(
            "{name:<44} not measured: {}",
            format!("{error:#}").replace('\n', "\n    ")
        ),
    }
}

fn run() -> Result<ExitCode> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let rounds = std::env::var("ROUNDS")
        .ok()
        .map_or(Ok(9), |word| word.parse())
        .context("ROUNDS")?;
    let wanted = |name: &str| words.is_empty() || words.iter().any(|word| word == name);
    let name = std::env::var("CLUSTER").unwrap_or_else(|_| format!("bench{}", std::process::id()));
    let up = |nodes, build| Bench::up(&name, nodes, build, rounds);
    if words.is_empty() || words.iter().any(|word| word != "lock") {
        processes(&up(2, &["--bench"])?, wanted)?;
    }
    // What is agreed on takes three, and nothing that only measurements may have.
    if wanted("lock") {
        let bench = up(3, &[])?;
        report("lock", bench.lock());
        bench.cluster.check()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The figures of processes that move.
fn processes(bench: &Bench, wanted: impl Fn(&str) -> bool) -> Result<()> {
    for tls in [false, true] {
        let link = if tls { "kTLS" } else { "plain" };
        if wanted("fault") {
            report(&format!("random remote fault, {link}"), bench.fault(tls));
        }
        if wanted("stream") {
            report(&format!("sequential touch, {link}"), bench.stream(tls));
        }
    }
    bench.links(true, "")?;
    if wanted("downtime") {
        report("downtime", bench.downtime());
    }
    if wanted("compute") {
        report("compute", bench.compute());
    }
    if wanted("everyday") {
        report("everyday", bench.everyday());
    }
    bench.cluster.check()
}

struct Bench {
    cluster: Cluster,
    rounds: usize,
}

impl Bench {
    /// Brings up a cluster of so many nodes of one processor each.
    fn up(name: &str, nodes: u16, build: &[&'static str], rounds: usize) -> Result<Self> {
        let options = [build, &["--cpus", "1", "--mem", "1024"]].concat();
        let shape = Shape {
            nodes,
            options,
            lazy: false,
        };
        let cluster = Cluster::up(name, shape)?;
        let bench = Self { cluster, rounds };
        bench.pin()?;
        println!(
            "{nodes} nodes of one processor each, {rounds} rounds, each figure: median (lowest to highest)"
        );
        Ok(bench)
    }

    /// Each VM gets a processor of this machine for itself, as far as there are enough.
    fn pin(&self) -> Result<()> {
        let status = self.cluster.command(&["status"]).output()?;
        let text = String::from_utf8_lossy(&status.stdout).into_owned();
        let pids: Vec<&str> = text
            .lines()
            .filter(|line| line.contains(" runs "))
            .filter_map(|line| line.rsplit(' ').next())
            .collect();
        ensure!(
            pids.len() == self.cluster.nodes().len(),
            "vm/cluster status says: {text}"
        );
        let cores = thread::available_parallelism()?.get();
        for (core, pid) in pids.iter().enumerate() {
            let done = Command::new("taskset")
                .args(["-acp", &(core % cores).to_string(), pid])
                .output()?;
            ensure!(
                done.status.success(),
                "taskset: {}",
                String::from_utf8_lossy(&done.stderr)
            );
        }
        Ok(())
    }

    /// Loads the module anew, with links of one kind and parameters.
    fn links(&self, tls: bool, parameters: &str) -> Result<()> {
        const CONFIG: &str = "/etc/ssid/ssid.toml";
        for node in self.cluster.nodes() {
            // In two steps: an insertion before a line that is deleted does not happen.
            self.cluster
                .sh(node, &format!("sed -i '/^plain_links/d' {CONFIG}"))?;
            if !tls {
                let script = format!("sed -i '1i plain_links = true' {CONFIG}");
                self.cluster.sh(node, &script)?;
            }
        }
        self.cluster.reload(parameters)?;
        let encrypted = self
            .cluster
            .sh(N1, "ss -tinH | grep -c tcp-ulp-tls; true")?;
        ensure!(
            (encrypted.trim() != "0") == tls,
            "{encrypted} links are encrypted, and {} should be",
            if tls { "all" } else { "none" }
        );
        Ok(())
    }

    /// Path of a program of tests/guest, on both nodes.
    fn program(&self, name: &str) -> Result<String> {
        self.cluster
            .program(Kind::Static, name, &self.cluster.nodes())
    }

    /// Runs a program on a node; the numbers in its output.
    fn numbers(&self, node: Node, words: &[&str]) -> Result<Vec<f64>> {
        let path = self.program(words[0])?;
        let all: Vec<&str> = [path.as_str()]
            .into_iter()
            .chain(words[1..].iter().copied())
            .collect();
        let output = self.cluster.exec_with(node, &all, b"", LONG)?;
        ensure!(
            output.status == 0,
            "{}: {}",
            words.join(" "),
            output.evidence()
        );
        numbers(&output.text())
    }

    /// Servers for ping and stream on n2, until it is dropped.
    fn servers(&self) -> Result<Vec<Proc<'_>>> {
        let mut servers = Vec::new();
        for words in [
            format!("net serve {PORT}"),
            format!("net serve {TLS_PORT} tls"),
        ] {
            let server = Proc::start(&self.cluster, &Start::guest(&words).fixed().home(N2))?;
            server.ready()?;
            servers.push(server);
        }
        Ok(servers)
    }

    fn ping(&self, ask: &str, answer: &str) -> Result<f64> {
        Ok(self.numbers(N1, &["net", "ping", PEER, PORT, ask, answer, "300"])?[0])
    }

    /// Frames that went over the network between the two nodes so far.
    fn frames(&self) -> Result<f64> {
        let status = self.cluster.command(&["status"]).output()?;
        let text = String::from_utf8_lossy(&status.stdout).into_owned();
        let counts = text.lines().filter_map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            (words.get(1) == Some(&"->"))
                .then(|| words.get(3)?.parse::<f64>().ok())
                .flatten()
        });
        Ok(counts.sum())
    }

    /// Starts `faults`, moves it to n2 and lets it go; the numbers it answers with, and the frames meanwhile.
    fn faults(&self, line: &str) -> Result<(Vec<f64>, f64)> {
        let mut proc = Proc::start(&self.cluster, &Start::guest(line).fixed())?;
        proc.ready()?;
        migrate(&self.cluster, N1, proc.pid(), N2)?;
        prove_runs(
            &self.cluster,
            proc.pid(),
            "faults",
            N1,
            N2,
            Doing::Computing,
        )?;
        let before = self.frames()?;
        proc.tell()?;
        let answer = proc.wait_line("RESULT", LONG)?;
        let frames = self.frames()? - before;
        proc.must_end(End::Exit(PASSED))?;
        Ok((numbers(&answer)?, frames))
    }

    /// Pages of 4 KiB, one at a time, each from the other node.
    fn fault(&self, tls: bool) -> Result<Vec<Figure>> {
        const COUNT: f64 = 1000.0;
        self.links(tls, "push=0 prefetch=1")?;
        let _servers = self.servers()?;
        let (mut ratios, mut beside) = (Vec::new(), Vec::new());
        let (mut p, mut p0, mut spread) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            p0.push(self.ping("64", "64")?);
            let unit = self.ping("64", "4096")?;
            let (answer, frames) = self.faults("faults random 16 1000")?;
            let [fault, low, high, waits] = answer[..] else {
                bail!("faults says {answer:?}")
            };
            p.push(unit);
            ratios.push(fault / unit);
            spread.push(format!("{:.0}..{:.0}", low / 1000.0, high / 1000.0));
            beside.push(format!("{:.2}/{:.1}", waits / 1000.0, frames / COUNT));
        }
        Ok(vec![Figure {
            name: format!("random remote fault / P, {}", link(tls)),
            aim: Aim::AtMost(if tls { 1.8 } else { 1.5 }),
            beside: format!(
                "P0 {:.0} us, P {:.0} us; tenth to ninetieth fault in us: {}; waits/frames per fault: {}",
                median(&p0) / 1000.0,
                median(&p) / 1000.0,
                spread.join(" "),
                beside.join(" ")
            ),
            ratios,
        }])
    }

    /// 64 MiB in order, with prefetch and without push.
    fn stream(&self, tls: bool) -> Result<Vec<Figure>> {
        self.links(tls, "push=0")?;
        let _servers = self.servers()?;
        let (mut ratios, mut units) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            let mut words = vec![
                "net",
                "stream",
                PEER,
                if tls { TLS_PORT } else { PORT },
                "64",
            ];
            if tls {
                words.push("tls");
            }
            let unit = self.numbers(N1, &words)?[0];
            let (answer, _) = self.faults("faults sequential 64")?;
            units.push(unit);
            ratios.push(answer.first().context("no answer")? / unit);
        }
        Ok(vec![Figure {
            name: format!("sequential touch of 64 MiB / B, {}", link(tls)),
            aim: Aim::AtLeast(0.7),
            beside: format!("B {:.1} MiB/s", median(&units) / 1024.0),
            ratios,
        }])
    }

    /// The largest gap between lines, in microseconds, from the move until 10 s after it; without a move, in 10 s.
    fn gap(&self, mib: u32, moves: bool) -> Result<f64> {
        let path = self.program("beat")?;
        let script = format!("{path} {mib} | {path} stamp /tmp/stamps; exit ${{PIPESTATUS[0]}}");
        let mut proc = Proc::start(&self.cluster, &Start::system(&["bash", "-c", &script]))?;
        self.cluster.sh(
            N1,
            "for i in $(seq 600); do [ -s /tmp/stamps ] && exit 0; sleep 0.1; done; exit 1",
        )?;
        let pid: u32 = self.cluster.sh(N1, "pgrep -x beat | head -n 1")?.parse()?;
        // Pages still being reclaimed or zeroed elsewhere are not what is measured.
        thread::sleep(Duration::from_secs(1));
        let from = self.numbers_of(N1, "awk '{ print $1 * 1000000 }' OFMT=%d /proc/uptime")?;
        if moves {
            migrate(&self.cluster, N1, pid, N2)?;
        }
        thread::sleep(Duration::from_secs(10));
        proc.tell()?;
        let end = proc.wait_end(LONG)?;
        ensure!(end == End::Exit(PASSED), "{end:?}: {}", proc.evidence());
        let text = self.cluster.sh(N1, "cat /tmp/stamps; rm /tmp/stamps")?;
        let stamps = numbers(&text)?;
        let after: Vec<f64> = stamps
            .into_iter()
            .filter(|stamp| *stamp >= from - 20_000.0)
            .collect();
        ensure!(after.len() > 10, "{} lines came in 10 s", after.len());
        Ok(after
            .windows(2)
            .map(|pair| pair[1] - pair[0])
            .fold(0.0, f64::max))
    }

    fn numbers_of(&self, node: Node, script: &str) -> Result<f64> {
        numbers(&self.cluster.sh(node, script)?)?
            .first()
            .copied()
            .context("no number")
    }

    /// What CRIU needs for a process of 64 MiB: dump, one raw stream, restore; in microseconds.
    fn criu(&self) -> Result<f64> {
        let path = self.program("beat")?;
        let clean = "rm -rf /tmp/criu /tmp/all; mkdir /tmp/criu";
        self.cluster
            .on_all(&self.cluster.nodes(), |node| self.cluster.sh(node, clean))?;
        let start = format!("GO=/run/never setsid {path} 64 </dev/null >/dev/null 2>&1 & echo $!");
        let pid = self.cluster.sh(N1, &start)?;
        thread::sleep(Duration::from_secs(3));
        let timed = |node: Node, command: &str| -> Result<f64> {
            let script = format!(
                "a=$(date +%s%N); {command} >&2 || exit 1; b=$(date +%s%N); echo $((b - a))"
            );
            let output = self
                .cluster
                .exec_with(node, &["bash", "-c", &script], b"", LONG)?;
            ensure!(output.status == 0, "{command}: {}", output.evidence());
            Ok(numbers(&output.text())?
                .first()
                .copied()
                .context("no time")?
                / 1000.0)
        };
        let dump = timed(N1, &format!("criu dump -t {pid} -D /tmp/criu -v0"))?;
        // The copy that counts is one stream; that the files get there as files does not.
        self.cluster.sh(N1, "tar -C /tmp -cf /tmp/all criu")?;
        let copy = self.numbers(N1, &["net", "send", PEER, PORT, "/tmp/all"])?[0] / 1000.0;
        let carry = "nc=/dev/tcp; exec 3<>$nc/10.77.0.1/7997; tar -C /tmp -xf - <&3";
        let serve = "python3 -c 'import socket
s = socket.create_server((\"\", 7997)); c, _ = s.accept(); c.sendfile(open(\"/tmp/all\", \"rb\"))'";
        thread::scope(|scope| -> Result<()> {
            let serving = scope.spawn(|| self.cluster.sh(N1, serve));
            let end = Instant::now() + Duration::from_secs(30);
            while let Err(error) = self.cluster.sh(N2, carry) {
                ensure!(
                    Instant::now() < end,
                    "the images cannot be carried over: {error:#}"
                );
                thread::sleep(Duration::from_millis(500));
            }
            serving
                .join()
                .map_err(|_| anyhow::anyhow!("a thread panicked"))?
                .map(drop)
        })?;
        let restore = timed(N2, "criu restore -D /tmp/criu -d -v0")?;
        self.cluster
            .sh(N2, &format!("kill -0 {pid} && kill -9 {pid}"))?;
        Ok(dump + copy + restore)
    }

    fn downtime(&self) -> Result<Vec<Figure>> {
        let _servers = self.servers()?;
        let criu = self.cluster.exec(N1, &["criu", "check"])?;
        let (mut f, mut unmoved, mut small, mut middle, mut large, mut other) = (
            Vec::new(),
            Vec::new(),
            Vec::new(),
            Vec::new(),
            Vec::new(),
            Vec::new(),
        );
        let mut why_not = (criu.status != 0).then(|| criu.evidence());
        for _ in 0..self.rounds {
            f.push(self.numbers(N1, &["forks", "60"])?[0] / 1000.0);
            unmoved.push(self.gap(1, false)?);
            small.push(self.gap(1, true)?);
            middle.push(self.gap(64, true)?);
            large.push(self.gap(256, true)?);
            if why_not.is_none() {
                match self.criu() {
                    Ok(time) => other.push(time),
                    Err(error) => why_not = Some(format!("{error:#}")),
                }
            }
        }
        let ms = |values: &[f64]| format!("{:.1} ms", median(values) / 1000.0);
        let divide = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a / b).collect::<Vec<_>>();
        let mut figures = vec![
            Figure {
                name: "largest gap at 1 MiB / F".into(),
                ratios: divide(&small, &f),
                aim: Aim::AtMost(4.0),
                beside: format!(
                    "F {}, gap {}, without a move {}",
                    ms(&f),
                    ms(&small),
                    ms(&unmoved)
                ),
            },
            Figure {
                name: "largest gap at 256 MiB / at 1 MiB".into(),
                ratios: divide(&large, &small),
                aim: Aim::AtMost(2.0),
                beside: format!("gap {}", ms(&large)),
            },
        ];
        match why_not {
            None => figures.push(Figure {
                name: "CRIU / largest gap at 64 MiB".into(),
                ratios: divide(&other, &middle),
                aim: Aim::AtLeast(10.0),
                beside: format!(
                    "gap {}, CRIU's dump, copy and restore {}",
                    ms(&middle),
                    ms(&other)
                ),
            }),
            Some(why) => println!(
                "CRIU / largest gap at 64 MiB: not measured (gap {}): {why}",
                ms(&middle)
            ),
        }
        Ok(figures)
    }

    fn crunch(&self, rounds: u64, home: Node, moves: bool) -> Result<f64> {
        let line = format!("crunch {rounds}");
        let start = Start::guest(&line).fixed().io(Io::Pipe).home(home);
        let mut proc = Proc::start(&self.cluster, &start)?;
        proc.wait_line("HALF", LONG)?;
        if moves {
            migrate(&self.cluster, N1, proc.pid(), N2)?;
        }
        let answer = proc.wait_line("RESULT", LONG)?;
        proc.must_end(End::Exit(PASSED))?;
        numbers(&answer)?.first().copied().context("no time")
    }

    fn compute(&self) -> Result<Vec<Figure>> {
        // Rounds for about 10 s; the first run of all is slower than those that count.
        self.crunch(200, N1, false)?;
        let trial = self.crunch(200, N1, false)?;
        let mut rounds = 200;
        while trial * f64::from(u32::try_from(rounds)?) / 200.0 < 10_000.0 {
            rounds += 20;
        }
        let (mut ratios, mut unmoved) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            // The processors may differ: what moves at half has half of each.
            let here = self.crunch(rounds, N1, false)?;
            let moved = self.crunch(rounds, N1, true)?;
            let alone = f64::midpoint(here, self.crunch(rounds, N2, false)?);
            ratios.push(moved / alone);
            unmoved.push(alone);
        }
        Ok(vec![Figure {
            name: "16 MiB, 10 s, moved at half / unmoved".into(),
            ratios,
            aim: Aim::AtMost(1.10),
            beside: format!("unmoved {:.2} s", median(&unmoved) / 1000.0),
        }])
    }

    fn micro(&self) -> Result<Vec<(String, f64)>> {
        let path = self.program("micro")?;
        let output = self.cluster.exec_with(N1, &[&path], b"", LONG)?;
        ensure!(output.status == 0, "{}", output.evidence());
        let text = output.text();
        let pairs = text.lines().map(|line| {
            let (name, time) = line
                .split_once(' ')
                .with_context(|| format!("strange line {line}"))?;
            Ok((name.to_owned(), time.parse()?))
        });
        pairs.collect()
    }

    /// Calls of a stranger on n1: with the cluster formed, a guest of n2 there and a process of n1 away; and without
    /// the module. The guest and the one away sleep: they must not take the processor that is measured.
    fn everyday(&self) -> Result<Vec<Figure>> {
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for round in 0..self.rounds {
            if round > 0 {
                self.cluster.on_all(&self.cluster.nodes(), |node| {
                    self.cluster.sh(node, "insmod /ssi/ssi.ko")?;
                    self.cluster.start_daemon(node)
                })?;
                self.cluster.wait_linked(&self.cluster.nodes())?;
            }
            let away = Proc::start(&self.cluster, &Start::system(&["sleep", "600"]))?;
            let guest = Proc::start(&self.cluster, &Start::system(&["sleep", "600"]).home(N2))?;
            migrate(&self.cluster, N1, away.pid(), N2)?;
            migrate(&self.cluster, N1, guest.pid(), N1)?;
            thread::sleep(Duration::from_secs(1));
            with.push(self.micro()?);
            drop((away, guest));
            self.cluster.on_all(&self.cluster.nodes(), |node| {
                self.cluster.stop_daemon(node)?;
                self.cluster.unload(node)
            })?;
            without.push(self.micro()?);
        }
        let names: Vec<String> = with
            .first()
            .into_iter()
            .flatten()
            .map(|(name, _)| name.clone())
            .collect();
        let column = |rows: &[Vec<(String, f64)>], i: usize| {
            rows.iter().map(|row| row[i].1).collect::<Vec<f64>>()
        };
        Ok(names
            .iter()
            .enumerate()
            .map(|(i, name)| {
                let (a, b) = (column(&with, i), column(&without, i));
                // The noise of the method: how far apart two rounds without the module lie.
                let noise: Vec<f64> = b.windows(2).map(|pair| (pair[1] / pair[0] - 1.0).abs()).collect();
                Figure {
                    name: format!("{name} with / without the module"),
                    ratios: a.iter().zip(&b).map(|(a, b)| a / b).collect(),
                    aim: Aim::AtMost(1.02),
                    beside: format!(
                        "time, not instructions; without {:.0} ns; two rounds without the module differ by {:.1} %",
                        median(&b),
                        median(&noise) * 100.0
                    ),
                }
            })
            .collect())
    }
}

fn link(tls: bool) -> &'static str {
    if tls { "kTLS" } else { "plain" }
}

/// All numbers in a text.
fn numbers(text: &str) -> Result<Vec<f64>> {
    let found: Vec<f64> = text
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    ensure!(!found.is_empty(), "no numbers in {text:?}");
    Ok(found)
}
