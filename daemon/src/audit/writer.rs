// SPDX-License-Identifier: MIT OR Apache-2.0

//! The end of an audit log that is written to.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU16;
use std::sync::mpsc::Receiver;

use super::files::{
    Break, Error, Found, MAX_FILE_BYTES, MAX_READ_BYTES, failed, files, first_of, name_of,
};
use super::{Event, MAX_WAITING, Record};
use crate::clock::Clock;
use crate::core::chain::{self, Hash, Head};

/// Files that are kept.
const MAX_FILES: usize = 16;

/// The end of the log that is written to.
pub(super) struct Writer {
    dir: PathBuf,
    node: Arc<AtomicU16>,
    clock: Arc<Clock>,
    head: Head,
    /// None while the next record begins a file.
    file: Option<File>,
    /// Length of the file without what was not written whole.
    bytes: u64,
    /// Records that could not be written.
    lost: u64,
}

impl Writer {
    /// Goes on where the log in `dir` ends.
    pub(super) fn open(
        dir: &Path,
        node: Arc<AtomicU16>,
        clock: Arc<Clock>,
    ) -> Result<(Self, Option<Event>), Error> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(failed("make", dir))?;
        let mut writer = Self {
            dir: dir.to_owned(),
            node,
            clock,
            head: Head::default(),
            file: None,
            bytes: 0,
            lost: 0,
        };
        // The newest with a record in it; one without was only begun.
        for path in files(dir)?.iter().rev() {
            let mut found = Found::default();
            let good_bytes = found.read(path, true, None)?;
            if let Some(broken) = found.broken {
                return Ok(writer.behind(found.head, &broken));
            }
            let Some(head) = found.head else {
                fs::remove_file(path).map_err(failed("remove", path))?;
                continue;
            };
            let file = OpenOptions::new()
                .append(true)
                .open(path)
                .map_err(failed("open", path))?;
            file.set_len(good_bytes).map_err(failed("write", path))?;
            writer.head = head;
            writer.bytes = good_bytes;
            writer.file = Some(file);
            break;
        }
        Ok((writer, None))
    }

    /// Goes on in a new file behind the broken one: the break stays to be seen.
    fn behind(mut self, head: Option<Head>, broken: &Break) -> (Self, Option<Event>) {
        let file = broken.path.file_name().unwrap_or_default();
        let file = file.to_string_lossy().into_owned();
        let first = first_of(&file).unwrap_or(0);
        self.head = Head {
            // Behind every record that may be in the broken file, none of which is one byte long.
            seq: head.map_or(first, |h| h.seq).saturating_add(MAX_READ_BYTES),
            hash: head.map_or_else(|| Hash::of(file.as_bytes()), |h| h.hash),
        };
        let event = Event::Damaged {
            file,
            line: broken.line,
            why: broken.why.to_string(),
        };
        (self, Some(event))
    }

    /// Writes and syncs records. Those that cannot be written are counted.
    fn write(&mut self, records: &[Record]) {
        if let Err(e) = self.try_write(records) {
            if self.lost == 0 {
                tracing::error!("audit log: {:#}", anyhow::Error::from(e));
            }
            self.lost += records.len() as u64;
        }
    }

    fn try_write(&mut self, records: &[Record]) -> Result<(), Error> {
        if self.file.is_none() || self.bytes >= MAX_FILE_BYTES {
            self.begin_file()?;
        }
        let path = self.dir.clone();
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let (mut out, mut head) = (Vec::new(), self.head);
        if self.lost > 0 {
            let unrecorded = Record::now(
                self.clock.tick(),
                &self.node,
                Event::Unrecorded { count: self.lost },
            );
            head = chain::seal(head, &unrecorded, &mut out)
                .map_err(|e| failed("write", &path)(e.into()))?;
        }
        for record in records {
            head = chain::seal(head, record, &mut out)
                .map_err(|e| failed("write", &path)(e.into()))?;
        }
        // Half a batch that is left of a failure must not stand in the way.
        file.set_len(self.bytes)
            .and_then(|()| file.write_all(&out))
            .and_then(|()| file.sync_data())
            .map_err(failed("write", &path))?;
        self.bytes += out.len() as u64;
        self.head = head;
        self.lost = 0;
        Ok(())
    }

    fn begin_file(&mut self) -> Result<(), Error> {
        let path = name_of(&self.dir, self.head.seq.saturating_add(1));
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed("make", &path))?;
        // One of that name has no record in it.
        file.set_len(0).map_err(failed("write", &path))?;
        File::open(&self.dir)
            .and_then(|d| d.sync_all())
            .map_err(failed("sync", &self.dir))?;
        self.file = Some(file);
        self.bytes = 0;
        let all = files(&self.dir)?;
        for old in &all[..all.len().saturating_sub(MAX_FILES)] {
            if let Err(e) = fs::remove_file(old) {
                tracing::warn!("cannot remove {}: {e}", old.display());
            }
        }
        Ok(())
    }

    /// Writes what comes, all that waits at once, until nothing can come any more.
    pub(super) fn run(mut self, records: &Receiver<Record>) {
        while let Ok(record) = records.recv() {
            let mut batch = vec![record];
            batch.extend(records.try_iter().take(MAX_WAITING));
            self.write(&batch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::verify;
    use super::*;
    use crate::core::hlc::Stamp;
    use serde_json::Value;

    fn record(peer: u16) -> Record {
        Record::now(
            Stamp::default(),
            &AtomicU16::new(1),
            Event::NodeDead { peer },
        )
    }

    #[test]
    fn full_files_are_followed_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, _) =
            Writer::open(dir.path(), Arc::new(AtomicU16::new(1)), Arc::default()).unwrap();
        for n in 0..30 {
            writer.bytes = MAX_FILE_BYTES;
            writer.write(&[record(n)]);
        }
        assert_eq!(files(dir.path()).unwrap().len(), MAX_FILES);
        let found = verify(dir.path(), None).unwrap();
        assert_eq!((found.first, found.records()), (15, 16));
        assert_eq!(found.broken, None);
    }

    #[test]
    fn what_could_not_be_written_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (mut writer, _) =
            Writer::open(&path, Arc::new(AtomicU16::new(1)), Arc::default()).unwrap();
        fs::remove_dir(&path).unwrap();
        writer.write(&[record(0), record(1)]);
        writer.write(&[record(2)]);
        fs::create_dir(&path).unwrap();
        writer.write(&[record(3)]);
        let text = fs::read_to_string(&files(&path).unwrap()[0]).unwrap();
        let events: Vec<Value> = text
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        assert_eq!(events.len(), 2);
        assert_eq!(
            (&events[0]["event"], &events[0]["count"]),
            (&"unrecorded".into(), &3.into())
        );
        assert_eq!(events[1]["peer"], 3);
        assert_eq!(verify(&path, None).unwrap().broken, None);
    }
}
