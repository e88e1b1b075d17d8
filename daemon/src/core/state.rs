// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the nodes of a cluster agree on: who they are, whom they believe, who may join.
//!
//! The state is made by commands that all nodes apply in the same order. It has no clock and no
//! random numbers: both are in the commands. A command whose answer was lost is applied a second
//! time, which changes nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use ssi::id::{MAX_NODE, NodeId};

use super::facts::Facts;
use super::hash::Hash;
use super::kv::Kv;
use super::lock::{self, Locks};

mod authority;
mod check;
mod command;
mod conduct;
mod presence;
mod rights;
pub(crate) mod spell;
#[cfg(test)]
pub(crate) mod tests;
mod token;

use authority::RESERVED;
pub use authority::{Authority, MAX_EARLIER, MAX_REVOKED};
use check::{check_addr, check_authority, check_name, check_node_name, place};
pub use command::{Candidate, Command, Outcome, Refusal, Why};
pub use conduct::Conduct;
pub use presence::Presence;
pub use rights::Objection;
pub use spell::Unique;
pub use token::{MAX_TOKEN_ID_BYTES, MAX_TOKEN_MS, MAX_TOKENS, Token};

/// Longest name of a cluster or a node.
pub const MAX_NAME_BYTES: usize = 63;
/// Longest certificate of an authority, PEM.
pub const MAX_CA_BYTES: usize = 4096;
/// Longest key of an authority, sealed.
pub const MAX_SEALED_BYTES: usize = 4096;

/// The cluster itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Its name.
    pub name: String,
    /// What it is known by for ever.
    pub id: Unique,
    /// When it was founded.
    pub founded_ms: u64,
    /// Whom its nodes believe.
    pub authority: Authority,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Where its daemon is reached.
    pub addr: SocketAddr,
    /// Fingerprint of its certificate.
    pub fingerprint: Hash,
    /// Those of the certificates it had before, which may still be good. The oldest first.
    pub earlier: Vec<Hash>,
    /// The authority that made its certificate.
    pub generation: u32,
    /// It has not said yet that it has that certificate.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub awaited: bool,
    /// When it joined.
    pub joined_ms: u64,
    /// The epoch that began when it joined.
    pub epoch: u64,
    /// Whether it is there.
    pub presence: Presence,
    /// Whether nothing new should move there.
    pub cordoned: bool,
    /// What it is like, as it said last.
    pub facts: Facts,
    /// Of the command by which it joined.
    pub nonce: Unique,
    /// What is held against it.
    #[serde(default, skip_serializing_if = "Conduct::is_blank")]
    pub conduct: Conduct,
}

/// A node that was one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gone {
    /// Its name.
    pub name: String,
    /// Fingerprints of its certificates, which are revoked.
    pub fingerprints: Vec<Hash>,
    /// When it went.
    pub at_ms: u64,
    /// The epoch that began when it went.
    pub epoch: u64,
    /// The epoch that began when it had joined.
    pub since: u64,
    /// Why it went.
    pub why: Why,
    /// Of the command by which it had joined.
    pub nonce: Unique,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// None before it is founded.
    pub cluster: Option<Cluster>,
    /// The nodes.
    #[serde(with = "spell::by_node")]
    pub nodes: BTreeMap<NodeId, Member>,
    /// Who had a number that nobody has now.
    #[serde(with = "spell::by_node")]
    pub gone: BTreeMap<NodeId, Gone>,
    /// Tokens by name.
    pub tokens: BTreeMap<String, Token>,
    /// Fingerprints of certificates that are not believed, and the generation of the authority
    /// when that was said.
    pub revoked: BTreeMap<Hash, u32>,
    /// When certificates run out that nodes have or that are revoked, of those of which it is known.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ends_ms: BTreeMap<Hash, u64>,
    /// Grows by one whenever a node comes or goes, is declared dead or quarantined, pardoned, or comes back.
    pub epoch: u64,
    /// What services of the cluster keep in it.
    pub kv: Arc<Kv>,
    /// Who holds which lock.
    pub locks: Arc<Locks>,
}

