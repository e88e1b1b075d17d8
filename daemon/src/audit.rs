// SPDX-License-Identifier: MIT OR Apache-2.0

//! The audit log: who was let in or turned away, and who moved what, in a chain of records
//! ([`crate::core::chain`]) on this node's disk.
//!
//! The log is a directory of files named by the number of their first record. A file that is full
//! is followed by another; the oldest go. Records are written and synced by a thread of their own:
//! nothing waits for the disk. What cannot be written, and what others could fill the disk with, is
//! counted, and the count is the next record.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::core::chain::{self, Hash, Head, Wrong};
use crate::core::limit::Limit;

/// Where the log is kept.
pub const DEFAULT_PATH: &str = "/var/lib/ssid/audit";
/// A file with so much is followed by another.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// Files that are kept.
const MAX_FILES: usize = 16;
/// Longest file that is read: the limit may be passed by the records of one batch.
const MAX_READ_BYTES: u64 = 2 * MAX_FILE_BYTES;
/// Records that wait for the disk.
const MAX_WAITING: usize = 1024;
/// What others can cause at no cost of theirs is recorded so often at once,
const BURST: u32 = 100;
/// and then once in so many milliseconds.
const PACE_MS: u64 = 250;
/// Longest text of one field; what is longer is cut.
const MAX_TEXT_BYTES: usize = 512;
/// Longest wait for the last records at the end of the daemon.
const CLOSE_IN: Duration = Duration::from_secs(5);

/// What is recorded. The names are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The daemon has started.
    Started {
        /// Its version.
        version: &'static str,
    },
    /// The daemon was told to stop.
    Stopped,
    /// The daemon was told to read its configuration and certificates again.
    Reloaded {
        /// `done`, or why not.
        outcome: String,
    },
    /// A node has proved who it is.
    NodeAdmitted {
        /// Who.
        peer: u16,
        /// Where from, or where to.
        addr: String,
        /// What the connection is for.
        purpose: &'static str,
        /// Whether it connected, and not we.
        incoming: bool,
    },
    /// A connection was turned away, or is not to whom it should be.
    ConnectionRefused {
        /// Where from, or where to.
        addr: String,
        /// Whether it connected, and not we.
        incoming: bool,
        /// Why.
        why: String,
    },
    /// A node was declared dead.
    NodeDead {
        /// Which.
        peer: u16,
    },
    /// Someone wanted to move a process that ran here.
    Migrate {
        /// The process.
        pid: u32,
        /// The target.
        to: u16,
        /// The user who asked.
        uid: u32,
        /// `moved`, or why not.
        outcome: String,
    },
    /// A node wanted to send a process here.
    Arrival {
        /// The process.
        pid: u32,
        /// The node.
        from: u16,
        /// `ready`, or why not.
        outcome: String,
    },
    /// Records there was no room for, and repeated ones that were left out.
    Unrecorded {
        /// How many.
        count: u64,
    },
    /// The log as it was found did not end well, and goes on behind that.
    Damaged {
        /// The file.
        file: String,
        /// The first line that does not fit, from 1.
        line: u64,
        /// What is wrong with it.
        why: String,
    },
}

/// Who can cause records at no cost of theirs. Each has a limit of its own, so that none can hide
/// what another does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Stranger,
    Node,
    User,
}

/// How many [`Cause`]s there are.
const CAUSES: usize = 3;

impl Event {
    /// Who can cause as many of these as they like; nobody if what it records is work itself.
    fn cause(&self) -> Option<Cause> {
        match self {
            Event::ConnectionRefused { .. } => Some(Cause::Stranger),
            Event::NodeAdmitted { .. } | Event::Arrival { .. } => Some(Cause::Node),
            Event::Migrate { outcome, .. } if outcome != MOVED => Some(Cause::User),
            _ => None,
        }
    }

    fn cut(mut self) -> Self {
        if let Event::ConnectionRefused { why: text, .. }
        | Event::Migrate { outcome: text, .. }
        | Event::Arrival { outcome: text, .. }
        | Event::Reloaded { outcome: text }
        | Event::Damaged { why: text, .. } = &mut self
        {
            text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
        }
        self
    }
}

