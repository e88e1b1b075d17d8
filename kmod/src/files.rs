// SPDX-License-Identifier: GPL-2.0-only

//! Forwarded files: what a process has open goes with it.
//!
//! Pipes, terminals and regular files stay open where they are, their *home*, under a number that
//! the node which gets the process may use; there a file of ours takes their place, and its
//! operations travel ([`guest`]) and are carried out at home ([`home`], by deputies, see [`seat`],
//! or threads, see [`pool`] and [`op`]). So positions stay shared with whoever shared them, and end of file,
//! job control and blocking are the home's own. Directories and devices that every node has are
//! opened again by path.
//!
//! A number is for one node only. Who moves on asks the file's home for another number for the
//! node it moves to ([`What::Hand`](crate::wire::file::What)); at home itself such a number is
//! exchanged for the file. Closing gives the number back.

pub mod guest;
pub mod home;
pub mod op;
pub mod pool;
pub mod seat;

use crate::id::NodeId;
use crate::params::{drops, Carried};
use crate::sys::file::{self, Held, OpenFd, Shape};
use crate::sys::task::TaskRef;
use crate::uapi::Reason;
use crate::wire::file::{
    self as wire_file, flag, Fd, File, FileKind, Files, Head, Look, Way, MAX_FD, MAX_FDS,
    MAX_FILES, MAX_HANDED, MAX_PATH_BYTES,
};
use crate::wire::image::MAX_RECORD_BYTES;
use crate::wire::{self, Kind};
use kernel::prelude::*;
use kernel::rbtree::RBTree;
use kernel::str::BStr;
use kernel::sync::Arc;
use zerocopy::little_endian::{U16, U32, U64};

/// Why what a process has open keeps it from moving.
#[derive(Debug)]
pub struct Refusal {
    /// The reason.
    pub reason: Reason,
    /// The descriptor.
    pub fd: u64,
    /// What it is, and its path or name.
    pub text: KVec<u8>,
}

impl Refusal {
    fn new(reason: Reason, fd: u32, what: &[u8], path: &[u8]) -> Self {
        let mut text = KVec::new();
        let parts = [
            what,
            if what.is_empty() { &b""[..] } else { b" " },
            path.get(..path.len().min(160)).unwrap_or(&[]),
        ];
        for p in parts {
            let _ = text.extend_from_slice(p, GFP_KERNEL);
        }
        Self {
            reason,
            fd: fd.into(),
            text,
        }
    }
}

impl From<Error> for Refusal {
    fn from(e: Error) -> Self {
        let reason = match e {
            e if e == E2BIG || e == ENOMEM => Reason::TooLarge,
            e if e == EIO || e == ENOTCONN => Reason::NoLink,
            _ => Reason::FileKind,
        };
        Self {
            reason,
            fd: 0,
            text: KVec::new(),
        }
    }
}

impl From<kernel::alloc::AllocError> for Refusal {
    fn from(_: kernel::alloc::AllocError) -> Self {
        ENOMEM.into()
    }
}

type Judged<T> = core::result::Result<T, Refusal>;

/// The module's part for files, from load to unload.
pub struct Service(());

impl Service {
    /// Makes it. There is one.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn new() -> Result<Self> {
        guest::init();
        home::init();
        op::init();
        seat::init();
        pool::open()?;
        Ok(Self(()))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        home::close();
        pool::close();
        // What was put there meanwhile.
        home::close();
    }
}

/// A frame about files has arrived. Called by a link's receiver.
pub fn frame(peer: NodeId, kind: Kind, payload: KVVec<u8>) {
    let r = match kind {
        Kind::FileOp => home::arrived(peer, payload),
        Kind::FileReply => guest::reply(peer, payload),
        Kind::FileCancel => home::cancel(peer, &payload),
        _ => Err(EINVAL),
    };
    if let Err(e) = r {
        pr_warn!("{:?} from n{} not taken: {:?}\n", kind, peer.get(), e);
    }
}

/// A node is dead.
pub fn peer_dead(peer: NodeId) {
    guest::peer_dead(peer);
    home::peer_dead(peer);
}

/// A file as it will be written down.
struct Noted {
    file: File,
    path: KVec<u8>,
}