type Answer = Result<Outcome, Refusal>;

impl State {
    /// Does what `command` says.
    pub fn apply(&mut self, command: &Command) -> Outcome {
        self.try_apply(command).unwrap_or_else(Outcome::Refused)
    }

    /// The number of the next node: the lowest that nobody ever had, else the one that nobody had
    /// for the longest time.
    pub fn next_node(&self) -> Option<NodeId> {
        (1..=MAX_NODE)
            .filter_map(NodeId::new)
            .find(|n| !self.nodes.contains_key(n) && !self.gone.contains_key(n))
            .or_else(|| {
                let longest = self.gone.iter().min_by_key(|(_, gone)| gone.epoch);
                longest.map(|(node, _)| *node)
            })
    }

    /// Certificates of all authorities that are believed, PEM, the one that issues first.
    pub fn authorities(&self) -> impl Iterator<Item = &str> {
        let authority = self.cluster.iter().map(|c| &c.authority);
        authority.flat_map(|a| {
            std::iter::once(a.ca.as_str()).chain(a.previous.iter().map(String::as_str))
        })
    }

    fn try_apply(&mut self, command: &Command) -> Answer {
        match command {
            Command::Found { .. } => return self.found(command),
            Command::Kv(c) => return Ok(Outcome::Kv(Arc::make_mut(&mut self.kv).apply(c))),
            Command::Lock(command) => return self.lock(command),
            _ => {}
        }
        if self.cluster.is_none() {
            return Err(Refusal::NotFounded);
        }
        match command {
            Command::Found { .. } | Command::Kv(_) | Command::Lock(_) => {
                Err(Refusal::AlreadyFounded)
            }
            Command::AddToken { .. } => self.add_token(command),
            Command::DropToken { id } => self.drop_token(id),
            Command::Join {
                token,
                secret,
                candidate,
                generation,
                now_ms,
            } => self.join(token, *secret, candidate, *generation, *now_ms),
            Command::Rename { node, name } => {
                self.member(*node)?;
                check_node_name(name, *node)?;
                self.name_is_free(name, *node)?;
                self.member(*node)?.name.clone_from(name);
                Ok(Outcome::Done)
            }
            Command::SetAddr { node, addr } => {
                self.member(*node)?;
                check_addr(*addr)?;
                self.addr_is_free(*addr, *node)?;
                self.member(*node)?.addr = *addr;
                Ok(Outcome::Done)
            }
            Command::Cordon { node } => {
                self.member(*node)?.cordoned = true;
                Ok(Outcome::Done)
            }
            Command::Uncordon { node } => {
                self.member(*node)?.cordoned = false;
                Ok(Outcome::Done)
            }
            Command::Remove {
                node,
                since,
                why,
                now_ms,
            } => self.remove(*node, *since, *why, *now_ms),
            Command::Leave {
                node,
                since,
                now_ms,
            } => self.remove(*node, *since, Why::Left, *now_ms),
            Command::DeclareDead { node, since } => self.declare_dead(*node, *since),
            Command::ComeBack { node, ended } => self.come_back(*node, *ended),
            Command::Accuse {
                by,
                node,
                since,
                offence,
            } => self.accuse(*by, *node, *since, *offence),
            Command::Pardon { node, since } => self.pardon(*node, *since),
            Command::Renewed { .. } => self.renewed(command),
            Command::Adopted {
                node,
                since,
                fingerprint,
            } => self.adopted(*node, *since, *fingerprint),
            Command::Describe { node, since, facts } => {
                if !facts.make_sense() {
                    return Err(Refusal::FactsInvalid);
                }
                let member = self.member_since(*node, *since)?;
                member.facts.clone_from(facts);
                Ok(Outcome::Done)
            }
            Command::Revoke { fingerprint } => {
                self.revoke(&[*fingerprint], MAX_REVOKED - RESERVED)?;
                Ok(Outcome::Done)
            }
            Command::ReplaceAuthority {
                generation,
                ca,
                sealed_key,
            } => self.replace_authority(*generation, ca, sealed_key),
            Command::BeginRotation {
                generation,
                ca,
                sealed_key,
            } => self.begin_rotation(*generation, ca, sealed_key),
            Command::FinishRotation { generation } => self.finish_rotation(*generation),
        }
    }

