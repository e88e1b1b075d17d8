// SPDX-License-Identifier: GPL-2.0-only

//! Capture: stopping a process at the edge of user mode and writing down what it is.
//!
//! Every thread is interrupted by a piece of task work, notes its registers and then attends as a
//! [`Puppet`]: until the commit it can be let go as if nothing had happened, or become a deputy.

use crate::files;
use crate::id::NodeId;
use crate::puppet::{act_of, puppets, Call, Next, Puppet, SLOT_BYTES};
use crate::source::Range;
use crate::sys::mm::{self, Content, Memory, Vma, PAGE};
use crate::sys::task::{self, Action, Facts, SigInfo, TaskRef, ThreadState, When};
use crate::uapi::{FileId, Reason};
use crate::wire::image::{self, reg, Creds, Head, Mapping, Process, ProcessState, Thread, Way};
use kernel::prelude::*;
use kernel::rbtree::RBTree;
use kernel::sync::{new_spinlock, Arc, SpinLock};
use zerocopy::IntoBytes;

/// How long threads may take to reach the edge of user mode, in ms.
const FREEZE_MS: u32 = 3_000;
const PAGE64: u64 = PAGE as u64;

const VM_MAYWRITE: u64 = 0x20;
const VM_SHARED: u64 = 0x8;
const VM_GROWSDOWN: u64 = 0x100;
const VM_PFNMAP: u64 = 0x400;
const VM_IO: u64 = 0x4000;
const VM_NORESERVE: u64 = 0x20_0000;
const VM_MIXEDMAP: u64 = 0x1000_0000;

/// Why a process does not move.
#[derive(Debug)]
pub struct Refusal {
    /// The reason.
    pub reason: Reason,
    /// File descriptor, address or thread it is about.
    pub detail: u64,
    /// Path or name it is about.
    pub text: KVec<u8>,
}

impl Refusal {
    /// A refusal about nothing in particular.
    pub fn new(reason: Reason) -> Self {
        Self {
            reason,
            detail: 0,
            text: KVec::new(),
        }
    }

    /// A refusal about an address, a descriptor or a number.
    pub fn about(reason: Reason, detail: u64) -> Self {
        Self {
            reason,
            detail,
            text: KVec::new(),
        }
    }

    fn named(reason: Reason, detail: u64, name: &[u8]) -> Self {
        let mut text = KVec::new();
        let _ = text.extend_from_slice(name.get(..name.len().min(200)).unwrap_or(&[]), GFP_KERNEL);
        Self {
            reason,
            detail,
            text,
        }
    }
}

impl From<files::Refusal> for Refusal {
    fn from(r: files::Refusal) -> Self {
        Self {
            reason: r.reason,
            detail: r.fd,
            text: r.text,
        }
    }
}

impl From<Error> for Refusal {
    fn from(e: Error) -> Self {
        match e {
            e if e == ESRCH => Self::new(Reason::Ending),
            e if e == ENOMEM => Self::new(Reason::TooLarge),
            e if e == ETIMEDOUT => Self::new(Reason::Unreachable),
            e => Self::about(Reason::Unreachable, u64::from(e.to_errno().unsigned_abs())),
        }
    }
}

impl From<kernel::alloc::AllocError> for Refusal {
    fn from(_: kernel::alloc::AllocError) -> Self {
        Self::new(Reason::TooLarge)
    }
}

/// What can be told without stopping it. `away` says that this node is not its home.
pub fn judge(f: &Facts, away: bool) -> core::result::Result<(), Refusal> {
    let no = |r| Err(Refusal::new(r));
    if f.kthread != 0 {
        return no(Reason::KernelThread);
    }
    if f.exiting != 0 || f.threads == 0 {
        return no(Reason::Ending);
    }
    if f.ptraced != 0 || f.tracing_others != 0 {
        return no(Reason::Traced);
    }
    if f.seccomp != 0 {
        return no(Reason::Seccomp);
    }
    if f.compat != 0 {
        return no(Reason::Compat);
    }
    if f.ns_other != 0 {
        return no(Reason::Namespace);
    }
    if f.vfork_child != 0 {
        return no(Reason::VforkChild);
    }
    if f.children != 0 && away {
        return no(Reason::Children);
    }
    if f.mm_users > f.threads {
        return no(Reason::SharedMemory);
    }
    if f.files_shared > f.threads || f.fs_shared > f.threads {
        return no(Reason::SharedFiles);
    }
    if f.sem_undo != 0 || f.shm_attached != 0 {
        return no(Reason::SysvIpc);
    }
    if f.io_uring != 0 || f.aio != 0 {
        return no(Reason::AsyncIo);
    }
    if f.posix_timers != 0 || f.cpu_timers != 0 {
        return no(Reason::Timer);
    }
    if f.shstk != 0 {
        return no(Reason::ProcessorFeature);
    }
    if f.frozen != 0 {
        let by: &[u8] = if f.frozen & 1 != 0 {
            b"by its cgroup"
        } else {
            b"by a signal"
        };
        return Err(Refusal::named(Reason::Frozen, 0, by));
    }
    if f.policy != 0 && f.policy != 3 && f.policy != 5 {
        return no(Reason::Scheduling);
    }
    if f.threads as usize > image::MAX_THREADS {
        return no(Reason::TooLarge);
    }
    Ok(())
}

