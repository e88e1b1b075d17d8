// SPDX-License-Identifier: GPL-2.0-only

//! Migration: who does what, in which order, and what happens when something goes wrong.
//!
//! ```text
//! source                                   target
//!   stop all threads                         a stub (or the deputies) waits
//!   write the image        -- Image -->      adopt
//!                          <-- Ready --
//!   (nothing can fail from here on)
//!                          -- Commit -->     from here on the guest is the process
//!                          <-- Committed --
//!   threads become deputies                  threads run
//!                          -- Pages -->      pages, asked for and unasked
//!                          <-- PagesTaken -- the memory is whole
//!   the memory goes
//! ```
//!
//! Before Commit is sent any failure lets the process go on at the source. After it, the source
//! stays still until the target says that it has the process or never had it, or is dead; a dead
//! target took the process with it.

use crate::adopt::{self, Adopted, Image};
use crate::capture::{judge, judge_memory, Frozen, Refusal};
use crate::ctl;
use crate::id::NodeId;
use crate::link::{self, Urgency};
use crate::node::say;
use crate::process::{self, processes, Place, Process};
use crate::puppet::{Call, Puppet};
use crate::source::{sources, Source};
use crate::stat::{self, Counter};
use crate::sys::mm::Memory;
use crate::sys::task::{self, Facts, SigInfo, TaskRef};
use crate::sys::wait::{Until, WaitQueue, Woken};
use crate::sys::work;
use crate::table;
use crate::uapi::{Attr, Cmd, FileId, Reason, Report};
use crate::wire::task::{Begin, Verdict, CHUNK_BYTES, MAX_IMAGE_BYTES};
use crate::wire::{self, Class, Kind};
use core::sync::atomic::{AtomicU64, Ordering};
use kernel::prelude::*;
use kernel::sync::{new_spinlock, Arc, SpinLock};
use zerocopy::little_endian::{U16, U32, U64};

/// How long the target may take to say that it is ready, in ms.
const READY_MS: u32 = 30_000;
/// How long a target waits for its stub, for the rest of an image, and for the commit, in ms.
const STUB_MS: u32 = 15_000;
const COMMIT_MS: u32 = 60_000;
/// How long a stub waits for the beginning of an image, in ms. Longer than a source takes to stop
/// its process, [`FILL_MS`] included.
const IDLE_MS: u32 = 40_000;
/// How long a process whose pages are still elsewhere is waited for, in ms. Its target waits
/// meanwhile, so ssid begins when they are there, or nearly.
const FILL_MS: u32 = 25_000;
/// Who only looks at a process's memory is waited for.
const SETTLE_TRIES: u32 = 10;
const SETTLE_MS: u32 = 20;
/// A node that stays silent is declared dead by then.
const DEAD_MS: u32 = u32::MAX / 2;

table! {
    /// Migrations away from this node.
    leaving: Leaving
}
table! {
    /// Migrations to this node.
    arriving: Arriving
}

/// What is said at once to who asks.
pub struct Answer {
    /// [`Reason::None`]: yes.
    pub reason: Reason,
    /// What it is about.
    pub detail: u64,
    /// Path or name it is about.
    pub text: KVec<u8>,
}

impl From<Refusal> for Answer {
    fn from(r: Refusal) -> Self {
        Self {
            reason: r.reason,
            detail: r.detail,
            text: r.text,
        }
    }
}

fn yes() -> Answer {
    Answer {
        reason: Reason::None,
        detail: 0,
        text: KVec::new(),
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Up to the moment the commit is sent.
    Sent,
    Ready,
    Committed,
    Failed(u32),
    Lost,
}

/// What is told of a migration in the end. Whoever tells a part of it knows all that came before.
#[pin_data]
pub struct Timing {
    #[pin]
    report: SpinLock<Report>,
    /// When the threads began to be stopped.
    started_ns: AtomicU64,
}

impl Timing {
    fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                report <- new_spinlock!(Report::default()),
                started_ns: AtomicU64::new(0),
            }),
            GFP_KERNEL,
        )
    }

    fn since_us(&self) -> U64 {
        U64::new(task::now_ns().saturating_sub(self.started_ns.load(Ordering::Relaxed)) / 1000)
    }

    /// Notes something that took from the beginning until now.
    fn took(&self, note: impl FnOnce(&mut Report, U64)) {
        let us = self.since_us();
        note(&mut self.report.lock(), us);
    }
}

