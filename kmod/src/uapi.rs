// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The generic netlink family `ssi`: what ssid and the module say to each other.
//!
//! One message is a [`Cmd`] and a flat list of attributes. Every attribute has one number, one
//! kind and one meaning, whatever command carries it, so this file is the whole definition: the
//! module and the daemon both encode with [`Writer`] and decode with [`Attrs`].
//!
//! Attributes are laid out as netlink lays them out (`u16` length with header, `u16` type, value,
//! padding to 4 bytes), native endian: they never leave the machine.

use crate::id::NodeId;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The name the family is registered under.
pub const FAMILY: &str = "ssi";
/// The multicast group that carries the module's events.
pub const EVENTS: &str = "events";
/// Version of this protocol. ssid refuses a module that says another number.
pub const VERSION: u8 = 3;

/// The control device of the module: stubs become guests through it.
pub const DEVICE: &str = "/dev/ssi";

/// `ioctl(fd, BECOME, token)`: the caller, a stub spawned by ssid, becomes the guest-to-be of the
/// migration `token`. It never returns to the caller's own code. `_IO(0xb5, 1)`.
pub const BECOME: u32 = 0xb501;

/// Commands (ssid to module; the module answers with the same number) and events (module to ssid).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Cmd {
    /// First word of ssid: [`Attr::Version`], [`Attr::Node`]. Gives the module its node id and so
    /// its PID range. Repeating it with the same id is fine; another id is `EBUSY`.
    /// Answer: [`Attr::Version`], [`Attr::Wire`], [`Attr::Node`], [`Attr::Incarnation`]; the first two
    /// alone, and nothing else, when the version that was said is another than the module's.
    Hello = 1,
    /// Hand down a connected socket: [`Attr::Peer`], [`Attr::Class`], [`Attr::Fd`].
    /// Replaces the socket of that peer and class, if any, without losing a frame.
    Link = 2,
    /// Shut the sockets of [`Attr::Peer`] (all classes). Nothing is declared dead.
    Unlink = 3,
    /// [`Attr::Peer`] is dead: end its guests, end the deputies of guests it hosted, forget the
    /// session. It is told so when it links again.
    PeerDead = 4,
    /// Move the process [`Attr::Pid`], which runs on this node, to [`Attr::Peer`], where a stub
    /// (or the deputy) waits under [`Attr::Token`]. [`Attr::Files`]: the [`FileId`]s of mapped
    /// files whose content was proven equal there. Answer at once: empty, or a refusal
    /// ([`Attr::Reason`], [`Attr::Detail`], [`Attr::Text`]); then an event [`Cmd::Migrated`].
    Migrate = 5,
    /// Would [`Attr::Pid`] move? Answer as for [`Cmd::Migrate`]; nothing is touched.
    Why = 6,
    /// Processes of the cluster known here: answer [`Attr::Procs`], up to 512 of [`ProcRecord`]
    /// with numbers above [`Attr::Pid`] (absent: from the first). An empty answer ends the list.
    Ps = 7,
    /// Drop the migration [`Attr::Token`] that this node was preparing to receive: its stub ends.
    Cancel = 8,
    /// Counters of the module: answer [`Attr::Stats`].
    Stat = 9,
    /// Event: the socket of [`Attr::Peer`] and [`Attr::Class`] broke ([`Attr::Errno`]); connect again.
    LinkDown = 32,
    /// Event: migration [`Attr::Token`] of [`Attr::Pid`] ended at the source: [`Attr::Errno`] 0
    /// and [`Attr::Report`], or an errno with [`Attr::Reason`] and [`Attr::Text`].
    Migrated = 33,
    /// Event: the memory of [`Attr::Pid`], moved under [`Attr::Token`], is complete at its new
    /// node: [`Attr::Report`] final.
    Filled = 34,
    /// Event: a socket of [`Attr::Peer`] and [`Attr::Class`] nears its record limit: connect again. Said again
    /// until that is done; at the limit the socket is shut.
    Renew = 35,
}

