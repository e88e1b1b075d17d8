// SPDX-License-Identifier: MIT OR Apache-2.0

//! The log on this node's disk: entries and votes, durable before anybody hears of them.
//!
//! One file, to which is appended; all that counts is in memory as well. When old entries go, what
//! is left is written to a new file, which takes the place of the old one.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::ops::RangeBounds;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
use serde::{Deserialize, Serialize};
use ssi::id::NodeId;

use super::disk::{self, Error};
use super::runtime;
use super::{Entry, LogId, Types, Vote};

/// Name of the file.
pub const NAME: &str = "log";
/// What is no more of use is cut out when it is so much.
const MAX_STALE_BYTES: u64 = 1 << 20;

/// What the file is made of.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Record {
    /// Whose log this is; the first record.
    Node(u16),
    Vote(Vote),
    Entry(Box<Entry>),
    /// Entries behind this one are no more.
    Cut(Option<LogId>),
    /// Entries up to this one are in a snapshot, and no more.
    Purged(LogId),
    /// Entries up to this one are known to be agreed on.
    Agreed(Option<LogId>),
}

/// What all records come to.
#[derive(Debug, Default)]
struct Held {
    vote: Option<Vote>,
    entries: BTreeMap<u64, Entry>,
    purged: Option<LogId>,
    agreed: Option<LogId>,
}

impl Held {
    fn last(&self) -> Option<LogId> {
        let last = self.entries.last_key_value().map(|(_, e)| e.log_id);
        last.or(self.purged)
    }

    /// Takes a record in; it may not fit to those before.
    fn take(&mut self, record: Record) -> Result<(), &'static str> {
        match record {
            Record::Node(_) => return Err("a record is in the wrong place"),
            Record::Vote(vote) => self.vote = Some(vote),
            Record::Entry(entry) => {
                let index = entry.log_id.index;
                if self.last().map_or(0, |last| last.index.saturating_add(1)) != index {
                    return Err("an entry does not follow the one before");
                }
                self.entries.insert(index, *entry);
            }
            Record::Cut(last) => match last {
                Some(last) => self.entries.retain(|index, _| *index <= last.index),
                None => self.entries.clear(),
            },
            Record::Purged(upto) => {
                self.entries.retain(|index, _| *index > upto.index);
                self.purged = Some(upto);
            }
            Record::Agreed(upto) => self.agreed = upto,
        }
        Ok(())
    }

    fn sealed(&self, node: NodeId, path: &Path) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        disk::seal(&Record::Node(node.get()), path, &mut out)?;
        if let Some(vote) = self.vote {
            disk::seal(&Record::Vote(vote), path, &mut out)?;
        }
        if let Some(upto) = self.purged {
            disk::seal(&Record::Purged(upto), path, &mut out)?;
        }
        for entry in self.entries.values() {
            disk::seal(&Record::Entry(Box::new(entry.clone())), path, &mut out)?;
        }
        disk::seal(&Record::Agreed(self.agreed), path, &mut out)?;
        Ok(out)
    }
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    node: NodeId,
    /// None after a write that failed: nobody knows what of it is on the disk.
    file: Option<File>,
    /// Bytes that are no entries, since the file was begun.
    stale_bytes: u64,
    held: Held,
}

impl Inner {
    /// Writes records, and takes them in when they are on the disk.
    fn write(&mut self, records: Vec<Record>, sync: bool) -> Result<(), Error> {
        let Some(mut file) = self.file.take() else {
            return Err(Error::Failed {
                path: self.path.clone(),
            });
        };
        let mut out = Vec::new();
        let mut stale_bytes = 0;
        for record in &records {
            let before = out.len();
            if let Err(e) = disk::seal(record, &self.path, &mut out) {
                self.file = Some(file);
                return Err(e);
            }
            if !matches!(record, Record::Entry(_)) {
                stale_bytes += (out.len() - before) as u64;
            }
        }
        disk::append(&mut file, &self.path, &out, sync)?;
        for record in records {
            self.held.take(record).map_err(|why| Error::Damaged {
                path: self.path.clone(),
                at: 0,
                why,
            })?;
        }
        self.file = Some(file);
        self.stale_bytes += stale_bytes;
        if self.stale_bytes > MAX_STALE_BYTES {
            self.compact()?;
        }
        Ok(())
    }

