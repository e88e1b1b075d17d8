// SPDX-License-Identifier: MIT OR Apache-2.0

//! Who waits for whom.
//!
//! A session waits for those who hold the lock it wants in a way that excludes it, and for those
//! before it in the queue that it cannot share it with. A parent waits for its children. New such
//! bonds come with requests alone: a grant only makes of one who was before in the queue one who
//! holds. So it is enough to look when one would begin to wait.

use std::collections::{BTreeMap, BTreeSet};

use super::{Locks, Mode, Unique};

impl Locks {
    /// Whether `session` would wait for itself if it waited for `name`.
    pub(super) fn would_deadlock(&self, session: Unique, name: &str, mode: Mode) -> bool {
        let mut children: BTreeMap<Unique, Vec<Unique>> = BTreeMap::new();
        for (id, child) in &self.sessions {
            if let Some(parent) = child.opening.parent {
                children.entry(parent).or_default().push(*id);
            }
        }
        let mut seen = BTreeSet::new();
        let mut ahead = self.before(session, name, mode);
        while let Some(one) = ahead.pop() {
            if one == session {
                return true;
            }
            if !seen.insert(one) {
                continue;
            }
            ahead.extend(children.get(&one).into_iter().flatten());
            ahead.extend(self.waits_for(one));
        }
        false
    }

    /// Those for whom a session waits, its children aside.
    fn waits_for(&self, session: Unique) -> Vec<Unique> {
        let name = self.sessions.get(&session).and_then(|s| s.waits.as_deref());
        let Some((name, lock)) = name.and_then(|n| Some((n, self.locks.get(n)?))) else {
            return Vec::new();
        };
        let own = lock.queue.iter().find(|w| w.session == session);
        own.map_or_else(Vec::new, |w| self.before(session, name, w.mode))
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
