// SPDX-License-Identifier: MIT OR Apache-2.0

//! What may be done to locks, and what comes of it.

use serde::{Deserialize, Serialize};
use ssi::id::NodeId;

use super::Unique;
use super::spell::node;

/// How a lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// With other readers.
    Read,
    /// Alone.
    Write,
}

impl Mode {
    /// Whether two cannot hold a lock at once in these ways.
    pub const fn excludes(self, other: Self) -> bool {
        matches!(self, Mode::Write) || matches!(other, Mode::Write)
    }

    /// The word users see.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Read => "read",
            Mode::Write => "write",
        }
    }
}

/// Whose a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owner {
    /// The node that speaks for it.
    #[serde(with = "node")]
    pub node: NodeId,
    /// The epoch that began when that node joined.
    pub since: u64,
    /// The user.
    pub uid: u32,
}

/// What a session is opened with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Opening {
    /// Whose it is.
    pub owner: Owner,
    /// The session that waits for the end of this one.
    pub parent: Option<Unique>,
    /// It is good for so long.
    pub ttl_ms: u64,
    /// It is the node's own, which keeps locks for others.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keeps: bool,
}

/// Something done to locks. Applied twice it is as if it was applied once, or it is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    /// A session is good for as long again.
    Renew {
        /// Which.
        session: Unique,
    },
    /// End it, and give up what it holds.
    Close {
        /// Which.
        session: Unique,
    },
    /// Have a lock. Answer: [`Outcome::Granted`] or [`Outcome::Waiting`].
    Acquire {
        /// For whom: a random number.
        session: Unique,
        /// Open the session, unless that is done or it has ended. If the lock is refused it is not open.
        opening: Option<Opening>,
        /// Number of the request: higher than that of the one before.
        serial: u64,
        /// Name of the lock.
        name: String,
        /// How.
        mode: Mode,
        /// Be refused if it cannot be had at once, or wait.
        wait: bool,
    },
    /// Give up a lock, or waiting for it.
    Release {
        /// Whose.
        session: Unique,
        /// Number of the request.
        serial: u64,
        /// Name of the lock.
        name: String,
    },
    /// Give up a lock, for the node to keep unless somebody waits for it. Answer: [`Outcome::Kept`], or
    /// [`Outcome::Done`] if it is given up.
    Keep {
        /// Whose.
        session: Unique,
        /// Number of the request.
        serial: u64,
        /// Name of the lock.
        name: String,
        /// The node's session,
        keeper: Unique,
        /// which is opened, unless that is done or it has ended.
        opening: Opening,
    },
    /// Somebody has a lock that a node keeps.
    Reveal {
        /// The node's session.
        keeper: Unique,
        /// Number of its request.
        serial: u64,
        /// Name of the lock.
        name: String,
        /// Who has it,
        session: Unique,
        /// which is opened, unless that is done or it has ended.
        opening: Opening,
        /// Number of the grant.
        token: u64,
    },
    /// Time has gone by. Who says so saw the state's clock turn `from_ms` and counts from there, by
    /// a clock that nobody sets.
    Tick {
        /// What the clock shows.
        from_ms: u64,
        /// What it should show.
        to_ms: u64,
    },
}

impl Command {
    /// What a session is opened with by it.
    pub const fn opening(&self) -> Option<Opening> {
        match self {
            Command::Acquire { opening, .. } => *opening,
            Command::Keep { opening, .. } | Command::Reveal { opening, .. } => Some(*opening),
            _ => None,
        }
    }
}

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Outcome {
    /// It is as it should be.
    Done,
    /// The session has the lock.
    Granted {
        /// Number of the grant.
        token: u64,
    },
    /// It will be granted in its turn, or refused; the state says when.
    Waiting,
    /// The node keeps the lock.
    Kept {
        /// The first of the numbers that are set aside for it.
        token: u64,
    },
    /// Nothing was changed.
    Refused(Refusal),
}

/// Why a command is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// It was not renewed in time, was closed, or its node is gone.
    #[error("the session has ended, and what it held is given up")]
    SessionEnded,
    /// Its number is another session's.
    #[error("there is another session of that number")]
    SessionExists,
    /// It would end too soon or too late.
    #[error("a session is good for 1 s to 1 h")]
    TtlInvalid,
    /// It is none.
    #[error("the name of a lock has 1 to 256 of the visible ASCII characters but \" and \\")]
    NameInvalid,
    /// The session has it.
    #[error("the session holds that lock already")]
    AlreadyHeld,
    /// It has not.
    #[error("the session does not hold that lock")]
    NotHeld,
    /// One request after the other.
    #[error("the session waits for a lock already")]
    Waiting,
    /// The request was not to wait.
    #[error("the lock is held")]
    Held,
    /// To wait would be for ever.
    #[error("the holder waits for this one: a deadlock")]
    Deadlock,
    /// A later request was seen.
    #[error("the request came too late")]
    Stale,
    /// There are as many as may be.
    #[error("too many sessions")]
    TooManySessions,
    /// There are as many as may be.
    #[error("too many locks are held")]
    TooManyLocks,
    /// There are as many as may be.
    #[error("too many wait for that lock")]
    TooManyWaiters,
}

impl Refusal {
    /// The word that stands for it, for programs. It never changes.
    pub const fn code(self) -> &'static str {
        match self {
            Refusal::SessionEnded => "session-ended",
            Refusal::SessionExists => "session-exists",
            Refusal::TtlInvalid => "ttl-invalid",
            Refusal::NameInvalid => "lock-name-invalid",
            Refusal::AlreadyHeld => "already-held",
            Refusal::NotHeld => "not-held",
            Refusal::Waiting => "waiting",
            Refusal::Held => "held",
            Refusal::Deadlock => "deadlock",
            Refusal::Stale => "stale",
            Refusal::TooManySessions => "too-many-sessions",
            Refusal::TooManyLocks => "too-many-locks",
            Refusal::TooManyWaiters => "too-many-waiters",
        }
    }
}
