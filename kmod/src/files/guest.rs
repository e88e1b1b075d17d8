// SPDX-License-Identifier: GPL-2.0-only

//! The guest's side of forwarded files: every operation on a file of ours becomes a question to
//! where the file is open.
//!
//! The position of a file of ours never changes: the real one is at home, where others may share it.
//! A caller that gets a signal while it waits takes its question back, and then waits for what was
//! done until then: what was read is never lost, and what was written is told. The wait ends by that
//! answer, by the death of the home or of the caller.

use crate::id::NodeId;
use crate::link;
use crate::node;
use crate::process::count_forwarded;
use crate::sys::file::{self, Held, Iter, PollHead};
use crate::sys::task;
use crate::sys::wait::{signal_pending, Until, WaitQueue, Woken};
use crate::table;
use crate::wire::file::{
    self as wire_file, flag, Attr, Cancel, FileKind, Op, Reply, SetAttr, What, MAX_DATA_BYTES,
    MAX_IOCTL_BYTES, REQ_END,
};
use crate::wire::{self, Class, Kind};
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Relaxed};
use kernel::sync::{new_spinlock, Arc, SpinLock};
use zerocopy::little_endian::{I64, U32, U64};
use zerocopy::FromBytes;

const OP_BYTES: usize = size_of::<Op>();
const REPLY_BYTES: usize = size_of::<Reply>();
const FOREVER_MS: u32 = u32::MAX / 2;
/// Questions and answers with more data than this wait for room on the link.
pub(super) const BULK_BYTES: usize = 4096;
const POLLERR: u32 = 0x8;
const POLLHUP: u32 = 0x10;
const FIONREAD: u32 = 0x541b;
const SIGPIPE: i32 = 13;
const SIGXFSZ: i32 = 25;

/// What stands for a file that is open elsewhere.
#[pin_data]
pub struct Proxy {
    /// Its number at home.
    pub id: u64,
    /// Where it is open.
    pub home: NodeId,
    /// What it is.
    pub kind: FileKind,
    /// Its flags as both ends know them.
    synced: Atomic<u32>,
    /// Its home is dead.
    dead: Atomic<bool>,
    /// Who waits for it.
    #[pin]
    pub poll_head: PollHead,
}

table! {
    /// Files of ours by number.
    proxies: Proxy
}

/// A question that waits for its answer.
#[pin_data]
pub struct Call {
    home: NodeId,
    #[pin]
    state: SpinLock<Waiting>,
    #[pin]
    wait: WaitQueue,
}

enum Waiting {
    /// Somebody waits.
    Yes,
    /// Nobody waits; who polls this is told.
    Left(Arc<Proxy>),
    Answered(Result<KVVec<u8>>),
}

table! {
    /// Questions by number.
    calls: Call
}

static NEXT_REQ: Atomic<u64> = Atomic::new(1);

/// Must be called once when the module loads.
pub fn init() {
    proxies::init();
    calls::init();
}

/// What a signal does to somebody who waits for an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum OnSignal {
    /// Nothing: the answer comes soon.
    Wait,
    /// The question is taken back.
    Cancel,
    /// The answer is left to who polls.
    Leave,
}

/// An answer.
struct Answer {
    frame: KVVec<u8>,
    result: i64,
    flags: u32,
    cancelled: bool,
}

impl Answer {
    fn data(&self) -> &[u8] {
        self.frame.get(REPLY_BYTES..).unwrap_or(&[])
    }
}

fn new_req() -> u64 {
    loop {
        let n = NEXT_REQ.fetch_add(1, Relaxed) % REQ_END;
        if n != 0 {
            return n;
        }
    }
}

/// The frame of an operation with `room` bytes of zeros for its data.
fn frame(o: &Op, room: usize) -> Result<KVVec<u8>> {
    let mut v = KVVec::with_capacity(OP_BYTES + room, GFP_KERNEL)?;
    v.extend_from_slice(wire::bytes(o), GFP_KERNEL)?;
    v.resize(OP_BYTES + room, 0, GFP_KERNEL)?;
    Ok(v)
}

fn send(home: NodeId, frame: KVVec<u8>) -> Result {
    if frame.len() > BULK_BYTES {
        link::wait_room(home, Class::Control)?;
    }
    link::send(
        home,
        Class::Control,
        Kind::FileOp,
        frame,
        link::Urgency::Now,
    )
}

