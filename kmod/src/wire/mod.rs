// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! What the modules of two nodes say to each other: frames on a link.
//!
//! A link is three sessions, one per [`Class`]; each session rides on one stream socket at a
//! time. A frame is a [`Header`] and `len` bytes of payload. Numbered frames carry `seq`, counted
//! from 1 for the life of the session, and every frame carries `ack`, the last number its sender
//! has taken. A sender keeps a numbered frame until it is acknowledged. When a socket breaks and
//! another takes its place, both sides say [`Kind::Hello`] first, which names the last number each
//! has taken, and what is missing is sent again: no frame is lost, doubled or reordered while both
//! nodes live. A session ends when either node declares the other dead or restarts; Hello says so.
//!
//! All integers are little endian. Lengths are checked against the `MAX_` numbers before anything
//! is allocated.

pub mod file;
pub mod image;
pub mod task;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Version of the frames. Two modules link only if they say the same.
pub const VERSION: u16 = 2;

/// Largest payload of one frame.
pub const MAX_PAYLOAD_BYTES: usize = 256 * 1024;

/// What a session carries. Each class of each peer has a socket of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Class {
    /// Commands, images, signals, forwarded files.
    Control = 0,
    /// Requests for pages and pages that answer them.
    Memory = 1,
    /// Pages sent ahead: nothing that anybody waits for stands behind them.
    Bulk = 2,
}

impl Class {
    /// Number of classes.
    pub const COUNT: usize = 3;
    /// All classes in the order of their numbers.
    pub const ALL: [Class; Self::COUNT] = [Class::Control, Class::Memory, Class::Bulk];

    /// The class with this number, if there is one.
    pub fn from_u32(n: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(n).ok()?).copied()
    }
}

/// Start of every frame.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Header {
    /// Bytes of payload after the header.
    pub len: U32,
    /// A [`Kind`].
    pub kind: U16,
    /// [`VERSION`].
    pub version: U16,
    /// Number of this frame in its session, 0 for frames that are not numbered.
    pub seq: U64,
    /// Last number taken by the sender of this frame.
    pub ack: U64,
}

/// Bytes of a [`Header`].
pub const HEADER_BYTES: usize = 24;
const _: () = assert!(size_of::<Header>() == HEADER_BYTES);

/// First frame in each direction on a fresh socket, not numbered.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Hello {
    /// Node id of the sender.
    pub node: U16,
    /// Node id of whom it believes to speak with.
    pub peer: U16,
    /// A [`Class`].
    pub class: U32,
    /// Random number of this load of the sender's module: another one is another life.
    pub incarnation: U64,
    /// How often the sender has declared the receiver dead since it loaded.
    pub deaths: U64,
    /// The receiver's incarnation that the sender knows, 0 if none.
    pub known_incarnation: U64,
    /// The receiver's `deaths` that the sender knows. With the three before it, it names a session.
    pub known_deaths: U64,
}
const _: () = assert!(size_of::<Hello>() == 40);

/// Kinds of frames. Numbers are never used again for something else; 0 is invalid so that a zeroed
/// header means nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Kind {
    /// [`Hello`].
    Hello = 1,
    /// Nothing but the header's `ack`; not numbered.
    Ack = 2,
    /// [`task::Begin`] and image records: a process arrives.
    Image = 16,
    /// More image records of the same process.
    ImageMore = 17,
    /// [`task::Verdict`]: the image stands, waiting for the commit.
    Ready = 18,
    /// [`task::Verdict`]: the guest is the process from now on.
    Commit = 19,
    /// [`task::Verdict`]: the commit was taken, the guest runs; or it never had it.
    Committed = 20,
    /// [`task::Verdict`]: forget this migration.
    Abort = 21,
    /// [`task::Ended`]: a guest has ended.
    Ended = 22,
    /// [`task::Signal`]: a signal for a guest.
    Signal = 23,
    /// [`task::Stopped`]: a guest stopped or goes on.
    Stopped = 24,
    /// [`task::Verdict`]: the guest has moved on; its home learns where.
    Moved = 25,
    /// [`task::Verdict`]: end this guest, its deputy is gone.
    Kill = 26,
    /// [`task::FileOp`]: do this to a file at home.
    FileOp = 32,
    /// [`task::FileReply`]: what came of it.
    FileReply = 33,
    /// [`task::FileCancel`]: the caller has a signal, give the operation up if it still waits.
    FileCancel = 34,
    /// [`task::PageRequest`]: send these pages.
    PageRequest = 48,
    /// [`task::Pages`]: pages, asked for or not.
    Pages = 49,
    /// [`task::Verdict`]: every page was sent. Comes in both classes that carry pages, behind what was sent in each; `arg` is
    /// the same in both, and another each time that everything is sent.
    PagesEnd = 50,
    /// [`task::Verdict`]: every page has arrived, or none is needed any more; the source may
    /// forget them.
    PagesTaken = 51,
    /// [`task::Verdict`]: send every page now, without being asked for each.
    PagesAll = 52,
}