    /// Begins a file with what counts.
    fn compact(&mut self) -> Result<(), Error> {
        if self.file.take().is_none() {
            return Err(Error::Failed {
                path: self.path.clone(),
            });
        }
        let sealed = self.held.sealed(self.node, &self.path)?;
        let (file, _) = disk::replace(&self.path, &sealed)?;
        self.file = Some(file);
        self.stale_bytes = 0;
        Ok(())
    }
}

/// The log; clones are of the same one.
#[derive(Clone, Debug)]
pub struct Log(Arc<Mutex<Inner>>);

impl Log {
    /// Opens the log of `node` in `dir`, and makes one if there is none and `may_make` says so.
    ///
    /// # Errors
    /// When it cannot be read or written, is damaged, missing, or that of another node.
    pub fn open(dir: &Path, node: NodeId, may_make: bool) -> Result<Self, Error> {
        let path = dir.join(NAME);
        let mut held = Held::default();
        let file = match disk::load::<Record>(&path)? {
            None if may_make => disk::replace(&path, &held.sealed(node, &path)?)?.0,
            None => return Err(Error::Missing { path }),
            Some((records, bytes)) => {
                let damaged = |at, why| Error::Damaged {
                    path: path.clone(),
                    at,
                    why,
                };
                let mut records = records.into_iter();
                match records.next() {
                    Some(Record::Node(n)) if n == node.get() => {}
                    Some(Record::Node(node)) => return Err(Error::Foreign { path, node }),
                    _ => return Err(damaged(0, "it does not say whose it is")),
                }
                for record in records {
                    held.take(record).map_err(|why| damaged(bytes, why))?;
                }
                // What is read may not be on the disk: after a sync that failed the system takes it
                // for written, and no later sync writes it. So all of it is written anew.
                disk::replace(&path, &held.sealed(node, &path)?)?.0
            }
        };
        Ok(Self(Arc::new(Mutex::new(Inner {
            path,
            node,
            file: Some(file),
            stale_bytes: 0,
            held,
        }))))
    }

    /// The last entry that is only in a snapshot.
    pub fn purged(&self) -> Option<LogId> {
        self.with(|inner| inner.held.purged)
    }

    fn with<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Does disk work off the threads that must not wait.
    async fn on_disk<F>(&self, f: F) -> Result<(), io::Error>
    where
        F: FnOnce(&mut Inner) -> Result<(), Error> + Send + 'static,
    {
        let log = self.clone();
        runtime::on_disk(move || log.with(f))
            .await
            .map_err(io::Error::other)?
            .map_err(io::Error::from)
    }
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<Entry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let wanted = |index: &u64| range.contains(index);
        Ok(self.with(|inner| {
            let entries = inner.held.entries.iter();
            let some = entries.filter(|(index, _)| wanted(index));
            some.map(|(_, entry)| entry.clone()).collect()
        }))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.with(|inner| inner.held.vote))
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        Ok(self.with(|inner| LogState {
            last_purged_log_id: inner.held.purged,
            last_log_id: inner.held.last(),
        }))
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let record = Record::Vote(*vote);
        self.on_disk(|inner| inner.write(vec![record], true)).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        // What is lost of this is learnt again.
        let record = Record::Agreed(committed);
        self.on_disk(|inner| inner.write(vec![record], false)).await
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        // It is not synced, and an entry it names may have been cut off with the tail.
        Ok(self.with(|inner| inner.held.agreed.min(inner.held.last())))
    }

    async fn append<I>(&mut self, entries: I, flushed: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let records = entries
            .into_iter()
            .map(|e| Record::Entry(Box::new(e)))
            .collect();
        self.on_disk(|inner| inner.write(records, true)).await?;
        flushed.io_completed(Ok(()));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let record = Record::Cut(last);
        self.on_disk(|inner| inner.write(vec![record], true)).await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        self.on_disk(move |inner| {
            if inner.held.purged >= Some(upto) {
                return Ok(());
            }
            inner.write(vec![Record::Purged(upto)], false)?;
            inner.compact()
        })
        .await
    }
}
