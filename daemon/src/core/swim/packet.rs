// SPDX-License-Identifier: MIT OR Apache-2.0

//! What members say to each other about who is alive: one message and what is piggybacked on it.
//!
//! ```text
//! packet  = version u8, kind u8, source life, its incarnation u16, destination life, [rest by kind]
//!           [, count u16, count * (life, incarnation u16, state u8)]
//! life    = node u16, epoch u64, turn u64
//! rest    = of a ping and its answer: number u8; of those by a third: life, number u8
//! ```
//!
//! Numbers are big-endian. An announcement and "you are down" carry nothing more. A packet is all of
//! its bytes: one byte more or less and it is refused.

use bytes::{Buf, BufMut};
use foca::{Header, Message, State};

/// Longest packet, in bytes: fits into the smallest link of IPv6 together with what protects it.
pub const MAX_PACKET: usize = 1_200;
/// First byte of every packet.
const VERSION: u8 = 1;
/// Bytes of a life.
const LIFE: usize = 18;
/// Bytes of what is said of one member.
const WORD: usize = LIFE + 3;
/// Bytes before what depends on the kind.
const FIXED: usize = 2 + LIFE + 2 + LIFE;
/// Most members one packet speaks of.
pub const MAX_WORDS: usize = (MAX_PACKET - FIXED - 2) / WORD;

/// What is said of one member.
pub type Word = foca::Member<Life>;

/// A node, and the epoch in which it joined the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// Its number.
    pub node: u16,
    /// When it joined. A node that comes back with a higher one is another member.
    pub epoch: u64,
}

/// A member that was called down and is not takes another turn: nobody can take back that the turn
/// before ended, and nobody has to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Life {
    /// Whose.
    pub member: Member,
    /// Which, from zero.
    pub turn: u64,
}

impl Life {
    /// The first one of `member`.
    pub fn first(member: Member) -> Self {
        Self { member, turn: 0 }
    }

    /// Its node.
    pub fn node(self) -> u16 {
        self.member.node
    }

    /// The next one of the same member.
    pub fn after(self) -> Self {
        Self {
            turn: self.turn.saturating_add(1),
            ..self
        }
    }
}

impl foca::Identity for Life {
    type Addr = u16;

    fn renew(&self) -> Option<Self> {
        Some(self.after())
    }

    fn addr(&self) -> u16 {
        self.member.node
    }

    fn win_addr_conflict(&self, other: &Self) -> bool {
        (self.member.epoch, self.turn) > (other.member.epoch, other.turn)
    }
}

/// Why bytes are no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// They end too soon.
    #[error("the packet ends too soon")]
    Short,
    /// There are more than there should be.
    #[error("the packet has more bytes than belong to it")]
    Long,
    /// Another version, or something else altogether.
    #[error("version {0} is not known")]
    Version(u8),
    /// A message that is not known.
    #[error("message {0} is not known")]
    Kind(u8),
    /// A state that is not known.
    #[error("state {0} is not known")]
    State(u8),
    /// There is no room for it.
    #[error("the packet is full")]
    Full,
}

/// One packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// From whom to whom, and the message.
    pub header: Header<Life>,
    /// What is said of members.
    pub words: Vec<Word>,
}

impl Packet {
    /// From its bytes.
    ///
    /// # Errors
    ///
    /// When they are not exactly one packet.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, Malformed> {
        if bytes.len() > MAX_PACKET {
            return Err(Malformed::Long);
        }
        let header = get_header(&mut bytes)?;
        let mut words = Vec::new();
        if carries_words(&header.message) {
            let count = bytes.try_get_u16().map_err(|_| Malformed::Short)?;
            if usize::from(count) * WORD != bytes.len() {
                return Err(Malformed::Short);
            }
            for _ in 0..count {
                words.push(get_word(&mut bytes)?);
            }
        }
        if bytes.is_empty() {
            Ok(Self { header, words })
        } else {
            Err(Malformed::Long)
        }
    }

    /// Its bytes.
    ///
    /// # Errors
    ///
    /// When they are more than [`MAX_PACKET`].
    pub fn encode(&self) -> Result<Vec<u8>, Malformed> {
        let mut bytes =
            Vec::with_capacity(FIXED + LIFE + 3 + self.words.len() * WORD).limit(MAX_PACKET);
        put_header(&self.header, &mut bytes)?;
        if carries_words(&self.header.message) {
            let count = u16::try_from(self.words.len()).map_err(|_| Malformed::Full)?;
            room(&bytes, 2)?;
            bytes.put_u16(count);
            for word in &self.words {
                put_word(word, &mut bytes)?;
            }
        }
        Ok(bytes.into_inner())
    }
}

/// The incarnation of the sender of `packet`.
pub fn incarnation(packet: &[u8]) -> Option<u16> {
    let mut rest = packet.get(2 + LIFE..)?;
    rest.try_get_u16().ok()
}

