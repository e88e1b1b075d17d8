// SPDX-License-Identifier: MIT OR Apache-2.0

//! What opens the key of the authority, and who has it.

use super::*;
use crate::msg::Request;
use crate::msg::govern::GiveSeal;

#[test]
fn a_voter_that_lost_its_seal_gets_it_again() {
    let (machines, [one, two, three]) = formed();
    let seal = Store::open(&machines.config(3).state).unwrap().seal();
    wait_for("it has a seal", || seal.exists());
    let before = std::fs::read(&seal).unwrap();
    drop(three);
    std::fs::remove_file(&seal).unwrap();
    let three = machines.start(3);
    wait_for("it has the seal again", || {
        std::fs::read(&seal).is_ok_and(|now| now == before)
    });
    // It can do what needs it.
    let _: serde_json::Value = three.call("RotateAuthority", json!({})).unwrap();
    for node in [&one, &two, &three] {
        wait_for("all have a certificate of the next authority", || {
            let state = node.council().state();
            let authority = &state.cluster.as_ref().unwrap().authority;
            authority.generation == 1 && authority.previous.is_none()
        });
    }
}

#[test]
fn one_that_does_not_vote_gets_no_seal() {
    let pair = Pair::new();
    let (one, two) = (pair.start(1), pair.start(2));
    linked(&one, &two, 1);
    let give = Request::GiveSeal(GiveSeal {});
    let way = way(&two, 1);
    let asked = way.ask_once(give, PATIENCE);
    let refused = Runtime::new().unwrap().block_on(asked).unwrap_err();
    assert_eq!(refused.to_string(), "only voters have the seal");
    assert!(!Store::open(&pair.config(2).state).unwrap().seal().exists());
}
