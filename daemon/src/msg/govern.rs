// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is said about who is in the cluster: by its nodes to each other, and by a machine that
//! wants to become one.

use crate::core::parts::Part;
use crate::msg::Facts;

/// A part of a message of those who agree, see [`crate::agree::carrier`]: a [`Part`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Agree {
    /// What it has of the message.
    #[prost(bytes = "vec", tag = "1")]
    pub bytes: Vec<u8>,
    /// The same for all parts of a message.
    #[prost(uint64, tag = "2")]
    pub id: u64,
    /// Where it begins in the message.
    #[prost(uint64, tag = "3")]
    pub at: u64,
    /// Whether it is the last.
    #[prost(bool, tag = "4")]
    pub is_last: bool,
}

impl From<Part> for Agree {
    fn from(part: Part) -> Self {
        Self {
            bytes: part.bytes,
            id: part.id,
            at: part.at,
            is_last: part.is_last,
        }
    }
}

impl From<Agree> for Part {
    fn from(agree: Agree) -> Self {
        Self {
            id: agree.id,
            at: agree.at,
            bytes: agree.bytes,
            is_last: agree.is_last,
        }
    }
}

/// The answer to it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Agreed {
    /// The message; empty if others of the parts have yet to come.
    #[prost(bytes = "vec", tag = "1")]
    pub message: Vec<u8>,
}

/// First message on a connection of a machine that wants to join, in both directions.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Hello {
    /// [`crate::msg::VERSION`].
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// The sender's clock, in ns since 1970.
    #[prost(int64, tag = "2")]
    pub realtime_ns: i64,
}

/// Let this machine in: said by it, and passed on to a node that can make certificates.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Admit {
    /// The token, secret included.
    #[prost(string, tag = "1")]
    pub token: String,
    /// Request for a certificate, DER.
    #[prost(bytes = "vec", tag = "2")]
    pub request: Vec<u8>,
    /// The name it wants; may be empty.
    #[prost(string, tag = "3")]
    pub name: String,
    /// Where its daemon is reached.
    #[prost(string, tag = "4")]
    pub addr: String,
    /// What it is made of.
    #[prost(message, optional, tag = "6")]
    pub facts: Option<Facts>,
}

/// It is in.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Admitted {
    /// Its number.
    #[prost(uint32, tag = "1")]
    pub node: u32,
    /// The epoch that began with it.
    #[prost(uint64, tag = "2")]
    pub since: u64,
    /// What the cluster is known by for ever, 32 hexadecimal digits.
    #[prost(string, tag = "3")]
    pub cluster: String,
    /// How it proves that it is in.
    #[prost(message, optional, tag = "4")]
    pub certified: Option<Certified>,
    /// All nodes.
    #[prost(message, repeated, tag = "5")]
    pub members: Vec<Member>,
}

/// A node.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Member {
    /// Its number.
    #[prost(uint32, tag = "1")]
    pub node: u32,
    /// Its name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Where its daemon is reached.
    #[prost(string, tag = "3")]
    pub addr: String,
}

/// Make me another certificate.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Certify {
    /// Request for a certificate, DER.
    #[prost(bytes = "vec", tag = "1")]
    pub request: Vec<u8>,
}

/// A certificate.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Certified {
    /// PEM.
    #[prost(string, tag = "1")]
    pub certificate: String,
    /// Certificates of the authorities that are believed, PEM.
    #[prost(string, tag = "2")]
    pub authorities: String,
}

/// Keep this key, which opens that of the authority: you are to vote.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TakeSeal {
    /// The key.
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
}

/// Give this voter the key that opens that of the authority.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GiveSeal {}

/// Have another authority.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Rotate {}

/// Take a node out; said to the one that leads.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Retire {
    /// Which.
    #[prost(uint32, tag = "1")]
    pub node: u32,
    /// The epoch that began when it joined.
    #[prost(uint64, tag = "2")]
    pub since: u64,
    /// It leaves, and is not removed.
    #[prost(bool, tag = "3")]
    pub leaves: bool,
}
