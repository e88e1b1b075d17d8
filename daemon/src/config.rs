// SPDX-License-Identifier: MIT OR Apache-2.0

//! The configuration file, `/etc/ssid/ssid.toml`.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use ssi::id::NodeId;

use crate::audit;

/// Where the daemon looks for its configuration.
pub const DEFAULT_PATH: &str = "/etc/ssid/ssid.toml";
/// Where tools find the daemon.
pub const DEFAULT_SOCKET: &str = "/run/ssid/io.unum.Cluster";
/// TCP port of the daemons.
pub const DEFAULT_PORT: u16 = 7400;
/// Shortest silence that may be taken for death.
const MIN_DEAD_AFTER_S: u64 = 3;
/// Longest silence that may be taken for death.
const MAX_DEAD_AFTER_S: u64 = 3600;

/// Why a configuration is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no TOML, or has a key or value that has no place in it.
    #[error("cannot understand {path}")]
    Parse {
        /// Its path.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A value means nothing or contradicts another.
    #[error("{path}: {what}")]
    Value {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    node: u16,
    #[serde(default = "default_port")]
    port: u16,
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
    #[serde(default = "default_dead_after")]
    peer_dead_after_s: u64,
    #[serde(default = "default_socket")]
    socket: PathBuf,
    #[serde(default = "default_log")]
    log: String,
    #[serde(default = "default_audit")]
    audit: PathBuf,
    #[serde(default)]
    plain_links: bool,
    nodes: Vec<FileNode>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileNode {
    id: u16,
    name: Option<String>,
    addr: String,
}

fn default_port() -> u16 {
    DEFAULT_PORT
}
fn default_dead_after() -> u64 {
    10
}
fn default_socket() -> PathBuf {
    DEFAULT_SOCKET.into()
}
fn default_log() -> String {
    "info".to_owned()
}
fn default_audit() -> PathBuf {
    audit::DEFAULT_PATH.into()
}

/// One machine of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// Its name for people.
    pub name: String,
    /// Where its daemon listens.
    pub addr: SocketAddr,
}

/// What the daemon runs with.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// All nodes, this one too, in the order of their numbers.
    pub nodes: Vec<Node>,
    /// Certificate of the cluster's authority.
    pub ca: PathBuf,
    /// This node's certificate.
    pub cert: PathBuf,
    /// This node's private key.
    pub key: PathBuf,
    /// Silence after which a peer is declared dead.
    pub peer_dead_after: Duration,
    /// The socket tools connect to.
    pub socket: PathBuf,
    /// Filter for the log, as `RUST_LOG`.
    pub log: String,
    /// Directory of the audit log.
    pub audit: PathBuf,
    /// Links between the modules without TLS: a build for measurements only.
    pub plain_links: bool,
}

impl Config {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(path, &text)
    }

    /// Checks `text`, which stands in the file at `path`.
    ///
    /// # Errors
    /// [`Error::Parse`] and [`Error::Value`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        let file: File = toml::from_str(text).map_err(|e| Error::Parse {
            path: path.to_owned(),
            source: Box::new(e),
        })?;
        Self::check(file).map_err(|what| Error::Value {
            path: path.to_owned(),
            what,
        })
    }

    fn check(file: File) -> Result<Self, String> {
        let node = node_id(file.node)?;
        if !(MIN_DEAD_AFTER_S..=MAX_DEAD_AFTER_S).contains(&file.peer_dead_after_s) {
            return Err(format!(
                "peer_dead_after_s is {}, not within {MIN_DEAD_AFTER_S} to {MAX_DEAD_AFTER_S}",
                file.peer_dead_after_s
            ));
        }
        if file.plain_links && !cfg!(feature = "bench") {
            return Err(
                "plain_links needs a daemon built for measurements (feature `bench`)".to_owned(),
            );
        }
        let mut nodes: Vec<Node> = Vec::new();
        for n in file.nodes {
            let id = node_id(n.id)?;
            let name = n.name.unwrap_or_else(|| id.to_string());
            if name.is_empty() || name.parse::<u16>().is_ok() {
                return Err(format!("node {}: the name {name:?} is no name", n.id));
            }
            let addr = address(&n.addr, file.port)
                .ok_or_else(|| format!("node {}: {:?} is no IP address", n.id, n.addr))?;
            if nodes.iter().any(|o| o.id == id) {
                return Err(format!("node {} is there twice", n.id));
            }
            if let Some(other) = nodes.iter().find(|o| o.name == name || o.addr == addr) {
                return Err(format!(
                    "nodes {} and {} have the same name or address",
                    other.id.get(),
                    n.id
                ));
            }
            nodes.push(Node { id, name, addr });
        }
        nodes.sort_by_key(|n| n.id);
        if !nodes.iter().any(|n| n.id == node) {
            return Err(format!(
                "this node, {}, is not in the list of nodes",
                node.get()
            ));
        }
        Ok(Self {
            node,
            nodes,
            ca: file.ca,
            cert: file.cert,
            key: file.key,
            peer_dead_after: Duration::from_secs(file.peer_dead_after_s),
            socket: file.socket,
            log: file.log,
            audit: file.audit,
            plain_links: file.plain_links,
        })
    }

    /// Keys in which `new` differs and that take effect only when the daemon starts.
    pub fn fixed_changes(&self, new: &Config) -> Vec<&'static str> {
        let keys = [
            ("node", self.node != new.node),
            ("nodes", self.nodes != new.nodes),
            (
                "peer_dead_after_s",
                self.peer_dead_after != new.peer_dead_after,
            ),
            ("socket", self.socket != new.socket),
            ("audit", self.audit != new.audit),
            ("plain_links", self.plain_links != new.plain_links),
        ];
        let changed = keys.into_iter().filter(|(_, differs)| *differs);
        changed.map(|(key, _)| key).collect()
    }

    /// The node with this number, if the cluster has it.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.iter().find(|n| n.id == id)
    }

    /// The node meant by `2`, `n2` or its name.
    pub fn find(&self, text: &str) -> Option<&Node> {
        self.nodes.iter().find(|n| n.name == text).or_else(|| {
            let number = text.strip_prefix('n').unwrap_or(text);
            self.node(NodeId::new(number.parse().ok()?)?)
        })
    }

    /// The other nodes.
    pub fn peers(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|n| n.id != self.node)
    }
}

