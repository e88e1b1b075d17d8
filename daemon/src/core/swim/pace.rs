// SPDX-License-Identifier: MIT OR Apache-2.0

//! How far a node may trust its own ears: "Lifeguard: Local Health Awareness for More Accurate
//! Failure Detection" (Dadgar, Phillips, Currey, 2017).
//!
//! A node that does not run, or whose questions fail broadly, has its own trouble, and takes longer
//! before it accuses others. Time in which it did not run at all does not count: its clock stood too.

/// The worst score.
const WORST: u8 = 8;
/// Others may raise the score so far by accusing us, no further: one that lies must not make us deaf.
const BLAME: u8 = 3;

/// The times of a node, and how much longer they are now.
#[derive(Clone, Debug)]
pub struct Pace {
    late_after_ms: u64,
    second_ms: u64,
    score: u8,
    better_ms: u64,
    stood_ms: u64,
    last_ms: u64,
}

impl Pace {
    /// Of a healthy node, whose waking is late after `late_after_ms`, and which gets better by one for
    /// each `second_ms` in which it is answered.
    pub fn new(late_after_ms: u64, second_ms: u64) -> Self {
        Self {
            late_after_ms,
            second_ms: second_ms.max(1),
            score: 0,
            better_ms: 0,
            stood_ms: 0,
            last_ms: 0,
        }
    }

    /// The node's own time at `now_ms`, when it should have woken at `due_ms` of its own time.
    pub fn clock(&mut self, now_ms: u64, due_ms: Option<u64>) -> u64 {
        self.last_ms = self.last_ms.max(now_ms);
        let own_ms = self.last_ms.saturating_sub(self.stood_ms);
        let late_ms = due_ms.map_or(0, |due| own_ms.saturating_sub(due));
        if late_ms <= self.late_after_ms {
            return own_ms;
        }
        self.stood_ms += late_ms;
        let lost = u8::try_from(late_ms / self.second_ms).unwrap_or(WORST);
        self.worse(lost);
        own_ms - late_ms
    }

    /// What the world's clock shows when the node's own shows `own_ms`.
    pub fn outside(&self, own_ms: u64) -> u64 {
        own_ms.saturating_add(self.stood_ms)
    }

    /// How long the node did not run when it should have, since it began.
    pub fn stood_ms(&self) -> u64 {
        self.stood_ms
    }

    /// From 0, all is well, to 8.
    pub fn score(&self) -> u8 {
        self.score
    }

    /// A member that nobody suspected did not answer us.
    pub fn unanswered(&mut self) {
        self.worse(1);
    }

    /// We were suspected, and live.
    pub fn blamed(&mut self) {
        if self.score < BLAME {
            self.worse(1);
        }
    }

    /// A question of ours was answered.
    pub fn answered(&mut self, own_ms: u64) {
        if self.score > 0 && own_ms >= self.better_ms {
            self.score -= 1;
            self.better_ms = own_ms + self.second_ms;
        }
    }

    /// `ms`, or longer if we have trouble. One member that does not answer is its trouble, not ours:
    /// it takes two points to make times half as long again.
    pub fn stretch(&self, ms: u64) -> u64 {
        ms.saturating_add(ms.saturating_mul(u64::from(self.score / 2)) / 2)
    }

    fn worse(&mut self, points: u8) {
        self.score = self.score.saturating_add(points).min(WORST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_in_which_we_do_not_run_does_not_count() {
        let mut pace = Pace::new(100, 1_000);
        assert_eq!(pace.clock(1_000, Some(1_000)), 1_000);
        assert_eq!(pace.clock(1_300, Some(1_200)), 1_300, "not late enough");
        assert_eq!(pace.clock(61_300, Some(1_500)), 1_500);
        assert_eq!((pace.stood_ms(), pace.score()), (59_800, WORST));
        assert_eq!(pace.clock(61_400, Some(1_600)), 1_600);
        assert_eq!(pace.outside(1_600), 61_400);
        assert_eq!(pace.clock(5, None), 1_600, "a clock that goes back stands");
    }

    #[test]
    fn trouble_of_our_own_makes_us_slow_and_passes() {
        let mut pace = Pace::new(100, 1_000);
        pace.unanswered();
        assert_eq!(pace.stretch(2_000), 2_000);
        pace.unanswered();
        assert_eq!(pace.stretch(2_000), 3_000);
        (0..50).for_each(|_| pace.unanswered());
        assert_eq!(pace.stretch(2_000), 6_000);
        (0..100).for_each(|i| pace.answered(5_000 + i));
        assert_eq!(pace.score(), WORST - 1, "once a second");
        (0..10).for_each(|i| pace.answered(6_000 + i * 1_000));
        assert_eq!((pace.score(), pace.stretch(2_000)), (0, 2_000));
    }

    #[test]
    fn one_that_blames_us_all_the_time_does_not_make_us_deaf() {
        let mut pace = Pace::new(100, 1_000);
        (0..1_000).for_each(|_| pace.blamed());
        assert_eq!(pace.stretch(2_000), 3_000);
    }
}
