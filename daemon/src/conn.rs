// SPDX-License-Identifier: MIT OR Apache-2.0

//! One control connection that stands: a task that reads, writes and says that we live.

use std::sync::Arc;
use std::time::Duration;

use ssi::id::NodeId;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::clock::Clock;
use crate::core::hlc::Stamp;
use crate::core::offence::Offence;
use crate::msg::{self, Body, Envelope, Heartbeat};
use crate::session::{Error, Session};

/// How often we say that we live.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);
/// Messages that wait to be encrypted. A peer that takes none for so long is not worth more.
const MAX_QUEUED: usize = 64;
/// Encrypted bytes that wait to be sent before another message is taken from the queue.
const MAX_BACKLOG_BYTES: usize = 256 * 1024;

/// What a connection has to say to the task of its peer.
#[derive(Debug)]
pub enum Heard {
    /// A message.
    Said(Body),
    /// It did what no honest node does.
    Offended(Offence),
    /// It ended; nothing else comes.
    Closed(String),
}

/// A handle to a connection; dropping it closes it.
#[derive(Debug)]
pub struct Conn {
    /// Tells this connection from others of the peer.
    pub id: u64,
    queue: mpsc::Sender<Body>,
}

impl Conn {
    /// Starts to serve `session`. What it hears goes to `heard` with `id`.
    pub fn start<T>(
        session: Session,
        peer: NodeId,
        id: u64,
        heard: mpsc::Sender<T>,
        clock: Arc<Clock>,
    ) -> Self
    where
        T: From<(u64, Heard)> + Send + 'static,
    {
        let (queue, queued) = mpsc::channel(MAX_QUEUED);
        tokio::spawn(async move {
            let why = match run(session, queued, id, &heard, &clock).await {
                Ok(()) => "no longer wanted".to_owned(),
                Err(e) => format!("{:#}", anyhow::Error::from(e)),
            };
            tracing::debug!(%peer, id, "control connection ended: {why}");
            let _ = heard.send((id, Heard::Closed(why)).into()).await;
        });
        Self { id, queue }
    }

    /// Puts a message into the queue; `false` when it is full or the connection is gone.
    pub fn say(&self, body: Body) -> bool {
        self.queue.try_send(body).is_ok()
    }

    /// A way to put messages into the queue later.
    pub fn queue(&self) -> mpsc::WeakSender<Body> {
        self.queue.downgrade()
    }
}

