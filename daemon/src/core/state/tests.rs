// SPDX-License-Identifier: MIT OR Apache-2.0

//! One command after the other, and many in any order.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::core::lock;
use crate::core::offence::Offence;

const DAY_MS: u64 = 24 * 3600 * 1000;
const NOW_MS: u64 = 1_800_000_000_000;

pub(in crate::core) fn id(n: u16) -> NodeId {
    NodeId::new(n).unwrap()
}

fn hash(n: u32) -> Hash {
    Hash::of(&n.to_le_bytes())
}

fn facts() -> Facts {
    Facts {
        kernel: "7.3.3 #1".to_owned(),
        features: ["avx2".to_owned()].into(),
        dead_after_ms: 5_000,
        ..Facts::default()
    }
}

/// Who could join as node `n`; `salt` tells one who does from another.
fn candidate(n: u16, salt: u32) -> Candidate {
    Candidate {
        node: id(n),
        name: format!("host-{salt}"),
        addr: SocketAddr::from(([10, 0, salt.to_le_bytes()[1], salt.to_le_bytes()[0]], 7400)),
        fingerprint: hash(salt),
        ends_ms: None,
        facts: facts(),
        nonce: Unique(salt.into()),
    }
}

fn found() -> Command {
    Command::Found {
        name: "here".to_owned(),
        id: Unique(7),
        ca: "first authority".to_owned(),
        sealed_key: vec![1, 2, 3],
        first: candidate(1, 1),
        now_ms: NOW_MS,
    }
}

fn token(id: &str, uses: u16, now_ms: u64) -> Command {
    Command::AddToken {
        id: id.to_owned(),
        secret: hash(1000),
        expires_ms: now_ms + DAY_MS,
        made_by_uid: 0,
        uses,
        now_ms,
    }
}

fn join(candidate: Candidate) -> Command {
    join_with("abcdef", candidate)
}

fn join_with(token: &str, candidate: Candidate) -> Command {
    Command::Join {
        token: token.to_owned(),
        secret: hash(1000),
        candidate,
        generation: 0,
        now_ms: NOW_MS + 1,
    }
}

fn remove(node: u16, since: u64) -> Command {
    Command::Remove {
        node: id(node),
        since,
        why: Why::Dead,
        now_ms: NOW_MS + 2,
    }
}

fn founded() -> State {
    let mut state = State::default();
    let outcome = state.apply(&found());
    assert_eq!(
        outcome,
        Outcome::Joined {
            node: id(1),
            epoch: 1
        }
    );
    assert_eq!(state.apply(&token("abcdef", 31, NOW_MS)), Outcome::Done);
    state
}

/// Founded, and `n` nodes in all.
pub(crate) fn of_nodes(n: u16) -> State {
    let mut state = founded();
    for n in 2..=n {
        let outcome = state.apply(&join(candidate(n, n.into())));
        let epoch = n.into();
        assert_eq!(outcome, Outcome::Joined { node: id(n), epoch });
    }
    state
}

/// Applies what must be refused, and must change nothing.
fn refused(state: &mut State, command: &Command) -> Refusal {
    let before = state.clone();
    match state.apply(command) {
        Outcome::Refused(why) => {
            assert_eq!(*state, before, "{command:?}");
            why
        }
        other => panic!("{command:?}: {other:?}"),
    }
}

fn unused(state: &State, token: &str) -> u16 {
    state.tokens[token].uses_left
}

#[test]
fn nothing_is_done_before_there_is_a_cluster() {
    let mut state = State::default();
    for command in [token("abcdef", 1, NOW_MS), remove(1, 1)] {
        assert_eq!(refused(&mut state, &command), Refusal::NotFounded);
    }
    state.apply(&found());
    let after = state.clone();
    assert!(matches!(state.apply(&found()), Outcome::Joined { .. }));
    assert_eq!(state, after);
    let Command::Found { first, .. } = found() else {
        unreachable!()
    };
    let another = Command::Found {
        name: "there".to_owned(),
        id: Unique(8),
        ca: "x".to_owned(),
        sealed_key: vec![1],
        first,
        now_ms: NOW_MS,
    };
    assert_eq!(refused(&mut state, &another), Refusal::AlreadyFounded);
}

