// SPDX-License-Identifier: MIT OR Apache-2.0

//! A machine that others talk to: in no cluster, or alone in one.

use std::cell::OnceCell;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ssi::uapi::Cmd;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use super::scratch;
use crate::agree::Timing;
use crate::audit::Audit;
use crate::config::Config;
use crate::core::facts::Facts;
use crate::core::state::State;
use crate::kmod::{Channel, Kmod};
use crate::netlink;
use crate::pki::{self, CaHash};
use crate::seat::Store;
use crate::stage::{Charter, Equipment, Stage};
use crate::stub::Stubs;

/// Longest wait for the end of a conversation.
pub(super) const DONE_IN: Duration = Duration::from_secs(20);

/// Says all of `data`, closes that side, and puts what is answered into `heard` until the other side closes.
pub(super) async fn say(ours: &mut UnixStream, data: &[u8], heard: &mut Vec<u8>) -> io::Result<()> {
    let (mut read, mut write) = ours.split();
    let say = async {
        // The other side may close before all is said.
        let _ = write.write_all(data).await;
        let _ = write.shutdown().await;
    };
    tokio::join!(say, read.read_to_end(heard)).1.map(drop)
}

/// A module that has no processes and does nothing.
#[derive(Debug)]
struct Idle;

impl Channel for Idle {
    fn request(&self, _: Cmd, _: Vec<u8>) -> Result<Vec<u8>, netlink::Error> {
        Ok(Vec::new())
    }
}

/// In no cluster; it can be in none.
pub(super) fn alone(dir: &Path) -> Arc<Stage> {
    let config = Config::parse(dir, "").expect("all has a default");
    stage(dir, config, || {
        let missing = netlink::Error::NoFamily("ssi".to_owned());
        Err(crate::kmod::Error::NotLoaded(missing))
    })
}

/// The only node of a cluster, which runs.
pub(super) struct Node {
    /// Whoever talks to it does so in here.
    pub(super) runtime: Runtime,
    pub(super) stage: Arc<Stage>,
    /// Where it listens for nodes.
    pub(super) port: u16,
    _dir: TempDir,
}

impl Node {
    fn found() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let dir = scratch();
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let addr = free.local_addr().expect("a port");
        drop(free);
        let text = format!("port = {}", addr.port());
        let config = Config::parse(dir.path(), &text).expect("a configuration");
        let stage = stage(dir.path(), config, || Ok(Kmod::with(Arc::new(Idle))));
        let charter = Charter {
            addr: Some(addr.to_string()),
            ..Charter::default()
        };
        runtime.block_on(stage.init(charter)).expect("a cluster");
        Self {
            runtime,
            stage,
            port: addr.port(),
            _dir: dir,
        }
    }

    /// What is agreed on.
    pub(super) fn agreed(&self) -> State {
        let cluster = self.stage.cluster().expect("a cluster");
        State::clone(&cluster.council().expect("a node").state())
    }

    /// The hash of its authority.
    pub(super) fn ca_hash(&self) -> CaHash {
        let state = self.agreed();
        let ca = state.authorities().next().expect("an authority");
        pki::ca_hash(ca).expect("a certificate")
    }

    /// Talks to the one of this thread.
    pub(super) fn with<T>(talk: impl FnOnce(&Self) -> T) -> T {
        thread_local! {
            static NODE: OnceCell<Node> = const { OnceCell::new() };
        }
        NODE.with(|node| talk(node.get_or_init(Self::found)))
    }
}

fn stage(
    dir: &Path,
    config: Config,
    module: impl Fn() -> Result<Kmod, crate::kmod::Error> + Send + Sync + 'static,
) -> Arc<Stage> {
    let equipment = Equipment {
        stubs: Arc::new(Stubs::new("/dev/null").expect("a stub")),
        audit: Arc::new(Audit::open(&dir.join("audit"), 0).expect("a log")),
        facts: Box::new(|| {
            let facts = Facts {
                kernel: "7.3.4".to_owned(),
                ..Facts::default()
            };
            Box::pin(std::future::ready(Ok(facts)))
        }),
        open_module: Box::new(move |_| {
            let module = module();
            // Nothing is ever reported.
            let (sender, events) = mpsc::channel(1);
            std::mem::forget(sender);
            Box::pin(async move { Ok((module?, events)) })
        }),
        timing: Timing::default(),
        sockets: Mutex::default(),
    };
    let store = Store::open(&dir.join("state")).expect("a directory");
    Stage::new(Arc::new(config), store, equipment)
}
