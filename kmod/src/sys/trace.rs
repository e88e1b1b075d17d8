// SPDX-License-Identifier: GPL-2.0-only

//! Probes on the kernel's tracepoints.

use core::ptr::{self, NonNull};
use kernel::bindings;
use kernel::error::to_result;
use kernel::prelude::*;

// Some structs behind these pointers have no fields in this configuration.
#[allow(improper_ctypes)]
unsafe extern "C" {
    fn ssi_tracepoint_find(name: *const c_char) -> *mut bindings::tracepoint;
    fn ssi_tracepoint_synchronize();
}

/// A function that runs at a tracepoint until this is dropped.
///
/// It may still be running on another processor after the drop: [`synchronize`] waits for that.
pub struct Probe {
    tracepoint: NonNull<bindings::tracepoint>,
    function: *mut c_void,
    data: *mut c_void,
}

// SAFETY: Tracepoints are registered and unregistered under a lock of their own.
unsafe impl Send for Probe {}
// SAFETY: `&self` offers nothing.
unsafe impl Sync for Probe {}

impl Probe {
    /// Has `function` run at the tracepoint `name`, with `data` as its first argument.
    ///
    /// # Safety
    /// `function` must be an `extern "C"` function of the module that takes `data` and then the
    /// arguments of this tracepoint. What `data` points to must live until [`synchronize`] has
    /// returned after the drop.
    ///
    /// # Errors
    /// `ENOENT` when this kernel has no such tracepoint; `ENOMEM`, `EEXIST`.
    pub unsafe fn register(name: &CStr, function: *const (), data: *mut c_void) -> Result<Self> {
        // SAFETY: `name` ends with zero.
        let found = unsafe { ssi_tracepoint_find(name.as_char_ptr()) };
        let tracepoint = NonNull::new(found).ok_or(ENOENT)?;
        let function = function.cast_mut().cast::<c_void>();
        // SAFETY: The tracepoint is one of the kernel itself, which stays; the rest is the
        // caller's word.
        to_result(unsafe {
            bindings::tracepoint_probe_register(tracepoint.as_ptr(), function, data)
        })?;
        Ok(Self {
            tracepoint,
            function,
            data,
        })
    }

    /// As [`Probe::register`] without data.
    ///
    /// # Safety
    /// As there; the first argument of `function` is null.
    ///
    /// # Errors
    /// As there.
    pub unsafe fn on(name: &CStr, function: *const ()) -> Result<Self> {
        // SAFETY: The caller's word.
        unsafe { Self::register(name, function, ptr::null_mut()) }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // SAFETY: It was registered with the same three.
        unsafe {
            bindings::tracepoint_probe_unregister(
                self.tracepoint.as_ptr(),
                self.function,
                self.data,
            );
        }
    }
}

/// Waits until no processor runs a probe that was dropped before. The module calls it before it
/// goes, and before what probes use goes.
pub fn synchronize() {
    // SAFETY: No preconditions.
    unsafe { ssi_tracepoint_synchronize() }
}
