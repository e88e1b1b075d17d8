// SPDX-License-Identifier: MIT OR Apache-2.0

//! Looks out for nodes that seem dead, by SWIM over the control connections. What it sees is a hint.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use ssi::id::NodeId;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use crate::cluster::Cluster;
use crate::core::limit::Limit;
use crate::core::state::State;
use crate::core::swim::{self, Config, Member, Output, Refused, Seems, Swim};
use crate::msg::{Body, Hint};

/// Packets that wait to be looked at; more are dropped.
const MAX_WAITING: usize = 256;
/// So many complaints about packets at once, and then one in so many milliseconds.
const COMPLAINTS: (u32, u64) = (8, 10_000);

/// So many packets of one node at once, and then one in so many milliseconds, several times what one sends that keeps
/// to the rules: nobody may drown what others say.
const PACKETS: (u32, u64) = (32, 20);

/// What others see of it.
#[derive(Debug)]
pub(super) struct Lookout {
    start: Instant,
    limits: Mutex<BTreeMap<NodeId, Limit>>,
    packets: mpsc::Sender<(NodeId, Vec<u8>)>,
    seems: watch::Receiver<BTreeMap<NodeId, (u64, Seems)>>,
}

/// One whose task does not run yet.
pub(super) struct Waiting {
    own: NodeId,
    cluster: Weak<Cluster>,
    packets: mpsc::Receiver<(NodeId, Vec<u8>)>,
    seems: watch::Sender<BTreeMap<NodeId, (u64, Seems)>>,
}

/// Who is present, as [`Swim`] wants to know it.
fn members(state: &State) -> impl Iterator<Item = Member> + '_ {
    state.nodes.iter().filter_map(|(node, m)| {
        m.presence.current().map(|epoch| Member {
            node: node.get(),
            epoch,
        })
    })
}

impl Lookout {
    /// Of the node `own`.
    pub(super) fn new(own: NodeId, cluster: Weak<Cluster>) -> (Self, Waiting) {
        let (packet, packets) = mpsc::channel(MAX_WAITING);
        let (seem, seems) = watch::channel(BTreeMap::new());
        let lookout = Self {
            start: Instant::now(),
            limits: Mutex::default(),
            packets: packet,
            seems,
        };
        let waiting = Waiting {
            own,
            cluster,
            packets,
            seems: seem,
        };
        (lookout, waiting)
    }

    /// A packet came.
    pub(super) fn take(&self, from: NodeId, packet: Vec<u8>) {
        let now_ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let may = {
            let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
            let limit = limits.entry(from);
            let limit = limit.or_insert_with(|| Limit::new(PACKETS.0, PACKETS.1));
            limit.take(now_ms)
        };
        if may {
            // It may be lost.
            let _ = self.packets.try_send((from, packet));
        }
    }

    /// Whether the node that is present since the epoch `since` seems dead.
    pub(super) fn seems_dead(&self, node: NodeId, since: u64) -> bool {
        self.seems.borrow().get(&node) == Some(&(since, Seems::Down))
    }
}

impl Waiting {
    /// Looks out for as long as the node runs; `states` is what is agreed on.
    pub(super) async fn run(mut self, mut states: watch::Receiver<Arc<State>>, seen_in: Duration) {
        let start = Instant::now();
        let now_ms = || u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let seen_ms = u64::try_from(seen_in.as_millis()).unwrap_or(u64::MAX);
        let config = Config::default().within(seen_ms);
        let mut complaints = Limit::new(COMPLAINTS.0, COMPLAINTS.1);
        let mut swim: Option<Swim> = None;
        states.mark_changed();
        loop {
            let due = swim
                .as_ref()
                .map(|s| start + Duration::from_millis(s.due_ms()));
            let wake = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = states.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let state = Arc::clone(&states.borrow_and_update());
                    self.list(&mut swim, &state, config, now_ms());
                }
                packet = self.packets.recv() => {
                    let Some((from, packet)) = packet else { return };
                    let Some(swim) = &mut swim else { continue };
                    let taken = swim.take(now_ms(), from.get(), &packet);
                    if let Err(e) = &taken
                        && let Some(offence) = e.offence()
                        && let Some(cluster) = self.cluster.upgrade()
                    {
                        cluster.offended(from, offence);
                    }
                    if let Err(e) = taken
                        // What is late or early is nothing to complain of.
                        && !matches!(e, Refused::NoMember(_) | Refused::NotForUs(_))
                        && complaints.take(now_ms())
                    {
                        tracing::warn!("a packet that no honest node sends: {}", crate::failure::in_full(&e));
                    }
                }
                () = wake => {
                    if let Some(swim) = &mut swim {
                        swim.wake(now_ms());
                    }
                }
            }
            if let Some(swim) = &mut swim {
                self.act(swim);
            }
        }
    }

    /// Has `swim` know who is there; makes it when this node is.
    fn list(&self, swim: &mut Option<Swim>, state: &State, config: Config, now_ms: u64) {
        let own = members(state).find(|m| m.node == self.own.get());
        if swim.is_none() {
            let mut seed = [0; 8];
            // Any seed will do.
            let _ = aws_lc_rs::rand::fill(&mut seed);
            *swim = own.map(|own| Swim::new(own, u64::from_ne_bytes(seed), config));
        }
        let Some(swim) = swim else { return };
        let known: Vec<u16> = swim.members().map(|(m, _)| m.node).collect();
        for node in known {
            if !members(state).any(|m| m.node == node) {
                swim.unlist(now_ms, node);
            }
        }
        for member in members(state) {
            if swim.list(now_ms, member) == Err(swim::Full) {
                tracing::error!("more nodes than can be looked out for");
            }
        }
    }

    fn act(&self, swim: &mut Swim) {
        let Some(cluster) = self.cluster.upgrade() else {
            return;
        };
        for output in swim.outputs() {
            match output {
                Output::Send { to, bytes } => {
                    let peer = NodeId::new(to).and_then(|to| cluster.roster().peer(to));
                    if let Some(peer) = peer {
                        peer.hint(Body::Hint(Hint { packet: bytes }));
                    }
                }
                Output::Event { member, seems } => {
                    tracing::debug!(node = member.node, epoch = member.epoch, ?seems, "hint");
                }
            }
        }
        let seems = swim
            .members()
            .filter_map(|(m, seems)| NodeId::new(m.node).map(|node| (node, (m.epoch, seems))));
        self.seems.send_replace(seems.collect());
    }
}