/// Sends a frame with the question `req` and waits for the answer.
fn exchange(
    home: NodeId,
    req: u64,
    frame: KVVec<u8>,
    on: OnSignal,
    who: Option<&Arc<Proxy>>,
) -> Result<Answer> {
    let call = Arc::pin_init(
        pin_init!(Call {
            home,
            state <- new_spinlock!(Waiting::Yes),
            wait <- WaitQueue::new(),
        }),
        GFP_KERNEL,
    )?;
    calls::insert(req, call.clone())?;
    if let Err(e) = send(home, frame) {
        calls::remove_exact(req, &call);
        return Err(if e == ENOTCONN { EIO } else { e });
    }
    let answered = || matches!(*call.state.lock(), Waiting::Answered(_));
    let mut cancelled = false;
    let mut until = if on == OnSignal::Wait {
        Until::Kill
    } else {
        Until::Signal
    };
    let cancel = || {
        let c = Cancel { req: U64::new(req) };
        let _ = node::say(home, Class::Control, Kind::FileCancel, wire::bytes(&c));
    };
    loop {
        match call.wait.wait(until, FOREVER_MS, answered) {
            Woken::Ready => break,
            Woken::Timeout => {}
            Woken::Signal if until == Until::Kill => {
                calls::remove_exact(req, &call);
                if !cancelled {
                    cancel();
                }
                return Err(EINTR);
            }
            Woken::Signal if on == OnSignal::Leave => {
                if let Some(p) = who {
                    let mut s = call.state.lock();
                    if matches!(*s, Waiting::Yes) {
                        *s = Waiting::Left(p.clone());
                    }
                }
                return Err(EINTR);
            }
            Woken::Signal => {
                cancel();
                cancelled = true;
                until = Until::Kill;
            }
        }
    }
    calls::remove_exact(req, &call);
    let got = core::mem::replace(&mut *call.state.lock(), Waiting::Yes);
    let Waiting::Answered(r) = got else {
        return Err(EIO);
    };
    let frame = r?;
    let (r, _) = wire_file::reply(&frame).map_err(|_| EIO)?;
    let (result, flags) = (r.result.get(), r.flags.get() & flag::SETTABLE);
    let signal = i32::try_from(r.signal.get()).unwrap_or(0);
    if signal == SIGXFSZ || signal == SIGPIPE {
        file::raise(signal);
    }
    Ok(Answer {
        frame,
        result,
        flags,
        cancelled,
    })
}

/// An answer has come.
fn answered(call: &Call, r: Result<KVVec<u8>>) {
    let old = {
        let mut s = call.state.lock();
        if matches!(*s, Waiting::Answered(_)) {
            return;
        }
        core::mem::replace(&mut *s, Waiting::Answered(r))
    };
    if let Waiting::Left(p) = old {
        let held = match &*call.state.lock() {
            Waiting::Answered(Ok(f)) => {
                wire_file::reply(f).map_or(POLLERR, |(r, _)| r.result.get() as u32)
            }
            _ => POLLERR,
        };
        if held != 0 {
            p.poll_head.wake(held);
        }
    }
    call.wait.wake();
}

/// A reply has arrived.
pub fn reply(peer: NodeId, payload: KVVec<u8>) -> Result {
    let (r, _) = wire_file::reply(&payload).map_err(|_| EBADMSG)?;
    let (req, id, held) = (r.req.get(), r.file.get(), r.result.get());
    if req == 0 {
        if let Some(p) = proxies::get(id).filter(|p| p.home == peer) {
            p.poll_head.wake(u32::try_from(held).unwrap_or(POLLERR));
        }
        return Ok(());
    }
    // Not there: its caller was killed.
    if let Some(c) = calls::get(req).filter(|c| c.home == peer) {
        calls::remove_exact(req, &c);
        answered(&c, Ok(payload));
    }
    Ok(())
}

/// A node is dead: nothing of it will be answered, now or later.
pub fn peer_dead(peer: NodeId) {
    let mut after = None;
    while let Some((k, p)) = proxies::next(after) {
        after = Some(k);
        if p.home == peer {
            p.dead.store(true, Relaxed);
            p.poll_head.wake(POLLERR | POLLHUP);
        }
    }
    let mut after = None;
    while let Some((k, c)) = calls::next(after) {
        after = Some(k);
        if c.home == peer {
            calls::remove_exact(k, &c);
            answered(&c, Err(EIO));
        }
    }
}

