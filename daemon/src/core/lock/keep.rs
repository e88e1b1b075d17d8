// SPDX-License-Identifier: MIT OR Apache-2.0

//! Locks that a node keeps for the next who asks there.
//!
//! A node that keeps a lock has it, as a session of its own, and hands it to one after the other of those
//! who ask on that node, unseen by the others: Gray and Cheriton, "Leases", 1989; Burrows' Chubby
//! and the delegations of NFS do the same with files. When somebody else asks, the state has him wait,
//! and the node, which sees that, gives the lock up or says who has it. From then on all is as if that one
//! had asked here.
//!
//! What the node hands out has numbers that were set aside for it. Its session ends by time alone, also
//! when the node is declared dead: it may not know yet, and hand out a lock until it must have
//! renewed.

use super::{Answer, Hold, Locks, MAX_HELD, Mode, Opening, Outcome, Refusal, Unique};

/// So many numbers of grants are set aside for each lock that is kept.
pub const KEPT_TOKENS: u64 = 1 << 20;

impl Locks {
    /// Whether all who hold a lock keep it for others.
    pub(super) fn is_kept(&self, name: &str) -> bool {
        let lock = self.locks.get(name);
        lock.is_some_and(|lock| lock.holds.keys().all(|holder| self.keeps(*holder)))
    }

    fn keeps(&self, session: Unique) -> bool {
        self.session(session).is_some_and(|s| s.opening.keeps)
    }

    /// Takes a lock from a session, for the node to keep unless somebody waits for it.
    pub(super) fn keep(
        &mut self,
        session: Unique,
        name: &str,
        keeper: Unique,
        opening: Opening,
    ) -> Answer {
        let lock = self.locks.get(name);
        let is_wanted = lock.is_none_or(|lock| {
            let writes = lock.holds.get(&session).map(|h| h.mode) == Some(Mode::Write);
            !writes || !lock.queue.is_empty()
        });
        if is_wanted || session == keeper || !self.can_keep(keeper, opening) {
            return self.release(session, name);
        }
        let token = self.tokens.saturating_add(1);
        self.tokens = self.tokens.saturating_add(KEPT_TOKENS);
        self.pass(name, session, keeper, token)?;
        Ok(Outcome::Kept { token })
    }

    /// Whether a node's session can have one more lock. It is opened if need be.
    fn can_keep(&mut self, keeper: Unique, opening: Opening) -> bool {
        match self.session(keeper) {
            Some(open) => open.opening == opening && !open.lapses && open.held.len() < MAX_HELD,
            None => {
                opening.keeps && !self.ended.contains(&keeper) && self.open(keeper, opening).is_ok()
            }
        }
    }

    /// Has the one who has a kept lock hold it, by the number the node gave him.
    pub(super) fn reveal(
        &mut self,
        keeper: Unique,
        name: &str,
        session: Unique,
        opening: Opening,
        token: u64,
    ) -> Answer {
        let first = self.token(keeper, name).ok_or(Refusal::NotHeld)?;
        let numbers = first..first.saturating_add(KEPT_TOKENS);
        if !self.keeps(keeper) || !numbers.contains(&token) || self.ended.contains(&session) {
            return Err(Refusal::NotHeld);
        }
        match self.session(session) {
            Some(open) if open.held.len() >= MAX_HELD => return Err(Refusal::TooManyLocks),
            Some(open) if open.opening.keeps => return Err(Refusal::NotHeld),
            Some(open) if open.waits.as_deref() == Some(name) => return Err(Refusal::Waiting),
            Some(_) => {}
            None => self.open(session, opening)?,
        }
        self.pass(name, keeper, session, token)?;
        let lock = self.locks.get(name);
        let tries = lock.iter().flat_map(|l| &l.queue).filter(|w| w.tries);
        for session in tries.map(|w| w.session).collect::<Vec<_>>() {
            self.refuse(session, Refusal::Held);
        }
        while let Some(youngest) = self.youngest_of_circle(session) {
            self.refuse(youngest, Refusal::Deadlock);
        }
        Ok(Outcome::Done)
    }

    /// What one holds to write, another does.
    fn pass(&mut self, name: &str, from: Unique, to: Unique, token: u64) -> Result<(), Refusal> {
        let mode = Mode::Write;
        let lock = self.locks.get_mut(name).ok_or(Refusal::NotHeld)?;
        lock.holds.remove(&from);
        lock.holds.insert(to, Hold { mode, token });
        self.open_session(from)?.held.remove(name);
        self.open_session(to)?.held.insert(name.to_owned());
        Ok(())
    }

    /// A request that waits is refused after all.
    fn refuse(&mut self, session: Unique, why: Refusal) {
        let Some(open) = self.sessions.get_mut(&session) else {
            return;
        };
        if open.answer == Outcome::Waiting {
            open.answer = Outcome::Refused(why);
        }
        if let Some(name) = open.waits.take() {
            self.leave(session, &name);
        }
    }
}