impl Cmd {
    /// The command with this number, if there is one.
    pub fn from_u8(n: u8) -> Option<Self> {
        Some(match n {
            1 => Cmd::Hello,
            2 => Cmd::Link,
            3 => Cmd::Unlink,
            4 => Cmd::PeerDead,
            5 => Cmd::Migrate,
            6 => Cmd::Why,
            7 => Cmd::Ps,
            8 => Cmd::Cancel,
            9 => Cmd::Stat,
            32 => Cmd::LinkDown,
            33 => Cmd::Migrated,
            34 => Cmd::Filled,
            35 => Cmd::Renew,
            _ => return None,
        })
    }
}

/// Attribute numbers. The kind after each name says how the value is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Attr {
    /// `u32`: [`VERSION`].
    Version = 1,
    /// `u32`: id of this node, 1..=31.
    Node = 2,
    /// `u64`: random number of this load of the module.
    Incarnation = 3,
    /// `u32`: node id of a peer.
    Peer = 4,
    /// `u32`: link class, see [`crate::wire::Class`].
    Class = 5,
    /// `u32`: a file descriptor of the caller.
    Fd = 6,
    /// `u32`: a process id, cluster-wide.
    Pid = 7,
    /// `u64`: names one migration; chosen at random by the ssid that asks for it.
    Token = 8,
    /// Array of [`FileId`].
    Files = 9,
    /// `u32`: a [`Reason`].
    Reason = 10,
    /// `u64`: the file descriptor, address or thread the reason is about.
    Detail = 11,
    /// Text, UTF-8 without a final zero: path or name the reason is about.
    Text = 12,
    /// Array of [`ProcRecord`].
    Procs = 13,
    /// `u32`: an errno (positive), 0 for success.
    Errno = 14,
    /// One [`Report`].
    Report = 15,
    /// Array of `u64` little endian counters, see [`STATS`].
    Stats = 16,
    /// `u32`: [`crate::wire::VERSION`], of what the module says to others.
    Wire = 17,
}

/// Names of the counters in [`Attr::Stats`], in their order.
pub const STATS: [&str; 13] = [
    "deputies",
    "guests",
    "migrations_out",
    "migrations_in",
    "migrations_failed",
    "pages_requested",
    "pages_pushed",
    "pages_received",
    "forwarded_operations",
    "frames_sent",
    "frames_received",
    "tasks_inside",
    "links_renewed",
];

/// Why a process does not move. Numbers and names are stable; users and scripts see the names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Reason {
    /// It can move.
    None = 0,
    /// No such process in the cluster.
    NoProcess = 1,
    /// It is older than the module, or a number outside this cluster's ranges.
    TooOld = 2,
    /// A kernel thread.
    KernelThread = 3,
    /// Already moving.
    Moving = 4,
    /// It is there already.
    AlreadyThere = 5,
    /// The target is not linked.
    NoLink = 6,
    /// It has children on the node where it runs, which is not its home.
    Children = 7,
    /// Its memory is shared with another process (vfork, `CLONE_VM`).
    SharedMemory = 8,
    /// It is a child of `vfork` that has not called exec yet.
    VforkChild = 9,
    /// A shared mapping that others could see.
    SharedMapping = 10,
    /// A mapping of a device or of special memory.
    SpecialMapping = 11,
    /// Pages pinned for direct I/O, RDMA or io_uring.
    Pinned = 12,
    /// An open file of a kind that cannot be forwarded.
    FileKind = 13,
    /// A file lock, lease or asynchronous notification.
    FileLock = 14,
    /// Traced by a debugger.
    Traced = 15,
    /// A seccomp filter.
    Seccomp = 16,
    /// Its own PID, mount, user, time or other name space.
    Namespace = 17,
    /// A 32-bit program.
    Compat = 18,
    /// A POSIX timer or alarm that cannot move yet.
    Timer = 19,
    /// User shadow stack, or another processor feature not carried.
    ProcessorFeature = 20,
    /// Frozen by its cgroup, or stopped by a signal.
    Frozen = 21,
    /// It did not reach the edge of user mode in time (uninterruptible wait).
    Unreachable = 22,
    /// System V semaphores' undo list, or shared memory segment.
    SysvIpc = 23,
    /// Asynchronous I/O or io_uring.
    AsyncIo = 24,
    /// More threads, mappings, files or bytes than an image holds.
    TooLarge = 25,
    /// Real-time or deadline scheduling.
    Scheduling = 26,
    /// It is ending.
    Ending = 27,
    /// A directory or device of its that the target does not have.
    MissingPath = 28,
    /// The target refused: no room, or it is not ready.
    TargetRefused = 29,
    /// The target could not be reached, or did not answer in time.
    TargetLost = 30,
    /// Files opened or shared in a way that is not carried (files shared with another process).
    SharedFiles = 31,
    /// The target does not host processes of that user, or none at all.
    NotHosted = 32,
    /// The node, or the target, hears of no majority of the cluster.
    NoMajority = 33,
}

