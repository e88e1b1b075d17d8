// SPDX-License-Identifier: GPL-2.0-only

//! The two threads of a socket.

use super::channel::{Channel, Pumped, HELLO_BYTES};
use super::{Peer, LOOK_MS};
use crate::id::NodeId;
use crate::link_session::Taken;
use crate::stat::{self, Counter};
use crate::sys::net::Socket;
use crate::sys::wait::{Until, Woken};
use crate::sys::work::Thread;
use crate::uapi::{Attr, Cmd};
use crate::wire::{self, Class, Header, Hello, Kind, HEADER_BYTES};
use kernel::alloc::Allocator;
use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::atomic::{Acquire, Relaxed};
use kernel::sync::Arc;

/// Silence after which the peer is told what was taken.
const QUIET_MS: u32 = 50;
/// How long to wait for memory before asking again.
const MEMORY_MS: u32 = 20;
/// Another socket is asked for again after this part of the records that a first time takes: whoever was asked may
/// not have been there.
const RENEW_AGAIN: u64 = 8;
/// Quiet moments in which a socket may leave its memory cgroup before that is given up.
const CGROUP_TRIES: u32 = 40;

/// What serves a class: a socket and its threads. Dropping it shuts the first and joins the others.
pub(super) struct Served {
    pub(super) socket: Arc<Socket>,
    pub(super) threads: [Option<Thread>; 2],
}

impl Drop for Served {
    fn drop(&mut self) {
        self.socket.shut();
        for t in &mut self.threads {
            drop(t.take());
        }
    }
}

impl Served {
    pub(super) fn start(&mut self, me: NodeId, peer: &Arc<Peer>, class: Class, id: u64) -> Result {
        let start = |what: &str, f: fn(&Peer, &Channel, &Socket, u64)| -> Result<Thread> {
            let short = match class {
                Class::Control => 'c',
                Class::Memory => 'm',
                Class::Bulk => 'b',
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
        match chan.work_off(id) {
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
                    let left = chan.leave_cgroup(socket);
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
    let renew = crate::params::renew_records();
    let mut worn_at = renew;
    let mut greeted = false;
    // Used again and again: memory costs the zeros the kernel fills it with.
    let mut payload = Received::new(chan.class);
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
        payload.receive(socket, len)?;
        stat::add(Counter::FramesReceived, 1);
        match kind {
            Kind::Hello => {
                let (hello, _) = wire::split::<Hello>(payload.bytes())?;
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
            _ => dispatch(peer, chan, id, kind, seq, ack, &mut payload)?,
        }
        let (sent, received) = socket.records();
        let records = sent.max(received);
        if records >= renew * 2 {
            // Nothing goes over it any more, whether there is another or not.
            return Err(ESTALE);
        }
        if records >= worn_at {
            worn_at = records + renew.div_ceil(RENEW_AGAIN);
            let _ = crate::ctl::event(Cmd::Renew, |w| {
                w.u32(Attr::Peer, peer.id.get().into())?;
                w.u32(Attr::Class, chan.class as u32)
            });
        }
    }
}

/// What came in a frame.
enum Received {
    /// It may be taken.
    Control(KVVec<u8>),
    /// It lies on pages of its own, from which a process's memory is filled.
    Memory(VVec<u8>),
}

impl Received {
    fn new(class: Class) -> Self {
        match class {
            Class::Control => Received::Control(KVVec::new()),
            Class::Memory | Class::Bulk => Received::Memory(VVec::new()),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Received::Control(v) => v,
            Received::Memory(v) => v,
        }
    }

    fn receive(&mut self, socket: &Socket, len: usize) -> Result {
        match self {
            Received::Control(v) => receive_payload(socket, len, v),
            Received::Memory(v) => receive_payload(socket, len, v),
        }
    }
}

/// Waits for memory, as the frame must not be lost.
fn receive_payload<A: Allocator>(socket: &Socket, len: usize, payload: &mut Vec<u8, A>) -> Result {
    payload.clear();
    if len != 0 {
        while payload.reserve(len, GFP_KERNEL | __GFP_NOWARN).is_err() {
            if Thread::should_stop() || socket.is_shut() {
                return Err(ENOMEM);
            }
            crate::sys::work::sleep(MEMORY_MS);
        }
        socket.receive_vec(len, payload)?;
    }
    Ok(())
}

fn dispatch(
    peer: &Peer,
    chan: &Channel,
    id: u64,
    kind: Kind,
    seq: u64,
    ack: u64,
    payload: &mut Received,
) -> Result {
    let gate = chan.gate.lock();
    let (taken, ack_due, wake) = {
        let mut st = chan.state.lock();
        if st.socket != id {
            return Err(ECONNABORTED);
        }
        st.session.acked(ack)?;
        let taken = st.session.take(seq, payload.bytes().len())?;
        chan.show_room(&st);
        if chan.class == Class::Bulk {
            // Who sends ahead waits until it was taken, and nothing else goes back that could say so.
            st.session.quiet();
        }
        (
            taken,
            st.session.ack_due(),
            core::mem::replace(&mut st.dozing, false),
        )
    };
    #[cfg(SSI_BENCH)]
    let taken = match taken {
        Taken::Fresh if super::bench::takes(peer.id, chan.class, kind, payload.bytes()) => {
            Taken::Again
        }
        other => other,
    };
    if taken == Taken::Fresh {
        match payload {
            Received::Control(v) => crate::node::control_frame(peer.id, kind, v),
            Received::Memory(v) => crate::node::memory_frame(peer.id, chan.class, kind, v),
        }
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
