// SPDX-License-Identifier: MIT OR Apache-2.0

//! Puts the parts together and keeps them running.

use std::io;
use std::sync::Arc;

use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::audit::{self, Audit};
use crate::cluster::Cluster;
use crate::config::Config;
use crate::kmod::{Event, Kmod};
use crate::net::{Net, Opened};
use crate::peer::task::Waiting;
use crate::peer::{Input, Peer};
use crate::service::{self, Reload};
use crate::stub::{self, Stubs};
use crate::tls::Identity;
use crate::{depart, kmod, proc, serve, tls};

/// Connections that wait for the task of their peer.
const MAX_OPENED: usize = 64;

/// The daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The module is not there, or is another.
    #[error(transparent)]
    Module(#[from] kmod::Error),
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

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// Why it cannot start. Once it runs, nothing ends it but a signal.
pub async fn run(config: Config, reload: Reload) -> Result<(), Error> {
    let config = Arc::new(config);
    // All that may be wrong with this node is found out before others hear of it.
    let identity = Identity::load(&config)?;
    proc::allow_all_numbers().map_err(|source| Error::System {
        what: "cannot set kernel.pid_max",
        source,
    })?;
    let (module, events) = Kmod::open(config.node).await?;
    let socket = serve::listen(&config.socket)?;
    let unheard = |source| Error::System {
        what: "cannot wait for signals",
        source,
    };
    let stop = stopped().map_err(unheard)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(unheard)?;

    let stubs = Stubs::new(ssi::uapi::DEVICE).map_err(|source| Error::System {
        what: "cannot keep the stub in memory",
        source,
    })?;
    let stubs = Arc::new(stubs);
    let audit = Arc::new(Audit::open(&config.audit, config.node.get())?);
    audit.record(audit::Event::Started {
        version: env!("CARGO_PKG_VERSION"),
    });
    let parts = Parts {
        module,
        stubs: Arc::clone(&stubs),
        audit: Arc::clone(&audit),
    };
    let net = start(Arc::clone(&config), identity, parts, events, socket).await?;
    tokio::spawn(async move {
        if let Err(e) = stub::reap(stubs).await {
            tracing::error!("children are not reaped: {e}");
        }
    });
    tokio::spawn(service::watchdog());
    service::ready(&config);
    let on_hangup = async {
        while hangup.recv().await.is_some() {
            reload.reload(&config, &net, &audit);
        }
        std::future::pending().await
    };
    tokio::select! {
        () = stop => {}
        () = on_hangup => {}
    }
    service::stopping();
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
}

/// Starts everything; what was started runs in tasks of its own.
///
/// # Errors
/// See [`Error`].
pub async fn start(
    config: Arc<Config>,
    identity: Identity,
    parts: Parts,
    mut events: mpsc::Receiver<Event>,
    socket: UnixListener,
) -> Result<Arc<Net>, Error> {
    let instance = depart::random().ok_or_else(|| Error::System {
        what: "no random numbers",
        source: io::Error::other("no entropy"),
    })?;
    let module = parts.module.clone();
    let net = Net::new(
        Arc::clone(&config),
        identity,
        instance,
        Arc::clone(&parts.audit),
    );
    let net = Arc::new(net);
    let port = config.node(config.node).map_or(0, |n| n.addr.port());
    let listener = net
        .listen()
        .await
        .map_err(|source| Error::Listen { port, source })?;

    let waiting: Vec<Waiting> = config.peers().cloned().map(Waiting::new).collect();
    let peers: Vec<Peer> = waiting.iter().map(Waiting::handle).collect();
    let cluster = Cluster::new(Arc::clone(&config), parts, peers);
    for peer in waiting {
        peer.start(
            config.node,
            config.peer_dead_after,
            Arc::clone(&net),
            module.clone(),
            Arc::clone(&cluster) as _,
        );
    }

    let (sender, opened) = mpsc::channel(MAX_OPENED);
    tokio::spawn(Arc::clone(&net).accept(listener, sender));
    tokio::spawn(dispatch(opened, Arc::clone(&cluster)));
    let on_event = Arc::clone(&cluster);
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            on_event.event(event).await;
        }
        tracing::error!("the module reports nothing any more");
    });
    tokio::spawn(serve::serve(socket, Arc::clone(&cluster)));
    tracing::info!(node = %config.node, port, "ready");
    Ok(net)
}

/// Gives accepted connections to the tasks of their peers.
async fn dispatch(mut opened: mpsc::Receiver<(ssi::id::NodeId, Opened)>, cluster: Arc<Cluster>) {
    while let Some((node, opened)) = opened.recv().await {
        if let Some(peer) = cluster.peer(node) {
            peer.tell(Input::Opened(opened)).await;
        }
    }
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