impl Reason {
    /// All reasons, for tables and tests.
    pub const ALL: [Reason; 34] = [
        Reason::None,
        Reason::NoProcess,
        Reason::TooOld,
        Reason::KernelThread,
        Reason::Moving,
        Reason::AlreadyThere,
        Reason::NoLink,
        Reason::Children,
        Reason::SharedMemory,
        Reason::VforkChild,
        Reason::SharedMapping,
        Reason::SpecialMapping,
        Reason::Pinned,
        Reason::FileKind,
        Reason::FileLock,
        Reason::Traced,
        Reason::Seccomp,
        Reason::Namespace,
        Reason::Compat,
        Reason::Timer,
        Reason::ProcessorFeature,
        Reason::Frozen,
        Reason::Unreachable,
        Reason::SysvIpc,
        Reason::AsyncIo,
        Reason::TooLarge,
        Reason::Scheduling,
        Reason::Ending,
        Reason::MissingPath,
        Reason::TargetRefused,
        Reason::TargetLost,
        Reason::SharedFiles,
        Reason::NotHosted,
        Reason::NoMajority,
    ];

    /// The reason with this number, if there is one.
    pub fn from_u32(n: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(n).ok()?).copied()
    }

    /// The stable code shown to users, for example `file-kind`.
    pub fn code(self) -> &'static str {
        match self {
            Reason::None => "none",
            Reason::NoProcess => "no-process",
            Reason::TooOld => "too-old",
            Reason::KernelThread => "kernel-thread",
            Reason::Moving => "moving",
            Reason::AlreadyThere => "already-there",
            Reason::NoLink => "no-link",
            Reason::Children => "children",
            Reason::SharedMemory => "shared-memory",
            Reason::VforkChild => "vfork-child",
            Reason::SharedMapping => "shared-mapping",
            Reason::SpecialMapping => "special-mapping",
            Reason::Pinned => "pinned",
            Reason::FileKind => "file-kind",
            Reason::FileLock => "file-lock",
            Reason::Traced => "traced",
            Reason::Seccomp => "seccomp",
            Reason::Namespace => "namespace",
            Reason::Compat => "compat",
            Reason::Timer => "timer",
            Reason::ProcessorFeature => "processor-feature",
            Reason::Frozen => "frozen",
            Reason::Unreachable => "unreachable",
            Reason::SysvIpc => "sysv-ipc",
            Reason::AsyncIo => "async-io",
            Reason::TooLarge => "too-large",
            Reason::Scheduling => "scheduling",
            Reason::Ending => "ending",
            Reason::MissingPath => "missing-path",
            Reason::TargetRefused => "target-refused",
            Reason::TargetLost => "target-lost",
            Reason::SharedFiles => "shared-files",
            Reason::NotHosted => "not-hosted",
            Reason::NoMajority => "no-majority",
        }
    }
}

/// A mapped file, named as `/proc/PID/maps` names it.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct FileId {
    /// Major number of the file system's device.
    pub major: U32,
    /// Minor number of the file system's device.
    pub minor: U32,
    /// Inode number.
    pub ino: U64,
}

/// Where a process of the cluster is, as this node knows it.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct ProcRecord {
    /// Process id.
    pub pid: U32,
    /// Node it was created on.
    pub home: U16,
    /// Node that runs it.
    pub node: U16,
    /// One of the `STATE_` numbers.
    pub state: U16,
    /// Threads.
    pub threads: U16,
    /// Operations on its files carried out at home since it left.
    pub forwarded: U64,
    /// Pages not yet fetched from where it came from.
    pub missing_pages: U64,
    /// Name of its leader, zero padded.
    pub comm: [u8; 16],
}

