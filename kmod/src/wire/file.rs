// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Forwarded files: the records of an image that say what was open, and the frames that carry
//! operations to where a file is open.
//!
//! An image's files are a [`Head`], then `files` records of a [`File`] and its path, padded to 8
//! bytes, then `fds` of [`Fd`] in ascending order. Descriptors that were duplicates name the same
//! record.
//!
//! ```text
//!   guest's node                         home of the file
//!     FileOp     Op, data        ->
//!                                <-      FileReply   Reply, data
//!     FileCancel Cancel          ->      gives up if it still waits; the reply tells what was done
//!                                <-      FileReply   Reply with req 0: a file is ready (poll)
//! ```
//!
//! A `req` is chosen by the guest's node and is its own; it is answered once, or never if it is 0.

use super::Error;
use crate::id::NodeId;
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::FromBytes;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Version of the records and of the operations.
pub const VERSION: u32 = 1;
/// Most different open files of a process.
pub const MAX_FILES: usize = 8192;
/// Most descriptors of a process.
pub const MAX_FDS: usize = 16_384;
/// Largest descriptor.
pub const MAX_FD: u32 = 65_535;
/// Longest path or name.
pub const MAX_PATH_BYTES: usize = 4095;
/// Most bytes read or written by one operation.
pub const MAX_DATA_BYTES: usize = 64 * 1024;
/// Largest argument of an ioctl.
pub const MAX_IOCTL_BYTES: usize = 64;
/// Most files handed over by one operation.
pub const MAX_HANDED: usize = 4096;
/// Requests are smaller than this.
pub const REQ_END: u64 = 1 << 56;
/// Bits of a file's number below the node that gave it.
const ID_BITS: u32 = 48;

/// The node that gave `id` to a file.
pub fn node_of_id(id: u64) -> Option<NodeId> {
    NodeId::new(u16::try_from(id >> ID_BITS).ok()?)
}

/// The `n`th number that `node` gives to a file.
pub fn id_of(node: NodeId, n: u64) -> u64 {
    (u64::from(node.get()) << ID_BITS) | (n & ((1 << ID_BITS) - 1))
}

/// Bits of `open(2)` that the kernel reports for a file and that are carried.
pub mod flag {
    #![allow(missing_docs)]
    pub const ACCMODE: u32 = 0o3;
    pub const APPEND: u32 = 0o2000;
    pub const NONBLOCK: u32 = 0o4000;
    pub const DIRECTORY: u32 = 0o200_000;
    pub const NOFOLLOW: u32 = 0o400_000;
    pub const PATH: u32 = 0o10_000_000;
    /// Those that `fcntl(F_SETFL)` changes and that are kept equal at both ends.
    pub const SETTABLE: u32 = APPEND | NONBLOCK;
    /// All that may be in a record: the above, DSYNC, DIRECT, LARGEFILE, NOATIME, SYNC.
    pub const CARRIED: u32 = ACCMODE
        | SETTABLE
        | DIRECTORY
        | NOFOLLOW
        | PATH
        | 0o10_000
        | 0o40_000
        | 0o100_000
        | 0o1_000_000
        | 0o4_000_000;
}

/// What can be done with a file: bits of [`File::can`].
pub mod can {
    #![allow(missing_docs)]
    pub const READ: u32 = 1;
    pub const WRITE: u32 = 2;
    pub const SEEK: u32 = 4;
    pub const PREAD: u32 = 8;
    pub const PWRITE: u32 = 16;
    pub const ALL: u32 = READ | WRITE | SEEK | PREAD | PWRITE;
}

/// Start of an image's files.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Head {
    /// [`VERSION`].
    pub version: U32,
    /// Number of [`File`] records, at most [`MAX_FILES`].
    pub files: U32,
    /// Number of [`Fd`] records, at most [`MAX_FDS`].
    pub fds: U32,
    /// Zero.
    pub reserved: U32,
}
const _: () = assert!(size_of::<Head>() == 16);

/// How a file comes to be open on the other side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Way {
    /// Operations travel to where it is open.
    Forward = 1,
    /// The same path is opened there.
    Reopen = 2,
}