/// What a process has open, ready to move.
pub struct Captured {
    files: KVVec<Noted>,
    fds: KVVec<Fd>,
    /// Numbers given to files of this node.
    made: KVVec<u64>,
    /// Numbers got for files of other nodes.
    handed: KVVec<(NodeId, KVVec<u64>)>,
}

/// What one descriptor is, if it can move.
fn judge(
    task: Option<&TaskRef>,
    d: &OpenFd,
    path: &mut [u8],
) -> Judged<(file::Facts, usize, FileKind)> {
    let (f, n) = match d.file.look(task, path) {
        Ok(v) => v,
        Err(_) => return Err(Refusal::new(Reason::FileKind, d.fd, b"without a path", b"")),
    };
    let name = path.get(..n).unwrap_or(&[]);
    if d.fd > MAX_FD || n > MAX_PATH_BYTES {
        return Err(Refusal::new(Reason::TooLarge, d.fd, b"descriptor", name));
    }
    if let Some(p) = d.file.proxy() {
        return Ok((f, n, p.kind));
    }
    let look = Look {
        mode: f.mode,
        rdev: (f.rdev_major, f.rdev_minor),
        anonymous: f.anonymous != 0,
        internal: f.internal != 0,
        unlinked: f.unlinked != 0,
        path_only: f.path_only != 0,
        plain_io: f.plain_io != 0,
    };
    let kind = look
        .kind()
        .map_err(|what| Refusal::new(Reason::FileKind, d.fd, what.as_bytes(), name))?;
    if f.locked != 0 {
        return Err(Refusal::new(Reason::FileLock, d.fd, b"", name));
    }
    Ok((f, n, kind))
}

/// Whether what `task` has open could move now. Nothing is changed.
///
/// # Errors
/// What is in the way.
pub fn check(task: &TaskRef) -> Judged<()> {
    let fds = file::descriptors(Some(task), MAX_FDS)?;
    let mut path = KVec::from_elem(0u8, MAX_PATH_BYTES + 1, GFP_KERNEL)?;
    for d in &fds {
        judge(Some(task), d, &mut path)?;
    }
    Ok(())
}

/// Writes down what the caller has open, on `here`, and lets `to` use it. The caller's other threads
/// stand still.
///
/// # Errors
/// What is in the way; nothing is changed then.
pub fn capture(_home: NodeId, here: NodeId, to: NodeId) -> Judged<Captured> {
    let mut c = Captured {
        files: KVVec::new(),
        fds: KVVec::new(),
        made: KVVec::new(),
        handed: KVVec::new(),
    };
    match c.collect(here, to) {
        Ok(()) => Ok(c),
        Err(r) => {
            c.release();
            Err(r)
        }
    }
}

impl Captured {
    fn collect(&mut self, here: NodeId, to: NodeId) -> Judged<()> {
        let open = file::descriptors(None, MAX_FDS)?;
        let mut path = KVec::from_elem(0u8, MAX_PATH_BYTES + 1, GFP_KERNEL)?;
        // Duplicates name the same file.
        let mut known = RBTree::<usize, u16>::new();
        let mut ours = KVVec::<(usize, NodeId, u64)>::new();
        for d in &open {
            let known_as = known.get(&d.file.identity()).copied();
            let file = match known_as {
                Some(n) => n,
                None => {
                    let n = u16::try_from(self.files.len()).map_err(|_| E2BIG)?;
                    if self.files.len() >= MAX_FILES {
                        return Err(Refusal::new(Reason::TooLarge, d.fd, b"files", b""));
                    }
                    let (f, len, kind) = judge(None, d, &mut path)?;
                    if let Some(p) = d.file.proxy() {
                        guest::settle(&p, &d.file)?;
                        ours.push((self.files.len(), p.home, p.id), GFP_KERNEL)?;
                    }
                    let noted =
                        self.note(&d.file, &f, kind, path.get(..len).unwrap_or(&[]), here, to)?;
                    self.files.push(noted, GFP_KERNEL)?;
                    known.try_create_and_insert(d.file.identity(), n, GFP_KERNEL)?;
                    n
                }
            };
            let flags = if d.cloexec { Fd::CLOEXEC } else { 0 };
            let fd = Fd {
                fd: U32::new(d.fd),
                file: U16::new(file),
                flags: U16::new(flags),
            };
            self.fds.push(fd, GFP_KERNEL)?;
        }
        if self.bytes() > MAX_RECORD_BYTES {
            return Err(E2BIG.into());
        }
        self.hand_on(&ours, to)
    }

