// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the one who leads said lately, to see whether one says two things: two entries of one number that it
//! made itself in one reign.
//!
//! A leader shows an entry when it is on its disk, and never changes it: one that begins anew goes on where
//! its log ends, even if it lost power. What it passes on of earlier reigns is not its own.

use std::collections::VecDeque;

use openraft::vote::RaftLeaderId;

use super::Entry;
use super::guard::Leader;

/// So many of its last entries are known: as many as one message has.
const MAX_ENTRIES: usize = 64;

/// What is known of the last reign, in the order in which it came.
#[derive(Default)]
pub(super) struct Recall {
    reign: Option<Leader>,
    entries: VecDeque<Entry>,
}

impl Recall {
    /// `leader` sends these; says whether it made others of the same numbers before.
    pub(super) fn contradicts(&mut self, leader: Leader, entries: &[Entry]) -> bool {
        if self.reign.replace(leader) != Some(leader) {
            self.entries.clear();
        }
        let own = leader.to_committed();
        for entry in entries.iter().filter(|e| e.log_id.leader_id == own) {
            match self.entries.iter().find(|e| e.log_id == entry.log_id) {
                Some(known) if known.payload != entry.payload => return true,
                Some(_) => {}
                None => {
                    self.entries.push_back(entry.clone());
                    if self.entries.len() > MAX_ENTRIES {
                        self.entries.pop_front();
                    }
                }
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry(term: u64, index: u64, text: &str) -> Entry {
        let command = json!({"rename": {"node": 1, "name": text}});
        let id = json!({"leader_id": term, "index": index});
        serde_json::from_value(json!({"log_id": id, "payload": {"Normal": command}})).unwrap()
    }

    fn leader(term: u64) -> Leader {
        Leader { term, voted_for: 2 }
    }

    #[test]
    fn a_leader_makes_one_entry_of_a_number() {
        let mut recall = Recall::default();
        let mut says = |term, entries: &[Entry]| recall.contradicts(leader(term), entries);
        assert!(!says(3, &[entry(3, 7, "a"), entry(3, 8, "b")]));
        assert!(!says(3, &[entry(3, 8, "b"), entry(3, 9, "c")]), "again");
        assert!(says(3, &[entry(3, 8, "x")]));
        // What it has of an earlier reign is not of its making, and in another it begins anew.
        assert!(!says(4, &[entry(3, 8, "x"), entry(4, 9, "c")]));
        assert!(!says(4, &[entry(4, 10, "d")]));
        assert!(says(4, &[entry(4, 9, "d")]));
    }

    #[test]
    fn it_is_bounded() {
        let mut recall = Recall::default();
        for index in 0..2000 {
            let e = entry(3, index, "a");
            assert!(!recall.contradicts(leader(3), &[e]));
        }
        assert_eq!(recall.entries.len(), MAX_ENTRIES);
        let e = entry(3, 1999, "x");
        assert!(recall.contradicts(leader(3), &[e]));
    }
}