/// What a file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum FileKind {
    /// A regular file.
    Regular = 1,
    /// A pipe or FIFO.
    Fifo = 2,
    /// A terminal.
    Tty = 3,
    /// A directory.
    Directory = 4,
    /// A device that every node has, like /dev/null.
    Device = 5,
}

impl FileKind {
    /// The kind with this number, if there is one.
    pub fn from_u16(n: u16) -> Option<Self> {
        Some(match n {
            1 => FileKind::Regular,
            2 => FileKind::Fifo,
            3 => FileKind::Tty,
            4 => FileKind::Directory,
            5 => FileKind::Device,
            _ => return None,
        })
    }

    /// How files of this kind move.
    pub fn way(self) -> Way {
        match self {
            FileKind::Regular | FileKind::Fifo | FileKind::Tty => Way::Forward,
            FileKind::Directory | FileKind::Device => Way::Reopen,
        }
    }

    /// The file type bits of its mode.
    pub fn type_bits(self) -> u32 {
        match self {
            FileKind::Regular => S_IFREG,
            FileKind::Fifo => S_IFIFO,
            FileKind::Tty | FileKind::Device => S_IFCHR,
            FileKind::Directory => S_IFDIR,
        }
    }
}

const S_IFMT: u32 = 0o170_000;
const S_IFIFO: u32 = 0o010_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFBLK: u32 = 0o060_000;
const S_IFREG: u32 = 0o100_000;
const S_IFSOCK: u32 = 0o140_000;

/// What decides how a file can move.
#[derive(Clone, Copy, Default, Debug)]
pub struct Look {
    /// Type and permissions.
    pub mode: u32,
    /// Device, for a device file.
    pub rdev: (u32, u32),
    /// The kernel's own: eventfd, epoll and their like.
    pub anonymous: bool,
    /// On a mount that no path leads to, and no pipe: memfd and its like.
    pub internal: bool,
    /// Its name is gone.
    pub unlinked: bool,
    /// Opened with `O_PATH`.
    pub path_only: bool,
    /// Reading or writing it goes by the ways the kernel has for itself.
    pub plain_io: bool,
}

impl Look {
    /// What it is.
    ///
    /// # Errors
    /// In words, what it is when it cannot move.
    pub fn kind(&self) -> Result<FileKind, &'static str> {
        let (major, minor) = self.rdev;
        if self.anonymous {
            return Err("anonymous");
        }
        let forward = |kind| {
            if self.path_only {
                Err("O_PATH")
            } else if !self.plain_io {
                Err("special file")
            } else {
                Ok(kind)
            }
        };
        match self.mode & S_IFMT {
            S_IFREG if self.internal => Err("memory"),
            S_IFREG => forward(FileKind::Regular),
            S_IFIFO => forward(FileKind::Fifo),
            S_IFDIR if self.unlinked => Err("deleted directory"),
            S_IFDIR if self.internal => Err("directory"),
            S_IFDIR => Ok(FileKind::Directory),
            S_IFCHR => match (major, minor) {
                // null, zero, full, random, urandom
                (1, 3 | 5 | 7 | 8 | 9) if !self.unlinked => Ok(FileKind::Device),
                (5, 2) | (128..=135, _) => Err("pty master"),
                (4 | 5 | 136..=143, _) => forward(FileKind::Tty),
                _ => Err("character device"),
            },
            S_IFBLK => Err("block device"),
            S_IFSOCK => Err("socket"),
            _ => Err("unknown"),
        }
    }
}

/// One open file; its path or name follows.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct File {
    /// Its number in the table of `home`, 0 for one to be opened again.
    pub id: U64,
    /// Position, for one to be opened again.
    pub pos: U64,
    /// Node where it is open.
    pub home: U16,
    /// A [`FileKind`].
    pub kind: U16,
    /// Bits of [`can`].
    pub can: U16,
    /// Bytes of the path or name that follows.
    pub path_bytes: U16,
    /// Bits of [`flag`].
    pub flags: U32,
    /// Type and permissions.
    pub mode: U32,
    /// Device, for a device file: major number.
    pub rdev_major: U32,
    /// Device, for a device file: minor number.
    pub rdev_minor: U32,
    /// Owner.
    pub uid: U32,
    /// Group.
    pub gid: U32,
}
const _: () = assert!(size_of::<File>() == 48);

