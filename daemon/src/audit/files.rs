// SPDX-License-Identifier: MIT OR Apache-2.0

//! The files of an audit log, and whether what they hold is whole.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::core::chain::{self, Hash, Head, Wrong};

/// A file with so much is followed by another.
pub(super) const MAX_FILE_BYTES: u64 = 4 << 20;
/// Longest file that is read: the limit may be passed by the records of one batch.
pub(super) const MAX_READ_BYTES: u64 = 2 * MAX_FILE_BYTES;

/// The log cannot be kept or read.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {path}")]
pub struct Error {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

pub(super) fn failed<'a>(
    what: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error {
        what,
        path: path.to_owned(),
        source,
    }
}

/// The files of a log, the oldest first.
pub(super) fn files(dir: &Path) -> Result<Vec<PathBuf>, Error> {
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
pub(super) fn first_of(name: &str) -> Option<u64> {
    let number = name.strip_prefix("audit-")?.strip_suffix(".jsonl")?;
    // As many digits for all, so that their order is that of the numbers.
    let digits = number.len() == 20 && number.bytes().all(|b| b.is_ascii_digit());
    number.parse().ok().filter(|_| digits)
}

pub(super) fn name_of(dir: &Path, first: u64) -> PathBuf {
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

    pub(super) fn read(
        &mut self,
        path: &Path,
        is_last: bool,
        wanted: Option<Hash>,
    ) -> Result<u64, Error> {
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