/// A migration at its source.
#[pin_data]
pub struct Leaving {
    token: u64,
    target: NodeId,
    process: Arc<Process>,
    #[pin]
    stage: SpinLock<Stage>,
    #[pin]
    changed: WaitQueue,
    timing: Arc<Timing>,
}

impl Leaving {
    fn set(&self, s: Stage) {
        {
            let mut now = self.stage.lock();
            if matches!(*now, Stage::Failed(_) | Stage::Lost) {
                return;
            }
            *now = s;
        }
        self.changed.wake();
    }

    fn wait_not(&self, s: Stage, timeout_ms: u32) -> Stage {
        if self
            .changed
            .wait(Until::Kill, timeout_ms, || *self.stage.lock() != s)
            == Woken::Timeout
        {
            return Stage::Failed(ETIMEDOUT.to_errno().unsigned_abs());
        }
        *self.stage.lock()
    }
}

fn find_task(pid: u32) -> core::result::Result<TaskRef, Refusal> {
    let t = TaskRef::find(pid).ok_or(Refusal::new(Reason::NoProcess))?;
    if t.tgid() != pid {
        return Err(Refusal::new(Reason::NoProcess));
    }
    Ok(t)
}

/// What decides whether `t`, the leader of `pid`, may move. Who only looks at its memory is gone a
/// moment later and does not count, nor do we, who bring in what is missing of it.
fn settled(t: &TaskRef, pid: u32) -> Facts {
    let mut f = t.facts();
    for _ in 0..SETTLE_TRIES {
        if f.kthread != 0 || f.mm_users <= f.threads || crate::pager::of_process(pid).is_some() {
            break;
        }
        task::sleep_ms(SETTLE_MS);
        f = t.facts();
    }
    if f.kthread == 0 && crate::pager::of_process(pid).is_some() {
        f.mm_users = f.mm_users.min(f.threads);
    }
    f
}

/// Checks all that can be told without stopping the process.
fn check(
    pid: u32,
    here: NodeId,
) -> core::result::Result<(TaskRef, Option<Arc<Process>>, NodeId), Refusal> {
    let t = find_task(pid)?;
    let known = processes::get(u64::from(pid));
    if let Some(p) = &known {
        match p.place() {
            Place::Guest => {}
            Place::Leaving => return Err(Refusal::new(Reason::Moving)),
            _ => return Err(Refusal::new(Reason::NoProcess)),
        }
    }
    let home = known.as_ref().map_or(here, |p| p.home);
    judge(&settled(&t, pid), home != here)?;
    if known.is_none() && !here.allocates(pid) {
        return Err(Refusal::new(Reason::TooOld));
    }
    Ok((t, known, home))
}

/// Whether `pid` would move.
pub fn why(pid: u32) -> Result<Answer> {
    let here = crate::node::me().ok_or(ENOTCONN)?;
    Ok(match check(pid, here) {
        Ok((t, ..)) => {
            if let Err(r) = crate::files::check(&t) {
                return Ok(Refusal::from(r).into());
            }
            if crate::pager::of_process(pid).is_some() {
                // It came here as it is, and its mappings are not yet what they will be.
                return Ok(yes());
            }
            match Memory::of(&t).map(|m| judge_memory(&m)) {
                Some(Ok(())) => yes(),
                Some(Err(r)) => r.into(),
                None => Refusal::new(Reason::Ending).into(),
            }
        }
        Err(r) => r.into(),
    })
}