/// What one thread noted of itself.
pub struct Noted {
    /// The thread.
    pub puppet: Arc<Puppet>,
    state: KBox<ThreadState>,
    xstate: KVec<u8>,
    signals: KVVec<SigInfo>,
}

/// What the leader noted of the process.
pub struct Collected {
    state: ProcessState,
    creds: Creds,
    groups: KVec<u32>,
    auxv: [u64; 64],
    actions: [Action; 64],
    cwd: KVec<u8>,
    files: files::Captured,
    signals: KVVec<SigInfo>,
}

/// A process whose threads are being stopped, or stand still.
#[pin_data]
pub struct Frozen {
    /// The process.
    pub pid: u32,
    #[pin]
    inner: SpinLock<Inner>,
}

/// Signals that went with the image, by thread; those of the process under 0.
type Sent = KVec<(u32, KVVec<SigInfo>)>;

struct Inner {
    cancelled: bool,
    noted: KVec<Noted>,
    puppets: KVec<Arc<Puppet>>,
    collected: Option<KBox<Collected>>,
    sent: Sent,
    refused: Option<Refusal>,
    area: Option<(u64, u64)>,
}

impl Frozen {
    /// Stops all threads of `leader`'s process.
    ///
    /// # Errors
    /// [`Reason::Unreachable`] and the like; all threads go on then.
    pub fn stop(leader: &TaskRef, pid: u32) -> core::result::Result<Arc<Self>, Refusal> {
        let f = Arc::pin_init(
            pin_init!(Self {
                pid,
                inner <- new_spinlock!(Inner {
                    cancelled: false,
                    noted: KVec::new(),
                    puppets: KVec::new(),
                    collected: None,
                    sent: KVec::new(),
                    refused: None,
                    area: None,
                }),
            }),
            GFP_KERNEL,
        )?;
        if let Err(r) = f.clone().stop_all(leader) {
            f.let_go();
            return Err(r);
        }
        Ok(f)
    }

    fn stop_all(self: Arc<Self>, leader: &TaskRef) -> core::result::Result<(), Refusal> {
        let mut known: KVec<Arc<Puppet>> = KVec::new();
        // Threads that are born while others are being stopped are found in the next round.
        for _ in 0..64 {
            let tids = leader.threads()?;
            let mut fresh = false;
            for tid in &tids {
                if known.iter().any(|p| p.tid == *tid) {
                    continue;
                }
                let Some(t) = TaskRef::find(*tid) else {
                    continue;
                };
                let p = Puppet::new(*tid)?;
                known.push(p.clone(), GFP_KERNEL)?;
                {
                    let mut i = self.inner.lock();
                    i.puppets.push(p.clone(), GFP_ATOMIC)?;
                }
                let me = self.clone();
                let q = p.clone();
                // Work that was queued before ours in the same batch must run before we wait:
                // come back in the next batch.
                let first = task::job(move || {
                    let q2 = q.clone();
                    let done = task::job(move || me.note(&q2)).and_then(|again| {
                        TaskRef::find(task::tid())
                            .ok_or(ESRCH)?
                            .work(When::OnReturn, again)
                    });
                    if done.is_err() {
                        q.ended();
                    }
                })?;
                if t.work(When::Interrupt, first).is_err() {
                    p.ended();
                }
                fresh = true;
            }
            if !fresh {
                break;
            }
            for p in &known {
                match p.wait_parked(FREEZE_MS) {
                    Ok(()) => {}
                    // A thread that ended meanwhile is no thread of the image.
                    Err(e) if e == ESRCH && p.tid != self.pid => {}
                    Err(e) if e == ESRCH => return Err(Refusal::new(Reason::Ending)),
                    Err(_) => return Err(Refusal::about(Reason::Unreachable, u64::from(p.tid))),
                }
            }
        }
        known.retain(|p| !p.is_gone());
        let i = &mut self.inner.lock();
        i.puppets.retain(|p| !p.is_gone());
        i.noted.retain(|n| !n.puppet.is_gone());
        Ok(())
    }

