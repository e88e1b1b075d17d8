// SPDX-License-Identifier: GPL-2.0-only

//! Memory that arrives after its process: pages on demand, pages ahead of demand, and the end of
//! it, when every mapping is an ordinary one again.
//!
//! A [`Pager`] belongs to one migration at the node that received it. For each page it knows
//! whether it is here, is already in the process's own memory, or was never mentioned; the last
//! means absent until the source has said that it sent everything, and the mapping's own content
//! (zeros, or the file) from then on. Every page that arrives is also brought into the process's
//! memory by the *installer*, so a page is held twice for a moment only.
//!
//! A [`Source`] is the other end: the memory of the captured process, read page by page until the
//! target has taken all of it.
//!
//! Lock order: a pager's `inner` is taken under the memory's own locks, and for moments only.

use crate::gate;
use crate::id::NodeId;
use crate::link::{self, Urgency};
use crate::mover::Timing;
use crate::stat::{self, Counter};
use crate::sys::mm::{Content, Memory, PAGE};
use crate::sys::task;
use crate::sys::wait::{Until, WaitQueue, Woken};
use crate::sys::work::{self, Hold};
use crate::table;
use crate::wire::task::{PageIter, PageKind, PageRequest, Pages, Verdict, MAX_PAGES};
use crate::wire::{self, Class, Kind};
use kernel::prelude::*;
use kernel::rbtree::{RBTree, RBTreeNode};
use kernel::sync::{new_spinlock, Arc, SpinLock};
use zerocopy::little_endian::{U32, U64};

table! {
    /// Pagers by migration.
    pagers: Pager
}
table! {
    /// Sources by migration.
    sources: Source
}

/// What a pager knows of a page.
pub enum Found {
    /// Zeros.
    Zero,
    /// Data, which was copied out.
    Data,
    /// What the mapped file holds.
    File,
    /// Not here yet.
    Absent,
    /// Whatever the mapping itself says: zeros, or the file.
    Rest,
}

enum Slot {
    Asked,
    Zero,
    File,
    Data(KBox<[u8; PAGE]>),
    Done,
}

struct Inner {
    slots: RBTree<u64, Slot>,
    /// Addresses to be brought into the process's memory.
    install: KVVec<u64>,
    installing: bool,
    /// The source has sent everything.
    complete: bool,
    /// The source is dead, or the process is.
    dead: bool,
    asked_all: bool,
    /// Where the next fault of a run would be, and how far to look ahead.
    expected: u64,
    window: u32,
}