impl File {
    /// What it is.
    pub fn file_kind(&self) -> Option<FileKind> {
        FileKind::from_u16(self.kind.get())
    }

    fn check(&self, path: &[u8]) -> Result<(), Error> {
        let kind = self.file_kind().ok_or(Error::Value)?;
        let sound = NodeId::new(self.home.get()).is_some()
            && u32::from(self.can.get()) & !can::ALL == 0
            && self.flags.get() & !flag::CARRIED == 0
            && self.mode.get() & !0o7777 == kind.type_bits()
            && self.rdev_major.get() < 1 << 12
            && self.rdev_minor.get() < 1 << 20
            && path.len() <= MAX_PATH_BYTES
            && !path.contains(&0)
            && match kind.way() {
                Way::Forward => node_of_id(self.id.get()).is_some() && !path.is_empty(),
                Way::Reopen => self.id.get() == 0 && path.first() == Some(&b'/'),
            };
        if sound {
            Ok(())
        } else {
            Err(Error::Value)
        }
    }
}

/// One descriptor.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Fd {
    /// Its number.
    pub fd: U32,
    /// Place of its file among the records.
    pub file: U16,
    /// [`Fd::CLOEXEC`] or 0.
    pub flags: U16,
}
const _: () = assert!(size_of::<Fd>() == 8);

impl Fd {
    /// In [`Fd::flags`]: closed by exec.
    pub const CLOEXEC: u16 = 1;
}

/// Bytes of a [`File`] record with a path of `path` bytes.
pub const fn file_bytes(path: usize) -> usize {
    size_of::<File>() + ((path + 7) & !7)
}

/// The files of an image, found sound as a whole.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    files: &'a [u8],
    fds: &'a [Fd],
}

impl<'a> Files<'a> {
    /// Checks all records.
    ///
    /// # Errors
    /// [`Error::Version`]; [`Error::Length`] unless the bytes are exactly what the head says;
    /// [`Error::Value`] for a number that means nothing, descriptors out of order, or one without
    /// a file.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let (head, body) = super::split::<Head>(bytes)?;
        if head.version.get() != VERSION {
            return Err(Error::Version);
        }
        let (files, fds) = (head.files.get() as usize, head.fds.get() as usize);
        if files > MAX_FILES || fds > MAX_FDS {
            return Err(Error::Value);
        }
        let mut rest = body;
        for _ in 0..files {
            let (f, path, next) = Self::take(rest)?;
            f.check(path)?;
            rest = next;
        }
        let all = body.get(..body.len() - rest.len()).ok_or(Error::Length)?;
        let fds = match <[Fd]>::ref_from_prefix_with_elems(rest, fds) {
            Ok((v, [])) => v,
            _ => return Err(Error::Length),
        };
        let mut next = 0;
        for d in fds {
            let n = d.fd.get();
            if n < next
                || n > MAX_FD
                || usize::from(d.file.get()) >= files
                || d.flags.get() & !Fd::CLOEXEC != 0
            {
                return Err(Error::Value);
            }
            next = n + 1;
        }
        Ok(Self { files: all, fds })
    }

    fn take(bytes: &'a [u8]) -> Result<(&'a File, &'a [u8], &'a [u8]), Error> {
        let (f, rest) = super::split::<File>(bytes)?;
        let n = usize::from(f.path_bytes.get());
        let path = rest.get(..n).ok_or(Error::Length)?;
        Ok((f, path, rest.get((n + 7) & !7..).ok_or(Error::Length)?))
    }

    /// The files with their paths, in order.
    pub fn files(&self) -> impl Iterator<Item = (&'a File, &'a [u8])> {
        let mut rest = self.files;
        core::iter::from_fn(move || {
            let (f, path, next) = Self::take(rest).ok()?;
            rest = next;
            Some((f, path))
        })
    }

    /// The descriptors, ascending.
    pub fn fds(&self) -> &'a [Fd] {
        self.fds
    }
}

