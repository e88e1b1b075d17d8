// SPDX-License-Identifier: MIT OR Apache-2.0

//! Machines come and go.

use super::*;
use crate::msg::govern::Hello;

#[test]
fn a_machine_joins_and_leaves_while_everything_runs() {
    let machines = Machines::new(2);
    let (one, two) = (machines.start(1), machines.start(2));
    let call = |of: &Running, method| of.call::<serde_json::Value>(method, json!({}));
    assert_eq!(reason(call(&one, "Nodes")), "no-cluster");
    let invitation = machines.found(&one, 1);
    assert_eq!(reason(call(&one, "Init")), "already-in-a-cluster");
    let nodes = || -> usize {
        let reply: NodesReply = one.call("Nodes", json!({})).unwrap();
        reply.nodes.len()
    };
    assert_eq!(nodes(), 1);
    for (round, node) in [(1, 2), (2, 3)] {
        assert_eq!(machines.join(&two, 2, &invitation), node);
        wait_for("the node that came is up", || {
            one.state(node) == "up" && two.state(1) == "up"
        });
        let _: serde_json::Value = two.call("Leave", json!({})).unwrap();
        assert_eq!(reason(call(&two, "Nodes")), "no-cluster");
        wait_for("the node that left is gone", || nodes() == 1);
        wait_for("the module was told", || {
            *one.notes.deaths.lock().unwrap() == round
        });
    }
    let records = one.records();
    for part in [
        "\"action\":\"Init\"",
        "\"event\":\"join\"",
        "\"outcome\":\"n3\"",
    ] {
        assert!(records.contains(part), "{part} in {records}");
    }
}

/// Has more agreed on than goes into one message to who hears of it later.
fn fill_a_message(on: &Running) {
    for i in 0..carrier::MAX_ENTRIES {
        let value = json!({ "name": format!("v{i}"), "value": "eA==" });
        let _: serde_json::Value = on.call("SetValue", value).unwrap();
    }
}

#[test]
fn who_joins_hears_the_past_of_one_who_was_not_in_it() {
    let machines = Machines::new(3);
    let [one, two, three] = [1, 2, 3].map(|n| machines.start(n));
    let invitation = machines.found(&one, 1);
    fill_a_message(&one);
    assert_eq!(machines.join(&two, 2, &invitation), 2);
    wait_for("the second knows all", || {
        two.council().state() == one.council().state()
    });
    let _: serde_json::Value = one.call("Leave", json!({})).unwrap();
    wait_for("the second leads", || {
        two.council().status().leader == Some(id(2)) && two.council().state().nodes.len() == 1
    });
    let line: InvitationReply = two.call("CreateToken", json!({ "ttl_s": 60 })).unwrap();
    assert_eq!(machines.join(&three, 3, &line), 3);
    wait_for("the third knows all", || {
        three.council().state() == two.council().state() && three.state(2) == "up"
    });
}

#[test]
fn who_joins_believes_nobody_who_was_taken_out_before() {
    let machines = Machines::new(3);
    let [one, two, three] = [1, 2, 3].map(|n| machines.start(n));
    let invitation = machines.found(&one, 1);
    assert_eq!(machines.join(&two, 2, &invitation), 2);
    let out = machines.identity(2);
    let remove = json!({ "node": "n2", "force": true });
    let _: serde_json::Value = one.call("Remove", remove).unwrap();
    drop(two);
    fill_a_message(&one);
    assert_eq!(machines.join(&three, 3, &invitation), 3);
    wait_for("the third is up", || three.state(1) == "up");
    let runtime = Runtime::new().unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(machines.addr(3)).await;
        let (client, name) = (Arc::clone(&out.client), tls::server_name(id(3)));
        let session = Session::connect(stream.unwrap(), client, name).await;
        let _ = session.unwrap().receive::<msg::Preface>().await;
    });
    wait_for("it is turned away for that", || {
        three.records().contains("Revoked")
    });
}

#[test]
fn who_shows_no_good_token_stays_out() {
    let machines = Machines::new(2);
    let (one, two) = (machines.start(1), machines.start(2));
    let good = machines.found(&one, 1);
    let refused = |by: &InvitationReply| {
        let parameters = json!({ "door": by.addr, "token": by.token, "ca_hash": by.ca_hash });
        match two.call::<JoinReply>("Join", parameters).unwrap_err() {
            varlink::Error::Reply { parameters, .. } => parameters["reason"].to_string(),
            e => panic!("{e}"),
        }
    };
    let with = |token: &str, ca_hash: &str| InvitationReply {
        token: token.to_owned(),
        ca_hash: ca_hash.to_owned(),
        ..good.clone()
    };
    let other = format!("sha256:{}", "0".repeat(64));
    assert_eq!(refused(&with(&good.token, &other)), "\"other-cluster\"");
    assert_eq!(refused(&with("nonsense", &good.ca_hash)), "\"bad-request\"");
    let (id, secret) = good.token.split_once('.').unwrap();
    let guessed = format!("{id}.{}", "a".repeat(secret.len()));
    assert_eq!(refused(&with(&guessed, &good.ca_hash)), "\"token-unknown\"");
    let _: serde_json::Value = one.call("DropToken", json!({ "id": id })).unwrap();
    assert_eq!(refused(&good), "\"token-used-up\"");
    assert_eq!(one.council().state().nodes.len(), 1);
    assert!(one.records().contains("no such token"));
    assert!(!one.records().contains(secret));
}

