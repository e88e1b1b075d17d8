// SPDX-License-Identifier: MIT OR Apache-2.0

//! The locks that this node keeps for the next who asks here: `core/lock/keep.rs` says how.
//!
//! A lock that was used here and that nobody else wanted is kept. It is lent without anybody being asked,
//! and for no longer than the node's own session is good: so whoever has it must have given it up when
//! the state gives it to another. One that nobody uses for [`IDLE`] is given up, and one that was asked
//! for on another node before it was used here again is not kept the next time, nor the next two, four,
//! eight times if that goes on.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ssi::id::NodeId;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::Agreement;
use super::lease::{Error, ask};
use crate::core::lock::{Command, KEPT_TOKENS, MAX_HELD, Opening, Outcome, Owner, Refusal};
use crate::core::state::{State, Unique};

/// The node's session is good for so long after each renewal.
const TTL: Duration = Duration::from_secs(24);
/// It is renewed so often.
const RENEW: Duration = Duration::from_secs(3);
/// A lock that nobody used for so long is given up.
const IDLE: Duration = Duration::from_secs(10);
/// What is to be done is looked for so often at least.
const LOOK: Duration = Duration::from_secs(1);
/// What was refused is not asked for again before.
const AGAIN: Duration = Duration::from_secs(5);
/// Whether a lock is kept is known after so long, or never.
const ASKED: Duration = Duration::from_secs(60);
/// Most times in a row that a lock is not kept.
const MAX_SKIPS: u32 = 64;
/// Habits of so many locks are known.
const MAX_HABITS: usize = 256;
/// What became of so many that were lent is known until who has them asks.
const MAX_MOVED: usize = 1024;

#[cfg(test)]
thread_local! {
    /// Plants an error: the node's session ends sooner than the node knows.
    pub(super) static LENDS_TOO_LONG: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// For how long the state is told to have the node's session.
fn ttl_ms() -> u64 {
    #[cfg(test)]
    if LENDS_TOO_LONG.get() {
        return crate::core::lock::MIN_TTL_MS;
    }
    u64::try_from(TTL.as_millis()).unwrap_or(u64::MAX)
}

/// A session that has a lock that is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Holder {
    pub(super) id: Unique,
    pub(super) opening: Opening,
    /// It is its own for so long.
    pub(super) until: Instant,
}

/// What is known of one that was lent when it is given back, or looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lent {
    /// The session has it from this node.
    Yes,
    /// The state says that it is the session's.
    Revealed,
    /// The session has it no more.
    Lost,
}

#[derive(Debug)]
struct Kept {
    /// The next number, and the first that is not this lock's.
    token: u64,
    end: u64,
    holder: Option<Holder>,
    /// The state is being asked to change who has it, or nobody knows what came of that; and whether that is for
    /// another node.
    moving: bool,
    elsewhere: bool,
    /// When it was used last, and whether it was since it is kept.
    used: Instant,
    reused: bool,
    /// Nothing is asked before.
    not_before: Instant,
}

/// How often a lock was kept for nothing.
#[derive(Clone, Copy, Debug, Default)]
struct Habit {
    skips: u32,
    left: u32,
}

#[derive(Debug)]
struct Inner {
    /// The node's session; another when it has ended.
    id: Unique,
    is_open: bool,
    /// When it was first asked to keep something.
    begun: Option<Instant>,
    renewed: Instant,
    serial: u64,
    kept: BTreeMap<String, Kept>,
    /// What the state was asked to have this node keep, and when.
    asked: BTreeMap<String, Instant>,
    /// What the node's session has and this node knows nothing of, and since when.
    strange: BTreeMap<String, Instant>,
    /// What became of those that were lent and are not kept any more: whether they were revealed.
    moved: BTreeMap<(Unique, String), bool>,
    habits: BTreeMap<String, Habit>,
}

/// Keeps locks.
#[derive(Debug)]
pub struct Keeper {
    agreement: Agreement,
    unique: fn() -> Option<Unique>,
    inner: Mutex<Inner>,
    /// A lock is not moving any more.
    settled: Notify,
}

/// What is to be done about a lock.
enum Task {
    Release,
    Reveal(Holder, u64),
}

impl Inner {
    fn good_until(&self) -> Instant {
        self.renewed + TTL
    }

    /// Nothing is kept any more: the session has ended, or may have. Returns it.
    fn lose(&mut self, next: Unique) -> Unique {
        for (name, kept) in std::mem::take(&mut self.kept) {
            self.note_moved(kept.holder, name, false);
        }
        (self.is_open, self.begun, self.serial) = (false, None, 0);
        std::mem::replace(&mut self.id, next)
    }

