// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whether this machine is in a cluster, and the ways in and out, while the daemon runs.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use nix::ifaddrs::getifaddrs;
use ssi::id::NodeId;
use tokio::sync::mpsc;
use tokio::task::{JoinSet, spawn_blocking};

use crate::agree::{self, Timing};
use crate::audit::Audit;
use crate::cluster::Cluster;
use crate::config::{Config, address};
use crate::core::facts::Facts;
use crate::core::policy::Policy;
use crate::core::state::{Refusal, Unique, Why};
use crate::council::{self, Founding, recovery};
use crate::daemon::{self, Parts};
use crate::failure::{Failure, in_full};
use crate::join::{self, Bid};
use crate::kmod::{self, Event, Kmod};
use crate::pki::{self, CaHash};
use crate::seat::{Credentials, Other, Seat, Store, Try};
use crate::sockets::{self, Sockets};
use crate::stub::Stubs;

/// The module, and what it reports.
pub type Opened = Result<(Kmod, mpsc::Receiver<Event>), kmod::Error>;
/// Makes the module take this machine as a node.
pub type OpenModule =
    Box<dyn Fn(NodeId) -> Pin<Box<dyn Future<Output = Opened> + Send>> + Send + Sync>;

/// Tells what this machine is made of, its module too.
pub type ReadFacts =
    Box<dyn Fn() -> Pin<Box<dyn Future<Output = Result<Facts, kmod::Error>> + Send>> + Send + Sync>;

/// What does not change when this machine joins a cluster or leaves it.
pub struct Equipment {
    /// Of the stubs that processes arrive in.
    pub stubs: Arc<Stubs>,
    /// Where everything is accounted for.
    pub audit: Arc<Audit>,
    /// Tells what this machine is made of.
    pub facts: ReadFacts,
    /// The way to the module.
    pub open_module: OpenModule,
    /// How long agreeing takes.
    pub timing: Timing,
    /// What the service manager has kept of the sockets of an earlier run.
    pub sockets: Mutex<Sockets>,
}

impl std::fmt::Debug for Equipment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Equipment").finish_non_exhaustive()
    }
}

/// A node at work.
#[derive(Debug)]
struct Formed {
    cluster: Arc<Cluster>,
    /// They end with it.
    tasks: JoinSet<()>,
}

/// Whether this machine is in a cluster.
#[derive(Debug)]
pub struct Stage {
    config: Arc<Config>,
    store: Store,
    equipment: Equipment,
    policy: RwLock<Policy>,
    formed: RwLock<Option<Formed>>,
    /// Held by who joins, founds or leaves.
    changing: tokio::sync::Mutex<()>,
}

fn failed(e: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::Unavailable(in_full(e))
}

/// What is given for a new cluster.
#[derive(Clone, Debug, Default)]
pub struct Charter {
    /// Name of the cluster.
    pub name: Option<String>,
    /// Name of the node.
    pub node_name: Option<String>,
    /// Address of the node, with or without a port.
    pub addr: Option<String>,
}

/// What is given to join one.
#[derive(Clone, Debug)]
pub struct Invitation {
    /// A node of the cluster: address, with or without a port.
    pub door: String,
    /// The token, secret included.
    pub token: String,
    /// Hash of the authority.
    pub ca_hash: String,
    /// Name of the node.
    pub node_name: Option<String>,
    /// Address of the node, with or without a port.
    pub addr: Option<String>,
}

impl Stage {
    /// Of a machine with `config` and the state in `store`.
    pub fn new(config: Arc<Config>, store: Store, equipment: Equipment) -> Arc<Self> {
        Arc::new(Self {
            policy: RwLock::new(config.guests.clone()),
            config,
            store,
            equipment,
            formed: RwLock::new(None),
            changing: tokio::sync::Mutex::new(()),
        })
    }

    /// The cluster.
    ///
    /// # Errors
    /// When this machine is in none.
    pub fn cluster(&self) -> Result<Arc<Cluster>, Failure> {
        let formed = self.formed.read().unwrap_or_else(PoisonError::into_inner);
        let cluster = formed.as_ref().map(|f| Arc::clone(&f.cluster));
        cluster.ok_or_else(no_cluster)
    }

