// SPDX-License-Identifier: MIT OR Apache-2.0

//! Decisions without I/O: no clock, no socket, no task. Time is a number of milliseconds since
//! whenever, given by the caller.

pub mod chain;
pub mod expect;
pub mod facts;
pub mod hash;
pub mod health;
#[cfg(test)]
pub mod history;
pub mod hlc;
pub mod isolation;
pub mod kv;
pub mod limit;
pub mod liveness;
pub mod lock;
pub mod migrate;
pub mod offence;
pub mod parts;
pub mod policy;
pub mod recovery;
pub mod relink;
pub mod route;
#[cfg(test)]
pub mod sim;
pub mod state;
pub mod swim;
pub mod tie;
pub mod voters;
