// SPDX-License-Identifier: MIT OR Apache-2.0

//! The file of the log: what was written comes to what is held.
//!
//! It is appended to. When old entries go, what is left is written to a new file, which takes the
//! place of the old one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use ssi::id::NodeId;

use super::super::disk::{self, Error};
use super::super::{Entry, LogId, Vote};

/// What is no more of use is cut out when it is so much.
const MAX_STALE_BYTES: u64 = 1 << 20;

/// What the file is made of.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Record {
    /// Whose log this is; the first record.
    Node(u16),
    /// For whom this node has voted last.
    Vote(Vote),
    /// The next entry.
    Entry(Arc<Entry>),
    /// Entries behind this one are no more.
    Cut(Option<LogId>),
    /// Entries up to this one are in a snapshot, and no more.
    Purged(LogId),
    /// Entries up to this one are known to be agreed on.
    Agreed(Option<LogId>),
}

/// What all records come to.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// For whom this node has voted last.
    pub vote: Option<Vote>,
    /// Entries by their numbers.
    pub entries: BTreeMap<u64, Arc<Entry>>,
    /// The last entry that is only in a snapshot.
    pub purged: Option<LogId>,
    /// The last entry that is known to be agreed on.
    pub agreed: Option<LogId>,
}

impl Held {
    /// The last entry there is or was.
    pub fn last(&self) -> Option<LogId> {
        let last = self.entries.last_key_value().map(|(_, e)| e.log_id);
        last.or(self.purged)
    }

    /// Takes a record in.
    ///
    /// # Errors
    /// It does not fit to those before.
    pub fn take(&mut self, record: Record) -> Result<(), &'static str> {
        match record {
            Record::Node(_) => return Err("a record is in the wrong place"),
            Record::Vote(vote) => self.vote = Some(vote),
            Record::Entry(entry) => {
                let index = entry.log_id.index;
                if self.last().map_or(0, |last| last.index.saturating_add(1)) != index {
                    return Err("an entry does not follow the one before");
                }
                self.entries.insert(index, entry);
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
            disk::seal(&Record::Entry(Arc::clone(entry)), path, &mut out)?;
        }
        disk::seal(&Record::Agreed(self.agreed), path, &mut out)?;
        Ok(out)
    }
}

/// The file, open.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    node: NodeId,
    /// None after a write that failed: nobody knows what of it is on the disk.
    file: Option<File>,
    /// Bytes that are no entries, since the file was begun.
    stale_bytes: u64,
    held: Held,
}

impl LogFile {
    /// Makes that of `node`, which has said nothing yet, at `path`.
    ///
    /// # Errors
    /// When there is one, or it cannot be written.
    pub fn begin(path: &Path, node: NodeId) -> Result<(), Error> {
        if path.exists() {
            return Err(disk::failed("make", path)(
                io::ErrorKind::AlreadyExists.into(),
            ));
        }
        disk::replace(path, &Held::default().sealed(node, path)?).map(drop)
    }

    /// Opens that of `node` at `path`.
    ///
    /// # Errors
    /// When it cannot be read or written, is damaged, missing, or that of another node.
    pub fn open(path: PathBuf, node: NodeId) -> Result<Self, Error> {
        let mut held = Held::default();
        match disk::load::<Record>(&path)? {
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
            }
        }
        // What is read may not be on the disk: after a sync that failed the system takes it
        // for written, and no later sync writes it. So all of it is written anew.
        let (file, _) = disk::replace(&path, &held.sealed(node, &path)?)?;
        Ok(Self {
            path,
            node,
            file: Some(file),
            stale_bytes: 0,
            held,
        })
    }

    /// What is on the disk.
    pub fn held(&self) -> &Held {
        &self.held
    }

    /// Adds records to it, durably: all or none.
    ///
    /// # Errors
    /// When they do not fit, or cannot be written.
    pub fn extend(&mut self, records: Vec<Record>) -> Result<(), Error> {
        self.hold(records)?;
        self.file = Some(self.renew()?);
        Ok(())
    }

    /// Takes in what is on the disk, or will be.
    fn hold(&mut self, records: Vec<Record>) -> Result<(), Error> {
        for record in records {
            self.held.take(record).map_err(|why| Error::Damaged {
                path: self.path.clone(),
                at: 0,
                why,
            })?;
        }
        Ok(())
    }

    /// Writes all there is to a new file, which takes the place of the old one.
    fn renew(&mut self) -> Result<File, Error> {
        let sealed = self.held.sealed(self.node, &self.path)?;
        let (file, _) = disk::replace(&self.path, &sealed)?;
        self.stale_bytes = 0;
        Ok(file)
    }

    /// Appends records, durably if `sync` says so.
    ///
    /// # Errors
    /// Nobody knows what of them is on the disk; there can be no more.
    pub fn write(&mut self, records: Vec<Record>, sync: bool) -> Result<(), Error> {
        let mut file = self.file.take().ok_or_else(|| Error::Failed {
            path: self.path.clone(),
        })?;
        let mut out = Vec::new();
        let mut purges = false;
        for record in &records {
            let before = out.len();
            disk::seal(record, &self.path, &mut out)?;
            if !matches!(record, Record::Entry(_)) {
                self.stale_bytes += (out.len() - before) as u64;
            }
            purges |= matches!(record, Record::Purged(_));
        }
        disk::append(&mut file, &self.path, &out, sync)?;
        self.hold(records)?;
        if purges || self.stale_bytes > MAX_STALE_BYTES {
            file = self.renew()?;
        }
        self.file = Some(file);
        Ok(())
    }
}