    /// What runs with this configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where everything is accounted for.
    pub fn audit(&self) -> &Audit {
        &self.equipment.audit
    }

    /// Hosts whom `policy` lets come, from now on.
    pub fn set_policy(&self, policy: Policy) {
        // In this order: one that is just being formed takes what is kept.
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = policy.clone();
        if let Ok(cluster) = self.cluster() {
            cluster.set_policy(policy);
        }
    }

    /// Goes on as the node this machine was, if it was one.
    ///
    /// # Errors
    /// When it was one and cannot go on.
    pub async fn resume(&self) -> Result<(), daemon::Error> {
        let _alone = self.changing.lock().await;
        if let Some((seat, credentials)) = self.store.load()? {
            self.form(seat, credentials).await?;
        }
        Ok(())
    }

    /// Works as the node of `seat`.
    async fn form(
        &self,
        seat: Seat,
        credentials: Credentials,
    ) -> Result<Arc<Cluster>, daemon::Error> {
        let e = &self.equipment;
        let (module, events) = (e.open_module)(seat.node).await?;
        e.audit.set_node(seat.node.get());
        let parts = Parts {
            module,
            stubs: Arc::clone(&e.stubs),
            audit: Arc::clone(&e.audit),
            facts: (e.facts)().await?,
        };
        let mut tasks = JoinSet::new();
        let place = daemon::Place {
            store: self.store.clone(),
            seat,
            credentials,
            timing: e.timing,
            sockets: std::mem::take(&mut *e.sockets.lock().unwrap_or_else(PoisonError::into_inner)),
        };
        let cluster = daemon::start(&self.config, place, parts, events, &mut tasks).await?;
        let policy = self.policy.read().unwrap_or_else(PoisonError::into_inner);
        cluster.set_policy(policy.clone());
        let formed = Formed {
            cluster: Arc::clone(&cluster),
            tasks,
        };
        *self.formed.write().unwrap_or_else(PoisonError::into_inner) = Some(formed);
        Ok(cluster)
    }

    /// That nothing stands against becoming a node.
    fn free(&self) -> Result<(), Failure> {
        if self.cluster().is_ok() {
            let text = "this machine is in a cluster already: `ssictl node leave` takes it out";
            return Err(Failure::declined("already-in-a-cluster", text));
        }
        match self.has_seat() {
            true => Err(Failure::Unavailable(
                "this machine is a node, and does not work as one: start ssid again, its log says why it does not".to_owned(),
            )),
            false => Ok(()),
        }
    }

    /// Whether this machine is a node, may it work as one or not.
    pub fn has_seat(&self) -> bool {
        // What cannot be read may be a seat.
        !matches!(self.store.load(), Ok(None))
    }

    /// Founds a cluster with this machine as its first node.
    ///
    /// # Errors
    /// Why there is none; then all is as before.
    pub async fn init(&self, charter: Charter) -> Result<Arc<Cluster>, Failure> {
        let _alone = self.changing.lock().await;
        self.free()?;
        let node = NodeId::new(1).ok_or_else(|| Failure::from(Refusal::ClusterFull))?;
        let addr = match &charter.addr {
            Some(text) => self.address(text)?,
            None => SocketAddr::new(own_address()?, self.config.port),
        };
        let seat = Seat {
            cluster: self.unique()?,
            node,
            since: 1,
            name: charter.node_name.unwrap_or_else(|| node.to_string()),
            addr,
            others: Vec::new(),
        };
        let name = charter.name.unwrap_or_else(|| "unum".to_owned());
        let facts = (self.equipment.facts)().await.map_err(|e| failed(&e))?;
        let founding = Founding::new(&name, seat, facts, self.config.certificate_life)
            .map_err(|e| failed(&e))?;
        // What an earlier try has left.
        self.store.clear().map_err(|e| failed(&e))?;
        let found = async {
            let credentials = founding.credentials.clone();
            self.store
                .save_credentials(&credentials)
                .map_err(|e| failed(&e))?;
            agree::begin(&self.store.agreed(), node).map_err(|e| failed(&e))?;
            let seat = founding.seat.clone();
            let cluster = self.form(seat, credentials).await;
            let cluster = cluster.map_err(|e| failed(&e))?;
            let seat = cluster.council()?.found(founding).await;
            let seat = seat.map_err(council_failed)?;
            self.store.save(&seat).map_err(|e| failed(&e))?;
            Ok(cluster)
        };
        let result = found.await;
        if result.is_err() {
            self.dissolve().await;
        }
        result
    }