/// [`ProcRecord::state`]: its home is here, it runs elsewhere.
pub const STATE_AWAY: u16 = 1;
/// [`ProcRecord::state`]: its home is elsewhere, it runs here.
pub const STATE_GUEST: u16 = 2;
/// [`ProcRecord::state`]: on its way from or to this node.
pub const STATE_MOVING: u16 = 3;

/// What a migration took. All times in microseconds from the start of the freeze.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct Report {
    /// Until every thread stood still.
    pub frozen_us: U64,
    /// Until the image was handed to the link.
    pub sent_us: U64,
    /// Until the target said it is ready.
    pub ready_us: U64,
    /// Until the commit was acknowledged: the downtime as the source sees it.
    pub committed_us: U64,
    /// Until the last page was at the target (0 while it is not).
    pub filled_us: U64,
    /// Bytes of the image without later pages.
    pub image_bytes: U64,
    /// Bytes of pages sent on request.
    pub fetched_bytes: U64,
    /// Bytes of pages sent unasked.
    pub pushed_bytes: U64,
}

/// The message does not hold together; nothing was taken from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// An attribute is cut short, or its length is wrong for its kind.
    Malformed,
    /// A needed attribute is missing.
    Missing(Attr),
    /// No room left in the buffer.
    Full,
}

/// Length of an attribute's header.
const HEADER_BYTES: usize = 4;
/// Largest value of one attribute that [`Writer`] writes.
pub const MAX_VALUE_BYTES: usize = 32 * 1024;

/// Writes attributes into a buffer.
#[derive(Debug)]
pub struct Writer<'a> {
    buf: &'a mut [u8],
    len: usize,
}

impl<'a> Writer<'a> {
    /// Starts at the beginning of `buf`.
    pub fn new(buf: &'a mut [u8]) -> Self {
        Self { buf, len: 0 }
    }

    /// Appends one attribute.
    ///
    /// # Errors
    /// [`Error::Full`] when the buffer has no room or the value is longer than
    /// [`MAX_VALUE_BYTES`]; what was written before stays.
    pub fn bytes(&mut self, attr: Attr, value: &[u8]) -> Result<(), Error> {
        if value.len() > MAX_VALUE_BYTES {
            return Err(Error::Full);
        }
        let total = HEADER_BYTES + value.len();
        let padded = (total + 3) & !3;
        let room = self
            .buf
            .get_mut(self.len..self.len + padded)
            .ok_or(Error::Full)?;
        room[..2].copy_from_slice(&(total as u16).to_ne_bytes());
        room[2..4].copy_from_slice(&(attr as u16).to_ne_bytes());
        room[4..total].copy_from_slice(value);
        room[total..].fill(0);
        self.len += padded;
        Ok(())
    }

    /// Appends a `u32` attribute.
    ///
    /// # Errors
    /// As [`Writer::bytes`].
    pub fn u32(&mut self, attr: Attr, value: u32) -> Result<(), Error> {
        self.bytes(attr, &value.to_ne_bytes())
    }

    /// Appends a `u64` attribute.
    ///
    /// # Errors
    /// As [`Writer::bytes`].
    pub fn u64(&mut self, attr: Attr, value: u64) -> Result<(), Error> {
        self.bytes(attr, &value.to_ne_bytes())
    }

    /// What was written.
    pub fn finish(self) -> &'a [u8] {
        &self.buf[..self.len]
    }
}

/// Reads the attributes of one message. Unknown attributes are passed over.
#[derive(Clone, Copy, Debug)]
pub struct Attrs<'a>(&'a [u8]);

impl<'a> Attrs<'a> {
    /// Checks that `payload` is a well-formed list of attributes.
    ///
    /// # Errors
    /// [`Error::Malformed`] when an attribute is cut short.
    pub fn parse(payload: &'a [u8]) -> Result<Self, Error> {
        let mut rest = payload;
        while !rest.is_empty() {
            let (_, _, next) = Self::split(rest).ok_or(Error::Malformed)?;
            rest = next;
        }
        Ok(Self(payload))
    }

