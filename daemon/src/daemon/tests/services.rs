// SPDX-License-Identifier: MIT OR Apache-2.0

//! Locks and values, asked for on both nodes.

use std::thread;

use super::*;
use crate::api::lock::{AcquireReply, LocksReply};
use crate::api::value::{ListValuesReply, RevisionReply, Value, WatchValuesReply};

/// Both daemons, as soon as they agree.
fn both(pair: &Pair) -> (Running, Running) {
    let (one, two) = (pair.start(1), pair.start(2));
    let agrees = |daemon: &Running| {
        let cluster = daemon.stage.cluster();
        let status = cluster.ok().and_then(|c| Some(c.council().ok()?.status()));
        status.is_some_and(|s| s.has_majority)
    };
    wait_for("both agree", || agrees(&one) && agrees(&two));
    (one, two)
}

fn connect(daemon: &Running) -> Client {
    Client::connect(&daemon.socket, Some(PATIENCE)).unwrap()
}

fn ask<T: serde::de::DeserializeOwned>(
    client: &mut Client,
    method: &str,
    parameters: serde_json::Value,
) -> Result<T, varlink::Error> {
    client.call(&format!("{}.{method}", api::INTERFACE), &parameters, drop)
}

#[test]
fn a_lock_goes_to_who_waits_when_its_holder_hangs_up() {
    let pair = Pair::new();
    let (one, two) = both(&pair);
    let acquire = json!({ "name": "a", "mode": "write" });
    let mut holder = connect(&one);
    let held: AcquireReply = ask(&mut holder, "Acquire", acquire.clone()).unwrap();
    let mut other = connect(&two);
    let refused = ask::<AcquireReply>(&mut other, "Acquire", acquire.clone());
    assert_eq!(reason(refused), "held");
    let again = ask::<AcquireReply>(&mut holder, "Acquire", acquire);
    assert_eq!(reason(again), "already-held");
    let soon = json!({ "name": "a", "mode": "write", "wait_ms": 100 });
    let refused = ask::<AcquireReply>(&mut other, "Acquire", soon);
    assert_eq!(reason(refused), "lock-timeout");
    let wait = json!({ "name": "a", "mode": "read", "wait_ms": 60_000 });
    let waiter = thread::spawn(move || {
        let reply: AcquireReply = ask(&mut other, "Acquire", wait).unwrap();
        (other, reply)
    });
    wait_for("the other waits", || {
        let locks: LocksReply = one.call("Locks", json!({})).unwrap();
        locks.locks.iter().any(|l| l.waiting.len() == 1)
    });
    let _: serde_json::Value = ask(&mut holder, "Renew", json!({})).unwrap();
    drop(holder);
    let (mut other, next) = waiter.join().unwrap();
    assert!(next.token > held.token);
    let locks: LocksReply = one.call("Locks", json!({})).unwrap();
    let holder = &locks.locks[0].holders[0];
    assert_eq!((holder.node, holder.token), (2, next.token));
    let _: serde_json::Value = ask(&mut other, "Release", json!({ "name": "a" })).unwrap();
    let locks: LocksReply = two.call("Locks", json!({})).unwrap();
    assert!(locks.locks.is_empty());
}

#[test]
fn a_command_that_waits_for_what_its_starter_holds_is_refused() {
    let pair = Pair::new();
    let (one, two) = both(&pair);
    let mut outer = connect(&one);
    let held: AcquireReply = ask(
        &mut outer,
        "Acquire",
        json!({ "name": "a", "mode": "write" }),
    )
    .unwrap();
    let inner = json!({ "name": "a", "mode": "read", "wait_ms": 60_000, "parent": held.session });
    let refused = ask::<AcquireReply>(&mut connect(&two), "Acquire", inner);
    assert_eq!(reason(refused), "deadlock");
}

#[test]
fn values_are_set_on_one_node_and_seen_on_the_other() {
    let pair = Pair::new();
    let (one, two) = both(&pair);
    let mut watcher = connect(&two);
    let told = thread::spawn(move || {
        let mut told = Vec::new();
        // It ends when the daemon does.
        let _ = watcher.call(
            &format!("{}.WatchValues", api::INTERFACE),
            &json!({ "prefix": "k/", "after": 0 }),
            |reply: WatchValuesReply| told.extend(reply.changes),
        );
        told
    });
    let set = |daemon: &Running, expected: Option<u64>, value: &str| {
        let parameters = json!({ "name": "k/a", "value": value, "expected": expected });
        daemon.call::<RevisionReply>("SetValue", parameters)
    };
    // "eA==" is x, "eQ==" is y.
    assert_eq!(set(&one, Some(0), "eA==").unwrap().revision, 1);
    assert_eq!(reason(set(&two, Some(0), "eQ==")), "value-differs");
    let value: Value = two.call("GetValue", json!({ "name": "k/a" })).unwrap();
    assert_eq!((value.value.as_slice(), value.revision), (&b"x"[..], 1));
    assert_eq!(set(&two, Some(1), "eQ==").unwrap().revision, 2);
    let list: ListValuesReply = one.call("ListValues", json!({ "prefix": "k" })).unwrap();
    assert_eq!((list.revision, list.values.len()), (2, 1));
    let long = "eHh4".repeat(64 * 1024 / 3);
    assert_eq!(set(&two, None, &long).unwrap().revision, 3);
    let gone: RevisionReply = one.call("DeleteValue", json!({ "name": "k/a" })).unwrap();
    assert_eq!(gone.revision, 4);
    let none = two.call::<Value>("GetValue", json!({ "name": "k/a" }));
    assert_eq!(reason(none), "no-value");
    wait_for("the second knows", || {
        two.council().state().kv.revision() == 4
    });
    thread::sleep(Duration::from_millis(200));
    drop(two);
    let told = told.join().unwrap();
    assert_eq!(
        told.iter().map(|c| c.revision).collect::<Vec<_>>(),
        [1, 2, 3, 4]
    );
    assert!(told[3].value.is_none());
}

#[test]
fn one_that_was_away_is_told_more_than_fits_into_a_message() {
    let pair = Pair::new();
    let (one, two) = both(&pair);
    drop(two);
    let long = "eHh4".repeat(60 * 1024 / 3);
    for i in 0..24 {
        let parameters = json!({ "name": format!("k/{i}"), "value": long });
        let set = one.call::<RevisionReply>("SetValue", parameters);
        assert_eq!(set.unwrap().revision, i + 1);
    }
    let two = pair.start(2);
    wait_for("the second knows", || {
        two.council().state().kv.revision() == 24
    });
    assert!(serde_json::to_vec(&*two.council().state()).unwrap().len() > msg::MAX_MESSAGE_BYTES);
}
