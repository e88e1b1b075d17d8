// SPDX-License-Identifier: GPL-2.0-only

//! Puppets: user tasks that run nothing of their own and do what they are told.
//!
//! A puppet's next instruction lies on a page that is never filled, its *park page*. The fault it
//! takes there brings it to [`park`], where it sleeps until it is given an [`Order`]: something to
//! do in the kernel as itself, or system calls, for which it is pointed at a `syscall` instruction
//! that ends right before the park page, so that the next fault brings the result. A stub becomes
//! a guest this way, and a captured task becomes a deputy.
//!
//! The fault is an ordinary, interruptible one (userfaultfd does the same), so the kernel's own
//! machinery works on a puppet without our help: it stops, freezes, is traced and is killed.
//! A caught signal is delivered as to any program: its handler is an address on the park page, and
//! the fault there hands the siginfo to the process the puppet belongs to.
//!
//! ```text
//! base            base + 4 KiB     base + 8 KiB
//! | .. 0f 05 |    | park, handler | slot 0 | slot 1 | ...
//!   code            never filled    scratch memory and stack, one slot for each thread
//! ```
//!
//! Lock order: a puppet's `inner` is taken with nothing else held, and for moments only.

use crate::process::Process;
use crate::sys::mm;
use crate::sys::task::{self, Action};
use crate::sys::wait::{Until, WaitQueue, Woken};
use crate::sys::work::Hold;
use crate::table;
use kernel::prelude::*;
use kernel::sync::{new_spinlock, Arc, SpinLock};

/// Bytes of a thread's slot. The lower half is scratch memory, the stack grows down from the top.
pub const SLOT_BYTES: u64 = 32 * 1024;
/// Bytes of a slot that orders may use as scratch memory.
pub const SCRATCH_BYTES: u64 = 16 * 1024;
const PAGE: u64 = mm::PAGE as u64;
/// Offset of the signal handler's address on the park page.
const HANDLER: u64 = 0x100;
/// Offset of the restorer's address, where nothing ever returns to.
const RESTORER: u64 = 0x200;
/// How long a controller waits for one order, in ms.
pub const ORDER_MS: u32 = 30_000;
const SA_SIGINFO: u64 = 4;
const SA_RESTORER: u64 = 0x0400_0000;
const SA_NODEFER: u64 = 0x4000_0000;

table! {
    /// Puppets by thread id.
    puppets: Puppet
}

/// What a puppet does after an order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Waits for the next order.
    Stay,
    /// Passes the edge of user mode once and comes back.
    Breathe,
    /// Is no puppet any more: its registers are its own.
    Leave,
}

/// What a system call may return.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expect {
    /// No error.
    Success,
    /// This value.
    Exactly(u64),
    /// Anything.
    Anything,
}

/// A system call for a puppet.
pub struct Call {
    /// Its number.
    pub nr: u64,
    /// Its arguments.
    pub args: [u64; 6],
    /// Bytes to be written to the puppet's memory before it: address and content.
    pub data: Option<(u64, KVec<u8>)>,
    /// What it must return for the order to go on.
    pub expect: Expect,
    /// Its stack pointer, 0 for the puppet's own.
    pub stack: u64,
}

impl Call {
    /// A call with plain numbers, which must succeed.
    pub fn new(nr: u64, args: &[u64]) -> Self {
        let mut a = [0; 6];
        for (to, from) in a.iter_mut().zip(args) {
            *to = *from;
        }
        Self {
            nr,
            args: a,
            data: None,
            expect: Expect::Success,
            stack: 0,
        }
    }

    /// With bytes written at `at` first.
    pub fn with(mut self, at: u64, bytes: KVec<u8>) -> Self {
        self.data = Some((at, bytes));
        self
    }

    /// With another expectation.
    pub fn expecting(mut self, e: Expect) -> Self {
        self.expect = e;
        self
    }
}

/// Something done in the kernel by the puppet itself.
pub type Act = KBox<dyn FnMut(&Arc<Puppet>) -> Result<Next> + Send>;

/// Boxes something to be done once.
///
/// # Errors
/// `ENOMEM`.
pub fn act_of(f: impl FnOnce(&Arc<Puppet>) -> Result<Next> + Send + 'static) -> Result<Act> {
    let mut f = Some(f);
    let once = move |p: &Arc<Puppet>| match f.take() {
        Some(f) => f(p),
        None => Err(EIO),
    };
    Ok(KBox::new(once, GFP_KERNEL)? as Act)
}