    /// In the thread itself: notes what it is and attends.
    fn note(self: Arc<Self>, p: &Arc<Puppet>) {
        // Work for a thread that was past the last look for signals runs when its memory has gone.
        if self.inner.lock().cancelled || task::exiting() {
            p.ended();
            return;
        }
        task::learn_restart_by_call();
        task::restart_interrupted();
        let noted = (|| -> Result<Noted> {
            Ok(Noted {
                puppet: p.clone(),
                state: KBox::new(task::thread_state()?, GFP_KERNEL)?,
                xstate: task::xstate()?,
                signals: task::waiting_signals(false)?,
            })
        })();
        let ok = noted.and_then(|n| {
            self.inner.lock().noted.push(n, GFP_ATOMIC)?;
            Ok(())
        });
        if let Err(e) = ok {
            let old = self.inner.lock().refused.replace(Refusal::from(e));
            drop(old);
        }
        drop(self);
        if !p.attend() {
            p.ended();
        }
    }

    /// The threads, the leader first.
    pub fn puppets(&self) -> Result<KVec<Arc<Puppet>>> {
        let mut v = KVec::new();
        v.reserve(self.inner.lock().puppets.len() + 4, GFP_KERNEL)?;
        let i = self.inner.lock();
        for p in i.puppets.iter().filter(|p| p.tid == self.pid) {
            v.push(p.clone(), GFP_ATOMIC)?;
        }
        for p in i.puppets.iter().filter(|p| p.tid != self.pid) {
            v.push(p.clone(), GFP_ATOMIC)?;
        }
        Ok(v)
    }

    /// Has the leader note what the threads share, and make a park area for all of them.
    pub fn collect(
        self: &Arc<Self>,
        home: NodeId,
        here: NodeId,
        to: NodeId,
    ) -> core::result::Result<(), Refusal> {
        let puppets = self.puppets()?;
        let leader = puppets.first().ok_or(Refusal::new(Reason::Ending))?.clone();
        let slots = puppets.len() as u64;
        let me = self.clone();
        leader.act_stopped(move |_| {
            let bytes = 2 * PAGE64 + slots * SLOT_BYTES;
            let base = mm::map_area(0, slots * SLOT_BYTES)?;
            let (creds, groups) = task::creds()?;
            let mut state = task::process_state();
            state.dumpable = 1;
            let cwd = task::cwd()?;
            let files = match files::capture(home, here, to) {
                Ok(f) => f,
                Err(r) => {
                    let mut i = me.inner.lock();
                    i.area = Some((base, bytes));
                    let old = i.refused.replace(r.into());
                    drop(i);
                    drop(old);
                    return Ok(Next::Stay);
                }
            };
            let c = KBox::new(
                Collected {
                    state,
                    creds,
                    groups,
                    auxv: task::auxv(),
                    actions: task::actions(),
                    cwd,
                    files,
                    signals: task::waiting_signals(true)?,
                },
                GFP_KERNEL,
            )?;
            let mut i = me.inner.lock();
            i.area = Some((base, bytes));
            i.collected = Some(c);
            Ok(Next::Stay)
        })?;
        let (refused, area) = {
            let mut i = self.inner.lock();
            (i.refused.take(), i.area)
        };
        if let Some(r) = refused {
            return Err(r);
        }
        let (base, _) = area.ok_or(Refusal::new(Reason::Unreachable))?;
        for (k, p) in puppets.iter().enumerate() {
            p.place(base, k as u64);
        }
        Ok(())
    }

    /// Bytes of the park area.
    pub fn area_bytes(&self) -> u64 {
        self.inner.lock().area.map_or(0, |a| a.1)
    }