/// What to do with a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum What {
    /// Read `len` bytes at `offset`. Reply: the data.
    Read = 1,
    /// Write the data at `offset`. Reply: how many bytes.
    Write = 2,
    /// Which of the events `arg` hold now? Reply: those that do. With [`Op::NOTIFY`], also a reply
    /// with `req` 0 as soon as one of them comes.
    Poll = 3,
    /// `ioctl` number `arg`; the data is what its pointer points to, `offset` its plain argument.
    /// Reply: what is written there.
    Ioctl = 4,
    /// `lseek` to `offset` from `arg`. Reply: the new position.
    Seek = 5,
    /// What `stat` tells. Reply: [`Attr`].
    Getattr = 6,
    /// `fsync` from `offset` to `arg`; with [`Op::DATASYNC`], `fdatasync`.
    Fsync = 7,
    /// Change attributes: [`SetAttr`].
    Setattr = 8,
    /// `fallocate` of `arg` bytes at `offset`, in the mode `len`.
    Fallocate = 9,
    /// It is closed here. No reply.
    Close = 10,
    /// The files whose numbers are the data are wanted on node `arg` too. Reply: a new number for
    /// each.
    Hand = 11,
    /// The numbers got by [`What::Hand`] will not be used. No reply.
    Unhand = 12,
}

impl What {
    /// The operation with this number, if there is one.
    pub fn from_u16(n: u16) -> Option<Self> {
        Some(match n {
            1 => What::Read,
            2 => What::Write,
            3 => What::Poll,
            4 => What::Ioctl,
            5 => What::Seek,
            6 => What::Getattr,
            7 => What::Fsync,
            8 => What::Setattr,
            9 => What::Fallocate,
            10 => What::Close,
            11 => What::Hand,
            12 => What::Unhand,
            _ => return None,
        })
    }

    /// Whether a reply follows.
    pub fn is_answered(self) -> bool {
        !matches!(self, What::Close | What::Unhand)
    }
}

/// Start of [`super::Kind::FileOp`]; data follows.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Op {
    /// Names the operation, below [`REQ_END`].
    pub req: U64,
    /// The file.
    pub file: U64,
    /// Process that does it.
    pub pid: U32,
    /// Thread that does it.
    pub tid: U32,
    /// A [`What`].
    pub what: U16,
    /// Bits of [`Op::NOTIFY`] and so on.
    pub how: U16,
    /// The file's flags where the operation comes from, bits of [`flag::SETTABLE`].
    pub flags: U32,
    /// Those of them that were changed there.
    pub changed: U32,
    /// See [`What`].
    pub len: U32,
    /// See [`What`]; [`Op::CURRENT`] is the file's own position.
    pub offset: I64,
    /// See [`What`].
    pub arg: U64,
}
const _: () = assert!(size_of::<Op>() == 56);

impl Op {
    /// In [`Op::offset`]: the file's own position.
    pub const CURRENT: i64 = -1;
    /// In [`Op::how`]: tell when it is ready.
    pub const NOTIFY: u16 = 1;
    /// In [`Op::how`]: only the data.
    pub const DATASYNC: u16 = 2;
    /// In [`Op::how`]: as if the file were opened with `O_APPEND`.
    pub const APPEND: u16 = 4;
    /// In [`Op::how`]: as with `O_DSYNC`.
    pub const DSYNC: u16 = 8;
    /// In [`Op::how`]: as with `O_SYNC`.
    pub const SYNC: u16 = 16;
    /// In [`Op::how`]: the caller blocks or ignores SIGTTIN.
    pub const NO_TTIN: u16 = 32;
    /// In [`Op::how`]: the caller blocks or ignores SIGTTOU.
    pub const NO_TTOU: u16 = 64;

    /// An operation without numbers of its own.
    pub fn new(what: What, file: u64) -> Self {
        Self {
            req: U64::new(0),
            file: U64::new(file),
            pid: U32::new(0),
            tid: U32::new(0),
            what: U16::new(what as u16),
            how: U16::new(0),
            flags: U32::new(0),
            changed: U32::new(0),
            len: U32::new(0),
            offset: I64::new(Self::CURRENT),
            arg: U64::new(0),
        }
    }
}

