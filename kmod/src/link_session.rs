// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Decisions of a link, without sockets, threads or allocation: which frame goes next, what an
//! acknowledgement frees, what is sent again on a fresh socket, and when a session is over.
//!
//! [`Session`] is one class of one peer. Frames wait in it unnumbered, get their number in the
//! moment they are picked for the socket (so an urgent one may overtake bulk ones), and are kept
//! until the peer says it has taken them. [`Life`] is what all classes of a peer share: who is
//! known to whom, and which Hello means that an old session has ended.
//!
//! # When a session ends
//!
//! A session is named by four numbers: the incarnations of the two nodes, and how often each has
//! declared the other dead. A Hello says all four as its sender knows them. It ends the session of
//! its receiver when it names another incarnation or a higher count of deaths; whoever sends such
//! a Hello has begun a new session before. Hellos cross, so what one says about the last number
//! taken counts only if its sender knew the receiver's two numbers. Read as 0 otherwise, it at
//! worst sends frames again that the peer drops as duplicates.
//!
//! A socket may be handed down late and carry a Hello of the past: a lower count of deaths or an
//! incarnation that has been replaced is refused. Should it have been the other way round, the
//! replaced one insists, and after a few refusals its replacement is buried instead.
//!
//! Storage comes from the caller ([`Session::need`], [`Session::grow`]), so nothing here allocates.

use crate::id::NodeId;
use crate::wire::{Class, Error, Header, Hello, Kind};
use core::marker::PhantomData;
use core::ops::DerefMut;
use zerocopy::little_endian::{U16, U32, U64};

/// Frames taken without telling the peer, after which it is told.
pub const ACK_FRAMES: u32 = 32;
/// Bytes of payload taken without telling the peer, after which it is told.
pub const ACK_BYTES: usize = 64 * 1024;
/// Bulk bytes queued or not acknowledged above which [`Session::has_room`] says no.
pub const BULK_BYTES: usize = 256 * 1024;
/// Bytes a session holds at most; more means that nobody reads on the other side.
pub const MAX_BYTES: usize = 512 * 1024 * 1024;

/// A first-in first-out queue in storage of the caller.
#[derive(Debug)]
pub struct Ring<T, S> {
    slots: S,
    head: usize,
    len: usize,
    _items: PhantomData<T>,
}

impl<T, S: DerefMut<Target = [Option<T>]>> Ring<T, S> {
    /// An empty queue with as many places as `slots` has.
    pub fn new(slots: S) -> Self {
        Self {
            slots,
            head: 0,
            len: 0,
            _items: PhantomData,
        }
    }

    /// Items in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Items it can hold.
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Place of item `i`. Head and `i` are both below the capacity, which an allocation bounds.
    fn place(&self, i: usize) -> usize {
        let at = self.head + i;
        if at >= self.slots.len() {
            at - self.slots.len()
        } else {
            at
        }
    }

    /// Adds an item at the end; gives it back when there is no place.
    pub fn push(&mut self, item: T) -> Result<(), T> {
        if self.len >= self.slots.len() {
            return Err(item);
        }
        let at = self.place(self.len);
        match self.slots.get_mut(at) {
            Some(slot) => {
                *slot = Some(item);
                self.len += 1;
                Ok(())
            }
            None => Err(item),
        }
    }

    /// Takes the first item.
    pub fn pop(&mut self) -> Option<T> {
        if self.len == 0 {
            return None;
        }
        let item = self.slots.get_mut(self.head).and_then(Option::take);
        self.head = self.place(1);
        self.len -= 1;
        item
    }

    /// Item `i`, counted from the first.
    pub fn get(&self, i: usize) -> Option<&T> {
        if i >= self.len {
            return None;
        }
        self.slots.get(self.place(i)).and_then(Option::as_ref)
    }

    /// Moves into `slots` if they are more; returns the storage that is left over.
    pub fn grow(&mut self, slots: S) -> S {
        if slots.len() <= self.slots.len() {
            return slots;
        }
        let mut new = Ring::new(slots);
        while let Some(item) = self.pop() {
            // It has more places than we have items.
            if new.push(item).is_err() {
                break;
            }
        }
        core::mem::swap(self, &mut new);
        new.slots
    }

    /// Drops all items.
    pub fn clear(&mut self) {
        while self.pop().is_some() {}
    }
}

/// How soon a frame is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Urgency {
    /// At once: somebody waits for it.
    Now,
    /// After everything that is wanted at once.
    Bulk,
}

