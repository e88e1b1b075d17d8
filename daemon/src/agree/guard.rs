// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the library that agrees takes for granted, and a node that does not keep to the rules may not
//! say: it would stop those who hear it, for good where the number of a reign is written down.
//!
//! Raft believes who leads. What a leader puts into the log is not looked into here.
//!
//! Some of it an honest node may say once in a long while: one that has lost the lead may still read its log, and
//! send of it, while the next leader writes it. That is refused. What no honest node says is an
//! [`Offence`] as well.

use std::collections::BTreeSet;

use openraft::RaftTypeConfig;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse};
use openraft::vote::RaftLeaderId;

use ssi::id::NodeId;

use super::carrier::{Answer, Request};
use super::{LogId, Metrics, Types, Vote, raft_id};
use crate::core::offence::Offence;

/// A reign is at most so far from those that are known here. Each step is a write to the disk, so that
/// nobody gets to the end of the numbers.
const MAX_LEAP: u64 = 1 << 32;
/// Highest number of a reign a node believes that was in none yet, and of an entry.
const MAX_NUMBER: u64 = 1 << 62;

pub(super) type Leader = <Types as RaftTypeConfig>::LeaderId;

/// What is known here.
#[derive(Clone, Debug)]
pub(super) struct Here {
    /// The reign.
    vote: Vote,
    /// The last entry that is in the state.
    applied: Option<LogId>,
    /// Who votes, as far as the log here says.
    voters: BTreeSet<u64>,
}

impl Here {
    pub(super) fn of(metrics: &Metrics) -> Self {
        Self {
            vote: metrics.vote,
            applied: metrics.last_applied,
            voters: metrics.membership_config.voter_ids().collect(),
        }
    }

    /// Whether `from` wants to lead in a reign that is new here and does not vote, as far as is known here. It may have
    /// got its vote meanwhile: as long as there is a leader that has a majority, that will come here by it.
    pub(super) fn usurps(&self, from: NodeId, request: &Request) -> bool {
        let vote = match request {
            Request::Append { rpc, .. } => &rpc.vote,
            Request::Vote(rpc) | Request::PreVote(rpc) => &rpc.vote,
            Request::Snapshot { vote, .. } => vote,
            Request::Transfer(_)
            | Request::Propose(_)
            | Request::ReadIndex
            | Request::Extent(_) => return false,
        };
        let is_new = vote.leader_id.to_committed() > self.vote.leader_id.to_committed();
        is_new && !self.voters.is_empty() && !self.voters.contains(&raft_id(from))
    }

    /// The vote given here, unless entries come of that reign or a later one. The library refuses
    /// them as well, but takes what they say is agreed on.
    pub(super) fn later(&self, vote: &Vote) -> Option<Vote> {
        let may_lead = *vote >= self.vote;
        (!may_lead).then_some(self.vote)
    }

    /// Whether there may be such a reign.
    fn may_be(&self, vote: &Vote) -> bool {
        let most = match self.vote.leader_id.term {
            0 => MAX_NUMBER,
            term => term.saturating_add(MAX_LEAP),
        };
        vote.leader_id.term <= most
    }

    /// Whether there may be such an entry under `leader`.
    fn may_hold(&self, leader: &Leader, id: &LogId) -> bool {
        id.leader_id <= leader.to_committed()
            && id.index <= MAX_NUMBER
            && self.applied.is_none_or(|applied| in_order(&applied, id))
    }

    /// Whether a node that keeps to the rules may ask this.
    pub(super) fn accepts(&self, request: &Request) -> bool {
        match request {
            Request::Append { rpc, .. } => self.may_be(&rpc.vote) && self.follow(rpc),
            Request::Vote(rpc) | Request::PreVote(rpc) => self.may_be(&rpc.vote),
            Request::Snapshot { vote, meta, .. } => {
                let (last, members) = (meta.last_log_id, *meta.last_membership.log_id());
                let named = [last, members];
                let mut named = named.iter().flatten();
                self.may_be(vote)
                    && members <= last
                    && named.all(|id| self.may_hold(&vote.leader_id, id))
            }
            Request::Transfer(rpc) => self.may_be(rpc.from_leader()),
            Request::Propose(_) | Request::ReadIndex | Request::Extent(_) => true,
        }
    }