#[test]
fn a_join_applied_twice_makes_one_node() {
    let mut state = founded();
    let command = join(Candidate {
        ends_ms: Some(NOW_MS + DAY_MS),
        ..candidate(2, 2)
    });
    let outcome = state.apply(&command);
    assert_eq!(
        outcome,
        Outcome::Joined {
            node: id(2),
            epoch: 2
        }
    );
    assert_eq!(state.ends_ms, [(hash(2), NOW_MS + DAY_MS)].into());
    let after = state.clone();
    assert_eq!(state.apply(&command), outcome);
    assert_eq!(state, after);
    assert_eq!(unused(&state, "abcdef"), 30);
    // Nor does it when the node is gone, or its number is another's.
    state.apply(&remove(2, 2));
    assert_eq!(refused(&mut state, &command), Refusal::JoinedBefore);
    for n in 3..=31 {
        state.apply(&join(candidate(n, n.into())));
    }
    state.apply(&token("more", 1, NOW_MS));
    state.apply(&join_with("more", candidate(2, 77)));
    assert_eq!(state.nodes[&id(2)].name, "host-77");
    state.apply(&remove(2, state.nodes[&id(2)].epoch));
    assert_eq!(refused(&mut state, &command), Refusal::FingerprintTaken);
}

#[test]
fn tokens_end_and_are_used_up() {
    let mut state = founded();
    state.apply(&token("once", 1, NOW_MS));
    let with = |token: &str, secret, now_ms| Command::Join {
        token: token.to_owned(),
        secret,
        candidate: candidate(2, 2),
        generation: 0,
        now_ms,
    };
    for unknown in [
        with("never", hash(1000), NOW_MS),
        with("once", hash(1001), NOW_MS),
    ] {
        assert_eq!(refused(&mut state, &unknown), Refusal::TokenUnknown);
    }
    state.apply(&with("once", hash(1000), NOW_MS));
    let third = Command::Join {
        token: "once".to_owned(),
        secret: hash(1000),
        candidate: candidate(3, 3),
        generation: 0,
        now_ms: NOW_MS,
    };
    assert_eq!(refused(&mut state, &third), Refusal::TokenUsedUp);
    // What made it does not make it again.
    assert_eq!(state.apply(&token("once", 1, NOW_MS)), Outcome::Done);
    assert_eq!(refused(&mut state, &third), Refusal::TokenUsedUp);

    let mut late = third.clone();
    if let Command::Join { token, now_ms, .. } = &mut late {
        *token = "abcdef".to_owned();
        *now_ms = NOW_MS + DAY_MS;
    }
    let why = Outcome::Refused(Refusal::TokenExpired);
    assert_eq!(state.apply(&late), why);
    assert!(!state.tokens.contains_key("abcdef"));
    assert_eq!(refused(&mut state, &late), Refusal::TokenUnknown);
}

#[test]
fn a_dropped_token_stays_dropped() {
    let mut state = founded();
    let drop = Command::DropToken {
        id: "abcdef".to_owned(),
    };
    for _ in 0..2 {
        assert_eq!(state.apply(&drop), Outcome::Done);
        assert_eq!(state.apply(&token("abcdef", 31, NOW_MS)), Outcome::Done);
    }
    let command = join(candidate(2, 2));
    assert_eq!(refused(&mut state, &command), Refusal::TokenUsedUp);
    let unknown = Command::DropToken {
        id: "never".to_owned(),
    };
    assert_eq!(refused(&mut state, &unknown), Refusal::TokenUnknown);
}

#[test]
fn there_are_so_many_tokens() {
    let mut state = founded();
    for n in 1..MAX_TOKENS {
        let outcome = state.apply(&token(&format!("t{n}"), 1, NOW_MS));
        assert_eq!(outcome, Outcome::Done);
    }
    let more = token("more", 1, NOW_MS);
    assert_eq!(refused(&mut state, &more), Refusal::TooManyTokens);
    state.apply(&Command::DropToken {
        id: "t7".to_owned(),
    });
    assert_eq!(state.apply(&more), Outcome::Done);
    assert_eq!(state.tokens.len(), MAX_TOKENS);
    assert!(!state.tokens.contains_key("t7"));
    // All ended: all go.
    state.apply(&token("later", 1, NOW_MS + DAY_MS));
    assert_eq!(state.tokens.keys().collect::<Vec<_>>(), ["later"]);
    let wrong = |id: &str, uses, life_ms| Command::AddToken {
        id: id.to_owned(),
        secret: hash(1),
        expires_ms: NOW_MS + life_ms,
        made_by_uid: 0,
        uses,
        now_ms: NOW_MS,
    };
    for command in [
        wrong("", 1, 1),
        wrong("UPPER", 1, 1),
        wrong(&"x".repeat(MAX_TOKEN_ID_BYTES + 1), 1, 1),
        wrong("x", 0, 1),
        wrong("x", 32, 1),
        wrong("x", 1, MAX_TOKEN_MS + 1),
    ] {
        assert_eq!(refused(&mut state, &command), Refusal::TokenInvalid);
    }
    assert_eq!(
        refused(&mut state, &wrong("x", 1, 0)),
        Refusal::TokenExpired
    );
    assert_eq!(
        refused(&mut state, &wrong("later", 1, 1)),
        Refusal::TokenExists
    );
}

