// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! When all of a process's memory has arrived, that comes two ways.
//!
//! Pages that are asked for go one way, those sent ahead another, and what was sent as an answer is
//! left out of the latter. In each way nothing overtakes an end, though answers overtake each other:
//! so the source sends an end both ways when it has gone through everything, both with the same
//! number, and another number each time. When both are there, so is all that was sent before.

use crate::wire::Class;

/// The ends that have arrived.
#[derive(Default, Debug)]
pub struct Ends {
    memory: u64,
    bulk: u64,
    whole: u64,
}

impl Ends {
    /// The end number `n` has arrived in this class, answers being in all but bulk. Returns whether everything
    /// sent before it is here, once for each number. One number comes one way only if the source could not
    /// send it the other: a higher one follows.
    pub fn arrived(&mut self, class: Class, n: u64) -> bool {
        let mine = match class {
            Class::Bulk => &mut self.bulk,
            Class::Memory | Class::Control => &mut self.memory,
        };
        *mine = n.max(*mine);
        let whole = self.memory == self.bulk && self.bulk > self.whole;
        if whole {
            self.whole = self.bulk;
        }
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use std::collections::{BTreeSet, VecDeque};

    const PAGES: u64 = 60;

    enum Frame {
        Pages(Vec<u64>),
        End(u64),
    }

    /// A source and what is on its way from it: answers that somebody waits for, others, and what is sent ahead.
    #[derive(Default)]
    struct Source {
        urgent: VecDeque<Frame>,
        answers: VecDeque<Frame>,
        ahead: VecDeque<Frame>,
        sent: BTreeSet<u64>,
        at: u64,
        ends: u64,
    }

    impl Source {
        /// The first page goes at once, the others behind what is urgent, as `source` has it.
        fn answer(&mut self, first: u64, count: u64) {
            let last = (first + count).min(PAGES);
            self.urgent.push_back(Frame::Pages(vec![first]));
            let rest: Vec<u64> = (first + 1..last).collect();
            let frames = rest.chunks(5).map(|c| Frame::Pages(c.to_vec()));
            self.answers.extend(frames);
            self.sent.extend(first..last);
        }

        /// Sends some pages ahead, or the end, both ways or one.
        fn push(&mut self, both: bool) {
            if self.at == PAGES {
                self.at += 1;
                self.ends += 1;
                if both {
                    self.answers.push_back(Frame::End(self.ends));
                }
                self.ahead.push_back(Frame::End(self.ends));
            } else if self.at < PAGES {
                let to = (self.at + 4).min(PAGES);
                let new = (self.at..to).filter(|p| !self.sent.contains(p));
                self.ahead.push_back(Frame::Pages(new.collect()));
                self.at = to;
            }
        }
    }

    /// Returns whether everything was there when it was said to be; none if it never was.
    fn run(seed: u64, both: bool) -> Option<bool> {
        let mut dice = Random::new(seed);
        let (mut source, mut ends) = (Source::default(), Ends::default());
        let mut here = BTreeSet::new();
        for _ in 0..2_000 {
            match dice.below(8) {
                0 => source.answer(dice.below(PAGES), 1 + dice.below(40)),
                1 | 2 => source.push(both),
                n => {
                    let (way, queue) = match n {
                        3 | 4 => (Class::Bulk, &mut source.ahead),
                        _ if !source.urgent.is_empty() => (Class::Memory, &mut source.urgent),
                        _ => (Class::Memory, &mut source.answers),
                    };
                    let whole = match queue.pop_front() {
                        Some(Frame::Pages(pages)) => {
                            here.extend(pages);
                            false
                        }
                        Some(Frame::End(n)) if both => ends.arrived(way, n),
                        Some(Frame::End(_)) => true,
                        None => false,
                    };
                    if whole {
                        return Some(here.len() as u64 == PAGES);
                    }
                }
            }
        }
        None
    }

    #[test]
    fn when_both_ends_are_here_so_is_everything() {
        let runs: Vec<_> = (0..2_000).filter_map(|seed| run(seed, true)).collect();
        assert!(runs.len() > 1_000, "{} came to an end", runs.len());
        assert!(runs.iter().all(|whole| *whole));
    }

    #[test]
    fn the_end_of_what_is_sent_ahead_is_not_enough() {
        assert!((0..2_000).any(|seed| run(seed, false) == Some(false)));
    }

    #[test]
    fn an_end_that_came_one_way_only_is_taken_over_by_the_next() {
        let mut ends = Ends::default();
        assert!(!ends.arrived(Class::Memory, 1));
        assert!(!ends.arrived(Class::Memory, 2));
        assert!(ends.arrived(Class::Bulk, 2));
        assert!(!ends.arrived(Class::Bulk, 2), "once");
        assert!(!ends.arrived(Class::Bulk, 3));
        assert!(ends.arrived(Class::Memory, 3));
    }
}
