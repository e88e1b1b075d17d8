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
//! A [`Source`] is the other end: the memory of the captured process, read page by page until the
//! target has taken all of it.
//!
//! Answers to requests and pages sent ahead come over sockets of their own, so that the former do not queue behind the
//! latter; when everything is here is [`Ends`]' to say.
//!
//! Lock order: a pager's `taking` comes before the memory's own locks; its `inner` is taken under those, and for
//! moments only.

use crate::asking::Asking;
use crate::ends::Ends;
use crate::gate;
use crate::id::NodeId;
use crate::link::{self, Payload, Urgency};
use crate::mover::Timing;
use crate::stat::{self, Counter};
use crate::sys::mm::{Content, DataPage, Memory, PAGE};
use crate::sys::task;
use crate::sys::wait::{Until, WaitQueue, Woken};
use crate::sys::work::{self, Hold};
use crate::table;
use crate::wire::task::{
    PageKind, PageRequest, PageRun, PageRuns, Pages, Verdict, MAX_ASKED, MAX_PAGES,
};
use crate::wire::{self, Class, Kind};
use kernel::prelude::*;
use kernel::rbtree::{RBTree, RBTreeNode, RBTreeNodeReservation};
use kernel::sync::{new_mutex, new_spinlock, Arc, Mutex, SpinLock, UniqueArc};
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
    /// Data.
    Data(DataPage),
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
    /// The source is dead, or the process is.
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

    /// The memory that its pages are for.
    pub fn set_memory(&self, m: Arc<Memory>) {
        *self.memory.lock() = Some(m);
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
        self.try_take(pages)
            .inspect_err(|_| self.inner.lock().short = true)
    }

    fn try_take(self: &Arc<Self>, pages: PageRuns<'_>) -> Result {
        let memory = self.memory.lock().clone();
        let (mut news, mut kept) = (0, 0);
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
                        kept += 1;
                        let page = run.data.get(k * PAGE..(k + 1) * PAGE).ok_or(EINVAL)?;
                        Slot::Data(DataPage::new(self.spare(), page)?)
                    }
                };
                news += i64::from(self.put(run.addr + (k * PAGE) as u64, slot)?);
            }
            news += given as i64;
        }
        stat::add(Counter::PagesReceived, news);
        self.wait.wake();
        if kept > 1 || self.inner.lock().install.len() >= INSTALLED {
            self.start_installer();
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
            let run = {
                let mut i = self.inner.lock();
                let run = i.next_run();
                if run.is_none() {
                    i.installing = false;
                    if !i.complete && !i.dead {
                        return;
                    }
                }
                run
            };
            let Some((addr, count)) = run else {
                self.finish(&memory);
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

/// What a process that has just moved gets to find what it needs first, in ms.
const BEGINNING_MS: u32 = 100;
/// Pages pushed at a time while others are asked for now and then; the next when these have been taken, which the target
/// says at once.
const FEW: usize = 16;

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

/// Frames that were sent, oldest first, to be filled again once the target has them.
#[derive(Default)]
struct Frames([Option<Payload>; 8]);

impl Frames {
    fn take(&mut self) -> Option<Payload> {
        self.0.iter_mut().find_map(Option::take)
    }

    /// Returns what there was no place for.
    fn keep(&mut self, frame: Payload) -> Option<Payload> {
        self.0.rotate_left(1);
        self.0.last_mut()?.replace(frame)
    }
}

struct SourceState {
    over: bool,
    pushing: bool,
    /// Frames with room for one page, and for many.
    small: Frames,
    large: Frames,
    /// Pages that were asked for and sent, as bits of groups of 64, by number of the group.
    sent: RBTree<u64, u64>,
    /// How often everything was sent.
    ends: u64,
    /// How often all had to be sent again: what was sent before may be lost.
    round: u32,
    asking: Asking,
    fetched_bytes: u64,
    pushed_bytes: u64,
}

impl SourceState {
    /// The frames with room for so many bytes.
    fn frames_of(&mut self, bytes: usize) -> &mut Frames {
        if bytes > 2 * PAGE {
            &mut self.large
        } else {
            &mut self.small
        }
    }

    fn was_sent(&self, addr: u64) -> bool {
        let n = addr / PAGE as u64;
        let bits = self.sent.get(&(n / 64)).copied().unwrap_or(0);
        bits >> (n % 64) & 1 != 0
    }
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
                state <- new_spinlock!(SourceState {
                    over: false,
                    pushing: false,
                    small: Frames::default(),
                    large: Frames::default(),
                    sent: RBTree::new(),
                    ends: 0,
                    round: 0,
                    asking: Asking::default(),
                    fetched_bytes: 0,
                    pushed_bytes: 0,
                }),
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

    /// Reads `count` pages from `addr` on into a frame; if not `asked`, only those with data the target
    /// was not sent. `None`: none of them is to be sent. With `nowait`, fails with `EAGAIN` instead of
    /// sleeping for a page.
    fn frame(
        &self,
        addr: u64,
        count: usize,
        asked: bool,
        nowait: bool,
    ) -> Result<Option<(Payload, u64)>> {
        let mut heads = [U64::new(0); MAX_PAGES];
        let count = count.min(MAX_PAGES);
        let mut frame = self.buffer(count)?;
        let v = &mut *frame;
        let mut n = 0;
        for k in 0..count {
            let a = addr + (k * PAGE) as u64;
            if !asked && self.state.lock().was_sent(a) {
                continue;
            }
            let content = match self.range_of(a) {
                // It reads as the mapping itself says.
                None => Content::Zero,
                Some(r) => loop {
                    match self.memory.read(a, v, r.file_known, nowait) {
                        Err(e) if e == EAGAIN && !nowait => task::sleep_ms(1),
                        r => break r?,
                    }
                },
            };
            let kind = match content {
                Content::Zero => PageKind::Zero,
                Content::File => PageKind::File,
                Content::Data => PageKind::Data,
            };
            if !asked && kind != PageKind::Data {
                continue;
            }
            heads[n] = U64::new(a | kind as u64);
            n += 1;
        }
        let bytes = v.len();
        if n == 0 {
            self.keep(&frame.into());
            return Ok(None);
        }
        for h in &heads[..n] {
            v.extend_from_slice(wire::bytes(h), GFP_KERNEL)?;
        }
        let end = Pages {
            token: U64::new(self.token),
            count: U32::new(n as u32),
            asked: U32::new(asked.into()),
        };
        v.extend_from_slice(wire::bytes(&end), GFP_KERNEL)?;
        Ok(Some((frame.into(), bytes as u64)))
    }

    /// An empty buffer for a frame of so many pages. Memory costs the zeros the kernel fills it with, so
    /// what was sent is used again, if the target has it.
    fn buffer(&self, count: usize) -> Result<Pin<UniqueArc<KVVec<u8>>>> {
        let room = count * (PAGE + size_of::<U64>()) + size_of::<Pages>();
        let old = self.state.lock().frames_of(room).take();
        let mut frame = match old.and_then(Arc::into_unique_or_drop) {
            Some(frame) => frame,
            None => UniqueArc::new(KVVec::new(), GFP_KERNEL)?.into(),
        };
        frame.clear();
        frame.reserve(room, GFP_KERNEL)?;
        Ok(frame)
    }

    fn keep(&self, frame: &Payload) {
        let old = self
            .state
            .lock()
            .frames_of(frame.capacity())
            .keep(frame.clone());
        drop(old);
    }

    fn send(&self, class: Class, frame: Payload, urgency: Urgency) -> Result {
        self.keep(&frame);
        link::send_shared(self.target, class, Kind::Pages, frame, urgency)
    }

    /// Sends the answer to a request, and notes that these pages need not be sent again.
    fn send_asked(
        &self,
        addr: u64,
        count: usize,
        (frame, bytes): (Payload, u64),
        urgency: Urgency,
    ) -> Result {
        let round = {
            let mut s = self.state.lock();
            s.fetched_bytes += bytes;
            s.round
        };
        self.send(Class::Memory, frame, urgency)?;
        // After it was sent: the end of all pages must not overtake one.
        let first = addr / PAGE as u64;
        let end = first + count.min(MAX_PAGES) as u64;
        for group in first / 64..end.div_ceil(64) {
            let from = first.saturating_sub(group * 64);
            let to = (end - group * 64).min(64);
            self.note_sent(group, (u64::MAX >> (64 - (to - from))) << from, round)?;
        }
        Ok(())
    }

    fn note_sent(&self, group: u64, bits: u64, round: u32) -> Result {
        let mut node = None;
        loop {
            let mut s = self.state.lock();
            if s.round != round {
                return Ok(());
            }
            match (s.sent.get_mut(&group), node.take()) {
                (Some(old), _) => {
                    *old |= bits;
                    return Ok(());
                }
                (None, Some(node)) => {
                    s.sent.insert(node);
                }
                (None, None) => {
                    drop(s);
                    node = Some(RBTreeNode::new(group, 0, GFP_KERNEL)?);
                }
            }
        }
    }

    /// Whether the process asks for pages in whose way stands what is pushed.
    fn asks_now_and_then(&self) -> bool {
        self.state.lock().asking.now_and_then(task::now_ns())
    }

    /// Answers a request for one page, unless that takes waiting: `EAGAIN`.
    fn answer_now(&self, addr: u64) -> Result {
        let frame = self.frame(addr, 1, true, true)?.ok_or(EIO)?;
        self.send_asked(addr, 1, frame, Urgency::Now)
    }

    /// Answers a request, the beginning of it as soon as `first` says. Blocks on the memory.
    fn answer(&self, addr: u64, count: usize, first: Urgency) -> Result {
        for k in (0..count).step_by(MAX_PAGES) {
            let a = addr + (k * PAGE) as u64;
            let frame = loop {
                match self.frame(a, count - k, true, false) {
                    Err(e) if e == ENOMEM => task::sleep_ms(20),
                    r => break r?,
                }
            };
            if self.over() {
                return Ok(());
            }
            let frame = frame.ok_or(EIO)?;
            // Without waiting for room: who asks limits how many there are.
            let urgency = if k == 0 { first } else { Urgency::Bulk };
            self.send_asked(a, count - k, frame, urgency)?;
        }
        Ok(())
    }

    /// Starts to send everything, if that was not done before.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn start_push(self: &Arc<Self>) -> Result {
        let sent = {
            let mut s = self.state.lock();
            if core::mem::replace(&mut s.pushing, true) {
                return Ok(());
            }
            s.round += 1;
            (s.round > 1).then(|| core::mem::replace(&mut s.sent, RBTree::new()))
        };
        drop(sent);
        let me = self.clone();
        work::spawn(c"ssi", move || loop {
            match me.push() {
                Err(e) if e == EFAULT => return crate::process::memory_lost(me.pid),
                // Short of memory, most likely; if the target is dead, this is over soon.
                Err(_) if !me.over() => task::sleep_ms(100),
                _ => return,
            }
        })
        .inspect_err(|_| self.state.lock().pushing = false)
    }

    /// Sends all pages that hold data, then says that it was all. Who asks for pages goes first.
    fn push(&self) -> Result {
        self.state.lock().asking.begin(task::now_ns());
        task::sleep_ms(BEGINNING_MS);
        for r in &self.ranges {
            let mut a = r.start;
            while a < r.end {
                if self.over() {
                    return Ok(());
                }
                let most = if self.asks_now_and_then() {
                    FEW
                } else {
                    MAX_PAGES
                };
                let n = (((r.end - a) as usize) / PAGE).min(most);
                if let Some((frame, bytes)) = self.frame(a, n, false, false)? {
                    self.state.lock().pushed_bytes += bytes;
                    stat::add(Counter::PagesPushed, (bytes / PAGE as u64) as i64);
                    link::wait_room(self.target, Class::Bulk)?;
                    self.send(Class::Bulk, frame, Urgency::Bulk)?;
                    while self.asks_now_and_then() && link::bulk_bytes(self.target, Class::Bulk) > 0
                    {
                        task::sleep_ms(1);
                    }
                }
                a += (n * PAGE) as u64;
            }
        }
        let n = {
            let mut s = self.state.lock();
            // The target may find that it needs everything once more.
            s.pushing = false;
            s.ends += 1;
            s.ends
        };
        let ended = [Class::Memory, Class::Bulk]
            .into_iter()
            .try_for_each(|class| self.send_end(class, n));
        if ended.is_err() && core::mem::replace(&mut self.state.lock().pushing, true) {
            // Everything is being sent again already.
            return Ok(());
        }
        ended
    }

    /// Behind everything that was sent in this class.
    fn send_end(&self, class: Class, n: u64) -> Result {
        let end = Verdict::new(self.token, self.pid).with(n);
        let mut v = KVVec::new();
        v.extend_from_slice(wire::bytes(&end), GFP_KERNEL)?;
        link::send(self.target, class, Kind::PagesEnd, v, Urgency::Bulk)
    }
}

/// A frame of the memory class or of bulk has arrived.
pub fn frame(peer: NodeId, class: Class, kind: Kind, payload: &[u8]) -> Result {
    match kind {
        Kind::PageRequest => {
            let (r, _) = wire::split::<PageRequest>(payload).map_err(|_| EINVAL)?;
            let (addr, count) = (r.addr.get(), r.count.get() as usize);
            if addr & (PAGE as u64 - 1) != 0 || addr >= 1 << 56 || count == 0 || count > MAX_ASKED {
                return Err(EINVAL);
            }
            let Some(s) = sources::get(r.token.get()).filter(|s| s.target == peer) else {
                // Either all was sent and taken, and nobody waits for the answer, or it is lost.
                let v = Verdict::new(r.token.get(), 0).failed(ESTALE.to_errno());
                return crate::node::say(peer, Class::Memory, Kind::PagesEnd, wire::bytes(&v));
            };
            s.state.lock().asking.asked(task::now_ns());
            // The first is what the fault is about, and goes alone if that takes no waiting.
            let (addr, count, first) = match s.answer_now(addr) {
                Ok(()) if count == 1 => return Ok(()),
                Ok(()) => (addr + PAGE as u64, count - 1, Urgency::Bulk),
                Err(_) => (addr, count, Urgency::Now),
            };
            work::spawn(c"ssi", move || {
                if let Err(e) = s.answer(addr, count, first) {
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
                    g.sent_all(class, v.arg.get());
                } else {
                    pr_err!("process {}: its memory on n{} is gone\n", g.pid, peer.get());
                    crate::process::kill(g.pid);
                    g.die();
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
        self.put(addr, Slot::Data(DataPage::new(None, data)?))
            .map(|_| ())
    }
}

/// A node is dead: the processes here whose memory was still there end, also those that are at home.
pub fn source_dead(peer: NodeId) {
    let mut after = None;
    while let Some((k, p)) = pagers::next(after) {
        after = Some(k);
        if p.source == peer && p.is_filling() {
            // In this order: a page that is missing must not read as zeros for a moment.
            crate::process::kill(p.pid);
            p.die();
        }
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
