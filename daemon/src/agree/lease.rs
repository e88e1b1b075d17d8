// SPDX-License-Identifier: MIT OR Apache-2.0

//! Sessions that hold locks, as the node that speaks for them has them; and the clock by which they
//! end.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::keeper::{Holder, Keeper, Lent};
use super::{Agreement, Role};
use crate::core::lock::{self, Mode, Opening, Owner};
use crate::core::state::{Command, Outcome, Unique};

/// The clock goes on so often.
const TICK: Duration = Duration::from_millis(500);
/// Who waits is asked so often whether he still does.
const LOOK: Duration = Duration::from_millis(500);
/// Then the session of one who waits is renewed, and that given up for now after so long.
const RENEW: Duration = Duration::from_secs(2);
/// Who does not want to wait waits so long for a node that keeps the lock to say whether somebody has it.
const TRY: Duration = Duration::from_secs(5);

/// A lock is not had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing is agreed on.
    #[error(transparent)]
    Agree(#[from] super::Error),
    /// The locks say why.
    #[error(transparent)]
    Refused(#[from] lock::Refusal),
    /// This node is not one.
    #[error(transparent)]
    NotMember(#[from] crate::core::state::Refusal),
    /// It was not granted in time.
    #[error("the lock was not free in time")]
    TimedOut,
    /// Nobody wants it any more.
    #[error("who waited for the lock is gone")]
    Gone,
}

/// Has the state do something about locks.
pub(super) async fn ask(
    agreement: &Agreement,
    command: lock::Command,
) -> Result<lock::Outcome, Error> {
    match agreement.settle(Command::Lock(command)).await? {
        Outcome::Lock(lock::Outcome::Refused(refusal)) => Err(refusal.into()),
        Outcome::Lock(outcome) => Ok(outcome),
        Outcome::Refused(refusal) => Err(refusal.into()),
        _ => Err(super::Error::Unknown.into()),
    }
}

/// Does what changes nothing if it is done again until it is known to be done, for as long as there is
/// time and it is `wanted`.
async fn insist<T, F: Future<Output = Result<T, Error>>>(
    until: Instant,
    wanted: &impl Fn() -> bool,
    what: impl Fn() -> F,
) -> Result<T, Error> {
    use super::Error::{Unavailable, Unknown};
    loop {
        let done = what().await;
        let is_open = matches!(done, Err(Error::Agree(Unavailable | Unknown)));
        if !is_open || Instant::now() >= until || !wanted() {
            return done;
        }
        sleep(LOOK).await;
    }
}

/// A session.
#[derive(Debug)]
pub struct Session {
    agreement: Agreement,
    id: Unique,
    opening: Opening,
    /// What this node keeps; without it each lock is the state's.
    keeper: Option<Arc<Keeper>>,
    /// Whether the state knows it, and whether it may.
    is_open: bool,
    may_be_open: bool,
    /// What it has, as the state knows.
    held: BTreeSet<String>,
    /// What it has of what this node keeps.
    lent: BTreeSet<String>,
    /// Number of the last request.
    serial: u64,
    /// When the renewal was asked for that counts.
    renewed: Instant,
}

impl Session {
    /// The session `id`, a random number, that is good for `ttl` after each renewal. It is opened with its
    /// first lock.
    pub fn new(
        agreement: &Agreement,
        id: Unique,
        owner: Owner,
        parent: Option<Unique>,
        ttl: Duration,
    ) -> Self {
        Self {
            agreement: agreement.clone(),
            id,
            opening: Opening {
                owner,
                parent,
                ttl_ms: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX),
                keeps: false,
            },
            keeper: None,
            is_open: false,
            may_be_open: false,
            held: BTreeSet::new(),
            lent: BTreeSet::new(),
            serial: 0,
            renewed: Instant::now(),
        }
    }

    /// Its number.
    pub fn id(&self) -> Unique {
        self.id
    }

    /// How long it is good after each renewal.
    pub fn ttl(&self) -> Duration {
        Duration::from_millis(self.opening.ttl_ms)
    }

    /// Until then at least the session is good, by a clock that nobody sets.
    pub fn good_until(&self) -> Instant {
        self.renewed + self.ttl()
    }

    /// The same, with locks that this node keeps.
    #[must_use]
    pub fn kept_by(mut self, keeper: Arc<Keeper>) -> Self {
        self.keeper = Some(keeper);
        self
    }

    async fn ask(&self, command: lock::Command) -> Result<lock::Outcome, Error> {
        ask(&self.agreement, command).await
    }

    fn next(&mut self) -> u64 {
        self.serial = self.serial.saturating_add(1);
        self.serial
    }

    /// Has a lock, and waits for it if `wait` says how long. Returns the number of the grant. While
    /// it waits, the session is renewed for as long as `wanted` says so.
    ///
    /// # Errors
    /// See [`Error`]. The session does not hold the lock then, or has ended, but for
    /// [`lock::Refusal::AlreadyHeld`]; after [`Error::Agree`] close it.
    pub async fn acquire(
        &mut self,
        name: &str,
        mode: Mode,
        wait: Option<Duration>,
        wanted: impl Fn() -> bool,
    ) -> Result<u64, Error> {
        let asked = Instant::now();
        if self.lent.contains(name) {
            return Err(lock::Refusal::AlreadyHeld.into());
        }
        // Of what this node lends the state does not know.
        if self.held.len() + self.lent.len() >= lock::MAX_HELD {
            return Err(lock::Refusal::TooManyLocks.into());
        }
        if !lock::is_good_ttl(self.opening.ttl_ms) {
            return Err(lock::Refusal::TtlInvalid.into());
        }
        if mode == Mode::Write
            && let Some(token) = self.borrow(name, asked)
        {
            return Ok(token);
        }
        let token = self.acquire_of_all(name, mode, wait, wanted).await?;
        self.held.insert(name.to_owned());
        Ok(token)
    }

    /// Has a lock that this node keeps, if it is free.
    fn borrow(&mut self, name: &str, asked: Instant) -> Option<u64> {
        // It may have ended in the state, which then would not say that it has what it has from here.
        if self.is_open && self.good_until() <= asked {
            return None;
        }
        let holder = Holder {
            id: self.id,
            opening: self.opening,
            until: asked + self.ttl(),
        };
        let token = self.keeper.as_ref()?.lend(name, holder)?;
        if !self.is_open && self.lent.is_empty() {
            self.renewed = asked;
        }
        self.lent.insert(name.to_owned());
        Some(token)
    }

    /// Has a lock from the state.
    async fn acquire_of_all(
        &mut self,
        name: &str,
        mode: Mode,
        wait: Option<Duration>,
        wanted: impl Fn() -> bool,
    ) -> Result<u64, Error> {
        let asked = Instant::now();
        let until = asked + wait.unwrap_or(TRY);
        self.may_be_open = true;
        let acquire = lock::Command::Acquire {
            session: self.id,
            opening: (!self.is_open).then_some(self.opening),
            serial: self.next(),
            name: name.to_owned(),
            mode,
            wait: wait.is_some(),
        };
        let outcome = insist(until, &wanted, || self.ask(acquire.clone())).await?;
        if !self.is_open {
            self.is_open = true;
            if self.lent.is_empty() {
                self.renewed = asked;
            }
        }
        match outcome {
            lock::Outcome::Granted { token } => return Ok(token),
            lock::Outcome::Waiting => {}
            lock::Outcome::Done | lock::Outcome::Kept { .. } | lock::Outcome::Refused(_) => {
                return Err(super::Error::Unknown.into());
            }
        }
        // From here on what is known on this node is not from before the request.
        let read = || async { Ok(self.agreement.read().await?) };
        insist(until, &wanted, read).await?;
        let given_up = loop {
            let left = until.saturating_duration_since(Instant::now());
            match timeout(left.min(LOOK), self.granted(name)).await {
                Ok(granted) => return granted,
                Err(_) if left.is_zero() && wait.is_none() => break lock::Refusal::Held.into(),
                Err(_) if left.is_zero() => break Error::TimedOut,
                Err(_) if !wanted() => break Error::Gone,
                Err(_) if self.renewed.elapsed() >= self.ttl() / 3 => {
                    match timeout(RENEW, self.renew()).await {
                        // While nothing is agreed on no lease ends.
                        Ok(Ok(()) | Err(Error::Agree(_))) | Err(_) => {}
                        Ok(Err(e)) => return Err(e),
                    }
                }
                Err(_) => {}
            }
        };
        self.give_up(name).await?;
        Err(given_up)
    }

    /// Waits until the lock is granted. Returns its number.
    async fn granted(&self, name: &str) -> Result<u64, Error> {
        let mut state = self.agreement.watch();
        let waits = |locks: &lock::Locks| {
            let session = locks.session(self.id);
            session.is_some_and(|s| s.waits.is_some())
        };
        let state = state.wait_for(|s| !waits(&s.locks)).await;
        let state = state.map_err(|_| super::Error::Stopped)?;
        if let Some(token) = state.locks.token(self.id, name) {
            return Ok(token);
        }
        let session = state.locks.session(self.id);
        let refusal = session.and_then(lock::Session::refusal);
        Err(refusal.unwrap_or(lock::Refusal::SessionEnded).into())
    }

    /// Gives up a lock.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn release(&mut self, name: &str) -> Result<(), Error> {
        match self.give_back(name).await {
            Some(Lent::Yes) => return Ok(()),
            Some(Lent::Lost) => return Err(lock::Refusal::SessionEnded.into()),
            Some(Lent::Revealed) | None => {}
        }
        let was_held = self.held.remove(name);
        let keeper = self.keeper.clone().filter(|_| was_held);
        let wants =
            keeper.and_then(|keeper| Some((keeper.wants(name, self.opening.owner)?, keeper)));
        let Some(((id, opening), keeper)) = wants else {
            return self.give_up(name).await;
        };
        let keep = lock::Command::Keep {
            session: self.id,
            serial: self.next(),
            name: name.to_owned(),
            keeper: id,
            opening,
        };
        let done = self.ask(keep).await;
        let token = match done {
            Ok(lock::Outcome::Kept { token }) => Some(token),
            _ => None,
        };
        keeper.settle(name, id, token);
        done.map(drop)
    }

    /// Gives back a lock that was lent, if it was. One that was revealed is the state's from then on.
    async fn give_back(&mut self, name: &str) -> Option<Lent> {
        let keeper = self.keeper.clone().filter(|_| self.lent.contains(name))?;
        let lent = keeper.take_back(name, self.id).await;
        self.note_lent(name, lent);
        self.lent.remove(name);
        Some(lent)
    }

    fn note_lent(&mut self, name: &str, lent: Lent) {
        match lent {
            Lent::Yes => return,
            Lent::Lost => {}
            Lent::Revealed => {
                (self.is_open, self.may_be_open) = (true, true);
                self.held.insert(name.to_owned());
            }
        }
        self.lent.remove(name);
    }

    /// Has the state take a lock back, or a request for it.
    async fn give_up(&mut self, name: &str) -> Result<(), Error> {
        let release = lock::Command::Release {
            session: self.id,
            serial: self.next(),
            name: name.to_owned(),
        };
        self.ask(release).await.map(drop)
    }

    /// The session is good for as long again, from when this was called.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn renew(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        // First, so that nothing is lent on to a session that has ended.
        let mut is_told = false;
        if self.knows_state() {
            self.renew_in_state().await?;
            is_told = true;
        }
        if let Some(keeper) = self.keeper.clone() {
            for name in self.lent.clone() {
                let lent = keeper.extend(&name, self.id, now + self.ttl()).await?;
                self.note_lent(&name, lent);
                if lent == Lent::Lost {
                    return Err(lock::Refusal::SessionEnded.into());
                }
            }
        }
        // What was lent may have been revealed to the state meanwhile.
        if !is_told && self.knows_state() {
            self.renew_in_state().await?;
        }
        self.renewed = now;
        Ok(())
    }

    /// Whether the state knows of it. Without a lock that was lent it is for the state to say whether it ever did.
    fn knows_state(&self) -> bool {
        self.is_open || self.lent.is_empty()
    }

    async fn renew_in_state(&mut self) -> Result<(), Error> {
        let session = self.id;
        self.ask(lock::Command::Renew { session }).await.map(drop)
    }

    /// Ends the session, and gives up what it holds.
    ///
    /// # Errors
    /// See [`Error`]. It ends by itself then.
    pub async fn close(mut self) -> Result<(), Error> {
        for name in self.lent.clone() {
            self.give_back(&name).await;
        }
        for name in self.held.clone() {
            // What is left is not held after the end.
            if self.release(&name).await.is_err() {
                break;
            }
        }
        if !self.may_be_open {
            return Ok(());
        }
        let session = self.id;
        self.ask(lock::Command::Close { session }).await.map(drop)
    }
}

