// SPDX-License-Identifier: MIT OR Apache-2.0

//! Who waits for whom.
//!
//! A session waits for those who hold the lock it wants in a way that excludes it, and for those
//! before it in the queue that it cannot share it with. A parent waits for its children. New such
//! bonds come with requests: a grant only makes of one who was before in the queue one who
//! holds. So it is enough to look when one would begin to wait; and when a node that kept a lock says
//! who has it, for whom others wait from then on.

use std::collections::BTreeMap;
use std::iter;

use super::{Locks, Mode, Unique, Waiter};

impl Locks {
    /// Whether `session` would wait for itself if it waited for `name`.
    pub(super) fn would_deadlock(&self, session: Unique, name: &str, mode: Mode) -> bool {
        let first = self.before(session, name, mode);
        self.way_back(session, first).is_some()
    }

    /// Of those who wait for each other in a circle with `session`, the one who began last.
    pub(super) fn youngest_of_circle(&self, session: Unique) -> Option<Unique> {
        let mut first = self.children().remove(&session).unwrap_or_default();
        first.extend(self.waits_for(session));
        let circle = self.way_back(session, first)?;
        let waiting = circle
            .into_iter()
            .filter_map(|id| Some((self.waiter(id)?.asked, id)));
        waiting.max().map(|(_, id)| id)
    }

    /// A way to `session` from one of `first`, each of which waits for the next: `session`, and all on it.
    fn way_back(&self, session: Unique, first: Vec<Unique>) -> Option<Vec<Unique>> {
        let children = self.children();
        // Who waits for each, as it was come upon.
        let mut before = BTreeMap::new();
        let mut ahead: Vec<(Unique, Unique)> = first.iter().map(|id| (session, *id)).collect();
        while let Some((from, one)) = ahead.pop() {
            if one == session {
                let way = iter::successors(Some(from), |id| before.get(id).copied());
                return Some(way.collect());
            }
            if before.contains_key(&one) {
                continue;
            }
            before.insert(one, from);
            let next = children.get(&one).into_iter().flatten().copied();
            ahead.extend(next.chain(self.waits_for(one)).map(|id| (one, id)));
        }
        None
    }

    /// The children of each session that has any.
    fn children(&self) -> BTreeMap<Unique, Vec<Unique>> {
        let mut children: BTreeMap<Unique, Vec<Unique>> = BTreeMap::new();
        for (id, child) in &self.sessions {
            if let Some(parent) = child.opening.parent {
                children.entry(parent).or_default().push(*id);
            }
        }
        children
    }

    fn waiter(&self, session: Unique) -> Option<&Waiter> {
        let name = self.sessions.get(&session)?.waits.as_deref()?;
        let mut queue = self.locks.get(name)?.queue.iter();
        queue.find(|w| w.session == session)
    }

    /// Those for whom a session waits, its children aside.
    fn waits_for(&self, session: Unique) -> Vec<Unique> {
        let name = self.sessions.get(&session).and_then(|s| s.waits.as_deref());
        let wanted = name.zip(self.waiter(session));
        wanted.map_or_else(Vec::new, |(name, w)| self.before(session, name, w.mode))
    }

    /// Those who have to go before `session` can have the lock `name`.
    fn before(&self, session: Unique, name: &str, mode: Mode) -> Vec<Unique> {
        let Some(lock) = self.locks.get(name) else {
            return Vec::new();
        };
        let holders = lock.holds.iter().map(|(id, hold)| (*id, hold.mode));
        let queue = lock.queue.iter().map(|w| (w.session, w.mode));
        let queue = queue.take_while(|(id, _)| *id != session);
        let excluded = holders.chain(queue).filter(|(_, m)| m.excludes(mode));
        excluded.map(|(id, _)| id).collect()
    }
}
