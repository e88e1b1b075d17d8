// SPDX-License-Identifier: MIT OR Apache-2.0

//! The agreed log and its snapshot as they are found on the disk.

use std::fs;

use serde_json::Value;

use super::{node, scratch};
use crate::agree::disk;
use crate::agree::log::{self, Log};
use crate::agree::machine::{self, Machine};

/// The bytes of a file, of the log if they begin with `l`, else of the snapshot; behind a `+` lines of
/// JSON that are sealed as records, behind how many bytes of them are missing at the end. What can
/// be read is the same when it is read again, and a cut never makes damage.
///
/// # Panics
/// When the bytes do harm.
pub fn run(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else {
        return;
    };
    let dir = scratch();
    let is_log = *kind == b'l';
    let path = dir
        .path()
        .join(if is_log { log::NAME } else { machine::NAME });
    let read = || -> Result<String, disk::Error> {
        if is_log {
            Log::open(dir.path(), node(1)).map(|log| format!("{log:?}"))
        } else {
            Machine::open(dir.path()).map(|machine| format!("{machine:?}"))
        }
    };
    let [b'+', cut, lines @ ..] = data else {
        fs::write(&path, data).expect("a file");
        same(read);
        return;
    };
    let mut sealed = Vec::new();
    for line in lines.split(|b| *b == b'\n') {
        if let Ok(value) = serde_json::from_slice::<Value>(line) {
            let _ = disk::seal(&value, &path, &mut sealed);
        }
    }
    disk::replace(&path, &sealed).expect("a file");
    let whole = same(read);
    let left = sealed.len().saturating_sub(usize::from(*cut));
    disk::replace(&path, &sealed[..left]).expect("a file");
    if whole && is_log {
        // Only that whose log it is must be there.
        assert!(same(read) || left < first(&sealed));
    } else {
        same(read);
    }
}

/// Length of the first of some records.
fn first(sealed: &[u8]) -> usize {
    let length = sealed.first_chunk().map_or(0, |l| u32::from_le_bytes(*l));
    12 + usize::try_from(length).unwrap_or(usize::MAX)
}

/// Whether it can be read, and then what is read twice is the same.
fn same(read: impl Fn() -> Result<String, disk::Error>) -> bool {
    match (read(), read()) {
        (Ok(one), Ok(two)) => {
            // But for the number of the open file.
            let cut = |text: &str| text.split("file: ").next().map(str::to_owned);
            assert_eq!(cut(&one), cut(&two));
            let held = |text: &str| text.split("held: ").nth(1).map(str::to_owned);
            assert_eq!(held(&one), held(&two));
            true
        }
        (Err(one), _) => {
            assert!(!one.to_string().is_empty());
            false
        }
        (Ok(_), Err(e)) => panic!("the second time it is refused: {e}"),
    }
}
