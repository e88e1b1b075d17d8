// SPDX-License-Identifier: GPL-2.0-only

//! Where memory comes from that arrives after its process: the memory of the process that was captured, read page by
//! page until the target has taken all of it.
//!
//! What the target's [`Pager`](crate::pager::Pager) asks for goes first, and is noted: it is not sent again when all that
//! holds data is sent unasked. An end behind everything, see [`ends`](crate::ends), tells the target that it has all.

use crate::asking::Asking;
use crate::id::NodeId;
use crate::link::{self, Payload, Urgency};
use crate::mover::Timing;
use crate::stat::{self, Counter};
use crate::sys::mm::{Content, Memory, PAGE};
use crate::sys::{task, work};
use crate::table;
use crate::wire::task::{PageKind, PageRequest, Pages, Verdict, MAX_ASKED, MAX_PAGES};
use crate::wire::{self, Class, Kind};
use kernel::prelude::*;
use kernel::rbtree::{RBTree, RBTreeNode};
use kernel::sync::{new_spinlock, Arc, SpinLock, UniqueArc};
use zerocopy::little_endian::{U32, U64};

table! {
    /// Sources by migration.
    sources: Source
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

    /// Whether no more pages are wanted.
    pub fn over(&self) -> bool {
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
                Err(e) if e == EFAULT => return me.lost(),
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

    /// Pages cannot be read any more, most likely since the out-of-memory killer took them: without them the
    /// process cannot live on. Its target ends it, whatever has become of it here.
    fn lost(&self) {
        pr_err!("process {}: memory that is still here was lost\n", self.pid);
        let v = Verdict::new(self.token, self.pid).failed(EFAULT.to_errno());
        let (class, kind) = (Class::Memory, Kind::PagesEnd);
        if let Err(e) = crate::node::say(self.target, class, kind, wire::bytes(&v)) {
            pr_debug!("process {}: that was not sent: {:?}\n", self.pid, e);
        }
    }

    /// Behind everything that was sent in this class.
    fn send_end(&self, class: Class, n: u64) -> Result {
        let end = Verdict::new(self.token, self.pid).with(n);
        let mut v = KVVec::new();
        v.extend_from_slice(wire::bytes(&end), GFP_KERNEL)?;
        link::send(self.target, class, Kind::PagesEnd, v, Urgency::Bulk)
    }
}

/// A request for pages has arrived.
pub fn frame(peer: NodeId, kind: Kind, payload: &[u8]) -> Result {
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
                        s.lost();
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
        _ => Err(EINVAL),
    }
}