impl Proxy {
    /// Stands for the file `id` of `home`, and can be found by that.
    ///
    /// # Errors
    /// `EEXIST`, `ENOMEM`.
    pub fn new(id: u64, home: NodeId, kind: FileKind, flags: u32) -> Result<Arc<Self>> {
        let p = Arc::pin_init(
            pin_init!(Self {
                id,
                home,
                kind,
                synced: Atomic::new(flags & flag::SETTABLE),
                dead: Atomic::new(false),
                poll_head <- PollHead::new(),
            }),
            GFP_KERNEL,
        )?;
        proxies::insert(id, p.clone())?;
        Ok(p)
    }

    /// An operation of the caller.
    fn op(&self, file: Option<&Held>, what: What) -> Op {
        let mut o = Op::new(what, self.id);
        o.pid = U32::new(file::tgid());
        o.tid = U32::new(task::tid());
        if let Some(f) = file {
            let now = f.flags() & flag::SETTABLE;
            o.flags = U32::new(now);
            o.changed = U32::new(now ^ self.synced.load(Relaxed));
        }
        if self.kind == FileKind::Tty {
            o.how.set(o.how.get() | file::tty_signals());
        }
        o
    }

    /// Asks once. `fill` completes the operation and may put data behind it.
    fn ask_once(
        &self,
        file: Option<&Held>,
        on: OnSignal,
        who: Option<&Arc<Proxy>>,
        mut o: Op,
        data: &[u8],
    ) -> Result<Answer> {
        let req = new_req();
        o.req = U64::new(req);
        let mut v = KVVec::with_capacity(OP_BYTES + data.len(), GFP_KERNEL)?;
        v.extend_from_slice(wire::bytes(&o), GFP_KERNEL)?;
        v.extend_from_slice(data, GFP_KERNEL)?;
        self.asked(file, &o, exchange(self.home, req, v, on, who)?)
    }

    /// The answer to `o` as a result; flags are the same at both ends then.
    fn asked(&self, file: Option<&Held>, o: &Op, a: Answer) -> Result<Answer> {
        if let Some(f) = file {
            self.synced.store(a.flags, Relaxed);
            let now = f.flags() & flag::SETTABLE;
            if now == o.flags.get() && now != a.flags {
                f.set_flags(a.flags, flag::SETTABLE);
            }
        }
        if a.result < 0 {
            return Err(Error::from_errno(a.result as i32));
        }
        Ok(a)
    }

    /// Asks until there is an answer other than to ask again.
    fn ask(
        &self,
        file: Option<&Held>,
        on: OnSignal,
        fill: impl Fn(&mut Op),
        data: &[u8],
        what: What,
    ) -> Result<Answer> {
        count_forwarded(file::tgid());
        loop {
            if self.dead.load(Relaxed) {
                return Err(EIO);
            }
            let mut o = self.op(file, what);
            fill(&mut o);
            match self.ask_once(file, on, None, o, data) {
                Err(e) if again(e, self.home)? => {}
                r => return r,
            }
        }
    }
}

/// Whether an operation that failed like this is to be done again.
fn again(e: Error, home: NodeId) -> Result<bool> {
    if e == ENOBUFS {
        link::wait_room(home, Class::Control).map_err(|_| EIO)?;
        return Ok(true);
    }
    // Home gave up and nothing here wanted it to.
    Ok(e == ERESTARTSYS && !signal_pending())
}

/// read(2), at `pos` or (negative) at the file's position.
pub fn read(p: &Proxy, file: &Held, pos: i64, to: &mut Iter<'_>) -> Result<usize> {
    let mut total = 0usize;
    loop {
        let want = to.count().min(MAX_DATA_BYTES);
        if want == 0 {
            return Ok(total);
        }
        // What is read from a stream and cannot be put is lost.
        if p.kind != FileKind::Regular && !to.is_writable(want) {
            return Err(EFAULT);
        }
        let offset = at(pos, total)?;
        let fill = |o: &mut Op| {
            o.len = U32::new(want as u32);
            o.offset = I64::new(offset);
        };
        let a = match p.ask(Some(file), OnSignal::Cancel, fill, &[], What::Read) {
            Ok(a) => a,
            Err(_) if total > 0 => return Ok(total),
            Err(e) => return Err(e),
        };
        let got = a.data();
        if got.len() as i64 != a.result || got.len() > want {
            return Err(EIO);
        }
        let n = to.put(got);
        total += n;
        if n < got.len() {
            return if total == 0 { Err(EFAULT) } else { Ok(total) };
        }
        if n < want || p.kind != FileKind::Regular || a.cancelled {
            return Ok(total);
        }
    }
}

