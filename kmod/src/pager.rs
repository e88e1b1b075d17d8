// SPDX-License-Identifier: GPL-2.0-only

//! Memory that arrives after its process: pages on demand, pages ahead of demand, and the end of
//! it, when every mapping is an ordinary one again.
//!
//! A [`Pager`] belongs to one migration at the node that received it. For each page it knows
//! whether it is here, is already in the process's own memory, or was never mentioned; the last
//! means absent until the source has said that it sent everything, and the mapping's own content
//! (zeros, or the file) from then on. A page that arrives is brought into the process's memory at
//! once, or, where that would wait, is kept until the *installer* does it.
//!
//! The other end is a [`Source`](crate::source::Source). Answers to requests and pages sent ahead come over sockets of
//! their own, so that the former do not queue behind the latter; when everything is here is [`Ends`]' to say.
//!
//! Lock order: a pager's `taking` comes before the memory's own locks; its `inner` is taken under those, and for
//! moments only.

use crate::ends::Ends;
use crate::gate;
use crate::id::NodeId;
use crate::stat::{self, Counter};
use crate::sys::mm::{DataPage, Memory, PAGE};
use crate::sys::task;
use crate::sys::wait::{Until, WaitQueue, Woken};
use crate::sys::work::{self, Hold};
use crate::table;
use crate::wire::task::{PageKind, PageRequest, PageRun, PageRuns, Verdict};
use crate::wire::{self, Class, Kind};
use kernel::prelude::*;
use kernel::rbtree::{RBTree, RBTreeNode, RBTreeNodeReservation};
use kernel::sync::{new_mutex, new_spinlock, Arc, Mutex, SpinLock};
use zerocopy::little_endian::{U32, U64};

table! {
    /// Pagers by migration.
    pagers: Pager
}

/// What a pager knows of a page.
pub enum Found {
    /// Zeros.
    Zero,
    /// Data.
    Data(DataPage),
    /// What the mapped file holds.
    File,
    /// Not here yet.
    Absent,
    /// Whatever the mapping itself says: zeros, or the file.
    Rest,
    /// It will never be here.
    Lost,
}

enum Slot {
    Asked,
    Zero,
    File,
    Data(DataPage),
    Done,
}

struct Inner {
    slots: RBTree<u64, Slot>,
    /// Addresses to be brought into the process's memory.
    install: KVVec<u64>,
    /// Slots that hold data.
    data: usize,
    /// Pages that were sent were lost for want of memory: everything has to be sent again.
    short: bool,
    /// Pages that were brought in, to be used again.
    spare: KVVec<DataPage>,
    installing: bool,
    ends: Ends,
    /// Everything has arrived.
    complete: bool,
    /// The source is dead.
    orphan: bool,
    /// The source is dead, or the process is: no page is waited for.
    dead: bool,
    asked_all: bool,
    /// Where the next fault of a run would be, and how far to look ahead.
    expected: u64,
    window: u32,
}

impl Inner {
    /// The run of pages to be brought in next: first address and number.
    fn next_run(&mut self) -> Option<(u64, usize)> {
        if self.install.is_empty() && self.complete && self.data > 0 {
            // There was no memory to note them: look for them.
            let (a, _) = self.slots.iter().find(|s| matches!(s.1, Slot::Data(_)))?;
            return Some((*a, 1));
        }
        let mut first = self.install.pop()?;
        let mut n = 1;
        while n < INSTALLED && self.install.last() == Some(&(first.wrapping_sub(PAGE as u64))) {
            first -= PAGE as u64;
            self.install.pop();
            n += 1;
        }
        Some((first, n))
    }

    /// The page needs nothing more: returns what was known of it.
    fn done(&mut self, addr: u64) -> Option<Slot> {
        let old = core::mem::replace(self.slots.get_mut(&addr)?, Slot::Done);
        if matches!(old, Slot::Data(_)) {
            self.data = self.data.saturating_sub(1);
        }
        Some(old)
    }
}

/// Pages brought in at a time, and as many that came alone wait for company: who asked for one maps it
/// by itself.
const INSTALLED: usize = 64;

/// Pages asked for by a fault that follows no other: what lies behind is often next, and all of it has to
/// come at some time.
const ALONG: u32 = 8;

