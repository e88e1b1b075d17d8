// SPDX-License-Identifier: MIT OR Apache-2.0

//! Making connections to other daemons and taking theirs, up to the point where both sides know
//! who speaks and what the connection is for.

use std::io::ErrorKind;
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
use tokio::time::{Instant, sleep, timeout};

use crate::audit::{Audit, Event};
use crate::config::Node;
use crate::core::facts::{Difference, Facts};
use crate::core::offence::Offence;
use crate::core::tie::{Pair, Tie};
use crate::failure::in_full;
use crate::msg::{self, Preface, Purpose};
use crate::roster::Roster;
use crate::session::{self, Session};
use crate::sockets::{self, Sockets};
use crate::tls::{self, Identity};
use crate::{handover, sys};

/// Longest wait for a TCP connection.
const CONNECT_IN: Duration = Duration::from_secs(3);
/// Longest wait from a TCP connection to its purpose: a slow machine takes more than a second for
/// a handshake.
const SHAKE_IN: Duration = Duration::from_secs(10);
/// A lost segment is sent again at least this often, so that a healed link goes on at once.
const RTO_MAX_MS: u32 = 1_000;
/// TCP itself gives a connection up only after this: whether a peer is dead is our decision, and a link that breaks
/// is made anew without loss. The kernel counts how often it has sent a segment again and shifts by that when the
/// network says that a host cannot be reached (`tcp_ld_RTO_revert`): beyond 63 times, which [`RTO_MAX_MS`] reaches
/// within 64 s, its checker complains.
const USER_TIMEOUT_MS: u32 = 50_000;
/// Connections that may be shaking hands at once.
const MAX_SHAKING: usize = 32;
/// The same of machines that are no nodes: they leave room for those that are.
const MAX_STRANGERS: usize = 16;
/// A port that is in use is tried again for so long,
const BIND_IN: Duration = Duration::from_secs(1);
/// after a pause.
const BIND_AGAIN: Duration = Duration::from_millis(50);
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
    /// Processes could not move between it and this node.
    #[error("{node} does not fit to this node: {}", joined(.what))]
    Differs {
        /// Who.
        node: NodeId,
        /// In what.
        what: Vec<Difference>,
    },
    /// It did not say who it is in one of the two ways there are.
    #[error(transparent)]
    Refused(#[from] tls::Refused),
    /// A link from a node to which this one is not tied, or not known to be yet.
    #[error("a link from {0}, to which this node is not tied")]
    Loose(NodeId),
    /// A link of an epoch in which one of the two was declared dead, or of one this node does not know.
    #[error("a link from {node} of an epoch that is over, or has yet to come")]
    OtherEpoch {
        /// Whose.
        node: NodeId,
        /// The latest epoch it names.
        named: u64,
    },
    /// A node has proved who it is, and did what no honest one does.
    #[error("{node} did what no honest node does: {offence}")]
    Offence {
        /// Which.
        node: NodeId,
        /// What.
        offence: Offence,
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
            Error::Session(session::Error::Tls(_))
                | Error::Version { .. }
                | Error::Differs { .. }
                | Error::Refused(_)
                | Error::Stranger(_)
        )
    }
}

/// What a link of each class is for, in a preface and in the audit log.
const LINKS: [(Purpose, &str); Class::COUNT] = [
    (Purpose::LinkControl, "link-control"),
    (Purpose::LinkMemory, "link-memory"),
    (Purpose::LinkBulk, "link-bulk"),
];

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
        /// Random number of the run of the side that connected.
        instance: u64,
        /// The socket, ready to be handed down.
        socket: OwnedFd,
    },
}

impl Opened {
    /// Stable name of what it is for.
    fn purpose(&self) -> &'static str {
        match self {
            Opened::Control { .. } => "daemon",
            Opened::Link { class, .. } => LINKS[*class as usize].1,
        }
    }
}

/// Who has connected.
#[derive(Debug)]
pub enum Caller {
    /// A node.
    Node(NodeId, Opened),
    /// A machine that wants to be one, from this address.
    Joiner(Box<Session>, SocketAddr),
    /// A node that did what no honest one does, and was turned away.
    Offender(NodeId, Offence),
    /// A node that names an epoch this node does not know, and was turned away.
    Named(NodeId, u64),
}

/// What both sides need to open connections.
#[derive(Debug)]
pub struct Net {
    roster: Arc<Roster>,
    facts: Facts,
    plain_links: bool,
    identity: RwLock<Arc<Identity>>,
    instance: u64,
    audit: Arc<Audit>,
}

