// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the daemons of two nodes say to each other: protobuf messages, each after its length.
//!
//! Fields are only ever added; numbers are never used again. Everything here comes from a peer, so
//! every value is checked where it becomes a type of ours.

mod failed;
pub mod govern;
mod moving;

use prost::Message;
use ssi::id::NodeId;

use crate::core::facts;
use crate::core::hlc::Stamp;

pub use failed::{Failed, FailedKind};
pub use moving::{
    Cancel, File, Host, List, MAX_FILES, MAX_PROCESSES, Migrate, Migrated, Movable, Place, Prepare,
    Prepared, Process, Processes, Progress,
};

/// Version of this protocol. Two daemons talk only if they say the same.
pub const VERSION: u32 = 10;
/// Longest message.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// Bytes of the length before a message.
const LENGTH_BYTES: usize = 4;

/// What arrived is no message.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Longer than [`MAX_MESSAGE_BYTES`].
    #[error("a message of {0} bytes is too long")]
    TooLong(usize),
    /// No protobuf.
    #[error("not a message")]
    Decode(#[source] prost::DecodeError),
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Purpose {
    /// Nothing: the field was missing.
    Unknown = 0,
    /// Messages between the daemons.
    Control = 1,
    /// A link between the modules, class Control.
    LinkControl = 2,
    /// A link between the modules, class Memory.
    LinkMemory = 3,
    /// A link between the modules, class Bulk.
    LinkBulk = 4,
}

/// First message on every connection, in both directions on a control connection and from the
/// connecting side on a link.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Preface {
    /// [`VERSION`].
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// Node id of the sender; its certificate must agree.
    #[prost(uint32, tag = "2")]
    pub node: u32,
    /// What the connection is for.
    #[prost(enumeration = "Purpose", tag = "3")]
    pub purpose: i32,
    /// Random number of this run of the sender's daemon.
    #[prost(uint64, tag = "4")]
    pub instance: u64,
    /// Of a link: how many of its class the sender has begun. Names it in [`Relink`].
    #[prost(uint64, tag = "5")]
    pub serial: u64,
    /// Of a control connection: what must be the same on both sides.
    #[prost(message, optional, tag = "6")]
    pub facts: Option<Facts>,
    /// Of a link: the epoch since which the sender is present.
    #[prost(uint64, tag = "7")]
    pub own_since: u64,
    /// Of a link: the epoch since which the receiver is present, as the sender knows.
    #[prost(uint64, tag = "8")]
    pub your_since: u64,
}

/// What a node is made of: [`facts::Facts`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Facts {
    /// Its kernel.
    #[prost(string, tag = "1")]
    pub kernel: String,
    /// Version of the protocol between the modules.
    #[prost(uint32, tag = "2")]
    pub wire: u32,
    /// What its processor can do.
    #[prost(string, repeated, tag = "3")]
    pub features: Vec<String>,
    /// What of its processor's state is saved.
    #[prost(uint64, tag = "4")]
    pub xfeatures: u64,
    /// After how long it gives others up, in milliseconds.
    #[prost(uint64, tag = "5")]
    pub dead_after_ms: u64,
}

impl From<&facts::Facts> for Facts {
    fn from(f: &facts::Facts) -> Self {
        Self {
            kernel: f.kernel.clone(),
            wire: f.wire,
            features: f.features.iter().cloned().collect(),
            xfeatures: f.xfeatures,
            dead_after_ms: f.dead_after_ms,
        }
    }
}

impl From<Facts> for facts::Facts {
    fn from(f: Facts) -> Self {
        Self {
            kernel: f.kernel,
            wire: f.wire,
            features: f.features.into_iter().collect(),
            xfeatures: f.xfeatures,
            dead_after_ms: f.dead_after_ms,
        }
    }
}

/// A message on a control connection.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Envelope {
    /// What it says.
    #[prost(oneof = "Body", tags = "1, 2, 3, 4, 5")]
    pub body: Option<Body>,
    /// When it was said: [`crate::core::hlc::Stamp::bits`].
    #[prost(fixed64, tag = "15")]
    pub stamp: u64,
}

/// The kinds of [`Envelope`].
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Body {
    /// I am here.
    #[prost(message, tag = "1")]
    Heartbeat(Heartbeat),
    /// Connect that link again.
    #[prost(message, tag = "2")]
    Relink(Relink),
    /// A request.
    #[prost(message, tag = "3")]
    Call(Call),
    /// An answer.
    #[prost(message, tag = "4")]
    Reply(Reply),
    /// Who seems to be there.
    #[prost(message, tag = "5")]
    Hint(Hint),
}

