// SPDX-License-Identifier: MIT OR Apache-2.0

//! The cluster as one: what may be asked of any node about any process, answered here or by the
//! node that knows.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ssi::id::NodeId;
use ssi::uapi::{ProcRecord, Reason, STATE_AWAY, STATE_GUEST};
use tokio::task::JoinSet;

use crate::arrive::Arrivals;
use crate::audit::{self, Audit};
use crate::config::{Config, Node};
use crate::core::health::{Clock, View};
use crate::core::liveness::State;
use crate::core::migrate::Phase;
use crate::core::route::{MAX_HOPS, Route, route};
use crate::daemon::Parts;
use crate::depart::{Departures, Order, failure};
use crate::digest::Digests;
use crate::failure::Failure;
use crate::kmod::{Event, Kmod};
use crate::msg::{
    self, Answer, Done, Failed, List, Look, Migrate, Migrated, Movable, Place, Process, Processes,
    Request, Seen, SeenNode,
};
use crate::peer::{self, Input, Peer, Replies, Service};
use crate::proc;

/// Longest wait for a list or a verdict of another node.
const ASK_IN: Duration = Duration::from_secs(10);
/// Longest wait for what another node sees.
const LOOK_IN: Duration = Duration::from_secs(3);
/// Longest wait between two answers of a node that moves a process.
const MIGRATE_IN: Duration = Duration::from_secs(900);

/// The cluster, seen from this node.
#[derive(Debug)]
pub struct Cluster {
    config: Arc<Config>,
    module: Kmod,
    peers: BTreeMap<NodeId, Peer>,
    departures: Departures,
    arrivals: Arc<Arrivals>,
    audit: Arc<Audit>,
}

/// What a move or a question about one is about.
#[derive(Clone, Copy, Debug)]
pub struct About {
    /// The process.
    pub pid: u32,
    /// Who asks.
    pub uid: u32,
    /// How often the question may be passed on.
    pub hops: u32,
}

impl About {
    /// Asked on this node.
    pub fn new(pid: u32, uid: u32) -> Self {
        Self {
            pid,
            uid,
            hops: MAX_HOPS,
        }
    }
}

/// Is told the phases of a migration by name.
pub type OnPhase<'a> = &'a (dyn Fn(&str) + Send + Sync);

impl Cluster {
    /// With these peers.
    pub fn new(config: Arc<Config>, parts: Parts, peers: Vec<Peer>) -> Arc<Self> {
        let Parts {
            module,
            stubs,
            audit,
        } = parts;
        let digests = Arc::<Digests>::default();
        Arc::new(Self {
            departures: Departures::new(module.clone(), Arc::clone(&digests)),
            arrivals: Arrivals::new(config.node, module.clone(), digests, stubs),
            peers: peers.into_iter().map(|p| (p.node, p)).collect(),
            config,
            module,
            audit,
        })
    }

    /// The peer with this number.
    pub fn peer(&self, node: NodeId) -> Option<&Peer> {
        self.peers.get(&node)
    }

    /// The node meant by `text`.
    ///
    /// # Errors
    /// [`Failure::NoNode`].
    pub fn find(&self, text: &str) -> Result<NodeId, Failure> {
        self.config
            .find(text)
            .map(|n| n.id)
            .ok_or_else(|| Failure::NoNode(text.to_owned()))
    }

    /// This node.
    pub fn own(&self) -> NodeId {
        self.config.node
    }

    /// All nodes and what is thought of them; `None` for this one.
    pub fn nodes(&self) -> impl Iterator<Item = (&Node, Option<&'static str>)> {
        self.config
            .nodes
            .iter()
            .map(|n| (n, self.peers.get(&n.id).map(Peer::state_name)))
    }

    async fn route(&self, pid: u32) -> Result<Route, Failure> {
        let record = self
            .module
            .process(pid)
            .await
            .map_err(|e| failure(pid, e))?;
        Ok(route(self.own(), pid, record.as_ref(), proc::exists))
    }