/// The receiving end of a process's memory.
#[pin_data]
pub struct Pager {
    /// The migration.
    pub token: u64,
    /// The process.
    pub pid: u32,
    /// Who has the pages.
    pub source: NodeId,
    #[pin]
    inner: SpinLock<Inner>,
    /// Held while pages that have arrived are brought in: the same one may come both ways at once.
    #[pin]
    taking: Mutex<()>,
    #[pin]
    wait: WaitQueue,
    #[pin]
    memory: SpinLock<Option<Arc<Memory>>>,
    #[pin]
    keeper: SpinLock<Option<gate::Keeper>>,
    // Mappings of its process have no file of ours, and a fault may sleep for it.
    _hold: Hold,
}

impl Pager {
    /// A pager that knows nothing yet.
    pub fn new(token: u64, pid: u32, source: NodeId) -> Result<Arc<Self>> {
        let keeper = Some(gate::Keeper::new()?);
        let p = Arc::pin_init(
            pin_init!(Self {
                token,
                pid,
                source,
                inner <- new_spinlock!(Inner {
                    slots: RBTree::new(),
                    install: KVVec::new(),
                    data: 0,
                    short: false,
                    spare: KVVec::new(),
                    installing: false,
                    ends: Ends::default(),
                    complete: false,
                    orphan: false,
                    dead: false,
                    asked_all: false,
                    expected: 0,
                    window: 1,
                }),
                taking <- new_mutex!(()),
                wait <- WaitQueue::new(),
                memory <- new_spinlock!(None),
                keeper <- new_spinlock!(keeper),
                _hold: Hold::new()?,
            }? Error),
            GFP_KERNEL,
        )?;
        pagers::insert(token, p.clone())?;
        Ok(p)
    }

    /// The memory that its pages are for. If the source has died meanwhile, the process does not get to run.
    pub fn set_memory(self: &Arc<Self>, m: Arc<Memory>) {
        *self.memory.lock() = Some(m);
        if self.inner.lock().orphan {
            self.cut_off();
        }
    }

    /// The source is dead: the process ends, unless it does not run yet; then [`Self::set_memory`] does that.
    fn orphaned(self: &Arc<Self>) {
        self.inner.lock().orphan = true;
        if self.is_filling() {
            self.cut_off();
        }
    }

    fn cut_off(self: &Arc<Self>) {
        // In this order: this ends it, not a page that is missing.
        crate::process::kill(self.pid);
        self.die();
    }

