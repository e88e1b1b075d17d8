// SPDX-License-Identifier: MIT OR Apache-2.0

//! The switch between the VMs of a cluster: `switch DIRECTORY NODES`.
//!
//! Each node's QEMU connects to `DIRECTORY/nK` and sends Ethernet frames, each after its length as four bytes,
//! big endian (QEMU's `-netdev stream`). `DIRECTORY/ctl` takes one line a connection:
//!
//! - `cut A B`, `heal A B`: from now on all frames between two nodes vanish, or no longer do; answers `ok`;
//! - `show`: a line `FROM TO FRAMES BYTES CUT LOST` for every pair that has talked.
//!
//! Bulk traffic is not dropped: a sender that is faster than its receiver is not read until there is room. But a
//! receiver that takes nothing at all, because its VM is frozen, must not hold up what its senders have to say
//! to others: after [`PATIENCE`] its queue may grow to [`FROZEN_QUEUE`], and only beyond that are frames lost.

#![forbid(unsafe_code)]

mod port;

use std::collections::{HashMap, HashSet};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use port::{PATIENCE, Port, Room};

/// How long a client of the control socket may take to say its line; it is a local program.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(1);
/// Addresses remembered; a guest that makes up more starts the table anew.
const ADDRESSES_MAX: usize = 1024;

type Address = [u8; 6];

#[derive(Default)]
struct Count {
    frames: u64,
    bytes: u64,
    cut: u64,
    lost: u64,
}

struct Switch {
    ports: Vec<Port>,
    addresses: HashMap<Address, usize>,
    /// Pairs between which nothing passes, the lower number first.
    cuts: HashSet<(usize, usize)>,
    counts: HashMap<(usize, usize), Count>,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let result = match words.as_slice() {
        [directory, nodes] => match nodes.parse() {
            Ok(nodes) => run(Path::new(directory), nodes),
            Err(_) => Err(io::Error::other(format!("{nodes} is no number of nodes"))),
        },
        _ => Err(io::Error::other("usage: switch DIRECTORY NODES")),
    };
    if let Err(error) = result {
        eprintln!("switch: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn run(directory: &Path, nodes: u8) -> io::Result<()> {
    let control = listen(&directory.join("ctl"))?;
    Switch::new(directory, nodes)?.run(&control)
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

impl Switch {
    fn new(directory: &Path, nodes: u8) -> io::Result<Self> {
        let ports = (1..=nodes)
            .map(|node| listen(&directory.join(format!("n{node}"))).map(Port::new))
            .collect::<io::Result<_>>()?;
        Ok(Self {
            ports,
            addresses: HashMap::new(),
            cuts: HashSet::new(),
            counts: HashMap::new(),
        })
    }

    fn run(&mut self, control: &UnixListener) -> io::Result<()> {
        let mut waiting = false;
        loop {
            self.wait(control, waiting)?;
            if let Ok((client, _)) = control.accept() {
                // A client that goes away before its answer is no concern of the switch.
                let _ = self.control(client);
            }
            waiting = self.step(Instant::now());
        }
    }

    /// Moves what can be moved without waiting. Returns whether a sender waits for room.
    fn step(&mut self, now: Instant) -> bool {
        let mut waiting = false;
        for from in 0..self.ports.len() {
            self.ports[from].accept();
            self.ports[from].fill();
            waiting |= !self.forward(from, now);
        }
        for port in &mut self.ports {
            port.flush(now);
        }
        waiting
    }

    /// Waits until something can be done; not for long if a sender is waiting, as its receiver may be frozen.
    fn wait(&self, control: &UnixListener, waiting: bool) -> io::Result<()> {
        let mut fds = vec![PollFd::new(control, PollFlags::IN)];
        for port in &self.ports {
            let (fd, flags) = port.interest();
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        }
        let patience = Timespec {
            tv_sec: 0,
            tv_nsec: PATIENCE.subsec_nanos().into(),
        };
        match poll(&mut fds, waiting.then_some(&patience)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Forwards the frames that have come from a port. Returns whether there was room for all.
    fn forward(&mut self, from: usize, now: Instant) -> bool {
        // Taken out while the other ports are written to.
        let mut inbox = std::mem::take(&mut self.ports[from].inbox);
        let mut all = true;
        while let Some(frame) = inbox.frame() {
            // Destination and source address.
            if let Some((&[d0, d1, d2, d3, d4, d5, ref source @ ..], _)) =
                frame[4..].split_first_chunk::<12>()
            {
                self.learn(*source, from);
                let destination = [d0, d1, d2, d3, d4, d5];
                if !self.send(from, destination, frame, now) {
                    all = false;
                    break;
                }
            }
            inbox.advance();
        }
        self.ports[from].inbox = inbox;
        all
    }

    fn learn(&mut self, source: Address, from: usize) {
        if self.addresses.len() >= ADDRESSES_MAX {
            self.addresses.clear();
        }
        // The lowest bit of the first byte marks a group, which is no one's source address.
        if source[0] & 1 == 0 {
            self.addresses.insert(source, from);
        }
    }

    /// Sends a frame where it belongs. Returns whether it is done with, not whether it got there.
    fn send(&mut self, from: usize, destination: Address, frame: &[u8], now: Instant) -> bool {
        match self.addresses.get(&destination) {
            Some(&to) => self.send_to(from, to, frame, now, false),
            None => {
                for to in 0..self.ports.len() {
                    // Some may have taken it already, so none may make it wait.
                    self.send_to(from, to, frame, now, true);
                }
                true
            }
        }
    }

    fn send_to(&mut self, from: usize, to: usize, frame: &[u8], now: Instant, flood: bool) -> bool {
        if from == to {
            return true;
        }
        let count = self.counts.entry((from, to)).or_default();
        if self.cuts.contains(&pair(from, to)) {
            count.cut += 1;
            return true;
        }
        match self.ports[to].room(now) {
            Room::Wait if !flood => return false,
            Room::Wait | Room::Yes => {
                self.ports[to].push(frame, now);
                count.frames += 1;
                count.bytes += u64::try_from(frame.len() - 4).unwrap_or_default();
            }
            Room::No => count.lost += 1,
        }
        true
    }

    fn control(&mut self, client: UnixStream) -> io::Result<()> {
        client.set_nonblocking(false)?;
        client.set_read_timeout(Some(CONTROL_TIMEOUT))?;
        client.set_write_timeout(Some(CONTROL_TIMEOUT))?;
        let mut line = String::new();
        BufReader::new(&client).read_line(&mut line)?;
        let answer = self
            .command(&line)
            .unwrap_or_else(|| "the switch knows: cut A B, heal A B, show\n".into());
        (&client).write_all(answer.as_bytes())
    }

    fn command(&mut self, line: &str) -> Option<String> {
        let node = |word: &str| {
            let node: usize = word.parse().ok()?;
            (1..=self.ports.len()).contains(&node).then(|| node - 1)
        };
        match *line.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["cut", a, b] => {
                self.cuts.insert(pair(node(a)?, node(b)?));
            }
            ["heal", a, b] => {
                self.cuts.remove(&pair(node(a)?, node(b)?));
            }
            ["show"] => return Some(self.show()),
            _ => return None,
        }
        Some("ok\n".into())
    }

    fn show(&self) -> String {
        let mut counts: Vec<_> = self.counts.iter().collect();
        counts.sort_by_key(|(pair, _)| **pair);
        counts
            .into_iter()
            .map(|((from, to), count)| {
                let Count {
                    frames,
                    bytes,
                    cut,
                    lost,
                } = count;
                format!("{} {} {frames} {bytes} {cut} {lost}\n", from + 1, to + 1)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
