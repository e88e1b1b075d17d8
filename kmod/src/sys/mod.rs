// SPDX-License-Identifier: GPL-2.0-only

//! The kernel's C side behind safe types. The only place of the module with `unsafe` and with the
//! names of bindings and shim functions.

pub mod calls;
pub mod file;
pub mod genl;
pub mod mm;
pub mod net;
pub mod pids;
pub mod slot;
pub mod table;
pub mod task;
pub mod trace;
pub mod wait;
pub mod work;
