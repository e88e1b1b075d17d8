// SPDX-License-Identifier: MIT OR Apache-2.0

//! This node's part in governing the cluster: what is agreed on and done about it, who is let in
//! and who goes, and certificates.

mod certify;
mod envoy;
mod follow;
mod lookout;
pub mod recovery;
mod seal;
mod service;
mod steward;
mod warden;
mod witness;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

use prost::Message;
use ssi::id::NodeId;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::agree::keeper::Keeper;
use crate::agree::{self, Agreement, Status, Timing, carrier};
use crate::clock::now_ms;
use crate::cluster::Cluster;
use crate::config::Config;
use crate::core::facts::Facts;
use crate::core::offence::Offence;
use crate::core::parts::{Part, Parts};
use crate::core::state::{self, Candidate, Command, Outcome, State, Unique, Why};
use crate::failure::Failure;
use crate::msg::govern::{Admit, Agreed, Retire, Rotate};
use crate::msg::{self, Answer, Done, Request};
use crate::pki::{self, Seal};
use crate::seat::{self, Credentials, Seat, Store};
use crate::tls;
use envoy::Envoy;
use lookout::Lookout;
use witness::Sights;

/// Longest wait for another node that does something for us.
const ASK_IN: Duration = Duration::from_secs(20);
/// Pause before it is asked again for what it may not have done.
const ASK_AGAIN_IN: Duration = Duration::from_millis(500);
/// Longest wait for locks to be given up when the daemon ends.
const GIVE_UP_IN: Duration = Duration::from_secs(1);
/// Most that a machine has to say of itself to join: four times what the longest names need.
const MAX_ADMIT_BYTES: usize = 64 << 10;
/// What the key of the authority is sealed for.
const SEALED_FOR: &str = "authority";

