// SPDX-License-Identifier: GPL-2.0-only

//! Operations of other nodes on files of this one: where each is carried out, how it is taken back,
//! and how it is answered once.
//!
//! Lock order: an operation's `state` is taken with nothing else held, and for moments only.

use super::guest::BULK_BYTES;
use super::home::{release, Entry};
use super::pool::{self, Job};
use super::seat;
use crate::id::NodeId;
use crate::link::{self, Urgency};
use crate::process::{processes, Place};
use crate::puppet::{puppets, Puppet};
use crate::sys::file::{self, settle, Held, Interruptible};
use crate::sys::task::{self, TaskRef};
use crate::sys::wait::signal_pending;
use crate::table;
use crate::wire::file::{
    self as wire_file, flag, FileKind, Reply, SetAttr, What, MAX_IOCTL_BYTES, REQ_END,
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

table! {
    /// Operations under way, by node and number.
    running: Op
}

static OPS: Atomic<usize> = Atomic::new(0);

/// Must be called once when the module loads.
pub fn init() {
    running::init();
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
pub struct Outcome {
    /// A number, or a negative errno.
    pub result: i64,
    /// The frame.
    pub frame: KVVec<u8>,
}

impl Outcome {
    /// Only a number.
    pub fn number(result: i64) -> Result<Self> {
        Self::with(result, &[])
    }

    /// A number and data.
    pub fn with(result: i64, data: &[u8]) -> Result<Self> {
        let mut frame = KVVec::with_capacity(REPLY_BYTES + data.len(), GFP_KERNEL)?;
        frame.resize(REPLY_BYTES, 0, GFP_KERNEL)?;
        frame.extend_from_slice(data, GFP_KERNEL)?;
        Ok(Self { result, frame })
    }
}

fn key(peer: NodeId, req: u64) -> u64 {
    u64::from(peer.get()) << 56 | (req % REQ_END)
}

/// Sends an answer.
pub fn answer(peer: NodeId, req: u64, outcome: Result<Outcome>, flags: u32, signal: u32) {
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

/// Starts an operation on a file that `peer` may use.
///
/// # Errors
/// `EEXIST` when its number is in use, `ENOMEM`. It is nobody's then.
pub fn start(
    peer: NodeId,
    head: wire_file::Op,
    what: What,
    payload: KVVec<u8>,
    entry: Arc<Entry>,
) -> Result {
    if OPS.fetch_add(1, Relaxed) >= MAX_OPS {
        OPS.fetch_sub(1, Relaxed);
        return Err(ENOMEM);
    }
    let kind = entry.kind;
    let state = State {
        runner: Runner::None,
        cancelled: false,
        done: false,
        entry: Some(entry),
        outcome: None,
    };
    let op = Arc::pin_init(
        pin_init!(Op { peer, head, what, kind, payload, state <- new_spinlock!(state) }),
        GFP_KERNEL,
    )
    .and_then(|op| {
        running::insert(key(peer, head.req.get()), op.clone())?;
        Ok(op)
    })
    .inspect_err(|_| {
        OPS.fetch_sub(1, Relaxed);
    })?;
    op.dispatch();
    Ok(())
}

/// Takes an operation back.
pub fn cancel(peer: NodeId, req: u64) {
    if let Some(op) = running::get(key(peer, req)).filter(|o| o.peer == peer) {
        op.cancel();
    }
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

    /// Has it carried out.
    pub fn dispatch(self: &Arc<Self>) {
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
    pub fn finish(self: &Arc<Self>, outcome: Result<Outcome>, signal: u32) {
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

    /// In a thread of the pool.
    pub fn run_on_thread(self: &Arc<Self>, me: &Arc<Interruptible>) {
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
            What::Poll => {
                let held = e.poll(arg as u32, how & wire_file::Op::NOTIFY != 0)?;
                Outcome::number(held.into())
            }
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
