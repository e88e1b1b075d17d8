// SPDX-License-Identifier: GPL-2.0-only

//! System calls that are held back before they begin.

use super::task::{self, When};
use super::trace;
use crate::gate;
use kernel::bindings;
use kernel::prelude::*;

// Some structs behind these pointers have no fields in this configuration.
#[allow(improper_ctypes)]
unsafe extern "C" {
    fn ssi_call_is_native() -> c_int;
    fn ssi_call_skip(regs: *mut bindings::pt_regs, ax: c_long);
    fn ssi_call_again(number: c_long);
    fn ssi_call_flags(regs: *mut bindings::pt_regs, indirect: c_int, flags: *mut u64) -> c_int;
}

#[derive(Default)]
struct Watch {
    watchers: usize,
    probe: Option<trace::Probe>,
}

kernel::sync::global_lock! {
    // SAFETY: Initialised by `init`, before any use.
    unsafe(uninit) static WATCH: Mutex<Option<Watch>> = None;
}

/// Must be called once when the module loads.
pub fn init() {
    // SAFETY: The caller's word.
    unsafe { WATCH.init() };
    *WATCH.lock() = Some(Watch::default());
}

/// Has [`gate::holds`] asked before every system call, until as many [`unwatch`] have followed.
///
/// # Errors
/// `ENOENT` when this kernel cannot be probed so; `ENOMEM`.
pub fn watch() -> Result {
    let mut w = WATCH.lock();
    let w = w.as_mut().ok_or(ENODEV)?;
    if w.probe.is_none() {
        // SAFETY: `entered` takes what this tracepoint gives.
        w.probe = Some(unsafe { trace::Probe::on(c"sys_enter", entered as *const ())? });
    }
    w.watchers += 1;
    Ok(())
}

/// Ends one [`watch`].
pub fn unwatch() {
    if let Some(w) = WATCH.lock().as_mut() {
        w.watchers = w.watchers.saturating_sub(1);
        if w.watchers == 0 {
            drop(w.probe.take());
        }
    }
}

/// Before a system call, where sleeping is allowed but waiting is not.
unsafe extern "C" fn entered(_data: *mut c_void, regs: *mut bindings::pt_regs, number: c_long) {
    let flags = |indirect: bool| {
        let mut flags = 0;
        // SAFETY: The registers are the caller's own; user memory is read with care.
        let r = unsafe { ssi_call_flags(regs, indirect.into(), &mut flags) };
        (r == 0).then_some(flags)
    };
    // SAFETY: No preconditions.
    if !gate::holds(number as u64, flags) || unsafe { ssi_call_is_native() } == 0 {
        return;
    }
    let held = task::job(move || {
        gate::wait();
        // SAFETY: The caller is on its way back from the call that was skipped.
        unsafe { ssi_call_again(number) };
    })
    .and_then(|job| {
        let me = task::TaskRef::find(task::tid()).ok_or(ESRCH)?;
        me.work(When::OnReturn, job)
    });
    let ax = held.map_or_else(|e| e.to_errno(), |()| 0);
    // SAFETY: As above. It is not made if it cannot wait.
    unsafe { ssi_call_skip(regs, ax as c_long) };
}
