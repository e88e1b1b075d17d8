// SPDX-License-Identifier: GPL-2.0-only

//! The processes of the cluster that concern this node: those whose home is here while they run
//! elsewhere (their *deputies*), those that run here while their home is elsewhere (*guests*), and
//! those on the way.
//!
//! Lock order: a process's `state` is taken with nothing else held, and for moments only.

use crate::id::NodeId;
use crate::pager::Pager;
use crate::puppet::{act_of, puppets, Call, Next, Puppet};
use crate::source::Source;
use crate::stat::{self, Counter};
use crate::sys::mm;
use crate::sys::task::{self, SigInfo, TaskRef, Usage};
use crate::sys::work::{self, Hold};
use crate::table;
use crate::uapi;
use crate::wire::task::{Ended, Signal, Stopped, Verdict};
use crate::wire::{self, Class, Kind};
use core::sync::atomic::{AtomicU64, Ordering};
use kernel::prelude::*;
use kernel::sync::{new_spinlock, Arc, SpinLock};
use zerocopy::little_endian::{I32, U16, U32, U64};

table! {
    /// Processes by number.
    processes: Process
}

/// How long a deputy may take to note what its process used, in ms.
const NOTE_MS: u32 = 500;
const SIGKILL: i32 = 9;
const SIGSTOP: i32 = 19;
const SIGTSTP: i32 = 20;
const SIGTTOU: i32 = 22;
const NR_RT_SIGPROCMASK_BITS: u64 = 64;
const NR_EXIT_GROUP: u64 = 231;
const NR_TGKILL: u64 = 234;
/// A process that left is known to be away within 10 s.
const LEAVING_TRIES: u32 = 500;
const LEAVING_PAUSE_MS: u32 = 20;

/// Where a process is, as seen from this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Its home is here, that node runs it.
    Away(NodeId),
    /// It runs here, its home is elsewhere.
    Guest,
    /// It is about to leave this node.
    Leaving,
    /// It has left this node, which is not its home, for that one; its memory is still fetched.
    Remnant(NodeId),
    /// It is ending.
    Ending,
}

struct State {
    place: Place,
    /// Its threads as puppets: deputies, or remnants.
    threads: KVec<Arc<Puppet>>,
    /// It left a core where it ended.
    core_dumped: bool,
    /// How it ended while it was leaving: what its home has to hear if it did not move.
    ended: Option<Ended>,
    pager: Option<Arc<Pager>>,
    source: Option<Arc<Source>>,
    /// Bytes of its park area.
    area_bytes: u64,
}

/// One process.
#[pin_data]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// The node it was created on.
    pub home: NodeId,
    /// Its name.
    pub comm: [u8; 16],
    #[pin]
    state: SpinLock<State>,
    forwarded: AtomicU64,
    _hold: Hold,
}