#[test]
fn nobody_takes_what_is_anothers() {
    let mut state = of_nodes(2);
    let good = candidate(3, 3);
    let with = |change: &dyn Fn(&mut Candidate)| {
        let mut candidate = good.clone();
        change(&mut candidate);
        join(candidate)
    };
    for (command, why) in [
        (with(&|c| c.name = "host-2".to_owned()), Refusal::NameTaken),
        (with(&|c| c.name = "n2".to_owned()), Refusal::NameInvalid),
        (with(&|c| c.addr = candidate(2, 2).addr), Refusal::AddrTaken),
        (with(&|c| c.addr.set_port(0)), Refusal::AddrInvalid),
        (
            with(&|c| c.fingerprint = hash(1)),
            Refusal::FingerprintTaken,
        ),
        (with(&|c| c.node = id(4)), Refusal::NumberTaken),
        (with(&|c| c.node = id(2)), Refusal::NumberTaken),
        (
            with(&|c| c.facts.kernel = "x".repeat(1000)),
            Refusal::FactsInvalid,
        ),
    ] {
        assert_eq!(refused(&mut state, &command), why);
    }
    let other = with(&|c| c.facts.features.clear());
    let why = refused(&mut state, &other);
    assert_eq!(why.code(), "facts-differ");
    assert_eq!(
        why.to_string(),
        "the machine differs from n1: the processor there lacks avx2"
    );
    assert_eq!(unused(&state, "abcdef"), 30);
    let rename = |name: &str| Command::Rename {
        node: id(2),
        name: name.to_owned(),
    };
    let outcome = state.apply(&rename("host-2"));
    assert_eq!(outcome, Outcome::Done, "its own");
    assert_eq!(refused(&mut state, &rename("host-1")), Refusal::NameTaken);
    let move_to = |addr| Command::SetAddr { node: id(2), addr };
    let taken = move_to(candidate(1, 1).addr);
    assert_eq!(refused(&mut state, &taken), Refusal::AddrTaken);
    let addr = candidate(9, 9).addr;
    assert_eq!(state.apply(&move_to(addr)), Outcome::Done);
    assert_eq!(state.nodes[&id(2)].addr, addr);
    assert_eq!(state.epoch, 2, "nobody came or went");
}

#[test]
fn numbers_are_given_again_when_all_others_were() {
    let mut state = of_nodes(3);
    for (n, epoch) in [(3, 4), (2, 5)] {
        let outcome = state.apply(&remove(n, n.into()));
        assert_eq!(outcome, Outcome::Gone { node: id(n), epoch });
        assert_eq!(state.apply(&remove(n, n.into())), outcome, "twice");
    }
    for n in 4..=31 {
        assert_eq!(state.next_node(), NodeId::new(n));
        state.apply(&join(candidate(n, n.into())));
    }
    // n3 went before n2.
    state.apply(&token("more", 3, NOW_MS));
    for n in [3, 2] {
        assert_eq!(state.next_node(), NodeId::new(n));
        let outcome = state.apply(&join_with("more", candidate(n, u32::from(n) + 100)));
        assert!(matches!(outcome, Outcome::Joined { .. }), "{outcome:?}");
    }
    assert_eq!(state.next_node(), None);
    let last = join_with("more", candidate(5, 500));
    assert_eq!(refused(&mut state, &last), Refusal::ClusterFull);
    // What meant the one before does not remove the one after.
    assert_eq!(refused(&mut state, &remove(2, 2)), Refusal::NoSuchNode);
}

#[test]
fn who_is_removed_is_not_believed_any_more() {
    let mut state = of_nodes(2);
    let renewed = |fingerprint, since| Command::Renewed {
        node: id(2),
        since,
        fingerprint: hash(fingerprint),
        generation: 0,
        ends_ms: None,
        now_ms: NOW_MS,
    };
    assert_eq!(refused(&mut state, &renewed(50, 9)), Refusal::NoSuchNode);
    for n in 50..56 {
        assert_eq!(state.apply(&renewed(n, 2)), Outcome::Done);
        assert_eq!(state.apply(&renewed(n, 2)), Outcome::Done);
    }
    let revoked = |state: &State| state.revoked.keys().copied().collect::<BTreeSet<_>>();
    assert_eq!(revoked(&state), [hash(2), hash(50)].into());
    assert_eq!(
        refused(&mut state, &renewed(52, 2)),
        Refusal::FingerprintTaken
    );
    let leave = Command::Leave {
        node: id(2),
        since: 2,
        now_ms: NOW_MS,
    };
    assert!(matches!(state.apply(&leave), Outcome::Gone { .. }));
    let all = (50..56).chain([2]).map(hash).collect();
    assert_eq!(revoked(&state), all);
    assert_eq!(state.gone[&id(2)].why, Why::Left);
    assert_eq!(refused(&mut state, &remove(1, 1)), Refusal::LastNode);
    assert_eq!(refused(&mut state, &remove(9, 1)), Refusal::NoSuchNode);
}