    /// Lets every thread go on as if nothing had happened.
    pub fn let_go(&self) {
        let (puppets, collected, area) = {
            let mut i = self.inner.lock();
            i.cancelled = true;
            (
                core::mem::take(&mut i.puppets),
                i.collected.take(),
                i.area.take(),
            )
        };
        if let Some(c) = &collected {
            c.files.release();
        }
        for p in &puppets {
            let unmap = area.filter(|_| p.tid == self.pid);
            let act = act_of(move |p: &Arc<Puppet>| {
                if let Some((base, bytes)) = unmap {
                    let _ = mm::unmap(base, bytes);
                }
                puppets::remove_exact(u64::from(p.tid), p);
                Ok(Next::Leave)
            });
            if !act.is_ok_and(|a| p.post_stopped(a).is_ok()) && !p.is_gone() {
                pr_err!("thread {}: could not be let go\n", p.tid);
            }
            if !p.is_parked() {
                // Its work has yet to run, and will find that it was cancelled.
                puppets::remove_exact(u64::from(p.tid), p);
            }
        }
    }

    /// Turns every thread into a puppet at its park page that takes signals for `process`.
    pub fn keep(&self, process: &Arc<crate::process::Process>) -> Result {
        let puppets = self.puppets()?;
        let leader = puppets.first().ok_or(ESRCH)?;
        leader.act_stopped(|p| {
            let own = task::actions();
            task::set_actions(&p.catching(&own));
            Ok(Next::Stay)
        })?;
        let mut sent = core::mem::take(&mut self.inner.lock().sent);
        for p in &puppets {
            p.set_process(Some(process.clone()));
            p.set_open(true);
            let (own, rest) = split(sent, p)?;
            sent = rest;
            p.post_stopped(act_of(move |p: &Arc<Puppet>| {
                // What went with the image must not follow it; what came later does.
                for (_, signals) in &own {
                    for s in signals {
                        task::drop_waiting_signal(s.signo);
                    }
                }
                task::seccomp_off();
                task::forget_user_memory();
                p.point_at_park();
                Ok(Next::Leave)
            })?)?;
        }
        // What the process had open is open elsewhere now, or held by the table of files.
        let mut calls = KVec::new();
        const NR_CLOSE_RANGE: u64 = 436;
        const NR_SETITIMER: u64 = 38;
        calls.push(
            Call::new(NR_CLOSE_RANGE, &[0, u64::from(u32::MAX), 0]),
            GFP_KERNEL,
        )?;
        let s = leader.scratch();
        let mut zero = KVec::new();
        zero.resize(32, 0u8, GFP_KERNEL)?;
        calls.push(
            Call::new(NR_SETITIMER, &[0, s, 0]).with(s, zero),
            GFP_KERNEL,
        )?;
        leader.post_calls(calls, 0)?;
        self.inner.lock().puppets.clear();
        Ok(())
    }

    /// Writes the image; also tells which ranges of the memory are to be served afterwards.
    pub fn image(
        &self,
        memory: &Memory,
        equal: &[FileId],
        itimer: [u64; 2],
    ) -> core::result::Result<(KVVec<u8>, KVVec<Range>), Refusal> {
        let (noted, collected) = {
            let mut i = self.inner.lock();
            if let Some(r) = i.refused.take() {
                return Err(r);
            }
            (core::mem::take(&mut i.noted), i.collected.take())
        };
        let mut c = collected.ok_or(Refusal::new(Reason::Unreachable))?;
        let r = write_image(self.pid, &noted, &c, memory, equal, itimer);
        let mut sent = Sent::new();
        sent.reserve(noted.len() + 1, GFP_KERNEL)?;
        sent.push(
            (0, core::mem::replace(&mut c.signals, KVVec::new())),
            GFP_KERNEL,
        )?;
        for n in noted {
            sent.push((n.puppet.tid, n.signals), GFP_KERNEL)?;
        }
        let mut i = self.inner.lock();
        i.collected = Some(c);
        i.sent = sent;
        drop(i);
        r
    }
}

/// Splits off what `p` has to forget: its own signals, and the process's if it is the leader.
fn split(sent: Sent, p: &Puppet) -> Result<(Sent, Sent)> {
    let (mut own, mut rest) = (Sent::new(), Sent::new());
    for s in sent {
        let list = if s.0 == p.tid || s.0 == 0 {
            &mut own
        } else {
            &mut rest
        };
        list.push(s, GFP_KERNEL)?;
    }
    Ok((own, rest))
}

struct Out(KVVec<u8>);

impl Out {
    fn record(&mut self, kind: image::Kind, parts: &[&[u8]]) -> Result {
        let len: usize = parts.iter().map(|p| p.len()).sum();
        if len > image::MAX_RECORD_BYTES {
            return Err(E2BIG);
        }
        self.0.extend_from_slice(
            Head {
                kind: kind as u32,
                len: len as u32,
            }
            .as_bytes(),
            GFP_KERNEL,
        )?;
        for p in parts {
            self.0.extend_from_slice(p, GFP_KERNEL)?;
        }
        let padded = (self.0.len() + 7) & !7;
        self.0.resize(padded, 0, GFP_KERNEL)?;
        Ok(())
    }