impl Process {
    /// A process in `place`, not yet in the table.
    pub fn new(pid: u32, home: NodeId, comm: [u8; 16], place: Place) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                pid,
                home,
                comm,
                state <- new_spinlock!(State {
                    place,
                    threads: KVec::new(),
                    core_dumped: false,
                    ended: None,
                    pager: None,
                    source: None,
                    area_bytes: 0,
                }),
                forwarded: AtomicU64::new(0),
                _hold: Hold::new()?,
            }? Error),
            GFP_KERNEL,
        )
    }

    /// Where it is.
    pub fn place(&self) -> Place {
        self.state.lock().place
    }

    /// Says where it is from now on; returns where it was.
    pub fn set_place(&self, p: Place) -> Place {
        let old = core::mem::replace(&mut self.state.lock().place, p);
        old
    }

    /// Moves it from place `from` to `to`, if it is there.
    pub fn replace_place(&self, from: Place, to: Place) -> bool {
        let mut s = self.state.lock();
        if s.place != from {
            return false;
        }
        s.place = to;
        drop(s);
        true
    }

    /// A guest that was to leave stays. If it has ended meanwhile, its home hears of that now.
    pub fn stays(&self) {
        let ended = {
            let mut s = self.state.lock();
            if s.place == Place::Leaving {
                s.place = Place::Guest;
            }
            s.ended.take()
        };
        if let Some(e) = ended {
            self.send(self.home, Kind::Ended, wire::bytes(&e));
        }
    }

    /// It moved on from here to a node that is dead, which may not have told its home that it had it.
    pub fn died_on(&self) {
        self.send(
            self.home,
            Kind::Kill,
            wire::bytes(&Verdict::new(0, self.pid)),
        );
        kill(self.pid);
    }

    /// Its puppets.
    pub fn threads(&self) -> Result<KVec<Arc<Puppet>>> {
        let mut v = KVec::new();
        let n = self.state.lock().threads.len();
        v.reserve(n + 8, GFP_KERNEL)?;
        let s = self.state.lock();
        for t in &s.threads {
            v.push(t.clone(), GFP_ATOMIC)?;
        }
        Ok(v)
    }

    /// Gives it its puppets.
    pub fn set_threads(&self, t: KVec<Arc<Puppet>>, area_bytes: u64) {
        let old = {
            let mut s = self.state.lock();
            s.area_bytes = area_bytes;
            core::mem::replace(&mut s.threads, t)
        };
        drop(old);
    }

    /// The puppet of its leader.
    pub fn leader(&self) -> Option<Arc<Puppet>> {
        puppets::get(u64::from(self.pid))
    }

    /// Says how large its park area is.
    pub fn set_area_bytes(&self, bytes: u64) {
        self.state.lock().area_bytes = bytes;
    }

    /// Bytes of its park area.
    pub fn area_bytes(&self) -> u64 {
        self.state.lock().area_bytes
    }

    /// The pager of its memory, while pages are missing.
    pub fn pager(&self) -> Option<Arc<Pager>> {
        self.state.lock().pager.clone()
    }

    /// Sets the pager of its memory.
    pub fn set_pager(&self, p: Option<Arc<Pager>>) {
        let old = core::mem::replace(&mut self.state.lock().pager, p);
        drop(old);
    }

    /// Its memory here, while another node still fetches it.
    pub fn source(&self) -> Option<Arc<Source>> {
        self.state.lock().source.clone()
    }

    /// Sets what its memory here is served by.
    pub fn set_source(&self, s: Option<Arc<Source>>) {
        let old = core::mem::replace(&mut self.state.lock().source, s);
        drop(old);
    }

    /// If it is away, `host` runs it now.
    fn moved_on(&self, host: NodeId) -> bool {
        let mut s = self.state.lock();
        let away = matches!(s.place, Place::Away(_));
        if away {
            s.place = Place::Away(host);
        }
        away
    }

    /// Takes it out of the table, with all that hangs on it.
    pub fn forget(self: &Arc<Self>) {
        processes::remove_exact(u64::from(self.pid), self);
        let (threads, pager, source) = {
            let mut s = self.state.lock();
            (
                core::mem::take(&mut s.threads),
                s.pager.take(),
                s.source.take(),
            )
        };
        for t in &threads {
            t.set_process(None);
        }
        if let Some(p) = pager {
            p.die();
        }
        if let Some(s) = source {
            s.end();
        }
    }

    fn send(&self, to: NodeId, kind: Kind, payload: &[u8]) {
        if let Err(e) = crate::node::say(to, Class::Control, kind, payload) {
            pr_debug!(
                "process {}: {:?} to n{} not sent: {:?}\n",
                self.pid,
                kind,
                to.get(),
                e
            );
        }
    }

    /// One of its puppets, the caller, got a signal: it goes where the process is.
    pub fn signalled(&self, puppet: &Puppet, i: &SigInfo) {
        let (Place::Away(host) | Place::Remnant(host)) = self.place() else {
            return;
        };
        // Raised by the puppet's own doing, not sent by anybody: the process has no part in it.
        if matches!(i.signo, 4 | 5 | 7 | 8 | 11) && i.code > 0 {
            pr_err!(
                "process {}: its deputy ran into signal {} ({})\n",
                self.pid,
                i.signo,
                i.code
            );
            return;
        }
        let s = Signal {
            pid: U32::new(self.pid),
            tid: U32::new(if i.thread_directed != 0 {
                puppet.tid
            } else {
                0
            }),
            signo: I32::new(i.signo),
            code: I32::new(i.code),
            err: I32::new(i.err),
            sender: I32::new(i.pid),
            uid: U32::new(i.uid),
            reserved: U32::new(0),
            value: U64::new(i.value),
        };
        self.send(host, Kind::Signal, wire::bytes(&s));
    }

    /// One of its puppets, the caller, is about to leave its wait because of a signal that is not
    /// caught. If it is a stop, the process stops too.
    pub fn stop_noticed(&self, puppet: &Puppet) {
        if task::pending(SIGSTOP) {
            self.signalled(
                puppet,
                &SigInfo {
                    signo: SIGSTOP,
                    ..SigInfo::default()
                },
            );
        }
    }

    /// The process has ended elsewhere with this wait status: its deputies end the same way.
    fn end_deputies(self: &Arc<Self>, status: i32, usage: Usage) -> Result {
        if self.set_place(Place::Ending) == Place::Ending {
            return Ok(());
        }
        self.state.lock().core_dumped = status & 0x80 != 0;
        if let Some(s) = self.source() {
            s.end();
        }
        let Some(leader) = self.leader() else {
            return Ok(());
        };
        let signal = status & 0x7f;
        if signal == SIGKILL {
            return self.kill_deputies(&leader, usage);
        }
        leader.post(act_of(move |_: &Arc<Puppet>| {
            task::raise_usage(usage);
            Ok(Next::Stay)
        })?)?;
        let mut calls = KVec::new();
        if signal == 0 {
            calls.push(
                Call::new(NR_EXIT_GROUP, &[((status >> 8) & 0xff) as u64]),
                GFP_KERNEL,
            )?;
            leader.post_calls(calls, 0)?;
            return Ok(());
        }
        // Die of the signal itself, without a core: the memory here is not the process's.
        leader.post(act_of(move |_: &Arc<Puppet>| {
            task::set_actions(&[task::Action::default(); 64]);
            let mut limits = task::process_state().rlim;
            limits[4] = [0, 0];
            task::set_rlimits(&limits);
            Ok(Next::Stay)
        })?)?;
        let me = u64::from(self.pid);
        calls.push(Call::new(NR_TGKILL, &[me, me, signal as u64]), GFP_KERNEL)?;
        leader.post_calls(calls, 1u64.wrapping_shl(signal as u32 - 1))?;
        Ok(())
    }

    /// SIGKILL for the deputies, after a moment in which the leader may note what the process used:
    /// it may be stopped, and that signal alone ends it then.
    fn kill_deputies(&self, leader: &Arc<Puppet>, usage: Usage) -> Result {
        let noted = leader.post(act_of(move |_: &Arc<Puppet>| {
            task::raise_usage(usage);
            Ok(Next::Stay)
        })?);
        let (leader, pid) = (leader.clone(), self.pid);
        work::spawn(c"ssi", move || {
            if let Ok(noted) = noted {
                let _ = leader.outcome_within(&noted, NOTE_MS);
            }
            kill(pid);
        })
    }

    /// The guest was stopped by a signal that has the default effect: stop here by the same.
    fn stop_deputies(self: &Arc<Self>, signo: i32) -> Result {
        if !(SIGTSTP..=SIGTTOU).contains(&signo) {
            return Err(EINVAL);
        }
        let Some(leader) = self.leader() else {
            return Ok(());
        };
        let n = signo as usize - 1;
        leader.post(act_of(move |_: &Arc<Puppet>| {
            let mut a = task::actions();
            a[n] = task::Action::default();
            task::set_actions(&a);
            Ok(Next::Stay)
        })?)?;
        let me = u64::from(self.pid);
        let mut calls = KVec::new();
        calls.push(Call::new(NR_TGKILL, &[me, me, signo as u64]), GFP_KERNEL)?;
        leader.post_calls(calls, 1u64.wrapping_shl(signo as u32 - 1))?;
        leader.post(act_of(move |p: &Arc<Puppet>| {
            let own = task::actions();
            task::set_actions(&p.catching(&own));
            Ok(Next::Stay)
        })?)?;
        Ok(())
    }

    /// A signal for a guest here.
    fn deliver(&self, peer: NodeId, s: &Signal) -> Result {
        let signo = s.signo.get();
        if !(1..=NR_RT_SIGPROCMASK_BITS as i32).contains(&signo) {
            return Err(EINVAL);
        }
        let mut i = SigInfo {
            signo,
            code: s.code.get(),
            err: s.err.get(),
            pid: s.sender.get(),
            uid: s.uid.get(),
            thread_directed: 0,
            value: s.value.get(),
        };
        let Some(leader) = TaskRef::find(self.pid) else {
            return Ok(());
        };
        if (SIGTSTP..=SIGTTOU).contains(&signo) && leader.defaults(signo) {
            // Its process group here means nothing: stop it for sure, home stops by the right one.
            i.signo = SIGSTOP;
            let _ = leader.signal(&i);
            let st = Stopped {
                pid: s.pid,
                signo: U32::new(signo as u32),
            };
            self.send(peer, Kind::Stopped, wire::bytes(&st));
            return Ok(());
        }
        let r = match s.tid.get() {
            0 => leader.signal(&i),
            tid => match TaskRef::find(tid).filter(|t| t.tgid() == self.pid) {
                Some(t) => t.signal_thread(&i),
                None => Ok(()),
            },
        };
        if r == Err(ESRCH) {
            return Ok(());
        }
        r
    }

    /// Its last thread here is ending, with this wait status. Called in that thread.
    fn exited(self: &Arc<Self>, status: i32) {
        let e = Ended {
            pid: U32::new(self.pid),
            status: U32::new(status as u32),
            usage: zerocopy::transmute!(task::usage()),
        };
        let place = {
            let mut s = self.state.lock();
            let place = s.place;
            if matches!(place, Place::Guest | Place::Leaving) {
                s.place = Place::Ending;
            }
            s.ended = (place == Place::Leaving).then_some(e);
            place
        };
        match place {
            Place::Guest => {
                self.send(self.home, Kind::Ended, wire::bytes(&e));
                stat::add(Counter::Guests, -1);
            }
            Place::Away(host) => {
                // Killed at home.
                self.send(host, Kind::Kill, wire::bytes(&Verdict::new(0, self.pid)));
                stat::add(Counter::Deputies, -1);
            }
            // Its adoption was refused at the last moment.
            Place::Ending if crate::node::me() != Some(self.home) => {}
            Place::Ending => {
                if self.state.lock().core_dumped {
                    task::say_core_dumped();
                }
                stat::add(Counter::Deputies, -1);
            }
            // What is still fetched of it is held by its source, not by the task.
            Place::Remnant(_) => self.set_source(None),
            // Whoever moves it finds it so, and says it in `stays`.
            Place::Leaving => {
                if crate::node::me() != Some(self.home) {
                    stat::add(Counter::Guests, -1);
                }
            }
        }
        self.forget();
    }

    /// The target has all of its memory: nothing of it is kept here.
    pub fn memory_taken(self: &Arc<Self>) -> Result {
        self.set_source(None);
        let Some(leader) = self.leader() else {
            return Ok(());
        };
        match self.place() {
            Place::Away(_) => {
                let bytes = self.area_bytes();
                leader.post(act_of(move |p: &Arc<Puppet>| {
                    let base = p.base();
                    mm::unmap_all(base, base + bytes)?;
                    Ok(Next::Breathe)
                })?)?;
            }
            Place::Remnant(_) => {
                let mut calls = KVec::new();
                calls.push(Call::new(NR_EXIT_GROUP, &[0]), GFP_KERNEL)?;
                leader.post_calls(calls, 0)?;
            }
            _ => {}
        }
        Ok(())
    }
}

