// SPDX-License-Identifier: MIT OR Apache-2.0

//! Migrations at their target: making ready, and forgetting what does not come.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use ssi::id::NodeId;
use ssi::uapi::{ProcRecord, Reason, STATE_AWAY, STATE_GUEST};

use tokio::time::Instant;

use crate::core::expect::{Arrival, Expected};
use crate::core::policy::Policy;
use crate::digest::{Digests, Reading};
use crate::failure::Failure;
use crate::kmod::Kmod;
use crate::msg::{self, Prepare, Prepared};
use crate::proc;
use crate::stub::{self, Stubs};

/// One that has not come by then does not come. Longer than a source waits for the end of a move.
const ARRIVE_IN: Duration = Duration::from_secs(180);
/// Longest wait for a process that was here before to leave its number.
const LEAVE_IN: Duration = Duration::from_secs(20);
/// Longest wait for a stub that was started to offer itself to the module.
const MEET_IN: Duration = Duration::from_secs(8);
/// Pause between two looks whether they have.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Directories one migration may name.
const MAX_DIRS: usize = 16;
/// Longest path.
const MAX_PATH_BYTES: usize = 4096;

/// The migrations on their way here.
#[derive(Debug)]
pub struct Arrivals {
    own: NodeId,
    module: Kmod,
    digests: Arc<Digests>,
    stubs: Arc<Stubs>,
    expected: Mutex<Expected>,
    policy: RwLock<Policy>,
    cordoned: AtomicBool,
    isolated: AtomicBool,
}

impl Arrivals {
    /// None yet.
    pub fn new(own: NodeId, module: Kmod, digests: Arc<Digests>, stubs: Arc<Stubs>) -> Arc<Self> {
        Arc::new(Self {
            own,
            module,
            digests,
            stubs,
            expected: Mutex::default(),
            policy: RwLock::default(),
            cordoned: AtomicBool::default(),
            isolated: AtomicBool::default(),
        })
    }

