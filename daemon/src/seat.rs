// SPDX-License-Identifier: MIT OR Apache-2.0

//! This machine's place in a cluster, as its disk keeps it: which node it is, how it proves that,
//! and where what is agreed on is kept. A machine without a place is in no cluster.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use ssi::id::NodeId;

use crate::config::Node;
use crate::core::state::{Unique, spell};

/// The place; whoever has this file is a node.
const SEAT: &str = "seat.json";
/// A try to join that may have come through.
const TRY: &str = "join.json";
/// Certificates of the cluster's authorities.
const CA: &str = "ca.pem";
/// Key and certificate of the node.
const NODE: &str = "node.pem";
/// Opens the key of the authority.
const SEAL: &str = "seal.key";
/// What is agreed on.
const AGREED: &str = "agreed";

/// The directory is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read, written or removed.
    #[error("cannot {verb} {path}")]
    File {
        /// What was tried.
        verb: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path} is damaged: see \"A node does not start\" in cluster.md")]
    Damaged {
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
}

fn failed(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { verb, path, source }
}

/// A place in a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seat {
    /// Which cluster.
    pub cluster: Unique,
    /// Which node.
    #[serde(with = "spell::node")]
    pub node: NodeId,
    /// The epoch that began when it joined.
    pub since: u64,
    /// Its name.
    pub name: String,
    /// Where its daemon is reached.
    pub addr: SocketAddr,
    /// The others when it joined: who there is until what is agreed on has come here.
    pub others: Vec<Other>,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Other {
    /// Which.
    #[serde(with = "spell::node")]
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Where its daemon is reached.
    pub addr: SocketAddr,
}

impl Seat {
    /// This node.
    pub fn own(&self) -> Node {
        Node {
            id: self.node,
            name: self.name.clone(),
            addr: self.addr,
        }
    }
}

impl From<Other> for Node {
    fn from(other: Other) -> Self {
        Self {
            id: other.node,
            name: other.name,
            addr: other.addr,
        }
    }
}

/// How a node proves who it is.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Certificates of the authorities it believes, PEM.
    pub ca: String,
    /// Its key and its certificate, PEM.
    pub node: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

/// What is needed to try the same join again: it may have come through without an answer.
#[derive(Clone, Serialize, Deserialize)]
pub struct Try {
    /// Hash of the authority of the cluster.
    pub ca_hash: String,
    /// The key, PEM.
    pub key: String,
    /// The request for a certificate of it, DER.
    #[serde(with = "spell::base64")]
    pub request: Vec<u8>,
}

impl std::fmt::Debug for Try {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Try")
            .field("ca_hash", &self.ca_hash)
            .finish_non_exhaustive()
    }
}

