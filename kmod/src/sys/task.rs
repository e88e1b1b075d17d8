// SPDX-License-Identifier: GPL-2.0-only

//! Tasks: looking at them, reaching them, and what only a task can do to itself.

use super::work::Hold;
use core::ptr::NonNull;
use kernel::bindings;
use kernel::error::to_result;
use kernel::prelude::*;

/// What decides whether a process may move; see shim/task.h.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
#[allow(missing_docs)]
pub struct Facts {
    pub kthread: u32,
    pub exiting: u32,
    pub threads: u32,
    pub mm_users: u32,
    pub ptraced: u32,
    pub seccomp: u32,
    pub ns_other: u32,
    pub compat: u32,
    pub vfork_child: u32,
    pub children: u32,
    pub files_shared: u32,
    pub fs_shared: u32,
    pub sem_undo: u32,
    pub shm_attached: u32,
    pub io_uring: u32,
    pub aio: u32,
    pub posix_timers: u32,
    pub policy: u32,
    pub shstk: u32,
    /// Bit 0: by its cgroup; bit 1: by a signal.
    pub frozen: u32,
    pub uid: u32,
    pub tracing_others: u32,
    pub cpu_timers: u32,
    pub real_parent: u32,
    pub itimer_real_ns: u64,
    pub itimer_real_incr_ns: u64,
    pub comm: [u8; 16],
}
const _: () = assert!(size_of::<Facts>() == 128);

pub use crate::wire::image::{Action, Creds, ProcessState, Shift, SigInfo, ThreadState, Usage};

type RawTask = bindings::task_struct;

#[allow(
    improper_ctypes,
    reason = "only pointers to them cross, and their layout is bindgen's"
)]
unsafe extern "C" {
    fn ssi_task_find(tid: u32) -> *mut RawTask;
    fn ssi_task_put(t: *mut RawTask);
    fn ssi_task_tgid(t: *mut RawTask) -> u32;
    fn ssi_usage_get(u: *mut Usage);
    fn ssi_usage_raise(u: *const Usage);
    fn ssi_say_core_dumped();
    fn ssi_current_tid() -> u32;
    fn ssi_current_tgid() -> u32;
    fn ssi_task_threads(t: *mut RawTask, tids: *mut u32, max: c_int) -> c_int;
    fn ssi_task_work_add(t: *mut RawTask, arg: *mut c_void, mode: c_int, gfp: u32) -> c_int;
    fn ssi_twa_signal() -> c_int;
    fn ssi_twa_resume() -> c_int;
    fn ssi_twa_none() -> c_int;
    fn ssi_pass_signals() -> c_int;
    fn ssi_task_facts(t: *mut RawTask, f: *mut Facts);
    fn ssi_creds_get(c: *mut Creds, groups: *mut u32, max: u32);
    fn ssi_creds_raise() -> *const bindings::cred;
    fn ssi_creds_forget(old: *const bindings::cred);
    fn ssi_creds_put_back(c: *const bindings::cred);
    fn ssi_process_get(p: *mut ProcessState);
    fn ssi_clock_offsets(monotonic_ns: *mut i64, boottime_ns: *mut i64);
    fn ssi_exiting() -> c_int;
    fn ssi_rlimits_set(rlim: *const [u64; 2]);
    fn ssi_oom_score_adj_set(adj: i32);
    fn ssi_auxv_get(auxv: *mut u64, max: c_int) -> c_int;
    fn ssi_xstate_get(buf: *mut *mut c_void) -> c_int;
    fn ssi_kfree(p: *mut c_void);
    fn ssi_restart_learn(kind: u32) -> c_int;
    fn ssi_restart_known(kind: u32) -> c_int;
    fn ssi_restart_set(kind: u32, a: *const u64);
    fn ssi_thread_get(t: *mut ThreadState) -> c_int;
    fn ssi_regs_set(r: *const u64);
    fn ssi_mask_set(blocked: u64, saved: u64, saved_set: c_int);
    fn ssi_puppet_regs(ip: *mut u64, sp: *mut u64, ax: *mut u64, di: *mut u64, si: *mut u64);
    fn ssi_puppet_park(ip: u64, sp: u64);
    fn ssi_puppet_call(ip: u64, sp: u64, nr: u64, a: *const u64);
    fn ssi_restart_interrupted();
    fn ssi_cwd(buf: *mut u8, len: c_int) -> c_int;
    fn ssi_exit_probe_add() -> c_int;
    fn ssi_exit_probe_remove();
    fn ssi_seccomp_off();
    fn ssi_actions_get(a: *mut Action);
    fn ssi_actions_set(a: *const Action);
    fn ssi_pending(sig: c_int) -> c_int;
    fn ssi_signal_send(t: *mut RawTask, i: *const SigInfo) -> c_int;
    fn ssi_siginfo_read(at: u64, i: *mut SigInfo) -> c_int;
    fn ssi_waiting_get(shared: c_int, out: *mut SigInfo, max: c_int) -> c_int;
    fn ssi_waiting_drop(sig: c_int);
    fn ssi_signal_target(leader: *mut RawTask, sig: c_int) -> *mut RawTask;
    fn ssi_signal_disposition(t: *mut RawTask, sig: c_int) -> c_int;
    fn ssi_exit_code(t: *mut RawTask) -> c_int;
    fn ssi_copy_comm(t: *mut RawTask, comm: *mut u8);
    fn ssi_user_write(to: u64, from: *const c_void, n: usize) -> c_int;
    fn ssi_ktime_ns() -> u64;
    fn ssi_msleep(ms: u32);
    fn ssi_forget_user_memory();
    fn ssi_rseq_set(t: *const ThreadState);
}

