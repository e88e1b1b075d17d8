// SPDX-License-Identifier: MIT OR Apache-2.0

//! Who certifies nodes, and which certificates are believed.

use serde::{Deserialize, Serialize};
use ssi::id::NodeId;

use super::check::check_authority;
use super::{Answer, Outcome, Refusal, State, spell};
use crate::core::hash::Hash;

/// Most certificates that are remembered as revoked.
pub const MAX_REVOKED: usize = 4096;
/// Most certificates of one node that may still be good.
pub const MAX_EARLIER: usize = 4;

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
}

impl State {
    pub(super) fn authority(&mut self) -> Result<&mut Authority, Refusal> {
        let cluster = self.cluster.as_mut();
        cluster.map(|c| &mut c.authority).ok_or(Refusal::NotFounded)
    }

    pub(super) fn generation(&self) -> u32 {
        self.cluster.as_ref().map_or(0, |c| c.authority.generation)
    }

    /// Remembers all of `fingerprints`, or none.
    pub(super) fn revoke(&mut self, fingerprints: &[Hash]) -> Result<(), Refusal> {
        let new = fingerprints
            .iter()
            .filter(|f| !self.revoked.contains_key(f))
            .count();
        if self.revoked.len().saturating_add(new) > MAX_REVOKED {
            return Err(Refusal::TooManyRevoked);
        }
        let generation = self.generation();
        for fingerprint in fingerprints {
            self.revoked.entry(*fingerprint).or_insert(generation);
        }
        Ok(())
    }

    pub(super) fn renewed(
        &mut self,
        node: NodeId,
        since: u64,
        fingerprint: Hash,
        generation: u32,
    ) -> Answer {
        let member = self.nodes.get(&node).filter(|m| m.epoch == since);
        let member = member.ok_or(Refusal::NoSuchNode)?;
        if member.fingerprint == fingerprint {
            return Ok(Outcome::Done);
        }
        // An authority once left is not gone back to.
        let newest = member.generation;
        if !self.authority()?.believes(generation) || generation < newest {
            return Err(Refusal::OtherAuthority);
        }
        self.fingerprint_is_free(fingerprint)?;
        let mut earlier = self.member(node)?.earlier.clone();
        earlier.push(self.member(node)?.fingerprint);
        let too_many = earlier.len().saturating_sub(MAX_EARLIER);
        let oldest: Vec<Hash> = earlier.drain(..too_many).collect();
        self.revoke(&oldest)?;
        let member = self.member(node)?;
        member.earlier = earlier;
        member.fingerprint = fingerprint;
        member.generation = generation;
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
        // Also what began one that is finished: it would bring an old authority back.
        if authority.generation.checked_add(1) != Some(generation) || authority.ca == ca {
            return Err(Refusal::NoRotation);
        }
        let old = std::mem::replace(&mut authority.ca, ca.to_owned());
        authority.previous = Some(old);
        authority.sealed_key = sealed_key.to_vec();
        authority.generation = generation;
        Ok(Outcome::Rotating { generation })
    }

    pub(super) fn finish_rotation(&mut self, generation: u32) -> Answer {
        if self.generation() != generation || generation == 0 {
            return Err(Refusal::NoRotation);
        }
        if self.authority()?.previous.is_none() {
            return Ok(Outcome::Done);
        }
        let late = self.nodes.iter().find(|(_, m)| m.generation != generation);
        if let Some((node, _)) = late {
            return Err(Refusal::NotRenewed { node: *node });
        }
        self.authority()?.previous = None;
        // What was revoked before was made by the authority that is not believed any more.
        self.revoked.retain(|_, revoked| *revoked == generation);
        Ok(Outcome::Done)
    }
}