/// Takes the frame of an operation apart.
///
/// # Errors
/// [`Error::Length`] when data is missing, too much, or more than the operation takes;
/// [`Error::Value`].
pub fn op(payload: &[u8]) -> Result<(&Op, What, &[u8]), Error> {
    let (o, data) = super::split::<Op>(payload)?;
    let what = What::from_u16(o.what.get()).ok_or(Error::Value)?;
    if o.req.get() >= REQ_END || (o.req.get() == 0) == what.is_answered() {
        return Err(Error::Value);
    }
    let len = o.len.get() as usize;
    let room = match what {
        What::Read if len > MAX_DATA_BYTES => return Err(Error::Length),
        What::Write if len == data.len() && len <= MAX_DATA_BYTES => len,
        What::Ioctl => {
            let i =
                ioctl(u32::try_from(o.arg.get()).map_err(|_| Error::Value)?).ok_or(Error::Value)?;
            usize::from(i.input)
        }
        What::Setattr => size_of::<SetAttr>(),
        What::Hand | What::Unhand if data.len() % 8 == 0 && data.len() / 8 <= MAX_HANDED => {
            data.len()
        }
        What::Write | What::Hand | What::Unhand => return Err(Error::Length),
        _ => 0,
    };
    if data.len() != room {
        return Err(Error::Length);
    }
    if what == What::Hand
        && u16::try_from(o.arg.get())
            .ok()
            .and_then(NodeId::new)
            .is_none()
    {
        return Err(Error::Value);
    }
    if o.offset.get() < Op::CURRENT && !matches!(what, What::Seek | What::Ioctl) {
        return Err(Error::Value);
    }
    Ok((o, what, data))
}

/// The file numbers in the data of a hand-over.
pub fn ids(data: &[u8]) -> &[U64] {
    <[U64]>::ref_from_bytes(data).unwrap_or(&[])
}

/// Start of [`super::Kind::FileReply`]; data follows.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Reply {
    /// The operation, 0 for news about a file.
    pub req: U64,
    /// The file, for news.
    pub file: U64,
    /// What came of it; negative: an errno. For news, the events that hold.
    pub result: I64,
    /// The file's flags at home, bits of [`flag::SETTABLE`].
    pub flags: U32,
    /// A signal that the operation raises in its caller (SIGXFSZ), 0 for none.
    pub signal: U32,
}
const _: () = assert!(size_of::<Reply>() == 32);

/// Takes the frame of a reply apart.
///
/// # Errors
/// [`Error::Length`] when there is more data than any operation brings; [`Error::Value`].
pub fn reply(payload: &[u8]) -> Result<(&Reply, &[u8]), Error> {
    let (r, data) = super::split::<Reply>(payload)?;
    if data.len() > MAX_DATA_BYTES {
        return Err(Error::Length);
    }
    if r.req.get() >= REQ_END || r.result.get() < -4095 {
        return Err(Error::Value);
    }
    Ok((r, data))
}

/// [`super::Kind::FileCancel`].
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Cancel {
    /// The operation.
    pub req: U64,
}

/// What `stat` tells; struct ssi_attr.
#[derive(
    Clone,
    Copy,
    Default,
    Debug,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Attr {
    pub ino: U64,
    pub size: U64,
    pub blocks: U64,
    pub attributes: U64,
    pub attributes_mask: U64,
    /// Access, change of content, change of attributes, birth: seconds.
    pub sec: [I64; 4],
    /// The same: nanoseconds.
    pub nsec: [U32; 4],
    pub dev_major: U32,
    pub dev_minor: U32,
    pub rdev_major: U32,
    pub rdev_minor: U32,
    pub mode: U32,
    pub nlink: U32,
    pub uid: U32,
    pub gid: U32,
    pub blksize: U32,
    /// Which of these mean something, as in `statx`.
    pub mask: U32,
}
const _: () = assert!(size_of::<Attr>() == 128);

/// Attributes to be changed; struct ssi_setattr.
#[derive(
    Clone,
    Copy,
    Default,
    Debug,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