/// A frame in a session.
#[derive(Debug)]
pub struct Entry<F> {
    seq: u64,
    kind: Kind,
    bytes: u32,
    urgency: Urgency,
    frame: F,
}

/// One of the queues of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Queue {
    /// Numbered frames.
    Kept,
    /// Urgent frames without a number.
    Urgent,
    /// Bulk frames without a number.
    Bulk,
}

/// What goes on the socket next.
#[derive(Debug)]
pub struct Next<F> {
    /// Its header.
    pub header: Header,
    /// Its payload; none for an acknowledgement.
    pub frame: Option<F>,
}

/// What a numbered frame is to its receiver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// The next one: to be handled.
    Fresh,
    /// Known already: to be dropped.
    Again,
}

/// A frame was not queued, and the session is as before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

/// One class of one peer. `F` is a payload, cheap to clone.
#[derive(Debug)]
pub struct Session<F, S> {
    /// Numbered and not acknowledged, in the order of their numbers.
    kept: Ring<Entry<F>, S>,
    /// How many of `kept` were given to the present socket.
    sent: usize,
    urgent: Ring<Entry<F>, S>,
    bulk: Ring<Entry<F>, S>,
    /// Last number given.
    last: u64,
    /// Last number taken from the peer.
    taken: u64,
    /// The value of `taken` the peer was told last, on this socket.
    told: u64,
    untold_frames: u32,
    untold_bytes: usize,
    ack_due: bool,
    /// Both Hellos of the present socket are done.
    ready: bool,
    bytes: usize,
    bulk_bytes: usize,
}

impl<F: Clone, S: DerefMut<Target = [Option<Entry<F>>]>> Session<F, S> {
    /// A session without frames, its queues in the given storage.
    pub fn new(kept: S, urgent: S, bulk: S) -> Self {
        Self {
            kept: Ring::new(kept),
            sent: 0,
            urgent: Ring::new(urgent),
            bulk: Ring::new(bulk),
            last: 0,
            taken: 0,
            told: 0,
            untold_frames: 0,
            untold_bytes: 0,
            ack_due: false,
            ready: false,
            bytes: 0,
            bulk_bytes: 0,
        }
    }

    /// A queue that must grow to this many places before another frame of this urgency fits.
    pub fn need(&self, urgency: Urgency) -> Option<(Queue, usize)> {
        let more = |n: usize| (n.saturating_add(1)).saturating_mul(2).max(16);
        let waiting = self.urgent.len() + self.bulk.len();
        if self.kept.len() + waiting >= self.kept.capacity() {
            return Some((Queue::Kept, more(self.kept.len() + waiting)));
        }
        let (queue, ring) = match urgency {
            Urgency::Now => (Queue::Urgent, &self.urgent),
            Urgency::Bulk => (Queue::Bulk, &self.bulk),
        };
        (ring.len() >= ring.capacity()).then(|| (queue, more(ring.len())))
    }

    /// Gives a queue more places; returns the storage that is left over.
    pub fn grow(&mut self, queue: Queue, slots: S) -> S {
        match queue {
            Queue::Kept => self.kept.grow(slots),
            Queue::Urgent => self.urgent.grow(slots),
            Queue::Bulk => self.bulk.grow(slots),
        }
    }

    /// Queues a frame.
    ///
    /// # Errors
    /// [`Full`] when there is no place for it ([`Session::need`]) or the session holds
    /// [`MAX_BYTES`].
    pub fn queue(
        &mut self,
        kind: Kind,
        bytes: u32,
        urgency: Urgency,
        frame: F,
    ) -> Result<(), Full> {
        let total = self.bytes.saturating_add(bytes as usize);
        if total > MAX_BYTES || self.need(urgency).is_some() {
            return Err(Full);
        }
        let entry = Entry {
            seq: 0,
            kind,
            bytes,
            urgency,
            frame,
        };
        let ring = match urgency {
            Urgency::Now => &mut self.urgent,
            Urgency::Bulk => &mut self.bulk,
        };
        ring.push(entry).map_err(|_| Full)?;
        self.bytes = total;
        if urgency == Urgency::Bulk {
            self.bulk_bytes += bytes as usize;
        }
        Ok(())
    }

    /// Bytes of bulk that are queued or not acknowledged.
    pub fn bulk_bytes(&self) -> usize {
        self.bulk_bytes
    }

