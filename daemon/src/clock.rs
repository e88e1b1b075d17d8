// SPDX-License-Identifier: MIT OR Apache-2.0

//! This node's clock for events: [`crate::core::hlc`], shared by all who say or hear something.

use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::core::hlc::{self, Stamp};

/// Milliseconds since 1970 by the clock on the wall.
pub fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// The clock of this node.
#[derive(Debug, Default)]
pub struct Clock(Mutex<hlc::Clock>);

impl Clock {
    /// The time of what happens now.
    pub fn tick(&self) -> Stamp {
        let mut clock = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        clock.tick(now_ms())
    }

    /// What happens from now on comes after `heard`, unless that is too far ahead to be true.
    pub fn hear(&self, heard: Stamp) {
        let mut clock = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A clock that is so far off is a problem of health, and told as one.
        let _ = clock.hear(heard, now_ms());
    }
}