#[test]
fn so_many_certificates_are_revoked() {
    let mut state = of_nodes(2);
    let revoke = |n| Command::Revoke {
        fingerprint: hash(n),
    };
    for n in 10_000..10_000 + u32::try_from(MAX_REVOKED - RESERVED).unwrap() {
        assert_eq!(state.apply(&revoke(n)), Outcome::Done);
    }
    assert_eq!(state.apply(&revoke(10_000)), Outcome::Done, "known");
    assert_eq!(refused(&mut state, &revoke(5)), Refusal::TooManyRevoked);
    // The way out is open: whoever there is has a certificate of another authority.
    let renewed = |n: u32, generation| Command::Renewed {
        node: id(2),
        since: 2,
        fingerprint: hash(n),
        generation,
        ends_ms: None,
        now_ms: NOW_MS,
    };
    let earlier = u32::try_from(MAX_EARLIER).unwrap();
    for n in 100..100 + earlier {
        assert_eq!(state.apply(&renewed(n, 0)), Outcome::Done);
    }
    assert_eq!(
        refused(&mut state, &renewed(200, 0)),
        Refusal::TooManyRevoked
    );
    state.apply(&Command::BeginRotation {
        generation: 1,
        ca: "second".to_owned(),
        sealed_key: vec![4],
    });
    assert_eq!(state.apply(&renewed(200, 1)), Outcome::Done);
    // And nodes can be taken out.
    let gone = state.apply(&remove(2, 2));
    assert!(matches!(gone, Outcome::Gone { .. }), "{gone:?}");
}

#[test]
fn a_node_has_so_many_certificates_and_those_that_run_out_are_forgotten() {
    const LIFE_MS: u64 = 7 * DAY_MS;
    let mut state = of_nodes(2);
    let renewed_for = |n: u32, now_ms, life_ms| Command::Renewed {
        node: id(2),
        since: 2,
        fingerprint: hash(n),
        generation: 0,
        ends_ms: Some(now_ms + life_ms),
        now_ms,
    };
    let renewed = |n: u32, now_ms| renewed_for(n, now_ms, LIFE_MS);
    // When the first one runs out is not known here.
    let many = u32::try_from(MAX_EARLIER).unwrap() + 1;
    for n in 100..100 + many {
        assert_eq!(state.apply(&renewed(n, NOW_MS)), Outcome::Done);
    }
    assert_eq!(state.revoked.keys().collect::<Vec<_>>(), [&hash(2)]);
    let more = |days| renewed(200, NOW_MS + days * DAY_MS);
    assert_eq!(refused(&mut state, &more(7)), Refusal::TooManyCertificates);
    assert_eq!(state.apply(&more(8)), Outcome::Done);
    // Years of ordinary life leave nothing behind.
    let mut now_ms = NOW_MS + 20 * DAY_MS;
    for turn in 0..1000 {
        // The shortest there is, or a week.
        let life_ms = if turn < 500 { 60_000 } else { LIFE_MS };
        let outcome = state.apply(&renewed_for(1000 + turn, now_ms, life_ms));
        assert_eq!(outcome, Outcome::Done, "{turn}");
        now_ms += life_ms / 3;
    }
    assert_eq!(state.revoked.keys().collect::<Vec<_>>(), [&hash(2)]);
    assert_eq!(state.ends_ms.len(), MAX_EARLIER + 1);
    // What is revoked is forgotten when there is little room and it has run out.
    state.apply(&remove(2, 2));
    assert!(state.revoked.contains_key(&hash(1999)));
    for n in 10_000..10_000 + u32::try_from(MAX_REVOKED / 2).unwrap() {
        state.apply(&Command::Revoke {
            fingerprint: hash(n),
        });
    }
    let (late, own) = (NOW_MS + 10_000 * DAY_MS, hash(1));
    let renewed = Command::Renewed {
        node: id(1),
        since: 1,
        fingerprint: hash(9),
        generation: 0,
        ends_ms: None,
        now_ms: late,
    };
    assert_eq!(state.apply(&renewed), Outcome::Done);
    assert!(!state.revoked.contains_key(&hash(1999)) && state.ends_ms.is_empty());
    assert!(state.revoked.contains_key(&hash(2)) && state.nodes[&id(1)].earlier == [own]);
}