/// When a piece of work is done in another task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum When {
    /// At once: the task is brought to the edge of user mode, a blocked system call is interrupted.
    Interrupt,
    /// The next time it is at the edge of user mode anyway.
    OnReturn,
    /// At the latest when it exits.
    Whenever,
}

/// A reference to a task.
pub struct TaskRef(NonNull<RawTask>);

// SAFETY: A reference to a task may be held and dropped anywhere.
unsafe impl Send for TaskRef {}
// SAFETY: What `&self` offers is locked on the C side.
unsafe impl Sync for TaskRef {}

impl Drop for TaskRef {
    fn drop(&mut self) {
        // SAFETY: The reference is ours.
        unsafe { ssi_task_put(self.0.as_ptr()) }
    }
}

/// Something to be done once, by another task.
pub type Job = KBox<dyn FnMut() + Send>;

/// A job on its way to its task, which may take as long as it likes to come for it.
struct Queued {
    job: Job,
    _hold: Hold,
}

/// Boxes what is to be done.
///
/// # Errors
/// `ENOMEM`.
pub fn job(f: impl FnOnce() + Send + 'static) -> Result<Job> {
    job_with(f, GFP_KERNEL)
}

fn job_with(f: impl FnOnce() + Send + 'static, flags: kernel::alloc::Flags) -> Result<Job> {
    let mut f = Some(f);
    let once = move || {
        if let Some(f) = f.take() {
            f();
        }
    };
    Ok(KBox::new(once, flags)? as Job)
}

impl TaskRef {
    /// The task with this thread id, as the initial name space numbers it.
    pub fn find(tid: u32) -> Option<Self> {
        // SAFETY: Any number is fine; the reference is ours.
        NonNull::new(unsafe { ssi_task_find(tid) }).map(Self)
    }

    pub(super) fn as_ptr(&self) -> *mut RawTask {
        self.0.as_ptr()
    }

    /// Its process.
    pub fn tgid(&self) -> u32 {
        // SAFETY: The task is referenced.
        unsafe { ssi_task_tgid(self.as_ptr()) }
    }

    /// Ids of the threads of its process that are not ending.
    pub fn threads(&self) -> Result<KVec<u32>> {
        let mut max = 64usize;
        loop {
            let mut v = KVec::from_elem(0u32, max, GFP_KERNEL)?;
            // SAFETY: `v` has room for `max` numbers.
            let n =
                unsafe { ssi_task_threads(self.as_ptr(), v.as_mut_ptr(), max as c_int) } as usize;
            if n <= max {
                v.truncate(n);
                return Ok(v);
            }
            max = n.checked_add(16).ok_or(EOVERFLOW)?;
        }
    }

    /// Has `job` done by the task.
    ///
    /// # Errors
    /// `ESRCH` when it is ending; `ENOMEM`.
    pub fn work(&self, when: When, job: Job) -> Result {
        self.add(when, job, GFP_KERNEL, bindings::GFP_KERNEL)
    }