    /// What `from` does by asking this that no honest node does, whatever it has missed.
    pub(super) fn offence(&self, from: NodeId, request: &Request) -> Option<Offence> {
        let (vote, leads) = match request {
            Request::Append { rpc, .. } => (&rpc.vote, Some(true)),
            Request::Vote(rpc) | Request::PreVote(rpc) => (&rpc.vote, Some(false)),
            Request::Snapshot { vote, .. } => (vote, Some(true)),
            Request::Transfer(rpc) => (rpc.from_leader(), None),
            Request::Propose(_) | Request::ReadIndex | Request::Extent(_) => return None,
        };
        if vote.leader_id.voted_for != raft_id(from) {
            return Some(Offence::AnotherName);
        }
        let is_sound = match request {
            Request::Append { rpc, .. } => has_no_gap(rpc),
            Request::Snapshot { meta, .. } => {
                let (last, members) = (meta.last_log_id, *meta.last_membership.log_id());
                members <= last && last.is_none_or(|id| id.index <= MAX_NUMBER)
            }
            _ => true,
        };
        let is_in_role = leads.is_none_or(|leads| vote.committed == leads);
        (!is_sound || !is_in_role || !self.may_be(vote)).then_some(Offence::ImpossibleRequest)
    }

    /// Whether each entry follows the one before, and none is of a reign that is to come.
    fn follow(&self, rpc: &AppendEntriesRequest<Types>) -> bool {
        if !has_no_gap(rpc) {
            return false;
        }
        let mut last = rpc.prev_log_id;
        for entry in &rpc.entries {
            let id = entry.log_id;
            if last.is_some_and(|last| id.leader_id < last.leader_id) {
                return false;
            }
            last = Some(id);
        }
        let named = [rpc.prev_log_id, last, rpc.leader_commit];
        let mut named = named.iter().flatten();
        let fits = |agreed: LogId| {
            let mut sent = [rpc.prev_log_id, last].into_iter().flatten();
            sent.all(|id| in_order(&agreed, &id))
        };
        named.all(|id| self.may_hold(&rpc.vote.leader_id, id)) && rpc.leader_commit.is_none_or(fits)
    }
}

/// Whether the number of each entry follows that of the one before, and none is out of all proportion.
fn has_no_gap(rpc: &AppendEntriesRequest<Types>) -> bool {
    let mut last = rpc.prev_log_id.map(|id| id.index);
    for entry in &rpc.entries {
        let next = last.map_or(Some(0), |last| last.checked_add(1));
        if next != Some(entry.log_id.index) {
            return false;
        }
        last = next;
    }
    last.is_none_or(|index| index <= MAX_NUMBER)
}

/// Whether both may be in one log: later reigns only add to it.
fn in_order(one: &LogId, other: &LogId) -> bool {
    one.index.cmp(&other.index) == one.cmp(other)
}

