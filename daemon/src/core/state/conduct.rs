// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is held against a node: who accuses it of what, and that it is quarantined.
//!
//! A node accuses another of what it saw itself. When more than half of the others do, and at least two, the
//! accused is quarantined: the epoch in which it was there is over as if it had been declared
//! dead, and it cannot come back until an administrator pardons it.
//!
//! The others are all nodes but the accused and those in quarantine, whether they were declared dead or
//! not: who leads declares that, and could make itself a majority so. So f nodes that lie together
//! put an honest one of n away only if f > (n - 1) / 2, and one alone never does; in a cluster of two
//! nobody can, as no one could say which of the two it is that lies.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use ssi::id::NodeId;

use super::{Answer, Member, Outcome, Refusal, State, spell};
use crate::core::offence::Offence;

/// So many must accuse a node at least: the word of one is that of one.
const MIN_ACCUSERS: usize = 2;

/// What is held against a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conduct {
    /// The epoch that began when it was pardoned last.
    pub pardoned: Option<u64>,
    /// Who accuses it since then, and of what first.
    #[serde(with = "spell::by_node")]
    pub accusers: BTreeMap<NodeId, Offence>,
    /// Whether it is quarantined.
    pub quarantined: bool,
}

impl Conduct {
    /// Whether nothing was ever held against it.
    pub(super) fn is_blank(&self) -> bool {
        *self == Self::default()
    }
}

impl Member {
    /// The epoch since which its conduct counts: in which it joined, or was pardoned.
    pub fn answers_since(&self) -> u64 {
        self.conduct.pardoned.unwrap_or(self.epoch)
    }
}

impl State {
    /// Whether `node` is quarantined.
    pub fn is_quarantined(&self, node: NodeId) -> bool {
        let member = self.nodes.get(&node);
        member.is_some_and(|m| m.conduct.quarantined)
    }

    /// Whether more than half of those who may judge `node` accuse it.
    fn is_condemned(&self, node: NodeId) -> bool {
        let judges = self.nodes.keys();
        let judges = judges.filter(|n| **n != node && !self.is_quarantined(**n));
        let member = self.nodes.get(&node);
        let accusers = member.map_or(0, |m| m.conduct.accusers.len());
        accusers >= MIN_ACCUSERS && accusers > judges.count() / 2
    }

    /// Whether an accusation of `node` by `by` would change anything: [`super::Command::Accuse`].
    pub fn would_matter(&self, by: NodeId, node: NodeId) -> bool {
        let Some(member) = self.nodes.get(&node) else {
            return false;
        };
        let is_known = member.conduct.accusers.contains_key(&by);
        self.may_accuse(by, node).is_ok()
            && !member.conduct.quarantined
            && (!is_known || self.is_condemned(node))
    }

    fn may_accuse(&self, by: NodeId, node: NodeId) -> Result<(), Refusal> {
        if !self.nodes.contains_key(&by) || by == node {
            return Err(Refusal::NoSuchNode);
        }
        if self.is_quarantined(by) {
            return Err(Refusal::Quarantined);
        }
        Ok(())
    }

    /// `by` saw that `node`, which answers for what it does since the epoch `since`, did `offence`.
    pub(super) fn accuse(
        &mut self,
        by: NodeId,
        node: NodeId,
        since: u64,
        offence: Offence,
    ) -> Answer {
        self.may_accuse(by, node)?;
        let member = self.member(node)?;
        if member.answers_since() != since {
            return Err(Refusal::OtherPresence);
        }
        if !member.conduct.quarantined {
            member.conduct.accusers.entry(by).or_insert(offence);
            if self.is_condemned(node) {
                self.quarantine(node)?;
            }
        }
        Ok(Outcome::Done)
    }

    /// The epoch of `node` is over, it holds no lock, and what it says of others counts no more.
    fn quarantine(&mut self, node: NodeId) -> Result<(), Refusal> {
        let member = self.member(node)?;
        member.conduct.quarantined = true;
        let joined = member.epoch;
        match member.presence.current() {
            Some(since) => drop(self.declare_dead(node, since)?),
            None => Arc::make_mut(&mut self.locks).end_of_node(node, joined),
        }
        self.forget_accuser(node);
        Ok(())
    }