enum Job {
    Calls {
        calls: KVec<Call>,
        at: usize,
        mask: u64,
    },
    Act(Act),
}

/// Work for a puppet and, later, its outcome: the last call's return value, or 0 for an act.
#[pin_data]
pub struct Order {
    #[pin]
    state: SpinLock<OrderState>,
}

struct OrderState {
    job: Option<Job>,
    outcome: Option<Result<u64>>,
}

struct Inner {
    /// Base of its park area, 0 while it has none.
    base: u64,
    slot: u64,
    /// Signals are let in and handed to the process.
    open: bool,
    parked: bool,
    gone: bool,
    /// For where it was stopped, before it goes to its page.
    stopped: KVec<Arc<Order>>,
    /// For its page.
    orders: KVec<Arc<Order>>,
    /// The order whose system call is under way.
    calling: Option<Arc<Order>>,
    process: Option<Arc<Process>>,
}

/// One puppet.
#[pin_data]
pub struct Puppet {
    /// Its thread id.
    pub tid: u32,
    #[pin]
    inner: SpinLock<Inner>,
    #[pin]
    wake: WaitQueue,
    #[pin]
    done: WaitQueue,
    _hold: Hold,
}

/// What the fault handler does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i32)]
pub enum Parked {
    /// Leave by the way of signals and come back.
    Retry = 0,
    /// Go on in user mode.
    Run = 1,
    /// Nobody knows this task.
    Stray = 2,
}

impl Puppet {
    /// A puppet for thread `tid`, not yet anywhere.
    pub fn new(tid: u32) -> Result<Arc<Self>> {
        let p = Arc::pin_init(
            pin_init!(Self {
                tid,
                inner <- new_spinlock!(Inner {
                    base: 0,
                    slot: 0,
                    open: false,
                    parked: false,
                    gone: false,
                    stopped: KVec::new(),
                    orders: KVec::new(),
                    calling: None,
                    process: None,
                }),
                wake <- WaitQueue::new(),
                done <- WaitQueue::new(),
                _hold: Hold::new()?,
            }? Error),
            GFP_KERNEL,
        )?;
        puppets::insert(u64::from(tid), p.clone())?;
        Ok(p)
    }

    /// Puts it into slot `slot` of the area at `base`. Its registers follow when it next moves.
    pub fn place(&self, base: u64, slot: u64) {
        let mut i = self.inner.lock();
        i.base = base;
        i.slot = slot;
    }

    /// Base of its area.
    pub fn base(&self) -> u64 {
        self.inner.lock().base
    }

    /// The process whose signals it takes.
    pub fn set_process(&self, p: Option<Arc<Process>>) {
        let old = core::mem::replace(&mut self.inner.lock().process, p);
        drop(old);
    }

    /// Lets signals in, or keeps them waiting.
    pub fn set_open(&self, open: bool) {
        self.inner.lock().open = open;
    }

    fn addresses(&self) -> Addresses {
        let i = self.inner.lock();
        let slot = i.base + 2 * PAGE + i.slot * SLOT_BYTES;
        Addresses {
            syscall: i.base + PAGE - 2,
            park: i.base + PAGE,
            handler: i.base + PAGE + HANDLER,
            scratch: slot,
            stack: slot + SLOT_BYTES - 256,
        }
    }

    /// Its scratch memory.
    pub fn scratch(&self) -> u64 {
        self.addresses().scratch
    }

    /// Where its stack starts.
    pub fn stack(&self) -> u64 {
        self.addresses().stack
    }

    /// The address it waits at.
    pub fn park_ip(&self) -> u64 {
        self.addresses().park
    }

    /// The dispositions under which every signal comes to [`Process::signalled`]. Those of child
    /// signals keep what decides about zombies.
    pub fn catching(&self, own: &[Action; 64]) -> [Action; 64] {
        const SIGCHLD: usize = 17;
        const SIG_IGN: u64 = 1;
        const SA_NOCLD: u64 = 1 | 2;
        let a = self.addresses();
        let mut all = [Action {
            handler: a.handler,
            flags: SA_SIGINFO | SA_RESTORER | SA_NODEFER,
            restorer: a.park + RESTORER,
            // One at a time: the frame of another on top would hide this one.
            mask: !0,
        }; 64];
        let chld = &own[SIGCHLD - 1];
        if chld.handler == SIG_IGN {
            all[SIGCHLD - 1] = *chld;
        } else {
            all[SIGCHLD - 1].flags |= chld.flags & SA_NOCLD;
        }
        all
    }

