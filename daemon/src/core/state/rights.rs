// SPDX-License-Identifier: MIT OR Apache-2.0

//! Which commands one node may bring to the one that leads.
//!
//! A node brings what its administrators and users want, and what concerns itself. That cannot be told
//! from what a node wants that lies; but nobody speaks for another, and what only who leads proposes
//! never comes from elsewhere.

use ssi::id::NodeId;

use super::{Command, Refusal, State};
use crate::core::lock;
use crate::core::offence::Offence;

/// Why a command is not taken from a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Objection {
    /// It may not, and an honest one may not know that yet.
    Refused(Refusal),
    /// No honest node brings it.
    Offence(Offence),
}

impl State {
    /// Whether `from`, which votes or does not, may propose `command` to the node that leads.
    ///
    /// # Errors
    /// Why not.
    pub fn may_propose(
        &self,
        from: NodeId,
        votes: bool,
        command: &Command,
    ) -> Result<(), Objection> {
        if self.is_quarantined(from) {
            return Err(Objection::Refused(Refusal::Quarantined));
        }
        let refused = Err(Objection::Refused(Refusal::NotYours));
        let of = |node: NodeId| match node == from {
            true => Ok(()),
            false => Err(Objection::Offence(Offence::AnothersWish)),
        };
        match command {
            Command::AddToken { .. }
            | Command::DropToken { .. }
            | Command::Cordon { .. }
            | Command::Uncordon { .. }
            | Command::Kv(_) => Ok(()),
            // Who voted until now may be at it still: it had the key of the authority.
            Command::Join { .. } | Command::Renewed { .. } | Command::BeginRotation { .. } => {
                match votes {
                    true => Ok(()),
                    false => refused,
                }
            }
            // The clock of the sessions is moved by who leads; one that has just lost the lead may try.
            Command::Lock(lock::Command::Tick { .. }) => refused,
            Command::Lock(command) => self.owners(command).into_iter().try_for_each(of),
            Command::ComeBack { node, .. }
            | Command::Leave { node, .. }
            | Command::Adopted { node, .. }
            | Command::Describe { node, .. } => of(*node),
            // One that leads and goes has lost its vote by then.
            Command::Remove { node, .. } if *node == from => Ok(()),
            Command::Accuse { by, .. } => of(*by),
            // An administrator there may wish it, in vain.
            Command::Pardon { node, .. } if *node == from => refused,
            Command::Pardon { .. } => Ok(()),
            // There is no way yet to wish for the first three of these.
            Command::Rename { .. }
            | Command::SetAddr { .. }
            | Command::Revoke { .. }
            | Command::Found { .. }
            | Command::Remove { .. }
            | Command::DeclareDead { .. }
            | Command::ReplaceAuthority { .. }
            | Command::FinishRotation { .. } => Err(Objection::Offence(Offence::LeadersWish)),
        }
    }

    /// The nodes whose sessions `command` is about, those that it opens and those that it names, as far as they are
    /// known. A node names only its own.
    fn owners(&self, command: &lock::Command) -> Vec<NodeId> {
        let named = match command {
            lock::Command::Acquire { session, .. }
            | lock::Command::Renew { session }
            | lock::Command::Close { session }
            | lock::Command::Release { session, .. } => vec![*session],
            lock::Command::Keep {
                keeper, session, ..
            }
            | lock::Command::Reveal {
                keeper, session, ..
            } => vec![*keeper, *session],
            lock::Command::Tick { .. } => Vec::new(),
        };
        let known = named.into_iter().filter_map(|s| self.locks.session(s));
        let known = known.map(|s| s.opening.owner.node);
        let opened = command.opening().map(|o| o.owner.node);
        opened.into_iter().chain(known).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{id, lock_of, of_nodes};
    use super::*;

    const REFUSED: Result<(), Objection> = Err(Objection::Refused(Refusal::NotYours));

    fn offence(offence: Offence) -> Result<(), Objection> {
        Err(Objection::Offence(offence))
    }

    #[test]
    fn nobody_speaks_for_another_or_for_who_leads() {
        let mut state = of_nodes(3);
        let may = |state: &State, from: u16, command: &Command| {
            state.may_propose(id(from), false, command)
        };
        let (of_two, since) = (id(2), 2);
        let anothers = [
            Command::ComeBack {
                node: of_two,
                ended: 4,
            },
            Command::Leave {
                node: of_two,
                since,
                now_ms: 0,
            },
            Command::Accuse {
                by: of_two,
                node: id(1),
                since: 1,
                offence: Offence::NoPacket,
            },
            lock_of(7, 2, since),
        ];
        for command in &anothers {
            assert_eq!(may(&state, 2, command), Ok(()), "{command:?}");
            let wish = offence(Offence::AnothersWish);
            assert_eq!(may(&state, 3, command), wish, "{command:?}");
        }
        state.apply(&lock_of(7, 2, since));
        let close = Command::Lock(lock::Command::Close {
            session: super::super::Unique(7),
        });
        assert_eq!(may(&state, 2, &close), Ok(()));
        assert_eq!(may(&state, 3, &close), offence(Offence::AnothersWish));
        let dead = Command::DeclareDead {
            node: of_two,
            since,
        };
        assert_eq!(may(&state, 2, &dead), offence(Offence::LeadersWish));
        assert_eq!(may(&state, 3, &dead), offence(Offence::LeadersWish));
    }

    #[test]
    fn nobody_takes_the_lock_of_anothers_session_for_its_own() {
        let mut state = of_nodes(3);
        state.apply(&lock_of(7, 2, 2));
        let number = super::super::Unique;
        let opening = |node: u16, keeps: bool| lock::Opening {
            owner: lock::Owner {
                node: id(node),
                since: node.into(),
                uid: 0,
            },
            parent: None,
            ttl_ms: 60_000,
            keeps,
        };
        let keep = |node: u16| {
            Command::Lock(lock::Command::Keep {
                session: number(7),
                serial: 9,
                name: "of-7".to_owned(),
                keeper: number(8),
                opening: opening(node, true),
            })
        };
        let reveal = |node: u16| {
            Command::Lock(lock::Command::Reveal {
                keeper: number(7),
                serial: 9,
                name: "of-7".to_owned(),
                session: number(9),
                opening: opening(node, false),
                token: 1,
            })
        };
        for of in [&keep as &dyn Fn(u16) -> Command, &reveal] {
            assert_eq!(state.may_propose(id(2), false, &of(2)), Ok(()));
            for (from, named) in [(3, 3), (3, 2), (2, 3)] {
                assert_eq!(
                    state.may_propose(id(from), false, &of(named)),
                    offence(Offence::AnothersWish)
                );
            }
        }
    }

    #[test]
    fn what_one_that_was_late_may_bring_is_only_refused() {
        let state = of_nodes(3);
        let tick = Command::Lock(lock::Command::Tick {
            from_ms: 0,
            to_ms: 1,
        });
        assert_eq!(state.may_propose(id(2), true, &tick), REFUSED);
        let renewed = Command::Renewed {
            node: id(3),
            since: 3,
            fingerprint: crate::core::hash::Hash::of(b"x"),
            generation: 0,
            ends_ms: None,
            now_ms: 0,
        };
        assert_eq!(state.may_propose(id(2), false, &renewed), REFUSED);
        assert_eq!(state.may_propose(id(2), true, &renewed), Ok(()));
        let pardon = Command::Pardon {
            node: id(2),
            since: 2,
        };
        assert_eq!(state.may_propose(id(2), true, &pardon), REFUSED);
        assert_eq!(state.may_propose(id(3), false, &pardon), Ok(()));
    }
}