    fn signals(&mut self, tid: u32, signals: &[SigInfo]) -> Result {
        if signals.is_empty() {
            return Ok(());
        }
        self.record(
            image::Kind::Signals,
            &[&u64::from(tid).to_le_bytes(), signals.as_bytes()],
        )
    }
}

fn write_image(
    pid: u32,
    noted: &[Noted],
    c: &Collected,
    memory: &Memory,
    equal: &[FileId],
    itimer: [u64; 2],
) -> core::result::Result<(KVVec<u8>, KVVec<Range>), Refusal> {
    let mut out = Out(KVVec::with_capacity(64 * 1024, GFP_KERNEL)?);
    let mut ranges: KVVec<Range> = KVVec::new();
    let mut eager: KVVec<Range> = KVVec::new();
    let process = Process {
        version: image::VERSION,
        pid,
        threads: noted.len() as u32,
        reserved: 0,
        state: c.state,
        creds: c.creds,
        itimer_real_ns: itimer,
    };
    out.record(image::Kind::Process, &[process.as_bytes()])?;
    out.record(image::Kind::Groups, &[c.groups.as_bytes()])?;
    out.record(image::Kind::Auxv, &[c.auxv.as_bytes()])?;
    let (exe, id) = memory.exe()?;
    if is_equal(equal, id) {
        out.record(image::Kind::Exe, &[&exe])?;
    }
    out.record(image::Kind::Cwd, &[&c.cwd])?;
    out.record(image::Kind::Actions, &[c.actions.as_bytes()])?;
    out.signals(0, &c.signals)?;
    out.record(image::Kind::Files, &[&c.files.encode()?])?;

    let (vmas, paths) = mappings(memory)?;
    for v in &vmas {
        let path = path_of(v, &paths);
        let known = is_equal(equal, (v.major, v.minor, v.ino)) && !path.ends_with(b" (deleted)");
        let way = way_of(v, path, known)?;
        let mut flags = 0;
        if v.flags & VM_SHARED != 0 && way == Way::Eager {
            flags |= Mapping::SHARED;
        }
        if v.flags & VM_GROWSDOWN != 0 {
            flags |= Mapping::GROWSDOWN;
        }
        if v.flags & VM_NORESERVE != 0 {
            flags |= Mapping::NORESERVE;
        }
        let m = Mapping {
            start: v.start,
            end: v.end,
            offset: if path.is_empty() { 0 } else { v.pgoff * PAGE64 },
            way: way as u32,
            prot: (v.flags & 7) as u32,
            flags,
            special: v.special,
        };
        let with_path: &[u8] = if matches!(way, Way::File | Way::FilePaged) {
            path
        } else {
            &[]
        };
        out.record(image::Kind::Mapping, &[m.as_bytes(), with_path])?;
        let r = Range {
            start: v.start,
            end: v.end,
            file_known: way == Way::FilePaged,
        };
        match way {
            Way::Paged | Way::FilePaged => ranges.push(r, GFP_KERNEL)?,
            Way::Eager => eager.push(r, GFP_KERNEL)?,
            Way::Fresh | Way::File | Way::Kernel => {}
        }
    }
    for n in noted {
        let t = Thread {
            tid: n.puppet.tid,
            reserved: 0,
            state: *n.state,
        };
        out.record(image::Kind::Thread, &[t.as_bytes(), &n.xstate])?;
        out.signals(n.puppet.tid, &n.signals)?;
    }
    let mut buf = KVVec::with_capacity(PAGE, GFP_KERNEL)?;
    let mut page = |out: &mut Out, a: u64, file_known: bool| -> core::result::Result<(), Refusal> {
        loop {
            buf.clear();
            match memory.read(a, &mut buf, file_known, false) {
                Err(e) if e == EAGAIN => task::sleep_ms(1),
                Err(e) => return Err(e.into()),
                Ok(Content::Data) => {
                    out.record(image::Kind::Page, &[&a.to_le_bytes(), &buf])?;
                    return Ok(());
                }
                Ok(_) => return Ok(()),
            }
        }
    };
    for r in &eager {
        // A stack is used from the lowest stack pointer on; what is below is not worth a look,
        // but for the red zone.
        let mut a = r.start;
        while a < r.end {
            page(&mut out, a, false)?;
            a += PAGE64;
        }
        if out.0.len() as u64 > crate::wire::task::MAX_IMAGE_BYTES / 2 {
            return Err(Refusal::about(Reason::TooLarge, r.start));
        }
    }
    // Pages that each thread touches first.
    let mut hot: KVec<u64> = KVec::new();
    for n in noted {
        let s = &n.state;
        for a in [
            s.regs[reg::IP],
            s.regs[reg::SP],
            s.regs[reg::FS_BASE],
            s.rseq_ptr,
        ] {
            let a = a & !(PAGE64 - 1);
            if !hot.contains(&a) {
                hot.push(a, GFP_KERNEL)?;
            }
        }
    }
    for a in &hot {
        if let Some(r) = ranges.iter().find(|r| *a >= r.start && *a < r.end) {
            page(&mut out, *a, r.file_known)?;
        }
    }
    out.record(image::Kind::End, &[])?;
    if out.0.len() as u64 > crate::wire::task::MAX_IMAGE_BYTES {
        return Err(Refusal::about(Reason::TooLarge, out.0.len() as u64));
    }
    Ok((out.0, ranges))
}

