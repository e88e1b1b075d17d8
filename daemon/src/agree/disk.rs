// SPDX-License-Identifier: MIT OR Apache-2.0

//! Records in files that a power cut at any byte does no harm to.
//!
//! A file is [`MAGIC`] and then records, each of which is its length, a checksum of that, a
//! checksum of what follows, and so many bytes of JSON. A file is made under another name, so that
//! it is there with all of its first records or not at all; later ones are appended. A last record
//! that is shorter than it says was never acknowledged. Anything else that does not fit is damage.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

#[cfg(test)]
pub mod faulty;

/// First bytes of a file.
const MAGIC: &[u8; 8] = b"unumlog2";
/// Length of what precedes the bytes of a record.
const HEADER_BYTES: usize = 12;
/// Longest record.
const MAX_RECORD_BYTES: usize = 16 << 20;
/// Longest file that is read.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// A file of the agreed log cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system says so.
    #[error("cannot {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// What it says.
        source: io::Error,
    },
    /// What was written is no more what is there.
    #[error(
        "{path} is damaged at byte {at}: {why}; this node cannot go on, and must not without that file: see \"A node does not start\" in cluster.md"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where its first bad record begins.
        at: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A file is missing that must be there.
    #[error(
        "{path} is missing; this node cannot go on, and must not without that file: see \"A node does not start\" in cluster.md"
    )]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The directory is that of another node.
    #[error("{path} was written by node {node}")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The node.
        node: u16,
    },
    /// Something that is longer than a record may be.
    #[error("a record of {bytes} bytes is too long for {path}")]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The length.
        bytes: usize,
    },
    /// A write has failed before, so that nobody knows what is on the disk.
    #[error("an earlier write to {path} failed: restart the daemon")]
    Failed {
        /// The file.
        path: PathBuf,
    },
}

impl From<Error> for io::Error {
    fn from(e: Error) -> Self {
        Self::other(format!("{:#}", anyhow::Error::from(e)))
    }
}

/// Makes an error of the system one that names the file.
pub fn failed<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

/// What each byte comes to, CRC-32C (Castagnoli, 1993).
static BYTES: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256_u32 {
        let (mut crc, mut bit) = (byte, 0);
        while bit < 8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
            bit += 1;
        }
        table[byte as usize] = crc;
        byte += 1;
    }
    table
};

fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        let [low, ..] = crc.to_le_bytes();
        (crc >> 8) ^ BYTES[usize::from(low ^ byte)]
    })
}

/// Whether `bytes` are those that came to the checksum `stored`.
fn fits(bytes: &[u8], stored: [u8; 4]) -> bool {
    #[cfg(test)]
    if faulty::CHECKS_ARE_SKIPPED.get() {
        return true;
    }
    crc(bytes) == u32::from_le_bytes(stored)
}

/// Appends a record to `out`, which goes to the file `path`.
///
/// # Errors
/// When it is too long.
pub fn seal<T: Serialize>(record: &T, path: &Path, out: &mut Vec<u8>) -> Result<(), Error> {
    let json = serde_json::to_vec(record).map_err(|e| failed("write", path)(e.into()))?;
    let length = u32::try_from(json.len())
        .ok()
        .filter(|_| json.len() <= MAX_RECORD_BYTES)
        .ok_or_else(|| Error::TooLong {
            path: path.to_owned(),
            bytes: json.len(),
        })?
        .to_le_bytes();
    out.extend_from_slice(&length);
    out.extend_from_slice(&crc(&length).to_le_bytes());
    out.extend_from_slice(&crc(&json).to_le_bytes());
    out.extend_from_slice(&json);
    Ok(())
}

/// The next record of `bytes` and its length with the header; none at the end of what was
/// written whole.
fn next(bytes: &[u8]) -> Result<Option<(&[u8], usize)>, &'static str> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    // Room the file system gave to a write that never came.
    if bytes.iter().all(|b| *b == 0) {
        return Ok(None);
    }
    let [l0, l1, l2, l3, h0, h1, h2, h3, c0, c1, c2, c3] = *header;
    let length = [l0, l1, l2, l3];
    if !fits(&length, [h0, h1, h2, h3]) {
        return Err("the checksum of a length does not fit");
    }
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length > MAX_RECORD_BYTES {
        return Err("a record is too long");
    }
    let Some(json) = rest.get(..length) else {
        return Ok(None);
    };
    if !fits(json, [c0, c1, c2, c3]) {
        return Err("the checksum of a record does not fit");
    }
    Ok(Some((json, HEADER_BYTES + length)))
}

