// SPDX-License-Identifier: GPL-2.0-only

//! One class of one peer: its session, the socket in use, and writing to it.

use super::serve::Served;
use super::Peer;
use crate::link_session::{Entry, Queue, Session, Urgency};
use crate::stat::{self, Counter};
use crate::sys::net::{Socket, Wait};
use crate::sys::wait::WaitQueue;
use crate::wire::{self, Class, Header, Hello, Kind, HEADER_BYTES};
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Full, Release};
use kernel::sync::{new_mutex, Arc, Mutex};

/// Frames a sender sends by itself at most before it leaves the rest to the thread.
const DIRECT_FRAMES: u32 = 4;

pub(super) const HELLO_BYTES: usize = size_of::<Hello>();

/// What a frame carries.
pub type Payload = Arc<KVVec<u8>>;
type Slots = KVVec<Option<Entry<Payload>>>;

#[pin_data]
pub(super) struct Channel {
    pub(super) class: Class,
    #[pin]
    pub(super) served: Mutex<Option<Served>>,
    #[pin]
    pub(super) gate: Mutex<()>,
    #[pin]
    tx: Mutex<Tx>,
    #[pin]
    pub(super) state: Mutex<State>,
    /// There is something for the tx thread to look at.
    pub(super) kick: Atomic<bool>,
    #[pin]
    pub(super) kicked: WaitQueue,
    /// `state` has room for bulk, or is closed.
    pub(super) room: Atomic<bool>,
    #[pin]
    pub(super) roomy: WaitQueue,
}

pub(super) struct State {
    /// There is a session: frames are taken for sending.
    pub(super) open: bool,
    /// The socket in use, 0 if there is none.
    pub(super) socket: u64,
    /// The same.
    link: Option<Arc<Socket>>,
    /// The peer's Hello has come on it.
    pub(super) greeted: bool,
    /// The last socket that broke, and why, until ssid is told.
    pub(super) fault: Option<(u64, Error)>,
    /// The tx thread sleeps without a timeout.
    pub(super) dozing: bool,
    pub(super) session: Session<Payload, Slots>,
}

/// The writing end of a socket.
struct Tx {
    id: u64,
    socket: Option<Arc<Socket>>,
    current: Option<Current>,
}

/// A frame of which a part was sent.
struct Current {
    head: [u8; HEADER_BYTES + HELLO_BYTES],
    head_len: usize,
    body: Option<Payload>,
    sent: usize,
}

impl Current {
    fn new(header: &Header, body: Option<Payload>) -> Self {
        let mut head = [0; HEADER_BYTES + HELLO_BYTES];
        head[..HEADER_BYTES].copy_from_slice(wire::bytes(header));
        Self {
            head,
            head_len: HEADER_BYTES,
            body,
            sent: 0,
        }
    }

    fn hello(header: &Header, hello: &Hello) -> Self {
        let mut c = Self::new(header, None);
        c.head[HEADER_BYTES..].copy_from_slice(wire::bytes(hello));
        c.head_len = c.head.len();
        c
    }

    fn len(&self) -> usize {
        self.head_len + self.body.as_ref().map_or(0, |b| b.len())
    }

    /// What is left to send.
    fn rest(&self) -> (&[u8], &[u8]) {
        let head = self.head.get(..self.head_len).unwrap_or(&[]);
        let body = self.body.as_ref().map_or(&[][..], |b| b.as_slice());
        match self.sent.checked_sub(self.head_len) {
            None => (head.get(self.sent..).unwrap_or(&[]), body),
            Some(of_body) => (&[], body.get(of_body..).unwrap_or(&[])),
        }
    }
}

/// How far a call of [`Channel::pump`] came.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pumped {
    /// There is nothing left to send.
    All,
    /// The socket takes no more now.
    Blocked,
    /// The socket is not the one in use any more.
    Over,
}

fn slots(n: usize) -> Result<Slots> {
    let mut v = Slots::with_capacity(n, GFP_KERNEL)?;
    for _ in 0..n {
        v.push(None, GFP_KERNEL)?;
    }
    Ok(v)
}

impl Channel {
    pub(super) fn new(class: Class) -> impl PinInit<Self> {
        pin_init!(Self {
            class,
            served <- new_mutex!(None),
            gate <- new_mutex!(()),
            tx <- new_mutex!(Tx { id: 0, socket: None, current: None }),
            state <- new_mutex!(State {
                open: false,
                socket: 0,
                link: None,
                greeted: false,
                fault: None,
                dozing: false,
                session: Session::new(Slots::new(), Slots::new(), Slots::new()),
            }),
            kick: Atomic::new(false),
            kicked <- WaitQueue::new(),
            room: Atomic::new(false),
            roomy <- WaitQueue::new(),
        })
    }

    /// Wakes the tx thread.
    pub(super) fn kick(&self) {
        self.kick.store(true, Release);
        self.kicked.wake();
    }

    /// Lets waiting senders of bulk look, if there is a reason.
    pub(super) fn show_room(&self, st: &State) {
        let room = !st.open || st.session.has_room();
        if self.room.xchg(room, Full) != room && room {
            self.roomy.wake();
        }
    }

    /// Queues a frame.
    pub(super) fn queue(&self, kind: Kind, len: u32, urgency: Urgency, payload: Payload) -> Result {
        loop {
            let (which, n): (Queue, usize) = {
                let mut st = self.state.lock();
                if !st.open {
                    return Err(ENOTCONN);
                }
                match st.session.need(urgency) {
                    None => {
                        st.session
                            .queue(kind, len, urgency, payload)
                            .map_err(|_| ENOBUFS)?;
                        self.show_room(&st);
                        return Ok(());
                    }
                    Some(need) => need,
                }
            };
            let more = slots(n)?;
            let left = self.state.lock().session.grow(which, more);
            drop(left);
        }
    }

