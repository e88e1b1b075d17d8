// SPDX-License-Identifier: GPL-2.0-only

//! Counters, in the order of [`crate::uapi::STATS`].

use crate::uapi::STATS;
use kernel::sync::atomic::{Atomic, Relaxed};
use zerocopy::little_endian::U64;

/// One counter. Its number is its place in [`STATS`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Counter {
    /// Processes of this node that run elsewhere.
    Deputies,
    /// Processes of other nodes that run here.
    Guests,
    /// Migrations from here that succeeded.
    MigrationsOut,
    /// Migrations to here that succeeded.
    MigrationsIn,
    /// Migrations from here that failed.
    MigrationsFailed,
    /// Pages asked for.
    PagesRequested,
    /// Pages sent unasked.
    PagesPushed,
    /// Pages received.
    PagesReceived,
    /// Operations on files carried out for guests elsewhere.
    ForwardedOperations,
    /// Frames sent, Hellos and acknowledgements too.
    FramesSent,
    /// Frames received, Hellos and acknowledgements too.
    FramesReceived,
    /// Tasks that are in code of the module.
    TasksInside,
    /// Sockets of links that others took the place of before they broke.
    LinksRenewed,
}

static VALUES: [Atomic<i64>; STATS.len()] = [const { Atomic::new(0) }; STATS.len()];

/// Adds to a counter; a negative number for those that go down.
pub fn add(counter: Counter, n: i64) {
    if let Some(v) = VALUES.get(counter as usize) {
        v.add(n, Relaxed);
    }
}

/// All counters as [`crate::uapi::Attr::Stats`] carries them.
pub fn all() -> [U64; STATS.len()] {
    core::array::from_fn(|i| {
        let v = VALUES.get(i).map_or(0, |v| v.load(Relaxed));
        U64::new(u64::try_from(v).unwrap_or(0))
    })
}