    /// What `by` accuses others of counts no more; who is quarantined stays so.
    pub(super) fn forget_accuser(&mut self, by: NodeId) {
        for member in self.nodes.values_mut() {
            if !member.conduct.quarantined {
                member.conduct.accusers.remove(&by);
            }
        }
    }

    /// Nothing is held any more against `node`, which answers for what it does since the epoch `since`;
    /// it may come back.
    pub(super) fn pardon(&mut self, node: NodeId, since: u64) -> Answer {
        let epoch = self.epoch.saturating_add(1);
        let member = self.member(node)?;
        match member.conduct.pardoned {
            // It was said before.
            Some(pardoned) if pardoned > since => return Ok(Outcome::Epoch(pardoned)),
            _ if member.answers_since() != since => return Err(Refusal::OtherPresence),
            _ if member.conduct.accusers.is_empty() => return Err(Refusal::NotAccused),
            _ => {}
        }
        member.conduct = Conduct {
            pardoned: Some(epoch),
            ..Conduct::default()
        };
        self.epoch = epoch;
        Ok(Outcome::Epoch(epoch))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{id, lock_of, of_nodes};
    use super::super::{Command, Why};
    use super::*;

    fn accuse(by: u16, node: u16, since: u64) -> Command {
        Command::Accuse {
            by: id(by),
            node: id(node),
            since,
            offence: Offence::Unreadable,
        }
    }

    fn pardon(node: u16, since: u64) -> Command {
        Command::Pardon {
            node: id(node),
            since,
        }
    }

    fn refused(state: &mut State, command: &Command) -> Refusal {
        match state.apply(command) {
            Outcome::Refused(why) => why,
            other => panic!("{command:?}: {other:?}"),
        }
    }

    #[test]
    fn a_majority_of_the_others_quarantines() {
        for (nodes, needed) in [(3, 2), (4, 2), (5, 3), (6, 3), (7, 4), (8, 4), (9, 5)] {
            let mut state = of_nodes(nodes);
            for by in 2..=needed {
                assert_eq!(state.apply(&accuse(by, 1, 1)), Outcome::Done);
                assert_eq!(state.apply(&accuse(by, 1, 1)), Outcome::Done, "once");
                assert!(!state.is_quarantined(id(1)), "{by} of {nodes}");
            }
            state.apply(&accuse(needed + 1, 1, 1));
            assert!(state.is_quarantined(id(1)), "{nodes}");
            let member = &state.nodes[&id(1)];
            let epoch = u64::from(nodes) + 1;
            assert_eq!((member.presence.ended, state.epoch), (Some(epoch), epoch));
            assert_eq!(member.conduct.accusers.len(), usize::from(needed));
        }
    }

    #[test]
    fn of_two_nobody_can_say_who_lies() {
        let mut state = of_nodes(2);
        state.apply(&accuse(2, 1, 1));
        assert!(!state.is_quarantined(id(1)));
        // Nor may anybody accuse itself, or in the name of one who is none.
        assert_eq!(refused(&mut state, &accuse(1, 1, 1)), Refusal::NoSuchNode);
        assert_eq!(refused(&mut state, &accuse(9, 1, 1)), Refusal::NoSuchNode);
    }

    #[test]
    fn one_that_is_quarantined_holds_nothing_and_stays_away_until_it_is_pardoned() {
        let mut state = of_nodes(4);
        state.apply(&lock_of(7, 3, 3));
        for by in [1, 2] {
            state.apply(&accuse(by, 3, 3));
        }
        assert_eq!(state.epoch, 5);
        assert!(state.locks.session(super::super::Unique(7)).is_none());
        let back = Command::ComeBack {
            node: id(3),
            ended: 5,
        };
        for command in [&back, &lock_of(8, 3, 3), &accuse(3, 1, 1)] {
            assert_eq!(refused(&mut state, command), Refusal::Quarantined);
        }
        assert_eq!(refused(&mut state, &pardon(3, 2)), Refusal::OtherPresence);
        assert_eq!(refused(&mut state, &pardon(1, 1)), Refusal::NotAccused);
        for _ in 0..2 {
            assert_eq!(state.apply(&pardon(3, 3)), Outcome::Epoch(6));
        }
        // What was said of it before, and comes late, is over.
        assert_eq!(
            refused(&mut state, &accuse(1, 3, 3)),
            Refusal::OtherPresence
        );
        assert_eq!(state.apply(&back), Outcome::Epoch(7));
        assert_eq!(state.nodes[&id(3)].presence.current(), Some(7));
        // It may be accused again.
        for by in [1, 4] {
            state.apply(&accuse(by, 3, 6));
        }
        assert!(state.is_quarantined(id(3)));
    }

    #[test]
    fn the_dead_are_counted_and_the_quarantined_are_not() {
        let mut state = of_nodes(5);
        for node in [4, 5] {
            let dead = Command::DeclareDead {
                node: id(node),
                since: node.into(),
            };
            state.apply(&dead);
        }
        // Who lies and leads could have declared them dead.
        for by in [2, 3] {
            state.apply(&accuse(by, 1, 1));
        }
        assert!(!state.is_quarantined(id(1)));
        state.apply(&accuse(4, 1, 1));
        assert!(state.is_quarantined(id(1)));
        // Of the four others two are enough now, if one of them is not the one who was put away.
        state.apply(&accuse(2, 3, 3));
        assert_eq!(refused(&mut state, &accuse(1, 3, 3)), Refusal::Quarantined);
        assert!(!state.is_quarantined(id(3)));
        state.apply(&accuse(5, 3, 3));
        assert!(state.is_quarantined(id(3)));
    }

    #[test]
    fn the_word_of_one_who_is_gone_or_put_away_counts_no_more() {
        let mut state = of_nodes(7);
        for by in [5, 6, 7] {
            state.apply(&accuse(by, 1, 1));
        }
        state.apply(&Command::Remove {
            node: id(5),
            since: 5,
            why: Why::Removed,
            now_ms: 0,
        });
        for by in [1, 2, 3, 4] {
            state.apply(&accuse(by, 6, 6));
        }
        assert!(state.is_quarantined(id(6)));
        let left: Vec<_> = state.nodes[&id(1)].conduct.accusers.keys().collect();
        assert_eq!(left, [&id(7)]);
        // It matters when there are fewer to judge, even if it was said before.
        state.apply(&accuse(4, 1, 1));
        assert!(!state.is_quarantined(id(1)));
        assert!(!state.would_matter(id(7), id(1)));
        state.apply(&Command::Remove {
            node: id(2),
            since: 2,
            why: Why::Removed,
            now_ms: 0,
        });
        assert!(state.would_matter(id(7), id(1)));
        state.apply(&accuse(7, 1, 1));
        assert!(state.is_quarantined(id(1)));
        assert!(!state.would_matter(id(7), id(1)));
    }

    #[test]
    fn a_state_with_nothing_held_against_anybody_is_written_as_it_always_was() {
        let state = serde_json::to_string(&of_nodes(3)).unwrap();
        assert!(!state.contains("conduct"), "{state}");
    }

    proptest! {
        /// Whoever they accuse, less than a majority put nobody honest away.
        #[test]
        fn a_minority_that_lies_together_puts_nobody_away(
            nodes in 3_u16..=31,
            liars in prop::collection::btree_set(1_u16..=31, 1..16),
            accusations in prop::collection::vec((0_usize..16, 1_u16..=31), 0..400),
        ) {
            let mut state = of_nodes(nodes);
            let liars: Vec<u16> = liars.into_iter().filter(|l| *l <= nodes).collect();
            prop_assume!(liars.len() <= usize::from(nodes - 1) / 2);
            for (liar, accused) in accusations {
                let Some(liar) = liars.get(liar % liars.len().max(1)) else { continue };
                state.apply(&accuse(*liar, accused, accused.into()));
            }
            let away: Vec<u16> = (1..=nodes).filter(|n| state.is_quarantined(id(*n))).collect();
            prop_assert!(away.iter().all(|n| liars.contains(n)), "{:?} of {:?}", away, liars);
        }
    }
}
