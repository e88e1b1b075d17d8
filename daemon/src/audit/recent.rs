// SPDX-License-Identifier: MIT OR Apache-2.0

//! The last records, for those who watch what happens.

use std::collections::VecDeque;

use crate::core::hlc::Stamp;

/// Records that are kept at hand.
pub(super) const MAX_RECENT: usize = 256;

/// The last of them, in the order of their times.
#[derive(Debug, Default)]
pub(super) struct Recent(VecDeque<(Stamp, String)>);

impl Recent {
    /// Another one.
    pub(super) fn push(&mut self, at: Stamp, record: String) {
        if self.0.len() == MAX_RECENT {
            self.0.pop_front();
        }
        self.0.push_back((at, record));
    }

    /// Those that are later than `after`.
    pub(super) fn after(&self, after: Stamp) -> Vec<(Stamp, String)> {
        let later = self.0.partition_point(|(at, _)| *at <= after);
        self.0.iter().skip(later).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_first() {
        let mut recent = Recent::default();
        let at = |n: usize| Stamp::from_bits(n as u64);
        for n in 1..=MAX_RECENT + 3 {
            recent.push(at(n), n.to_string());
        }
        let all = recent.after(Stamp::default());
        assert_eq!(all.len(), MAX_RECENT);
        assert_eq!(all[0], (at(4), "4".to_owned()));
        assert_eq!(recent.after(at(MAX_RECENT + 2)).len(), 1);
        assert!(recent.after(at(MAX_RECENT + 3)).is_empty());
    }
}