fn node_id(n: u16) -> Result<NodeId, String> {
    NodeId::new(n).ok_or_else(|| {
        format!(
            "{n} is no node number: they go from 1 to {}",
            ssi::id::MAX_NODE
        )
    })
}

fn address(text: &str, port: u16) -> Option<SocketAddr> {
    text.parse()
        .ok()
        .or_else(|| Some(SocketAddr::new(text.parse::<IpAddr>().ok()?, port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        node = 2
        ca = "/etc/ssid/pki/ca.pem"
        cert = "/etc/ssid/pki/node.pem"
        key = "/etc/ssid/pki/node.key"
        [[nodes]]
        id = 2
        addr = "10.0.0.2:99"
        [[nodes]]
        id = 1
        name = "one"
        addr = "10.0.0.1"
    "#;

    fn parse(text: &str) -> Result<Config, Error> {
        Config::parse(Path::new("ssid.toml"), text)
    }

    fn refused(from: &str, to: &str) -> String {
        assert!(GOOD.contains(from));
        let e = parse(&GOOD.replace(from, to)).unwrap_err();
        format!("{e:?}")
    }

    #[test]
    fn defaults_and_names() {
        let c = parse(GOOD).unwrap();
        assert_eq!(c.node.get(), 2);
        assert_eq!(c.peer_dead_after, Duration::from_secs(10));
        assert_eq!(c.socket, Path::new(DEFAULT_SOCKET));
        assert_eq!(c.nodes[0].addr, "10.0.0.1:7400".parse().unwrap());
        assert_eq!(c.nodes[1].addr, "10.0.0.2:99".parse().unwrap());
        for (text, id) in [("2", 2), ("n2", 2), ("1", 1), ("n1", 1), ("one", 1)] {
            assert_eq!(c.find(text).unwrap().id.get(), id, "{text}");
        }
        for text in ["3", "n0", "", "n", "two", "-1", "99999999"] {
            assert!(c.find(text).is_none(), "{text}");
        }
        assert_eq!(c.peers().count(), 1);
    }

    #[test]
    fn what_only_a_start_changes_is_named() {
        let (old, changed) = (parse(GOOD).unwrap(), |from: &str, to: &str| {
            parse(&GOOD.replace(from, to)).unwrap()
        });
        assert_eq!(old.fixed_changes(&old), [""; 0]);
        let log = changed("node = 2", "node = 2\nlog = \"debug\"");
        assert_eq!(old.fixed_changes(&log), [""; 0]);
        assert_eq!(
            old.fixed_changes(&changed("\"one\"", "\"eins\"")),
            ["nodes"]
        );
        let both = changed("node = 2", "node = 1\naudit = \"/a\"");
        assert_eq!(old.fixed_changes(&both), ["node", "audit"]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        assert!(refused("node = 2", "node = 2\ncolour = 1").contains("colour"));
        assert!(refused("node = 2", "node = 3").contains("not in the list"));
        assert!(refused("node = 2", "node = 32").contains("no node number"));
        assert!(refused("id = 1", "id = 2").contains("twice"));
        assert!(refused("10.0.0.1", "10.0.0.2:99").contains("same name or address"));
        assert!(refused("10.0.0.1", "nowhere").contains("no IP address"));
        assert!(refused("\"one\"", "\"1\"").contains("no name"));
        assert!(
            refused("node = 2", "node = 2\npeer_dead_after_s = 1").contains("peer_dead_after_s")
        );
        if !cfg!(feature = "bench") {
            assert!(refused("node = 2", "node = 2\nplain_links = true").contains("plain_links"));
        }
    }
}
