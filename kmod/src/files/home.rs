// SPDX-License-Identifier: GPL-2.0-only

//! The home's side of forwarded files: the files that others use, and their operations.
//!
//! A file is held by an [`Entry`] under a number that one other node may use. An operation that
//! needs the rights, the limits or the terminal of its process is carried out by a deputy (see
//! [`super::seat`]), everything else by a thread of the pool with the rights of who opened the file.
//! Either is interrupted when the caller takes its question back, and the answer tells what was
//! done until then.
//!
//! Lock order: `state` and `armed` are taken with nothing else held, and for moments only; the
//! table of entries may be taken under neither.

use super::guest::BULK_BYTES;
use super::pool::{self, Job};
use super::seat;
use crate::id::NodeId;
use crate::link::{self, Urgency};
use crate::process::{count_forwarded, processes, Place};
use crate::puppet::{puppets, Puppet};
use crate::stat::{self, Counter};
use crate::sys::file::{self, settle, Held, Interruptible, Watch};
use crate::sys::task::{self, TaskRef};
use crate::sys::wait::signal_pending;
use crate::sys::work;
use crate::table;
use crate::wire::file::{
    self as wire_file, flag, Cancel, FileKind, Reply, SetAttr, What, MAX_IOCTL_BYTES, REQ_END,
};
use crate::wire::{self, Class, Kind};
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Relaxed};
use kernel::sync::{new_spinlock, Arc, SpinLock};
use zerocopy::little_endian::{I64, U32, U64};
use zerocopy::FromBytes;

const OP_BYTES: usize = size_of::<wire_file::Op>();
const REPLY_BYTES: usize = size_of::<Reply>();
/// Most operations of others at the same time.
const MAX_OPS: usize = 16_384;
/// A terminal gives no more at once.
const TTY_BYTES: usize = 4096;
/// How long an operation that was stopped by job control waits to be taken back.
const LATER_MS: u32 = 100;
const POLLERR: u32 = 0x8;
const POLLHUP: u32 = 0x10;
const SIGTTIN: i32 = 21;
const SIGTTOU: i32 = 22;
const SIGXFSZ: i32 = 25;
const TCGETS: u32 = 0x5401;
const TIOCGPGRP: u32 = 0x540f;
const TIOCSPGRP: u32 = 0x5410;
const TIOCGWINSZ: u32 = 0x5413;
const FIONREAD: u32 = 0x541b;
const TIOCGSID: u32 = 0x5429;
const TCGETS2: u32 = 0x802c_542a;
const TERMIOS_BYTES: usize = 36;

/// A file that another node uses.
#[pin_data]
pub struct Entry {
    /// Its number.
    pub id: u64,
    /// The node that may use it.
    pub host: NodeId,
    /// The node that asked for the number.
    pub origin: NodeId,
    /// What it is.
    pub kind: FileKind,
    /// The file.
    pub file: Held,
    #[pin]
    armed: SpinLock<Armed>,
}

struct Armed {
    /// Events that the host waits for.
    events: u32,
    watch: Option<Watch>,
    closed: bool,
}

table! {
    /// Files that others use, by number.
    entries: Entry
}

table! {
    /// Operations under way, by [`key`].
    running: Op
}

static NEXT_ID: Atomic<u64> = Atomic::new(0);
static OPS: Atomic<usize> = Atomic::new(0);

/// Must be called once when the module loads.
pub fn init() {
    entries::init();
    running::init();
    // A number is not used again in another life of this node.
    NEXT_ID.store(work::random_nonzero() >> 17, Relaxed);
}

/// Puts a file into the table, for `host` to use. Returns its number.
pub fn add(file: Held, kind: FileKind, host: NodeId, origin: NodeId, here: NodeId) -> Result<u64> {
    loop {
        let id = wire_file::id_of(here, NEXT_ID.fetch_add(1, Relaxed));
        let file = file.clone();
        let e = Arc::pin_init(
            pin_init!(Entry {
                id,
                host,
                origin,
                kind,
                file,
                armed <- new_spinlock!(Armed { events: 0, watch: None, closed: false }),
            }),
            GFP_KERNEL,
        )?;
        match entries::insert(id, e) {
            Err(e) if e == EEXIST => {}
            Err(e) => return Err(e),
            Ok(()) => return Ok(id),
        }
    }
}