    /// The peer to pass a question on to.
    fn next(&self, about: About, node: NodeId) -> Result<&Peer, Failure> {
        if about.hops == 0 {
            return Err(Failure::Unavailable(format!(
                "process {} moves about too much to be found",
                about.pid
            )));
        }
        // A number of a node that the cluster does not have is nobody's.
        self.peer(node).ok_or(Failure::NoProcess(about.pid))
    }

    /// Checks that the process may be moved by the one who asks.
    fn permitted(&self, about: About) -> Result<(), Failure> {
        if !proc::exists(about.pid) {
            return Err(Failure::NoProcess(about.pid));
        }
        if about.uid == 0 || proc::belongs_to(about.pid, about.uid) {
            Ok(())
        } else {
            Err(Failure::NotPermitted(about.pid))
        }
    }

    /// Moves a process, wherever it runs.
    ///
    /// # Errors
    /// Why it did not move, or why nobody knows.
    pub async fn migrate(
        &self,
        about: About,
        to: NodeId,
        wait: bool,
        on_phase: OnPhase<'_>,
    ) -> Result<Migrated, Failure> {
        match self.route(about.pid).await? {
            Route::Here => self.migrate_from_here(about, to, wait, on_phase).await,
            Route::Node(node) => {
                let peer = self.next(about, node)?;
                let request = Migrate {
                    pid: about.pid,
                    to: to.get().into(),
                    uid: about.uid,
                    hops: about.hops - 1,
                    wait,
                };
                let mut answers = peer.ask(Request::Migrate(request)).await?;
                loop {
                    match tokio::time::timeout(MIGRATE_IN, answers.recv()).await {
                        Ok(Some(Answer::Progress(p))) => on_phase(&p.phase),
                        Ok(Some(Answer::Migrated(m))) => return Ok(m),
                        Ok(Some(Answer::Failed(f))) => return Err(f.into()),
                        _ => {
                            return Err(Failure::Unavailable(format!(
                                "lost contact with {node}; the move may still succeed"
                            )));
                        }
                    }
                }
            }
            Route::TooOld => Err(Failure::refused(Reason::TooOld, "")),
            Route::Nowhere => Err(Failure::NoProcess(about.pid)),
        }
    }

    async fn migrate_from_here(
        &self,
        about: About,
        to: NodeId,
        wait: bool,
        on_phase: OnPhase<'_>,
    ) -> Result<Migrated, Failure> {
        let result = self.move_from_here(about, to, wait, on_phase).await;
        self.audit.record(audit::Event::Migrate {
            pid: about.pid,
            to: to.get(),
            uid: about.uid,
            outcome: match &result {
                Ok(_) => audit::MOVED.to_owned(),
                Err(f) => f.to_string(),
            },
        });
        result
    }

    async fn move_from_here(
        &self,
        about: About,
        to: NodeId,
        wait: bool,
        on_phase: OnPhase<'_>,
    ) -> Result<Migrated, Failure> {
        let pid = about.pid;
        let target = self.may_go(about, to)?;
        self.module.why(pid).await.map_err(|e| failure(pid, e))?;
        let home = NodeId::of_pid(pid).ok_or(Failure::NoProcess(pid))?;
        let order = Order {
            pid,
            home,
            from: self.own(),
            to,
            wait,
        };
        let result = self
            .departures
            .migrate(order, target, &|phase: Phase| on_phase(phase.name()))
            .await;
        match &result {
            Ok(m) => tracing::info!(pid, %to, downtime_us = m.committed_us, "process moved"),
            Err(f) => tracing::info!(pid, %to, "process not moved: {f}"),
        }
        result
    }