    fn note_moved(&mut self, holder: Option<Holder>, name: String, revealed: bool) {
        if let Some(holder) = holder {
            self.moved.insert((holder.id, name), revealed);
        }
        while self.moved.len() > MAX_MOVED {
            self.moved.pop_first();
        }
    }

    /// Somebody on another node asked for what was kept.
    fn note_wanted(&mut self, name: &str, reused: bool) {
        if self.habits.len() >= MAX_HABITS {
            self.habits.clear();
        }
        let habit = self.habits.entry(name.to_owned()).or_default();
        habit.skips = match habit.skips {
            _ if reused => 0,
            0 => 1,
            skips => (2 * skips).min(MAX_SKIPS),
        };
        habit.left = habit.skips;
    }

    /// What was begun is done, or has to be done again.
    fn note_done(&mut self, name: &str, task: &Task, done: &Result<Outcome, Error>) {
        if let Err(e) = done {
            if let Some(kept) = self.kept.get_mut(name) {
                // If it comes about yet, the lock must not be lent by then.
                kept.moving = matches!(e, Error::Agree(super::Error::Unknown));
                kept.not_before = Instant::now() + if kept.moving { LOOK } else { AGAIN };
            }
            return;
        }
        let Some(kept) = self.kept.remove(name) else {
            return;
        };
        // If it is not revealed nobody has it, or who had it did not renew.
        let is_revealed = matches!(task, Task::Reveal(..));
        self.note_moved(kept.holder, name.to_owned(), is_revealed);
        if kept.elsewhere {
            self.note_wanted(name, kept.reused);
        }
    }

    fn next_request(&mut self) -> (Unique, u64) {
        self.serial += 1;
        (self.id, self.serial)
    }

    fn forget_asked(&mut self, now: Instant) {
        self.asked.retain(|_, at| now - *at < ASKED);
    }

    /// What the node's session has by `state` and this node has not known of for a while: the answer was lost that
    /// it is to keep it.
    fn lost_of(&mut self, state: &State) -> Vec<String> {
        let now = Instant::now();
        let session = state.locks.session(self.id);
        let held = session.iter().flat_map(|s| &s.held);
        self.forget_asked(now);
        let is_known =
            |name: &String| self.kept.contains_key(name) || self.asked.contains_key(name);
        let strange = held.filter(|name| !is_known(name));
        let before = std::mem::take(&mut self.strange);
        let since = |name: &String| before.get(name).copied().unwrap_or(now);
        self.strange = strange.map(|name| (name.clone(), since(name))).collect();
        let lost = self.strange.iter().filter(|(_, at)| now - **at >= AGAIN);
        lost.map(|(name, _)| name.clone()).collect()
    }

    /// Something to do, which is begun.
    fn next_task(&mut self, own: NodeId, state: &State) -> Option<(String, Task)> {
        let now = Instant::now();
        let is_elsewhere = |session: Unique| {
            let session = state.locks.session(session);
            session.is_some_and(|s| s.opening.owner.node != own)
        };
        for (name, kept) in &mut self.kept {
            if kept.not_before > now {
                continue;
            }
            let lock = state.locks.locks().get(name);
            let queue = lock.map_or(&[][..], |lock| &lock.queue[..]);
            let wanted = !queue.is_empty();
            let holder = kept.holder.filter(|h| h.until > now);
            let task = match holder {
                Some(holder) if wanted || kept.moving => Task::Reveal(holder, kept.token - 1),
                None if wanted || kept.moving || now - kept.used >= IDLE => Task::Release,
                _ => continue,
            };
            kept.moving = true;
            kept.elsewhere = queue.iter().any(|w| is_elsewhere(w.session));
            return Some((name.clone(), task));
        }
        None
    }
}