/// Takes a file out of the table.
pub fn retire(e: &Arc<Entry>) {
    entries::remove_exact(e.id, e);
    let watch = {
        let mut a = e.armed.lock();
        a.closed = true;
        a.watch.take()
    };
    drop(watch);
}

/// Gives up the use of a file. If nobody else has it open, it is released before this returns.
pub fn release(e: Arc<Entry>) {
    let f = e.file.clone();
    drop(e);
    f.put_now();
}

/// Where an operation is being carried out.
enum Runner {
    None,
    Puppet(u32),
    Thread(Arc<Interruptible>),
}

struct State {
    runner: Runner,
    cancelled: bool,
    done: bool,
    entry: Option<Arc<Entry>>,
    /// What came of it, kept back until the signals that came with it are on their way.
    outcome: Option<(Result<Outcome>, u32)>,
}

/// How an attempt ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ran {
    /// It is over.
    Done,
    /// A signal came in between, and goes to the process first.
    Again,
    /// Its process is about to be stopped for it.
    Later,
}

/// An operation of another node.
#[pin_data]
pub struct Op {
    peer: NodeId,
    head: wire_file::Op,
    what: What,
    kind: FileKind,
    payload: KVVec<u8>,
    #[pin]
    state: SpinLock<State>,
}

/// The reply of an operation: a frame with room for its head.
struct Outcome {
    result: i64,
    frame: KVVec<u8>,
}

impl Outcome {
    fn number(result: i64) -> Result<Self> {
        Self::with(result, &[])
    }

    fn with(result: i64, data: &[u8]) -> Result<Self> {
        let mut frame = KVVec::with_capacity(REPLY_BYTES + data.len(), GFP_KERNEL)?;
        frame.resize(REPLY_BYTES, 0, GFP_KERNEL)?;
        frame.extend_from_slice(data, GFP_KERNEL)?;
        Ok(Self { result, frame })
    }
}

fn key(peer: NodeId, req: u64) -> u64 {
    u64::from(peer.get()) << 56 | (req % REQ_END)
}

fn answer(peer: NodeId, req: u64, outcome: Result<Outcome>, flags: u32, signal: u32) {
    let (result, mut frame) = match outcome {
        Ok(o) => (o.result, o.frame),
        Err(e) => (e.to_errno().into(), KVVec::new()),
    };
    let r = Reply {
        req: U64::new(req),
        file: U64::new(0),
        result: I64::new(result),
        flags: U32::new(flags),
        signal: U32::new(signal),
    };
    if let Some(head) = frame.get_mut(..REPLY_BYTES) {
        head.copy_from_slice(wire::bytes(&r));
    } else if let Err(e) = frame.extend_from_slice(wire::bytes(&r), GFP_KERNEL) {
        pr_err!("files: no memory for an answer: {:?}\n", e);
        return;
    }
    if frame.len() > BULK_BYTES {
        let _ = link::wait_room(peer, Class::Control);
    }
    if let Err(e) = link::send(peer, Class::Control, Kind::FileReply, frame, Urgency::Now) {
        if e != ENOTCONN {
            pr_err!("files: an answer to n{} is lost: {:?}\n", peer.get(), e);
        }
    }
}

/// An operation has arrived. What takes long is done elsewhere.
pub fn arrived(peer: NodeId, payload: KVVec<u8>) -> Result {
    let (head, what, _) = wire_file::op(&payload).map_err(|_| EBADMSG)?;
    let head = *head;
    let (req, id) = (head.req.get(), head.file.get());
    match what {
        What::Close => {
            pool::push(Job::Close(id, peer));
            return Ok(());
        }
        What::Hand | What::Unhand => {
            pool::push(Job::Many(peer, payload));
            return Ok(());
        }
        _ => {}
    }
    let refuse = |e: Error| {
        answer(peer, req, Err(e), 0, 0);
        Ok(())
    };
    let Some(entry) = entries::get(id).filter(|e| e.host == peer) else {
        return refuse(EBADF);
    };
    if OPS.fetch_add(1, Relaxed) >= MAX_OPS {
        OPS.fetch_sub(1, Relaxed);
        return refuse(ENOMEM);
    }
    let (kind, state) = (
        entry.kind,
        State {
            runner: Runner::None,
            cancelled: false,
            done: false,
            entry: Some(entry),
            outcome: None,
        },
    );
    let op = Arc::pin_init(
        pin_init!(Op { peer, head, what, kind, payload, state <- new_spinlock!(state) }),
        GFP_KERNEL,
    );
    let started = op.map_err(Error::from).and_then(|op| {
        running::insert(key(peer, req), op.clone())?;
        Ok(op)
    });
    match started {
        Ok(op) => {
            stat::add(Counter::ForwardedOperations, 1);
            count_forwarded(head.pid.get());
            op.dispatch();
            Ok(())
        }
        Err(e) => {
            OPS.fetch_sub(1, Relaxed);
            refuse(e)
        }
    }
}