    /// Whether a process that runs here may go to `to`, as far as that can be told without the
    /// module.
    fn may_go(&self, about: About, to: NodeId) -> Result<&Peer, Failure> {
        self.permitted(about)?;
        if to == self.own() {
            return Err(Failure::refused(Reason::AlreadyThere, ""));
        }
        let target = self
            .peer(to)
            .ok_or_else(|| Failure::NoNode(to.to_string()))?;
        if target.state() != State::Up {
            return Err(Failure::refused(
                Reason::NoLink,
                format!("{to} is {}", target.state_name()),
            ));
        }
        Ok(target)
    }

    /// Whether a process would move; returns the node that runs it.
    ///
    /// # Errors
    /// Why it would not.
    pub async fn why(&self, about: About, to: Option<NodeId>) -> Result<NodeId, Failure> {
        match self.route(about.pid).await? {
            Route::Here => {
                match to {
                    Some(to) => drop(self.may_go(about, to)?),
                    None => self.permitted(about)?,
                }
                self.module
                    .why(about.pid)
                    .await
                    .map_err(|e| failure(about.pid, e))?;
                Ok(self.own())
            }
            Route::Node(node) => {
                let peer = self.next(about, node)?;
                let request = Migrate {
                    pid: about.pid,
                    to: to.map_or(0, |n| n.get().into()),
                    uid: about.uid,
                    hops: about.hops - 1,
                    wait: false,
                };
                match peer.ask_once(Request::Why(request), ASK_IN).await? {
                    Answer::Movable(m) => {
                        msg::node(m.node).ok_or_else(|| Failure::unreachable(node))
                    }
                    _ => Err(Failure::unreachable(node)),
                }
            }
            Route::TooOld => Err(Failure::refused(Reason::TooOld, "")),
            Route::Nowhere => Err(Failure::NoProcess(about.pid)),
        }
    }

    /// The processes that run here or were created here.
    ///
    /// # Errors
    /// When the module cannot be asked.
    pub async fn list_own(&self) -> Result<Vec<Process>, Failure> {
        let records = self.module.processes().await.map_err(|e| failure(0, e))?;
        let own = self.own();
        let local = tokio::task::spawn_blocking(move || proc::local_processes(own))
            .await
            .unwrap_or_default();
        let mut all: Vec<Process> = records.iter().map(from_record).collect();
        for p in local {
            if !records.iter().any(|r| r.pid.get() == p.pid) {
                let mut row = Process {
                    pid: p.pid,
                    node: own.get().into(),
                    home: own.get().into(),
                    threads: p.threads,
                    comm: p.comm,
                    ..Process::default()
                };
                row.set_place(Place::Home);
                all.push(row);
            }
        }
        all.truncate(msg::MAX_PROCESSES);
        Ok(all)
    }

    /// The processes of the cluster, each once, and the nodes that did not answer.
    ///
    /// # Errors
    /// When not even this node's module can be asked.
    pub async fn list(&self) -> Result<(Vec<Process>, Vec<NodeId>), Failure> {
        let mut asked = JoinSet::new();
        for peer in self.peers.values().cloned() {
            asked.spawn(async move {
                let answer = match peer.state() {
                    State::Dead => Err(Failure::unreachable(peer.node)),
                    _ => peer.ask_once(Request::List(List {}), ASK_IN).await,
                };
                (peer.node, answer)
            });
        }
        let mut rows = self.list_own().await?;
        let mut missing = Vec::new();
        while let Some(joined) = asked.join_next().await {
            match joined {
                Ok((_, Ok(Answer::Processes(p)))) => rows.extend(p.processes),
                Ok((node, _)) => missing.push(node),
                Err(e) => tracing::error!("a list failed: {e}"),
            }
        }
        missing.sort();
        Ok((merge(rows), missing))
    }