    /// Whether a sender of bulk may go on.
    pub fn has_room(&self) -> bool {
        self.bulk_bytes < BULK_BYTES
    }

    /// Whether [`Session::pick`] has something.
    pub fn has_next(&self) -> bool {
        self.ready
            && (self.sent < self.kept.len()
                || !self.urgent.is_empty()
                || !self.bulk.is_empty()
                || self.ack_due)
    }

    /// What goes on the socket next: frames of the last socket that may be lost, then urgent ones,
    /// then bulk, then a pure acknowledgement if one is due.
    pub fn pick(&mut self) -> Option<Next<F>> {
        if !self.ready {
            return None;
        }
        if self.sent >= self.kept.len() {
            let waiting = if self.urgent.is_empty() {
                &mut self.bulk
            } else {
                &mut self.urgent
            };
            if let Some(mut entry) = waiting.pop() {
                self.last = self.last.checked_add(1)?;
                entry.seq = self.last;
                // There is a place: need() counted the waiting ones too.
                self.kept.push(entry).ok()?;
            }
        }
        if let Some(entry) = self.kept.get(self.sent) {
            let header = Header::new(entry.kind, entry.bytes, entry.seq, self.taken);
            let frame = Some(entry.frame.clone());
            self.sent += 1;
            self.told();
            return Some(Next { header, frame });
        }
        if self.ack_due {
            self.told();
            return Some(Next {
                header: Header::new(Kind::Ack, 0, 0, self.taken),
                frame: None,
            });
        }
        None
    }

    fn told(&mut self) {
        self.told = self.taken;
        self.untold_frames = 0;
        self.untold_bytes = 0;
        self.ack_due = false;
    }

    /// A numbered frame has arrived.
    ///
    /// # Errors
    /// [`Error::Sequence`] when one before it is missing.
    pub fn take(&mut self, seq: u64, bytes: usize) -> Result<Taken, Error> {
        if !self.ready || seq == 0 {
            return Err(Error::Sequence);
        }
        if seq <= self.taken {
            // The peer does not know yet that we have it.
            self.ack_due = true;
            return Ok(Taken::Again);
        }
        if seq != self.taken.checked_add(1).ok_or(Error::Sequence)? {
            return Err(Error::Sequence);
        }
        self.taken = seq;
        self.untold_frames = self.untold_frames.saturating_add(1);
        self.untold_bytes = self.untold_bytes.saturating_add(bytes);
        if self.untold_frames >= ACK_FRAMES || self.untold_bytes >= ACK_BYTES {
            self.ack_due = true;
        }
        Ok(Taken::Fresh)
    }

    /// Last number taken.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Whether an acknowledgement is due that nothing else carries.
    pub fn ack_due(&self) -> bool {
        self.ready && self.ack_due
    }

    /// It was quiet for a while: says what the peer was not told yet. False if there is nothing.
    pub fn quiet(&mut self) -> bool {
        if self.ready && self.told != self.taken {
            self.ack_due = true;
        }
        self.ack_due()
    }

    /// The peer has taken everything up to `ack`.
    ///
    /// # Errors
    /// [`Error::Sequence`] for a number that was never given.
    pub fn acked(&mut self, ack: u64) -> Result<(), Error> {
        if ack > self.last {
            return Err(Error::Sequence);
        }
        while self.kept.get(0).is_some_and(|e| e.seq <= ack) {
            if let Some(e) = self.kept.pop() {
                self.sent = self.sent.saturating_sub(1);
                self.freed(&e);
            }
        }
        Ok(())
    }

    fn freed(&mut self, entry: &Entry<F>) {
        self.bytes = self.bytes.saturating_sub(entry.bytes as usize);
        if entry.urgency == Urgency::Bulk {
            self.bulk_bytes = self.bulk_bytes.saturating_sub(entry.bytes as usize);
        }
    }

    /// The peer's Hello came on the present socket; `ack` as [`Life::take_hello`] understood it.
    ///
    /// # Errors
    /// As [`Session::acked`].
    pub fn hello_taken(&mut self, ack: u64) -> Result<(), Error> {
        self.acked(ack)?;
        self.sent = 0;
        self.ready = true;
        // It also proves to the peer that its Hello has arrived.
        self.ack_due = true;
        Ok(())
    }

    /// There is no socket any more, or a fresh one on which the Hellos are still to come.
    pub fn detached(&mut self) {
        self.ready = false;
        self.sent = 0;
    }

