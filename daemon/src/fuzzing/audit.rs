// SPDX-License-Identifier: MIT OR Apache-2.0

//! The audit log as it is found on the disk.

use std::fs;

use serde_json::{Map, Value};

use super::scratch;
use crate::audit::{Audit, Event, verify};
use crate::core::chain::{self, Head};

/// The name of the file.
const FILE: &str = "audit-00000000000000000001.jsonl";

/// The bytes of a file; or behind a `+` lines of JSON objects that are sealed into a chain, behind
/// how many bytes of it are missing at the end. The log goes on, what was whole stays, and nothing
/// breaks but what was broken.
///
/// # Panics
/// When the bytes do harm.
pub fn run(data: &[u8]) {
    let content = match data {
        [b'+', cut, lines @ ..] => {
            let mut bytes = sealed(lines);
            bytes.truncate(bytes.len().saturating_sub(usize::from(*cut)));
            bytes
        }
        _ => data.to_vec(),
    };
    let dir = scratch();
    let path = dir.path().join(FILE);
    fs::write(&path, &content).expect("a file");
    let before = verify(dir.path(), None).expect("a log");
    assert!(before.records() <= content.len() as u64);
    let audit = Audit::open(dir.path(), 1).expect("a log");
    audit.close(Event::Stopped);
    let after = verify(dir.path(), None).expect("a log");
    match (before.broken, before.head) {
        (Some(broken), _) => assert_eq!(after.broken.as_ref(), Some(&broken)),
        (None, head) => {
            assert_eq!((after.broken, after.unfinished_bytes), (None, 0));
            let seq = head.map_or(0, |h| h.seq);
            assert_eq!(after.head.map(|h| h.seq), Some(seq.saturating_add(1)));
        }
    }
    // It was closed well: there is nothing to mend.
    let bytes = || -> usize {
        let files = fs::read_dir(dir.path()).expect("a directory");
        let read = |f: fs::DirEntry| fs::read(f.path()).expect("a file").len();
        files.map(|f| read(f.expect("a file"))).sum()
    };
    let closed = bytes();
    assert!(closed > 0 && closed <= content.len() + 4096);
}

fn sealed(lines: &[u8]) -> Vec<u8> {
    let (mut bytes, mut head) = (Vec::new(), Head::default());
    let objects = lines
        .split(|b| *b == b'\n')
        .filter_map(|line| serde_json::from_slice::<Map<String, Value>>(line).ok());
    for object in objects {
        if let Ok(next) = chain::seal(head, &object, &mut bytes) {
            head = next;
        }
    }
    bytes
}