#[test]
fn who_joins_must_be_like_the_nodes_are_now() {
    let mut state = of_nodes(2);
    let mut next = facts();
    next.kernel = "next".to_owned();
    let describe = |n: u16, since, facts: &Facts| Command::Describe {
        node: id(n),
        since,
        facts: facts.clone(),
    };
    let mut new = candidate(3, 3);
    new.facts = next.clone();
    for n in 1..=2 {
        let differs = refused(&mut state, &join(new.clone()));
        assert!(matches!(differs, Refusal::FactsDiffer { node, .. } if node == id(n)));
        let other = describe(n, 99, &next);
        assert_eq!(refused(&mut state, &other), Refusal::NoSuchNode);
        assert_eq!(state.apply(&describe(n, n.into(), &next)), Outcome::Done);
    }
    let joined = state.apply(&join(new));
    assert!(matches!(joined, Outcome::Joined { .. }), "{joined:?}");
    next.kernel = "x".repeat(10_000);
    let long = describe(1, 1, &next);
    assert_eq!(refused(&mut state, &long), Refusal::FactsInvalid);
}

#[test]
fn an_authority_that_nobody_has_the_key_of_is_replaced_whatever_is_underway() {
    let mut state = of_nodes(2);
    let replace = |generation, ca: &str| Command::ReplaceAuthority {
        generation,
        ca: ca.to_owned(),
        sealed_key: vec![5],
    };
    state.apply(&Command::BeginRotation {
        generation: 1,
        ca: "second".to_owned(),
        sealed_key: vec![4],
    });
    for wrong in [
        replace(1, "third"),
        replace(3, "third"),
        replace(2, "second"),
    ] {
        assert_eq!(refused(&mut state, &wrong), Refusal::NoRotation);
    }
    let outcome = state.apply(&replace(2, "third"));
    assert_eq!(outcome, Outcome::Rotating { generation: 2 });
    let all = state.authorities().collect::<String>();
    assert_eq!(all, "thirdsecondfirst authority");
}

#[test]
fn the_authority_changes_when_all_have_a_certificate_of_the_new_one() {
    let mut state = of_nodes(2);
    state.apply(&Command::Revoke {
        fingerprint: hash(90),
    });
    let begin = |generation, ca: &str| Command::BeginRotation {
        generation,
        ca: ca.to_owned(),
        sealed_key: vec![4],
    };
    let finish = |generation| Command::FinishRotation { generation };
    let renewed = |n: u16, fingerprint, generation| Command::Renewed {
        node: id(n),
        since: n.into(),
        fingerprint: hash(fingerprint),
        generation,
        ends_ms: None,
        now_ms: NOW_MS,
    };
    let adopted = |n: u16, fingerprint| Command::Adopted {
        node: id(n),
        since: n.into(),
        fingerprint: hash(fingerprint),
    };
    for generation in [0, 1] {
        let command = finish(generation);
        assert_eq!(refused(&mut state, &command), Refusal::NoRotation);
    }
    let early = renewed(1, 60, 1);
    assert_eq!(refused(&mut state, &early), Refusal::OtherAuthority);
    for _ in 0..2 {
        let outcome = state.apply(&begin(1, "second"));
        assert_eq!(outcome, Outcome::Rotating { generation: 1 });
    }
    assert_eq!(
        refused(&mut state, &begin(2, "third")),
        Refusal::RotationUnderway
    );
    assert!(state.authorities().eq(["second", "first authority"]));
    // One of the old authority may still come.
    let outcome = state.apply(&join(candidate(3, 3)));
    assert!(matches!(outcome, Outcome::Joined { .. }));
    state.apply(&Command::Revoke {
        fingerprint: hash(91),
    });
    for n in 1..=3 {
        let print = 60 + u32::from(n);
        let outcome = state.apply(&renewed(n, print, 1));
        assert_eq!(outcome, Outcome::Done);
        // It was made, and may be lost on the way.
        for (said, why) in [
            (finish(1), Refusal::NotRenewed { node: id(n) }),
            (adopted(n, 50), Refusal::OtherCertificate),
        ] {
            assert_eq!(refused(&mut state, &said), why);
        }
        assert_eq!(state.apply(&adopted(n, print)), Outcome::Done);
    }
    let back = renewed(1, 99, 0);
    assert_eq!(refused(&mut state, &back), Refusal::OtherAuthority);
    for _ in 0..2 {
        assert_eq!(state.apply(&finish(1)), Outcome::Done);
    }
    assert!(state.authorities().eq(["second"]));
    assert_eq!(state.revoked.keys().collect::<Vec<_>>(), [&hash(91)]);
    let late = join(candidate(4, 4));
    assert_eq!(refused(&mut state, &late), Refusal::OtherAuthority);
    // What began one that is over does not bring an authority back.
    for _ in 0..2 {
        let old = begin(1, "second");
        assert_eq!(refused(&mut state, &old), Refusal::NoRotation);
        state.apply(&begin(2, "third"));
        for n in 1..=3 {
            let print = 70 + u32::from(n);
            state.apply(&renewed(n, print, 2));
            state.apply(&adopted(n, print));
        }
        assert_eq!(state.apply(&finish(2)), Outcome::Done);
    }
    assert!(state.authorities().eq(["third"]));
}

