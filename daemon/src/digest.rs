// SPDX-License-Identifier: MIT OR Apache-2.0

//! SHA-256 of files, remembered for as long as the file is the same.
//!
//! Two nodes compare the content of the files a process has mapped before it moves; what is equal
//! need not travel. A remembered digest stands for (device, inode, size, mtime, ctime); a file
//! that changed so lately that it could change again within the same time stamp is not remembered.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{Context, SHA256};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// A SHA-256.
pub type Sha256 = [u8; 32];

/// Digests remembered at most; then all are forgotten.
const MAX_REMEMBERED: usize = 8192;
/// Larger files are not read: their pages travel.
const MAX_FILE_BYTES: u64 = 1 << 30;
/// So much is read for one move; what more a process has mapped is as if it could not be read.
const MAX_JOB_BYTES: u64 = 4 << 30;
/// Jobs that read at once.
const MAX_JOBS: usize = 2;
/// Longest wait until others have read.
const TURN_IN: Duration = Duration::from_secs(30);
/// A file is not remembered within this time after its last change.
const SETTLE_S: i64 = 2;
/// Read at once.
const CHUNK_BYTES: usize = 128 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    dev: u64,
    ino: u64,
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Key {
    fn of(m: &Metadata) -> Self {
        Self {
            dev: m.dev(),
            ino: m.ino(),
            size: m.size(),
            mtime: (m.mtime(), m.mtime_nsec()),
            ctime: (m.ctime(), m.ctime_nsec()),
        }
    }

    fn settled(&self) -> bool {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(0));
        self.mtime.0.max(self.ctime.0) + SETTLE_S < now
    }
}

/// A file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// Its digest.
    pub sha256: Sha256,
    /// Its length.
    pub size_bytes: u64,
}

/// What is remembered.
#[derive(Debug)]
pub struct Digests {
    known: Mutex<HashMap<Key, Sha256>>,
    jobs: Arc<Semaphore>,
}

impl Default for Digests {
    fn default() -> Self {
        Self {
            known: Mutex::default(),
            jobs: Arc::new(Semaphore::new(MAX_JOBS)),
        }
    }
}

/// What is read for one move.
#[derive(Debug)]
pub struct Reading<'a> {
    digests: &'a Digests,
    room_bytes: u64,
}

impl Reading<'_> {
    /// Content of the regular file at `path`. Blocks.
    ///
    /// # Errors
    /// What opening or reading says; also when it is no regular file, is too large by itself or with what was read
    /// before, or changes while it is read.
    pub fn of(&mut self, path: &Path) -> io::Result<Content> {
        // Looked at before it is opened: to open a device or a pipe may do something.
        if !path.metadata()?.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        let mut file = File::open(path)?;
        let key = Key::of(&file.metadata()?);
        if key.size > MAX_FILE_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let known = self.digests.known(&key);
        let sha256 = match known {
            Some(sha256) => sha256,
            None => {
                let room = self.room_bytes.checked_sub(key.size);
                self.room_bytes = room.ok_or(io::ErrorKind::FileTooLarge)?;
                let sha256 = read(&mut file, key.size)?;
                if Key::of(&file.metadata()?) != key {
                    return Err(io::Error::other("the file changes"));
                }
                if key.settled() {
                    self.digests.remember(key, sha256);
                }
                sha256
            }
        };
        Ok(Content {
            sha256,
            size_bytes: key.size,
        })
    }
}

impl Digests {
    fn known(&self, key: &Key) -> Option<Sha256> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(key).copied()
    }

    /// The beginning of a job.
    pub(crate) fn reading(&self) -> Reading<'_> {
        Reading {
            digests: self,
            room_bytes: MAX_JOB_BYTES,
        }
    }

    fn remember(&self, key: Key, sha256: Sha256) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_REMEMBERED {
            known.clear();
        }
        known.insert(key, sha256);
    }

    /// Runs a job that reads files, on a thread that may block; `None` if it cannot, or others do for too long.
    pub async fn job<T: Send + 'static>(
        self: &Arc<Self>,
        job: impl FnOnce(&mut Reading<'_>) -> T + Send + 'static,
    ) -> Option<T> {
        let permit = Arc::clone(&self.jobs).acquire_owned();
        let permit = timeout(TURN_IN, permit).await.ok()?.ok()?;
        let digests = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let result = job(&mut digests.reading());
            drop(permit);
            result
        })
        .await
        .ok()
    }
}

fn read(file: &mut File, size: u64) -> io::Result<Sha256> {
    let mut context = Context::new(&SHA256);
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut total = 0;
    loop {
        let n = file.read(&mut chunk)?;
        if n == 0 {
            break;
        }
        total += n as u64;
        if total > size {
            return Err(io::Error::other("the file grows"));
        }
        context.update(&chunk[..n]);
    }
    context
        .finish()
        .as_ref()
        .try_into()
        .map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;

    fn settle(path: &Path) {
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(100))
            .unwrap();
    }

    #[test]
    fn the_digest_is_sha256() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "abc").unwrap();
        let c = Digests::default().reading().of(file.path()).unwrap();
        assert_eq!(c.size_bytes, 3);
        assert_eq!(c.sha256[..4], [0xba, 0x78, 0x16, 0xbf]);
    }

    #[test]
    fn a_change_is_seen_even_with_the_old_time_stamp() {
        let digests = Digests::default();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"one").unwrap();
        settle(file.path());
        let one = digests.reading().of(file.path()).unwrap();
        fs::write(file.path(), "two").unwrap();
        settle(file.path());
        assert_ne!(digests.reading().of(file.path()).unwrap(), one);
    }

    #[test]
    fn what_changed_just_now_is_not_remembered() {
        let digests = Digests::default();
        let file = tempfile::NamedTempFile::new().unwrap();
        digests.reading().of(file.path()).unwrap();
        assert!(digests.known.lock().unwrap().is_empty());
        // A program of the system is old enough.
        digests.reading().of(Path::new("/bin/ls")).unwrap();
        digests.reading().of(Path::new("/bin/ls")).unwrap();
        assert_eq!(digests.known.lock().unwrap().len(), 1);
    }

    #[test]
    fn no_more_is_read_for_one_move_than_is_worth_it() {
        let digests = Digests::default();
        let files = [(); 5].map(|()| tempfile::NamedTempFile::new().unwrap());
        let mut reading = Reading {
            digests: &digests,
            room_bytes: 25,
        };
        let read = files.each_ref().map(|file| {
            fs::write(file.path(), [7; 10]).unwrap();
            settle(file.path());
            reading.of(file.path()).is_ok()
        });
        assert_eq!(read, [true, true, false, false, false]);
    }

    #[test]
    fn only_regular_files() {
        let digests = Digests::default();
        for path in ["/dev/zero", "/proc", "/nonexistent"] {
            assert!(digests.reading().of(Path::new(path)).is_err(), "{path}");
        }
    }
}
