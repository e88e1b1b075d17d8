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
use crate::msg::{Body, Envelope, Heartbeat};
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
            let ended = run(session, queued, id, &heard, &clock).await;
            if let Err(Error::Message(_)) = &ended {
                let lie = Heard::Offended(Offence::Unreadable);
                let _ = heard.send((id, lie).into()).await;
            }
            let why = match ended {
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
        while let Some(envelope) = session.take::<Envelope>()? {
            let stamp = Stamp::from_bits(envelope.stamp);
            clock.hear(stamp);
            if !stamp.is_possible() {
                let lie = Heard::Offended(Offence::ImpossibleTime);
                let _ = heard.send((id, lie).into()).await;
            }
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
                // If the last one is still here, another says nothing new.
                if session.backlog_bytes() == 0 {
                    session.queue(&Envelope::new(Body::Heartbeat(Heartbeat {}), clock.tick()))?;
                }
            }
            body = queued.recv(), if session.backlog_bytes() < MAX_BACKLOG_BYTES => match body {
                Some(body) => session.queue(&Envelope::new(body, clock.tick()))?,
                None => return Ok(()),
            }
        }
    }
}