#[test]
fn a_machine_that_differs_does_not_join_and_hears_in_what() {
    let machines = Machines::new(2);
    let one = machines.start(1);
    let line = machines.found(&one, 1);
    let own = facts::read().unwrap();
    let mut few = own.clone();
    let lost = few.features.pop_first().unwrap();
    let others = [
        (
            Facts {
                kernel: "6.1.0 #1".to_owned(),
                ..own.clone()
            },
            "kernel 6.1.0 #1".to_owned(),
        ),
        (
            Facts {
                wire: own.wire + 1,
                ..own.clone()
            },
            format!("modules of version {}", own.wire + 1),
        ),
        (few, format!("lacks {lost}")),
        (
            Facts {
                xfeatures: own.xfeatures | 1 << 40,
                ..own.clone()
            },
            "state".to_owned(),
        ),
    ];
    for (other, what) in others {
        let two = machines.start_as(2, other);
        let refused = two.call::<JoinReply>(
            "Join",
            json!({
                "door": line.addr, "token": line.token, "ca_hash": line.ca_hash,
                "addr": machines.addr(2).to_string(),
            }),
        );
        let said = format!("{:?}", refused.unwrap_err());
        assert!(
            said.contains(&what) && said.contains("facts-differ"),
            "{what:?}: {said}"
        );
        assert!(!two.stage.has_seat());
    }
    assert_eq!(one.council().state().nodes.len(), 1);
    // Nothing of these tries stands in its way.
    let two = machines.start(2);
    assert_eq!(machines.join(&two, 2, &line), 2);
}

#[test]
fn who_speaks_another_version_is_told_both() {
    let machines = Machines::new(1);
    let one = machines.start(1);
    let line = machines.found(&one, 1);
    let runtime = Runtime::new().unwrap();
    let theirs: Hello = runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(machines.addr(1))
            .await
            .unwrap();
        let client = tls::join_client(line.ca_hash.parse().unwrap()).unwrap();
        let name = tls::server_name(id(1));
        let mut session = Session::connect(stream, client, name).await.unwrap();
        let hello = Hello {
            version: msg::VERSION + 1,
            realtime_ns: 0,
        };
        session.send(&hello).await.unwrap();
        let theirs = session.receive().await.unwrap();
        // And no more.
        assert!(session.receive::<Hello>().await.is_err());
        theirs
    });
    assert_eq!(theirs.version, msg::VERSION);
}

#[test]
fn nodes_that_differ_do_not_speak_with_each_other() {
    let pair = Pair::new();
    let mut old = facts::read().unwrap();
    old.kernel = "6.1.0 #1".to_owned();
    old.features.insert("avx1024".to_owned());
    let (one, two) = (pair.start(1), pair.start_as(2, old));
    for (running, lacking) in [
        (&one, "processor here lacks avx1024"),
        (&two, "processor there lacks avx1024"),
    ] {
        wait_for("it is said what differs", || {
            let all = running.records();
            all.contains("connection-refused") && all.contains("6.1.0 #1") && all.contains(lacking)
        });
    }
    assert_ne!(one.state(2), "up");
    assert_ne!(two.state(1), "up");
    assert_eq!(one.links(Class::Control), 0);
    drop(two);
    let two = pair.start(2);
    wait_for("equal nodes link", || {
        one.state(2) == "up" && two.state(1) == "up"
    });
}

#[test]
fn machines_join_a_cluster_whose_kernel_has_changed() {
    let machines = Machines::new(2);
    let one = machines.start(1);
    machines.found(&one, 1);
    drop(one);
    let mut next = facts::read().unwrap();
    next.kernel = "next".to_owned();
    let one = machines.start_as(1, next.clone());
    wait_for("what it is like now is agreed on", || {
        one.council().state().nodes[&id(1)].facts == next
    });
    let line: InvitationReply = one.call("CreateToken", json!({ "ttl_s": 60 })).unwrap();
    let two = machines.start_as(2, next);
    assert_eq!(machines.join(&two, 2, &line), 2);
    wait_for("both up", || one.state(2) == "up" && two.state(1) == "up");
}
