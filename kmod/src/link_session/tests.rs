// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Unit tests, and two nodes on a network that breaks at random moments.

use super::*;
use crate::random::Random;
use std::collections::VecDeque;

type Slots<F> = Vec<Option<Entry<F>>>;
type TestSession<F> = Session<F, Slots<F>>;

fn slots<F>(n: usize) -> Slots<F> {
    (0..n).map(|_| None).collect()
}

fn session<F: Clone>() -> TestSession<F> {
    Session::new(slots(0), slots(0), slots(0))
}

fn queue<F: Clone>(s: &mut TestSession<F>, bytes: u32, urgency: Urgency, frame: F) {
    while let Some((q, n)) = s.need(urgency) {
        s.grow(q, slots(n));
    }
    s.queue(Kind::Signal, bytes, urgency, frame).unwrap();
}

fn node(n: u16) -> NodeId {
    NodeId::new(n).unwrap()
}

#[test]
fn a_ring_keeps_order_over_wrap_and_growth() {
    let mut r: Ring<u32, Vec<Option<u32>>> = Ring::new(vec![None; 3]);
    let (mut put, mut got) = (0, 0);
    for round in 0..50 {
        while r.push(put).is_ok() {
            put += 1;
        }
        for _ in 0..=round % 3 {
            assert_eq!(r.get(0), Some(&got));
            assert_eq!(r.pop(), Some(got));
            got += 1;
        }
        if round % 7 == 0 {
            let n = r.capacity() + 2;
            r.grow(vec![None; n]);
        }
    }
    assert_eq!(r.get(r.len()), None);
    assert_eq!(
        r.grow(vec![None; 1]).len(),
        1,
        "a smaller storage is given back"
    );
}

#[test]
fn a_ring_without_places_takes_nothing() {
    let mut r: Ring<u32, Vec<Option<u32>>> = Ring::new(vec![]);
    assert_eq!(r.push(1), Err(1));
    assert_eq!(r.pop(), None);
}

#[test]
fn nothing_is_sent_before_the_hello() {
    let mut s = session();
    queue(&mut s, 1, Urgency::Now, 'a');
    assert!(s.pick().is_none());
    assert_eq!(s.take(1, 0), Err(Error::Sequence));
    s.hello_taken(0).unwrap();
    assert_eq!(s.pick().unwrap().frame, Some('a'));
}

#[test]
fn urgent_frames_overtake_and_numbers_follow_the_socket() {
    let mut s = session();
    s.hello_taken(0).unwrap();
    queue(&mut s, 1, Urgency::Bulk, 'a');
    queue(&mut s, 1, Urgency::Bulk, 'b');
    let first = s.pick().unwrap();
    queue(&mut s, 1, Urgency::Now, 'c');
    let (second, third) = (s.pick().unwrap(), s.pick().unwrap());
    assert_eq!(
        [first.frame, second.frame, third.frame],
        [Some('a'), Some('c'), Some('b')]
    );
    assert_eq!(
        [
            first.header.seq.get(),
            second.header.seq.get(),
            third.header.seq.get()
        ],
        [1, 2, 3]
    );
    assert!(
        s.pick().is_none(),
        "the acknowledgement went with the frames"
    );
}

#[test]
fn what_the_peer_has_not_taken_is_sent_again_in_order() {
    let mut s = session();
    s.hello_taken(0).unwrap();
    for c in ['a', 'b', 'c'] {
        queue(&mut s, 1, Urgency::Now, c);
        s.pick().unwrap();
    }
    s.detached();
    queue(&mut s, 1, Urgency::Now, 'd');
    s.hello_taken(1).unwrap();
    let again: Vec<_> = core::iter::from_fn(|| s.pick())
        .map(|n| (n.header.seq.get(), n.frame))
        .collect();
    assert_eq!(again, [(2, Some('b')), (3, Some('c')), (4, Some('d'))]);
    s.acked(4).unwrap();
    assert_eq!(s.acked(5), Err(Error::Sequence));
}

#[test]
fn room_comes_back_with_acknowledgements() {
    let mut s = session();
    s.hello_taken(0).unwrap();
    for i in 0..5 {
        assert_eq!(s.has_room(), i < 4);
        queue(&mut s, (BULK_BYTES / 4) as u32, Urgency::Bulk, i);
        s.pick().unwrap();
    }
    s.acked(1).unwrap();
    assert!(!s.has_room());
    s.acked(2).unwrap();
    assert!(s.has_room());
    s.reset();
    assert!(s.has_room());
    assert!(!s.has_next());
}

