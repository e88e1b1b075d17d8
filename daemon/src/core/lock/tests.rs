// SPDX-License-Identifier: MIT OR Apache-2.0

use super::*;

mod keep;

const TTL_MS: u64 = 5000;

/// Locks, and the number of each session's last request.
#[derive(Default)]
struct Bench {
    locks: Locks,
    serials: BTreeMap<u128, u64>,
}

fn owner(node: u16) -> Owner {
    Owner {
        node: NodeId::new(node).unwrap(),
        since: 1,
        uid: 1000,
    }
}

fn opening(owner: Owner, parent: Option<u128>) -> Opening {
    Opening {
        owner,
        parent: parent.map(Unique),
        ttl_ms: TTL_MS,
        keeps: false,
    }
}

fn granted(token: u64) -> Outcome {
    Outcome::Granted { token }
}

fn refused(why: Refusal) -> Outcome {
    Outcome::Refused(why)
}

impl Bench {
    /// With the sessions 1 to `n`.
    fn new(n: u128) -> Self {
        let mut bench = Self::default();
        for session in 1..=n {
            bench.open(session, owner(1)).unwrap();
        }
        bench
    }

    fn open(&mut self, session: u128, owner: Owner) -> Result<(), Refusal> {
        self.locks.open(Unique(session), opening(owner, None))
    }

    /// The first request of a session.
    fn open_with(&mut self, session: u128, opening: Opening, name: &str, wait: bool) -> Outcome {
        let serial = self.serial(session);
        self.locks.apply(&Command::Acquire {
            session: Unique(session),
            opening: Some(opening),
            serial,
            name: name.to_owned(),
            mode: Mode::Write,
            wait,
        })
    }

    fn serial(&mut self, session: u128) -> u64 {
        let serial = self.serials.entry(session).or_default();
        *serial += 1;
        *serial
    }

    fn acquire(&mut self, session: u128, name: &str, mode: Mode, wait: bool) -> Outcome {
        let serial = self.serial(session);
        self.locks.apply(&Command::Acquire {
            session: Unique(session),
            opening: None,
            serial,
            name: name.to_owned(),
            mode,
            wait,
        })
    }

    fn write(&mut self, session: u128, name: &str) -> Outcome {
        self.acquire(session, name, Mode::Write, true)
    }

    fn read(&mut self, session: u128, name: &str) -> Outcome {
        self.acquire(session, name, Mode::Read, true)
    }

    fn release(&mut self, session: u128, name: &str) -> Outcome {
        let serial = self.serial(session);
        self.locks.apply(&Command::Release {
            session: Unique(session),
            serial,
            name: name.to_owned(),
        })
    }

    fn close(&mut self, session: u128) {
        let session = Unique(session);
        assert_eq!(self.locks.apply(&Command::Close { session }), Outcome::Done);
    }

    fn renew(&mut self, session: u128) -> Outcome {
        let session = Unique(session);
        self.locks.apply(&Command::Renew { session })
    }

    fn pass(&mut self, ms: u64) {
        let end_ms = self.locks.now_ms + ms;
        while self.locks.now_ms < end_ms {
            let from_ms = self.locks.now_ms;
            let to_ms = end_ms.min(from_ms + MAX_TICK_MS);
            self.locks.apply(&Command::Tick { from_ms, to_ms });
        }
    }

    fn token(&self, session: u128, name: &str) -> Option<u64> {
        self.locks.token(Unique(session), name)
    }
}

#[test]
fn one_writer_at_a_time_in_the_order_of_the_requests() {
    let mut b = Bench::new(4);
    assert_eq!(b.write(3, "a"), granted(1));
    for session in [1, 4, 2] {
        assert_eq!(b.write(session, "a"), Outcome::Waiting);
    }
    let order = [3, 1, 4, 2];
    for (before, next) in order.iter().zip(&order[1..]) {
        assert_eq!(b.token(*next, "a"), None);
        assert_eq!(b.release(*before, "a"), Outcome::Done);
        assert!(b.token(*next, "a") > b.token(*before, "a"));
    }
    assert_eq!(b.token(2, "a"), Some(4));
}