    /// Joins the cluster that `invitation` is to. May be tried again: a join whose answer was lost
    /// makes one node, not two.
    ///
    /// # Errors
    /// Why it is not in it.
    pub async fn join(&self, invitation: Invitation) -> Result<Arc<Cluster>, Failure> {
        let _alone = self.changing.lock().await;
        self.free()?;
        let usage = |what: &str| Failure::declined("bad-request", what.to_owned());
        let pin: CaHash = invitation
            .ca_hash
            .parse()
            .map_err(|e: pki::certificate::NoCaHash| usage(&e.to_string()))?;
        let a_try = self.a_try(&pin)?;
        let addr = invitation.addr.as_deref();
        let bid = Bid {
            door: self.address(&invitation.door)?,
            pin,
            token: invitation.token,
            request: a_try.request,
            name: invitation.node_name,
            addr: addr.map(|text| self.address(text)).transpose()?,
            port: self.config.port,
            facts: (self.equipment.facts)().await.map_err(|e| failed(&e))?,
        };
        let (admitted, addr) = join::ask(bid).await?;
        let strange = || usage("the cluster answers what makes no sense");
        let node = crate::msg::node(admitted.node).ok_or_else(strange)?;
        let others = admitted.members.into_iter().map(|m| {
            Some(Other {
                node: crate::msg::node(m.node)?,
                name: m.name,
                addr: m.addr.parse().ok()?,
            })
        });
        let all: Vec<Other> = others.collect::<Option<_>>().ok_or_else(strange)?;
        let (own, others): (Vec<Other>, Vec<Other>) = all.into_iter().partition(|o| o.node == node);
        let certified = admitted.certified.ok_or_else(strange)?;
        let credentials = Credentials {
            ca: certified.authorities,
            node: a_try.key + &certified.certificate,
        };
        let seat = Seat {
            cluster: admitted.cluster.parse().map_err(|_| strange())?,
            node,
            since: admitted.since,
            name: own
                .first()
                .map_or_else(|| node.to_string(), |o| o.name.clone()),
            addr: own.first().map_or(addr, |o| o.addr),
            others,
        };
        let store = &self.store;
        let save = || -> Result<(), daemon::Error> {
            store.clear()?;
            store.save_credentials(&credentials)?;
            agree::begin(&store.agreed(), node).map_err(council::Error::from)?;
            Ok(store.save(&seat)?)
        };
        save().map_err(|e| failed(&e))?;
        self.form(seat, credentials).await.map_err(|e| {
            Failure::Unavailable(format!(
                "this machine is {node} of the cluster now, but does not work yet: {}; see to that and start ssid again",
                in_full(&e)
            ))
        })
    }

    /// Leaves the cluster. With `force` even if the others cannot be told: they may have removed this
    /// node, and do not listen to it.
    ///
    /// # Errors
    /// Why it is still in it.
    pub async fn leave(&self, force: bool) -> Result<(), Failure> {
        let _alone = self.changing.lock().await;
        let cluster = self.cluster()?;
        let council = cluster.council()?;
        match council.retire(cluster.own(), Why::Left).await {
            Err(f) if !force => return Err(f),
            Err(f) => tracing::warn!("the others were not told that this node leaves: {f}"),
            Ok(()) => {}
        }
        self.dissolve().await;
        Ok(())
    }