impl Kind {
    /// The kind with this number, if there is one.
    pub fn from_u16(n: u16) -> Option<Self> {
        Some(match n {
            1 => Kind::Hello,
            2 => Kind::Ack,
            16 => Kind::Image,
            17 => Kind::ImageMore,
            18 => Kind::Ready,
            19 => Kind::Commit,
            20 => Kind::Committed,
            21 => Kind::Abort,
            22 => Kind::Ended,
            23 => Kind::Signal,
            24 => Kind::Stopped,
            25 => Kind::Moved,
            26 => Kind::Kill,
            32 => Kind::FileOp,
            33 => Kind::FileReply,
            34 => Kind::FileCancel,
            48 => Kind::PageRequest,
            49 => Kind::Pages,
            50 => Kind::PagesEnd,
            51 => Kind::PagesTaken,
            52 => Kind::PagesAll,
            _ => return None,
        })
    }

    /// Whether frames of this kind are numbered and so survive a broken socket.
    pub fn numbered(self) -> bool {
        !matches!(self, Kind::Hello | Kind::Ack)
    }
}

/// A frame does not hold together. The socket it came on is shut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// Another [`VERSION`].
    Version,
    /// An unknown kind, or one that has no place here.
    Kind,
    /// Longer than it may be, or cut short.
    Length,
    /// A number that means nothing (a node, a class, a count).
    Value,
    /// A gap in the numbers.
    Sequence,
}

impl Header {
    /// A header for a payload of `len` bytes.
    pub fn new(kind: Kind, len: u32, seq: u64, ack: u64) -> Self {
        Self {
            len: U32::new(len),
            kind: U16::new(kind as u16),
            version: U16::new(VERSION),
            seq: U64::new(seq),
            ack: U64::new(ack),
        }
    }

    /// Checks a received header; returns its kind and the bytes of payload that follow.
    ///
    /// # Errors
    /// [`Error::Version`], [`Error::Kind`], [`Error::Length`], [`Error::Sequence`].
    pub fn check(&self) -> Result<(Kind, usize), Error> {
        if self.version.get() != VERSION {
            return Err(Error::Version);
        }
        let kind = Kind::from_u16(self.kind.get()).ok_or(Error::Kind)?;
        let len = self.len.get() as usize;
        if len > MAX_PAYLOAD_BYTES {
            return Err(Error::Length);
        }
        if kind.numbered() != (self.seq.get() != 0) {
            return Err(Error::Sequence);
        }
        Ok((kind, len))
    }
}

/// The fixed part `T` at the start of `payload` and what follows it.
///
/// # Errors
/// [`Error::Length`] when `payload` is shorter than `T`.
pub fn split<T>(payload: &[u8]) -> Result<(&T, &[u8]), Error>
where
    T: FromBytes + zerocopy::KnownLayout + zerocopy::Immutable + zerocopy::Unaligned,
{
    T::ref_from_prefix(payload).map_err(|_| Error::Length)
}

/// The bytes of a fixed part.
pub fn bytes<T: IntoBytes + zerocopy::Immutable>(t: &T) -> &[u8] {
    t.as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_bytes_are_pinned() {
        let h = Header::new(Kind::Signal, 0x0102, 3, 4);
        assert_eq!(
            bytes(&h),
            &[2, 1, 0, 0, 23, 0, 2, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(h.check(), Ok((Kind::Signal, 0x0102)));
    }

    #[test]
    fn a_zeroed_header_means_nothing() {
        let (h, _) = split::<Header>(&[0; HEADER_BYTES]).unwrap();
        assert!(h.check().is_err());
    }

    #[test]
    fn kinds_come_back_from_their_numbers() {
        for n in 0..=u16::MAX {
            if let Some(k) = Kind::from_u16(n) {
                assert_eq!(k as u16, n);
            }
        }
    }

    #[test]
    fn too_long_a_payload_is_refused() {
        let h = Header::new(Kind::Pages, MAX_PAYLOAD_BYTES as u32 + 1, 1, 0);
        assert_eq!(h.check(), Err(Error::Length));
    }
}
