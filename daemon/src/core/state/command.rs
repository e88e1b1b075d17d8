// SPDX-License-Identifier: MIT OR Apache-2.0

//! What may be done to the state of a cluster, and what comes of it.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use ssi::id::NodeId;

use super::spell::{Unique, base64, node};
use crate::core::facts::{Difference, Facts};
use crate::core::hash::Hash;
use crate::core::offence::Offence;
use crate::core::{kv, lock};

/// A machine that is about to become a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// The number its certificate is for: [`super::State::next_node`], unless it is the first.
    #[serde(with = "node")]
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Where its daemon is reached.
    pub addr: SocketAddr,
    /// Fingerprint of its certificate.
    pub fingerprint: Hash,
    /// When that runs out, in milliseconds since 1970, if it is known.
    pub ends_ms: Option<u64>,
    /// What it is like.
    pub facts: Facts,
    /// Random: the same join applied twice makes one node.
    pub nonce: Unique,
}

/// Why a node is not one any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// It left by itself.
    Left,
    /// Somebody removed it.
    Removed,
    /// It was declared dead.
    Dead,
}

/// Something done to the state. Times are in milliseconds since 1970. Applied twice it is as if
/// it was applied once, or it is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    /// Found the cluster. Answer: [`Outcome::Joined`].
    Found {
        /// Name of the cluster.
        name: String,
        /// What it is known by for ever.
        id: Unique,
        /// Certificate of its authority, PEM.
        ca: String,
        /// Key of the authority, sealed.
        #[serde(with = "base64")]
        sealed_key: Vec<u8>,
        /// The first node.
        first: Candidate,
        /// Now.
        now_ms: u64,
    },
    /// Let machines join with a token.
    AddToken {
        /// Name of the token.
        id: String,
        /// SHA-256 of its secret.
        secret: Hash,
        /// Not after this.
        expires_ms: u64,
        /// The user who made it.
        made_by_uid: u32,
        /// So many machines.
        uses: u16,
        /// Now.
        now_ms: u64,
    },
    /// Let nobody join with a token any more.
    DropToken {
        /// Its name.
        id: String,
    },
    /// Join. Answer: [`Outcome::Joined`].
    Join {
        /// Name of the token.
        token: String,
        /// SHA-256 of the secret that was shown.
        secret: Hash,
        /// Who joins.
        candidate: Candidate,
        /// The authority that made the certificate: [`super::Authority::generation`].
        generation: u32,
        /// Now.
        now_ms: u64,
    },
    /// Call a node otherwise.
    Rename {
        /// Which.
        #[serde(with = "node")]
        node: NodeId,
        /// Its name.
        name: String,
    },
    /// A node is elsewhere.
    SetAddr {
        /// Which.
        #[serde(with = "node")]
        node: NodeId,
        /// Where its daemon is reached.
        addr: SocketAddr,
    },
    /// Let nothing new move to a node.
    Cordon {
        /// Which.
        #[serde(with = "node")]
        node: NodeId,
    },
    /// Let things move to it again.
    Uncordon {
        /// Which.
        #[serde(with = "node")]
        node: NodeId,
    },
    /// Take a node out. Answer: [`Outcome::Gone`].
    Remove {
        /// Which.
        #[serde(with = "node")]
        node: NodeId,
        /// The [`super::Member::epoch`] of the one that is meant: numbers are given again.
        since: u64,
        /// Why.
        why: Why,
        /// Now.
        now_ms: u64,
    },
    /// A node goes. Answer: [`Outcome::Gone`].
    Leave {
        /// Which.
        #[serde(with = "node")]
        node: NodeId,
        /// As for [`Command::Remove`].
        since: u64,
        /// Now.
        now_ms: u64,
    },
    /// A node is dead, as far as anybody can tell: the epochs in which it was there are over. Answer:
    /// [`Outcome::Epoch`].
    DeclareDead {
        /// Which.
        #[serde(with = "node")]
        node: NodeId,
        /// Its [`super::Presence::since`].
        since: u64,
    },
    /// A node that was declared dead is not, and has ended all that it had to do with others. Answer:
    /// [`Outcome::Epoch`].
    ComeBack {
        /// Which.
        #[serde(with = "node")]
        node: NodeId,
        /// Its [`super::Presence::ended`].
        ended: u64,
    },
    /// A node has a new certificate. The one before stays good until it ends.
    Renewed {
        /// Which.
        #[serde(with = "node")]
        node: NodeId,
        /// As for [`Command::Remove`].
        since: u64,
        /// Fingerprint of the new one.
        fingerprint: Hash,
        /// The authority that made it.
        generation: u32,
        /// When it runs out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ends_ms: Option<u64>,
        /// Now.
        #[serde(default)]
        now_ms: u64,
    },
    /// A node has its new certificate: one that was made may get lost on the way.
    Adopted {
        /// Which.
        #[serde(with = "node")]
        node: NodeId,
        /// As for [`Command::Remove`].
        since: u64,
        /// Fingerprint of the certificate.
        fingerprint: Hash,
    },
    /// A node is of something else than it was: it has another kernel, say. Machines that join must be like that.
    Describe {
        /// Which.
        #[serde(with = "node")]
        node: NodeId,
        /// As for [`Command::Remove`].
        since: u64,
        /// What it is like.
        facts: Facts,
    },
    /// Believe a certificate no more.
    Revoke {
        /// Its fingerprint.
        fingerprint: Hash,
    },
    /// Have another authority, and believe the old one beside it. Answer: [`Outcome::Rotating`].
    /// It must have a key that no authority of the cluster had: what an authority of before made
    /// is not remembered as revoked.
    BeginRotation {
        /// Its number: one more than the [`super::Authority::generation`] of the one it follows.
        generation: u32,
        /// Its certificate, PEM.
        ca: String,
        /// Its key, sealed.
        #[serde(with = "base64")]
        sealed_key: Vec<u8>,
    },
    /// The same when nobody can open the key of the present one: also while another change is underway, which
    /// nobody can bring to its end. All that are believed stay so.
    ReplaceAuthority {
        /// As for [`Command::BeginRotation`].
        generation: u32,
        /// Its certificate, PEM.
        ca: String,
        /// Its key, sealed.
        #[serde(with = "base64")]
        sealed_key: Vec<u8>,
    },
    /// Believe the old authority no more. Every node must have a certificate of the new one.
    FinishRotation {
        /// What [`Outcome::Rotating`] said.
        generation: u32,
    },
    /// A node saw that another did what no honest node does. Who is accused by most is quarantined.
    Accuse {
        /// Who saw it.
        #[serde(with = "node")]
        by: NodeId,
        /// Who did it.
        #[serde(with = "node")]
        node: NodeId,
        /// Its [`super::Member::answers_since`].
        since: u64,
        /// What it did.
        offence: Offence,
    },
    /// Hold nothing against a node any more: it may come back. Answer: [`Outcome::Epoch`].
    Pardon {
        /// Which.
        #[serde(with = "node")]
        node: NodeId,
        /// As for [`Command::Accuse`].
        since: u64,
    },
    /// Change what services keep. Answer: [`Outcome::Kv`].
    Kv(kv::Command),
    /// Something about locks. Answer: [`Outcome::Lock`].
    Lock(lock::Command),
}

