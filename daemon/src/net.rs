// SPDX-License-Identifier: MIT OR Apache-2.0

//! Making connections to other daemons and taking theirs, up to the point where both sides know
//! who speaks and what the connection is for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt::TcpUserTimeout};
use prost::Message;
use ssi::id::NodeId;
use ssi::wire::Class;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use crate::audit::{Audit, Event};
use crate::config::{Config, Node};
use crate::failure::in_full;
use crate::msg::{self, Preface, Purpose};
use crate::session::{self, Session};
use crate::tls::{self, Identity};
use crate::{handover, sys};

/// Longest wait for a TCP connection.
const CONNECT_IN: Duration = Duration::from_secs(3);
/// Longest wait from a TCP connection to its purpose: a slow machine takes more than a second for
/// a handshake.
const SHAKE_IN: Duration = Duration::from_secs(10);
/// A lost segment is sent again at least this often, so that a healed link goes on at once.
const RTO_MAX_MS: u32 = 1_000;
/// TCP itself gives a connection up only after this: whether a peer is dead is our decision.
const USER_TIMEOUT_MS: u32 = 3_600_000;
/// Connections that may be shaking hands at once.
const MAX_SHAKING: usize = 32;
/// Longest preface on a connection without TLS.
const MAX_PLAIN_PREFACE_BYTES: usize = 64;
/// First byte of every TLS connection; no plain preface begins with it.
const TLS_HANDSHAKE: u8 = 0x16;

