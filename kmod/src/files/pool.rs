// SPDX-License-Identifier: GPL-2.0-only

//! Threads that carry out what no deputy does. A piece of work may wait as long as it likes, in a
//! read of a pipe for example: a thread is added whenever all are busy, and goes when it has been
//! idle for a while.
//!
//! Lock order: `members` is taken with nothing else held; `inner` for moments only.

use super::op::Op;
use crate::id::NodeId;
use crate::sys::file::{settle, Interruptible};
use crate::sys::slot::Slot;
use crate::sys::wait::{Until, WaitQueue, Woken};
use crate::sys::work::{self, Thread};
use kernel::prelude::*;
use kernel::sync::atomic::{Acquire, Atomic, Release};
use kernel::sync::{new_mutex, new_spinlock, Arc, Mutex, SpinLock};

/// Most threads. Each operation that waits and has no deputy has one.
const MAX_THREADS: usize = 2048;
/// Threads that stay when there is nothing to do.
const KEPT_THREADS: usize = 2;
/// How long others wait for work, in ms.
const IDLE_MS: u32 = 10_000;

/// A piece of work.
pub enum Job {
    /// Carry it out.
    Op(Arc<Op>),
    /// Carry it out after so many ms.
    Later(Arc<Op>, u32),
    /// It is over, with this error.
    Fail(Arc<Op>, Error),
    /// This file is not needed any more by that node.
    Close(u64, NodeId),
    /// Something happened at this file.
    Ready(u64),
    /// A frame that concerns several files.
    Many(NodeId, KVVec<u8>),
}

#[pin_data]
struct Pool {
    #[pin]
    inner: SpinLock<Inner>,
    #[pin]
    wake: WaitQueue,
    #[pin]
    members: Mutex<KVec<Member>>,
}

struct Inner {
    jobs: KVec<Job>,
    /// Threads that wait, or that have been started and will.
    idle: usize,
    total: usize,
    growing: bool,
    closing: bool,
}

struct Member {
    _thread: Thread,
    ended: Arc<Atomic<bool>>,
}

static POOL: Slot<Pool> = Slot::new();

/// Makes the pool.
///
/// # Errors
/// `EBUSY`, `ENOMEM`.
pub fn open() -> Result {
    POOL.put(Arc::pin_init(
        pin_init!(Pool {
            inner <- new_spinlock!(Inner {
                jobs: KVec::new(),
                idle: 0,
                total: 0,
                growing: false,
                closing: false,
            }),
            wake <- WaitQueue::new(),
            members <- new_mutex!(KVec::new()),
        }),
        GFP_KERNEL,
    )?)
}

/// Waits for all threads. What they wait in must have been interrupted.
pub fn close() {
    let Some(pool) = POOL.take() else { return };
    let jobs = {
        let mut i = pool.inner.lock();
        i.closing = true;
        core::mem::take(&mut i.jobs)
    };
    drop(jobs);
    pool.wake.wake();
    let members = core::mem::take(&mut *pool.members.lock());
    drop(members);
}

/// Has a piece of work done soon. Sleeps, but not for the work.
pub fn push(job: Job) {
    let Some(pool) = POOL.get() else { return };
    let grow = {
        let mut i = pool.inner.lock();
        if i.closing {
            return;
        }
        if i.jobs.push(job, GFP_ATOMIC).is_err() {
            drop(i);
            pr_err!("files: no memory for work\n");
            return;
        }
        let grow = i.jobs.len() > i.idle && i.total < MAX_THREADS && !i.growing;
        i.growing |= grow;
        grow
    };
    pool.wake.wake();
    if grow {
        let p = pool.clone();
        if work::spawn(c"files", move || p.grow()).is_err() {
            pool.inner.lock().growing = false;
        }
    }
}

impl Pool {
    /// Adds threads until there are as many as pieces of work that wait.
    fn grow(self: &Arc<Self>) {
        self.reap();
        loop {
            {
                let mut i = self.inner.lock();
                if i.closing || i.jobs.len() <= i.idle || i.total >= MAX_THREADS {
                    i.growing = false;
                    return;
                }
                i.idle += 1;
                i.total += 1;
            }
            if let Err(e) = self.add() {
                let mut i = self.inner.lock();
                i.idle -= 1;
                i.total -= 1;
                i.growing = false;
                drop(i);
                pr_err!("files: no thread: {:?}\n", e);
                return;
            }
        }
    }

    fn add(self: &Arc<Self>) -> Result {
        let ended = Arc::new(Atomic::new(false), GFP_KERNEL)?;
        let mut m = self.members.lock();
        m.reserve(1, GFP_KERNEL)?;
        if self.inner.lock().closing {
            return Err(ENODEV);
        }
        let (pool, flag) = (self.clone(), ended.clone());
        let thread = Thread::start(c"ssi-file", move || {
            pool.serve();
            drop(pool);
            flag.store(true, Release);
        })?;
        m.push(
            Member {
                _thread: thread,
                ended,
            },
            GFP_KERNEL,
        )?;
        Ok(())
    }

    /// Forgets threads that have ended.
    fn reap(&self) {
        let mut m = self.members.lock();
        m.retain(|m| !m.ended.load(Acquire));
    }

    fn serve(&self) {
        let Ok(me) = Arc::new(Interruptible::current(), GFP_KERNEL) else {
            let mut i = self.inner.lock();
            i.idle -= 1;
            i.total -= 1;
            return;
        };
        loop {
            let woken = self.wake.wait(Until::Signal, IDLE_MS, || {
                let i = self.inner.lock();
                !i.jobs.is_empty() || i.closing
            });
            let job = {
                let mut i = self.inner.lock();
                let job = if i.jobs.is_empty() {
                    None
                } else {
                    i.jobs.remove(0).ok()
                };
                let surplus = woken == Woken::Timeout && i.total > KEPT_THREADS;
                if job.is_some() {
                    i.idle -= 1;
                } else if i.closing || surplus {
                    i.idle -= 1;
                    i.total -= 1;
                    return;
                }
                job
            };
            if let Some(job) = job {
                super::home::carry_out(job, &me);
                self.inner.lock().idle += 1;
            }
            settle();
        }
    }
}