/// What came of a command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Outcome {
    /// It is as it should be.
    #[default]
    Done,
    /// A node is in.
    Joined {
        /// Which.
        #[serde(with = "node")]
        node: NodeId,
        /// The epoch that began with it.
        epoch: u64,
    },
    /// A node is out.
    Gone {
        /// Which.
        #[serde(with = "node")]
        node: NodeId,
        /// The epoch that began with that.
        epoch: u64,
    },
    /// The epoch that began with it.
    Epoch(u64),
    /// Two authorities are believed.
    Rotating {
        /// The number of the new one.
        generation: u32,
    },
    /// What became of what services keep.
    Kv(kv::Outcome),
    /// What became of a lock.
    Lock(lock::Outcome),
    /// Nothing was changed.
    Refused(Refusal),
}

/// Why a command is refused. Nothing was changed then, but that tokens which ended are dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Refusal {
    /// There is no cluster yet.
    #[error("there is no cluster yet")]
    NotFounded,
    /// There is one.
    #[error("there is a cluster already")]
    AlreadyFounded,
    /// Nobody made the token, or its secret is another.
    #[error("no such token")]
    TokenUnknown,
    /// It ended.
    #[error("the token has expired")]
    TokenExpired,
    /// As many joined with it as may, or it was dropped.
    #[error("the token is used up")]
    TokenUsedUp,
    /// Another token has that name.
    #[error("there is another token of that name")]
    TokenExists,
    /// It is used too often or for too long, or has a name that is none.
    #[error("a token is good for 30 days at most, and for 1 to 31 machines")]
    TokenInvalid,
    /// There are as many as may be.
    #[error("too many tokens: drop some")]
    TooManyTokens,
    /// The name is another node's.
    #[error("another node has that name")]
    NameTaken,
    /// It is none.
    #[error(
        "a name has 1 to 63 of a to z, 0 to 9, `-` and `.`, a letter or digit first and last, and is not the number of another node"
    )]
    NameInvalid,
    /// The address is another node's.
    #[error("another node has that address")]
    AddrTaken,
    /// Nobody can be reached there.
    #[error("no address of a node")]
    AddrInvalid,
    /// The certificate is another node's, or revoked.
    #[error("the certificate is another node's, or revoked")]
    FingerprintTaken,
    /// No number is left.
    #[error("the cluster has as many nodes as it can have")]
    ClusterFull,
    /// The number was given to somebody else meanwhile: make the certificate for the next.
    #[error("the number is not the next one: ask again")]
    NumberTaken,
    /// There is no such node, or it is another by now.
    #[error("no such node")]
    NoSuchNode,
    /// It was declared dead, or came back, meanwhile.
    #[error("the node was declared dead or came back meanwhile")]
    OtherPresence,
    /// This join was applied, and the node is gone.
    #[error("the node joined before and is gone")]
    JoinedBefore,
    /// A cluster has a node.
    #[error("the last node cannot go")]
    LastNode,
    /// The machine is too different from the nodes.
    #[error("the machine differs from {node}: {}", join(.differences))]
    FactsDiffer {
        /// From which.
        #[serde(with = "node")]
        node: NodeId,
        /// In what.
        differences: Vec<Difference>,
    },
    /// Facts that are too long.
    #[error("facts that are too long")]
    FactsInvalid,
    /// The certificate or key of an authority is empty or too long.
    #[error("the authority's certificate or key is empty or too long")]
    AuthorityInvalid,
    /// The authority that made the certificate is not believed, or not yet.
    #[error("the certificate is of an authority that is not the cluster's")]
    OtherAuthority,
    /// One change of the authority at a time.
    #[error("the authority is being changed already")]
    RotationUnderway,
    /// It is not being changed, or not to that one.
    #[error("the authority is not being changed to that one")]
    NoRotation,
    /// A node would be shut out.
    #[error("{node} has no certificate of the new authority yet")]
    NotRenewed {
        /// Which.
        #[serde(with = "node")]
        node: NodeId,
    },
    /// No more certificates can be remembered as revoked.
    #[error("too many certificates are revoked: change the authority")]
    TooManyRevoked,
    /// It has as many that are good as it may.
    #[error("the node has too many certificates that have not run out: wait until one has")]
    TooManyCertificates,
    /// A node says that it has another certificate than was made for it last.
    #[error("another certificate was made for the node since")]
    OtherCertificate,
    /// Most nodes accuse it.
    #[error("the node is quarantined: `ssictl node show` says what it is accused of")]
    Quarantined,
    /// Nobody accuses it.
    #[error("nothing is held against the node")]
    NotAccused,
    /// It is for another node to propose.
    #[error("the node may not propose that")]
    NotYours,
}