    /// Points the caller, who is this puppet, at its park page.
    pub fn point_at_park(&self) {
        let a = self.addresses();
        task::puppet_park(a.park, a.stack);
    }

    /// Whether it has arrived and lives.
    pub fn is_parked(&self) -> bool {
        let i = self.inner.lock();
        i.parked && !i.gone
    }

    /// Whether its task has ended.
    pub fn is_gone(&self) -> bool {
        self.inner.lock().gone
    }

    /// Waits until it has arrived.
    ///
    /// # Errors
    /// `ETIMEDOUT`; `ESRCH` when it has ended; `EINTR`.
    pub fn wait_parked(&self, timeout_ms: u32) -> Result {
        match self.done.wait(Until::Kill, timeout_ms, || {
            let i = self.inner.lock();
            i.parked || i.gone
        }) {
            Woken::Ready if self.is_gone() => Err(ESRCH),
            Woken::Ready => Ok(()),
            Woken::Signal => Err(EINTR),
            Woken::Timeout => Err(ETIMEDOUT),
        }
    }

    /// Waits until its task has ended.
    ///
    /// # Errors
    /// `ETIMEDOUT`; `EINTR`.
    pub fn wait_gone(&self) -> Result {
        match self.done.wait(Until::Kill, ORDER_MS, || self.is_gone()) {
            Woken::Ready => Ok(()),
            Woken::Signal => Err(EINTR),
            Woken::Timeout => Err(ETIMEDOUT),
        }
    }

    fn post_job(&self, job: Job) -> Result<Arc<Order>> {
        let o = self.queue(job, |i| &mut i.orders)?;
        crate::files::seat::make_room(self.tid);
        Ok(o)
    }

    fn queue(
        &self,
        job: Job,
        to: impl FnOnce(&mut Inner) -> &mut KVec<Arc<Order>>,
    ) -> Result<Arc<Order>> {
        let o = Arc::pin_init(
            pin_init!(Order {
                state <- new_spinlock!(OrderState { job: Some(job), outcome: None }),
            }),
            GFP_KERNEL,
        )?;
        let mut i = self.inner.lock();
        if i.gone {
            return Err(ESRCH);
        }
        to(&mut i).push(o.clone(), GFP_ATOMIC)?;
        drop(i);
        self.wake.wake();
        Ok(o)
    }

    /// Gives an act without waiting for it.
    pub fn post(&self, act: Act) -> Result<Arc<Order>> {
        self.post_job(Job::Act(act))
    }

    /// Gives an act for [`Puppet::attend`] without waiting for it.
    pub fn post_stopped(&self, act: Act) -> Result<Arc<Order>> {
        self.queue(Job::Act(act), |i| &mut i.stopped)
    }

    /// Gives system calls without waiting for them. They run with signals blocked, but `mask` bits.
    pub fn post_calls(&self, calls: KVec<Call>, unmasked: u64) -> Result<Arc<Order>> {
        self.post_job(Job::Calls {
            calls,
            at: 0,
            mask: !unmasked,
        })
    }

    /// Waits for an order's outcome.
    ///
    /// # Errors
    /// The order's own; `ETIMEDOUT`; `ESRCH` when the puppet has ended; `EINTR`.
    pub fn outcome(&self, o: &Order) -> Result<u64> {
        self.outcome_within(o, ORDER_MS)
    }

    /// As [`Puppet::outcome`], for at most `timeout_ms`.
    ///
    /// # Errors
    /// As there.
    pub fn outcome_within(&self, o: &Order, timeout_ms: u32) -> Result<u64> {
        let woken = self.done.wait(Until::Kill, timeout_ms, || {
            o.state.lock().outcome.is_some() || self.inner.lock().gone
        });
        if let Some(r) = o.state.lock().outcome {
            return r;
        }
        Err(match woken {
            Woken::Ready => ESRCH,
            Woken::Signal => EINTR,
            Woken::Timeout => ETIMEDOUT,
        })
    }

    /// Has the puppet do something in the kernel and waits for it.
    ///
    /// # Errors
    /// As [`Puppet::outcome`].
    pub fn act(&self, f: impl FnOnce(&Arc<Puppet>) -> Result<Next> + Send + 'static) -> Result {
        let o = self.post(act_of(f)?)?;
        self.outcome(&o).map(|_| ())
    }

