// SPDX-License-Identifier: MIT OR Apache-2.0

//! The methods that are about locks. A connection has one session, which ends with it. Names that begin
//! with `u`, a user's number and `/` are that user's; all names are the administrators'.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;

use super::{Connection, Nothing, Outcome, answer, invalid};
use crate::agree::lease::{self, Session};
use crate::api::lock::{
    AcquireParameters, AcquireReply, Lock, LocksReply, Party, ReleaseParameters,
};
use crate::core::lock::{self, Hold, Mode, Owner, Waiter};
use crate::core::state::Unique;
use crate::failure::Failure;

/// What a connection holds is good for so long if it does not say.
const TTL_MS: u64 = 15_000;
/// Longest wait for a lock.
const MAX_WAIT: Duration = Duration::from_secs(24 * 3600);

impl Connection {
    /// Calls a method, if it is one of these.
    pub(super) async fn lock(&mut self, method: &str, parameters: &Value) -> Option<Outcome> {
        Some(match method {
            "Acquire" => match serde_json::from_value(parameters.clone()) {
                Ok(p) => self.acquired(p).await,
                Err(e) => invalid(&e),
            },
            "Release" => match serde_json::from_value(parameters.clone()) {
                Ok(p) => answer(self.release(p).await),
                Err(e) => invalid(&e),
            },
            "Renew" => answer(self.renew().await),
            "Locks" => answer(self.locks().await),
            _ => return None,
        })
    }

    /// Acquires, and records if that is refused because of who asks.
    async fn acquired(&mut self, p: AcquireParameters) -> Outcome {
        let is_anothers = lock::check_name(&p.name).is_ok() && !self.may_lock(&p.name);
        let name = p.name.clone();
        let result = self.acquire(p).await;
        match is_anothers {
            true => self.done("Acquire", name, result),
            false => answer(result),
        }
    }

    /// Whether a name is one the user may use.
    fn may_lock(&self, name: &str) -> bool {
        self.user.is_admin || name.starts_with(&format!("u{}/", self.user.uid))
    }

    async fn acquire(&mut self, p: AcquireParameters) -> Result<AcquireReply, Failure> {
        lock::check_name(&p.name)?;
        if !self.may_lock(&p.name) {
            let own = format!("u{}/", self.user.uid);
            let text = format!("your locks have names that begin with {own}");
            return Err(Failure::declined("not-your-lock", text));
        }
        let parent = p.parent.map(|text| text.parse::<Unique>()).transpose();
        let parent = parent.map_err(|e| Failure::declined("session-unknown", e))?;
        let cluster = self.stage.cluster()?;
        let council = cluster.council()?;
        if self.session.is_none() {
            let ttl = Duration::from_millis(p.ttl_ms.unwrap_or(TTL_MS));
            let opened = council.session(self.user.uid, parent, ttl)?;
            self.session = Some(opened);
        }
        let Some(session) = &mut self.session else {
            return Err(lock::Refusal::SessionEnded.into());
        };
        let wait = p.wait_ms.map(|ms| Duration::from_millis(ms).min(MAX_WAIT));
        let stream = &self.stream;
        let wanted = || !is_closed(stream);
        let got = session.acquire(&p.name, p.mode, wait, wanted).await;
        let (session, ttl) = (session.id().to_string(), session.ttl());
        if let Err(lease::Error::Agree(_)) = got
            && let Some(session) = self.session.take()
        {
            // It may have the lock, by a number that nobody knows.
            tokio::spawn(end(session));
        }
        Ok(AcquireReply {
            token: got?,
            session,
            ttl_ms: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX),
        })
    }

    async fn release(&mut self, p: ReleaseParameters) -> Result<Nothing, Failure> {
        let session = self.session.as_mut().ok_or(lock::Refusal::NotHeld)?;
        session.release(&p.name).await?;
        Ok(Nothing {})
    }

    async fn renew(&mut self) -> Result<Nothing, Failure> {
        let session = self.session.as_mut().ok_or(lock::Refusal::SessionEnded)?;
        session.renew().await?;
        Ok(Nothing {})
    }

    async fn locks(&self) -> Result<LocksReply, Failure> {
        let state = self.agreed().await?;
        let cluster = self.stage.cluster()?;
        let council = cluster.council()?;
        let own = council.own();
        let all = state.locks.locks().iter();
        let visible = all.filter(|(name, _)| self.may_lock(name));
        let locks = visible.filter_map(|(name, lock)| {
            let holder = |session: &Unique, hold: &Hold| {
                let opening = state.locks.session(*session)?.opening;
                if opening.keeps && opening.owner.node == own {
                    let (owner, token) = council.lent(name)?;
                    return Some(party(owner, hold.mode, token, false));
                }
                Some(party(opening.owner, hold.mode, hold.token, opening.keeps))
            };
            let waiter = |waiter: &Waiter| {
                let owner = state.locks.session(waiter.session)?.opening.owner;
                Some(party(owner, waiter.mode, 0, false))
            };
            let lock = Lock {
                name: name.clone(),
                holders: lock
                    .holds
                    .iter()
                    .filter_map(|(s, h)| holder(s, h))
                    .collect(),
                waiting: lock.queue.iter().filter_map(waiter).collect(),
            };
            // What is only kept here is not held.
            (!lock.holders.is_empty() || !lock.waiting.is_empty()).then_some(lock)
        });
        Ok(LocksReply {
            locks: locks.collect(),
        })
    }

    /// The connection is over, and so is its session.
    pub(super) async fn end_session(&mut self) {
        if let Some(session) = self.session.take() {
            end(session).await;
        }
    }
}

async fn end(session: Session) {
    if let Err(e) = session.close().await {
        tracing::info!("locks of a connection that ended stay until their lease ends: {e}");
    }
}

fn party(owner: Owner, mode: Mode, token: u64, kept: bool) -> Party {
    Party {
        node: owner.node.get().into(),
        uid: owner.uid,
        mode,
        token,
        kept,
    }
}

/// Whether the other side has ended a connection.
pub(super) fn is_closed(stream: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    // What is said of it unasked.
    let told = poll(&mut fds, PollTimeout::ZERO);
    let [fd] = fds;
    told.is_ok()
        && fd
            .revents()
            .is_some_and(|r| r.intersects(PollFlags::POLLHUP | PollFlags::POLLERR))
}