    fn member(&mut self, node: NodeId) -> Result<&mut Member, Refusal> {
        self.nodes.get_mut(&node).ok_or(Refusal::NoSuchNode)
    }

    /// The same, if it is the one that joined then.
    fn member_since(&mut self, node: NodeId, since: u64) -> Result<&mut Member, Refusal> {
        let member = self.nodes.get_mut(&node).filter(|m| m.epoch == since);
        member.ok_or(Refusal::NoSuchNode)
    }

    fn name_is_free(&self, name: &str, but_for: NodeId) -> Result<(), Refusal> {
        let mut others = self.nodes.iter().filter(|(node, _)| **node != but_for);
        if others.any(|(_, m)| m.name == name) {
            return Err(Refusal::NameTaken);
        }
        Ok(())
    }

    fn addr_is_free(&self, addr: SocketAddr, but_for: NodeId) -> Result<(), Refusal> {
        let mut others = self.nodes.iter().filter(|(node, _)| **node != but_for);
        if others.any(|(_, m)| place(m.addr) == place(addr)) {
            return Err(Refusal::AddrTaken);
        }
        Ok(())
    }

    fn fingerprint_is_free(&self, fingerprint: Hash) -> Result<(), Refusal> {
        let mut all = self.nodes.values();
        if self.revoked.contains_key(&fingerprint)
            || all.any(|m| m.fingerprint == fingerprint || m.earlier.contains(&fingerprint))
        {
            return Err(Refusal::FingerprintTaken);
        }
        Ok(())
    }

    fn found(&mut self, command: &Command) -> Answer {
        let Command::Found {
            name,
            id,
            ca,
            sealed_key,
            first,
            now_ms,
        } = command
        else {
            return Err(Refusal::AlreadyFounded);
        };
        if let Some(cluster) = &self.cluster {
            return match self.nodes.get(&first.node) {
                Some(member) if cluster.id == *id && member.nonce == first.nonce => {
                    Ok(Outcome::Joined {
                        node: first.node,
                        epoch: member.epoch,
                    })
                }
                _ => Err(Refusal::AlreadyFounded),
            };
        }
        check_name(name)?;
        check_authority(ca, sealed_key)?;
        self.check(first)?;
        self.cluster = Some(Cluster {
            name: name.clone(),
            id: *id,
            founded_ms: *now_ms,
            authority: Authority {
                ca: ca.clone(),
                sealed_key: sealed_key.clone(),
                generation: 0,
                previous: None,
            },
        });
        Ok(self.admit(first, 0, *now_ms))
    }

    /// Whether `candidate` may be a node, but for its number.
    fn check(&self, candidate: &Candidate) -> Result<(), Refusal> {
        if !candidate.facts.make_sense() {
            return Err(Refusal::FactsInvalid);
        }
        check_addr(candidate.addr)?;
        check_node_name(&candidate.name, candidate.node)?;
        self.name_is_free(&candidate.name, candidate.node)?;
        self.addr_is_free(candidate.addr, candidate.node)?;
        self.fingerprint_is_free(candidate.fingerprint)?;
        for (node, member) in &self.nodes {
            let differences = member.facts.differ(&candidate.facts);
            if !differences.is_empty() {
                return Err(Refusal::FactsDiffer {
                    node: *node,
                    differences,
                });
            }
        }
        Ok(())
    }

