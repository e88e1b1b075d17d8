// SPDX-License-Identifier: MIT OR Apache-2.0

//! The cluster as one: what may be asked of any node about any process, answered here or by the
//! node that knows.

mod moves;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ssi::id::NodeId;

pub use self::moves::About;
use crate::arrive::Arrivals;
use crate::audit::{self, Audit};
use crate::config::Node;
use crate::core::health::View;
use crate::core::hlc::Stamp;
use crate::core::offence::Offence;
use crate::core::policy::Policy;
use crate::core::state::Refusal;
use crate::core::tie::Ties;
use crate::council::Council;
use crate::daemon::Parts;
use crate::depart::{Departures, failure};
use crate::digest::Digests;
use crate::failure::Failure;
use crate::kmod::{self, Event, Kmod};
use crate::msg::{
    self, Answer, Done, Failed, List, Look, Movable, Place, Process, Processes, Record, Records,
    Request, Seen, SeenNode,
};
use crate::net::Net;
use crate::peer::task::Waiting;
use crate::peer::{Input, Replies, Service};
use crate::proc;
use crate::roster::Roster;
use crate::survey;

/// Longest wait for a list or a verdict of another node.
const ASK_IN: Duration = Duration::from_secs(10);
/// Most of its records that a node tells at once.
const MAX_RECENT_BYTES: usize = msg::MAX_MESSAGE_BYTES / 2;
/// Longest wait for what another node sees.
const LOOK_IN: Duration = Duration::from_secs(3);

/// The cluster, seen from this node.
#[derive(Debug)]
pub struct Cluster {
    net: Arc<Net>,
    dead_after: Duration,
    module: Kmod,
    departures: Departures,
    arrivals: Arc<Arrivals>,
    audit: Arc<Audit>,
    council: OnceLock<Arc<Council>>,
}

impl Cluster {
    /// With this node alone; a peer that is silent for `dead_after` is declared dead.
    pub fn new(net: Arc<Net>, dead_after: Duration, parts: Parts) -> Arc<Self> {
        let Parts {
            module,
            stubs,
            audit,
            facts: _,
        } = parts;
        let digests = Arc::<Digests>::default();
        Arc::new(Self {
            departures: Departures::new(module.clone(), Arc::clone(&digests)),
            arrivals: Arrivals::new(net.roster().own(), module.clone(), digests, stubs),
            net,
            dead_after,
            module,
            audit,
            council: OnceLock::new(),
        })
    }

    /// Takes part in governing by `council` from now on.
    pub fn set_council(&self, council: Arc<Council>) {
        drop(self.council.set(council));
    }

    /// This node's part in governing.
    ///
    /// # Errors
    /// [`Failure::Unavailable`] while the node has only begun to start.
    pub fn council(&self) -> Result<&Arc<Council>, Failure> {
        let begins = || Failure::Unavailable(format!("{} has only begun to start", self.own()));
        self.council.get().ok_or_else(begins)
    }

    /// Where this node accounts for what it does.
    pub fn audit(&self) -> &Audit {
        &self.audit
    }

    /// Fences this node off, or lets it work again: while it hears of no majority it moves nothing and
    /// hosts nothing, and all that it has to do with other nodes ends as if they were dead.
    pub async fn set_isolated(&self, isolated: bool) {
        self.audit.record(audit::Event::Isolated { isolated });
        self.tie(|ties| ties.set_isolated(isolated)).await;
    }

    /// Since which epoch each node is present, as agreed; none if it was declared dead. What this node
    /// had to do with one that is not any more, or not since then, ends.
    pub async fn set_present(&self, present: BTreeMap<NodeId, Option<u64>>) {
        self.tie(|ties| ties.set_present(present)).await;
    }

    /// Whether this node is fenced off.
    pub fn is_fenced(&self) -> bool {
        self.roster().with_ties(|ties| ties.is_fenced())
    }

    async fn tie(&self, change: impl FnOnce(&mut Ties)) {
        self.roster().with_ties(|ties| {
            change(ties);
            self.arrivals.set_isolated(ties.is_fenced());
        });
        for peer in self.roster().peers() {
            peer.tell(Input::Tied).await;
        }
    }

