// SPDX-License-Identifier: MIT OR Apache-2.0

//! Disks of simulated nodes: they fail when they are told to, forget what was not synced when the power
//! goes, and have their bits flipped. What is known of them is of this thread.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{MAGIC, load, seal};
use crate::agree::{log, machine};

thread_local! {
    /// Plants an error: nobody looks whether checksums fit.
    pub static CHECKS_ARE_SKIPPED: Cell<bool> = const { Cell::new(false) };
    static DISKS: RefCell<BTreeMap<PathBuf, Disk>> = const { RefCell::new(BTreeMap::new()) };
}

/// How a write fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No room is left in the middle of it.
    Full,
    /// Nothing is written.
    Broken,
    /// All is written, but for the sync: the system has it, the disk never will.
    Unsynced,
}

/// What is known of the files in a directory.
#[derive(Clone, Debug, Default)]
struct Disk {
    /// What will happen, after so many writes that go well.
    plan: Option<(u64, Fault)>,
    /// The fault that has happened, and to which file.
    struck: Option<(Fault, PathBuf)>,
    /// Of the log: so many bytes at its end may not be on the disk.
    late_bytes: u64,
    /// Of the log: from there to there it is not on the disk, and no sync writes it.
    lost: Option<(u64, u64)>,
}

fn with<T>(dir: &Path, f: impl FnOnce(&mut Disk) -> T) -> T {
    DISKS.with_borrow_mut(|disks| f(disks.entry(dir.to_owned()).or_default()))
}