impl Keeper {
    /// Keeps nothing yet. `unique` makes random numbers; without them there is none.
    pub fn new(agreement: &Agreement, unique: fn() -> Option<Unique>) -> Option<Self> {
        Some(Self {
            agreement: agreement.clone(),
            unique,
            inner: Mutex::new(Inner {
                id: unique()?,
                is_open: false,
                begun: None,
                renewed: Instant::now(),
                serial: 0,
                kept: BTreeMap::new(),
                asked: BTreeMap::new(),
                strange: BTreeMap::new(),
                moved: BTreeMap::new(),
                habits: BTreeMap::new(),
            }),
            settled: Notify::new(),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lends a lock, if it is here and free. Returns the number of the grant.
    pub(super) fn lend(&self, name: &str, to: Holder) -> Option<u64> {
        let mut inner = self.inner();
        if to.until > inner.good_until() {
            return None;
        }
        let now = Instant::now();
        let kept = inner.kept.get_mut(name)?;
        if kept.moving || kept.token >= kept.end || kept.holder.is_some_and(|h| h.until > now) {
            return None;
        }
        let token = kept.token;
        kept.token += 1;
        (kept.used, kept.reused) = (now, true);
        let late = kept.holder.replace(to);
        inner.note_moved(late, name.to_owned(), false);
        Some(token)
    }

    /// What is known of a lock that was lent to `session`; `then` is done to it if it has it.
    async fn lent(&self, name: &str, session: Unique, then: impl Fn(&mut Kept)) -> Lent {
        loop {
            let settled = self.settled.notified();
            {
                let mut inner = self.inner();
                let kept = inner.kept.get_mut(name);
                let has = |k: &&mut Kept| k.holder.is_some_and(|h| h.id == session);
                match kept.filter(has) {
                    Some(kept) if kept.moving => {}
                    Some(kept) => {
                        let now = Instant::now();
                        if kept.holder.is_some_and(|h| h.until <= now) {
                            kept.holder = None;
                            return Lent::Lost;
                        }
                        then(kept);
                        return Lent::Yes;
                    }
                    None => {
                        let moved = inner.moved.remove(&(session, name.to_owned()));
                        return match moved {
                            Some(true) => Lent::Revealed,
                            _ => Lent::Lost,
                        };
                    }
                }
            }
            settled.await;
        }
    }

    /// Takes back a lock that was lent. One that was revealed is to be given up in the state.
    pub(super) async fn take_back(&self, name: &str, session: Unique) -> Lent {
        let free = |kept: &mut Kept| {
            kept.holder = None;
            kept.used = Instant::now();
        };
        self.lent(name, session, free).await
    }

    /// Lends a lock until then.
    ///
    /// # Errors
    /// See [`Error`]: for so long this node may not have it.
    pub(super) async fn extend(
        &self,
        name: &str,
        session: Unique,
        until: Instant,
    ) -> Result<Lent, Error> {
        if until > self.inner().good_until() {
            self.renew().await?;
        }
        let good = self.inner().good_until();
        let longer = |kept: &mut Kept| {
            if let Some(holder) = kept.holder.as_mut().filter(|_| until <= good) {
                holder.until = until;
            }
        };
        match self.lent(name, session, longer).await {
            Lent::Yes if until > good => Err(Refusal::SessionEnded.into()),
            lent => Ok(lent),
        }
    }

    /// Whether a lock should be kept that a session of `owner` gives up here: with which session.
    pub(super) fn wants(&self, name: &str, owner: Owner) -> Option<(Unique, Opening)> {
        let mut inner = self.inner();
        if let Some(habit) = inner.habits.get_mut(name).filter(|h| h.left > 0) {
            habit.left -= 1;
            return None;
        }
        if inner.kept.len() >= MAX_HELD || inner.kept.contains_key(name) {
            return None;
        }
        let now = Instant::now();
        inner.forget_asked(now);
        if inner.asked.contains_key(name) {
            return None;
        }
        inner.asked.insert(name.to_owned(), now);
        inner.begun.get_or_insert(now);
        let opening = Opening {
            owner: Owner { uid: 0, ..owner },
            parent: None,
            ttl_ms: ttl_ms(),
            keeps: true,
        };
        Some((inner.id, opening))
    }

    /// The state has the session `id` keep a lock, with numbers from `token` on; or it does not, as far as is known.
    pub(super) fn settle(&self, name: &str, id: Unique, token: Option<u64>) {
        let mut inner = self.inner();
        inner.asked.remove(name);
        let Some(token) = token else { return };
        let begun = inner.begun.filter(|_| inner.id == id);
        // One that has ended meanwhile has nothing to keep.
        let Some(begun) = begun else { return };
        if !inner.is_open {
            (inner.is_open, inner.renewed) = (true, begun);
        }
        let kept = Kept {
            token,
            end: token.saturating_add(KEPT_TOKENS),
            holder: None,
            moving: false,
            elsewhere: false,
            used: Instant::now(),
            reused: false,
            not_before: Instant::now(),
        };
        inner.kept.insert(name.to_owned(), kept);
    }

    /// Who has a lock that is kept here, if somebody has, and the number of the grant.
    pub fn holder(&self, name: &str) -> Option<(Owner, u64)> {
        let inner = self.inner();
        let kept = inner.kept.get(name)?;
        let holder = kept.holder.filter(|h| h.until > Instant::now())?;
        Some((holder.opening.owner, kept.token - 1))
    }

    /// Looks after what is kept for as long as the node takes part.
    pub async fn serve(&self) {
        let mut states = self.agreement.watch();
        loop {
            // Either something has changed, or it is time to look.
            if let Ok(Err(_)) = timeout(LOOK, states.changed()).await {
                return;
            }
            let state = states.borrow_and_update().clone();
            if let Err(e) = self.see_to(&state).await {
                tracing::debug!("locks that are kept: {e}");
            }
        }
    }

    async fn see_to(&self, state: &State) -> Result<(), Error> {
        let (is_open, is_over, renewed) = {
            let inner = self.inner();
            let over = inner.good_until() <= Instant::now();
            (inner.is_open, over, inner.renewed)
        };
        if !is_open {
            return Ok(());
        }
        if is_over {
            return self.close().await;
        }
        let mut refused = None;
        loop {
            let task = self.inner().next_task(self.agreement.0.own, state);
            let Some((name, task)) = task else { break };
            match self.make(&name, task).await {
                // The others can be seen to all the same.
                Err(Error::Refused(why)) => refused = Some(why),
                done => done?,
            }
        }
        let lost = self.inner().lost_of(state);
        for name in lost {
            match self.release(name).await {
                // What is known here is old, or its renewal finds that the session has ended.
                Err(Error::Refused(_)) => {}
                done => done?,
            }
        }
        if self.inner().kept.is_empty() {
            return self.close().await;
        }
        if renewed.elapsed() >= RENEW {
            self.renew().await?;
        }
        refused.map_or(Ok(()), |why| Err(why.into()))
    }

    /// Has the state take back what it has this node keep, which does not know it.
    async fn release(&self, name: String) -> Result<(), Error> {
        let (session, serial) = self.inner().next_request();
        let command = Command::Release {
            session,
            serial,
            name,
        };
        ask(&self.agreement, command).await.map(drop)
    }

    /// Has the state change who has a lock.
    async fn make(&self, name: &str, task: Task) -> Result<(), Error> {
        let (id, serial) = self.inner().next_request();
        let command = match task {
            Task::Release => Command::Release {
                session: id,
                serial,
                name: name.to_owned(),
            },
            Task::Reveal(holder, token) => Command::Reveal {
                keeper: id,
                serial,
                name: name.to_owned(),
                session: holder.id,
                opening: holder.opening,
                token,
            },
        };
        let done = ask(&self.agreement, command).await;
        let is_unheld = matches!(done, Err(Error::Refused(Refusal::NotHeld)));
        // Either the session of whoever has it has ended just now: then it is its own until its time is over, and goes
        // back. Or nobody has it from here any more. Nothing is done with it before that is known.
        let has_it = is_unheld && matches!(task, Task::Reveal(..)) && self.has(id, name).await?;
        self.inner().note_done(name, &task, &done);
        self.settled.notify_waiters();
        match done {
            Err(Error::Refused(Refusal::NotHeld)) if has_it => Ok(()),
            Err(Error::Refused(Refusal::SessionEnded | Refusal::NotHeld)) => self.close().await,
            done => done.map(drop),
        }
    }

    /// Whether the state has this session keep the lock.
    async fn has(&self, id: Unique, name: &str) -> Result<bool, Error> {
        let state = self.agreement.read().await?;
        let session = state.locks.session(id);
        Ok(session.is_some_and(|s| s.held.contains(name)))
    }

    async fn renew(&self) -> Result<(), Error> {
        let (asked, session) = (Instant::now(), self.inner().id);
        match ask(&self.agreement, Command::Renew { session }).await {
            Ok(_) => {
                let mut inner = self.inner();
                if inner.id == session && inner.renewed < asked {
                    inner.renewed = asked;
                }
                Ok(())
            }
            Err(Error::Refused(why)) => {
                self.close().await?;
                Err(why.into())
            }
            Err(e) => Err(e),
        }
    }

    /// Gives up all that is kept. Who has some of it has lost it.
    ///
    /// # Errors
    /// See [`Error`]. It ends by itself then.
    pub async fn close(&self) -> Result<(), Error> {
        let Some(next) = (self.unique)() else {
            return Ok(());
        };
        let session = {
            let mut inner = self.inner();
            if !inner.is_open {
                return Ok(());
            }
            inner.lose(next)
        };
        self.settled.notify_waiters();
        let done = ask(&self.agreement, Command::Close { session }).await;
        done.map(|_: Outcome| ())
    }
}
