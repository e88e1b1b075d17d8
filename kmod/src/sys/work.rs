// SPDX-License-Identifier: GPL-2.0-only

//! Who does the module's work: a pool for pieces that may block long, and threads of its own.

use core::ptr::{self, NonNull};
use kernel::bindings;
use kernel::error::from_err_ptr;
use kernel::prelude::*;
use kernel::sync::atomic::{Acquire, Atomic, Full};

/// Pieces of work that may be under way at the same time. Each may sit in a forwarded operation.
const MAX_ACTIVE: c_int = 512;

unsafe extern "C" {
    fn ssi_workqueue(max_active: c_int) -> *mut bindings::workqueue_struct;
    fn ssi_work_init(
        work: *mut bindings::work_struct,
        f: unsafe extern "C" fn(*mut bindings::work_struct),
    );
    fn ssi_work_queue(wq: *mut bindings::workqueue_struct, work: *mut bindings::work_struct);
    fn ssi_noio_save() -> c_uint;
    fn ssi_noio_restore(flags: c_uint);
    fn ssi_thread_stopping() -> c_int;
    fn ssi_module_get() -> c_int;
    fn ssi_module_put();
    fn ssi_text_left();
}

/// Keeps the module loaded. Everything has one that a task may be in, or come back to, without
/// one of our files open.
pub struct Hold(());

impl Hold {
    /// From here to the drop of the result. Does not sleep.
    ///
    /// # Errors
    /// `ENODEV` when the module is being unloaded.
    pub fn new() -> Result<Self> {
        // SAFETY: No preconditions.
        if unsafe { ssi_module_get() } == 0 {
            return Err(ENODEV);
        }
        Ok(Self(()))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // SAFETY: Taken by new(), given back once. Who does this is in our text for a moment still:
        // `Text` waits for that.
        unsafe { ssi_module_put() }
    }
}

/// The module's code. When this is dropped, after everything else, no task is in it any more.
pub struct Text(());

impl Text {
    /// Made before everything else.
    #[expect(clippy::new_without_default, reason = "there is one, and no default")]
    pub fn new() -> Self {
        Self(())
    }
}

impl Drop for Text {
    fn drop(&mut self) {
        // SAFETY: May sleep; no preconditions.
        unsafe { ssi_text_left() }
    }
}

/// The module's queue, null while there is none.
static QUEUE: Atomic<*mut bindings::workqueue_struct> = Atomic::new(ptr::null_mut());

/// The module's pool, from load to unload.
pub struct Pool(());

impl Pool {
    /// Makes the pool. There is one.
    ///
    /// # Errors
    /// `EBUSY` when there is one already; `ENOMEM`.
    pub fn new() -> Result<Self> {
        // SAFETY: No preconditions.
        let q = unsafe { ssi_workqueue(MAX_ACTIVE) };
        if q.is_null() {
            return Err(ENOMEM);
        }
        if QUEUE.cmpxchg(ptr::null_mut(), q, Full).is_err() {
            // SAFETY: It is ours and nobody has queued on it.
            unsafe { bindings::destroy_workqueue(q) };
            return Err(EBUSY);
        }
        Ok(Self(()))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let q = QUEUE.xchg(ptr::null_mut(), Full);
        // A spawn() on another processor may have read the pointer just before.
        kernel::sync::rcu::synchronize_rcu();
        // SAFETY: Nobody can find it any more; this waits for what is on it.
        unsafe { bindings::destroy_workqueue(q) };
    }
}

#[repr(C)]
struct Job<F> {
    work: bindings::work_struct,
    f: F,
}

unsafe extern "C" fn run<F: FnOnce() + Send>(work: *mut bindings::work_struct) {
    // SAFETY: spawn() has queued the first field of a boxed `Job<F>`, and this is its one run.
    let job = unsafe { KBox::from_raw(work.cast::<Job<F>>()) };
    let Job { f, .. } = KBox::into_inner(job);
    f();
}

/// Has `f` run soon in another task, which it may block for long. The name is for readers.
///
/// # Errors
/// `ENOMEM`; `ENODEV` when the module is being unloaded. `f` is dropped then.
pub fn spawn<F: FnOnce() + Send + 'static>(_name: &'static CStr, f: F) -> Result {
    // SAFETY: All zeroes is a valid `work_struct`; it is initialised below.
    let work = unsafe { core::mem::zeroed() };
    let job = KBox::into_raw(KBox::new(Job { work, f }, GFP_KERNEL)?);
    // A reader holds off the end of the pool.
    let guard = kernel::sync::rcu::read_lock();
    let q = QUEUE.load(Acquire);
    if q.is_null() {
        drop(guard);
        // SAFETY: It was not queued: it is ours still.
        drop(unsafe { KBox::from_raw(job) });
        return Err(ENODEV);
    }
    // SAFETY: `job` is valid and stays until run() takes it; the queue is held by the guard.
    unsafe {
        ssi_work_init(&raw mut (*job).work, run::<F>);
        ssi_work_queue(q, &raw mut (*job).work);
    }
    drop(guard);
    Ok(())
}