/// Who seems to be there.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Hint {
    /// A packet of [`crate::core::swim`].
    #[prost(bytes = "vec", tag = "1")]
    pub packet: Vec<u8>,
}

/// Sign of life.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Heartbeat {}

/// The link of this class broke or nears its limit; said by the side that does not connect.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Relink {
    /// A [`ssi::wire::Class`].
    #[prost(uint32, tag = "1")]
    pub class: u32,
    /// Number of the last link of this class that reached the sender.
    #[prost(uint64, tag = "2")]
    pub serial: u64,
}

/// A request.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Call {
    /// Chosen by the caller, repeated in the answers.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// What is asked for.
    #[prost(
        oneof = "Request",
        tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16"
    )]
    pub request: Option<Request>,
}

/// The kinds of [`Call`].
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Request {
    /// Move a process that may run there.
    #[prost(message, tag = "2")]
    Migrate(Migrate),
    /// Make ready to receive a process.
    #[prost(message, tag = "3")]
    Prepare(Prepare),
    /// Do not receive it after all.
    #[prost(message, tag = "4")]
    Cancel(Cancel),
    /// List processes.
    #[prost(message, tag = "5")]
    List(List),
    /// Would it move?
    #[prost(message, tag = "6")]
    Why(Migrate),
    /// What do you see?
    #[prost(message, tag = "7")]
    Look(Look),
    /// Would you host it?
    #[prost(message, tag = "8")]
    Host(Host),
    /// Something about what is agreed on.
    #[prost(message, tag = "9")]
    Agree(govern::Agree),
    /// A machine wants to join.
    #[prost(message, tag = "10")]
    Admit(govern::Admit),
    /// I need another certificate.
    #[prost(message, tag = "11")]
    Certify(govern::Certify),
    /// You are to vote.
    #[prost(message, tag = "12")]
    TakeSeal(govern::TakeSeal),
    /// A node goes.
    #[prost(message, tag = "13")]
    Retire(govern::Retire),
    /// The cluster needs another authority.
    #[prost(message, tag = "14")]
    Rotate(govern::Rotate),
    /// What happened lately?
    #[prost(message, tag = "15")]
    Recent(Recent),
    /// I vote, and have lost what you have for that.
    #[prost(message, tag = "16")]
    GiveSeal(govern::GiveSeal),
}

/// Say what you think of the others, and how late it is.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Look {}

/// An answer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Reply {
    /// As in the call.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// What is answered. Only [`Answer::Progress`] is followed by another.
    #[prost(oneof = "Answer", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14")]
    pub answer: Option<Answer>,
}

/// The kinds of [`Reply`].
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Answer {
    /// How far a migration is.
    #[prost(message, tag = "2")]
    Progress(Progress),
    /// A process moved.
    #[prost(message, tag = "3")]
    Migrated(Migrated),
    /// Ready to receive.
    #[prost(message, tag = "4")]
    Prepared(Prepared),
    /// Done.
    #[prost(message, tag = "5")]
    Done(Done),
    /// Processes.
    #[prost(message, tag = "6")]
    Processes(Processes),
    /// It would move.
    #[prost(message, tag = "7")]
    Movable(Movable),
    /// It did not happen.
    #[prost(message, tag = "8")]
    Failed(Failed),
    /// What a node sees.
    #[prost(message, tag = "9")]
    Seen(Seen),
    /// Of those who agree.
    #[prost(message, tag = "10")]
    Agreed(govern::Agreed),
    /// A machine is in.
    #[prost(message, tag = "11")]
    Admitted(govern::Admitted),
    /// A certificate.
    #[prost(message, tag = "12")]
    Certified(govern::Certified),
    /// What happened.
    #[prost(message, tag = "13")]
    Recent(Records),
    /// What voters have.
    #[prost(message, tag = "14")]
    Seal(govern::TakeSeal),
}

/// What happened lately?
#[derive(Clone, PartialEq, prost::Message)]
pub struct Recent {
    /// Only what is later than this [`crate::core::hlc::Stamp`].
    #[prost(fixed64, tag = "1")]
    pub after: u64,
}

/// The last records of a node's audit log.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Records {
    /// In the order of their times.
    #[prost(message, repeated, tag = "1")]
    pub records: Vec<Record>,
}

/// A record of the audit log.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Record {
    /// Its [`crate::core::hlc::Stamp`].
    #[prost(fixed64, tag = "1")]
    pub stamp: u64,
    /// All of it.
    #[prost(string, tag = "2")]
    pub json: String,
}

