// SPDX-License-Identifier: MIT OR Apache-2.0

//! One TLS connection to another daemon, message by message.
//!
//! rustls is driven through its unbuffered interface, because that is the one whose connections can
//! be given to the kernel: at any time we know of every byte whether it was taken. [`Engine`] does
//! no I/O; [`Session`] is the engine and a socket. Every wait of a session may be given up and
//! begun again without loss, except inside [`Session::send`].

use std::io;
use std::sync::Arc;

use prost::Message;
use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    AppDataRecord, ConnectionState, EncodeError, EncryptError, InsufficientSizeError,
    UnbufferedStatus, WriteTraffic,
};
use rustls::{ClientConfig, ExtractedSecrets, ServerConfig};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::{msg, tls};

/// Read from the socket at once at most.
const READ_BYTES: usize = 32 * 1024;
/// Plaintext of one record at most.
const FRAGMENT_BYTES: usize = 16 * 1024;
/// Decrypted bytes that may wait to be taken: a message, its length, and a record that began it.
const MAX_PLAIN_BYTES: usize = msg::MAX_MESSAGE_BYTES + 64 * 1024;

/// The connection is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket failed.
    #[error("connection failed")]
    Io(#[from] io::Error),
    /// The other side ended it.
    #[error("connection closed")]
    Closed,
    /// TLS failed.
    #[error("TLS")]
    Tls(#[from] rustls::Error),
    /// What arrived is no message.
    #[error("message")]
    Message(#[from] msg::Error),
    /// Bytes arrived that nobody asked for.
    #[error("the peer sent more than it may")]
    Excess,
}

/// Either side of TLS.
pub(crate) enum Tls {
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
}

/// TLS without I/O: what arrives goes in, what must be sent comes out.
pub(crate) struct Engine {
    tls: Tls,
    /// Arrived, not yet taken by TLS: at most one record that is not whole.
    pub(crate) incoming: Vec<u8>,
    /// To be sent.
    pub(crate) outgoing: Vec<u8>,
    /// Decrypted, not yet taken by us.
    pub(crate) plain: Vec<u8>,
}

/// Grows `out` by `length` bytes, lets `fill` write there, and keeps what it wrote.
fn append<E>(
    out: &mut Vec<u8>,
    length: usize,
    fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
) -> Result<(), E> {
    let before = out.len();
    out.resize(before + length, 0);
    let written = fill(&mut out[before..]);
    out.truncate(before + written.as_ref().map_or(0, |n| *n));
    written.map(drop)
}

/// Takes one step with the status that rustls gave. `Ok(true)`: call again.
fn step<D>(
    status: UnbufferedStatus<'_, '_, D>,
    outgoing: &mut Vec<u8>,
    plain: &mut Vec<u8>,
) -> (usize, Result<bool, Error>) {
    let UnbufferedStatus { mut discard, state } = status;
    let result = (|| match state? {
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                let AppDataRecord {
                    discard: more,
                    payload,
                    ..
                } = record?;
                discard += more;
                plain.extend_from_slice(payload);
            }
            Ok(true)
        }
        ConnectionState::EncodeTlsData(mut data) => {
            let mut length = FRAGMENT_BYTES;
            loop {
                match append(outgoing, length, |b| data.encode(b)) {
                    Ok(()) => return Ok(true),
                    Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => {
                        length = required_size;
                    }
                    // It was encoded before: nothing is left to do.
                    Err(EncodeError::AlreadyEncoded) => return Ok(true),
                }
            }
        }
        // What was encoded lies in `outgoing`, which is sent before anything else is.
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Ok(true)
        }
        ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_) => Ok(false),
        _ => Err(Error::Closed),
    })();
    (discard, result)
}

fn encrypt<D>(
    traffic: &mut WriteTraffic<'_, D>,
    data: &[u8],
    outgoing: &mut Vec<u8>,
) -> Result<(), Error> {
    for fragment in data.chunks(FRAGMENT_BYTES) {
        append(outgoing, fragment.len() + 256, |b| {
            traffic.encrypt(fragment, b)
        })
        .map_err(|e| match e {
            EncryptError::EncryptExhausted => Error::Tls(rustls::Error::EncryptError),
            EncryptError::InsufficientSize(_) => Error::Excess,
        })?;
    }
    Ok(())
}