/// Whether a node that keeps to the rules may answer this to that.
pub(super) fn may_answer(request: &Request, answer: &Answer) -> bool {
    let knows = |vote: &Vote| Here {
        vote: *vote,
        applied: None,
        voters: BTreeSet::new(),
    };
    match (request, answer) {
        (Request::Append { rpc, .. }, Answer::Append(answer)) => match answer {
            AppendEntriesResponse::Success => true,
            // Without an entry before there is none to differ.
            AppendEntriesResponse::Conflict => rpc.prev_log_id.is_some(),
            AppendEntriesResponse::HigherVote(vote) => knows(&rpc.vote).may_be(vote),
            AppendEntriesResponse::PartialSuccess(_) => false,
        },
        (Request::Vote(rpc) | Request::PreVote(rpc), Answer::Vote(answer)) => {
            knows(&rpc.vote).may_be(&answer.vote)
        }
        (Request::Snapshot { vote, .. }, Answer::Snapshot(answer)) => {
            knows(vote).may_be(&answer.vote)
        }
        (Request::Transfer(_), Answer::Transfer(_))
        | (Request::Propose(_), Answer::Proposed(_))
        | (Request::ReadIndex, Answer::ReadIndex(_))
        | (Request::Extent(_), Answer::Extent(_))
        | (_, Answer::Refused(_)) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn here() -> Here {
        Here {
            vote: serde_json::from_value(vote(3)).unwrap(),
            applied: serde_json::from_value(id(3, 7)).unwrap(),
            voters: [1, 2].into(),
        }
    }

    fn id(term: u64, index: u64) -> Value {
        json!({"leader_id": term, "index": index})
    }

    fn vote(term: u64) -> Value {
        json!({"leader_id": {"term": term, "voted_for": 2}, "committed": true})
    }

    fn request(value: Value) -> Request {
        serde_json::from_value(value).unwrap()
    }

    fn append(term: u64, prev: Value, entries: &[Value], commit: Value) -> Request {
        let entries = entries
            .iter()
            .map(|id| json!({"log_id": id, "payload": "Blank"}));
        request(json!({"append": {"has_majority": true, "rpc": {
            "vote": vote(term), "prev_log_id": prev, "leader_commit": commit,
            "entries": entries.collect::<Vec<_>>(),
        }}}))
    }

    fn ask(term: u64) -> Request {
        request(json!({"vote": {"vote": vote(term), "last_log_id": id(9, u64::MAX)}}))
    }

    #[test]
    fn the_numbers_of_reigns_do_not_come_to_their_end() {
        assert!(here().accepts(&ask(4)) && here().accepts(&ask(3 + MAX_LEAP)));
        assert!(!here().accepts(&ask(4 + MAX_LEAP)) && !here().accepts(&ask(u64::MAX)));
        let new = Here {
            vote: serde_json::from_value(vote(0)).unwrap(),
            applied: None,
            voters: BTreeSet::new(),
        };
        assert!(new.accepts(&ask(9 * MAX_LEAP)) && !new.accepts(&ask(u64::MAX)));
    }

    #[test]
    fn only_who_votes_begins_a_reign() {
        let of = |from: u16, request: &Request| here().usurps(NodeId::new(from).unwrap(), request);
        let next = [append(4, Value::Null, &[], Value::Null), ask(4)];
        for request in &next {
            assert!(!of(2, request) && of(3, request));
        }
        // This one was elected when it voted still.
        assert!(!of(3, &append(3, Value::Null, &[], Value::Null)));
        let new = Here {
            voters: BTreeSet::new(),
            ..here()
        };
        assert!(!new.usurps(NodeId::new(3).unwrap(), &next[0]));
    }

    #[test]
    fn entries_are_in_order_and_of_this_reign_or_one_before() {
        let none = Value::Null;
        let good = |r: Request| assert!(here().accepts(&r));
        let bad = |r: Request| assert!(!here().accepts(&r));
        good(append(4, none.clone(), &[], none.clone()));
        good(append(4, id(3, 7), &[id(3, 8), id(4, 9)], id(3, 8)));
        bad(append(4, id(3, 7), &[id(4, 8), id(3, 9)], none.clone()));
        bad(append(4, id(3, 7), &[id(4, 9)], none.clone()));
        bad(append(4, none.clone(), &[id(4, 1)], none.clone()));
        bad(append(4, id(3, 7), &[id(5, 8)], none.clone()));
        bad(append(4, id(3, 7), &[], id(5, 8)));
        bad(append(4, id(3, u64::MAX), &[], none.clone()));
        bad(append(4, id(3, u64::MAX), &[id(3, 0)], none.clone()));
        bad(append(4, id(2, 8), &[], none.clone()));
        bad(append(4, id(3, 7), &[id(4, 8)], id(3, 9)));
        bad(append(4, id(4, 6), &[], none));
    }

    #[test]
    fn what_no_honest_node_says_is_an_offence_and_what_is_late_is_none() {
        let of = |from: u16, request: &Request| here().offence(NodeId::new(from).unwrap(), request);
        let impossible = Some(Offence::ImpossibleRequest);
        // Refused, and no offence: a leader of before whose log is written by another now.
        for late in [
            append(4, id(3, 7), &[id(4, 8), id(3, 9)], Value::Null),
            append(4, id(3, 7), &[id(5, 8)], Value::Null),
            append(4, id(2, 8), &[], Value::Null),
            append(2, id(2, 6), &[id(2, 7)], Value::Null),
            append(4, id(4, 6), &[], Value::Null),
        ] {
            assert_eq!(of(2, &late), None);
            assert_eq!(of(3, &late), Some(Offence::AnotherName));
        }
        for lie in [
            append(4, id(3, 7), &[id(4, 9)], Value::Null),
            append(4, id(3, u64::MAX), &[id(3, 0)], Value::Null),
            append(5 + MAX_LEAP, id(3, 7), &[], Value::Null),
            request(json!({"vote": {"vote": vote(4), "last_log_id": null}})),
            request(json!({"append": {"has_majority": true, "rpc": {
                "vote": {"leader_id": {"term": 4, "voted_for": 2}, "committed": false},
                "prev_log_id": null, "leader_commit": null, "entries": [],
            }}})),
        ] {
            assert_eq!(of(2, &lie), impossible);
        }
        let read_index = request(json!("read-index"));
        assert_eq!(of(2, &read_index), None);
    }

    #[test]
    fn an_earlier_reign_is_not_listened_to() {
        let of = |term: u64| serde_json::from_value::<Vote>(vote(term)).unwrap();
        assert_eq!(here().later(&of(2)), Some(of(3)));
        assert_eq!((here().later(&of(3)), here().later(&of(4))), (None, None));
        // Nor is another leader of the same one, as one of them lies.
        let other = json!({"leader_id": {"term": 3, "voted_for": 1}, "committed": true});
        let other = serde_json::from_value::<Vote>(other).unwrap();
        assert_eq!(here().later(&other), Some(of(3)));
    }

    #[test]
    fn a_snapshot_does_not_contradict_what_is_agreed_on() {
        let snapshot = |term: u64, last: Value| {
            let members = json!({"log_id": null, "membership": {"configs": [], "nodes": {}}});
            let meta = json!({"last_log_id": last, "last_membership": members});
            let state = crate::core::state::State::default();
            request(json!({"snapshot": {"vote": vote(term), "meta": meta, "state": state}}))
        };
        assert!(here().accepts(&snapshot(4, id(4, 9))));
        assert!(here().accepts(&snapshot(4, id(3, 6))));
        assert!(!here().accepts(&snapshot(4, id(5, 9))));
        assert!(!here().accepts(&snapshot(4, id(4, 7))));
        assert!(!here().accepts(&snapshot(4, id(4, u64::MAX))));
    }

    #[test]
    fn answers_fit_to_what_was_asked() {
        let answer = |value: Value| serde_json::from_value::<Answer>(value).unwrap();
        let first = append(4, Value::Null, &[], Value::Null);
        let later = append(4, id(3, 7), &[], Value::Null);
        let differs = answer(json!({"append": "Conflict"}));
        assert!(may_answer(&later, &differs) && !may_answer(&first, &differs));
        let some = answer(json!({"append": {"PartialSuccess": id(4, 99)}}));
        assert!(!may_answer(&later, &some));
        let higher = |term: u64| answer(json!({"append": {"HigherVote": vote(term)}}));
        assert!(may_answer(&later, &higher(5)) && !may_answer(&later, &higher(u64::MAX)));
        let voted = |term: u64| {
            answer(
                json!({"vote": {"vote": vote(term), "vote_granted": false, "last_log_id": null}}),
            )
        };
        assert!(may_answer(&ask(4), &voted(5)) && !may_answer(&ask(4), &voted(u64::MAX)));
        let stopped = answer(json!({"refused": "stopped"}));
        assert!(may_answer(&later, &stopped) && !may_answer(&later, &voted(5)));
    }
}
