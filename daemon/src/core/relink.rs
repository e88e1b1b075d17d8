// SPDX-License-Identifier: MIT OR Apache-2.0

//! When the connecting side of a pair connects a link, or the control connection, (again).

/// First pause after a failure.
const FIRST_PAUSE_MS: u64 = 100;
/// Longest pause.
const LAST_PAUSE_MS: u64 = 1_000;
/// One that breaks sooner than this after it was made has not worked: a pause comes first.
const WORKED_MS: u64 = 2_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing to do.
    Stands,
    /// To be connected at this time.
    Wanted { at_ms: u64 },
    /// Being connected.
    Connecting,
}

/// One connection that should always be there.
#[derive(Clone, Debug)]
pub struct Relink {
    state: State,
    pause_ms: u64,
    made_ms: Option<u64>,
    serial: u64,
}

impl Default for Relink {
    /// One that was never there and is wanted.
    fn default() -> Self {
        Self {
            state: State::Wanted { at_ms: 0 },
            pause_ms: FIRST_PAUSE_MS,
            made_ms: None,
            serial: 0,
        }
    }
}

impl Relink {
    /// It broke, or a new one is needed for another reason. Nothing happens when one is on its way.
    pub fn want(&mut self, now_ms: u64) {
        if self.state != State::Stands {
            return;
        }
        if self.made_ms.is_some_and(|made| now_ms < made + WORKED_MS) {
            self.failed(now_ms);
        } else {
            self.pause_ms = FIRST_PAUSE_MS;
            self.state = State::Wanted { at_ms: now_ms };
        }
    }

    /// The peer says that the connection numbered `serial` is of no use; news of an older one is
    /// no news.
    pub fn want_after(&mut self, serial: u64, now_ms: u64) {
        if serial >= self.serial {
            self.want(now_ms);
        }
    }

    /// When to call [`Relink::start`].
    pub fn due_ms(&self) -> Option<u64> {
        match self.state {
            State::Wanted { at_ms } => Some(at_ms),
            _ => None,
        }
    }

    /// The number of the connection to begin now, if it is time for one. Say how it went with
    /// [`Relink::made`] or [`Relink::failed`].
    pub fn start(&mut self, now_ms: u64) -> Option<u64> {
        if self.due_ms()? > now_ms {
            return None;
        }
        self.state = State::Connecting;
        self.serial += 1;
        Some(self.serial)
    }

    /// The connection stands.
    pub fn made(&mut self, now_ms: u64) {
        self.state = State::Stands;
        self.made_ms = Some(now_ms);
    }

    /// It could not be made: again after a pause.
    pub fn failed(&mut self, now_ms: u64) {
        self.state = State::Wanted {
            at_ms: now_ms + self.pause_ms,
        };
        self.pause_ms = (self.pause_ms * 2).min(LAST_PAUSE_MS);
    }

    /// Whether it stands.
    pub fn stands(&self) -> bool {
        self.state == State::Stands
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_spaced_and_success_forgets_them() {
        let mut r = Relink::default();
        let mut now = 0;
        let mut pauses = Vec::new();
        for _ in 0..6 {
            assert!(r.start(now).is_some());
            assert_eq!(r.start(now), None, "one at a time");
            r.failed(now);
            let due = r.due_ms().unwrap();
            pauses.push(due - now);
            assert_eq!(r.start(due - 1), None);
            now = due;
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1000, 1000]);
        r.start(now);
        r.made(now);
        assert!(r.stands());
        now += WORKED_MS;
        r.want(now);
        assert_eq!(r.due_ms(), Some(now), "a break is mended at once");
    }

    #[test]
    fn one_that_never_works_does_not_spin() {
        let mut r = Relink::default();
        let mut now = 0;
        for _ in 0..10 {
            r.start(now).unwrap();
            r.made(now);
            r.want(now);
            now = r.due_ms().unwrap();
        }
        assert!(now > 5_000, "{now}");
    }

    #[test]
    fn old_news_is_no_news() {
        let mut r = Relink::default();
        assert_eq!(r.start(0), Some(1));
        r.made(0);
        r.want(5_000);
        assert_eq!(r.start(5_000), Some(2));
        r.want_after(1, 5_001);
        r.made(5_002);
        r.want_after(1, 9_000);
        assert!(r.stands());
        r.want_after(2, 9_001);
        assert_eq!(r.due_ms(), Some(9_001));
    }
}