/// The mappings of a memory, each with how many there are of its file, and the text of their paths.
fn mappings(memory: &Memory) -> core::result::Result<(KVVec<Vma>, KVVec<u8>), Refusal> {
    let (mut vmas, paths) = memory.vmas()?;
    if vmas.len() > image::MAX_MAPPINGS {
        return Err(Refusal::about(Reason::TooLarge, vmas.len() as u64));
    }
    let mut files: RBTree<u64, u32> = RBTree::new();
    for v in vmas.iter().filter(|v| v.file_key != 0) {
        match files.get_mut(&v.file_key) {
            Some(n) => *n += 1,
            None => {
                files.try_create_and_insert(v.file_key, 1, GFP_KERNEL)?;
            }
        }
    }
    for v in &mut vmas {
        v.file_vmas = files.get(&v.file_key).copied().unwrap_or(0);
    }
    Ok((vmas, paths))
}

fn path_of<'a>(v: &Vma, paths: &'a [u8]) -> &'a [u8] {
    paths
        .get(v.path_offset as usize..(v.path_offset + v.path_len) as usize)
        .unwrap_or(&[])
}

/// Whether every mapping has a way to another node.
pub fn judge_memory(memory: &Memory) -> core::result::Result<(), Refusal> {
    let (vmas, paths) = mappings(memory)?;
    for v in &vmas {
        // Mappings whose pages are still on their way look special for a while.
        if v.flags & VM_MIXEDMAP == 0 {
            way_of(v, path_of(v, &paths), false)?;
        }
    }
    Ok(())
}

fn is_equal(equal: &[FileId], id: (u32, u32, u64)) -> bool {
    equal
        .iter()
        .any(|f| (f.major.get(), f.minor.get(), f.ino.get()) == id)
}

/// How a mapping gets to the other side, or why it does not.
fn way_of(v: &Vma, path: &[u8], known: bool) -> core::result::Result<Way, Refusal> {
    match v.special {
        0 => {}
        1 | 2 => return Ok(Way::Kernel),
        _ => return Err(Refusal::about(Reason::SpecialMapping, v.start)),
    }
    if v.flags & (VM_PFNMAP | VM_IO | VM_MIXEDMAP) != 0 || mm::is_hugetlb(v.flags) {
        return Err(Refusal::named(Reason::SpecialMapping, v.start, path));
    }
    let file = !path.is_empty();
    if v.flags & VM_SHARED != 0 {
        let anonymous = path.starts_with(b"/dev/zero (deleted)");
        if anonymous && v.file_refs <= v.file_vmas {
            return Ok(Way::Eager);
        }
        if v.flags & VM_MAYWRITE != 0 || anonymous {
            return Err(Refusal::named(Reason::SharedMapping, v.start, path));
        }
        return Ok(if known { Way::File } else { Way::Paged });
    }
    Ok(match (file, known, v.has_anon != 0) {
        (true, true, false) => Way::File,
        (true, true, true) => Way::FilePaged,
        (true, false, _) => Way::Paged,
        (false, _, _) if v.flags & VM_GROWSDOWN != 0 => Way::Eager,
        (false, _, false) => Way::Fresh,
        (false, _, true) => Way::Paged,
    })
}