/// Starts to move `pid` to `to`. What follows is told by events.
pub fn migrate(pid: u32, to: NodeId, token: u64, files: &[FileId]) -> Result<Answer> {
    let here = crate::node::me().ok_or(ENOTCONN)?;
    if to == here {
        return Ok(Refusal::new(Reason::AlreadyThere).into());
    }
    if !link::is_up(to) {
        return Ok(Refusal::new(Reason::NoLink).into());
    }
    let (leader, known, home) = match check(pid, here) {
        Ok(v) => v,
        Err(r) => return Ok(r.into()),
    };
    let process = match known {
        Some(p) => {
            if !p.replace_place(Place::Guest, Place::Leaving) {
                return Ok(Refusal::new(Reason::Moving).into());
            }
            p
        }
        None => {
            let p = Process::new(pid, here, leader.comm(), Place::Leaving)?;
            if processes::insert(u64::from(pid), p.clone()).is_err() {
                return Ok(Refusal::new(Reason::Moving).into());
            }
            p
        }
    };
    let mut equal: KVec<FileId> = KVec::new();
    equal.extend_from_slice(files, GFP_KERNEL)?;
    let moving = process.clone();
    let m = Timing::new().and_then(|timing| {
        Arc::pin_init(
            pin_init!(Leaving {
                token,
                target: to,
                process: moving,
                stage <- new_spinlock!(Stage::Sent),
                changed <- WaitQueue::new(),
                timing,
            }),
            GFP_KERNEL,
        )
    });
    let started = m.and_then(|m| {
        leaving::insert(token, m.clone())?;
        work::spawn(c"ssi", move || leave(&m, &leader, home, here, &equal)).inspect_err(|_| {
            leaving::remove(token);
        })
    });
    if let Err(e) = started {
        stay(&process, home, here);
        return Err(e);
    }
    Ok(yes())
}

/// The process goes on where it is, or ends there.
fn stay(p: &Arc<Process>, home: NodeId, here: NodeId) {
    if home == here {
        processes::remove_exact(u64::from(p.pid), p);
    } else {
        p.stays();
    }
}

fn told(m: &Leaving, errno: u32, r: &Refusal) {
    let report = *m.timing.report.lock();
    let told = ctl::event(Cmd::Migrated, |w| {
        w.u64(Attr::Token, m.token)?;
        w.u32(Attr::Pid, m.process.pid)?;
        w.u32(Attr::Peer, u32::from(m.target.get()))?;
        w.u32(Attr::Errno, errno)?;
        w.u32(Attr::Reason, r.reason as u32)?;
        w.u64(Attr::Detail, r.detail)?;
        w.bytes(Attr::Text, &r.text)?;
        w.bytes(Attr::Report, wire::bytes(&report))
    });
    if let Err(e) = told {
        pr_warn!(
            "migration of {}: its end was not told: {:?}\n",
            m.process.pid,
            e
        );
    }
}

fn leave(m: &Arc<Leaving>, leader: &TaskRef, home: NodeId, here: NodeId, equal: &[FileId]) {
    let pid = m.process.pid;
    match try_leave(m, leader, home, here, equal) {
        Ok(()) => {
            stat::add(Counter::MigrationsOut, 1);
            told(m, 0, &Refusal::new(Reason::None));
        }
        Err(r) => {
            stat::add(Counter::MigrationsFailed, 1);
            let _ = say(
                m.target,
                Class::Control,
                Kind::Abort,
                wire::bytes(&Verdict::new(m.token, pid)),
            );
            stay(&m.process, home, here);
            told(m, ECANCELED.to_errno().unsigned_abs(), &r);
        }
    }
    leaving::remove_exact(m.token, m);
}