    /// Goes on without the nodes that `lost` names, and with them the majority: this node is the only voter from now on.
    ///
    /// # Errors
    /// Why it does not; then all is as before, or this node has to be started again.
    pub async fn recover(&self, lost: &BTreeSet<NodeId>) -> Result<(), Failure> {
        let _alone = self.changing.lock().await;
        let council = Arc::clone(self.cluster()?.council()?);
        council.may_go_on_without(lost).await?;
        let kept = self.store.load().map_err(|e| failed(&e))?;
        let (seat, credentials) = kept.ok_or_else(no_cluster)?;
        drop(council);
        self.close().await;
        let (store, own, without) = (self.store.clone(), seat.clone(), lost.clone());
        let done = spawn_blocking(move || recovery::go_on_without(&store, &own, &without)).await;
        let cluster = self.form(seat, credentials).await.map_err(|e| failed(&e))?;
        done.map_err(|e| failed(&e))?.map_err(council_failed)?;
        cluster.council()?.read().await.map(drop)
    }

    /// Has the others go on without a pause while the daemon does not run.
    pub async fn hand_over(&self) {
        if let Ok(cluster) = self.cluster()
            && let Ok(council) = cluster.council()
        {
            council.hand_over().await;
        }
    }

    /// Works as a node no more.
    async fn close(&self) {
        let formed = {
            let mut formed = self.formed.write().unwrap_or_else(PoisonError::into_inner);
            formed.take()
        };
        if let Some(mut formed) = formed {
            formed.tasks.shutdown().await;
            for peer in formed.cluster.roster().peers() {
                formed.cluster.leave(peer.node).await;
                peer.ended().await;
            }
            if let Ok(council) = formed.cluster.council() {
                council.stop().await;
            }
        }
        // Or who connects would wait for an answer that never comes.
        sockets::drop_peers();
    }

    /// Works as a node no more, and forgets that it was one.
    async fn dissolve(&self) {
        self.close().await;
        if let Err(e) = self.store.clear() {
            tracing::error!("{}", in_full(&e));
        }
        self.equipment.audit.set_node(0);
    }

    /// The try to join the cluster with the authority `pin`: the last one if it was to it.
    fn a_try(&self, pin: &CaHash) -> Result<Try, Failure> {
        let ca_hash = pin.to_string();
        let last = self.store.last_try().map_err(|e| failed(&e))?;
        if let Some(last) = last.filter(|t| t.ca_hash == ca_hash) {
            return Ok(last);
        }
        let (key, request) = pki::request().map_err(|e| failed(&e))?;
        let new = Try {
            ca_hash,
            key,
            request,
        };
        self.store.save_try(&new).map_err(|e| failed(&e))?;
        Ok(new)
    }

    fn unique(&self) -> Result<Unique, Failure> {
        council::unique().ok_or_else(|| Failure::Unavailable("no random numbers".to_owned()))
    }

    fn address(&self, text: &str) -> Result<SocketAddr, Failure> {
        address(text, self.config.port)
            .ok_or_else(|| Failure::declined("bad-request", format!("{text:?} is no IP address")))
    }
}

/// There is nothing to do it with.
fn no_cluster() -> Failure {
    Failure::declined("no-cluster", "this machine is in no cluster")
}

fn council_failed(e: council::Error) -> Failure {
    match e {
        council::Error::Refused(refusal) => refusal.into(),
        other => failed(&other),
    }
}

/// The address of this machine, if there is no doubt.
fn own_address() -> Result<IpAddr, Failure> {
    let unclear = |what: &str| {
        Failure::declined(
            "bad-request",
            format!("{what}: say which it is with --addr"),
        )
    };
    let all = getifaddrs().map_err(|e| failed(&e))?;
    let ips = all.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
    });
    let usable = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    };
    let mut ips: Vec<IpAddr> = ips.filter(usable).collect();
    if ips.iter().any(IpAddr::is_ipv4) {
        ips.retain(IpAddr::is_ipv4);
    }
    match ips[..] {
        [ip] => Ok(ip),
        [] => Err(unclear("this machine has no address but its own loopback")),
        _ => Err(unclear("this machine has several addresses")),
    }
}