    /// First attribute of `b`: its type, its value, what follows.
    fn split(b: &'a [u8]) -> Option<(u16, &'a [u8], &'a [u8])> {
        let len = usize::from(u16::from_ne_bytes(b.get(..2)?.try_into().ok()?));
        // The two high bits are netlink's own flags (nested, byte order).
        let kind = u16::from_ne_bytes(b.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = b.get(HEADER_BYTES..len)?;
        let rest = b.get((len + 3) & !3..).unwrap_or(&[]);
        Some((kind, value, rest))
    }

    /// The value of `attr`, if present; the first if it is there twice.
    pub fn get(&self, attr: Attr) -> Option<&'a [u8]> {
        let mut rest = self.0;
        while let Some((kind, value, next)) = Self::split(rest) {
            if kind == attr as u16 {
                return Some(value);
            }
            rest = next;
        }
        None
    }

    /// The value of `attr`.
    ///
    /// # Errors
    /// [`Error::Missing`] when it is not there.
    pub fn bytes(&self, attr: Attr) -> Result<&'a [u8], Error> {
        self.get(attr).ok_or(Error::Missing(attr))
    }

    /// The `u32` value of `attr`.
    ///
    /// # Errors
    /// [`Error::Missing`], or [`Error::Malformed`] when it has another length.
    pub fn u32(&self, attr: Attr) -> Result<u32, Error> {
        Ok(u32::from_ne_bytes(
            self.bytes(attr)?.try_into().map_err(|_| Error::Malformed)?,
        ))
    }

    /// The `u64` value of `attr`.
    ///
    /// # Errors
    /// [`Error::Missing`], or [`Error::Malformed`] when it has another length.
    pub fn u64(&self, attr: Attr) -> Result<u64, Error> {
        Ok(u64::from_ne_bytes(
            self.bytes(attr)?.try_into().map_err(|_| Error::Malformed)?,
        ))
    }

    /// The node id in `attr`.
    ///
    /// # Errors
    /// As [`Attrs::u32`]; [`Error::Malformed`] also for a number that is no node id.
    pub fn node(&self, attr: Attr) -> Result<NodeId, Error> {
        u16::try_from(self.u32(attr)?)
            .ok()
            .and_then(NodeId::new)
            .ok_or(Error::Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back_as_written() {
        let mut buf = [0; 64];
        let mut w = Writer::new(&mut buf);
        w.u32(Attr::Pid, 163_841).unwrap();
        w.bytes(Attr::Text, b"pipe").unwrap();
        w.bytes(Attr::Files, b"x").unwrap();
        w.u64(Attr::Token, 7).unwrap();
        let a = Attrs::parse(w.finish()).unwrap();
        assert_eq!(a.u32(Attr::Pid), Ok(163_841));
        assert_eq!(a.bytes(Attr::Text), Ok(&b"pipe"[..]));
        assert_eq!(a.bytes(Attr::Files), Ok(&b"x"[..]));
        assert_eq!(a.u64(Attr::Token), Ok(7));
        assert_eq!(a.u32(Attr::Node), Err(Error::Missing(Attr::Node)));
        assert_eq!(a.u32(Attr::Token), Err(Error::Malformed));
    }

    #[test]
    fn bytes_are_pinned() {
        let mut buf = [0xff; 16];
        let mut w = Writer::new(&mut buf);
        w.bytes(Attr::Text, b"n").unwrap();
        assert_eq!(w.finish(), &[5, 0, 12, 0, b'n', 0, 0, 0]);
    }

    #[test]
    fn a_message_cut_at_any_byte_is_refused_or_shorter() {
        let mut buf = [0; 64];
        let mut w = Writer::new(&mut buf);
        w.u32(Attr::Pid, 1).unwrap();
        w.u64(Attr::Token, 2).unwrap();
        let whole = w.finish();
        for n in 0..whole.len() {
            if let Ok(a) = Attrs::parse(&whole[..n]) {
                assert!(a.u64(Attr::Token).is_err());
            }
        }
    }

    #[test]
    fn nothing_is_written_past_the_end() {
        let mut buf = [0; 10];
        let mut w = Writer::new(&mut buf);
        w.u32(Attr::Pid, 1).unwrap();
        assert_eq!(w.u32(Attr::Node, 1), Err(Error::Full));
        assert_eq!(w.finish().len(), 8);
    }

    #[test]
    fn reasons_have_distinct_codes() {
        for (i, a) in Reason::ALL.iter().enumerate() {
            assert_eq!(*a as usize, i);
            for b in &Reason::ALL[i + 1..] {
                assert_ne!(a.code(), b.code());
            }
        }
    }
}