fn try_leave(
    m: &Arc<Leaving>,
    leader: &TaskRef,
    home: NodeId,
    here: NodeId,
    equal: &[FileId],
) -> core::result::Result<(), Refusal> {
    let p = &m.process;
    if let Some(g) = crate::pager::of_process(p.pid) {
        // One memory, two nodes at most.
        g.wait_filled(Until::Kill, FILL_MS)?;
    }
    let mut facts = leader.facts();
    for _ in 0..100 {
        // Who only looks at its memory is gone a moment later.
        if facts.mm_users <= facts.threads {
            break;
        }
        task::sleep_ms(20);
        facts = leader.facts();
    }
    judge(&facts, home != here)?;
    let memory = Memory::of(leader).ok_or(Refusal::new(Reason::Ending))?;
    m.timing.started_ns.store(task::now_ns(), Ordering::Relaxed);
    let frozen = Frozen::stop(leader, p.pid)?;
    m.timing.took(|r, us| r.frozen_us = us);
    let itimer = [facts.itimer_real_ns, facts.itimer_real_incr_ns];
    let prepared = frozen
        .collect(home, here, m.target)
        .and_then(|()| frozen.image(&memory, equal, itimer))
        .and_then(|(image, ranges)| {
            let source = if ranges.is_empty() {
                None
            } else {
                Some(Source::new(
                    m.token,
                    p.pid,
                    m.target,
                    memory,
                    ranges,
                    m.timing.clone(),
                )?)
            };
            Ok((image, source))
        });
    let (image, source) = match prepared {
        Ok(v) => v,
        Err(r) => {
            frozen.let_go();
            return Err(r);
        }
    };
    m.timing.report.lock().image_bytes = U64::new(image.len() as u64);
    let back = |frozen: &Frozen, r: Refusal| {
        if let Some(s) = &source {
            s.end();
        }
        frozen.let_go();
        r
    };
    if send_image(m, &image, home).is_err() {
        return Err(back(&frozen, Refusal::new(Reason::TargetLost)));
    }
    drop(image);
    m.timing.took(|r, us| r.sent_us = us);
    match m.wait_not(Stage::Sent, READY_MS) {
        Stage::Ready => {}
        Stage::Failed(e) if e == ETIMEDOUT.to_errno().unsigned_abs() => {
            return Err(back(&frozen, Refusal::new(Reason::TargetLost)))
        }
        Stage::Failed(e) => return Err(back(&frozen, refused(e))),
        _ => return Err(back(&frozen, Refusal::new(Reason::TargetLost))),
    }
    m.timing.took(|r, us| r.ready_us = us);
    let killed = frozen
        .puppets()
        .map_or(true, |v| v.is_empty() || v.iter().any(|t| t.is_gone()));
    if killed {
        return Err(back(&frozen, Refusal::new(Reason::Ending)));
    }

    // The point of no return.
    let v = Verdict::new(m.token, p.pid);
    if say(m.target, Class::Control, Kind::Commit, wire::bytes(&v)).is_err() {
        return Err(back(&frozen, Refusal::new(Reason::TargetLost)));
    }
    match m.wait_not(Stage::Ready, DEAD_MS) {
        Stage::Committed => {}
        Stage::Failed(e) => return Err(back(&frozen, refused(e))),
        _ => {
            // It may have run there, and it died with that node.
            let _ = leader.signal(&SigInfo {
                signo: 9,
                ..SigInfo::default()
            });
            return Err(Refusal::new(Reason::TargetLost));
        }
    }

    p.set_source(source.clone());
    // Before it is known to be away: what comes then needs them.
    if let Ok(threads) = frozen.puppets() {
        p.set_threads(threads, frozen.area_bytes());
    }
    let place = if home == here {
        Place::Away(m.target)
    } else {
        Place::Remnant(m.target)
    };
    if p.replace_place(Place::Leaving, place) {
        if home == here {
            stat::add(Counter::Deputies, 1);
        } else {
            stat::add(Counter::Guests, -1);
        }
        if *m.stage.lock() == Stage::Lost {
            // Who looked for what that node ran took it for one that is still leaving.
            if home == here {
                process::kill(p.pid);
            } else {
                p.died_on();
            }
        }
    } else {
        // It was killed here before it ran there.
        p.set_source(None);
        end_there(m);
    }
    if let Err(e) = frozen.keep(p) {
        if e != ESRCH {
            pr_err!("process {}: no deputy: {:?}\n", p.pid, e);
        }
        end_there(m);
        let _ = leader.signal(&SigInfo {
            signo: 9,
            ..SigInfo::default()
        });
    }
    match source {
        // All of it was taken before the process was known to be away.
        Some(s) if s.over() => {
            let _ = p.memory_taken();
        }
        Some(s) => {
            let pushed = if crate::params::push() {
                s.start_push()
            } else {
                Ok(())
            };
            if pushed.is_err() {
                pr_warn!("process {}: its pages go on demand only\n", p.pid);
            }
        }
        None => {
            m.timing.took(|r, us| r.filled_us = us);
            let _ = p.memory_taken();
        }
    }
    Ok(())
}

