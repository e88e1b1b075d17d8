// SPDX-License-Identifier: MIT OR Apache-2.0

//! Going on when the majority is lost for good: an administrator makes one of the nodes that are left the only
//! voter, in its own files. Raft itself cannot: it would have to believe that the others are not alive.
//!
//! Nothing that anybody who is left took for agreed on may be lost by it, so it has to be a node that has all of that.
//! There always is one: what was agreed on is the beginning of each log that has all of it, and of
//! two such beginnings one is the beginning of the other.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use openraft::async_runtime::WatchReceiver;
use openraft::vote::RaftLeaderId;
use openraft::{EntryPayload, Membership};
use ssi::id::NodeId;
use tokio::time::Instant;

use super::carrier::{Answer, Request};
use super::log::{LogFile, Record};
use super::machine::Machine;
use super::{Agreement, Change, Entry, Error, LogId, Vote, claim, gap, log, raft_id};
use crate::core::state::{Command, Outcome, State};

/// How far a node is.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Extent {
    /// Whether it has the entry it was asked for.
    has: bool,
    /// The last entry that is in its state.
    applied: Option<LogId>,
    /// The last entry it has.
    last: Option<LogId>,
}

impl Agreement {
    /// How far this node is, to one who is as far as `asked`.
    pub(super) fn extent(&self, asked: Option<LogId>) -> Extent {
        let applied = self.0.raft.metrics().borrow_watched().last_applied;
        Extent {
            has: asked.is_none_or(|id| self.0.log.has(&id, applied)),
            applied,
            last: self.0.log.last(),
        }
    }

    /// Who of `others` knows more of what is agreed on than this node, or may: it does not answer.
    pub async fn ahead(&self, others: &BTreeSet<NodeId>) -> Option<NodeId> {
        let until = Instant::now() + self.0.timing.answer();
        for node in others {
            let own = self.extent(None);
            let asked = self.ask(*node, &Request::Extent(own.applied), until).await;
            let Ok(Answer::Extent(its)) = asked else {
                return Some(*node);
            };
            let lacks = its
                .applied
                .is_some_and(|id| !self.0.log.has(&id, own.applied));
            // It has all that this one took for agreed on, and more, of which somebody may have been told.
            let has_more = its.has && its.last > own.last;
            if lacks || has_more {
                return Some(*node);
            }
        }
        None
    }
}

/// The files of a node that does not run, and what all of them come to.
#[derive(Debug)]
pub struct Estate {
    own: NodeId,
    _lock: File,
    log: LogFile,
    /// What comes of all entries, also those that nobody knows to be agreed on.
    pub state: State,
}

impl Estate {
    /// Opens the files of `own` in `dir`.
    ///
    /// # Errors
    /// As [`Agreement::open`].
    pub fn open(dir: &Path, own: NodeId) -> Result<Self, Error> {
        let lock = claim(dir)?;
        let machine = Machine::open(dir).map_err(Error::Disk)?;
        let log = LogFile::open(dir.join(log::NAME), own).map_err(Error::Disk)?;
        gap(dir, log.held().purged, machine.applied())?;
        let mut state = State::clone(&machine.watch().borrow());
        let entries = log.held().entries.values();
        for entry in entries.filter(|e| Some(e.log_id) > machine.applied()) {
            if let EntryPayload::Normal(change) = &entry.payload {
                state.apply(&change.0);
            }
        }
        Ok(Self {
            own,
            _lock: lock,
            log,
            state,
        })
    }

    /// Makes this node the only voter, and `changes` the next that are agreed on. All of it is done, or
    /// nothing.
    ///
    /// # Errors
    /// When one of the changes is refused, or the log cannot be written.
    pub fn take_over(mut self, changes: Vec<Command>) -> Result<(), Error> {
        for change in &changes {
            if let Outcome::Refused(refusal) = self.state.apply(change) {
                return Err(Error::Refused(refusal));
            }
        }
        let held = self.log.held();
        let last = held.last();
        let terms = [
            held.vote.map(|v| v.leader_id.term),
            last.map(|id| id.leader_id.term),
        ];
        // No other node was ever asked for its vote in this reign.
        let term = terms.into_iter().flatten().max().unwrap_or(0) + 1;
        let vote = Vote::new(term, raft_id(self.own));
        let nodes = self.state.nodes.keys().map(|node| raft_id(*node));
        let voters = BTreeSet::from([raft_id(self.own)]);
        let members = Membership::new_with_defaults(vec![voters], nodes);
        let changes = changes.into_iter().map(|c| EntryPayload::Normal(Change(c)));
        let payloads = std::iter::once(EntryPayload::Membership(members)).chain(changes);
        let first = last.map_or(0, |id| id.index + 1);
        let entries = (first..).zip(payloads).map(|(index, payload)| {
            Record::Entry(Arc::new(Entry {
                log_id: LogId::new(vote.leader_id.to_committed(), index),
                payload,
            }))
        });
        let records = std::iter::once(Record::Vote(vote)).chain(entries);
        self.log.extend(records.collect()).map_err(Error::Disk)
    }
}
