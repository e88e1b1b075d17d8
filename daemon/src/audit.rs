// SPDX-License-Identifier: MIT OR Apache-2.0

//! The audit log: who was let in or turned away, and who moved what, in a chain of records
//! ([`crate::core::chain`]) on this node's disk.
//!
//! The log is a directory of files named by the number of their first record. A file that is full
//! is followed by another; the oldest go. Records are written and synced by a thread of their own:
//! nothing waits for the disk. What cannot be written, and what others could fill the disk with, is
//! counted, and the count is the next record.

mod files;
mod recent;
mod writer;

use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::clock::Clock;
use crate::core::hlc::Stamp;
use crate::core::limit::Limit;
use files::failed;
use recent::Recent;
use writer::Writer;

pub use files::{Break, Error, Found, verify};

/// Where the log is kept.
pub const DEFAULT_PATH: &str = "/var/lib/ssid/audit";
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
    /// A machine wanted to join the cluster.
    Join {
        /// Where it connected from.
        from: String,
        /// Where its daemon is reached, as it says.
        addr: String,
        /// The node it is now, or why it is none.
        outcome: String,
    },
    /// Someone wanted something about the cluster.
    Governed {
        /// The user who asked.
        uid: u32,
        /// What was asked for.
        action: &'static str,
        /// What or whom it is about.
        subject: String,
        /// `done`, or why not.
        outcome: String,
    },
    /// This node hears of no majority of the cluster and is fenced off, or does again.
    Isolated {
        /// Whether it is.
        isolated: bool,
    },
    /// The cluster declared a node dead; this node may be it.
    DeclaredDead {
        /// Which.
        peer: u16,
        /// The epoch since which it was there.
        since: u64,
    },
    /// This node saw another do what no honest node does.
    Offence {
        /// Which.
        peer: u16,
        /// What, see [`crate::core::offence::Offence`].
        offence: &'static str,
    },
    /// A node accuses another of what it saw; this node may be either.
    Accused {
        /// Whom.
        peer: u16,
        /// Who.
        by: u16,
        /// Of what.
        offence: &'static str,
    },
    /// Most others accuse a node: it is not there any more, and cannot come back.
    Quarantined {
        /// Which.
        peer: u16,
    },
    /// An administrator holds nothing against a node any more.
    Pardoned {
        /// Which.
        peer: u16,
    },
    /// A node that was declared dead is there again.
    CameBack {
        /// Which.
        peer: u16,
        /// The epoch since which it is there.
        since: u64,
    },
    /// All that this node had to do with another has ended: it was not heard for too long or declared
    /// dead, or one of the two is fenced off.
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
    Offender,
    Sender,
    User,
}

/// How many [`Cause`]s there are.
const CAUSES: usize = 5;

impl Event {
    /// Who can cause as many of these as they like; nobody if what it records is work itself.
    fn cause(&self) -> Option<Cause> {
        match self {
            Event::ConnectionRefused { .. } => Some(Cause::Stranger),
            // One that is let in has a token.
            Event::Join { outcome, .. } if !is_node(outcome) => Some(Cause::Stranger),
            Event::NodeAdmitted { .. } => Some(Cause::Node),
            Event::Offence { .. } => Some(Cause::Offender),
            // Users have processes sent.
            Event::Arrival { .. } => Some(Cause::Sender),
            Event::Migrate { outcome, .. } if outcome != MOVED => Some(Cause::User),
            Event::Governed { outcome, .. } if outcome != DONE => Some(Cause::User),
            _ => None,
        }
    }

    fn cut(mut self) -> Self {
        if let Event::Join { addr, .. } | Event::Governed { subject: addr, .. } = &mut self {
            addr.truncate(addr.floor_char_boundary(MAX_TEXT_BYTES));
        }
        if let Event::ConnectionRefused { why: text, .. }
        | Event::Join { outcome: text, .. }
        | Event::Governed { outcome: text, .. }
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

/// Whether the outcome of a join is a node, `n4`.
fn is_node(outcome: &str) -> bool {
    let number = outcome.strip_prefix('n');
    number.is_some_and(|n| n.parse::<u16>().is_ok())
}

/// Outcome of what was done.
pub const DONE: &str = "done";
/// Outcome of a move that was made.
pub const MOVED: &str = "moved";
/// Outcome of an arrival that was made ready for.
pub const READY: &str = "ready";

#[derive(Debug, Serialize)]
struct Record {
    hlc: String,
    time: String,
    node: u16,
    #[serde(flatten)]
    event: Event,
}

impl Record {
    /// Of what happened at `at`, which is now.
    fn now(at: Stamp, node: &AtomicU16, event: Event) -> Self {
        // A clock beyond the year 9999 has no such spelling.
        let time = OffsetDateTime::now_utc();
        Self {
            hlc: at.to_string(),
            time: time.format(&Rfc3339).unwrap_or_default(),
            node: node.load(Ordering::Relaxed),
            event: event.cut(),
        }
    }
}

struct State {
    limits: [Limit; CAUSES],
    left_out: u64,
    recent: Recent,
    /// None once it is closed.
    records: Option<SyncSender<Record>>,
}

/// A handle to the log.
pub struct Audit {
    node: Arc<AtomicU16>,
    start: Instant,
    clock: Arc<Clock>,
    state: Mutex<State>,
    closed: Mutex<Receiver<()>>,
}

impl std::fmt::Debug for Audit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Audit").finish_non_exhaustive()
    }
}

impl Audit {
    /// Opens the log in `dir`, which is made if need be, and goes on where it ends. The records are
    /// of `node`, see [`Audit::set_node`].
    ///
    /// # Errors
    /// When it cannot be read or made.
    pub fn open(dir: &Path, node: u16) -> Result<Self, Error> {
        let node = Arc::new(AtomicU16::new(node));
        let clock = Arc::<Clock>::default();
        let (writer, damage) = Writer::open(dir, Arc::clone(&node), Arc::clone(&clock))?;
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
            clock,
            state: Mutex::new(State {
                limits: [Limit::new(BURST, PACE_MS); CAUSES],
                left_out: 0,
                recent: Recent::default(),
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
            left_out,
            records,
            recent,
            ..
        } = &mut *state;
        let Some(records) = records else { return };
        if *left_out > 0 {
            let unrecorded = Event::Unrecorded { count: *left_out };
            let record = Record::now(self.clock.tick(), &self.node, unrecorded);
            if records.try_send(record).is_ok() {
                *left_out = 0;
            }
        }
        let at = self.clock.tick();
        let record = Record::now(at, &self.node, event);
        // A record is always valid JSON.
        if let Ok(text) = serde_json::to_string(&record) {
            recent.push(at, text);
        }
        if records.try_send(record).is_err() {
            *left_out += 1;
        }
    }

    /// The last records that are later than `after`, as JSON and in the order of their times.
    pub fn recent(&self, after: Stamp) -> Vec<(Stamp, String)> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.recent.after(after)
    }

    /// The clock by which records are ordered.
    pub fn clock(&self) -> &Arc<Clock> {
        &self.clock
    }

    /// Records are of this node from now on; 0 is a machine that is in no cluster.
    pub fn set_node(&self, node: u16) {
        self.node.store(node, Ordering::Relaxed);
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
    use super::files::files;
    use super::*;
    use crate::core::chain::{Hash, Wrong};
    use serde_json::Value;
    use std::fs;

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
}