    /// What all nodes say of each other; no view of those that do not answer.
    pub async fn look(&self) -> BTreeMap<NodeId, Option<View>> {
        let mut asked = JoinSet::new();
        for peer in self.peers.values().cloned() {
            asked.spawn(async move {
                let (at_ns, start) = (realtime_ns(), Instant::now());
                let answer = match peer.state() {
                    State::Dead => None,
                    _ => peer.ask_once(Request::Look(Look {}), LOOK_IN).await.ok(),
                };
                let round_trip_ns = nanos(start.elapsed());
                let view = match answer {
                    Some(Answer::Seen(s)) => Some(View {
                        clock: Some(Clock::measured(at_ns, s.realtime_ns, round_trip_ns)),
                        states: states(s.nodes),
                    }),
                    _ => None,
                };
                (peer.node, view)
            });
        }
        let mut views: BTreeMap<_, _> = self.config.nodes.iter().map(|n| (n.id, None)).collect();
        let own = View {
            states: states(self.seen().nodes),
            clock: None,
        };
        views.insert(self.own(), Some(own));
        while let Some(joined) = asked.join_next().await {
            match joined {
                Ok((node, view)) => drop(views.insert(node, view)),
                Err(e) => tracing::error!("a look failed: {e}"),
            }
        }
        views
    }

    /// What this node thinks of the others.
    fn seen(&self) -> Seen {
        let nodes = self.peers.values().map(|p| SeenNode {
            node: p.node.get().into(),
            state: p.state_name().to_owned(),
        });
        Seen {
            nodes: nodes.collect(),
            realtime_ns: realtime_ns(),
        }
    }

    /// Takes an event of the module.
    pub async fn event(&self, event: Event) {
        match event {
            Event::LinkDown { peer, class, errno } => {
                tracing::debug!(%peer, ?class, errno, "link down");
                self.tell(peer, Input::LinkLost(class)).await;
            }
            Event::Renew { peer, class } => {
                tracing::info!(%peer, ?class, "link nears its limit");
                self.tell(peer, Input::LinkWorn(class)).await;
            }
            Event::Migrated { token, outcome } => self.departures.moved(token, outcome),
            Event::Filled { token, report } => self.departures.filled(token, report),
            Event::Lost => {
                tracing::warn!("events of the module were lost");
                self.departures.doubt();
                for peer in self.peers.values() {
                    // One that stands is only replaced.
                    for class in ssi::wire::Class::ALL {
                        peer.tell(Input::LinkWorn(class)).await;
                    }
                }
            }
        }
    }

    async fn tell(&self, peer: NodeId, input: Input) {
        if let Some(peer) = self.peer(peer) {
            peer.tell(input).await;
        }
    }

    async fn serve(self: Arc<Self>, from: NodeId, request: Request, replies: Replies) {
        let answer = match request {
            Request::Prepare(p) => {
                let (token, pid) = (p.token, p.pid);
                let answer = self.arrivals.prepare(from, p).await.map(Answer::Prepared);
                let ready = answer.is_ok();
                self.audit.record(audit::Event::Arrival {
                    pid,
                    from: from.get(),
                    outcome: match &answer {
                        Ok(_) => audit::READY.to_owned(),
                        Err(f) => f.to_string(),
                    },
                });
                let answer = answer.unwrap_or_else(|f| Answer::Failed(Failed::from(&f)));
                // Who asked on a connection that is gone has given up: nothing will come.
                if !replies.finish(answer).await && ready {
                    self.arrivals.cancel(from, token).await;
                }
                return;
            }
            Request::Cancel(c) => {
                self.arrivals.cancel(from, c.token).await;
                Ok(Answer::Done(Done {}))
            }
            Request::Look(_) => Ok(Answer::Seen(self.seen())),
            Request::List(_) => self
                .list_own()
                .await
                .map(|processes| Answer::Processes(Processes { processes })),
            Request::Migrate(m) => match msg::node(m.to) {
                None => Err(Failure::NoNode(m.to.to_string())),
                Some(to) => self
                    .migrate(about(&m), to, m.wait, &|phase| replies.progress(phase))
                    .await
                    .map(Answer::Migrated),
            },
            Request::Why(m) => self.why(about(&m), msg::node(m.to)).await.map(|node| {
                Answer::Movable(Movable {
                    node: node.get().into(),
                })
            }),
        };
        let answer = answer.unwrap_or_else(|f| Answer::Failed(Failed::from(&f)));
        replies.finish(answer).await;
    }
}

