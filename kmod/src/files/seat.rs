// SPDX-License-Identifier: GPL-2.0-only

//! Operations that a deputy carries out as itself: with its rights, its limits and its terminal.
//!
//! A deputy does one at a time. One that waits (for input at a terminal) makes room when another
//! order comes, for another thread may borrow the deputy: it is interrupted, and done again after
//! that. What comes for a thread that was captured a moment ago, and is no deputy yet, waits until it is.
//!
//! Lock order: a seat's `inner` is taken with nothing else held, and for moments only.

use super::op::{Op, Ran};
use super::pool::{self, Job};
use crate::puppet::{Act, Next, Puppet};
use crate::sys::task::{self, TaskRef, When};
use crate::sys::work;
use crate::table;
use kernel::prelude::*;
use kernel::sync::{new_spinlock, Arc, SpinLock};

/// Interruptions in a row, each within a millisecond, after which a deputy takes a rest.
const HASTY: u32 = 8;
const REST_MS: u32 = 2;
/// How long an operation that was stopped by job control waits to be taken back, in ms.
const STOPPED_MS: u32 = 100;

/// The operations of one deputy.
#[pin_data]
pub struct Seat {
    tid: u32,
    #[pin]
    inner: SpinLock<Inner>,
}

struct Inner {
    queue: KVec<Arc<Op>>,
    busy: bool,
    /// It has left the table: nothing may be queued any more.
    left: bool,
    hasty: u32,
}

table! {
    /// Seats by thread.
    seats: Seat
}

/// Must be called once when the module loads.
pub fn init() {
    seats::init();
}

/// Brings a task to the edge of user mode, out of what it waits in. Spins.
pub fn interrupt(tid: u32) {
    let Some(t) = TaskRef::find(tid) else { return };
    let done = KBox::new(|| {}, GFP_ATOMIC).map_err(Error::from);
    if let Err(e) = done.and_then(|f| t.work_atomic(When::Interrupt, f)) {
        if e != ESRCH {
            pr_warn!("thread {}: not interrupted: {:?}\n", tid, e);
        }
    }
}

/// An order waits for a puppet: what it is waiting in is interrupted. Spins.
pub fn make_room(tid: u32) {
    let busy = seats::get(u64::from(tid)).is_some_and(|s| s.inner.lock().busy);
    if busy {
        interrupt(tid);
    }
}

/// Has `puppet` carry out `op`.
///
/// # Errors
/// `ESRCH` when the puppet has ended; `ENOMEM`. The operation is nobody's then.
pub fn sit(puppet: &Arc<Puppet>, op: &Arc<Op>) -> Result {
    loop {
        let seat = match seats::get(u64::from(puppet.tid)) {
            Some(s) => s,
            None => {
                let s = Arc::pin_init(
                    pin_init!(Seat {
                        tid: puppet.tid,
                        inner <- new_spinlock!(Inner {
                            queue: KVec::new(),
                            busy: false,
                            left: false,
                            hasty: 0,
                        }),
                    }),
                    GFP_KERNEL,
                )?;
                match seats::insert(u64::from(puppet.tid), s.clone()) {
                    Err(e) if e == EEXIST => continue,
                    r => r?,
                }
                s
            }
        };
        {
            let mut i = seat.inner.lock();
            if i.left {
                drop(i);
                seats::remove_exact(u64::from(puppet.tid), &seat);
                continue;
            }
            i.queue.push(op.clone(), GFP_ATOMIC)?;
        }
        if let Err(e) = seat.post(puppet) {
            seat.inner.lock().queue.retain(|o| !Arc::ptr_eq(o, op));
            return Err(e);
        }
        return Ok(());
    }
}

/// One operation's turn. If it never comes, because the deputy has ended, an operation fails.
struct Turn(Option<Arc<Seat>>);

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(op) = self.0.take().and_then(|s| s.pop()) {
            pool::push(Job::Fail(op, EIO));
        }
    }
}

impl Seat {
    fn post(self: &Arc<Self>, puppet: &Puppet) -> Result {
        let mut turn = Turn(Some(self.clone()));
        let act = KBox::new(
            move |p: &Arc<Puppet>| Ok(turn.0.take().map_or(Next::Stay, |seat| seat.turn(p))),
            GFP_KERNEL,
        )? as Act;
        puppet.post(act).map(|_| ())
    }

    fn pop(&self) -> Option<Arc<Op>> {
        let mut i = self.inner.lock();
        if i.queue.is_empty() {
            None
        } else {
            i.queue.remove(0).ok()
        }
    }

    /// In the deputy.
    fn turn(self: &Arc<Self>, p: &Arc<Puppet>) -> Next {
        let op = {
            let mut i = self.inner.lock();
            let op = if i.queue.is_empty() {
                None
            } else {
                i.queue.remove(0).ok()
            };
            i.busy = op.is_some();
            op
        };
        let Some(op) = op else {
            return Next::Stay;
        };
        if p.has_orders() && op.may_wait() {
            interrupt(p.tid);
        }
        let start = task::now_ns();
        let ran = op.run_on_puppet(p);
        let hasty = task::now_ns().saturating_sub(start) < 1_000_000;
        let (empty, rest) = {
            let mut i = self.inner.lock();
            i.busy = false;
            i.hasty = if ran == Ran::Again && hasty {
                i.hasty + 1
            } else {
                0
            };
            let rest = i.hasty >= HASTY;
            if rest {
                i.hasty = 0;
            }
            let empty = i.queue.is_empty() && ran != Ran::Again;
            i.left = empty;
            (empty, rest)
        };
        if empty {
            seats::remove_exact(u64::from(self.tid), self);
        }
        match ran {
            Ran::Done => Next::Stay,
            Ran::Later => {
                pool::push(Job::Later(op, STOPPED_MS));
                Next::Breathe
            }
            Ran::Again => {
                if rest {
                    work::sleep(REST_MS);
                }
                let queued = self.inner.lock().queue.push(op.clone(), GFP_ATOMIC);
                if queued
                    .map_err(Error::from)
                    .and_then(|()| self.post(p))
                    .is_err()
                {
                    self.inner.lock().queue.retain(|o| !Arc::ptr_eq(o, &op));
                    pool::push(Job::Fail(op, EIO));
                }
                Next::Breathe
            }
        }
    }
}
