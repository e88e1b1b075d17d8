// SPDX-License-Identifier: MIT OR Apache-2.0

//! The clock on the wall of a simulated node, which people and time servers set forwards and back; and
//! the times that the node gives to what happens.

use tokio::time::Instant;

use super::storm::witness;
use crate::core::hlc::{Clock, Stamp};

/// What a clock shows that nobody has set.
const BEGINNING_MS: u64 = 1_800_000_000_000;

/// A clock.
#[derive(Debug)]
pub struct Wall {
    begun: Instant,
    shows_ms: u64,
    clock: Clock,
    last: Stamp,
}

impl Default for Wall {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            shows_ms: BEGINNING_MS,
            clock: Clock::default(),
            last: Stamp::default(),
        }
    }
}

impl Wall {
    /// What it shows.
    pub fn now_ms(&self) -> u64 {
        let passed = u64::try_from(self.begun.elapsed().as_millis()).unwrap();
        self.shows_ms.saturating_add(passed)
    }

    /// Its node begins anew: nobody remembers the times it gave.
    pub fn restart(&mut self) {
        (self.clock, self.last) = (Clock::default(), Stamp::default());
    }

    /// Somebody sets it.
    pub fn set(&mut self, now_ms: u64) {
        (self.begun, self.shows_ms) = (Instant::now(), now_ms);
    }

    fn tick(&mut self) -> Stamp {
        let now = self.clock.tick(self.now_ms());
        if now <= self.last {
            witness::accuse(format!("{now} comes after {}", self.last));
        }
        self.last = now;
        now
    }

    /// The time of something that is said now.
    pub fn say(&mut self) -> Stamp {
        self.tick()
    }

    /// Hears something that was said then.
    pub fn hear(&mut self, said: Stamp) {
        let now_ms = self.now_ms();
        let is_believed = self.clock.hear(said, now_ms);
        let heard = self.tick();
        if is_believed && heard <= said {
            witness::accuse(format!("what was said at {said} was heard at {heard}"));
        }
    }
}
