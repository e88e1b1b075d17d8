// SPDX-License-Identifier: GPL-2.0-only

//! Adoption: making puppets into the process of an image.
//!
//! The puppets are a stub on a host, or the deputies when a process comes home; the same steps
//! serve both. What has a system call is done by system calls of the puppet itself; the rest is
//! done in the kernel, also by the puppet itself. Extended registers go through a signal frame, so
//! that the kernel checks them as it checks any program's. Until [`Adopted::release`] nothing of
//! the process runs.

use crate::files;
use crate::id::NodeId;
use crate::pager::Pager;
use crate::params::{drops, Carried};
use crate::puppet::{act_of, puppets, Call, Expect, Next, Puppet, SLOT_BYTES};
use crate::sys::mm::{self, FileRef, How, Memory, PAGE};
use crate::sys::task::{self, Action, SigInfo};
use crate::wire::image::{self, fixed, reg, Kind, Mapping, Process, Records, Thread, Way};
use core::sync::atomic::{AtomicU32, Ordering};
use kernel::prelude::*;
use kernel::sync::Arc;
use zerocopy::{FromBytes, IntoBytes};

const PAGE64: u64 = PAGE as u64;

mod nr {
    pub(super) const OPEN: u64 = 2;
    pub(super) const CLOSE: u64 = 3;
    pub(super) const RT_SIGRETURN: u64 = 15;
    pub(super) const MREMAP: u64 = 25;
    pub(super) const SETITIMER: u64 = 38;
    pub(super) const CHDIR: u64 = 80;
    pub(super) const UMASK: u64 = 95;
    pub(super) const SETGROUPS: u64 = 116;
    pub(super) const SETRESUID: u64 = 117;
    pub(super) const SETRESGID: u64 = 119;
    pub(super) const SETFSUID: u64 = 122;
    pub(super) const SETFSGID: u64 = 123;
    pub(super) const CAPSET: u64 = 126;
    pub(super) const PERSONALITY: u64 = 135;
    pub(super) const SETPRIORITY: u64 = 141;
    pub(super) const SCHED_SETSCHEDULER: u64 = 144;
    pub(super) const PRCTL: u64 = 157;
    pub(super) const ARCH_PRCTL: u64 = 158;
    pub(super) const SET_TID_ADDRESS: u64 = 218;
    pub(super) const SET_ROBUST_LIST: u64 = 273;
    pub(super) const RT_SIGQUEUEINFO: u64 = 129;
    pub(super) const RT_TGSIGQUEUEINFO: u64 = 297;
    pub(super) const CLONE3: u64 = 435;
    pub(super) const CLOSE_RANGE: u64 = 436;
}

mod pr {
    pub(super) const SET_DUMPABLE: u64 = 4;
    pub(super) const SET_KEEPCAPS: u64 = 8;
    pub(super) const SET_NAME: u64 = 15;
    pub(super) const CAPBSET_DROP: u64 = 24;
    pub(super) const SET_SECUREBITS: u64 = 28;
    pub(super) const SET_TIMERSLACK: u64 = 29;
    pub(super) const SET_MM: u64 = 35;
    pub(super) const SET_MM_MAP: u64 = 14;
    pub(super) const SET_NO_NEW_PRIVS: u64 = 38;
    pub(super) const CAP_AMBIENT: u64 = 47;
    pub(super) const CAP_AMBIENT_RAISE: u64 = 2;
}