fn join(differences: &[Difference]) -> String {
    let all: Vec<String> = differences.iter().map(ToString::to_string).collect();
    all.join("; ")
}

impl Refusal {
    /// The word that stands for it, for programs. It never changes.
    pub const fn code(&self) -> &'static str {
        match self {
            Refusal::NotFounded => "not-founded",
            Refusal::AlreadyFounded => "already-founded",
            Refusal::TokenUnknown => "token-unknown",
            Refusal::TokenExpired => "token-expired",
            Refusal::TokenUsedUp => "token-used-up",
            Refusal::TokenExists => "token-exists",
            Refusal::TokenInvalid => "token-invalid",
            Refusal::TooManyTokens => "too-many-tokens",
            Refusal::NameTaken => "name-taken",
            Refusal::NameInvalid => "name-invalid",
            Refusal::AddrTaken => "addr-taken",
            Refusal::AddrInvalid => "addr-invalid",
            Refusal::FingerprintTaken => "fingerprint-taken",
            Refusal::ClusterFull => "cluster-full",
            Refusal::NumberTaken => "number-taken",
            Refusal::NoSuchNode => "no-such-node",
            Refusal::OtherPresence => "other-presence",
            Refusal::JoinedBefore => "joined-before",
            Refusal::LastNode => "last-node",
            Refusal::FactsDiffer { .. } => "facts-differ",
            Refusal::FactsInvalid => "facts-invalid",
            Refusal::AuthorityInvalid => "authority-invalid",
            Refusal::OtherAuthority => "other-authority",
            Refusal::RotationUnderway => "rotation-underway",
            Refusal::NoRotation => "no-rotation",
            Refusal::NotRenewed { .. } => "not-renewed",
            Refusal::TooManyRevoked => "too-many-revoked",
            Refusal::TooManyCertificates => "too-many-certificates",
            Refusal::OtherCertificate => "other-certificate",
            Refusal::Quarantined => "quarantined",
            Refusal::NotAccused => "not-accused",
            Refusal::NotYours => "not-yours",
        }
    }
}