    /// As [`Puppet::act`], for [`Puppet::attend`].
    ///
    /// # Errors
    /// As [`Puppet::outcome`].
    pub fn act_stopped(
        &self,
        f: impl FnOnce(&Arc<Puppet>) -> Result<Next> + Send + 'static,
    ) -> Result {
        let o = self.post_stopped(act_of(f)?)?;
        self.outcome(&o).map(|_| ())
    }

    /// Has the puppet make system calls, one after the other, until one does not return what is
    /// expected. Returns what the last returned.
    ///
    /// # Errors
    /// As [`Puppet::outcome`]; that of the call that failed; `EPROTO` for an unexpected value.
    pub fn calls(&self, calls: KVec<Call>) -> Result<u64> {
        if calls.is_empty() {
            return Ok(0);
        }
        let o = self.post_calls(calls, 0)?;
        self.outcome(&o)
    }

    /// One system call.
    ///
    /// # Errors
    /// As [`Puppet::calls`].
    pub fn call(&self, c: Call) -> Result<u64> {
        let mut v = KVec::with_capacity(1, GFP_KERNEL)?;
        v.push(c, GFP_KERNEL)?;
        self.calls(v)
    }

    fn finish(&self, o: &Order, r: Result<u64>) {
        let mut s = o.state.lock();
        if s.outcome.is_none() {
            s.outcome = Some(r);
        }
        drop(s);
        self.done.wake();
    }

    /// Its task has ended: nobody waits for it any longer.
    pub fn ended(self: &Arc<Self>) {
        let (stopped, orders, process) = {
            let mut i = self.inner.lock();
            i.gone = true;
            i.calling = None;
            (
                core::mem::take(&mut i.stopped),
                core::mem::take(&mut i.orders),
                i.process.take(),
            )
        };
        for o in [&stopped, &orders].into_iter().flatten() {
            self.finish(o, Err(ESRCH));
        }
        drop(process);
        puppets::remove_exact(u64::from(self.tid), self);
        self.done.wake();
    }

    fn arrived(&self) {
        let fresh = {
            let mut i = self.inner.lock();
            !core::mem::replace(&mut i.parked, true)
        };
        if fresh {
            self.done.wake();
        }
    }

    fn pop(&self, from: impl FnOnce(&mut Inner) -> &mut KVec<Arc<Order>>) -> Option<Arc<Order>> {
        let mut i = self.inner.lock();
        let orders = from(&mut i);
        if orders.is_empty() {
            None
        } else {
            orders.remove(0).ok()
        }
    }

    /// Whether orders for its page wait for it.
    pub fn has_orders(&self) -> bool {
        !self.inner.lock().orders.is_empty()
    }

    /// Runs acts until one says [`Next::Leave`], somewhere in the kernel other than at the park
    /// page. Orders for the page wait. False when the task is being killed.
    pub fn attend(self: &Arc<Self>) -> bool {
        self.arrived();
        loop {
            while let Some(o) = self.pop(|i| &mut i.stopped) {
                let job = o.state.lock().job.take();
                let r = match job {
                    Some(Job::Act(mut f)) => f(self),
                    _ => Err(EINVAL),
                };
                self.finish(&o, r.map(|_| 0));
                if r == Ok(Next::Leave) {
                    return true;
                }
            }
            let has_more = || !self.inner.lock().stopped.is_empty();
            if self.wake.wait(Until::Kill, u32::MAX / 2, has_more) == Woken::Signal {
                return false;
            }
        }
    }

    /// Points the puppet at the next call of `o`. False when there is none left or it failed.
    fn next_call(&self, o: &Arc<Order>) -> bool {
        let mut s = o.state.lock();
        let Some(Job::Calls { calls, at, mask }) = &mut s.job else {
            return false;
        };
        let mask = *mask;
        let Some(c) = calls.get_mut(*at) else {
            return false;
        };
        let data = c.data.take();
        let (nr, args, stack) = (c.nr, c.args, c.stack);
        drop(s);
        if let Some((at, bytes)) = data {
            if let Err(e) = task::user_write(at, &bytes) {
                self.finish(o, Err(e));
                return false;
            }
        }
        task::set_mask(mask, None);
        self.inner.lock().calling = Some(o.clone());
        let a = self.addresses();
        task::puppet_call(
            a.syscall,
            if stack == 0 { a.stack } else { stack },
            nr,
            &args,
        );
        true
    }