    fn note(
        &mut self,
        held: &Held,
        f: &file::Facts,
        kind: FileKind,
        name: &[u8],
        here: NodeId,
        to: NodeId,
    ) -> Judged<Noted> {
        let proxy = held.proxy();
        let id = match (kind.way(), &proxy) {
            (Way::Reopen, _) | (_, Some(_)) => 0,
            (Way::Forward, None) => {
                self.made.reserve(1, GFP_KERNEL)?;
                let id = home::add(held.clone(), kind, to, here, here)?;
                if drops(Carried::Offset) {
                    let _ = held.seek(0, 0);
                }
                self.made.push(id, GFP_KERNEL)?;
                id
            }
        };
        let mut path = KVec::new();
        path.extend_from_slice(name, GFP_KERNEL)?;
        let file = File {
            id: U64::new(id),
            pos: U64::new(if kind.way() == Way::Reopen { f.pos } else { 0 }),
            home: U16::new(proxy.map_or(here, |p| p.home).get()),
            kind: U16::new(kind as u16),
            can: U16::new(f.can as u16),
            path_bytes: U16::new(name.len() as u16),
            flags: U32::new(f.flags & flag::CARRIED),
            mode: U32::new(f.mode),
            rdev_major: U32::new(f.rdev_major),
            rdev_minor: U32::new(f.rdev_minor),
            uid: U32::new(f.uid),
            gid: U32::new(f.gid),
        };
        Ok(Noted { file, path })
    }

    /// Has the homes of files that are not of this node give numbers for `to`.
    fn hand_on(&mut self, ours: &[(usize, NodeId, u64)], to: NodeId) -> Judged<()> {
        for n in 1..=crate::id::MAX_NODE {
            let Some(home) = NodeId::new(n) else { continue };
            let mut places = KVVec::<usize>::new();
            let mut ids = KVVec::<u64>::new();
            for (k, _, id) in ours.iter().filter(|o| o.1 == home) {
                places.push(*k, GFP_KERNEL)?;
                ids.push(*id, GFP_KERNEL)?;
            }
            for (places, ids) in places.chunks(MAX_HANDED).zip(ids.chunks(MAX_HANDED)) {
                self.handed.reserve(1, GFP_KERNEL)?;
                let new = guest::hand(home, ids, to)?;
                for (k, id) in places.iter().zip(new.iter()) {
                    if let Some(f) = self.files.get_mut(*k) {
                        f.file.id = U64::new(*id);
                    }
                }
                self.handed.push((home, new), GFP_KERNEL)?;
            }
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        let files: usize = self
            .files
            .iter()
            .map(|f| wire_file::file_bytes(f.path.len()))
            .sum();
        size_of::<Head>() + files + self.fds.len() * size_of::<Fd>()
    }

    /// The body of the image's record of files.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn encode(&self) -> Result<KVVec<u8>> {
        let mut v = KVVec::with_capacity(self.bytes(), GFP_KERNEL)?;
        let head = Head {
            version: U32::new(wire_file::VERSION),
            files: U32::new(self.files.len() as u32),
            fds: U32::new(self.fds.len() as u32),
            reserved: U32::new(0),
        };
        v.extend_from_slice(wire::bytes(&head), GFP_KERNEL)?;
        for f in &self.files {
            let end = v.len() + wire_file::file_bytes(f.path.len());
            v.extend_from_slice(wire::bytes(&f.file), GFP_KERNEL)?;
            v.extend_from_slice(&f.path, GFP_KERNEL)?;
            v.resize(end, 0, GFP_KERNEL)?;
        }
        for d in &self.fds {
            v.extend_from_slice(wire::bytes(d), GFP_KERNEL)?;
        }
        Ok(v)
    }