    /// The session is over: nothing of it is sent again, numbers start at 1.
    pub fn reset(&mut self) {
        self.kept.clear();
        self.urgent.clear();
        self.bulk.clear();
        self.sent = 0;
        self.last = 0;
        self.taken = 0;
        self.told();
        self.ready = false;
        self.bytes = 0;
        self.bulk_bytes = 0;
    }
}

/// What a Hello means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Greeting {
    /// It is the peer.
    Meet {
        /// The old session has ended: all classes start again.
        over: bool,
        /// Last number of ours the peer has taken in the session that holds from now on.
        ack: u64,
    },
    /// Refused, but the session with who was taken for its replacement must be ended as by
    /// [`Life::declare_dead`], so that it is met the next time.
    Bury,
}

/// Replaced incarnations of a peer that are remembered, so that a late Hello is known as one.
const PAST: usize = 8;
/// A replaced incarnation that speaks more often than this, its replacement being silent, lives.
const REFUSALS: u8 = 3;

/// What this node and one peer know of each other's lives.
#[derive(Debug)]
pub struct Life {
    me: NodeId,
    peer: NodeId,
    incarnation: u64,
    /// There is a session: a Hello was taken since the last death.
    linked: bool,
    /// The peer's incarnation that spoke last, 0 if none has.
    known: u64,
    /// Incarnations before `known`, 0 for none.
    past: [u64; PAST],
    past_next: usize,
    /// Hellos of `past` since the last of `known`.
    refusals: u8,
    /// How often `known` said it has declared us dead.
    deaths_heard: u64,
    /// How often we have declared the peer dead.
    deaths_said: u64,
}

impl Life {
    /// Nothing is known of `peer` yet.
    pub fn new(me: NodeId, peer: NodeId, incarnation: u64) -> Self {
        Self {
            me,
            peer,
            incarnation,
            linked: false,
            known: 0,
            past: [0; PAST],
            past_next: 0,
            refusals: 0,
            deaths_heard: 0,
            deaths_said: 0,
        }
    }

    /// Whether there is a session with the peer.
    pub fn is_linked(&self) -> bool {
        self.linked
    }

    /// Our Hello for a socket of this class.
    pub fn hello(&self, class: Class) -> Hello {
        Hello {
            node: U16::new(self.me.get()),
            peer: U16::new(self.peer.get()),
            class: U32::new(class as u32),
            incarnation: U64::new(self.incarnation),
            deaths: U64::new(self.deaths_said),
            known_incarnation: U64::new(self.known),
            known_deaths: U64::new(self.deaths_heard),
        }
    }

    /// Understands the peer's Hello on a socket of `class`, whose header said `ack`.
    ///
    /// # Errors
    /// [`Error::Value`] when it is not from the peer, not for us, or older than what is known.
    pub fn take_hello(&mut self, class: Class, h: &Hello, ack: u64) -> Result<Greeting, Error> {
        let (incarnation, deaths) = (h.incarnation.get(), h.deaths.get());
        let same = incarnation == self.known;
        if h.node.get() != self.peer.get()
            || h.peer.get() != self.me.get()
            || h.class.get() != class as u32
            || incarnation == 0
            || (same && deaths < self.deaths_heard)
        {
            return Err(Error::Value);
        }
        if let Some(p) = self.past.iter_mut().find(|p| **p == incarnation) {
            if self.refusals < REFUSALS {
                self.refusals += 1;
                return Err(Error::Value);
            }
            *p = 0;
            self.refusals = 0;
            return Ok(Greeting::Bury);
        }
        let old = same && deaths == self.deaths_heard && self.linked;
        let over = self.linked && !old;
        let knows_us = h.known_incarnation.get() == self.incarnation
            && h.known_deaths.get() == self.deaths_said;
        if !same {
            if let Some(p) = self.past.get_mut(self.past_next) {
                *p = self.known;
            }
            self.past_next = (self.past_next + 1) % PAST;
        }
        self.known = incarnation;
        self.deaths_heard = deaths;
        self.linked = true;
        self.refusals = 0;
        Ok(Greeting::Meet {
            over,
            ack: if old && knows_us { ack } else { 0 },
        })
    }

    /// The peer is dead. False when there was no session with it.
    pub fn declare_dead(&mut self) -> bool {
        let was = self.linked;
        if was {
            self.deaths_said = self.deaths_said.saturating_add(1);
        }
        self.linked = false;
        was
    }
}

#[cfg(test)]
mod tests;