/// Number of the call by which one thread ends.
pub const EXIT: u64 = 60;
/// Number of the call by which a process ends.
pub const EXIT_GROUP: u64 = NR_EXIT_GROUP;

/// A thread is on its way out of the kernel for good. Called in that thread; sleeps.
pub fn task_exited(tid: u32, tgid: u32, last: bool, status: i32) {
    if let Some(p) = puppets::get(u64::from(tid)) {
        p.ended();
    }
    if last {
        if let Some(p) = processes::get(u64::from(tgid)) {
            p.exited(status);
        }
        // Of one that had come home nothing else is known.
        crate::pager::program_ended(tgid);
    }
}

/// Whether anybody cares about the end of this thread. Spins.
pub fn is_ours(tid: u32, tgid: u32) -> bool {
    puppets::get(u64::from(tid)).is_some()
        || processes::get(u64::from(tgid)).is_some()
        || crate::pager::pagers::any(|g| g.pid == tgid)
}

/// One more operation of this process was carried out at its home.
pub fn count_forwarded(pid: u32) {
    if let Some(p) = processes::get(u64::from(pid)) {
        p.forwarded.fetch_add(1, Ordering::Relaxed);
    }
}

/// The pager of this process has done its work.
pub fn filled(pid: u32, pager: &Arc<Pager>) {
    if let Some(p) = processes::get(u64::from(pid)) {
        let mine = p.pager().is_some_and(|g| Arc::ptr_eq(&g, pager));
        if mine {
            p.set_pager(None);
        }
    }
}

