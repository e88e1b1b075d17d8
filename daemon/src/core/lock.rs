// SPDX-License-Identifier: MIT OR Apache-2.0

//! Locks that the nodes agree on: who holds one, who waits for it, and in what order.
//!
//! Who wants locks opens a session, which is good for a time and ends unless it is renewed. The time
//! is the state's own: it goes by [`Command::Tick`], never faster than a real clock, and stands while
//! nothing can be agreed on. A session ends no earlier than it was told, and at most
//! [`MAX_TICK_MS`] later than the state's clock says so. What it held is free then.
//!
//! A grant has a number, the fencing token, that is higher than that of every grant of that lock
//! before it: Gray and Cheriton, "Leases", 1989; the numbers are the sequencers of Burrows, "The
//! Chubby lock service for loosely-coupled distributed systems", 2006.
//!
//! Nobody overtakes: a lock is given in the order of the requests, to readers together while no writer
//! is before them. A request that would close a circle of sessions that wait for each other is
//! refused. All others in the circle began to wait before it, so it is the youngest.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};
use ssi::id::NodeId;

use super::state::Unique;
use super::state::spell;

mod command;
mod keep;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
mod wait;

pub use command::{Command, Mode, Opening, Outcome, Owner, Refusal};
pub use keep::KEPT_TOKENS;

/// Longest name of a lock.
pub const MAX_NAME_BYTES: usize = 256;
/// Most sessions of the cluster.
pub const MAX_SESSIONS: usize = 1024;
/// Most sessions of one user.
pub const MAX_SESSIONS_OF_USER: usize = 256;
/// Most locks one session holds.
pub const MAX_HELD: usize = 64;
/// Most sessions that wait for one lock.
pub const MAX_WAITERS: usize = 128;
/// Most grants and requests of all locks together.
pub const MAX_ENTRIES: usize = 4096;
/// Of those so many are of one user at most who is not root.
pub const MAX_ENTRIES_OF_USER: usize = 1024;
/// So many sessions that ended are remembered, lest a request that comes late opens one again.
const MAX_ENDED: usize = 1024;
/// Shortest time a session is good for.
pub const MIN_TTL_MS: u64 = 1000;
/// Longest.
pub const MAX_TTL_MS: u64 = 3600 * 1000;
/// The state's clock goes on by so much at most at once, and is so much behind at most when a
/// session is opened or renewed.
pub const MAX_TICK_MS: u64 = 1000;

/// Somebody who may hold locks for as long as he says so in time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Session {
    /// Where and whose it is, and for how long it is good after it was renewed. Its parent is as the session
    /// of a command that started another.
    pub opening: Opening,
    /// When it ends, by the state's clock.
    pub ends_ms: u64,
    /// What it holds.
    pub held: BTreeSet<String>,
    /// What it waits for.
    pub waits: Option<String>,
    /// It is not renewed any more: its node is not one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    lapses: bool,
    /// Number of its last request.
    serial: u64,
    /// What came of that, for a request whose answer was lost.
    answer: Outcome,
}

/// A grant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hold {
    /// How.
    pub mode: Mode,
    /// Its number.
    pub token: u64,
}

/// One who waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Waiter {
    /// Who.
    pub session: Unique,
    /// How it wants the lock.
    pub mode: Mode,
    /// It only asks whether a node that keeps the lock gives it up.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tries: bool,
    /// Number of the request, of all that had to wait.
    #[serde(default)]
    asked: u64,
}

/// A lock that is held. One that nobody holds is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// One writer, or readers.
    pub holds: BTreeMap<Unique, Hold>,
    /// Who waits, the first first.
    pub queue: Vec<Waiter>,
}

impl Session {
    /// Why its last request is refused, if it is: also one that waited.
    pub fn refusal(&self) -> Option<Refusal> {
        match self.answer {
            Outcome::Refused(why) => Some(why),
            _ => None,
        }
    }
}

impl Lock {
    /// Whether nobody has it in a way that excludes `mode`.
    fn admits(&self, mode: Mode) -> bool {
        self.holds.values().all(|hold| !hold.mode.excludes(mode))
    }
}

