// SPDX-License-Identifier: GPL-2.0-only

//! Frames in and out, per peer and class.
//!
//! ssid connects a socket and hands it down ([`attach`]); two threads of ours serve it until it
//! breaks or another takes its place. What is sent, kept and sent again is decided in
//! [`crate::link_session`]; here are the sockets, the threads and the waiting.
//!
//! Only the owner of `tx` writes to a socket: its thread, or a sender whose frame finds the queue
//! empty and the lock free. Such a sender never waits for room; what the socket did not take is
//! finished by the thread, from the middle of the frame.
//!
//! # Lock order
//!
//! `served` > `transition` > `gate` > `tx` > `state` > `life`. All may sleep.
//!
//! - `served` (class): which threads serve it. Held while they are joined, so threads never take it.
//! - `transition` (peer): a session begins or ends. Held over [`crate::node::peer_dead`].
//! - `gate` (class): a frame is being dispatched. Whoever ends a session passes through the gates
//!   after it has made the old sockets strangers, and knows that nothing old is dispatched later.
//! - `tx` (class): writing to the socket. Only the thread waits for room under it.
//! - `state` (class), `life` (peer): short, nothing is sent or waited for under them.
//!
//! Therefore [`crate::node::frame`] and [`crate::node::peer_dead`] may send, but must not attach,
//! detach, declare dead, or wait for something that a frame of the same class brings.

use crate::id::{NodeId, MAX_NODE};
use crate::link_session::{Entry, Greeting, Life, Queue, Session, Taken};
use crate::stat::{self, Counter};
use crate::sys::net::{Socket, Wait};
use crate::sys::slot::Slot;
use crate::sys::wait::{Until, WaitQueue, Woken};
use crate::sys::work::{NoIo, Thread};
use crate::uapi::{Attr, Cmd};
use crate::wire::{self, Class, Header, Hello, Kind, HEADER_BYTES, MAX_PAYLOAD_BYTES};
use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::atomic::{Acquire, Atomic, Full, Relaxed, Release};
use kernel::sync::{new_mutex, Arc, Mutex};

pub use crate::link_session::Urgency;

#[cfg(SSI_BENCH)]
mod bench;

/// Silence after which the peer is told what was taken.
const QUIET_MS: u32 = 50;
/// How often a thread looks around that waits for nothing in particular.
const LOOK_MS: u32 = 3_600_000;
/// How long to wait for memory before asking again.
const MEMORY_MS: u32 = 20;
/// Records in one direction after which another socket is asked for. AES-GCM allows some 2^24.5.
const RENEW_RECORDS: u64 = 1 << 23;
/// Quiet moments in which a socket may leave its memory cgroup before that is given up.
const CGROUP_TRIES: u32 = 40;
/// Frames a sender sends by itself at most before it leaves the rest to the thread.
const DIRECT_FRAMES: u32 = 4;

const HELLO_BYTES: usize = size_of::<Hello>();

type Payload = Arc<KVVec<u8>>;
type Slots = KVVec<Option<Entry<Payload>>>;

/// All links of this node.
struct Links {
    me: NodeId,
    closing: Atomic<bool>,
    peers: KVec<Arc<Peer>>,
}

static LINKS: Slot<Links> = Slot::new();
/// Names sockets; 0 is none.
static NEXT_SOCKET: Atomic<u64> = Atomic::new(1);

#[pin_data]
struct Peer {
    id: NodeId,
    #[pin]
    transition: Mutex<()>,
    #[pin]
    life: Mutex<Life>,
    #[pin]
    control: Channel,
    #[pin]
    memory: Channel,
}

#[pin_data]
struct Channel {
    class: Class,
    #[pin]
    served: Mutex<Option<Served>>,
    #[pin]
    gate: Mutex<()>,
    #[pin]
    tx: Mutex<Tx>,
    #[pin]
    state: Mutex<State>,
    /// There is something for the tx thread to look at.
    kick: Atomic<bool>,
    #[pin]
    kicked: WaitQueue,
    /// `state` has room for bulk, or is closed.
    room: Atomic<bool>,
    #[pin]
    roomy: WaitQueue,
}

/// What serves a class: a socket and its threads. Dropping it shuts the first and joins the others.
struct Served {
    socket: Arc<Socket>,
    threads: [Option<Thread>; 2],
}

impl Drop for Served {
    fn drop(&mut self) {
        self.socket.shut();
        for t in &mut self.threads {
            drop(t.take());
        }
    }
}

