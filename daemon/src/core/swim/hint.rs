// SPDX-License-Identifier: MIT OR Apache-2.0

//! What comes out: hints, packets, and why one was not taken.

use super::MAX_MEMBERS;
use super::packet::{Malformed, Member};
use crate::core::offence::Offence;

/// What a member seems to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seems {
    /// Alive. One that was listed just now is taken to be.
    Alive,
    /// Somebody does not hear it.
    Suspect,
    /// It did not show that it lives.
    Down,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send these bytes to this node. They may be lost.
    Send {
        /// To whom.
        to: u16,
        /// One packet.
        bytes: Vec<u8>,
    },
    /// Somebody seems to be something else than before.
    Event {
        /// Who.
        member: Member,
        /// What it seems to be now.
        seems: Seems,
    },
}

/// Why a packet was not taken. Nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It is no packet.
    #[error("node {from} sent what is no packet")]
    Malformed {
        /// Who sent it.
        from: u16,
        /// What is wrong with it.
        #[source]
        source: Malformed,
    },
    /// It says that another sent it.
    #[error("node {from} sent a packet in the name of node {says}")]
    Sender {
        /// Who sent it.
        from: u16,
        /// Who should have.
        says: u16,
    },
    /// It is for another node, or for another epoch or a turn to come of this one.
    #[error("node {0} sent a packet that is for another")]
    NotForUs(u16),
    /// It is from a node, or is about one, that is no member in that epoch.
    #[error("no member: node {} of epoch {}", .0.node, .0.epoch)]
    NoMember(Member),
    /// The sender could not have got into this state.
    #[error("node {from} sent a packet that does not fit")]
    Unfit {
        /// Who sent it.
        from: u16,
        /// Why.
        #[source]
        source: foca::Error,
    },
}

impl Refused {
    /// What the sender did that no honest node does, if this shows it. What is early or late shows nothing, nor
    /// does what another version may send.
    pub fn offence(&self) -> Option<Offence> {
        match self {
            Refused::Malformed {
                source: Malformed::Version(_),
                ..
            } => None,
            Refused::Malformed { .. } => Some(Offence::NoPacket),
            Refused::Sender { .. } => Some(Offence::AnotherName),
            Refused::NotForUs(_) | Refused::NoMember(_) | Refused::Unfit { .. } => None,
        }
    }
}

/// A cluster can have only [`MAX_MEMBERS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are {MAX_MEMBERS} members already")]
pub struct Full;