/// All locks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Locks {
    /// The state's clock.
    now_ms: u64,
    /// Number of the last grant.
    tokens: u64,
    /// Number of the last request that had to wait.
    #[serde(default)]
    asked: u64,
    sessions: BTreeMap<Unique, Session>,
    /// The last sessions that ended, the latest last.
    ended: VecDeque<Unique>,
    locks: BTreeMap<String, Lock>,
}

type Answer = Result<Outcome, Refusal>;

/// Whether something can be the name of a lock.
///
/// # Errors
/// [`Refusal::NameInvalid`].
pub fn check_name(name: &str) -> Result<(), Refusal> {
    let good = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\');
    if (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(good) {
        return Ok(());
    }
    Err(Refusal::NameInvalid)
}

/// Whether a session may be good for so long.
pub fn is_good_ttl(ttl_ms: u64) -> bool {
    (MIN_TTL_MS..=MAX_TTL_MS).contains(&ttl_ms)
}

impl Locks {
    /// Does what `command` says.
    pub fn apply(&mut self, command: &Command) -> Outcome {
        let answer = match command {
            Command::Renew { session } => self.renew(*session),
            Command::Close { session } => {
                self.end(|id, _| id == *session);
                self.remember(&[*session].into());
                Ok(Outcome::Done)
            }
            Command::Acquire {
                session,
                opening: Some(opening),
                serial,
                ..
            } if self.session(*session).map(|s| s.opening) != Some(*opening) => {
                self.open_with(*session, *opening, *serial, command)
            }
            Command::Acquire {
                session, serial, ..
            }
            | Command::Release {
                session, serial, ..
            }
            | Command::Keep {
                session, serial, ..
            }
            | Command::Reveal {
                keeper: session,
                serial,
                ..
            } => self.request(*session, *serial, command),
            Command::Tick { from_ms, to_ms } => {
                self.tick(*from_ms, *to_ms);
                Ok(Outcome::Done)
            }
        };
        answer.unwrap_or_else(Outcome::Refused)
    }

    /// A node is not one any more: its sessions end. What it keeps it keeps until it would have to
    /// renew.
    pub fn end_of_node(&mut self, node: NodeId, since: u64) {
        let is_its = |s: &Session| {
            let owner = s.opening.owner;
            owner.node == node && owner.since == since
        };
        self.end(|_, s| is_its(s) && !s.opening.keeps);
        for keeper in self.sessions.values_mut().filter(|s| is_its(s)) {
            keeper.lapses = true;
        }
    }

    /// The state's clock.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// A session, unless it has ended.
    pub fn session(&self, session: Unique) -> Option<&Session> {
        self.sessions.get(&session)
    }

    /// All sessions.
    pub fn sessions(&self) -> &BTreeMap<Unique, Session> {
        &self.sessions
    }

    /// All locks that are held, by name.
    pub fn locks(&self) -> &BTreeMap<String, Lock> {
        &self.locks
    }

    /// Number of the grant of `name` to `session`, if it holds it.
    pub fn token(&self, session: Unique, name: &str) -> Option<u64> {
        let hold = self.locks.get(name)?.holds.get(&session);
        hold.map(|h| h.token)
    }

    /// Opens a session for its first request, and keeps it if that is not refused.
    fn open_with(
        &mut self,
        session: Unique,
        opening: Opening,
        serial: u64,
        command: &Command,
    ) -> Answer {
        if self.sessions.contains_key(&session) {
            return Err(Refusal::SessionExists);
        }
        if self.ended.contains(&session) {
            return Err(Refusal::SessionEnded);
        }
        self.open(session, opening)?;
        let outcome = self.request(session, serial, command)?;
        if matches!(outcome, Outcome::Refused(_)) {
            self.sessions.remove(&session);
        }
        Ok(outcome)
    }

    fn open(&mut self, session: Unique, opening: Opening) -> Result<(), Refusal> {
        let Opening { owner, ttl_ms, .. } = opening;
        if !is_good_ttl(ttl_ms) {
            return Err(Refusal::TtlInvalid);
        }
        let of_user = self.sessions_of(owner.uid).count();
        if self.sessions.len() >= MAX_SESSIONS || of_user >= MAX_SESSIONS_OF_USER {
            return Err(Refusal::TooManySessions);
        }
        let open = Session {
            opening,
            ends_ms: self.end_of_lease(ttl_ms),
            held: BTreeSet::new(),
            waits: None,
            lapses: false,
            serial: 0,
            answer: Outcome::Done,
        };
        self.sessions.insert(session, open);
        Ok(())
    }

    /// When a lease of `ttl_ms` that begins now ends. The clock may be a tick behind.
    fn end_of_lease(&self, ttl_ms: u64) -> u64 {
        let late = self.now_ms.saturating_add(MAX_TICK_MS);
        late.saturating_add(ttl_ms)
    }

    fn renew(&mut self, session: Unique) -> Answer {
        let open = self.open_session(session)?;
        if open.lapses {
            return Err(Refusal::SessionEnded);
        }
        let ttl_ms = open.opening.ttl_ms;
        self.open_session(session)?.ends_ms = self.end_of_lease(ttl_ms);
        Ok(Outcome::Done)
    }

    fn open_session(&mut self, session: Unique) -> Result<&mut Session, Refusal> {
        let open = self.sessions.get_mut(&session);
        open.ok_or(Refusal::SessionEnded)
    }

    /// What a session asks for by number is done once.
    fn request(&mut self, session: Unique, serial: u64, command: &Command) -> Answer {
        let open = self.open_session(session)?;
        if serial == open.serial {
            return Ok(open.answer.clone());
        }
        if serial < open.serial {
            return Err(Refusal::Stale);
        }
        open.serial = serial;
        let outcome = match command {
            Command::Acquire {
                name, mode, wait, ..
            } => self.acquire(session, name, *mode, *wait),
            Command::Release { name, .. } => self.release(session, name),
            Command::Keep {
                name,
                keeper,
                opening,
                ..
            } => self.keep(session, name, *keeper, *opening),
            Command::Reveal {
                name,
                session: holder,
                opening,
                token,
                ..
            } => self.reveal(session, name, *holder, *opening, *token),
            _ => Ok(Outcome::Done),
        };
        let outcome = outcome.unwrap_or_else(Outcome::Refused);
        self.open_session(session)?.answer = outcome.clone();
        Ok(outcome)
    }

    fn acquire(&mut self, session: Unique, name: &str, mode: Mode, wait: bool) -> Answer {
        check_name(name)?;
        let open = self.open_session(session)?;
        if open.held.contains(name) {
            return Err(Refusal::AlreadyHeld);
        }
        if open.waits.is_some() {
            return Err(Refusal::Waiting);
        }
        if open.held.len() >= MAX_HELD {
            return Err(Refusal::TooManyLocks);
        }
        let uid = open.opening.owner.uid;
        let entries = self.locks.values().map(|l| l.holds.len() + l.queue.len());
        if entries.sum::<usize>() >= MAX_ENTRIES
            || (uid != 0 && self.entries_of(uid) >= MAX_ENTRIES_OF_USER)
        {
            return Err(Refusal::TooManyLocks);
        }
        let lock = self.locks.get(name);
        let is_free = lock.is_none_or(|l| l.queue.is_empty() && l.admits(mode));
        if !is_free {
            let nobody_waits = lock.is_some_and(|l| l.queue.is_empty());
            let may_be_free = nobody_waits && self.is_kept(name);
            if !(wait || may_be_free) {
                return Err(Refusal::Held);
            }
            if self.would_deadlock(session, name, mode) {
                return Err(Refusal::Deadlock);
            }
            if lock.is_some_and(|l| l.queue.len() >= MAX_WAITERS) {
                return Err(Refusal::TooManyWaiters);
            }
        }
        self.open_session(session)?.waits = Some(name.to_owned());
        self.asked = self.asked.saturating_add(1);
        let lock = self.locks.entry(name.to_owned()).or_default();
        lock.queue.push(Waiter {
            session,
            mode,
            tries: !wait,
            asked: self.asked,
        });
        self.hand_on(name);
        Ok(match self.token(session, name) {
            Some(token) => Outcome::Granted { token },
            None => Outcome::Waiting,
        })
    }

    /// Grants and requests of a user.
    fn entries_of(&self, uid: u32) -> usize {
        self.sessions_of(uid)
            .map(|s| s.held.len() + usize::from(s.waits.is_some()))
            .sum()
    }

    fn sessions_of(&self, uid: u32) -> impl Iterator<Item = &Session> {
        let all = self.sessions.values();
        all.filter(move |s| s.opening.owner.uid == uid)
    }

    /// Gives up a lock, or waiting for it.
    fn release(&mut self, session: Unique, name: &str) -> Answer {
        let open = self.open_session(session)?;
        if open.waits.as_deref() == Some(name) {
            open.waits = None;
        } else if !open.held.remove(name) {
            return Err(Refusal::NotHeld);
        }
        self.leave(session, name);
        Ok(Outcome::Done)
    }

    /// Takes a session out of a lock.
    fn leave(&mut self, session: Unique, name: &str) {
        if let Some(lock) = self.locks.get_mut(name) {
            lock.holds.remove(&session);
            lock.queue.retain(|w| w.session != session);
        }
        self.hand_on(name);
    }

    /// Gives a lock to those who can have it now.
    fn hand_on(&mut self, name: &str) {
        let Some(lock) = self.locks.get_mut(name) else {
            return;
        };
        while let Some(first) = lock.queue.first() {
            if !lock.admits(first.mode) {
                break;
            }
            let Waiter { session, mode, .. } = lock.queue.remove(0);
            self.tokens = self.tokens.saturating_add(1);
            let token = self.tokens;
            lock.holds.insert(session, Hold { mode, token });
            if let Some(open) = self.sessions.get_mut(&session) {
                open.waits = None;
                open.held.insert(name.to_owned());
                if open.answer == Outcome::Waiting {
                    open.answer = Outcome::Granted { token };
                }
            }
        }
        if lock.holds.is_empty() {
            self.locks.remove(name);
        }
    }

    /// Ends sessions, at once: none of them gets what another had.
    fn end(&mut self, which: impl Fn(Unique, &Session) -> bool) {
        let of_these = self.sessions.iter().filter(|(id, s)| which(**id, s));
        let ended: BTreeSet<Unique> = of_these.map(|(id, _)| *id).collect();
        if ended.is_empty() {
            return;
        }
        self.sessions.retain(|id, _| !ended.contains(id));
        self.remember(&ended);
        let mut left = Vec::new();
        for (name, lock) in &mut self.locks {
            let before = lock.holds.len() + lock.queue.len();
            lock.holds.retain(|id, _| !ended.contains(id));
            lock.queue.retain(|w| !ended.contains(&w.session));
            if lock.holds.len() + lock.queue.len() < before {
                left.push(name.clone());
            }
        }
        for name in left {
            self.hand_on(&name);
        }
    }

    /// No request opens these again.
    fn remember(&mut self, ended: &BTreeSet<Unique>) {
        let new = ended.iter().filter(|id| !self.ended.contains(id));
        let new: Vec<Unique> = new.copied().collect();
        self.ended.extend(new);
        let too_many = self.ended.len().saturating_sub(MAX_ENDED);
        self.ended.drain(..too_many);
    }

    /// A tick that was counted already, or counts from another time, changes nothing.
    fn tick(&mut self, from_ms: u64, to_ms: u64) {
        if from_ms != self.now_ms || to_ms <= from_ms {
            return;
        }
        self.now_ms = to_ms.min(from_ms.saturating_add(MAX_TICK_MS));
        let now_ms = self.now_ms;
        self.end(|_, s| s.ends_ms <= now_ms);
    }
}