/// The node cannot take part.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// In what is agreed on.
    #[error(transparent)]
    Agree(#[from] agree::Error),
    /// Its files are of no use.
    #[error(transparent)]
    Seat(#[from] seat::Error),
    /// The authority's key cannot be kept.
    #[error("the key of the authority")]
    Seal(#[from] pki::seal::FileError),
    /// The authority cannot be made.
    #[error("authority")]
    Authority(#[from] pki::authority::Error),
    /// A certificate is none.
    #[error(transparent)]
    Certificate(#[from] pki::certificate::NoCertificate),
    /// It cannot prove who it is.
    #[error(transparent)]
    Identity(#[from] tls::Error),
    /// No random numbers.
    #[error("no random numbers")]
    Random,
    /// The cluster does not take it.
    #[error(transparent)]
    Refused(#[from] state::Refusal),
}

/// This node's part in governing.
pub struct Council {
    own: NodeId,
    cluster: Weak<Cluster>,
    agreement: Agreement,
    keeper: Arc<Keeper>,
    lookout: Lookout,
    /// What others were seen to do.
    sights: Sights,
    /// What arrives in parts, of each node.
    arriving: Mutex<BTreeMap<NodeId, Parts>>,
    store: Store,
    life: Duration,
    /// After so long without an answer of a majority this node is fenced off.
    fence_after: Duration,
    seat: Mutex<Seat>,
    /// Opens the authority's key; only voters have it.
    seal: RwLock<Option<Arc<Seal>>>,
    credentials: Mutex<Credentials>,
    /// Says that a new certificate is wanted.
    renew: watch::Sender<()>,
}

impl std::fmt::Debug for Council {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Council").finish_non_exhaustive()
    }
}

/// 128 random bits.
pub fn unique() -> Option<Unique> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).ok()?;
    Some(Unique(u128::from_ne_bytes(bytes)))
}

impl From<agree::Error> for Failure {
    fn from(e: agree::Error) -> Self {
        match e {
            agree::Error::Refused(refusal) => refusal.into(),
            e => Failure::Unavailable(crate::failure::in_full(&e)),
        }
    }
}

impl From<state::Refusal> for Failure {
    fn from(refusal: state::Refusal) -> Self {
        match refusal {
            state::Refusal::NoSuchNode => Failure::NoNode("of that number".to_owned()),
            other => Failure::declined(other.code(), other.to_string()),
        }
    }
}

/// An outcome that is no refusal.
fn accepted(outcome: Outcome) -> Result<Outcome, Failure> {
    match outcome {
        Outcome::Refused(refusal) => Err(refusal.into()),
        other => Ok(other),
    }
}

/// What a new cluster is made of.
#[derive(Debug)]
pub struct Founding {
    command: Command,
    seal: [u8; pki::seal::KEY_BYTES],
    /// How the first node proves who it is.
    pub credentials: Credentials,
    /// Its place.
    pub seat: Seat,
}

impl Founding {
    /// Makes an authority for the cluster `name` and a certificate for its first node.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn new(name: &str, seat: Seat, facts: Facts, life: Duration) -> Result<Self, Error> {
        let seal::Sealed {
            authority,
            ca,
            sealed_key,
            seal,
        } = seal::sealed_authority(name)?;
        let (node_key, request) = pki::request()?;
        let validity = pki::Validity::from_now(life);
        let cert = authority.sign(&request, seat.node, seat.addr.ip(), validity)?;
        let der = pki::certificate::from_pem(&cert)?;
        let first = Candidate {
            node: seat.node,
            name: seat.name.clone(),
            addr: seat.addr,
            fingerprint: pki::fingerprint(&der),
            ends_ms: pki::expires(&der).ok(),
            facts,
            nonce: Unique(pki::name_of_key(&request)?),
        };
        Ok(Self {
            command: Command::Found {
                name: name.to_owned(),
                id: seat.cluster,
                ca: ca.clone(),
                sealed_key,
                first,
                now_ms: now_ms(),
            },
            seal,
            credentials: Credentials {
                ca,
                node: node_key + &cert,
            },
            seat,
        })
    }
}

impl Council {
    /// Takes part as `seat` says, in tasks of `tasks`.
    ///
    /// # Errors
    /// When what is agreed on cannot be read.
    pub async fn open(
        cluster: &Arc<Cluster>,
        config: &Config,
        store: Store,
        seat: Seat,
        credentials: Credentials,
        timing: Timing,
        tasks: &mut JoinSet<()>,
    ) -> Result<Arc<Self>, Error> {
        let envoy = Arc::new(Envoy::new(Arc::downgrade(cluster)));
        let agreement = Agreement::open(&store.agreed(), seat.node, envoy, timing).await?;
        let keeper = Arc::new(Keeper::new(&agreement, unique).ok_or(Error::Random)?);
        let seal = if store.seal().exists() {
            Some(Arc::new(Seal::load(&store.seal())?))
        } else {
            None
        };
        let (lookout, looks_out) = Lookout::new(seat.node, Arc::downgrade(cluster));
        tasks.spawn(looks_out.run(agreement.watch(), config.peer_dead_after));
        let (sights, seen) = witness::sights();
        let council = Arc::new(Self {
            own: seat.node,
            cluster: Arc::downgrade(cluster),
            agreement,
            keeper,
            lookout,
            sights,
            arriving: Mutex::default(),
            store,
            life: config.certificate_life,
            fence_after: timing.fence_after(config.peer_dead_after),
            seat: Mutex::new(seat),
            seal: RwLock::new(seal),
            credentials: Mutex::new(credentials),
            renew: watch::Sender::new(()),
        });
        tasks.spawn(Arc::clone(&council).follow());
        tasks.spawn(Arc::clone(&council).keep_certificate());
        tasks.spawn(Arc::clone(&council).steward());
        tasks.spawn(Arc::clone(&council).witness(seen));
        tasks.spawn(Arc::clone(&council).describe());
        tasks.spawn(Arc::clone(&council).watch_majority());
        tasks.spawn(Arc::clone(&council).watch_own_end());
        tasks.spawn(agree::lease::keep_time(council.agreement.clone()));
        let keeper = Arc::clone(&council.keeper);
        tasks.spawn(async move { keeper.serve().await });
        Ok(council)
    }

    /// Founds the cluster; this node must be new.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn found(&self, founding: Founding) -> Result<Seat, Error> {
        self.agreement.found().await?;
        match self.agreement.propose(founding.command).await? {
            Outcome::Joined { epoch, .. } => {
                self.keep_seal(&founding.seal)?;
                let mut seat = founding.seat;
                seat.since = epoch;
                self.seat().clone_from(&seat);
                Ok(seat)
            }
            Outcome::Refused(refusal) => Err(refusal.into()),
            _ => Err(state::Refusal::AlreadyFounded.into()),
        }
    }

    fn seat(&self) -> std::sync::MutexGuard<'_, Seat> {
        self.seat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cluster(&self) -> Result<Arc<Cluster>, Failure> {
        let gone = || Failure::Unavailable("this node leaves the cluster".to_owned());
        self.cluster.upgrade().ok_or_else(gone)
    }

    /// This node.
    pub fn own(&self) -> NodeId {
        self.own
    }

    /// What is agreed on, as far as it is known here.
    pub fn state(&self) -> Arc<State> {
        Arc::clone(&self.agreement.watch().borrow())
    }

    /// How this node stands.
    pub fn status(&self) -> Status {
        self.agreement.status()
    }

    /// The word users see for what a node does here: who leads, who votes and who only hears.
    pub fn role(&self, node: NodeId) -> &'static str {
        let status = self.status();
        if status.leader == Some(node) {
            "leader"
        } else if status.voters.contains(&node) {
            "voter"
        } else if status.learners.contains(&node) {
            "learner"
        } else {
            ""
        }
    }

    /// What is agreed on now.
    ///
    /// # Errors
    /// [`Failure::Unavailable`] without a majority.
    pub async fn read(&self) -> Result<Arc<State>, Failure> {
        Ok(self.agreement.read().await?)
    }

    /// Has all nodes agree on a change.
    ///
    /// # Errors
    /// Why it is refused; [`Failure::Unavailable`] without a majority.
    pub async fn propose(&self, command: Command) -> Result<Outcome, Failure> {
        accepted(self.agreement.propose(command).await?)
    }

    /// Has all nodes agree on a change that only who leads makes; this node must.
    async fn decree(&self, command: Command) -> Result<Outcome, Failure> {
        accepted(self.agreement.decree(command).await?)
    }

    /// Asks the node that leads.
    async fn ask_leader(&self, request: Request) -> Result<Answer, Failure> {
        let none = || Failure::Unavailable("no node leads the cluster now".to_owned());
        let leader = self.status().leader.ok_or_else(none)?;
        if leader == self.own {
            return Err(Failure::Unavailable(format!(
                "no voter can open the key of the authority any more ({} is gone): see Certificates in cluster.md",
                self.store.seal().display()
            )));
        }
        let peer = self.cluster()?.roster().peer(leader).ok_or_else(none)?;
        peer.ask_once(request, ASK_IN).await
    }

    /// Another node says who seems to be there.
    pub fn hinted(&self, from: NodeId, packet: Vec<u8>) {
        self.lookout.take(from, packet);
    }

    /// The message of which `part` is the last, if it is.
    fn whole(&self, from: NodeId, part: Part) -> Result<Option<Vec<u8>>, Failure> {
        let mut arriving = self.arriving.lock().unwrap_or_else(PoisonError::into_inner);
        let parts = arriving.entry(from);
        let parts = parts.or_insert_with(|| Parts::new(carrier::MAX_MESSAGE_BYTES));
        parts
            .take(part)
            .map_err(|e| Failure::declined("misplaced-part", e.to_string()))
    }

    /// Answers what another node asks.
    ///
    /// # Errors
    /// Why it is not done.
    pub async fn serve(&self, from: NodeId, request: Request) -> Result<Answer, Failure> {
        match request {
            Request::Agree(agree) => {
                let message = match self.whole(from, agree.into())? {
                    Some(message) => self.agreement.serve(from, &message).await,
                    None => Vec::new(),
                };
                Ok(Answer::Agreed(Agreed { message }))
            }
            Request::Admit(admit) => self.admit_here(admit).await.map(Answer::Admitted),
            Request::Certify(certify) => self
                .certify(from, &certify.request)
                .await
                .map(Answer::Certified),
            Request::TakeSeal(take) => {
                if self.status().leader != Some(from) {
                    return Err(Failure::declined("not-leader", "only who leads says so"));
                }
                self.keep_useful_seal(&take.key)?;
                Ok(Answer::Done(Done {}))
            }
            Request::GiveSeal(_) => self.give_seal(from).map(Answer::Seal),
            Request::Retire(retire) => {
                let node = msg::node(retire.node);
                let node = node.ok_or_else(|| Failure::NoNode(retire.node.to_string()))?;
                if retire.leaves && node != from {
                    self.offended(from, Offence::AnothersWish);
                    return Err(Failure::declined("not-yours", "nodes leave by themselves"));
                }
                let why = if retire.leaves {
                    Why::Left
                } else {
                    Why::Removed
                };
                self.retire_here(node, retire.since, why).await?;
                Ok(Answer::Done(Done {}))
            }
            Request::Rotate(_) => self.rotate_here().await.map(|()| Answer::Done(Done {})),
            _ => Err(Failure::Unavailable("not about the council".to_owned())),
        }
    }

    /// Takes a node out, wherever the leader is. Returns when it does not vote any more.
    ///
    /// # Errors
    /// Why it is not out.
    pub async fn retire(&self, node: NodeId, why: Why) -> Result<(), Failure> {
        let state = self.read().await?;
        let since = state.nodes.get(&node).map(|m| m.epoch);
        let since = since.ok_or_else(|| Failure::NoNode(node.to_string()))?;
        let until = Instant::now() + ASK_IN;
        loop {
            let Err(failure) = self.retire_once(node, since, why).await else {
                return Ok(());
            };
            // Whoever led may have gone with its answer: it may be the node that is out.
            let state = self.read().await.map_err(|_| failure.clone())?;
            if state.nodes.get(&node).is_none_or(|m| m.epoch != since) {
                return Ok(());
            }
            if !matches!(failure, Failure::Unavailable(_)) || Instant::now() >= until {
                return Err(failure);
            }
            sleep(ASK_AGAIN_IN).await;
        }
    }

    async fn retire_once(&self, node: NodeId, since: u64, why: Why) -> Result<(), Failure> {
        if self.status().leader == Some(self.own) {
            return self.retire_here(node, since, why).await;
        }
        let retire = Retire {
            node: node.get().into(),
            since,
            leaves: why == Why::Left,
        };
        self.ask_leader(Request::Retire(retire)).await.map(drop)
    }

    /// Has the cluster believe another authority, wherever the key of this one is. The old one is
    /// believed until every node has a certificate of the new one.
    ///
    /// # Errors
    /// When one is being changed already, or there is no majority.
    pub async fn rotate(&self) -> Result<(), Failure> {
        if self.has_seal() {
            return self.rotate_here().await;
        }
        self.ask_leader(Request::Rotate(Rotate {})).await.map(drop)
    }

    /// Has another node lead, if this one does: it will stop.
    pub async fn hand_over(&self) {
        self.agreement.hand_over().await;
    }

    /// Takes part no more.
    pub async fn stop(&self) {
        // Others need not wait for what is kept here; if they have to, they do.
        let _ = timeout(GIVE_UP_IN, self.keeper.close()).await;
        self.agreement.stop().await;
    }

    /// Lets a machine in, wherever the key of the authority is.
    ///
    /// # Errors
    /// Why it stays out.
    pub async fn admit(&self, admit: Admit) -> Result<msg::govern::Admitted, Failure> {
        // Nobody knows yet who it is: it does not get to say more than there is to say.
        if admit.encoded_len() > MAX_ADMIT_BYTES {
            let text = "no machine has that much to say of itself".to_owned();
            return Err(Failure::declined("bad-request", text));
        }
        if self.has_seal() {
            return self.admit_here(admit).await;
        }
        match self.ask_leader(Request::Admit(admit)).await? {
            Answer::Admitted(admitted) => Ok(admitted),
            _ => Err(Failure::Unavailable("no answer of the leader".to_owned())),
        }
    }
}
