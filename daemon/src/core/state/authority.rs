// SPDX-License-Identifier: MIT OR Apache-2.0

//! Who certifies nodes, and which certificates are believed.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use ssi::id::NodeId;

use super::check::check_authority;
use super::{Answer, Command, Member, Outcome, Refusal, State, spell};
use crate::core::hash::Hash;

/// Most certificates that are remembered as revoked.
pub const MAX_REVOKED: usize = 4096;
/// Of those so many are left for nodes that are taken out.
pub(super) const RESERVED: usize = 512;
/// Most certificates of one node that may still be good, beside the last.
pub const MAX_EARLIER: usize = 4;
/// A certificate is no good any more so long after it ran out, in milliseconds: clocks may be late. The shortest
/// life of one is a minute, of which a third goes by before another is made: so this is short.
const LATE_MS: u64 = 30_000;
/// One that is revoked is forgotten no sooner than so long after that, in milliseconds.
const FORGET_AFTER_MS: u64 = 24 * 3600 * 1000;

/// Who certifies nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Authority {
    /// Its certificate, PEM.
    pub ca: String,
    /// Its key, sealed.
    #[serde(with = "spell::base64")]
    pub sealed_key: Vec<u8>,
    /// How many authorities there were before.
    pub generation: u32,
    /// Certificate of the one before, while it is believed as well.
    pub previous: Option<String>,
}

impl Authority {
    /// Whether certificates of the authority `generation` are believed.
    pub(super) fn believes(&self, generation: u32) -> bool {
        generation == self.generation
            || (self.previous.is_some() && generation.checked_add(1) == Some(self.generation))
    }

    /// Believes the one there is beside the next, and all that it was believed beside.
    fn follow_with(&mut self, generation: u32, ca: &str, sealed_key: &[u8]) -> Answer {
        // Also what began one that is finished: it would bring an old authority back.
        if self.generation.checked_add(1) != Some(generation) || self.ca == ca {
            return Err(Refusal::NoRotation);
        }
        let old = std::mem::replace(&mut self.ca, ca.to_owned());
        self.previous = Some(old + self.previous.as_deref().unwrap_or_default());
        self.sealed_key = sealed_key.to_vec();
        self.generation = generation;
        Ok(Outcome::Rotating { generation })
    }
}

impl Member {
    /// Fingerprints of all its certificates, the oldest first.
    pub(super) fn fingerprints(&self) -> Vec<Hash> {
        let earlier = self.earlier.iter().copied();
        earlier.chain([self.fingerprint]).collect()
    }

    /// Whether it has a certificate of the authority `generation`.
    pub fn is_of(&self, generation: u32) -> bool {
        self.generation == generation && !self.awaited
    }
}

impl State {
    pub(super) fn authority(&mut self) -> Result<&mut Authority, Refusal> {
        let cluster = self.cluster.as_mut();
        cluster.map(|c| &mut c.authority).ok_or(Refusal::NotFounded)
    }

    pub(super) fn generation(&self) -> u32 {
        self.cluster.as_ref().map_or(0, |c| c.authority.generation)
    }

    /// Remembers all of `fingerprints`, or none if that makes more than `most`.
    pub(super) fn revoke(&mut self, fingerprints: &[Hash], most: usize) -> Result<(), Refusal> {
        let new = fingerprints
            .iter()
            .filter(|f| !self.revoked.contains_key(f))
            .count();
        if new > 0 && self.revoked.len().saturating_add(new) > most {
            return Err(Refusal::TooManyRevoked);
        }
        let generation = self.generation();
        for fingerprint in fingerprints {
            self.revoked.entry(*fingerprint).or_insert(generation);
        }
        Ok(())
    }

    /// Whether a certificate has run out, as far as is known.
    fn has_run_out(&self, fingerprint: &Hash, now_ms: u64) -> bool {
        let ends_ms = self.ends_ms.get(fingerprint);
        ends_ms.is_some_and(|end| end.saturating_add(LATE_MS) <= now_ms)
    }