/// Outcome of a move that was made.
pub const MOVED: &str = "moved";
/// Outcome of an arrival that was made ready for.
pub const READY: &str = "ready";

#[derive(Debug, Serialize)]
struct Record {
    time: String,
    node: u16,
    #[serde(flatten)]
    event: Event,
}

/// The log cannot be kept or read.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {path}")]
pub struct Error {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error {
        what,
        path: path.to_owned(),
        source,
    }
}

/// The files of a log, the oldest first.
fn files(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let read = || -> io::Result<Vec<PathBuf>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(dir)? {
            let name = entry?.file_name();
            if name.to_str().and_then(first_of).is_some() {
                all.push(dir.join(name));
            }
        }
        all.sort();
        Ok(all)
    };
    read().map_err(failed("read", dir))
}

/// The number of the first record of the file `name`, if it is one of a log.
fn first_of(name: &str) -> Option<u64> {
    let number = name.strip_prefix("audit-")?.strip_suffix(".jsonl")?;
    // As many digits for all, so that their order is that of the numbers.
    let digits = number.len() == 20 && number.bytes().all(|b| b.is_ascii_digit());
    number.parse().ok().filter(|_| digits)
}

fn name_of(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("audit-{first:020}.jsonl"))
}

/// A line that does not follow the one before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Break {
    /// The file.
    pub path: PathBuf,
    /// The line in it, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub why: Wrong,
}

/// What a log holds, as far as it is whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Number of the first record.
    pub first: u64,
    /// The last record that follows from all before it.
    pub head: Option<Head>,
    /// Where the chain breaks.
    pub broken: Option<Break>,
    /// Bytes of a last line that was not finished.
    pub unfinished_bytes: u64,
    /// Whether the record that was looked for is there.
    pub seen: bool,
}

impl Found {
    /// How many records follow from the first.
    pub fn records(&self) -> u64 {
        self.head.map_or(0, |h| h.seq - self.first + 1)
    }

    fn read(&mut self, path: &Path, is_last: bool, wanted: Option<Hash>) -> Result<u64, Error> {
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|f| f.take(MAX_READ_BYTES).read_to_end(&mut bytes))
            .map_err(failed("read", path))?;
        let mut good_bytes = 0;
        for (line, n) in bytes.split_inclusive(|b| *b == b'\n').zip(1..) {
            let result = match line.strip_suffix(b"\n") {
                None if is_last => {
                    self.unfinished_bytes = line.len() as u64;
                    break;
                }
                None => Err(Wrong::Form),
                Some(line) => chain::follow(self.head, line),
            };
            match result {
                Ok(head) => {
                    if self.head.is_none() {
                        self.first = head.seq;
                    }
                    self.seen |= wanted == Some(head.hash);
                    self.head = Some(head);
                    good_bytes += line.len() as u64;
                }
                Err(why) => {
                    let path = path.to_owned();
                    self.broken = Some(Break { path, line: n, why });
                    break;
                }
            }
        }
        Ok(good_bytes)
    }
}

/// Checks the log in `dir`, and looks for the record with the hash `wanted`.
///
/// # Errors
/// When it cannot be read. What is wrong in it is in [`Found`].
pub fn verify(dir: &Path, wanted: Option<Hash>) -> Result<Found, Error> {
    let files = files(dir)?;
    let mut found = Found::default();
    for (i, path) in files.iter().enumerate() {
        found.read(path, i + 1 == files.len(), wanted)?;
        if found.broken.is_some() {
            break;
        }
    }
    Ok(found)
}

