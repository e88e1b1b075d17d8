// SPDX-License-Identifier: MIT OR Apache-2.0

//! Who votes. More voters survive more losses and make every change slower, and an even number
//! survives no more losses than one less.

use std::collections::BTreeSet;

use ssi::id::NodeId;

/// From so many nodes on, three vote: of two, none may be lost either way.
const NODES_FOR_THREE: usize = 3;
/// From so many nodes on, five vote.
const NODES_FOR_FIVE: usize = 7;

/// How many of so many nodes vote.
fn wanted(nodes: usize) -> usize {
    match nodes {
        0 => 0,
        n if n < NODES_FOR_THREE => 1,
        n if n < NODES_FOR_FIVE => 3,
        _ => 5,
    }
}

/// Who of `nodes` should vote, when `voters` do now and those that `is_up` may. Who votes
/// goes on as long as it is up; who is not is replaced by one that is, and stays if there is none.
/// `leader` is the last to lose its vote.
pub fn choose(
    nodes: &BTreeSet<NodeId>,
    voters: &BTreeSet<NodeId>,
    leader: NodeId,
    is_up: impl Fn(NodeId) -> bool,
) -> BTreeSet<NodeId> {
    let rank = |node: NodeId| match (voters.contains(&node), is_up(node)) {
        (true, true) if node == leader => 0,
        (true, true) => 1,
        (false, true) => 2,
        (true, false) => 3,
        (false, false) => 4,
    };
    let mut all: Vec<(u8, NodeId)> = nodes.iter().map(|n| (rank(*n), *n)).collect();
    all.sort_unstable();
    let chosen = all.into_iter().take(wanted(nodes.len()));
    chosen.map(|(_, node)| node).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn n(node: u16) -> NodeId {
        NodeId::new(node).unwrap()
    }

    fn set(nodes: &[u16]) -> BTreeSet<NodeId> {
        nodes.iter().map(|i| n(*i)).collect()
    }

    #[test]
    fn a_cluster_grows_and_shrinks() {
        let all_up = |_| true;
        let grown = |nodes: &[u16], voters: &[u16]| choose(&set(nodes), &set(voters), n(1), all_up);
        assert_eq!(grown(&[1], &[1]), set(&[1]));
        assert_eq!(grown(&[1, 2], &[1]), set(&[1]));
        assert_eq!(grown(&[1, 2, 3], &[1]), set(&[1, 2, 3]));
        assert_eq!(grown(&[1, 2, 3, 4], &[1, 3, 4]), set(&[1, 3, 4]));
        assert_eq!(
            grown(&[1, 2, 3, 4, 5, 6, 7], &[1, 3, 7]),
            set(&[1, 2, 3, 4, 7])
        );
        // Somebody went.
        assert_eq!(grown(&[1, 3], &[1, 2, 3]), set(&[1]));
        assert_eq!(grown(&[2, 3], &[1]), set(&[2]));
    }

    #[test]
    fn a_lost_voter_is_replaced_if_that_helps() {
        let but_2 = |node| node != n(2);
        let voters = set(&[1, 2, 3]);
        let chosen = choose(&set(&[1, 2, 3, 4]), &voters, n(1), but_2);
        assert_eq!(chosen, set(&[1, 3, 4]));
        let chosen = choose(&set(&[1, 2, 3]), &voters, n(1), but_2);
        assert_eq!(chosen, voters);
    }

    proptest! {
        #[test]
        fn the_choice_is_odd_stable_and_of_nodes(
            nodes in prop::collection::btree_set(1_u16..=31, 1..31),
            voters in prop::collection::btree_set(1_u16..=31, 0..7),
            down in prop::collection::btree_set(1_u16..=31, 0..31),
        ) {
            let nodes: BTreeSet<NodeId> = nodes.into_iter().map(n).collect();
            let voters: BTreeSet<NodeId> = voters.into_iter().map(n).collect();
            let leader = *nodes.iter().next().unwrap();
            let is_up = |node: NodeId| !down.contains(&node.get());
            let first = choose(&nodes, &voters, leader, is_up);
            prop_assert_eq!(first.len() % 2, 1);
            prop_assert!(first.is_subset(&nodes));
            prop_assert_eq!(&choose(&nodes, &first, leader, is_up), &first);
            let up_left_out = nodes.difference(&first).any(|n| is_up(*n));
            prop_assert!(!up_left_out || first.iter().all(|n| is_up(*n)));
        }
    }
}