    /// As [`TaskRef::work`], from a context that must not sleep.
    ///
    /// # Errors
    /// As [`TaskRef::work`].
    pub fn work_atomic(&self, when: When, job: Job) -> Result {
        self.add(when, job, GFP_ATOMIC, bindings::GFP_ATOMIC)
    }

    fn add(&self, when: When, job: Job, flags: kernel::alloc::Flags, gfp: u32) -> Result {
        let _hold = Hold::new()?;
        let queued = KBox::new(Queued { job, _hold }, flags)?;
        // SAFETY: No preconditions.
        let mode = unsafe {
            match when {
                When::Interrupt => ssi_twa_signal(),
                When::OnReturn => ssi_twa_resume(),
                When::Whenever => ssi_twa_none(),
            }
        };
        let raw = KBox::into_raw(queued);
        // SAFETY: The task is referenced; `raw` goes to ssi_rs_task_work() or comes back to us.
        let r = to_result(unsafe { ssi_task_work_add(self.as_ptr(), raw.cast(), mode, gfp) });
        if r.is_err() {
            // SAFETY: It was not taken.
            drop(unsafe { KBox::from_raw(raw) });
        }
        r
    }

    /// What decides whether it may move.
    pub fn facts(&self) -> Facts {
        let mut f = Facts::default();
        // SAFETY: The task is referenced.
        unsafe { ssi_task_facts(self.as_ptr(), &mut f) };
        f
    }

    /// Sends one signal to this thread.
    pub fn signal_thread(&self, i: &SigInfo) -> Result {
        // SAFETY: The task is referenced.
        to_result(unsafe { ssi_signal_send(self.as_ptr(), i) })
    }

    /// Sends one signal to the process of this task.
    pub fn signal(&self, i: &SigInfo) -> Result {
        // SAFETY: The task is referenced; the answer is a reference of ours.
        let t = NonNull::new(unsafe { ssi_signal_target(self.as_ptr(), i.signo) })
            .map(TaskRef)
            .ok_or(ESRCH)?;
        t.signal_thread(i)
    }

    /// Whether the signal has the default disposition.
    pub fn defaults(&self, sig: i32) -> bool {
        // SAFETY: The task is referenced.
        unsafe { ssi_signal_disposition(self.as_ptr(), sig) == 0 }
    }

    /// The wait status of its process, which has ended or is ending.
    pub fn exit_code(&self) -> i32 {
        // SAFETY: The task is referenced.
        unsafe { ssi_exit_code(self.as_ptr()) }
    }

    /// Its name.
    pub fn comm(&self) -> [u8; 16] {
        let mut c = [0; 16];
        // SAFETY: The task is referenced, the buffer has TASK_COMM_LEN bytes.
        unsafe { ssi_copy_comm(self.as_ptr(), c.as_mut_ptr()) };
        c
    }
}

/// Called by the shim in the task that is to do it.
#[no_mangle]
extern "C" fn ssi_rs_task_work(arg: *mut c_void) {
    // SAFETY: `arg` came from KBox::into_raw() in TaskRef::add().
    let queued = unsafe { KBox::from_raw(arg.cast::<Queued>()) };
    let Queued { mut job, _hold } = KBox::into_inner(queued);
    job();
    // What it holds goes before the module may.
    drop(job);
}

/// The caller's thread id.
pub fn tid() -> u32 {
    // SAFETY: No preconditions.
    unsafe { ssi_current_tid() }
}

/// Makes the caller pass signal handling and system call restart on its way out.
pub fn pass_signals() -> Result {
    // SAFETY: No preconditions.
    to_result(unsafe { ssi_pass_signals() })
}

/// Largest number of supplementary groups that is carried.
pub const MAX_GROUPS: usize = 1024;

/// The caller's credentials and supplementary groups.
pub fn creds() -> Result<(Creds, KVec<u32>)> {
    let mut c = Creds::default();
    let mut g = KVec::from_elem(0u32, MAX_GROUPS, GFP_KERNEL)?;
    // SAFETY: `g` has room for MAX_GROUPS numbers.
    unsafe { ssi_creds_get(&mut c, g.as_mut_ptr(), MAX_GROUPS as u32) };
    if c.ngroups as usize > MAX_GROUPS {
        return Err(E2BIG);
    }
    g.truncate(c.ngroups as usize);
    Ok((c, g))
}

/// Credentials put aside by [`raise`].
pub struct Raised(*const bindings::cred);