/// What a listener has accepted. If it could not, says so and waits a moment: it is out of files, most
/// likely, and connections that end make room.
pub async fn accepted<T>(result: std::io::Result<T>) -> Option<T> {
    match result {
        Ok(accepted) => Some(accepted),
        Err(e) => {
            tracing::warn!("cannot accept: {e}");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

fn purpose(class: Class) -> Purpose {
    LINKS[class as usize].0
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
    /// For this node, which is made of `facts`, among those of `roster`, as `instance`, a random number of this run.
    /// `plain_links`: links go without TLS, in a build for measurements.
    pub fn new(
        roster: Arc<Roster>,
        facts: Facts,
        plain_links: bool,
        identity: Identity,
        instance: u64,
        audit: Arc<Audit>,
    ) -> Self {
        Self {
            roster,
            facts,
            plain_links,
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

    /// What this node is made of.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Who may connect.
    pub fn roster(&self) -> &Arc<Roster> {
        &self.roster
    }

    /// Where connections are accounted for.
    pub fn audit(&self) -> &Audit {
        &self.audit
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
        cfg!(any(test, feature = "bench")) && self.plain_links
    }

    fn preface(&self, purpose: Purpose) -> Preface {
        Preface {
            version: msg::VERSION,
            node: self.roster.own().get().into(),
            purpose: purpose.into(),
            instance: self.instance,
            facts: (purpose == Purpose::Control).then(|| (&self.facts).into()),
            ..Preface::default()
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
            session.send(&self.preface(Purpose::Control)).await?;
            let theirs: Preface = session.receive().await?;
            let instance = theirs.instance;
            check(&theirs, peer.id)?;
            self.compare(theirs, peer.id)?;
            Ok(Opened::Control {
                session: Box::new(session),
                instance,
            })
        };
        let result = timeout(SHAKE_IN, dial)
            .await
            .unwrap_or(Err(Error::Timeout(SHAKE_IN)));
        self.dialled(peer, result)
    }

    /// Opens a link of `class` to `peer`, numbered `serial`, for `pair`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn dial_link(
        &self,
        peer: &Node,
        class: Class,
        serial: u64,
        pair: Pair,
    ) -> Result<Opened, Error> {
        let preface = Preface {
            serial,
            own_since: pair.own,
            your_since: pair.other,
            ..self.preface(purpose(class))
        };
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
                instance: self.instance,
                socket,
            })
        };
        let result = timeout(SHAKE_IN, dial)
            .await
            .unwrap_or(Err(Error::Timeout(SHAKE_IN)));
        self.dialled(peer, result)
    }

    /// Listens for other daemons, with the socket that was kept if there is one.
    ///
    /// # Errors
    /// When the port cannot be had.
    pub async fn listen(&self, sockets: &mut Sockets) -> std::io::Result<TcpListener> {
        let own = self
            .roster
            .node(self.roster.own())
            .map_or(SocketAddr::from(([0, 0, 0, 0], 0)), |n| n.addr);
        let any = match own.ip() {
            IpAddr::V4(ip) if ip.is_loopback() => own.ip(),
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let addr = SocketAddr::new(any, own.port());
        if let Some(listener) = sockets.peers(addr) {
            return Ok(listener);
        }
        let until = Instant::now() + BIND_IN;
        let listener = loop {
            match TcpListener::bind(addr).await {
                // The service manager may still hold the socket of a moment ago.
                Err(e) if e.kind() == ErrorKind::AddrInUse && Instant::now() < until => {
                    sleep(BIND_AGAIN).await;
                }
                bound => break bound?,
            }
        };
        sockets::keep_peers(&listener);
        Ok(listener)
    }

    /// Accepts connections for as long as somebody wants them and sends those who made them to
    /// `callers`.
    pub async fn accept(self: Arc<Self>, listener: TcpListener, callers: mpsc::Sender<Caller>) {
        let members = Arc::new(Semaphore::new(MAX_SHAKING));
        let strangers = Arc::new(Semaphore::new(MAX_STRANGERS));
        while !callers.is_closed() {
            let Some((stream, from)) = accepted(listener.accept().await).await else {
                continue;
            };
            let room = match self.roster.has_address(from.ip()) {
                true => &members,
                false => &strangers,
            };
            let Ok(permit) = Arc::clone(room).try_acquire_owned() else {
                tracing::warn!(%from, "too many connections at once: one dropped");
                continue;
            };
            let (net, callers) = (Arc::clone(&self), callers.clone());
            tokio::spawn(async move {
                let received = timeout(SHAKE_IN, net.receive(stream, from))
                    .await
                    .unwrap_or(Err(Error::Timeout(SHAKE_IN)));
                match received {
                    Ok(caller) => {
                        if let Caller::Node(node, opened) = &caller {
                            net.account(from, true, Ok((*node, opened)));
                        }
                        drop(callers.send(caller).await);
                    }
                    // While nodes start and come back that is nothing to account for.
                    Err(e @ Error::Loose(_)) => tracing::debug!(%from, "{e}"),
                    Err(e) => {
                        net.account(from, true, Err(&e));
                        tracing::warn!(%from, "connection refused: {}", in_full(&e));
                        let caller = match e {
                            Error::Offence { node, offence } => Caller::Offender(node, offence),
                            Error::OtherEpoch { node, named } => Caller::Named(node, named),
                            _ => return,
                        };
                        drop(callers.send(caller).await);
                    }
                }
                drop(permit);
            });
        }
    }

    /// Finds out who connected and what for.
    async fn receive(&self, mut stream: TcpStream, from: SocketAddr) -> Result<Caller, Error> {
        prepare(&stream)?;
        if self.plain() {
            let mut first = [0];
            stream.peek(&mut first).await?;
            if first[0] != TLS_HANDSHAKE {
                let preface = plain_preface(&mut stream).await?;
                let (node, purpose) = self.admit(&preface)?;
                let class =
                    class(purpose).ok_or(Error::Stranger("a control connection without TLS"))?;
                // Nobody has proved to be this node: what it names is not held against it.
                match self.compare_epochs(&preface, node) {
                    Err(Error::OtherEpoch { .. }) => {
                        return Err(Error::OtherEpoch { node, named: 0 });
                    }
                    compared => compared?,
                }
                let socket = handover::accepted_plain(stream).await?;
                let opened = Opened::Link {
                    class,
                    serial: preface.serial,
                    instance: preface.instance,
                    socket,
                };
                return Ok(Caller::Node(node, opened));
            }
        }
        let mut session = Session::accept(stream, Arc::clone(&self.identity().server)).await?;
        if session.peer()? == tls::Peer::Joiner {
            return Ok(Caller::Joiner(Box::new(session), from));
        }
        let received = session.receive::<Preface>().await;
        let speaker = session.peer_certificate().and_then(tls::node_of);
        let speaker = speaker.ok_or(Error::Stranger("the certificate is no node's"))?;
        let offence = |offence| Error::Offence {
            node: speaker,
            offence,
        };
        let preface = match received {
            Err(session::Error::Message(_)) => return Err(offence(Offence::Unreadable)),
            received => received?,
        };
        if preface.node != u32::from(speaker.get()) {
            return Err(offence(Offence::AnotherName));
        }
        let (node, purpose) = self.admit(&preface)?;
        if purpose == Purpose::Control {
            // Said before the version is judged, so that both sides can name both numbers.
            session.send(&self.preface(Purpose::Control)).await?;
        }
        check(&preface, node)?;
        let opened = match class(purpose) {
            None => {
                let instance = preface.instance;
                self.compare(preface, node)?;
                Opened::Control {
                    session: Box::new(session),
                    instance,
                }
            }
            Some(class) => {
                self.compare_epochs(&preface, node)?;
                Opened::Link {
                    class,
                    serial: preface.serial,
                    instance: preface.instance,
                    socket: handover::accepted(session).await?,
                }
            }
        };
        Ok(Caller::Node(node, opened))
    }

    /// Whether processes can move between `node` and this one.
    fn compare(&self, theirs: Preface, node: NodeId) -> Result<(), Error> {
        let there: Facts = theirs.facts.map(Into::into).unwrap_or_default();
        if !there.make_sense() {
            return Err(Error::Stranger("it does not say what it is made of"));
        }
        let what = self.facts.differ(&there);
        if what.is_empty() {
            Ok(())
        } else {
            Err(Error::Differs { node, what })
        }
    }

    /// Whether a link from `node` is for the epochs in which both are, as far as this node knows.
    fn compare_epochs(&self, preface: &Preface, node: NodeId) -> Result<(), Error> {
        let theirs = Pair {
            own: preface.your_since,
            other: preface.own_since,
        };
        match self.roster.tie(node) {
            Tie::Bound(ours) if ours == theirs => Ok(()),
            Tie::Bound(_) => Err(Error::OtherEpoch {
                node,
                named: preface.own_since.max(preface.your_since),
            }),
            Tie::Loose | Tie::Cut => Err(Error::Loose(node)),
        }
    }

    /// Whether such a connection may come.
    fn admit(&self, preface: &Preface) -> Result<(NodeId, Purpose), Error> {
        let node = msg::node(preface.node).ok_or(Error::Stranger("no node number"))?;
        if self.roster.node(node).is_none() {
            return Err(Error::Stranger("a node that is not in the cluster"));
        }
        if node >= self.roster.own() {
            return Err(Error::Stranger("the node with the lower number connects"));
        }
        let purpose = preface.purpose();
        if purpose == Purpose::Unknown {
            return Err(Error::Stranger("an unknown purpose"));
        }
        Ok((node, purpose))
    }
}

fn joined(what: &[Difference]) -> String {
    let texts: Vec<String> = what.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

fn class(purpose: Purpose) -> Option<Class> {
    let is_for = |class: &Class| LINKS[*class as usize].0 == purpose;
    Class::ALL.into_iter().find(is_for)
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
