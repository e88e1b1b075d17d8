// SPDX-License-Identifier: MIT OR Apache-2.0

//! Locks and values for those who ask this node.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::{Council, unique};
use crate::agree::lease::{self, Session};
use crate::core::kv;
use crate::core::lock::{self, Owner};
use crate::core::state::{State, Unique};
use crate::failure::Failure;

impl From<lease::Error> for Failure {
    fn from(e: lease::Error) -> Self {
        match e {
            lease::Error::Agree(e) => e.into(),
            lease::Error::Refused(refusal) => refusal.into(),
            lease::Error::NotMember(refusal) => refusal.into(),
            lease::Error::TimedOut => Failure::declined("lock-timeout", e.to_string()),
            lease::Error::Gone => Failure::Unavailable(e.to_string()),
        }
    }
}

impl From<lock::Refusal> for Failure {
    fn from(refusal: lock::Refusal) -> Self {
        Failure::declined(refusal.code(), refusal.to_string())
    }
}

impl Council {
    /// A session for a user, which is good for `ttl` after each renewal. It is opened with its first lock.
    ///
    /// # Errors
    /// There are no random numbers.
    pub fn session(
        &self,
        uid: u32,
        parent: Option<Unique>,
        ttl: Duration,
    ) -> Result<Session, Failure> {
        let id = unique().ok_or_else(no_random)?;
        let owner = Owner {
            node: self.own,
            since: self.seat().since,
            uid,
        };
        let session = Session::new(&self.agreement, id, owner, parent, ttl);
        Ok(session.kept_by(Arc::clone(&self.keeper)))
    }

    /// Who has a lock that this node keeps, if somebody has, and the number of the grant.
    pub fn lent(&self, name: &str) -> Option<(Owner, u64)> {
        self.keeper.holder(name)
    }

    /// Sets or deletes a value. Returns the revision.
    ///
    /// # Errors
    /// Why it is as it was.
    pub async fn write(
        &self,
        name: String,
        expected: Option<u64>,
        value: Option<Vec<u8>>,
    ) -> Result<u64, Failure> {
        let id = unique().ok_or_else(no_random)?;
        match self.agreement.write(id, name, expected, value).await? {
            kv::Outcome::Done { revision } => Ok(revision),
            kv::Outcome::Refused(refusal) => {
                Err(Failure::declined(refusal.code(), refusal.to_string()))
            }
        }
    }

    /// What is agreed on as it becomes known here.
    pub fn watch(&self) -> watch::Receiver<Arc<State>> {
        self.agreement.watch()
    }
}

fn no_random() -> Failure {
    Failure::Unavailable("no random numbers".to_owned())
}
