// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whether this node is cut off from the majority of the cluster. What the majority may do about the
//! processes of a node it cannot hear it may only do later than the node itself sees that it is cut
//! off, and stops them.
//!
//! What counts is when the node *asked* a majority that answered, by its own clock, as with a lease. When it
//! heard of one does not: that may have been said long before, and lain on the way, or here while this
//! node stood still. One that asked after it was declared dead learns of that with the answer. So one
//! that does not know asked before, and is fenced off so much later at most.

/// A node looks so often whether it is cut off.
pub const LOOK_MS: u64 = 250;
/// What has to end has ended within this.
const ENDED_IN_MS: u64 = 5_000;

/// How long after a node was declared dead what ran there, or on others for it, surely runs no more: if it is
/// alive and cut off, it has seen so and ended it, should it be so long without a majority as `fence_after_ms`
/// says before it does. Counted from when anybody sees the declaration, by the clock of his own.
///
/// This holds for a node whose daemon runs. One that stood still goes on for [`LOOK_MS`] before
/// it looks.
pub const fn surely_ended_after_ms(fence_after_ms: u64) -> u64 {
    fence_after_ms
        .saturating_add(LOOK_MS)
        .saturating_add(ENDED_IN_MS)
}

/// Asks a majority, and is answered or not.
#[derive(Debug)]
pub struct Isolation {
    after_ms: u64,
    asked_ms: u64,
    is_isolated: bool,
}

impl Isolation {
    /// A node that begins at `now_ms`, and is cut off when a majority has answered nothing that it asked
    /// in the last `after_ms`.
    pub fn new(after_ms: u64, now_ms: u64) -> Self {
        Self {
            after_ms,
            asked_ms: now_ms,
            is_isolated: false,
        }
    }

    /// A majority answers what was asked at `asked_ms`.
    pub fn answered(&mut self, asked_ms: u64) {
        self.asked_ms = self.asked_ms.max(asked_ms);
    }

    /// Returns whether the node is cut off at `now_ms`, if that is another answer than before.
    pub fn look(&mut self, now_ms: u64) -> Option<bool> {
        let before = self.is_isolated;
        self.is_isolated = now_ms.saturating_sub(self.asked_ms) >= self.after_ms;
        (self.is_isolated != before).then_some(self.is_isolated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_isolates_and_one_answer_ends_it() {
        let mut node = Isolation::new(100, 1000);
        assert_eq!(node.look(1099), None);
        node.answered(1090);
        assert_eq!(node.look(1189), None);
        assert_eq!(node.look(1190), Some(true));
        assert_eq!(node.look(5000), None);
        node.answered(4990);
        assert_eq!(node.look(5001), Some(false));
        // A clock that jumps back isolates nobody.
        assert_eq!(node.look(0), None);
    }

    #[test]
    fn an_answer_is_as_old_as_its_question() {
        let mut node = Isolation::new(100, 0);
        node.answered(50);
        // It stood still, and only now reads what was said long ago.
        node.answered(60);
        assert_eq!(node.look(1000), Some(true));
        node.answered(40);
        assert_eq!(node.look(1001), None);
        // Who asked just before it was declared dead has ended before anybody counts on it.
        let (mut node, declared_ms) = (Isolation::new(100, 0), 500);
        node.answered(declared_ms - 1);
        assert_eq!(node.look(declared_ms + 100), Some(true));
        assert!(surely_ended_after_ms(100) > 100 + LOOK_MS);
        assert_eq!(surely_ended_after_ms(u64::MAX), u64::MAX);
    }
}
