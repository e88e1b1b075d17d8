// SPDX-License-Identifier: MIT OR Apache-2.0

//! What lets machines join.

use serde::{Deserialize, Serialize};
use ssi::id::MAX_NODE;

use super::{Answer, Command, Outcome, Refusal, State};
use crate::core::hash::Hash;

/// Most tokens, those that are used up and have not ended among them.
pub const MAX_TOKENS: usize = 64;
/// Longest name of a token.
pub const MAX_TOKEN_ID_BYTES: usize = 16;
/// Longest time a token is good for.
pub const MAX_TOKEN_MS: u64 = 30 * 24 * 3600 * 1000;

/// What lets machines join.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// SHA-256 of its secret.
    pub secret: Hash,
    /// Not after this.
    pub expires_ms: u64,
    /// The user who made it.
    pub made_by_uid: u32,
    /// Machines that may still join. One with none is kept until it ends, so that the command
    /// that made it does not make it again.
    pub uses_left: u16,
}

impl State {
    pub(super) fn add_token(&mut self, command: &Command) -> Answer {
        let Command::AddToken {
            id,
            secret,
            expires_ms,
            made_by_uid,
            uses,
            now_ms,
        } = command
        else {
            return Err(Refusal::TokenInvalid);
        };
        self.tokens.retain(|_, t| t.expires_ms > *now_ms);
        if let Some(token) = self.tokens.get(id) {
            return if token.secret == *secret && token.expires_ms == *expires_ms {
                Ok(Outcome::Done)
            } else {
                Err(Refusal::TokenExists)
            };
        }
        if !(1..=MAX_TOKEN_ID_BYTES).contains(&id.len())
            || !id
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
            || !(1..=MAX_NODE).contains(uses)
            || *expires_ms > now_ms.saturating_add(MAX_TOKEN_MS)
        {
            return Err(Refusal::TokenInvalid);
        }
        if *expires_ms <= *now_ms {
            return Err(Refusal::TokenExpired);
        }
        if self.tokens.len() >= MAX_TOKENS {
            // One of no use makes room.
            let of_no_use = self.tokens.iter().filter(|(_, t)| t.uses_left == 0);
            let first = of_no_use.min_by_key(|(_, t)| t.expires_ms);
            let first = first.map(|(id, _)| id.clone());
            self.tokens.remove(&first.ok_or(Refusal::TooManyTokens)?);
        }
        let token = Token {
            secret: *secret,
            expires_ms: *expires_ms,
            made_by_uid: *made_by_uid,
            uses_left: *uses,
        };
        self.tokens.insert(id.clone(), token);
        Ok(Outcome::Done)
    }

    /// Lets nobody join with a token any more.
    pub(super) fn drop_token(&mut self, id: &str) -> Answer {
        let token = self.tokens.get_mut(id).ok_or(Refusal::TokenUnknown)?;
        token.uses_left = 0;
        Ok(Outcome::Done)
    }
}