    /// Completes when what this node had to do with all others has ended. To be called while it is
    /// fenced off.
    pub async fn loose(&self) {
        for peer in self.roster().peers() {
            peer.loose().await;
        }
    }

    /// Whether nothing of others should move here any more.
    pub fn set_cordoned(&self, cordoned: bool) {
        self.arrivals.set_cordoned(cordoned);
    }

    /// What connects this node with the others.
    pub fn net(&self) -> &Net {
        &self.net
    }

    /// Who is in it.
    pub fn roster(&self) -> &Roster {
        self.net.roster()
    }

    /// Another node is in: it is connected to from now on. Nothing happens if it was.
    pub fn enter(self: &Arc<Self>, node: Node) {
        let waiting = Waiting::new(node.clone());
        if self.roster().enter(node.clone(), waiting.handle()) {
            waiting.start(
                self.own(),
                self.dead_after,
                Arc::clone(&self.net),
                self.module.clone(),
                Arc::clone(self) as _,
                self.roster().tie(node.id),
            );
        }
    }

    /// Another node is out: it is dead for good. Nothing happens if it was not in.
    pub async fn leave(&self, node: NodeId) {
        if let Some(peer) = self.roster().leave(node) {
            peer.tell(Input::Removed).await;
        }
    }

    /// Hosts the processes that `policy` lets come, from now on.
    pub fn set_policy(&self, policy: Policy) {
        self.arrivals.set_policy(policy);
    }

    /// The node meant by `text`.
    ///
    /// # Errors
    /// [`Failure::NoNode`].
    pub fn find(&self, text: &str) -> Result<NodeId, Failure> {
        self.roster()
            .find(text)
            .ok_or_else(|| Failure::NoNode(text.to_owned()))
    }

    /// This node.
    pub fn own(&self) -> NodeId {
        self.roster().own()
    }

    /// The counters of this node's module, by name.
    ///
    /// # Errors
    /// What the module says.
    pub async fn stats(&self) -> Result<Vec<(&'static str, u64)>, kmod::Error> {
        self.module.stats().await
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
        let mut all: Vec<Process> = records.iter().map(survey::from_record).collect();
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
        let request = Request::List(List {});
        let others = survey::ask_all(self.roster(), &request, ASK_IN);
        let (own, mut others) = tokio::join!(self.list_own(), others);
        for (node, asked) in &mut others {
            if asked
                .take_if(|a| survey::is_impossible(&a.answer))
                .is_some()
            {
                self.offended(*node, Offence::ImpossibleFigures);
            }
        }
        Ok(survey::processes(own?, others))
    }

    /// What all nodes say of each other; no view of those that do not answer.
    pub async fn look(&self) -> BTreeMap<NodeId, Option<View>> {
        let others = survey::ask_all(self.roster(), &Request::Look(Look {}), LOOK_IN).await;
        let mut views: BTreeMap<_, _> = others
            .into_iter()
            .map(|(node, asked)| (node, asked.and_then(survey::view)))
            .collect();
        let own = View {
            states: survey::states(self.seen().nodes),
            clock: None,
        };
        views.insert(self.own(), Some(own));
        views
    }

    /// What this node thinks of the others.
    fn seen(&self) -> Seen {
        let nodes = self.roster().peers().into_iter().map(|p| SeenNode {
            node: p.node.get().into(),
            state: p.state_name().to_owned(),
        });
        Seen {
            nodes: nodes.collect(),
            realtime_ns: survey::realtime_ns(),
        }
    }

    /// What happened on this node after `after`: the last of it, if it is more than fits into an answer.
    fn recent(&self, after: Stamp) -> Records {
        let mut room = MAX_RECENT_BYTES;
        let last = self.audit.recent(after).into_iter().rev();
        let last = last.map_while(|(at, json)| {
            room = room.checked_sub(json.len())?;
            Some(Record {
                stamp: at.bits(),
                json,
            })
        });
        let mut records: Vec<Record> = last.collect();
        records.reverse();
        Records { records }
    }

