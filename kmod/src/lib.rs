// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The pure half of the module, for user space and for tests on the host: formats, numbers and
//! decisions, without the kernel and without `unsafe`. `ssi_main.rs` is the other root of the same
//! files.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod asking;
pub mod ends;
pub mod id;
pub mod link_session;
#[cfg(test)]
mod random;
pub mod uapi;
pub mod wire;