/// Reads the records of a file, and how many bytes they are; none if there is no such file.
///
/// # Errors
/// When it cannot be read or is damaged.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<(Vec<T>, u64)>, Error> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file
            .take(MAX_FILE_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(failed("read", path))?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed("read", path)(e)),
    };
    let damaged = |at: usize, why| Error::Damaged {
        path: path.to_owned(),
        at: at as u64,
        why,
    };
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(damaged(0, "it is too long"));
    }
    let Some(mut rest) = bytes.strip_prefix(MAGIC) else {
        return Err(damaged(0, "it does not begin as it should"));
    };
    let (mut records, mut at) = (Vec::new(), MAGIC.len());
    while let Some((json, length)) = next(rest).map_err(|why| damaged(at, why))? {
        let record =
            serde_json::from_slice(json).map_err(|_| damaged(at, "a record makes no sense"))?;
        records.push(record);
        rest = rest.get(length..).unwrap_or_default();
        at += length;
    }
    Ok(Some((records, at as u64)))
}

/// Appends sealed records to the file `path`, durably if `sync` says so.
///
/// # Errors
/// When they cannot be written; nobody knows then what of them is on the disk.
pub fn append(file: &mut File, path: &Path, sealed: &[u8], sync: bool) -> Result<(), Error> {
    let mut write = || -> io::Result<()> {
        #[cfg(test)]
        faulty::strike(file, path, sealed)?;
        file.write_all(sealed)?;
        if sync {
            file.sync_data()?;
        }
        #[cfg(test)]
        faulty::appended(path, sealed, sync);
        Ok(())
    };
    write().map_err(failed("write", path))
}

/// Puts a file of these sealed records in the place of `path`, durably, and gives it open for
/// more of them, with its length.
///
/// # Errors
/// When it cannot be written; the old file is then still there, or the new one.
pub fn replace(path: &Path, sealed: &[u8]) -> Result<(File, u64), Error> {
    let new = path.with_extension("new");
    let write = || -> io::Result<File> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        #[cfg(test)]
        faulty::strike(&mut file, &new, sealed)?;
        file.write_all(MAGIC)?;
        file.write_all(sealed)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        if let Some(dir) = path.parent() {
            File::open(dir)?.sync_all()?;
        }
        #[cfg(test)]
        faulty::replaced(path);
        Ok(file)
    };
    let file = write().map_err(failed("write", path))?;
    Ok((file, (MAGIC.len() + sealed.len()) as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(records: &[String]) -> Vec<u8> {
        let mut out = Vec::new();
        for record in records {
            seal(record, Path::new("x"), &mut out).unwrap();
        }
        out
    }

    #[test]
    fn the_checksum_is_the_known_one() {
        assert_eq!(crc(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_cut_loses_the_cut_record_and_a_flipped_bit_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let records: Vec<String> = (0..4).map(|i| format!("record {i}")).collect();
        let lengths: Vec<usize> = (0..=4)
            .map(|n| MAGIC.len() + sealed(&records[..n]).len())
            .collect();
        assert!(load::<String>(&path).unwrap().is_none());
        replace(&path, &sealed(&records)).unwrap();
        let whole = fs::read(&path).unwrap();
        for cut in MAGIC.len()..=whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let (found, bytes) = load::<String>(&path).unwrap().unwrap();
            let n = lengths.iter().filter(|l| **l <= cut).count() - 1;
            assert_eq!(found, records[..n], "cut at {cut}");
            assert_eq!(bytes, lengths[n] as u64);
        }
        for cut in 0..MAGIC.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            assert!(load::<String>(&path).is_err());
        }
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &bytes).unwrap();
            let e = load::<String>(&path).unwrap_err().to_string();
            assert!(e.contains(path.to_str().unwrap()), "{e}");
        }
        let mut bytes = whole.clone();
        bytes.extend([0; 100]);
        fs::write(&path, &bytes).unwrap();
        assert_eq!(load::<String>(&path).unwrap().unwrap().0, records);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("log");
            fs::write(&path, [MAGIC.as_slice(), &bytes].concat()).unwrap();
            let _ = load::<String>(&path);
        }
    }
}