// SAFETY: Credentials are reference counted and immutable.
unsafe impl Send for Raised {}

/// Gives the caller all capabilities of the initial task until [`Raised::put_back`].
pub fn raise() -> Result<Raised> {
    // SAFETY: No preconditions.
    let c = unsafe { ssi_creds_raise() };
    if c.is_null() {
        return Err(ENOMEM);
    }
    Ok(Raised(c))
}

impl Raised {
    /// Gives the caller its credentials back. It must be the task that raised.
    pub fn put_back(self) {
        // SAFETY: Ours, and not used again.
        unsafe { ssi_creds_put_back(self.0) }
    }

    /// The caller keeps what it was raised to.
    pub fn forget(self) {
        // SAFETY: Ours, and not used again.
        unsafe { ssi_creds_forget(self.0) }
    }
}

/// What the caller's process shares between its threads.
pub fn process_state() -> ProcessState {
    let mut p = ProcessState::default();
    // SAFETY: The caller is a user task.
    unsafe { ssi_process_get(&mut p) };
    p
}

/// How far the caller's clocks are ahead of this kernel's own.
pub fn clock_offsets() -> Shift {
    let mut s = Shift::default();
    // SAFETY: The caller is a user task.
    unsafe { ssi_clock_offsets(&mut s.monotonic_ns, &mut s.boottime_ns) };
    s
}

/// What the caller's process has used so far.
pub fn usage() -> Usage {
    let mut u = Usage::default();
    // SAFETY: The caller is a user task.
    unsafe { ssi_usage_get(&mut u) };
    u
}

/// The caller's process is to have used at least this much.
pub fn raise_usage(u: Usage) {
    let u = u.bounded();
    // SAFETY: The caller is a user task.
    unsafe { ssi_usage_raise(&u) };
}

/// Whoever waits for the caller, which is ending by a signal, is told that there is a core.
pub fn say_core_dumped() {
    // SAFETY: The caller is a user task.
    unsafe { ssi_say_core_dumped() }
}

/// The process of the caller.
pub fn tgid() -> u32 {
    // SAFETY: No preconditions.
    unsafe { ssi_current_tgid() }
}

/// Whether the caller is on its way out.
pub fn exiting() -> bool {
    // SAFETY: Only the caller's own flags.
    unsafe { ssi_exiting() != 0 }
}

/// Sets the caller's resource limits.
pub fn set_rlimits(r: &[[u64; 2]; 16]) {
    // SAFETY: 16 pairs.
    unsafe { ssi_rlimits_set(r.as_ptr()) }
}

/// Sets the caller's weight for the out-of-memory killer.
pub fn set_oom_score_adj(adj: i32) {
    // SAFETY: No preconditions.
    unsafe { ssi_oom_score_adj_set(adj) }
}

/// The caller's auxiliary vector.
pub fn auxv() -> [u64; 64] {
    let mut a = [0; 64];
    // SAFETY: 64 numbers.
    unsafe { ssi_auxv_get(a.as_mut_ptr(), 64) };
    a
}

/// The caller's extended registers, laid out as in a signal frame.
pub fn xstate() -> Result<KVec<u8>> {
    let mut p = core::ptr::null_mut();
    // SAFETY: `p` is filled.
    let n = unsafe { ssi_xstate_get(&mut p) };
    if n < 0 {
        return Err(Error::from_errno(n));
    }
    let mut v = KVec::new();
    // SAFETY: `p` has `n` bytes.
    let r = v.extend_from_slice(
        unsafe { core::slice::from_raw_parts(p.cast::<u8>(), n as usize) },
        GFP_KERNEL,
    );
    // SAFETY: Allocated for us.
    unsafe { ssi_kfree(p) };
    r?;
    Ok(v)
}

/// The caller's registers, masks and user pointers.
pub fn thread_state() -> Result<ThreadState> {
    let mut t = ThreadState::default();
    // SAFETY: The caller is a user task.
    to_result(unsafe { ssi_thread_get(&mut t) })?;
    t.shift_restart(clock_offsets());
    Ok(t)
}

/// If the caller is about to go on with an interrupted system call by its restart block: remembers
/// how that looks as the mark of `kind`, and says yes.
pub fn learn_restart(kind: u32) -> bool {
    // SAFETY: Only the caller's own fields.
    unsafe { ssi_restart_learn(kind) != 0 }
}