    /// The process stays: what was given away for its move is taken back.
    pub fn release(&self) {
        home::drop_all(&self.made);
        for (home, ids) in &self.handed {
            if guest::unhand(*home, ids).is_err() {
                pr_warn!(
                    "files: {} numbers of n{} are left unused\n",
                    ids.len(),
                    home.get()
                );
            }
        }
    }
}

/// Installs what an image had open in the caller, a fresh process on `here` that nobody else runs in.
/// What it has open is closed.
///
/// # Errors
/// `ENOENT` when a path is missing here or is something else; `EBADF` when a file of this node was
/// not given out for it; `EBADMSG`, `EMFILE`, `ENOMEM`.
pub fn install(records: &[u8], _home: NodeId, here: NodeId, pid: u32) -> Result {
    let parsed = Files::parse(records).map_err(|_| EBADMSG)?;
    let mut files = KVVec::<Held>::new();
    let mut back = KVVec::<Arc<home::Entry>>::new();
    for (f, path) in parsed.files() {
        let held = open_one(f, path, here, &mut back).inspect_err(|e| {
            pr_info!(
                "process {}: {:?} not opened: {:?}\n",
                pid,
                BStr::from_bytes(path),
                e
            );
        })?;
        files.push(held, GFP_KERNEL)?;
    }
    let mut fds = KVVec::with_capacity(parsed.fds().len(), GFP_KERNEL)?;
    for d in parsed.fds() {
        let file = files.get(usize::from(d.file.get())).ok_or(EBADMSG)?.clone();
        fds.push(
            OpenFd {
                fd: d.fd.get(),
                cloexec: d.flags.get() & Fd::CLOEXEC != 0,
                file,
            },
            GFP_KERNEL,
        )?;
    }
    file::install(fds)?;
    for e in back {
        home::retire(&e);
        home::release(e);
    }
    Ok(())
}

fn open_one(
    f: &File,
    path: &[u8],
    here: NodeId,
    back: &mut KVVec<Arc<home::Entry>>,
) -> Result<Held> {
    let kind = f.file_kind().ok_or(EBADMSG)?;
    let home = NodeId::new(f.home.get()).ok_or(EBADMSG)?;
    if kind.way() == Way::Reopen {
        return reopen(f, path, kind);
    }
    let id = f.id.get();
    if wire_file::node_of_id(id) != Some(home) {
        return Err(EBADMSG);
    }
    if home == here {
        let e = home::entries::get(id)
            .filter(|e| e.host == here)
            .ok_or(EBADF)?;
        let held = e.file.clone();
        back.push(e, GFP_KERNEL)?;
        return Ok(held);
    }
    let flags = f.flags.get();
    let shape = Shape {
        mode: f.mode.get(),
        uid: f.uid.get(),
        gid: f.gid.get(),
        rdev: (f.rdev_major.get(), f.rdev_minor.get()),
        flags,
        can: f.can.get().into(),
    };
    let p = guest::Proxy::new(id, home, kind, flags)?;
    file::new_proxy(p.clone(), path, &shape).inspect_err(|_| {
        guest::proxies::remove_exact(id, &p);
    })
}

fn reopen(f: &File, path: &[u8], kind: FileKind) -> Result<Held> {
    let directory = if kind == FileKind::Directory {
        flag::DIRECTORY
    } else {
        0
    };
    let held = Held::open(
        path,
        f.flags.get() & flag::CARRIED & !flag::NOFOLLOW | directory,
    )?;
    let mut text = KVec::from_elem(0u8, MAX_PATH_BYTES + 1, GFP_KERNEL)?;
    let (got, _) = held.look(None, &mut text)?;
    let same = got.mode & !0o7777 == kind.type_bits()
        && (kind == FileKind::Directory
            || (got.rdev_major, got.rdev_minor) == (f.rdev_major.get(), f.rdev_minor.get()));
    if !same {
        return Err(ENOENT);
    }
    let pos = i64::try_from(f.pos.get()).map_err(|_| EBADMSG)?;
    if kind == FileKind::Directory && pos != 0 && f.flags.get() & flag::PATH == 0 {
        held.seek(pos, 0)?;
    }
    Ok(held)
}