#[test]
fn json_is_read_strictly() {
    let mut state = of_nodes(2);
    state.apply(&remove(2, 2));
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state);
    for (from, to) in [
        ("\"epoch\":3", "\"epoch\":3,\"more\":1"),
        ("\"nodes\":{\"1\"", "\"nodes\":{\"32\""),
        ("\"name\":\"host-1\"", "\"name\":\"host-1\",\"x\":null"),
        ("\"sealed_key\":\"AQID\"", "\"sealed_key\":\"AQI\""),
    ] {
        let wrong = text.replacen(from, to, 1);
        assert_ne!(wrong, text, "{from}");
        assert!(serde_json::from_str::<State>(&wrong).is_err(), "{to}");
    }
    let command = serde_json::to_string(&remove(2, 2)).unwrap();
    assert_eq!(
        command,
        "{\"remove\":{\"node\":2,\"since\":2,\"why\":\"dead\",\"now_ms\":1800000000002}}"
    );
    let wrong = command.replace("\"since\"", "\"x\":1,\"since\"");
    assert!(serde_json::from_str::<Command>(&wrong).is_err());
}

/// The word of a refusal is the one it has in JSON.
#[test]
fn words_of_refusals() {
    for refusal in [
        Refusal::TokenUsedUp,
        Refusal::TooManyRevoked,
        Refusal::NotRenewed { node: id(3) },
        Refusal::FactsDiffer {
            node: id(1),
            differences: Vec::new(),
        },
    ] {
        let json = serde_json::to_string(&refusal).unwrap();
        assert!(json.contains(&format!("\"{}\"", refusal.code())), "{json}");
    }
}

fn any_candidate() -> impl Strategy<Value = Candidate> {
    (1_u16..=31, 1_u32..12, any::<bool>(), 0_u128..12).prop_map(|(n, salt, odd, nonce)| {
        let mut candidate = candidate(n, salt);
        if odd {
            candidate.nonce = Unique(nonce);
        }
        candidate
    })
}

#[test]
fn the_dead_may_come_back_in_another_epoch() {
    let mut state = of_nodes(3);
    let dead = |since| Command::DeclareDead { node: id(2), since };
    let back = |ended| Command::ComeBack { node: id(2), ended };
    assert_eq!(refused(&mut state, &dead(1)), Refusal::OtherPresence);
    assert_eq!(state.apply(&dead(2)), Outcome::Epoch(4));
    assert_eq!(state.apply(&dead(2)), Outcome::Epoch(4), "it is said once");
    assert_eq!(
        (state.epoch, state.nodes[&id(2)].presence.current()),
        (4, None)
    );
    assert_eq!(state.nodes[&id(2)].epoch, 2, "it is the same node");

    assert_eq!(refused(&mut state, &back(3)), Refusal::OtherPresence);
    assert_eq!(state.apply(&back(4)), Outcome::Epoch(5));
    assert_eq!(state.apply(&back(4)), Outcome::Epoch(5));
    assert_eq!(state.nodes[&id(2)].presence.current(), Some(5));
    assert_eq!(
        refused(&mut state, &dead(2)),
        Refusal::OtherPresence,
        "late news"
    );
    assert_eq!(state.apply(&dead(5)), Outcome::Epoch(6));
    assert_eq!(
        refused(&mut state, &back(4)),
        Refusal::OtherPresence,
        "late news"
    );
    state.apply(&remove(2, 2));
    assert_eq!(refused(&mut state, &back(6)), Refusal::NoSuchNode);
}

/// A session of a node takes a lock of its own.
pub(super) fn lock_of(session: u128, node: u16, since: u64) -> Command {
    Command::Lock(lock::Command::Acquire {
        session: Unique(session),
        opening: Some(lock::Opening {
            owner: lock::Owner {
                node: id(node),
                since,
                uid: 0,
            },
            parent: None,
            ttl_ms: 60_000,
            keeps: false,
        }),
        serial: 1,
        name: format!("of-{session}"),
        mode: lock::Mode::Write,
        wait: false,
    })
}

#[test]
fn one_that_is_declared_dead_holds_no_lock() {
    let mut state = of_nodes(3);
    state.apply(&lock_of(2, 2, 2));
    state.apply(&lock_of(3, 3, 3));
    assert_eq!(state.locks.sessions().len(), 2);
    state.apply(&Command::DeclareDead {
        node: id(2),
        since: 2,
    });
    assert!(state.locks.session(Unique(2)).is_none());
    assert!(state.locks.session(Unique(3)).is_some());
}