    /// Gets what is queued on its way: by itself if the socket is free and `direct`, else by the
    /// thread.
    pub(super) fn flush(&self, direct: bool) {
        if direct {
            if let Some(mut tx) = self.tx.try_lock() {
                let id = tx.id;
                if id != 0 && self.pump(&mut tx, id, Wait::No, DIRECT_FRAMES) != Pumped::Blocked {
                    drop(tx);
                    // Who came meanwhile has found the lock taken and kicked the thread.
                    return;
                }
            }
        }
        self.kick();
    }

    /// Sends everything there is on the socket `id`, waiting for room. For its thread.
    pub(super) fn work_off(&self, id: u64) -> Pumped {
        let mut tx = self.tx.lock();
        self.pump(&mut tx, id, Wait::Yes, u32::MAX)
    }

    /// Has the socket leave its memory cgroup, if nothing is under way on it.
    pub(super) fn leave_cgroup(&self, socket: &Socket) -> bool {
        let tx = self.tx.lock();
        tx.current.is_none() && socket.leave_cgroup()
    }

    /// Sends what there is to send on the socket `id`, `frames` new ones at most.
    fn pump(&self, tx: &mut Tx, id: u64, wait: Wait, mut frames: u32) -> Pumped {
        if tx.id != id {
            return Pumped::Over;
        }
        let Tx {
            socket, current, ..
        } = tx;
        let Some(socket) = socket.as_ref() else {
            return Pumped::Over;
        };
        loop {
            let cur = match current {
                Some(c) => c,
                None => {
                    let mut st = self.state.lock();
                    if st.socket != id {
                        return Pumped::Over;
                    }
                    if frames == 0 {
                        return if st.session.has_next() {
                            Pumped::Blocked
                        } else {
                            Pumped::All
                        };
                    }
                    frames -= 1;
                    match st.session.pick() {
                        Some(n) => current.insert(Current::new(&n.header, n.frame)),
                        None => return Pumped::All,
                    }
                }
            };
            let (a, b) = cur.rest();
            match socket.send(a, b, wait) {
                Ok(n) => {
                    cur.sent += n;
                    if cur.sent >= cur.len() {
                        *current = None;
                        stat::add(Counter::FramesSent, 1);
                    } else if wait == Wait::No {
                        return Pumped::Blocked;
                    }
                }
                Err(EAGAIN | EINTR | ERESTARTSYS | ENOMEM | ENOBUFS) => return Pumped::Blocked,
                Err(e) => {
                    self.fail(id, e);
                    return Pumped::Over;
                }
            }
        }
    }

    /// The socket `id` is of no use any more. Its rx thread tells ssid.
    pub(super) fn fail(&self, id: u64, e: Error) {
        let mut st = self.state.lock();
        if st.socket == id {
            let link = st.give_up(Some(e));
            drop(st);
            self.shut(link);
        }
    }

    /// Makes the socket in use a stranger. Its rx thread tells ssid if `fault` says why.
    pub(super) fn give_up(&self, fault: Option<Error>) {
        let link = self.state.lock().give_up(fault);
        self.shut(link);
    }

    /// The session is over: nothing is sent until it is opened again. A socket that has been in use
    /// in it is given up; one on which the peer has not said Hello yet is left to it.
    pub(super) fn end_session(&self, fault: Option<Error>) {
        let mut st = self.state.lock();
        st.open = false;
        st.session.reset();
        let link = if st.greeted { st.give_up(fault) } else { None };
        self.show_room(&st);
        drop(st);
        self.shut(link);
    }

    /// Ends a socket that was given up, so that its threads notice.
    fn shut(&self, link: Option<Arc<Socket>>) {
        if let Some(socket) = link {
            socket.shut();
            self.kick();
        }
    }

    /// Shuts what serves this class and waits for its threads.
    pub(super) fn unserve(&self) {
        let mut served = self.served.lock();
        self.give_up(None);
        drop(served.take());
        let mut tx = self.tx.lock();
        tx.id = 0;
        tx.current = None;
        let socket = tx.socket.take();
        drop(tx);
        drop(socket);
    }

    /// Puts the socket `id` in use. Its first frame is our Hello.
    pub(super) fn install(&self, peer: &Peer, id: u64, socket: &Arc<Socket>) {
        let _transition = peer.transition.lock();
        let mut tx = self.tx.lock();
        let mut st = self.state.lock();
        st.session.detached();
        st.socket = id;
        st.link = Some(socket.clone());
        st.greeted = false;
        st.fault = None;
        st.dozing = false;
        let hello = peer.life.lock().hello(self.class);
        let header = Header::new(Kind::Hello, HELLO_BYTES as u32, 0, st.session.taken());
        tx.id = id;
        tx.current = Some(Current::hello(&header, &hello));
        let old = tx.socket.replace(socket.clone());
        drop(st);
        drop(tx);
        drop(old);
    }
}

impl State {
    /// No socket is in use from here on; returns the one that was.
    fn give_up(&mut self, fault: Option<Error>) -> Option<Arc<Socket>> {
        if self.socket != 0 {
            self.fault = fault.map(|e| (self.socket, e));
        }
        self.socket = 0;
        self.greeted = false;
        self.session.detached();
        self.link.take()
    }
}
