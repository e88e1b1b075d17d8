// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whom a node asks all the time whether they are there.
//!
//! SWIM asks somebody at random, so that how soon a death is seen is a matter of luck: of 30 members,
//! each of which asks one a second, none asks a certain one for four seconds once in seventy times. So
//! each member also watches those after it on the ring of numbers, as in "Stable and Consistent
//! Membership at Scale with Rapid" (Suresh, Malkhi, Gopalan, Porto Carreiro, Lokhandwala, 2018). It is
//! the same few however many there are.

use std::collections::BTreeMap;

/// How often, and how long until silence means something, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// From one question to the next when all is well.
    pub ask_ms: u64,
    /// After so long without an answer others are asked to ask too.
    pub direct_ms: u64,
    /// From one question to the next from then on.
    pub hurry_ms: u64,
    /// Silence from the first question that was not answered to the accusation.
    pub silent_ms: u64,
}

#[derive(Clone, Copy, Debug)]
struct Watched {
    asked_ms: u64,
    due_ms: u64,
    /// When the first question was asked that has no answer yet.
    since_ms: Option<u64>,
}

/// What to do about one that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Ask it.
    Ask(u16),
    /// Ask it, and have another ask it.
    AskAlsoBy(u16),
    /// Accuse it.
    Accuse(u16),
}

/// Those who are watched.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    watched: BTreeMap<u16, Watched>,
}

impl Watch {
    /// From now on these are watched and no others. The first question comes `first_ms` later.
    pub fn set(&mut self, nodes: &[u16], now_ms: u64, first_ms: u64) {
        self.watched.retain(|node, _| nodes.contains(node));
        for node in nodes {
            self.watched.entry(*node).or_insert(Watched {
                asked_ms: now_ms,
                due_ms: now_ms + first_ms,
                since_ms: None,
            });
        }
    }

    /// When to call [`Watch::wake`] next.
    pub fn due_ms(&self) -> Option<u64> {
        self.watched.values().map(|w| w.due_ms).min()
    }

    /// A sign of life.
    pub fn heard(&mut self, node: u16, times: Times) {
        if let Some(w) = self.watched.get_mut(&node)
            && w.since_ms.take().is_some()
        {
            w.due_ms = w.asked_ms + times.ask_ms;
        }
    }

    /// What is due, with these times.
    pub fn wake(&mut self, now_ms: u64, times: Times) -> Vec<Act> {
        let mut acts = Vec::new();
        for (node, w) in self.watched.iter_mut().filter(|(_, w)| w.due_ms <= now_ms) {
            let since_ms = *w.since_ms.get_or_insert(now_ms);
            let silent_ms = now_ms.saturating_sub(since_ms);
            if silent_ms >= times.silent_ms {
                acts.push(Act::Accuse(*node));
                w.since_ms = None;
                w.due_ms = now_ms + times.ask_ms;
                continue;
            }
            w.asked_ms = now_ms;
            w.due_ms = if silent_ms >= times.direct_ms {
                acts.push(Act::AskAlsoBy(*node));
                (now_ms + times.hurry_ms).min(since_ms + times.silent_ms)
            } else {
                acts.push(Act::Ask(*node));
                since_ms + times.direct_ms
            };
            // Never at once: times may be anything.
            w.due_ms = w.due_ms.max(now_ms + 1);
        }
        acts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: Times = Times {
        ask_ms: 500,
        direct_ms: 350,
        hurry_ms: 150,
        silent_ms: 1_000,
    };

    fn run(w: &mut Watch, until_ms: u64, mut each: impl FnMut(&mut Watch, u64, Act)) {
        while let Some(due) = w.due_ms().filter(|d| *d <= until_ms) {
            for act in w.wake(due, TIMES) {
                each(w, due, act);
            }
        }
    }

    #[test]
    fn one_that_answers_is_asked_twice_a_second() {
        let mut w = Watch::default();
        w.set(&[7], 0, 100);
        let mut asked = Vec::new();
        run(&mut w, 2_000, |w, at, act| {
            assert_eq!(act, Act::Ask(7));
            asked.push(at);
            w.heard(7, TIMES);
        });
        assert_eq!(asked, [100, 600, 1_100, 1_600]);
    }

    #[test]
    fn silence_is_asked_about_and_told_after_a_second() {
        let mut w = Watch::default();
        w.set(&[7], 0, 0);
        let mut acts = Vec::new();
        run(&mut w, 1_000, |_, at, act| acts.push((at, act)));
        assert_eq!(acts.first(), Some(&(0, Act::Ask(7))));
        assert_eq!(acts.last(), Some(&(1_000, Act::Accuse(7))));
        let between = &acts[1..acts.len() - 1];
        assert!(between.len() >= 4);
        assert!(between.iter().all(|(_, a)| *a == Act::AskAlsoBy(7)));
    }

    #[test]
    fn whoever_leaves_the_watch_is_forgotten() {
        let mut w = Watch::default();
        w.set(&[7, 8], 0, 0);
        run(&mut w, 900, |_, _, _| {});
        w.set(&[8, 9], 900, 0);
        w.set(&[7], 950, 0);
        assert_eq!(w.wake(950, TIMES), [Act::Ask(7)]);
    }
}