impl Engine {
    pub(crate) fn new(tls: Tls) -> Self {
        Self {
            tls,
            incoming: Vec::new(),
            outgoing: Vec::new(),
            plain: Vec::new(),
        }
    }

    /// Does all that can be done with what has arrived. After an error `outgoing` may hold an
    /// alert that tells the peer.
    pub(crate) fn advance(&mut self) -> Result<(), Error> {
        let mut failed = None;
        loop {
            let (discard, result) = match &mut self.tls {
                Tls::Client(c) => step(
                    c.process_tls_records(&mut self.incoming),
                    &mut self.outgoing,
                    &mut self.plain,
                ),
                Tls::Server(c) => step(
                    c.process_tls_records(&mut self.incoming),
                    &mut self.outgoing,
                    &mut self.plain,
                ),
            };
            self.incoming.drain(..discard.min(self.incoming.len()));
            match (result, failed.take()) {
                // That was once more: the alert, if there is one, came out. What arrived is not looked
                // at a second time.
                (_, Some(e)) => return Err(e),
                (Ok(true), None) => {}
                (Ok(false), None) => return Ok(()),
                (Err(e), None) => failed = Some(e),
            }
            if self.plain.len() > MAX_PLAIN_BYTES {
                return Err(Error::Excess);
            }
        }
    }

    pub(crate) fn is_handshaking(&self) -> bool {
        match &self.tls {
            Tls::Client(c) => c.is_handshaking(),
            Tls::Server(c) => c.is_handshaking(),
        }
    }

    /// Encrypts `data` into `outgoing`. Only after the handshake.
    fn write(&mut self, data: &[u8]) -> Result<(), Error> {
        // The state that can encrypt is only given with all that has arrived taken.
        self.advance()?;
        match &mut self.tls {
            Tls::Client(c) => match c.process_tls_records(&mut self.incoming).state? {
                ConnectionState::WriteTraffic(mut t) => encrypt(&mut t, data, &mut self.outgoing),
                _ => Err(Error::Closed),
            },
            Tls::Server(c) => match c.process_tls_records(&mut self.incoming).state? {
                ConnectionState::WriteTraffic(mut t) => encrypt(&mut t, data, &mut self.outgoing),
                _ => Err(Error::Closed),
            },
        }
    }

    pub(crate) fn peer_certificate(&self) -> Option<&CertificateDer<'static>> {
        match &self.tls {
            Tls::Client(c) => c.peer_certificates(),
            Tls::Server(c) => c.peer_certificates(),
        }?
        .first()
    }

    /// The application protocol that was agreed on.
    fn protocol(&self) -> Option<&[u8]> {
        match &self.tls {
            Tls::Client(c) => c.alpn_protocol(),
            Tls::Server(c) => c.alpn_protocol(),
        }
    }

    /// The keys, if nothing is under way in either direction.
    fn into_secrets(self) -> Result<ExtractedSecrets, Error> {
        if !(self.incoming.is_empty() && self.outgoing.is_empty() && self.plain.is_empty()) {
            return Err(Error::Excess);
        }
        let (secrets, _) = match self.tls {
            Tls::Client(c) => c.dangerous_into_kernel_connection().map(|(s, _)| (s, ()))?,
            Tls::Server(c) => c.dangerous_into_kernel_connection().map(|(s, _)| (s, ()))?,
        };
        Ok(secrets)
    }
}

/// A TLS connection.
pub struct Session {
    engine: Engine,
    stream: TcpStream,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("stream", &self.stream)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Shakes hands as the side that connected, with the node called `name`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn connect(
        stream: TcpStream,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, Error> {
        let tls = Tls::Client(Box::new(UnbufferedClientConnection::new(config, name)?));
        Self {
            engine: Engine::new(tls),
            stream,
        }
        .handshake()
        .await
    }

    /// Shakes hands as the side that accepted.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn accept(stream: TcpStream, config: Arc<ServerConfig>) -> Result<Self, Error> {
        let tls = Tls::Server(Box::new(UnbufferedServerConnection::new(config)?));
        Self {
            engine: Engine::new(tls),
            stream,
        }
        .handshake()
        .await
    }