/// An operation is taken back.
pub fn cancel(peer: NodeId, payload: &[u8]) -> Result {
    let (c, _) = wire::split::<Cancel>(payload).map_err(|_| EBADMSG)?;
    if let Some(op) = running::get(key(peer, c.req.get())).filter(|o| o.peer == peer) {
        op.cancel();
    }
    Ok(())
}

/// A node is dead: what it used is not used any more.
pub fn peer_dead(peer: NodeId) {
    let mut after = None;
    while let Some((k, e)) = entries::next(after) {
        after = Some(k);
        if e.host == peer {
            pool::push(Job::Close(k, peer));
        }
    }
    cancel_all(Some(peer));
}

/// Takes operations of a node (none: of all) back.
pub fn cancel_all(peer: Option<NodeId>) {
    let mut after = None;
    while let Some((k, op)) = running::next(after) {
        after = Some(k);
        if peer.is_none_or(|p| p == op.peer) {
            op.cancel();
        }
    }
}

/// Something happened at a file. Called often, and must not drop the last use of an entry.
pub fn ready(id: u64) {
    pool::push(Job::Ready(id));
}

/// Something happened at a file: its host is told if it waits for that.
fn look_again(id: u64) {
    let Some(e) = entries::get(id) else { return };
    let held = e.file.poll();
    let hit = {
        let mut a = e.armed.lock();
        let hit = if a.events == 0 {
            0
        } else {
            held & (a.events | POLLERR | POLLHUP)
        };
        a.events = if hit & (POLLERR | POLLHUP) != 0 {
            0
        } else {
            a.events & !hit
        };
        hit
    };
    if hit != 0 {
        let r = Reply {
            req: U64::new(0),
            file: U64::new(id),
            result: I64::new(hit.into()),
            flags: U32::new(0),
            signal: U32::new(0),
        };
        if let Err(err) = crate::node::say(e.host, Class::Control, Kind::FileReply, wire::bytes(&r))
        {
            if err != ENOTCONN {
                pr_err!("files: news for n{} are lost: {:?}\n", e.host.get(), err);
            }
        }
    }
    release(e);
}

/// In a thread of the pool.
pub fn carry_out(job: Job, me: &Arc<Interruptible>) {
    match job {
        Job::Op(op) => op.run_on_thread(me),
        Job::Later(op) => {
            work::sleep(LATER_MS);
            op.dispatch();
        }
        Job::Fail(op, e) => op.finish(Err(e), 0),
        Job::Close(id, peer) => {
            if let Some(e) = entries::get(id).filter(|e| e.host == peer) {
                retire(&e);
                release(e);
            }
        }
        Job::Ready(id) => look_again(id),
        Job::Many(peer, payload) => many(peer, &payload),
    }
}

fn many(peer: NodeId, payload: &[u8]) {
    let Ok((head, what, data)) = wire_file::op(payload) else {
        return;
    };
    let ids = wire_file::ids(data);
    if what == What::Unhand {
        for id in ids {
            if let Some(e) = entries::get(id.get()).filter(|e| e.origin == peer) {
                retire(&e);
                release(e);
            }
        }
        return;
    }
    let to = u16::try_from(head.arg.get()).ok().and_then(NodeId::new);
    answer(
        peer,
        head.req.get(),
        to.ok_or(EINVAL).and_then(|to| handed(peer, ids, to)),
        0,
        0,
    );
}

