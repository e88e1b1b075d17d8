// SPDX-License-Identifier: MIT OR Apache-2.0

//! Commands that an authenticated node may propose, on the state of a cluster.

use std::collections::BTreeSet;

use ssi::id::NodeId;

use crate::core::state::{Command, MAX_EARLIER, MAX_REVOKED, MAX_TOKENS, Outcome, Refusal, State};

/// Most commands of one run.
const MAX_COMMANDS: usize = 256;

/// Commands as JSON, one a line. A refused one changes nothing, one that is applied again changes
/// nothing more, and the state stays one that can be.
///
/// # Panics
/// When the bytes do harm.
pub fn run(data: &[u8]) {
    let mut state = State::default();
    let lines = data.split(|b| *b == b'\n').take(MAX_COMMANDS);
    for command in lines.filter_map(|line| serde_json::from_slice::<Command>(line).ok()) {
        same(&command);
        let before = state.clone();
        let outcome = state.apply(&command);
        same(&outcome);
        if let Outcome::Refused(why) = &outcome {
            unchanged(before, &state, why);
        }
        let mut again = state.clone();
        again.apply(&command);
        assert_eq!(again, state, "{command:?} twice");
        check(&state);
    }
    same(&state);
}

/// What is written is read.
fn same<T>(value: &T)
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let json = serde_json::to_vec(value).expect("it has a spelling");
    let read: T = serde_json::from_slice(&json).expect("what was written is read");
    assert_eq!(&read, value);
}

/// Nothing was changed, but that tokens which ended may be dropped.
fn unchanged(mut before: State, after: &State, why: &Refusal) {
    before.tokens.retain(|id, _| after.tokens.contains_key(id));
    assert_eq!(&before, after, "refused: {why}");
}

/// Whether the state can be.
fn check(state: &State) {
    let nodes: BTreeSet<NodeId> = state.nodes.keys().copied().collect();
    assert!(!state.gone.keys().any(|n| nodes.contains(n)));
    assert_eq!(state.cluster.is_some(), !nodes.is_empty());
    let members = || state.nodes.values();
    let unique = |count: usize| assert_eq!(count, nodes.len());
    unique(members().map(|m| &m.name).collect::<BTreeSet<_>>().len());
    unique(members().map(|m| m.addr).collect::<BTreeSet<_>>().len());
    unique(members().map(|m| m.nonce).collect::<BTreeSet<_>>().len());
    unique(
        members()
            .map(|m| m.fingerprint)
            .collect::<BTreeSet<_>>()
            .len(),
    );
    for member in members() {
        assert!(member.epoch <= state.epoch && member.earlier.len() <= MAX_EARLIER);
        assert!(!state.revoked.contains_key(&member.fingerprint));
    }
    for (node, member) in &state.nodes {
        let conduct = &member.conduct;
        assert!(!conduct.accusers.contains_key(node));
        // One alone puts nobody away, and one that is away is not there.
        assert!(!conduct.quarantined || conduct.accusers.len() > 1);
        assert!(!conduct.quarantined || member.presence.current().is_none());
    }
    assert!(state.gone.values().all(|g| g.since < g.epoch));
    assert!(state.tokens.len() <= MAX_TOKENS && state.revoked.len() <= MAX_REVOKED);
    assert!(state.authorities().count() <= 2);
    if let Some(next) = state.next_node() {
        assert!(!nodes.contains(&next));
    }
}