/// What the target's errno means for who asked.
fn refused(errno: u32) -> Refusal {
    const MISSING: [Error; 2] = [ENOENT, ENOTDIR];
    if MISSING.iter().any(|e| e.to_errno().unsigned_abs() == errno) {
        // A directory, a device, or a mapped file that was there a moment ago.
        return Refusal::new(Reason::MissingPath);
    }
    Refusal::about(Reason::TargetRefused, u64::from(errno))
}

/// What runs at the target now is to end.
fn end_there(m: &Leaving) {
    let v = Verdict::new(0, m.process.pid);
    let _ = say(m.target, Class::Control, Kind::Kill, wire::bytes(&v));
}

fn send_image(m: &Leaving, image: &[u8], home: NodeId) -> Result {
    let b = Begin {
        token: U64::new(m.token),
        total_bytes: U64::new(image.len() as u64),
        pid: U32::new(m.process.pid),
        home: U16::new(home.get()),
        reserved: U16::new(0),
    };
    let mut kind = Kind::Image;
    for chunk in image.chunks(CHUNK_BYTES) {
        let mut v = KVVec::with_capacity(24 + chunk.len(), GFP_KERNEL)?;
        v.extend_from_slice(wire::bytes(&b), GFP_KERNEL)?;
        v.extend_from_slice(chunk, GFP_KERNEL)?;
        link::send(m.target, Class::Control, kind, v, Urgency::Now)?;
        kind = Kind::ImageMore;
    }
    Ok(())
}

/// The target has taken all pages.
pub fn pages_taken(peer: NodeId, token: u64, pid: u32) -> Result {
    let Some(s) = sources::get(token).filter(|s| s.target == peer) else {
        return Ok(());
    };
    s.end();
    let (fetched, pushed) = s.bytes();
    s.timing.took(|r, us| {
        r.filled_us = us;
        r.fetched_bytes = U64::new(fetched);
        r.pushed_bytes = U64::new(pushed);
    });
    let report = *s.timing.report.lock();
    let _ = ctl::event(Cmd::Filled, |w| {
        w.u64(Attr::Token, token)?;
        w.u32(Attr::Pid, pid)?;
        w.bytes(Attr::Report, wire::bytes(&report))
    });
    match processes::get(u64::from(pid)) {
        Some(p) => p.memory_taken(),
        None => Ok(()),
    }
}

/// A migration at its target.
#[pin_data]
pub struct Arriving {
    token: u64,
    #[pin]
    state: SpinLock<Arrival>,
    #[pin]
    changed: WaitQueue,
}

struct Arrival {
    stub: Option<Arc<Puppet>>,
    from: Option<NodeId>,
    image: KVVec<u8>,
    total: usize,
    /// The image is here, and somebody makes the process of it.
    whole: bool,
    home: Option<NodeId>,
    pid: u32,
    verdict: Option<bool>,
}

