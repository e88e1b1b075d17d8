// SPDX-License-Identifier: MIT OR Apache-2.0

//! The switch with sockets in place of VMs. A node that is frozen is one that does not read.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::port::{FROZEN_QUEUE, PATIENCE};
use super::{Address, Switch};

const EVERYBODY: Address = [0xff; 6];

struct Bench {
    switch: Switch,
    nodes: Vec<UnixStream>,
    now: Instant,
}

fn address(node: usize) -> Address {
    [2, 0, 0, 0, 0, u8::try_from(node).unwrap()]
}

/// A frame with `size` bytes behind its addresses.
fn frame(to: Address, from: usize, size: usize) -> Vec<u8> {
    let length = u32::try_from(12 + size).unwrap().to_be_bytes();
    [&length[..], &to, &address(from), &vec![7; size]].concat()
}

impl Bench {
    /// Three nodes that have made themselves known.
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let unique = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory =
            std::env::temp_dir().join(format!("switch-test-{}-{unique}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let switch = Switch::new(&directory, 3).unwrap();
        let nodes = (1..=3)
            .map(|node| {
                let link = UnixStream::connect(directory.join(format!("n{node}"))).unwrap();
                link.set_nonblocking(true).unwrap();
                link
            })
            .collect();
        std::fs::remove_dir_all(&directory).unwrap();
        let mut bench = Self {
            switch,
            nodes,
            now: Instant::now(),
        };
        bench.step();
        for node in 1..=3 {
            bench.send(node, &frame(EVERYBODY, node, 30));
            bench.step();
        }
        for node in 1..=3 {
            bench.receive(node);
        }
        bench
    }

    fn step(&mut self) -> bool {
        self.switch.step(self.now)
    }

    fn send(&mut self, node: usize, bytes: &[u8]) {
        self.nodes[node - 1].write_all(bytes).unwrap();
    }

    /// Sends as much of `bytes` as is taken, and returns how much that was.
    fn offer(&mut self, node: usize, bytes: &[u8]) -> usize {
        match self.nodes[node - 1].write(bytes) {
            Ok(size) => size,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => panic!("{error}"),
        }
    }

    fn receive(&mut self, node: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self.nodes[node - 1].read_to_end(&mut bytes) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => bytes,
            other => panic!("the switch has hung up: {other:?}"),
        }
    }

    /// Node 1 sends to node 2, which does not read, until nothing more is taken. Returns the rest of the frame
    /// in which that happened.
    fn flood(&mut self) -> Vec<u8> {
        let frame = frame(address(2), 1, 1000);
        let mut rest = frame.clone();
        loop {
            let size = self.offer(1, &rest);
            rest.drain(..size);
            if self.step() && size == 0 {
                return rest;
            }
            if rest.is_empty() {
                rest = frame.clone();
            }
        }
    }

    fn lost(&self) -> u64 {
        self.switch.counts.values().map(|count| count.lost).sum()
    }
}

#[test]
fn frames_go_where_they_belong() {
    let mut bench = Bench::new();
    let to_two = frame(address(2), 1, 100);
    bench.send(1, &to_two);
    bench.step();
    assert_eq!(bench.receive(2), to_two);
    assert!(bench.receive(3).is_empty());
    assert!(bench.receive(1).is_empty());
}

#[test]
fn a_cut_is_silent_in_both_directions_and_heals() {
    let mut bench = Bench::new();
    let (there, back, other) = (
        frame(address(2), 1, 1),
        frame(address(1), 2, 2),
        frame(address(3), 1, 3),
    );
    assert_eq!(bench.switch.command("cut 2 1\n").as_deref(), Some("ok\n"));
    bench.send(1, &[&there[..], &other].concat());
    bench.send(2, &back);
    bench.step();
    assert!(bench.receive(2).is_empty());
    assert!(bench.receive(1).is_empty());
    assert_eq!(bench.receive(3), other);
    assert_eq!(bench.switch.command("heal 1 2\n").as_deref(), Some("ok\n"));
    bench.send(1, &there);
    bench.step();
    assert_eq!(bench.receive(2), there);
    assert_eq!(bench.switch.command("cut 1 4\n"), None);
}

#[test]
fn frames_arrive_whole_however_they_come() {
    let mut bench = Bench::new();
    let stream = [
        frame(address(2), 1, 0),
        frame(address(2), 1, 60_000),
        frame(address(2), 1, 1),
    ]
    .concat();
    let mut got = Vec::new();
    for part in stream.chunks(997) {
        bench.send(1, part);
        bench.step();
        got.extend(bench.receive(2));
    }
    assert_eq!(got, stream);
}

#[test]
fn bulk_waits_for_a_slow_receiver_and_loses_nothing() {
    let mut bench = Bench::new();
    let stream = frame(address(2), 1, 1000).repeat(5000);
    let (mut sent, mut got) = (0, Vec::new());
    while got.len() < stream.len() {
        sent += bench.offer(1, &stream[sent..]);
        bench.step();
        // Slower than the sender, but never silent for long.
        bench.now += PATIENCE / 10;
        let mut part = vec![0; 3000];
        if let Ok(size) = bench.nodes[1].read(&mut part) {
            got.extend_from_slice(&part[..size]);
        }
    }
    assert_eq!(got, stream);
    assert_eq!(bench.lost(), 0);
}

#[test]
fn a_frozen_receiver_holds_up_nobody_for_long() {
    let mut bench = Bench::new();
    let to_three = frame(address(3), 1, 50);
    let mut rest = [bench.flood(), to_three.clone()].concat();
    bench.now += PATIENCE;
    while !rest.is_empty() {
        bench.step();
        let size = bench.offer(1, &rest);
        rest.drain(..size);
    }
    bench.step();
    assert_eq!(bench.receive(3), to_three);
    assert_eq!(bench.lost(), 0);
}

#[test]
fn a_receiver_frozen_for_ever_costs_bounded_memory() {
    let mut bench = Bench::new();
    let stream = frame(address(2), 1, 60_000);
    let mut sent = 0;
    while bench.lost() == 0 {
        sent += bench.offer(1, &stream[sent % stream.len()..]);
        bench.step();
        bench.now += PATIENCE;
        assert!(sent < 2 * FROZEN_QUEUE, "nothing is ever lost");
    }
    assert!(sent >= FROZEN_QUEUE);
}

#[test]
fn nonsense_and_an_end_unplug_only_the_one_who_sends_it() {
    let mut bench = Bench::new();
    bench.send(1, &[0xff; 64]);
    bench.step();
    let mut bytes = Vec::new();
    assert_eq!(bench.nodes[0].read_to_end(&mut bytes).unwrap(), 0);
    bench.nodes[1].shutdown(std::net::Shutdown::Both).unwrap();
    bench.step();
    let frame = frame(EVERYBODY, 3, 20);
    bench.send(3, &frame);
    bench.now += Duration::from_secs(1);
    assert!(!bench.step());
}