#[test]
fn a_session_does_not_grow_without_end() {
    let mut s = session();
    for _ in 0..MAX_BYTES >> 20 {
        queue(&mut s, 1 << 20, Urgency::Now, ());
    }
    while let Some((q, n)) = s.need(Urgency::Now) {
        s.grow(q, slots(n));
    }
    assert_eq!(s.queue(Kind::Signal, 1, Urgency::Now, ()), Err(Full));
}

#[test]
fn acknowledgements_are_due_by_count_by_bytes_and_when_quiet() {
    let mut s = session::<()>();
    s.hello_taken(0).unwrap();
    assert_eq!(s.pick().unwrap().header.kind.get(), Kind::Ack as u16);
    for seq in 1..u64::from(ACK_FRAMES) {
        assert_eq!(s.take(seq, 1), Ok(Taken::Fresh));
        assert!(!s.ack_due());
    }
    s.take(u64::from(ACK_FRAMES), 1).unwrap();
    assert!(s.ack_due());
    assert_eq!(s.pick().unwrap().header.ack.get(), u64::from(ACK_FRAMES));
    assert!(!s.quiet(), "nothing new to say");
    s.take(u64::from(ACK_FRAMES) + 1, ACK_BYTES).unwrap();
    assert!(s.ack_due());
    s.pick().unwrap();
    s.take(u64::from(ACK_FRAMES) + 2, 1).unwrap();
    assert!(!s.ack_due());
    assert!(s.quiet());
}

#[test]
fn gaps_are_errors_and_doubles_are_dropped() {
    let mut s = session::<()>();
    s.hello_taken(0).unwrap();
    assert_eq!(s.take(2, 0), Err(Error::Sequence));
    assert_eq!(s.take(1, 0), Ok(Taken::Fresh));
    assert_eq!(s.take(1, 0), Ok(Taken::Again));
    assert_eq!(s.take(u64::MAX, 0), Err(Error::Sequence));
}

#[test]
fn a_hello_from_someone_else_is_refused() {
    let mut l = Life::new(node(1), node(2), 11);
    let good = Life::new(node(2), node(1), 22).hello(Class::Memory);
    for wrong in [
        Hello {
            node: U16::new(3),
            ..good
        },
        Hello {
            peer: U16::new(2),
            ..good
        },
        Hello {
            class: U32::new(7),
            ..good
        },
        Hello {
            incarnation: U64::new(0),
            ..good
        },
    ] {
        assert_eq!(l.take_hello(Class::Memory, &wrong, 0), Err(Error::Value));
    }
    assert_eq!(l.take_hello(Class::Control, &good, 0), Err(Error::Value));
    assert_eq!(
        l.take_hello(Class::Memory, &good, 9),
        Ok(Greeting::Meet {
            over: false,
            ack: 0
        })
    );
}

