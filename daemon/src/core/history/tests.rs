// SPDX-License-Identifier: MIT OR Apache-2.0

use super::*;

fn event<O>(call: u64, end: u64, op: O) -> Event<O> {
    Event {
        call,
        end: Some(end),
        op,
    }
}

fn open<O>(call: u64, op: O) -> Event<O> {
    Event {
        call,
        end: None,
        op,
    }
}

fn put(value: u64, revision: u64) -> ValueOp {
    ValueOp::Put {
        value,
        expected: None,
        revision: Some(revision),
    }
}

fn swap(value: u64, expected: u64, revision: u64) -> ValueOp {
    ValueOp::Put {
        value,
        expected: Some(expected),
        revision: Some(revision),
    }
}

const fn got(value: u64, revision: u64) -> ValueOp {
    ValueOp::Get(Some((value, revision)))
}

#[test]
fn what_follows_must_see_what_was_before() {
    let good = [
        event(0, 1, ValueOp::Get(None)),
        event(2, 3, put(10, 1)),
        event(4, 5, got(10, 1)),
    ];
    assert!(is_linear::<Value>(&good));
    let stale = [event(0, 1, put(10, 1)), event(2, 3, ValueOp::Get(None))];
    assert!(!is_linear::<Value>(&stale));
    let older = [
        event(0, 1, put(10, 1)),
        event(2, 3, put(20, 2)),
        event(4, 5, got(10, 1)),
    ];
    assert!(!is_linear::<Value>(&older));
}

#[test]
fn what_goes_on_at_once_may_be_seen_or_not() {
    for seen in [got(10, 1), got(20, 2)] {
        let history = [
            event(0, 1, put(10, 1)),
            event(2, 9, put(20, 2)),
            event(3, 4, seen),
        ];
        assert!(is_linear::<Value>(&history));
    }
    // Once seen, it was.
    let back = [
        event(0, 1, put(10, 1)),
        event(2, 9, put(20, 2)),
        event(3, 4, got(20, 2)),
        event(5, 6, got(10, 1)),
    ];
    assert!(!is_linear::<Value>(&back));
}

#[test]
fn what_nobody_knows_of_may_have_happened_later() {
    let lost = ValueOp::Put {
        value: 20,
        expected: None,
        revision: None,
    };
    let history = |seen: &[ValueOp]| {
        let mut all = vec![event(0, 1, put(10, 1)), open(2, lost.clone())];
        let seen = (4..).step_by(2).zip(seen);
        all.extend(seen.map(|(at, op)| event(at, at + 1, op.clone())));
        all
    };
    assert!(is_linear::<Value>(&history(&[got(10, 1), got(10, 1)])));
    assert!(is_linear::<Value>(&history(&[got(10, 1), got(20, 2)])));
    let back = history(&[got(20, 2), got(10, 1)]);
    assert!(!is_linear::<Value>(&back));
    let other = history(&[got(20, 2), got(20, 3)]);
    assert!(!is_linear::<Value>(&other));
}

#[test]
fn one_of_two_swaps_succeeds() {
    let good = [
        event(0, 9, swap(10, 0, 1)),
        event(0, 9, ValueOp::Differs(1)),
    ];
    assert!(is_linear::<Value>(&good));
    let both = [event(0, 9, swap(10, 0, 1)), event(0, 9, swap(20, 0, 2))];
    assert!(!is_linear::<Value>(&both));
    let none = [event(0, 1, ValueOp::Differs(3))];
    assert!(!is_linear::<Value>(&none));
}

#[test]
fn a_lock_has_one_holder_and_growing_numbers() {
    let acquire = |call, end, token| event(call, end, LockOp::Acquire { token });
    let release = |call, end, token| event(call, end, LockOp::Release { token });
    let good = [
        acquire(0, 1, 1),
        acquire(2, 9, 5),
        release(3, 6, 1),
        release(10, 11, 5),
    ];
    assert!(is_linear::<Lock>(&good));
    let two = [acquire(0, 1, 1), acquire(2, 3, 2), release(4, 5, 1)];
    assert!(!is_linear::<Lock>(&two));
    let back = [acquire(0, 1, 2), release(2, 3, 2), acquire(4, 5, 1)];
    assert!(!is_linear::<Lock>(&back));
    let twice = [acquire(0, 1, 2), release(2, 3, 2), acquire(4, 5, 2)];
    assert!(!is_linear::<Lock>(&twice));
    // A lease may end from some time on.
    let lapses = |call| {
        let ends = open(call, LockOp::Release { token: 1 });
        [acquire(0, 1, 1), ends, acquire(2, 5, 2)]
    };
    assert!(is_linear::<Lock>(&lapses(4)));
    assert!(!is_linear::<Lock>(&lapses(6)));
}