/// The end of the log that is written to.
struct Writer {
    dir: PathBuf,
    node: u16,
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
    fn open(dir: &Path, node: u16) -> Result<(Self, Option<Event>), Error> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(failed("make", dir))?;
        let mut writer = Self {
            dir: dir.to_owned(),
            node,
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
            let unrecorded = Record::now(self.node, Event::Unrecorded { count: self.lost });
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
        let path = name_of(&self.dir, self.head.seq + 1);
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
    fn run(mut self, records: &Receiver<Record>) {
        while let Ok(record) = records.recv() {
            let mut batch = vec![record];
            batch.extend(records.try_iter().take(MAX_WAITING));
            self.write(&batch);
        }
    }
}

impl Record {
    fn now(node: u16, event: Event) -> Self {
        // A clock beyond the year 9999 has no such spelling.
        let time = OffsetDateTime::now_utc();
        Self {
            time: time.format(&Rfc3339).unwrap_or_default(),
            node,
            event: event.cut(),
        }
    }
}

struct State {
    limits: [Limit; CAUSES],
    left_out: u64,
    /// None once it is closed.
    records: Option<SyncSender<Record>>,
}

/// A handle to the log.
pub struct Audit {
    node: u16,
    start: Instant,
    state: Mutex<State>,
    closed: Mutex<Receiver<()>>,
}

impl std::fmt::Debug for Audit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Audit").finish_non_exhaustive()
    }
}

