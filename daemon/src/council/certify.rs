// SPDX-License-Identifier: MIT OR Apache-2.0

//! Certificates: made by voters, who have what opens the authority's key, for machines that join
//! and for nodes whose certificate nears its end.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use ssi::id::NodeId;
use tokio::time::sleep;

use super::{Council, Error, accepted};
use crate::clock::now_ms;
use crate::core::hash::Hash;
use crate::core::state::{Candidate, Command, Outcome, Refusal, State, Unique};
use crate::failure::{Failure, in_full};
use crate::msg::govern::{Admit, Admitted, Certified, Certify, Member};
use crate::msg::{Answer, Request};
use crate::pki::{self, Authority, Token, Validity};
use crate::seat::Credentials;
use crate::tls;

/// Machines that join at one time take each other's number; so often a machine tries another.
const TRIES: u32 = 8;
/// Pause before a certificate that was not made is asked for again.
const AGAIN: Duration = Duration::from_secs(10);
/// A certificate is looked at this often: clocks are set, and machines sleep.
const LOOK_EVERY: Duration = Duration::from_secs(60);

pub(super) fn unusable(e: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::Unavailable(format!("cannot make a certificate: {}", in_full(e)))
}

/// Certificates of all authorities that `state` believes.
pub(super) fn authorities(state: &State) -> String {
    state.authorities().collect::<Vec<_>>().concat()
}

/// `new` with the authorities that `state` believes, and who its node `own` is by that. If none of them made its
/// certificate, this node has not heard yet of the one that did: those that came with it are believed.
fn settled(
    own: NodeId,
    new: Credentials,
    state: &State,
) -> Result<(Credentials, tls::Identity), tls::Error> {
    let revoked: tls::Revoked = state.revoked.keys().copied().collect();
    if state.cluster.is_some() {
        let ca = authorities(state);
        let node = new.node.clone();
        let agreed = Credentials { ca, node };
        match tls::Identity::of(own, &agreed, revoked.clone()) {
            Err(tls::Error::OtherAuthority) => {}
            identity => return Ok((agreed, identity?)),
        }
    }
    let identity = tls::Identity::of(own, &new, revoked)?;
    Ok((new, identity))
}

impl Council {
    /// The authority with its key.
    fn authority(&self, state: &State) -> Result<(Authority, u32), Failure> {
        let unfounded = || Failure::from(Refusal::NotFounded);
        let authority = &state.cluster.as_ref().ok_or_else(unfounded)?.authority;
        let key = self.unseal(&authority.sealed_key)?;
        let key = String::from_utf8(key).map_err(|e| unusable(&e))?;
        let loaded = Authority::load(&authority.ca, &key).map_err(|e| unusable(&e))?;
        Ok((loaded, authority.generation))
    }

    fn sign(
        &self,
        authority: &Authority,
        request: &[u8],
        node: NodeId,
        addr: SocketAddr,
    ) -> Result<(String, Hash, Option<u64>), Failure> {
        let validity = Validity::from_now(self.life);
        let cert = authority
            .sign(request, node, addr.ip(), validity)
            .map_err(|e| Failure::declined("bad-request", in_full(&e)))?;
        let der = pki::certificate::from_pem(&cert).map_err(|e| unusable(&e))?;
        let fingerprint = pki::fingerprint(&der);
        Ok((cert, fingerprint, pki::expires(&der).ok()))
    }

    /// Lets a machine in.
    pub(super) async fn admit_here(&self, ask: Admit) -> Result<Admitted, Failure> {
        let bad = |what: &str| Failure::declined("bad-request", format!("{what} cannot be read"));
        let token: Token = ask.token.parse().map_err(|_| bad("the token"))?;
        let addr: SocketAddr = ask.addr.parse().map_err(|_| bad("the address"))?;
        let nonce = pki::name_of_key(&ask.request).map_err(|_| bad("the request"))?;
        let nonce = Unique(nonce);
        let facts = ask.facts.map(Into::into).unwrap_or_default();
        for _ in 0..TRIES {
            let state = self.read().await?;
            let (authority, generation) = self.authority(&state)?;
            let known = state.tokens.get(token.id());
            known
                .filter(|t| t.secret == token.secret_hash())
                .ok_or_else(|| Failure::from(Refusal::TokenUnknown))?;
            if let Some(node) = state.nodes.iter().find(|(_, m)| m.nonce == nonce) {
                // It is in: the answer was lost.
                let (node, since) = (*node.0, node.1.epoch);
                let certified = self.certify(node, &ask.request).await?;
                return admitted(&*self.read().await?, node, since, certified);
            }
            let next = state.next_node();
            let node = next.ok_or_else(|| Failure::from(Refusal::ClusterFull))?;
            let (certificate, fingerprint, ends_ms) =
                self.sign(&authority, &ask.request, node, addr)?;
            let name = Some(ask.name.clone()).filter(|n| !n.is_empty());
            let candidate = Candidate {
                node,
                name: name.unwrap_or_else(|| node.to_string()),
                addr,
                fingerprint,
                ends_ms,
                facts: Clone::clone(&facts),
                nonce,
            };
            let join = Command::Join {
                token: token.id().to_owned(),
                secret: token.secret_hash(),
                candidate,
                generation,
                now_ms: now_ms(),
            };
            match self.agreement.propose(join).await? {
                Outcome::Refused(Refusal::NumberTaken) => {}
                outcome => {
                    let Outcome::Joined { epoch, .. } = accepted(outcome)? else {
                        break;
                    };
                    let state = self.read().await?;
                    let member = state.nodes.get(&node);
                    if member.is_none_or(|m| m.fingerprint != fingerprint) {
                        // An earlier try came through late: nobody is to have a certificate that is not known.
                        continue;
                    }
                    let authorities = authorities(&state);
                    let certified = Certified {
                        certificate,
                        authorities,
                    };
                    tracing::info!(%node, %addr, "a machine has joined");
                    return admitted(&state, node, epoch, certified);
                }
            }
        }
        Err(Refusal::NumberTaken.into())
    }