async fn run<T: From<(u64, Heard)>>(
    mut session: Session,
    mut queued: mpsc::Receiver<Body>,
    id: u64,
    heard: &mpsc::Sender<T>,
    clock: &Clock,
) -> Result<(), Error> {
    let mut beat = tokio::time::interval(HEARTBEAT_EVERY);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        loop {
            let taken = session.take::<Envelope>();
            let stamp = taken.as_ref().map(|e| e.as_ref().map(|e| e.stamp));
            let offence = match stamp {
                // Only of what came: what this node has to say may be too long as well.
                Err(Error::Message(_)) => Some(Offence::Unreadable),
                Ok(Some(bits)) if !Stamp::from_bits(bits).is_possible() => {
                    Some(Offence::ImpossibleTime)
                }
                _ => None,
            };
            if let Some(offence) = offence {
                let _ = heard.send((id, Heard::Offended(offence)).into()).await;
            }
            let Some(envelope) = taken? else { break };
            clock.hear(Stamp::from_bits(envelope.stamp));
            // A kind we do not know comes from a newer peer: it is passed over.
            if let Some(body) = envelope.body
                && heard.send((id, Heard::Said(body)).into()).await.is_err()
            {
                return Ok(());
            }
        }
        tokio::select! {
            result = session.progress() => result?,
            _ = beat.tick() => {
                // What is queued is still said to a peer that takes it.
                if queued.is_closed() && session.backlog_bytes() >= MAX_BACKLOG_BYTES {
                    return Ok(());
                }
                // If the last one is still here, another says nothing new.
                if session.backlog_bytes() == 0 {
                    session.queue(&Envelope::new(Body::Heartbeat(Heartbeat {}), clock.tick()))?;
                }
            }
            body = queued.recv(), if session.backlog_bytes() < MAX_BACKLOG_BYTES => match body {
                Some(body) => match session.queue(&Envelope::new(body, clock.tick())) {
                    // The connection is others' too. Who waits for an answer does not wait for ever.
                    Err(Error::Message(e @ msg::Error::TooLong(_))) => {
                        tracing::error!("a message is not sent: {e}");
                    }
                    done => done?,
                },
                None => return Ok(()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use ssi::id::NodeId;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::msg::Hint;
    use crate::tls;
    use crate::tls::testing::Authority;

    async fn sessions() -> (Session, Session) {
        let authority = Authority::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let two = NodeId::new(2).unwrap();
        let connect = async {
            let stream = TcpStream::connect(addr).await.unwrap();
            let client = authority.identity(1).client;
            Session::connect(stream, client, tls::server_name(two)).await
        };
        let accept = async {
            let stream = listener.accept().await.unwrap().0;
            Session::accept(stream, authority.identity(2).server).await
        };
        let (a, b) = tokio::join!(connect, accept);
        (a.unwrap(), b.unwrap())
    }

    fn start(session: Session, peer: u16) -> (Conn, mpsc::Receiver<(u64, Heard)>) {
        let (heard, hears) = mpsc::channel(16);
        let peer = NodeId::new(peer).unwrap();
        (Conn::start(session, peer, 1, heard, Arc::default()), hears)
    }

    /// What was found of the other side until it was gone.
    async fn offences(mut hears: mpsc::Receiver<(u64, Heard)>) -> Vec<Offence> {
        let mut all = Vec::new();
        while let Some((_, heard)) = hears.recv().await {
            if let Heard::Offended(offence) = heard {
                all.push(offence);
            }
        }
        all
    }

    #[tokio::test]
    async fn what_is_no_message_and_what_no_clock_shows_is_an_offence() {
        let (mut liar, honest) = sessions().await;
        let (_conn, hears) = start(honest, 1);
        for stamp in [Stamp::default().bits(), u64::MAX] {
            let late = Envelope {
                stamp,
                ..Envelope::default()
            };
            liar.send(&late).await.unwrap();
        }
        let garbage = msg::File {
            path: vec![0xff; 9],
            ..msg::File::default()
        };
        liar.send(&garbage).await.unwrap();
        let found = offences(hears).await;
        assert_eq!(found, [Offence::ImpossibleTime, Offence::Unreadable]);
    }

    /// One that takes nothing cannot keep a connection that is not wanted any more.
    #[tokio::test]
    async fn dropping_it_closes_it_though_the_other_takes_nothing() {
        let (_deaf, honest) = sessions().await;
        let (conn, mut hears) = start(honest, 1);
        let packet = vec![0; msg::MAX_MESSAGE_BYTES / 2];
        for _ in 0..100 {
            while conn.say(Body::Hint(Hint {
                packet: packet.clone(),
            })) {}
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(conn);
        let closed = tokio::time::timeout(Duration::from_secs(5), async {
            while let Some((_, heard)) = hears.recv().await {
                if let Heard::Closed(why) = heard {
                    return why;
                }
            }
            String::new()
        });
        assert_eq!(closed.await.expect("it is closed"), "no longer wanted");
    }

    /// To have more to say than one may is an error of this node, and no lie of the other; what else there is to say
    /// gets there.
    #[tokio::test]
    async fn a_message_of_our_own_that_is_too_long_is_not_sent_and_nobodys_offence() {
        let (one, other) = sessions().await;
        let (one, one_hears) = start(one, 2);
        let (other, mut other_hears) = start(other, 1);
        for length in [msg::MAX_MESSAGE_BYTES + 1, 7] {
            let packet = vec![0; length];
            assert!(one.say(Body::Hint(Hint { packet })));
        }
        let heard = loop {
            match other_hears.recv().await.unwrap().1 {
                Heard::Said(Body::Hint(hint)) => break hint.packet.len(),
                Heard::Said(_) => {}
                _ => panic!("it is closed, or found fault with"),
            }
        };
        assert_eq!(heard, 7);
        drop((one, other));
        assert_eq!(offences(one_hears).await, []);
    }
}
