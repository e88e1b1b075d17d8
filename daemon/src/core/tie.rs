// SPDX-License-Identifier: MIT OR Apache-2.0

//! What ties this node to another: whether their modules may have to do with each other, and of
//! which epochs.
//!
//! A node is present from the epoch in which it joined or came back until it is declared dead. What two
//! modules have to do with each other belongs to one presence of each; when either is over, so is
//! that. A link is made for such a pair, and one made for another is turned away: so nothing that
//! was sent in an epoch that is over is taken.

use std::collections::BTreeMap;

use ssi::id::NodeId;

/// Since which epochs two nodes are present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// This node.
    pub own: u64,
    /// The other.
    pub other: u64,
}

/// What ties this node to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tie {
    /// Links may be made, for this pair.
    Bound(Pair),
    /// None may: this node is fenced off, or does not know since when both are present.
    Loose,
    /// None may: the other was declared dead.
    Cut,
}

/// What ties this node to all others.
#[derive(Debug)]
pub struct Ties {
    own: NodeId,
    isolated: bool,
    /// Since when each is present, if it was not declared dead.
    present: BTreeMap<NodeId, Option<u64>>,
}

impl Ties {
    /// To nobody yet.
    pub fn new(own: NodeId) -> Self {
        Self {
            own,
            isolated: false,
            present: BTreeMap::new(),
        }
    }

    /// Whether this node hears of no majority.
    pub fn set_isolated(&mut self, isolated: bool) {
        self.isolated = isolated;
    }

    /// Since when each node is present, as agreed; none if it was declared dead.
    pub fn set_present(&mut self, present: BTreeMap<NodeId, Option<u64>>) {
        self.present = present;
    }

    /// Whether this node is tied to nobody: it hears of no majority, or was declared dead.
    pub fn is_fenced(&self) -> bool {
        self.isolated || self.present.get(&self.own) == Some(&None)
    }

    /// What ties it to `other`.
    pub fn to(&self, other: NodeId) -> Tie {
        let since = |node| self.present.get(&node).copied();
        match (since(self.own), since(other)) {
            (_, Some(None)) => Tie::Cut,
            (Some(Some(own)), Some(Some(other))) if !self.isolated => {
                Tie::Bound(Pair { own, other })
            }
            _ => Tie::Loose,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn n(node: u16) -> NodeId {
        NodeId::new(node).unwrap()
    }

    fn ties(present: &[(u16, Option<u64>)]) -> Ties {
        let mut ties = Ties::new(n(1));
        ties.set_present(
            present
                .iter()
                .map(|(node, since)| (n(*node), *since))
                .collect(),
        );
        ties
    }

    #[test]
    fn those_who_are_present_are_bound() {
        let mut ties = ties(&[(1, Some(1)), (2, Some(5)), (3, None)]);
        assert_eq!(ties.to(n(2)), Tie::Bound(Pair { own: 1, other: 5 }));
        assert_eq!(ties.to(n(3)), Tie::Cut);
        assert_eq!(ties.to(n(4)), Tie::Loose, "nothing is known of it");
        assert!(!ties.is_fenced());
        ties.set_isolated(true);
        assert!(ties.is_fenced());
        assert_eq!(ties.to(n(2)), Tie::Loose);
        assert_eq!(ties.to(n(3)), Tie::Cut);
    }

    #[test]
    fn one_that_was_declared_dead_is_tied_to_nobody() {
        let ties = ties(&[(1, None), (2, Some(5))]);
        assert!(ties.is_fenced());
        assert_eq!(ties.to(n(2)), Tie::Loose);
    }

    #[test]
    fn nobody_is_bound_before_anything_is_known() {
        let ties = Ties::new(n(1));
        assert_eq!(ties.to(n(2)), Tie::Loose);
        assert!(!ties.is_fenced());
    }
}