/// What a peer says of the others, as far as it can be true.
fn states(nodes: Vec<SeenNode>) -> BTreeMap<NodeId, String> {
    let known = |s: SeenNode| {
        let state = peer::STATES.into_iter().find(|w| *w == s.state)?;
        Some((msg::node(s.node)?, state.to_owned()))
    };
    nodes.into_iter().filter_map(known).collect()
}

fn nanos(t: Duration) -> i64 {
    i64::try_from(t.as_nanos()).unwrap_or(i64::MAX)
}

fn realtime_ns() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, nanos)
}

fn about(m: &Migrate) -> About {
    About {
        pid: m.pid,
        uid: m.uid,
        hops: m.hops.min(MAX_HOPS),
    }
}

impl Service for Cluster {
    fn serve(
        self: Arc<Self>,
        from: NodeId,
        request: Request,
        replies: Replies,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(Cluster::serve(self, from, request, replies))
    }

    fn died(self: Arc<Self>, node: NodeId) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        self.audit
            .record(audit::Event::NodeDead { peer: node.get() });
        Box::pin(async move { self.arrivals.died(node).await })
    }
}

fn from_record(r: &ProcRecord) -> Process {
    let comm = r.comm.split(|b| *b == 0).next().unwrap_or_default();
    let mut row = Process {
        pid: r.pid.get(),
        node: r.node.get().into(),
        home: r.home.get().into(),
        forwarded: r.forwarded.get(),
        threads: r.threads.get().into(),
        missing_pages: r.missing_pages.get(),
        comm: String::from_utf8_lossy(comm).into_owned(),
        ..Process::default()
    };
    row.set_place(match r.state.get() {
        STATE_AWAY => Place::Away,
        STATE_GUEST => Place::Guest,
        _ => Place::Moving,
    });
    row
}

/// One row for each process: the word of the node that runs it counts, with what others add.
fn merge(rows: Vec<Process>) -> Vec<Process> {
    let weight = |p: &Process| match p.place() {
        Place::Guest => 4,
        Place::Home => 3,
        Place::Moving => 2,
        Place::Away => 1,
        Place::Unknown => 0,
    };
    let mut all: BTreeMap<u32, Process> = BTreeMap::new();
    for row in rows {
        let other = match all.remove(&row.pid) {
            None => {
                all.insert(row.pid, row);
                continue;
            }
            Some(other) => other,
        };
        let (mut best, rest) = if weight(&row) > weight(&other) {
            (row, other)
        } else {
            (other, row)
        };
        best.forwarded = best.forwarded.max(rest.forwarded);
        best.missing_pages = best.missing_pages.max(rest.missing_pages);
        best.threads = best.threads.max(rest.threads);
        if best.comm.is_empty() {
            best.comm = rest.comm;
        }
        all.insert(best.pid, best);
    }
    all.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(pid: u32, node: u32, place: Place, forwarded: u64) -> Process {
        let mut p = Process {
            pid,
            node,
            home: 1,
            forwarded,
            ..Process::default()
        };
        p.set_place(place);
        p
    }

    #[test]
    fn a_process_known_to_two_nodes_is_listed_once() {
        let rows = merge(vec![
            row(9, 2, Place::Away, 7),
            row(5, 1, Place::Home, 0),
            row(9, 2, Place::Guest, 3),
            row(7, 3, Place::Away, 1),
        ]);
        assert_eq!(rows.iter().map(|r| r.pid).collect::<Vec<_>>(), [5, 7, 9]);
        assert_eq!((rows[2].place(), rows[2].forwarded), (Place::Guest, 7));
        assert_eq!(rows[1].place(), Place::Away);
    }
}