/// Ends a process here, also if its leader has ended before the others.
pub fn kill(pid: u32) {
    if let Some(t) = TaskRef::find(pid) {
        let _ = t.signal(&SigInfo {
            signo: SIGKILL,
            ..SigInfo::default()
        });
    }
}

/// Does something about a process that is away; if it is still leaving, once the thread that sends it away
/// has come to say that it is gone: it may be running there already.
fn once_away(pid: u32, f: impl FnOnce(&Arc<Process>) -> Result + Send + 'static) -> Result {
    let Some(p) = processes::get(u64::from(pid)) else {
        return Ok(());
    };
    match p.place() {
        Place::Away(_) => f(&p),
        Place::Leaving => work::spawn(c"ssi", move || {
            for _ in 0..LEAVING_TRIES {
                if p.place() != Place::Leaving {
                    break;
                }
                task::sleep_ms(LEAVING_PAUSE_MS);
            }
            if matches!(p.place(), Place::Away(_)) {
                if let Err(e) = f(&p) {
                    pr_warn!("process {pid}: what came while it left was lost: {:?}\n", e);
                }
            }
        }),
        _ => Ok(()),
    }
}

/// A frame about a process has arrived.
pub fn frame(peer: NodeId, kind: Kind, payload: &[u8]) -> Result {
    match kind {
        Kind::Ended => {
            let (e, _) = wire::split::<Ended>(payload).map_err(|_| EINVAL)?;
            let (status, usage) = (e.status.get() as i32, zerocopy::transmute!(e.usage));
            // The word of a move may still be on its way by another link.
            once_away(e.pid.get(), move |p| p.end_deputies(status, usage))
        }
        Kind::Signal => {
            let (s, _) = wire::split::<Signal>(payload).map_err(|_| EINVAL)?;
            let Some(p) = processes::get(u64::from(s.pid.get())) else {
                return Ok(());
            };
            match p.place() {
                Place::Guest | Place::Leaving if p.home == peer => p.deliver(peer, s),
                Place::Remnant(host) if p.home == peer => {
                    p.send(host, Kind::Signal, payload);
                    Ok(())
                }
                // Sent on by the node it left.
                Place::Guest => p.deliver(p.home, s),
                _ => Ok(()),
            }
        }
        Kind::Stopped => {
            let (s, _) = wire::split::<Stopped>(payload).map_err(|_| EINVAL)?;
            let signo = s.signo.get() as i32;
            once_away(s.pid.get(), move |p| p.stop_deputies(signo))
        }
        Kind::Moved => {
            let (v, _) = wire::split::<Verdict>(payload).map_err(|_| EINVAL)?;
            let p = processes::get(u64::from(v.pid.get()));
            if p.as_ref().is_some_and(|p| p.moved_on(peer)) {
                return Ok(());
            }
            match p.filter(|p| p.place() == Place::Leaving) {
                Some(p) => once_away(p.pid, move |p| {
                    p.moved_on(peer);
                    Ok(())
                }),
                // Its deputy ended while it moved: the word of that went where it was.
                None => {
                    let v = Verdict::new(0, v.pid.get());
                    crate::node::say(peer, Class::Control, Kind::Kill, wire::bytes(&v))
                }
            }
        }
        Kind::Kill => {
            let (v, _) = wire::split::<Verdict>(payload).map_err(|_| EINVAL)?;
            let pid = v.pid.get();
            if let Some(p) = processes::get(u64::from(pid)) {
                match p.place() {
                    Place::Guest | Place::Leaving => kill(pid),
                    // It had moved on, to a node that died before it could say so here.
                    Place::Away(host) if host == peer => kill(pid),
                    Place::Remnant(host) => p.send(host, Kind::Kill, payload),
                    _ => {}
                }
            }
            Ok(())
        }
        Kind::PagesTaken => {
            let (v, _) = wire::split::<Verdict>(payload).map_err(|_| EINVAL)?;
            crate::mover::pages_taken(peer, v.token.get(), v.pid.get())
        }
        _ => Err(EINVAL),
    }
}