#[test]
fn readers_share_and_do_not_overtake_a_writer() {
    let mut b = Bench::new(5);
    assert_eq!(b.read(1, "a"), granted(1));
    assert_eq!(b.read(2, "a"), granted(2));
    assert_eq!(b.write(3, "a"), Outcome::Waiting);
    assert_eq!(b.read(4, "a"), Outcome::Waiting);
    assert_eq!(b.read(5, "a"), Outcome::Waiting);
    b.release(1, "a");
    assert_eq!(b.token(3, "a"), None);
    b.release(2, "a");
    assert_eq!((b.token(3, "a"), b.token(4, "a")), (Some(3), None));
    b.release(3, "a");
    assert_eq!((b.token(4, "a"), b.token(5, "a")), (Some(4), Some(5)));
}

#[test]
fn who_does_not_want_to_wait_is_told() {
    let mut b = Bench::new(3);
    b.read(1, "a");
    let now = |b: &mut Bench, s, mode| b.acquire(s, "a", mode, false);
    assert_eq!(now(&mut b, 2, Mode::Write), refused(Refusal::Held));
    assert_eq!(now(&mut b, 2, Mode::Read), granted(2));
    b.release(2, "a");
    assert_eq!(b.write(3, "a"), Outcome::Waiting);
    // Nor does it overtake.
    assert_eq!(now(&mut b, 2, Mode::Read), refused(Refusal::Held));
}

#[test]
fn giving_up_to_wait_lets_others_in() {
    let mut b = Bench::new(3);
    b.read(1, "a");
    b.write(2, "a");
    b.read(3, "a");
    assert_eq!(b.release(2, "a"), Outcome::Done);
    assert!(b.token(3, "a").is_some());
    assert_eq!(b.release(2, "a"), refused(Refusal::NotHeld));
}

#[test]
fn tokens_grow_though_the_lock_was_gone() {
    let mut b = Bench::new(1);
    for token in 1..=3 {
        assert_eq!(b.write(1, "a"), granted(token));
        b.release(1, "a");
        assert!(b.locks.locks().is_empty());
    }
    assert_eq!(b.write(1, "b"), granted(4));
}

#[test]
fn a_session_does_not_take_a_lock_twice() {
    let mut b = Bench::new(2);
    b.read(1, "a");
    assert_eq!(b.read(1, "a"), refused(Refusal::AlreadyHeld));
    assert_eq!(b.write(1, "a"), refused(Refusal::AlreadyHeld));
    assert_eq!(b.write(2, "a"), Outcome::Waiting);
    assert_eq!(b.write(2, "b"), refused(Refusal::Waiting));
    b.release(1, "a");
    assert_eq!(b.token(2, "a"), Some(2));
}

#[test]
fn what_a_session_held_is_free_when_it_ends() {
    let mut b = Bench::new(4);
    b.write(1, "a");
    b.write(1, "b");
    b.write(2, "a");
    b.write(3, "b");
    b.close(1);
    assert_eq!((b.token(2, "a"), b.token(3, "b")), (Some(3), Some(4)));
    assert_eq!(b.write(1, "c"), refused(Refusal::SessionEnded));
    assert_eq!(b.renew(1), refused(Refusal::SessionEnded));
    // One that waits and ends does not get it later.
    b.write(4, "a");
    b.close(4);
    b.release(2, "a");
    assert!(!b.locks.locks().contains_key("a"));
}

#[test]
fn a_lease_ends_as_said_and_not_earlier() {
    let mut b = Bench::new(2);
    b.write(1, "a");
    b.write(2, "a");
    b.pass(TTL_MS + MAX_TICK_MS - 1);
    assert_eq!(b.token(1, "a"), Some(1));
    assert_eq!(b.renew(2), Outcome::Done);
    b.pass(1);
    assert_eq!((b.token(1, "a"), b.token(2, "a")), (None, Some(2)));
    b.pass(TTL_MS - 2);
    assert_eq!(b.renew(2), Outcome::Done);
    b.pass(TTL_MS);
    assert_eq!(b.token(2, "a"), Some(2));
}