    async fn handshake(mut self) -> Result<Self, Error> {
        self.engine.advance()?;
        while self.engine.is_handshaking() {
            if let Err(e) = self.progress().await {
                // The alert is a courtesy; what the socket says about it does not matter.
                let _ = self.stream.try_write(&self.engine.outgoing);
                return Err(e);
            }
        }
        self.flush().await?;
        Ok(self)
    }

    /// The certificate the peer proved to own.
    pub fn peer_certificate(&self) -> Option<&CertificateDer<'static>> {
        self.engine.peer_certificate()
    }

    /// Who the client is, on the side that accepted.
    ///
    /// # Errors
    /// See [`tls::Refused`].
    pub fn peer(&self) -> Result<tls::Peer<'_>, tls::Refused> {
        tls::peer_of(self.engine.protocol(), self.engine.peer_certificate())
    }

    /// Waits until the socket can give or take something and lets it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn progress(&mut self) -> Result<(), Error> {
        let interest = if self.engine.outgoing.is_empty() {
            Interest::READABLE
        } else {
            Interest::READABLE | Interest::WRITABLE
        };
        let ready = self.stream.ready(interest).await?;
        if ready.is_readable() {
            self.engine.incoming.reserve(READ_BYTES);
            match self.stream.try_read_buf(&mut self.engine.incoming) {
                Ok(0) => return Err(Error::Closed),
                Ok(_) => self.engine.advance()?,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e.into()),
            }
        }
        if ready.is_writable() && !self.engine.outgoing.is_empty() {
            match self.stream.try_write(&self.engine.outgoing) {
                Ok(n) => drop(self.engine.outgoing.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Error> {
        while !self.engine.outgoing.is_empty() {
            self.progress().await?;
        }
        Ok(())
    }

    /// Bytes that wait to be sent.
    pub fn backlog_bytes(&self) -> usize {
        self.engine.outgoing.len()
    }

    /// Puts a message behind those that wait to be sent.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn queue(&mut self, message: &impl Message) -> Result<(), Error> {
        let mut data = Vec::new();
        msg::encode(message, &mut data)?;
        self.engine.write(&data)
    }

    /// Sends a message and all that waits before it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn send(&mut self, message: &impl Message) -> Result<(), Error> {
        self.queue(message)?;
        self.flush().await
    }

    /// A message that has arrived whole, if there is one.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn take<M: Message + Default>(&mut self) -> Result<Option<M>, Error> {
        Ok(msg::decode(&mut self.engine.plain)?)
    }

    /// Waits for a message.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn receive<M: Message + Default>(&mut self) -> Result<M, Error> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(message);
            }
            self.progress().await?;
        }
    }

    /// Ends TLS in user space: the socket and the keys it goes on with.
    ///
    /// # Errors
    /// [`Error::Excess`] when bytes were received or wait to be sent that would be lost.
    pub fn into_kernel(self) -> Result<(TcpStream, ExtractedSecrets), Error> {
        Ok((self.stream, self.engine.into_secrets()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::msg::{Preface, Purpose};
    use crate::tls::testing::Authority;
    use ssi::id::NodeId;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (a, b) = tokio::join!(
            TcpStream::connect(listener.local_addr().unwrap()),
            listener.accept()
        );
        (a.unwrap(), b.unwrap().0)
    }

    async fn shake(
        client: &tls::Identity,
        server: &tls::Identity,
        name: u16,
    ) -> (Result<Session, Error>, Result<Session, Error>) {
        let (a, b) = pair().await;
        tokio::join!(
            Session::connect(
                a,
                Arc::clone(&client.client),
                tls::server_name(NodeId::new(name).unwrap())
            ),
            Session::accept(b, Arc::clone(&server.server))
        )
    }

    fn preface(node: u32) -> Preface {
        Preface {
            version: msg::VERSION,
            node,
            purpose: Purpose::LinkControl as i32,
            instance: u64::MAX,
            ..Preface::default()
        }
    }

    #[tokio::test]
    async fn both_sides_know_each_other_and_the_keys_match() {
        let authority = Authority::new();
        let (a, b) = shake(&authority.identity(1), &authority.identity(2), 2).await;
        let (mut a, mut b) = (a.unwrap(), b.unwrap());
        assert!(tls::is_of(
            b.peer_certificate().unwrap(),
            NodeId::new(1).unwrap()
        ));
        a.send(&preface(1)).await.unwrap();
        assert_eq!(b.receive::<Preface>().await.unwrap(), preface(1));
        let (_, a) = a.into_kernel().unwrap();
        let (_, b) = b.into_kernel().unwrap();
        // One record went from client to server: the counters say so on both sides.
        assert_eq!((a.tx.0, a.rx.0), (1, 0));
        assert_eq!((b.tx.0, b.rx.0), (0, 1));
    }

    #[tokio::test]
    async fn bytes_behind_the_preface_forbid_the_hand_over() {
        let authority = Authority::new();
        let (a, b) = shake(&authority.identity(1), &authority.identity(2), 2).await;
        let (mut a, mut b) = (a.unwrap(), b.unwrap());
        a.queue(&preface(1)).unwrap();
        a.send(&preface(1)).await.unwrap();
        b.receive::<Preface>().await.unwrap();
        assert!(matches!(b.into_kernel(), Err(Error::Excess)));
    }

    #[tokio::test]
    async fn another_node_or_another_cluster_is_refused() {
        let authority = Authority::new();
        let (a, b) = shake(&authority.identity(1), &authority.identity(3), 2).await;
        assert!(
            matches!(a, Err(Error::Tls(rustls::Error::InvalidCertificate(_)))),
            "{a:?}"
        );
        assert!(b.is_err());
        let (a, b) = shake(&Authority::new().identity(1), &authority.identity(2), 2).await;
        assert!(a.is_err() && b.is_err());
    }

    #[tokio::test]
    async fn two_large_messages_cross() {
        let authority = Authority::new();
        let (a, b) = shake(&authority.identity(1), &authority.identity(2), 2).await;
        let large = |n: u8| msg::File {
            path: vec![n; msg::MAX_MESSAGE_BYTES - 64],
            sha256: Vec::new(),
            size: 0,
        };
        async fn cross(mut s: Session, m: msg::File) -> msg::File {
            s.queue(&m).unwrap();
            let got = s.receive().await.unwrap();
            s.flush().await.unwrap();
            // The other side may still need what is on the way.
            let _ = tokio::time::timeout(std::time::Duration::from_millis(500), s.progress()).await;
            got
        }
        let (x, y) = tokio::join!(cross(a.unwrap(), large(1)), cross(b.unwrap(), large(2)));
        assert_eq!((x, y), (large(2), large(1)));
    }

    #[tokio::test]
    async fn garbage_ends_the_handshake() {
        let authority = Authority::new();
        let (a, b) = pair().await;
        a.try_write(&[0x16, 3, 1, 0, 4, 1, 2, 3, 4, 5, 6, 7])
            .unwrap();
        let identity = authority.identity(2);
        let r = tokio::time::timeout(
            std::time::Duration::from_secs(5),
            Session::accept(b, identity.server),
        )
        .await;
        assert!(r.unwrap().is_err());
    }

    #[test]
    fn what_is_no_tls_has_one_alert() {
        let authority = Authority::new();
        let config = authority.identity(2).server;
        let tls = UnbufferedServerConnection::new(config).unwrap();
        let mut engine = Engine::new(Tls::Server(Box::new(tls)));
        // A record of a type that there is not.
        engine.incoming.extend_from_slice(&[0x99, 3, 3, 0, 1, 0]);
        assert!(matches!(engine.advance(), Err(Error::Tls(_))));
        let alerts = engine.outgoing.chunks(7);
        let alerts: Vec<u8> = alerts.filter_map(|a| a.first().copied()).collect();
        assert_eq!(alerts, [0x15]);
    }
}