/// What a node thinks of the others.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Seen {
    /// Each.
    #[prost(message, repeated, tag = "1")]
    pub nodes: Vec<SeenNode>,
    /// Its clock, in ns since 1970.
    #[prost(int64, tag = "2")]
    pub realtime_ns: i64,
}

/// What a node thinks of another.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SeenNode {
    /// Which.
    #[prost(uint32, tag = "1")]
    pub node: u32,
    /// The word users see, at most 16 bytes.
    #[prost(string, tag = "2")]
    pub state: String,
}

/// Done, with nothing to say.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Done {}

impl From<Request> for Envelope {
    /// The call number is given when it is sent.
    fn from(request: Request) -> Self {
        Body::Call(Call {
            id: 0,
            request: Some(request),
        })
        .into()
    }
}

impl From<Body> for Envelope {
    fn from(body: Body) -> Self {
        Self::new(body, Stamp::default())
    }
}

impl Envelope {
    /// Of something that is said at `at`.
    pub fn new(body: Body, at: Stamp) -> Self {
        Self {
            body: Some(body),
            stamp: at.bits(),
        }
    }
}

/// The node with this number, if it is one.
pub fn node(n: u32) -> Option<NodeId> {
    NodeId::new(u16::try_from(n).ok()?)
}

/// Appends a message and its length.
///
/// # Errors
/// [`Error::TooLong`]; nothing was appended.
pub fn encode(message: &impl Message, out: &mut Vec<u8>) -> Result<(), Error> {
    let length = message.encoded_len();
    match u32::try_from(length) {
        Ok(n) if length <= MAX_MESSAGE_BYTES => out.extend_from_slice(&n.to_be_bytes()),
        _ => return Err(Error::TooLong(length)),
    }
    out.extend_from_slice(&message.encode_to_vec());
    Ok(())
}

/// Takes the first message out of what has arrived; `None` when it is not whole yet.
///
/// # Errors
/// [`Error`]; the connection is of no use any more.
pub fn decode<M: Message + Default>(arrived: &mut Vec<u8>) -> Result<Option<M>, Error> {
    let Some(length) = arrived.first_chunk::<LENGTH_BYTES>() else {
        return Ok(None);
    };
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    if length > MAX_MESSAGE_BYTES {
        return Err(Error::TooLong(length));
    }
    let Some(body) = arrived.get(LENGTH_BYTES..LENGTH_BYTES + length) else {
        return Ok(None);
    };
    let message = M::decode(body).map_err(Error::Decode)?;
    arrived.drain(..LENGTH_BYTES + length);
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn preface_bytes_are_pinned() {
        let p = Preface {
            version: 1,
            node: 3,
            purpose: Purpose::LinkMemory as i32,
            instance: 5,
            serial: 6,
            own_since: 7,
            your_since: 8,
            ..Preface::default()
        };
        let mut out = Vec::new();
        encode(&p, &mut out).unwrap();
        assert_eq!(
            out,
            [0, 0, 0, 14, 8, 1, 16, 3, 24, 3, 32, 5, 40, 6, 56, 7, 64, 8]
        );
        assert_eq!(decode::<Preface>(&mut out).unwrap(), Some(p));
        assert!(out.is_empty());
    }

    #[test]
    fn a_message_in_pieces_waits_for_its_end() {
        let mut whole = Vec::new();
        let m = Envelope::from(Body::Relink(Relink {
            class: 1,
            serial: 900,
        }));
        encode(&m, &mut whole).unwrap();
        whole.extend_from_slice(&[0, 0]);
        let mut arrived = Vec::new();
        let mut seen = Vec::new();
        for b in whole {
            arrived.push(b);
            seen.extend(decode::<Envelope>(&mut arrived).unwrap());
        }
        assert_eq!(seen, [m]);
        assert_eq!(arrived, [0, 0]);
    }

    #[test]
    fn too_long_is_refused_before_it_arrives() {
        let mut arrived = vec![0xff, 0, 0, 0];
        assert!(matches!(
            decode::<Envelope>(&mut arrived),
            Err(Error::TooLong(_))
        ));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut arrived = bytes.clone();
            while let Ok(Some(m)) = decode::<Envelope>(&mut arrived) {
                if let Some(Body::Reply(Reply { answer: Some(Answer::Failed(f)), .. })) = m.body {
                    let _ = crate::failure::Failure::from(f);
                }
            }
        }
    }
}