/// A page of data of its own.
fn boxed(data: &[u8]) -> Result<KBox<[u8; PAGE]>> {
    let mut b = KBox::<[u8; PAGE]>::init(pin_init::init_zeroed(), GFP_KERNEL)?;
    b.get_mut(..)
        .filter(|b| b.len() == data.len())
        .ok_or(EINVAL)?
        .copy_from_slice(data);
    Ok(b)
}

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
                    installing: false,
                    complete: false,
                    dead: false,
                    asked_all: false,
                    expected: 0,
                    window: 1,
                }),
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

    /// The memory that its pages are for.
    pub fn set_memory(&self, m: Arc<Memory>) {
        *self.memory.lock() = Some(m);
    }

    /// What is known of the page at `addr`; data is copied to `to`. For faults: takes a spin lock
    /// only.
    pub fn lookup(&self, addr: u64, to: &mut [u8; PAGE]) -> Found {
        let i = self.inner.lock();
        let complete = i.complete;
        match i.slots.get(&addr) {
            Some(Slot::Data(p)) => {
                to.copy_from_slice(&p[..]);
                Found::Data
            }
            Some(Slot::Zero) => Found::Zero,
            Some(Slot::File) => Found::File,
            Some(Slot::Done) => Found::Rest,
            Some(Slot::Asked) | None if complete => Found::Rest,
            Some(Slot::Asked) | None => Found::Absent,
        }
    }

    fn known(&self, addr: u64) -> bool {
        let i = self.inner.lock();
        i.dead || i.complete || !matches!(i.slots.get(&addr), None | Some(Slot::Asked))
    }

    /// Asks for the page at `addr` and waits until it is known, or a signal comes.
    pub fn fetch(&self, addr: u64, interruptible: bool) {
        let node = RBTreeNode::new(addr, Slot::Asked, GFP_KERNEL);
        let count = {
            let mut i = self.inner.lock();
            let ahead = crate::params::prefetch();
            i.window = if addr == i.expected {
                (i.window * 2).min(ahead)
            } else {
                1
            };
            i.window = i.window.max(1);
            i.expected = addr + u64::from(i.window) * PAGE as u64;
            match (i.slots.get(&addr), node) {
                (None, Ok(n)) => {
                    i.slots.insert(n);
                    i.window
                }
                _ => 0,
            }
        };
        if count > 0 && !self.known(addr) {
            stat::add(Counter::PagesRequested, 1);
            let r = PageRequest {
                token: U64::new(self.token),
                addr: U64::new(addr),
                count: U32::new(count),
                reserved: U32::new(0),
            };
            if crate::node::say(
                self.source,
                Class::Memory,
                Kind::PageRequest,
                wire::bytes(&r),
            )
            .is_err()
            {
                self.inner.lock().slots.remove(&addr);
                task::sleep_ms(10);
                return;
            }
        }
        let until = if interruptible {
            Until::Signal
        } else {
            Until::Kill
        };
        let _ = self.wait.wait(until, 60_000, || self.known(addr));
    }

    /// Whether the process runs while pages of it are missing.
    pub fn is_filling(&self) -> bool {
        self.memory.lock().is_some() && !self.inner.lock().dead
    }

    /// Asks the source to send everything, whatever it was told about sending unasked.
    pub fn ask_all(&self) {
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
            let old = i
                .slots
                .get_mut(&a)
                .map(|s| core::mem::replace(s, Slot::Done));
            drop(i);
            drop(old);
            from = a + 1;
        }
    }

    /// Pages have arrived.
    pub fn take(self: &Arc<Self>, pages: PageIter<'_>) -> Result {
        let mut n = 0;
        for (addr, kind, data) in pages {
            let slot = match kind {
                PageKind::Zero => Slot::Zero,
                PageKind::File => Slot::File,
                PageKind::Data => Slot::Data(boxed(data)?),
            };
            let node = RBTreeNode::new(addr, slot, GFP_KERNEL)?;
            let has_data = kind == PageKind::Data;
            let mut i = self.inner.lock();
            if matches!(i.slots.get(&addr), None | Some(Slot::Asked)) {
                let old = i.slots.insert(node);
                if has_data {
                    i.install.push(addr, GFP_ATOMIC)?;
                }
                drop(i);
                drop(old);
                n += 1;
            }
        }
        stat::add(Counter::PagesReceived, n);
        self.wait.wake();
        self.start_installer();
        Ok(())
    }

    /// Everything was sent.
    pub fn sent_all(self: &Arc<Self>) {
        self.inner.lock().complete = true;
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

    fn has_left(&self) -> bool {
        pagers::get(self.token).is_none()
    }

    /// As [`Pager::wait_filled`], but for a caller that also has signals to take.
    pub fn wait_whole(&self, timeout_ms: u32) {
        let _ = self
            .wait
            .wait(Until::Signal, timeout_ms, || self.has_left());
    }

    /// Takes it out of the table: it is whole, or nothing will come of it. False: that was done.
    pub fn leave(self: &Arc<Self>) -> bool {
        let left = pagers::remove_exact(self.token, self);
        let keeper = self.keeper.lock().take();
        drop(keeper);
        left
    }

    /// Waits until the memory is whole.
    pub fn wait_filled(&self, timeout_ms: u32) -> Result {
        self.ask_all();
        match self.wait.wait(Until::Kill, timeout_ms, || self.has_left()) {
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
            let next = {
                let mut i = self.inner.lock();
                let next = i.install.pop();
                if next.is_none() {
                    i.installing = false;
                    if !i.complete && !i.dead {
                        return;
                    }
                }
                next
            };
            let Some(addr) = next else {
                self.finish(&memory);
                return;
            };
            match memory.install(addr, &self) {
                Ok(_) => {
                    let mut i = self.inner.lock();
                    let old = i
                        .slots
                        .get_mut(&addr)
                        .map(|s| core::mem::replace(s, Slot::Done));
                    drop(i);
                    drop(old);
                }
                Err(e) if e == EAGAIN || e == ENOMEM || e == EINTR => {
                    let _ = self.inner.lock().install.push(addr, GFP_ATOMIC);
                    task::sleep_ms(if e == ENOMEM { 20 } else { 1 });
                }
                // The process is ending, or its limit is reached: its own fault will say so.
                Err(_) => {}
            }
            if self.inner.lock().dead {
                let mut i = self.inner.lock();
                let old = core::mem::replace(&mut i.install, KVVec::new());
                drop(i);
                drop(old);
            }
        }
    }

    /// All pages are in, or none is wanted any more.
    fn finish(self: &Arc<Self>, memory: &Memory) {
        memory.unhook(self);
        if !self.leave() {
            return;
        }
        *self.memory.lock() = None;
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

/// A range of a source's memory.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// First address after it.
    pub end: u64,
    /// The target has the file that is mapped here.
    pub file_known: bool,
}

/// The sending end of a process's memory.
#[pin_data]
pub struct Source {
    /// The migration.
    pub token: u64,
    /// The process.
    pub pid: u32,
    /// Who gets the pages.
    pub target: NodeId,
    memory: Memory,
    ranges: KVVec<Range>,
    /// Of the migration, for the report when all is taken.
    pub timing: Arc<Timing>,
    #[pin]
    state: SpinLock<SourceState>,
}

#[derive(Default)]
struct SourceState {
    over: bool,
    pushing: bool,
    fetched_bytes: u64,
    pushed_bytes: u64,
}

impl Source {
    /// Serves `ranges` of `memory` to `target` from now on.
    pub fn new(
        token: u64,
        pid: u32,
        target: NodeId,
        memory: Memory,
        ranges: KVVec<Range>,
        timing: Arc<Timing>,
    ) -> Result<Arc<Self>> {
        let s = Arc::pin_init(
            pin_init!(Self {
                token,
                pid,
                target,
                memory,
                ranges,
                timing,
                state <- new_spinlock!(SourceState::default()),
            }),
            GFP_KERNEL,
        )?;
        sources::insert(token, s.clone())?;
        Ok(s)
    }

    fn range_of(&self, addr: u64) -> Option<&Range> {
        self.ranges.iter().find(|r| addr >= r.start && addr < r.end)
    }

    /// Bytes sent on request and unasked.
    pub fn bytes(&self) -> (u64, u64) {
        let s = self.state.lock();
        (s.fetched_bytes, s.pushed_bytes)
    }

    /// No more pages are wanted.
    pub fn end(self: &Arc<Self>) {
        self.state.lock().over = true;
        sources::remove_exact(self.token, self);
    }

    fn over(&self) -> bool {
        self.state.lock().over
    }

    /// Reads `count` pages from `addr` on into a frame. `None`: none of them is to be sent.
    fn frame(&self, addr: u64, count: usize, asked: bool) -> Result<Option<(KVVec<u8>, u64)>> {
        let mut heads = KVVec::new();
        let mut data = KVVec::new();
        let mut buf = KBox::new([0u8; PAGE], GFP_KERNEL)?;
        let mut n = 0u32;
        for k in 0..count.min(MAX_PAGES) {
            let a = addr + (k * PAGE) as u64;
            let Some(r) = self.range_of(a) else { continue };
            let content = loop {
                match self.memory.read(a, &mut buf, r.file_known) {
                    Err(e) if e == EAGAIN => task::sleep_ms(1),
                    Err(e) => return Err(e),
                    Ok(c) => break c,
                }
            };
            let kind = match content {
                Content::Zero => PageKind::Zero,
                Content::File => PageKind::File,
                Content::Data => PageKind::Data,
            };
            if !asked && kind != PageKind::Data {
                continue;
            }
            heads.extend_from_slice(&(a | kind as u64).to_le_bytes(), GFP_KERNEL)?;
            if kind == PageKind::Data {
                data.extend_from_slice(&buf[..], GFP_KERNEL)?;
            }
            n += 1;
        }
        if n == 0 {
            return Ok(None);
        }
        let p = Pages {
            token: U64::new(self.token),
            count: U32::new(n),
            asked: U32::new(asked.into()),
        };
        let mut v = KVVec::with_capacity(16 + heads.len() + data.len(), GFP_KERNEL)?;
        v.extend_from_slice(wire::bytes(&p), GFP_KERNEL)?;
        v.extend_from_slice(&heads, GFP_KERNEL)?;
        v.extend_from_slice(&data, GFP_KERNEL)?;
        Ok(Some((v, data.len() as u64)))
    }

    /// Answers a request. Blocks on the memory.
    pub fn answer(&self, addr: u64, count: usize) -> Result {
        if let Some((v, bytes)) = self.frame(addr, count, true)? {
            self.state.lock().fetched_bytes += bytes;
            link::send(self.target, Class::Memory, Kind::Pages, v, Urgency::Now)?;
        } else {
            // Outside of all ranges: it reads as the mapping itself says.
            let p = Pages {
                token: U64::new(self.token),
                count: U32::new(1),
                asked: U32::new(1),
            };
            let mut v = KVVec::new();
            v.extend_from_slice(wire::bytes(&p), GFP_KERNEL)?;
            v.extend_from_slice(&addr.to_le_bytes(), GFP_KERNEL)?;
            link::send(self.target, Class::Memory, Kind::Pages, v, Urgency::Now)?;
        }
        Ok(())
    }

    /// Starts to send everything, if that was not done before.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn start_push(self: &Arc<Self>) -> Result {
        if core::mem::replace(&mut self.state.lock().pushing, true) {
            return Ok(());
        }
        let me = self.clone();
        work::spawn(c"ssi", move || {
            if let Err(e) = me.push() {
                if e == EFAULT {
                    crate::process::memory_lost(me.pid);
                }
            }
        })
        .inspect_err(|_| self.state.lock().pushing = false)
    }

    /// Sends all pages that hold data, then says that it was all.
    fn push(&self) -> Result {
        for r in &self.ranges {
            let mut a = r.start;
            while a < r.end {
                if self.over() {
                    return Ok(());
                }
                let n = (((r.end - a) as usize) / PAGE).min(MAX_PAGES);
                if let Some((v, bytes)) = self.frame(a, n, false)? {
                    self.state.lock().pushed_bytes += bytes;
                    stat::add(Counter::PagesPushed, (bytes / PAGE as u64) as i64);
                    link::wait_room(self.target, Class::Memory)?;
                    link::send(self.target, Class::Memory, Kind::Pages, v, Urgency::Bulk)?;
                }
                a += (n * PAGE) as u64;
            }
        }
        let mut v = KVVec::new();
        v.extend_from_slice(wire::bytes(&Verdict::new(self.token, self.pid)), GFP_KERNEL)?;
        link::send(self.target, Class::Memory, Kind::PagesEnd, v, Urgency::Bulk)
    }
}

