// SPDX-License-Identifier: MIT OR Apache-2.0

//! The log of this node: entries and votes.
//!
//! Entries are there to be read at once, so that others get them while this node's disk is at work, and
//! count when they are on the disk. What is asked of the disk is done in order: what is on it is all there was up to
//! some moment. Whatever comes while it is at work is written together.

mod file;

use std::fmt::{self, Debug};
use std::io;
use std::mem;
use std::ops::RangeBounds;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use ssi::id::NodeId;
use tokio::sync::oneshot;

use self::file::Held;
pub use self::file::{LogFile, Record};
use super::disk::Error;
use super::runtime;
use super::{Entry, LogId, Types, Vote};

/// Name of the file.
pub const NAME: &str = "log";

/// Who waits for the disk.
enum Waiting {
    Nobody,
    Here(oneshot::Sender<Result<(), io::Error>>),
    Raft(IOFlushed<Types>),
}

impl Waiting {
    fn tell(self, result: Result<(), io::Error>) {
        match self {
            Self::Nobody => {}
            // Nobody waits any more when this node stops.
            Self::Here(here) => drop(here.send(result)),
            Self::Raft(raft) => raft.io_completed(result),
        }
    }
}

/// Is told when the disk fails.
pub type Failed = oneshot::Receiver<()>;

/// What is there, and what of it the disk is still to get.
struct Queue {
    held: Held,
    records: Vec<Record>,
    sync: bool,
    waiting: Vec<Waiting>,
    /// Somebody brings it to the disk.
    is_served: bool,
    /// Is told when the disk fails.
    failed: Option<oneshot::Sender<()>>,
}

struct Inner {
    queue: Mutex<Queue>,
    file: Mutex<LogFile>,
}

/// The log; clones are of the same one.
#[derive(Clone)]
pub struct Log(Arc<Inner>);

impl Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with(|held| held.fmt(f))
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Log {
    /// Opens the log of `node` in `dir`. What is told when the disk fails comes with it: it may fail while
    /// nobody waits for it.
    ///
    /// # Errors
    /// When it cannot be read or written, is damaged, missing, or that of another node.
    pub fn open(dir: &Path, node: NodeId) -> Result<(Self, Failed), Error> {
        let (failed, told) = oneshot::channel();
        let file = LogFile::open(dir.join(NAME), node)?;
        let queue = Queue {
            held: file.held().clone(),
            records: Vec::new(),
            sync: false,
            waiting: Vec::new(),
            is_served: false,
            failed: Some(failed),
        };
        let log = Self(Arc::new(Inner {
            queue: Mutex::new(queue),
            file: Mutex::new(file),
        }));
        Ok((log, told))
    }

    /// The last entry that is only in a snapshot.
    pub fn purged(&self) -> Option<LogId> {
        self.with(|held| held.purged)
    }

    /// The last entry there is or was.
    pub fn last(&self) -> Option<LogId> {
        self.with(Held::last)
    }

    /// Whether it has this entry, where it knows those up to `applied` to be agreed on; no others
    /// than those are agreed on anywhere.
    pub fn has(&self, id: &LogId, applied: Option<LogId>) -> bool {
        applied.is_some_and(|applied| id.index <= applied.index)
            || self.with(|held| {
                let entry = held.entries.get(&id.index);
                entry.is_some_and(|e| e.log_id == *id)
            })
    }

    fn with<T>(&self, f: impl FnOnce(&Held) -> T) -> T {
        f(&locked(&self.0.queue).held)
    }

    /// Takes records in, and has them written; `waiting` is told when they are.
    fn put(&self, records: Vec<Record>, sync: bool, waiting: Waiting) -> Result<(), io::Error> {
        let mut queue = locked(&self.0.queue);
        for record in records {
            queue.held.take(record.clone()).map_err(io::Error::other)?;
            queue.records.push(record);
        }
        queue.sync |= sync;
        queue.waiting.push(waiting);
        if !mem::replace(&mut queue.is_served, true) {
            tokio::spawn(self.clone().serve());
        }
        Ok(())
    }

    /// As [`Self::put`], and waits until they are on the disk.
    async fn put_now(&self, records: Vec<Record>) -> Result<(), io::Error> {
        let (done, told) = oneshot::channel();
        self.put(records, true, Waiting::Here(done))?;
        told.await.map_err(io::Error::other)?
    }

    /// Waits until nothing is to be written any more.
    ///
    /// # Errors
    /// When something could not be.
    pub async fn settle(&self) -> Result<(), io::Error> {
        self.put_now(Vec::new()).await
    }

    /// Brings to the disk what is to go there, until there is no more.
    async fn serve(self) {
        loop {
            let (records, sync, waiting) = {
                let mut queue = locked(&self.0.queue);
                if queue.waiting.is_empty() {
                    queue.is_served = false;
                    return;
                }
                let sync = mem::take(&mut queue.sync);
                let records = mem::take(&mut queue.records);
                (records, sync, mem::take(&mut queue.waiting))
            };
            let log = self.clone();
            let write = move || locked(&log.0.file).write(records, sync);
            let written = match runtime::on_disk(write).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(e)) => Err(io::Error::from(e).to_string()),
                Err(e) => Err(e.to_string()),
            };
            if written.is_err()
                && let Some(failed) = locked(&self.0.queue).failed.take()
            {
                // Nobody listens any more when this node stops.
                let _ = failed.send(());
            }
            for waiting in waiting {
                waiting.tell(written.clone().map_err(io::Error::other));
            }
        }
    }
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<Entry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        Ok(self.with(|held| {
            let entries = held.entries.iter();
            let some = entries.filter(|(index, _)| range.contains(index));
            some.map(|(_, entry)| Entry::clone(entry)).collect()
        }))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.with(|held| held.vote))
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        Ok(self.with(|held| LogState {
            last_purged_log_id: held.purged,
            last_log_id: held.last(),
        }))
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        #[cfg(test)]
        super::tests::followed(vote);
        self.put_now(vec![Record::Vote(*vote)]).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        // What is lost of this is learnt again.
        self.put(vec![Record::Agreed(committed)], false, Waiting::Nobody)
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        // It is not synced, and an entry it names may have been cut off with the tail.
        Ok(self.with(|held| held.agreed.min(held.last())))
    }

    async fn append<I>(&mut self, entries: I, flushed: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let records = entries
            .into_iter()
            .map(|e| Record::Entry(Arc::new(e)))
            .collect();
        self.put(records, true, Waiting::Raft(flushed))
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        self.put_now(vec![Record::Cut(last)]).await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        if self.purged() >= Some(upto) {
            return Ok(());
        }
        self.put(vec![Record::Purged(upto)], false, Waiting::Nobody)
    }
}