/// As [`learn_restart`], with the kind that the number of the system call tells.
pub fn learn_restart_by_call() {
    let _ = learn_restart(0);
}

/// Whether restarts of `kind` can be set up on this node.
pub fn restart_known(kind: u32) -> bool {
    // SAFETY: No preconditions.
    unsafe { ssi_restart_known(kind) != 0 }
}

/// Sets the caller's restart block. `kind` is known; times are this kernel's.
pub fn set_restart(kind: u32, a: &[u64; 6]) {
    if restart_known(kind) {
        // SAFETY: Six numbers; the kind has a function.
        unsafe { ssi_restart_set(kind, a.as_ptr()) }
    }
}

/// The caller leaves the kernel with these registers. What ptrace forbids is masked.
pub fn set_regs(r: &[u64; 27]) {
    // SAFETY: 27 numbers; flags and segments are forced to what user mode may have.
    unsafe { ssi_regs_set(r.as_ptr()) }
}

/// Sets the caller's signal mask.
pub fn set_mask(blocked: u64, saved: Option<u64>) {
    // SAFETY: KILL and STOP are taken out.
    unsafe { ssi_mask_set(blocked, saved.unwrap_or(0), saved.is_some().into()) }
}

/// What a puppet's registers say when it stops: ip, sp, ax, di, si.
#[derive(Clone, Copy, Default, Debug)]
#[allow(missing_docs)]
pub struct PuppetRegs {
    pub ip: u64,
    pub sp: u64,
    pub ax: u64,
    pub di: u64,
    pub si: u64,
}

/// The caller's registers as a puppet.
pub fn puppet_regs() -> PuppetRegs {
    let mut r = PuppetRegs::default();
    // SAFETY: Five numbers.
    unsafe { ssi_puppet_regs(&mut r.ip, &mut r.sp, &mut r.ax, &mut r.di, &mut r.si) };
    r
}

/// Points the caller at a park page.
pub fn puppet_park(ip: u64, sp: u64) {
    // SAFETY: User mode registers only.
    unsafe { ssi_puppet_park(ip, sp) }
}

/// Points the caller at a `syscall` instruction with a call in its registers.
pub fn puppet_call(ip: u64, sp: u64, nr: u64, args: &[u64; 6]) {
    // SAFETY: Six numbers; user mode registers only.
    unsafe { ssi_puppet_call(ip, sp, nr, args.as_ptr()) }
}

/// A system call of the caller that only we interrupted will be made again instead of failing.
pub fn restart_interrupted() {
    // SAFETY: Only the caller's own registers.
    unsafe { ssi_restart_interrupted() }
}

/// Path of the caller's working directory.
pub fn cwd() -> Result<KVec<u8>> {
    let mut buf = KVec::from_elem(0u8, 4096, GFP_KERNEL)?;
    // SAFETY: The buffer has that many bytes.
    let n = unsafe { ssi_cwd(buf.as_mut_ptr(), 4096) };
    if n < 0 {
        return Err(Error::from_errno(n));
    }
    buf.truncate(n as usize);
    Ok(buf)
}

/// While it lives, the end of tasks is noted, and that of their programs.
pub struct ExitWatch(());

impl ExitWatch {
    /// Starts. There is one.
    pub fn new() -> Result<Self> {
        // SAFETY: Called once at load.
        to_result(unsafe { ssi_exit_probe_add() })?;
        Ok(Self(()))
    }
}

impl Drop for ExitWatch {
    fn drop(&mut self) {
        // SAFETY: It was added; no probe runs any more when this returns.
        unsafe { ssi_exit_probe_remove() }
    }
}

#[no_mangle]
extern "C" fn ssi_rs_exiting(t: *mut RawTask, tid: u32, tgid: u32, last: c_int) {
    if !crate::process::is_ours(tid, tgid) {
        return;
    }
    // The task is the caller: it cannot go away. What is to be done may sleep, so it is done by
    // the task itself after it has closed its files.
    let Some(task) = NonNull::new(t) else { return };
    let task = core::mem::ManuallyDrop::new(TaskRef(task));
    let job = job_with(
        move || {
            let status = TaskRef::find(tid).map_or(0, |t| t.exit_code());
            crate::process::task_exited(tid, tgid, last != 0, status);
        },
        GFP_ATOMIC,
    );
    if job
        .and_then(|j| task.work_atomic(When::Whenever, j))
        .is_err()
    {
        pr_err!("task {tid}: its end could not be noted\n");
    }
}