/// What [`foca`] reads and writes by.
#[derive(Clone, Copy, Debug)]
pub struct Wire;

impl foca::Codec<Life> for Wire {
    type Error = Malformed;

    fn encode_header(&mut self, header: &Header<Life>, buf: impl BufMut) -> Result<(), Malformed> {
        put_header(header, buf)
    }

    fn decode_header(&mut self, buf: impl Buf) -> Result<Header<Life>, Malformed> {
        get_header(buf)
    }

    fn encode_member(&mut self, member: &Word, buf: impl BufMut) -> Result<(), Malformed> {
        put_word(member, buf)
    }

    fn decode_member(&mut self, buf: impl Buf) -> Result<Word, Malformed> {
        get_word(buf)
    }
}

fn carries_words(message: &Message<Life>) -> bool {
    !matches!(message, Message::Announce | Message::TurnUndead)
}

fn room(buf: &impl BufMut, bytes: usize) -> Result<(), Malformed> {
    if buf.remaining_mut() < bytes {
        Err(Malformed::Full)
    } else {
        Ok(())
    }
}

fn there(buf: &impl Buf, bytes: usize) -> Result<(), Malformed> {
    if buf.remaining() < bytes {
        Err(Malformed::Short)
    } else {
        Ok(())
    }
}

fn put_life(life: Life, mut buf: impl BufMut) {
    buf.put_u16(life.member.node);
    buf.put_u64(life.member.epoch);
    buf.put_u64(life.turn);
}

/// The caller has looked that it is there.
fn get_life(mut buf: impl Buf) -> Life {
    Life {
        member: Member {
            node: buf.get_u16(),
            epoch: buf.get_u64(),
        },
        turn: buf.get_u64(),
    }
}

fn put_header(header: &Header<Life>, mut buf: impl BufMut) -> Result<(), Malformed> {
    let (kind, third, number) = match header.message {
        Message::Ping(number) => (1, None, Some(number)),
        Message::Ack(number) => (2, None, Some(number)),
        Message::PingReq {
            target,
            probe_number,
        } => (3, Some(target), Some(probe_number)),
        Message::IndirectPing {
            origin,
            probe_number,
        } => (4, Some(origin), Some(probe_number)),
        Message::IndirectAck {
            target,
            probe_number,
        } => (5, Some(target), Some(probe_number)),
        Message::ForwardedAck {
            origin,
            probe_number,
        } => (6, Some(origin), Some(probe_number)),
        Message::Announce => (7, None, None),
        Message::Feed => (8, None, None),
        Message::Gossip => (9, None, None),
        Message::TurnUndead => (10, None, None),
        Message::Broadcast => return Err(Malformed::Kind(11)),
    };
    room(&buf, FIXED + LIFE + 1)?;
    buf.put_u8(VERSION);
    buf.put_u8(kind);
    put_life(header.src, &mut buf);
    buf.put_u16(header.src_incarnation);
    put_life(header.dst, &mut buf);
    if let Some(third) = third {
        put_life(third, &mut buf);
    }
    if let Some(number) = number {
        buf.put_u8(number);
    }
    Ok(())
}

fn get_header(mut buf: impl Buf) -> Result<Header<Life>, Malformed> {
    there(&buf, FIXED)?;
    let version = buf.get_u8();
    if version != VERSION {
        return Err(Malformed::Version(version));
    }
    let kind = buf.get_u8();
    let src = get_life(&mut buf);
    let src_incarnation = buf.get_u16();
    let dst = get_life(&mut buf);
    let third = if (3..=6).contains(&kind) {
        there(&buf, LIFE)?;
        get_life(&mut buf)
    } else {
        src
    };
    let probe_number = if kind <= 6 {
        there(&buf, 1)?;
        buf.get_u8()
    } else {
        0
    };
    let message = match kind {
        1 => Message::Ping(probe_number),
        2 => Message::Ack(probe_number),
        3 => Message::PingReq {
            target: third,
            probe_number,
        },
        4 => Message::IndirectPing {
            origin: third,
            probe_number,
        },
        5 => Message::IndirectAck {
            target: third,
            probe_number,
        },
        6 => Message::ForwardedAck {
            origin: third,
            probe_number,
        },
        7 => Message::Announce,
        8 => Message::Feed,
        9 => Message::Gossip,
        10 => Message::TurnUndead,
        _ => return Err(Malformed::Kind(kind)),
    };
    Ok(Header {
        src,
        src_incarnation,
        dst,
        message,
    })
}

fn put_word(word: &Word, mut buf: impl BufMut) -> Result<(), Malformed> {
    room(&buf, WORD)?;
    put_life(*word.id(), &mut buf);
    buf.put_u16(word.incarnation());
    buf.put_u8(match word.state() {
        State::Alive => 1,
        State::Suspect => 2,
        State::Down => 3,
    });
    Ok(())
}