fn arrival(token: u64) -> Result<Arc<Arriving>> {
    if let Some(a) = arriving::get(token) {
        return Ok(a);
    }
    let a = Arc::pin_init(
        pin_init!(Arriving {
            token,
            state <- new_spinlock!(Arrival {
                stub: None,
                from: None,
                image: KVVec::new(),
                total: 0,
                whole: false,
                home: None,
                pid: 0,
                verdict: None,
            }),
            changed <- WaitQueue::new(),
        }),
        GFP_KERNEL,
    )?;
    match arriving::insert(token, a.clone()) {
        Ok(()) => Ok(a),
        Err(_) => arriving::get(token).ok_or(EAGAIN),
    }
}

fn end_stub(stub: &Puppet) {
    let mut calls = KVec::new();
    if calls
        .push(Call::new(process::EXIT_GROUP, &[1]), GFP_KERNEL)
        .is_ok()
    {
        let _ = stub.post_calls(calls, 0);
    }
}

/// A stub has become a puppet and waits for the image of `token`.
pub fn stub_ready(token: u64, stub: &Arc<Puppet>) -> Result {
    let a = arrival(token)?;
    {
        let mut s = a.state.lock();
        if s.stub.is_some() {
            return Err(EBUSY);
        }
        s.stub = Some(stub.clone());
    }
    a.changed.wake();
    // If nothing ever arrives, it ends by itself.
    let watch = a.clone();
    work::spawn(c"ssi", move || {
        let came = watch.changed.wait(Until::Kill, IDLE_MS, || {
            let s = watch.state.lock();
            s.from.is_some() || s.verdict.is_some()
        });
        if came != Woken::Ready {
            drop_arrival(&watch);
        }
    })
}

/// ssid gives up what it was preparing.
///
/// # Errors
/// `ENOENT` when nothing is arriving under this name (any more).
pub fn cancel(token: u64) -> Result {
    give_up(&arriving::get(token).ok_or(ENOENT)?);
    Ok(())
}

/// Says no, unless yes was said before. Whoever makes the process of a whole image hears of it;
/// else nobody does, and what is there goes.
fn give_up(a: &Arc<Arriving>) {
    let whole = {
        let mut s = a.state.lock();
        if s.verdict.is_none() {
            s.verdict = Some(false);
        }
        s.whole
    };
    a.changed.wake();
    if !whole {
        drop_arrival(a);
    }
}

fn drop_arrival(a: &Arc<Arriving>) {
    arriving::remove_exact(a.token, a);
    let stub = a.state.lock().stub.take();
    if let Some(s) = stub {
        end_stub(&s);
    }
}

fn image_frame(peer: NodeId, kind: Kind, payload: &[u8]) -> Result {
    let (b, chunk) = wire::split::<Begin>(payload).map_err(|_| EINVAL)?;
    let token = b.token.get();
    let total =
        usize::try_from(b.total_bytes.get().min(MAX_IMAGE_BYTES + 1)).map_err(|_| EINVAL)?;
    if total as u64 > MAX_IMAGE_BYTES || chunk.is_empty() || chunk.len() > total {
        return Err(EINVAL);
    }
    let a = if kind == Kind::Image {
        arrival(token)?
    } else {
        arriving::get(token).ok_or(ENOENT)?
    };
    let home = NodeId::new(b.home.get()).ok_or(EINVAL)?;
    if kind == Kind::Image {
        let mut buf = KVVec::with_capacity(total, GFP_KERNEL)?;
        buf.extend_from_slice(chunk, GFP_KERNEL)?;
        let mut s = a.state.lock();
        if s.from.is_some() {
            return Err(EEXIST);
        }
        s.from = Some(peer);
        s.pid = b.pid.get();
        s.home = Some(home);
        s.total = total;
        s.image = buf;
    } else {
        let mut s = a.state.lock();
        if s.from != Some(peer) || s.image.len() + chunk.len() > s.total {
            return Err(EINVAL);
        }
        // The room was reserved with the first chunk.
        s.image.extend_from_slice(chunk, GFP_ATOMIC)?;
    }
    let whole = {
        let mut s = a.state.lock();
        s.whole = s.image.len() == s.total;
        s.whole
    };
    if whole {
        work::spawn(c"ssi", move || arrive(&a))?;
    }
    Ok(())
}