/// Lets the clock of the sessions go on while this node leads and there are any. It counts from when
/// this node saw the clock turn, which is after it turned: so it never goes faster than the time.
pub async fn keep_time(agreement: Agreement) {
    let state = agreement.watch();
    let now_ms = || {
        let locks = &state.borrow().locks;
        (!locks.sessions().is_empty()).then(|| locks.now_ms())
    };
    let mut seen = None;
    loop {
        sleep(TICK).await;
        let Some(from_ms) = now_ms() else {
            seen = None;
            continue;
        };
        let (at_ms, at) = *seen.get_or_insert_with(|| (from_ms, Instant::now()));
        if at_ms != from_ms {
            seen = Some((from_ms, Instant::now()));
            continue;
        }
        let status = agreement.status();
        match status.role {
            Role::Stopped => return,
            Role::Leader if status.has_majority => {}
            _ => continue,
        }
        let passed_ms = u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
        let to_ms = from_ms.saturating_add(passed_ms);
        let tick = Command::Lock(lock::Command::Tick { from_ms, to_ms });
        match agreement.propose(tick).await {
            Ok(_) => seen = now_ms().map(|now_ms| (now_ms, Instant::now())),
            Err(e) => tracing::debug!("the clock of the sessions stands: {e}"),
        }
    }
}