    fn expected(&self) -> MutexGuard<'_, Expected> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes ready for the process that `from` announces.
    ///
    /// # Errors
    /// A refusal that says why it cannot come.
    pub async fn prepare(
        self: &Arc<Self>,
        from: NodeId,
        request: Prepare,
    ) -> Result<Prepared, Failure> {
        let Prepare {
            token,
            pid,
            home,
            comm,
            files,
            dirs,
            monotonic_ns,
            boottime_ns,
            uids,
        } = request;
        // At once: every moment from here on its clocks would lag behind.
        let clocks = proc::Clocks {
            monotonic_ns,
            boottime_ns,
        };
        let offsets = clocks.offsets_from(&proc::Clocks::now());
        let home = check(pid, home, &files, &dirs)?;
        self.may_come(home, &uids)?;
        let records = self.module.processes().await.map_err(|e| {
            Failure::refused(
                Reason::TargetRefused,
                format!("{:#}", anyhow::Error::from(e)),
            )
        })?;
        self.tidy(pid, &records).await;
        let record = records.iter().find(|r| r.pid.get() == pid);
        let stub = self.admit(pid, home, record)?;

        let equal = self
            .digests
            .job(move |reading| {
                for dir in &dirs {
                    if !proc::path(dir).is_dir() {
                        return Err(Failure::refused(
                            Reason::MissingPath,
                            String::from_utf8_lossy(dir),
                        ));
                    }
                }
                Ok(files
                    .iter()
                    .map(|f| is_equal(reading, f))
                    .collect::<Vec<bool>>())
            })
            .await
            .ok_or_else(|| Failure::refused(Reason::TargetRefused, "cannot read files"))??;

        self.expected()
            .add(token, Arrival { pid, from, stub })
            .map_err(|e| Failure::refused(Reason::TargetRefused, e.to_string()))?;
        if stub && let Err(f) = self.start_stub(pid, token, offsets).await {
            self.expected().remove(token);
            return Err(f);
        }
        tracing::info!(%from, pid, comm, token, "ready for a process");
        let arrivals = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(ARRIVE_IN).await;
            arrivals.settle(token).await;
        });
        Ok(Prepared { equal })
    }

    /// Whether a process with that home and those user ids may be here.
    ///
    /// # Errors
    /// A refusal that says why not.
    pub fn may_come(&self, home: NodeId, uids: &[u32]) -> Result<(), Failure> {
        if self.isolated.load(Ordering::Relaxed) {
            return Err(Failure::refused(
                Reason::NoMajority,
                format!("{} is cut off", self.own),
            ));
        }
        if home != self.own && self.cordoned.load(Ordering::Relaxed) {
            return Err(Failure::refused(
                Reason::NotHosted,
                format!("{} is cordoned", self.own),
            ));
        }
        let policy = self.policy.read().unwrap_or_else(PoisonError::into_inner);
        match policy.refuses(uids) {
            Some(why) if home != self.own => Err(Failure::refused(
                Reason::NotHosted,
                format!("{}: {why}", self.own),
            )),
            _ => Ok(()),
        }
    }

    /// Whether processes of other nodes are refused, whatever the policy says.
    pub fn set_cordoned(&self, cordoned: bool) {
        self.cordoned.store(cordoned, Ordering::Relaxed);
    }

    /// Whether this node hears of no majority: then nothing comes here, not even what is its own.
    pub fn set_isolated(&self, isolated: bool) {
        self.isolated.store(isolated, Ordering::Relaxed);
    }

    /// Decides by `policy` from now on. Guests that are here stay.
    pub fn set_policy(&self, policy: Policy) {
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = policy;
    }

    /// Drops the notes of those that have come, and gives up an earlier arrival of `pid`: nobody
    /// moves a process twice at once, so the end of that one was not told.
    async fn tidy(&self, pid: u32, records: &[ProcRecord]) {
        self.expected().retain(|a| !self.has_come(a, records));
        let earlier = self.expected().tokens(|a| a.pid == pid);
        for token in earlier {
            self.settle(token).await;
        }
    }

    fn has_come(&self, arrival: Arrival, records: &[ProcRecord]) -> bool {
        let state = records
            .iter()
            .find(|r| r.pid.get() == arrival.pid)
            .map(|r| r.state.get());
        if arrival.stub {
            // Or it has come and ended, or moved on.
            state == Some(STATE_GUEST) || !self.stubs.has(arrival.pid)
        } else {
            // Home again, it is a process like any other.
            state.is_none()
        }
    }

    /// Whether the process may come, and whether it needs a stub.
    fn admit(&self, pid: u32, home: NodeId, record: Option<&ProcRecord>) -> Result<bool, Failure> {
        let state = record.map(|r| r.state.get());
        match (home == self.own, state) {
            // At home its deputy waits.
            (true, Some(STATE_AWAY)) => Ok(false),
            (true, _) => Err(Failure::refused(
                Reason::TargetRefused,
                "it is not away from this node",
            )),
            // It was a guest here before, and what is left of it ends in a moment.
            (false, None) if self.stubs.has(pid) => Ok(true),
            (false, None) if proc::exists(pid) => Err(Failure::refused(
                Reason::TargetRefused,
                format!("the number {pid} is taken on this node"),
            )),
            (false, None) => Ok(true),
            (false, Some(_)) => Err(Failure::refused(
                Reason::TargetRefused,
                "it is on this node already",
            )),
        }
    }

    async fn start_stub(&self, pid: u32, token: u64, offsets: String) -> Result<(), Failure> {
        let deadline = Instant::now() + LEAVE_IN;
        // It may be reaped between our try and our look at it.
        let mut once_more = true;
        let text = loop {
            let (stubs, offsets) = (Arc::clone(&self.stubs), offsets.clone());
            match tokio::task::spawn_blocking(move || stubs.start(pid, token, &offsets)).await {
                Ok(Ok(())) => return Ok(()),
                // A stub or guest that was here before has just ended: its number is free in a moment.
                Ok(Err(stub::Error::Taken(_)))
                    if self.stubs.has(pid) && Instant::now() < deadline =>
                {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                Ok(Err(stub::Error::Taken(_))) if core::mem::take(&mut once_more) => {}
                Ok(Err(e @ stub::Error::Taken(_))) => break e.to_string(),
                Ok(Err(e)) => {
                    let text = format!("{:#}", anyhow::Error::from(e));
                    tracing::error!(pid, "{text}");
                    break text;
                }
                Err(_) => break "cannot start a process".to_owned(),
            }
        };
        Err(Failure::refused(Reason::TargetRefused, text))
    }

    /// The source says that it does not come.
    pub async fn cancel(&self, from: NodeId, token: u64) {
        let expected = self.expected().call_off(from, token);
        if expected {
            self.settle(token).await;
        }
    }

    /// A peer died: what it announced and did not send does not come.
    pub async fn died(&self, node: NodeId) {
        let tokens = self.expected().tokens(|a| a.from == node);
        for token in tokens {
            self.settle(token).await;
        }
    }

    /// Forgets an arrival. If the process has not come, its stub ends.
    ///
    /// The module alone knows whether the stub is the process by now, or is what is left of it. So
    /// it alone ends stubs: this one as soon as they have met, and one that nothing comes for.
    async fn settle(&self, token: u64) {
        let Some(arrival) = self.expected().remove(token) else {
            return;
        };
        let pid = arrival.pid;
        let until = Instant::now() + MEET_IN;
        loop {
            match self.module.cancel(token).await {
                Ok(()) => {
                    tracing::info!(pid, token, "arrival cancelled");
                    return;
                }
                Err(e) if e.errno() != Some(libc::ENOENT) => {
                    let text = format!("{:#}", anyhow::Error::from(e));
                    tracing::warn!(pid, token, "cannot cancel an arrival: {text}");
                    return;
                }
                Err(_) => {}
            }
            // It came, or it went, or its stub is on its way to the module still.
            let Ok(record) = self.module.process(pid).await else {
                return;
            };
            let has_come = self.has_come(arrival, record.as_slice());
            if !arrival.stub || has_come || Instant::now() >= until {
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// Checks a request from a peer; returns the home of the process.
fn check(pid: u32, home: u32, files: &[msg::File], dirs: &[Vec<u8>]) -> Result<NodeId, Failure> {
    let wrong = |what: &str| Err(Failure::refused(Reason::TargetRefused, what));
    let Some(home) = msg::node(home).filter(|h| h.allocates(pid)) else {
        return wrong("the number of the process is not one of its home");
    };
    if files.len() > msg::MAX_FILES || dirs.len() > MAX_DIRS {
        return wrong("too many files");
    }
    let paths = files.iter().map(|f| &f.path).chain(dirs);
    for path in paths {
        if !path.starts_with(b"/") || path.len() > MAX_PATH_BYTES || path.contains(&0) {
            return wrong("a path that is none");
        }
    }
    Ok(home)
}

fn is_equal(reading: &mut Reading<'_>, file: &msg::File) -> bool {
    let path = proc::path(&file.path);
    // The length is compared first: most files that differ are not read.
    path.metadata()
        .is_ok_and(|m| m.is_file() && m.len() == file.size)
        && has_content(reading, &path, file)
}

fn has_content(reading: &mut Reading<'_>, path: &Path, file: &msg::File) -> bool {
    reading
        .of(path)
        .is_ok_and(|c| c.size_bytes == file.size && c.sha256[..] == file.sha256[..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, content: &[u8]) -> msg::File {
        let sha256 = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, content)
            .as_ref()
            .to_vec();
        msg::File {
            path: path.as_bytes().to_vec(),
            sha256,
            size: content.len() as u64,
        }
    }

    #[test]
    fn equality_is_of_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "same").unwrap();
        let path = path.to_str().unwrap();
        let digests = Digests::default();
        assert!(is_equal(&mut digests.reading(), &file(path, b"same")));
        assert!(!is_equal(&mut digests.reading(), &file(path, b"lame")));
        assert!(!is_equal(&mut digests.reading(), &file(path, b"longer")));
        assert!(!is_equal(
            &mut digests.reading(),
            &file("/nonexistent", b"same")
        ));
        assert!(!is_equal(
            &mut digests.reading(),
            &msg::File {
                sha256: Vec::new(),
                ..file(path, b"same")
            }
        ));
        assert!(!is_equal(&mut digests.reading(), &file("/dev/null", b"")));
    }

    #[test]
    fn requests_of_peers_are_checked() {
        let pid = NodeId::new(3).unwrap().first_pid();
        assert!(check(pid, 3, &[], &[]).is_ok());
        assert!(check(pid, 2, &[], &[]).is_err());
        assert!(check(pid, 0, &[], &[]).is_err());
        assert!(check(17, 3, &[], &[]).is_err());
        assert!(check(pid, 3, &[file("relative", b"")], &[]).is_err());
        assert!(check(pid, 3, &[], &[b"/a\0b".to_vec()]).is_err());
        assert!(check(pid, 3, &vec![file("/a", b""); msg::MAX_FILES + 1], &[]).is_err());
    }
}
