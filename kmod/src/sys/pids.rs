// SPDX-License-Identifier: GPL-2.0-only

//! Where the kernel takes new process ids from.

use super::trace;
use kernel::bindings;
use kernel::error::to_result;
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Relaxed};

// Some structs behind these pointers have no fields in this configuration.
#[allow(improper_ctypes)]
unsafe extern "C" {
    fn ssi_pids_probe() -> c_int;
    fn ssi_pids_unprobe();
    fn ssi_pids_cursor() -> c_uint;
    fn ssi_pids_cursor_set(at: c_uint);
    fn ssi_pids_max() -> c_int;
    fn ssi_pids_next(nr: c_uint, comm: *mut u8) -> c_uint;
    fn ssi_task_number(t: *mut bindings::task_struct) -> c_uint;
}

/// The range numbers are taken from; empty while there is none.
static FIRST: Atomic<u32> = Atomic::new(0);
static END: Atomic<u32> = Atomic::new(0);

const MARKS: usize = 256;
/// Tasks whose last new number was chosen by themselves, by a hash of the task.
static CHOSEN: [Atomic<u64>; MARKS] = [const { Atomic::new(0) }; MARKS];

fn mark(task: u64) -> &'static Atomic<u64> {
    let hash = task.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
    &CHOSEN[(hash as usize) % MARKS]
}

/// Keeps new numbers in a range, until it is dropped.
pub struct Steering(Option<trace::Probe>);

impl Steering {
    /// Numbers come from `first..end` from now on, and [`crate::pids::born`] hears of every one.
    /// There is one of this.
    ///
    /// # Errors
    /// Those of the probes: `ENOENT` when this kernel cannot be probed so, `ENOMEM`.
    pub fn start(first: u32, end: u32) -> Result<Self> {
        FIRST.store(first, Relaxed);
        END.store(end, Relaxed);
        // SAFETY: The probe is not registered: there is one of this.
        to_result(unsafe { ssi_pids_probe() })?;
        let mut s = Self(None);
        // SAFETY: `forked` takes what this tracepoint gives.
        s.0 = Some(unsafe { trace::Probe::on(c"sched_process_fork", forked as *const ())? });
        steer();
        Ok(s)
    }
}

impl Drop for Steering {
    fn drop(&mut self) {
        drop(self.0.take());
        trace::synchronize();
        // SAFETY: It is registered. This waits for handlers that are running.
        unsafe { ssi_pids_unprobe() };
    }
}

/// Brings the cursor back into the range.
fn steer() {
    let (first, end) = (FIRST.load(Relaxed), END.load(Relaxed));
    // SAFETY: The cursor may be read and set at any time: it is a hint where to look first.
    unsafe {
        let at = ssi_pids_cursor();
        if at < first || at >= end {
            ssi_pids_cursor_set(first);
        }
    }
}

/// Before a number is allocated, with preemption off.
#[no_mangle]
extern "C" fn ssi_rs_alloc_pid(task: c_ulong, chosen: c_int) {
    let task = task as u64;
    let mark = mark(task);
    if chosen != 0 {
        mark.store(task, Relaxed);
        return;
    }
    if mark.load(Relaxed) == task {
        mark.store(0, Relaxed);
    }
    steer();
}

/// After a task has got its number, before it runs, with preemption off.
unsafe extern "C" fn forked(
    _data: *mut c_void,
    parent: *mut bindings::task_struct,
    child: *mut bindings::task_struct,
) {
    // SAFETY: The tracepoint gives valid tasks.
    let number = unsafe { ssi_task_number(child) };
    let chosen = mark(parent as u64).load(Relaxed) == parent as u64;
    crate::pids::born(number, chosen);
}

/// One more than the largest number there can be.
pub fn max() -> u32 {
    // SAFETY: No preconditions.
    u32::try_from(unsafe { ssi_pids_max() }).unwrap_or(0)
}

/// The first number in use from `nr` on, and the name of its task, zero padded.
pub fn next_used(nr: u32) -> Option<(u32, [u8; 16])> {
    let mut comm = [0; 16];
    // SAFETY: There is room for a name.
    let found = unsafe { ssi_pids_next(nr, comm.as_mut_ptr()) };
    (found != 0).then_some((found, comm))
}
