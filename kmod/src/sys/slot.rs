// SPDX-License-Identifier: GPL-2.0-only

//! A place for something that exists from one command to the unloading of the module, found by
//! everybody without a lock.

use core::ptr;
use kernel::prelude::*;
use kernel::sync::atomic::{Acquire, Atomic, Full};
use kernel::sync::{rcu, Arc};

/// A static that holds an [`Arc`] or nothing. It must be emptied before the module goes: statics
/// are not dropped.
///
/// # Invariants
///
/// The pointer is null, or comes from [`Arc::into_raw`] and owns that reference. A reference that
/// was in here is only dropped a grace period after the pointer was taken out.
pub struct Slot<T>(Atomic<*mut T>);

impl<T: Send + Sync> Slot<T> {
    /// With nothing in it.
    pub const fn new() -> Self {
        Self(Atomic::new(ptr::null_mut()))
    }

    /// Puts something in.
    ///
    /// # Errors
    /// `EBUSY` when something is in it; `value` is dropped.
    pub fn put(&self, value: Arc<T>) -> Result {
        let raw = Arc::into_raw(value).cast_mut();
        // INVARIANT: The reference moves in if it was empty.
        if self.0.cmpxchg(ptr::null_mut(), raw, Full).is_err() {
            // SAFETY: From into_raw() above, and it did not move in.
            drop(unsafe { Arc::from_raw(raw) });
            return Err(EBUSY);
        }
        Ok(())
    }

    /// What is in it.
    pub fn get(&self) -> Option<Arc<T>> {
        let _guard = rcu::read_lock();
        let raw = self.0.load(Acquire);
        if raw.is_null() {
            return None;
        }
        // SAFETY: By the invariant the reference of the slot outlives the guard, so the object
        // lives while it is cloned; ManuallyDrop leaves that reference alone.
        let held = core::mem::ManuallyDrop::new(unsafe { Arc::from_raw(raw.cast_const()) });
        Some(Arc::clone(&held))
    }

    /// Takes it out. Sleeps.
    pub fn take(&self) -> Option<Arc<T>> {
        let raw = self.0.xchg(ptr::null_mut(), Full);
        if raw.is_null() {
            return None;
        }
        // INVARIANT: The reference leaves the slot; it is in the caller's hands only after this.
        rcu::synchronize_rcu();
        // SAFETY: From into_raw() in put(), taken out once.
        Some(unsafe { Arc::from_raw(raw.cast_const()) })
    }
}
