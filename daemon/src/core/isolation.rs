// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whether this node is cut off from the majority of the cluster. What the majority may do about the
//! processes of a node it cannot hear it may only do later than the node itself sees that it is cut
//! off, and stops them.

/// Hears of a majority, or not.
#[derive(Debug)]
pub struct Isolation {
    after_ms: u64,
    heard_ms: u64,
    is_isolated: bool,
}

impl Isolation {
    /// A node that begins at `now_ms`, and is cut off when it has heard of no majority for
    /// `after_ms`.
    pub fn new(after_ms: u64, now_ms: u64) -> Self {
        Self {
            after_ms,
            heard_ms: now_ms,
            is_isolated: false,
        }
    }

    /// At `now_ms` a majority is heard of, or not. Returns whether the node is cut off, if that is
    /// another answer than before.
    pub fn look(&mut self, has_majority: bool, now_ms: u64) -> Option<bool> {
        if has_majority {
            self.heard_ms = now_ms;
        }
        let before = self.is_isolated;
        self.is_isolated = now_ms.saturating_sub(self.heard_ms) >= self.after_ms;
        (self.is_isolated != before).then_some(self.is_isolated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_isolates_and_one_word_ends_it() {
        let mut node = Isolation::new(100, 1000);
        assert_eq!(node.look(false, 1099), None);
        assert_eq!(node.look(true, 1100), None);
        assert_eq!(node.look(false, 1199), None);
        assert_eq!(node.look(false, 1200), Some(true));
        assert_eq!(node.look(false, 5000), None);
        assert_eq!(node.look(true, 5001), Some(false));
        // A clock that jumps back isolates nobody.
        assert_eq!(node.look(false, 0), None);
    }
}