fn at(pos: i64, done: usize) -> Result<i64> {
    if pos < 0 {
        return Ok(Op::CURRENT);
    }
    pos.checked_add(done as i64).ok_or(EOVERFLOW)
}

/// write(2), at `pos` or (negative) at the file's position.
pub fn write(p: &Proxy, file: &Held, pos: i64, how: u16, from: &mut Iter<'_>) -> Result<usize> {
    let mut total = 0usize;
    loop {
        let want = from.count().min(MAX_DATA_BYTES);
        if want == 0 {
            return Ok(total);
        }
        if p.dead.load(Relaxed) {
            return Err(EIO);
        }
        count_forwarded(file::tgid());
        let req = new_req();
        let mut o = p.op(Some(file), What::Write);
        o.req = U64::new(req);
        o.offset = I64::new(at(pos, total)?);
        o.how.set(o.how.get() | how);
        let mut v = frame(&o, want)?;
        let n = from.take(v.get_mut(OP_BYTES..).unwrap_or(&mut []));
        if n == 0 {
            return if total == 0 { Err(EFAULT) } else { Ok(total) };
        }
        v.truncate(OP_BYTES + n);
        o.len = U32::new(n as u32);
        if let Some(head) = v.get_mut(..OP_BYTES) {
            head.copy_from_slice(wire::bytes(&o));
        }
        let r = exchange(p.home, req, v, OnSignal::Cancel, None)
            .and_then(|a| p.asked(Some(file), &o, a));
        let a = match r {
            Ok(a) => a,
            Err(e) => {
                from.revert(n);
                if again(e, p.home)? {
                    continue;
                }
                return if total == 0 { Err(e) } else { Ok(total) };
            }
        };
        let done = usize::try_from(a.result)
            .ok()
            .filter(|&d| d <= n)
            .ok_or(EIO)?;
        total += done;
        if done < n {
            from.revert(n - done);
            let stop = a.cancelled || signal_pending() || file.flags() & flag::NONBLOCK != 0;
            if done == 0 || stop {
                return Ok(total);
            }
        } else if a.cancelled {
            return Ok(total);
        }
    }
}

/// Which of `events` hold. With `notify`, waiting pollers are woken when one comes.
pub fn poll(p: Arc<Proxy>, file: &Held, events: u32, notify: bool) -> u32 {
    if p.dead.load(Relaxed) {
        return POLLERR | POLLHUP;
    }
    count_forwarded(file::tgid());
    let mut o = p.op(Some(file), What::Poll);
    o.arg = U64::new(events.into());
    if notify {
        o.how.set(o.how.get() | Op::NOTIFY);
    }
    match p.ask_once(Some(file), OnSignal::Leave, Some(&p), o, &[]) {
        Ok(a) => u32::try_from(a.result).unwrap_or(POLLERR),
        // Its poller has a signal; what comes later wakes it again.
        Err(e) if e == EINTR || e == ERESTARTSYS => 0,
        Err(_) => POLLERR,
    }
}

/// ioctl(2).
pub fn ioctl(p: &Proxy, file: &Held, cmd: u32, arg: u64) -> Result<i64> {
    let i = wire_file::ioctl(cmd).ok_or(ENOTTY)?;
    let known = match p.kind {
        FileKind::Tty => true,
        FileKind::Fifo => cmd == FIONREAD,
        _ => false,
    };
    if !known {
        return Err(ENOTTY);
    }
    let mut buf = [0u8; MAX_IOCTL_BYTES];
    let input = buf.get_mut(..i.input.into()).ok_or(EINVAL)?;
    if !input.is_empty() {
        file::user_read(input, arg)?;
    }
    let fill = |o: &mut Op| {
        o.arg = U64::new(cmd.into());
        o.offset = I64::new(if i.plain { arg as i64 } else { 0 });
    };
    let a = p.ask(Some(file), OnSignal::Cancel, fill, input, What::Ioctl)?;
    if a.data().len() != usize::from(i.output) {
        return Err(EIO);
    }
    if i.output != 0 {
        task::user_write(arg, a.data())?;
    }
    Ok(a.result)
}