/// A node is dead: its guests here end, and the deputies here of guests it ran.
pub fn peer_dead(peer: NodeId) {
    let mut after = None;
    while let Some((k, p)) = processes::next(after) {
        after = Some(k);
        match p.place() {
            Place::Away(host) if host == peer => kill(p.pid),
            Place::Guest | Place::Leaving if p.home == peer => {
                kill(p.pid);
                if let Some(g) = p.pager() {
                    g.die();
                }
            }
            Place::Remnant(host) if host == peer => p.died_on(),
            _ => {}
        }
    }
    crate::pager::source_dead(peer);
}

/// The processes known here with numbers above `after`, at most 256.
pub fn list(after: u32) -> Result<KVec<uapi::ProcRecord>> {
    let mut v = KVec::new();
    let mut at = Some(u64::from(after));
    while let Some((k, p)) = processes::next(at) {
        at = Some(k);
        let here = crate::node::me().map_or(0, NodeId::get);
        let (node, state) = match p.place() {
            Place::Away(host) => (host.get(), uapi::STATE_AWAY),
            Place::Guest => (here, uapi::STATE_GUEST),
            Place::Leaving => (here, uapi::STATE_MOVING),
            Place::Remnant(_) | Place::Ending => continue,
        };
        let t = TaskRef::find(p.pid);
        let facts = t.as_ref().map(|t| t.facts()).unwrap_or_default();
        let comm = if node == here && facts.threads > 0 {
            facts.comm
        } else {
            p.comm
        };
        v.push(
            uapi::ProcRecord {
                pid: U32::new(p.pid),
                home: U16::new(p.home.get()),
                node: U16::new(node),
                state: U16::new(state),
                threads: U16::new(facts.threads.min(0xffff) as u16),
                forwarded: U64::new(p.forwarded.load(Ordering::Relaxed)),
                missing_pages: U64::new(p.pager().is_some().into()),
                comm,
            },
            GFP_KERNEL,
        )?;
        if v.len() >= 256 {
            break;
        }
    }
    Ok(v)
}