fn any_command() -> impl Strategy<Value = Command> {
    let node = || (1_u16..8).prop_map(id);
    let now = || (0_u64..10).prop_map(|d| NOW_MS + d * DAY_MS / 4);
    let name = || prop_oneof!["host-[1-9]", "n[1-4]", "x"];
    let fingerprint = || (0_u32..20).prop_map(hash);
    let authority = || prop_oneof!["first authority", "[a-c]"];
    let generation = || 0_u32..3;
    prop_oneof![
        1 => any_candidate().prop_map(|first| {
            let Command::Found { name, id, ca, sealed_key, now_ms, .. } = found() else {
                unreachable!()
            };
            Command::Found { name, id, ca, sealed_key, first, now_ms }
        }),
        3 => ("[a-c]", 0_u16..4, now()).prop_map(|(id, uses, now)| token(&id, uses, now)),
        1 => "[a-c]".prop_map(|id| Command::DropToken { id }),
        12 => ("[a-c]", any_candidate(), generation(), now(), any::<bool>()).prop_map(
            |(token, candidate, generation, now_ms, known)| Command::Join {
                token,
                secret: hash(if known { 1000 } else { 1001 }),
                candidate,
                generation,
                now_ms,
            }
        ),
        2 => (node(), name()).prop_map(|(node, name)| Command::Rename { node, name }),
        1 => (node(), 0_u32..9).prop_map(|(node, salt)| Command::SetAddr {
            node,
            addr: candidate(1, salt).addr,
        }),
        1 => node().prop_map(|node| Command::Cordon { node }),
        1 => node().prop_map(|node| Command::Uncordon { node }),
        3 => (node(), 0_u64..20, now()).prop_map(|(node, since, now_ms)| Command::Remove {
            node,
            since,
            why: Why::Removed,
            now_ms,
        }),
        1 => (node(), 0_u64..20, now())
            .prop_map(|(node, since, now_ms)| Command::Leave { node, since, now_ms }),
        3 => (node(), 0_u64..20).prop_map(|(node, since)| Command::DeclareDead { node, since }),
        3 => (node(), 0_u64..20).prop_map(|(node, ended)| Command::ComeBack { node, ended }),
        9 => (node(), node(), 0_u64..20, 0_usize..3).prop_map(|(by, node, since, which)| Command::Accuse {
            by,
            node,
            since,
            offence: Offence::ALL[which],
        }),
        2 => (node(), 0_u64..20).prop_map(|(node, since)| Command::Pardon { node, since }),
        3 => (node(), 0_u64..20, fingerprint(), generation()).prop_map(
            |(node, since, fingerprint, generation)| Command::Renewed {
                node,
                since,
                fingerprint,
                generation,
                ends_ms: (since % 2 == 0).then_some(since),
                now_ms: since,
            }
        ),
        3 => (node(), 0_u64..20, fingerprint()).prop_map(|(node, since, fingerprint)| Command::Adopted {
            node,
            since,
            fingerprint,
        }),
        1 => fingerprint().prop_map(|fingerprint| Command::Revoke { fingerprint }),
        1 => (node(), 0_u64..20).prop_map(|(node, since)| Command::Describe {
            node,
            since,
            facts: facts(),
        }),
        1 => (authority(), generation()).prop_map(|(ca, generation)| Command::BeginRotation {
            generation,
            ca,
            sealed_key: vec![9],
        }),
        1 => generation().prop_map(|generation| Command::FinishRotation { generation }),
    ]
}

/// Makes commands that name a node mean the one that is there, and joins take the next number,
/// so that more than refusals come of them.
fn aim(state: &State, command: &mut Command) {
    match command {
        Command::Join { candidate, .. } => candidate.node = state.next_node().unwrap_or(id(1)),
        Command::Remove { node, since, .. }
        | Command::Leave { node, since, .. }
        | Command::Renewed { node, since, .. }
        | Command::Adopted { node, since, .. }
        | Command::Describe { node, since, .. } => {
            if let Some(member) = state.nodes.get(node) {
                *since = member.epoch;
            }
        }
        Command::Accuse { node, since, .. } | Command::Pardon { node, since } => {
            if let Some(member) = state.nodes.get(node) {
                *since = member.answers_since();
            }
        }
        Command::DeclareDead { node, since } => {
            if let Some(member) = state.nodes.get(node) {
                *since = member.presence.since;
            }
        }
        Command::ComeBack { node, ended } => {
            if let Some(at) = state.nodes.get(node).and_then(|m| m.presence.ended) {
                *ended = at;
            }
        }
        _ => {}
    }
}