fn arrive(a: &Arc<Arriving>) {
    let (image, from, home, pid) = {
        let mut s = a.state.lock();
        let (Some(from), Some(home)) = (s.from, s.home) else {
            return;
        };
        (
            core::mem::replace(&mut s.image, KVVec::new()),
            from,
            home,
            s.pid,
        )
    };
    if let Err(e) = try_arrive(a, image, from, home, pid) {
        let v = Verdict::new(a.token, pid).failed(e.to_errno());
        pr_info!("process {pid}: not adopted: {:?}\n", e);
        let _ = say(from, Class::Control, Kind::Abort, wire::bytes(&v));
        drop_arrival(a);
    }
    arriving::remove_exact(a.token, a);
}

fn try_arrive(a: &Arc<Arriving>, image: KVVec<u8>, from: NodeId, home: NodeId, pid: u32) -> Result {
    let here = crate::node::me().ok_or(ENOTCONN)?;
    let at_home = home == here;
    let deputy = processes::get(u64::from(pid));
    let leader = if at_home {
        let d = deputy
            .as_ref()
            .filter(|d| d.place() == Place::Away(from))
            .ok_or(ESRCH)?;
        // Its old memory must be gone: what the host has is the process now.
        for _ in 0..200 {
            if d.source().is_none() {
                break;
            }
            task::sleep_ms(20);
        }
        if d.source().is_some() {
            return Err(EBUSY);
        }
        d.leader().ok_or(ESRCH)?
    } else {
        if deputy.is_some() {
            return Err(EEXIST);
        }
        if a.changed.wait(Until::Kill, STUB_MS, || {
            let s = a.state.lock();
            s.stub.is_some() || s.verdict.is_some()
        }) != Woken::Ready
        {
            return Err(ETIMEDOUT);
        }
        let stub = a.state.lock().stub.clone().ok_or(ECANCELED)?;
        stub.wait_parked(STUB_MS)?;
        stub
    };
    let image = Arc::new(Image(image), GFP_KERNEL)?;
    let deputies = deputy.as_ref().filter(|_| at_home).map(|d| &**d);
    let adopted =
        adopt::adopt(image, &leader, deputies, a.token, from, home, here).inspect_err(|_| {
            if let Some(d) = deputy.as_ref().filter(|_| at_home) {
                adopt::undo(d, &leader);
            }
        })?;
    let taken =
        wait_commit(a, from, pid).and_then(|()| settle(a, &adopted, &leader, from, home, here));
    if let Err(e) = taken {
        // Refuse a commit that may still be on its way: nothing of it ran.
        if let Some(g) = &adopted.pager {
            g.die();
            g.leave();
        }
        if let Some(d) = deputy.as_ref().filter(|_| at_home) {
            adopt::undo(d, &leader);
        }
        return Err(e);
    }
    stat::add(Counter::MigrationsIn, 1);
    let v = Verdict::new(a.token, pid);
    let _ = say(from, Class::Control, Kind::Committed, wire::bytes(&v));
    adopted.release();
    Ok(())
}

fn end_thread(t: &Puppet) -> Result {
    let mut calls = KVec::new();
    calls.push(Call::new(process::EXIT, &[0]), GFP_KERNEL)?;
    t.post_calls(calls, 0)?;
    t.wait_gone()
}

/// Says that all is ready and waits for the commit.
fn wait_commit(a: &Arriving, from: NodeId, pid: u32) -> Result {
    let v = Verdict::new(a.token, pid);
    say(from, Class::Control, Kind::Ready, wire::bytes(&v))?;
    let _ = a
        .changed
        .wait(Until::Kill, COMMIT_MS, || a.state.lock().verdict.is_some());
    match a.state.lock().verdict {
        Some(true) => Ok(()),
        Some(false) => Err(ECANCELED),
        None => Err(ETIMEDOUT),
    }
}