fn handed(peer: NodeId, ids: &[U64], to: NodeId) -> Result<Outcome> {
    let here = crate::node::me().ok_or(ENOTCONN)?;
    let mut o = Outcome::number(0)?;
    let mut made = KVVec::<u64>::with_capacity(ids.len(), GFP_KERNEL)?;
    for id in ids {
        let e = entries::get(id.get()).filter(|e| e.host == peer);
        let n = e.ok_or(EBADF).and_then(|e| {
            let n = add(e.file.clone(), e.kind, to, peer, here);
            release(e);
            n
        });
        let n = n.and_then(|n| {
            made.push(n, GFP_KERNEL)?;
            o.frame.extend_from_slice(&n.to_le_bytes(), GFP_KERNEL)?;
            Ok(())
        });
        if let Err(e) = n {
            drop_all(&made);
            return Err(e);
        }
    }
    Ok(o)
}

/// Takes files out of the table that were put there just now.
pub fn drop_all(ids: &[u64]) {
    for id in ids {
        if let Some(e) = entries::get(*id) {
            retire(&e);
            release(e);
        }
    }
}

/// Closes every file and takes every operation back, before the module goes.
pub fn close() {
    cancel_all(None);
    while let Some((_, e)) = entries::next(None) {
        retire(&e);
        release(e);
    }
}

impl Op {
    fn cmd(&self) -> u32 {
        self.head.arg.get() as u32
    }

    fn data(&self) -> &[u8] {
        self.payload.get(OP_BYTES..).unwrap_or(&[])
    }

    /// A question that is answered without the help of a process.
    fn is_query(&self) -> bool {
        self.what == What::Ioctl
            && match self.kind {
                FileKind::Tty => matches!(self.cmd(), TCGETS | TCGETS2 | TIOCGWINSZ),
                _ => self.cmd() == FIONREAD,
            }
    }

    /// Whether it matters which process does it.
    fn is_personal(&self) -> bool {
        match (self.kind, self.what) {
            (_, What::Setattr) => true,
            (FileKind::Tty, What::Read | What::Write) => true,
            (FileKind::Tty, What::Ioctl) => !self.is_query(),
            (FileKind::Regular, What::Read | What::Write | What::Fallocate | What::Fsync) => true,
            _ => false,
        }
    }

    /// Whether it may wait for something that others do.
    pub fn may_wait(&self) -> bool {
        self.kind != FileKind::Regular
            && matches!(self.what, What::Read | What::Write | What::Ioctl)
    }

    /// The deputy of the thread that wants it, or of its process.
    fn deputy(&self) -> Option<Arc<Puppet>> {
        let (pid, tid) = (self.head.pid.get(), self.head.tid.get());
        let p = processes::get(u64::from(pid))?;
        // Not yet told away: its first operations overtake the news.
        if !matches!(p.place(), Place::Leaving) && p.place() != Place::Away(self.peer) {
            return None;
        }
        let own = puppets::get(u64::from(tid))
            .filter(|_| TaskRef::find(tid).is_some_and(|t| t.tgid() == pid));
        own.or_else(|| puppets::get(u64::from(pid)))
    }

    fn dispatch(self: &Arc<Self>) {
        if self.is_personal() {
            if let Some(p) = self.deputy() {
                if seat::sit(&p, self).is_ok() {
                    return;
                }
            }
        }
        pool::push(Job::Op(self.clone()));
    }

    fn cancel(self: &Arc<Self>) {
        let mut s = self.state.lock();
        if s.done || s.outcome.is_some() {
            return;
        }
        s.cancelled = true;
        let tid = match &s.runner {
            Runner::Thread(t) => {
                // Under the lock: the thread goes on to something else after it.
                t.interrupt();
                return;
            }
            Runner::Puppet(tid) => Some(*tid),
            Runner::None => None,
        };
        drop(s);
        match tid {
            Some(tid) => seat::interrupt(tid),
            // Not here: this may be a receiver, and a file may be released with it.
            None => pool::push(Job::Fail(self.clone(), ERESTARTSYS)),
        }
    }

    fn begin(&self, runner: Runner) -> Option<Arc<Entry>> {
        let mut s = self.state.lock();
        if s.done || s.cancelled {
            return None;
        }
        s.runner = runner;
        s.entry.clone()
    }