    /// Another node, which has proved that it is, did what no honest node does.
    pub fn offended(&self, node: NodeId, offence: Offence) {
        if let Ok(council) = self.council() {
            council.offended(node, offence);
        }
    }

    /// Refuses what a node in quarantine asks for. It is told what is agreed on, no more.
    fn heeds(&self, from: NodeId, request: &Request) -> Result<(), Failure> {
        let is_quarantined = |c: &Arc<Council>| c.state().is_quarantined(from);
        if matches!(request, Request::Agree(_)) || !self.council().is_ok_and(is_quarantined) {
            return Ok(());
        }
        Err(Refusal::Quarantined.into())
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
                for peer in self.roster().peers() {
                    // One that stands is only replaced.
                    for class in ssi::wire::Class::ALL {
                        peer.tell(Input::LinkWorn(class)).await;
                    }
                }
            }
        }
    }

    async fn tell(&self, peer: NodeId, input: Input) {
        if let Some(peer) = self.roster().peer(peer) {
            peer.tell(input).await;
        }
    }

    async fn serve(self: Arc<Self>, from: NodeId, request: Request, replies: Replies) {
        if let Err(f) = self.heeds(from, &request) {
            replies.finish(Answer::Failed(Failed::from(&f))).await;
            return;
        }
        let answer = match request {
            Request::Prepare(p) => {
                let (token, pid) = (p.token, p.pid);
                let answer = self.arrivals.prepare(from, p).await.map(Answer::Prepared);
                let ready = answer.is_ok();
                self.audit.record(audit::Event::Arrival {
                    pid,
                    from: from.get(),
                    outcome: outcome(&answer, audit::READY),
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
            Request::Host(h) => match msg::node(h.home) {
                None => Err(Failure::NoNode(h.home.to_string())),
                Some(home) => self
                    .arrivals
                    .may_come(home, &h.uids)
                    .map(|()| Answer::Done(Done {})),
            },
            Request::Agree(_)
            | Request::Admit(_)
            | Request::Certify(_)
            | Request::TakeSeal(_)
            | Request::GiveSeal(_)
            | Request::Retire(_)
            | Request::Rotate(_) => match self.council() {
                Ok(council) => council.serve(from, request).await,
                Err(f) => Err(f),
            },
            Request::Look(_) => Ok(Answer::Seen(self.seen())),
            Request::Recent(r) => Ok(Answer::Recent(self.recent(Stamp::from_bits(r.after)))),
            Request::List(_) => self
                .list_own()
                .await
                .map(|processes| Answer::Processes(Processes { processes })),
            Request::Migrate(m) => match msg::node(m.to) {
                None => Err(Failure::NoNode(m.to.to_string())),
                Some(to) => self
                    .migrate(About::passed_on(&m), to, m.wait, &|phase| {
                        replies.progress(phase)
                    })
                    .await
                    .map(Answer::Migrated),
            },
            Request::Why(m) => self
                .why(About::passed_on(&m), msg::node(m.to))
                .await
                .map(|node| {
                    Answer::Movable(Movable {
                        node: node.get().into(),
                    })
                }),
        };
        let answer = answer.unwrap_or_else(|f| Answer::Failed(Failed::from(&f)));
        replies.finish(answer).await;
    }
}

/// What came of something, in the words of the audit log.
fn outcome<T>(result: &Result<T, Failure>, done: &str) -> String {
    match result {
        Ok(_) => done.to_owned(),
        Err(f) => f.to_string(),
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

    fn hinted(&self, from: NodeId, packet: Vec<u8>) {
        if let Ok(council) = self.council() {
            council.hinted(from, packet);
        }
    }

    fn offended(&self, from: NodeId, offence: Offence) {
        Cluster::offended(self, from, offence);
    }

    fn died(self: Arc<Self>, node: NodeId) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        self.audit
            .record(audit::Event::NodeDead { peer: node.get() });
        Box::pin(async move { self.arrivals.died(node).await })
    }
}