/// An image taken apart. It borrows the bytes it came from.
struct Parsed<'a> {
    process: Process,
    groups: &'a [u8],
    auxv: [u64; 64],
    exe: Option<&'a [u8]>,
    cwd: &'a [u8],
    actions: [Action; 64],
    files: &'a [u8],
    mappings: KVVec<(Mapping, &'a [u8])>,
    threads: KVVec<(Thread, &'a [u8])>,
    signals: KVVec<(u32, &'a [u8])>,
    pages: KVVec<(u64, &'a [u8])>,
}

fn bad<T>(_: T) -> Error {
    EBADMSG
}

/// The signals of a record's body.
fn signals_in(list: &[u8]) -> Result<KVVec<SigInfo>> {
    let mut v = KVVec::new();
    for one in list.chunks(size_of::<SigInfo>()) {
        let s = SigInfo::read_from_bytes(one).map_err(bad)?;
        if !s.is_sound() || v.len() >= image::MAX_SIGNALS {
            return Err(EBADMSG);
        }
        v.push(s, GFP_KERNEL)?;
    }
    Ok(v)
}

impl<'a> Parsed<'a> {
    fn new(bytes: &'a [u8]) -> Result<KBox<Self>> {
        let size = mm::task_size();
        let mut p = KBox::new(
            Parsed {
                process: Process::default(),
                groups: &[],
                auxv: [0; 64],
                exe: None,
                cwd: b"/",
                actions: [Action::default(); 64],
                files: &[],
                mappings: KVVec::new(),
                threads: KVVec::new(),
                signals: KVVec::new(),
                pages: KVVec::new(),
            },
            GFP_KERNEL,
        )?;
        let mut records = Records::new(bytes);
        let mut ended = false;
        while let Some((kind, body)) = records.next_record().map_err(bad)? {
            if ended || (p.process.version == 0) != (kind == Kind::Process) {
                return Err(EBADMSG);
            }
            match kind {
                Kind::Process => {
                    p.process = fixed::<Process>(body).map_err(bad)?.0;
                    if p.process.version != image::VERSION {
                        return Err(EPROTONOSUPPORT);
                    }
                }
                Kind::Groups => {
                    if body.len() > 4 * task::MAX_GROUPS || body.len() % 4 != 0 {
                        return Err(EBADMSG);
                    }
                    p.groups = body;
                }
                Kind::Auxv => p.auxv = <[u64; 64]>::read_from_bytes(body).map_err(bad)?,
                Kind::Exe | Kind::Cwd => {
                    if body.is_empty() || body.len() >= image::MAX_PATH_BYTES || body.contains(&0) {
                        return Err(EBADMSG);
                    }
                    if kind == Kind::Exe {
                        p.exe = Some(body);
                    } else {
                        p.cwd = body;
                    }
                }
                Kind::Mapping => {
                    let (m, path) = fixed::<Mapping>(body).map_err(bad)?;
                    let after = p.mappings.last().map_or(0, |l| l.0.end);
                    if !m.is_sound(size)
                        || m.start < after
                        || path.len() >= image::MAX_PATH_BYTES
                        || path.contains(&0)
                        || p.mappings.len() >= image::MAX_MAPPINGS
                    {
                        return Err(EBADMSG);
                    }
                    p.mappings.push((m, path), GFP_KERNEL)?;
                }
                Kind::Thread => {
                    let (t, x) = fixed::<Thread>(body).map_err(bad)?;
                    if !t.is_sound(size)
                        || x.len() < 576
                        || x.len() > image::MAX_XSTATE_BYTES
                        || p.threads.len() >= image::MAX_THREADS
                        || p.threads.iter().any(|o| o.0.tid == t.tid)
                    {
                        return Err(EBADMSG);
                    }
                    p.threads.push((t, x), GFP_KERNEL)?;
                }
                Kind::Actions => {
                    p.actions = <[Action; 64]>::read_from_bytes(body).map_err(bad)?;
                    for a in &p.actions {
                        if (a.handler >= size && a.handler > 1) || a.restorer >= size {
                            return Err(EBADMSG);
                        }
                    }
                }
                Kind::Signals => {
                    let (tid, list) = fixed::<u64>(body).map_err(bad)?;
                    let tid = u32::try_from(tid).map_err(bad)?;
                    signals_in(list)?;
                    p.signals.push((tid, list), GFP_KERNEL)?;
                }
                Kind::Files => p.files = body,
                Kind::Page => {
                    let (a, data) = fixed::<u64>(body).map_err(bad)?;
                    if data.len() != PAGE || a & (PAGE64 - 1) != 0 {
                        return Err(EBADMSG);
                    }
                    p.pages.push((a, data), GFP_KERNEL)?;
                }
                Kind::End => ended = true,
            }
        }
        let pid = p.process.pid;
        if !ended
            || p.process.threads as usize != p.threads.len()
            || !p.threads.iter().any(|t| t.0.tid == pid)
        {
            return Err(EBADMSG);
        }
        Ok(p)
    }

    fn mapping_at(&self, a: u64) -> Option<&(Mapping, &'a [u8])> {
        self.mappings.iter().find(|m| a >= m.0.start && a < m.0.end)
    }

    fn needs_pager(&self) -> bool {
        self.mappings
            .iter()
            .any(|m| m.0.way == Way::Paged as u32 || m.0.way == Way::FilePaged as u32)
    }
}

/// The bytes of an image, shared by the steps that read it.
pub struct Image(pub KVVec<u8>);

/// A process that is there in all but running.
pub struct Adopted {
    image: Arc<Image>,
    threads: KVec<Arc<Puppet>>,
    /// Its pager, if pages are to follow.
    pub pager: Option<Arc<Pager>>,
    /// Name of its leader.
    pub comm: [u8; 16],
    area: (u64, u64),
}

/// Makes the image into a process, with `leader` as its first thread; at home its `deputies` become
/// the process.
///
/// # Errors
/// Whatever a step says; the puppets are left as they are then, see [`undo`].
pub fn adopt(
    image: Arc<Image>,
    leader: &Arc<Puppet>,
    deputies: Option<&crate::process::Process>,
    token: u64,
    source: NodeId,
    home: NodeId,
    here: NodeId,
) -> Result<Adopted> {
    let p = Parsed::new(&image.0)?;
    let pid = p.process.pid;
    if pid != leader.tid {
        return Err(EBADMSG);
    }
    let pager = if p.needs_pager() {
        Some(Pager::new(token, pid, source)?)
    } else {
        None
    };
    let r = with_privilege(leader, || {
        steps(&image, &p, leader, deputies, &pager, home, here)
    })
    .and_then(|(threads, area)| {
        for q in &threads {
            credentials(&p, q)?;
        }
        Ok((threads, area))
    });
    match r {
        Ok((threads, area)) => {
            let comm = p
                .threads
                .iter()
                .find(|t| t.0.tid == pid)
                .map_or([0; 16], |t| t.0.state.comm);
            drop(p);
            Ok(Adopted {
                image,
                threads,
                pager,
                comm,
                area,
            })
        }
        Err(e) => {
            if let Some(g) = pager {
                g.die();
                g.leave();
            }
            Err(e)
        }
    }
}

type Steps = (KVec<Arc<Puppet>>, (u64, u64));

/// Does something while `leader` may do everything: that of deputies has the credentials of a
/// process that may not do some of it.
fn with_privilege<R>(leader: &Puppet, f: impl FnOnce() -> Result<R>) -> Result<R> {
    let own = crate::cell::cell::<task::Raised>()?;
    let aside = own.clone();
    leader.act(move |_| {
        aside.set(task::raise()?);
        Ok(Next::Stay)
    })?;
    let r = f();
    leader.act(move |_| {
        if let Some(own) = own.get() {
            own.put_back();
        }
        Ok(Next::Stay)
    })?;
    r
}

fn steps(
    image: &Arc<Image>,
    p: &Parsed<'_>,
    leader: &Arc<Puppet>,
    deputies: Option<&crate::process::Process>,
    pager: &Option<Arc<Pager>>,
    home: NodeId,
    here: NodeId,
) -> Result<Steps> {
    let mut threads: KVec<Arc<Puppet>> = KVec::new();
    threads.push(leader.clone(), GFP_KERNEL)?;
    let mut missing: KVec<u32> = KVec::new();
    for (t, _) in p.threads.iter().filter(|t| t.0.tid != leader.tid) {
        match puppets::get(u64::from(t.tid)) {
            Some(q) => threads.push(q, GFP_KERNEL)?,
            None => missing.push(t.tid, GFP_KERNEL)?,
        }
    }

    // Deputies of threads that have ended since become nothing, but they are to end in good order.
    let mut surplus = KVec::new();
    if let Some(d) = deputies {
        for t in d.threads()? {
            if !p.threads.iter().any(|n| n.0.tid == t.tid) {
                surplus.push(t, GFP_KERNEL)?;
            }
        }
    }
    let slots = (p.threads.len() + surplus.len()) as u64;
    let bytes = 2 * PAGE64 + slots * SLOT_BYTES;

    // A new park area where the image has nothing; then everything else goes.
    let base = place_area(image, leader, bytes)?;
    if let Some(d) = deputies {
        d.set_area_bytes(bytes);
    }
    // In the last slots; those of threads to be made are in between.
    let last = slots - surplus.len() as u64;
    let placed = Iterator::chain((0..).zip(&threads), (last..).zip(&surplus));
    for (k, q) in placed {
        q.set_open(false);
        q.place(base, k);
        q.act(|q| {
            q.point_at_park();
            Ok(Next::Breathe)
        })?;
    }
    leader.act(move |_| {
        mm::unmap_all(base, base + bytes)?;
        Ok(Next::Stay)
    })?;
    move_kernel_mappings(p, leader, base + bytes + (1 << 20))?;

    let img = image.clone();
    let g = pager.clone();
    leader.act(move |_| {
        let p = Parsed::new(&img.0)?;
        build(&p, &g)?;
        task::set_rlimits(&p.process.state.rlim);
        Ok(Next::Stay)
    })?;
    leader.calls(of_process(p, leader)?)?;

    let img = image.clone();
    leader.act(move |_| {
        let p = Parsed::new(&img.0)?;
        files::install(p.files, home, here, p.process.pid)?;
        Ok(Next::Stay)
    })?;

    if p.threads.iter().any(|t| t.0.state.restart_kind != 0) {
        learn_restarts(leader)?;
    }
    for tid in &missing {
        let k = threads.len() as u64;
        let q = Puppet::new(*tid)?;
        q.place(base, k);
        threads.push(q.clone(), GFP_KERNEL)?;
        if let Err(e) = start_thread(leader, &q) {
            q.ended();
            return Err(e);
        }
    }
    for q in &threads {
        let (t, x) = p.threads.iter().find(|t| t.0.tid == q.tid).ok_or(EBADMSG)?;
        q.calls(of_thread(t, x, q)?)?;
    }
    Ok((threads, (base, bytes)))
}

/// Finds room for the park area outside of the image and of what is mapped now.
fn place_area(image: &Arc<Image>, leader: &Arc<Puppet>, bytes: u64) -> Result<u64> {
    let cell = crate::cell::cell::<u64>()?;
    let (img, out) = (image.clone(), cell.clone());
    leader.act(move |_| {
        let p = Parsed::new(&img.0)?;
        let (now, _) = Memory::current()?.vmas()?;
        // Both lists are in the order of addresses.
        let mut wanted = p.mappings.iter().map(|m| (m.0.start, m.0.end)).peekable();
        let mut mapped = now.iter().map(|v| (v.start, v.end)).peekable();
        let mut best = (0, 0);
        let mut at = 1 << 30;
        loop {
            let next = match (wanted.peek(), mapped.peek()) {
                (Some(w), Some(m)) if w <= m => wanted.next(),
                (_, Some(_)) => mapped.next(),
                (_, None) => wanted.next(),
            };
            let Some((start, end)) = next else { break };
            if start > at && start.min(1 << 47) > at && start.min(1 << 47) - at > best.1 {
                best = (at, start.min(1 << 47) - at);
            }
            at = at.max(end);
        }
        // Where programs look for room by default, also with five levels of page tables.
        let size = mm::task_size().min(1 << 47);
        if size > at && size - at > best.1 {
            best = (at, size - at);
        }
        if best.1 < bytes + (64 << 20) {
            return Err(ENOMEM);
        }
        let base = (best.0 + best.1 / 2) & !(PAGE64 - 1);
        out.set(mm::map_area(base, bytes - 2 * PAGE64)?);
        Ok(Next::Stay)
    })?;
    cell.get().ok_or(EIO)
}

/// Moves the vdso and its data to where the image has them.
fn move_kernel_mappings(p: &Parsed<'_>, leader: &Arc<Puppet>, spare: u64) -> Result {
    let cell = crate::cell::cell::<KVec<(u64, u64, u32)>>()?;
    let out = cell.clone();
    leader.act(move |_| {
        let (now, _) = Memory::current()?.vmas()?;
        let mut v = KVec::new();
        for m in now.iter().filter(|v| v.special == 1 || v.special == 2) {
            v.push((m.start, m.end - m.start, m.special), GFP_KERNEL)?;
        }
        out.set(v);
        Ok(Next::Stay)
    })?;
    let now = cell.get().ok_or(EIO)?;
    let mut want: KVec<(u64, u64, u32)> = KVec::new();
    for (m, _) in p.mappings.iter().filter(|m| m.0.way == Way::Kernel as u32) {
        want.push((m.start, m.end - m.start, m.special), GFP_KERNEL)?;
    }
    if now.len() != want.len() || now.iter().zip(&want).any(|(a, b)| (a.1, a.2) != (b.1, b.2)) {
        // Another kernel build, or a vdso that was unmapped.
        return Err(ENOEXEC);
    }
    if now.iter().zip(&want).all(|(a, b)| a.0 == b.0) {
        return Ok(());
    }
    let mut calls = KVec::new();
    let mut hop = spare;
    for (a, _) in now.iter().zip(&want) {
        calls.push(
            Call::new(nr::MREMAP, &[a.0, a.1, a.1, 3, hop]).expecting(Expect::Exactly(hop)),
            GFP_KERNEL,
        )?;
        hop += a.1;
    }
    let mut hop = spare;
    for (a, b) in now.iter().zip(&want) {
        calls.push(
            Call::new(nr::MREMAP, &[hop, a.1, a.1, 3, b.0]).expecting(Expect::Exactly(b.0)),
            GFP_KERNEL,
        )?;
        hop += a.1;
    }
    leader.calls(calls).map(|_| ())
}

/// In the puppet: maps everything and fills in the pages of the image.
fn build(p: &Parsed<'_>, pager: &Option<Arc<Pager>>) -> Result {
    for (m, path) in &p.mappings {
        let way = Way::from_u32(m.way).ok_or(EBADMSG)?;
        if way == Way::Kernel {
            continue;
        }
        let how = How {
            prot: m.prot,
            shared: m.flags & Mapping::SHARED != 0,
            growsdown: m.flags & Mapping::GROWSDOWN != 0,
            noreserve: m.flags & Mapping::NORESERVE != 0,
        };
        if how.shared && way != Way::Eager {
            return Err(EBADMSG);
        }
        let len = m.end - m.start;
        let r = if matches!(way, Way::File | Way::FilePaged) {
            let f = FileRef::open(path, 0)?;
            mm::map(Some(&f), m.start, len, how, m.offset)
        } else {
            mm::map(None, m.start, len, how, 0)
        };
        if let Err(e) = r {
            pr_err!("mapping {:#x}-{:#x} ({:?}): {:?}\n", m.start, m.end, way, e);
            return Err(e);
        }
        if matches!(way, Way::Paged | Way::FilePaged) {
            mm::hook(m.start, m.end, pager.as_ref().ok_or(EBADMSG)?)?;
        }
    }
    for (a, data) in &p.pages {
        let (m, _) = p.mapping_at(*a).ok_or(EBADMSG)?;
        match Way::from_u32(m.way) {
            Some(Way::Eager) if m.prot & 2 != 0 => task::user_write(*a, data)?,
            Some(Way::Eager) => mm::write_forced(*a, data)?,
            Some(Way::Paged | Way::FilePaged) => {
                pager.as_ref().ok_or(EBADMSG)?.preload(*a, data)?;
            }
            _ => return Err(EBADMSG),
        }
    }
    Ok(())
}

fn bytes_of(parts: &[&[u8]]) -> Result<KVec<u8>> {
    let mut v = KVec::new();
    for p in parts {
        v.extend_from_slice(p, GFP_KERNEL)?;
    }
    Ok(v)
}

/// The calls that set what the threads share, before there are files.
fn of_process(p: &Parsed<'_>, leader: &Puppet) -> Result<KVec<Call>> {
    let s = leader.scratch();
    let st = &p.process.state;
    let mut c = KVec::new();
    let mut push = |call: Call| -> Result { Ok(c.push(call, GFP_KERNEL)?) };
    push(Call::new(nr::CLOSE_RANGE, &[0, u64::from(u32::MAX), 0]))?;
    let exe_fd = if let Some(exe) = p.exe {
        push(
            Call::new(nr::OPEN, &[s, 0, 0])
                .with(s, bytes_of(&[exe, &[0]])?)
                .expecting(Expect::Exactly(0)),
        )?;
        0u32
    } else {
        u32::MAX
    };
    let auxv = s + 512;
    let map = bytes_of(&[
        st.mm.as_bytes(),
        &auxv.to_le_bytes(),
        &(8 * 50u32).to_le_bytes(),
        &exe_fd.to_le_bytes(),
        &[0; 408],
        &p.auxv.as_bytes()[..8 * 50],
    ])?;
    push(Call::new(nr::PRCTL, &[pr::SET_MM, pr::SET_MM_MAP, s, 104, 0]).with(s, map))?;
    if exe_fd == 0 {
        push(Call::new(nr::CLOSE, &[0]))?;
    }
    push(Call::new(nr::CHDIR, &[s]).with(s, bytes_of(&[p.cwd, &[0]])?))?;
    push(Call::new(nr::UMASK, &[u64::from(st.umask & 0o777)]))?;
    push(Call::new(nr::PERSONALITY, &[u64::from(st.personality)]))?;
    let [value, interval] = p.process.itimer_real_ns;
    if value != 0 {
        let us = |ns: u64| -> [u64; 2] { [ns / 1_000_000_000, ns % 1_000_000_000 / 1_000] };
        let t = [us(interval), us(value.max(1_000))];
        push(Call::new(nr::SETITIMER, &[0, s, 0]).with(s, bytes_of(&[t.as_bytes()])?))?;
    }
    Ok(c)
}

/// Finds out how this kernel marks the interrupted calls that go on by a restart block: the puppet
/// sleeps in each of them and is interrupted.
fn learn_restarts(leader: &Arc<Puppet>) -> Result {
    let s = leader.scratch();
    let kinds: [(u32, u64, [u64; 4]); 3] = [
        (1, 35, [s + 16, 0, 0, 0]),
        (2, 7, [0, 0, 30_000, 0]),
        (3, 202, [s, 128, 0, s + 16]),
    ];
    for (kind, number, args) in kinds {
        if task::restart_known(kind) {
            continue;
        }
        // A futex word and a time of 30 s.
        let data = bytes_of(&[&[0; 16], &30u64.to_le_bytes(), &[0; 8]])?;
        let mut c = KVec::new();
        c.push(
            Call::new(number, &args)
                .with(s, data)
                .expecting(Expect::Anything),
            GFP_KERNEL,
        )?;
        let o = leader.post_calls(c, 0)?;
        let (ip, sp) = (leader.park_ip(), leader.stack());
        for _ in 0..400 {
            task::sleep_ms(2);
            if task::restart_known(kind) {
                break;
            }
            let t = task::TaskRef::find(leader.tid).ok_or(ESRCH)?;
            t.work(
                task::When::Interrupt,
                task::job(move || {
                    if task::learn_restart(kind) {
                        task::puppet_park(ip, sp);
                    }
                })?,
            )?;
        }
        leader.outcome(&o)?;
    }
    Ok(())
}

/// Clones a thread with the number of `q`, which takes the leader's privilege.
fn start_thread(leader: &Puppet, q: &Puppet) -> Result {
    const FLAGS: u64 = 0x100 | 0x200 | 0x400 | 0x800 | 0x1_0000 | 0x4_0000;
    let s = leader.scratch();
    let stack = q.scratch();
    let args: [u64; 11] = [
        FLAGS,
        0,
        0,
        0,
        0,
        stack,
        q.stack() - stack,
        0,
        s + 128,
        1,
        0,
    ];
    let data = bytes_of(&[args.as_bytes(), &[0; 40], &q.tid.to_le_bytes()])?;
    leader.call(
        Call::new(nr::CLONE3, &[s, 88])
            .with(s, data)
            .expecting(Expect::Exactly(u64::from(q.tid))),
    )?;
    q.wait_parked(crate::puppet::ORDER_MS)
}

/// The calls that set what is a thread's own; extended registers last, through a signal frame.
fn of_thread(t: &Thread, xstate: &[u8], q: &Puppet) -> Result<KVec<Call>> {
    let s = q.scratch();
    let st = &t.state;
    let mut c = KVec::new();
    let mut push = |call: Call| -> Result { Ok(c.push(call, GFP_KERNEL)?) };
    push(Call::new(nr::ARCH_PRCTL, &[0x1002, st.regs[reg::FS_BASE]]))?;
    push(Call::new(nr::ARCH_PRCTL, &[0x1001, st.regs[reg::GS_BASE]]))?;
    push(Call::new(nr::SET_ROBUST_LIST, &[st.robust, 24]))?;
    push(Call::new(nr::SET_TID_ADDRESS, &[st.ctid]).expecting(Expect::Exactly(u64::from(t.tid))))?;
    push(Call::new(nr::PRCTL, &[pr::SET_NAME, s]).with(s, bytes_of(&[&st.comm])?))?;
    push(Call::new(nr::PRCTL, &[pr::SET_TIMERSLACK, st.slack_ns]))?;
    // A deputy has them already, and no right to more than it had.
    push(
        Call::new(nr::SCHED_SETSCHEDULER, &[0, u64::from(st.policy), s])
            .with(s, bytes_of(&[&[0; 4]])?)
            .expecting(Expect::Anything),
    )?;
    push(Call::new(nr::SETPRIORITY, &[0, 0, st.nice as i64 as u64]).expecting(Expect::Anything))?;

    // struct rt_sigframe: return address, ucontext, siginfo; then the extended state.
    let frame = s + 64;
    let fpstate = s + 1024;
    let mut f: KVec<u8> = KVec::new();
    f.resize(1024 - 64, 0, GFP_KERNEL)?;
    let mut put = |at: usize, v: u64| {
        if let Some(b) = f.get_mut(at..at + 8) {
            b.copy_from_slice(&v.to_le_bytes());
        }
    };
    let uc = 8;
    put(uc, 1 | 2 | 4);
    put(uc + 16, st.sas_sp);
    put(uc + 24, u64::from(st.sas_flags));
    put(uc + 32, st.sas_size);
    let mc = uc + 40;
    put(mc + 8 * 13, 0);
    put(mc + 8 * 15, q.stack());
    put(mc + 8 * 16, q.park_ip());
    put(mc + 8 * 17, 0x202);
    put(mc + 8 * 18, 0x33 | 0x2b << 48);
    put(
        mc + 8 * 23,
        if drops(Carried::Xstate) { 0 } else { fpstate },
    );
    put(mc + 8 * 32, !0);

    let mut x: KVec<u8> = KVec::new();
    x.extend_from_slice(xstate, GFP_KERNEL)?;
    // What ptrace calls software reserved bytes are these here: magic, sizes, features.
    let features = u64::read_from_prefix(x.get(464..).ok_or(EBADMSG)?)
        .map_err(bad)?
        .0;
    let size = x.len() as u32;
    let sw = bytes_of(&[
        &0x4650_5853u32.to_le_bytes(),
        &(size + 4).to_le_bytes(),
        &features.to_le_bytes(),
        &size.to_le_bytes(),
        &[0; 28],
    ])?;
    x.get_mut(464..512).ok_or(EBADMSG)?.copy_from_slice(&sw);
    x.extend_from_slice(&0x4650_5845u32.to_le_bytes(), GFP_KERNEL)?;
    let all = bytes_of(&[&f, &x])?;
    let mut call = Call::new(nr::RT_SIGRETURN, &[])
        .with(frame, all)
        .expecting(Expect::Exactly(0));
    call.stack = frame + 8;
    push(call)?;
    Ok(c)
}

/// The credentials and groups of a puppet.
fn credentials_of(q: &Puppet) -> Result<(task::Creds, KVec<u32>)> {
    let cell = crate::cell::cell()?;
    let out = cell.clone();
    q.act(move |_| {
        out.set(task::creds()?);
        Ok(Next::Stay)
    })?;
    cell.get().ok_or(EIO)
}

/// Gives a thread its credentials, unless it has them.
fn credentials(p: &Parsed<'_>, q: &Arc<Puppet>) -> Result {
    let want = p.process.creds;
    let (have, groups) = credentials_of(q)?;
    if have == want && groups.as_bytes() == p.groups {
        return Ok(());
    }
    // Whatever it has now, the process may have gained what that does not allow.
    q.act(|_| {
        task::raise()?.forget();
        Ok(Next::Stay)
    })?;
    let (have, _) = credentials_of(q)?;
    let s = q.scratch();
    let mut c = KVec::new();
    let mut push = |call: Call| -> Result { Ok(c.push(call, GFP_KERNEL)?) };
    let id = u64::from;
    push(
        Call::new(nr::SETGROUPS, &[p.groups.len() as u64 / 4, s]).with(s, bytes_of(&[p.groups])?),
    )?;
    push(Call::new(
        nr::SETRESGID,
        &[id(want.gid), id(want.egid), id(want.sgid)],
    ))?;
    for cap in 0..41 {
        if want.cap_bset >> cap & 1 == 0 && have.cap_bset >> cap & 1 == 1 {
            push(Call::new(nr::PRCTL, &[pr::CAPBSET_DROP, cap]))?;
        }
    }
    push(Call::new(nr::PRCTL, &[pr::SET_KEEPCAPS, 1]))?;
    push(Call::new(
        nr::SETRESUID,
        &[id(want.uid), id(want.euid), id(want.suid)],
    ))?;
    push(Call::new(nr::SETFSGID, &[id(want.fsgid)]).expecting(Expect::Anything))?;
    push(Call::new(nr::SETFSUID, &[id(want.fsuid)]).expecting(Expect::Anything))?;
    // All that is permitted takes effect once more, since the next two need it.
    push(Call::new(nr::CAPSET, &[s, s + 8]).with(
        s,
        capabilities(have.cap_permitted, have.cap_permitted, want.cap_inheritable)?,
    ))?;
    for cap in (0..41).filter(|cap| want.cap_ambient >> cap & 1 == 1) {
        push(Call::new(
            nr::PRCTL,
            &[pr::CAP_AMBIENT, pr::CAP_AMBIENT_RAISE, cap, 0, 0],
        ))?;
    }
    push(Call::new(
        nr::PRCTL,
        &[pr::SET_SECUREBITS, id(want.securebits)],
    ))?;
    push(Call::new(nr::CAPSET, &[s, s + 8]).with(
        s,
        capabilities(want.cap_effective, want.cap_permitted, want.cap_inheritable)?,
    ))?;
    if want.no_new_privs != 0 {
        push(Call::new(nr::PRCTL, &[pr::SET_NO_NEW_PRIVS, 1, 0, 0, 0]))?;
    }
    push(Call::new(nr::PRCTL, &[pr::SET_DUMPABLE, 1]))?;
    q.calls(c).map(|_| ())
}

/// What capset(2) takes: a header of its third version, then the sets in halves.
fn capabilities(effective: u64, permitted: u64, inheritable: u64) -> Result<KVec<u8>> {
    let mut v = KVec::new();
    v.extend_from_slice(&0x2008_0522u64.to_le_bytes(), GFP_KERNEL)?;
    for half in [0, 32] {
        for set in [effective, permitted, inheritable] {
            v.extend_from_slice(&((set >> half) as u32).to_le_bytes(), GFP_KERNEL)?;
        }
    }
    Ok(v)
}

impl Adopted {
    /// Whether this is one of its threads.
    pub fn has(&self, tid: u32) -> bool {
        self.threads.iter().any(|t| t.tid == tid)
    }

    /// Lets the process run: the commit has been taken. From here on nothing fails; what cannot be
    /// done is logged.
    pub fn release(self) {
        let leader = self.threads.first().cloned();
        let img = self.image.clone();
        if let Some(l) = &leader {
            let r = l.act(move |_| {
                let p = Parsed::new(&img.0)?;
                task::set_actions(&p.actions);
                task::raise_usage(p.process.state.usage);
                task::set_oom_score_adj(p.process.state.oom_score_adj);
                wait_for_clock(p.process.state.monotonic_ns);
                Ok(Next::Stay)
            });
            if r.is_err() {
                pr_err!(
                    "process {}: its dispositions were not set: {:?}\n",
                    l.tid,
                    r
                );
            }
        }
        match Parsed::new(&self.image.0) {
            Ok(p) => {
                for q in &self.threads {
                    if let Err(e) = wait_again(&p, q) {
                        pr_err!("thread {}: signals that waited are lost: {:?}\n", q.tid, e);
                    }
                }
            }
            Err(e) => pr_err!("signals that waited are lost: {:?}\n", e),
        }
        let Ok(left) = Arc::new(AtomicU32::new(self.threads.len() as u32), GFP_KERNEL) else {
            return;
        };
        if let (Some(g), Some(l)) = (&self.pager, &leader) {
            let memory = task::TaskRef::find(l.tid)
                .and_then(|t| Memory::of(&t))
                .and_then(|m| Arc::new(m, GFP_KERNEL).ok());
            match memory {
                Some(m) => g.set_memory(m),
                None => {
                    // It was killed, and nobody else looks after its pages; else it is now.
                    crate::process::kill(l.tid);
                    g.give_up();
                }
            }
        }
        let area = self.area;
        for q in &self.threads {
            let (img, left) = (self.image.clone(), left.clone());
            q.set_process(None);
            let act = act_of(move |q: &Arc<Puppet>| {
                let p = Parsed::new(&img.0)?;
                let (t, _) = p.threads.iter().find(|t| t.0.tid == q.tid).ok_or(EBADMSG)?;
                become_thread(t);
                if left.fetch_sub(1, Ordering::AcqRel) == 1 {
                    // The last one to leave: nobody's next instruction is there any more.
                    let _ = mm::unmap(area.0, area.1);
                }
                Ok(Next::Leave)
            });
            if act.and_then(|a| q.post(a)).is_err() {
                pr_err!("thread {}: could not be let go\n", q.tid);
            }
        }
        if let Some(g) = &self.pager {
            g.start_installer();
        }
    }
}

/// Has a thread send itself what waited for it, and the leader what waited for the process: only to
/// oneself may one send what the kernel or another has sent. It blocks all of them.
fn wait_again(p: &Parsed<'_>, q: &Puppet) -> Result {
    let pid = u64::from(p.process.pid);
    let tid = u64::from(q.tid);
    let s = q.scratch();
    for (to, list) in &p.signals {
        let leader = *to == 0 && q.tid == p.process.pid;
        if !leader && *to != q.tid {
            continue;
        }
        let mut calls = KVec::new();
        for i in &signals_in(list)? {
            let signo = i.signo as u64;
            let call = if leader {
                Call::new(nr::RT_SIGQUEUEINFO, &[pid, signo, s])
            } else {
                Call::new(nr::RT_TGSIGQUEUEINFO, &[pid, tid, signo, s])
            };
            calls.push(call.with(s, bytes_of(&[&i.to_user()])?), GFP_KERNEL)?;
        }
        q.calls(calls)?;
    }
    Ok(())
}

/// The process's clock must not go back: this node's view of it lags a little.
fn wait_for_clock(stamp_ns: u64) {
    for _ in 0..500 {
        let now = task::now_ns().wrapping_add_signed(task::clock_offsets().monotonic_ns);
        if now >= stamp_ns {
            return;
        }
        task::sleep_ms(((stamp_ns - now) / 1_000_000 + 1).min(20) as u32);
    }
}

/// In the thread: the last of what makes it the one of the image.
fn become_thread(t: &Thread) {
    let s = &t.state;
    task::set_rseq(s);
    let mut regs = s.regs;
    const ERESTART_RESTARTBLOCK: u64 = -516i64 as u64;
    if regs[reg::AX] == ERESTART_RESTARTBLOCK && regs[reg::ORIG_AX] as i64 >= 0 {
        if task::restart_known(s.restart_kind) {
            let mut here = *s;
            here.shift_restart(task::clock_offsets().reversed());
            task::set_restart(s.restart_kind, &here.restart);
        } else {
            regs[reg::AX] = -4i64 as u64;
        }
    }
    let blocked = if drops(Carried::Mask) { 0 } else { s.blocked };
    task::set_mask(blocked, (s.saved_set != 0).then_some(s.saved));
    task::set_regs(&regs);
    let _ = task::pass_signals();
}

/// Leaves deputies as they were before a failed adoption.
pub fn undo(process: &Arc<crate::process::Process>, leader: &Arc<Puppet>) {
    let base = leader.base();
    let bytes = process.area_bytes().max(2 * PAGE64 + SLOT_BYTES);
    let r = leader
        .act(move |p| {
            mm::unmap_all(base, base + bytes)?;
            let own = task::actions();
            task::set_actions(&p.catching(&own));
            Ok(Next::Stay)
        })
        .and_then(|()| {
            leader
                .call(Call::new(nr::CLOSE_RANGE, &[0, u64::from(u32::MAX), 0]))
                .map(|_| ())
        });
    if let Err(e) = r {
        pr_err!("process {}: deputy not put back: {:?}\n", process.pid, e);
    }
    if let Ok(threads) = process.threads() {
        for t in &threads {
            t.set_open(true);
        }
    }
}
