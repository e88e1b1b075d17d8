// SPDX-License-Identifier: GPL-2.0-only

//! The gate: system calls that look at memory as a whole wait until a guest's memory is whole.
//!
//! While pages are missing, mappings belong to the pager and know their pages by address. A fork
//! would leave a child whose pages never come; madvise(2), mremap(2) and the like would discard or
//! move what is still on its way, or find mappings that are none of theirs. A guest that makes such
//! a call asks for all of its memory and makes the call again when it is there. Signals are taken
//! meanwhile, as before any call.

use crate::pager;
use crate::sys::calls;
use crate::sys::task;
use crate::sys::wait::Until;
use kernel::prelude::*;

/// How long one wait may last before the call is made, and held back, once more, in ms.
const WAIT_MS: u32 = 10_000;
const CLONE_VM: u64 = 0x100;

mod nr {
    pub(super) const MREMAP: u64 = 25;
    pub(super) const MINCORE: u64 = 27;
    pub(super) const MADVISE: u64 = 28;
    pub(super) const CLONE: u64 = 56;
    pub(super) const FORK: u64 = 57;
    pub(super) const MLOCK: u64 = 149;
    pub(super) const MLOCKALL: u64 = 151;
    pub(super) const REMAP_FILE_PAGES: u64 = 216;
    pub(super) const MBIND: u64 = 237;
    pub(super) const MIGRATE_PAGES: u64 = 256;
    pub(super) const MOVE_PAGES: u64 = 279;
    pub(super) const USERFAULTFD: u64 = 323;
    pub(super) const MLOCK2: u64 = 325;
    pub(super) const CLONE3: u64 = 435;
    pub(super) const PROCESS_MADVISE: u64 = 440;
    pub(super) const SET_MEMPOLICY_HOME_NODE: u64 = 450;
}

/// Whether the caller's call `number` has to wait. Runs before every system call of the machine
/// while there is a pager; `flags` reads the first argument, or the flags it points to.
pub fn holds(number: u64, flags: impl Fn(bool) -> Option<u64>) -> bool {
    let wide = match number {
        nr::MREMAP
        | nr::MINCORE
        | nr::MADVISE
        | nr::FORK
        | nr::MLOCK
        | nr::MLOCKALL
        | nr::REMAP_FILE_PAGES
        | nr::MBIND
        | nr::MIGRATE_PAGES
        | nr::MOVE_PAGES
        | nr::USERFAULTFD
        | nr::MLOCK2
        | nr::PROCESS_MADVISE
        | nr::SET_MEMPOLICY_HOME_NODE => true,
        // A thread, or a vfork child, shares the memory.
        nr::CLONE => flags(false).is_none_or(|f| f & CLONE_VM == 0),
        nr::CLONE3 => flags(true).is_none_or(|f| f & CLONE_VM == 0),
        _ => false,
    };
    wide && pager::of_process(task::tgid()).is_some_and(|p| p.is_filling())
}

/// Waits until the caller's memory is whole, or a signal comes, or for a while.
pub fn wait() {
    if let Some(p) = pager::of_process(task::tgid()) {
        // However it ends, the call is made once more, and held back again if it has to be.
        let _ = p.wait_filled(Until::Signal, WAIT_MS);
    }
}

/// Keeps the gate while it lives; there is one for each pager.
pub struct Keeper(());

impl Keeper {
    /// From now on calls are looked at.
    ///
    /// # Errors
    /// Those of the probe: `ENOENT` when this kernel cannot be probed so, `ENOMEM`.
    pub fn new() -> Result<Self> {
        calls::watch()?;
        Ok(Self(()))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        calls::unwatch();
    }
}