/// lseek(2).
pub fn seek(p: &Proxy, file: &Held, offset: i64, whence: i32) -> Result<i64> {
    let whence = u64::try_from(whence).map_err(|_| EINVAL)?;
    let fill = |o: &mut Op| {
        o.offset = I64::new(offset);
        o.arg = U64::new(whence);
    };
    Ok(p.ask(Some(file), OnSignal::Wait, fill, &[], What::Seek)?
        .result)
}

/// fsync(2).
pub fn fsync(p: &Proxy, file: &Held, start: i64, end: i64, datasync: bool) -> Result {
    let fill = |o: &mut Op| {
        o.offset = I64::new(start);
        o.arg = U64::new(end as u64);
        if datasync {
            o.how.set(o.how.get() | Op::DATASYNC);
        }
    };
    p.ask(Some(file), OnSignal::Wait, fill, &[], What::Fsync)
        .map(|_| ())
}

/// fallocate(2).
pub fn fallocate(p: &Proxy, file: &Held, mode: i32, offset: i64, len: i64) -> Result {
    let fill = |o: &mut Op| {
        o.len = U32::new(mode as u32);
        o.offset = I64::new(offset);
        o.arg = U64::new(len as u64);
    };
    p.ask(Some(file), OnSignal::Wait, fill, &[], What::Fallocate)
        .map(|_| ())
}

/// stat(2).
pub fn getattr(p: &Proxy) -> Result<Attr> {
    let a = p.ask(None, OnSignal::Wait, |_| {}, &[], What::Getattr)?;
    Attr::read_from_bytes(a.data()).map_err(|_| EIO)
}

/// chmod(2), chown(2), utimensat(2), ftruncate(2).
pub fn setattr(p: &Proxy, s: &SetAttr) -> Result {
    p.ask(None, OnSignal::Wait, |_| {}, wire::bytes(s), What::Setattr)
        .map(|_| ())
}

/// The last user of a file of ours has closed it.
pub fn closed(p: &Arc<Proxy>) {
    proxies::remove_exact(p.id, p);
    if p.dead.load(Relaxed) {
        return;
    }
    let (home, id) = (p.home, p.id);
    if tell_closed(home, id) == Err(ENOBUFS) {
        let again = move || {
            while link::wait_room(home, Class::Control).is_ok()
                && tell_closed(home, id) == Err(ENOBUFS)
            {}
        };
        if crate::sys::work::spawn(c"close", again).is_err() {
            pr_err!("files: closing {:x} was not told\n", id);
        }
    }
}

fn tell_closed(home: NodeId, id: u64) -> Result {
    node::say(
        home,
        Class::Control,
        Kind::FileOp,
        wire::bytes(&Op::new(What::Close, id)),
    )
}

/// Settles flags that were changed here, before the file is handed on.
pub fn settle(p: &Proxy, file: &Held) -> Result {
    if (file.flags() & flag::SETTABLE) == p.synced.load(Relaxed) {
        return Ok(());
    }
    p.ask(Some(file), OnSignal::Wait, |_| {}, &[], What::Getattr)
        .map(|_| ())
}

/// Asks `home` for numbers by which `to` may use these files. Returns them in the same order.
///
/// # Errors
/// `EIO` when the home is dead or does not know the files.
pub fn hand(home: NodeId, ids: &[u64], to: NodeId) -> Result<KVVec<u64>> {
    let req = new_req();
    let mut o = Op::new(What::Hand, 0);
    o.req = U64::new(req);
    o.arg = U64::new(to.get().into());
    let a = exchange(home, req, ids_frame(&o, ids)?, OnSignal::Wait, None)?;
    let new = wire_file::ids(a.data());
    if a.result != 0 || new.len() != ids.len() {
        return Err(EIO);
    }
    let mut v = KVVec::with_capacity(new.len(), GFP_KERNEL)?;
    for n in new {
        v.push(n.get(), GFP_KERNEL)?;
    }
    Ok(v)
}

/// The numbers got by [`hand`] will not be used.
pub fn unhand(home: NodeId, ids: &[u64]) -> Result {
    send(home, ids_frame(&Op::new(What::Unhand, 0), ids)?)
}

fn ids_frame(o: &Op, ids: &[u64]) -> Result<KVVec<u8>> {
    let mut v = frame(o, 0)?;
    for id in ids {
        v.extend_from_slice(&id.to_le_bytes(), GFP_KERNEL)?;
    }
    Ok(v)
}