impl Audit {
    /// Opens the log in `dir`, which is made if need be, and goes on where it ends.
    ///
    /// # Errors
    /// When it cannot be read or made.
    pub fn open(dir: &Path, node: u16) -> Result<Self, Error> {
        let (writer, damage) = Writer::open(dir, node)?;
        let (records, waiting) = sync_channel(MAX_WAITING);
        let (close, closed) = sync_channel(1);
        std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || {
                writer.run(&waiting);
                drop(close);
            })
            .map_err(failed("write", dir))?;
        let audit = Self {
            node,
            start: Instant::now(),
            state: Mutex::new(State {
                limits: [Limit::new(BURST, PACE_MS); CAUSES],
                left_out: 0,
                records: Some(records),
            }),
            closed: Mutex::new(closed),
        };
        if let Some(damage) = damage {
            tracing::error!("the audit log is damaged: {damage:?}");
            audit.record(damage);
        }
        Ok(audit)
    }

    /// Records `event`. Does not wait.
    pub fn record(&self, event: Event) {
        let now_ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cause) = event.cause()
            && !state.limits[cause as usize].take(now_ms)
        {
            state.left_out += 1;
            return;
        }
        let State {
            left_out, records, ..
        } = &mut *state;
        let Some(records) = records else { return };
        if *left_out > 0 {
            let unrecorded = Event::Unrecorded { count: *left_out };
            if records.try_send(Record::now(self.node, unrecorded)).is_ok() {
                *left_out = 0;
            }
        }
        if records.try_send(Record::now(self.node, event)).is_err() {
            *left_out += 1;
        }
    }

    /// Records `event` as the last, and waits until it is on the disk, but not for ever.
    pub fn close(&self, event: Event) {
        self.record(event);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.records = None;
        drop(state);
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        if closed.recv_timeout(CLOSE_IN) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("the last records of the audit log are not on the disk");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn migrate(pid: u32, outcome: &str) -> Event {
        Event::Migrate {
            pid,
            to: 2,
            uid: 0,
            outcome: outcome.to_owned(),
        }
    }

    fn events(dir: &Path) -> Vec<Value> {
        let all = files(dir).unwrap();
        let text: String = all.iter().map(|f| fs::read_to_string(f).unwrap()).collect();
        text.lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect()
    }

    fn run(dir: &Path, records: u32) {
        let audit = Audit::open(dir, 1).unwrap();
        (0..records).for_each(|n| audit.record(migrate(n, MOVED)));
        audit.close(Event::Stopped);
        audit.record(Event::Stopped);
    }

    #[test]
    fn one_chain_over_many_runs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/for/it");
        for _ in 0..3 {
            run(&path, 5);
        }
        let found = verify(&path, None).unwrap();
        assert_eq!((found.records(), found.broken), (18, None));
        let events = events(&path);
        assert_eq!(events[5]["event"], "stopped");
        assert_eq!(events[17]["seq"], 18);
        assert_eq!(events[0]["pid"], 0);
        assert_eq!(events[0]["node"], 1);
        assert!(events[0]["time"].as_str().unwrap().ends_with('Z'));
        let head = found.head.unwrap().hash;
        assert!(verify(&path, Some(head)).unwrap().seen);
        assert!(!verify(&path, Some(Hash::of(b"other"))).unwrap().seen);
    }

    #[test]
    fn a_log_cut_at_any_byte_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        run(dir.path(), 3);
        let file = files(dir.path()).unwrap().remove(0);
        let bytes = fs::read(&file).unwrap();
        for cut in 0..bytes.len() {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(file.file_name().unwrap()), &bytes[..cut]).unwrap();
            let whole = bytes[..cut].iter().filter(|b| **b == b'\n').count() as u64;
            assert_eq!(verify(dir.path(), None).unwrap().records(), whole);
            run(dir.path(), 1);
            let found = verify(dir.path(), None).unwrap();
            assert_eq!(
                (found.records(), found.broken),
                (whole + 2, None),
                "at {cut}"
            );
            assert_eq!(found.unfinished_bytes, 0);
        }
    }

    #[test]
    fn a_damaged_log_stays_damaged_and_the_daemon_starts() {
        let dir = tempfile::tempdir().unwrap();
        run(dir.path(), 3);
        let file = files(dir.path()).unwrap().remove(0);
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replace("\"pid\":1", "\"pid\":7")).unwrap();
        run(dir.path(), 1);
        run(dir.path(), 1);
        let broken = verify(dir.path(), None).unwrap().broken.unwrap();
        assert_eq!((broken.line, broken.why), (2, Wrong::Content));
        assert_eq!(broken.path, file);
        let events = events(dir.path());
        assert!(
            events
                .iter()
                .any(|e| e["event"] == "damaged" && e["line"] == 2)
        );
        // What came after holds together.
        fs::remove_file(&file).unwrap();
        let found = verify(dir.path(), None).unwrap();
        assert_eq!((found.records(), found.broken), (5, None));
    }

    #[test]
    fn what_others_cause_does_not_fill_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let audit = Audit::open(dir.path(), 1).unwrap();
        for n in 0..5000 {
            audit.record(Event::ConnectionRefused {
                addr: "192.0.2.1:9".to_owned(),
                incoming: true,
                why: "x".repeat(100_000),
            });
            audit.record(migrate(n, "already-there"));
        }
        audit.close(Event::Stopped);
        let events = events(dir.path());
        assert!(
            events.len() < 3 * BURST as usize,
            "{} records",
            events.len()
        );
        let left_out: u64 = events.iter().filter_map(|e| e["count"].as_u64()).sum();
        assert!(events.iter().any(|e| e["event"] == "migrate"), "hidden");
        let told = events.iter().filter(|e| e["event"] != "unrecorded").count() as u64;
        assert_eq!(told + left_out, 10_001);
        assert!(fs::metadata(&files(dir.path()).unwrap()[0]).unwrap().len() < 200_000);
    }

    #[test]
    fn full_files_are_followed_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, _) = Writer::open(dir.path(), 1).unwrap();
        for n in 0..30 {
            writer.bytes = MAX_FILE_BYTES;
            writer.write(&[Record::now(1, migrate(n, MOVED))]);
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
        let (mut writer, _) = Writer::open(&path, 1).unwrap();
        fs::remove_dir(&path).unwrap();
        let record = |n| Record::now(1, migrate(n, MOVED));
        writer.write(&[record(0), record(1)]);
        writer.write(&[record(2)]);
        fs::create_dir(&path).unwrap();
        writer.write(&[record(3)]);
        let events = events(&path);
        assert_eq!(events.len(), 2);
        assert_eq!(
            (&events[0]["event"], &events[0]["count"]),
            (&"unrecorded".into(), &3.into())
        );
        assert_eq!(events[1]["pid"], 3);
        assert_eq!(verify(&path, None).unwrap().broken, None);
    }
}