fn dir_of(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

fn is_log(path: &Path) -> bool {
    path.file_name() == Some(log::NAME.as_ref())
}

/// Before bytes are written to the file `path`: fails instead, if that is planned.
pub fn strike(file: &mut File, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fault = with(dir_of(path), |disk| match &mut disk.plan {
        Some((0, fault)) => {
            let fault = *fault;
            disk.plan = None;
            disk.struck = Some((fault, path.to_owned()));
            Some(fault)
        }
        Some((left, _)) => {
            *left -= 1;
            None
        }
        None => None,
    });
    match fault {
        None => Ok(()),
        Some(Fault::Broken) => Err(io::Error::from_raw_os_error(libc::EIO)),
        Some(Fault::Full) => {
            file.write_all(&bytes[..bytes.len() / 2])?;
            Err(io::Error::from_raw_os_error(libc::ENOSPC))
        }
        Some(Fault::Unsynced) => {
            file.write_all(bytes)?;
            if is_log(path) {
                let to = file.metadata()?.len();
                with(dir_of(path), |disk| {
                    let from = to - bytes.len() as u64 - disk.late_bytes;
                    disk.lost = Some((from, to));
                });
            }
            Err(io::Error::from_raw_os_error(libc::EIO))
        }
    }
}

/// Bytes were appended to the file `path`, and it was synced or not.
pub fn appended(path: &Path, bytes: &[u8], synced: bool) {
    with(dir_of(path), |disk| {
        disk.late_bytes = if synced {
            0
        } else {
            disk.late_bytes + bytes.len() as u64
        };
    });
}

/// The file `path` is another, and on the disk.
pub fn replaced(path: &Path) {
    if is_log(path) {
        with(dir_of(path), |disk| {
            (disk.late_bytes, disk.lost) = (0, None)
        });
    }
}

/// Has the disk with this directory fail, after so many writes that go well.
pub fn plan(dir: &Path, writes: u64, fault: Fault) {
    with(dir, |disk| disk.plan = Some((writes, fault)));
}

/// The disk with this directory does not fail any more.
pub fn heal(dir: &Path) {
    with(dir, |disk| disk.plan = None);
}

/// The fault that has happened there, and to which file.
pub fn struck(dir: &Path) -> Option<(Fault, PathBuf)> {
    with(dir, |disk| disk.struck.clone())
}

/// Forgets all disks of this thread.
pub fn clear() {
    DISKS.take();
}

/// The files of a node whose daemon ended, as the system has them.
pub fn restart(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
    let known = with(from, |disk| disk.clone());
    with(to, |disk| {
        (disk.late_bytes, disk.lost) = (known.late_bytes, known.lost);
    });
}

/// The files of a node that lost power: of the log `late` bytes of those that were not synced, and the
/// first `torn` bytes of a record that was being written.
pub fn lose_power(from: &Path, to: &Path, late: u64, torn: u64) {
    restart(from, to);
    let path = to.join(log::NAME);
    let Ok(mut file) = OpenOptions::new().read(true).append(true).open(&path) else {
        return;
    };
    let length = file.metadata().unwrap().len();
    let disk = with(to, std::mem::take);
    // A log that failed does not go on: nothing was being written behind what the failed write left.
    let torn = match struck(from) {
        Some((_, failed)) if is_log(&failed) => 0,
        _ => torn,
    };
    if let Some((begin, end)) = disk.lost {
        // The room is there, and nothing in it.
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let zeros = vec![0; usize::try_from(end.min(length) - begin).unwrap()];
        file.write_all_at(&zeros, begin).unwrap();
        if end >= length {
            file.set_len(begin).unwrap();
        }
    } else if disk.late_bytes > 0 {
        let keeps = late % (disk.late_bytes + 1);
        file.set_len(length - disk.late_bytes + keeps).unwrap();
        if keeps < disk.late_bytes {
            return;
        }
    }
    let mut record = Vec::new();
    seal(&"what was never acknowledged", to, &mut record).unwrap();
    let torn = usize::try_from(torn).unwrap().min(record.len() - 1);
    file.write_all(&record[..torn]).unwrap();
}

/// Flips one bit of a file in `dir`, of those that count, as `any` says. Returns the file.
pub fn flip(dir: &Path, any: u64) -> Option<PathBuf> {
    let files = [log::NAME, machine::NAME].map(|name| dir.join(name));
    let files: Vec<&PathBuf> = files.iter().filter(|path| path.exists()).collect();
    let which = usize::try_from(any % 2).unwrap();
    let path = files.get(which).or(files.first())?;
    let (_, length) = load::<serde_json::Value>(path).ok()??;
    assert!(length >= MAGIC.len() as u64);
    let at = (any / 16) % length;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    byte[0] ^= 1 << (any / 2 % 8);
    file.write_all_at(&byte, at).unwrap();
    Some((*path).clone())
}

#[cfg(test)]
mod tests {
    use openraft::RaftLogReader;
    use openraft::storage::RaftLogStorage;
    use ssi::id::NodeId;

    use super::*;
    use crate::agree::Vote;
    use crate::agree::log::{self, Log};

    fn vote(term: u64) -> Vote {
        let vote =
            serde_json::json!({"leader_id": {"term": term, "voted_for": 1}, "committed": false});
        serde_json::from_value(vote).unwrap()
    }

    fn open(dir: &Path) -> Log {
        let node = NodeId::new(1).unwrap();
        if !dir.join(log::NAME).exists() {
            log::LogFile::begin(&dir.join(log::NAME), node).unwrap();
        }
        Log::open(dir, node).unwrap().0
    }

    /// A vote that a sync did not bring to the disk is there after a restart of the daemon; then it has to
    /// be there when the power goes as well.
    #[tokio::test]
    async fn what_a_failed_sync_left_is_written_anew() {
        let dir = tempfile::tempdir().unwrap();
        let [first, second, third] = ["1", "2", "3"].map(|name| dir.path().join(name));
        fs::create_dir(&first).unwrap();
        let mut log = open(&first);
        log.save_vote(&vote(1)).await.unwrap();
        plan(&first, 0, Fault::Unsynced);
        log.save_vote(&vote(2)).await.unwrap_err();
        log.save_vote(&vote(3)).await.unwrap_err();
        assert_eq!(struck(&first).unwrap().0, Fault::Unsynced);
        restart(&first, &second);
        let mut log = open(&second);
        assert_eq!(log.read_vote().await.unwrap(), Some(vote(2)));
        lose_power(&second, &third, 0, 0);
        let mut log = open(&third);
        assert_eq!(log.read_vote().await.unwrap(), Some(vote(2)));
    }

    #[tokio::test]
    async fn what_was_not_synced_goes_with_the_power() {
        for late in [0, 1000] {
            let dir = tempfile::tempdir().unwrap();
            let [first, second] = ["1", "2"].map(|name| dir.path().join(name));
            fs::create_dir(&first).unwrap();
            let mut log = open(&first);
            log.save_vote(&vote(1)).await.unwrap();
            let length = |dir: &Path| fs::metadata(dir.join(log::NAME)).unwrap().len();
            let before = length(&first);
            log.save_committed(None).await.unwrap();
            // It does not wait until that is written.
            while length(&first) == before {
                tokio::task::yield_now().await;
            }
            lose_power(&first, &second, late, 5);
            assert!(late > 0 || length(&second) < length(&first));
            assert_eq!(open(&second).read_vote().await.unwrap(), Some(vote(1)));
        }
    }

    #[tokio::test]
    async fn no_room_ends_the_log_and_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path());
        log.save_vote(&vote(1)).await.unwrap();
        plan(dir.path(), 0, Fault::Full);
        let e = log.save_vote(&vote(2)).await.unwrap_err().to_string();
        assert!(e.contains("cannot write"), "{e}");
        log.save_vote(&vote(3)).await.unwrap_err();
        assert_eq!(open(dir.path()).read_vote().await.unwrap(), Some(vote(1)));
    }
}
