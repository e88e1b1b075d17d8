// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whether what was seen of something can have happened in some order, one after the other, each
//! between its call and its end: Wing and Gong, "Testing and Verifying Concurrent Objects", 1993, with
//! what was tried remembered as in Lowe, "Testing for linearizability", 2017.

use std::collections::HashSet;
use std::hash::Hash;

#[cfg(test)]
mod tests;

/// What something does by itself, one operation after the other.
pub trait Model {
    /// How it stands.
    type State: Clone + Eq + Hash;
    /// What was done, and what came of it.
    type Op;

    /// How it stands at first.
    fn start() -> Self::State;

    /// How it stands after `op`, if `op` can be done then.
    fn step(state: &Self::State, op: &Self::Op) -> Option<Self::State>;
}

/// Something that was done.
#[derive(Clone, Debug)]
pub struct Event<O> {
    /// When it was begun.
    pub call: u64,
    /// When it had happened; none if it may have happened, may yet, or not at all.
    pub end: Option<u64>,
    /// What.
    pub op: O,
}

/// Which of the events are in the order so far, and how things stand after them.
type Prefix<M> = (Vec<bool>, <M as Model>::State);

/// Whether there is an order.
pub fn is_linear<M: Model>(events: &[Event<M::Op>]) -> bool {
    let mut tried: HashSet<Prefix<M>> = HashSet::new();
    let mut ahead = vec![(vec![false; events.len()], M::start())];
    while let Some((taken, state)) = ahead.pop() {
        let open = || events.iter().enumerate().filter(|(i, _)| !taken[*i]);
        let Some(first_end) = open().filter_map(|(_, e)| e.end).min() else {
            return true;
        };
        for (i, event) in open().filter(|(_, e)| e.call < first_end) {
            let Some(next) = M::step(&state, &event.op) else {
                continue;
            };
            let mut taken = taken.clone();
            taken[i] = true;
            if tried.insert((taken.clone(), next.clone())) {
                ahead.push((taken, next));
            }
        }
    }
    false
}

/// A value by name, as [`crate::core::kv`] has them, each by itself.
pub struct Value;

/// What was done to a value. A result that is not known is none.
#[derive(Clone, Debug)]
pub enum ValueOp {
    /// It was this, of this revision.
    Get(Option<(u64, u64)>),
    /// It was set; the change had this revision.
    Put {
        /// To this.
        value: u64,
        /// If it was of this revision; 0 if there was none.
        expected: Option<u64>,
        /// The revision of the change.
        revision: Option<u64>,
    },
    /// It was not set, as it was of this revision.
    Differs(u64),
}

impl Model for Value {
    /// The value and its revision, if somebody saw it.
    type State = Option<(u64, Option<u64>)>;
    type Op = ValueOp;

    fn start() -> Self::State {
        None
    }

    fn step(state: &Self::State, op: &ValueOp) -> Option<Self::State> {
        let is_of = |revision: u64| match state {
            None => revision == 0,
            Some((_, known)) => revision != 0 && known.is_none_or(|k| k == revision),
        };
        match op {
            ValueOp::Get(None) => state.is_none().then_some(None),
            ValueOp::Get(Some((value, revision))) => {
                let same = state.is_some_and(|(v, _)| v == *value) && is_of(*revision);
                same.then_some(Some((*value, Some(*revision))))
            }
            ValueOp::Put {
                value,
                expected,
                revision,
            } => {
                let newer = match (state, revision) {
                    (Some((_, Some(known))), Some(revision)) => known < revision,
                    _ => true,
                };
                let may = newer && expected.is_none_or(is_of);
                may.then_some(Some((*value, *revision)))
            }
            ValueOp::Differs(revision) => {
                let seen = state.map(|(value, _)| (value, Some(*revision)));
                is_of(*revision).then_some(seen)
            }
        }
    }
}

/// A lock that is held alone, as [`crate::core::lock`] has them, each by itself.
pub struct Lock;

/// What was done to a lock.
#[derive(Clone, Debug)]
pub enum LockOp {
    /// It was granted.
    Acquire {
        /// Number of the grant.
        token: u64,
    },
    /// It was given up, or the lease ended.
    Release {
        /// Number of the grant.
        token: u64,
    },
}

impl Model for Lock {
    /// The last grant, and whether it is given up.
    type State = (u64, bool);
    type Op = LockOp;

    fn start() -> Self::State {
        (0, true)
    }

    fn step((last, is_free): &Self::State, op: &LockOp) -> Option<Self::State> {
        match op {
            LockOp::Acquire { token } => (*is_free && token > last).then_some((*token, false)),
            LockOp::Release { token } => (!is_free && token == last).then_some((*last, true)),
        }
    }
}