/// The directory where all this is kept.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    /// In `dir`, which is made if need be.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn open(dir: &Path) -> Result<Self, Error> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(failed("make", dir))?;
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    /// Where what is agreed on is kept.
    pub fn agreed(&self) -> PathBuf {
        self.dir.join(AGREED)
    }

    /// Where the key is kept that opens that of the authority.
    pub fn seal(&self) -> PathBuf {
        self.dir.join(SEAL)
    }

    fn read(&self, name: &str) -> Result<Option<String>, Error> {
        let path = self.dir.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed("read", &path)(e)),
        }
    }

    fn parse<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Error> {
        let Some(text) = self.read(name)? else {
            return Ok(None);
        };
        let damaged = |source| Error::Damaged {
            path: self.dir.join(name),
            source,
        };
        serde_json::from_str(&text).map(Some).map_err(damaged)
    }

    /// Puts a file in the place of another, durably; nobody sees half of it.
    fn write(&self, name: &str, text: &[u8]) -> Result<(), Error> {
        let (path, next) = (self.dir.join(name), self.dir.join(format!("{name}.new")));
        let write = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&next)?;
            file.write_all(text)?;
            file.sync_all()?;
            fs::rename(&next, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(failed("write", &path))
    }

    fn spell<T: Serialize>(&self, name: &str, value: &T) -> Result<(), Error> {
        let damaged = |source| Error::Damaged {
            path: self.dir.join(name),
            source,
        };
        let text = serde_json::to_vec_pretty(value).map_err(damaged)?;
        self.write(name, &text)
    }

    /// The place of this machine and how it proves that it has it; `None` if it is in no cluster.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn load(&self) -> Result<Option<(Seat, Credentials)>, Error> {
        let Some(seat) = self.parse(SEAT)? else {
            return Ok(None);
        };
        let all = |name| {
            let missing = || failed("read", &self.dir.join(name))(ErrorKind::NotFound.into());
            self.read(name)?.ok_or_else(missing)
        };
        let (ca, node) = (all(CA)?, all(NODE)?);
        Ok(Some((seat, Credentials { ca, node })))
    }

    /// Keeps how this node proves who it is.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn save_credentials(&self, credentials: &Credentials) -> Result<(), Error> {
        self.write(CA, credentials.ca.as_bytes())?;
        self.write(NODE, credentials.node.as_bytes())
    }

    /// This machine is a node from now on; its credentials are kept already.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn save(&self, seat: &Seat) -> Result<(), Error> {
        self.spell(SEAT, seat)?;
        self.remove(TRY)
    }

    /// The try to join that may have come through.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn last_try(&self) -> Result<Option<Try>, Error> {
        self.parse(TRY)
    }

    /// Keeps a try to join before it is made.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn save_try(&self, a_try: &Try) -> Result<(), Error> {
        self.spell(TRY, a_try)
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        let path = self.dir.join(name);
        let removed = if path.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        match removed {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(failed("remove", &path)(e)),
            _ => Ok(()),
        }
    }

    /// Keeps the key that opens that of the authority.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn save_seal(&self, key: &[u8]) -> Result<(), Error> {
        self.write(SEAL, key)
    }

    /// Forgets the key that opens that of the authority.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn remove_seal(&self) -> Result<(), Error> {
        self.remove(SEAL)
    }

    /// This machine is in no cluster any more. Removes what can be removed, and tells the first
    /// that cannot.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn clear(&self) -> Result<(), Error> {
        let all = [SEAT, SEAL, NODE, CA, AGREED].map(|name| self.remove(name));
        all.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seat() -> Seat {
        let node = |n| NodeId::new(n).unwrap();
        Seat {
            cluster: Unique(7),
            node: node(2),
            since: 3,
            name: "two".to_owned(),
            addr: "10.0.0.2:7400".parse().unwrap(),
            others: vec![Other {
                node: node(1),
                name: "n1".to_owned(),
                addr: "10.0.0.1:7400".parse().unwrap(),
            }],
        }
    }

    #[test]
    fn what_is_kept_is_found_again_and_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ssid");
        let store = Store::open(&path).unwrap();
        assert!(store.load().unwrap().is_none());
        let credentials = Credentials {
            ca: "ca".to_owned(),
            node: "node".to_owned(),
        };
        store.save_credentials(&credentials).unwrap();
        assert!(store.load().unwrap().is_none(), "it is no node yet");
        store.save(&seat()).unwrap();
        let again = Store::open(&path).unwrap().load().unwrap();
        assert_eq!(again, Some((seat(), credentials)));
        for file in fs::read_dir(&path).unwrap() {
            let mode = file.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0);
        }
        store.clear().unwrap();
        assert!(store.load().unwrap().is_none());
        store.clear().unwrap();
    }

    #[test]
    fn a_try_lasts_until_there_is_a_place() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let a_try = Try {
            ca_hash: "sha256:x".to_owned(),
            key: "key".to_owned(),
            request: vec![1, 2],
        };
        store.save_try(&a_try).unwrap();
        assert_eq!(store.last_try().unwrap().unwrap().request, [1, 2]);
        store.save(&seat()).unwrap();
        assert!(store.last_try().unwrap().is_none());
    }

    #[test]
    fn damage_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.save(&seat()).unwrap();
        let text = format!("{:?}", store.load().unwrap_err());
        assert!(text.contains(CA), "{text}");
        let path = dir.path().join(SEAT);
        let whole = fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let e = store.load().unwrap_err();
            assert!(e.to_string().contains(SEAT), "{e}");
        }
    }
}