struct State {
    /// There is a session: frames are taken for sending.
    open: bool,
    /// The socket in use, 0 if there is none.
    socket: u64,
    /// The same.
    link: Option<Arc<Socket>>,
    /// The peer's Hello has come on it.
    greeted: bool,
    /// The last socket that broke, and why, until ssid is told.
    fault: Option<(u64, Error)>,
    /// The tx thread sleeps without a timeout.
    dozing: bool,
    session: Session<Payload, Slots>,
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
enum Pumped {
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

impl kernel::fmt::Display for NodeId {
    fn fmt(&self, f: &mut kernel::fmt::Formatter<'_>) -> kernel::fmt::Result {
        core::fmt::Display::fmt(self, f)
    }
}

impl From<wire::Error> for Error {
    fn from(e: wire::Error) -> Self {
        match e {
            wire::Error::Version => EPROTONOSUPPORT,
            wire::Error::Kind | wire::Error::Value => EPROTO,
            wire::Error::Length => EMSGSIZE,
            wire::Error::Sequence => EBADMSG,
        }
    }
}

impl Links {
    fn new(me: NodeId, incarnation: u64) -> Result<Arc<Self>> {
        let mut peers = KVec::with_capacity(MAX_NODE.into(), GFP_KERNEL)?;
        for n in 1..=MAX_NODE {
            let id = NodeId::new(n).ok_or(EINVAL)?;
            let known = Life::new(me, id, incarnation);
            let peer = Arc::pin_init(
                pin_init!(Peer {
                    id,
                    transition <- new_mutex!(()),
                    life <- new_mutex!(known),
                    control <- Channel::new(Class::Control),
                    memory <- Channel::new(Class::Memory),
                }),
                GFP_KERNEL,
            )?;
            peers.push(peer, GFP_KERNEL)?;
        }
        Ok(Arc::new(
            Self {
                me,
                closing: Atomic::new(false),
                peers,
            },
            GFP_KERNEL,
        )?)
    }