fn meets(l: &mut Life, h: &Hello, ack: u64) -> (bool, u64) {
    match l.take_hello(Class::Control, h, ack) {
        Ok(Greeting::Meet { over, ack }) => (over, ack),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_session_ends_once_by_rebirth_by_death_and_by_oblivion() {
    let c = Class::Control;
    let mut a = Life::new(node(1), node(2), 11);
    let mut b = Life::new(node(2), node(1), 22);
    let meet = |a: &mut Life, b: &mut Life| {
        let (ha, hb) = (a.hello(c), b.hello(c));
        (meets(a, &hb, 0).0, meets(b, &ha, 0).0)
    };
    assert_eq!(meet(&mut a, &mut b), (false, false));
    assert_eq!(meet(&mut a, &mut b), (false, false));
    // a declares b dead; b learns it.
    assert!(a.declare_dead());
    assert!(!a.declare_dead(), "the dead do not die");
    assert_eq!(meet(&mut a, &mut b), (false, true));
    assert_eq!(meet(&mut a, &mut b), (false, false));
    // b is loaded again.
    b = Life::new(node(2), node(1), 23);
    assert_eq!(meet(&mut a, &mut b), (true, false));
    assert_eq!(meet(&mut a, &mut b), (false, false));
    // Both give each other up: each has ended the session already.
    assert!(a.declare_dead() && b.declare_dead());
    assert_eq!(meet(&mut a, &mut b), (false, false));
    // A Hello of the past, on a socket that was handed down late.
    let past = Life::new(node(2), node(1), 22);
    assert_eq!(a.take_hello(c, &past.hello(c), 0), Err(Error::Value));
    let early = b.hello(c);
    assert!(b.declare_dead());
    assert_eq!(meet(&mut a, &mut b), (true, false));
    assert_eq!(a.take_hello(c, &early, 0), Err(Error::Value));
}

#[test]
fn a_living_peer_taken_for_replaced_is_met_again() {
    let c = Class::Control;
    let mut a = Life::new(node(1), node(2), 11);
    let mut b = Life::new(node(2), node(1), 22);
    meets(&mut a, &b.hello(c), 0);
    meets(&mut b, &a.hello(c), 0);
    // A Hello from before b was loaded, never seen until now.
    let stale = Life::new(node(2), node(1), 21).hello(c);
    assert!(meets(&mut a, &stale, 0).0);
    for _ in 0..REFUSALS {
        assert_eq!(a.take_hello(c, &b.hello(c), 5), Err(Error::Value));
    }
    assert_eq!(a.take_hello(c, &b.hello(c), 5), Ok(Greeting::Bury));
    assert!(a.declare_dead());
    let (ha, hb) = (a.hello(c), b.hello(c));
    assert_eq!(meets(&mut a, &hb, 5), (false, 0));
    assert_eq!(meets(&mut b, &ha, 0), (true, 0), "b must begin again too");
}

#[test]
fn an_acknowledgement_of_another_session_counts_as_none() {
    let c = Class::Control;
    let mut a = Life::new(node(1), node(2), 11);
    let mut b = Life::new(node(2), node(1), 22);
    a.take_hello(c, &b.hello(c), 0).unwrap();
    b.take_hello(c, &a.hello(c), 0).unwrap();
    assert_eq!(meets(&mut a, &b.hello(c), 7).1, 7);
    a.declare_dead();
    // b has not heard of it yet, neither now nor, perhaps, on the next socket.
    assert_eq!(meets(&mut a, &b.hello(c), 7).1, 0);
    assert_eq!(meets(&mut a, &b.hello(c), 7).1, 0);
    b.take_hello(c, &a.hello(c), 0).unwrap();
    assert_eq!(meets(&mut a, &b.hello(c), 1).1, 1);
}

/// What a test frame says: the session of its sender, and its place among those of its urgency.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Tag {
    epoch: u64,
    urgency: Urgency,
    n: u64,
}

#[derive(Clone, Debug)]
enum Message {
    Hello(Hello, u64),
    Frame(Header, Option<Tag>),
}

/// A connection of two nodes; `way[i]` goes to node `i`.
struct Wire {
    class: Class,
    way: [VecDeque<Message>; 2],
    /// The end at node `i` is shut.
    shut: [bool; 2],
    /// Nothing put in arrives any more.
    cut: bool,
}

impl Wire {
    fn put(&mut self, to: usize, m: Message) {
        if !self.cut {
            self.way[to].push_back(m);
        }
    }
}

#[derive(Default, Clone, Copy)]
struct Seen {
    epoch: Option<u64>,
    next: [u64; 2],
}

struct Node {
    id: usize,
    life: Life,
    /// Counts the sessions this node has begun.
    epoch: u64,
    open: bool,
    deaths: u64,
    sessions: [TestSession<Tag>; Class::COUNT],
    queued: [[u64; 2]; Class::COUNT],
    seen: [Seen; Class::COUNT],
    wire: [Option<usize>; Class::COUNT],
    greeted: [bool; Class::COUNT],
}

impl Node {
    fn new(id: usize, incarnation: u64, epoch: u64) -> Self {
        Self {
            id,
            life: Life::new(node(id as u16 + 1), node(2 - id as u16), incarnation),
            epoch,
            open: false,
            deaths: 0,
            sessions: core::array::from_fn(|_| session()),
            queued: [[0; 2]; Class::COUNT],
            seen: [Seen::default(); Class::COUNT],
            wire: [None; Class::COUNT],
            greeted: [false; Class::COUNT],
        }
    }

    fn new_session(&mut self, epoch: u64) {
        self.epoch = epoch;
        self.queued = [[0; 2]; Class::COUNT];
        self.seen = [Seen::default(); Class::COUNT];
        for s in &mut self.sessions {
            s.reset();
        }
    }

    fn shut(&mut self, c: usize, wires: &mut [Wire]) {
        if let Some(w) = self.wire[c].take() {
            wires[w].shut[self.id] = true;
            self.sessions[c].detached();
            self.greeted[c] = false;
        }
    }

    fn attach(&mut self, w: usize, wires: &mut [Wire]) {
        let class = wires[w].class;
        let c = class as usize;
        self.shut(c, wires);
        self.wire[c] = Some(w);
        let hello = Message::Hello(self.life.hello(class), self.sessions[c].taken());
        wires[w].put(1 - self.id, hello);
    }

    fn send(&mut self, c: usize, urgency: Urgency) {
        if !self.open {
            return;
        }
        let n = &mut self.queued[c][urgency as usize];
        let tag = Tag {
            epoch: self.epoch,
            urgency,
            n: *n,
        };
        *n += 1;
        queue(&mut self.sessions[c], 100, urgency, tag);
    }

    fn pump(&mut self, c: usize, wires: &mut [Wire]) -> bool {
        let Some(w) = self.wire[c] else { return false };
        let Some(n) = self.sessions[c].pick() else {
            return false;
        };
        wires[w].put(1 - self.id, Message::Frame(n.header, n.frame));
        true
    }

    /// Handles one message. An error shuts the socket, as a link does.
    fn receive(&mut self, c: usize, wires: &mut [Wire], epochs: &mut u64) -> bool {
        let Some(w) = self.wire[c] else { return false };
        let Some(m) = wires[w].way[self.id].pop_front() else {
            if wires[w].shut[1 - self.id] {
                self.shut(c, wires);
                return true;
            }
            return false;
        };
        if self.handle(c, m, wires, epochs).is_err() {
            self.shut(c, wires);
        }
        true
    }

    fn handle(
        &mut self,
        c: usize,
        m: Message,
        wires: &mut [Wire],
        epochs: &mut u64,
    ) -> Result<(), Error> {
        match m {
            Message::Hello(h, ack) => {
                assert!(!self.greeted[c], "one Hello per socket");
                let Greeting::Meet { over, ack } = self.life.take_hello(Class::ALL[c], &h, ack)?
                else {
                    self.declare_dead(wires, epochs);
                    return Err(Error::Value);
                };
                if over {
                    self.deaths += 1;
                    *epochs += 1;
                    self.new_session(*epochs);
                    for other in (0..Class::COUNT).filter(|other| *other != c) {
                        if self.greeted[other] {
                            self.shut(other, wires);
                        }
                    }
                }
                self.sessions[c].hello_taken(ack)?;
                self.greeted[c] = true;
                self.open = true;
            }
            Message::Frame(h, tag) => {
                assert!(self.greeted[c], "Hello comes first");
                self.sessions[c].acked(h.ack.get())?;
                let Some(tag) = tag else { return Ok(()) };
                if self.sessions[c].take(h.seq.get(), 100)? == Taken::Fresh {
                    let seen = &mut self.seen[c];
                    assert_eq!(
                        *seen.epoch.get_or_insert(tag.epoch),
                        tag.epoch,
                        "two sessions mixed"
                    );
                    let next = &mut seen.next[tag.urgency as usize];
                    assert_eq!(tag.n, *next, "lost, doubled or out of order");
                    *next += 1;
                }
            }
        }
        Ok(())
    }

    fn declare_dead(&mut self, wires: &mut [Wire], epochs: &mut u64) {
        if self.life.declare_dead() {
            self.deaths += 1;
        }
        self.open = false;
        *epochs += 1;
        self.new_session(*epochs);
        for c in 0..Class::COUNT {
            self.shut(c, wires);
        }
    }
}

struct World {
    nodes: [Node; 2],
    wires: Vec<Wire>,
    epochs: u64,
    incarnations: u64,
}

impl World {
    fn new() -> Self {
        Self {
            nodes: [Node::new(0, 1, 1), Node::new(1, 2, 2)],
            wires: Vec::new(),
            epochs: 2,
            incarnations: 2,
        }
    }

    fn connect(&mut self, class: Class) -> usize {
        self.wires.push(Wire {
            class,
            way: Default::default(),
            shut: [false; 2],
            cut: false,
        });
        self.wires.len() - 1
    }

    /// No more trouble: fresh sockets, and everything that is on its way arrives.
    fn settle(&mut self) {
        for _ in 0..20 {
            for class in Class::ALL {
                if self.nodes.iter().any(|n| n.wire[class as usize].is_none())
                    || self.nodes[0].wire[class as usize] != self.nodes[1].wire[class as usize]
                {
                    let w = self.connect(class);
                    for n in &mut self.nodes {
                        n.attach(w, &mut self.wires);
                    }
                }
            }
            loop {
                let mut moved = false;
                for n in &mut self.nodes {
                    for c in 0..Class::COUNT {
                        while n.pump(c, &mut self.wires) {
                            moved = true;
                        }
                        while n.receive(c, &mut self.wires, &mut self.epochs) {
                            moved = true;
                        }
                        if n.sessions[c].quiet() {
                            moved = true;
                        }
                    }
                }
                if !moved {
                    break;
                }
            }
        }
    }

    fn check_all_arrived(&self) {
        for (a, b) in [(0, 1), (1, 0)] {
            for c in 0..Class::COUNT {
                let (from, to) = (&self.nodes[a], &self.nodes[b]);
                assert_eq!(
                    from.queued[c], to.seen[c].next,
                    "class {c}: not everything arrived"
                );
                assert!(to.seen[c].epoch.is_none_or(|e| e == from.epoch));
                assert_eq!(from.sessions[c].kept.len(), 0, "kept without need");
                assert!(from.greeted[c]);
            }
        }
    }
}

fn run(seed: u64, steps: u32, deaths: bool) {
    let mut r = Random::new(seed);
    let mut w = World::new();
    for _ in 0..steps {
        let (i, c) = (r.below(2) as usize, r.below(Class::COUNT as u64) as usize);
        match r.below(100) {
            0..=39 => {
                let urgency = if r.below(2) == 0 {
                    Urgency::Now
                } else {
                    Urgency::Bulk
                };
                w.nodes[i].send(c, urgency);
            }
            40..=64 => {
                w.nodes[i].pump(c, &mut w.wires);
            }
            65..=89 => {
                w.nodes[i].receive(c, &mut w.wires, &mut w.epochs);
            }
            90..=93 => {
                // The two ends are attached at different times, or one of them never.
                let new = w.connect(Class::ALL[c]);
                w.nodes[i].attach(new, &mut w.wires);
            }
            94..=96 => {
                let open: Vec<_> = (w.wires.len().saturating_sub(6)..w.wires.len())
                    .filter(|&x| w.wires[x].class as usize == c && !w.wires[x].shut[i])
                    .filter(|&x| w.nodes[i].wire[c] != Some(x))
                    .collect();
                if let Some(&x) = open.get(r.below(open.len().max(1) as u64) as usize) {
                    w.nodes[i].attach(x, &mut w.wires);
                }
            }
            97 => {
                // Cut: what was on its way is lost.
                if let Some(x) = w.nodes[i].wire[c] {
                    for way in &mut w.wires[x].way {
                        let keep = r.below(way.len() as u64 + 1) as usize;
                        way.truncate(keep);
                    }
                    w.wires[x].shut = [true; 2];
                    w.wires[x].cut = true;
                }
            }
            98 if deaths && r.below(8) == 0 => {
                w.nodes[i].declare_dead(&mut w.wires, &mut w.epochs);
            }
            99 if deaths && r.below(8) == 0 => {
                for c in 0..Class::COUNT {
                    w.nodes[i].shut(c, &mut w.wires);
                }
                w.epochs += 1;
                w.incarnations += 1;
                w.nodes[i] = Node::new(i, w.incarnations, w.epochs);
            }
            _ => {
                w.nodes[i].sessions[c].quiet();
            }
        }
    }
    w.settle();
    for n in &mut w.nodes {
        for c in 0..Class::COUNT {
            n.send(c, Urgency::Now);
            n.send(c, Urgency::Bulk);
        }
    }
    w.settle();
    w.check_all_arrived();
    if !deaths {
        assert!(w.nodes.iter().all(|n| n.deaths == 0), "nobody died");
    }
}

#[test]
fn no_frame_is_lost_doubled_or_reordered_while_both_live() {
    for seed in 0..400 {
        run(seed, 3_000, false);
    }
}

#[test]
fn sessions_do_not_mix_when_nodes_die_and_come_back() {
    for seed in 0..400 {
        run(seed, 3_000, true);
    }
}