    /// A page that came with the image.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn preload(&self, addr: u64, data: &[u8]) -> Result {
        self.put(addr, Slot::Data(DataPage::new(None, data)?))
            .map(|_| ())
    }

    /// What is known of the page at `addr`. For faults: takes a spin lock only.
    pub fn lookup(&self, addr: u64) -> Found {
        let i = self.inner.lock();
        match i.slots.get(&addr) {
            Some(Slot::Data(p)) => Found::Data(p.clone()),
            Some(Slot::Zero) => Found::Zero,
            Some(Slot::File) => Found::File,
            Some(Slot::Done) => Found::Rest,
            Some(Slot::Asked) | None if i.complete => Found::Rest,
            Some(Slot::Asked) | None if i.dead => Found::Lost,
            Some(Slot::Asked) | None => Found::Absent,
        }
    }

    fn known(&self, addr: u64) -> bool {
        let i = self.inner.lock();
        i.dead || i.complete || !matches!(i.slots.get(&addr), None | Some(Slot::Asked))
    }

    /// Chooses what to ask for when there is a fault at `addr`, in a mapping that ends at `end`, and notes
    /// it. As long as faults come in order, more and more at a time, the next before the last is here.
    /// Returns the first page and their number; none if it was asked for and that is enough.
    fn ask(&self, addr: u64, end: u64) -> (u64, u64) {
        let page = PAGE as u64;
        let (first, window) = {
            let mut i = self.inner.lock();
            let near = i.expected.wrapping_sub(addr) <= u64::from(i.window / 2) * page;
            let (first, window) = match i.slots.get(&addr) {
                None if addr == i.expected => (addr, i.window * 2),
                None => (addr, ALONG),
                Some(Slot::Asked) if near => (i.expected, i.window * 2),
                Some(_) => return (addr, 0),
            };
            i.window = window.min(crate::params::prefetch());
            (
                first,
                u64::from(i.window).min(end.saturating_sub(first) / page),
            )
        };
        let mut n = 0;
        while n < window {
            let a = first + n * page;
            let Ok(node) = RBTreeNode::new(a, Slot::Asked, GFP_KERNEL) else {
                break;
            };
            let mut i = self.inner.lock();
            if i.slots.get(&a).is_some() {
                break;
            }
            i.slots.insert(node);
            n += 1;
        }
        self.inner.lock().expected = first + n * page;
        (first, n)
    }

    /// Nothing came: the next fault asks again.
    fn unask(&self, addr: u64, count: u64) {
        for k in 0..count {
            let a = addr + k * PAGE as u64;
            let mut i = self.inner.lock();
            if matches!(i.slots.get(&a), Some(Slot::Asked)) {
                i.slots.remove(&a);
            }
        }
    }

    /// Asks for the page at `addr`, of a mapping that ends at `end`, and waits until it is known, or
    /// a signal comes.
    pub fn fetch(&self, addr: u64, end: u64, interruptible: bool) {
        let (first, count) = self.ask(addr, end);
        if count > 0 {
            stat::add(Counter::PagesRequested, count as i64);
            let r = PageRequest {
                token: U64::new(self.token),
                addr: U64::new(first),
                count: U32::new(count as u32),
                reserved: U32::new(0),
            };
            let (class, kind) = (Class::Memory, Kind::PageRequest);
            if crate::node::say(self.source, class, kind, wire::bytes(&r)).is_err() {
                self.unask(first, count);
                task::sleep_ms(10);
                return;
            }
        }
        let until = if interruptible {
            Until::Signal
        } else {
            Until::Kill
        };
        if self.wait.wait(until, 60_000, || self.known(addr)) == Woken::Timeout {
            self.unask(addr, 1);
        }
    }

    /// Whether the process runs while pages of it are missing.
    pub fn is_filling(&self) -> bool {
        self.memory.lock().is_some() && !self.inner.lock().dead
    }

    /// Asks the source to send everything, whatever it was told about sending unasked.
    fn ask_all(&self) {
        if core::mem::replace(&mut self.inner.lock().asked_all, true) {
            return;
        }
        let v = Verdict::new(self.token, self.pid);
        if crate::node::say(self.source, Class::Memory, Kind::PagesAll, wire::bytes(&v)).is_err() {
            self.inner.lock().asked_all = false;
        }
    }

    /// The process has unmapped a range.
    pub fn forget(&self, start: u64, end: u64) {
        let mut from = start;
        loop {
            // One at a time: pages are freed outside the lock.
            let mut i = self.inner.lock();
            let next = i
                .slots
                .cursor_lower_bound(&from)
                .map(|c| *c.current().0)
                .filter(|a| *a < end);
            let Some(a) = next else { break };
            let old = i.done(a);
            drop(i);
            drop(old);
            from = a + 1;
        }
    }

    /// Pages have arrived.
    ///
    /// # Errors
    /// `ENOMEM`: some are lost, and will be sent again.
    pub fn take(self: &Arc<Self>, pages: PageRuns<'_>) -> Result {
        let _taking = self.taking.lock();
        let (mut news, mut kept) = (0, 0);
        let r = self.try_take(pages, &mut news, &mut kept);
        if r.is_err() {
            self.inner.lock().short = true;
        }
        stat::add(Counter::PagesReceived, news);
        // Also for those that came before one was lost.
        self.wait.wake();
        if r.is_err() || kept > 1 || self.inner.lock().install.len() >= INSTALLED {
            self.start_installer();
        }
        r
    }

    fn try_take(&self, pages: PageRuns<'_>, news: &mut i64, kept: &mut usize) -> Result {
        let memory = self.memory.lock().clone();
        for run in pages {
            let given = match &memory {
                Some(m) if run.kind == PageKind::Data => self.give(m, &run)?,
                _ => 0,
            };
            for k in given..run.count {
                let slot = match run.kind {
                    PageKind::Zero => Slot::Zero,
                    PageKind::File => Slot::File,
                    PageKind::Data => {
                        *kept += 1;
                        let page = run.data.get(k * PAGE..(k + 1) * PAGE).ok_or(EINVAL)?;
                        Slot::Data(DataPage::new(self.spare(), page)?)
                    }
                };
                *news += i64::from(self.put(run.addr + (k * PAGE) as u64, slot)?);
            }
            *news += given as i64;
        }
        Ok(())
    }

    /// Brings the first pages of a run straight into the process's memory, as far as nothing is known of
    /// them and that takes no waiting. Returns their number.
    fn give(&self, memory: &Memory, run: &PageRun<'_>) -> Result<usize> {
        let at = |k: usize| run.addr + (k * PAGE) as u64;
        let news = {
            let i = self.inner.lock();
            let is_new = |k: &usize| matches!(i.slots.get(&at(*k)), None | Some(Slot::Asked));
            (0..run.count).take_while(is_new).count()
        };
        let data = run.data.get(..news * PAGE).ok_or(EINVAL)?;
        let given = memory.give(run.addr, data, self);
        for k in 0..given {
            self.put(at(k), Slot::Done)?;
        }
        Ok(given)
    }

    fn spare(&self) -> Option<DataPage> {
        self.inner.lock().spare.pop()
    }

    /// Notes what a page holds, unless that is known. Returns whether it was not.
    fn put(&self, addr: u64, slot: Slot) -> Result<bool> {
        let has_data = matches!(slot, Slot::Data(_));
        let mut room = None;
        loop {
            let mut i = self.inner.lock();
            if has_data {
                i.install.reserve(1, GFP_ATOMIC)?;
            }
            match (i.slots.get_mut(&addr), room.take()) {
                // It may have been asked for while the lock was not held.
                (Some(old @ Slot::Asked), _) => *old = slot,
                (Some(_), _) => return Ok(false),
                (None, Some(room)) => {
                    let room: RBTreeNodeReservation<u64, Slot> = room;
                    i.slots.insert(room.into_node(addr, slot));
                }
                (None, None) => {
                    drop(i);
                    room = Some(RBTreeNodeReservation::new(GFP_KERNEL)?);
                    continue;
                }
            }
            if has_data {
                i.data += 1;
                i.install.push(addr, GFP_ATOMIC)?;
            }
            return Ok(true);
        }
    }

    /// Everything was sent, the `n`th time, as far as it comes in this class.
    pub fn sent_all(self: &Arc<Self>, class: Class, n: u64) {
        {
            let mut i = self.inner.lock();
            if !i.ends.arrived(class, n) {
                return;
            }
            if core::mem::replace(&mut i.short, false) {
                i.asked_all = false;
                drop(i);
                return self.ask_all();
            }
            i.complete = true;
        }
        self.wait.wake();
        self.start_installer();
    }

    /// The source or the process is dead: nobody waits any longer.
    pub fn die(self: &Arc<Self>) {
        self.inner.lock().dead = true;
        self.wait.wake();
        // Lets go of the memory.
        self.start_installer();
    }

    /// Takes it out of the table: it is whole, or nothing will come of it. False: that was done.
    pub fn leave(self: &Arc<Self>) -> bool {
        let left = pagers::remove_exact(self.token, self);
        let keeper = self.keeper.lock().take();
        drop(keeper);
        left
    }

    /// Asks for all that is missing and waits until the memory is whole.
    ///
    /// # Errors
    /// `EINTR`, `ETIMEDOUT`.
    pub fn wait_filled(&self, until: Until, timeout_ms: u32) -> Result {
        self.ask_all();
        let whole = || pagers::get(self.token).is_none();
        match self.wait.wait(until, timeout_ms, whole) {
            Woken::Ready => Ok(()),
            Woken::Signal => Err(EINTR),
            Woken::Timeout => Err(ETIMEDOUT),
        }
    }

    /// Starts bringing pages in, once the process runs.
    pub fn start_installer(self: &Arc<Self>) {
        if self.memory.lock().is_none() {
            return;
        }
        if core::mem::replace(&mut self.inner.lock().installing, true) {
            return;
        }
        let me = self.clone();
        if work::spawn(c"ssi", move || me.install_all()).is_err() {
            self.inner.lock().installing = false;
        }
    }

    fn install_all(self: Arc<Self>) {
        let Some(memory) = self.memory.lock().clone() else {
            return;
        };
        loop {
            let (run, dead) = {
                let mut i = self.inner.lock();
                let run = i.next_run();
                if run.is_none() {
                    i.installing = false;
                    if !i.complete && !i.dead {
                        return;
                    }
                }
                (run, i.dead)
            };
            let Some((addr, count)) = run else {
                if !dead {
                    memory.unhook(&self);
                }
                self.over();
                return;
            };
            let at = |k: usize| addr + (k * PAGE) as u64;
            // How many need no second try. If the process is at its limit or ending, that will show: it
            // is killed, and this is told.
            let over = match memory.install(addr, count, &self) {
                // The mapping has gone.
                Ok(0) => {
                    let old = self.inner.lock().done(addr);
                    drop(old);
                    1
                }
                Ok(n) => {
                    for k in 0..n {
                        let mut i = self.inner.lock();
                        let old = i.done(at(k));
                        if let Some(Slot::Data(page)) = old {
                            if i.spare.len() < INSTALLED {
                                let _ = i.spare.push(page, GFP_ATOMIC);
                            }
                        }
                    }
                    n
                }
                Err(e) => {
                    task::sleep_ms(if e == EAGAIN { 1 } else { 20 });
                    0
                }
            };
            for k in over..count {
                let _ = self.inner.lock().install.push(at(k), GFP_ATOMIC);
            }
            if self.inner.lock().dead {
                let mut i = self.inner.lock();
                i.data = 0;
                let old = core::mem::replace(&mut i.install, KVVec::new());
                drop(i);
                drop(old);
            }
        }
    }

    /// The process ended before it had a memory that pages could be brought into.
    pub fn give_up(self: &Arc<Self>) {
        self.die();
        self.over();
    }

    /// All pages are in, or none is wanted any more. In the latter case mappings keep it as long as the memory
    /// is there: whoever else uses that must not find zeros.
    fn over(self: &Arc<Self>) {
        let memory = self.memory.lock().take();
        drop(memory);
        if !self.leave() {
            return;
        }
        let v = Verdict::new(self.token, self.pid);
        let _ = crate::node::say(
            self.source,
            Class::Control,
            Kind::PagesTaken,
            wire::bytes(&v),
        );
        crate::process::filled(self.pid, self);
        self.wait.wake();
    }
}