    /// An attempt is over. Whether the caller has taken it back.
    fn pause(&self) -> bool {
        let mut s = self.state.lock();
        s.runner = Runner::None;
        s.cancelled
    }

    /// Answers, once.
    fn finish(self: &Arc<Self>, outcome: Result<Outcome>, signal: u32) {
        let (entry, kept) = {
            let mut s = self.state.lock();
            if s.done {
                return;
            }
            s.done = true;
            (s.entry.take(), s.outcome.take())
        };
        let (outcome, signal) = kept.unwrap_or((outcome, signal));
        OPS.fetch_sub(1, Relaxed);
        running::remove_exact(key(self.peer, self.head.req.get()), self);
        let flags = entry
            .as_ref()
            .map_or(0, |e| e.file.flags() & flag::SETTABLE);
        let outcome = match outcome {
            Err(e) if is_interruption(e) => Err(ERESTARTSYS),
            o => o,
        };
        answer(self.peer, self.head.req.get(), outcome, flags, signal);
        if let Some(e) = entry {
            release(e);
        }
    }

    fn run_on_thread(self: &Arc<Self>, me: &Arc<Interruptible>) {
        loop {
            let Some(e) = self.begin(Runner::Thread(me.clone())) else {
                return;
            };
            let r = e.file.as_opener(|| self.perform(&e, None));
            let cancelled = self.pause();
            release(e);
            match r {
                Err(e) if is_interruption(e) && !cancelled && signal_pending() => settle(),
                r => return self.finish(r, 0),
            }
        }
    }

    /// In a deputy.
    pub fn run_on_puppet(self: &Arc<Self>, p: &Arc<Puppet>) -> Ran {
        if self.state.lock().outcome.is_some() {
            self.finish(Err(EIO), 0);
            return Ran::Done;
        }
        let Some(e) = self.begin(Runner::Puppet(p.tid)) else {
            return Ran::Done;
        };
        // Every signal is caught in a deputy; what its process does with these decides here.
        let how = self.head.how.get();
        let mut mask = 0;
        if how & wire_file::Op::NO_TTIN != 0 {
            mask |= 1u64 << (SIGTTIN - 1);
        }
        if how & wire_file::Op::NO_TTOU != 0 {
            mask |= 1u64 << (SIGTTOU - 1);
        }
        task::set_mask(mask, None);
        let r = self.perform(&e, Some(p));
        let mut signal = 0;
        if matches!(r, Err(e) if e == EFBIG) && file::take_signal(SIGXFSZ) {
            signal = SIGXFSZ as u32;
        }
        let stopped = self.kind == FileKind::Tty
            && ((mask & (1 << (SIGTTIN - 1)) == 0 && task::pending(SIGTTIN))
                || (mask & (1 << (SIGTTOU - 1)) == 0 && task::pending(SIGTTOU)));
        task::set_mask(0, None);
        let cancelled = self.pause();
        release(e);
        match r {
            Err(e) if is_interruption(e) && !cancelled && signal_pending() => {
                if stopped {
                    Ran::Later
                } else {
                    Ran::Again
                }
            }
            r if signal_pending() => {
                self.state.lock().outcome = Some((r, signal));
                Ran::Again
            }
            r => {
                self.finish(r, signal);
                Ran::Done
            }
        }
    }