#[test]
fn a_clock_that_jumps_or_counts_twice_ends_nothing() {
    let mut b = Bench::new(1);
    b.write(1, "a");
    let tick = |from_ms, to_ms| Command::Tick { from_ms, to_ms };
    b.locks.apply(&tick(0, u64::MAX));
    assert_eq!(b.locks.now_ms(), MAX_TICK_MS);
    for _ in 0..100 {
        b.locks.apply(&tick(0, u64::MAX));
        b.locks.apply(&tick(MAX_TICK_MS, 0));
        b.locks.apply(&tick(u64::MAX, u64::MAX));
    }
    assert_eq!(b.locks.now_ms(), MAX_TICK_MS);
    assert_eq!(b.token(1, "a"), Some(1));
}

#[test]
fn none_of_those_who_end_together_gets_what_another_had() {
    let mut b = Bench::new(3);
    b.read(1, "a");
    b.write(2, "a");
    b.read(3, "a");
    b.pass(TTL_MS + MAX_TICK_MS);
    assert!(b.locks.sessions().is_empty() && b.locks.locks().is_empty());
    assert_eq!(b.locks.tokens, 1);
}

#[test]
fn a_node_that_is_gone_holds_nothing() {
    let mut b = Bench::new(2);
    for (session, node, since) in [(7, 2, 1), (8, 2, 9)] {
        let mut owner = owner(node);
        owner.since = since;
        b.open(session, owner).unwrap();
    }
    b.write(7, "a");
    b.write(1, "a");
    b.write(8, "b");
    b.locks.end_of_node(NodeId::new(2).unwrap(), 1);
    // The one of the same number that joined later is another.
    assert_eq!((b.token(1, "a"), b.token(8, "b")), (Some(3), Some(2)));
    assert!(b.locks.session(Unique(7)).is_none());
}

#[test]
fn who_would_close_a_circle_is_refused() {
    let mut b = Bench::new(3);
    for (session, name) in [(1, "a"), (2, "b"), (3, "c")] {
        b.write(session, name);
    }
    assert_eq!(b.write(1, "b"), Outcome::Waiting);
    assert_eq!(b.read(2, "c"), Outcome::Waiting);
    assert_eq!(b.write(3, "a"), refused(Refusal::Deadlock));
    // It holds what it held, and the others go on when it gives that up.
    assert_eq!(b.token(3, "c"), Some(3));
    b.release(3, "c");
    assert_eq!(b.token(2, "c"), Some(4));
}

#[test]
fn a_circle_may_go_through_the_queue() {
    let mut b = Bench::new(3);
    b.read(1, "a");
    b.write(2, "b");
    assert_eq!(b.write(2, "a"), Outcome::Waiting);
    assert_eq!(b.read(3, "b"), Outcome::Waiting);
    // 1 does not exclude 3, but 3 waits behind 2, which waits for 1.
    assert_eq!(b.read(1, "b"), refused(Refusal::Deadlock));
}

#[test]
fn a_child_that_wants_what_its_parent_holds_is_refused() {
    let mut b = Bench::new(2);
    for (child, parent) in [(11, 1), (12, 2)] {
        let opening = opening(owner(1), Some(parent));
        b.locks.open(Unique(child), opening).unwrap();
    }
    b.write(1, "a");
    b.write(2, "b");
    assert_eq!(b.write(11, "a"), refused(Refusal::Deadlock));
    assert_eq!(b.write(11, "b"), Outcome::Waiting);
    assert_eq!(b.write(12, "a"), refused(Refusal::Deadlock));
    assert_eq!(b.read(12, "c"), granted(3));
}