    fn peer(&self, id: NodeId) -> Result<&Arc<Peer>> {
        if id == self.me {
            return Err(EINVAL);
        }
        self.peers
            .get(usize::from(id.get()).wrapping_sub(1))
            .ok_or(EINVAL)
    }
}

/// Makes this node `me`: peers can be attached from now on.
///
/// # Errors
/// `EBUSY` when it is done already; `ENOMEM`.
pub fn start(me: NodeId, incarnation: u64) -> Result {
    LINKS.put(Links::new(me, incarnation)?)
}

/// Ends all links. Nobody is declared dead. For the end of the module.
pub fn stop() {
    let Some(links) = LINKS.get() else { return };
    links.closing.store(true, Release);
    for peer in &links.peers {
        peer.close();
        for class in Class::ALL {
            peer.channel(class).unserve();
        }
        // A thread may have greeted just before it was stopped.
        peer.close();
    }
    drop(LINKS.take());
}

/// Serves `class` of `peer` by the socket behind the caller's `fd` from now on. A socket that
/// served it before is shut; no frame is lost.
///
/// # Errors
/// `ENXIO` before Hello; `EINVAL` for this node itself; those of [`Socket::from_fd`]; `ENOMEM`.
pub fn attach(peer: NodeId, class: Class, fd: i32) -> Result {
    let links = LINKS.get().ok_or(ENXIO)?;
    let peer = links.peer(peer)?;
    let socket = Arc::new(Socket::from_fd(fd)?, GFP_KERNEL)?;
    let chan = peer.channel(class);
    let mut served = chan.served.lock();
    chan.give_up(None);
    drop(served.take());
    // stop() empties all of these after it has said this.
    if links.closing.load(Acquire) {
        return Err(ESHUTDOWN);
    }
    let id = NEXT_SOCKET.fetch_add(1, Relaxed);
    chan.install(peer, id, &socket);
    let mut new = Served {
        socket,
        threads: [None, None],
    };
    let r = new.start(links.me, peer, class, id);
    if r.is_err() {
        chan.give_up(None);
        drop(new);
    } else {
        *served = Some(new);
    }
    r
}

/// Shuts the sockets of `peer`. The session goes on with the next ones.
///
/// # Errors
/// `ENXIO`, `EINVAL`.
pub fn detach(peer: NodeId) -> Result {
    let links = LINKS.get().ok_or(ENXIO)?;
    let peer = links.peer(peer)?;
    for class in Class::ALL {
        peer.channel(class).unserve();
    }
    Ok(())
}

/// `peer` is dead: its session ends, and it is told so should it link again.
///
/// # Errors
/// `ENXIO`, `EINVAL`.
pub fn declare_dead(peer: NodeId) -> Result {
    let links = LINKS.get().ok_or(ENXIO)?;
    let peer = links.peer(peer)?;
    {
        let _transition = peer.transition.lock();
        peer.bury(None);
    }
    for class in Class::ALL {
        peer.channel(class).unserve();
    }
    Ok(())
}

/// This node, once ssid has said which it is.
pub fn self_node() -> Option<NodeId> {
    LINKS.get().map(|l| l.me)
}

/// Whether both classes of `peer` have a socket on which both sides have said Hello.
pub fn is_up(peer: NodeId) -> bool {
    let Some(links) = LINKS.get() else {
        return false;
    };
    links.peer(peer).is_ok_and(|p| {
        Class::ALL.iter().all(|&c| {
            let st = p.channel(c).state.lock();
            st.open && st.socket != 0 && st.greeted
        })
    })
}

/// Sends a frame, or queues it for sending. It arrives once and in order with those of its urgency,
/// over broken sockets too, unless the session ends. Sleeps, but never for room.
///
/// # Errors
/// `ENOTCONN` when there is no session with `peer`; `EMSGSIZE`; `ENOBUFS` when too much is queued;
/// `ENOMEM`. Nothing is sent then.
pub fn send(
    peer: NodeId,
    class: Class,
    kind: Kind,
    payload: KVVec<u8>,
    urgency: Urgency,
) -> Result {
    let links = LINKS.get().ok_or(ENOTCONN)?;
    let peer = links.peer(peer)?;
    if payload.len() > MAX_PAYLOAD_BYTES {
        return Err(EMSGSIZE);
    }
    if !kind.numbered() {
        return Err(EINVAL);
    }
    let _noio = NoIo::enter();
    let len = payload.len() as u32;
    let payload = Arc::new(payload, GFP_KERNEL)?;
    let chan = peer.channel(class);
    chan.queue(kind, len, urgency, payload)?;
    chan.flush(urgency == Urgency::Now);
    Ok(())
}

/// Waits until `peer` has taken enough of what was sent that more bulk makes sense.
///
/// # Errors
/// `ENOTCONN` when there is no session (any more); `EINTR` when the caller is being killed.
pub fn wait_room(peer: NodeId, class: Class) -> Result {
    let links = LINKS.get().ok_or(ENOTCONN)?;
    let chan = links.peer(peer)?.channel(class);
    loop {
        {
            let st = chan.state.lock();
            if !st.open {
                return Err(ENOTCONN);
            }
            if st.session.has_room() {
                return Ok(());
            }
        }
        if chan
            .roomy
            .wait(Until::Kill, LOOK_MS, || chan.room.load(Acquire))
            == Woken::Signal
        {
            return Err(EINTR);
        }
    }
}

impl Peer {
    fn channel(&self, class: Class) -> &Channel {
        match class {
            Class::Control => &self.control,
            Class::Memory => &self.memory,
        }
    }

    fn channels(&self) -> [&Channel; Class::COUNT] {
        [&self.control, &self.memory]
    }

    /// No frame is taken for sending any more, and who waits for room comes back.
    fn close(&self) {
        for c in self.channels() {
            let mut st = c.state.lock();
            st.open = false;
            c.show_room(&st);
        }
    }

    /// Declares the peer dead. Under `transition`; the sockets' threads end by themselves, with a
    /// word to ssid if `fault` says why.
    fn bury(&self, fault: Option<Error>) {
        let died = self.life.lock().declare_dead();
        for c in self.channels() {
            c.end_session(fault);
            c.give_up(fault);
        }
        for c in self.channels() {
            drop(c.gate.lock());
        }
        if died {
            pr_info!("{} is declared dead\n", self.id);
            crate::node::peer_dead(self.id);
        }
    }