fn holds(state: &State) -> Result<(), TestCaseError> {
    let unique = |count: usize, what: &str| {
        prop_assert_eq!(count, state.nodes.len(), "{}", what);
        Ok(())
    };
    let nodes = || state.nodes.values();
    unique(
        nodes().map(|m| &m.name).collect::<BTreeSet<_>>().len(),
        "names",
    )?;
    unique(
        nodes().map(|m| m.addr).collect::<BTreeSet<_>>().len(),
        "addrs",
    )?;
    unique(
        nodes().map(|m| m.nonce).collect::<BTreeSet<_>>().len(),
        "nonces",
    )?;
    unique(
        nodes().map(|m| m.epoch).collect::<BTreeSet<_>>().len(),
        "epochs",
    )?;
    let prints: Vec<Hash> = nodes()
        .flat_map(|m| m.earlier.iter().copied().chain([m.fingerprint]))
        .collect();
    let distinct: BTreeSet<Hash> = prints.iter().copied().collect();
    prop_assert_eq!(distinct.len(), prints.len(), "fingerprints");
    prop_assert!(state.nodes.keys().all(|n| !state.gone.contains_key(n)));
    prop_assert!(nodes().all(|m| m.epoch <= state.epoch && m.earlier.len() <= MAX_EARLIER));
    for m in nodes() {
        let ended = m.presence.ended.unwrap_or(state.epoch);
        prop_assert!(
            m.epoch <= m.presence.since && m.presence.since <= ended && ended <= state.epoch
        );
        let conduct = &m.conduct;
        prop_assert!(!conduct.quarantined || m.presence.ended.is_some());
        prop_assert!(!conduct.quarantined || conduct.accusers.len() > 1);
        prop_assert!(m.answers_since() <= state.epoch);
        for by in conduct.accusers.keys().filter(|_| !conduct.quarantined) {
            prop_assert!(state.nodes.contains_key(by) && !state.is_quarantined(*by));
        }
    }
    prop_assert_eq!(state.cluster.is_none(), state.nodes.is_empty());
    if let Some(cluster) = &state.cluster {
        prop_assert!(nodes().all(|m| cluster.authority.believes(m.generation)));
        if cluster.authority.generation == 0 {
            let all = state.gone.values().flat_map(|g| &g.fingerprints);
            prop_assert!(all.clone().all(|f| state.revoked.contains_key(f)));
        }
    }
    prop_assert!(state.tokens.len() <= MAX_TOKENS && state.revoked.len() <= MAX_REVOKED);
    Ok(())
}

proptest! {
    #[test]
    fn whatever_comes_in_whatever_order(
        commands in proptest::collection::vec((any_command(), any::<bool>()), 1..80)
    ) {
        let mut state = founded();
        for (mut command, aimed) in commands {
            if aimed {
                aim(&state, &mut command);
            }
            let before = state.clone();
            let outcome = state.apply(&command);
            holds(&state)?;

            let who = |s: &State| {
                let all = s.nodes.iter();
                all.map(|(n, m)| (*n, m.epoch, m.presence, m.conduct.pardoned)).collect::<Vec<_>>()
            };
            let changed = who(&before) != who(&state);
            prop_assert_eq!(state.epoch, before.epoch + u64::from(changed), "{:?}", command);
            if let Outcome::Refused(_) = outcome {
                let mut but_for_tokens = before.clone();
                but_for_tokens.tokens.retain(|id, _| state.tokens.contains_key(id));
                prop_assert_eq!(&but_for_tokens, &state);
            }

            // Twice is once.
            let mut twice = state.clone();
            let again = twice.apply(&command);
            prop_assert_eq!(&twice, &state, "{:?}", command);
            if !matches!(outcome, Outcome::Refused(_)) {
                prop_assert_eq!(again, outcome, "{:?}", command);
            }

            // Another node that does the same comes to the same, through JSON as well.
            let text = serde_json::to_string(&before).unwrap();
            let mut other: State = serde_json::from_str(&text).unwrap();
            let text = serde_json::to_string(&command).unwrap();
            other.apply(&serde_json::from_str(&text).unwrap());
            prop_assert_eq!(&other, &state);
        }
    }
}

#[test]
fn locks_are_for_nodes_and_go_with_them() {
    let mut state = of_nodes(2);
    let no_node = Outcome::Refused(Refusal::NoSuchNode);
    assert_eq!(state.apply(&lock_of(1, 3, 3)), no_node);
    assert_eq!(state.apply(&lock_of(1, 2, 1)), no_node);
    for (session, token) in [(1, 1), (2, 2)] {
        let granted = Outcome::Lock(lock::Outcome::Granted { token });
        let node = u16::try_from(session).unwrap();
        assert_eq!(state.apply(&lock_of(session, node, token)), granted);
    }
    state.apply(&remove(2, 2));
    let sessions: Vec<Unique> = state.locks.sessions().keys().copied().collect();
    assert_eq!(sessions, [Unique(1)]);
    assert_eq!(state.apply(&lock_of(3, 2, 2)), no_node);
}
