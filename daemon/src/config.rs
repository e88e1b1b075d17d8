// SPDX-License-Identifier: MIT OR Apache-2.0

//! The configuration file, `/etc/ssid/ssid.toml`. Every key has a default; without a file at the default
//! place, all do. Who is in the cluster is not configured: the nodes agree on it.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use ssi::id::NodeId;

use crate::audit;
use crate::core::policy::{self, Policy};
use crate::metrics;

/// Where the daemon looks for its configuration.
pub const DEFAULT_PATH: &str = "/etc/ssid/ssid.toml";
/// Where tools find the daemon.
pub const DEFAULT_SOCKET: &str = "/run/ssid/io.unum.Cluster";
/// What goes to the log. The library that agrees tells in detail what it does, and warns of every node
/// that does not answer.
pub const DEFAULT_LOG: &str = "info,openraft=error";
/// Where the daemon keeps what must outlive it.
pub const DEFAULT_STATE: &str = "/var/lib/ssid";
/// TCP port of the daemons.
pub const DEFAULT_PORT: u16 = 7400;
/// Shortest life of a certificate.
const MIN_CERTIFICATE_S: u64 = 60;
/// Longest life of a certificate.
const MAX_CERTIFICATE_S: u64 = 366 * 24 * 3600;
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
#[serde(deny_unknown_fields, default)]
struct File {
    state: PathBuf,
    port: u16,
    peer_dead_after_s: u64,
    certificate_life_s: u64,
    socket: PathBuf,
    log: String,
    audit: PathBuf,
    metrics: String,
    guests: Guests,
    plain_links: bool,
}

impl Default for File {
    fn default() -> Self {
        Self {
            state: DEFAULT_STATE.into(),
            port: DEFAULT_PORT,
            peer_dead_after_s: 5,
            certificate_life_s: 7 * 24 * 3600,
            socket: DEFAULT_SOCKET.into(),
            log: DEFAULT_LOG.to_owned(),
            audit: audit::DEFAULT_PATH.into(),
            metrics: metrics::DEFAULT_LISTEN.to_owned(),
            guests: Guests::default(),
            plain_links: false,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Guests {
    host: bool,
    root: bool,
    uids: Option<Vec<String>>,
}

impl Default for Guests {
    fn default() -> Self {
        let Policy { host, root, .. } = Policy::default();
        let uids = None;
        Self { host, root, uids }
    }
}

impl Guests {
    fn policy(self) -> Result<Policy, String> {
        let uids = match self.uids {
            None => Vec::new(),
            Some(list) if list.is_empty() => {
                return Err("guests: uids is empty: leave it out, or say host = false".to_owned());
            }
            Some(list) => {
                let ranges = list.iter().map(|text| policy::range(text));
                ranges
                    .collect::<Result<_, _>>()
                    .map_err(|e| format!("guests: {e}"))?
            }
        };
        Ok(Policy {
            host: self.host,
            root: self.root,
            uids,
        })
    }
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
    /// Directory of what must outlive the daemon: its place in the cluster, keys, what is agreed on.
    pub state: PathBuf,
    /// TCP port for other daemons.
    pub port: u16,
    /// Silence after which a peer is declared dead.
    pub peer_dead_after: Duration,
    /// Life of the certificates this node makes for others.
    pub certificate_life: Duration,
    /// The socket tools connect to.
    pub socket: PathBuf,
    /// Filter for the log, as `RUST_LOG`.
    pub log: String,
    /// Directory of the audit log.
    pub audit: PathBuf,
    /// Where monitoring asks over HTTP; nowhere if `None`.
    pub metrics: Option<SocketAddr>,
    /// Whose processes this node hosts.
    pub guests: Policy,
    /// Links between the modules without TLS: a build for measurements only.
    pub plain_links: bool,
}

impl Config {
    /// Reads and checks the file at `path`; without one at the default path, all has its default.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = match std::fs::read_to_string(path) {
            Err(e) if e.kind() == ErrorKind::NotFound && path == Path::new(DEFAULT_PATH) => {
                String::new()
            }
            text => text.map_err(|source| Error::Read {
                path: path.to_owned(),
                source,
            })?,
        };
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
        let within = |key: &str, value: u64, least: u64, most: u64| {
            if (least..=most).contains(&value) {
                Ok(Duration::from_secs(value))
            } else {
                Err(format!("{key} is {value}, not within {least} to {most}"))
            }
        };
        if file.port == 0 {
            return Err("port is 0, which is no port".to_owned());
        }
        if file.plain_links && !cfg!(feature = "bench") {
            return Err(
                "plain_links needs a daemon built for measurements (feature `bench`)".to_owned(),
            );
        }
        Ok(Self {
            state: file.state,
            port: file.port,
            peer_dead_after: within(
                "peer_dead_after_s",
                file.peer_dead_after_s,
                MIN_DEAD_AFTER_S,
                MAX_DEAD_AFTER_S,
            )?,
            certificate_life: within(
                "certificate_life_s",
                file.certificate_life_s,
                MIN_CERTIFICATE_S,
                MAX_CERTIFICATE_S,
            )?,
            socket: file.socket,
            log: file.log,
            audit: file.audit,
            metrics: listen(&file.metrics)?,
            guests: file.guests.policy()?,
            plain_links: file.plain_links,
        })
    }

    /// Keys in which `new` differs and that take effect only when the daemon starts.
    pub fn fixed_changes(&self, new: &Config) -> Vec<&'static str> {
        let keys = [
            ("state", self.state != new.state),
            ("port", self.port != new.port),
            (
                "peer_dead_after_s",
                self.peer_dead_after != new.peer_dead_after,
            ),
            (
                "certificate_life_s",
                self.certificate_life != new.certificate_life,
            ),
            ("socket", self.socket != new.socket),
            ("audit", self.audit != new.audit),
            ("metrics", self.metrics != new.metrics),
            ("plain_links", self.plain_links != new.plain_links),
        ];
        let changed = keys.into_iter().filter(|(_, differs)| *differs);
        changed.map(|(key, _)| key).collect()
    }
}