/// Inside it, allocations of this task do not wait for input or output.
pub struct NoIo {
    flags: c_uint,
    // Belongs to the task that made it.
    _task: core::marker::PhantomData<*mut ()>,
}

impl NoIo {
    /// From here to the drop of the result.
    pub fn enter() -> Self {
        // SAFETY: Undone by drop() in the same task.
        Self {
            flags: unsafe { ssi_noio_save() },
            _task: core::marker::PhantomData,
        }
    }
}

impl Drop for NoIo {
    fn drop(&mut self) {
        // SAFETY: The flags come from ssi_noio_save() in this task, by the type.
        unsafe { ssi_noio_restore(self.flags) }
    }
}

/// Sleeps this long, whatever happens, without counting as load.
pub fn sleep(ms: u32) {
    let jiffies = kernel::time::msecs_to_jiffies(ms) as c_long;
    // SAFETY: May be called wherever sleeping is allowed.
    unsafe { bindings::schedule_timeout_idle(jiffies) };
}

/// A random number other than 0.
pub fn random_nonzero() -> u64 {
    loop {
        // SAFETY: No preconditions.
        let n = unsafe { bindings::get_random_u64() };
        if n != 0 {
            return n;
        }
    }
}

/// A kernel thread, scheduled before every ordinary task: others wait for it, and it never spins.
/// It is stopped and waited for when this is dropped.
pub struct Thread {
    task: NonNull<bindings::task_struct>,
    /// Its closure, for the case that it is stopped before it runs for the first time.
    data: *mut c_void,
    discard: unsafe fn(*mut c_void),
}

// SAFETY: A task reference and a closure that is `Send`.
unsafe impl Send for Thread {}
// SAFETY: `&self` offers nothing.
unsafe impl Sync for Thread {}

unsafe extern "C" fn thread_main<F: FnOnce() + Send>(data: *mut c_void) -> c_int {
    // SAFETY: start() has left the boxed closure to the one run of this function.
    let f = KBox::into_inner(unsafe { KBox::from_raw(data.cast::<F>()) });
    // Kernel threads do not go back to user mode: nothing below them undoes this.
    let _noio = NoIo::enter();
    f();
    0
}

unsafe fn discard<F>(data: *mut c_void) {
    // SAFETY: Handed on to the caller: `data` is a boxed `F` that nobody else has.
    drop(unsafe { KBox::from_raw(data.cast::<F>()) });
}

impl Thread {
    /// Starts a thread that runs `f` and ends. Allocations in it do not wait for I/O.
    ///
    /// # Errors
    /// `ENOMEM`, `EINTR`.
    pub fn start<F: FnOnce() + Send + 'static>(name: &CStr, f: F) -> Result<Self> {
        let data = KBox::into_raw(KBox::new(f, GFP_KERNEL)?).cast::<c_void>();
        // SAFETY: The format takes one string; `data` is what thread_main::<F>() expects.
        let task = from_err_ptr(unsafe {
            bindings::kthread_create_on_node(
                Some(thread_main::<F>),
                data,
                -1,
                c"%s".as_char_ptr(),
                name.as_char_ptr(),
            )
        });
        let task = match task.map(NonNull::new) {
            Ok(Some(t)) => t,
            other => {
                // SAFETY: No thread was made: the closure is ours still.
                unsafe { discard::<F>(data) };
                return Err(other.err().unwrap_or(ENOMEM));
            }
        };
        // SAFETY: A fresh thread waits to be woken and cannot have ended. The reference keeps its
        // task for drop(), even when it ends by itself.
        unsafe {
            bindings::get_task_struct(task.as_ptr());
            bindings::sched_set_fifo_low(task.as_ptr());
            bindings::wake_up_process(task.as_ptr());
        }
        Ok(Self {
            task,
            data,
            discard: discard::<F>,
        })
    }

    /// Whether the calling thread, which must be one of these, is being stopped.
    pub fn should_stop() -> bool {
        // SAFETY: The C side answers no for other tasks.
        unsafe { ssi_thread_stopping() != 0 }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        // SAFETY: Our reference keeps the task.
        let r = unsafe { bindings::kthread_stop(self.task.as_ptr()) };
        if r == EINTR.to_errno() {
            // SAFETY: It never ran: kthread_stop() says so, and thread_main() returns 0.
            unsafe { (self.discard)(self.data) };
        }
        // SAFETY: Our reference, given back once.
        unsafe { bindings::put_task_struct(self.task.as_ptr()) };
    }
}