    /// Makes another certificate for a node.
    pub(super) async fn certify(&self, node: NodeId, request: &[u8]) -> Result<Certified, Failure> {
        let state = self.read().await?;
        let (authority, generation) = self.authority(&state)?;
        let member = state.nodes.get(&node);
        let member = member.ok_or_else(|| Failure::NoNode(node.to_string()))?;
        if member.conduct.quarantined {
            return Err(Refusal::Quarantined.into());
        }
        let (certificate, fingerprint, ends_ms) =
            self.sign(&authority, request, node, member.addr)?;
        self.propose(Command::Renewed {
            node,
            since: member.epoch,
            fingerprint,
            generation,
            ends_ms,
            now_ms: now_ms(),
        })
        .await?;
        tracing::info!(%node, "another certificate made");
        let authorities = authorities(&state);
        Ok(Certified {
            certificate,
            authorities,
        })
    }

    fn credentials(&self) -> Credentials {
        let credentials = self.credentials.lock();
        credentials.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Proves who this node is with `new`, or as before, from now on, and believes whom the cluster
    /// believes. What is agreed on is read when nobody else changes this: an answer with another
    /// certificate may be older than it.
    fn adopt(&self, new: Option<Credentials>) -> Result<(), Error> {
        let mut kept = self
            .credentials
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let state = self.state();
        let new = new.unwrap_or_else(|| kept.clone());
        let (new, identity) = settled(self.own, new, &state)?;
        // First: whom nobody believes any more is not believed here either, whatever the disk says.
        if let Some(cluster) = self.cluster.upgrade() {
            cluster.net().set_identity(Arc::new(identity));
        }
        if *kept != new {
            self.store.save_credentials(&new)?;
            *kept = new;
        }
        Ok(())
    }

    /// Believes whom the cluster believes.
    pub(super) fn believe(&self) -> Result<(), Error> {
        self.adopt(None)
    }

    /// Fingerprint of this node's certificate.
    fn fingerprint(&self) -> Option<Hash> {
        let cert = tls::own_certificate(&self.credentials());
        cert.ok().map(|cert| pki::fingerprint(&cert))
    }

    /// Whether this node's certificate should be replaced: it is old, or of an old authority, or another was made
    /// for this node, which was lost on the way.
    fn is_due(&self, state: &State) -> bool {
        let generation = state.cluster.as_ref().map(|c| c.authority.generation);
        if let (Some(generation), Some(own)) = (generation, state.nodes.get(&self.own))
            && (own.generation != generation || self.fingerprint() != Some(own.fingerprint))
        {
            return true;
        }
        let cert = tls::own_certificate(&self.credentials());
        let renew_at = cert.map(|cert| pki::renew_at(&cert));
        matches!(renew_at, Ok(Ok(at)) if at <= now_ms())
    }

    /// Has another certificate made for this node.
    async fn renewed(&self) -> Result<Credentials, Failure> {
        let (key, request) = pki::request().map_err(|e| unusable(&e))?;
        let certified = if self.has_seal() {
            self.certify(self.own, &request).await?
        } else {
            match self
                .ask_leader(Request::Certify(Certify { request }))
                .await?
            {
                Answer::Certified(certified) => certified,
                _ => return Err(Failure::Unavailable("no answer of the leader".to_owned())),
            }
        };
        Ok(Credentials {
            ca: certified.authorities,
            node: key + &certified.certificate,
        })
    }

    /// Says that this node has the certificate that was made for it.
    async fn tell_adopted(&self) -> Result<(), Failure> {
        let Some(fingerprint) = self.fingerprint() else {
            return Ok(());
        };
        let (node, since) = (self.own, self.seat().since);
        let command = Command::Adopted {
            node,
            since,
            fingerprint,
        };
        self.propose(command).await.map(drop)
    }

    /// Gets another certificate if there should be one; `unkept` is one that could not be kept yet. Returns whether
    /// there is another.
    async fn see_to_certificate(&self, unkept: &mut Option<Credentials>) -> Result<bool, Failure> {
        if unkept.is_none() && self.is_due(&self.state()) {
            // What is known here may be old.
            let state = self.read().await?;
            if self.is_due(&state) {
                *unkept = Some(self.renewed().await?);
            }
        }
        if let Some(new) = unkept {
            self.adopt(Some(new.clone())).map_err(|e| unusable(&e))?;
            *unkept = None;
            self.tell_adopted().await?;
            return Ok(true);
        }
        let state = self.state();
        if state.nodes.get(&self.own).is_some_and(|own| own.awaited) {
            self.tell_adopted().await?;
        }
        Ok(false)
    }

    /// Gets another certificate whenever there should be one.
    pub(super) async fn keep_certificate(self: Arc<Self>) {
        let mut wanted = self.renew.subscribe();
        let (mut unkept, mut brake) = (None, AGAIN);
        loop {
            let pause = match self.see_to_certificate(&mut unkept).await {
                Ok(true) => {
                    tracing::info!("certificate renewed");
                    // The clock of this node may be one by which each is old at once.
                    sleep(brake).await;
                    brake = (brake * 2).min(self.life / 6).max(AGAIN);
                    continue;
                }
                Ok(false) => {
                    brake = AGAIN;
                    LOOK_EVERY.min(self.life / 6)
                }
                Err(e) => {
                    self.complain(&e);
                    AGAIN
                }
            };
            tokio::select! {
                () = sleep(pause) => {}
                _ = wanted.changed() => {}
            }
        }
    }

    fn complain(&self, e: &Failure) {
        let cert = tls::own_certificate(&self.credentials());
        let ends = cert.map(|cert| pki::expires(&cert));
        if matches!(ends, Ok(Ok(at)) if at <= now_ms()) {
            tracing::error!(
                "the certificate of this node has run out, and no other node lets it in: `ssictl node remove {}` on \
                 another; here `ssictl node leave --force`, boot, and join anew. If those of most voters have run out: \
                 `ssictl cluster recover`",
                self.own
            );
        }
        tracing::warn!("certificate not renewed: {e}");
    }
}

/// What a machine that has joined is told.
fn admitted(
    state: &State,
    node: NodeId,
    since: u64,
    certified: Certified,
) -> Result<Admitted, Failure> {
    let unfounded = || Failure::from(Refusal::NotFounded);
    let members = state.nodes.iter().map(|(node, m)| Member {
        node: node.get().into(),
        name: m.name.clone(),
        addr: m.addr.to_string(),
    });
    Ok(Admitted {
        node: node.get().into(),
        since,
        cluster: state.cluster.as_ref().ok_or_else(unfounded)?.id.to_string(),
        certified: Some(certified),
        members: members.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::state;

    fn believing(ca: &str, previous: Option<&str>) -> State {
        State {
            cluster: Some(state::Cluster {
                name: "here".to_owned(),
                id: Unique(1),
                founded_ms: 0,
                authority: state::Authority {
                    ca: ca.to_owned(),
                    sealed_key: Vec::new(),
                    generation: 0,
                    previous: previous.map(str::to_owned),
                },
            }),
            ..State::default()
        }
    }

    fn certified(authority: &Authority, authorities: String) -> Credentials {
        let own = NodeId::new(1).unwrap();
        let (key, request) = pki::request().unwrap();
        let addr = "10.0.0.1".parse().unwrap();
        let certificate = authority.sign(&request, own, addr, Validity::default());
        Credentials {
            ca: authorities,
            node: key + &certificate.unwrap(),
        }
    }

    #[test]
    fn whom_to_believe_is_as_agreed_but_for_a_certificate_of_one_not_heard_of() {
        let own = NodeId::new(1).unwrap();
        let (_, old) = Authority::new("here").unwrap();
        let (new, ca) = Authority::new("here").unwrap();
        let answer = certified(&new, ca.clone() + &old);
        let believed = |state: &State| settled(own, answer.clone(), state).unwrap().0.ca;
        // An answer that is older than what was agreed on since brings nobody back.
        assert_eq!(believed(&believing(&ca, None)), ca);
        assert_eq!(believed(&believing(&ca, Some(&old))), ca.clone() + &old);
        // And one that is newer is not lost.
        assert_eq!(believed(&believing(&old, None)), answer.ca);
        assert_eq!(believed(&State::default()), answer.ca);
        let other = NodeId::new(2).unwrap();
        assert!(settled(other, answer.clone(), &believing(&ca, None)).is_err());
    }
}