    /// A call has come back with `ax`. True when another is under way.
    fn call_returned(&self, o: &Arc<Order>, ax: u64) -> bool {
        let mut s = o.state.lock();
        let Some(Job::Calls { calls, at, .. }) = &mut s.job else {
            return false;
        };
        let Some(c) = calls.get(*at) else {
            return false;
        };
        let failed = ax > -4096i64 as u64;
        let r = match c.expect {
            Expect::Anything => Ok(ax),
            Expect::Success if failed => Err(Error::from_errno(ax as i64 as i32)),
            Expect::Success => Ok(ax),
            Expect::Exactly(v) if v == ax => Ok(ax),
            Expect::Exactly(_) if failed => Err(Error::from_errno(ax as i64 as i32)),
            Expect::Exactly(_) => Err(EPROTO),
        };
        if r.is_err() {
            pr_debug!(
                "puppet {}: call {} ({}) returned {}\n",
                self.tid,
                *at,
                c.nr,
                ax as i64
            );
        }
        *at += 1;
        let more = r.is_ok() && *at < calls.len();
        drop(s);
        if more {
            return self.next_call(o);
        }
        self.finish(o, r);
        false
    }

    /// In the fault on its park page.
    fn at_page(self: &Arc<Self>) -> Parked {
        let r = task::puppet_regs();
        let a = self.addresses();
        let calling = self.inner.lock().calling.take();
        if r.ip == a.handler {
            let info = task::read_siginfo(r.si);
            if let Some(o) = &calling {
                // A call that lets signals in was interrupted by one: it is over.
                self.finish(o, Ok(0));
            }
            task::puppet_park(a.park, a.stack);
            task::set_mask(if self.inner.lock().open { 0 } else { !0 }, None);
            let process = self.inner.lock().process.clone();
            if let (Some(p), Ok(info)) = (process, info) {
                p.signalled(self, &info);
            }
            return Parked::Run;
        }
        if r.ip != a.park {
            return Parked::Stray;
        }
        self.arrived();
        if let Some(o) = calling {
            if self.call_returned(&o, r.ax) {
                return Parked::Run;
            }
            task::puppet_park(a.park, a.stack);
        }
        loop {
            while let Some(o) = self.pop(|i| &mut i.orders) {
                let mut s = o.state.lock();
                if matches!(s.job, Some(Job::Calls { .. })) {
                    drop(s);
                    if self.next_call(&o) {
                        return Parked::Run;
                    }
                    self.finish(&o, Ok(0));
                    continue;
                }
                let job = s.job.take();
                drop(s);
                let Some(Job::Act(mut f)) = job else { continue };
                let next = f(self);
                self.finish(&o, next.map(|_| 0));
                match next {
                    Ok(Next::Stay) | Err(_) => {}
                    Ok(Next::Breathe) => {
                        self.point_at_park();
                        return Parked::Run;
                    }
                    Ok(Next::Leave) => {
                        puppets::remove_exact(u64::from(self.tid), self);
                        return Parked::Run;
                    }
                }
            }
            let (open, process) = {
                let i = self.inner.lock();
                (i.open, i.process.clone())
            };
            task::set_mask(if open { 0 } else { !0 }, None);
            match self
                .wake
                .wait(Until::Signal, u32::MAX / 2, || self.has_orders())
            {
                Woken::Ready | Woken::Timeout => {}
                Woken::Signal => {
                    if let Some(p) = process {
                        p.stop_noticed(self);
                    }
                    return Parked::Retry;
                }
            }
        }
    }
}

struct Addresses {
    syscall: u64,
    park: u64,
    handler: u64,
    scratch: u64,
    stack: u64,
}

/// Called in a fault on a park page, without locks.
pub fn park() -> Parked {
    match puppets::get(u64::from(task::tid())) {
        Some(p) => p.at_page(),
        None => Parked::Stray,
    }
}

/// `ioctl(BECOME)`: the caller, a stub, is a puppet from now on and waits for the image `token`.
///
/// # Errors
/// `EBUSY` when someone waits for it already; errors of mapping.
pub fn become_guest(token: u64) -> Result {
    let base = mm::map_area(0, SLOT_BYTES)?;
    let p = Puppet::new(task::tid()).inspect_err(|_| {
        let _ = mm::unmap(base, 2 * PAGE + SLOT_BYTES);
    })?;
    p.place(base, 0);
    if let Err(e) = crate::mover::stub_ready(token, &p) {
        puppets::remove_exact(u64::from(p.tid), &p);
        let _ = mm::unmap(base, 2 * PAGE + SLOT_BYTES);
        return Err(e);
    }
    task::set_mask(!0, None);
    p.point_at_park();
    Ok(())
}
