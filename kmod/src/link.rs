// SPDX-License-Identifier: GPL-2.0-only

//! Frames in and out, per peer and class.
//!
//! ssid connects a socket and hands it down ([`attach`]); two threads of ours serve it until it
//! breaks or another takes its place. What is sent, kept and sent again is decided in
//! [`crate::link_session`]. Here are the peers and what the module may ask; `channel` has the queue
//! and the writing end of a class, `serve` its threads.
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
//! Therefore [`crate::node::control_frame`], [`crate::node::memory_frame`] and
//! [`crate::node::peer_dead`] may send, but must not attach, detach, declare dead, or wait for
//! something that a frame of the same class brings.

use crate::id::{NodeId, MAX_NODE};
use crate::link_session::{Greeting, Life};
use crate::stat::{self, Counter};
use crate::sys::net::Socket;
use crate::sys::slot::Slot;
use crate::sys::wait::{Until, Woken};
use crate::sys::work::NoIo;
use crate::wire::{self, Class, Hello, Kind, MAX_PAYLOAD_BYTES};
use kernel::prelude::*;
use kernel::sync::atomic::{Acquire, Atomic, Relaxed, Release};
use kernel::sync::{new_mutex, Arc, Mutex};

pub use crate::link_session::Urgency;

#[cfg(SSI_BENCH)]
mod bench;
mod channel;
mod serve;

use channel::Channel;
pub use channel::Payload;
use serve::Served;

/// How often a thread looks around that waits for nothing in particular.
const LOOK_MS: u32 = 3_600_000;

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
    #[pin]
    bulk: Channel,
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
                    bulk <- Channel::new(Class::Bulk),
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
    let stood = chan.state.lock().socket != 0;
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
        if stood {
            stat::add(Counter::LinksRenewed, 1);
        }
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

/// Whether all classes of `peer` have a socket on which both sides have said Hello.
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
    send_shared(peer, class, kind, Arc::new(payload, GFP_KERNEL)?, urgency)
}

/// The same with a payload of which the caller keeps a reference. It is the only one once the peer has taken
/// the frame, or the session is over.
pub fn send_shared(
    peer: NodeId,
    class: Class,
    kind: Kind,
    payload: Payload,
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

/// Bytes of bulk that `peer` has not said to have taken; none without a session.
pub fn bulk_bytes(peer: NodeId, class: Class) -> usize {
    let links = LINKS.get();
    let peer = links.as_ref().and_then(|l| l.peer(peer).ok());
    peer.map_or(0, |p| {
        let st = p.channel(class).state.lock();
        if st.open {
            st.session.bulk_bytes()
        } else {
            0
        }
    })
}

impl Peer {
    fn channel(&self, class: Class) -> &Channel {
        match class {
            Class::Control => &self.control,
            Class::Memory => &self.memory,
            Class::Bulk => &self.bulk,
        }
    }

    fn channels(&self) -> [&Channel; Class::COUNT] {
        [&self.control, &self.memory, &self.bulk]
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
