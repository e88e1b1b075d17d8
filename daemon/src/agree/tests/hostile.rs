// SPDX-License-Identifier: MIT OR Apache-2.0

//! Nodes that lie to those who agree with them.

use serde_json::json;

use super::*;

const SEEN: Offence = Offence::ImpossibleRequest;

fn accused(all: &[Agreement], by: u16, node: u16) -> bool {
    let states = all.iter().map(|a| Arc::clone(&a.watch().borrow()));
    let mut states = states.collect::<Vec<_>>().into_iter();
    states.all(|s| s.nodes[&n(node)].conduct.accusers.contains_key(&n(by)))
}

async fn settled(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(120), "never: {what}");
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_accused_by_most_is_heard_no_more() {
    let (cluster, all) = Cluster::three_members(21).await;
    all[0].accuse(n(3), 3, SEEN).await;
    assert!(accused(&all[..1], 1, 3) && !all[0].watch().borrow().is_quarantined(n(3)));
    all[1].accuse(n(3), 3, SEEN).await;
    settled("all know", || {
        all.iter().all(|a| a.watch().borrow().is_quarantined(n(3)))
    })
    .await;
    // What it proposes is refused, and it is told why; nobody votes for it or follows it.
    let outcome = all[2].propose(put("a", "1")).await.unwrap();
    assert_eq!(outcome, Outcome::Refused(state::Refusal::Quarantined));
    let vote = br#"{"vote":{"vote":{"leader_id":{"term":99,"voted_for":3},"committed":false},"last_log_id":null}}"#;
    let answer = all[1].serve(n(3), vote).await;
    assert_eq!(answer, br#"{"refused":"bad"}"#);
    // The others go on, and it hears what they agree on.
    all[1].propose(put("a", "2")).await.unwrap();
    settled("it hears", || all[2].watch().borrow().kv.get("a").is_some()).await;
    // To accuse it once more is of no matter.
    all[0].accuse(n(3), 3, SEEN).await;
    cluster.assert_honest();
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_hides_that_it_is_accused_is_outvoted() {
    let (cluster, all) = Cluster::three_members(22).await;
    assert_eq!(all[1].status().leader, Some(n(1)));
    cluster.wires.lock().unwrap().hiding = set(&[1]);
    let begun = Instant::now();
    // The other saw it a little later.
    let late = async {
        sleep(Duration::from_secs(3)).await;
        all[2].accuse(n(1), 1, SEEN).await;
    };
    tokio::join!(all[1].accuse(n(1), 1, SEEN), late);
    settled("it is quarantined", || {
        let others = all[1..].iter();
        others
            .clone()
            .all(|a| a.watch().borrow().is_quarantined(n(1)))
    })
    .await;
    assert!(
        begun.elapsed() < Duration::from_secs(90),
        "{:?}",
        begun.elapsed()
    );
    assert_ne!(all[1].status().leader, Some(n(1)));
    all[2].propose(put("a", "1")).await.unwrap();
    cluster.assert_honest();
}

#[tokio::test(start_paused = true)]
async fn one_that_accuses_its_leader_alone_follows_it_again() {
    let (cluster, all) = Cluster::three_members(23).await;
    cluster.wires.lock().unwrap().hiding = set(&[1]);
    let alone = all[1].accuse(n(1), 1, SEEN);
    let watched = async {
        // It never counts as cut off: that is after so long, and `peer_dead_after_s` more.
        let mut longest = Duration::ZERO;
        for _ in 0..600 {
            sleep(Duration::from_millis(100)).await;
            longest = longest.max(all[1].status().silent_for.unwrap_or_default());
            assert_eq!(all[2].status().leader, Some(n(1)));
        }
        longest
    };
    let longest = tokio::select! {
        () = alone => panic!("it was agreed on"),
        longest = watched => longest,
    };
    assert!(
        longest > Duration::from_secs(4),
        "it turned away: {longest:?}"
    );
    assert!(longest < Duration::from_secs(9), "and back: {longest:?}");
    cluster.assert_honest();
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_says_two_things_is_caught() {
    let (cluster, all) = Cluster::three_members(24).await;
    cluster.wires.lock().unwrap().liars = set(&[1]);
    // What it says to the second is not what it has in its log.
    let status = all[1].status();
    let leader = json!({"term": status.term, "voted_for": 1});
    let last = status.last_applied.unwrap();
    let entry = |name: &str| {
        let id = |index| json!({"leader_id": status.term, "index": index});
        let command = json!({"rename": {"node": 2, "name": name}});
        let rpc = json!({
            "vote": {"leader_id": leader, "committed": true},
            "prev_log_id": id(last), "leader_commit": id(last),
            "entries": [{"log_id": id(last + 1), "payload": {"Normal": command}}],
        });
        serde_json::to_vec(&json!({"append": {"has_majority": true, "rpc": rpc}})).unwrap()
    };
    let done = all[1].serve(n(1), &entry("one")).await;
    assert_eq!(done, br#"{"append":"Success"}"#);
    let caught = all[1].serve(n(1), &entry("other")).await;
    assert_eq!(caught, br#"{"refused":"bad"}"#);
    let seen = cluster.wires.lock().unwrap().offences.clone();
    assert!(
        seen.contains(&(n(2), n(1), Offence::TwoEntries)),
        "{seen:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn nobody_proposes_what_is_for_another_to_propose() {
    let (cluster, all) = Cluster::three_members(25).await;
    cluster.wires.lock().unwrap().liars = set(&[3]);
    let dead = Command::DeclareDead {
        node: n(2),
        since: 2,
    };
    let not_yours = Outcome::Refused(state::Refusal::NotYours);
    assert_eq!(all[2].propose(dead.clone()).await.unwrap(), not_yours);
    let refused = all[2].decree(dead.clone()).await;
    assert!(matches!(refused, Err(Error::NotLeader(Some(l))) if l == n(1)));
    let accuse = Command::Accuse {
        by: n(2),
        node: n(1),
        since: 1,
        offence: SEEN,
    };
    assert_eq!(all[2].propose(accuse).await.unwrap(), not_yours);
    let seen = cluster.wires.lock().unwrap().offences.clone();
    let by_one = |offence| (n(1), n(3), offence);
    assert_eq!(
        seen,
        [by_one(Offence::LeadersWish), by_one(Offence::AnothersWish)]
    );
    assert_eq!(all[0].decree(dead).await.unwrap(), Outcome::Epoch(4));
}