/// Where to listen for monitoring: an address and a port, or `off`.
fn listen(text: &str) -> Result<Option<SocketAddr>, String> {
    if text == "off" {
        return Ok(None);
    }
    let addr = text.parse().map_err(|_| {
        format!("metrics: {text:?} is neither \"off\" nor an IP address and a port")
    })?;
    Ok(Some(addr))
}

/// The address meant by `text`: an IP address, with a port or with `port`.
pub fn address(text: &str, port: u16) -> Option<SocketAddr> {
    text.parse()
        .ok()
        .or_else(|| Some(SocketAddr::new(text.parse::<IpAddr>().ok()?, port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, Error> {
        Config::parse(Path::new("ssid.toml"), text)
    }

    fn refused(text: &str) -> String {
        format!("{:?}", parse(text).unwrap_err())
    }

    #[test]
    fn defaults() {
        let c = parse("").unwrap();
        assert_eq!((c.port, c.state), (DEFAULT_PORT, DEFAULT_STATE.into()));
        assert_eq!(c.peer_dead_after, Duration::from_secs(5));
        assert_eq!(c.socket, Path::new(DEFAULT_SOCKET));
        assert_eq!(c.metrics, Some(metrics::DEFAULT_LISTEN.parse().unwrap()));
        assert_eq!(parse("metrics = \"off\"").unwrap().metrics, None);
    }

    #[test]
    fn an_address_may_have_a_port() {
        let is = |text: &str, want: &str| address(text, 7400) == Some(want.parse().unwrap());
        assert!(is("10.0.0.1", "10.0.0.1:7400") && is("10.0.0.1:99", "10.0.0.1:99"));
        assert!(is("::1", "[::1]:7400") && is("[::1]:9", "[::1]:9"));
        assert_eq!(address("nowhere", 7400), None);
    }

    #[test]
    fn what_only_a_start_changes_is_named() {
        let old = parse("").unwrap();
        let changed = |text: &str| old.fixed_changes(&parse(text).unwrap());
        assert_eq!(changed(""), [""; 0]);
        assert_eq!(changed("log = \"debug\""), [""; 0]);
        assert_eq!(changed("port = 7"), ["port"]);
        let both = "state = \"/s\"\naudit = \"/a\"";
        assert_eq!(changed(both), ["state", "audit"]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        assert!(refused("colour = 1").contains("colour"));
        assert!(refused("nodes = []").contains("nodes"));
        assert!(refused("port = 0").contains("no port"));
        assert!(refused("peer_dead_after_s = 1").contains("peer_dead_after_s"));
        assert!(refused("certificate_life_s = 5").contains("certificate_life_s"));
        assert!(refused("metrics = \"here\"").contains("neither"));
        let guests = |text: &str| refused(&format!("[guests]\n{text}"));
        assert!(guests("uids = [\"9-5\"]").contains("no range"));
        assert!(guests("uids = []").contains("empty"));
        assert!(guests("hosts = true").contains("hosts"));
        if !cfg!(feature = "bench") {
            assert!(refused("plain_links = true").contains("plain_links"));
        }
    }
}
