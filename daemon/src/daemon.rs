// SPDX-License-Identifier: MIT OR Apache-2.0

//! Puts the parts together and keeps them running.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::agree::Timing;
use crate::audit::{self, Audit};
use crate::cluster::Cluster;
use crate::config::Config;
use crate::core::facts::Facts;
use crate::council::{self, Council};
use crate::failure::in_full;
use crate::kmod::{Event, Kmod};
use crate::net::{Caller, Net};
use crate::peer::Input;
use crate::roster::Roster;
use crate::seat::{self, Credentials, Seat, Store};
use crate::service::{self, Reload};
use crate::session::Session;
use crate::sockets::Sockets;
use crate::stage::{Equipment, Stage};
use crate::stub::{self, Stubs};
use crate::tls::{Identity, Revoked};
use crate::{depart, facts, join, kmod, metrics, proc, serve, tls};

/// Connections that wait for the task of their peer.
const MAX_OPENED: usize = 64;
/// Machines that may be joining at once.
const MAX_JOINING: usize = 8;

/// The daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The module is not there, or is another.
    #[error(transparent)]
    Module(#[from] kmod::Error),
    /// Its files are of no use.
    #[error(transparent)]
    Seat(#[from] seat::Error),
    /// It cannot take part in governing.
    #[error(transparent)]
    Council(#[from] council::Error),
    /// This node cannot prove who it is.
    #[error(transparent)]
    Identity(#[from] tls::Error),
    /// Tools could not reach it.
    #[error(transparent)]
    Socket(#[from] serve::Error),
    /// What it does could not be accounted for.
    #[error("no audit log")]
    Audit(#[from] audit::Error),
    /// Other nodes could not reach it.
    #[error("cannot listen on port {port}")]
    Listen {
        /// The port.
        port: u16,
        /// Why.
        source: io::Error,
    },
    /// The system refuses something every process may do.
    #[error("{what}")]
    System {
        /// What.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Runs the daemon until it is told to stop, with the `sockets` of an earlier run if it left any.
///
/// # Errors
/// Why it cannot start. Once it runs, nothing ends it but a signal.
pub async fn run(config: Config, reload: Reload, mut sockets: Sockets) -> Result<(), Error> {
    let config = Arc::new(config);
    // All that may be wrong with this machine is found out before others hear of it.
    let store = Store::open(&config.state)?;
    proc::allow_all_numbers().map_err(|source| Error::System {
        what: "cannot set kernel.pid_max",
        source,
    })?;
    proc::allow_many_files().map_err(|source| Error::System {
        what: "cannot raise the limit of open files",
        source,
    })?;
    let socket = serve::listen(&config.socket, &mut sockets)?;
    let unheard = |source| Error::System {
        what: "cannot wait for signals",
        source,
    };
    let stop = stopped().map_err(unheard)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(unheard)?;

    let facts = facts::read().map_err(|source| Error::System {
        what: "cannot tell what this machine is made of",
        source,
    })?;
    let facts = Facts {
        dead_after_ms: u64::try_from(config.peer_dead_after.as_millis()).unwrap_or(u64::MAX),
        ..facts
    };
    let stubs = Stubs::new(ssi::uapi::DEVICE).map_err(|source| Error::System {
        what: "cannot keep the stub in memory",
        source,
    })?;
    let stubs = Arc::new(stubs);
    let audit = Arc::new(Audit::open(&config.audit, 0)?);
    let equipment = Equipment {
        stubs: Arc::clone(&stubs),
        audit: Arc::clone(&audit),
        facts: Box::new(move || {
            let facts = facts.clone();
            Box::pin(async move {
                let wire = Kmod::wire_version().await?;
                Ok(Facts { wire, ..facts })
            })
        }),
        open_module: Box::new(|node| Box::pin(Kmod::open(node))),
        timing: Timing::default(),
        sockets: Mutex::new(sockets),
    };
    let stage = Stage::new(Arc::clone(&config), store, equipment);
    stage.resume().await?;
    audit.record(audit::Event::Started {
        version: env!("CARGO_PKG_VERSION"),
    });
    if let Some(addr) = config.metrics {
        tokio::spawn(metrics::listen(addr, Arc::clone(&stage)));
    }
    tokio::spawn(serve::serve(socket, Arc::clone(&stage)));
    tokio::spawn(async move {
        if let Err(e) = stub::reap(stubs).await {
            tracing::error!("children are not reaped: {e}");
        }
    });
    tokio::spawn(service::watchdog());
    tokio::spawn(service::follow(Arc::clone(&stage)));
    service::ready(&stage);
    let on_hangup = async {
        while hangup.recv().await.is_some() {
            reload.reload(&stage);
        }
        std::future::pending().await
    };
    tokio::select! {
        () = stop => {}
        () = on_hangup => {}
    }
    service::stopping();
    stage.hand_over().await;
    audit.close(audit::Event::Stopped);
    // The links stay with the module: a daemon that starts again finds every guest where it was.
    tracing::info!("stopped");
    Ok(())
}

/// What the parts of a daemon share.
#[derive(Debug)]
pub struct Parts {
    /// The module.
    pub module: Kmod,
    /// Its stubs.
    pub stubs: Arc<Stubs>,
    /// Where it accounts for what it does.
    pub audit: Arc<Audit>,
    /// What this node is made of.
    pub facts: Facts,
}

/// The place of a node, and what it needs to take it.
#[derive(Debug)]
pub struct Place {
    /// Where it is kept.
    pub store: Store,
    /// Which place.
    pub seat: Seat,
    /// How the node proves that it has it.
    pub credentials: Credentials,
    /// How long agreeing takes.
    pub timing: Timing,
    /// What was kept of its sockets.
    pub sockets: Sockets,
}

/// Starts a node; what was started runs in `tasks`, and all of it ends with them.
///
/// # Errors
/// See [`Error`].
pub async fn start(
    config: &Config,
    place: Place,
    parts: Parts,
    mut events: mpsc::Receiver<Event>,
    tasks: &mut JoinSet<()>,
) -> Result<Arc<Cluster>, Error> {
    let instance = depart::random().ok_or_else(|| Error::System {
        what: "no random numbers",
        source: io::Error::other("no entropy"),
    })?;
    let Place {
        store,
        seat,
        credentials,
        timing,
        mut sockets,
    } = place;
    let identity = Identity::of(seat.node, &credentials, Revoked::new())?;
    let own = seat.own();
    let port = own.addr.port();
    let net = Net::new(
        Arc::new(Roster::new(own)),
        parts.facts.clone(),
        config.plain_links,
        identity,
        instance,
        Arc::clone(&parts.audit),
    );
    let net = Arc::new(net);
    let listener = net
        .listen(&mut sockets)
        .await
        .map_err(|source| Error::Listen { port, source })?;

    let cluster = Cluster::new(Arc::clone(&net), config.peer_dead_after, parts);
    cluster.set_policy(config.guests.clone());
    let (node, others) = (seat.node, seat.others.clone());
    let council = Council::open(&cluster, config, store, seat, credentials, timing, tasks).await?;
    cluster.set_council(council);
    for other in others {
        cluster.enter(other.into());
    }

    let (sender, callers) = mpsc::channel(MAX_OPENED);
    tasks.spawn(Arc::clone(&net).accept(listener, sender));
    tasks.spawn(dispatch(callers, Arc::clone(&cluster)));
    let on_event = Arc::clone(&cluster);
    tasks.spawn(async move {
        while let Some(event) = events.recv().await {
            on_event.event(event).await;
        }
        tracing::error!("the module reports nothing any more");
    });
    tracing::info!(%node, port, "ready");
    Ok(cluster)
}

/// Gives accepted connections to the tasks of their peers, and lets machines in.
async fn dispatch(mut callers: mpsc::Receiver<Caller>, cluster: Arc<Cluster>) {
    let mut joining = JoinSet::new();
    while let Some(caller) = callers.recv().await {
        match caller {
            Caller::Node(node, opened) => {
                if let Some(peer) = cluster.roster().peer(node) {
                    peer.tell(Input::Opened(opened)).await;
                }
            }
            Caller::Offender(node, offence) => cluster.offended(node, offence),
            Caller::Named(node, epoch) => {
                if let Ok(council) = cluster.council() {
                    council.named(node, epoch);
                }
            }
            Caller::Joiner(session, from) => {
                while joining.try_join_next().is_some() {}
                if joining.len() >= MAX_JOINING {
                    tracing::warn!(%from, "too many machines join at once: one dropped");
                } else {
                    joining.spawn(let_in(*session, from, Arc::clone(&cluster)));
                }
            }
        }
    }
}

/// Hears a machine that wants to join.
async fn let_in(session: Session, from: SocketAddr, cluster: Arc<Cluster>) {
    let Ok(council) = cluster.council() else {
        return;
    };
    let (addr, outcome) = match join::answer(session, council).await {
        Ok((addr, result)) => (addr, result.map(|a| a.node).map_err(|f| f.to_string())),
        Err(e) => (String::new(), Err(in_full(&e))),
    };
    if let Err(why) = &outcome {
        tracing::warn!(%from, "a machine was not let in: {why}");
    }
    cluster.audit().record(audit::Event::Join {
        from: from.to_string(),
        addr,
        outcome: outcome.map_or_else(|why| why, |node| format!("n{node}")),
    });
}

/// Completes when the daemon is told to stop.
fn stopped() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

#[cfg(test)]
mod tests;