    fn admit(&mut self, candidate: &Candidate, generation: u32, now_ms: u64) -> Outcome {
        let (node, epoch) = (candidate.node, self.epoch.saturating_add(1));
        self.epoch = epoch;
        self.gone.remove(&node);
        let member = Member {
            name: candidate.name.clone(),
            addr: candidate.addr,
            fingerprint: candidate.fingerprint,
            earlier: Vec::new(),
            generation,
            awaited: false,
            joined_ms: now_ms,
            epoch,
            presence: Presence::since(epoch),
            cordoned: false,
            facts: candidate.facts.clone(),
            nonce: candidate.nonce,
            conduct: Conduct::default(),
        };
        self.nodes.insert(node, member);
        let ends_ms = candidate.ends_ms;
        self.ends_ms
            .extend(ends_ms.map(|end| (candidate.fingerprint, end)));
        Outcome::Joined { node, epoch }
    }

    fn join(
        &mut self,
        token: &str,
        secret: Hash,
        candidate: &Candidate,
        generation: u32,
        now_ms: u64,
    ) -> Answer {
        let nonce = candidate.nonce;
        if let Some((node, member)) = self.nodes.iter().find(|(_, m)| m.nonce == nonce) {
            let (node, epoch) = (*node, member.epoch);
            if node != candidate.node {
                return Err(Refusal::NumberTaken);
            }
            return Ok(Outcome::Joined { node, epoch });
        }
        if self.gone.values().any(|g| g.nonce == nonce) {
            return Err(Refusal::JoinedBefore);
        }
        let found = self.tokens.get(token).filter(|t| t.secret == secret);
        let (expires_ms, uses_left) = found
            .map(|t| (t.expires_ms, t.uses_left))
            .ok_or(Refusal::TokenUnknown)?;
        if expires_ms <= now_ms {
            self.tokens.remove(token);
            return Err(Refusal::TokenExpired);
        }
        let uses_left = uses_left.checked_sub(1).ok_or(Refusal::TokenUsedUp)?;
        if !self.authority()?.believes(generation) {
            return Err(Refusal::OtherAuthority);
        }
        let next = self.next_node().ok_or(Refusal::ClusterFull)?;
        if candidate.node != next {
            return Err(Refusal::NumberTaken);
        }
        self.check(candidate)?;
        if let Some(token) = self.tokens.get_mut(token) {
            token.uses_left = uses_left;
        }
        Ok(self.admit(candidate, generation, now_ms))
    }

    fn remove(&mut self, node: NodeId, since: u64, why: Why, now_ms: u64) -> Answer {
        if let Some(gone) = self.gone.get(&node).filter(|g| g.since == since) {
            let epoch = gone.epoch;
            return Ok(Outcome::Gone { node, epoch });
        }
        let member = self.nodes.get(&node).filter(|m| m.epoch == since);
        let member = member.ok_or(Refusal::NoSuchNode)?;
        if self.nodes.len() == 1 {
            return Err(Refusal::LastNode);
        }
        let gone = Gone {
            name: member.name.clone(),
            fingerprints: member.fingerprints(),
            at_ms: now_ms,
            epoch: self.epoch.saturating_add(1),
            since,
            why,
            nonce: member.nonce,
        };
        self.forget_revoked(now_ms);
        self.revoke(&gone.fingerprints, MAX_REVOKED)?;
        self.epoch = gone.epoch;
        self.nodes.remove(&node);
        self.gone.insert(node, gone);
        Arc::make_mut(&mut self.locks).end_of_node(node, since);
        self.forget_accuser(node);
        let epoch = self.epoch;
        Ok(Outcome::Gone { node, epoch })
    }

    /// Locks are for the nodes of the cluster.
    fn lock(&mut self, command: &lock::Command) -> Answer {
        if let Some(lock::Opening { owner, .. }) = command.opening() {
            let member = self.nodes.get(&owner.node);
            let member = member.filter(|m| m.epoch == owner.since);
            if member.ok_or(Refusal::NoSuchNode)?.conduct.quarantined {
                return Err(Refusal::Quarantined);
            }
        }
        Ok(Outcome::Lock(Arc::make_mut(&mut self.locks).apply(command)))
    }
}
