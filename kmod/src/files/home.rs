// SPDX-License-Identifier: GPL-2.0-only

//! The home's side of forwarded files: the files that others use, and their operations.
//!
//! A file is held by an [`Entry`] under a number that one other node may use. An operation that
//! needs the rights, the limits or the terminal of its process is carried out by a deputy (see
//! [`super::seat`]), everything else by a thread of the pool with the rights of who opened the file.
//! Either is interrupted when the caller takes its question back, and the answer tells what was
//! done until then; see [`super::op`].
//!
//! Lock order: an entry's `armed` is taken with nothing else held, and for moments only.

use super::op::{self, answer, Outcome};
use super::pool::{self, Job};
use crate::id::NodeId;
use crate::process::count_forwarded;
use crate::stat::{self, Counter};
use crate::sys::file::{Held, Interruptible, Watch};
use crate::sys::work;
use crate::table;
use crate::wire::file::{self as wire_file, Cancel, FileKind, Reply, What};
use crate::wire::{self, Class, Kind};
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Relaxed};
use kernel::sync::{new_spinlock, Arc, SpinLock};
use zerocopy::little_endian::{I64, U32, U64};

const POLLERR: u32 = 0x8;
const POLLHUP: u32 = 0x10;

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

static NEXT_ID: Atomic<u64> = Atomic::new(0);

/// Must be called once when the module loads.
pub fn init() {
    entries::init();
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

impl Entry {
    /// Which of `events` hold. With `notify`, the host is told when one comes.
    pub fn poll(&self, events: u32, notify: bool) -> Result<u32> {
        if notify {
            let fresh = {
                let mut a = self.armed.lock();
                a.events |= events;
                a.watch.is_none() && !a.closed
            };
            if fresh {
                let mut w = Some(Watch::new(&self.file, self.id)?);
                {
                    let mut a = self.armed.lock();
                    if a.watch.is_none() && !a.closed {
                        a.watch = w.take();
                    }
                }
                drop(w);
            }
        }
        Ok(self.file.poll() & (events | POLLERR | POLLHUP))
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
    match op::start(peer, head, what, payload, entry) {
        Ok(()) => {
            stat::add(Counter::ForwardedOperations, 1);
            count_forwarded(head.pid.get());
            Ok(())
        }
        Err(e) => refuse(e),
    }
}

/// An operation is taken back.
pub fn cancel(peer: NodeId, payload: &[u8]) -> Result {
    let (c, _) = wire::split::<Cancel>(payload).map_err(|_| EBADMSG)?;
    op::cancel(peer, c.req.get());
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
    op::cancel_all(Some(peer));
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
        Job::Later(op, ms) => {
            work::sleep(ms);
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
    op::cancel_all(None);
    while let Some((_, e)) = entries::next(None) {
        retire(&e);
        release(e);
    }
}