    fn perform(&self, e: &Entry, puppet: Option<&Arc<Puppet>>) -> Result<Outcome> {
        let h = &self.head;
        let f = &e.file;
        let changed = h.changed.get() & flag::SETTABLE;
        if changed != 0 {
            f.set_flags(h.flags.get(), changed);
        }
        let (offset, arg, how) = (h.offset.get(), h.arg.get(), h.how.get());
        match self.what {
            What::Read => {
                let mut len = h.len.get() as usize;
                if self.kind == FileKind::Tty {
                    len = len.min(TTY_BYTES);
                }
                let mut frame = KVVec::zeroed(REPLY_BYTES + len, GFP_KERNEL)?;
                let n = f.read(frame.get_mut(REPLY_BYTES..).ok_or(EINVAL)?, offset)?;
                frame.truncate(REPLY_BYTES + n);
                Ok(Outcome {
                    result: n as i64,
                    frame,
                })
            }
            What::Write => Outcome::number(f.write(self.data(), offset, how)? as i64),
            What::Poll => Outcome::number(self.polled(e)?.into()),
            What::Ioctl => self.ioctl(f, puppet),
            What::Seek => Outcome::number(f.seek(offset, i32::try_from(arg).map_err(|_| EINVAL)?)?),
            What::Getattr => Outcome::with(0, wire::bytes(&f.getattr()?)),
            What::Fsync => {
                let end = i64::try_from(arg).map_err(|_| EINVAL)?;
                f.fsync(offset, end, how & wire_file::Op::DATASYNC != 0)?;
                Outcome::number(0)
            }
            What::Setattr => {
                let a = SetAttr::read_from_bytes(self.data()).map_err(|_| EINVAL)?;
                if a.valid.get() & !SetAttr::ALL != 0
                    || a.nsec.iter().any(|n| n.get() >= 1_000_000_000)
                {
                    return Err(EINVAL);
                }
                f.setattr(&a)?;
                Outcome::number(0)
            }
            What::Fallocate => {
                if self.kind != FileKind::Regular {
                    return Err(ENODEV);
                }
                f.fallocate(
                    h.len.get() as i32,
                    offset,
                    i64::try_from(arg).map_err(|_| EINVAL)?,
                )?;
                Outcome::number(0)
            }
            What::Close | What::Hand | What::Unhand => Err(EINVAL),
        }
    }

    fn polled(&self, e: &Entry) -> Result<u32> {
        let events = self.head.arg.get() as u32;
        if self.head.how.get() & wire_file::Op::NOTIFY != 0 {
            let fresh = {
                let mut a = e.armed.lock();
                a.events |= events;
                a.watch.is_none() && !a.closed
            };
            if fresh {
                let mut w = Some(Watch::new(&e.file, e.id)?);
                {
                    let mut a = e.armed.lock();
                    if a.watch.is_none() && !a.closed {
                        a.watch = w.take();
                    }
                }
                drop(w);
            }
        }
        Ok(e.file.poll() & (events | POLLERR | POLLHUP))
    }

    fn ioctl(&self, f: &Held, puppet: Option<&Arc<Puppet>>) -> Result<Outcome> {
        let cmd = self.cmd();
        let i = wire_file::ioctl(cmd).ok_or(ENOTTY)?;
        match (self.kind, cmd) {
            (FileKind::Fifo, FIONREAD) => {
                return Outcome::with(0, &f.pipe_bytes()?.to_le_bytes());
            }
            (FileKind::Tty, TCGETS) => {
                let t = f.termios()?;
                return Outcome::with(0, t.get(..TERMIOS_BYTES).unwrap_or(&[]));
            }
            (FileKind::Tty, TCGETS2) => return Outcome::with(0, &f.termios()?),
            (FileKind::Tty, TIOCGWINSZ) => return Outcome::with(0, &f.winsize()?),
            (FileKind::Tty, _) => {}
            _ => return Err(ENOTTY),
        }
        let Some(p) = puppet else {
            // Whoever asks is no process of ours: it has no terminal here, and no say over others'.
            return Err(if matches!(cmd, TIOCGPGRP | TIOCSPGRP | TIOCGSID) {
                ENOTTY
            } else {
                EPERM
            });
        };
        if i.plain {
            return Outcome::number(f.ioctl(cmd, self.head.offset.get() as u64)?);
        }
        let at = p.scratch();
        let mut buf = [0u8; MAX_IOCTL_BYTES];
        let room = usize::from(i.input.max(i.output));
        let buf = buf.get_mut(..room).ok_or(EINVAL)?;
        if let Some(input) = buf.get_mut(..self.data().len()) {
            input.copy_from_slice(self.data());
        }
        task::user_write(at, buf)?;
        let r = f.ioctl(cmd, at)?;
        file::user_read(buf, at)?;
        Outcome::with(r, buf.get(..i.output.into()).unwrap_or(&[]))
    }
}

/// Whether an operation ended because of a signal, with nothing done.
fn is_interruption(e: Error) -> bool {
    e == EINTR
        || e == ERESTARTSYS
        || e == ERESTARTNOINTR
        || e == ERESTARTNOHAND
        || e == ERESTART_RESTARTBLOCK
}