fn get_word(mut buf: impl Buf) -> Result<Word, Malformed> {
    there(&buf, WORD)?;
    let life = get_life(&mut buf);
    let incarnation = buf.get_u16();
    let state = match buf.get_u8() {
        1 => State::Alive,
        2 => State::Suspect,
        3 => State::Down,
        other => return Err(Malformed::State(other)),
    };
    Ok(Word::new(life, incarnation, state))
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn life() -> impl Strategy<Value = Life> {
        (any::<u16>(), any::<u64>(), any::<u64>()).prop_map(|(node, epoch, turn)| Life {
            member: Member { node, epoch },
            turn,
        })
    }

    /// Anything said of one from `life`.
    pub(in crate::core::swim) fn word(
        life: impl Strategy<Value = Life>,
        incarnation: impl Strategy<Value = u16>,
    ) -> impl Strategy<Value = Word> {
        let state = prop_oneof![Just(State::Alive), Just(State::Suspect), Just(State::Down)];
        (life, incarnation, state).prop_map(|(id, i, state)| Word::new(id, i, state))
    }

    /// Any message; others it is about are from `life`.
    pub(in crate::core::swim) fn message(
        life: impl Strategy<Value = Life>,
    ) -> impl Strategy<Value = Message<Life>> {
        (0..10, life, any::<u8>()).prop_map(|(kind, third, probe_number)| match kind {
            0 => Message::Ping(probe_number),
            1 => Message::Ack(probe_number),
            2 => Message::PingReq {
                target: third,
                probe_number,
            },
            3 => Message::IndirectPing {
                origin: third,
                probe_number,
            },
            4 => Message::IndirectAck {
                target: third,
                probe_number,
            },
            5 => Message::ForwardedAck {
                origin: third,
                probe_number,
            },
            6 => Message::Announce,
            7 => Message::Feed,
            8 => Message::Gossip,
            _ => Message::TurnUndead,
        })
    }

    fn packet() -> impl Strategy<Value = Packet> {
        let words = prop::collection::vec(word(life(), any::<u16>()), 0..=MAX_WORDS - 1);
        (life(), any::<u16>(), life(), message(life()), words).prop_map(
            |(src, src_incarnation, dst, message, mut words)| {
                if !carries_words(&message) {
                    words.clear();
                }
                Packet {
                    header: Header {
                        src,
                        src_incarnation,
                        dst,
                        message,
                    },
                    words,
                }
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(packet in packet()) {
            let bytes = packet.encode().unwrap();
            prop_assert!(bytes.len() <= MAX_PACKET);
            prop_assert_eq!(Packet::decode(&bytes), Ok(packet));
        }

        #[test]
        fn one_byte_less_or_more_is_refused(packet in packet(), byte: u8, cut: prop::sample::Index) {
            let mut bytes = packet.encode().unwrap();
            prop_assert!(Packet::decode(&bytes[..cut.index(bytes.len())]).is_err());
            bytes.push(byte);
            prop_assert!(Packet::decode(&bytes).is_err());
        }

        #[test]
        fn rubbish_does_no_harm(bytes: Vec<u8>) {
            let _ = Packet::decode(&bytes);
        }
    }

    #[test]
    fn a_packet_has_room_for_fifty_words() {
        const { assert!(MAX_WORDS >= 50) };
        let of = |node| Life::first(Member { node, epoch: 1 });
        let mut packet = Packet {
            header: Header {
                src: of(1),
                src_incarnation: 0,
                dst: of(2),
                message: Message::Gossip,
            },
            words: vec![Word::alive(of(3)); MAX_WORDS],
        };
        assert!(packet.encode().is_ok());
        packet.words.push(Word::alive(of(3)));
        assert_eq!(packet.encode(), Err(Malformed::Full));
    }

    /// The format. If this fails, do not change the test: nodes of two versions would not
    /// understand each other.
    #[test]
    fn version_one() {
        let of = |node, epoch, turn| Life {
            member: Member { node, epoch },
            turn,
        };
        let packet = Packet {
            header: Header {
                src: of(1, 2, 3),
                src_incarnation: 4,
                dst: of(5, 6, 7),
                message: Message::PingReq {
                    target: of(8, 9, 10),
                    probe_number: 11,
                },
            },
            words: vec![Word::new(of(12, 13, 14), 15, State::Suspect)],
        };
        #[rustfmt::skip]
        let bytes = [
            1, 3,
            0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 4,
            0, 5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 7,
            0, 8, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 10, 11,
            0, 1,
            0, 12, 0, 0, 0, 0, 0, 0, 0, 13, 0, 0, 0, 0, 0, 0, 0, 14, 0, 15, 2,
        ];
        assert_eq!(packet.encode().unwrap(), bytes);
    }
}