/// The commit is taken: from here on the process is this one, unless it was killed before.
fn settle(
    a: &Arriving,
    adopted: &Adopted,
    leader: &Arc<Puppet>,
    from: NodeId,
    home: NodeId,
    here: NodeId,
) -> Result {
    let pid = leader.tid;
    if leader.is_gone() {
        return Err(ECANCELED);
    }
    if home == here {
        let d = processes::get(u64::from(pid)).ok_or(ESRCH)?;
        let threads = d.threads()?;
        if !processes::remove_exact(u64::from(pid), &d) {
            return Err(ESRCH);
        }
        for t in threads.iter().filter(|t| !adopted.has(t.tid)) {
            // This thread ended where the process came from. The area it ends in goes with
            // the first threads that run.
            if let Err(e) = end_thread(t) {
                pr_err!("thread {}: deputy did not end: {:?}\n", t.tid, e);
            }
        }
        d.set_threads(KVec::new(), 0);
        stat::add(Counter::Deputies, -1);
    } else {
        let p = Process::new(pid, home, adopted.comm, Place::Guest)?;
        p.set_pager(adopted.pager.clone());
        processes::insert(u64::from(pid), p.clone())?;
        // If it ended before it could be found here, nobody has said so.
        if leader.is_gone() && p.replace_place(Place::Guest, Place::Ending) {
            p.forget();
            return Err(ECANCELED);
        }
        stat::add(Counter::Guests, 1);
        if from != home {
            let v = Verdict::new(a.token, pid).with(u64::from(here.get()));
            let _ = say(home, Class::Control, Kind::Moved, wire::bytes(&v));
        }
    }
    a.state.lock().stub = None;
    Ok(())
}

/// A frame about a migration has arrived.
pub fn frame(peer: NodeId, kind: Kind, payload: &[u8]) -> Result {
    if matches!(kind, Kind::Image | Kind::ImageMore) {
        return image_frame(peer, kind, payload);
    }
    let (v, _) = wire::split::<Verdict>(payload).map_err(|_| EINVAL)?;
    let token = v.token.get();
    let out = leaving::get(token).filter(|m| m.target == peer);
    let into = arriving::get(token).filter(|a| a.state.lock().from == Some(peer));
    match kind {
        Kind::Ready => {
            if let Some(m) = out {
                m.set(Stage::Ready);
            }
        }
        Kind::Committed => {
            if let Some(m) = out {
                m.set(match v.errno.get() {
                    0 => {
                        m.timing.took(|r, us| r.committed_us = us);
                        Stage::Committed
                    }
                    e => Stage::Failed(e),
                });
            }
        }
        Kind::Abort => {
            if let Some(m) = out {
                m.set(Stage::Failed(v.errno.get().max(1)));
            }
            if let Some(a) = into {
                give_up(&a);
            }
        }
        Kind::Commit => match into {
            Some(a) => {
                let taken = {
                    let mut s = a.state.lock();
                    *s.verdict.get_or_insert(true)
                };
                a.changed.wake();
                if !taken {
                    never_had_it(peer, v)?;
                }
            }
            None => never_had_it(peer, v)?,
        },
        _ => return Err(EINVAL),
    }
    Ok(())
}

fn never_had_it(peer: NodeId, v: &Verdict) -> Result {
    let no = Verdict::new(v.token.get(), v.pid.get()).failed(ESRCH.to_errno());
    say(peer, Class::Control, Kind::Committed, wire::bytes(&no))
}

/// A node is dead: nobody waits for it.
pub fn peer_dead(peer: NodeId) {
    let mut after = None;
    while let Some((k, m)) = leaving::next(after) {
        after = Some(k);
        if m.target == peer {
            m.set(Stage::Lost);
        }
    }
    let mut after = None;
    while let Some((k, a)) = arriving::next(after) {
        after = Some(k);
        if a.state.lock().from == Some(peer) {
            give_up(&a);
        }
    }
    let mut after = None;
    while let Some((k, s)) = sources::next(after) {
        after = Some(k);
        if s.target == peer {
            s.end();
        }
    }
}