/// A connection did not come about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// TCP.
    #[error("cannot connect to {addr}")]
    Connect {
        /// Where to.
        addr: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// It took too long.
    #[error("no answer in {} s", .0.as_secs())]
    Timeout(Duration),
    /// It broke or was refused.
    #[error(transparent)]
    Session(#[from] session::Error),
    /// The kernel could not take it.
    #[error(transparent)]
    HandOver(#[from] handover::Error),
    /// The socket failed.
    #[error("connection failed")]
    Io(#[from] std::io::Error),
    /// The other daemon speaks another version.
    #[error("{node} speaks version {theirs} of the protocol, this node version {ours}: update the older one", ours = msg::VERSION)]
    Version {
        /// Who.
        node: NodeId,
        /// Its version.
        theirs: u32,
    },
    /// It is not who it says, or should not have connected.
    #[error("a connection that has no place here: {0}")]
    Stranger(&'static str),
}

impl Error {
    /// Whether the other side was reached, and is not one we speak with.
    fn is_of_trust(&self) -> bool {
        matches!(
            self,
            Error::Session(session::Error::Tls(_)) | Error::Version { .. } | Error::Stranger(_)
        )
    }
}

/// What a connection is for, once that is known.
#[derive(Debug)]
pub enum Opened {
    /// Messages between the daemons.
    Control {
        /// The connection.
        session: Box<Session>,
        /// Random number of the peer's run.
        instance: u64,
    },
    /// A link for the modules.
    Link {
        /// Its class.
        class: Class,
        /// Its number, given by the side that connected.
        serial: u64,
        /// The socket, ready to be handed down.
        socket: OwnedFd,
    },
}

impl Opened {
    /// Stable name of what it is for.
    fn purpose(&self) -> &'static str {
        match self {
            Opened::Control { .. } => "daemon",
            Opened::Link {
                class: Class::Control,
                ..
            } => "link-control",
            Opened::Link {
                class: Class::Memory,
                ..
            } => "link-memory",
        }
    }
}

/// What both sides need to open connections.
#[derive(Debug)]
pub struct Net {
    config: Arc<Config>,
    identity: RwLock<Arc<Identity>>,
    instance: u64,
    audit: Arc<Audit>,
}

fn purpose(class: Class) -> Purpose {
    match class {
        Class::Control => Purpose::LinkControl,
        Class::Memory => Purpose::LinkMemory,
    }
}

fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, TcpUserTimeout, &USER_TIMEOUT_MS)?;
    if let Err(e) = sys::set_rto_max(stream, RTO_MAX_MS) {
        // A kernel older than 6.15: links mend more slowly, nothing else.
        tracing::debug!("TCP_RTO_MAX_MS: {e}");
    }
    Ok(())
}

impl Net {
    /// For this node, as `instance`, a random number of this run.
    pub fn new(config: Arc<Config>, identity: Identity, instance: u64, audit: Arc<Audit>) -> Self {
        Self {
            config,
            identity: RwLock::new(Arc::new(identity)),
            instance,
            audit,
        }
    }

    /// Proves who this node is with `identity` from now on. Connections that stand are not touched.
    pub fn set_identity(&self, identity: Arc<Identity>) {
        *self
            .identity
            .write()
            .unwrap_or_else(PoisonError::into_inner) = identity;
    }

    fn identity(&self) -> Arc<Identity> {
        let identity = self.identity.read();
        Arc::clone(&identity.unwrap_or_else(PoisonError::into_inner))
    }

    /// Accounts for a connection to or from `addr`, once it is known what becomes of it.
    fn account(&self, addr: SocketAddr, incoming: bool, result: Result<(NodeId, &Opened), &Error>) {
        let addr = addr.to_string();
        self.audit.record(match result {
            Ok((peer, opened)) => Event::NodeAdmitted {
                peer: peer.get(),
                addr,
                purpose: opened.purpose(),
                incoming,
            },
            Err(e) => Event::ConnectionRefused {
                addr,
                incoming,
                why: in_full(e),
            },
        });
    }

    /// Accounts for a connection to `peer`. That it could not be reached is nothing to account for.
    fn dialled(&self, peer: &Node, result: Result<Opened, Error>) -> Result<Opened, Error> {
        match &result {
            Ok(opened) => self.account(peer.addr, false, Ok((peer.id, opened))),
            Err(e) if e.is_of_trust() => self.account(peer.addr, false, Err(e)),
            Err(_) => {}
        }
        result
    }

    /// Whether links go without TLS: never in an ordinary build, whatever the configuration says.
    fn plain(&self) -> bool {
        cfg!(any(test, feature = "bench")) && self.config.plain_links
    }

    fn preface(&self, purpose: Purpose, serial: u64) -> Preface {
        Preface {
            version: msg::VERSION,
            node: self.config.node.get().into(),
            purpose: purpose.into(),
            instance: self.instance,
            serial,
        }
    }

    async fn connect(&self, peer: &Node) -> Result<TcpStream, Error> {
        let addr = peer.addr;
        let stream = timeout(CONNECT_IN, TcpStream::connect(addr))
            .await
            .map_err(|_| Error::Timeout(CONNECT_IN))?
            .map_err(|source| Error::Connect { addr, source })?;
        prepare(&stream)?;
        Ok(stream)
    }

    async fn shake(&self, peer: &Node) -> Result<Session, Error> {
        let stream = self.connect(peer).await?;
        Ok(Session::connect(
            stream,
            Arc::clone(&self.identity().client),
            tls::server_name(peer.id),
        )
        .await?)
    }

    /// Opens the control connection to `peer`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn dial_control(&self, peer: &Node) -> Result<Opened, Error> {
        let dial = async {
            let mut session = self.shake(peer).await?;
            session.send(&self.preface(Purpose::Control, 0)).await?;
            let theirs: Preface = session.receive().await?;
            check(&theirs, peer.id)?;
            Ok(Opened::Control {
                session: Box::new(session),
                instance: theirs.instance,
            })
        };
        let result = timeout(SHAKE_IN, dial)
            .await
            .unwrap_or(Err(Error::Timeout(SHAKE_IN)));
        self.dialled(peer, result)
    }

    /// Opens a link of `class` to `peer`, numbered `serial`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn dial_link(&self, peer: &Node, class: Class, serial: u64) -> Result<Opened, Error> {
        let preface = self.preface(purpose(class), serial);
        let dial = async {
            let socket = if self.plain() {
                let mut stream = self.connect(peer).await?;
                let mut out = Vec::new();
                msg::encode(&preface, &mut out).map_err(session::Error::Message)?;
                stream.write_all(&out).await?;
                handover::connected_plain(stream).await?
            } else {
                let mut session = self.shake(peer).await?;
                session.send(&preface).await?;
                handover::connected(session).await?
            };
            Ok(Opened::Link {
                class,
                serial,
                socket,
            })
        };
        let result = timeout(SHAKE_IN, dial)
            .await
            .unwrap_or(Err(Error::Timeout(SHAKE_IN)));
        self.dialled(peer, result)
    }

    /// Listens for other daemons.
    ///
    /// # Errors
    /// When the port cannot be had.
    pub async fn listen(&self) -> std::io::Result<TcpListener> {
        let own = self
            .config
            .node(self.config.node)
            .map_or(SocketAddr::from(([0, 0, 0, 0], 0)), |n| n.addr);
        let any = match own.ip() {
            IpAddr::V4(ip) if ip.is_loopback() => own.ip(),
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        TcpListener::bind(SocketAddr::new(any, own.port())).await
    }

    /// Accepts connections for as long as somebody wants them and sends those of peers to `opened`.
    pub async fn accept(
        self: Arc<Self>,
        listener: TcpListener,
        opened: mpsc::Sender<(NodeId, Opened)>,
    ) {
        let shaking = Arc::new(Semaphore::new(MAX_SHAKING));
        while !opened.is_closed() {
            let (stream, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(e) => {
                    // Out of files, most likely: the ones that end make room.
                    tracing::warn!("cannot accept: {e}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&shaking).try_acquire_owned() else {
                tracing::warn!(%from, "too many connections at once: one dropped");
                continue;
            };
            let (net, opened) = (Arc::clone(&self), opened.clone());
            tokio::spawn(async move {
                let received = timeout(SHAKE_IN, net.receive(stream))
                    .await
                    .unwrap_or(Err(Error::Timeout(SHAKE_IN)));
                match received {
                    Ok((node, o)) => {
                        net.account(from, true, Ok((node, &o)));
                        drop(opened.send((node, o)).await);
                    }
                    Err(e) => {
                        net.account(from, true, Err(&e));
                        tracing::warn!(%from, "connection refused: {}", in_full(&e));
                    }
                }
                drop(permit);
            });
        }
    }

    /// Finds out who connected and what for.
    async fn receive(&self, mut stream: TcpStream) -> Result<(NodeId, Opened), Error> {
        prepare(&stream)?;
        if self.plain() {
            let mut first = [0];
            stream.peek(&mut first).await?;
            if first[0] != TLS_HANDSHAKE {
                let preface = plain_preface(&mut stream).await?;
                let (node, purpose) = self.admit(&preface)?;
                let class =
                    class(purpose).ok_or(Error::Stranger("a control connection without TLS"))?;
                let socket = handover::accepted_plain(stream).await?;
                return Ok((
                    node,
                    Opened::Link {
                        class,
                        serial: preface.serial,
                        socket,
                    },
                ));
            }
        }
        let mut session = Session::accept(stream, Arc::clone(&self.identity().server)).await?;
        let preface: Preface = session.receive().await?;
        let (node, purpose) = self.admit(&preface)?;
        if !session
            .peer_certificate()
            .is_some_and(|c| tls::is_of(c, node))
        {
            return Err(Error::Stranger("the certificate is another node's"));
        }
        if purpose == Purpose::Control {
            // Said before the version is judged, so that both sides can name both numbers.
            session.send(&self.preface(Purpose::Control, 0)).await?;
        }
        check(&preface, node)?;
        let opened = match class(purpose) {
            None => Opened::Control {
                session: Box::new(session),
                instance: preface.instance,
            },
            Some(class) => Opened::Link {
                class,
                serial: preface.serial,
                socket: handover::accepted(session).await?,
            },
        };
        Ok((node, opened))
    }

    /// Whether such a connection may come.
    fn admit(&self, preface: &Preface) -> Result<(NodeId, Purpose), Error> {
        let node = msg::node(preface.node).ok_or(Error::Stranger("no node number"))?;
        if self.config.node(node).is_none() {
            return Err(Error::Stranger("a node that is not in the configuration"));
        }
        if node >= self.config.node {
            return Err(Error::Stranger("the node with the lower number connects"));
        }
        let purpose = preface.purpose();
        if purpose == Purpose::Unknown {
            return Err(Error::Stranger("an unknown purpose"));
        }
        Ok((node, purpose))
    }
}

fn class(purpose: Purpose) -> Option<Class> {
    match purpose {
        Purpose::LinkControl => Some(Class::Control),
        Purpose::LinkMemory => Some(Class::Memory),
        Purpose::Unknown | Purpose::Control => None,
    }
}

fn check(theirs: &Preface, node: NodeId) -> Result<(), Error> {
    if theirs.version != msg::VERSION {
        return Err(Error::Version {
            node,
            theirs: theirs.version,
        });
    }
    Ok(())
}

/// Reads a preface byte by byte of its length, and nothing behind it.
async fn plain_preface(stream: &mut TcpStream) -> Result<Preface, Error> {
    let length = stream.read_u32().await?;
    let length = usize::try_from(length)
        .ok()
        .filter(|l| *l <= MAX_PLAIN_PREFACE_BYTES);
    let mut body = vec![0; length.ok_or(Error::Stranger("no preface"))?];
    stream.read_exact(&mut body).await?;
    Preface::decode(&body[..]).map_err(|_| Error::Stranger("no preface"))
}