#[allow(missing_docs)]
pub struct SetAttr {
    pub size: U64,
    /// Access, change of content: seconds.
    pub sec: [I64; 2],
    /// The same: nanoseconds.
    pub nsec: [U32; 2],
    /// Which are changed: bits of [`SetAttr::SIZE`] and so on.
    pub valid: U32,
    pub mode: U32,
    pub uid: U32,
    pub gid: U32,
}
const _: () = assert!(size_of::<SetAttr>() == 48);

impl SetAttr {
    /// In [`SetAttr::valid`].
    pub const SIZE: u32 = 1;
    /// In [`SetAttr::valid`].
    pub const MODE: u32 = 2;
    /// In [`SetAttr::valid`].
    pub const UID: u32 = 4;
    /// In [`SetAttr::valid`].
    pub const GID: u32 = 8;
    /// In [`SetAttr::valid`]: now, unless [`SetAttr::ATIME_SET`].
    pub const ATIME: u32 = 16;
    /// In [`SetAttr::valid`]: now, unless [`SetAttr::MTIME_SET`].
    pub const MTIME: u32 = 32;
    /// In [`SetAttr::valid`].
    pub const ATIME_SET: u32 = 64;
    /// In [`SetAttr::valid`].
    pub const MTIME_SET: u32 = 128;
    /// All of them.
    pub const ALL: u32 = 255;
}

/// An ioctl that is forwarded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ioctl {
    /// Bytes read from where its argument points.
    pub input: u16,
    /// Bytes written there.
    pub output: u16,
    /// Its argument is a plain number.
    pub plain: bool,
    /// It only asks, and anybody who has the file may.
    pub query: bool,
    /// It may wait.
    pub waits: bool,
}

/// The ioctls of terminals and `FIONREAD`. The number of an ioctl does not tell its sizes.
pub fn ioctl(cmd: u32) -> Option<Ioctl> {
    const TERMIOS: u16 = 36;
    const TERMIOS2: u16 = 44;
    const TERMIO: u16 = 18;
    let none = Ioctl {
        input: 0,
        output: 0,
        plain: false,
        query: false,
        waits: false,
    };
    let get = |output| Ioctl { output, ..none };
    let set = |input| Ioctl { input, ..none };
    let plain = Ioctl {
        plain: true,
        ..none
    };
    Some(match cmd {
        // TCGETS, TCSETS, TCSETSW, TCSETSF
        0x5401 => Ioctl {
            query: true,
            ..get(TERMIOS)
        },
        0x5402 => set(TERMIOS),
        0x5403 | 0x5404 => Ioctl {
            waits: true,
            ..set(TERMIOS)
        },
        // TCGETA, TCSETA, TCSETAW, TCSETAF
        0x5405 => get(TERMIO),
        0x5406 => set(TERMIO),
        0x5407 | 0x5408 => Ioctl {
            waits: true,
            ..set(TERMIO)
        },
        // TCSBRK, TCXONC, TCFLSH, TCSBRKP
        0x5409 | 0x5425 => Ioctl {
            waits: true,
            ..plain
        },
        0x540a | 0x540b => plain,
        // TIOCGPGRP, TIOCSPGRP, TIOCOUTQ
        0x540f | 0x5411 => get(4),
        0x5410 => set(4),
        // TIOCGWINSZ, TIOCSWINSZ
        0x5413 => Ioctl {
            query: true,
            ..get(8)
        },
        0x5414 => set(8),
        // TIOCMGET, TIOCMBIS, TIOCMBIC, TIOCMSET, TIOCGSOFTCAR, TIOCSSOFTCAR
        0x5415 | 0x5419 => get(4),
        0x5416..=0x5418 | 0x541a => set(4),
        // FIONREAD
        0x541b => Ioctl {
            query: true,
            ..get(4)
        },
        // TIOCGETD, TIOCGSID, TIOCGDEV
        0x5424 | 0x5429 | 0x8004_5432 => get(4),
        // TCGETS2, TCSETS2, TCSETSW2, TCSETSF2
        0x802c_542a => Ioctl {
            query: true,
            ..get(TERMIOS2)
        },
        0x402c_542b => set(TERMIOS2),
        0x402c_542c | 0x402c_542d => Ioctl {
            waits: true,
            ..set(TERMIOS2)
        },
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