#[no_mangle]
extern "C" fn ssi_rs_executed(t: *mut RawTask, tgid: u32) {
    if !crate::pager::pagers::any(|g| g.pid == tgid) {
        return;
    }
    // As above; done before the new program runs.
    let Some(task) = NonNull::new(t) else { return };
    let task = core::mem::ManuallyDrop::new(TaskRef(task));
    let job = job_with(move || crate::pager::program_ended(tgid), GFP_ATOMIC);
    if job
        .and_then(|j| task.work_atomic(When::OnReturn, j))
        .is_err()
    {
        pr_err!("process {tgid}: its new program could not be noted\n");
    }
}

/// The caller's system calls are not filtered from now on: they are ours, not its program's.
pub fn seccomp_off() {
    // SAFETY: No preconditions.
    unsafe { ssi_seccomp_off() }
}

/// The caller's signal dispositions.
pub fn actions() -> [Action; 64] {
    let mut a = [Action::default(); 64];
    // SAFETY: 64 records.
    unsafe { ssi_actions_get(a.as_mut_ptr()) };
    a
}

/// Sets the caller's signal dispositions, but for KILL and STOP.
pub fn set_actions(a: &[Action; 64]) {
    // SAFETY: 64 records.
    unsafe { ssi_actions_set(a.as_ptr()) }
}

/// Whether `sig` is pending for the caller.
pub fn pending(sig: i32) -> bool {
    // SAFETY: No preconditions.
    unsafe { ssi_pending(sig) != 0 }
}

/// The signals that wait for the caller's process, or for the caller itself, oldest first.
///
/// # Errors
/// `E2BIG` when there are more than an image may hold; `ENOMEM`.
pub fn waiting_signals(of_process: bool) -> Result<KVVec<SigInfo>> {
    let mut v = KVVec::new();
    // More may come between the two looks.
    let mut room = 0;
    loop {
        v.resize(room, SigInfo::default(), GFP_KERNEL)?;
        // SAFETY: There is room for `room` of them.
        let n =
            unsafe { ssi_waiting_get(of_process.into(), v.as_mut_ptr(), room as c_int) } as usize;
        if n <= room {
            v.truncate(n);
            return Ok(v);
        }
        if n > crate::wire::image::MAX_SIGNALS {
            return Err(E2BIG);
        }
        room = n;
    }
}

/// Takes one waiting signal with this number from the caller, as if it had been delivered: one of
/// its own first, else one of its process.
pub fn drop_waiting_signal(sig: i32) {
    // SAFETY: Any number will do.
    unsafe { ssi_waiting_drop(sig) }
}

/// The siginfo at a user address.
pub fn read_siginfo(at: u64) -> Result<SigInfo> {
    let mut i = SigInfo::default();
    // SAFETY: The copy checks the address.
    to_result(unsafe { ssi_siginfo_read(at, &mut i) })?;
    Ok(i)
}

/// Writes to the caller's memory.
pub fn user_write(to: u64, from: &[u8]) -> Result {
    // SAFETY: The copy checks the user address.
    to_result(unsafe { ssi_user_write(to, from.as_ptr().cast(), from.len()) })
}

/// This kernel's monotonic clock, ns.
pub fn now_ns() -> u64 {
    // SAFETY: No preconditions.
    unsafe { ssi_ktime_ns() }
}

/// Sleeps.
pub fn sleep_ms(ms: u32) {
    // SAFETY: Callers may sleep.
    unsafe { ssi_msleep(ms) }
}

/// Takes the caller's duties towards user memory away: the memory lives on elsewhere.
pub fn forget_user_memory() {
    // SAFETY: Only the caller's own fields.
    unsafe { ssi_forget_user_memory() }
}

/// Sets the caller's restartable sequences area to that of `t`.
pub fn set_rseq(t: &ThreadState) {
    // SAFETY: Only the caller's own fields; the kernel checks the address at each use.
    unsafe { ssi_rseq_set(t) }
}

#[cfg(SSI_BENCH)]
unsafe extern "C" {
    safe static ssi_break: c_uint;
}

/// What this build for tests was told to drop.
#[cfg(SSI_BENCH)]
pub fn broken() -> u32 {
    ssi_break
}
