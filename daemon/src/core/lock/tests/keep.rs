// SPDX-License-Identifier: MIT OR Apache-2.0

//! Locks that nodes keep.

use super::*;

/// The session of a node that keeps locks.
const KEEPER: u128 = 100;

fn keeps(node: u16) -> Opening {
    Opening {
        keeps: true,
        ..opening(owner(node), None)
    }
}

impl Bench {
    fn keep_by(&mut self, session: u128, name: &str, keeper: u128, opening: Opening) -> Outcome {
        let serial = self.serial(session);
        self.locks.apply(&Command::Keep {
            session: Unique(session),
            serial,
            name: name.to_owned(),
            keeper: Unique(keeper),
            opening,
        })
    }

    fn keep(&mut self, session: u128, name: &str) -> Outcome {
        self.keep_by(session, name, KEEPER, keeps(1))
    }

    fn reveal(&mut self, session: u128, name: &str, token: u64) -> Outcome {
        let serial = self.serial(KEEPER);
        self.locks.apply(&Command::Reveal {
            keeper: Unique(KEEPER),
            serial,
            name: name.to_owned(),
            session: Unique(session),
            opening: opening(owner(1), None),
            token,
        })
    }

    /// Kept, after `session` had it. Returns the first number that was set aside.
    fn kept(&mut self, session: u128, name: &str) -> u64 {
        self.write(session, name);
        match self.keep(session, name) {
            Outcome::Kept { token } => token,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_is_kept_is_given_up_for_who_asks() {
    let mut b = Bench::new(2);
    let first = b.kept(1, "a");
    assert_eq!((b.token(1, "a"), b.token(KEEPER, "a")), (None, Some(first)));
    assert_eq!(b.write(2, "a"), Outcome::Waiting);
    assert_eq!(b.release(KEEPER, "a"), Outcome::Done);
    // Higher than all that may have been lent.
    assert_eq!(b.token(2, "a"), Some(first + KEPT_TOKENS));
}

#[test]
fn what_others_wait_for_is_not_kept() {
    let mut b = Bench::new(2);
    b.write(1, "a");
    b.write(2, "a");
    assert_eq!(b.keep(1, "a"), Outcome::Done);
    assert_eq!((b.token(1, "a"), b.token(2, "a")), (None, Some(2)));
    assert_eq!(b.keep(1, "a"), refused(Refusal::NotHeld));
    // Nor is what is only read, or by a session that is not a node's or is over.
    b.read(1, "b");
    assert_eq!(b.keep(1, "b"), Outcome::Done);
    b.write(1, "c");
    let user = opening(owner(1), None);
    assert_eq!(b.keep_by(1, "c", KEEPER, user), Outcome::Done);
    b.close(KEEPER);
    b.write(1, "d");
    assert_eq!(b.keep(1, "d"), Outcome::Done);
    assert_eq!(b.locks.locks().len(), 1);
}

#[test]
fn who_has_what_is_kept_is_told_and_holds_it() {
    let mut b = Bench::new(2);
    let first = b.kept(1, "a");
    assert_eq!(b.write(2, "a"), Outcome::Waiting);
    assert_eq!(b.reveal(9, "a", first + 7), Outcome::Done);
    assert_eq!(b.token(9, "a"), Some(first + 7));
    assert_eq!(b.token(KEEPER, "a"), None);
    b.serials.insert(9, 0);
    assert_eq!(b.release(9, "a"), Outcome::Done);
    assert!(b.token(2, "a") > Some(first + 7));
    // Numbers are those that were set aside; what is not kept cannot be revealed.
    assert_eq!(b.reveal(9, "a", first), refused(Refusal::NotHeld));
    b.release(2, "a");
    let first = b.kept(1, "a");
    for token in [first - 1, first + KEPT_TOKENS] {
        assert_eq!(b.reveal(9, "a", token), refused(Refusal::NotHeld));
    }
    b.close(9);
    assert_eq!(b.reveal(9, "a", first), refused(Refusal::NotHeld));
}

#[test]
fn who_does_not_want_to_wait_has_the_node_asked() {
    let mut b = Bench::new(3);
    let first = b.kept(1, "a");
    let now = |b: &mut Bench, s| b.acquire(s, "a", Mode::Write, false);
    assert_eq!(now(&mut b, 2), Outcome::Waiting);
    assert_eq!(now(&mut b, 3), refused(Refusal::Held));
    assert_eq!(b.write(3, "a"), Outcome::Waiting);
    // Somebody has it: who only tried is told so, and who waits waits on.
    b.reveal(9, "a", first);
    let tried = b.locks.session(Unique(2)).unwrap();
    assert_eq!(
        (tried.refusal(), &tried.waits),
        (Some(Refusal::Held), &None)
    );
    b.serials.insert(9, 0);
    b.release(9, "a");
    assert!(b.token(3, "a").is_some());
    // Nobody has it: it is his.
    b.keep(3, "a");
    assert_eq!(now(&mut b, 2), Outcome::Waiting);
    b.release(KEEPER, "a");
    assert!(b.token(2, "a").is_some());
}

#[test]
fn a_circle_that_was_hidden_ends_with_its_youngest() {
    // 9 has what is kept, unseen, and waits for 2; who then asks for what 9 has?
    for two_is_youngest in [true, false] {
        let mut b = Bench::new(3);
        let first = b.kept(1, "a");
        b.open(9, owner(1)).unwrap();
        b.write(2, "b");
        let (early, late) = if two_is_youngest { (9, 2) } else { (2, 9) };
        for session in [early, late] {
            let name = if session == 9 { "b" } else { "a" };
            assert_eq!(b.write(session, name), Outcome::Waiting);
        }
        assert_eq!(b.write(3, "a"), Outcome::Waiting);
        assert_eq!(b.reveal(9, "a", first), Outcome::Done);
        let refusal = |s| b.locks.session(Unique(s)).unwrap().refusal();
        assert_eq!(refusal(late), Some(Refusal::Deadlock));
        assert_eq!((refusal(early), refusal(3)), (None, None));
        assert!(b.locks.session(Unique(early)).unwrap().waits.is_some());
    }
}

#[test]
fn a_child_of_who_had_it_unseen_is_seen() {
    let mut b = Bench::new(2);
    let first = b.kept(1, "a");
    b.write(2, "b");
    let child = opening(owner(1), Some(9));
    assert_eq!(b.open_with(3, child, "b", true), Outcome::Waiting);
    assert_eq!(b.write(2, "a"), Outcome::Waiting);
    b.reveal(9, "a", first);
    let two = b.locks.session(Unique(2)).unwrap();
    assert_eq!(two.refusal(), Some(Refusal::Deadlock));
}

#[test]
fn what_a_node_keeps_it_keeps_until_its_time_is_over() {
    let mut b = Bench::new(2);
    let first = b.kept(1, "a");
    b.open(8, owner(2)).unwrap();
    assert_eq!(b.write(8, "a"), Outcome::Waiting);
    b.pass(TTL_MS);
    b.renew(8);
    assert_eq!(b.renew(KEEPER), Outcome::Done);
    b.locks.end_of_node(NodeId::new(1).unwrap(), 1);
    // It may not know yet, and lend what it keeps.
    assert_eq!(b.token(KEEPER, "a"), Some(first));
    assert_eq!(b.renew(KEEPER), refused(Refusal::SessionEnded));
    b.pass(TTL_MS);
    b.renew(8);
    assert_eq!(b.token(8, "a"), None);
    b.pass(MAX_TICK_MS);
    assert!(b.token(8, "a").is_some());
}

#[test]
fn what_is_kept_twice_by_one_request_is_kept_once() {
    let mut b = Bench::new(1);
    b.write(1, "a");
    let serial = b.serial(1);
    let keep = Command::Keep {
        session: Unique(1),
        serial,
        name: "a".to_owned(),
        keeper: Unique(KEEPER),
        opening: keeps(1),
    };
    let once = b.locks.apply(&keep);
    let after = b.locks.clone();
    assert_eq!(once, Outcome::Kept { token: 2 });
    assert_eq!((b.locks.apply(&keep), &b.locks), (once, &after));
    let json = serde_json::to_vec(&b.locks).unwrap();
    assert_eq!(serde_json::from_slice::<Locks>(&json).unwrap(), b.locks);
}