    /// Makes room, if there is not much, by what nobody would believe anyhow.
    pub(super) fn forget_revoked(&mut self, now_ms: u64) {
        if self.revoked.len() > MAX_REVOKED / 2 {
            let mut revoked = std::mem::take(&mut self.revoked);
            let long_ago_ms = now_ms.saturating_sub(FORGET_AFTER_MS);
            revoked.retain(|fingerprint, _| !self.has_run_out(fingerprint, long_ago_ms));
            self.revoked = revoked;
        }
        self.forget_ends();
    }

    /// Forgets when those run out that are not remembered otherwise.
    fn forget_ends(&mut self) {
        let (nodes, revoked) = (&self.nodes, &self.revoked);
        let all = nodes.values().flat_map(Member::fingerprints);
        let all: BTreeSet<Hash> = all.collect();
        self.ends_ms
            .retain(|f, _| all.contains(f) || revoked.contains_key(f));
    }

    pub(super) fn renewed(&mut self, command: &Command) -> Answer {
        let Command::Renewed {
            node,
            since,
            fingerprint,
            generation,
            ends_ms,
            now_ms,
        } = *command
        else {
            return Err(Refusal::NoSuchNode);
        };
        let member = self.member_since(node, since)?;
        if member.fingerprint == fingerprint {
            return Ok(Outcome::Done);
        }
        // An authority once left is not gone back to.
        let newest = member.generation;
        if !self.authority()?.believes(generation) || generation < newest {
            return Err(Refusal::OtherAuthority);
        }
        self.fingerprint_is_free(fingerprint)?;
        let mut earlier = self.member(node)?.fingerprints();
        let too_many = earlier.len().saturating_sub(MAX_EARLIER);
        let oldest = earlier.drain(..too_many);
        let oldest: Vec<Hash> = oldest.filter(|f| !self.has_run_out(f, now_ms)).collect();
        // What an authority made that goes need not be remembered. Else one that asks again and again would have
        // more remembered than there is room for.
        let of_next = generation > newest;
        if !of_next && oldest.iter().any(|f| self.ends_ms.contains_key(f)) {
            return Err(Refusal::TooManyCertificates);
        }
        let revoked = self.revoke(&oldest, MAX_REVOKED - RESERVED);
        if !of_next {
            revoked?;
        }
        let member = self.member(node)?;
        member.earlier = earlier;
        member.fingerprint = fingerprint;
        member.generation = generation;
        member.awaited = true;
        self.ends_ms.extend(ends_ms.map(|end| (fingerprint, end)));
        self.forget_revoked(now_ms);
        Ok(Outcome::Done)
    }

    pub(super) fn adopted(&mut self, node: NodeId, since: u64, fingerprint: Hash) -> Answer {
        let member = self.member_since(node, since)?;
        if member.fingerprint != fingerprint {
            return Err(Refusal::OtherCertificate);
        }
        member.awaited = false;
        Ok(Outcome::Done)
    }

    pub(super) fn begin_rotation(
        &mut self,
        generation: u32,
        ca: &str,
        sealed_key: &[u8],
    ) -> Answer {
        check_authority(ca, sealed_key)?;
        let authority = self.authority()?;
        if authority.previous.is_some() {
            return if authority.generation == generation && authority.ca == ca {
                Ok(Outcome::Rotating { generation })
            } else {
                Err(Refusal::RotationUnderway)
            };
        }
        authority.follow_with(generation, ca, sealed_key)
    }

    pub(super) fn replace_authority(
        &mut self,
        generation: u32,
        ca: &str,
        sealed_key: &[u8],
    ) -> Answer {
        check_authority(ca, sealed_key)?;
        self.authority()?.follow_with(generation, ca, sealed_key)
    }

    pub(super) fn finish_rotation(&mut self, generation: u32) -> Answer {
        if self.generation() != generation || generation == 0 {
            return Err(Refusal::NoRotation);
        }
        if self.authority()?.previous.is_none() {
            return Ok(Outcome::Done);
        }
        let late = self.nodes.iter().find(|(_, m)| !m.is_of(generation));
        if let Some((node, _)) = late {
            return Err(Refusal::NotRenewed { node: *node });
        }
        self.authority()?.previous = None;
        // What was revoked before was made by the authority that is not believed any more.
        self.revoked.retain(|_, revoked| *revoked == generation);
        self.forget_ends();
        Ok(Outcome::Done)
    }
}
