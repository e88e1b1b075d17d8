// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whether a peer lives, as far as its signs of life tell.
//!
//! A peer is up while it is heard, silent when it is not, and dead when it was silent for so long
//! that it was declared so; that happens once for each silence. A silence that falls into a time in
//! which this node itself did not run does not count: the signs of life may lie unread.

/// A peer not heard for this long is silent. Signs of life come every second.
pub const SILENT_AFTER_MS: u64 = 2_500;
/// Waking this much later than asked for means that this node itself stood still.
const STALL_MS: u64 = 1_000;

/// What is thought of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Heard lately.
    Up,
    /// Not heard lately, or not yet.
    Silent,
    /// Declared dead.
    Dead,
}

impl State {
    /// The word users see.
    pub const fn name(self) -> &'static str {
        match self {
            State::Up => "up",
            State::Silent => "silent",
            State::Dead => "dead",
        }
    }
}

/// What is known about the life of one peer.
#[derive(Clone, Debug)]
pub struct Liveness {
    state: State,
    heard_ms: u64,
    dead_after_ms: u64,
}

impl Liveness {
    /// A peer that has not been heard yet.
    pub fn new(now_ms: u64, dead_after_ms: u64) -> Self {
        Self {
            state: State::Silent,
            heard_ms: now_ms,
            dead_after_ms: dead_after_ms.max(SILENT_AFTER_MS + 1),
        }
    }

    /// What is thought of it.
    pub fn state(&self) -> State {
        self.state
    }

    /// When to call [`Liveness::wake`] next.
    pub fn due_ms(&self) -> Option<u64> {
        match self.state {
            State::Up => Some(self.heard_ms + SILENT_AFTER_MS),
            State::Silent => Some(self.heard_ms + self.dead_after_ms),
            State::Dead => None,
        }
    }

    /// A sign of life. Returns the new state if it changed.
    pub fn heard(&mut self, now_ms: u64) -> Option<State> {
        self.heard_ms = self.heard_ms.max(now_ms);
        self.enter(State::Up)
    }

    /// Others declared it dead. Returns the new state if it changed.
    pub fn declare_dead(&mut self) -> Option<State> {
        self.enter(State::Dead)
    }

    /// Time has passed. Returns the new state if it changed.
    pub fn wake(&mut self, now_ms: u64) -> Option<State> {
        let due_ms = self.due_ms()?;
        if now_ms < due_ms {
            return None;
        }
        if now_ms - due_ms > STALL_MS {
            // What came meanwhile has yet to be read.
            self.heard_ms += now_ms - due_ms + STALL_MS;
            return None;
        }
        self.enter(match self.state {
            State::Up => State::Silent,
            State::Silent | State::Dead => State::Dead,
        })
    }

    fn enter(&mut self, state: State) -> Option<State> {
        (std::mem::replace(&mut self.state, state) != state).then_some(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wakes whenever it is due until `until_ms`; returns what changed and when.
    fn run(l: &mut Liveness, until_ms: u64) -> Vec<(u64, State)> {
        let mut seen = Vec::new();
        while let Some(due) = l.due_ms().filter(|d| *d <= until_ms) {
            seen.extend(l.wake(due).map(|s| (due, s)));
        }
        seen
    }

    #[test]
    fn silence_becomes_death_once() {
        let mut l = Liveness::new(0, 10_000);
        assert_eq!(l.heard(500), Some(State::Up));
        assert_eq!(l.heard(1_000), None);
        assert_eq!(
            run(&mut l, 60_000),
            [(3_500, State::Silent), (11_000, State::Dead)]
        );
        assert_eq!(l.wake(100_000), None);
        assert_eq!(l.heard(100_001), Some(State::Up));
        assert_eq!(run(&mut l, 200_000).len(), 2);
    }

    #[test]
    fn a_freeze_shorter_than_the_limit_is_only_silence() {
        let mut l = Liveness::new(0, 10_000);
        l.heard(0);
        assert_eq!(run(&mut l, 9_900), [(2_500, State::Silent)]);
        assert_eq!(l.heard(9_950), Some(State::Up));
        assert_eq!(run(&mut l, 12_000), []);
    }

    #[test]
    fn a_peer_never_heard_is_declared_dead_too() {
        let mut l = Liveness::new(0, 10_000);
        assert_eq!(run(&mut l, 60_000), [(10_000, State::Dead)]);
    }

    #[test]
    fn the_word_of_others_is_enough() {
        let mut l = Liveness::new(0, 10_000);
        l.heard(0);
        assert_eq!(l.declare_dead(), Some(State::Dead));
        assert_eq!(l.declare_dead(), None);
        assert_eq!(l.heard(10), Some(State::Up));
    }

    #[test]
    fn our_own_standstill_is_not_the_peers() {
        let mut l = Liveness::new(0, 10_000);
        l.heard(0);
        // Due at 2500, but this node slept until 60000: the peer is asked for a new sign first.
        assert_eq!(l.wake(60_000), None);
        assert_eq!(l.state(), State::Up);
        assert_eq!(l.due_ms(), Some(60_000 + STALL_MS));
        let silent = (60_000 + STALL_MS, State::Silent);
        assert_eq!(run(&mut l, 62_000), [silent]);
        // Nor is one dead at once that was silent before: what it said meanwhile has yet to be read.
        assert_eq!(l.wake(120_000), None);
        assert_eq!(l.due_ms(), Some(120_000 + STALL_MS));
        assert_eq!(l.heard(120_100), Some(State::Up));
    }
}
