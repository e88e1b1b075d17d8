// SPDX-License-Identifier: MIT OR Apache-2.0

//! Which migrations a node has made ready for, and which of those to come were called off before.
//!
//! A peer that was silent for a while hears everything at once: the request to make ready may be
//! served after the word, on a newer connection, that the process does not come. So that word is
//! kept even when it is about nothing yet.

use std::collections::{HashMap, VecDeque};

use ssi::id::NodeId;

/// Migrations that may be on their way here at once.
pub const MAX_EXPECTED: usize = 64;
/// Words kept about migrations that were never announced. More would only be of peers that call
/// off what they never began.
const MAX_CALLED_OFF: usize = 256;

/// A migration that was made ready for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The process.
    pub pid: u32,
    /// Who sends it.
    pub from: NodeId,
    /// Whether a stub waits for it.
    pub stub: bool,
}

/// Why a migration is not made ready for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There are [`MAX_EXPECTED`] already.
    #[error("too many processes are arriving")]
    TooMany,
    /// The process or the token is expected already, or the token is 0.
    #[error("it is arriving already")]
    Already,
    /// Its source has said that it does not come.
    #[error("its source has called it off")]
    CalledOff,
}

/// The migrations on their way here, by token.
#[derive(Debug, Default)]
pub struct Expected {
    arrivals: HashMap<u64, Arrival>,
    called_off: VecDeque<(NodeId, u64)>,
}

impl Expected {
    /// Expects `arrival` under `token`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn add(&mut self, token: u64, arrival: Arrival) -> Result<(), Error> {
        let word = (arrival.from, token);
        if let Some(i) = self.called_off.iter().position(|w| *w == word) {
            self.called_off.remove(i);
            return Err(Error::CalledOff);
        }
        if self.arrivals.len() >= MAX_EXPECTED {
            return Err(Error::TooMany);
        }
        if token == 0
            || self.arrivals.contains_key(&token)
            || self.arrivals.values().any(|a| a.pid == arrival.pid)
        {
            return Err(Error::Already);
        }
        self.arrivals.insert(token, arrival);
        Ok(())
    }

    /// Expects it no more.
    pub fn remove(&mut self, token: u64) -> Option<Arrival> {
        self.arrivals.remove(&token)
    }

    /// `from` says that `token` does not come; says whether it was expected.
    pub fn call_off(&mut self, from: NodeId, token: u64) -> bool {
        match self.arrivals.get(&token) {
            Some(a) => a.from == from,
            None => {
                if self.called_off.len() >= MAX_CALLED_OFF {
                    self.called_off.pop_front();
                }
                self.called_off.push_back((from, token));
                false
            }
        }
    }

    /// Keeps those that `wanted` says.
    pub fn retain(&mut self, mut wanted: impl FnMut(Arrival) -> bool) {
        self.arrivals.retain(|_, a| wanted(*a));
    }

    /// The tokens of those that `wanted` says.
    pub fn tokens(&self, wanted: impl Fn(Arrival) -> bool) -> Vec<u64> {
        let of = self.arrivals.iter().filter(|(_, a)| wanted(**a));
        of.map(|(token, _)| *token).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u16) -> NodeId {
        NodeId::new(n).unwrap()
    }

    fn arrival(pid: u32) -> Arrival {
        Arrival {
            pid,
            from: node(1),
            stub: true,
        }
    }

    #[test]
    fn a_word_that_overtakes_the_announcement_holds_once() {
        let mut e = Expected::default();
        assert!(!e.call_off(node(1), 7));
        assert_eq!(e.add(7, arrival(100)), Err(Error::CalledOff));
        assert_eq!(e.add(8, arrival(100)), Ok(()));
        assert!(e.call_off(node(1), 8));
    }

    #[test]
    fn nobody_calls_off_what_another_sends() {
        let mut e = Expected::default();
        e.add(7, arrival(100)).unwrap();
        assert!(!e.call_off(node(2), 7));
        assert!(!e.call_off(node(2), 8));
        assert_eq!(e.add(8, arrival(101)), Ok(()));
        assert_eq!(e.tokens(|a| a.from == node(1)).len(), 2);
    }

    #[test]
    fn a_process_comes_once() {
        let mut e = Expected::default();
        e.add(7, arrival(100)).unwrap();
        assert_eq!(e.add(7, arrival(101)), Err(Error::Already));
        assert_eq!(e.add(8, arrival(100)), Err(Error::Already));
        assert_eq!(e.add(0, arrival(101)), Err(Error::Already));
        assert_eq!(e.remove(7), Some(arrival(100)));
        assert_eq!(e.add(8, arrival(100)), Ok(()));
    }

    #[test]
    fn nothing_grows_without_end() {
        let mut e = Expected::default();
        for token in 1..=2 * MAX_CALLED_OFF as u64 {
            e.call_off(node(1), token);
        }
        assert_eq!(e.called_off.len(), MAX_CALLED_OFF);
        for (token, pid) in (10_000..).zip(100..).take(MAX_EXPECTED) {
            e.add(token, arrival(pid)).unwrap();
        }
        assert_eq!(e.add(1, arrival(1)), Err(Error::TooMany));
    }
}
