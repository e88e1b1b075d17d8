// SPDX-License-Identifier: GPL-2.0-only

//! Waiting with an end: a wait queue whose sleepers say what may wake them.

use kernel::bindings;
use kernel::prelude::*;
use kernel::types::Opaque;

/// What ends a wait besides its condition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Until {
    /// Any signal, stop or freeze.
    Signal,
    /// A fatal signal. The sleeper may be frozen.
    Kill,
}

/// How a wait ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Woken {
    /// The condition holds.
    Ready,
    /// There is a signal of the kind asked for.
    Signal,
    /// The time is over.
    Timeout,
}

unsafe extern "C" {
    fn ssi_signal_pending() -> c_int;
    fn ssi_fatal_signal_pending() -> c_int;
}

/// A queue of sleepers.
#[pin_data]
pub struct WaitQueue {
    #[pin]
    head: Opaque<bindings::wait_queue_head>,
}

// SAFETY: A wait queue head is made for use from any thread.
unsafe impl Send for WaitQueue {}
// SAFETY: As above; it has its own lock.
unsafe impl Sync for WaitQueue {}

impl WaitQueue {
    /// An empty queue.
    pub fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: `slot` is valid for writes; name and key are static.
            head <- Opaque::ffi_init(|slot| unsafe {
                bindings::__init_waitqueue_head(
                    slot,
                    c"ssi".as_char_ptr(),
                    kernel::static_lock_class!().as_ptr(),
                )
            }),
        })
    }

    /// Sleeps until `ready` says true, at most `timeout_ms`. `ready` must not sleep.
    pub fn wait(&self, until: Until, timeout_ms: u32, mut ready: impl FnMut() -> bool) -> Woken {
        let state = match until {
            Until::Signal => bindings::TASK_INTERRUPTIBLE | bindings::TASK_FREEZABLE,
            Until::Kill => {
                bindings::TASK_WAKEKILL | bindings::TASK_UNINTERRUPTIBLE | bindings::TASK_FREEZABLE
            }
        };
        // SAFETY: No preconditions.
        let mut left = unsafe { bindings::__msecs_to_jiffies(timeout_ms) } as c_long;
        let entry = Opaque::<bindings::wait_queue_entry>::uninit();
        // SAFETY: `entry` is valid memory that stays until finish_wait().
        unsafe { bindings::init_wait(entry.get()) };
        let woken = loop {
            // SAFETY: Both are valid and initialised.
            unsafe {
                bindings::prepare_to_wait_event(self.head.get(), entry.get(), state as c_int);
            }
            if ready() {
                break Woken::Ready;
            }
            let pending = match until {
                Until::Signal => signal_pending(),
                Until::Kill => fatal_signal_pending(),
            };
            if pending {
                break Woken::Signal;
            }
            if left <= 0 {
                break Woken::Timeout;
            }
            // SAFETY: The task state was set above; any timeout is fine.
            left = unsafe { bindings::schedule_timeout(left) };
        };
        // SAFETY: Both are valid and initialised.
        unsafe { bindings::finish_wait(self.head.get(), entry.get()) };
        woken
    }

    /// Wakes every sleeper to look at its condition.
    pub fn wake(&self) {
        // SAFETY: The head is valid.
        unsafe {
            bindings::__wake_up(
                self.head.get(),
                bindings::TASK_NORMAL,
                0,
                core::ptr::null_mut(),
            );
        }
    }
}

/// Whether the caller has anything to do on its way out of the kernel that counts as a signal.
pub fn signal_pending() -> bool {
    // SAFETY: No preconditions.
    unsafe { ssi_signal_pending() != 0 }
}

/// Whether the caller is being killed.
pub fn fatal_signal_pending() -> bool {
    // SAFETY: No preconditions.
    unsafe { ssi_fatal_signal_pending() != 0 }
}