/// Pages have arrived, or the end of them.
pub fn frame(peer: NodeId, class: Class, kind: Kind, payload: &[u8]) -> Result {
    match kind {
        Kind::Pages => {
            let (p, pages) = wire::task::pages(payload).map_err(|_| EINVAL)?;
            match pagers::get(p.token.get()).filter(|g| g.source == peer) {
                Some(g) => g.take(pages),
                None => Ok(()),
            }
        }
        Kind::PagesEnd => {
            let (v, _) = wire::split::<Verdict>(payload).map_err(|_| EINVAL)?;
            if let Some(g) = pagers::get(v.token.get()).filter(|g| g.source == peer) {
                if v.errno.get() == 0 {
                    g.sent_all(class, v.arg.get());
                } else {
                    pr_err!("process {}: its memory on n{} is gone\n", g.pid, peer.get());
                    g.cut_off();
                }
            }
            Ok(())
        }
        _ => Err(EINVAL),
    }
}

/// A node is dead: the processes here whose memory was still there end, also those that are at home.
pub fn source_dead(peer: NodeId) {
    let mut after = None;
    while let Some((k, p)) = pagers::next(after) {
        after = Some(k);
        if p.source == peer {
            p.orphaned();
        }
    }
}

/// This process has ended, or runs another program: nobody would ask for the rest of the memory.
pub fn program_ended(pid: u32) {
    if let Some(g) = of_process(pid) {
        g.die();
    }
}

/// The pager of a process whose memory is still arriving here.
pub fn of_process(pid: u32) -> Option<Arc<Pager>> {
    let mut after = None;
    while let Some((k, p)) = pagers::next(after) {
        if p.pid == pid {
            return Some(p);
        }
        after = Some(k);
    }
    None
}
