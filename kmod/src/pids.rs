// SPDX-License-Identifier: GPL-2.0-only

//! The numbers of this node: new processes get one of its range, and nobody else's is in use.

use crate::id::{NodeId, ALIASES, MAX_NODE, PID_BITS};
use crate::sys::pids::{self, Steering};
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Relaxed};

/// What the kernel must be able to number: every range.
const NUMBERS: u32 = (MAX_NODE as u32 + 1) << PID_BITS;

/// This node, 0 while it has no range.
static ME: Atomic<u32> = Atomic::new(0);
/// New tasks whose number lies outside.
static STRAYS: Atomic<u64> = Atomic::new(0);

/// Numbers are this node's, until it is dropped.
pub struct Range {
    _steering: Steering,
}

impl Range {
    /// Takes numbers from the range of `me` from now on.
    ///
    /// # Errors
    /// `ERANGE` when `kernel.pid_max` does not cover all ranges; `EEXIST` when a number is in use
    /// that is another node's, or that has no place in the cluster; both are logged. Those of
    /// the probes.
    pub fn claim(me: NodeId) -> Result<Self> {
        let max = pids::max();
        if max < NUMBERS {
            pr_err!("kernel.pid_max is {}, it must be {}\n", max, NUMBERS);
            return Err(ERANGE);
        }
        // First the probes, then the check: what is born after it is in the range.
        let steering = Steering::start(me.first_pid(), me.end_pid())?;
        let mut from = 1;
        while let Some((nr, comm)) = pids::next_used(from) {
            if !has_place(me, nr) {
                let len = comm.iter().position(|&b| b == 0).unwrap_or(comm.len());
                let comm = comm.get(..len).unwrap_or(&[]);
                pr_err!(
                    "process {} ({}) has a number that {} cannot have: end it before joining\n",
                    nr,
                    kernel::str::BStr::from_bytes(comm),
                    me
                );
                return Err(EEXIST);
            }
            from = nr.checked_add(1).ok_or(EOVERFLOW)?;
        }
        // From here on a number outside is news; a fork that was under way before was none.
        ME.store(me.get().into(), Relaxed);
        Ok(Self {
            _steering: steering,
        })
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        ME.store(0, Relaxed);
    }
}

/// Whether a process of `me` may have this number when it joins: one of its own, or one from before
/// that its alias stands for.
fn has_place(me: NodeId, nr: u32) -> bool {
    me.allocates(nr) || nr < ALIASES
}

/// A task was born; `chosen` if its parent named the number. Called with preemption off.
pub fn born(nr: u32, chosen: bool) {
    let me = u16::try_from(ME.load(Relaxed)).ok().and_then(NodeId::new);
    if chosen || me.is_none_or(|me| me.allocates(nr)) {
        return;
    }
    // Powers of two: the log tells how many without being filled by them.
    let n = STRAYS.fetch_add(1, Relaxed).wrapping_add(1);
    if n.is_power_of_two() {
        pr_err!(
            "a new process has the number {}, outside of this node's range ({} so far)\n",
            nr,
            n
        );
    }
}
