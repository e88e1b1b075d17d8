// SPDX-License-Identifier: MIT OR Apache-2.0

//! Nodes are lost for good, and with them the majority.

use super::*;

fn try_recover(node: &Running, lost: &[&str]) -> Result<serde_json::Value, varlink::Error> {
    node.call("Recover", json!({ "without": lost }))
}

/// It takes a while to be sure that nobody answers.
fn recover(node: &Running, lost: &[&str]) {
    wait_for("it goes on", || match try_recover(node, lost) {
        Ok(_) => true,
        e => {
            let why = reason(e);
            assert!(
                ["not-fenced", "not-named", "not-lost"].contains(&why.as_str()),
                "{why}"
            );
            false
        }
    });
}

/// Values are base64: of blue, green and red here.
fn set(node: &Running, name: &str, value: &str) {
    let set: Result<serde_json::Value, _> =
        node.call("SetValue", json!({ "name": name, "value": value }));
    set.unwrap();
}

fn value(node: &Running, name: &str) -> String {
    let got: serde_json::Value = node.call("GetValue", json!({ "name": name })).unwrap();
    got["value"].as_str().unwrap().to_owned()
}

#[test]
fn the_second_of_two_goes_on_without_the_first() {
    let pair = Pair::new();
    let (one, two) = (pair.start(1), pair.start(2));
    linked(&one, &two, 1);
    set(&one, "color", "Ymx1ZQ==");
    wait_for("it hears who leads", || two.council().status().has_majority);
    assert_eq!(reason(try_recover(&two, &["n1"])), "has-majority");
    wait_for("it hears what is agreed on", || {
        two.council().state().kv.get("color").is_some()
    });
    drop(one);
    wait_for("nobody leads any more", || {
        !two.council().status().has_majority
    });
    assert_eq!(reason(try_recover(&two, &["n1"])), "not-fenced");
    recover(&two, &["n1"]);
    assert_eq!(value(&two, "color"), "Ymx1ZQ==");
    set(&two, "color", "Z3JlZW4=");
    let state = two.council().state();
    assert_eq!(state.nodes.keys().copied().collect::<Vec<_>>(), [id(2)]);
    assert!(two.records().contains("\"action\":\"Recover\""));
    // It has never voted, so nobody can open the key of the old authority any more.
    wait_for("another authority is all there is", || {
        let state = two.council().state();
        let authority = &state.cluster.as_ref().unwrap().authority;
        authority.generation == 1 && authority.previous.is_none()
    });
    // The first has learnt nothing of it, and nobody listens to it.
    let one = pair.start(1);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(one.council().state().nodes.len(), 2);
    assert!(!two.records().contains("\"event\":\"link-up\""));
    assert_eq!(two.council().state().nodes.len(), 1);
    drop(one);
    // A machine joins, also after a restart.
    drop(two);
    let two = pair.start(2);
    let line: InvitationReply = two.call("CreateToken", json!({ "ttl_s": 60 })).unwrap();
    let more = Machines::new(1);
    let new = more.start(1);
    assert_eq!(more.join(&new, 1, &line), 3);
    linked(&new, &two, 1);
    assert_eq!(value(&new, "color"), "Z3JlZW4=");
}

#[test]
fn the_others_follow_who_goes_on() {
    let (_machines, all) = formed::<4>();
    set(&all[0], "color", "Ymx1ZQ==");
    let votes = |n: u16| all[0].council().status().voters.contains(&id(n));
    let learner = (1..=4).find(|n| !votes(*n)).unwrap();
    let voter = (2..=4).find(|n| votes(*n)).unwrap();
    let mut all: std::collections::BTreeMap<u16, Running> = (1..).zip(all).collect();
    for node in all.values() {
        wait_for("all know it", || {
            node.council().state().kv.get("color").is_some()
        });
    }
    all.retain(|n, _| [learner, voter].contains(n));
    let lost: Vec<String> = (1..=4)
        .filter(|n| !all.contains_key(n))
        .map(|n| format!("n{n}"))
        .collect();
    let lost: Vec<&str> = lost.iter().map(String::as_str).collect();
    let (voter, learner) = (&all[&voter], &all[&learner]);
    wait_for("one is not enough", || {
        reason(try_recover(voter, &lost[..1])) == "not-named"
    });
    recover(voter, &lost);
    for node in [voter, learner] {
        wait_for("both know", || {
            let state = node.council().state();
            state.nodes.len() == 2 && node.council().status().has_majority
        });
        set(node, "color", "cmVk");
    }
    assert_eq!(value(learner, "color"), "cmVk");
}