    /// The peer's Hello has come on the socket `id` of `class`.
    fn greet(&self, class: Class, id: u64, hello: &Hello, ack: u64) -> Result {
        let _transition = self.transition.lock();
        let own = self.channel(class);
        // Sockets change under the transition only, or are given up: then this one is a stranger.
        if own.state.lock().socket != id {
            return Err(ECONNABORTED);
        }
        let greeting = self.life.lock().take_hello(class, hello, ack)?;
        let Greeting::Meet { over, ack } = greeting else {
            self.bury(Some(ESTALE));
            return Err(ECONNABORTED);
        };
        if over {
            for c in self.channels() {
                c.end_session(Some(ESTALE));
                if c.class != class {
                    drop(c.gate.lock());
                }
            }
            pr_info!("{} has begun a new life\n", self.id);
            crate::node::peer_dead(self.id);
        }
        {
            let mut st = own.state.lock();
            if st.socket != id {
                return Err(ECONNABORTED);
            }
            st.session.hello_taken(ack)?;
            st.greeted = true;
            own.show_room(&st);
        }
        for c in self.channels() {
            let mut st = c.state.lock();
            st.open = true;
            c.show_room(&st);
        }
        own.flush(true);
        Ok(())
    }
}

impl Channel {
    fn new(class: Class) -> impl PinInit<Self> {
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
    fn kick(&self) {
        self.kick.store(true, Release);
        self.kicked.wake();
    }

    /// Lets waiting senders of bulk look, if there is a reason.
    fn show_room(&self, st: &State) {
        let room = !st.open || st.session.has_room();
        if self.room.xchg(room, Full) != room && room {
            self.roomy.wake();
        }
    }

    /// Queues a frame.
    fn queue(&self, kind: Kind, len: u32, urgency: Urgency, payload: Payload) -> Result {
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
    fn flush(&self, direct: bool) {
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

    /// Sends what there is to send on the socket `id`.
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
    fn fail(&self, id: u64, e: Error) {
        let mut st = self.state.lock();
        if st.socket == id {
            let link = st.give_up(Some(e));
            drop(st);
            self.shut(link);
        }
    }

    /// Makes the socket in use a stranger. Its rx thread tells ssid if `fault` says why.
    fn give_up(&self, fault: Option<Error>) {
        let link = self.state.lock().give_up(fault);
        self.shut(link);
    }

    /// The session is over: nothing is sent until it is opened again. A socket that has been in use
    /// in it is given up; one on which the peer has not said Hello yet is left to it.
    fn end_session(&self, fault: Option<Error>) {
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
    fn unserve(&self) {
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
    fn install(&self, peer: &Peer, id: u64, socket: &Arc<Socket>) {
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

impl Served {
    fn start(&mut self, me: NodeId, peer: &Arc<Peer>, class: Class, id: u64) -> Result {
        let start = |what: &str, f: fn(&Peer, &Channel, &Socket, u64)| -> Result<Thread> {
            let short = match class {
                Class::Control => 'c',
                Class::Memory => 'm',
            };
            let name = CString::try_from_fmt(fmt!(
                "ssi-{}{}/{}-{}",
                what,
                short,
                me.get(),
                peer.id.get()
            ))?;
            let (peer, socket) = (peer.clone(), self.socket.clone());
            Thread::start(&name, move || f(&peer, peer.channel(class), &socket, id))
        };
        self.threads = [Some(start("tx", transmit)?), Some(start("rx", receive)?)];
        Ok(())
    }
}

/// The tx thread of a socket.
fn transmit(_peer: &Peer, chan: &Channel, socket: &Socket, id: u64) {
    let mut cgroup_tries = CGROUP_TRIES;
    loop {
        chan.kick.store(false, Relaxed);
        if Thread::should_stop() {
            return;
        }
        let pumped = {
            let mut tx = chan.tx.lock();
            chan.pump(&mut tx, id, Wait::Yes, u32::MAX)
        };
        match pumped {
            Pumped::Over => return,
            Pumped::Blocked => {
                // A second has passed already, unless it was memory.
                chan.kicked
                    .wait(Until::Signal, MEMORY_MS, || Thread::should_stop());
                continue;
            }
            Pumped::All => {}
        }
        let dozing = chan.state.lock().dozing;
        let ready = || chan.kick.load(Acquire) || Thread::should_stop();
        let timeout = if dozing { LOOK_MS } else { QUIET_MS };
        match chan.kicked.wait(Until::Signal, timeout, ready) {
            Woken::Ready => chan.state.lock().dozing = false,
            _ => {
                // It is quiet; the peer's own acknowledgement of bytes may be on its way still.
                if cgroup_tries > 0 {
                    let tx = chan.tx.lock();
                    let left = tx.current.is_none() && socket.leave_cgroup();
                    cgroup_tries = if left { 0 } else { cgroup_tries - 1 };
                }
                // With nothing to say there is no need to wake up before something comes.
                let mut st = chan.state.lock();
                st.dozing = !st.session.quiet() && cgroup_tries == 0;
            }
        }
    }
}

/// The rx thread of a socket.
fn receive(peer: &Peer, chan: &Channel, socket: &Socket, id: u64) {
    let Err(e) = receive_frames(peer, chan, socket, id);
    chan.fail(id, e);
    socket.shut();
    let fault = chan.state.lock().fault.take_if(|f| f.0 == id);
    if let Some((_, e)) = fault {
        pr_info!(
            "link to {}, class {}: {}\n",
            peer.id,
            chan.class as u32,
            e.to_errno()
        );
        // Its loss is counted there.
        let _ = crate::ctl::event(Cmd::LinkDown, |w| {
            w.u32(Attr::Peer, peer.id.get().into())?;
            w.u32(Attr::Class, chan.class as u32)?;
            w.u32(Attr::Errno, e.to_errno().unsigned_abs())
        });
    }
}

fn receive_frames(
    peer: &Peer,
    chan: &Channel,
    socket: &Socket,
    id: u64,
) -> Result<core::convert::Infallible> {
    let mut renewed = false;
    let mut greeted = false;
    loop {
        let mut head = [0; HEADER_BYTES];
        socket.receive(&mut head)?;
        let (header, _) = wire::split::<Header>(&head)?;
        let (kind, len) = header.check()?;
        let (seq, ack) = (header.seq.get(), header.ack.get());
        // Before anything is allocated: who speaks must have said who it is.
        match kind {
            Kind::Hello if greeted || len != HELLO_BYTES => return Err(EPROTO),
            Kind::Ack if len != 0 => return Err(EMSGSIZE),
            Kind::Hello => {}
            _ if !greeted => return Err(EPROTO),
            _ => {}
        }
        let payload = receive_payload(socket, len)?;
        stat::add(Counter::FramesReceived, 1);
        match kind {
            Kind::Hello => {
                let (hello, _) = wire::split::<Hello>(&payload)?;
                peer.greet(chan.class, id, hello, ack)?;
                greeted = true;
            }
            Kind::Ack => {
                let mut st = chan.state.lock();
                if st.socket != id {
                    return Err(ECONNABORTED);
                }
                st.session.acked(ack)?;
                chan.show_room(&st);
            }
            _ => dispatch(peer, chan, id, kind, seq, ack, payload)?,
        }
        let (sent, received) = socket.records();
        if !renewed && sent.max(received) >= RENEW_RECORDS {
            renewed = true;
            let _ = crate::ctl::event(Cmd::Renew, |w| {
                w.u32(Attr::Peer, peer.id.get().into())?;
                w.u32(Attr::Class, chan.class as u32)
            });
        }
    }
}

/// The payload of a frame. Waits for memory, as the frame must not be lost.
fn receive_payload(socket: &Socket, len: usize) -> Result<KVVec<u8>> {
    let mut payload = KVVec::new();
    if len != 0 {
        while payload.reserve(len, GFP_KERNEL | __GFP_NOWARN).is_err() {
            if Thread::should_stop() || socket.is_shut() {
                return Err(ENOMEM);
            }
            crate::sys::work::sleep(MEMORY_MS);
        }
        socket.receive_vec(len, &mut payload)?;
    }
    Ok(payload)
}

fn dispatch(
    peer: &Peer,
    chan: &Channel,
    id: u64,
    kind: Kind,
    seq: u64,
    ack: u64,
    payload: KVVec<u8>,
) -> Result {
    let gate = chan.gate.lock();
    let (taken, ack_due, wake) = {
        let mut st = chan.state.lock();
        if st.socket != id {
            return Err(ECONNABORTED);
        }
        st.session.acked(ack)?;
        let taken = st.session.take(seq, payload.len())?;
        chan.show_room(&st);
        (
            taken,
            st.session.ack_due(),
            core::mem::replace(&mut st.dozing, false),
        )
    };
    #[cfg(SSI_BENCH)]
    let taken = match taken {
        Taken::Fresh if bench::takes(peer.id, chan.class, kind, &payload) => Taken::Again,
        other => other,
    };
    if taken == Taken::Fresh {
        crate::node::frame(peer.id, chan.class, kind, payload);
    }
    drop(gate);
    if ack_due {
        chan.flush(true);
    } else if wake {
        // To be awake when it has been quiet for a while.
        chan.kick();
    }
    Ok(())
}
