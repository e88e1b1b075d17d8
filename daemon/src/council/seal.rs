// SPDX-License-Identifier: MIT OR Apache-2.0

//! The seal: what opens the key of the authority. Each voter has it, and whoever is to vote gets it before.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use ssi::id::NodeId;

use super::certify::unusable;
use super::{ASK_IN, Council, Error, SEALED_FOR};
use crate::agree::Status;
use crate::cluster::Cluster;
use crate::core::state::Refusal;
use crate::failure::{Failure, in_full};
use crate::msg::govern::{GiveSeal, TakeSeal};
use crate::msg::{Answer, Request};
use crate::pki::{self, Authority, Seal};

/// A voter that does not give the seal in this time is asked again later.
const GIVEN_IN: Duration = Duration::from_secs(2);

/// An authority, and what opens its key.
pub(super) struct Sealed {
    pub(super) authority: Authority,
    /// Its certificate, PEM.
    pub(super) ca: String,
    pub(super) sealed_key: Vec<u8>,
    pub(super) seal: [u8; pki::seal::KEY_BYTES],
}

/// Makes an authority for the cluster `name`, and a seal for its key.
///
/// # Errors
/// See [`Error`].
pub(super) fn sealed_authority(name: &str) -> Result<Sealed, Error> {
    let (authority, ca) = Authority::new(name)?;
    let mut key = [0; pki::seal::KEY_BYTES];
    aws_lc_rs::rand::fill(&mut key).map_err(|_| Error::Random)?;
    let seal = Seal::new(&key).map_err(|_| Error::Random)?;
    let sealed_key = seal.seal(SEALED_FOR, authority.key_pem().as_bytes());
    Ok(Sealed {
        authority,
        ca,
        sealed_key: sealed_key.map_err(|_| Error::Random)?,
        seal: key,
    })
}

impl Council {
    /// Whether this node can open the key of the authority.
    pub(super) fn has_seal(&self) -> bool {
        let (seal, state) = (self.kept_seal(), self.state());
        seal.is_some_and(|seal| {
            let cluster = state.cluster.as_ref();
            cluster.is_none_or(|c| seal.open(SEALED_FOR, &c.authority.sealed_key).is_ok())
        })
    }

    /// Whether it keeps a seal, which may open nothing any more.
    pub(super) fn keeps_seal(&self) -> bool {
        self.kept_seal().is_some()
    }

    /// Keeps the key that opens that of the authority.
    pub(super) fn keep_seal(&self, key: &[u8]) -> Result<(), Error> {
        let seal = Seal::new(key).map_err(|_| Error::Random)?;
        self.store.save_seal(key)?;
        let mut kept = self.seal.write().unwrap_or_else(PoisonError::into_inner);
        *kept = Some(Arc::new(seal));
        Ok(())
    }

    /// Forgets it: this node does not vote any more.
    pub(super) fn drop_seal(&self) {
        let mut kept = self.seal.write().unwrap_or_else(PoisonError::into_inner);
        if kept.take().is_some()
            && let Err(e) = self.store.remove_seal()
        {
            tracing::error!("{}", in_full(&e));
        }
    }

    fn kept_seal(&self) -> Option<Arc<Seal>> {
        let seal = self.seal.read().unwrap_or_else(PoisonError::into_inner);
        seal.clone()
    }

    /// Opens the key of an authority.
    pub(super) fn unseal(&self, sealed_key: &[u8]) -> Result<Vec<u8>, Failure> {
        let seal = self.kept_seal().ok_or_else(|| {
            Failure::Unavailable(format!("{} does not vote: ask another node", self.own))
        })?;
        seal.open(SEALED_FOR, sealed_key).map_err(|e| unusable(&e))
    }

    /// Seals another authority's key.
    pub(super) fn seal_key(&self, key_pem: &str) -> Result<Vec<u8>, Failure> {
        let seal = self
            .kept_seal()
            .ok_or_else(|| Failure::from(Refusal::NoRotation))?;
        seal.seal(SEALED_FOR, key_pem.as_bytes())
            .map_err(|e| unusable(&e))
    }

    fn seal_to_give(&self) -> Result<TakeSeal, Failure> {
        let key = std::fs::read(self.store.seal())
            .map_err(|e| Failure::Unavailable(format!("the seal: {e}")))?;
        Ok(TakeSeal { key })
    }

    /// Gives a node that is to vote what opens the authority's key.
    pub(super) async fn hand_seal(&self, cluster: &Cluster, node: NodeId) -> Result<(), Failure> {
        let peer = cluster.roster().peer(node);
        let peer = peer.ok_or_else(|| Failure::NoNode(node.to_string()))?;
        // It has to know who leads before it takes it.
        let take = Request::TakeSeal(self.seal_to_give()?);
        peer.ask_once(take, ASK_IN).await.map(drop)
    }

    /// Gives another voter the seal: it has lost its own.
    pub(super) fn give_seal(&self, to: NodeId) -> Result<TakeSeal, Failure> {
        let votes = self.status().voters.contains(&to);
        if !votes || self.state().is_quarantined(to) {
            return Err(Failure::declined(
                "not-a-voter",
                "only voters have the seal",
            ));
        }
        tracing::warn!(%to, "has lost its seal, and gets it again");
        self.seal_to_give()
    }

    /// Asks the other voters for the seal, which this one has lost.
    pub(super) async fn fetch_seal(&self, status: &Status) {
        for from in status.voters.iter().filter(|node| **node != self.own) {
            match self.fetch_seal_from(*from).await {
                Ok(()) => {
                    tracing::warn!(%from, "the seal was lost; it is here again");
                    return;
                }
                Err(e) => tracing::warn!(%from, "the seal is lost, and not given: {e}"),
            }
        }
    }

    async fn fetch_seal_from(&self, from: NodeId) -> Result<(), Failure> {
        let peer = self.cluster()?.roster().peer(from);
        let peer = peer.ok_or_else(|| Failure::unreachable(from))?;
        let give = Request::GiveSeal(GiveSeal {});
        let Answer::Seal(given) = peer.ask_once(give, GIVEN_IN).await? else {
            return Err(Failure::Unavailable(format!("{from} says something else")));
        };
        self.keep_useful_seal(&given.key)
    }

    /// Keeps what another node gave, if it opens the key of the authority: else it would be of no use, and whoever gets
    /// a vote would have it from here.
    pub(super) fn keep_useful_seal(&self, key: &[u8]) -> Result<(), Failure> {
        let state = self.state();
        let cluster = state.cluster.as_ref();
        let authority = &cluster
            .ok_or_else(|| Failure::from(Refusal::NotFounded))?
            .authority;
        let useless = |e: &(dyn std::error::Error + 'static)| Failure::Unavailable(in_full(e));
        let seal = Seal::new(key).map_err(|e| useless(&e))?;
        seal.open(SEALED_FOR, &authority.sealed_key)
            .map_err(|e| useless(&e))?;
        self.keep_seal(key).map_err(|e| useless(&e))
    }
}