#[test]
fn a_request_whose_answer_was_lost_is_made_again_and_done_once() {
    let mut b = Bench::new(2);
    let acquire = |session, serial| Command::Acquire {
        session: Unique(session),
        opening: None,
        serial,
        name: "a".to_owned(),
        mode: Mode::Write,
        wait: true,
    };
    assert_eq!(b.locks.apply(&acquire(1, 1)), granted(1));
    assert_eq!(b.locks.apply(&acquire(1, 1)), granted(1));
    assert_eq!(b.locks.apply(&acquire(2, 1)), Outcome::Waiting);
    let release = Command::Release {
        session: Unique(1),
        serial: 2,
        name: "a".to_owned(),
    };
    assert_eq!(b.locks.apply(&release), Outcome::Done);
    assert_eq!(b.locks.apply(&release), Outcome::Done);
    assert_eq!(b.locks.apply(&acquire(1, 1)), refused(Refusal::Stale));
    assert_eq!(b.locks.apply(&acquire(2, 1)), granted(2));
}

#[test]
fn a_session_is_opened_with_its_first_lock() {
    let mut b = Bench::default();
    let first = opening(owner(1), None);
    let acquire = |session, opening| Command::Acquire {
        session: Unique(session),
        opening: Some(opening),
        serial: 1,
        name: "a".to_owned(),
        mode: Mode::Write,
        wait: false,
    };
    for _ in 0..2 {
        assert_eq!(b.locks.apply(&acquire(1, first)), granted(1));
    }
    let other = acquire(1, opening(owner(2), None));
    assert_eq!(b.locks.apply(&other), refused(Refusal::SessionExists));
    // One that is refused is not open.
    assert_eq!(b.open_with(2, first, "a", false), refused(Refusal::Held));
    assert_eq!(b.locks.sessions().len(), 1);
    assert_eq!(b.open_with(2, first, "a", true), Outcome::Waiting);
    // One that is over is not opened by a request that comes late, nor is one that was closed before
    // it came.
    b.close(1);
    assert_eq!(b.token(2, "a"), Some(2));
    b.close(2);
    b.close(3);
    for late in 1..=3 {
        let late = acquire(late, first);
        assert_eq!(b.locks.apply(&late), refused(Refusal::SessionEnded));
    }
    assert!(b.locks.sessions().is_empty() && b.locks.locks().is_empty());
    for session in 0..2 * MAX_ENDED as u128 {
        b.close(session);
    }
    assert_eq!(b.locks.ended.len(), MAX_ENDED);
}

#[test]
fn a_later_refusal_is_not_taken_for_a_grant() {
    let mut b = Bench::new(2);
    b.write(1, "a");
    b.write(2, "a");
    let again = Command::Acquire {
        session: Unique(2),
        opening: None,
        serial: 2,
        name: "b".to_owned(),
        mode: Mode::Write,
        wait: true,
    };
    assert_eq!(b.locks.apply(&again), refused(Refusal::Waiting));
    b.release(1, "a");
    assert_eq!(b.locks.apply(&again), refused(Refusal::Waiting));
    assert_eq!(b.token(2, "a"), Some(2));
}

#[test]
fn all_is_bounded() {
    let mut b = Bench::default();
    let mut short = opening(owner(1), None);
    short.ttl_ms = MIN_TTL_MS - 1;
    let invalid = refused(Refusal::TtlInvalid);
    assert_eq!(b.open_with(1, short, "a", true), invalid);
    for (i, uid) in (0..MAX_SESSIONS).zip((0..8).cycle()) {
        b.open(i as u128, Owner { uid, ..owner(1) }).unwrap();
    }
    let crowd = Err(Refusal::TooManySessions);
    assert_eq!(b.open(9999, owner(1)), crowd);
    for name in ["", "a b", "a\"", "é", "a\n", &"x".repeat(257)] {
        assert_eq!(b.write(1, name), refused(Refusal::NameInvalid), "{name}");
    }
    let long = |i: usize| format!("{i:0>MAX_NAME_BYTES$}");
    for i in 0..MAX_HELD {
        assert!(matches!(b.write(1, &long(i)), Outcome::Granted { .. }));
    }
    let full = refused(Refusal::TooManyLocks);
    assert_eq!(b.write(1, "one-more"), full.clone());
    for session in 0..MAX_WAITERS as u128 {
        assert_eq!(b.write(200 + session, &long(0)), Outcome::Waiting);
    }
    let crowd = refused(Refusal::TooManyWaiters);
    assert_eq!(b.write(500, &long(0)), crowd);
    for i in MAX_HELD..MAX_ENTRIES - MAX_WAITERS {
        b.write(600 + (i / MAX_HELD) as u128, &long(i));
    }
    assert_eq!(b.write(500, "one-more"), full);
    let json = serde_json::to_vec(&b.locks).unwrap();
    assert!(json.len() < 3 << 20, "{}", json.len());
    let back: Locks = serde_json::from_slice(&json).unwrap();
    assert_eq!(back, b.locks);
}

