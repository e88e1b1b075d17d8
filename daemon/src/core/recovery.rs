// SPDX-License-Identifier: MIT OR Apache-2.0

//! Without whom a cluster may go on that has lost its majority. Whoever names the lost nodes says that they are
//! off and stay so; what contradicts that is found here.

use std::collections::BTreeSet;

use ssi::id::NodeId;

use super::state::State;

/// Why a node may not go on without the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Objection {
    /// It is named as lost.
    #[error("{0} is this node: it is not lost")]
    Own(NodeId),
    /// There is no such node.
    #[error("{0} is no node of the cluster")]
    NoNode(NodeId),
    /// A node is named that answers.
    #[error("{0} is not lost: it answers")]
    Alive(NodeId),
    /// Whether this one is lost nobody said.
    #[error("{0} does not answer, and is not named as lost")]
    Unnamed(NodeId),
    /// The others do not listen to this node.
    #[error("{0} is not one whom the cluster trusts")]
    Untrusted(NodeId),
}

impl Objection {
    /// The word programs know it by.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Own(_) | Self::Alive(_) => "not-lost",
            Self::NoNode(_) => "no-such-node",
            Self::Unnamed(_) => "not-named",
            Self::Untrusted(_) => "quarantined",
        }
    }
}

/// Whether `own` may go on without `lost`, when these answer that `is_up`.
///
/// # Errors
/// Why not.
pub fn judge(
    state: &State,
    own: NodeId,
    lost: &BTreeSet<NodeId>,
    is_up: impl Fn(NodeId) -> bool,
) -> Result<(), Objection> {
    if !state.nodes.contains_key(&own) || state.is_quarantined(own) {
        return Err(Objection::Untrusted(own));
    }
    for node in lost {
        if *node == own {
            return Err(Objection::Own(own));
        }
        if !state.nodes.contains_key(node) {
            return Err(Objection::NoNode(*node));
        }
        if is_up(*node) {
            return Err(Objection::Alive(*node));
        }
    }
    let mut others = state.nodes.keys().filter(|node| **node != own);
    match others.find(|node| !lost.contains(node) && !is_up(**node)) {
        Some(node) => Err(Objection::Unnamed(*node)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::state::tests::{id as n, of_nodes};

    #[test]
    fn exactly_those_are_lost_that_do_not_answer() {
        let state = of_nodes(4);
        let set = |nodes: &[u16]| nodes.iter().map(|i| n(*i)).collect::<BTreeSet<_>>();
        let up = |node: NodeId| node.get() >= 3;
        let judge = |own, lost: &[u16]| judge(&state, n(own), &set(lost), up);
        assert_eq!(judge(4, &[1, 2]), Ok(()));
        assert_eq!(judge(4, &[1]), Err(Objection::Unnamed(n(2))));
        assert_eq!(judge(4, &[1, 2, 3]), Err(Objection::Alive(n(3))));
        assert_eq!(judge(4, &[1, 2, 4]), Err(Objection::Own(n(4))));
        assert_eq!(judge(4, &[1, 2, 9]), Err(Objection::NoNode(n(9))));
        assert_eq!(judge(5, &[1, 2]), Err(Objection::Untrusted(n(5))));
    }
}