/// A frame of the memory class has arrived.
pub fn frame(peer: NodeId, kind: Kind, payload: &[u8]) -> Result {
    match kind {
        Kind::PageRequest => {
            let (r, _) = wire::split::<PageRequest>(payload).map_err(|_| EINVAL)?;
            let (addr, count) = (r.addr.get(), r.count.get() as usize);
            if addr & (PAGE as u64 - 1) != 0 || addr >= 1 << 56 || count == 0 || count > MAX_PAGES {
                return Err(EINVAL);
            }
            let Some(s) = sources::get(r.token.get()).filter(|s| s.target == peer) else {
                // Either all was sent and taken, and nobody waits for the answer, or it is lost.
                let v = Verdict::new(r.token.get(), 0).failed(ESTALE.to_errno());
                return crate::node::say(peer, Class::Memory, Kind::PagesEnd, wire::bytes(&v));
            };
            work::spawn(c"ssi", move || {
                if let Err(e) = s.answer(addr, count) {
                    if e == EFAULT {
                        crate::process::memory_lost(s.pid);
                    }
                }
            })
        }
        Kind::PagesAll => {
            let (v, _) = wire::split::<Verdict>(payload).map_err(|_| EINVAL)?;
            match sources::get(v.token.get()).filter(|s| s.target == peer) {
                Some(s) => s.start_push(),
                None => Ok(()),
            }
        }
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
                    g.sent_all();
                } else {
                    pr_err!("process {}: its memory on n{} is gone\n", g.pid, peer.get());
                    g.die();
                    crate::process::kill(g.pid);
                }
            }
            Ok(())
        }
        _ => Err(EINVAL),
    }
}

impl Pager {
    /// A page that came with the image.
    pub fn preload(&self, addr: u64, data: &[u8]) -> Result {
        let node = RBTreeNode::new(addr, Slot::Data(boxed(data)?), GFP_KERNEL)?;
        let mut i = self.inner.lock();
        i.install.push(addr, GFP_ATOMIC)?;
        let old = i.slots.insert(node);
        drop(i);
        drop(old);
        Ok(())
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