#[test]
fn one_user_leaves_locks_to_others() {
    let mut b = Bench::default();
    let sessions = MAX_ENTRIES_OF_USER / MAX_HELD;
    for i in 0..=sessions {
        b.open(i as u128, owner(1)).unwrap();
    }
    for i in 0..MAX_ENTRIES_OF_USER {
        let granted = b.write((i / MAX_HELD) as u128, &format!("l{i}"));
        assert!(matches!(granted, Outcome::Granted { .. }), "{i}");
    }
    let full = refused(Refusal::TooManyLocks);
    assert_eq!(b.write(sessions as u128, "more"), full);
    for (session, uid) in [(9998, 1), (9999, 0)] {
        b.open(session, Owner { uid, ..owner(1) }).unwrap();
        let granted = b.write(session, &format!("u{uid}"));
        assert!(matches!(granted, Outcome::Granted { .. }));
    }
    b.release(0, "l0");
    let granted = b.write(sessions as u128, "more");
    assert!(matches!(granted, Outcome::Granted { .. }));
}

#[test]
fn one_user_leaves_sessions_to_others() {
    let mut b = Bench::new(MAX_SESSIONS_OF_USER as u128);
    let full = Err(Refusal::TooManySessions);
    assert_eq!(b.open(9999, owner(1)), full);
    assert_eq!(b.open(9999, Owner { uid: 1, ..owner(1) }), Ok(()));
}

/// Ten thousand times somebody reads a number and writes one more, under a lock that he may have lost
/// meanwhile. The store refuses whoever comes with a token lower than one it has seen, to read or to
/// write.
#[test]
fn no_update_is_lost_where_the_store_looks_at_the_token() {
    const SECTIONS: u64 = 10_000;
    let mut b = Bench::new(8);
    let (mut counter, mut highest, mut done, mut fenced) = (0, 0, 0, 0);
    let mut dice = 0x9e37_79b9_u64;
    let mut roll = |n: u64| {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        dice % n
    };
    // Who has read what, with which token; some are slow to write.
    let mut read: BTreeMap<u128, (u64, u64)> = BTreeMap::new();
    let mut next = 8;
    let mut alive: Vec<u128> = (1..=8).collect();
    while done < SECTIONS {
        let at = usize::try_from(roll(alive.len() as u64)).unwrap();
        let one = alive[at];
        let waits = b
            .locks
            .session(Unique(one))
            .is_some_and(|s| s.waits.is_some());
        match (read.get(&one).copied(), b.token(one, "counter")) {
            (None, None) if !waits => drop(b.write(one, "counter")),
            (None, None) => {}
            (None, Some(token)) => {
                highest = token.max(highest);
                read.insert(one, (counter, token));
            }
            (Some(_), _) if roll(8) == 0 => {
                // It sleeps; its lease ends, and it does not know.
                for _ in 0..=(TTL_MS + MAX_TICK_MS) / MAX_TICK_MS {
                    b.pass(MAX_TICK_MS);
                    for other in alive.iter().filter(|o| !read.contains_key(o)) {
                        b.renew(*other);
                    }
                }
            }
            (Some((seen, token)), _) => {
                if token >= highest {
                    counter = seen + 1;
                    done += 1;
                } else {
                    fenced += 1;
                }
                read.remove(&one);
                if b.release(one, "counter") == refused(Refusal::SessionEnded) {
                    next += 1;
                    b.open(next, owner(1)).unwrap();
                    alive[at] = next;
                }
            }
        }
    }
    assert_eq!(counter, SECTIONS);
    assert!(fenced > 100, "{fenced} came too late");
}
