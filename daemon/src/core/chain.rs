// SPDX-License-Identifier: MIT OR Apache-2.0

//! A chain of records, each on a line of its own: every record names the hash of the one before, so
//! nothing can be changed, left out or put in between without all that follows being made anew.
//!
//! A line is `{"seq":N,"prev":"HASH",...,"hash":"HASH"}`. The hash is SHA-256 of the bytes of the
//! line before `,"hash"`, so nobody has to agree on how JSON is written. The `prev` of the first
//! record of all is zeros. (The construction is the one of Schneier and Kelsey, "Cryptographic
//! Support for Secure Logs on Untrusted Machines", 1998, without its keys.)

use serde::{Deserialize, Serialize};

use super::hash::HEX;
pub use super::hash::Hash;

/// What stands between the hashed part of a line and the hash.
const MARK: &str = ",\"hash\":\"";
/// What stands behind it.
const END: &str = "\"}";
/// Longest line.
pub const MAX_LINE_BYTES: usize = 16 * 1024;

/// The last record of a chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Its number; they count from 1.
    pub seq: u64,
    /// Its hash.
    pub hash: Hash,
}

#[derive(Serialize)]
struct Written<'a, T> {
    seq: u64,
    prev: String,
    #[serde(flatten)]
    content: &'a T,
}

#[derive(Deserialize)]
struct Read {
    seq: u64,
    prev: String,
}

/// Appends a record that follows `head` to `out`, and returns the new head.
///
/// # Errors
/// When `content` is no JSON object.
pub fn seal<T: Serialize>(
    head: Head,
    content: &T,
    out: &mut Vec<u8>,
) -> Result<Head, serde_json::Error> {
    let seq = head.seq.saturating_add(1);
    let prev = head.hash.to_string();
    let mut line = serde_json::to_vec(&Written { seq, prev, content })?;
    line.pop();
    let hash = Hash::of(&line);
    line.extend_from_slice(format!("{MARK}{hash}{END}\n").as_bytes());
    out.append(&mut line);
    Ok(Head { seq, hash })
}

/// Why a line is not the next record of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// It is none at all.
    #[error("it is no record")]
    Form,
    /// It was changed.
    #[error("its content is not what its hash says")]
    Content,
    /// It has another predecessor.
    #[error("the record before it is not the one it names")]
    Order,
    /// Its number does not follow.
    #[error("its number does not follow that of the record before it")]
    Number,
}

/// Checks one line, without its newline, that must follow `head`; the first line that is looked at
/// may follow whatever it says.
///
/// # Errors
/// See [`Wrong`].
pub fn follow(head: Option<Head>, line: &[u8]) -> Result<Head, Wrong> {
    let tail = MARK.len() + HEX + END.len();
    if line.len() > MAX_LINE_BYTES || line.len() < tail {
        return Err(Wrong::Form);
    }
    let (body, tail) = line.split_at(line.len() - tail);
    let tail = std::str::from_utf8(tail).map_err(|_| Wrong::Form)?;
    let hash: Hash = tail
        .strip_prefix(MARK)
        .and_then(|t| t.strip_suffix(END))
        .and_then(|t| t.parse().ok())
        .ok_or(Wrong::Form)?;
    if Hash::of(body) != hash {
        return Err(Wrong::Content);
    }
    let read: Read =
        serde_json::from_slice(&[body, b"}".as_slice()].concat()).map_err(|_| Wrong::Form)?;
    let prev: Hash = read.prev.parse().map_err(|_| Wrong::Form)?;
    match head {
        Some(head) if prev != head.hash => Err(Wrong::Order),
        Some(head) if head.seq.checked_add(1) != Some(read.seq) => Err(Wrong::Number),
        // The first of all follows nothing, and nothing else does.
        None if (read.seq == 1) != (prev == Hash::default()) => Err(Wrong::Order),
        _ => Ok(Head {
            seq: read.seq,
            hash,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn chain(records: u64) -> (Vec<u8>, Head) {
        let (mut bytes, mut head) = (Vec::new(), Head::default());
        for n in 0..records {
            head = seal(head, &json!({ "event": "moved", "pid": n }), &mut bytes).unwrap();
        }
        (bytes, head)
    }

    /// Checks all lines; the last must end like the others.
    fn verify(mut head: Option<Head>, bytes: &[u8]) -> Result<Option<Head>, Wrong> {
        for line in bytes.split_inclusive(|b| *b == b'\n') {
            let line = line.strip_suffix(b"\n").ok_or(Wrong::Form)?;
            head = Some(follow(head, line)?);
        }
        Ok(head)
    }

    #[test]
    fn what_was_sealed_follows() {
        let (bytes, head) = chain(20);
        assert_eq!(verify(None, &bytes), Ok(Some(head)));
        assert_eq!(head.seq, 20);
        assert_eq!(head.hash.to_string().parse(), Ok(head.hash));
        for line in bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
            let value: serde_json::Value = serde_json::from_slice(line).unwrap();
            assert_eq!(value["event"], "moved");
        }
    }

    #[test]
    fn no_bit_can_be_changed() {
        let (bytes, head) = chain(3);
        for i in 0..bytes.len() {
            for bit in 0..8 {
                let mut other = bytes.clone();
                other[i] ^= 1 << bit;
                assert_ne!(
                    verify(None, &other),
                    Ok(Some(head)),
                    "bit {bit} of byte {i}"
                );
                assert!(verify(None, &other).is_err(), "bit {bit} of byte {i}");
            }
        }
    }

    #[test]
    fn no_record_can_be_left_out_doubled_or_moved() {
        let (bytes, _) = chain(5);
        let lines: Vec<&[u8]> = bytes.split_inclusive(|b| *b == b'\n').collect();
        let verify = |lines: &[&[u8]]| verify(None, &lines.concat());
        assert_eq!(verify(&[lines[0], lines[2]]), Err(Wrong::Order), "left out");
        assert_eq!(verify(&[lines[0], lines[0]]), Err(Wrong::Order), "doubled");
        assert_eq!(verify(&[lines[1], lines[0]]), Err(Wrong::Order), "moved");
        assert!(verify(&lines[2..]).is_ok(), "old ones may be gone");
    }

    #[test]
    fn a_record_that_lies_about_its_number_is_found() {
        let (_, head) = chain(2);
        let mut out = Vec::new();
        seal(Head { seq: 7, ..head }, &json!({}), &mut out).unwrap();
        assert_eq!(verify(Some(head), &out), Err(Wrong::Number));
        let mut out = Vec::new();
        seal(
            Head {
                seq: 7,
                ..Head::default()
            },
            &json!({}),
            &mut out,
        )
        .unwrap();
        assert_eq!(verify(None, &out), Err(Wrong::Order));
    }

    proptest::proptest! {
        #[test]
        fn rubbish_is_refused(line: Vec<u8>) {
            proptest::prop_assert!(follow(None, &line).is_err());
        }

        #[test]
        fn a_chain_cut_anywhere_is_a_shorter_one_or_unfinished(cut in 0_usize..2000) {
            let (bytes, _) = chain(10);
            let cut = cut.min(bytes.len());
            let whole = bytes[..cut].iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
            proptest::prop_assert!(verify(None, &bytes[..whole]).is_ok());
            proptest::prop_assert_eq!(verify(None, &bytes[..cut]).is_ok(), cut == whole);
        }
    }
}
