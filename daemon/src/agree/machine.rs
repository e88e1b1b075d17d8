// SPDX-License-Identifier: MIT OR Apache-2.0

//! The state that comes of the log, and snapshots of it on this node's disk.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::disk::{self, Error};
use super::runtime;
use super::{LogId, Snapshot, SnapshotMeta, StoredMembership, Types};
use crate::core::state::{Outcome, State};

/// Name of the file.
pub const NAME: &str = "snapshot";

/// What the file is made of.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    meta: SnapshotMeta,
    state: Arc<State>,
}

/// The newest snapshot, in the file and here.
#[derive(Clone, Debug)]
struct Kept {
    path: PathBuf,
    newest: Arc<Mutex<Option<Snapshot>>>,
}

impl Kept {
    fn newest(&self) -> Option<Snapshot> {
        let newest = self.newest.lock();
        newest.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Writes a snapshot, unless there is a newer one.
    async fn keep(&self, snapshot: Snapshot) -> Result<(), io::Error> {
        let kept = self.clone();
        let write = move || -> Result<(), Error> {
            let newest = kept.newest.lock();
            let mut newest = newest.unwrap_or_else(PoisonError::into_inner);
            let at = newest.as_ref().and_then(|s| s.meta.last_log_id);
            if newest.is_some() && at >= snapshot.meta.last_log_id {
                return Ok(());
            }
            let record = Record {
                meta: snapshot.meta.clone(),
                state: Arc::clone(&snapshot.snapshot),
            };
            let mut sealed = Vec::new();
            disk::seal(&record, &kept.path, &mut sealed)?;
            disk::replace(&kept.path, &sealed)?;
            *newest = Some(snapshot);
            Ok(())
        };
        runtime::on_disk(write)
            .await
            .map_err(io::Error::other)?
            .map_err(io::Error::from)
    }
}

/// The state and where it is in the log.
#[derive(Debug)]
pub struct Machine {
    applied: Option<LogId>,
    membership: StoredMembership,
    state: watch::Sender<Arc<State>>,
    kept: Kept,
}

impl Machine {
    /// The state as the snapshot in `dir` has it, if there is one.
    ///
    /// # Errors
    /// When it cannot be read or is damaged.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(NAME);
        let record = match disk::load::<Record>(&path)? {
            None => None,
            Some((records, _)) => match <[Record; 1]>::try_from(records) {
                Ok([record]) => Some(record),
                Err(_) => {
                    let why = "it is not one snapshot";
                    return Err(Error::Damaged { path, at: 0, why });
                }
            },
        };
        let newest = record.map(|r| Snapshot {
            meta: r.meta,
            snapshot: r.state,
        });
        let meta = newest.as_ref().map(|s| s.meta.clone()).unwrap_or_default();
        let state = newest.as_ref().map(|s| Arc::clone(&s.snapshot));
        Ok(Self {
            applied: meta.last_log_id,
            membership: meta.last_membership,
            state: watch::Sender::new(state.unwrap_or_default()),
            kept: Kept {
                path,
                newest: Arc::new(Mutex::new(newest)),
            },
        })
    }

    /// The last entry the state comes of.
    pub fn applied(&self) -> Option<LogId> {
        self.applied
    }

    /// The state as it changes.
    pub fn watch(&self) -> watch::Receiver<Arc<State>> {
        self.state.subscribe()
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = Arc<State>;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        let mut state = Arc::clone(&self.state.borrow());
        let mut answers = Vec::new();
        let mut result = Ok(());
        while let Some(next) = entries.next().await {
            let (entry, responder) = match next {
                Ok(next) => next,
                Err(e) => {
                    result = Err(e);
                    break;
                }
            };
            self.applied = Some(entry.log_id);
            let outcome = match entry.payload {
                EntryPayload::Blank => Outcome::default(),
                EntryPayload::Normal(change) => {
                    let outcome = Arc::make_mut(&mut state).apply(&change.0);
                    #[cfg(test)]
                    super::tests::twist(Arc::make_mut(&mut state));
                    outcome
                }
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership);
                    Outcome::default()
                }
            };
            #[cfg(test)]
            super::tests::saw(&self.kept.path, entry.log_id, &state);
            answers.extend(responder.map(|r| (r, outcome)));
        }
        // Who has the answer finds the change made.
        self.state.send_if_modified(|now| {
            let differs = !Arc::ptr_eq(now, &state);
            *now = state;
            differs
        });
        for (responder, outcome) in answers {
            responder.send(outcome);
        }
        result
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            snapshot: Snapshot {
                meta: SnapshotMeta {
                    last_log_id: self.applied,
                    last_membership: self.membership.clone(),
                },
                snapshot: Arc::clone(&self.state.borrow()),
            },
            kept: self.kept.clone(),
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        state: Arc<State>,
    ) -> Result<(), io::Error> {
        let snapshot = Snapshot {
            meta: meta.clone(),
            snapshot: Arc::clone(&state),
        };
        self.kept.keep(snapshot).await?;
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        #[cfg(test)]
        if let Some(at) = meta.last_log_id {
            super::tests::saw(&self.kept.path, at, &state);
        }
        self.state.send_replace(state);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        Ok(self.kept.newest())
    }
}

/// A snapshot that is to be written.
#[derive(Debug)]
pub struct Builder {
    snapshot: Snapshot,
    kept: Kept,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = Arc<State>;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        self.kept.keep(self.snapshot.clone()).await?;
        Ok(self.snapshot.clone())
    }
}
